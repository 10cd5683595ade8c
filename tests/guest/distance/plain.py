"""In the guest: plain TCP. The first byte of a connection: r, send until the client closes; w, receive until
then.

plain.py ADDRESS PORT
"""

import socket
import sys
import threading

SIZE = 1 << 18


def serve(sock):
    try:
        if sock.recv(1) == b'r':
            data = bytes(SIZE)
            while True:
                sock.sendall(data)
        room = bytearray(SIZE)
        while sock.recv_into(room):
            pass
    except OSError:
        pass
    sock.close()


def main(address, port):
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, int(port)))
        listener.listen(5)
        while True:
            threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()


main(*sys.argv[1:])
