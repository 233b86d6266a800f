"""sample.py as people run it."""
import shutil

import av
import h5py
import numpy as np
import pytest
from launch import recording, refused, run, run_after, train
from PIL import Image

from training import checkpoint

pytestmark = pytest.mark.slow


@pytest.mark.parametrize('actions', ['inferred', 'random', '3', '0,1,2'])
def test_sample_writes_its_pictures(world, actions):
    config, out, _ = world
    said = train('sample.py', config, f'--actions={actions}', '--n_samples=2').stdout
    n_frames = 3 if actions == '0,1,2' else 4
    assert f'2 rollouts of {n_frames} frames' in said and 'frames/s' in said
    written = {path.name for path in (out / 'samples').iterdir()}
    assert {'strip.png', 'rollout.gif', 'rollout.mp4'} <= written


def test_actions_are_called_what_the_labels_call_them(world, tmp_path):
    config, out, _ = world
    shutil.copytree(out, tmp_path / 'out')
    path = tmp_path / 'labelled.h5'
    with h5py.File(recording(path), 'a') as f:
        f['actions'] = np.arange(len(f['frames'])) % 3
        f.attrs['action_names'] = ['stay', 'go left', 'jump']
    with_labels = [config, f'--dataset={path}', f'--out_dir={tmp_path / "out"}']
    train('dynamics.py', *with_labels, '--action_source=labels', '--max_iters=1')
    dynamics = checkpoint.best(tmp_path / 'out' / 'dynamics', 'dynamics')
    assert dynamics['action_names'] == ['stay', 'go left', 'jump']
    said = train('sample.py', *with_labels, '--actions=jump,go left').stdout
    assert 'rollouts of 2 frames' in said
    refused(run('sample.py', *with_labels, '--actions=fly'), 2, 'fly', 'stay, go left, jump')
    refused(run('sample.py', *with_labels, '--actions=3'), 2, "'3'")


@pytest.mark.parametrize('context, actions', [(1, 'random'), (2, '3'), (2, ','.join('0123' * 8))],
                         ids=('random', 'held', 'listed'))
def test_chosen_actions_need_no_truth_beyond_the_context(world, context, actions):
    """16 frames are held out. Of a dream of 32 more the truth is shown as far as it goes."""
    config, out, _ = world
    more = f'--context_frames={context}', '--n_samples=1', '--n_frames=32', f'--actions={actions}'
    assert '1 rollouts of 32 frames' in train('sample.py', config, *more).stdout
    strip = np.array(Image.open(out / 'samples' / 'strip.png'))
    truth = [strip[2:130, x:x + 128] for x in range(strip.shape[1] - 130, 60, -130)][::-1]
    is_grey = [(frame == 128).all() for frame in truth]
    assert len(truth) == context + 16 and is_grey == sorted(is_grey)
    assert context <= is_grey.index(True) <= 16
    with av.open(str(out / 'samples' / 'rollout.mp4')) as film:
        assert len(list(film.decode(video=0))) == context + 32


def test_a_recording_that_is_too_short_is_said_in_the_keys_of_sample(world):
    words = 'context_frames=2 and n_frames=30', 'at least 32 frames', 'lower n_frames', 'random'
    done = run('sample.py', world[0], '--n_frames=30')
    refused(done, 3, *words)
    assert 'seq_len' not in done.stderr
    done = run('sample.py', world[0], '--context_frames=17', '--actions=random')
    refused(done, 3, 'at least 17 frames in a row for context_frames=17', 'lower context_frames')
    assert 'seq_len' not in done.stderr


@pytest.mark.row(47)
def test_a_folder_that_cannot_be_written_is_said_at_once(world, read_only):
    done = run_after(read_only(world[1]), 'sample.py', world[0])
    refused(done, 7, 'samples: cannot be written')
    assert 'frames/s' not in done.stdout, 'it imagined what nobody can see'


@pytest.mark.row(47)
def test_the_speed_is_said_before_a_picture_fails(world, tmp_path):
    out = shutil.copytree(world[1], tmp_path / 'out')
    shutil.rmtree(out / 'samples', ignore_errors=True)
    (out / 'samples' / 'strip.png').mkdir(parents=True)
    done = run('sample.py', world[0], f'--out_dir={out}')
    refused(done, 7, 'strip.png: cannot be written')
    assert 'frames/s' in done.stdout


@pytest.mark.row(48)
def test_a_read_only_dataset_is_decoded_into_out_dir(world, tmp_path, read_only):
    (tmp_path / 'input').mkdir()
    path = recording(tmp_path / 'input' / 'given.h5')
    out = shutil.copytree(world[1], tmp_path / 'out')
    code, args = read_only(tmp_path / 'input'), [world[0], f'--dataset={path}', f'--out_dir={out}']
    done = run_after(code, 'sample.py', *args)
    assert done.returncode == 0, done.stderr
    npy, = (out / 'cache').glob('frames_given_*.npy')
    assert f'decoded into {npy}, for ' in done.stdout


def test_another_recording_is_said(world, tmp_path):
    """The same file, grown by a few frames: what was trained on is held out now."""
    path = recording(tmp_path / 'grown.h5', n=170)
    said = train('sample.py', world[0], f'--dataset={path}').stdout
    note, = [line for line in said.splitlines() if line.startswith('note: ')]
    assert 'tokenizer, latent_actions, dynamics trained on' in note and path in note
    assert 'note: ' not in train('sample.py', world[0]).stdout


def test_more_rollouts_than_a_video_can_hold(world):
    done = run('sample.py', world[0], '--n_samples=129')
    refused(done, 2, 'n_samples=129', 'at most 128')
