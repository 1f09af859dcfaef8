"""Customers' escrows: whose terms are accepted, what is shown of them, and vouchers that are taken in.

An escrow counts as credit only with our code, this operator and the terms of PROTOCOL §6. What the chain has of it, the
biller finds out; nothing here asks the chain.
"""

import random
import uuid
from typing import ClassVar, NamedTuple

import msgspec

from billing.ceilings import EscrowCredit, demand_of
from billing.escrows import Escrow, EscrowState, EscrowTerms, UnknownEscrowError, Voucher, VoucherSigner
from billing.postgres.ceilings import read_credits
from billing.postgres.escrows import Escrows
from billing.postgres.pool import Pool
from cocoon.addresses import Address
from cocoon.cells import read_boc
from cocoon.clock import Clock
from cocoon.contracts import escrow as contract
from cocoon.contracts.codes import code_of
from cocoon.contracts.messages import StateInit
from cocoon.contracts.records import NO_HASH
from cocoon.errors import MalformedError
from cocoon.ids import new_job_id
from gateway.errors import GatewayError

CONFIG_BYTES_MAX = 2048
CHALLENGE_S_MIN = 86_400
_NANO_MAX = 2**63 - 1


class EscrowsOffError(GatewayError):
    """This gateway settles nothing on TON: no escrow can be registered here."""

    code: ClassVar[str] = "escrows_off"


class EscrowTermsError(GatewayError):
    """The escrow's code or terms are not those that count as credit here."""

    code: ClassVar[str] = "escrow_terms_refused"


class VoucherRefusedError(GatewayError):
    """The voucher is not one that the escrow would pay."""

    code: ClassVar[str] = "voucher_refused"


class EscrowRules(msgspec.Struct, frozen=True, kw_only=True):
    """What an escrow has to say to count here. `operator_key` is zeros where only session keys are taken.

    `challenge_s_min`: the operator must have the time to hear of a close request and to settle (PROTOCOL §6).
    """

    global_id: int
    operator: Address
    payout: Address
    operator_key: bytes
    challenge_s_min: int

    @property
    def code_hash(self) -> bytes:
        """The one code that is accepted."""
        return code_of(contract.CODE).hash

    def judge(self, code_hash: bytes, config_boc: bytes) -> EscrowTerms:
        """The terms of an escrow of this configuration.

        Raises:
            EscrowTermsError: it would not count as credit; the message says why.
        """
        if code_hash != self.code_hash:
            raise EscrowTermsError("The code is not the escrow's that this network accepts.")
        try:
            config = contract.EscrowConfig.decode(read_boc(config_boc))
            config.require_usable()
        except MalformedError as error:
            raise EscrowTermsError(f"The configuration cannot be used: {error}.") from error
        if config.operator != self.operator or config.payout != self.payout:
            raise EscrowTermsError("The escrow is for another operator, or pays another payout contract.")
        if config.operator_key not in {NO_HASH, self.operator_key}:
            raise EscrowTermsError("The operator's key is another one.")
        if config.client in {config.operator, config.payout} or config.client.workchain != 0:
            raise EscrowTermsError("The client is a wallet of workchain 0 that is not the operator's.")
        if config.challenge_s < self.challenge_s_min:
            raise EscrowTermsError(f"challenge_s is at least {self.challenge_s_min} here.")
        if max(config.allow_max_nano, config.allow_rate_nano) > _NANO_MAX:
            raise EscrowTermsError("The allowance is more than there is.")
        return EscrowTerms(
            address=str(contract.escrow_init(code_of(contract.CODE), config).address),
            code_hash=code_hash,
            config=config_boc,
            client=str(config.client),
            epoch=config.epoch,
            voucher_key=_present(config.voucher_key),
            operator_key=_present(config.operator_key),
            challenge_s=config.challenge_s,
            allow_max_nano=config.allow_max_nano,
            allow_rate_nano=config.allow_rate_nano,
        )


def state_init_of(terms: EscrowTerms) -> StateInit:
    """What deploys an accepted escrow."""
    config = contract.EscrowConfig.decode(read_boc(terms.config))
    return contract.escrow_init(code_of(contract.CODE), config)


class Shown(NamedTuple):
    """An escrow as its customer sees it: `charged_nano` includes what no attribution has covered yet."""

    escrow: Escrow
    signed: Voucher | None
    charged_nano: int
    demand_nano: int
    usage_root: bytes


