# In the guest: real SCSI devices by type = passthrough: a disk of scsi_debug, and a tape drive and an optical drive that the initiator has
# of another server. The same kernel is the initiator of all: what it finds through the target is compared with the device itself.
set -e
. /job/common.sh
name=iqn.2026-11.com.example
control() { (cd / && python3 -m targetd.admin.cli -s /run/targetd.sock "$@"); }
within() { # seconds, a command that must succeed in that time
    for _ in $(seq $((10 * $1))); do if "${@:2}" > /dev/null 2>&1; then return 0; fi; sleep 0.1; done
    echo "not within $1 s: ${*:2}"; "${@:2}"
}
refused() { if "$@" > /tmp/refused 2>&1; then echo "it succeeded: $*"; cat /tmp/refused; exit 1; fi; }
has() { # text, file
    grep -qi -- "$1" "$2" || { echo "no \"$1\" in:"; cat "$2"; exit 1; }
}
of_session() { # the name of a target: the sg node of its LUN 0
    for each in /sys/class/scsi_generic/*; do
        place=$(readlink -f "$each/device")
        case $place in
            */session*) session=${place#*/session}
                [ "$(cat "/sys/class/iscsi_session/session${session%%/*}/targetname")" = "$name:$1" ] || continue
                echo "/dev/${each##*/}"; return;;
        esac
    done
    return 1
}
of_scsi_debug() { # its sg node
    for each in /sys/class/scsi_generic/*; do
        case $(readlink -f "$each/device") in */adapter*) echo "/dev/${each##*/}"; return;; esac
    done
    return 1
}
driver() { # class, sg node: the node of its driver, nst0 of tapes
    for each in "/sys/class/scsi_generic/${2#/dev/}/device/$1"/*; do
        case ${each##*/} in nst*[alm] | st*) continue;; esac
        echo "/dev/${each##*/}"; return
    done
    return 1
}
wwid() { cat "/sys/class/scsi_generic/${1#/dev/}/device/wwid"; }
same() { # a program and its options: the same output about both devices
    "$@" "$here" > /tmp/here 2>&1 || true
    "$@" "$there" > /tmp/there 2>&1 || true
    sed -i "s,$here,NODE,; s,$there,NODE," /tmp/here /tmp/there
    diff /tmp/here /tmp/there || { echo "differs: $*"; exit 1; }
}
same_identity() {
    for each in "$here" "$there"; do sg_inq "$each" | grep -E 'Vendor|Product|Unit serial|PDT'; done | sort | uniq -c > /tmp/pairs
    if grep -v '^ *2 ' /tmp/pairs; then echo "the identity differs"; exit 1; fi
    [ "$(wwid "$here")" = "$(wwid "$there")" ]
}
failed=
part() { # name, function: the parts do not depend on each other
    say "$1"
    set +e; ( set -e; "$2" ); status=$?; set -e
    if [ $status != 0 ]; then failed="$failed; $1"; echo "FAILED: $1"; tail -n 15 /tmp/targetd.log; dmesg | tail -n 8; fi
}

say "the devices"
seq 1 300000 > /tmp/hello.txt
python3 /src/tests/iso.py /tmp/first.iso FIRST /tmp/hello.txt
modprobe -a sg sd_mod st sr_mod
modprobe scsi_debug dev_size_mb=16 num_tgts=1 opts=2 lbpu=1 delay=0
udevadm settle
ln -s "$(of_scsi_debug)" /dev/real-disk
mkdir -p /tmp/state-drives
cp /job/drives.conf /tmp/drives.conf; chmod 600 /tmp/drives.conf
(cd / && python3 -m targetd -c /tmp/drives.conf)
wait_tcp 127.0.0.1 3261 30
start_iscsid
iscsiadm -m discovery -t st -p 127.0.0.1:3261 > /dev/null
for each in tape cd; do iscsiadm -m node -T $name:$each -p 127.0.0.1:3261 --login > /dev/null; within 30 of_session $each; done
udevadm settle
for each in tape cd; do ln -s "$(of_session $each)" /dev/real-$each; done
start_targetd /job/targetd.conf
control show units
control disks --json > /tmp/disks
has 'tape drive' /tmp/disks
iscsiadm -m discovery -t st -p 127.0.0.1:3260 > /dev/null
for each in disk tape cd; do login $name:real-$each > /dev/null; within 30 of_session real-$each; done
udevadm settle
lsscsi -g 2> /dev/null || ls -l /sys/class/scsi_generic

