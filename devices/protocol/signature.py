"""
A bundle's signature: ``signature.json``, beside the manifest and outside of it.

It signs the manifest's bytes, and as those name the digest of every file, the whole bundle.

History of the format:
    1  first
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from dataclasses import dataclass
from typing import Any

FORMAT = 1
FILE = "signature.json"
KEY_BYTES = 32
SIGNATURE_BYTES = 64
MAX_BYTES = 4096


class SignatureError(ValueError):
    """The file is no signature: says why."""


@dataclass(frozen=True)
class Signature:
    """
    Attributes:
        public_key: raw; whose it claims to be.
        signature: raw Ed25519 signature of the manifest's bytes.
    """

    public_key: bytes
    signature: bytes

    def to_bytes(self) -> bytes:
        """The JSON text; the same signature always gives the same bytes."""
        fields: dict[str, Any] = {
            "format": FORMAT,
            "algorithm": "ed25519",
            "key": fingerprint(self.public_key),
            "public_key": base64.b64encode(self.public_key).decode(),
            "signature": base64.b64encode(self.signature).decode(),
        }
        return json.dumps(fields, sort_keys=True, indent=1).encode() + b"\n"


def fingerprint(public_key: bytes) -> str:
    """How a key is shown: ``SHA256:...``."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(public_key).digest()).decode().rstrip("=")


def decode_key(text: Any) -> bytes:
    """
    A public key from its base64.

    Raises:
        SignatureError: not 32 bytes in base64.
    """
    return _decode(text, KEY_BYTES, "public key")


def parse(data: bytes) -> Signature:
    """
    Read a signature.

    Raises:
        SignatureError: not JSON, another format version or algorithm, or a value of the wrong length.
    """
    if len(data) > MAX_BYTES:
        raise SignatureError(f"{len(data)} bytes; a signature has at most {MAX_BYTES}")
    try:
        raw = json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise SignatureError(f"not JSON: {error}") from None
    if not isinstance(raw, dict):
        raise SignatureError("not a JSON object")
    if raw.get("format") != FORMAT or raw.get("algorithm") != "ed25519":
        raise SignatureError(f"format {raw.get('format')!r}, {raw.get('algorithm')!r}; this reads {FORMAT}, 'ed25519'")
    return Signature(decode_key(raw.get("public_key")), _decode(raw.get("signature"), SIGNATURE_BYTES, "signature"))


def _decode(text: Any, size: int, what: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except (TypeError, ValueError, binascii.Error):
        data = b""
    if len(data) != size:
        raise SignatureError(f"not a {what}: {str(text)[:60]!r} is not {size} bytes in base64")
    return data
