from __future__ import annotations

from lunar_proxy.config.docs import markdown, settings


def test_every_setting_says_what_it_means() -> None:
    assert [setting.path for setting in settings() if not setting.doc] == []


def test_paths_types_and_defaults_are_those_a_user_writes() -> None:
    found = {setting.path: (setting.type, setting.default) for setting in settings()}
    expected = {
        "listen": ("HOST:PORT", "127.0.0.1:8080"),
        "drain_s": ("number", "30"),
        "store": ("store", "memory"),
        "auth.keys[].key": ("secret", "required"),
        "auth.jwt.algorithms": (found["auth.jwt.algorithms"][0], '["RS256"]'),
        "limits.budget.per": ("hour | day | month | total", "month"),
        "providers.NAME.prices.NAME.input_per_million": ("number", "required"),
        "providers.NAME.headers": ("name: secret", "{}"),
        "models.NAME.targets[].weight": ("number", "1"),
        "fallbacks": ("name: list of text", "{}"),
        "annotate": ("full | headers | off", "full"),
        "intercept.tunnel": ("list of text", "all"),
        "hedge.after_s": ("number", "null"),
        "retries": ("section", ""),
    }
    assert {path: found[path] for path in expected} == expected


def test_the_table_has_a_row_of_four_cells_for_each() -> None:
    rows = markdown().splitlines()[2:]
    assert len(rows) == len(settings())
    assert {row.replace("\\|", "").count("|") for row in rows} == {5}
