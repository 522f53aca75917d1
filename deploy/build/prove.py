"""
Proving a model on this machine: golden vectors, and accuracy where there is labelled data.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from deploy import inference
from deploy.data import Array, Dataset, feed, random_inputs
from deploy.errors import BadInput
from deploy.evaluate import Accuracy, evaluate
from deploy.session import Session
from devices.protocol import manifest as manifests
from devices.protocol.manifest import Manifest, TensorInfo


@dataclass(frozen=True)
class Proof:
    """
    Attributes:
        golden: content of the bundle's golden file.
        facts: the manifest's `golden`.
        accuracy: None without labelled data.
    """

    golden: bytes
    facts: dict[str, Any]
    accuracy: Accuracy | None


def prove(
    session: Session,
    manifest: Manifest,
    model: bytes,
    inputs: tuple[TensorInfo, ...],
    test: Dataset | None,
    vectors: int,
    progress: Callable[[int, int], None] | None = None,
) -> Proof:
    """
    Run `model` through an agent of this machine.

    Args:
        inputs: with the shapes that will be used.
        test: where it has one sample for each golden vector and the model one input, these are the golden inputs.

    Raises:
        ModelRefused, RunnerKilled, BadInput: as any run.
    """
    sha256 = manifests.digest(model)
    session.upload(sha256, model)
    subject = manifest.name
    shapes = {name: list(shape) for name, shape in manifest.shapes.items()}
    loaded = inference.load(session, sha256=sha256, shapes=shapes, subject=subject)
    given = _golden_inputs(inputs, manifest, test, vectors)
    answers = list(inference.infer(session, loaded, given, subject=subject))
    inference.unload(session, subject)
    accuracy = None
    if test is not None and test.y is not None:
        total = len(test.x)
        loaded = inference.load(session, sha256=sha256, shapes=shapes, subject=subject)
        accuracy = evaluate(
            session,
            loaded,
            test,
            manifest.preprocess,
            subject=subject,
            progress=(lambda done: progress(done, total)) if progress else None,
        )
        inference.unload(session, subject)
    return Proof(_pack(given, answers), {"vectors": len(given), "runtime": loaded.runtime}, accuracy)


def _golden_inputs(
    inputs: tuple[TensorInfo, ...], manifest: Manifest, test: Dataset | None, vectors: int
) -> list[list[Array]]:
    if test is None:
        return random_inputs(inputs, vectors, manifest.seed)
    if len(inputs) != 1:
        raise BadInput(f"data can feed a model with one input; {manifest.name} has {len(inputs)}")
    return [[sample] for sample in feed(test.x[:vectors], inputs[0], manifest.preprocess)]


def _pack(given: Sequence[Sequence[Array]], answers: Sequence[Sequence[Array]]) -> bytes:
    """An .npz with ``v<vector>.in<i>`` and ``v<vector>.out<i>``; the same arrays give the same bytes."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for vector, (ins, outs) in enumerate(zip(given, answers, strict=True)):
            for kind, arrays in (("in", ins), ("out", outs)):
                for i, array in enumerate(arrays):
                    member = io.BytesIO()
                    plain = array.astype("S") if array.dtype == object else np.ascontiguousarray(array)
                    np.lib.format.write_array(member, plain.reshape(array.shape), allow_pickle=False)
                    info = zipfile.ZipInfo(f"v{vector}.{kind}{i}.npy", (1980, 1, 1, 0, 0, 0))
                    info.compress_type = zipfile.ZIP_DEFLATED
                    archive.writestr(info, member.getvalue())
    return out.getvalue()
