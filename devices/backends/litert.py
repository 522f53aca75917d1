"""
LiteRT as the backend: `ai_edge_litert` where there is a wheel for it, else its predecessor `tflite_runtime`.

Importing this module imports numpy and the runtime; only the runner does.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import json
import resource
from collections.abc import Sequence
from typing import Any

import numpy as np

from devices.protocol import errors, tensors
from devices.protocol.errors import AgentError
from devices.protocol.tensors import TensorSpec

try:
    from ai_edge_litert.interpreter import Interpreter, load_delegate

    RUNTIME = "ai-edge-litert"
except ImportError as missing:
    try:
        from tflite_runtime.interpreter import Interpreter, load_delegate
    except ImportError:
        raise missing from None  # the one to install; its reason may be a library that is too old

    RUNTIME = "tflite-runtime"


def versions() -> dict[str, str]:
    """Which runtime this is, for the record of a run."""
    return {"runtime": f"{RUNTIME} {importlib.metadata.version(RUNTIME)}", "numpy": np.__version__}


def one_line(error: BaseException) -> str:
    """LiteRT's messages come as several sentences and lines; make them one, and say so when there is none."""
    text = " ".join(str(error).split())
    if text:
        return text
    limit, _ = resource.getrlimit(resource.RLIMIT_DATA)
    why = "" if limit == resource.RLIM_INFINITY else f" (memory limit {limit // 2**20} MiB)"
    return f"the runtime gives no reason{why}"


def reference_interpreter(model: bytes) -> Any:
    """
    An interpreter with TFLite's reference kernels: slow ones, whose rounding is the one that others are held against.

    Args:
        model: content of a .tflite file.
    """
    from importlib import import_module

    kinds = import_module(Interpreter.__module__).OpResolverType
    return Interpreter(model_content=model, experimental_op_resolver_type=kinds.BUILTIN_REF)


class Model:
    """
    A model, loaded and ready: `set_inputs`, `invoke`, `outputs`.

    Variables live as long as the object: a streaming model goes on where it was.

    Args:
        path: of the .tflite file.
        threads: for the runtime's own pool, >= 1.
        shapes: input name -> shape to use instead of the model's own.
        signature: which signature to run; None is the model's first subgraph.
        kernels: `path` of our library of kernels and `mode` ("auto", "reference"); None is the stock runtime alone.

    Raises:
        AgentError: model-refused, with the runtime's reason; bad-input, `shapes` or `signature` names nothing;
            no-runtime, the library of kernels does not load here.
    """

    def __init__(
        self,
        path: str,
        threads: int = 1,
        shapes: dict[str, Sequence[int]] | None = None,
        signature: str | None = None,
        kernels: dict[str, str] | None = None,
    ) -> None:
        self._kernels = kernels
        # Kept here: the runtime does not keep it alive.
        self._delegate = _load_kernels(kernels) if kernels else None
        delegates = [self._delegate] if self._delegate else None
        try:
            self._interpreter = Interpreter(model_path=path, num_threads=threads, experimental_delegates=delegates)
            self._signature: Any = None if signature is None else self._runner(signature)
            self._resize(shapes or {})
            if self._signature is None:
                self._interpreter.allocate_tensors()
        except (ValueError, RuntimeError, MemoryError, TypeError) as error:
            raise AgentError(errors.MODEL_REFUSED, one_line(error)) from error
        self._arguments: dict[str, Any] = {}
        self._results: dict[str, Any] = {}
        self._read_details()
        # The bound method itself: an attribute look-up less inside what is timed.
        self.invoke = self._interpreter.invoke if self._signature is None else self._invoke_signature

    def _runner(self, signature: str) -> Any:
        known = self._interpreter.get_signature_list()
        if signature not in known:
            names = ", ".join(map(repr, known)) or "none"
            raise AgentError(errors.BAD_INPUT, f"the model has no signature {signature!r}; it has {names}")
        return self._interpreter.get_signature_runner(signature)

    def _resize(self, shapes: dict[str, Sequence[int]]) -> None:
        if not shapes:
            return
        if self._signature is not None:
            raise AgentError(errors.BAD_INPUT, "shapes can be set for the default signature only")
        indices = {d["name"]: d["index"] for d in self._interpreter.get_input_details()}
        for name, shape in shapes.items():
            if name not in indices:
                known = ", ".join(map(repr, indices))
                raise AgentError(errors.BAD_INPUT, f"the model has no input {name!r}; it has {known}")
            self._interpreter.resize_tensor_input(indices[name], list(shape))

    def _read_details(self) -> None:
        if self._signature is None:
            self._in = self._interpreter.get_input_details()
            self._out = self._interpreter.get_output_details()
        else:
            self._in = _named(self._signature.get_input_details())
            self._out = _named(self._signature.get_output_details())

    def describe(self) -> dict[str, Any]:
        """Inputs and outputs as the host wants to know them, in the model's order."""
        return {
            "inputs": [_describe(d) for d in self._in],
            "outputs": [_describe(d) for d in self._out],
            "signatures": sorted(self._interpreter.get_signature_list()),
            **versions(),
        }

    def placement(self) -> list[str] | None:
        """
        Who runs each operator of the first subgraph: ``delegate`` or ``builtin``; None where the runtime does not say.

        A delegate takes what lies between its inputs and its outputs.
        """
        try:
            nodes = self._interpreter._get_ops_details()
        except (AttributeError, RuntimeError):
            return None
        operators = [node for node in nodes if node["op_name"] != "DELEGATE"]
        makes = {int(tensor): i for i, node in enumerate(operators) for tensor in node["outputs"]}
        places = ["builtin"] * len(operators)
        for delegate in (node for node in nodes if node["op_name"] == "DELEGATE"):
            waiting = {int(tensor) for tensor in delegate["outputs"]}
            given = {int(tensor) for tensor in delegate["inputs"]}
            while waiting:
                maker = makes.get(waiting.pop())
                if maker is not None and places[maker] == "builtin":
                    places[maker] = "delegate"
                    waiting |= {int(tensor) for tensor in operators[maker]["inputs"]} - given
        return places

    def decisions(self) -> list[dict[str, Any]] | None:
        """What our kernels decided for each node they know; None where they are off."""
        if self._kernels is None:
            return None
        # Loaded already, and this process holds one model: the report is about it.
        report = ctypes.CDLL(self._kernels["path"]).deploy_kernels_report
        report.restype = ctypes.c_char_p
        nodes: list[dict[str, Any]] = json.loads(report())["nodes"]
        return nodes

    def set_inputs(self, given: list[tuple[TensorSpec, bytes]]) -> None:
        """
        Take one value for every input, in the model's order.

        An input whose extent the model leaves open takes any; all others must match exactly.

        Raises:
            AgentError: bad-input, a count, dtype or shape that does not fit: both are said.
        """
        if len(given) != len(self._in):
            names = ", ".join(repr(d["name"]) for d in self._in)
            raise AgentError(errors.BAD_INPUT, f"{len(given)} inputs given; the model has {len(self._in)}: {names}")
        resized = False
        for (spec, _), detail in zip(given, self._in):
            resized |= self._fit(spec, detail)
        if resized:
            self._interpreter.allocate_tensors()
            self._read_details()
        for (spec, values), detail in zip(given, self._in):
            array = to_array(spec, values)
            if self._signature is not None:
                self._arguments[detail["name"]] = array
            else:
                self._interpreter.set_tensor(detail["index"], array)

    def _fit(self, spec: TensorSpec, detail: dict[str, Any]) -> bool:
        """Check one input; True when it had to be resized."""
        wanted = TensorSpec(detail["name"], _dtype_name(detail["dtype"]), tuple(int(x) for x in detail["shape"]))
        if spec.dtype == wanted.dtype and spec.shape == wanted.shape:
            return False
        open_shape = [int(x) for x in detail.get("shape_signature", wanted.shape)]
        fits = len(spec.shape) == len(open_shape) and all(o in (-1, s) for o, s in zip(open_shape, spec.shape))
        if spec.dtype != wanted.dtype or not fits:
            raise AgentError(errors.BAD_INPUT, f"input {wanted.name!r} is {wanted}; got {spec}")
        if self._signature is None:
            self._interpreter.resize_tensor_input(detail["index"], list(spec.shape))
        return self._signature is None

    def _invoke_signature(self) -> None:
        self._results = self._signature(**self._arguments)

    def outputs(self) -> list[tuple[TensorSpec, bytes]]:
        """What the last `invoke` answered, in the model's order."""
        if self._signature is not None:
            return [from_array(d["name"], self._results[d["name"]]) for d in self._out]
        return [from_array(d["name"], self._interpreter.get_tensor(d["index"])) for d in self._out]


