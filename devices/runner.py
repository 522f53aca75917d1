"""
The process that runs a model.

It is a child of the agent and speaks the same frames, over a pipe.  Real model files kill interpreters; then this
process dies, the agent lives on and says how it died.  One process holds one model.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import json
import os
import resource
import signal
import sys
import time
from array import array
from collections import Counter
from typing import TYPE_CHECKING, Any, Callable, Union

from devices import profiling
from devices.profiling import Invoke
from devices.protocol import errors, tensors
from devices.protocol.errors import AgentError
from devices.protocol.framing import Decoder, Encoder, FrameError, Kind, Message

if TYPE_CHECKING:
    from devices.backends import litert, pynq

    Model = Union[litert.Model, pynq.Model]

CHUNK_NS = 50_000_000  # between two looks at the clock for anything but a sample: 20 per second
WARMUP_WINDOW = 10  # chunks whose two halves must agree
_clock = time.perf_counter_ns  # CLOCK_MONOTONIC on Linux, the agent's and the meters' clock


class Runner:
    """Answers the agent's requests, one at a time, until the pipe closes."""

    def __init__(self, source: int, sink: int) -> None:
        self._source = source
        self._sink = sink
        self._encoder = Encoder()
        self._model: Model | None = None
        self._facts: dict[str, Any] = {}
        self._options: dict[str, Any] = {}

    def serve(self) -> None:
        decoder = Decoder()
        handlers: dict[str, Callable[[dict[str, Any], bytes], Any]] = {
            "probe": self._probe,
            "load": self._load,
            "infer": self._infer,
            "measure": self._measure,
            "verify": self._verify,
            "profile": self._profile,
        }
        while True:
            data = os.read(self._source, 1 << 20)
            if not data:
                return
            for message in decoder.feed(data):
                request = message.header
                try:
                    header, payload = handlers[request["op"]](request, message.payload)
                    self._send(Kind.REPLY, header, payload)
                except AgentError as error:
                    self._send(Kind.ERROR, error.header())
                except MemoryError:
                    # Raised by Python or numpy; where the runtime runs out, it aborts, and the agent says so.
                    self._send(Kind.ERROR, AgentError(errors.MODEL_REFUSED, "out of memory").header())
                except RuntimeError as error:  # from the model's invocation, whenever it comes
                    from devices.backends.litert import one_line

                    self._send(Kind.ERROR, AgentError(errors.MODEL_REFUSED, one_line(error)).header())
                except (FrameError, KeyError, TypeError, ValueError) as error:
                    text = f"{request['op']}: {type(error).__name__}: {error}"
                    self._send(Kind.ERROR, AgentError(errors.BAD_REQUEST, text).header())

    def _send(self, kind: Kind, header: dict[str, Any], payload: bytes = b"") -> None:
        data = memoryview(self._encoder.encode(Message(kind, header, payload)))
        while data:
            data = data[os.write(self._sink, data) :]

    def _probe(self, request: dict[str, Any], payload: bytes) -> Any:
        return _litert().versions(), b""

    def _load(self, request: dict[str, Any], payload: bytes) -> Any:
        _litert()  # says what is missing, if it is
        self._options = request
        affinity = _pin(request.get("pin"))  # before the runtime starts threads: they inherit it
        started = _clock()
        self._model = _load(request)
        self._facts = {"load_ns": _clock() - started, "affinity": affinity}
        decisions = self._model.decisions()
        # Some hundred nodes with their reasons do not fit a header: that says which of our kernels run how many nodes.
        ours = None if decisions is None else dict(Counter(node["kernel"] for node in decisions if node["kernel"]))
        told = {**self._model.describe(), **self._facts, "kernels": ours, **self._accelerator()}
        return told, json.dumps(decisions).encode()

    def _accelerator(self) -> dict[str, Any]:
        """`accelerator`, where the board has one: see `backends.pynq.Model.accelerator`, or `why` it is not used."""
        there = self._options.get("accelerator")
        if there is None:
            return {}
        facts = getattr(self._model, "accelerator", None)
        known = {"overlay": there["overlay"], "why": there["why"], "failed": False, "simulated": None}
        return {"accelerator": facts() if facts else known}

    def _accelerated(self) -> bool:
        """Whether the accelerator has the model, and has not failed."""
        return getattr(self._model, "failure", "LiteRT has it") is None

    def _simulated(self) -> bool:
        return self._accelerated() and getattr(self._model, "simulated", None) is not None

    def _profile(self, request: dict[str, Any], payload: bytes) -> Any:
        """
        Time every cut of the loaded model, and the model itself, in turns, see `profiling`.

        Latencies leave in EVENT frames: `sweep`, `operators` (None is the untouched file), little-endian int64 ns.
        """
        model = self._loaded()
        with open(self._options["path"], "rb") as file:
            content = file.read()
        given = tensors.unpack(request["tensors"], payload)
        model.set_inputs(given)
        own_cuts = getattr(model, "cuts", None)
        if own_cuts and self._accelerated():  # its programs can be cut as they are
            refused: list[dict[str, Any]] = []
            every: list[tuple[int | None, Invoke]] = _grouped(own_cuts(), int(request["group"]))
        else:
            cuts, refused = profiling.load_cuts(content, int(request["group"]), self._open)
            for _, cut in cuts:
                cut.set_inputs(given)
            every = [(count, cut.invoke) for count, cut in cuts]
        every.append((None, model.invoke))
        gc.collect()
        gc.disable()
        for sweep, number, latencies in profiling.sweeps(
            [invoke for _, invoke in every], request["duration_s"], once=self._simulated()
        ):
            if sys.byteorder == "big":
                latencies.byteswap()
            header = {"phase": "profile", "sweep": sweep, "operators": every[number][0]}
            self._send(Kind.EVENT, header, latencies.tobytes())
        gc.enable()
        rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        placement = model.placement()
        if placement is not None:
            for decision in model.decisions() or ():  # of our own kernels, by name
                if decision["kernel"]:
                    placement[decision["node"]] = decision["kernel"]
        found = {"refused": refused, "placement": placement, "peak_rss_bytes": rss, **self._accelerator()}
        return {**self._facts, "cuts": [count for count, _ in every if count is not None], **found}, b""

    def _open(self, path: str) -> Model:
        """The file at `path`, loaded as the model was."""
        return _load({**self._options, "path": path, "signature": None, "accelerator": None})

    def _loaded(self) -> Model:
        if self._model is None:
            raise AgentError(errors.BAD_REQUEST, "no model is loaded")
        return self._model

    def _infer(self, request: dict[str, Any], payload: bytes) -> Any:
        """One invocation for each entry of `batch` (each a list of tensor descriptions)."""
        from devices.backends.litert import one_line

        model = self._loaded()
        described: list[list[dict[str, Any]]] = []
        parts: list[bytes] = []
        at = 0
        for entry in request["batch"]:
            size = sum(tensor["bytes"] for tensor in entry)
            try:
                model.set_inputs(tensors.unpack(entry, payload[at : at + size]))
                model.invoke()
            except ValueError as error:
                raise AgentError(errors.BAD_INPUT, one_line(error)) from error
            at += size
            specs, values = tensors.pack(model.outputs())
            described.append(specs)
            parts.append(values)
        return {"batch": described, **self._accelerator()}, b"".join(parts)

    def _measure(self, request: dict[str, Any], payload: bytes) -> Any:
        """
        Time `invoke` alone: warm up until steady, then for `duration_s` and at least `min_invocations`.

        Back to back; or, with `rate` (invocations per second), from a schedule that does not wait for the model.
        Latencies leave in EVENT frames between chunks, as little-endian int64 nanoseconds; with a schedule as many
        service times follow them in the same frame.  `median_ns` is good to 0.1 %, for the agent alone, which decides
        with it whether another restart is needed.  With `again` the model is warm: nothing comes before the window.
        """
        model = self._loaded()
        model.set_inputs(tensors.unpack(request["tensors"], payload))
        known: dict[str, Any] = dict(self._facts)
        if request.get("rate") and self._simulated():
            raise AgentError(errors.BAD_INPUT, "a schedule needs real time, and this accelerator is simulated")
        if not request.get("again"):
            started = _clock()
            took = model.invoke()
            known["first_ns"] = _clock() - started if took is None else took
            known["clock_overhead_ns"] = min(_clock_step() for _ in range(1000))
            gc.collect()
        gc.disable()
        known["steady"] = self._simulated() or self._warm_up(model.invoke, request["warmup_max_s"])
        before = resource.getrusage(resource.RUSAGE_SELF)
        window = self._timed(model.invoke, request)
        after = resource.getrusage(resource.RUSAGE_SELF)
        gc.enable()
        return {
            **known,
            "peak_rss_bytes": after.ru_maxrss * 1024,
            "preemptions": after.ru_nivcsw - before.ru_nivcsw,
            **window,
            **self._accelerator(),
        }, b""

    def _warm_up(self, invoke: Invoke, limit_s: float) -> bool:
        end = _clock() + int(limit_s * 1e9)
        window: list[array[int]] = []
        while _clock() < end:
            started, chunk = _chunk(invoke, min(CHUNK_NS, max(1, end - _clock())), 1 << 62)
            self._stream("warm-up", started, chunk)
            window = [*window, chunk][-WARMUP_WINDOW:]
            if len(window) == WARMUP_WINDOW and is_steady(window):
                return True
        return False

    def _timed(self, invoke: Invoke, request: dict[str, Any]) -> dict[str, Any]:
        left = int(request["max_invocations"])
        needed = int(request["min_invocations"])
        rate = request.get("rate")
        if rate:
            left = min(left, max(needed, int(request["duration_s"] * rate)))
        medians = _Median()
        done = 0
        begun = _clock()
        schedule = _Schedule(begun, float(rate)) if rate else None
        end = begun + int(request["duration_s"] * 1e9)
        finished = begun
        while left > 0 and (done < needed or _clock() < end):
            service: array[int] | None = None
            if schedule:
                started, chunk, service = schedule.chunk(invoke, CHUNK_NS, left)
            else:
                started, chunk = _chunk(invoke, CHUNK_NS, left)
            finished = started + sum(chunk) if len(chunk) < 2 and not schedule else _clock()
            medians.add(chunk)
            self._stream("measure", started, chunk, service)
            left -= len(chunk)
            done += len(chunk)
        found = {"invocations": done, "window_ns": [begun, finished], "median_ns": medians.value()}
        return {**found, "late_starts": schedule.late} if schedule else found

    def _stream(self, phase: str, started: int, chunk: array[int], service: array[int] | None = None) -> None:
        values = chunk if service is None else chunk + service
        if sys.byteorder == "big":
            values = values[:]
            values.byteswap()
        header = {"phase": phase, "started_ns": started}
        self._send(Kind.EVENT, header if service is None else {**header, "service": len(service)}, values.tobytes())

    def _verify(self, request: dict[str, Any], payload: bytes) -> Any:
        """
        Run the golden vectors and compare here, where the answer is made: only the differences travel.

        What the accelerator answered is compared with `reference`, as it rounds like those kernels; `referenced` says
        how many vectors were.
        """
        import numpy as np

        from devices.backends.litert import from_array, to_array

        model = self._loaded()
        report: dict[int, dict[str, Any]] = {}
        referenced = 0
        with contextlib.ExitStack() as files:
            golden = files.enter_context(np.load(request["golden"], allow_pickle=False))
            known = request.get("reference")
            reference = files.enter_context(np.load(known, allow_pickle=False)) if known else None
            for vector in range(request["vectors"]):
                given = [from_array(f"in{i}", golden[f"v{vector}.in{i}"]) for i in range(request["inputs"])]
                model.set_inputs(given)
                model.invoke()
                expected = reference if reference is not None and self._accelerated() else golden
                referenced += expected is reference
                for i, (spec, values) in enumerate(model.outputs()):
                    entry = _compare(expected[f"v{vector}.out{i}"], to_array(spec, values))
                    if entry["differing"]:
                        entry["vector"] = vector
                    total = report.setdefault(i, {"output": spec.name, "dtype": spec.dtype})
                    _merge(total, entry)
        return {"compared": list(report.values()), "referenced": referenced, **self._accelerator()}, b""


