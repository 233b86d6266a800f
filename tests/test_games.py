"""games.py and trial.py: the table of latent actions in many games, here on small recordings of the
built-in game under their names."""
import json
from types import SimpleNamespace

import numpy as np
import pytest
from launch import refused, run

import data
import trial
from model import LatentActionModel


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Recordings that are there already are not made again."""
    folder = tmp_path_factory.mktemp('games')
    for name in ('pong', 'doom'):
        data.make_game(str(folder / f'{name}.h5'), 600, 0, 0, 'wanderer', False)
    return folder


def test_transitions_are_those_in_which_something_changes(folder):
    recording = data.load(folder / 'pong.h5')
    found = trial.transitions(recording)
    for part, t in found.items():
        others = np.setdiff1d(data.windows(recording, part, 2), t)
        assert len(t) and len(others)
        for starts, changes in ((t, True), (others, False)):
            same = recording.frames[starts] == recording.frames[starts + 1]
            assert ((same.all(3).mean((1, 2)) < 0.998) == changes).all()


def test_a_network_learns_from_labels():
    """In which quarter of the next picture is the small light?"""
    rng = np.random.default_rng(0)
    labels = rng.integers(4, size=400)
    frames = rng.integers(60, size=(401, 32, 32, 3)).astype(np.uint8)
    for t, label in enumerate(labels):
        y, x = 16 * np.array(divmod(label, 2))
        frames[t + 1, y + 7:y + 9, x + 7:x + 9] += 60
    recording = SimpleNamespace(frames=frames, actions=np.append(labels, 0))
    right = trial.learn_from_labels(recording, np.arange(300), np.arange(300, 400), 0, 40)
    assert right.shape == (100,) and right.dtype == bool and right.mean() > 0.9


def test_the_figures_of_a_game():
    """Two seeds: right in 3 and in 2 of 4, between a quarter and all."""
    yes, no = np.ones(200, bool), np.zeros(200, bool)
    quarter = np.arange(200) % 4 == 0
    about = dict(nmi=0.5, used=8, minutes=1)
    runs = [dict(most_frequent=quarter, few=no, ceiling=yes, latent=latent, anchored=yes,
                 about_latent=about, about_anchored=about)
            for latent in (~quarter, np.arange(200) % 2 == 0)]
    f = trial.summarise('pong', runs)
    assert f['counted'] and f['share_latent'] == pytest.approx((0.625 - 0.25) / 0.75)
    assert f['share_anchored'] == pytest.approx(1) and f['share_few'] < 0
    assert f['cells']['latent'].startswith('0.62 [0.6')
    assert not trial.summarise('pong', [dict(run, ceiling=quarter) for run in runs])['counted']


def test_the_table(folder, tmp_path):
    done = run('games.py', f'--data_dir={folder}', f'--out_dir={tmp_path}', '--only=pong,doom',
               '--n_seeds=1', '--n_labels=20', '--n_updates=2', '--cnn_updates=6', '--jobs=1')
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / 'games.json').read_text())
    assert [f['name'] for f in report] == ['pong', 'doom']
    assert report[0]['accuracy'] == report[1]['accuracy']  # the same game under two names
    card = (tmp_path / 'games.md').read_text()
    assert card in done.stdout + '\n' and '| pong |' in card and 'CNN with 20 labels' in card


def test_what_is_found_is_kept(folder, tmp_path, monkeypatch):
    """A table that was stopped goes on; what other settings, code or recordings found is not it."""
    asked = []

    def examine(*args):
        asked.append(args)
        return dict(latent=np.array([True, False]), about_latent=dict(nmi=np.float64(0.5), used=8))

    monkeypatch.setattr(trial, 'examine', examine)
    once = str(folder / 'pong.h5'), str(tmp_path), 0, 200, ['--max_iters=3'], 900
    for _ in range(2):
        found = trial.examine_once('pong', *once)
        assert found['latent'].dtype == bool and found['latent'].tolist() == [True, False]
        assert found['about_latent'] == dict(nmi=0.5, used=8)
    assert asked == [('pong', *once)]
    other = str(tmp_path / 'other.h5')
    data.make_game(other, 600, 1, 0, 'wanderer', False)
    for changed in ({0: other}, {2: 1}, {3: 100}, {4: []}, {5: 3}):
        how = list(once)
        for i, value in changed.items():
            how[i] = value
        trial.examine_once('pong', *how)
        assert asked[-1] == ('pong', *how)
    monkeypatch.setattr(trial, 'here', str(tmp_path))
    for name in ('alignment', 'data', 'latent_actions', 'model', 'trial'):
        (tmp_path / f'{name}.py').write_text('another')
    trial.examine_once('pong', *once)
    assert len(asked) == 7


def test_what_moves_how_and_the_rank_correlation(folder):
    recording = data.load(str(folder / 'pong.h5'))
    shifts = trial.of_each(recording, np.arange(200), LatentActionModel.best_shift)
    clip = data.clips(recording.frames, [150], 2, 1, 'cpu')
    assert shifts.shape == (200,) and shifts.min() == -1 and shifts.max() > 0
    assert shifts[150] == LatentActionModel.best_shift(clip)[0, 0]
    assert trial.rank_correlation([1, 2, 30, 4], [0.1, 0.2, 0.9, 0.3]) == pytest.approx(1)
    assert trial.rank_correlation([3, 2, 1], [1, 2, 9]) == pytest.approx(-1)


def test_a_game_that_is_not_known(tmp_path):
    refused(run('games.py', f'--out_dir={tmp_path}', '--only=chess'), 2, 'chess', 'crafter, fourr')
