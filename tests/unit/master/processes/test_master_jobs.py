"""Jobs: children that wait for what the master must not wait for."""

import fcntl
import os
import signal
import time

import pytest

from targetd.master.processes import jobs as module
from targetd.master.processes.jobs import MAXIMUM_RUNNING, SECONDS, Jobs


@pytest.fixture
def jobs(loop):
    jobs = Jobs(loop)
    yield jobs
    jobs.close()
    until(lambda: (jobs.reap(), not jobs._unreaped)[1])


def until(question, seconds=10):
    end = time.monotonic() + seconds
    while not question():
        assert time.monotonic() < end, 'waited in vain'
        time.sleep(0.005)


def never():
    while True:
        signal.pause()


def test_the_work_is_done_elsewhere_and_what_it_returns_comes_back(loop, jobs):
    answers = []
    jobs.submit_job('a', lambda: ({'pid': os.getpid(), 'text': 'ü'}, ()), answers.append)
    until(lambda: (loop.settle(), answers)[1])
    (answer,) = answers
    assert (
        answer.values['pid'] != os.getpid()
        and answer.values['text'] == 'ü'
        and answer.why == ''
        and not answer.is_late
    )


def test_descriptors_that_the_child_opened_are_ours(jobs, tmp_path):
    path = tmp_path / 'file'
    path.write_bytes(b'content')
    answers = []
    jobs.submit_job('a', lambda: ({}, [os.open(str(path), os.O_RDONLY)]), answers.append)
    jobs.wait()
    (descriptor,) = answers[0].descriptors
    assert os.read(descriptor, 100) == b'content'
    os.close(descriptor)


def test_what_is_handed_back_is_nobody_elses_any_more(jobs, tmp_path):
    """A claim that the child let go of only a moment later would make the next attempt fail."""
    path = str(tmp_path / 'file')
    answers = []

    def claim():
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # a child that takes its time to end
        os._exit = lambda code, really=os._exit: (time.sleep(0.2), really(code))
        return {}, [descriptor]

    jobs.submit_job('a', claim, answers.append)
    jobs.wait()
    os.close(answers[0].descriptors[0])
    with open(path) as again:
        fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_the_child_has_what_it_is_given_and_nothing_else(jobs):
    kept, other = os.open(os.devnull, os.O_RDONLY), os.open(os.devnull, os.O_RDONLY)
    answers = []
    jobs.submit_job(
        'a',
        lambda: ({'open': [os.path.exists('/proc/self/fd/%d' % d) for d in (kept, other)]}, ()),
        answers.append,
        kept=[kept],
    )
    jobs.wait()
    assert answers[0].values == {'open': [True, False]}
    os.close(kept)
    os.close(other)


@pytest.mark.parametrize(
    'work, why',
    [
        (lambda: os._exit(3), 'the process that was to do it died'),
        (lambda: 1 / 0, 'an unexpected failure: ZeroDivisionError'),
        (lambda: ({'failed': 'no such disk'}, ()), 'no such disk'),
    ],
)
def test_work_that_fails_says_why(jobs, work, why):
    answers = []
    jobs.submit_job('a', work, answers.append)
    jobs.wait()
    assert answers[0].why.startswith(why) and not answers[0].is_late


def test_who_does_not_answer_is_given_up_and_holds_up_nobody(loop, jobs):
    answers = {}
    jobs.submit_job('dead', never, lambda answer: answers.update(dead=answer))
    jobs.submit_job('well', lambda: ({}, ()), lambda answer: answers.update(well=answer))
    until(lambda: (loop.settle(), 'well' in answers)[1])
    assert 'dead' not in answers
    loop.pass_time(SECONDS)
    assert answers['dead'].is_late and 'within 10 seconds' in answers['dead'].why
    until(lambda: not jobs.is_stuck('dead'))  # it could be killed: it waited for no disk


def test_one_that_cannot_be_killed_yet_is_known(loop, jobs, monkeypatch):
    killed = []
    monkeypatch.setattr(module.os, 'kill', lambda pid, number: killed.append(pid))
    jobs.submit_job('dead', never, lambda answer: None)
    loop.pass_time(SECONDS)
    monkeypatch.undo()
    assert jobs.is_stuck('dead') and not jobs.is_stuck('well')
    os.kill(killed[0], signal.SIGKILL)
    until(lambda: not jobs.is_stuck('dead'))


def test_waiting_is_bounded(jobs, monkeypatch):
    jobs.loop.clock = time.monotonic
    answers = []
    jobs.submit_job('dead', never, answers.append, seconds=0.2)
    jobs.wait()
    assert answers[0].is_late


def test_no_more_than_so_many_at_once(jobs):
    answers, most = [], []

    def done(answer):
        most.append(len(jobs._running))
        answers.append(answer.values['n'])

    for n in range(MAXIMUM_RUNNING * 2):
        jobs.submit_job(n, lambda n=n: ({'n': n}, ()), done)
    jobs.wait()
    assert sorted(answers) == list(range(MAXIMUM_RUNNING * 2)) and max(most) <= MAXIMUM_RUNNING


def test_a_fork_that_fails_is_an_answer(loop):
    def fork():
        raise BlockingIOError(11, 'Resource temporarily unavailable')

    answers, forked = [], []
    Jobs(loop, fork).submit_job('a', never, answers.append, forked=lambda: forked.append(True))
    assert 'Resource temporarily unavailable' in answers[0].why and forked


def test_the_end_kills_whoever_is_at_it_and_tells_nobody(loop):
    jobs, answers = Jobs(loop), []
    jobs.submit_job('dead', never, answers.append)
    (pid,) = [job.pid for job in jobs._running]
    jobs.close()
    until(lambda: (jobs.reap(), not jobs._unreaped)[1])
    assert not os.path.exists('/proc/%d' % pid) and not answers
