"""Plans on the boards of several hosts: TLS, a real scheduler and real gateways, and what happens when they die."""

from __future__ import annotations

import asyncio
import datetime
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deploy import boards
from deploy.build import build
from deploy.errors import FarmError
from deploy.farm import keys
from deploy.farm.dashboard.view import View
from deploy.farm.gateway import _refuse_doubles
from deploy.farm.leases import Leases
from deploy.farm.runner import Runner
from deploy.farm.seen import Sightings
from deploy.farm.serve import check_versions
from deploy.results.store import Store
from tests.conftest import GOLDEN
from tests.farm.lab import Farm, settings_of
from tests.farm.reach import boards_yaml

pytest.importorskip("distributed", reason="needs dask: `pip install 'deploy-hil[farm]'`")
GATEWAYS = {"north": ["a", "b"], "south": ["c", "d"]}
OTHER = {"west": ["w"]}  # of another version of deploy


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    folder = tmp_path_factory.mktemp("farm")
    build(str(GOLDEN / "digits_int8.tflite"), name="digits", vectors=1).bundle.write(folder / "digits.bundle")
    farm = Farm(folder, GATEWAYS | OTHER, versions={"west": "0.0.1"})
    yield farm
    farm.close()


def refusal(farm: Farm, folder: Path | None = None, where: str | None = None) -> str:
    from deploy.farm.cluster import Cluster

    with pytest.raises(FarmError) as caught:
        Cluster(where or farm.where, folder or farm.keys, farm.store)
    return str(caught.value)


def states(runner: Runner) -> set[str]:
    return {state.state for state in runner.states.values()}


def done(farm: Farm) -> list[str]:
    return [entry["cell"] for entry in farm.log() if entry["done"]]


def test_results_come_back_and_leave_nothing_behind(farm):
    runner = farm.run("[{tag: simulated, each: true}]", settings_of(3, lambda i: 0.05))

    assert {"done"} == states(runner)
    assert {"a", "b", "c", "d"} == {state.board for state in runner.states.values()}
    assert set(runner.states) == {farm.store.get(s.run).record["cell"]["cell"] for s in runner.states.values()}
    assert [] == list(farm.folder.glob("*/held/2*"))


def test_what_was_measured_on_a_gateway_is_known_the_next_time(farm):
    farm.run("[a, c]", settings_of(2, lambda i: 0.06))
    before = len(done(farm))
    again = farm.run("[a, c]", settings_of(2, lambda i: 0.06))

    assert ({"known"}, before) == (states(again), len(done(farm)))


def test_a_scheduler_that_is_killed_and_started_again_loses_no_cell_and_repeats_none(farm):
    engine = farm.settle()
    runner = farm.runner("[{tag: simulated}]", settings_of(12, lambda i: 0.5 + i / 1000), engine)
    thread = threading.Thread(target=runner.run)
    before = len(done(farm))
    thread.start()
    while len(done(farm)) < before + 2:
        time.sleep(0.02)
    farm.kill("scheduler")
    time.sleep(0.5)
    farm.start("scheduler")
    thread.join(60)

    assert {"done"} == states(runner)
    mine = done(farm)[before:]
    assert len(mine) == len(set(mine)) == 12
    assert 0 == farm.overlaps()


def test_a_gateway_that_hangs_holds_up_nobody_else_and_its_cells_come_later(farm):
    engine = farm.settle()
    runner = farm.runner("[{tag: simulated, each: true}]", settings_of(4, lambda i: 0.3 + i / 1000), engine)
    farm.signal("south", signal.SIGSTOP)
    thread = threading.Thread(target=runner.run)
    try:
        thread.start()
        north = [state for state in runner.states.values() if state.cell.place in GATEWAYS["north"]]
        while any(state.is_open for state in north):
            time.sleep(0.05)
        south = {state.state for state in runner.states.values() if state.cell.place in GATEWAYS["south"]}
    finally:
        farm.signal("south", signal.SIGCONT)
    thread.join(60)

    assert not south & {"done", "failed"}
    assert {"done"} == states(runner)
    assert 0 == farm.overlaps()


