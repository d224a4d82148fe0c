"""The local CA, and the leaf certificates that open the traffic of known hosts.

    init_ca -> DIR/{ca.pem, ca-key.pem, ca-bundle.pem} -> find_ca -> Ca -> LeafStore.context(host)

The CA may by default sign for the intercepted hosts only (name constraints, RFC 5280 4.2.1.10), so
a stolen key opens nothing else. Leaves live a day in memory; their key is never on a disk.
`cryptography` is imported where it is used: a proxy that opens nothing does without its 15 MB.
"""

from __future__ import annotations

import asyncio
import binascii
import ipaddress
import logging
import os
import re
import ssl
import tempfile
from base64 import b64decode
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from lunar_proxy.core.connect import is_address
from lunar_proxy.core.errors import NotCovered
from lunar_proxy.tasks import spawn

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

logger = logging.getLogger(__name__)

CERTIFICATE, KEY, BUNDLE = "ca.pem", "ca-key.pem", "ca-bundle.pem"
CA_DAYS = 730
LEAF_HOURS = 24
# Clocks of containers and laptops are off by minutes; an hour forgives them.
SKEW = timedelta(hours=1)
_NAME = "lunar-proxy"
_CA_NAME = f"{_NAME} local CA"
# On top of what is asked for: harmless to sign for, and what a first try runs against.
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class CaError(Exception):
    """The CA is missing, broken or in the way; the text is for the operator."""


# --- making and loading a CA ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ca:
    """A loaded CA. `permits` are the DNS suffixes and networks it may sign for; None: any."""

    certificate: x509.Certificate
    key: EllipticCurvePrivateKey
    pem: str
    permits: tuple[str, ...] | None

    @property
    def fingerprint(self) -> str:
        from cryptography.hazmat.primitives import hashes

        return self.certificate.fingerprint(hashes.SHA256()).hex(":").upper()

    @property
    def expires(self) -> datetime:
        return self.certificate.not_valid_after_utc

    def covers(self, pattern: str) -> bool:
        """Whether it may sign for this host, or for all that a `*.` pattern stands for."""
        if self.permits is None:
            return True
        host = pattern.removeprefix("*.")
        if is_address(host):
            return any(_in_network(host, network) for network in self.permits)
        return any(host == name or host.endswith(f".{name}") for name in self.permits)


def init_ca(
    directory: Path,
    hosts: Iterable[str],
    *,
    now: datetime,
    constrained: bool = True,
    force: bool = False,
) -> Ca:
    """Make a CA in `directory`; CaError when there is one and `force` is not set.

    `hosts` are names, addresses and `*.NAME`; they and loopback are all it may sign for, unless
    `constrained` is False.
    """
    if not force and any((directory / name).exists() for name in (CERTIFICATE, KEY)):
        raise CaError(f"{directory} already has a CA (--force replaces it)")
    certificate, key = _make_ca([*hosts, *LOOPBACK] if constrained else None, now)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _write(directory / KEY, key, 0o600)
        _write(directory / CERTIFICATE, certificate, 0o644)
        write_bundle(directory, certificate, root_files())
    except OSError as error:
        raise CaError(f"{error.filename}: {error.strerror}") from error
    return load_ca(directory)


def find_ca(directory: Path) -> Ca | None:
    """The CA of `directory`, None where there is none: interception is off until one exists."""
    return load_ca(directory) if (directory / CERTIFICATE).exists() else None


def load_ca(directory: Path) -> Ca:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    pem, key_pem = _read(directory / CERTIFICATE), _read(directory / KEY)
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        key = load_pem_private_key(key_pem, None)
    except (ValueError, TypeError) as error:
        raise CaError(f"{directory}: not a certificate and its key in PEM") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise CaError(f"{directory / KEY}: not an EC key")
    if certificate.public_key() != key.public_key():
        raise CaError(f"{directory}: {CERTIFICATE} and {KEY} do not belong together")
    if (directory / KEY).stat().st_mode & 0o077:
        logger.warning("%s can be read by others than its owner", directory / KEY)
    return Ca(certificate, key, pem.decode("ascii"), _permits(certificate))


def _make_ca(hosts: Sequence[str] | None, now: datetime) -> tuple[bytes, bytes]:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
    )

    key = ec.generate_private_key(ec.SECP256R1())
    name = _subject(f"{_CA_NAME} {now:%Y-%m-%d}")
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + timedelta(days=CA_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(ca=True), critical=True)
        .add_extension(identifier, critical=False)
    )
    if hosts is not None:
        builder = builder.add_extension(_constraints(hosts), critical=True)
    certificate = builder.sign(key, hashes.SHA256())
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return certificate.public_bytes(Encoding.PEM), pem


def _subject(name: str) -> x509.Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, _NAME),
            x509.NameAttribute(NameOID.COMMON_NAME, name),
        ]
    )


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not ca,
        key_cert_sign=ca,
        crl_sign=ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _constraints(hosts: Sequence[str]) -> x509.NameConstraints:
    """Always some names and some addresses: a kind that is not mentioned is not constrained."""
    from cryptography import x509

    names = dict.fromkeys(host.removeprefix("*.") for host in hosts)
    return x509.NameConstraints(
        [
            x509.IPAddress(ipaddress.ip_network(name)) if is_address(name) else x509.DNSName(name)
            for name in names
        ],
        None,
    )


def _permits(certificate: x509.Certificate) -> tuple[str, ...] | None:
    from cryptography import x509

    try:
        found = certificate.extensions.get_extension_for_class(x509.NameConstraints)
    except x509.ExtensionNotFound:
        return None
    return tuple(str(name.value) for name in found.value.permitted_subtrees or ())


def _in_network(host: str, network: str) -> bool:
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(network)
    except ValueError:
        return False


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CaError(f"{path}: {error.strerror} (`lunar-proxy ca init` makes a CA)") from error


