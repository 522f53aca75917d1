"""Measuring: every nanosecond that is summarized is stored, and energy is what a known meter counted."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.boards import LOCAL, Board, PowerPoint, Rail
from deploy.build import build
from deploy.bundle import Bundle
from deploy.errors import BadInput, ConfigError, NotOnBoard
from deploy.measure import Measured, Plan, Seen, Turn, interleave, measure
from deploy.push import push
from deploy.results.compare import are_paired
from deploy.results.energy import EnergyReading
from deploy.results.stats import summarize
from deploy.results.store import Run, Store
from deploy.session import Session, connect
from tests.models import elementwise

pytestmark = pytest.mark.alone

Open = Callable[..., Session]
INPUTS = [np.ones((1, 4), np.float32)] * 2
SHORT = Plan(duration_s=0.1, restarts=2, warmup_max_s=0.1, idle_s=0.1, windows=1, window_s=0.2)
ONCE = replace(SHORT, restarts=1)
PACKAGE = "sys/class/powercap/intel-rapl:0"
THROTTLED = "sys/devices/platform/soc/soc:firmware/get_throttled"
GOVERNOR = "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "results")


@pytest.fixture
def sysroot(tmp_path: Path) -> Path:
    """Where the agent looks for /sys and /proc: nothing is there yet."""
    (tmp_path / "sysroot").mkdir()
    return tmp_path / "sysroot"


def put(root: Path, name: str, text: str) -> Path:
    """A file below `root`, whole at any moment, as sysfs files are."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}")
    staging.write_text(text)
    os.replace(staging, path)
    return path


def meter(root: Path) -> None:
    put(root, f"{PACKAGE}/name", "package-0\n")
    put(root, f"{PACKAGE}/max_energy_range_uj", "262143328850\n")
    put(root, f"{PACKAGE}/energy_uj", "0\n")


class Supply:
    """
    A package whose counter grows by `power_mw`, about every millisecond, until it is closed.

    Attributes:
        counted: ns of CLOCK_MONOTONIC and uJ, whenever it counted.
    """

    def __init__(self, root: Path, power_mw: float) -> None:
        meter(root)
        self._root = root
        self._power_mw = power_mw
        self.counted = [(time.monotonic_ns(), 0.0)]
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        began = self.counted[0][0]
        while not self._ends.wait(0.001):
            now = time.monotonic_ns()
            counted_uj = self._power_mw * (now - began) / 1e6
            put(self._root, f"{PACKAGE}/energy_uj", f"{counted_uj:.0f}\n")
            self.counted.append((now, counted_uj))

    def close(self) -> None:
        self._ends.set()
        self._thread.join()


@pytest.fixture
def supply(sysroot: Path) -> Iterator[Supply]:
    """It draws 2 W."""
    made = Supply(sysroot, 2000)
    yield made
    made.close()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("models") / "sum.tflite"
    path.write_bytes(elementwise())
    return build(str(path), name="sum", vectors=0).bundle


@pytest.fixture
def run(
    open_session: Open, local: Board, bundle: Bundle, store: Store, sysroot: Path
) -> Callable[..., tuple[Measured, Run]]:
    """``run(plan, progress, rails)``: measure on `local`, whose sensors are those of `sysroot`."""

    def run_(
        plan: Plan = SHORT, progress: Callable[[str, Any], None] | None = None, rails: tuple[Rail, ...] = ()
    ) -> tuple[Measured, Run]:
        session = open_session(local.model_copy(update={"rails": rails}), "--sysroot", str(sysroot))
        push(session, bundle)
        with store.writer("measure", {"board": {"name": "local"}, "bundle": {"name": "sum", "digest": "ab"}}) as writer:
            watch = (lambda seen: progress(seen.what, seen.latency_ns)) if progress else None
            measured = measure(session, bundle.digest, INPUTS, plan, writer, "sum", watch)
        return measured, store.get(writer.id)

    return run_


Runs = Callable[..., tuple[Measured, Run]]


@dataclass
class Done:
    """A measurement that several tests look at: what the host saw of it, its outcome, its record."""

    seen: list[Seen]
    measured: Measured
    stored: Run


