"""What TFLite's reference kernels answer: the accelerator, and every node beside it, rounds as they do."""

from __future__ import annotations

import io

import numpy as np


def answered(model: bytes, golden: bytes) -> bytes:
    """
    Golden vectors with the answers of the reference kernels.

    Args:
        model: content of a .tflite file that has run in LiteRT before.
        golden: content of a bundle's golden file, whose inputs are used.

    Returns:
        Content of such a file; its inputs are the same.
    """
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreter = Interpreter(model_content=model, experimental_op_resolver_type=OpResolverType.BUILTIN_REF)
    interpreter.allocate_tensors()
    given, made = interpreter.get_input_details(), interpreter.get_output_details()
    out = io.BytesIO()
    with np.load(io.BytesIO(golden), allow_pickle=False) as known:
        answers = {name: known[name] for name in known.files}
        for vector in sorted({name.partition(".")[0] for name in answers}):
            for i, detail in enumerate(given):
                interpreter.set_tensor(detail["index"], answers[f"{vector}.in{i}"])
            interpreter.invoke()
            for i, detail in enumerate(made):
                answers[f"{vector}.out{i}"] = interpreter.get_tensor(detail["index"])
    np.savez_compressed(out, **answers)
    return out.getvalue()
