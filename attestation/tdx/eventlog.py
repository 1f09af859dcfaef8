"""Replaying an event log into the runtime measurement registers (RTMR 0 to 3) that a quote reports.

A register is extended by `sha384(register ‖ digest)`. Boot events are digests that firmware and kernel measured; events
of our own image are of type `RUNTIME_EVENT`, and their digest covers name and payload, so that both can be believed.
"""

import hashlib
from collections.abc import Sequence
from typing import Annotated, Final

import msgspec

from attestation.findings import Code, RefusedError

RUNTIME_EVENT: Final = 0x08000001
EVENTS_MAX: Final = 1024
MANIFEST_EVENT: Final = "cocoon-manifest"
"""The event whose payload is the digest of the model manifest that the measured image serves."""
RUNTIME_REGISTER: Final = 3

_REGISTERS: Final = 4
_DIGEST_BYTES: Final = 48


class LogEvent(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One extension of one register. A runtime event's digest is computed, never carried."""

    register: Annotated[int, msgspec.Meta(ge=0, lt=_REGISTERS)]
    kind: Annotated[int, msgspec.Meta(ge=0, lt=2**32)]
    digest: Annotated[bytes, msgspec.Meta(max_length=_DIGEST_BYTES)] = b""
    name: Annotated[str, msgspec.Meta(max_length=256)] = ""
    payload: Annotated[bytes, msgspec.Meta(max_length=8192)] = b""

    def measured(self) -> bytes:
        """The 48 bytes that extend the register.

        Raises:
            RefusedError: the digest has another length, or is not the one of name and payload.
        """
        if self.kind != RUNTIME_EVENT:
            if len(self.digest) != _DIGEST_BYTES:
                raise RefusedError(Code.EVENT_LOG_MISMATCH, "a boot event carries no SHA-384 digest")
            return self.digest
        head = self.kind.to_bytes(4, "little") + b":" + self.name.encode() + b":"
        digest = hashlib.sha384(head + self.payload).digest()
        if self.digest not in (b"", digest):
            raise RefusedError(Code.EVENT_LOG_MISMATCH, f"event {self.name!r} does not have the digest it claims")
        return digest


def replay(events: Sequence[LogEvent]) -> tuple[bytes, ...]:
    """The four registers after these events.

    Raises:
        RefusedError: too many events, or one whose digest is wrong.
    """
    if len(events) > EVENTS_MAX:
        raise RefusedError(Code.EVENT_LOG_MISMATCH, f"the event log has more than {EVENTS_MAX} events")
    registers = [bytes(_DIGEST_BYTES)] * _REGISTERS
    for event in events:
        registers[event.register] = hashlib.sha384(registers[event.register] + event.measured()).digest()
    return tuple(registers)


def check_log(events: Sequence[LogEvent], rtmrs: Sequence[bytes]) -> None:
    """Check that the log explains all four registers.

    Raises:
        RefusedError: it does not.
    """
    for number, (replayed, reported) in enumerate(zip(replay(events), rtmrs, strict=True)):
        if replayed != reported:
            raise RefusedError(Code.EVENT_LOG_MISMATCH, f"the event log does not replay to RTMR{number}")


def runtime_events(events: Sequence[LogEvent]) -> list[LogEvent]:
    """What our image measured into its own register, in order.

    Raises:
        RefusedError: an event there is not a runtime event: its name and payload would be anybody's claim.
    """
    ours = [event for event in events if event.register == RUNTIME_REGISTER]
    if any(event.kind != RUNTIME_EVENT for event in ours):
        raise RefusedError(Code.EVENT_LOG_MISMATCH, "a register of our own has an event whose content is not measured")
    return ours
