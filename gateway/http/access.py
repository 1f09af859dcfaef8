"""The caller of an ordinary (not hot) endpoint.

Guards run before anything of the request is read; handlers behind one find the caller in `request.auth`.
"""

from typing import Any

from litestar.connection import ASGIConnection, Request
from litestar.handlers import BaseRouteHandler

from gateway.auth import Principal, Role, require_organisation_admin, require_role
from gateway.services import Services

AnyConnection = ASGIConnection[Any, Any, Any, Any]


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


def require_network_admin(connection: AnyConnection, _: BaseRouteHandler) -> None:
    """Let through keys of role `admin` only.

    Raises:
        AuthError: no valid key, or any other one.
    """
    connection.scope["auth"] = _principal(connection, connection.app.state["services"], Role.ADMIN)


def require_own_admin(connection: AnyConnection, _: BaseRouteHandler) -> None:
    """Let through customers' keys that may manage their own organisation.

    Raises:
        AuthError: no valid key, or one without that right.
    """
    principal = _principal(connection, connection.app.state["services"], Role.CUSTOMER)
    require_organisation_admin(principal)
    connection.scope["auth"] = principal


def require_member(connection: AnyConnection, _: BaseRouteHandler) -> None:
    """Let through every key of a customer or an admin.

    Raises:
        AuthError: no valid key, or a worker's.
    """
    connection.scope["auth"] = _principal(connection, connection.app.state["services"], Role.CUSTOMER, Role.ADMIN)


def _principal(connection: AnyConnection, services: Services, *roles: Role) -> Principal:
    header = connection.headers.get("authorization")
    principal = services.keys.authenticate(
        header.encode("latin-1") if header is not None else None, now=services.clock.now()
    )
    require_role(principal, *roles)
    return principal
