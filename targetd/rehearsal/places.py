"""Where the rehearsal logs in, and with which accounts: from the running server, or from the command line.

May import base, config and rehearsal.
"""

import socket
from collections import namedtuple

from targetd.config import loader, lun_maps
from targetd.errors import TargetdError
from targetd.rehearsal.rehearse import MICROSOFT, Request, parse_area

PORT = 3260

#: What the user has typed; see admin.commands.
Asked = namedtuple('Asked', 'target name portal user secret_file scratch reservations')


def request(asked, ask, message, advice):
    """The Request. ask(command): rows of the running server's reply, or None if no server is asked; message,
    advice: of admin.windows. Raises TargetdError."""
    name = asked.name or MICROSOFT + socket.gethostname().partition('.')[0].lower()
    area = parse_area(asked.scratch) if asked.scratch else None
    account = _typed_account(asked)
    if ask is None:
        rest = [_portal(asked.portal)], None, account, None, {}, {}
    else:
        rest = _of_server(asked, ask, account, name)
    return Request(asked.target, name, *rest, area, asked.reservations, message, advice)


def _typed_account(asked):
    if bool(asked.user) != bool(asked.secret_file):
        raise TargetdError('--user and --secret-file belong together')
    if not asked.user:
        return None
    try:
        with open(asked.secret_file, encoding='utf-8') as f:
            return asked.user, f.readline().rstrip('\n')
    except (OSError, ValueError) as e:
        raise TargetdError('%s cannot be read: %s' % (asked.secret_file, e))


def _portal(text):
    address, colon, port = text.rpartition(':')
    if not colon or (':' in address and not text.startswith('[')):
        address, port = text, str(PORT)
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise TargetdError('--portal %s is not ADDRESS or ADDRESS:PORT' % text)
    return address.strip('[]'), int(port)


def _of_server(asked, ask, account, name):
    """(portals, account of the discovery, account, mutual account, others, units) of the running server."""
    path = {row['name']: row['value'] for row in ask('status')}['configuration']
    configuration = loader.load(path)
    target = configuration.targets.get(asked.target)
    if target is None:
        raise TargetdError(
            'there is no target %s; it is one of: %s'
            % (asked.target, ', '.join(configuration.targets) or 'none')
        )
    portals = [
        (reachable(row['address']), row['port'])
        for row in ask('show-portals')
        if row['state'] == 'open' and row['group'] in target.portal_groups
    ]
    if not portals:
        raise TargetdError(
            'no portal of target %s is open; see "targetdctl show portals"' % target.name
        )
    if account is None and target.accounts:
        account = target.accounts[0]
    server = configuration.server
    discovery = server.incomingdiscoveryuser[0] if server.incomingdiscoveryuser else None
    rows = ask('show-units')
    # a connection of this host to an address of its own comes from that address
    lun_map = lun_maps.choose(target, name, portals[0][0], [account[0]] if account else [])
    units = _shown(lun_map, [row for row in rows if row['target_name'] == asked.target])
    mutual = target.outgoing if account else None
    return portals, discovery, account, mutual, _others(asked, rows), units


def _shown(lun_map, rows):
    """{LUN as the initiator of this map addresses it: row of `show units`}; without a map its login fails."""
    shown = [(lun_map.shown(row['lun']) if lun_map else None, row) for row in rows]
    return {each.number: row for each, row in shown if each is not None}


def reachable(address):
    """An address at which this host reaches itself if it listens there."""
    return {'0.0.0.0': '127.0.0.1', '::': '::1'}.get(address, address)


def _others(asked, rows):
    """{serial number or naa: 'TARGET/LUN'} of the disks of other targets."""
    found = {}
    for row in rows:
        if row['target_name'] == asked.target:
            continue
        naa = row.get('naa')
        for value in (
            row.get('serial') or '',
            (naa[0] if isinstance(naa, list) and naa else naa) or '',
        ):
            if value:
                found[str(value).replace('0x', '')] = '%s/%d' % (row['target_name'], row['lun'])
    return found
