"""A wrong config is refused with file, line, path and reason: a table of YAML -> lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from lunar_proxy.config import ConfigError, load

KEY = "pk_test_" + "a" * 32
ENVIRON = {"SET": "value", "EMPTY": "", "PORT": "8080", "KEY": KEY, "HOME": "/home/op"}


def errors(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "lunar.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as raised:
        load(path, ENVIRON)
    lines = str(raised.value).split("\n")
    assert lines == list(raised.value.lines)
    return [line.removeprefix(f"{path}:") for line in lines]


SHAPES = {
    "unknown key": (
        "providers:\n  openai:\n    api_kee: x\n",
        ["3: providers.openai.api_kee: unknown key, did you mean api_key?"],
    ),
    "unknown key at the top": ("lisen: x\n", ["1: lisen: unknown key, did you mean listen?"]),
    "unknown key unlike any": ("zzz: 1\n", ["1: zzz: unknown key"]),
    "unknown key in a list": (
        "models:\n  a:\n    targets:\n    - {target: x, wight: 2}\n",
        ["4: models.a.targets[0].wight: unknown key, did you mean weight?"],
    ),
    "not there yet": (
        "otel: {endpoint: http://x}\n",
        ["1: otel.endpoint: is not supported yet"],
    ),
    "a name of another gateway": (
        "providers: {x: {base_url: 'http://x/v1', api_base: y}}\n",
        ["1: providers.x.api_base: unknown key, did you mean base_url?"],
    ),
    "all of them, in order": (
        "workers: 0\nretries: {attempts: 0,\n  backof_s: 1}\nannotate: lots\n",
        [
            "1: workers: must be at least 1",
            "2: retries.attempts: must be at least 1",
            "3: retries.backof_s: unknown key, did you mean backoff_s?",
            "4: annotate: must be 'full', 'headers' or 'off'",
        ],
    ),
    "both of a wrong shape and a wrong sense": (
        "drain_s: -1\nlisten: 0.0.0.0:80\n",
        [
            "1: drain_s: must be at least 0",
            "2: auth.required: must be true when listen is not on loopback, or anybody could "
            "spend your keys (insecure: true if that is meant)",
        ],
    ),
    "truth for a number": ("workers: true\n", ["1: workers: must be a number"]),
    "text for a number": ("drain_s: soon\n", ["1: drain_s: must be a number"]),
    "half a worker": ("workers: 1.5\n", ["1: workers: must be a whole number"]),
    "too many": ("workers: 1000\n", ["1: workers: must be at most 256"]),
    "number for text": (
        "models: {a: {targets: [x], strategy: 3}}\n",
        [
            "1: models.a.strategy: must be 'order', 'weighted', 'cheapest', 'fastest', "
            "'healthy' or 'router'"
        ],
    ),
    "list for a section": (
        "retries: [1]\n",
        ["1: retries: must be a mapping (lines of `key: value`)"],
    ),
    "text for a list": ("auth: {keys: x}\n", ["1: auth.keys: must be a list"]),
    "text for a truth": ("hedge: {enabled: sure}\n", ["1: hedge.enabled: must be true or false"]),
    "required": (
        "deployments:\n  bot: {model: m}\n",
        ["2: deployments.bot.base_url: is required"],
    ),
    "address": (
        "listen: 8080\n",
        ["1: listen: must be HOST:PORT, such as 127.0.0.1:8080 or [::1]:8080"],
    ),
    "port": (
        "listen: 127.0.0.1:65536\n",
        ["1: listen: the port must be 0 to 65535 (0: any free one)"],
    ),
    "store": (
        "store: mysql://x\n",
        ["1: store: must be memory, sqlite:PATH or redis://HOST:PORT/DB"],
    ),
    "redis database": (
        "store: redis://h:1/x\n",
        ["1: store: the part after the host must be a database number, such as /0"],
    ),
    "six fallbacks": (
        "fallbacks: {a: [b, c, d, e, f, g]}\n",
        ["1: fallbacks.a: must have at most 5 entries"],
    ),
    "no fallback": ("fallbacks: {a: []}\n", ["1: fallbacks.a: must have at least 1 entry"]),
    "infinity": (
        "timeouts: {idle_s: .inf, total_s: 1e999}\n",
        [
            "1: timeouts.idle_s: must be a number",
            "1: timeouts.total_s: must be at most 86400",
        ],
    ),
    "base_url without scheme": (
        "providers: {x: {base_url: 10.0.0.5/v1}}\n",
        ["1: providers.x.base_url: must start with http:// or https://"],
    ),
    "base_url with a query": (
        "providers: {x: {base_url: 'http://h/v1?a=b'}}\n",
        ["1: providers.x.base_url: must end with its path; no ? or #"],
    ),
    "framing header": (
        "providers: {openai: {headers: {Content-Length: '3'}}}\n",
        ["1: providers.openai.headers: content-length is set by the proxy itself"],
    ),
    "header name": (
        "providers: {openai: {headers: {'a b': '3'}}}\n",
        ["1: providers.openai.headers: a header name holds a character that is not allowed in one"],
    ),
    "header value": (
        'providers:\n  openai: {headers: {a: "x\\r\\ny: z"}}\n',
        [
            "2: providers.openai.headers.a: "
            "holds a character that no header can carry (a line break, say)"
        ],
    ),
    "tunnel": (
        "intercept: {tunnel: some}\n",
        ["1: intercept.tunnel: must be all, none or a list of host globs"],
    ),
    "host with port": (
        "intercept: {hosts: ['a:443']}\n",
        ["1: intercept.hosts[0]: must be HOST or HOST=PROVIDER (HOST: a name, *.NAME or address)"],
    ),
    "key that is not a word": (
        'fallbacks:\n  "gpt-4.1": []\n',
        ['2: fallbacks["gpt-4.1"]: must have at least 1 entry'],
    ),
}

SYNTAX = {
    "a list": ("- a\n", ["1: config: must be a mapping (lines of `key: value`)"]),
    "a tab": (
        "auth:\n\trequired: true\n",
        ["2: config: is not valid YAML: a tab; YAML is indented with spaces"],
    ),
    "an open bracket": (
        "workers: 1\nauth: {required: true\n",
        [
            "3: config: is not valid YAML: "
            "a missing `,` or bracket; inside {...} and [...] put ${NAME} in quotes"
        ],
    ),
    "an unquoted variable in brackets": (
        "admin: {token: ${SET}}\n",
        [
            "1: config: is not valid YAML: "
            "a missing `,` or bracket; inside {...} and [...] put ${NAME} in quotes"
        ],
    ),
    "two documents": (
        "workers: 1\n---\nworkers: 2\n",
        ["2: config: is not valid YAML: a second document; a config is one"],
    ),
    "a control character": (
        "workers: 1\nstore: a\x07\n",
        ["2: config: a control character, which YAML does not allow"],
    ),
    "twice the same key": (
        "workers: 1\nworkers: 2\n",
        ["2: workers: stands twice in the same mapping"],
    ),
    "a key that is a list": ("? [a]\n: 1\n", ["1: config: has a key that is not plain text"]),
    "a foreign tag": (
        "store: !!python/name:os.system x\n",
        ["1: store: has a YAML tag that is not supported"],
    ),
    "an alias in itself": (
        "models: &m\n  a: *m\n",
        ["1: config: an alias stands inside what it is an alias of"],
    ),
    "a deep nest": ("a: " + "[" * 60 + "]" * 60, ["1: config: is nested too deeply"]),
    "a very deep nest": ("[" * 2000, ["1: config: is nested too deeply"]),
    "an escape out of range": (
        'a: "\\U00110000"\n',
        ["1: config: is not valid YAML: a \\U escape out of range"],
    ),
    "half a character": (
        'store: "\\ud800"\n',
        ["1: store: holds a character that is not Unicode text"],
    ),
    "a merge of text": ("auth:\n  <<: x\n", ["2: auth: has a << that does not merge a mapping"]),
}

VARIABLES = {
    "unset": ("store: ${NOPE}\n", ["1: store: environment variable NOPE is not set"]),
    "unset twice": (
        'listen: "${HOST}:${PORT2}"\n',
        [
            "1: listen: environment variable HOST is not set",
            "1: listen: environment variable PORT2 is not set",
        ],
    ),
    "unset in a list": (
        "providers:\n  openai:\n    api_keys:\n      - a\n      - ${NOPE}\n",
        ["5: providers.openai.api_keys[1]: environment variable NOPE is not set"],
    ),
    "malformed": ("store: ${1x}\n", ["1: store: has a ${ that is not ${NAME} or ${NAME:-default}"]),
    "of the wrong type": ("workers: ${SET}\n", ["1: workers: must be a whole number"]),
}

REFERENCES = {
    "feedback of many": (
        "workers: 2\nstore: sqlite:x.db\nrouter: {feedback: true}\n",
        [
            "3: router.feedback: is kept by each worker alone, so they would decide differently; "
            "use workers: 1"
        ],
    ),
    "feedback of a wrong type": (
        "router: {feedback: 3}\n",
        ["1: router.feedback: must be true, false or a path"],
    ),
    "auto as a target": (
        "models:\n  a:\n    targets: [auto, demo/echo]\ndemo: true\n",
        [
            "3: models.a.targets[0]: "
            "auto is for clients to ask for; use an alias with strategy: router"
        ],
    ),
    "unknown provider": (
        "models:\n  a:\n    targets:\n      - opnai/gpt-4o\n",
        ["4: models.a.targets[0]: no such provider, did you mean openai?"],
    ),
    "unknown own provider": (
        "providers: {my-vllm: {base_url: 'http://h/v1'}}\nfallbacks: {x: [my-vlm/m]}\n",
        ["2: fallbacks.x[0]: no such provider, did you mean my-vllm?"],
    ),
    "unknown deployment": (
        "deployments: {bot: {base_url: 'http://h', model: m}}\nfallbacks: {x: [lunar/bto]}\n",
        ["2: fallbacks.x[0]: no such deployment, did you mean bot?"],
    ),
    "key of fallbacks": (
        "fallbacks: {grok/x: [openai/y]}\n",
        ['1: fallbacks["grok/x"]: no such provider, did you mean groq?'],
    ),
    "default model": (
        "router: {default_model: nobody/x}\n",
        ["1: router.default_model: no such provider"],
    ),
    "demo without demo": (
        "fallbacks: {x: [demo/echo]}\n",
        ["1: fallbacks.x[0]: demo is there only with --demo"],
    ),
    "a glob as target": (
        "fallbacks: {x: [openai/*]}\n",
        ["1: fallbacks.x[0]: must name one model; a glob can only be called by its left side"],
    ),
    "no model": (
        "fallbacks: {x: [openai/]}\n",
        ["1: fallbacks.x[0]: has no model after the slash"],
    ),
    "itself": (
        "models: {gpt-4o: {targets: [gpt-4o]}}\n",
        ["1: models.gpt-4o.targets: refers to itself; name the provider, such as openai/gpt-4o"],
    ),
    "a circle": (
        "models:\n  a: {targets: [b]}\n  b: {targets: [openai/x, a]}\n  c: {targets: [a]}\n",
        [
            "2: models.a.targets: refers to itself through other names",
            "3: models.b.targets: refers to itself through other names",
        ],
    ),
    "the router's name": (
        "models: {auto: {targets: [x]}}\n",
        ["1: models.auto: auto is the router's name; choose another"],
    ),
    "no weight at all": (
        "models: {a: {strategy: weighted, targets: [{target: x, weight: 0}]}}\n",
        ["1: models.a.targets: needs a weight above 0"],
    ),
    "host of an unknown provider": (
        "intercept: {hosts: [llm.example=opnai]}\n",
        ["1: intercept.hosts[0]: no such provider, did you mean openai?"],
    ),
}

PROVIDERS = {
    "no base_url": (
        "providers:\n  opnai: {api_key: x}\n",
        [
            "2: providers.opnai.base_url: "
            "is required: this is not a built-in provider, did you mean openai?"
        ],
    ),
    "azure": (
        "providers:\n  azure: {api_key: x}\n",
        [
            "2: providers.azure.base_url: is required",
            "2: providers.azure.api_version: is required for azure",
        ],
    ),
    "azure dialect": (
        "providers: {eu: {dialect: azure, base_url: 'https://h'}}\n",
        ["1: providers.eu.api_version: is required for azure"],
    ),
    "bedrock": ("providers: {bedrock: }\n", ["1: providers.bedrock: bedrock is not supported yet"]),
    "dialect": (
        "providers: {x: {dialect: opanai, base_url: 'http://h'}}\n",
        ["1: providers.x.dialect: must be openai or azure, did you mean openai?"],
    ),
    "one key and several": (
        "providers: {openai: {api_key: a, api_keys: [b]}}\n",
        ["1: providers.openai.api_keys: excludes api_key; put every key in api_keys"],
    ),
    "a reserved id": (
        "providers: {lunar: {base_url: 'http://h'}}\n",
        ["1: providers.lunar: this id has a meaning of its own; choose another"],
    ),
    "an id with a slash": (
        "providers: {a/b: {base_url: 'http://h'}}\n",
        ["1: providers[\"a/b\"]: an id is letters, digits, '.', '_' and '-'"],
    ),
    "the proxy itself": (
        "listen: 127.0.0.1:8080\nproviders: {x: {base_url: 'http://localhost:8080/v1'}}\n",
        ["2: providers.x.base_url: is this proxy itself (listen)"],
    ),
    "dialect of a deployment": (
        "deployments: {d: {base_url: 'http://h', model: m, dialect: azrue}}\n",
        ["1: deployments.d.dialect: must be openai or azure, did you mean azure?"],
    ),
    "azure deployment": (
        "deployments: {d: {base_url: 'http://h', model: m, dialect: azure}}\n",
        ["1: deployments.d.api_version: is required for azure"],
    ),
    "no host": (
        "providers: {x: {base_url: 'http:///v1'}}\n",
        ["1: providers.x.base_url: has no host"],
    ),
    "port 0": (
        "providers: {x: {base_url: 'http://h:0/v1'}}\n",
        ["1: providers.x.base_url: has port 0, which nothing can listen on"],
    ),
    "a space in a URL": (
        "upstream_proxy: 'http://h h:1'\n",
        ["1: upstream_proxy: holds a character that has to be percent-encoded"],
    ),
    "an upstream proxy with a path": (
        "upstream_proxy: http://h:1/x\n",
        ["1: upstream_proxy: must be http://HOST:PORT"],
    ),
    "no path": ("intercept: {ca_dir: ''}\n", ["1: intercept.ca_dir: must be a path"]),
    "a number as secret": (
        "admin: {token: 12345}\n",
        ["1: admin.token: must be text; put it in quotes"],
    ),
    "deployment by hour and by token": (
        "deployments: {d: {base_url: 'http://h', model: m, cost_per_hour: 1,\n"
        "  price: {input_per_million: 1, output_per_million: 1}}}\n",
        ["1: deployments.d.cost_per_hour: excludes price"],
    ),
}

SAFETY = {
    "admin off loopback": (
        "admin: {listen: '[::]:8081'}\n",
        ["1: admin.token: is required when admin.listen is not on loopback"],
    ),
    "admin off loopback with an empty token": (
        'admin:\n  listen: 0.0.0.0:8081\n  token: "${EMPTY:-}"\n',
        ["3: admin.token: is required when admin.listen is not on loopback"],
    ),
    "one address for both": (
        "listen: 127.0.0.1:8081\n",
        ["1: admin.listen: is the same address as listen"],
    ),
    "an empty key": (
        'auth: {keys: [{name: a, key: "${EMPTY}"}]}\n',
        ["1: auth.keys[0].key: is empty"],
    ),
    "a weak key": (
        "auth: {keys: [{name: a, key: pk_live_short}]}\n",
        [
            "1: auth.keys[0].key: must be pk_live_ or pk_test_ and at least 32 letters and "
            "digits; `lunar-proxy keys create` makes one"
        ],
    ),
    "twins": (
        'auth:\n  keys:\n  - {name: a, key: "${KEY}"}\n  - {name: a, key: "${KEY}"}\n',
        [
            "4: auth.keys[1].key: is the key of another entry too",
            "4: auth.keys[1].name: is the name of another entry too",
        ],
    ),
    "jwt without a key": (
        "auth: {jwt: {issuer: x}}\n",
        ["1: auth.jwt: needs one of jwks_url, public_key_file and secret"],
    ),
    "jwt with two": (
        "auth: {jwt: {secret: x, jwks_url: 'https://h'}}\n",
        ["1: auth.jwt: needs one of jwks_url, public_key_file and secret"],
    ),
    "jwt with an empty secret": (
        'auth: {jwt: {secret: "${EMPTY}"}}\n',
        [
            "1: auth.jwt.secret: is empty, so anybody could sign",
            "1: auth.jwt.algorithms: must be HS256 alone with secret",
        ],
    ),
    "rs with a secret": (
        "auth: {jwt: {secret: x, algorithms: [HS256, RS256]}}\n",
        ["1: auth.jwt.algorithms: must be HS256 alone with secret"],
    ),
    "hs without a secret": (
        "auth: {jwt: {jwks_url: 'https://h', algorithms: [RS256, HS256]}}\n",
        ["1: auth.jwt.algorithms: HS256 needs secret; a public key would be the secret otherwise"],
    ),
    "a key file that is not there": (
        "auth: {jwt: {public_key_file: /nowhere/key.pem}}\n",
        ["1: auth.jwt.public_key_file: no such file"],
    ),
    "a ca file that is not there": (
        "upstream_ca: /nowhere/ca.pem\n",
        ["1: upstream_ca: no such file"],
    ),
    "a backoff above its longest": (
        "retries: {backoff_s: 9, max_backoff_s: 8}\n",
        ["1: retries.max_backoff_s: is less than backoff_s"],
    ),
}

TABLE = {
    f"{table}: {name}": case
    for table, cases in (
        ("shape", SHAPES),
        ("syntax", SYNTAX),
        ("variable", VARIABLES),
        ("reference", REFERENCES),
        ("provider", PROVIDERS),
        ("safety", SAFETY),
    )
    for name, case in cases.items()
}


@pytest.mark.parametrize(("text", "expected"), TABLE.values(), ids=TABLE.keys())
def test_names_line_path_and_reason(tmp_path: Path, text: str, expected: list[str]) -> None:
    assert errors(tmp_path, text) == expected


def test_unsigned_tokens_are_never_an_option(tmp_path: Path) -> None:
    (line,) = errors(tmp_path, "auth: {jwt: {jwks_url: 'https://h', algorithms: [none]}}\n")
    assert line.startswith("1: auth.jwt.algorithms[0]: must be 'RS256', ")


@pytest.mark.parametrize(
    "limited",
    [
        "limits: {requests_per_minute: 1}",
        "limits: {budget: {usd: 1}}",
        'auth: {keys: [{name: a, key: "${KEY}", limits: {concurrent_requests: 1}}]}',
        "auth: {jwt: {jwks_url: 'https://h', limits_claim: limits}}",
    ],
)
def test_workers_cannot_keep_limits_in_their_own_memory(tmp_path: Path, limited: str) -> None:
    path = tmp_path / "lunar.yaml"
    (line,) = errors(tmp_path, f"workers: 2\n{limited}\n")
    assert line.startswith("1: store: memory is not shared between workers")

    path.write_text(f"workers: 2\nstore: sqlite:{tmp_path}/x.db\n{limited}\n")
    assert load(path, ENVIRON).workers == 2


def test_aliases_that_multiply_are_refused(tmp_path: Path) -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)
    )
    assert errors(tmp_path, bomb) == ["1: config: has more than 50000 values"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "1: file: cannot be read: No such file or directory"),
        (b"workers: 1\nstore: \xff\n", "2: file: is not UTF-8 text"),
        (b"#" * (4 * 1024 * 1024 + 1), "1: file: is larger than 4194304 bytes"),
    ],
)
def test_a_file_that_cannot_be_read(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "lunar.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as raised:
        load(path, {})
    assert str(raised.value) == f"{path}:{reason}"


def test_a_directory_is_no_config(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r": file: cannot be read: Is a directory"):
        load(tmp_path, {})
