"""Signs for what was used: only what receipts that this client verified support, and never past what its user allows.

A voucher says what is owed in all. What supports it is the sum of the exact costs of answered requests: tokens of the
receipt that came with the answer and was checked, no more than its ticket allowed, at the price that was shown before
the request. The gateway's demand is never exceeded, and never believed: what receipts do not support is not signed.

One signer for each escrow: its tally is a file with a lock, and what goes by other ways it does not know.
"""

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, ClassVar, Final, NamedTuple

import httpx
import msgspec
import structlog

from cocoon.contracts.escrow import Voucher
from cocoon.errors import MalformedError
from cocoon.money import NUMERATOR_PER_NANO
from cocoon.receipt import ReceiptHead
from cocoon.ticket import Ticket
from cocoon_client.errors import ClientError
from cocoon_client.escrow_file import EscrowFile
from cocoon_client.opening import Opening

CODE: Final = "voucher_required"
TAKEN: Final = frozenset({200, 409})
"""Statuses that say that a gateway has the voucher, or one that promises more."""
VOUCHERS: Final = "/v1/account/vouchers"
ESCROWS: Final = "/v1/account/escrows"
_Root = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
_log: structlog.stdlib.BoundLogger = structlog.get_logger()


class TallyError(ClientError):
    """What was used and signed so far cannot be read or kept; nothing is signed then."""

    code: ClassVar[str] = "tally_unusable"


class Demand(msgspec.Struct, frozen=True):
    """What a gateway asks to be signed; `cumulative` in nano."""

    escrow: str
    epoch: int
    cumulative: Annotated[int, msgspec.Meta(ge=0)]
    usage_root: _Root


class _Refusal(msgspec.Struct, frozen=True):
    code: str | None = None


class _Shown(msgspec.Struct, frozen=True):
    escrow: str
    epoch: int
    demand_nano: Annotated[int, msgspec.Meta(ge=0)]
    usage_root: _Root


class _List(msgspec.Struct, frozen=True):
    data: tuple[_Shown, ...]


class SignedVoucher(msgspec.Struct, frozen=True):
    """A voucher as it is handed in."""

    escrow: str
    cumulative: int
    usage_root: str
    signature: str


class _Tally(msgspec.Struct, forbid_unknown_fields=True):
    """`numerator` is what receipts support, in 10^-6 nano; `signed` the most that was ever signed, in nano.

    `handed` of it a gateway is known to have: what it may not have is signed once more.
    """

    escrow: str
    numerator: int = 0
    signed: int = 0
    handed: int = 0


class Remedy(NamedTuple):
    """What to do before a request is tried once more: send `request`, wait for this long, or nothing."""

    voucher: SignedVoucher | None = None
    request: httpx.Request | None = None
    pause_s: float = 0.0


