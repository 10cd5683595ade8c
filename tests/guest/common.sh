# For jobs in the guest: targetd from /src, and the initiator's daily commands.
# /src is read-only: without a place for the compiled files each command compiles all modules, which takes seconds here. The test
# has compiled them already.
export PYTHONPATH=/src PYTHONPYCACHEPREFIX=/tmp/compiled
if [ -d /compiled ]; then PYTHONPYCACHEPREFIX=/compiled; fi
TARGETD_CONF=

start_targetd() { # configuration
    TARGETD_CONF=$1
    mkdir -p /tmp/state
    cp "$1" /tmp/targetd.conf; chmod 600 /tmp/targetd.conf
    (cd / && python3 -m targetd -c /tmp/targetd.conf)
    trap 'status=$?; [ $status = 0 ] || after_failure; exit $status' EXIT
    wait_tcp 127.0.0.1 3260 30
}

after_failure() { # a suspended device would keep the guest from ending
    say "log of targetd"; tail -n 60 /tmp/targetd.log
    dmsetup ls --target linear 2>/dev/null | while read -r name _; do dmsetup resume "$name" || true; done
}

stop_process() { # file with its process id
    pid=$(cat "$1")
    kill -TERM "$pid"
    for _ in $(seq 300); do kill -0 "$pid" 2>/dev/null || return 0; sleep 0.1; done
    echo "the process of $1 did not stop within 30 s"; exit 1
}

stop_targetd() {
    stop_process /run/targetd.pid
    if grep -q Traceback /tmp/targetd.log; then tail -n 60 /tmp/targetd.log; exit 1; fi
}

login() { iscsiadm -m node -T "$1" -p 127.0.0.1:3260 --login; }
logout() { iscsiadm -m node -T "$1" -p 127.0.0.1:3260 --logout; }
setting() { iscsiadm -m node -T "$1" -p 127.0.0.1:3260 --op update -n "$2" -v "$3"; }

serve_and_login() { # target: targetd with the configuration of the job, and a session with this target
    start_targetd /job/targetd.conf
    start_iscsid
    discover > /dev/null
    login "$1"
}

control() { (cd / && python3 -m targetd.admin.cli -s /run/targetd.sock "$@"); }
eventually() { # seconds, a command that must succeed in that time
    local seconds=$1 end=$((SECONDS + $1)); shift
    until "$@" > /dev/null 2>&1; do
        if [ $SECONDS -ge $end ]; then echo "not within $seconds s: $*"; "$@"; return; fi
        sleep 0.1
    done
}

discover_twice() { # as two initiators: iqn.2024-01.guest:initiator and iqn.2024-01.guest:second
    iscsiadm -m iface -I second -o new
    iscsiadm -m iface -I second -o update -n iface.initiatorname -v iqn.2024-01.guest:second
    iscsiadm -m discovery -t st -p "$T" -I default -I second # one command for both: else the records of the first one are replaced
}

disk() { # target, initiator's name, LUN: waits for and prints its /dev/sdX
    for _ in $(seq 200); do
        for session in /sys/class/iscsi_session/session*; do
            [ "$(cat "$session"/targetname "$session"/initiatorname)" = "$1"$'\n'"$2" ] || continue
            for found in "$session"/device/target*/*:"$3"/block/*; do
                [ -b "/dev/${found##*/}" ] && [ -d "${found%/block/*}/scsi_generic" ] && echo "/dev/${found##*/}" && return 0
            done
        done
        sleep 0.1
    done
    return 1
}

write_and_compare() { # target: 4 MiB on its LUN 0, past the guest's cache
    disk=$(iscsi_disk "$1" 0)
    head -c 4M /dev/urandom > /tmp/data
    dd if=/tmp/data of="$disk" bs=64k oflag=direct conv=fsync status=none
    dd if="$disk" of=/tmp/back bs=64k count=64 iflag=direct status=none
    cmp /tmp/data /tmp/back
}

install_packages() { # those that the job's file "packages" lists; no maintainer script is run
    for each in /job/debs/*.tar; do tar -C / --keep-directory-symlink -xf "$each"; done
    ldconfig
}
