"""Long tests of LUNs on images of a Ceph cluster: libiscsi's suite, the quota of a pool, a network that
is cut, and the resource agent. They are run by `python3 -m tests.longrun ceph`, on a machine with Debian's
packages ceph-mgr, resource-agents and libxml2-utils beside those of test_client_ceph.py."""

import os
import struct
import subprocess
import sys
import time

import ceph_cluster
import clients
import namespaces
import pytest
from ceph_runs import LONG
from daemon import ROOT, TARGET, eventually, free_port, is_listening, watched
from initiator import connect, pattern
from test_client_ceph import (
    KEY,
    NOISE,
    ONE,
    SERVER_ID,
    SERVING_SECONDS,
    SPACE_ALLOCATION_FAILED,
    SYNCHRONIZE,
    begin_load,
    image,
    keys_of,
    overwrite,
    processes_of,
    require_overwritten,
    require_written,
    start,
    take_over,
)

pytestmark = [
    pytest.mark.client,
    pytest.mark.skipif(LONG not in os.environ, reason='a long run: python3 -m tests.longrun ceph'),
]
__all__ = ('image',)  # a fixture

SUITE_SECONDS = 1800
MIB = 1 << 20
WRITE = struct.Struct('>BBIBHB')


def test_no_test_of_libiscsis_suite_fails_on_an_image(image, daemon):
    clients.need('iscsi-test-cu')
    other = free_port()
    daemon.text.portal('127.0.0.1:%d' % other)
    image(64, 'thin = yes')
    start(daemon)
    clients.require_suite_passes('image in a Ceph cluster', daemon, other, SUITE_SECONDS)


# -- a quota ---------------------------------------------------------------------------------------


@pytest.fixture
def quota(ceph):
    """quota(bytes) sets that of the pool `disks`; at the end it has none, and no ceph-mgr runs."""
    clients.need('ceph-mgr')

    def set_quota(size):
        ceph.command('osd', 'pool', 'set-quota', 'disks', 'max_bytes', str(size))

    ceph.start_manager()
    yield set_quota
    set_quota(0)
    waited(lambda: 'full_quota' not in ceph.flags('disks'), 'the pool with room')
    ceph.stop_manager()


def test_a_pool_at_its_quota_refuses_new_blocks_until_it_has_room(
    ceph, image, quota, daemon, ready
):
    """ceph-mgr counts what the pool has, and the monitor sets the flags of the pool some seconds later."""
    image(256)
    start(daemon)
    session = ready(daemon)
    for place in range(16):
        session.write(place * 2048, pattern(place, MIB))
    session.logout()  # the test's initiator answers no pings while the test waits
    quota(8 * MIB)
    seconds = waited(lambda: 'full_quota' in ceph.flags('disks'), 'the flag of the pool')
    clients.SUMMARY.append('quota of a pool: %.1f s until it was found to be reached' % seconds)
    session = ready(daemon)
    new = WRITE.pack(0x2A, 0, 32 * 2048, 0, 8, 0)
    for _ in range(3):
        assert session.run(new, out=bytes(4096)).key == SPACE_ALLOCATION_FAILED
    assert session.read(2048, 8) == pattern(1, MIB)[:4096]
    session.write(2048, pattern(99, 4096))  # these blocks are there
    assert session.run(SYNCHRONIZE).good()
    assert 'ENOSPC' in daemon.units()[0]['state']  # degraded, until it is acknowledged
    session.logout()
    quota(0)
    seconds = waited(lambda: 'full_quota' not in ceph.flags('disks'), 'the pool with room')
    clients.SUMMARY.append('quota of a pool: %.1f s until it was found to be raised' % seconds)
    session = ready(daemon)
    session.write(32 * 2048, pattern(3, 4096))
    assert session.read(32 * 2048, 8) == pattern(3, 4096)
    assert session.read(2048, 8) == pattern(99, 4096)


def waited(question, what):
    """Wait; returns how many seconds it took."""
    began = time.monotonic()
    eventually(question, 300, what)
    return time.monotonic() - began


# -- the network of one server is cut --------------------------------------------------------------

HERE, THERE = '10.99.77.1', '10.99.77.2'


