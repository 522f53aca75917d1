"""
The gate: whether a bundle may pass, given what it may cost more than its baseline.

It passes what is shown to stay below the limit, fails what is certainly worse and not shown to stay below it, and says
so when the measurements cannot tell.  So noise alone fails at most 25 of 1,000, and what is worse by
the limit passes as rarely.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass

from deploy.results.compare import Effect
from deploy.results.store import Run
from deploy.results.verdicts import CODES

PASSED, FAILED, UNDECIDED = "passed", "failed", "undecided"


@dataclass(frozen=True)
class Check:
    """
    One limit and what became of it.

    Attributes:
        name: as in ``latency``.
        outcome: ``passed``, ``failed``, ``undecided``.
        text: why, in a line.
    """

    name: str
    outcome: str
    text: str


def check(effect: Effect, most: float) -> Check:
    """
    One quantity against its limit.

    Args:
        most: how much more is allowed, as a share: 0.03 is 3 %.
    """
    if effect.low is None or effect.high is None:
        return Check(effect.quantity, UNDECIDED, f"{effect.n} restarts say nothing of how much they vary")
    text = f"{effect.ratio - 1:+.2%} [{effect.low - 1:+.2%}, {effect.high - 1:+.2%}], limit {most:+.2%}"
    if effect.high < 1 + most:
        return Check(effect.quantity, PASSED, text)
    if effect.low > 1:
        return Check(effect.quantity, FAILED, text)
    return Check(effect.quantity, UNDECIDED, f"{text}: too noisy to tell; more restarts tell")


def check_energy(effects: Sequence[Effect], first: Run, second: Run, most: float) -> list[Check]:
    """
    Every rail that either run was to measure, against the limit.  What only one of them could measure decides nothing,
    nor does energy that a code voids (`Code.void_energy`); windows that were rejected are named.
    """
    readings = [{entry["rail"]: entry for entry in run.record.get("energy") or ()} for run in (first, second)]
    known = {effect.quantity.removeprefix("energy "): effect for effect in effects}
    found = []
    for rail in dict.fromkeys([*readings[0], *readings[1]]):
        said, void = [], False
        for run, mine in zip((first, second), readings, strict=True):
            entry = mine.get(rail, {"reason": "not measured"})
            codes = dict.fromkeys([*entry.get("codes", ()), *(run.record.get("verdict") or ())])
            why = [code for code in codes if code in CODES and CODES[code].void_energy]
            why = [entry["reason"]] if entry.get("reason") else why
            void = void or bool(why)
            why += [f"window {n} rejected ({' '.join(because)})" for n, because in entry.get("rejected", ())]
            said += [f"{run.id}: {', '.join(why)}"] if why else []
        if rail not in known:
            found.append(Check(f"energy {rail}", UNDECIDED, "; ".join(said) or "modelled, or read from a stub"))
            continue
        judged = check(known[rail], most)
        outcome = UNDECIDED if void else judged.outcome
        found.append(Check(judged.name, outcome, "; ".join([judged.text, *said])))
    return found or [Check("energy", UNDECIDED, "no rail was measured in either run")]


def check_verdict(run: str, verdict: Sequence[str]) -> Check | None:
    """A run whose number is void decides nothing; None where it is not."""
    void = [code for code in verdict if code in CODES and CODES[code].void]
    return Check(f"verdict of {run}", UNDECIDED, ", ".join(void)) if void else None


def outcome(checks: Sequence[Check]) -> str:
    """Of all checks: failed if one failed, else undecided if one is, else passed."""
    seen = {check.outcome for check in checks}
    return next((worst for worst in (FAILED, UNDECIDED) if worst in seen), PASSED)


def junit(name: str, checks: Sequence[Check], undecided_fails: bool) -> bytes:
    """The checks as a JUnit file: failed ones as failures, undecided ones as errors, or as skipped."""
    failures = sum(check.outcome == FAILED for check in checks)
    undecided = sum(check.outcome == UNDECIDED for check in checks)
    counts = {"tests": str(len(checks)), "failures": str(failures)}
    counts["errors" if undecided_fails else "skipped"] = str(undecided)
    root = ElementTree.Element("testsuites")
    suite = ElementTree.SubElement(root, "testsuite", {"name": name, **counts})
    for each in checks:
        case = ElementTree.SubElement(suite, "testcase", {"classname": f"deploy.gate.{name}", "name": each.name})
        tag = {FAILED: "failure", UNDECIDED: "error" if undecided_fails else "skipped"}.get(each.outcome)
        if tag:
            ElementTree.SubElement(case, tag, {"message": each.text})
        else:
            ElementTree.SubElement(case, "system-out").text = each.text
    return bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True))
