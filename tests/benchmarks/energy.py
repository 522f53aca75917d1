"""
Net energy through simulated sensors, by the very code that turns real samples into readings; and what sampling costs.

The sensors of the first rows have no error but their time: how a box or an IIR smears a load of 100 ms (2 W, 6 W).
Those of the rows below also round, are noisy, and are off by a gain and an offset within their bounds, the board's idle
power creeps, and the load has 10.1, 33 or 100 ms: there the stated uncertainty must hold the truth.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from deploy.boards import LOCAL
from deploy.session import connect
from tests.benchmarks.figure import Figure
from tests.devices.test_facts import tree
from tests.devices.trees import ORIN_NX
from tests.sensors import SENSORS, Sensor, trial

TRIALS = 100
LSB_INA3221_MW = 40.0
LSB_MW = {"ina226": 6.25, "smart plug": 100.0}  # 10 mOhm at 5 V; an INA3221 on 5 mOhm has 40 mW
# For a sensor without memory: what is asked for, see `deploy.results.windows`, and what a slow board may be left with
# when the sampler keeps to its share of the CPU.
POINT_RATES_HZ = (300.0, 60.0)
COST_S = 10.0


def figures(folder: Path) -> Iterator[Figure]:
    """The rows."""
    for sensor, rate_hz in [(each, hz) for each in SENSORS for hz in rates_hz(each)]:
        rng = np.random.default_rng(1)
        ideal = [trial(sensor, rng, 0.1, rate_hz=rate_hz) for _ in range(TRIALS)]
        errors = np.array([reading.net_uj / truth - 1 for reading, truth in ideal if reading.net_uj is not None])
        p95 = float(np.percentile(np.abs(errors), 95))
        result = f"p95 {p95:.3%}, mean {errors.mean():+.3%}, worst {np.abs(errors).max():.3%}, at {rate_hz:g} Hz"
        yield Figure(f"net energy error, simulated {sensor.name}", "<= 0.5 %", result, p95 <= 0.005)
    # Ratios that the alias check does not know: the windows must disagree, and say so.
    for parts in (5, 15):
        rng = np.random.default_rng(3)
        sensor = replace(SENSORS[1], lsb_mw=LSB_INA3221_MW, cycle_error=0.0)
        found = [trial(sensor, rng, sensor.period_s * parts, rate_hz=POINT_RATES_HZ[0]) for _ in range(TRIALS)]
        held = sum(abs((r.net_uj or 0.0) - truth) <= (r.net_u_uj or 0.0) for r, truth in found)
        said = sum("windows-disagree" in r.codes for r, _ in found)
        result = f"{held} of {TRIALS}, `windows-disagree` in {said}"
        name = f"stated uncertainty holds the truth, {sensor.name} in {parts} phases of the load"
        yield Figure(name, ">= 95 %", result, held >= 0.95 * TRIALS)
    for sensor in SENSORS:
        rate_hz = rates_hz(sensor)[-1]
        rng = np.random.default_rng(2)
        lsb = LSB_MW.get(sensor.name, LSB_INA3221_MW)
        real = replace(sensor, lsb_mw=lsb, noise_mw=lsb / 2, gain=0.0103, offset_mw=lsb)
        held, stated = 0, []
        for _ in range(TRIALS):
            reading, truth = trial(
                real, rng, float(rng.choice([0.0101, 0.033, 0.1])), float(rng.uniform(-0.02, 0.02)), rate_hz
            )
            assert reading.net_uj is not None and reading.net_u_uj is not None
            held += abs(reading.net_uj - truth) <= reading.net_u_uj
            stated.append(reading.net_u_uj / truth)
        result = f"{held} of {TRIALS}, stated +-{np.median(stated):.2%}"
        yield Figure(f"stated uncertainty holds the truth, {sensor.name}", ">= 95 %", result, held >= 0.95 * TRIALS)
    yield sampling_cost(folder)


def rates_hz(sensor: Sensor) -> tuple[float, ...]:
    """How often it is read."""
    return POINT_RATES_HZ if sensor.rail.averaging == "none" else (100.0,)


def sampling_cost(folder: Path) -> Figure:
    """An agent that reads an Orin NX's tree of files and hands the samples over, and does nothing else."""
    sysroot = tree(folder / "orin", ORIN_NX)
    board = LOCAL.model_copy(update={"root": str(folder / "cost")})
    with connect(board, folder / "known_hosts", ["--sysroot", str(sysroot)]) as session:
        session.request("meters.start")
        end = time.monotonic() + COST_S
        while time.monotonic() < end:
            session.wait(0.5)
        stats = session.request("meters.stop").header["sampling"]
    share = stats["process_cpu_share"]
    result = (
        f"{share:.2%} of a core with handing over, {stats['cpu_share']:.2%} reading three rails from files "
        f"{stats['turns'] / stats['wall_s']:.0f} times a second"
    )
    return Figure("cost of sampling at the default rate", "< 1 % of a core", result, share < 0.01)
