"""Boards that hang: the ladder, quarantine, and the way back."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.boards import LOCAL, Board, Registry
from deploy.errors import DeployError, Quarantined
from deploy.farm import health
from deploy.farm.choose import candidates
from deploy.farm.health import Recovered, probe_due, recover
from deploy.farm.leases import Leases
from deploy.farm.seen import PROBE_AFTER_S, Sightings
from deploy.farm.status import statuses
from tests.conftest import ROOT, Said
from tests.farm.clock import TestClock
from tests.sshd import Sshd

DEAD = "it does not"  # why the board does not answer


class Lab:
    """
    A board of this machine whose Python only works while the file `dead` is not there, and a switch that takes the
    file away, if it is not broken.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.dead = folder / "dead"
        self.broken = folder / "broken"
        self.clock = TestClock()
        self.leases = Leases(folder / "farm.sqlite", self.clock)
        self.sightings = Sightings(self.leases.file, self.clock)
        works = f'[ -e {self.dead} ] && {{ echo "{DEAD}" >&2; exit 1; }}; exec {sys.executable} "$@"'
        python = self._script("python3", works)
        switch = self._script("switch", f"echo switched >>{folder}/log; [ -e {self.broken} ] || rm -f {self.dead}")
        self.board = Board.model_validate(
            {
                **LOCAL.model_dump(),
                "name": "pi",
                "root": str(folder / "board"),
                "python": str(python),
                "tags": ["lab"],
                "boot_s": 0.2,
                "power": {"kind": "command", "on": str(switch), "off": str(switch), "cycle": str(switch)},
            }
        )
        self.registry = Registry({"pi": self.board}, None)

    def _script(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return path

    def recover(self, **how: Any) -> Recovered:
        return recover(self.registry, self.board, self.leases, "it fell silent", **how)


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    monkeypatch.setattr(health, "RETRY_S", 0.05)
    made = Lab(tmp_path)
    yield made
    made.leases.close()


def test_a_board_that_answers_is_left_alone(lab: Lab) -> None:
    assert Recovered("pi", None, ()) == lab.recover()

    assert not (lab.folder / "log").exists()


def test_what_hangs_below_the_root_is_killed_first_and_nothing_else(lab: Lab) -> None:
    """A runner that nobody owns any more has the turn, and stays."""
    lab.recover()  # the agent is there now
    home = next((lab.folder / "board" / "agent").iterdir())
    keep_the_turn = (
        "import fcntl, sys, time; f = open(sys.argv[1], 'a'); fcntl.flock(f, fcntl.LOCK_EX); time.sleep(600)"
    )
    command = [sys.executable, "-c", keep_the_turn, str(lab.folder / "board" / "turn")]
    hung, other = subprocess.Popen(command, cwd=home), subprocess.Popen(["sleep", "600"], cwd=lab.folder)
    notes: list[str] = []
    try:
        found = lab.recover(note=notes.append)

        assert ("agent", ()) == (found.by, found.tried)
        assert ["does it answer?", "killing its agents"] == notes
        assert -9 == hung.wait(10)
        assert other.poll() is None
    finally:
        for process in (hung, other):
            process.kill()
            process.wait()


def test_each_rung_is_tried_when_the_one_before_did_not_help_and_this_machine_is_never_rebooted(lab: Lab) -> None:
    lab.dead.touch()

    found = lab.recover()

    assert ("power", (("agent", DEAD), ("reboot", "this machine is not rebooted"))) == (found.by, found.tried)
    assert "switched\n" == (lab.folder / "log").read_text()


def test_a_board_that_nothing_helps_is_in_quarantine_with_the_reason(lab: Lab) -> None:
    lab.dead.touch()
    lab.broken.touch()

    with pytest.raises(Quarantined) as caught:
        lab.recover()

    reason = (
        f"it fell silent; killing its agents: {DEAD}; rebooting it: this machine is not rebooted; "
        f"switching it off and on: board 'pi' ended with status 1 before the agent spoke; it said: {DEAD}"
    )
    assert f"board 'pi' does not come back: {reason}" == str(caught.value)
    (status,) = statuses(lab.registry, leases=lab.leases)
    assert ("quarantine", reason) == (status.state, status.reason)
    with pytest.raises(DeployError, match="no board will do: pi is in quarantine: it fell silent"):
        candidates(lab.registry, [], ["lab"], [], lab.sightings.all())


def test_upto_says_how_far_to_go(lab: Lab) -> None:
    lab.dead.touch()

    with pytest.raises(Quarantined):
        lab.recover(upto="agent")

    assert not (lab.folder / "log").exists()


def test_a_board_in_quarantine_is_looked_at_again_less_and_less_often_and_comes_back(lab: Lab) -> None:
    lab.dead.touch()
    lab.sightings.quarantine("pi", "does not boot")
    assert [] == list(probe_due(lab.registry, lab.leases))  # not yet
    waits = []
    for wait_s in PROBE_AFTER_S[:3]:
        lab.clock.wall += wait_s - 1
        assert not lab.sightings.claim_probe("pi")
        lab.clock.wall += 1.5
        assert [] == list(probe_due(lab.registry, lab.leases))
        waits.append((lab.sightings.of("pi").probe_s or 0) - lab.clock.wall)
    assert list(PROBE_AFTER_S[1:4]) == pytest.approx(waits)

    lab.dead.unlink()
    lab.clock.wall += PROBE_AFTER_S[3] + 1

    assert ["pi"] == list(probe_due(lab.registry, lab.leases))
    assert "free" == statuses(lab.registry, leases=lab.leases)[0].state


def test_of_several_who_probe_one_does_and_a_clock_that_is_set_back_puts_nothing_off(lab: Lab) -> None:
    lab.sightings.quarantine("pi", "does not boot")
    lab.clock.wall += PROBE_AFTER_S[0] + 1

    assert [True, False] == [lab.sightings.claim_probe("pi") for _ in range(2)]
    lab.clock.wall -= 1e6
    assert lab.sightings.claim_probe("pi")


def test_what_a_person_put_into_quarantine_is_not_probed(lab: Lab) -> None:
    lab.sightings.quarantine("pi", "the fan is dead", by_hand=True)
    lab.clock.wall += 1e6

    assert [] == list(probe_due(lab.registry, lab.leases))
    assert "the fan is dead" == lab.sightings.of("pi").reason


@pytest.fixture
def over_ssh(tmp_path: Path, private_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Board]:
    server = Sshd(tmp_path / "server", sys.executable)
    server.write_client_config(private_home, "pi.test")
    server.start()
    monkeypatch.setattr(health, "RETRY_S", 0.05)
    yield Board.model_validate(
        {"name": "pi", "kind": "generic", "transport": {"kind": "ssh", "host": "pi.test"}, "boot_s": 5}
    )
    server.stop()


def test_a_board_is_rebooted_over_ssh_and_has_come_back_when_its_boot_is_another(
    over_ssh: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    boot = tmp_path / "boot"
    boot.write_text("first\n")
    monkeypatch.setattr(health, "_BOOT", f"/bin/cat {boot}")
    monkeypatch.setattr(health, "_REBOOT", f"echo second >{boot}")

    health._climb(Registry({"pi": over_ssh}, None), over_ssh, "reboot")

    assert "second\n" == boot.read_text()
    monkeypatch.setattr(health, "_REBOOT", "echo 'a password is required' >&2; exit 1")
    with pytest.raises(DeployError, match=r"^a password is required$"):
        health._climb(Registry({"pi": over_ssh}, None), over_ssh, "reboot")


def test_this_machine_is_not_rebooted_under_another_name_either(
    over_ssh: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "_BOOT", "/bin/cat /proc/sys/kernel/random/boot_id")
    monkeypatch.setattr(health, "_REBOOT", f"echo it would have been >{tmp_path}/rebooted")

    with pytest.raises(DeployError, match=r"^this machine is not rebooted$"):
        health._climb(Registry({"pi": over_ssh}, None), over_ssh, "reboot")

    assert not (tmp_path / "rebooted").exists()


def test_the_verbs_show_quarantine_and_end_it(say: Said) -> None:
    code, out, _ = say("boards", "quarantine", "local", "the fan is dead")
    assert (0, "local: in quarantine until `deploy boards check local`\n") == (code, out)
    _, shown, _ = say("boards", "status")
    assert ["local", "quarantine", "never", "the", "fan", "is", "dead"] == shown.splitlines()[3].split()

    code, out, _ = say("boards", "recover", "local", "--upto", "agent")
    assert (0, "local: it answers\n") == (code, out)

    _, shown, _ = say("boards", "status", "--json")
    (status,) = json.loads(shown)
    assert ("free", None) == (status["state"], status["reason"])
    assert status["seen_ago_s"] >= 0


def test_a_board_that_takes_a_connection_and_says_nothing_is_one_clear_line(tmp_path: Path) -> None:
    """As a hung one whose kernel still answers; the SSH library logs a traceback of that, which nobody asked for."""
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        port = deaf.getsockname()[1]
        transport = f"{{kind: ssh, host: 127.0.0.1, port: {port}, user: pi, timeout_s: 0.5}}"
        (tmp_path / "boards.yaml").write_text(
            f"schema: 1\nboards:\n  deaf: {{kind: generic, transport: {transport}}}\n"
        )
        done = subprocess.run(
            [sys.executable, "-m", "deploy", "boards", "check", "deaf"], cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    assert (1, "") == (done.returncode, done.stdout)
    error, hint = done.stderr.splitlines()
    assert error.startswith(f"error: board 'deaf' cannot be reached (ssh pi@127.0.0.1:{port}): ")
    assert hint.startswith("hint:  `ssh -p ")
