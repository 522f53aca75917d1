"""Faults at every point of a push: whatever dies, the board runs the old or the new release, whole."""

from __future__ import annotations

import json
import os
import random
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import psutil
import pytest

from deploy import bundle as bundles
from deploy import push as pushing
from deploy.boards import Board
from deploy.build import build
from deploy.bundle import Bundle
from deploy.session import connect
from devices.protocol import manifest
from tests.conftest import GOLDEN, THOROUGH

POINTS = 200 if THOROUGH else 24


def version(digits: Bundle, number: int) -> Bundle:
    """A bundle that no board has seen, with the same answers: nothing reads what stands behind a flatbuffer's end."""
    files = {**digits.files, manifest.MODEL: digits.model + number.to_bytes(8, "little")}
    return bundles.make(replace(digits.manifest, seed=number), files)


def current(root: Path) -> str:
    """Digest of the current release, after every byte of it was checked, without the agent's help."""
    data = (root / os.readlink(root / "current") / "manifest.json").read_bytes()
    for entry in manifest.parse(data).files.values():
        blob = (root / "store" / entry.sha256).read_bytes()
        assert (entry.sha256, entry.bytes) == (manifest.digest(blob), len(blob))
    return manifest.digest(data)


def start_pushing(board: Board, bundle: Bundle, known_hosts: Path) -> int:
    """A host in a process of its own that pushes once; returns its pid.  Forked, as starting Python takes longer."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            with connect(board, known_hosts) as session:
                pushing.push(session, bundle)
            status = 0
        finally:
            os._exit(status)
    return pid


def kill_agent(host: int) -> bool:
    """SIGKILL the agent of a host, if there is one yet, or still."""
    try:
        agents = psutil.Process(host).children()
        for agent in agents:
            agent.kill()
        return bool(agents)
    except psutil.NoSuchProcess:
        return False


def kill_at_points(victim: str, board: Board, digits: Bundle, known_hosts: Path) -> dict[str, int]:
    """
    The story of one board; returns how often what was met.

    Every push brings a bundle that the board has not seen.  Each killed one is followed by one of another host,
    which is connected all the time, so that what the killed one left is met with no pause in between.
    """
    root, rng, number = Path(board.root), random.Random(5), 1
    seen: Counter[str] = Counter()
    with connect(board, known_hosts) as other:
        pushing.push(other, version(digits, number))
        durations = []
        for _ in range(3):
            number += 1
            started = time.monotonic()
            assert 0 == os.waitpid(start_pushing(board, version(digits, number), known_hosts), 0)[1]
            durations.append(time.monotonic() - started)
        for _ in range(POINTS // 2):
            number += 2
            new, next_one = version(digits, number), version(digits, number + 1)
            old = current(root)
            host = start_pushing(board, new, known_hosts)
            time.sleep(rng.uniform(0, 1.1 * max(durations)))
            if victim == "agent":
                seen["no agent yet, or no more"] += not kill_agent(host)
            else:
                os.kill(host, signal.SIGKILL)
            found = current(root)
            os.waitpid(host, 0)
            assert found in (old, new.digest)
            assert current(root) in (old, new.digest)

            pushing.push(other, next_one)

            # A killed host's agent that was about to switch may do so after the next push did: it is whole as well.
            assert current(root) in (next_one.digest, new.digest)
            seen["old release"] += found == old
            seen["new release"] += found == new.digest
    return dict(seen)


def start(story: Callable[[], object]) -> tuple[int, int]:
    """Run something in a process of its own; returns its pid and where its JSON, or its traceback, can be read."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.write(writing, json.dumps(story()).encode())
            status = 0
        except BaseException:
            os.write(writing, traceback.format_exc().encode())
        finally:
            os._exit(status)
    os.close(writing)
    return pid, reading


@pytest.mark.slow
def test_a_push_that_is_killed_anywhere_leaves_the_old_or_the_new_release_whole_and_the_next_one_finishes(
    local: Board, private_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGKILL at seeded moments: on one board the host dies, on another, at the same time, the agent."""
    digits = build(str(GOLDEN / "digits_int8.tflite"), name="digits").bundle
    stories = {}
    for victim in ("host", "agent"):
        board = local.model_copy(update={"root": f"{local.root}-{victim}"})
        stories[victim] = start(partial(kill_at_points, victim, board, digits, private_home / "known_hosts"))
    with capsys.disabled():
        for victim, (pid, reading) in stories.items():
            with os.fdopen(reading) as source:
                said = source.read()
            assert 0 == os.waitpid(pid, 0)[1], said
            seen = json.loads(said)
            assert POINTS // 2 == seen["old release"] + seen["new release"]
            print(f"\n{POINTS // 2} points of a push, {victim} killed: {seen}", end="")
