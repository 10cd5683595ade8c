"""The resource agent of Pacemaker in a real cluster of one node: Debian's corosync and pacemaker on a fresh
Debian 12 (chroots.py), in namespaces in which they see no other process, network or shared memory.
"""

import os
import re
import shutil
import subprocess
import time

import chroots
from daemon import ROOT, eventually
from initiator import INITIATOR, connect

TARGET = 'iqn.2026-11.test.targetd:cluster'
ADDRESS = '10.9.0.1'
SIZE = 64 << 20
AGENT = '/usr/lib/ocf/resource.d/targetd/targetd'
PACKAGES = (
    'corosync', 'pacemaker', 'pacemaker-cli-utils', 'resource-agents', 'iproute2', 'procps',
    'python3-configobj',
)  # fmt: skip
COROSYNC = '''
totem {
  version: 2
  cluster_name: test
  transport: knet
  crypto_cipher: none
  crypto_hash: none
}
nodelist {
  node {
    name: one
    nodeid: 1
    ring0_addr: 127.0.0.1
  }
}
quorum {
  provider: corosync_votequorum
}
logging {
  to_logfile: yes
  logfile: /var/log/corosync.log
  to_syslog: no
}
'''
#: The group of the README: name -> (agent, parameters, attributes of its monitor)
GROUP = (
    ('server', 'ocf:targetd:targetd', {}, {}),
    ('erp', 'ocf:targetd:targetd', {'iqn': TARGET, 'allowed_addresses': 'ALL'}, {}),
    (
        'erp-0',
        'ocf:targetd:targetd',
        {'iqn': TARGET, 'lun': '0', 'path': '/srv/erp.img'},
        {'OCF_CHECK_LEVEL': '10'},
    ),
    ('address', 'ocf:heartbeat:IPaddr2', {'ip': ADDRESS, 'cidr_netmask': '32', 'nic': 'lo'}, {}),
)
SECONDS = 240  # for each change of the cluster; it takes some seconds


def _pairs(kind, owner, values):
    rows = ''.join(
        '<nvpair id="%s-%s-%s" name="%s" value="%s"/>' % (owner, kind, name, name, value)
        for name, value in sorted(values.items())
    )
    return '<%s_attributes id="%s-%s">%s</%s_attributes>' % (kind, owner, kind, rows, kind)


def resources():
    """The XML of the group."""
    found = '<resources><group id="storage">'
    for name, agent, parameters, levels in GROUP:
        standard, provider, kind = agent.split(':')
        found += '<primitive id="%s" class="%s" provider="%s" type="%s">' % (
            name, standard, provider, kind,
        )  # fmt: skip
        found += _pairs('instance', name, parameters)
        found += '<operations><op id="%s-m" name="monitor" interval="5s" timeout="60s">' % name
        found += _pairs('instance', name + '-m', levels)
        found += '</op></operations></primitive>'
    return found + '</group></resources>'


