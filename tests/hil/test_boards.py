"""
The whole story on a virtual board of each kind: up, pushed over SSH and over serial from a bare console, proven
bit-exact, run, measured, rolled back, broken and mended, down.

Real: QEMU, Debian, OpenSSH, getty and login, LiteRT with its NEON code.  Not real: time.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.virtual import control, machine
from deploy.virtual.kinds import KINDS
from deploy.virtual.registry import Place
from tests.conftest import GOLDEN
from tests.hil.conftest import Deploy
from tests.kernels.single_op import random_conv

pytestmark = pytest.mark.qemu

MODEL = GOLDEN / "digits_int8.tflite"
DOT_PRODUCT = {"pi3": False, "pi4": False, "pi5": True, "jetson-nano": False, "jetson-orin": True, "pynq-z2": False}
PARTS = {"pi3": "0xd03", "pi4": "0xd08", "pi5": "0xd0b", "jetson-nano": "0xd07", "jetson-orin": "0xd0b",
         "pynq-z2": "0xc09"}  # fmt: skip
KERNELS = {"pi3": "_neon", "pi4": "_neon", "pi5": "_neondot", "jetson-nano": "_neon", "jetson-orin": "_neondot",
           "pynq-z2": "_armv7neon"}  # fmt: skip
METERS = {"pi3": "stub:ina238@", "pi4": "stub:ina226@", "pi5": "stub:pmic@", "jetson-nano": "stub:ina3221@",
          "jetson-orin": "stub:ina3221@"}  # fmt: skip


@pytest.fixture(scope="module")
def int4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A convolution that our kernels take on every core, as the stock runtime unpacks its weights at every call."""
    from deploy.build import build

    folder = tmp_path_factory.mktemp("int4")
    layer = random_conv(np.random.default_rng(7), in_shape=(1, 8, 8, 32), out_c=32, weight_type="INT4")
    (folder / "int4.tflite").write_bytes(layer.model())
    build(str(folder / "int4.tflite"), name="int4").bundle.write(folder / "int4.bundle")
    return folder / "int4.bundle"


def skip_unless_wanted(kind: str) -> None:
    """The PYNQ's kernel is not built by a test, not even in CI, where else nothing may be missing."""
    wanted = os.environ.get("DEPLOY_HIL_KINDS", " ".join(KINDS)).split()
    images = Path(os.environ["XDG_CACHE_HOME"]) / "deploy/virtual/images"
    if kind not in wanted:
        pytest.skip(f"DEPLOY_HIL_KINDS leaves {kind} out")
    if KINDS[kind].arch == "armhf" and not list(images.glob("armhf-*/image.json")):
        pytest.skip(f"needs an image that takes a quarter of an hour: `deploy virtual up {kind}`, once")


def answers(deploy: Deploy, kind: str, bundle: Path, out: Path, kernels: str) -> list[Any]:
    """What the board answers to three random inputs."""
    deploy("run", "--board", kind, "--kernels", kernels, "--count", "3", "-o", str(out), str(bundle))
    with np.load(out) as outputs:
        return [outputs[name] for name in sorted(outputs.files)]


@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_story(kind: str, deploy: Deploy, bundle: Path, int4: Path, tmp_path: Path) -> None:
    skip_unless_wanted(kind)
    deploy("virtual", "up", kind)

    (checked,) = json.loads(deploy("boards", "check", kind, "--json"))
    identity = checked["identity"]
    assert (KINDS[kind].model, PARTS[kind]) == (identity["model"], identity["cpu_part"])
    assert KINDS[kind].serial_number(kind) == identity["serial"]
    assert DOT_PRODUCT[kind] == ("asimddp" in identity["cpu_features"])
    assert machine.emulator(KINDS[kind]) == identity["emulator"]
    assert [] == checked["differences"]

    assert "bit-exact" in deploy("push", "--board", kind, str(bundle))
    assert "digits/1 is current already" in deploy("push", "--board", f"{kind}.console", str(bundle))
    assert "digits/1 is current already" in deploy("push", "--board", f"{kind}.uart", str(bundle))
    assert "bit-exact" in deploy("verify", "--board", kind, "--kernels", "off", str(bundle))
    short = ["--duration=0.5", "--restarts=1", "--warmup=0.5", "--idle=0.5", "--windows=1", "--window=5", "--json"]
    measured = json.loads(deploy("measure", "--board", kind, "--count", str(bundle), *short).splitlines()[-1])
    # Where the accelerator runs a model, its cycles are the time, and no emulated processor's.
    assert {"emulated-time", "simulated"} & set(measured["verdict"])
    assert measured["latency"]["median_ns"] > 0
    assert (KINDS[kind].cpu, True) == (measured["instructions"]["cpu"], measured["instructions"]["instructions"] > 1000)
    assert (kind in METERS) == bool(measured["energy"]), measured["unmetered"]
    # A slow machine samples too seldom, and gets a reason instead of a reading.
    readings = [entry["source"] for entry in measured["energy"] if "source" in entry]
    assert [] == [source for source in readings if not source.startswith(METERS[kind])]

    deploy("push", "--board", kind, str(int4))
    inspected = json.loads(deploy("inspect", "--board", kind, str(int4), "--json"))
    (node,) = inspected["nodes"]
    assert node["kernel"].endswith("accelerator" if inspected["accelerator"] else KERNELS[kind]), node
    fast = answers(deploy, kind, int4, tmp_path / "auto.npz", "auto")
    plain = answers(deploy, kind, int4, tmp_path / "reference.npz", "reference")
    assert all(np.array_equal(expected, actual) for expected, actual in zip(plain, fast, strict=True))
    assert 1 < len(np.unique(plain[0])), "the answers say nothing"

    deploy("push", "--board", kind, str(MODEL))
    assert "int4/1 is current" in deploy("rollback", "--board", kind)
    deploy("virtual", "reset", kind)
    assert "digits" not in deploy("releases", "--board", kind)
    deploy("virtual", "down", kind)
    assert not Place(kind).folder.exists()