def done(folder: Path, bundle: Bundle, plan: Plan, rails: tuple[Rail, ...] = ()) -> Done:
    """Measure on a board of its own in `folder`, whose sensors are those of ``sysroot`` there."""
    (folder / "sysroot").mkdir(exist_ok=True)
    board = LOCAL.model_copy(update={"root": str(folder / "board"), "rails": rails})
    store, seen = Store(folder / "results"), []
    with connect(board, folder / "known_hosts", ["--sysroot", str(folder / "sysroot")]) as session:
        push(session, bundle)
        with store.writer("measure", {"board": {"name": "local"}, "bundle": {"name": "sum", "digest": "ab"}}) as writer:
            measured = measure(session, bundle.digest, INPUTS, plan, writer, "sum", seen.append)
    return Done(seen, measured, store.get(writer.id))


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory, bundle: Bundle) -> Done:
    """Two restarts of 0.05 s, and no meter."""
    return done(tmp_path_factory.mktemp("short"), bundle, SHORT)


@pytest.fixture(scope="module")
def metered(tmp_path_factory: pytest.TempPathFactory, bundle: Bundle) -> Iterator[tuple[Done, Supply]]:
    """One window of a board that draws 4 W all the time."""
    folder = tmp_path_factory.mktemp("metered")
    (folder / "sysroot").mkdir()
    supply = Supply(folder / "sysroot", 4000)
    plan = Plan(duration_s=0.05, restarts=1, warmup_max_s=0.1, idle_s=0.4, windows=1, window_s=1.5)
    try:
        yield done(folder, bundle, plan, (Rail(name="package-0", scope="board-dc"),)), supply
    finally:
        supply.close()


# Latency


def test_every_latency_that_is_summarized_is_stored(short: Done) -> None:
    measured, stored = short.measured, short.stored
    seen = np.concatenate([each.latency_ns for each in short.seen]).tolist()

    restarts = stored.restarts("latency_ns")
    assert 2 == len(restarts) == len(measured.latency.restart_medians_ns)
    assert measured.latency.n == sum(map(len, restarts)) == len(seen)
    assert np.concatenate(restarts).tolist() == seen
    assert summarize(restarts) == measured.latency
    assert [len(r) for r in restarts] == [r["invocations"] for r in stored.record["restarts"]]


def test_warm_up_is_kept_apart_and_not_counted(short: Done) -> None:
    measured, stored = short.measured, short.stored

    warmups = stored.restarts("warmup_ns")
    assert [True, True] == [len(w) > 0 for w in warmups]
    assert measured.latency.n == sum(map(len, stored.restarts("latency_ns")))
    assert {"warmup_ns.1", "warmup_ns.2", "latency_ns.1", "latency_ns.2"} == set(stored.record["arrays"])


def test_the_latencies_of_a_window_fit_into_it(short: Done) -> None:
    """What is timed is the invocation alone: the sum cannot be more than the time that passed."""
    stored = short.stored
    for restart, latencies in zip(stored.record["restarts"], stored.restarts("latency_ns"), strict=True):
        start, end = restart["window_ns"]
        assert 0 < latencies.sum() <= end - start


def test_the_record_says_what_was_done_and_with_what(short: Done) -> None:
    measured, stored = short.measured, short.stored

    record = stored.record
    assert ("complete", list(measured.verdict)) == (record["status"], record["verdict"])
    assert (0.1, 2, 0.1) == tuple(record["plan"][key] for key in ("duration_s", "restarts", "warmup_max_s"))
    assert measured.runtime == record["runtime"] and measured.runtime.startswith("ai-edge-litert ")
    assert measured.latency.n == record["latency"]["n"]
    assert 2 == len(record["restarts"])
    assert {"load_ns", "first_ns", "clock_overhead_ns", "steady", "peak_rss_bytes"} <= set(record["restarts"][0])
    assert (record["restarts"][0]["load_ns"], record["restarts"][0]["first_ns"]) == (
        measured.load_ns,
        measured.first_ns,
    )
    assert record["state_before"]["free_bytes"] > 0 and record["state_after"]["free_bytes"] > 0


def test_invocations_are_as_many_as_the_plan_demands(run: Runs) -> None:
    """At least the minimum, however short the duration; never more than the maximum."""
    few, _ = run(Plan(duration_s=1e-6, restarts=1, min_invocations=17, max_invocations=17, warmup_max_s=0))
    capped, _ = run(Plan(duration_s=5, restarts=1, max_invocations=100, warmup_max_s=0))

    assert (17, 100) == (few.latency.n, capped.latency.n)
    assert {"not-steady", "too-few-samples", "cut-short"} <= set(few.verdict)
    assert "cut-short" in capped.verdict and "too-few-samples" not in capped.verdict


def test_a_bundle_that_is_not_on_the_board_leaves_no_run(session: Session, store: Store) -> None:
    known = {"board": {"name": "local"}, "bundle": {"name": "sum", "digest": "ab"}}
    with pytest.raises(NotOnBoard) as caught, store.writer("measure", known) as writer:
        measure(session, "ab" * 32, INPUTS, SHORT, writer, "sum")

    assert "sum: bundle abababababab is not on this board (board 'local')" == str(caught.value)
    assert [] == store.runs()