class Cluster(object):
    """A node on which corosync and pacemaker run. system: Chroot."""

    def __init__(self, system):
        self.system = system
        root = system.root
        script = (
            'mount --make-rprivate / && mount -t proc proc %s/proc && mount -t tmpfs tmpfs %s/dev/shm && '
            'mount -t tmpfs tmpfs %s/run && mkdir %s/run/lock && hostname one && exec chroot %s sleep 86400'
        )
        namespaces = ('--mount', '--pid', '--uts', '--ipc')
        self.holder = subprocess.Popen(
            ('ip', 'netns', 'exec', system.namespace.name, 'unshare')
            + namespaces
            + ('--fork', '--kill-child', 'sh', '-c', script % ((root,) * 5)),
            stdin=subprocess.DEVNULL,
        )
        first = eventually(self._first_process, 30)
        self.enter = ('nsenter', '-t', str(first), '--net') + namespaces + ('chroot', root)

    def _first_process(self):
        """The id of the namespace's first process, once it is in its root directory."""
        with open('/proc/%d/task/%d/children' % (self.holder.pid, self.holder.pid)) as file:
            found = file.read().split()
        is_ready = found and os.readlink('/proc/%s/root' % found[0]) == self.system.root
        return int(found[0]) if is_ready else None

    def run(self, command):
        """Run a line of shell on the node; returns (exit code, output)."""
        done = subprocess.run(
            self.enter + ('sh', '-c', command),
            env={'PATH': '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=120,
        )
        output = done.stdout.decode('utf-8', 'replace')
        self.system.transcript += '# %s\n%s' % (command, output)
        return done.returncode, output

    def must(self, command):
        """Run a line of shell on the node, which succeeds; returns its output."""
        code, output = self.run(command)
        assert code == 0, (command, code, output)
        return output

    def wait(self, is_true):
        """Wait until is_true(what crm_mon prints); returns the seconds that it took."""
        start = time.monotonic()
        eventually(lambda: is_true(self.run('crm_mon -1 -r -f')[1]), SECONDS, self.state)
        return time.monotonic() - start

    def state(self):
        """What a person who looks for the fault needs."""
        return self.run('crm_mon -1 -r -f -o; tail -n 40 /var/log/pacemaker/pacemaker.log')[1]

    def start(self):
        """Start corosync and pacemaker, and define the group."""
        self.must('corosync')
        self.must('pacemakerd >/var/log/pacemakerd 2>&1 </dev/null &')
        self.wait(lambda text: 'Online: [ one ]' in text)
        for option in ('stonith-enabled=false', 'no-quorum-policy=ignore'):
            self.must(
                'crm_attribute --type crm_config --name %s --update %s' % tuple(option.split('='))
            )
        self.must("cibadmin --replace --scope resources --xml-text '%s'" % resources())

    def end(self):
        """End all processes of the node."""
        self.holder.kill()  # its child is killed with it (--kill-child), and so is every process below
        self.holder.wait()


def are(state, names=tuple(each[0] for each in GROUP)):
    """A function of crm_mon's text: True if these resources are 'Started' or 'Stopped'."""
    return lambda text: all(re.search(r'\* %s\s.*:\s+%s' % (name, state), text) for name in names)


def run_pacemaker(directory, seconds, seed):
    """Returns (figures, complaints). seconds, seed: not used."""
    with chroots.fresh(directory) as system:
        install(system)
        cluster = Cluster(system)
        try:
            return tried(system, cluster), []
        except BaseException:
            with open(os.path.join(directory, 'transcript'), 'w') as file:
                file.write(system.transcript)
            raise
        finally:
            cluster.end()


def install(system):
    """Install the packages, from the network of the host, and the agent."""
    root = system.root
    shutil.copy('/etc/resolv.conf', root + '/etc/resolv.conf')
    system.write('/usr/sbin/policy-rc.d', '#!/bin/sh\nexit 101\n')  # start nothing
    os.chmod(root + '/usr/sbin/policy-rc.d', 0o755)
    chroots.run('chroot', root, 'apt-get', 'update', '-q')
    chroots.run(
        'chroot', root, 'apt-get', 'install', '-q', '-y', '--no-install-recommends', *PACKAGES
    )
    left_out = ('/etc/default/targetd', '/lib/systemd/system')
    chroots.run(os.path.join(ROOT, 'packaging', 'install-tree'), root, *left_out)
    os.makedirs(os.path.dirname(root + AGENT), exist_ok=True)
    shutil.copy(os.path.join(ROOT, 'init', 'ocf', 'targetd'), root + AGENT)
    system.write('/etc/corosync/corosync.conf', COROSYNC)
    system.write('/etc/targetd.conf', 'include = /run/targetd-cluster/*.conf\n')
    with open(root + '/srv/erp.img', 'wb') as file:
        file.truncate(SIZE)


def tried(system, cluster):
    """Start, check, kill, move and stop the group; returns {what: seconds}."""
    found = {}
    cluster.start()
    found['seconds until all were started'] = cluster.wait(are('Started'))
    write_and_read(system, b'a')
    assert str(SIZE) in system.host(
        'iscsi-readcapacity16', '-i', INITIATOR, 'iscsi://%s/%s/0' % (ADDRESS, TARGET)
    )
    before = cluster.must('targetd --pid').strip()
    cluster.must('kill -9 %s' % before)
    found['seconds until the killed server was replaced'] = cluster.wait(
        lambda text: (
            are('Started')(text) and cluster.run('targetd --pid')[1].strip() not in ('', before)
        )
    )
    write_and_read(system, b'b')
    assert 'fail-count=1' in cluster.must('crm_mon -1 -f')
    cluster.must('crm_resource --cleanup')
    # a LUN that executes no commands: its monitor of depth 10 fails, and the cluster stops and starts it
    cluster.must('targetdctl lun offline %s/0' % TARGET)
    assert 'offline' in cluster.must('targetdctl show units')
    found['seconds until the monitor had found the LUN that was offline'] = cluster.wait(
        lambda text: re.search(r'erp-0.*fail-count=1', text)
    )
    found['seconds until it was served again'] = cluster.wait(
        lambda text: (
            are('Started')(text) and 'offline' not in cluster.run('targetdctl show units')[1]
        )
    )
    assert cluster.must('targetd --pid').strip() not in ('', before)
    write_and_read(system, b'd')
    cluster.must('crm_resource --cleanup')
    # the address leaves the node, with nothing else, and returns
    cluster.must('crm_resource --resource address --ban --node one')
    found['seconds until the address was gone'] = cluster.wait(are('Stopped', ('address',)))
    assert ADDRESS not in cluster.must('ip address show dev lo')
    assert are('Started', ('server', 'erp', 'erp-0'))(cluster.must('crm_mon -1 -r'))
    cluster.must('crm_resource --resource address --clear')
    found['seconds until the address was back'] = cluster.wait(are('Started'))
    write_and_read(system, b'c')
    cluster.must(
        'crm_resource --resource storage --meta --set-parameter target-role --parameter-value Stopped'
    )
    found['seconds until all were stopped'] = cluster.wait(are('Stopped'))
    assert cluster.run('targetd --pid')[0] != 0
    assert cluster.run('ls /run/targetd-cluster/*.conf')[0] != 0
    return {what: round(value) for what, value in found.items()}


def write_and_read(system, byte):
    """Write a block through the address of the cluster, and read it in another session."""
    for action in ('write', 'read'):
        with system.namespace.entered():
            session = connect((ADDRESS, 3260), TARGET)
        session.clear_attentions(0)
        if action == 'write':
            session.write(0, byte * 512)
        else:
            assert session.read(0, 1) == byte * 512
        session.close()
