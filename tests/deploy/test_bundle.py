"""Bundles: the same content, the same bytes; and no damage goes unnoticed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy import bundle as bundles
from deploy.bundle import Bundle, make, read
from deploy.errors import BundleError
from devices.protocol.manifest import GOLDEN, MODEL, Manifest, TensorInfo
from tests.conftest import ROOT
from tests.models import elementwise

FILES = {MODEL: elementwise(), GOLDEN: b"golden vectors"}


def small(**changes: Any) -> Bundle:
    info = TensorInfo("x", "float32", (1, 4), 0.5, 3)
    fields: dict[str, Any] = {
        "name": "net",
        "files": {},
        "inputs": (info,),
        "outputs": (info,),
        "preprocess": {"scale": 0.5, "offset": -1.0},
        "shapes": {"x": (2, 4)},
        "labels": ("cat", "dog"),
        "golden": {"vectors": 1, "runtime": "ai-edge-litert 2.3.0"},
        **changes,
    }
    return make(Manifest(**fields), FILES)


def repack(path: Path, **members: bytes | None) -> Path:
    """Write the archive anew with some members changed, added or (None) left out; keys have _ for the dot."""
    with zipfile.ZipFile(path) as archive:
        contents: dict[str, bytes | None] = {name: archive.read(name) for name in archive.namelist()}
    contents.update({name.replace("_", "."): data for name, data in members.items()})
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in contents.items():
            if data is not None:
                archive.writestr(name, data)
    return path


def manifest_with(**changes: Any) -> bytes:
    return json.dumps({**json.loads(small().manifest_bytes), **changes}).encode()


def refusal(path: Path) -> str:
    with pytest.raises(BundleError) as caught:
        read(path)
    return str(caught.value)


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    bundle = small()

    bundle.write(tmp_path / "net.bundle")

    assert bundle == read(tmp_path / "net.bundle")
    assert (FILES[MODEL], "net") == (bundle.model, bundle.name)
    assert {MODEL: 372, GOLDEN: 14} == {name: entry.bytes for name, entry in bundle.manifest.files.items()}


def test_the_same_content_gives_the_same_bytes_in_any_process(tmp_path: Path) -> None:
    """Neither the time, nor the order of a dictionary, nor Python's hash seed may show."""
    program = (
        "import sys; from pathlib import Path; from tests.deploy.test_bundle import small;"
        "small().write(Path(sys.argv[1]))"
    )
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, "-c", program, tmp_path / f"{seed}.bundle"], check=True, env=environment)
    make(small().manifest, dict(reversed(FILES.items()))).write(tmp_path / "3.bundle")

    assert 1 == len({path.read_bytes() for path in tmp_path.glob("*.bundle")})


def test_the_digest_changes_with_whatever_is_inside() -> None:
    others = [
        small(name="other"),
        small(labels=("cat",)),
        make(small().manifest, {**FILES, MODEL: FILES[MODEL] + b"\0"}),
        make(small().manifest, {**FILES, GOLDEN: b"other vectors"}),
    ]

    assert 5 == len({bundle.digest for bundle in [small(), *others]})


def test_the_archive_can_be_looked_into_with_any_zip_tool_and_is_not_compressed(tmp_path: Path) -> None:
    small().write(tmp_path / "net.bundle")

    with zipfile.ZipFile(tmp_path / "net.bundle") as archive:
        members = [(info.filename, info.compress_type) for info in archive.infolist()]
    assert [(name, zipfile.ZIP_STORED) for name in ("manifest.json", GOLDEN, MODEL)] == members


# Damage


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"model_tflite": None}, "model.tflite is damaged or missing"),
        ({"model_tflite": FILES[MODEL][:-1]}, "model.tflite is damaged or missing"),
        ({"golden_npz": b"golden victors"}, "golden.npz is damaged or missing"),
        ({"manifest_json": None}, "not a bundle (no manifest.json inside)"),
        ({"manifest_json": b"{"}, "manifest.json: not JSON: Expecting property name enclosed in double quotes: "
         "line 1 column 2 (char 1)"),
        ({"manifest_json": manifest_with(format=2)}, "manifest.json: format 2; this version reads 1"),
        ({"manifest_json": manifest_with(extra=1)}, "manifest.json: unknown key 'extra'"),
        ({"manifest_json": manifest_with(files={})}, "manifest.json: files has no 'model.tflite'"),
        ({"manifest_json": manifest_with(files={"run.sh": {"sha256": "0" * 64, "bytes": 1}})},
         "manifest.json: unexpected file 'run.sh'"),
        ({"manifest_json": manifest_with(name="../up")},
         "manifest.json: name '../up' is not letters, digits and ._+- (at most 64)"),
    ],
    ids=["no model", "model", "golden", "no manifest", "no JSON", "format", "key", "no files", "unknown file", "name"],
)  # fmt: skip
def test_each_damage_is_named(tmp_path: Path, members: dict[str, bytes | None], expected: str) -> None:
    path = tmp_path / "net.bundle"
    small().write(path)

    assert f"{path}: {expected}" == refusal(repack(path, **members))


