"""The files in state-dir/guards that keep old blocks of media (the setting guard): made, listed, put back
and removed.

May import host, store. Everything here runs in jobs, since state-dir and the media may be slow. A file is
named by the key of the unit's data and a number, which grows: `KEY-000007.kept`. A file is complete and
durable before the write that it precedes is done; one that is not complete is listed as such.
"""

import errno
import hashlib
import os
import re
import time

from targetd import log
from targetd.durable import make_directory
from targetd.host import guarded_areas, signatures
from targetd.store import failure_flags, from_descriptor, kept_blocks
from targetd.trusted_path import open_trusted_directory

NAME = re.compile(r'^([0-9a-f]{32})-([0-9]{6,})\.kept$')
MOST_FILES = 24  # of one unit
PIECE = 64 << 10
RESTORE = 'restore'


def name_of_key(key):
    """The part of a file's name that stands for the unit with this key."""
    return hashlib.sha256(key.encode('utf-8', 'surrogateescape')).hexdigest()[:32]


class Medium(object):
    """The medium of a unit in a job. description: of the OpenedStore; descriptor: of the master."""

    def __init__(self, description, descriptor):
        self._description = dict(
            description, filters=[], direct=False, flag=failure_flags.NO_FLAG, is_shared=False
        )
        self._descriptor = descriptor

    def _open(self, flags, journal=None, **words):
        own = os.open('/proc/self/fd/%d' % self._descriptor, flags | os.O_CLOEXEC)
        return from_descriptor(dict(self._description, **words), own, journal=journal)

    def readable(self):
        """A Store for reading what initiators read."""
        return self._open(os.O_RDONLY, read_only=True)

    def raw(self, journal=None):
        """A Store for reading and writing what is on the medium: of an encrypted one, the encrypted
        data. journal: as for store.undoing, if what is overwritten is recorded."""
        return self._open(os.O_RDWR, journal, read_only=False, cipher_key='')


def _directory(path):
    make_directory(path, 0o700)
    return open_trusted_directory(path)


def _numbers(directory, name):
    """The numbers of the files of one unit, ascending."""
    found = [NAME.match(each) for each in os.listdir(directory)]
    return sorted(int(match.group(2)) for match in found if match and match.group(1) == name)


def _open_file(directory, name, number, flags=os.O_RDONLY):
    path = '%s-%06d.kept' % (name, number)
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=directory)


def _unlink(directory, name, number):
    os.unlink('%s-%06d.kept' % (name, number), dir_fd=directory)


# -- keeping ---------------------------------------------------------------------------------------


def keep_heads(path, key, medium, words):
    """Keep the partition tables and the heads of the file systems of a Medium, unless the newest file of
    the unit has the same. path: of the directory; words: the description, JSON-able. Returns ({'number':
    of the file, 'is_new': bool}, ()). An error is {'failed': text}."""
    try:
        with medium.readable() as readable:
            areas, found = guarded_areas.find_areas(
                readable.read, readable.size, readable.block_size
            )
        contents = [signatures.one_line(each) for each in found]
        return _keep(path, name_of_key(key), medium, areas, dict(words, contents=contents)), ()
    except OSError as e:
        return {'failed': '%s: %s' % (path, e.strerror or e)}, ()


def _keep(path, name, medium, areas, words):
    with medium.raw() as raw:
        data = [
            piece for offset, length in areas for piece in _readable_pieces(raw, offset, length)
        ]
        words = dict(
            words,
            size=raw.size,
            time=int(time.time()),
            digest=_digest(data, words.get('key_check', '')),
        )
    directory = _directory(path)
    try:
        numbers = _numbers(directory, name)
        newest = numbers[-1] if numbers else 0
        if newest and _digest_of(directory, name, newest) == words['digest']:
            return {'number': newest, 'is_new': False}
        number = _write(directory, name, newest + 1, words, data)
        os.fsync(directory)
        for old in superfluous(
            [(each, _time_of(directory, name, each)) for each in _numbers(directory, name)],
            words['time'],
        ):
            _unlink(directory, name, old)
        return {'number': number, 'is_new': True}
    finally:
        os.close(directory)


def _readable_pieces(raw, offset, length):
    """[(offset, data)] of a range without what cannot be read: a write may be about to repair it."""
    try:
        return [(offset, bytes(raw.read(offset, length)))]
    except OSError:
        pass
    found = []
    for start in range(offset, offset + length, PIECE):
        try:
            found.append((start, bytes(raw.read(start, min(PIECE, offset + length - start)))))
        except OSError as e:
            log.warning('bytes %d and following cannot be kept: %s', start, e.strerror)
    return found


def _digest(areas, key_check):
    digest = hashlib.sha256(key_check.encode())  # the same bytes are other data with another key
    for offset, data in areas:
        digest.update(b'%d %d ' % (offset, len(data)))
        digest.update(data)
    return digest.hexdigest()


