"""
How good is the world? Numbers on held-out windows, each with its baseline and a 95% bootstrap interval over windows.

    python eval.py config/tiny.py

Reads the best.pt of the three stages; writes out_dir/eval.json and the card out_dir/eval.md, and prints the card.

PSNR is that of the mean squared error over all windows (a mean of dB would be infinite for a frame that stands still).
`floor`: repeat the last context frame. `ceiling`: the true frame through the tokenizer, the best that tokens allow.
"""
import json
import math
import os
import time

import numpy as np
import torch

import checkpoint
import configurator
import data
from model import load_world

# -----------------------------------------------------------------------------
# config

dataset = 'data/tiny.h5'          # its held-out part
out_dir = 'out/tiny'
n_windows = 128                   # held-out windows for the rollouts, evenly spread
n_frames = 16                     # frames imagined in each
maskgit_steps = 8
temperature = 0.5                 # 0 = the most likely token
seed = 0
device = 'auto'                   # 'auto', 'cpu', 'cuda', 'mps'
dtype = 'float32'                 # 'float32', 'bfloat16', 'float16'
config = configurator.apply(__file__, globals())
if device == 'auto':
    device = 'cuda' if torch.cuda.is_available() else 'mps' if torch.backends.mps.is_available() else 'cpu'
ctx = torch.autocast(device.split(':')[0], getattr(torch, dtype), enabled=dtype != 'float32')
batch = 16                        # windows at a time

# -----------------------------------------------------------------------------
# the world and the held-out windows

try:
    tokenizer, labeller, dynamics, about = load_world(out_dir, device)
except checkpoint.CheckpointError as e:
    configurator.stop(4, e)
frame_stride, action_source = about['config']['frame_stride'], about['config']['action_source']
n_actions, context = dynamics.config.n_actions, dynamics.config.seq_len - 1
length = context + n_frames
try:
    recording = data.load(dataset, tokenizer.config.patch_size)
    starts = data.windows(recording, 'val', length, frame_stride)
except data.DataError as e:
    configurator.stop(e.exit_code, e)
if recording.frames.shape[1:3] != (tokenizer.config.height, tokenizer.config.width):
    configurator.stop(3, f'{dataset}: found frames of {recording.frames.shape[1:3]}, expected '
                         f'{(tokenizer.config.height, tokenizer.config.width)} as the tokenizer in {out_dir} was trained on')
starts = starts[np.unique(np.linspace(0, len(starts) - 1, n_windows).astype(int))]
rng = np.random.default_rng([seed, 3])


def psnr(error):
    """Squared errors of frames in [-1,1] -> dB of their mean."""
    return -10 * math.log10(np.mean(error) / 4 + 1e-10)


def interval(figure, *arrays):
    """95% bootstrap interval of figure(*arrays), resampled over their first axis together."""
    n = len(arrays[0])
    draws = [figure(*(a[i] for a in arrays)) for i in rng.integers(n, size=(500, n))]
    return [round(float(x), 4) for x in np.percentile(draws, [2.5, 97.5])]


# -----------------------------------------------------------------------------
# rollouts: squared errors, one row a window, one column a frame after the context

