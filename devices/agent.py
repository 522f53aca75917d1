"""
The agent: frames in, handler, frame out.

One process per conversation, over whatever bytes it is given.  It keeps to the standard library: numpy and the
LiteRT runtime are imported by the runner, a process of its own, as real models kill interpreters.

One loop waits for the host, the runner and the meters.  It ends when the host says goodbye, closes the line, or
falls silent for `silence_s`; the runner never outlives it.
"""

from __future__ import annotations

import os
import selectors
import struct
import time
from pathlib import Path
from typing import Any, Callable

from devices import facts
from devices.link import Link
from devices.meters import sampler
from devices.meters.base import Sample
from devices.protocol import errors, manifest
from devices.protocol.errors import AgentError
from devices.protocol.framing import Decoder, Encoder, FrameError, Kind, Message
from devices.store import Store
from devices.supervisor import RunnerProcess

PROTOCOL = 1
HEARTBEAT_S = 1.0
DEFAULT_LIMIT_S = 120.0
PROBE_LIMIT_S = 60.0
_SAMPLE = struct.Struct("<qid")  # t_ns, rail, value

Handler = Callable[[dict[str, Any], bytes], "tuple[dict[str, Any], bytes] | None"]


class Job:
    """A request that the runner is busy with."""

    def __init__(self, request: int, limit_s: float, then: Callable[[Message], Message] | None = None) -> None:
        self.request = request
        self.limit_s = limit_s
        self.deadline = time.monotonic() + limit_s
        self.then = then  # what to make of the runner's reply before it goes to the host


