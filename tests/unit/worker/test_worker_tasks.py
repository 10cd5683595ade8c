"""Tasks: an abort is answered only when no aborted task can touch the medium any more (RFC 7143
11.5, ARCHITECTURE D3)."""

from types import SimpleNamespace

from targetd.scsi import sam
from targetd.scsi.sense import StatusReturned
from targetd.worker.tasks import Tasks


class Connection(object):
    """Records the replies to initiators."""

    ended = None

    def __init__(self):
        self.replies = []
        self.outbox = SimpleNamespace(
            put_pdus=lambda pdus, numbered: self.replies.append(('window', numbered))
        )

    def reply(self, task, outcome):
        self.replies.append((task.itt, outcome.status))


def made(count=3):
    session = SimpleNamespace(tasks={}, discarded=[])
    session.discard_data_out = session.discarded.append
    connection = Connection()
    for itt in range(count):
        task = sam.Task()
        task.itt, task.cmd_sn, task.connection, task.lun = itt, itt, connection, itt % 2
        session.tasks[itt] = task
    return Tasks(session), session, connection


def test_an_abort_waits_for_a_running_task():
    tasks, session, connection = made()
    quiet = []
    tasks.abort(lambda task: task.itt < 2, lambda: quiet.append(True))
    assert not quiet
    assert not tasks.finished(session.tasks[0]) and not quiet
    assert not tasks.finished(session.tasks[1]) and quiet == [True]
    assert connection.replies == [('window', True)] * 2
    assert tasks.finished(session.tasks[2])  # not aborted: it gets a normal reply


def test_an_abort_of_no_task_ends_at_once():
    tasks, _, _ = made()
    quiet = []
    tasks.abort(lambda task: False, lambda: quiet.append(True))
    assert quiet == [True]


def test_a_task_that_waits_for_data_ends_at_once_and_its_data_is_discarded():
    tasks, session, _ = made(1)
    failed = []
    session.tasks[0].transfer = SimpleNamespace(fail=lambda: failed.append(True))
    quiet = []
    tasks.abort(lambda task: True, lambda: quiet.append(True))
    assert quiet and failed and session.discarded == [0] and not session.tasks


def test_an_abort_does_not_wait_for_a_task_that_waits_for_the_master():
    tasks, session, _ = made(1)
    task = session.tasks[0]
    task.sent_to_master = True
    quiet = []
    tasks.abort(lambda task: True, lambda: quiet.append(True))
    assert quiet and not tasks.finished(task)  # the master's late answer is dropped


def test_two_aborts_of_one_task_are_both_answered():
    tasks, session, _ = made(1)
    quiet = []
    tasks.abort(lambda task: True, lambda: quiet.append(1))
    tasks.abort(lambda task: True, lambda: quiet.append(2))
    tasks.finished(session.tasks[0])
    assert quiet == [1, 2]


def test_task_aborted_status_is_sent_if_requested():
    tasks, session, connection = made(1)
    tasks.abort(lambda task: True, lambda: None, lambda task: StatusReturned(sam.TASK_ABORTED))
    tasks.finished(session.tasks[0])
    assert connection.replies == [(0, sam.TASK_ABORTED)]
