"""TABLE: every setting, one row. What the loader accepts, the sample file, the manual page and
--help-settings come from here.

May import config.kinds, config.scsi_kinds and the pure table iscsi.keys. A setting exists here only
if something in targetd obeys it.

A row's `section` says where it is written: 'server' ([server]), 'portal-group' ([portal-group
TAG]), 'target' ([target NAME]) or 'lun' ([[lun N]] inside a target, and, where `shared` is true,
also in the target as the default of its LUNs). `field` is the attribute of the model's class; for a
text key it is the key itself, found in Target.keys.
"""

from collections import namedtuple

from targetd.config import kinds, scsi_kinds
from targetd.iscsi import keys

LIVE = 'live'  # in force at once, for sessions that exist too
NEXT_LOGIN = 'next-login'  # sessions that exist go on as they are
# the sessions concerned are asked to log out and find the change when they log in again
NEEDS_LOGOUT = 'needs-logout'
NEEDS_RESTART = 'needs-restart'  # a reload says so and leaves the old value in force

HEADINGS = {
    'server': '[server]',
    'portal-group': '[portal-group TAG]',
    'target': '[target NAME]',
    'lun': '[[lun N]]',
}

WHEN = {
    LIVE: 'at once',
    NEXT_LOGIN: 'from the next login on',
    NEEDS_LOGOUT: 'after the sessions concerned logged out',
    NEEDS_RESTART: 'after a restart',
}


class Setting(namedtuple('Setting', 'section name kind default live help more example shared')):
    """One row. kind: an object of config.kinds; default: a value of that kind, or None for 'nothing
    written'."""

    __slots__ = ()

    @property
    def field(self):
        """The attribute of the model ('login_timeout'); a text key's own spelling
        ('MaxBurstLength')."""
        return self.name if self.is_text_key else self.name.replace('-', '_')

    @property
    def is_text_key(self):
        """True for the keys of RFC 7143 13, which keep their spelling."""
        return self.name[0].isupper()


def _row(section, name, kind, default, live, help, more='', example='', shared=False):
    return Setting(section, name, kind, default, live, help, more, example, shared)


def _server(name, kind, default, live, help, more='', example=''):
    return _row('server', name, kind, default, live, help, more, example)


def _target(name, kind, default, live, help, more='', example=''):
    return _row('target', name, kind, default, live, help, more, example)


def _lun(name, kind, default, live, help, more='', example='', shared=True):
    return _row('lun', name, kind, default, live, help, more, example, shared)


