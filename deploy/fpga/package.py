"""A compiled model as a board takes it: programs for the accelerator, small models for what stays with LiteRT."""

from __future__ import annotations

import hashlib
from typing import Any

import flatbuffers

from deploy.errors import BuildError
from deploy.fpga import isa
from deploy.fpga.compiler import Compiled, Port, Segment, compile_model
from deploy.fpga.model import cycles as array_cycles
from deploy.fpga.network import Network, Node, read
from devices.protocol.accelerated import Accelerated

IDENTITY = 0xD1A5 << 16 | isa.VERSION  # of kernels/rtl/accelerator.sv
ANSWERING_CYCLES = 100_000  # more than the slowest memory keeps a program waiting altogether
_VARIABLES = {"VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE", "CALL_ONCE"}
SHAPE = isa.PIXELS << 24 | isa.CHANNELS << 16 | isa.DEPTH << 8 | isa.BANKS


def package(data: bytes, name: str, stream: bool = False) -> Accelerated:
    """
    Compile a model and say who runs what.

    Args:
        stream: bring the weights anew in each invocation.  So it is done in any case where the accelerator runs
            several parts of the model, as they would take each other's place on the chip.

    Raises:
        BuildError: it is no model, the accelerator can run none of its nodes, or it cannot be taken apart.
    """
    if variables := sorted(_VARIABLES & {node.op for node in read(data, name).nodes}):
        raise BuildError(f"{name} keeps variables, which parts of it cannot share ({', '.join(variables)})")
    compiled = compile_model(data, name, stream)
    if not compiled.segments:
        reasons = sorted({place.reason for place in compiled.placements})
        raise BuildError(
            f"{name} has no node that the accelerator can run ({'; '.join(reasons[:3])})",
            "`deploy push` without it: LiteRT runs the model on the board's CPU",
        )
    if len(compiled.segments) > 1 and not stream:
        compiled = compile_model(data, name, stream=True)
    body = _Body()
    return Accelerated(
        identity=IDENTITY,
        shape=SHAPE,
        model_sha256=hashlib.sha256(data).hexdigest(),
        inputs=list(compiled.network.inputs),
        outputs=list(compiled.network.outputs),
        nodes=[
            {"op": place.op, "kernel": None if place.segment is None else "accelerator", "reason": place.reason}
            for place in compiled.placements
        ],
        steps=[_step(part, compiled, data, body) for part in _parts(compiled)],
        body=body.bytes(),
    )


class _Body:
    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def add(self, data: bytes) -> list[int]:
        span = [self._size, len(data)]
        self._parts.append(data)
        self._size += len(data)
        return span

    def bytes(self) -> bytes:
        return b"".join(self._parts)


def _parts(compiled: Compiled) -> list[Segment | list[Node]]:
    """Segments and what lies between them, in order."""
    parts: list[Segment | list[Node]] = []
    for node, place in zip(compiled.network.nodes, compiled.placements, strict=True):
        if place.segment is not None:
            segment = compiled.segments[place.segment]
            if not parts or parts[-1] is not segment:
                parts.append(segment)
        elif parts and isinstance(parts[-1], list):
            parts[-1].append(node)
        else:
            parts.append([node])
    return parts


def _step(part: Segment | list[Node], compiled: Compiled, data: bytes, body: _Body) -> dict[str, Any]:
    if isinstance(part, list):
        inputs, outputs = _borders(compiled.network, part)
        return {
            "kind": "cpu",
            "model": body.add(_extract(data, part, inputs, outputs)),
            "inputs": inputs,
            "outputs": outputs,
            "nodes": [node.index for node in part],
        }
    return {
        "kind": "pl",
        "image": body.add(part.image),
        "prepare": _program(part, part.prepare),
        "run": _program(part, part.run),
        "resident": part.resident,
        "inputs": [_port(port, compiled.network, body) for port in part.inputs],
        "outputs": [_port(port, compiled.network, body) for port in part.outputs],
        "input_bytes": part.input_bytes,
        "output_bytes": part.output_bytes,
        "nodes": list(part.nodes),
        "layers": _layers(part),
    }


def _program(part: Segment, where: tuple[int, int]) -> list[int]:
    """Where it lies, and the cycles after which something is wrong: ten times what array and bus take in turn."""
    cycles = sum(
        array_cycles(instruction) if isinstance(instruction, isa.Conv) else getattr(instruction, "beats", 0)
        for instruction in _decoded(part, where)
    )
    return [*where, 10 * cycles + ANSWERING_CYCLES]


def _layers(part: Segment) -> list[list[Any]]:
    """After how many words of the program which nodes are computed; a layer may be several instructions."""
    layers, tiles = list(part.layers), 0
    ends: list[list[Any]] = []
    for number, instruction in enumerate(_decoded(part, part.run), start=1):
        if isinstance(instruction, isa.Conv):
            tiles += instruction.channel_tiles
            if tiles == -(-layers[len(ends)].grid_out[2] // isa.CHANNELS):
                ends.append([number * isa.WORDS, list(layers[len(ends)].nodes)])
                tiles = 0
    return ends


def _decoded(part: Segment, where: tuple[int, int]) -> list[isa.Instruction]:
    offset, words = where
    return isa.decode(part.image[offset : offset + words * isa.BEAT])


def _port(port: Port, network: Network, body: _Body) -> dict[str, Any]:
    gather = port.layout.gather()
    return {
        "tensor": port.tensor,
        "offset": port.offset,
        "pad": port.pad,
        "size": int(gather.size),
        "shape": list(network.tensors[port.tensor].shape),
        "gather": body.add(gather.astype("<i4").tobytes()),
    }


def _borders(network: Network, nodes: list[Node]) -> tuple[list[int], list[int]]:
    """What the nodes need from outside, and what others, or the caller, need of theirs."""
    inside = {node.index for node in nodes}
    made = [tensor for node in nodes for tensor in node.outputs]
    given = set(network.inputs) | {t for n in network.nodes if n.index not in inside for t in n.outputs}
    needed = {t for n in network.nodes if n.index not in inside for t in n.inputs} | set(network.outputs)
    read = dict.fromkeys(tensor for node in nodes for tensor in node.inputs)
    return [t for t in read if t in given], [t for t in made if t in needed]


def _extract(data: bytes, nodes: list[Node], inputs: list[int], outputs: list[int]) -> bytes:
    """The nodes as a model of their own; its tensors keep their numbers."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))
    graph = model.subgraphs[0]
    graph.operators = [graph.operators[node.index] for node in nodes]
    graph.inputs, graph.outputs = inputs, outputs
    model.subgraphs = [graph] if len(model.subgraphs) == 1 else [graph, *model.subgraphs[1:]]
    model.signatureDefs, model.metadata, model.metadataBuffer = None, None, None
    if len(model.subgraphs) == 1:
        used = {tensor for node in nodes for tensor in (*node.inputs, *node.outputs)}
        keep = {graph.tensors[tensor].buffer for tensor in used if tensor >= 0}
        empty = schema.BufferT()
        model.buffers = [buffer if i in keep else empty for i, buffer in enumerate(model.buffers)]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())
