"""What the templates of the page need beside the replies of the server: tables from the rows of the table of
commands, words and severities. Pure but for the templates.
"""

import pkgutil
import time
from collections import namedtuple

import bottle

from targetd import __version__
from targetd.admin import cli, monitoring
from targetd.admin.command_rows import Column
from targetd.admin.commands import BY_NAME
from targetd.web import graphs, visitors

STATIC = {
    'page.css': 'text/css; charset=utf-8',
    'page.js': 'application/javascript; charset=utf-8',
    'icon.svg': 'image/svg+xml',
}
TEMPLATES = (
    'layout',
    'table',
    'graph',
    'overview',
    'section',
    'unit',
    'session',
    'refusals',
    'configuration',
    'difference',
    'login',
    'change',
    'graphs',
)

#: path, words of the navigation.
SECTIONS = (
    ('/', 'Overview'),
    ('/targets', 'Targets'),
    ('/luns', 'LUNs'),
    ('/sessions', 'Sessions'),
    ('/disks', 'Disks'),
    ('/refusals', 'Refusals'),
    ('/configuration', 'Configuration'),
)
SEVERITIES = ('ok', 'warning', 'critical', 'unknown')

#: Words that stay in capitals.
_UPPER = ('LUN', 'LBA', 'TCP', 'CID', 'ALUA')
_files = {}

#: A cell. html: True if the text is markup of a template.
Cell = namedtuple('Cell', 'text href severity spark label form')


def load_files():
    """Read the templates and the files that browsers load; afterwards no file is opened."""
    for name in TEMPLATES:
        if name not in _files:
            text = pkgutil.get_data('targetd.web', 'templates/%s.tpl' % name).decode('utf-8')
            template = bottle.SimpleTemplate(source=text)
            assert template.co is not None  # it is compiled now
            _files[name] = template
    for name in STATIC:
        _files[name] = pkgutil.get_data('targetd.web', 'static/' + name)


def static(name):
    """The content of a file that browsers load, as bytes."""
    return _files[name]


def render(name, **values):
    """The markup of a template; what it inserts is escaped."""
    return _files[name].render(graph=graph, table=table, human_bytes=cli.human_bytes, **values)


def page(title, template, context, **values):
    """A whole page. context: what is the same for all, a dict."""
    body = render(template, title=title, **dict(context, **values))
    return render(
        'layout', title=title, body=body, sections=SECTIONS, version=__version__, **context
    )


def words_of(heading):
    """A heading of targetdctl as one of the page: 'BACKING-STORE' is 'Backing store'."""
    words = [w if w in _UPPER else w.lower() for w in heading.replace('-', ' ').split(' ')]
    words[0] = words[0][0].upper() + words[0][1:]
    return ' '.join(words)


def severity_of(value):
    """The severity of a state of a unit, target or portal: a word of SEVERITIES."""
    if value.startswith('not ready'):
        return 'critical'
    if value in ('open', 'running', 'active'):
        return 'ok'
    return SEVERITIES[monitoring.unit_severity(value)]


def _cell(column, row):
    value = row.get(column.key)
    text = cli.cell_text(value, column.form)
    links = {'target_name': '/target/', 'tsih': '/session/', 'unit': '/lun/'}
    href, severity = '', ''
    if column.key in links and value is not None and value != '':
        href = links[column.key] + quoted(value)
    elif column.key == 'lun' and row.get('target_name'):
        href = '/lun/%s/%s' % (quoted(row['target_name']), value)
    elif column.key == 'state' and isinstance(value, str) and value:
        severity = severity_of(value)
    elif column.key == 'errors' and value:
        severity = 'warning'
    return Cell(
        text,
        href,
        severity,
        row.get('spark') if column.key == 'spark' else None,
        words_of(column.heading),
        column.form,
    )


def quoted(value):
    """The value as a part of a path."""
    return bottle.urlquote(str(value), safe=':')


def table(caption, rows, command, leave=(), further=(), actions=()):
    """The markup of a table. command: name of the command whose columns it has; leave: keys of columns that
    are not shown; further: (key, heading, form) of more columns; actions: (words, name of a command of the
    gate, function of a row: the arguments of its form)."""
    row_of_command = BY_NAME[command]
    columns = [c for c in row_of_command.columns if c.key not in leave]
    columns += [Column(key, heading, form, False) for key, heading, form in further]
    lines = []
    for row in rows:
        links = [(words, change_link(name, arguments(row))) for words, name, arguments in actions]
        lines.append(([_cell(column, row) for column in columns], links))
    return render(
        'table',
        caption=caption,
        headings=[words_of(c.heading) for c in columns],
        lines=lines,
        empty=row_of_command.empty,
        has_actions=bool(actions),
        forms=[c.form for c in columns],
    )


def change_link(name, arguments):
    """The address of the form of a command, which is filled in."""
    pairs = [
        '%s=%s' % (key, bottle.urlquote(str(v), safe=':/')) for key, v in sorted(arguments.items())
    ]
    return '/change/%s%s' % (name, '?' + '&'.join(pairs) if pairs else '')


def graph(of):
    """The markup of a graph. of: see graphs.graph."""
    return render(
        'graph',
        of=of,
        box='0 0 %d %d' % (graphs.WIDTH, graphs.HEIGHT),
        left=graphs.LEFT,
        right=graphs.WIDTH - graphs.RIGHT,
        floor=graphs.HEIGHT,
    )


def snapshot(source):
    """A monitoring.Snapshot of the server. Raises TargetdError."""
    return monitoring.take_snapshot(source.rows)


def with_rates(rows, kind, name_of, sampler):
    """The rows with what was measured: keys rates_read, rates_written, rates_commands, spark."""
    found = []
    for row in rows:
        name = name_of(row)
        point = sampler.latest(kind, name)
        found.append(
            dict(
                row,
                rates_read=graphs.rate(point.read),
                rates_written=graphs.rate(point.write),
                rates_commands=graphs.count(point.iops),
                rates_latency=graphs.duration(point.p99) if point.p99 is not None else '',
                spark=graphs.spark(sampler.points(kind, name)),
            )
        )
    return found


RATES = (
    ('rates_read', 'READ', 'number'),
    ('rates_written', 'WRITTEN', 'number'),
    ('rates_latency', '99-%-WITHIN', 'number'),
    ('spark', 'LAST-10-MINUTES', 'spark'),
)


def refusal(status, text):
    """A response to raise: a sentence instead of a page."""
    response = bottle.HTTPResponse(text + '\n', status, dict(visitors.HEADERS))
    response.content_type = 'text/plain; charset=utf-8'
    return response


def clock_text():
    return time.strftime('%Y-%m-%d %H:%M:%S')
