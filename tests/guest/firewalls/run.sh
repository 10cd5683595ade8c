# In the guest: the firewall files of etc/firewall, as they are, on the server's host. Their addresses are those of hosts.sh, so
# that the initiator is admitted and the stranger is not. The kernel's initiator writes and compares all the while.
set -e
. /job/common.sh
. /job/hosts.sh
say "start"
install_packages
any=iqn.2026-11.com.example:any disk=iqn.2026-11.com.example:disk
rules=/src/etc/firewall
make_hosts
ip address add 192.0.2.8/24 dev outside
start_server /job/targetd.conf
start_iscsid
T=$SERVER:3260 discover
iscsiadm -m node -T $disk -p $SERVER:3260 --login
begin_load "$(iscsi_disk $disk 0)"
on server nc -l -k $SERVER 22 & # another service of the host

is_open() { # nothing is filtered
    echo "stranger in $SERVER 3260 $any" | attempts
}

is_closed() { # for the stranger; other ports are not. The outcome of an attempt of the stranger
    attempts <<- END
	here in $SERVER 3260 $any
	here in 2001:db8:5::1 3260 $any
	stranger $1 $SERVER 3260 $any
	stranger $1 2001:db8:5::1 3260 $any
	END
    on stranger nc -z -w 5 $SERVER 22
    on stranger ping -q -c 1 -W 5 $SERVER > /dev/null
}

is_limited() { # 20 at once, and then one for every three seconds; the other address is not concerned
    read -r accepted seconds <<< "$(python3 /job/knock.py 192.0.2.8 $SERVER 3260)"
    echo "$accepted of 40 connections were accepted in $seconds s"
    [ "$accepted" -ge 15 ] && [ "$accepted" -le $((22 + seconds / 3)) ]
    echo "here in $SERVER 3260 $any" | attempts
}

say "without rules"
is_open

say "nftables"
on server nft -f $rules/targetd.nft
is_closed silent
is_limited
on server nft -f $rules/targetd.nft
[ "$(on server nft list tables | wc -l)" = 2 ]
is_closed silent
on server nft delete element ip targetd clients '{ 192.0.2.0/28 }'
echo "here silent $SERVER 3260 $any" | attempts
goes_on # a session outlasts that its address is taken off the set
on server nft delete table ip targetd
on server nft delete table ip6 targetd
is_open

say "iptables-legacy"
mkdir -p /tmp/legacy
for each in iptables ip6tables; do
    for more in '' -restore; do ln -sf /usr/sbin/$each-legacy$more /tmp/legacy/$each$more; done
done
legacy() { on server env PATH="/tmp/legacy:$PATH" $rules/targetd-iptables "$@"; }
legacy start
is_closed silent
is_limited
legacy start
[ "$(on server iptables-legacy -S INPUT | grep -c TARGETD)" = 1 ]
is_closed silent
legacy stop
[ "$(on server iptables-legacy -S | grep -c TARGETD)" = 0 ]
[ "$(on server ip6tables-legacy -S | grep -c TARGETD)" = 0 ]
is_open

say "the session is that of the beginning"
goes_on
[ "$(logins $disk)" = 1 ]
end_load
iscsiadm -m node -T $disk -p $SERVER:3260 --logout
stop_targetd
