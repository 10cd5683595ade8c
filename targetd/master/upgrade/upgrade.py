"""The upgrade without a logout: this process continues with the program that is installed now
(ARCHITECTURE D24).

     asked --> trial: imports, configuration --> quiet --> state collected --> trial with the state --> execve
       |             |                             |            (nothing is handled from here on)
       +-- refused --+-- refused ------------------+-- refused, after QUIET_SECONDS ----+-- refused

execve keeps the process id, so the workers keep their parent, and the locks their owner; it keeps the
descriptors that were made inheritable. Until then nothing has changed: a refusal resumes the service.
Signals are blocked from the moment when the state is collected until the new program handles them.
"""

import json
import os
import signal
import subprocess
import sys

import targetd
from targetd import compat, log
from targetd.config import model
from targetd.errors import TargetdError
from targetd.master.processes import child
from targetd.master.upgrade import handover
from targetd.master.vault import load

QUIET_SECONDS = 10.0  # until nothing is in progress that cannot be handed over
LOGIN_SECONDS = 2.0  # a login in progress that takes longer is ended; its initiator tries again
LOOK_SECONDS = 0.02
TRIAL_SECONDS = 20.0
LONGEST_OUTPUT = 2000  # bytes of the output of a failed trial that are shown

#: How to start the package of this program if it has no script: the directory, or archive, that it is in.
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(targetd.__file__)))
_BOOT = 'import sys; sys.path.insert(0, %r); from targetd.entry import targetd; sys.exit(targetd())'
_SCRIPT = os.path.abspath(sys.argv[0]) if sys.argv and sys.argv[0] not in ('', '-c', '-m') else ''


def program():
    """The command line, without options, that starts the installed program like this one was started."""
    main = sys.modules.get('__main__')
    name = getattr(getattr(main, '__spec__', None), 'name', '__main__')
    start = [sys.executable] + subprocess._args_from_interpreter_flags()
    if name == '__main__' and _SCRIPT:  # a script, or an archive
        return start + [_SCRIPT]
    return start + ['-c', _BOOT % ROOT]