def _write(directory, name, number, words, areas):
    while True:
        try:
            descriptor = _open_file(directory, name, number, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            break
        except FileExistsError:  # another job keeps blocks of the same data
            number += 1
    try:
        kept_blocks.write_file(descriptor, words, areas)
    except BaseException:
        _unlink(directory, name, number)
        raise
    finally:
        os.close(descriptor)
    return number


def _description(directory, name, number):
    descriptor = _open_file(directory, name, number)
    try:
        return kept_blocks.read_description(descriptor)
    finally:
        os.close(descriptor)


def _digest_of(directory, name, number):
    """The digest of what a complete file keeps; None of another one."""
    descriptor = _open_file(directory, name, number)
    try:
        return kept_blocks.read_file(descriptor).description.get('digest')
    except OSError:
        return None
    finally:
        os.close(descriptor)


def _time_of(directory, name, number):
    try:
        return int(_description(directory, name, number).get('time', 0))
    except (OSError, ValueError, TypeError):
        return 0


def superfluous(entries, now, most=MOST_FILES):
    """The numbers of files to remove so that at most `most` remain: old ones are removed where they are
    close together, so that both yesterday and last month remain. entries: [(number, time)], ascending."""
    entries, removed = list(entries), []
    while len(entries) > most:
        # the first one remains, and the newest ones do, whose time is still to come
        gaps = [
            ((entries[i + 1][1] - entries[i - 1][1]) / (now - entries[i - 1][1] + 1.0), i)
            for i in range(1, len(entries) - 1)
        ]
        removed.append(entries.pop(min(gaps)[1])[0])
    return removed


# -- the administrator -----------------------------------------------------------------------------


def rows(path, units):
    """The rows of `guard list`, the newest first. units: {key: id of the unit that is served}. Returns
    ({'rows': [...]}, ())."""
    ids = {name_of_key(key): unit_id for key, unit_id in units.items()}
    found = []
    try:
        directory = open_trusted_directory(path)
    except FileNotFoundError:
        return {'rows': []}, ()
    except OSError as e:
        return {'failed': '%s: %s' % (path, e.strerror)}, ()
    try:
        for match in filter(None, map(NAME.match, os.listdir(directory))):
            found.append(_row(directory, match.group(1), int(match.group(2)), ids))
    finally:
        os.close(directory)
    return {'rows': sorted(found, key=lambda row: (row['unit'], -row['number']))}, ()


def _row(directory, name, number, ids):
    words, state = {}, 'complete'
    descriptor = _open_file(directory, name, number)
    try:
        stored = os.fstat(descriptor).st_size
        words = kept_blocks.read_description(descriptor)
        kept_blocks.read_file(descriptor)
    except OSError as e:
        state = str(e.strerror or e)
    finally:
        os.close(descriptor)
    return {
        'unit': ids.get(name) or str(words.get('unit', name)),
        'name': name,
        'number': number,
        'when': words.get('time', 0),
        'reason': words.get('reason', ''),
        'initiator_name': words.get('by', ''),
        'contents': ', '.join(map(str, words.get('contents', ()))) or 'no known format',
        'size': stored,
        'state': state,
    }


def restore(path, key, number, medium, words, journal=None):
    """Put the blocks of a file back, after what they replace is kept in a new one. journal: of
    store.undoing, if the unit has one. Returns ({'changed': bytes, 'number': of the new file}, ()). An
    error is {'failed': text}."""
    try:
        name = name_of_key(key)
        directory = _directory(path)
        try:
            descriptor = _open_file(directory, name, number)
        finally:
            os.close(directory)
        try:
            kept = kept_blocks.read_file(descriptor)
        finally:
            os.close(descriptor)
        _require_key(kept.description, words)
        areas = guarded_areas.merged((offset, len(data)) for offset, data in kept.areas)
        with medium.raw() as raw:
            if raw.size < kept.description.get('size', 0):
                raise OSError(
                    errno.EINVAL,
                    'the medium had %d bytes then, and has %d now'
                    % (kept.description['size'], raw.size),
                )
        words = dict(words, reason=RESTORE, contents=['before the restore of %d' % number])
        new = _keep(path, name, medium, areas, words)
        with medium.raw(journal) as raw:
            return {'changed': kept_blocks.put_back(raw, kept), 'number': new['number']}, ()
    except FileNotFoundError:
        return {'failed': 'there is no number %d; targetdctl guard list shows them' % number}, ()
    except OSError as e:
        return {'failed': str(e.strerror or e)}, ()


def _require_key(kept, now):
    """Raises OSError if what was kept is encrypted with another key than the medium has now: it would be
    read as random data."""
    key_check = now.get('key_check', '')
    if kept.get('key_check', key_check) != key_check:
        raise OSError(
            errno.EINVAL,
            'the disk was encrypted with another key then, or not at all: what was kept cannot be decrypted',
        )


def remove(path, name, number):
    """Remove the file with this number, or all of a unit if it is None. Returns ({'removed': how many},
    ()). An error is {'failed': text}."""
    try:
        directory = open_trusted_directory(path)
    except FileNotFoundError:
        return {'removed': 0}, ()
    try:
        wanted = [each for each in _numbers(directory, name) if number in (None, each)]
        for each in wanted:
            _unlink(directory, name, each)
        os.fsync(directory)
    except OSError as e:
        return {'failed': '%s: %s' % (path, e.strerror)}, ()
    finally:
        os.close(directory)
    return {'removed': len(wanted)}, ()


__all__ = ('Medium', 'keep_heads', 'name_of_key', 'remove', 'restore', 'rows')
