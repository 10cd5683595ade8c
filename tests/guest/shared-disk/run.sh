# In the guest: two servers for one disk of the kernel, whose reservations are their fence. The disk is that of an array, a third targetd;
# the kernel's initiator is logged in to it with two names, as two hosts would be, and each server has the disk of one of them. Small
# initiators write to the pair, while the active server is killed, stopped and continued, or goes on, and the other one takes over.
set -e
. /job/common.sh
array=iqn.2026-11.com.example:array
after_failure() { # what is last is shown
    say "log of the array"; tail -n 10 /tmp/targetd.log
    say "what was wrong"; tail -n 25 /tmp/takeovers.out
}
say "the array, and its disk in two hosts"
modprobe sg
start_targetd /job/targetd.conf
start_iscsid
discover_twice
for each in "session.timeo.replacement_timeout 600" "conn[0].timeo.noop_out_interval 30" "conn[0].timeo.noop_out_timeout 120"; do
    setting $array "node.${each% *}" "${each#* }" # the guest is slow, and may not lose the disk because of it
done
login $array
first=$(disk $array iqn.2024-01.guest:initiator 0) second=$(disk $array iqn.2024-01.guest:second 0)
echo "the first server has $first, the second one $second"
[ "$first" != "$second" ]
[ "$(cat "/sys/block/${first#/dev/}/device/wwid")" = "$(cat "/sys/block/${second#/dev/}/device/wwid")" ]
lsscsi -g || true
sg_persist --in --report-capabilities --readonly "$first"

say "takeovers"
set -o pipefail
failed=
TARGETD_TEST_PATIENCE=4 python3 -u /job/takeovers_on_disk.py "$first" "$second" /tmp/array.img 2>&1 | tee /tmp/takeovers.out || failed=1
say "what the kernel says"
dmesg | tail -n 60
control show units
control reservation show
[ -z "$failed" ]
if grep -i error /tmp/targetd.log; then exit 1; fi
logout $array
stop_targetd
