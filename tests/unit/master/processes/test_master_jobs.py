"""Jobs: child processes that do what may block."""

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
        assert time.monotonic() < end, 'the condition did not become true'
        time.sleep(0.005)


def never():
    while True:
        signal.pause()


def test_the_work_runs_in_a_child_and_its_values_come_back(loop, jobs):
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


def test_descriptors_that_the_child_opened_come_back(jobs, tmp_path):
    path = tmp_path / 'file'
    path.write_bytes(b'content')
    answers = []
    jobs.submit_job('a', lambda: ({}, [os.open(str(path), os.O_RDONLY)]), answers.append)
    jobs.wait()
    (descriptor,) = answers[0].descriptors
    assert os.read(descriptor, 100) == b'content'
    os.close(descriptor)


def test_a_returned_descriptor_is_closed_in_the_child(jobs, tmp_path):
    """A claim that the child released only later would make the next attempt fail."""
    path = str(tmp_path / 'file')
    answers = []

    def claim():
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # a child that exits late
        os._exit = lambda code, really=os._exit: (time.sleep(0.2), really(code))
        return {}, [descriptor]

    jobs.submit_job('a', claim, answers.append)
    jobs.wait()
    os.close(answers[0].descriptors[0])
    with open(path) as again:
        fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_the_child_has_only_the_descriptors_that_it_is_given(jobs):
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
def test_failed_work_has_a_reason(jobs, work, why):
    answers = []
    jobs.submit_job('a', work, answers.append)
    jobs.wait()
    assert answers[0].why.startswith(why) and not answers[0].is_late


def test_a_job_without_an_answer_is_given_up_and_delays_no_other(loop, jobs):
    answers = {}
    jobs.submit_job('dead', never, lambda answer: answers.update(dead=answer))
    jobs.submit_job('well', lambda: ({}, ()), lambda answer: answers.update(well=answer))
    until(lambda: (loop.settle(), 'well' in answers)[1])
    assert 'dead' not in answers
    loop.pass_time(SECONDS)
    assert answers['dead'].is_late and 'within 10 seconds' in answers['dead'].why
    # it could be killed, because it did not wait for a disk
    until(lambda: not jobs.is_stuck('dead'))


def test_a_job_that_cannot_be_killed_yet_is_stuck(loop, jobs, monkeypatch):
    killed = []
    monkeypatch.setattr(module.os, 'kill', lambda pid, number: killed.append(pid))
    jobs.submit_job('dead', never, lambda answer: None)
    loop.pass_time(SECONDS)
    monkeypatch.undo()
    assert jobs.is_stuck('dead') and not jobs.is_stuck('well')
    os.kill(killed[0], signal.SIGKILL)
    until(lambda: not jobs.is_stuck('dead'))


def test_a_job_whose_outcome_matters_is_not_killed_when_its_time_is_over(loop, jobs):
    answers, reading_writing = [], os.pipe()

    def work():
        os.read(reading_writing[0], 1)
        return {'outcome': 'good'}, ()

    def done(answer):
        answers.append(('done', answer))

    def late(answer):
        answers.append(('late', answer))

    jobs.submit_job('slow', work, done, [reading_writing[0]], late=late)
    loop.pass_time(SECONDS)
    assert [(how, answer.is_late) for how, answer in answers] == [('done', True)]
    assert jobs.is_stuck('slow') and jobs.is_idle
    os.write(reading_writing[1], b'.')
    until(lambda: (loop.settle(), len(answers) == 2)[1])
    assert answers[1][0] == 'late' and answers[1][1].values == {'outcome': 'good'}
    assert not jobs.is_stuck('slow')
    for descriptor in reading_writing:
        os.close(descriptor)


def test_waiting_is_bounded(jobs, monkeypatch):
    jobs.loop.clock = time.monotonic
    answers = []
    jobs.submit_job('dead', never, answers.append, seconds=0.2)
    jobs.wait()
    assert answers[0].is_late


def test_the_number_of_running_jobs_is_limited(jobs):
    answers, most = [], []

    def done(answer):
        most.append(len(jobs._running))
        answers.append(answer.values['n'])

    for n in range(MAXIMUM_RUNNING * 2):
        jobs.submit_job(n, lambda n=n: ({'n': n}, ()), done)
    jobs.wait()
    assert sorted(answers) == list(range(MAXIMUM_RUNNING * 2)) and max(most) <= MAXIMUM_RUNNING


def test_a_failed_fork_is_a_result(loop):
    def fork():
        raise BlockingIOError(11, 'Resource temporarily unavailable')

    answers, forked = [], []
    Jobs(loop, fork).submit_job('a', never, answers.append, forked=lambda: forked.append(True))
    assert 'Resource temporarily unavailable' in answers[0].why and forked


def test_close_kills_the_running_jobs_without_a_result(loop):
    jobs, answers = Jobs(loop), []
    jobs.submit_job('dead', never, answers.append)
    (pid,) = [job.pid for job in jobs._running]
    jobs.close()
    until(lambda: (jobs.reap(), not jobs._unreaped)[1])
    assert not os.path.exists('/proc/%d' % pid) and not answers
