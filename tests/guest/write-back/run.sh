# In the guest: disks whose middle fails (dm-error) or does not take writes (dm-flakey), one for each kind of durable command and
# number of sessions. No command that was answered GOOD may be missing on the disk below, and each LUN fails in all sessions.
set -e
. /job/common.sh
python3 /job/run_suite.py configure /job/targetd.conf > /tmp/job.conf
say "60 disks"
python3 /job/run_suite.py tables | while read -r name table; do printf "%b\n" "$table" | dmsetup create "$name" --noudevsync; done
udevadm settle
say "start"
start_targetd /tmp/job.conf
say "commands"
python3 /job/run_suite.py run
targetdctl() { python3 -m targetd.admin.cli "$@"; }
targetdctl show units
kill -TERM "$(cat /run/targetd.pid)"
for _ in $(seq 600); do [ -e /run/targetd.pid ] || break; sleep 0.1; done
[ ! -e /run/targetd.pid ]
if grep -q Traceback /tmp/targetd.log; then exit 1; fi
