"""What was measured, as text for a terminal, as Markdown for the README, and as an SVG plot. Pure:
from the dict that is also written as JSON."""

from xml.sax.saxutils import escape

#: The marks around the tables in the README.
BEGIN, END = '<!-- tests.bench -->', '<!-- end of tests.bench -->'
BAR, GAP, LEFT, WIDTH, RIGHT, TOP = 14, 8, 230, 460, 70, 46
INK, PALE, GOOD, SHORT, LINE = '#444c56', '#8b949e', '#2f81a7', '#c0703a', '#8b949e'


def number(value):
    """A rate with as many digits as mean something: '163,000', '87.1'."""
    if value >= 1000:
        digits = len(str(int(value))) - 3
        return '{:,}'.format(int(round(value, -digits)))
    return '%.3g' % value


def _middle(values):
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2.0


def _verdict(row):
    return 'reached' if row['reached'] else 'MISSED'


def workload_line(row):
    """One line of the terminal's table."""
    if 'missing' in row:
        return '%-34s not measured: %s' % (row['title'], row['missing'])
    return '%-34s %10s %10s  %5.2f (%.2f-%.2f)  %4.1f  %s%s' % (
        row['title'],
        number(_middle(row['rates']['targetd'])),
        number(_middle(row['rates']['tgtd'])),
        row['median'],
        row['lowest'],
        row['highest'],
        row['goal'],
        _verdict(row),
        '  cpu %.2f' % row['cpu_ratio'] if row['cpu_ratio'] else '',
    )


HEADING = '%-34s %10s %10s  %-17s  %4s' % (
    'operations per second, medians',
    'targetd',
    'tgtd',
    'ratio (min-max)',
    'goal',
)


def limit_line(row):
    """One line of the terminal's second table."""
    if 'missing' in row:
        return '%-60s not measured: %s' % (row['title'], row['missing'])
    return '%-60s %8s %-4s %s %-5g %s' % (
        row['title'],
        number(row['figure']),
        row['unit'],
        '<=' if row['at_most'] else '>=',
        row['limit'],
        _verdict(row),
    )


def machine_line(machine):
    """One sentence."""
    return (
        '{processor}, {cores} cores, {memory}, Linux {kernel}, {python}, '
        'tgt {tgt}, libiscsi {libiscsi}, qemu {qemu}'
    ).format(**machine)


def markdown(found):
    """The README's tables."""
    out = [
        '| workload | targetd /s | tgtd /s | ratio | min–max | to reach | µs of processor |',
        '|---|---|---|---|---|---|---|',
    ]
    for row in found['workloads']:
        if 'missing' not in row:
            ratio = '**%.2f**' % row['median'] if row['reached'] else '%.2f' % row['median']
            out.append(
                '| %s | %s | %s | %s | %.2f–%.2f | %g | %s, %s |'
                % (
                    row['title'],
                    number(_middle(row['rates']['targetd'])),
                    number(_middle(row['rates']['tgtd'])),
                    ratio,
                    row['lowest'],
                    row['highest'],
                    row['goal'],
                    number(1e6 * _middle(row['cpu_seconds_per_operation']['targetd'])),
                    number(1e6 * _middle(row['cpu_seconds_per_operation']['tgtd'])),
                )
            )
    if found['limits']:
        out += ['', '| limit | figure | to reach |', '|---|---|---|']
    for row in found['limits']:
        if 'missing' not in row:
            out.append(
                '| %s | %s %s | %s %g |'
                % (
                    row['title'],
                    number(row['figure']),
                    row['unit'],
                    '≤' if row['at_most'] else '≥',
                    row['limit'],
                )
            )
    out += [
        '',
        'Medians of %d rounds of %g s each, taken in turns on one machine: %s.'
        % (found['rounds'], found['seconds'], machine_line(found['machine'])),
    ]
    return '\n'.join(out) + '\n'


def with_tables(text, found):
    """The text of the README with the tables of this run between its two marks."""
    before, rest = text.split(BEGIN, 1)
    return before + BEGIN + '\n\n' + markdown(found) + '\n' + END + rest.split(END, 1)[1]


# -- the plot --------------------------------------------------------------------------------------


def _text(x, y, words, colour=INK, anchor='start', size=12):
    return '<text x="%.1f" y="%.1f" fill="%s" text-anchor="%s" font-size="%d">%s</text>' % (
        x,
        y,
        colour,
        anchor,
        size,
        escape(words),
    )


def _line(x1, y1, x2, y2, colour, width=1.0, dash=''):
    return '<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="%s" stroke-width="%g"%s/>' % (
        x1,
        y1,
        x2,
        y2,
        colour,
        width,
        ' stroke-dasharray="%s"' % dash if dash else '',
    )


def _bar(row, y, scale):
    """One workload: its bar, a whisker from the lowest to the highest ratio, a tick at the ratio to
    reach."""
    middle = y + BAR / 2.0
    return [
        _text(LEFT - 10, middle + 4, row['title'], anchor='end'),
        '<rect x="%d" y="%d" width="%.1f" height="%d" rx="2" fill="%s"/>'
        % (LEFT, y, row['median'] * scale, BAR, GOOD if row['reached'] else SHORT),
        _line(
            LEFT + row['lowest'] * scale, middle, LEFT + row['highest'] * scale, middle, INK, 1.5
        ),
        _line(LEFT + row['goal'] * scale, y - 2, LEFT + row['goal'] * scale, y + BAR + 2, INK, 2),
        _text(LEFT + WIDTH + 50, middle + 4, '%.2f' % row['median'], anchor='end'),
    ]


def svg(found):
    """Bars of the ratio per workload; 1 is tgtd. Readable on light and dark pages."""
    rows = [row for row in found['workloads'] if 'missing' not in row]
    most = max([max(row['highest'], row['goal']) for row in rows] + [1.0])
    scale = WIDTH / most
    bottom = TOP + len(rows) * (BAR + GAP)
    out = [
        '<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" '
        'viewBox="0 0 %d %d" font-family="sans-serif">'
        % (LEFT + WIDTH + RIGHT, bottom + 44, LEFT + WIDTH + RIGHT, bottom + 44)
    ]
    out.append('<rect width="100%" height="100%" fill="#ffffff" rx="6"/>')
    out.append(_text(LEFT, 20, 'targetd, operations per second; tgtd = 1', size=14))
    step = 1.0 if most > 3 else 0.5
    for mark in range(int(most / step) + 1):
        x = LEFT + mark * step * scale
        out.append(
            _line(
                x,
                TOP - 8,
                x,
                bottom,
                LINE,
                1.5 if mark * step == 1 else 0.5,
                '' if mark * step == 1 else '2,3',
            )
        )
        out.append(_text(x, TOP - 12, '%g' % (mark * step), PALE, 'middle', 10))
    for index, row in enumerate(rows):
        out += _bar(row, TOP + index * (BAR + GAP), scale)
    out.append(
        _text(
            LEFT,
            bottom + 16,
            'thin line: lowest to highest round; upright tick: the figure to reach',
            PALE,
            size=10,
        )
    )
    machine = found['machine']
    out.append(
        _text(
            LEFT,
            bottom + 30,
            '%s, %s cores, Linux %s, %s, tgt %s'
            % (
                machine['processor'],
                machine['cores'],
                machine['kernel'],
                machine['python'],
                machine['tgt'],
            ),
            PALE,
            size=10,
        )
    )
    out.append('</svg>')
    return '\n'.join(out) + '\n'
