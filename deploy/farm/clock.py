"""
The clock that leases end by: nanoseconds since boot, time asleep included.

The wall clock is set, by people and by NTP, and must neither free a board nor keep it; it is only ever shown.
"""

from __future__ import annotations

import time
from pathlib import Path

_BOOT = Path("/proc/sys/kernel/random/boot_id")


class Clock:
    """This machine's; a test gives one of its own."""

    def now_ns(self) -> int:
        return time.clock_gettime_ns(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))

    def boot(self) -> str:
        """The boot that `now_ns` counts from: what another one said is over."""
        try:
            return _BOOT.read_text().strip()
        except OSError:
            return ""

    def wall_s(self) -> float:
        """To be shown, and for nothing else."""
        return time.time()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)
