"""Tests that a worker recognises what no master sends."""

import pytest

from targetd.config import loader
from targetd.worker.main import Worker
from targetd.worker.orders import ORDERS, BadOrder, check_order

SAMPLES = {
    'serve': {'connection': {}},
    'join': {'connection': {}, 'tsih': 1, 'cid': 1, 'keys': {}, 'login': {}},
    'answer': {'id': 1, 'status': 0},
    'change': {'id': -1, 'unit': 'x', 'reservations': {}},
    'units': {'id': 1, 'add': [], 'last': True},
    'operate': {'operation': {}, 'store': {}},
    'logout': {'seconds': 1.5},
    'check-connections': {'id': 1},
    'capture': {'tsih': 1, 'data': 16},
    'count': {'id': 1},
    'line': {'id': 1},
    'limits': {'session': [[0, 10, 0]], 'luns': {}, 'timed': []},
    'end': {'why': 'targetd stops', 'reason': 'stopped'},
    'retire': {},
}


def refused(message, descriptors=(5,)):
    with pytest.raises(BadOrder) as caught:
        check_order(message, descriptors)
    return str(caught.value)


def test_orders_of_the_master_are_accepted():
    assert sorted(SAMPLES) == sorted(ORDERS)
    for kind, fields in SAMPLES.items():
        check_order(dict(fields, do=kind), [5])


def test_every_order_of_a_worker_has_a_row(tmp_path):
    path = tmp_path / 'targetd.conf'
    path.write_text('[server]\nstate-dir = %s\n' % tmp_path)
    path.chmod(0o600)
    assert sorted(Worker(None, loader.load(str(path)))._orders) == sorted(ORDERS)


@pytest.mark.parametrize('kind', ['x', '', None, 5, [], {}])
def test_unknown_orders(kind):
    assert 'an unknown order' in refused({'do': kind})
    assert 'an unknown order' in refused({})


def test_missing_and_malformed_fields():
    for kind, fields in SAMPLES.items():
        for name in fields:
            if name in ORDERS[kind][1]:
                rest = {key: value for key, value in fields.items() if key != name}
                assert '%s without %s' % (kind, name) in refused(dict(rest, do=kind))
        for name in ORDERS[kind][1]:
            broken = dict(fields, do=kind)
            broken[name.lstrip('?')] = None
            assert 'with a malformed' in refused(broken)


def test_a_connection_needs_its_socket():
    assert refused(dict(SAMPLES['serve'], do='serve'), ()) == 'serve without a descriptor'
    assert refused(dict(SAMPLES['join'], do='join'), ()) == 'join without a descriptor'


@pytest.mark.parametrize('seconds', [-1, 1e10, float('inf'), float('nan'), '5'])
def test_seconds(seconds):
    refused({'do': 'logout', 'seconds': seconds})
