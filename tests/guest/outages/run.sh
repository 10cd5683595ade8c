# In the guest: what happens to the line while the kernel's initiator writes, reads and compares, and how long it takes until the next
# round is complete. No command fails. With the argument "all" the outages are long and the initiator's settings those as shipped
# (python3 -m tests.longrun outages).
set -e
. /job/common.sh
. /job/hosts.sh
. /job/path.sh
disk=iqn.2026-11.com.example:disk booting=iqn.2026-11.com.example:booting
away=6
[ "${1:-}" = all ] && away=30
say "start"
make_path
shape limit 1000 delay 10ms
ip link add vpn type gre local $CLIENT remote $SERVER
on server ip link add vpn type gre local $SERVER remote $CLIENT
ip address add 10.9.0.7/24 dev vpn
on server ip address add 10.9.0.2/24 dev vpn
ip link set vpn up
on server ip link set vpn up
start_server /job/targetd.conf
wait_tcp $SERVER 3260 60
start_iscsid
T=$SERVER:3260 discover
T=10.9.0.2:3260 discover
if [ $away != 30 ]; then
    for each in noop_out_interval noop_out_timeout; do
        iscsiadm -m node -T $disk -o update -n "node.conn[0].timeo.$each" -v 2
    done
fi

is_away() { # the seconds: the load does not go on
    before=$(rounds)
    sleep "$1"
    [ "$(rounds)" -le $((before + 1)) ]
}

resumes() { # what has ended
    recovers "$1"
    echo "$(logins $disk) logins"
}

begin() { # address
    iscsiadm -m node -T $disk -p "$1:3260" --login
    begin_load "$(iscsi_disk $disk 0)"
}

end() { # address
    end_load
    iscsiadm -m node -T $disk -p "$1:3260" --logout
}

say "no network"
begin $SERVER
shape limit 1000 loss 100%
is_away $away
shape limit 1000 delay 10ms
resumes "$away s without a network"

say "a firewall that drops"
on server iptables -I INPUT -p tcp --dport 3260 -j DROP
is_away $((away * 2 / 3))
on server iptables -F INPUT
resumes "$((away * 2 / 3)) s of DROP"

if [ $away = 30 ]; then
    say "a firewall that rejects"
    on server iptables -I INPUT -p tcp --dport 3260 -j REJECT --reject-with tcp-reset
    is_away 20
    on server iptables -F INPUT
    resumes "20 s of REJECT"
fi

say "the initiator's address changes"
ip address del $CLIENT/24 dev outside
ip address add 10.1.0.8/24 dev outside
ip route replace 10.2.0.0/24 via 10.1.0.1
resumes "another address of the initiator"
grep "guest:initiator from 10.1.0.8:.* logged in to $disk" /tmp/targetd.log
ip address add $CLIENT/24 dev outside
end $SERVER

say "a VPN that is dropped"
begin 10.9.0.2
ip link set vpn down
is_away $away
ip link set vpn up
resumes "$away s without the VPN"
end 10.9.0.2

say "an initiator that reboots amid writes, without a FIN"
boot() { # the host "booting" comes up with its address
    ip netns add booting
    ip link add booting netns router type veth peer name eth0 netns booting
    on router ip link set booting up
    on router ip address add 10.3.0.1/24 dev booting
    on booting ip link set eth0 up
    on booting ip address add 10.3.0.7/24 dev eth0
    on booting ip route add default via 10.3.0.1
}
boot
on booting python3 /job/booting.py $booting write > /tmp/booting.out 2>&1 &
process=$!
for _ in $(seq 300); do grep -q writing /tmp/booting.out && break; sleep 0.1; done
grep writing /tmp/booting.out
on router ip link del booting
kill -KILL $process
ip netns del booting
boot
on booting python3 /job/booting.py $booting verify
for _ in $(seq 100); do grep -q "with $booting is over" /tmp/targetd.log && break; sleep 0.1; done
grep "with $booting is over" /tmp/targetd.log | head -n 1
stop_targetd
