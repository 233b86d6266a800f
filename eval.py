"""
How good is the world? Numbers on held-out windows, each with its baseline and a 95% interval.

    python eval.py config/tiny.py
    python eval.py config/hunt.py --part=player   # the player of policy.py alone; needs no world
    python eval.py world.pt --dataset=data/tiny.h5  # a file of export.py; writes into world/

Reads the best.pt of the three stages and prints the card; then writes out_dir/eval.json, the card
out_dir/eval.md, and in out_dir/samples psnr.png (PSNR over the frames ahead), atlas.png and
atlas.gif (the same start under every action). Errors that carry an exit_code end the run in their
own words: 2 config, 3 data, 4 checkpoint, 7 disk (the card has been printed then).

PSNR is that of the mean squared error over all windows: a mean of dB would be infinite for a frame
that stands still. `floor` repeats the last context frame. `ceiling` is the true frame through the
tokenizer, the best that tokens allow. `delta_psnr` is the PSNR with the actions inferred from the
true frames minus the PSNR with random ones (Genie, arXiv:2402.15391, section 3). FVD is left out:
it needs a feature network that cannot be had offline.
"""
import json
import math
import os
import sys
import time

import numpy as np
import torch
from torch.nn import functional as F

import alignment
import configurator
import data
import faithful
import files
import pictures
import scores
from model import LatentActionModel
from recordings import game
from recordings.reading import find_hero
from scores import table
from training import checkpoint
from training.folder import holds_checkpoint
from world import folder_of, load_world, synchronize, taken_actions

# -----------------------------------------------------------------------------
# config

dataset = 'data/tiny.h5'  # its held-out part
out_dir = 'out/tiny'
n_windows = 128  # held-out windows for the rollouts, evenly spread
n_frames = 16  # frames imagined in each
n_games = 16  # of the built-in game that are played beside their dreams; 0 = none
hold = 4  # frames for which an action is held, to see whether the hero obeys
maskgit_steps = 8  # looks at a frame, at most
temperature = 0.5  # 0 = the most likely token
part = 'all'  # or 'player': out_dir/player.md, player.json
best_of = 16  # chunks of which the player also takes the best by his energy model
seed = 0
device = 'auto'  # 'auto', 'cpu', 'cuda', 'mps'
dtype = 'float32'  # 'float32', 'bfloat16', 'float16'
config = configurator.apply(__file__, globals())
device = configurator.find_device(device)
ctx = torch.autocast(device.split(':')[0], getattr(torch, dtype), enabled=dtype != 'float32')
batch = 16  # windows at a time
results = folder_of(out_dir)
atlas_starts, atlas_frames = 4, 8


def keep(name, report, card):
    """Writes <name>.json and .md into `results`."""
    for end, text in (('json', json.dumps(report, indent=1)), ('md', '\n'.join(card))):
        with files.replacing(os.path.join(results, f'{name}.{end}')) as tmp, open(tmp, 'w') as out:
            out.write(text)


if part == 'player':
    recording = data.load(dataset, None, True, out_dir)
    lines, report = scores.measure(out_dir, recording, None, [], seed, device, ctx, dtype, best_of,
                                   maskgit_steps, temperature)
    card = [f'# the player of {out_dir} on {dataset}', *lines, '']
    print('\n'.join(card), flush=True)
    keep('player', report, card)
    sys.exit()

# -----------------------------------------------------------------------------
# the world and the held-out windows

world = load_world(out_dir, dataset, device)
tokenizer, action_model, dynamics, about, recording = world
frame_stride, action_source = about['config']['frame_stride'], about['config']['action_source']
n_actions, context = dynamics.config.n_actions, dynamics.config.seq_len - 1
names = about['action_names']  # '' for an action without a name
length = context + n_frames
try:
    files.expect_writable(results)
except files.DiskError as e:
    print(f'the card will be printed and not kept: {str(e).splitlines()[0]}', flush=True)
starts = data.windows(recording, 'val', length, frame_stride,
                      f'n_frames={n_frames} after {context} of context', 'lower n_frames')
