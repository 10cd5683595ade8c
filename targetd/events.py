"""Events that the setting on-event passes to a command: emitted where they happen, in the master, heard by
the one listener (master.event_commands). Without a listener nothing happens."""

#: kind -> what it means, for the manual.
KINDS = {
    'login': 'an initiator has logged in to a target',
    'refusal': 'a login was refused',
    'disk_error': 'a medium has reported an error; its LUN is degraded',
    'health': 'a disk behind a LUN predicts its failure, is too hot, or is well again',
    'failed': 'data may be lost; the LUN refuses writes until "targetdctl acknowledge"',
    'slowed': 'a LUN is slowed down because another one misses its latency-target, or is so no longer',
    'space_low': 'a thin provisioning threshold is reached',
    'worker_died': 'a worker process died unexpectedly',
    'taken_over': 'another server has taken over a LUN with unit-state, which is not served here any more',
    'access': 'the state of a portal group has changed (optimized, standby, …)',
}

_listeners = []


def listen(function):
    """function(kind, words) is called for each event from now on, instead of any earlier one; None: no
    function."""
    del _listeners[:]
    if function is not None:
        _listeners.append(function)


def emit(kind, **words):
    """An event has happened. kind: of KINDS; words: {name: text or number}, of the details."""
    for function in _listeners:
        function(kind, words)
