"""The three scripts as people run them: trained for a few steps, resumed, on two ranks; and their
mistakes answered in words."""

import json
import os
import shutil

import h5py
import numpy as np
import pytest
import torch

from training import checkpoint
from launch import STAGES, log, refused, run, train

pytestmark = pytest.mark.slow


def same(a, b, where=''):
    """Are two checkpoints bit-identical in weights and optimizer?"""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k], f'{where}.{k}') for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y, where) for x, y in zip(a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


# -----------------------------------------------------------------------------
# trained


@pytest.mark.parametrize('stage', STAGES)
def test_a_run_leaves_what_the_contract_says(world, stage):
    _, out, said = world
    folder = out / stage
    assert sorted(p.name for p in folder.glob('*.pt')) == [
        'best.pt',
        'ckpt_00000003.pt',
        'ckpt_00000006.pt',
    ]
    assert (folder / 'samples' / '00000006.png').stat().st_size > 500
    rows = log(out, stage)
    assert [int(r['iter']) for r in rows] == [1, 2, 3, 4, 5, 6]
    assert list(rows[0])[:5] == ['iter', 'runtime', 'loss', 'lr', 'grad_norm']
    assert [bool(r['val_loss']) for r in rows] == [False, False, True] * 2
    if stage == 'policy':
        assert {'loss_ct', 'loss_ct_median', 'rank_acc', 'neg_drift'} <= set(rows[0])
    elif stage != 'tokenizer':
        assert {'action_entropy', 'unique_actions', 'codebook_usage'} <= set(rows[0])
    status = json.loads((folder / 'status.json').read_text())
    assert status['state'] == 'done' and status['iter'] == 6
    ckpt = checkpoint.load(folder / 'ckpt_00000006.pt', stage)
    assert ckpt['data_id'] and ckpt['config']['max_iters'] == 6
    chance = {'dynamics': '(chance 2.773)', 'policy': '(chance 1.386)'}.get(stage, 'ETA')
    assert 'ETA' in said[stage] and chance in said[stage]
    assert ('(chance' in said[stage]) == (chance != 'ETA')


def test_resumed_in_float16(world, tmp_path):
    """Whose loss is scaled: the checkpoint, in float32, knows no scale."""
    shutil.copytree(world[1], tmp_path / 'out')
    os.remove(tmp_path / 'out' / 'tokenizer' / 'ckpt_00000006.pt')
    train(
        'tokenizer.py',
        world[0],
        f'--out_dir={tmp_path / "out"}',
        '--init_from=resume',
        '--dtype=float16',
    )
    a, b = (
        checkpoint.load(o / 'tokenizer' / 'ckpt_00000006.pt') for o in (world[1], tmp_path / 'out')
    )
    assert (
        b['scaler']
        and not a['scaler']
        and b['metrics']['loss'] == pytest.approx(a['metrics']['loss'], rel=0.1)
    )


def test_lr_is_warmup_then_cosine(world):
    lrs = [float(r['lr']) for r in log(world[1], 'tokenizer')]
    assert (
        lrs[0] == pytest.approx(lrs[1] / 2)
        and lrs[1] == max(lrs)
        and lrs[2:] == sorted(lrs[2:], reverse=True)
    )
    assert lrs[-1] == pytest.approx(0.05 * lrs[1])


def test_the_dynamics_knows_its_parents(world):
    ckpt = checkpoint.best(world[1] / 'dynamics', 'dynamics')
    for stage in STAGES[:2]:
        assert ckpt['parents'][stage] == checkpoint.weights_id(
            checkpoint.best(world[1] / stage, stage)['model']
        )


@pytest.mark.row(1)
@pytest.mark.parametrize('stage', STAGES)
def test_resumed_equals_unbroken(world, stage, tmp_path):
    """From the checkpoint of update 3 to 6: weights and optimizer are those of the run that was
    never stopped."""
    config, out, _ = world
    shutil.copytree(out, tmp_path / 'out')
    os.remove(tmp_path / 'out' / stage / 'ckpt_00000006.pt')
    train(f'{stage}.py', config, f'--out_dir={tmp_path / "out"}', '--init_from=resume')
    a, b = (checkpoint.load(o / stage / 'ckpt_00000006.pt') for o in (out, tmp_path / 'out'))
    assert same(a['model'], b['model']) and same(a['optimizer'], b['optimizer'])
    assert [r['loss'] for r in log(out, stage)] == [r['loss'] for r in log(tmp_path / 'out', stage)]


@pytest.mark.parametrize('stage', STAGES)
def test_two_gloo_ranks_train_what_one_does(world, pair_of_ranks, stage):
    """The batch is that of one process with twice the micro-batches, so the losses are too; one
    process writes."""
    pair = pair_of_ranks(stage)
    one, two = ([float(r['loss']) for r in log(o, stage)] for o in (world[1], pair))
    # stage 2 normalises over the batch of all ranks: over 8 clips with two ranks, over 4 at a time
    # alone
    assert one == pytest.approx(two, rel=0.5 if stage == 'latent_actions' else 1e-3)
    assert sorted(p.name for p in (pair / stage).glob('*.pt*')) == [
        'best.pt',
        'ckpt_00000003.pt',
        'ckpt_00000006.pt',
    ]


def test_scratch_moves_an_earlier_run_aside(world, tmp_path):
    config, out, _ = world
    shutil.copytree(out / 'tokenizer', tmp_path / 'tokenizer')
    before = (tmp_path / 'tokenizer' / 'ckpt_00000006.pt').read_bytes()
    said = train('tokenizer.py', config, f'--out_dir={tmp_path}', '--max_iters=1').stdout
    assert 0 < said.find('the earlier run stays in') < said.find('iter 1/')
    assert said.find('iter 1/') < said.find('moved the earlier run to')
    assert (tmp_path / 'tokenizer.1' / 'ckpt_00000006.pt').read_bytes() == before
    assert not (tmp_path / 'tokenizer' / 'ckpt_00000006.pt').exists()


@pytest.mark.parametrize(
    'stage, more',
    [
        ('tokenizer', ['--dtype=bfloat16', '--grad_clip=0.0', '--temporal=True']),
        ('latent_actions', ['--dtype=bfloat16', '--optimizer=adamw', '--action_levels=(3,)']),
        ('dynamics', ['--dtype=bfloat16', '--action_source=none']),
    ],
)
def test_other_settings_train_too(world, stage, more, tmp_path):
    config, out, _ = world
    shutil.copytree(out, tmp_path / 'out')
    train(f'{stage}.py', config, f'--out_dir={tmp_path / "out"}', '--max_iters=3', *more)
    assert np.isfinite([float(r['loss']) for r in log(tmp_path / 'out', stage)]).all()
    assert checkpoint.load(tmp_path / 'out' / stage / 'ckpt_00000003.pt')['iter'] == 3


def test_what_shuffled_actions_cost_is_logged(world):
    row = log(world[1], 'dynamics')[-1]
    assert float(row['val_shuffled_ratio']) == pytest.approx(
        float(row['val_shuffled_loss']) / float(row['val_loss'])
    )


# -----------------------------------------------------------------------------
# mistakes: one clear line, the right code, nothing written


def broken(tmp_path, what):
    path = tmp_path / f'{what}.h5'
    frames = np.random.default_rng(0).integers(0, 256, (60, 16, 16, 3), np.uint8)
    if what == 'text':
        path.write_text('not a recording\n')
    elif what != 'missing':
        with h5py.File(path, 'w') as f:
            f['frames'] = {
                'dtype': frames / 255,
                'shape': frames.transpose(0, 3, 1, 2),
                'few': frames[:5],
                'size': frames[:, :14],
            }[what]
    return path


@pytest.mark.row(36)
@pytest.mark.parametrize(
    'what, words',
    [
        ('missing', ['no such file']),
        ('text', ['a text file']),
        ('dtype', ['float64', 'uint8']),
        ('shape', ['(60, 3, 16, 16)', 'transpose']),
        ('few', ['5 frames']),
        ('size', ['14', 'patch_size=4']),
    ],
)
def test_bad_data_is_refused(world, tmp_path, what, words):
    path = broken(tmp_path, what)
    refused(
        run('tokenizer.py', world[0], f'--dataset={path}', f'--out_dir={tmp_path / "out"}'),
        3,
        path.name,
        'expected',
        *words,
    )
    assert not (tmp_path / 'out').exists()


@pytest.mark.row(37)
@pytest.mark.parametrize(
    'arg, words',
    [
        ('--learing_rate=1e-3', ['learning_rate']),
        ('--max_iters=ten', ['int', 'ten']),
        ('--maskgit_steps=4', ['dynamics.py', 'not of tokenizer.py']),
        ('--device=cuda', ['cuda']),
        ('--total_batch_size=6', ['6', '4']),
    ],
)
def test_bad_config_is_refused(world, tmp_path, arg, words):
    if arg == '--device=cuda' and torch.cuda.is_available():
        arg, words = '--device=tpu', ['tpu']
    refused(run('tokenizer.py', world[0], arg, f'--out_dir={tmp_path / "out"}'), 2, *words)
    assert not (tmp_path / 'out').exists()


def test_missing_and_mismatched_checkpoints_are_refused(world, tmp_path):
    config, out, _ = world
    refused(
        run('dynamics.py', config, f'--out_dir={tmp_path / "none"}'),
        4,
        'tokenizer',
        'python tokenizer.py',
    )
    refused(
        run('tokenizer.py', config, f'--out_dir={tmp_path / "none"}', '--init_from=resume'),
        4,
        '--init_from=scratch',
    )
    refused(
        run('tokenizer.py', config, '--n_embd=32', '--init_from=resume'), 4, '16', '32', 'n_embd'
    )
    assert not (tmp_path / 'none').exists()
    shutil.copytree(out, tmp_path / 'out')
    train('tokenizer.py', config, f'--out_dir={tmp_path / "out"}', '--max_iters=2', '--seed=5')
    refused(run('sample.py', config, f'--out_dir={tmp_path / "out"}'), 4, 'tokenizer')
    refused(run('sample.py', config, '--actions=9'), 2, '9', '0, 1, 2, 3')


def test_labels_that_are_not_there_are_refused(world):
    refused(
        run('dynamics.py', world[0], '--action_source=labels'), 3, 'action_source=labels', 'actions'
    )
    refused(run('latent_actions.py', world[0], '--n_labels=9'), 3, 'n_labels=9', 'actions')


def test_weights_of_another_version_are_refused(world, tmp_path):
    out = shutil.copytree(world[1], tmp_path / 'out')
    ckpt = checkpoint.best(out / 'dynamics', 'dynamics')
    ckpt['model']['blocks.9.old'] = torch.zeros(1)
    torch.save({k: v for k, v in ckpt.items() if k != 'path'}, out / 'dynamics' / 'best.pt')
    refused(
        run('sample.py', world[0], f'--out_dir={out}'),
        4,
        'best.pt',
        'another network',
        'python dynamics.py',
    )


@pytest.mark.parametrize('stage', STAGES[1:])
def test_fsdp_and_activation_checkpointing_train_what_ddp_does(
    world, pair_of_ranks, stage, tmp_path
):
    """Shared out over two ranks, and half computed twice; its checkpoint is the same file: one
    process without either resumes from it."""
    out = tmp_path / 'out'
    shutil.copytree(world[1], out, ignore=shutil.ignore_patterns(stage))
    both = ['--fsdp=True', '--activation_checkpointing=True']
    train(f'{stage}.py', world[0], f'--out_dir={out}', *both, ranks=2)
    for column in (
        'loss',
        'grad_norm',
        'val_loss',
    ):  # Muon rounds to bfloat16, so not to the last digit
        one, two = (
            [float(r[column] or 0) for r in log(o, stage)] for o in (pair_of_ranks(stage), out)
        )
        assert one == pytest.approx(two, rel=0.01), column
    one, two = (
        checkpoint.load(o / stage / 'ckpt_00000006.pt') for o in (pair_of_ranks(stage), out)
    )
    assert {k: v.shape for k, v in one['model'].items()} == {
        k: v.shape for k, v in two['model'].items()
    }
    os.remove(out / stage / 'ckpt_00000006.pt')
    train(f'{stage}.py', world[0], f'--out_dir={out}', *both, '--init_from=resume', ranks=2)
    again = checkpoint.load(out / stage / 'ckpt_00000006.pt')
    assert same(again['model'], two['model']) and same(again['optimizer'], two['optimizer'])
    train(f'{stage}.py', world[0], f'--out_dir={out}', '--init_from=resume', '--max_iters=7')


def test_tokens_are_encoded_once_and_again_for_another_tokenizer(world, tmp_path):
    out = shutil.copytree(world[1], tmp_path / 'out')
    before = {p.name: p.stat().st_mtime_ns for p in (out / 'cache').iterdir()}
    assert len(before) == 2
    train('dynamics.py', world[0], f'--out_dir={out}', '--max_iters=1')
    assert {p.name: p.stat().st_mtime_ns for p in (out / 'cache').iterdir()} == before
    assert log(out, 'dynamics')[0]['loss'] == log(world[1], 'dynamics')[0]['loss']
    train('tokenizer.py', world[0], f'--out_dir={out}', '--seed=3', '--max_iters=3')
    train('dynamics.py', world[0], f'--out_dir={out}', '--max_iters=1')
    after = {p.name for p in (out / 'cache').iterdir()}
    assert (
        len(after) == 2
        and {n for n in after if n.startswith('actions')}
        == {n for n in before if n.startswith('actions')}
        and after != set(before)
    )
