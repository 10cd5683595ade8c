"""What a target server says of itself to an iSNS server, and how the conversations about it go (RFC
4171). Pure.

May import isns.messages. A conversation is a generator: it yields a Message to send and is given
the server's response, until it returns its outcome or raises Refused. Whoever drives it owns the
connection, the transaction numbers and the clock.

Invariants, most of them learnt from servers:
* The first message registers the entity with all portals and says REPLACE, so that what an earlier life left there is gone; a
  portal appears in no further message (Windows answers 'invalid update', status 14).
* Targets are added in messages of moderate size, because Open-iSNS cannot answer more than 8 KiB.
* A target that is not reached through a portal says so with a portal group tag of nothing: silence would mean tag 1.
* A query for what is not there is answered with success and no attributes (Open-iSNS), and so is one by a target that is in no
  discovery domain. Hence whether queries show anything is tried directly after a registration.
"""

from collections import namedtuple

from targetd.isns import messages as m

BATCH = 3000  # bytes of targets in one message; the response is up to twice as long
# targets in whose name a renewal is tried: one in no discovery domain sees nothing
TRIED_SOURCES = 32
NOTIFIED = m.INITIATORS_AND_SELF | m.OBJECT_REMOVED | m.OBJECT_ADDED


class Portal(namedtuple('Portal', 'address port')):
    """A TCP portal. address: numeric, no wildcard."""

    __slots__ = ()


class Node(namedtuple('Node', 'name alias groups')):
    """A target. groups: ((portal group tag, (Portal, …)), …), those through which it is reached."""

    __slots__ = ()


class Entity(namedtuple('Entity', 'identifier period esi_interval port portals nodes')):
    """All of it. period: seconds after which the server may forget us; esi_interval: seconds
    between its inquiries, 0: it does not ask; port: where we listen for inquiries and
    notifications, 0: nowhere; portals: (Portal, …); nodes: (Node, …), not empty."""

    __slots__ = ()

    @property
    def source(self):
        """The name in which we speak."""
        return self.nodes[0].name


class Refused(Exception):
    """The server answered with a status other than 0."""

    def __init__(self, what, status):
        super(Refused, self).__init__('%s: %s' % (what, m.status_name(status)))
        self.status = status


# -- messages --------------------------------------------------------------------------------------


def _registration(entity, flags, *attributes):
    identifier = m.text(m.ENTITY_IDENTIFIER, entity.identifier)
    return m.request(
        m.REGISTER,
        m.text(m.ISCSI_NAME, entity.source),
        identifier,
        m.nothing(m.DELIMITER),
        identifier,
        *attributes,
        flags=flags,
    )


def _portal(entity, portal):
    found = [m.address(m.PORTAL_ADDRESS, portal.address), m.number(m.PORTAL_PORT, portal.port)]
    if entity.port and entity.esi_interval:
        found += [m.number(m.ESI_INTERVAL, entity.esi_interval), m.number(m.ESI_PORT, entity.port)]
    if entity.port:
        found.append(m.number(m.SCN_PORT, entity.port))
    return found


def _node(entity, node):
    found = [m.text(m.ISCSI_NAME, node.name), m.number(m.ISCSI_NODE_TYPE, m.NODE_TARGET)]
    if node.alias:
        found.append(m.text(m.ISCSI_ALIAS, node.alias))
    reached = set(portal for _, portals in node.groups for portal in portals)
    elsewhere = [portal for portal in entity.portals if portal not in reached]
    groups = [(m.number(m.PG_TAG, tag), portals) for tag, portals in node.groups] + [
        (m.nothing(m.PG_TAG), elsewhere)
    ]
    for tag, portals in groups:
        for number, portal in enumerate(portals):
            found += [] if number else [tag]
            found += [
                m.address(m.PG_PORTAL_ADDRESS, portal.address),
                m.number(m.PG_PORTAL_PORT, portal.port),
            ]
    return found


def batches(entity):
    """[[attribute, …], …]: the targets, as many in one as BATCH allows."""
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


def registrations(entity):
    """The messages that register all of it, in order."""
    attributes = [
        m.number(m.ENTITY_PROTOCOL, m.PROTOCOL_ISCSI),
        m.number(m.REGISTRATION_PERIOD, entity.period),
    ]
    for portal in entity.portals:
        attributes += _portal(entity, portal)
    first, *further = batches(entity)
    return [_registration(entity, m.REPLACE, *(attributes + first))] + [
        _registration(entity, 0, *rest) for rest in further
    ]


# -- conversations ---------------------------------------------------------------------------------


def _demand(answer, what):
    if answer.status != m.SUCCESS:
        raise Refused(what, answer.status)
    return answer


