"""A real Master, with puppets for workers."""

import pytest
from puppets import DISK, OPEN, RAM, Stage, body

from targetd.master.logins.portals import free_port


@pytest.fixture
def stage(tmp_path):
    stage = Stage(tmp_path)
    stage.port_number = free_port('127.0.0.1', 0)
    yield stage
    stage.close()


@pytest.fixture
def served(stage):
    stage.start(body(stage, (DISK, OPEN, RAM)))
    return stage
