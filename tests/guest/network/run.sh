# In the guest: the kernel's initiator with both digests and two sessions, files being written and compared all the while: the
# network is away for ten seconds, targetd is stopped and started, workers stop answering pings. The file system sees no error,
# and is whole afterwards. And an initiator that vanishes is missed by targetd's own pings: what it reserved is free.
set -e
. /job/common.sh
target=iqn.2026-11.com.example:network
start_targetd /job/targetd.conf
start_iscsid
discover
setting $target node.conn[0].iscsi.HeaderDigest CRC32C
setting $target node.conn[0].iscsi.DataDigest CRC32C
setting $target node.conn[0].timeo.noop_out_interval 2
setting $target node.conn[0].timeo.noop_out_timeout 2

say "two sessions: the same disk twice"
setting $target node.session.nr_sessions 2
login $target
disk=$(iscsi_disk $target 0)
has_disks() { [ "$(ls /sys/class/iscsi_session/session*/device/target*/*/block -d | wc -l)" = "$1" ]; }
eventually 60 has_disks 2
iscsiadm -m session
[ "$(iscsiadm -m session | grep -c $target)" = 2 ]
[ "$(cat /sys/class/iscsi_session/session*/device/target*/*/vpd_pg83 | md5sum | cut -c1-8)" != d41d8cd9 ]
[ "$(md5sum /sys/class/iscsi_session/session*/device/target*/*/vpd_pg83 | cut -d' ' -f1 | sort -u | wc -l)" = 1 ]
iscsiadm -m session -P 1 | grep -c 'iSCSI Session State: LOGGED_IN'

say "make, mount, begin to write"
mkfs.ext4 -q -F "$disk"
mkdir -p /mnt/d /tmp/sums
mount -t ext4 -o errors=remount-ro "$disk" /mnt/d
head -c 2M /dev/urandom > /tmp/data
work() { # writes, asks for it to be on the disk, reads from the disk, compares; round after round
    n=0
    while [ ! -e /tmp/enough ]; do
        n=$((n + 1)) name=/mnt/d/file$((n % 8))
        { echo "round $n"; cat /tmp/data; } > $name || return 1
        sync $name || return 1
        md5sum < $name > /tmp/sums/file$((n % 8)) || return 1
        dd if=$name iflag=nocache count=0 status=none || return 1
        md5sum < $name | cmp - /tmp/sums/file$((n % 8)) || return 1
        echo $n > /tmp/rounds
    done
}
work > /tmp/work.out 2>&1 &
worker=$!
rounds() { cat /tmp/rounds 2>/dev/null || echo 0; }
goes_on() { # at least two more rounds within 60 s
    from=$(rounds)
    for _ in $(seq 600); do
        [ "$(rounds)" -ge $((from + 2)) ] && return 0
        kill -0 $worker 2>/dev/null || { cat /tmp/work.out; echo "the writer has ended"; return 1; }
        sleep 0.1
    done
    echo "no progress after round $from"; iscsiadm -m session -P 3; dmesg | tail -n 30; return 1
}
goes_on

say "ten seconds without a network"
iptables -I INPUT -p tcp --dport 3260 -j DROP
before=$(rounds)
sleep 10
echo "rounds: $before before, $(rounds) at the end"
[ "$(rounds)" -le $((before + 1)) ]
iptables -D INPUT -p tcp --dport 3260 -j DROP
goes_on

say "targetd stops and starts"
stop_targetd
sleep 1
start_targetd /job/targetd.conf
goes_on

say "workers that answer no ping: the initiator misses them, connects again, and they are replaced"
workers=$(sed -n 's/.*(session [0-9]*, worker \([0-9]*\))$/\1/p' /tmp/targetd.log | tail -n 2)
before=$(dmesg | grep -c 'ping timeout' || true)
# shellcheck disable=SC2086
kill -STOP $workers
goes_on
[ "$(dmesg | grep -c 'ping timeout')" -gt "$before" ]
for pid in $workers; do
    for _ in $(seq 300); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
    if kill -0 "$pid" 2>/dev/null; then echo "worker $pid is still there"; exit 1; fi
done
grep 'its session was reinstated and did not end within' /tmp/targetd.log

say "both sessions are back"
for _ in $(seq 300); do
    [ "$(iscsiadm -m session -P 1 | grep -c 'iSCSI Session State: LOGGED_IN')" = 2 ] && break; sleep 0.1
done
[ "$(iscsiadm -m session -P 1 | grep -c 'iSCSI Session State: LOGGED_IN')" = 2 ]

say "the end: the writer met no error, nor did the file system"
touch /tmp/enough
wait $worker || { cat /tmp/work.out; exit 1; }
echo "$(rounds) rounds"
if dmesg | grep -E 'EXT4-fs error|EXT4-fs warning|I/O error|Buffer I/O|Remounting filesystem read-only'; then exit 1; fi
umount /mnt/d
iscsiadm -m node -T $target -p 127.0.0.1:3260 --logout
if iscsiadm -m session 2>/dev/null | grep $target; then echo "still logged in"; exit 1; fi

say "checked and compared, after a new login"
setting $target node.session.nr_sessions 1
login $target
disk=$(iscsi_disk $target 0)
e2fsck -fn "$disk"
mount -t ext4 -o ro "$disk" /mnt/d
for sum in /tmp/sums/*; do md5sum < "/mnt/d/${sum##*/}" | cmp - "$sum"; done
umount /mnt/d
logout $target

say "an initiator vanishes with a reservation: targetd's pings miss it, and the unit is free"
python3 /job/vanish.py reserve > /tmp/vanish.out &
gone=$!
eventually 120 grep reserved /tmp/vanish.out
# logged in before the other one vanishes: in a slow guest a Python that starts then would come too late
python3 /job/vanish.py wait > /tmp/wait.out &
waiting=$!
eventually 120 grep 'the unit is reserved' /tmp/wait.out
iptables -I INPUT -s 127.0.0.2 -j DROP
iptables -I INPUT -d 127.0.0.2 -j DROP
kill -KILL $gone
wait $waiting
cat /tmp/wait.out
grep -E '^[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9:]{8} .*:reserve from 127.0.0.2:.*the initiator did not answer 2 pings' /tmp/targetd.log
grep -E '^[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9:]{8} .*session [0-9]+ of iqn.2026-11.com.example:reserve .* is over' /tmp/targetd.log
stop_targetd