transitions = data.windows(recording, 'val', 2, frame_stride)
n_windows = min(n_windows, len(starts))
starts = starts[np.unique(np.linspace(0, len(starts) - 1, n_windows).astype(int))]
generator = torch.Generator(device).manual_seed(seed)


def true_clips(picks, length):
    """Held-out frames (B,T,C,H,W) from frames `picks` on, and the actions (B,T-1) taken in them."""
    clip = data.clips(recording.frames, picks, length, frame_stride, device)
    return clip, taken_actions(action_source, action_model, clip, recording, picks)


def imagine(tokens, actions):
    """Frames (B,T,C,H,W) of a context's tokens (B,K,N) continued under actions (B,T-1)."""
    tokens = dynamics.generate(tokens, actions, maskgit_steps, temperature, generator)
    return tokenizer.decode(tokens)


def imagine_held(picks, code, n):
    """The last true frame and n imagined ones under action `code`, uint8 (B,1+n,H,W,3)."""
    with torch.no_grad(), ctx:
        clip, taken = true_clips(picks, context + 1)
        held = torch.full((len(picks), n), code, device=device)
        actions = torch.cat([taken[:, :context - 1], held], 1)
        dream = imagine(tokenizer.encode(clip[:, :context]), actions)
        return pictures.to_uint8(dream[:, context - 1:])


# -----------------------------------------------------------------------------
# figures and their intervals

report = {}
measured = {}  # key of a figure in the report -> it, and the two ends of its interval
rng = np.random.default_rng([seed, 3])


def psnr(error):
    """Squared errors of frames in [-1,1] -> dB of their mean."""
    return -10 * math.log10(np.mean(error) / 4 + 1e-10)


