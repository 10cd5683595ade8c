"""In the guest: versioned_load.py cached|durable JOURNAL COMMANDS SEED

Three sessions write versions of blocks, each in its own 256 blocks, with eight commands on their way.
The journal is a list of events; event k is a list of [block, version]: these versions, or newer ones,
are durable from the device mapper's mark k on, because a command said so.
"""

import json
import random
import struct
import subprocess
import sys

sys.path.insert(0, '/src/tests')
from initiator import Session
from versioned_blocks import BLOCK, SECTORS, block_of_version

TARGET = 'iqn.2026-11.com.example:cuts'
SESSIONS, BLOCKS, DEPTH = 3, 256, 8
SYNCHRONIZE_CACHE = b'\x35' + bytes(9)


class Load(object):
    """The versions that were written, and which of them were acknowledged as durable."""

    def __init__(self, write_cache, seed):
        self.write_cache = write_cache
        self.random = random.Random(seed)
        self.events = []
        self.newest = [0] * (SESSIONS * BLOCKS)  # the newest version that was sent
        self.written = {}  # block -> the newest version that was acknowledged, not yet durable

    def mark_durable(self, versions):
        if versions:
            subprocess.check_call(
                ['dmsetup', 'message', 'recorded', '0', 'mark', str(len(self.events))]
            )
            self.events.append(sorted(versions.items()))

    def send_writes(self, session, first):
        """Up to DEPTH writes of one session on their way at once, no two of them of one block."""
        sent = []
        for number in self.random.sample(
            range(first, first + BLOCKS), self.random.randint(1, DEPTH)
        ):
            count = self.random.choice((1, 1, 1, 4))
            numbers = range(number, min(number + count, first + BLOCKS))
            if any(n in other for other, _, _ in sent for n in numbers):
                continue
            for n in numbers:
                self.newest[n] += 1
            data = b''.join(block_of_version(n, self.newest[n]) for n in numbers)
            fua = self.random.random() < 0.3
            cdb = struct.pack(
                '>BBIBHB', 0x2A, 8 if fua else 0, number * SECTORS, 0, len(data) // 512, 0
            )
            sent.append((set(numbers), fua, session.submit(cdb, out=data)))
        durable = {}
        for numbers, fua, command in sent:
            session.wait(command).good()
            versions = {n: self.newest[n] for n in numbers}
            self.written.update(versions)
            if fua or not self.write_cache:
                durable.update(versions)
        self.mark_durable(durable)
        return len(sent)

    def synchronize(self, session):
        """What was acknowledged before this command, in any session, is durable after it."""
        before, self.written = self.written, {}
        session.run(SYNCHRONIZE_CACHE).good()
        self.mark_durable(before)


def main(kind, journal, commands, seed):
    load = Load(kind == 'cached', seed=int(seed))
    sessions = [
        Session(('127.0.0.1', 3260), 'iqn.2026-11.com.example:host%d' % n).login(TARGET)
        for n in range(SESSIONS)
    ]
    for session in sessions:
        session.clear_attentions()
    done = 0
    while done < int(commands):
        index = load.random.randrange(SESSIONS)
        done += load.send_writes(sessions[index], index * BLOCKS)
        if load.write_cache and load.random.random() < 0.15:
            load.synchronize(load.random.choice(sessions))
            done += 1
    for session in sessions:
        session.logout()
    with open(journal, 'w') as file:
        json.dump({'blocks': SESSIONS * BLOCKS, 'newest': load.newest, 'events': load.events}, file)
    print('%d commands, %d moments of durability' % (done, len(load.events)))
    assert BLOCK == SECTORS * 512


main(*sys.argv[1:])
