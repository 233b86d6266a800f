"""Stage 4: what each way to train an energy model beside a policy holds apart, what there is to
learn from a recording, and somebody who plays."""
import contextlib
import copy
import json
import math
import shutil
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch

import configurator
import data
import scores
from launch import CONFIG, ROOT, STAGES, recording as make_recording, refused, run, train
from model import ENERGY, Optimizers, Policy, PolicyConfig
from player import Played, Player, meaning_of_codes
from recordings import game, reading
from recordings.hunter import Hunter
from training import checkpoint

SMALL = dict(height=16, width=16, patch_size=4, chunk=3, n_layer=2, n_head=2, n_embd=16)


def make(energy='isolated', seed=0, **other):
    torch.manual_seed(seed)
    model = Policy(PolicyConfig(**{**SMALL, **other}, energy=energy))
    if model.config.n_tokens == 1:
        model.table.copy_(2 * torch.eye(model.config.vocab_size) - 1)
    else:
        model.table.copy_(torch.linspace(-1, 1, model.config.vocab_size)[:, None])
    return model


def batch(it, B=8, model=None, seed=0):
    """A batch whose right answer is to be read off the picture: the brightness of its corner."""
    g = torch.Generator().manual_seed(1000 * seed + it)
    c = model.config
    tokens = torch.randint(c.vocab_size, (B, c.chunk, c.n_tokens), generator=g)
    clip = torch.rand(B, c.seq_len, 3, 16, 16, generator=g) * 0.1
    clip[:, -1, 0, 0, :c.chunk * c.n_tokens] = tokens.flatten(1) / c.vocab_size * 2 - 1
    exists = torch.ones(B, c.chunk, dtype=torch.bool)
    return clip, tokens, model.vectors_of(tokens), exists, it


def updates(model, n=30, first=1, optimizers=None, each=None):
    """Trains as the scripts do: a seed for each update, parts clipped apart."""
    optimizers = optimizers or Optimizers(model, 'muon', 3e-3, 0.0)
    parts = [list(m.parameters()) for m in model.apart]
    metrics = {}
    for it in range(first, first + n):
        torch.manual_seed(it)
        loss, metrics = model(*batch(it, model=model))
        loss.backward()
        for part in parts:
            torch.nn.utils.clip_grad_norm_(part, 1.0)
        optimizers.step()
        if each:
            each(it, model, optimizers)
        optimizers.zero_grad()
    return optimizers, metrics


def moments(model, optimizers, part):
    """Weights and moments of the parameters whose names begin so, as one list of tensors."""
    found = []
    for name, p in model.named_parameters():
        if name.startswith(part):
            state = next((o.state[p] for o in optimizers.each if p in o.state), {})
            found += [p.detach().clone(), *(v.clone() for v in state.values()
                                            if isinstance(v, torch.Tensor))]
    return found


def equal(a, b):
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b))


@pytest.fixture(scope='module')
def trained():
    """energy -> (model, optimizers) after 30 updates from one seed."""
    done = {}
    for energy in ENERGY:
        model = make(energy, shift=1)
        done[energy] = model, updates(model)[0]
    return done


# -----------------------------------------------------------------------------
# how far the two touch


@pytest.mark.parametrize('energy', ['isolated', 'separated', 'cached'])
def test_an_energy_model_beside_it_changes_no_bit_of_the_policy(trained, energy):
    assert equal(moments(*trained['off'], 'actor'), moments(*trained[energy], 'actor'))


def test_isolated_and_separated_train_the_same_energy_model(trained):
    found = [moments(*trained[energy], 'energy_model') for energy in ('isolated', 'separated')]
    assert found[0] and equal(*found)


def test_joint_is_another_policy(trained):
    assert not equal(moments(*trained['off'], 'actor'), moments(*trained['joint'], 'actor'))


