"""
Folders of checkpoints, of this project and of other trainers. Every file is read by
training.checkpoint, which believes no size, no pickle and no zip entry before its checksum.
torch is imported with it, so only when there are checkpoints.
"""
import math
import os
import pickle
import re
from dataclasses import dataclass, replace

from diagnosis.formats import clean
from training.lock import read_json

STAGES = ('tokenizer', 'latent_actions', 'dynamics', 'policy')
FOREIGN = re.compile(r'(.*?)_?step_(\d{1,15})')  # NAME_step_N
PARTS = ('model_state_dict.pt', 'optim_state_dict.pt', 'state.pt')


@dataclass
class Point:
    """A checkpoint. fault: why it is no good, or ''."""
    group: str
    step: int
    name: str
    fault: str
    unjudged: bool = False  # the fault says nothing against the file
    content: dict | None = None


def content_fault(path, name):
    """Why one file of a foreign checkpoint is no good, or ''."""
    import torch
    from training import checkpoint
    try:
        with open(path, 'rb') as f:
            content = checkpoint.read(f)
        size, todo, found = os.path.getsize(path), [content], 0
        while todo:
            value = todo.pop()
            if isinstance(value, dict):
                todo += value.values()
            elif isinstance(value, (list, tuple)):
                todo += value
            elif isinstance(value, torch.Tensor):
                found += 1
                if value.numel() * value.element_size() > size:  # a few bytes can claim any shape
                    return f'a tensor in {name} claims to be larger than the file'
                if not torch.isfinite(value).all():
                    return f'{name} is not finite'
        return '' if found or not name.startswith('model') else f'{name} holds no tensor'
    except FileNotFoundError:
        return f'{name} is missing'
    except checkpoint.Damaged as e:
        empty = 'found nothing' in str(e)
        return f'{name} holds an empty dict' if empty else f'{name}: {clean(e, 200)}'
    except pickle.UnpicklingError:
        return f'{name} holds Python objects, which could run code when loaded; refused'
    except Exception as e:  # whatever zipfile and torch raise for a broken file
        return f'{name} is unreadable: {type(e).__name__}'


def foreign_points(folder):
    """The checkpoints NAME_step_N/ in a folder, or the folder itself if it is one."""
    paths = [os.path.join(folder, n) for n in sorted(os.listdir(folder))]
    paths = [p for p in paths if os.path.isdir(p)]
    if not any(FOREIGN.fullmatch(os.path.basename(p)) for p in paths):
        paths = [os.path.abspath(folder)]
    points = []
    for path in paths:
        name = os.path.basename(path)
        match = FOREIGN.fullmatch(name)
        if match:
            faults = [content_fault(os.path.join(path, part), part) for part in PARTS]
            fault = next((f for f in faults if f), '')
            points.append(Point(clean(match[1], 40), int(match[2]), clean(name, 60), fault))
    return points


def own_points(folder):
    """The checkpoints of one stage folder of this project."""
    from training import checkpoint
    group, points = clean(os.path.basename(os.path.abspath(folder)), 40), []
    for step, path in checkpoint.numbered(folder):
        point = Point(group, step, clean(os.path.basename(path), 60), '')
        try:
            content = checkpoint.load(path)
            if not content['optimizer']:
                point.fault = 'the optimizer is missing'
            # the weights of all of them would fill the memory
            point.content = {k: content[k] for k in ('stage', 'iter', 'config', 'model_args')}
        except checkpoint.CheckpointError as e:
            point.fault, point.unjudged = clean(e.reason, 200), not e.damaged
        points.append(point)
    return points


def is_stage(folder):
    names = os.listdir(folder) if os.path.isdir(folder) else []
    has_checkpoint = any(re.fullmatch(r'ckpt_\d{8,}\.pt', n) for n in names)
    return has_checkpoint or os.path.isfile(os.path.join(folder, 'log.csv'))


def whole_number(value):
    """A number above 1 as a checkpoint should hold it, else None: they may hold anything."""
    return value if type(value) is int and 1 < value < 10 ** 12 else None


def product(levels):
    """How many codes these levels give, or None."""
    if isinstance(levels, (tuple, list)) and len(levels) < 20 and all(map(whole_number, levels)):
        return whole_number(math.prod(levels))
    return None


def newest_content(points):
    """What the newest good checkpoint says about its run."""
    good = [p for p in points if p.content and not p.fault]
    return max(good, key=lambda p: p.step).content if good else dict(model_args={}, config={})


def told_by_checkpoints(folder, points, told):
    """Adds to `told` what the user did not say: the number of actions, the length of the run, and
    the vocabulary, of dynamics only: no other stage has a cross-entropy. A dynamics run that saved
    no checkpoint has its tokenizer beside it."""
    newest = newest_content(points)
    args, config = newest['model_args'], newest['config']
    folder, vocab = os.path.abspath(folder), ()
    if os.path.basename(folder) == 'dynamics':
        size = whole_number(args.get('vocab_size'))
        if not size and not told.vocab:
            beside = os.path.join(os.path.dirname(folder), 'tokenizer')
            size = product(newest_content(own_points(beside))['model_args'].get('levels'))
        vocab = told.vocab or ((size,) if size else ())
    n_actions = whole_number(args.get('n_actions')) or product(args.get('action_levels'))
    return replace(told, vocab=vocab, n_actions=told.n_actions or n_actions,
                   total=told.total or whole_number(config.get('max_iters')))


def status_of(folder):
    """status.json of a stage folder, {} where there is none that can be read."""
    return read_json(os.path.join(folder, 'status.json'))
