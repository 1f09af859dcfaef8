"""A customer's URL leads to where customers may send the gateway, and nowhere else."""

import asyncio
import socket
from typing import Any

import pytest

from gateway.webhooks import WebhookAddressError, WebhookFailedError, WebhookPoster, require_sound_url


@pytest.mark.parametrize(
    "url",
    [
        "http://hooks.example.org/x", "https://127.0.0.1/x", "https://10.0.0.1", "https://[::1]/", "https://localhost/",
        "https://169.254.169.254/latest", "https://metadata.internal/", "https://2130706433/", "https://0x7f.1/",
        "https://[::ffff:127.0.0.1]/", "https://user@example.org/", "https://example.org/?a=b", "https://example.org/#f",
        "ftp://example.org/", "https:///x", "https://example.org:0/", "https://exa mple.org/", "https://e.org/\r\nx: y",
        "https://example.org/" + "x" * 600, "https://printer/", "https://192.168.1.1:8443/",
    ],
)  # fmt: skip
def test_what_is_not_a_public_https_address_is_refused(url: str) -> None:
    with pytest.raises(WebhookAddressError):
        require_sound_url(url, allow_private=False)


def test_public_addresses_are_taken_and_private_ones_where_that_is_allowed() -> None:
    assert require_sound_url("https://hooks.example.org/a/b", allow_private=False).path == "/a/b"
    assert require_sound_url("http://127.0.0.1:8080/x", allow_private=True).port == 8080
    with pytest.raises(WebhookAddressError):
        require_sound_url("http://169.254.169.254/", allow_private=True)


@pytest.mark.parametrize(
    "addresses", [["127.0.0.1"], ["93.184.216.34", "10.0.0.7"], ["fd00::1"], ["::ffff:10.0.0.1"], ["169.254.169.254"]]
)
async def test_a_public_name_of_a_private_address_is_refused_without_a_connection(
    monkeypatch: pytest.MonkeyPatch, addresses: list[str]
) -> None:
    loop = asyncio.get_running_loop()
    connected: list[Any] = []

    async def resolve(host: str, port: int, **_: Any) -> list[Any]:
        assert host == "hooks.example.org"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    async def connect(*arguments: Any, **_: Any) -> Any:
        connected.append(arguments)
        raise AssertionError

    monkeypatch.setattr(loop, "getaddrinfo", resolve)
    monkeypatch.setattr(loop, "create_connection", connect)
    with pytest.raises(WebhookAddressError):
        await WebhookPoster(allow_private=False).post("https://hooks.example.org/x", {}, b"{}")
    assert connected == []


async def test_the_connection_goes_to_the_address_that_was_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    connected: list[Any] = []

    async def resolve(_: str, port: int, **__: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.216.34", port))]

    async def connect(_: Any, host: str, port: int, **options: Any) -> Any:
        connected.append((host, port, options["server_hostname"]))
        raise ConnectionRefusedError

    monkeypatch.setattr(loop, "getaddrinfo", resolve)
    monkeypatch.setattr(loop, "create_connection", connect)
    with pytest.raises(WebhookFailedError, match="ConnectionRefusedError"):
        await WebhookPoster(allow_private=False).post("https://hooks.example.org/x", {}, b"{}")
    assert connected == [("93.184.216.34", 443, "hooks.example.org")]


async def test_a_header_cannot_bring_another(monkeypatch: pytest.MonkeyPatch) -> None:
    del monkeypatch
    with pytest.raises(WebhookFailedError):
        await WebhookPoster(allow_private=True).post("http://127.0.0.1:9/", {"webhook-id": "a\r\nx: y"}, b"{}")