disk() {
    here=$(readlink /dev/real-disk) there=$(of_session real-disk)
    same_identity
    same sg_readcap
    same sg_readcap --16
    same sg_vpd -p sn
    same sg_vpd -p lbpv
    same sg_modes -a
    same sg_logs -a
    sg_vpd -p di "$there" > /tmp/there
    has "$name:real-disk" /tmp/there
    sg_vpd -p bl "$there"
}

errors() {
    here=$(readlink /dev/real-disk) there=$(of_session real-disk)
    for each in "$here" "$there"; do # blocks 1234h and the next ones cannot be read
        sg_raw -r 4096 "$each" 28 00 00 00 12 30 00 00 08 00 > "/tmp/raw.$(basename "$each")" 2>&1 || true
        sed -i "s,$each,NODE," "/tmp/raw.$(basename "$each")"
    done
    cmp "/tmp/raw.$(basename "$here")" "/tmp/raw.$(basename "$there")"
    has 'unrecovered read error' "/tmp/raw.$(basename "$there")"
    has '0x1234' "/tmp/raw.$(basename "$there")"
    refused dd if="$(driver block "$there")" of=/dev/null bs=4k skip=582 count=1 iflag=direct
    sg_raw -r 255 "$there" 12 00 00 00 ff 00 > /tmp/raw 2>&1 # a residual
    has 'Received 96 bytes' /tmp/raw
    refused sg_raw -r 4096 "$there" 28 00 00 ff ff f0 00 00 08 00
    has 'logical block address out of range' /tmp/refused
}

filter() {
    there=$(of_session real-disk)
    for command in "c1 00 00 00 00 00 00 00 00 00" "1d 04 00 00 00 00" "48 01 00 00 00 00 00 00 00 00" \
        "85 08 0e 00 00 00 01 00 00 00 00 00 00 00 ec 00"; do
        # shellcheck disable=SC2086
        refused sg_raw "$there" $command
        has 'invalid command operation code' /tmp/refused
    done
}

nexuses() { # two sessions, of which the device knows one nexus
    iscsiadm -m session > /tmp/sessions
    session=$(sed -n "s/^tcp: \[\([0-9]*\)\].*real-disk.*/\1/p" /tmp/sessions | head -n 1)
    first=$(of_session real-disk)
    iscsiadm -m session -r "$session" --op new > /dev/null
    second() { for each in /sys/class/scsi_generic/*; do
        [ "/dev/${each##*/}" != "$first" ] || continue
        case $(readlink -f "$each/device") in */session*) ;; *) continue;; esac
        number=$(readlink -f "$each/device"); number=${number#*/session}
        [ "$(cat "/sys/class/iscsi_session/session${number%%/*}/targetname")" = $name:real-disk ] && echo "/dev/${each##*/}" && return
    done; return 1; }
    within 30 second
    other=$(second)
    udevadm settle
    for each in "$first" "$other"; do within 10 sg_turs "$each"; done
    # the mode parameters that one session changes: the other one is told
    sg_raw -r 24 -o /tmp/mode "$first" 1a 08 08 00 18 00 > /dev/null 2>&1
    python3 -c "d = bytearray(open('/tmp/mode', 'rb').read()); d[0] = 0; d[4] &= 63; d[6] ^= 4; open('/tmp/mode', 'wb').write(d)"
    sg_raw -s 24 -i /tmp/mode "$first" 15 10 00 00 18 00
    told() { ! sg_raw "$other" 00 00 00 00 00 00 > /tmp/refused 2>&1; }
    within 10 told
    has 'mode parameters changed' /tmp/refused
    for each in "$first" "$other"; do within 10 sg_turs "$each"; done
    # reservations are between the sessions
    sg_persist --out --register --param-sark=abc "$first" > /dev/null
    sg_persist --out --reserve --param-rk=abc --prout-type=1 "$first" > /dev/null
    sg_raw -r 512 "$other" 28 00 00 00 00 00 00 00 01 00 > /dev/null 2>&1
    head -c 512 /dev/zero > /tmp/block
    refused sg_raw -s 512 -i /tmp/block "$other" 2a 00 00 00 00 10 00 00 01 00
    has 'reservation conflict' /tmp/refused
    sg_raw -s 512 -i /tmp/block "$(readlink /dev/real-disk)" 2a 00 00 00 00 10 00 00 01 00 # the device does not know of it
    sg_persist --out --clear --param-rk=abc "$first" > /dev/null
}

