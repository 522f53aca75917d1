"""
Reads the meters while a model runs, and hands the samples over in batches.
"""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path
from typing import Any, Callable

from devices.meters import hwmon, powercap
from devices.meters.base import Meter, Rail, Sample, Unreadable

BATCH_S = 0.25


def find(root: Path = Path("/")) -> tuple[list[Meter], list[Unreadable]]:
    """Every meter of this board, and those that are there but may not be read."""
    meters: list[Meter] = []
    unreadable: list[Unreadable] = []
    for source in (powercap, hwmon):
        found, refused = source.find(root)
        meters += found
        unreadable += refused
    return meters, unreadable


def rails(meters: list[Meter]) -> list[Rail]:
    """The rails of all meters, in the order in which samples number them."""
    return [rail for meter in meters for rail in meter.rails]


class Sampler:
    """
    A thread that reads all meters about `rate_hz` times a second.

    The pause between two readings is drawn anew each time from half to one and a half periods: a fixed period
    aliases with the period of the load (measured elsewhere: up to 73 % error in energy).

    Args:
        deliver: called from the thread with a non-empty list of samples.
        failed: called once from the thread with a line of text when a meter stops answering; sampling ends.
    """

    def __init__(
        self,
        meters: list[Meter],
        rate_hz: float,
        deliver: Callable[[list[Sample]], Any],
        failed: Callable[[str], Any],
    ) -> None:
        self._meters = meters
        self._period_s = 1 / rate_hz
        self._deliver = deliver
        self._failed = failed
        self._stop = threading.Event()
        self._random = random.Random()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Take a last sample, deliver what is left, end the thread."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        batch: list[Sample] = []
        flushed = time.monotonic()
        try:
            while True:
                stopping = self._stop.is_set()
                first_rail = 0
                for meter in self._meters:
                    batch += [Sample(s.t_ns, s.rail + first_rail, s.value) for s in meter.read()]
                    first_rail += len(meter.rails)
                if batch and (stopping or time.monotonic() - flushed > BATCH_S):
                    self._deliver(batch)
                    batch = []
                    flushed = time.monotonic()
                if stopping:
                    return
                self._stop.wait(self._period_s * self._random.uniform(0.5, 1.5))
        except (OSError, ValueError) as error:
            if batch:
                self._deliver(batch)
            self._failed(f"a meter stopped answering: {error}")
