"""`deploy runs`"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from deploy.cli import common


@click.group(
    "runs",
    invoke_without_command=True,
    help="""List, show and export what was measured.""" + common.example("deploy runs", "deploy runs show last"),
)
@common.json_option
@click.pass_context
def command(context: click.Context, as_json: bool) -> None:
    if context.invoked_subcommand is None:
        context.invoke(list_, count=20, as_json=as_json)


@command.command("list", help="""List the runs, newest first.""" + common.example("deploy runs list --count 20"))
@click.option("--count", default=20, show_default=True, type=click.IntRange(1))
@common.json_option
@click.pass_obj
def list_(boards_file: str | None, count: int = 20, as_json: bool = False) -> None:
    rows = common.store_beside(boards_file).runs(count)
    if as_json:
        common.show_json(rows)
        return
    if not rows:
        common.note("no runs yet; `deploy measure` stores one")
        return
    table = common.new_table("run", "kind", "board", "bundle", "result", "status", "verdict", right=("result",))
    for row in rows:
        result, verdict = row["headline"] or "", row["verdict"] or ""
        table.add_row(row["id"], row["kind"], row["board"], row["bundle"], result, row["status"], verdict)
    common.show_table(table)


@command.command(
    "show", help="""Show a run.  RUN is an id, its beginning, or `last`.""" + common.example("deploy runs show last")
)
@click.argument("run", default="last")
@common.json_option
@click.pass_obj
def show(boards_file: str | None, run: str, as_json: bool) -> None:
    stored = common.store_of(common.registry(boards_file)).get(run)
    record = stored.record
    if as_json:
        common.show_json(record)
        return
    table = common.new_table("", "", title=f"{record['kind']} {record['id']}")
    table.show_header = False
    for key, value in summary(stored):
        table.add_row(key, value)
    common.show_table(table)


def summary(stored: Any) -> list[tuple[str, str]]:
    """What a person wants to know of a run, in the order in which they want to know it."""
    from types import SimpleNamespace

    from deploy.cli.measure import accelerator_lines, energy_lines, tail
    from deploy.results.stats import summarize

    record, d = stored.record, common.duration
    identity = record["board"]["identity"]
    rows = [
        ("status", record["status"] + (f": {record['reason']}" if record.get("reason") else "")),
        ("board", f"{record['board']['name']} ({identity.get('model') or identity.get('cpu') or identity['machine']})"),
        ("bundle", f"{record['bundle']['name']} {record['bundle']['digest'][:12]}"),
        ("made", record["created"]),
    ]
    restarts = stored.restarts("latency_ns")
    if restarts:
        latency = summarize(restarts)
        interval = f" [{d(latency.low_ns)}, {d(latency.high_ns)}]" if latency.low_ns and latency.high_ns else ""
        rows.append(("latency", f"median {d(latency.median_ns)}{interval}, n = {latency.n:,}"))
        rows.append(("", f"min {d(latency.min_ns)}  {tail(latency)}  max {d(latency.max_ns)}"))
    for line in accelerator_lines(record.get("accelerator")):
        rows.append(("accelerator", line))
    if "energy" in record:
        entries = [SimpleNamespace(**entry) for entry in record["energy"]]
        rows += [("energy", line) for line in energy_lines(entries, record["unmetered"])]
    if record.get("profile"):
        found = record["profile"]
        rows.append(("profile", f"{len(found['ops'])} operators or groups; the sum differs by {found['gap']:+.2%}"))
    if "accuracy" in record:
        a = record["accuracy"]
        rows.append(("accuracy", f"{a['correct'] / a['samples']:.2%} ({a['correct']} of {a['samples']})"))
    if "verification" in record:
        rows.append(("verified", record["headline"]))
    if record.get("runtime"):
        rows.append(("runtime", record["runtime"]))
    if record.get("verdict"):
        rows.append(("verdict", ", ".join(record["verdict"])))
    others = (record.get("state_after") or {}).get("others")
    if others:
        names = ", ".join(f"{process['name']} {process['cpus']:.2f}" for process in others["processes"])
        rows.append(
            ("others", f"{others['busy_cpus']:.2f} CPUs busy with other processes" + (f": {names}" * bool(names)))
        )
    rows.append(("arrays", ", ".join(f"{k} ({v['length']:,})" for k, v in record["arrays"].items()) or "none"))
    return rows


@command.command(
    "export",
    help="""
    Write a run with all its raw samples to a file: .json or .npz (everything), .csv or .parquet (one table, or array).

    Tables are `invocations`, `samples` of the meters, and `slices` of a profile.
    """
    + common.example("deploy runs export last -o run.json", "deploy runs export last -o power.csv --table samples"),
)
@click.argument("run", default="last")
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path))
@click.option("--table", "--array", "table", metavar="NAME", help="For .csv and .parquet [the run's first table].")
@click.pass_obj
def export(boards_file: str | None, run: str, out: Path, table: str | None) -> None:
    from deploy.results import export as exporting

    exporting.export(common.store_of(common.registry(boards_file)).get(run), out, table)
    common.show(f"{out}: {common.size(out.stat().st_size)}")
