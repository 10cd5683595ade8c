#!/bin/sh
# Linux: a listener bound to a network device stays deaf after the device was deleted and created again under its name
#
# Version seen: Linux 6.18.44, Debian's iproute2 6.1.0 and python3. Needs root and network namespaces (util-linux's unshare).
#
# Expected: SO_BINDTODEVICE takes a name, so a server that listens on "the VPN's device" goes on to do so when the VPN is
# restarted and its device has the same name and address again; or the listener reports an error, so that the server notices.
# Seen: the kernel keeps the number of the device. Once the device was deleted, every new connection to the device of the same
# name is refused. Nothing tells the server: the listener is still in state LISTEN, poll() reports no event on it, and
# getsockopt(SO_ERROR) returns 0. Only getsockopt(SO_BINDTODEVICE), which has to look up the number, fails with ENODEV.
# A server on such a device has to ask for it regularly, or follow netlink, and to listen anew.
#
# Output seen:
#   at first: connected
#   after the device was created again: ECONNREFUSED
#   listener: 0 events, SO_ERROR 0, SO_BINDTODEVICE ENODEV
#   a new listener: connected
#
# Exit code 0: still so. Not 0: the behaviour has changed.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/check.py" <<'CHECK'
import errno
import os
import select
import socket
import subprocess
import sys

ADDRESS = ('192.0.2.1', 3260)


def ip(*words):
    subprocess.check_call(('ip',) + words)


def create(namespace):
    """A device vpn0 with ADDRESS; its other end is in the namespace of that process."""
    ip('link', 'add', 'vpn0', 'type', 'veth', 'peer', 'name', 'client0', 'netns', str(namespace))
    ip('addr', 'add', '192.0.2.1/24', 'dev', 'vpn0')
    ip('link', 'set', 'vpn0', 'up')
    enter = ('nsenter', '--net=/proc/%d/ns/net' % namespace, 'ip')
    subprocess.check_call(enter + ('addr', 'add', '192.0.2.2/24', 'dev', 'client0'))
    subprocess.check_call(enter + ('link', 'set', 'client0', 'up'))


def listen():
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b'vpn0\0')
    listener.bind(ADDRESS)
    listener.listen(5)
    return listener


def connect(namespace):
    """'connected', or the name of the error, of a client in that namespace."""
    program = (
        'import errno, socket; s = socket.socket(); s.settimeout(10); e = s.connect_ex(%r); '
        'print(errno.errorcode[e] if e else "connected")' % (ADDRESS,)
    )
    command = ('nsenter', '--net=/proc/%d/ns/net' % namespace, sys.executable, '-c', program)
    return subprocess.check_output(command).decode().strip()


other = subprocess.Popen(('unshare', '--net', 'sh', '-c', 'echo; exec sleep 60'), stdout=subprocess.PIPE)
try:
    other.stdout.readline()
    create(other.pid)
    listener = listen()
    first = connect(other.pid)
    ip('link', 'del', 'vpn0')
    create(other.pid)
    second = connect(other.pid)
    poll = select.poll()
    poll.register(listener)
    listener.accept()[0].close()  # the connection of the beginning
    events = len(poll.poll(0))
    error = listener.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    try:
        device = listener.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16).decode()
    except OSError as e:
        device = errno.errorcode[e.errno]
    listener.close()
    anew = listen()
    third = connect(other.pid)
finally:
    other.kill()
    other.wait()
print('at first:', first)
print('after the device was created again:', second)
print('listener: %d events, SO_ERROR %d, SO_BINDTODEVICE %s' % (events, error, device))
print('a new listener:', third)
seen = (first, second, events, error, device, third)
sys.exit(0 if seen == ('connected', 'ECONNREFUSED', 0, 0, 'ENODEV', 'connected') else 1)
CHECK
unshare --net python3 "$folder/check.py"
