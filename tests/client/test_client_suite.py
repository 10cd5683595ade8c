"""libiscsi's own test suite, iscsi-test-cu, against a sparse file and loop devices of both sector sizes: nothing may fail.

Which tests were skipped and why is printed at the end of the run, and a reason that is not in REASONS fails: either the target
should do what was asked, or the reason belongs into the table.
"""

import collections
import os
import re
import subprocess

import pytest

import clients
from daemon import TARGET, watched

pytestmark = [pytest.mark.client, pytest.mark.slow]

SIZE = 128 << 20
LIMIT_SECONDS = 300

#: Variant -> (loop device's sector size or None for a file, lines of the LUN, the fewest tests that must really pass)
VARIANTS = collections.OrderedDict([
    ('file', (None, ['thin = yes'], 185)),
    ('thick-file', (None, ['write-cache = off'], 150)),
    ('loop-512', (512, [], 150)),
    ('loop-4096', (4096, [], 150)),
])

#: (expression of the suite's words, why a test of this run may be skipped)
REASONS = (
    (r'allow-sanitize', 'SANITIZE erases the disk and must be allowed on the command line'),
    (r'Multipath unavailable', 'the run has one path'),
    (r'not removable', 'the disk is fixed'),
    (r'not write-protected', 'the disk can be written'),
    (r'fully provisioned', 'a thick disk does not unmap'),
    (r'WRITEATOMIC16', 'the page cache cannot promise atomic writes through a loss of power (SBC-4 4.29)'),
    (r'4kN|block size', 'the test is for another block size'),
    (r'EXTENDEDCOPY|RECEIVE_?COPY_?RESULTS?', 'third-party copy'),
    (r'LBPPB', 'physical blocks are as long as logical ones; with longer ones GetLBAStatus.UnmapSingle asks at i + 1 and wants '
               'the answer for i + LBPPB'),
    (r'UNMAP|LBPU|LBPWS|LBPRZ|thin', 'a thick disk does not unmap'),
)


class Run(object):
    """One variant: its daemon, its store, the client's process and output."""

    def __init__(self, directory, sector, lines):
        self.process = self.loop = None
        self.context = watched(directory)
        self.daemon = self.context.__enter__()
        store = self.daemon.image('suite.img', SIZE)
        if sector:
            self.loop = clients.Loop(store, sector)
            store = self.loop.path
        if store is None:
            return
        self.daemon.target(TARGET, luns={0: ['backing-store = %s' % store] + lines})
        self.daemon.start()
        url = 'iscsi://127.0.0.1:%d/%s/0' % (self.daemon.port, TARGET)
        self.output = os.path.join(str(directory), 'suite.out')
        with open(self.output, 'wb') as out:
            self.process = clients.start('iscsi-test-cu', '-d', '-t', 'ALL', url, stdout=out, stderr=subprocess.STDOUT)

    def outcomes(self):
        """Wait for the end: [Outcome]."""
        self.process.wait(LIMIT_SECONDS)
        with open(self.output, errors='replace') as file:
            text = file.read()
        assert 'Run Summary' in text, 'the suite ended with %s:\n%s' % (self.process.returncode, text[-3000:])
        return clients.outcomes(text)

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
        for variant, (sector, lines, _) in VARIANTS.items():
            started[variant] = Run(tmp_path_factory.mktemp(variant), sector, lines)
        yield started
    finally:
        for run in started.values():
            try:
                run.close()
            except AssertionError as e:
                wrong.append(str(e))
    assert not wrong, '\n'.join(wrong)


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
    assert [each for each in found if each.verdict == 'failed'] == []
    unknown = [each for each in skipped if not any(re.search(expression, each.said, re.I) for expression, _ in REASONS)]
    assert unknown == []
    assert len(found) >= 230 and counts['passed'] >= VARIANTS[variant][2]


def test_a_failure_and_a_skip_are_seen():
    """The reader of the suite's output is judged on what the suite prints."""
    text = ('Suite: One\n  Test: A ...passed\n  Test: B ...    [SKIPPED] no unmap\npassed\n'
            '  Test: C ...    [FAILED] wrong\nFAILED\n    1. c.c:1  - CU_FAIL\n'
            'Suite: Two\n  Test: D ...    Take it\n    Verify\npassed    [FAILED] late words\n'
            '  Test: E ...FAILED\n    1. e.c:2\n  Test: F ...    and then it died')
    assert clients.outcomes(text) == [
        ('One.A', 'passed', ''), ('One.B', 'skipped', 'no unmap'), ('One.C', 'failed', 'wrong'),
        ('Two.D', 'passed', 'late words'), ('Two.E', 'failed', ''), ('Two.F', 'failed', '')]
