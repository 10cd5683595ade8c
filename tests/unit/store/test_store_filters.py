"""The filters: parsing of the setting, and the effect of each filter."""

import errno
import json
import os

import pytest

from targetd import store
from targetd.store import filter_settings, filters

MIB = 1 << 20
BLOCK = 4096


@pytest.fixture
def medium(opened):
    made = opened({'kind': 'ram', 'size': MIB}).store()
    yield made
    made.close()


def on(medium, text):
    return filter_settings.stack_filters(medium, filter_settings.parse_filters(text))


def outcome(call, *arguments):
    """Returns 'ok' or the name of the errno."""
    try:
        call(*arguments)
        return 'ok'
    except OSError as e:
        return errno.errorcode[e.errno]


# -- the words -------------------------------------------------------------------------------------

ALL = ['read', 'write', 'flush', 'unmap', 'write_zeroes', 'extents']


@pytest.mark.parametrize(
    'text, parsed',
    [
        ('', []),
        ('readonly', [['readonly', {}]]),
        ('delay 10ms', [['delay', {'verbs': dict.fromkeys(ALL, 0.01)}]]),
        (
            'delay read=10ms write=5us cached=yes',
            [['delay', {'verbs': {'read': 0.01, 'write': 5e-6}, 'cached': True}]],
        ),
        ('delay all=1s flush=2', [['delay', {'verbs': dict(dict.fromkeys(ALL, 1.0), flush=2.0)}]]),
        (
            'delay write-zeroes=1.5s offset=1M..',
            [['delay', {'verbs': {'write_zeroes': 1.5}, 'offset': [MIB, None]}]],
        ),
        ('error', [['error', {'verbs': ALL}]]),
        (
            'error write offset=1M..2M errno=enospc',
            [['error', {'verbs': ['write'], 'offset': [MIB, 2 * MIB], 'errno': 'ENOSPC'}]],
        ),
        (
            'error read+write every=100 after=7 count=2 probability=0.5 seed=3',
            [
                [
                    'error',
                    {
                        'verbs': ['read', 'write'],
                        'every': 100,
                        'after': 7,
                        'count': 2,
                        'probability': 0.5,
                        'seed': 3,
                    },
                ]
            ],
        ),
        (
            'error unmap offset=4096 errno=5',
            [['error', {'verbs': ['unmap'], 'offset': [4096, 4097], 'errno': 'EIO'}]],
        ),
        ('tear', [['tear', {}]]),
        (
            'tear piece=64K pause=5ms offset=1M..',
            [['tear', {'piece': 65536, 'pause': 0.005, 'offset': [MIB, None]}]],
        ),
        ('Error ALL offset=..64k', [['error', {'verbs': ALL, 'offset': [0, 65536]}]]),
        (
            'error write, delay 2ms , trace to=/x/y',
            [
                ['error', {'verbs': ['write']}],
                ['delay', {'verbs': dict.fromkeys(ALL, 0.002)}],
                ['trace', {'to': '/x/y'}],
            ],
        ),
        (['error write', 'readonly'], [['error', {'verbs': ['write']}], ['readonly', {}]]),
    ],
)
def test_the_setting_is_parsed(text, parsed):
    assert filter_settings.parse_filters(text) == parsed
    assert json.loads(json.dumps(parsed)) == parsed


@pytest.mark.parametrize(
    'text, words',
    [
        ('eror write', ['"eror"', 'did you mean "error"']),
        ('compress', ['"compress"', 'delay error readonly tear trace']),
        ('error wirte', ['"wirte"', 'did you mean "write"']),
        ('error errnoo=EIO', ['"errnoo"', 'did you mean "errno"']),
        ('error errno=EWHAT', ['errno', '"EWHAT"']),
        ('error offset=2M..1M', ['offset', '"2M..1M"']),
        ('error every=0', ['every', '"0"']),
        ('error count=-1', ['count', '"-1"']),
        ('error probability=2', ['probability', '"2"']),
        ('error count=1 count=2', ['count', 'twice']),
        ('delay', ['the time is missing']),
        ('delay cached=yes', ['the time is missing']),
        ('delay soon', ['"soon"']),
        ('delay read=10m', ['read', '"10m"']),
        ('delay 1s cached=maybe', ['cached', '"maybe"']),
        ('tear 4K', ['"4K"']),
        ('tear piece=100', ['piece', '"100"']),
        ('readonly now', ['"now"']),
        ('readonly at=noon', ['"at"']),
        ('trace to=/x twice', ['"twice"']),
    ],
)
def test_complaints_quote_the_invalid_word(text, words):
    with pytest.raises(ValueError) as caught:
        filter_settings.parse_filters(text)
    for word in words:
        assert word in str(caught.value)


def test_an_unknown_option_is_refused_when_the_stack_is_built(medium):
    with pytest.raises(ValueError):
        filter_settings.stack_filters(medium, [['compress', {}]])
    with pytest.raises(TypeError):
        filter_settings.stack_filters(medium, [['error', {'nonsense': 1}]])


# -- passing on ------------------------------------------------------------------------------------


