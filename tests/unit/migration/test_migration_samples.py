"""Every importer against files of the other programs whose results were read back from the running
programs, or follow their source. Runs where the checkout has the samples beside it."""

import glob
import json
import os

import pytest
from migrated import SAMPLES, facts_of, loaded

from targetd.config import acl, lun_maps, network_kinds
from targetd.migration import imported as model
from targetd.migration import sources, tgt
from targetd.scsi import designators

pytestmark = pytest.mark.skipif(
    not os.path.isdir(SAMPLES), reason='no samples beside this checkout'
)

TYPES = {'vendor-specific': 0, 't10': 1, 'eui': 2, 'naa': 3, 'name': 8}
EXPECTED = sorted(glob.glob(SAMPLES + '/**/*.expected.json', recursive=True))
#: What is written on purpose although the source has something else: (sample, LUN, key) -> value.
#: tgt's `bsoflags sync` makes writes durable although it shows a write cache.
CHOSEN = {('tgt-06-params', 7, 'write_cache'): False}


def sample(expected):
    """(name, path of the main file, the expected results)."""
    name = os.path.basename(expected)[: -len('.expected.json')]
    base = expected[: -len('.expected.json')]
    folder = os.path.dirname(expected)
    candidates = [base + end for end in ('.conf', '.json', '.xml')] + [
        os.path.join(base, 'targets.conf'),
        os.path.join(folder, name + '.conf'),
    ]
    path = next(each for each in candidates if os.path.exists(each))
    with open(expected, encoding='utf-8') as f:
        return name, path, json.load(f)


def imported_from(path, kind):
    if kind == 'tgt':
        found = tgt.parse(path, exists=lambda store: 'gone' not in store)
        model.name_default_group(found)
        return found
    return sources.import_files([path])


def check_lun(name, lun, expected):
    def wanted(key):
        return CHOSEN.get((name, expected['lun'], key), expected.get(key))

    assert (lun.backing_store or None) == expected['path']
    assert lun.readonly == expected['readonly'] and lun.thin == expected['thin']
    for key, value in (
        ('write_cache', lun.write_cache),
        ('block_size', lun.block_size),
        ('rotation_rate', lun.rotation_rate),
    ):
        assert wanted(key) in (None, value), key
    if expected['size'] is not None and lun.backing_store[:5] != '/dev/':
        assert lun.size == expected['size']
    facts = facts_of(lun)
    for key in ('vendor', 'product', 'revision'):
        assert expected.get(key) in (None, getattr(facts, key)), key
    if expected['vpd80'] is not None:
        assert designators.serial_number(facts).decode() == expected['vpd80']
    if expected['linux_wwid'] is not None:
        assert designators.linux_name(facts) == expected['linux_wwid']
    if expected.get('t10') is not None:
        assert [
            (kind, code_set, content.hex())
            for code_set, kind, content in designators.unit_designators(facts)
        ] == [
            (TYPES[each['type']], each['code_set'], each['hex'])
            for each in expected['designators']
            if each['type'] in TYPES
        ]


def check_target(name, configuration, target, expected):
    assert list(target.initiator_addresses) == expected['initiator_address']
    assert list(target.initiator_names) == expected['initiator_name']
    known = [each for each in expected['chap']['incoming'] if each[1] is not None]
    assert [list(account) for account in target.accounts] == known
    outgoing = expected['chap']['outgoing']
    if outgoing is None or outgoing[1] is None:
        assert target.outgoing is None
    else:
        assert list(target.outgoing) == outgoing
    assert target.state == expected['state'] and target.alias == expected.get('alias', '')
    portals = [
        network_kinds.Portal().write(portal)
        for tag in target.portal_groups
        for portal in configuration.portal_groups[tag].portals
    ]
    assert portals == expected['portals']
    assert sorted(target.luns) == sorted(lun['lun'] for lun in expected['luns'])
    for lun in expected['luns']:
        check_lun(name, target.luns[lun['lun']], lun)


def check_maps(name, target, per_initiator):
    """Each initiator sees what it has seen in the other program."""
    assert target.lun_map
    for each in per_initiator:
        names = each['initiator_name']
        for text in [names] if isinstance(names, str) else names:
            initiator = text.partition('#')[0].replace('?', '1')
            if initiator.startswith('!'):
                initiator = 'iqn.2026-11.test:nobody-that-is-named'
            assert acl.refusal(target, initiator, '192.0.2.1') is None
            lun_map = lun_maps.choose(target, initiator, '192.0.2.1', [])
            found = {
                shown.number: lun._replace(readonly=lun.readonly or shown.read_only)
                for lun in target.luns.values()
                for shown in [lun_map.shown(lun.number)]
                if shown is not None
            }
            assert sorted(found) == sorted(lun['lun'] for lun in each['luns'])
            for lun in each['luns']:
                check_lun(name, found[lun['lun']], lun)


@pytest.mark.parametrize('expected', EXPECTED, ids=lambda path: path[len(SAMPLES) + 1 :])
def test_a_sample_is_imported_as_expected(expected):
    name, path, result = sample(expected)
    imported = imported_from(path, result['format'])
    configuration, _ = loaded(imported)
    for target in result['targets']:
        if target.get('per_initiator'):
            check_maps(name, configuration.targets[target['name']], target['per_initiator'])
        else:
            check_target(name, configuration, configuration.targets[target['name']], target)
    for key, account in (
        ('incoming', 'incomingdiscoveryuser'),
        ('outgoing', 'outgoingdiscoveryuser'),
    ):
        wanted = result.get('discovery', {}).get(key) or ()
        found = getattr(configuration.server, account) or ()
        assert json.loads(json.dumps(found)) == list(wanted)
    isns = [network_kinds.Portal().write(each) for each in configuration.server.isns_server]
    assert isns == result.get('isns', [])
    assert imported.notes
