"""What comes before a run: what the record says of it, and what the model is fed."""

from __future__ import annotations

import functools
import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from deploy import __version__, inference
from deploy.bundle import Bundle
from deploy.data import Array, random_inputs

if TYPE_CHECKING:
    from deploy.measure import Plan
    from deploy.session import Session


def run_record(session: Session, bundle: Bundle, command: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of a run before it starts."""
    board = session.board
    return {
        "board": {
            "name": board.name,
            "kind": board.kind,
            "transport": board.transport.kind,
            "tags": list(board.tags),
            "identity": session.hello["identity"],
        },
        "bundle": {
            "name": bundle.name,
            "digest": bundle.digest,
            "model_sha256": bundle.manifest.files["model.tflite"].sha256,
            "model_bytes": len(bundle.model),
            "recipe": bundle.manifest.recipe,
            "host_accuracy": bundle.manifest.accuracy,
        },
        "command": dict(command),
        "kernels": vars(session.kernels),
        "deploy": __version__,
        "agent": session.hello["agent"],
    }


def input_values(session: Session, bundle: Bundle, plan: Plan) -> list[Array]:
    """The first golden input, so that what is measured is what was proven; random values where there is none."""
    manifest = bundle.manifest
    if manifest.golden and plan.signature is None:
        return golden_inputs(bundle)
    model = inference.load(session, bundle=bundle.digest, signature=plan.signature, subject=bundle.name)
    inference.unload(session, bundle.name)
    return random_inputs(model.inputs, 1, manifest.seed)[0]


def golden_inputs(bundle: Bundle) -> list[Array]:
    """The inputs of the first golden vector, in the model's order; not to be written to."""
    return _first_vector(bundle.files["golden.npz"], len(bundle.manifest.inputs))


@functools.lru_cache(maxsize=64)  # a plan measures one bundle thousands of times
def _first_vector(data: bytes, inputs: int) -> list[Array]:
    with np.load(io.BytesIO(data), allow_pickle=False) as golden:
        return [golden[f"v0.in{i}"] for i in range(inputs)]
