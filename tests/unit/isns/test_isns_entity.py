"""Registration with an iSNS server, and the answers to its requests."""

import pytest

from targetd.isns import entity, isnsp

P1, P2, P3 = (
    entity.Portal('10.0.0.1', 3260),
    entity.Portal('10.0.0.2', 3260),
    entity.Portal('2001:db8::1', 3261),
)
ONE = entity.Node('iqn.2026-11.test:one', 'One', ((1, (P1, P2)),))
TWO = entity.Node('iqn.2026-11.test:two', '', ((1, (P1,)), (7, (P3,))))
ENTITY = entity.Entity('storage1', 300, 0, 4000, (P1, P2, P3), (ONE, TWO))


class Server(object):
    """A fake iSNS server. knows: True if queries return the entity; statuses: the status codes to
    answer for each function."""

    def __init__(self, knows=True, period=None, **statuses):
        self.knows, self.period, self.statuses = knows, period, statuses
        self.heard = []

    def answer(self, message):
        self.heard.append(message)
        status = self.statuses.get(isnsp.FUNCTION_NAMES[message.function], isnsp.SUCCESS)
        status = status.pop(0) if isinstance(status, list) else status
        attributes = [isnsp.empty_attribute(isnsp.DELIMITER)]
        if status == isnsp.SUCCESS and (message.function != isnsp.QUERY or self.knows):
            attributes.append(isnsp.text_attribute(isnsp.ENTITY_IDENTIFIER, 'storage1'))
            if self.period:
                attributes.append(isnsp.number_attribute(isnsp.REGISTRATION_PERIOD, self.period))
        return isnsp.Message(
            message.function | isnsp.RESPONSE,
            isnsp.FROM_SERVER,
            message.transaction,
            status,
            tuple(attributes),
        )

    def of(self, function):
        return [message for message in self.heard if message.function == function]


def hold(conversation, server):
    """Runs the conversation with the server and returns its result."""
    try:
        message = next(conversation)
        while True:
            message = conversation.send(server.answer(message))
    except StopIteration as stop:
        return stop.value


def test_the_first_message_replaces_the_registration_and_is_complete():
    (message,) = entity.registration_messages(ENTITY)
    assert message.flags & isnsp.REPLACE and message.function == isnsp.REGISTER
    name = isnsp.text_attribute(isnsp.ENTITY_IDENTIFIER, 'storage1')
    portals = []
    for portal in (P1, P2, P3):
        portals += [
            isnsp.address_attribute(isnsp.PORTAL_ADDRESS, portal.address),
            isnsp.number_attribute(isnsp.PORTAL_PORT, portal.port),
            isnsp.number_attribute(isnsp.SCN_PORT, 4000),
        ]
    assert list(message.attributes) == [
        isnsp.text_attribute(isnsp.ISCSI_NAME, ONE.name),
        name,
        isnsp.empty_attribute(isnsp.DELIMITER),
        name,
        isnsp.number_attribute(isnsp.ENTITY_PROTOCOL, 2),
        isnsp.number_attribute(isnsp.REGISTRATION_PERIOD, 300),
    ] + portals + [
        isnsp.text_attribute(isnsp.ISCSI_NAME, ONE.name),
        isnsp.number_attribute(isnsp.ISCSI_NODE_TYPE, 1),
        isnsp.text_attribute(isnsp.ISCSI_ALIAS, 'One'),
        isnsp.number_attribute(isnsp.PG_TAG, 1),
        isnsp.address_attribute(isnsp.PG_PORTAL_ADDRESS, '10.0.0.1'),
        isnsp.number_attribute(isnsp.PG_PORTAL_PORT, 3260),
        isnsp.address_attribute(isnsp.PG_PORTAL_ADDRESS, '10.0.0.2'),
        isnsp.number_attribute(isnsp.PG_PORTAL_PORT, 3260),
        isnsp.empty_attribute(isnsp.PG_TAG),
        isnsp.address_attribute(isnsp.PG_PORTAL_ADDRESS, '2001:db8::1'),
        isnsp.number_attribute(isnsp.PG_PORTAL_PORT, 3261),
        isnsp.text_attribute(isnsp.ISCSI_NAME, TWO.name),
        isnsp.number_attribute(isnsp.ISCSI_NODE_TYPE, 1),
        isnsp.number_attribute(isnsp.PG_TAG, 1),
        isnsp.address_attribute(isnsp.PG_PORTAL_ADDRESS, '10.0.0.1'),
        isnsp.number_attribute(isnsp.PG_PORTAL_PORT, 3260),
        isnsp.number_attribute(isnsp.PG_TAG, 7),
        isnsp.address_attribute(isnsp.PG_PORTAL_ADDRESS, '2001:db8::1'),
        isnsp.number_attribute(isnsp.PG_PORTAL_PORT, 3261),
        isnsp.empty_attribute(isnsp.PG_TAG),
        isnsp.address_attribute(isnsp.PG_PORTAL_ADDRESS, '10.0.0.2'),
        isnsp.number_attribute(isnsp.PG_PORTAL_PORT, 3260),
    ]


