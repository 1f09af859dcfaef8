"""The endpoints of the OpenAI API that are served, each a value that says all that differs between them.

What an endpoint's requests may cost, whether they stream and what they ask for is said by their type
(`cocoon.openai.ModelRequest`); here is where they go. Gateway and agent carry the value beside the request.
"""

from typing import Literal

import msgspec

from cocoon.errors import MalformedError
from cocoon.openai import ChatRequest, ModelRequest
from cocoon.texts import CompletionRequest, EmbeddingRequest

EndpointName = Literal["chat", "completions", "embeddings"]


class Endpoint:
    """One endpoint. `name` is how workers say that they serve it, `path` is where clients and engines know it.

    `job_path` is its path on the gateway-agent hop, `operation` its name in traces (OpenTelemetry's
    `gen_ai.operation.name`), `prompt` the member of the body that holds the prompt, `rid` what begins the names of
    its jobs in engines. `index` counts the endpoints, so that a table of them is a tuple.
    """

    __slots__ = ("decoder", "index", "job_path", "name", "operation", "path", "prompt", "rid")

    def __init__(
        self, name: EndpointName, index: int, path: str, *, operation: str, prompt: str, rid: str,
        request: type[ModelRequest],
    ) -> None:  # fmt: skip
        self.name: EndpointName = name
        self.index = index
        self.path = "/v1" + path
        self.job_path = "/v1/jobs" + path
        self.operation = operation
        self.prompt = prompt
        self.rid = rid
        self.decoder: msgspec.json.Decoder[ModelRequest] = msgspec.json.Decoder(request)

    def __repr__(self) -> str:
        return f"Endpoint({self.name!r})"

    @property
    def engine_path(self) -> str:
        """The path below an engine's base URL, which ends in `/v1`."""
        return self.path.removeprefix("/v1")

    def decode(self, body: bytes) -> ModelRequest:
        """The request in a client's body.

        Raises:
            MalformedError: not UTF-8, not JSON, nested too deeply, or a field we act on has the wrong type. The
                message names the place and may be shown to the client.
        """
        try:
            if not body.isascii():
                body.decode()
            return self.decoder.decode(body)
        except msgspec.ValidationError as error:
            raise MalformedError(str(error)) from error
        except msgspec.DecodeError as error:
            raise MalformedError("the body is not valid JSON") from error
        except UnicodeDecodeError as error:
            raise MalformedError("the body is not valid UTF-8") from error
        except RecursionError as error:
            raise MalformedError("the body is nested too deeply") from error


CHAT = Endpoint(
    "chat", 0, "/chat/completions", operation="chat", prompt="messages", rid="chatcmpl", request=ChatRequest
)
COMPLETIONS = Endpoint(
    "completions", 1, "/completions", operation="text_completion", prompt="prompt", rid="cmpl",
    request=CompletionRequest,
)  # fmt: skip
EMBEDDINGS = Endpoint(
    "embeddings", 2, "/embeddings", operation="embeddings", prompt="input", rid="embd", request=EmbeddingRequest
)
ENDPOINTS = (CHAT, COMPLETIONS, EMBEDDINGS)
BY_NAME: dict[EndpointName, Endpoint] = {endpoint.name: endpoint for endpoint in ENDPOINTS}
BY_JOB_PATH = {endpoint.job_path: endpoint for endpoint in ENDPOINTS}
