"""In the guest: replay_record.py RECORD JOURNAL CUTS SEED [--lose-what-flushes-cover]

The record is what the device mapper's log-writes target kept (its on-disk format is described in the
kernel's documentation of that target): a superblock, then entries in the order in which the medium had
them; writes that a flush covers come before it. With the option the writes before a flush never reach
the medium: the check must find that.
"""

import json
import operator
import random
import struct
import sys

from versioned_blocks import SECTORS, version_of

MAGIC = 0x6A736677736872
FLUSH, FUA, DISCARD, MARK = 1, 2, 4, 8
_SUPER = struct.Struct('<QQQI')
_ENTRY = struct.Struct('<QQQQ')


def entries(path):
    """(flags, [(sector, data)] or the text of a mark), in order."""
    with open(path, 'rb') as record:
        magic, _, count, unit = _SUPER.unpack(record.read(_SUPER.size))
        assert magic == MAGIC, 'there is no record on %s' % path
        position = unit
        for _ in range(count):
            record.seek(position)
            sector, sectors, flags, length = _ENTRY.unpack(record.read(_ENTRY.size))
            if flags & MARK:
                yield flags, record.read(length).rstrip(b'\0').decode()
                position += unit
                continue
            record.seek(position + unit)
            step = unit // 512
            data = (
                []
                if flags & DISCARD
                else [(sector * step + n, record.read(512)) for n in range(sectors * step)]
            )
            yield flags, data
            position += unit + (0 if flags & DISCARD else sectors * unit)


class Medium(object):
    """The versions of the sectors on the medium, and those that must be there at least."""

    def __init__(self, blocks):
        self.limit = blocks * SECTORS
        self.versions = [0] * self.limit
        self.floor = [0] * self.limit

    def put(self, sectors, versions=None):
        versions = self.versions if versions is None else versions
        for number, version in sectors:
            versions[number] = version

    def versions_in(self, sectors):
        """[(sector, version)] of the written [(sector, data)]."""
        return [
            (number, version_of(number, data)) for number, data in sectors if number < self.limit
        ]

    def promise(self, event):
        for block, version in event:
            for sector in range(block * SECTORS, (block + 1) * SECTORS):
                self.floor[sector] = max(self.floor[sector], version)

    def check(self, what, versions=None):
        versions = self.versions if versions is None else versions
        if not any(map(operator.lt, versions, self.floor)):
            return
        lost = [n for n in range(self.limit) if versions[n] < self.floor[n]]
        assert not lost, '%s: sector %d has version %d; version %d was acknowledged as durable' % (
            what,
            lost[0],
            versions[lost[0]],
            self.floor[lost[0]],
        )


def main(path, journal, cuts, seed, losing=None):
    with open(journal) as file:
        load = json.load(file)
    medium, draw, group, prefixes, done = Medium(load['blocks']), random.Random(int(seed)), [], 0, 0
    records = list(entries(path))
    flushes = sum(1 for flags, _ in records if flags & FLUSH)
    marks = 0
    for number, (flags, content) in enumerate(records):
        if not flags & MARK:
            content = medium.versions_in(content)
        if flags & MARK:
            if content.isdigit():
                medium.promise(load['events'][int(content)])
                marks += 1
        elif flags & FLUSH:
            # The power fails while the device works on the flush: any sectors of the group may be missing.
            for _ in range(-(-int(cuts) // max(flushes, 1))):
                versions = list(medium.versions)
                for sectors in group:
                    kept = draw.choice((0.0, 0.5, 1.0))
                    medium.put([each for each in sectors if draw.random() < kept], versions)
                medium.check('a cut amid the group before record %d' % number, versions)
                done += 1
            for sectors in () if losing else group:
                medium.put(sectors)
            group = []
            medium.put(content)
        elif flags & FUA:
            medium.put(content)
        else:
            group.append(content)
        if not group:
            medium.check('a cut after record %d' % number)
            prefixes += 1
    assert marks == len(load['events']), 'only %d of %d marks are in the record' % (
        marks,
        len(load['events']),
    )
    assert done >= int(cuts)
    print(
        '%d records, %d flushes, %d marks; %d cuts after a record, %d amid a group: '
        'nothing durable is missing' % (len(records), flushes, marks, prefixes, done)
    )


main(*sys.argv[1:])
