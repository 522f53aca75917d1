"""The serial ports of this machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from serial.tools import list_ports

BY_ID = Path("/dev/serial/by-id")


@dataclass(frozen=True)
class Port:
    """
    A port.

    Attributes:
        path: the one to write into boards.yaml: below /dev/serial/by-id where there is one, as ttyUSB0 may be another
            adapter tomorrow.
        adapter: what it says of itself.
        serial_number: of a USB adapter.
    """

    path: str
    adapter: str
    serial_number: str | None


def ports() -> list[Port]:
    """USB adapters first; built-in UARTs only where there is hardware behind them."""
    names = {link.resolve(): link for link in sorted(BY_ID.iterdir())} if BY_ID.is_dir() else {}
    found = []
    for info in list_ports.comports():
        usb = info.vid is not None
        path = names.get(Path(info.device).resolve(), Path(info.device))
        product = " ".join(word for word in (info.manufacturer, info.product) if word) or info.description or ""
        found.append((not usb, Port(str(path), product if product != "n/a" else "", info.serial_number)))
    return [port for _, port in sorted(found, key=lambda entry: (entry[0], entry[1].path))]
