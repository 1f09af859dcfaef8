"""Escrows, observations and vouchers for tests of settlement; amounts in nano."""

import datetime as dt
import hashlib
import uuid

from billing.escrows import EscrowSeen, EscrowState, EscrowTerms, Voucher, VoucherSigner

NO_ROOT = bytes(32)
GENESIS = dt.datetime(2026, 11, 22, tzinfo=dt.UTC)


def raw_address(name: str) -> str:
    return "0:" + hashlib.sha256(name.encode()).hexdigest()


def terms(name: str = "escrow", **changes: object) -> EscrowTerms:
    fields: dict[str, object] = {
        "address": raw_address(name), "code_hash": bytes(32), "config": b"config", "client": raw_address("client"),
        "epoch": 0, "voucher_key": bytes([1]) * 32, "operator_key": bytes([2]) * 32, "challenge_s": 600,
        "allow_max_nano": 1_000, "allow_rate_nano": 1,
    }  # fmt: skip
    return EscrowTerms(**{**fields, **changes})  # pyright: ignore[reportArgumentType]  a test's values


def seen(seqno: int, deposited: int, settled: int = 0, **changes: object) -> EscrowSeen:
    fields: dict[str, object] = {
        "seqno": seqno, "at": GENESIS + dt.timedelta(seconds=seqno), "state": EscrowState.OPEN,
        "deposited_nano": deposited, "settled_nano": settled, "owed_nano": 0, "allow_at_nano": 1_000, "allow_time": 0,
        "close_requested_at": 0, "usage_root": NO_ROOT,
    }  # fmt: skip
    return EscrowSeen(**{**fields, **changes})  # pyright: ignore[reportArgumentType]  as above


def voucher(cumulative: int, signer: VoucherSigner = VoucherSigner.SESSION) -> Voucher:
    return Voucher(signer=signer, cumulative_nano=cumulative, usage_root=NO_ROOT, signature=bytes(64))


def new_id() -> uuid.UUID:
    return uuid.uuid4()
