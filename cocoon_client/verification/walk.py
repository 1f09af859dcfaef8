"""The whole walk over one receipt, offline. Nothing is raised for what anybody sent: it becomes a step that failed."""

import hashlib
import hmac

from cocoon.errors import MalformedError
from cocoon.receipt import SEAL_PLAIN, SEAL_SEALED
from cocoon.ticket import plain_request_digest
from cocoon_client.opening import Opening
from cocoon_client.trust import Trust
from cocoon_client.verification import chain, evidence, log, receipts
from cocoon_client.verification.chain import OnChain
from cocoon_client.verification.log import Growth
from cocoon_client.verification.proof import Proof
from cocoon_client.verification.receipts import Facts
from cocoon_client.verification.steps import Report, Step, failed, held, not_shown

NOT_ASKED = OnChain()
_SEALED_LABEL = b"cocoon/sealed/1\x00"


def verify(proof: Proof, trust: Trust, growth: Growth | None = None, on_chain: OnChain = NOT_ASKED) -> Report:
    """Everything that a saved proof shows under the verifier's own trust.

    `growth` joins the log's checkpoint to the one that the verifier saw last, where it saw one. `on_chain` is what a
    chain of the verifier's own was found to hold, where one was asked.
    """
    bundle, opening = proof.bundle, proof.opening
    if bundle is None:
        return Report(proof.receipt_id, False, (not_shown("bundle", "there is no receipt bundle to verify"),))
    try:
        shown = evidence.shown_evidence(bundle, opening)
        facts = Facts(bundle, evidence.keyset_bytes(bundle, shown))
    except MalformedError as error:
        return Report(proof.receipt_id, False, (failed("format", f"a part is not in its format: {error}"),))
    same = receipts.same_receipt(bundle, opening)
    hardware, verdict = evidence.hardware(shown, facts, trust)
    inclusion, checkpoint = log.inclusion(facts, trust)
    steps = (
        receipts.signature(facts),
        receipts.receipt_key(facts),
        receipts.digest(facts),
        receipts.ticket(facts, trust),
        receipts.countersignature(facts, opening, trust),
        hardware,
        evidence.freshness(shown, verdict, trust, on_chain.beacon),
        chain.beacon(shown, verdict, on_chain),
        evidence.manifest(facts, opening, trust),
        chain.stake(facts, trust, on_chain),
        commitments(facts, opening),
        sealing(facts, opening),
        inclusion,
        log.consistency(checkpoint, growth, trust),
        log.anchor(checkpoint, on_chain.anchored),
    )
    simulated = facts.body.tee_type.endswith("-simulated") or (verdict is not None and verdict.simulated)
    return Report(bundle.receipt_id, simulated, steps if same is None else (same, *steps))


def commitments(facts: Facts, opening: Opening | None) -> Step:
    """The receipt is for the request and the answer that the client has."""
    name = "commitments"
    if opening is None:
        return not_shown(name, "only the client that asked can open them, with the request and the salt it kept")
    try:
        request, response = opening.commitments()
    except MalformedError as error:
        return failed(name, f"the kept answer cannot be read: {error}")
    if not hmac.compare_digest(request, facts.body.c_req):
        return failed(name, "the receipt commits to another request than the one that was kept")
    if not hmac.compare_digest(response, facts.body.c_resp):
        return failed(name, "the receipt commits to another answer than the one that was kept")
    return held(name, "the receipt commits to exactly the request and the answer that were kept")


def sealing(facts: Facts, opening: Opening | None) -> Step:
    """Ticket and receipt name the sealed request, and the frames that were received are the ones that were sent."""
    name = "sealing"
    body, digest = facts.body, facts.ticket.request_digest
    if body.seal == SEAL_PLAIN:
        return _plain(name, digest, opening)
    if body.seal != SEAL_SEALED or body.sealed_digest is None or body.rolling is None:
        return failed(name, "the receipt does not say how the request was sealed")
    if not hmac.compare_digest(body.sealed_digest, digest):
        return failed(name, "the receipt is for another sealed request than the ticket")
    if opening is None:
        return held(name, "ticket and receipt name one sealed request; its frames are for its client to compare")
    if not opening.sealed or hashlib.sha256(_SEALED_LABEL + opening.sealed_header).digest() != digest:
        return failed(name, "the sealed request is not the one that was kept")
    if not hmac.compare_digest(opening.rolling, body.rolling):
        return failed(name, "the frames that were received are not the ones that the worker sent")
    return held(name, "the request was sealed, and every frame received is one that the worker sent, in its order")


def _plain(name: str, digest: bytes, opening: Opening | None) -> Step:
    if opening is None:
        return not_shown(name, "the request was not sealed: the gateway could read it", required=False)
    if opening.sealed:
        return failed(name, "the request was sealed, and the receipt says that it was not")
    if not hmac.compare_digest(plain_request_digest(opening.request), digest):
        return failed(name, "the ticket is for another request than the one that was kept")
    return not_shown(name, "the request was not sealed: the gateway could read it", required=False)
