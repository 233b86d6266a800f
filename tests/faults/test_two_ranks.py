"""Two ranks that should be one run."""

import os
import shutil

import pytest
from ended import digest
from launch import STAGES, log, pair, run, train

from training import checkpoint

row = pytest.mark.row
pytestmark = pytest.mark.slow


def without_the_last(out, to):
    """A copy of a run, as if it had been killed after its first checkpoint."""
    shutil.copytree(out, to)
    for path in to.rglob('ckpt_00000006.pt'):
        os.remove(path)
    return to


@row(2, 21)
@pytest.mark.parametrize('stage', STAGES)
def test_two_ranks_resumed_equal_two_unbroken(world, pair_of_ranks, tmp_path, stage):
    whole = pair_of_ranks(stage)
    out = without_the_last(whole, tmp_path / 'out')
    train(f'{stage}.py', world[0], f'--out_dir={out}', '--init_from=resume', ranks=2)
    assert digest(out, stage) == digest(whole, stage)
    assert sorted(p.name for p in (out / stage).glob('*.pt*')) == [
        'best.pt',
        'ckpt_00000003.pt',
        'ckpt_00000006.pt',
    ]


@row(13)
def test_a_loss_that_is_not_finite_on_one_rank(world, tmp_path):
    done = run('tokenizer.py', world[0], f'--out_dir={tmp_path}', ranks=2, env={'FAULT': 'nan@5:1'})
    assert done.returncode == 0 and done.stdout.count('update skipped') == 1
    ckpt = checkpoint.latest(
        tmp_path / 'tokenizer', 'tokenizer'
    )  # it compared the ranks before it was written
    assert ckpt['iter'] == 6 and ckpt['guard']['skipped'] == [5]


@row(33)
def test_ranks_with_other_settings(world, tmp_path):
    other = tmp_path / 'other.py'
    other.write_text(
        world[0].read_text()
        + '\nimport os\nlearning_rate = 1e-3 if os.environ.get("RANK") == "1" else 2e-3\n'
    )
    for code, _, said in pair('tokenizer.py', other, f'--out_dir={tmp_path / "out"}'):
        assert code == 2 and 'Traceback' not in said
    assert not (tmp_path / 'out').exists()


@row(32, 35)
@pytest.mark.parametrize('before, after', [(2, 0), (0, 2)])
def test_going_on_with_another_number_of_ranks(world, pair_of_ranks, tmp_path, before, after):
    out = without_the_last(pair_of_ranks('tokenizer') if before else world[1], tmp_path / 'out')
    train('tokenizer.py', world[0], f'--out_dir={out}', '--init_from=resume', ranks=after)
    one, two = ([float(r['loss']) for r in log(o, 'tokenizer')] for o in (world[1], out))
    assert len(two) == 6 and one == pytest.approx(two, rel=1e-4)


@row(34)
def test_a_rank_drifts(world, tmp_path):
    done = run(
        'tokenizer.py', world[0], f'--out_dir={tmp_path}', ranks=2, env={'FAULT': 'drift@2:1'}
    )
    assert (
        done.returncode != 0
        and 'other weights on ranks [1] than on rank 0 at iter 3' in done.stderr
    )
    assert not list(tmp_path.rglob('*.pt'))
