"""Settings: defaults, parsing, and faults that name key and value."""

from __future__ import annotations

from pathlib import Path

import pytest
from starlette.types import Receive, Scope, Send

from gateway.settings import SECRETS, SettingFault, Settings, describe
from gateway.telemetry import tracing


def test_absent_and_empty_keys_keep_their_defaults() -> None:
    assert Settings.from_env({"HELIOGRAPH_PORT": " ", "PATH": "/bin"}) == Settings()


def test_values_are_parsed_by_the_type_of_their_field() -> None:
    settings = Settings.from_env(
        {
            "HELIOGRAPH_PORT": "0",
            "HELIOGRAPH_LOG_REQUESTS": "Yes",
            "HELIOGRAPH_RETENTION_SECONDS": "1.5",
            "HELIOGRAPH_CORS_ORIGINS": "https://a.example , https://b.example",
        }
    )
    assert settings.port == 0
    assert settings.log_requests is True
    assert settings.retention_seconds == 1.5
    assert settings.cors_origins == ("https://a.example", "https://b.example")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("HELIOGRAPH_PORT", "eighty"),
        ("HELIOGRAPH_PORT", "-1"),
        ("HELIOGRAPH_RETENTION_SECONDS", "nan"),
        ("HELIOGRAPH_LOG_REQUESTS", "maybe"),
        ("HELIOGRAPH_LOG_LEVEL", "chatty"),
        ("HELIOGRAPH_ABILITY_AUTH_FAILURE_STATUS", "500"),
    ],
)
def test_a_fault_names_key_and_value(key: str, value: str) -> None:
    with pytest.raises(SettingFault) as fault:
        Settings.from_env({key: value})
    assert key in str(fault.value)
    assert value in str(fault.value)


def test_an_unknown_exporter_of_traces_is_a_fault() -> None:
    pytest.importorskip("opentelemetry.instrumentation.asgi", reason="the extra otel is not installed")
    with pytest.raises(SettingFault, match="OTEL_TRACES_EXPORTER='zipkin'"):
        tracing({"OTEL_TRACES_EXPORTER": "zipkin"})


def test_without_the_usual_variables_nothing_is_traced() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError("not called")

    for env in ({}, {"OTEL_TRACES_EXPORTER": "none"}, {"OTEL_SDK_DISABLED": "true"}):
        assert tracing(env)(app) is app


def test_every_setting_is_described() -> None:
    rows = describe()
    assert all(meaning for _, _, meaning in rows)
    assert ("HELIOGRAPH_PORT", "8080", "port to listen on; 0 takes a free one") in rows


def test_the_model_endpoint_falls_back_to_openais_own_variable() -> None:
    theirs = {"OPENAI_BASE_URL": "http://127.0.0.1:11434/v1"}
    assert Settings.from_env(theirs).model_url == "http://127.0.0.1:11434/v1"
    ours = {"HELIOGRAPH_MODEL_URL": "https://models.example/v1"}
    assert Settings.from_env(theirs | ours).model_url == "https://models.example/v1"


@pytest.mark.parametrize("key", ["HELIOGRAPH_MODEL_URL", "OPENAI_BASE_URL"])
def test_an_endpoint_that_is_no_address_is_a_fault_of_the_variable_it_came_from(key: str) -> None:
    with pytest.raises(SettingFault, match=f"^{key}='localhost:11434'"):
        Settings.from_env({key: "localhost:11434"})


def test_no_setting_holds_a_secret() -> None:
    env = {key: "hush-hush" for key, _ in SECRETS} | {"OPENAI_API_KEY": "hush-hush"}
    assert Settings.from_env(env) == Settings()
    assert {key for key, _ in SECRETS}.isdisjoint(key for key, _, _ in describe())


def test_the_folders_of_agents_lie_in_the_data_folder(tmp_path: Path) -> None:
    settings = Settings(data_dir=str(tmp_path), models_file="prices.yaml")
    assert settings.checkouts == str(tmp_path / "checkouts")
    assert settings.secret_key_file == str(tmp_path / "secret.key")
    assert settings.models_path == str(Path("prices.yaml").absolute())
    assert Settings().models_path == ""
