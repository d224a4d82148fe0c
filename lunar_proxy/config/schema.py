"""Every setting there is: its name, meaning, unit, default and danger.

The descriptions are the documentation a user reads (`config.docs` makes the table of it). Values
are frozen; `None` stands for "not set". What one setting demands of another is in `checks`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    StringConstraints,
    ValidationInfo,
    field_validator,
    model_validator,
)

from lunar_proxy.core import limits
from lunar_proxy.core.model import Annotate

from .values import (
    Address,
    BaseUrl,
    FileOrBool,
    FilePath,
    InterceptHostText,
    ListenAddress,
    NotBool,
    ProxyUrl,
    Secret,
    SecretText,
    Store,
    StoreUrl,
    Tunnel,
    WebUrl,
)

DAY_S = 86_400

Text = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
Count = Annotated[int, NotBool, Field(gt=0, le=10**12)]
Seconds = Annotated[float, NotBool, Field(gt=0, le=DAY_S, allow_inf_nan=False)]
Wait = Annotated[float, NotBool, Field(ge=0, le=DAY_S, allow_inf_nan=False)]
# Money goes out as a number: a dump is for people and for JSON.
Money = Annotated[Decimal, NotBool, PlainSerializer(float, return_type=float, when_used="json")]
Price = Annotated[Money, Field(ge=0, le=10**6, allow_inf_nan=False)]
DictOf = BeforeValidator(lambda value: {} if value is None else value)


class Model(BaseModel):
    """Frozen, strict about names, and silent about the values it was given."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        validate_default=True,
    )

    @model_validator(mode="before")
    @classmethod
    def _empty_section_is_default(cls, data: Any) -> Any:
        return {} if data is None else data

    @field_validator("*", mode="before")
    @classmethod
    def _empty_text_is_unset(cls, value: Any, info: ValidationInfo) -> Any:
        """`upstream_ca: ${CA:-}` means null; an empty secret stays: it turns its provider off."""
        if value == "" and isinstance(value, str) and info.field_name:
            kinds = get_args(cls.model_fields[info.field_name].annotation)
            if type(None) in kinds and not any(_holds_secret(kind) for kind in kinds):
                return None
        return value


def _holds_secret(kind: Any) -> bool:
    return kind is Secret or Secret in get_args(kind)


class Budget(Model):
    usd: Annotated[Money, Field(gt=0, le=10**9, allow_inf_nan=False)] = Field(
        description="US dollars that may be spent in the period."
    )
    per: Literal["hour", "day", "month", "total"] = Field(
        default="month",
        description="The period; calendar months and days are UTC. `total` never resets.",
    )


class Limits(Model):
    requests_per_minute: Count | None = Field(
        default=None, description="Requests a minute; a full minute's worth may come at once."
    )
    tokens_per_minute: Count | None = Field(
        default=None,
        description="Prompt and answer tokens a minute. A call reserves its prompt and "
        "`max_tokens`, and gets back what it did not use.",
    )
    concurrent_requests: Count | None = Field(
        default=None,
        description="Calls in flight at once; one more is refused (429), never queued.",
    )
    budget: Budget | None = Field(
        default=None, description="Money: 429 `budget_exceeded` once spent."
    )

    def compiled(self) -> limits.Limits:
        """The same, as the rules of `core.limits` take it."""
        return limits.Limits(
            self.requests_per_minute,
            self.tokens_per_minute,
            self.concurrent_requests,
            limits.Budget(self.budget.usd, self.budget.per) if self.budget else None,
        )


class Admin(Model):
    listen: ListenAddress = Field(
        default_factory=lambda: Address("127.0.0.1", 8081, "127.0.0.1:8081"),
        description="HOST:PORT of metrics, health, key management and the console.",
    )
    token: SecretText | None = Field(
        default=None,
        description="Bearer token the admin listener asks for. Needed when it is not on loopback: "
        "whoever reaches it can make keys.",
    )


