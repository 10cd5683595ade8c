"""The designators by which a logical unit is identified in VPD page 83h (SPC-4 7.7.3), and the name
that Linux makes of them. Pure.
"""

from typing import Any, Callable, Dict, List, Optional, Tuple

from targetd.scsi.spc import ascii_field

BINARY, ASCII, UTF8 = 1, 2, 3  # CODE SET
# DESIGNATOR TYPE
VENDOR_SPECIFIC, T10_VENDOR, EUI_64, NAA, RELATIVE_PORT, PORT_GROUP, UNIT_GROUP, SCSI_NAME = (
    0,
    1,
    2,
    3,
    4,
    5,
    6,
    8,
)
#: The word of a code set in the configuration and in the facts `t10` and `vendor_specific`.
CODE_SETS = {'binary': BINARY, 'ascii': ASCII, 'utf-8': UTF8}
#: The value of the settings naa and t10, and of the fact t10, for a unit without such a designator.
NONE = 'none'

#: CODE SET, DESIGNATOR TYPE, content
Designator = Tuple[int, int, bytes]


def name_string(name: str) -> bytes:
    """UTF-8, null-terminated and padded with nulls to a multiple of 4, at most 252 bytes (SPC-4)."""
    content = name.encode('utf-8')[:251] + b'\0'
    return content + bytes(-len(content) % 4)


def _coded(kind: int, text: str) -> Designator:
    """The designator of a fact 'code set:hex digits'."""
    code_set, _, digits = text.partition(':')
    return CODE_SETS[code_set], kind, bytes.fromhex(digits)


def _naa(facts: Any) -> List[Designator]:
    return [(BINARY, NAA, bytes.fromhex(digits)) for digits in facts.naa.split()]


def _eui(facts: Any) -> List[Designator]:
    return [(BINARY, EUI_64, bytes.fromhex(facts.eui))] if facts.eui else []


def _t10(facts: Any) -> List[Designator]:
    if facts.t10:
        return [] if facts.t10 == NONE else [_coded(T10_VENDOR, facts.t10)]
    vendor, product = ascii_field(facts.vendor, 8), ascii_field(facts.product, 16)
    serial = ascii_field(facts.serial, len(facts.serial))
    return [(ASCII, T10_VENDOR, vendor + product + serial)]


def _scsi_name(facts: Any) -> List[Designator]:
    return [(UTF8, SCSI_NAME, name_string(facts.scsi_name))] if facts.scsi_name else []


def _vendor_specific(facts: Any) -> List[Designator]:
    return [_coded(VENDOR_SPECIFIC, facts.vendor_specific)] if facts.vendor_specific else []


#: {word of the setting designator-order: function that returns the designators of that kind}, in
#: the order in which they are sent if the setting is not written.
KINDS: Dict[str, Callable[[Any], List[Designator]]] = {
    'naa': _naa,
    'eui': _eui,
    't10': _t10,
    'scsi-name': _scsi_name,
    'vendor-specific': _vendor_specific,
}
ORDER = ('naa', 'eui', 't10', 'scsi-name', 'vendor-specific')


def unit_designators(facts: Any) -> List[Designator]:
    """The designators of the unit with these facts, in the order in which page 83h has them."""
    first = facts.designator_order.split()
    order = first + [word for word in ORDER if word not in first]
    return [designator for word in order for designator in KINDS[word](facts)]


def serial_number(facts: Any) -> bytes:
    """The serial number of page 80h (SPC-4): spaces if the unit has none."""
    text = ascii_field(facts.serial, len(facts.serial) or 4)
    return text + bytes(facts.serial_nuls)


# -- the name that Linux uses ----------------------------------------------------------------------

#: The designators that udev's scsi_id looks for, the best one first: (type, NAA field or None). It
#: takes no designator whose code set is UTF-8.
_SEARCHED: Tuple[Tuple[int, Optional[int]], ...] = (
    (NAA, 6),
    (NAA, 5),
    (NAA, None),
    (EUI_64, None),
    (T10_VENDOR, None),
    (VENDOR_SPECIFIC, None),
)


def linux_name(facts: Any) -> str:
    """The name by which udev (ID_SERIAL, /dev/disk/by-id) and multipath know the unit."""
    found = unit_designators(facts)
    for kind, naa in _SEARCHED:
        for wanted in (BINARY, ASCII):
            for code_set, its_kind, content in found:
                if (code_set, its_kind) != (wanted, kind):
                    continue
                if naa is None or content[0] >> 4 == naa:
                    return _without_blanks(_linux_text(facts, code_set, kind, content))
    return _without_blanks('S' + _vendor_product(facts) + facts.serial)


def _linux_text(facts: Any, code_set: int, kind: int, content: bytes) -> str:
    text = content.hex() if code_set == BINARY else content.split(b'\0')[0].decode('latin-1')
    return '%d%s%s' % (kind, _vendor_product(facts) if kind == VENDOR_SPECIFIC else '', text)


def _vendor_product(facts: Any) -> str:
    return (ascii_field(facts.vendor, 8) + ascii_field(facts.product, 16)).decode('ascii')


def _without_blanks(text: str) -> str:
    """As udev writes it: no blanks at the end, and _ for each row of blanks."""
    return '_'.join(text.split())
