"""Negotiated parameters in every combination, with data that is verified: digests, ImmediateData,
InitialR2T, segment lengths of both sides, bursts, outstanding R2Ts and error recovery levels.

The values are those at the limits of their ranges, and lengths that are not multiples of 4 or of a
block (RFC 7143 13). run_matrix() tests all combinations, pairwise() a selection in which each pair of
values occurs.
"""

import itertools
import os
import random
import time

from daemon import watched
from initiator import ISID, Session, pattern

SEGMENTS = ('512', '513', '515', '16777215')
BURSTS = ('512', '513', '1023', '16777215')

#: Key -> its values. 'declared' is the target's MaxRecvDataSegmentLength, which is a setting.
VALUES = {
    'HeaderDigest': ('None', 'CRC32C'),
    'DataDigest': ('None', 'CRC32C'),
    'ImmediateData': ('Yes', 'No'),
    'InitialR2T': ('Yes', 'No'),
    'MaxRecvDataSegmentLength': SEGMENTS,
    'declared': SEGMENTS,
    'FirstBurstLength': BURSTS,
    'MaxBurstLength': BURSTS,
    'MaxOutstandingR2T': ('1', '2', '65535'),
    'ErrorRecoveryLevel': ('0', '1', '2'),
}
KEYS = sorted(VALUES)

MOST_R2TS = 16  # the greatest MaxOutstandingR2T of targetd

#: Bytes of the writes: within and beyond immediate data, one burst and several outstanding R2Ts.
SIZES = (512, 1024, 1536, 12 << 10)
BLOCKS = sum(SIZES) // 512
PLACES = 1000  # different places on the disk


def is_allowed(combination):
    """FirstBurstLength must not exceed MaxBurstLength (RFC 7143 13.14)."""
    first, most = combination['FirstBurstLength'], combination['MaxBurstLength']
    return int(first) <= int(most)


def combinations():
    """Every allowed combination, as dicts."""
    everything = itertools.product(*(VALUES[key] for key in KEYS))
    return [c for c in (dict(zip(KEYS, values)) for values in everything) if is_allowed(c)]


def _pairs(combination):
    return set(itertools.combinations(sorted(combination.items()), 2))


def allowed_pairs():
    """Every pair of values of two keys that may be combined, as ((key, value), (key, value))."""
    found = set()
    for one, two in itertools.combinations(KEYS, 2):
        for values in itertools.product(VALUES[one], VALUES[two]):
            pair = ((one, values[0]), (two, values[1]))
            if is_allowed(
                dict({'FirstBurstLength': '512', 'MaxBurstLength': '16777215'}, **dict(pair))
            ):
                found.add(pair)
    return found


def _completed(pair, chance):
    """A random allowed combination that has this pair of values."""
    while True:
        combination = {key: chance.choice(VALUES[key]) for key in KEYS}
        combination.update(pair)
        if is_allowed(combination):
            return combination


def pairwise(seed=1):
    """Combinations in which each allowed pair of values of two keys occurs at least once."""
    chance = random.Random(seed)
    missing = allowed_pairs()
    chosen = []
    while missing:
        pair = min(missing)
        best = max(
            (_completed(pair, chance) for _ in range(40)), key=lambda c: len(_pairs(c) & missing)
        )
        missing -= _pairs(best)
        chosen.append(best)
    return chosen


def target_name(declared):
    return 'iqn.2026-11.test.matrix:declares-%s' % declared


def serve(daemon):
    """Adds a target for each length that the target can declare, and starts the daemon."""
    for declared in SEGMENTS:
        daemon.target(
            target_name(declared),
            [
                'initiator-address = ALL',
                'HeaderDigest = None, CRC32C',
                'DataDigest = None, CRC32C',
                'InitialR2T = No',
                'ImmediateData = Yes',
                'MaxBurstLength = 16777215',
                'FirstBurstLength = 16777215',
                'MaxOutstandingR2T = %d' % MOST_R2TS,
                'ErrorRecoveryLevel = 2',
                'MaxRecvDataSegmentLength = %s' % declared,
            ],
        )
    return daemon.start()


def check(daemon, combination, number):
    """Logs in with these values, writes, and reads back; raises an exception if anything is wrong.
    Returns the bytes that were written."""
    offer = {key: value for key, value in combination.items() if key != 'declared'}
    isid = ISID[:2] + number.to_bytes(4, 'big')
    with Session(daemon.address, isid=isid) as session:
        session.login(target_name(combination['declared']), keys=offer, security=False)
        for key, value in offer.items():
            if key == 'MaxOutstandingR2T':
                value = str(min(int(value), MOST_R2TS))
            if key != 'MaxRecvDataSegmentLength':
                assert session.value(key) == value, (key, session.value(key))
        assert session.value('MaxRecvDataSegmentLength') == combination['declared']
        session.clear_attentions()
        start = lba = number % PLACES * BLOCKS
        written = []
        for size in SIZES:
            data = pattern(number + size, size)
            session.write(lba, data)
            written.append(data)
            lba += size // 512
        assert session.read(start, BLOCKS) == b''.join(written), 'other data was read'
        assert session.ping(b'abc') == b'abc'
        assert not session.rejects, session.rejects
        session.logout()
    return sum(SIZES)


def run_matrix(directory, seconds, seed, start=0):
    """Tests the combinations in random order, from number 'start' on, until all are tested or the time
    is over. Returns (figures, complaints)."""
    everything = combinations()
    random.Random(seed).shuffle(everything)
    figures = {'combinations': len(everything), 'tested': 0, 'bytes written and verified': 0}
    complaints = []
    end = time.monotonic() + seconds
    folder = os.path.join(directory, 'daemon')
    os.mkdir(folder)
    with watched(folder) as daemon:
        serve(daemon)
        for number, combination in list(enumerate(everything))[start:]:
            if time.monotonic() > end or len(complaints) > 20:
                break
            try:
                figures['bytes written and verified'] += check(daemon, combination, number)
            except Exception as e:
                complaints.append('%r: %s %s' % (combination, type(e).__name__, e))
            figures['tested'] += 1
    return figures, complaints
