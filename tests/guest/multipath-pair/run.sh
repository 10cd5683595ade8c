# In the guest: two servers for one disk, and a path of the kernel's initiator to each, which multipathd joins: that to the server in standby
# is a ghost. The disk is that of an array, a third targetd, in which the initiator is logged in with two names, one for each server: its
# reservations are the fence. The other server takes over, by order, after the first one was put into standby, and after it was killed,
# under a load without an error. Prints how long the load stood still each time, and what the kernel has thought of the paths.
set -e
. /job/common.sh
. /job/hosts.sh
. /job/multipath.sh
array=iqn.2026-11.com.example:array pair=iqn.2026-11.com.example:pair
# shellcheck disable=SC2034
TARGETD_LOGS="/tmp/array.log /tmp/first.log /tmp/second.log"

control_of() { (cd / && python3 -m targetd.admin.cli -s "/run/$1.sock" "${@:2}"); } # server, command
in_state() { control_of "$1" show units | grep -q "$2"; } # server, state
listens() { (exec 3<> "/dev/tcp/$1/3260"); } # address
start_one() { # server, its address
    cp "/job/$1.conf" "/tmp/$1.conf"; chmod 600 "/tmp/$1.conf"
    mkdir -p "/tmp/state-$1"
    (cd / && python3 -m targetd -c "/tmp/$1.conf")
    eventually 240 listens "$2"
}
kill_one() { # server, with all its processes
    python3 -c "
import psutil, sys
master = psutil.Process(int(open(sys.argv[1]).read()))
for each in [master] + master.children(recursive=True):
    each.kill()" "/run/$1.pid"
}
order() { # server, takeover or standby
    echo "[$(cut -d' ' -f1 /proc/uptime)] $1: targetdctl $2"
    since=$(date +%s.%N)
    control_of "$1" "$2" $pair
    echo "TIME $1: $2 was answered after $(seconds_since "$since") s"
}
begin() { # what will be measured
    say "$1"
    goes_on
    rm -f /tmp/longest
}
resumes() { # what was measured, server that is active now
    eventually 240 in_state "$2" ready
    goes_on
    echo "TIME $1: the longest time without a complete round: $(cat /tmp/longest) s"
}
has_ghost() { becomes "$name" '50[active ready] 1[active ghost]'; }
disks_of() { # target: the names of the kernel's disks
    for session in /sys/class/iscsi_session/session*; do
        if [ "$(cat "$session/targetname")" = "$1" ]; then basename -a "$session"/device/target*/*/block/*; fi
    done
}
after_failure() {
    touch /tmp/enough
    after_failed_multipath
    say "timeline"; tail -n 120 /tmp/timeline
    say "multipathd"; tail -n 150 /tmp/multipathd.log
}

say "the array, and its disk in two hosts"
modprobe -a sg dm-multipath
# shellcheck disable=SC2154
trap 'status=$?; [ $status = 0 ] || after_failure; exit $status' EXIT
start_one array 127.0.0.3
start_iscsid
T=127.0.0.3:3260 discover_twice
node $array --login
ln -s "$(disk $array iqn.2024-01.guest:initiator 0)" /dev/disk-first
ln -s "$(disk $array iqn.2024-01.guest:second 0)" /dev/disk-second
ls -l /dev/disk-*

say "two servers, the first one is active"
mkdir -p /tmp/unit-state
start_one first 127.0.0.1
order first takeover
start_one second 127.0.0.2
eventually 240 in_state second 'holds its state'

say "two paths: one active, one ghost"
for address in 127.0.0.1 127.0.0.2; do T=$address:3260 discover; done
set_up_multipath
cat > /etc/multipath/conf.d/array.conf <<END
blacklist {
    device {
        vendor "ARRAY"
        product ".*"
    }
}
END
multipathd -d -v3 > /tmp/multipathd.log 2>&1 &
node $pair --login
eventually 60 knows_paths 2
name=$(/lib/udev/scsi_id -g -u "$(iscsi_disk $pair 0)")
has_ghost
multipath -ll
begin_load "/dev/mapper/$name" /dev/vdb
# shellcheck disable=SC2046
python3 /job/timeline.py "$name" $(disks_of $pair) > /tmp/timeline 2>&1 &

begin "a takeover by order, while the first server serves"
order second takeover
resumes "takeover by order" second
has_ghost

begin "standby first, then the takeover"
order second standby
order first takeover
resumes "standby, then takeover" first
has_ghost

begin "the active server is killed"
kill_one first
order second takeover
resumes killed second

say "the killed server comes back, in standby"
start_one first 127.0.0.1
has_ghost
goes_on

say "the end"
end_multipath_load
say "timeline"; cat /tmp/timeline
say "multipathd"; grep -E 'reinstated|mark as failed|recovery mode|remaining active|priorities changed|checker' /tmp/multipathd.log | uniq -f 3 | tail -n 100
multipath -f "$name"
node $pair --logout
for each in first second; do stop_process /run/$each.pid; done
node $array --logout # its disks are not open any more
stop_process /run/array.pid
# shellcheck disable=SC2086
if grep -h Traceback $TARGETD_LOGS; then exit 1; fi
