"""libiscsi's own test suite, iscsi-test-cu, with all that destroys data and with a second path, on files and loop devices of
both sector sizes, on a read-only and on a removable disk: nothing may fail but what MAY_FAIL and PROTECTED name, and each test
must really pass somewhere.

Which tests were skipped and why is printed at the end of the run, and a reason that is not in REASONS fails: either the target
should do what was asked, or the reason belongs into the table. NOWHERE names the tests that pass on no disk of targetd.
Each variant has a daemon of its own: the suite resets targets, which would end the sessions of another.
"""

import collections
import os
import re
import subprocess

import pytest

import clients
from daemon import TARGET, free_port, watched

pytestmark = [pytest.mark.client, pytest.mark.slow]

SIZE = 100 << 20                         # less than that, and some tests find no room
LIMIT_SECONDS = 300
TESTS = 230
EVERYTHING = ['-d', '--allow-sanitize', '-t', 'ALL']

#: Variant -> (loop device's sector size or None for a file, lines of the LUN, arguments, the fewest tests that really pass).
#: On a read-only disk the tests that write want GOOD: they must fail there, and by WRITE PROTECTED alone (PROTECTED).
VARIANTS = collections.OrderedDict([
    ('thick-file', (None, ['write-cache = off'], EVERYTHING, 190)),
    ('thin-file', (None, ['thin = yes'], EVERYTHING, 200)),
    ('loop-512', (512, [], EVERYTHING, 190)),
    ('loop-4096', (4096, [], EVERYTHING, 190)),
    ('removable', (None, ['removable = yes', 'thin = yes', 'physical-block-size = 4096'], EVERYTHING, 200)),
    ('read-only', (None, ['readonly = yes'], EVERYTHING, 120)),
])

#: Test -> why no disk of targetd can pass it whole. The suite counts a test as skipped when one of its parts is.
NO_ENCRYPTION = 'a part is CRYPTOGRAPHIC ERASE, which is for media that encrypt (SBC-3 5.24.2.4); no store does'
NO_ATOMIC = 'neither the page cache nor a killed process promises all or nothing (SBC-4 4.29), so WRITE ATOMIC is not offered'
NO_SANITIZE_RESET = 'open: in a run of the whole suite it finds no SANITIZE under way, and the log shows none begun'
MAY_FAIL = {
    'Sanitize.Reset': NO_SANITIZE_RESET,
    'GetLBAStatus.UnmapSingle': 'with long physical blocks it asks at i + 1 and wants the answer for i + LBPPB',
}
PROTECTED = r'\(0x2700\)|\(0x0d01\)'     # as it is, and as the reason of a copy that ended early
PROTECTED_SILENTLY = ('Write10.Async', 'iSCSITMF.AbortTaskSimpleAsync')      # they do not say what they got
NOWHERE = {
    'Sanitize.Reset': NO_SANITIZE_RESET,
    'ReadOnly.ReadOnlySBC': 'a part is UNMAP, and a disk that cannot be written does not offer it',
    'Sanitize.CryptoErase': NO_ENCRYPTION, 'Sanitize.Readonly': NO_ENCRYPTION, 'Sanitize.Reservations': NO_ENCRYPTION,
    'WriteAtomic16.BeyondEol': NO_ATOMIC, 'WriteAtomic16.DpoFua': NO_ATOMIC, 'WriteAtomic16.Simple': NO_ATOMIC,
    'WriteAtomic16.VPD': NO_ATOMIC, 'WriteAtomic16.WriteProtect': NO_ATOMIC, 'WriteAtomic16.ZeroBlocks': NO_ATOMIC,
}

#: (expression of the suite's words, why a test of this run may be skipped)
REASONS = (
    (r'CRYPTO_ERASE', NO_ENCRYPTION),
    (r'BLOCK_ERASE', 'a thick disk does not unmap'),
    (r'not removable', 'the disk is fixed'),
    (r'not write-protected', 'the disk can be written'),
    (r'fully provisioned', 'a thick disk does not unmap'),
    (r'WRITEATOMIC16', NO_ATOMIC),
    (r'4kN|block size', 'the test is for another block size'),
    (r'EXTENDEDCOPY|RECEIVE_?COPY_?RESULTS?', 'third-party copy'),
    (r'LBPPB', 'physical blocks are as long as logical ones; with longer ones GetLBAStatus.UnmapSingle asks at i + 1 and wants '
               'the answer for i + LBPPB'),
    (r'UNMAP|LBPU|LBPWS|LBPRZ|thin', 'a thick disk does not unmap'),
)


