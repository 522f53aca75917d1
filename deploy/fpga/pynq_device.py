"""
A device for pynq behind which the verilated accelerator runs: unmodified pynq code drives the RTL, in this process.

``pynq.pl_server.device.Device.active_device = SimulatedDevice()`` is all that differs from a board.  Needs the package
``pynq``; boards of the kind pynq-sim do without it, see `simulated`.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from pynq.buffer import PynqBuffer
from pynq.pl_server.device import Device

from deploy.fpga.fabric import Fabric
from deploy.fpga.simulator import Bus, Simulation

NAME = "accelerator_0"
_BASE = 0x4000_0000  # of the registers, where a Zynq's first general-purpose port begins
_RANGE = 0x1_0000


class SimulatedDevice(Device):  # type: ignore[misc]
    """
    Attributes:
        simulation: the accelerator.
    """

    def __init__(self, bus: Bus | None = None, name: str = NAME) -> None:
        super().__init__("deploy-simulated-accelerator")
        self.capabilities = {"REGISTER_RW": True}
        self._fabric = Fabric(bus=bus)
        self._name = name

    @property
    def simulation(self) -> Simulation:
        return self._fabric.simulation

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
        return b"".join(self._fabric.read(address - _BASE + i).to_bytes(4, "little") for i in range(0, length, 4))

    def write_registers(self, address: int, data: bytes) -> None:
        for i in range(0, len(data), 4):
            self._fabric.write(address - _BASE + i, int.from_bytes(data[i : i + 4], "little"))

    def allocate(self, shape: Any, dtype: Any, **_: Any) -> Any:
        made = self._fabric.allocate(shape, dtype)
        return PynqBuffer(
            shape, dtype, buffer=made.host, device=self, device_address=made.start, bo=made, coherent=False
        )

    def flush(self, bo: Any, offset: int, virtual_address: int, size: int) -> None:
        self._fabric.flush(bo, offset, size)

    def invalidate(self, bo: Any, offset: int, virtual_address: int, size: int) -> None:
        self._fabric.invalidate(bo, offset, size)
