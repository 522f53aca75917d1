from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from devices.protocol import manifest
from devices.protocol.errors import AgentError
from devices.protocol.framing import Kind
from devices.protocol.manifest import FileEntry, Manifest, digest
from devices.store import MAX_BLOB, Store
from tests.conftest import need_tool
from tests.devices.wire import Agent, fault

BLOB = bytes(range(256)) * 8
SHA256 = digest(BLOB)
SHORT = SHA256[:12]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "board")


def refused(call, *arguments: object) -> tuple[str, str]:
    """Code and text of the error that the call must raise; the error itself for its facts."""
    return (error := refusal(call, *arguments)).code, error.message


def refusal(call, *arguments: object) -> AgentError:
    with pytest.raises(AgentError) as caught:
        call(*arguments)
    return caught.value


def put(store: Store, data: bytes) -> str:
    sha256 = digest(data)
    assert store.put(sha256, len(data), 0, data)
    return sha256


def bundle(
    store: Store, name: str = "kws", model: bytes = b"model", golden: bytes | None = None, seed: int = 0
) -> bytes:
    """A manifest whose files are in the store."""
    files = {manifest.MODEL: FileEntry(put(store, model), len(model))}
    if golden is not None:
        files[manifest.GOLDEN] = FileEntry(put(store, golden), len(golden))
    return Manifest(name, files, (), (), seed=seed).to_bytes()


def everything(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


# Blobs


def test_a_blob_in_one_piece_is_whole_at_once(store):
    assert 0 == store.progress(SHA256)
    assert store.put(SHA256, len(BLOB), 0, BLOB)
    assert -1 == store.progress(SHA256)
    assert BLOB == store.path(SHA256).read_bytes()


def test_a_blob_goes_on_at_the_byte_where_its_partial_file_ends(store):
    """Also in a new conversation: the partial file is all that is remembered."""
    assert not store.put(SHA256, len(BLOB), 0, BLOB[:1000])
    again = Store(store.root)

    assert 1000 == again.progress(SHA256)
    assert not again.put(SHA256, len(BLOB), 1000, BLOB[1000:2000])
    assert again.put(SHA256, len(BLOB), 2000, BLOB[2000:])
    assert {SHA256} == {path.name for path in store.blobs.iterdir()}


def test_a_blob_that_is_not_whole_is_not_found(store):
    store.put(SHA256, len(BLOB), 0, BLOB[:1000])

    assert ("not-found", f"the store has no {SHORT}") == refused(store.path, SHA256)


@pytest.mark.parametrize("offset", [999, 1001, -1])
def test_another_offset_is_refused_with_the_one_that_is_due(store, offset):
    store.put(SHA256, len(BLOB), 0, BLOB[:1000])

    error = refusal(store.put, SHA256, len(BLOB), offset, BLOB[offset:])

    assert ("bad-request", f"{SHORT} goes on at byte 1000, not at {offset}") == (error.code, error.message)
    assert {"have": 1000} == error.facts
    assert 1000 == store.progress(SHA256)


def test_offset_zero_begins_anew_whatever_was_here(store):
    """A partial file that is longer than the blob can be no part of it."""
    store.put(SHA256, len(BLOB) + 5000, 0, bytes(len(BLOB) + 1))

    assert store.put(SHA256, len(BLOB), 0, BLOB)
    assert BLOB == store.path(SHA256).read_bytes()


def test_a_partial_file_that_is_whole_is_finished_by_an_empty_piece(store):
    """Power went between the last byte and the rename."""
    (store.blobs / f"{SHA256}.part").write_bytes(BLOB)

    assert store.put(SHA256, len(BLOB), len(BLOB), b"")
    assert BLOB == store.path(SHA256).read_bytes()


def test_a_blob_that_was_damaged_on_the_disk_is_dropped_when_it_is_about_to_be_used(store):
    put(store, BLOB)
    store.path(SHA256).write_bytes(BLOB[:-1] + b"x")

    assert ("bad-digest", f"{SHORT} was damaged on the board's disk") == refused(store.checked, SHA256)
    assert 0 == store.progress(SHA256)


def test_a_release_whose_file_has_another_size_is_not_found_and_can_be_brought_again(store):
    data = bundle(store)
    store.stage(data)
    blob = next(path for path in store.blobs.iterdir())
    blob.write_bytes(b"")

    assert store.find(digest(data)) is None
    assert not blob.exists()


def test_clean_leaves_what_others_put_there(store):
    put(store, BLOB)
    (store.root / "photos").mkdir()
    (store.root / "photos" / "a.jpg").write_bytes(b"precious")

    store.clean()

    assert ["photos", "photos/a.jpg"] == sorted(str(p.relative_to(store.root)) for p in store.root.rglob("*"))


def test_a_blob_that_is_here_is_not_written_again(store):
    put(store, BLOB)
    written = store.path(SHA256).stat().st_mtime_ns

    assert store.put(SHA256, 5, 0, b"other")
    assert (BLOB, written) == (store.path(SHA256).read_bytes(), store.path(SHA256).stat().st_mtime_ns)


def test_more_bytes_than_announced_are_refused(store):
    assert ("bad-request", "2048 bytes of a blob of 2047") == refused(store.put, SHA256, 2047, 0, BLOB)
    assert 0 == store.progress(SHA256)


@pytest.mark.parametrize("total", [-1, MAX_BLOB + 1])
def test_an_absurd_size_is_refused(store, total):
    text = f"a blob of {total} bytes; the limit is 4294967296"

    assert ("bad-request", text) == refused(store.put, SHA256, total, 0, b"")


def test_a_damaged_blob_is_dropped_and_can_be_sent_again(store):
    """No byte of it can be trusted, so nothing is left to go on from."""
    damaged = BLOB[:-1] + b"?"

    assert ("bad-digest", f"{SHORT} arrived damaged and was dropped") == refused(store.put, SHA256, 2048, 0, damaged)
    assert 0 == store.progress(SHA256)
    assert set() == everything(store.blobs)
    assert store.put(SHA256, len(BLOB), 0, BLOB)


def test_an_empty_blob_is_one(store):
    assert store.put(digest(b""), 0, 0, b"")
    assert b"" == store.path(digest(b"")).read_bytes()


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "", SHA256.upper(), SHA256 + "/../x", SHA256[:-1], 5, None])
def test_only_a_digest_names_a_blob(store, name):
    """A path from the outside is never used as a path."""
    text = f"not a SHA-256: {str(name)!r}"

    assert ("bad-request", text) == refused(store.path, name)
    assert ("bad-request", text) == refused(store.progress, name)
    assert ("bad-request", text) == refused(store.put, name, 1, 0, b"x")
    assert {"releases", "runtime", "store"} == everything(store.root)


