"""`deploy verify`"""

from __future__ import annotations

from pathlib import Path

import click

from deploy.cli import common


@click.command(
    "verify",
    help="""
    Compare what a board answers with the golden vectors of BUNDLE, bit for bit, on the board.

    Passes when all is equal, or differs by no more than two correct runtimes may: one step for integers, 1e-4 of the
    largest value for floating point.  --exact passes nothing but equality.
    """
    + common.example("deploy verify --board local net.bundle"),
)
@common.any_board_option
@common.bundle_argument
@click.option("--exact", is_flag=True, help="Fail on any difference.")
@click.option("--threads", default=1, show_default=True, type=click.IntRange(1, 1024))
@common.kernels_option
@common.limit_option
@common.json_option
@click.pass_obj
def command(
    boards_file: str | None,
    board_name: str | None,
    bundle_path: Path,
    exact: bool,
    threads: int,
    limit_s: float | None,
    as_json: bool,
) -> int:
    from dataclasses import asdict

    from deploy import accelerate
    from deploy.errors import BundleError, GoldenMismatch
    from deploy.verify import verify

    bundle = common.read_bundle(bundle_path)
    if bundle.manifest.golden is None:
        raise BundleError(f"{bundle_path} has no golden vectors", "`deploy build` without --no-golden makes them")
    settings = {"exact": exact, "threads": threads}
    with common.on_board(boards_file, board_name, bundle) as on, on.stored("verify", settings) as writer:
        board_name = on.board.name
        result = verify(on.session, bundle, threads, limit_s)
        good = result.exact if exact else result.passed
        writer.set(
            verification=asdict(result),
            verdict=accelerate.verdict(result.accelerator) if good else ["differs"],
            accelerator=result.accelerator,
            headline="bit-exact" if result.exact else f"{result.differing} of {result.elements} differ",
        )
    if as_json:
        common.show_json({"run": writer.id, "board": board_name, "bundle": bundle.digest, "exact": result.exact,
                          **asdict(result)})  # fmt: skip
        return 0 if good else 1
    if not good:
        raise GoldenMismatch(f"{bundle.name} on {board_name}: {result.summary}", f"stored as {writer.id}")
    common.show(f"{bundle.name} on {board_name}: {result.summary}" + (f", by {result.path}" if result.exact else ""))
    common.show(f"stored: {writer.id}")
    return 0
