"""A headless Chromium for tests, driven over the WebDriver protocol (W3C) with urllib: no package is needed.

Every wait is bounded; the processes are ended in every case.
"""

import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import urllib.error
import urllib.request

from daemon import eventually, free_port, is_listening

START_SECONDS = 60
ELEMENT = 'element-6066-11e4-a52e-4f735466cecf'  # W3C WebDriver 12.1
TAB, ENTER, SPACE = '\ue004', '\ue007', ' '
#: Loopback only: no request of Chromium's own leaves the host.
OPTIONS = (
    '--headless=new', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--hide-scrollbars',
    '--disable-background-networking', '--disable-component-update', '--disable-sync', '--no-first-run',
    '--disable-default-apps', '--disable-extensions', '--force-device-scale-factor=1',
    '--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1',
)  # fmt: skip


def programs():
    """(chromium, chromedriver); None for one that is missing."""
    return shutil.which('chromium') or shutil.which('chromium-browser'), shutil.which(
        'chromedriver'
    )


class Browser(object):
    """One window. url: of chromedriver; session: of WebDriver."""

    def __init__(self, url, session):
        self._url = '%s/session/%s' % (url, session)

    def _call(self, method, path, **values):
        return call(method, self._url + path, values if method == 'POST' else None)

    def open(self, address):
        self._call('POST', '/url', url=address)

    def url(self):
        return self._call('GET', '/url')

    def title(self):
        return self._call('GET', '/title')

    def run(self, script, *arguments):
        """The value that a script returns; it may return elements."""
        return self._call('POST', '/execute/sync', script=script, args=list(arguments))

    def text(self, selector='body'):
        return self.run('return document.querySelector(arguments[0]).innerText', selector)

    def texts(self, selector):
        return self.run(
            'return Array.prototype.map.call(document.querySelectorAll(arguments[0]),'
            'function (e) { return e.innerText; })',
            selector,
        )

    def keys(self, text):
        """Press and release the keys, one after the other."""
        presses = [{'type': kind, 'value': c} for c in text for kind in ('keyDown', 'keyUp')]
        self._call(
            'POST', '/actions', actions=[{'type': 'key', 'id': 'keyboard', 'actions': presses}]
        )

    def focused(self):
        """The text or the name of what has the focus."""
        return self.run(
            'var e = document.activeElement; return e.innerText || e.name || e.id || e.tagName'
        )

    def tab_to(self, wanted, most=120):
        """Press TAB until what has this text or name has the focus."""
        seen = []
        for _ in range(most):
            self.keys(TAB)
            seen.append(self.focused())
            if seen[-1] == wanted:
                return
        raise AssertionError('TAB does not reach %r, only %s' % (wanted, seen))

    def follow(self, key=ENTER):
        """Press a key that loads another page, and wait for it."""
        self.run('window.isOld = true')
        self.keys(key)
        eventually(
            lambda: self.run('return !window.isOld && document.readyState === "complete"'),
            30,
            'another page',
        )

    def metrics(self, width, height, scheme):
        """The size of the window, and what the user prefers: 'light' or 'dark'."""
        for command, values in (
            ('Emulation.setDeviceMetricsOverride',
             {'width': width, 'height': height, 'deviceScaleFactor': 1, 'mobile': False}),
            ('Emulation.setEmulatedMedia',
             {'features': [{'name': 'prefers-color-scheme', 'value': scheme}]}),
        ):  # fmt: skip
            self._call('POST', '/goog/cdp/execute', cmd=command, params=values)

    def screenshot(self):
        """A PNG."""
        return base64.b64decode(self._call('GET', '/screenshot'))


def call(method, address, values=None):
    """The value of a WebDriver command. Raises AssertionError with the message of the driver."""
    data = None if values is None else json.dumps(values).encode('utf-8')
    request = urllib.request.Request(
        address, data, {'Content-Type': 'application/json'}, method=method
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=START_SECONDS) as answer:
            return json.loads(answer.read().decode('utf-8'))['value']
    except urllib.error.HTTPError as e:
        raise AssertionError('%s %s: %s' % (method, address, e.read().decode('utf-8', 'replace')))


@contextlib.contextmanager
def chromium():
    """Yields a Browser."""
    program, driver = programs()
    home = tempfile.mkdtemp(prefix='targetd-browser-')
    port = free_port()
    process = subprocess.Popen(
        [driver, '--port=%d' % port],
        env=dict(os.environ, HOME=home, XDG_CONFIG_HOME=home, XDG_CACHE_HOME=home, TMPDIR=home),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    url = 'http://127.0.0.1:%d' % port
    try:
        eventually(lambda: is_listening(('127.0.0.1', port)), START_SECONDS, 'chromedriver')
        options = {
            'binary': program,
            'args': list(OPTIONS) + ['--user-data-dir=' + home + '/profile'],
        }
        wanted = {'capabilities': {'alwaysMatch': {'goog:chromeOptions': options}}}
        session = call('POST', url + '/session', wanted)['sessionId']
        try:
            yield Browser(url, session)
        finally:
            call('DELETE', '%s/session/%s' % (url, session))
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)
        shutil.rmtree(home, ignore_errors=True)