@pytest.mark.parametrize('energy', ENERGY[1:])
def test_the_gradient_of_the_energy_on_the_policy(energy):
    model = make(energy)
    updates(model, 3)  # heads that begin as zero pass nothing on
    it = 8 if energy == 'alternating' else 4  # the energy model's turn
    clip, tokens, vectors, exists, _ = batch(it, model=model)
    _, metrics = model(clip, tokens, vectors, exists, it)
    assert (metrics['grad_policy_from_energy'] > 0) == (energy == 'joint')
    # found by another way: what the whole loss adds to the gradients of a policy alone
    off = make('off')
    off.load_state_dict(model.state_dict(), strict=False)
    alone = off(clip, tokens, vectors, exists, it)[0]
    alone.backward()
    torch.manual_seed(0)
    model.zero_grad(set_to_none=True)
    model(clip, tokens, vectors, exists, it)[0].backward()
    theirs = dict(off.actor.named_parameters())
    for name, p in model.actor.named_parameters():
        if energy == 'alternating':
            assert p.grad is None, name
        elif energy != 'joint':
            assert torch.equal(p.grad, theirs[name].grad), name
    if energy == 'joint':
        assert any(not torch.equal(p.grad, theirs[n].grad)
                   for n, p in model.actor.named_parameters())


def test_alternating_one_stands_still_while_the_other_learns():
    seen = {}

    def look(it, model, optimizers):
        seen[it] = {part: moments(model, optimizers, part) for part in ('actor', 'energy_model')}

    updates(make('alternating'), 20, each=look)
    for it in range(2, 21):
        policy_turn = (it - 1) // 5 % 2 == 0
        assert equal(seen[it]['actor'], seen[it - 1]['actor']) != policy_turn
        assert equal(seen[it]['energy_model'], seen[it - 1]['energy_model']) == policy_turn


@pytest.mark.parametrize('policy_losses, energy_losses, shares', [
    ([1.0] * 10, [1.0] * 10, (10, 10)),
    ([1.0, 3.0] * 5, [1.0] * 10, (5, 10)),
    ([1.0] * 10, [1.0, 3.0] * 5, (10, 3)),
    ([1.0, 3.0] * 5, [1.0, 3.0] * 5, (5, 10)),  # one at a time: the policy first
    ([1.0] * 9, [1.0] * 9, (10, 1)),  # not enough is known
])
def test_adaptive_the_restless_one_leaves_updates_out(policy_losses, energy_losses, shares):
    model = make('adaptive')
    losses = torch.tensor([policy_losses, energy_losses]).T
    model.history[-len(losses):] = losses
    turns = [model.turns(it) for it in range(101, 111)]
    assert (sum(a for a, _ in turns), sum(b for _, b in turns)) == shares


def test_adaptive_remembers_means_over_micro_batches():
    model = make('adaptive')
    for it, losses in ((1, [1.0, 2.0]), (1, [3.0, 4.0]), (2, [5.0, 5.0])):
        model.remember(it, torch.tensor(losses))
    assert model.history[-3:].tolist() == [[-1, -1], [2, 3], [5, 5]]
    # the second micro-batch of an update decides by what the first one knew
    assert model.shares(2) == model.shares(3)


def test_cached_sees_the_same_for_fifty_updates():
    model = make('cached')
    assert model.renewal == 50
    model.renewal = 8  # or it would take long
    clip = batch(0, model=model)[0]
    seen = {}

    def look(it, model, optimizers):
        model.eval()
        fresh = model.actor(clip)
        model.train()
        with torch.no_grad():
            seen[it] = model.given(fresh, clip, None, 2)  # not an update in which it is renewed

    updates(model, 18, each=look)
    for it in range(1, 18):
        same = equal(list(seen[it]), list(seen[it + 1]))
        assert same == (it % 8 != 0), it


@pytest.mark.parametrize('energy', ['adaptive', 'cached', 'alternating'])
def test_killed_between_it_goes_on_with_the_same_bits(energy):
    whole = make(energy)
    updates(whole, 24)
    first = make(energy)
    optimizers, _ = updates(first, 13)
    state = copy.deepcopy((first.state_dict(), optimizers.state_dict()))
    resumed = make(energy, seed=1)
    again = Optimizers(resumed, 'muon', 3e-3, 0.0)
    resumed.load_state_dict(state[0])
    resumed.probe.copy_(first.probe)  # which the script makes anew
    for o, s in zip(again.each, state[1]):
        o.load_state_dict(s)
    updates(resumed, 11, first=14, optimizers=again)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(),
                                                 resumed.state_dict().values()))


