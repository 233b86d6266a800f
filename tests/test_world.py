"""The stages together: what stage 3 sees of a recording, and models from their checkpoints."""
import shutil
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from launch import dataset_of, recording, refused, run

import data
from training import checkpoint
from world import Encoded, goes_on_elsewhere, lets_go, load_stage, load_world, other_data


def seen_so(tokens, actions, stride, episode_starts=(0,)):
    """An Encoded of tokens (n,N) and actions (n,), without its stages."""
    encoded = object.__new__(Encoded)
    encoded.frame_stride, encoded.tokens = stride, tokens
    encoded.tokenizer = SimpleNamespace(n_tokens=tokens.shape[1], vocab_size=int(tokens.max()) + 1)
    encoded.changes = (tokens[stride:] != tokens[:-stride]).sum(1)
    encoded.actions, encoded.n_actions = np.array(actions), 8
    encoded.recording = SimpleNamespace(episode_starts=np.array(episode_starts))
    return encoded


@pytest.mark.parametrize('stride', [1, 2])
def test_windows_of_a_new_scene_end_in_one_or_in_the_step_after(stride):
    """A new scene at frame 10; elsewhere one token in four changes."""
    n = 50
    tokens = np.zeros((n, 4), np.int16)
    tokens[:, 0] = np.arange(n)
    tokens[10:, 1:] = 1
    found, = seen_so(tokens, [0] * n, stride).rare_ends(np.arange(n - 2 * stride), 3)
    assert found.tolist() == list(range(10 - 2 * stride, 10))


def test_windows_that_end_in_a_new_scene_by_the_key_that_is_held_and_by_another():
    scene = np.arange(40) // 10
    ground = 0 * scene  # that all scenes have in common: more than half of a frame
    tokens = np.stack([np.arange(40), scene, scene, ground, ground, ground, ground], 1)
    actions = np.array([1] * 19 + [2] * 11 + [3] * 10)  # turns into the second of three new scenes
    held, by_another, turns = seen_so(tokens, actions, 1).rare_ends(np.arange(37), 3)
    assert held.tolist() == [8, 9, 19, 28, 29], 'the steps after all three belong to it'
    assert by_another.tolist() == [18] and turns.tolist() == [18, 29]


def test_windows_that_end_in_a_stop_or_a_turn():
    """He walks for ten frames, stands for ten, turns and walks on; then he turns once more."""
    place = np.array([*range(10), *[9] * 10, *range(10, 30)])
    tokens = np.stack([place, *[0 * place] * 4], 1)
    actions = np.array([1] * 9 + [1] * 10 + [2] * 11 + [3] * 10)
    stops, turns = seen_so(tokens, actions, 1).rare_ends(np.arange(37), 3)
    assert stops.tolist() == [8], 'the step from frame 9 on is the first that changes nothing'
    assert turns.tolist() == [18, 29]


