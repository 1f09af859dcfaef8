"""The one setting of billing's commands."""

import pytest

from billing.settings import SettingsError, read_database_settings

URL = "postgresql://cocoon:hunter2@db/cocoon"


def test_the_url_is_read_and_never_shown() -> None:
    settings = read_database_settings({"COCOON_DATABASE_URL": URL})
    assert settings.database_url == URL
    assert "hunter2" not in repr(settings) + str(settings)


@pytest.mark.parametrize("environment", [{}, {"COCOON_DATABASE_URL": ""}, {"COCOON_DATABASE_URL": "mysql://secret@db"}])
def test_a_missing_or_foreign_url_is_refused_without_showing_it(environment: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match="COCOON_DATABASE_URL") as refused:
        read_database_settings(environment)
    assert "secret" not in str(refused.value)
