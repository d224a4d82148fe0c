"""JSON Web Tokens at the door, and the issuer whose keys verify them."""

from __future__ import annotations

import base64
import concurrent.futures
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from lunar_proxy.testing import Request, Script, chat, error_answer, json_answer

from .guarded import OURS, admin, bearer, config
from .harness import Answer, Proxy, Stage, ask, eventually, serving, write_config
from .harness import chat as chat_doc

ISSUER, AUDIENCE = "https://issuer.test/", "lunar"
SIGNER = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER = rsa.generate_private_key(public_exponent=65537, key_size=2048)
SHARED = "a shared secret of at least thirty-two bytes"
PEM = SIGNER.public_key().public_bytes(
    serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
)


def claims(**changes: Any) -> dict[str, Any]:
    now = time.time()  # noqa: TID251 - the proxy's clock is the real one
    all_of_them = {"sub": "ann", "iss": ISSUER, "aud": AUDIENCE, "exp": now + 600} | changes
    return {name: value for name, value in all_of_them.items() if value is not None}


def token(key: Any = SIGNER, algorithm: str = "RS256", kid: str = "one", **changes: Any) -> str:
    return jwt.encode(claims(**changes), key, algorithm, headers={"kid": kid})


def forged(header: dict[str, Any], key: bytes | None) -> str:
    """What no library would make: an HMAC by whatever bytes, or no signature at all."""

    def part(data: bytes) -> bytes:
        return base64.urlsafe_b64encode(data).rstrip(b"=")

    signed = part(json.dumps(header).encode()) + b"." + part(json.dumps(claims()).encode())
    signature = b"" if key is None else hmac.digest(key, signed, hashlib.sha256)
    return (signed + b"." + part(signature)).decode()


def jwks(**keys: Any) -> dict[str, Any]:
    to_jwk = jwt.get_algorithm_by_name("RS256").to_jwk
    return {
        "keys": [json.loads(to_jwk(key.public_key())) | {"kid": kid} for kid, key in keys.items()]
    }


