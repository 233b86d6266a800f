"""Resumed, or built upon, with something changed."""

import re
import shutil

import pytest
from ended import digest
from launch import log, refused, run, train

from training import checkpoint

row = pytest.mark.row
pytestmark = pytest.mark.slow


@row(30)
@pytest.mark.parametrize(
    'change, words',
    [
        ('--n_embd=32', ('n_embd=16', 'n_embd=32')),
        ('--seed=7', ('seed=0', 'seed=7', '--allow_change=seed')),
        ('--total_batch_size=16', ('total_batch_size=8', '16')),
        ('--seq_len=4', ('seq_len=3', 'seq_len=4')),
    ],
)
def test_what_must_not_change_on_resume(world, change, words):
    refused(run('tokenizer.py', world[0], '--init_from=resume', change), 4, *words)


@row(30, 31)
def test_what_may_change_on_resume_does(world, tmp_path):
    out = shutil.copytree(world[1], tmp_path / 'out')
    said = train(
        'tokenizer.py',
        world[0],
        f'--out_dir={out}',
        '--init_from=resume',
        '--max_iters=12',
        '--learning_rate=1e-4',
        '--seed=7',
        '--allow_change=seed',
    ).stdout
    assert (
        re.search(r'learning_rate \S+ -> 0.0001', said)
        and 'seed 0 -> 7' in said
        and 'max_iters 6 -> 12' in said
    )
    assert 0 < float(log(out, 'tokenizer')[6]['lr']) <= 1e-4
    ckpt = checkpoint.latest(out / 'tokenizer', 'tokenizer')
    assert all(
        g['lr'] == float(log(out, 'tokenizer')[-1]['lr'])
        for o in ckpt['optimizer']
        for g in o['param_groups']
    )


@row(38)
def test_another_tokenizer_than_the_dynamics_was_trained_with(world, tmp_path):
    out = shutil.copytree(world[1], tmp_path / 'out')
    train('tokenizer.py', world[0], f'--out_dir={out}', '--seed=3')
    ids = [
        checkpoint.best(world[1] / 'dynamics', 'dynamics')['parents']['tokenizer'],
        checkpoint.weights_id(checkpoint.best(out / 'tokenizer', 'tokenizer')['model']),
    ]
    for script in ('sample.py', 'eval.py'):
        refused(run(script, world[0], f'--out_dir={out}'), 4, *ids)
    refused(run('dynamics.py', world[0], f'--out_dir={out}', '--init_from=resume'), 4, *ids)


@row(39)
def test_a_compile_that_fails_is_said_and_done_without(world, tmp_path):
    done = run(
        'tokenizer.py',
        world[0],
        f'--out_dir={tmp_path}',
        '--compile=True',
        env={'CXX': '/bin/false', 'TORCHINDUCTOR_CACHE_DIR': str(tmp_path / 'cache')},
    )
    assert done.returncode == 0 and 'compile failed' in done.stdout and 'without it' in done.stdout
    assert digest(tmp_path)[0] == 6
