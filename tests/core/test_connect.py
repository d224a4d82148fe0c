from __future__ import annotations

from base64 import b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lunar_proxy.core.connect import (
    Authority,
    ConnectReply,
    HostEntry,
    HostTable,
    Intercept,
    Policy,
    Refuse,
    Tunnel,
    connect_request,
    decide,
    host_table,
    is_private,
    parse_authority,
    parse_parent,
    through_parent,
)
from lunar_proxy.core.errors import ConnectFailed, InvalidRequest

GOOD = {
    b"api.openai.com:443": ("api.openai.com", 443),
    b"API.OpenAI.com.:443": ("api.openai.com", 443),
    b"localhost:1": ("localhost", 1),
    b"my_container:8080": ("my_container", 8080),
    b"xn--bcher-kva.example:65535": ("xn--bcher-kva.example", 65535),
    b"10.0.0.1:0443": ("10.0.0.1", 443),
    b"[::1]:443": ("::1", 443),
    b"[2001:DB8:0::1]:8443": ("2001:db8::1", 8443),
    b"[::ffff:127.0.0.1]:443": ("::ffff:7f00:1", 443),
    b"a1.b2:80": ("a1.b2", 80),
}

BAD = [
    b"",
    b":443",
    b"host",
    b"host:",
    b"host:0",
    b"host:65536",
    b"host:99999",
    b"host:123456",
    b"host:+443",
    b"host:4 3",
    b"host:\xb2",
    b"::1:443",
    b"[::1]",
    b"[::1:443",
    b"[fe80::1%eth0]:443",
    b"[127.0.0.1]:443",
    b"[]:443",
    b"user@host:443",
    b"http://host:443",
    b"host/path:443",
    b"ho st:443",
    b"host\r\nx: y:443",
    b"host\0:443",
    b"b\xc3\xbccher.example:443",
    b"a..b:443",
    b".host:443",
    b"-host:443",
    b"127.1:443",
    b"2130706433:443",
    b"0x7f000001:443",
    b"0177.0.0.1:443",
    b"1.2.3.4.5:443",
    b"256.1.1.1:443",
    b"a" * 64 + b".com:443",
    b"a." * 130 + b"com:443",
]


@pytest.mark.parametrize(("raw", "expected"), GOOD.items(), ids=lambda value: str(value))
def test_reads_an_authority(raw: bytes, expected: tuple[str, int]) -> None:
    assert parse_authority(raw) == Authority(*expected)


@pytest.mark.parametrize("raw", BAD)
def test_refuses_what_is_no_authority(raw: bytes) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_authority(raw)
    assert caught.value.code == "invalid_authority"


@given(st.binary(max_size=80))
def test_any_bytes_give_an_authority_or_invalid_request(raw: bytes) -> None:
    try:
        authority = parse_authority(raw)
    except InvalidRequest:
        return
    assert parse_authority(str(authority).encode()) == authority


