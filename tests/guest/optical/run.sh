# In the guest: a drive with ISO images, as the kernel's sr driver and sg3_utils see it.
set -e
. /job/common.sh
target=iqn.2026-11.com.example:cd
seq 1 300000 > /tmp/hello.txt
echo second > /tmp/other.txt
python3 /src/tests/iso.py /tmp/first.iso FIRST /tmp/hello.txt
python3 /src/tests/iso.py /tmp/second.iso SECOND /tmp/hello.txt /tmp/other.txt
serve_and_login $target
tray() { # as eject(1): unlock, then the ioctl of the driver, which returns the status of a command that failed
    python3 -c "import fcntl, os; fd = os.open('$cd', os.O_RDONLY | os.O_NONBLOCK); fcntl.ioctl(fd, 0x5329, 0); exit(fcntl.ioctl(fd, $1))"
}
is_empty() { sg_turs $cd 2>&1 | grep -q 'not ready'; }          # a read would close the tray (autoclose)
label() { [ "$(blkid -p -o value -s LABEL "$cd")" = "$1" ]; }

say "the kernel's driver"
modprobe sr_mod
eventually 60 test -b /dev/sr0
cd=/dev/sr0
dmesg | grep -q 'sr 0:0:0:0: Power-on\|sr0: .*drive' || dmesg | tail -n 5
[ "$(cat /sys/block/sr0/size)" = "$(($(stat -c %s /tmp/first.iso) / 512))" ]
[ "$(cat /sys/block/sr0/removable /sys/block/sr0/queue/logical_block_size)" = "$(printf '1\n2048')" ]
grep -q 'Can play audio:.*0\|Can read DVD:.*1' /proc/sys/dev/cdrom/info
cmp "$cd" /tmp/first.iso
eventually 60 label FIRST

say "a file of the image; a host that does not answer the request keeps its medium"
mkdir -p /mnt/cd
mount -t iso9660 -o ro $cd /mnt/cd
cmp /mnt/cd/hello.txt /tmp/hello.txt
if control medium $target/0 /tmp/second.iso > /tmp/refused 2>&1; then echo "a mounted medium was exchanged"; exit 1; fi
grep -q 'does not allow its removal' /tmp/refused
umount /mnt/cd

say "another medium, without a new login"
echo 2000 > /sys/module/block/parameters/events_dfl_poll_msecs   # as the rules of udev have it after a boot
control medium $target/0 /tmp/second.iso
eventually 60 label SECOND
cmp $cd /tmp/second.iso
mount -t iso9660 -o ro $cd /mnt/cd
[ "$(cat /mnt/cd/other.txt)" = second ]
umount /mnt/cd

say "eject and load, by the initiator and by the administrator"
tray 0x5309                                   # CDROMEJECT
eventually 60 is_empty
tray 0x5319                                   # CDROMCLOSETRAY
eventually 60 label SECOND
control medium $target/0 none
eventually 60 is_empty
control medium $target/0 /tmp/first.iso
eventually 60 label FIRST
cmp $cd /tmp/first.iso

say "sg3_utils"
sg_inq $cd | grep -q 'PDT=5'
sg_get_config $cd > /tmp/features; cat /tmp/features
grep -qi "cd.rom" /tmp/features; grep -q "Removable media feature" /tmp/features
sg_turs $cd
sg_raw -r 20 $cd 43 00 00 00 00 00 00 00 14 00 2> /tmp/toc || { cat /tmp/toc; exit 1; }
grep -q '00 14 01 00' /tmp/toc
if sg_dd if=/dev/zero of=$cd bs=2048 count=1 2> /tmp/out; then echo "a drive was written"; exit 1; fi
sg_vpd -p sn $cd > /tmp/serial
logout $target
login $target
eventually 60 test -b $cd
sg_vpd -p sn $cd | cmp - /tmp/serial
cmp $cd /tmp/first.iso
logout $target
stop_targetd
say "the drive is as it should be"