def test_drift_is_measured_every_so_many_updates():
    model = make()
    model.probe.uniform_(-1, 1)
    model.renewal, drifts = 8, []
    updates(model, 18, each=lambda it, m, o: drifts.append(m.drift.item()))
    assert set(drifts[:8]) == {0.0} and drifts[8] > 0 and len(set(drifts)) == 3


# -----------------------------------------------------------------------------
# the losses


@pytest.mark.parametrize('other', [{}, dict(n_tokens=2, n_numbers=2, vocab_size=5)])
def test_eight_windows_by_heart(other):
    model = make(**other, chunk=2)
    start = model(*batch(1, model=model))[0].item()
    assert abs(start - math.log(model.config.vocab_size)) < 0.3
    optimizers = Optimizers(model, 'muon', 3e-3, 0.0)
    for it in range(1, 301):
        torch.manual_seed(it)
        if it == 200:
            for group in optimizers.param_groups:
                group['lr'] = 3e-4
        loss, metrics = model(*batch(1, model=model)[:4], it)
        loss.backward()
        optimizers.step()
        optimizers.zero_grad()
    assert metrics['accuracy'] == 1 and metrics['loss_ct'] < 0.02 and metrics['rank_acc'] == 1


def test_shuffled_labels_teach_nothing():
    model, hits = make(), []
    optimizers = Optimizers(model, 'muon', 1e-3, 0.0)
    for it in range(1, 61):
        clip, tokens, vectors, exists, _ = batch(it, 32, model=model)
        others = batch(it, 32, model=model, seed=1)
        loss, metrics = model(clip, others[1], others[2], exists, it)
        loss.backward()
        optimizers.step()
        optimizers.zero_grad()
        hits.append(metrics['accuracy'].item())
    assert np.mean(hits[-20:]) < 0.25  # 1/6, all being as frequent


def test_steps_beyond_the_end_of_an_episode_get_no_gradient():
    model = make('joint')
    updates(model, 3)
    grads = []
    for changed in (False, True):
        clip, tokens, vectors, exists, _ = batch(9, model=model)
        exists[:4, 1:] = False
        if changed:
            tokens[:4, 1:] = (tokens[:4, 1:] + 1) % 6
            vectors = model.vectors_of(tokens)
        model.zero_grad()
        # what else is drawn may not differ: no wrong answers of others' chunks
        seen = model.actor(clip)
        loss, total, _ = model.imitation(seen, tokens, vectors, exists)
        wrong = torch.zeros(8, 5, 3, 6)
        energy_loss, _ = model.judgement(seen.context, vectors, wrong, exists)
        (total + energy_loss).backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert equal(*grads)


def test_the_loss_is_the_cross_entropy_and_its_gradient_that_of_all():
    model = make('isolated')
    b = batch(1, model=model)
    loss, metrics = model(*b)
    seen = model.actor(b[0])
    assert torch.isclose(loss, torch.nn.functional.cross_entropy(
        seen.logits.flatten(0, 2), b[1].flatten()))
    assert metrics['total'] > loss
    loss.backward()
    assert model.actor.head.out.weight.grad.abs().sum() > 0
    assert model.energy_model.judge[-1].weight.grad.abs().sum() > 0


def test_wrong_answers_near_the_truth_are_left_out():
    model = make()
    _, tokens, vectors, exists, _ = batch(1, model=model)
    seen = model.actor(batch(1, model=model)[0])
    wrong = torch.stack([vectors, vectors + 0.04, vectors + 0.06, -vectors], 1)
    _, metrics = model.judgement(seen.context, vectors, wrong, exists)
    assert metrics['n_negatives'] == 2


def test_warnings_name_what_a_constant_knows():
    model = make()
    model.entropy.fill_(1.5)
    good = dict(val_loss=1.0, val_loss_ct=0.1, val_loss_ct_median=0.3)
    assert not list(model.warnings(good))
    assert 'median' in next(model.warnings({**good, 'val_loss_ct': 0.28}))
    assert 'occurs' in next(model.warnings({**good, 'val_loss': 1.6}))
    assert not list(model.warnings({**good, 'val_loss': 1.9}))  # worse than a guess: the guard's


