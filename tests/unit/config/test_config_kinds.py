"""The kinds of value: what they read and refuse, and that every value can be written back."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from targetd.config import kinds, network_kinds, place_kinds, scsi_kinds
from targetd.config import settings as table
from targetd.config.words import Unusable, split


def read(kind, text):
    return kind.read(split(text))


@pytest.mark.parametrize(
    'kind, text, value',
    [
        (kinds.Flag(), 'On', True),
        (kinds.Flag(), '0', False),
        (kinds.Flag(), 'Yes', True),
        (kinds.Number(1, 64), '0x10', 16),
        (kinds.Number(0, 99), '010', 10),
        (kinds.Size(), '200G', 200 << 30),
        (kinds.Size(), '1.5k', 1536),
        (kinds.Size(), '4 MiB', 4 << 20),
        (kinds.Size(), '512', 512),
        (kinds.Size(), '8KB', 8192),
        (kinds.ByteCount(0, 1 << 24), '256K', 262144),
        (kinds.PowerOfTwo(512, 4096), '4K', 4096),
        (kinds.Duration(0, 9999), '2min', 120),
        (kinds.Duration(0, 9999), '30', 30),
        (kinds.Duration(0, 9999), '500ms', 0.5),
        (kinds.Duration(0, 9999), '1.5 s', 1.5),
        (kinds.Duration(1, 600, off=True), '0', 0),
        (kinds.Auto(kinds.Number(0, 9)), 'AUTO', None),
        (kinds.Auto(kinds.Number(0, 9)), '7', 7),
        (kinds.Choice('error', 'warning', also={'warn': 'warning'}), 'WARN', 'warning'),
        (kinds.Text(20), 'ERP data', 'ERP data'),
        (kinds.Text(20), '"a, b"', 'a, b'),
        (kinds.LogPlace(), 'Syslog', 'syslog'),
        (kinds.LogPlace(), '/var/log/x', '/var/log/x'),
        (kinds.Hex(16), '0x0014-0512-3456-7890', '0014051234567890'),
        (kinds.Naa(), 'naa.5000C500AAAA0001', '5000c500aaaa0001'),
        (network_kinds.Portal(), '10.0.0.1', ('10.0.0.1', 3260)),
        (network_kinds.Portal(), '[2001:DB8::1]:3261', ('2001:db8::1', 3261)),
        (network_kinds.Portal(), '[::]', ('::', 3260)),
        (network_kinds.Portal(), '[fe80::1%eth0]:1', ('fe80::1%eth0', 1)),
        (network_kinds.Portal(3205, of_others=True), '10.0.0.1', ('10.0.0.1', 3205)),
        (network_kinds.Redirection(), 'temporary 10.0.0.2', (False, '10.0.0.2', 3260)),
        (network_kinds.Redirection(), 'Permanent [2001:DB8::1]:3261', (True, '2001:db8::1', 3261)),
        (
            network_kinds.Redirection(),
            'permanent Storage2.example.com:1',
            (True, 'storage2.example.com', 1),
        ),
        (network_kinds.Network(), '10.0.5.0/24', '10.0.5.0/24'),
        (network_kinds.Network(), '10.0.5.7', '10.0.5.7'),
        (network_kinds.Network(), '2001:db8::/64', '2001:db8::/64'),
        (network_kinds.Network(), 'all', 'ALL'),
        (scsi_kinds.SpinDown(), 'on-stop', -1),
        (scsi_kinds.SpinDown(), 'Never', 0),
        (scsi_kinds.SpinDown(), '0', 0),
        (scsi_kinds.SpinDown(), '30min', 1800),
        (network_kinds.Origin(), '10.0.5.0/24', '10.0.5.0/24'),
        (network_kinds.Origin(), 'all', 'ALL'),
        (network_kinds.Origin(), 'DNS:Host1.Example.com', 'dns:host1.example.com'),
        (network_kinds.Origin(), 'dns:web1.', 'dns:web1.'),
        (network_kinds.Origin(), 'mac:00-11-22-AA-bb-0c', 'mac:00:11:22:aa:bb:0c'),
        (network_kinds.Network(), '10.0.5.7/32', '10.0.5.7'),
        (network_kinds.NamePattern(), 'IQN.1991-05.com.Microsoft:*', 'iqn.1991-05.com.microsoft:*'),
        (network_kinds.NamePattern(), 'ALL', 'ALL'),
        (network_kinds.NamePattern(), 'i*', 'i*'),
        (
            network_kinds.NamePattern(),
            'iqn.2020-01.org.x:under_score',
            'iqn.2020-01.org.x:under_score',
        ),
        (kinds.Account(), 'erp "s, #"', ('erp', 's, #')),
        (kinds.Accounts(), 'a b, c d', (('a', 'b'), ('c', 'd'))),
        (
            kinds.Several(network_kinds.Network()),
            '10.0.0.1 10.0.0.2, ::1',
            ('10.0.0.1', '10.0.0.2', '::1'),
        ),
        (kinds.KeyWords('None', 'CRC32C'), 'crc32c,none', ('CRC32C', 'None')),
        (place_kinds.StorePath(), 'serial:WD-1', 'serial:WD-1'),
        (place_kinds.StorePath(), '/srv/a b.img', '/srv/a b.img'),
        (place_kinds.StorePath(), 'rbd:disks/erp@monday', 'rbd:disks/erp@monday'),
        (place_kinds.StatePlace(), 'rados:states/erp', 'rados:states/erp'),
        (place_kinds.StatePlace(), '/srv/state', '/srv/state'),
        (kinds.Filters(), 'delay read=10ms, trace', ('delay read=10ms', 'trace')),
    ],
)
def test_a_value_is_understood(kind, text, value):
    assert read(kind, text) == value
    assert read(kind, kind.show(value)) == value


@pytest.mark.parametrize(
    'kind, text, says',
    [
        (kinds.Flag(), 'maybe', 'yes or no'),
        (kinds.Number(1, 9), '12', 'from 1 to 9'),
        (kinds.Number(1, 9), '-1', 'from 1 to 9'),
        (kinds.Number(1, 9), '1, 2', 'from 1 to 9'),
        (kinds.Size(), '12Q', '200G'),
        (kinds.Size(1 << 20), '4K', '1M'),
        (kinds.Size(multiple=512), '1000', 'multiple of 512'),
        (kinds.Size(), '0.3', 'whole number of bytes'),
        (kinds.PowerOfTwo(512, 4096), '1536', 'power of two'),
        (kinds.Duration(1, 600), '0', '1s'),
        (kinds.Duration(1, 600), '3 weeks', '30s'),
        (kinds.Auto(kinds.Number(0, 9)), 'x', 'auto'),
        (kinds.Choice('ready', 'offline'), 'reddy', 'did you mean ready'),
        (kinds.Text(8, ascii_only=True), 'ÄCME', 'ASCII'),
        (kinds.Text(4), 'too long', 'at most 4'),
        (kinds.Text(9), '"a\tb"', 'control'),
        (kinds.Path(), '""', 'a path'),
        (kinds.LogPlace(), 'sylog', 'write syslog'),
        (kinds.LogPlace(), 'x.log', 'absolute'),
        (kinds.Hex(16), '12', '16 hex digits'),
        (kinds.Naa(), '1000000000000000', 'begin'),
        (kinds.Naa(), '5' + '0' * 31, 'begin'),
        (network_kinds.Portal(), 'storage.example.com', 'not a host name'),
        (network_kinds.Portal(), '1.2.3.4:0', '65535'),
        (network_kinds.Portal(), '::1', 'in brackets'),
        (network_kinds.Portal(), '[1', 'like'),
        (network_kinds.Portal(3205, of_others=True), '0.0.0.0', 'not an address of another host'),
        (network_kinds.Redirection(), 'temporary 10.0.0.2:3260,1', 'RFC 7143 13.8'),
        (network_kinds.Redirection(), '10.0.0.2', 'two words'),
        (network_kinds.Redirection(), 'temporary 10.0.0.2 10.0.0.3', 'two words'),
        (network_kinds.Redirection(), 'temp 10.0.0.2', 'temporary'),
        (network_kinds.Redirection(), 'permanent 300.0.0.1', 'not a valid address'),
        (network_kinds.Redirection(), 'permanent [::]', 'not an address of another'),
        (network_kinds.Redirection(), 'permanent under_score.example', 'not a valid address'),
        (network_kinds.Redirection(), 'permanent [x]:1', 'not a valid address'),
        (network_kinds.Redirection(), 'temporary 10.0.0.2:0', '65535'),
        (network_kinds.Redirection(), 'temporary ::1', 'in brackets'),
        (
            network_kinds.Origin(),
            '10.0.5.7/24',
            '10.0.5.0/24 for the network or 10.0.5.7 for the single',
        ),
        (network_kinds.Network(), 'lan', 'neither'),
        (network_kinds.Network(), 'dns:lan', 'neither'),
        (network_kinds.Origin(), 'lan', 'neither'),
        (scsi_kinds.SpinDown(), '10s', 'out of range'),
        (scsi_kinds.SpinDown(), 'on_stop', 'or on-stop'),
        (network_kinds.Origin(), 'host1.example.com', 'write dns:host1.example.com'),
        (network_kinds.Origin(), '10.0.0.0.1', 'neither'),
        (network_kinds.Origin(), '00-11-22-33-44-55', 'write mac:00-11-22-33-44-55'),
        (network_kinds.Origin(), 'dns:', 'not a host name'),
        (network_kinds.Origin(), 'dns:10.0.0.1', 'no dns: before it'),
        (network_kinds.Origin(), 'dns:*.example.com', 'not a host name'),
        (network_kinds.Origin(), 'dns:grün.example.com', 'xn--'),
        (network_kinds.Origin(), 'mac:00:11:22:33:44', 'not a MAC address'),
        (network_kinds.Origin(), 'mac:01:00:5e:00:00:01', 'multicast'),
        (network_kinds.NamePattern(), 'disk1', 'iqn.'),
        (network_kinds.NamePattern(), 'x*', 'iqn.'),
        (kinds.Account(), 'a b c', 'quote a secret'),
        (kinds.Account(), 'a ""', 'empty secret'),
        (kinds.Account(), '"" b', 'empty name'),
        (kinds.Account(), 'a b, c d', 'one account'),
        (place_kinds.StorePath(), 'seriall:1', 'did you mean serial:'),
        (place_kinds.StorePath(), 'wwn:', 'the value after wwn: is missing'),
        (place_kinds.StorePath(), 'rbd:erp', 'write rbd:POOL/IMAGE'),
        (place_kinds.StatePlace(), 'rados:', 'write rados:POOL'),
        (kinds.Filters(), 'dealy 1s', 'did you mean delay'),
    ],
)
def test_an_unusable_value_is_refused_with_a_remedy(kind, text, says):
    with pytest.raises(Unusable) as caught:
        read(kind, text)
    assert says in str(caught.value)


@pytest.mark.parametrize('text', ['hidden', 'user hidden hidden2', 'user hidden, x'])
def test_a_complaint_about_an_account_shows_no_secret(text):
    with pytest.raises(Unusable) as caught:
        read(kinds.Account(), text)
    assert 'hidden' not in str(caught.value)


@pytest.mark.parametrize(
    'row', [r for r in table.TABLE if r.default not in (None, '', ())], ids=lambda r: r.name
)
def test_every_default_can_be_written_and_read(row):
    assert read(row.kind, row.kind.show(row.default)) == row.default


@pytest.mark.parametrize('row', [r for r in table.TABLE if r.example], ids=lambda r: r.name)
def test_every_example_can_be_used(row):
    assert read(row.kind, row.example) not in (None, '', ())


def test_every_row_is_complete():
    for row in table.TABLE:
        assert row.help.endswith('.') and row.live in table.WHEN and row.kind.says, row.name
        assert (row.default in (None, '', ())) <= bool(
            row.example or isinstance(row.kind, kinds.Auto)
        ), row.name
    names = [(row.section, row.name) for row in table.TABLE]
    assert len(names) == len(set(names))


@settings(max_examples=100)
@given(
    st.integers(0, 1 << 60), st.integers(0, 600000), st.integers(0, 2**32 - 1), st.integers(0, 32)
)
def test_a_number_survives_being_written_and_read(size, milliseconds, address, prefix):
    assert read(kinds.Size(), kinds.Size().show(size)) == size
    time = kinds.Duration(0, 600)
    assert read(time, time.show(milliseconds / 1000)) == milliseconds / 1000
    net = '%d.%d.%d.%d/%d' % tuple(
        list((address >> (32 - prefix) << (32 - prefix)).to_bytes(4, 'big')) + [prefix]
    )
    shown = network_kinds.Network().parse(net)
    assert network_kinds.Network().parse(network_kinds.Network().write(shown)) == shown


def test_nearest_treats_hyphens_and_underscores_as_equal():
    assert kinds.nearest('max_sesions', ['max-sessions', 'user']) == 'max-sessions'
    assert kinds.nearest('zzz', ['max-sessions']) is None
