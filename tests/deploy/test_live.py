"""What a person and a program see while a measurement goes on."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from deploy.cli.live import Lines, Live, sparkline
from deploy.measure import Seen

RAILS = [{"name": "VDD_IN", "quantity": "power_mw"}, {"name": "package-0", "quantity": "energy_uj"}]
SAMPLES = np.array([(0, 0, 2000.0), (0, 1, 0.0), (1_000_000, 0, 6000.0), (1_000_000, 1, 5000.0)],
                   [("t_ns", "<i8"), ("rail", "<i4"), ("value", "<f8")])  # fmt: skip


def measured(restart: int, *latencies_us: int) -> Seen:
    return Seen("measure", restart, np.array(latencies_us) * 1000)


@pytest.fixture
def live(monkeypatch: pytest.MonkeyPatch) -> Live:
    """On a terminal, which is not drawn to."""
    made = Live("net on pi")
    made._screen = _Screen()  # type: ignore[assignment]
    return made


class _Screen:
    def update(self, picture: Any, refresh: bool) -> None:
        pass


def text(live: Live) -> str:
    console = Console(width=100)
    with console.capture() as captured:
        console.print(live.picture())
    return captured.get()


def test_the_table_shows_how_many_how_fast_and_how_they_are_spread(live: Live) -> None:
    live.update(measured(1, *[100] * 90))
    live.update(measured(2, *[150] * 9, 90_000))

    shown = text(live)

    assert "net on pi: restart 2: measure" in shown
    assert "100 invocations; latest medians 100 us, 150 us" in shown
    rows = [line.split() for line in shown.splitlines() if "█" in line]
    assert 90 == int(rows[0][-1])
    assert 100 == sum(int(line.split()[-1]) for line in shown.splitlines()[2:])  # nobody is left out
    assert "slower" in shown


def test_power_is_a_sparkline_also_where_the_meter_counts_energy(live: Live) -> None:
    live.update(Seen("measure", 1, samples=SAMPLES, rails=RAILS))

    shown = text(live)

    assert "VDD_IN  ▁█  2 to 6 W" in shown
    assert "package-0  ▄  5 to 5 W" in shown  # 5,000 uJ in a millisecond


def test_what_is_counted_does_not_grow(live: Live) -> None:
    for _ in range(100):
        live.update(measured(1, *range(100, 200)))

    assert 10_000 == live._counts.sum()
    assert 2800 == live._counts.size


def test_a_sparkline_reaches_from_the_smallest_to_the_largest() -> None:
    assert "▁▄█  1 to 3" == sparkline([1, 2, 3]).replace("▅", "▄")


def test_machines_get_a_line_of_json_for_each_event(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines("net on pi")
    for seen in (
        Seen("loading", 1), measured(1, 3, 1, 2), measured(1, 4), Seen("measure", 1, samples=SAMPLES[:1], rails=RAILS)
    ):  # fmt: skip
        lines.update(seen)

    assert [
        {"event": "phase", "phase": "loading", "restart": 1},
        {"event": "phase", "phase": "measure", "restart": 1},
        {"event": "latency", "restart": 1, "n": 3, "total": 3, "min_ns": 1000, "median_ns": 2000.0, "max_ns": 3000},
        {"event": "latency", "restart": 1, "n": 1, "total": 4, "min_ns": 4000, "median_ns": 4000.0, "max_ns": 4000},
        {"event": "samples", "t_ns": [0], "rail": [0], "value": [2000.0]},
    ] == [json.loads(line) for line in capsys.readouterr().out.splitlines()]
