"""Identifiers: job ids that carry their day, and API keys that are stored only as hashes."""

import base64
import datetime as dt
import functools
import hashlib
import random
import re
import uuid

from cocoon.clock import Clock, unix_ms
from cocoon.errors import MalformedError

API_KEY_PREFIX = "sk-cocoon-"
ADMIN_KEY_PREFIX = "ak-cocoon-"
WORKER_KEY_PREFIX = "wk-cocoon-"
_KEY_BYTES = 32
_EPOCH_DAY = dt.date(1970, 1, 1)
_MS_PER_DAY = 86_400_000
_KEY_FORM = re.compile(r"(?:sk|ak|wk)-cocoon-[A-Za-z0-9_-]{43}")


def new_job_id(clock: Clock, rng: random.Random) -> uuid.UUID:
    """A UUIDv7 (RFC 9562 §5.7): 48 bits of Unix milliseconds, then random bits."""
    value = (unix_ms(clock.now()) & (2**48 - 1)) << 80 | rng.getrandbits(80)
    value = value & ~(0xF << 76) | 0x7 << 76
    return uuid.UUID(int=value & ~(0x3 << 62) | 0x2 << 62)


def job_day(job_id: uuid.UUID) -> dt.date:
    """The UTC day inside a UUIDv7: the partition key of everything that is recorded about the job.

    Raises:
        MalformedError: the id is not a UUIDv7, or its day lies after the year 9999.
    """
    value = job_id.int
    if (value >> 76) & 0xF != 7 or (value >> 62) & 0x3 != 2:  # noqa: PLR2004  version and variant (RFC 9562 §4)
        raise MalformedError("a job id is a UUIDv7")
    try:
        return _day((value >> 80) // _MS_PER_DAY)
    except OverflowError as error:
        raise MalformedError("a job id's time is absurd") from error


@functools.lru_cache(maxsize=64)
def _day(number: int) -> dt.date:
    """Every request asks for its day several times, and it is nearly always today."""
    return _EPOCH_DAY + dt.timedelta(days=number)


def new_secret_key(prefix: str, rng: random.Random) -> str:
    """A key of 256 random bits behind one of the prefixes above. It is shown once and never stored."""
    raw = rng.getrandbits(_KEY_BYTES * 8).to_bytes(_KEY_BYTES, "big")
    return prefix + base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def is_secret_key(text: str) -> bool:
    """Whether `text` has the form of one of our keys; says nothing about its validity."""
    return _KEY_FORM.fullmatch(text) is not None


def secret_key_hash(key: str) -> bytes:
    """SHA-256 of the key: what is stored. 256 random bits need no salt and no slow hash."""
    return hashlib.sha256(key.encode()).digest()