class Issuer:
    """On the stage beside the providers: what it says under /jwks, and how often it was asked."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.says: Script = json_answer(jwks(one=SIGNER))
        stage.play(self._play)

    def _play(self, request: Request) -> Script:
        return self.says if request.path == "/jwks" else chat("Hello")(request)

    @property
    def asked(self) -> int:
        return len([r for r in self.stage.requests if r.path == "/jwks"])


@pytest.fixture
def issuer(stage: Stage) -> Issuer:
    return Issuer(stage)


@pytest.fixture
def verifying(tmp_path: Path, stage: Stage) -> Callable[..., Any]:
    def run(**settings: Any) -> Any:
        return serving(tmp_path, configured(stage, **settings))

    return run


def configured(stage: Stage, **settings: Any) -> dict[str, Any]:
    url = stage.upstream.url
    token = {"issuer": ISSUER, "audience": AUDIENCE, "leeway_s": 0} | settings
    if not {"secret", "public_key_file"} & settings.keys():
        token["jwks_url"] = f"{url}/jwks"
    return config(url, auth={"required": True, "jwt": token})


@pytest.fixture
def proxy(issuer: Issuer, verifying: Callable[..., Any]) -> Iterator[Proxy]:
    with verifying() as running:
        yield running


def present(proxy: Proxy, value: str, **more: str) -> Answer:
    return ask(proxy.url, chat_doc(), headers=bearer(value) | more)


def test_a_token_lets_in_and_stays_here(proxy: Proxy, stage: Stage, door: str) -> None:
    good = token()
    answer = ask(proxy.url, chat_doc(), headers=bearer(good), door=door)
    assert answer.status == 200, answer.body
    (asked,) = [r for r in stage.requests if r.path != "/jwks"]
    assert asked.header("authorization") == f"Bearer {OURS}"
    assert good not in repr(asked)
    assert eventually(proxy.calls)[0]["key"] == "ann"
    assert good not in proxy.stderr()


def bad_tokens() -> dict[str, tuple[str, str]]:
    """What is wrong -> the token and the words that name the check that failed."""
    now = time.time()  # noqa: TID251
    public = PEM
    return {
        "expired": (token(exp=now - 10), "expired"),
        "never expires": (token(exp=None), "exp"),
        "not yet valid": (token(nbf=now + 600), "not valid yet"),
        "wrong issuer": (token(iss="https://evil.test/"), "issuer"),
        "no issuer": (token(iss=None), "issuer"),
        "wrong audience": (token(aud="other"), "audience"),
        "no audience": (token(aud=None), "audience"),
        "another signer": (token(OTHER), "signature"),
        "unsigned": (forged({"alg": "none", "kid": "one"}, None), "algorithm"),
        "unsigned, in capitals": (forged({"alg": "NONE", "kid": "one"}, None), "algorithm"),
        "signed by the public key as a secret": (
            forged({"alg": "HS256", "kid": "one"}, public),
            "algorithm",
        ),
        "RS256 that is an HMAC": (forged({"alg": "RS256", "kid": "one"}, public), "signature"),
        "unlisted algorithm": (token(algorithm="RS512"), "algorithm"),
        "no name": (token(sub=None), "sub"),
        "a name that is none": (token(sub="a\nb"), "sub"),
        "cut short": (token()[:-20], ""),
        "not base64": ("eyJhbGciOiJSUzI1NiJ9.!!!.x", ""),
        "a critical extension": (
            jwt.encode(claims(), SIGNER, "RS256", headers={"kid": "one", "crit": ["x"], "x": 1}),
            "",
        ),
        "huge": (token(pad="A" * 9000), ""),
    }


def test_every_bad_token_is_401_and_names_the_check(proxy: Proxy, stage: Stage) -> None:
    for what, (bad, says) in bad_tokens().items():
        answer = present(proxy, bad)
        assert (answer.status, answer.error["type"]) == (401, "authentication_error"), what
        assert says in answer.error["message"], (what, answer.error["message"])
        assert bad not in answer.body.decode() + proxy.stderr()
        assert AUDIENCE + '"' not in answer.error["message"]  # what was expected is not told
    assert [r for r in stage.requests if r.path != "/jwks"] == []


def test_a_token_in_another_place_is_told_where_it_belongs(proxy: Proxy) -> None:
    answer = ask(proxy.url, chat_doc(), headers={"x-api-key": token()})
    assert answer.status == 401
    assert "Bearer" in answer.error["message"]


def test_unknown_kids_ask_the_issuer_once_a_minute_however_many_come(
    proxy: Proxy, issuer: Issuer
) -> None:
    assert present(proxy, token()).status == 200
    assert issuer.asked == 1
    issuer.says = json_answer(jwks(two=OTHER))
    for n in range(10):
        answer = present(proxy, token(OTHER, kid=f"made-up-{n}"))
        assert answer.status == 401
    assert issuer.asked == 2
    assert present(proxy, token(OTHER, kid="two")).status == 200


GARBAGE = {
    "an error page": error_answer(500),
    "not JSON": json_answer("sorry")[:1] + json_answer("sorry")[1:],
    "no keys": json_answer({"keys": []}),
    "a redirect": json_answer({}, 302, {"location": "/elsewhere"}),
    "a secret as a key": json_answer({"keys": [{"kty": "oct", "k": "AAAA", "kid": "one"}]}),
}


@pytest.mark.parametrize("garbage", GARBAGE)
def test_an_issuer_that_never_gave_a_good_set_is_503_not_401(
    issuer: Issuer, verifying: Callable[..., Any], garbage: str
) -> None:
    issuer.says = GARBAGE[garbage]
    with verifying() as proxy:
        answer = present(proxy, token())
        assert (answer.status, answer.error["type"]) == (503, "store_unavailable")
        assert int(answer.headers["retry-after"]) >= 1


def test_calls_at_once_ask_an_issuer_that_is_down_once(
    issuer: Issuer, verifying: Callable[..., Any]
) -> None:
    issuer.says = error_answer(500)
    with verifying() as proxy, concurrent.futures.ThreadPoolExecutor(8) as pool:
        asked = issuer.asked
        values = [token(sub=f"caller-{n}") for n in range(24)]
        answers = list(pool.map(lambda value: present(proxy, value), values))
        assert {answer.status for answer in answers} == {503}
        assert issuer.asked <= asked + 1
        issuer.says = json_answer(jwks(one=SIGNER))
        eventually(lambda: present(proxy, values[0]).status == 200, 10)
        assert {present(proxy, value).status for value in values} == {200}
        assert issuer.asked <= asked + 3


def test_no_output_holds_a_token_or_the_secret_it_is_signed_with(
    issuer: Issuer, verifying: Callable[..., Any], stage: Stage
) -> None:
    good = token(SHARED, "HS256")
    bad = [value for value, _ in bad_tokens().values()]
    outputs: list[str] = []
    with verifying(secret=SHARED) as proxy:
        for value in (good, *bad):
            for headers in (bearer(value), {"x-api-key": value}, {"api-key": value}):
                for doc in (chat_doc(), chat_doc(stream=True), chat_doc("nothing")):
                    answer = ask(proxy.url, doc, headers=headers)
                    outputs += [repr(answer.headers), answer.body.decode()]
        for path in ("/metrics", "/-/config", "/-/ready", "/-/snapshot", "/-/keys", "/-/usage"):
            outputs.append(admin(proxy, path).body.decode())
        outputs.append(eventually(proxy.stderr))
    for secret in (SHARED, good, good.rpartition(".")[2], *bad):
        assert not [text for text in outputs if secret in text]
    assert not [r for r in stage.requests if good in repr(r)]


def test_the_good_set_outlives_a_reload_during_an_outage(
    proxy: Proxy, issuer: Issuer, stage: Stage
) -> None:
    assert present(proxy, token()).status == 200
    issuer.says = error_answer(500)
    write_config(proxy.config, configured(stage, leeway_s=5))
    assert admin(proxy, "/-/reload", method="POST").status == 200
    assert present(proxy, token(sub="bob")).status == 200


def test_a_reload_may_turn_tokens_off_and_on(proxy: Proxy, issuer: Issuer, stage: Stage) -> None:
    both_ways = (({"required": True}, 401), (configured(stage)["auth"], 200))
    for auth, status in both_ways:
        write_config(proxy.config, config(stage.upstream.url, auth=auth))
        assert admin(proxy, "/-/reload", method="POST").status == 200
        assert present(proxy, token()).status == status


def test_a_key_file_verifies_without_an_issuer_to_ask(
    issuer: Issuer, verifying: Callable[..., Any], tmp_path: Path
) -> None:
    file = tmp_path / "issuer.pem"
    file.write_bytes(PEM)
    with verifying(public_key_file=str(file)) as proxy:
        assert present(proxy, token()).status == 200
        assert present(proxy, token(OTHER)).status == 401
        assert present(proxy, forged({"alg": "HS256"}, PEM)).status == 401
        file.write_text("no key")
        refused = admin(proxy, "/-/reload", method="POST")
        assert refused.status == 400
        assert "public_key_file" in refused.error["message"]
        assert present(proxy, token(sub="still")).status == 200
    assert issuer.asked == 0


def test_a_shared_secret_takes_hmacs_by_it_and_nothing_else(
    issuer: Issuer, verifying: Callable[..., Any]
) -> None:
    with verifying(secret=SHARED) as proxy:
        assert present(proxy, token(SHARED, "HS256")).status == 200
        assert present(proxy, token("another secret of thirty-two bytes", "HS256")).status == 401
        assert present(proxy, token()).status == 401
        assert SHARED not in admin(proxy, "/-/config").body.decode()


def test_claims_say_which_models_and_how_often(
    issuer: Issuer, verifying: Callable[..., Any]
) -> None:
    with verifying(models_claim="models", limits_claim="limits") as proxy:
        limits = {"requests_per_minute": 2}
        mine = token(models=["openai/*"], limits=limits)
        statuses = [present(proxy, mine).status for _ in range(3)]
        assert statuses == [200, 200, 429]
        assert present(proxy, token(sub="bob", models=["own/*"])).status == 403
        assert present(proxy, token(sub="eve", models=[])).status == 403
        assert present(proxy, token(sub="max")).status == 401
