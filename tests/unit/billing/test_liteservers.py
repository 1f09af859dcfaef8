"""Liteservers in the form of TON's global.config.json: what is read, and what stops the start-up."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from billing.settings import SettingsError
from billing.ton.settings import Liteserver, liteservers_setting, parse_liteservers

KEY = bytes(range(32))


def server(**changes: Any) -> dict[str, Any]:
    key = {"@type": "pub.ed25519", "key": base64.b64encode(KEY).decode()}
    return {"ip": 0x7F000001, "port": 4443, "id": key, **changes}


def config(*servers: dict[str, Any]) -> bytes:
    return json.dumps({"@type": "config.global", "dht": {}, "liteservers": servers, "validator": {}}).encode()


def test_addresses_are_signed_integers() -> None:
    read = parse_liteservers(config(server(), server(ip=-2018135749), server(ip=2276831547)))

    assert read == (
        Liteserver("127.0.0.1", 4443, KEY), Liteserver("135.181.177.59", 4443, KEY),
        Liteserver("135.181.177.59", 4443, KEY),
    )  # fmt: skip
    assert str(read[0]) == "127.0.0.1:4443"


@pytest.mark.parametrize(
    "text",
    [
        b"", b"{}", b"[]", b'{"liteservers": []}', config(server(port=0)), config(server(port=65536)),
        config(server(ip=2**32)), config(server(ip="127.0.0.1")), config(server(id={"key": "no base64!"})),
        config(server(id={"key": base64.b64encode(KEY[:31]).decode()})), config(server(id={})),
        config(*[server()] * 65), b"\xff",
    ],
)  # fmt: skip
def test_what_is_no_configuration_is_refused(text: bytes) -> None:
    with pytest.raises(SettingsError):
        parse_liteservers(text)


def test_the_setting_names_a_file(tmp_path: Path) -> None:
    path = tmp_path / "global.config.json"
    with pytest.raises(SettingsError, match="cannot read"):
        liteservers_setting({"COCOON_LITESERVERS": str(path)})
    path.write_bytes(config(server()))
    assert liteservers_setting({"COCOON_LITESERVERS": str(path)}) == (Liteserver("127.0.0.1", 4443, KEY),)
    path.write_bytes(bytes(2**20 + 1))
    with pytest.raises(SettingsError, match="too long"):
        liteservers_setting({"COCOON_LITESERVERS": str(path)})
    assert liteservers_setting({}) is None
