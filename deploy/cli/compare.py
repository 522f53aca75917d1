"""`deploy compare`"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from deploy.cli import common

if TYPE_CHECKING:
    from deploy.results.compare import Effect
    from deploy.results.store import Run

F = TypeVar("F", bound=Callable[..., Any])
_ALIKE = ("boards", "clocks", "threads", "runtimes", "times", "schedules", "scopes")


def mix_options(function: F) -> F:
    """``--mix-boards`` and so on; `require_alike` reads them."""
    for name in reversed(_ALIKE):
        function = click.option(f"--mix-{name}", is_flag=True, help=f"Compare although {name} differ.")(function)
    return function


def require_alike(first: Run, second: Run, options: dict[str, Any]) -> None:
    """
    Refuse runs that differ in more than their bundle, but for what the options allow.

    Raises:
        UsageError: they do, and in what.
    """
    from deploy.errors import UsageError
    from deploy.results.compare import ALIKE, unlike

    for name, what in unlike(first.record, second.record).items():
        if not options[f"mix_{name}"]:
            raise UsageError(
                f"{second.id} was {ALIKE[name]} than {first.id}: {what}", f"`--mix-{name}` compares them all the same"
            )


@click.command(
    "compare",
    help="""
    Compare each RUN with the first: the ratio of their latencies and energies, with its 95 % interval.

    Runs that took turns (`deploy measure A B --interleave`) are compared pair by pair, others by their restarts.  Runs
    that differ in more than their bundle are refused; the --mix options say what may differ.
    """
    + common.example("deploy compare 20261121-101234-fc16 last"),
)
@click.argument("runs", metavar="RUN RUN...", nargs=-1, required=True)
@mix_options
@common.json_option
@click.pass_obj
def command(boards_file: str | None, /, runs: tuple[str, ...], as_json: bool, **options: Any) -> None:
    from deploy.errors import UsageError
    from deploy.results.compare import energy_effects, latency_effect

    if len(runs) < 2:
        raise UsageError("there is nothing to compare with", "`deploy compare RUN RUN`")
    store = common.store_of(common.registry(boards_file))
    first, *others = [store.get(run) for run in runs]
    compared = []
    for other in others:
        require_alike(first, other, options)
        compared.append((other, [latency_effect(first, other), *energy_effects(first, other)]))
    if as_json:
        common.show_json([{"first": first.id, "second": other.id, "effects": effects} for other, effects in compared])
        return
    table = common.new_table("run", "bundle", "quantity", "value", "change", "95 %", "how", "verdict")
    table.add_row(first.id, first.record["bundle"]["name"], "", "", "", "", "", _verdict(first))
    for other, effects in compared:
        for effect in effects:
            table.add_row(other.id, other.record["bundle"]["name"], *_cells(effect), _verdict(other))
    common.show_table(table)


def _cells(effect: Effect) -> list[str]:
    shown = common.duration if effect.quantity == "latency" else common.energy
    interval = (
        "n/a" if effect.low is None or effect.high is None else f"{effect.low - 1:+.2%} to {effect.high - 1:+.2%}"
    )
    how = f"{effect.n} {'pairs' if effect.paired else 'restarts each'}"
    value = f"{shown(effect.first)} -> {shown(effect.second)}"
    return [effect.quantity, value, f"{effect.ratio - 1:+.2%}", interval, how]


def _verdict(run: Run) -> str:
    verdict = run.record.get("verdict") or ()
    return ", ".join(verdict) if not isinstance(verdict, str) else verdict
