"""A real OpenSSH server on loopback: its own port, host key and authorized keys, run by whoever runs the tests."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

from deploy.ports import free_port
from tests.conftest import need_tool


class Sshd:
    """
    A server whose every command runs in an empty environment with its own home.

    Args:
        folder: for keys, logs, and the home of the "board".
        python: what the board's PATH offers as python3; None offers none.
    """

    def __init__(self, folder: Path, python: str | None) -> None:
        self.program = need_tool("sshd", "openssh-server")
        self.folder = folder
        self.home = folder / "board-home"
        self.home.mkdir(parents=True)
        self.user = getpass.getuser()
        self.port = free_port()
        self._bin = folder / "bin"
        self._bin.mkdir()
        if python:
            (self._bin / "python3").symlink_to(python)
        self.client_key = folder / "client_key"
        keygen(self.client_key)
        shutil.copy(self.client_key.with_suffix(".pub"), folder / "authorized_keys")
        keygen(folder / "host_key")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it listens."""
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd insists, as root only
        wrapper = self.folder / "shell"
        # Only what a bare board has: `sh` and a few tools, python3 where there is one, and nothing of ours.
        wrapper.write_text(
            f'#!/bin/sh\nexec env -i HOME="{self.home}" PATH="{self._bin}" /bin/sh -c "$SSH_ORIGINAL_COMMAND"\n'
        )
        wrapper.chmod(0o755)
        config = self.folder / "sshd_config"
        config.write_text(
            f"""
            Port {self.port}
            ListenAddress 127.0.0.1
            HostKey {self.folder / "host_key"}
            PidFile none
            AuthorizedKeysFile {self.folder / "authorized_keys"}
            PasswordAuthentication no
            KbdInteractiveAuthentication no
            UsePAM no
            StrictModes no
            PermitRootLogin yes
            MaxStartups 100
            MaxSessions 100
            Subsystem sftp /usr/lib/openssh/sftp-server
            ForceCommand {wrapper}
            """
        )
        self._process = subprocess.Popen(
            [self.program, "-D", "-e", "-f", str(config)], stderr=(self.folder / "log").open("ab")
        )
        deadline = time.monotonic() + 10
        while not _listens(self.port):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"sshd does not start: {(self.folder / 'log').read_text()}")
            time.sleep(0.02)

    def stop(self) -> None:
        if self._process:
            self._process.terminate()
            self._process.wait()
            self._process = None
            while _listens(self.port):  # a child just forked holds the listener until it has closed it
                time.sleep(0.02)

    def new_host_key(self) -> None:
        """As after the board was set up anew; call between stop and start."""
        for path in (self.folder / "host_key", self.folder / "host_key.pub"):
            path.unlink()
        keygen(self.folder / "host_key")

    def write_client_config(self, home: Path, alias: str) -> None:
        """The user's own ~/.ssh/config, which names the server, its port and the key."""
        folder = home / ".ssh"
        folder.mkdir(mode=0o700, exist_ok=True)
        (folder / "config").write_text(
            f"Host {alias}\n  HostName 127.0.0.1\n  Port {self.port}\n  User {self.user}\n"
            f"  IdentityFile {self.client_key}\n  IdentitiesOnly yes\n"
        )

    def fingerprint(self) -> str:
        """``SHA256:...`` as ssh-keygen says it."""
        done = subprocess.run(
            ["ssh-keygen", "-lf", str(self.folder / "host_key.pub")], capture_output=True, text=True, check=True
        )
        return done.stdout.split()[1]


def keygen(path: Path, kind: str = "ed25519") -> None:
    subprocess.run([need_tool("ssh-keygen", "openssh-client"), "-q", "-t", kind, "-N", "", "-f", str(path)], check=True)


def _listens(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=0.2):
            return True
    except OSError:
        return False
