"""The table of clauses of the standards and their tests: tests/CLAUSES.md is rendered from the
`clause` markers in tests/.

python3 tests/clauses.py          print the table
python3 tests/clauses.py write    write it
"""

import ast
import collections
import os
import re
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
RFC = 'RFC 7143 '
TABLE = os.path.join(HERE, 'CLAUSES.md')

#: Clause -> what it is about, in a few words; RFC 7143's without its name. A marker may name only
#: what stands here.
SUBJECTS = {
    '4.2.2': 'numbering of commands, responses and data',
    '4.2.2.1': 'command numbering, window, immediate commands',
    '4.2.2.2': 'response numbering and acknowledgement',
    '4.2.3': 'task management',
    '4.2.5.1': 'command connection allegiance',
    '4.2.6': 'end of a connection',
    '4.2.7': 'iSCSI names',
    '4.3': 'session types',
    '4.4.3': 'nexus, session, ISID',
    '6.1': 'text format',
    '6.2': 'text negotiation',
    '6.2.1': 'list negotiation',
    '6.2.2': 'simple-value negotiation',
    '6.3': 'login phase',
    '6.3.1': 'login phase: start',
    '6.3.2': 'login phase: security',
    '6.3.3': 'login phase: operational',
    '6.3.4': 'connection reinstatement',
    '6.3.5': 'session reinstatement and closure',
    '6.4': 'negotiation in full feature phase',
    '7.2.1': 'retry of a command',
    '7.2.2': 'allegiance reassignment',
    '7.5': 'Time2Wait and Time2Retain',
    '7.6': 'implicit termination of tasks',
    '7.8': 'digest errors',
    '7.9': 'sequence errors',
    '7.12': 'negotiation failures',
    '7.13': 'protocol errors',
    '7.14': 'connection failures',
    '9.1': 'security: what an attacker on the wire can do',
    '9.2.1': 'CHAP: considerations',
    '11.1': 'padding and reserved fields',
    '11.2.1.1': 'I bit',
    '11.2.1.2': 'opcode',
    '11.2.1.8': 'initiator task tag',
    '11.2.2': 'additional header segments',
    '11.2.4': 'data segment and padding',
    '11.3': 'SCSI Command',
    '11.4.5': 'residual counts',
    '11.4.7.2': 'sense data of iSCSI errors',
    '11.5': 'Task Management Request',
    '11.6': 'Task Management Response',
    '11.6.1': 'Task Management Response: response',
    '11.7': 'SCSI Data-Out and Data-In',
    '11.8': 'Ready To Transfer',
    '11.9': 'Asynchronous Message',
    '11.10': 'Text Request',
    '11.11': 'Text Response',
    '11.11.1': 'Text Response: F bit',
    '11.12': 'Login Request',
    '11.12.4': 'Login Request: versions',
    '11.13': 'Login Response',
    '11.12.10': 'Login Request: parameters',
    '11.13.5': 'Login Response: status',
    '11.14': 'Logout Request',
    '11.15': 'Logout Response',
    '11.16': 'SNACK Request',
    '11.17': 'Reject',
    '11.18': 'NOP-Out',
    '11.19': 'NOP-In',
    '12.1': 'AuthMethod',
    '12.1.3': 'CHAP',
    '13': 'text keys: scope, range, default',
    '13.1': 'HeaderDigest and DataDigest',
    '13.2': 'MaxConnections',
    '13.3': 'SendTargets',
    '13.5': 'InitiatorName',
    '13.6': 'TargetAlias',
    '13.8': 'TargetAddress',
    '13.9': 'TargetPortalGroupTag',
    '13.10': 'InitialR2T',
    '13.11': 'ImmediateData',
    '13.12': 'MaxRecvDataSegmentLength',
    '13.14': 'FirstBurstLength',
    '13.16': 'DefaultTime2Retain',
    '13.17': 'MaxOutstandingR2T',
    '13.20': 'ErrorRecoveryLevel',
    '13.21': 'SessionType',
    'C': 'SendTargets operation',
    'RFC 7144 6.1': 'further task management functions',
    'SAM-5 5.14': 'unit attention conditions',
    'SAM-5 8.6': 'task attributes',
    'SBC-3 5.2': 'COMPARE AND WRITE',
    'SBC-3 5.3': 'FORMAT UNIT',
    'SBC-3 5.4': 'GET LBA STATUS',
    'SBC-3 5.10': 'PREVENT ALLOW MEDIUM REMOVAL',
    'SBC-3 5.11': 'READ(10)',
    'SBC-3 5.15': 'READ CAPACITY(10)',
    'SBC-3 5.16': 'READ CAPACITY(16)',
    'SBC-3 5.18': 'READ DEFECT DATA(12)',
    'SBC-3 5.24': 'SANITIZE',
    'SBC-3 5.25': 'START STOP UNIT',
    'SBC-3 5.26': 'SYNCHRONIZE CACHE(10)',
    'SBC-3 5.28': 'UNMAP',
    'SBC-3 5.29': 'VERIFY(10)',
    'SBC-3 5.33': 'WRITE(10)',
    'SBC-3 5.37': 'WRITE AND VERIFY(10)',
    'SBC-3 5.43': 'WRITE SAME(10)',
    'SBC-3 5.44': 'WRITE SAME(16)',
    'SPC-4 6.4': 'EXTENDED COPY(LID4)',
    'SPC-4 6.5': 'EXTENDED COPY(LID1)',
    'SPC-4 6.6': 'INQUIRY',
    'SPC-4 6.7': 'LOG SELECT',
    'SPC-4 6.8': 'LOG SENSE',
    'SPC-4 6.11': 'MODE SELECT(6)',
    'SPC-4 6.12': 'MODE SELECT(10)',
    'SPC-4 6.13': 'MODE SENSE(6)',
    'SPC-4 6.14': 'MODE SENSE(10)',
    'SPC-4 6.15': 'PERSISTENT RESERVE IN',
    'SPC-4 6.16': 'PERSISTENT RESERVE OUT',
    'SPC-4 6.33': 'REPORT LUNS',
    'SPC-4 6.35': 'REPORT SUPPORTED OPERATION CODES',
    'SPC-4 6.36': 'REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS',
    'SPC-4 6.37': 'REPORT TARGET PORT GROUPS',
    'SPC-4 6.39': 'REQUEST SENSE',
    'SPC-4 6.45': 'SET TARGET PORT GROUPS',
    'SPC-4 7.3.6': 'General Statistics and Performance log page',
}