class VoucherSigner:
    """One escrow's session key, and what it may sign. Threads and processes of one machine may share the tally.

    `cap_nano` is the most that is ever signed in all; `accepted_nano` is taken as used without receipts, by the user's
    word (a tally that was lost, use by other ways).
    """

    def __init__(self, escrow: EscrowFile, tally: Path, *, cap_nano: int, accepted_nano: int = 0) -> None:
        self._escrow = escrow
        self._address = str(escrow.address)
        self._tally = tally / f"{self._address.partition(':')[2]}.json"
        self._cap = cap_nano
        self._accepted = accepted_nano

    def support(self, opening: Opening) -> None:
        """Count the receipt of an answer whose exchange has held. What cannot be kept is not counted."""
        numerator = cost_of(opening)
        if not numerator:
            return
        try:
            with self._locked() as tally:
                tally.numerator += numerator
        except TallyError as error:
            _log.error("receipt_not_counted", receipt=opening.receipt_id, reason=str(error))

    @property
    def unsigned_nano(self) -> int:
        """How much more could be handed in, if it were asked for.

        Raises:
            TallyError: nobody knows.
        """
        with self._locked() as tally:
            return max(0, min(self._cap, self._supported(tally)) - tally.handed)

    def note_handed_in(self, voucher: SignedVoucher) -> None:
        """A gateway has answered that it has this one, or a higher one.

        Raises:
            TallyError: it cannot be noted.
        """
        with self._locked() as tally:
            tally.handed = max(tally.handed, voucher.cumulative)

    def is_for(self, demand: Demand) -> bool:
        """Whether a demand is about this escrow."""
        return demand.escrow == self._address and demand.epoch == self._escrow.config.epoch

    def sign(self, demand: Demand) -> SignedVoucher | None:
        """A voucher for as much of a demand as receipts support; None where that is nothing new, or none of ours.

        Raises:
            TallyError: what was signed so far cannot be read, or this could not be noted.
        """
        config = self._escrow.config
        if not self.is_for(demand):
            _log.warning("voucher_refused", reason="another escrow", escrow=demand.escrow)
            return None
        with self._locked() as tally:
            supported = self._supported(tally)
            cumulative = min(demand.cumulative, supported, self._cap)
            if demand.cumulative > min(supported, self._cap):
                _log.warning(
                    "voucher_demand_not_supported", demanded_nano=demand.cumulative, supported_nano=supported,
                    cap_nano=self._cap,
                )  # fmt: skip
            if cumulative <= tally.handed:
                return None
            # Noted before it leaves: what was signed is never forgotten.
            tally.signed = max(tally.signed, cumulative)
        voucher = Voucher(
            global_id=self._escrow.network, escrow=self._escrow.address, epoch=config.epoch,
            cumulative_nano=cumulative, usage_root=bytes.fromhex(demand.usage_root),
        )  # fmt: skip
        return SignedVoucher(self._address, cumulative, demand.usage_root, voucher.sign(self._escrow.key).hex())

    def _supported(self, tally: _Tally) -> int:
        return self._accepted + -(-tally.numerator // NUMERATOR_PER_NANO)

    @contextmanager
    def _locked(self) -> Generator[_Tally]:
        """The tally; what was changed of it is durable when this is left, and not at all after an error."""
        try:
            self._tally.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self._tally.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise TallyError(f"{self._tally} cannot be used: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            tally = self._read()
            before = msgspec.structs.astuple(tally)
            yield tally
            if msgspec.structs.astuple(tally) != before:
                self._write(tally)
        finally:
            os.close(descriptor)

    def _read(self) -> _Tally:
        try:
            tally = msgspec.json.decode(self._tally.read_bytes(), type=_Tally)
        except FileNotFoundError:
            return _Tally(self._address)
        except (OSError, msgspec.DecodeError) as error:
            raise TallyError(f"{self._tally} cannot be read") from error
        if tally.escrow != self._address:
            raise TallyError(f"{self._tally} is of another escrow")
        return tally

    def _write(self, tally: _Tally) -> None:
        scratch = self._tally.with_suffix(".new")
        try:
            descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(msgspec.json.encode(tally))
                file.flush()
                os.fsync(descriptor)
            scratch.replace(self._tally)
        except OSError as error:
            raise TallyError(f"{self._tally} cannot be written: {error.strerror}") from error


def cost_of(opening: Opening) -> int:
    """What an answer may cost at most by its own receipt, in 10^-6 nano; nothing where no price was shown."""
    price = opening.price
    if price is None:
        return 0
    try:
        usage, ticket = ReceiptHead.decode(opening.head).usage, Ticket.decode(opening.ticket)
    except MalformedError:
        return 0
    prompt = min(usage.prompt, ticket.max_prompt)
    cached = min(usage.cached, prompt)
    completion = min(usage.completion, ticket.max_completion)
    return (prompt - cached) * price.prompt + cached * price.cached + completion * price.completion


def demand_in(body: bytes) -> Demand | None:
    """The demand in a gateway's refusal, if that is why it refuses."""
    try:
        if msgspec.json.decode(body, type=dict[str, _Refusal])["error"].code != CODE:
            return None
        return msgspec.json.decode(body, type=dict[str, Demand])["error"]
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError):
        return None


def demands_in(body: bytes) -> tuple[Demand, ...]:
    """The demands in a gateway's list of escrows."""
    try:
        shown = msgspec.json.decode(body, type=_List).data
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ()
    return tuple(Demand(one.escrow, one.epoch, one.demand_nano, one.usage_root) for one in shown)
