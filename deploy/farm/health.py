"""
Boards that hang: what is tried, in this order, and what happens to those that nothing helps.

The ladder: kill our agents there, reboot, switch the supply off and on.  A board that still does not answer goes into
quarantine, with the reason: whoever asks for any board does not get it.  It is looked at again after a while, less and
less often, and comes back by itself when it answers.  This machine (`transport: {kind: local}`) is never rebooted.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from deploy.boards import Board, LocalTransport, Registry
from deploy.errors import BoardError, ConfigError, DeployError, FarmError, Quarantined, RuntimeMissing, one_line
from deploy.farm.clock import Clock
from deploy.farm.hold import hold
from deploy.farm.lease import Lease
from deploy.farm.leases import Leases
from deploy.farm.places import acquired
from deploy.farm.seen import Sightings
from deploy.power import switch
from deploy.session import Session, connect, python_of
from deploy.transport import open_transport

Rung = Literal["agent", "reboot", "power"]
RUNGS: tuple[Rung, ...] = ("agent", "reboot", "power")
_DOING = {"agent": "killing its agents", "reboot": "rebooting it", "power": "switching it off and on"}
COMMAND_S = 20.0
RETRY_S = 2.0  # between two looks at a board that comes up

# Runs on the board.  Agents and what they start have a working folder below the root's `agent`; whoever runs this, and
# whoever started that (the far end of a serial line), must live.
_KILL = r"""
import os, signal, sys
home = os.path.join(os.path.realpath(os.path.expanduser(sys.argv[1])), "agent") + os.sep
spared, pid = set(), os.getpid()
while pid > 1:
    spared.add(pid)
    with open("/proc/%d/stat" % pid) as stat:
        pid = int(stat.read().rpartition(")")[2].split()[1])
killed = 0
for name in os.listdir("/proc"):
    if name.isdigit() and int(name) not in spared:
        try:
            if (os.readlink("/proc/%s/cwd" % name) + os.sep).startswith(home):
                os.kill(int(name), signal.SIGKILL)
                killed += 1
        except OSError:
            pass
