"""The transcripts of logins in tests/transcripts as text: transcripts/test_transcripts.py says what a line
means."""

import os
import struct

FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'transcripts')
TARGET = 'iqn.2026-11.com.example:erp'


def blocks(name):
    """[(mark, words, pairs)] of a transcript."""
    found = []
    with open(os.path.join(FOLDER, name + '.txt'), encoding='utf-8') as lines:
        for line in lines:
            line = line.rstrip('\n')
            if line.startswith('  '):
                found[-1][2].append(line.strip())
            elif line and not line.startswith('#'):
                words = line.split()
                found.append((words[0], words[1:], []))
    return found


def fields(words):
    return dict(word.split('=', 1) for word in words if '=' in word)


def account(value):
    user, _, secret = value.partition('#')
    return user, secret


def text_of(pairs):
    return b''.join(
        pair[:-1].encode('utf-8') if pair.endswith('\\') else pair.encode('utf-8') + b'\0'
        for pair in pairs
    )


def request_bytes(words, pairs):
    """The bytes of a login request, including the padding."""
    said = fields(words)
    data = text_of(pairs)
    bhs = struct.pack(
        '>BBBBI6sHIHHII16x',
        int(words[0], 16),
        int(words[1], 16),
        0,
        0,
        len(data),
        bytes.fromhex(said['isid']),
        int(said.get('tsih', '0'), 16),
        int(said['itt']),
        int(said['cid']),
        0,
        int(said['cmdsn']),
        int(said['expstatsn']),
    )
    return bhs + data + bytes(-len(data) % 4)
