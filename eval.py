"""
How good is the world? Numbers on held-out windows, each with its baseline and a 95% bootstrap interval.

    python eval.py config/tiny.py

Reads the best.pt of the three stages; writes out_dir/eval.json, the card out_dir/eval.md and out_dir/samples/atlas.png and
.gif: the same start under every action. Prints the card.

PSNR is that of the mean squared error over all windows (a mean of dB would be infinite for a frame that stands still).
`floor`: repeat the last context frame. `ceiling`: the true frame through the tokenizer, the best that tokens allow.
`delta_psnr`: PSNR with the actions inferred from the true frames minus PSNR with random ones (Genie, arXiv:2402.15391,
section 3). FVD is left out: it needs a feature network that cannot be had offline.
"""
import json
import math
import os
import re
import time

import numpy as np
import torch
from torch.nn import functional as F

import configurator
import data
import files
import pictures
from recordings import game
from training import checkpoint
from world import load_world, taken_actions

# -----------------------------------------------------------------------------
# config

dataset = 'data/tiny.h5'          # its held-out part
out_dir = 'out/tiny'
n_windows = 128                   # held-out windows for the rollouts, evenly spread
n_frames = 16                     # frames imagined in each
hold = 4                          # frames for which an action is held, to see whether the hero obeys
maskgit_steps = 8
temperature = 0.5                 # 0 = the most likely token
seed = 0
device = 'auto'                   # 'auto', 'cpu', 'cuda', 'mps'
dtype = 'float32'                 # 'float32', 'bfloat16', 'float16'
config = configurator.apply(__file__, globals())
device = configurator.find_device(device)
ctx = torch.autocast(device.split(':')[0], getattr(torch, dtype), enabled=dtype != 'float32')
wait = torch.cuda.synchronize if device.startswith('cuda') else torch.mps.synchronize if device == 'mps' else lambda: None
batch = 16                        # windows at a time
atlas_starts, atlas_frames = 4, 8

# -----------------------------------------------------------------------------
# the world and the held-out windows

try:
    tokenizer, labeller, dynamics, about, recording = load_world(out_dir, dataset, device)
    frame_stride, action_source = about['config']['frame_stride'], about['config']['action_source']
    n_actions, context = dynamics.config.n_actions, dynamics.config.seq_len - 1
    length = context + n_frames
    starts = data.windows(recording, 'val', length, frame_stride)
    transitions = data.windows(recording, 'val', 2, frame_stride)
except (checkpoint.CheckpointError, data.DataError) as e:
    configurator.stop(e.exit_code, e)
names = about.get('action_names') or [''] * n_actions           # what each action is called, where the dataset has labels
starts = starts[np.unique(np.linspace(0, len(starts) - 1, n_windows).astype(int))]
generator = torch.Generator(device).manual_seed(seed)
rng = np.random.default_rng([seed, 3])
report, ci = {}, {}


def imagine(tokens, actions):
    """Frames (B,T,C,H,W) of a context's tokens (B,K,N) continued under actions (B,T-1)."""
    return tokenizer.decode(dynamics.generate(tokens, actions, maskgit_steps, temperature, generator))


def psnr(error):
    """Squared errors of frames in [-1,1] -> dB of their mean."""
    return -10 * math.log10(np.mean(error) / 4 + 1e-10)


def ssim(a, b):
    """Structural similarity (Wang et al. 2004, eq. 13) of (...,C,H,W) in [-1,1]: mean over H, W and C of Gaussian windows
    of 11 pixels, sigma 1.5, those that lie inside the frame -> (...)."""
    a, b = (x.flatten(0, -4).float() for x in torch.broadcast_tensors(a, b))
    C = a.size(1)
    g = torch.exp(-(torch.arange(11, device=a.device) - 5.0) ** 2 / (2 * 1.5 ** 2))
    g = (g / g.sum()).expand(C, 1, 11)
    blur = lambda x: F.conv2d(F.conv2d(x, g[..., None], groups=C), g[:, :, None], groups=C)
    with torch.autocast(a.device.type, enabled=False):                               # small differences of large numbers
        ma, mb = blur(a), blur(b)
        va, vb, cov = blur(a * a) - ma ** 2, blur(b * b) - mb ** 2, blur(a * b) - ma * mb
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    return ((2 * ma * mb + c1) * (2 * cov + c2) / ((ma ** 2 + mb ** 2 + c1) * (va + vb + c2))).mean((1, 2, 3))


