"""
Play the world: from held-out frames, the dynamics imagines what follows under actions of your choice.

    python sample.py config/tiny.py                       # the actions that were really taken, as stage 2 infers them
    python sample.py config/tiny.py --actions=random
    python sample.py config/tiny.py --actions=3           # action 3, held
    python sample.py config/tiny.py --actions=3,3,1       # listed, one a frame
    python sample.py config/tiny.py --actions=up,up,left  # by name, where the dataset has labels

Reads the best.pt of the three stages; writes out_dir/samples/: strip.png (truth above, imagination below), rollout.gif
and rollout.mp4 (truth left, imagination right). Prints frames/s.
"""
import os
import time

import numpy as np
import torch

import configurator
import data
import files
import pictures
from training import checkpoint
from world import load_world, taken_actions

# -----------------------------------------------------------------------------
# config

dataset = 'data/tiny.h5'          # its held-out part
out_dir = 'out/tiny'
actions = 'inferred'              # 'inferred', 'random', one action or several: '3', '3,3,1' or 'up'
context_frames = 2                # true frames to start from
n_frames = 32                     # frames to imagine
n_samples = 4                     # rollouts, side by side
maskgit_steps = 8
temperature = 0.5                 # 0 = the most likely token
seed = 0
device = 'auto'                   # 'auto', 'cpu', 'cuda', 'mps'
dtype = 'float32'                 # 'float32', 'bfloat16', 'float16'
config = configurator.apply(__file__, globals())
device = configurator.find_device(device)
ctx = torch.autocast(device.split(':')[0], getattr(torch, dtype), enabled=dtype != 'float32')
wait = torch.cuda.synchronize if device.startswith('cuda') else torch.mps.synchronize if device == 'mps' else lambda: None

# -----------------------------------------------------------------------------
# the world, and where to start in it

try:
    tokenizer, labeller, dynamics, about, recording = load_world(out_dir, dataset, device)
except (checkpoint.CheckpointError, data.DataError) as e:
    configurator.stop(e.exit_code, e)
n_actions, frame_stride = dynamics.config.n_actions, about['config']['frame_stride']
names, listed = about['action_names'], None                # '' for an action without a name
if actions not in ('inferred', 'random'):
    known = {str(i): i for i in range(n_actions)} | {name: i for i, name in enumerate(names) if name}
    listed = [known.get(a.strip()) for a in actions.split(',')]
    if None in listed:
        configurator.stop(2, f'actions={actions!r}: expected inferred, random, or some of {", ".join(known)}, comma between them')
    n_frames = n_frames if len(listed) == 1 else len(listed)
try:
    starts = data.windows(recording, 'val', context_frames + n_frames, frame_stride)
except data.DataError as e:
    configurator.stop(e.exit_code, e)
picks = data.draw(starts, n_samples, seed)
truth = data.clips(recording.frames, picks, context_frames + n_frames, frame_stride, device)

# -----------------------------------------------------------------------------
# imagine

generator = torch.Generator(device).manual_seed(seed)
with torch.no_grad(), ctx:
    tokens = tokenizer.encode(truth[:, :context_frames])
    taken = taken_actions(about['config']['action_source'], labeller, truth, recording, picks)
    if actions == 'random':
        taken[:, context_frames - 1:] = torch.randint(n_actions, (n_samples, n_frames), generator=generator, device=device)
    if listed:
        taken[:, context_frames - 1:] = torch.tensor(listed, device=device).expand(n_samples, n_frames)
    wait()
    t0 = time.perf_counter()
    dream = tokenizer.decode(dynamics.generate(tokens, taken, maskgit_steps, temperature, generator))
    wait()
    seconds = time.perf_counter() - t0
truth, dream = pictures.to_uint8(truth), pictures.to_uint8(dream)                            # (B,T,H,W,3)

# -----------------------------------------------------------------------------
# pictures

folder = os.path.join(out_dir, 'samples')
shown = np.arange(min(context_frames + n_frames, context_frames + 16))
rows = [x[i, shown] for i in range(n_samples) for x in (truth, dream)]
fps = (recording.fps or 15) / frame_stride
pairs = np.concatenate([np.concatenate([t, np.full_like(t[:, :, :4], 255), d], 2) for t, d in zip(truth, dream)], 1)
scale = max(1, 128 // truth.shape[3])
try:
    pictures.save_png(os.path.join(folder, 'strip.png'), pictures.grid(rows, labels=['truth', 'imagined'] * n_samples))
    pictures.save_gif(os.path.join(folder, 'rollout.gif'), pairs, fps, scale)
    pictures.save_mp4(os.path.join(folder, 'rollout.mp4'), pairs, fps, scale)
except files.DiskError as e:
    configurator.stop(7, e)
print(f'{n_samples} rollouts of {n_frames} frames after {context_frames} true ones, actions {actions}: '
      f'{n_samples * n_frames / seconds:.1f} frames/s with {maskgit_steps} MaskGIT steps on {device}')
print(f'see {folder}/strip.png, rollout.gif, rollout.mp4')
