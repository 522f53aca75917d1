"""
Pushing over SSH on loopback: beside scp and rsync, which share one warm connection; and to 20 boards at once.

All sides lie on this machine, so that clients and servers share its cores: what is compared takes turns.
"""

from __future__ import annotations

import os
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from deploy import bundle as bundles
from deploy.boards import Board
from deploy.build import build
from deploy.bundle import Bundle
from deploy.fleet import push_to_all
from deploy.push import already, push
from deploy.session import Session, connect
from devices.protocol.manifest import MODEL
from tests.benchmarks.figure import Figure
from tests.conftest import GOLDEN
from tests.sshd import Sshd

PAIRS = 9
SIZE = 5_000_000
BOARDS = 20


def figures(folder: Path) -> Iterator[Figure]:
    """What SSH is about."""
    try:
        server = Sshd(folder / "push-sshd", sys.executable)
    except pytest.skip.Exception as error:
        yield Figure("push over ssh", "", f"not measured: {error}", None)
        return
    for name in ("scp", "rsync"):
        if program := shutil.which(name):
            (server.folder / "bin" / name).symlink_to(program)
    server.start()
    home = folder / "push-home"
    home.mkdir()
    before = os.environ["HOME"]
    os.environ["HOME"] = str(home)
    server.write_client_config(home, "bench")
    master = _Master(home)
    try:
        yield from _five_megabytes(folder, home, server, master)
        yield from _already_there(folder, home, server, master)
        yield from _many_boards(home)
    finally:
        master.close()
        server.stop()
        os.environ["HOME"] = before


class _Master:
    """The options for ssh, scp and rsync to share one connection, which is open."""

    def __init__(self, home: Path) -> None:
        self.options = ["-F", str(home / ".ssh" / "config"), "-o", "StrictHostKeyChecking=accept-new"]
        self.options += ["-o", f"UserKnownHostsFile={home}/peer_hosts", "-o", "LogLevel=ERROR"]
        self.options += ["-o", f"ControlPath={home}/master"]
        subprocess.run(["ssh", *self.options, "-o", "ControlMaster=yes", "-fN", "bench"], check=True)

    def close(self) -> None:
        subprocess.run(["ssh", *self.options, "-O", "exit", "bench"], check=False, capture_output=True)


def _five_megabytes(folder: Path, home: Path, server: Sshd, master: _Master) -> Iterator[Figure]:
    """The files of a bundle into the store, checked by SHA-256 and on the disk, against a copy of the bundle by scp."""
    ours: list[float] = []
    peers: dict[str, list[float]] = {"scp": [], "scp -O": []}
    with connect(_board(0), home / "known_hosts") as session:
        for pair in range(PAIRS + 1):
            bundle = _bundle()
            bundle.write(folder / "big.bundle")
            target = f"bench:{server.home}/copy"
            runs: list[Callable[[], None]] = [lambda b=bundle: ours.append(_seconds(lambda: _upload(session, b)))]  # type: ignore[misc]
            for name, times in peers.items():
                command = [*name.split(), "-q", *master.options, str(folder / "big.bundle"), target]
                runs.append(lambda c=command, t=times: t.append(_seconds(lambda: subprocess.run(c, check=True))))  # type: ignore[misc]
            for turn in range(len(runs)):
                runs[(turn + pair) % len(runs)]()
    ours, fastest = ours[1:], [min(pair) for pair in zip(*(times[1:] for times in peers.values()), strict=True)]
    ratios = [peer / own for own, peer in zip(ours, fastest, strict=True)]
    ratio = statistics.median(ratios)
    scp = ", ".join(f"{name} {statistics.median(times) * 1e3:.0f} ms" for name, times in peers.items())
    result = f"{ratio:.2f}x ({min(ratios):.2f} to {max(ratios):.2f}); {statistics.median(ours) * 1e3:.0f} ms, {scp}"
    yield Figure("5 MB bundle over ssh, its speed / that of scp on a warm connection", ">= 0.9x", result, ratio >= 0.9)


