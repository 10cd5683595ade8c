# In the guest: targetd exports /dev/vdb and a sparse file; the kernel's initiator makes file systems on both, uses them, trims
# them, logs out and in, checks and compares.
set -e
. /job/common.sh
say "what would be served"
mkdir -p /tmp/state
cp /job/targetd.conf /tmp/tried.conf; chmod 600 /tmp/tried.conf
(cd / && python3 -m targetd -t -c /tmp/tried.conf) || [ $? = 5 ] # 5: a LUN would not be served
start_targetd /job/targetd.conf
start_iscsid
say discovery
discover | tee /tmp/found
grep -q iqn.2026-11.com.example:disks /tmp/found
login iqn.2026-11.com.example:disks
block=$(iscsi_disk iqn.2026-11.com.example:disks 0)
file=$(iscsi_disk iqn.2026-11.com.example:disks 1)
say "$block is /dev/vdb, $file is the file"; lsscsi -s
[ "$(blockdev --getsize64 "$block")" = "$(blockdev --getsize64 /dev/vdb)" ]
sg_inq "$block"; sg_vpd -p di "$file"

say "/dev/vdb is claimed for as long as it is served"
if mount -t ext4 /dev/vdb /mnt 2>/dev/null; then echo "/dev/vdb could be mounted"; exit 1; fi

use() { # file system, disk, mkfs command…
    kind=$1 disk=$2; shift 2
    say "$kind on $disk: make, fill, log out and in, check, compare"
    "$@" "$disk" >/dev/null
    mkdir -p /mnt/d
    mount_it "$kind" "$disk"
    head -c 40M /dev/urandom > /mnt/d/a
    mkdir /mnt/d/many; for n in $(seq 300); do echo "$n" > /mnt/d/many/$n; done
    cp /mnt/d/a /mnt/d/b; rm /mnt/d/b
    [ "$kind" != xfs ] || fstrim -v /mnt/d
    sum=$(md5sum < /mnt/d/a); umount_it
    logout iqn.2026-11.com.example:disks
    login iqn.2026-11.com.example:disks
    disk=$(iscsi_disk iqn.2026-11.com.example:disks "$LUN")
    case $kind in
        ext4) e2fsck -fn "$disk" ;;
        xfs) xfs_repair -n "$disk" ;;
        ntfs) ntfsfix -n "$disk" ;;
    esac
    mount_it "$kind" "$disk"
    [ "$sum" = "$(md5sum < /mnt/d/a)" ]
    [ "$(cat /mnt/d/many/* | sort -n | tail -1)" = 300 ]
    umount_it
    say "$kind on $disk: same"
}
mount_it() { if [ "$1" = ntfs ]; then ntfs-3g "$2" /mnt/d; else mount -t "$1" "$2" /mnt/d; fi; }
umount_it() { sync; umount /mnt/d; }

LUN=0; use ext4 "$block" mkfs.ext4 -q -F
LUN=1; use xfs "$(iscsi_disk iqn.2026-11.com.example:disks 1)" mkfs.xfs -q -f
LUN=1; use ntfs "$(iscsi_disk iqn.2026-11.com.example:disks 1)" mkfs.ntfs -Q -F

say "trim frees the space of the file"
disk=$(iscsi_disk iqn.2026-11.com.example:disks 1)
dd if=/dev/zero of="$disk" bs=1M count=64 oflag=direct status=none
before=$(stat -c %b /tmp/disk.img); blkdiscard "$disk"; after=$(stat -c %b /tmp/disk.img)
echo "blocks before $before, after $after"; [ "$after" -lt "$before" ]

logout iqn.2026-11.com.example:disks
stop_targetd
say "after the stop /dev/vdb is free again"
mount -t ext4 /dev/vdb /mnt; umount /mnt
