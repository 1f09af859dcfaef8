"""Fetches what a gateway has to show for an answer: the receipt bundle, and proofs that its log only grew.

Nothing of it is believed here; `verification` judges it, offline.
"""

import asyncio
from typing import ClassVar, Final, Protocol

import httpx
import msgspec

from cocoon.bundle import BUNDLE_BYTES_MAX, ReceiptBundle
from cocoon.checkpoints import Checkpoint, NoteVerifier
from cocoon.clock import Clock
from cocoon.errors import MalformedError
from cocoon_client.errors import BundleUnavailableError, ClientError
from cocoon_client.opening import Opening
from cocoon_client.trust import Trust
from cocoon_client.verification.chain import OwnChain
from cocoon_client.verification.log import Anchored, Growth, is_larger
from cocoon_client.verification.proof import Proof
from cocoon_client.verification.steps import Report
from cocoon_client.verification.walk import NOT_ASKED, verify

POLL_S: Final = 0.5
PROOF_BYTES_MAX: Final = 64 * 1024
_OK: Final = 200
_PENDING: Final = 202
_REFUSED: Final = frozenset({401, 403, 404})


class ReceiptRefusedError(ClientError):
    """The gateway shows this key no such receipt, and will not later."""

    code: ClassVar[str] = "receipt_refused"


class Proofs(Protocol):
    """Where a client keeps proofs, and the last checkpoint seen of each log (by its verifier key)."""

    def keep(self, opening: Opening) -> None:
        """Keep what opens a receipt."""
        ...

    def load(self, receipt_id: str) -> Proof | None:
        """What was kept of a receipt."""
        ...

    def save(self, proof: Proof) -> None:
        """Keep a proof in place of what was kept of the same receipt."""
        ...

    def seen(self, log_key: str) -> str | None:
        """The last checkpoint seen, a signed note."""
        ...

    def see(self, log_key: str, note: str) -> None:
        """Remember a checkpoint."""
        ...


class _Consistency(msgspec.Struct, frozen=True):
    path: tuple[bytes, ...]


class Receipts:
    """One gateway's receipts. `base_url` ends in `/v1`; `client` must not be one that seals."""

    def __init__(self, client: httpx.AsyncClient, base_url: str, api_key: str, clock: Clock) -> None:
        self._client = client
        self._base_url = base_url.rstrip("/")
        self._headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._clock = clock

    async def bundle(self, receipt_id: str, *, wait_s: float = 0.0) -> ReceiptBundle:
        """The bundle, asked for until it is whole or `wait_s` have passed: signatures and log come after the answer.

        Raises:
            BundleUnavailableError: the gateway does not answer, or the worker has not delivered it in time.
            ReceiptRefusedError: the API key is not one that may see it, or there is none.
            MalformedError: what it shows is not a bundle.
        """
        end = self._clock.monotonic() + wait_s
        while True:
            bundle: ReceiptBundle | None = None
            reason = ""
            try:
                bundle = await self._bundle(receipt_id)
            except BundleUnavailableError as error:
                reason = str(error)
            whole = bundle is not None and None not in (bundle.ticket_signed, bundle.countersigned, bundle.log)
            if whole or self._clock.monotonic() >= end:
                if bundle is None:
                    raise BundleUnavailableError(reason)
                return bundle
            await asyncio.sleep(POLL_S)

    async def growth(self, trust: Trust, store: Proofs, bundle: ReceiptBundle) -> Growth | None:
        """The proof that joins the bundle's checkpoint to the one seen last; None where none was seen.

        A gateway that cannot give one gives an empty one, which joins only equal trees.
        """
        seen = store.seen(trust.log_key) if trust.log_key else None
        if seen is None or bundle.log is None:
            return None
        try:
            old = Checkpoint.decode(NoteVerifier.parse(trust.log_key).open(seen)).size
        except MalformedError:
            return None
        return Growth(seen, await self._joined(old, bundle.log.size))

    async def anchored(self, anchored: Anchored, bundle: ReceiptBundle) -> Anchored:
        """The anchor with the proof that joins it to the bundle's checkpoint, as `growth` has one."""
        if bundle.log is None or not anchored.count:
            return anchored
        return msgspec.structs.replace(anchored, proof=await self._joined(anchored.size, bundle.log.size))

    async def _joined(self, one: int, other: int) -> tuple[bytes, ...]:
        sizes = sorted((one, other))
        if sizes[0] == sizes[1]:
            return ()
        try:
            raw = await self._get(f"/log/consistency?from={sizes[0]}&to={sizes[1]}", PROOF_BYTES_MAX)
            return msgspec.json.decode(raw, type=_Consistency).path
        except (BundleUnavailableError, msgspec.DecodeError, UnicodeDecodeError):
            return ()

    async def _bundle(self, receipt_id: str) -> ReceiptBundle:
        return ReceiptBundle.decode(await self._get(f"/receipts/{receipt_id}", BUNDLE_BYTES_MAX))

    async def _get(self, target: str, bytes_max: int) -> bytes:
        body = bytearray()
        try:
            async with self._client.stream("GET", self._base_url + target, headers=self._headers) as response:
                if response.status_code in _REFUSED:
                    hint = "" if self._headers else ": it wants an API key of who paid (COCOON_API_KEY)"
                    raise ReceiptRefusedError(f"the gateway answers {target} with status {response.status_code}{hint}")
                if response.status_code == _PENDING:
                    raise BundleUnavailableError("the worker has not delivered the receipt yet; ask again later")
                if response.status_code != _OK:
                    raise BundleUnavailableError(f"{target} was answered with status {response.status_code}")
                async for chunk in response.aiter_bytes():
                    body += chunk
                    if len(body) > bytes_max:
                        raise BundleUnavailableError(f"the answer to {target} is too long")
        except httpx.HTTPError as error:
            raise BundleUnavailableError(f"{self._base_url} does not answer: {type(error).__name__}") from error
        return bytes(body)


