"""
The accelerator of `kernels/rtl` as the backend, through PYNQ's own API: Overlay, its IP's registers, allocate.

What the accelerator does not take runs in LiteRT, node by node.  When it fails (its overlay is of another version, a
program does not end, the bus reports an error) the whole model runs in LiteRT from then on, and `decisions` says why.
Importing this module imports neither numpy nor pynq.
"""

from __future__ import annotations

import hashlib
import time
from typing import Any

from devices.protocol import accelerated, errors
from devices.protocol.errors import AgentError
from devices.protocol.tensors import TensorSpec

IP = "accelerator_0"  # in the overlay's block design
TIME_LIMIT_S = 1.0  # for one program; the longest of known networks take some milliseconds
_CONTROL, _STATUS, _IDENTITY, _SHAPE, _PROGRAM, _WORDS, _MODEL, _INPUT, _OUTPUT, _CYCLES = range(0, 0x28, 4)
_START, _ABORT, _INTERRUPT = 1, 2, 4
_DONE, _UNKNOWN, _BUS_ERROR = 2, 4, 8


class AcceleratorFailed(Exception):
    """What the accelerator did not do, for a person."""


class Accelerator:
    """
    An overlay that holds the accelerator.

    Args:
        bitfile: of the overlay, with its .hwh beside it.
        compiled: its `identity` and `shape` must be the overlay's.

    Raises:
        AcceleratorFailed: the overlay has no accelerator, or one of another version or shape.
    """

    def __init__(self, bitfile: str, compiled: accelerated.Accelerated) -> None:
        import pynq

        self._allocate = pynq.allocate
        overlay = pynq.Overlay(bitfile)
        if IP not in overlay.ip_dict:
            raise AcceleratorFailed(f"{bitfile} has no {IP}; it has {', '.join(overlay.ip_dict) or 'nothing'}")
        self._ip = getattr(overlay, IP)
        self._overlay = overlay
        found = (self._ip.read(_IDENTITY), self._ip.read(_SHAPE))
        if found != (compiled.identity, compiled.shape):
            wanted = f"{compiled.identity:08x}/{compiled.shape:08x}"
            raise AcceleratorFailed(
                f"{bitfile} holds {found[0]:08x}/{found[1]:08x}, and the model was made for {wanted}"
            )

    def buffer(self, size: int) -> Any:
        """`size` bytes that both sides reach: uint8, with `device_address`, `flush` and `invalidate`."""
        return self._allocate(shape=(max(size, 1),), dtype="u1")

    def run(self, program: int, words: int, model: int, given: int, out: int) -> int:
        """
        Run one program; returns the cycles it took, by the accelerator's own counter.

        Args:
            program: byte address; `words`: its length in 64-bit words.  model, given, out: the bases it refers to.

        Raises:
            AcceleratorFailed: it does not end in `TIME_LIMIT_S`, or reports an error.  It has been stopped.
        """
        for register, value in (
            (_PROGRAM, program), (_WORDS, words), (_MODEL, model), (_INPUT, given), (_OUTPUT, out),
        ):  # fmt: skip
            self._ip.write(register, value)
        self._ip.write(_CONTROL, _START | _INTERRUPT)
        limit = time.monotonic() + TIME_LIMIT_S
        while True:
            status = self._ip.read(_STATUS)
            if status & _DONE:
                break
            if time.monotonic() > limit:
                self._ip.write(_CONTROL, _ABORT)
                raise AcceleratorFailed(f"a program did not end in {TIME_LIMIT_S:g} s")
        if status & _UNKNOWN:
            raise AcceleratorFailed("it met an instruction that it does not know")
        if status & _BUS_ERROR:
            raise AcceleratorFailed("its memory answered with an error")
        return int(self._ip.read(_CYCLES))


