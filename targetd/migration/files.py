"""Reads the files of another target, and says what kind of file each is.

May import migration.imported. Decoding, and the kind of a file, depend on its content and never on its
name.
"""

import codecs
import glob
import json
import os
import re

from targetd.config import pasted
from targetd.migration.imported import Place, Unreadable

#: Byte order mark -> encoding.
MARKS = (
    (codecs.BOM_UTF8, 'utf-8'),
    (codecs.BOM_UTF16_LE, 'utf-16-le'),
    (codecs.BOM_UTF16_BE, 'utf-16-be'),
)


def read_file(path):
    """The text of a file, whatever its encoding. Raises Unreadable."""
    try:
        with open(path, 'rb') as f:
            content = f.read()
    except OSError as e:
        raise Unreadable(
            Place(path, None),
            'cannot be read: %s' % e.strerror,
            'correct the path or its permissions',
        )
    return decoded(content, path)


def decoded(content, path):
    """The text of the bytes of a file, with \\n at the ends of lines. Raises Unreadable."""
    encoding = 'utf-8'
    for mark, its_encoding in MARKS:
        if content.startswith(mark):
            content, encoding = content[len(mark) :], its_encoding
            break
    else:
        # UTF-16 without a mark: every other byte of ASCII text is 0
        if content[1:2] == b'\0' and content[:1] != b'\0':
            encoding = 'utf-16-le'
        elif content[:1] == b'\0':
            encoding = 'utf-16-be'
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as e:
        if encoding != 'utf-8':
            line = content.count(b'\n', 0, e.start) + 1
            raise Unreadable(
                Place(path, line),
                'this line is not %s' % encoding.upper(),
                'save the file as UTF-8',
            )
        text = content.decode('latin-1')
    if '\0' in text:
        line = text.count('\n', 0, text.index('\0')) + 1
        raise Unreadable(
            Place(path, line), 'this is not a text file', 'pass a configuration file, not a disk'
        )
    return text.replace('\r\n', '\n')


def included(pattern, directory):
    """The files that an include means, in order; [] if there is none. A directory means its files."""
    path = os.path.join(directory, pattern)
    if glob.has_magic(path):
        return sorted(each for each in glob.glob(path) if os.path.isfile(each))
    if os.path.isdir(path):
        return sorted(each for each in glob.glob(os.path.join(path, '*')) if os.path.isfile(each))
    return [path] if os.path.exists(path) else []


# -- the kind of a file ----------------------------------------------------------------------------


def kind_of(text, path):
    """The kind of a file, a word of sources.FORMATS. Raises Unreadable."""
    start = text.lstrip()
    if not start:
        raise Unreadable(
            Place(path, None), 'the file is empty', 'pass the configuration of a target'
        )
    if start.startswith('<') and re.search('<iSCSITargetServiceSetting|<iSCSITarget', text):
        return 'microsoft'
    if start.startswith('{') or start.startswith(('//', '/*')) and '{' in start[:4000]:
        return _kind_of_json(text, path)
    if re.search(r'^\s*\[(server|target\s|portal-group\s)', text, re.MULTILINE | re.IGNORECASE):
        return 'targetd'
    for kind, pattern in _SIGNS:
        if re.search(pattern, text, re.MULTILINE | re.IGNORECASE):
            return kind
    if pasted.is_of_other_targetd(text):
        raise Unreadable(Place(path, None), pasted.OTHER_TARGETD, pasted.OTHER_REMEDY)
    raise Unreadable(
        Place(path, None),
        'the format is not known',
        'pass the configuration of tgt, LIO, SCST, IET, ctld, istgt, ceph-iscsi or Microsoft, or write '
        '--format NAME',
    )


#: (kind, regular expression that only files of this kind contain), in the order of the tests.
_SIGNS = (
    ('tgt', r'^\s*<target\s|^\s*default-driver\s|^\s*include\s'),
    ('scst', r'^\s*(HANDLER|TARGET_DRIVER|DEVICE_GROUP)\s'),
    ('istgt', r'^\s*\[(Global|LogicalUnit\d|PortalGroup\d|InitiatorGroup\d|UnitControl)'),
    ('ctl', r'^\s*(target|portal-group|auth-group|lun)\b[^{\n]*\{'),
    ('iet', r'^\s*Target\s+\S+\s*$'),
)


def _kind_of_json(text, path):
    content = parse_json(text, path)
    if not isinstance(content, dict):
        raise Unreadable(Place(path, None), 'this JSON is not an object', 'pass saveconfig.json')
    if 'storage_objects' in content or 'fabric_modules' in content:
        return 'lio'
    if 'gateways' in content or 'discovery_auth' in content:
        return 'ceph'
    raise Unreadable(
        Place(path, None),
        'this JSON has neither storage_objects (LIO) nor gateways (ceph-iscsi)',
        'pass saveconfig.json or the gateway.conf object',
    )


def parse_json(text, path):
    """The value of a JSON file. Raises Unreadable with the line of the mistake."""
    try:
        return json.loads(text)
    except ValueError as e:
        line = getattr(e, 'lineno', None)
        near = text.split('\n')[line - 1].strip() if line else ''
        is_comment = near.startswith(('#', '//', '/*'))
        is_half = line is not None and e.pos >= len(text.rstrip())
        raise Unreadable(
            Place(path, line),
            'the file ends in the middle'
            if is_half
            else 'JSON has no comments'
            if is_comment
            else 'this is not JSON: %s' % getattr(e, 'msg', e),
            'copy the whole file'
            if is_half
            else 'remove the line'
            if is_comment
            else 'correct the file, or save it again with the program that wrote it',
        )
