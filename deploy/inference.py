"""
Running models on a board: load, feed, answers back.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deploy.accelerate import is_simulated
from deploy.data import Array, from_wire, to_wire
from deploy.session import Session
from devices.protocol.manifest import TensorInfo
from devices.protocol.tensors import TensorSpec, pack, unpack

BATCH_BYTES = 1 << 20  # of inputs, in one request
BATCH_TENSORS = 128  # in and out: each has its description in a header of 64 KiB


@dataclass(frozen=True)
class Loaded:
    """
    A model that is ready on a board.

    Attributes:
        inputs, outputs: as the runtime there sees them; an open extent is -1.
        runtime: as in ``ai-edge-litert 2.3.0``.
        kernels: what our delegate decided, a dictionary for every node it looked at; None where it was off.  Where the
            board's accelerator has the model, what it takes: one for every node.
        accelerator: what the board told of it, see `deploy.accelerate.summary`; None without one.
    """

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    signatures: tuple[str, ...]
    runtime: str
    load_ns: int
    kernels: tuple[dict[str, Any], ...] | None = None
    accelerator: dict[str, Any] | None = None


def load(
    session: Session,
    *,
    bundle: str | None = None,
    sha256: str | None = None,
    threads: int = 1,
    signature: str | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    limit_s: float | None = None,
    subject: str = "",
) -> Loaded:
    """
    Load the model of a bundle that was pushed, or a bare file in the board's store, in a new process there.

    With our kernels where the conversation uses them, see `deploy.kernels.ensure`.

    Args:
        bundle, sha256: digest of the one or the other.
        signature: None is the model's first subgraph.
        shapes: input name -> shape to use instead of the model's own.
        limit_s: time limit for loading.
        subject: the file's name, for errors.

    Raises:
        ModelRefused: the runtime says no; with its reason.
        RunnerKilled: it kills the process that loads it.
        BadInput: `signature` or `shapes` names what the model has not.
    """
    what: dict[str, Any] = {"bundle": bundle} if bundle else {"sha256": sha256}
    if limit_s is not None:
        what["limit_s"] = limit_s
    if session.board.memory_limit_mib:
        what["memory_bytes"] = session.board.memory_limit_mib * 2**20
    what |= session.kernels.asked
    answer = session.request("model.load", subject=subject, threads=threads, signature=signature, shapes=shapes, **what)
    decisions = json.loads(answer.payload)
    reply = answer.header
    return Loaded(
        tuple(_info(entry) for entry in reply["inputs"]),
        tuple(_info(entry) for entry in reply["outputs"]),
        tuple(reply["signatures"]),
        reply["runtime"],
        reply["load_ns"],
        None if decisions is None else tuple(decisions),
        reply.get("accelerator"),
    )


def infer(
    session: Session,
    model: Loaded,
    samples: Iterable[Sequence[Array]],
    *,
    limit_s: float | None = None,
    subject: str = "",
    progress: Callable[[int], Any] | None = None,
) -> Iterator[list[Array]]:
    """
    Feed samples, one invocation each, and yield the outputs of each in the order of the samples.

    The model's variables go on from one sample to the next.

    Args:
        samples: each one array for every input, in the model's order.
        progress: called with how many samples are done.

    Raises:
        BadInput: a shape or dtype that does not fit.
        RunnerKilled, ModelRefused: see `load`.
    """
    limits: dict[str, Any] = {} if limit_s is None else {"limit_s": limit_s}
    done = 0
    for batch in _batches(samples, model):
        described, parts = [], []
        for sample in batch:
            specs, values = pack(sample)
            described.append(specs)
            parts.append(values)
        reply = session.request("model.infer", b"".join(parts), subject=subject, batch=described, **limits)
        at = 0
        for entry in reply.header["batch"]:
            size = sum(tensor["bytes"] for tensor in entry)
            yield [from_wire(spec, values) for spec, values in unpack(entry, reply.payload[at : at + size])]
            at += size
        done += len(batch)
        if progress:
            progress(done)


def unload(session: Session, subject: str = "") -> None:
    """
    End the process that holds the model.

    Raises:
        RunnerKilled: it dies of that; some models corrupt memory and only show it here.
    """
    session.request("model.unload", subject=subject)


def _batches(samples: Iterable[Sequence[Array]], model: Loaded) -> Iterator[list[list[tuple[TensorSpec, bytes]]]]:
    batch: list[list[tuple[TensorSpec, bytes]]] = []
    size = 0
    tensors = BATCH_TENSORS // 16 if is_simulated(model.accelerator) else BATCH_TENSORS  # a time limit is a request's
    for sample in samples:
        names = [info.name for info in model.inputs]
        names += [f"input {i}" for i in range(len(names), len(sample))]
        packed = [to_wire(name, array) for name, array in zip(names, sample, strict=False)]
        batch.append(packed)
        size += sum(len(values) for _, values in packed)
        if size >= BATCH_BYTES or len(batch) * max(len(model.inputs), len(model.outputs)) >= tensors:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _info(entry: dict[str, Any]) -> TensorInfo:
    return TensorInfo(
        entry["name"], entry["dtype"], tuple(entry["shape_signature"]), entry["scale"], entry["zero_point"]
    )
