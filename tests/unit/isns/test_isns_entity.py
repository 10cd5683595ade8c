"""What is said of us to an iSNS server, and what we answer it."""

import pytest

from targetd.isns import entity as e
from targetd.isns import messages as m

P1, P2, P3 = e.Portal('10.0.0.1', 3260), e.Portal('10.0.0.2', 3260), e.Portal('2001:db8::1', 3261)
ONE = e.Node('iqn.2026-11.test:one', 'One', ((1, (P1, P2)),))
TWO = e.Node('iqn.2026-11.test:two', '', ((1, (P1,)), (7, (P3,))))
ENTITY = e.Entity('storage1', 300, 0, 4000, (P1, P2, P3), (ONE, TWO))


class Server(object):
    """A server in a test's hands: `knows` says whether queries show anything, `statuses` what to
    answer to which function."""

    def __init__(self, knows=True, period=None, **statuses):
        self.knows, self.period, self.statuses = knows, period, statuses
        self.heard = []

    def answer(self, message):
        self.heard.append(message)
        status = self.statuses.get(m.FUNCTION_NAMES[message.function], m.SUCCESS)
        status = status.pop(0) if isinstance(status, list) else status
        attributes = [m.nothing(m.DELIMITER)]
        if status == m.SUCCESS and (message.function != m.QUERY or self.knows):
            attributes.append(m.text(m.ENTITY_IDENTIFIER, 'storage1'))
            if self.period:
                attributes.append(m.number(m.REGISTRATION_PERIOD, self.period))
        return m.Message(
            message.function | m.RESPONSE,
            m.FROM_SERVER,
            message.transaction,
            status,
            tuple(attributes),
        )

    def of(self, function):
        return [message for message in self.heard if message.function == function]


def hold(conversation, server):
    """What the conversation comes to."""
    try:
        message = next(conversation)
        while True:
            message = conversation.send(server.answer(message))
    except StopIteration as stop:
        return stop.value


def test_the_first_message_replaces_and_says_everything():
    (message,) = e.registrations(ENTITY)
    assert message.flags & m.REPLACE and message.function == m.REGISTER
    name = m.text(m.ENTITY_IDENTIFIER, 'storage1')
    portals = []
    for portal in (P1, P2, P3):
        portals += [
            m.address(m.PORTAL_ADDRESS, portal.address),
            m.number(m.PORTAL_PORT, portal.port),
            m.number(m.SCN_PORT, 4000),
        ]
    assert list(message.attributes) == [
        m.text(m.ISCSI_NAME, ONE.name),
        name,
        m.nothing(m.DELIMITER),
        name,
        m.number(m.ENTITY_PROTOCOL, 2),
        m.number(m.REGISTRATION_PERIOD, 300),
    ] + portals + [
        m.text(m.ISCSI_NAME, ONE.name),
        m.number(m.ISCSI_NODE_TYPE, 1),
        m.text(m.ISCSI_ALIAS, 'One'),
        m.number(m.PG_TAG, 1),
        m.address(m.PG_PORTAL_ADDRESS, '10.0.0.1'),
        m.number(m.PG_PORTAL_PORT, 3260),
        m.address(m.PG_PORTAL_ADDRESS, '10.0.0.2'),
        m.number(m.PG_PORTAL_PORT, 3260),
        m.nothing(m.PG_TAG),
        m.address(m.PG_PORTAL_ADDRESS, '2001:db8::1'),
        m.number(m.PG_PORTAL_PORT, 3261),
        m.text(m.ISCSI_NAME, TWO.name),
        m.number(m.ISCSI_NODE_TYPE, 1),
        m.number(m.PG_TAG, 1),
        m.address(m.PG_PORTAL_ADDRESS, '10.0.0.1'),
        m.number(m.PG_PORTAL_PORT, 3260),
        m.number(m.PG_TAG, 7),
        m.address(m.PG_PORTAL_ADDRESS, '2001:db8::1'),
        m.number(m.PG_PORTAL_PORT, 3261),
        m.nothing(m.PG_TAG),
        m.address(m.PG_PORTAL_ADDRESS, '10.0.0.2'),
        m.number(m.PG_PORTAL_PORT, 3260),
    ]


def test_many_targets_come_in_several_messages_and_portals_only_once():
    nodes = tuple(e.Node('iqn.2026-11.test:%0150d' % n, '', ((1, (P1,)),)) for n in range(50))
    first, *further = e.registrations(ENTITY._replace(nodes=nodes))
    assert (
        further
        and first.flags & m.REPLACE
        and not any(message.flags & m.REPLACE for message in further)
    )
    assert not any(tag == m.PORTAL_ADDRESS for message in further for tag, _ in message.attributes)
    names = [
        value
        for message in [first] + further
        for tag, value in message.attributes[3:]
        if tag == m.ISCSI_NAME
    ]
    assert [m.text_of(name) for name in names] == [node.name for node in nodes]
    assert all(len(m.encode(message)) <= 4096 for message in further)


def test_a_registration_ends_with_a_look_at_it():
    server = Server(period=600)
    assert hold(e.registration(ENTITY), server) == e.Registered(600, True, [])
    assert [m.FUNCTION_NAMES[message.function] for message in server.heard] == [
        'DevAttrReg',
        'SCNReg',
        'SCNReg',
        'DevAttrQry',
    ]
    assert [
        m.text_of(message.attributes[1][1]) for message in server.of(m.REGISTER_NOTIFICATION)
    ] == [ONE.name, TWO.name]