def _grouped(cuts: list[Any], group: int) -> list[Any]:
    """The first, every `group`-th and the last."""
    return cuts[::group] + (cuts[-1:] if (len(cuts) - 1) % group else [])


def _load(request: dict[str, Any]) -> Model:
    """The model at `path`, on the accelerator where the request names what was compiled for it, else in LiteRT."""
    from devices.backends import litert, pynq

    path, threads, kernels = request["path"], request.get("threads", 1), request.get("kernels")
    there = request.get("accelerator")
    if there and there["compiled"]:
        return pynq.Model(path, there["compiled"], there["overlay"], threads, kernels)
    return litert.Model(path, threads, request.get("shapes"), request.get("signature"), kernels)


def _litert() -> Any:
    """The backend, or no-runtime with what is missing."""
    try:
        from devices.backends import litert
    except ImportError as error:
        # numpy's own text is a page of advice; what went wrong stands in its last line.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise AgentError(errors.NO_RUNTIME, f"no LiteRT runtime: {reason}") from error
    return litert


def _pin(cpus: list[int] | None) -> list[int] | None:
    """Run on these CPUs alone; returns those that it runs on, None where the system cannot say."""
    if not hasattr(os, "sched_setaffinity"):
        if cpus:
            raise AgentError(errors.BAD_INPUT, "this system cannot pin a process to CPUs")
        return None
    if cpus:
        there = sorted(os.sched_getaffinity(0))
        missing = [cpu for cpu in cpus if cpu not in there]
        if missing:  # the kernel itself would leave them out and say nothing
            raise AgentError(
                errors.BAD_INPUT, f"no CPU {', '.join(map(str, missing))} here; there is {', '.join(map(str, there))}"
            )
        os.sched_setaffinity(0, cpus)
    return sorted(os.sched_getaffinity(0))


