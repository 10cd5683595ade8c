"""host.network: the addresses of this host, and who listens on a port."""

import os
import socket

import psutil
import pytest
from fake_host import FakeHost

from targetd.host import network


@pytest.mark.parametrize('family', [socket.AF_INET, socket.AF_INET6])
def test_the_addresses_are_those_that_psutil_finds(family):
    expected = {
        a.address for rows in psutil.net_if_addrs().values() for a in rows if a.family == family
    }
    assert network.own_addresses(family) == sorted(expected)


def test_the_loopback_address_is_one_of_them():
    assert '127.0.0.1' in network.own_addresses(socket.AF_INET)


@pytest.mark.parametrize('address', ['127.0.0.1', '::1'])
def test_a_process_that_listens_is_found_by_its_port(address):
    family = socket.AF_INET6 if ':' in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listening:
        try:
            listening.bind((address, 0))
        except OSError:
            pytest.skip('no IPv6 here')
        port = listening.getsockname()[1]
        assert network.listeners(port) == []  # bound, but it does not listen
        listening.listen(1)
        assert network.listeners(port) == [(address, os.getpid())]
        assert network.program_of(os.getpid()) in (
            'python',
            os.path.basename(psutil.Process().name()),
        )
    assert network.listeners(port) == []


TCP6 = (
    '  sl  local_address  remote_address  st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n'
    '   0: %s:0CBC 00000000000000000000000000000000:0000 %s 00000000:00000000 00:00000000 00000000     0'
    '        0 4711 1\n'
)


@pytest.mark.skipif(os.sys.byteorder == 'big', reason='the words are those of a little-endian host')
def test_the_tables_of_the_kernel(tmp_path):
    host = FakeHost(tmp_path)
    address = 'B80D0120000000000000000001000000'
    host.write('proc/net/tcp6', TCP6 % (address, '0A'))
    os.makedirs(str(tmp_path / 'proc/17/fd'))
    os.symlink('socket:[4711]', str(tmp_path / 'proc/17/fd/5'))
    os.symlink('pipe:[4711]', str(tmp_path / 'proc/17/fd/6'))
    host.write('proc/17/comm', 'tgtd\n')
    assert network.listeners(3260, host) == [('2001:db8::1', 17)]
    assert network.listeners(3261, host) == []
    assert network.program_of(17, host) == 'tgtd'
    assert network.program_of(18, host) == 'unknown program'
    host.write('proc/net/tcp6', TCP6 % (address, '01'))  # an established connection
    assert network.listeners(3260, host) == []
