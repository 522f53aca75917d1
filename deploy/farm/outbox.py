"""
The turns that a gateway was given, and what came of them until whoever gave them says that it has it.

A turn begins once, however often it is told, and its answer is given until it is acknowledged; so any message between
plan and gateway may be lost and sent again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from deploy.farm.station import Turn

GATHER_S = 0.2  # from the first turn that ends to the answer: others that end meanwhile go with it
KEPT = 1000  # answers that nobody fetches, of plans that were killed

A = TypeVar("A")


@dataclass
class _Given(Generic[A]):
    plan: str
    answer: A | None = None


class Outbox(Generic[A]):
    """
    Args:
        take: has a turn and gives the answer; called in a thread of the turn's own, must not raise.
        threads: turns that run at a time.
    """

    def __init__(self, take: Callable[[Turn], A], threads: int) -> None:
        self._take = take
        self._given: dict[str, _Given[A]] = {}  # by turn, oldest first
        self._changed = threading.Condition()
        self._threads = ThreadPoolExecutor(threads, "turn")

    def begin(self, plan: str, turns: Iterable[Turn]) -> None:
        """Begin those that are not known yet."""
        with self._changed:
            new = [turn for turn in turns if turn.id not in self._given]
            self._given.update({turn.id: _Given(plan) for turn in new})
        for turn in new:
            self._threads.submit(self._run, turn)

    def _run(self, turn: Turn) -> None:
        answer = self._take(turn)
        with self._changed:
            if turn.id in self._given:
                self._given[turn.id].answer = answer
            ended = [known for known, given in self._given.items() if given.answer is not None]
            for known in ended[:-KEPT]:
                del self._given[known]
            self._changed.notify_all()

    def collect(self, plan: str, done: Iterable[str], wait_s: float) -> dict[str, A]:
        """
        Turn -> answer, of this plan's turns that have ended; waits for the first of them.

        Args:
            done: turns whose answers the plan has; they are forgotten.
        """
        end = time.monotonic() + wait_s
        with self._changed:
            for turn in done:
                self._given.pop(turn, None)
            while not self._ended(plan) and (left := end - time.monotonic()) > 0:
                self._changed.wait(left)
            if not (self._ended(plan) and self._running(plan)):
                return self._ended(plan)
        time.sleep(GATHER_S)
        with self._changed:
            return self._ended(plan)

    def unknown(self, turns: Iterable[str]) -> list[str]:
        """Those that were never begun here, or have been forgotten."""
        with self._changed:
            return [turn for turn in turns if turn not in self._given]

    def leave(self, plan: str) -> list[str]:
        """Forget a plan; its turns that still run."""
        with self._changed:
            running = self._running(plan)
            self._given = {turn: given for turn, given in self._given.items() if given.plan != plan}
            self._changed.notify_all()
        return running

    def close(self) -> None:
        """Begin nothing any more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _ended(self, plan: str) -> dict[str, A]:
        found = self._given.items()
        return {turn: given.answer for turn, given in found if given.plan == plan and given.answer is not None}

    def _running(self, plan: str) -> list[str]:
        return [turn for turn, given in self._given.items() if given.plan == plan and given.answer is None]
