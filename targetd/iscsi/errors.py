"""The two kinds of refusal at the iSCSI level: a login status (RFC 7143 11.13.5) and a Reject (RFC
7143 11.17). Pure."""

from typing import Any, Optional, Sequence, Tuple

from targetd.iscsi import const


class LoginFailure(Exception):
    """A login fails with this status; the connection is closed after the response was sent.

    status_class, status_detail: RFC 7143 11.13.5; why: one plain sentence for the log that names the
    rule.
    """

    def __init__(self, status_class: int, status_detail: int, why: str) -> None:
        super(LoginFailure, self).__init__(why)
        self.status_class = status_class
        self.status_detail = status_detail
        self.why = why


#: Why Data-Out is refused, RFC 7143 11.4.7.2; each has its own sense data
UNEXPECTED_DATA = 'unexpected unsolicited data'
WRONG_AMOUNT = 'incorrect amount of data'
LOST_DATA = 'data was lost'


class PduRejected(Exception):
    """A PDU is answered with Reject.

    reason: RFC 7143 11.17.1; why: one plain sentence for the log; fatal: True if the connection ends
    as well; numbered: True if the PDU used a CmdSN, which the Reject then answers. Framer adds
    `before` (the whole PDUs before this one) and `fields` (its header).
    """

    def __init__(self, reason: int, why: str, fatal: bool = False, numbered: bool = False) -> None:
        super(PduRejected, self).__init__(why)
        self.reason = reason
        self.why = why
        self.fatal = fatal
        self.numbered = numbered
        self.before: Sequence[Any] = ()
        self.fields: Optional[Tuple[Any, ...]] = None


class DataRefused(PduRejected):
    """Data-Out, or its announcement, does not obey what was negotiated. A command that was admitted
    ends with sense data.

    fault: UNEXPECTED_DATA, WRONG_AMOUNT or LOST_DATA.
    """

    def __init__(self, fault: str, why: str) -> None:
        super(DataRefused, self).__init__(const.REJECT_PROTOCOL_ERROR, why)
        self.fault = fault
