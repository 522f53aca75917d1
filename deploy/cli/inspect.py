"""`deploy inspect`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deploy.cli import common

if TYPE_CHECKING:
    from deploy.bundle import Bundle
    from deploy.model_file import Layer, ModelFacts, Oddity


@click.command(
    "inspect",
    help="""
    Show what a .tflite or a bundle holds: inputs, outputs, operators, weights, multiply-accumulates, memory, and what
    is odd about its quantization.  Nothing is run.

    With --data the samples go through it, here, and ranges that they leave or do not fill are named.

    With --board it is loaded there, and the table says for each node that our kernels know which one runs it and why;
    on a board with the accelerator, for each node whether that runs it, and why not.
    """
    + common.example(
        "deploy inspect net.bundle",
        "deploy inspect --layers net.tflite",
        "deploy inspect --data images.npz net.bundle",
        "deploy inspect --board local net.bundle",
    ),
)
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--layers", "by_layer", is_flag=True, help="Show every operator with what it costs.")
@click.option("--data", metavar="DATA", help="Look at what these samples make of the ranges.")
@click.option("--preprocess", metavar="HOW", help="Instead of the bundle's: raw, unit, symmetric or SCALE,OFFSET.")
@click.option("--count", default=100, show_default=True, type=click.IntRange(1), help="Samples of --data to look at.")
@click.option("--board", "-b", "board_name", metavar="NAME", help="Show which kernels would run on this board.")
@common.strict_option
@common.kernels_option
@common.json_option
@click.pass_obj
def command(
    boards_file: str | None,
    path: Path,
    by_layer: bool,
    data: str | None,
    preprocess: str | None,
    count: int,
    board_name: str | None,
    as_json: bool,
) -> None:
    if board_name:
        _on_board(boards_file, board_name, path, as_json)
    else:
        _file(path, by_layer, data, preprocess, count, as_json)


def _on_board(boards_file: str | None, board_name: str, path: Path, as_json: bool) -> None:
    from deploy import accelerate, inference

    bundle = common.read_bundle(path)
    with common.on_board(boards_file, board_name, bundle) as on:
        model = inference.load(on.session, bundle=bundle.digest, subject=bundle.name)
        inference.unload(on.session, bundle.name)
        identity = on.session.hello["identity"]
        why_off = on.session.kernels.why_off
    if as_json:
        common.show_json(
            {"board": board_name, "bundle": bundle.digest, "runtime": model.runtime, "nodes": model.kernels,
             "kernels_off": why_off, "cpu_features": identity.get("cpu_features", []), "accelerator": model.accelerator}
        )  # fmt: skip
        return
    common.show(f"{bundle.name} on {board_name}: {model.runtime}, {_cpu(identity)}")
    if model.accelerator:
        common.show(f"{accelerate.summary(model.accelerator)}; overlay {model.accelerator['overlay']}")
    if model.kernels is None:
        common.show(f"our kernels are off: {why_off or 'as asked'}; the stock runtime runs every node")
        return
    beside = "reference kernels" if model.accelerator and not model.accelerator["why"] else "stock runtime"
    table = common.new_table("node", "operator", "runs on", "resident", "why", right=("node", "resident"))
    for node in model.kernels:
        held = common.size(node["packed_bytes"]) if node.get("kernel") and "packed_bytes" in node else ""
        table.add_row(str(node["node"]), node["op"], node.get("kernel") or beside, held, node["reason"])
    common.show_table(table)


def _cpu(identity: dict[str, Any]) -> str:
    features = ", ".join(identity.get("cpu_features", [])) or "no feature that our kernels know"
    return f"{identity.get('model') or identity['machine']} ({features})"


def _file(path: Path, by_layer: bool, samples: str | None, preprocess: str | None, count: int, as_json: bool) -> None:
    from deploy import bundle as bundles
    from deploy import model_file
    from deploy.errors import BundleError

    bundle = None
    if path.suffix.lower() == ".tflite":
        try:
            data = path.read_bytes()
        except OSError as error:
            raise BundleError(f"{path}: {error.strerror}") from None
    else:
        bundle = bundles.read(path)
        data = bundle.model
    facts = model_file.read(data, path.name)
    layers = model_file.layers(data, path.name)
    cost, arena = model_file.cost(layers), model_file.arena(data, path.name)
    odd = model_file.oddities(data, path.name)
    if samples:
        odd += _met(data, path.name, facts, bundle, samples, preprocess, count)
    if as_json:
        common.show_json(
            {"model": facts, "manifest": bundle.manifest if bundle else None, "layers": layers, "cost": cost,
             "arena": arena, "oddities": odd}
        )  # fmt: skip
        return
    common.show(f"{path}: model of {common.size(facts.bytes)}, {sum(facts.ops.values())} operators")
    if bundle:
        m = bundle.manifest
        common.show(f"bundle   {m.name}, digest {bundle.digest}")
        made = [m.recipe.get("recipe", "?"), f"from {m.recipe.get('source')}", f"seed {m.seed}"]
        made += [f"data {m.recipe['data']}"] if m.recipe.get("data") else []
        common.show("recipe   " + ", ".join(made))
        if m.accuracy:
            common.show(
                f"accuracy {m.accuracy['correct'] / m.accuracy['samples']:.2%} of {m.accuracy['samples']} samples, "
                f"by {m.accuracy['runtime']} on the host"
            )
        if m.preprocess:
            common.show(f"fed      x * {m.preprocess['scale']:.6g} + {m.preprocess['offset']:.6g}")
        golden = f"{m.golden['vectors']} vectors by {m.golden['runtime']}" if m.golden else "none"
        common.show(f"golden   {golden}")
    table = common.new_table("", "name", "dtype", "shape", "scale", "zero point", right=("scale", "zero point"))
    for what, infos in (("input", facts.inputs), ("output", facts.outputs)):
        for info in infos:
            quantized = (f"{info.scale:.6g}", str(info.zero_point)) if info.scale else ("", "")
            table.add_row(what, info.name, info.dtype, str(list(info.shape)), *quantized)
    common.show_table(table)
    table = common.new_table("operator", "count", right=("count",))
    for op, count in facts.ops.items():
        table.add_row(op, str(count))
    common.show_table(table)
    table = common.new_table("constants", "tensors", "bytes", "zeros", right=("tensors", "bytes", "zeros"))
    for weights in facts.weights:
        zeros = "" if weights.zeros is None else f"{weights.zeros:.1%}"
        table.add_row(weights.dtype, str(weights.tensors), f"{weights.bytes:,}", zeros)
    common.show_table(table)
    extras = [
        "one scale per channel" if facts.per_channel else "",
        f"{facts.sparse} tensors in a sparse encoding" if facts.sparse else "",
        f"{facts.subgraphs} subgraphs" if facts.subgraphs > 1 else "",
        f"signatures {', '.join(facts.signatures)}" if len(facts.signatures) > 1 else "",
    ]
    if any(extras):
        common.show("; ".join(filter(None, extras)))
    if by_layer:
        _layers(layers)
    besides = f", without {', '.join(cost.uncounted)}" if cost.uncounted else ""
    common.show(f"MACs     {cost.macs:,} an invocation{besides}")
    common.show(f"weights  {cost.parameters:,} parameters")
    unknown = f", without {arena.unknown} tensors of unknown size" if arena.unknown else ""
    common.show(f"arena    {common.size(arena.bytes)} for activations, estimated{unknown}")
    for oddity in odd:
        common.show(f"odd      {oddity.where}: {oddity.what} ({oddity.code})")


def _layers(layers: tuple[Layer, ...]) -> None:
    right = ("", "MACs", "parameters", "bytes", "zeros")
    table = common.new_table("", "operator", "output", "shape", "weights", *right[1:], right=right)
    for layer in layers:
        number = str(layer.index) if layer.subgraph == 0 else f"{layer.subgraph}:{layer.index}"
        macs = "?" if layer.macs is None else f"{layer.macs:,}" if layer.macs else ""
        weights = layer.dtype if layer.parameters else ""
        held = (f"{layer.parameters:,}", f"{layer.bytes:,}") if layer.parameters else ("", "")
        zeros = "" if layer.zeros is None else f"{layer.zeros:.0%}"
        table.add_row(number, layer.op, layer.name, str(list(layer.shape)), weights, macs, *held, zeros)
    common.show_table(table)


def _met(
    data: bytes, name: str, facts: ModelFacts, bundle: Bundle | None, samples: str, preprocess: str | None, count: int
) -> tuple[Oddity, ...]:
    from deploy import model_file
    from deploy.data import feed, load, parse_preprocess, refuse_ambiguous
    from deploy.errors import BadInput

    test = load(samples, "test")
    if len(facts.inputs) != 1:
        raise BadInput(f"{name}: data can feed a model with one input; this one has {len(facts.inputs)}")
    how = parse_preprocess(preprocess) if preprocess else bundle.manifest.preprocess if bundle else None
    if how is None:
        refuse_ambiguous(test.x, facts.inputs[0], test.source)
    met = model_file.observe(data, feed(test.x[:count], facts.inputs[0], how), name)
    return model_file.observed(data, name, met)