def _already_there(folder: Path, home: Path, server: Sshd, master: _Master) -> Iterator[Figure]:
    bundle = _bundle()
    bundle.write(folder / "same.bundle")
    copy = ["rsync", "-c", "-e", " ".join(["ssh", *master.options]), str(folder / "same.bundle")]
    copy.append(f"bench:{server.home}/same")
    has_rsync = shutil.which("rsync") is not None
    ours, peer = [], []
    with connect(_board(0), home / "known_hosts") as session:
        push(session, bundle)
        tcp = session._transport._client.get_transport().sock  # type: ignore[attr-defined]
        if has_rsync:
            subprocess.run(copy, check=True)
        wire = 0
        for _ in range(PAIRS * 4):
            start = _tcp_bytes(tcp)
            ours.append(_seconds(lambda: already(session, bundle) or sys.exit("it is not there")))
            wire = max(wire, _tcp_bytes(tcp) - start)
            if has_rsync:
                peer.append(_seconds(lambda: subprocess.run(copy, check=True)))
    m = statistics.median(ours) * 1e3
    result = f"{m:.1f} ms (to {max(ours) * 1e3:.1f}), one round trip, {wire} bytes in both directions"
    yield Figure("pushing what is already there", "< 10 ms, < 1 kB", result, m < 10 and wire < 1000)
    if has_rsync:
        yield Figure(
            "  beside it: rsync -c of an identical file, warm", "", f"{statistics.median(peer) * 1e3:.0f} ms", None
        )


def _many_boards(home: Path) -> Iterator[Figure]:
    """20 agents with a root each: the same bytes to all at once, and to one after the other."""
    boards = [_board(number) for number in range(1, BOARDS + 1)]
    one_by_one, at_once = [], []
    with ExitStack() as stack:
        sessions = [stack.enter_context(connect(board, home / "known_hosts")) for board in boards]
        for _ in range(3):
            bundle = _bundle()
            one_by_one.append(_seconds(lambda b=bundle: [_upload(session, b) for session in sessions]))  # type: ignore[misc]
            bundle = _bundle()
            at_once.append(_seconds(lambda b=bundle: _in_threads(sessions, b)))  # type: ignore[misc]
    ratios = [together / alone for together, alone in zip(at_once, one_by_one, strict=True)]
    ratio = statistics.median(ratios)
    result = f"{ratio:.2f}x ({min(ratios):.2f} to {max(ratios):.2f}); {statistics.median(at_once):.2f} s for 100 MB"
    yield Figure(f"5 MB to {BOARDS} boards at once / one after the other", "<= 1.3x", result, ratio <= 1.3)
    watcher = _Nobody()
    bundle = _bundle()
    started = time.perf_counter()
    ended = list(push_to_all(boards, bundle, home / "known_hosts", lambda board: watcher))
    whole = time.perf_counter() - started
    failed = [outcome.error for outcome in ended if outcome.error]
    result = f"{whole:.1f} s" + (f", {len(failed)} failed: {failed[0]}" if failed else "")
    cores = os.cpu_count()
    yield Figure(f"  with connecting, {BOARDS} agents and {BOARDS} proofs on these {cores} cores", "", result, None)


class _Nobody:
    def note(self, text: str) -> None: ...

    def bytes(self, done: int, total: int) -> None: ...


def _in_threads(sessions: list[Session], bundle: Bundle) -> None:
    threads = [threading.Thread(target=_upload, args=(session, bundle)) for session in sessions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _upload(session: Session, bundle: Bundle) -> None:
    for name, entry in bundle.manifest.files.items():
        session.upload(entry.sha256, bundle.files[name])
    session.request("release.stage", bundle.manifest_bytes)


_digits: list[Bundle] = []


def _bundle() -> Bundle:
    """A bundle of 5 MB that no board has seen: the digits, and random bytes behind the flatbuffer's end."""
    if not _digits:
        _digits.append(build(str(GOLDEN / "digits_int8.tflite"), name="digits").bundle)
    digits = _digits[0]
    random = os.urandom(SIZE - len(digits.model))
    return bundles.make(replace(digits.manifest, seed=0), {**digits.files, MODEL: digits.model + random})


def _board(number: int) -> Board:
    return Board.model_validate(
        {
            "name": f"bench{number}",
            "kind": "generic",
            "transport": {"kind": "ssh", "host": "bench"},
            "root": f"~/board{number}",
            "python": sys.executable,  # with the runtime of this environment
        }
    )


def _tcp_bytes(tcp: socket.socket) -> int:
    """Bytes of a connection so far, in both directions, as the kernel counts them (tcp_info, Linux 4.1)."""
    info = tcp.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192)
    acked, received = struct.unpack_from("<QQ", info, 120)
    return int(acked + received)


def _seconds(what: Callable[[], object]) -> float:
    started = time.perf_counter()
    what()
    return time.perf_counter() - started
