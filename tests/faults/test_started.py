"""Started twice, started in vain, started again."""

import json
import os
import shutil
import signal

import pytest
from ended import digest
from launch import LONG, log, refused, run, run_after, start, train, until

row = pytest.mark.row
pytestmark = pytest.mark.slow

# -----------------------------------------------------------------------------
# twice


@row(41)
@pytest.mark.parametrize('more', [[], ['--init_from=resume'], ['--init_from=auto']])
def test_two_runs_in_one_folder(world, trains, tmp_path, more):
    """The second is refused, names the first and disturbs nothing; once the first was killed, it
    may begin."""
    done = run('tokenizer.py', world[0], f'--out_dir={tmp_path}', *more)
    refused(done, 2, 'in use', str(trains.pid), '--out_dir')
    trains.send_signal(signal.SIGTERM)
    trains.communicate(timeout=60)
    assert trains.returncode == 143 and not (tmp_path / 'tokenizer.lock').exists()
    rows = [int(r['iter']) for r in log(tmp_path, 'tokenizer')]
    assert rows == list(range(1, len(rows) + 1)) and digest(tmp_path)[0] == rows[-1]
    assert sorted(os.listdir(tmp_path)) == ['tokenizer']
    more = ['--init_from=resume', f'--max_iters={rows[-1] + 1}']
    train('tokenizer.py', world[0], f'--out_dir={tmp_path}', *more)


@row(41)
def test_the_folder_of_a_killed_run_is_free(world, trains, tmp_path):
    trains.kill()
    trains.wait()
    assert (tmp_path / 'tokenizer.lock').exists()
    train('tokenizer.py', world[0], f'--out_dir={tmp_path}')


# -----------------------------------------------------------------------------
# in vain


NO_WANDB = """
import sys
sys.modules['wandb'] = None"""
NO_LOGIN = """
import sys, types
def init(**told):
    raise RuntimeError('No API key configured. Use `wandb login` to log in.')
sys.modules['wandb'] = wandb = types.ModuleType('wandb')
wandb.init = init"""


@row(43)
@pytest.mark.parametrize(
    'code, words', [(NO_WANDB, 'pip install wandb'), (NO_LOGIN, 'WANDB_MODE=offline')]
)
def test_a_start_that_w_and_b_refuses(world, tmp_path, code, words):
    """Twice, for the second try is what a user does; the earlier run stays what it was."""
    out = shutil.copytree(world[1], tmp_path / 'out')
    for _ in range(2):
        done = run_after(code, 'dynamics.py', world[0], f'--out_dir={out}', '--wandb_log=True')
        refused(done, 2, 'wandb_log=True', words)
        assert sorted(os.listdir(out)) == sorted(os.listdir(world[1]))
    train('sample.py', world[0], f'--out_dir={out}')


@row(43)
def test_two_ranks_begin_where_an_earlier_run_stands(world, pair_of_ranks, tmp_path):
    out = shutil.copytree(world[1], tmp_path / 'out')
    said = train('tokenizer.py', world[0], f'--out_dir={out}', ranks=2).stdout
    assert said.count('moved the earlier run to') == 1 and not (out / 'tokenizer.new').exists()
    assert digest(out) == digest(pair_of_ranks('tokenizer'))


WANDB = """
import json, sys, types
from types import SimpleNamespace
told = open({file!r}, 'a', buffering=1)
def tell(**what):
    print(json.dumps(what), file=told)
def init(id, resume, **more):
    tell(id=id, resume=resume)
    return SimpleNamespace(id=id or 'abc', log=lambda row: tell(iter=row['iter']),
                           define_metric=lambda *a, **k: None, finish=lambda: None)
sys.modules['wandb'] = wandb = types.ModuleType('wandb')
wandb.init = init"""


def test_a_resumed_run_is_one_run_of_w_and_b(world, tmp_path):
    """Its id is in the checkpoint."""
    code, out = WANDB.format(file=str(tmp_path / 'told')), tmp_path / 'out'
    command = ['tokenizer.py', world[0], f'--out_dir={out}', '--wandb_log=True']
    for more in (['--max_iters=3'], ['--init_from=auto']):
        done = run_after(code, *command, *more)
        assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in (tmp_path / 'told').read_text().splitlines()]
    assert [t for t in told if 'id' in t] == [
        dict(id=None, resume='allow'),
        dict(id='abc', resume='allow'),
    ]
    assert [t['iter'] for t in told if 'iter' in t] == [1, 2, 3, 4, 5, 6]


@row(43)
@pytest.mark.parametrize('fault', ['raise@1', 'kill@2'])
def test_a_run_that_ends_before_its_first_checkpoint(world, tmp_path, fault):
    """Out of memory in its first update, say: sample.py finds what it found before."""
    out = shutil.copytree(world[1], tmp_path / 'out')
    done = run('dynamics.py', world[0], f'--out_dir={out}', env={'FAULT': fault})
    assert done.returncode != 0
    assert digest(out, 'dynamics') == digest(world[1], 'dynamics')
    train('sample.py', world[0], f'--out_dir={out}')
    train('dynamics.py', world[0], f'--out_dir={out}', '--max_iters=1')
    assert digest(out, 'dynamics')[0] == 1 and not (out / 'dynamics.new').exists()


# -----------------------------------------------------------------------------
# again


@row(44)
def test_one_command_for_a_job_that_is_requeued(world, tmp_path):
    """--init_from=auto begins, is stopped, and goes on; where it is done it does nothing."""
    command = ['tokenizer.py', world[0], f'--out_dir={tmp_path}', '--init_from=auto']
    p = start(*command, *LONG)
    until(p, 'iter 2/')
    p.send_signal(signal.SIGTERM)
    p.communicate(timeout=60)
    it = digest(tmp_path)[0]
    said = train(*command, f'--max_iters={it + 2}').stdout
    assert f'(iter {it}, ' in said and digest(tmp_path)[0] == it + 2
    train(*command, f'--max_iters={it + 2}')
    assert [int(r['iter']) for r in log(tmp_path, 'tokenizer')] == list(range(1, it + 3))
    assert os.listdir(tmp_path) == ['tokenizer']


@row(44)
@pytest.mark.parametrize('at', [2, 5])
def test_torchrun_starts_it_again(world, tmp_path, at):
    """With --init_from=scratch, beside an earlier run: killed after its first checkpoint it goes on
    from that, to what an unbroken run ends with; before, it begins. Never from the earlier one."""
    out = shutil.copytree(world[1], tmp_path / 'out')
    train('tokenizer.py', world[0], f'--out_dir={out}', '--seed=1')
    done = run(
        'tokenizer.py',
        world[0],
        f'--out_dir={out}',
        torchrun=1,
        restarts=1,
        env={'FAULT': f'kill@{at}'},
    )
    assert done.returncode == 0, done.stderr
    assert ('goes on from its own checkpoint' in done.stdout) == (at == 5)
    assert digest(out) == digest(world[1])
    assert [int(r['iter']) for r in log(out, 'tokenizer')] == [1, 2, 3, 4, 5, 6]
