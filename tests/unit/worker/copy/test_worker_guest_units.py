"""Guest units: the units of other targets that the copies of a session use."""

from targetd.worker.copy.guest_units import GuestFinder, GuestUnits


class FakeStore(object):
    closed = 0

    def close(self):
        self.closed += 1


class FakeUnit(object):
    def __init__(self):
        self.store = FakeStore()


class FakeCopy(object):
    stopped = False


class FakeWorker(object):
    """Answers at once, in place of the control thread."""

    def __init__(self, answer):
        self.answer = answer
        self.asked = []

    def ask_master(self, what, answered, **words):
        self.asked.append((what, words))
        answered(dict({'status': 0, 'sense': None, 'descriptors': []}, **self.answer))


def guests():
    left = []
    return GuestUnits(lambda message, descriptors: FakeUnit(), left.append), left


def arrival(unit_id='theirs'):
    return {'status': 0, 'reached': {'unit': unit_id}, 'descriptors': []}


def test_the_question_has_the_unit_of_the_copy_and_the_designator():
    mine, _ = guests()
    worker = FakeWorker(arrival())
    unit = GuestFinder(worker, 'ours', mine).find(1, 3, b'\x60\x01')
    assert worker.asked == [
        ('copy-reach', {'unit': 'ours', 'code_set': 1, 'kind': 3, 'designator': '6001'})
    ]
    assert mine.unit('theirs') is unit and mine.id_of(unit) == 'theirs'


def test_no_unit_is_found_if_the_master_refuses():
    mine, left = guests()
    assert GuestFinder(FakeWorker({'reached': None}), 'ours', mine).find(1, 3, b'\x60\x01') is None
    assert not left


def test_a_guest_unit_is_open_until_the_last_copy_has_left_it():
    mine, left = guests()
    reach = GuestFinder(FakeWorker(arrival()), 'ours', mine)
    copies = [FakeCopy(), FakeCopy()]
    units = [reach.find(1, 3, b'\x60\x01') for _ in copies]
    assert units[0] is units[1]
    for copy in copies:
        reach.enter(units[0], copy)
    reach.leave(units[0], copies[0])
    assert mine.unit('theirs') is units[0] and not units[0].store.closed and left == ['theirs']
    reach.leave(units[0], copies[1])
    assert (
        mine.unit('theirs') is None and units[0].store.closed == 1 and left == ['theirs', 'theirs']
    )


def test_a_unit_of_the_session_is_not_closed():
    mine, left = guests()
    unit, copy = FakeUnit(), FakeCopy()
    mine.enter(unit, copy)
    mine.leave(unit, copy)
    assert not left and not unit.store.closed


def test_a_stop_is_quiet_when_every_copy_has_left_the_unit():
    mine, _ = guests()
    here, there = FakeUnit(), FakeUnit()
    copies = [FakeCopy() for _ in range(3)]
    for unit, copy in ((here, copies[0]), (here, copies[1]), (there, copies[2]), (here, copies[0])):
        mine.enter(unit, copy)
    quiet = []
    mine.stop(lambda unit: unit is here, lambda: quiet.append(1))
    assert [copy.stopped for copy in copies] == [True, True, False] and not quiet
    mine.leave(here, copies[0])
    mine.leave(here, copies[1])
    assert not quiet  # the first copy uses the unit twice
    mine.leave(here, copies[0])
    assert quiet == [1]
    mine.stop(lambda unit: unit is here, lambda: quiet.append(2))
    assert quiet == [1, 2]


def test_the_end_of_the_session_closes_guest_units():
    mine, _ = guests()
    unit = GuestFinder(FakeWorker(arrival()), 'ours', mine).find(1, 3, b'\x60\x01')
    mine.close()
    assert unit.store.closed == 1
