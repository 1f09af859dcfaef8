"""`/v1/account/escrows` and `/v1/account/vouchers`: how an organisation's money on TON becomes credit and is paid."""

import base64
import binascii
from typing import Annotated, Any, Literal

import msgspec
import structlog
from litestar import Controller, delete, get, post
from litestar.connection import Request
from msgspec import Meta

from cocoon.addresses import Address
from cocoon.cells import write_boc
from cocoon.contracts.deposits import deposit_link
from gateway.auth import Principal
from gateway.errors import InvalidRequestError
from gateway.escrows import CONFIG_BYTES_MAX, EscrowDesk, Shown, state_init_of
from gateway.http.access import require_member, require_own_admin
from gateway.http.workers import CONTROL_BYTES_MAX
from gateway.services import Services

_NANO_MAX = 2**63 - 1
_Nano = Annotated[int, Meta(ge=1, le=_NANO_MAX)]
_Hash = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$(?!\n)")]
_Signature = Annotated[str, Meta(pattern=r"^[0-9a-f]{128}$(?!\n)")]
_Raw = Annotated[str, Meta(pattern=r"^0:[0-9a-f]{64}$(?!\n)")]
_Config = Annotated[str, Meta(max_length=2 * CONFIG_BYTES_MAX)]
Member = Request[Any, Principal, Any]
log = structlog.get_logger()


