"""The addresses of this host's interfaces, and which program listens on a TCP port, from psutil.

May import base and host. A single-file archive cannot contain psutil, which is compiled; without it
targetd serves all the same, and WITHOUT_PSUTIL says what is missing.
"""

from targetd.host.roots import ROOTS, read_text

try:
    import psutil
except ImportError:
    psutil = None

#: What the log says once, at the start, if psutil cannot be imported.
WITHOUT_PSUTIL = (
    'the Python package psutil is not installed: messages do not name the addresses of this host or the '
    'program that uses a port, a reload does not find out that another program uses a new port before it is '
    'opened, and portals on every address (0.0.0.0) are not registered at iSNS servers; '
    'install it (Debian: python3-psutil)'
)


def own_addresses(family):
    """The numeric addresses of this host's interfaces, sorted; IPv6 addresses with their scope. family:
    socket.AF_INET or AF_INET6. Empty without psutil."""
    found = []
    for addresses in psutil.net_if_addrs().values() if psutil else ():
        found.extend(a.address for a in addresses if a.family == family)
    return sorted(set(found))


def listeners(port):
    """[(numeric address, process id)] of the processes that listen on this TCP port; only root sees those of
    other users. Empty without psutil."""
    if psutil is None:
        return []
    try:
        connections = psutil.net_connections('tcp')
    except (psutil.Error, OSError, RuntimeError):
        return []
    return [
        (connection.laddr[0], connection.pid)
        for connection in connections
        if connection.status == psutil.CONN_LISTEN
        and connection.laddr[1] == port
        and connection.pid
    ]


def program_of(pid, roots=ROOTS):
    """The name of a process's program."""
    if psutil is not None and roots.proc == ROOTS.proc:
        try:
            return psutil.Process(int(pid)).name()
        except psutil.Error:
            pass
    return read_text(roots.proc, str(pid), 'comm') or 'unknown program'
