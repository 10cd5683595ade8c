"""The numbers of RFC 7143 and RFC 7144, and their names for the log. Pure; imports nothing.

Hexadecimal numbers are written as the RFCs print them, so that a number from a packet capture can be
found here.
"""

BHS_LENGTH = 48
AHS_UNIT = 4  # TotalAHSLength counts words of four bytes
RESERVED_TAG = 0xFFFFFFFF  # value of an Initiator or Target Transfer Tag that means 'no tag'
DEFAULT_PORT = 3260
DRAFT_VERSION = 0x00  # the only defined version, RFC 7143 11.12.4
MAXIMUM_DATA_SEGMENT = 0xFFFFFF

# Opcodes, RFC 7143 11.2.1.2; byte 0 also has the I bit
OPCODE_MASK = 0x3F
IMMEDIATE = 0x40

NOP_OUT = 0x00
SCSI_COMMAND = 0x01
TASK_MANAGEMENT_REQUEST = 0x02
LOGIN_REQUEST = 0x03
TEXT_REQUEST = 0x04
DATA_OUT = 0x05
LOGOUT_REQUEST = 0x06
SNACK_REQUEST = 0x10
NOP_IN = 0x20
SCSI_RESPONSE = 0x21
TASK_MANAGEMENT_RESPONSE = 0x22
LOGIN_RESPONSE = 0x23
TEXT_RESPONSE = 0x24
DATA_IN = 0x25
LOGOUT_RESPONSE = 0x26
READY_TO_TRANSFER = 0x31
ASYNC_MESSAGE = 0x32
REJECT = 0x3F

# fmt: off
OPCODE_NAMES = {
    NOP_OUT: 'NOP-Out',
    SCSI_COMMAND: 'SCSI Command',
    TASK_MANAGEMENT_REQUEST: 'Task Management Function Request',
    LOGIN_REQUEST: 'Login Request',
    TEXT_REQUEST: 'Text Request',
    DATA_OUT: 'SCSI Data-Out',
    LOGOUT_REQUEST: 'Logout Request',
    SNACK_REQUEST: 'SNACK Request',
    NOP_IN: 'NOP-In',
    SCSI_RESPONSE: 'SCSI Response',
    TASK_MANAGEMENT_RESPONSE: 'Task Management Function Response',
    LOGIN_RESPONSE: 'Login Response',
    TEXT_RESPONSE: 'Text Response',
    DATA_IN: 'SCSI Data-In',
    LOGOUT_RESPONSE: 'Logout Response',
    READY_TO_TRANSFER: 'Ready To Transfer',
    ASYNC_MESSAGE: 'Asynchronous Message',
    REJECT: 'Reject',
}
# fmt: on

# Byte 1
FINAL = 0x80  # in every PDU; 1 where the RFC shows a constant 1

COMMAND_READ = 0x40  # SCSI Command, RFC 7143 11.3.1
COMMAND_WRITE = 0x20
ATTRIBUTE_MASK = 0x07
PRIORITY_MASK = 0x0F  # byte 2, RFC 7144 5.1.1

BIDI_OVERFLOW = 0x10  # SCSI Response, RFC 7143 11.4.1
BIDI_UNDERFLOW = 0x08
OVERFLOW = 0x04  # SCSI Response and Data-In
UNDERFLOW = 0x02
ACKNOWLEDGE = 0x40  # Data-In, RFC 7143 11.7.2
STATUS = 0x01  # Data-In, RFC 7143 11.7.3

CONTINUE = 0x40  # Text and Login
TRANSIT = 0x80  # Login
FUNCTION_MASK = 0x7F  # Task Management, Logout reason
SNACK_TYPE_MASK = 0x0F

# Login stages, RFC 7143 11.12.3
SECURITY_NEGOTIATION = 0
OPERATIONAL_NEGOTIATION = 1
FULL_FEATURE_PHASE = 3

STAGE_NAMES = {
    SECURITY_NEGOTIATION: 'SecurityNegotiation',
    OPERATIONAL_NEGOTIATION: 'LoginOperationalNegotiation',
    FULL_FEATURE_PHASE: 'FullFeaturePhase',
}

