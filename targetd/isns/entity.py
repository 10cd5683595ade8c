"""The registration of targetd at an iSNS server, and the conversations for it (RFC 4171). Pure.

May import isns.isnsp. A conversation is a generator: it yields a Message to send, receives the server's
response, and finally returns its outcome or raises Refused. The caller owns the connection, the
transaction numbers and the clock.

Invariants, most of them required by existing servers:
* The first message registers the entity with all portals and with the REPLACE flag, so that the
  registration of an earlier run is removed. No further message contains a portal (Windows answers
  'invalid update', status 14).
* Targets are added in several messages of limited size, because Open-iSNS cannot send a response longer
  than 8 KiB.
* For a portal through which a target is not reachable, the message has an empty portal group tag; without
  it the server would assume tag 1.
* The response to a query for an unknown object is successful and has no attributes (Open-iSNS), and so
  is the response to a query by a target that is in no discovery domain. A query directly after the
  registration therefore shows whether later queries are useful.
"""

from collections import namedtuple

from targetd.isns import isnsp

BATCH = 3000  # bytes of targets in one message; the response can be twice as long
# Number of targets that a renewal tries as the source: a target in no discovery domain sees nothing.
TRIED_SOURCES = 32
NOTIFIED = isnsp.INITIATORS_AND_SELF | isnsp.OBJECT_REMOVED | isnsp.OBJECT_ADDED


class Portal(namedtuple('Portal', 'address port')):
    """A TCP portal. address: numeric, no wildcard."""

    __slots__ = ()


class Node(namedtuple('Node', 'name alias groups')):
    """A target. groups: ((portal group tag, (Portal, …)), …) through which it is reachable."""

    __slots__ = ()


class Entity(namedtuple('Entity', 'identifier period esi_interval port portals nodes')):
    """Everything that is registered. period: seconds after which the server may remove the
    registration; esi_interval: seconds between entity status inquiries, 0: none; port: TCP port for
    inquiries and notifications, 0: none; portals: (Portal, …); nodes: (Node, …), not empty."""

    __slots__ = ()

    @property
    def source(self):
        """The source name of the messages."""
        return self.nodes[0].name


class Refused(Exception):
    """The server answered with a status other than SUCCESS."""

    def __init__(self, what, status):
        super(Refused, self).__init__('%s: %s' % (what, isnsp.status_name(status)))
        self.status = status


# -- messages --------------------------------------------------------------------------------------


def _registration(entity, flags, *attributes):
    identifier = isnsp.text_attribute(isnsp.ENTITY_IDENTIFIER, entity.identifier)
    return isnsp.request_message(
        isnsp.REGISTER,
        isnsp.text_attribute(isnsp.ISCSI_NAME, entity.source),
        identifier,
        isnsp.empty_attribute(isnsp.DELIMITER),
        identifier,
        *attributes,
        flags=flags,
    )


def _portal(entity, portal):
    found = [
        isnsp.address_attribute(isnsp.PORTAL_ADDRESS, portal.address),
        isnsp.number_attribute(isnsp.PORTAL_PORT, portal.port),
    ]
    if entity.port and entity.esi_interval:
        found += [
            isnsp.number_attribute(isnsp.ESI_INTERVAL, entity.esi_interval),
            isnsp.number_attribute(isnsp.ESI_PORT, entity.port),
        ]
    if entity.port:
        found.append(isnsp.number_attribute(isnsp.SCN_PORT, entity.port))
    return found


def _node(entity, node):
    found = [
        isnsp.text_attribute(isnsp.ISCSI_NAME, node.name),
        isnsp.number_attribute(isnsp.ISCSI_NODE_TYPE, isnsp.NODE_TARGET),
    ]
    if node.alias:
        found.append(isnsp.text_attribute(isnsp.ISCSI_ALIAS, node.alias))
    reached = set(portal for _, portals in node.groups for portal in portals)
    elsewhere = [portal for portal in entity.portals if portal not in reached]
    groups = [
        (isnsp.number_attribute(isnsp.PG_TAG, tag), portals) for tag, portals in node.groups
    ] + [(isnsp.empty_attribute(isnsp.PG_TAG), elsewhere)]
    for tag, portals in groups:
        for number, portal in enumerate(portals):
            found += [] if number else [tag]
            found += [
                isnsp.address_attribute(isnsp.PG_PORTAL_ADDRESS, portal.address),
                isnsp.number_attribute(isnsp.PG_PORTAL_PORT, portal.port),
            ]
    return found


def target_batches(entity):
    """Return [[attribute, …], …]: the targets, in as few batches as BATCH allows."""
    found, size = [[]], 0
    for node in entity.nodes:
        attributes = _node(entity, node)
        length = sum(8 + len(value) for _, value in attributes)
        if size and size + length > BATCH:
            found.append([])
            size = 0
        found[-1] += attributes
        size += length
    return found


def registration_messages(entity):
    """Return the messages that register the entity, in order."""
    attributes = [
        isnsp.number_attribute(isnsp.ENTITY_PROTOCOL, isnsp.PROTOCOL_ISCSI),
        isnsp.number_attribute(isnsp.REGISTRATION_PERIOD, entity.period),
    ]
    for portal in entity.portals:
        attributes += _portal(entity, portal)
    first, *further = target_batches(entity)
    return [_registration(entity, isnsp.REPLACE, *(attributes + first))] + [
        _registration(entity, 0, *rest) for rest in further
    ]


# -- conversations ---------------------------------------------------------------------------------


def _demand(answer, what):
    if answer.status != isnsp.SUCCESS:
        raise Refused(what, answer.status)
    return answer


