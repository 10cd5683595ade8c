"""Checks of the fields of a session claim, which a worker sends (ARCHITECTURE D20)."""

import re

from targetd.master.processes.worker_messages import BadMessage

ISID = re.compile('[0-9a-f]{12}\\Z')
# characters of an iSCSI name (RFC 7143 4.2.7.1), also of a text key's value; of an alias
LONGEST_NAME, LONGEST_ALIAS = 255, 1024
MAXIMUM_KEYS = 64


def check_claim_fields(message):
    """Raise BadMessage if a session claim is malformed. A worker is not trusted."""
    session = message['session']
    name, alias, isid = (session.get(key) for key in ('initiator_name', 'initiator_alias', 'isid'))
    if not isinstance(name, str) or not 0 < len(name) <= LONGEST_NAME:
        raise BadMessage('a session claim without initiator name')
    if not isinstance(alias, (str, type(None))) or len(alias or '') > LONGEST_ALIAS:
        raise BadMessage('a session claim with a malformed alias')
    if not isinstance(isid, str) or not ISID.match(isid):
        raise BadMessage('a session claim without ISID')
    for key in ('cid', 'group', 'tsih'):
        number = 0 if key == 'tsih' and session.get(key) is None else session.get(key)
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= 0xFFFF:
            raise BadMessage('a session claim without %s' % key)
    for key in ('target_name', 'account'):
        text = session.get(key)
        if not isinstance(text, (str, type(None))) or len(text or '') > LONGEST_NAME:
            raise BadMessage('a session claim with a malformed %s' % key)
    keys = session.get('keys') or {}
    if not isinstance(keys, dict) or len(keys) > MAXIMUM_KEYS:
        raise BadMessage('a session claim without text keys')
    for value in keys.values():
        if isinstance(value, int) or value.__class__ is str and len(value) <= LONGEST_NAME:
            continue
        words = value if isinstance(value, list) else [value]
        if len(words) > MAXIMUM_KEYS or any(
            not isinstance(word, (str, int)) or len(str(word)) > LONGEST_NAME for word in words
        ):
            raise BadMessage('a session claim with the malformed text key %.100r' % (value,))
