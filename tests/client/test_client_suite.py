"""libiscsi's own test suite, iscsi-test-cu, with all that destroys data and with a second path, on
files and loop devices of both sector sizes, on a removable, a read-only and an encrypted disk, and
with digests: nothing may fail but what writes on the read-only disk (WRITES) and the tests that
expect what the standard forbids (WRONG). Each other test must really pass somewhere.

Each variant is a daemon with two disks alike. One is tested whole, but for Sanitize.Reset: before
it stands Sanitize.Reservations, which has the second path take a RESERVE(6) that it never releases,
so in this order every SANITIZE ends with RESERVATION CONFLICT (SPC-2 5.5.1). The other disk has
long physical blocks and is slow, for the tests that want these, and for Sanitize.Reset, which wants
a sanitizing that lasts some seconds.

Why tests were skipped is printed at the end of the run, and a reason that is not in REASONS fails:
either the target should do what was asked, or the reason belongs into the table.
"""

import collections
import os
import re
import subprocess

import clients
import pytest
from daemon import TARGET, free_port, watched

from targetd import xts

pytestmark = [pytest.mark.client, pytest.mark.slow]

SIZE = 100 << 20  # less than that, and some tests find no room
LIMIT_SECONDS = 300
START_SECONDS = 90  # all daemons start at the same time
TESTS = 230

#: What runs on the first disk, all but Sanitize.Reset, as the suite's patterns say it; and on the
#: second, which is sanitized in half a minute: Sanitize.Reset looks after five seconds and after a
#: minute more.
FIRST = 'ALL.[!S]*,ALL.S[!a]*,ALL.Sanitize.*[!t]'
SECOND = 'ALL.CompareAndWrite,ALL.WriteSame1?,ALL.Sanitize.Reset'
SLOW = ['physical-block-size = 4096', 'filter = delay write=4s offset=16M..24M']
SLOW_TARGET, SLOW_SIZE = TARGET + '.slow', 32 << 20

#: sector: of the loop device, or None for a file; lines: of the LUN (%(name)s: each disk's own);
#: target: lines of the target; url: what each URL ends with; second: what runs on the second disk;
#: fewest: tests that really pass on the first one.
Variant = collections.namedtuple('Variant', 'sector lines target url second fewest')

ALL = ['initiator-address = ALL']
# insists on one; libiscsi knows no data digest
DIGEST = ALL + ['HeaderDigest = CRC32C', 'DataDigest = CRC32C, None']
VARIANTS = collections.OrderedDict(
    [
        ('thick-file', Variant(None, ['write-cache = off'], ALL, '', SECOND, 190)),
        ('thin-file', Variant(None, ['thin = yes'], ALL, '', SECOND, 204)),
        ('loop-512', Variant(512, [], ALL, '', SECOND, 190)),
        ('loop-4096', Variant(4096, [], ALL, '', SECOND, 190)),
        (
            'removable',
            Variant(
                None, ['removable = yes', 'thin = yes', 'atomic-writes = yes'], ALL, '', SECOND, 217
            ),
        ),
        (
            'read-only',
            Variant(None, ['readonly = yes', 'thin = yes'], ALL, '', 'ALL.Sanitize.Reset', 145),
        ),
        (
            'header-digest',
            Variant(None, ['thin = yes'], DIGEST, '?header_digest=crc32c', SECOND, 204),
        ),
        (
            'encrypted',
            Variant(
                None, ['thin = yes', 'encryption-key-file = %(name)s.key'], ALL, '', SECOND, 207
            ),
        ),
    ]
)

#: Tests that expect what the standard forbids: (the variants in which they must fail, the reason). In
#: the other variants the suite skips them or does nothing; the read-only disk has WRITES.
WRONG = {
    'WriteSame10.UnmapUntilEnd': (
        ('thin-file', 'removable', 'header-digest', 'encrypted'),
        'it sends a block of FFh with UNMAP and expects zeroes; later reads return the block that was '
        'sent (SBC-3 5.43). WriteSame16.UnmapUntilEnd sends zeroes and passes.',
    ),
    'PreventAllow.Eject': (
        ('removable',),
        'it expects that a load is refused while removal of the medium is prevented; the prevention '
        'is of removals (SBC-3 5.10). That an eject is refused, which it tests before, is also tested '
        'by PreventAllow.Logout and others, which pass.',
    ),
    'StartStopUnit.PwrCnd': (
        ('removable',),
        'it expects GOOD for reserved values of POWER CONDITION (SBC-3 5.25)',
    ),
}

