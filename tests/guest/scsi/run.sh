# In the guest: sg3_utils and ddpt decode and use everything that a disk of targetd has, from two initiators where that matters.
# Each command must end as it should, say what is expected of it, and complain of nothing. The log of all of them: /tmp/all.
set -e
. /job/common.sh
target=iqn.2026-11.com.example:scsi
start_targetd /job/targetd.conf
start_iscsid
discover >/dev/null
discover_twice >/dev/null
login $target
other_target=iqn.2026-11.com.example:other                               # which admits the first initiator only
iscsiadm -m node -T $other_target -p 127.0.0.1:3260 -I default --login
[ "$(find /sys/class/iscsi_session -name 'session*' | wc -l)" = 3 ]

one=iqn.2024-01.guest:initiator two=iqn.2024-01.guest:second
a=$(disk $target $one 0); b=$(disk $target $two 0); small=$(disk $target $one 1); other=$(disk $other_target $one 0)
# From now on only this job may access the disks: any other command would clear the unit attentions that it waits for.
udevadm settle
udevadm control --stop-exec-queue
echo 0 > /sys/module/block/parameters/events_dfl_poll_msecs

# What a tool says when an answer is not what the standard has it be. A line that ALLOWED or `harmless` matches is none.
harmless='mapped \(or unknown\)|Unmap granularity alignment: 0 \[invalid\]'
complaints='unexpected|malformed|bad |invalid|illegal|unknown|unrecogni|unable to|too (short|long|small)|truncated|wrong|mismatch'
complaints="$complaints|failed|reserved \[|only hex|corrupt|missing|exceed"
complains() { # text: a line in which a tool complains, and which is not harmless
    shopt -s nocasematch
    if [[ $1 =~ $complaints ]]; then
        shopt -u nocasematch
        grep -aEv "$harmless|${ALLOWED:-^$}" <<< "$1" | grep -aEi "$complaints"
    else
        shopt -u nocasematch
        return 1
    fi
}
ends() { # exit code, a command that must end with it and print no complaint; what it says is $out
    wanted=$1; shift; code=0
    "$@" > /tmp/out 2>&1 < /dev/null || code=$?
    out=$(< /tmp/out)
    printf '+ %s\n%s\n= %s\n' "$*" "$out" "$code" >> /tmp/all
    [ $code = "$wanted" ] || { printf 'exit code %s instead of %s: %s\n%s\n' $code "$wanted" "$*" "$out"; return 1; }
    if [ "$wanted" = 0 ] && complains "$out"; then printf 'complaint of: %s\n%s\n' "$*" "$out"; return 1; fi
}
ok() { ends 0 "$@"; }
said() { # each of these is in the output of the last command
    for text; do [[ $out == *"$text"* ]] || { printf 'no "%s" in:\n%s\n' "$text" "$out"; return 1; }; done
}
attention() { # disk, the unit attention pending for its nexus
    ends 6 sg_turs "$1"; said "$2"
    ok sg_turs "$1"
}

say "inquiry, every VPD page"
for disk in $a $small; do
    ok sg_inq -d "$disk"
    said 'TPGS=3  3PC=1' 'CmdQue=1' 'TARGETD' 'VIRTUAL-DISK' 'SAM-5' 'iSCSI' 'SPC-4' 'SBC-3'
    ok sg_vpd -p sv "$disk"
    sg_vpd -q -p sv -r "$disk" | od -An -v -tx1 -j4 -w1 | tr -d ' ' > /tmp/pages
    while read -r page; do
        ok sg_vpd -l -p "0x$page" "$disk"
    done < /tmp/pages
    ok sg_turs "$disk"
    ok sg_requests "$disk"; said 'No Sense'
    ok sg_requests -d "$disk"; said 'Descriptor format' 'No Sense'
