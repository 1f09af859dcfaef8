from collections.abc import Iterator

import pytest

from tests.e2e.dev_network import Dev, Network, dev_in_own_folder


@pytest.fixture
def dev() -> Iterator[Dev]:
    with dev_in_own_folder() as dev:
        yield dev


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    """One running network for all tests of a module; they must not hurt it."""
    with dev_in_own_folder() as dev:
        yield Network(dev, dev.start())
        assert dev.interrupt() == 0, dev.diagnose()
        assert dev.left() == []