class Registered(namedtuple('Registered', 'period is_visible notes')):
    """period: seconds after which the server forgets us; is_visible: renewals show whether it has;
    notes: [what it would not do, …]."""

    __slots__ = ()


def registration(entity):
    """Conversation: register everything anew. Returns Registered."""
    notes = []
    answer = yield registrations(entity)[0]
    if answer.status == m.ESI_NOT_AVAILABLE and entity.esi_interval:
        notes.append('it makes no inquiries')
        entity = entity._replace(esi_interval=0)
        answer = yield registrations(entity)[0]
    period = _demand(answer, 'the registration').number(m.REGISTRATION_PERIOD) or entity.period
    for message in registrations(entity)[1:]:
        _demand((yield message), 'the registration of further targets')
    for node in entity.nodes if entity.port else ():
        name = m.text(m.ISCSI_NAME, node.name)
        answer = yield m.request(
            m.REGISTER_NOTIFICATION,
            name,
            name,
            m.nothing(m.DELIMITER),
            m.number(m.ISCSI_SCN_BITMAP, NOTIFIED),
        )
        if answer.status != m.SUCCESS:
            notes.append('it sends no notifications: %s' % m.status_name(answer.status))
            break
    shown = yield from renewal(entity)
    return Registered(shown or period, shown is not None, notes)


def renewal(entity):
    """Conversation: tell the server that we are there (RFC 4171 6.2.6: any message does). Returns
    the seconds after which it forgets us; None when it shows nothing of us."""
    for node in entity.nodes[:TRIED_SOURCES]:
        answer = yield m.request(
            m.QUERY,
            m.text(m.ISCSI_NAME, node.name),
            m.text(m.ENTITY_IDENTIFIER, entity.identifier),
            m.nothing(m.DELIMITER),
            m.nothing(m.ENTITY_IDENTIFIER),
            m.nothing(m.ENTITY_PROTOCOL),
            m.nothing(m.REGISTRATION_PERIOD),
        )
        if answer.status == m.SUCCESS and answer.operating:
            return answer.number(m.REGISTRATION_PERIOD) or entity.period
    return None


def presence(name):
    """Conversation: does the server show this target of ours? Returns bool."""
    answer = yield m.request(
        m.QUERY,
        m.text(m.ISCSI_NAME, name),
        m.text(m.ISCSI_NAME, name),
        m.nothing(m.DELIMITER),
        m.nothing(m.ISCSI_NAME),
        m.nothing(m.ISCSI_NODE_TYPE),
    )
    return answer.status == m.SUCCESS and bool(answer.operating)


def deregistration(entity):
    """Conversation: be forgotten. What is not there any more is no error (RFC 4171 5.6.5.4)."""
    answer = yield m.request(
        m.DEREGISTER,
        m.text(m.ISCSI_NAME, entity.source),
        m.nothing(m.DELIMITER),
        m.text(m.ENTITY_IDENTIFIER, entity.identifier),
    )
    if answer.status != m.NO_SUCH_ENTRY:
        _demand(answer, 'the deregistration')


# -- what a server says of its own accord ----------------------------------------------------------


def answered(message):
    """Our response to a server's message, or None where none is wanted (RFC 4171 5.7.5.8,
    5.7.5.13)."""
    if message.is_response or message.function == m.HEARTBEAT:
        return None
    if message.function == m.INQUIRY:
        return m.response(message, m.SUCCESS, *message.attributes)
    if message.function == m.NOTIFICATION:
        return m.response(
            message, m.SUCCESS, *[a for a in message.attributes if a[0] == m.ISCSI_NAME][:1]
        )
    return m.response(message, m.MESSAGE_NOT_SUPPORTED)


def notices(message):
    """[(SCN bitmap, iSCSI name that it is about), …] of a notification; [] for any other message."""
    found, bitmap = [], None
    if message.function == m.NOTIFICATION:
        for tag, value in message.attributes:
            if tag == m.ISCSI_SCN_BITMAP and len(value) == 4:
                (bitmap,) = m.NUMBER.unpack(value)
            elif tag == m.ISCSI_NAME and bitmap is not None:
                found.append((bitmap, m.text_of(value)))
                bitmap = None
    return found


def event(bitmap):
    """A bitmap in words: 'removed'."""
    words = (
        (m.OBJECT_REMOVED, 'removed'),
        (m.OBJECT_ADDED, 'added'),
        (m.OBJECT_UPDATED, 'updated'),
        (m.MEMBER_REMOVED, 'removed from a discovery domain'),
        (m.MEMBER_ADDED, 'added to a discovery domain'),
    )
    return ' and '.join(word for bit, word in words if bitmap & bit) or 'changed'
