"""`targetd --install-files`: puts the init script, the manual pages and the other files of targetd where
the system keeps them, and takes them back.

May import base. The sources are in targetd/files of an installed package or of the program of one file
(targetd.pyz), or in the source tree. A list of what was installed, with checksums, shows which files the
administrator has changed: such a file is neither overwritten nor removed.
"""

import hashlib
import json
import os
import pkgutil
import sys
from collections import namedtuple

from targetd.durable import make_directory
from targetd.errors import TargetdError

PACKAGE = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
TREE = os.path.dirname(PACKAGE)  # a directory, or the program of one file (targetd.pyz)
INSTALLED = '/var/lib/targetd/installed-files'
DEFAULTS = '/etc/default/targetd'
#: Directories in which the system finds programs, so that they need no link.
BINARY_FOLDERS = '/usr/local/sbin /usr/local/bin /usr/sbin /usr/bin /sbin /bin'.split()

#: One file. source: below the folder of the sources; target: absolute path; mode; init: word of INITS
#: for which it is installed, or ''; folder: only if this directory exists, or ''.
File = namedtuple('File', 'source target mode init folder')

#: Samples that the administrator changes and puts in place himself: below etc, and below this directory.
EXAMPLES = '/usr/local/share/targetd/examples'
EXAMPLE_FILES = (
    ('fail2ban/jail.d/targetd.conf', 0o644),
    ('firewall/targetd.nft', 0o644),
    ('firewall/targetd-iptables', 0o755),
    ('stunnel/server.conf', 0o644),
    ('stunnel/client.conf', 0o644),
    ('ipsec/server.conf', 0o644),
    ('ipsec/client.conf', 0o644),
    ('ipsec/retransmit.conf', 0o644),
    ('ipsec/windows.conf', 0o644),
    ('ipsec/guard.nft', 0o644),
    ('wireguard/server.conf', 0o644),
    ('wireguard/client.conf', 0o644),
    ('multipath/targetd.conf', 0o644),
)

# fmt: off
FILES = (
    File('etc/targetd.conf', '/etc/targetd.conf', 0o600, '', ''),
    File('etc/logrotate', '/etc/logrotate.d/targetd', 0o644, '', ''),
    File('etc/targetdctl.bash-completion', '/usr/local/share/bash-completion/completions/targetdctl', 0o644,
         '', ''),
    File('etc/fail2ban/filter.d/targetd.conf', '/etc/fail2ban/filter.d/targetd.conf', 0o644, '',
         '/etc/fail2ban/filter.d'),
    File('etc/firewall/firewalld.xml', '/etc/firewalld/services/targetd.xml', 0o644, '',
         '/etc/firewalld/services'),
    File('etc/firewall/ufw', '/etc/ufw/applications.d/targetd', 0o644, '', '/etc/ufw/applications.d'),
    File('man/targetd.8', '/usr/local/share/man/man8/targetd.8', 0o644, '', ''),
    File('man/targetdctl.8', '/usr/local/share/man/man8/targetdctl.8', 0o644, '', ''),
    File('man/targetd.conf.5', '/usr/local/share/man/man5/targetd.conf.5', 0o644, '', ''),
    File('man/targetd-networks.7', '/usr/local/share/man/man7/targetd-networks.7', 0o644, '', ''),
    File('init/targetd', '/etc/init.d/targetd', 0o755, 'sysv', ''),
    File('init/targetd.service', '/etc/systemd/system/targetd.service', 0o644, 'systemd', ''),
    File('init/targetd-web.service', '/etc/systemd/system/targetd-web.service', 0o644, 'systemd', ''),
    File('init/systemd/sysusers.conf', '/usr/local/lib/sysusers.d/targetd.conf', 0o644, 'systemd', ''),
    File('init/systemd/tmpfiles.conf', '/usr/local/lib/tmpfiles.d/targetd.conf', 0o644, 'systemd', ''),
    File('init/openrc/targetd', '/etc/init.d/targetd', 0o755, 'openrc', ''),
    File('init/upstart/targetd.conf', '/etc/init/targetd.conf', 0o644, 'upstart', ''),
    File('init/ocf/targetd', '/usr/lib/ocf/resource.d/targetd/targetd', 0o755, '', '/usr/lib/ocf/resource.d'),
    File('init/runit/run', '/etc/sv/targetd/run', 0o755, 'runit', ''),
    File('init/s6/run', '/etc/s6/sv/targetd/run', 0o755, 's6', ''),
) + tuple(File('etc/' + name, '%s/%s' % (EXAMPLES, name), mode, '', '') for name, mode in EXAMPLE_FILES)

#: Files of the other program called targetd, which configures the target of the Linux kernel (LIO) from
#: remote. The commands, the service and the manual have the same names.
OTHER_TARGETD = (
    '/etc/target/targetd.yaml', '/usr/lib/systemd/system/targetd.service', '/usr/bin/targetd',
)

#: Init system -> how to start the service, after the files are there.
INITS = {
    'sysv': 'update-rc.d targetd defaults (or chkconfig --add targetd), then service targetd start',
    'systemd': 'systemctl daemon-reload, then systemctl enable --now targetd',
    'openrc': 'rc-update add targetd default, then rc-service targetd start',
    'upstart': 'start targetd',
    'runit': 'ln -s /etc/sv/targetd /etc/service/',
    's6': 'add /etc/s6/sv/targetd to the directory that s6-svscan watches',
}