def test_a_server_that_names_no_period_gets_ours():
    assert hold(e.registration(ENTITY), Server()).period == 300


def test_a_server_that_shows_us_nothing_is_not_asked_in_vain():
    assert not hold(e.registration(ENTITY), Server(knows=False)).is_visible
    assert hold(e.renewal(ENTITY), Server(knows=False)) is None


def test_where_nobody_listens_nothing_is_asked_for():
    server = Server()
    hold(e.registration(ENTITY._replace(port=0, esi_interval=60)), server)
    assert not server.of(m.REGISTER_NOTIFICATION)
    assert not {m.ESI_PORT, m.ESI_INTERVAL, m.SCN_PORT} & {
        tag for tag, _ in server.heard[0].attributes
    }


def test_inquiries_are_asked_for_and_done_without_where_the_server_makes_none():
    server = Server(DevAttrReg=[m.ESI_NOT_AVAILABLE, m.SUCCESS])
    done = hold(e.registration(ENTITY._replace(esi_interval=60)), server)
    first, second = server.of(m.REGISTER)
    assert (
        m.number(m.ESI_INTERVAL, 60) in first.attributes
        and m.number(m.ESI_PORT, 4000) in first.attributes
    )
    assert m.ESI_PORT not in [tag for tag, _ in second.attributes]
    assert done.notes == ['it makes no inquiries']


def test_notifications_that_are_refused_are_no_failure():
    done = hold(e.registration(ENTITY), Server(SCNReg=17))
    assert len(done.notes) == 1 and 'SCN registration rejected' in done.notes[0]


def test_a_refused_registration_says_why():
    with pytest.raises(e.Refused, match='source unauthorized'):
        hold(e.registration(ENTITY), Server(DevAttrReg=8))


def test_a_renewal_speaks_for_another_target_where_the_first_sees_nothing():
    server = Server(period=50, DevAttrQry=[m.NO_SUCH_ENTRY, m.SUCCESS])
    assert hold(e.renewal(ENTITY), server) == 50
    assert [m.text_of(message.attributes[0][1]) for message in server.heard] == [ONE.name, TWO.name]


def test_presence_is_what_is_shown():
    assert hold(e.presence(ONE.name), Server()) is True
    # Open-iSNS: success, and nothing
    assert hold(e.presence(ONE.name), Server(knows=False)) is False
    assert hold(e.presence(ONE.name), Server(DevAttrQry=m.NO_SUCH_ENTRY)) is False


def test_a_deregistration_names_the_entity():
    server = Server(DevDereg=m.NO_SUCH_ENTRY)
    hold(e.deregistration(ENTITY), server)
    assert server.heard[0].attributes[-1] == m.text(m.ENTITY_IDENTIFIER, 'storage1')
    with pytest.raises(e.Refused):
        hold(e.deregistration(ENTITY), Server(DevDereg=8))


def test_an_inquiry_is_answered_with_its_own_attributes():
    """RFC 4171 5.7.5.13."""
    attributes = (
        (m.TIMESTAMP, bytes(8)),
        m.text(m.ENTITY_IDENTIFIER, 'storage1'),
        m.address(m.PORTAL_ADDRESS, '10.0.0.1'),
        m.number(m.PORTAL_PORT, 3260),
    )
    answer = e.answered(m.Message(m.INQUIRY, m.FROM_SERVER, 99, None, attributes))
    assert answer == m.Message(m.INQUIRY | m.RESPONSE, m.FROM_CLIENT, 99, 0, attributes)


def test_a_notification_is_answered_with_whom_it_was_for():
    """RFC 4171 5.7.5.8."""
    other = 'iqn.2026-11.test:initiator'
    message = m.Message(
        m.NOTIFICATION,
        m.FROM_SERVER,
        7,
        None,
        (
            m.text(m.ISCSI_NAME, ONE.name),
            (m.TIMESTAMP, bytes(8)),
            m.number(m.ISCSI_SCN_BITMAP, 0x90),
            m.text(m.ISCSI_NAME, ONE.name),
            m.number(m.ISCSI_SCN_BITMAP, 0x88),
            m.text(m.ISCSI_NAME, other),
        ),
    )
    assert e.answered(message) == m.Message(
        0x8008, m.FROM_CLIENT, 7, 0, (m.text(m.ISCSI_NAME, ONE.name),)
    )
    assert e.notices(message) == [(0x90, ONE.name), (0x88, other)]
    assert (
        e.event(0x90) == 'removed'
        and e.event(0x0C) == 'added and updated'
        and e.event(0) == 'changed'
    )


def test_what_wants_no_answer_gets_none_and_what_is_unknown_is_told_so():
    assert e.answered(m.Message(m.HEARTBEAT, m.FROM_SERVER, 7, None, ())) is None
    assert e.answered(m.Message(m.INQUIRY | m.RESPONSE, m.FROM_SERVER, 7, 0, ())) is None
    assert e.answered(m.Message(0x55, m.FROM_SERVER, 7, None, ())).status == m.MESSAGE_NOT_SUPPORTED
    assert (
        e.notices(m.Message(m.INQUIRY, m.FROM_SERVER, 7, None, (m.number(m.ISCSI_SCN_BITMAP, 1),)))
        == []
    )
