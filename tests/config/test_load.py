from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from lunar_proxy.config import Config, ConfigError, load, resolved
from lunar_proxy.config.docs import settings
from lunar_proxy.core import limits
from lunar_proxy.core.model import Annotate

SECRET = "planted-Sup3rSecret-9f8e7d6c5b4a"
LONG_KEY = "pk_live_" + "Zz9" * 11
ENVIRON = {
    "OPENAI_API_KEY": SECRET,
    "TEAM_A_KEY": LONG_KEY,
    "PORT": "9090",
    "EMPTY": "",
    "HOME": "/home/op",
}

# Every setting of the documentation's own example.
EVERYTHING = """
listen: 127.0.0.1:8080
admin: {listen: 127.0.0.1:8081, token: "${LUNAR_ADMIN_TOKEN:-}"}
workers: 1
drain_s: 30
max_body_mb: 64
store: memory
auth:
  required: false
  keys:
    - {name: team-a, key: "${TEAM_A_KEY}", models: ["openai/*", auto], limits: {}}
  jwt: {issuer: "...", audience: "...", jwks_url: "https://id.example/jwks", algorithms: [RS256]}
limits:
  requests_per_minute: 600
  tokens_per_minute: 200000
  concurrent_requests: 64
  budget: {usd: 50, per: month}
providers:
  openai: {api_key: "${OPENAI_API_KEY}"}
  my-vllm:
    dialect: openai
    base_url: http://10.0.0.5:8000/v1
    models: [llama-3-70b]
    prices: {llama-3-70b: {input_per_million: 0.5, output_per_million: 1.5}}
deployments:
  support-bot: {base_url: http://10.0.0.6:8000/v1, model: support-bot-v2, cost_per_hour: 2.4}
models:
  smart: {targets: [openai/gpt-4o, anthropic/claude-sonnet-4-5], strategy: order}
  spread: {targets: [{target: openai/gpt-4o, weight: 3}, azure/gpt-4o], strategy: weighted}
fallbacks: {gpt-4o: [anthropic/claude-sonnet-4-5, groq/llama-3.3-70b-versatile]}
retries: {attempts: 2, backoff_s: 0.5, max_backoff_s: 8, retry_after_cap_s: 60}
breaker: {failures: 5, window_s: 30, open_s: 15}
timeouts: {connect_s: 5, first_token_s: 60, idle_s: 30, total_s: 600}
hedge: {enabled: false, after_s: null}
stream_recovery: error
annotate: full
router: {profiles: profiles, default_cost_weight: 0.0, deadline_ms: 50}
intercept: {enabled: false, ca_dir: ca, hosts: [], tunnel: all}
upstream_ca: null
logging: {level: info, format: json}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "lunar.yaml"


def read(file: Path, text: str, **overrides: Any) -> Config:
    file.write_text(text)
    return load(file, ENVIRON, overrides=overrides)


def test_reads_every_section(file: Path) -> None:
    config = read(file, EVERYTHING)

    assert (config.listen.host, config.listen.port) == ("127.0.0.1", 8080)
    assert config.auth.keys[0].key.reveal() == LONG_KEY
    assert config.limits.budget is not None
    assert config.limits.budget.usd == Decimal(50)
    assert config.providers["my-vllm"].prices["llama-3-70b"].input_per_million == Decimal("0.5")
    assert config.deployments["support-bot"].cost_per_hour == Decimal("2.4")
    assert [(t.target, t.weight) for t in config.models["spread"].targets] == [
        ("openai/gpt-4o", 3),
        ("azure/gpt-4o", 1),
    ]
    assert config.fallbacks["gpt-4o"][0] == "anthropic/claude-sonnet-4-5"
    assert config.intercept.tunnel == ("*",)


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "limits:\nproviders:\nmodels:\n"])
def test_an_empty_file_or_section_is_the_defaults(file: Path, text: str) -> None:
    assert read(file, text) == load(None, ENVIRON)


def test_the_example_states_the_defaults(file: Path) -> None:
    """What the documentation shows as a value and not as an example is what is in force anyway."""
    written, default = resolved(read(file, EVERYTHING)), resolved(load(None, {}))
    same = ("retries", "breaker", "timeouts", "hedge", "annotate", "logging", "drain_s", "store")
    assert {key: written[key] for key in same} == {key: default[key] for key in same}


@pytest.mark.parametrize(
    ("text", "store"),
    [
        ("sqlite:${NAME:-x}.db", "sqlite:x.db"),
        ("'sqlite:${EMPTY:-x}.db'", "sqlite:x.db"),
        ("sqlite:$${PORT}", "sqlite:${PORT}"),
        ("sqlite:$PORT", "sqlite:$PORT"),
        ("sqlite:${PORT}-${PORT}", "sqlite:9090-9090"),
        ("sqlite:~/x.db", "sqlite:/home/op/x.db"),
        ("${STORE:-memory}", "memory"),
    ],
)
def test_expands_variables(file: Path, text: str, store: str) -> None:
    assert read(file, f"store: {text}\n").store.url == store


def test_a_variable_can_be_a_number_or_a_truth(file: Path) -> None:
    config = read(
        file,
        "listen: 127.0.0.1:${PORT}\ndrain_s: ${PORT}\nhedge: {enabled: '${ON:-true}', "
        "after_s: '${EMPTY}'}\n",
    )
    assert (config.listen.port, config.drain_s) == (9090, 9090.0)
    assert (config.hedge.enabled, config.hedge.after_s) == (True, None)


def test_a_variable_adds_no_structure(file: Path) -> None:
    file.write_text("store: ${EVIL}\n")
    with pytest.raises(ConfigError, match=r":1: store: must be memory"):
        load(file, {"EVIL": "memory\nworkers: 7"})


def test_words_that_older_yaml_takes_for_truths_stay_words(file: Path) -> None:
    config = read(file, "annotate: off\nhedge: {enabled: on}\nlogging: {level: 'info'}\n")
    assert (config.annotate, config.hedge.enabled) == (Annotate.OFF, True)


def test_anchors_and_merges(file: Path) -> None:
    config = read(
        file,
        """
