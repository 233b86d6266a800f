"""
A trained world as one file, to keep or to give to a friend.

    python export.py config/tiny.py world.pt         # then: python play.py world.pt
    python export.py config/tiny.py world.pt --dtype=float16  # half as large
    python export.py config/tiny.py world.pt --licence='CC BY 4.0, Jane Doe'
    python export.py config/tiny.py world.html       # a page that plays it, without Python

Reads the best.pt of the stages (of policy.py, too, if there is one) and a few held-out frames to
start from. play.py, sample.py and eval.py take the file in place of a config: there is no need of
out_dir and dataset, nor of their machine. The eval card goes in as eval.py has left it in out_dir.

The file is a checkpoint like others, and as little is believed of it when it is read: tensors and
plain values, no code. What settings say of folders stays here. Errors that carry an exit_code end
the run in their own words: 2 config, 3 data, 4 checkpoint, 7 disk.
"""
import json
import os
import sys

import numpy as np
import torch

import configurator
import data
from files import printable, replacing
from page import graphs
from training import checkpoint
from training.folder import holds_checkpoint
from world import Dream, facts_for_page, load_stage, load_world, read_world

# -----------------------------------------------------------------------------
# config

dataset = 'data/tiny.h5'  # its held-out part
out_dir = 'out/tiny'
file = 'world.pt'  # what to write
n_samples = 16  # starts
licence = ''  # what others may do with it, in a line
maskgit_steps = 8  # of a page, until its player moves the slider
temperature = 0.5  # the same
dtype = 'float32'  # of the weights in the file: 'float32', 'float16'
seed = 0
config = configurator.apply(__file__, globals())
if dtype == 'bfloat16':
    configurator.stop(2, "config: found dtype='bfloat16', expected float32 or float16")
if os.path.isfile(out_dir):
    configurator.stop(2, f'config: found out_dir={out_dir!r}, a file, expected a folder of trained '
                         'stages')

# -----------------------------------------------------------------------------
# the world, and where to start in it

world = load_world(out_dir, dataset, 'cpu')
dynamics, about, recording = world[2:]
if file.endswith('.pt') and os.path.exists(file):
    there = read_world(file)['stages']['dynamics']
    here = recording.data_id, about['config']['seed']
    if (there['data_id'], there['config'].get('seed')) != here:
        configurator.stop(2, f'{file}: found another world there (of the recording with data_id '
                             f'{printable(there["data_id"])})\nremove it, or choose another name')
stride, memory = about['config']['frame_stride'], dynamics.config.seq_len - 1
windows = data.windows(recording, 'val', memory, stride)
n_samples = min(n_samples, len(windows))
picks = windows[np.linspace(0, len(windows) - 1, n_samples).astype(int)]

# -----------------------------------------------------------------------------
# a page, which needs no more

if file.endswith('.html'):
    for model in world[:3:2]:  # tokenizer, dynamics
        for p in model.parameters():
            p.data = p.to(getattr(torch, dtype)).float()  # what was rounded packs better
    dream = Dream(world, maskgit_steps, temperature, 'cpu')
    with torch.no_grad():
        dream.begin(picks, seed)
    facts = dict(facts_for_page(world, windows, 'cpu'), replay=about['id'] + ' page', watch=False,
                 beside=False, seed=seed, maskgit_steps=maskgit_steps, temperature=temperature)
    notice = f'A world of nanoworlds. {"Licence: " + licence if licence else ""}'
    text = graphs.page(world[0], dynamics, facts, (dream.tokens, dream.actions), notice)
    with replacing(file) as tmp, open(tmp, 'w', encoding='utf-8') as f:
        f.write(text)
    print(f'{file}: {os.path.getsize(file) / 1e6:.1f} MB; open it in a browser, or put it on any '
          'web server')
    sys.exit()

# -----------------------------------------------------------------------------
# the start frames of a file

