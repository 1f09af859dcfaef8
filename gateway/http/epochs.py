"""`/v1/epochs`: what every worker is paid, for whoever wants to check it or to claim without us. No key."""

from typing import Annotated

from litestar import Controller, Response, get
from litestar.params import PathParameter

from billing.postgres.epochs import Epochs
from cocoon.contracts.epochs import EPOCH_MAX, EPOCHS_PATH
from gateway.services import Services

_JSON = "application/json"
# Leaves are fixed before their root is sent, and never change.
_FOR_EVER = {"cache-control": "public, max-age=31536000, immutable"}
_NOW = {"cache-control": "no-cache"}
_Epoch = Annotated[int, PathParameter(gt=0, le=EPOCH_MAX, description="The epoch's number, from 1")]


class EpochsController(Controller):
    """Leaves, from which the tree of an epoch is rebuilt (docs/contracts.md, payout)."""

    path = EPOCHS_PATH

    @get("/last")
    async def last(self, services: Services) -> Response[bytes]:
        """The epoch that was fixed last; its root may not be on the chain yet."""
        leaves = await Epochs(services.pool).leaves()
        return Response(leaves.encode(), media_type=_JSON, headers=_NOW)

    @get("/{epoch:int}")
    async def one(self, services: Services, epoch: _Epoch) -> Response[bytes]:
        """The epoch of that number."""
        leaves = await Epochs(services.pool).leaves(epoch)
        return Response(leaves.encode(), media_type=_JSON, headers=_FOR_EVER)
