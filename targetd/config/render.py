"""Renders the settings table as the sample file, as sections of the manual pages and as the text of
--help-settings.

May import config. `python3 -m targetd.config.render WHAT` prints one of OUTPUTS, `... write` writes
all of them into the source tree. The frames of the manual pages are man/*.in, in which a line
`@settings SECTION@` is replaced by the settings of a section. tests/unit/test_rendered_files.py
compares the committed files with the rendered ones.
"""

import os
import re
import sys
import textwrap

import targetd
from targetd.config import kinds, settings

TREE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
WIDTH = 100
SECTIONS = ('server', 'portal-group', 'target', 'lun')


def default_text(row):
    """The default as it would be written, or None if the setting has no default."""
    nothing = (
        row.default in ('', ()) or row.default is None and not isinstance(row.kind, kinds.Auto)
    )
    return None if nothing else row.kind.show(row.default)


def meant(name):
    """'; did you mean X?' or ''."""
    near = kinds.nearest(name, [row.name for row in settings.TABLE])
    return '; did you mean %s?' % near if near else ''


# -- the sample file -------------------------------------------------------------------------------

SAMPLE_HEAD = '''\
# targetd.conf - the configuration of targetd, an iSCSI target (storage server)
#
# This sample contains every setting. A line that begins with "#" is a comment. If a setting directly
# follows the "#", its value is the default or, if it is marked so, an example: remove the "#" to set
# it. See targetd.conf(5). `targetd -t` checks this file and explains what would be served to whom;
# `targetdctl reload` or SIGHUP applies changes. Sessions that are not affected by a change continue
# undisturbed.
#
# Blanks separate words, commas separate the items of a list. Enclose a word that contains a blank or
# a comma, or begins with # or a quote, in "double" or 'single' quotes, and double the enclosing
# quote inside the word. Nothing else is special.

# Further files with [portal-group ...] and [target ...] sections; wildcards may match no file.
#include = /etc/targetd.d/*.conf        # an example
'''

SAMPLE_TARGET = '''
# A complete target: one disk, for one network, with CHAP. Remove the leading "#" and change the
# values.
#
#[target iqn.2026-11.com.example:erp]
#alias = ERP data
#initiator-address = 10.0.5.0/24
#incominguser = erp 12-to-16-chars
  #[[lun 0]]
  #backing-store = /srv/images/erp.img
  #size = 200G
  #thin = yes

# All settings of a target and its LUNs, with their defaults:
'''


def _commented(text, indent=''):
    return ''.join('%s# %s\n' % (indent, line) for line in textwrap.wrap(text, WIDTH))


def _sample_row(row, hide, indent=''):
    text = _commented(row.help + (' ' + row.more if row.more else ''), indent)
    text += _commented(
        '(%s; a change takes effect %s)' % (row.kind.says, settings.WHEN[row.live]), indent
    )
    default = default_text(row)
    value = '%s = %s' % (row.name, row.example if default is None else default)
    mark = '        # an example' if default is None and hide else ''
    return '%s%s%s%s%s\n' % (text, indent, '#' if hide else '', value, mark)


def sample():
    """The text of etc/targetd.conf: a valid configuration that serves nothing."""
    parts = [SAMPLE_HEAD, '\n[server]\n']
    parts += ['\n' + _sample_row(row, True) for row in settings.of('server')]
    parts += ['\n[portal-group 1]\n'] + [
        '\n' + _sample_row(row, row.name != 'portal') for row in settings.of('portal-group')
    ]
    parts += [SAMPLE_TARGET, '#\n#[target iqn.2026-11.com.example:disk1]\n']
    parts += ['\n' + _sample_row(row, True) for row in settings.of('target')]
    parts += [
        '\n# The following settings may also be written in the target, for all its LUNs, unless '
        'they are marked "Of one LUN only".\n',
        '  #[[lun 0]]\n',
    ]
    for row in settings.of('lun'):
        only = (
            ''
            if row.shared or row.name in ('backing-store', 'direct-store')
            else '  # Of one LUN only.\n'
        )
        parts.append('\n' + only + _sample_row(row, True, '  '))
    return ''.join(parts)


