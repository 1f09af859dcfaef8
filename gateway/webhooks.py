"""Sends one message to an address that a customer chose, without letting it choose an address inside.

The name is resolved here, every address that it has is judged, and the connection goes to one that was: what a resolver
says a moment later changes nothing. Redirects are not followed, and of the answer nothing but the status is read.
"""

import asyncio
import socket
import ssl
from collections.abc import Mapping
from typing import ClassVar

from cocoon.errors import CocoonError
from cocoon.http1 import Connection, HopError, request_bytes
from workers.addresses import Endpoint, is_permitted_peer, parse_endpoint, require_permitted_host
from workers.errors import WorkerURLRefusedError

POST_S_MAX = 10.0
"""For resolving, connecting, sending and the status together."""
ADDRESSES_MAX = 16
URL_CHARS_MAX = 512
_STANDARD_PORTS = {True: 443, False: 80}


class WebhookFailedError(CocoonError):
    """The message could not be handed over; `str` is a short reason."""

    code: ClassVar[str] = "webhook_failed"
    transient: ClassVar[bool] = True


class WebhookAddressError(WebhookFailedError):
    """The address is not one to send to."""

    code: ClassVar[str] = "webhook_address_refused"


def require_sound_url(url: str, *, allow_private: bool) -> Endpoint:
    """Scheme, host, port and path of a webhook: https and public, unless `allow_private` (as in development).

    Raises:
        WebhookAddressError: it is none, or points where the gateway must not go.
    """
    try:
        if len(url) > URL_CHARS_MAX:
            raise WebhookAddressError("the URL is too long")
        endpoint = parse_endpoint(url)
        require_permitted_host(endpoint.host, allow_private=allow_private)
    except WorkerURLRefusedError as error:
        raise WebhookAddressError(str(error)) from error
    if not endpoint.tls and not allow_private:
        raise WebhookAddressError("the URL must begin with https://")
    return endpoint


class WebhookPoster:
    """Posts messages, each on a connection of its own."""

    def __init__(self, *, allow_private: bool) -> None:
        self._allow_private = allow_private
        self._context = ssl.create_default_context()

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> int:
        """POST and return the status, whatever it is.

        Raises:
            WebhookAddressError: the URL, or an address that its name has, is not permitted.
            WebhookFailedError: nobody answered in time, or not in HTTP.
        """
        endpoint = require_sound_url(url, allow_private=self._allow_private)
        host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
        if endpoint.port != _STANDARD_PORTS[endpoint.tls]:
            host = f"{host}:{endpoint.port}"
        lines = [(b"host", host.encode()), (b"content-type", b"application/json"), (b"user-agent", b"cocoon")]
        lines += [(name.encode(), value.encode()) for name, value in headers.items()]
        lines.append((b"connection", b"close"))
        try:
            request = request_bytes(b"POST", endpoint.path.encode() or b"/", lines, body)
            async with asyncio.timeout(POST_S_MAX):
                return await self._exchange(endpoint, request)
        except TimeoutError as error:
            raise WebhookFailedError("timeout") from error
        except HopError as error:
            raise WebhookFailedError(error.code) from error
        except (OSError, UnicodeError) as error:
            # OSError includes TLS; UnicodeError is a name that is none.
            raise WebhookFailedError(type(error).__name__) from error

    async def _exchange(self, endpoint: Endpoint, request: bytes) -> int:
        _, connection = await asyncio.get_running_loop().create_connection(
            Connection,
            await self._address(endpoint),
            endpoint.port,
            ssl=self._context if endpoint.tls else None,
            server_hostname=endpoint.host if endpoint.tls else None,
        )
        try:
            connection.send(request)
            return (await connection.head()).status
        finally:
            connection.abort()

    async def _address(self, endpoint: Endpoint) -> str:
        """One of the host's addresses. A name that has a forbidden one among them is refused as a whole."""
        found = await asyncio.get_running_loop().getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
        addresses = [str(entry[4][0]) for entry in found[:ADDRESSES_MAX]]
        if not addresses:
            raise WebhookFailedError("no_address")
        if not all(is_permitted_peer(address, allow_private=self._allow_private) for address in addresses):
            raise WebhookAddressError("address_not_permitted")
        return addresses[0]
