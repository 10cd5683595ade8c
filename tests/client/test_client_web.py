"""The status page in Chromium: used by keyboard, narrow and wide, light and dark, with its graphs."""

import os

import browser
import pytest
from clients import need
from daemon import TARGET, eventually
from status_page import Page

pytestmark = pytest.mark.client
pytest.importorskip('bottle')
SECTIONS = ['Overview', 'Targets', 'LUNs', 'Sessions', 'Disks', 'Refusals', 'Configuration']


@pytest.fixture
def page(daemon):
    need('chromium', 'chromedriver')
    daemon.target(
        TARGET,
        ['initiator-address = ALL', 'sharing = cluster'],
        {0: ['backing-store = %s' % daemon.image('a.img')], 1: ['type = ram', 'size = 1M']},
    )
    daemon.start()
    found = Page(daemon, '--allow-changes')
    yield found
    found.close()


@pytest.fixture(scope='module')
def window():
    need('chromium', 'chromedriver')
    with browser.chromium() as found:
        yield found


def test_pages_fit_the_window(page, window):
    for width, scheme in ((1280, 'light'), (390, 'dark')):
        window.metrics(width, 900, scheme)
        for path in (
            '/',
            '/targets',
            '/luns',
            '/lun/%s/0' % TARGET,
            '/sessions',
            '/disks',
            '/refusals',
            '/configuration',
            '/login',
        ):
            window.open(page.address + path)
            wide = window.run('return document.documentElement.scrollWidth - window.innerWidth')
            assert wide <= 0, (width, path, wide)
            assert window.texts('nav li') == SECTIONS
            headings = window.run('return document.querySelectorAll("h1, main").length')
            unnamed = window.run(
                'return Array.prototype.filter.call(document.querySelectorAll("input:not([type=hidden]),'
                ' textarea"), function (e) { return !e.labels.length; }).length'
            )
            assert headings == 2 and unnamed == 0, path
    dark = window.run('return getComputedStyle(document.body).backgroundColor')
    window.metrics(1280, 900, 'light')
    assert dark != window.run('return getComputedStyle(document.body).backgroundColor')


def test_a_change_by_keyboard(daemon, page, window):
    window.metrics(1280, 900, 'light')
    window.open(page.address + '/')
    window.tab_to('Log in to change')
    window.follow()
    window.keys(page.token())
    window.tab_to('Log in')
    window.follow()
    window.tab_to('LUNs')
    window.follow()
    assert window.url().endswith('/luns')
    window.open(page.address + '/lun/%s/0' % TARGET)
    window.tab_to('Resize')
    window.follow()
    window.tab_to('size')
    window.keys('96M')
    window.tab_to('Show what would change')
    window.follow()
    assert '96M' in window.text('#preview ~ ul')
    window.tab_to('Resize lun')
    window.follow()
    assert '96M' in window.text('main')
    assert os.path.getsize(os.path.join(daemon.directory, 'a.img')) == 96 << 20


def test_the_graphs_follow_the_load(daemon, page, window, sessions):
    session = sessions(daemon)
    session.clear_attentions()
    window.open(page.address + '/')

    def is_drawn():
        for lba in range(0, 20000, 128):
            session.write(lba, bytes(65536))
        return (
            'B/s' in window.text('.graphs')
            and not window.text('.graphs').count('written 0 B/s')
            and (
                window.run(
                    'return document.querySelectorAll(".plot path.write, .plot .line.write").length'
                )
            )
        )

    eventually(is_drawn, 60, 'a line in the graph, without a new request by hand')
    label = window.run('return document.querySelector("svg.plot").getAttribute("aria-label")')
    assert 'written now' in label
