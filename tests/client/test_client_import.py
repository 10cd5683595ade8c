"""Debian's tgtd and targetd side by side: the configuration that `targetdctl import` writes shows
initiators the same disks, byte for byte where the standards allow."""

import os
import re
import shutil
import struct
import subprocess
import sys

import clients
import pytest
from clients import need
from daemon import ROOT, eventually, free_port, is_listening, watched
from initiator import connect

pytestmark = pytest.mark.client

ONE, TWO = 'iqn.2026-11.test.targetd:erp', 'iqn.2026-11.test.targetd:Archive'

#: Its LUN numbers come from the order of the paths, `lun`, and a path that does not exist.
TARGETS_CONF = """# a configuration as administrators write it
default-driver iscsi
<target %(one)s>
    backing-store %(directory)s/zebra.img
    backing-store %(directory)s/disk10.img   # before disk9
    backing-store %(directory)s/disk9.img
    initiator-address 127.0.0.1
</target>
<target %(two)s>
    <backing-store %(directory)s/quorum.img>
        lun 3
        scsi_id QUORUM-0001
        scsi_sn Q0001
        vendor_id EXAMPLE
        product_id QUORUM
        product_rev 2
        readonly 1
        lbppbe 0
    </backing-store>
    <backing-store %(directory)s/data.img>
        block-size 4096
        params thin_provisioning=1,rotation_rate=1
    </backing-store>
    write-cache off
    controller_tid 7
    initiator-address ALL
</target>
"""
LUNS = {ONE: (1, 2, 3), TWO: (1, 3)}
IMAGES = ('zebra', 'disk10', 'disk9', 'quorum', 'data')


class Tgtd(object):
    """tgtd on a port of its own, with a configuration that tgt-admin has loaded."""

    def __init__(self, directory, configuration):
        self.port, self.control = free_port(), str(os.getpid() % 30000 + 1)
        self._log = open(os.path.join(directory, 'tgtd.log'), 'wb')
        portal = 'portal=127.0.0.1:%d' % self.port
        self.process = clients.start(
            'tgtd', '-f', '-C', self.control, '--iscsi', portal, stdout=self._log, stderr=self._log
        )
        try:
            eventually(lambda: is_listening(('127.0.0.1', self.port)), 15, 'tgtd listening')
            clients.output('tgt-admin', '-C', self.control, '-c', configuration, '-e')
        except BaseException:
            self.stop()
            raise

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._log.close()


def unit_designators(page):
    """The designators of page 83h that belong to the logical unit, as they were sent."""
    found, at = [], 4
    (length,) = struct.unpack_from('>H', page, 2)
    while at < 4 + length:
        designator = page[at : at + 4 + page[at + 3]]
        if not designator[1] >> 4 & 3:
            found.append(designator)
        at += len(designator)
    return found


def cached(session, lun):
    """WCE of the Caching mode page."""
    data = session.run(bytes([0x1A, 8, 8, 0, 192, 0]), lun, read=192).good().data
    return data[4 + 2] >> 2 & 1


def seen(port, target):
    """{LUN: what an initiator sees of it} of a target."""
    found = {}
    with connect(('127.0.0.1', port), target) as session:
        for lun in session.report_luns():
            if lun == 0:
                continue  # the controller of tgt
            session.clear_attentions(lun)
            standard = session.inquiry(lun)
            ten = session.run(bytes([0x25]) + bytes(9), lun, read=8).good().data
            sixteen = (
                session.run(struct.pack('>BBQIBB', 0x9E, 0x10, 0, 32, 0, 0), lun, read=32)
                .good()
                .data
            )
            found[lun] = {
                'INQUIRY: device type': standard[:1],
                'INQUIRY: vendor, product, revision': standard[8:36],
                'page 80h': session.inquiry(lun, 0x80),
                'page 83h': unit_designators(session.inquiry(lun, 0x83)),
                'READ CAPACITY (10)': ten,
                'READ CAPACITY (16)': sixteen[:12] + sixteen[13:14],
                'thin': sixteen[14] & 0x80,
                'write cache': cached(session, lun),
                'rotation rate': session.inquiry(lun, 0xB1)[4:6],
                'blocks': session.read(5, 1, lun, struct.unpack('>I', ten[4:])[0]),
            }
        session.logout()
    return found


def test_the_imported_configuration_shows_the_disks_that_tgtd_shows(tmp_path):
    need('tgtd', 'tgt-admin')
    for number, name in enumerate(IMAGES):
        (tmp_path / (name + '.img')).write_bytes(bytes([number + 1]) * ((number + 1) << 20))
    source = tmp_path / 'targets.conf'
    source.write_text(TARGETS_CONF % {'directory': tmp_path, 'one': ONE, 'two': TWO})
    tgtd = Tgtd(str(tmp_path), str(source))
    try:
        before = {name: seen(tgtd.port, name) for name in (ONE, TWO)}
        compare_with_running(tmp_path, tgtd, str(source))
    finally:
        tgtd.stop()
    assert {name: tuple(sorted(luns)) for name, luns in before.items()} == LUNS

    (tmp_path / 'targetd').mkdir()
    with watched(tmp_path / 'targetd') as daemon:
        imported = str(tmp_path / 'imported.conf')
        code, said = daemon.targetdctl('import', str(source), '--output', imported)
        assert code == 0, said
        with open(imported, encoding='utf-8') as f:
            daemon.text.extra = f.read()
        daemon.start()
        after = {name: seen(daemon.port, name.lower()) for name in (ONE, TWO)}
    for name, luns in before.items():
        for lun, facts in luns.items():
            assert after[name][lun] == facts, (name, lun)
        assert sorted(after[name]) == sorted(luns)


def compare_with_running(folder, tgtd, source):
    """`targetdctl import --running` finds no difference to the running tgtd, then those that are made, and
    says if tgtd does not run. tgtadm is the real one, for the tgtd of this test."""
    tools = folder / 'tools'
    tools.mkdir()
    wrapper = tools / 'tgtadm'
    wrapper.write_text(
        '#!/bin/sh\nexec %s -C ${TGTD:-%s} "$@"\n' % (shutil.which('tgtadm'), tgtd.control)
    )
    wrapper.chmod(0o755)

    def run(**more):
        path = '%s:%s' % (tools, os.environ['PATH'])
        done = subprocess.run(
            [sys.executable, '-m', 'targetd.admin.cli', 'import', '--running', source],
            env=dict(os.environ, PYTHONPATH=ROOT, PATH=path, **more),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=60,
        )
        return done.returncode, done.stdout.decode('utf-8', 'replace')

    code, text = run()
    assert code == 0 and '[target %s]' % ONE in text, text
    tgtadm = ['tgtadm', '-C', tgtd.control, '--lld', 'iscsi', '--mode']
    shown = clients.output(*tgtadm + ['target', '--op', 'show'])
    number = re.search(r'^Target (\d+): %s$' % re.escape(ONE), shown, re.M).group(1)
    clients.output(*tgtadm + ['logicalunit', '--op', 'delete', '--tid', number, '--lun', '2'])
    clients.output(*tgtadm + ['target', '--op', 'new', '--tid', '9', '-T', 'iqn.2026-11.test:new'])
    code, text = run()
    assert code == 1 and '[target' not in text, text
    assert 'LUN 2 of %s is in the file, but does not run' % ONE in text
    assert 'target iqn.2026-11.test:new runs, but is not in the file' in text
    code, text = run(TGTD='30001')
    assert code == 1 and 'start tgtd, or import without --running' in text
