"""
Boards by the hundred: one process that speaks the agent's protocol for each, and runs no model.

Conversations, leases, tokens, turns and spools are the agent's own; only the measurement is a pause that yields made-up
latencies.  The process outlives whoever talks to it, as boards do, and writes down every measurement: who held which
token, from when to when.

    python -m tests.farm.simulated FOLDER NAME...

A conversation begins with the board's name on a line of its own.  ``!{json}`` asks for faults instead: of which board,
and ``silent`` (says hello, and nothing more), ``refuses`` (no model runs), ``dies`` (after so many requests the line
is cut; a measurement goes on) or none any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from devices.guard import Fence
from devices.protocol import errors
from devices.protocol.conversation import PROTOCOL
from devices.protocol.errors import AgentError
from devices.protocol.framing import Decoder, Encoder, Kind, Message
from devices.turn import Turn

MEDIAN_NS = 2_000_000
HARMLESS = ("ping", "session.claim", "session.release", "spool.list", "spool.read", "release.find", "meters.list")
HELLO = {
    "protocol": PROTOCOL,
    "agent": "simulated",
    "identity": {"machine": "x86_64", "python": "3.11.0", "emulated": "simulated: its times mean nothing"},
    "kernels": None,
}


@dataclass
class Simulated:
    """One board."""

    name: str
    root: Path
    faults: dict[str, Any] = field(default_factory=dict)
    spools: dict[str, dict[str, Any]] = field(default_factory=dict)
    requests: int = 0
    running: set[asyncio.Task[None]] = field(default_factory=set)


class Conversation:
    """As `devices.agent.Agent`, for a simulated board."""

    def __init__(self, board: Simulated, log: Any, writer: asyncio.StreamWriter) -> None:
        self._board = board
        self._log = log
        self._writer = writer
        self._encoder = Encoder()
        self._fence = Fence(board.root)
        self._turn = Turn(board.root / "turn")
        self._jobs: set[asyncio.Task[None]] = set()
        self._evicts = False

    def send(self, kind: Kind, header: dict[str, Any], payload: bytes = b"") -> None:
        silent = self._board.faults.get("silent") and kind is not Kind.HELLO
        if not silent and not self._writer.is_closing():
            self._writer.write(self._encoder.encode(Message(kind, header, payload)))

    async def talk(self, reader: asyncio.StreamReader) -> None:
        heart = asyncio.ensure_future(self._heartbeat())
        decoder = Decoder()
        self.send(Kind.HELLO, HELLO)
        try:
            while data := await reader.read(1 << 16):
                for message in decoder.feed(data):
                    if message.kind is Kind.BYE:
                        for job in self._jobs:  # a host that says goodbye wants no more of it
                            job.cancel()
                        return
                    if message.kind is Kind.HEARTBEAT and "lease_s" in message.header:
                        with contextlib.suppress(AgentError):
                            self._fence.extend(message.header["lease_s"])
                    if message.kind is Kind.REQUEST:
                        self._board.requests += 1
                        if self._board.faults.get("dies") == self._board.requests:
                            return
                        self._answer(message.header)
        finally:
            heart.cancel()
            self._writer.close()
            if not self._jobs:
                self._turn.close()

    async def _heartbeat(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            self.send(Kind.HEARTBEAT, {})

    def _answer(self, header: dict[str, Any]) -> None:
        try:
            op = header["op"]
            with contextlib.nullcontext() if op in HARMLESS else self._fence.passing():
                if op == "measure.run":
                    self._measure(header)
                    return
                answer, payload = self._ops(op, header)
            self.send(Kind.REPLY, {"id": header["id"], **answer}, payload)
        except AgentError as error:
            self.send(Kind.ERROR, {"id": header["id"], **error.header()})

    def _ops(self, op: str, header: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        spools = self._board.spools
        if op == "session.claim":
            seconds, issuer = header["seconds"], header.get("issuer", "")
            self._fence.claim(header["token"], header["owner"], seconds, issuer)
            self._evicts = header.get("evict") is True
        elif op == "session.release":
            self._fence.release()
        elif op == "release.find":
            return {"fit": True, "release": "net/1", "current": {"bundle": header["bundle"]}}, b""
        elif op == "meters.list":
            return {"rails": [], "unreadable": []}, b""
        elif op == "spool.list":
            listed = [
                {"id": key, "bytes": len(s["data"]), "grows": s["grows"], "request": s["request"]}
                for key, s in spools.items()
            ]
            return {"spools": listed}, b""
        elif op == "spool.read":
            spool = spools[header["spool"]]
            return {"more": spool["grows"]}, bytes(spool["data"][header["offset"] :])
        elif op == "spool.drop":
            spools.pop(header["spool"], None)
        elif op != "ping":
            raise AgentError(errors.UNKNOWN_OP, f"a simulated board has no {op}")
        return {}, b""

    def _measure(self, header: dict[str, Any]) -> None:
        if self._board.faults.get("refuses"):
            raise AgentError(errors.MODEL_REFUSED, "it will not")
        if self._evicts:
            for other in self._board.running - self._jobs:
                other.cancel()
        else:
            self._turn.take(alone=True)
        key = f"{time.time_ns():x}"
        request = {name: header.get(name) for name in ("bundle", "plan", "run")}
        self._board.spools[key] = {"data": bytearray(), "grows": True, "request": request}
        job = asyncio.ensure_future(self._run(header, key))
        for jobs in (self._jobs, self._board.running):
            jobs.add(job)
            job.add_done_callback(jobs.discard)

    async def _run(self, header: dict[str, Any], key: str) -> None:
        board, spool, encoder = self._board, self._board.spools[key], Encoder()
        while self._evicts:  # whoever was told to give way does so in a moment
            with contextlib.suppress(AgentError):
                self._turn.take(alone=True)
                break
            await asyncio.sleep(0.01)
        begin, cell = time.monotonic_ns(), (header["run"].get("cell") or {}).get("key")
        entry = {"board": board.name, "token": self._fence.token, "cell": cell, "begin": begin}
        try:
            await asyncio.sleep(header["plan"]["duration_s"])
            begin_ns, n = begin, 20
            latencies = struct.pack(f"<{n}q", *(MEDIAN_NS + 1000 * i for i in range(n)))
            event = {"id": header["id"], "restart": 1, "phase": "measure"}
            timed = {"load_ns": 1, "first_ns": 1, "clock_overhead_ns": 40, "steady": True, "invocations": n}
            restarts = [{**timed, "window_ns": [begin_ns, time.monotonic_ns()], "median_ns": float(MEDIAN_NS)}]
            reply = {
                "id": header["id"], "spool": key, "events": {"all": 1, "live": 1, "lost": 0}, "restarts": restarts,
                "windows": [], "idle_ns": [], "state_before": {}, "state_after": {}, "runtime": "simulated",
            }  # fmt: skip
            spool["data"] += encoder.encode(Message(Kind.EVENT, event, latencies))
            spool["data"] += encoder.encode(Message(Kind.REPLY, reply))
            spool["grows"] = False
            self.send(Kind.EVENT, event, latencies)
            self.send(Kind.REPLY, reply)
        except asyncio.CancelledError:
            board.spools.pop(key, None)
        finally:
            done = not spool["grows"]
            self._log.write(json.dumps({**entry, "end": time.monotonic_ns(), "done": done}) + "\n")
            self._log.flush()
            self._turn.give_back()
            if self._writer.is_closing():
                self._turn.close()


async def serve(folder: Path, names: list[str]) -> None:
    boards = {}
    for name in names:
        root = folder / "boards" / name
        (root / "releases").mkdir(parents=True, exist_ok=True)
        boards[name] = Simulated(name, root)
    with (folder / "log").open("a") as log:

        async def welcome(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            line = (await reader.readline()).decode().strip()
            if line.startswith("!"):
                asked = json.loads(line[1:])
                board = boards[asked.pop("board")]
                board.faults, board.requests = asked, 0
                writer.write(b"ok\n")
                writer.close()
            elif line:
                with contextlib.suppress(ConnectionError):
                    await Conversation(boards[line], log, writer).talk(reader)

        server = await asyncio.start_unix_server(welcome, folder / "socket", backlog=1024)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        async with server:
            await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), sys.argv[2:]))
