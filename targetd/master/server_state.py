"""What the parts of the master share about the server as a whole."""

import time


class ServerState(object):
    """The configuration in force, and what the server is doing.

    path: of the configuration file, or None; configuration: config.model.Configuration (sealed, see
    config.sealed), replaced whole by a reload, with its vault (master.vault.Vault); started: wall
    clock, seconds; is_stopping: True from the start of the ordered stop; changing: {target name:
    [(old Unit, new Unit or None)]} of targets whose units a reload replaces when their sessions have
    ended (they refuse logins until then).
    """

    def __init__(self, path, configuration, vault=None):
        self.path = path
        self.configuration = configuration
        self.vault = vault
        self.started = time.time()
        self.is_stopping = False
        self.changing = {}
