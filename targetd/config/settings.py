"""TABLE: every setting, one row each. The loader, the sample file, the manual page and
--help-settings are derived from it.

May import the kinds of value, config.identities and the pure table iscsi.keys. A setting exists only if
targetd reads it: tests/unit/config/test_settings_are_read.py finds the readers.

A row's `section` is the section that contains it: 'server' ([server]), 'portal-group'
([portal-group TAG]), 'target' ([target NAME]) or 'lun' ([[lun N]] inside a target, and, if `shared`
is true, also the target itself, as the default of its LUNs). `field` is the attribute of the
model's class; for a text key it is the key of Target.keys.
"""

from collections import namedtuple

from targetd.config import (
    identities,
    kinds,
    map_kinds,
    network_kinds,
    place_kinds,
    schedule_kinds,
    scsi_kinds,
)
from targetd.iscsi import keys

LIVE = 'live'  # takes effect immediately, for existing sessions too
NEXT_LOGIN = 'next-login'  # does not affect existing sessions
# the change waits until the sessions of the target have ended (reload --now: until they are asked to)
NEEDS_LOGOUT = 'needs-logout'
NEEDS_RESTART = 'needs-restart'  # a reload reports it and keeps the old value

HEADINGS = {
    'server': '[server]',
    'portal-group': '[portal-group TAG]',
    'target': '[target NAME]',
    'lun': '[[lun N]]',
}

WHEN = {
    LIVE: 'immediately',
    NEXT_LOGIN: 'at the next login',
    NEEDS_LOGOUT: 'after the affected sessions have logged out',
    NEEDS_RESTART: 'after a restart',
}