print("DEPLOY-KILLED %d" % killed)
"""
_BOOT = "cat /proc/sys/kernel/random/boot_id"
# Nobody is there to type a password; whoever is not root needs `sudo` without one.
_REBOOT = """
PATH=$PATH:/usr/sbin:/sbin; sync
if [ "$(id -u)" = 0 ]; then reboot; else sudo -n reboot; fi
"""


@dataclass(frozen=True)
class Recovered:
    """
    How a board came back.

    Attributes:
        by: the rung that helped; None: it answered before anything was done.
        tried: every rung up to there that was tried, and why it did not help.
    """

    board: str
    by: Rung | None
    tried: tuple[tuple[Rung, str], ...]


def recover(
    registry: Registry,
    board: Board,
    leases: Leases,
    why: str,
    *,
    upto: Rung = "power",
    owner: str | None = None,
    wait: float | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> Recovered:
    """
    Climb the ladder until the board answers; the board is leased all the while.

    Args:
        why: what went wrong, for the reason of a quarantine.
        upto: the last rung to try.
        owner, wait: see `Leases.take`.
        note: told what is done.

    Raises:
        Quarantined: nothing helped.
        LeaseHeld: somebody has the board, and had it for all of `wait`.
    """
    sightings = Sightings(leases.file, leases.clock)
    with leases.take(board.name, owner=owner, purpose="recovery", wait=wait) as lease, acquired(board, sightings):
        tried: list[tuple[Rung, str]] = []
        try:
            note("does it answer?")
            _probe(registry, board, lease, sightings)
            return Recovered(board.name, None, ())
        except DeployError as error:
            last = error
        for rung in RUNGS[: RUNGS.index(upto) + 1]:
            try:
                note(
                    {"agent": "killing its agents", "reboot": "rebooting it", "power": "switching it off and on"}[rung]
                )
                _climb(registry, board, rung)
                _wait_for(registry, board, lease, sightings, 0.0 if rung == "agent" else board.boot_s)
            except DeployError as error:
                last = error
                tried.append((rung, error.message))
                continue
            return Recovered(board.name, rung, tuple(tried))
        reason = f"{why}; {_told(tried)}"
        sightings.quarantine(board.name, reason)
    raise Quarantined(
        f"board {board.name!r} does not come back: {reason}",
        last.hint or f"`deploy boards recover {board.name}` tries again; `deploy boards status` shows what is known",
        board=board.name,
        tried=tuple(tried),
    )


def probe(registry: Registry, board: Board, leases: Leases) -> None:
    """
    See whether a board answers and can start processes; one that does is out of quarantine.

    Raises:
        LeaseHeld: somebody has it.
        DeployError: why not.
    """
    with hold(registry, board, leases=leases, purpose="probe", wait=0.0) as session:
        _exercise(session)
    Sightings(leases.file, leases.clock).forgive(board.name)


def probe_due(registry: Registry, leases: Leases) -> Iterator[str]:
    """
    Probe the boards in quarantine whose time has come; yields the names of those that came back.

    Whoever runs for long calls this now and then; of several, one does each probe.
    """
    sightings = Sightings(leases.file, leases.clock)
    known = {board.name: board for board in registry}
    for name, seen in sightings.all().items():
        if seen.reason is not None and name in known and sightings.claim_probe(name):
            with suppress(DeployError):
                probe(registry, known[name], leases)
                yield name


def _probe(registry: Registry, board: Board, lease: Lease, sightings: Sightings) -> None:
    with connect(board, registry.known_hosts, lease=lease, evict=True) as session:
        _exercise(session)
        sightings.saw(board.name, identity=session.hello["identity"])
    sightings.forgive(board.name)


def _exercise(session: Session) -> None:
    """A board whose disk or memory is at its end still answers a ping; starting a runner is more."""
    with suppress(RuntimeMissing):
        session.request("runtime.probe")


def _climb(registry: Registry, board: Board, rung: Rung) -> None:
    if rung == "agent":
        words = [python_of(board), "-c", _KILL, board.root]
        said = _run(registry, board, " ".join(shlex.quote(word) for word in words))
        if "DEPLOY-KILLED" not in said:
            raise FarmError("the board does not say that they are dead")
    elif rung == "reboot":
        if isinstance(board.transport, LocalTransport):
            raise ConfigError("this machine is not rebooted")
        boot = _run(registry, board, _BOOT).strip()
        if boot == Clock().boot():  # by whatever name it is reached
            raise ConfigError("this machine is not rebooted")
        _run(registry, board, _REBOOT, cut=True)
        _wait_for_another_boot(registry, board, boot)
    else:
        if isinstance(board.transport, LocalTransport) and board.power is None:
            raise ConfigError("this machine is not switched off")
        folder = registry.path.resolve().parent if registry.path else Path.cwd()
        switch(board, "cycle", folder)


def _run(registry: Registry, board: Board, command: str, cut: bool = False) -> str:
    """
    What a command says; the agent is not needed for it.

    Args:
        cut: it may well take the line down with it.

    Raises:
        TransportError: the board cannot be reached.
        FarmError: the command fails.
    """
    transport = open_transport(board, registry.known_hosts)
    said, status, stderr = b"", None, ""
    try:
        channel = transport.run(command)
        try:
            end = time.monotonic() + COMMAND_S
            while (left := end - time.monotonic()) > 0 and (data := channel.read(left)):
                said += data
            status, stderr = channel.ended()
        finally:
            channel.close()
    except OSError as error:
        if not cut:
            raise FarmError(f"the line broke: {error.strerror or error}") from None
    finally:
        transport.close()
    if status or (status is None and not cut):
        last = stderr.strip().splitlines()[-1:] or [f"status {status}" if status else f"no end after {COMMAND_S:g} s"]
        raise FarmError(one_line(last[0]))
    return said.decode("utf-8", "replace")


def _wait_for_another_boot(registry: Registry, board: Board, boot: str) -> None:
    end = time.monotonic() + board.boot_s
    while time.monotonic() < end:
        time.sleep(RETRY_S)
        with suppress(DeployError):
            if _run(registry, board, _BOOT).strip() not in ("", boot):
                return
    raise FarmError(f"not up again within {board.boot_s:g} s")


def _wait_for(registry: Registry, board: Board, lease: Lease, sightings: Sightings, seconds: float) -> None:
    """
    Raises:
        DeployError: why it still does not answer then.
    """
    end = time.monotonic() + seconds
    while True:
        try:
            _probe(registry, board, lease, sightings)
            return
        except BoardError:
            raise  # it answers; time will not change what
        except DeployError:
            if time.monotonic() >= end:
                raise
            time.sleep(RETRY_S)


def _told(tried: list[tuple[Rung, str]]) -> str:
    return "; ".join(f"{_DOING[rung]}: {reason}" for rung, reason in tried)
