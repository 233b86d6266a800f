"""
How often is diagnose.py right? Simulated logs of which the truth is known; prints the table that
stands in the README.

    python tests/diagnosis/simulate.py          # 200 logs of each kind, 15 seconds
"""
import math
import sys
from pathlib import Path

import numpy as np

if __name__ == '__main__':  # pytest knows where the code is
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from diagnosis import rules
from diagnosis.log import Log

VOCAB, CHANCE = 1024, math.log(1024)


def healthy(rng, spike=None, restarts=None):
    """A run that learns: a power law from chance down to 5%..60% of it, with noise of 2%..30%,
    sometimes with heavy tails; a restart that does some rows again with a bump; one spike of up to
    x3 that recovers. Columns by name."""
    n, every = int(10 ** rng.uniform(2, 3.7)), int(rng.choice([1, 10, 50]))
    step = np.arange(n) * every
    floor, half = CHANCE * rng.uniform(0.05, 0.6), n * 10 ** rng.uniform(-2.5, -0.7)
    curve = floor + (CHANCE - floor) * (1 + np.arange(n) / half) ** -rng.uniform(0.5, 2)
    noise = 10 ** rng.uniform(-1.7, -0.5)
    jitter = rng.standard_normal(n) if rng.random() < 0.7 else rng.standard_t(5, n) * 0.77
    quiet = np.minimum(1, np.arange(n) / 20)  # at the start, as untrained models are
    loss = curve * np.exp(noise * jitter * quiet)
    loss[0] = CHANCE + rng.uniform(0, 0.3)
    if rng.random() < 0.5 if spike is None else spike:
        at, length = int(rng.integers(n // 10, n)), int(rng.integers(1, max(2, n // 50)))
        rows = np.arange(len(loss[at:at + length]))
        loss[at:at + length] *= 1 + rng.uniform(0.5, 2) * np.exp(-rows / max(1, length / 2))
    cosine = 0.55 + 0.45 * np.cos(np.pi * np.arange(n) / n)
    lr = 1e-3 * np.minimum(1, (1 + np.arange(n)) / (1 + n // 20)) * cosine
    for _ in range(int(rng.integers(0, 3)) if restarts is None else restarts):
        at, back = int(rng.integers(n // 5, n)), int(rng.integers(1, max(2, n // 20)))
        again = np.arange(at - back, at)
        bump = 1 + rng.uniform(0, 0.2) * np.exp(-np.arange(back) / max(1, back / 3))
        step = np.concatenate([step[:at], step[again], step[at:]])
        lr = np.concatenate([lr[:at], lr[again], lr[at:]])
        loss = np.concatenate([loss[:at], loss[again] * bump, loss[at:]])
    return dict(step=step.astype(float), loss=loss, lr=lr)


def slow_rise(rng):
    """Learns until 10%..60% of the run, then climbs by 40%..150% to its end."""
    log = healthy(rng, restarts=0)
    n = len(log['loss'])
    at = int(n * rng.uniform(0.1, 0.6))
    log['loss'][at:] *= 1 + rng.uniform(0.4, 1.5) * np.linspace(0, 1, n - at)
    return log


def sudden_jump(rng):
    """Jumps to 1.5..4 times its loss at 20%..90% of the run, and stays there."""
    log = healthy(rng, restarts=0)
    at = int(len(log['loss']) * rng.uniform(0.2, 0.9))
    log['loss'][at:] *= rng.uniform(1.5, 4)
    return log


def collapse_to_chance(rng):
    """Forgets everything at 20%..90% of the run: from then on the loss is ln vocab and a little."""
    log = healthy(rng, restarts=0)
    n = len(log['loss'])
    at = int(n * rng.uniform(0.2, 0.9))
    log['loss'][at:] = CHANCE * (1 + 0.01 * rng.standard_normal(n - at))
    return log


def spikes(rng):
    """3..10 spikes of one to three rows, x2..x6, anywhere after the first tenth."""
    log = healthy(rng, spike=False, restarts=0)
    n = len(log['loss'])
    for at in rng.choice(np.arange(n // 10, n - 3), rng.integers(3, 11), replace=False):
        log['loss'][at:at + rng.integers(1, 4)] *= rng.uniform(2, 6)
    return log


def mixed_runs(rng):
    """Two runs in one file: appended, interleaved step by step, or one that writes now its own loss
    and now one of another scale."""
    log, kind = healthy(rng, restarts=0), rng.integers(3)
    if kind == 0:
        other = healthy(rng, restarts=0)
        return {k: np.concatenate([log[k], other[k]]) for k in log}
    if kind == 1:
        twins = {k: v * rng.uniform(0.5, 2) if k == 'loss' else v for k, v in log.items()}
        return {k: np.stack([v, twins[k]], 1).ravel() for k, v in log.items()}
    log['loss'][rng.random(len(log['loss'])) < 0.4] *= rng.uniform(4, 10)
    return log


def divided_loss(rng):
    """Learns, but the logged loss is divided by 2, 4, 8 or 16."""
    log = healthy(rng)
    log['k'] = int(rng.choice([2, 4, 8, 16]))
    log['loss'] = log['loss'] / log['k']
    return log


KINDS = dict(healthy=healthy, slow_rise=slow_rise, sudden_jump=sudden_jump,
             collapse_to_chance=collapse_to_chance, spikes=spikes, mixed_runs=mixed_runs,
             divided_loss=divided_loss)
# which finding means that a kind was recognised: rules, the least severity
WANTED = dict(healthy=('', 'critical'), slow_rise=('R03', 'critical'),
              sudden_jump=('R03', 'critical'), collapse_to_chance=('R03 R04', 'critical'),
              spikes=('R11', 'warn'), mixed_runs=('R12 R19', 'warn'), divided_loss=('R02', 'warn'))


def findings_of(columns):
    columns = {k: v.copy() for k, v in columns.items() if k != 'k'}
    odd = dict(lines=0, cells=0, headers=0, rows=len(columns['loss']))
    with np.errstate(all='ignore'):
        return rules.examine(Log('simulated.csv', columns, odd), rules.Told(vocab=(VOCAB,)))


def is_recognised(kind, columns, findings):
    wanted, least = WANTED[kind]
    bad_enough = rules.SEVERITIES[rules.SEVERITIES.index(least):]
    return any(f['rule'] in wanted.split() and f['severity'] in bad_enough
               and f['numbers'].get('k') == columns.get('k') for f in findings)


def rates(n, seed=0):
    """{kind: (share recognised, share critical, share warn)} over n logs of each."""
    found = {}
    for i, (kind, make) in enumerate(KINDS.items()):
        rng = np.random.default_rng([seed, i])
        count = dict(hit=0, critical=0, warn=0)
        for _ in range(n):
            columns = make(rng)
            findings = findings_of(columns)
            count['hit'] += is_recognised(kind, columns, findings)
            severity = rules.conclude(findings)[0]
            count[severity] = count.get(severity, 0) + 1
        found[kind] = {k: v / n for k, v in count.items()}
    return found


if __name__ == '__main__':
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    print(f'| {n} simulated logs each | recognised by | recognised | verdict critical | '
          'verdict warn |\n|---|---|---|---|---|')
    for kind, rate in rates(n).items():
        by, hit, alarms = ' or '.join(WANTED[kind][0].split()), f'{rate["hit"]:.1%}', ''
        if not by:
            by, hit, alarms = '-', '-', ' (false alarms)'
        print(f'| {kind.replace("_", " ")} | {by} | {hit} | {rate["critical"]:.1%}{alarms} | '
              f'{rate["warn"]:.1%} |')
