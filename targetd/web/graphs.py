"""Graphs as SVG: what a browser draws without a script. Pure.

A graph has one or two lines over the last hour. Its sizes are those of its viewBox; the style sheet gives the
colours, so that light and dark are both possible.
"""

from collections import namedtuple

WIDTH, HEIGHT = 560, 150
LEFT, RIGHT, TOP, BOTTOM = 56, 8, 10, 22
SECONDS = 3600
GAP = 20.0  # seconds without a point: the line is interrupted

#: A line of a graph. name: for the legend; style: class of the style sheet; values: [(when, number or None)].
Line = namedtuple('Line', 'name style values')


def rate(value):
    """'12.4 MB/s'."""
    for unit, size in (('GB/s', 1e9), ('MB/s', 1e6), ('kB/s', 1e3)):
        if value >= size:
            return '%s %s' % (short(value / size), unit)
    return '%d B/s' % value


def duration(microseconds):
    """'85 µs', '1.3 ms', '12 s'."""
    for unit, size in (('s', 1e6), ('ms', 1e3)):
        if microseconds >= size:
            return '%s %s' % (short(microseconds / size), unit)
    return '%d µs' % microseconds


def count(value):
    """'85', '1.3 k'."""
    for unit, size in (('M', 1e6), ('k', 1e3)):
        if value >= size:
            return '%s %s' % (short(value / size), unit)
    return short(value)


def short(value):
    return '%d' % value if value >= 100 or value == int(value) else '%.1f' % value


def ceiling(value):
    """The upper end of a scale: 1, 2 or 5 times a power of ten, at least the value and 1."""
    size = 1
    while size < value:
        for factor in (2, 5, 10):
            if size * factor >= value:
                return size * factor
        size *= 10
    return size


def path(values, begin, top):
    """The `d` of an SVG path through the values; it is interrupted where there are none."""
    words, last = [], None
    for when, value in values:
        if when < begin or value is None:
            last = last if value is not None else None
            continue
        x = LEFT + (when - begin) * (WIDTH - LEFT - RIGHT) / float(SECONDS)
        y = HEIGHT - BOTTOM - value * (HEIGHT - TOP - BOTTOM) / float(top)
        is_connected = last is not None and when - last <= GAP
        if not is_connected:
            words.append('M%.1f %.1fh.1' % (x, y))  # a point that stands alone is visible, too
        words.append('%s%.1f %.1f' % ('L', x, y))
        last = when
    return ' '.join(words)


def area(line_path):
    """The path of the area below a line that is not interrupted; '' for others."""
    if line_path.count('M') != 1:
        return ''
    begin = line_path[1:].split(' ')[0]
    end = line_path.rsplit('L', 1)[1].split(' ')[0]
    floor = HEIGHT - BOTTOM
    return '%s L%s %d L%s %d Z' % (line_path, end, floor, begin, floor)


def graph(title, lines, shown, now):
    """What the template of a graph needs. lines: Lines; shown: function of a number that returns text; now:
    seconds since the epoch."""
    begin = now - SECONDS
    numbers = [v for line in lines for when, v in line.values if v is not None and when >= begin]
    top = ceiling(max(numbers + [0]))
    middle = HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) / 2.0
    drawn = []
    for line in lines:
        known = [(w, v) for w, v in line.values if v is not None and w >= begin]
        d = path(line.values, begin, top)
        drawn.append(
            {
                'name': line.name,
                'style': line.style,
                'path': d,
                'area': area(d),
                'latest': shown(known[-1][1]) if known and now - known[-1][0] <= GAP else '–',
                'most': shown(max(v for _, v in known)) if known else '–',
            }
        )
    return {
        'title': title,
        'lines': drawn,
        'scale': [(TOP, shown(top)), (middle, shown(top / 2.0)), (HEIGHT - BOTTOM, '0')],
        'label': '%s, last hour: %s'
        % (
            title,
            '; '.join(
                '%s now %s, at most %s' % (each['name'], each['latest'], each['most'])
                for each in drawn
            ),
        ),
        'is_empty': not numbers,
    }


def throughput(points, now):
    """The graph of bytes per second."""
    return graph(
        'Throughput',
        (
            Line('read', 'read', [(p.when, p.read) for p in points]),
            Line('written', 'write', [(p.when, p.write) for p in points]),
        ),
        rate,
        now,
    )


def commands(points, now):
    """The graph of commands per second."""
    return graph(
        'Commands per second',
        (Line('all', 'read', [(p.when, p.iops) for p in points]),),
        count,
        now,
    )


def latency(points, now):
    """The graph of latencies."""
    return graph(
        'Latency',
        (
            Line('half within', 'read', [(p.when, p.p50) for p in points]),
            Line('99 % within', 'write', [(p.when, p.p99) for p in points]),
        ),
        duration,
        now,
    )


SPARK_WIDTH, SPARK_HEIGHT = 120, 28


def spark(points):
    """The path of a small graph in a table: bytes per second of the last ten minutes; '' if there is
    nothing to show. points: of samples, the oldest first."""
    values = [point.read + point.write for point in points[-120:]]
    top = max(values + [0])
    if len(values) < 2 or not top:
        return ''
    step = (SPARK_WIDTH - 2) / 119.0
    first = SPARK_WIDTH - 1 - step * (len(values) - 1)
    pairs = (
        '%.1f %.1f' % (first + step * i, SPARK_HEIGHT - 2 - value * (SPARK_HEIGHT - 4.0) / top)
        for i, value in enumerate(values)
    )
    return 'M' + ' L'.join(pairs)