# -----------------------------------------------------------------------------
# acting


def test_choosing(trained):
    model = trained['isolated'][0]
    clip, tokens, *_ = batch(3, model=model)
    seen = model.actor(clip)
    likely, vectors, p = model.choose(clip, temperature=0)
    assert torch.equal(likely, seen.logits.argmax(-1))
    assert torch.equal(vectors, model.vectors_of(likely))
    assert torch.allclose(p, seen.logits[:, 0, 0].softmax(-1).amax(-1))
    drawn = [model.choose(clip, generator=torch.Generator().manual_seed(s))[0] for s in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[1], drawn[2])
    # the chunk of lowest energy among those that were drawn
    many = model.draw(seen.logits, 16, 1.0, torch.Generator().manual_seed(5))
    energy = model.energy_model(seen.context, model.vectors_of(many))
    best = model.choose(clip, 16, generator=torch.Generator().manual_seed(5))[0]
    assert torch.equal(best, many[torch.arange(8), energy.argmin(1)])


def test_with_numbers_the_heads_own_chunk_is_among_those_judged():
    model = make(n_tokens=2, n_numbers=2, vocab_size=5)
    clip = batch(1, model=model)[0]
    model.energy_model.forward = lambda context, chunks: -torch.arange(
        chunks.size(1)).float().expand(len(chunks), -1)  # the last one fits best
    _, vectors, _ = model.choose(clip, 4)
    assert torch.equal(vectors, model.actor(clip).vectors.clamp(-1, 1))


def test_tokens_are_drawn_by_their_probability():
    model = make()
    logits = torch.tensor([0.0, 1.0, 2.0, -9.0, -9.0, -9.0]).expand(1, 1, 1, 6)
    drawn = model.draw(logits, 20_000, 1.0, torch.Generator().manual_seed(0)).flatten()
    shares = torch.bincount(drawn, minlength=6) / len(drawn)
    assert torch.allclose(shares, logits.flatten().softmax(0), atol=0.015)


def test_vectors_and_their_tokens():
    for other in ({}, dict(n_tokens=3, n_numbers=3, vocab_size=5)):
        model = make(**other)
        tokens = batch(1, model=model)[1]
        assert torch.equal(model.nearest(model.vectors_of(tokens) * 0.9), tokens)


# -----------------------------------------------------------------------------
# what there is to learn


def write(path, actions=None, n=60, starts=(0, 20, 40), **attrs):
    make_recording(path, n)
    with h5py.File(path, 'a') as f:
        f['episode_starts'] = np.array(starts)
        if actions is not None:
            f['actions'] = actions
        f.attrs.update(attrs)
    return data.load(str(path))


def played(recording, source='labels', n_labels=0, chunk=3, n_bins=5, tmp='.'):
    return Played(recording, str(tmp), source, n_labels, 1, chunk, n_bins, 0,
                  torch.autocast('cpu', enabled=False), 'float32', 'cpu')


def test_keys_are_tokens_and_one_hot_vectors(tmp_path):
    keys = np.array([3, 70_000, 9])[np.arange(60) % 3]  # any whole numbers
    p = played(write(tmp_path / 'a.h5', keys))
    assert p.acting == dict(kind='keys', values=[0, 1, 2], names=['3', '9', '70000'])
    assert p.tokens[:3, 0].tolist() == [0, 2, 1] and p.vectors[0].tolist() == [1, -1, -1]
    assert np.isclose(p.entropy, math.log(3), atol=1e-3)


def test_numbers_are_bins_between_percentiles(tmp_path):
    numbers = np.stack([np.linspace(-3, 5, 60), np.arange(60) % 2], 1).astype(np.float32)
    p = played(write(tmp_path / 'a.h5', numbers))
    low, high = np.percentile(numbers[p.starts['train']], (1, 99), axis=0)
    assert p.acting['low'] == low.tolist() and p.acting['high'] == high.tolist()
    assert p.vectors.min() == -1 and p.vectors.max() == 1
    assert p.tokens.shape == (60, 2) and p.tokens[0].tolist() == [0, 0]
    back = p.table[p.tokens].reshape(60, 2)
    assert abs(back - p.vectors).max() <= 0.25 + 1e-6  # half a bin of five


