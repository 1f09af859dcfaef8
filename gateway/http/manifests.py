"""`GET /v1/manifests/{sha256}`: the bytes of a model manifest that a worker enrolled with, for anybody."""

from litestar import Controller, Response, get

from cocoon.errors import MalformedError
from cocoon.manifest import read_digest
from gateway.errors import InvalidRequestError, ManifestUnknownError
from gateway.services import Services

_FOR_EVER = {"cache-control": "public, max-age=31536000, immutable"}


class ManifestsController(Controller):
    """Documents under their own digests."""

    path = "/v1/manifests"

    @get("/{sha256:str}")
    async def manifest(self, services: Services, sha256: str) -> Response[bytes]:
        """The canonical bytes; their SHA-256 is what was asked for."""
        try:
            digest = read_digest(sha256)
        except MalformedError as error:
            raise InvalidRequestError(str(error), param="sha256") from error
        raw = await services.enrolments.manifest(digest)
        if raw is None:
            raise ManifestUnknownError
        return Response(raw, media_type="application/json", headers=_FOR_EVER)