class AuthKey(Model):
    name: Text = Field(description="Shown in logs and in the ledger; unique.")
    key: SecretText = Field(
        description="`pk_live_` or `pk_test_` and at least 32 letters and digits "
        "(`lunar-proxy keys create` makes one)."
    )
    models: tuple[Text, ...] = Field(
        default=(), description="Globs of models it may ask for; empty: all."
    )
    limits: Limits | None = Field(
        default=None, description="Limits of this key; null: the default ones."
    )


# "none" is missing on purpose: it is an unsigned token (RFC 8725 3.2).
Algorithm = Literal[
    "RS256",
    "RS384",
    "RS512",
    "PS256",
    "PS384",
    "PS512",
    "ES256",
    "ES384",
    "ES512",
    "EdDSA",
    "HS256",
]


class Jwt(Model):
    issuer: Text | None = Field(default=None, description="Required `iss` of the token; null: any.")
    audience: Text | None = Field(default=None, description="Required `aud`; null: not checked.")
    jwks_url: WebUrl | None = Field(
        default=None,
        description="Where the issuer publishes its keys; use https outside a trusted network.",
    )
    public_key_file: FilePath | None = Field(
        default=None, description="PEM public key, instead of a URL."
    )
    secret: SecretText | None = Field(
        default=None,
        description="Shared secret, for HS256 only. Whoever holds it can make tokens; use 32 bytes "
        "or more (RFC 7518 3.2).",
    )
    algorithms: tuple[Algorithm, ...] = Field(
        default=("RS256",),
        min_length=1,
        description="Signatures that are accepted; with `secret` it is HS256 and nothing else.",
    )
    name_claim: Text = Field(default="sub", description="Claim that names the caller.")
    models_claim: Text | None = Field(
        default=None, description="Claim that lists allowed model globs."
    )
    limits_claim: Text | None = Field(
        default=None, description="Claim with limits, in the shape of `limits`."
    )
    leeway_s: Wait = Field(
        default=30.0, le=600, description="Clock difference allowed for `exp`, `nbf`."
    )

    @model_validator(mode="before")
    @classmethod
    def _secret_means_hs256(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("secret") and "algorithms" not in data:
            return {**data, "algorithms": ["HS256"]}
        return data


class Auth(Model):
    required: bool = Field(
        default=False,
        description="Every call needs a key or a JWT. False is refused when `listen` is not on "
        "loopback: anybody could spend your provider keys.",
    )
    insecure: bool = Field(
        default=False, description="Allow `required: false` off loopback. For closed networks only."
    )
    keys: tuple[AuthKey, ...] = Field(
        default=(), description="Keys besides those kept in the store."
    )
    jwt: Jwt | None = Field(default=None, description="Accept tokens of an identity provider.")


class ModelPrice(Model):
    input_per_million: Price = Field(description="USD per million prompt tokens.")
    output_per_million: Price = Field(description="USD per million answer tokens.")
    cache_input_per_million: Price | None = Field(
        default=None,
        description="USD per million cached prompt tokens; null: as `input_per_million`.",
    )


class Timeouts(Model):
    connect_s: Seconds = Field(default=5.0, description="Connecting to a provider, TLS included.")
    first_token_s: Seconds = Field(
        default=60.0,
        description="Waiting for the first content; silence moves on to the next target.",
    )
    idle_s: Seconds = Field(default=30.0, description="Silence inside a stream that has begun.")
    total_s: Seconds = Field(
        default=600.0, description="The whole call, retries and fallbacks included."
    )


class TimeoutOverrides(Model):
    connect_s: Seconds | None = Field(default=None, description="Instead of `timeouts.connect_s`.")
    first_token_s: Seconds | None = Field(
        default=None, description="Instead of `timeouts.first_token_s`."
    )
    idle_s: Seconds | None = Field(default=None, description="Instead of `timeouts.idle_s`.")
    total_s: Seconds | None = Field(default=None, description="Instead of `timeouts.total_s`.")


_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 5.1: token
_FRAMING = ("connection", "content-length", "host", "transfer-encoding")


def _header_names(headers: Mapping[str, Secret]) -> Mapping[str, Secret]:
    for name in headers:
        if not _HEADER_NAME.fullmatch(name):
            raise ValueError("a header name holds a character that is not allowed in one")
        if name.lower() in _FRAMING:
            raise ValueError(f"{name.lower()} is set by the proxy itself")
    return headers


ExtraHeaders = Annotated[Mapping[str, SecretText], AfterValidator(_header_names), DictOf]


Completions = Literal["native", "chat"]


class Provider(Model):
    dialect: Text | None = Field(
        default=None,
        description="What it speaks: openai or azure; null: the built-in's own, else openai.",
    )
    base_url: BaseUrl | None = Field(
        default=None,
        description="Where it is, version path included. Built-in providers know theirs.",
    )
    api_key: SecretText | None = Field(
        default=None,
        description="Null: from the environment (`ID_API_KEY`). Empty: the provider is off.",
    )
    api_keys: tuple[SecretText, ...] | None = Field(
        default=None,
        description="Several keys instead of `api_key`. One that is refused (401, 402, 403) rests "
        "for `breaker.open_s`, one without quota (429) for as long as the provider says; "
        "meanwhile the next ones come first.",
    )
    models: tuple[Text, ...] | None = Field(
        default=None,
        description="Globs of models it serves; null: whatever is asked of it with its prefix.",
    )
    prices: Annotated[Mapping[Text, ModelPrice], DictOf] = Field(
        default_factory=dict, description="Prices by model id, before those of the price table."
    )
    completions: Completions | None = Field(
        default=None,
        description="What serves the legacy /v1/completions: `native`, its own; `chat`, its chat, "
        "with prompt and answer translated. Null: the built-in's own, else native.",
    )
    api_version: Text | None = Field(
        default=None, description="Azure's `api-version`; azure needs it."
    )
    region: Text | None = Field(
        default=None, description="Cloud region, for dialects that have one."
    )
    headers: ExtraHeaders = Field(
        default_factory=dict, description="Headers added to every request; masked as secrets are."
    )
    timeouts: TimeoutOverrides = Field(
        default=TimeoutOverrides(), description="Timeouts of this provider alone."
    )


class Deployment(Model):
    base_url: BaseUrl = Field(description="Where the server is, version path included.")
    model: Text = Field(description="The model id the server itself uses.")
    dialect: Text = Field(default="openai", description="What it speaks: openai or azure.")
    api_key: SecretText | None = Field(
        default=None, description="Null or empty: the server asks for none."
    )
    api_version: Text | None = Field(default=None, description="Azure's `api-version`.")
    completions: Completions = Field(
        default="native",
        description="What serves the legacy /v1/completions: `native` or `chat`, as above.",
    )
    cost_per_hour: Price | None = Field(
        default=None, description="USD an hour; a call costs its share of time. Excludes `price`."
    )
    price: ModelPrice | None = Field(
        default=None, description="USD by token, instead of by the hour."
    )
    headers: ExtraHeaders = Field(
        default_factory=dict, description="Headers added to every request; masked as secrets are."
    )
    timeouts: TimeoutOverrides = Field(
        default=TimeoutOverrides(), description="Timeouts of this deployment alone."
    )


class AliasTarget(Model):
    target: Text = Field(description="PROVIDER/MODEL, lunar/DEPLOYMENT, a model id or a name here.")
    weight: Annotated[float, NotBool, Field(ge=0, le=10**6, allow_inf_nan=False)] = Field(
        default=1.0,
        description="Share of the calls under `strategy: weighted`; 0: only as a fallback.",
    )

    @model_validator(mode="before")
    @classmethod
    def _bare_name(cls, data: Any) -> Any:
        return {"target": data} if isinstance(data, str) else data


Strategy = Literal["order", "weighted", "cheapest", "fastest", "healthy", "router"]


class Alias(Model):
    targets: tuple[AliasTarget, ...] = Field(
        min_length=1, description="Where a call may go: text, or `{target, weight}`."
    )
    strategy: Strategy = Field(
        default="order",
        description="Which target comes first; the others are its fallbacks. `order`: as written; "
        "`weighted`: by lot; `cheapest`: by price; `fastest`: by measured time to first token; "
        "`healthy`: by measured errors; `router`: by what the prompt needs.",
    )


class Retries(Model):
    attempts: Annotated[int, NotBool, Field(ge=1, le=10)] = Field(
        default=2, description="Tries on one target, the first included. Each may be billed."
    )
    backoff_s: Wait = Field(
        default=0.5, description="Wait before the second try; doubled for each more."
    )
    max_backoff_s: Wait = Field(default=8.0, description="Longest of those waits.")
    retry_after_cap_s: Wait = Field(
        default=60.0, description="Longest `Retry-After` waited for; a longer one moves on."
    )


class Breaker(Model):
    failures: Annotated[int, NotBool, Field(ge=1, le=10**6)] = Field(
        default=5, description="Failures within `window_s` that take a target out."
    )
    window_s: Seconds = Field(default=30.0, description="How long a failure counts.")
    open_s: Seconds = Field(
        default=15.0, description="How long it stays out before one call probes it."
    )


class Hedge(Model):
    enabled: bool = Field(
        default=False, description="Ask a second target when the first is slow. Both may be billed."
    )
    after_s: Seconds | None = Field(
        default=None, description="How slow; null: slower than 95 % of that target's first tokens."
    )


class Router(Model):
    profiles: FilePath | None = Field(
        default=None,
        description="Directory of model profiles; null: those that ship with the package.",
    )
    default_cost_weight: Annotated[float, NotBool, Field(ge=0, le=100, allow_inf_nan=False)] = (
        Field(default=0.0, description="0 ignores cost, 1 all but takes the cheapest.")
    )
    deadline_ms: Annotated[float, NotBool, Field(gt=0, le=60_000, allow_inf_nan=False)] = Field(
        default=50.0,
        description="Longest time to decide; after it `default_model`, or the first target.",
    )
    cost_scale: Literal["normalized", "usd"] = Field(
        default="normalized", description="`usd`: the cost term is raw USD per 1000 tokens."
    )
    embedder: Text = Field(
        default="minilm",
        description="`minilm`, `static` (needs no onnxruntime; stands in where `minilm` cannot be "
        "loaded), or a directory with model.onnx or table.npz, tokenizer.json and embedder.json.",
    )
    default_model: Text | None = Field(
        default=None, description="Model when the router cannot decide."
    )
    feedback: FileOrBool = Field(
        default=False,
        description="Learn from scores of answers; a path also keeps them over a restart.",
    )


class Intercept(Model):
    enabled: bool = Field(
        default=False,
        description="Open HTTPS to known providers (HTTPS_PROXY). Needs a CA: `lunar-proxy ca "
        "init`. Who has its key can read the traffic of every client that trusts it.",
    )
    ca_dir: FilePath = Field(
        default=Path("~/.lunar-proxy/ca"), description="Where the CA certificate and key are."
    )
    hosts: tuple[InterceptHostText, ...] = Field(
        default=(),
        description="Hosts to open besides the providers' own: HOST or HOST=PROVIDER, or *.NAME.",
    )
    tunnel: Tunnel = Field(
        default=("*",),
        description="Other hosts: `all` are tunnelled unread, `none`, or a list of host globs.",
    )


class Otel(Model):
    endpoint: None = Field(default=None, description="Traces are not supported yet: null only.")


class Logging(Model):
    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info",
        description="Least severity that is written. No level writes prompts or secrets.",
    )
    format: Literal["json", "text"] = Field(
        default="json", description="One line a call either way."
    )