def is_steady(window: list[array[int]]) -> bool:
    """
    Whether the second half of the window looks like the first (pyperf's rule for calibrating warm-ups).

    Means may differ by -50 to +10 %, the quartiles by 5 %, and the first chunk's median is no outlier.
    """
    import numpy as np

    half = len(window) // 2
    first = np.concatenate([np.frombuffer(chunk, np.int64) for chunk in window[:half]])
    second = np.concatenate([np.frombuffer(chunk, np.int64) for chunk in window[half:]])
    quartiles = [np.percentile(values, [25, 50, 75]) for values in (first, second)]
    q1, _, q3 = quartiles[1]
    if np.median(np.frombuffer(window[0], np.int64)) > q3 + 1.5 * (q3 - q1):
        return False
    # Medians, where pyperf takes means: single outliers of milliseconds on latencies of microseconds move a mean.
    change = (quartiles[1] - quartiles[0]) / np.maximum(quartiles[0], 1)
    return bool(abs(change[0]) <= 0.05 and abs(change[2]) <= 0.05 and -0.5 <= change[1] <= 0.10)


def _chunk(invoke: Invoke, length_ns: int, most: int) -> tuple[int, array[int]]:
    """Invoke for about `length_ns` and at most `most` times; returns the start and every latency in ns."""
    latencies = array("q")
    append = latencies.append
    clock = _clock
    started = before = clock()
    end = started + length_ns
    while True:
        before = clock()
        took = invoke()
        after = clock()
        append(after - before if took is None else took)
        if after >= end or len(latencies) >= most:
            return started, latencies