#: What fails on a read-only disk: it wants GOOD for a write, and what is protected is refused
#: (SBC-3 4.12).
WRITES = {
    'CompareAndWrite': 'Simple DpoFua Miscompare Unwritten',
    'ExtendedCopy': 'Simple ValidTgtDescr',
    'GetLBAStatus': 'UnmapSingle',
    'MultipathIO': 'Simple CompareAndWrite CompareAndWriteAsync',
    'OrWrite': 'Simple DpoFua Verify',
    'ProutReserve': 'AccessEA AccessWE AccessEARO AccessWERO AccessEAAR AccessWEAR',
    'ReceiveCopyResults': 'CopyStatus',
    'Sanitize': 'BlockErase Overwrite Reset',
    'Unmap': 'Simple',
    'Write10': 'Simple DpoFua Async',
    'Write12': 'Simple DpoFua',
    'Write16': 'Simple DpoFua',
    'WriteSame10': 'Simple ZeroBlocks Unmap UnmapUntilEnd UnmapVPD Check',
    'WriteSame16': 'Simple ZeroBlocks Unmap UnmapUntilEnd UnmapVPD Check',
    'WriteVerify10': 'Simple Flags Dpo',
    'WriteVerify12': 'Simple Flags Dpo',
    'WriteVerify16': 'Simple Flags Dpo',
    'iSCSIResiduals': 'Write10Residuals Write12Residuals Write16Residuals '
    'WriteVerify10Residuals WriteVerify12Residuals WriteVerify16Residuals',
    'iSCSITMF': 'AbortTaskSimpleAsync',
}
WRITES = {'%s.%s' % (suite, name) for suite, names in WRITES.items() for name in names.split()}

#: What each of them says: it is protected (or the copy that ended early was), or what follows from
#: that.
PROTECTED = (
    r'\(0x2700\)$',
    r'\(0x0d01\)$',
    r'^Blocks did not read back',
    r"^LBA should be mapped but isn't",
    r'UNMAP is (not implemented|unavailable) but',
    r'successful but should have failed with .*SANITIZE_IN_PROGRESS',
)
SAY_NOTHING = {'Write10.Async', 'iSCSITMF.AbortTaskSimpleAsync'}

#: A part of these is CRYPTOGRAPHIC ERASE: without the package cryptography no target passes them
#: whole.
ENCRYPTED = {'Sanitize.CryptoErase', 'Sanitize.Readonly', 'Sanitize.Reservations'}

#: (expression of the suite's words, why a test of this run may be skipped)
REASONS = (
    (r'CRYPTO_ERASE', 'the disk is not encrypted (SBC-3 5.24)'),
    (r'BLOCK_ERASE', 'a thick disk does not unmap'),
    (r'not removable', 'the disk is fixed'),
    (r'not write-protected', 'the disk can be written'),
    (r'fully provisioned', 'a thick disk does not unmap'),
    (r'WRITEATOMIC16', 'atomic-writes is off'),
    (r'4kN|block size', 'the test is for another block size'),
    (
        r'LBPPB',
        'physical blocks have the size of logical blocks; on the second disk they are larger. '
        'GetLBAStatus.UnmapSingle does not apply to that disk: it requests the status at LBA i + 1 and '
        'expects the answer for i + LBPPB (SBC-3 5.4: the answer starts at the requested LBA)',
    ),
    (r'UNMAP|LBPU|LBPWS|LBPRZ|thin', 'a thick disk does not unmap'),
)


class Disk(object):
    """One disk and the suite that runs on it: the loop device, the client's process and its
    output."""

    def __init__(self, daemon, variant, target, size, more):
        self.process = self.loop = self.found = None
        name = os.path.join(daemon.directory, target.rsplit(':', 1)[-1])
        self.output = name + '.out'
        store = daemon.image(name + '.img', size)
        if variant.sector:
            self.loop = clients.Loop(store, variant.sector)
            store = self.loop.path
        if store is not None:
            lines = [line % {'name': name} for line in variant.lines + more]
            daemon.target(target, variant.target, {0: ['backing-store = ' + store] + lines})

    def start(self, target, ports, end, tests):
        self.urls = ['iscsi://127.0.0.1:%d/%s/0%s' % (port, target, end) for port in ports]
        with open(self.output, 'wb') as out:
            self.process = clients.start(
                'iscsi-test-cu',
                '-d',
                '--allow-sanitize',
                '-t',
                tests,
                *self.urls,
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    def outcomes(self):
        """Waits until the suite has ended; returns [Outcome]."""
        if self.found is None:
            self.process.wait(LIMIT_SECONDS)
            with open(self.output, errors='replace') as file:
                text = file.read()
            assert 'Run Summary' in text, 'the suite ended with %s:\n%s' % (
                self.process.returncode,
                text[-3000:],
            )
            self.found = clients.outcomes(text)
        return self.found

    def end(self):
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)


