"""Fixtures of the tests of the master."""

import pytest
from master_fakes import StillLoop


@pytest.fixture
def loop():
    loop = StillLoop()
    yield loop
    loop.close()
