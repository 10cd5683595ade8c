# For jobs in which multipathd joins the paths of the kernel's initiator, with the settings of etc/multipath/targetd.conf. hosts.sh comes
# before.
TARGETD_LOGS=/tmp/targetd.log

node() { iscsiadm -m node -T "$1" "${@:2}" > /dev/null; } # target, words
groups() { python3 /job/path_groups.py "$1"; } # name of the multipath device
has_groups() { [ "$(groups "$1")" = "$2" ]; }
knows_paths() { [ "$(multipathd show paths raw format %d | grep -c sd)" = "$1" ]; }

becomes() { # name, its path groups within 120 s
    since=$(date +%s.%N) end=$((SECONDS + 120))
    while ! has_groups "$1" "$2"; do
        if [ $SECONDS -ge $end ]; then groups "$1"; multipath -ll; exit 1; fi
        sleep 0.2
    done
    echo "TIME $2: after $(seconds_since "$since") s"
}

set_up_multipath() {
    mkdir -p /etc/multipath/conf.d
    cp /src/etc/multipath/targetd.conf /etc/multipath/conf.d/
}

end_multipath_load() { # as end_load, but the kernel reports errors of single paths
    finish_load
    if dmesg | grep -E '(I/O error|Buffer I/O).*dev dm-'; then exit 1; fi
}

after_failed_multipath() { # waiting commands would keep the guest from ending
    multipath -ll || true
    multipathd disablequeueing maps || true
    for each in $TARGETD_LOGS; do say "$each"; tail -n 30 "$each"; done
    dmesg | tail -n 40
}
