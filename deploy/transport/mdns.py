"""
Boards that say their names on the network: multicast DNS (RFC 6762) and service discovery (RFC 6763).

One-shot questions, as RFC 6762 5.1 allows: they leave from a port of their own, and whoever knows answers to that port,
so no service of ours runs and none of this machine's (Avahi, mDNSResponder) is in the way.  Raspberry Pi OS, Armbian
and JetPack announce ``_workstation._tcp`` or ``_sftp-ssh._tcp`` out of the box; others at least their name.
"""

from __future__ import annotations

import re
import select
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

GROUP, PORT = "224.0.0.251", 5353
SERVICES = ("_ssh._tcp.local", "_sftp-ssh._tcp.local", "_workstation._tcp.local")
ROUNDS = 3  # services; then hosts of instances, addresses of hosts, and whatever was lost

_A, _PTR, _AAAA, _SRV, _IN = 1, 12, 28, 33, 1
_UNICAST = 0x8000
_HEADER = struct.Struct(">6H")
_RECORD = struct.Struct(">HHIH")
_MAX_RECORDS = 4096
_ARP = Path("/proc/net/arp")
# Prefixes that the IEEE has assigned to who makes the boards.
_MAKERS = {
    **dict.fromkeys(
        ("28:cd:c1", "2c:cf:67", "88:a2:9e", "b8:27:eb", "d8:3a:dd", "dc:a6:32", "e4:5f:01"), "Raspberry Pi"
    ),
    **dict.fromkeys(("00:04:4b", "3c:6d:66", "48:b0:2d"), "NVIDIA"),
}
_MAC = re.compile(r"\b(?:[0-9a-f]{2}:){5}[0-9a-f]{2}\b", re.IGNORECASE)


@dataclass(frozen=True)
class Host:
    """
    A machine that answered.

    Attributes:
        host: its name, ``pi5.local``.
        addresses: IPv4 first.
        ssh_port: where it says that SSH is; None when it announces no SSH.
        maker: of the board, by its MAC address, where that is known; a hint, no proof.
    """

    host: str
    addresses: tuple[str, ...]
    ssh_port: int | None
    maker: str | None


Record = tuple[str, int, object]  # name, type, and what it says: a name (PTR), (port, name) (SRV), or an address


def browse(seconds: float = 1.5, interfaces: list[str] | None = None) -> list[Host]:
    """
    Ask on every interface and wait for answers, `seconds` in all; sorted by name.

    Args:
        interfaces: names of those to ask on; None: all.

    An interface that cannot multicast is passed over; without a network nothing is found.
    """
    known: set[Record] = set()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("", 0))
        udp.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 255)
        for round_ in range(ROUNDS):
            questions = _questions(known) if round_ else [(name, _PTR) for name in SERVICES]
            if not questions:
                questions = [(name, _PTR) for name in SERVICES]
            for index, name in socket.if_nameindex():
                if interfaces is None or name in interfaces:
                    _send(udp, index, _query(questions))
            end = time.monotonic() + seconds / ROUNDS
            while (left := end - time.monotonic()) > 0:
                if select.select([udp], [], [], left)[0]:
                    known.update(_answers(udp))
    return _hosts(known)


def _send(udp: socket.socket, interface: int, query: bytes) -> None:
    try:
        udp.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, struct.pack("=4s4si", b"", b"", interface))
        udp.sendto(query, (GROUP, PORT))
    except OSError:
        pass  # it is down, or cannot multicast


def _answers(udp: socket.socket) -> list[Record]:
    try:
        return list(parse(udp.recv(9000)))
    except (OSError, ValueError):
        return []  # whoever sends such things is not who we look for


def _query(questions: list[tuple[str, int]]) -> bytes:
    parts = [_HEADER.pack(0, 0, len(questions), 0, 0, 0)]
    for name, kind in questions:
        for label in name.split("\0") if "\0" in name else name.split("."):
            data = label.encode("utf-8", "surrogateescape")
            parts += [bytes((len(data),)), data]
        parts += [b"\0", struct.pack(">HH", kind, _IN | _UNICAST)]
    return b"".join(parts)


