"""What the development network is told from outside."""

from pathlib import Path

import pytest

from cli.dev.settings import read_dev_settings
from cli.dev.state import DevError


def test_defaults_need_no_environment() -> None:
    settings = read_dev_settings({})
    assert (settings.port, settings.state, settings.processes) == (8080, Path.cwd() / ".cocoon", 2)
    assert settings.base_url == "http://127.0.0.1:8080/v1"


def test_port_and_state_directory_can_be_chosen(tmp_path: Path) -> None:
    settings = read_dev_settings({"COCOON_PORT": "9090", "COCOON_STATE_DIR": str(tmp_path)})
    assert (settings.port, settings.state) == (9090, tmp_path)


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_a_network_on_every_address_is_shown_by_its_loopback_one(host: str) -> None:
    assert read_dev_settings({"COCOON_HOST": host}).origin == "http://127.0.0.1:8080"


def test_an_address_of_ipv6_is_bracketed() -> None:
    assert read_dev_settings({"COCOON_HOST": "::1"}).origin == "http://[::1]:8080"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("COCOON_PORT", "http"),
        ("COCOON_PORT", "0"),
        ("COCOON_PORT", "65536"),
        ("COCOON_PORT", "nan"),
        ("COCOON_PORT", "80.5"),
        ("COCOON_DRAIN_S", "-1"),
        ("COCOON_GATEWAY_PROCESSES", "0"),
    ],
)
def test_a_malformed_value_is_named(name: str, value: str) -> None:
    with pytest.raises(DevError, match=name):
        read_dev_settings({name: value})


def test_settings_show_no_inherited_secret() -> None:
    assert "hunter2" not in repr(read_dev_settings({"SOME_TOKEN": "hunter2"}))
