"""
Every exception that a user may see.

::

    DeployError
        UsageError              the command line asks for something that cannot be meant
        ConfigError             boards.yaml: unreadable, or a value that does not fit
        UnknownBoard
        NoSuchBoard             none has what was asked for
        TransportError          no conversation with the board
            BoardUnreachable
            HostKeyChanged
            UnknownHostKey      met for the first time, and --strict-host-key pins nothing
            NoPython
            AgentBroken         what lies on the board does not start
            BoardSilent         nothing came for too long, or the agent ended
            WrongBoard          it is not the one that boards.yaml means
        BoardError              the agent answered, and the answer is no
            DiskFull
            ModelRefused        the runtime on the board will not have this model
            RunnerKilled        the process that ran the model died
            Busy                another conversation has the board
            BadInput            shape or dtype of what was fed
            NotOnBoard
            Untrusted           not signed by the key that the board obeys, or another key is pinned there
            StaleToken          somebody newer holds the board
            BoardHeld           somebody holds it by a lease file that is not ours
        RuntimeMissing          the board has no LiteRT and none could be brought
        KernelsMissing          our kernels can not be built for the board
        BundleError             a file that is no bundle, or a damaged one
        BuildError              the model could not be made
        DataError               a data set that is not what it should be
        GoldenMismatch          the board's answers are not the golden ones
        StoreError              the results store
        VirtualError            a virtual board does not come up, or is not there
            ToolMissing         a program that this machine lacks
        PowerError              what switches a board's supply fails
        CountError              instructions could not be counted
        MeterError              a meter that hangs on this machine does not work
        FarmError               the file that leases are kept in
            LeaseHeld           somebody else has the board
            LeaseLost           it was ours, and is no more
            Quarantined         it does not answer, and nothing that was tried helped
        PlaceError              labgrid does not give a board

An exception carries its facts as attributes and one line as its text; `hint` is something to type or to do.
The library prints nothing: `deploy.cli` shows both and exits with `exit_code`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, ClassVar

from devices.protocol import errors as codes


class DeployError(Exception):
    """
    Base of all; its text is one line that says what happened, with the facts.

    Args:
        message: that line.
        hint: a next step, or None.
        facts: become attributes of the exception.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, hint: str | None = None, **facts: Any) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.facts = facts

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["facts"][name]
        except KeyError:
            raise AttributeError(name) from None


class UsageError(DeployError):
    exit_code = 2


class ConfigError(DeployError):
    pass


class UnknownBoard(DeployError):
    pass


class NoSuchBoard(DeployError):
    pass


class TransportError(DeployError):
    pass


class BoardUnreachable(TransportError):
    pass


class HostKeyChanged(TransportError):
    pass


class UnknownHostKey(TransportError):
    pass


class NoPython(TransportError):
    pass


class AgentBroken(TransportError):
    pass


class BoardSilent(TransportError):
    pass


class WrongBoard(TransportError):
    pass


class BoardError(DeployError):
    """
    An error the agent reported.

    Attributes:
        code: one of `devices.protocol.errors`.
    """

    code: str = ""


class DiskFull(BoardError):
    pass


class ModelRefused(BoardError):
    pass


class RunnerKilled(BoardError):
    pass


class Busy(BoardError):
    pass


class BadInput(BoardError):
    pass


class NotOnBoard(BoardError):
    pass


class Untrusted(BoardError):
    pass


class StaleToken(BoardError):
    pass


class BoardHeld(BoardError):
    pass


class RuntimeMissing(BoardError):
    pass


class KernelsMissing(DeployError):
    pass


class BundleError(DeployError):
    pass


class BuildError(DeployError):
    pass


class DataError(DeployError):
    pass


class GoldenMismatch(DeployError):
    pass


class StoreError(DeployError):
    pass


class VirtualError(DeployError):
    pass


class ToolMissing(VirtualError):
    pass


class PowerError(DeployError):
    pass


class CountError(DeployError):
    pass


class MeterError(DeployError):
    pass


class FarmError(DeployError):
    pass


class LeaseHeld(FarmError):
    pass


class LeaseLost(FarmError):
    pass


class Quarantined(FarmError):
    pass


class PlaceError(DeployError):
    pass


_BY_CODE: dict[str, tuple[type[BoardError], str | None]] = {
    codes.DISK_FULL: (DiskFull, "`deploy boards clean {board}` removes all that deploy ever put there"),
    codes.MODEL_REFUSED: (ModelRefused, "`deploy inspect MODEL` lists its operators"),
    codes.RUNNER_KILLED: (RunnerKilled, None),
    codes.TIME_LIMIT: (RunnerKilled, "`--limit-s SECONDS` gives it more time"),
    codes.BAD_INPUT: (BadInput, "`deploy inspect MODEL` shows what it takes"),
    codes.BUSY: (Busy, "`deploy attach --board {board}` waits for a measurement that lost its host; `--evict` ends it"),
    codes.NOT_FOUND: (NotOnBoard, None),
    codes.UNTRUSTED: (Untrusted, "`deploy sign BUNDLE --key KEY` signs it"),
    codes.KEY_CHANGED: (Untrusted, "`deploy boards trust {board} --replace` pins the one of boards.yaml there"),
    codes.STALE_TOKEN: (StaleToken, None),
    codes.HELD: (BoardHeld, "`--wait 10m` waits for so long; `$DEPLOY_FARM` names a folder of leases to share"),
    codes.BAD_DIGEST: (BoardError, "`deploy push --board {board} BUNDLE` brings it again"),
    codes.NO_RUNTIME: (RuntimeMissing, "`deploy push --board {board} BUNDLE` brings numpy and LiteRT along"),
}


def from_agent(board: str, header: dict[str, Any], what: str = "") -> BoardError:
    """
    The exception for an ERROR frame.

    Args:
        board: its name.
        header: of the frame.
        what: the file it is about, to stand in front of the reason.
    """
    code = str(header.get("code", codes.INTERNAL))
    kind, hint = _BY_CODE.get(code, (BoardError, None))
    facts = header.get("facts")
    # A board's facts must not pass for our own arguments.
    facts = {k: v for k, v in facts.items() if k not in ("message", "hint")} if isinstance(facts, dict) else {}
    subject = f"{what}: " if what else ""
    error = kind(
        f"{subject}{one_line(header.get('message'))} (board {board!r})", hint and hint.format(board=board), **facts
    )
    error.code = code
    return error


def one_line(text: Any) -> str:
    """What a board said, fit for a terminal: control characters, which could forge lines or move the cursor, go."""
    return "".join(c if c.isprintable() else " " for c in str(text))


def nearest(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?`` where something known is near, else what is known, else nothing."""
    names = list(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; there is {', '.join(map(repr, names))}" if names else ""
