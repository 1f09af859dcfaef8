import json
from typing import Any

import pytest

from cocoon import openai
from cocoon.endpoints import CHAT
from cocoon.errors import MalformedError

MESSAGES = '"messages":[{"role":"user","content":"hi"}]'


def chat(**fields: Any) -> openai.ChatRequest:
    request = CHAT.decode(json.dumps({"model": "m", "messages": [], **fields}).encode())
    assert isinstance(request, openai.ChatRequest)
    return request


def test_unknown_fields_are_the_engines_business() -> None:
    request = CHAT.decode(
        b'{"model":"m","messages":[{"role":"user","content":[{"type":"text"}],"name":"x"}],"top_k":5,"tools":[{"a":1}]}'
    )

    assert isinstance(request, openai.ChatRequest)
    assert request.model == "m"
    assert bytes(request.messages[0].content) == b'[{"type":"text"}]'


@pytest.mark.parametrize(
    ("body", "names"),
    [
        (b"", "JSON"),
        (b"{", "JSON"),
        (b"[]", "object"),
        (b"null", "object"),
        (b'{"model":"m"}', "messages"),
        (b'{"messages":[]}', "model"),
        (b'{"model":1,"messages":[]}', "model"),
        (b'{"model":null,"messages":[]}', "model"),
        (b'{"model":"m","messages":{}}', "messages"),
        (b'{"model":"m","messages":["hi"]}', "messages"),
        (b'{"model":"m","messages":[{"content":"hi"}]}', "role"),
        (b'{"model":"m","messages":[],"stream":"yes"}', "stream"),
        (b'{"model":"m","messages":[],"max_tokens":1.5}', "max_tokens"),
        (b'{"model":"m","messages":[],"max_tokens":true}', "max_tokens"),
        (b'{"model":"m","messages":[],"max_tokens":"9"}', "max_tokens"),
        (b'{"model":"m","messages":[],"max_tokens":' + b"9" * 5000 + b"}", "max_tokens"),
        (b'{"model":"m","messages":[],"n":[]}', "n"),
        (b'{"model":"m","messages":[],"stream_options":[]}', "stream_options"),
        (b'{"model":"m","messages":[],"provider":{"require":"sgx"}}', "require"),
        (b'{"model":"m","messages":[]} trailing', "JSON"),
        (b'{"model":"m\xff","messages":[]}', "UTF-8"),
        (b'{"model":"m","messages":[{"role":"user","content":"\xff"}]}', "UTF-8"),
        (b'{"model":"m","messages":[],"x":"\xed\xa0\x80"}', "UTF-8"),
        (b'{"model":"\\ud800","messages":[]}', "JSON"),
        (b'{"model":"m","messages":[],"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "deep"),
    ],
)
def test_a_bad_body_is_refused_and_the_place_is_named(body: bytes, names: str) -> None:
    with pytest.raises(MalformedError, match=names):
        CHAT.decode(body)


def test_what_the_client_asked_for() -> None:
    plain = chat()
    assert (plain.streams, plain.wants_usage, plain.choices, plain.asked_completion) == (False, False, 1, None)

    request = chat(stream=True, stream_options={"include_usage": True}, n=3, max_tokens=5, max_completion_tokens=9)
    assert (request.streams, request.wants_usage, request.choices, request.asked_completion) == (True, True, 3, 9)

    assert chat(max_tokens=0).asked_completion == 0
    assert chat(stream=None, n=None, max_tokens=None, stream_options=None) == plain


@pytest.mark.parametrize(
    ("payload", "failed"),
    [
        (b'{"error":{"message":"boom"}}', True),
        (b'{"error":"boom"}', True),
        (b'{"error":null,"choices":[]}', False),
        (b"{}", False),
    ],
)
def test_an_engines_error_is_seen_whatever_its_shape(payload: bytes, failed: bool) -> None:
    assert (openai.decode_chunk(payload).error is not None) is failed


def test_a_chunk_gives_finish_reasons_and_usage() -> None:
    chunk = openai.decode_chunk(
        b'{"id":"x","choices":[{"index":1,"delta":{"content":"a"},"finish_reason":"length"}],'
        b'"usage":{"prompt_tokens":7,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":4}}}'
    )

    assert chunk.choices == (openai.ChunkChoice(index=1, finish_reason="length"),)
    assert chunk.usage == openai.Usage(7, 2, openai.PromptDetails(4))


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"[DONE]",
        b"[]",
        b'{"usage":{"prompt_tokens":"7"}}',
        b'{"choices":[{"finish_reason":"\xff"}]}',
        b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_another_answer_is_refused(payload: bytes) -> None:
    with pytest.raises(MalformedError):
        openai.decode_chunk(payload)


def test_an_error_has_the_openai_shape() -> None:
    assert json.loads(openai.error_json('bad "x"\n', "invalid_request_error", code="c")) == {
        "error": {"message": 'bad "x"\n', "type": "invalid_request_error", "param": None, "code": "c"}
    }


@pytest.mark.parametrize(
    ("body", "message", "code"),
    [
        (b'{"error":{"message":"no","code":400}}', "no", "400"),
        (b'{"object":"error","message":"flat","code":"bad","type":"x"}', "flat", "bad"),
        (b'{"error":"text"}', "The engine refused the request.", None),
        (b'{"message":5}', "The engine refused the request.", None),
        (b"<html>", "The engine refused the request.", None),
        (b"", "The engine refused the request.", None),
        (b'{"message":"\xff"}', "The engine refused the request.", None),
        (b"[" * 100_000, "The engine refused the request.", None),
    ],
)
def test_an_engines_refusal_takes_the_openai_shape(body: bytes, message: str, code: str | None) -> None:
    error = json.loads(openai.as_openai_error(body))["error"]

    assert (error["message"], error["code"], error["type"]) == (message, code, "invalid_request_error")
