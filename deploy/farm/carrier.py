"""
What goes to and fro between a plan and one gateway: turns there, and what came of them back.

Both go in batches, as a message costs every process on its way about a millisecond, whatever is in it.  One that fails
is sent again, as it does no harm to hear it twice (`outbox.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from deploy.errors import StoreError
from deploy.farm import gateway
from deploy.farm.runner import Ended, Endings
from deploy.farm.station import Outcome, Turn

AGAIN_S = 0.5
POLL_S = 5.0  # a gateway says so if nothing ends for so long

Call = Callable[..., Awaitable[Any]]  # a function of `deploy.farm.gateway`, its arguments, in the gateway's process
Adopt = Callable[[list[bytes]], Any]


class Carrier:
    """
    To be made and used on the loop of whoever asks the gateway.

    Args:
        plan: tells this plan's turns from those of others.
        call: calls a function of `deploy.farm.gateway` there; raises what it likes where that fails.
        adopt: takes packed runs into the plan's store.
        ended: is given every turn that is over.
        again_s: between two attempts to send a message.

    Attributes:
        turns: those that are under way, by their ids.
    """

    def __init__(self, plan: str, call: Call, adopt: Adopt, ended: Endings, again_s: float = AGAIN_S) -> None:
        self.turns: dict[str, Turn] = {}
        self._plan = plan
        self._call = call
        self._adopt = adopt
        self._ended = ended
        self._again_s = again_s
        self._fresh: dict[str, Turn] = {}  # not known to have begun
        self._packed: dict[str, bytes] = {}
        self._brought: set[str] = set()  # digests
        self._done: list[str] = []  # turns that the gateway may forget
        self._have: list[str] = []  # and runs
        self._begin = asyncio.Event()
        self._begun = asyncio.Event()
        self._tasks = [asyncio.ensure_future(self._sending()), asyncio.ensure_future(self._fetching())]

    def start(self, turn: Turn, needed: Mapping[str, bytes]) -> None:
        """Have a turn there; `needed` are bundles and samples of its cells, packed, by digest."""
        self.turns[turn.id] = self._fresh[turn.id] = turn
        self._packed |= needed
        self._begin.set()

    def close(self) -> list[str]:
        """Carry nothing any more: what is under way is lost.  Returns runs that the gateway may forget."""
        for task in self._tasks:
            task.cancel()
        for turn in list(self.turns.values()):
            self._over(Ended(turn, lost=True))
        return self._have

    async def _sending(self) -> None:
        while True:
            await self._begin.wait()
            self._begin.clear()
            while batch := list(self._fresh.values()):
                needed = {digest for turn in batch for work in turn.works for digest in work.needs}
                fresh = {digest: self._packed[digest] for digest in needed - self._brought}
                turns = [{**vars(turn), "works": [vars(work) for work in turn.works]} for turn in batch]
                told = {"plan": self._plan, "turns": turns, "bundles": fresh}
                answer = await self._insist(gateway.begin, told)
                if "error" in answer:  # a gateway whose disk is full must not end the plan
                    for turn in batch:
                        self._failed(turn, answer)
                    continue
                missing = set(answer["missing"])
                self._brought = (self._brought | needed) - missing
                for turn in batch:
                    if missing.isdisjoint(digest for work in turn.works for digest in work.needs):
                        self._fresh.pop(turn.id, None)
                self._begun.set()

    async def _fetching(self) -> None:
        while True:
            begun = [turn for turn in self.turns if turn not in self._fresh]
            if not begun:
                self._begun.clear()
                await self._begun.wait()
                continue
            done, have = list(self._done), list(self._have)
            told = {"plan": self._plan, "turns": begun, "done": done, "have": have, "wait_s": POLL_S}
            answer = await self._insist(gateway.collect, told)
            self._done, self._have = self._done[len(done) :], self._have[len(have) :]
            for turn in answer["unknown"]:
                if turn in self.turns:
                    self._over(Ended(self.turns[turn], lost=True))
            await self._take({turn: told for turn, told in answer["ended"].items() if turn in self.turns})
            self._done += answer["ended"]

    async def _take(self, ended: dict[str, dict[str, Any]]) -> None:
        runs = {run: data for told in ended.values() for run, data in told.get("runs", {}).items()}
        try:
            await asyncio.to_thread(self._adopt, list(runs.values()))
        except StoreError as error:
            self._ended.put(error)
            return
        self._have += runs
        for turn, told in ended.items():
            if "error" in told:
                self._failed(self.turns[turn], told)
            else:
                self._over(Ended(self.turns[turn], tuple(Outcome(**outcome) for outcome in told["outcomes"])))

    def _failed(self, turn: Turn, told: dict[str, Any]) -> None:
        self._over(Ended(turn, (Outcome(turn.works[0].cell, None, told["error"], told["hint"], board_fault=True),)))

    def _over(self, ended: Ended) -> None:
        self.turns.pop(ended.turn.id, None)
        self._fresh.pop(ended.turn.id, None)
        self._ended.put(ended)

    async def _insist(self, function: Callable[..., Any], told: dict[str, Any]) -> Any:
        while True:
            try:
                return await self._call(function, told)
            except Exception:  # the scheduler or the gateway is gone for now; Dask has many words for it
                await asyncio.sleep(self._again_s)