def test_a_run_that_is_interrupted_keeps_the_restarts_that_were_done(run: Runs, store: Store) -> None:
    def interrupt(what: str, latencies: Any) -> None:
        if what.startswith("restart 2") and len(latencies):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(Plan(duration_s=20, restarts=2, max_invocations=200, warmup_max_s=0), interrupt)

    stored = store.get("last")
    assert ("incomplete", "interrupted (Ctrl-C)") == (stored.record["status"], stored.record["reason"])
    assert 200 == len(stored.array("latency_ns.1"))
    assert len(stored.array("latency_ns.2")) > 0


# Energy


def test_energy_is_what_the_meter_counted_per_invocation(metered: tuple[Done, Supply]) -> None:
    """What it counted between the window's edges is the truth, however late anybody was."""
    (run, supply) = metered
    stored = run.stored

    (found,) = run.measured.energy
    (window,) = stored.record["windows"]
    counted_uj = np.interp([window["start_ns"], window["end_ns"]], *zip(*supply.counted, strict=True))
    truth_uj = float(np.diff(counted_uj)[0]) / window["invocations"]
    assert isinstance(found, EnergyReading)
    assert ("package-0", "measured:rapl@package-0", "board-dc", None) == (
        found.rail, found.source, found.scope, run.measured.unmetered
    )  # fmt: skip
    assert pytest.approx(truth_uj, rel=0.1) == found.gross_uj
    assert found.idle_mw is not None and found.net_uj is not None
    assert abs(found.net_uj) < 0.2 * found.gross_uj  # it draws no more than when idle
    assert found.gross_u_uj is None  # one window says nothing of repetition
    assert (True, ("few-windows", "short-windows")) == (found.primary, found.codes[:2])
    assert {"few-windows", "short-windows"} <= set(run.measured.verdict)
    assert window["invocations"] == len(stored.array("window_ns.1"))
    assert stored.record["sampling"][0]["turns"] > 10
    assert stored.record["meter_effect"] is not None
    assert found.gross_uj == stored.record["energy"][0]["gross_uj"]
    assert 2 == len(stored.record["idle_windows"])


def test_every_sample_of_the_meter_is_stored(metered: tuple[Done, Supply]) -> None:
    stored = metered[0].stored

    t, rail, value = (stored.array(f"sample_{name}") for name in ("t_ns", "rail", "value"))
    assert len(t) == len(rail) == len(value) == sum(len(each.samples) for each in metered[0].seen) >= 10
    assert (np.diff(t) > 0).all() and (np.diff(value) >= 0).all() and (rail == 0).all()
    window = stored.record["windows"][0]
    assert t[0] < window["start_ns"] < window["end_ns"] < t[-1]
    assert ["package-0"] == [r["name"] for r in stored.record["rails"]]


def test_a_board_without_a_meter_says_so(short: Done) -> None:
    measured, stored = short.measured, short.stored

    assert ((), "no meter on local") == (measured.energy, measured.unmetered)
    assert ([], "no meter on local") == (stored.record["energy"], stored.record["unmetered"])


def test_a_meter_that_may_not_be_read_says_which_file_and_why(run: Runs, sysroot: Path) -> None:
    """The kernel shows RAPL to root alone; a folder in the file's place fails for root, too."""
    meter(sysroot)
    counter = sysroot / PACKAGE / "energy_uj"
    counter.unlink()
    counter.mkdir()

    measured, _ = run(ONCE)

    assert f"rapl on local cannot be read: {counter}: Is a directory" == measured.unmetered
    assert () == measured.energy


def test_a_meter_that_stops_answering_costs_the_energy_and_not_the_latencies(run: Runs, sysroot: Path) -> None:
    meter(sysroot)

    def unplug(what: str, latencies: Any) -> None:
        if what == "window 1":
            (sysroot / PACKAGE / "energy_uj").unlink(missing_ok=True)

    plan = Plan(duration_s=0.02, restarts=1, warmup_max_s=0.1, idle_s=0.2, windows=1, window_s=0.3)
    measured, stored = run(plan, unplug)

    assert "meter-failed" in measured.verdict
    assert measured.latency.n == sum(map(len, stored.restarts("latency_ns"))) > 0
    assert not any(isinstance(entry, EnergyReading) for entry in measured.energy)


