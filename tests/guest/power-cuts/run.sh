# In the guest: everything that reaches the medium is recorded by the device mapper's log-writes target,
# with a mark for each moment at which the initiator was told that data is durable. Then the power is
# cut, on paper, after every record and amid the group of writes that a flush covers: no block may be
# older than what was acknowledged as durable by then.
#
# Arguments: how many commands each load sends (250), how many cuts amid a group are tried (200), the seed of both (11). A long
# run: python -m tests.longrun power-cuts
set -e
commands=${1:-250} cuts=${2:-200} seed=${3:-11}
. /job/common.sh
modprobe dm-log-writes
size=$(blockdev --getsz /dev/vdb)

record() { # begins a new record
    dd if=/dev/zero of=/dev/vdc bs=1M count=1 conv=fsync status=none
    dmsetup create recorded --table "0 $size log-writes /dev/vdb /dev/vdc"
    udevadm settle
}

judge() { # name of the load
    stop_targetd
    dmsetup remove recorded
    python3 /job/replay_record.py /dev/vdc "/tmp/$1.json" "$cuts" "$seed"
    if python3 /job/replay_record.py /dev/vdc "/tmp/$1.json" "$cuts" "$seed" --lose-what-flushes-cover 2>/tmp/found; then
        echo "a medium that loses what flushes cover was not noticed"; exit 1
    fi
    grep 'was acknowledged as durable' /tmp/found
}

for load in cached durable; do
    say "load: $load"
    record
    sed "s/^  write-cache = .*/  write-cache = $([ $load = durable ] && echo off || echo on)/" /job/targetd.conf > /tmp/job.conf
    start_targetd /tmp/job.conf
    python3 /job/versioned_load.py "$load" "/tmp/$load.json" "$commands" "$seed"
    judge "$load"
done