class RegisterEscrow(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An escrow by its code and configuration (a bag of cells in base64); `amount_nano` is for the deposit link."""

    code_hash: _Hash
    config: _Config
    amount_nano: _Nano | None = None


class PostVoucher(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A voucher that the escrow's session key has signed; `cumulative` in nano."""

    escrow: _Raw
    cumulative: _Nano
    usage_root: _Hash
    signature: _Signature


class TermsView(msgspec.Struct, frozen=True, kw_only=True):
    """What an escrow has to say to count here. Who opens one should know operator and code from elsewhere too."""

    global_id: int
    operator: str
    payout: str
    operator_key: str
    code_hash: str
    challenge_s_min: int


class EscrowView(msgspec.Struct, frozen=True, kw_only=True):
    """One escrow; amounts in nano. `state` is `registered` until a deposit was seen on the chain.

    `delegated` ones have an allowance, within which the operator settles by itself. `demand` is what a voucher should
    say now: what was charged, or what is signed where that is more.
    """

    object: Literal["escrow"] = "escrow"
    escrow: str
    client: str
    state: str
    epoch: int
    challenge_s: int
    voucher_key: str | None
    delegated: bool
    deposited_nano: int
    settled_nano: int
    signed_nano: int
    charged_nano: int
    demand_nano: int
    usage_root: str
    close_requested_at: int
    close_asked: bool
    seen_seqno: int | None


class RegisteredView(msgspec.Struct, frozen=True, kw_only=True):
    """An accepted escrow: where it will be, what deploys it, and a link that deposits."""

    object: Literal["escrow.registered"] = "escrow.registered"
    escrow: str
    state: str
    state_init: str
    deposit_link: str | None


class EscrowsView(msgspec.Struct, frozen=True, kw_only=True):
    """The organisation's escrows, oldest first and closed ones last, and the terms for new ones (null: none taken)."""

    object: Literal["list"] = "list"
    terms: TermsView | None
    data: list[EscrowView]


class CloseView(msgspec.Struct, frozen=True, kw_only=True):
    """What an escrow owes in all when it closes at once, in nano, signed by the operator; null until it is."""

    object: Literal["escrow.close"] = "escrow.close"
    escrow: str
    epoch: int
    cumulative: int | None
    signature: str | None


class VoucherView(msgspec.Struct, frozen=True, kw_only=True):
    """A voucher that is kept; `new` is false where it was before."""

    object: Literal["voucher"] = "voucher"
    escrow: str
    epoch: int
    cumulative: int
    new: bool


class EscrowsController(Controller):
    """Escrows of the caller's organisation; any of its keys may look and hand vouchers in."""

    path = "/v1/account"
    guards = (require_member,)
    request_max_body_size = CONTROL_BYTES_MAX
    tags = ("account",)

    @get("/escrows")
    async def escrows(self, request: Member, services: Services) -> EscrowsView:
        """Escrows with what was deposited, charged, signed and settled, and what is to be signed."""
        shown = await services.escrows.shown(request.auth.customer_id)
        return EscrowsView(terms=_terms(services.escrows), data=[_view(one) for one in shown])

    @post("/escrows", status_code=200, guards=[require_own_admin])
    async def register(self, request: Member, services: Services, data: RegisterEscrow) -> RegisteredView:
        """Have an escrow watched, so that its deposits become credit. Again answers alike."""
        try:
            config = base64.b64decode(data.config, validate=True)
        except (binascii.Error, ValueError):
            raise InvalidRequestError("config is a bag of cells in base64.", param="config") from None
        desk = services.escrows
        escrow = await desk.register(request.auth.customer_id, bytes.fromhex(data.code_hash), config)
        init, address = state_init_of(escrow.terms), Address.parse(escrow.terms.address)
        link: str | None = None
        if data.amount_nano is not None:
            link = deposit_link(address, init, data.amount_nano, global_id=desk.rules.global_id)
        log.info("escrow_registered", customer_id=str(request.auth.customer_id), escrow=escrow.terms.address)
        return RegisteredView(
            escrow=escrow.terms.address, state=escrow.state.value, deposit_link=link,
            state_init=base64.b64encode(write_boc(init.encode())).decode(),
        )  # fmt: skip

    @post("/escrows/{address:str}/close", status_code=200, guards=[require_own_admin])
    async def ask_close(self, request: Member, services: Services, address: str) -> CloseView:
        """Ask for terms to close at once. Nothing is served on the escrow from now on; asking again shows them.

        They are signed as soon as nothing runs that could still be charged, and stay good: only the client uses them.
        """
        escrow = await services.escrows.ask_close(request.auth.customer_id, address)
        log.info("escrow_close_asked", customer_id=str(request.auth.customer_id), escrow=address)
        agreed = escrow.agreed
        return CloseView(
            escrow=address, epoch=escrow.terms.epoch, cumulative=None if agreed is None else agreed.cumulative_nano,
            signature=None if agreed is None else agreed.signature.hex(),
        )  # fmt: skip

    @delete("/escrows/{address:str}/close", status_code=204, guards=[require_own_admin])
    async def withdraw_close(self, request: Member, services: Services, address: str) -> None:
        """Have the escrow served again, where the terms are not signed yet."""
        await services.escrows.withdraw_close(request.auth.customer_id, address)

    @post("/vouchers", status_code=200)
    async def take_voucher(self, request: Member, services: Services, data: PostVoucher) -> VoucherView:
        """Hand in what the session key has signed. It counts from the answer on."""
        escrow, new = await services.escrows.take(
            request.auth.customer_id, data.escrow, data.cumulative, bytes.fromhex(data.usage_root),
            bytes.fromhex(data.signature),
        )  # fmt: skip
        return VoucherView(escrow=data.escrow, epoch=escrow.terms.epoch, cumulative=data.cumulative, new=new)


def _terms(desk: EscrowDesk) -> TermsView | None:
    if not desk.takes_escrows:
        return None
    rules = desk.rules
    return TermsView(
        global_id=rules.global_id, operator=str(rules.operator), payout=str(rules.payout),
        operator_key=rules.operator_key.hex(), code_hash=rules.code_hash.hex(),
        challenge_s_min=rules.challenge_s_min,
    )  # fmt: skip


def _view(shown: Shown) -> EscrowView:
    escrow, key = shown.escrow, shown.escrow.terms.voucher_key
    return EscrowView(
        escrow=escrow.terms.address, client=escrow.terms.client, state=escrow.state.value, epoch=escrow.terms.epoch,
        challenge_s=escrow.terms.challenge_s, voucher_key=None if key is None else key.hex(),
        delegated=escrow.terms.allow_max_nano > 0, deposited_nano=escrow.deposited_nano,
        settled_nano=escrow.settled_nano, signed_nano=0 if shown.signed is None else shown.signed.cumulative_nano,
        charged_nano=shown.charged_nano, demand_nano=shown.demand_nano, usage_root=shown.usage_root.hex(),
        close_requested_at=escrow.close_requested_at, close_asked=escrow.close_asked_at is not None,
        seen_seqno=escrow.seen_seqno,
    )  # fmt: skip
