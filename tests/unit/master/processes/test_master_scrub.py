"""Secrets are removed from the memory that a child process inherits."""

import os

from targetd.master.processes import scrub

KEY = '5ca1ab1e' * 8


def test_every_copy_of_a_secret_is_overwritten():
    held = [KEY + str(number) for number in range(3)] + [bytes.fromhex(KEY)]
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            scrub.forget([KEY])
            still = [held[0].startswith('5ca1'), held[3] == bytes(32)]
            os.write(writing, repr((still, held[1][-1])).encode())
        finally:
            os._exit(0)
    os.close(writing)
    os.waitpid(pid, 0)
    assert os.read(reading, 100) == repr(([False, True], '1')).encode()
    os.close(reading)
    assert held[0].startswith(KEY)  # that of the parent


def test_without_secrets_nothing_is_searched(monkeypatch):
    monkeypatch.setattr(scrub, '_writable_regions', None)
    scrub.forget([])
