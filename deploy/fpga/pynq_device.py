"""
A device for pynq behind which the verilated accelerator runs: unmodified pynq code drives the RTL, in this process.

``pynq.pl_server.device.Device.active_device = SimulatedDevice()`` is all that differs from a board.  Buffers have a
copy on each side, so that a flush or an invalidate that is missing shows.  Needs the package ``pynq``.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
from pynq.buffer import PynqBuffer
from pynq.pl_server.device import Device

from deploy.fpga.simulator import Bus, Register, Simulation

NAME = "accelerator_0"
_BASE = 0x4000_0000  # of the registers, where a Zynq's first general-purpose port begins
_RANGE = 0x1_0000
_PAGE = 4096
_LOOK = 5_000  # cycles that pass while software looks at the status of a running program


class SimulatedDevice(Device):  # type: ignore[misc]
    """
    Args:
        memory: bytes for all buffers together.

    Attributes:
        simulation: the accelerator.
    """

    def __init__(self, memory: int = 1 << 24, bus: Bus | None = None, name: str = NAME) -> None:
        super().__init__("deploy-simulated-accelerator")
        self.capabilities = {"REGISTER_RW": True}
        self.simulation = Simulation(memory, bus or Bus())
        self._free = _PAGE
        self._name = name

    def get_bitfile_metadata(self, bitfile_name: str) -> Any:
        """What a .hwh says of an overlay with the accelerator."""
        accelerator = {
            "type": "deploy:user:accelerator:1.0", "fullpath": self._name, "phys_addr": _BASE, "addr_range": _RANGE,
            "mem_id": "s_axi", "memtype": "REGISTER", "parameters": {}, "registers": {}, "state": None,
            "interrupts": {}, "gpio": {},
        }  # fmt: skip
        empty: dict[str, Any] = {}
        return SimpleNamespace(
            ip_dict={self._name: accelerator}, gpio_dict=empty, interrupt_controllers=empty, interrupt_pins=empty,
            hierarchy_dict=empty, mem_dict=empty, clock_dict=empty, systemgraph=None,
        )  # fmt: skip

    def download(self, bitstream: Any, parser: Any = None) -> None:
        """There is nothing to configure."""
        self.post_download(bitstream, parser)

    def read_registers(self, address: int, length: int) -> bytes:
        register = address - _BASE
        if register == Register.STATUS:
            self.simulation.wait(_LOOK if self.simulation.read(Register.STATUS) & 1 else 0)
        return b"".join(self.simulation.read(register + i).to_bytes(4, "little") for i in range(0, length, 4))

    def write_registers(self, address: int, data: bytes) -> None:
        for i in range(0, len(data), 4):
            self.simulation.write(address - _BASE + i, int.from_bytes(data[i : i + 4], "little"))

    def allocate(self, shape: Any, dtype: Any, **_: Any) -> Any:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        start, self._free = self._free, -(-(self._free + size) // _PAGE) * _PAGE
        if self._free > len(self.simulation.memory):
            raise MemoryError(f"{size} bytes do not fit the simulated memory")
        host = np.zeros(size, np.uint8)
        copies = SimpleNamespace(host=host, start=start)
        return PynqBuffer(shape, dtype, buffer=host, device=self, device_address=start, bo=copies, coherent=False)

    def flush(self, bo: Any, offset: int, virtual_address: int, size: int) -> None:
        start = bo.start + offset
        self.simulation.memory[start : start + size] = bo.host[offset : offset + size]

    def invalidate(self, bo: Any, offset: int, virtual_address: int, size: int) -> None:
        start = bo.start + offset
        bo.host[offset : offset + size] = self.simulation.memory[start : start + size]