def test_a_link_in_place_of_a_partial_file_is_not_followed(store, tmp_path):
    """Whoever else may write to the board's folder cannot lead the agent out of it."""
    outside = tmp_path / "authorized_keys"
    outside.write_bytes(b"mine")
    (store.blobs / f"{SHA256}.part").symlink_to(outside)

    code, text = refused(store.put, SHA256, len(BLOB), 4, BLOB[4:])

    assert ("io-error", f"Too many levels of symbolic links: {store.blobs / SHA256}.part") == (code, text)
    assert b"mine" == outside.read_bytes()


def test_a_folder_that_cannot_be_made_is_an_io_error(tmp_path):
    (tmp_path / "file").write_text("")

    assert ("io-error", f"Not a directory: {tmp_path / 'file' / 'board'}") == refused(
        Store, tmp_path / "file" / "board"
    )


# Releases


def test_a_release_is_numbered_and_can_be_found_by_its_digest(store):
    data = bundle(store)

    assert "kws/1" == store.stage(data)
    assert ("kws/1", manifest.parse(data)) == store.find(digest(data))
    assert None is store.find(digest(b"another"))
    assert None is store.current()


def test_the_same_bundle_is_released_once(store):
    data = bundle(store)

    assert "kws/1" == store.stage(data)
    assert "kws/1" == store.stage(data)
    assert ["1"] == [path.name for path in (store.releases / "kws").iterdir()]


def test_another_bundle_of_the_name_gets_the_next_number(store):
    """Ten comes after nine."""
    staged = [store.stage(bundle(store, seed=seed)) for seed in range(11)]

    assert [f"kws/{n}" for n in range(1, 12)] == staged


def test_a_bundle_whose_file_is_missing_is_not_staged(store):
    data = Manifest("kws", {manifest.MODEL: FileEntry(SHA256, len(BLOB))}, (), ()).to_bytes()

    assert ("not-found", f"the store has no {SHORT}") == refused(store.stage, data)
    assert set() == everything(store.releases)


