"""exclusive_range(): one thread of one process at a time can have the same bytes."""

import json
import os
import signal
import subprocess
import sys
import threading

import pytest

from targetd.store import opened_store, opening

SIZE = 1 << 20
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(opening.__file__)))

COUNTER = '''
import json, sys, threading
from targetd import store
medium = store.from_descriptor(json.loads(sys.argv[1]), int(sys.argv[2]))
def count():
    for _ in range(int(sys.argv[3])):
        with medium.exclusive_range(0, 512):
            value = int.from_bytes(medium.read(0, 8), "little")
            medium.write(0, (value + 1).to_bytes(8, "little"), False)
threads = [threading.Thread(target=count) for _ in range(2)]
for each in threads: each.start()
for each in threads: each.join()
'''

HOLDER = '''
import json, sys, time
from targetd import store
medium = store.from_descriptor(json.loads(sys.argv[1]), int(sys.argv[2]))
with medium.exclusive_range(4096, 4096):
    print("inside", flush=True)
    time.sleep(600)
'''


def worker(script, made, *arguments):
    words = [
        sys.executable,
        '-c',
        script,
        json.dumps(made.description()),
        str(made.descriptor),
    ] + list(arguments)
    return subprocess.Popen(words, pass_fds=[made.descriptor], stdout=subprocess.PIPE, cwd=ROOT)


@pytest.mark.parametrize('kind', ['file', 'ram', 'block'])
def test_threads_and_processes_exclude_each_other(kind, tmp_path, opened, loop_device):
    wanted = {'kind': kind, 'size': SIZE}
    if kind != 'ram':
        wanted['path'] = (
            loop_device(512, SIZE) if kind == 'block' else str(tmp_path / 'counter.img')
        )
    made = opened(wanted)
    workers = [worker(COUNTER, made, '150') for _ in range(3)]
    for each in workers:
        each.communicate(timeout=120)
        assert each.returncode == 0
    with made.store() as medium:
        assert int.from_bytes(medium.read(0, 8), 'little') == 3 * 2 * 150


def test_another_range_is_free_and_the_lock_of_a_killed_process_is_released(opened):
    made = opened({'kind': 'ram', 'size': SIZE})
    holder = worker(HOLDER, made)
    medium = made.store()
    try:
        assert holder.stdout.readline() == b'inside\n'
        with medium.exclusive_range(0, 4096):
            pass
        with medium.exclusive_range(8192, 4096):
            pass
        entered = threading.Event()

        def enter():
            with medium.exclusive_range(8191 - 512, 512):
                entered.set()

        waiting = threading.Thread(target=enter)
        waiting.start()
        assert not entered.wait(0.2)
        holder.send_signal(signal.SIGKILL)
        assert entered.wait(30)
        waiting.join(30)
    finally:
        holder.kill()
        holder.communicate()
        medium.close()


def test_the_range_is_released_after_an_error(opened):
    medium = opened({'kind': 'ram', 'size': SIZE}).store()
    with pytest.raises(ZeroDivisionError):
        with medium.exclusive_range(0, 512):
            raise ZeroDivisionError
    medium.close()
    with pytest.raises(OSError):
        with opened_store.RamStore(
            {'kind': 'ram', 'size': SIZE}, os.open(os.devnull, os.O_RDONLY)
        ).exclusive_range(0, 512):
            pass  # a descriptor that cannot be locked for writing
    other = opened({'kind': 'ram', 'size': SIZE}).store()
    with other.exclusive_range(0, 512):
        pass
    other.close()
