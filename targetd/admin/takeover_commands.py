"""The rows of the commands that move targets between servers (the setting unit-state): see commands. Pure."""

from targetd.admin.command_rows import Argument, command

_TARGET = Argument('target', 'text', True, 'the name of the target')

# fmt: off
TABLE = (
    command('takeover', 'serve the LUNs of a target that another server has served',
            'Make certain first that the other server does not write to the disks any more: order it into '
            'standby there ("targetdctl standby"), or switch it off. A disk with a fence (the setting '
            'fence, or an image in a Ceph cluster) refuses its writes; the answer says which LUNs have '
            'one. This server then holds the states of the LUNs (unit-state), with their reservations and '
            'registrations, and opens the disks. The other server, if it still runs, notices that within '
            'some seconds and ends its sessions.',
            arguments=[_TARGET], seconds=120),
    command('standby', 'stop to serve a target, so that another server can take it over',
            'Its initiators are asked to log out (their sessions end after stop-timeout), the LUNs are '
            'flushed, and their states (unit-state) released. From then on logins are answered with "service '
            'unavailable", which initiators retry, until "targetdctl takeover" is run here or on the other '
            'server. A restart does not change that.',
            arguments=[_TARGET], seconds=300),
)
# fmt: on
