"""What the biller is told from outside, read once. A malformed value stops the start-up with its name."""

import os
import pathlib
from collections.abc import Mapping

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from billing.settings import SettingsError
from cocoon.addresses import Address
from cocoon.errors import MalformedError
from cocoon.money import parse_units

WALLET_KEY_VARIABLE = "COCOON_BILLER_WALLET_KEY_FILE"
VOUCHER_KEY_VARIABLE = "COCOON_VOUCHER_KEY_FILE"
PAYOUT_VARIABLE = "COCOON_PAYOUT_CONTRACT"
_SEED_BYTES = 32
_INTERVAL_S_MIN, _INTERVAL_S_MAX = 0.05, 60.0
_EPOCH_S_MIN, _EPOCH_S_MAX = 1.0, 30 * 24 * 3600.0


class BillerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The biller's configuration; seconds and nano.

    `wallet_key` is the operator's wallet (v5r1), `voucher_key` signs delegated vouchers: None settles only what clients
    have signed. `operator_key` is the key under which tickets count: stakes for another one are refused. `fee_min_nano`
    is the least that is withdrawn as the operator's fee; 0 leaves it in the contract.
    """

    global_id: int
    payout: Address
    wallet_key: Ed25519PrivateKey
    voucher_key: Ed25519PrivateKey | None
    operator_key: bytes | None
    epoch_s: float
    interval_s: float
    settle_min_nano: int
    claim_min_nano: int
    fee_min_nano: int = 0

    def __repr__(self) -> str:
        return f"BillerSettings(global_id={self.global_id}, payout='{self.payout}')"


def read_biller_settings(environment: Mapping[str, str] = os.environ) -> BillerSettings:
    """The settings of this process.

    Raises:
        SettingsError: one is missing or malformed.
    """
    operator_key = environment.get("COCOON_OPERATOR_KEY", "")
    return BillerSettings(
        global_id=read_global_id(environment),
        payout=read_payout(environment),
        wallet_key=read_wallet_key(environment),
        voucher_key=read_voucher_key(environment),
        operator_key=_public_key("COCOON_OPERATOR_KEY", operator_key) if operator_key else None,
        epoch_s=_seconds(environment, "COCOON_EPOCH_S", 3600.0, _EPOCH_S_MIN, _EPOCH_S_MAX),
        interval_s=_seconds(environment, "COCOON_BILLER_INTERVAL_S", 2.0, _INTERVAL_S_MIN, _INTERVAL_S_MAX),
        settle_min_nano=_nano(environment, "COCOON_SETTLE_MIN", "0.5"),
        claim_min_nano=_nano(environment, "COCOON_CLAIM_MIN", "0.1"),
        fee_min_nano=_nano(environment, "COCOON_FEE_MIN", "0"),
    )


def read_wallet_key(environment: Mapping[str, str] = os.environ) -> Ed25519PrivateKey:
    """The key of the operator's wallet.

    Raises:
        SettingsError: no file is named, or it is no key's.
    """
    return _key(WALLET_KEY_VARIABLE, _required(environment, WALLET_KEY_VARIABLE))


def read_voucher_key(environment: Mapping[str, str] = os.environ) -> Ed25519PrivateKey | None:
    """The escrows' operator key; None where no file is named.

    Raises:
        SettingsError: the file is no key's.
    """
    file = environment.get(VOUCHER_KEY_VARIABLE, "")
    return _key(VOUCHER_KEY_VARIABLE, file) if file else None


def read_payout(environment: Mapping[str, str] = os.environ) -> Address:
    """The payout contract's address.

    Raises:
        SettingsError: it is missing or malformed.
    """
    try:
        return Address.parse_any(_required(environment, PAYOUT_VARIABLE))
    except MalformedError as error:
        raise SettingsError(f"{PAYOUT_VARIABLE}: {error}") from error


def read_global_id(environment: Mapping[str, str] = os.environ) -> int:
    """The network; -3 is the development network's.

    Raises:
        SettingsError: not an integer of 32 bits.
    """
    text = environment.get("COCOON_GLOBAL_ID") or "-3"
    try:
        number = int(text)
    except ValueError as error:
        raise SettingsError("COCOON_GLOBAL_ID is an integer") from error
    if not -(2**31) <= number < 2**31:
        raise SettingsError("COCOON_GLOBAL_ID has 32 bits")
    return number


def _required(environment: Mapping[str, str], name: str) -> str:
    value = environment.get(name, "")
    if not value:
        raise SettingsError(f"set {name}")
    return value


def _key(name: str, file: str) -> Ed25519PrivateKey:
    try:
        seed = bytes.fromhex(pathlib.Path(file).read_text(encoding="ascii").strip())
    except OSError as error:
        raise SettingsError(f"{name}: {error.strerror}") from error
    except ValueError as error:
        raise SettingsError(f"{name} is not a key of `cocoon operator new`") from error
    if len(seed) != _SEED_BYTES:
        raise SettingsError(f"{name} is not a key of `cocoon operator new`")
    return Ed25519PrivateKey.from_private_bytes(seed)


def _public_key(name: str, text: str) -> bytes:
    try:
        key = bytes.fromhex(text)
    except ValueError as error:
        raise SettingsError(f"{name} has 64 hexadecimal digits") from error
    if len(key) != _SEED_BYTES:
        raise SettingsError(f"{name} has 64 hexadecimal digits")
    return key


def _seconds(environment: Mapping[str, str], name: str, default: float, least: float, most: float) -> float:
    try:
        value = float(environment.get(name) or default)
    except ValueError as error:
        raise SettingsError(f"{name} is a number of seconds") from error
    if not least <= value <= most:
        raise SettingsError(f"{name} lies between {least:g} and {most:g} seconds")
    return value


def _nano(environment: Mapping[str, str], name: str, default: str) -> int:
    try:
        return parse_units(environment.get(name) or default)
    except ValueError as error:
        raise SettingsError(f"{name} is an amount in TON, with at most nine decimals") from error