class _Schedule:
    """
    Invocations that start at ``begun + k / rate``, whatever the model does.

    Their latency counts from then, not from when the model was free: a server that is busy makes its clients wait, and
    a loop that waits with them would not see it (coordinated omission).

    Attributes:
        late: starts that came while the invocation before was still running.
    """

    NAP_NS = 300_000  # the kernel wakes a sleeper up to this much too late; the rest of the wait is spent awake

    def __init__(self, begun: int, rate: float) -> None:
        self._begun = begun
        self._rate = rate
        self._k = 0
        self.late = 0

    def chunk(self, invoke: Invoke, length_ns: int, most: int) -> tuple[int, array[int], array[int]]:
        """As `_chunk`: the start, and latency and service time of every invocation in ns."""
        latencies, service = array("q"), array("q")
        clock = _clock
        end = clock() + length_ns
        first = self._begun + int(self._k / self._rate * 1e9)
        while True:
            due = self._begun + int(self._k / self._rate * 1e9)
            now = clock()
            self.late += now > due and self._k > 0
            while now < due:
                if due - now > self.NAP_NS:
                    time.sleep((due - now - self.NAP_NS) / 1e9)
                now = clock()
            before = clock()
            invoke()
            after = clock()
            latencies.append(after - due)
            service.append(after - before)
            self._k += 1
            if after >= end or len(latencies) >= most:
                return first, latencies, service


