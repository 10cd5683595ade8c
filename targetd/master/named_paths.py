"""The paths in [server] that are used only when something happens: files that are published, captures, the
command of on-event. A start succeeds without them, so `targetd -t` warns.
"""

import os
import shlex
import shutil
import stat


def complaints(server):
    """[sentence] about a config.model.Server; another user than root looks at what exists only."""
    found = []
    if server.capture_on_error:
        found += _directory('capture-on-error', server.capture_on_error)
    for setting, path in (
        ('metrics-file', server.metrics_file),
        ('status-file', server.status_file),
    ):
        if path:
            found += _file(setting, path)
    if server.on_event:
        found += _command('on-event', server.on_event)
    return found


def _is_root():
    return os.geteuid() == 0


def _directory(setting, path):
    if not os.path.isdir(path):
        why = 'is not a directory' if os.path.lexists(path) else 'does not exist'
        return ['%s: the directory %s %s; create it with "mkdir -p"' % (setting, path, why)]
    if _is_root() and not os.access(path, os.W_OK):
        return ['%s: %s cannot be written; write another directory' % (setting, path)]
    return []


def _file(setting, path):
    if os.path.isdir(path):
        return ['%s: %s is a directory; write the name of a file in it' % (setting, path)]
    return _directory(setting, os.path.dirname(path) or '/')


def _command(setting, command):
    try:
        words = shlex.split(command)
    except ValueError as e:
        return ['%s: "%s" cannot be split into words: %s' % (setting, command, e)]
    if not words:
        return ['%s: the command is empty; leave it out' % setting]
    program = words[0]
    if '/' not in program:
        missing = '%s: there is no program %s; write its whole path' % (setting, program)
        return [] if shutil.which(program) else [missing]
    if not program.startswith('/'):
        return ['%s: %s is run in the directory /; write its whole path' % (setting, program)]
    try:
        mode = os.stat(program).st_mode
    except PermissionError:
        return []
    except OSError as e:
        return ['%s: %s cannot be run: %s; write another command' % (setting, program, e.strerror)]
    if not stat.S_ISREG(mode):
        return ['%s: %s is not a program; write another command' % (setting, program)]
    if not mode & 0o111:
        return ['%s: %s is not executable; chmod +x %s' % (setting, program, program)]
    return []
