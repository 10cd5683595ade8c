# For jobs with several hosts: targetd is in the network namespace "server", and a further host in "stranger". The kernel's initiator is in
# the first namespace ("client"), in which alone Linux 6.1 has one. All hosts are at one bridge:
#   server 192.0.2.1 2001:db8:5::1   initiator 192.0.2.7 2001:db8:5::7   stranger 192.0.2.66 2001:db8:66::66
# They outlast the commands: the guest ends with the job.
SERVER=192.0.2.1 CLIENT=192.0.2.7 STRANGER=192.0.2.66

on() { # host, command
    host=$1; shift
    nsenter --net="/run/netns/$host" -- "$@"
}

make_hosts() {
    ip link add outside type bridge
    ip address add $CLIENT/24 dev outside
    ip address add 2001:db8:5::7/64 dev outside nodad
    ip link set outside up
    for each in server stranger; do
        ip netns add $each
        ip link add "to-$each" type veth peer name eth0 netns $each
        ip link set "to-$each" master outside up
        on $each ip link set lo up
        on $each ip link set eth0 up
    done
    on server ip address add $SERVER/24 dev eth0
    on server ip address add 2001:db8:5::1/64 dev eth0 nodad
    on stranger ip address add $STRANGER/24 dev eth0
    on stranger ip address add 2001:db8:66::66/64 dev eth0 nodad
    on server ip route add 2001:db8:66::/64 dev eth0
    on stranger ip route add 2001:db8:5::/64 dev eth0
    touch /run/netns/client # a name for the first namespace, too
    mount --bind /proc/self/ns/net /run/netns/client
}

move_client() { # its address is another one
    ip address del $CLIENT/24 dev outside
    CLIENT=192.0.2.8
    ip address add $CLIENT/24 dev outside
}

start_server() { # configuration: targetd on the host "server"
    mkdir -p /tmp/state
    cp "$1" /tmp/targetd.conf; chmod 600 /tmp/targetd.conf
    trap 'status=$?; [ $status = 0 ] || { say "log of targetd"; tail -n 20 /tmp/targetd.log; }; exit $status' EXIT
    (cd / && on server python3 -m targetd -c /tmp/targetd.conf)
}

attempts() { python3 /job/attempts.py; } # lines on standard input

begin_load() { # disk, and the medium of the target if the writes are to be durable
    rm -f /tmp/enough /tmp/rounds
    python3 /job/steady_load.py "$@" > /tmp/load.out 2>&1 &
    load=$!
    goes_on
}

rounds() { cat /tmp/rounds 2>/dev/null || echo 0; }

goes_on() { # at least three more rounds of the load within 90 s
    from=$(rounds)
    for _ in $(seq 900); do
        [ "$(rounds)" -ge $((from + 3)) ] && return 0
        kill -0 $load 2>/dev/null || { cat /tmp/load.out; echo "the load has ended"; exit 1; }
        sleep 0.1
    done
    echo "no progress after round $from"; iscsiadm -m session -P 3; dmesg | tail -n 30; exit 1
}

seconds_since() { python3 -c "import sys, time; print('%.1f' % (time.time() - float(sys.argv[1])))" "$1"; }

recovers() { # what has ended: a further round is complete within 120 s
    since=$(date +%s.%N) from=$(rounds)
    for _ in $(seq 1200); do
        if [ "$(rounds)" -gt "$from" ]; then
            echo "TIME $1: the next round was complete after $(seconds_since "$since") s"
            goes_on
            return 0
        fi
        kill -0 $load 2>/dev/null || { cat /tmp/load.out; echo "the load has ended"; exit 1; }
        sleep 0.1
    done
    echo "no progress after: $1"; iscsiadm -m session -P 3; dmesg | tail -n 30; exit 1
}

finish_load() { # no command of the load failed, and the data that was read was that which had been written
    touch /tmp/enough
    wait $load || { cat /tmp/load.out; exit 1; }
    cat /tmp/load.out
}

end_load() { # the same, and the kernel has reported no error
    finish_load
    if dmesg | grep -E 'I/O error|Buffer I/O'; then exit 1; fi
}

begin_capture() { # host, interface, file
    # shellcheck disable=SC2024
    on "$1" tcpdump -i "$2" -s 0 -U -Z root -w "$3" > "$3.out" 2>&1 &
    echo $! > "$3.pid"
    for _ in $(seq 100); do grep -q 'listening on' "$3.out" && return 0; sleep 0.1; done
    cat "$3.out"; exit 1
}

end_capture() { # file
    kill "$(cat "$1.pid")"
    wait "$(cat "$1.pid")" || true
}

names_in() { grep -a -o 'iqn\.' "$1" | wc -l; } # file

has_no_names() { # capture of the outer interface, capture within the tunnel: the same traffic; the first without iSCSI names
    size=$(stat -c %s "$1")
    echo "outside: $size bytes, $(names_in "$1") names; within: $(stat -c %s "$2") bytes, $(names_in "$2") names"
    [ "$size" -gt 1000000 ]
    [ "$(names_in "$1")" = 0 ]
    [ "$(names_in "$2")" -gt 0 ]
}

logins() { grep -c "guest:initiator .* logged in to $1" /tmp/targetd.log || true; } # target: those of the kernel's initiator
