"""
The accelerator of `kernels/rtl` as the backend, through PYNQ's own API: Overlay, its IP's registers, allocate.

What the accelerator does not take runs in LiteRT, node by node, by its reference kernels, as which the accelerator
rounds.  When it fails (its overlay is of another version, a program does not end, the bus reports an error) the whole
model runs in LiteRT from then on, and `accelerator` says why.
A module `pynq` that is no board's says so in ``SIMULATED``: then time is cycles at the clock that stands there.
Importing this module imports neither numpy nor pynq.
"""

from __future__ import annotations

import hashlib
import time
from typing import Any, Callable, Optional

from devices.protocol import accelerated, errors
from devices.protocol.errors import AgentError
from devices.protocol.tensors import TensorSpec

IP = "accelerator_0"  # in the overlay's block design
KERNEL = "accelerator"  # what runs a node
TIME_LIMIT_S = 1.0  # for one program; the longest of known networks take some milliseconds
SIMULATION_LIMIT_S = 120.0  # the same where a simulation takes its time; cycles are what is limited there
_CONTROL, _STATUS, _IDENTITY, _SHAPE, _PROGRAM, _WORDS, _MODEL, _INPUT, _OUTPUT, _CYCLES, _STEPS, _BEATS = range(
    0, 0x30, 4
)
_START, _ABORT, _INTERRUPT = 1, 2, 4
_DONE, _UNKNOWN, _BUS_ERROR = 2, 4, 8
_BEAT_BYTES = 8
_INSTRUCTION_WORDS = 8
_END_BYTES = _INSTRUCTION_WORDS * _BEAT_BYTES  # of the instruction END, all zeros


class AcceleratorFailed(Exception):
    """What the accelerator did not do, for a person."""


class Accelerator:
    """
    An overlay that holds the accelerator.  Opening it configures the programmable logic anew, so nothing is left of a
    program that hung before.

    Args:
        bitfile: of the overlay, with its .hwh beside it.
        compiled: its `identity` and `shape` must be the overlay's.

    Attributes:
        simulated: `source`, `clock_hz`, `bytes_per_cycle` and `latency_cycles` of what plays the board; None on one.

    Raises:
        AcceleratorFailed: the overlay cannot be opened, has no accelerator, or one of another version or shape.
    """

    def __init__(self, bitfile: str, compiled: accelerated.Accelerated) -> None:
        try:
            import pynq

            overlay = pynq.Overlay(bitfile)
        except ImportError as error:
            raise AcceleratorFailed(f"no pynq for this Python: {error}") from error
        except Exception as error:  # whatever it is that pynq does not find, or may not do: the CPU is there
            raise AcceleratorFailed(f"{bitfile}: {_one_line(error)}") from error
        if IP not in overlay.ip_dict:
            raise AcceleratorFailed(f"{bitfile} has no {IP}; it has {', '.join(overlay.ip_dict) or 'nothing'}")
        self.simulated: dict[str, Any] | None = getattr(pynq, "SIMULATED", None)
        self._allocate = pynq.allocate
        self._overlay = overlay
        self._ip = getattr(overlay, IP)
        found = (self._ip.read(_IDENTITY), self._ip.read(_SHAPE))
        if found != (compiled.identity, compiled.shape):
            wanted = f"{compiled.identity:08x}/{compiled.shape:08x}"
            raise AcceleratorFailed(
                f"{bitfile} holds {found[0]:08x}/{found[1]:08x}, and the model was made for {wanted}"
            )

    def buffer(self, size: int) -> Any:
        """
        `size` bytes that both sides reach: uint8, with `device_address`, `flush` and `invalidate`.

        Raises:
            AcceleratorFailed: there is no room.
        """
        try:
            return self._allocate(shape=(max(size, 1),), dtype="u1")
        except (MemoryError, RuntimeError, OSError) as error:
            raise AcceleratorFailed(f"no {size} bytes that it reaches: {_one_line(error)}") from error

    def run(self, program: int, words: int, limit: int, model: int, given: int, out: int) -> tuple[int, int]:
        """
        Run one program.

        Args:
            program: byte address; `words`: its length in 64-bit words; `limit`: cycles that it stays below.
            model, given, out: the bases it refers to.

        Returns:
            The cycles it took, and the bytes that its bus moved, by the accelerator's own counters.

        Raises:
            AcceleratorFailed: it does not end, or reports an error.  It has been stopped.
        """
        for register, value in (
            (_PROGRAM, program), (_WORDS, words), (_MODEL, model), (_INPUT, given), (_OUTPUT, out),
        ):  # fmt: skip
            self._ip.write(register, value)
        self._ip.write(_CONTROL, _START | _INTERRUPT)
        end = time.monotonic() + (SIMULATION_LIMIT_S if self.simulated else TIME_LIMIT_S)
        while True:  # polling: some hundred looks, where an interrupt through asyncio takes as long as the program
            status = self._ip.read(_STATUS)
            if status & _DONE:
                break
            cycles = int(self._ip.read(_CYCLES))
            if cycles > limit or time.monotonic() > end:
                self._ip.write(_CONTROL, _ABORT)
                raise AcceleratorFailed(f"a program did not end in {cycles:,} cycles; it was stopped")
        if status & _UNKNOWN:
            raise AcceleratorFailed("it met an instruction that it does not know")
        if status & _BUS_ERROR:
            raise AcceleratorFailed("its memory answered with an error")
        return int(self._ip.read(_CYCLES)), int(self._ip.read(_BEATS)) * _BEAT_BYTES


