"""Summary of a run with real clients: which tests of iscsi-test-cu were skipped, and why (CUnit
counts a skip as passed)."""

import clients


def pytest_terminal_summary(terminalreporter):
    if clients.SUMMARY:
        terminalreporter.section('iscsi-test-cu')
        for line in clients.SUMMARY:
            terminalreporter.write_line(line)
