"""Lists of LUNs that differ from initiator to initiator, as one list of LUNs and lun-map.

Pure; may import migration.imported.
"""

from collections import OrderedDict, namedtuple

#: What an initiator sees under a number. store: the key of the store; read_only: it may only read.
Seen = namedtuple('Seen', 'store read_only')


def write_maps(imported, target, maps):
    """Write lun-map, unless all initiators see the same. maps: {whom a map is for, as lun-map has it:
    {number: Seen}}, in the order of the file. Returns {store: (LUN of the target, True if all may only read
    it)}."""
    lists = [_without_second_numbers(imported, target, who, luns) for who, luns in maps.items()]
    numbers = _numbers(lists)
    protected = {
        store: all(
            seen.read_only for luns in lists for seen in luns.values() if seen.store == store
        )
        for store in numbers
    }
    if any(luns != lists[0] for luns in lists):
        for who, luns in zip(maps, lists):
            entries = [
                _entry(number, numbers[seen.store], seen.read_only and not protected[seen.store])
                for number, seen in luns.items()
            ]
            target.add('lun-map', ' '.join([who] + (entries or ['none'])))
    return OrderedDict((store, (numbers[store], protected[store])) for store in numbers)


def _without_second_numbers(imported, target, who, luns):
    """{number: Seen} in the order of the numbers, and each store once."""
    kept, stores = OrderedDict(), {}
    for number, seen in sorted(luns.items()):
        if seen.store in stores:
            imported.left_out(
                target.place,
                'target %s shows LUN %d to %s as LUN %d too'
                % (target.name, stores[seen.store], who, number),
                'an initiator would take it for two disks',
            )
            continue
        stores[seen.store] = number
        kept[number] = seen
    return kept


def _numbers(lists):
    """{store: LUN of the target}: the number under which it is seen first, if no other store has it."""
    numbers, later = OrderedDict(), []
    for luns in lists:
        for number, seen in luns.items():
            if seen.store not in numbers and number not in numbers.values():
                numbers[seen.store] = number
            elif seen.store not in numbers:
                later.append(seen.store)
    for store in later:
        if store not in numbers:
            taken = set(numbers.values())
            numbers[store] = next(n for n in range(len(taken) + 1) if n not in taken)
    return numbers


def _entry(number, lun, is_read_only):
    text = str(lun) if number == lun else '%d=%d' % (number, lun)
    return text + ':read-only' if is_read_only else text
