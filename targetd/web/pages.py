"""The pages: a WSGI application. Each request is checked (guard), asks the server (source) and fills in a
template (views); all pages but the forms are read-only.
"""

import socket
import time

import bottle

from targetd.admin import windows
from targetd.errors import TargetdError
from targetd.web import change_pages, graphs, serving, views, visitors
from targetd.web.samples import ALL
from targetd.web.source import is_not_running

load_files = views.load_files


class Pages(object):
    """source: Source; sampler: Sampler; logins: visitors.Logins; hosts: names by which browsers may call the
    page."""

    def __init__(self, source, sampler, logins, hosts):
        self.source = source
        self.sampler = sampler
        self.logins = logins
        self.hosts = hosts
        self.host = socket.gethostname()

    # -- each request ------------------------------------------------------------------------------

    def check(self):
        """Refuse a request that is not one of a browser that shows this page."""
        request = bottle.request
        for name, value in visitors.HEADERS:
            bottle.response.set_header(name, value)
        bottle.response.set_header('Cache-Control', 'no-store')
        host = request.headers.get('Host', '')
        if visitors.host_of(host) not in self.hosts:
            raise views.refusal(
                421,
                'This page is not known by that name. Start targetdctl web with --host-name to allow it.',
            )
        if request.method not in ('GET', 'HEAD', 'POST'):
            raise views.refusal(405, 'Only GET, HEAD and POST are possible.')
        if request.method == 'POST':
            if not 0 <= request.content_length <= serving.LARGEST_BODY or request.chunked:
                raise views.refusal(413, 'The form is too large.')
            if not visitors.is_same_origin(request.headers.get('Origin'), host):
                raise views.refusal(403, 'The form came from a page of another site.')

    @property
    def cookie(self):
        """The cookie of a login, or None if it is not valid."""
        found = bottle.request.get_cookie(visitors.COOKIE)
        return found if self.logins.is_logged_in(found) else None

    def show(self, title, template, section, is_live=True, **values):
        """A page."""
        cookie = self.cookie
        context = dict(
            host=self.host,
            section=section,
            allows_changes=self.logins.allows_changes,
            logged_in=cookie is not None,
            may_change=cookie is not None,
            form_token=self.logins.form_token(cookie) if cookie else '',
            said=self.logins.take_said(cookie),
            now=views.clock_text(),
            is_live=is_live,
        )
        return views.page(title, template, context, **values)

    def failed(self, error, section=''):
        """The page that says why the server cannot be asked."""
        bottle.response.status = 503 if is_not_running(error) else 502
        title = 'targetd is not running' if is_not_running(error) else 'That did not succeed'
        return self.show(title, 'section', section, intro=str(error), parts=(), actions=())

    def actions(self, *links):
        """The links of a toolbar: (words, name of a command, arguments); none without a login."""
        return (
            [(words, views.change_link(name, arguments)) for words, name, arguments in links]
            if (self.cookie)
            else []
        )

    def row_actions(self, *actions):
        return actions if self.cookie else ()

    # -- the pages ---------------------------------------------------------------------------------

    def overview(self):
        snapshot = views.snapshot(self.source)
        sessions = self._sessions()
        points, now = self.sampler.points(*ALL), time.time()
        status = dict(snapshot.status)
        tiles = (
            ('Sessions', status.pop('sessions', 0), '/sessions'),
            ('Targets', status.pop('targets', 0), '/targets'),
            ('LUNs', status.pop('units', 0), '/luns'),
            ('Read', graphs.rate(self.sampler.latest(*ALL).read), '/sessions'),
            ('Written', graphs.rate(self.sampler.latest(*ALL).write), '/sessions'),
        )
        busy = sorted(sessions, key=lambda row: -row['rate'])[:5]
        return self.show(
            'Overview',
            'overview',
            '/',
            problems=views.monitoring.problems(snapshot),
            tiles=tiles,
            throughput=graphs.throughput(points, now),
            commands=graphs.commands(points, now),
            sessions=views.table(
                'Busiest sessions',
                busy,
                'show-sessions',
                ('since', 'address', 'account', 'connections', 'pid'),
                views.RATES,
            ),
            refusals=self.source.rows('why')[:4],
            facts=sorted(status.items()),
            portals=views.table(
                'Portals',
                snapshot.portals,
                'show-portals',
                ('interface',),
                (),
                self.row_actions(('Remove', 'portal-remove', _of_portal)),
            ),
        )

    def _sessions(self):
        rows = views.with_rates(
            self.source.rows('show-sessions'), 'session', _session_name, self.sampler
        )
        for row in rows:
            point = self.sampler.latest('session', _session_name(row))
            row['rate'] = point.read + point.write
        return rows

    def targets(self):
        actions = self.actions(('Add a target', 'target-add', {}), ('Add a LUN', 'lun-add', {}))
        table = views.table('Targets', self.source.rows('show-targets'), 'show-targets')
        return self.show(
            'Targets', 'section', '/targets', actions=actions, intro='', parts=[('', table)]
        )

    def target(self, name):
        row = _found(
            [r for r in self.source.rows('show-targets') if r['target_name'] == name], name
        )
        units = [r for r in self.source.rows('show-units') if r['target_name'] == name]
        sessions = [r for r in self._sessions() if r['target_name'] == name]
        points, now = self.sampler.points('target', name), time.time()
        is_offline = 'offline' in row['state']
        target = {'target': name}
        actions = self.actions(
            ('Add a LUN', 'lun-add', target),
            ('Admit an initiator', 'acl-add', target),
            ('Admit no longer', 'acl-remove', target),
            ('Show LUNs to an initiator', 'map-set', target),
            ('Remove a map of LUNs', 'map-remove', target),
            ('Add an account', 'account-add', target),
            ('Rotate a secret', 'account-rotate', target),
            ('Remove an account', 'account-remove', target),
            ('Online', 'target-online', target)
            if is_offline
            else ('Offline', 'target-offline', target),
            ('Drain', 'drain', target),
            ('Rename', 'target-rename', target),
            ('Remove', 'target-remove', target),
        )
        drawn = views.render(
            'graphs', each=(graphs.throughput(points, now), graphs.latency(points, now))
        )
        return self.show(
            name,
            'section',
            '/targets',
            actions=actions,
            intro='State: ' + row['state'],
            parts=[
                ('LUNs', views.table('LUNs', units, 'show-units', ('target_name', 'unit'))),
                ('Load', drawn),
                (
                    'Sessions',
                    views.table(
                        'Sessions', sessions, 'show-sessions', ('target_name', 'pid'), views.RATES
                    ),
                ),
                (
                    'ALUA',
                    views.table(
                        'ALUA states',
                        [r for r in self.source.rows('show-alua') if r['target_name'] == name],
                        'show-alua',
                        ('target_name',),
                    ),
                ),
            ],
        )

    def luns(self):
        rows = views.with_rates(self.source.rows('show-units'), 'lun', _unit_name, self.sampler)
        table = views.table(
            'LUNs',
            rows,
            'show-units',
            ('unit', 'reserved_by', 'encrypted', 'read_only'),
            views.RATES,
        )
        errors = views.table('Errors of the media', self.source.rows('show-errors'), 'show-errors')
        return self.show(
            'LUNs',
            'section',
            '/luns',
            actions=self.actions(('Add a LUN', 'lun-add', {})),
            intro='',
            parts=[('', table), ('Errors of the media', errors)],
        )

    def lun(self, target, lun):
        name = '%s/%d' % (target, lun)
        rows = [
            r
            for r in self.source.rows('show-units')
            if (r['target_name'], r['lun']) == (target, lun)
        ]
        row = _found(rows, name)
        points, now = self.sampler.points('lun', name), time.time()
        unit = {'unit': name}
        return self.show(
            name,
            'unit',
            '/luns',
            row=row,
            severity=views.severity_of(row['state']),
            actions=self.actions(
                ('Resize', 'lun-resize', unit),
                ('Read-only', 'lun-readonly', unit),
                ('Offline', 'lun-offline', unit),
                ('Online', 'lun-online', unit),
                ('Move', 'lun-move', unit),
                ('Acknowledge errors', 'acknowledge', unit),
                ('Accept another disk', 'accept', unit),
                ('Clear reservations', 'reservation-clear', unit),
                ('Remove', 'lun-remove', unit),
            ),
            throughput=graphs.throughput(points, now),
            latency=graphs.latency(points, now),
            facts=[(r['what'], r['value']) for r in self.source.rows('identify', unit=name)],
            errors=views.table(
                'Errors', self.source.rows('show-errors', unit=name), 'show-errors', ('unit',)
            ),
            reservations=views.table(
                'Reservations',
                self.source.rows('reservation-show', unit=name),
                'reservation-show',
                ('target_name', 'lun'),
            ),
        )

    def sessions(self):
        table = views.table(
            'Sessions',
            self._sessions(),
            'show-sessions',
            ('pid', 'connections'),
            views.RATES,
            self.row_actions(('Kick', 'kick', lambda row: {'who': row['tsih']})),
        )
        workers = views.table('Worker processes', self.source.rows('show-workers'), 'show-workers')
        return self.show(
            'Sessions',
            'section',
            '/sessions',
            actions=(),
            intro='',
            parts=[('', table), ('Worker processes', workers)],
        )

    def session(self, tsih):
        rows = [r for r in self.source.rows('show-sessions') if r['tsih'] == tsih]
        row = _found(rows, 'session %d; it may have ended' % tsih)
        points, now = self.sampler.points('session', _session_name(row)), time.time()

        def of_session(command):
            return [r for r in self.source.rows(command) if r.get('tsih') == tsih]

        leave = ('tsih', 'initiator_name')
        return self.show(
            'Session %d' % tsih,
            'session',
            '/sessions',
            row=row,
            target_part=views.quoted(row['target_name']),
            actions=self.actions(
                ('Ask to log out', 'logout', {'session': tsih}),
                ('Kick', 'kick', {'who': tsih}),
                ('End now', 'end', {'session': tsih}),
            ),
            throughput=graphs.throughput(points, now),
            latency=graphs.latency(points, now),
            counters=views.table('Counters', of_session('show-counters'), 'show-counters', leave),
            connections=views.table(
                'Connections',
                of_session('show-connections'),
                'show-connections',
                leave + ('target_name',),
            ),
            settings=views.table(
                'Settings', self.source.rows('show-settings', session=tsih), 'show-settings'
            ),
        )

    def disks(self):
        table = views.table('Disks of this host', self.source.rows('disks'), 'disks')
        return self.show(
            'Disks',
            'section',
            '/disks',
            actions=self.actions(('Add a LUN', 'lun-add', {})),
            intro='The disks of this host: how each is written as backing-store, and what '
            'uses it. A disk that is in use is not served.',
            parts=[('', table)],
        )

    def refusals(self):
        return self.show(
            'Refusals', 'refusals', '/refusals', rows=windows.explained(self.source.rows('why'))
        )

    def configuration(self):
        return self.show(
            'Configuration',
            'configuration',
            '/configuration',
            is_live=False,
            actions=self.actions(
                ('Reload the file', 'reload', {}),
                ('Add a portal', 'portal-add', {}),
                ('Log level', 'log-level', {}),
            ),
            history=self.source.rows('history'),
            text=self.source.ask('show-config').get('text', ''),
        )

    def difference(self, number):
        steps = [row['step'] for row in self.source.rows('diff', number=number)]
        return self.show(
            'Changes since #%d' % number,
            'difference',
            '/configuration',
            is_live=False,
            number=number,
            steps=steps,
        )