# SCSI Response, RFC 7143 11.4.3
RESPONSE_COMPLETED = 0x00
RESPONSE_TARGET_FAILURE = 0x01

# Login status, RFC 7143 11.13.5: class, detail
SUCCESS = (0x00, 0x00)
MOVED_TEMPORARILY = (0x01, 0x01)
MOVED_PERMANENTLY = (0x01, 0x02)
INITIATOR_ERROR = (0x02, 0x00)
AUTHENTICATION_FAILURE = (0x02, 0x01)
AUTHORIZATION_FAILURE = (0x02, 0x02)
NOT_FOUND = (0x02, 0x03)
TARGET_REMOVED = (0x02, 0x04)
UNSUPPORTED_VERSION = (0x02, 0x05)
TOO_MANY_CONNECTIONS = (0x02, 0x06)
MISSING_PARAMETER = (0x02, 0x07)
CANNOT_INCLUDE_IN_SESSION = (0x02, 0x08)
SESSION_TYPE_NOT_SUPPORTED = (0x02, 0x09)
SESSION_DOES_NOT_EXIST = (0x02, 0x0A)
INVALID_DURING_LOGIN = (0x02, 0x0B)
TARGET_ERROR = (0x03, 0x00)
SERVICE_UNAVAILABLE = (0x03, 0x01)
OUT_OF_RESOURCES = (0x03, 0x02)

# fmt: off
LOGIN_STATUS_NAMES = {
    SUCCESS: 'success',
    MOVED_TEMPORARILY: 'target moved temporarily',
    MOVED_PERMANENTLY: 'target moved permanently',
    INITIATOR_ERROR: 'initiator error',
    AUTHENTICATION_FAILURE: 'authentication failure',
    AUTHORIZATION_FAILURE: 'authorization failure',
    NOT_FOUND: 'target not found',
    TARGET_REMOVED: 'target removed',
    UNSUPPORTED_VERSION: 'unsupported version',
    TOO_MANY_CONNECTIONS: 'too many connections',
    MISSING_PARAMETER: 'missing parameter',
    CANNOT_INCLUDE_IN_SESSION: 'cannot include in session',
    SESSION_TYPE_NOT_SUPPORTED: 'session type not supported',
    SESSION_DOES_NOT_EXIST: 'session does not exist',
    INVALID_DURING_LOGIN: 'invalid request during login',
    TARGET_ERROR: 'target error',
    SERVICE_UNAVAILABLE: 'service unavailable',
    OUT_OF_RESOURCES: 'out of resources',
}
# fmt: on


def login_status_name(status_class: int, status_detail: int) -> str:
    """Return a text for the log such as '0203 target not found'."""
    name = LOGIN_STATUS_NAMES.get((status_class, status_detail), 'unknown login status')
    return '%02X%02X %s' % (status_class, status_detail, name)


# Task management functions, RFC 7143 11.5.1; 9 to 12: RFC 7144 6.1
ABORT_TASK = 1
ABORT_TASK_SET = 2
CLEAR_ACA = 3
CLEAR_TASK_SET = 4
LOGICAL_UNIT_RESET = 5
TARGET_WARM_RESET = 6
TARGET_COLD_RESET = 7
TASK_REASSIGN = 8
QUERY_TASK = 9
QUERY_TASK_SET = 10
I_T_NEXUS_RESET = 11
QUERY_ASYNCHRONOUS_EVENT = 12

# fmt: off
TASK_MANAGEMENT_NAMES = {
    ABORT_TASK: 'ABORT TASK',
    ABORT_TASK_SET: 'ABORT TASK SET',
    CLEAR_ACA: 'CLEAR ACA',
    CLEAR_TASK_SET: 'CLEAR TASK SET',
    LOGICAL_UNIT_RESET: 'LOGICAL UNIT RESET',
    TARGET_WARM_RESET: 'TARGET WARM RESET',
    TARGET_COLD_RESET: 'TARGET COLD RESET',
    TASK_REASSIGN: 'TASK REASSIGN',
    QUERY_TASK: 'QUERY TASK',
    QUERY_TASK_SET: 'QUERY TASK SET',
    I_T_NEXUS_RESET: 'I_T NEXUS RESET',
    QUERY_ASYNCHRONOUS_EVENT: 'QUERY ASYNCHRONOUS EVENT',
}
# fmt: on