Targets = Annotated[tuple[Text, ...], Field(min_length=1, max_length=5)]


class Config(Model):
    listen: ListenAddress = Field(
        default_factory=lambda: Address("127.0.0.1", 8080, "127.0.0.1:8080"),
        description="HOST:PORT clients call; port 0: any free one.",
    )
    admin: Admin = Field(default=Admin(), description="The listener for operators.")
    workers: Annotated[int, NotBool, Field(ge=1, le=256)] = Field(
        default=1, description="Processes. More than one needs a store they share for limits."
    )
    drain_s: Wait = Field(
        default=30.0, description="Time running streams get to finish on SIGTERM."
    )
    max_body_mb: Annotated[float, NotBool, Field(gt=0, le=4096, allow_inf_nan=False)] = Field(
        default=64.0,
        description="Largest request body, in units of 1024 * 1024 bytes; larger: 413.",
    )
    store: StoreUrl = Field(
        default=Store("memory", "memory"),
        description="Keys, limits and ledger: `memory` (gone at exit), `sqlite:PATH`, or "
        "`redis://HOST:PORT/DB` (`rediss://` for TLS).",
    )
    auth: Auth = Field(default=Auth(), description="Who may call.")
    limits: Limits = Field(
        default=Limits(), description="For every key and, without auth, for every client address."
    )
    providers: Annotated[Mapping[Text, Provider], DictOf] = Field(
        default_factory=dict,
        description="By id, besides the built-in ones whose key is in the environment.",
    )
    deployments: Annotated[Mapping[Text, Deployment], DictOf] = Field(
        default_factory=dict, description="Own servers, called as lunar/NAME or pureai/NAME."
    )
    models: Annotated[Mapping[Text, Alias], DictOf] = Field(
        default_factory=dict, description="Names a client may ask for, and what they stand for."
    )
    fallbacks: Annotated[Mapping[Text, Targets], DictOf] = Field(
        default_factory=dict,
        description="Model, or glob of models -> up to 5 targets tried after it.",
    )
    retries: Retries = Field(default=Retries(), description="Another try on the same target.")
    breaker: Breaker = Field(default=Breaker(), description="Leaving a failing target alone.")
    timeouts: Timeouts = Field(
        default=Timeouts(), description="How long to wait, for every provider."
    )
    hedge: Hedge = Field(default=Hedge(), description="Racing a slow target.")
    stream_recovery: Literal["error", "splice"] = Field(
        default="error",
        description="A stream cut after it began: end it with an error, or go on from another "
        "target as long as its text is the same.",
    )
    annotate: Annotate = Field(
        default=Annotate.FULL,
        description="What answers gain: `full` cost and timing in `usage`, `headers`, or `off`. "
        "Intercepted calls get `headers` unless this is set.",
    )
    router: Router = Field(default=Router(), description="Choosing a model by prompt (`auto`).")
    intercept: Intercept = Field(
        default_factory=lambda: Intercept(),
        description="Being an HTTPS proxy that can look inside.",
    )
    upstream_ca: FilePath | None = Field(
        default=None, description="PEM bundle of CAs trusted for providers, besides the system's."
    )
    upstream_proxy: ProxyUrl | None = Field(
        default=None, description="http://HOST:PORT through which providers are reached."
    )
    otel: Otel = Field(default=Otel(), description="OpenTelemetry export.")
    logging: Logging = Field(default=Logging(), description="The log on stderr.")
    demo: bool = Field(
        default=False,
        description="Add the provider `demo`, which answers in-process (`serve --demo`).",
    )

    @property
    def intercept_annotate(self) -> Annotate:
        """An intercepted application does not know of us, so its bodies stay as they are."""
        return self.annotate if "annotate" in self.model_fields_set else Annotate.HEADERS
