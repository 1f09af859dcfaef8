"""Connections to targets: opened, pinned to the enrolled key, kept for the next request, given up in time.

A connection is kept only when its last answer is complete. Before it is used again it must be young enough and silent:
whatever has arrived on it meanwhile, the other side's goodbye included, means that it is of no more use.
"""

import asyncio
import hashlib
import ssl
from collections import deque
from typing import ClassVar, NamedTuple

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cocoon.clock import Clock
from cocoon.errors import CocoonError
from cocoon.http1 import Connection
from workers.addresses import is_permitted_peer

CONNECT_S_MAX = 5.0
IDLE_S_MAX = 20.0
"""No connection is kept for longer."""
IDLE_CONNECTIONS_MAX = 64
"""Kept open per target."""
PINS_MAX = 4096


class TransportError(CocoonError):
    """The worker cannot be reached or does not keep to the protocol."""

    code: ClassVar[str] = "worker_unreachable"
    transient: ClassVar[bool] = True


class IdentityError(TransportError):
    """The worker's TLS key is not the one it enrolled with."""

    code: ClassVar[str] = "worker_identity"


class Route(NamedTuple):
    """Where a connection leads. `pin` is the SHA-256 of the only key that may answer; None trusts the public PKI."""

    host: str
    port: int
    tls: bool
    pin: bytes | None


class Connections:
    """Kept connections by route, and new ones."""

    def __init__(self, clock: Clock, *, allow_private: bool) -> None:
        self._clock = clock
        self._allow_private = allow_private
        self._kept: dict[Route, deque[Connection]] = {}
        self._sweep_at = clock.monotonic() + IDLE_S_MAX
        self._pins: dict[bytes, bytes] = {}
        self._pinned = _pinned_context()
        self._public = ssl.create_default_context()

    def take(self, route: Route, idle_s_max: float = IDLE_S_MAX) -> Connection | None:
        """A kept connection that has been idle for less than `idle_s_max`, the most recently used first."""
        kept = self._kept.get(route)
        now = self._clock.monotonic()
        while kept:
            connection = kept.pop()
            if now - connection.idle_since < idle_s_max and connection.reusable and connection.silent:
                return connection
            connection.abort()
        return None

    def give_back(self, route: Route, connection: Connection) -> None:
        """Keep the connection if its answer is complete and there is room, else abort it."""
        kept = self._kept.get(route)
        if kept is None:
            kept = self._kept[route] = deque()
        now = self._clock.monotonic()
        if connection.reusable and len(kept) < IDLE_CONNECTIONS_MAX:
            connection.idle_since = now
            kept.append(connection)
        else:
            connection.abort()
        if now >= self._sweep_at:
            self._sweep(now)

    async def open(self, route: Route) -> Connection:
        """A new connection, its peer checked.

        Raises:
            TransportError: nobody answers within `CONNECT_S_MAX`, or at an address that is not permitted.
            IdentityError: the peer's key is not the pinned one.
        """
        context = self._pinned if route.pin is not None else self._public if route.tls else None
        try:
            async with asyncio.timeout(CONNECT_S_MAX):
                _, connection = await asyncio.get_running_loop().create_connection(
                    Connection, route.host, route.port, ssl=context, server_hostname=route.host if context else None
                )
        except (OSError, UnicodeError) as error:
            # OSError includes TimeoutError and SSLError; UnicodeError is a name that is none.
            raise TransportError("the worker cannot be reached") from error
        if route.pin is not None:
            try:
                self._check_peer(connection, route.pin)
            except TransportError:
                connection.abort()
                raise
        return connection

    def close(self) -> None:
        """Close what is idle."""
        for kept in self._kept.values():
            for connection in kept:
                connection.abort()
        self._kept.clear()

    def _sweep(self, now: float) -> None:
        """Let go of what was kept for nothing; keysets change, so that most routes are forgotten in the end."""
        self._sweep_at = now + IDLE_S_MAX
        for route, kept in tuple(self._kept.items()):
            while kept and now - kept[0].idle_since >= IDLE_S_MAX:
                kept.popleft().abort()
            if not kept:
                del self._kept[route]

    def _check_peer(self, connection: Connection, pin: bytes) -> None:
        """A worker's address came from outside: what it resolved to, and who answers there, must be what we expect."""
        peer: tuple[str, int] | None = connection.transport.get_extra_info("peername")
        if peer is None:
            raise TransportError("the worker left at once")
        if not is_permitted_peer(peer[0], allow_private=self._allow_private):
            raise TransportError("the worker's name resolves to an address that is not permitted")
        if self._peer_pin(connection) != pin:
            raise IdentityError

    def _peer_pin(self, connection: Connection) -> bytes:
        tls = connection.transport.get_extra_info("ssl_object")
        certificate: bytes = tls.getpeercert(binary_form=True) or b""
        digest = hashlib.sha256(certificate).digest()
        if digest not in self._pins:
            if len(self._pins) >= PINS_MAX:
                self._pins.clear()
            self._pins[digest] = spki_sha256(certificate)
        return self._pins[digest]


def spki_sha256(certificate: bytes) -> bytes:
    """SHA-256 of a DER certificate's SubjectPublicKeyInfo.

    Raises:
        IdentityError: not a certificate, or one with a key that nothing here can read.
    """
    try:
        key = x509.load_der_x509_certificate(certificate).public_key()
    except (ValueError, x509.InvalidVersion, UnsupportedAlgorithm) as error:
        raise IdentityError from error
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()


def _pinned_context() -> ssl.SSLContext:
    """TLS 1.3 without a public PKI: the key is compared with the enrolled one instead."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