def test_many_targets_take_several_messages_and_portals_are_sent_once():
    nodes = tuple(entity.Node('iqn.2026-11.test:%0150d' % n, '', ((1, (P1,)),)) for n in range(50))
    first, *further = entity.registration_messages(ENTITY._replace(nodes=nodes))
    assert (
        further
        and first.flags & isnsp.REPLACE
        and not any(message.flags & isnsp.REPLACE for message in further)
    )
    assert not any(
        tag == isnsp.PORTAL_ADDRESS for message in further for tag, _ in message.attributes
    )
    names = [
        value
        for message in [first] + further
        for tag, value in message.attributes[3:]
        if tag == isnsp.ISCSI_NAME
    ]
    assert [isnsp.attribute_text(name) for name in names] == [node.name for node in nodes]
    assert all(len(isnsp.encode(message)) <= 4096 for message in further)


def test_a_registration_ends_with_a_query_of_it():
    server = Server(period=600)
    assert hold(entity.registration_conversation(ENTITY), server) == entity.Registered(
        600, True, []
    )
    assert [isnsp.FUNCTION_NAMES[message.function] for message in server.heard] == [
        'DevAttrReg',
        'SCNReg',
        'SCNReg',
        'DevAttrQry',
    ]
    assert [
        isnsp.attribute_text(message.attributes[1][1]) for message in server.of(isnsp.REGISTER_SCN)
    ] == [ONE.name, TWO.name]


def test_without_a_period_of_the_server_the_configured_one_applies():
    assert hold(entity.registration_conversation(ENTITY), Server()).period == 300


def test_a_server_with_empty_query_responses_gets_no_renewal():
    assert not hold(entity.registration_conversation(ENTITY), Server(knows=False)).is_visible
    assert hold(entity.renewal_conversation(ENTITY), Server(knows=False)) is None


def test_without_a_listener_no_notifications_are_requested():
    server = Server()
    hold(entity.registration_conversation(ENTITY._replace(port=0, esi_interval=60)), server)
    assert not server.of(isnsp.REGISTER_SCN)
    assert not {isnsp.ESI_PORT, isnsp.ESI_INTERVAL, isnsp.SCN_PORT} & {
        tag for tag, _ in server.heard[0].attributes
    }


def test_inquiries_are_requested_but_the_server_may_refuse_them():
    server = Server(DevAttrReg=[isnsp.ESI_NOT_AVAILABLE, isnsp.SUCCESS])
    done = hold(entity.registration_conversation(ENTITY._replace(esi_interval=60)), server)
    first, second = server.of(isnsp.REGISTER)
    assert (
        isnsp.number_attribute(isnsp.ESI_INTERVAL, 60) in first.attributes
        and isnsp.number_attribute(isnsp.ESI_PORT, 4000) in first.attributes
    )
    assert isnsp.ESI_PORT not in [tag for tag, _ in second.attributes]
    assert done.notes == ['it sends no inquiries']


def test_refused_notifications_are_not_a_failure():
    done = hold(entity.registration_conversation(ENTITY), Server(SCNReg=17))
    assert len(done.notes) == 1 and 'SCN registration rejected' in done.notes[0]


def test_a_refused_registration_has_a_reason():
    with pytest.raises(entity.Refused, match='source unauthorized'):
        hold(entity.registration_conversation(ENTITY), Server(DevAttrReg=8))


