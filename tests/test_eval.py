"""eval.py tells a perfect world, one that ignores its actions, and one whose actions mean nothing
from each other."""
import json
import runpy
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from launch import ROOT, dataset_of, recording as make_recording, refused, run, run_after, train

import data
import faithful
import pictures
import world as world_module
from recordings import game

CONTEXT = 2
slow = pytest.mark.slow


class Frames:
    """A tokenizer without loss: a frame's one token is its number in a list."""
    config = SimpleNamespace(height=64, width=64, patch_size=8, temporal=False)
    vocab_size = 1 << 16

    def __init__(self):
        self.number, self.frames = {}, []

    def add(self, frame):
        key = frame.tobytes()
        if key not in self.number:
            self.number[key] = len(self.frames)
            self.frames.append(frame)
        return self.number[key]

    def encode(self, clip):
        return torch.tensor([[[self.add(f)] for f in c] for c in pictures.to_uint8(clip)])

    def decode(self, tokens):
        frames = np.stack([self.frames[i] for i in tokens.flatten().tolist()])
        frames = torch.from_numpy(frames).movedim(-1, -3).float().div(127.5).sub(1)
        return frames.view(*tokens.shape[:2], 3, 64, 64)


class Oracle:
    """The game itself behind the interface of the three models.

    obeys=False: it plays on with actions of its own.
    """

    def __init__(self, recording, frames, obeys=True):
        self.n_used = 6
        self.config = SimpleNamespace(n_actions=6, seq_len=CONTEXT + 1, n_classes=0)
        self.recording, self.tokenizer, self.obeys = recording, frames, obeys
        self.place = {f.tobytes(): t for t, f in enumerate(recording.frames)}
        self.loss = 1.0

    def __call__(self, tokens, actions):
        right = self.true_actions(self.tokenizer.decode(tokens))
        is_right = (actions == right) | (actions == 6) if self.obeys else torch.ones(1)
        return is_right.float().mean().mul(-1).add(2), {}

    def true_actions(self, clip):
        """The true actions (B,T-1). A frame may occur twice with another action: the pair of
        frames decides."""
        frames = pictures.to_uint8(clip)
        found = np.zeros(frames.shape[:2], int)[:, 1:]
        for b, t in np.ndindex(*found.shape):
            found[b, t] = self.pairs[frames[b, t].tobytes(), frames[b, t + 1].tobytes()]
        return torch.from_numpy(found)

    @property
    def pairs(self):
        if not hasattr(self, 'known'):
            frames, actions = self.recording.frames, self.recording.actions
            self.known = {(frames[t].tobytes(), frames[t + 1].tobytes()): actions[t]
                          for t in range(len(frames) - 1)}
        return self.known

    encode = true_actions

    def generate(self, tokens, actions, maskgit_steps, temperature, generator):
        B, T = tokens.shape[:2]
        at = [self.place[self.tokenizer.frames[i].tobytes()] for i in tokens[:, -1, 0].tolist()]
        state = {k: v[at] for k, v in self.recording.truth.items()}
        g = game.Game(B, state.get('layout', 0))
        g.set_state(state)
        out = [tokens]
        for t in range(T - 1, actions.size(1)):
            none = (actions[:, t].numpy() == 6) & self.obeys  # nothing changes
            action = actions[:, t].numpy() % 6 if self.obeys else np.arange(B) % 6
            new = torch.tensor([[[self.tokenizer.add(f)]] for f in g.step(action)])
            out.append(torch.where(torch.from_numpy(none)[:, None, None], out[-1][:, -1:], new))
        return torch.cat(out, 1)


@pytest.fixture(scope='module')
def recording(tmp_path_factory):
    """The built-in game with a creature that never moves: what changes is the action's doing."""
    was, game.CREATURE_MOVES = game.CREATURE_MOVES, 0.0
    path = tmp_path_factory.mktemp('game') / 'a.h5'
    data.make_game(str(path), n_frames=6000)
    yield str(path)
    game.CREATURE_MOVES = was


