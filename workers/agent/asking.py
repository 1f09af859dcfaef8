"""What this worker asks for its work, as its operator wrote it: in the configuration, or in a file that may change.

A file is read again with every heartbeat, so that an ask changes without a restart. While it cannot be read or says
nothing sensible, the last good ask stands.
"""

from pathlib import Path

import msgspec
import structlog

from cocoon.enrolment import Ask
from cocoon.money import parse_units

FILE_CHARS_MAX = 256
FILE_MARK = "@"
_PARTS = (2, 3)
_log: structlog.stdlib.BoundLogger = structlog.get_logger()


class AskMalformedError(ValueError):
    """The text is no ask."""


def parse_ask(text: str, *, model: str, or_ceiling: bool) -> Ask:
    """`PROMPT/COMPLETION` or `PROMPT/CACHED/COMPLETION`, each in TON per million tokens, exactly.

    Raises:
        AskMalformedError: it is something else.
    """
    parts = text.strip().split("/")
    if len(parts) not in _PARTS:
        raise AskMalformedError("an ask is PROMPT/COMPLETION or PROMPT/CACHED/COMPLETION")
    try:
        numbers = [parse_units(part.strip()) for part in parts]
    except ValueError as error:
        raise AskMalformedError("an ask is in TON per million tokens, with at most nine decimals") from error
    prompt, cached, completion = numbers[0], numbers[-2], numbers[-1]
    if cached > prompt:
        raise AskMalformedError("a cached token never costs more than an uncached one")
    return Ask(model=model, prompt=prompt, cached=cached, completion=completion, or_ceiling=or_ceiling)


class AskSource(msgspec.Struct):
    """Where the ask comes from: fixed, or a file (`path`)."""

    model: str
    or_ceiling: bool
    path: Path | None = None
    last: Ask | None = None
    troubled: bool = False

    def current(self) -> Ask | None:
        """What to ask now; None is the network's price."""
        if self.path is None:
            return self.last
        try:
            with self.path.open(encoding="ascii", errors="strict") as file:
                text = file.read(FILE_CHARS_MAX)
            # An empty file takes the ask back.
            self.last = parse_ask(text, model=self.model, or_ceiling=self.or_ceiling) if text.strip() else None
            self.troubled = False
        except (OSError, ValueError) as error:
            if not self.troubled:
                _log.warning("ask_unreadable", path=str(self.path), reason=str(error))
            self.troubled = True
        return self.last


def ask_source(text: str | None, *, model: str, or_ceiling: bool) -> AskSource:
    """The source that the configuration names: an ask, or `@FILE`.

    Raises:
        AskMalformedError: the ask is none.
    """
    if text is None:
        return AskSource(model=model, or_ceiling=or_ceiling)
    if text.startswith(FILE_MARK):
        return AskSource(model=model, or_ceiling=or_ceiling, path=Path(text.removeprefix(FILE_MARK)))
    return AskSource(model=model, or_ceiling=or_ceiling, last=parse_ask(text, model=model, or_ceiling=or_ceiling))