class EscrowDesk:
    """One gateway's escrows. Without rules it takes none."""

    def __init__(self, pool: Pool, rules: EscrowRules | None, clock: Clock, rng: random.Random) -> None:
        self._pool = pool
        self._book = Escrows(pool)
        self._rules = rules
        self._clock = clock
        self._rng = rng

    @property
    def takes_escrows(self) -> bool:
        """Whether there are rules."""
        return self._rules is not None

    @property
    def rules(self) -> EscrowRules:
        """What escrows have to say here.

        Raises:
            EscrowsOffError: there are none here.
        """
        if self._rules is None:
            raise EscrowsOffError
        return self._rules

    async def register(self, customer_id: uuid.UUID, code_hash: bytes, config: bytes) -> Escrow:
        """Watch an escrow; its deposits become the customer's credit. Again changes nothing.

        Raises:
            EscrowsOffError, EscrowTermsError: it does not count here.
            EscrowConflictError: somebody else's, or too many.
        """
        terms = self.rules.judge(code_hash, config)
        return await self._book.register(new_job_id(self._clock, self._rng), customer_id, terms)

    async def shown(self, customer_id: uuid.UUID) -> list[Shown]:
        """A customer's escrows, the oldest first and closed ones last."""
        credits_ = await read_credits(self._pool, customer_id)
        charged = {credit.address: credit for credit in credits_.escrows}
        found: list[Shown] = []
        for escrow in await self._book.of_customer(customer_id):
            signed = await self._book.last_voucher(escrow.escrow_id, VoucherSigner.SESSION)
            credit: EscrowCredit | None = charged.get(escrow.terms.address)
            total = escrow.charged_nano if credit is None else credit.charged_nano
            demand = demand_of(credit, credits_.usage_root).cumulative_nano if credit is not None else total
            found.append(Shown(escrow, signed, total, demand, credits_.usage_root))
        return found

    async def ask_close(self, customer_id: uuid.UUID, address: str) -> Escrow:
        """Serve nothing more on an escrow, so that the biller can sign what it owes. Again shows how far that is.

        Raises:
            UnknownEscrowError: not an escrow of this customer.
            CloseNotAgreedError: nothing can be signed for it.
        """
        return await self._book.ask_close(customer_id, address)

    async def withdraw_close(self, customer_id: uuid.UUID, address: str) -> None:
        """Serve on it again, where nothing was signed.

        Raises:
            UnknownEscrowError: not an escrow of this customer.
            CloseAgreedError: the terms are signed.
        """
        await self._book.withdraw_close(customer_id, address)

    async def take(
        self, customer_id: uuid.UUID, address: str, cumulative_nano: int, usage_root: bytes, signature: bytes
    ) -> tuple[Escrow, bool]:
        """Take in a session voucher; True where it is new. It is durable when this returns.

        Raises:
            UnknownEscrowError: not an escrow of this customer.
            VoucherRefusedError: it does not verify for this escrow, or promises more than was deposited.
            StaleVoucherError: it promises no more than one that is there.
        """
        escrow = await self._book.find(address)
        if escrow is None or escrow.customer_id != customer_id:
            raise UnknownEscrowError
        key = escrow.terms.voucher_key
        if key is None or escrow.state not in {EscrowState.OPEN, EscrowState.CLOSING}:
            raise VoucherRefusedError("The escrow takes no vouchers of a session key, or not now.")
        if cumulative_nano > escrow.deposited_nano:
            raise VoucherRefusedError(f"Only {escrow.deposited_nano} nano were deposited.")
        voucher = contract.Voucher(
            global_id=self.rules.global_id, escrow=Address.parse(address), epoch=escrow.terms.epoch,
            cumulative_nano=cumulative_nano, usage_root=usage_root,
        )  # fmt: skip
        try:
            voucher.verify(key, signature)
        except MalformedError as error:
            raise VoucherRefusedError(
                "The signature is not the session key's for this network, escrow, epoch, amount and root."
            ) from error
        kept = Voucher(
            signer=VoucherSigner.SESSION, cumulative_nano=cumulative_nano, usage_root=usage_root, signature=signature
        )
        return escrow, await self._book.add_voucher(escrow.escrow_id, kept)


def _present(key: bytes) -> bytes | None:
    return None if key == NO_HASH else key
