"""What `cocoon escrow` asks a gateway; what the gateway says is checked by whoever asks."""

import base64
from typing import TypeVar

import httpx
import msgspec

from cli.contract import ContractError
from cocoon.addresses import Address
from cocoon.cells import write_boc
from cocoon.contracts.codes import code_of
from cocoon.contracts.escrow import CODE
from cocoon_client.escrow_file import EscrowFile

CALL_S_MAX = 30.0
T = TypeVar("T")


class Terms(msgspec.Struct, frozen=True):
    """What a gateway says that escrows must say."""

    global_id: int
    operator: str
    payout: str
    operator_key: str
    code_hash: str
    challenge_s_min: int


class _Escrows(msgspec.Struct, frozen=True):
    terms: Terms | None


class _Registered(msgspec.Struct, frozen=True):
    escrow: str


class CloseAnswer(msgspec.Struct, frozen=True):
    """What a gateway shows of a close at once: the signed amount in nano, null until it is signed."""

    cumulative: int | None
    signature: str | None


class _Nothing(msgspec.Struct, frozen=True):
    """An answer without content."""


class Gateway:
    """The calls about an escrow; `base_url` ends in `/v1`.

    Raises:
        ContractError: there is no API key.
    """

    def __init__(self, base_url: str, api_key: str) -> None:
        if not api_key:
            raise ContractError("set COCOON_API_KEY to a key that may manage its organisation")
        self._url = base_url.rstrip("/") + "/account/escrows"
        self._headers = {"authorization": f"Bearer {api_key}"}

    def terms(self) -> Terms:
        """What escrows must say here.

        Raises:
            ContractError: it does not answer, or takes none.
        """
        found = self._call("GET", "", None, _Escrows).terms
        if found is None:
            raise ContractError("this gateway takes no escrows")
        return found

    def register(self, escrow: EscrowFile) -> str:
        """Have it watched; the address that the gateway makes of it.

        Raises:
            ContractError: it does not answer, or refuses.
        """
        config = base64.b64encode(write_boc(escrow.config.encode())).decode()
        body = {"code_hash": escrow.init.code.hash.hex(), "config": config}
        return self._call("POST", "", msgspec.json.encode(body), _Registered).escrow

    def ask_close(self, escrow: EscrowFile) -> CloseAnswer:
        """Ask for the terms of a close at once; again tells whether they are signed.

        Raises:
            ContractError: it does not answer, or refuses.
        """
        return self._call("POST", f"/{escrow.address}/close", None, CloseAnswer)

    def withdraw_close(self, escrow: EscrowFile) -> None:
        """Take the question back, where nothing was signed.

        Raises:
            ContractError: it does not answer, or the terms are signed.
        """
        self._call("DELETE", f"/{escrow.address}/close", None, _Nothing)

    def _call(self, method: str, path: str, body: bytes | None, kind: type[T]) -> T:
        headers = {**self._headers, "content-type": "application/json"}
        try:
            with httpx.Client(timeout=CALL_S_MAX, trust_env=False) as client:
                answer = client.request(method, self._url + path, content=body, headers=headers)
            if answer.is_success:
                return msgspec.json.decode(answer.content or b"{}", type=kind)
        except (httpx.HTTPError, msgspec.DecodeError) as error:
            raise ContractError(f"the gateway does not answer: {type(error).__name__}") from error
        raise ContractError(f"the gateway refused ({answer.status_code}): {_message(answer.content)}")


def _message(body: bytes) -> str:
    try:
        found = msgspec.json.decode(body, type=dict[str, dict[str, object]])["error"].get("message")
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError):
        found = None
    return str(found)[:300]


def require_pinned(terms: Terms, operator: Address | None) -> None:
    """Check what a gateway says against what its user knows.

    Raises:
        ContractError: another contract than ours, or another operator than was meant.
    """
    if terms.code_hash != code_of(CODE).hash.hex():
        raise ContractError("the gateway wants another contract than this program knows")
    if operator is not None and Address.parse(terms.operator) != operator:
        raise ContractError(f"the gateway's operator is {terms.operator}, not {operator}")
