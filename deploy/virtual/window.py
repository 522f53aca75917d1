"""
The programmable logic of a virtual PYNQ-Z2: the verilated accelerator (`kernels/rtl`) behind the guest's memory.

QEMU keeps that memory in a file, and so a process beside it is what the real logic is: its registers lie at 0x4000_0000
where AXI GP0 has them, it reads and writes all of the guest's DRAM by physical address, and it raises the interrupt
(29 of the GIC's shared ones, a level, until STATUS is written) by QEMU's test protocol.  What QEMU cannot do is tell
when memory is written: a write of a register takes effect when the bell behind the registers is rung
(`guest/pynq.py`).  Reading needs none: after every write, and while a program runs, the registers are written down.

    python -m deploy.virtual.window     in a board's folder; its keeper starts it and ends it

Standard input: ``reset PATH`` with the object in QEMU that has the interrupt; the answer is ``ready``.
"""

from __future__ import annotations

import mmap
import os
import select
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.errors import DeployError
from deploy.virtual import memory as memory_file
from deploy.virtual.extras import Extras, File

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BASE = 0x4000_0000
SIZE = 0x1_0000
DRAM = 512 << 20  # of a PYNQ-Z2: what the accelerator's master reaches, from address 0
IRQ = 29
GUEST = Path(__file__).with_name("guest") / "pynq.py"
IN_GUEST = "/usr/lib/python3/dist-packages/pynq.py"
OVERLAY = "/usr/local/share/deploy/accelerator.bit"
COMMAND = (sys.executable, "-m", "deploy.virtual.window")

# Words of the window behind the registers, as `guest/pynq.py` has them.
BELL = 0x1000
SERVED, RUNG, HEARD, REGISTER, VALUE = range(5)
SIGN = 0x6465706C

AT_ONCE = 2_000  # cycles of a running program before the bell is looked at again: some milliseconds
AWAKE_S, LOOK_S, IDLE_LOOK_S = 0.5, 0.0002, 0.005  # the idle process takes some 0.3 % of a core

Note = Callable[[str], None]


def extras(note: Note) -> Extras:
    """What a board with the accelerator gets; without it if its model cannot be built here, which is said."""
    from deploy.fpga import simulator

    try:
        if not simulator.is_built():
            note("building the accelerator's model: half a minute, this once")
        simulator.library()
    except DeployError as error:
        return Extras(missing=(f"no accelerator: {error.message}" + (f"; {error.hint}" if error.hint else ""),))
    return Extras(
        files={
            IN_GUEST: File(GUEST.read_bytes()),
            OVERLAY: File(b"No bitstream: the host plays the programmable logic.\n"),
        },
        start=("chmod 666 /dev/uio*",),  # on a real board PYNQ wants root
        beside=COMMAND,
        overlay=OVERLAY,
    )


class Window:
    """
    The accelerator, and what the guest sees of it.

    Args:
        memory: uint8 [BASE + SIZE or more]: the guest's, by physical address.
        interrupt: told the level when it changes.
    """

    def __init__(self, memory: NDArray[np.uint8], interrupt: Callable[[bool], None]) -> None:
        from deploy.fpga.simulator import Register, Simulation

        self._registers = memory[BASE : BASE + BELL].view("<u4")
        self._bell = memory[BASE + BELL : BASE + SIZE].view("<u4")
        self._simulation = Simulation(memory[:DRAM])
        self._after_status = [register for register in Register if register is not Register.STATUS]
        self._control, self._status = Register.CONTROL, Register.STATUS
        self._interrupt = interrupt
        self._level = False
        self._running = False
        self._show()
        self._bell[HEARD] = self._bell[RUNG]
        self._bell[SERVED] = SIGN

    def step(self) -> bool:
        """Do what there is to do; False: nothing."""
        rung = self._bell[RUNG]
        if rung != self._bell[HEARD]:
            self._simulation.write(int(self._bell[REGISTER]) & 0x7C, int(self._bell[VALUE]))
            self._show()
            self._bell[HEARD] = rung
        elif self._running:
            self._simulation.wait(AT_ONCE)
            self._show()
        else:
            return False
        return True

    def _show(self) -> None:
        """Write down what the registers hold; STATUS was read before the others and is written after them."""
        status = self._simulation.read(self._status)
        for register in self._after_status:
            self._registers[register // 4] = self._simulation.read(register)
        self._registers[self._status // 4] = status
        self._running = bool(status & 1)
        level = bool(status & 2 and self._registers[self._control // 4] & 4)
        if level != self._level:
            self._interrupt(level)
            self._level = level

    def close(self) -> None:
        self._bell[SERVED] = 0
        self._simulation.close()


class Interrupt:
    """One line into a controller of QEMU's, by its test protocol."""

    def __init__(self, controller: str) -> None:
        self._line = socket.socket(socket.AF_UNIX)
        self._line.connect("qtest")
        self._name = f"{controller} unnamed-gpio-in {IRQ}"

    def set(self, level: bool) -> None:
        """Raises OSError: QEMU is gone."""
        self._line.sendall(f"set_irq_in {self._name} {int(level)}\n".encode())
        answer = b""
        while not answer.endswith(b"\n"):
            more = self._line.recv(1024)
            if not more:
                raise OSError("QEMU is gone")
            answer += more
        if not answer.startswith(b"OK"):
            raise OSError(f"QEMU refuses the interrupt: {answer.decode().strip()}")

    def close(self) -> None:
        self._line.close()


def main() -> int:
    import numpy as np

    window: Window | None = None
    line: Interrupt | None = None
    awake = 0.0
    while True:
        if window and window.step():
            awake = time.monotonic() + AWAKE_S
            wait_s = 0.0
        else:
            wait_s = LOOK_S if time.monotonic() < awake else IDLE_LOOK_S
        if not select.select([sys.stdin], [], [], wait_s if window else None)[0]:
            continue
        word, _, controller = sys.stdin.readline().strip().partition(" ")
        if word != "reset":
            return 0  # the keeper is gone
        if window and line:
            window.close()
            line.close()
        with memory_file.FILE.open("r+b") as file:
            memory = np.frombuffer(mmap.mmap(file.fileno(), BASE + SIZE), np.uint8)
        line = Interrupt(controller)
        line.set(False)
        window = Window(memory, line.set)
        os.write(1, b"ready\n")


if __name__ == "__main__":
    sys.exit(main())
