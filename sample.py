"""
Play the world: what follows held-out frames under actions of your choice, as imagined.

    python sample.py config/tiny.py                       # the actions really taken, from stage 2
    python sample.py config/tiny.py --actions=random
    python sample.py config/tiny.py --actions=3           # action 3, held
    python sample.py config/tiny.py --actions=3,3,1       # listed, one a frame
    python sample.py config/tiny.py --actions=up,up,left  # by name, where the dataset has labels
    python sample.py config/hunt.py --actions=policy      # as the player of policy.py likes: what
                                                          # play.py --watch=True shows
    python sample.py world.pt                             # a file of export.py: random actions

Reads the best.pt of the three stages; writes out_dir/samples/: strip.png (truth above, imagination
below), rollout.gif and rollout.mp4 (truth left, imagination right). The truth is grey after the end
of its episode: only actions that are inferred from it need it so long. Prints frames/s. Errors that
carry an exit_code end the run in their own words: 2 config, 3 data, 4 checkpoint, 7 disk.
"""
import os
import time

import numpy as np
import torch

import configurator
import data
import files
import pictures
from player import Player
from world import Dream, folder_of, load_world, synchronize, taken_actions

# -----------------------------------------------------------------------------
# config

dataset = 'data/tiny.h5'  # its held-out part
out_dir = 'out/tiny'
actions = 'inferred'  # 'inferred', 'random', 'policy', one or several: '3', '3,3,1' or 'up'
best_of = 1  # of so many chunks that the player thinks of, the best by his energy model
context_frames = 2  # true frames to start from
n_frames = 32  # frames to imagine
n_samples = 4  # rollouts, side by side
maskgit_steps = 8  # looks at a frame, at most
temperature = 0.5  # 0 = the most likely token
seed = 0
device = 'auto'  # 'auto', 'cpu', 'cuda', 'mps'
dtype = 'float32'  # 'float32', 'bfloat16', 'float16'
config = configurator.apply(__file__, globals())
device = configurator.find_device(device)
ctx = torch.autocast(device.split(':')[0], getattr(torch, dtype), enabled=dtype != 'float32')

# -----------------------------------------------------------------------------
# the world, and where to start in it