def test_what_is_no_manifest_is_not_staged(store):
    assert ("bad-request", "manifest: no 'name'") == refused(store.stage, b'{"format": 1}')
    assert ("bad-request", "manifest: a value is missing: 'name'") == refused(
        store.stage, json.dumps({**json.loads(bundle(store)), "inputs": [{}]}).encode()
    )


def test_activating_makes_a_release_current(store):
    first, second = bundle(store, seed=1), bundle(store, seed=2)
    store.stage(first)
    store.stage(second)

    store.activate("kws/1")
    assert ("kws/1", digest(first)) == store.current()
    store.activate("kws/2")
    assert ("kws/2", digest(second)) == store.current()
    store.activate("kws/1")
    assert ("kws/1", digest(first)) == store.current()


def test_the_current_link_is_relative_so_that_the_folder_can_be_moved(store, tmp_path):
    store.stage(data := bundle(store))
    store.activate("kws/1")

    store.root.rename(tmp_path / "moved")

    assert ("kws/1", digest(data)) == Store(tmp_path / "moved").current()


WATCH = """
import os, sys
link, seen = sys.argv[1] + "/current", {}
print("watching", flush=True)
while not os.path.exists(sys.argv[2]):
    try:
        found = os.readlink(link) if os.path.isfile(link + "/manifest.json") else "nothing"
    except OSError:
        found = "nothing"
    seen[found] = seen.get(found, 0) + 1
print(*sorted(seen))
"""


