"""What billing's commands read from the environment, once."""

import os
from collections.abc import Mapping
from typing import ClassVar
from urllib.parse import urlsplit

import msgspec

from billing.ports import BillingError

DATABASE_URL_VARIABLE = "COCOON_DATABASE_URL"


class SettingsError(BillingError):
    """A setting is missing or malformed."""

    code: ClassVar[str] = "settings_invalid"


class DatabaseSettings(msgspec.Struct, frozen=True):
    """Where the books are. The URL carries a password, so it is never printed."""

    database_url: str

    def __repr__(self) -> str:
        return "DatabaseSettings(database_url=<redacted>)"


def read_database_settings(environment: Mapping[str, str] = os.environ) -> DatabaseSettings:
    """The settings of this process.

    Raises:
        SettingsError: `COCOON_DATABASE_URL` is unset or not a `postgresql://` URL.
    """
    url = environment.get(DATABASE_URL_VARIABLE, "")
    if not url:
        raise SettingsError(f"set {DATABASE_URL_VARIABLE} to the URL of the database")
    if urlsplit(url).scheme not in {"postgres", "postgresql"}:
        raise SettingsError(f"{DATABASE_URL_VARIABLE} must be a postgresql:// URL")
    return DatabaseSettings(database_url=url)
