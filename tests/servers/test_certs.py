from __future__ import annotations

import asyncio
import logging
import shutil
import ssl
import stat
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from lunar_proxy.core.errors import NotCovered
from lunar_proxy.servers.certs import (
    Ca,
    CaError,
    LeafStore,
    find_ca,
    init_ca,
    load_ca,
    sign_leaf,
    write_bundle,
)

NOW = datetime(2030, 1, 1, tzinfo=UTC)
HOSTS = ("api.openai.com", "*.openai.azure.com", "10.0.0.5", "2001:db8::1")


class Clock:
    def __init__(self) -> None:
        self.now = datetime.now(UTC).timestamp()

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def ca(tmp_path: Path) -> Ca:
    return init_ca(tmp_path, HOSTS, now=datetime.now(UTC))


def test_a_ca_is_p256_constrained_and_two_years_long(tmp_path: Path) -> None:
    ca = init_ca(tmp_path, HOSTS, now=NOW)
    assert isinstance(ca.certificate.public_key(), ec.EllipticCurvePublicKey)
    assert ca.key.curve.name == "secp256r1"
    assert ca.expires == NOW + timedelta(days=730)
    extension = ca.certificate.extensions.get_extension_for_class(x509.NameConstraints)
    assert extension.critical
    basic = ca.certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert (basic.ca, basic.path_length) == (True, 0)


def test_only_the_owner_can_read_the_key(tmp_path: Path) -> None:
    init_ca(tmp_path / "deep" / "ca", HOSTS, now=NOW)
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "deep" / "ca").iterdir()}
    assert modes == {"ca.pem": 0o644, "ca-key.pem": 0o600, "ca-bundle.pem": 0o644}


def test_a_key_others_can_read_is_pointed_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    init_ca(tmp_path, HOSTS, now=NOW)
    (tmp_path / "ca-key.pem").chmod(0o640)
    with caplog.at_level(logging.WARNING):
        load_ca(tmp_path)
    assert "can be read by others" in caplog.text


def test_an_existing_ca_is_replaced_only_by_force(tmp_path: Path) -> None:
    first = init_ca(tmp_path, HOSTS, now=NOW)
    with pytest.raises(CaError, match="already has a CA"):
        init_ca(tmp_path, HOSTS, now=NOW)
    assert load_ca(tmp_path).fingerprint == first.fingerprint
    assert init_ca(tmp_path, HOSTS, now=NOW, force=True).fingerprint != first.fingerprint


def test_no_ca_is_no_error_but_half_of_one_is(tmp_path: Path) -> None:
    assert find_ca(tmp_path) is None
    init_ca(tmp_path, HOSTS, now=NOW)
    (tmp_path / "ca-key.pem").unlink()
    with pytest.raises(CaError, match="ca init"):
        find_ca(tmp_path)


def test_what_is_no_ca_is_named(tmp_path: Path) -> None:
    init_ca(tmp_path / "a", HOSTS, now=NOW)
    init_ca(tmp_path / "b", HOSTS, now=NOW)
    shutil.copy(tmp_path / "a" / "ca-key.pem", tmp_path / "b" / "ca-key.pem")
    with pytest.raises(CaError, match="do not belong together"):
        load_ca(tmp_path / "b")
    (tmp_path / "b" / "ca.pem").write_bytes(b"junk")
    with pytest.raises(CaError, match="not a certificate"):
        load_ca(tmp_path / "b")


def test_a_directory_that_cannot_be_made_is_a_ca_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CaError, match="file"):
        init_ca(tmp_path / "file" / "ca", HOSTS, now=NOW)


COVERED = {
    "api.openai.com": True,
    "*.openai.azure.com": True,
    "acme.openai.azure.com": True,
    "localhost": True,
    "127.0.0.1": True,
    "::1": True,
    "10.0.0.5": True,
    "2001:db8::1": True,
    "10.0.0.6": False,
    "openai.com": False,
    "evilapi.openai.com": False,
    "example.org": False,
}


@pytest.mark.parametrize(("host", "covered"), COVERED.items())
def test_a_ca_covers_the_hosts_it_was_made_for(ca: Ca, host: str, covered: bool) -> None:
    assert ca.covers(host) is covered


