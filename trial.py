"""
One game, one seed: is what stage 2 makes of it what was pressed? Beside it what labels alone can
do. games.py makes a table of it.
"""
import json
import os
import subprocess
import sys
import time

import numpy as np
import torch
import torch.nn as nn
from torch.nn import functional as F

import alignment
import configurator
import data
import files
import world
from model import LatentActionModel
from recordings.gym import record_gym

# the id; how it is recorded: 15 frames a second of Atari's 60, 9 of Doom's 35; in Crafter who may
# press "sleep" sees little else than night. In mspacman and freeway much moves that the player does
# not move. mario and montezuma are held out: named before anything was tried, judged once (RECORDS)
GAMES = dict(
    crafter=('CrafterReward-v1', dict(keys=range(6))),
    fourrooms=('MiniGrid-FourRooms-v0', {}),
    doom=('VizdoomMyWayHome-v1', dict(frame_skip=4)),
    pong=('ALE/Pong-v5', dict(frame_skip=4, pad=True)),
    breakout=('ALE/Breakout-v5', dict(frame_skip=4, pad=True)),
    mspacman=('ALE/MsPacman-v5', dict(frame_skip=4, pad=True)),
    freeway=('ALE/Freeway-v5', dict(frame_skip=4, pad=True)),
    mario=('SuperMarioBros-1-1-v0', dict(frame_skip=4)),
    montezuma=('ALE/MontezumaRevenge-v5', dict(frame_skip=4, pad=True)))
here = os.path.dirname(os.path.abspath(__file__))
METHODS = dict(latent='latent', anchored='latent with {n_labels} labels',
               few='CNN with {n_labels} labels', ceiling='ceiling: CNN with all labels')

# -----------------------------------------------------------------------------
# recordings, and their transitions


def record(name, path, n_frames):
    env_id, how = GAMES[name]
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if not os.path.exists(path):
        record_gym(env_id, path, n_frames, **how)


def transitions(recording):
    """First frames of the transitions in which something changed, {'train': (n,), 'val': (n,)}."""
    starts = {part: data.windows(recording, part, 2) for part in ('train', 'val')}
    return {part: t[data.changed(recording, t)] for part, t in starts.items()}


