"""`deploy gate`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deploy.cli import common
from deploy.cli.compare import mix_options, require_alike
from deploy.cli.live import Live
from deploy.cli.measure import plan_from, plan_options, run

if TYPE_CHECKING:
    from deploy.results.store import Run, Store

EXIT = {"passed": 0, "failed": 3, "undecided": 4}


@click.command(
    "gate",
    help="""
    Pass or fail CANDIDATE against --baseline; each is a run, or a bundle that is measured now.

    Two bundles take turns on the board and are compared pair by pair: that is the way to tell 3 % apart on a machine
    that others use too.  A limit is kept when the measurements show it, and broken when the candidate is certainly
    worse and is not shown to keep it.  The exit code is 0 for passed, 3 for failed, 4 where they cannot tell.
    """
    + common.example(
        "deploy gate --baseline released.bundle --max-slowdown 3% --restarts 10 new.bundle",
        "deploy gate --baseline 20261121-101234-fc16 --max-slowdown 3% --max-energy 5% last --junit gate.xml",
    ),
)
@common.any_board_option
@common.kernels_option
@click.argument("candidate", default="last")
@click.option("--baseline", required=True, metavar="RUN|BUNDLE", help="What the candidate must not be worse than.")
@click.option("--max-slowdown", type=common.Share(0.0, 10.0), metavar="PERCENT", help="Limit on latency.")
@click.option("--max-energy", type=common.Share(0.0, 10.0), metavar="PERCENT", help="Limit on energy, of every rail.")
@click.option(
    "--undecided",
    type=click.Choice(["fail", "pass"]),
    default="fail",
    show_default=True,
    help="What becomes of the exit code when the measurements cannot tell.",
)
@click.option("--junit", type=click.Path(path_type=Path), metavar="FILE", help="Write the outcome as JUnit XML.")
@mix_options
@plan_options
@common.json_option
@click.pass_obj  # fmt: skip
def command(
    boards_file: str | None,
    /,
    board_name: str | None,
    candidate: str,
    baseline: str,
    max_slowdown: float | None,
    max_energy: float | None,
    undecided: str,
    junit: Path | None,
    as_json: bool,
    **options: Any,
) -> int:
    from deploy.errors import StoreError, UsageError
    from deploy.results import compare, gate

    if max_slowdown is None and max_energy is None:
        raise UsageError("no limit given", "`--max-slowdown 3%`, `--max-energy 5%`, or both")
    plan = plan_from(options)
    store = common.store_of(common.registry(boards_file))
    first, second = _runs(store, boards_file, board_name, baseline, candidate, plan)
    require_alike(first, second, options)
    judged = (gate.check_verdict(each.id, each.record.get("verdict") or ()) for each in (first, second))
    checks = [check for check in judged if check]
    if max_slowdown is not None:
        checks.append(gate.check(compare.latency_effect(first, second), max_slowdown))
    if max_energy is not None:
        checks += gate.check_energy(compare.energy_effects(first, second), first, second, max_energy)
    outcome = gate.outcome(checks)
    if junit:
        try:
            junit.write_bytes(gate.junit(f"{second.record['bundle']['name']}", checks, undecided == "fail"))
        except OSError as error:
            raise StoreError(f"{junit}: {error.strerror}") from None
    if as_json:
        common.show_json({"outcome": outcome, "baseline": first.id, "candidate": second.id, "checks": checks})
    else:
        for check in checks:
            common.show(f"{check.outcome:10} {check.name}: {check.text}")
        common.show(f"{outcome}: {second.id} against {first.id}")
    return 0 if outcome == gate.UNDECIDED and undecided == "pass" else EXIT[outcome]


def _runs(
    store: Store, boards_file: str | None, board_name: str | None, baseline: str, candidate: str, plan: Any
) -> tuple[Run, Run]:
    """The two runs; bundles are measured first, in turns where both are bundles."""
    paths = [Path(name) if Path(name).suffix in (".bundle", ".tflite") else None for name in (baseline, candidate)]
    ready = [None if path else store.get(name) for path, name in zip(paths, (baseline, candidate), strict=True)]
    bundles = [common.read_bundle(path) for path in paths if path]
    measured = iter(run(boards_file, board_name, bundles, plan, Live) if bundles else ())
    first, second = (known or store.get(next(measured)[1].id) for known in ready)
    return first, second
