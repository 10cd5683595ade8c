#!/bin/sh
# QEMU takes the fixed VHD that it has just created for a raw disk, 512 bytes longer than the disk in it
#
# Versions: qemu-utils 1:7.2+dfsg-7+deb12u18+b3, libaio1 0.3.113-4, liburing2 2.3-3, all from Debian 12.
#
# Expected: qemu-img knows the format "vpc", creates fixed VHDs, and recognises dynamic ones by the signature
# "conectix" in their first sector. One would guess that it recognises both kinds, or at least asks.
# Seen: a fixed VHD has its signature in its last 512 bytes only, and nothing looks there. Without -f, qemu-img info says
# "raw" with the footer as part of the disk, without a warning. A program that relies on the detection serves the
# footer as the last sector of the disk, where a guest may overwrite it: the backup GPT of a disk belongs there.
# With -f vpc the size is right.
#
# Output seen:
#   fixed without -f: raw 67109376
#   fixed with -f vpc: vpc 67108864
#   dynamic without -f: vpc 67108864
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
image() { root/usr/bin/qemu-img "$@"; }
image create -q -f vpc -o subformat=fixed,force_size=on fixed.vhd 64M
image create -q -f vpc -o subformat=dynamic,force_size=on dynamic.vhd 64M
facts() { image info --output=json "$@" | python3 -c '
import json, sys
found = json.load(sys.stdin)
print(found["format"], found["virtual-size"])'; }
{
    echo "fixed without -f: $(facts fixed.vhd)"
    echo "fixed with -f vpc: $(facts -f vpc fixed.vhd)"
    echo "dynamic without -f: $(facts dynamic.vhd)"
} | tee seen
[ "$(tail -c 512 fixed.vhd | head -c 8)" = conectix ]
diff - seen <<'SEEN'
fixed without -f: raw 67109376
fixed with -f vpc: vpc 67108864
dynamic without -f: vpc 67108864
SEEN
