"""The boards that there are, as the real ones show themselves to Linux."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from deploy.errors import UsageError, nearest


@dataclass(frozen=True)
class Kind:
    """
    Attributes:
        name: what `deploy virtual up` is given.
        board_kind: `kind` of its entry in the registry.
        model, compatible: of the device tree's root, as the board's own kernel shows them.
        machine, cpu: QEMU's names.  7.2 has no Cortex-A78AE; the A76 has its instructions (dot product, half floats).
        arch: Debian's.
        user: who logs in there.
        cores: by default; 2, as a 2-core host only boots slower with the 4 of the real ones.
        memory_mib: by default, far below the real ones'.
    """

    name: str
    board_kind: Literal["raspberry-pi", "jetson", "pynq"]
    description: str
    model: str
    compatible: tuple[str, ...]
    cpu: str
    user: str
    machine: Literal["virt", "xilinx-zynq-a9"] = "virt"
    arch: Literal["arm64", "armhf"] = "arm64"
    cores: int = 2
    memory_mib: int = 256

    def serial_number(self, name: str) -> str:
        """Of the board `name`: always the same, and different for every name.  As long as the real ones'."""
        from hashlib import sha256

        digest = sha256(f"{self.name}/{name}".encode()).hexdigest()
        if self.board_kind == "jetson":
            return f"142{int(digest[:8], 16):010d}"
        return f"{'10000000' if self.board_kind == 'raspberry-pi' else '00000000'}{digest[:8]}"


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(
            name="pi3",
            board_kind="raspberry-pi",
            description="Raspberry Pi 3 B+",
            model="Raspberry Pi 3 Model B Plus Rev 1.3",
            compatible=("raspberrypi,3-model-b-plus", "brcm,bcm2837"),
            cpu="cortex-a53",
            user="pi",
        ),
        Kind(
            name="pi4",
            board_kind="raspberry-pi",
            description="Raspberry Pi 4 B",
            model="Raspberry Pi 4 Model B Rev 1.4",
            compatible=("raspberrypi,4-model-b", "brcm,bcm2711"),
            cpu="cortex-a72",
            user="pi",
        ),
        Kind(
            name="pi5",
            board_kind="raspberry-pi",
            description="Raspberry Pi 5",
            model="Raspberry Pi 5 Model B Rev 1.0",
            compatible=("raspberrypi,5-model-b", "brcm,bcm2712"),
            cpu="cortex-a76",
            user="pi",
        ),
        Kind(
            name="jetson-nano",
            board_kind="jetson",
            description="Jetson Nano",
            model="NVIDIA Jetson Nano Developer Kit",
            compatible=("nvidia,p3450-0000", "nvidia,jetson-nano", "nvidia,tegra210"),
            cpu="cortex-a57",
            user="jetson",
        ),
        Kind(
            name="jetson-orin",
            board_kind="jetson",
            description="Jetson Orin Nano",
            model="NVIDIA Jetson Orin Nano Developer Kit",
            compatible=("nvidia,p3768-0000+p3767-0005", "nvidia,p3767-0005", "nvidia,tegra234"),
            cpu="cortex-a76",
            user="jetson",
        ),
        Kind(
            name="pynq-z2",
            board_kind="pynq",
            description="PYNQ-Z2",
            model="TUL PYNQ-Z2",
            compatible=("tul,pynq-z2", "xlnx,zynq-7000"),
            cpu="cortex-a9",
            user="xilinx",
            machine="xilinx-zynq-a9",
            arch="armhf",
            cores=1,
            memory_mib=480,
        ),
    )
}


def find(name: str) -> Kind:
    """
    The kind called `name`.

    Raises:
        UsageError: there is none; with the nearest.
    """
    try:
        return KINDS[name]
    except KeyError:
        raise UsageError(f"no virtual board {name!r}{nearest(name, KINDS)}", kind=name) from None
