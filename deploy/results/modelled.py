"""
Energy where there is no meter, when somebody asks for it: a model of two states, idle and busy.

A board draws P = P_idle + k x (threads that compute), a straight line through readings that somebody took with a meter
and wrote into boards.yaml.  Net energy is the part above idle, for the time of an invocation.  The number carries its
error, which is never below 10 %: of one kind of load, nothing is known about another.  No table of joules per
operation is used: a CPU spends most of its energy on other things.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from deploy.results.energy import EnergyReading
from deploy.results.stats import LatencySummary

FLOOR = 0.10  # a model that fits its own points says nothing better of another load
UNPROVEN = 0.50  # where there are too few points to leave one out


def reading(latency: LatencySummary, threads: int, board: str, points: Sequence[tuple[int, float]]) -> EnergyReading:
    """
    What the model says, as a reading whose source begins with ``modelled:``.

    Args:
        points: threads that computed, and power in mW; at least one with 0 threads and one with more.
    """
    line = _line(points)
    share = error(points)
    idle_mw, busy_mw = line[0], line[0] + line[1] * threads
    seconds = latency.mean_ns / 1e9
    net, gross = (busy_mw - idle_mw) * 1000 * seconds, busy_mw * 1000 * seconds
    return EnergyReading(
        rail="board", source=f"modelled:idle-busy@{board}", scope="board-dc", gross_uj=gross, net_uj=net,
        gross_u_uj=share * abs(gross), net_u_uj=share * abs(net), idle_mw=idle_mw, active_mw=busy_mw, windows=0,
        budget={"model": share * abs(net) / 2}, codes=("modelled",), primary=True,
    )  # fmt: skip


def error(points: Sequence[tuple[int, float]]) -> float:
    """
    How far the model may be off, as a share: the largest error of predicting what a point draws beyond idle from the
    other points; `UNPROVEN` with fewer than three of them, and never below `FLOOR`.
    """
    if len(points) < 3:
        return UNPROVEN
    worst = FLOOR
    for i, (threads, power_mw) in enumerate(points):
        others = [*points[:i], *points[i + 1 :]]
        if threads == 0 or len({t for t, _ in others}) < 2:
            continue
        idle_mw, each_mw = _line(others)
        extra = power_mw - idle_mw
        worst = max(worst, abs(each_mw * threads - extra) / abs(extra)) if extra else UNPROVEN
    return worst


def _line(points: Sequence[tuple[int, float]]) -> tuple[float, float]:
    threads, power = np.array(points, float).T
    each, idle = np.polyfit(threads, power, 1)
    return float(idle), float(each)
