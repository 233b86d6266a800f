"""sample.py as people run it."""
import shutil

import h5py
import numpy as np
import pytest
from launch import recording, refused, run, train

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