# fmt: off
SERVER = (
    _server('pid-file', kinds.Path(), '/var/run/targetd.pid', NEEDS_RESTART,
            'File that holds the process id and is locked while targetd runs.'),
    _server('control-socket', kinds.Path(), '/var/run/targetd.sock', NEEDS_RESTART,
            'Socket on which targetdctl reaches targetd; only root and the owner may use it.'),
    _server('state-dir', kinds.Path(), '/var/lib/targetd', NEEDS_RESTART,
            'Directory for what must outlast a restart: persistent reservations, saved mode pages, '
            'journals of atomic writes, which disk was which LUN.'),
    _server('log', kinds.LogPlace(), 'syslog', LIVE,
            'Where messages go: syslog, stderr or an absolute path.',
            'In the foreground (-f) syslog means stderr. SIGUSR1 opens a log file anew after it '
            'was rotated.',
            '/var/log/targetd.log'),
    _server('log-level',
            kinds.Choice('error', 'warning', 'info', 'debug', also={'warn': 'warning'}), 'info',
            LIVE,
            'The least important messages that are still written.',
            'info tells of every login, logout, refusal and reload.'),
    _server('user', kinds.Text(64), 'nobody', NEEDS_RESTART,
            'The user that workers run as when targetd was started by root.',
            'Workers get their disks as open descriptors from the master and need no rights of '
            'their own.'),
    _server('server-id', kinds.Text(64, ascii_only=True), '', NEEDS_RESTART,
            'Word that the identities of LUNs (serial number, NAA) are made from.',
            'Two servers that serve the same disk in turn write the same word here, so that '
            'initiators see one and the same disk. Empty: a UUID that is made once and kept in '
            'state-dir.', 'storage-pair-1'),
    _server('max-sessions', kinds.Number(1, 10000), 64, LIVE,
            'Sessions at once, over all targets; one more is refused with "out of resources".'),
    _server('max-connections-per-address', kinds.Number(1, 10000), 32, LIVE,
            'Connections at once from one address; one more is refused with "out of resources".'),
    _server('failures-before-delay', kinds.Number(0, 1000), 5, LIVE,
            'After so many failed authentications in a row from one address its logins come one at '
            'a time, and each further failure makes them wait longer: 1, 2, 4 up to 30 seconds; 0: '
            'never.',
            'An IPv6 address stands for its /64 net. A success, or ten quiet minutes, ends it. '
            'Others do not notice. Every failure is a line in the log that fail2ban can act on: '
            'see etc/fail2ban.'),
    _server('login-timeout', kinds.Duration(1, 600), 15, NEXT_LOGIN,
            'A connection that has not finished its login in this time is closed.'),
    _server('spare-workers', kinds.Number(0, 64), 2, LIVE,
            'Worker processes kept ready for the next logins.'),
    _server('executor-threads', kinds.Number(1, 128), 32, NEXT_LOGIN,
            'Threads of each session for disk accesses that have to wait.'),
    _server('busy-poll', kinds.Number(0, 1000), 100, NEXT_LOGIN,
            'Microseconds for which a session with few commands on their way waits for the next '
            'without sleeping; 0: none.',
            'Such commands are then answered in half the time. Where that is in vain, or others '
            'need the processor, and on a host with one processor, it is not done.'),
    _server('nop-interval', kinds.Duration(1, 3600, off=True), 15, NEXT_LOGIN,
            'An initiator silent for this long is asked whether it is still there; 0 never asks.'),
    _server('nop-count', kinds.Number(1, 100), 3, NEXT_LOGIN,
            'So many unanswered questions in a row end the connection.'),
    _server('stop-timeout', kinds.Duration(0, 600), 10, LIVE,
            'Time that initiators are given to log out when targetd stops or a target is removed.'),
    _server('chap-algorithms', kinds.KeyWords('MD5', 'SHA1', 'SHA-256', 'SHA3-256'),
            ('SHA3-256', 'SHA-256', 'SHA1', 'MD5'),
            NEXT_LOGIN, 'CHAP algorithms that are accepted, the preferred first.',
            'Windows and the Linux kernel before 5.4 know MD5 only.', 'SHA3-256, SHA-256'),
    _server('incomingdiscoveryuser', kinds.Accounts(), (), NEXT_LOGIN,
            'Accounts of which an initiator must know one to ask for the list of targets. None '
            'written: no CHAP for discovery.',
            example='finder 12-to-16-chars'),
    _server('outgoingdiscoveryuser', kinds.Account(), None, NEXT_LOGIN,
            'Account with which targetd proves itself to a discovering initiator (mutual CHAP).',
            example='storage other-12-to-16'),
    _server('discovery-address', kinds.Several(kinds.Network()), ('ALL',), NEXT_LOGIN,
            'Addresses and nets that may ask for the list of targets.',
            'Whoever may ask is told of those targets only that it may log in to.', '10.0.0.0/8, '
                                                                                    '2001:db8::/32'),
    _server('isns-server', kinds.Several(kinds.Portal(3205, of_others=True)), (), LIVE,
            'iSNS servers that are told of the targets and portals; without a port, 3205. None '
            'written: no iSNS.',
            'Targets that are offline or admit nobody are left out. Who sees which target is then '
            'decided by the discovery domains of that server; who may log in is still decided '
            'here.', '10.0.0.9, '
                                                                             '[2001:db8::9]:3205'),
    _server('isns-entity', kinds.Text(200, ascii_only=True), '', LIVE,
            'Name of this server at the iSNS servers (entity identifier). Empty: the name of this '
            'host.', example='storage1'),
    _server('isns-period', kinds.Duration(10, 86400), 300, LIVE,
            'Time after which an iSNS server that no longer hears of this host forgets it; it '
            'hears three times as often.',
            'An iSNS server may choose another time, and is obeyed.'),
    _server('isns-esi-interval', kinds.Duration(1, 3600, off=True), 0, LIVE,
            'An iSNS server asks this often whether this host is still there (ESI), and forgets a '
            'portal that does not answer; 0: it does not ask.',
            'It must be able to connect to isns-port then.', '1min'),
    _server('isns-port', kinds.Number(0, 65535), 0, LIVE,
            'TCP port at which the iSNS servers, and nobody else, are heard (ESI and SCN); 0: any '
            'that is free.',
            example='3206'),
)
# fmt: on

# fmt: off
PORTAL_GROUP = (
    _row('portal-group', 'portal', kinds.Several(kinds.Portal()), (), LIVE,
         'Addresses and ports at which this group listens; without a port, 3260.',
         'Numeric addresses; 0.0.0.0 and [::] stand for every address of the host. Initiators are '
         'then told the address at which they arrived. Without any [portal-group] section there is '
         'group 1 with 0.0.0.0:3260 and [::]:3260.',
         '0.0.0.0:3260, [::]:3260'),
)
# fmt: on