def test_a_renewal_uses_another_target_if_the_query_of_the_first_is_empty():
    server = Server(period=50, DevAttrQry=[isnsp.NO_SUCH_ENTRY, isnsp.SUCCESS])
    assert hold(entity.renewal_conversation(ENTITY), server) == 50
    assert [isnsp.attribute_text(message.attributes[0][1]) for message in server.heard] == [
        ONE.name,
        TWO.name,
    ]


def test_an_entity_is_registered_if_a_query_returns_it():
    assert hold(entity.presence_conversation(ONE.name), Server()) is True
    # Open-iSNS: success, and nothing
    assert hold(entity.presence_conversation(ONE.name), Server(knows=False)) is False
    assert (
        hold(entity.presence_conversation(ONE.name), Server(DevAttrQry=isnsp.NO_SUCH_ENTRY))
        is False
    )


def test_a_deregistration_names_the_entity():
    server = Server(DevDereg=isnsp.NO_SUCH_ENTRY)
    hold(entity.deregistration_conversation(ENTITY), server)
    assert server.heard[0].attributes[-1] == isnsp.text_attribute(
        isnsp.ENTITY_IDENTIFIER, 'storage1'
    )
    with pytest.raises(entity.Refused):
        hold(entity.deregistration_conversation(ENTITY), Server(DevDereg=8))


def test_an_inquiry_is_answered_with_the_attributes_it_contains():
    """RFC 4171 5.7.5.13."""
    attributes = (
        (isnsp.TIMESTAMP, bytes(8)),
        isnsp.text_attribute(isnsp.ENTITY_IDENTIFIER, 'storage1'),
        isnsp.address_attribute(isnsp.PORTAL_ADDRESS, '10.0.0.1'),
        isnsp.number_attribute(isnsp.PORTAL_PORT, 3260),
    )
    answer = entity.response_to(
        isnsp.Message(isnsp.ENTITY_STATUS_INQUIRY, isnsp.FROM_SERVER, 99, None, attributes)
    )
    assert answer == isnsp.Message(
        isnsp.ENTITY_STATUS_INQUIRY | isnsp.RESPONSE, isnsp.FROM_CLIENT, 99, 0, attributes
    )


def test_a_notification_is_answered_with_its_destination():
    """RFC 4171 5.7.5.8."""
    other = 'iqn.2026-11.test:initiator'
    message = isnsp.Message(
        isnsp.STATE_CHANGE_NOTIFICATION,
        isnsp.FROM_SERVER,
        7,
        None,
        (
            isnsp.text_attribute(isnsp.ISCSI_NAME, ONE.name),
            (isnsp.TIMESTAMP, bytes(8)),
            isnsp.number_attribute(isnsp.ISCSI_SCN_BITMAP, 0x90),
            isnsp.text_attribute(isnsp.ISCSI_NAME, ONE.name),
            isnsp.number_attribute(isnsp.ISCSI_SCN_BITMAP, 0x88),
            isnsp.text_attribute(isnsp.ISCSI_NAME, other),
        ),
    )
    assert entity.response_to(message) == isnsp.Message(
        0x8008, isnsp.FROM_CLIENT, 7, 0, (isnsp.text_attribute(isnsp.ISCSI_NAME, ONE.name),)
    )
    assert entity.notified_events(message) == [(0x90, ONE.name), (0x88, other)]
    assert (
        entity.event_text(0x90) == 'removed'
        and entity.event_text(0x0C) == 'added and updated'
        and entity.event_text(0) == 'changed'
    )


def test_responses_are_not_answered_and_unknown_functions_are_refused():
    assert (
        entity.response_to(isnsp.Message(isnsp.HEARTBEAT, isnsp.FROM_SERVER, 7, None, ())) is None
    )
    assert (
        entity.response_to(
            isnsp.Message(isnsp.ENTITY_STATUS_INQUIRY | isnsp.RESPONSE, isnsp.FROM_SERVER, 7, 0, ())
        )
        is None
    )
    assert (
        entity.response_to(isnsp.Message(0x55, isnsp.FROM_SERVER, 7, None, ())).status
        == isnsp.MESSAGE_NOT_SUPPORTED
    )
    assert (
        entity.notified_events(
            isnsp.Message(
                isnsp.ENTITY_STATUS_INQUIRY,
                isnsp.FROM_SERVER,
                7,
                None,
                (isnsp.number_attribute(isnsp.ISCSI_SCN_BITMAP, 1),),
            )
        )
        == []
    )
