# In the guest, where Python has no crc32c package: the kernel computes the digests (AF_ALG), for workers that are nobody too;
# and where its module cannot be loaded the tables do, and the log says so once.
set -e
. /job/common.sh
target=iqn.2026-11.com.example:digests

say "what the kernel computes is what the tables compute"
python3 /job/compare.py
su -s /bin/sh nobody -c 'PYTHONPATH=/src PYTHONDONTWRITEBYTECODE=1 python3 -' < /job/compare.py >/dev/null

asked() { awk '$1 == "algif_hash" { print $3 }' /proc/modules; }    # uses of the module: sockets that are open
use() { # a session with both digests
    login $target
    write_and_compare $target
    [ "$(iscsiadm -m session -P 2 | grep -cE '(Header|Data)Digest: CRC32C')" = 2 ]
    sockets=$(asked)
    logout $target
}
say "a session with both digests: a worker asks the kernel"
start_targetd /job/targetd.conf
start_iscsid
discover
setting $target node.conn[0].iscsi.HeaderDigest CRC32C
setting $target node.conn[0].iscsi.DataDigest CRC32C
use
echo "${sockets:-0} sockets"; [ "${sockets:-0}" -ge 1 ]
if grep CRC32C /tmp/targetd.log; then exit 1; fi
stop_targetd

say "without the kernel: as right, and the log says once that it is slow"
modprobe -r algif_hash; modprobe -r af_alg
echo 'install af_alg /bin/false' > /etc/modprobe.d/none.conf
: > /tmp/targetd.log
start_targetd /job/targetd.conf
use
[ -z "$sockets" ]
[ "$(grep -c 'digests (CRC32C) are slow on this host' /tmp/targetd.log)" = 1 ]
stop_targetd
