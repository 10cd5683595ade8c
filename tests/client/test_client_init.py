"""The service under the init systems of Debian 12 other than SysV, and as a resource of Pacemaker's agent
tester, in a fresh Debian 12 (chroots.py)."""

import glob
import os
import shutil

import clients
import initiator
import namespaces
import pytest
import routes
from chroots import fresh
from daemon import ROOT, TARGET, eventually

pytestmark = pytest.mark.client

ARCHIVES = '/var/cache/apt/archives'


@pytest.fixture(scope='module')
def system(tmp_path_factory):
    """A Debian 12, the same for all tests, with the files of targetd and a disk."""
    if namespaces.why_not():
        pytest.skip(namespaces.why_not())
    clients.need('debootstrap', 'ip', 'iscsi-ls', 'iscsi-readcapacity16')
    with fresh(tmp_path_factory.mktemp('system')) as each:
        each.must('apt-get install -q -y --no-install-recommends python3-configobj python3-psutil')
        each.host(
            os.path.join(ROOT, 'packaging', 'install-tree'),
            each.root,
            '/etc/default/targetd',
            '/lib/systemd/system',
        )
        each.write('/etc/targetd.conf', routes.DISK % (TARGET, '/srv/disk.img'), 'a')
        yield each


def put_init(system, source, path):
    """Install a file of init/."""
    os.makedirs(os.path.dirname(system.root + path), exist_ok=True)
    shutil.copy(os.path.join(ROOT, 'init', source), system.root + path)


def waits(system, command, wanted, seconds=30):
    """Waits until a command prints this text; returns its output."""
    return eventually(
        lambda: (lambda output: output if wanted in output else '')(system.run(command)[1]),
        seconds,
        lambda: system.transcript,
    )


def test_runit(system):
    system.must('apt-get install -q -y --no-install-recommends runit')
    put_init(system, 'runit/run', '/etc/sv/targetd/run')
    system.must('runsv /etc/sv/targetd >/var/log/runsv 2>&1 & sleep 1')
    waits(system, 'sv status /etc/sv/targetd', 'run: ')
    waits(system, 'targetdctl show units', TARGET)
    before = system.must('targetd --pid')
    system.must('sv hup /etc/sv/targetd')
    system.must('kill -9 %s' % before)  # the supervisor starts another one
    waits(system, 'targetdctl show units', TARGET)
    assert system.must('targetd --pid') != before
    system.must('sv stop /etc/sv/targetd')
    waits(system, 'sv status /etc/sv/targetd', 'down: ')
    assert system.run('targetd --pid')[0] == 7
    system.must('sv exit /etc/sv/targetd')


def test_s6(system):
    system.must('apt-get install -q -y --no-install-recommends s6')
    put_init(system, 's6/run', '/etc/s6/sv/targetd/run')
    system.must('s6-supervise /etc/s6/sv/targetd >/var/log/s6 2>&1 & sleep 1')
    waits(system, 's6-svstat /etc/s6/sv/targetd', 'up (pid')
    waits(system, 'targetdctl show units', TARGET)
    system.must('s6-svc -h /etc/s6/sv/targetd')
    system.must('s6-svc -wD -T 30000 -d /etc/s6/sv/targetd', 60)
    assert system.run('targetd --pid')[0] == 7
    system.must('s6-svc -x /etc/s6/sv/targetd')


AGENT = '/usr/lib/ocf/resource.d/targetd/targetd'
OCF = 'OCF_ROOT=/usr/lib/ocf %s ' % AGENT
CLUSTER = 'iqn.2026-11.test.targetd:cluster'


@pytest.fixture(scope='module')
def agent(system):
    """The path of the resource agent, which is installed with what Pacemaker's agents share."""
    system.must('apt-get install -q -y --no-install-recommends libxml2-utils')
    (package,) = glob.glob('%s%s/resource-agents_*' % (system.root, ARCHIVES))
    system.must(
        "dpkg -x '%s' /opt/agents && cp -a /opt/agents/usr/. /usr" % package[len(system.root) :]
    )
    put_init(system, 'ocf/targetd', AGENT)
    return AGENT


