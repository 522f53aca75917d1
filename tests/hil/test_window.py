"""
The accelerator on the virtual PYNQ-Z2: Linux, the agent and the driver are real, the logic is its own RTL, simulated.

`tests/rtl/test_window.py` has what needs no QEMU.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from deploy.fpga import isa
from deploy.virtual import control
from deploy.virtual.registry import Place
from tests.hil.conftest import Deploy
from tests.hil.test_boards import skip_unless_wanted

pytestmark = pytest.mark.qemu

# In the guest: an empty program, twice, and UIO says when its interrupt comes.
WAIT = """
import os, select, pynq
chip = pynq.Overlay("/usr/local/share/deploy/accelerator.bit").accelerator_0
code = bytes.fromhex("{code}")
memory = pynq.allocate((len(code),), "u1")
memory[:] = bytearray(code)
there = "/sys/class/uio"
uio = next(name for name in os.listdir(there) if open(f"{{there}}/{{name}}/name").read() == "accelerator\\n")
line = os.open("/dev/" + uio, os.O_RDWR)
for _ in range(2):
    chip.write(0x04, 2)
    os.write(line, (1).to_bytes(4, "little"))
    early = bool(select.select([line], [], [], 0.2)[0])
    chip.write(0x10, memory.device_address)
    chip.write(0x14, len(code) // 8)
    chip.write(0x00, 5)
    came = bool(select.select([line], [], [], 60)[0])
    count = int.from_bytes(os.read(line, 4), "little") if came else None
    print(early, came, count, chip.read(0x04))
"""


def test_a_network_runs_on_the_logic_and_answers_bit_exact(deploy: Deploy, bundle: Path) -> None:
    skip_unless_wanted("pynq-z2")
    deploy("virtual", "up", "pynq-z2")

    pushed = deploy("push", "--board", "pynq-z2", str(bundle))
    short = ["--duration=0.2", "--restarts=1", "--warmup=0.2"]
    said = deploy("measure", "--board", "pynq-z2", "--json", *short, str(bundle))

    assert "bit-exact" in pushed and "5 of 6 nodes on the accelerator, simulated" in pushed
    measured = json.loads(said.splitlines()[-1])
    assert "simulated" in measured["verdict"]
    (cycles,) = measured["accelerator"]["cycles"]
    assert 10 * cycles == measured["latency"]["median_ns"], "at 100 MHz"


def test_the_end_of_a_program_interrupts_the_board_s_processor_also_after_a_reset(deploy: Deploy) -> None:
    skip_unless_wanted("pynq-z2")
    deploy("virtual", "up", "pynq-z2")
    deploy("virtual", "reset", "pynq-z2")
    program = WAIT.format(code=isa.encode([isa.End()]).hex())

    said = deploy("virtual", "ssh", "pynq-z2", "python3", "-c", shlex.quote(program))

    first, second = (line.split() for line in said.splitlines())
    assert ["False", "True", "2"] == [*first[:2], first[3]] == [*second[:2], second[3]]
    assert 1 == int(second[2]) - int(first[2])


def test_the_logic_goes_with_its_board(deploy: Deploy) -> None:
    """Its process belongs to the keeper, as QEMU does."""
    import psutil

    skip_unless_wanted("pynq-z2")
    deploy("virtual", "up", "pynq-z2")
    keeper = psutil.Process(json.loads(Place("pynq-z2").described.read_text())["pid"])
    (logic,) = [process for process in keeper.children() if "deploy.virtual.window" in process.cmdline()]

    control.ask("pynq-z2", "power-cut")
    assert not logic.is_running()
    control.ask("pynq-z2", "power-on")
    family = [keeper, *keeper.children(recursive=True)]
    assert 1 == len([process for process in family if "deploy.virtual.window" in process.cmdline()])
    keeper.kill()

    _, alive = psutil.wait_procs(family, timeout=60)
    assert [] == [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
