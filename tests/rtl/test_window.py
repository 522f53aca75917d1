"""
The programmable logic of a virtual PYNQ-Z2 without QEMU: the real process on a file of memory, driven by the module
that the guest has.  `tests/hil/test_window.py` has the same in the guest.
"""

from __future__ import annotations

import importlib.util
import mmap
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from deploy.fpga.compiler import Compiled, compile_model
from deploy.fpga.isa import Base
from deploy.fpga.memory import place
from deploy.fpga.package import IDENTITY
from deploy.fpga.simulator import Bus, Register
from deploy.virtual import window
from deploy.virtual.beside import Beside
from tests.conftest import ROOT
from tests.rtl.cases import CASES
from tests.rtl.machines import Values, differences, inputs, on_the_rtl, reference

BUFFERS, BUFFERS_BYTES = 0x1E00_0000, 0x200_0000  # as board/pynq-z2.dts has them
CONTROLLER = "/machine/unattached/device[3]"
START, INTERRUPT = 1, 4


class Qemu:
    """What the process needs of QEMU: the name of the interrupt's controller, and who listens to its level."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind("qtest")
        self._listener.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                line, _ = self._listener.accept()
            except OSError:
                return  # closed
            try:
                with line, line.makefile("rw") as stream:
                    for said in stream:
                        self.heard.append(said.strip())
                        stream.write("OK\n")
                        stream.flush()
            except OSError:
                pass  # the process was killed

    def run(self, command: str, **arguments: Any) -> Any:
        assert ("qom-list", {"path": "/machine/unattached"}) == (command, arguments)
        return [{"name": "device[0]", "type": "child<cpu>"}, {"name": "device[3]", "type": "child<a9mpcore_priv>"}]

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


class Board:
    def __init__(self, memory: Path) -> None:
        with memory.open("wb") as file:
            file.truncate(window.BASE + window.SIZE)
        self._memory = memory
        self.qemu = Qemu()
        self._beside = Beside(list(window.COMMAND), lambda: None)
        self.guest: Any = None
        self.reset()

    def map(self, address: int, size: int) -> mmap.mmap:
        with self._memory.open("r+b") as file:
            return mmap.mmap(file.fileno(), size, offset=address)

    def reset(self) -> None:
        self._beside.reset(self.qemu)  # type: ignore[arg-type]
        self.guest = guest_module().Window(
            self.map(window.BASE, window.SIZE), self.map(BUFFERS, BUFFERS_BYTES), BUFFERS
        )

    def close(self) -> None:
        self._beside.close()
        self.qemu.close()


def guest_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("guest_pynq", window.GUEST)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def board(rtl: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Board]:
    monkeypatch.chdir(tmp_path)  # as the keeper is in its board's folder
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    board = Board(tmp_path / "memory")
    yield board
    board.close()


def run(board: Board, compiled: Compiled, given: Any) -> tuple[list[Values], int]:
    """As a driver does it, by polling: the outputs of the only segment, and the cycles."""
    (segment,) = compiled.segments
    placed = place(segment, compiled.network, 0)
    buffer = board.guest.allocate((placed.size,), "u1")
    placed.install(buffer)
    placed.put(buffer, inputs(placed, given))
    base = {name: buffer.device_address + at for name, at in placed.bases.items()}
    board.guest.write(Register.MODEL, base[Base.MODEL])
    board.guest.write(Register.INPUT, base[Base.INPUT])
    board.guest.write(Register.OUTPUT, base[Base.OUTPUT])
    for offset, words in (segment.prepare, segment.run):
        board.guest.write(Register.PROGRAM, base[Base.MODEL] + offset)
        board.guest.write(Register.PROGRAM_WORDS, words)
        board.guest.write(Register.CONTROL, START | INTERRUPT)
        while not board.guest.read(Register.STATUS) & 2:
            pass
    assert 2 == board.guest.read(Register.STATUS)
    return [placed.get(buffer)], board.guest.read(Register.CYCLES)


@pytest.mark.parametrize("name", ["residual, stride 2", "dense"])
def test_a_model_on_the_window_answers_as_the_reference_kernels_do_and_takes_the_same_cycles(board, name):
    """However the registers are looked at meanwhile."""
    graph, model = CASES[name]()
    stock = reference(model, graph.values())
    compiled = compile_model(model, name)
    expected, _, cycles = on_the_rtl(compiled, stock, Bus())

    for _ in range(2):
        got, taken = run(board, compiled, stock)
        assert [] == differences(expected, got)
        assert cycles == taken


def test_the_interrupt_s_level_is_that_of_the_registers(board):
    graph, model = CASES["one pixel"]()
    run(board, compile_model(model, "x"), reference(model, graph.values()))
    board.guest.write(Register.STATUS, 2)

    # Off at first; one for each of two programs, the first of which the start of the second takes back.
    assert [f"set_irq_in {CONTROLLER} unnamed-gpio-in 29 {level}" for level in (0, 1, 0, 1, 0)] == board.qemu.heard


def test_a_reset_forgets_what_ran_and_what_a_snapshot_has_left_in_memory(board):
    graph, model = CASES["one pixel"]()
    stock = reference(model, graph.values())
    run(board, compile_model(model, "x"), stock)
    snapshot = board.map(window.BASE, window.SIZE)
    snapshot[:] = b"\xff" * window.SIZE

    board.reset()

    assert IDENTITY == board.guest.read(Register.IDENTITY)
    assert [0, 0, 0] == [board.guest.read(r) for r in (Register.CONTROL, Register.STATUS, Register.CYCLES)]
    assert 0 < run(board, compile_model(model, "x"), stock)[1]


def test_memory_that_was_given_back_is_given_again_and_no_two_buffers_share_any(board):
    guest, page = board.guest, 4096
    first, second = guest.allocate((page + 1,), "u1"), guest.allocate((5,), "i4")
    assert [BUFFERS, BUFFERS + 2 * page] == [first.device_address, second.device_address]

    first.freebuffer()
    first.close()  # twice is once
    third = guest.allocate((2 * page,), "u1")

    assert BUFFERS == third.device_address
    assert np.all(second == 0)
    with pytest.raises(MemoryError, match="33554432 bytes do not fit the accelerator's 33554432 bytes of memory"):
        guest.allocate((BUFFERS_BYTES,), "u1")


def test_a_guest_whose_host_has_no_model_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="nobody serves the accelerator's registers"):
        guest_module().Window(mmap.mmap(-1, window.SIZE), mmap.mmap(-1, 4096), BUFFERS)


def test_host_and_guest_mean_the_same_words() -> None:
    guest = guest_module()
    names = ("BELL", "SERVED", "RUNG", "HEARD", "REGISTER", "VALUE", "SIGN")

    assert {name: getattr(window, name) for name in names} == {name: getattr(guest, name) for name in names}
    assert (Bus().latency, 8 // Bus().interval) == (
        guest.SIMULATED["latency_cycles"], guest.SIMULATED["bytes_per_cycle"]
    )  # fmt: skip
