"""What the tests of the master share."""

import pytest
from master_fakes import StillLoop


@pytest.fixture
def loop():
    loop = StillLoop()
    yield loop
    loop.close()
