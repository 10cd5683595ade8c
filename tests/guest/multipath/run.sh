# In the guest: a server with two portals, and the two paths of the kernel's initiator, which multipathd joins. One path is cut off and
# comes back, and one becomes slower than the other, under a load without an error.
set -e
. /job/common.sh
. /job/hosts.sh
. /job/multipath.sh
disk=iqn.2026-11.com.example:disk
second=192.0.2.2 # of the server
say "start"
make_hosts
on server ip address add $second/24 dev eth0
modprobe dm-multipath
start_server /job/targetd.conf
trap 'status=$?; [ $status = 0 ] || after_failed_multipath; exit $status' EXIT
start_iscsid
T=$SERVER:3260 discover
mkdir -p /etc/multipath
multipathd

say "as shipped, multipathd makes no device of the two paths; with the settings it does"
node $disk --login
first_path=$(iscsi_disk $disk 0)
eventually 60 knows_paths 2
udevadm settle
[ -z "$(multipath -ll)" ]
set_up_multipath
multipathd reconfigure
name=$(/lib/udev/scsi_id -g -u "$first_path")
control identify $disk/0 | grep "scsi-$name"
becomes "$name" '50[active ready, active ready]'
multipath -ll | tee /tmp/shown
grep "TARGETD,VIRTUAL-DISK" /tmp/shown
grep "features='1 queue_if_no_path' hwhandler='1 alua'" /tmp/shown
[ "$(cat /sys/class/iscsi_session/session*/recovery_tmo | sort -u)" = 5 ]

say "a path is cut off, and comes back"
begin_load "/dev/mapper/$name"
on server iptables -I INPUT -d $second -j DROP
becomes "$name" '50[active ready, failed faulty]'
goes_on
on server iptables -F INPUT
becomes "$name" '50[active ready, active ready]'
goes_on

say "a path becomes slower (ALUA), and as before"
control alua $disk 1 nonoptimized
becomes "$name" '50[active ready] 10[active ready]'
control alua $disk 1 optimized
becomes "$name" '50[active ready, active ready]'
goes_on
end_multipath_load
multipath -f "$name"
node $disk --logout
stop_targetd
