#!/bin/bash
# Make the recorded transcripts anew, as root:
#   tests/transcripts/record.sh tools     libiscsi's and qemu's tools, each in a network namespace of its own
#   tests/transcripts/record.sh linux     open-iscsi and the kernel's initiator: in a guest where iscsid runs, and whose RECORD_TO
#                                         is a folder that outlasts it
# libiscsi draws ISID, tags and CmdSN at random, so every recording differs from the last, but not in what it is good for.
set -eu
cd "$(dirname "$0")/../.."
target=iqn.2026-11.com.example:recorded portal=127.0.0.1:3260
url=iscsi://$portal/$target/0
chap=$portal/$target-chap/0
account=erp%secret-of-12-to-16

tools() {
    libiscsi="libiscsi $(dpkg-query -W -f '${Version}' libiscsi-bin)"
    qemu="QEMU $(dpkg-query -W -f '${Version}' qemu-utils)"
    record() { unshare -n sh -c 'ip link set lo up; exec "$@"' sh python3 -m tests.record "$@"; }
    record libiscsi-ls "$libiscsi" -- iscsi-ls -s "iscsi://$account@$portal"
    record libiscsi-inq "$libiscsi" -- iscsi-inq -e 1 -c 131 "$url"
    record libiscsi-wrong-secret "$libiscsi" -- iscsi-inq "iscsi://erp%wrong-wrong-wrong@$chap"
    record libiscsi-mutual-chap "$libiscsi" -- \
        iscsi-readcapacity16 "iscsi://$account@$chap?target_user=erp-back&target_password=another-secret"
    record libiscsi-header-digest "$libiscsi" -- iscsi-readcapacity16 "$url?header_digest=crc32c"
    record libiscsi-no-such-target "$libiscsi" -- iscsi-inq "iscsi://$portal/iqn.2026-11.com.example:no-such/0"
    for test in iSCSIResiduals.Read10Residuals iSCSIcmdsn iSCSIdatasn; do
        record "libiscsi-$(echo ${test%.*} | tr '[:upper:]' '[:lower:]')" "$libiscsi" -- iscsi-test-cu -d -t iSCSI.$test "$url"
    done
    disk=driver=raw,file.driver=iscsi,file.transport=tcp,file.portal=$portal,file.target=$target,file.lun=0
    record qemu-img "$qemu" -- qemu-img info "$url"
    record qemu-io "$qemu" -- qemu-io --image-opts $disk -c 'write -P 65 0 4k' -c 'write -P 66 1M 512k' -c flush \
        -c 'read -P 65 0 4k' -c 'read -P 66 1M 512k' -c 'write -z 2M 64k' -c 'discard 3M 64k'
    record qemu-io-digests "$qemu" -- qemu-io --image-opts $disk,file.header-digest=crc32c -c 'write -f -P 67 1M 64k' \
        -c 'read -P 67 1M 64k'
}

# What the kernel's initiator does between login and logout; each is a command of its own for record.py.
node() { iscsiadm -m node -T "$target" -p $portal "$@" >/dev/null; }
setting() { node --op update -n "$1" -v "$2"; }
disk() {
    for _ in $(seq 100); do
        for path in /sys/class/iscsi_session/session*/device/target*/*/block/*; do
            [ -b "/dev/${path##*/}" ] && { echo "/dev/${path##*/}"; return; }
        done
        sleep 0.1
    done
}
discovery() { iscsiadm -m discovery -t st -p $portal; }
io() {
    node --login; path=$(disk); sleep 1
    head -c 8192 /dev/zero | tr '\0' A | dd of="$path" bs=8k seek=1 oflag=direct status=none
    dd if="$path" of=/dev/null bs=8k skip=1 count=1 iflag=direct status=none
    node --logout
}
digests() {
    setting 'node.conn[0].iscsi.HeaderDigest' CRC32C; setting 'node.conn[0].iscsi.DataDigest' CRC32C
    node --login; path=$(disk); sleep 1
    dd if=/dev/zero of="$path" bs=256k count=1 oflag=direct status=none
    node --logout
}
chap() {
    target=$target-chap
    setting node.session.auth.authmethod CHAP; setting node.session.auth.username erp
    setting node.session.auth.password secret-of-12-to-16
    node --login; disk; sleep 1; node --logout
}
mutual-chap() {
    target=$target-chap
    setting node.session.auth.username_in erp-back; setting node.session.auth.password_in another-secret
    node --login; disk; sleep 1; node --logout
}
wrong-secret() { target=$target-chap; setting node.session.auth.password wrong-wrong-wrong; node --login || true; }

linux() {
    what="open-iscsi $(dpkg-query -W -f '${Version}' open-iscsi), Linux $(uname -r)"
    for part in discovery io digests chap mutual-chap wrong-secret; do
        python3 -m tests.record linux-$part "$what" -- tests/transcripts/record.sh $part
    done
}
"$1"