def test_a_chunk_ends_with_its_episode_and_a_clip_begins_with_it(tmp_path):
    p = played(write(tmp_path / 'a.h5', np.arange(60) % 4))
    clip, tokens, vectors, exists = p.gather(np.array([0, 17, 18, 20]), 3)
    assert exists.tolist() == [[True] * 3, [True, True, False], [True, False, False], [True] * 3]
    assert tokens[0, :, 0].tolist() == [0, 1, 2]
    frames = data.clips(p.frames, np.array([0, 15, 16, 20]), 3, 1, 'cpu')
    assert torch.equal(clip[1], frames[1]) and torch.equal(clip[2], frames[2])
    for i in (0, 3):  # what is before the start is the first frame
        assert torch.equal(clip[i], frames[i, :1].expand(3, -1, -1, -1))
    starts = np.concatenate([p.starts['train'], p.starts['val']])
    assert p.gather(starts, 3)[3][:, 0].all() and len(starts) == 54  # six of them are a gap


def test_few_labels_are_learned_alone_one_step_each(tmp_path):
    p = played(write(tmp_path / 'a.h5', np.arange(60) % 4), n_labels=7)
    assert len(p.starts['train']) == 7 and p.chunk == 1
    few = data.labelled(np.arange(50), 7, 0)
    assert len(set(few)) == 7 and set(data.labelled(np.arange(50), 5, 0)) < set(few)


def test_an_inverse_model_names_what_it_was_not_told(tmp_path):
    """Which way a square goes, from 150 labels, before backgrounds that are never the same."""
    rng = np.random.default_rng(0)
    keys = rng.integers(0, 4, 600)
    frames = rng.integers(0, 80, (600, 16, 16, 3), np.uint8)
    frames[1::2] = frames[::2]  # in pairs, of which the second is the first with one thing moved
    for t in range(0, 600, 2):
        y, x = rng.integers(2, 11, 2)
        for picture, k in ((frames[t], 0), (frames[t + 1], 2)):
            down, right = [(0, k), (0, -k), (k, 0), (-k, 0)][keys[t]]
            picture[y + down:y + down + 3, x + right:x + right + 3] = 250
    with h5py.File(tmp_path / 'a.h5', 'w') as f:
        f['frames'], f['actions'], f['episode_starts'] = frames, keys, np.arange(0, 600, 2)
    recording = data.load(str(tmp_path / 'a.h5'))
    p = Played(recording, str(tmp_path), 'inverse', 150, 1, 1, 5, 0,
               torch.autocast('cpu', enabled=False), 'float32', 'cpu')
    t = data.windows(recording, 'val', 2)
    assert (p.tokens[t, 0] == keys[t]).mean() > 0.7
    # those it was not shown may be anything
    hidden = np.setdiff1d(np.arange(600), p.labelled)
    recording.actions = recording.actions.copy()
    recording.actions[hidden] = rng.permutation(recording.actions[hidden])
    recording.data_id = 'another'  # so that the cache is not that of the first
    again = Played(recording, str(tmp_path), 'inverse', 150, 1, 1, 5, 0,
                   torch.autocast('cpu', enabled=False), 'float32', 'cpu')
    assert (again.tokens == p.tokens).all()


@pytest.mark.parametrize('source', ['labels', 'inverse'])
def test_recordings_that_lack_something(tmp_path, source):
    with pytest.raises(data.DataError, match='no "actions"'):
        played(write(tmp_path / 'a.h5'), source, 5)
    with pytest.raises(data.DataError, match='n_labels=99'):
        played(write(tmp_path / 'b.h5', np.arange(60)), source, 99)
    still = np.stack([np.arange(60), np.full(60, 7)], 1).astype(np.float32)
    with pytest.raises(data.DataError, match='action 1 is always 7'):
        played(write(tmp_path / 'c.h5', still), source, 9)
    with pytest.raises(data.DataError, match='chunk=25'):
        played(write(tmp_path / 'd.h5', np.arange(60)), source, 9, chunk=25)


