"""In the guest: begins 40 connections at once, and prints how many were accepted within two seconds, and how
many seconds that took.

knock.py SOURCE ADDRESS PORT
"""

import select
import socket
import sys
import time

COUNT = 40


def main(source, address, port):
    begun, waiting, accepted = time.monotonic(), [], 0
    for _ in range(COUNT):
        sock = socket.socket(socket.AF_INET6 if ':' in address else socket.AF_INET)
        sock.bind((source, 0))
        sock.setblocking(False)
        sock.connect_ex((address, int(port)))
        waiting.append(sock)
    end = time.monotonic() + 2
    while waiting and time.monotonic() < end:
        for sock in select.select([], waiting, [], max(0, end - time.monotonic()))[1]:
            waiting.remove(sock)
            accepted += sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
    print(accepted, int(time.monotonic() - begun))


main(*sys.argv[1:])
