"""
Reads meters while something else runs, and hands the samples over in batches.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from typing import Any, Callable

from devices.protocol.meter import Meter, Rail, Sample

BATCH_S = 0.25
DEFAULT_HZ = 100.0
MOST_CPU = 0.008  # of one core: the sampler slows down rather than take more


def rails(meters: Sequence[Meter]) -> list[Rail]:
    """The rails of all meters, in the order in which samples number them."""
    return [rail for meter in meters for rail in meter.rails]


class Sampler:
    """
    A thread that reads all meters about `rate_hz` times a second, each no more often than its own period allows.

    The pause between two readings is drawn anew each time from half to one and a half periods: a fixed period
    aliases with the period of the load (a real ina3221 driver, polled each 100 ms under a load of 100 ms: 71 to 73 %
    error in energy).  Where reading takes more than `MOST_CPU` of a core the periods grow.

    Args:
        deliver: called from the thread with a non-empty list of samples.
        failed: called once from the thread with a line of text when a meter stops answering; sampling ends.
    """

    def __init__(
        self,
        meters: Sequence[Meter],
        rate_hz: float,
        deliver: Callable[[list[Sample]], Any],
        failed: Callable[[str], Any],
    ) -> None:
        self._meters = meters
        self._first = [0] * len(meters)
        for i in range(1, len(meters)):
            self._first[i] = self._first[i - 1] + len(meters[i - 1].rails)
        self._period_s = self._least_period_s = 1 / rate_hz
        self._deliver = deliver
        self._failed = failed
        self._stopping = False
        self._wake = threading.Lock()  # held until the end: waiting for it costs a fifth of waiting for an Event
        self._wake.acquire()
        self._resting = False
        self._random = random.Random()
        self._turns = 0
        self._missing = [0] * (self._first[-1] + len(meters[-1].rails) if meters else 0)
        self._cpu_ns = self._total_cpu_ns = 0
        self._began_ns = self._ended_ns = time.monotonic_ns()
        self._rested_ns = 0
        self._process_cpu_ns = time.process_time_ns()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)
        self._thread.start()

    def rest(self, resting: bool) -> None:
        """Read nothing for a while, or go on: what the reading does to the rest can be seen so."""
        self._resting = resting

    def stop(self) -> None:
        """Take a last sample, deliver what is left, end the thread."""
        self._stopping = True
        self._wake.release()
        self._thread.join()
        self._ended_ns = time.monotonic_ns()
        self._process_cpu_ns = time.process_time_ns() - self._process_cpu_ns

    def stats(self) -> dict[str, Any]:
        """
        What the sampling was and what it cost, once stopped.

        Returns:
            ``turns``, how often the meters were read; ``missing``, for each rail how often it gave nothing;
            ``cpu_share``, CPU time of the sampling thread as a share of one core, while it did not rest;
            ``process_cpu_share``, of the whole process, with handing over and everything else it did.
        """
        wall_ns = max(1, self._ended_ns - self._began_ns)
        awake_ns = max(1, wall_ns - self._rested_ns)
        return {
            "turns": self._turns,
            "missing": list(self._missing),
            "wall_s": wall_ns / 1e9,
            "cpu_share": self._total_cpu_ns / awake_ns,
            "process_cpu_share": self._process_cpu_ns / wall_ns,
        }

    def _run(self) -> None:
        batch: list[Sample] = []
        flushed = time.monotonic()
        due = [0.0] * len(self._meters)
        try:
            while True:
                stopping = self._stopping
                now = time.monotonic()
                if not self._resting or stopping:
                    self._turns += 1
                    for i, meter in enumerate(self._meters):
                        if stopping or now >= due[i]:
                            self._read(i, meter, batch)
                            due[i] = now + meter.period_s * self._random.uniform(0.5, 1.5)
                if batch and (stopping or now - flushed > BATCH_S):
                    self._deliver(batch)
                    batch = []
                    self._slow_down(now - flushed)
                    flushed = now
                if stopping:
                    return
                pause_s = self._period_s * self._random.uniform(0.5, 1.5)
                self._wake.acquire(timeout=pause_s)
                if self._resting:
                    self._rested_ns += int(pause_s * 1e9)
        except (OSError, ValueError) as error:
            if batch:
                self._deliver(batch)
            self._failed(f"a meter stopped answering: {error}")
        finally:
            self._total_cpu_ns = time.thread_time_ns()

    def _slow_down(self, wall_s: float) -> None:
        """Longer periods if the last batch took too much of the CPU, and shorter ones again if it did not."""
        cpu_ns = time.thread_time_ns()
        share = (cpu_ns - self._cpu_ns) / 1e9 / max(wall_s, 1e-3)
        self._cpu_ns = cpu_ns
        slower = self._period_s * min(2.0, max(0.8, share / MOST_CPU))
        self._period_s = max(self._least_period_s, slower)

    def _read(self, number: int, meter: Meter, batch: list[Sample]) -> None:
        first = self._first[number]
        samples = meter.read()
        batch += [Sample(s.t_ns, s.rail + first, s.value) for s in samples] if first else samples
        if len(samples) < len(meter.rails):
            there = {sample.rail for sample in samples}
            for rail in range(len(meter.rails)):
                self._missing[first + rail] += rail not in there
