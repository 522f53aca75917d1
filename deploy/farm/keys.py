"""
Who may take part in a farm of several hosts: certificates, and what is said when one does not fit.

Dask carries Python objects, so whoever may connect may run anything: both sides of every connection must show a
certificate that the farm's own authority has signed.  ``deploy farm keys`` makes a folder with::

    ca.pem, ca-key.pem                  the authority; its key stays where the folder was made
    scheduler.pem, gateway.pem, client.pem and their -key.pem
"""

from __future__ import annotations

import datetime
import os
import socket
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from deploy.errors import FarmError

if TYPE_CHECKING:
    from distributed.security import Security

ROLES = ("scheduler", "gateway", "client")
FOLDER = "farm-keys"
PORT = 8786
CONNECT_S = 10.0
_HINT = "`deploy farm keys --renew` makes new ones; every host needs its own from the same folder"


def make(folder: Path, days: int, renew: bool = False, begin: datetime.datetime | None = None) -> list[Path]:
    """
    Make an authority and a certificate for each role.

    Args:
        days: how long they hold.
        renew: by the authority that is there, instead of the certificates that are there.
        begin: from when; now if not given.

    Returns:
        What was written.

    Raises:
        FarmError: there are keys already (or none, to renew), or the folder cannot be written.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    written: list[Path] = []

    def write(name: str, key: Any, certificate: Any) -> None:
        plain = serialization.NoEncryption()
        pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
        for path, data in (
            (folder / f"{name}-key.pem", pem),
            (folder / f"{name}.pem", certificate.public_bytes(serialization.Encoding.PEM)),
        ):
            path.unlink(missing_ok=True)
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(data)
            written.append(path)

    def certificate(name: str, public: Any, signer: Any, issuer: Any, ca: bool) -> Any:
        now = begin or datetime.datetime.now(datetime.UTC)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"deploy farm {name}")])
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer or subject)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))  # clocks of hosts differ
            .not_valid_after(now + datetime.timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca, 0 if ca else None), True)
        )
        if not ca:
            both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]  # gateways are both
            builder = builder.add_extension(x509.ExtendedKeyUsage(both), False)
        return builder.sign(signer, hashes.SHA256())

    try:
        if renew:
            authority_key: Any = serialization.load_pem_private_key((folder / "ca-key.pem").read_bytes(), None)
            authority = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
        else:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if (folder / "ca.pem").exists():
                raise FarmError(f"{folder}: there are keys already", "`--renew` makes new certificates by them")
            authority_key = ec.generate_private_key(ec.SECP256R1())
            authority = certificate("authority", authority_key.public_key(), authority_key, None, ca=True)
            write("ca", authority_key, authority)
        for role in ROLES:
            key = ec.generate_private_key(ec.SECP256R1())
            write(role, key, certificate(role, key.public_key(), authority_key, authority.subject, ca=False))
    except OSError as error:
        raise FarmError(f"{error.filename or folder}: {error.strerror}", "`deploy farm keys` makes them") from None
    except ValueError as error:
        raise FarmError(f"{folder}: the authority cannot be read: {error}") from None
    return written


def security(folder: Path, role: str) -> Security:
    """
    What Dask needs to take part as `role`.

    Raises:
        FarmError: a file is missing, no certificate, expired, or not signed by this authority.
    """
    from distributed.security import Security

    _check(folder, role)
    as_dask = {"scheduler": "scheduler", "gateway": "worker", "client": "client"}
    mine = {
        "tls_ca_file": str(folder / "ca.pem"),
        f"tls_{as_dask[role]}_cert": str(folder / f"{role}.pem"),
        f"tls_{as_dask[role]}_key": str(folder / f"{role}-key.pem"),
    }
    return Security(require_encryption=True, **mine)


def _check(folder: Path, role: str) -> None:
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature

    found = {}
    for name in ("ca", role):
        path = folder / f"{name}.pem"
        try:
            found[name] = x509.load_pem_x509_certificate(path.read_bytes())
        except OSError as error:
            raise FarmError(f"{path}: {error.strerror}", "`deploy farm keys` makes them") from None
        except ValueError:
            raise FarmError(f"{path}: no certificate", _HINT) from None
        now = datetime.datetime.now(datetime.UTC)
        if found[name].not_valid_after_utc < now:
            raise FarmError(f"{path}: expired on {found[name].not_valid_after_utc:%Y-%m-%d}", _HINT)
        if found[name].not_valid_before_utc > now:
            begin = found[name].not_valid_before_utc
            raise FarmError(f"{path}: not valid before {begin:%Y-%m-%d}", "is this machine's clock right?")
    try:
        found[role].verify_directly_issued_by(found["ca"])
    except (ValueError, TypeError, InvalidSignature):
        raise FarmError(f"{folder / role}.pem: not signed by {folder / 'ca.pem'}", _HINT) from None


def address(text: str) -> str:
    """
    ``tls://host:port`` of what a person types.

    Raises:
        FarmError: it is none.
    """
    full = text if "://" in text else f"tls://{text}"
    try:
        parts = urlsplit(full)
        host, port = parts.hostname, parts.port or PORT
    except ValueError:
        host, port = None, 0
    if not host or parts.scheme != "tls":
        raise FarmError(f"{text!r} is no address of a scheduler", f"as in tls://lab-host:{PORT}")
    return f"tls://[{host}]:{port}" if ":" in host else f"tls://{host}:{port}"


def reach(where: str, folder: Path, role: str) -> None:
    """
    Connect once, to say in one line why that does not go well.

    Raises:
        FarmError: nobody listens there, or one of the certificates is refused.
    """
    parts = urlsplit(where)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # the farm's own authority signs for nobody else
    context.load_verify_locations(folder / "ca.pem")
    context.load_cert_chain(folder / f"{role}.pem", folder / f"{role}-key.pem")
    try:
        with (
            socket.create_connection((parts.hostname or "", parts.port or PORT), CONNECT_S) as plain,
            context.wrap_socket(plain) as line,
        ):
            if not line.recv(1):  # a refusal comes after the handshake; a scheduler speaks first
                raise ssl.SSLEOFError
    except ssl.SSLEOFError:
        raise FarmError(f"the scheduler at {where} hung up", "is it one of `deploy farm serve`?") from None
    except ssl.SSLCertVerificationError as error:
        raise FarmError(
            f"the scheduler at {where} shows a certificate that {folder / 'ca.pem'} does not vouch for: "
            f"{error.verify_message}",
            _HINT,
        ) from None
    except ssl.SSLError as error:
        reason = (error.reason or str(error)).replace("_", " ").lower()
        raise FarmError(f"the scheduler at {where} refuses {folder / role}.pem: {reason}", _HINT) from None
    except TimeoutError:
        raise FarmError(f"the scheduler at {where} does not answer", "`deploy farm serve` starts one") from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise FarmError(f"no scheduler at {where}: {reason}", "`deploy farm serve` starts one") from None
