"""The commands that targetdctl executes itself, without a server.

May import base, host.disks, host.in_use, host.signatures, migration and admin. A command is a function
of the parsed arguments that returns a reply as in admin.commands; it may have the keys `text` (printed
as it is), `messages` (lines for standard error) and `exit_code` too.
"""

from targetd.host import disks, in_use, signatures


def answer_disks(parsed):
    """The reply of `disks`: every disk with a medium, its persistent name for a backing-store, its
    contents and its users on this host."""
    rows = []
    for disk in disks.list_disks():
        if disk.transport == 'ram':
            continue
        row = dict(disk._asdict())
        row['model'] = ' '.join(part for part in (disk.vendor, disk.model) if part)
        row['used_by'] = in_use.find_users(disk.path)
        row['contents'] = contents(disk.path)
        row['backing_store'] = disks.persistent_name(disk)
        rows.append(row)
    return {'ok': True, 'rows': rows}


def answer_import(parsed):
    """The reply of `import`."""
    # only here: reading a configuration is slow to load, and other commands do not need it
    from targetd.migration import command

    outcome = command.run_import(
        parsed.files, parsed.format, parsed.output, parsed.force, parsed.running
    )
    return dict(outcome._asdict(), ok=outcome.exit_code == 0)


def contents(path):
    """Descriptions of the signatures on a disk; [] if there is none or this user may not read it."""
    try:
        return [signatures.one_line(signature) for signature in signatures.device_signatures(path)]
    except OSError:
        return []


#: Words of a local command -> function of the parsed arguments that returns the reply. Complete for every
#: row of commands.TABLE that is local; a test compares them.
ANSWERS = {'disks': answer_disks, 'import': answer_import}
