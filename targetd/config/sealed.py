"""Sealed configurations: each secret of a CHAP account is replaced by a label.

A label identifies its secret without revealing it: it is a keyed digest (HMAC-SHA-256). Two accounts
have the same label if, and only if, they have the same secret, so that configurations can still be
compared. The master and its workers have only labels; see master.vault.
"""

import hashlib
import hmac

KEY_BYTES = 32
LABEL_BYTES = 32


def label(key, secret):
    """Return the label (bytes) of a secret (str). key: KEY_BYTES random bytes of this server."""
    return hmac.new(key, secret.encode('utf-8'), hashlib.sha256).digest()


def seal(configuration, key):
    """Return (the Configuration with labels, as hex digits, in place of the secrets; {label: secret
    in UTF-8})."""
    secrets = {}

    def sealed(account):
        if account is None:
            return None
        mark = label(key, account[1])
        secrets[mark] = account[1].encode('utf-8')
        return (account[0], mark.hex()) + tuple(account[2:])

    def all_sealed(accounts):
        return tuple(sealed(account) for account in accounts)

    server = configuration.server._replace(
        incomingdiscoveryuser=all_sealed(configuration.server.incomingdiscoveryuser),
        outgoingdiscoveryuser=sealed(configuration.server.outgoingdiscoveryuser),
    )
    targets = type(configuration.targets)(
        (
            name,
            target._replace(
                accounts=all_sealed(target.accounts),
                former_incominguser=all_sealed(target.former_incominguser),
                outgoing=sealed(target.outgoing),
            ),
        )
        for name, target in configuration.targets.items()
    )
    return configuration._replace(server=server, targets=targets), secrets
