"""A game of gymnasium's becomes a dataset: what was done leads to what is shown next, the same seed
is the same file, and what cannot be recorded is said in a line. The games here are made up, so that
no package of games is needed; those that are installed are played at the end."""
import os
import sys
from types import ModuleType, SimpleNamespace

import h5py
import numpy as np
import pytest
from launch import refused, run_after

import data
from recordings import gym
from recordings.refusal import DataError
from recordings.video import resize_by_area


class Discrete:
    shape = ()

    def __init__(self, n, start=0):
        self.n, self.start = n, start


class Box:
    shape = (3,)

    def __repr__(self):
        return 'Box(-1.0, 1.0, (3,), float32)'


class MultiBinary(Box):
    n = 3


class Game:
    """Its picture shows from left to right how many steps were taken, the last action, and a colour
    that is drawn anew from the seed of each episode. It is observed as the number of steps."""
    metadata = {'render_fps': 30}
    size = 16, 16
    length = 7
    start = 0
    black_at_the_end = False

    def __init__(self, **settings):
        self.settings, self.closed = settings, False
        self.action_space = Discrete(3, self.start)
        self.unwrapped = self

    def reset(self, seed):
        self.t, self.last = 0, -1
        self.colour = int(np.random.default_rng(seed).integers(50, 250))
        return self.t, {}

    def step(self, action):
        assert self.start <= action < self.start + 3 and self.t < self.length
        self.t, self.last = self.t + 1, action - self.start
        return self.t, 0.0, self.t == self.length, False, {}

    def render(self):
        picture = np.zeros((*self.size, 3), np.uint8)
        if not (self.black_at_the_end and self.t == self.length):
            picture[:, :5] = 10 * self.t % 250
            picture[:, 5:10] = 80 * (self.last + 1)
            picture[:, 10:] = self.colour
        return picture

    def close(self):
        self.closed = True


@pytest.fixture
def game(monkeypatch):
    """A class of game, to be changed; a gymnasium that knows it as Fake/Game-v0 stands where the
    package would. game.made: the one that was played."""
    class Fake(Game):
        kwargs, made = {}, None

    def make(name, **settings):
        Fake.made = Fake(**settings)
        return Fake.made

    gymnasium = ModuleType('gymnasium')
    spec = SimpleNamespace(id='Fake/Game-v0', kwargs=Fake.kwargs)
    gymnasium.registry, gymnasium.make = {'Fake/Game-v0': spec}, make
    monkeypatch.setitem(sys.modules, 'gymnasium', gymnasium)
    for package in gym.PACKAGES.values():  # as if none was installed
        monkeypatch.setitem(sys.modules, package.split('.')[0], None)
    return Fake


def record(path, n_frames=40, size=16, **more):
    """Returns frames, actions, episode_starts, attributes, and what was noticed."""
    noticed = gym.record_gym(**{'env_id': 'Fake/Game-v0', **more}, path=str(path),
                             n_frames=n_frames, width=size, height=size)
    with h5py.File(path) as f:
        return (f['frames'][...], f['actions'][...], f['episode_starts'][...].tolist(),
                dict(f.attrs), noticed)


def test_an_action_leads_to_the_next_frame(game, tmp_path):
    frames, actions, starts, _, _ = record(tmp_path / 'a.h5', 200)
    assert frames.shape == (200, 16, 16, 3) and actions.shape == (200,)
    follows = np.setdiff1d(np.arange(1, 200), starts)
    assert np.array_equal(frames[follows, 0, 7, 0], 80 * (actions[follows - 1] + 1))
    assert set(actions.tolist()) == {0, 1, 2}
    assert not frames[starts, 0, 7].any(), 'nothing was done before an episode begins'
    assert game.made.closed


@pytest.mark.parametrize('frame_skip, shown', [(1, range(8)), (3, [0, 3, 6, 7]), (7, [0, 7]),
                                               (50, [0, 7])])
def test_frames_are_skipped_and_episodes_shown_to_their_end(game, tmp_path, frame_skip, shown):
    frames, actions, starts, attributes, _ = record(tmp_path / 'a.h5', 40, frame_skip=frame_skip)
    shown = list(shown)
    assert frames[:, 0, 0, 0].tolist() == [10 * t for t in (shown * 40)[:40]]
    assert starts == list(range(0, 40, len(shown)))
    assert attributes['fps'] == 30 / frame_skip
    ends = np.array(starts[1:]) - 1
    assert np.array_equal(actions[ends], actions[ends - 1]), 'the last action is the one before'


def test_a_black_picture_at_the_end_is_left_out(game, tmp_path):
    game.black_at_the_end = True
    frames, _, starts, _, _ = record(tmp_path / 'a.h5', 21)
    assert frames[:, 0, 0, 0].tolist() == [10 * t for t in range(7)] * 3 and starts == [0, 7, 14]


