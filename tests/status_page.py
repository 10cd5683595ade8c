"""A process of `targetdctl web`, and what a browser asks it."""

import os
import re
import signal
import subprocess
import urllib.error
import urllib.parse
import urllib.request

import psutil
from daemon import eventually, free_port, is_listening


class Page(object):
    """A process of `targetdctl web`, and a browser without scripts: cookies, forms, no redirects."""

    def __init__(self, daemon, *arguments):
        self.port = free_port()
        self.address = 'http://127.0.0.1:%d' % self.port
        self.process = subprocess.Popen(
            [
                daemon.python,
                '-m',
                'targetd.admin.cli',
                '-s',
                os.path.join(daemon.directory, 'targetd.sock'),
                'web',
                '--listen',
                '127.0.0.1:%d' % self.port,
            ]
            + list(arguments),
            cwd=daemon.directory,
            env=dict(daemon.environment(), PYTHONUNBUFFERED='1'),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.cookie = None
        self.children = []
        eventually(lambda: is_listening(('127.0.0.1', self.port)), 30, 'the page')

    def close(self):
        """End the process; its output."""
        self.children = psutil.Process(self.process.pid).children()
        self.process.send_signal(signal.SIGINT)
        output = self.process.communicate(timeout=30)[0].decode('utf-8', 'replace')
        psutil.wait_procs(self.children, 30)
        assert not [child for child in self.children if child.is_running()]
        return output

    def token(self):
        for _ in range(5):
            line = self.process.stdout.readline().decode()
            if 'token' in line:
                return line.split(', is ')[1].strip()
        raise AssertionError('no token was printed')

    def ask(self, path, values=None, **headers):
        """(status, text, headers)."""
        data = None if values is None else urllib.parse.urlencode(values).encode()
        request = urllib.request.Request(self.address + path, data, headers)
        if self.cookie:
            request.add_header('Cookie', self.cookie)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect())
        try:
            answer = opener.open(request, timeout=60)
        except urllib.error.HTTPError as e:
            answer = e
        return answer.getcode(), answer.read().decode('utf-8'), answer.headers

    def good(self, path):
        status, text, _ = self.ask(path)
        assert status == 200, text
        return text

    def log_in(self, token):
        status, text, headers = self.ask('/login', {'token': token, 'next': '/luns'})
        if status in (302, 303):
            self.cookie = headers['Set-Cookie'].split(';')[0]
        return status, headers

    def change(self, name, **values):
        """Send the form of a command."""
        form = self.good('/change/' + name)
        token = re.search('name="form-token" value="([0-9a-f]+)"', form).group(1)
        return self.ask('/change/' + name, dict(values, **{'form-token': token}))


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_):
        return None