done
[ "$(tr '\n' ' ' < /tmp/pages)" = '00 80 83 86 87 88 8f 92 b0 b1 b2 b3 ' ]
ok sg_inq "$a"; said 'RMB=0'
ok sg_inq "$small"; said 'RMB=1'
ok sg_vpd -p mna "$a"; said 'storage configuration service' 'http://127.0.0.1/'
ok sg_vpd -p sn "$a"; serial=$(sed -n 's/.*serial number: //p' /tmp/out)
ok sg_vpd -p di "$a"; naa=$(grep -o '0x6001405[0-9a-f]*' /tmp/out); [ ${#naa} = 34 ]
said "$serial" "$target,t,0x0001" 'Relative target port: 0x1' 'Target port group: 0x1' 'Logical unit group: 0x1'
ok sg_vpd -p di "$b"; said "$naa" "$serial"
ok sg_vpd -p di "$small"; if grep -q "$naa" /tmp/out; then echo "two units have one name"; exit 1; fi
ok sg_vpd -p sp "$a"; said "$target,t,0x0001"
ok sg_vpd -p bl "$a"
said 'compare and write length: 128 blocks' 'unmap LBA count: 1048576' 'Maximum transfer length: 131072 blocks' 'length: 0x8000 blocks'
ok sg_vpd -p lbpv "$a"; said '(LBPU): 1' '(LBPWS): 1' '(LBPRZ): 1' 'Provisioning type: 2 (thin provisioned)'
ok sg_vpd -p lbpv "$small"; said '(LBPU): 0' 'Provisioning type: 0'
ok sg_vpd -p tpc "$a"; said 'Populate token' 'Extended copy(LID1)' 'ROD type: block device zero'
ok sg_readcap -l "$a"; said 'lbpme=1, lbprz=1' 'Number of logical blocks=131072' 'Logical block length=512 bytes'
ok sg_readcap "$small"; said 'Number of logical blocks=32768'
ok sg_luns -d "$a"; said 'imples 2 lun entries' 'lun=0' 'lun=1'
ok sg_luns -s 2 "$a"; said c101000000000000
ok sg_referrals "$a"; said 'first lba 0, last lba 131071' 'active/optimized'

say "mode pages and log pages"
for disk in $a $small; do
    for control in 0 1 2 3; do
        ok sg_modes -a -c $control "$disk"
        said 'Read-Write error recovery' 'Disconnect-Reconnect' Format 'Rigid disk' 'Verify error' Caching Control Power Informational
    done
    ok sg_modes -6 -a "$disk"
    ok sg_modes -p 0x3f,0xff "$disk"; said 'Control extension'
    ok sg_logs -ll "$disk"
    ok sg_logs -A "$disk"
    said 'Write error' 'Read error' 'Verify error' 'Temperature' 'Start-stop' 'Self-test results' 'IE asc = 0x0'
done
ok sg_modes -p 0x1c,2 "$a"; said 'Logical block provisioning'
ok sg_logs -p lbp "$a"; said 'Available LBA mapping' 'Used LBA mapping'
ok sg_senddiag -t "$a"; said 'GOOD'
ok sg_senddiag -s 5 "$a"; said 'GOOD'
ok sg_senddiag -l "$a"; said 'Supported diagnostic pages'
ok sg_logs -p str "$a"; said 'foreground short' 'completed without error'

say "a mode page that one initiator changes, and of which the other is notified"
ok sg_wr_mode -p 8 -s -c 88,12,00,00,ff,ff,00,00,ff,ff,ff,ff,00,00,00,00,00,00,00,00 -m 0,0,4 "$a"
attention "$b" 'Mode parameters changed'
ok sg_modes -p 8 -c 3 "$b"; said '88 12 00 00 ff ff'
ok sg_wr_mode -p 8 -s -c 88,12,04,00,ff,ff,00,00,ff,ff,ff,ff,00,00,00,00,00,00,00,00 -m 0,0,4 "$a"
attention "$b" 'Mode parameters changed'

say "operation codes: what is listed is answered and has usage data, what is not listed is refused"
ok sg_opcodes -a "$a"; said 'Write same(16)' 'Extended copy(LID1)' 'Compare and write' 'Sanitize, overwrite'
ok sg_opcodes -q -t "$a"; said 'Abort task' 'Logical unit reset' 'Target reset'
sg_opcodes -n -r "$a" > /tmp/listed 2>/dev/null
python3 /job/sweep.py "$a" /tmp/listed > /tmp/swept
tail -n 1 /tmp/swept
while read -r which usage; do
    one=$(sg_opcodes -n -R "--opcode=$which" "$a" 2>&1) || { echo "sg_opcodes --opcode=$which: $one"; exit 1; }
    if complains "$one" || [[ $one != *"Usage data: $usage"* || $one != *'recommended timeout'* ]]; then
        echo "sg_opcodes --opcode=$which, where the usage data are $usage:"; echo "$one"; exit 1
    fi
done < <(grep -v commands /tmp/swept)

say "target port groups"
ok sg_rtpg -d "$a"; said 'active/optimized' 'Relative target port ids' 'AO_SUP : 1'
ok sg_rtpg -e -d "$a"; said 'Implicit transition time: 0'
ok sg_stpg --standby --tp=1 "$a"
ok sg_rtpg -d "$a"; said '(standby)'
ends 6 sg_turs "$b"; said 'Asymmetric access state changed'
ends 2 sg_turs "$b"; said 'not ready'
ok sg_stpg --optimized --tp=1 "$a"
attention "$b" 'Asymmetric access state changed'

say "persistent reservations, two initiators"
ok sg_persist -i -c "$a"
said 'Persist Through Power Loss Capable(PTPL_C): 1' 'All Target Ports Capable(ATP_C): 1'
said 'Exclusive Access, all registrants: 1' 'Allow Commands: 3'
ok sg_persist --out --register --param-sark=0xa1 "$a"
ok sg_persist --out --register --param-sark=0xb2 "$b"
ok sg_persist -i -k "$a"; said 0xa1 0xb2 '2 registered'
ends 24 sg_persist --out --register --param-rk=0xbad --param-sark=0xc3 "$b"
ok sg_persist --out --reserve --param-rk=0xa1 --prout-type=5 "$a"
ok sg_persist -i -r "$b"; said 'Key=0xa1' 'Write Exclusive, registrants only'
ok sg_persist -i -s "$b"; said iqn.2024-01.guest:initiator iqn.2024-01.guest:second 'Reservation holder'
ok sg_write_same --lba=0 --num=1 "$b"                                    # a registrant writes
ends 24 sg_persist --out --reserve --param-rk=0xb2 --prout-type=3 "$b"
ok sg_persist --out --release --param-rk=0xa1 --prout-type=5 "$a"
attention "$b" 'Reservations released'
ok sg_persist --out --reserve --param-rk=0xa1 --prout-type=1 "$a"
ends 24 sg_write_same --lba=0 --num=1 "$b"
ok sg_verify --lba=0 --count=1 "$b"
ok sg_persist --out --preempt --param-rk=0xb2 --param-sark=0xa1 --prout-type=3 "$b"
attention "$a" 'Registrations preempted'
ok sg_persist -i -r "$a"; said 'Key=0xb2' 'Exclusive Access'
ends 24 sg_persist --out --release --param-rk=0xa1 --prout-type=3 "$a"   # no longer registered
ends 24 sg_verify --lba=0 --count=1 "$a"
ok sg_persist --out --register-ignore --param-sark=0xa2 "$a"
ok sg_persist --out --preempt-abort --param-rk=0xa2 --param-sark=0xb2 --prout-type=8 "$a"
attention "$b" 'Registrations preempted'
ok sg_persist -i -r "$b"; said 'Exclusive Access, all registrants'
ok sg_persist --out --register --param-sark=0xb3 "$b"
ok sg_write_same --lba=0 --num=1 "$b"
ok sg_persist --out --register --param-rk=0xb3 --param-sark=0 "$b"       # unregistered, and the reservation stays with the other
ends 24 sg_write_same --lba=0 --num=1 "$b"
ok sg_persist --out --register --param-sark=0xb4 "$b"
ok sg_persist -i -s "$a"; port=$(grep -ao "$two,i,0x[0-9a-f]*" <<< "$out")
ok sg_persist --out --register --param-rk=0xb4 --param-sark=0 "$b"
move() { sg_persist --out --register-move --param-rk=0xa2 --param-sark=0xd4 --relative-target-port=1 "--transport-id=$port" "$a"; }
ends 24 move                                                             # not of a reservation that is everybody's
ok sg_persist --out --release --param-rk=0xa2 --prout-type=8 "$a"
ok sg_persist --out --reserve --param-rk=0xa2 --prout-type=3 "$a"
ok move
ok sg_persist -i -k "$b"; said 0xd4 0xa2
ok sg_persist -i -r "$b"; said 'Key=0xd4' 'Exclusive Access'
ends 24 sg_write_same --lba=0 --num=1 "$a"
ok sg_write_same --lba=0 --num=1 "$b"
ok sg_persist --out --clear --param-rk=0xd4 "$b"
attention "$a" 'Reservations preempted'
ok sg_persist -i -k "$a"; said 'there are NO registered'

say "compare and write, write same, unmap, LBA status, verify"
head -c 512 /dev/zero > /tmp/block; head -c 512 /dev/urandom > /tmp/random; cat /tmp/block /tmp/random > /tmp/both
ok sg_write_same --16 --lba=0 --num=128 "$a"
ok sg_compare_and_write --in=/tmp/both --lba=8 "$a"
dd if="$a" bs=512 skip=8 count=1 iflag=direct status=none | cmp - /tmp/random
ends 14 sg_compare_and_write --in=/tmp/both --lba=8 "$a"                  # no zeroes there any more
ok sg_write_same --10 --in=/tmp/random --lba=1024 --num=64 "$a"
dd if="$a" bs=512 skip=1087 count=1 iflag=direct status=none | cmp - /tmp/random
ok sg_write_same --16 --unmap --lba=1024 --num=64 "$a"
ok sg_get_lba_status --lba=1024 "$a"; said deallocated
ok sg_write_same --16 --ff --lba=2048 --num=64 "$a"
ok sg_get_lba_status --lba=2048 "$a"; said 'blocks:         64  mapped'
ok sg_write_same --16 --ndob --lba=2048 --num=64 "$a"
dd if="$a" bs=512 skip=2048 count=64 iflag=direct status=none | cmp -n 32768 - /dev/zero
ends 9 sg_write_same --32 --ff --lba=4096 --num=64 "$a"                  # needs type 2 protection information
dd if=/dev/urandom of="$a" bs=64k seek=16 count=16 oflag=direct status=none
ok sg_get_lba_status --lba=2048 --maxlen=1024 "$a"; said 'blocks:       2048  mapped' deallocated
ok sg_unmap --force --lba=2048,4096 --num=1024,8 "$a"
ok sg_get_lba_status --lba=2048 "$a"; said 'blocks:       1024  deallocated'
dd if="$a" bs=512 skip=2048 count=1024 iflag=direct status=none | cmp -n 524288 - /dev/zero
ok sg_verify --16 --lba=0 --count=128 "$a"
ok sg_verify --0 --ebytchk=1 --ndo=65536 --count=128 --lba=2048 "$a"
ends 14 sg_verify --ebytchk=1 --ndo=512 --in=/tmp/random --lba=2048 --quiet "$a"
ok sg_write_verify --16 --in=/tmp/random --lba=16 "$a"
ok sg_write_x --or --in=/tmp/random --lba=64 --num=1 "$a"
dd if="$a" bs=512 skip=64 count=1 iflag=direct status=none | cmp - /tmp/random
ends 9 sg_write_x --32 --normal --in=/tmp/random --lba=64 --num=1 "$a"
for cdb in 6 10 12 16; do ok sg_dd if="$a" of=/dev/null bs=512 count=64 blk_sgio=1 cdbsz=$cdb; done
ok sg_sync "$a"

say "copies by the server"
dd if=/dev/urandom of="$a" bs=64k count=16 oflag=direct status=none
ok sg_xcopy if="$a" of="$small" bs=512 count=2048
cmp -n 1048576 "$a" "$small"
ok sg_copy_results -p "$a"; said 'Total concurrent copies' 'Copy from block device to block device' 'Identification descriptor'
ok sg_xcopy if="$a" of="$other" bs=512 count=2048 --on_src
cmp -n 1048576 "$a" "$other"
ends 10 sg_xcopy if="$b" of="$other" bs=512 count=2048 --on_src          # the second initiator may not log in there
blockdev --flushbufs "$a" "$small"
ok ddpt --xcopy if="$a" of="$small" bs=512 count=1024 seek=4096
cmp -n 524288 -i 0:2097152 "$a" "$small"
# ddpt 0.97 writes the ranges of its lists one byte too early, so that 16 blocks are 4096; at block 0 that does no harm.
ok ddptctl --pt=0,16 --rtf=/tmp/token "$a"; said 'transfer count of 4096'
ok ddptctl --info --rtf=/tmp/token; said 'change vulnerable' "${naa#0x}"
ok ddptctl --wut=0,16 --rtf=/tmp/token "$small"
blockdev --flushbufs "$small"
cmp -n 2097152 "$a" "$small"
ok ddptctl --all_toks "$a"; said 'headers returned: 1'
ok sg_write_same --lba=1 --num=1 "$a"                                    # the data of the token changes, so the token is revoked
ends 116 ddptctl --wut=0,16 --rtf=/tmp/token "$small"; said 'token revoked'
ok ddptctl --all_toks "$a"; said 'No management ROD Tokens'

say "buffers, defects, identity, time, eject"
ok sg_read_buffer -m desc -l 4 "$a"; ok sg_read_buffer -m echo_desc -l 4 "$a"
ok sg_test_rwbuf -s 4096 "$a"; said Success
ok sg_reassign -g "$a"; said 'grown defect list: 0'
ok sg_timestamp --srep "$a"; [ $(($(cat /tmp/out) - $(date +%s))) -lt 60 ]
identity() { printf 'rack 4' | sg_ident --set "$a"; }
ok identity
attention "$b" 'Device identifier changed'
ok sg_ident --ascii "$b"; said 'rack 4'
# By /dev/sgX: when a removable /dev/sdX is opened, Linux asks whether it is ready, and prevents its removal.
generic_of() { echo "/dev/$(basename "/sys/class/block/${1##*/}"/device/scsi_generic/*)"; }
generic=$(generic_of "$small") others=$(generic_of "$(disk $target $two 1)")
ok sg_turs "$others"
ok sg_prevent --prevent=1 "$generic"
ends 5 sg_start --eject "$generic"
ok sg_prevent --allow "$generic"
ok sg_start --eject "$generic"
ends 2 sg_turs "$generic"
ok sg_start --load "$generic"
attention "$others" 'medium may have changed'
ok sg_turs "$small"

say "sanitize and format"
ok sg_sanitize --overwrite --zero --quick --wait "$small"
blockdev --flushbufs "$small"
cmp -n 16777216 "$small" /dev/zero
dd if=/dev/urandom of="$small" bs=64k count=16 oflag=direct status=none
ok sg_format --format --quick --wait "$small"; said 'Number of blocks=32768'
ok sg_readcap "$small"; said 'Number of logical blocks=32768'
blockdev --flushbufs "$small"
cmp -n 1048576 "$small" /dev/zero
ok sg_sanitize --block --quick --wait "$a"
ok sg_get_lba_status --lba=0 "$a"; said 'blocks:     131072  deallocated'
ends 5 sg_sanitize --crypto --quick --wait "$a"
ok sg_turs "$a"

udevadm control --start-exec-queue
logout $other_target
logout $target
stop_targetd