class Registered(namedtuple('Registered', 'period is_visible notes')):
    """The outcome of a registration. period: seconds after which the server removes it; is_visible:
    True if renewals show whether it still exists; notes: [what the server does not support, …]."""

    __slots__ = ()


def registration_conversation(entity):
    """Conversation: register the whole entity. Returns Registered."""
    notes = []
    answer = yield registration_messages(entity)[0]
    if answer.status == isnsp.ESI_NOT_AVAILABLE and entity.esi_interval:
        notes.append('it sends no inquiries')
        entity = entity._replace(esi_interval=0)
        answer = yield registration_messages(entity)[0]
    period = _demand(answer, 'the registration').number(isnsp.REGISTRATION_PERIOD) or entity.period
    for message in registration_messages(entity)[1:]:
        _demand((yield message), 'the registration of further targets')
    for node in entity.nodes if entity.port else ():
        name = isnsp.text_attribute(isnsp.ISCSI_NAME, node.name)
        answer = yield isnsp.request_message(
            isnsp.REGISTER_SCN,
            name,
            name,
            isnsp.empty_attribute(isnsp.DELIMITER),
            isnsp.number_attribute(isnsp.ISCSI_SCN_BITMAP, NOTIFIED),
        )
        if answer.status != isnsp.SUCCESS:
            notes.append('it sends no notifications: %s' % isnsp.status_name(answer.status))
            break
    shown = yield from renewal_conversation(entity)
    return Registered(shown or period, shown is not None, notes)


def renewal_conversation(entity):
    """Conversation: renew the registration (RFC 4171 6.2.6: any message does). Returns the seconds
    after which the server removes it; None if the server shows none of the targets."""
    for node in entity.nodes[:TRIED_SOURCES]:
        answer = yield isnsp.request_message(
            isnsp.QUERY,
            isnsp.text_attribute(isnsp.ISCSI_NAME, node.name),
            isnsp.text_attribute(isnsp.ENTITY_IDENTIFIER, entity.identifier),
            isnsp.empty_attribute(isnsp.DELIMITER),
            isnsp.empty_attribute(isnsp.ENTITY_IDENTIFIER),
            isnsp.empty_attribute(isnsp.ENTITY_PROTOCOL),
            isnsp.empty_attribute(isnsp.REGISTRATION_PERIOD),
        )
        if answer.status == isnsp.SUCCESS and answer.operating:
            return answer.number(isnsp.REGISTRATION_PERIOD) or entity.period
    return None


def presence_conversation(name):
    """Conversation: returns True if the server shows the target `name`."""
    answer = yield isnsp.request_message(
        isnsp.QUERY,
        isnsp.text_attribute(isnsp.ISCSI_NAME, name),
        isnsp.text_attribute(isnsp.ISCSI_NAME, name),
        isnsp.empty_attribute(isnsp.DELIMITER),
        isnsp.empty_attribute(isnsp.ISCSI_NAME),
        isnsp.empty_attribute(isnsp.ISCSI_NODE_TYPE),
    )
    return answer.status == isnsp.SUCCESS and bool(answer.operating)


def deregistration_conversation(entity):
    """Conversation: remove the registration. It is not an error if it does not exist (RFC 4171
    5.6.5.4)."""
    answer = yield isnsp.request_message(
        isnsp.DEREGISTER,
        isnsp.text_attribute(isnsp.ISCSI_NAME, entity.source),
        isnsp.empty_attribute(isnsp.DELIMITER),
        isnsp.text_attribute(isnsp.ENTITY_IDENTIFIER, entity.identifier),
    )
    if answer.status != isnsp.NO_SUCH_ENTRY:
        _demand(answer, 'the deregistration')


# -- messages that a server sends unsolicited ----------------------------------------------------------


def response_to(message):
    """Return the response to a server's message, or None if it needs no response (RFC 4171 5.7.5.8,
    5.7.5.13)."""
    if message.is_response or message.function == isnsp.HEARTBEAT:
        return None
    if message.function == isnsp.ENTITY_STATUS_INQUIRY:
        return isnsp.response_message(message, isnsp.SUCCESS, *message.attributes)
    if message.function == isnsp.STATE_CHANGE_NOTIFICATION:
        return isnsp.response_message(
            message, isnsp.SUCCESS, *[a for a in message.attributes if a[0] == isnsp.ISCSI_NAME][:1]
        )
    return isnsp.response_message(message, isnsp.MESSAGE_NOT_SUPPORTED)


def notified_events(message):
    """Return [(SCN bitmap, iSCSI name), …] of a notification; [] for any other message."""
    found, bitmap = [], None
    if message.function == isnsp.STATE_CHANGE_NOTIFICATION:
        for tag, value in message.attributes:
            if tag == isnsp.ISCSI_SCN_BITMAP and len(value) == 4:
                (bitmap,) = isnsp.NUMBER.unpack(value)
            elif tag == isnsp.ISCSI_NAME and bitmap is not None:
                found.append((bitmap, isnsp.attribute_text(value)))
                bitmap = None
    return found


def event_text(bitmap):
    """Return an SCN bitmap as text, such as 'removed'."""
    words = (
        (isnsp.OBJECT_REMOVED, 'removed'),
        (isnsp.OBJECT_ADDED, 'added'),
        (isnsp.OBJECT_UPDATED, 'updated'),
        (isnsp.MEMBER_REMOVED, 'removed from a discovery domain'),
        (isnsp.MEMBER_ADDED, 'added to a discovery domain'),
    )
    return ' and '.join(word for bit, word in words if bitmap & bit) or 'changed'
