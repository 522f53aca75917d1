"""Turns on their way to a gateway and back: every message may be lost, and nothing is done twice or forgotten."""

from __future__ import annotations

import asyncio
import random
import threading
from typing import Any

import pytest

from deploy.errors import StoreError
from deploy.farm import gateway
from deploy.farm.carrier import Carrier
from deploy.farm.cells import Work
from deploy.farm.outbox import Outbox
from deploy.farm.runner import Ended, Endings
from deploy.farm.station import Outcome, Turn

DIGEST = "ab" * 32
DATA = "cd" * 32
NEEDED = {DIGEST: b"a bundle", DATA: b"samples"}


def turn(board: str) -> Turn:
    return Turn(board, (Work(f"net/{board}/s", DIGEST, "net", board, {}, {}, "plan", data=DATA),), 1.0)


def test_a_turn_that_is_told_twice_begins_once():
    taken = []
    outbox = Outbox(lambda turn: taken.append(turn.board) or turn.board, threads=4)
    mine = turn("a")

    for _ in range(3):
        outbox.begin("plan", [mine])
        assert {mine.id: "a"} == outbox.collect("plan", [], 60)
    outbox.close()

    assert ["a"] == taken


def test_an_answer_is_given_until_it_is_acknowledged():
    outbox = Outbox(lambda turn: turn.board, threads=4)
    mine = turn("a")
    outbox.begin("plan", [mine])

    assert [{mine.id: "a"}] * 2 == [outbox.collect("plan", [], 60) for _ in range(2)]
    assert [] == outbox.unknown([mine.id])
    assert {} == outbox.collect("plan", [mine.id], 0)
    assert [mine.id] == outbox.unknown([mine.id])
    outbox.close()


def test_a_plan_gets_its_own_turns_and_leaves_alone():
    go_on = threading.Event()
    outbox = Outbox(lambda turn: turn.board if turn.board != "slow" else go_on.wait(60), threads=4)
    mine, slow, other = turn("a"), turn("slow"), turn("b")
    outbox.begin("mine", [mine, slow])
    outbox.begin("other", [other])

    assert {other.id: "b"} == outbox.collect("other", [], 60)
    assert {mine.id: "a"} == outbox.collect("mine", [], 60)
    assert [slow.id] == outbox.leave("mine")
    assert [mine.id, slow.id] == outbox.unknown([mine.id, slow.id, other.id])
    go_on.set()
    outbox.close()


class Gateway:
    """
    A gateway behind a bad line.

    Args:
        lost: the share of messages that do not arrive, and of answers that do not.
    """

    def __init__(self, lost: float = 0.0, full: bool = False) -> None:
        self.taken: list[str] = []
        self.kept: set[str] = set()
        self.bundles: set[str] = set()
        self._full = full
        self._lost = lost
        self._chance = random.Random(1)
        self._outbox = Outbox(self._take, threads=4)

    def _take(self, turn: Turn) -> list[Outcome]:
        self.taken.append(turn.board)
        self.kept.add(f"run of {turn.board}")
        return [Outcome(work.cell, f"run of {turn.board}") for work in turn.works]

    async def call(self, function: Any, told: dict[str, Any]) -> dict[str, Any]:
        if self._chance.random() < self._lost:
            raise OSError("lost on its way there")
        answer = await asyncio.to_thread(self._begin if function is gateway.begin else self._collect, told)
        if self._chance.random() < self._lost:
            raise OSError("lost on its way back")
        return answer

    def _begin(self, told: dict[str, Any]) -> dict[str, Any]:
        if self._full:
            return {"error": "gateway 'g': disk full", "hint": None}
        self.bundles |= set(told["bundles"])
        if not self.bundles:
            return {"missing": [DIGEST]}
        turns = [Turn(**{**turn, "works": tuple(Work(**work) for work in turn["works"])}) for turn in told["turns"]]
        self._outbox.begin(told["plan"], turns)
        return {"missing": []}

    def _collect(self, told: dict[str, Any]) -> dict[str, Any]:
        self.kept -= set(told["have"])
        unknown = self._outbox.unknown(told["turns"])
        ended = self._outbox.collect(told["plan"], told["done"], 0.05)
        packed = {
            turn: {"outcomes": [vars(outcome) for outcome in answer], "runs": {o.run: b"data" for o in answer}}
            for turn, answer in ended.items()
        }
        return {"ended": packed, "unknown": unknown}

    def close(self) -> None:
        self._outbox.close()


def carry(there: Gateway, boards: list[str], adopt: Any = lambda runs: None) -> list[Ended | BaseException]:
    """Have a turn on each board; what the plan hears, in any order."""

    async def all_of_it() -> list[Ended | BaseException]:
        ended = Endings()
        carrier = Carrier("plan", there.call, adopt, ended, again_s=0.01)
        heard: list[Ended | BaseException] = []
        for board in boards:
            carrier.start(turn(board), NEEDED)
            await asyncio.sleep(0.01)
        while len(heard) < len(boards):
            try:
                found = ended.next(0)
            except StoreError as error:
                heard += [error] * len(boards)
                break
            if found is None:
                await asyncio.sleep(0.01)
            else:
                heard.append(found)
        carrier.close()
        return heard

    try:
        return asyncio.run(asyncio.wait_for(all_of_it(), 60))
    finally:
        there.close()


def told(heard: list[Ended | BaseException]) -> dict[str, list[str | None]]:
    return {each.turn.board: [outcome.run for outcome in each.outcomes] for each in heard if isinstance(each, Ended)}


@pytest.mark.parametrize("lost", [0.0, 0.4])
def test_every_turn_ends_once_however_many_messages_are_lost(lost):
    there = Gateway(lost)
    boards = [f"b{i}" for i in range(8)]

    assert {board: [f"run of {board}"] for board in boards} == told(carry(there, boards))
    assert sorted(boards) == sorted(there.taken)
    assert {DIGEST, DATA} == there.bundles


def test_a_gateway_that_cannot_keep_anything_fails_the_cell_as_the_board_s_fault():
    (ended,) = carry(Gateway(full=True), ["a"])

    assert isinstance(ended, Ended)
    assert [("net/a/s", "gateway 'g': disk full", True)] == [(o.cell, o.error, o.board_fault) for o in ended.outcomes]


def test_a_turn_that_the_gateway_does_not_know_any_more_is_lost():
    class Forgetful(Gateway):
        def _collect(self, told: dict[str, Any]) -> dict[str, Any]:
            return {"ended": {}, "unknown": told["turns"]}

    (ended,) = carry(Forgetful(), ["a"])

    assert isinstance(ended, Ended) and ended.lost


def test_a_store_that_takes_nothing_more_ends_the_plan():
    def full(runs: list[bytes]) -> None:
        raise StoreError("no room")

    assert ["no room"] == [str(error) for error in carry(Gateway(), ["a"], full)]
