"""Amounts and the one rounding function.

An amount is an integer of nano (10^-9 of the asset). A price is nano per million tokens. Tokens times price is a
*numerator* in 10^-6 nano, and is never rounded by itself: an account keeps the sum of its numerators, and what
moves is the difference between two roundings of that sum (PROTOCOL §6). Rounding each request for itself leaks
up to one nano per request; rounding the cumulative value leaks less than one nano in a lifetime.
"""

import enum
import re

import msgspec

from cocoon.usage import TokenUsage

NANO_PER_UNIT = 10**9
"""Nano in one TON."""
NUMERATOR_PER_NANO = 10**6
"""A numerator of this much is one nano: prices are per million tokens."""
BASIS_POINTS = 10**4
"""Shares are given in hundredths of a per cent."""
CUSTOMER_BPS_MAX = 10 * BASIS_POINTS
"""The largest surcharge on a customer's prices: ten times the price."""
SHARE_NUMERATOR_PER_NANO = NUMERATOR_PER_NANO * BASIS_POINTS
"""A share numerator (tokens x price x share_bps) of this much is one nano."""


_UNITS = re.compile(r"(\d{1,12})(?:\.(\d{1,9}))?", re.ASCII)


class Asset(enum.StrEnum):
    """What an amount is an amount of."""

    TON = "TON"


class Amount(msgspec.Struct, frozen=True, gc=False, order=True, forbid_unknown_fields=True):
    """Integer nano of one asset. Amounts of different assets do not add."""

    nano: int
    asset: Asset = Asset.TON

    def __add__(self, other: "Amount") -> "Amount":
        self._require_same_asset(other)
        return Amount(self.nano + other.nano, self.asset)

    def __sub__(self, other: "Amount") -> "Amount":
        self._require_same_asset(other)
        return Amount(self.nano - other.nano, self.asset)

    def __str__(self) -> str:
        return f"{decimal_units(self.nano * NUMERATOR_PER_NANO)} {self.asset}"

    def _require_same_asset(self, other: "Amount") -> None:
        if self.asset is not other.asset:
            raise ValueError(f"cannot combine {self.asset} with {other.asset}")


class Price(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True, omit_defaults=True):
    """Nano per million tokens, frozen by its version. `share_bps` is the worker's part of it.

    `customer_bps` is what one customer pays of it, in basis points. What is rounded is the price, once, up to a whole
    nano per million tokens: numerators stay exact. The worker's part is of the price before it; what a customer saves
    or pays on top is the network's, so that nobody's discount goes below the worker's part.
    """

    version: int
    prompt: int
    cached: int
    completion: int
    share_bps: int = 9_500
    asset: Asset = Asset.TON
    customer_bps: int = BASIS_POINTS

    def __post_init__(self) -> None:
        if min(self.prompt, self.cached, self.completion, self.version) < 0 or self.cached > self.prompt:
            raise ValueError("prices are >= 0, and a cached token never costs more than an uncached one")
        if not 0 <= self.share_bps <= BASIS_POINTS:
            raise ValueError("share_bps lies between 0 and 10000")
        if not self.share_bps <= self.customer_bps <= CUSTOMER_BPS_MAX:
            raise ValueError("a customer pays the worker's part at least, and ten times the price at most")

    def as_charged(self) -> "Price":
        """The price that the customer pays, as a price of its own."""
        if self.customer_bps == BASIS_POINTS:
            return self
        prompt, cached, completion = (
            -(-nano * self.customer_bps // BASIS_POINTS) for nano in (self.prompt, self.cached, self.completion)
        )
        return msgspec.structs.replace(
            self, prompt=prompt, cached=cached, completion=completion, customer_bps=BASIS_POINTS
        )

    def numerator(self, usage: TokenUsage) -> int:
        """What the customer pays for `usage`, exactly, in 10^-6 nano."""
        return self.as_charged().worker_numerator(usage)

    def worker_numerator(self, usage: TokenUsage) -> int:
        """What `usage` is worth before the customer's discount or surcharge: the worker has its part of this."""
        uncached = usage.prompt - usage.cached
        return uncached * self.prompt + usage.cached * self.cached + usage.completion * self.completion


def rounded_difference(before: int, added: int, *, per_nano: int, up: bool) -> int:
    """Nano that move when a cumulative numerator grows from `before` by `added`.

    The cumulative value is rounded up for what a customer owes and down for what a party is owed. This is the
    only place where money is rounded.
    """
    assert before >= 0, "cumulative numerators start at zero"
    assert added >= 0, "cumulative numerators only grow"
    after = before + added
    if up:
        return -(-after // per_nano) + (-before // per_nano)
    return after // per_nano - before // per_nano


def charge_nano(before: int, numerator: int) -> int:
    """What a customer pays for `numerator` more, given all it has owed `before`."""
    return rounded_difference(before, numerator, per_nano=NUMERATOR_PER_NANO, up=True)


def share_nano(before: int, share_numerator: int) -> int:
    """What a worker or the network receives for `share_numerator` more (tokens x price x bps)."""
    return rounded_difference(before, share_numerator, per_nano=SHARE_NUMERATOR_PER_NANO, up=False)


def ceiling(numerator: int, asset: Asset = Asset.TON) -> Amount:
    """The smallest whole amount that covers `numerator`: an upper bound on any charge for it."""
    return Amount(charge_nano(0, numerator), asset)


def parse_units(text: str) -> int:
    """Nano from an exact decimal number of whole units with at most nine decimals.

    Raises:
        ValueError: anything else; what cannot be said exactly is refused.
    """
    form = _UNITS.fullmatch(text)
    if form is None:
        raise ValueError("not a decimal number with at most nine decimals")
    return int(form[1]) * NANO_PER_UNIT + int((form[2] or "").ljust(9, "0"))


def decimal_units(numerator: int) -> str:
    """A numerator as an exact decimal of whole units: 1 is 0.000000000000001 TON."""
    whole, rest = divmod(abs(numerator), NANO_PER_UNIT * NUMERATOR_PER_NANO)
    fraction = f"{rest:015d}".rstrip("0")
    sign = "-" if numerator < 0 else ""
    return f"{sign}{whole}.{fraction}" if fraction else f"{sign}{whole}"