def _write(path: Path, data: bytes, mode: int) -> None:
    """Whole or not at all, and never, not even for a moment, with wider rights than `mode`."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # made 0600
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(handle, mode)
            file.write(data)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


# --- the bundle -------------------------------------------------------------------------------

_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----")
# Where Debian and Alpine, Fedora, and macOS keep them, for Pythons that were built elsewhere.
_ROOT_FILES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
)


def root_files() -> list[Path]:
    """The system's roots and, where it is installed, certifi's: what clients here trust now."""
    default = ssl.get_default_verify_paths().cafile
    system = next((Path(path) for path in (default, *_ROOT_FILES) if path and _is_file(path)), None)
    return [path for path in (system, _certifi()) if path]


def _is_file(path: str) -> bool:
    return Path(path).is_file()


def _certifi() -> Path | None:
    try:
        import certifi  # not ours to require; httpx and requests bring it
    except ImportError:
        return None
    return Path(certifi.where())


def write_bundle(directory: Path, own: bytes, roots: Iterable[Path]) -> int:
    """Write the roots and our certificate to one file; how many roots went in.

    `SSL_CERT_FILE` and its like *replace* the trusted roots, so a client that is given only our
    certificate would trust nothing else, not even what is tunnelled unread. An older certificate of
    ours among the roots (`SSL_CERT_FILE` may point at the last bundle) is left out.
    """
    blocks = dict.fromkeys(block for path in roots for block in _PEM.findall(path.read_bytes()))
    others = [block for block in blocks if not _is_ours(block)]
    _write(directory / BUNDLE, b"\n".join([*others, own]), 0o644)
    return len(others)


def _is_ours(block: bytes) -> bool:
    """Told by the name, which DER holds as it is; roots out there are too odd to be parsed."""
    body = b"".join(block.split(b"\n")[1:-1])
    try:
        return _CA_NAME.encode() in b64decode(body)
    except binascii.Error:
        return False


# --- leaves -----------------------------------------------------------------------------------


class LeafStore:
    """TLS contexts for hosts, made when first asked for, off the event loop, one at a time a host.

    `now` is wall-clock seconds. All leaves share one key, which lives as long as the store.
    """

    def __init__(self, ca: Ca, *, now: Callable[[], float], size: int = 256) -> None:
        from cryptography.hazmat.primitives.asymmetric import ec

        self._ca = ca
        self._now = now
        self._size = size
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._ready: OrderedDict[str, tuple[ssl.SSLContext, float]] = OrderedDict()
        self._making: dict[str, asyncio.Task[ssl.SSLContext]] = {}

    def __len__(self) -> int:
        return len(self._ready)

    async def context(self, host: str) -> ssl.SSLContext:
        """The server side of TLS for `host`. NotCovered when the CA may not sign for it."""
        if not self._ca.covers(host):
            raise NotCovered(f"the proxy's CA is not for {host}: `lunar-proxy ca init` makes a new")
        context, renew_at = self._ready.get(host, (None, 0.0))
        if context is not None and self._now() < renew_at:
            self._ready.move_to_end(host)
            return context
        making = self._making.get(host)
        if making is None:
            making = self._making[host] = spawn(self._make(host), name=f"leaf certificate {host}")
        # Shielded: whoever asked first may hang up, the others still want it.
        return await asyncio.shield(making)

    async def _make(self, host: str) -> ssl.SSLContext:
        now = self._now()
        try:
            context = await asyncio.to_thread(self._build, host, now)
        finally:
            del self._making[host]
        # At two thirds of its life, so that no connection begins on one about to end.
        self._ready[host] = context, now + LEAF_HOURS * 3600 * 2 / 3
        self._ready.move_to_end(host)
        if len(self._ready) > self._size:
            self._ready.popitem(last=False)
        return context

    def _build(self, host: str, now: float) -> ssl.SSLContext:
        from cryptography.hazmat.primitives.serialization import (
            Encoding,
            NoEncryption,
            PrivateFormat,
        )

        leaf = sign_leaf(self._ca, host, self._key, datetime.fromtimestamp(now, UTC))
        key = self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION
        context.set_alpn_protocols(["http/1.1"])
        with _memory_file(leaf.public_bytes(Encoding.PEM) + key) as path:
            context.load_cert_chain(path)
        return context


def sign_leaf(ca: Ca, host: str, key: EllipticCurvePrivateKey, now: datetime) -> x509.Certificate:
    """A certificate for one name or address. It carries no common name: clients that honour name
    constraints would hold an address in it against the permitted names.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    name: x509.GeneralName = (
        x509.IPAddress(ipaddress.ip_address(host)) if is_address(host) else x509.DNSName(host)
    )
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca.key.public_key())
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, _NAME)]))
        .issuer_name(ca.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(max(now - SKEW, ca.certificate.not_valid_before_utc))
        .not_valid_after(min(now + timedelta(hours=LEAF_HOURS), ca.expires))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([name]), critical=False)
        .add_extension(identifier, critical=False)
        .add_extension(issuer, critical=False)
        .sign(ca.key, hashes.SHA256())
    )


@contextmanager
def _memory_file(data: bytes) -> Iterator[str]:
    """A path to `data`. OpenSSL, as Python wraps it, loads keys from paths only; on Linux the path
    leads to memory, so this works on a read-only file system and leaves nothing behind.
    """
    if hasattr(os, "memfd_create"):
        with os.fdopen(os.memfd_create(_NAME), "wb") as file:
            file.write(data)
            file.flush()
            yield f"/proc/self/fd/{file.fileno()}"
    else:
        with tempfile.NamedTemporaryFile() as file:  # made 0600
            file.write(data)
            file.flush()
            yield file.name