def ocf(system, action, level='0', **parameters):
    words = 'OCF_CHECK_LEVEL=%s ' % level
    words += ' '.join('OCF_RESKEY_%s="%s"' % item for item in sorted(parameters.items()))
    return system.run('%s %s%s' % (words, OCF, action))


def live_changes_end(system, target, lun):
    """What targetdctl has changed ends with the LUN, and never keeps a node from stopping or starting."""
    unit = '%s/3' % CLUSTER
    system.must('targetdctl lun offline ' + unit)
    assert ocf(system, 'monitor', level='10', **lun)[0] == 1
    assert system.run('targetdctl target rename %s iqn.2026-11.test.targetd:else' % CLUSTER)[0] != 0
    assert ocf(system, 'stop', **lun)[0] == 0, system.transcript
    assert ocf(system, 'start', **lun)[0] == 0
    assert ocf(system, 'monitor', level='10', **lun)[0] == 0, system.transcript
    system.must('targetdctl lun offline ' + unit)
    system.must('kill -9 $(targetd --pid)')
    eventually(lambda: system.run('targetd --pid')[0] == 7, 30)
    assert ocf(system, 'stop', **lun)[0] == 0 and ocf(system, 'stop', **target)[0] == 0
    assert ocf(system, 'start')[0] == 0, system.transcript
    assert ocf(system, 'start', **target)[0] == 0 and ocf(system, 'start', **lun)[0] == 0
    assert ocf(system, 'monitor', level='10', **lun)[0] == 0, system.transcript


def test_the_ocf_agent(system, agent):
    system.must("sed -i '1i include = /run/targetd-cluster/*.conf' /etc/targetd.conf")
    target = {'iqn': CLUSTER, 'allowed_addresses': '127.0.0.1 10.0.0.0/8'}
    lun = {
        'iqn': CLUSTER,
        'lun': '3',
        'path': '/srv/cluster.img',
        'additional_parameters': 'size=8M thin=yes',
    }
    # Pacemaker's own checks: every action, twice, the metadata, a wrong action
    tester = 'ocf-tester -n disk -o iqn=%s -o allowed_addresses=ALL %s' % (CLUSTER, agent)
    assert 'passed all tests' in system.must(tester, 300)
    assert ocf(system, 'stop')[0] == 0 and ocf(system, 'monitor')[0] == 7
    # a LUN needs its target
    assert ocf(system, 'start', **lun)[0] == 1
    assert ocf(system, 'start', **target)[0] == 0, system.transcript  # starts the server, too
    assert ocf(system, 'start', **lun)[0] == 0, system.transcript
    assert ocf(system, 'start', **lun)[0] == 0
    for level in ('0', '10'):
        assert ocf(system, 'monitor', level=level, **lun)[0] == 0
    listed = system.host('iscsi-ls', '-s', 'iscsi://127.0.0.1')
    assert CLUSTER in listed and 'Lun:3' in listed.replace(' ', ''), listed
    assert TARGET in listed  # what the administrator has written is served as well
    # a LUN that executes no commands is found by the deeper check only
    assert ocf(system, 'stop', **lun)[0] == 0
    offline = dict(lun, additional_parameters='size=8M state=offline')
    assert ocf(system, 'start', **offline)[0] == 0 and ocf(system, 'monitor', **offline)[0] == 0
    code, output = ocf(system, 'monitor', level='10', **offline)
    assert code == 1 and 'lun 3 of %s: offline' % CLUSTER in output, output
    assert ocf(system, 'stop', **offline)[0] == 0 and ocf(system, 'start', **lun)[0] == 0
    live_changes_end(system, target, lun)
    # a setting that does not exist is refused, and nothing of it remains
    wrong = dict(lun, lun='4', additional_parameters='nonsense=1')
    assert ocf(system, 'start', **wrong)[0] == 6
    assert ocf(system, 'monitor', **wrong)[0] == 7 and ocf(system, 'monitor', **lun)[0] == 0
    # an initiator that stays logged in does not keep the target from stopping
    with system.namespace.entered():
        session = initiator.connect(('127.0.0.1', 3260), CLUSTER)
    assert ocf(system, 'stop', **lun)[0] == 0 and ocf(system, 'monitor', **lun)[0] == 7
    assert ocf(system, 'stop', **target)[0] == 0, system.transcript
    assert ocf(system, 'monitor', **target)[0] == 7
    session.close()
    assert CLUSTER not in system.host('iscsi-ls', 'iscsi://127.0.0.1')
    system.must('targetdctl stop')
    for bad, code in (
        ({'lun': '1'}, 6),
        ({'iqn': 'x'}, 6),
        (dict(lun, lun='x'), 6),
        ({'config': '/none'}, 5),
    ):
        assert ocf(system, 'validate-all', **bad)[0] == code, bad