@pytest.fixture
def apart(pair_of_hosts, tmp_path_factory):
    """A Cluster on HERE, and two Daemons for one image of it: the first is on the other host, THERE."""
    with ceph_cluster.Cluster(tmp_path_factory.mktemp('apart'), HERE) as cluster:
        rows = cluster.image('one', 64) + ['unit-state = rados:states']
        with watched(tmp_path_factory.mktemp('first')) as first:
            with watched(tmp_path_factory.mktemp('second')) as second:
                for each in (first, second):
                    each.text.server['server-id'] = SERVER_ID
                    each.target(TARGET, luns={0: rows})
                    each.expected_trouble.append('not served|still not available|' + NOISE)
                first.text.groups = {1: ['%s:%d' % (THERE, first.port)]}
                with pair_of_hosts.entered():
                    first.launch()
                eventually(lambda: is_listening((THERE, first.port)), 30, 'the first server')
                yield first, second


@pytest.fixture
def pair_of_hosts():
    """The namespace of the host THERE, whose link to this one is `away`."""
    if namespaces.why_not():
        pytest.skip(namespaces.why_not())
    name = 'ceph%d' % os.getpid()
    space = namespaces.Namespace(name)
    try:
        namespaces.run('ip', 'link', 'add', name, 'type', 'veth', 'peer', 'away', 'netns', name)
        namespaces.run('ip', 'address', 'add', HERE + '/24', 'dev', name)
        namespaces.run('ip', 'link', 'set', name, 'up')
        space.within('ip', 'address', 'add', THERE + '/24', 'dev', 'away')
        space.within('ip', 'link', 'set', 'away', 'up')
        yield space
    finally:
        space.remove()


def test_a_server_whose_network_was_cut_is_replaced(apart, pair_of_hosts, ready, sessions):
    """Under load; what it had accepted, and could not write, never reaches the image afterwards."""
    first, second = apart
    eventually(lambda: first.units()[0]['state'] == 'ready', SERVING_SECONDS, 'the LUN')
    session = ready(first, name=ONE, address=(THERE, first.port))
    load, acknowledged = begin_load(session, second)
    pair_of_hosts.within('ip', 'link', 'set', 'away', 'down')
    fresh = take_over(second, ready)
    assert keys_of(fresh) == [KEY]
    require_written(fresh, acknowledged)
    overwrite(fresh)
    pair_of_hosts.within('ip', 'link', 'set', 'away', 'up')
    eventually(lambda: first.units()[0]['state'].startswith('standby'), 60, 'the standby state')
    session.close()
    load.join(60)
    require_overwritten(fresh)
    assert keys_of(fresh) == [KEY]


# -- the resource agent ----------------------------------------------------------------------------

AGENT = os.path.join(ROOT, 'init', 'ocf', 'targetd')
OCF_ROOT = '/usr/lib/ocf'
SUCCESS, NOT_RUNNING, RUNNING_PROMOTED, FAILED_PROMOTED = 0, 7, 8, 9


