"""The steps about the transparency log: the receipt is in it, and it only grew since it was last looked at."""

import datetime as dt
import hashlib

import msgspec

from cocoon.checkpoints import Checkpoint, NoteVerifier, open_checkpoint
from cocoon.errors import MalformedError
from cocoon.merkle import verify_consistency, verify_inclusion
from cocoon.signed_batch import NO_PROMISE, Countersignature
from cocoon.transparency import LeafType, entry_of, receipt_envelope
from cocoon_client.trust import Trust
from cocoon_client.verification.receipts import Facts
from cocoon_client.verification.steps import Step, failed, held, not_shown

_YEAR_9999_S = 253_370_764_800


class Growth(msgspec.Struct, frozen=True):
    """The checkpoint that this client saw last, as the log signed it, and the proof that the shown one extends it.

    The proof goes from the smaller of the two trees to the larger (RFC 6962); None where nobody could be asked for it.
    """

    seen: str
    proof: tuple[bytes, ...] | None


class Anchored(msgspec.Struct, frozen=True):
    """The last anchor in a payout contract, proven as of a masterchain block.

    `proof` joins the anchored tree and the shown one (RFC 6962, from the smaller to the larger); None where nobody
    could be asked for it.
    """

    count: int
    origin_hash: bytes
    size: int
    root: bytes
    block_seqno: int
    proof: tuple[bytes, ...] | None = None


def inclusion(facts: Facts, trust: Trust) -> tuple[Step, Checkpoint | None]:
    """The receipt's entry is under a checkpoint of the pinned log."""
    name = "log inclusion"
    place = facts.bundle.log
    if place is None:
        return not_shown(name, f"the receipt is not in the transparency log yet{_promise(facts)}"), None
    if not trust.log_key:
        return not_shown(name, "no log key is pinned, so nobody knows whose checkpoint this has to be"), None
    if facts.keyset is None:
        return not_shown(name, "no keyset is shown, and it is part of the log's entry"), None
    try:
        verifier = NoteVerifier.parse(trust.log_key)
        checkpoint = open_checkpoint(place.checkpoint, verifier, origin=verifier.name)
        if checkpoint.size != place.size:
            return failed(name, "the checkpoint is of another size than the inclusion proof"), None
        envelope = receipt_envelope(facts.keyset.receipt_pk, facts.bundle.head, facts.bundle.signature)
        entry = entry_of(LeafType.RECEIPT, envelope).encode()
        verify_inclusion(entry, place.index, place.size, place.path, checkpoint.root)
    except MalformedError as error:
        return failed(name, f"the log does not hold this receipt: {error}"), None
    where = f"entry {place.index} of {place.size} of {checkpoint.origin}"
    return held(name, f"the receipt is {where}, whose checkpoint is signed by the pinned key"), checkpoint


def consistency(shown: Checkpoint | None, growth: Growth | None, trust: Trust) -> Step:
    """The shown log and the one seen last are one log."""
    name = "log consistency"
    if shown is None:
        return not_shown(name, "there is no checkpoint to compare", required=False)
    if growth is None:
        return not_shown(name, "this is the first checkpoint that this client sees", required=False)
    try:
        verifier = NoteVerifier.parse(trust.log_key)
        seen = open_checkpoint(growth.seen, verifier, origin=shown.origin)
        older, newer = (seen, shown) if seen.size <= shown.size else (shown, seen)
        if growth.proof is None and older.size != newer.size:
            sentence = "an earlier checkpoint is known, and the log was not asked to prove that it grew from there"
            return not_shown(name, sentence, required=False)
        verify_consistency(older.size, newer.size, growth.proof or (), older.root, newer.root)
    except MalformedError as error:
        return failed(name, f"the log was rewritten since it was seen last, or does not prove otherwise: {error}")
    return held(name, f"the log of {newer.size} entries begins with the {older.size} entries of the older one")


def _promise(facts: Facts) -> str:
    shown = facts.bundle.countersigned
    try:
        by_s = NO_PROMISE if shown is None else Countersignature.decode(shown.leaf).include_by
    except MalformedError:  # another step says so
        return ""
    if not NO_PROMISE < by_s < _YEAR_9999_S:
        return ""
    return f"; the gateway promised that by {dt.datetime.fromtimestamp(by_s, dt.UTC):%Y-%m-%d %H:%M} UTC"


def is_larger(note: str, before: str, log_key: str) -> bool:
    """Whether a checkpoint is of a larger tree than an earlier one; not where one of them is not by this key."""
    try:
        verifier = NoteVerifier.parse(log_key)
        return Checkpoint.decode(verifier.open(note)).size > Checkpoint.decode(verifier.open(before)).size
    except MalformedError:
        return False


def anchor(shown: Checkpoint | None, anchored: Anchored | None) -> Step:
    """The shown log and the one whose root stands on TON are one log."""
    name = "anchor"
    if anchored is None:
        return not_shown(name, "the chain was not asked: no payout contract is named", required=False)
    if shown is None:
        return not_shown(name, "there is no checkpoint to compare with the chain's")
    where = f"block {anchored.block_seqno} of TON"
    if anchored.count == 0:
        return not_shown(name, f"as of {where} the contract has anchored nothing yet")
    if anchored.origin_hash != hashlib.sha256(shown.origin.encode()).digest():
        return failed(name, f"as of {where} the contract anchors another log")
    if anchored.proof is None and anchored.size != shown.size:
        return not_shown(name, "the log was not asked to prove that it continues the anchored one")
    older, newer = sorted(((anchored.size, anchored.root), (shown.size, shown.root)), key=lambda tree: tree[0])
    try:
        verify_consistency(older[0], newer[0], anchored.proof or (), older[1], newer[1])
    except MalformedError as error:
        return failed(name, f"the log is not the one that stands on the chain, or does not prove it: {error}")
    return held(name, f"the log is the one of {anchored.size} entries that {where} anchors")