class Setting(namedtuple('Setting', 'section name kind default live help more example shared')):
    """One row. kind: an object of config.kinds; default: a value of that kind, or None if the
    setting has no default."""

    __slots__ = ()

    @property
    def field(self):
        """The attribute of the model ('login_timeout'), or the text key itself
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
            'File that contains the process id; it is locked while targetd runs.'),
    _server('control-socket', kinds.Path(), '/var/run/targetd.sock', NEEDS_RESTART,
            'Socket over which targetdctl controls targetd; only root, its owner and the members of '
            'control-group may use it.'),
    _server('control-group', kinds.Text(64), '', NEEDS_RESTART,
            'Group whose members may use the control socket too. Empty: none.',
            'For a monitoring user: "targetdctl show", status and why work without root.', 'targetd'),
    _server('control-group-access', kinds.Choice('read-only', 'full'), 'read-only', LIVE,
            'What the members of control-group may do: only commands that change nothing, or all.',
            'full is as much as root: they can serve any disk of this host if they may change the '
            'configuration, and they can end every session.'),
    _server('state-dir', kinds.Path(), '/var/lib/targetd', NEEDS_RESTART,
            'Directory for state that persists across restarts: persistent reservations, saved '
            'mode pages, journals of atomic writes, the disk that each LUN had.'),
    _server('log', kinds.LogPlace(), 'syslog', LIVE,
            'Destination of log messages: syslog, stderr or an absolute path.',
            'In the foreground (-f) syslog means stderr. SIGUSR1 reopens a log file after it was '
            'rotated. The server never waits for its log: lines that the destination does not take '
            'in time, and too many lines of one kind from one address, are counted instead '
            '("412 messages suppressed").',
            '/var/log/targetd.log'),
    _server('log-level',
            kinds.Choice('error', 'warning', 'info', 'debug', also={'warn': 'warning'}), 'info',
            LIVE,
            'The least severe level that is logged.',
            'info logs every login, logout, refusal and reload.'),
    _server('capture-on-error', kinds.Path(), '', NEXT_LOGIN,
            'Directory for captures of the last PDUs of a session before an error, a task management '
            'request or a broken connection. Empty: none.',
            'Files for Wireshark, with 64 bytes of the data of each PDU; the newest 50 are kept. Each '
            'command of a session costs more processor time while it is recorded.',
            '/var/lib/targetd/captures'),
    _server('metrics', kinds.Listed(network_kinds.Portal(port=9860)), (), LIVE,
            'Address and port at which metrics for Prometheus are served, at /metrics. Empty: none.',
            'The metrics name targets and portals, and are for everyone who can connect; write an address '
            'of a network that you trust. An unprivileged process answers; the server does not wait for '
            'it.', '127.0.0.1:9860'),
    _server('metrics-file', kinds.Path(), '', LIVE,
            'File with the metrics, rewritten every 5 seconds as a whole, for the textfile collector of '
            'node_exporter. Empty: none.', '',
            '/var/lib/prometheus/node-exporter/targetd.prom'),
    _server('status-file', kinds.Path(), '', LIVE,
            'File with the state in lines "name: value", rewritten every 5 seconds as a whole. Empty: '
            'none.', 'It ends with the severity (OK, WARNING, CRITICAL) and a line for each problem.',
            '/run/targetd.status'),
    _server('on-event', kinds.Text(1000), '', LIVE,
            'Command that is run, as the user of the server, for each event. Empty: none.',
            'Without a shell. TARGETD_EVENT is login, refusal, disk_error (the LUN is degraded), health, '
            'failed, space_low, worker_died or access (the state of a portal group); further variables '
            'TARGETD_… have the details. At most 4 commands run at once, for at most 30 seconds; 64 events '
            'wait, more are dropped.', '/usr/local/sbin/targetd-event'),
    _server('user', kinds.Text(64), 'targetd', NEEDS_RESTART,
            'User that the worker processes run as if targetd was started by root. If the host has no '
            'user targetd, the default is nobody.',
            'The master opens the disks and passes the descriptors to the worker processes, which '
            'need no other rights.'),
    _server('sandbox', kinds.Choice('auto', 'required', 'off'), 'auto', NEEDS_RESTART,
            'Whether the kernel confines the worker processes.',
            'A confined worker can make only the system calls that it needs: it cannot open files, '
            'connect, start programs, or signal or trace other processes (seccomp, no new '
            'privileges). auto: confined as far as this kernel can, and a warning if it cannot. '
            'required: targetd does not start if it cannot.'),
    _server('portal-required', kinds.Flag(), False, LIVE,
            'Do not start, and refuse a reload, while this host lacks the address of a portal.',
            'no: the other portals are served, and the portal is opened as soon as the address exists '
            '(DHCP, a VPN, the address of a cluster).'),
    _server('server-id', kinds.Text(64, ascii_only=True), '', NEEDS_RESTART,
            'Word from which the identities of LUNs (serial number, NAA) are derived.',
            'If two servers serve the same disk in turn, write the same word on both, so that '
            'initiators recognize the disk. Empty: a UUID that is created once and kept in '
            'state-dir.', 'storage-pair-1'),
    _server('max-sessions', kinds.Number(1, 10000), 64, LIVE,
            'Maximum number of sessions of all targets; further logins are refused with "out of '
            'resources".'),
    _server('max-connections-per-address', kinds.Number(1, 10000), 32, LIVE,
            'Maximum number of connections from one address; further logins are refused with "out '
            'of resources".'),
    _server('failures-before-delay', kinds.Number(0, 1000), 5, LIVE,
            'After this many consecutive failed authentications of an initiator, the answer to '
            'each further failure is delayed, from 1 up to 10 seconds; 0: no delay.',
            'Failures are counted for address, initiator name and target; if very many names or '
            'targets of an address fail, for the address; if very many addresses of an IPv6 /64 '
            'net fail, for the net. A success, or ten minutes without a failure, resets the count. '
            'Logins that succeed are not delayed. Every failure is logged in a line that fail2ban '
            'can match: see etc/fail2ban.'),
    _server('login-timeout', kinds.Duration(1, 600), 15, NEXT_LOGIN,
            'A connection that has not completed its login within this time is closed.'),
    _server('spare-workers', kinds.Number(0, 64), 2, LIVE,
            'Number of worker processes that are kept ready for the next logins.'),
    _server('executor-threads', kinds.Number(1, 128), 32, NEXT_LOGIN,
            'Number of threads for disk accesses that block, for each LUN of a session.',
            'Threads are started when they are needed. A disk that hangs uses only the threads of '
            'its LUN; the other LUNs of the session are not delayed.'),
    _server('busy-poll', kinds.Number(0, 1000), 100, NEXT_LOGIN,
            'Microseconds for which a session with few commands in flight polls for the next '
            'command instead of sleeping; 0: no polling.',
            'Polling halves the latency of such commands. It stops when it does not help or when '
            'other processes need the CPU; it is disabled on single-CPU hosts.'),
    _server('nop-interval', kinds.Duration(1, 3600, off=True), 15, NEXT_LOGIN,
            'An initiator that has sent nothing for this long is sent a NOP-In that it must '
            'answer; 0: never.'),
    _server('nop-count', kinds.Number(1, 100), 3, NEXT_LOGIN,
            'A connection is closed after this many consecutive unanswered NOP-Ins.',
            'While data that was sent before has not been acknowledged (slow lines), no NOP-In is sent; '
            'a connection on which nothing is acknowledged for 60 seconds is closed.'),
    _server('stop-timeout', kinds.Duration(0, 600), 10, LIVE,
            'Time that initiators have to log out when targetd stops, a target is removed, or a reload '
            'is done with --now.'),
    _server('media-check-interval', kinds.Duration(1, 3600, off=True), 10, LIVE,
            'Time between two checks whether the disks and files that are served have grown, have '
            'shrunk, or have been replaced or deleted. 0: only at a reload.'),
    _server('chap-algorithms', kinds.KeyWords('MD5', 'SHA1', 'SHA-256', 'SHA3-256'),
            ('SHA3-256', 'SHA-256', 'SHA1', 'MD5'),
            NEXT_LOGIN, 'Accepted CHAP algorithms, in any order.',
            'The first algorithm of the initiator\'s list that is accepted here is used (RFC 7143 '
            '6.2.1). Windows, and the Linux kernel before 5.4, support MD5 only.', 'SHA3-256, SHA-256'),
    _server('incomingdiscoveryuser', kinds.Accounts(), (), NEXT_LOGIN,
            'Accounts for discovery: an initiator must authenticate with one of them to request '
            'the list of targets. If none is written, discovery requires no CHAP.',
            example='finder 12-to-16-chars'),
    _server('outgoingdiscoveryuser', kinds.Account(), None, NEXT_LOGIN,
            'Account with which targetd authenticates itself to an initiator in discovery (mutual '
            'CHAP).',
            example='storage other-12-to-16'),
    _server('discovery-address', kinds.Several(network_kinds.Origin()), ('ALL',), NEXT_LOGIN,
            'Addresses, networks, host names (dns:) and MAC addresses (mac:) that may request the list of '
            'targets.',
            'The list contains only the targets that the initiator may log in to. Host names and MAC '
            'addresses: see initiator-address.', '10.0.0.0/8, 2001:db8::/32'),
    _server('isns-server', kinds.Several(network_kinds.Portal(3205, of_others=True)), (), LIVE,
            'iSNS servers at which the targets and portals are registered; the default port is '
            '3205. If none is written, iSNS is not used.',
            'Targets that are offline or admit no initiator are not registered. The discovery '
            'domains of the iSNS server determine which initiator sees which target; the settings '
            'of the target still determine who may log in.',
            '10.0.0.9, [2001:db8::9]:3205'),
    _server('isns-entity', kinds.Text(200, ascii_only=True), '', LIVE,
            'Entity identifier of this host at the iSNS servers. Empty: the host name.',
            example='storage1'),
    _server('isns-period', kinds.Duration(10, 86400), 300, LIVE,
            'Registration period: an iSNS server removes this host if it receives no message for '
            'this time; targetd sends one three times per period.',
            'If an iSNS server chooses another period, that one is used.'),
    _server('isns-esi-interval', kinds.Duration(1, 3600, off=True), 0, LIVE,
            'Interval at which an iSNS server checks that this host is reachable (ESI); it removes '
            'a portal that does not respond. 0: no checks.',
            'The iSNS server must be able to connect to isns-port.', '1min'),
    _server('isns-port', kinds.Number(0, 65535), 0, LIVE,
            'TCP port on which iSNS servers may connect (ESI and SCN); 0: any free port. Other '
            'hosts are refused.',
            example='3206'),
)
# fmt: on

# fmt: off
PORTAL_GROUP = (
    _row('portal-group', 'portal', kinds.Several(network_kinds.Portal()), (), LIVE,
         'Addresses and ports on which this group listens; the default port is 3260.',
         'Addresses are numeric; 0.0.0.0 and [::] mean every address of the host, and an initiator '
         'is then shown the address to which it connected. Without any [portal-group] section '
         'there is group 1 with 0.0.0.0:3260 and [::]:3260.',
         '0.0.0.0:3260, [::]:3260'),
    _row('portal-group', 'interface', network_kinds.Interface(), '', LIVE,
         'Network interface through which the portals of this group are reached; empty: any.',
         'Without it, an address that belongs to a VPN can be reached through every interface of the '
         'host. If the interface does not exist or is made anew, targetd waits for it and listens '
         'again.', 'wg0'),
    _row('portal-group', 'advertise', network_kinds.Advertised(), None, NEXT_LOGIN,
         'Address and port that discovery reports for the portals of this group, or none.',
         'For a port that a router or a tunnel forwards: initiators cannot reach the address at '
         'which their connection arrives. none: no address is reported, and an initiator uses the '
         'one at which it asked (RFC 7143 appendix C; open-iscsi does, libiscsi does not).',
         '203.0.113.7:3260'),
    _row('portal-group', 'proxy-protocol-from', kinds.Several(network_kinds.ProxyNetwork()), (), LIVE,
         'Proxies (stunnel, haproxy) whose connections to this group begin with a PROXY header.',
         'Access rules, limits, the log and "targetdctl why" then see the address of the client '
         'instead of that of the proxy (PROXY protocol, versions 1 and 2). A connection of these '
         'addresses without the header is closed, and so is one of any other address with it.',
         '127.0.0.1'),
    _row('portal-group', 'ipsec', kinds.Choice('no', 'required'), 'no', LIVE,
         'Whether the portals of this group take only packets that arrived through IPsec.',
         'required: the kernel drops plain packets, whatever the policy of the host and its firewall '
         'are. Keys, and the protection of what targetd sends, are those of the host (strongSwan). '
         'Needs root and the kernel module xfrm_user; targetd does not start if the kernel refuses.'),
    _row('portal-group', 'congestion-control', network_kinds.CongestionControl(), '', LIVE,
         'TCP congestion control of what the portals of this group send; empty: that of the host.',
         'bbr is much faster than cubic on lines that are long and lose packets. It needs the kernel '
         'module tcp_bbr. The initiator decides for what it sends.', 'bbr'),
    _row('portal-group', 'mss', kinds.Auto(kinds.Number(88, 32767)), None, LIVE,
         'Maximum number of bytes in a TCP segment, in both directions; auto: that of the interface.',
         'For a line that loses full packets: logins work, and then nothing arrives. 40 (IPv6: 60) '
         'less than the MTU of the narrowest part, and 12 less again for TCP timestamps.', '1288'),
    _row('portal-group', 'dscp', network_kinds.Dscp(), 0, LIVE,
         'Differentiated services code point of what the portals of this group send.',
         example='AF21'),
)
# fmt: on

_LATENCY = kinds.Duration(0.001, 60, off=True)
_IOPS = scsi_kinds.Rate(kinds.Number(1, 10000000))
_BANDWIDTH = scsi_kinds.Rate(kinds.Size(64 << 10, 1 << 40))
_LIMIT_OF_ALL = 'LUNs and initiators may have limits of their own; every limit applies.'

# fmt: off
TARGET = (
    _target('alias', kinds.Text(255), '', NEXT_LOGIN, 'Descriptive name that initiators display '
                                                      '(TargetAlias).',
            example='ERP data'),
    _target('portal-group', kinds.Several(kinds.Number(1, 65535)), (1,), NEXT_LOGIN,
            'Portal groups through which initiators reach this target.', example='1, 2'),
    _target('initiator-address', kinds.Several(network_kinds.Origin()), (), LIVE,
            'Addresses, networks, host names (dns:) and MAC addresses (mac:) that may log in; ALL admits '
            'every address.',
            'If initiator-name is also written, both must match. If neither is written, no '
            'initiator is admitted. Sessions that a changed configuration no longer admits are '
            'ended. dns:host1.example.com admits the IPv4 and IPv6 addresses of this name, which the '
            'resolver of this host is asked for at a login if the last answer is older than a minute. '
            'If it does not answer, its last answer counts for an hour, and without one the name admits '
            'nothing; a name that does not exist any more admits nothing at once. Addresses are never '
            'looked up in reverse. mac:00:11:22:aa:bb:cc admits '
            'the host that has this address in the neighbour table of the kernel ("ip neigh"), which '
            'contains hosts of the local segment only. Sessions go on when the addresses of a name or '
            'the neighbours change. A MAC address is no proof of identity, since every host of the '
            'segment can claim it, and a name is as good as DNS: use CHAP if that is not enough.',
            '10.0.5.0/24, 2001:db8:5::/64, dns:host1.example.com'),
    _target('initiator-name', kinds.Several(network_kinds.NamePattern()), (), LIVE,
            'iSCSI names that may log in; * matches any characters, ? matches one; ALL admits '
            'every name.',
            'If initiator-address is also written, both must match. An initiator can claim any '
            'name: use CHAP if that is not secure enough.', 'iqn.1991-05.com.microsoft:*'),
    _target('incominguser', kinds.Accounts(), (), NEXT_LOGIN,
            'Accounts (name and secret) for CHAP: an initiator must authenticate with one of them. '
            'If none is written, no CHAP is required.',
            'Windows requires secrets of 12 to 16 characters. Quote a secret that contains a blank '
            'or a comma, or begins with # or a quote.', 'erp 12-to-16-chars'),
    _target('incominguser-file', kinds.Listed(kinds.Path()), (), NEXT_LOGIN,
            'Files with further accounts, one per line (name and secret, as in incominguser).',
            'Make the file readable by root only.', '/etc/targetd.d/erp.secrets'),
    _target('former-incominguser', kinds.FormerAccounts(), (), NEXT_LOGIN,
            'Former secrets of accounts, each with the date until which initiators may still use it '
            'besides that of incominguser.',
            '"targetdctl account rotate" writes it. At the end of the time sessions continue; only '
            'new logins need the new secret.', 'erp old-12-to-16 2026-12-31T18:00'),
    _target('incominguser-for', network_kinds.AccountNames(), (), NEXT_LOGIN,
            'Accounts that only certain initiators may use: the name of the account, and an iSCSI name in '
            'which * matches any characters and ? matches one.',
            'An account that is named here is refused to every other initiator name; write a line for each '
            'name that may use it. An account that is not named here serves every name that is admitted.',
            'erp iqn.1991-05.com.microsoft:erp*'),
    _target('outgoinguser', kinds.Account(), None, NEXT_LOGIN,
            'Account with which the target authenticates itself to the initiator (mutual CHAP).',
            'Its secret must differ from the secrets of incominguser.', 'erp-back other-12-to-16'),
    _target('state', kinds.Choice('ready', 'offline'), 'ready', NEXT_LOGIN,
            'offline: new logins are refused with "service unavailable"; existing sessions '
            'continue.'),
    _target('redirect', network_kinds.Redirection(), None, NEXT_LOGIN,
            'Redirect every login: temporary or permanent, and the address that serves the target '
            'now.',
            'Discovery still lists the target, and existing sessions continue; "targetdctl logout" '
            'makes an initiator log in again, at the new address. Such a target needs no LUN. '
            'Initiators store a permanent redirect, but not a temporary one.',
            'temporary 10.0.5.2:3260'),
    _target('alua', kinds.Choice('auto', 'off', 'implicit', 'explicit', 'both'), 'auto', NEXT_LOGIN,
            'Asymmetric logical unit access (ALUA): reports to initiators with several paths '
            'which portal groups they should prefer.',
            'implicit: the states come from alua-state and "targetdctl alua". auto: implicit if '
            'several portal groups or alua-state are written, else off. explicit, both: initiators '
            'may set the states too. Windows and Linux are known to work with off and implicit.'),
    _target('alua-state', scsi_kinds.GroupStates(), (), LIVE,
            'States of the portal groups that are not optimized: nonoptimized (slower), standby, '
            'unavailable, offline, transitioning.',
            'A state set by "targetdctl alua" or by an initiator persists, across restarts too, '
            'until this setting changes.',
            '1 nonoptimized'),
    _target('transient', kinds.Flag(), False, LIVE,
            'The section comes and goes: a resource agent of cluster software writes and removes it.',
            'When it is removed, the changes that targetdctl has made to it are removed too; without '
            'this setting such a reload is refused. Such a target cannot be renamed by targetdctl.'),
    _target('serving', kinds.Choice('always', 'when-active'), 'always', LIVE,
            'Which of two servers serves the target, if its LUNs have unit-state. always: this one, unless '
            'the other one holds them; when-active: only the one that "targetdctl takeover" has ordered to.',
            'The other server is in standby: it answers logins with "service unavailable", or, with '
            'partner-groups, shows its paths in standby. when-active is for cluster managers: a server that '
            'was restarted waits for an order.'),
    _target('partner-groups', kinds.Several(kinds.Number(1, 65535)), (), NEXT_LOGIN,
            'Portal groups of the target on the other server of a pair (unit-state), so that initiators '
            'hold paths to both servers. The other server names the groups of this one here.',
            'The paths to the server that does not serve the LUNs are in the ALUA state standby: INQUIRY, '
            'REPORT LUNS, REPORT TARGET PORT GROUPS, READ CAPACITY, MODE SENSE and PERSISTENT RESERVE IN are '
            'answered, other commands end with NOT READY. After "targetdctl takeover" the sessions go on '
            'without a new login. Each server has portal groups of its own.', '2'),
    _target('max-sessions', kinds.Number(0, 10000), 0, NEXT_LOGIN,
            'Maximum number of sessions of this target; 0: only the limit of [server] applies.'),
    _target('iops-limit', _IOPS, 0, LIVE,
            'Maximum number of commands per second of all initiators and LUNs of the target together; 0: '
            'no limit.', _LIMIT_OF_ALL, '20000'),
    _target('bandwidth-limit', _BANDWIDTH, 0, LIVE,
            'Maximum number of bytes per second that all initiators of the target read and write together; '
            '0: no limit.', _LIMIT_OF_ALL, '200M'),
    _target('initiator-iops-limit', _IOPS, 0, LIVE,
            'Maximum number of commands per second of each initiator of the target; 0: no limit.',
            'It is for all sessions of the same iSCSI name together, so it does not grow with the number '
            'of paths.', '5000'),
    _target('initiator-bandwidth-limit', _BANDWIDTH, 0, LIVE,
            'Maximum number of bytes per second that each initiator of the target reads and writes; 0: no '
            'limit.', 'As initiator-iops-limit.', '50M'),
    _target('initiator-latency-target', _LATENCY, 0, LIVE,
            'As latency-target, for the commands of each initiator of the target; 0: none.',
            'All LUNs that the initiator uses count together.', '20ms'),
    _target('nop-interval', kinds.Duration(1, 3600, off=True), None, NEXT_LOGIN,
            'The nop-interval of this target; without it, that of [server] applies.',
            'Write 0 for diskless machines that boot with iPXE: it never answers a NOP-In, so a '
            'boot menu that waits for a key would lose its disk every minute.', '0'),
    _target('lun-addressing', kinds.Choice('flat', 'peripheral'), 'flat', NEXT_LOGIN,
            'How REPORT LUNS lists LUNs from 256 on: LUN 300 as 412Ch (flat) or as 012Ch '
            '(peripheral).',
            'tgt lists them as flat does, LIO as peripheral does. An initiator may use either form, '
            'whatever is listed. For LUN 300, libiscsi, QEMU, libvirt and iPXE are given 300, which '
            'they send as 012Ch; Linux and Windows use what is listed, and Linux names LUN 300 16684 '
            'if it is listed as 412Ch.'),
    _target('lun-map', map_kinds.LunMaps(), (), LIVE,
            'Which LUNs of the target an initiator sees: an initiator (a name, in which * matches any '
            'characters and ? matches one; a network; account:NAME of incominguser; or ALL), and the numbers '
            'of the LUNs; 1=4 shows LUN 4 as LUN 1, 5:read-only allows only reading. all: all of them; none: '
            'none of them.',
            'One map counts for an initiator, the most specific one: that of its name, else of its account, '
            'else of the longest pattern, else of the smallest network, else that for ALL. With any lun-map, '
            'initiators for which there is no map cannot log in, and discovery does not report the target to '
            'them. Without lun-map, every initiator that is admitted sees all LUNs. An initiator can claim '
            'any name: use CHAP, and incominguser-for or account:NAME, if that is not secure enough.',
            'iqn.1993-08.org.debian:web1 1=0:read-only'),
)
# fmt: on

_SIZE_OF_BLOCK = kinds.Auto(kinds.PowerOfTwo(512, 4096))

# fmt: off
LUN = (
    _lun('backing-store', place_kinds.StorePath(), '', NEEDS_LOGOUT,
         'File or disk that is served: a path, or serial:NUMBER, wwn:0xNUMBER or another selector '
         'that finds a disk; or an export of an NBD server: nbd://HOST[:PORT]/EXPORT or '
         'nbd+unix:///EXPORT?socket=PATH; or an image in a Ceph cluster: '
         'rbd:POOL[/NAMESPACE]/IMAGE[@SNAPSHOT].',
         'Further selectors are by-id:NAME (by-path:, by-uuid:, by-label:, by-partuuid:, '
         'by-partlabel:), model:NAME and size:SIZE; join several with + if one is ambiguous, and '
         'add part:2 for a partition. In a target, backing-store = A, B is short for lun 0 and lun '
         '1. A path like /dev/sdb can refer to another disk after a boot (targetd then refuses to '
         'serve it, see "targetdctl accept"); /dev/disk/by-id, serial: and wwn: cannot.',
         '/dev/disk/by-id/ata-WDC_1', shared=False),
    _lun('direct-store', place_kinds.StorePath(), '', NEEDS_LOGOUT,
         'Like backing-store, but initiators see vendor, product, revision and serial number of '
         'the disk itself.',
         example='serial:WD-WCC4E1', shared=False),
    _lun('ceph-conf', kinds.Path(), '/etc/ceph/ceph.conf', NEEDS_LOGOUT,
         'The configuration file of the Ceph cluster of a backing-store rbd:…, which names its monitors.',
         'Debian: python3-rbd and python3-rados are needed. One process for each image opens it, as one '
         'client of the cluster, and holds its exclusive lock, so no other client can write to it.'),
    _lun('ceph-user', kinds.Text(64, ascii_only=True), 'targetd', NEEDS_LOGOUT,
         'The user of the Ceph cluster, without "client.".',
         "ceph auth get-or-create client.targetd mon 'profile rbd' osd 'profile rbd pool=POOL' -o "
         '/etc/ceph/ceph.client.targetd.keyring makes one with the necessary capabilities.'),
    _lun('type',
         kinds.Choice('auto', 'file', 'block', 'ram', 'null', 'cd', 'tape', 'passthrough', 'vhdx', 'vhd',
                      'vmdk', 'qcow2', 'vdi'),
         'auto', NEEDS_LOGOUT,
         'Type of the store; auto detects a file, a disk, or a disk image of another program by its '
         'signature; vhdx, vhd, vmdk, qcow2, vdi: such an image, through qemu-nbd. '
         'cd: a CD or DVD drive with an image (an ISO file), from which '
         'Windows and Linux install. tape: a tape drive with a tape in a file. passthrough: a real SCSI '
         'device with its own commands: a disk, tape drive, medium changer or optical drive. ram '
         '(memory, lost when targetd stops) and null (reads zeroes, discards writes) are for tests.',
         'A disk image needs Debian\'s package qemu-utils. What a file was when it was first served, it '
         'stays, whatever an initiator writes; file or block serves the bytes of an image as they are. '
         'Its size cannot change while it is served, and only qcow2 releases blocks (thin). '
         'A drive is read-only, has blocks of 2048 bytes and may be used by several initiators. The '
         'initiator can eject and load the image, and "targetdctl medium" loads another one while it is '
         'logged in. An image that an initiator has locked stays in the drive until it allows the removal. '
         'A tape drive is used by one session at a time, and "targetdctl medium" puts another tape into it. '
         'Its file is sparse, and has a format of its own; a file of zeroes is a blank tape. '
         'With passthrough, the backing-store is any node of the device (/dev/sg3, /dev/tape/by-id/…, '
         '/dev/sdb), or serial: or wwn:. Section PASSTHROUGH describes what is forwarded to it.'),
    _lun('command-filter', kinds.Flag(), True, NEEDS_LOGOUT,
         'on: only commands that are harmless for its type are forwarded to a real SCSI device; off: all.',
         'What is refused changes firmware, is vendor-specific, or reaches other devices (WRITE BUFFER, SEND '
         'DIAGNOSTIC, ATA PASS-THROUGH, SANITIZE, EXTENDED COPY, …). Off is for hosts that you trust as '
         'much as this one: firmware updates, smartctl on SATA disks. For type = passthrough only.'),
    _lun('device-reset', kinds.Flag(), False, LIVE,
         'on: LOGICAL UNIT RESET and target resets of an initiator also reset a real SCSI device, which ends '
         'the commands of other hosts that are connected to it; off: commands of the initiators are aborted '
         'only.',
         'Neither the bus nor other devices are reset. For type = passthrough only.'),
    _lun('early-warning', kinds.Size(1 << 20, 1 << 50), None, NEEDS_LOGOUT,
         'How long before its end a tape warns the initiator, which then writes what it has left and asks '
         'for the next tape.',
         'Default: 2 % of the tape. For type = tape only.', '64M'),
    _lun('size', kinds.Size(1 << 20, 1 << 60, multiple=512), None, LIVE,
         'Size of a file (created sparse if missing, extended if shorter), of the disk in a qcow2 '
         'image, or of a ram or null store.',
         'Default: the size of the file or disk. A file is never shortened. Images in other formats '
         'cannot be resized.', '200G'),
    _lun('thin', kinds.Flag(), False, NEEDS_LOGOUT,
         'Offer thin provisioning: initiators can release blocks that they no longer need (UNMAP, '
         'TRIM).'),
    _lun('thin-threshold', kinds.Number(0, 99), 10, LIVE,
         'Initiators are warned when less than this percentage of the file system of a thin file '
         'is available; 0: never.',
         'Initiators may set another threshold (mode page 1Ch, subpage 02h). Without thin, initiators cannot '
         'be warned: only the log and on-event (space_low) do so, if the file may still grow.'),
    _lun('write-cache', kinds.Flag(), True, LIVE,
         'on: a write completes when the operating system has the data, which is durable after the '
         'initiator flushes the cache. off: a write completes when its data is durable.'),
    _lun('iops-limit', _IOPS, 0, LIVE,
         'Maximum number of commands per second of all initiators of the LUN together; 0: no limit.',
         'Commands that read, write, verify, compare or unmap count; other commands, flushes, copies on the '
         'server and task management do not, and are not delayed. What was not used in one second is added '
         'to the next: after a pause, one second\'s worth of commands runs at once. Commands above the '
         'limit wait in the server and can be aborted; sessions that wait take turns. If a limit is so '
         'small that a command waits longer than the initiator allows (usually 30 s), the initiator aborts '
         'it. "targetdctl show limits" shows how much was delayed.', '1000', shared=False),
    _lun('bandwidth-limit', _BANDWIDTH, 0, LIVE,
         'Maximum number of bytes per second that all initiators of the LUN read and write together; 0: no '
         'limit.',
         'As iops-limit; the bytes of READ, WRITE, VERIFY, WRITE SAME and the like count. A command with '
         'more bytes than the limit of one second runs after a pause of so long.', '100M', shared=False),
    _lun('latency-target', _LATENCY, 0, LIVE,
         'The time within which the disk is to answer 90 percent of the commands of this LUN that read or '
         'write; 0: none. While it takes longer, other LUNs on the same disk are slowed down.',
         'The others are the LUNs of all targets that have a physical disk in common with this one (through '
         'partitions, LVM and md; otherwise the same file system or NBD server) and no latency-target, or a '
         'longer one. Each second in which the target is missed, each of them may execute only 3/4 of the '
         'commands that it executed in the second before, but at least 5 percent of its first rate, or 10 '
         'per second. When the target has been met for 3 seconds (for longer, if it was missed again at '
         'once before), their rate rises by a quarter each second, until they are free. What is measured '
         'each second is the time of the disk alone, not that of the network or of limits, and not of '
         'UNMAP, WRITE SAME and flushes. A command is never delayed for the target of its own LUN, and '
         'iops-limit and bandwidth-limit hold as well. "targetdctl show limits" shows the latency, and '
         'which LUN is slowed down for whom; on-event has "slowed". Programs of this host that use the disk '
         'are not slowed down. In a target, it is the value for each of its LUNs.', '20ms'),
    _lun('atomic-writes', kinds.Flag(), False, NEEDS_LOGOUT,
         'Offer WRITE ATOMIC of up to 1 MiB: readers see all of the write or nothing, and a crash '
         'or power failure leaves all of it or nothing on the disk.',
         'The previous contents of the blocks are kept in state-dir, up to 1 MiB per session, '
         'until the write is durable; after a crash they are restored before the LUN is served. '
         'Therefore state-dir must survive a power failure, and servers that serve one disk in '
         'turn must share it. Every command locks the blocks that it accesses, which makes it '
         'slower; COMPARE AND WRITE is then atomic against plain writes too. Not available for '
         'encrypted disks. Requires Linux 3.15.'),
    _lun('on-error', kinds.Choice('report', 'read-only', 'offline'), 'report', LIVE,
         'What happens after an error of the medium (EIO, lost device, timeout), besides the error '
         'that the initiator gets. report: nothing; read-only: all writes are refused; offline: every '
         'access is refused.',
         'This lasts, across restarts too, until "targetdctl acknowledge". Sessions stay logged in, '
         'and commands that have begun are completed. With read-only, writes end with DATA PROTECT, '
         'WRITE PROTECTED; Linux and Windows then mount the file system read-only or report errors. '
         'With offline, commands end with NOT READY, MANUAL INTERVENTION REQUIRED, so that multipath '
         'or cluster software uses another path or copy. A lack of space or memory changes nothing. A '
         'change of this setting does not act on earlier errors.'),
    _lun('health-interval', kinds.Duration(1, 7 * 86400, off=True), 0, NEEDS_LOGOUT,
         'Time after which the physical disks behind the LUN are asked about their health (SMART) again; '
         '0: never.',
         'Needs smartctl (smartmontools 7.0 or later). Through partitions, md, LVM and dm the disks are '
         'found, for a file those of its file system. A disk that sleeps is not woken. Initiators see '
         'temperature, errors, cycles and test results in log pages 02h, 03h, 05h, 0Dh, 0Eh, 10h and 2Fh, '
         'and get a unit attention 5Dh when a disk predicts its failure, or as they select in mode page '
         '1Ch (MRIE 0h, 2h or 6h). "targetdctl show disks" lists the disks.', '30min'),
    _lun('health-device', scsi_kinds.SmartDevices(), (), LIVE,
         'The disks that health-interval asks. Not written: those that are found behind the LUN.',
         'For disks behind a RAID controller: paths in /dev separated by blanks, each with the type of '
         'smartctl -d and @ before it if smartctl does not detect it.', '"megaraid,5@/dev/bus/0"',
         shared=False),
    _lun('spin-down', scsi_kinds.SpinDown(), 0, NEEDS_LOGOUT,
         'Time without an access after which the disk of the LUN is stopped (spun down); never; or on-stop: '
         'only when its only initiator sends START STOP UNIT.',
         'For a whole disk, or its only partition in use, that takes SCSI commands (SAS, SATA, USB); not for '
         'LVM, RAID, NVMe, or a disk that other LUNs or this host use: the log and "targetdctl show disks" '
         'have the reason. The next access starts the disk and waits for it, 5 to 20 seconds; initiators get '
         'no error. INQUIRY, TEST UNIT READY, READ CAPACITY and health-interval wake no disk, and reads that '
         'the page cache answers do not keep it awake. With a time, START STOP UNIT (STOP, STANDBY) of the '
         'only initiator stops it at once, too. Each start wears a disk: do not write a short time.',
         '30min'),
    _lun('state', kinds.Choice('ready', 'read-only', 'offline'), 'ready', LIVE,
         'read-only: writes are refused from now on; offline: every access is. Sessions stay logged in.',
         'Written by "targetdctl lun offline", "lun readonly" and "lun online". Initiators are notified. '
         'With read-only, writes end with DATA PROTECT, WRITE PROTECTED; with offline, commands end with '
         'NOT READY, MANUAL INTERVENTION REQUIRED. Unlike readonly, it needs no logout.', shared=False),
    _lun('read-only-schedule', schedule_kinds.WeekTimes(), (), LIVE,
         'Times of the week at which writes are refused, as with state = read-only: days (mon to sun, a '
         'range like mon-fri, or daily), each with times like 08:00-18:00, or without for the whole day.',
         'For an archive that is written by night, or a backup disk that nobody shall change by day. An end '
         'that is not after the beginning is on the next day. The clock and the time zone of the server '
         'count. Sessions stay logged in, and initiators are notified at the beginning and the end.',
         'mon-fri 08:00-18:00'),
    _lun('transient', kinds.Flag(), False, LIVE,
         'The section comes and goes: a resource agent of cluster software writes and removes it.',
         'When it is removed, the changes that targetdctl has made to it are removed too; without '
         'this setting such a reload is refused. Such a LUN cannot be moved by targetdctl.', shared=False),
    _lun('readonly', kinds.Flag(), False, NEEDS_LOGOUT, 'Reject every write.'),
    _lun('sharing', kinds.Auto(kinds.Choice('exclusive', 'readers', 'cluster')), None, LIVE,
         'Which initiators may use the LUN at the same time. exclusive: one, others do not see the LUN; '
         'readers: the first may write, others may only read; cluster: all; auto: exclusive, or cluster '
         'if the LUN is readonly.',
         'An initiator is its iSCSI name: all paths of one host count as one. Two hosts that write one '
         'NTFS, ext4 or XFS destroy it; write cluster only if their software coordinates them, such as '
         'Windows Failover Clustering, VMFS, GFS2 or OCFS2. It is decided at the login, and a session '
         'that was left out gets the LUN when it logs in again after the sessions of the other initiator '
         'have ended; the log and "targetdctl why" name that initiator. With readers, a file system '
         'that is mounted read-only does not notice what the other initiator writes. A change does not '
         'act on sessions that exist.',
         'cluster'),
    _lun('unit-state', place_kinds.StatePlace(), '', NEEDS_LOGOUT,
         'Directory, or pool of a Ceph cluster (rados:POOL[/NAMESPACE]), for the state of the LUN instead of '
         'state-dir: reservations, saved mode pages, what has failed. It follows the disk to another server.',
         'The directory is on the file system of the data, or on another one that both servers of a pair can '
         'reach; it must exist, below the mount point. A pool is found by ceph-conf and ceph-user; take '
         'another one than that of the data, because a full pool takes no state. One server at a time holds '
         'the state and serves the LUN; another one is in standby until "targetdctl takeover". Both need the '
         'same server-id (or naa and scsi-sn), and the same names and paths. A server that was replaced '
         'cannot write the state any more, notices that within some seconds and ends its sessions; make '
         'certain all the same, before a takeover, that it does not write to the disk any more (an image '
         'rbd:… is taken from it by the cluster). The journal of atomic-writes is in the directory, too.',
         '/srv/disks/state'),
    _lun('fence', kinds.Choice('auto', 'reservations', 'none'), 'auto', NEEDS_LOGOUT,
         'What keeps the other server of a pair (unit-state) from writing to a disk that both see. '
         'reservations: the SCSI-3 persistent reservations of the disk; auto: these, if it has them; none: '
         'they are not used.',
         'The server that holds the state registers a key of its own with the disk, on all paths of a '
         'multipath map, and reserves it (Write Exclusive - Registrants Only, through a loss of power if the '
         'disk can do that). A takeover removes the key of the other server and aborts its commands '
         '(PREEMPT AND ABORT) before the state is loaded, so the disk refuses what that server writes late. '
         'The disk is written past the page cache then, as with direct-io. "targetdctl standby" removes key '
         'and reservation (order it before you write none); a server that stops keeps them. reservations '
         'refuses a disk that has none, or is no SCSI disk. With auto and none, files, NVMe disks, DRBD '
         'and disks without reservations are opened exclusively on this host only: make certain that the '
         'other server does not write. An image rbd:… needs no setting: the cluster is the fence. The '
         'reservations of initiators are apart: they '
         'are kept in the state.'),
    _lun('allow-backing-file', kinds.Listed(kinds.Path()), (), NEEDS_LOGOUT,
         'Directories whose files a disk image may name: backing files, data files of qcow2, VMDK extents.',
         'Not written: an image that names another file is not served, since who could write the image has '
         'chosen the file. Addresses (nbd://…) are never opened.', '/srv/templates', shared=False),
    _lun('guard', scsi_kinds.Guards(), (), NEEDS_LOGOUT,
         'What is kept before initiators write. first-write-snapshot: before the first write of a session, '
         'the partition table and the heads of the file systems are copied to state-dir. undo-journal SIZE: '
         'the old blocks of every write are kept in state-dir, as far back as SIZE allows, so that the disk '
         'can go back to a time.',
         'The copies of first-write-snapshot are made again, at most every 10 minutes of a session, before '
         'it writes to the partition table, unmaps or zeroes 16 MiB or more at once, and before FORMAT UNIT '
         'and SANITIZE. Kept are the first and the last MiB of the disk and of each partition, and the start '
         'of the master file table of NTFS; at most 64 MiB, compressed, and nothing if it has not changed. '
         '"targetdctl guard list" shows the copies, of which 24 are kept per LUN, and "guard restore" puts '
         'one back, for example after "Initialize disk" or a format of the wrong disk. Files that were '
         'overwritten since are not restored. If state-dir is full, writes end with DATA PROTECT, WRITE '
         'PROTECTED. What is kept of a disk survives SANITIZE: use "guard remove" then. Of an undo journal '
         '"guard list" shows when initiators have written, and "guard restore TARGET/LUN TIME" gives the LUN '
         'the content that it had at that time, and can be undone in the same way. Each write waits until '
         'the blocks that it overwrites are durable in state-dir, compressed, and ends with DATA PROTECT, '
         'WRITE PROTECTED if that fails; put state-dir on a disk that is at least as fast. SIZE is the space '
         'in state-dir, taken in 16 parts; each session that writes uses one of them at a time. A command '
         'that overwrites more than SIZE at once is done, and ends the history, and so do SANITIZE, which '
         'erases the journal too, "targetdctl restore" of a snapshot, and a time in which the LUN was served '
         'without it. Older parts that were removed before, to keep to SIZE, are deleted files, which '
         'SANITIZE does not overwrite. '
         'What this host or another server writes to the disk is not recorded.',
         'first-write-snapshot'),
    _lun('content', kinds.Choice('ask', 'keep'), 'ask', LIVE,
         'keep: serve a disk for the first time although it has a file system or metadata of a Linux host '
         '(ext4, XFS, LVM, md, ZFS, LUKS and the like); ask: not until you have confirmed this.',
         'The message names the content. It concerns writable disks, not files, and only until the LUN was '
         'served once. Initiators may overwrite the content.',
         'keep'),
    _lun('removable', kinds.Flag(), False, NEEDS_LOGOUT, 'Report the medium as removable, so that '
                                                         'it can be ejected.'),
    _lun('block-size', _SIZE_OF_BLOCK, None, NEEDS_LOGOUT,
         'Bytes per logical block; auto: the block size of the disk, 512 for a file.',
         'Changing it on a disk that contains data makes the data unreadable.', '4096'),
    _lun('allow-other-block-size', kinds.Flag(), False, NEEDS_LOGOUT,
         'Serve a disk or file although the partition table or file system on it was written with '
         'another block size than the one that initiators see.'),
    _lun('physical-block-size', kinds.Auto(kinds.PowerOfTwo(512, 1 << 20)), None, NEEDS_LOGOUT,
         'Bytes per physical block, to which initiators align their accesses; auto: as the disk '
         'reports, block-size for a file.', example='4096'),
    _lun('lowest-aligned-block', kinds.Number(0, 16383), 0, NEEDS_LOGOUT,
         'The first logical block that is aligned to a physical block.'),
    _lun('vendor-id', kinds.Text(8, ascii_only=True), '', NEEDS_LOGOUT,
         'Vendor in INQUIRY. Empty: that of the disk with direct-store, else TARGETD.',
         example='ACME'),
    _lun('product-id', kinds.Text(16, ascii_only=True), '', NEEDS_LOGOUT,
         'Product in INQUIRY. Empty: that of the disk with direct-store, else VIRTUAL-DISK.',
         example='ERP-DISK'),
    _lun('product-rev', kinds.Text(4, ascii_only=True), '', NEEDS_LOGOUT,
         'Revision in INQUIRY. Empty: that of the disk with direct-store, else that of targetd.',
         example='1.0'),
    _lun('scsi-sn', kinds.Text(64, ascii_only=True), '', NEEDS_LOGOUT,
         'Serial number. Empty: that of the disk with direct-store, else derived from server-id '
         'and the path or disk.',
         example='ERP0001', shared=False),
    _lun('scsi-sn-nuls', kinds.Number(0, 8), 0, NEEDS_LOGOUT,
         'Number of NUL bytes at the end of the serial number in VPD page 80h; LIO sends one.',
         shared=False),
    _lun('naa', scsi_kinds.Naas(), (), NEEDS_LOGOUT,
         'NAA identifier, by which multipath software identifies the disk. Not written: derived like '
         'the serial number. none: the LUN has no NAA identifier, so that its eui or t10 counts.',
         'Several are sent in this order; initiators prefer one that begins with 6.',
         example='60014051234567890abcdef012345678', shared=False),
    _lun('eui', kinds.Hex(16, 24, 32), '', NEEDS_LOGOUT, 'EUI-64 identifier. Empty: none.',
         example='0014051234567890', shared=False),
    _lun('t10', scsi_kinds.Designator(may_be_none=True), '', NEEDS_LOGOUT,
         'T10 vendor identifier. Not written: made of vendor-id, product-id and scsi-sn.',
         'The text begins with the 8 characters of the vendor. Initiators identify the disk by it only '
         'if the LUN has neither naa nor eui.',
         example='ascii "IET     00010001" 36', shared=False),
    _lun('scsi-name', kinds.Text(240), '', NEEDS_LOGOUT,
         'SCSI name of the LUN, another identifier. Empty: none.',
         example='"iqn.2026-11.com.example:erp,lun,0"', shared=False),
    _lun('vendor-specific', scsi_kinds.Designator(), '', NEEDS_LOGOUT,
         'Vendor-specific identifier of the LUN. Empty: none.',
         example='ascii rbd/erp', shared=False),
    _lun('designator-order',
         kinds.Several(kinds.Choice('naa', 'eui', 't10', 'scsi-name', 'vendor-specific')),
         (), NEEDS_LOGOUT,
         'Order of the identifiers in VPD page 83h: naa, eui, t10, scsi-name and vendor-specific, if '
         'nothing else is written.',
         example='t10, naa', shared=False),
    _lun('identity', scsi_kinds.Identity(), None, NEEDS_LOGOUT,
         'The identity that another iSCSI target gave to this LUN: the name of the target, and what '
         'its identity was made of.',
         'It stands for vendor-id, product-id, product-rev, scsi-sn, naa, t10 and the other '
         'identifiers; each of them that is written too has precedence. "targetdctl import" writes '
         'them for you, and "targetd -t" shows them. Words: %s.' % '; '.join(
             '%s %s' % (name, ' '.join(
                 [word + '=' for word in identities.arguments(function)[0]]
                 + ['[%s=]' % word for word in identities.arguments(function)[1]]))
             for name, function in identities.FORMATS.items()),
         example='tgt tid=1 lun=1', shared=False),
    _lun('rotation-rate', kinds.Auto(kinds.Number(0, 65534)), None, NEEDS_LOGOUT,
         'Revolutions per minute; 1: not rotating (SSD), 0: not reported, auto: that of the disk, or '
         'of the disk that a file is on, 0 if Linux does not know it.',
         example='1'),
    _lun('direct-io', kinds.Flag(), False, NEEDS_LOGOUT, 'Bypass the page cache of the operating '
                                                         'system (O_DIRECT).'),
    _lun('encryption-key-file', kinds.Path(), '', NEEDS_LOGOUT,
         'Encrypt the data on the medium (AES-256-XTS) with the key in this file. KEEP A COPY OF '
         'THE FILE: without it the data cannot be read.',
         'Every disk needs a different key. If the disk is empty, the file is created at the first '
         'use; "targetd --make-key FILE" creates one at any time. Requires the Python package '
         'cryptography. See ENCRYPTION in targetd.conf(5).',
         '/etc/targetd.d/erp.key', shared=False),
    _lun('sense-format',
         kinds.Choice('fixed', 'descriptor', also={'0': 'fixed', '1': 'descriptor'}), 'fixed', LIVE,
         'Format of sense data until an initiator sets another one (D_SENSE). Windows is known to '
         'work with fixed.'),
    _lun('optimal-transfer-length', kinds.Auto(kinds.Size(512, 1 << 30)), None, NEEDS_LOGOUT,
         'Optimal transfer length that is reported to initiators.', example='1M'),
    _lun('optimal-transfer-granularity', kinds.Auto(kinds.Size(512, 1 << 30)), None, NEEDS_LOGOUT,
         'Granularity of optimal transfer lengths that is reported to initiators, such as the '
         'stripe size of a RAID.',
         example='64K'),
    _lun('management-url', kinds.Text(240, ascii_only=True), '', NEEDS_LOGOUT,
         'Management network address that is reported to initiators (VPD page 85h). Empty: none.',
         example='https://storage1.example.com/'),
    _lun('mode-page', scsi_kinds.ModePages(), (), NEEDS_LOGOUT,
         'Default values of mode pages, each as page:subpage:length:byte:byte:..., for initiators '
         'that require certain values.',
         'The bytes are those after the PAGE LENGTH field, as in tgt. This does not change which '
         'fields initiators can modify.',
         '2:0:14:0x80:0x80:0:0xa:0:0:0:0:0:0:0:0:0:0'),
    _lun('third-party-copy', kinds.Flag(), True, NEEDS_LOGOUT,
         'Copy data on behalf of initiators (EXTENDED COPY; tokens, that is ODX), so that it does '
         'not cross the network.',
         'no: the commands are rejected and not reported as supported, and other units do not copy '
         'from or to this one.'),
    _lun('allow-in-use', kinds.Flag(), False, NEEDS_LOGOUT,
         'Serve a disk although this host seems to use it (mounted, member of a RAID or volume '
         'group, open for writing by a process, served by another LUN) or is configured to use it '
         '(fstab, mdadm.conf, metadata of LVM and ZFS).',
         'Two users of one disk that do not coordinate their accesses destroy its data.'),
    _lun('filter', kinds.Filters(), (), NEEDS_LOGOUT,
         'For tests only: delay or fail accesses, refuse writes, or log accesses.',
         'Filters are applied from left to right. delay 10ms; delay read=10ms write=5ms; error '
         'write offset=1M..2M errno=EIO; error flush count=1; error read every=100; readonly; tear '
         'piece=4K pause=10ms; trace; trace to=PATH.',
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
    """The rows of one kind of section, in table order; for 'target' without the shared settings of
    LUNs."""
    return tuple(row for row in TABLE if row.section == section)