def test_what_codes_mean():
    codes, keys = np.array([0, 0, 0, 1, 2]), np.array([4, 4, 5, 5, 5])
    assert meaning_of_codes(codes, keys, 4).tolist() == [4, 5, 5, 5]  # 3 never occurs
    numbers = np.array([[0, 1], [2, 1], [9, 1], [5, 5], [6, 6]], float)
    assert meaning_of_codes(codes, numbers, 3).tolist() == [[2, 1], [5, 5], [6, 6]]


# -----------------------------------------------------------------------------
# somebody who plays


def a_player(**acting):
    """Whose tokens are those that a test says, in turn."""
    p = Player.__new__(Player)
    p.acting, p.path = acting, 'out/policy'
    p.about = dict(config=dict(frame_stride=1), parents=dict(latent_actions='abc'))
    return p


WORLD = dict(config=dict(action_source='latent', frame_stride=1),
             parents=dict(latent_actions='abc'), action_names=['left', 'up', 'left 2', ''])


@pytest.mark.parametrize('kind, world, expected', [
    ('codes', {}, [0, 1]),
    ('codes', dict(parents=dict(latent_actions='other')), 'another stage 2'),
    ('keys', {}, [1, 0]),
    ('keys', dict(action_names=['left', '', '', '']), 'no action is called up'),
    ('keys', dict(config=dict(action_source='labels', frame_stride=1)), [7, 3]),
    ('numbers', {}, 'a player of numbers'),
    ('keys', dict(config=dict(action_source='latent', frame_stride=2)), 'frame_stride=1'),
    ('keys', dict(config=dict(action_source='none', frame_stride=1)), 'action_source=none'),
])
def test_where_he_can_play(kind, world, expected):
    p = a_player(kind=kind, names=['up', 'left'], values=[7, 3])
    if isinstance(expected, str):
        with pytest.raises(checkpoint.CheckpointError, match=expected):
            p.enter({**WORLD, **world})
    else:
        p.enter({**WORLD, **world})
        assert p.dream_actions.tolist() == expected


def test_what_he_does_in_the_real_game(monkeypatch):
    frames = np.zeros((2, 16, 16, 3), np.uint8)
    said = torch.tensor([[1], [0]]), torch.tensor([[0.0, 1.0], [-1.0, 0.5]]), torch.ones(2)
    p = a_player(kind='keys', values=[7, 3])
    p.look, p.decide = lambda frames: None, lambda: said
    assert p.act(frames).tolist() == [3, 7]
    p.acting = dict(kind='numbers', low=[0, -1], high=[10, 1])
    assert p.act(frames).tolist() == [[5, 1], [0, 0.5]]


def test_he_sees_his_last_frames_and_at_first_the_first_again():
    p = a_player()
    p.device, p.seed, p.by_head = 'cpu', 0, True
    clips = []
    p.policy = SimpleNamespace(config=SimpleNamespace(seq_len=3), choose_by_head=lambda clip: (
        clips.append(clip[0, :, 0, 0, 0]) or (torch.zeros(1, 1, 1), torch.zeros(1, 1, 1))))
    p.begin()
    for grey in (0, 51, 102, 153):
        p.look(np.full((1, 8, 8, 3), grey, np.uint8))
        p.decide()
    greys = [((clip + 1) * 127.5).round().tolist() for clip in clips]
    assert greys == [[0, 0, 0], [0, 0, 51], [0, 51, 102], [51, 102, 153]]


# -----------------------------------------------------------------------------
# what the game's pictures show


