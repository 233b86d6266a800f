"""Not finite, or diverged."""

import re
import shutil

import numpy as np
import pytest
from ended import status
from launch import log, run, train

from training import checkpoint

row = pytest.mark.row
pytestmark = pytest.mark.slow


@row(14, 15)
def test_never_finite_again(world, tmp_path):
    done = run(
        'tokenizer.py', world[0], f'--out_dir={tmp_path}', '--max_iters=20', env={'FAULT': 'nan@5+'}
    )
    assert (
        done.returncode == 6
        and status(tmp_path)['state'] == 'nonfinite'
        and status(tmp_path)['iter'] == 7
    )
    ckpt = checkpoint.latest(tmp_path / 'tokenizer', 'tokenizer')  # it loads: all in it is finite
    assert ckpt['iter'] == 6 and ckpt['guard']['skipped'] == [5, 6]


@row(16)
def test_what_is_not_finite_never_reaches_the_guard(world, tmp_path):
    train('tokenizer.py', world[0], f'--out_dir={tmp_path}', env={'FAULT': 'nan@2'})
    guard = checkpoint.latest(tmp_path / 'tokenizer', 'tokenizer')['guard']
    assert np.isfinite(guard['ema']) and guard['seen'] == 5 and guard['skipped'] == [2]


WILD = [
    '--learning_rate=5.0',
    '--rare_share=0.0',  # with other draws the third try, at a quarter of the rate, may hold
    '--grad_clip=0.0',
    '--optimizer=adamw',
    '--warmup_iters=30',
    '--max_iters=2000',
    '--eval_interval=25',
    '--eval_iters=1',
    '--log_interval=100',
    '--min_lr_frac=1.0',
    '--total_batch_size=4',
    '--device_batch_size=4',
]


@row(17)
def test_a_rate_a_thousand_times_too_high_is_stopped(world, tmp_path):
    out = shutil.copytree(world[1], tmp_path / 'out')
    done = run('dynamics.py', world[0], f'--out_dir={out}', *WILD)
    s = status(out, 'dynamics')
    assert done.returncode == 5 and s['state'] == 'diverged' and s['iter'] < 1500, (
        done.stdout[-2000:] + done.stderr
    )
    assert (
        s['resume_from'].endswith('best.pt')
        and '--learning_rate=2.5 --init_from=resume' in done.stderr
    )
    best = checkpoint.best(out / 'dynamics', 'dynamics')['iter']
    assert checkpoint.latest(out / 'dynamics', 'dynamics')['iter'] == best < s['iter'] and list(
        (out / 'dynamics').glob('*.diverged')
    )


@row(20, 46)
def test_rollback(world, tmp_path):
    out = shutil.copytree(world[1], tmp_path / 'out')
    done = run('dynamics.py', world[0], f'--out_dir={out}', *WILD, '--on_diverge=rollback')
    assert re.findall(r'^rollback (\d) to iter \d+ at ([\d.]+) times', done.stdout, re.M) == [
        ('1', '0.5'),
        ('2', '0.25'),
    ]
    assert done.returncode == 5 and list((out / 'dynamics').glob('*.diverged'))
    # what was gone back on is not in the log either: each update has one row
    its = [int(r['iter']) for r in log(out, 'dynamics')]
    assert its == sorted(set(its)) and its[-1] == status(out, 'dynamics')['iter']
