#!/bin/sh
# libiscsi's test suite wants data to be lost: WriteSame10.UnmapUntilEnd
#
# Versions: libiscsi-bin 1.19.0-3 and tgt 1:1.0.85-1+deb12u1, both from Debian 12.
#
# Expected: SBC-3 lets a device server unmap blocks for WRITE SAME with UNMAP = 1 only if later reads return the
# block that was sent (it says so in its description of the command and of the LBPRZ bit). The test sends a block
# of 0xFF bytes with UNMAP = 1 and should read 0xFF back, or nothing should be compared.
# Seen: the test reads the blocks back and passes only if they are ZEROES. tgtd passes, since it punches a hole
# without looking at the block: WRITE SAME with UNMAP = 1 and 0xFF data leaves zeroes on the medium.
# So a target that keeps the data that it was given fails this test, and one that discards it passes.
#
# Output seen (shortened):
#   the test passed; it sent blocks of: ff and wanted zeroes back
#   after WRITE SAME of 0xff with UNMAP: 00 (tgtd, thin-provisioned LUN)
#
# Needs Debian 12's archive, root, and python3. Everything is installed into a temporary folder and only loopback
# is used. Exit code 0: still so. Not 0: the behaviour has changed.
set -eu
folder=$(mktemp -d)
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
pid=''
finish() {
    [ -z "$pid" ] || kill -9 "$pid" 2>/dev/null || true
    rm -rf "$folder"
}
trap finish EXIT
cd "$folder"
chmod 777 .
apt-get download -q libiscsi-bin=1.19.0-3 libiscsi7=1.19.0-3 tgt=1:1.0.85-1+deb12u1 >/dev/null 2>&1
for package in *.deb; do dpkg -x "$package" root; done
export LD_LIBRARY_PATH="$folder/root/usr/lib/x86_64-linux-gnu:$folder/root/usr/lib/aarch64-linux-gnu"

truncate -s 64M disk.img
export TGT_IPC_SOCKET="$folder/control"
root/usr/sbin/tgtd -f -C 77 --iscsi "portal=127.0.0.1:$port" >tgtd.log 2>&1 &
pid=$!
admin() { root/usr/sbin/tgtadm -C 77 --lld iscsi "$@"; }
for _ in $(seq 100); do admin --op show --mode sys >/dev/null 2>&1 && break; sleep 0.1; done
admin --op new --mode target --tid 1 -T iqn.2026-11.test:thin
admin --op new --mode logicalunit --tid 1 --lun 1 -b "$folder/disk.img"
admin --op update --mode logicalunit --tid 1 --lun 1 --params thin_provisioning=1
admin --op bind --mode target --tid 1 -I ALL

# A relay in between notes the first byte of the block that each WRITE SAME(10) with UNMAP = 1 carries.
cat >relay.py <<'RELAY'
import socket, sys, threading

def pdus(source):
    while True:
        header = source.recv(48, socket.MSG_WAITALL)
        if len(header) < 48:
            return
        length = int.from_bytes(header[5:8], 'big') + 3 & ~3
        yield header, source.recv(length, socket.MSG_WAITALL) if length else b''

def back(source, sink):
    for header, data in pdus(source):
        sink.sendall(header + data)

listener = socket.socket()
listener.bind(('127.0.0.1', 0))
listener.listen(8)
print(listener.getsockname()[1], flush=True)
while True:
    client, _ = listener.accept()
    server = socket.create_connection(('127.0.0.1', int(sys.argv[1])))
    threading.Thread(target=back, args=(server, client), daemon=True).start()

    def forth(client=client, server=server):
        for header, data in pdus(client):
            if header[0] & 0x3F == 1 and header[32] == 0x41 and header[33] & 8:
                open('blocks', 'a').write('%02x' % data[0] + '\n')
            server.sendall(header + data)
    threading.Thread(target=forth, daemon=True).start()
RELAY
python3 relay.py "$port" >relay.port & relay=$!
for _ in $(seq 100); do [ -s relay.port ] && break; sleep 0.1; done
url="iscsi://127.0.0.1:$(cat relay.port)/iqn.2026-11.test:thin/1"
timeout 60 root/usr/bin/iscsi-test-cu -d -V -t ALL.WriteSame10.UnmapUntilEnd "$url" >suite.log 2>&1 || true
kill "$relay"
if ! grep -q 'verify they are all zero' suite.log || ! grep -qE '^ +tests +1 +1 +1 +0' suite.log; then
    echo 'the test does not want zeroes, or does not pass against a target that discards the data, any more'
    tail -n 30 suite.log; exit 1
fi
echo "the test passed; it sent blocks of: $(sort -u blocks | tr '\n' ' ')and wanted zeroes back"
[ "$(sort -u blocks)" = ff ] || { echo 'it sends other data now'; exit 1; }
found=$(tail -c 512 disk.img | od -An -tx1 -N1 | tr -d ' ')
echo "after WRITE SAME of 0xff with UNMAP: $found (tgtd, thin-provisioned LUN)"
[ "$found" = 00 ] || { echo 'the medium holds something else now'; exit 1; }