def put(key, figure, *arrays):
    """report[key] (dots make levels) = figure(*arrays), and its 95% bootstrap interval: arrays are resampled over their
    first axis together."""
    *path, last = key.split('.')
    place = report
    for k in path:
        place = place.setdefault(k, {})
    place[last] = float(figure(*arrays))
    n = len(arrays[0])
    drawn = [figure(*(a[i] for a in arrays)) for i in rng.integers(n, size=(500, n))]
    ci[key] = [float(x) for x in np.percentile(drawn, [2.5, 97.5])]


# -----------------------------------------------------------------------------
# rollouts: squared errors and SSIM, one row a window, one column a frame after the context

train = np.concatenate([np.arange(a, b) for a, b in data.split(recording, length)['train']])
mean_frame = recording.frames[train[:: max(1, len(train) // 512)]].astype(np.float32).mean(0)
mean_frame = torch.from_numpy(mean_frame / 127.5 - 1).permute(2, 0, 1).to(device)
names_of_guesses = ('world', 'random', 'floor', 'mean', 'ceiling')
errors, likeness = {g: [] for g in names_of_guesses}, {g: [] for g in names_of_guesses}
changed_error, changed_count, losses = [], [], []
used, seconds = torch.zeros(tokenizer.vocab_size, dtype=torch.int64), 0
with torch.no_grad(), ctx:
    for i in range(0, len(starts), batch):
        picks = starts[i:i + batch]
        clip = data.clips(recording.frames, picks, length, frame_stride, device)
        tokens = tokenizer.encode(clip)
        again = tokenizer.decode(tokens)
        taken = taken_actions(action_source, labeller, clip, recording, picks)
        others = taken.clone()
        others[:, context - 1:] = torch.randint(n_actions, (len(picks), n_frames), generator=generator, device=device)
        wait()
        t0 = time.perf_counter()
        dream = imagine(tokens[:, :context], taken)
        wait()
        seconds += time.perf_counter() - t0
        future, last = clip[:, context:], clip[:, context - 1:context]
        guesses = dict(world=dream[:, context:], random=imagine(tokens[:, :context], others)[:, context:], floor=last,
                       mean=mean_frame, ceiling=again[:, context:])
        for name, guess in guesses.items():
            errors[name].append((guess - future).square().mean((2, 3, 4)).float().cpu().numpy())
            likeness[name].append(ssim(guess, future).view(len(picks), n_frames).cpu().numpy())
        changed = (clip[:, 1:] != clip[:, :-1]).any(2)                                # (B,T-1,H,W)
        changed_error.append(((again - clip)[:, 1:].square().mean(2) * changed).sum((1, 2, 3)).cpu().numpy())
        changed_count.append(changed.sum((1, 2, 3)).cpu().numpy())
        used += torch.bincount(tokens.flatten().cpu(), minlength=tokenizer.vocab_size)
        # the training loss with the actions of other windows, over that with their own; the same masks for both
        pair = []
        for a in (taken, taken.roll(1, 0)):
            torch.manual_seed(seed)
            pair.append(dynamics(tokens[:, :context + 1], a[:, :context])[0].item())
        losses.append(pair)
errors, likeness = ({g: np.concatenate(v) for g, v in x.items()} for x in (errors, likeness))
put('tokenizer.psnr', psnr, errors['ceiling'])
put('tokenizer.ssim', np.mean, likeness['ceiling'])
put('tokenizer.psnr_changed', lambda e, n: psnr(e.sum() / max(1, n.sum())), np.concatenate(changed_error), np.concatenate(changed_count))
p = used[used > 0] / used.sum()
report['tokenizer'].update(code_usage=len(p) / tokenizer.vocab_size, perplexity=float(torch.exp(-(p * p.log()).sum())))
horizons = [t for t in (1, 2, 4, 8, 16) if t <= n_frames]
for t in horizons:
    for name in ('world', 'floor', 'mean', 'ceiling'):
        put(f'{name}.psnr.{t}', psnr, errors[name][:, t - 1])
        put(f'{name}.ssim.{t}', np.mean, likeness[name][:, t - 1])
    put(f'delta_psnr.{t}', lambda w, r: psnr(w) - psnr(r), errors['world'][:, t - 1], errors['random'][:, t - 1])
put('shuffled_ratio', lambda x: x[:, 1].sum() / max(1e-9, x[:, 0].sum()), np.array(losses))

# -----------------------------------------------------------------------------
# do the latent actions mean what the player did? Labels are used here only


def confusion(codes, labels):
    counts = np.zeros((n_actions, n_labels), int)
    np.add.at(counts, (codes, labels), 1)
    return counts


def nmi(codes, labels):
    """Mutual information over the entropy of the labels."""
    p = confusion(codes, labels) / len(codes)
    pc, pl = p.sum(1, keepdims=True), p.sum(0, keepdims=True)
    entropy = -(pl[pl > 0] * np.log(pl[pl > 0])).sum()
    return (p[p > 0] * np.log((p / (pc @ pl + 1e-30))[p > 0])).sum() / max(entropy, 1e-9)


def best_pairs(counts):
    """The largest sum of counts[code, label] when every code gets at most one label and every label at most one code, by
    dynamic programming over the set of labels (or codes, whichever are fewer) that are taken."""
    counts = counts[counts.sum(1) > 0][:, counts.sum(0) > 0]
    if counts.shape[1] > counts.shape[0]:
        counts = counts.T
    best = {0: 0}
    for row in counts:
        after = dict(best)
        for taken, total in best.items():
            for j, c in enumerate(row):
                if not taken >> j & 1:
                    after[taken | 1 << j] = max(after.get(taken | 1 << j, 0), total + int(c))
        best = after
    return max(best.values())


def align(key, codes, labels):
    order = np.random.default_rng([seed, 4]).permutation(len(codes))
    codes, labels, half, few = codes[order], labels[order], len(codes) // 2, min(200, len(codes) // 2)
    put(f'{key}.nmi', nmi, codes, labels)
    for name, n in (('accuracy', half), ('from_200', few)):                           # the majority map of the first n
        votes = confusion(codes[:n], labels[:n]).argmax(1)
        put(f'{key}.{name}', np.mean, votes[codes[n:]] == labels[n:])
    put(f'{key}.one_to_one', lambda c, l: best_pairs(confusion(c, l)) / len(c), codes, labels)


if action_source == 'latent' and recording.actions is not None and recording.actions.ndim == 1 and frame_stride == 1:
    codes, changed = [], []
    with torch.no_grad(), ctx:
        for i in range(0, len(transitions), 64):
            clip = data.clips(recording.frames, transitions[i:i + 64], 2, 1, device)
            codes.append(labeller.encode(clip)[:, 0].cpu().numpy())
            changed.append(((clip[:, 1] - clip[:, 0]).abs().amax(1) > 0.1).float().mean((1, 2)).cpu().numpy())    # share of the pixels
    codes, labels, changed = np.concatenate(codes), recording.actions[transitions], np.concatenate(changed)
    moved = changed > 0.002       # where nobody says so, more than a few pixels do: a lossy video never stands still
    if 'moved' in recording.truth:
        moved = recording.truth['moved'][transitions].astype(bool)
    n_labels = int(recording.actions.max()) + 1
    label_names = recording.action_names or [str(i) for i in range(n_labels)]
    align('align', codes, labels)
    align('align.moved', codes[moved], labels[moved])
    rows = [('all', 'align', len(codes)), ('where something moved', 'align.moved', moved.sum())]
    walked = moved & np.isin(labels, [i for i, name in enumerate(label_names) if name in ('up', 'down', 'left', 'right')])
    for title, key, where in (('of these: up, down, left, right', 'align.walked', walked),
                              ('where the scene moved: over a tenth of the pixels', 'align.scene', changed > 0.1)):
        if where.sum() > 1:
            align(key, codes[where], labels[where])
            rows.append((title, key, where.sum()))
    table = confusion(codes[moved], labels[moved])
    report['align'].update(n=len(codes), labels=label_names)
    report['align']['moved'].update(n=int(moved.sum()), confusion=table.tolist())

# -----------------------------------------------------------------------------
# the built-in game knows where its hero is: does he go where the action says?


def find_hero(frames):
    """(n,H,W,3) uint8 -> the hero's places (n,2) as x, y in half tiles, -1 where there is none: the place and facing where
    his picture fits best, if it fits to 24 grey levels a pixel on average."""
    w = np.lib.stride_tricks.sliding_window_view(frames, (game.TILE, game.TILE), (1, 2))[:, ::game.STEP, ::game.STEP]
    best = np.full(w.shape[:3], np.inf)
    for rgb, ink in game.HERO_ART.values():                                          # w (n,y,x,3,8,8)
        fit = np.abs(w.transpose(0, 1, 2, 4, 5, 3)[:, :, :, ink].astype(np.int16) - rgb[ink]).mean((3, 4))
        best = np.minimum(best, fit)
    y, x = np.divmod(best.reshape(len(w), -1).argmin(1), best.shape[2])
    return np.where((best.min((1, 2)) < 24)[:, None], np.stack([x, y], 1), -1)


layout = re.fullmatch(r'game\.py seed=\d+ layout=(\d+)', recording.source or '')
if layout and any(names):
    at = starts + (context - 1) * frame_stride                                       # the last true frame
    state = {k: v[at] for k, v in recording.truth.items()}
    free, blocked = [], []                               # per start: share of the frames in which the hero stood where he should
    by_action = {}
    for action in (game.UP, game.DOWN, game.LEFT, game.RIGHT):
        real = game.Game(len(at), int(layout[1]))
        real.set_state(state)
        places, screens = [], []
        for _ in range(hold):
            for _ in range(frame_stride):
                real.step(action)
            places.append(np.stack([real.x, real.y], 1))
            screens.append(real.screen == state['screen'])
        places, stayed = np.stack(places, 1), np.all(screens, 0)                     # (n,hold,2), (n,)
        goes = np.any(places != np.concatenate([state['hero'][:, None] // game.STEP, places[:, :-1]], 1), 2)
        is_free, is_blocked = goes.all(1) & stayed, ~goes.any(1)
        scores = []
        for code in [c for c, name in enumerate(names) if name.split(' ')[0] == game.ACTIONS[action]]:
            found = []
            with torch.no_grad(), ctx:
                for i in range(0, len(at), batch):
                    clip = data.clips(recording.frames, starts[i:i + batch], context + 1, frame_stride, device)
                    taken = taken_actions(action_source, labeller, clip, recording, starts[i:i + batch])[:, :context - 1]
                    taken = torch.cat([taken, torch.full((len(clip), hold), code, device=device)], 1)
                    dream = pictures.to_uint8(imagine(tokenizer.encode(clip[:, :context]), taken)[:, context:])
                    found.append(find_hero(dream.reshape(-1, *dream.shape[2:])).reshape(-1, hold, 2))
            scores.append((np.concatenate(found) == places).all(2).mean(1))          # (n,)
        scores = scores or [np.zeros(len(at))]                                       # no action has this name: none obeys
        for score in scores:
            free.append(score[is_free])
            blocked.append(score[is_blocked])
        if is_free.any():
            by_action[game.ACTIONS[action]] = float(np.mean(np.concatenate([s[is_free] for s in scores])))
    for key, scores in (('obey', np.concatenate(free)), ('obey_blocked', np.concatenate(blocked))):
        if len(scores):
            put(key, np.mean, scores)
    report['obey_by_action'] = by_action

# -----------------------------------------------------------------------------
# atlas: the same start under every action

picks = starts[np.linspace(0, len(starts) - 1, atlas_starts + 2).astype(int)[1:-1]]
with torch.no_grad(), ctx:
    clip = data.clips(recording.frames, picks, context + 1, frame_stride, device)
    taken = taken_actions(action_source, labeller, clip, recording, picks)[:, :context - 1]
    tokens, dreams = tokenizer.encode(clip[:, :context]), []
    for code in range(n_actions):
        held = torch.full((len(picks), atlas_frames), code, device=device)
        dreams.append(pictures.to_uint8(imagine(tokens, torch.cat([taken, held], 1))[:, context - 1:]))
dreams = np.stack(dreams)                                                            # (n_actions,S,1+k,H,W,3)
titles = [f'{code} {name}'.strip() for code, name in enumerate(names)]
folder = os.path.join(out_dir, 'samples')
wide = dreams[:, :, ::2].reshape(n_actions, -1, *dreams.shape[3:])                   # every second frame, start after start
moving = np.stack([pictures.grid(list(dreams[:, :, t]), labels=titles) for t in range(dreams.shape[2])])
try:
    pictures.save_png(os.path.join(folder, 'atlas.png'), pictures.grid(list(wide), labels=titles))
    pictures.save_gif(os.path.join(folder, 'atlas.gif'), moving, 6)
except files.DiskError as e:
    configurator.stop(7, e)

# -----------------------------------------------------------------------------
# the card

report['sampling'] = dict(frames_per_second=len(starts) * n_frames / seconds, maskgit_steps=maskgit_steps, device=device)
report['meta'] = dict(n_windows=len(starts), n_frames=n_frames, seed=seed, temperature=temperature, context_frames=context, dataset=dataset,
                      data_id=recording.data_id, dynamics_id=about['id'], dynamics_iter=about['iter'], parents=about['parents'],
                      action_source=action_source, action_names=names)
report['ci'] = ci


def f(key, digits=2):
    value = report
    for k in key.split('.'):
        value = value[k]
    return f'{value:.{digits}f} [{ci[key][0]:.{digits}f}, {ci[key][1]:.{digits}f}]'


t = report['tokenizer']
card = [f'# {out_dir} on {dataset}', '',
        f'{len(starts)} held-out windows, {context} frames of context, {maskgit_steps} MaskGIT steps, temperature {temperature}, '
        f'{report["sampling"]["frames_per_second"]:.0f} frames/s on {device}; [95% bootstrap interval]; PSNR in dB.', '',
        '| tokenizer | |', '|---|---|',
        f'| PSNR, all pixels | {f("tokenizer.psnr")} |', f'| SSIM | {f("tokenizer.ssim", 3)} |',
        f'| PSNR, changed pixels | {f("tokenizer.psnr_changed")} |',
        f'| codes used, perplexity | {100 * t["code_usage"]:.0f}%, {t["perplexity"]:.0f} |', '',
        '| PSNR, frames ahead | mean frame | floor: repeat the last | **world** | ceiling: tokenizer | delta_psnr: true - random actions |',
        '|---|---|---|---|---|---|']
card += [f'| {t} | {report["mean"]["psnr"][str(t)]:.2f} | {f(f"floor.psnr.{t}")} | {f(f"world.psnr.{t}")} | '
         f'{report["ceiling"]["psnr"][str(t)]:.2f} | {f(f"delta_psnr.{t}")} |' for t in horizons]
card += ['', '| SSIM, frames ahead | mean frame | floor | **world** | ceiling |', '|---|---|---|---|---|']
card += [f'| {t} | ' + ' | '.join(f'{report[g]["ssim"][str(t)]:.3f}' for g in ('mean', 'floor', 'world', 'ceiling')) + ' |' for t in horizons]
card += ['', f'Loss with the actions of other windows, over that with their own: {f("shuffled_ratio")} (1: the actions are ignored).']
if 'obey' in report:
    card += ['', f'Obedience: with an action held for {hold} frames the hero is where it says in {f("obey")} of them; '
                 f'he stays where the way is blocked in {f("obey_blocked") if "obey_blocked" in report else "no start tried"}. '
             + ', '.join(f'{k} {v:.2f}' for k, v in report['obey_by_action'].items()) + '.']
if 'align' in report:
    share = np.bincount(labels[moved]).max() / moved.sum()
    card += ['', '| latent actions against the true ones | NMI | accuracy | from 200 labels | one to one | transitions |', '|---|---|---|---|---|---|']
    for title, key, n in rows:
        card.append(f'| {title} | ' + ' | '.join(f(f'{key}.{k}', 3) for k in ('nmi', 'accuracy', 'from_200', 'one_to_one')) + f' | {n} |')
    card += [f'| baseline: one code for all, where something moved | 0 | {share:.3f} | {share:.3f} | {share:.3f} | |',
             '', '| action, its name | ' + ' | '.join(label_names) + ' |', '|---' * (n_labels + 1) + '|']
    card += [f'| {titles[c]} | ' + ' | '.join(map(str, row)) + ' |' for c, row in enumerate(table)]
card += ['', f'Pictures: {folder}/atlas.png, atlas.gif. FVD is left out: its feature network cannot be had offline.', '']
for name, text in (('eval.json', json.dumps(report, indent=1)), ('eval.md', '\n'.join(card))):
    try:
        with files.replacing(os.path.join(out_dir, name)) as tmp, open(tmp, 'w') as out:
            out.write(text)
    except files.DiskError as e:
        configurator.stop(7, e)
print('\n'.join(card))
