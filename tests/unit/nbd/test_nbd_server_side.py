"""The side of a server: its handshake with our client, and requests and replies as the client reads them."""

import errno
import struct

import pytest

from targetd.nbd import handshake, messages, numbers, server_side

OFFER = server_side.Offer(1 << 30, numbers.HAS_FLAGS | numbers.SEND_FLUSH, 1, 4096, 1 << 22, True)


def meet(offer, client):
    """Runs both generators against each other; returns (what the server agreed, the client's Export)."""
    server = server_side.negotiate(offer)
    ends, to = {}, {'server': b'', 'client': b''}
    steps = {'server': (server, next(server)), 'client': (client, next(client))}
    for _ in range(200):
        for name, other in (('server', 'client'), ('client', 'server')):
            if name in ends:
                continue
            generator, wanted = steps[name]
            if isinstance(wanted, bytes):
                to[other] += wanted
                answer = None
            elif len(to[name]) >= wanted:
                answer, to[name] = to[name][:wanted], to[name][wanted:]
            else:
                continue
            try:
                steps[name] = generator, generator.send(answer)
            except StopIteration as e:
                ends[name] = e.value
        if len(ends) == 2:
            return ends['server'], ends['client']
    raise AssertionError('the handshake does not end')


def test_our_client_learns_what_is_offered():
    agreed, export = meet(OFFER, handshake.negotiate('any name'))
    assert agreed == (True, True)
    assert export == (1 << 30, OFFER.flags, 1, 4096, 1 << 22, True, False, 1)


def test_no_context_is_agreed_that_is_not_offered():
    agreed, export = meet(OFFER._replace(has_allocation=False), handshake.negotiate(''))
    assert agreed == (True, False) and export.allocation is None


def option(number, data=b''):
    return struct.pack('>QII', numbers.OPTION_MAGIC, number, len(data)) + data


def feed(steps, data):
    """Gives the server these bytes; returns what it sends. Raises StopIteration at its end."""
    sent, wanted = b'', next(steps)
    while True:
        if isinstance(wanted, bytes):
            sent += wanted
            wanted = steps.send(None)
        elif len(data) < wanted:
            return sent
        else:
            part, data = data[:wanted], data[wanted:]
            wanted = steps.send(part)


def test_a_client_may_leave_and_unknown_options_are_refused():
    sent = feed(server_side.negotiate(OFFER), bytes(4) + option(99, b'abc'))
    assert sent.endswith(
        struct.pack('>QIII', numbers.OPTION_REPLY_MAGIC, 99, numbers.REP_ERR_UNSUP, 0)
    )
    with pytest.raises(StopIteration) as end:
        feed(server_side.negotiate(OFFER), bytes(4) + option(numbers.OPT_ABORT))
    assert end.value.value is None


@pytest.mark.parametrize(
    'data',
    [
        b'x' * 16,
        struct.pack('>QII', numbers.OPTION_MAGIC, numbers.OPT_GO, 1 << 30),
        option(numbers.OPT_STRUCTURED_REPLY) + option(numbers.OPT_SET_META_CONTEXT, b'\0\0'),
    ],
)
def test_an_invalid_option_ends_the_connection(data):
    with pytest.raises(server_side.ProtocolError):
        feed(server_side.negotiate(OFFER), bytes(4) + data)


def test_a_request_of_our_client_is_understood():
    header = messages.request(numbers.CMD_WRITE, numbers.FLAG_FUA, 77, 1 << 40, 4096)
    assert len(header) == server_side.REQUEST_SIZE
    assert server_side.parse_request(header) == (
        numbers.FLAG_FUA,
        numbers.CMD_WRITE,
        77,
        1 << 40,
        4096,
    )
    with pytest.raises(server_side.ProtocolError):
        server_side.parse_request(b'\0' * 28)


def parsed(reply):
    size = messages.header_size(reply, 0, len(reply), True, False)
    header = messages.parse_header(reply, 0, size)
    return header, reply[size:]


@pytest.mark.parametrize(
    'error, number',
    [(errno.EDQUOT, 28), (errno.ENOSPC, 28), (errno.EROFS, 1), (errno.ETIMEDOUT, 5)],
)
def test_errors_have_the_numbers_of_the_protocol(error, number):
    assert parsed(server_side.done(5, error))[0] == (5, None, True, number, 0)
    header, payload = parsed(server_side.failed(5, error))
    messages.check_length(header, numbers.CMD_READ, 512)
    assert header.is_last and messages.parse_error(payload) == (number, '')


def test_the_data_and_the_extents_of_a_reply():
    buffer = bytearray(64)
    start = server_side.put_data_header(True, buffer, 50, 9, 4096, 512)
    header, payload = parsed(bytes(buffer[start:50]))
    messages.check_length(header, numbers.CMD_READ, 512)
    assert (header.cookie, header.length, header.is_last) == (9, 520, True)
    assert payload == struct.pack('>Q', 4096)
    header, payload = parsed(server_side.status(9, [(4096, True), (512, False)]))
    assert messages.parse_status(header.kind, payload, 1) == [(4096, True), (512, False)]
