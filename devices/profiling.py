"""
How long the first n operators of a model take, for every n: the model is cut there, and the cuts take turns.

The runtime's Python interface has no profiler for single operators.  Differences between neighbours are the operators'
times; the host takes them, from the raw values.
"""

from __future__ import annotations

import tempfile
import time
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Callable, Optional

from devices.protocol import errors
from devices.protocol.cut import CutError, Graph
from devices.protocol.errors import AgentError

SLICE_NS = 1_000_000  # of one cut in one sweep, at least
LEAST = 3  # invocations in a slice: the first one finds the caches as another cut left them
LEAST_SWEEPS = 5
WARM_SWEEPS = 3
_clock = time.perf_counter_ns

Invoke = Callable[[], Optional[int]]  # returns the ns it took where time is simulated, else None


def load_cuts(
    model: bytes, group: int, load: Callable[[str], Any]
) -> tuple[list[tuple[int, Any]], list[dict[str, Any]]]:
    """
    Every cut of `model` that the runtime takes, loaded.

    Args:
        load: makes a model of a path.

    Returns:
        The cuts, each with its number of operators, rising; and those that were refused, with the reason.

    Raises:
        AgentError: bad-input, the file is none that can be cut.
    """
    cuts: list[tuple[int, Any]] = []
    refused: list[dict[str, Any]] = []
    try:
        graph = Graph(model)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "cut.tflite"
            for count in graph.cuts(group):
                path.write_bytes(graph.cut(count))
                try:
                    cuts.append((count, load(str(path))))
                except AgentError as error:
                    refused.append({"operators": count, "reason": str(error)})
                path.unlink()  # the runtime has it mapped
    except CutError as error:
        raise AgentError(errors.BAD_INPUT, f"the model cannot be cut: {error}") from error
    return cuts, refused


def sweeps(invokes: Sequence[Invoke], duration_s: float, once: bool = False) -> Iterator[tuple[int, int, array[int]]]:
    """
    Time all `invokes` in turns, a slice each, forwards and backwards, for `duration_s` and at least `LEAST_SWEEPS`.

    Args:
        once: each takes what it takes, as time is simulated: one invocation of each will do.

    Yields:
        Sweep, number in `invokes`, and latencies in ns.  The first `WARM_SWEEPS` have negative numbers.
    """
    if once:
        for number, invoke in enumerate(invokes):
            yield 0, number, array("q", [invoke() or 0])
        return
    sweep = -WARM_SWEEPS
    end = _clock()
    while sweep < LEAST_SWEEPS or _clock() < end:
        order = range(len(invokes))
        for number in order if sweep % 2 else reversed(order):
            yield sweep, number, _slice(invokes[number])
        sweep += 1
        if sweep == 0:
            end = _clock() + int(duration_s * 1e9)


def _slice(invoke: Invoke) -> array[int]:
    latencies = array("q")
    end = _clock() + SLICE_NS
    while True:
        before = _clock()
        took = invoke()
        after = _clock()
        latencies.append(after - before if took is None else took)
        if after >= end and len(latencies) >= LEAST:
            return latencies