def test_reading_the_game_off_its_pictures():
    g = game.Game(64, 1_000_500 + np.arange(64))
    frames, states = [g.reset(0, far=20)], [g.state()]
    hunter = Hunter(g, 0)
    for _ in range(24):
        frames.append(g.step(hunter.act()))
        states.append(g.state())
    frames = np.stack(frames, 1)
    truth = {key: np.stack([s[key] for s in states], 1) for key in states[0]}
    flat = frames.reshape(-1, *frames.shape[2:])
    hero, facing = reading.find_hero(flat)
    assert (hero * game.STEP == truth['hero'].reshape(-1, 2)).all()
    assert (facing == truth['facing'].ravel()).all()
    alive = truth['alive'].ravel() > 0
    creature = reading.find_creature(flat)
    right = (creature * game.STEP == truth['creature'].reshape(-1, 2)).all(1)
    assert right[alive].mean() > 0.98 and (creature[~alive] == -1).all()  # he may stand on it
    slain, gone = reading.fates(frames)
    # a blade beyond the edge is not seen
    assert (slain == (g.slain > 0)).mean() > 0.95 and slain.any() and not gone.any()
    # painted over by hand, it is gone without a sword
    still = np.repeat(frames[:, :1], 2, 1)
    art = game.Game(64, 1_000_500 + np.arange(64))
    state = {key: values[:, 0].copy() for key, values in truth.items()}
    state['alive'][:] = 0
    still[:, 1] = art.set_state(state)
    slain, gone = reading.fates(still)
    assert gone.all() and not slain.any()


# -----------------------------------------------------------------------------
# what he is worth


def test_levels_tell_an_expert_from_random_weights(monkeypatch):
    """Whoever is in the player's place is measured, not his name."""
    recording = SimpleNamespace(actions=np.arange(6))
    monkeypatch.setattr(scores, 'LEVELS', 12)
    play, expert = scores.play_levels, {}

    def playing(levels, make, stick):
        def make_both(g):
            expert['here'] = scores.Expert(g)
            return make(g)
        return play(levels, make_both, stick)

    class Puppet:
        policy, acting = SimpleNamespace(energy_model=None), dict(kind='keys')

        def __init__(self, *_, **how):
            self.likely = how.get('temperature') == 0

        def act(self, frames):
            return (random if self.likely else expert['here']).act(frames)

    random = a_player(kind='keys', values=list(range(6)))
    random.policy = make('off', height=64, width=64)
    random.device, random.temperature, random.best_of, random.by_head = 'cpu', 1.0, 1, False
    random.seed = 0
    random.begin()
    monkeypatch.setattr(scores, 'Player', Puppet)
    monkeypatch.setattr(scores, 'play_levels', playing)
    rows = scores.levels('out', recording, 0, 'cpu', 16, contextlib.nullcontext())
    slain = {who: x for who, x in rows}
    assert list(slain) == ['random', 'expert', 'drawn', 'most likely', 'by the head']
    assert (slain['drawn'] == slain['expert']).all() and (slain['expert'] >= 3).all()
    assert slain['most likely'].mean() < 1 > slain['random'].mean()
    lines, figures = scores.levels_table([('x', np.array([3, 4, 0, 1]))])
    assert figures['x']['solved'][0] == 0.5 and figures['x']['slain'][0] == 2


def test_wilsons_interval():
    share, low, high = scores.wilson(62, 100)
    assert (share, round(low, 3), round(high, 3)) == (0.62, 0.522, 0.709)
    assert scores.wilson(0, 60)[1:] == pytest.approx((0, 0.060), abs=1e-3)


@pytest.mark.slow
def test_a_card_for_the_player_alone(world, tmp_path):
    """A recording with frames alone has the imitation part, of stage 2's actions."""
    out = tmp_path / 'out'
    for stage in ('policy', 'latent_actions'):
        shutil.copytree(world[1] / stage, out / stage)
    said = train('eval.py', world[0], f'--out_dir={out}', '--part=player').stdout
    assert 'cross-entropy, nats' in said and 'true chunk has the lowest energy' in said
    report = json.loads((out / 'player.json').read_text())
    assert list(report) == ['imitation'] and report['imitation']['chance'] == math.log(4)
    assert not (out / 'eval.json').exists()


