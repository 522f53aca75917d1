"""
What samples make of a model's activations: the model runs here, in a process of its own, with every tensor kept.
"""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from deploy.errors import BuildError
from deploy.model_file.oddities import LIMITS, Met


def observe(model: bytes, samples: NDArray[Any], name: str) -> dict[str, Met]:
    """
    Run every sample and watch the integer activations.

    Args:
        model: with one input.
        samples: [N, 1, ...] of its dtype, as `deploy.data.feed` makes them.
        name: of the file, for messages.

    Returns:
        Name of an integer activation tensor -> what was met there.

    Raises:
        BuildError: the runtime refuses the model, or dies of it.
    """
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import get_context

    try:
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            return pool.submit(_observe, model, samples).result()
    except BrokenProcessPool:
        raise BuildError(f"{name}: the process that ran it died") from None
    except (RuntimeError, ValueError) as error:
        raise BuildError(f"{name}: {' '.join(str(error).split())[:300]}") from None


def _observe(model: bytes, samples: NDArray[Any]) -> dict[str, Met]:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    # Without a delegate every tensor is really written.
    interpreter = Interpreter(
        model_content=model,
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        experimental_preserve_all_tensors=True,
    )
    interpreter.allocate_tensors()
    details = [d for d in interpreter.get_tensor_details() if d["dtype"].__name__ in LIMITS and d["name"]]
    made = _made(interpreter)
    low: dict[str, int] = {}
    high: dict[str, int] = {}
    counts: dict[str, list[int]] = {}
    first = interpreter.get_input_details()[0]["index"]
    for sample in samples:
        interpreter.set_tensor(first, sample)
        interpreter.invoke()
        for detail in details:
            if detail["index"] not in made:
                continue
            values = interpreter.get_tensor(detail["index"])
            if values.size == 0:
                continue
            name, limits = detail["name"], LIMITS[values.dtype.name]
            low[name] = min(int(values.min()), low.get(name, limits[1]))
            high[name] = max(int(values.max()), high.get(name, limits[0]))
            count = counts.setdefault(name, [0, 0, 0])
            count[0] += values.size
            count[1] += int((values == limits[0]).sum())
            count[2] += int((values == limits[1]).sum())
    return {name: Met(low[name], high[name], n[1] / n[0], n[2] / n[0]) for name, n in counts.items()}


def _made(interpreter: Any) -> set[int]:
    """What is computed, and what is fed: everything but constants."""
    outputs = {int(i) for op in interpreter._get_ops_details() for i in op["outputs"]}
    return outputs | {int(d["index"]) for d in interpreter.get_input_details()}


__all__ = ["Met", "observe"]