def test_a_flipped_byte_of_the_model_is_named(tmp_path: Path) -> None:
    path = tmp_path / "net.bundle"
    small().write(path)
    data = bytearray(path.read_bytes())
    data[data.index(b"TFL3") + 100] ^= 1
    path.write_bytes(data)

    assert f"{path}: not a bundle (Bad CRC-32 for file 'model.tflite')" == refusal(path)


def test_what_the_manifest_does_not_name_is_left_out(tmp_path: Path) -> None:
    """The digest says nothing of it, so nobody may rely on it."""
    path = tmp_path / "net.bundle"
    small().write(path)

    assert small() == read(repack(path, notes_txt=b"hello"))


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04"], ids=["empty", "text", "head of a zip"])
def test_a_file_that_is_no_bundle_is_refused_with_the_way_to_make_one(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "net.bundle"
    path.write_bytes(content)

    with pytest.raises(BundleError) as caught:
        read(path)

    assert f"{path}: not a bundle (File is not a zip file)" == str(caught.value)
    assert "`deploy build MODEL -o NAME.bundle` makes one" == caught.value.hint


def test_a_bundle_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert f"{tmp_path}/net.bundle: No such file or directory" == refusal(tmp_path / "net.bundle")


@given(cut=st.floats(0, 0.9999))
@settings(deadline=None, database=None, max_examples=40)
def test_a_bundle_that_was_cut_short_anywhere_is_refused(tmp_path_factory: pytest.TempPathFactory, cut: float) -> None:
    path = tmp_path_factory.getbasetemp() / "cut.bundle"
    small().write(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * cut)])

    assert f"{path}: not a bundle (File is not a zip file)" == refusal(path)


@given(data=st.data())
@settings(deadline=None, database=None, max_examples=200)
def test_a_damaged_bundle_is_refused_or_reads_the_same(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """A byte may change where nothing of the content lies (a date, an attribute); nowhere else."""
    path = tmp_path_factory.getbasetemp() / "damaged.bundle"
    small().write(path)
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)

    try:
        found = read(path)
    except BundleError as error:
        assert str(error).startswith(f"{path}: ")
    else:
        assert small() == found


# Writing


def test_a_folder_in_the_bundles_place_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "net.bundle" / "mine").mkdir(parents=True)

    with pytest.raises(BundleError) as caught:
        small().write(tmp_path / "net.bundle")

    assert f"{tmp_path}/net.bundle: Is a directory" == str(caught.value)
    assert [tmp_path / "net.bundle", tmp_path / "net.bundle" / "mine"] == sorted(tmp_path.rglob("*"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, Linux's full disk")
def test_a_full_disk_leaves_the_bundle_that_is_there_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "net.bundle"
    small().write(path)
    staging = f".net.bundle.{os.getpid()}.{threading.get_ident()}.bundle"  # see `paths.whole`
    (tmp_path / staging).symlink_to("/dev/full")

    with pytest.raises(BundleError) as caught:
        small(name="other").write(path)

    assert f"{path}: No space left on device" == str(caught.value)
    assert small() == read(path)
    assert ["net.bundle"] == os.listdir(tmp_path)


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BundleError) as caught:
        small().write(tmp_path / "no" / "net.bundle")

    assert f"{tmp_path}/no/net.bundle: No such file or directory" == str(caught.value)


def test_the_identity_is_the_manifests_digest() -> None:
    """The board computes it from the bytes it got; it must be the same there."""
    bundle = small()

    assert bundles.manifests.digest(bundle.manifest_bytes) == bundle.digest
    assert bundle.manifest.to_bytes() == bundle.manifest_bytes
