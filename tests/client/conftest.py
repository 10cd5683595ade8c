"""Summary of a run with real clients: which tests of iscsi-test-cu were skipped, and why (CUnit
counts a skip as passed)."""

import os

import ceph_cluster
import clients
import pytest


def pytest_terminal_summary(terminalreporter):
    if clients.SUMMARY:
        terminalreporter.section('iscsi-test-cu')
        for line in clients.SUMMARY:
            terminalreporter.write_line(line)


@pytest.fixture(scope='module')
def ceph(tmp_path_factory):
    """A ceph_cluster.Cluster that all tests share; each makes its own image."""
    if not ceph_cluster.is_installed():
        text = 'Ceph is not on this machine (Debian: %s)' % ceph_cluster.PACKAGES
        if os.environ.get('CI') or os.environ.get('TARGETD_CLIENTS'):
            pytest.fail(text)
        pytest.skip(text)
    with ceph_cluster.Cluster(tmp_path_factory.mktemp('ceph')) as cluster:
        yield cluster
