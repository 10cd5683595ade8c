# For jobs with a long or slow line: the namespaces are those of hosts.sh, which comes before, with a router instead of the bridge.
#   initiator 10.1.0.7 (first namespace) --- 10.1.0.1 router 10.2.0.1 --- 10.2.0.2 server
# Segmentation offload is off, so that each loss is that of one packet.
SERVER=10.2.0.2 CLIENT=10.1.0.7

make_path() {
    modprobe sch_netem
    for each in router server; do
        ip netns add $each
        on $each ip link set lo up
    done
    ip link add outside type veth peer name client netns router
    ip link add eth0 netns server type veth peer name server netns router
    ip link set outside up gso_max_segs 1
    on server ip link set eth0 up gso_max_segs 1
    on router ip link set client up gso_max_segs 1
    on router ip link set server up gso_max_segs 1
    ip address add $CLIENT/24 dev outside
    on router ip address add 10.1.0.1/24 dev client
    on router ip address add 10.2.0.1/24 dev server
    on server ip address add $SERVER/24 dev eth0
    ip route add 10.2.0.0/24 via 10.1.0.1
    on server ip route add default via 10.2.0.1
    on router sysctl -q net.ipv4.ip_forward=1
    sysctl -q net.ipv4.tcp_no_metrics_save=1
    on server sysctl -q net.ipv4.tcp_no_metrics_save=1
}

shape() { # the words of netem, for both directions
    for each in client server; do on router tc qdisc replace dev $each root netem "$@"; done
}