#: (path whose existence shows an init system, word of INITS), the surest first.
_SIGNS = (
    ('/run/systemd/system', 'systemd'), ('/lib/systemd/systemd', 'systemd'), ('/sbin/openrc-run', 'openrc'),
    ('/sbin/initctl', 'upstart'), ('/etc/init.d', 'sysv'), ('/etc/runit', 'runit'), ('/etc/s6', 's6'),
)
# fmt: on


def source(name):
    """The content of a file of etc, init or man. Raises TargetdError."""
    try:
        return pkgutil.get_data('targetd', 'files/' + name)
    except OSError:
        pass
    try:
        with open(os.path.join(TREE, name), 'rb') as f:
            return f.read()
    except OSError:
        raise TargetdError(
            'the files to install are missing (%s); install targetd again with pip'
            % os.path.join(PACKAGE, 'files', name)
        )


def init_of(root):
    """The word of the init system below this root directory."""
    signs = _SIGNS if root == '/' else _SIGNS[1:]
    return next((word for path, word in signs if os.path.exists(_below(root, path))), 'sysv')


def install(root='/', init=''):
    """Install the files below a root directory; returns the lines that say what was done. Raises
    TargetdError."""
    if init and init not in INITS:
        raise TargetdError(
            'there is no init system %r; write one of %s' % (init, ', '.join(sorted(INITS)))
        )
    init = init or init_of(root)
    known, done = _known(root), []
    _refuse_beside_another(root)
    try:
        for file in FILES:
            if file.init not in ('', init):
                continue
            if file.folder and not os.path.isdir(_below(root, file.folder)):
                continue
            done.append(_put(root, file.target, source(file.source), file.mode, known))
        done.append(_put(root, DEFAULTS, _defaults().encode('utf-8'), 0o644, known))
        done += _link_programs(root, known)
        _write(_below(root, INSTALLED), json.dumps(known, indent=1, sort_keys=True).encode(), 0o644)
    except OSError as e:
        raise TargetdError('%s cannot be written: %s' % (e.filename, e.strerror))
    return done + ['start it with: %s' % INITS[init]]


def uninstall(root='/'):
    """Remove the installed files that were not changed; returns the lines that say what was done.
    Raises TargetdError."""
    known, done = _known(root), []
    if not known:
        return ['nothing is installed: %s does not exist' % _below(root, INSTALLED)]
    try:
        for target in sorted(known):
            path = _below(root, target)
            if not os.path.lexists(path):
                continue
            if _checksum(path) != known[target]:
                done.append('%s is kept, because it was changed' % path)
                continue
            os.unlink(path)
            done.append('%s is removed' % path)
        os.unlink(_below(root, INSTALLED))
    except OSError as e:
        raise TargetdError('%s cannot be removed: %s' % (e.filename, e.strerror))
    return done


def _refuse_beside_another(root):
    for path in OTHER_TARGETD:
        if os.path.lexists(_below(root, path)):
            raise TargetdError(
                'the other program called targetd, which configures the target of the Linux kernel (LIO), is '
                'installed (%s); its service and manual have the same names: remove its package first'
                % _below(root, path)
            )


def _below(root, path):
    return os.path.join(root, path.lstrip('/'))


def _known(root):
    """{path: checksum} of what was installed."""
    try:
        with open(_below(root, INSTALLED), encoding='utf-8') as f:
            return json.load(f)
    except (OSError, ValueError):
        return {}


def _checksum(path):
    """The checksum of a file, or the target of a symbolic link."""
    if os.path.islink(path):
        return 'link to ' + os.readlink(path)
    with open(path, 'rb') as f:
        return hashlib.sha256(f.read()).hexdigest()


def _write(path, content, mode):
    make_directory(os.path.dirname(path), 0o755)
    new = path + '.new-targetd'
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode)
    with open(descriptor, 'wb') as f:
        os.fchmod(f.fileno(), mode)
        f.write(content)
        f.flush()
        os.fsync(f.fileno())
    os.rename(new, path)


def _put(root, target, content, mode, known):
    """Write one file unless it was changed; returns what was done."""
    path, wanted = _below(root, target), hashlib.sha256(content).hexdigest()
    if os.path.lexists(path):
        present = _checksum(path)
        if present == wanted:
            known[target] = wanted
            return '%s is up to date' % path
        if present != known.get(target):
            return '%s is kept, because it was changed' % path
    _write(path, content, mode)
    known[target] = wanted
    return '%s is written' % path


def _programs():
    """{name: path} of the commands, if the system would not find them where they are."""
    program = os.path.abspath(sys.argv[0])
    folder = os.path.dirname(program)
    if os.path.isfile(TREE):
        return dict.fromkeys(('targetd', 'targetdctl'), TREE)
    if folder in BINARY_FOLDERS or not os.path.isfile(os.path.join(folder, 'targetdctl')):
        return {}
    return {name: os.path.join(folder, name) for name in ('targetd', 'targetdctl')}


def _defaults():
    folders = [os.path.dirname(path) for path in _programs().values() if not os.path.isfile(TREE)]
    path = '# Where the programs are:\nPATH=%s\n' % ':'.join(folders[:1] + BINARY_FOLDERS)
    return source('etc/default').decode('utf-8') + path


def _link_programs(root, known):
    done = []
    for name, wanted in sorted(_programs().items()):
        target = '/usr/local/sbin/' + name
        path = _below(root, target)
        if path == wanted:
            continue
        if os.path.lexists(path):
            if _checksum(path) != 'link to ' + wanted:
                done.append('%s is kept, because it is another one' % path)
                continue
            done.append('%s is up to date' % path)
        else:
            make_directory(os.path.dirname(path), 0o755)
            os.symlink(wanted, path)
            done.append('%s is a link to %s' % (path, wanted))
        known[target] = 'link to ' + wanted
    return done
