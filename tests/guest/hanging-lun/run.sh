# In the guest: one session with a LUN on a suspended device and a healthy LUN. The healthy one goes on, task management is answered,
# the session can be ended, and targetd can be stopped, while threads of the worker are in uninterruptible sleep.
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
worker=$(pgrep -o targetd-worker || true)

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
within 10 targetdctl reload
[ "$(targetdctl show sessions | grep -c "$target")" = 1 ]
grep 'session 2' /tmp/targetd.log && exit 1
dmsetup resume hanging
wait
logged 'the aborted commands have returned' 20

say "the session ends although its worker cannot, and the initiator comes back"
suspend
dd if=/dev/urandom of="$hanging" bs=4k count=1 oflag=direct status=none &
sleep 2
tsih=$(targetdctl show sessions | awk -v t="$target" '$0 ~ t { print $1; exit }')
targetdctl end "$tsih"
logged "session $tsih of .* is over" 15
for _ in $(seq 300); do [ "$(grep -c ' logged in to ' /tmp/targetd.log)" -ge 2 ] && break; sleep 0.1; done
within 20 healthy
ps -eo stat,comm | grep -E '^D.*targetd' || true

say "the stop does not wait for it"
begin=$(date +%s)
kill -TERM "$(cat /run/targetd.pid)"
for _ in $(seq 700); do [ -e /run/targetd.pid ] || break; sleep 0.1; done
[ ! -e /run/targetd.pid ]
echo "$(($(date +%s) - begin)) seconds"
if grep -q Traceback /tmp/targetd.log; then exit 1; fi
dmsetup resume hanging
for _ in $(seq 100); do pgrep targetd-worker > /dev/null || break; sleep 0.1; done
if pgrep targetd-worker; then exit 1; fi

say "it starts again, and the LUN is served"
start_targetd /job/targetd.conf
for _ in $(seq 100); do [ "$(targetdctl show sessions | grep -c "$target")" = 1 ] && break; sleep 0.1; done
wait
within 60 healthy
stop_targetd