def test_openrc(system):
    system.must('apt-get install -q -y --no-install-recommends openrc')
    put_init(system, 'openrc/targetd', '/etc/init.d/targetd')
    system.must('mkdir -p /run/openrc && touch /run/openrc/softlevel')
    assert system.run('rc-service targetd status')[0] != 0
    system.must('rc-service --nodeps targetd checkconfig')
    system.must('rc-service --nodeps targetd start')
    assert TARGET in system.must('targetdctl show units')  # it serves when the start returns
    assert 'started' in system.must('rc-service targetd status')
    system.must('rc-service --nodeps targetd reload')
    system.write('/etc/targetd.conf', 'nonsense\n', 'a')
    assert system.run('rc-service --nodeps targetd reload')[0] != 0
    system.must("sed -i '$d' /etc/targetd.conf")
    system.must('rc-service --nodeps targetd restart')
    waits(system, 'targetdctl show units', TARGET)
    system.must('kill -9 $(targetd --pid)')
    eventually(lambda: system.run('rc-service targetd status')[0] == 32, 20)
    system.must('rc-service --nodeps targetd stop')
    system.must('rc-service --nodeps targetd start')
    system.must('rc-service --nodeps targetd stop')
    assert not system.processes(), system.transcript


ROLE = 'iqn.2026-11.test.targetd:role'


def test_the_ocf_agent_promotes_and_demotes_a_target(system, agent):
    system.must('mkdir -p /srv/state')
    lines = (
        '[target %s]' % ROLE,
        'initiator-address = ALL',
        'serving = when-active',
        '[[lun 0]]',
        'backing-store = /srv/role.img',
        'size = 8M',
        'unit-state = /srv/state',
    )
    system.must(
        "printf '%s\\n' " + ' '.join("'%s'" % line for line in lines) + ' >>/etc/targetd.conf'
    )
    target = {'iqn': ROLE, 'promotable': 'yes'}
    tester = 'ocf-tester -n disk -o iqn=%s -o promotable=yes %s' % (ROLE, agent)
    assert 'passed all tests' in system.must(tester, 300)
    assert ocf(system, 'start', **target)[0] == 0, system.transcript
    assert ocf(system, 'monitor', **target)[0] == 0
    assert ocf(system, 'promote', **target)[0] == 0, system.transcript
    assert ocf(system, 'monitor', **target)[0] == 8
    assert 'Lun:0' in system.host('iscsi-ls', '-s', 'iscsi://127.0.0.1').replace(' ', '')
    assert ocf(system, 'demote', **target)[0] == 0, system.transcript
    assert ocf(system, 'monitor', **target)[0] == 0
    # a server that was killed does not serve the target by itself
    assert ocf(system, 'promote', **target)[0] == 0
    system.must('kill -9 $(targetd --pid)')
    eventually(lambda: system.run('targetd --pid')[0] == 7, 30)
    assert ocf(system, 'monitor', **target)[0] == 7
    assert ocf(system, 'start', **target)[0] == 0 and ocf(system, 'monitor', **target)[0] == 0
    assert ocf(system, 'promote', **target)[0] == 0 and ocf(system, 'monitor', **target)[0] == 8
    assert ocf(system, 'stop', **target)[0] == 0 and ocf(system, 'monitor', **target)[0] == 7
    system.must('targetdctl stop')
    assert ocf(system, 'validate-all', **dict(target, lun='1'))[0] == 6
