"""Figures of the serial transport, beside XMODEM-1k and ZMODEM (lrzsz) on the same line in the same run."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from deploy.boards import Board, SerialTransport
from deploy.session import connect
from deploy.transport.serial import Serial
from tests.benchmarks.figure import Figure
from tests.conftest import ROOT
from tests.console import Console
from tests.line import Line

BAUD = 115_200
SIZE = 100_000
CAP_S = 60.0
LINES = (  # latency, byte errors, goal
    (0.001, 0.0, 0.95),
    (0.016, 0.0, 0.95),
    (0.001, 1e-4, 0.90),
    (0.001, 1e-3, 0.75),
)
PEERS = {"XMODEM-1k": (["sx", "-k"], ["rx"]), "ZMODEM": (["sz", "-b"], ["rz", "-y", "-b"])}


def figures(folder: Path) -> Iterator[Figure]:
    data = random.Random(1).randbytes(SIZE)
    for latency_s, errors, goal in LINES:
        results = {"deploy": _ours(data, latency_s, errors)}
        for name, (send, receive) in PEERS.items():
            if shutil.which(send[0]):
                results[name] = _peer(folder, data, latency_s, errors, send, receive)
        ours = results["deploy"]
        shown = ", ".join(
            f"{name} {_efficiency(took):.2f}" if took else f"{name} fails" for name, took in results.items()
        )
        what = f"serial, 100 kB, {latency_s * 1e3:g} ms" + (f", byte errors {errors:g}" if errors else "")
        yield Figure(what, f">= {goal} of the line", shown, ours is not None and _efficiency(ours) >= goal)
    took_s = _login(folder)
    yield Figure("serial: login to the agent's first frame", "< 20 s", f"{took_s:.1f} s", took_s < 20)


def _efficiency(took_s: float) -> float:
    return SIZE * 10 / BAUD / took_s


def _ours(data: bytes, latency_s: float, errors: float) -> float | None:
    settings = SerialTransport(kind="serial", port="", baud=BAUD)
    board = Board(name="bench", kind="generic", transport=settings)
    with Line(BAUD, latency_s, errors) as line, open(line.board, "r+b", buffering=0) as tty:
        there = subprocess.Popen([sys.executable, "-m", "devices", "--line"], stdin=tty, stdout=tty, cwd=ROOT)
        transport = Serial(board, settings.model_copy(update={"port": line.host}))
        try:
            channel = transport.run(f"head -c {len(data)} | sha256sum")
            started = time.perf_counter()
            channel.write(data)
            said = b""
            while b"\n" not in said and time.perf_counter() - started < CAP_S:
                said += channel.read(1.0) or b""
            took = time.perf_counter() - started
            channel.close()
        finally:
            transport.close()
            there.kill()
            there.wait()
    return took if said.split()[:1] == [hashlib.sha256(data).hexdigest().encode()] else None


def _peer(
    folder: Path, data: bytes, latency_s: float, errors: float, send: list[str], receive: list[str]
) -> float | None:
    source, sink = folder / "sent.bin", folder / "received"
    source.write_bytes(data)
    shutil.rmtree(sink, ignore_errors=True)
    sink.mkdir()
    target = sink / source.name
    with (
        Line(BAUD, latency_s, errors) as line,
        open(line.host, "r+b", buffering=0) as host,
        open(line.board, "r+b", buffering=0) as board,
    ):
        quiet = subprocess.DEVNULL
        words = [*receive, *([target.name] if receive[0] == "rx" else [])]
        there = subprocess.Popen(words, stdin=board, stdout=board, stderr=quiet, cwd=sink)
        time.sleep(0.3)
        started = time.perf_counter()
        here = subprocess.Popen([*send, str(source)], stdin=host, stdout=host, stderr=quiet)
        took = None
        while time.perf_counter() - started < CAP_S:
            # XMODEM pads its last block.  What comes after the last byte is on the disk (rz waits up to 30 s for a
            # farewell that a line with latency loses) is not counted.
            if target.is_file() and os.path.getsize(target) >= len(data):
                took = time.perf_counter() - started
                break
            if there.poll() is not None and here.poll() is not None:
                break
            time.sleep(0.01)
        for process in (here, there):
            process.kill()
            process.wait()
    return took if took and target.read_bytes()[: len(data)] == data else None


def _login(folder: Path) -> float:
    with Line(BAUD, 0.001) as line, Console(line.board, folder / "console", user="pi", password="raspberry"):
        time.sleep(1.0)  # getty
        transport = {"kind": "serial", "port": line.host, "user": "pi"}
        board = Board.model_validate({"name": "bench", "kind": "generic", "transport": transport})
        started = time.perf_counter()
        with connect(board, folder / "known_hosts", None, lambda prompt: "raspberry"):
            return time.perf_counter() - started