def ssim(a, b):
    """Structural similarity (Wang et al. 2004, eq. 13) of (...,C,H,W) in [-1,1] -> (...): the mean
    over C and all Gaussian windows of 11 pixels, sigma 1.5, that lie inside the frame."""
    a, b = torch.broadcast_tensors(a, b)
    a, b = a.flatten(0, -4).float(), b.flatten(0, -4).float()
    C = a.size(1)
    window = torch.exp(-(torch.arange(11, device=a.device) - 5.0) ** 2 / (2 * 1.5 ** 2))
    window = (window / window.sum()).expand(C, 1, 11)

    def blur(x):
        x = F.conv2d(x, window[..., None], groups=C)
        return F.conv2d(x, window[:, :, None], groups=C)

    # a variance is a small difference of large numbers: half precision has too few digits for it
    with torch.autocast(a.device.type, enabled=False):
        mean_a, mean_b = blur(a), blur(b)
        var_a, var_b = blur(a * a) - mean_a ** 2, blur(b * b) - mean_b ** 2
        cov = blur(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    above = (2 * mean_a * mean_b + c1) * (2 * cov + c2)
    below = (mean_a ** 2 + mean_b ** 2 + c1) * (var_a + var_b + c2)
    return (above / below).mean((1, 2, 3))


def interval(figure, arrays, rng):
    """The 95% bootstrap interval of figure(*arrays), which are resampled together by first axis."""
    n = len(arrays[0])
    drawn = [figure(*(a[i] for a in arrays)) for i in rng.integers(n, size=(500, n))]
    return [float(x) for x in np.percentile(drawn, [2.5, 97.5])]


def measure(key, figure, *arrays):
    """Reports figure(*arrays) and its interval under the key, in which dots make levels."""
    measured[key] = float(figure(*arrays)), *interval(figure, arrays, rng)
    *path, last = key.split('.')
    place = report
    for name in path:
        place = place.setdefault(name, {})
    place[last] = measured[key][0]


# -----------------------------------------------------------------------------
# rollouts: squared errors and SSIM, one row a window, one column a frame after the context

train = np.concatenate([np.arange(a, b) for a, b in data.split(recording, length)['train']])
mean_frame = recording.frames[train[:: max(1, len(train) // 512)]].astype(np.float32).mean(0)
mean_frame = torch.from_numpy(mean_frame / 127.5 - 1).permute(2, 0, 1).to(device)
guessers = ('world', 'random', 'floor', 'mean', 'ceiling')
errors, likeness = {name: [] for name in guessers}, {name: [] for name in guessers}
changed_error, changed_count, losses = [], [], []
used, seconds = torch.zeros(tokenizer.vocab_size, dtype=torch.int64), 0
with torch.no_grad(), ctx:
    for i in range(0, len(starts), batch):
        clip, taken = true_clips(starts[i:i + batch], length)
        B = len(clip)
        tokens = tokenizer.encode(clip)
        decoded = tokenizer.decode(tokens)
        at_random = torch.randint(n_actions, (B, n_frames), generator=generator, device=device)
        others = torch.cat([taken[:, :context - 1], at_random], 1)
        synchronize(device)
        t0 = time.perf_counter()
        dream = imagine(tokens[:, :context], taken)
        synchronize(device)
        seconds += time.perf_counter() - t0

        future = clip[:, context:]
        guesses = dict(world=dream[:, context:],
                       random=imagine(tokens[:, :context], others)[:, context:],
                       floor=clip[:, context - 1:context],
                       mean=mean_frame,
                       ceiling=decoded[:, context:])
        for name, guess in guesses.items():
            error = (guess - future).square().mean((2, 3, 4))
            errors[name].append(error.float().cpu().numpy())
            likeness[name].append(ssim(guess, future).view(B, n_frames).cpu().numpy())

        changed = (clip[:, 1:] != clip[:, :-1]).any(2)  # (B,T-1,H,W)
        error = (decoded - clip)[:, 1:].square().mean(2) * changed
        changed_error.append(error.sum((1, 2, 3)).cpu().numpy())
        changed_count.append(changed.sum((1, 2, 3)).cpu().numpy())
        used += torch.bincount(tokens.flatten().cpu(), minlength=tokenizer.vocab_size)

        # the training loss with their own actions, then with other windows', under equal masks
        pair = []
        for actions in (taken, taken.roll(1, 0)):
            torch.manual_seed(seed)
            loss, _ = dynamics(tokens[:, :context + 1], actions[:, :context])
            pair.append(loss.item())
        if B > 1:  # else there is no other window
            losses.append(pair)
errors = {name: np.concatenate(parts) for name, parts in errors.items()}
likeness = {name: np.concatenate(parts) for name, parts in likeness.items()}
changed_error, changed_count = np.concatenate(changed_error), np.concatenate(changed_count)

measure('tokenizer.psnr', psnr, errors['ceiling'])
measure('tokenizer.ssim', np.mean, likeness['ceiling'])
measure('tokenizer.psnr_changed', lambda error, count: psnr(error.sum() / max(1, count.sum())),
        changed_error, changed_count)
p = used[used > 0] / used.sum()
report['tokenizer'].update(code_usage=len(p) / tokenizer.vocab_size,
                           perplexity=float(torch.exp(-(p * p.log()).sum())))
horizons = [t for t in (1, 2, 4, 8, 16) if t <= n_frames]
for t in horizons:
    for name in ('world', 'floor', 'mean', 'ceiling'):
        measure(f'{name}.psnr.{t}', psnr, errors[name][:, t - 1])
        measure(f'{name}.ssim.{t}', np.mean, likeness[name][:, t - 1])
    measure(f'delta_psnr.{t}', lambda own, random: psnr(own) - psnr(random),
            errors['world'][:, t - 1], errors['random'][:, t - 1])
if losses:
    measure('shuffled_ratio', lambda pairs: pairs[:, 1].sum() / max(1e-9, pairs[:, 0].sum()),
            np.array(losses))

# -----------------------------------------------------------------------------
# do the latent actions mean what the player did? But for n_labels of stage 2 and action_source of
# the others, this is all that labels are used for


def align(key, codes, labels):
    """Four figures on how well codes (n,) tell labels (n,), at key: nmi, accuracy ..."""
    order = np.random.default_rng([seed, 4]).permutation(len(codes))
    codes, labels = codes[order], labels[order]
    half = len(codes) // 2
    measure(f'{key}.nmi', alignment.nmi, codes, labels)
    # the first n transitions vote on what each code means, the others tell whether that is right
    for name, n in (('accuracy', half), ('from_200', min(200, half))):
        measure(f'{key}.{name}', np.mean,
                alignment.voted_right(codes, labels, np.arange(len(codes)) < n))
    measure(f'{key}.one_to_one', alignment.pairs_share, codes, labels)


moved_counts = None
codes, changed, shifts = [], [], []  # changed: share of the pixels
with torch.no_grad(), ctx:
    for i in range(0, len(transitions), 64):
        picks = transitions[i:i + 64]
        clip = data.clips(recording.frames, picks, 2, frame_stride, device)
        if action_source == 'latent':
            taken = action_model.encode(clip)  # where nothing changes, too
        else:
            taken = taken_actions(action_source, action_model, clip, recording, picks)
        codes.append(taken[:, 0].cpu().numpy())
        differs = (clip[:, 1] - clip[:, 0]).abs().amax(1) > 0.1
        changed.append(differs.float().mean((1, 2)).cpu().numpy())
        shifts.append(LatentActionModel.best_shift(clip)[:, 0].cpu().numpy())
codes, changed, shifts = (np.concatenate(parts) for parts in (codes, changed, shifts))

if action_source == 'latent' and recording.has_labels and frame_stride == 1:
    labels = recording.actions[transitions]
    n_labels = int(recording.actions.max()) + 1
    label_names = recording.action_names or [str(i) for i in range(n_labels)]
    if 'moved' in recording.truth:
        moved = recording.truth['moved'][transitions].astype(bool)
    else:
        moved = changed > 0.002  # a lossy video never stands still: a few pixels do not count

    ways = [i for i, name in enumerate(label_names) if name in ('up', 'down', 'left', 'right')]
    subsets = [('all', 'align', np.ones(len(codes), bool)),
               ('where something moved', 'align.moved', moved)]
    for title, key, where in (
            ('of these: up, down, left, right', 'align.walked', moved & np.isin(labels, ways)),
            ('where the scene moved: over a tenth of the pixels', 'align.scene', changed > 0.1)):
        if where.sum() > 1:
            subsets.append((title, key, where))
    for title, key, where in subsets:
        align(key, codes[where], labels[where])
    moved_counts = alignment.confusion(codes[moved], labels[moved], n_actions, n_labels)
    report['align'].update(n=len(codes), labels=label_names)
    report['align']['moved'].update(n=int(moved.sum()), confusion=moved_counts.tolist())

# -----------------------------------------------------------------------------
# the built-in game knows where its hero is: does he go where the action says?


def real_places(state, layout, action):
    """Where the hero is when the game itself goes on from `state` (of n games) under one action:
    places (n,hold,2) in half tiles, and whether (n,) he never leaves his screen."""
    real = game.Game(len(state['hero']), layout)
    real.set_state(state)
    places, stays = [], np.ones(len(state['hero']), bool)
    for _ in range(hold):
        for _ in range(frame_stride):
            real.step(action)
        places.append(np.stack([real.x, real.y], 1) // game.STEP)
        stays &= real.screen == state['screen']
    return np.stack(places, 1), stays


def dreamed_places(code):
    """Where the hero is seen in dreams that go on from the starts under action `code`, as above."""
    places = []
    for i in range(0, len(starts), batch):
        frames = imagine_held(starts[i:i + batch], code, hold)[:, 1:]
        places.append(find_hero(frames.reshape(-1, *frames.shape[2:]))[0].reshape(-1, hold, 2))
    return np.concatenate(places)


layout = game.layout_of(recording.source)
with_keys = recording.actions is not None and recording.actions.ndim == 1
if layout is not None and with_keys and any(names):
    last = starts + (context - 1) * frame_stride  # the last true frame
    state = {key: values[last] for key, values in recording.truth.items()}
    layouts = state.get('layout', layout)  # a hunter's episodes have each their own
    free, blocked, by_action = [], [], {}
    for action in (game.UP, game.DOWN, game.LEFT, game.RIGHT):
        name = game.ACTIONS[action]
        places, stays = real_places(state, layouts, action)
        before = np.concatenate([state['hero'][:, None] // game.STEP, places[:, :-1]], 1)
        goes = (places != before).any(2)
        is_free, is_blocked = goes.all(1) & stays, ~goes.any(1)
        # for each action of that name: share of the frames in which he is where he should be, (n,)
        codes_of_name = [code for code in range(n_actions) if names[code].split(' ')[0] == name]
        shares = [(dreamed_places(c) == places).all(2).mean(1) for c in codes_of_name]
        if not shares:
            shares = [np.zeros(len(starts))]  # no action has this name: none obeys
        free += [share[is_free] for share in shares]
        blocked += [share[is_blocked] for share in shares]
        if is_free.any():
            by_action[name] = float(np.mean(np.concatenate([s[is_free] for s in shares])))
    for key, shares in (('obey', np.concatenate(free)), ('obey_blocked', np.concatenate(blocked))):
        if len(shares):
            measure(key, np.mean, shares)
    report['obey_by_action'] = by_action

# -----------------------------------------------------------------------------
# the same keys to the game and to the dream: how long do they agree?


def beside_the_game(picks):
    return faithful.Both(world, picks, key_codes, maskgit_steps, temperature, device, seed)


players = dict(wanderer=faithful.Wanderer, bumper=faithful.Bumper)
if layout is not None and with_keys and any(names) and frame_stride == 1 and n_games:
    key_codes = faithful.codes_of_keys(names, moved_counts)
    held_out = data.windows(recording, 'val', context)
    picks = held_out[np.linspace(0, len(held_out) - 1, n_games).astype(int)]
    for who, kind in players.items():
        with ctx:
            both = beside_the_game(picks)
            f = faithful.stay_together(both, kind(both.real, seed))
        key = f'faithful.{who}'
        measure(f'{key}.median', np.median, f['parted'])
        report['faithful'][who]['quartiles'] = np.percentile(f['parted'], [25, 75]).tolist()
        for t in faithful.HORIZONS:
            measure(f'{key}.agree.{t}', np.mean, f['agree'][:, t - 1])
            measure(f'{key}.hero.{t}', np.mean, f['hero'][:, t - 1])
        report['faithful'][who]['parted_at'] = faithful.parted_at(f)
    screens = recording.truth['screen'][held_out[:, None] + np.arange(context)[-2:]]
    just_in = held_out[screens[:, 0] != screens[:, -1]]
    with ctx:
        one_step = faithful.one_step(beside_the_game, starts)
        if len(just_in):
            one_step['on from a new screen'] = faithful.walks_on(beside_the_game, just_in)
    for kind, right in one_step.items():
        if len(right):
            measure(f'faithful.one_step.{kind}', np.mean, right)

# -----------------------------------------------------------------------------
# the player, where there is one

player_lines = []
if holds_checkpoint(os.path.join(out_dir, 'policy')):
    picks = data.windows(recording, 'val', context, frame_stride)
    picks = picks[np.linspace(0, len(picks) - 1, 64).astype(int)]
    try:
        player_lines, report['player'] = scores.measure(
            out_dir, recording, world, picks, seed, device, ctx, dtype, best_of, maskgit_steps,
            temperature)
    except (checkpoint.CheckpointError, data.DataError) as e:  # the world has its card all the same
        player_lines = ['', f'The player was not measured: {" ".join(str(e).split())}']

# -----------------------------------------------------------------------------
# does an action do the same thing everywhere? That can be asked without any label


def same_everywhere(key, codes, shifts):
    """How often an action does what it does most often, where one displacement explains most."""
    told = shifts >= 0
    if told.sum() > 1:
        measure(f'{key}.share', alignment.consistency, codes[told], shifts[told])
        report[key].update(n=len(told), told=int(told.sum()),
                           chance=alignment.consistency(0 * codes[told], shifts[told]))


same_everywhere('consistency', codes, shifts)
picks = starts[np.linspace(0, len(starts) - 1, atlas_starts + 2).astype(int)[1:-1]]
dreams = np.stack([imagine_held(picks, code, atlas_frames) for code in range(n_actions)])
dreamed = torch.from_numpy(dreams).flatten(0, 1).permute(0, 1, 4, 2, 3) / 127.5 - 1
shifts = LatentActionModel.best_shift(dreamed).flatten().numpy()
held = np.arange(n_actions).repeat(len(shifts) // n_actions)
same_everywhere('dreamed_consistency', held, shifts)

# -----------------------------------------------------------------------------
# the card

folder = os.path.join(results, 'samples')
titles = [f'{code} {name}'.strip() for code, name in enumerate(names)]
speed = len(starts) * n_frames / seconds
report['sampling'] = dict(frames_per_second=speed, maskgit_steps=maskgit_steps, device=device)
report['meta'] = dict(n_windows=len(starts), n_frames=n_frames, seed=seed, temperature=temperature,
                      context_frames=context, dataset=dataset, data_id=recording.data_id,
                      trained_on=about.get('trained_on'), dynamics_id=about['id'],
                      dynamics_iter=about['iter'], parents=about['parents'],
                      action_source=action_source, action_names=names)
report['ci'] = {key: [low, high] for key, (_, low, high) in measured.items()}


def number(key, digits=2):
    return f'{measured[key][0]:.{digits}f}'


def cell(key, digits=2):
    figure, low, high = measured[key]
    return f'{figure:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]'


card = [f'# {out_dir} on {dataset}', '',
        f'{len(starts)} held-out windows, {context} frames of context, up to {maskgit_steps} '
        f'MaskGIT steps, temperature {temperature}, {speed:.0f} frames/s on {device}; '
        '[95% bootstrap interval]; PSNR in dB.']
if about.get('other_data'):
    card += ['', about['other_data']]

usage, perplexity = report['tokenizer']['code_usage'], report['tokenizer']['perplexity']
card += table(['tokenizer', ''],
              ['PSNR, all pixels', cell('tokenizer.psnr')],
              ['SSIM', cell('tokenizer.ssim', 3)],
              ['PSNR, changed pixels', cell('tokenizer.psnr_changed')],
              ['codes used, perplexity', f'{100 * usage:.0f}%, {perplexity:.0f}'])

rows = [[t, number(f'mean.psnr.{t}'), cell(f'floor.psnr.{t}'), cell(f'world.psnr.{t}'),
         number(f'ceiling.psnr.{t}'), cell(f'delta_psnr.{t}')] for t in horizons]
card += table(['PSNR, frames ahead', 'mean frame', 'floor: repeat the last', '**world**',
               'ceiling: tokenizer', 'delta_psnr: true - random actions'], *rows)

rows = [[t] + [number(f'{name}.ssim.{t}', 3) for name in ('mean', 'floor', 'world', 'ceiling')]
        for t in horizons]
card += table(['SSIM, frames ahead', 'mean frame', 'floor', '**world**', 'ceiling'], *rows)

if losses:
    card += ['', 'Loss with the actions of other windows, over that with their own: '
             f'{cell("shuffled_ratio")} (1: the actions are ignored).']
if 'obey' in report:
    stays = cell('obey_blocked') if 'obey_blocked' in report else 'no start tried'
    of_each = ', '.join(f'{name} {share:.2f}' for name, share in report['obey_by_action'].items())
    card += ['', f'Obedience: with an action held for {hold} frames the hero is where it says in '
             f'{cell("obey")} of them; he stays where the way is blocked in {stays}. {of_each}.']
for who in players if 'faithful' in report else ():
    f = report['faithful'][who]
    low, high = f['quartiles']
    card += table([f'the same keys to the game and the dream, {who}',
                   *(f'after {t}' for t in faithful.HORIZONS)],
                  ['they agree', *(cell(f'faithful.{who}.agree.{t}') for t in faithful.HORIZONS)],
                  ['a hero is seen', *(cell(f'faithful.{who}.hero.{t}')
                                       for t in faithful.HORIZONS)])
    parted_at = ', '.join(f'{kind} {n} ({lost})' for kind, (n, lost) in f['parted_at'].items())
    card += ['', f'They part for good after {cell(f"faithful.{who}.median", 0)} frames (median; '
             f'quartiles {low:.0f} and {high:.0f}). What the key met then, in brackets how often '
             f'no hero was seen: {parted_at or "they never part"}.']
if 'faithful' in report:
    kinds = [k for k in one_step if len(one_step[k])]
    card += table(['one step from a true frame', *kinds],
                  ['right', *(cell(f'faithful.one_step.{kind}') for kind in kinds)])
titles_of = dict(consistency='on recorded transitions', dreamed_consistency='in imagination')
found = [f'{cell(f"{key}.share")} {title} ({report[key]["chance"]:.2f} if actions meant nothing)'
         for key, title in titles_of.items() if key in report]
if found:
    card += ['', 'Does an action do the same thing everywhere? This needs no label: where one '
             'displacement explains the change, it is the one that is usual for the action in '
             f'{", ".join(found)}.']
if 'align' in report:
    agreement = ('nmi', 'accuracy', 'from_200', 'one_to_one')
    rows = [[title, *(cell(f'{key}.{name}', 3) for name in agreement), where.sum()]
            for title, key, where in subsets]
    share = f'{np.bincount(labels[moved]).max() / moved.sum():.3f}'  # of the most frequent label
    rows.append(['baseline: one code for all, where something moved', 0, share, share, share, ''])
    if action_model.config.n_classes:
        card += ['', 'Stage 2 was shown the labels of a few transitions (its n_labels).']
    card += table(['latent actions against the true ones', 'NMI', 'accuracy', 'from 200 labels',
                   'one to one', 'transitions'], *rows)
    rows = [[title, *counts] for title, counts in zip(titles, moved_counts)]
    card += table(['action, its name', *label_names], *rows)
card += player_lines
card += ['', f'Pictures: {folder}/atlas.png, atlas.gif, psnr.png. '
         'FVD is left out: its feature network cannot be had offline.', '']
print('\n'.join(card), flush=True)  # before anything is written, which a disk can refuse
keep('eval', report, card)

# -----------------------------------------------------------------------------
# pictures: PSNR over the frames ahead; the same start under every action


def draw_psnr(path):
    """For all frames ahead, not the horizons alone; the world's 95% interval is shaded."""
    from matplotlib.figure import Figure
    own_rng = np.random.default_rng([seed, 5])  # the card's intervals do not depend on the picture
    ahead = np.arange(1, n_frames + 1)
    bounds = [interval(psnr, [errors['world'][:, t - 1]], own_rng) for t in ahead]
    figure = Figure(figsize=(7.5, 4.5), layout='constrained')
    axes = figure.add_subplot(xlabel='frames ahead', ylabel='PSNR, dB')
    axes.set_title(f'{out_dir}: {len(starts)} held-out windows')
    axes.fill_between(ahead, *np.transpose(bounds), color='#0072b2', alpha=0.2, linewidth=0)
    for name, label, color, style in (
            ('ceiling', 'ceiling: the true frame through the tokenizer', '#009e73', '--'),
            ('world', 'world, with its 95% interval', '#0072b2', 'o-'),
            ('floor', 'floor: repeat the last context frame', '#d55e00', '--'),
            ('mean', 'mean frame of the training part', '#777777', ':')):
        values = [psnr(errors[name][:, t - 1]) for t in ahead]
        axes.plot(ahead, values, style, color=color, label=label, markersize=4)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    figure.legend(loc='outside lower center', ncols=2, frameon=False)
    with files.replacing(path) as tmp:
        figure.savefig(tmp, format='png', dpi=120)


draw_psnr(os.path.join(folder, 'psnr.png'))
every_second = dreams[:, :, ::2].reshape(n_actions, -1, *dreams.shape[3:])
atlas = pictures.grid(list(every_second), labels=titles)
moving = [pictures.grid(list(dreams[:, :, t]), labels=titles) for t in range(1 + atlas_frames)]
pictures.save_png(os.path.join(folder, 'atlas.png'), atlas)
pictures.save_gif(os.path.join(folder, 'atlas.gif'), np.stack(moving), 6)