def run_eval(patch, recording, out_dir, *args, spoil=None):
    """The names that eval.py leaves behind when it has run on the oracle; spoil may change that."""
    loaded, frames = data.load(recording), Frames()
    models = SimpleNamespace(tokenizer=frames, dynamics=Oracle(loaded, frames),
                             action_model=Oracle(loaded, frames), names=list(game.ACTIONS))
    if spoil:
        spoil(models)
    about = dict(config=dict(frame_stride=1, action_source='latent'), action_names=models.names,
                 id='x', iter=0, parents={})
    patch.setattr(world_module, 'load_world', lambda *_: (
        models.tokenizer, models.action_model, models.dynamics, about, data.load(recording)))
    patch.setattr(sys, 'argv', ['eval.py', f'--dataset={recording}', f'--out_dir={out_dir}',
                                '--device=cpu', '--n_games=0', *args])
    return SimpleNamespace(**runpy.run_path(str(ROOT / 'eval.py')))


def evaluate(recording, tmp_path, monkeypatch, spoil=None):
    """eval.py's report on the oracle."""
    run_eval(monkeypatch, recording, tmp_path, '--n_windows=24', '--n_frames=8', spoil=spoil)
    return json.loads((tmp_path / 'eval.json').read_text())


@slow
def test_a_perfect_world(recording, tmp_path, monkeypatch):
    report = evaluate(recording, tmp_path, monkeypatch)
    for t in ('1', '2', '4', '8'):
        assert report['world']['psnr'][t] == report['ceiling']['psnr'][t] == pytest.approx(100)
        assert report['world']['ssim'][t] == pytest.approx(1)
        assert report['floor']['psnr'][t] < 35 and report['mean']['psnr'][t] < 35
        assert report['ci'][f'delta_psnr.{t}'][0] > 10
    assert report['obey'] == report['obey_blocked'] == 1
    assert set(report['obey_by_action'].values()) == {1}
    a = report['align']['moved']
    assert a['nmi'] == pytest.approx(1)
    assert a['accuracy'] == a['from_200'] == a['one_to_one'] == 1
    assert report['align']['accuracy'] > 0.95  # into a wall or nothing at all: the frames are equal
    moved = np.array(report['align']['moved']['confusion'])
    assert moved.trace() == moved.sum() == report['align']['moved']['n'] > 100
    assert report['shuffled_ratio'] > 1.2
    for name in ('atlas.png', 'atlas.gif', 'psnr.png'):
        assert (tmp_path / 'samples' / name).exists()
    assert report['meta']['data_id'] and report['meta']['n_windows'] == 24


class Beside:
    """For faithful.Both: the game beside itself, with a hero who is nowhere after ten steps."""
    starts = []  # of each that was made

    def __init__(self, world, picks, codes, *_):
        assert codes.tolist() == list(range(6))
        self.starts.append(picks)
        self.real, self.steps = game.Game(len(picks)), 0
        self.real.reset(0)

    def step(self, keys):
        self.frames, self.steps = self.real.step(keys), self.steps + 1
        if self.steps > 10:
            self.frames = self.frames * 0
        return faithful.compare(self.real, self.frames)


@slow
def test_how_long_the_dream_is_the_game(recording, tmp_path, monkeypatch):
    monkeypatch.setattr(faithful, 'Both', Beside)
    run_eval(monkeypatch, recording, tmp_path, '--n_windows=24', '--n_frames=2', '--n_games=6')
    report = json.loads((tmp_path / 'eval.json').read_text())
    for who in ('wanderer', 'bumper'):
        f = report['faithful'][who]
        assert f['median'] == 10 and f['quartiles'] == [10, 10]
        assert f['agree']['4'] == f['hero']['4'] == 1 and f['agree']['16'] == f['hero']['16'] == 0
        assert sum(n for n, _ in f['parted_at'].values()) == 6
        assert all(n == lost for n, lost in f['parted_at'].values())
    assert report['faithful']['one_step']['straight'] == 1
    assert report['faithful']['one_step']['on from a new screen'] == 1
    screens, just_in = data.load(recording).truth['screen'], Beside.starts[-1]
    assert len(just_in) and (screens[just_in] != screens[just_in + 1]).all()
    card = (tmp_path / 'eval.md').read_text()
    assert 'They part for good after 10 [10, 10] frames' in card and 'facing a wall' in card


@slow
def test_a_world_that_ignores_its_actions(recording, tmp_path, monkeypatch):
    def spoil(models):
        models.dynamics.obeys = False
    report = evaluate(recording, tmp_path, monkeypatch, spoil)
    for t in ('1', '2', '4', '8'):
        low, high = report['ci'][f'delta_psnr.{t}']
        assert low <= 0 <= high and report['delta_psnr'][t] == pytest.approx(0, abs=1e-6)
        assert report['world']['psnr'][t] < 40
    assert report['obey'] < 0.5
    assert report['shuffled_ratio'] == pytest.approx(1)