class Model:
    """
    A model, loaded and ready, as `litert.Model` is one.

    Args:
        path: of the .tflite file.
        compiled: of the file that `deploy.fpga.package` made of it.
        bitfile: of the overlay.
        threads, kernels: for LiteRT, where it has to run all of the model; see `litert.Model`.

    Raises:
        AgentError: model-refused, with LiteRT's reason.
    """

    def __init__(
        self, path: str, compiled: str, bitfile: str, threads: int = 1, kernels: dict[str, str] | None = None
    ) -> None:
        from devices.backends import litert

        self._litert: Any = litert
        self._stock = litert.Model(path, threads, kernels=kernels)
        self._bitfile = bitfile
        self.failure: str | None = None
        self.simulated: dict[str, Any] | None = None
        self._ran: list[tuple[int, int]] = []  # cycles and bytes of the last invocation, for each step on the PL
        self._nodes: list[dict[str, Any]] = []
        self._values: dict[int, Any] = {}
        self._steps: list[Any] = []
        try:
            self._compiled = _read(compiled, path)
            self._nodes = self._compiled.nodes
            accelerator = Accelerator(bitfile, self._compiled)
            self.simulated = accelerator.simulated
            kinds: dict[str, Callable[[dict[str, Any]], Any]] = {
                "pl": lambda step: _OnAccelerator(accelerator, self._compiled, step),
                "cpu": self._on_cpu,
            }
            self._steps = [kinds[step["kind"]](step) for step in self._compiled.steps]
        except AcceleratorFailed as why:
            self.failure = str(why)

    def _on_cpu(self, step: dict[str, Any]) -> _OnCpu:
        model = self._compiled.span(step["model"])
        return _OnCpu(self._litert.reference_interpreter(model), step)

    def describe(self) -> dict[str, Any]:
        """As `litert.Model.describe`."""
        return self._stock.describe()

    def accelerator(self) -> dict[str, Any]:
        """
        What there is to know of the accelerator: `overlay`; `why` LiteRT runs all of the model, or None; whether that
        is because it `failed`; `nodes` that it takes, `of` so many; `simulated`, as of `Accelerator`; `cycles` and
        `bus_bytes` of the last invocation, for each program.
        """
        taken = sum(node["kernel"] is not None for node in self._nodes)
        return {
            "overlay": self._bitfile,
            "why": self.failure,
            "failed": self.failure is not None,
            "nodes": taken,
            "of": len(self._nodes),
            "simulated": self.simulated,
            "cycles": [cycles for cycles, _ in self._ran],
            "bus_bytes": [moved for _, moved in self._ran],
        }

    def placement(self) -> list[str] | None:
        """As `litert.Model.placement`: ``builtin`` for a node that the accelerator does not run."""
        if self.failure is not None:
            return self._stock.placement()
        return [node["kernel"] or "builtin" for node in self._nodes]

    def decisions(self) -> list[dict[str, Any]]:
        """For each node its number, `op`, `kernel` (None: LiteRT runs it, as all after a failure) and `reason`."""
        nodes = [{"node": number, **node} for number, node in enumerate(self._nodes)]
        if self.failure is not None:
            for node in nodes:
                node.update(kernel=None, reason=f"the accelerator failed: {self.failure}")
        return nodes

    def set_inputs(self, given: list[tuple[TensorSpec, bytes]]) -> None:
        """As `litert.Model.set_inputs`."""
        self._stock.set_inputs(given)
        if self.failure is None:
            tensors = zip(self._compiled.inputs, given)
            self._values = {tensor: self._litert.to_array(spec, values) for tensor, (spec, values) in tensors}

    def invoke(self) -> int | None:
        """Returns what it took in ns where that is simulated, nodes of the CPU not counted; else None."""
        if self.failure is None:
            try:
                self._ran = []
                for step in self._steps:
                    step.run(self._values, self._ran)
                return self._took()
            except AcceleratorFailed as why:
                self.failure = str(why)
                self._ran = []
        self._stock.invoke()
        return None

    def _took(self) -> int | None:
        if self.simulated is None:
            return None
        clock_hz = int(self.simulated["clock_hz"])
        return sum(cycles for cycles, _ in self._ran) * 1_000_000_000 // clock_hz

    def outputs(self) -> list[tuple[TensorSpec, bytes]]:
        """As `litert.Model.outputs`."""
        if self.failure is not None:
            return self._stock.outputs()
        names = [output["name"] for output in self._stock.describe()["outputs"]]
        return [
            self._litert.from_array(name, self._values[tensor]) for name, tensor in zip(names, self._compiled.outputs)
        ]

    def cuts(self) -> list[tuple[int, Callable[[], Optional[int]]]]:
        """
        The first n nodes, for every n at which the programs can be cut, as what invokes them; see `devices.profiling`.

        Where time is simulated none ends with a node of the CPU, whose time nobody knows.
        """
        steps = self._compiled.steps
        nothing = (0, 0) if steps[0]["kind"] == "pl" else None
        found: list[tuple[int, Callable[[], Optional[int]]]] = [(0, lambda: self._first(nothing))]
        done: set[int] = set()
        for number, step in enumerate(steps):
            on_pl = step["kind"] == "pl"
            layers = step["layers"] if on_pl else [[None, step["nodes"]]]
            done |= set(step["nodes"]).difference(*(nodes for _, nodes in layers))  # reshapes: nothing to compute
            for words, nodes in layers:
                done |= set(nodes)
                reached = next(n for n in range(len(done) + 1) if n not in done)
                if reached > found[-1][0] and (on_pl or self.simulated is None):
                    found.append((reached, lambda at=(number, words): self._first(at)))  # type: ignore[misc]
        return found

    def _first(self, at: tuple[int, int | None] | None) -> int | None:
        """Invoke all steps before `at`, and so many words of that one (None: all of it)."""
        self._ran = []
        try:
            if at is not None:
                number, words = at
                for step in self._steps[:number]:
                    step.run(self._values, self._ran)
                self._steps[number].run(self._values, self._ran, words)
        except AcceleratorFailed as why:
            raise AgentError(errors.MODEL_REFUSED, f"the accelerator failed: {why}") from why
        return self._took()