def _load_kernels(kernels: dict[str, str]) -> Any:
    try:
        return load_delegate(kernels["path"], {"mode": kernels["mode"]})
    except (ValueError, OSError) as error:
        raise AgentError(errors.NO_RUNTIME, f"our kernels do not load: {one_line(error)}") from error


def to_array(spec: TensorSpec, values: bytes) -> Any:
    """A numpy array of the wire's tensor; strings become an object array of bytes."""
    if spec.dtype != "string":
        return np.frombuffer(values, np.dtype(spec.dtype).newbyteorder("<")).reshape(spec.shape)
    strings = tensors.unpack_strings(values, spec.elements)
    return np.array(strings, dtype=object).reshape(spec.shape)


def from_array(name: str, array: Any) -> tuple[TensorSpec, bytes]:
    """The wire's tensor of a numpy array (or of the scalar that a signature may return)."""
    array = np.asarray(array)
    if array.dtype.kind in "OSU":
        strings = [s if isinstance(s, bytes) else str(s).encode() for s in array.reshape(-1).tolist()]
        return TensorSpec(name, "string", array.shape), tensors.pack_strings(strings)
    spec = TensorSpec(name, array.dtype.name, array.shape)
    return spec, np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()


def _named(details: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**detail, "name": name} for name, detail in details.items()]


def _dtype_name(dtype: Any) -> str:
    kind = np.dtype(dtype)
    return "string" if kind.kind in "OSU" else kind.name


def _describe(detail: dict[str, Any]) -> dict[str, Any]:
    scale, zero_point = detail.get("quantization", (0.0, 0))
    return {
        "name": detail["name"],
        "dtype": _dtype_name(detail["dtype"]),
        "shape": [int(x) for x in detail["shape"]],
        "shape_signature": [int(x) for x in detail.get("shape_signature", detail["shape"])],
        "scale": float(scale),
        "zero_point": int(zero_point),
    }
