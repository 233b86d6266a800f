"""diagnose.py as people run it, what it found, and a log that is written in a line."""
import csv
import io
import json
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np

import diagnose
from diagnosis.rules import SEVERITIES

LOGS = Path(__file__).resolve().parent / 'logs'
DIVERGED = ['--vocab=1024', '--total=300000', '--n_actions=16']


def run(*args):
    """Exit code, what it printed, what it said on stderr."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = diagnose.main([str(a) for a in args])
        except SystemExit as e:
            code = e.code
    return code, ' '.join(out.getvalue().split()), err.getvalue()


def no_constant(constant):
    raise AssertionError(f'{constant} is no JSON')


def report(*args):
    """Exit code and the report of --json; constants such as NaN, that no JSON has, are refused."""
    code, out, _ = run(*args, '--json')
    return code, json.loads(out, parse_constant=no_constant)


def finding(found, rule):
    return next(f for f in found['findings'] if f['rule'] == rule)


def rules(found, least='info'):
    bad_enough = SEVERITIES[SEVERITIES.index(least):]
    return {f['rule'] for f in found['findings'] if f['severity'] in bad_enough}


def write_csv(path, columns):
    with open(path, 'w', newline='') as f:
        csv.writer(f).writerows([columns.keys(), *zip(*columns.values())])
    return path


def falling(n=200, every=10, noise=0.05, start=7.0, seed=0):
    rng, rows = np.random.default_rng(seed), np.arange(n)
    curve = 2 + (start - 2) * np.exp(-rows / 30)
    return dict(step=rows * every,
                loss=curve * np.exp(noise * rng.standard_normal(n) * (rows > 0)),
                lr=np.full(n, 1e-3), val_loss=np.full(n, 2.5))


def read_cells(path):
    """Header and rows of one of the real logs, as texts."""
    lines = [x for x in path.read_text().splitlines() if x and not x.startswith('|-')]
    rows = [(x.strip('|').split('|') if '|' in x else x.split(',')) for x in lines]
    rows = [[c.strip() for c in row] for row in rows]
    return rows[0], rows[1:]


def as_json_lines(header, rows):
    records = [{h: json.loads(c) for h, c in zip(header, r) if c} for r in rows]
    return '\n'.join(map(json.dumps, records)) + '\n'


def as_csv(header, rows, end='\n'):
    return end.join(','.join(r) for r in [header, *rows]) + end