class Run(object):
    """One variant: its daemon and its two disks. `why_not`: the reason why it cannot run here."""

    def __init__(self, directory, variant):
        self.context = watched(directory)
        daemon = self.context.__enter__()
        other = free_port()
        daemon.text.portal('127.0.0.1:%d' % other)
        self.disks = [
            Disk(daemon, variant, TARGET, SIZE, []),
            Disk(daemon, variant, SLOW_TARGET, SLOW_SIZE, SLOW),
        ]
        self.why_not = next(
            (disk.loop.why_not for disk in self.disks if disk.loop and not disk.loop.path), ''
        )
        if any('encryption' in line for line in variant.lines):
            self.why_not = xts.why_not()
        if not self.why_not:
            daemon.launch()
        self.daemon, self.ports, self.variant = daemon, (daemon.port, other), variant

    def start(self):
        """Starts the clients when the daemon listens."""
        if not self.why_not:
            self.daemon.wait_listening(self.daemon.address, START_SECONDS)
            for disk, target, tests in zip(
                self.disks, (TARGET, SLOW_TARGET), (FIRST, self.variant.second)
            ):
                disk.start(target, self.ports, self.variant.url, tests)

    def outcomes(self):
        """([Outcome] of the first disk, of the second)"""
        return [disk.outcomes() for disk in self.disks]

    def close(self):
        """Stops everything; raises an error if the daemon did not stop normally."""
        for disk in self.disks:
            disk.end()
        try:
            self.context.__exit__(None, None, None)
        finally:
            for disk in self.disks:
                if disk.loop:
                    disk.loop.close()


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """Runs all variants at the same time, because the suite mostly waits."""
    clients.need('iscsi-test-cu', 'losetup')
    started = {}
    wrong = []
    try:
        for name, variant in VARIANTS.items():
            started[name] = Run(tmp_path_factory.mktemp(name), variant)
        for run in started.values():
            run.start()
        yield started
    finally:
        for run in started.values():
            try:
                run.close()
            except AssertionError as e:
                wrong.append(str(e))
    assert not wrong, '\n'.join(wrong)


def is_protected(outcome):
    """True if this failure on a read-only disk is only about write protection."""
    said = outcome.said.split('; ') if outcome.said else []
    return (
        outcome.name in SAY_NOTHING
        or said
        and all(any(re.search(each, text) for each in PROTECTED) for text in said)
    )


@pytest.mark.parametrize('variant', list(VARIANTS))
def test_no_test_of_the_suite_fails(runs, variant):
    run = runs[variant]
    if run.why_not:
        pytest.skip(run.why_not)
    for disk, found in zip(('', ', second disk'), run.outcomes()):
        counts = collections.Counter(outcome.verdict for outcome in found)
        clients.SUMMARY.append(
            '%s%s: %d tests: %d passed, %d failed, %d skipped'
            % (variant, disk, len(found), counts['passed'], counts['failed'], counts['skipped'])
        )
        clients.SUMMARY.extend(
            '    skipped %s: %s' % (each.name, each.said)
            for each in found
            if each.verdict == 'skipped'
        )
    first, second = run.outcomes()
    found = first + second
    failed = [each for each in found if each.verdict == 'failed']
    if variant == 'read-only':
        assert [each for each in failed if not is_protected(each)] == []
        assert {each.name for each in failed} == WRITES
    else:
        assert {each.name for each in failed} == {
            name for name, (variants, _) in WRONG.items() if variant in variants
        }
    assert [
        each
        for each in found
        if each.verdict == 'skipped'
        and not any(re.search(expression, each.said, re.I) for expression, _ in REASONS)
    ] == []
    assert sum(each.verdict == 'passed' for each in first) >= VARIANTS[variant].fewest
    assert len({each.name for each in found}) >= TESTS


def test_each_test_passes_in_at_least_one_variant(runs):
    """Each test runs without being skipped in at least one variant."""
    found = [
        outcome
        for run in runs.values()
        if not run.why_not
        for disk in run.outcomes()
        for outcome in disk
    ]
    passed = {outcome.name for outcome in found if outcome.verdict == 'passed'}
    names = {outcome.name for outcome in found}
    assert len(names) >= TESTS
    without = runs['encrypted'].why_not
    assert names - passed == (set(WRONG) - passed) | (ENCRYPTED if without else set())
    if without:
        pytest.skip('%s were skipped: %s' % (', '.join(sorted(ENCRYPTED)), without))


def test_failures_and_skips_of_the_suite_are_detected():
    """Tests the parser of the suite's output with real output of the suite."""
    text = (
        'Suite: One\n  Test: A ...passed\n  Test: B ...    [SKIPPED] no unmap\npassed\n'
        '  Test: C ...    [FAILED] wrong\nFAILED\n    1. c.c:1  - CU_FAIL\n'
        'Suite: Two\n  Test: D ...    Take it\n    Verify\npassed    [FAILED] late words\n'
        '  Test: E ...FAILED\n    1. e.c:2\n  Test: F ...    and then it died'
    )
    assert clients.outcomes(text) == [
        ('One.A', 'passed', ''),
        ('One.B', 'skipped', 'no unmap'),
        ('One.C', 'failed', 'wrong'),
        ('Two.D', 'passed', 'late words'),
        ('Two.E', 'failed', ''),
        ('Two.F', 'failed', ''),
    ]