def test_a_game_does_not_skip_frames_or_repeat_actions_by_itself(game, tmp_path):
    game.kwargs.update(frameskip=4, repeat_action_probability=0.25, difficulty=1)
    record(tmp_path / 'a.h5')
    assert game.made.settings == dict(render_mode='rgb_array', frameskip=1,
                                      repeat_action_probability=0.0)


@pytest.mark.parametrize('policy', ['sticky', 'random'])
def test_the_same_seed_is_the_same_file(game, tmp_path, policy):
    for name, seed in ('a', 3), ('b', 3), ('c', 4):
        record(tmp_path / f'{name}.h5', seed=seed, policy=policy)
    a, b, c = ((tmp_path / f'{name}.h5').read_bytes() for name in 'abc')
    assert a == b
    _, actions, starts, _, _ = record(tmp_path / 'd.h5', 200, seed=3, policy=policy)
    frames, others, _, attributes, _ = record(tmp_path / 'e.h5', 200, seed=4, policy=policy)
    assert not np.array_equal(actions, others)
    assert len(set(frames[starts, 0, 12, 0].tolist())) > 5, 'each episode has a seed of its own'
    assert attributes['source'] == f'gym Fake/Game-v0 seed=4 policy={policy} frame_skip=1'


def test_sticky_holds_an_action_and_random_does_not(game, tmp_path):
    game.length = 23

    def changes(policy):
        actions = record(tmp_path / 'a.h5', 1000, policy=policy)[1]
        actions = np.delete(actions, np.arange(23, 1000, 24))  # repeated, at the end of an episode
        return np.flatnonzero(np.diff(actions))

    assert 0.6 < len(changes('random')) / 958 < 0.73, 'two in three are others'
    held = np.diff(changes('sticky'))
    assert 2 <= held.min() and 7 < held.mean() < 13, held.mean()  # 6.5, and one in three goes on


@pytest.mark.parametrize('policy', ['sticky', 'random'])
def test_only_some_keys_are_pressed(game, tmp_path, policy):
    _, actions, _, attributes, _ = record(tmp_path / 'a.h5', 100, policy=policy, keys=(0, 2))
    assert set(actions.tolist()) == {0, 2} and attributes['source'].endswith('keys=0,2')
    with pytest.raises(DataError, match='(?s)keys=0,3.*a game of 3 actions.*numbers up to 2'):
        record(tmp_path / 'b.h5', policy=policy, keys=(0, 3))
    assert not (tmp_path / 'b.h5').exists()


def test_a_policy_sees_what_the_game_says_and_is_obeyed(game, tmp_path):
    game.start = 5
    (tmp_path / 'mine.py').write_text('def act(observation):\n    return 5 + observation % 3\n')
    for frame_skip, expected in (1, [0, 1, 2, 0, 1, 2, 0, 0]), (2, [0, 2, 1, 0, 0]):
        _, actions, _, attributes, _ = record(
            tmp_path / 'a.h5', len(expected), frame_skip=frame_skip,
            policy=str(tmp_path / 'mine.py'))
        assert actions.tolist() == expected
    assert 'policy=mine.py' in attributes['source']


@pytest.mark.parametrize('about, names', [
    (dict(), ['action 0', 'action 1', 'action 2']),
    (dict(get_action_meanings=lambda self: ['NOOP', 'right A', 'LEFTFIRE']),
     ['noop', 'right+a', 'leftfire']),
    (dict(get_action_meanings=lambda self: ['NOOP']), ['action 0', 'action 1', 'action 2']),
    (dict(action_names=['noop', 'move_left', 'do']), ['noop', 'move left', 'do']),
    (dict(actions=SimpleNamespace(__members__=dict(left=0, right=1, forward=2))),
     ['left', 'right', 'forward']),
    (dict(button_map=[[0, 0], [0, 1], [1, 1]], game=SimpleNamespace(
        get_available_buttons=lambda: [SimpleNamespace(name='TURN_LEFT'),
                                       SimpleNamespace(name='ATTACK')])),
     ['noop', 'attack', 'turn left+attack'])])
def test_actions_are_called_what_the_game_calls_them(game, tmp_path, about, names):
    for key, value in about.items():
        setattr(game, key, value)
    assert record(tmp_path / 'a.h5')[3]['action_names'].tolist() == names


def test_the_rate_is_the_games_or_ones_own(game, tmp_path):
    game.metadata = {}
    assert record(tmp_path / 'a.h5', frame_skip=2)[3]['fps'] == gym.FPS / 2
    assert record(tmp_path / 'a.h5', frame_skip=2, fps=12.5)[3]['fps'] == 12.5
    game.metadata = dict(render_fps=30)
    game.ale = True
    assert record(tmp_path / 'a.h5', frame_skip=4)[3]['fps'] == 15, '60 a second, not 30'