@pytest.mark.slow
def test_the_whole_card_of_the_built_in_game_has_a_player(tmp_path):
    """Imitation, levels and the dream, after stages that have learned next to nothing."""
    config = tmp_path / 'a.py'
    config.write_text(CONFIG.format(dataset=str(tmp_path / 'a.h5'), out=str(tmp_path / 'out'))
                      .replace('patch_size = 4', 'patch_size = 8'))
    commands = ['data.py', 'game', tmp_path / 'a.h5', '--player=hunter', '--n_frames=1000']
    for script in (*(f'{stage}.py' for stage in STAGES), 'eval.py'):
        commands += [',', script, config]
    said = train('tests/several.py', *commands).stdout
    player = json.loads((tmp_path / 'out' / 'eval.json').read_text())['player']
    assert list(player) == ['imitation', 'levels', 'dream']
    assert player['levels']['expert']['solved'][0] == 1 > player['levels']['drawn']['solved'][0]
    for who in player['dream'].values():
        assert 0 <= who['slain'][0] <= who['slain'][0] + who['gone'][0] <= 1
    card = (tmp_path / 'out' / 'eval.md').read_text()
    for words in ('the player, held out', 'drawn, map from 25 labels', 'in the dream, 32 frames'):
        assert words in card and words in said


@pytest.mark.slow
def test_two_ranks_end_equal_with_every_energy(world, tmp_path):
    """Before each save the ranks compare their weights, and stop if they differ."""
    energies = [e for e in ENERGY if e != 'isolated']  # which a test of all stages has
    for energy in energies:
        shutil.copytree(world[1] / 'latent_actions', tmp_path / energy / 'latent_actions')
    commands = []
    for energy in energies:
        commands += [',', 'policy.py', world[0], f'--out_dir={tmp_path / energy}',
                     f'--energy={energy}', '--max_iters=12']
    train('tests/several.py', *commands, ranks=2)
    for energy in energies:
        metrics = checkpoint.load(tmp_path / energy / 'policy' / 'ckpt_00000012.pt')['metrics']
        assert ('rank_acc' in metrics) == (energy != 'off')


@pytest.mark.slow
def test_mistakes_are_answered_in_words(world, tmp_path):
    config, out, _ = world
    here = tmp_path / 'out'
    shutil.copytree(out, here)
    there = f'--out_dir={here}'
    refused(run('policy.py', config, there, '--init_from=resume', '--energy=off'), 4, 'energy')
    (here / 'latent_actions' / 'best.pt').unlink()
    for path in (here / 'latent_actions').glob('ckpt_*'):
        path.unlink()
    refused(run('policy.py', config, there), 4, 'latent_actions.py')
    refused(run('policy.py', config, there, '--action_source=labels'), 3, 'no "actions"')
    shutil.rmtree(here / 'policy')
    shutil.copytree(out / 'latent_actions', here / 'latent_actions', dirs_exist_ok=True)
    train('policy.py', config, there, '--energy=off', '--max_iters=1')
    refused(run('play.py', config, there, '--watch=True', '--best_of=4'), 2, 'energy=off')


@pytest.mark.parametrize('argv, words', [
    (['--chunk=0'], 'chunk'), (['--n_bins=4'], 'odd'), (['--n_bins=1'], 'n_bins'),
    (['--energy=shared'], 'isolated'), (['--action_source=none'], 'inverse'),
    (['--n_labels=9'], 'sees no label'), (['--action_source=inverse'], 'without n_labels'),
    (['--fsdp=True', '--energy=cached'], 'cached'),
])
def test_settings_that_do_not_go_together(argv, words, monkeypatch):
    monkeypatch.setenv('RANK', '0')  # fsdp wants several processes
    for name, value in dict(LOCAL_RANK='0', WORLD_SIZE='2', LOCAL_WORLD_SIZE='2',
                            MASTER_ADDR='x', MASTER_PORT='1').items():
        monkeypatch.setenv(name, value)
    scripts = {s: configurator.read_script(str(ROOT / f'{s}.py')) for s in ('policy', 'dynamics')}
    with pytest.raises(configurator.ConfigError, match=words):
        configurator.resolve('policy', scripts, argv)
    configurator.resolve('policy', scripts, ['--seq_len=1'])
    with pytest.raises(configurator.ConfigError, match='seq_len >= 2'):
        configurator.resolve('dynamics', scripts, ['--seq_len=1'])
    with pytest.raises(configurator.ConfigError, match='labels, none'):
        configurator.resolve('dynamics', scripts, ['--action_source=inverse'])
