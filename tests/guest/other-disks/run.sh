# In the guest: a disk that has become another one under the same name, disks that this host's LVM, RAID and fstab count on, and a
# volume group that an initiator made: who is served, who is refused with which remedy, and what the log says once.
set -e
. /job/common.sh
b=iqn.2026-11.com.example:b c=iqn.2026-11.com.example:c
targetdctl() { python3 -m targetd.admin.cli "$@"; }
served() { targetdctl show units > /tmp/units; grep "$1" /tmp/units | grep -q ' ready '; }
times() { [ "$(grep -c -- "$2" /tmp/targetd.log)" = "$1" ]; }
without_c() { sed "/^\[target $c\]/,\$d" /job/targetd.conf > /tmp/targetd.conf; targetdctl reload > /dev/null; }
with_c() { cp /job/targetd.conf /tmp/targetd.conf; targetdctl reload > /tmp/reload.out 2>&1; }
refused() { # reason: the reload that would serve /dev/vdc says it, and changes nothing
    if with_c; then cat /tmp/reload.out; exit 1; fi
    grep -- "$1" /tmp/reload.out || { cat /tmp/reload.out; exit 1; }
}

say "two linear devices of unlike sizes: /dev/served is the one, then the other"
dmsetup create one --uuid one-1 --table "0 204800 linear /dev/vdb 0"
dmsetup create two --uuid two-2 --table "0 409600 linear /dev/vdb 204800"
ln -s /dev/mapper/one /dev/served
start_targetd /job/targetd.conf > /dev/null 2>&1
served $b; served $c
times 2 'served for the first time; its content: no known format'
stop_targetd
ln -sfn /dev/mapper/two /dev/served
start_targetd /job/targetd.conf > /dev/null 2>&1
times 2 'served for the first time'
grep "/dev/served is another disk than before.*targetdctl accept $b/0" /tmp/targetd.log
served $c
if served $b; then exit 1; fi
targetdctl accept $b/0
eventually 60 served $b
times 3 'served for the first time'

say "a disk on which an initiator created a volume group is served, with a warning"
start_iscsid
discover; login $c; disk=$(iscsi_disk $c 0)
only="--config devices{filter=[\"a|$disk|\",\"r|.*|\"]}"       # a separate initiator does not see /dev/vdc
pvcreate -q -f -y $only "$disk"; vgcreate -q $only clients "$disk"
rm -f /etc/lvm/backup/clients                  # they belong to the initiator, which is another host
logout $c
without_c
with_c
served $c
grep 'LVM physical volume.*If an initiator created that' /tmp/targetd.log
targetdctl disks | grep vdc | grep 'LVM physical volume'
(cd / && python3 -m targetd -t -c /tmp/targetd.conf) 2>&1 | grep 'LVM2_member'

say "a volume group of this host, not active"
without_c
vgcfgbackup -q clients
refused "is a physical volume of the volume group clients of this host.*allow-in-use"
sed 's|backing-store = /dev/vdc|&\nallow-in-use = yes|' /job/targetd.conf > /tmp/targetd.conf
targetdctl reload
served $c
without_c
vgremove -q -f -y clients; pvremove -q -y /dev/vdc; wipefs -qa /dev/vdc

say "a member of an array of this host, stopped"
mdadm --create /dev/md/own --run --level=1 --raid-devices=2 --metadata=1.2 /dev/vdc missing; mdadm --stop /dev/md/own
refused 'is a member of the array own, which this host created'
for _ in $(seq 10); do mdadm --zero-superblock /dev/vdc && break; mdadm --stop --scan; sleep 1; done    # udev may have it again

say "a file system in fstab, not mounted"
mkfs.ext4 -q -F /dev/vdc; udevadm settle
echo "UUID=$(blkid -s UUID -o value /dev/vdc) /data ext4 defaults 0 2" >> /etc/fstab
refused '/dev/vdc is listed in /etc/fstab to be mounted on /data'
sed -i '/\/data/d' /etc/fstab
with_c
served $c
stop_targetd