def test_what_is_cut_away_is_said(game, tmp_path):
    game.size = 20, 16
    frames, _, _, _, noticed = record(tmp_path / 'a.h5')
    assert frames[:, :, 15].all(), 'no black bars'
    assert noticed == ['20% of the 16x20 picture is cut away around its centre (--pad keeps it)']
    frames, _, _, _, noticed = record(tmp_path / 'a.h5', pad=True)
    assert noticed == [] and not frames[:, :, 0].any(), 'black bars'
    game.size = 32, 32
    assert record(tmp_path / 'a.h5')[4] == []


# -----------------------------------------------------------------------------
# what cannot be recorded


REFUSALS = {
    'unknown': (dict(env_id='Fake/Gane-v0'), {}, ['no game of this name', 'perhaps Fake/Game-v0']),
    'far off': (dict(env_id='zzzz'), {}, ['no game of this name', 'perhaps ALE/Pong-v5']),
    'no package': (dict(env_id='Vizdoom-v9'), {}, ['vizdoom', 'requirements-games.txt']),
    'no module': (dict(env_id='no_such_module:A-v0'), {}, ["'no_such_module'", 'requirements-g']),
    'continuous': ({}, dict(action_space=Box()), ['actions Box(-1.0', 'Discrete(n)']),
    'buttons': ({}, dict(action_space=MultiBinary()), ['actions Box', 'Discrete(n)']),
    'no pictures': ({}, dict(render=lambda: None), ['draws NoneType', 'uint8 (h,w,3)']),
    'floats': ({}, dict(render=lambda: np.zeros((8, 8, 3))), ['ndarray (8, 8, 3)', 'uint8']),
    'does not start': ({}, dict(reset=None), ['does not start (TypeError', 'without a screen'])}


@pytest.mark.parametrize('case', REFUSALS)
def test_what_cannot_be_recorded_is_said_and_replaces_nothing(game, tmp_path, case):
    arguments, about, words = REFUSALS[case]
    init = game.__init__

    def changed(self, **settings):
        init(self, **settings)
        vars(self).update(about)

    game.__init__ = changed
    path = tmp_path / 'a.h5'
    path.write_bytes(b'what stood here')
    with pytest.raises(DataError) as e:
        gym.record_gym(**{**dict(env_id='Fake/Game-v0', path=str(path)), **arguments})
    said = str(e.value)
    assert len(said.splitlines()) <= 3 and max(map(len, said.splitlines())) < 200, said
    assert all(word in said for word in words), said
    assert path.read_bytes() == b'what stood here' and os.listdir(tmp_path) == ['a.h5']
    assert game.made is None or game.made.closed or 'actions' in said, 'it would go on'


@pytest.mark.parametrize('text, words', [
    (None, ['no such file', 'sticky, random or a Python file']),
    ('def play(observation):\n    return 0\n', ['no function act']),
    ('act = 3\n', ['no function act']),
    ('def act(observation)\n', ['SyntaxError in line 1']),
    ('import os\n1 / 0\n', ['ZeroDivisionError in line 2']),
    ('def act(observation):\n    return observation.x\n', ['AttributeError in line 2', "'x'"]),
    ('def act():\n    return 0\n', ['TypeError: act() takes 0']),
    ('def act(observation):\n    return 3\n', ['act(observation) = 3', '0 to 2']),
    ('def act(observation):\n    return -1\n', ['act(observation) = -1', '0 to 2']),
    ('def act(observation):\n    return 0.5\n', ['act(observation) = 0.5']),
    ('def act(observation):\n    return [0, 1]\n', ['act(observation) = [0, 1]']),
    ('def act(observation):\n    pass\n', ['act(observation) = None'])])
def test_a_policy_that_does_not_work_is_said(game, tmp_path, text, words):
    policy, path = tmp_path / 'mine.py', tmp_path / 'out' / 'a.h5'
    path.parent.mkdir()
    path.write_bytes(b'what stood here')
    if text:
        policy.write_text(text)
    with pytest.raises(DataError) as e:
        record(path, policy=str(policy))
    assert str(e.value).startswith(f'{policy}: found ') and len(str(e.value).splitlines()) <= 3
    assert all(word in str(e.value) for word in words), e.value
    assert path.read_bytes() == b'what stood here' and os.listdir(path.parent) == ['a.h5']
    assert game.made.closed