def parse(data: bytes) -> Iterator[Record]:
    """
    What a response says; nothing for a question.

    Labels of an instance's name may hold dots; they are joined by NUL where one does.

    Raises:
        ValueError: no DNS message.
    """
    try:
        _, flags, questions, *counts = _HEADER.unpack_from(data)
        if not flags & 0x8000:
            return
        at = _HEADER.size
        for _ in range(questions):
            at = _name(data, at)[1] + 4
        for _ in range(min(sum(counts), _MAX_RECORDS)):
            name, at = _name(data, at)
            kind, _, _, size = _RECORD.unpack_from(data, at)
            at += _RECORD.size
            content = data[at : at + size]
            if kind == _PTR:
                yield name, kind, _name(data, at)[0]
            elif kind == _SRV:
                (port,) = struct.unpack_from(">H", data, at + 4)
                yield name, kind, (port, _name(data, at + 6)[0])
            elif (kind, size) in ((_A, 4), (_AAAA, 16)):
                yield name, kind, socket.inet_ntop(socket.AF_INET if kind == _A else socket.AF_INET6, content)
            at += size
    except (struct.error, IndexError) as error:
        raise ValueError(f"no DNS message: {error}") from None


def _name(data: bytes, at: int) -> tuple[str, int]:
    """A name, and where it ends; what it points back to must lie before it."""
    labels: list[str] = []
    end, before = 0, at
    while (size := data[at]) != 0:
        if size >= 0xC0:
            target = (size & 0x3F) << 8 | data[at + 1]
            end = end or at + 2
            if target >= before:
                raise ValueError("a name that points forward")
            at = before = target
            continue
        if size >= 0x40 or len(labels) > 127:
            raise ValueError("no name")
        labels.append(data[at + 1 : at + 1 + size].decode("utf-8", "surrogateescape"))
        at += 1 + size
    joint = "\0" if any("." in label for label in labels) else "."
    return joint.join(labels), end or at + 1


def _questions(known: set[Record]) -> list[tuple[str, int]]:
    """What is still to be asked: where instances are, and the addresses of their hosts."""
    told = {(name, kind) for name, kind, _ in known}
    wanted = [(str(content), _SRV) for _, kind, content in known if kind == _PTR]
    wanted += [(content[1], _A) for _, kind, content in known if kind == _SRV and isinstance(content, tuple)]
    return sorted(set(wanted) - told)[:32]


def _hosts(known: set[Record]) -> list[Host]:
    addresses: dict[str, set[str]] = {}
    for name, kind, content in known:
        if kind in (_A, _AAAA):
            addresses.setdefault(name.lower(), set()).add(str(content))
    ports: dict[str, int | None] = {}
    macs: dict[str, str] = {}
    for name, kind, content in known:
        if kind != _SRV or not isinstance(content, tuple):
            continue
        service = next((s for s in SERVICES if name.replace("\0", ".").lower().endswith(s)), None)
        host = str(content[1]).lower()
        if service is None:
            continue
        ports.setdefault(host, None)
        if service != SERVICES[2]:
            ports[host] = content[0]
        elif found := _MAC.search(name):  # Avahi's instance is called "host [b8:27:eb:...]"
            macs[host] = found[0]
    neighbours = _neighbours()
    result = []
    for host, port in sorted(ports.items()):
        there = sorted(addresses.get(host, ()), key=lambda address: (":" in address, address))
        mac = macs.get(host) or next((neighbours[address] for address in there if address in neighbours), "")
        result.append(Host(_printable(host), tuple(there), port, _MAKERS.get(mac[:8].lower())))
    return result


def _neighbours() -> dict[str, str]:
    """MAC addresses that this machine has met, by IPv4 address."""
    try:
        rows = [line.split() for line in _ARP.read_text().splitlines()[1:]]
    except OSError:
        return {}
    return {row[0]: row[3] for row in rows if len(row) >= 4}


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)
