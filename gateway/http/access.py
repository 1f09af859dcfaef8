"""The caller of an ordinary (not hot) endpoint."""

from typing import Any

from litestar.connection import Request

from gateway.auth import Principal, Role, require_role
from gateway.services import Services


def customer_of(request: Request[Any, Any, Any], services: Services) -> Principal:
    """The customer or admin behind the request.

    Raises:
        AuthError: no valid key, or a worker's.
    """
    return _principal(request, services, Role.CUSTOMER, Role.ADMIN)


def worker_of(request: Request[Any, Any, Any], services: Services) -> Principal:
    """The holder of a worker key.

    Raises:
        AuthError: no valid key, or not a worker's.
    """
    return _principal(request, services, Role.WORKER)


def _principal(request: Request[Any, Any, Any], services: Services, *roles: Role) -> Principal:
    header = request.headers.get("authorization")
    principal = services.keys.authenticate(
        header.encode("latin-1") if header is not None else None, now=services.clock.now()
    )
    require_role(principal, *roles)
    return principal
