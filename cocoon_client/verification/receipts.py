"""The steps about the receipt itself: who signed it, what allowed it, what was charged for it."""

import hashlib
import hmac

from cocoon import receipt
from cocoon.bundle import Batched, ReceiptBundle
from cocoon.enrolment import KEYSET_SECONDS_MAX, Keyset, keyset_digest
from cocoon.errors import MalformedError
from cocoon.money import decimal_units
from cocoon.receipt import ReceiptHead
from cocoon.signed_batch import BatchHead, Countersignature, open_batch, require_leaf
from cocoon.ticket import Ticket
from cocoon_client.opening import Opening, read_body
from cocoon_client.trust import Trust
from cocoon_client.verification.steps import Step, failed, held, not_shown

SIGNED_LATE_S_MAX = 24 * 3600
"""How long after an answer its ticket may have been signed: a gateway that was down catches up."""
SKEW_S = 300


class Facts:
    """What the parts of a bundle say, decoded; verified by the steps only.

    Raises:
        MalformedError: a part is not in its format.
    """

    def __init__(self, bundle: ReceiptBundle, keyset: bytes | None) -> None:
        self.bundle = bundle
        self.head = ReceiptHead.decode(bundle.head)
        self.body = read_body(bundle.body)
        self.ticket = Ticket.decode(bundle.ticket)
        self.keyset_bytes = keyset
        self.keyset = None if keyset is None else Keyset.decode(keyset)


def same_receipt(bundle: ReceiptBundle, opening: Opening | None) -> Step | None:
    """Whether the gateway shows the receipt that came with the answer; nothing where nobody kept that one."""
    if opening is None:
        return None
    name = "same receipt"
    came = (opening.receipt_id, opening.head, opening.signature, opening.body, opening.ticket)
    if came != (bundle.receipt_id, bundle.head, bundle.signature, bundle.body, bundle.ticket):
        return failed(name, "the gateway shows another receipt than the one that came with the answer")
    return held(name, "the gateway shows the receipt that came with the answer, byte for byte")


def signature(facts: Facts) -> Step:
    """The worker's signature over head and, through it, body."""
    name = "receipt signature"
    if facts.keyset is None:
        return not_shown(name, "no keyset is shown, so nobody knows whose signature this has to be")
    try:
        receipt.verify(facts.keyset.receipt_pk, facts.bundle.head, facts.bundle.signature)
    except MalformedError as error:
        return failed(name, f"the receipt is not signed by the keyset's receipt key: {error}")
    if not hmac.compare_digest(facts.head.body_sha256, receipt.body_digest(facts.bundle.body)):
        return failed(name, "the signed head is for another body")
    if facts.body.receipt_id != facts.bundle.receipt_id:
        return failed(name, "the signed body is of another receipt")
    key = facts.keyset.receipt_pk.hex()[:16]
    return held(name, f"head and body are signed by the worker's receipt key {key}")


def receipt_key(facts: Facts) -> Step:
    """The signing key's keyset was alive when the answer was given."""
    name = "receipt key"
    keyset, body = facts.keyset, facts.body
    if keyset is None:
        return not_shown(name, "no keyset is shown")
    if not 0 < keyset.not_after - keyset.not_before <= KEYSET_SECONDS_MAX:
        return failed(name, "the keyset lives longer than any keyset may")
    if not keyset.not_before - SKEW_S <= body.started_ms // 1000 <= body.ended_ms // 1000 < keyset.not_after + SKEW_S:
        return failed(name, "the answer was not given while the keyset was alive")
    return held(name, "the answer was given while the keyset was alive, which is six hours at most")


def digest(facts: Facts) -> Step:
    """The receipt names this keyset."""
    name = "keyset digest"
    if facts.keyset_bytes is None:
        return not_shown(name, "no keyset is shown")
    if not hmac.compare_digest(keyset_digest(facts.keyset_bytes), facts.body.keyset_digest):
        return failed(name, "the receipt names another keyset than the one shown")
    return held(name, f"the receipt names exactly this keyset, {facts.body.keyset_digest.hex()[:16]}")


def ticket(facts: Facts, trust: Trust) -> Step:
    """The gateway's authorisation: named by the head, for this job, signed under the operator's delegation."""
    name = "ticket"
    head, body, shown = facts.head, facts.body, facts.ticket
    if not hmac.compare_digest(head.ticket_sha256, hashlib.sha256(facts.bundle.ticket).digest()):
        return failed(name, "the receipt was made under another ticket")
    if (str(shown.job_id), shown.attempt) != (body.receipt_id, body.attempt):
        return failed(name, "the ticket is for another job")
    if not head.global_id == shown.global_id == trust.network or head.stake != shown.stake:
        return failed(name, f"the receipt is of network {head.global_id}, not of {trust.network}")
    if head.usage.prompt > shown.max_prompt or head.usage.completion > shown.max_completion:
        return failed(name, "the receipt claims more tokens than its ticket allows")
    return _signed(name, facts.bundle.ticket, facts.bundle.ticket_signed, facts, trust, "the ticket is signed")


def countersignature(facts: Facts, opening: Opening | None, trust: Trust) -> Step:
    """What the gateway says it charged: signed, for this very head, and within what the ticket allows."""
    name = "countersignature"
    shown = facts.bundle.countersigned
    if shown is None:
        return not_shown(name, "the gateway has not countersigned the receipt yet")
    try:
        leaf = Countersignature.decode(shown.leaf)
    except MalformedError as error:
        return failed(name, str(error))
    if leaf.head_sha256 != hashlib.sha256(facts.bundle.head).digest() or leaf.global_id != trust.network:
        return failed(name, "the countersignature is of another receipt")
    charged = f"{decimal_units(leaf.charge_numerator)} TON are charged"
    price = None if opening is None else opening.price
    if price is None:
        said = f"{charged}; the price was not kept, so the amount was not checked"
    else:
        prompt, completion = facts.ticket.max_prompt, facts.ticket.max_completion
        most = prompt * max(price.prompt, price.cached) + completion * price.completion
        if leaf.charge_numerator > most:
            return failed(name, f"{charged}, more than the ticket's maxima cost at the price shown before")
        said = f"{charged}, no more than the ticket's maxima cost at the price shown before"
    return _signed(name, shown.leaf, shown.signed, facts, trust, said)


def _signed(name: str, leaf: bytes, batched: Batched | None, facts: Facts, trust: Trust, said: str) -> Step:
    """A leaf in a batch signed under the pinned operator's delegation, about when the answer was given."""
    if batched is None:
        return not_shown(name, "no gateway has signed it yet")
    if not trust.operator_key:
        return not_shown(name, "no operator key is pinned, so nobody knows whose signature this has to be")
    try:
        signed_s = BatchHead.decode(batched.batch.head).signed_ms / 1000
        head = open_batch(batched.batch, operator_key=trust.operator_key, global_id=trust.network, now_s=signed_s)
        require_leaf(head, leaf, batched.proof)
    except MalformedError as error:
        return failed(name, f"it is not signed under the operator's delegation: {error}")
    if not facts.body.started_ms / 1000 - SKEW_S <= signed_s <= facts.body.ended_ms / 1000 + SIGNED_LATE_S_MAX:
        return failed(name, "it was signed at another time than the answer was given")
    return held(name, f"{said}, by a gateway that operator {trust.operator_key.hex()[:16]} delegated to")
