"""A clock that tests move."""

from __future__ import annotations

from deploy.farm.clock import Clock


class TestClock(Clock):
    """Stands still until it is moved; the wall clock goes its own way."""

    __test__ = False

    def __init__(self) -> None:
        self.s = 1000.0
        self.wall = 1.7e9
        self.boot_id = "first"

    def now_ns(self) -> int:
        return int(self.s * 1e9)

    def boot(self) -> str:
        return self.boot_id

    def wall_s(self) -> float:
        return self.wall

    def sleep(self, seconds: float) -> None:
        self.s += seconds