@slow
def test_actions_that_mean_nothing(recording, tmp_path, monkeypatch):
    """Labels shuffled: no metric of alignment sees more in them than the most frequent label gives
    for free."""
    load = data.load

    def shuffled(path, *more):
        loaded = load(path, *more)
        loaded.actions = np.random.default_rng(0).permutation(loaded.actions)
        return loaded

    def spoil(models):
        monkeypatch.setattr(data, 'load', shuffled)
    report = evaluate(recording, tmp_path, monkeypatch, spoil)
    for a in (report['align'], report['align']['moved']):
        assert a['nmi'] < 0.05 and a['accuracy'] < 0.35
        assert a['from_200'] < 0.35 and a['one_to_one'] < 0.35


@slow
def test_actions_under_other_numbers(recording, tmp_path, monkeypatch):
    """Codes are numbers without an order: a permutation changes no figure."""
    order = torch.tensor([3, 5, 0, 1, 4, 2, 6])  # code of each action, and of none
    action_of = order.argsort()

    def spoil(models):
        true = models.action_model.encode
        models.action_model.encode = lambda clip: order[true(clip)]
        step = models.dynamics.generate
        models.dynamics.generate = lambda tokens, actions, *more: step(
            tokens, action_of[actions], *more)
        models.names = [game.ACTIONS[i] for i in action_of[:6]]
    report = evaluate(recording, tmp_path, monkeypatch, spoil)
    assert report['obey'] == 1 and report['align']['moved']['one_to_one'] > 0.99
    assert report['world']['psnr']['8'] == pytest.approx(100)


@slow
def test_a_name_that_no_action_has_is_not_obeyed(recording, tmp_path, monkeypatch):
    def spoil(models):
        models.names[game.LEFT] = ''
    report = evaluate(recording, tmp_path, monkeypatch, spoil)
    assert report['obey_by_action'] == dict(up=1, down=1, left=0, right=1)
    assert 0.5 < report['obey'] < 1


@slow
def test_a_window_alone_is_not_compared_with_itself(recording, tmp_path, monkeypatch):
    """The last of 17, which go through the networks 16 at a time."""
    names = run_eval(monkeypatch, recording, tmp_path, '--n_windows=17', '--n_frames=2')
    assert len(names.errors['world']) == 17 and len(names.losses) == 1


@slow
def test_a_hunter_is_judged_in_the_world_of_each_episode(tmp_path, monkeypatch):
    monkeypatch.setattr(game, 'CREATURE_MOVES', 0.0)
    path = str(tmp_path / 'hunt.h5')
    data.make_game(path, n_frames=3000, player='hunter')
    report = evaluate(path, tmp_path, monkeypatch)
    assert report['obey'] == report['obey_blocked'] == 1


@slow
def test_eval_writes_its_card(world):
    config, out, _ = world
    said = train('eval.py', config, '--n_windows=8').stdout
    report = json.loads((out / 'eval.json').read_text())
    horizons = {'1', '2', '4'}
    assert set(report['world']['psnr']) == set(report['floor']['psnr']) == horizons
    assert set(report['delta_psnr']) == horizons
    assert report['tokenizer']['psnr'] > 5 and len(report['ci']['world.psnr.1']) == 2
    assert (out / 'eval.md').read_text().strip() in said
    assert 'Does an action do the same thing everywhere?' in said
    for key in ('consistency', 'dreamed_consistency'):
        told = report[key]
        assert 0 < told['chance'] <= told['share'] <= 1 and 1 < told['told'] <= told['n']


@slow
@pytest.mark.row(47)
def test_a_folder_that_cannot_be_written_costs_no_number(world, tmp_path, read_only):
    out = shutil.copytree(world[1], tmp_path / 'out')
    for path in (out / 'eval.json', out / 'eval.md'):
        path.unlink(missing_ok=True)
    args = [world[0], f'--out_dir={out}', '--n_windows=8']
    done = run_after(read_only(out), 'eval.py', *args)
    refused(done, 7, 'eval.json: cannot be written')
    said = done.stdout.splitlines()
    assert said[1].startswith(f'the card will be printed and not kept: {out}: cannot be written')
    assert said[2] == f'# {out} on {dataset_of(world)}'
    assert '| PSNR, all pixels | ' in done.stdout and 'Loss with the actions of' in done.stdout
    assert not (out / 'eval.json').exists() and not (out / 'eval.md').exists()


