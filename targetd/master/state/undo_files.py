"""The undo journals in state-dir/guards (guard = undo-journal): their segments are made and erased.

May import host, store, state_directory, guard_files. Everything here runs in jobs; undo_history reads the
journals. The folder `NAME.undo`,
where NAME stands for the unit's data, has

     000001.undo …   segments (store.undo_records), whose numbers grow. A flock of the open file description
                     that a worker process has says that the segment is in use
     lock            the file for the range locks of all that write the medium (store.undoing); its time
                     says when the segments were erased
     interrupted     exists if the medium was written without the journal since, with the reason as its
                     content: what was recorded before does not lead to the present content, and cannot be
                     put back
     begins          why the journal was made to begin anew, if that has been noted

A new segment removes the oldest ones that are not in use, if the journal would be longer than its
`capacity`. Its description says up to which time records were removed (`horizon`); it is durable before
they are removed.
"""

import fcntl
import os
import re
import stat

from targetd import log
from targetd.durable import make_directory
from targetd.errors import StoreError
from targetd.master.state import guard_files
from targetd.master.state.state_directory import boot_id
from targetd.store import kept_blocks, range_locks, undo_records, undoing
from targetd.trusted_path import open_trusted_directory

NAME = re.compile(r'^([0-9]{6,})\.undo$')
LOCK, INTERRUPTED, BEGINS, FRESH = 'lock', 'interrupted', 'begins', 'new'
SERVED_WITHOUT = 'the disk was served without its undo journal since'
LONGEST_REASON = 1000
#: A segment is this part of the journal, within limits.
SHARE, SHORTEST, LONGEST = 16, 1 << 20, 256 << 20
#: More segments than this are not kept, since all of them are opened to put something back.
MOST_SEGMENTS = 256
#: The mode of a segment that has been cut after its last record: nobody writes it any more.
CUT = 0o400
SECOND = 1000000000


def name_of_unit(key):
    """The part of the folder's name that stands for the medium of the unit with this key. All units of a
    medium have the same journal."""
    return guard_files.name_of_key(key.partition('\0')[2] or key)


def path_of(guards, key):
    """The path of the journal of the unit with this key. guards: the path of state-dir/guards."""
    return os.path.join(guards, name_of_unit(key) + '.undo')