@pytest.mark.long
def test_a_bare_console_is_all_that_a_push_needs(deploy: Deploy, bundle: Path) -> None:
    """
    No agent, no network cable: login, some 6 KB typed, then agent and bundle over the line.  numpy and LiteRT stay, as
    22 MB through QEMU's UART take a quarter of an hour.
    """
    deploy("virtual", "up", "pi4")
    deploy("virtual", "fault", "pi4", "net-cut")
    control.ask("pi4", "run", "rm -rf /home/pi/.local/share/deploy/agent")

    assert "bit-exact" in deploy("push", "--board", "pi4.console", str(bundle))
    assert "DEPLOY-END-0" in Place("pi4").console_log.read_text(errors="replace")  # the console is given back


def test_a_release_outlives_a_power_cut_and_a_file_that_was_not_synced_need_not(deploy: Deploy, bundle: Path) -> None:
    deploy("virtual", "up", "pi4")
    deploy("push", "--board", "pi4", str(bundle))

    deploy("virtual", "fault", "pi4", "power-cut")
    deploy("boards", "check", "pi4", fails=True)
    deploy("virtual", "fault", "pi4", "power-on")

    assert "bit-exact" in deploy("verify", "--board", "pi4", str(bundle))


def test_faults_are_what_real_boards_show(deploy: Deploy, bundle: Path) -> None:
    deploy("virtual", "up", "pi4")

    deploy("virtual", "fault", "pi4", "disk-full")
    assert "disk" in deploy("push", "--board", "pi4", str(bundle), fails=True)
    deploy("virtual", "fault", "pi4", "disk-free")
    deploy("virtual", "fault", "pi4", "clock=0")
    deploy("push", "--board", "pi4", str(bundle))
    deploy("virtual", "fault", "pi4", "noise=1e-4")
    assert "bit-exact" in deploy("verify", "--board", "pi4.uart", str(bundle))
    deploy("virtual", "fault", "pi4", "reboot")
    assert "bit-exact" in deploy("verify", "--board", "pi4", str(bundle))


@pytest.mark.long
def test_a_board_that_hangs_comes_back_by_its_supply(deploy: Deploy) -> None:
    """Its connections are taken, and nothing is ever said; neither its agents nor a reboot can be reached."""
    deploy("virtual", "up", "pi4")
    deploy("virtual", "fault", "pi4", "hang")

    assert "pi4: off and on again\n" == deploy("boards", "recover", "pi4")

    (status,) = json.loads(deploy("boards", "status", "pi4", "--json"))
    assert ("free", None) == (status["state"], status["reason"])


@pytest.mark.long
def test_four_boards_at_once_all_answer_and_take_less_than_350_mb_each(deploy: Deploy, bundle: Path) -> None:
    import psutil

    kinds = ("pi3", "pi4", "pi5", "jetson-orin")
    for kind in kinds:
        deploy("virtual", "up", kind)

    pushed = deploy("push", "--tag", "virtual", str(bundle))

    assert 4 == pushed.count("bit-exact")
    assert ["running"] * 4 == [status.state for status in control.status()]
    keepers = [psutil.Process(json.loads(Place(kind).described.read_text())["pid"]) for kind in kinds]
    machines = [process for keeper in keepers for process in keeper.children() if "qemu" in process.name()]
    taken = [process.memory_full_info().pss / 1e6 for process in machines]  # what they share counts once
    assert 4 == len(taken)
    assert max(taken) < 350, taken


@pytest.mark.long
def test_a_damaged_image_and_a_damaged_snapshot_are_made_anew(
    deploy: Deploy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a cache of its own, whose packages are those fetched before."""
    known = Path(os.environ["XDG_CACHE_HOME"]) / "deploy"
    mine = tmp_path / "cache" / "deploy"
    (mine / "virtual").mkdir(parents=True)
    for name in ("runtime", "virtual/debs", "virtual/apt"):
        if (known / name).is_dir():
            (mine / name).symlink_to(known / name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    told: list[str] = []
    control.up("pi4", control.Options(cold=True), told.append)
    control.down("pi4")
    (root,) = mine.glob("virtual/images/arm64-*/root.squashfs")
    flip(root)

    up: Any = control.up("pi4", control.Options(cold=True), told.append)

    assert not up.warm
    assert 1 == len([line for line in told if line.startswith("the image is damaged (root.squashfs")])


def flip(path: Path) -> None:
    """One bit in the middle."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
