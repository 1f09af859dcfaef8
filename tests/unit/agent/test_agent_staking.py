"""The staked key: whom it speaks for, and the files that are not taken for one."""

import base64
import pathlib

import pytest

from cocoon.clock import ManualClock
from cocoon.contracts.stake import delegation_statement
from cocoon.delegation import verify_signature
from tests.stake_values import GLOBAL_ID, STAKED, STAKED_SEED, a_stake_config, a_staked_key
from workers.agent.keys import KeyRing
from workers.agent.settings import SettingsError, parse_settings
from workers.agent.staking import StakeUnusableError, read_staked_key


def files(folder: pathlib.Path, key: str = STAKED_SEED.hex(), config: str | None = None) -> tuple[pathlib.Path, ...]:
    paths = folder / "key", folder / "config"
    paths[0].write_text(key)
    paths[0].chmod(0o600)
    paths[1].write_text(base64.b64encode(a_staked_key().config).decode() + "\n" if config is None else config)
    return paths


def test_every_keyset_of_a_staked_worker_carries_its_own_delegation(tmp_path: pathlib.Path) -> None:
    key, config = files(tmp_path)
    staked = read_staked_key(key, config, global_id=GLOBAL_ID)
    ring = KeyRing(ManualClock(), b"b" * 16, staked=staked)
    first, second = ring.current, ring.successor()

    assert first.keyset.delegation != second.keyset.delegation
    for identity in (first, second):
        keyset = identity.keyset
        assert identity.stake == staked.address.account
        assert keyset.stake_addr == str(staked.address)
        statement = delegation_statement(
            global_id=GLOBAL_ID, stake=identity.stake, receipt_key=keyset.receipt_pk, not_after=keyset.not_after
        )
        verify_signature(STAKED.public_key().public_bytes_raw(), statement, keyset.delegation)


def test_a_key_that_others_may_read_is_not_used(tmp_path: pathlib.Path) -> None:
    key, config = files(tmp_path)
    key.chmod(0o640)
    with pytest.raises(StakeUnusableError, match="chmod 600"):
        read_staked_key(key, config, global_id=GLOBAL_ID)


@pytest.mark.parametrize("key", ["", "zz", "11" * 31, "11" * 33, "é"])
def test_what_is_no_key_is_refused_without_being_shown(tmp_path: pathlib.Path, key: str) -> None:
    with pytest.raises(StakeUnusableError) as caught:
        read_staked_key(*files(tmp_path, key), global_id=GLOBAL_ID)
    assert caught.value.__cause__ is None
    assert "hexadecimal" in str(caught.value)
    assert "1111" not in str(caught.value)


@pytest.mark.parametrize("config", ["", "x", "AAAA", "é" * 20_000])
def test_what_is_no_configuration_is_refused(tmp_path: pathlib.Path, config: str) -> None:
    with pytest.raises(StakeUnusableError, match="not a stake's configuration"):
        read_staked_key(*files(tmp_path, config=config), global_id=GLOBAL_ID)


def test_a_missing_file_is_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(StakeUnusableError, match="key"):
        read_staked_key(tmp_path / "key", tmp_path / "config", global_id=GLOBAL_ID)


def test_another_workers_key_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(StakeUnusableError, match="another staked key"):
        read_staked_key(*files(tmp_path, "12" * 32), global_id=GLOBAL_ID)
    assert a_stake_config().staked_key == STAKED.public_key().public_bytes_raw()


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"COCOON_STAKED_KEY_FILE": "k"}, "set together"),
        ({"COCOON_STAKE_CONFIG_FILE": "c"}, "set together"),
        ({"COCOON_STAKED_KEY_FILE": "k", "COCOON_STAKE_CONFIG_FILE": "c"}, "COCOON_GLOBAL_ID"),
    ],
)
def test_half_a_stake_is_a_mistake_in_the_settings(changes: dict[str, str], why: str) -> None:
    environ = {
        "COCOON_ENV": "development", "COCOON_GATEWAY_URL": "http://127.0.0.1:1", "COCOON_ENGINE": "http://127.0.0.1:2",
        "COCOON_WORKER_KEY": "wk-cocoon-" + "A" * 43, "COCOON_SERVED_MODEL": "m",
    }  # fmt: skip
    with pytest.raises(SettingsError, match=why):
        parse_settings(environ | changes)
