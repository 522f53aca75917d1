"""
Whom this board obeys: the key that releases must be signed with, and the lease that a conversation must hold.

Both are files below the root, modes 0600, written whole by a rename::

    key      base64 of an Ed25519 public key, pinned when a host that knows one came first
    lease    {"token", "owner", "until_ns", "boot"}: the highest fencing token ever seen, and its holder

A lease ends after so many nanoseconds of the monotonic clock of one boot: the wall clock of a board may be wrong by
years.  The token is remembered for ever.
"""

from __future__ import annotations

import base64
import json
import os
import time
from pathlib import Path
from typing import Any

from devices import ed25519
from devices.protocol import errors, signature
from devices.protocol.errors import AgentError

DEFAULT_LEASE_S = 3600.0
MAX_TOKEN = 2**63 - 1
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
    """The lease of this board, as one conversation sees it."""

    def __init__(self, root: Path) -> None:
        self._path = root / "lease"
        self._lock = root / "releases"
        self._token: int | None = None

    def claim(self, token: Any, owner: Any, seconds: Any) -> None:
        """
        This conversation holds the lease `token`, which ends in so many seconds.

        Raises:
            AgentError: bad-request; stale-token, a higher one was seen.
        """
        if type(token) is not int or not 0 < token <= MAX_TOKEN:
            raise AgentError(errors.BAD_REQUEST, f"token {str(token)[:40]} is not in [1, {MAX_TOKEN}]")
        if not isinstance(owner, str) or not 0 < len(owner) <= 200:
            raise AgentError(errors.BAD_REQUEST, "owner is not a text of 1 to 200 characters")
        lease_s = float(seconds)
        if not 0 < lease_s <= 30 * 86400:
            raise AgentError(errors.BAD_REQUEST, f"a lease of {lease_s:g} s is not in (0, 30 days]")
        with _locked(self._lock):
            seen = self._seen()
            if seen and seen["token"] > token:
                raise _stale(f"token {token} is older than {seen['token']}", seen, token)
            until = time.monotonic_ns() + int(lease_s * 1e9)
            lease = {"token": token, "owner": owner, "until_ns": until, "boot": _boot()}
            _write(self._path, json.dumps(lease).encode() + b"\n")
        self._token = token

    def check(self) -> None:
        """
        Raises:
            AgentError: stale-token; another conversation showed a higher token, or this one shows none while a lease
                holds.
        """
        seen = self._seen()
        if seen is None:
            return
        if self._token is not None and self._token < seen["token"]:
            raise _stale(f"token {self._token} is older than {seen['token']}", seen, self._token)
        if self._token is None and seen["boot"] == _boot() and time.monotonic_ns() < seen["until_ns"]:
            raise _stale(f"this conversation shows no token, and {seen['token']} holds the board", seen, None)

    def _seen(self) -> dict[str, Any] | None:
        data = _read(self._path)
        if data is None:
            return None
        try:
            lease = json.loads(data)
            if type(lease["token"]) is int and type(lease["until_ns"]) is int and isinstance(lease["owner"], str):
                return {"boot": "", **lease}
        except (ValueError, TypeError, KeyError, RecursionError):
            pass
        raise AgentError(errors.IO_ERROR, f"{self._path} is damaged: which token was the highest is not known")


def _stale(reason: str, seen: dict[str, Any], token: int | None) -> AgentError:
    return AgentError(
        errors.STALE_TOKEN, f"{reason} (of {seen['owner']})", token=token, seen=seen["token"], owner=seen["owner"]
    )


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


def _write(path: Path, data: bytes) -> None:
    staging = path.with_name(f".{path.name}.{os.getpid()}")
    staging.unlink(missing_ok=True)
    fd = os.open(staging, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())
    os.replace(staging, path)


class _locked:
    """Holds the lock of a folder (the store's own) while the body runs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> None:
        import fcntl

        self._fd = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        fcntl.flock(self._fd, fcntl.LOCK_EX)

    def __exit__(self, *exception: Any) -> None:
        os.close(self._fd)
