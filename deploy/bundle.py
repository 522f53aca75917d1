"""
Bundles: what `build` makes and `push` sends.

A bundle is a zip with stored entries: ``manifest.json``, ``model.tflite`` and, where the model was proven on the
host, ``golden.npz`` (inputs, and what the model answered).  The same content gives the same bytes.  The manifest is
described in `devices.protocol.manifest`, as the board reads it too.  A signed bundle has ``signature.json`` as well,
which the manifest does not name: it is about the manifest (`devices.protocol.signature`).

A bundle is held in memory whole: on the host, a model of 200 MB takes 200 MB.  The board takes it in pieces.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from deploy.errors import BundleError
from deploy.paths import whole
from devices.protocol import manifest as manifests
from devices.protocol import signature as signatures
from devices.protocol.manifest import FileEntry, Manifest

MANIFEST = "manifest.json"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest date a zip can hold: bytes must not depend on when


@dataclass(frozen=True)
class Bundle:
    """
    A bundle in memory.

    Attributes:
        manifest: parsed.
        manifest_bytes: as they are stored; their SHA-256 is the bundle's identity.
        files: path in the bundle -> content.
        signature: content of its signature.json; None for an unsigned one.
    """

    manifest: Manifest
    manifest_bytes: bytes
    files: dict[str, bytes]
    signature: bytes | None = None

    @property
    def digest(self) -> str:
        """SHA-256 that names the bundle."""
        return manifests.digest(self.manifest_bytes)

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def model(self) -> bytes:
        return self.files[manifests.MODEL]

    def packed(self) -> bytes:
        """The content of the file."""
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
            signed = [(signatures.FILE, self.signature)] if self.signature else []
            for name, data in [(MANIFEST, self.manifest_bytes), *signed, *sorted(self.files.items())]:
                archive.writestr(zipfile.ZipInfo(name, _EPOCH), data)
        return out.getvalue()

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        try:
            with whole(path) as staging:
                staging.write_bytes(self.packed())
        except OSError as error:
            raise BundleError(f"{path}: {error.strerror}", path=str(path)) from None


def make(manifest: Manifest, files: dict[str, bytes]) -> Bundle:
    """A bundle of `files`; the manifest's own list of files is filled in."""
    entries = {name: FileEntry(manifests.digest(data), len(data)) for name, data in files.items()}
    data = Manifest(**{**vars(manifest), "files": entries}).to_bytes()
    return Bundle(manifests.parse(data), data, dict(files))


def read(path: Path) -> Bundle:
    """
    Read a bundle and check every digest.

    Raises:
        BundleError: not there, no bundle, or damaged; says which file inside.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            contents = {name: archive.read(name) for name in archive.namelist()}
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror or error}", path=str(path)) from None
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        raise BundleError(
            f"{path}: not a bundle ({error})", "`deploy build MODEL -o NAME.bundle` makes one", path=str(path)
        ) from None
    data = contents.pop(MANIFEST, None)
    if data is None:
        raise BundleError(f"{path}: not a bundle (no {MANIFEST} inside)", path=str(path))
    try:
        parsed = manifests.parse(data)
    except manifests.ManifestError as error:
        raise BundleError(f"{path}: {MANIFEST}: {error}", path=str(path)) from None
    for name, entry in parsed.files.items():
        if manifests.digest(contents.get(name, b"")) != entry.sha256:
            raise BundleError(f"{path}: {name} is damaged or missing", "build or copy it again", path=str(path))
    signed = contents.get(signatures.FILE)
    if signed is not None:
        try:
            signatures.parse(signed)
        except signatures.SignatureError as error:
            raise BundleError(f"{path}: {signatures.FILE}: {error}", path=str(path)) from None
    return Bundle(parsed, data, {name: contents[name] for name in parsed.files}, signed)
