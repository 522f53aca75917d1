"""Meters that hang on this machine: what they say is decoded, dated and brought onto the board's clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from deploy.boards import LOCAL, Board, HostMeter
from deploy.build import build
from deploy.errors import MeterError
from deploy.measure import Collector, Plan, measure
from deploy.meters import close_meters, joulescope, open_meters, ppk2
from deploy.meters.attached import describe
from deploy.push import push
from deploy.results.energy import EnergyReading
from deploy.results.store import Store
from deploy.session import Session
from devices.protocol.meter import Meter, Sample
from tests.deploy.test_measure import INPUTS
from tests.kit import META, JoulescopeDriver, Kit, scpi_backend, word
from tests.models import elementwise

# 1000 counts in range 3 of the kit's calibration: (4 x 1000 - 0) x 1.8 / 163840 V across 1 ohm
AMPERES = 4000 * 1.8 / 163840


def opened(**settings: Any) -> Meter:
    kind = settings.pop("kind")
    (meter,) = open_meters([HostMeter(kind=kind, settings=settings)])
    return meter


# Power Profiler Kit II


@pytest.fixture
def kit() -> Iterator[Callable[..., Kit]]:
    made: list[Kit] = []

    def make(*args: Any, **options: Any) -> Kit:
        made.append(Kit(*args, **options))
        return made[-1]

    yield make
    for one in made:
        one.unplug()


def read_words(meter: Meter, count: int) -> Sample:
    """Read until the kit has counted so many words; the last sample."""
    end = time.monotonic() + 20
    last = Sample(0, 0, 0.0)
    while getattr(meter, "_words") < count:  # noqa: B009
        assert time.monotonic() < end
        last = (meter.read() or [last])[-1]
        time.sleep(0.005)
    return last


def test_a_kits_words_are_current_by_its_own_calibration() -> None:
    """
    Range 3: 4000 x 1.8 / 163840 V across 1 ohm.  Range 0, with its offset of 100, gain 0.5, user gain 2 and the terms
    of the voltage: 2 x ((3900 x 1.8 / 163840 / 1000) x 0.5 + 3.3 x 1e-6 + 2e-6).
    """
    import numpy as np

    words = np.frombuffer(word(1000, 3, 0) + word(1000, 0, 1, logic=0xFF), "<u4")

    found = ppk2.Calibration(META).amperes(words, 3.3)

    raw = 3900 * 1.8 / 163840 / 1000
    assert [pytest.approx(AMPERES), pytest.approx(2 * (raw * 0.5 + 3.3e-6 + 2e-6))] == found.tolist()


def test_energy_is_current_times_voltage_for_ten_microseconds_a_word(kit: Callable[..., Kit]) -> None:
    one = kit()
    meter = opened(kind="ppk2", port=one.path, voltage_mv=3300)

    last = read_words(meter, 3000)

    (rail,) = meter.rails
    assert ("ppk2", "energy_uj", "board-dc", "host", True) == (
        rail.chip, rail.quantity, rail.scope, rail.clock, rail.total
    )  # fmt: skip
    words = getattr(meter, "_words")  # noqa: B009
    assert pytest.approx(AMPERES * 3.3 * words * 10, rel=1e-9) == last.value  # uJ: A x V x 10 us
    close_meters([meter])
    # stop, metadata, ampere mode, start; nothing switches the board's supply
    assert b"\x07\x19\x11\x01\x06" == bytes(one.commands[:5])


def test_a_kit_that_supplies_the_board_is_told_the_voltage_and_switched_on(kit: Callable[..., Kit]) -> None:
    """3300 mV is 0x0CE4."""
    one = kit()
    meter = opened(kind="ppk2", port=one.path, voltage_mv=3300, mode="source")
    read_words(meter, 100)

    assert b"\x07\x19\x11\x02\x0d\x0c\xe4\x0c\x01\x06" == bytes(one.commands[:10])


def test_time_is_what_the_kit_counted_and_not_when_its_bunches_came(kit: Callable[..., Kit]) -> None:
    meter = opened(kind="ppk2", port=kit().path, voltage_mv=3300)
    read_words(meter, 500)
    samples = []
    words = []
    while len(samples) < 5:
        samples += meter.read()
        words.append(getattr(meter, "_words"))  # noqa: B009
        time.sleep(0.01)

    began = [sample.t_ns - count * 10_000 for sample, count in zip(samples, words, strict=True)]
    assert began == sorted(began, reverse=True)  # it can only turn out to have begun earlier
    assert all(sample.t_ns <= time.monotonic_ns() for sample in samples)


def test_a_lost_word_takes_what_its_neighbour_does_and_time_goes_on(kit: Callable[..., Kit]) -> None:
    """Five of a hundred thousand: the counter tells."""
    one = kit(lose=range(1000, 1005), limit=6000)
    meter = opened(kind="ppk2", port=one.path, voltage_mv=3300)

    last = read_words(meter, 6000)

    assert pytest.approx(AMPERES * 3.3 * 6000 * 10, rel=1e-9) == last.value


def test_too_many_lost_words_end_it(kit: Callable[..., Kit]) -> None:
    one = kit(lose=range(1000, 100_000, 3))
    meter = opened(kind="ppk2", port=one.path, voltage_mv=3300)

    with pytest.raises(ValueError, match="words were lost on the way"):
        read_words(meter, 5000)


def test_words_that_begin_in_the_middle_are_found() -> None:
    stream = b"".join(word(1000 + i, 3, i) for i in range(60, 80))  # the counter turns over, too

    for cut in range(4):
        assert stream[4 if cut else 0 :] == ppk2._aligned(stream[cut:])
    assert b"" == ppk2._aligned(b"\x00" * 40)


def test_a_kit_that_is_unplugged_raises(kit: Callable[..., Kit]) -> None:
    one = kit()
    meter = opened(kind="ppk2", port=one.path, voltage_mv=3300)
    read_words(meter, 100)

    one.unplug()

    with pytest.raises(OSError):
        for _ in range(10_000):
            meter.read()


# SCPI


def test_an_instruments_power_is_voltage_times_current_or_what_it_says_itself(tmp_path: Path) -> None:
    backend = scpi_backend(tmp_path)
    both = opened(kind="scpi", resource="ASRL1::INSTR", backend=backend, update_period_s=0.1, averaging="box")
    power = opened(kind="scpi", resource="ASRL1::INSTR", backend=backend, power="MEAS:POW?")

    assert (pytest.approx(4000), pytest.approx(4100)) == (both.read()[0].value, power.read()[0].value)
    (rail,) = both.rails
    assert ("measured:keysight-e36312a@supply", 0.1, "box", "host") == (
        rail.source, rail.update_period_s, rail.averaging, rail.clock
    )  # fmt: skip
    close_meters([both, power])


def test_an_instrument_that_does_not_answer_with_a_number_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MeterError) as caught:
        opened(kind="scpi", resource="ASRL1::INSTR", backend=scpi_backend(tmp_path), power="MEAS:TEMP?")

    assert "meter 'supply' (scpi): could not convert string to float: 'warm'" == str(caught.value)


def test_an_instrument_that_is_not_there_is_refused() -> None:
    with pytest.raises(MeterError, match=r"meter 'supply' \(scpi\): TCPIP::127.0.0.1::1::SOCKET: "):
        opened(kind="scpi", resource="TCPIP::127.0.0.1::1::SOCKET")


# Joulescope


def test_a_joulescope_integrates_by_itself() -> None:
    """It counts joules; 50,000 of its samples at 1 MS/s make one of ours."""
    driver = JoulescopeDriver("u/js220/000123")
    meter = joulescope.choose(driver, "supply", "board-dc", {})

    topic = "u/js220/000123/s/stats/value"
    driver.measure(topic, 0.25)
    driver.measure(topic, 0.5)

    assert [250_000.0, 500_000.0] == [sample.value for sample in meter.read()]
    assert [] == meter.read()
    assert (50_000, 1) == tuple(driver.published[f"u/js220/000123/s/stats/{name}"] for name in ("scnt", "ctrl"))
    assert ("js220", "energy_uj", 0.05) == (
        meter.rails[0].chip, meter.rails[0].quantity, meter.rails[0].update_period_s
    )  # fmt: skip
    close_meters([meter])
    assert ({}, []) == (driver.listeners, driver.opened)


def test_of_two_joulescopes_one_must_be_named() -> None:
    driver = JoulescopeDriver("u/js220/000123", "u/js110/000456")

    with pytest.raises(
        OSError, match="`device` must name one of the instruments that are plugged in: u/js220/000123, "
    ):
        joulescope.choose(driver, "supply", "board-dc", {})
    chosen = joulescope.choose(driver, "supply", "board-dc", {"device": "456"})

    assert ("js110", 0.5) == (chosen.rails[0].chip, chosen.rails[0].update_period_s)


# All of them


@pytest.mark.parametrize(
    ("meter", "message", "hint"),
    [
        (HostMeter(kind="ppk", settings={}), "no kind of meter is called 'ppk'; did you mean 'ppk2'?", None),
        (HostMeter(kind="ppk2", settings={"voltage_mv": 3300}), "meter 'supply' (ppk2) needs the setting 'port'",
         "`settings: {port: ...}` of the meter in boards.yaml"),
        (HostMeter(kind="ppk2", settings={"port": "/dev/null/x", "voltage_mv": 3300}), "meter 'supply' (ppk2): ", None),
        (HostMeter(kind="joulescope"), "meter 'supply' (joulescope) needs pyjoulescope_driver",
         "`pip install pyjoulescope-driver`"),
    ],
    ids=["kind", "setting", "port", "package"],
)  # fmt: skip
def test_a_meter_that_does_not_work_says_why(meter: HostMeter, message: str, hint: str | None) -> None:
    with pytest.raises(MeterError) as caught:
        open_meters([meter])

    assert str(caught.value).startswith(message)
    assert hint == caught.value.hint


def test_an_installed_package_adds_a_kind_of_meter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By an entry point; its rails are dated by this machine's clock, whatever it says itself."""
    (tmp_path / "wattson.py").write_text(
        "from devices.protocol.meter import Rail, Sample\n"
        "class Meter:\n"
        "    period_s = 0.0\n"
        "    def __init__(self, name, scope, settings):\n"
        "        self.rails = [Rail(name, 'wattson', scope, 'power_mw', settings['period_s'])]\n"
        "    def read(self):\n"
        "        return [Sample(1, 0, 42.0)]\n"
    )
    about = tmp_path / "wattson-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: wattson\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[deploy.meters]\nwattson = wattson:Meter\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    meter = opened(kind="wattson", period_s=0.5)

    assert ("wattson", 0.5, "host") == (meter.rails[0].chip, meter.rails[0].update_period_s, meter.rails[0].clock)
    assert [Sample(1, 0, 42.0)] == meter.read()


