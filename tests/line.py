"""
A serial line: two ptys, and a process of its own between them that carries bytes as slowly as a UART does.

The process is `deploy/virtual/line.py`, which says what it does to the bytes, and what ``Line.tell`` may tell it:
``cut``, ``restore``, ``errors 1e-3``, ``log TEXT``, ``cuts COUNT BYTES SECONDS``.
"""

from __future__ import annotations

import json
import subprocess
import sys
from types import TracebackType

from tests.conftest import ROOT


class Line:
    """
    The line, running; `host` and `board` are the paths of its two ends.
    """

    def __init__(self, baud: int = 115_200, latency_s: float = 0.001, errors: float = 0.0, seed: int = 0) -> None:
        options = ["--baud", str(baud), "--latency-s", str(latency_s), "--errors", str(errors), "--seed", str(seed)]
        self._process = subprocess.Popen(
            [sys.executable, "-S", str(ROOT / "deploy" / "virtual" / "line.py"), *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout
        self.host, self.board = self._process.stdout.readline().split()

    def tell(self, command: str) -> None:
        assert self._process.stdin
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()

    def counts(self) -> dict[str, int]:
        """Cuts, kernel messages, and bytes that were flipped, lost, inserted and doubled, so far."""
        self.tell("counts")
        assert self._process.stdout
        told: dict[str, int] = json.loads(self._process.stdout.readline())
        return told

    def unplug(self) -> None:
        self.tell("unplug")

    def plug(self) -> None:
        """Afterwards `host` is another path."""
        self.tell("plug")
        assert self._process.stdout
        self.host = self._process.stdout.readline().strip()

    def close(self) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()

    def __enter__(self) -> Line:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
