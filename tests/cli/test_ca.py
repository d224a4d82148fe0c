from __future__ import annotations

import ssl
import stat
import subprocess
from pathlib import Path

import pytest

from lunar_proxy.cli import main
from lunar_proxy.servers.certs import load_ca


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))


def ca(directory: Path, *args: str) -> int:
    command, *rest = args
    return main(["ca", command, "--dir", str(directory), *rest])


def test_init_makes_a_ca_for_the_built_in_providers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ca(tmp_path / "ca", "init") == 0
    made = load_ca(tmp_path / "ca")
    for host in ("api.openai.com", "api.anthropic.com", "acme.openai.azure.com", "localhost"):
        assert made.covers(host)
    assert not made.covers("example.org")
    assert made.fingerprint in capsys.readouterr().out
    assert stat.S_IMODE((tmp_path / "ca" / "ca-key.pem").stat().st_mode) == 0o600


def test_init_takes_hosts_and_directory_from_the_config(tmp_path: Path) -> None:
    config = tmp_path / "lunar.yaml"
    config.write_text(
        f"providers: {{mine: {{dialect: openai, base_url: 'https://llm.corp:8443/v1'}}}}\n"
        f"intercept: {{ca_dir: '{tmp_path}/ca', hosts: [other.corp, gpt.corp=mine]}}\n"
    )
    assert main(["ca", "init", "--config", str(config)]) == 0
    made = load_ca(tmp_path / "ca")
    for host in ("llm.corp", "other.corp", "gpt.corp", "api.openai.com"):
        assert made.covers(host)


def test_the_default_directory_is_below_home(tmp_path: Path) -> None:
    assert main(["ca", "init"]) == 0
    assert (tmp_path / ".lunar-proxy" / "ca" / "ca.pem").exists()


def test_init_adds_hosts_or_leaves_the_constraints_out(tmp_path: Path) -> None:
    assert ca(tmp_path / "a", "init", "--host", "*.corp.example", "--host", "10.0.0.9") == 0
    assert load_ca(tmp_path / "a").covers("x.corp.example")
    assert load_ca(tmp_path / "a").covers("10.0.0.9")
    assert ca(tmp_path / "b", "init", "--any-host") == 0
    assert load_ca(tmp_path / "b").permits is None
    assert ca(tmp_path / "c", "init", "--host", "https://x/") == 2


def test_init_replaces_only_by_force_and_keeps_when_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ca(tmp_path, "init", "--if-missing") == 0
    first = load_ca(tmp_path).fingerprint
    assert ca(tmp_path, "init") == 1
    assert "--force" in capsys.readouterr().err
    assert ca(tmp_path, "init", "--if-missing", "--host", "new.example") == 0
    assert "may not sign for new.example" in capsys.readouterr().out
    assert load_ca(tmp_path).fingerprint == first
    assert ca(tmp_path, "init", "--force") == 0
    assert load_ca(tmp_path).fingerprint != first


def test_show_prints_a_certificate_others_can_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ca(tmp_path, "init")
    capsys.readouterr()
    assert ca(tmp_path, "show") == 0
    out = capsys.readouterr().out
    assert len(ssl.create_default_context(cadata=out).get_ca_certs()) == 1
    assert load_ca(tmp_path).fingerprint in out
    assert "PRIVATE KEY" not in out
    (tmp_path / "copy.pem").write_text(out)
    check = ["openssl", "verify", "-CAfile", f"{tmp_path}/copy.pem", f"{tmp_path}/ca.pem"]
    assert subprocess.run(check, capture_output=True, check=False).returncode == 0
    assert ca(tmp_path, "show", "--pem") == 0
    assert capsys.readouterr().out == load_ca(tmp_path).pem


def test_the_shell_lines_are_for_eval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = tmp_path / "with a space"
    ca(directory, "init")
    capsys.readouterr()
    assert ca(directory, "show", "--env") == 0
    script = f'{capsys.readouterr().out}\nprintf "%s|" "$HTTPS_PROXY" "$SSL_CERT_FILE"'
    shown = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    assert shown.stdout == f"http://127.0.0.1:8080|{directory}/ca-bundle.pem|"


def test_show_without_a_ca_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ca(tmp_path, "show") == 1
    assert "ca init" in capsys.readouterr().err


def test_bundle_is_written_anew(tmp_path: Path) -> None:
    ca(tmp_path, "init")
    (tmp_path / "ca-bundle.pem").unlink()
    assert ca(tmp_path, "bundle") == 0
    assert (tmp_path / "ca-bundle.pem").read_text().endswith(load_ca(tmp_path).pem)


def test_a_bad_config_is_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.yaml").write_text("intercept: 7\n")
    assert main(["ca", "init", "--config", str(tmp_path / "bad.yaml")]) == 2
    assert "bad.yaml:1" in capsys.readouterr().err


def test_a_directory_that_cannot_be_made_is_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").touch()  # not a lack of rights: root has them all
    assert ca(tmp_path / "taken" / "ca", "init") == 1
    assert "taken" in capsys.readouterr().err