@slow
@pytest.mark.row(47)
def test_a_picture_that_cannot_be_written_costs_no_number(world, tmp_path):
    out = shutil.copytree(world[1], tmp_path / 'out')
    shutil.rmtree(out / 'samples', ignore_errors=True)
    (out / 'samples').write_text('in the way')
    done = run('eval.py', world[0], f'--out_dir={out}', '--n_windows=8')
    refused(done, 7, 'psnr.png: cannot be written')
    assert (out / 'eval.md').read_text().strip() in done.stdout
    assert json.loads((out / 'eval.json').read_text())['world']['psnr']['1'] > 0


@slow
def test_another_recording_is_said_on_the_card(world, tmp_path):
    path = make_recording(tmp_path / 'grown.h5', n=170)
    out = shutil.copytree(world[1], tmp_path / 'out')
    args = [world[0], f'--out_dir={out}', '--n_windows=2000000000']
    said = train('eval.py', *args).stdout
    own = json.loads((out / 'eval.json').read_text())['meta']
    assert 'note: ' not in said and set(own['trained_on'].values()) == {own['data_id']}
    said = train('eval.py', *args, f'--dataset={path}').stdout
    other = json.loads((out / 'eval.json').read_text())['meta']
    assert other['trained_on'] == own['trained_on'] and other['data_id'] != own['data_id']
    assert set(other['trained_on']) == {'tokenizer', 'latent_actions', 'dynamics'}
    note, = [x for x in (out / 'eval.md').read_text().splitlines() if x.startswith('note: ')]
    assert own['data_id'] in note and other['data_id'] in note and said.count(note) == 2


@slow
def test_a_recording_that_is_too_short_is_said_in_the_keys_of_eval(world):
    done = run('eval.py', world[0], '--n_frames=30')
    refused(done, 3, 'n_frames=30 after 2 of context', 'at least 32 frames', 'lower n_frames')
    assert 'seq_len' not in done.stderr


# -----------------------------------------------------------------------------
# eval.py's own functions


@pytest.fixture(scope='module')
def functions(recording, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        out = tmp_path_factory.mktemp('out')
        return run_eval(patch, recording, out, '--n_windows=2', '--n_frames=2')


def test_ssim_needs_all_digits(functions):
    """As in a run in bfloat16, where it would be off by a hundredth."""
    a = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected = functions.ssim(a, 0.9 * a)
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(functions.ssim(a, 0.9 * a), expected)


def test_ssim(functions):
    """Against the definition, window by window."""
    rng = np.random.default_rng(0)
    a = rng.uniform(-1, 1, (3, 13, 15))
    b = np.clip(a + rng.normal(0, 0.3, a.shape), -1, 1)
    g = np.exp(-(np.arange(11) - 5) ** 2 / 4.5)
    g = np.outer(g, g) / np.outer(g, g).sum()
    values = []
    for c, y, x in np.ndindex(3, 3, 5):
        p, q = a[c, y:y + 11, x:x + 11], b[c, y:y + 11, x:x + 11]
        mp, mq = (g * p).sum(), (g * q).sum()
        vp, vq = (g * (p - mp) ** 2).sum(), (g * (q - mq) ** 2).sum()
        cov = (g * (p - mp) * (q - mq)).sum()
        above = (2 * mp * mq + 0.0004) * (2 * cov + 0.0036)
        values.append(above / ((mp ** 2 + mq ** 2 + 0.0004) * (vp + vq + 0.0036)))
    ta, tb = torch.from_numpy(a)[None], torch.from_numpy(b)[None]
    assert functions.ssim(ta, tb).item() == pytest.approx(np.mean(values), rel=1e-3)
    assert functions.ssim(ta, ta).item() == pytest.approx(1)


def test_psnr(functions):
    assert functions.psnr(np.array([0.04])) == pytest.approx(20)  # a hundredth of the range squared


def test_find_hero(functions):
    rec = game.record(500)
    found, facing = functions.find_hero(rec['frames'])
    assert (found == rec['truth']['hero'] // game.STEP).all()
    nobody = game.Game().screens
    assert (functions.find_hero(nobody)[0] == -1).all()