# fmt: off
TARGET = (
    _target('alias', kinds.Text(255), '', NEXT_LOGIN, 'A name for people, shown by initiators '
                                                      '(TargetAlias).',
            example='ERP data'),
    _target('portal-group', kinds.Several(kinds.Number(1, 65535)), (1,), NEXT_LOGIN,
            'The portal groups through which this target is reached.', example='1, 2'),
    _target('initiator-address', kinds.Several(kinds.Network()), (), LIVE,
            'Addresses and nets that may log in; ALL admits every address.',
            'Where initiator-name is written too, both must match. Where neither is written, '
            'nobody is admitted. Sessions that a change no longer admits are ended.',
            '10.0.5.0/24, 2001:db8:5::/64'),
    _target('initiator-name', kinds.Several(kinds.NamePattern()), (), LIVE,
            'iSCSI names that may log in; * and ? stand for any characters and any one; ALL admits '
            'every name.',
            'Where initiator-address is written too, both must match. A name is only a claim of '
            'the initiator: use CHAP where that is not enough.', 'iqn.1991-05.com.microsoft:*'),
    _target('incominguser', kinds.Accounts(), (), NEXT_LOGIN,
            'Accounts (name and secret) of which an initiator must know one: CHAP. None written: '
            'no CHAP.',
            'Windows wants secrets of 12 to 16 characters. A secret that holds a blank or a comma, '
            'or begins with # or a quote, stands in quotes.', 'erp 12-to-16-chars'),
    _target('incominguser-file', kinds.Listed(kinds.Path()), (), NEXT_LOGIN,
            'Files with further accounts, one on each line (name and secret, as in incominguser).',
            'Keep such a file readable by root only.', '/etc/targetd.d/erp.secrets'),
    _target('outgoinguser', kinds.Account(), None, NEXT_LOGIN,
            'Account with which the target proves itself to the initiator (mutual CHAP).',
            'Its secret must differ from the incoming ones.', 'erp-back other-12-to-16'),
    _target('state', kinds.Choice('ready', 'offline'), 'ready', NEXT_LOGIN,
            'offline: new logins are refused with "service unavailable"; sessions go on.'),
    _target('redirect', kinds.Redirection(), None, NEXT_LOGIN,
            'Send every login elsewhere: temporary or permanent, and the address where the target '
            'is served now.',
            'Discovery shows the target here as before, sessions go on; "targetdctl logout" makes '
            'an initiator move. Such a target needs no LUN. Initiators forget a temporary redirect '
            'and remember a permanent one.',
            'temporary 10.0.5.2:3260'),
    _target('alua', kinds.Choice('auto', 'off', 'implicit', 'explicit', 'both'), 'auto', NEXT_LOGIN,
            'Asymmetric access: whether initiators with several paths are told which portal groups '
            'to prefer.',
            'With implicit (and with auto, where several portal groups are written or alua-state '
            'is) the states are those of alua-state and of "targetdctl alua"; with explicit or '
            'both initiators set them too. Windows and Linux are known to work with off and '
            'implicit.'),
    _target('alua-state', scsi_kinds.GroupStates(), (), LIVE,
            'States of portal groups that are not optimized: nonoptimized (slower), standby, '
            'unavailable, offline, transitioning.',
            'A state that "targetdctl alua" or an initiator has set holds, over restarts too, '
            'until this setting changes.',
            '1 nonoptimized'),
    _target('max-sessions', kinds.Number(0, 10000), 0, NEXT_LOGIN,
            'Sessions of this target at once; 0 is no limit but the server\'s.'),
)
# fmt: on

_SIZE_OF_BLOCK = kinds.Auto(kinds.PowerOfTwo(512, 4096))