def segment_length(capacity):
    return max(SHORTEST, min(LONGEST, capacity // SHARE))


class _Folder(object):
    """Context manager: the folder of a journal; others that create, list or remove its segments wait."""

    def __init__(self, path):
        self.descriptor = open_trusted_directory(path)

    def __enter__(self):
        fcntl.flock(self.descriptor, fcntl.LOCK_EX)
        return self

    def __exit__(self, *failure):
        os.close(self.descriptor)

    def numbers(self):
        found = [NAME.match(each) for each in os.listdir(self.descriptor)]
        return sorted(int(match.group(1)) for match in found if match)

    def open(self, name, flags=os.O_RDONLY, mode=0o600):
        if isinstance(name, int):
            name = '%06d.undo' % name
        return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=self.descriptor)

    def has(self, name):
        return name in os.listdir(self.descriptor)

    def text(self, name):
        """The content of a small file; None if there is none."""
        try:
            descriptor = self.open(name)
        except FileNotFoundError:
            return None
        with os.fdopen(descriptor, encoding='utf-8', errors='replace') as file:
            return file.read(LONGEST_REASON).strip()

    def put(self, name, text):
        """Makes a small file, which is durable after sync()."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        with os.fdopen(self.open(name, flags), 'w', encoding='utf-8') as file:
            file.write(text[:LONGEST_REASON])
            file.flush()
            os.fsync(file.fileno())

    def unlink(self, name):
        os.unlink('%06d.undo' % name if isinstance(name, int) else name, dir_fd=self.descriptor)

    def sync(self):
        os.fsync(self.descriptor)


class _Read(object):
    """A segment that is read. It counts as in use until it is closed."""

    def __init__(self, folder, number):
        self.number = number
        self.descriptor = folder.open(number)
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_SH)
            self.size = os.fstat(self.descriptor).st_size
            self.description = kept_blocks.read_description(self.descriptor)
        except BaseException:
            self.close()
            raise

    def entries(self):
        return undo_records.entries(self.descriptor, self.size)

    def close(self):
        os.close(self.descriptor)


class Segments(object):
    """Context manager: all segments of a journal, in ascending order. horizon: nanoseconds since 1970,
    before which records are missing; interruption: why nothing of them can be put back, or ''; beginning:
    why the journal begins at its horizon, '' if it is not known."""

    def __init__(self, path):
        self.all, self.horizon = [], 0
        with _Folder(path) as folder:
            found = folder.text(INTERRUPTED)
            self.interruption = '' if found is None else found or SERVED_WITHOUT
            erased, self.beginning = _erased_at(folder), folder.text(BEGINS) or ''
            try:
                for number in folder.numbers():
                    self.all.append(_Read(folder, number))
            except BaseException:
                self.__exit__()
                raise
        for segment in self.all:
            self.horizon = max(self.horizon, segment.description['horizon'])
        if not self.all and erased:
            self.horizon = erased + 1
        if self.horizon != erased + 1:
            self.beginning = ''
        boots = []
        for segment in self.all:
            if segment.description['boot'] not in boots:
                boots.append(segment.description['boot'])
            segment.boot = boots.index(segment.description['boot'])

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        for segment in self.all:
            segment.close()


# -- new segments ----------------------------------------------------------------------------------


def new_segment(path, capacity, words):
    """A job: a new segment for a worker. path: of the journal; words: its description, JSON-able. Returns
    ({'capacity': capacity}, [descriptor of the segment, descriptor of the lock file]). An error is
    {'failed': text}."""
    try:
        return {'capacity': capacity}, make_segment(path, capacity, words)
    except OSError as e:
        return {'failed': '%s: %s' % (path, e.strerror or e)}, ()


def make_segment(path, capacity, words):
    """[descriptor of a new segment, descriptor of the lock file]. Raises OSError."""
    make_directory(path, 0o700)
    opened = []
    with _Folder(path) as folder:
        try:
            if not folder.has(LOCK):
                os.close(folder.open(LOCK, os.O_RDWR | os.O_CREAT))
                os.utime(LOCK, ns=(0, 0), dir_fd=folder.descriptor)
            opened.append(folder.open(LOCK, os.O_RDWR))
            # workers open it through its descriptor; the folder is closed to them
            os.fchmod(opened[0], 0o666)
            length = segment_length(capacity)
            numbers = folder.numbers()
            removable = _cut_segments(folder, numbers)
            removable += _superfluous(
                folder, [n for n in numbers if n not in removable], capacity - length
            )
            words = dict(words, boot=boot_id(), horizon=_horizon(folder, numbers, removable))
            opened.insert(0, _create(folder, length, words))
            os.rename(
                FRESH,
                '%06d.undo' % ((numbers[-1] if numbers else 0) + 1),
                src_dir_fd=folder.descriptor,
                dst_dir_fd=folder.descriptor,
            )
            folder.sync()
            for number in removable:
                folder.unlink(number)
            folder.sync()
        except BaseException:
            for descriptor in opened:
                os.close(descriptor)
            raise
    return opened


def _erased_at(folder):
    """When the segments of a journal were erased, in nanoseconds since 1970; 0 if there were none. It is the
    time of the lock file, which nobody writes."""
    try:
        return os.stat(LOCK, dir_fd=folder.descriptor).st_mtime_ns
    except FileNotFoundError:
        return 0


def _create(folder, length, words):
    """The descriptor of a segment that is not named yet, with its description."""
    descriptor = folder.open(FRESH, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    try:
        os.posix_fallocate(descriptor, 0, length)  # later, no record fails because of a full disk
        kept_blocks.put(descriptor, kept_blocks.description_record(words))
        os.fsync(descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    except BaseException:
        os.close(descriptor)
        folder.unlink(FRESH)
        raise
    return descriptor


def _cut_segments(folder, numbers):
    """Cut each segment that is not in use any more after its last record, so that a session that writes
    little takes little of the journal. Returns the numbers of those without a record."""
    empty = []
    for number in numbers:
        if _mode(folder, number) == CUT or _is_in_use(folder, number):
            continue
        descriptor = folder.open(number, os.O_RDWR)
        try:
            size = os.fstat(descriptor).st_size
            end = 0
            for _, entry in undo_records.entries(descriptor, size):
                end = entry.end
            if end:
                os.ftruncate(descriptor, end)
            else:
                empty.append(number)
        except OSError as e:  # it is damaged: it stays as it is, and nothing is put back from it
            log.error('segment %d of an undo journal cannot be read: %s', number, e.strerror or e)
        finally:
            os.fchmod(descriptor, CUT)
            os.close(descriptor)
    return empty


def _mode(folder, number):
    return stat.S_IMODE(os.stat('%06d.undo' % number, dir_fd=folder.descriptor).st_mode)


def _superfluous(folder, numbers, room):
    """The numbers of the oldest segments to remove, so that the others are at most `room` bytes long if
    enough of them are not in use."""
    lengths, removable = {}, []
    for number in numbers:
        descriptor = folder.open(number)
        lengths[number] = os.fstat(descriptor).st_size
        os.close(descriptor)
    total, count = sum(lengths.values()), len(numbers)
    for number in numbers:
        if total <= room and count < MOST_SEGMENTS:
            break
        if not _is_in_use(folder, number):
            removable.append(number)
            total -= lengths[number]
            count -= 1
    return removable


def _is_in_use(folder, number):
    descriptor = folder.open(number)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)


def _horizon(folder, numbers, removable):
    """The horizon of the next segment, if these are removed. Of the first one: now, as `guard list` shows
    it, in whole seconds; or when others were erased."""
    if not numbers:
        erased = _erased_at(folder)
        return erased + 1 if erased else undoing.clocks()[1] // SECOND * SECOND
    found = 0
    for number in numbers:
        segment = _Read(folder, number)
        try:
            found = max(found, segment.description['horizon'])
            if number in removable:
                found = max(found, _end_of(segment))
        finally:
            segment.close()
    return found


def _end_of(segment):
    """The time after the last record of a segment; now, if it is damaged."""
    try:
        last = undo_records.last_stamp(segment.descriptor, segment.size)
    except OSError:
        return undoing.clocks()[1]
    return last.wall + 1 if last else 0


# -- the ends of a history -------------------------------------------------------------------------


def interrupt(guards, key, why=SERVED_WITHOUT):
    """The unit is about to be written without its journal; why: a sentence. Raises StoreError if that cannot
    be noted: what is in the journal could otherwise be put back over a content that it does not lead to."""
    path = path_of(guards, key)
    if not os.path.isdir(path):
        return
    try:
        with _Folder(path) as folder:
            if folder.has(LOCK) and not folder.has(INTERRUPTED):
                folder.put(INTERRUPTED, why)
                folder.sync()
    except OSError as e:
        raise StoreError(
            '%s: it cannot be noted that the disk is written without its undo journal (%s); correct that, or '
            'remove the journal' % (path, e.strerror)
        )


def resume(guards, key):
    """The unit is about to be written with its journal: one that was interrupted begins anew. Raises
    StoreError."""
    path = path_of(guards, key)
    if not os.path.exists(os.path.join(path, INTERRUPTED)):
        return
    failed = None
    try:
        with _Folder(path) as folder:
            why = folder.text(INTERRUPTED) or SERVED_WITHOUT
        failed = erase(path, False)[0].get('failed')
        if failed is None:
            with _Folder(path) as folder:
                folder.put(BEGINS, why)
                folder.unlink(INTERRUPTED)
                folder.sync()
    except OSError as e:
        failed = e.strerror
    if failed is not None:
        raise StoreError('%s: its undo journal cannot begin anew: %s' % (path, failed))


def erase(path, overwrite=True):
    """A job: erase the segments of a journal, with their content. No write of a worker is in progress
    meanwhile, and the next one begins a new journal. Returns ({'removed': how many}, ()). An error is
    {'failed': text}."""
    if not os.path.isdir(path):
        return {'removed': 0}, ()
    try:
        with _Folder(path) as folder:
            numbers = folder.numbers()
            if not folder.has(LOCK):
                return {'removed': 0}, ()
            lock = folder.open(LOCK, os.O_RDWR)
            try:
                end = range_locks.deadline()
                range_locks.lock_range(lock, True, 0, undoing.WHOLE, end)
                for number in numbers:
                    if overwrite:
                        _overwrite(folder, number)
                    folder.unlink(number)
                if folder.has(BEGINS):
                    folder.unlink(BEGINS)
                now = undoing.clocks()[1]
                os.utime(lock, ns=(now, now))
                os.fsync(lock)
                folder.sync()
            finally:
                os.close(lock)
            return {'removed': len(numbers)}, ()
    except OSError as e:
        return {'failed': '%s: %s' % (path, e.strerror or e)}, ()


def _overwrite(folder, number):
    os.chmod('%06d.undo' % number, 0o600, dir_fd=folder.descriptor)
    descriptor = folder.open(number, os.O_WRONLY)
    try:
        left, zeroes = os.fstat(descriptor).st_size, bytes(kept_blocks.PIECE)
        while left > 0:
            left -= os.write(descriptor, zeroes[: min(left, len(zeroes))])
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def own_journal(path, capacity, words):
    """The Journal of a job that writes the medium itself: it makes its segments."""

    def own_segment():
        segment, lock = make_segment(path, capacity, words)
        return undoing.Segment(segment, capacity), lock

    return undoing.Journal(own_segment, lambda error: error)


__all__ = (
    'Segments',
    'erase',
    'interrupt',
    'make_segment',
    'name_of_unit',
    'new_segment',
    'own_journal',
    'path_of',
    'resume',
)
