"""
From a .tflite file to programs of the accelerator.

Nodes in a row that the accelerator can run become a segment: one program that loads its inputs, runs layer after layer
on the chip and stores its outputs.  Everything else stays with the CPU, with a reason (`Placement`).
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from deploy.fpga import isa
from deploy.fpga.binary import Binarization, binary_layer, bits_of, find
from deploy.fpga.layout import Layout
from deploy.fpga.network import Layer, Network, Node, Unsupported, layer_of, read, sum_of
from deploy.fpga.weights import AHEAD, Due, last_of, pack_tables, pack_weights, parts_of, ring


@dataclass(frozen=True)
class Port:
    """
    A tensor that enters or leaves a segment.

    Attributes:
        tensor: its index in the file.
        offset: bytes from INPUT or OUTPUT, where its image of `layout.gather().size` bytes begins.
        pad: what a byte holds that stands for no value.
    """

    tensor: int
    offset: int
    layout: Layout
    pad: int


@dataclass(frozen=True)
class Segment:
    """
    Attributes:
        nodes: of the file, in its order.
        layers: what runs, in order; an addition is part of one.
        image: what lies at MODEL: weights, taps, tables, and the programs.
        prepare: offset in `image` and length in 64-bit words of the program that brings what stays on the chip.
        run: the same for one invocation.
        resident: whether the weights stay on the chip; else they come anew each time, beside the computation.
        input_bytes, output_bytes: of the buffers at INPUT and OUTPUT.
        macs: products that the model asks for.
        peak_cycles: that the array would take for them, were all of it at work in each.
    """

    nodes: tuple[int, ...]
    layers: tuple[Layer, ...]
    image: bytes
    prepare: tuple[int, int]
    run: tuple[int, int]
    resident: bool
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    input_bytes: int
    output_bytes: int
    macs: int
    peak_cycles: float


@dataclass(frozen=True)
class Placement:
    """Who runs a node: segment number, or None and why not."""

    node: int
    op: str
    segment: int | None
    reason: str = ""


@dataclass(frozen=True)
class Compiled:
    """A model for the accelerator, with what is left to the CPU."""

    network: Network
    segments: tuple[Segment, ...]
    placements: tuple[Placement, ...]


def compile_model(data: bytes, name: str, stream: bool = False) -> Compiled:
    """
    Compile a model.

    Args:
        stream: bring the weights anew in each invocation, though they would fit the chip.

    Raises:
        BuildError: it is no model.
    """
    network = read(data, name)
    reasons: dict[int, str] = {}
    while True:  # a tensor that two layers want in unlike ways drops a node, which may split a segment
        try:
            bits = find(network, reasons)
            rows = _runs(network, reasons, bits)
            segments = tuple(_Builder(network, nodes, bits).build(stream) for nodes in rows)
            break
        except _Dropped as dropped:
            reasons[dropped.node] = dropped.reason
    where = {node: i for i, segment in enumerate(segments) for node in segment.nodes}
    placements = tuple(
        Placement(node.index, node.op, where.get(node.index), "" if node.index in where else _why(node, reasons))
        for node in network.nodes
    )
    return Compiled(network, segments, placements)


class _Dropped(Exception):
    def __init__(self, node: int, reason: str) -> None:
        super().__init__(reason)
        self.node, self.reason = node, reason


def _why(node: Node, reasons: dict[int, str]) -> str:
    return reasons.get(node.index, "nothing to compute beside it")


def _runs(network: Network, reasons: dict[int, str], bits: dict[int, Binarization]) -> list[list[Node]]:
    """Longest rows of nodes that the accelerator takes, with at least one that computes."""
    rows: list[list[Node]] = [[]]
    binarizing = {node for each in bits.values() for node in each.nodes}
    for node in network.nodes:
        known = node.op == "RESHAPE" or node.index in binarizing or any(t in bits for t in node.inputs[:1])
        if node.index not in reasons and not known:
            try:
                layer_of(network, node)
            except Unsupported as why:
                reasons[node.index] = str(why)
        if node.index in reasons:
            rows.append([])
        else:
            rows[-1].append(node)
    for row in rows:
        while row and row[-1].op == "RESHAPE":  # at an end it moves nothing but bytes
            row.pop()
        while row and row[0].op == "RESHAPE":
            row.pop(0)
    return [row for row in rows if row]


class _Builder:
    def __init__(self, network: Network, nodes: list[Node], bits: dict[int, Binarization]) -> None:
        self._network = network
        self._nodes = nodes
        self._bits = bits
        self._alias: dict[int, int] = {}  # tensor -> the tensor whose values it shares
        for node in nodes:
            if node.op == "RESHAPE":
                self._alias[node.outputs[0]] = self._root(node.inputs[0])
        inside = {node.index for node in nodes}
        made = {tensor for node in nodes for tensor in node.outputs}
        used_outside = {t for node in network.nodes if node.index not in inside for t in node.inputs}
        used_outside |= set(network.outputs)
        self._outputs = sorted(made & used_outside)
        for each in bits.values():
            if set(each.nodes) & inside and (set(each.nodes) - inside or each.target in self._outputs):
                raise _Dropped(each.nodes[-1], "bits that more than one part of the model needs")
        constant = {t.index for t in network.tensors if t.values is not None}
        given = {t for node in nodes for t in (node.inputs[:1] if node.op != "ADD" else node.inputs)}
        self._inputs = sorted(given - made - constant)
        self._layers = self._fuse()
        self._layouts = self._choose_layouts()

    def _root(self, tensor: int) -> int:
        return self._alias.get(tensor, tensor)

    def _fuse(self) -> list[Layer]:
        """Layers in order; an ADD goes into the later of the layers that make its operands, where it can."""
        uses = Counter(self._root(t) for node in self._nodes for t in set(node.inputs) if node.op != "RESHAPE")
        uses.update(self._root(t) for t in self._outputs)
        layers: list[Layer] = []
        ends = {each.nodes[-1]: each for each in self._bits.values()}
        inner = {node for each in self._bits.values() for node in each.nodes[:-1]}
        for node in self._nodes:
            if node.op == "RESHAPE" or node.index in inner:
                continue
            if node.index in ends:
                self._binarize(layers, uses, ends[node.index])
                continue
            operands = {self._root(t) for t in node.inputs}
            maker = next((i for i in reversed(range(len(layers))) if layers[i].target in operands), None)
            if node.op == "ADD" and maker is not None and self._takes_sum(layers[maker], uses, node):
                own = layers[maker]
                try:
                    total = sum_of(self._network, node, own.target)
                except Unsupported as why:
                    raise _Dropped(node.index, str(why)) from why
                target = node.outputs[0]
                layers[maker] = replace(own, nodes=(*own.nodes, node.index), target=target, sum=total)
            else:
                layers.append(self._rooted(self._layer(node)))
        return layers

    def _layer(self, node: Node) -> Layer:
        if node.inputs[0] in self._bits:
            return binary_layer(self._network, node, self._bits[node.inputs[0]])
        return layer_of(self._network, node)

    def _binarize(self, layers: list[Layer], uses: Counter[int], bits: Binarization) -> None:
        """The layer that makes the values writes bits instead, if nobody else wants the values."""
        source = self._root(bits.source)
        grid = self._network.tensors[bits.target].grid
        for i, layer in enumerate(layers):
            if layer.target == source and uses[source] == 1 and layer.grid_out == grid:
                nodes = (*layer.nodes, *bits.nodes)
                layers[i] = replace(layer, nodes=nodes, target=bits.target, thresholds=bits.thresholds)
                return
        layers.append(self._rooted(bits_of(self._network, bits)))

    def _rooted(self, layer: Layer) -> Layer:
        """Read a reshaped tensor as it lies: a vector of a whole image is one tap for each of its positions."""
        source = self._root(layer.source)
        grid = self._network.tensors[source].grid
        if layer.sum is not None:
            layer = replace(layer, sum=replace(layer.sum, other=self._root(layer.sum.other)))
        if grid == layer.grid_in:
            return replace(layer, source=source)
        height, width, channels = grid
        if layer.grid_in != (1, 1, math.prod(grid)) or layer.diagonal:
            raise _Dropped(layer.nodes[0], f"it reads {list(grid)} as {list(layer.grid_in)}")
        taps = tuple((y, x) for y in range(height) for x in range(width))
        weights = layer.weights.reshape(-1, height * width, channels)
        return replace(layer, source=source, grid_in=grid, taps=taps, weights=weights)

    def _takes_sum(self, layer: Layer, uses: Counter[int], node: Node) -> bool:
        same = node.inputs[0] == node.inputs[1] or any(t in self._alias for t in node.inputs)
        shape = self._network.tensors[layer.target].shape == self._network.tensors[node.outputs[0]].shape
        free = layer.sum is None and not layer.maximum and uses[layer.target] == 1 and not same and shape
        wide = layer.grid_out[0] == 1 or layer.grid_out[1] == -(-layer.grid_in[1] // layer.stride[1])
        return free and wide

    def _choose_layouts(self) -> dict[int, Layout]:
        """How each tensor lies: as its readers want it."""
        plain: set[int] = set()
        split: set[int] = set()
        for layer in self._layers:
            if layer.sum is not None:
                plain.add(layer.sum.other)
            if layer.grid_out[:2] == (1, 1):
                continue  # one output position has no stride
            if layer.stride not in ((1, 1), (2, 2)):
                raise _Dropped(layer.nodes[0], f"stride {layer.stride[0]} by {layer.stride[1]}")
            (plain if layer.stride == (1, 1) else split).add(layer.source)
            if layer.source in plain & split:
                raise _Dropped(layer.nodes[0], "its input is read with stride 1 and with stride 2")
        if both := plain & split:
            last = next(layer for layer in reversed(self._layers) if layer.source in both)
            raise _Dropped(last.nodes[0], "its input is read with stride 2, and added to something else")
        tensors = {self._root(t) for t in self._inputs}
        tensors |= {layer.target for layer in self._layers}
        return {t: Layout(*self._network.tensors[t].grid, split=t in split, bits=t in self._bits) for t in tensors}

    def _rows(self) -> dict[int, int]:
        """First bank row of each tensor; two that are needed at the same time do not overlap."""
        born = {self._root(t): -1 for t in self._inputs}
        dies: dict[int, int] = {}
        for i, layer in enumerate(self._layers):
            born[layer.target] = i
            for tensor in (layer.source, layer.sum.other if layer.sum else layer.source):
                dies[tensor] = i
        for tensor in self._outputs:
            dies[self._root(tensor)] = len(self._layers)
        placed: dict[int, int] = {}
        for tensor in sorted(born, key=lambda t: born[t]):
            size = self._layouts[tensor].groups * self._layouts[tensor].rows
            busy = sorted(
                (row, row + self._layouts[other].groups * self._layouts[other].rows)
                for other, row in placed.items()
                if dies.get(other, born[other]) >= born[tensor]
            )
            row = 0
            for first, end in busy:
                if row + size <= first:
                    break
                row = max(row, end)
            if row + size > isa.ACTIVATION_ROWS:
                at = self._layers[max(born[tensor], 0)].nodes[0]
                needed = f"{(row + size) * isa.BANKS * isa.CHANNELS // 1024} KiB of activations"
                raise _Dropped(at, f"{needed} at once, and the chip holds {isa.ACTIVATION_ROWS // 8} KiB")
            placed[tensor] = row
        return placed

    def build(self, stream: bool) -> Segment:
        rows = self._rows()
        image = _Image()
        taps: dict[tuple[int, ...], int] = {}
        words: list[int] = []
        convs: list[isa.Conv] = []
        owners: list[int] = []  # which layer each is a part of
        weights: list[NDArray[np.uint8]] = []
        for number, layer in enumerate(self._layers):
            entries = self._taps(layer)
            if entries not in taps:
                taps[entries] = len(words)
                words += entries
            if len(words) > isa.TAPS:
                raise _Dropped(layer.nodes[0], f"more than {isa.TAPS} kernel positions in one program")
            packed = pack_weights(layer)
            if packed[0].nbytes > isa.WEIGHT_WORDS * 32:
                raise _Dropped(layer.nodes[0], f"the weights of {isa.CHANNELS} channels exceed the chip's memory")
            for start, part in parts_of(packed, layer.thresholds is not None):
                convs.append(self._conv(layer, rows, taps[entries], start, len(part)))
                owners.append(number)
                weights.append(part)
        sizes = [part.nbytes // 32 for part in weights]
        resident = sum(sizes) <= isa.WEIGHT_WORDS and not stream
        tap_load = isa.Load(
            memory=isa.Memory.TAPS, beats=len(words), offset=image.add(b"".join(w.to_bytes(8, "little") for w in words))
        )
        tables = [image.add(pack_tables(layer)) if layer.sum else None for layer in self._layers]
        inputs, input_bytes = self._ports(self._inputs)
        outputs, output_bytes = self._ports(self._outputs)
        program = _Program()
        prepare = _Program()
        if resident:
            prepare.add(tap_load)
            places = [sum(sizes[:i]) for i in range(len(sizes))]
            flat = b"".join(part.tobytes() for part in weights)
            prepare.add(isa.Load(memory=isa.Memory.WEIGHTS, beats=len(flat) // isa.BEAT, offset=image.add(flat)))
            due: list[Due] = []
        else:
            program.add(tap_load)
            places, due = ring(sizes, [image.add(part.tobytes()) for part in weights])
        for port in inputs:
            program.add(_move(isa.Load, port, rows[self._root(port.tensor)], isa.Base.INPUT))
        convs = [replace(conv, weights=place) for conv, place in zip(convs, places, strict=True)]
        self._emit(program, convs, owners, due, tables)
        for port in outputs:
            program.add(_move(isa.Store, port, rows[self._root(port.tensor)], isa.Base.OUTPUT))
        spots = []
        for each in (prepare, program):
            code = isa.encode([*each.instructions, isa.End(wait_loads=each.loads)])
            if len(code) // isa.BEAT > isa.PROGRAM_WORDS:
                raise _Dropped(self._nodes[-1].index, f"a program of {len(code) // 64} instructions")
            spots.append((image.add(code), len(code) // isa.BEAT))
        work = [(_macs(layer), isa.BINARY_DEPTH if layer.binary else isa.DEPTH) for layer in self._layers]
        peak_cycles = sum(macs / (isa.PIXELS * isa.CHANNELS * depth) for macs, depth in work)
        return Segment(
            tuple(node.index for node in self._nodes), tuple(self._layers), image.bytes(), spots[0], spots[1], resident,
            inputs, outputs, input_bytes, output_bytes, sum(macs for macs, _ in work), peak_cycles,
        )  # fmt: skip

    def _emit(
        self, program: _Program, convs: list[isa.Conv], owners: list[int], due: list[Due], tables: list[int | None]
    ) -> None:
        """Layers in order, each after the loads it needs; loads as early as they may come."""
        given = program.loads
        sums = [i for i, offset in enumerate(tables) if offset is not None]
        sets = {layer: n % isa.TABLE_SETS for n, layer in enumerate(sums)}
        for n, layer in enumerate(sums):
            first = owners.index(layer)
            # A set is free when the layer that had it before has ended.
            free = 0 if n < isa.TABLE_SETS else last_of(owners, sums[n - isa.TABLE_SETS]) + 1
            load = isa.Load(memory=isa.Memory.TABLES, beats=512, offset=tables[layer] or 0, to=512 * sets[layer])
            due.append(Due(max(free, first - AHEAD), first, load))
        needs = dict.fromkeys(range(len(convs)), 0)
        needs[0] = given
        for i, conv in enumerate(convs):
            for each in sorted((d for d in due if d.before == i), key=lambda d: d.conv):
                program.add(each.load)
                needs[each.conv] = program.loads
            program.add(replace(conv, wait_loads=needs[i], sum_set=sets.get(owners[i], 0)))

    def _taps(self, layer: Layer) -> tuple[int, ...]:
        layout = self._layouts[layer.source]
        single = layer.grid_out[:2] == (1, 1)
        stride = 1 if single else layer.stride[0]
        taps = [layout.tap(dy, dx, stride, *layer.grid_out[:2]) for dy, dx in layer.taps]
        return tuple(tap.encode() for tap in taps)

    def _conv(self, layer: Layer, rows: dict[int, int], first_tap: int, start: int, tiles: int) -> isa.Conv:
        source, target = self._layouts[layer.source], self._layouts[layer.target]
        height, width = layer.grid_out[:2]
        grid = width if height == 1 else source.pitch
        positions = (height - 1) * grid + width
        depth = isa.BINARY_DEPTH if layer.binary else isa.DEPTH
        group = start * isa.CHANNELS // (isa.BITS if target.bits else isa.CHANNELS)
        conv = isa.Conv(
            once=layer.once, diagonal=layer.diagonal, maximum=layer.maximum, split=target.split,
            nibbles=layer.nibbles, binary=layer.binary, binarize=target.bits,
            channel_tiles=tiles, position_tiles=-(-positions // isa.PIXELS),
            in_row=rows[layer.source] + (start * source.rows if layer.diagonal else 0), in_rows=source.rows,
            first_tap=first_tap, taps=len(layer.taps),
            depth_steps=1 if layer.diagonal else -(-layer.weights.shape[2] // depth),
            width=grid, tile_rows=isa.PIXELS // grid, tile_columns=isa.PIXELS % grid,
            out_row=rows[layer.target] + group * target.rows, out_rows=target.rows, out_pitch=target.pitch,
            out_plane=target.plane, out_height=height, out_width=width, pad=layer.pad, zero_point=layer.zero_point,
            least=layer.least, most=layer.most,
        )  # fmt: skip
        if layer.sum is None:
            return conv
        other, total = self._layouts[layer.sum.other], layer.sum
        if other.pitch != grid and height > 1:
            raise _Dropped(total.node, "the operands of the addition lie in unlike rows")
        return replace(
            conv, residual=1, residual_row=rows[total.other] + start * other.rows, residual_rows=other.rows,
            sum_shift=total.shift, sum_zero_point=total.zero_point, sum_least=total.least, sum_most=total.most,
        )  # fmt: skip

    def _ports(self, tensors: list[int]) -> tuple[tuple[Port, ...], int]:
        ports, offset = [], 0
        for tensor in tensors:
            layout = self._layouts[self._root(tensor)]
            ports.append(Port(tensor, offset, layout, self._network.tensors[tensor].zero_point))
            offset += _aligned(layout.groups * layout.positions * isa.CHANNELS)
        return tuple(ports), offset


def _macs(layer: Layer) -> int:
    """Products that count as work: those of a pooling or of a copy do not."""
    return math.prod(layer.grid_out[:2]) * layer.weights.size if (layer.weights != 1).any() else 0


def _aligned(size: int) -> int:
    return -(-size // isa.ALIGNMENT) * isa.ALIGNMENT


class _Image:
    """What lies in memory at MODEL, piece by piece."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def add(self, data: bytes) -> int:
        at = self._size
        self._parts.append(data.ljust(_aligned(len(data)), b"\0"))
        self._size += len(self._parts[-1])
        return at

    def bytes(self) -> bytes:
        return b"".join(self._parts)


class _Program:
    def __init__(self) -> None:
        self.instructions: list[isa.Instruction] = []
        self.loads = 0

    def add(self, instruction: isa.Instruction) -> None:
        self.instructions.append(instruction)
        self.loads += instruction.op == isa.Op.LOAD


def _move(kind: type[isa.Load], port: Port, row: int, base: isa.Base) -> isa.Load:
    layout = port.layout
    return kind(
        memory=isa.Memory.ACTIVATIONS, base=base, offset=port.offset, beats=layout.groups * layout.positions,
        to=row, rows=layout.rows, positions=layout.positions,
    )  # fmt: skip
