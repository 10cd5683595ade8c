"""libiscsi's own test suite with the header digest on (RFC 7143 11.2.3, 13.1): the families iSCSI and SCSI, nothing may fail.

libiscsi knows no data digest; the tests' own initiator and the kernel's have both on.
"""

import pytest

import clients
from daemon import TARGET, watched

pytestmark = [pytest.mark.client, pytest.mark.slow]

SIZE = 64 << 20
SECONDS = 150

#: Family of the suite -> the fewest tests that must really pass
FAMILIES = {'iSCSI': 10, 'SCSI': 150}


@pytest.fixture(scope='module')
def offered(tmp_path_factory):
    """A daemon whose target insists on a header digest."""
    clients.need('iscsi-test-cu')
    with watched(tmp_path_factory.mktemp('digests')) as each:
        each.target(TARGET, ['initiator-address = ALL', 'HeaderDigest = CRC32C', 'DataDigest = CRC32C, None'],
                    {0: ['backing-store = %s' % each.image('suite.img', SIZE), 'thin = yes']})
        yield each.start()


@pytest.mark.parametrize('family', sorted(FAMILIES))
def test_nothing_fails_with_the_header_digest_on(offered, family):
    url = 'iscsi://127.0.0.1:%d/%s/0?header_digest=crc32c' % (offered.port, TARGET)
    _, text = clients.run('iscsi-test-cu', '-d', '-t', family, url, seconds=SECONDS)
    assert 'Run Summary' in text, text[-3000:]
    found = clients.outcomes(text)
    assert [each for each in found if each.verdict == 'failed'] == []
    assert sum(each.verdict == 'passed' for each in found) >= FAMILIES[family], text[-3000:]
