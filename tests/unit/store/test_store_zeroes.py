"""Blocks that are all zero are found and freed; everything else stays."""

import os
from types import SimpleNamespace

import pytest

from targetd.store import open_store, zeroes
from targetd.store.zeroes import WINDOW, find_zeroes, free_zeroes, why_not, zero_ranges

MIB = 1 << 20
BLOCK = 4096


class Memory(object):
    """A store of a bytearray. mapped: the extents that occupy space, or None: all of it."""

    def __init__(self, data, granule=BLOCK, alignment=0, mapped=None):
        self.data, self.size, self.block_size = bytearray(data), len(data), 512
        self.capabilities = SimpleNamespace(unmap_granularity=granule, unmap_alignment=alignment)
        self.mapped = mapped or [(0, len(data))]
        self.freed, self.was_read = [], 0

    def read(self, offset, length):
        self.was_read += length
        return self.data[offset : offset + length]

    def extents(self, offset, length, maximum=None):
        found, end = [], offset + length
        for start, count in self.mapped:
            first, last = max(offset, start), min(end, start + count)
            if first < last:
                if first > offset:
                    found.append((offset, first - offset, False))
                found.append((first, last - first, True))
                offset = last
        if offset < end:
            found.append((offset, end - offset, False))
        return found[:maximum]

    def locked_range(self, offset, length, exclusive):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        pass

    def unmap(self, offset, length):
        assert not any(self.data[offset : offset + length]), 'data would be lost'
        self.freed.append((offset, length))


def layout(text):
    """A Memory with a block for each character: 0 is zeroes, x has one byte at its end, which is set."""
    return Memory(b''.join(bytes(BLOCK) if c == '0' else bytes(BLOCK - 1) + b'\1' for c in text))


@pytest.mark.parametrize(
    'text, found',
    [
        ('xxxx', []),
        ('0000', [(0, 4)]),
        ('x00x', [(1, 2)]),
        ('0x0x0', [(0, 1), (2, 1), (4, 1)]),
        ('x' * 300 + '0' * 20, [(300, 20)]),
        ('0' * 256 + 'x' + '0' * 255, [(0, 256), (257, 255)]),
    ],
)
def test_whole_blocks_of_zeroes_are_found(text, found):
    store = layout(text)
    wanted = [(first * BLOCK, count * BLOCK) for first, count in found]
    assert list(zero_ranges(store, 0, store.size)) == wanted
    assert free_zeroes(store, 0, store.size) == sum(count for _, count in wanted)
    assert store.freed == wanted


def test_blocks_have_the_size_and_the_alignment_that_the_medium_frees():
    store = Memory(bytes(16 * BLOCK), 4 * BLOCK, BLOCK)
    assert list(zero_ranges(store, 0, store.size)) == [(BLOCK, 12 * BLOCK)]
    assert list(zero_ranges(store, 2 * BLOCK, 7 * BLOCK)) == [(5 * BLOCK, 4 * BLOCK)]


def test_holes_are_neither_read_nor_counted():
    store = Memory(bytes(16 * BLOCK), mapped=[(2 * BLOCK, 2 * BLOCK), (9 * BLOCK, BLOCK)])
    assert free_zeroes(store, 0, store.size) == 3 * BLOCK
    assert store.was_read == 3 * BLOCK


def test_the_search_names_windows_and_goes_on_where_it_ended():
    data = bytearray(b'x' * (4 * WINDOW + MIB))
    data[WINDOW : WINDOW + BLOCK] = bytes(BLOCK)
    data[-BLOCK:] = bytes(BLOCK)
    store = Memory(data)
    position, found = find_zeroes(store, 0, 1, 60.0)
    assert found == [(WINDOW, WINDOW)] and position == 2 * WINDOW
    assert find_zeroes(store, position, 9, 60.0) == (store.size, [(4 * WINDOW, MIB)])


def test_a_hole_is_passed_in_one_step():
    store = Memory(bytes(6 * WINDOW), mapped=[(5 * WINDOW, BLOCK)])
    calls, extents = [], store.extents
    store.extents = lambda *arguments: calls.append(arguments) or extents(*arguments)
    assert find_zeroes(store, 0, 9, 60.0) == (store.size, [(5 * WINDOW, WINDOW)])
    assert len(calls) <= 6 and store.was_read == BLOCK


def test_a_search_ends_when_its_time_is_over():
    store = Memory(bytes(2 * WINDOW))
    assert find_zeroes(store, 0, 9, 0.0) == (0, [])


def test_a_file_occupies_less_afterwards_and_reads_the_same(tmp_path):
    path = str(tmp_path / 'a.img')
    content = bytes(MIB) + b'x' * 5000 + bytes(3 * MIB - 5000)
    with open(path, 'wb') as file:
        file.write(content)
        os.fsync(file.fileno())
    with open_store({'kind': 'file', 'path': path}) as opened:
        assert why_not(opened) == ''
        with opened.store() as store:
            freed = free_zeroes(store, 0, store.size)
    assert freed == 4 * MIB - 2 * BLOCK
    assert os.stat(path).st_blocks * 512 <= MIB
    with open(path, 'rb') as file:
        assert file.read() == content


@pytest.mark.parametrize(
    'words, why',
    [
        ({'descriptor': None}, 'it has no medium'),
        ({'read_only': True}, 'it is read-only'),
        ({'unmap': False, 'kind': 'block'}, 'the disk cannot discard'),
        ({'zeroes_after_unmap': False, 'kind': 'block'}, 'the disk cannot discard'),
        ({'unmap': False}, 'the file system cannot free'),
        ({}, ''),
    ],
)
def test_what_cannot_be_freed_is_known_before(words, why):
    facts = dict(
        {'unmap': True, 'zeroes_after_unmap': True, 'kind': 'file', 'descriptor': 5}, **words
    )
    store = SimpleNamespace(
        descriptor=facts['descriptor'],
        read_only=facts.get('read_only', False),
        kind=facts['kind'],
        capabilities=SimpleNamespace(
            unmap=facts['unmap'], zeroes_after_unmap=facts['zeroes_after_unmap']
        ),
    )
    assert why_not(store).startswith(why) and bool(why_not(store)) == bool(why)
    assert zeroes.LEAST == BLOCK
