"""`/v1/log`: the transparency log for whoever wants to look, without a key. Formats: docs/log.md."""

import base64
import uuid
from typing import Annotated, Any, Literal

import msgspec
from litestar import Controller, Response, get
from litestar.connection import Request
from litestar.params import QueryParameter

from audit.entries import Entry, LeafType
from audit.errors import NotLoggedError
from audit.tiles import parse_tile_path
from cocoon.checkpoints import SIZE_MAX
from cocoon.errors import MalformedError
from cocoon.transparency import DIGEST_BYTES, ENTRY_BYTES
from gateway.errors import InvalidRequestError
from gateway.http.access import customer_of
from gateway.services import Services

_TEXT = "text/plain"
_BYTES = "application/octet-stream"
_ENTRIES = "entries"
# What is asked for under the same name is for ever the same: a partial tile has its width in its name.
_FOR_EVER = {"cache-control": "public, max-age=31536000, immutable"}
_NOW = {"cache-control": "no-cache"}
_Size = Annotated[int | None, QueryParameter(ge=0, le=SIZE_MAX, description="Entries of the tree; the last signed one")]
_From = Annotated[int, QueryParameter(name="from", ge=0, le=SIZE_MAX, description="Entries of the older tree")]
_To = Annotated[
    int | None, QueryParameter(name="to", ge=0, le=SIZE_MAX, description="Entries of the newer tree; the last signed")
]  # fmt: skip
_Leaf = Annotated[str | None, QueryParameter(name="leaf", description="The entry's 33 bytes in hexadecimal")]
_Receipt = Annotated[uuid.UUID | None, QueryParameter(name="receipt", description="Or the id of a receipt of yours")]


class InclusionView(msgspec.Struct, frozen=True, kw_only=True):
    """Entry `index` is in the tree of `size` entries; hashes in base64, lowest first."""

    object: Literal["log.inclusion"] = "log.inclusion"
    leaf: str
    index: int
    size: int
    path: list[str]
    checkpoint: str


class ConsistencyView(msgspec.Struct, frozen=True, kw_only=True):
    """The tree of `to` entries begins with the tree of `from` entries; hashes in base64."""

    object: Literal["log.consistency"] = "log.consistency"
    old_size: int = msgspec.field(name="from")
    size: int = msgspec.field(name="to")
    path: list[str]
    checkpoint: str


class LogController(Controller):
    """Checkpoint, tiles, entries, envelopes and proofs."""

    path = "/v1/log"

    @get("/checkpoint")
    async def checkpoint(self, services: Services) -> Response[str]:
        """The last checkpoint, a signed note (C2SP tlog-checkpoint)."""
        return Response((await services.log_reader.checkpoint()).note, media_type=_TEXT, headers=_NOW)

    @get("/key", sync_to_thread=False)
    def key(self, services: Services) -> Response[str]:
        """The key that checkpoints are signed with (C2SP signed-note). Who verifies should know it from elsewhere."""
        return Response(services.log_verifier.text + "\n", media_type=_TEXT, headers=_NOW)

    @get("/tile/{name:path}")
    async def tile(self, services: Services, name: str) -> Response[bytes]:
        """`L/N` has hashes, `entries/N` the entries; `.p/W` behind it for a partial one (C2SP tlog-tiles)."""
        level, _, path = name.removeprefix("/").partition("/")
        try:
            asked = parse_tile_path(path)
        except MalformedError as error:
            raise NotLoggedError(str(error)) from None
        if level == _ENTRIES:
            return Response(await services.log_reader.bundle(asked), media_type=_BYTES, headers=_FOR_EVER)
        if len(level) != 1 or level not in "01234567":
            raise NotLoggedError("tiles have the levels 0 to 7")
        return Response(await services.log_reader.tile(int(level), asked), media_type=_BYTES, headers=_FOR_EVER)

    @get("/envelope/{leaf_type:str}/{digest:str}")
    async def envelope(self, services: Services, leaf_type: str, digest: str) -> Response[bytes]:
        """The exact bytes that an entry is the digest of, of every type but receipts."""
        known = {kind.name.lower(): kind for kind in LeafType}
        if leaf_type not in known:
            raise NotLoggedError(f"the log has entries of the types {', '.join(sorted(known))}")
        entry = Entry(type=known[leaf_type], digest=_hexadecimal("digest", digest, DIGEST_BYTES))
        return Response(await services.log_reader.envelope(entry), media_type=_BYTES, headers=_FOR_EVER)

    @get("/proof")
    async def proof(
        self, request: Request[Any, Any, Any], services: Services, leaf: _Leaf = None, receipt: _Receipt = None,
        size: _Size = None,
    ) -> InclusionView:  # fmt: skip
        """The proof that an entry is in the log. Only who owns a receipt can ask for it by its id."""
        if (leaf is None) == (receipt is None):
            raise InvalidRequestError("Ask for a leaf or for a receipt.", param="leaf")
        if leaf is not None:
            try:
                entry = Entry.decode(_hexadecimal("leaf", leaf, ENTRY_BYTES))
            except MalformedError as error:
                raise InvalidRequestError(str(error), param="leaf") from None
        else:
            assert receipt is not None, "one of the two"
            entry = await services.receipts.entry(customer_of(request, services).customer_id, receipt)
        proof, signed = await services.log_reader.inclusion(entry, size)
        return InclusionView(
            leaf=entry.encode().hex(),
            index=proof.index,
            size=proof.size,
            path=_shown(proof.path),
            checkpoint=signed.note,
        )

    @get("/consistency")
    async def consistency(self, services: Services, old_size: _From, size: _To = None) -> ConsistencyView:
        """The proof that the log only grew between two sizes."""
        proof = await services.log_reader.consistency(old_size, size)
        return ConsistencyView(
            old_size=old_size, size=proof.size, path=_shown(proof.path), checkpoint=proof.signed.note
        )


def _shown(path: tuple[bytes, ...]) -> list[str]:
    return [base64.b64encode(one).decode() for one in path]


def _hexadecimal(name: str, text: str, length: int) -> bytes:
    try:
        raw = bytes.fromhex(text)
    except ValueError:
        raw = b""
    if len(raw) != length or raw.hex() != text:
        raise InvalidRequestError(f"{name} must be {2 * length} lower-case hexadecimal digits", param=name)
    return raw
