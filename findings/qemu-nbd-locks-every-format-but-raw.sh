#!/bin/sh
# Two qemu-nbd serve one raw disk at the same time, for writing; of any other format the second one is refused
#
# Versions: qemu-utils 1:7.2+dfsg-7+deb12u18+b3, libaio1 0.3.113-4, liburing2 2.3-3, all from Debian 12.
#
# Expected: QEMU locks the images that it has open for writing (since 2.10), so one would guess that a raw
# image, which is the usual format of a disk on a server, is locked as a qcow2 is.
# Seen: a second qemu-nbd on a qcow2 image ends with 'Failed to get "write" lock'. On a raw image it starts, and both
# servers write: qemu-nbd lets other writers share an image, and only formats with metadata of their own refuse
# that. Two servers that hand out one raw disk destroy its file system without a message.
#
# Output seen:
#   qcow2: the second server is refused
#   raw: the second server is admitted
#   raw: the first server reads what the second has written
#
# Needs Debian 12's archive. Everything is installed into a temporary folder. Exit code 0: still so. Not 0: the
# behaviour has changed.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
chmod 777 .
apt-get download -q qemu-utils=1:7.2+dfsg-7+deb12u18+b3 libaio1=0.3.113-4 liburing2=2.3-3 >/dev/null 2>&1
for package in *.deb; do dpkg -x "$package" root; done
export LD_LIBRARY_PATH="$folder/root/usr/lib/x86_64-linux-gnu:$folder/root/lib/x86_64-linux-gnu"
PATH="$folder/root/usr/bin:$PATH"

answers() { # server, socket: true as soon as the server gives the size of its disk; false when it has ended
    for _ in $(seq 100); do
        if timeout 10 qemu-img info "nbd+unix:///?socket=$folder/$2" >/dev/null 2>&1; then return 0; fi
        kill -0 "$1" 2>/dev/null || return 1
        sleep 0.1
    done
    return 1
}

io() { timeout 20 qemu-io -f raw "nbd+unix:///?socket=$folder/$1" -c "$2" >/dev/null 2>&1; }

for format in qcow2 raw; do
    qemu-img create -q -f $format disk.$format 4M
    qemu-nbd -t -e 0 -f $format -k "$folder/one" disk.$format 2>/dev/null &
    one=$!
    answers $one one
    qemu-nbd -t -e 0 -f $format -k "$folder/two" disk.$format 2>refusal &
    two=$!
    if answers $two two; then
        echo "$format: the second server is admitted"
        io one 'write -P 1 0 4096'
        io two 'write -P 2 0 4096'
        if io one 'read -P 2 0 4096'; then echo "$format: the first server reads what the second has written"; fi
    elif grep -q 'Failed to get .*lock' refusal; then
        echo "$format: the second server is refused"
    fi
    kill $one $two 2>/dev/null || true
    wait $one $two || true
    rm -f one two
done | tee seen
diff - seen <<'SEEN'
qcow2: the second server is refused
raw: the second server is admitted
raw: the first server reads what the second has written
SEEN