providers:
  a: &base {base_url: http://a/v1, api_version: "1", region: x}
  b: {<<: *base, region: y}
  c: {<<: [{region: z}, *base]}
""",
    )
    assert [(p.base_url, p.region) for p in config.providers.values()] == [
        ("http://a/v1", "x"),
        ("http://a/v1", "y"),
        ("http://a/v1", "z"),
    ]


def test_a_model_id_with_a_slash_is_a_target_where_a_provider_lists_it(file: Path) -> None:
    config = read(
        file,
        "providers: {v: {base_url: 'http://h/v1', models: ['meta-llama/*']}}\n"
        "models: {a: {targets: [meta-llama/Llama-3, smart, b/c]}, b/c: {targets: [gpt-4o]}}\n",
    )
    assert set(config.models) == {"a", "b/c"}


@pytest.mark.parametrize("name", ["lunar/bot", "pureai/bot"])
def test_a_deployment_is_a_target(file: Path, name: str) -> None:
    text = f"deployments: {{bot: {{base_url: 'http://h', model: m}}}}\nfallbacks: {{x: [{name}]}}\n"
    assert read(file, text).fallbacks["x"] == (name,)


@pytest.mark.parametrize("guard", ["required: true", "insecure: true"])
def test_an_open_door_has_to_be_meant(file: Path, guard: str) -> None:
    assert not read(file, f"listen: 0.0.0.0:80\nauth: {{{guard}}}\n").listen.loopback


def test_a_jwt_secret_means_hs256(file: Path) -> None:
    config = read(file, "auth: {jwt: {secret: x}}\n")
    assert config.auth.jwt is not None
    assert config.auth.jwt.algorithms == ("HS256",)


def test_limits_become_those_of_the_core(file: Path) -> None:
    config = read(file, "limits: {tokens_per_minute: 5, budget: {usd: 0.1, per: day}}\n")
    budget = limits.Budget(Decimal("0.1"), "day")
    assert config.limits.compiled() == limits.Limits(tokens_per_minute=5, budget=budget)
    assert load(None, {}).limits.compiled().empty


def test_intercept_hosts_and_tunnel_print_as_they_were_written(file: Path) -> None:
    config = read(
        file,
        "intercept: {hosts: [LLM.example, '*.b.example=openai'], tunnel: ['*.ok.example']}\n",
    )
    assert [(h.host, h.provider) for h in config.intercept.hosts] == [
        ("llm.example", None),
        ("*.b.example", "openai"),
    ]
    shown = resolved(config)["intercept"]
    assert (shown["hosts"], shown["tunnel"]) == (
        ["llm.example", "*.b.example=openai"],
        ["*.ok.example"],
    )
    assert resolved(read(file, "intercept: {tunnel: none}\n"))["intercept"]["tunnel"] == "none"


def test_an_intercepted_call_keeps_its_body_unless_told(file: Path) -> None:
    assert read(file, "").intercept_annotate is Annotate.HEADERS
    assert read(file, "annotate: full\n").intercept_annotate is Annotate.FULL


def test_the_command_line_wins(file: Path) -> None:
    overrides = {"listen": "127.0.0.1:0", "admin.listen": "127.0.0.1:1", "store": None}
    config = read(file, "listen: 127.0.0.1:5\nadmin: {token: t}\n", **overrides)
    assert (config.listen.port, config.admin.listen.port) == (0, 1)
    assert config.admin.token
    assert config.store.kind == "memory"


def test_an_error_of_the_command_line_is_said_to_be_one(file: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        read(file, "workers: 0\n", **{"admin.listen": "here"})
    assert raised.value.lines == (
        "command line: admin.listen: must be HOST:PORT, such as 127.0.0.1:8080 or [::1]:8080",
        f"{file}:1: workers: must be at least 1",
    )


# --- secrets --------------------------------------------------------------------------------------

HOLDERS = {
    "admin.token": "admin: {token: SECRET}",
    "auth.jwt.secret": "auth: {jwt: {secret: SECRET}}",
    "providers.NAME.api_key": "providers: {openai: {api_key: SECRET}}",
    "providers.NAME.api_keys": "providers: {openai: {api_keys: [SECRET]}}",
    "providers.NAME.headers": "providers: {openai: {headers: {authorization: SECRET}}}",
    "deployments.NAME.api_key": (
        "deployments: {d: {base_url: 'http://h', model: m, api_key: SECRET}}"
    ),
    "deployments.NAME.headers": (
        "deployments: {d: {base_url: 'http://h', model: m, headers: {a: SECRET}}}"
    ),
    "store": "store: redis://:SECRET@127.0.0.1:6379/0",
    "upstream_proxy": "upstream_proxy: http://user:SECRET@127.0.0.1:3128",
}


def test_every_secret_setting_is_in_the_table_below() -> None:
    secret = {setting.path for setting in settings() if "secret" in setting.type}
    assert secret - {"auth.keys[].key"} <= set(HOLDERS)


@pytest.mark.parametrize("text", HOLDERS.values(), ids=HOLDERS.keys())
def test_a_secret_is_never_shown(file: Path, text: str) -> None:
    config = read(file, text.replace("SECRET", SECRET))
    for shown in (
        str(config),
        repr(config),
        repr(config.model_dump()),
        config.model_dump_json(),
        str(resolved(config)),
    ):
        assert SECRET not in shown
        assert "****" in shown


def test_a_long_secret_shows_its_last_four_a_short_one_nothing(file: Path) -> None:
    text = "providers: {openai: {api_key: sk-0123456789abWXYZ}, groq: {api_key: sk-WXYZ}}"
    providers = resolved(read(file, text))["providers"]
    assert providers["openai"]["api_key"] == "****WXYZ"
    assert providers["groq"]["api_key"] == "****"


def test_a_password_of_a_url_is_masked(file: Path) -> None:
    dump = resolved(read(file, "store: rediss://me:pw@db:6379/1\nupstream_proxy: http://u:p@h:1\n"))
    assert dump["store"] == "rediss://****@db:6379/1"
    assert dump["upstream_proxy"] == "http://****@h:1"


WRONG_PLACES = {
    "with a line break": 'admin: {token: "SECRET\\nSECRET"}',
    "in a setting that is a number": "workers: SECRET",
    "in a choice": "annotate: SECRET",
    "as a section": "auth: SECRET",
    "as an address": "listen: SECRET",
    "as a store": "store: SECRET",
    "as a target": "fallbacks: {x: [SECRET/y]}",
    "as a path": "upstream_ca: SECRET",
    "as a header of framing": "providers: {openai: {headers: {host: SECRET}}}",
    "as userinfo": "providers: {openai: {base_url: 'https://user:SECRET@h/v1'}}",
    "as a bad port": "store: redis://h:SECRET/0",
    "as a host": "intercept: {hosts: [x=SECRET]}",
    "as a dialect": "providers: {openai: {dialect: SECRET}}",
    "as a key that is weak": "auth: {keys: [{name: x, key: SECRET}]}",
    "as an anchor": "admin: {token: *SECRET}",
    "as a tag": "admin: {token: !SECRET x}",
    "in a broken quote": 'admin: {token: "SECRET}',
    "in a variable": "workers: ${OPENAI_API_KEY}",
}


@pytest.mark.parametrize("text", WRONG_PLACES.values(), ids=WRONG_PLACES.keys())
def test_an_error_never_repeats_what_was_written(file: Path, text: str) -> None:
    with pytest.raises(ConfigError) as raised:
        read(file, text.replace("SECRET", SECRET) + "\n")
    assert SECRET not in str(raised.value)
    assert raised.value.__context__ is None or SECRET not in repr(raised.value.__context__)


# --- anything at all ------------------------------------------------------------------------------

_NAMES = st.sampled_from(
    sorted({part for setting in settings() for part in setting.path.replace("[]", "").split(".")})
)
_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["${PORT}", "${NOPE}", "memory", "openai/x", "127.0.0.1:1", "http://h/v1"])
)
_TREES = st.recursive(
    _SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(_NAMES | st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=20,
)


def problems_of(path: Path, content: bytes) -> tuple[str, ...]:
    path.write_bytes(content)
    try:
        yaml.safe_dump(resolved(load(path, ENVIRON)))
    except ConfigError as error:
        return tuple(line.removeprefix(f"{path}:") for line in error.lines)
    return ()


@given(st.dictionaries(_NAMES, _TREES, max_size=4))
def test_any_tree_loads_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, tree: dict[str, Any]
) -> None:
    path = tmp_path_factory.getbasetemp() / "tree.yaml"
    assert all(line[0].isdigit() for line in problems_of(path, yaml.safe_dump(tree).encode()))


@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda t: t.encode("utf-8", "ignore")))
@example(b"&a [*a, {<<: *a}]")
@example(b"a: &a {<<: *a}")
@example(b"? ? a")
@example(b'"\\UFFFFFFFF"')
@example(b"%YAML 9.9\n---\na")
def test_any_bytes_load_or_are_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "bytes.yaml"
    assert all(line[0].isdigit() for line in problems_of(path, content))
