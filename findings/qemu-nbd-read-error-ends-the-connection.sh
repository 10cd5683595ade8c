#!/bin/sh
# One bad sector makes qemu-nbd end the connection, with everything else that is in flight on it
#
# Versions: qemu-utils 1:7.2+dfsg-7+deb12u18+b3, libaio1 0.3.113-4, liburing2 2.3-3, all from Debian 12.
#
# Expected: structured replies exist so that an error in the middle of a READ can be reported; a client that
# has negotiated them would guess that it gets an error chunk, as it gets a simple error reply without them.
# Seen: without the flag DF (one chunk only) on the READ, qemu-nbd has announced data before it reads, and ends the
# connection when the read fails. The READ of a good sector that was sent with it gets no reply. A client
# that connects again and repeats what was in flight would do so for ever. With DF the failed READ is answered
# with an error, and the other one with its data.
# The bad sector is made by qemu's own block driver for tests (blkdebug), under a disk without holes.
#
# Output seen:
#   plain: closed after []
#   DF: ['bad sector: error', 'good sector: data']
#
# Needs Debian 12's archive and python3. Everything is installed into a temporary folder. Exit code 0: still so.
# Not 0: the behaviour has changed.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
chmod 777 .
apt-get download -q qemu-utils=1:7.2+dfsg-7+deb12u18+b3 libaio1=0.3.113-4 liburing2=2.3-3 >/dev/null 2>&1
for package in *.deb; do dpkg -x "$package" root; done
export LD_LIBRARY_PATH="$folder/root/usr/lib/x86_64-linux-gnu:$folder/root/lib/x86_64-linux-gnu"
head -c 4M /dev/urandom >disk
cat >client.py <<'CLIENT'
import socket
import struct
import sys
import time

BAD, GOOD = 1, 2


def take(count):
    data = b''
    while len(data) < count:
        part = sock.recv(count - len(data))
        if not part:
            raise EOFError
        data += part
    return data


def option(number, data):
    """Negotiate an option, and skip its replies."""
    sock.sendall(b'IHAVEOPT' + struct.pack('>II', number, len(data)) + data)
    kind = 3
    while kind == 3:  # NBD_REP_INFO
        _, _, kind, size = struct.unpack('>QIII', take(20))
        take(size)
    assert kind == 1, 'option %d: reply %x' % (number, kind)


sock = socket.socket(socket.AF_UNIX)
for attempt in range(100):
    try:
        sock.connect('nbd.sock')
        break
    except OSError:
        time.sleep(0.1)
sock.settimeout(20)
take(18)
sock.sendall(struct.pack('>I', 1))  # fixed newstyle
option(8, b'')  # NBD_OPT_STRUCTURED_REPLY
option(7, struct.pack('>IH', 0, 0))  # NBD_OPT_GO, the default export
flags = 4 if sys.argv[1] == 'DF' else 0
requests = [(BAD, 1 << 20), (GOOD, 0)]
sock.sendall(b''.join(struct.pack('>IHHQQI', 0x25609513, flags, 0, *one, 4096) for one in requests))
names, replies = {BAD: 'bad sector', GOOD: 'good sector'}, []
try:
    while len(replies) < 2:
        _, _, kind, cookie, size = struct.unpack('>IHHQI', take(20))
        take(size)
        replies.append('%s: %s' % (names[cookie], 'error' if kind & 0x8000 else 'data'))
    print('%s: %s' % (sys.argv[1], sorted(replies)))
except (EOFError, ConnectionError):
    print('%s: closed after %s' % (sys.argv[1], replies))
CLIENT
for way in plain DF; do
    root/usr/bin/qemu-nbd -e 0 -k "$folder/nbd.sock" --image-opts driver=raw,file.driver=blkdebug,\
file.inject-error.0.event=read_aio,file.inject-error.0.errno=5,file.inject-error.0.sector=2048,\
file.image.driver=file,file.image.filename="$folder/disk" 2>/dev/null &
    server=$!
    timeout 60 python3 client.py $way
    kill $server 2>/dev/null || true
    wait $server || true
    rm -f nbd.sock
done | tee seen
diff - seen <<'SEEN'
plain: closed after []
DF: ['bad sector: error', 'good sector: data']
SEEN
