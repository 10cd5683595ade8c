import ctypes

from targetd.ceph.image_buffers import CHUNK, HEAD, LEAST, MOST_KEPT, SMALLEST, Input, ReplyBuffers


def fill(given, data, needed=0):
    """Receive these bytes."""
    while data:
        space = given.space(needed)
        count = min(len(space), len(data))
        space[:count] = data[:count]
        given.end += count
        data = data[count:]


def rest(given):
    return bytes(given.chunk.view[given.start : given.end])


def test_a_chunk_is_used_from_its_beginning_when_all_of_it_was_used():
    given = Input()
    fill(given, b'abc')
    address = given.chunk.address
    given.start = given.end
    fill(given, b'def')
    assert rest(given) == b'def' and given.start == 0 and given.chunk.address == address
    assert ctypes.string_at(address, 3) == b'def'


def test_a_chunk_with_a_user_is_not_changed_until_the_user_is_gone():
    given = Input()
    fill(given, b'x' * (CHUNK - LEAST + 1))
    first = given.chunk
    first.users += 1
    given.start = given.end - 5  # the rest is taken along
    fill(given, b'y' * 100)
    assert given.chunk is not first and rest(given) == b'x' * 5 + b'y' * 100
    assert set(bytes(first.view[: CHUNK - LEAST])) == {ord('x')}
    given.release(first)
    given.start = given.end
    given.chunk.users += 1
    fill(given, b'z' * (CHUNK - LEAST))
    fill(given, b'last')
    assert given.chunk is first  # it is used again


def test_what_must_fit_is_in_one_piece():
    given = Input()
    fill(given, b'head')
    data = bytes(range(256)) * (3 * CHUNK // 256)
    fill(given, data, 4 + len(data))
    assert rest(given) == b'head' + data
    given.start += 4
    fill(given, b'more')
    assert rest(given) == data + b'more'
    given.start = given.end
    fill(given, b'next')
    assert rest(given) == b'next'


def test_reply_buffers_are_used_again_but_not_kept_without_a_limit():
    buffers = ReplyBuffers()
    small = buffers.take(10)
    assert len(small.view) == HEAD + SMALLEST
    buffers.give_back(small)
    assert buffers.take(SMALLEST) is small and buffers.take(SMALLEST) is not small
    large = buffers.take(MOST_KEPT + 1)
    buffers.give_back(large)
    assert buffers.take(MOST_KEPT + 1) is not large