def test_a_window_in_which_the_board_throttled_does_not_count(run: Runs, supply: Supply, sysroot: Path) -> None:
    """Of two windows the second; its samples and latencies are kept."""

    def heat(what: str, latencies: Any) -> None:
        if what == "window 2":
            put(sysroot, THROTTLED, "20002\n")

    plan = Plan(duration_s=0.02, restarts=1, warmup_max_s=0.1, idle_s=0.3, windows=2, window_s=1.2)
    for _ in range(5):
        put(sysroot, THROTTLED, "0\n")
        _, stored = run(plan, heat)
        (entry,) = stored.record["energy"]
        if not any("window-gap" in reasons for _, reasons in entry["rejected"]):
            break  # else a busy machine has starved the sampler, which says nothing of throttling

    assert (1, [[2, ["window-throttled"]]]) == (entry["windows"], entry["rejected"])
    assert len(stored.array("window_ns.2")) > 0


def test_bundles_that_take_turns_have_one_window_in_each_turn(
    open_session: Open, local: Board, bundle: Bundle, store: Store, sysroot: Path, supply: Supply
) -> None:
    session = open_session(local, "--sysroot", str(sysroot))
    push(session, bundle)
    plan = Plan(duration_s=0.02, restarts=1, warmup_max_s=0.1, idle_s=0.3, windows=5, window_s=1.2)
    known = {"board": {"name": "local"}, "bundle": {"name": "sum", "digest": "ab"}}

    with store.writer("measure", known) as first, store.writer("measure", known) as second:
        found = interleave(session, [Turn(bundle.digest, INPUTS, w) for w in (first, second)], plan)

    for measured, writer in zip(found, (first, second), strict=True):
        (entry,) = measured.energy
        assert isinstance(entry, EnergyReading) and 1 == entry.windows
        stored = store.get(writer.id)
        assert [len(stored.array("window_ns.1"))] == [w["invocations"] for w in stored.record["windows"]]


def test_energy_is_modelled_only_when_asked_for_and_says_so(
    open_session: Open, local: Board, bundle: Bundle, store: Store, sysroot: Path
) -> None:
    points = (PowerPoint(threads=0, power_mw=2700), PowerPoint(threads=1, power_mw=3600))
    known = {"board": {"name": "local"}, "bundle": {"name": "sum", "digest": "ab"}}
    session = open_session(local.model_copy(update={"power_points": points}), "--sysroot", str(sysroot))
    push(session, bundle)
    found = []
    for asked in (False, True):
        with store.writer("measure", known) as writer:
            found.append(measure(session, bundle.digest, INPUTS, replace(ONCE, modelled=asked), writer, "sum"))

    assert ((), "no meter on local") == (found[0].energy, found[0].unmetered)
    (entry,) = found[1].energy
    assert isinstance(entry, EnergyReading)
    assert ("modelled:idle-busy@local", ("modelled",), None) == (entry.source, entry.codes, found[1].unmetered)
    assert pytest.approx(900 * found[1].latency.mean_ns / 1e6) == entry.net_uj


def test_a_board_without_a_model_cannot_be_modelled(run: Runs) -> None:
    with pytest.raises(ConfigError, match="board 'local' has no power model: power_points needs one with 0 threads"):
        run(replace(SHORT, modelled=True))


# The verdict


def test_what_happened_to_the_board_during_the_run_is_in_the_verdict(run: Runs, sysroot: Path) -> None:
    put(sysroot, THROTTLED, "0\n")
    put(sysroot, GOVERNOR, "performance\n")

    def heat(what: str, latencies: Any) -> None:
        put(sysroot, THROTTLED, "60002\n")
        put(sysroot, GOVERNOR, "powersave\n")

    measured, stored = run(ONCE, heat)

    assert {"throttled", "governor-changed"} <= set(measured.verdict)
    assert (0, 0x60002) == (stored.record["state_before"]["throttled"], stored.record["state_after"]["throttled"])
    assert (["performance"], ["powersave"]) == tuple(
        stored.record[f"state_{when}"]["governors"] for when in ("before", "after")
    )


# Schedules, CPUs, precision


def test_latency_counts_from_the_schedule_and_service_from_the_start(run: Runs) -> None:
    """A schedule that no board can keep: what is asked for late waits, and that is in its latency."""
    measured, stored = run(Plan(duration_s=0.2, restarts=1, warmup_max_s=0, rate=1e6, max_invocations=5000))

    latency, service = stored.array("latency_ns.1"), stored.array("service_ns.1")
    assert measured.service is not None and measured.late_starts is not None
    assert measured.latency.n == measured.service.n == len(latency) == len(service) == 5000
    assert (latency > service).all()
    assert latency[-1] > latency[100]  # it falls behind more and more
    assert measured.late_starts > 0.9 * 5000
    assert "late-starts" in measured.verdict
    assert stored.record["service"]["median_ns"] == np.median(service)


