from __future__ import annotations

import configparser
from pathlib import Path
from typing import Any

import pytest
import yaml

from lunar_proxy.cli import main
from lunar_proxy.config import load

RECIPE = Path(__file__).parent.parent / "deploy" / "sidecar"


@pytest.fixture
def pod() -> Any:
    return list(yaml.safe_load_all((RECIPE / "pod.yaml").read_text()))


@pytest.fixture
def shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """What `ca show --env` tells a user to set."""
    main(["ca", "init", "--dir", str(tmp_path)])
    capsys.readouterr()
    main(["ca", "show", "--env", "--dir", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    pairs = (line.removeprefix("export ").split("  #")[0].partition("=") for line in lines)
    return {name: Path(value).name if "/" in value else value for name, _, value in pairs}


def test_both_configs_load_and_open_known_hosts(pod: Any, tmp_path: Path) -> None:
    (tmp_path / "pod.yaml").write_text(pod[0]["data"]["lunar.yaml"])
    for path in (tmp_path / "pod.yaml", RECIPE / "lunar.yaml"):
        config = load(path, {})
        assert config.intercept.enabled
        assert config.listen.loopback


def test_the_pod_sets_what_ca_show_says(pod: Any, shown: dict[str, str]) -> None:
    application = pod[1]["spec"]["containers"][0]
    given = {row["name"]: row["value"] for row in application["env"]}
    assert given.keys() == shown.keys()
    mounted = {mount["mountPath"] for mount in application["volumeMounts"]}
    for name, value in given.items():
        if value.endswith(".pem"):
            assert Path(value).name == shown[name]
            assert value in mounted


def test_the_application_of_the_pod_never_sees_the_key(pod: Any) -> None:
    application = pod[1]["spec"]["containers"][0]
    parts = [mount.get("subPath") for mount in application["volumeMounts"]]
    assert parts == ["ca.pem", "ca-bundle.pem"]


def test_the_service_sets_what_ca_show_says(shown: dict[str, str]) -> None:
    lines = (RECIPE / "application.conf").read_text().splitlines()
    prefix = "Environment="
    given = [line.removeprefix(prefix).partition("=") for line in lines if line.startswith(prefix)]
    files = {name: Path(value).name if "/" in value else value for name, _, value in given}
    assert files == shown


def test_the_unit_runs_the_commands_there_are() -> None:
    unit = configparser.RawConfigParser(strict=False)
    unit.read(RECIPE / "lunar-proxy.service")
    for command in ("ca bundle", "ca init"):
        with pytest.raises(SystemExit) as caught:
            main([*command.split(), "--help"])
        assert caught.value.code == 0
    assert "serve --config" in unit["Service"]["ExecStart"]