@pytest.mark.parametrize('stride', [1, 2])
def test_windows_in_which_a_rare_token_comes(stride):
    """Two tokens take turns; twice, at frames 50 and 90, another one comes, and goes again."""
    n = 100
    tokens = np.stack([np.arange(n) // stride % 2, *[np.zeros(n, int)] * 9], 1)
    tokens[[50, 90], 1] = 5
    encoded = seen_so(tokens, [0] * n, stride)
    found, = encoded.rare_ends(np.arange(n - 2 * stride), 3)
    assert found.tolist() == [50 - 2 * stride, 90 - 2 * stride]
    seen = encoded.rarest_new(np.arange(n - stride))
    assert seen[50 - stride] == seen[90 - stride] == 2 and (np.sort(seen)[2:] > 40).all()
    tokens[:] = 0  # where nothing ever changes, none does
    assert seen_so(tokens, [0] * n, stride).rare_ends(np.arange(n - 2 * stride), 3) == []


@pytest.mark.parametrize('stride', [1, 2])
def test_where_nothing_changes_a_key_is_held_or_none_is(stride):
    """Half and half; what changes keeps its action, and an episode does not begin with a key."""
    n = 4000
    rng = np.random.default_rng(0)
    place = rng.random(n) < 0.3  # in which frames something moves
    tokens = np.stack([place.cumsum(), 0 * place], 1)
    actions, episode_starts = rng.integers(8, size=n), [0, 1000, 1001]
    encoded = seen_so(tokens, actions, stride, episode_starts)
    never = np.zeros(n - stride, bool)
    found = encoded.held(actions, never, never)
    same, none = encoded.changes == 0, found[:-stride] == 8
    assert (found[:-stride][~same] == actions[:-stride][~same]).all()
    assert 0.45 < none[same].mean() < 0.6
    for start in episode_starts:
        assert all(none[t] for t in range(start, min(start + stride, n)) if same[t])
    held = np.flatnonzero(same & ~none)
    for t in held:
        past = t - stride
        while encoded.changes[past] == 0:
            past -= stride
        assert found[t] == actions[past]
    assert len(held) > 500


def test_what_goes_on_away_from_where_something_was_done():
    """Who plays walks along the upper row; in the lower right corner somebody stirs by himself."""
    differs = np.zeros((30, 4, 6), bool)
    for t in (0, 1, 2, 3, 12, 13, 20):
        differs[t, 0, t % 6:t % 6 + 2] = True
    differs[[3, 5, 7, 8, 9, 25], 3, 5] = True  # at first while he walks
    found = goes_on_elsewhere(differs.reshape(30, 24), (4, 6), np.array([0, 20]))
    # the frames 7 to 9 touch what changed just before, and in 12 nobody has walked for long
    assert np.flatnonzero(found).tolist() == [12, 25]
    found = goes_on_elsewhere(differs[:7].reshape(7, 24), (4, 6), np.array([0]))
    assert not found.any(), 'he was there three changes ago'


def test_what_goes_on_elsewhere_is_no_key_and_hides_none():
    tokens = np.arange(8)[:, None] * np.ones((1, 2), int)
    actions = np.array([3, 3, 3, 5, 3, 3, 3, 3])
    tokens[5:] -= 1  # nothing changes from frame 4 to 5
    encoded = seen_so(tokens, actions, 1)
    found = encoded.held(actions, np.arange(7) == 3, np.zeros(7, bool))
    assert found[:4].tolist() == [3, 3, 3, 8] and found[4] in (3, 8), 'held is what was held before'


@pytest.mark.parametrize('stride', [1, 2])
def test_a_key_is_released_where_what_it_did_is_undone_under_its_own_number(stride):
    """A sword (action 1) is drawn, held and put away; somebody walks to and fro (2, 3); and in
    another episode a picture comes that was there before."""
    place = np.array([0, 0, 5, 5, 0, 0, 1, 2, 1, 0, 5, 0])
    actions = np.array([1, 1, 1, 1, 1, 2, 2, 3, 3, 1, 1])
    expected = np.array([0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0], bool)
    place, actions = (np.repeat(x, stride) for x in (place, actions))
    tokens = place[:, None] * np.ones((1, 2), int)
    changes = (tokens[stride:] != tokens[:-stride]).sum(1)
    found = lets_go(tokens, changes, actions, np.array([0, 10 * stride]))
    assert found.tolist() == np.repeat(expected, stride).tolist()
    assert lets_go(tokens, changes, actions, np.array([0]))[10 * stride:].all()


def test_after_a_release_no_key_is_held():
    tokens = np.array([0, 5, 5, 0, 0, 0, 0, 0, 0, 0, 0])[:, None] * np.ones((1, 2), int)
    encoded = seen_so(tokens, np.ones(11, int), 1)
    no = np.zeros(10, bool)
    found = encoded.held(np.ones(11, int), no, np.arange(10) == 2)
    assert found[[0, 2]].tolist() == [1, 8] and (found[3:10] == 8).all()
    assert (encoded.held(np.ones(11, int), no, no)[3:10] == 1).any()


@pytest.mark.slow
def test_averaged_weights_of_an_earlier_version_are_what_others_load(world, tmp_path):
    out = shutil.copytree(world[1] / 'tokenizer', tmp_path / 'out' / 'tokenizer').parent
    ckpt = checkpoint.best(out / 'tokenizer', 'tokenizer')
    ckpt['ema'] = {name: torch.zeros_like(t) for name, t in ckpt['model'].items()}
    torch.save({k: v for k, v in ckpt.items() if k != 'path'}, out / 'tokenizer' / 'best.pt')
    model, about = load_stage(str(out), 'tokenizer', 'cpu')
    assert not model.to_patch.bias.any() and about['id'] == checkpoint.weights_id(ckpt['ema'])


def altered(out, folder, stage, **config):
    """A copy of a trained world in which the checkpoint of a stage has another config."""
    shutil.copytree(out, folder)
    path = folder / stage / 'best.pt'
    ckpt = checkpoint.load(str(path))
    torch.save({**ckpt, 'config': {**ckpt['config'], **config}}, path)
    return str(folder)


@pytest.mark.slow
def test_actions_of_another_frame_stride_are_refused(world, tmp_path):
    """An action model that learned what happens within two frames, used on every frame."""
    out = altered(world[1], tmp_path / 'out', 'latent_actions', frame_stride=2)
    words = 'latent_actions', 'found frame_stride=2, expected frame_stride=1', '--frame_stride=2'
    with pytest.raises(checkpoint.CheckpointError) as e:
        load_world(out, dataset_of(world), 'cpu')
    assert all(word in str(e.value) for word in words)
    refused(run('dynamics.py', world[0], f'--out_dir={out}'), 4, *words)
    refused(run('sample.py', world[0], f'--out_dir={out}'), 4, *words)


def test_what_was_trained_on_other_data_is_said():
    here = SimpleNamespace(path='a.h5', data_id='1')
    assert other_data(dict(tokenizer='1', dynamics='1', latent_actions=None), here) == ''
    said = other_data(dict(tokenizer='2', dynamics='1', latent_actions='3'), here)
    assert 'a.h5 (data_id 1)' in said
    assert 'tokenizer, latent_actions trained on (data_id 2, 3)' in said
    assert 'dynamics' not in said and '\n' not in said


@pytest.mark.slow
def test_a_dynamics_on_the_tokens_of_another_recording_says_so(world, tmp_path):
    out = shutil.copytree(world[1], tmp_path / 'out')
    path = recording(tmp_path / 'grown.h5', n=170)
    done = run('dynamics.py', world[0], f'--dataset={path}', f'--out_dir={out}', '--max_iters=1')
    note, = [line for line in done.stdout.splitlines() if line.startswith('note: ')]
    assert done.returncode == 0 and 'tokenizer, latent_actions trained on' in note


@pytest.mark.slow
def test_labels_that_mean_something_else_are_refused(world, tmp_path):
    """The dynamics was trained on labels, and in this recording the same numbers have other
    names."""
    def labelled(name, *action_names):
        path = recording(tmp_path / name)
        with h5py.File(path, 'a') as f:
            f['actions'] = np.arange(len(f['frames'])) % 3
            f.attrs['action_names'] = action_names
        return path

    out = altered(world[1], tmp_path / 'out', 'dynamics', action_source='labels')
    path = tmp_path / 'out' / 'dynamics' / 'best.pt'
    ckpt = checkpoint.load(str(path))
    # without a name are rare ones
    torch.save({**ckpt, 'action_names': ['stay', 'go', 'go 2', '']}, path)
    load_world(out, labelled('a.h5', 'stay', 'go', 'go', 'fly'), 'cpu')
    with pytest.raises(data.DataError) as e:
        load_world(out, labelled('b.h5', 'go', 'stay', 'jump'), 'cpu')
    assert 'actions called go, stay, jump' in str(e.value) and 'stay, go, go 2' in str(e.value)
