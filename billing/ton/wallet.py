"""The operator's wallet, a v5r1 that obeys one key: what it signs, and what its account says.

Its seqno and the time are the chain's. The key is never printed.
"""

from collections.abc import Sequence
from typing import ClassVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from billing.ton.chain import AccountState, AccountStatus, ChainError
from billing.ton.wallet_messages import Transfer, WalletData, external_boc, signed_body
from cocoon.addresses import Address
from cocoon.contracts.messages import StateInit
from cocoon.errors import MalformedError
from cocoon.wallets import state_init_of


class WalletStateError(ChainError):
    """The account is not the wallet that this key makes."""

    code: ClassVar[str] = "chain_wallet_foreign"


class OperatorWallet:
    """A wallet v5r1 of one key on one network."""

    def __init__(self, key: Ed25519PrivateKey, *, global_id: int) -> None:
        self._key = key
        public_key = key.public_key().public_bytes_raw()
        self._init = StateInit.decode(state_init_of("v5r1", public_key, global_id=global_id))
        self._wallet_id = WalletData.decode(self._init.data).wallet_id
        self._public_key = public_key

    def __repr__(self) -> str:
        return f"OperatorWallet({self.address})"

    @property
    def address(self) -> Address:
        """Where it lives."""
        return self._init.address

    def seqno_of(self, state: AccountState) -> int:
        """The number of the next body that the wallet will take; 0 while it is not deployed.

        Raises:
            WalletStateError: another contract, another key, or a frozen account.
        """
        if state.status in {AccountStatus.ABSENT, AccountStatus.UNINITIALISED}:
            return 0
        try:
            if state.data is None or state.code_hash != self._init.code.hash:
                raise WalletStateError
            data = WalletData.decode(state.data)
        except MalformedError as error:
            raise WalletStateError from error
        if (data.wallet_id, data.public_key) != (self._wallet_id, self._public_key):
            raise WalletStateError
        return data.seqno

    def sign(self, transfers: Sequence[Transfer], *, seqno: int, valid_until: int) -> bytes:
        """The external message that makes the wallet send these; the first one deploys the wallet too."""
        body = signed_body(self._key, transfers, wallet_id=self._wallet_id, seqno=seqno, valid_until=valid_until)
        return external_boc(self.address, body, None if seqno else self._init)
