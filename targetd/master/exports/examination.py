"""Examines the media of a configuration for `targetd -t`: what a start would serve, by the same function
(open_medium) and without a change.

     examine_media --> jobs open every medium with plan_only --> a line of facts, or why it is not served

A medium that the running server has claimed is examined without a claim.
"""

import os
from collections import namedtuple

from targetd.config import lun_rules
from targetd.errors import StoreError
from targetd.host import disks, identity, image_info
from targetd.master.exports.exports import Exports
from targetd.master.exports.open_medium import key_of_path
from targetd.master.processes.jobs import Jobs
from targetd.master.processes.loop import Loop
from targetd.master.state.state_directory import StateDirectory

#: facts: {(target name, number): what a LUN would be now, as one line}; refused: {(target name, number):
#: why the LUN would not be served}; unseen: the same of LUNs that this user may not examine.
Examined = namedtuple('Examined', 'facts refused unseen')


class _NoUnits(object):
    """Implements what Exports uses of logical_units.Units, for a process that serves nothing."""

    def __init__(self, state):
        self.by_id = {}
        self.replication = self.atomic_writes = self
        self.paths = frozenset()  # of journals that are open
        self.state = state
        self.saver = None

    def of_target(self, name):
        """No unit is served."""
        return {}


def examine_media(configuration, running=None):
    """Try to open the medium of every LUN. running: process id of the server that runs with this
    configuration's pid file, or None. Returns an Examined."""
    server, loop = configuration.server, Loop()
    jobs, outcomes = Jobs(loop), {}
    exports = Exports(loop, _NoUnits(StateDirectory(server.state_dir)), jobs)
    exports.server = server.server_id or identity.known_server_id(server.state_dir) or ''
    exports.process = running or os.getpid()
    exports.served = open_media_of(running)
    exports.known.load()
    wanted = [
        (target, lun) for target in configuration.targets.values() for lun in target.luns.values()
    ]
    try:
        exports.open_media(wanted, outcomes.update, plan_only=True)
        jobs.wait()
    finally:
        jobs.close()
        loop.close()
    return _sorted_out(outcomes)


def _sorted_out(outcomes):
    found = Examined({}, {}, {})
    for key, outcome in outcomes.items():
        if not isinstance(outcome, StoreError):
            found.facts[key] = _described(outcome)
            outcome.store.close()
        elif os.geteuid() != 0 and 'not permitted' in str(outcome).replace(
            'denied', 'not permitted'
        ):
            found.unseen[key] = str(outcome)
        else:
            found.refused[key] = str(outcome)
    return found


def _described(planned):
    store, lun = planned.store, planned.lun
    words = ['%d bytes' % max(store.size, lun.size or 0), 'blocks of %d bytes' % store.block_size]
    if store.kind == 'block':
        words.insert(0, disks.one_line(disks.describe_disk(store.path)))
    elif store.kind == 'passthrough':
        return store.shown
    elif store.kind == 'file':
        words.insert(0, store.path)
    elif store.kind == 'nbd' and store.image in lun_rules.IMAGES:
        words = _image_words(store, words)
    elif store.kind == 'nbd':
        words.insert(0, store.path)
    return ', '.join(words)


def _image_words(store, words):
    """What `targetd -t` says about a disk image. words: about its size and blocks."""
    found = [store.path, '%s image' % store.image]
    found += words if store.is_size_known else words[1:]
    found.append('%d bytes allocated' % store.allocated)
    return found + ([image_info.NOT_CLOSED] if store.is_dirty else [])


def open_media_of(process):
    """The keys of OpenedStore for all files and devices that this process has open, as far as this user
    may see them."""
    directory = '/proc/%s/fd' % process
    try:
        names = os.listdir(directory) if process else []
    except OSError:
        return frozenset()
    return frozenset(key_of_path(os.path.join(directory, name)) for name in names) - {None}
