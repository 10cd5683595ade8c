# In the guest: a tape drive, as the kernel's st driver, mt and tar see it.
set -e
. /job/common.sh
target=iqn.2026-11.com.example:tape
serve_and_login $target
mt() { python3 /job/mt.py /dev/nst0 "$@"; }
expect() { # the words that "mt status" must contain
    mt status > /tmp/status
    for word in "$@"; do grep -q -- "$word" /tmp/status || { echo "no $word in:"; cat /tmp/status; exit 1; }; done
}
refused() { if "$@" > /tmp/refused 2>&1; then echo "it succeeded: $*"; exit 1; fi; }

say "the kernel's driver"
modprobe -a st sg
eventually 60 test -c /dev/nst0
expect type=114 file=0 block=0 blocksize=0 BOT ONLINE
grep -q 'VIRTUAL-TAPE' /sys/class/scsi_tape/nst0/device/model

say "two archives with variable blocks"
mkdir -p /tmp/one /tmp/two
seq 1 300000 > /tmp/one/numbers
head -c 3000000 /dev/urandom > /tmp/one/random
seq 7 9 > /tmp/two/small
tar -C /tmp/one -cf /dev/nst0 .
expect file=1 block=0
tar -C /tmp/two -b 64 -cf /dev/nst0 .
expect file=2 block=0 EOF
mt rewind
expect file=0 block=0 BOT
restored() { # folder, options of tar: the archive at the position is that of the folder
    rm -rf /tmp/back; mkdir /tmp/back
    tar -C /tmp/back "${@:2}" -xf /dev/nst0
    diff -r "/tmp/$1" /tmp/back
}
restored one
mt fsf 1
restored two -b 64
mt rewind
mt fsf 1
expect file=1 block=0
restored two -b 64
tar -C /tmp/two -b 64 -df /dev/st0 && exit 1      # behind the archive: nothing there
mt rewind
tar -C /tmp/one -df /dev/st0                      # compares, and rewinds when it closes
expect file=0 block=0 BOT

say "positions"
mt fsf 1
first=$(mt tell)
mt fsr 1
[ "$(mt tell)" = $((first + 1)) ]
mt eod
expect EOD
end=$(mt tell)
refused mt fsf 1
mt seek "$first"
[ "$(mt tell)" = "$first" ]
restored two -b 64
mt seek 0
restored one
refused mt bsf 1                                  # there is no filemark before
mt asf 1
[ "$(mt tell)" = "$first" ]
mt seek "$end"
[ "$(mt tell)" = "$end" ]
dd if=/dev/nst0 of=/tmp/nothing bs=10k 2> /dev/null || true
[ ! -s /tmp/nothing ]

say "blocks of another length: a short buffer is an error, a long one is not"
mt rewind
refused dd if=/dev/nst0 of=/dev/null bs=512 count=1
mt rewind
[ "$(dd if=/dev/nst0 bs=64k count=1 2> /dev/null | wc -c)" = 10240 ]

say "fixed blocks; an archive is appended, another one overwrites the tape"
mt setblk 512
expect blocksize=512
mt eod
tar -C /tmp/one -cf /dev/nst0 .
mt bsf 2
mt fsf 1
restored one
mt setblk 0
mt rewind
restored one
mt rewind
tar -C /tmp/two -cf /dev/nst0 .
mt rewind
restored two
mt eod
expect file=1 EOD
refused mt fsf 1

say "a session that ends does not move the tape"
mt rewind
mt fsf 1
tar -C /tmp/one -cf /dev/nst0 .
told=$(mt tell)
logout $target
login $target
eventually 60 test -c /dev/nst0
[ "$(mt tell)" = "$told" ]
mt rewind
mt fsf 1
restored one

say "the end of the tape: what was written before it is there"
mt rewind
dd if=/dev/urandom of=/tmp/long bs=1M count=24 2> /dev/null
dd if=/tmp/long of=/dev/nst0 bs=64k 2> /tmp/out && exit 1
grep -q 'No space left' /tmp/out
count=$(sed -n 's/+.* records out//p' /tmp/out)
[ "$count" -gt 280 ]
mt rewind
dd if=/dev/nst0 of=/tmp/back.long bs=64k count="$count" 2> /dev/null
cmp -n $((count * 65536)) /tmp/long /tmp/back.long
rm /tmp/long /tmp/back.long

say "unload, another tape, and back"
mt offline
expect DR_OPEN
truncate -s 32M /tmp/second.tape
control medium $target/0 /tmp/second.tape
eventually 300 mt tell
expect file=0 block=0 BOT
dd if=/dev/nst0 of=/tmp/nothing bs=10k 2> /dev/null || true
[ ! -s /tmp/nothing ]
mt rewind
tar -C /tmp/two -cf /dev/st0 .
restored two
control medium $target/0 /tmp/first.tape
eventually 300 mt tell
expect file=0 block=0 BOT
dd if=/dev/nst0 of=/dev/null bs=64k count=10
control medium $target/0 /tmp/second.tape
eventually 300 mt tell
restored two
mt rewind
mt erase
mt rewind
refused tar -tf /dev/nst0

say "a protected tape"
mt rewind
tar -C /tmp/two -cf /dev/st0 .
control lun readonly $target/0
eventually 300 mt tell
refused tar -C /tmp/one -cf /dev/nst0 .
mt rewind
restored two
control lun online $target/0

say "sg3_utils"
generic=/dev/$(basename "$(ls -d /sys/class/scsi_tape/nst0/device/scsi_generic/*)")
eventually 60 sg_turs "$generic"
sg_inq "$generic" | grep -q 'PDT=1'
sg_logs -p 0xc "$generic" | grep -qi 'sequential'
sg_logs -p 0x2e "$generic" | grep -qi 'tapealert\|tape alert'
sg_opcodes "$generic" | grep -qi 'write filemarks'
logout $target
stop_targetd
say "the tape drive is as it should be"