tape() {
    here=$(readlink /dev/real-tape) there=$(of_session real-tape)
    refused python3 /job/mt.py "$(driver scsi_tape "$here")" status # this host cannot use it
    same_identity
    node=$(driver scsi_tape "$there")
    mt() { python3 /job/mt.py "$node" "$@"; }
    mt status
    mkdir -p /tmp/one /tmp/back
    seq 1 200000 > /tmp/one/numbers
    head -c 1000000 /dev/urandom > /tmp/one/random
    tar -C /tmp/one -cf "$node" .
    tar -C /tmp/one -b 64 -cf "$node" .
    mt rewind
    mt status | grep 'BOT'
    mt fsf 1
    tar -C /tmp/back -b 64 -xf "$node"
    diff -r /tmp/one /tmp/back
    mt rewind
    refused dd if="$node" of=/dev/null bs=512 count=1 # a longer block: the sense data has ILI and the difference
    mt rewind
    [ "$(dd if="$node" bs=64k count=1 2> /dev/null | wc -c)" = 10240 ]
    mt eod
    refused mt fsf 1
    [ "$(mt tell)" -gt 100 ]
    mt setblk 512
    mt status | grep 'blocksize=512'
    tar -C /tmp/one -cf "$node" .
    mt rewind
    mt setblk 0
    sg_logs -p 0xc "$there" > /tmp/there
    has sequential /tmp/there
    refused sg_raw "$there" 3b 02 00 00 00 00 00 00 00 00
    mt offline
    mt status | grep 'DR_OPEN'
}

optical() {
    here=$(readlink /dev/real-cd) there=$(of_session real-cd)
    node=$(driver block "$there")
    same_identity
    is_whole() { [ "$(blockdev --getsize64 "$node")" -ge "$(stat -c %s /tmp/first.iso)" ]; }
    within 20 is_whole
    cmp -n "$(stat -c %s /tmp/first.iso)" "$node" /tmp/first.iso
    same sg_get_config
    mkdir -p /mnt/cd
    mount -t iso9660 -o ro "$node" /mnt/cd
    cmp /mnt/cd/hello.txt /tmp/hello.txt
    # the lock of the session is one of the device
    drives() { (cd / && python3 -m targetd.admin.cli -s /run/drives.sock "$@"); }
    if drives medium $name:cd/0 none > /tmp/refused 2>&1; then echo "a locked medium was taken out"; exit 1; fi
    umount /mnt/cd
    refused mount -t iso9660 -o ro "$(driver block "$here")" /mnt/cd
}

removal() {
    here=$(readlink /dev/real-disk) there=$(of_session real-disk)
    node=$(driver block "$there")
    host=$(readlink -f "/sys/class/scsi_generic/${here#/dev/}/device"); host=${host#*/host}; host=${host%%/*}
    echo 1 > "/sys/class/scsi_generic/${here#/dev/}/device/delete"
    gone() { control show units | grep real-disk | grep -q 'not attached'; }
    within 20 gone
    refused dd if="$node" of=/dev/null bs=4k count=1 iflag=direct
    sg_inq "$there" | grep -q scsi_debug
    echo "- - -" > "/sys/class/scsi_host/host$host/scan"
    within 30 of_scsi_debug
    udevadm settle
    new=$(of_scsi_debug)
    echo "$here is $new now"; control show units
    [ "$new" != "$here" ]
    ln -sfn "$new" /dev/real-disk
    within 60 dd if="$node" of=/dev/null bs=4k count=1 iflag=direct
}

part "the same disk" disk
part "errors and residuals" errors
part "the filter" filter
part "several sessions" nexuses
part "a tape drive" tape
part "an optical drive" optical
part "a disk is removed, and returns" removal

say "the end"
for each in real-disk real-tape real-cd; do logout $name:$each > /dev/null; done
tail -n 30 /tmp/targetd.log
stop_targetd
for each in tape cd; do iscsiadm -m node -T $name:$each -p 127.0.0.1:3261 --logout > /dev/null; done
kill "$(cat /run/drives.pid)"
rm -f /dev/real-*
rmmod scsi_debug # nothing has its disk open any more
if [ -n "$failed" ]; then echo "failed$failed"; exit 1; fi
say "the devices are as they should be"