errors = {name: [] for name in ('world', 'random', 'floor', 'mean', 'ceiling')}
changed_error, changed_floor, changed_count, used = [], [], [], torch.zeros(tokenizer.vocab_size, dtype=torch.int64)
train_range = data.split(recording, length)['train']
sample = np.concatenate([np.arange(a, b) for a, b in train_range])
mean_frame = recording.frames[sample[:: max(1, len(sample) // 512)]].astype(np.float32).mean(0)
mean_frame = torch.from_numpy(mean_frame / 127.5 - 1).permute(2, 0, 1).to(device)
generator = torch.Generator(device).manual_seed(seed)
seconds = 0
with torch.no_grad(), ctx:
    for i in range(0, len(starts), batch):
        picks = starts[i:i + batch]
        clip = data.clips(recording.frames, picks, length, frame_stride, device)
        tokens = tokenizer.encode(clip)
        again = tokenizer.decode(tokens)
        if action_source == 'latent':
            taken = labeller.encode(clip)
        elif action_source == 'labels':
            taken = torch.from_numpy(recording.actions[picks[:, None] + np.arange(length - 1)]).to(device)
        else:
            taken = torch.zeros(len(picks), length - 1, dtype=torch.int64, device=device)
        others = taken.clone()
        others[:, context - 1:] = torch.randint(n_actions, (len(picks), n_frames), generator=generator, device=device)
        t0 = time.perf_counter()
        dream = tokenizer.decode(dynamics.generate(tokens[:, :context], taken, maskgit_steps, temperature, generator))
        seconds += time.perf_counter() - t0
        strange = tokenizer.decode(dynamics.generate(tokens[:, :context], others, maskgit_steps, temperature, generator))
        future, last = clip[:, context:], clip[:, context - 1:context]
        for name, guess in (('world', dream[:, context:]), ('random', strange[:, context:]), ('floor', last),
                            ('mean', mean_frame), ('ceiling', again[:, context:])):
            errors[name].append((guess - future).square().mean((2, 3, 4)).float().cpu().numpy())
        changed = (clip[:, 1:] != clip[:, :-1]).any(2)                                # (B,T-1,H,W)
        changed_error.append(((again - clip)[:, 1:].square().mean(2) * changed).sum((1, 2, 3)).cpu().numpy())
        changed_count.append(changed.sum((1, 2, 3)).cpu().numpy())
        used += torch.bincount(tokens.flatten().cpu(), minlength=tokenizer.vocab_size)
errors = {name: np.concatenate(e) for name, e in errors.items()}
changed_error, changed_count = np.concatenate(changed_error), np.concatenate(changed_count)
p = used[used > 0] / used.sum()
horizons = [t for t in (1, 2, 4, 8, 16) if t <= n_frames]
report = dict(
    tokenizer=dict(psnr=psnr(errors['ceiling']), psnr_changed=psnr(changed_error.sum() / max(1, changed_count.sum())),
                   code_usage=len(p) / tokenizer.vocab_size, perplexity=float(torch.exp(-(p * p.log()).sum()))),
    **{name: dict(psnr={t: psnr(errors[key][:, t - 1]) for t in horizons})
       for name, key in (('world', 'world'), ('floor', 'floor'), ('mean', 'mean'), ('ceiling', 'ceiling'))},
    delta_psnr={t: psnr(errors['world'][:, t - 1]) - psnr(errors['random'][:, t - 1]) for t in horizons},
    sampling=dict(frames_per_second=len(starts) * n_frames / seconds, maskgit_steps=maskgit_steps, device=device))
ci = {'tokenizer.psnr': interval(psnr, errors['ceiling']),
      'tokenizer.psnr_changed': interval(lambda e, c: psnr(e.sum() / max(1, c.sum())), changed_error, changed_count)}
for t in horizons:
    ci[f'world.psnr.{t}'] = interval(psnr, errors['world'][:, t - 1])
    ci[f'floor.psnr.{t}'] = interval(psnr, errors['floor'][:, t - 1])
    ci[f'delta_psnr.{t}'] = interval(lambda w, r: psnr(w) - psnr(r), errors['world'][:, t - 1], errors['random'][:, t - 1])

# -----------------------------------------------------------------------------
# do the latent actions mean what the player did? Labels are used here only


def align(codes, labels):
    """codes, labels (n,) -> nmi: mutual information over the entropy of the labels; accuracy: of the majority map from
    code to label, fitted on one half and scored on the other; from_200: the same map fitted on 200 transitions."""
    counts = np.zeros((codes.max() + 1, labels.max() + 1))
    np.add.at(counts, (codes, labels), 1)
    p = counts / counts.sum()
    pc, pl = p.sum(1, keepdims=True), p.sum(0, keepdims=True)
    entropy = -(pl[pl > 0] * np.log(pl[pl > 0])).sum()
    information = (p[p > 0] * np.log((p / (pc @ pl + 1e-30))[p > 0])).sum()

    def accuracy(fit, score):
        votes = np.zeros_like(counts)
        np.add.at(votes, (codes[fit], labels[fit]), 1)
        return float((votes.argmax(1)[codes[score]] == labels[score]).mean())

    order = np.random.default_rng([seed, 4]).permutation(len(codes))
    half, few = len(codes) // 2, min(200, len(codes) // 2)
    return dict(nmi=float(information / max(entropy, 1e-9)), accuracy=accuracy(order[:half], order[half:]),
                from_200=accuracy(order[:few], order[few:]), n=len(codes)), counts


if action_source == 'latent' and recording.actions is not None and recording.actions.ndim == 1 and frame_stride == 1:
    transitions = data.windows(recording, 'val', 2)
    codes = []
    with torch.no_grad(), ctx:
        for i in range(0, len(transitions), 64):
            codes.append(labeller.encode(data.clips(recording.frames, transitions[i:i + 64], 2, 1, device))[:, 0].cpu().numpy())
    codes, labels = np.concatenate(codes), recording.actions[transitions]
    if 'moved' in recording.truth:
        moved = recording.truth['moved'][transitions].astype(bool)
    else:
        moved = np.array([(recording.frames[t] != recording.frames[t + 1]).any() for t in transitions])
    report['align'], _ = align(codes, labels)
    report['align']['moved'], table = align(codes[moved], labels[moved])

# -----------------------------------------------------------------------------
# the card

report['meta'] = dict(n_windows=len(starts), seed=seed, data_id=recording.data_id, dataset=dataset, context_frames=context,
                      temperature=temperature, dynamics_iter=about['iter'], parents=about['parents'], action_source=action_source)
report['ci'] = ci
f = lambda key, x: f'{x:.2f} [{ci[key][0]:.2f}, {ci[key][1]:.2f}]'
card = [f'# {out_dir} on {dataset}', '',
        f'{len(starts)} held-out windows, {context} frames of context, {maskgit_steps} MaskGIT steps, temperature {temperature}; '
        f'[95% bootstrap interval]. PSNR in dB.', '',
        '| tokenizer | |', '|---|---|',
        f'| PSNR, all pixels | {f("tokenizer.psnr", report["tokenizer"]["psnr"])} |',
        f'| PSNR, changed pixels | {f("tokenizer.psnr_changed", report["tokenizer"]["psnr_changed"])} |',
        f'| codes used, perplexity | {100 * report["tokenizer"]["code_usage"]:.0f}%, {report["tokenizer"]["perplexity"]:.0f} |', '',
        '| frames ahead | mean frame | floor: repeat the last | world | ceiling: tokenizer | delta_psnr (true - random actions) |',
        '|---|---|---|---|---|---|']
for t in horizons:
    card.append(f'| {t} | {report["mean"]["psnr"][t]:.2f} | {f(f"floor.psnr.{t}", report["floor"]["psnr"][t])} | '
                f'{f(f"world.psnr.{t}", report["world"]["psnr"][t])} | {report["ceiling"]["psnr"][t]:.2f} | '
                f'{f(f"delta_psnr.{t}", report["delta_psnr"][t])} |')
if 'align' in report:
    names = recording.action_names or [str(i) for i in range(table.shape[1])]
    card += ['', '| latent actions against the true ones | NMI | accuracy | accuracy from 200 labels | transitions |', '|---|---|---|---|---|']
    for title, a in (('all', report['align']), ('where something moved', report['align']['moved'])):
        card.append(f'| {title} | {a["nmi"]:.3f} | {a["accuracy"]:.3f} | {a["from_200"]:.3f} | {a["n"]} |')
    card += ['', '| code (moved) | ' + ' | '.join(names) + ' |', '|---' * (len(names) + 1) + '|']
    card += [f'| {c} | ' + ' | '.join(str(int(x)) for x in row) + ' |' for c, row in enumerate(table)]
card += ['', f'Sampling: {report["sampling"]["frames_per_second"]:.0f} frames/s on {device}.', '']
os.makedirs(out_dir, exist_ok=True)
for name, text in (('eval.json', json.dumps(report, indent=1)), ('eval.md', '\n'.join(card))):
    path = os.path.join(out_dir, name)
    checkpoint.replace_file(path, lambda out: out.write(text.encode()))
print('\n'.join(card))
