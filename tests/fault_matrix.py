"""The fault matrix: `make faults` runs the tests marked `row(n)` alone, and writes faults.json."""

import json
import os
import time
from pathlib import Path

import pytest
from launch import MEASURED

ROWS = {}  # row -> (survived, tried)
BAD_INPUT = {
    22,
    23,
    24,
    25,
    27,
    29,
    30,
    36,
    37,
    38,
    41,
    42,
}  # rows of something bad that is refused: file, found, expected, exit code
started = time.time()


def pytest_addoption(parser):
    parser.addoption('--kills', type=int, default=3, help='SIGKILLs at random times')
    parser.addoption(
        '--faults_only', action='store_true', help='no tests but those of the fault matrix'
    )
    parser.addoption(
        '--faults_json', default='', help='where to write what became of the fault matrix'
    )


def pytest_collection_modifyitems(config, items):
    if config.getoption('--faults_only'):
        items[:] = [item for item in items if item.get_closest_marker('row')]


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    if report.when == 'call' or report.outcome == 'failed':
        rows = {n for mark in item.iter_markers('row') for n in mark.args}
        if rows & BAD_INPUT:
            for name, more in (
                ('bad_inputs', 1),
                ('bad_inputs_refused_clearly', report.outcome == 'passed'),
            ):
                MEASURED[name] = MEASURED.get(name, 0) + more
        if rows:
            for n in rows:
                survived, tried = ROWS.get(n, (0, 0))
                ROWS[n] = (survived + (report.outcome == 'passed'), tried + 1)


@pytest.fixture(scope='session')
def figures():
    return MEASURED


def pytest_sessionfinish(session):
    path = session.config.getoption('--faults_json')
    if path:
        survived = [n for n, (good, tried) in ROWS.items() if good == tried]
        result = dict(
            rows=48,
            rows_tried=len(ROWS),
            rows_survived=len(survived),
            cases_tried=sum(t for _, t in ROWS.values()),
            cases_survived=sum(s for s, _ in ROWS.values()),
            **MEASURED,
            minutes=round((time.time() - started) / 60, 2),
            cores=os.cpu_count(),
            by_row={n: ROWS[n] for n in sorted(ROWS)},
        )
        Path(path).write_text(json.dumps(result, indent=1) + '\n')
        cases = f'{result["cases_survived"]} of {result["cases_tried"]} cases'
        print(f'\n{path}: {cases}, {len(survived)} of {len(ROWS)} rows survived')
