"""A world as one file: what export.py writes plays where nothing else is."""

import shutil

import numpy as np
import pytest
import torch
from launch import ROOT, dataset_of, recording, refused, run, train
from PIL import Image

import data
from training import checkpoint
from world import Dream, load_world, read_world

pytestmark = pytest.mark.slow
row = pytest.mark.row


@pytest.fixture(scope='session')
def exported(world, tmp_path_factory):
    """A world file in an empty folder."""
    file = tmp_path_factory.mktemp('given') / 'world.pt'
    said = train('export.py', world[0], file, '--licence=CC BY 4.0').stdout
    return file, said


def altered(file, path, **values):
    """A world file that says something else."""
    torch.save({**checkpoint.load(str(file), 'world'), **values}, path)
    return path


def test_it_says_what_is_inside_and_how_large(exported):
    file, said = exported
    assert f'{file}: {file.stat().st_size / 1e6:.1f} MB' in said
    for words in ('tokenizer ', 'latent_actions ', 'dynamics ', ' 6 updates', 'licence ',
                  '15 of 2 frames of 16x16', 'CC BY 4.0', f'play.py {file}'):
        assert words in said, words
    held = read_world(str(file))
    assert held['licence'] == 'CC BY 4.0' and 'frames      160 of 16x16' in held['data_card']


def test_its_dream_is_that_of_the_stages(exported, world):
    file = str(exported[0])
    theirs = load_world(str(world[1]), dataset_of(world), 'cpu')
    ours = load_world(file, file, 'cpu')
    starts = data.windows(theirs[-1], 'val', 2)
    seen = []
    for it, picks in ((theirs, starts[[0, 14]]), (ours, np.array([0, 28]))):
        dream = Dream(it, 2, 0.5, 'cpu')
        with torch.no_grad():
            dream.begin(picks, 0)
            first = dream.frames
            for action in (1, 0, 3):
                dream.step(action)
        seen.append(np.stack([first, dream.frames]))
    assert (seen[0] == seen[1]).all() and not (seen[0][0] == seen[0][1]).all()


def test_half_precision_is_smaller_and_nearly_the_same(exported, world, tmp_path):
    file = tmp_path / 'half.pt'
    train('export.py', world[0], file, '--dtype=float16')
    whole, half = read_world(str(exported[0]))['model'], read_world(str(file))['model']
    size = [sum(t.numel() * t.element_size() for t in w.values()) for w in (whole, half)]
    assert size[1] < 0.8 * size[0]
    assert all(torch.allclose(half[k].float(), whole[k].float(), atol=2e-3) for k in whole)
    train('sample.py', file, '--n_samples=1', '--n_frames=2')


def test_sample_and_eval_need_nothing_else(exported, world, tmp_path):
    file = shutil.copy(exported[0], tmp_path / 'mine.pt')
    said = train('sample.py', file, '--n_frames=3', '--n_samples=2').stdout
    assert '2 rollouts of 3 frames after 2 true ones, actions random' in said
    assert Image.open(tmp_path / 'mine' / 'samples' / 'strip.png').size[0] > 16
    args = f'--dataset={dataset_of(world)}', '--n_frames=4', '--n_windows=4'
    # wherever the file is named: --dataset says of another recording than the file
    for order in ([*args, file], [file, *args]):
        assert 'PSNR, all pixels' in train('eval.py', *order).stdout
    assert (tmp_path / 'mine' / 'eval.json').exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ['mine', 'mine.pt']


def test_it_tells_nothing_of_its_machine(exported, world):
    content = exported[0].read_bytes()
    for secret in (str(world[1]), str(world[0].parent), str(ROOT)):
        assert secret.encode() not in content


@row(25)
@pytest.mark.parametrize(
    'values, words',
    [
        (dict(format=checkpoint.FORMAT + 1), 'a newer version wrote it'),
        (dict(stages={}), 'no stages in it that are a world'),
        (dict(stages={'tokenizer': 1, 'dynamics': 2}), 'no stages in it that are a world'),
        (dict(starts={}), 'no start frames'),
        (dict(starts=dict(frames=torch.zeros(4, 16, 16, 3))), 'no start frames'),
        (dict(starts=dict(frames=torch.zeros(4, 16, 16, 3, dtype=torch.uint8))), 'go together'),
        (
            dict(starts=dict(frames=torch.zeros(4, 8, 16, 3, dtype=torch.uint8), length=2)),
            'frames of (8, 16)',
        ),
        (dict(model={'tokenizer.x': torch.zeros(1)}), 'weights of another network'),
        (dict(stage='tokenizer'), "found stage 'tokenizer', expected 'world'"),
    ],
)
def test_a_hostile_file_is_refused(exported, tmp_path, values, words):
    done = run('sample.py', altered(exported[0], tmp_path / 'bad.pt', **values))
    refused(done, 3 if 'frames of' in words else 4, words, 'bad.pt')


def test_a_cut_file_is_refused(exported, tmp_path):
    cut = tmp_path / 'cut.pt'
    cut.write_bytes(exported[0].read_bytes()[:-100])
    refused(run('sample.py', cut), 4, 'cut.pt: truncated')


def test_what_is_not_there_is_said(exported, world, tmp_path):
    stages = {k: v for k, v in read_world(str(exported[0]))['stages'].items() if k != 'policy'}
    alone = altered(exported[0], tmp_path / 'alone.pt', stages=stages)
    refused(run('play.py', alone, '--watch=True'), 4, 'and no policy')
    refused(run('sample.py', tmp_path / 'none.pt'), 2, 'there is no world file', 'export.py')
    refused(run('export.py', exported[0], f'--out_dir={exported[0]}'), 2, 'a folder of trained')
    refused(run('export.py', world[0], '--dtype=bfloat16'), 2, 'float32 or float16')
    refused(run('dynamics.py', exported[0]), 2, 'cannot read the argument')
    assert list(tmp_path.iterdir()) == [alone]


def test_another_recording_can_be_started_from(exported, tmp_path):
    done = run('sample.py', exported[0], f'--dataset={recording(tmp_path / "b.h5", n=400)}')
    assert done.returncode == 0, done.stderr
    assert 'actions inferred' in done.stdout and 'is not what' in done.stdout