def test_a_schedule_that_can_be_kept_is_kept(run: Runs) -> None:
    measured, stored = run(Plan(duration_s=0.3, restarts=1, warmup_max_s=0, rate=100.0, min_invocations=30))

    assert 30 == measured.latency.n
    window = stored.record["restarts"][0]["window_ns"]
    assert window[1] - window[0] >= 290_000_000
    assert measured.late_starts is not None and measured.late_starts <= measured.latency.n


def test_the_process_runs_on_the_cpus_that_were_asked_for(run: Runs) -> None:
    cpu = max(os.sched_getaffinity(0))

    measured, stored = run(Plan(duration_s=0.05, restarts=1, warmup_max_s=0, pin=(cpu,)))

    assert (cpu,) == measured.affinity
    assert [cpu] == stored.record["restarts"][0]["affinity"]


def test_a_cpu_that_is_not_there_is_refused(run: Runs) -> None:
    """The kernel would take the others and say nothing."""
    with pytest.raises(BadInput, match=r"no CPU 4095 here; there is 0"):
        run(Plan(duration_s=0.05, pin=(0, 4095)))


def test_the_board_stops_when_the_median_is_known_as_precisely_as_asked(run: Runs) -> None:
    """Anything is within 90 %: five restarts, one more to be sure, and not the whole duration."""
    measured, stored = run(Plan(duration_s=1.0, restarts=3, warmup_max_s=0, until=0.9))

    assert 6 == len(stored.restarts("latency_ns"))
    assert "imprecise" not in measured.verdict


def test_the_boards_median_is_that_of_the_raw_values(short: Done) -> None:
    """It decides with it; 0.1 % is what its histogram resolves."""
    stored = short.stored
    for reply, latencies in zip(stored.record["restarts"], stored.restarts("latency_ns"), strict=True):
        assert pytest.approx(float(np.median(latencies)), rel=0.002) == reply["median_ns"]


# A slow host


def test_a_host_that_is_slow_to_listen_neither_slows_the_run_nor_loses_anything(
    open_session: Open, local: Board, bundle: Bundle, store: Store
) -> None:
    """It looks away for as long as the run takes, and more bytes come than a pipe and the agent's patience hold."""
    session = open_session(local)
    push(session, bundle)
    plan = Plan(duration_s=1.0, restarts=1, warmup_max_s=0)
    slept = []

    def doze(seen: Seen) -> None:
        if len(seen.latency_ns) and not slept:
            slept.append(time.sleep(1.6))

    with store.writer("measure", {"board": {"name": "local"}, "bundle": {"name": "sum", "digest": "ab"}}) as writer:
        measured = measure(session, bundle.digest, INPUTS, plan, writer, "sum", doze)

    stored = store.get(writer.id)
    (events,) = stored.record["events"]
    (reply,) = stored.record["restarts"]
    assert events["live"] < events["all"] and 0 == events["lost"]
    assert reply["invocations"] == measured.latency.n == len(stored.array("latency_ns.1"))
    window_ns = reply["window_ns"][1] - reply["window_ns"][0]
    # It did not wait for the sleeper.  The window ends with the last invocation, which may be before the second does.
    assert 900_000_000 <= window_ns < 1_500_000_000


# Turns


def test_bundles_that_take_turns_become_runs_that_belong_together(
    open_session: Open, local: Board, bundle: Bundle, store: Store
) -> None:
    session = open_session(local)
    push(session, bundle)
    began: list[tuple[int, int]] = []

    def watch(seen: Seen) -> None:
        if seen.phase == "loading":
            began.append((len(began), seen.restart or 0))

    known = {"board": {"name": "local"}, "bundle": {"name": "sum", "digest": "ab"}}
    with store.writer("measure", known) as first, store.writer("measure", known) as second:
        turns = [Turn(bundle.digest, INPUTS, writer, "sum") for writer in (first, second)]
        found = interleave(session, turns, Plan(duration_s=0.2, restarts=2, warmup_max_s=0), watch)

    runs = [store.get(writer.id) for writer in (first, second)]
    assert [2, 2] == [len(measured.latency.restart_medians_ns) for measured in found]
    assert [2, 2] == [len(run.restarts("latency_ns")) for run in runs]
    assert are_paired(*runs)
    assert [0, 1] == [run.record["pairing"]["position"] for run in runs]
    starts = [[reply["window_ns"][0] for reply in run.record["restarts"]] for run in runs]
    first_leads = [a < b for a, b in zip(*starts, strict=True)]
    assert [True, False] == first_leads  # who begins changes