def _read(compiled: str, path: str) -> accelerated.Accelerated:
    """The compiled model of the .tflite file at `path`."""
    try:
        with open(compiled, "rb") as file:
            read = accelerated.decode(file.read())
    except accelerated.FormatError as error:  # of a host that is older or newer than this agent
        raise AcceleratorFailed(f"the compiled model is none for this agent: {error}") from error
    with open(path, "rb") as file:
        sha256 = hashlib.sha256(file.read()).hexdigest()
    if sha256 != read.model_sha256:
        raise AcceleratorFailed("what was compiled is another model")
    return read


def _one_line(error: BaseException) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__


class _OnCpu:
    """Nodes that LiteRT runs, as a model of their own."""

    def __init__(self, interpreter: Any, step: dict[str, Any]) -> None:
        self._interpreter = interpreter
        self._interpreter.allocate_tensors()
        self._given = list(zip(step["inputs"], interpreter.get_input_details()))
        self._made = list(zip(step["outputs"], interpreter.get_output_details()))

    def run(self, values: dict[int, Any], ran: list[tuple[int, int]], words: int | None = None) -> None:
        for tensor, detail in self._given:
            self._interpreter.set_tensor(detail["index"], values[tensor])
        self._interpreter.invoke()
        for tensor, detail in self._made:
            values[tensor] = self._interpreter.get_tensor(detail["index"])


