# In the guest: targetd on the interface of a WireGuard tunnel, with the files of etc/wireguard. The kernel's initiator writes and
# compares, while the tunnel goes down and up, the initiator's address changes, and the tunnel is made anew.
set -e
. /job/common.sh
. /job/hosts.sh
any=iqn.2026-11.com.example:any disk=iqn.2026-11.com.example:disk
say "start"
install_packages
make_hosts

say "targetd is there before the tunnel, and waits for it"
start_server /job/targetd.conf
for host in server client; do
    mkdir -p /tmp/$host
    (umask 077; wg genkey > /tmp/$host/wg0.key)
    wg pubkey < /tmp/$host/wg0.key > /tmp/$host/public
done
tunnel_file() { # host, the other one
    sed "s|PUBLIC-KEY-OF-THE-.*|$(cat "/tmp/$2/public")|; s|/etc/wireguard/|/tmp/$1/|" "/src/etc/wireguard/$1.conf" > "/tmp/$1/wg0.conf"
    chmod 600 "/tmp/$1/wg0.conf"
}
tunnel_file server client
tunnel_file client server
on server wg-quick up /tmp/server/wg0.conf
wg-quick up /tmp/client/wg0.conf
wait_tcp 10.9.0.1 3260 60

say "the initiator logs in through the tunnel"
begin_capture server eth0 /tmp/outside
begin_capture server wg0 /tmp/within
start_iscsid
T=10.9.0.1:3260 discover
iscsiadm -m node -T $disk -p 10.9.0.1:3260 --login
begin_load "$(iscsi_disk $disk 0)"

say "who has no key of the server does not get in: not outside the tunnel, and not with a key that the server does not know"
on stranger ip route add 10.9.0.1/32 via $SERVER
mkdir -p /tmp/stranger
(umask 077; wg genkey > /tmp/stranger/wg0.key)
on stranger ip link add wg0 type wireguard
on stranger wg set wg0 private-key /tmp/stranger/wg0.key peer "$(cat /tmp/server/public)" endpoint $SERVER:51820 allowed-ips 10.9.0.9/32
on stranger ip address add 10.9.0.3/24 dev wg0
on stranger ip link set wg0 up
on stranger ip address add 10.9.0.9/32 dev lo
attempts << END
here in 10.9.0.1 3260 $any
stranger refused $SERVER 3260 $any
stranger refused 10.9.0.1 3260 $any from=$STRANGER
END
on stranger wg set wg0 peer "$(cat /tmp/server/public)" allowed-ips 10.9.0.1/32
on stranger ip route del 10.9.0.1/32
echo "stranger silent 10.9.0.1 3260 $any" | attempts
grep -c "logged in to $any" /tmp/targetd.log | grep -x 1

say "the initiator's address changes: the session goes on, it is the same one"
move_client
goes_on
on server wg show wg0 endpoints | grep 192.0.2.8
[ "$(logins $disk)" = 1 ]

say "the tunnel is down for five seconds: the same session goes on"
ip link set wg0 down
sleep 5
ip link set wg0 up
ip route replace 10.9.0.1/32 dev wg0
goes_on
[ "$(logins $disk)" = 1 ]
end_capture /tmp/outside
end_capture /tmp/within
has_no_names /tmp/outside /tmp/within

say "the server's tunnel is made anew: targetd listens again, and the initiator logs in again"
on server wg-quick down /tmp/server/wg0.conf
before=$(rounds)
sleep 8
[ "$(rounds)" -le $((before + 1)) ]
on server wg-quick up /tmp/server/wg0.conf
goes_on
echo "here in 10.9.0.1 3260 $any" | attempts

end_load
iscsiadm -m node -T $disk -p 10.9.0.1:3260 --logout
stop_targetd
