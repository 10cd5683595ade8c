# In the guest: disks with bad sectors (dm-error) and a disk whose writes fail (dm-flakey). The kernel's initiator gets the first
# bad LBA and the data before it; targetd logs and lists the bad blocks, and on-error = read-only refuses writes until acknowledged.
set -e
. /job/common.sh
bad=iqn.2026-11.com.example:bad direct=iqn.2026-11.com.example:direct flaky=iqn.2026-11.com.example:flaky
half=$((128 * 2048))
targetdctl() { python3 -m targetd.admin.cli "$@"; }
whole() { # name, start: a disk of 128 MiB on /dev/vdb without bad sectors
    echo "0 $half linear /dev/vdb $2"
}
with_bad_sector() { # name, start, sector: the same with one bad sector
    echo "0 $3 linear /dev/vdb $2"
    echo "$3 1 error"
    echo "$(($3 + 1)) $((half - $3 - 1)) linear /dev/vdb $(($2 + $3 + 1))"
}
change() { # name: to the table on stdin
    dmsetup suspend --noflush "$1"
    dmsetup load "$1"
    dmsetup resume "$1"
}
eventually() { # words…: until the command succeeds
    for _ in $(seq 100); do if "$@"; then return 0; fi; sleep 0.1; done
    echo "not within 10 seconds: $*"; return 1
}
errors_have() { targetdctl show errors "$1" | grep -q "$2"; }
has_no_bad_block() { ! targetdctl show errors "$1" | grep -q 'bad blocks'; }
state_has() { targetdctl show units | grep "$1" | grep -q "$2"; }

dd if=/dev/urandom of=/tmp/bad.data bs=1M count=4 status=none
dd if=/dev/urandom of=/tmp/direct.data bs=1M count=4 status=none
dd if=/tmp/bad.data of=/dev/vdb bs=1M status=none
dd if=/tmp/direct.data of=/dev/vdb bs=1M seek=128 status=none
sync; echo 3 > /proc/sys/vm/drop_caches
with_bad_sector bad 0 4001 | dmsetup create bad
with_bad_sector direct $half 4001 | dmsetup create direct
echo "0 $half flakey /dev/vdb $((2 * half)) 3600 0" | dmsetup create flaky
udevadm settle
start_targetd /job/targetd.conf
start_iscsid
discover

say "a bad sector through the page cache, which reads 4 KiB at a time: LBA 4000 is the first that cannot be read"
login $bad
disk=$(iscsi_disk $bad 0)
if sg_read if="$disk" bs=512 count=4096 bpt=4096 blk_sgio=1 verbose=2 2> /tmp/sg; then exit 1; fi
cat /tmp/sg
if dd if="$disk" of=/tmp/back bs=1M count=4 iflag=direct status=none; then exit 1; fi
eventually errors_have $bad/0 'read EIO'
targetdctl show errors $bad/0
targetdctl show errors $bad/0 | grep 'bad blocks *[0-9]* *4000 '
grep 'read EIO at LBA 4000, for ' /tmp/targetd.log
state_has $bad degraded
dmesg | grep -i 'medium error.*sector 4000 '
dd if="$disk" of=/tmp/back bs=4096 count=500 iflag=direct status=none
cmp -n $((4000 * 512)) /tmp/back /tmp/bad.data

say "the same without the page cache: exactly LBA 4001"
login $direct
disk=$(iscsi_disk $direct 0)
if dd if="$disk" of=/tmp/back bs=1M count=4 iflag=direct status=none; then exit 1; fi
eventually errors_have $direct/0 'read EIO'
targetdctl show errors $direct/0
targetdctl show errors $direct/0 | grep 'bad blocks *1 *4001 *4001'
dmesg | grep -i 'medium error.*sector 4001 '
dd if="$disk" of=/tmp/back bs=4096 count=500 iflag=direct status=none
dd if="$disk" of=/tmp/back bs=512 skip=4000 seek=4000 count=1 iflag=direct status=none
cmp -n $((4001 * 512)) /tmp/back /tmp/direct.data

say "the disk replaces the sector when it is rewritten; the list ends"
whole direct $half | change direct
dd if=/tmp/direct.data of="$disk" bs=512 seek=4001 count=1 oflag=direct conv=notrunc status=none
eventually has_no_bad_block $direct/0
targetdctl acknowledge $direct/0
state_has $direct ready
whole bad 0 | change bad
disk=$(iscsi_disk $bad 0)
dd if=/tmp/bad.data of="$disk" bs=4096 seek=500 count=1 oflag=direct conv=notrunc status=none
eventually has_no_bad_block $bad/0
targetdctl acknowledge $bad/0
logout $direct
logout $bad

say "a disk whose writes fail: on-error = read-only"
login $flaky
disk=$(iscsi_disk $flaky 0)
dd if=/tmp/bad.data of="$disk" bs=64k count=1 oflag=direct status=none
echo "0 $half flakey /dev/vdb $((2 * half)) 0 3600 1 error_writes" | change flaky
if dd if=/tmp/bad.data of="$disk" bs=64k count=1 oflag=direct status=none; then exit 1; fi
eventually state_has $flaky read-only
targetdctl show units
targetdctl status
grep 'is read-only now' /tmp/targetd.log
echo "0 $half flakey /dev/vdb $((2 * half)) 3600 0" | change flaky
if dd if=/tmp/bad.data of="$disk" bs=64k count=1 oflag=direct status=none; then exit 1; fi
dd if="$disk" of=/tmp/back bs=64k count=1 iflag=direct status=none
cmp -n 65536 /tmp/back /tmp/bad.data
stop_targetd
start_targetd /job/targetd.conf
eventually state_has $flaky read-only
targetdctl acknowledge $flaky/0
state_has $flaky ready
# Linux keeps a disk that it has seen write-protected read-only until it looks at the disk again.
echo 1 > "/sys/block/${disk#/dev/}/device/rescan"
eventually dd if=/tmp/direct.data of="$disk" bs=64k count=1 oflag=direct conv=fsync status=none
logout $flaky
stop_targetd
if grep -q Traceback /tmp/targetd.log; then exit 1; fi
