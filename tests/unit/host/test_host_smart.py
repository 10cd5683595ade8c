"""The answers of smartctl. The files of the folder smart have the keys, in the form of the version that they
name, that smartctl 7.1 to 7.4 writes for disks of several vendors, as public recordings and its source show;
they were written for these tests, with serial numbers of no disk."""

import json
import os
import stat

import pytest

from targetd.host import smart, smart_tests
from targetd.scsi import health

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'smart')
ANSWERS = sorted(name[:-5] for name in os.listdir(HERE))


def text_of(name):
    with open(os.path.join(HERE, name + '.json'), encoding='utf-8') as f:
        return f.read()


def parsed(name):
    text = text_of(name)
    return smart.parse(text, json.loads(text)['smartctl']['exit_status'])


@pytest.mark.parametrize(
    'name, state, failure, temperature',
    [
        ('wd-healthy', smart.HEALTHY, None, 33),
        ('seagate-failing', smart.FAILING, [0x5D, 0x10], 39),
        ('samsung-ssd', smart.HEALTHY, None, 29),
        ('toshiba-usb', smart.HEALTHY, None, 41),
        ('wd-asleep', smart.ASLEEP, None, None),
        ('usb-bridge-unknown', smart.UNKNOWN, None, None),
        ('virtual-disk', smart.UNKNOWN, None, None),
        ('intel-nvme', smart.HEALTHY, None, 38),
        ('kingston-nvme-worn', smart.FAILING, [0x5D, 0x73], 38),
        ('wd-nvme-hot', smart.HOT, None, 84),
        ('hgst-sas', smart.HEALTHY, None, 36),
        ('seagate-sas-failing', smart.FAILING, [0x5D, 0x14], 44),
        ('seagate-sas-hot', smart.HOT, None, 66),
        ('seagate-hot', smart.HOT, None, 61),
        ('hitachi-usb-failing', smart.FAILING, [0x5D, 0x10], 25),
        ('samsung-nvme-no-backup', smart.FAILING, [0x5D, 0x10], 40),
        ('toshiba-sas-low-power', smart.ASLEEP, None, None),
        ('wd-smart-disabled', smart.UNKNOWN, None, None),
        ('seagate-sas-7.1', smart.HEALTHY, None, 31),
        ('hp-sas-no-temperature-page', smart.HEALTHY, None, 28),
    ],
)
def test_the_state_of_each_disk(name, state, failure, temperature):
    answer = parsed(name)
    assert (answer['state'], answer.get('failure'), answer.get('temperature')) == (
        state,
        failure,
        temperature,
    )
    assert bool(answer['why']) == (state != smart.HEALTHY)


def test_every_file_is_tested():
    assert len(ANSWERS) == 20


@pytest.mark.parametrize('name', ANSWERS)
def test_every_answer_is_a_valid_health(name):
    health.check(dict(parsed(name), at=1))


def test_the_counts_of_an_ata_disk():
    answer = parsed('seagate-failing')
    assert answer['model'] == 'ST4000DM004-2CV104' and answer['transport'] == 'ATA'
    assert (answer['reallocated'], answer['pending'], answer['hours']) == (65528, 744, 37254)
    assert (answer['cycles'], answer['loads']) == (913, 25290)
    assert answer['read'] == {'uncorrected': 412}
    first, second, third = answer['self_tests']
    assert (first['code'], first['result'], first['address'], first['hours']) == (
        1, 7, 488378888, 37250,
    )  # fmt: skip
    assert (first['key'], first['asc']) == (3, 0x11)
    assert (second['code'], second['result'], third['result']) == (2, 1, 0)


def test_the_counts_of_a_sas_disk():
    answer = parsed('hgst-sas')
    assert answer['read'] == {'corrected': 12, 'uncorrected': 0, 'bytes': 184211501000000}
    assert answer['verify']['bytes'] == 1550125000000
    assert (answer['cycles'], answer['most_cycles'], answer['loads'], answer['most_loads']) == (
        61, 50000, 2214, 600000,
    )  # fmt: skip
    assert answer['limit'] == 65
    failed, passed = parsed('seagate-sas-failing')['self_tests']
    assert (passed['code'], passed['result'], passed['address']) == (1, 0, None)
    assert (failed['code'], failed['result'], failed['address'], failed['key'], failed['asc']) == (
        2, 7, 99812345, 3, 0x11,
    )  # fmt: skip


def test_a_sas_disk_of_other_versions_and_without_some_log_pages():
    answer = parsed('seagate-sas-7.1')
    assert (answer['model'], answer['firmware']) == ('SEAGATE ST1200MM0088', 'TT31')
    assert (answer['limit'], answer['self_tests']) == (60, [])
    assert parsed('hp-sas-no-temperature-page')['limit'] == 65


def test_the_limit_of_the_temperature_of_an_ata_disk():
    assert parsed('samsung-ssd')['limit'] == 70
    assert 'the limit 60' in parsed('seagate-hot')['why']
    said = json.loads(text_of('wd-healthy'))
    said['temperature']['op_limit_max'] = 33  # the average temperature, in early disks
    answer = smart.parse(json.dumps(said), 0)
    assert answer['state'] == smart.HEALTHY and 'limit' not in answer


@pytest.mark.parametrize(
    'raw, count',
    [
        ({'value': 4295032834, 'string': '2 (1 1)'}, 2),
        ({'value': 255, 'string': '0x0000000000ff'}, 255),
        ({'value': 8}, 8),
        ({'value': 8, 'string': '9' * 90}, (1 << 64) - 1),
    ],
)
def test_the_count_within_a_raw_value(raw, count):
    said = json.loads(text_of('samsung-ssd'))
    said['ata_smart_attributes']['table'][0]['raw'] = raw
    assert smart.parse(json.dumps(said), 0)['reallocated'] == count


