# In the guest: two SCSI disks that answer NOT READY when they are stopped (scsi_debug). targetd stops them after an idle time, and by
# order of the kernel's initiator, and wakes them for the next access, which the initiator does not notice as an error.
set -e
. /job/common.sh
idle=iqn.2026-11.com.example:idle stop=iqn.2026-11.com.example:stop
targetdctl() { python3 -m targetd.admin.cli "$@"; }
eventually() { # seconds, words…: until the command succeeds
    end=$((SECONDS + $1)); shift
    while ! "$@"; do
        [ $SECONDS -lt $end ] || { echo "not in time: $*"; targetdctl show disks; tail -n 30 /tmp/targetd.log; return 1; }
    done
}
power_has() { targetdctl show disks "$1" | grep -q "$2"; }
counts() { targetdctl --json show disks "$1" | python3 -c 'import json, sys; row = json.load(sys.stdin)[0]; print(row["spin_downs"], row["spin_ups"])'; }
generic() { # disk: its SCSI generic node
    echo "/dev/$(ls "/sys/block/${1#/dev/}/device/scsi_generic")"
}
is_stopped() { # disk: TEST UNIT READY says NOT READY, initializing command required
    ! sg_turs "$1" 2>/dev/null
}

# otherwise udev reads a disk whenever a program that could write it has closed it, and the disk does not stay asleep
mkdir -p /run/udev/rules.d
echo 'SUBSYSTEM=="block", OPTIONS+="nowatch"' > /run/udev/rules.d/99-nowatch.rules
udevadm control --reload
modprobe scsi_debug dev_size_mb=64 num_tgts=3 max_luns=1 add_host=1 delay=0 removable=0 ||
    { echo "no scsi_debug in this kernel"; exit 1; }
udevadm settle
disks=$(grep -l scsi_debug /sys/block/sd*/device/model | sed 's|/sys/block/\(.*\)/device/model|\1|')
set -- $disks
one=$1 two=$2 three=$3
echo "disks: $one $two $three"
echo "0 $((60 * 2048)) linear /dev/$three 0" | dmsetup create volume
sed "s/SDIDLE/$one/; s/SDSTOP/$two/" /job/targetd.conf > /tmp/with-disks.conf
start_targetd /tmp/with-disks.conf
start_iscsid
discover

say "a volume of LVM does not sleep, and the reason is shown"
eventually 60 power_has iqn.2026-11.com.example:never/0 'never sleeps: dm-'
(cd / && python3 -m targetd -t -c /tmp/targetd.conf 2>&1) | grep 'lun 0 of iqn.2026-11.com.example:never does not sleep (spin-down): dm-'

say "START STOP UNIT of the only initiator stops the disk; commands without medium do not wake it"
login $stop
disk=$(iscsi_disk $stop 0)
head -c 1M /dev/urandom > /tmp/data
sg=$(generic "$disk")
dd if=/tmp/data of="$disk" bs=64k oflag=direct status=none
eventually 60 power_has $stop/0 ' awake '
udevadm settle
sg_start --stop "$sg"
eventually 60 power_has $stop/0 'asleep since'
is_stopped "/dev/$two"
for _ in 1 2; do sg_turs "$sg"; sg_inq "$sg" > /dev/null; sg_inq -p 0x83 "$sg" > /dev/null; sg_readcap -l "$sg" > /dev/null; done
sg_luns "$sg" > /dev/null; sg_requests "$sg" > /dev/null; sg_modes "$sg" > /dev/null; sg_sync "$sg"
is_stopped "/dev/$two"
[ "$(counts $stop/0)" = "1 0" ]

say "a read wakes it and has the data; nobody saw an error"
dmesg -C
dd if="$disk" of=/tmp/back bs=64k count=16 iflag=direct status=none
cmp /tmp/data /tmp/back
[ "$(counts $stop/0)" = "1 1" ]
sg_turs "/dev/$two"
if dmesg | grep -iE 'i/o error|medium error|not ready'; then exit 1; fi

say "a write wakes it; so does START; the disk that is written and stopped at the same moment loses nothing"
sg_start --stop "$sg"
eventually 60 power_has $stop/0 'asleep since'
dd if=/tmp/data of="$disk" bs=64k seek=16 oflag=direct conv=fsync,notrunc status=none
[ "$(counts $stop/0)" = "2 2" ]
sg_start --stop "$sg"
eventually 60 power_has $stop/0 'asleep since'
sg_start --start "$sg"
power_has $stop/0 ' awake '
sg_turs "/dev/$two"
for round in 1 2 3; do
    head -c 1M /dev/urandom > /tmp/data
    dd if=/tmp/data of="$disk" bs=4k conv=notrunc status=none &
    writer=$!
    sg_start --stop "$sg"
    wait $writer
    sync
    echo 3 > /proc/sys/vm/drop_caches
    dd if="$disk" of=/tmp/back bs=64k count=16 iflag=direct status=none
    cmp /tmp/data /tmp/back
done
if dmesg | grep -iE 'i/o error|medium error'; then exit 1; fi

say "another initiator uses the disk: it is not stopped"
iscsiadm -m iface -I other --op new
iscsiadm -m iface -I other --op update -n iface.initiatorname -v iqn.2026-11.com.example:other
iscsiadm -m discovery -t sendtargets -p 127.0.0.1:3260 -I other > /dev/null
iscsiadm -m node -T $stop -p 127.0.0.1:3260 -I other --login
before=$(counts $stop/0)
sg_start --stop "$sg"
grep 'stops no disk: iqn.2026-11.com.example:other uses the unit too' /tmp/targetd.log
[ "$(counts $stop/0)" = "$before" ]
sg_turs "/dev/$two"
iscsiadm -m node -T $stop -p 127.0.0.1:3260 -I other --logout

say "an access behind targetd's back: the kernel starts the disk, and targetd notices"
sg_start --stop "$sg"
eventually 60 power_has $stop/0 'asleep since'
dd if="/dev/$two" of=/dev/null bs=64k count=1 iflag=direct status=none
eventually 150 power_has $stop/0 ' awake '
grep 'something else has accessed its disk' /tmp/targetd.log

say "an idle disk sleeps after a minute, although it is asked about its health every 5 seconds, and a session exists"
login $idle
disk=$(iscsi_disk $idle 0)
dd if=/tmp/data of="$disk" bs=64k oflag=direct status=none
eventually 200 power_has $idle/0 'asleep since .*idle for 60 s'
is_stopped "/dev/$one"
sleep 12 # two health intervals: nothing must wake it
is_stopped "/dev/$one"
dd if="$disk" of=/tmp/back bs=64k count=16 iflag=direct status=none
cmp /tmp/data /tmp/back
power_has $idle/0 ' awake '
logout $idle
logout $stop
stop_targetd
dmsetup remove volume
