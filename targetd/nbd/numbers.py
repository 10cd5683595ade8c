"""The numbers of the protocol (proto.md, "Values"), with its names without the prefix NBD_."""

import errno

# -- handshake -------------------------------------------------------------------------------------

INIT_PASSWORD = 0x4E42444D41474943  # "NBDMAGIC"
OPTION_MAGIC = 0x49484156454F5054  # "IHAVEOPT"
OLDSTYLE_MAGIC = 0x00420281861253
OPTION_REPLY_MAGIC = 0x3E889045565A9

FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES = 1, 2  # handshake flags, and the client's

OPT_ABORT, OPT_GO, OPT_STRUCTURED_REPLY, OPT_SET_META_CONTEXT, OPT_EXTENDED_HEADERS = (
    2,
    7,
    8,
    10,
    11,
)

REP_ACK, REP_INFO, REP_META_CONTEXT = 1, 3, 4
REP_ERROR = 1 << 31
REP_ERR_UNSUP, REP_ERR_POLICY, REP_ERR_INVALID = REP_ERROR | 1, REP_ERROR | 2, REP_ERROR | 3
REP_ERR_PLATFORM, REP_ERR_TLS_REQD, REP_ERR_UNKNOWN = REP_ERROR | 4, REP_ERROR | 5, REP_ERROR | 6
REP_ERR_SHUTDOWN, REP_ERR_BLOCK_SIZE_REQD = REP_ERROR | 7, REP_ERROR | 8

INFO_EXPORT, INFO_BLOCK_SIZE = 0, 3

BASE_ALLOCATION = 'base:allocation'

# -- transmission ----------------------------------------------------------------------------------

HAS_FLAGS = 1 << 0
READ_ONLY = 1 << 1
SEND_FLUSH = 1 << 2
SEND_FUA = 1 << 3
SEND_TRIM = 1 << 5
SEND_WRITE_ZEROES = 1 << 6
SEND_DF = 1 << 7
CAN_MULTI_CONN = 1 << 8
SEND_CACHE = 1 << 10
SEND_FAST_ZERO = 1 << 11

REQUEST_MAGIC, EXTENDED_REQUEST_MAGIC = 0x25609513, 0x21E41C71
SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC = 0x67446698, 0x668E33EF
EXTENDED_REPLY_MAGIC = 0x6E8A278C

CMD_READ, CMD_WRITE, CMD_DISC, CMD_FLUSH, CMD_TRIM, CMD_CACHE, CMD_WRITE_ZEROES = range(7)
CMD_BLOCK_STATUS = 7
COMMAND_NAMES = ('READ', 'WRITE', 'DISC', 'FLUSH', 'TRIM', 'CACHE', 'WRITE_ZEROES', 'BLOCK_STATUS')

FLAG_FUA, FLAG_NO_HOLE, FLAG_DF, FLAG_FAST_ZERO, FLAG_PAYLOAD_LEN = 1, 2, 4, 16, 32

REPLY_DONE = 1
REPLY_NONE, REPLY_OFFSET_DATA, REPLY_OFFSET_HOLE, REPLY_BLOCK_STATUS, REPLY_BLOCK_STATUS_EXT = (
    0,
    1,
    2,
    5,
    6,
)
REPLY_ERROR, REPLY_ERROR_OFFSET = 1 << 15 | 1, 1 << 15 | 2
REPLY_ERROR_BIT = 1 << 15

STATE_HOLE, STATE_ZERO = 1, 2

#: Error numbers of the protocol -> errno of this host. A server sends EINVAL for every error of its
#: disk that has no number here (qemu-nbd: a medium error, a time limit), so for a request that obeys
#: what the server advertised it means a broken disk.
ERRNO = {
    1: errno.EPERM,
    5: errno.EIO,
    12: errno.ENOMEM,
    22: errno.EIO,
    28: errno.ENOSPC,
    75: errno.EIO,
    95: errno.EOPNOTSUPP,
    108: errno.ESHUTDOWN,
}
