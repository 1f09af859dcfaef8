"""Seals requests and opens answers, as a client does: a body in, its plaintext answer and its checked receipt out."""

import os
import time
from collections.abc import Sequence
from typing import Any

import msgspec

from cocoon.clock import SystemClock, system_random
from cocoon.endpoints import CHAT, Endpoint
from cocoon.enrolment import Keyset, keyset_digest
from cocoon.ids import new_job_id
from cocoon.openai import PromptTerms
from cocoon.receipt import Commitment, ReceiptBody
from cocoon.sealed import Recipient, SentRequest, Terms, key_tag, seal_request
from cocoon.sealed_answer import AnswerOpener
from cocoon.sealed_trailer import AnswerTrailer, Delivered, check_receipt
from cocoon.sse import data_of

CONTEXT_TOKENS = 8192


class SealedCall:
    """One request, sealed for the keysets whose exact bytes are given."""

    def __init__(
        self, body: dict[str, Any], keysets: Sequence[bytes], api_key: str, endpoint: Endpoint = CHAT, **changes: Any
    ) -> None:
        self.body = msgspec.json.encode(body)
        self.streams = bool(body.get("stream"))
        self.keysets = {keyset_digest(raw): raw for raw in keysets}
        request = endpoint.decode(self.body)
        self.job_id = new_job_id(SystemClock(), system_random())
        terms: dict[str, Any] = {
            "job_id": self.job_id.bytes,
            "key_tag": key_tag(api_key),
            "model": request.model,
            "max_prompt": request.prompt_max(len(self.body), PromptTerms(CONTEXT_TOKENS, 16, 16)),
            "max_completion": request.choices * (64 if request.asked_completion is None else request.asked_completion),
            "n": request.copies,
            "stream": request.streams,
            "not_after": int(time.time()) + 300,
        }
        recipients = [Recipient(digest, Keyset.decode(raw).hpke_xwing) for digest, raw in self.keysets.items()]
        self.sent: SentRequest = seal_request(Terms(**{**terms, **changes}), self.body, recipients, os.urandom)

    def opened(self, raw: bytes) -> "OpenedAnswer":
        """The whole answer, opened; raises if anything of it does not hold."""
        opener = AnswerOpener(digest=self.sent.digest, secrets=self.sent.secrets)
        data = b"".join(opener.feed(raw))
        opener.finish()
        return OpenedAnswer(self, opener, data)


class OpenedAnswer:
    """Plaintext, the clear trailer, and who answered."""

    def __init__(self, call: SealedCall, opener: AnswerOpener, data: bytes) -> None:
        self.call = call
        self.data = data
        self.keyset_digest = opener.keyset_digest
        self.trailer = AnswerTrailer.decode(opener.trailer)
        self._rolling = opener.rolling

    @property
    def payloads(self) -> list[bytes]:
        events = [event + b"\n\n" for event in self.data.split(b"\n\n") if event]
        return [payload for event in events if (payload := data_of(event)) is not None]

    @property
    def text(self) -> str:
        """What the model said."""
        if not self.call.streams:
            choice = msgspec.json.decode(self.data)["choices"][0]
            return str(choice["text"] if "text" in choice else choice["message"]["content"])
        chunks = [msgspec.json.decode(payload) for payload in self.payloads if payload != b"[DONE]"]
        return "".join(c["delta"].get("content") or "" for chunk in chunks for c in chunk["choices"])

    def receipt(self, **changes: Any) -> ReceiptBody:
        """The receipt's body, once everything about it has been checked; `changes` alter what is expected."""
        commitment = Commitment(self.call.sent.secrets[self.keyset_digest])
        commitment.request(self.call.body)
        for payload in self.payloads if self.call.streams else [self.data]:
            # The usage chunk is in no commitment (PROTOCOL §4).
            if payload == b"[DONE]" or not self.call.streams or msgspec.json.decode(payload)["choices"]:
                commitment.response(payload)
        expected = {
            "digest": self.call.sent.digest, "rolling": self._rolling, "commitment": commitment,
            "keyset": self.call.keysets[self.keyset_digest],
        }  # fmt: skip
        return check_receipt(self.trailer, Delivered(**{**expected, **changes}))