@pytest.mark.parametrize('text', ['readonly', 'delay extents=1ms', 'error extents', 'trace'])
def test_facts_pass_through(medium, text):
    top = on(medium, text)
    assert (top.kind, top.size, top.block_size, top.thin, top.descriptor) == (
        'ram',
        MIB,
        512,
        False,
        medium.descriptor,
    )
    assert (
        top.resize_check() == MIB
        and top.durable_is_free
        and top.inline_write_limit == medium.inline_write_limit
    )
    top.size = 2 * MIB
    assert medium.size == 2 * MIB


def test_unchanged_verbs_are_those_of_the_lower_store(medium):
    assert on(medium, 'readonly').try_read is medium.try_read
    assert on(medium, 'readonly').read == medium.read


def test_closing_the_top_closes_the_medium(medium):
    top = on(medium, 'trace, delay 1ms, error, readonly')
    top.close()
    assert medium.descriptor == -1


# -- error -----------------------------------------------------------------------------------------


def test_error_applies_to_overlapping_ranges(medium):
    top = on(medium, 'error write offset=64k..128k errno=ENOSPC')
    data = bytes(BLOCK)
    assert outcome(top.write, 65536 - BLOCK, data, False) == 'ok'
    assert outcome(top.write, 65536 - 512, data, False) == 'ENOSPC'
    assert outcome(top.write, 131072 - BLOCK, data, True) == 'ENOSPC'
    assert outcome(top.write, 131072, data, False) == 'ok'
    assert outcome(top.read, 65536, BLOCK) == 'ok' and top.try_read(65536, BLOCK) is not None
    assert bytes(top.read(65536, BLOCK)) == data


@pytest.mark.parametrize(
    'verb, arguments',
    [
        ('read', (0, BLOCK)),
        ('write', (0, bytes(BLOCK), False)),
        ('flush', (0, MIB)),
        ('unmap', (0, BLOCK)),
        ('write_zeroes', (0, BLOCK, True)),
        ('extents', (0, BLOCK)),
    ],
)
def test_error_applies_to_the_named_verbs(medium, verb, arguments):
    top = on(medium, 'error %s' % verb)
    assert outcome(getattr(top, verb), *arguments) == 'EIO'
    for other in ALL:
        assert on(medium, 'error %s' % other)._verbs == {other}
    medium.lost = None
    spared = on(medium, 'error %s' % ('read' if verb != 'read' else 'write'))
    assert outcome(getattr(spared, verb), *arguments) == 'ok'


def test_a_read_that_may_fail_is_not_done_inline(medium):
    top = on(medium, 'error read offset=0..4k count=1')
    assert top.try_read(0, 512) is None and top.try_read(BLOCK, 512) is not None
    assert outcome(top.read, 0, 512) == 'EIO'
    assert outcome(top.read, 0, 512) == 'ok'


def test_every_after_and_count(medium):
    top = on(medium, 'error read every=3 after=2 count=2')
    seen = [outcome(top.read, 0, 512) for _ in range(14)]
    assert [n for n, word in enumerate(seen, 1) if word == 'EIO'] == [5, 8]


def test_probability_is_the_same_in_every_run(medium):
    def run(text):
        top = on(medium, text)
        return [outcome(top.read, 0, 512) for _ in range(200)]

    first = run('error read probability=0.2 seed=7')
    assert (
        first
        == run('error read probability=0.2 seed=7')
        != run('error read probability=0.2 seed=8')
    )
    assert 15 < first.count('EIO') < 75
    assert run('error read probability=0').count('EIO') == 0


def test_a_failed_flush_makes_later_flushes_fail(medium):
    """A real disk behaves like this: the kernel reports lost data only once."""
    top = on(medium, 'error flush count=1')
    top.write(0, bytes(BLOCK), False)
    assert [outcome(top.flush, 0, MIB) for _ in range(3)] == ['EIO'] * 3
    assert outcome(top.write, 0, bytes(512), True) == 'EIO'
    assert top.lost == medium.lost == errno.EIO


def test_a_durable_write_counts_as_a_flush(medium):
    assert outcome(on(medium, 'error flush').write, 0, bytes(512), True) == 'EIO'
    medium.lost = None
    assert outcome(on(medium, 'error flush').write, 0, bytes(512), False) == 'ok'


def test_copies_fail_with_the_errors_of_source_and_destination(medium, opened):
    other = opened({'kind': 'ram', 'size': MIB}).store()
    assert outcome(medium.copy, on(other, 'error read'), 0, 0, BLOCK) == 'EIO'
    assert outcome(on(medium, 'error write').copy, other, 0, 0, BLOCK) == 'EIO'
    assert outcome(on(medium, 'error unmap').copy, other, 0, 0, BLOCK) == 'ok'
    other.close()


# -- delay -----------------------------------------------------------------------------------------


@pytest.fixture
def naps(monkeypatch):
    slept = []
    monkeypatch.setattr(filters.Delay.__init__, '__defaults__', (None, False, slept.append))
    return slept