# -- the manual pages ------------------------------------------------------------------------------


def roff(text):
    """The text with the characters escaped that roff would interpret."""
    text = text.replace('\\', '\\e').replace('-', '\\-').replace("'", '\\(aq').replace('"', '\\(dq')
    text = re.sub(r'[^\x00-\x7f]', lambda match: '\\[u%04X]' % ord(match.group()), text)
    return '\n'.join('\\&' + line if line.startswith('.') else line for line in text.split('\n'))


def _man_row(row):
    default = default_text(row)
    lines = ['.TP', '.BR %s " = value"' % roff(row.name), roff(row.help)]
    if row.more:
        lines.append(roff(row.more))
    lines.append('Value: %s.' % roff(row.kind.says))
    lines.append('Default: %s.' % ('none' if default is None else '\\fB%s\\fR' % roff(default)))
    if row.example:
        lines.append('Example: \\fB%s = %s\\fR.' % (roff(row.name), roff(row.example)))
    lines.append('A change takes effect %s.' % settings.WHEN[row.live])
    return '\n'.join(lines) + '\n'


def settings_of(section):
    """The settings of one kind of section in roff."""
    return ''.join(_man_row(row) for row in settings.of(section))


def _framed(name):
    with open(os.path.join(TREE, 'man', name + '.in'), encoding='utf-8') as f:
        frame = f.read()
    frame = frame.replace('@version@', targetd.__version__)
    return re.sub(
        r'^@settings ([a-z-]+)@\n',
        lambda match: settings_of(match.group(1)),
        frame,
        flags=re.MULTILINE,
    )


# -- --help-settings -------------------------------------------------------------------------------


def plain_help(name=''):
    """The text of --help-settings: every setting, or the one of this name in every section that has
    it; '' if there is none."""
    wanted = name.lower().replace('_', '-')
    parts = []
    for section in SECTIONS:
        rows = [row for row in settings.of(section) if not wanted or row.name.lower() == wanted]
        if rows:
            parts.append(settings.HEADINGS[section] + '\n\n')
        parts += [_plain_row(row) for row in rows]
    return ''.join(parts)


def _plain_row(row):
    default = default_text(row)
    facts = [
        row.help + (' ' + row.more if row.more else ''),
        'Value: %s.' % row.kind.says,
        'Default: %s.' % ('none' if default is None else default),
    ]
    if row.example:
        facts.append('Example: %s = %s' % (row.name, row.example))
    facts.append('A change takes effect %s.' % settings.WHEN[row.live])
    indented = '\n'.join(
        textwrap.fill(fact, 78, initial_indent='    ', subsequent_indent='    ') for fact in facts
    )
    return '%s\n%s\n\n' % (row.name, indented)


# -- the command -----------------------------------------------------------------------------------

#: What can be rendered: (path in the source tree, function).
OUTPUTS = {
    'sample': ('etc/targetd.conf', sample),
    'man8': ('man/targetd.8', lambda: _framed('targetd.8')),
    'man5': ('man/targetd.conf.5', lambda: _framed('targetd.conf.5')),
}


def main(arguments):
    """Print one of OUTPUTS, or write all of them; returns the exit code."""
    if arguments == ['write']:
        for path, function in OUTPUTS.values():
            with open(os.path.join(TREE, path), 'w', encoding='utf-8') as f:
                f.write(function())
        return 0
    if len(arguments) == 1 and arguments[0] in OUTPUTS:
        sys.stdout.write(OUTPUTS[arguments[0]][1]())
        return 0
    sys.stderr.write(
        'usage: python3 -m targetd.config.render %s|write\n' % '|'.join(sorted(OUTPUTS))
    )
    return 2


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