def offline_growth(trust: Trust, store: Proofs) -> Growth | None:
    """What is known of the log without asking it: the checkpoint seen last."""
    seen = store.seen(trust.log_key) if trust.log_key else None
    return None if seen is None else Growth(seen, None)


async def complete(
    receipts: Receipts, store: Proofs, trust: Trust, receipt_id: str, *, wait_s: float, chain: OwnChain | None = None
) -> tuple[Proof, Report]:
    """Fetch what belongs to a receipt, keep it beside what this client kept, and judge it all.

    The checkpoint is remembered only when it is consistent with what was seen before. `chain` is the client's own, if
    it has one.

    Raises:
        BundleUnavailableError: the gateway shows nothing.
        MalformedError: what it shows, or what was kept, is not in its format.
    """
    kept = store.load(receipt_id)
    bundle = await receipts.bundle(receipt_id, wait_s=wait_s)
    if bundle.receipt_id != receipt_id:
        raise MalformedError("the gateway shows the bundle of another receipt")
    proof = Proof(bundle=bundle, opening=None if kept is None else kept.opening)
    growth = await receipts.growth(trust, store, bundle)
    on_chain = NOT_ASKED if chain is None else await chain.look(proof)
    if on_chain.anchored is not None:
        anchored = await receipts.anchored(on_chain.anchored, bundle)
        on_chain = msgspec.structs.replace(on_chain, anchored=anchored)
    report = await asyncio.to_thread(verify, proof, trust, growth, on_chain)
    if proof.opening is not None:
        store.save(proof)
    remember(store, trust, proof, report)
    return proof, report


def remember(store: Proofs, trust: Trust, proof: Proof, report: Report) -> None:
    """Remember the log's checkpoint: the first one that holds, and then only those that are joined to it."""
    steps = {step.name: step.outcome for step in report.steps}
    place = None if proof.bundle is None else proof.bundle.log
    if place is None or steps.get("log inclusion") != "held":
        return
    before = store.seen(trust.log_key)
    if before is None or (
        steps.get("log consistency") == "held" and is_larger(place.checkpoint, before, trust.log_key)
    ):
        store.see(trust.log_key, place.checkpoint)
