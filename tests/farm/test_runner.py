"""Plans at work, on simulated boards that fail on request: who measures what, and what is never measured twice."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy import boards
from deploy.build import build
from deploy.bundle import Bundle
from deploy.farm.builder import Builder
from deploy.farm.cells import matrix
from deploy.farm.here import Here
from deploy.farm.live import Publisher, plans
from deploy.farm.plan import parse
from deploy.farm.runner import Runner
from deploy.results.store import Store
from tests.conftest import GOLDEN
from tests.farm.reach import Boards, Reach, boards_yaml

NAMES = ["a", "b", "c"]


@pytest.fixture(scope="session")
def digits() -> Bundle:
    return build(str(GOLDEN / "digits_int8.tflite"), name="digits", vectors=1).bundle


class Lab:
    """Three simulated boards, and a plan to run on them."""

    def __init__(self, folder: Path, digits: Bundle) -> None:
        self.folder = folder
        self.boards = Boards(folder / "sim", NAMES)
        boards_yaml(folder, NAMES)
        digits.write(folder / "digits.bundle")
        self.store = Store(folder / "results")
        self.reach = Reach(folder / "sim", silence_s=5.0)

    def runner(
        self,
        chosen: str,
        settings: str = "{s: {duration: 0.05}}",
        more: str = "",
        watch: Callable[[Runner], None] | None = None,
        bundles: str = "{net: digits.bundle}",
        **options: bool,
    ) -> Runner:
        text = f"schema: 1\nbundles: {bundles}\nboards: {chosen}\nsettings: {settings}\n{more}"
        plan = parse(text.replace("duration", "kernels: off, windows: 0, duration"), self.folder / "plan.yaml")
        registry = boards.load(str(self.folder / "boards.yaml"))
        engine = Here(registry, self.store, hold=self.reach, care=False)
        return Runner(
            plan, matrix(plan, engine.boards(), {}), engine, Builder(plan), self.store, watch=watch, **options
        )

    def run(self, *words: str, **options: bool) -> Runner:
        runner = self.runner(*words, **options)
        runner.run()
        return runner

    def measured(self) -> int:
        return len(self.boards.log())


@pytest.fixture
def lab(tmp_path: Path, digits: Bundle) -> Iterator[Lab]:
    lab = Lab(tmp_path, digits)
    with lab.boards:
        yield lab


def stood(runner: Runner) -> dict[str, tuple[str, str | None]]:
    return {cell: (state.state, state.board) for cell, state in runner.states.items()}


def test_every_cell_is_measured_and_stored_under_its_key(lab):
    runner = lab.run("[a, b]", "{s: {duration: 0.05}, t: {like: s, threads: 2}}")

    assert {"net/a/s": ("done", "a"), "net/a/t": ("done", "a"), "net/b/s": ("done", "b"), "net/b/t": ("done", "b")} == (
        stood(runner)
    )
    runs = {lab.store.get(state.run).record["cell"]["cell"] for state in runner.states.values()}
    assert set(runner.states) == runs
    assert 4 == lab.measured()


def test_a_cell_that_was_measured_is_not_measured_again(lab):
    first = lab.run("[a, b]")
    second = lab.run("[a, b, c]")

    assert {"net/a/s": "known", "net/b/s": "known", "net/c/s": "done"} == {
        cell: state.state for cell, state in second.states.items()
    }
    assert first.states["net/a/s"].run == second.states["net/a/s"].run
    assert 3 == lab.measured()


def test_again_measures_it_again(lab):
    lab.run("[a]")
    time.sleep(1.1)  # the ids of runs count seconds
    lab.run("[a]", again=True)

    assert 2 == lab.measured()


def test_a_choice_of_boards_is_shared_among_them(lab):
    settings = {f"s{i}": {"duration": 0.3 + i / 1000} for i in range(6)}

    runner = lab.run("[{tag: simulated}]", json.dumps(settings).replace('"duration"', "duration"))

    assert set(NAMES) == {board for _, board in stood(runner).values()}
    assert 0 == lab.boards.overlaps()


@pytest.mark.parametrize("fault", [{"silent": True}, {"dies": 2}])
def test_a_cell_whose_board_fails_goes_to_another_of_its_kind(lab, fault):
    lab.boards.fault("a", **fault)

    runner = lab.run("[a]")

    ((state, board),) = stood(runner).values()
    assert "done" == state and board in ("b", "c")
    assert "a" in runner.states["net/a/s"].failed_on


def test_a_cell_does_not_move_to_a_board_that_the_plan_measures_anyway(lab):
    for name in NAMES[:2]:
        lab.boards.fault(name, dies=1)

    runner = lab.run("[a, c]", "{s: {duration: 0.05}}", "retries: 1")

    # `b` is dead too, and `c` has a cell of its own.
    assert {"net/a/s": "failed", "net/c/s": "done"} == {cell: state.state for cell, state in runner.states.items()}
    assert ["a", "b"] == runner.states["net/a/s"].failed_on


def test_a_model_that_is_refused_fails_at_once_with_the_board_s_reason(lab):
    lab.boards.fault("a", refuses=True)

    runner = lab.run("[a]")

    state = runner.states["net/a/s"]
    assert ("failed", "a", "digits: it will not (board 'a')") == (state.state, state.board, state.error)


def test_a_bundle_that_is_not_there_fails_its_own_cells_alone(lab):
    runner = lab.run("[a]", bundles="{net: digits.bundle, gone: gone.bundle}")

    assert {"net/a/s": "done", "gone/a/s": "failed"} == {cell: state.state for cell, state in runner.states.items()}
    assert "gone.bundle" in runner.states["gone/a/s"].error


def test_what_was_stopped_is_not_lost_and_goes_on(lab):
    settings = "{s: {duration: 0.05}, t: {like: s, threads: 2}, slow: {like: s, duration: 20.0}}"

    def stop(runner: Runner) -> None:
        if {"done", "running"} <= {state.state for state in runner.states.values()} and lab.measured() >= 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lab.runner("[a]", settings, watch=stop).run()
    resumed = lab.runner("[a]", settings.replace("20.0", "0.06"))
    resumed.run()

    assert {"net/a/s": "known", "net/a/t": "known", "net/a/slow": "done"} == {
        cell: state.state for cell, state in resumed.states.items()
    }
    assert 0 == lab.boards.overlaps()


def test_a_measurement_that_outlived_its_plan_is_fetched_and_not_repeated(lab):
    """The line breaks in the middle, the board goes on; whoever comes next finds what it has."""
    lab.boards.fault("a", dies=8)  # claim, spools, release, meters, measure ... : the request after it cuts the line
    runner = lab.run("[a]", "{s: {duration: 0.4}}", "retries: 3")

    assert "done" == runner.states["net/a/s"].state
    assert len({entry["cell"] for entry in lab.boards.log() if entry["done"]}) == lab.measured()


def test_a_board_that_somebody_keeps_is_waited_for(lab):
    from deploy.farm.leases import Leases
    from deploy.paths import farm_file

    leases = Leases(farm_file(lab.folder))
    kept = leases.take("a", owner="somebody", for_s=60, kept=True)
    runner = lab.runner("[a]")
    thread = threading.Thread(target=runner.run)
    thread.start()
    while not leases.queue("a"):
        time.sleep(0.01)
    assert 0 == lab.measured()
    leases.release_kept("a", "somebody")
    thread.join(20)
    leases.close()

    assert "done" == runner.states["net/a/s"].state
    assert kept.token < lab.boards.log()[0]["token"]


def test_a_full_disk_ends_the_plan_in_one_line_and_stops_what_runs(lab):
    (lab.folder / "results").write_text("in the way")

    from deploy.errors import StoreError

    with pytest.raises(StoreError) as caught:
        lab.run("[a, b]")

    assert str(lab.folder / "results") in str(caught.value)


def test_whoever_looks_on_sees_what_runs(lab):
    seen = []

    def watch(runner: Runner) -> None:
        publisher(runner)
        seen.extend(plans(lab.folder / ".farm"))

    publisher = Publisher(lab.folder / ".farm")
    lab.runner("[a]", "{s: {duration: 0.8}}", watch=watch).run()
    publisher.close()

    running = [picture for picture in seen if picture["counts"].get("running")]
    assert running and "plan" == running[0]["plan"]
    assert any("net/a/s" == picture["running"].get("a", {}).get("cell") for picture in running)
    assert [] == plans(lab.folder / ".farm")
