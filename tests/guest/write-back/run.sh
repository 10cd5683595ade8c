# In the guest: disks of which blocks begin to fail (dm-error, dm-flakey) while commands are on their way. Each kind of durable
# command is sent by 3 sessions, some by 1 and 8. No command that was answered GOOD may be missing on the disk below, and the LUN fails in all
# sessions.
#
# Argument: "all" for each kind with 1, 3 and 8 sessions: python -m tests.longrun write-back
set -e
. /job/common.sh
python3 /job/run_suite.py configure /job/targetd.conf > /tmp/job.conf
say "the disks"
python3 /job/run_suite.py tables | while read -r name table; do printf "%b\n" "$table" | dmsetup create "$name" --noudevsync; done
udevadm settle
say "start"
start_targetd /tmp/job.conf
say "commands"
python3 /job/run_suite.py run "${1:-some}"
stop_targetd
