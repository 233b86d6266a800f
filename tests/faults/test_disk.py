"""The disk is full, too small, or not ours; and what a save costs."""

import os
import re
import time

import numpy as np
import pytest
import torch
from launch import ROOT, log, refused, run, run_after, train

import model
from training import checkpoint
from training.guard import Guard

row = pytest.mark.row
pytestmark = pytest.mark.slow


@row(28)
@pytest.mark.skipif(os.name == 'nt', reason='RLIMIT_FSIZE')
def test_a_full_disk_is_survived_and_after_three_failures_said(world, tmp_path):
    """No file may grow beyond 30 kB: checkpoints do not fit, the log does."""
    code = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))"""
    out = tmp_path / 'out'
    train('tokenizer.py', world[0], f'--out_dir={out}', '--max_iters=3')
    more = [f'--out_dir={out}', '--init_from=resume', '--max_iters=99']
    done = run_after(code, 'tokenizer.py', world[0], *more)
    assert done.returncode == 7, done.stdout + done.stderr
    assert done.stdout.count('training goes on') == 3 and 'Traceback' not in done.stderr
    assert checkpoint.latest(out / 'tokenizer', 'tokenizer')['iter'] == 3
    assert len(log(out, 'tokenizer')) == 12


@row(29)
def test_a_place_that_cannot_be_written(world, tmp_path):
    (tmp_path / 'file').write_text('in the way')
    refused(
        run('tokenizer.py', world[0], f'--out_dir={tmp_path / "file"}'),
        7,
        'file',
        'cannot be written',
    )


def test_a_disk_too_small_for_the_run_is_noticed_first(world, tmp_path):
    code = """
import shutil
from types import SimpleNamespace
shutil.disk_usage = lambda path: SimpleNamespace(free=1000)"""
    done = run_after(code, 'tokenizer.py', world[0], f'--out_dir={tmp_path}')
    refused(done, 7, 'free', 'expected')


@row(21)
def test_what_a_save_costs(tmp_path, figures):
    """For faults.json: the dynamics of the built-in game, saved as its script does, against the
    updates between two saves."""
    m = model.Dynamics(model.DynamicsConfig())
    trained = (
        m,
        model.Optimizers(m, 'adamw', 1e-3, 0.0),
        torch.amp.GradScaler('cpu', enabled=False),
        Guard(100),
    )
    batch, updates, saves = (torch.randint(1024, (8, 3, 64)), torch.randint(8, (8, 2))), [], []
    for i in range(1, 4):
        t0 = time.perf_counter()
        m(*batch)[0].backward()
        trained[1].step()
        t1 = time.perf_counter()
        about = dict(stage='dynamics', config={}, model_args={}, data_id='', parents={})
        path = checkpoint.save(
            tmp_path, dict(about, iter=i, metrics={}, **checkpoint.snapshot(*trained))
        )
        updates.append(t1 - t0)
        saves.append(time.perf_counter() - t1)
    interval = int(
        re.search(r'^eval_interval = (\d+)', (ROOT / 'dynamics.py').read_text(), re.M)[1]
    )
    figures.update(
        save_ms=round(1000 * float(np.median(saves))),
        save_percent=round(100 * float(np.median(saves) / np.median(updates) / interval), 3),
    )
    assert checkpoint.load(path, 'dynamics')['iter'] == 3