# Task management responses, RFC 7143 11.6.1; 7: RFC 7144 6.2
FUNCTION_COMPLETE = 0
TASK_DOES_NOT_EXIST = 1
LUN_DOES_NOT_EXIST = 2
TASK_STILL_ALLEGIANT = 3
REASSIGNMENT_NOT_SUPPORTED = 4
FUNCTION_NOT_SUPPORTED = 5
FUNCTION_AUTHORIZATION_FAILED = 6
FUNCTION_SUCCEEDED = 7
FUNCTION_REJECTED = 255

# Logout, RFC 7143 11.14.1 and 11.15.1
CLOSE_SESSION = 0
CLOSE_CONNECTION = 1
REMOVE_CONNECTION_FOR_RECOVERY = 2

LOGOUT_SUCCESS = 0
LOGOUT_CID_NOT_FOUND = 1
LOGOUT_RECOVERY_NOT_SUPPORTED = 2
LOGOUT_CLEANUP_FAILED = 3

# Asynchronous events, RFC 7143 11.9.1
ASYNC_SCSI_EVENT = 0
ASYNC_LOGOUT_REQUESTED = 1
ASYNC_CONNECTION_DROPPED = 2
ASYNC_ALL_CONNECTIONS_DROPPED = 3
ASYNC_NEGOTIATION_REQUESTED = 4
ASYNC_TASKS_TERMINATED = 5
ASYNC_VENDOR = 255

# SNACK, RFC 7143 11.16.1
SNACK_DATA_OR_R2T = 0
SNACK_STATUS = 1
SNACK_DATA_ACK = 2
SNACK_R_DATA = 3

# Reject reasons, RFC 7143 11.17.1
REJECT_DATA_DIGEST_ERROR = 0x02
REJECT_SNACK = 0x03
REJECT_PROTOCOL_ERROR = 0x04
REJECT_COMMAND_NOT_SUPPORTED = 0x05
REJECT_TOO_MANY_IMMEDIATE = 0x06
REJECT_TASK_IN_PROGRESS = 0x07
REJECT_INVALID_DATA_ACK = 0x08
REJECT_INVALID_PDU_FIELD = 0x09
REJECT_LONG_OPERATION = 0x0A
REJECT_NEGOTIATION_RESET = 0x0B
REJECT_WAITING_FOR_LOGOUT = 0x0C

# fmt: off
REJECT_NAMES = {
    REJECT_DATA_DIGEST_ERROR: 'data digest error',
    REJECT_SNACK: 'SNACK reject',
    REJECT_PROTOCOL_ERROR: 'protocol error',
    REJECT_COMMAND_NOT_SUPPORTED: 'command not supported',
    REJECT_TOO_MANY_IMMEDIATE: 'too many immediate commands',
    REJECT_TASK_IN_PROGRESS: 'task in progress',
    REJECT_INVALID_DATA_ACK: 'invalid data acknowledgement',
    REJECT_INVALID_PDU_FIELD: 'invalid PDU field',
    REJECT_LONG_OPERATION: 'long operation, no target transfer tag left',
    REJECT_NEGOTIATION_RESET: 'negotiation reset',
    REJECT_WAITING_FOR_LOGOUT: 'waiting for logout',
}
# fmt: on

# Additional header segments, RFC 7143 11.2.2.1
AHS_EXTENDED_CDB = 1
AHS_BIDIRECTIONAL_READ_LENGTH = 2

# CHAP algorithms, RFC 7143 12.1.3 and the IANA registry 'PPP Authentication Algorithms'
CHAP_MD5 = 5
CHAP_SHA1 = 6
CHAP_SHA256 = 7
CHAP_SHA3_256 = 8

CHAP_NAMES = {
    CHAP_MD5: 'MD5',
    CHAP_SHA1: 'SHA-1',
    CHAP_SHA256: 'SHA-256',
    CHAP_SHA3_256: 'SHA3-256',
}