class _OnAccelerator:
    """Nodes that the accelerator runs: one program for each invocation."""

    def __init__(self, accelerator: Accelerator, compiled: accelerated.Accelerated, step: dict[str, Any]) -> None:
        import numpy as np

        self._np = np
        self._accelerator = accelerator
        self._run = step["run"]
        image = np.frombuffer(compiled.span(step["image"]), np.uint8)
        self._image = accelerator.buffer(len(image))
        self._image[:] = image
        self._image.flush()
        self._in = accelerator.buffer(step["input_bytes"])
        self._out = accelerator.buffer(step["output_bytes"])
        self._in_bytes, self._out_bytes = np.asarray(self._in), np.asarray(self._out)  # without pynq's class
        self._given = [self._port(compiled, port) for port in step["inputs"]]
        self._made = [self._port(compiled, port) for port in step["outputs"]]
        for _, span, _, _, pad, _ in self._given:
            self._in_bytes[span] = np.int8(pad).view(np.uint8)  # what holds no value holds it for good
        self._program(*step["prepare"])

    def _port(self, compiled: accelerated.Accelerated, port: dict[str, Any]) -> tuple[Any, ...]:
        gather = self._np.frombuffer(compiled.span(port["gather"]), "<i4")
        inside = self._np.flatnonzero(gather >= 0)
        span = slice(port["offset"], port["offset"] + port["size"])
        return port["tensor"], span, inside, gather[inside], port["pad"], tuple(port["shape"])

    def _program(self, offset: int, words: int, limit: int) -> tuple[int, int]:
        return self._accelerator.run(
            self._image.device_address + offset, words, limit, self._image.device_address, self._in.device_address,
            self._out.device_address,
        )  # fmt: skip

    def run(self, values: dict[int, Any], ran: list[tuple[int, int]], words: int | None = None) -> None:
        """One invocation; or of its program so many words, and nothing comes out."""
        for tensor, span, inside, places, _, _ in self._given:
            self._in_bytes[span][inside] = values[tensor].reshape(-1).view(self._np.uint8)[places]
        self._in.flush()
        if words is not None:
            ran.append(self._cut(words))
            return
        ran.append(self._program(*self._run))
        self._out.invalidate()
        for tensor, span, inside, places, _, shape in self._made:
            out = self._np.empty(len(places), self._np.uint8)
            out[places] = self._out_bytes[span][inside]
            values[tensor] = out.view(self._np.int8).reshape(shape)

    def _cut(self, words: int) -> tuple[int, int]:
        """Run the program's first so many words, with an END behind them, which waits for what they began."""
        offset, _, limit = self._run
        start = offset + words * _BEAT_BYTES
        image = self._np.asarray(self._image)
        kept = image[start : start + _END_BYTES].copy()
        try:
            image[start : start + _END_BYTES] = 0
            self._image.flush()
            return self._program(offset, words + _INSTRUCTION_WORDS, limit)
        finally:
            image[start : start + _END_BYTES] = kept
            self._image.flush()
