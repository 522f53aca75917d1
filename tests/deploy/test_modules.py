"""Sensor modules out of tree: what is refused before a compiler starts.  That they load and read: tests/hil."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

from deploy.errors import ToolMissing, VirtualError
from deploy.virtual import modules
from deploy.virtual.image import Image
from tests.conftest import need_tool


def an_image(folder: Path, arch: str = "arm64") -> Image:
    described = {"packages": {f"linux-image-6.1.0-1-{arch}": "6.1.1-1"}}
    (folder / "image.json").write_text(json.dumps(described))
    return Image(folder, arch, f"6.1.0-1-{arch}", "0")


def test_a_missing_compiler_is_named_with_the_package_that_brings_it(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(ToolMissing) as caught:
        modules.build(an_image(tmp_path), lambda text: None)

    assert "`sudo apt install gcc-aarch64-linux-gnu`" == caught.value.hint


def test_a_kernel_that_nobody_has_a_recipe_for_is_refused(tmp_path):
    with pytest.raises(VirtualError, match="no sensor modules are made for armhf kernels"):
        modules.build(an_image(tmp_path, "armhf"), lambda text: None)


def test_a_stub_that_has_changed_is_not_built_without_its_place_in_the_device_tree(tmp_path):
    """Built all the same, its bus would have no node, and no driver would ever bind: boards with silent sensors."""
    need_tool("xz", "xz-utils")
    sources = tmp_path / "headers" / "usr" / "src"
    sources.mkdir(parents=True)
    with tarfile.open(sources / "linux-source-6.1.tar.xz", "w:xz") as packed:
        for name in modules.SOURCES:
            text = b"/* another one */\n"
            entry = tarfile.TarInfo(f"linux-source-6.1/{name}")
            entry.size = len(text)
            packed.addfile(entry, io.BytesIO(text))

    with pytest.raises(VirtualError, match=r"i2c-stub\.c has changed"):
        modules._compile(an_image(tmp_path), tmp_path)
