"""The family of exceptions, and what an agent's error becomes on the host."""

from __future__ import annotations

import pickle

import pytest

from deploy import errors
from deploy.errors import BoardError, DeployError, UsageError, from_agent, nearest
from devices.protocol import errors as codes


def family(kind: type[DeployError]) -> list[type[DeployError]]:
    return [kind, *(member for child in kind.__subclasses__() for member in family(child))]


def test_every_exception_stands_in_the_family_tree_of_the_modules_docstring() -> None:
    """The tree is what a reader looks at; a new exception must join it."""
    written = {line.split()[0] for line in (errors.__doc__ or "").splitlines() if line.startswith("    ")}

    # BoardSilent's subclasses in the tests are not the module's.
    assert written == {kind.__name__ for kind in family(DeployError) if kind.__module__ == errors.__name__}


def test_an_exception_carries_its_facts_as_attributes() -> None:
    error = DeployError("text", "hint", board="pi", status=3)

    assert ("text", "hint", "pi", 3) == (str(error), error.hint, error.board, error.status)


def test_a_fact_that_is_not_there_is_an_attribute_error() -> None:
    """``hasattr`` must work, also while the exception is copied or pickled and has no facts yet."""
    with pytest.raises(AttributeError, match=r"^signal$"):
        _ = DeployError("text").signal

    assert not hasattr(DeployError.__new__(DeployError), "signal")


def test_an_exception_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(BoardError("text", "hint", board="pi")))

    assert ("text", "hint", "pi") == (str(error), error.hint, error.board)


def test_what_cannot_be_meant_ends_with_2_and_everything_else_with_1() -> None:
    ends = {kind: kind("").exit_code for kind in family(DeployError)}

    assert {UsageError} == {kind for kind, code in ends.items() if code == 2}
    assert {1, 2} == set(ends.values())


@pytest.mark.parametrize(
    ("code", "kind", "hint"),
    [
        (codes.DISK_FULL, errors.DiskFull, "`deploy boards clean pi` removes all that deploy ever put there"),
        (codes.MODEL_REFUSED, errors.ModelRefused, "`deploy inspect MODEL` lists its operators"),
        (codes.RUNNER_KILLED, errors.RunnerKilled, None),
        (codes.TIME_LIMIT, errors.RunnerKilled, "`--limit-s SECONDS` gives it more time"),
        (codes.BAD_INPUT, errors.BadInput, "`deploy inspect MODEL` shows what it takes"),
        (codes.NOT_FOUND, errors.NotOnBoard, None),
        (codes.NO_RUNTIME, errors.RuntimeMissing, "`deploy push --board pi BUNDLE` brings numpy and LiteRT along"),
        (
            codes.BUSY,
            errors.Busy,
            "`deploy attach --board pi` waits for a measurement that lost its host; `--evict` ends it",
        ),
        (codes.INTERNAL, BoardError, None),
        ("a-code-of-the-future", BoardError, None),
    ],
)
def test_an_agents_code_chooses_the_exception_and_its_hint(code: str, kind: type[BoardError], hint: str | None) -> None:
    error = from_agent("pi", {"code": code, "message": "why", "facts": {"signal": "SIGSEGV"}}, "net.bundle")

    assert kind is type(error)
    assert ("net.bundle: why (board 'pi')", hint, code) == (str(error), error.hint, error.code)
    assert "SIGSEGV" == error.signal


def test_an_error_without_a_code_or_facts_is_an_internal_one() -> None:
    error = from_agent("pi", {"message": "why", "facts": None})

    assert (BoardError, "why (board 'pi')", codes.INTERNAL) == (type(error), str(error), error.code)


@pytest.mark.parametrize(
    ("word", "known", "expected"),
    [
        ("jetsn", ["pynq", "jetson"], "; did you mean 'jetson'?"),
        ("x", ["pynq", "jetson"], "; there is 'pynq', 'jetson'"),
        ("x", [], ""),
    ],
)
def test_the_nearest_word_is_suggested_or_all_are_listed(word: str, known: list[str], expected: str) -> None:
    assert expected == nearest(word, known)