@torch.no_grad()
def of_each(recording, picks, look):
    """What look(pairs (B,2,C,H,W)) -> (B,1) says of transitions, by their first frames (n,)."""
    return np.concatenate([look(data.clips(recording.frames, some, 2, 1, 'cpu'))[:, 0].numpy()
                           for some in np.array_split(picks, len(picks) // 128 + 1)])


# -----------------------------------------------------------------------------
# with labels alone


class Ceiling(nn.Module):
    """Frames t and t+1 (B,2,C,H,W) -> logits of the label. It may use places: in Pong two paddles
    do the same. Without normalisation it does not see what is small, Breakout's paddle, say."""

    def __init__(self, n_labels, height, width):
        super().__init__()
        widths = 9, 32, 64, 64, 64
        self.convs = nn.Sequential(nn.BatchNorm2d(9), *(
            layer for a, b in zip(widths, widths[1:])
            for layer in (nn.Conv2d(a, b, 5, 2, 2, bias=False), nn.BatchNorm2d(b), nn.GELU())))
        self.out = nn.Sequential(nn.Dropout(0.3), nn.Linear(64 * (height * width // 256), 128),
                                 nn.GELU(), nn.Linear(128, n_labels))

    def forward(self, pair):
        before, after = pair.unbind(1)
        return self.out(self.convs(torch.cat([before, after, after - before], 1)).flatten(1))


def learn_from_labels(recording, train, judged, seed, n_updates):
    """Which (n,) of the transitions `judged` (n,) a CNN names rightly that was trained on `train`,
    all by their first frames. Of many a tenth is kept apart, and says which weights to take."""
    rng = np.random.default_rng([seed, 14])
    torch.manual_seed(seed)
    train = rng.permutation(train)
    apart = train[:len(train) // 10] if len(train) > 1000 else train[:0]
    train = train[len(apart):]
    labels = recording.actions.astype(np.int64)
    model = Ceiling(int(labels.max()) + 1, *recording.frames.shape[1:3])
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.05)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, n_updates)

    def guess(pairs):
        return model(pairs).argmax(1, keepdim=True)

    def right(picks):
        model.eval()
        found = of_each(recording, picks, guess)
        model.train()
        return found == labels[picks]

    best, result = -1, None
    for it in range(1, n_updates + 1):
        t = rng.choice(train, 64)
        logits = model(data.clips(recording.frames, t, 2, 1, 'cpu'))
        F.cross_entropy(logits, torch.from_numpy(labels[t])).backward()
        optimizer.step()
        optimizer.zero_grad()
        rate.step()
        if len(apart) and it % 100 == 0 or it == n_updates:
            score = right(apart).mean() if len(apart) else 0
            if score >= best:
                best, result = score, right(judged)
    return result


# -----------------------------------------------------------------------------
# one game, one seed


def train_stage_2(path, out, seed, *settings):
    """Runs latent_actions.py with one thread -> minutes."""
    t0 = time.perf_counter()
    done = subprocess.run(
        [sys.executable, os.path.join(here, 'latent_actions.py'), f'--dataset={path}',
         f'--out_dir={out}', f'--seed={seed}', '--keep_checkpoints=1', *settings],
        capture_output=True, text=True)
    if done.returncode:
        configurator.stop(done.returncode, done.stderr or done.stdout)
    return (time.perf_counter() - t0) / 60


def examine(name, path, out, seed, n_labels, settings, cnn_updates):
    """All methods on one game with one seed, a dict: which of the held-out transitions are right,
    NMI, codes used, minutes."""
    torch.set_num_threads(1)
    recording = data.load(path)
    t = transitions(recording)
    picks = np.concatenate([t['train'], t['val']])
    voters = np.arange(len(picks)) < len(t['train'])
    labels, val = recording.actions[picks].astype(np.int64), t['val']
    n_classes = len(np.unique(recording.actions))
    if n_classes > 8:  # an action for each, with labels and without
        settings = [*settings, f'--action_levels=({n_classes},)']
    few = data.few_labels(recording, n_labels, 1, seed)[0]  # the same for both
    shifts = of_each(recording, val, LatentActionModel.best_shift)  # -1: none explains half of it
    found = dict(most_frequent=labels[~voters] == np.bincount(labels[~voters]).argmax())
    for method, given in (('latent', 0), ('anchored', n_labels)):
        folder = os.path.join(out, f'{name}-{method}-{seed}')
        minutes = train_stage_2(path, folder, seed, f'--n_labels={given}', *settings)
        model = world.load_stage(folder, 'latent_actions', 'cpu')[0]
        codes = of_each(recording, picks, model.encode)
        found[method] = alignment.voted_right(codes, labels, voters)
        found[f'about_{method}'] = dict(
            nmi=alignment.nmi(codes[~voters], labels[~voters]), used=len(np.unique(codes)),
            consistency=alignment.consistency(codes[~voters][shifts >= 0], shifts[shifts >= 0]),
            minutes=minutes)
    found['few'] = learn_from_labels(recording, few, val, seed, cnn_updates // 3)
    found['ceiling'] = learn_from_labels(recording, t['train'], val, seed, cnn_updates)
    return found


def examine_once(name, path, out, seed, *how):
    """What examine finds, kept in `out` for the next time: a table takes hours, and may be stopped.
    The name of the file holds all that the answer depends on, the code too."""
    code = []
    for module in ('alignment', 'data', 'latent_actions', 'model', 'trial'):
        with open(os.path.join(here, f'{module}.py'), encoding='utf-8') as f:
            code.append(f.read())
    key = configurator.hash_texts(data.load(path).data_id, repr(how), *code)
    file = os.path.join(out, f'{name}-{seed}-{key:015x}.json')
    if not os.path.exists(file):
        found = examine(name, path, out, seed, *how)
        as_lists = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in found.items()}
        with files.replacing(file) as tmp, open(tmp, 'w') as f:
            json.dump(as_lists, f)
    with open(file) as f:
        return {k: np.array(v) if isinstance(v, list) else v for k, v in json.load(f).items()}


# -----------------------------------------------------------------------------
# figures


def resampled(right, rng, n=500, block=20):
    """(n,) accuracies of the transitions right (S,N) of S seeds, resampled with all seeds together,
    in blocks: neighbours are alike."""
    per_transition = right.mean(0)
    n_blocks = max(2, len(per_transition) // block)
    blocks = np.array([b.mean() for b in np.array_split(per_transition, n_blocks)])
    return blocks[rng.integers(len(blocks), size=(n, len(blocks)))].mean(1)


def cell(right, rng):
    low, high = np.percentile(resampled(right, rng), [2.5, 97.5])
    return f'{right.mean():.2f} [{low:.2f}, {high:.2f}]'


def rank_correlation(x, y):
    """Spearman's (1904), of numbers without ties."""
    return float(np.corrcoef(np.argsort(np.argsort(x)), np.argsort(np.argsort(y)))[0, 1])


def summarise(name, runs):
    """The runs of a game, one a seed -> its figures, a dict."""
    rng = np.random.default_rng(0)
    right = {m: np.stack([run[m] for run in runs]) for m in ('most_frequent', *METHODS)}
    figures = dict(name=name, n=right['latent'].shape[1])
    figures['accuracy'] = {m: [float(x) for x in r.mean(1)] for m, r in right.items()}
    gap = right['ceiling'].mean(0) - right['most_frequent'].mean(0)
    clear = np.percentile(resampled(gap[None], rng), 2.5)
    figures['counted'] = bool(clear > 0.03)
    base, top = (np.mean(figures['accuracy'][m]) for m in ('most_frequent', 'ceiling'))
    for m in ('latent', 'anchored', 'few'):
        figures[f'share_{m}'] = float((right[m].mean() - base) / max(top - base, 1e-9))
    for m in ('latent', 'anchored'):
        figures[f'about_{m}'] = [run[f'about_{m}'] for run in runs]
    figures['cells'] = {m: cell(r, rng) for m, r in right.items()}
    return figures
