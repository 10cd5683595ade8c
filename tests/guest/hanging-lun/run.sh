# In the guest: one session with a LUN on a suspended device and a healthy LUN. The healthy one goes on, task management is answered,
# and the session can be ended, while threads of the worker are in uninterruptible sleep. The job "hanging" has the ordered stop.
set -e
. /job/common.sh
target=iqn.2026-11.com.example:both
size=$(blockdev --getsz /dev/vdb)
dmsetup create hanging --table "0 $size linear /dev/vdb 0"
udevadm settle
suspend() { dmsetup suspend --noflush --nolockfs hanging; }
targetdctl() { python3 -m targetd.admin.cli "$@"; }
logged() { # expression, seconds
    for _ in $(seq $(($2 * 10))); do grep -q "$1" /tmp/targetd.log && return; sleep 0.1; done
    echo "not logged within $2 seconds: $1"; exit 1
}
within() { # seconds, command...
    limit=$1; shift; begin=$(date +%s); "$@"; took=$(($(date +%s) - begin))
    echo "$took seconds: $*"
    [ $took -le $limit ] || { echo "more than $limit seconds"; exit 1; }
}
healthy() { dd if=/dev/urandom of="$healthy" bs=64k count=16 oflag=direct status=none; dd if="$healthy" of=/dev/null bs=64k count=16 iflag=direct status=none; }
start_targetd /job/targetd.conf
start_iscsid
discover
login $target
hanging=$(iscsi_disk $target 0) healthy=$(iscsi_disk $target 1)
healthy

say "reads of the hanging LUN wait, the healthy LUN goes on"
suspend
for n in 1 2 3 4; do dd if="$hanging" of=/dev/null bs=4k count=1 skip=$((n * 1000)) iflag=direct status=none & done
sleep 1
within 10 healthy
logged 'the medium does not answer: READ' 20
targetdctl show units | grep 'hanging since'

say "a reset of the LUN is answered, and the session goes on"
within 6 sg_reset --no-escalate --device "$hanging"
within 10 healthy
dmsetup resume hanging
wait
logged 'answers the commands of' 20

say "a write that hangs: after the reset everyone gets BUSY until it returns"
suspend
dd if=/dev/urandom of="$hanging" bs=4k count=1 oflag=direct status=none &
sleep 2
within 6 sg_reset --no-escalate --device "$hanging"
logged 'aborted command of worker .* has not returned' 10
targetdctl show units | grep 'busy until an aborted write returns'
within 10 healthy
within 60 targetdctl reload # the device does not answer before it is resumed; an emulated guest is slow
[ "$(targetdctl show sessions | grep -c "$target")" = 1 ]
[ "$(grep -c "logged in to $target" /tmp/targetd.log)" = 1 ]
dmsetup resume hanging
wait
logged 'the aborted commands have returned' 20

say "the session ends although its worker cannot, and the initiator comes back"
suspend
dd if=/dev/urandom of="$hanging" bs=4k count=1 oflag=direct status=none &
sleep 2
targetdctl end "$(targetdctl show sessions | awk -v t="$target" '$0 ~ t { print $1; exit }')"
logged "session .* with $target is over" 15
logged_twice() { [ "$(grep -c "logged in to $target" /tmp/targetd.log)" -ge 2 ]; }
for _ in $(seq 300); do logged_twice && break; sleep 0.1; done
logged_twice
within 20 healthy
ps -eLo stat,comm | grep -E '^D.*targetd' # a thread of the worker

say "the LUN is served again after the write has returned"
dmsetup resume hanging
wait
within 20 dd if="$hanging" of=/dev/null bs=64k count=16 iflag=direct status=none
logout $target
stop_targetd
for _ in $(seq 100); do pgrep targetd-worker > /dev/null || break; sleep 0.1; done
if pgrep targetd-worker; then exit 1; fi
