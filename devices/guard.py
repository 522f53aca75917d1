"""
Whom this board obeys: the key that releases must be signed with, and the lease that a conversation must hold.

Both are files below the root, modes 0600, written whole by a rename::

    key      base64 of an Ed25519 public key, pinned when a host that knows one came first
    lease    {"token", "owner", "issuer", "until_ns", "boot"}: the highest fencing token ever seen, and its holder

A lease ends after so many nanoseconds of the monotonic clock of one boot: the wall clock of a board may be wrong by
years.  The token is remembered for ever.

Who issues tokens knows who holds the board, so a higher one replaces the holder at once.  Two issuers (two machines,
two lease files) know nothing of each other: while the lease of one holds, no token of the other does.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from devices import ed25519
from devices.protocol import errors, signature
from devices.protocol.errors import AgentError

DEFAULT_LEASE_S = 3600.0
MAX_TOKEN = 2**63 - 1
PATIENCE_S = 10.0
EXTEND_PATIENCE_S = 0.1  # nobody waits for it, and the agent has other things to do
_BOOT = Path("/proc/sys/kernel/random/boot_id")


class Trust:
    """The pinned key."""

    def __init__(self, root: Path) -> None:
        self._path = root / "key"

    def key(self) -> bytes | None:
        """
        The pinned key; None while there is none.

        Raises:
            AgentError: untrusted; the file is there and no key.  Nothing runs then.
        """
        text = _read(self._path)
        if text is None:
            return None
        try:
            return signature.decode_key(text.decode("ascii", "replace").strip())
        except signature.SignatureError as error:
            raise AgentError(errors.UNTRUSTED, f"{self._path}: {error}") from None

    def pin(self, text: Any, replace: bool) -> tuple[str, bool]:
        """
        Pin a key given in base64; the one that is pinned already is confirmed.

        Returns:
            Its fingerprint, and whether it was new here.

        Raises:
            AgentError: bad-request, no key; key-changed, another one is pinned and `replace` is not set.
        """
        try:
            given = signature.decode_key(text)
        except signature.SignatureError as error:
            raise AgentError(errors.BAD_REQUEST, str(error)) from None
        pinned = None if replace else self.key()
        shown = signature.fingerprint(given)
        if pinned == given:
            return shown, False
        if pinned is not None:
            known = signature.fingerprint(pinned)
            raise AgentError(
                errors.KEY_CHANGED, f"signing key {known} is pinned here, {shown} was given", pinned=known, given=shown
            )
        _write(self._path, base64.b64encode(given) + b"\n")
        return shown, True

    def check(self, subject: str, manifest: bytes, signed: bytes | None) -> None:
        """
        Let pass what the pinned key has signed, or everything where none is pinned.

        Args:
            subject: what it is, for the message.
            signed: the content of signature.json; None if there is none.

        Raises:
            AgentError: untrusted; not signed, not with this key, or not this content.
        """
        key = self.key()
        if key is None:
            return
        wanted = signature.fingerprint(key)
        if signed is None:
            raise AgentError(errors.UNTRUSTED, f"{subject} is not signed; this board runs what {wanted} has signed")
        try:
            parsed = signature.parse(signed)
        except signature.SignatureError as error:
            raise AgentError(errors.UNTRUSTED, f"{subject}: {signature.FILE}: {error}") from None
        if parsed.public_key != key:
            shown = signature.fingerprint(parsed.public_key)
            raise AgentError(errors.UNTRUSTED, f"{subject} is signed by {shown}; this board runs what {wanted} signed")
        if not ed25519.verify(key, manifest, parsed.signature):
            raise AgentError(errors.UNTRUSTED, f"{subject}: the signature is not that of this bundle")


class Fence:
    """
    The lease of this board, as one conversation sees it.

    Attributes:
        token: what this conversation claimed, or None.
    """

    def __init__(self, root: Path) -> None:
        self._path = root / "lease"
        self._lock = root / "lease.lock"
        self.token: int | None = None

    def claim(self, token: Any, owner: Any, seconds: Any, issuer: Any = "") -> None:
        """
        This conversation holds the lease `token`, which ends in so many seconds.  What others were in the middle of is
        done when this returns.

        Raises:
            AgentError: bad-request; stale-token, a higher one was seen; held, another issuer's lease has not ended;
                busy, a conversation is in the middle of something and does not end it.
        """
        if type(token) is not int or not 0 < token <= MAX_TOKEN:
            raise AgentError(errors.BAD_REQUEST, f"token {str(token)[:40]} is not in [1, {MAX_TOKEN}]")
        for what, text, least in (("owner", owner, 1), ("issuer", issuer, 0)):
            if not isinstance(text, str) or not least <= len(text) <= 200:
                raise AgentError(errors.BAD_REQUEST, f"{what} is not a text of {least} to 200 characters")
        lease_s = float(seconds)
        if not 0 < lease_s <= 30 * 86400:
            raise AgentError(errors.BAD_REQUEST, f"a lease of {lease_s:g} s is not in (0, 30 days]")
        with self._locked(fcntl.LOCK_EX):
            seen = self._seen()
            if seen and seen["issuer"] != issuer:
                left_s = _left_s(seen)
                if left_s > 0:
                    raise AgentError(
                        errors.HELD, f"{seen['owner']} holds this board by another lease file",
                        owner=seen["owner"], left_s=left_s, seen=seen["token"],
                    )  # fmt: skip
                if seen["token"] == token:
                    raise _stale(f"token {token} was given before", seen, token)
            if seen and seen["token"] > token:
                raise _stale(f"token {token} is older than {seen['token']}", seen, token)
            self._write(token, owner, issuer, lease_s)
        self.token = token

    def extend(self, seconds: Any) -> None:
        """
        The holder is still there: its lease ends in so many seconds.  Anybody else changes nothing.

        Raises:
            AgentError: busy; the lease ends when it would have.
        """
        lease_s = float(seconds)
        if self.token is None or not 0 <= lease_s <= 30 * 86400 or not self._path.exists():
            return
        with self._locked(fcntl.LOCK_EX, EXTEND_PATIENCE_S):
            seen = self._seen()
            if seen and seen["token"] == self.token:
                self._write(self.token, seen["owner"], seen["issuer"], lease_s, durable=False)

    def release(self) -> None:
        """The holder needs the board no more."""
        self.extend(0)
        self.token = None

    @contextlib.contextmanager
    def passing(self) -> Iterator[None]:
        """
        Do something as whoever may: nobody else's claim comes in between.

        Raises:
            AgentError: stale-token; another conversation showed a higher token, or this one shows none while a lease
                holds.
        """
        if not self._path.exists():  # nobody ever claimed this board, and one that only looks leaves no file
            yield
            return
        with self._locked(fcntl.LOCK_SH):
            self._check()
            yield

    def _check(self) -> None:
        seen = self._seen()
        if seen is None:
            return
        if self.token is not None and self.token < seen["token"]:
            raise _stale(f"token {self.token} is older than {seen['token']}", seen, self.token)
        if self.token is None and _left_s(seen) > 0:
            raise _stale(f"this conversation shows no token, and {seen['token']} holds the board", seen, None)

    def _write(self, token: int, owner: str, issuer: str, lease_s: float, durable: bool = True) -> None:
        until = time.monotonic_ns() + int(lease_s * 1e9)
        lease = {"token": token, "owner": owner, "issuer": issuer, "until_ns": until, "boot": _boot()}
        _write(self._path, json.dumps(lease).encode() + b"\n", durable)

    def _seen(self) -> dict[str, Any] | None:
        data = _read(self._path)
        if data is None:
            return None
        try:
            lease = json.loads(data)
            if type(lease["token"]) is int and type(lease["until_ns"]) is int and isinstance(lease["owner"], str):
                return {"boot": "", "issuer": "", **lease}
        except (ValueError, TypeError, KeyError, RecursionError):
            pass
        raise AgentError(errors.IO_ERROR, f"{self._path} is damaged: which token was the highest is not known")

    @contextlib.contextmanager
    def _locked(self, how: int, patience_s: float = PATIENCE_S) -> Iterator[None]:
        """Hold the lock of the lease; somebody who was stopped while holding it must not stop everybody."""
        fd = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            end = time.monotonic() + patience_s
            while True:
                try:
                    fcntl.flock(fd, how | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > end:
                        raise AgentError(
                            errors.BUSY, "another conversation is in the middle of something, and does not end it"
                        ) from None
                    time.sleep(0.002)
            yield
        finally:
            os.close(fd)


def _stale(reason: str, seen: dict[str, Any], token: int | None) -> AgentError:
    return AgentError(
        errors.STALE_TOKEN, f"{reason} (of {seen['owner']})", token=token, seen=seen["token"], owner=seen["owner"]
    )


def _left_s(seen: dict[str, Any]) -> float:
    """Seconds until a lease ends; not more than 0 when it has."""
    return (seen["until_ns"] - time.monotonic_ns()) / 1e9 if seen["boot"] == _boot() else 0.0


def _boot() -> str:
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return ""


def _read(path: Path) -> bytes | None:
    """A small file of ours; None only when it is not there: one that cannot be read must not open the board."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    with os.fdopen(fd, "rb") as source:
        return source.read(4096)


def _write(path: Path, data: bytes, durable: bool = True) -> None:
    staging = path.with_name(f".{path.name}.{os.getpid()}")
    staging.unlink(missing_ok=True)
    fd = os.open(staging, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(fd, "wb") as out:
            out.write(data)
            out.flush()
            if durable:
                os.fsync(out.fileno())
        os.replace(staging, path)
    finally:
        staging.unlink(missing_ok=True)