class Run(object):
    """One variant: its daemon, its store, the client's process and output."""

    def __init__(self, directory, sector, lines, arguments):
        self.process = self.loop = None
        self.context = watched(directory)
        self.found = None
        self.daemon = self.context.__enter__()
        other = free_port()
        self.daemon.text.portal('127.0.0.1:%d' % other)
        store = self.daemon.image('suite.img', SIZE)
        if sector:
            self.loop = clients.Loop(store, sector)
            store = self.loop.path
        if store is None:
            return
        self.daemon.target(TARGET, luns={0: ['backing-store = %s' % store] + lines})
        self.daemon.start()
        urls = ['iscsi://127.0.0.1:%d/%s/0' % (port, TARGET) for port in (self.daemon.port, other)]
        self.output = os.path.join(str(directory), 'suite.out')
        with open(self.output, 'wb') as out:
            self.process = clients.start('iscsi-test-cu', *(arguments + urls), stdout=out, stderr=subprocess.STDOUT)

    def outcomes(self):
        """Wait for the end: [Outcome]."""
        if self.found is not None:
            return self.found
        self.process.wait(LIMIT_SECONDS)
        with open(self.output, errors='replace') as file:
            text = file.read()
        assert 'Run Summary' in text, 'the suite ended with %s:\n%s' % (self.process.returncode, text[-3000:])
        self.found = clients.outcomes(text)
        return self.found

    def close(self):
        """Stop everything; what is wrong with the daemon's end is raised."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)
        try:
            self.context.__exit__(None, None, None)
        finally:
            if self.loop:
                self.loop.close()


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """Every variant at the same time: most of what the suite does is wait."""
    clients.need('iscsi-test-cu', 'losetup')
    started = {}
    wrong = []
    try:
        for variant, (sector, lines, arguments, _) in VARIANTS.items():
            started[variant] = Run(tmp_path_factory.mktemp(variant), sector, lines, arguments)
        yield started
    finally:
        for run in started.values():
            try:
                run.close()
            except AssertionError as e:
                wrong.append(str(e))
    assert not wrong, '\n'.join(wrong)


def may_fail(variant, outcome):
    if variant == 'read-only' and (re.search(PROTECTED, outcome.said) or outcome.name in PROTECTED_SILENTLY):
        return True
    return outcome.name in MAY_FAIL


@pytest.mark.parametrize('variant', list(VARIANTS))
def test_nothing_fails(runs, variant):
    run = runs[variant]
    if run.process is None:
        pytest.skip(run.loop.why_not)
    found = run.outcomes()
    counts = collections.Counter(outcome.verdict for outcome in found)
    skipped = [outcome for outcome in found if outcome.verdict == 'skipped']
    clients.SUMMARY.append('%s: %d tests: %d passed, %d failed, %d skipped' % (
        variant, len(found), counts['passed'], counts['failed'], counts['skipped']))
    clients.SUMMARY.extend('    skipped %s: %s' % (each.name, each.said) for each in skipped)
    assert [each for each in found if each.verdict == 'failed' and not may_fail(variant, each)] == []
    unknown = [each for each in skipped if not any(re.search(expression, each.said, re.I) for expression, _ in REASONS)]
    assert unknown == []
    assert counts['passed'] >= VARIANTS[variant][3]
    assert len(found) >= TESTS or 'ALL' not in VARIANTS[variant][2]


def test_each_test_passes_somewhere(runs):
    """Unskipped, in one variant at least; but for those of NOWHERE, which then must not pass anywhere, or leave the table."""
    found = [outcome for run in runs.values() if run.process is not None for outcome in run.outcomes()]
    passed = {outcome.name for outcome in found if outcome.verdict == 'passed'}
    names = {outcome.name for outcome in found}
    assert len(names) >= TESTS
    assert names - passed == set(NOWHERE)


def test_a_failure_and_a_skip_are_seen():
    """The reader of the suite's output is judged on what the suite prints."""
    text = ('Suite: One\n  Test: A ...passed\n  Test: B ...    [SKIPPED] no unmap\npassed\n'
            '  Test: C ...    [FAILED] wrong\nFAILED\n    1. c.c:1  - CU_FAIL\n'
            'Suite: Two\n  Test: D ...    Take it\n    Verify\npassed    [FAILED] late words\n'
            '  Test: E ...FAILED\n    1. e.c:2\n  Test: F ...    and then it died')
    assert clients.outcomes(text) == [
        ('One.A', 'passed', ''), ('One.B', 'skipped', 'no unmap'), ('One.C', 'failed', 'wrong'),
        ('Two.D', 'passed', 'late words'), ('Two.E', 'failed', ''), ('Two.F', 'failed', '')]
