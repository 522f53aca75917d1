"""The host's side of simulated boards: their process, the line to each, and a registry of them."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deploy.boards import Board
from deploy.errors import BoardUnreachable
from deploy.farm.leases import Leases
from deploy.session import Session


class Line:
    """A channel to a simulated board."""

    lossy = False

    def __init__(self, folder: Path, board: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.connect(str(folder / "socket"))
            self._socket.sendall(f"{board}\n".encode())
        except OSError:
            self._socket.close()
            raise

    def read(self, timeout_s: float) -> bytes | None:
        self._socket.settimeout(max(timeout_s, 1e-3))
        try:
            return self._socket.recv(1 << 16)
        except TimeoutError:
            return None
        except OSError:
            return b""

    def write(self, data: bytes) -> None:
        self._socket.settimeout(10.0)
        self._socket.sendall(data)

    def ended(self) -> tuple[int | None, str]:
        return None, ""

    def close(self) -> None:
        # A reader in another thread must see the end.
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


class Reach:
    """`deploy.farm.hold.hold` for the simulated boards of `folder`."""

    def __init__(self, folder: Path, silence_s: float = 15.0) -> None:
        self._folder = folder
        self._silence_s = silence_s

    @contextlib.contextmanager
    def __call__(
        self,
        registry: Any,
        board: Board,
        *,
        leases: Leases,
        purpose: str = "",
        priority: int = 0,
        wait: float | None = None,
        evict: bool = False,
        strict: bool = False,
    ) -> Iterator[Session]:
        with leases.take(board.name, purpose=purpose, priority=priority, wait=wait) as lease:
            try:
                line = Line(self._folder, board.name)
            except OSError as error:
                raise BoardUnreachable(f"board {board.name!r}: {error}", board=board.name) from None
            with Session(board, line, self._silence_s) as session:
                session.start(b"")
                session.hold(lease, evict, wait)
                yield session


class Boards:
    """The process of the boards; ends with the ``with``."""

    def __init__(self, folder: Path, names: list[str]) -> None:
        self.folder = folder
        self.names = names
        folder.mkdir(parents=True, exist_ok=True)
        words = [sys.executable, "-m", "tests.farm.simulated", str(folder), *names]
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout and "ready\n" == self.process.stdout.readline()

    def fault(self, board: str, **faults: Any) -> None:
        """Give a board these faults, instead of those that it had."""
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(str(self.folder / "socket"))
            line.sendall(f"!{json.dumps({'board': board, **faults})}\n".encode())
            assert b"ok\n" == line.recv(16)

    def log(self) -> list[dict[str, Any]]:
        """Every measurement that has ended: board, token, cell, begin, end (ns), done."""
        return [json.loads(line) for line in (self.folder / "log").read_text().splitlines()]

    def overlaps(self) -> int:
        """Pairs of measurements on one board at one time, or with tokens that fell."""
        found = 0
        last: dict[str, tuple[int, int]] = {}
        for entry in sorted(self.log(), key=lambda e: e["begin"]):
            end, token = last.get(entry["board"], (0, 0))
            found += entry["begin"] < end or (entry["token"] or 0) < token
            last[entry["board"]] = (entry["end"], entry["token"] or 0)
        return found

    def __enter__(self) -> Boards:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


def boards_yaml(folder: Path, names: list[str], **more: Any) -> Path:
    """A registry of simulated boards; nothing of the deploy program can reach them but through `Reach`."""
    path = folder / "boards.yaml"
    entries = {
        name: {"kind": "generic", "transport": {"kind": "ssh", "host": name}, "tags": ["simulated"], **more}
        for name in names
    }
    path.write_text(json.dumps({"schema": 1, "boards": entries}))
    return path