world = load_world(out_dir, dataset, device)
tokenizer, action_model, dynamics, about, recording = world
dream = Dream(world, maskgit_steps, temperature, device)
folder = os.path.join(folder_of(out_dir), 'samples')
files.expect_writable(folder)
scale = max(1, 128 // recording.frames.shape[2])
height = recording.frames.shape[1] * scale  # of a rollout, in the video
if n_samples * height > 16_384:  # pixels, beyond which H.264 has no level
    configurator.stop(2, f'config: found n_samples={n_samples}, one above the other in the video, '
                         f'{n_samples * height} pixels\nexpected at most {16_384 // height}')
n_actions, frame_stride = dynamics.config.n_actions, about['config']['frame_stride']
listed = None
if actions == 'policy':
    player = Player(out_dir, device, best_of=best_of)
    player.enter(about)
    context_frames = dream.memory  # as in play.py, where his games are the same
elif actions not in ('inferred', 'random'):
    action_numbers = {str(i): i for i in range(n_actions)}
    action_numbers.update({name: i for i, name in enumerate(about['action_names']) if name})
    listed = [action_numbers.get(action.strip()) for action in actions.split(',')]
    if None in listed:
        configurator.stop(2, f'actions={actions!r}: expected inferred, random, policy, or some '
                             f'of {", ".join(action_numbers)}, comma between them')
    if len(listed) > 1:
        n_frames = len(listed)
length = context_frames + n_frames
try:
    # as in play.py, the player's games begin wherever there is enough to remember
    shortest = context_frames if actions == 'policy' else length
    starts = data.windows(recording, 'val', shortest, frame_stride,
                          f'context_frames={context_frames} and n_frames={n_frames}',
                          'lower n_frames; --actions=random needs no truth beyond the context')
except data.DataError:
    if actions == 'inferred' and not recording.all_held_out:
        raise
    if actions == 'inferred':  # a world file holds no truth to infer them from
        actions = 'random'
    starts = data.windows(recording, 'val', context_frames, frame_stride,
                          f'context_frames={context_frames}', 'lower context_frames')
picks = data.draw(starts, n_samples, seed)
if actions == 'policy':
    picks = np.concatenate([data.draw(starts, 1, seed, i) for i in range(n_samples)])
index = picks[:, None] + frame_stride * np.arange(length)  # (B,T)
stops = np.array([stop for _, stop in data.split(recording, 1)['val']])
is_known = index < stops[np.searchsorted(stops, picks, 'right')][:, None]
truth = data.clips(recording.frames, np.where(is_known, index, 0).ravel(), 1, 1, device)
truth = truth.view(n_samples, length, *truth.shape[2:])
truth[torch.from_numpy(~is_known).to(device)] = 0  # grey

# -----------------------------------------------------------------------------
# imagine


def imagine():
    """The rollouts (B,T,C,H,W), with the true context before them."""
    generator = torch.Generator(device).manual_seed(seed)
    tokens = tokenizer.encode(truth[:, :context_frames])
    source = about['config']['action_source']
    # a frame alone has no action, so there is one more than the context
    seen = truth if actions == 'inferred' else truth[:, :context_frames + 1]
    taken = taken_actions(source, action_model, seen, recording, picks)
    if actions == 'random':
        chosen = torch.randint(n_actions, (n_samples, n_frames), generator=generator, device=device)
    if listed:
        chosen = torch.tensor(listed, device=device).expand(n_samples, n_frames)
    if actions != 'inferred':
        taken = torch.cat([taken[:, :context_frames - 1], chosen], 1)
    tokens = dynamics.generate(tokens, taken, maskgit_steps, temperature, generator)
    return pictures.to_uint8(tokenizer.decode(tokens))


def play(i):
    """The game (T,H,W,3) that play.py's start i is when the player plays it."""
    dream.begin(picks[i:i + 1], seed + i)
    context = pictures.to_uint8(tokenizer.decode(dream.tokens))[0]
    player.begin(seed + i)
    frames = []
    for _ in range(n_frames):
        player.look(dream.frames)
        dream.step(player.dream()[0])
        frames.append(dream.frames[0])
    return np.concatenate([context, np.stack(frames)])


synchronize(device)
t0 = time.perf_counter()
with torch.no_grad(), ctx:
    if actions == 'policy':
        imagined = np.stack([play(i) for i in range(n_samples)])
    else:
        imagined = imagine()
seconds = time.perf_counter() - t0
truth = pictures.to_uint8(truth)  # (B,T,H,W,3)

# -----------------------------------------------------------------------------
# pictures

print(f'{n_samples} rollouts of {n_frames} frames after {context_frames} true ones, actions '
      f'{actions}: {n_samples * n_frames / seconds:.1f} frames/s with up to {maskgit_steps} '
      f'MaskGIT steps on {device}', flush=True)
shown = min(context_frames + n_frames, context_frames + 16)
rows = [frames[i, :shown] for i in range(n_samples) for frames in (truth, imagined)]
strip = pictures.grid(rows, labels=['truth', 'imagined'] * n_samples)
white = np.full_like(truth[:, :, :, :4], 255)  # a line between the two
pairs = np.concatenate([truth, white, imagined], 3)
pairs = np.concatenate(list(pairs), 1)  # (T,B*H,W+4+W,3)
fps = (recording.fps or 15) / frame_stride
pictures.save_png(os.path.join(folder, 'strip.png'), strip)
pictures.save_gif(os.path.join(folder, 'rollout.gif'), pairs, fps, scale)
pictures.save_mp4(os.path.join(folder, 'rollout.mp4'), pairs, fps, scale)
print(f'see {folder}/strip.png, rollout.gif, rollout.mp4')