@pytest.mark.parametrize(
    ("host", "trusted"), [(h, c) for h, c in COVERED.items() if not h.startswith("*")]
)
def test_openssl_holds_leaves_to_the_name_constraints(
    ca: Ca, tmp_path: Path, host: str, trusted: bool
) -> None:
    leaf = sign_leaf(ca, host, ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC))
    (tmp_path / "leaf.pem").write_bytes(leaf.public_bytes(Encoding.PEM))
    check = subprocess.run(
        [
            *("openssl", "verify", "-x509_strict", "-purpose", "sslserver"),
            *("-CAfile", str(tmp_path / "ca.pem"), str(tmp_path / "leaf.pem")),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (check.returncode == 0) is trusted, check.stderr
    assert trusted or "permitted subtree violation" in check.stderr


def test_an_unconstrained_ca_covers_all(tmp_path: Path) -> None:
    assert init_ca(tmp_path, (), now=NOW, constrained=False).covers("anything.example")


def test_the_bundle_holds_the_roots_once_and_only_the_newest_of_ours(tmp_path: Path) -> None:
    old, new, root = (init_ca(tmp_path / name, (), now=NOW) for name in ("old", "new", "root"))
    foreign = _foreign_root()
    (tmp_path / "roots").write_text(f"# a comment\n{foreign}\n{old.pem}\n{foreign}")
    assert write_bundle(tmp_path, new.pem.encode(), [tmp_path / "roots", tmp_path / "roots"]) == 1
    bundle = (tmp_path / "ca-bundle.pem").read_text()
    assert bundle.count("BEGIN CERTIFICATE") == 2
    assert foreign.strip() in bundle
    assert new.pem in bundle
    assert root.pem not in bundle
    context = ssl.create_default_context(cafile=tmp_path / "ca-bundle.pem")
    assert len(context.get_ca_certs()) == 2


def _foreign_root() -> str:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "someone else")])
    from cryptography.hazmat.primitives import hashes

    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(Encoding.PEM).decode()


def handshake(
    server: ssl.SSLContext, ca: Ca, host: str, alpn: list[str] | None = None
) -> ssl.SSLObject:
    """A client that trusts only our CA meets the server context, in memory."""
    client = ssl.create_default_context(cadata=ca.pem)
    client.verify_flags |= ssl.VERIFY_X509_STRICT  # what Python 3.13 does by default
    if alpn:
        client.set_alpn_protocols(alpn)
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client.wrap_bio(down, up, server_hostname=host)
    theirs = server.wrap_bio(up, down, server_side=True)
    for _ in range(4):
        for side in (ours, theirs):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return ours


@pytest.mark.parametrize("host", ["api.openai.com", "acme.openai.azure.com", "127.0.0.1", "::1"])
async def test_a_client_that_trusts_the_ca_accepts_the_leaf(ca: Ca, host: str) -> None:
    store = LeafStore(ca, now=Clock())
    client = handshake(await store.context(host), ca, host, ["h2", "http/1.1"])
    assert client.selected_alpn_protocol() == "http/1.1"
    assert client.version() == "TLSv1.3"


async def test_leaves_are_made_once_and_renewed_before_they_end(ca: Ca) -> None:
    clock = Clock()
    store = LeafStore(ca, now=clock)
    first, second = await asyncio.gather(store.context("localhost"), store.context("localhost"))
    assert first is second
    clock.now += 15 * 3600
    assert await store.context("localhost") is first
    clock.now += 2 * 3600
    assert await store.context("localhost") is not first


async def test_the_first_to_ask_may_hang_up(ca: Ca) -> None:
    store = LeafStore(ca, now=Clock())
    impatient = asyncio.ensure_future(store.context("localhost"))
    patient = asyncio.ensure_future(store.context("localhost"))
    await asyncio.sleep(0)
    impatient.cancel()
    assert isinstance(await patient, ssl.SSLContext)


async def test_the_store_is_bounded_and_forgets_the_least_used(ca: Ca) -> None:
    store = LeafStore(ca, now=Clock(), size=2)
    kept = await store.context("a.openai.azure.com")
    dropped = await store.context("b.openai.azure.com")
    await store.context("a.openai.azure.com")
    await store.context("c.openai.azure.com")
    assert len(store) == 2
    assert await store.context("a.openai.azure.com") is kept
    assert await store.context("b.openai.azure.com") is not dropped


async def test_a_host_the_ca_was_not_made_for_is_said_so(ca: Ca) -> None:
    with pytest.raises(NotCovered, match=r"example\.org.*ca init"):
        await LeafStore(ca, now=Clock()).context("example.org")


async def test_a_leaf_never_outlives_its_ca(tmp_path: Path) -> None:
    ca = init_ca(tmp_path, HOSTS, now=NOW)
    key = ec.generate_private_key(ec.SECP256R1())
    leaf = sign_leaf(ca, "localhost", key, ca.expires - timedelta(hours=1))
    assert leaf.not_valid_after_utc == ca.expires
