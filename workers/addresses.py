"""Which addresses the gateway may be asked to connect to, decided without resolving a name.

A worker's URL comes from whoever holds a worker key. Without this rule it could point the gateway at the cloud's
metadata service, at Postgres, or at itself. A public name may still *resolve* to a private address: whoever connects
checks the peer's address with `is_permitted_peer` as well, and the keyset's TLS pin stands behind both.
"""

import ipaddress
import re
from urllib.parse import urlsplit

import msgspec

from workers.errors import WorkerURLRefusedError

HOST_CHARS_MAX = 253
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_TOP_LABEL = re.compile(r"[a-z]{2,63}|xn--[a-z0-9-]{1,59}")
_PRIVATE_SUFFIXES = (".localhost", ".local", ".internal", ".localdomain", ".lan", ".home.arpa", ".onion")
_TRANSITION = tuple(
    ipaddress.ip_network(text) for text in ("::ffff:0:0/96", "::/96", "64:ff9b::/96", "64:ff9b:1::/48", "2002::/16")
)
"""IPv6 that carries an IPv4 address inside: never needed, and a way around the rules for it."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Endpoint(msgspec.Struct, frozen=True):
    """A parsed base URL; `host` is lower-case and without brackets, `path` without a final slash."""

    tls: bool
    host: str
    port: int
    path: str


def parse_endpoint(url: str) -> Endpoint:
    """Scheme, host, port and path of a base URL.

    Raises:
        WorkerURLRefusedError: not http(s), no host, a bad port, or parts that a base URL has no use for.
    """
    if not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        raise WorkerURLRefusedError("the URL has characters that do not belong in one")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise WorkerURLRefusedError("the URL is malformed") from error
    if parts.scheme not in {"http", "https"}:
        raise WorkerURLRefusedError("the URL must begin with http:// or https://")
    if "@" in parts.netloc or "?" in url or "#" in url:
        raise WorkerURLRefusedError("the URL may not hold credentials, a query or a fragment")
    tls = parts.scheme == "https"
    host = (parts.hostname or "").lower()
    if not host or len(host) > HOST_CHARS_MAX or "%" in host or port == 0:
        raise WorkerURLRefusedError("the URL needs a host and a port it can be reached at")
    return Endpoint(tls=tls, host=host, port=port or (443 if tls else 80), path=parts.path.rstrip("/"))


def require_permitted_host(host: str, *, allow_private: bool) -> None:
    """Refuse hosts that are not public, or only those that are never sensible when `allow_private`.

    Raises:
        WorkerURLRefusedError: the host is refused.
    """
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        _require_permitted_name(host, allow_private=allow_private)
        return
    if not _permitted(address, allow_private=allow_private):
        raise WorkerURLRefusedError("the address is not public")


def is_permitted_peer(address: str, *, allow_private: bool) -> bool:
    """Whether a connection that resolved to this IP address may be used."""
    try:
        return _permitted(ipaddress.ip_address(address), allow_private=allow_private)
    except ValueError:
        return False


def _permitted(address: Address, *, allow_private: bool) -> bool:
    if address.is_multicast or address.is_unspecified or address.is_link_local:
        return False
    if address.is_loopback:
        return allow_private
    if isinstance(address, ipaddress.IPv6Address) and any(address in network for network in _TRANSITION):
        return False
    if allow_private:
        return not address.is_reserved
    return address.is_global


def _require_permitted_name(host: str, *, allow_private: bool) -> None:
    labels = host.split(".")
    if not all(_LABEL.fullmatch(label) for label in labels):
        raise WorkerURLRefusedError("the host is neither an address nor a name")
    if labels[-1].isdigit() or labels[-1].startswith("0x"):
        # Resolvers read these as addresses in other notations.
        raise WorkerURLRefusedError("the address is not in its ordinary notation")
    if allow_private:
        return
    if len(labels) == 1 or _TOP_LABEL.fullmatch(labels[-1]) is None or f".{host}".endswith(_PRIVATE_SUFFIXES):
        raise WorkerURLRefusedError("the name is not public")
