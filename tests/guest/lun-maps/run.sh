# In the guest: two initiators of the kernel, by two names. Each sees the LUNs of its map under its numbers, one LUN is moved from one to
# the other while it is written, and one ext4 is not mounted by both.
set -e
. /job/common.sh
one=iqn.2024-01.guest:initiator two=iqn.2026-11.com.example:second
maps=iqn.2026-11.com.example:maps exclusive=iqn.2026-11.com.example:exclusive
readers=iqn.2026-11.com.example:readers hidden=iqn.2026-11.com.example:hidden
targetdctl() { python3 -m targetd.admin.cli "$@"; }
eventually() { # seconds, words…: until the command succeeds
    end=$((SECONDS + $1)); shift
    while ! "$@"; do
        if [ $SECONDS -ge $end ]; then echo "not in time: $*"; iscsiadm -m session -P 3; dmesg | tail -n 20; return 1; fi
        sleep 0.2
    done
}
iface_of() { if [ "$1" = $one ]; then echo default; else echo second; fi; }
node() { # initiator, target, words…
    iscsiadm -m node -T "$2" -p 127.0.0.1:3260 -I "$(iface_of "$1")" "${@:3}"
}
session() { # initiator, target: its directory in sysfs
    for each in /sys/class/iscsi_session/session*; do
        if [ "$(cat "$each/initiatorname" "$each/targetname")" = "$1"$'\n'"$2" ]; then echo "$each"; return 0; fi
    done
    return 1
}
rescan() { directory=$(session "$1" "$2"); iscsiadm -m session -r "${directory##*/session}" --rescan > /dev/null; }
sees() { # initiator, target, numbers: the SCSI devices of the session have exactly these numbers, and the disks are there
    found=
    for each in "$(session "$1" "$2")"/device/target*/*:*:*:*; do
        [ -e "$each" ] || continue
        found="$found${found:+ }${each##*:}"
        [ -b "/dev/$(ls "$each/block" 2>/dev/null)" ] || return 1
    done
    [ "$(echo $found | tr ' ' '\n' | sort -n | xargs)" = "$3" ]
}
disk() { # initiator, target, number
    echo "/dev/$(ls "$(session "$1" "$2")"/device/target*/*:"$3"/block)"
}
megabytes() { echo $(($(blockdev --getsize64 "$1") >> 20)); }
is_read_only() { [ "$(cat "/sys/block/${1#/dev/}/ro")" = "$2" ]; }
target_refuses_write() { # disk: WRITE(16) past the kernel, which does not send one to this disk
    generic=/dev/$(ls "/sys/block/${1#/dev/}/device/scsi_generic")
    if sg_raw -s 512 -i /tmp/data "$generic" 8a 00 00 00 00 00 00 00 00 00 00 00 00 01 00 00 2> /tmp/sense; then
        echo "$1 was written"; exit 1
    fi
    grep -i 'write protected' /tmp/sense || { cat /tmp/sense; exit 1; }
}
has_sessions() { # target, count
    targetdctl --json show units > /tmp/units.json
    python3 - "$1" "$2" <<'PYTHON'
import json, sys
rows = [row for row in json.load(open('/tmp/units.json')) if row['target_name'] == sys.argv[1]]
sys.exit(rows[0]['sessions'] != int(sys.argv[2]))
PYTHON
}

start_targetd /job/targetd.conf
start_iscsid
say "discovery by both names: each initiator finds the targets that show it a LUN"
iscsiadm -m iface -I second --op new
iscsiadm -m iface -I second --op update -n iface.initiatorname -v $two
iscsiadm -m discovery -t sendtargets -p 127.0.0.1:3260 -I default -I second
iscsiadm -m node -P 1 | tee /tmp/nodes
node $one $maps > /dev/null; node $two $maps > /dev/null; node $two $hidden > /dev/null
if node $one $hidden > /dev/null 2>&1; then echo "the first initiator was told of a target without a LUN for it"; exit 1; fi

say "each sees the LUNs of its map, under its numbers"
node $one $maps --login
node $two $maps --login
eventually 120 sees $one $maps '0 2 5'
eventually 120 sees $two $maps '0 7'
lsscsi -s
[ "$(megabytes "$(disk $one $maps 0)")" = 8 ]
[ "$(megabytes "$(disk $one $maps 5)")" = 32 ]
[ "$(megabytes "$(disk $two $maps 0)")" = 16 ]
[ "$(megabytes "$(disk $two $maps 7)")" = 24 ]
targetdctl show luns $maps

say "one LUN is shared; the second initiator may only read it"
shared=$(disk $one $maps 2) copy=$(disk $two $maps 7)
[ "$(sg_vpd -q -i "$shared" | grep 0x)" = "$(sg_vpd -q -i "$copy" | grep 0x)" ]
is_read_only "$shared" 0
is_read_only "$copy" 1
dmesg | grep "\[${copy#/dev/}\] Write Protect is on"
head -c 1M /dev/urandom > /tmp/data
dd if=/tmp/data of="$shared" bs=64k oflag=direct conv=fsync status=none
dd if="$copy" of=/tmp/back bs=64k count=16 iflag=direct status=none
cmp /tmp/data /tmp/back
target_refuses_write "$copy"
dd if="$copy" of=/tmp/back bs=64k count=16 iflag=direct status=none
cmp /tmp/data /tmp/back

say "a LUN moves from one initiator to the other while the first one writes it"
moving=$(disk $one $maps 5)
head -c 8M /dev/urandom > /tmp/blocks
python3 - "$moving" > /tmp/write-error <<'PYTHON' &
import mmap, os, sys, time

disk, block = os.open(sys.argv[1], os.O_RDWR | os.O_DIRECT), mmap.mmap(-1, 4096)
with open('/tmp/blocks', 'rb') as blocks:
    for number in range(2048):
        block[:] = blocks.read(4096)
        try:
            assert os.pwritev(disk, [block], number * 4096) == 4096
        except OSError as e:
            print('block %d: %s' % (number, e))
            break
        with open('/tmp/count.new', 'w') as file:
            file.write('%d' % (number + 1))
        os.rename('/tmp/count.new', '/tmp/acknowledged')
        time.sleep(0.1)
PYTHON
writer=$!
written() { [ -s /tmp/acknowledged ] && [ "$(cat /tmp/acknowledged)" -ge "$1" ]; }
eventually 120 written 20
targetdctl map set $maps $one 0,2
eventually 120 test ! -e /proc/$writer
count=$(cat /tmp/acknowledged)
echo "the first initiator wrote $count blocks; then: $(cat /tmp/write-error)"
[ -s /tmp/write-error ]
dmesg | grep -i 'logical unit not supported\|LUN assignments on this target have changed'
dmesg -C
targetdctl map set $maps $two 0=1,7=2:read-only,9=3
rescan $two $maps
eventually 120 sees $two $maps '0 7 9'
moved=$(disk $two $maps 9)
cmp -n $((count * 4096)) /tmp/blocks "$moved"               # all that was acknowledged to the first initiator
head -c 4M /dev/urandom > /tmp/data
dd if=/tmp/data of="$moved" bs=64k oflag=direct conv=fsync,notrunc status=none
if dd if=/dev/zero of="$moving" bs=4k count=1 oflag=direct status=none; then echo "the first initiator wrote a LUN that it lost"; exit 1; fi
dd if="$moved" of=/tmp/back bs=64k count=64 iflag=direct status=none
cmp /tmp/data /tmp/back
[ "$(megabytes "$(disk $one $maps 2)")" = 24 ]
dd if="$copy" of=/dev/null bs=64k count=16 iflag=direct status=none
node $one $maps --logout
node $two $maps --logout

say "exclusive: the second initiator does not get the LUN on which the first one has an ext4"
node $one $exclusive --login
eventually 120 sees $one $exclusive 0
held=$(disk $one $exclusive 0)
mkfs.ext4 -q -F "$held"
mkdir -p /mnt/one /mnt/two
mount -t ext4 "$held" /mnt/one
head -c 8M /dev/urandom > /mnt/one/file
node $two $exclusive --login
rescan $two $exclusive
sees $two $exclusive ''
grep "$two does not see lun 0 of $exclusive: $one uses it" /tmp/targetd.log
targetdctl why $two | tee /tmp/why
grep "lun 0 is not shown: $one uses it" /tmp/why; grep "target: $exclusive" /tmp/why
sync; md5sum < /mnt/one/file > /tmp/sum
umount /mnt/one
node $one $exclusive --logout
eventually 120 has_sessions $exclusive 0
rescan $two $exclusive
sees $two $exclusive ''                                     # only a new login gives it to another host
node $two $exclusive --logout
node $two $exclusive --login
eventually 120 sees $two $exclusive 0
mount -t ext4 "$(disk $two $exclusive 0)" /mnt/two
md5sum < /mnt/two/file | cmp - /tmp/sum
node $one $exclusive --login
rescan $one $exclusive
sees $one $exclusive ''
grep "$one does not see lun 0 of $exclusive: $two uses it" /tmp/targetd.log
umount /mnt/two
node $one $exclusive --logout
node $two $exclusive --logout

say "readers: the second initiator reads the ext4 of the first one, and cannot write it"
node $one $readers --login
eventually 120 sees $one $readers 0
mkfs.ext4 -q -F "$(disk $one $readers 0)"
mount -t ext4 "$(disk $one $readers 0)" /mnt/one
echo first > /mnt/one/file
umount /mnt/one                                             # a reader does not replay the journal
mount -t ext4 "$(disk $one $readers 0)" /mnt/one
dmesg -C
node $two $readers --login
eventually 120 sees $two $readers 0
only=$(disk $two $readers 0)
is_read_only "$only" 1
dmesg | grep "\[${only#/dev/}\] Write Protect is on"
if mount -t ext4 -o rw "$only" /mnt/two 2> /tmp/mount-error; then
    grep "^$only /mnt/two ext4 ro" /proc/mounts             # mount(8) falls back to ro
    umount /mnt/two
fi
mount -t ext4 -o ro,noload "$only" /mnt/two
[ "$(cat /mnt/two/file)" = first ]
umount /mnt/two
target_refuses_write "$only"
echo second > /mnt/one/file
umount /mnt/one
node $one $readers --logout
eventually 120 has_sessions $readers 1
node $two $readers --logout
node $two $readers --login
eventually 120 sees $two $readers 0
is_read_only "$(disk $two $readers 0)" 0
mount -t ext4 "$(disk $two $readers 0)" /mnt/two
[ "$(cat /mnt/two/file)" = second ]
echo third > /mnt/two/file
umount /mnt/two
node $two $readers --logout
stop_targetd
