"""Quotes of an Intel TDX guest, from the kernel's configfs-tsm interface.

Source: Linux, Documentation/ABI/testing/configfs-tsm-report (6.7 and newer). A folder made under `report` is an entry;
64 bytes written to `inblob` are what the quote covers, `outblob` is the quote. `generation` counts the writes to an
entry, so that a reader can tell that nobody else has written between its write and its read.
"""

import asyncio
import contextlib
from pathlib import Path
from typing import Final

import msgspec

from attestation.evidence import Evidence
from attestation.tdx.eventlog import EVENTS_MAX, LogEvent
from cocoon import canonical
from cocoon.enrolment import keyset_digest
from cocoon.errors import MalformedError
from cocoon.statement import Statement, report_data
from workers.agent.tees.ports import BeaconSource, EvidenceError

PROVIDER: Final = "tdx_guest"
ENTRY: Final = "cocoon"
ATTEMPTS_MAX: Final = 4
QUOTE_BYTES_MAX: Final = 64 * 1024
EVENT_LOG_BYTES_MAX: Final = 512 * 1024


class _EventLog(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    v: int
    events: tuple[LogEvent, ...]


class TSMReports:
    """One entry of configfs-tsm. Blocking; one caller at a time."""

    def __init__(self, folder: Path) -> None:
        self._entry = folder / ENTRY

    def quote(self, covered: bytes) -> bytes:
        """A quote over 64 bytes.

        Raises:
            EvidenceError: this is no TDX guest, the platform refuses, or somebody else keeps writing to the entry.
        """
        try:
            # One that a killed agent left behind is as good as a new one.
            with contextlib.suppress(FileExistsError):
                self._entry.mkdir()
            provider = self._read("provider").decode("ascii", "replace").strip()
            if provider != PROVIDER:
                raise EvidenceError(f"the kernel's reports come from {provider!r}, not from {PROVIDER}")
            for _ in range(ATTEMPTS_MAX):
                before = self._generation()
                self._write("inblob", covered)
                quote = self._read("outblob")
                if self._generation() == before + 1:
                    break
            else:
                raise EvidenceError("another process writes to this agent's entry of configfs-tsm")
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "an attribute is not what it should be"
            raise EvidenceError(f"configfs-tsm gives no quote: {reason}") from error
        if not 0 < len(quote) <= QUOTE_BYTES_MAX:
            raise EvidenceError("configfs-tsm gives a quote of no sensible length")
        return quote

    def _generation(self) -> int:
        return int(self._read("generation"))

    def _read(self, attribute: str) -> bytes:
        return (self._entry / attribute).read_bytes()

    def _write(self, attribute: str, content: bytes) -> None:
        (self._entry / attribute).write_bytes(content)


class TDXSource:
    """Evidence of the TDX guest that this agent runs in.

    `event_log` is written by the measured image while it boots: `{"v":1,"events":[...]}` in the canonical form of
    `attestation.tdx.eventlog.LogEvent`. GPUs are not collected yet: a release with GPUs will not accept this evidence.
    """

    tee_type = "tdx"

    def __init__(self, reports: TSMReports, event_log: Path, beacons: BeaconSource) -> None:
        self._reports = reports
        self._event_log = event_log
        self._beacons = beacons
        self._turn = asyncio.Lock()

    async def evidence(self, keyset: bytes, nonce: bytes | None) -> bytes:
        """A quote takes the platform tens of milliseconds; it gives one at a time.

        Raises:
            EvidenceError: see `TSMReports.quote`, or the event log cannot be read.
        """
        statement = Statement(
            v=1, keyset_digest=keyset_digest(keyset), beacon=self._beacons.current(), nonce=nonce
        ).encode()
        async with self._turn:
            quote = await asyncio.to_thread(self._reports.quote, report_data(statement))
            events = await asyncio.to_thread(_read_events, self._event_log)
        return Evidence(v=1, tee="tdx", keyset=keyset, statement=statement, quote=quote, event_log=events).encode()


def _read_events(path: Path) -> tuple[LogEvent, ...]:
    try:
        with path.open("rb") as file:
            raw = file.read(EVENT_LOG_BYTES_MAX + 1)
    except OSError as error:
        raise EvidenceError(f"the event log cannot be read: {error.strerror}") from error
    try:
        log = canonical.decode(raw.rstrip(b"\n"), _EventLog)
    except MalformedError as error:
        raise EvidenceError("the event log is malformed") from error
    if len(raw) > EVENT_LOG_BYTES_MAX or len(log.events) > EVENTS_MAX or log.v != 1:
        raise EvidenceError("the event log is too long, or of another version")
    return log.events
