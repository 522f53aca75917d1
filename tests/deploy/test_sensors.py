"""Power sensors of virtual boards: the real drivers, chips that are none, and the truth that they are shown."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from deploy.virtual import fdt, image, sensors
from deploy.virtual.kinds import KINDS
from tests.conftest import need_tool


def dts(root: fdt.Node, tmp_path: Path) -> str:
    """The tree as its own compiler reads it."""
    (tmp_path / "tree.dtb").write_bytes(fdt.build(root, []))
    command = [need_tool("dtc", "device-tree-compiler"), "-q", "-I", "dtb", "-O", "dts", str(tmp_path / "tree.dtb")]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_marked_as_virtual(kind, tmp_path):
    root = fdt.Node()
    sensors.edit_tree(root, kind, sensors.SENSORS.get(kind))

    assert f'deploy,virtual = "{kind}";' in dts(root, tmp_path)


def test_the_tree_has_the_rails_and_shunts_of_the_real_module(tmp_path):
    """As mainline's tegra234-p3767.dtsi: three rails of 5 mOhm on an INA3221 at 0x40."""
    root = fdt.Node()
    sensors.edit_tree(root, "jetson-orin", sensors.SENSORS["jetson-orin"])
    lines = [line.strip() for line in dts(root, tmp_path).splitlines()]

    assert 'compatible = "ti,ina3221";' in lines
    assert ['label = "VDD_IN";', 'label = "VDD_CPU_GPU_CV";', 'label = "VDD_SOC";'] == [
        line for line in lines if line.startswith("label")
    ]
    assert 3 == lines.count("shunt-resistor-micro-ohms = <0x1388>;")
    assert 'i2c1 = "/i2c-stub";' in lines


def test_the_registers_are_set_before_the_driver_looks():
    command = sensors.start_command(sensors.SENSORS["jetson-orin"])

    assert command.index("i2c-stub") < command.index("power once") < command.index("modprobe ina3221")
    assert command.index("modprobe ina3221") < command.index("power load 20 ina3221:1:0x40:0:5000:5000:4200:9600")


def test_without_a_cross_compiler_a_board_comes_up_without_sensors_and_says_what_is_missing(monkeypatch, tmp_path):
    (tmp_path / "image.json").write_text('{"packages": {"linux-image-6.1.0-1-arm64": "6.1.1-1"}}')
    monkeypatch.setenv("PATH", str(tmp_path))
    bare = image.Image(tmp_path, "arm64", "6.1.0-1-arm64", "0")

    extras = sensors.extras(KINDS["jetson-orin"], bare)
    root = fdt.Node()
    assert extras.edit_tree
    extras.edit_tree(root)

    assert (
        "no power sensors: aarch64-linux-gnu-gcc is not here; `sudo apt install gcc-aarch64-linux-gnu`",
    ) == extras.missing
    assert (None, ()) == (extras.modules, extras.start)
    assert ["deploy,virtual"] == list(root.properties), "it is a virtual board nonetheless"
