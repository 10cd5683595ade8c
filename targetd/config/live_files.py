"""The directory targetdctl.d: the changes that targetdctl has made, beside the main configuration file.

     /etc/targetd.conf --> /etc/targetdctl.d/*.conf     (NAME.conf --> NAMEctl.d)

Its files may contain secrets and decide which disks are served, so files that other users can write are
not read. live.conf is written by targetdctl; it is read last. May import base and config.live_difference.
"""

import errno
import os
import stat

from targetd.errors import Complaint, TargetdError
from targetd.trusted_path import open_trusted_directory, others_can_write

LIVE_FILE = 'live.conf'
UNFINISHED = '.live.conf.new'  # no *.conf: an unfinished file is not read
FORMER = '.live.conf.old'


def directory_of(path):
    """The directory of the changes of a main configuration file."""
    base, extension = os.path.splitext(path)
    return (base if extension == '.conf' else path) + 'ctl.d'


def live_file_of(path):
    """The file that targetdctl writes for a main configuration file."""
    return os.path.join(directory_of(path), LIVE_FILE)


def paths_of(path):
    """([path of each file], [Complaint]) of the directory of a main configuration file."""
    directory = directory_of(path)
    try:
        names = sorted(name for name in os.listdir(directory) if name.endswith('.conf'))
        names = [name for name in names if not name.startswith('.')]
        writable = [
            each
            for each in [directory] + [os.path.join(directory, name) for name in names]
            if others_can_write(os.stat(each))
        ]
    except OSError as e:
        if e.errno == errno.ENOENT:
            return [], []
        return [], [Complaint(directory, None, 'cannot be read: %s' % e.strerror, '')]
    if writable:
        return [], [
            Complaint(
                each,
                None,
                'other users can write it, so that anybody could change the configuration',
                'chown root %s; chmod go-w %s' % (each, each),
            )
            for each in writable
        ]
    names.sort(key=lambda name: name == LIVE_FILE)
    return [os.path.join(directory, name) for name in names], []


# -- writing, in a child process -------------------------------------------------------------------


def put_in_place(path, content):
    """Replace live.conf of the main file `path` by these bytes, durably; the former one is kept until
    forget_former() or take_back(). Raises TargetdError; then nothing has changed."""
    try:
        directory = _opened_directory(path)
    except OSError as e:
        raise _unwritable(path, e)
    try:
        _write(directory, content)
        _remove(directory, FORMER)
        if _exists(directory, LIVE_FILE):
            os.link(LIVE_FILE, FORMER, src_dir_fd=directory, dst_dir_fd=directory)
        os.rename(UNFINISHED, LIVE_FILE, src_dir_fd=directory, dst_dir_fd=directory)
        os.fsync(directory)
    except OSError as e:
        _remove(directory, UNFINISHED)
        raise _unwritable(path, e)
    finally:
        os.close(directory)


def take_back(path):
    """Undo put_in_place(): the change was not applied. Raises TargetdError."""
    try:
        directory = _opened_directory(path)
        try:
            if _exists(directory, FORMER):
                os.rename(FORMER, LIVE_FILE, src_dir_fd=directory, dst_dir_fd=directory)
            else:
                _remove(directory, LIVE_FILE)
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as e:
        raise _unwritable(path, e)


def forget_former(path):
    """The change is in force: the former file is not needed any more."""
    try:
        directory = _opened_directory(path)
    except OSError:
        return
    _remove(directory, FORMER)
    os.close(directory)


def _opened_directory(path):
    """A descriptor of the directory, which is created if it does not exist. Raises OSError,
    TargetdError."""
    name = directory_of(path)
    try:
        os.mkdir(name, 0o700)
    except FileExistsError:
        pass
    else:
        parent = open_trusted_directory(os.path.dirname(name))
        os.fsync(parent)
        os.close(parent)
    directory = open_trusted_directory(name)
    if others_can_write(os.fstat(directory)):
        os.close(directory)
        raise TargetdError(
            'the change is not made: other users can write the directory %s; chown root %s; chmod go-w %s'
            % (name, name, name)
        )
    return directory


def _write(directory, content):
    _remove(directory, UNFINISHED)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(UNFINISHED, flags, 0o600, dir_fd=directory)
    with os.fdopen(descriptor, 'wb') as f:
        f.write(content)
        f.flush()
        os.fsync(f.fileno())


def _exists(directory, name):
    try:
        return stat.S_ISREG(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False


def _remove(directory, name):
    try:
        os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        pass


def _unwritable(path, error):
    return TargetdError(
        'the change is not made, because it cannot be written to %s: %s'
        % (live_file_of(path), error.strerror)
    )