def test_a_plan_that_is_stopped_stops_what_it_runs_on_the_gateways(farm):
    def stop(runner: Runner) -> None:
        if any("measure" != pulse.get("cell") for pulse in runner.pulses.values()):
            raise KeyboardInterrupt

    engine = farm.settle()
    with pytest.raises(KeyboardInterrupt):
        farm.runner("[a]", "{slow: {duration: 30.0}}", engine, watch=stop).run()
    runner = farm.run("[a]", "{quick: {duration: 0.05, threads: 2}}")  # the board is free again

    assert {"done"} == states(runner)


class Taken:
    """What Dask's rpc gives of a scheduler that has a gateway."""

    async def identity(self) -> dict[str, Any]:
        return {"workers": {"tls://a:1": {"deploy": {"gateway": "north", "boards": ["a", "b"]}}}}


@pytest.mark.parametrize(
    ("name", "boards", "refused"), [("east", "bx", True), ("north", "ab", False), ("east", "x", False)]
)
def test_a_board_that_another_gateway_has_is_refused(name, boards, refused):
    """One that was started again is the same gateway; whoever else has the board has leases of its own."""
    ours: Any = SimpleNamespace(name=name, boards=dict.fromkeys(boards))

    with pytest.raises(FarmError) if refused else nullcontext() as caught:
        asyncio.run(_refuse_doubles(Taken(), ours))

    assert caught is None or "board 'b' is on gateway 'north' already" == str(caught.value)


def test_a_farm_that_is_not_there_is_said_in_one_line(farm):
    assert "no scheduler at tls://127.0.0.1:1: Connection refused" == refusal(farm, where="tls://127.0.0.1:1")


def test_certificates_of_another_authority_are_told_from_each_other(farm, tmp_path):
    keys.make(tmp_path / "other", days=1)
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for file in (tmp_path / "other").iterdir():
        (mixed / file.name).write_bytes(file.read_bytes())
    (mixed / "ca.pem").write_bytes((farm.keys / "ca.pem").read_bytes())

    assert f"the scheduler at {farm.where} shows a certificate that {tmp_path}/other/ca.pem does not vouch for: " in (
        refusal(farm, tmp_path / "other")
    )
    assert f"{mixed}/client.pem: not signed by {mixed}/ca.pem" == refusal(farm, mixed)


def test_a_certificate_that_has_expired_is_named_with_its_day(farm, tmp_path):
    day = datetime.datetime(2026, 3, 1, tzinfo=datetime.UTC)
    keys.make(tmp_path / "old", days=1, begin=day - datetime.timedelta(days=1))

    assert f"{tmp_path}/old/ca.pem: expired on {day:%Y-%m-%d}" == refusal(farm, tmp_path / "old")


def test_keys_are_private_and_not_made_twice(tmp_path):
    written = keys.make(tmp_path / "keys", days=1)

    assert {0o600} == {path.stat().st_mode & 0o777 for path in written}
    with pytest.raises(FarmError) as caught:
        keys.make(tmp_path / "keys", days=1)
    assert f"{tmp_path}/keys: there are keys already" == str(caught.value)
    authority = (tmp_path / "keys" / "ca.pem").read_bytes()
    keys.make(tmp_path / "keys", days=1, renew=True)
    assert authority == (tmp_path / "keys" / "ca.pem").read_bytes()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lab", "tls://lab:8786"),
        ("lab:1", "tls://lab:1"),
        ("tls://[::1]:9", "tls://[::1]:9"),
        ("tcp://lab:1", None),  # would be open to anybody
        ("lab:port", None),
        ("", None),
    ],
)
def test_an_address_is_tls_or_none(text, expected):
    if expected:
        assert expected == keys.address(text)
    else:
        with pytest.raises(FarmError):
            keys.address(text)


class Elsewhere:
    """What Dask's rpc gives of a scheduler that runs something else."""

    async def versions(self) -> dict[str, Any]:
        return {"host": {"python": "3.9.1.final.0"}, "packages": {"dask": "2020.1", "distributed": "2020.1"}}