def test_there_is_a_whole_current_release_at_every_moment(store, tmp_path):
    """Another process looks without a pause while it is switched to and fro; a power cut could come at any time."""
    for seed in (1, 2):
        store.stage(bundle(store, seed=seed))
    store.activate("kws/1")
    done = tmp_path / "done"
    command = [sys.executable, "-c", WATCH, str(store.root), str(done)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watcher:
        assert "watching\n" == watcher.stdout.readline()
        for n in range(500):
            store.activate(f"kws/{n % 2 + 1}")
        done.touch()

        assert "releases/kws/1 releases/kws/2\n" == watcher.stdout.readline()
    assert {"current", "history", "releases", "runtime", "store"} == {path.name for path in store.root.iterdir()}


@pytest.mark.parametrize(
    "release", ["kws", "kws/", "kws/0", "kws/01", "kws/-1", "../kws/1", "kws/../1", "/etc/1", 7, None]
)
def test_what_names_no_release_is_refused(store, release):
    text = f"not a release: {str(release)!r}"

    assert ("bad-request", text) == refused(store.activate, release)
    assert ("bad-request", text) == refused(store.drop, release)


def test_a_release_that_is_not_there_is_not_found(store):
    assert ("not-found", "no release kws/7") == refused(store.activate, "kws/7")
    assert ("not-found", "no release kws/7") == refused(store.drop, "kws/7")


def test_dropping_a_release_takes_its_blobs_along(store):
    data = bundle(store, golden=b"golden")
    store.stage(data)

    store.drop("kws/1")

    assert None is store.find(digest(data))
    assert set() == everything(store.blobs)


def test_dropping_a_release_keeps_the_blobs_that_another_one_uses(store):
    """Of whatever name: two bundles may hold the same golden vectors."""
    store.stage(bundle(store, "kws", b"old model", b"golden"))
    store.stage(bundle(store, "other", b"new model", b"golden"))

    store.drop("kws/1")

    assert {digest(b"new model"), digest(b"golden")} == everything(store.blobs)


def test_a_release_that_was_current_once_cannot_be_dropped(store):
    store.stage(data := bundle(store))
    store.activate("kws/1")

    assert ("bad-request", "kws/1 proved itself before") == refused(store.drop, "kws/1")
    assert ("kws/1", digest(data)) == store.current()


def test_what_a_cut_short_staging_left_behind_is_no_release(store):
    """The agent may be killed between making the folder and renaming it."""
    data = bundle(store)
    leftover = store.releases / "kws" / ".1.999"
    leftover.mkdir(parents=True)
    (leftover / "manifest.json").write_bytes(data)

    assert None is store.find(digest(data))
    assert "kws/1" == store.stage(data)


# The runtime


def archive(members: dict[str, bytes], links: dict[str, str] | None = None) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as packed:
        for name, data in members.items():
            packed.writestr(name, data)
        for name, target in (links or {}).items():
            info = zipfile.ZipInfo(name)
            info.external_attr = 0o120777 << 16
            packed.writestr(info, target)
    return out.getvalue()


def test_a_runtime_is_unpacked_used_and_its_archive_dropped(store):
    assert None is store.runtime()
    sha256 = put(store, archive({"numpy/__init__.py": b"", "ai_edge_litert/__init__.py": b"x = 1\n"}))

    store.install_runtime(sha256)

    assert store.runtimes / sha256 == store.runtime()
    assert b"x = 1\n" == (store.runtime() / "ai_edge_litert" / "__init__.py").read_bytes()
    assert set() == everything(store.blobs)


def test_a_new_runtime_takes_the_place_of_the_old(store):
    first, second = put(store, archive({"one.py": b""})), put(store, archive({"two.py": b""}))

    store.install_runtime(first)
    store.install_runtime(second)

    assert second == store.runtime().name
    assert {first, second, "current"} == {path.name for path in store.runtimes.iterdir()}


def test_a_runtime_that_was_unpacked_before_is_used_again(store):
    data = archive({"one.py": b""})
    store.install_runtime(put(store, data))
    store.install_runtime(put(store, archive({"two.py": b""})))
    store.install_runtime(put(store, data))

    assert digest(data) == store.runtime().name


@pytest.mark.parametrize(
    ("data", "member"),
    [
        (archive({"numpy.py": b"", "../../.bashrc": b"evil"}), "../../.bashrc"),
        (archive({"/etc/cron.d/evil": b"evil"}), "/etc/cron.d/evil"),
        (archive({"a/../../evil": b"evil"}), "a/../../evil"),
        (archive({}, links={"lib": "/tmp"}), "lib"),
    ],
    ids=["parent", "absolute", "hidden parent", "link"],
)
def test_a_member_that_leads_out_of_the_folder_is_refused_before_anything_is_unpacked(store, tmp_path, data, member):
    sha256 = put(store, data)

    assert ("bad-request", f"the archive holds {member!r}") == refused(store.install_runtime, sha256)
    assert None is store.runtime()
    assert set() == everything(store.runtimes)
    assert {"board"} == {path.name for path in tmp_path.iterdir()}


def test_an_archive_that_would_fill_the_disk_when_unpacked_is_refused(store):
    """Zeros pack a thousand to one; what counts is what they become."""
    data = bytearray(archive({"bomb": b"x"}))
    # The size as the directory at the end states it.
    at = data.index(b"PK\x01\x02") + 24
    data[at : at + 4] = (2**31 + 1).to_bytes(4, "little")

    assert ("bad-request", "2147483649 bytes unpacked; the limit is 2147483648") == refused(
        store.install_runtime, put(store, bytes(data))
    )


def test_a_damaged_archive_leaves_nothing_behind(store):
    """Its digest is right, so this is what was sent."""
    data = bytearray(archive({"first.py": b"", "second.py": b"x = 12345\n"}))
    data[data.index(b"12345")] ^= 1
    sha256 = put(store, bytes(data))

    assert ("bad-request", f"{sha256[:12]} is no archive: Bad CRC-32 for file 'second.py'") == refused(
        store.install_runtime, sha256
    )
    assert None is store.runtime()
    assert set() == everything(store.runtimes)


def test_cleaning_removes_the_folder_and_nothing_beside_it(store, tmp_path):
    store.stage(bundle(store))
    store.activate("kws/1")
    store.install_runtime(put(store, archive({"one.py": b""})))
    (tmp_path / "other").write_text("")

    store.clean()

    assert ["other"] == os.listdir(tmp_path)


# A disk of 2 MiB


@pytest.fixture
def small_board(tmp_path: Path) -> Iterator[tuple[Agent, Path]]:
    """An agent whose folder is on a disk of 2 MiB, which it alone sees; and that folder, seen from here."""
    unshare = need_tool("unshare", "util-linux")
    disk = tmp_path / "disk"
    disk.mkdir()
    setup = 'mount -t tmpfs -o size=2m none "$0" || exit 9; exec "$@"'
    command = (unshare, "-rm", "sh", "-c", setup, str(disk))
    if (probe := subprocess.run([*command, "true"], capture_output=True, text=True, check=False)).returncode:
        sentence = f"needs user namespaces to mount a small disk, which this machine refuses: {probe.stderr.strip()}"
        if os.environ.get("DEPLOY_REQUIRE_TOOLS"):
            pytest.fail(sentence, pytrace=False)
        pytest.skip(sentence)
    with Agent(disk / "board", command=(*command, sys.executable)) as agent:
        yield agent, Path(f"/proc/{agent.pid}/root{disk}/board")


def fill(disk: Path) -> Path:
    """Take every byte that is left."""
    filler = disk / "filler"
    with pytest.raises(OSError, match="No space left"), filler.open("wb", buffering=0) as out:
        while True:
            out.write(bytes(4096))
    return filler


def test_a_blob_that_does_not_fit_is_refused_before_a_byte_is_written(small_board):
    """With the numbers.  1 MiB stays free: a board with a full disk cannot even log the fact."""
    agent, folder = small_board
    disk = os.statvfs(folder)
    free = disk.f_bavail * disk.f_frsize

    message = agent.request("store.put", b"x" * 1000, sha256=SHA256, bytes=3_000_000, offset=0)

    root = agent.hello["root"]
    text = f"the disk is full: {free} bytes free at {root}; 3000000 more bytes are needed"
    assert ("disk-full", text) == fault(message)
    assert {"free": free, "root": root} == message.header["facts"]
    assert {"releases", "runtime", "store"} == everything(folder)


def test_a_disk_that_fills_up_on_the_way_keeps_what_came_and_goes_on_from_there(small_board):
    agent, folder = small_board
    blob = os.urandom(600_000)
    sha256 = digest(blob)
    assert not agent.request("store.put", blob[:300_000], sha256=sha256, bytes=len(blob), offset=0).header["whole"]
    filler = fill(folder.parent)

    code, text = agent.error("store.put", blob[300_000:], sha256=sha256, bytes=len(blob), offset=300_000)

    assert ("disk-full", f"the disk is full: 0 bytes free at {agent.hello['root']}; 300000 more bytes are needed") == (
        code,
        text,
    )
    assert {"releases", "runtime", "store", f"store/{sha256}.part"} == everything(folder)
    filler.unlink()
    assert {sha256: 300_000} == agent.request("store.progress", digests=[sha256]).header["progress"]
    assert agent.request("store.put", blob[300_000:], sha256=sha256, bytes=len(blob), offset=300_000).header["whole"]


def test_a_release_that_cannot_be_written_leaves_nothing_and_the_current_one_stays(small_board):
    """Here the kernel itself says that the disk is full, in the middle of the work."""
    agent, folder = small_board
    agent.put(b"model", digest(b"model"))
    files = {manifest.MODEL: FileEntry(digest(b"model"), 5)}
    first = Manifest("kws", files, (), ()).to_bytes()
    second = Manifest("kws", files, (), (), recipe={"note": "x" * 20_000}).to_bytes()
    release = agent.request("release.stage", first).header["release"]
    agent.request("release.activate", release=release)
    filler = fill(folder.parent)
    before = everything(folder)

    error = agent.error("release.stage", second)

    assert ("disk-full", f"the disk is full: 0 bytes free at {agent.hello['root']}") == error
    assert before == everything(folder)
    assert {"release": "kws/1", "bundle": digest(first)} == agent.request("release.current").header["current"]
    filler.unlink()
    assert "kws/2" == agent.request("release.stage", second).header["release"]


def test_a_lease_that_cannot_be_written_down_is_refused_for_the_full_disk(small_board):
    agent, folder = small_board
    filler = fill(folder.parent)

    error = agent.error("session.claim", token=7, owner="anna", seconds=30, issuer="here")

    assert ("disk-full", f"the disk is full: 0 bytes free at {agent.hello['root']}") == error
    assert not [name for name in os.listdir(folder) if name.startswith(".lease.")]
    filler.unlink()
    assert Kind.REPLY is agent.request("session.claim", token=7, owner="anna", seconds=30, issuer="here").kind


def test_a_runtime_that_does_not_fit_when_unpacked_is_refused_and_can_be_tried_again(small_board):
    agent, folder = small_board
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("big.so", bytes(1_500_000))
    agent.put(out.getvalue(), sha256 := digest(out.getvalue()))

    code, text = agent.error("runtime.install", sha256=sha256)

    assert ("disk-full", "; 1500000 more bytes are needed") == (code, text[text.index(";") :])
    assert {"releases", "runtime", "store", f"store/{sha256}"} == everything(folder)


def test_a_full_disk_can_be_cleaned(small_board):
    agent, folder = small_board
    agent.put(BLOB, SHA256)
    fill(folder.parent)

    assert Kind.REPLY is agent.request("clean").kind
    assert ["filler"] == os.listdir(folder.parent)
