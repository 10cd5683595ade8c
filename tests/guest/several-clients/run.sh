# In the guest: two hosts with one disk, played by two initiator names of the kernel's initiator. The second mount of an ext4 with
# multiple mount protection is refused, also after the first host is gone it succeeds, and nothing is lost. fence_scsi, the fence
# agent of Pacemaker, shuts a node out, whose writes then fail, and lets it in again.
set -e
. /job/common.sh
target=iqn.2026-11.com.example:several
start_targetd /job/targetd.conf
start_iscsid
discover_twice
login $target
first=$(disk $target iqn.2024-01.guest:initiator 0) second=$(disk $target iqn.2024-01.guest:second 0)
echo "the first host has $first, the second one $second"
[ "$first" != "$second" ]
[ "$(grep -c "logged in to $target" /tmp/targetd.log)" = 2 ]

say "ext4 with multiple mount protection: the second mount is refused"
mkfs.ext4 -q -F -O mmp -E mmp_update_interval=1 "$first"
mkdir -p /mnt/first /mnt/second
mount -t ext4 "$first" /mnt/first
head -c 1M /dev/urandom > /tmp/data
cp /tmp/data /mnt/first/before
if mount -t ext4 "$second" /mnt/second; then echo "both have mounted it"; exit 1; fi
dmesg | grep -i 'already active on another node'
cp /tmp/data /mnt/first/after
umount /mnt/first

say "the first host has unmounted it: the second one mounts it, and has what was written"
mount -t ext4 "$second" /mnt/second
cmp /tmp/data /mnt/second/before
cmp /tmp/data /mnt/second/after
umount /mnt/second
e2fsck -fn "$second"

say "fence_scsi: both nodes register, and both may write"
node() { # directory of /run of the node, command: a cluster of one kernel, in which each node has its own /run
    mkdir -p "/tmp/$1"
    unshare -m sh -c 'mount --bind "$0" /run; exec "$@"' "/tmp/$1" "${@:2}"
}
may_write() { dd if=/tmp/data of="$1" bs=64k count=1 oflag=direct status=none; } # disk
key_1=abcd0001 key_2=abcd0002
node 1 fence_scsi -o on -k $key_1 -d "$first"
may_write "$first"
if may_write "$second" 2> /tmp/refused; then echo "a node that is not registered has written"; exit 1; fi
node 2 fence_scsi -o on -k $key_2 -d "$second"
may_write "$second"
python3 -m targetd.admin.cli reservation show > /tmp/reservations
cat /tmp/reservations
grep "iqn.2024-01.guest:initiator.*$key_1" /tmp/reservations
grep "iqn.2024-01.guest:second.*$key_2" /tmp/reservations
node 2 python3 /usr/share/cluster/fence_scsi_check

say "the first node fences the second one, whose writes fail"
node 1 fence_scsi -o off -k $key_2 -d "$first"
for _ in 1 2; do # the first command meets the unit attention
    if may_write "$second" 2> /tmp/refused; then echo "a fenced node has written"; exit 1; fi
done
cat /tmp/refused
dmesg | grep -i 'reservation conflict'
dd if="$second" of=/dev/null bs=64k count=1 iflag=direct status=none
may_write "$first"
code=0
node 2 python3 /usr/share/cluster/fence_scsi_check || code=$?
[ $code = 2 ] # so that the watchdog restarts the node

say "the second node comes back"
node 2 fence_scsi -o on -k $key_2 -d "$second"
may_write "$second"
may_write "$first"
[ "$(sg_persist -n -i -k "$first" | grep -c "$key_1\|$key_2")" = 2 ]

logout $target
stop_targetd
