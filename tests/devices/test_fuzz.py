"""What is fuzzed at length by ``make fuzz``, for a moment; and that the fuzzer finds what chance does not."""

from __future__ import annotations

import pytest

from tests.fuzz.__main__ import corpus
from tests.fuzz.guided import Target, fuzz
from tests.fuzz.targets import ALL

INPUTS = {"decoder": 200, "host": 300, "agent": 60, "peer": 300, "line": 20, "delta": 30}  # beside the corpus


@pytest.mark.parametrize("target", ALL, ids=lambda target: target.name)
def test_what_the_other_side_sends_is_refused_or_understood_and_breaks_nothing(
    target: Target, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """``make fuzz`` made the corpus, of inputs that each reached something new."""
    kept = corpus(target.name)
    assert kept

    found = fuzz(target, len(kept) + INPUTS[target.name], seed=1, corpus=kept)

    with capsys.disabled():
        print(f"\n{found.inputs} inputs to {target.name}, {len(found.reached)} reached", end="")
    assert found.failure is None, f"python -m tests.fuzz {target.name} --input '{found.failure[0].hex()}'"


def hidden(data: bytes) -> None:
    """Five bytes that must all be right: for chance, one input in 2**40."""
    if data[0:1] != b"\x7e":
        return
    if data[1:2] != b"R":
        return
    if data[2:3] != b"\xfe":
        return
    if data[3:4] != b"\x01":
        return
    if data[4:5] == b"!":
        raise RuntimeError("found")


def test_what_was_reached_guides_the_fuzzer_to_what_chance_does_not_find() -> None:
    guided = fuzz(Target("hidden", hidden, ("test_fuzz.py",)), 20_000, seed=3)
    blind = fuzz(Target("hidden", hidden, ()), 20_000, seed=3)

    assert guided.failure is not None
    assert "found" == str(guided.failure[1])
    assert blind.failure is None
