"""
How the agent gets onto a board that has nothing but python3 and a shell.

One command is run there: a small program that looks whether this very agent is already unpacked below the board's
root (its folder is named by content hash, so it is never stale), asks for it on standard input if not, and then
becomes the agent.  One round trip when the agent is there; no root, no pip, no network on the board.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import io
import shlex
import zipfile
from dataclasses import dataclass
from pathlib import Path

OLDEST_PYTHON = (3, 9)

# Runs on the board.  Plain enough for any Python 3; what it prints is read by `session`.  It syncs before the rename: a
# power cut must not leave an agent of empty files, and one sync is cheaper to an SD card than one for each file.
_STAGE0 = r"""
import hashlib, io, os, shutil, sys, zipfile
digest, size, root, fresh = sys.argv[1], int(sys.argv[2]), os.path.expanduser(sys.argv[3]), sys.argv[4] == "fresh"
def say(text):
    os.write(1, ("DEPLOY-" + text + "\n").encode())
if sys.version_info < (3, 9):
    say("OLD %d.%d.%d" % sys.version_info[:3])
    sys.exit(1)
home = os.path.join(root, "agent", digest)
try:
    os.umask(0o077)
    if fresh:
        shutil.rmtree(home, ignore_errors=True)
    if not os.path.isdir(home):
        say("NEED")
        data = b""
        while len(data) < size:
            more = os.read(0, size - len(data))
            if not more:
                sys.exit(1)
            data += more
        if hashlib.sha256(data).hexdigest() != digest:
            say("FAIL the agent arrived damaged")
            sys.exit(1)
        staging = "%s.%d" % (home, os.getpid())
        try:
            zipfile.ZipFile(io.BytesIO(data)).extractall(staging)
            os.sync()
            os.rename(staging, home)
        except OSError:
            shutil.rmtree(staging, ignore_errors=True)
            if not os.path.isdir(home):
                raise
    os.chdir(home)
except (OSError, zipfile.BadZipFile) as error:
    say("FAIL %s: %s" % (getattr(error, "strerror", None) or error, root))
    sys.exit(1)
os.execv(sys.executable, [sys.executable, "-m", "devices", "--root", root] + sys.argv[5:])
"""


@dataclass(frozen=True)
class AgentPackage:
    """The agent as it travels: a zip of `devices/`, and its SHA-256."""

    data: bytes
    sha256: str


@functools.cache
def agent_package() -> AgentPackage:
    """Pack `devices/` as it lies beside this package; the same sources give the same bytes."""
    spec = importlib.util.find_spec("devices")
    assert spec and spec.submodule_search_locations
    folder = Path(next(iter(spec.submodule_search_locations)))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*.py")):
            info = zipfile.ZipInfo(f"devices/{path.relative_to(folder).as_posix()}", (1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, path.read_bytes())
    data = out.getvalue()
    return AgentPackage(data, hashlib.sha256(data).hexdigest())


def command(python: str, root: str, options: list[str] | None = None, fresh: bool = False) -> str:
    """
    The shell command that starts the agent with `python` on the board.

    Args:
        options: for the agent.
        fresh: bring the agent again even if it is there: what is there does not start.
    """
    package = agent_package()
    words = [python, "-c", _STAGE0, package.sha256, str(len(package.data)), root]
    words += ["fresh" if fresh else "keep", *(options or [])]
    if python.startswith("~/"):  # quoted, the shell would not expand it
        return f'exec "$HOME"/{" ".join(shlex.quote(word) for word in [python[2:], *words[1:]])}'
    return "exec " + " ".join(shlex.quote(word) for word in words)
