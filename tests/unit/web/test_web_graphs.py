"""Graphs: scales, words, and paths that are interrupted where nothing was measured."""

import pytest

from targetd.web import graphs
from targetd.web.samples import Point

NOW = 10000.0


def point(seconds_ago, read=0, write=0, iops=0, p50=None, p99=None):
    return Point(NOW - seconds_ago, read, write, iops, p50, p99)


@pytest.mark.parametrize(
    'value, text',
    [(0, '0 B/s'), (999, '999 B/s'), (1500, '1.5 kB/s'), (25500000, '25.5 MB/s'), (3e9, '3 GB/s')],
)
def test_rates(value, text):
    assert graphs.rate(value) == text


@pytest.mark.parametrize('value, text', [(85, '85 µs'), (1300, '1.3 ms'), (12e6, '12 s')])
def test_durations(value, text):
    assert graphs.duration(value) == text


@pytest.mark.parametrize(
    'value, top', [(0, 1), (1, 1), (2, 2), (3, 5), (7, 10), (11, 20), (501, 1000)]
)
def test_the_scale_ends_at_a_round_number(value, top):
    assert graphs.ceiling(value) == top


def test_a_line_is_interrupted_where_nothing_was_measured():
    values = [(0, 1), (5, 2), (10, None), (15, 3), (100, 4), (105, 5)]
    path = graphs.path(values, 0, 10)
    assert path.count('M') == 3 and path.count('L') == 5
    assert graphs.area(path) == ''
    assert graphs.area(graphs.path(values[:2], 0, 10)).endswith('Z')
    assert graphs.path([(-5, 1)], 0, 10) == ''


def test_a_graph_says_in_words_what_it_shows():
    drawn = graphs.throughput([point(10, 1e6, 5e5), point(5, 2e6, 0)], NOW)
    assert drawn['label'] == (
        'Throughput, last hour: read now 2 MB/s, at most 2 MB/s; written now 0 B/s, at most 500 kB/s'
    )
    assert drawn['scale'][0] == (graphs.TOP, '2 MB/s') and not drawn['is_empty']
    old = graphs.throughput([point(300, 1e6)], NOW)
    assert old['lines'][0]['latest'] == '–' and old['lines'][0]['most'] == '1 MB/s'
    assert graphs.latency([], NOW)['is_empty']


def test_the_small_graph_of_a_table():
    assert graphs.spark([]) == graphs.spark([point(5), point(0)]) == ''
    path = graphs.spark([point(10, 1), point(5, 3), point(0, 2)])
    assert path.startswith('M') and path.count('L') == 2