def test_a_check_lists_the_rails_of_this_machines_meters_or_why_not(tmp_path: Path, local: Board) -> None:
    settings = {"resource": "ASRL1::INSTR", "backend": scpi_backend(tmp_path)}
    works = local.model_copy(update={"host_meters": (HostMeter(kind="scpi", settings=settings),)})
    fails = local.model_copy(update={"host_meters": (HostMeter(kind="scpi"),)})

    assert ["supply"] == [rail["name"] for rail in describe(works)["rails"]]
    assert "meter 'supply' (scpi) needs the setting 'resource'" == describe(fails)["error"]


@pytest.mark.alone
def test_a_board_without_a_meter_is_measured_by_one_on_this_machine(
    open_session: Callable[..., Session], local: Board, tmp_path: Path
) -> None:
    """4 W all the time, so net is nothing; samples lie on both clocks, and the record says how far these agree."""
    (tmp_path / "sysroot").mkdir()
    path = tmp_path / "sum.tflite"
    path.write_bytes(elementwise())
    bundle = build(str(path), name="sum", vectors=0).bundle
    settings = {"resource": "ASRL1::INSTR", "backend": scpi_backend(tmp_path), "update_period_s": 0.1}
    meter = HostMeter(kind="scpi", settings=settings)
    board = local.model_copy(update={"host_meters": (meter,)})
    session = open_session(board, "--sysroot", str(tmp_path / "sysroot"))
    push(session, bundle)
    store = Store(tmp_path / "results")
    # Read 20 times a second: 2.5 s is the shortest window that allows a gap of five reads, and not of two only.
    plan = Plan(duration_s=0.1, restarts=1, warmup_max_s=0.1, idle_s=2.5, windows=1, window_s=2.5)

    for _ in range(4):
        with store.writer("measure", {"board": {"name": "local"}, "bundle": {"name": "sum", "digest": "ab"}}) as writer:
            measured = measure(session, bundle.digest, INPUTS, plan, writer, "sum")
        (found,) = measured.energy
        if isinstance(found, EnergyReading) and found.net_uj is not None:
            break
        # Rightly so, where a busy machine starved the reader in the window; or while idle, which costs the net energy.
        assert isinstance(found, EnergyReading) or ((1, ("window-gap",)),) == found.rejected

    stored = store.get(writer.id)
    assert isinstance(found, EnergyReading)
    assert ("measured:keysight-e36312a@supply", "board-dc", True) == (found.source, found.scope, found.primary)
    assert pytest.approx(4000) == found.active_mw
    assert found.net_uj is not None and abs(found.net_uj) < 1e-6 * found.gross_uj
    assert 0 < stored.record["clock"]["bound_ns"] < 1e9
    assert "host" == stored.record["host_rails"][0]["clock"]
    assert len(stored.array("host_sample_t_ns")) == len(stored.array("host_sample_value")) >= 10
    assert measured.unmetered is None


