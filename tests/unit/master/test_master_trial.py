"""`targetd -t` in this process: every row of bad_configurations has its complaint, and nothing changes."""

import fcntl
import os
import re
import socket
import struct

import pytest
from bad_configurations import CONFIG, LUN, SERVER, STORE, TABLE, lun

from targetd import cli
from targetd.config import settings
from targetd.master.logins import host_names
from targetd.master.logins.portals import free_port

MIB = 1 << 20


@pytest.fixture
def place(tmp_path):
    """A folder with the files of the table."""
    for name, size in (
        ('good.img', 4 * MIB),
        ('empty.img', 0),
        ('odd.img', MIB + 1),
        ('locked.img', MIB),
    ):
        with open(str(tmp_path / name), 'wb') as f:
            f.truncate(size)
    os.link(str(tmp_path / 'good.img'), str(tmp_path / 'link.img'))
    (tmp_path / 'damaged').mkdir()
    (tmp_path / 'damaged' / 'server-id').write_text('nonsense')
    with open(str(tmp_path / 'gpt.img'), 'wb') as f:
        f.truncate(4 * MIB)
        f.seek(512)
        f.write(b'EFI PART' + struct.pack('<IIIIQ', 0x10000, 92, 0, 0, 1))
        f.seek(510)
        f.write(b'\x55\xaa')
        f.seek(446)
        f.write(bytes([0, 0, 2, 0, 0xEE, 255, 255, 255]) + struct.pack('<II', 1, 8191))
    return tmp_path


@pytest.fixture
def check(place, capsys):
    """check(text) -> (exit code of -t, its complaints); with a program on a port, and a locked file."""
    busy = socket.socket()
    busy.bind(('127.0.0.1', 0))
    busy.listen(1)
    port = free_port('127.0.0.1', 0)
    locked = open(str(place / 'locked.img'), 'r+b')
    fcntl.flock(locked, fcntl.LOCK_EX)

    def check(text):
        text = SERVER + text if not text.startswith('[server]') else merged(text)
        text = text.replace('{d}', str(place)).replace('{port}', str(port))
        path = str(place / 'targetd.conf')
        with open(path, 'w', encoding='utf-8') as f:
            f.write(text.replace('{busy}', str(busy.getsockname()[1])))
        os.chmod(path, 0o600)
        code = cli.main(['-t', '-c', path])
        return code, capsys.readouterr().err

    yield check
    locked.close()
    busy.close()


def merged(text):
    """The good [server] section with the settings of this one in their place."""
    own = text[len('[server]\n') :].split('[')[0]
    names = {line.split(' = ')[0] for line in own.splitlines()}
    kept = [line for line in SERVER.splitlines() if line.split(' = ')[0] not in names]
    rest = text[len('[server]\n') + len(own) :]
    return '\n'.join(kept) + '\n' + own + (rest or '[portal-group 1]\nportal = 127.0.0.1:{port}\n')


def listing(place):
    return sorted(
        (os.path.join(base, name), os.stat(os.path.join(base, name)).st_size)
        for base, _, names in os.walk(str(place))
        for name in names
        if name != 'targetd.conf'
    )


@pytest.mark.parametrize('name, code, text, complaint', TABLE, ids=[row[0] for row in TABLE])
def test_a_bad_configuration_has_a_complaint_with_its_line(
    check, place, name, code, text, complaint
):
    if name == 'user' and os.geteuid() != 0:
        pytest.skip('only root changes the user')
    before = listing(place)
    found, output = check(text)
    assert (found, bool(re.search(complaint, output))) == (code, True), output
    lines = [line for line in output.splitlines() if re.search(complaint, line)]
    assert re.match(r'targetd: %s:\d+: ' % re.escape(str(place / 'targetd.conf')), lines[0]), lines
    assert 'Traceback' not in output and listing(place) == before


def test_there_are_a_hundred_bad_configurations():
    assert len(TABLE) >= 100 and len({row[0] for row in TABLE}) == len(TABLE)


