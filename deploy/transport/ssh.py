"""
The transport over SSH.

User, port, key and jump host come from the user's own ``~/.ssh/config``; boards.yaml may override them.  Keys come
from the SSH agent or the usual files.  There are no passwords.

The board's host key is pinned: recorded in ``known_hosts`` beside boards.yaml when the board is met first, compared
ever after.  A key that the user's own ``~/.ssh/known_hosts`` knows is held to that one.  A changed key stops.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import logging
import os
import select
import shlex
import socket
from pathlib import Path
from typing import Any

import paramiko

from deploy.boards import SshTransport
from deploy.errors import BoardUnreachable, HostKeyChanged, TransportError, UnknownHostKey
from deploy.transport.base import WRITE_TIMEOUT_S

TAIL_BYTES = 4096
CLOSE_S = 5.0

# It raises what it logs, and Python would print the log of a library that nobody listens to.
logging.getLogger("paramiko").addHandler(logging.NullHandler())


class SshChannel:
    """One command on the board."""

    lossy = False

    def __init__(self, channel: paramiko.Channel) -> None:
        self._channel = channel
        self._tail = b""
        # Once, and for writing only: the time-out belongs to the channel, and another thread may write while one reads.
        self._channel.settimeout(WRITE_TIMEOUT_S)
        self._readable = select.poll()
        self._readable.register(channel.fileno(), select.POLLIN)

    def read(self, timeout_s: float) -> bytes | None:
        if not self._readable.poll(max(0.0, timeout_s) * 1000):
            return None
        return self._channel.recv(1 << 20)

    def write(self, data: bytes) -> None:
        try:
            self._channel.sendall(data)
        except (EOFError, paramiko.SSHException) as error:  # as paramiko says that the connection was reset
            raise ConnectionResetError(_reason(error)) from None

    def ended(self) -> tuple[int | None, str]:
        self._channel.settimeout(CLOSE_S)
        try:
            while chunk := self._channel.recv_stderr(65536):
                self._tail = (self._tail + chunk)[-TAIL_BYTES:]
        except TimeoutError:
            pass
        # The status comes after the end of the output; without it, the connection ended before the command.
        known = self._channel.status_event.wait(CLOSE_S) and self._channel.exit_status >= 0
        status = self._channel.exit_status if known else None
        return status, self._tail.decode("utf-8", "replace")

    def close(self) -> None:
        try:
            self._channel.close()
        except (OSError, EOFError, paramiko.SSHException):
            pass  # it is closed then


class Ssh:
    """
    A board that runs an SSH server.

    Attributes:
        pinned: fingerprint of the host key if it was met, and recorded, just now; else None.

    Raises (from the constructor):
        BoardUnreachable: no route, no server, no answer, or no key that the server takes.
        HostKeyChanged: the host key is not the pinned one.
        UnknownHostKey: none is pinned, and `strict` forbids to.
    """

    def __init__(self, board: str, settings: SshTransport, known_hosts: Path, strict: bool = False) -> None:
        self._board = board
        self._strict = strict
        self.pinned: str | None = None
        self._known_hosts = Path(settings.known_hosts).expanduser() if settings.known_hosts else known_hosts
        self._own_known_hosts = settings.known_hosts is not None
        resolved = _user_config(settings.host)
        host = resolved.get("hostname", settings.host)
        port = settings.port or int(resolved.get("port", 22))
        user = settings.user or resolved.get("user")
        identities = [settings.identity] if settings.identity else resolved.get("identityfile", [])
        self.description = f"ssh {user + '@' if user else ''}{host}:{port}"
        self._client = paramiko.SSHClient()
        self._load_known_hosts()
        self._client.set_missing_host_key_policy(_Pin(self))
        try:
            self._client.connect(
                host,
                port,
                username=user,
                key_filename=[os.path.expanduser(path) for path in identities] or None,  # type: ignore[arg-type]
                timeout=settings.timeout_s,
                banner_timeout=settings.timeout_s,
                auth_timeout=settings.timeout_s,
                sock=_proxy(resolved, host, port),
            )
        except UnknownHostKey:
            self._client.close()
            raise
        except paramiko.BadHostKeyException as error:
            raise self._changed(host, port, error) from None
        except paramiko.AuthenticationException as error:
            raise BoardUnreachable(
                f"board {board!r} refuses the login ({self.description}): {error}",
                f"`ssh-copy-id -p {port} {user + '@' if user else ''}{host}` installs your key there; "
                "`ssh-add` offers one from your agent",
                board=board,
            ) from None
        except (OSError, EOFError, paramiko.SSHException) as error:
            raise BoardUnreachable(
                f"board {board!r} cannot be reached ({self.description}): {_reason(error)}",
                f"`ssh -p {port} {user + '@' if user else ''}{host}` shows what your own ssh says",
                board=board,
            ) from None

    def run(self, command: str) -> SshChannel:
        transport = self._client.get_transport()
        if transport is None:
            raise TransportError(f"board {self._board!r}: the SSH connection is gone", board=self._board)
        try:
            transport.set_keepalive(15)
            channel = transport.open_session()
            channel.exec_command(command)
        except (paramiko.SSHException, EOFError, OSError) as error:
            raise TransportError(
                f"board {self._board!r} starts no command ({self.description}): {_reason(error)}", board=self._board
            ) from None
        return SshChannel(channel)

    def close(self) -> None:
        self._client.close()

    def _load_known_hosts(self) -> None:
        users = [] if self._own_known_hosts else [Path("~/.ssh/known_hosts").expanduser()]
        for path in (*users, self._known_hosts):
            if path.is_file():
                try:
                    self._client.get_host_keys().load(str(path))
                except (paramiko.SSHException, OSError, ValueError) as error:
                    raise TransportError(f"{path}: not a known_hosts file: {error}", path=str(path)) from None

    def pin(self, hostname: str, key: paramiko.PKey) -> None:
        """
        Record the key of a board that is met for the first time.

        Raises:
            UnknownHostKey: strict.
        """
        if self._strict:
            kind = key.get_name().removeprefix("ssh-")
            raise UnknownHostKey(
                f"board {self._board!r} is not known yet ({self.description}): it shows {fingerprint(key)}, "
                "and --strict-host-key pins nothing",
                f"compare with `ssh-keygen -lf /etc/ssh/ssh_host_{kind}_key.pub` there; "
                f"`deploy boards check {self._board}` pins it",
                board=self._board,
                shown=fingerprint(key),
            )
        line = f"{hostname} {key.get_name()} {key.get_base64()}\n"
        self._known_hosts.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(self._known_hosts, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(fd, "a+") as out:
            fcntl.flock(out, fcntl.LOCK_EX)  # several boards may be met at once, and two of them be one machine
            out.seek(0)
            if line not in out.readlines():
                out.write(line)
        self.pinned = fingerprint(key)

    def _changed(self, host: str, port: int, error: paramiko.BadHostKeyException) -> HostKeyChanged:
        name = host if port == 22 else f"[{host}]:{port}"
        where = next((p for p in (self._known_hosts, Path("~/.ssh/known_hosts").expanduser()) if _names(p, name)), None)
        path = where or self._known_hosts
        return HostKeyChanged(
            f"board {self._board!r} shows another host key ({self.description}): "
            f"pinned {fingerprint(error.expected_key)}, shown {fingerprint(error.key)}",
            "somebody may be in between. If the board was set up anew, "
            f"`ssh-keygen -R {shlex.quote(name)} -f {shlex.quote(str(path))}` forgets the old key",
            board=self._board,
            pinned=fingerprint(error.expected_key),
            shown=fingerprint(error.key),
        )


class _Pin(paramiko.MissingHostKeyPolicy):
    """Trust on first use, and remember."""

    def __init__(self, ssh: Ssh) -> None:
        self._ssh = ssh

    def missing_host_key(self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey) -> None:
        known = client.get_host_keys().lookup(hostname)
        if known:
            # A key of another type than the pinned one is another key: else whoever is in between would offer that.
            raise paramiko.BadHostKeyException(hostname, key, next(iter(known.values())))
        self._ssh.pin(hostname, key)


def fingerprint(key: paramiko.PKey) -> str:
    """As OpenSSH writes it: ``ED25519 SHA256:...``."""
    digest = base64.b64encode(hashlib.sha256(key.asbytes()).digest()).decode().rstrip("=")
    return f"{key.get_name().removeprefix('ssh-').upper()} SHA256:{digest}"


def _names(path: Path, name: str) -> bool:
    try:
        return paramiko.HostKeys(str(path)).lookup(name) is not None
    except (OSError, paramiko.SSHException):
        return False


def _user_config(host: str) -> dict[str, Any]:
    path = Path("~/.ssh/config").expanduser()
    if not path.is_file():
        return {}
    try:
        return dict(paramiko.SSHConfig.from_path(str(path)).lookup(host))
    except (paramiko.ConfigParseError, OSError) as error:
        raise TransportError(f"{path}: {error}", path=str(path)) from None


def _proxy(resolved: dict[str, Any], host: str, port: int) -> Any:
    """ProxyCommand as it is; ProxyJump through the user's own ssh, which knows how to do it."""
    command = resolved.get("proxycommand")
    if not command and resolved.get("proxyjump", "none") != "none":
        command = f"ssh -W {shlex.quote(f'[{host}]:{port}')} {shlex.quote(resolved['proxyjump'])}"
    return paramiko.ProxyCommand(command) if command and command != "none" else None


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, socket.gaierror):
        return "the name is not known"
    if isinstance(error, paramiko.ssh_exception.NoValidConnectionsError):
        return _reason(next(iter(error.errors.values())))
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, EOFError):  # paramiko's says nothing
        return "the connection was closed"
    if str(error).startswith("Error reading SSH protocol banner"):  # no greeting, or a reset instead of one
        return "no SSH server answers there"
    return str(error) or type(error).__name__