def _of_portal(row):
    shown = '[%s]' % row['address'] if ':' in row['address'] else row['address']
    return {'group': row['group'], 'portal': '%s:%d' % (shown, row['port'])}


def _session_name(row):
    return '%d %s' % (row['tsih'], row['initiator_name'])


def _unit_name(row):
    return '%s/%d' % (row['target_name'], row['lun'])


def _found(rows, name):
    """The only row. Raises an error 404."""
    if not rows:
        raise views.refusal(404, 'There is no %s.' % name)
    return rows[0]


def static_file(name):
    """A file that browsers load."""
    if name not in views.STATIC:
        raise views.refusal(404, 'There is no such file.')
    bottle.response.content_type = views.STATIC[name]
    bottle.response.set_header('Cache-Control', 'no-cache')
    return views.static(name)


def application(source, sampler, logins, hosts):
    """The WSGI application."""
    load_files()
    pages = Pages(source, sampler, logins, hosts)
    app = bottle.Bottle()
    app.add_hook('before_request', pages.check)

    def get(path, method):
        def answer(**arguments):
            try:
                return method(**arguments)
            except TargetdError as e:
                return pages.failed(e)

        app.route(path, 'GET', answer)

    for path, method in (
        ('/', pages.overview),
        ('/targets', pages.targets),
        ('/target/<name>', pages.target),
        ('/luns', pages.luns),
        ('/lun/<target>/<lun:int>', pages.lun),
        ('/sessions', pages.sessions),
        ('/session/<tsih:int>', pages.session),
        ('/disks', pages.disks),
        ('/refusals', pages.refusals),
        ('/configuration', pages.configuration),
        ('/configuration/<number:int>', pages.difference),
        ('/static/<name>', static_file),
    ):
        get(path, method)
    change_pages.add_to(app, pages)
    app.default_error_handler = _plain_error
    return app


def _plain_error(error):
    """The text of an error that is not one of ours: never a traceback."""
    bottle.response.content_type = 'text/plain; charset=utf-8'
    words = {404: 'There is no such page.', 405: 'That is not possible here.'}
    return words.get(error.status_code, 'The page failed; its process has written why.') + '\n'