def marked(source):
    """[(test's name, [clause, …])] of a test module's text, in its order."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and node.name.startswith('test_'):
            marks = [
                each
                for each in node.decorator_list
                if isinstance(each, ast.Call)
                and isinstance(each.func, ast.Attribute)
                and each.func.attr == 'clause'
            ]
            if marks:
                found.append(
                    (node.name, [ast.literal_eval(word) for mark in marks for word in mark.args])
                )
    return found


def collect(root=HERE):
    """{clause: [(path below tests/, test), …]} of every test module."""
    table = collections.defaultdict(list)
    for directory, _, files in sorted(os.walk(root)):
        for name in sorted(files):
            if name.startswith('test_') and name.endswith('.py'):
                path = os.path.join(directory, name)
                with open(path, encoding='utf-8') as file:
                    for test, clauses in marked(file.read()):
                        for clause in clauses:
                            table[clause].append((os.path.relpath(path, root), test))
    return dict(table)


def order(clause):
    """The key to sort by: the standard, then each number as a number, appendices last."""
    standard, _, numbers = clause.rpartition(' ')
    return standard, [
        (not part.isdigit(), int(part) if part.isdigit() else 0, part)
        for part in re.split(r'\.', numbers)
    ]


def subject(clause):
    """What it is about. Raises KeyError."""
    return SUBJECTS[clause[len(RFC) :] if clause.startswith(RFC) else clause]


def render(table):
    """The text of CLAUSES.md."""
    lines = [
        '# Clauses and their tests',
        '',
        'Generated from the `clause` markers by `python3 tests/clauses.py write`; a unit test checks '
        'that it is current. Paths are below `tests/`.',
        '',
        '| Clause | Subject | Tests |',
        '|---|---|---|',
    ]
    for clause in sorted(table, key=order):
        tests = '<br>'.join('%s::%s' % place for place in table[clause])
        lines.append('| %s | %s | %s |' % (clause, subject(clause), tests))
    return '\n'.join(lines) + '\n'


def main(arguments):
    text = render(collect())
    if arguments == ['write']:
        with open(TABLE, 'w', encoding='utf-8') as file:
            file.write(text)
    else:
        sys.stdout.write(text)


if __name__ == '__main__':
    main(sys.argv[1:])
