"""Where an agent's evidence comes from: a simulated machine, or Linux's configfs-tsm."""

import datetime as dt
from pathlib import Path

import pytest

from attestation.evidence import Evidence
from attestation.judge import Question, judge
from attestation.policy import Deployment
from attestation.simulation.tee import SimulationRefusedError
from cocoon import canonical
from cocoon.clock import ManualClock
from cocoon.statement import Statement, report_data
from tests.attested import machine, policy_of
from tests.unit.agent.agent_values import SETTINGS
from workers.agent.keys import Identity
from workers.agent.main import new_tee
from workers.agent.settings import SettingsError, parse_settings
from workers.agent.tees.beacons import ToldBeacons
from workers.agent.tees.ports import EvidenceError, NoTEE
from workers.agent.tees.simulated import SimulatedSource
from workers.agent.tees.tdx import TDXSource, TSMReports, _EventLog  # pyright: ignore[reportPrivateUsage]

NONCE = b"n" * 32
DEVELOPMENT = Deployment("development", -3)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(dt.datetime(2026, 11, 22, 12, tzinfo=dt.UTC))


class Kernel(TSMReports):
    """A folder that behaves as configfs does: a write counts a generation and makes a quote of what was written."""

    def __init__(self, folder: Path, *, interferes: int = 0, provider: str = "tdx_guest") -> None:
        super().__init__(folder)
        self._interferes = interferes
        self._entry.mkdir()
        for name, content in (("provider", f"{provider}\n"), ("generation", "7\n"), ("outblob", "")):
            (self._entry / name).write_text(content)

    def _write(self, attribute: str, content: bytes) -> None:
        super()._write(attribute, content)
        generation = int((self._entry / "generation").read_text()) + 1
        (self._entry / "outblob").write_bytes(b"quote of " + content)
        if self._interferes:
            self._interferes -= 1
            generation += 1
            (self._entry / "outblob").write_bytes(b"quote of somebody else's")
        (self._entry / "generation").write_text(f"{generation}\n")


def test_a_quote_is_read_for_what_was_written(tmp_path: Path) -> None:
    assert Kernel(tmp_path).quote(b"x" * 64) == b"quote of " + b"x" * 64


def test_a_quote_that_another_writer_may_have_caused_is_not_taken(tmp_path: Path) -> None:
    assert Kernel(tmp_path, interferes=2).quote(b"x" * 64) == b"quote of " + b"x" * 64
    (tmp_path / "endless").mkdir()
    with pytest.raises(EvidenceError, match="another process"):
        Kernel(tmp_path / "endless", interferes=100).quote(b"x" * 64)


def test_a_machine_that_is_no_tdx_guest_gives_no_quote(tmp_path: Path) -> None:
    with pytest.raises(EvidenceError, match="sev_guest"):
        Kernel(tmp_path, provider="sev_guest").quote(b"x" * 64)
    with pytest.raises(EvidenceError, match="No such file"):
        TSMReports(tmp_path / "nowhere").quote(b"x" * 64)


async def test_tdx_evidence_states_keyset_and_nonce_with_the_images_event_log(
    tmp_path: Path, clock: ManualClock
) -> None:
    events = machine().event_log(b"m" * 32)
    log = tmp_path / "events.json"
    log.write_bytes(canonical.encode(_EventLog(v=1, events=events)) + b"\n")
    source = TDXSource(Kernel(tmp_path), log, ToldBeacons(clock))
    keyset = Identity(clock, b"b" * 16).raw
    evidence = Evidence.decode(await source.evidence(keyset, NONCE))
    statement = Statement.decode(evidence.statement)
    assert (evidence.tee, evidence.keyset, evidence.event_log, statement.nonce) == ("tdx", keyset, events, NONCE)
    assert evidence.quote == b"quote of " + report_data(evidence.statement)
    # Without a chain nothing about one is claimed.
    assert (statement.beacon.seqno, any(statement.beacon.root_hash)) == (0, False)
    for broken in (b"", b"{}", b'{"events":[],"v":2}', b"\xff"):
        log.write_bytes(broken)
        with pytest.raises(EvidenceError):
            await source.evidence(keyset, NONCE)


async def test_simulated_evidence_convinces_the_simulated_policy(clock: ManualClock) -> None:
    source = SimulatedSource(bytes(32), machine="w", gpus=1, deployment=DEVELOPMENT, beacons=ToldBeacons(clock))
    evidence = Evidence.decode(await source.evidence(Identity(clock, b"b" * 16).raw, NONCE))
    policy = policy_of(machine(), ("bind_manifest = true", "bind_manifest = false"))
    verdict = judge(
        evidence, machine().endorsements(clock.now()), policy,
        Question(at=clock.now(), deployment=DEVELOPMENT, nonce=NONCE),
    )  # fmt: skip
    assert (verdict.accepted, verdict.tee_type, verdict.freshness) == (True, "tdx-simulated", "nonce"), verdict
    assert source.tee_type == verdict.tee_type


async def test_no_tee_shows_nothing(clock: ManualClock) -> None:
    none = new_tee(parse_settings(SETTINGS | {"COCOON_ENV": "development"}), ToldBeacons(clock))
    assert isinstance(none, NoTEE)
    assert await none.evidence(b"", NONCE) == b""


def test_a_simulated_tee_needs_development_a_seed_and_another_network_than_the_main_one(clock: ManualClock) -> None:
    simulated = {"COCOON_TEE_TYPE": "simulated", "COCOON_SIMULATED_SEED": "5e" * 32}
    with pytest.raises(SettingsError, match="COCOON_ENV"):
        parse_settings(SETTINGS | simulated)
    with pytest.raises(SettingsError, match="COCOON_SIMULATED_SEED"):
        parse_settings(SETTINGS | simulated | {"COCOON_ENV": "development", "COCOON_SIMULATED_SEED": "5e"})
    mainnet = parse_settings(SETTINGS | simulated | {"COCOON_ENV": "development", "COCOON_GLOBAL_ID": "-239"})
    with pytest.raises(SimulationRefusedError):
        new_tee(mainnet, ToldBeacons(clock))
    assert "5e5e" not in repr(mainnet)


def test_a_tdx_worker_launches_its_own_engine(clock: ManualClock) -> None:
    tdx = SETTINGS | {"COCOON_TEE_TYPE": "tdx", "COCOON_TDX_EVENT_LOG": "/run/cocoon/events.json"}
    assert isinstance(new_tee(parse_settings(tdx), ToldBeacons(clock)), TDXSource)
    with pytest.raises(SettingsError, match="URL"):
        parse_settings(tdx | {"COCOON_ENGINE": "http://127.0.0.1:1", "COCOON_SERVED_MODEL": "m"})
    with pytest.raises(SettingsError, match="COCOON_TDX_EVENT_LOG"):
        parse_settings(SETTINGS | {"COCOON_TEE_TYPE": "tdx"})