# fmt: off
LUN = (
    _lun('backing-store', kinds.StorePath(), '', NEEDS_LOGOUT,
         'What is served: the path of a file or a disk, or serial:NUMBER, wwn:0xNUMBER and the '
         'like to find a disk by.',
         'Also by-id:NAME (by-path:, by-uuid:, by-label:, by-partuuid:, by-partlabel:), model:NAME '
         'and size:SIZE, joined by + where one alone does not tell; part:2 added to them is a '
         'partition. In a target, backing-store = A, B is short for lun 0 and lun 1. Paths like '
         '/dev/sdb can mean another disk after a boot (which targetd then refuses to serve, see '
         '"targetdctl accept"); /dev/disk/by-id, serial: and wwn: do not.',
         '/dev/disk/by-id/ata-WDC_1', shared=False),
    _lun('direct-store', kinds.StorePath(), '', NEEDS_LOGOUT,
         'Like backing-store, but vendor, product, revision and serial number are the disk\'s own.',
         example='serial:WD-WCC4E1', shared=False),
    _lun('type', kinds.Choice('auto', 'file', 'block', 'ram', 'null'), 'auto', NEEDS_LOGOUT,
         'What the store is; auto looks. ram (lost at the end) and null (reads zeroes, drops '
         'writes) are for tests.'),
    _lun('size', kinds.Size(1 << 20, 1 << 60, multiple=512), None, LIVE,
         'Size of a file (created sparse if missing, grown if shorter) or of a ram or null store.',
         'Nothing written: the file\'s or disk\'s own size. A file is never made shorter.', '200G'),
    _lun('thin', kinds.Flag(), False, NEEDS_LOGOUT,
         'Tell initiators that blocks they no longer need can be given back (UNMAP, TRIM).'),
    _lun('thin-threshold', kinds.Number(0, 99), 10, LIVE,
         'Of a thin file: when less than so many percent of its file system are available, '
         'initiators are warned; 0: never.',
         'Initiators may choose another threshold (mode page 1Ch, subpage 02h).'),
    _lun('write-cache', kinds.Flag(), True, LIVE,
         'on: a write is done when the operating system has it, and lasts when the initiator '
         'flushes. off: every write lasts.'),
    _lun('atomic-writes', kinds.Flag(), False, NEEDS_LOGOUT,
         'Offer WRITE ATOMIC, up to 1 MiB: all of it or nothing is there and is read, whoever is '
         'killed or if the power fails.',
         'What the blocks were is kept in state-dir, 1 MiB for each session, until all of the '
         'write is on the disk; after a death it is put back before anybody is served. So '
         'state-dir must outlast a loss of power, and servers that serve one disk in turn need one '
         'state-dir. Every command locks what it reads and writes, which makes it slower; COMPARE '
         'AND WRITE is then atomic against plain writes too. Not for encrypted disks. Needs Linux '
         '3.15.'),
    _lun('readonly', kinds.Flag(), False, NEEDS_LOGOUT, 'Refuse every write.'),
    _lun('removable', kinds.Flag(), False, NEEDS_LOGOUT, 'Tell initiators that the medium can be '
                                                         'ejected.'),
    _lun('block-size', _SIZE_OF_BLOCK, None, NEEDS_LOGOUT,
         'Bytes of a logical block; auto: the disk\'s own, 512 for anything else.',
         'Changing it on a disk with data makes the data unreadable.', '4096'),
    _lun('physical-block-size', kinds.Auto(kinds.PowerOfTwo(512, 1 << 20)), None, NEEDS_LOGOUT,
         'Bytes of a physical block, which initiators align to; auto: the disk\'s own, block-size '
         'for a file.', example='4096'),
    _lun('lowest-aligned-block', kinds.Number(0, 16383), 0, NEEDS_LOGOUT,
         'The first logical block that begins a physical one.'),
    _lun('vendor-id', kinds.Text(8, ascii_only=True), '', NEEDS_LOGOUT,
         'Vendor that INQUIRY shows. Empty: with direct-store the disk\'s own, else TARGETD.',
         example='ACME'),
    _lun('product-id', kinds.Text(16, ascii_only=True), '', NEEDS_LOGOUT,
         'Product that INQUIRY shows. Empty: with direct-store the disk\'s own, else VIRTUAL-DISK.',
         example='ERP-DISK'),
    _lun('product-rev', kinds.Text(4, ascii_only=True), '', NEEDS_LOGOUT,
         'Revision that INQUIRY shows. Empty: with direct-store the disk\'s own, else targetd\'s.',
         example='1.0'),
    _lun('scsi-sn', kinds.Text(64, ascii_only=True), '', NEEDS_LOGOUT,
         'Serial number. Empty: with direct-store the disk\'s own, else made from server-id and '
         'the path or disk.',
         example='ERP0001', shared=False),
    _lun('naa', kinds.Naa(), '', NEEDS_LOGOUT,
         'NAA identifier, by which multipath software knows the disk. Empty: made like the serial '
         'number.',
         example='60014051234567890abcdef012345678', shared=False),
    _lun('eui', kinds.Hex(16, 24, 32), '', NEEDS_LOGOUT, 'EUI-64 identifier. Empty: none is shown.',
         example='0014051234567890', shared=False),
    _lun('rotation-rate', kinds.Auto(kinds.Number(0, 65534)), None, NEEDS_LOGOUT,
         'Revolutions per minute; 1: does not rotate (SSD), 0: not said, auto: the disk\'s own, '
         'for a file 0.', example='1'),
    _lun('direct-io', kinds.Flag(), False, NEEDS_LOGOUT, 'Read and write past the operating '
                                                         'system\'s cache (O_DIRECT).'),
    _lun('encryption-key-file', kinds.Path(), '', NEEDS_LOGOUT,
         'Encrypt what is on the medium (AES-256-XTS) with the key in this file. KEEP A COPY OF '
         'THE FILE: without it nothing can be read.',
         'Each disk has a key of its own. Where the disk is empty, the file is made at the first '
         'use; "targetd --make-key FILE" makes one at any time. Needs the Python package '
         'cryptography. See ENCRYPTION in targetd.conf(5).',
         '/etc/targetd.d/erp.key', shared=False),
    _lun('sense-format',
         kinds.Choice('fixed', 'descriptor', also={'0': 'fixed', '1': 'descriptor'}), 'fixed', LIVE,
         'Format of sense data before an initiator chooses (D_SENSE). Windows is known to work '
         'with fixed.'),
    _lun('optimal-transfer-length', kinds.Auto(kinds.Size(512, 1 << 30)), None, NEEDS_LOGOUT,
         'Transfer length that initiators are told is best.', example='1M'),
    _lun('optimal-transfer-granularity', kinds.Auto(kinds.Size(512, 1 << 30)), None, NEEDS_LOGOUT,
         'Lengths that are multiples of this are told to be best, like a RAID\'s stripe.',
         example='64K'),
    _lun('management-url', kinds.Text(240, ascii_only=True), '', NEEDS_LOGOUT,
         'Address at which this storage is administered, shown to initiators (VPD page 85h). '
         'Empty: none.',
         example='https://storage1.example.com/'),
    _lun('mode-page', scsi_kinds.ModePages(), (), NEEDS_LOGOUT,
         'Mode pages as they are to be by default, each as page:subpage:length:byte:byte:...; for '
         'initiators that want to see certain values.',
         'The bytes are those behind the page\'s length, as in tgt. What initiators may change is '
         'what they may change anyway.',
         '2:0:14:0x80:0x80:0:0xa:0:0:0:0:0:0:0:0:0:0'),
    _lun('third-party-copy', kinds.Flag(), True, NEEDS_LOGOUT,
         'Copy for initiators that ask for it (EXTENDED COPY; tokens, that is ODX): the data does '
         'not travel twice.',
         'no: the commands are refused, the disk does not say that it has them, and other units do '
         'not copy from or to it.'),
    _lun('allow-in-use', kinds.Flag(), False, NEEDS_LOGOUT,
         'Serve a disk although this host seems to use it (mounted, part of a RAID or volume '
         'group) or counts on it (fstab, mdadm.conf, notes of LVM and ZFS).',
         'Two users of one disk that do not know of each other destroy its data.'),
    _lun('filter', kinds.Filters(), (), NEEDS_LOGOUT,
         'Tests only: delay or fail accesses, refuse writes, or write accesses to the log.',
         'Applied from the left. delay 10ms; delay read=10ms write=5ms; error write offset=1M..2M '
         'errno=EIO; error flush count=1; error read every=100; readonly; tear piece=4K '
         'pause=10ms; trace; trace to=PATH.',
         'delay read=10ms, trace'),
)
# fmt: on


_BYTES = ('MaxRecvDataSegmentLength', 'MaxBurstLength', 'FirstBurstLength')


def _kind_of(key):
    if key.kind == keys.LIST:
        return kinds.KeyWords(*key.values)
    if key.kind == keys.BOOLEAN:
        return kinds.Flag('Yes', 'No')
    kind = kinds.ByteCount if key.name in _BYTES else kinds.Number
    return kind(*key.settable)


def _text_keys():
    rows = [keys.KEYS[name] for name in keys.SETTABLE]
    return tuple(
        _target(
            row.name, _kind_of(row), row.ours, NEXT_LOGIN, row.help, 'RFC 7143 %s.' % row.clause
        )
        for row in rows
    )


TEXT_KEYS = _text_keys()

TABLE = SERVER + PORTAL_GROUP + TARGET + TEXT_KEYS + LUN


def of(section):
    """The rows that may be written in this kind of section, in table order; for 'target' without
    the shared ones of LUNs."""
    return tuple(row for row in TABLE if row.section == section)
