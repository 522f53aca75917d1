"""`deploy inspect`"""

from __future__ import annotations

from pathlib import Path

import click

from deploy.cli import common


@click.command(
    "inspect",
    help="""Show what a .tflite or a bundle holds: inputs, outputs, operators, weights.  Nothing is run."""
    + common.example("deploy inspect net.bundle"),
)
@click.argument("path", type=click.Path(path_type=Path))
@common.json_option
def command(path: Path, as_json: bool) -> None:
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
    if as_json:
        common.show_json({"model": facts, "manifest": bundle.manifest if bundle else None})
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