def test_a_run_that_is_fetched_later_says_that_meters_on_the_host_were_not_read_to_the_end(tmp_path: Path) -> None:
    """The board went on alone: its windows are there, and nobody on this side saw what they took."""
    session: Any = SimpleNamespace(board=LOCAL, hello={"identity": {}})
    restart = {"steady": True, "invocations": 3, "load_ns": 1, "first_ns": 1, "clock_overhead_ns": 40}
    reply = {
        "restarts": [restart], "state_before": {}, "state_after": {}, "runtime": "x", "events": {"lost": 0},
        "idle_ns": [[0, 5], [9, 14]], "windows": [{"window_ns": [5, 9], "invocations": 3}],
    }  # fmt: skip
    store = Store(tmp_path / "results")
    with store.writer("measure", {"board": {"name": "local"}, "bundle": {"name": "sum", "digest": "ab"}}) as writer:
        collector = Collector(session, {"rails": [], "unreadable": []}, writer, Plan(), host_meters=True)
        collector({"restart": 1, "phase": "measure"}, np.arange(1, 4, dtype="<i8").tobytes())
        collector.part(reply)
        measured = collector.finish()

    assert "the meters on this machine were not read on after the line to local broke" == measured.unmetered
    assert "meter-failed" in measured.verdict and () == measured.energy
