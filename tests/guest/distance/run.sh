# In the guest: targetd, tgt and LIO at a distance, beside plain TCP through the same path: the kernel's initiator as shipped and with
# window_size = 0, with cubic and bbr, without loss and with a loss of 1 %. measure.py prints the table, and fails if targetd does not
# reach 0.8 of plain TCP where the initiator permits it. It is slow: python3 -m tests.longrun distance runs it.
set -e
. /job/common.sh
. /job/hosts.sh
. /job/path.sh
base=iqn.2026-11.com.example
say "start"
if [ "${1:-}" = outside ]; then # the servers and the line are there already: tests/distance_line.py
    modprobe -a tcp_bbr virtio_net
    device=$(basename "$(dirname "$(ls -d /sys/class/net/*/device)")")
    ip address add 10.77.2.2/24 dev "$device"
    ip link set "$device" up
    ip route add default via 10.77.2.1
    start_iscsid
    for port in 3260 3261; do
        wait_tcp 10.77.0.1 $port 60
        iscsiadm -m discovery -t st -p 10.77.0.1:$port
    done
    say "measure"
    python3 /job/measure.py "$@"
    exit 0
fi
make_path
modprobe -a tcp_bbr target_core_mod iscsi_target_mod
mkdir -p /var/tmp/media
for each in targetd tgt; do head -c 128M /dev/zero > /var/tmp/media/$each.img; done

start_server /job/targetd.conf
wait_tcp $SERVER 3260 60

on server tgtd --iscsi portal=$SERVER:3261
for _ in $(seq 100); do tgtadm --lld iscsi --op show --mode sys > /dev/null 2>&1 && break; sleep 0.1; done
tgt_target 1 $base:tgt
tgt_lun 1 1 /var/tmp/media/tgt.img

lio=/sys/kernel/config/target
mkdir -p $lio/core/rd_mcp_0/disk
echo rd_pages=32768 > $lio/core/rd_mcp_0/disk/control
echo 1 > $lio/core/rd_mcp_0/disk/enable
portals=$lio/iscsi/$base:lio/tpgt_1
mkdir -p $portals/lun/lun_0
ln -s $lio/core/rd_mcp_0/disk $portals/lun/lun_0/port
on server mkdir $portals/np/$SERVER:3262 # the socket is in the namespace of the process that makes the portal
echo 0 > $portals/attrib/authentication
echo 0 > $portals/attrib/demo_mode_write_protect
echo 1 > $portals/attrib/generate_node_acls
echo 1 > $portals/attrib/cache_dynamic_acls
echo 1 > $portals/enable

start_iscsid
for port in 3260 3261 3262; do
    wait_tcp $SERVER $port 60
    iscsiadm -m discovery -t st -p $SERVER:$port
done
on server python3 /job/plain.py $SERVER 5001 &
plain=$!
wait_tcp $SERVER 5001 60
say "measure"
python3 /job/measure.py "$@"
kill $plain
stop_targetd