PRIVATE = [
    "127.0.0.1",
    "127.8.8.8",
    "0.0.0.0",
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "198.18.0.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:169.254.169.254",
    "::127.0.0.1",
    "64:ff9b::a00:1",
    "2002:7f00:1::",
    "fe80::1",
    "fe80::1%2",
    "fc00::1",
    "fd00:ec2::254",
    "fec0::1",
    "ff02::1",
    "2001:db8::1",
    "not an address",
]
PUBLIC = ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses(address: str) -> None:
    assert is_private(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses(address: str) -> None:
    assert not is_private(address)


TABLE = host_table(
    [
        ("openai", "https://api.openai.com/v1"),
        ("vllm", "http://10.0.0.5:8000/v1"),
        ("other-vllm", "http://10.0.0.5:9000/v1"),
        ("six", "https://[2001:db8::1]/v1"),
    ],
    [("*.openai.azure.com", "azure"), ("llm.corp", None), ("API.openai.com", None)],
)

OPENED = {
    "api.openai.com:443": "openai",
    "api.openai.com:8443": "openai",
    "acme.openai.azure.com:443": "azure",
    "a.b.openai.azure.com:443": "azure",
    "10.0.0.5:8000": "vllm",
    "10.0.0.5:9000": "other-vllm",
    "10.0.0.5:1": "vllm",
    "[2001:db8::1]:443": "six",
    "llm.corp:443": None,
}


@pytest.mark.parametrize(("authority", "provider"), OPENED.items())
def test_opens_hosts_of_providers_whatever_the_port(authority: str, provider: str | None) -> None:
    parsed = parse_authority(authority.encode())
    assert decide(parsed, Policy(TABLE)) == Intercept(provider, parsed)


@pytest.mark.parametrize("exposed", [False, True])
def test_opens_a_private_provider_on_an_exposed_listener_too(exposed: bool) -> None:
    policy = Policy(TABLE, exposed=exposed)
    assert isinstance(decide(Authority("10.0.0.5", 8000), policy), Intercept)


@pytest.mark.parametrize(
    "host", ["openai.com", "evil-api.openai.com", "xopenai.azure.com", "openai.azure.com"]
)
def test_a_host_that_only_resembles_one_is_a_tunnel(host: str) -> None:
    assert decide(Authority(host, 443), Policy(TABLE)) == Tunnel(Authority(host, 443))


def test_a_named_host_may_be_given_to_another_provider() -> None:
    table = host_table([("openai", "https://api.openai.com/v1")], [("api.openai.com", "mock")])
    assert table.find(Authority("api.openai.com", 443)) == HostEntry("api.openai.com", "mock")
    assert table.patterns == ("api.openai.com",)


# glob list, exposed, target -> None (tunnel) or the code of the refusal
TUNNELS: list[tuple[tuple[str, ...], bool, str, str | None]] = [
    (("*",), False, "example.org:443", None),
    (("*",), False, "example.org:22", None),
    (("*",), False, "127.0.0.1:5000", None),
    (("*",), True, "example.org:443", None),
    (("*",), True, "example.org:22", "tunnel_refused"),
    (("*", "git.example.org:22"), True, "git.example.org:22", None),
    (("*",), True, "127.0.0.1:443", "private_address"),
    (("*",), True, "[::ffff:127.0.0.1]:443", "private_address"),
    (("*",), True, "169.254.169.254:443", "private_address"),
    (("169.254.169.254:80",), True, "169.254.169.254:80", "private_address"),
    (("*",), True, "8.8.8.8:443", None),
    ((), False, "example.org:443", "tunnel_refused"),
    (("*.example.org",), False, "www.example.org:443", None),
    (("*.Example.org",), False, "a.b.example.org:8443", None),
    (("*.example.org",), False, "example.org:443", "tunnel_refused"),
    (("*.example.org",), False, "evil-example.org:443", "tunnel_refused"),
    (("example.org",), False, "exampleXorg.com:443", "tunnel_refused"),
    (("example.org:443",), False, "example.org:8443", "tunnel_refused"),
    (("[::1]:443",), False, "[::1]:443", None),
    (("::1",), False, "[::1]:99", None),
]


@pytest.mark.parametrize(("globs", "exposed", "target", "code"), TUNNELS)
def test_tunnels_by_rule(
    globs: tuple[str, ...], exposed: bool, target: str, code: str | None
) -> None:
    decision = decide(parse_authority(target.encode()), Policy(HostTable(), globs, exposed))
    assert (decision.error.code if isinstance(decision, Refuse) else None) == code


def test_names_inside_are_checked_only_where_not_every_host_may_pass() -> None:
    target = Authority("a.example", 443)
    assert decide(target, Policy()) == Tunnel(target, check_name=False)
    assert decide(target, Policy(tunnel=("*.example",))) == Tunnel(target, check_name=True)


def test_a_parent_proxy_is_asked_with_its_credentials() -> None:
    parent = parse_parent("http://me:p%40ss@proxy.corp:3128")
    assert (parent.host, parent.port) == ("proxy.corp", 3128)
    assert connect_request(Authority("::1", 443), parent) == (
        b"CONNECT [::1]:443 HTTP/1.1\r\nHost: [::1]:443\r\nProxy-Authorization: %b\r\n\r\n"
        % (b"Basic " + b64encode(b"me:p@ss"))
    )
    assert "ss" not in repr(parent).lower()


def test_a_parent_proxy_without_credentials() -> None:
    request = connect_request(Authority("a.b", 1), parse_parent("http://proxy"))
    assert request == b"CONNECT a.b:1 HTTP/1.1\r\nHost: a.b:1\r\n\r\n"


@pytest.mark.parametrize(
    "url",
    ["", "proxy:3128", "https://u:secret@p:1", "http://u:secret@p:x", "http://u:secret@p:1/path"],
)
def test_a_bad_parent_is_refused_without_quoting_it(url: str) -> None:
    with pytest.raises(ValueError, match="must be http://") as caught:
        parse_parent(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("host", "expected"),
    [("localhost", False), ("127.0.0.1", False), ("::1", False), ("10.0.0.1", True), ("a", True)],
)
def test_this_machine_is_not_asked_of_the_parent(host: str, expected: bool) -> None:
    assert through_parent(host) is expected


REPLIES: dict[str, tuple[bytes, bytes | None]] = {
    "established": (b"HTTP/1.1 200 Connection established\r\n\r\n", b""),
    "1.0 with headers": (b"HTTP/1.0 200 OK\r\nVia: x\r\n\r\n", b""),
    "no reason": (b"HTTP/1.1 200\r\n\r\n", b""),
    "early bytes": (b"HTTP/1.1 200 OK\r\n\r\nSSH-2.0", b"SSH-2.0"),
    "credentials": (b"HTTP/1.1 407 Who\r\nX: planted-secret\r\n\r\n", None),
    "refused": (b"HTTP/1.1 403 No\r\n\r\n", None),
    "not http": (b"SSH-2.0-OpenSSH\r\n\r\n", None),
    "status glued": (b"HTTP/1.1 2000 OK\r\n\r\n", None),
    "endless": (b"x" * ConnectReply.LIMIT, None),
}


@pytest.mark.parametrize("step", [1, 7, 1 << 20])
@pytest.mark.parametrize(("reply", "rest"), REPLIES.values(), ids=REPLIES.keys())
def test_reads_what_a_parent_answers(reply: bytes, rest: bytes | None, step: int) -> None:
    if rest is None:
        with pytest.raises(ConnectFailed) as caught:
            _feed(reply, step)
        assert "planted-secret" not in caught.value.message
    else:
        assert _feed(reply, step) == rest


def _feed(reply: bytes, step: int) -> bytes | None:
    reader = ConnectReply()
    for at in range(0, len(reply), step):
        if (rest := reader.feed(reply[at : at + step])) is not None:
            return rest + reply[at + step :]
    return None
