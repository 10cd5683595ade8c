"""The two ways in which iSCSI itself refuses: a login status and a Reject (RFC 7143 11.13.5,
11.17). Pure."""


class LoginFailure(Exception):
    """The login ends with this status; the connection closes after the response is sent.

    status_class, status_detail: RFC 7143 11.13.5; why: one plain sentence for the log, naming the
    rule.
    """

    def __init__(self, status_class, status_detail, why):
        super(LoginFailure, self).__init__(why)
        self.status_class = status_class
        self.status_detail = status_detail
        self.why = why


class PduRejected(Exception):
    """The PDU is answered with Reject. reason: RFC 7143 11.17.1; why: for the log; fatal: the
    connection ends as well; numbered: the PDU took a CmdSN that the Reject answers."""

    def __init__(self, reason, why, fatal=False, numbered=False):
        super(PduRejected, self).__init__(why)
        self.reason = reason
        self.why = why
        self.fatal = fatal
        self.numbered = numbered
