"""The vault: the CHAP secrets of the server, in a memory file instead of this process's memory.

     child process: load the files --> seal --> secrets into the memory file --> exit
     this process:  <--- pickled Configuration with labels (config.sealed) ------+

A worker is forked from the master and inherits its memory, but it closes the descriptor of the vault
before it receives any data. The secrets are therefore never read into the memory of the master: a
child process loads the configuration, and the vault is mapped only while a hash is computed. Format:
the key of the labels, then for each secret its label, its length and its bytes.
"""

import contextlib
import mmap
import os
import pickle
import select
import signal
import struct
import time

from targetd import compat
from targetd.config import lint, live_files, loader, sealed
from targetd.config.sections import flattened, text_of
from targetd.errors import ConfigError, TargetdError
from targetd.master.processes import child

LENGTH = struct.Struct('>H')
LOAD_SECONDS = 60.0  # the files may be on a disk that has to spin up


class Vault(object):
    """The secrets of one configuration. descriptor: of the memory file."""

    def __init__(self, descriptor):
        self.descriptor = descriptor

    def close(self):
        """Forget the secrets."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None

    def key(self):
        """The key of the labels. Call it in a child process only."""
        return os.pread(self.descriptor, sealed.KEY_BYTES, 0)

    def fill(self, key, secrets):
        """Write the key and {label: secret}."""
        data = key + b''.join(
            mark + LENGTH.pack(len(secret)) + secret for mark, secret in sorted(secrets.items())
        )
        os.ftruncate(self.descriptor, len(data))
        os.pwrite(self.descriptor, data, 0)

    def write(self, content):
        """Hold these bytes instead of secrets."""
        os.ftruncate(self.descriptor, len(content))
        os.pwrite(self.descriptor, content, 0)

    def content(self):
        """The bytes of write(). Call it in a child process only."""
        return os.pread(self.descriptor, os.fstat(self.descriptor).st_size, 0)

    @contextlib.contextmanager
    def opened(self):
        """Map the vault for the time of the `with` block: a function that returns the secret of a
        label (hex digits) as a memoryview, which must not be copied or kept. It raises KeyError."""
        size = os.fstat(self.descriptor).st_size
        with mmap.mmap(self.descriptor, size, prot=mmap.PROT_READ) as mapping:
            views = [memoryview(mapping)]
            places = _places(mapping)

            def find(mark):
                start, length = places[bytes.fromhex(mark)]
                views.append(views[0][start : start + length])
                return views[-1]

            try:
                yield find
            finally:
                for view in reversed(views):
                    view.release()


def _places(data):
    """{label: (start, length) of its secret}"""
    places, position = {}, sealed.KEY_BYTES
    while position < len(data):
        start = position + sealed.LABEL_BYTES + LENGTH.size
        (length,) = LENGTH.unpack_from(data, start - LENGTH.size)
        places[data[position : position + sealed.LABEL_BYTES]] = start, length
        position = start + length
    return places


def new_vault():
    """An empty Vault. Raises OSError."""
    return Vault(compat.memory_file('targetd-secrets', 0))


def seal_here(configuration):
    """(sealed Configuration, Vault) of a Configuration that is in this process's memory already: for
    tests and for the demo, which has no secrets."""
    vault, key = new_vault(), os.urandom(sealed.KEY_BYTES)
    configuration, secrets = sealed.seal(configuration, key)
    vault.fill(key, secrets)
    return configuration, vault


class Loaded(object):
    """What was loaded. configuration: the sealed Configuration; vault: its Vault; texts: Vaults without a
    key that have the text of the whole configuration (config.sections), for the history, and the new
    live.conf of an edit; warnings: [text]; is_edited: True if live.conf changes."""

    def __init__(self, configuration, vault, whole, live, warnings, is_edited):
        self.configuration = configuration
        self.vault = vault
        self.whole = whole
        self.live = live
        self.warnings = warnings
        self.is_edited = is_edited

    def close(self):
        """Forget everything: the configuration is not put in force."""
        for vault in (self.whole, self.live, self.vault):
            vault.close()


def load(path, old=None, fork=os.fork, edit=None, comment=''):
    """Load the configuration in a child process. Returns a Loaded.

    old: the Vault of the configuration in force, whose labels shall be comparable; edit: function of
    sections (config.edits), called in the child process; comment: of its lines in live.conf. Raises
    TargetdError, ConfigError."""
    vaults = new_vault(), new_vault(), new_vault()
    try:
        loaded = _in_child(lambda: _load(path, vaults, old, edit, comment), fork)
        if isinstance(loaded, TargetdError):
            raise loaded
        return Loaded(loaded[0], *(vaults + loaded[1:]))
    except BaseException:
        for vault in vaults:
            vault.close()
        raise


def _load(path, vaults, old, edit, comment):
    key = os.urandom(sealed.KEY_BYTES) if old is None else old.key()
    vault, whole, live = vaults
    try:
        loaded = loader.load_all(path, edit, comment)
    except ConfigError as e:
        return without_places(e, path) if edit is not None else e
    except TargetdError as e:
        return e
    warnings = [str(warning) for warning in lint.warnings(loaded.configuration)]
    configuration, secrets = sealed.seal(loaded.configuration, key)
    vault.fill(key, secrets)
    whole.write(text_of(flattened(loaded.sections)).encode('utf-8', 'surrogateescape'))
    live.write(loaded.live.encode('utf-8', 'surrogateescape'))
    return configuration, warnings, loaded.is_edited


def without_places(error, path):
    """The ConfigError of a change: lines of live.conf that are not written yet have no place."""
    live = live_files.live_file_of(path)
    return ConfigError(
        [c._replace(file=None, line=None) if c.file == live else c for c in error.complaints]
    )


def _in_child(work, fork):
    """work() in a child process; returns what it returned. Raises TargetdError."""
    reading, writing = os.pipe()

    def inside():
        with os.fdopen(writing, 'wb') as pipe:
            pickle.dump(work(), pipe)
        os._exit(0)

    try:
        pid = child.fork(fork, inside)
    except OSError as e:
        os.close(reading)
        os.close(writing)
        raise TargetdError('no process can be forked to load the configuration: %s' % e.strerror)
    os.close(writing)
    try:
        data = _read_all(reading, time.monotonic() + LOAD_SECONDS)
    finally:
        os.close(reading)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    if not data:
        raise TargetdError(
            'the configuration could not be loaded within %d seconds; check the disk that its files '
            'are on' % LOAD_SECONDS
        )
    return pickle.loads(data)


def _read_all(descriptor, deadline):
    """Everything up to the end of the pipe; b'' if the time is over before."""
    poll, data = select.poll(), b''
    poll.register(descriptor, select.POLLIN)
    while poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        piece = os.read(descriptor, 1 << 16)
        if not piece:
            return data
        data += piece
    return b''