def test_a_disk_whose_health_is_disabled_says_how_to_enable_it():
    assert 'smartctl -s on' in parsed('wd-smart-disabled')['why']


def test_the_wear_of_an_ata_disk_is_known_from_smartctl_7_5_on():
    said = dict(json.loads(text_of('samsung-ssd')), endurance_used={'current_percent': 5})
    assert smart.parse(json.dumps(said), 0)['wear'] == 5


def test_the_counts_of_an_nvme_disk():
    answer = parsed('intel-nvme')
    assert answer['wear'] == 3 and answer['cycles'] == 119
    assert answer['write'] == {'bytes': 31219872 * 512000}
    assert [(t['code'], t['result']) for t in answer['self_tests']] == [(1, 0), (2, 6)]
    assert parsed('kingston-nvme-worn')['wear'] == 118
    said = json.loads(text_of('samsung-nvme-no-backup'))
    said['nvme_smart_health_information_log']['critical_warning'] = 0x20  # NVMe 1.4
    assert 'persistent memory' in smart.parse(json.dumps(said), 8)['why']


@pytest.mark.parametrize(
    'text',
    [
        '',
        '[]',
        'smartctl 6.6',
        '{}',
        '{"smart_status": 3, "temperature": [], "smartctl": []}',
        '{"smart_status": {"passed": "no"}, "ata_smart_attributes": {"table": [1, {"id": []}]}}',
    ],
)
def test_an_answer_that_is_not_one_is_unknown(text):
    answer = smart.parse(text, 0)
    assert answer['state'] == smart.UNKNOWN and answer['why']
    health.check(dict(answer, at=1))


def test_numbers_that_no_disk_has_are_left_out():
    said = json.loads(text_of('wd-healthy'))
    said['temperature']['current'] = 4000
    said['power_on_time']['hours'] = -1
    said['model_name'] = 'A\nB\x1b[31m'
    answer = smart.parse(json.dumps(said), 0)
    assert 'temperature' not in answer and 'hours' not in answer
    assert answer['model'] == 'A B [31m'


def test_at_most_twenty_self_tests_are_kept():
    said = json.loads(text_of('seagate-failing'))
    table = said['ata_smart_self_test_log']['standard']['table']
    said['ata_smart_self_test_log']['standard']['table'] = table * 20
    assert len(smart_tests.self_tests(said)) == 20


# -- running smartctl ------------------------------------------------------------------------------


def program(tmp_path, script):
    path = tmp_path / 'smartctl'
    path.write_text('#!/bin/sh\n' + script)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def replay(tmp_path, name, code=0):
    return 'cat %s\nexit %d\n' % (os.path.join(HERE, name + '.json'), code)


def test_a_disk_is_asked_without_waking_it(tmp_path):
    seen = tmp_path / 'seen'
    path = program(tmp_path, 'echo "$@" > %s\n' % seen + replay(tmp_path, 'wd-asleep', 2))
    assert smart.ask('/dev/sdx', program=path)['state'] == smart.ASLEEP
    words = seen.read_text().split()
    assert words[-1] == '/dev/sdx' and words[words.index('-n') + 1] == 'standby'


def test_an_unknown_usb_bridge_is_asked_for_sat(tmp_path):
    script = 'case "$*" in *"-d sat"*) %s;; *) %s;; esac' % (
        replay(tmp_path, 'toshiba-usb').replace('\n', ';'),
        replay(tmp_path, 'usb-bridge-unknown', 1).replace('\n', ';'),
    )
    path = program(tmp_path, script.replace(';;;', ';;'))
    assert smart.ask('/dev/sdd', program=path)['model'] == 'TOSHIBA MQ04UBD200'


def test_a_disk_that_does_not_answer_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr(smart, 'SECONDS', 0.2)
    answer = smart.ask('/dev/sdx', program=program(tmp_path, 'exec sleep 60\n'))
    assert answer['state'] == smart.UNKNOWN and 'did not answer' in answer['why']


def test_a_missing_program_is_said_with_the_package(tmp_path, monkeypatch):
    monkeypatch.setattr(smart, '_DIRECTORIES', ())
    assert smart.find_program(str(tmp_path)) is None
    monkeypatch.setenv('PATH', str(tmp_path))
    answer = smart.ask('/dev/sdx')
    assert answer['state'] == smart.UNKNOWN and 'smartmontools' in answer['why']


def test_the_installed_program_is_found(tmp_path):
    path = program(tmp_path, '')
    assert smart.find_program(str(tmp_path)) == path


# -- several disks ---------------------------------------------------------------------------------


def test_the_worst_of_several_disks_counts():
    names = ('wd-healthy', 'seagate-sas-failing', 'hgst-sas')
    found = smart.combined([parsed(name) for name in names], 7, {})
    assert (found['at'], found['failure'], found['temperature'], found['limit']) == (
        7, [0x5D, 0x14], 44, 60,
    )  # fmt: skip
    assert found['read']['uncorrected'] == 212 and found['read']['corrected'] == 90225
    assert (found['cycles'], 'self_tests' in found) == (172, False)
    health.check(found)


def test_a_predicted_failure_is_not_forgotten_while_a_disk_is_silent():
    before = {'at': 1, 'failure': [0x5D, 0x10]}
    silent = parsed('virtual-disk')
    assert smart.combined([silent], 2, before) is before
    assert smart.combined([parsed('wd-healthy'), silent], 2, before)['failure'] == [0x5D, 0x10]
    assert 'failure' not in smart.combined([parsed('wd-healthy')], 2, before)
