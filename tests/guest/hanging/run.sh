# In the guest: a disk whose every access waits (a suspended device). targetd starts, serves the other disk, is reloaded and stops
# all the while; when the disk answers again, its target comes up by itself.
set -e
. /job/common.sh
well=iqn.2026-11.com.example:well hanging=iqn.2026-11.com.example:hanging
size=$(blockdev --getsz /dev/vdb)
dmsetup create hanging --table "0 $size linear /dev/vdb 0"
udevadm settle
suspend() { dmsetup suspend --noflush --nolockfs hanging; }
targetdctl() { python3 -m targetd.admin.cli "$@"; }
write() { # target, megabytes: through the initiator, to the disk's cache on the host
    login $1
    dd if=/dev/urandom of="$(iscsi_disk $1 0)" bs=1M count=$2 oflag=direct status=none
    logout $1
}

say "start with a disk that hangs"
suspend
start_targetd /job/targetd.conf
start_iscsid
discover
grep 'lun 0 of iqn.2026-11.com.example:hanging is not served until its medium is available.*no answer within 10 seconds' /tmp/targetd.log
write $well 2

say "the other disk goes on while the first is looked for again"
for _ in 1 2 3; do time write $well 1; sleep 3; done 2>&1 | grep real

say "a reload with a change"
sed -i 's/^stop-timeout = 2/stop-timeout = 3/' /tmp/targetd.conf
targetdctl reload
targetdctl show units

say "it answers again, and is served"
dmsetup resume hanging
for _ in $(seq 400); do grep -q 'lun 0 of iqn.2026-11.com.example:hanging is available now' /tmp/targetd.log && break; sleep 0.1; done
write $hanging 4

say "it hangs again, with data that is not on it yet, and a worker waits for it: the stop says so, and ends"
login $hanging
disk=$(iscsi_disk $hanging 0)
suspend
dd if=/dev/urandom of="$disk" bs=1M count=1 oflag=direct status=none
sg_sync "$disk" &
for _ in $(seq 100); do ps -eLo stat,comm | grep -E '^D.*targetd-worker' && break; sleep 0.1; done
ps -eLo stat,comm | grep -E '^D.*targetd-worker'
begin=$(date +%s)
kill -TERM "$(cat /run/targetd.pid)"
while [ -e /run/targetd.pid ] && [ $(($(date +%s) - begin)) -lt 100 ]; do sleep 0.5; done
grep 'could NOT be flushed: there was no answer within 30 seconds' /tmp/targetd.log
grep "unit $well/0 is flushed" /tmp/targetd.log
echo "$(($(date +%s) - begin)) seconds"
[ ! -e /run/targetd.pid ]
if grep -q Traceback /tmp/targetd.log; then exit 1; fi

say "another targetd serves the other disk meanwhile"
start_targetd /job/targetd.conf
write $well 1
dmsetup resume hanging
is_available() { [ "$(grep -c 'lun 0 of iqn.2026-11.com.example:hanging is available now' /tmp/targetd.log)" = 2 ]; }
for _ in $(seq 400); do is_available && break; sleep 0.1; done
is_available
wait
login $hanging || true # the initiator may have come back by itself

say "the outcome of the last flush is not known, so the unit has failed until the administrator has looked at it"
if dd if=/dev/urandom of="$(iscsi_disk $hanging 0)" bs=64k count=1 oflag=direct status=none; then exit 1; fi
targetdctl acknowledge $hanging/0
dd if=/dev/urandom of="$(iscsi_disk $hanging 0)" bs=1M count=1 oflag=direct status=none
logout $hanging
stop_targetd
