"""
Profile: what each operator of a model takes on a board.

The board cuts the model after every operator and times the cuts in turns, in several fresh processes (`devices.
profiling`); an operator's time is the difference of neighbours, taken sweep by sweep, so that what the board goes
through cancels.  A difference may be negative or lost in noise: then it is shown so.  The sum of all differences is
compared with the time of the untouched model, which took turns with them.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from deploy.accelerate import is_simulated, verdict
from deploy.data import Array, to_wire
from deploy.errors import BuildError, DataError
from deploy.measure import Seen, Watch
from deploy.model_file import operator_names
from deploy.results.store import RunWriter
from deploy.session import Session
from deploy.units import duration
from devices.protocol.cut import CutError, Graph
from devices.protocol.student import half_width
from devices.protocol.tensors import pack

WHOLE = "whole"


@dataclass(frozen=True)
class OpTime:
    """
    One operator, or a group of neighbours.

    Attributes:
        first, last: numbers in the order of execution.
        names: of the operators.
        outputs: numbers of the tensors that the last one makes.
        time_ns: the difference; may be negative.
        low_ns, high_ns: its 95 % interval, from the restarts; None for fewer than two.
        share: of the sum of all.
        kernel: who ran it: ``delegate``, ``builtin``, or a kernel of ours by name; None where the runtime does not say.
    """

    first: int
    last: int
    names: tuple[str, ...]
    outputs: tuple[int, ...]
    time_ns: float
    low_ns: float | None
    high_ns: float | None
    share: float
    kernel: str | None

    @property
    def certain(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low_ns is not None and self.high_ns is not None and not self.low_ns <= 0 <= self.high_ns


@dataclass(frozen=True)
class Profile:
    """
    Attributes:
        ops: in the order of execution.
        overhead_ns: an invocation without any operator.
        sum_ns: overhead and all operators.
        whole_ns: the untouched model.
        whole_low_ns, whole_high_ns: its 95 % interval; None for fewer than two restarts.
        gap: (sum - whole) / whole: what cutting adds, or hides.
        refused: cuts that the runtime would not load: their operators are told together with the next.
        accelerator: what the board told of it, see `deploy.accelerate.summary`; None without one.
    """

    ops: tuple[OpTime, ...]
    overhead_ns: float
    sum_ns: float
    whole_ns: float
    whole_low_ns: float | None
    whole_high_ns: float | None
    gap: float
    refused: tuple[str, ...]
    runtime: str
    accelerator: dict[str, Any] | None = None


def profile(
    session: Session,
    bundle: str,
    model: bytes,
    inputs: Sequence[Array],
    writer: RunWriter,
    *,
    duration_s: float = 10.0,
    restarts: int = 5,
    group: int = 1,
    threads: int = 1,
    pin: Sequence[int] | None = None,
    limit_s: float | None = None,
    subject: str = "",
    watch: Watch | None = None,
) -> Profile:
    """
    Profile a bundle that is on the board.

    Args:
        bundle: its digest.
        model: its .tflite file.
        inputs: one array for every input, in the model's order.
        writer: takes every raw value as it arrives, and the record.
        duration_s: over all restarts; each sweeps at least five times, however long that takes.
        group: operators that are told together.

    Raises:
        BuildError: the model cannot be cut.
        BoardError: as any run.
    """
    try:
        graph = Graph(model)
    except CutError as error:
        raise BuildError(f"{subject}: {error}") from None
    collector = _Collector(writer, watch)
    described, payload = pack([to_wire(f"input {i}", array) for i, array in enumerate(inputs)])
    plan = {"duration_s": duration_s, "restarts": restarts, "group": group, "threads": threads, "pin": pin}
    writer.set(plan=plan)
    header: dict[str, Any] = {
        "bundle": bundle,
        "tensors": described,
        "group": group,
        "duration_s": duration_s / restarts,
        "restarts": restarts,
        "threads": threads,
        "pin": list(pin) if pin else None,
        **session.kernels.asked,
        "limit_s": limit_s or 300.0,
    }
    if session.board.memory_limit_mib:
        header["memory_bytes"] = session.board.memory_limit_mib * 2**20
    within_s = duration_s + restarts * (header["limit_s"] + 60)
    reply = session.request(
        "profile.run", payload, on_event=collector, subject=subject, within_s=within_s, **header
    ).header
    found = _evaluate(collector, reply, graph, operator_names(model, subject))
    writer.set(
        state_before=reply["state_before"],
        state_after=reply["state_after"],
        restarts=reply["restarts"],
        runtime=reply["runtime"],
        delegate=reply["kernels"],
        accelerator=found.accelerator,
        verdict=["simulated"] if is_simulated(found.accelerator) else verdict(found.accelerator),
        profile=asdict(found),
        headline=duration(found.whole_ns),
    )
    return found


class _Collector:
    """Every raw value into the store; of each slice the median is kept: restart -> sweep -> cut -> ns."""

    def __init__(self, writer: RunWriter, watch: Watch | None) -> None:
        self._writer = writer
        self._watch = watch
        self.medians: dict[int, dict[int, dict[int | str, float]]] = {}

    def __call__(self, header: dict[str, Any], payload: bytes) -> None:
        restart, sweep = header["restart"], header["sweep"]
        cut = WHOLE if header["operators"] is None else int(header["operators"])
        values = np.frombuffer(payload, "<i8")
        if sweep >= 0:
            self._writer.append(f"profile_ns.{restart}", values, "ns")
            slices = (("length", len(values)), ("sweep", sweep), ("operators", -1 if cut == WHOLE else cut))
            for what, number in slices:  # of each slice; -1 operators is the untouched model
                self._writer.append(f"profile_{what}.{restart}", np.array([number]), "")
            self.medians.setdefault(restart, {}).setdefault(sweep, {})[cut] = float(np.median(values))
        if self._watch:
            self._watch(Seen("profile", restart, values if cut == WHOLE and sweep >= 0 else np.empty(0, np.int64)))


def _evaluate(collector: _Collector, reply: dict[str, Any], graph: Graph, names: Sequence[str]) -> Profile:
    cuts: list[int] = reply["restarts"][0]["cuts"]
    if len(cuts) < 2 or cuts[0] != 0 or any(restart["cuts"] != cuts for restart in reply["restarts"]):
        raise DataError("the runtime loads too few of the model's cuts, or others each time")
    rounds = [list(sweeps.values()) for _, sweeps in sorted(collector.medians.items())]

    def of_rounds(later: int | str, earlier: int | None = None) -> list[float]:
        """For each restart, the median over its sweeps of a cut's time, or of a difference."""
        less = [[0.0 if earlier is None else sweep[earlier] for sweep in sweeps] for sweeps in rounds]
        return [
            float(np.median([sweep[later] - than for sweep, than in zip(sweeps, base, strict=True)]))
            for sweeps, base in zip(rounds, less, strict=True)
        ]

    placement: list[str] = list(reply["restarts"][0]["placement"] or ())
    times = [of_rounds(later, earlier) for earlier, later in itertools.pairwise(cuts)]
    centres = [sum(values) / len(values) for values in times]
    total = sum(centres)
    ops = []
    for earlier, later, values, centre in zip(cuts, cuts[1:], times, centres, strict=False):
        half = half_width(values) if len(values) > 1 else None
        places = set(placement[earlier:later])
        ops.append(
            OpTime(
                first=earlier,
                last=later - 1,
                names=tuple(names[earlier:later]),
                outputs=tuple(graph.operators[later - 1][1]),
                time_ns=centre,
                low_ns=None if half is None else centre - half,
                high_ns=None if half is None else centre + half,
                share=centre / total if total else 0.0,
                kernel=" and ".join(sorted(places)) or None,
            )
        )
    overhead = of_rounds(0)
    whole = of_rounds(WHOLE)
    middle = sum(whole) / len(whole)
    half = half_width(whole) if len(whole) > 1 else None
    summed = sum(overhead) / len(overhead) + total
    return Profile(
        ops=tuple(ops),
        overhead_ns=sum(overhead) / len(overhead),
        sum_ns=summed,
        whole_ns=middle,
        whole_low_ns=None if half is None else middle - half,
        whole_high_ns=None if half is None else middle + half,
        gap=summed / middle - 1,
        refused=tuple(
            f"{entry['operators']} operators: {entry['reason']}" for entry in reply["restarts"][0]["refused"]
        ),
        runtime=reply["runtime"],
        accelerator=reply.get("accelerator"),
    )