class Agent:
    """
    One conversation with one host.

    Args:
        root: the board's folder, see `store`.
        link: to the host.
        silence_s: end after so many seconds without a frame from the host.
        sysroot: where /sys and /proc are; ``/`` but for tests.
    """

    def __init__(self, root: Path, link: Link, silence_s: float, sysroot: Path = Path("/")) -> None:
        self._store = Store(root)
        self._link = link
        self._silence_s = silence_s
        self._sysroot = sysroot
        self._identity = facts.identity(sysroot)
        self._decoder = Decoder()
        self._encoder = Encoder()
        self._selector = selectors.PollSelector()  # epoll refuses files, such as /dev/null
        self._runner: RunnerProcess | None = None
        self._loaded = False
        self._job: Job | None = None
        self._sampler: sampler.Sampler | None = None
        self._meters, self._unreadable = sampler.find(sysroot)
        self._wake_read, self._wake_write = os.pipe()
        self._samples: list[Message] = []  # from the sampler's thread; list.append is atomic
        self._sent = time.monotonic()
        self._handlers: dict[str, Handler] = {
            "ping": lambda header, payload: ({"clock_ns": time.monotonic_ns()}, payload),
            "state": lambda header, payload: (facts.state(self._sysroot, self._store.root), b""),
            "store.progress": self._store_progress,
            "store.put": self._store_put,
            "release.find": self._release_find,
            "release.stage": lambda header, payload: ({"release": self._store.stage(payload)}, b""),
            "release.activate": self._release_activate,
            "release.drop": self._release_drop,
            "release.current": self._release_current,
            "runtime.probe": self._runtime_probe,
            "runtime.install": self._runtime_install,
            "meters.list": self._meters_list,
            "meters.start": self._meters_start,
            "meters.stop": self._meters_stop,
            "model.load": self._model_load,
            "model.infer": self._model_request("infer"),
            "model.measure": self._model_request("measure"),
            "model.verify": self._model_verify,
            "model.unload": self._model_unload,
            "clean": self._clean,
        }

    def run(self) -> None:
        """Talk until the conversation is over."""
        host = self._link.fileno()
        self._selector.register(host, selectors.EVENT_READ, self._from_host)
        self._selector.register(self._wake_read, selectors.EVENT_READ, self._from_sampler)
        try:
            self._send(Kind.HELLO, self._hello())
            heard = time.monotonic()
            while True:
                for key, _ in self._selector.select(self._patience()):
                    if self._selector.get_map().get(key.fileobj) is not key:
                        continue  # an earlier event of this round ended the runner it belonged to
                    if key.fileobj == host:
                        heard = time.monotonic()
                    if not key.data():
                        return
                now = time.monotonic()
                due = self._link.deadline()
                if due is not None and now >= due and not self._from_host():
                    return
                if now - heard > self._silence_s:
                    return
                if self._job and now > self._job.deadline:
                    limit_s = self._job.limit_s
                    self._stop_runner()
                    self._finish(AgentError(errors.TIME_LIMIT, f"killed after {limit_s:g} s (time limit)"))
                if now - self._sent > HEARTBEAT_S:
                    self._send(Kind.HEARTBEAT, {})
        except (BrokenPipeError, ConnectionResetError):
            return  # the host is gone; there is nobody to tell
        finally:
            self._stop_runner()
            if self._sampler:
                self._sampler.stop()

    def _patience(self) -> float:
        """How long to wait for something to happen, in seconds."""
        due = self._link.deadline()
        return HEARTBEAT_S / 2 if due is None else max(0.0, min(HEARTBEAT_S / 2, due - time.monotonic()))

    # Frames

    def _hello(self) -> dict[str, Any]:
        return {
            "protocol": PROTOCOL,
            "pid": os.getpid(),
            "root": str(self._store.root),
            "agent": Path(__file__).resolve().parent.parent.name,
            "clock": "CLOCK_MONOTONIC",
            "clock_ns": time.monotonic_ns(),
            "identity": self._identity,
            "ops": sorted(self._handlers),
        }

    def _send(self, kind: Kind, header: dict[str, Any], payload: bytes = b"") -> None:
        self._link.send(self._encoder.encode(Message(kind, header, payload)))
        self._sent = time.monotonic()

    def _from_host(self) -> bool:
        """Take what the host sent; False when the conversation is over."""
        data = self._link.receive()
        if data is None:
            return False
        try:
            for message in self._decoder.feed(data):
                if message.kind is Kind.BYE:
                    return False
                if message.kind is Kind.REQUEST:
                    self._request(message)
                elif message.kind is Kind.CANCEL:
                    self._cancel(message.header)
        except FrameError as error:
            # What follows cannot be trusted either: say why, and end.
            self._send(Kind.ERROR, {"id": None, "code": errors.BAD_REQUEST, "message": str(error), "facts": {}})
            return False
        return True

    def _request(self, message: Message) -> None:
        request = message.header.get("id")
        op = message.header.get("op")
        handler = self._handlers.get(op) if isinstance(op, str) else None
        try:
            if type(request) is not int:
                raise AgentError(errors.BAD_REQUEST, "a request without an id")
            if handler is None:
                raise AgentError(errors.UNKNOWN_OP, f"this agent knows no {op!r}", ops=sorted(self._handlers))
            answer = handler(message.header, message.payload)
        except AgentError as error:
            self._send(Kind.ERROR, {"id": request, **error.header()})
        except OSError as error:
            failed = AgentError(errors.IO_ERROR, f"{error.strerror}: {error.filename}")
            self._send(Kind.ERROR, {"id": request, **failed.header()})
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
            failed = AgentError(errors.BAD_REQUEST, f"{op}: {type(error).__name__}: {error}")
            self._send(Kind.ERROR, {"id": request, **failed.header()})
        else:
            if answer is not None:
                self._send(Kind.REPLY, {"id": request, **answer[0]}, answer[1])

    def _cancel(self, header: dict[str, Any]) -> None:
        if self._job and self._job.request == header.get("id"):
            self._stop_runner()
            self._finish(AgentError(errors.CANCELLED, "cancelled by the host"))

    # The store and releases

    def _store_progress(self, header: dict[str, Any], payload: bytes) -> tuple[dict[str, Any], bytes]:
        return {"progress": {d: self._store.progress(d) for d in header["digests"]}}, b""

    def _store_put(self, header: dict[str, Any], payload: bytes) -> tuple[dict[str, Any], bytes]:
        whole = self._store.put(header["sha256"], header["bytes"], header["offset"], payload)
        return {"whole": whole}, b""

    def _release_find(self, header: dict[str, Any], payload: bytes) -> tuple[dict[str, Any], bytes]:
        found = self._store.find(header["bundle"])
        return {"release": found[0] if found else None, **self._current()}, b""

    def _release_activate(self, header: dict[str, Any], payload: bytes) -> tuple[dict[str, Any], bytes]:
        self._store.activate(header["release"])
        return {}, b""

    def _release_drop(self, header: dict[str, Any], payload: bytes) -> tuple[dict[str, Any], bytes]:
        self._require_idle()
        self._stop_runner()
        self._store.drop(header["release"])
        return {}, b""

    def _release_current(self, header: dict[str, Any], payload: bytes) -> tuple[dict[str, Any], bytes]:
        return self._current(), b""

    def _current(self) -> dict[str, Any]:
        current = self._store.current()
        return {"current": {"release": current[0], "bundle": current[1]} if current else None}

    def _clean(self, header: dict[str, Any], payload: bytes) -> tuple[dict[str, Any], bytes]:
        self._require_idle()
        self._stop_runner()
        self._store.clean()
        return {}, b""

    # The runtime

    def _runtime_probe(self, header: dict[str, Any], payload: bytes) -> None:
        """Start a runner and let it say which numpy and which LiteRT it has; no-runtime when it cannot."""
        self._start_runner(None)
        job = self._begin(header, PROBE_LIMIT_S, {"op": "probe"})
        runtime = self._store.runtime()

        def reply(message: Message) -> Message:
            self._stop_runner()
            return Message(Kind.REPLY, {**message.header, "installed": runtime.name if runtime else None})

        job.then = reply

    def _runtime_install(self, header: dict[str, Any], payload: bytes) -> tuple[dict[str, Any], bytes]:
        self._require_idle()
        self._stop_runner()
        self._store.install_runtime(header["sha256"])
        return {}, b""

    # Meters

    def _meters_list(self, header: dict[str, Any], payload: bytes) -> tuple[dict[str, Any], bytes]:
        return {
            "rails": [rail.describe() for rail in sampler.rails(self._meters)],
            "unreadable": [vars(u) for u in self._unreadable],
        }, b""

    def _meters_start(self, header: dict[str, Any], payload: bytes) -> tuple[dict[str, Any], bytes]:
        if self._sampler:
            raise AgentError(errors.BUSY, "the meters are being read already")
        if not self._meters:
            raise AgentError(errors.NOT_FOUND, "this board has no meter that can be read")
        request = header["id"]
        rate_hz = float(header.get("rate_hz", 100.0))
        if not 0.01 <= rate_hz <= 10_000:
            raise AgentError(errors.BAD_REQUEST, f"rate_hz {rate_hz:g} is not in [0.01, 10000]")

        def deliver(samples: list[Sample]) -> None:
            packed = b"".join(_SAMPLE.pack(s.t_ns, s.rail, s.value) for s in samples)
            self._samples.append(Message(Kind.EVENT, {"id": request, "samples": len(samples)}, packed))
            os.write(self._wake_write, b"s")

        def failed(text: str) -> None:
            self._samples.append(Message(Kind.EVENT, {"id": request, "samples": 0, "failed": text}))
            os.write(self._wake_write, b"s")

        self._sampler = sampler.Sampler(self._meters, rate_hz, deliver, failed)
        return {"clock_ns": time.monotonic_ns()}, b""

    def _meters_stop(self, header: dict[str, Any], payload: bytes) -> tuple[dict[str, Any], bytes]:
        if self._sampler:
            self._sampler.stop()
            self._sampler = None
            self._flush_samples()
        return {}, b""

    def _from_sampler(self) -> bool:
        os.read(self._wake_read, 4096)
        self._flush_samples()
        return True

    def _flush_samples(self) -> None:
        while self._samples:
            message = self._samples.pop(0)
            self._send(message.kind, message.header, message.payload)

    # Models

    def _model_load(self, header: dict[str, Any], payload: bytes) -> None:
        """
        Load the model of a release (`bundle`), or of a bare file in the store (`sha256`).

        Always in a new process: what an earlier model left behind cannot touch this one, and a restart is the
        level at which latency varies most.
        """
        shapes = header.get("shapes")
        if "bundle" in header:
            found = self._store.find(header["bundle"])
            if found is None:
                raise AgentError(errors.NOT_FOUND, f"bundle {str(header['bundle'])[:12]} is not on this board")
            sha256 = found[1].files[manifest.MODEL].sha256
            shapes = shapes or {name: list(shape) for name, shape in found[1].shapes.items()}
        else:
            sha256 = header["sha256"]
        path = self._store.path(sha256)
        threads = int(header.get("threads", 1))
        if not 1 <= threads <= 1024:
            raise AgentError(errors.BAD_REQUEST, f"threads {threads} is not in [1, 1024]")
        # Without a stated limit, the board's whole memory: a model that wants more would take the agent down with it.
        self._start_runner(header.get("memory_bytes") or self._identity.get("memory_bytes"))
        request = {
            "op": "load",
            "path": str(path),
            "threads": threads,
            "shapes": shapes,
            "signature": header.get("signature"),
        }
        self._begin(header, float(header.get("limit_s", DEFAULT_LIMIT_S)), request)
        self._loaded = True

    def _model_request(self, op: str) -> Handler:
        def handle(header: dict[str, Any], payload: bytes) -> None:
            self._require_model()
            limit_s = float(header.get("limit_s", DEFAULT_LIMIT_S))
            self._begin(header, limit_s, {**header, "op": op}, payload)

        return handle

    def _model_verify(self, header: dict[str, Any], payload: bytes) -> None:
        found = self._store.find(header["bundle"])
        if found is None or found[1].golden is None:
            raise AgentError(errors.NOT_FOUND, "the bundle is not here, or has no golden vectors")
        self._require_model()
        parsed = found[1]
        assert parsed.golden is not None
        request = {
            "op": "verify",
            "golden": str(self._store.path(parsed.files[manifest.GOLDEN].sha256)),
            "vectors": int(parsed.golden["vectors"]),
            "inputs": len(parsed.inputs),
        }
        self._begin(header, float(header.get("limit_s", DEFAULT_LIMIT_S)), request)

    def _model_unload(self, header: dict[str, Any], payload: bytes) -> tuple[dict[str, Any], bytes]:
        """End the runner; runner-killed when it dies of that."""
        self._require_idle()
        runner, self._runner, self._loaded = self._runner, None, False
        if runner:
            self._forget(runner)
            error = runner.close()
            if error:
                raise error
        return {}, b""

    def _require_idle(self) -> None:
        if self._job:
            raise AgentError(errors.BUSY, f"request {self._job.request} is still running")

    def _require_model(self) -> None:
        if not self._loaded or self._runner is None:
            raise AgentError(errors.BAD_REQUEST, "no model is loaded")

    # The runner

    def _start_runner(self, memory_bytes: int | None) -> None:
        self._require_idle()
        self._stop_runner()
        runner = self._runner = RunnerProcess(self._store.runtime(), memory_bytes)
        self._selector.register(runner.stdout, selectors.EVENT_READ, self._from_runner)
        self._selector.register(runner.stderr, selectors.EVENT_READ, lambda: self._from_runner_stderr(runner))

    def _begin(self, header: dict[str, Any], limit_s: float, request: dict[str, Any], payload: bytes = b"") -> Job:
        self._require_idle()
        assert self._runner
        self._job = Job(header["id"], limit_s)
        self._runner.request(request, payload)
        return self._job

    def _from_runner(self) -> bool:
        assert self._runner
        try:
            for message in self._runner.read():
                if self._job is None:
                    continue
                if message.kind is Kind.EVENT:
                    self._send(Kind.EVENT, {"id": self._job.request, **message.header}, message.payload)
                elif message.kind is Kind.ERROR:
                    h = message.header
                    self._finish(AgentError(h["code"], h["message"], **h["facts"]))
                else:
                    job, self._job = self._job, None
                    reply = job.then(message) if job.then else message
                    self._send(reply.kind, {"id": job.request, **reply.header}, reply.payload)
        except AgentError as error:
            self._stop_runner()
            self._finish(error)
        return True

    def _from_runner_stderr(self, runner: RunnerProcess) -> bool:
        if not runner.read_stderr():
            self._unregister(runner.stderr)
        return True

    def _finish(self, error: AgentError) -> None:
        if self._job:
            job, self._job = self._job, None
            self._send(Kind.ERROR, {"id": job.request, **error.header()})

    def _stop_runner(self) -> None:
        runner, self._runner, self._loaded = self._runner, None, False
        if runner:
            self._forget(runner)
            runner.kill()

    def _forget(self, runner: RunnerProcess) -> None:
        self._unregister(runner.stdout)
        self._unregister(runner.stderr)

    def _unregister(self, fd: int) -> None:
        try:
            self._selector.unregister(fd)
        except KeyError:
            pass  # its end was seen already
