"""UnitFacts: defaults, messages, invalid values."""

import pytest

from targetd.scsi.facts import UnitFacts


def test_facts_have_defaults_and_survive_a_message():
    facts = UnitFacts.from_message({'block_size': 512, 'physical_block_size': 4096, 'serial': 'x'})
    assert facts.physical_exponent == 3
    assert facts.optimal_transfer_granularity == 4096
    assert not facts.write_cache and not facts.unmap
    assert UnitFacts.from_message(facts.message()) == facts


def test_unknown_facts_are_ignored():
    assert UnitFacts.from_message({'from_a_newer_master': 1}) == UnitFacts.from_message({})


@pytest.mark.parametrize(
    'facts',
    [
        {'block_size': 520},
        {'block_size': 256},
        {'block_size': 4096, 'physical_block_size': 512},
        {'serial': 5},
        {'maximum_unmap_length': -1},
        {'block_size': True},
        {'thin': 'yes'},
    ],
)
def test_invalid_facts_are_refused(facts):
    with pytest.raises(ValueError):
        UnitFacts.from_message(facts)
