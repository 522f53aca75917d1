"""
Verify: does the board answer what the host answered?

The golden vectors run and are compared on the board; only the differences travel.  A comparison is bit for bit.  Where
it is not met, the answer says by how much: integer outputs in steps, floating-point ones relative to the largest
expected magnitude.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from deploy import accelerate, inference
from deploy.bundle import Bundle
from deploy.data import random_inputs
from deploy.errors import GoldenMismatch
from deploy.session import Session

# XNNPACK and TFLite's reference kernels round differently by at most one step, and one CPU may get the one where
# another gets the other.
INTEGER_STEPS = 1
_QUANTIZED = ("int8", "uint8", "int16")  # wider integers and flags are indices and decisions: one step is another one
# Sums of float32 in another order: some hundred roundings of 2**-24 each.
FLOAT_RELATIVE = 1e-4


@dataclass(frozen=True)
class Verification:
    """
    Attributes:
        vectors: golden vectors that ran.
        elements: values compared.
        differing: values that are not bit-equal.
        largest_steps: of integer outputs; 0 where all are equal.
        largest_relative: of floating-point outputs.
        off_by_one: integer values that differ by exactly one step, as two correct roundings may.
        runtime_board, runtime_golden: what answered, and what made the golden vectors.
        kernels: how our kernels were used there: "auto", "reference" or "off".
        kernels_ran: node kinds and the variants of ours that computed them, as in ``CONV_2D conv_w4_...``, each once.
        accelerator: what the board told of it after the last vector, see `deploy.accelerate.summary`; None without one.
        passed: bit-exact, or within what different runtimes may do (`INTEGER_STEPS`, `FLOAT_RELATIVE`).
        outputs: the comparison of every output, over all vectors, as the board sent it; `vector` is the first that
            differs.
    """

    vectors: int
    elements: int
    differing: int
    largest_steps: int
    largest_relative: float
    runtime_board: str
    runtime_golden: str
    passed: bool
    outputs: tuple[dict[str, Any], ...]
    off_by_one: int = 0
    kernels: str = "off"
    kernels_ran: tuple[str, ...] = ()
    accelerator: dict[str, Any] | None = None

    @property
    def path(self) -> str:
        """What computed the answers that were compared."""
        path = [self.runtime_board]
        if self.accelerator:
            path.append(accelerate.summary(self.accelerator))
        if self.kernels == "off":
            path.append("our kernels off")
        elif not self.accelerator or self.accelerator["why"]:
            path.append(f"our kernels {self.kernels}: {', '.join(self.kernels_ran) or 'no node'}")
        return ", ".join(path)

    @property
    def exact(self) -> bool:
        return self.differing == 0

    @property
    def summary(self) -> str:
        """One line."""
        if self.exact:
            return f"{self.vectors} golden vectors bit-exact ({self.elements} values)"
        by = []
        if self.largest_steps:
            by.append(f"at most {self.largest_steps} step{'s' if self.largest_steps > 1 else ''}")
            if self.largest_steps > 1 and self.off_by_one:
                by[-1] += f" ({self.off_by_one} by one)"
        if self.largest_relative:
            by.append(f"at most {self.largest_relative:.1e} of the largest value")
        how = f", by {' and '.join(by)}" if by else ""
        against = f"; made by {self.runtime_golden}, answered by {self.path}"
        return f"{self.differing} of {self.elements} golden values differ{how}{against}"


def verify(session: Session, bundle: Bundle, threads: int = 1, limit_s: float | None = None) -> Verification:
    """
    Run the golden vectors of a bundle that is on the board.

    Raises:
        NotOnBoard: it is not there, or has none.
        ModelRefused, RunnerKilled: as any run.
    """
    return _run(session, bundle.digest, bundle.name, bundle.manifest.golden or {}, threads, limit_s)


def prove(
    session: Session, digest: str, name: str, golden: dict[str, Any] | None, seed: int = 0
) -> Verification | None:
    """
    What stands between a release and `current`: its golden vectors, or, where it has none, that it loads and runs once.

    Args:
        digest, name, golden: of the bundle, which is on the board; the host need not have it.
        seed: of the one invocation.

    Raises:
        GoldenMismatch: the answers there are not the golden ones.
        BoardError: as any run.
    """
    if golden is None:
        model = inference.load(session, bundle=digest, subject=name)
        list(inference.infer(session, model, random_inputs(model.inputs, 1, seed), subject=name))
        inference.unload(session, name)
        return None
    verification = _run(session, digest, name, golden, 1, None)
    if not verification.passed:
        raise GoldenMismatch(
            f"{name}: {verification.summary} (board {session.board.name!r}); nothing was switched",
            f"`deploy inspect {name}.bundle` says which runtime made the golden vectors",
            verification=verification,
        )
    return verification


def _run(
    session: Session, digest: str, name: str, golden: dict[str, Any], threads: int, limit_s: float | None
) -> Verification:
    model = inference.load(session, bundle=digest, threads=threads, subject=name, limit_s=limit_s)
    limits: dict[str, Any] = {} if limit_s is None else {"limit_s": limit_s}
    reply = session.request("model.verify", bundle=digest, subject=name, **limits).header
    inference.unload(session, name)
    ran = {f"{node['op']} {node['kernel']}" for node in model.kernels or () if node["kernel"] not in (None, "none")}
    by = str(golden.get("runtime")) + (", reference kernels" if reply.get("referenced") else "")
    judged = judge(
        reply["compared"],
        int(golden.get("vectors", 0)),
        model.runtime,
        by,
        session.kernels.mode,
        tuple(sorted(ran)),
    )
    return replace(judged, accelerator=reply.get("accelerator"))


def judge(
    compared: list[dict[str, Any]],
    vectors: int,
    runtime_board: str,
    runtime_golden: str,
    kernels: str = "off",
    kernels_ran: tuple[str, ...] = (),
) -> Verification:
    """Make one verdict of the comparisons (see `devices.runner._compare`) of every output, over all vectors."""
    steps, relative, passed, off_by_one = 0, 0.0, True, 0
    for entry in compared:
        if not entry["differing"]:
            continue
        largest = entry.get("largest")
        if "shape" in entry or largest is None or entry.get("nan_mismatch"):
            passed = False  # another shape, strings, or NaN on one side only: no distance says how far off
        elif entry["dtype"].startswith(("float", "complex")):
            relative = max(relative, entry["relative"])
        else:
            steps = max(steps, int(largest))
            off_by_one += entry["off_by_one"]
            passed = passed and entry["dtype"] in _QUANTIZED
    passed = passed and steps <= INTEGER_STEPS and relative <= FLOAT_RELATIVE
    return Verification(
        vectors,
        sum(entry["elements"] for entry in compared),
        sum(entry["differing"] for entry in compared),
        steps,
        relative,
        runtime_board,
        runtime_golden,
        passed,
        tuple(compared),
        off_by_one,
        kernels,
        kernels_ran,
    )
