"""A process of the host that plays a part of a board beside QEMU, as the keeper sees it: started, reset and ended."""

from __future__ import annotations

import select
import subprocess
from collections.abc import Callable
from pathlib import Path

from deploy.errors import VirtualError
from deploy.virtual.qmp import Qmp

RESET_S = 60.0
LOG = Path("beside.log")
_OWNER = "child<a9mpcore_priv>"  # has the interrupt controller
_BOARD = "/machine/unattached"


class Beside:
    """
    Args:
        command: run in the working directory, the board's folder.
        prepare: called in it before that.
    """

    def __init__(self, command: list[str], prepare: Callable[[], None]) -> None:
        with LOG.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, preexec_fn=prepare
            )

    def reset(self, qmp: Qmp) -> None:
        """
        As after power-on.

        Raises:
            VirtualError: it has ended, or says nothing; or QEMU has no interrupt controller.
        """
        assert self._process.stdin and self._process.stdout
        owners = [part["name"] for part in qmp.run("qom-list", path=_BOARD) if part["type"] == _OWNER]
        if len(owners) != 1:
            raise VirtualError(f"QEMU has {len(owners)} interrupt controllers for the accelerator")
        said = ""
        try:
            self._process.stdin.write(f"reset {_BOARD}/{owners[0]}\n")
            self._process.stdin.flush()
            readable, _, _ = select.select([self._process.stdout], [], [], RESET_S)
            said = self._process.stdout.readline() if readable else ""
        except OSError:
            pass  # why it has ended stands in its log
        if said != "ready\n":
            lines = LOG.read_text(errors="replace").strip().splitlines() or [f"it says nothing for {RESET_S:.0f} s"]
            raise VirtualError(f"the accelerator's window does not open: {lines[-1]}")

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