def test_a_good_configuration_has_no_complaint_and_its_luns_are_described(check, capsys, place):
    code, output = check(LUN + '[[lun 1]]\nbacking-store = {d}/new.img\nsize = 1M\n')
    assert code == 0 and 'not be served' not in output and not (place / 'new.img').exists()


def test_the_description_has_size_blocks_and_identity(place, capsys):
    path = place / 'c'
    text = SERVER + 'server-id = x\n' + lun('{d}/alias.img', 'block-size = 4096')
    os.symlink(str(place / 'good.img'), str(place / 'alias.img'))
    path.write_text(
        text.replace('{d}', str(place)).replace('{port}', str(free_port('127.0.0.1', 0)))
    )
    assert cli.main(['-t', '-c', str(path)]) == 0
    output = capsys.readouterr().out
    assert 'now: %s, 4194304 bytes, blocks of 4096 bytes' % (place / 'good.img') in output
    assert re.search('naa: 6001405[0-9a-f]{25}', output)
    assert re.search('serial number: [0-9A-F]{16}', output)


def test_host_names_are_resolved_and_those_without_address_are_named(check, capsys, monkeypatch):
    answers = {
        'host1': (['192.0.2.1', '2001:db8::1'], True, ''),
        'gone': ([], True, 'no such name'),
    }
    monkeypatch.setattr(host_names, 'resolve', lambda name: host_names.Resolved(*answers[name]))
    rules = 'initiator-address = dns:host1, dns:gone, 192.0.2.9, mac:02:00:5e:00:53:77'
    text = LUN.replace('initiator-address = ALL', rules)
    assert rules in text
    code, output = check('[server]\ndiscovery-address = dns:gone\n' + text)
    assert code == 0
    warnings = [line for line in output.splitlines() if 'dns:gone admits no initiator now' in line]
    assert len(warnings) == 2 and all('no such name' in line for line in warnings), output


def test_what_host_names_admit_now_is_described(capsys, place, monkeypatch):
    monkeypatch.setattr(
        host_names, 'resolve', lambda name: host_names.Resolved(['192.0.2.1'], True, '')
    )
    path = place / 'c'
    text = (SERVER + lun('{d}/good.img')).replace(
        'initiator-address = ALL', 'initiator-address = dns:a'
    )
    path.write_text(
        text.replace('{d}', str(place)).replace('{port}', str(free_port('127.0.0.1', 0)))
    )
    assert cli.main(['-t', '-c', str(path)]) == 0
    assert 'admits initiators at dns:a (now: 192.0.2.1)' in capsys.readouterr().out


def test_an_absent_address_waits_unless_it_is_required(check):
    text = LUN.replace('127.0.0.1:{port}', '127.0.0.1:{port}, 192.0.2.77:{port}')
    code, output = check(text)
    assert code == 0 and 'this host has no such address' in output
    assert check('[server]\nportal-required = yes\n' + text)[0] == 4


def test_strict_fails_for_an_address_that_is_absent(check, place):
    check(LUN.replace('127.0.0.1:{port}', '192.0.2.77:3260'))
    assert cli.main(['-t', '--strict', '-c', str(place / 'targetd.conf')]) == 4


SETTING = re.compile(r'(?:write|set|sets|writes|with|without|or) ([a-z]+(?:-[a-z]+)*) = ')


def test_remedies_name_settings_that_exist():
    """Every `word = value` that a text of the source advises is a setting."""
    from source_tree import python_files, read

    names = {row.name.lower() for row in settings.TABLE} | {'include'}
    found = set()
    for path in python_files('targetd'):
        for word in SETTING.findall(re.sub("'\n *'", '', read(path))):
            if word not in names:
                found.add((os.path.basename(path), word))
    assert found == set()


def test_the_advice_of_the_table_is_a_setting_too():
    assert CONFIG == 3 and STORE == 5
    assert SETTING.findall('write readonly = yes') == ['readonly']