class Model:
    """
    A model, loaded and ready, as `litert.Model` is one.

    Args:
        path: of the .tflite file.
        compiled: of the file that `deploy.fpga.package` made of it.
        bitfile: of the overlay.
        threads: for LiteRT, >= 1.

    Raises:
        AgentError: model-refused, with LiteRT's reason, or because `compiled` is not of this model.
    """

    def __init__(self, path: str, compiled: str, bitfile: str, threads: int = 1) -> None:
        from devices.backends import litert

        self._litert: Any = litert
        self._stock = litert.Model(path, threads)
        self.failure: str | None = None
        self.cycles: list[int] = []  # of the last invocation, one for each step on the accelerator
        try:
            with open(compiled, "rb") as file:
                self._compiled = accelerated.decode(file.read())
        except accelerated.FormatError as error:
            raise AgentError(errors.MODEL_REFUSED, f"{compiled}: {error}") from error
        with open(path, "rb") as file:
            sha256 = hashlib.sha256(file.read()).hexdigest()
        if sha256 != self._compiled.model_sha256:
            raise AgentError(errors.MODEL_REFUSED, f"{compiled} was made of another model")
        self._specs: list[TensorSpec] = []
        self._values: dict[int, Any] = {}
        self._steps: list[Any] = []
        try:
            accelerator = Accelerator(bitfile, self._compiled)
            kinds = {"pl": lambda step: _OnAccelerator(accelerator, self._compiled, step), "cpu": self._on_cpu}
            self._steps = [kinds[step["kind"]](step) for step in self._compiled.steps]
        except AcceleratorFailed as why:
            self.failure = str(why)

    def _on_cpu(self, step: dict[str, Any]) -> _OnCpu:
        model = self._compiled.span(step["model"])
        return _OnCpu(self._litert.Interpreter(model_content=model), step)

    def describe(self) -> dict[str, Any]:
        """As `litert.Model.describe`."""
        return self._stock.describe()

    def placement(self) -> list[str] | None:
        """``delegate`` for a node that the accelerator runs, else ``builtin``."""
        return ["delegate" if node["kernel"] else "builtin" for node in self.decisions()]

    def decisions(self) -> list[dict[str, Any]]:
        """For each node `op`, `kernel` (None: LiteRT runs it) and `reason`; all are LiteRT's after a failure."""
        nodes = [dict(node) for node in self._compiled.nodes]
        if self.failure is not None:
            for node in nodes:
                node.update(kernel=None, reason=f"the accelerator failed: {self.failure}")
        return nodes

    def set_inputs(self, given: list[tuple[TensorSpec, bytes]]) -> None:
        """As `litert.Model.set_inputs`."""
        self._stock.set_inputs(given)
        self._values = {
            tensor: self._litert.to_array(spec, values) for tensor, (spec, values) in zip(self._compiled.inputs, given)
        }

    def invoke(self) -> None:
        if self.failure is None:
            try:
                self.cycles = []
                for step in self._steps:
                    step.run(self._values, self.cycles)
                return
            except AcceleratorFailed as why:
                self.failure = str(why)
        self._stock.invoke()

    def outputs(self) -> list[tuple[TensorSpec, bytes]]:
        """As `litert.Model.outputs`."""
        if self.failure is not None:
            return self._stock.outputs()
        names = [output["name"] for output in self._stock.describe()["outputs"]]
        return [
            self._litert.from_array(name, self._values[tensor]) for name, tensor in zip(names, self._compiled.outputs)
        ]


class _OnCpu:
    """Nodes that LiteRT runs, as a model of their own."""

    def __init__(self, interpreter: Any, step: dict[str, Any]) -> None:
        self._interpreter = interpreter
        self._interpreter.allocate_tensors()
        self._given = list(zip(step["inputs"], interpreter.get_input_details()))
        self._made = list(zip(step["outputs"], interpreter.get_output_details()))

    def run(self, values: dict[int, Any], cycles: list[int]) -> None:
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
        self._program(step["prepare"])

    def _port(self, compiled: accelerated.Accelerated, port: dict[str, Any]) -> tuple[Any, ...]:
        gather = self._np.frombuffer(compiled.span(port["gather"]), "<i4")
        inside = self._np.flatnonzero(gather >= 0)
        span = slice(port["offset"], port["offset"] + port["size"])
        return port["tensor"], span, inside, gather[inside], port["pad"], tuple(port["shape"])

    def _program(self, where: list[int]) -> int:
        offset, words = where
        return self._accelerator.run(
            self._image.device_address + offset, words, self._image.device_address, self._in.device_address,
            self._out.device_address,
        )  # fmt: skip

    def run(self, values: dict[int, Any], cycles: list[int]) -> None:
        for tensor, span, inside, places, _, _ in self._given:
            self._in_bytes[span][inside] = values[tensor].reshape(-1).view(self._np.uint8)[places]
        self._in.flush()
        cycles.append(self._program(self._run))
        self._out.invalidate()
        for tensor, span, inside, places, _, shape in self._made:
            out = self._np.empty(len(places), self._np.uint8)
            out[places] = self._out_bytes[span][inside]
            values[tensor] = out.view(self._np.int8).reshape(shape)
