"""Export: other programs find every value of a run, under the names that the README states."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.errors import UsageError
from deploy.results.export import export
from deploy.results.scatter import Point, pareto, points
from deploy.results.store import Run, Store

RAILS = [{"name": "VDD_IN", "chip": "ina3221", "quantity": "power_mw"},
         {"name": 'odd,"name"', "chip": "rapl", "quantity": "energy_uj"}]  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "results")


def run(store: Store, kind: str = "measure", bundle: str = "net", host: Any = None, **record: Any) -> Run:
    described = {"name": bundle, "digest": bundle, "host_accuracy": host}
    known = {"board": {"name": "pi"}, "bundle": described, "rails": RAILS}
    with store.writer(kind, {**known, **record}) as writer:
        writer.append("latency_ns.1", np.array([30, 10]), "ns")
        writer.append("latency_ns.2", np.array([20]), "ns")
        writer.append("sample_t_ns", np.array([5, 6]), "ns")
        writer.append("sample_rail", np.array([0, 1]), "index in rails")
        writer.append("sample_value", np.array([1.5, 0.1]), "mW or uJ, see rails")
    return store.get(writer.id)


def rows(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_csv_holds_every_invocation_with_its_restart(store: Store, tmp_path: Path) -> None:
    export(run(store), tmp_path / "run.csv")

    header, *values = rows(tmp_path / "run.csv")
    assert ["restart", "invocation", "latency_ns"] == header
    assert [["1", "1", "30"], ["1", "2", "10"], ["2", "1", "20"]] == values


def test_service_times_stand_beside_latencies_where_there_was_a_schedule(store: Store, tmp_path: Path) -> None:
    with store.writer("measure", {"board": {"name": "pi"}, "bundle": {"name": "n", "digest": "d"}}) as writer:
        writer.append("latency_ns.1", np.array([30, 10]), "ns")
        writer.append("service_ns.1", np.array([3, 1]), "ns")

    export(store.get(writer.id), tmp_path / "run.csv")

    assert [["1", "1", "30", "3"], ["1", "2", "10", "1"]] == rows(tmp_path / "run.csv")[1:]


def test_samples_carry_the_name_of_their_rail_whatever_it_is(store: Store, tmp_path: Path) -> None:
    export(run(store), tmp_path / "power.csv", "samples")

    assert [
        ["t_ns", "rail", "chip", "quantity", "value"],
        ["5", "VDD_IN", "ina3221", "power_mw", "1.5"],
        ["6", 'odd,"name"', "rapl", "energy_uj", "0.1"],
    ] == rows(tmp_path / "power.csv")


def test_a_single_array_can_be_taken_out(store: Store, tmp_path: Path) -> None:
    export(run(store), tmp_path / "one.csv", "latency_ns.2")

    assert [["latency_ns.2"], ["20"]] == rows(tmp_path / "one.csv")


def test_slices_of_a_profile_are_a_table_too(store: Store, tmp_path: Path) -> None:
    with store.writer("profile", {"board": {"name": "pi"}, "bundle": {"name": "n", "digest": "d"}}) as writer:
        for name, values in (("ns", [7, 8, 9]), ("length", [2, 1]), ("sweep", [0, 0]), ("operators", [1, -1])):
            writer.append(f"profile_{name}.1", np.array(values), "")

    export(store.get(writer.id), tmp_path / "slices.csv")

    assert [["1", "0", "1", "7"], ["1", "0", "1", "8"], ["1", "0", "-1", "9"]] == rows(tmp_path / "slices.csv")[1:]


def test_json_holds_the_record_and_every_array(store: Store, tmp_path: Path) -> None:
    exported = run(store)
    export(exported, tmp_path / "run.json")

    found = json.loads((tmp_path / "run.json").read_text())
    assert {
        **exported.record,
        "arrays": {name: exported.array(name).tolist() for name in exported.record["arrays"]},
    } == found


def test_parquet_says_the_same_as_csv(store: Store, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow: `pip install 'deploy-hil[report]'`")
    exported = run(store)
    for table in ("invocations", "samples"):
        export(exported, tmp_path / "t.parquet", table)
        export(exported, tmp_path / "t.csv", table)

        read = parquet.read_table(tmp_path / "t.parquet")
        columns = [[str(value) for value in column] for column in read.to_pydict().values()]
        assert rows(tmp_path / "t.csv") == [read.column_names, *map(list, zip(*columns, strict=True))]


@pytest.mark.parametrize(
    ("file", "what", "expected"),
    [
        ("run.xml", None, "export writes .json, .npz, .csv or .parquet"),
        ("run.csv", "sample", "has no table or array 'sample'; did you mean 'samples'?"),
        ("run.csv", "slices", "has no slices"),
    ],
)
def test_what_cannot_be_exported_is_named(
    store: Store, tmp_path: Path, file: str, what: str | None, expected: str
) -> None:
    with pytest.raises(UsageError) as caught:
        export(run(store), tmp_path / file, what)

    assert expected in str(caught.value)


# Among the other runs


def latency(median: float) -> dict[str, Any]:
    return {"latency": {"median_ns": median}}


def test_a_bundle_is_a_point_with_what_was_last_found_of_it(store: Store) -> None:
    energy = [{"rail": "VDD_IN", "net_uj": 41.0, "source": "measured:ina3221@VDD_IN", "primary": True},
              {"rail": "VDD_SOC", "net_uj": 7.0, "source": "measured:ina3221@VDD_SOC"}]  # fmt: skip
    measured = run(store, **latency(5.0), energy=energy)
    other = run(store, bundle="b", host={"correct": 9, "samples": 10}, **latency(7.0))
    run(store, kind="evaluate", accuracy={"correct": 3, "samples": 4})
    run(store, board={"name": "another"}, **latency(1.0))

    assert {
        Point(measured.id, "net", 5.0, 0.75, 41.0),
        Point(other.id, "b", 7.0, 0.9, None),
    } == set(points(store, "pi"))


def test_the_pareto_front_holds_what_nothing_beats() -> None:
    values = [("slow", 9.0, 0.9), ("fast", 1.0, 0.5), ("beaten", 2.0, 0.5), ("middle", 3.0, 0.8), ("same", 3.0, 0.7)]
    made = [Point(name, name, fast, right, None) for name, fast, right in values]

    assert ["fast", "middle", "slow"] == [point.name for point in pareto(made)]
    assert [] == pareto([])
