"""The commands that need no server: what they answer is on this host.

May import base, host.disks, host.in_use, host.signatures and admin.
"""

from targetd.host import disks, in_use, signatures


def answer_disks():
    """The rows of `disks`: every disk with a medium, how it may be named in a backing-store, and
    who uses it."""
    rows = []
    for disk in disks.list_disks():
        if disk.transport == 'ram':
            continue
        row = dict(disk._asdict())
        row['model'] = ' '.join(part for part in (disk.vendor, disk.model) if part)
        row['used_by'] = in_use.users(disk.path)
        row['contents'] = contents(disk.path)
        row['backing_store'] = disks.lasting_name(disk)
        rows.append(row)
    return rows


def contents(path):
    """What is on a disk, by name; [] if nothing is known or this user may not look."""
    try:
        return [signatures.one_line(signature) for signature in signatures.on_device(path)]
    except OSError:
        return []


#: words -> function without arguments that gives the rows
ANSWERS = {'disks': answer_disks}
