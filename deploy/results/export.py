"""
Runs as files for other programs: JSON and .npz with everything, CSV and Parquet with one table.

Tables of a run, a row each:

    invocations   restart, invocation (both from 1), latency_ns, and service_ns where `--rate` scheduled the starts
    samples       t_ns, rail, chip, quantity (power_mw or energy_uj), value
    slices        of a profile: restart, sweep, operators (-1 is the untouched model), latency_ns
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.errors import StoreError, UsageError, nearest
from deploy.results.store import Run

Table = dict[str, NDArray[Any]]


def export(run: Run, out: Path, what: str | None = None) -> None:
    """
    Write a run, in the format that the ending of `out` names.

    Args:
        what: for CSV and Parquet, a table or one array of the run; None is the first table that the run has.

    Raises:
        UsageError: an unknown ending, table or array.
        StoreError: the file cannot be written, or pyarrow is missing.
    """
    try:
        if out.suffix == ".json":
            arrays = {name: run.array(name).tolist() for name in run.record["arrays"]}
            out.write_text(json.dumps({**run.record, "arrays": arrays}) + "\n")
        elif out.suffix == ".npz":
            with out.open("wb") as file:
                np.savez_compressed(file, allow_pickle=False, **{n: run.array(n) for n in run.record["arrays"]})
        elif out.suffix == ".csv":
            _write_csv(_chosen(run, what), out)
        elif out.suffix == ".parquet":
            _write_parquet(_chosen(run, what), out, run)
        else:
            raise UsageError(f"{out}: export writes .json, .npz, .csv or .parquet")
    except OSError as error:
        raise StoreError(f"{out}: {error.strerror or error}") from None


def _chosen(run: Run, what: str | None) -> Table:
    if what in run.record["arrays"]:
        return {str(what): run.array(str(what))}
    if what is not None and what not in TABLES:
        raise UsageError(
            f"run {run.id} has no table or array {what!r}{nearest(what, [*TABLES, *run.record['arrays']])}"
        )
    tables = (make(run) for name, make in TABLES.items() if what in (None, name))
    found = next((table for table in tables if table), None)
    if found is None:
        raise UsageError(f"run {run.id} has no {what or 'table'}", "`deploy runs show` lists its arrays")
    return found


def _invocations(run: Run) -> Table:
    latencies, service = run.restarts("latency_ns"), run.restarts("service_ns")
    if not latencies:
        return {}
    lengths = [len(restart) for restart in latencies]
    table = {
        "restart": np.repeat(np.arange(1, len(lengths) + 1), lengths),
        "invocation": np.concatenate([np.arange(1, length + 1) for length in lengths]),
        "latency_ns": np.concatenate(latencies),
    }
    return {**table, "service_ns": np.concatenate(service)} if service else table


def _samples(run: Run) -> Table:
    t_ns, rail, value = (run.array(f"sample_{name}") for name in ("t_ns", "rail", "value"))
    if not len(t_ns):
        return {}
    rails = run.record["rails"]
    described = {("rail" if key == "name" else key): np.array([r[key] for r in rails]) for key in _RAIL}
    return {"t_ns": t_ns, **{key: names[rail] for key, names in described.items()}, "value": value}


_RAIL = ("name", "chip", "quantity")


def _slices(run: Run) -> Table:
    columns: dict[str, list[NDArray[Any]]] = {"restart": [], "sweep": [], "operators": [], "latency_ns": []}
    lengths = run.restarts("profile_length")
    for number, (length, sweep, operators, values) in enumerate(
        zip(*(lengths, *(run.restarts(f"profile_{n}") for n in ("sweep", "operators", "ns"))), strict=True), start=1
    ):
        columns["restart"].append(np.full(int(length.sum()), number))
        columns["sweep"].append(np.repeat(sweep, length))
        columns["operators"].append(np.repeat(operators, length))
        columns["latency_ns"].append(values)
    return {name: np.concatenate(parts) for name, parts in columns.items()} if lengths else {}


TABLES: dict[str, Callable[[Run], Table]] = {
    "invocations": _invocations,
    "samples": _samples,
    "slices": _slices,
}


def _write_csv(table: Table, out: Path) -> None:
    columns = [column.tolist() for column in table.values()]
    with out.open("w", encoding="utf-8") as file:
        file.write(",".join(table) + "\n")
        file.writelines(",".join(map(_cell, row)) + "\n" for row in zip(*columns, strict=True))


def _cell(value: Any) -> str:
    if isinstance(value, str) and any(c in value for c in ',"\n\r'):
        return '"' + value.replace('"', '""') + '"'
    return repr(value) if isinstance(value, float) else str(value)


def _write_parquet(table: Table, out: Path, run: Run) -> None:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise StoreError("Parquet needs pyarrow", "`pip install 'deploy-hil[report]'`") from None
    about = {"run": run.id, "board": run.record["board"]["name"], "bundle": run.record["bundle"]["name"]}
    made = pyarrow.table({name: pyarrow.array(column) for name, column in table.items()}).replace_schema_metadata(about)
    parquet.write_table(made, out, compression="zstd")
