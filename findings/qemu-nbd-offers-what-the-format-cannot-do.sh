#!/bin/sh
# qemu-nbd offers TRIM and FAST_ZERO for every format: a VHDX answers TRIM with success, and keeps its size
#
# Versions: qemu-utils 1:7.2+dfsg-7+deb12u18+b3, libaio1 0.3.113-4, liburing2 2.3-3, all from Debian 12.
#
# Expected: the transmission flags of NBD say what an export can do, so a storage server would derive from
# SEND_TRIM whether the disk is thin (SCSI: LBPU), above all with --discard=unmap.
# Seen: the flags are the same for all formats. 4 MiB are written and trimmed; qemu-io's discard reports success for
# each. The raw file and the qcow2 image give the space back, the VHDX and the dynamic VHD keep all of it. A
# server that believes the flags tells its clients that the disk is thin, and it fills up while they send UNMAP.
#
# Output seen:
#   raw: TRIM succeeds, and frees
#   qcow2: TRIM succeeds, and frees
#   vhdx: TRIM succeeds, and frees nothing
#   vpc: TRIM succeeds, and frees nothing
#
# Needs Debian 12's archive. Everything is installed into a temporary folder, whose file system must be able to punch holes.
# Exit code 0: still so. Not 0: the behaviour has changed.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
chmod 777 .
apt-get download -q qemu-utils=1:7.2+dfsg-7+deb12u18+b3 libaio1=0.3.113-4 liburing2=2.3-3 >/dev/null 2>&1
for package in *.deb; do dpkg -x "$package" root; done
export LD_LIBRARY_PATH="$folder/root/usr/lib/x86_64-linux-gnu:$folder/root/lib/x86_64-linux-gnu"
PATH="$folder/root/usr/bin:$PATH"

io() { timeout 20 qemu-io -f raw "nbd+unix:///?socket=$folder/nbd" -c "$1"; }

used() { # KiB that the file of the image takes
    sync "disk.$1"
    du -k "disk.$1" | cut -f 1
}

for format in raw qcow2 vhdx vpc; do
    qemu-img create -q -f $format disk.$format 64M
    qemu-nbd -t -e 0 --discard=unmap -f $format -k "$folder/nbd" disk.$format 2>/dev/null &
    server=$!
    for _ in $(seq 100); do
        if io 'write -P 7 8M 4M' >/dev/null 2>&1; then break; fi
        sleep 0.1
    done
    io flush >/dev/null
    before=$(used $format)
    if io 'discard 8M 4M' | grep -q '^discard 4194304/4194304'; then answer='TRIM succeeds'; else answer='TRIM fails'; fi
    io flush >/dev/null
    if [ "$(used $format)" -lt $((before - 3000)) ]; then effect='frees'; else effect='frees nothing'; fi
    echo "$format: $answer, and $effect"
    kill $server
    wait $server || true
    rm -f nbd
done | tee seen
diff - seen <<'SEEN'
raw: TRIM succeeds, and frees
qcow2: TRIM succeeds, and frees
vhdx: TRIM succeeds, and frees nothing
vpc: TRIM succeeds, and frees nothing
SEEN