def test_a_game_that_breaks_while_it_is_played_replaces_nothing(game, tmp_path):
    path = tmp_path / 'a.h5'
    path.write_bytes(b'what stood here')
    game.length = 1000

    def step(self, action):
        self.t += 1
        if self.t == 20:
            raise RuntimeError('the console is on fire')
        return self.t, 0.0, False, False, {}

    game.step = step
    with pytest.raises(RuntimeError, match='on fire'):
        record(path, 100)
    assert path.read_bytes() == b'what stood here' and os.listdir(tmp_path) == ['a.h5']
    assert game.made.closed


@pytest.mark.slow
def test_the_command_says_which_package_is_missing(tmp_path):
    r = run_after('import sys; sys.modules["gymnasium"] = None', 'data.py', 'gym', 'ALE/Pong-v5',
                  tmp_path / 'a.h5')
    refused(r, 3, 'ALE/Pong-v5: found', 'gymnasium', 'pip install -r requirements-games.txt')
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize('args, words', [
    (['ALE/Pong-v5'], ['path']), (['ALE/Pong-v5', 'a.mp4'], ['should end in .h5']),
    (['ALE/Pong-v5', 'a.h5', '--n_frames=1'], ['--n_frames', '2 to']),
    (['ALE/Pong-v5', 'a.h5', '--seed=-1'], ['--seed', '0 or more']),
    (['ALE/Pong-v5', 'a.h5', '--frame_skip=0'], ['--frame_skip=0', '1 to 1000']),
    (['ALE/Pong-v5', 'a.h5', '--fps=0'], ['--fps=0', 'above 0']),
    (['ALE/Pong-v5', 'a.h5', '--size=4'], ["'4'", 'of 8 to 2048'])])
def test_numbers_have_limits(args, words, monkeypatch, capsys):
    monkeypatch.setattr('sys.argv', ['data.py', 'gym', *args])
    with pytest.raises(SystemExit) as e:
        data.parse_command_line()
    said = capsys.readouterr().err
    assert e.value.code == 2 and all(word in said for word in words), said


# -----------------------------------------------------------------------------
# real ones, where requirements-games.txt is installed


def test_atari_is_what_it_says(tmp_path):
    pytest.importorskip('ale_py')
    frames, actions, starts, attributes, _ = record(
        tmp_path / 'a.h5', 120, 64, env_id='ALE/Pong-v5', frame_skip=4, pad=True)
    assert attributes['action_names'].tolist() == ['noop', 'fire', 'right', 'left', 'rightfire',
                                                   'leftfire']
    assert attributes['fps'] == 15 and starts == [0] and len(set(actions.tolist())) > 3
    assert len(np.unique(frames, axis=0)) > 60
    record(tmp_path / 'b.h5', 120, 64, env_id='ALE/Pong-v5', frame_skip=4, pad=True)
    assert (tmp_path / 'a.h5').read_bytes() == (tmp_path / 'b.h5').read_bytes()
    with pytest.raises(DataError, match='perhaps ALE/Pong-v5'):
        record(tmp_path / 'a.h5', env_id='ALE/Pong-v50')


def test_minigrid_played_again_shows_the_same(tmp_path):
    pytest.importorskip('minigrid')
    frames, actions, starts, attributes, _ = record(tmp_path / 'a.h5', 60, 64,
                                                    env_id='MiniGrid-DoorKey-8x8-v0')
    names = attributes['action_names'].tolist()
    assert names == ['left', 'right', 'forward', 'pickup', 'drop', 'toggle', 'done']
    assert attributes['fps'] == 10 and starts == [0]
    env = gym.make_env('MiniGrid-DoorKey-8x8-v0', (64, 64), 0)
    env.reset(seed=int(np.random.default_rng([0, 12]).integers(2 ** 31)))
    for frame, action in zip(frames, actions):
        assert np.array_equal(frame, resize_by_area(env.render(), 64, 64, False))
        env.step(action)


def test_crafter_draws_itself_in_the_size_asked_for(tmp_path):
    pytest.importorskip('crafter')
    frames, _, _, attributes, noticed = record(tmp_path / 'a.h5', 20, 128,
                                               env_id='CrafterReward-v1')
    assert attributes['action_names'][1] == 'move left' and noticed == []
    assert (frames[:, ::2] != frames[:, 1::2]).any(), 'drawn with 64 pixels and enlarged'


def test_doom_leaves_nothing_where_it_was_started(tmp_path, monkeypatch):
    pytest.importorskip('vizdoom')
    monkeypatch.chdir(tmp_path)
    frames, _, _, attributes, _ = record(tmp_path / 'a.h5', 200, 64, frame_skip=4,
                                         env_id='VizdoomHealthGathering-v1')
    assert os.listdir(tmp_path) == ['a.h5'] and (frames.max((1, 2, 3)) > 0).all()
    assert attributes['action_names'].tolist() == ['noop', 'move forward', 'turn right',
                                                   'turn left']
