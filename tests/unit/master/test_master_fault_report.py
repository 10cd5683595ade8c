"""Faults in the answers of targetdctl."""

from types import SimpleNamespace

import pytest

from targetd.master import fault_report
from targetd.master.units import shared_state
from targetd.scsi import records
from targetd.scsi.medium_state import FAILED, STOPPED

FAULTS = {
    'read EIO': {'count': 2, 'offset': 1024, 'by': 'iqn.x:one', 'at': 1000},
    'write ENOSPC': {'count': 1, 'offset': 0, 'by': 'iqn.x:two', 'at': 2000},
}


def unit(faults=(), bad_blocks=(), failure=None, **words):
    shared = shared_state.initial_state({}, {}, 'boot')._replace(
        records=dict(records.initial(), faults=dict(faults), bad_blocks=list(bad_blocks)), **words
    )
    store = SimpleNamespace(block_size=512, size=1 << 20)
    return SimpleNamespace(
        id='iqn.x:disk/0', shared=shared, store=store, failure=failure, shrinkage='', progress=0
    )


@pytest.mark.parametrize(
    'of, state',
    [
        (unit(), 'ready'),
        (unit(FAULTS), 'degraded: 3 errors, the latest: write ENOSPC at LBA 0 for iqn.x:two, '),
        (unit(FAULTS, restriction='offline'), 'offline: 3 errors, the latest: '),
        (
            unit({'read EIO': FAULTS['read EIO']}),
            'degraded: 2 errors, the latest: read EIO at LBA 2',
        ),
        (unit(FAULTS, medium=FAILED, failure='flush failed'), 'failed: flush failed'),
        (
            unit(FAULTS, medium=FAILED, failure='flush failed', restriction='offline'),
            'failed: flush failed; it is offline',
        ),
        (unit(FAULTS, medium=STOPPED), 'stopped'),
        (unit(operation={'kind': 'format', 'failed': ''}, medium='formatting'), 'formatting: 0 %'),
    ],
)
def test_the_state_of_a_unit(of, state):
    assert fault_report.state_of(of).startswith(state)


def test_errors_and_bad_blocks_are_listed():
    rows = fault_report.error_rows(unit(FAULTS, [[512, 1024], [4096, 512]]))
    assert [(row['what'], row['count'], row['first'], row['last']) for row in rows] == [
        ('write ENOSPC', 1, 0, None),
        ('read EIO', 2, 2, None),
        ('bad blocks', 2, 1, 2),
        ('bad blocks', 1, 8, 8),
    ]
    assert fault_report.error_rows(unit()) == []


def test_the_status_names_the_latest_error_of_all_units():
    assert fault_report.status_facts([unit()]) == [('degraded units', 0)]
    assert fault_report.status_facts([unit(restriction='offline')]) == [('degraded units', 1)]
    facts = dict(fault_report.status_facts([unit({'read EIO': FAULTS['read EIO']}), unit(FAULTS)]))
    assert facts['degraded units'] == 2 and 'write ENOSPC' in facts['latest error']
