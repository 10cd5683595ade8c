"""TABLE: configurations with one mistake each, and what the complaint must contain.

A row: (name, exit code of `targetd -t`, text, regular expression). Text: {d} is a folder of the test,
{port} a free port, {busy} a port that another program has. The text is appended to a good [server]
section, unless it begins with [server].
"""

SERVER = '''[server]
pid-file = {d}/pid
control-socket = {d}/sock
state-dir = {d}/state
log = {d}/log
'''
PORTAL = '[portal-group 1]\nportal = 127.0.0.1:{port}\n'
T = PORTAL + '[target iqn.2026-11.com.example:t]\ninitiator-address = ALL\n'
LUN = T + '[[lun 0]]\nbacking-store = {d}/good.img\n'
CONFIG, PORTALS, STORE, FAILURE = 3, 4, 5, 1


def lun(store, *more):
    """A target whose LUN 0 has this store."""
    lines = ['[[lun 0]]', 'backing-store = ' + store] + list(more)
    return T + '\n'.join(lines) + '\n'


# fmt: off
TABLE = (
    # -- syntax
    ('word', CONFIG, 'nonsense\n', 'neither a .section. nor a setting'),
    ('tgt', CONFIG, '<target iqn.2026-11.com.example:t>\n', r'write \[target iqn'),
    ('tgt-end', CONFIG, PORTAL + '</target>\n', 'no end mark'),
    ('semicolon', CONFIG, PORTAL + '; a comment\n', 'comments with #'),
    ('no-equals', CONFIG, T + 'alias ERP\n', 'alias without an equals sign; write alias = '),
    ('open-heading', CONFIG, PORTAL + '[target iqn.2026-11.com.example:t\n', 'not closed'),
    ('brackets', CONFIG, T + '[[lun 0]\n', r'write as many \] as \['),
    ('too-deep', CONFIG, PORTAL + '[[[lun 0]]]\n', 'nested too deeply'),
    ('lun-outside', CONFIG, PORTAL + '[lun 0]\n', r'inside a \[target NAME\]'),
    ('section', CONFIG, '[tarjet x]\n', r'did you mean \[target NAME\]'),
    ('nested', CONFIG, PORTAL + '[[lun 0]]\n', r'only a \[target NAME\] may contain sections'),
    ('nested-kind', CONFIG, T + '[[disk 0]]\n', 'no kind of section'),
    ('deeper', CONFIG, LUN + '[[[x]]]\n', 'only settings'),
    ('three-quotes', CONFIG, T + 'alias = """x\n', 'three quotes'),
    ('open-quote', CONFIG, T + 'alias = "x\n', 'never closed'),
    ('after-quote', CONFIG, T + 'alias = "x"y\n', 'directly follows the closing quote'),
    ('comma', CONFIG, T + 'initiator-name = , x\n', 'comma where a word is expected'),
    ('no-value', CONFIG, T + 'alias =\n', 'alias has no value'),
    ('server-argument', CONFIG, PORTAL + '[server x]\n', 'has an argument'),
    ('include-missing', CONFIG, '[server]\n[portal-group 1]\ninclude = x\n', 'include in a section'),
    ('nul', CONFIG, T + 'alias = a\0b\n', 'NUL'),
    # -- names of settings
    ('typo', CONFIG, '[server]\nmax-sesions = 3\n', 'did you mean max-sessions'),
    ('wrong-home', CONFIG, PORTAL + 'alias = x\n', r'write it in \[target NAME\]'),
    ('lun-setting-in-server', CONFIG, '[server]\nthin = yes\n', 'write it in'),
    ('server-setting-in-lun', CONFIG, LUN + 'log-level = info\n', r'write it in \[server\]'),
    ('read-only', CONFIG, LUN + 'read-only = yes\n', 'readonly'),
    ('unknown', CONFIG, LUN + 'colour = red\n', 'is not a setting'),
    ('twice', CONFIG, T + 'alias = a\nalias = b\n', 'set twice'),
    ('target-twice', CONFIG, T + '[target iqn.2026-11.com.example:t]\n', 'defined twice'),
    ('lun-twice', CONFIG, LUN + '[[lun 0]]\nbacking-store = /x\n', 'defined twice'),
    ('group-twice', CONFIG, PORTAL + PORTAL, 'defined twice'),
    # -- values
    ('number', CONFIG, '[server]\nmax-sessions = many\n', 'max-sessions'),
    ('number-range', CONFIG, '[server]\nmax-sessions = 0\n', 'max-sessions'),
    ('number-negative', CONFIG, '[server]\nspare-workers = -1\n', 'spare-workers'),
    ('duration', CONFIG, '[server]\nlogin-timeout = soon\n', 'login-timeout'),
    ('duration-range', CONFIG, '[server]\nlogin-timeout = 1h\n', 'login-timeout'),
    ('choice', CONFIG, '[server]\nlog-level = loud\n', 'log-level'),
    ('flag', CONFIG, LUN + 'thin = maybe\n', 'thin'),
    ('size', CONFIG, lun('{d}/new.img', 'size = big'), 'size'),
    ('size-unit', CONFIG, lun('{d}/new.img', 'size = 10Q'), 'size'),
    ('size-zero', CONFIG, lun('{d}/new.img', 'size = 0'), 'size'),
    ('size-odd', CONFIG, lun('{d}/new.img', 'size = 1048577'), 'size'),
    ('size-block', CONFIG, lun('{d}/new.img', 'size = 1049088', 'block-size = 4096'),
     'multiple of the block size'),
    ('block-size', CONFIG, LUN + 'block-size = 1000\n', 'block-size'),
    ('physical', CONFIG, LUN + 'block-size = 4096\nphysical-block-size = 512\n', 'less than block-size'),
    ('lowest', CONFIG, LUN + 'lowest-aligned-block = 9\n', 'outside the first physical block'),
    ('rotation', CONFIG, LUN + 'rotation-rate = 100\n', 'reserved'),
    ('naa', CONFIG, LUN + 'naa = 123\n', 'naa'),
    ('eui', CONFIG, LUN + 'eui = xyz\n', 'eui'),
    ('vendor', CONFIG, LUN + 'vendor-id = MUCHTOOLONG\n', 'vendor-id'),
    ('vendor-ascii', CONFIG, LUN + 'vendor-id = \u00e4\n', 'vendor-id'),
    ('mode-page', CONFIG, LUN + 'mode-page = 2:0\n', 'mode-page'),
    ('filter', CONFIG, LUN + 'filter = dealy 10ms\n', 'filter'),
    ('alua-state', CONFIG, T + 'alua-state = 1:odd\n', 'alua-state'),
    ('alua-off', CONFIG, T + 'alua = off\nalua-state = 1 standby\n', 'alua'),
    ('redirect', CONFIG, T + 'redirect = somewhere\n', 'redirect'),
    ('first-burst', CONFIG, T + 'FirstBurstLength = 131072\nMaxBurstLength = 65536\n',
     'greater than MaxBurstLength'),
    ('key-range', CONFIG, T + 'MaxBurstLength = 1\n', 'MaxBurstLength'),
    ('digest', CONFIG, T + 'HeaderDigest = MD5\n', 'HeaderDigest'),
    ('chap-algorithm', CONFIG, '[server]\nchap-algorithms = MD6\n', 'chap-algorithms'),
    # -- names, addresses, accounts
    ('no-name', CONFIG, PORTAL + '[target]\n', 'iSCSI name'),
    ('name', CONFIG, PORTAL + '[target disk one]\n', 'iSCSI name'),
    ('lun-number', CONFIG, T + '[[lun x]]\n', 'number of a lun'),
    ('lun-range', CONFIG, T + '[[lun 99999]]\n', 'number of a lun'),
    ('group-number', CONFIG, '[portal-group x]\nportal = 127.0.0.1\n', 'number of a portal group'),
    ('no-portal', CONFIG, '[portal-group 1]\n', 'has no portal'),
    ('no-group', CONFIG, T + 'portal-group = 7\n', 'no portal group 7'),
    ('host-name', CONFIG, '[portal-group 1]\nportal = storage.example.com\n', 'portal'),
    ('port', CONFIG, '[portal-group 1]\nportal = 127.0.0.1:99999\n', 'portal'),
    ('address', CONFIG, '[portal-group 1]\nportal = 300.1.1.1\n', 'portal'),
    ('network', CONFIG, PORTAL + '[target iqn.2026-11.com.example:t]\ninitiator-address = 10.0.0.0/99\n',
     'initiator-address'),
    ('account', CONFIG, T + 'incominguser = erp\n', 'incominguser'),
    ('two-secrets', CONFIG, T + 'incominguser = erp one-secret-of-14, erp other-secret-14\n', 'two secrets'),
    ('same-secret', CONFIG, T + 'incominguser = a same-secret-of\noutgoinguser = b same-secret-of\n',
     'same secret'),
    ('one-way', CONFIG, T + 'outgoinguser = b secret-of-14-by\n', 'without incominguser'),
    ('user-file', CONFIG, T + 'incominguser-file = {d}/none\n', 'cannot be read'),
    ('isns', CONFIG, '[server]\nisns-server = ?\n', 'isns-server'),
    # -- LUNs
    ('no-store', CONFIG, T + '[[lun 0]]\nthin = yes\n', 'no backing-store'),
    ('both-stores', CONFIG, LUN + 'direct-store = /dev/sdb\n', 'write one of the two'),
    ('ram-store', CONFIG, LUN + 'type = ram\nsize = 1M\n', 'type ram has no backing-store'),
    ('ram-size', CONFIG, T + '[[lun 0]]\ntype = ram\n', 'needs a size'),
    ('null-size', CONFIG, T + '[[lun 0]]\ntype = null\n', 'needs a size'),
    ('block-fixed', CONFIG, lun('/dev/sdb', 'type = block', 'size = 1G'), 'remove size'),
    ('ram-key', CONFIG, T + '[[lun 0]]\ntype = ram\nsize = 1M\nencryption-key-file = {d}/key\n',
     'cannot be encrypted'),
    ('key-journal', CONFIG, LUN + 'encryption-key-file = {d}/key\natomic-writes = yes\n',
     'journal|not available'),
    ('selector', CONFIG, lun('seriel:WD-1'), 'did you mean serial:'),
    ('selector-empty', CONFIG, lun('serial:'), 'is missing'),
    ('same-file', CONFIG, LUN + '[[lun 1]]\nbacking-store = {d}/good.img\n', 'good.img'),
    ('same-identity', CONFIG, LUN + 'naa = 60014051234567890abcdef012345678\n[[lun 1]]\n'
     'backing-store = {d}/other.img\nnaa = 60014051234567890abcdef012345678\n', 'naa'),
    # -- what this host does not have
    ('user', FAILURE, '[server]\nuser = no-such-user\n', 'no user no-such-user'),
    ('group', FAILURE, '[server]\ncontrol-group = no-such-group\n', 'no group no-such-group'),
    ('log-directory', FAILURE, '[server]\nlog = {d}/none/log\n', 'there is no directory .*/none'),
    ('log-is-directory', FAILURE, '[server]\nlog = {d}\n', 'the log cannot be written'),
    ('pid-below-file', FAILURE, '[server]\npid-file = {d}/good.img/pid\n', 'is not a directory'),
    ('pid-is-directory', FAILURE, '[server]\npid-file = {d}\n', 'is a directory'),
    ('socket-is-file', FAILURE, '[server]\ncontrol-socket = {d}/good.img\n', 'a file of that name'),
    ('socket-long', FAILURE, '[server]\ncontrol-socket = {d}/' + 'x' * 120 + '\n', 'longer than 107 bytes'),
    ('state-below-file', FAILURE, '[server]\nstate-dir = {d}/good.img/state\n', 'is not a directory'),
    ('server-id', FAILURE, '[server]\nstate-dir = {d}/damaged\n', 'does not contain a UUID'),
    ('busy-port', PORTALS, '[portal-group 1]\nportal = 127.0.0.1:{busy}\n', 'in use by .*process'),
    ('no-address', PORTALS, '[server]\nportal-required = yes\n[portal-group 1]\nportal = 192.0.2.77:{port}\n',
     'no such address'),
    ('directory', STORE, lun('{d}'), 'is a directory; name a file or a block device'),
    ('dev-null', STORE, lun('/dev/null'), 'neither a file nor a block device'),
    ('no-directory', STORE, lun('{d}/images/erp.img', 'size = 200G'),
     'its directory .*/images does not exist; create'),
    ('below-file', STORE, lun('{d}/good.img/x', 'size = 1M'), 'good.img is a file'),
    ('no-file', STORE, lun('{d}/none.img'),
     'does not exist; correct the path, or write for example size = 10G'),
    ('no-disk', STORE, lun('/dev/sdzz'), '/dev/sdzz does not exist'),
    ('no-serial', STORE, lun('serial:NO-SUCH'), 'matches no disk of this host'),
    ('no-link', STORE, lun('by-id:none'), 'there is no'),
    ('empty', STORE, lun('{d}/empty.img'), 'is empty; write a size'),
    ('odd', STORE, lun('{d}/odd.img'), 'not a multiple of the block size 512; make it larger'),
    ('shorter', STORE, lun('{d}/good.img', 'size = 1M'),
     'more than size = 1048576; a file is never made shorter'),
    ('readonly-missing', STORE, lun('{d}/none.img', 'size = 1M', 'readonly = yes'),
     'cannot be served readonly'),
    ('too-large', STORE, lun('{d}/new.img', 'size = 1024P'), 'cannot be created with'),
    ('hard-link', STORE, LUN + '[[lun 1]]\nbacking-store = {d}/link.img\n', 'under another name'),
    ('other-blocks', STORE, lun('{d}/gpt.img', 'block-size = 4096'), 'block-size'),
    ('file-as-block', STORE, lun('{d}/good.img', 'type = block'), 'not a block device; leave type out'),
    ('locked', STORE, lun('{d}/locked.img'), 'in use'),
)
# fmt: on