class Upgrade(object):
    """The upgrades of a Master."""

    def __init__(self, master, program=program):
        self.master = master
        self.program = program
        self._done = None  # of the upgrade in progress
        self._deadline = None

    def on_signal(self):
        """SIGUSR2: start_upgrade() with the outcome in the log."""
        self.start_upgrade(lambda error: None)

    def start_upgrade(self, done):
        """Continue with the installed program. If that is not possible, done(TargetdError) is called, now or
        later; if it is, this program is gone."""
        why = 'an upgrade is in progress already' if self._done else self._why_not()
        if why:
            self._refuse(why, done)
            return
        self._done = done
        log.info('upgrade: trying the program that is installed now')
        descriptor = compat.memory_file('targetd-upgrade', 0)
        handover.write(descriptor, None)
        command, path = self.program(), self.master.state.path

        def tried(answer):
            os.close(descriptor)
            if answer.why:
                self._end(answer.why)
            else:
                self._quieten()

        self.master.jobs.submit_job(
            ('upgrade',),
            lambda: (try_program(command, path, descriptor), ()),
            tried,
            [descriptor],
            TRIAL_SECONDS + 2,
        )

    def _refuse(self, why, done):
        for line in ('not upgraded, nothing was changed: %s' % why).split('\n'):
            log.error('%s', line)
        done(TargetdError('not upgraded, nothing was changed: %s' % why))

    def _end(self, why):
        done, self._done = self._done, None
        self._refuse(why, done)

    # -- conditions --------------------------------------------------------------------------------

    def _why_not(self):
        """Why an upgrade is not possible, however long one waits; or ''."""
        master = self.master
        if not master.state.path or master.pid_file is None:
            return 'targetd runs without a configuration file'
        if master.state.is_stopping:
            return 'targetd is being stopped'
        if master.state.changing or master.exports.pending or master.reload.is_opening:
            return (
                'changes of the last reload wait for the logout of their sessions; see "targetdctl show '
                'units", and run "targetdctl reload --now" first'
            )
        for unit in master.units.by_id.values():
            operation = unit.shared.operation
            if operation is not None and not operation['failed']:
                return (
                    'unit %s is being formatted or sanitized; upgrade when that is done' % unit.id
                )
        if not master.units.hanging.is_quiet or master.jobs.has_stuck or self._stuck_workers():
            return 'a medium does not answer; see "targetdctl show units", and upgrade when it does'
        return self._why_another_configuration()

    def _stuck_workers(self):
        return [worker for worker in self.master.workers.all() if worker.is_stuck]

    def _why_another_configuration(self):
        state = self.master.state
        try:
            loaded = load(state.path, state.vault)
        except TargetdError as e:
            return 'the configuration has errors:\n%s' % e
        loaded.close()
        steps = model.diff(state.configuration, loaded.configuration)
        if not steps:
            return ''
        return (
            '%s has changes that are not in force (%s); run "targetdctl reload" first, or take them back'
            % (state.path, '; '.join(step.text for step in steps[:3]))
        )

    def _busy_with(self):
        """What is in progress that cannot be handed over, as the end of a sentence; '' if nothing is."""
        master = self.master
        workers = master.workers.all()
        units = master.units.by_id.values()
        for is_busy, what in (
            (any(w.session is None for w in workers), 'logins'),
            (any(w.is_killed or w.channel is None for w in workers), 'worker processes that end'),
            (any(w.channel is not None and w.channel.wants_write for w in workers), 'messages'),
            (master.sessions.waiting_claims, 'logins that replace a session'),
            (not master.replication.acknowledgements.is_idle, 'changes of logical units'),
            (any(unit.is_busy or unit.queue for unit in units), 'changes of logical units'),
            (master.units.has_incomplete_logins, 'logins'),
            (not master.saver.is_idle, 'writing of state-dir'),
            (not master.jobs.is_idle, 'work on a medium'),
            (master.replication.state.ordered, 'a takeover'),
            (master.atomic_writes.has_repairs, 'the repair of an atomic write'),
            (not master.counting.is_idle, 'the collection of counters'),
            (not master.line_sampling.is_idle, 'targetdctl why slow'),
            (master.log_files.is_changing, 'the change of the log'),
        ):
            if is_busy:
                return what
        return ''

    # -- quiet -------------------------------------------------------------------------------------

    def _quieten(self):
        why = self._why_not()
        if why:
            self._end(why)
            return
        log.info('upgrade: the new program starts; logins wait')
        self.master.units.trims.stop_all('targetd is upgraded')
        self._deadline = self.master.loop.clock() + QUIET_SECONDS
        self.master.pause_workers()
        self._look(LOGIN_SECONDS)

    def _look(self, login_seconds):
        loop, busy = self.master.loop, self._busy_with()
        left = self._deadline - loop.clock()
        if not busy:
            log.info('upgrade: quiet after %d ms; handing over', 1000 * (QUIET_SECONDS - left))
            self._resume(self._replace_program())
        elif left <= 0:
            self._resume('%s did not end within %d seconds; try again' % (busy, QUIET_SECONDS))
        elif login_seconds and left < QUIET_SECONDS - login_seconds:
            for worker in self.master.workers.all():
                if worker.session is None:
                    self.master.workers.kill(
                        worker, 'its login takes long, and targetd is upgraded'
                    )
            loop.call_later(LOOK_SECONDS, lambda: self._look(None))
        else:
            loop.call_later(LOOK_SECONDS, lambda: self._look(login_seconds))

    def _resume(self, why):
        self.master.resume_workers()
        self.master.exporters.resume()
        self._end(why)

    # -- the end of this program -------------------------------------------------------------------

    def _replace_program(self):
        """Does not return, or returns why it is not possible; then nothing has changed."""
        held = signal.pthread_sigmask(signal.SIG_BLOCK, child.SIGNALS)
        kept = [compat.memory_file('targetd-upgrade', 0)]
        try:
            state, descriptors = handover.collect(self.master)
            handover.write(kept[0], state)
            kept += descriptors
            for descriptor in kept:
                os.set_inheritable(descriptor, True)
            command, path = self.program(), self.master.state.path
            outcome = try_program(command, path, kept[0], kept)
            if outcome.get('failed'):
                return outcome['failed']
            self.master.loop.raise_again()
            options = ['-c', path, '--take-over', str(kept[0])]
            self.master.exporters.stop_and_wait()
            os.execv(command[0], command + options)
        except OSError as e:
            return 'the new program cannot be started: %s' % e.strerror
        except Exception as e:  # the boundary: the service must be resumed
            log.exception('an upgrade met an unexpected failure')
            return 'an unexpected failure: %r; the log has the details' % e
        finally:
            for descriptor in kept[1:]:
                os.set_inheritable(descriptor, False)
            os.close(kept[0])
            signal.pthread_sigmask(signal.SIG_SETMASK, held)


def try_program(command, path, descriptor, kept=()):
    """Have the new program try to take over, in a child process. kept: further descriptors that it gets.
    Returns {'version'}, or {'failed': why it cannot take over}."""
    pid = os.getpid()
    try:
        tried = subprocess.Popen(
            command + ['-c', path, '--try-take-over', str(descriptor)],
            pass_fds=[descriptor] + list(kept),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            preexec_fn=lambda: child.die_with(pid),
        )
    except OSError as e:
        return {'failed': 'the new program cannot be started: %s: %s' % (command[0], e.strerror)}
    try:
        output, _ = tried.communicate(timeout=TRIAL_SECONDS)
    except subprocess.TimeoutExpired:
        tried.kill()
        tried.communicate()
        return {'failed': 'the new program did not answer within %d seconds' % TRIAL_SECONDS}
    text = output.decode('utf-8', 'replace').rstrip()
    try:
        outcome = json.loads(text.rpartition('\n')[2])
        refused, version = str(outcome['refused']), str(outcome['version'])
    except (ValueError, KeyError, TypeError):
        shown = text[-LONGEST_OUTPUT:] or 'exit code %s' % tried.returncode
        return {'failed': 'the new program cannot be started:\n%s' % shown}
    if refused:
        return {'failed': 'version %s cannot take over: %s' % (version, refused)}
    return {'version': version}


__all__ = ('Upgrade',)