def test_another_dask_is_said_in_one_line():
    with pytest.raises(FarmError) as caught:
        asyncio.run(check_versions(Elsewhere(), "tls://lab:1"))

    said = str(caught.value)
    assert said.startswith("the scheduler at tls://lab:1 does not fit: python 3.9 there, ")
    assert "dask 2020.1 there" in said and "\n" not in said


def test_the_dashboard_shows_leases_and_state_of_boards_on_other_hosts(farm, tmp_path):
    registry = boards.load(str(boards_yaml(tmp_path, ["here"])))
    engine = farm.settle()
    view = View(registry, Store(tmp_path / "results"), engine)
    leases = Leases(farm.leases("north"))
    kept = leases.take("a", owner="anna", purpose="soldering", for_s=600, kept=True)
    Sightings(leases.file).saw("b", state={"temperatures_mc": {"cpu": 51_500, "gpu": 48_000}})
    try:
        shown = {told["board"]: told for told in view.now()["boards"]}
    finally:
        leases.release_kept("a", "anna")
        leases.close()
        view.close()
        engine.close()

    assert kept.token and ("kept", "north") == (shown["a"]["state"], shown["a"]["where"])
    assert shown["a"]["holder"].startswith("anna (soldering), kept for another ")
    assert ("free", 51.5) == (shown["b"]["state"], shown["b"]["hottest_c"])
    assert ("away", "west") == (shown["w"]["state"], shown["w"]["where"])
    assert "here" == shown["here"]["where"]


def test_a_gateway_of_another_version_gets_no_work(farm):
    engine = farm.settle()
    try:
        refused = {each["gateway"]: each["refused"] for each in engine.gateways()}
        boards = set(engine.boards())
    finally:
        engine.close()

    assert {"a", "b", "c", "d"} == boards
    assert "gateway 'west' has another version of deploy than this machine (deploy)" == refused["west"]
    assert refused["north"] is None


def chaos(farm: Farm, rounds: int, cells: int, seed: int) -> tuple[Runner, int]:
    """
    While a plan runs, kill, stop and go on with gateways and the scheduler, and cut or silence the links of gateways
    and plan; the plan, and cells before.
    """
    rng = random.Random(seed)
    before = len(farm.log())
    settings = settings_of(cells, lambda i: 0.2 + seed / 1000 + i / 100_000)
    engine = farm.settle()
    runner = farm.runner("[{tag: simulated}]", settings, engine, more="retries: 20")
    thread = threading.Thread(target=runner.run)
    thread.start()
    for _ in range(rounds):
        time.sleep(rng.uniform(0.1, 0.8))
        farm.supervise()
        if rng.random() < 0.4:
            link = farm.links[rng.choice([*GATEWAYS, "plan"])]
            (link.cut if rng.random() < 0.7 else link.silence)(rng.uniform(0.1, 2.0))
            continue
        name = rng.choice([*GATEWAYS, "scheduler"])
        if rng.random() < 0.5:
            farm.kill(name)
            time.sleep(rng.uniform(0, 0.5))
            farm.start(name)
        else:
            farm.signal(name, signal.SIGSTOP)
            time.sleep(rng.uniform(0, 1.5))
            farm.signal(name, signal.SIGCONT)
    end = time.monotonic() + 300
    while thread.is_alive() and time.monotonic() < end:
        farm.supervise()
        thread.join(0.5)
    assert not thread.is_alive()
    return runner, before


def assert_survived(farm: Farm, runner: Runner) -> None:
    assert 0 == farm.overlaps()
    assert {"done"} == states(runner)
    assert set(runner.states) == {farm.store.get(s.run).record["cell"]["cell"] for s in runner.states.values()}


def test_chaos_loses_no_cell_and_lets_no_two_runs_overlap(farm):
    runner, _ = chaos(farm, rounds=3, cells=24, seed=1)

    assert_survived(farm, runner)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(2, 12))
def test_chaos_for_long(farm, seed):
    runner, before = chaos(farm, rounds=50, cells=600, seed=seed)

    repeated = len(farm.log()) - before - len(runner.states)
    print(f"{len(runner.states)} cells, 50 faults, {repeated} measurements that were cut or repeated")
    assert_survived(farm, runner)
