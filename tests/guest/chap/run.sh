# In the guest: the kernel's initiator with CHAP, with mutual CHAP, with wrong secrets, and with digests.
set -e
. /job/common.sh
target=iqn.2026-11.com.example:secret
start_targetd /job/targetd.conf
start_iscsid
discover

say "without CHAP: refused"
if login $target; then exit 1; fi
say "with a wrong secret: refused"
setting $target node.session.auth.authmethod CHAP
setting $target node.session.auth.username erp
setting $target node.session.auth.password wrong-wrong-wrong
if login $target; then exit 1; fi
grep -c 'refused with status 0201' /tmp/targetd.log

use() {
    login $target
    write_and_compare $target
    logout $target
}
say "CHAP"
setting $target node.session.auth.password 'secret of #14, ok'
use
say "mutual CHAP"
setting $target node.session.auth.username_in erp-back
setting $target node.session.auth.password_in another-secret
use
say "mutual CHAP, and the target's secret is not what the initiator expects"
setting $target node.session.auth.password_in something-else
if login $target; then exit 1; fi
setting $target node.session.auth.password_in another-secret
say "digests"
setting $target node.conn[0].iscsi.HeaderDigest CRC32C
setting $target node.conn[0].iscsi.DataDigest CRC32C
use
stop_targetd
