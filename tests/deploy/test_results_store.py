"""The results store: what arrived is kept, what is kept does not change."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.errors import StoreError
from deploy.results.store import Run, RunWriter, Store
from tests.conftest import GOLDEN, ROOT

KNOWN = {"board": {"name": "pi"}, "bundle": {"name": "net", "digest": "ab" * 32}, "deploy": "0.1.0"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "results")


def stored(store: Store, name: str | None = None, kind: str = "measure", **record: Any) -> Run:
    """A complete run with one array; `name` becomes its id."""
    with store.writer(kind, {**KNOWN, **record}) as writer:
        writer.append("latency_ns.1", np.array([3, 1, 2]), "ns")
    if name is None:
        return store.get(writer.id)
    shutil.move(store.root / writer.id, store.root / name)
    path = store.root / name / "record.json"
    record = json.loads(path.read_text())
    path.unlink()
    path.write_text(json.dumps({**record, "id": name}))
    return store.get(name)


def listed(store: Store) -> list[str]:
    return [row["id"] for row in store.runs()]


def refusal(store: Store, run: str) -> str:
    with pytest.raises(StoreError) as caught:
        store.get(run)
    return str(caught.value)


# Writing


def test_a_run_that_ends_is_complete_and_holds_what_it_was_given(store: Store) -> None:
    with store.writer("measure", KNOWN) as writer:
        writer.append("latency_ns.1", np.array([3, 1, 2]), "ns")
        writer.append("latency_ns.1", np.array([5], np.int32), "ns")
        writer.append("sample_value", np.array([0.5], np.float32), "mW")
        writer.set(verdict=["ok"], headline="3 ns")

    run = store.get(writer.id)
    assert KNOWN.items() <= run.record.items()
    assert (2, "measure", "complete", None) == tuple(run.record[k] for k in ("schema", "kind", "status", "reason"))
    np.testing.assert_array_equal(np.array([3, 1, 2, 5], np.int64), run.array("latency_ns.1"), strict=True)
    np.testing.assert_array_equal(np.array([0.5]), run.array("sample_value"), strict=True)
    assert ("ns", 4, "<i8") == tuple(run.record["arrays"]["latency_ns.1"][k] for k in ("unit", "length", "dtype"))


def test_an_array_of_which_nothing_came_is_empty(store: Store) -> None:
    assert 0 == len(stored(store).array("warmup_ns.1"))


def test_restarts_come_in_the_order_of_their_numbers(store: Store) -> None:
    with store.writer("measure", KNOWN) as writer:
        for number in (2, 10, 1):
            writer.append(f"latency_ns.{number}", np.array([number]), "ns")

    assert [[1], [2], [10]] == [r.tolist() for r in store.get(writer.id).restarts("latency_ns")]
    assert [] == store.get(writer.id).restarts("warmup_ns")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("board 'pi' sent nothing for 5 s"), "board 'pi' sent nothing for 5 s"),
        (KeyboardInterrupt(), "interrupted (Ctrl-C)"),
    ],
    ids=["error", "Ctrl-C"],
)
def test_a_run_that_breaks_off_keeps_what_had_arrived_and_says_why(
    store: Store, error: BaseException, reason: str
) -> None:
    with pytest.raises(type(error)) as caught, store.writer("measure", KNOWN) as writer:
        writer.append("latency_ns.1", np.array([3, 1, 2]), "ns")
        raise error

    run = store.get(writer.id)
    assert error is caught.value
    assert ("incomplete", reason) == (run.record["status"], run.record["reason"])
    assert [3, 1, 2] == run.array("latency_ns.1").tolist()
    assert ["incomplete"] == [row["status"] for row in store.runs()]


def test_a_run_of_which_nothing_arrived_is_dropped(store: Store) -> None:
    with pytest.raises(ValueError, match="no such board"), store.writer("measure", KNOWN):
        raise ValueError("no such board")

    assert [] == listed(store)
    assert ["index.sqlite"] == os.listdir(store.root)


def test_a_run_without_arrays_that_ends_is_kept(store: Store) -> None:
    """`verify` has a record and no samples."""
    with store.writer("verify", KNOWN) as writer:
        writer.set(verdict="bit-exact")

    assert [("verify", "bit-exact")] == [(row["kind"], row["verdict"]) for row in store.runs()]
    assert writer.id == store.get("last").id


def test_a_run_whose_host_died_is_listed_with_what_had_arrived(store: Store) -> None:
    """Killed, so that nothing of ours runs any more: as a power failure would."""
    program = (
        "import os, signal, sys; import numpy as np; from pathlib import Path;"
        "from deploy.results.store import Store; from tests.deploy.test_results_store import KNOWN;"
        "writer = Store(Path(sys.argv[1])).writer('measure', KNOWN);"
        "writer.append('latency_ns.1', np.array([3, 1, 2]), 'ns');"
        "writer.append('sample_value', np.array([0.5]), 'mW');"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program, store.root], check=False, env=environment)
    assert -signal.SIGKILL == done.returncode

    ((row,), run) = (store.runs(), store.get("last"))

    assert ("incomplete", "pi", run.id) == (row["status"], row["board"], row["id"])
    assert "the host ended" == run.record["reason"]
    assert [3, 1, 2] == run.array("latency_ns.1").tolist()
    assert [0.5] == run.array("sample_value").tolist()
    assert [[3, 1, 2]] == [r.tolist() for r in run.restarts("latency_ns")]


def test_samples_are_on_disk_when_append_returns(store: Store) -> None:
    with store.writer("measure", KNOWN) as writer:
        writer.append("latency_ns.1", np.array([3, 1]), "ns")

        assert 16 == (store.root / writer.id / "latency_ns.1.bin").stat().st_size


def test_a_folder_that_cannot_be_written_is_an_error_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(StoreError) as caught:
        Store(tmp_path / "file" / "results").writer("measure", KNOWN)

    assert str(caught.value).startswith(f"{tmp_path}/file/results/")
    assert str(caught.value).endswith(": Not a directory")
    assert "$DEPLOY_RESULTS names another folder for results" == caught.value.hint


# Never changed afterwards


def test_a_stored_run_cannot_be_written_to(store: Store) -> None:
    run = stored(store)

    assert {"record.json": 0o444, "latency_ns.1.z": 0o444} == {
        path.name: path.stat().st_mode & 0o777 for path in run.folder.iterdir()
    }


def test_an_array_that_was_changed_is_noticed(store: Store) -> None:
    run = stored(store)
    path = run.folder / "latency_ns.1.z"
    path.chmod(0o644)
    path.write_bytes(np.array([2, 1, 2]).tobytes())

    with pytest.raises(StoreError) as caught:
        run.array("latency_ns.1")

    assert f"{path}: changed since it was written" == str(caught.value)


def test_an_array_that_is_gone_is_named(store: Store) -> None:
    run = stored(store)
    (run.folder / "latency_ns.1.z").unlink()

    with pytest.raises(StoreError) as caught:
        run.array("latency_ns.1")

    assert f"{run.folder}/latency_ns.1.z: No such file or directory" == str(caught.value)


# Finding


def test_runs_are_listed_newest_first(store: Store) -> None:
    for name in ("20260301-120000-aaaa", "20260303-120000-bbbb", "20260302-120000-cccc"):
        stored(store, name)

    assert ["20260303-120000-bbbb", "20260302-120000-cccc", "20260301-120000-aaaa"] == listed(store)
    assert listed(store) == [run.id for run in store]


def test_the_index_is_made_again_from_the_folders(store: Store) -> None:
    stored(store, verdict=["throttled", "not-steady"], headline="3 ns")
    before = store.runs()
    (store.root / "index.sqlite").unlink()

    assert before == store.runs()
    assert ("throttled, not-steady", "3 ns") == (before[0]["verdict"], before[0]["headline"])


def test_a_run_that_was_deleted_leaves_the_index_and_one_that_was_copied_in_joins_it(
    store: Store, tmp_path: Path
) -> None:
    mine, other = stored(store), stored(Store(tmp_path / "other"), "20990101-000000-ffff")
    shutil.rmtree(mine.folder)
    shutil.copytree(other.folder, store.root / other.id)

    assert [other.id] == listed(store)


def test_a_run_that_was_listed_before_its_end_is_listed_as_it_ended(store: Store) -> None:
    """Also where the index could not be written when the run ended."""

    class Locked(Store):
        def index(self, record: Any) -> None:
            pass

    with Locked(store.root).writer("measure", KNOWN) as writer:
        assert ["incomplete"] == [row["status"] for row in store.runs()]
        writer.set(headline="3 ns")

    assert [("complete", "3 ns")] == [(row["status"], row["headline"]) for row in store.runs()]


def test_a_damaged_record_that_was_mended_is_listed_again(store: Store) -> None:
    run = stored(store)
    record = (run.folder / "record.json").read_text()
    (store.root / "index.sqlite").unlink()
    (run.folder / "record.json").chmod(0o644)
    (run.folder / "record.json").write_text("{")
    assert ["damaged"] == [row["status"] for row in store.runs()]
    (run.folder / "record.json").write_text(record)

    assert ["complete"] == [row["status"] for row in store.runs()]


def test_an_empty_store_has_no_runs_and_is_not_made_by_looking(store: Store) -> None:
    assert [] == store.runs()
    assert not store.root.exists()
    with pytest.raises(StoreError) as caught:
        store.get("last")
    assert f"no run 'last' in {store.root}" == str(caught.value)
    assert "`deploy measure` stores one" == caught.value.hint


def test_a_run_is_found_by_the_beginning_of_its_id_or_as_the_last(store: Store) -> None:
    for name in ("20260301-120000-aaaa", "20260302-120000-bbbb"):
        stored(store, name)

    assert "20260301-120000-aaaa" == store.get("20260301").id
    assert "20260302-120000-bbbb" == store.get("last").id == store.get("20260302-120000-bbbb").id


def test_a_beginning_that_several_runs_share_lists_them(store: Store) -> None:
    for name in ("20260301-120000-aaaa", "20260301-120000-bbbb"):
        stored(store, name)

    assert "run '20260301' can be 20260301-120000-bbbb, 20260301-120000-aaaa" == refusal(store, "20260301")


def test_an_unknown_run_suggests_the_nearest(store: Store) -> None:
    stored(store, "20260301-120000-aaaa")

    assert f"no run '20260301-120000-aaab' in {store.root}; did you mean '20260301-120000-aaaa'?" == refusal(
        store, "20260301-120000-aaab"
    )


# Formats


def test_a_record_of_another_schema_is_refused(store: Store) -> None:
    run = stored(store, "20260301-120000-aaaa")
    (run.folder / "record.json").write_text(json.dumps({**run.record, "schema": 3}))

    assert f"{run.folder}/record.json: schema 3; this version reads 1 and 2" == refusal(store, "last")


def test_a_record_that_is_damaged_is_named(store: Store) -> None:
    run = stored(store, "20260301-120000-aaaa")
    (run.folder / "record.json").write_text("{")

    assert refusal(store, "last").startswith(f"{run.folder}/record.json: ")


def test_a_record_of_version_1_stays_readable(store: Store) -> None:
    """Written by the first release: on `local`, two restarts, a counter as the meter."""
    shutil.copytree(GOLDEN / "record_v1", store.root)

    (row,), run = store.runs(), store.get("20261121-100000-0001")

    assert {
        "id": "20261121-100000-0001",
        "created": "2026-11-21T10:00:00+00:00",
        "kind": "measure",
        "board": "local",
        "bundle": "digits",
        "digest": "1f" * 32,
        "status": "complete",
        "verdict": "too-few-samples",
        "headline": "20 us",
        "cell": None,
    } == row
    assert [[20100, 20000, 19900], [20300, 20200]] == [r.tolist() for r in run.restarts("latency_ns")]
    assert [[31000], [30500]] == [r.tolist() for r in run.restarts("warmup_ns")]
    assert [1000, 2000, 3000] == run.array("sample_t_ns").tolist()
    assert [0, 0, 0] == run.array("sample_rail").tolist()
    assert [5.0, 6.5, 8.0] == run.array("sample_value").tolist()
    assert 5 == run.record["latency"]["n"]


def test_a_record_of_version_2_stays_readable(store: Store) -> None:
    """Its arrays are packed, in both ways that there are."""
    shutil.copytree(GOLDEN / "record_v2", store.root)

    run = store.get("20261121-110000-0002")

    assert 2 == run.record["schema"]
    assert [list(range(78_039 + i, 77_999 + i, -1)) for i in (1, 2, 3)] == [
        r.tolist() for r in run.restarts("latency_ns")
    ]
    assert [[90_000, 80_001], [90_000, 80_002], [90_000, 80_003]] == [r.tolist() for r in run.restarts("warmup_ns")]
    assert list(range(5, 200_000_005, 10_000_000)) == run.array("sample_t_ns").tolist()
    np.testing.assert_array_equal(np.linspace(1000, 3000, 20), run.array("sample_value"), strict=True)


def test_two_writers_at_once_have_two_runs(store: Store) -> None:
    with store.writer("measure", KNOWN) as one, store.writer("measure", KNOWN) as two:
        writers: list[RunWriter] = [one, two]
        for number, writer in enumerate(writers):
            writer.append("latency_ns.1", np.array([number]), "ns")

    assert [[0], [1]] == [store.get(writer.id).array("latency_ns.1").tolist() for writer in writers]
    assert sorted(writer.id for writer in writers) == sorted(listed(store))


def test_a_full_disk_ends_the_run_and_keeps_what_fitted(store: Store) -> None:
    """A limit on the size of files stands for the disk: the last write that fits is written in part."""
    program = (
        "import resource, signal, sys; import numpy as np; from pathlib import Path;"
        "from deploy.errors import StoreError;"
        "from deploy.results.store import Store; from tests.deploy.test_results_store import KNOWN;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16));"
        "writer = Store(Path(sys.argv[1])).writer('measure', KNOWN).__enter__()\n"
        "try:\n    writer.append('latency_ns.1', np.arange(10000), 'ns')\n"
        "except StoreError as error:\n    print(error); writer.__exit__(StoreError, error, None)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program, store.root], check=True, env=environment, text=True, stdout=subprocess.PIPE
    )

    run = store.get("last")
    reason = f"{run.folder}/latency_ns.1.bin: File too large"
    assert (reason, "incomplete", reason) == (done.stdout.strip(), run.record["status"], run.record["reason"])
    np.testing.assert_array_equal(np.arange((1 << 16) // 8), run.array("latency_ns.1"))


# Packing


@pytest.mark.parametrize(
    ("values", "encoding"),
    [
        (np.array([3, 1, 2]), "planes+zlib"),
        (np.array([-5, 1, 2**62]), "delta+planes+zlib"),
        (np.array([], np.int64), "planes+zlib"),
        (np.array([1.5, np.nan, -0.0]), "planes+zlib"),
        (np.array([7]), "planes+zlib"),
    ],
    ids=["latencies", "times", "nothing", "floats", "one"],
)
def test_an_array_comes_back_bit_for_bit(store: Store, values: Any, encoding: str) -> None:
    with store.writer("measure", KNOWN) as writer:
        writer.append("latency_ns.1", values, "ns")

    run = store.get(writer.id)
    assert values.tobytes() == run.array("latency_ns.1").tobytes()
    assert encoding == run.record["arrays"]["latency_ns.1"]["encoding"]


def test_latencies_take_less_than_three_bytes_each(store: Store) -> None:
    """They resemble one another; eight bytes each would be 8 MB for a million."""
    latencies = np.random.default_rng(0).lognormal(11, 0.05, 100_000).astype(np.int64)
    with store.writer("measure", KNOWN) as writer:
        writer.append("latency_ns.1", latencies, "ns")

    assert (store.root / writer.id / "latency_ns.1.z").stat().st_size < 300_000


def test_an_encoding_of_another_version_is_refused(store: Store) -> None:
    run = stored(store)
    run.record["arrays"]["latency_ns.1"]["encoding"] = "magic"

    with pytest.raises(StoreError, match="encoding 'magic' is not known here"):
        run.array("latency_ns.1")
