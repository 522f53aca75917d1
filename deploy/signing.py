"""
Signing bundles with Ed25519: keys in files, and `signature.json`.

A private key is a PEM file (PKCS #8, not encrypted, mode 0600), so that openssl reads it too; beside it lies the public
key in base64, as boards.yaml wants it.  Who verifies is the board (`devices.ed25519`).
"""

from __future__ import annotations

import base64
import os
from pathlib import Path

from deploy.bundle import Bundle
from deploy.errors import BundleError, ConfigError
from devices.protocol.signature import Signature, fingerprint


def generate(path: Path) -> tuple[Path, str]:
    """
    Make a key pair: the private key at `path`, the public one beside it as ``<path>.pub``.

    Returns:
        Path of the public key, and its fingerprint.

    Raises:
        ConfigError: one of the files is there already, or cannot be written.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    raw = key.public_key().public_bytes_raw()
    public = path.with_name(path.name + ".pub")
    for file, data, mode in ((path, private, 0o600), (public, base64.b64encode(raw) + b"\n", 0o644)):
        try:
            fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        except FileExistsError:
            raise ConfigError(f"{file} is there already; a key is never overwritten", path=str(file)) from None
        except OSError as error:
            raise ConfigError(f"{file}: {error.strerror}", path=str(file)) from None
        with os.fdopen(fd, "wb") as out:
            out.write(data)
    return public, fingerprint(raw)


def sign(bundle: Bundle, key: Path) -> tuple[Bundle, str]:
    """
    The same bundle with a signature, which takes the place of one that it has.

    Returns:
        The bundle, and the fingerprint of the key.

    Raises:
        ConfigError: `key` cannot be read, is no Ed25519 private key, or others may read it.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    hint = "`deploy keygen -o KEY` makes one"
    try:
        if key.stat().st_mode & 0o077:
            raise ConfigError(f"{key} can be read by others", f"`chmod 600 {key}`", path=str(key))
        private = load_pem_private_key(key.read_bytes(), password=None)
    except OSError as error:
        raise ConfigError(f"{key}: {error.strerror}", hint, path=str(key)) from None
    except (ValueError, TypeError):
        raise ConfigError(f"{key}: not a private key in PEM without a password", hint, path=str(key)) from None
    if not isinstance(private, Ed25519PrivateKey):
        raise ConfigError(f"{key}: not an Ed25519 key", hint, path=str(key))
    public = private.public_key().public_bytes_raw()
    signed = Signature(public, private.sign(bundle.manifest_bytes)).to_bytes()
    return Bundle(bundle.manifest, bundle.manifest_bytes, bundle.files, signed), fingerprint(public)


def load(path: Path) -> Bundle:
    """Read a bundle that is to be signed; a .tflite is none."""
    from deploy import bundle

    if path.suffix.lower() == ".tflite":
        raise BundleError(f"{path} is a model, not a bundle", f"`deploy build {path}` makes one of it", path=str(path))
    return bundle.read(path)