length = (memory - 1) * stride + 1  # frames of a start, those between two steps, too
index = (picks[:, None] + np.arange(length)).ravel()
starts = dict(frames=recording.frames[index], length=length)
if recording.has_labels:
    starts['actions'] = recording.actions[index]
starts.update({f'truth.{key}': values[index] for key, values in recording.truth.items()})
starts = {key: torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray) else value
          for key, value in starts.items()}
starts.update(action_names=recording.action_names, source=recording.source, fps=recording.fps)

# -----------------------------------------------------------------------------
# the stages

PRIVATE = 'dataset', 'out_dir', 'wandb_project', 'wandb_run_name'  # names of this machine's owner
KEPT = 'iter', 'model_args', 'data_id', 'parents', 'metrics', 'action_names', 'idle', 'acting'
stages, weights, sizes = {}, {}, {}
names = [*about['parents'], 'dynamics']
if holds_checkpoint(os.path.join(out_dir, 'policy')):
    names.append('policy')
for stage in names:
    model, told = load_stage(out_dir, stage, 'cpu')
    stages[stage] = {key: told[key] for key in KEPT if key in told}
    stages[stage].update(id=told['id'], config={key: value for key, value in told['config'].items()
                                                if key not in PRIVATE})
    parameters = dict(model.named_parameters())  # what is measured, not learned, stays as it is
    of_stage = {f'{stage}.{name}': t.to(getattr(torch, dtype)) if name in parameters else t
                for name, t in model.state_dict().items()}
    sizes[stage] = (sum(p.numel() for p in parameters.values()),
                    sum(t.numel() * t.element_size() for t in of_stage.values()))
    weights.update(of_stage)
stages['dynamics']['action_names'] = about['action_names']

card, card_path = '', os.path.join(out_dir, 'eval.md')
about_card = 'none: python eval.py makes one'
if os.path.exists(card_path):
    with open(card_path, encoding='utf-8') as f, open(card_path[:-2] + 'json') as told:
        lines, measured = f.read().splitlines(), json.load(told)['meta']['dynamics_id']
    about_card = f'none: {card_path} is of an earlier training; python eval.py makes one'
    if measured == about['id']:  # without the names of folders, in its first and its last line
        card = '\n'.join([f'# {os.path.basename(file)}', *(
            line for line in lines[1:] if not line.startswith('Pictures: '))])
        about_card = f'as in {card_path}'
data_card = '\n'.join(data.card_of(recording))
data_card = data_card.replace(recording.path, os.path.basename(recording.path))
held = dict(
    format=checkpoint.FORMAT, stage='world', iter=about['iter'], data_id=recording.data_id,
    model=weights, stages=stages, starts=starts, card=card, licence=licence,
    data_card=data_card,
    # what every checkpoint has, and a world says of each stage
    config={}, model_args={}, parents={}, optimizer=[], guard={}, metrics={})

# -----------------------------------------------------------------------------
# written whole, and read back before it has its name

list(checkpoint.tensors(held))  # only plain values, or it could not be read
with replacing(file) as tmp:
    torch.save(held, tmp)
    load_world(tmp, tmp, 'cpu')
print(f'{file}: {os.path.getsize(file) / 1e6:.1f} MB')
for stage, (n, size) in sizes.items():
    print(f'  {stage:<15} {n / 1e6:.2f} M parameters, {size / 1e6:.1f} MB, '
          f'{stages[stage]["iter"]:,} updates')
h, w = recording.frames.shape[1:3]
size = len(index) * h * w * 3 / 1e6
print(f'  starts          {n_samples} of {memory} frames of {w}x{h}, {size:.1f} MB')
names = [printable(name or i) for i, name in enumerate(about['action_names'])]
print('  actions        ', ', '.join(names))
print('  eval card      ', about_card)
print(f'  licence         {licence or "none: --licence says what others may do with it"}')
print(f'play it: python play.py {file}')