class Node(object):
    """A server of a cluster, which the agent starts. daemon: a Daemon that is never started, for its files.
    The agent finds targetd and targetdctl in /usr/local/sbin, in a mount namespace of its own."""

    def __init__(self, daemon):
        self.daemon = daemon
        self.programs = os.path.join(daemon.directory, 'programs')
        os.makedirs(self.programs)
        os.makedirs(os.path.join(daemon.directory, 'state'), exist_ok=True)
        for name, module in (('targetd', 'targetd'), ('targetdctl', 'targetd.admin.cli')):
            path = os.path.join(self.programs, name)
            with open(path, 'w') as f:
                f.write(
                    '#!/bin/sh\nPYTHONPATH=%s exec %s -m %s "$@"\n' % (ROOT, sys.executable, module)
                )
            os.chmod(path, 0o755)
        self.parameters = {
            'config': daemon.config,
            'fragments': os.path.join(daemon.directory, 'fragments'),
            'iqn': TARGET,
            'promotable': 'yes',
        }

    def run(self, *words):
        """Run a command as the cluster does; returns (exit code, output)."""
        script = 'mount --bind "$0" /usr/local/sbin && exec "$@"'
        done = subprocess.run(
            ['unshare', '--mount', 'sh', '-c', script, self.programs] + list(words),
            env=dict(
                os.environ,
                OCF_ROOT=OCF_ROOT,
                **{'OCF_RESKEY_' + name: value for name, value in self.parameters.items()},
            ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=600,
        )
        return done.returncode, done.stdout.decode('utf-8', 'replace')

    def does(self, action, code):
        """An action of the agent has this outcome."""
        found, output = self.run(AGENT, action)
        assert found == code, (action, found, output, self.daemon.log)

    def session(self, name=ONE):
        session = connect(self.daemon.address, TARGET, name=name, timeout=60.0)
        session.clear_attentions(0)
        return session

    def pid(self):
        with open(os.path.join(self.daemon.directory, 'targetd.pid')) as f:
            return int(f.read())

    def kill(self):
        """kill -9 of every process of the server."""
        for each in processes_of(self.daemon, self.pid()):
            each.kill()


@pytest.fixture
def nodes(ceph, daemon, request, tmp_path_factory):
    """Two Nodes for one image, whose state is in the pool `states`."""
    for program in ('ocf-tester', 'xmllint', 'unshare'):
        clients.need(program)
    rows = ceph.image(request.node.name, 64) + ['unit-state = rados:states']
    with watched(tmp_path_factory.mktemp('second')) as second:
        made = []
        for each in (daemon, second):
            each.text.server['server-id'] = SERVER_ID
            each.target(
                TARGET, ['initiator-address = ALL', 'serving = when-active'], luns={0: rows}
            )
            each.expected_trouble.append('not served|still not available|not releas|' + NOISE)
            each.expected_trouble.append('offline')
            each.write_config()
            made.append(Node(each))
        yield made
        for node in made:
            node.run('targetdctl', '-s', node.daemon.directory + '/targetd.sock', 'stop')


def test_the_resource_agent_moves_an_image_between_two_servers(nodes):
    """Every action; a LUN that has failed; a server that was killed, and one that was fenced."""
    one, two = nodes
    for node in nodes:
        node.does('monitor', NOT_RUNNING)
        node.does('start', SUCCESS)
        node.does('monitor', SUCCESS)
    one.does('promote', SUCCESS)
    one.does('monitor', RUNNING_PROMOTED)
    two.does('monitor', SUCCESS)
    session = one.session()
    session.write(0, pattern(1, 4096), fua=True)
    one.daemon.control('lun', 'offline', TARGET + '/0')
    one.does('monitor', FAILED_PROMOTED)
    one.daemon.control('lun', 'online', TARGET + '/0')
    one.does('monitor', RUNNING_PROMOTED)
    session.logout()
    one.does('demote', SUCCESS)
    one.does('monitor', SUCCESS)
    two.does('promote', SUCCESS)
    two.does('monitor', RUNNING_PROMOTED)
    session = two.session()
    assert session.read(0, 8) == pattern(1, 4096)
    session.write(0, pattern(2, 4096), fua=True)
    two.kill()
    two.does('monitor', NOT_RUNNING)
    one.does('promote', SUCCESS)
    assert one.session().read(0, 8) == pattern(2, 4096)
    two.does('start', SUCCESS)
    two.does('monitor', SUCCESS)  # it does not serve by itself
    # without a demote, as after a cluster has lost its view of a node: the image is taken from it
    two.does('promote', SUCCESS)
    assert two.session().read(0, 8) == pattern(2, 4096)
    eventually(lambda: one.run(AGENT, 'monitor')[0] == SUCCESS, 60, 'standby of the fenced server')
    for node in nodes:
        node.does('stop', SUCCESS)
        node.does('monitor', NOT_RUNNING)


def test_the_resource_agent_passes_the_checks_of_pacemaker(nodes):
    """ocf-tester: every action, twice, the metadata, a wrong action."""
    node = nodes[0]
    words = ['ocf-tester', '-n', 'disk']
    for name, value in sorted(node.parameters.items()):
        words += ['-o', '%s=%s' % (name, value)]
    code, output = node.run(*(words + [AGENT]))
    assert code == 0 and 'passed all tests' in output, (output, node.daemon.log)
