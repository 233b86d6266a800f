"""The divergence guard, fed with losses."""

import csv
import json
import lzma
import math

import numpy as np
import pytest
from launch import ROOT

from training.guard import Guard

row = pytest.mark.row


def first(losses, max_iters, chance=None, every=0):
    """The update at which the guard stops the run, None if never. every: it is saved and loaded so
    often."""
    guard = Guard(max_iters, chance)
    for it, loss in enumerate(losses, 1):
        if guard.check_update(float(loss)):
            return it
        if every and it % every == 0:
            state = json.loads(json.dumps(guard.state_dict()))
            guard = Guard(max_iters, chance)
            guard.load_state_dict(state)


def curve(kind, n, rng, top=7.0, floor=2.0):
    """Made-up losses of n updates."""
    t = np.arange(n)
    x = floor + (top - floor) * np.exp(-t / 1500)
    if kind == 'wobble':
        x = x * (1 + 0.08 * np.sin(t / 300))
    if kind == 'jump':
        x[5000:] *= 3
    if kind == 'slow rise':
        x[5000:] *= 1 + np.minimum(1, (t[5000:] - 5000) / 10_000)
    if kind == 'chance':
        x[8000:] = top
    x = x * (1 + rng.uniform(0.08, 0.3) * rng.standard_normal(n)).clip(0.2)
    if kind == 'spikes':
        x[rng.random(n) < 1 / 500] *= 4
    return x


@row(18)
@pytest.mark.parametrize(
    'kind, latest',
    [
        ('healthy', None),
        ('spikes', None),
        ('wobble', None),
        ('jump', 5800),
        ('slow rise', 11_800),
        ('chance', 8800),
    ],
)
def test_the_guard_on_made_up_curves(kind, latest, figures):
    rng, found = np.random.default_rng(0), []
    for _ in range(10):
        found.append(first(curve(kind, 20_000, rng), 20_000, chance=6.93))
    if latest is None:
        figures['false_alarms'] = figures.get('false_alarms', 0) + sum(f is not None for f in found)
        figures['healthy_curves'] = figures.get('healthy_curves', 0) + len(found)
        assert found == [None] * 10
    else:
        figures[f'detected, {kind}'] = [int(np.median(found)), {'chance': 8000}.get(kind, 5000)]
        assert all(5000 < f <= latest for f in found)


@row(18)
@pytest.mark.parametrize('logged, latest', [('undivided', 2500), ('divided by 4, as it was', 5000)])
def test_the_guard_on_the_failed_run(figures, logged, latest):
    """Every update of the run that this project was started for."""
    with lzma.open(ROOT / 'tests/diagnosis/logs/dynamics_diverged.csv.xz', 'rt') as f:
        losses = [
            float(r['train/loss']) * (4 if logged == 'undivided' else 1) for r in csv.DictReader(f)
        ]
    figures[f'failed_run_stopped_at, {logged}'] = found = first(
        losses, 300_000, chance=math.log(1024)
    )
    assert len(losses) == 50_344 and found < latest


@row(19)
def test_the_guard_survives_restarts():
    losses = curve('jump', 8000, np.random.default_rng(2))
    whole = first(losses, 20_000, chance=6.93)
    assert whole is not None and whole == first(losses, 20_000, chance=6.93, every=50)
