"""
Device tree blobs: read, change, write.

Only what the format (devicetree specification 0.4, chapter 5, version 17) needs for that; properties stay bytes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

_MAGIC = 0xD00DFEED
_BEGIN, _END, _PROP, _NOP, _LAST = 1, 2, 3, 4, 9
_HEADER = struct.Struct(">10I")


@dataclass
class Node:
    """
    A node of the tree.

    Attributes:
        properties: name -> value as the blob has it: strings end with a null byte, numbers are big-endian 32 bits.
        children: name, with its unit address -> node, in the blob's order.
    """

    properties: dict[str, bytes] = field(default_factory=dict)
    children: dict[str, Node] = field(default_factory=dict)

    def set_text(self, name: str, *values: str) -> None:
        """One string, or a list of them as `compatible` has."""
        self.properties[name] = b"".join(value.encode() + b"\0" for value in values)

    def set_cells(self, name: str, *values: int) -> None:
        """Numbers of 32 bits each."""
        self.properties[name] = struct.pack(f">{len(values)}I", *values)

    def at(self, path: str) -> Node:
        """
        The node at ``/soc/serial@9000000``, made if it is not there; ``""`` or ``/`` is this one.
        """
        node = self
        for name in filter(None, path.split("/")):
            node = node.children.setdefault(name, Node())
        return node


def parse(blob: bytes) -> tuple[Node, list[tuple[int, int]]]:
    """
    The root node, and the reserved pieces of memory (address, size).

    Raises:
        ValueError: no device tree blob.
    """
    try:
        magic, _, at, strings, reserve, *_ = _HEADER.unpack_from(blob)
        if magic != _MAGIC:
            raise ValueError("not a device tree blob")
        reserved = []
        while (entry := struct.unpack_from(">QQ", blob, reserve)) != (0, 0):
            reserved.append(entry)
            reserve += 16
        return _nodes(blob, at, strings), reserved
    except (struct.error, IndexError):
        raise ValueError("a damaged device tree blob") from None


def _nodes(blob: bytes, at: int, strings: int) -> Node:
    holder = Node()
    open_nodes = [holder]
    while True:
        (token,) = struct.unpack_from(">I", blob, at)
        at += 4
        if token == _BEGIN:
            end = blob.index(b"\0", at)
            node = open_nodes[-1].children.setdefault(blob[at:end].decode(), Node())
            open_nodes.append(node)
            at = _aligned(end + 1)
        elif token == _END:
            open_nodes.pop()
        elif token == _PROP:
            size, name = struct.unpack_from(">II", blob, at)
            name_end = blob.index(b"\0", strings + name)
            open_nodes[-1].properties[blob[strings + name : name_end].decode()] = blob[at + 8 : at + 8 + size]
            at = _aligned(at + 8 + size)
        elif token == _LAST:
            return holder.children[""]
        elif token != _NOP:
            raise ValueError("a damaged device tree blob")


def build(root: Node, reserved: list[tuple[int, int]]) -> bytes:
    """The blob of a tree."""
    body, names = bytearray(), bytearray()
    offsets: dict[str, int] = {}

    def write(name: str, node: Node) -> None:
        body.extend(struct.pack(">I", _BEGIN) + _padded(name.encode() + b"\0"))
        for key, value in node.properties.items():
            if key not in offsets:
                offsets[key] = len(names)
                names.extend(key.encode() + b"\0")
            body.extend(struct.pack(">III", _PROP, len(value), offsets[key]) + _padded(value))
        for key, child in node.children.items():
            write(key, child)
        body.extend(struct.pack(">I", _END))

    write("", root)
    body.extend(struct.pack(">I", _LAST))
    memory = b"".join(struct.pack(">QQ", *entry) for entry in [*reserved, (0, 0)])
    at = _HEADER.size + len(memory)
    size = at + len(body) + len(names)
    header = _HEADER.pack(_MAGIC, size, at, at + len(body), _HEADER.size, 17, 16, 0, len(names), len(body))
    return header + memory + bytes(body) + bytes(names)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _aligned(at: int) -> int:
    return (at + 3) & ~3
