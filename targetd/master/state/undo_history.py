"""What the undo journals (guard = undo-journal) have of the past of a medium: listed, and put back.

May import store, undo_files. Everything here runs in jobs.
"""

import heapq
import os
import re
import time

from targetd.master.state import undo_files
from targetd.store import undo_records

FOLDER = re.compile(r'^([0-9a-f]{32})\.undo$')
BATCH = 4 << 20  # bytes that are put back with one flush of the journal
BURST_SECONDS = 60.0
MOST_BURSTS = 40  # of one unit in the list


# -- listing ---------------------------------------------------------------------------------------


def rows(guards, units):
    """The rows of `guard list` for the journals: one for each time that an initiator has written without
    a pause of BURST_SECONDS, the newest first. units: as for guard_files.rows."""
    ids = {undo_files.name_of_unit(key): unit_id for key, unit_id in units.items()}
    found = []
    for name in sorted(os.listdir(guards)) if os.path.isdir(guards) else ():
        match = FOLDER.match(name)
        if match:
            found += _rows_of(os.path.join(guards, name), match.group(1), ids)
    return found


def _rows_of(path, name, ids):
    try:
        with undo_files.Segments(path) as segments:
            bursts, unit = [], ids.get(name, name)
            for segment in segments.all:
                unit = ids.get(name) or segment.description.get('unit', name)
                bursts += _bursts(segment)
            bursts.sort(key=lambda burst: (-burst['when'], burst['reason']))
            state = 'complete'
            if segments.interruption:
                state = 'interrupted: ' + segments.interruption
            return [
                dict(
                    burst,
                    unit=unit,
                    name=name,
                    state=state
                    if burst['when'] * undo_files.SECOND >= segments.horizon
                    else 'in part',
                )
                for burst in bursts[:MOST_BURSTS]
            ]
    except (OSError, KeyError, ValueError) as e:
        text = getattr(e, 'strerror', None) or str(e)
        return [_row(ids.get(name, name), name, text)]


def _row(unit, name, state):
    words = dict.fromkeys(('reason', 'initiator_name', 'contents'), '')
    return dict(words, unit=unit, name=name, number=None, when=0, size=0, state=state)


def _bursts(segment):
    """The rows of a segment, with time in seconds as `when`."""
    bursts, last = [], None
    for _, entry in segment.entries():
        now = entry.stamp.wall
        if last is None or now - last > BURST_SECONDS * undo_files.SECOND or now < last:
            bursts.append(
                {
                    'number': None,
                    'when': now // undo_files.SECOND,
                    'initiator_name': str(segment.description.get('by', '')),
                    'contents': '',
                    'size': 0,
                }
            )
        last = now
        bursts[-1]['size'] += entry.length
        bursts[-1]['reason'] = 'writes until %s' % time.strftime(
            '%H:%M:%S', time.localtime(now // undo_files.SECOND)
        )
        if entry.kind == undo_records.GAP:
            bursts[-1]['contents'] = 'a command overwrote more than the journal holds'
    return bursts


# -- putting back ----------------------------------------------------------------------------------


class Refused(Exception):
    """What is wanted cannot be put back; nothing was changed."""


def restore(path, since, medium, capacity, words):
    """A job: give a Medium (guard_files) the content that it had at a time. since: nanoseconds since 1970;
    words: of the description of the segment that keeps what is replaced. No session uses the medium.
    Returns ({'changed': bytes}, ()). An error is {'failed': text}."""
    journal = undo_files.own_journal(path, capacity, words)
    try:
        with undo_files.Segments(path) as segments, medium.raw(journal) as raw:
            found = _records_since(segments, since, raw.size, words)
            return {'changed': _put_back(found, raw)}, ()
    except FileNotFoundError:
        return {'failed': 'it has no undo journal'}, ()
    except Refused as e:
        return {'failed': str(e)}, ()
    except (KeyError, ValueError) as e:
        return {'failed': 'its undo journal is damaged: %s' % e}, ()
    except OSError as e:
        return {'failed': str(e.strerror or e)}, ()


def _records_since(segments, since, size, words):
    """[(segment, Positions)] of the records from the first one at or after a time on, in the order of all
    writes. Raises Refused."""
    if segments.interruption:
        raise Refused(segments.interruption)
    if not segments.all and not segments.horizon:
        raise Refused('its undo journal is empty')
    if since < segments.horizon:
        why = ': ' + segments.beginning if segments.beginning else ''
        raise Refused('its undo journal begins at %s%s' % (_when(segments.horizon), why))
    first, scanned = None, []
    for segment in segments.all:
        positions = undo_records.Positions()
        scanned.append((segment, positions))
        for position, entry in segment.entries():
            positions.add(entry, position)
            key = segment.boot, entry.stamp.monotonic
            if entry.stamp.wall >= since and (first is None or key < first):
                first = key
    if first is None:
        raise Refused('nothing was written since; the newest record is older')
    for segment, positions in scanned:
        positions.drop_before(first[1] if segment.boot == first[0] else 0, segment.boot < first[0])
        _require_usable(segment, positions, size, words)
    return scanned


def _require_usable(segment, positions, size, words):
    if not len(positions):
        return
    if segment.description.get('key_check', '') != words.get('key_check', ''):
        raise Refused(
            'the disk was encrypted with another key then, or not at all: what was kept cannot be decrypted'
        )
    if positions.gap:
        raise Refused(
            'a command at %s overwrote more than the journal holds; times after it can be restored'
            % _when(positions.gap)
        )
    if positions.end > size:
        raise Refused('the disk had at least %d bytes then, and has %d now' % (positions.end, size))


def _when(nanoseconds):
    return time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(nanoseconds // undo_files.SECOND))


def _stream(n, segment, positions):
    for clock, position in positions:
        yield segment.boot, clock, n, position


def _put_back(scanned, raw):
    """Write the oldest recorded content of each block. Returns the number of bytes that differed."""
    covered, changed, batch, waiting = undo_records.Covered(), 0, [], 0
    streams = [_stream(n, *each) for n, each in enumerate(scanned)]
    for _, _, n, position in heapq.merge(*streams):
        entry, blocks = undo_records.read_blocks(scanned[n][0].descriptor, position)
        for offset, length in covered.add(entry.offset, entry.length):
            for start, data in _old(entry, blocks, offset, length):
                if bytes(raw.read(start, len(data))) != data:
                    batch.append((start, data))
                    changed += len(data)
                    waiting += len(data)
                if waiting >= BATCH:
                    raw.overwrite(batch)
                    batch, waiting = [], 0
    raw.overwrite(batch)
    raw.flush(0, raw.size)
    return changed


def _old(entry, blocks, offset, length):
    """(offset, data) of a part of a record, in pieces."""
    for start in range(offset, offset + length, undo_records.PIECE):
        count = min(undo_records.PIECE, offset + length - start)
        if entry.kind == undo_records.ZEROES:
            yield start, bytes(count)
        else:
            yield start, blocks[start - entry.offset : start - entry.offset + count]


def keep_all(path, medium, capacity, words):
    """A job: record the whole Medium before FORMAT UNIT, or that it is more than the journal holds.
    Returns ({}, ()). An error is {'failed': text}."""
    try:
        with medium.raw(undo_files.own_journal(path, capacity, words)) as raw:
            raw.record_all()
        return {}, ()
    except OSError as e:
        return {'failed': '%s: %s' % (path, e.strerror or e)}, ()


__all__ = ('keep_all', 'restore', 'rows')
