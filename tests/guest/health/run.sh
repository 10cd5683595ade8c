# In the guest: what smartctl says about the disks behind two LUNs, which here is replayed from files, as the kernel's initiator gets it:
# the real smartctl and sg_logs of the initiator, and the unit attention of a disk that predicts its failure.
set -e
. /job/common.sh
target=iqn.2026-11.com.example:health
answers=/src/tests/unit/host/smart
targetdctl() { python3 -m targetd.admin.cli "$@"; }
eventually() { # seconds, words…: until the command succeeds
    end=$((SECONDS + $1)); shift
    while ! "$@"; do
        [ $SECONDS -lt $end ] || { echo "not in time: $*"; targetdctl show disks; return 1; }
        sleep 0.3
    done
}
disk_says() { # node, answer: smartctl answers this from now on
    cp "$answers/$2.json" "/tmp/smart/$1.new"
    mv "/tmp/smart/$1.new" "/tmp/smart/$1.json"
}
is_shown() { targetdctl show disks | grep -q "/dev/$1 .*$2"; }
has() { # file, lines that it must contain, in extended regular expressions
    file=$1; shift
    for each in "$@"; do grep -qE -- "$each" "$file" || { echo "no line \"$each\" in:"; cat "$file"; return 1; }; done
}
attention() { # disk, words: TEST UNIT READY through the SCSI generic driver returns this unit attention
    sg_raw "/dev/$(ls "/sys/block/${1#/dev/}/device/scsi_generic")" 00 00 00 00 00 00 > /dev/null 2> /tmp/sense || true
    grep -qi "$2" /tmp/sense
}

real=$(command -v smartctl)
mkdir -p /tmp/smart /tmp/bin
cat > /tmp/bin/smartctl <<'PROGRAM'
#!/bin/sh
for node; do :; done
file=/tmp/smart/${node##*/}.json
cat "$file"
exit "$(sed -n 's/.*"exit_status": \([0-9]*\).*/\1/p' "$file")"
PROGRAM
chmod 755 /tmp/bin/smartctl
disk_says vdb hgst-sas
disk_says vdc intel-nvme
PATH=/tmp/bin:$PATH start_targetd /job/targetd.conf
start_iscsid
discover
login $target
sas=$(iscsi_disk $target 0) nvme=$(iscsi_disk $target 1)
eventually 120 is_shown vdb healthy
eventually 120 is_shown vdc healthy

say "a healthy SAS disk: log pages and smartctl"
sg_logs --all "$sas" > /tmp/pages
has /tmp/pages 'Current temperature = 36 C' 'Reference temperature = 65 C' 'Accumulated start-stop cycles = 61' \
    'Specified cycle count over device lifetime = 50000' 'Total errors corrected = 12' 'Total bytes processed = 184211501000000'
sg_logs -p 0x2f "$sas" > /tmp/exceptions
has /tmp/exceptions 'IE asc = 0x0, ascq = 0x0' '36 C'
sg_modes -p 0x1c "$sas" > /tmp/mode; has /tmp/mode 'Informational exceptions control'
$real -a -d scsi "$sas" | tee /tmp/smart.txt
has /tmp/smart.txt 'SMART Health Status: *OK' 'Current Drive Temperature: *36 C' 'Drive Trip Temperature: *65 C' \
    'Accumulated start-stop cycles: *61' 'Accumulated load-unload cycles: *2214' 'read: .* 12 .*184211\.501' 'Background short .*Completed .*41000'

say "an NVMe disk: its errors, self-tests and temperature in the terms of SCSI"
$real -a -d scsi "$nvme" | tee /tmp/smart.txt
has /tmp/smart.txt 'SMART Health Status: *OK' 'Current Drive Temperature: *38 C' 'Accumulated start-stop cycles: *119' \
    'Background short .*Completed .*8800' 'Background long .*8700'
if attention "$sas" 'impending failure'; then echo "a failure that no disk has predicted"; exit 1; fi

say "both disks predict their failure: one unit attention, then the log pages and smartctl say why"
disk_says vdb seagate-sas-failing
disk_says vdc kingston-nvme-worn
eventually 120 attention "$sas" 'asc, *ascq.*5d,* *14\|5d *14\|too many block reassigns'
cat /tmp/sense
eventually 120 attention "$nvme" 'endurance limit met'
cat /tmp/sense
if attention "$sas" 'impending failure' || attention "$nvme" 'impending failure'; then echo "it was reported twice"; exit 1; fi
sg_logs -p 0x2f "$sas" | tee /tmp/exceptions
has /tmp/exceptions 'IE asc = 0x5d, ascq = 0x14' '[Tt]oo many block reassigns' '44 C'
sg_logs -p 0x2f "$nvme" | tee /tmp/exceptions
has /tmp/exceptions 'IE asc = 0x5d, ascq = 0x73'
status=0; $real -a -d scsi "$sas" > /tmp/smart.txt || status=$?
cat /tmp/smart.txt
[ $((status & 8)) = 8 ]                                    # smartctl(8): SMART status check returned "DISK FAILING"
has /tmp/smart.txt 'SMART Health Status: .*TOO MANY BLOCK REASSIGNS.*asc=5d, ascq=14' 'Current Drive Temperature: *44 C' \
    'read: .* 90213 .*204211\.750 .* 212' 'Background long .*41011 .*99812345 \[0x3 0x11 0x0\]'
targetdctl show disks | grep '/dev/vdb .*failing'

say "the smartctl of the initiator writes in JSON what the one of the server has read"
$real --json=c -n standby -i -H -A -l error -l selftest -l scttempsts -d scsi "$sas" > /tmp/initiator.json || true
python3 - "$answers/seagate-sas-failing.json" /tmp/initiator.json <<'PYTHON'
import json, sys
from targetd.host import smart
server, initiator = (smart.parse(open(path).read(), 8) for path in sys.argv[1:])
keys = ('state', 'failure', 'temperature', 'limit', 'cycles', 'most_cycles', 'loads', 'most_loads', 'read', 'write', 'self_tests')
differ = {key: (server.get(key), initiator.get(key)) for key in keys if server.get(key) != initiator.get(key)}
print(json.dumps(initiator))
sys.exit('not the same: %r' % differ if differ else 0)
PYTHON

say "the disks still work, and the errors are no errors of commands"
head -c 1M /dev/urandom > /tmp/data
dd if=/tmp/data of="$sas" bs=64k oflag=direct conv=fsync status=none
dd if="$sas" of=/tmp/back bs=64k count=16 iflag=direct status=none
cmp /tmp/data /tmp/back
if dmesg | grep -iE 'i/o error|medium error'; then exit 1; fi
logout $target
stop_targetd