class _Median:
    """The median of all that was added, in memory that does not grow: a histogram with steps of 0.1 %."""

    STEP = 0.001
    BINS = 28_000  # up to 24 minutes

    def __init__(self) -> None:
        import numpy as np

        self._counts = np.zeros(self.BINS, np.int64)

    def add(self, chunk: array[int]) -> None:
        import numpy as np

        bins = np.log(np.maximum(np.frombuffer(chunk, np.int64), 1)) / self.STEP
        self._counts += np.bincount(np.minimum(bins.astype(np.intp), self.BINS - 1), minlength=self.BINS)

    def value(self) -> float:
        """In ns; 0 for nothing."""
        import numpy as np

        total = int(self._counts.sum())
        middle = int(np.searchsorted(np.cumsum(self._counts), (total + 1) // 2))
        return float(np.exp((middle + 0.5) * self.STEP)) if total else 0.0


def _clock_step() -> int:
    before = _clock()
    return _clock() - before


def _compare(expected: Any, actual: Any) -> dict[str, Any]:
    """How an output differs from what was expected; steps for integers, absolute values for the rest."""
    import numpy as np

    if expected.dtype.kind == "S":
        expected = expected.astype(object)
    if (expected.shape, expected.dtype) != (actual.shape, actual.dtype):
        return {
            "elements": int(expected.size),
            "differing": int(expected.size),
            "shape": [list(expected.shape), list(actual.shape)],
        }
    if expected.dtype == object:
        return {"elements": int(expected.size), "differing": int((expected != actual).sum())}
    # By bits, so that NaN equals NaN and -0.0 does not equal 0.0.
    width = f"V{expected.dtype.itemsize}"
    same = np.ascontiguousarray(expected).view(width) == np.ascontiguousarray(actual).view(width)
    entry: dict[str, Any] = {"elements": int(expected.size), "differing": int((~same).sum())}
    if entry["differing"]:
        wide = np.complex128 if expected.dtype.kind == "c" else np.float64
        with np.errstate(invalid="ignore"):  # infinity less infinity
            distance = np.abs(expected.astype(wide) - actual.astype(wide))
        entry["largest"] = float(np.nanmax(distance)) if not np.isnan(distance).all() else None
        if expected.dtype.kind not in "fc":
            entry["off_by_one"] = int((distance == 1).sum())
        # Of the finite values: beside an infinite one every distance would look small.
        sizes = np.abs(expected.astype(wide))
        magnitude = float(sizes[np.isfinite(sizes)].max(initial=0.0))
        if entry["largest"] is not None:
            # Zeros of different signs differ by nothing; anything beside nothing but zeros differs by everything.
            by = entry["largest"] / magnitude if magnitude else (float("inf") if entry["largest"] else 0.0)
            entry["relative"] = by
        entry["nan_mismatch"] = bool((np.isnan(expected.astype(wide)) != np.isnan(actual.astype(wide))).any())
    return entry


def _merge(total: dict[str, Any], entry: dict[str, Any]) -> None:
    """Add the comparison of one vector to that of the output; `vector` and `shape` stay those of the first."""
    for key, value in entry.items():
        if key in ("elements", "differing", "off_by_one"):
            total[key] = total.get(key, 0) + value
        elif key in ("largest", "relative"):
            # None is worse than any number: there is no distance to speak of.
            known = total.get(key, 0.0)
            total[key] = None if value is None or known is None else max(known, value)
        elif key == "nan_mismatch":
            total[key] = total.get(key, False) or value
        else:
            total.setdefault(key, value)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--memory-bytes", type=int)
    options = parser.parse_args()
    if options.memory_bytes:
        # DATA counts private writable memory (since Linux 4.7); AS would count what the runtime only reserves.
        resource.setrlimit(resource.RLIMIT_DATA, (options.memory_bytes, options.memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        # PR_SET_PDEATHSIG: a model that never returns must not outlive an agent that was killed.
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    except (OSError, AttributeError):
        pass  # not Linux: the closed pipe ends us at the next request
    sink = os.dup(1)
    os.dup2(2, 1)  # whatever the runtime prints is no frame
    Runner(0, sink).serve()


if __name__ == "__main__":
    main()