def test_delay_waits_for_the_configured_time(medium, naps):
    top = on(medium, 'delay read=10ms write=20ms flush=1s')
    top.read(0, 512)
    top.write(0, bytes(512), False)
    assert naps == [0.01, 0.02]
    top.write(0, bytes(512), True)
    top.flush(0, MIB)
    top.unmap(0, 512)
    top.extents(0, 512)
    assert naps == [0.01, 0.02, 0.02, 1.0, 1.0]


def test_a_delayed_verb_is_not_done_inline(medium):
    reads, writes, flushes = (
        on(medium, 'delay read=1s'),
        on(medium, 'delay write=1s'),
        on(medium, 'delay flush=1s'),
    )
    assert reads.try_read(0, 512) is None and reads.inline_write_limit > 0 and reads.durable_is_free
    assert writes.try_read(0, 512) is not None and writes.inline_write_limit == 0
    assert not flushes.durable_is_free and flushes.inline_write_limit > 0


def test_delay_does_not_apply_to_other_ranges_or_cached_reads(medium, naps):
    top = on(medium, 'delay read=1s offset=64k..128k')
    assert top.try_read(0, 512) is not None and top.try_read(65536, 512) is None
    top.read(0, 512)
    assert naps == []
    cached = on(medium, 'delay read=1s cached=yes')
    assert cached.try_read(0, 512) is not None
    cached.read(0, 512)
    assert naps == [1.0]


def test_the_last_filter_is_passed_first(medium, naps):
    assert outcome(on(medium, 'delay read=1s, error read').read, 0, 512) == 'EIO' and naps == []
    assert outcome(on(medium, 'error read, delay read=1s').read, 0, 512) == 'EIO' and naps == [1.0]


# -- trace -----------------------------------------------------------------------------------------


def test_tear_writes_in_pieces_with_pauses_between_them(medium):
    seen, naps = [], []
    lower = on(medium, 'trace')
    lower._sink = lambda record: seen.append((record.offset, record.length, record.durable))
    top = filters.Tear(lower, piece=4096, pause=0.5, offset=[0, 65536], sleep=naps.append)
    assert top.inline_write_limit == 0
    top.write(512, b'x' * 10000, True)
    top.write(65536, b'y' * 10000, False)
    assert seen == [
        (512, 4096, True),
        (4608, 4096, True),
        (8704, 1808, True),
        (65536, 10000, False),
    ]
    assert naps == [0.5, 0.5] and bytes(medium.read(512, 10000)) == b'x' * 10000


def test_trace_records_every_verb(medium):
    seen = []
    top = filters.Trace(filters.Error(medium, ['unmap'], errno='ENOSPC'), sink=seen.append)
    top.write(0, bytes(BLOCK), True)
    top.try_read(0, 512)
    top.read(512, 512)
    top.flush(0, MIB)
    top.write_zeroes(0, 1024, False)
    top.extents(0, 2048)
    with pytest.raises(OSError):
        top.unmap(4096, 8192)
    assert [tuple(record[:5]) for record in seen] == [
        ('write', 0, BLOCK, True, ''),
        ('read', 0, 512, False, ''),
        ('read', 512, 512, False, ''),
        ('flush', 0, MIB, False, ''),
        ('write_zeroes', 0, 1024, False, ''),
        ('extents', 0, 2048, False, ''),
        ('unmap', 4096, 8192, False, 'ENOSPC'),
    ]
    assert all(record.seconds >= 0 for record in seen)


def test_a_read_that_would_block_is_recorded_once(medium):
    seen = []
    top = filters.Trace(on(medium, 'delay read=1us'), sink=seen.append)
    assert top.try_read(0, 512) is None and seen == []
    top.read(0, 512)
    assert len(seen) == 1


def test_trace_to_a_file(medium, tmp_path):
    path = tmp_path / 'trace'
    for _ in range(2):
        top = filter_settings.stack_filters(medium, [['trace', {'to': str(path)}]])
        top.write(512, bytes(1024), True)
        top._traced('flush', 0, 0, False, lambda: None)
    lines = path.read_text().splitlines()
    assert len(lines) == 4 and 'write offset=512 length=1024 durable ok' in lines[0]


def test_trace_that_cannot_write_its_file_goes_to_the_log(medium, tmp_path, capfd):
    top = filter_settings.stack_filters(
        medium, [['trace', {'to': str(tmp_path / 'no' / 'such' / 'place')}]]
    )
    top.write(0, bytes(512), False)
    top.write(0, bytes(1024), False)
    first, second = capfd.readouterr().err.splitlines()
    assert 'warning: ' in first and 'its records go to the log' in first
    assert 'length=1024' in second


def test_filters_apply_in_the_worker(opened):
    made = opened(
        {'kind': 'ram', 'size': MIB, 'filters': ['error write errno=ENOSPC', 'delay read=1us']}
    )
    with store.from_descriptor(
        json.loads(json.dumps(made.description())),
        None if made.descriptor is None else os.dup(made.descriptor),
    ) as top:
        assert outcome(top.write, 0, bytes(512), False) == 'ENOSPC'
        assert top.try_read(0, 512) is None
