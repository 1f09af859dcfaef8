"""What a stranger installs: an OpenAI client that seals and verifies, a local proxy that does, and receipts in words.

Nothing here believes a gateway: workers are judged under the user's own policy, requests are sealed for those that
hold, answers and receipts are checked against what was sent. The package must not know gateways, workers or books.

    from cocoon_client import OpenAI, read_trust
"""

from typing import TYPE_CHECKING, Any

from cocoon_client.trust import Trust, read_policy, read_trust
from cocoon_client.verification.chain import OwnChain

if TYPE_CHECKING:
    from cocoon_client.openai import AsyncOpenAI, OpenAI

__all__ = ["AsyncOpenAI", "OpenAI", "OwnChain", "Trust", "read_policy", "read_trust"]


def __getattr__(name: str) -> Any:
    """The drop-ins are imported when they are asked for: `openai` is an extra (`[client]`)."""
    if name in {"AsyncOpenAI", "OpenAI"}:
        import importlib  # noqa: PLC0415  only for who uses them

        return getattr(importlib.import_module("cocoon_client.openai"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
