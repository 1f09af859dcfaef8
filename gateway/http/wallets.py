"""Worker keys for wallets: a challenge for anybody, a key for whoever proves a wallet by it."""

from typing import Any

import msgspec
import structlog
from litestar import Controller, Response, post
from litestar.connection import Request

from cocoon.wallet_enrolment import CHALLENGE_PATH, WALLET_KEY_PATH, WalletKeyRequest
from gateway.http.workers import decoded
from gateway.services import Services

BODY_BYTES_MAX = 16 * 1024
_decoder = msgspec.json.Decoder(WalletKeyRequest)
_NOT_KEPT = {"cache-control": "no-store"}
log = structlog.get_logger()


class WalletsController(Controller):
    """What an operator's wallet calls before there is a worker key."""

    @post(CHALLENGE_PATH, status_code=200)
    async def challenge(self, services: Services) -> Response[bytes]:
        """Something for a wallet to sign within ten minutes."""
        answer = msgspec.json.encode(services.wallets.challenge())
        return Response(answer, media_type="application/json", headers=_NOT_KEPT)

    @post(WALLET_KEY_PATH, status_code=200)
    async def key(self, request: Request[Any, Any, Any], services: Services) -> Response[bytes]:
        """The wallet's worker key: made by its first proof, with a new secret by every later one."""
        asked: WalletKeyRequest = await decoded(request, _decoder, BODY_BYTES_MAX)
        issued = await services.wallets.enter(asked)
        log.info("wallet_key_issued", wallet=issued.address, key_id=str(issued.key_id), rotated=issued.rotated)
        return Response(msgspec.json.encode(issued), media_type="application/json", headers=_NOT_KEPT)
