"""
The checkpoint file: write, verify, find, load, and go on from it.

One self-describing file each, out_dir/<stage>/ckpt_00012000.pt, and best.pt beside them. It holds
tensors and plain values only, so that torch.load(weights_only=True) can read it: a checkpoint from
a stranger runs no code. torch's reader ignores the checksums in its own files (one flipped bit
loads silently, pytorch #28858), so everything is read through zipfile first, which does not.
"""
import hashlib
import math
import os
import pickle
import re
import shutil
import zipfile

import torch

import configurator
from files import DiskError, free_space, printable, replacing
from training import ranks

FORMAT = 2  # of 1 the same weights made other tokens and other actions
REQUIRED = ('format', 'stage', 'iter', 'config', 'model_args', 'model', 'optimizer', 'guard',
            'metrics', 'data_id', 'parents')
# settings that decide what is trained; the rest may change on resume, and do at once
FIXED = ('seed', 'total_batch_size', 'seq_len', 'frame_stride', 'optimizer', 'action_source',
         'n_labels', 'corrupt')


class CheckpointError(Exception):
    """A checkpoint cannot be used. damaged: the file itself is bad, and an older one may serve."""
    exit_code = 4

    def __init__(self, path, reason, cure='', damaged=False):
        super().__init__(f'checkpoint: {path}: {printable(reason)}' + (f'\n{cure}' if cure else ''))
        self.reason, self.damaged = reason, damaged


class Damaged(Exception):
    """Why a file is damaged; load() adds its name and makes it a CheckpointError."""


def file_name(iter):
    return f'ckpt_{iter:08d}.pt'


def numbered(folder):
    """(iter, path) of the checkpoints in folder, newest first."""
    names = os.listdir(folder) if os.path.isdir(folder) else []
    found = [(re.fullmatch(r'ckpt_(\d{8,})\.pt', name), name) for name in names]
    return sorted(((int(m[1]), os.path.join(folder, name)) for m, name in found if m), reverse=True)


# -----------------------------------------------------------------------------
# what a run saves, and what it goes on from. `trained` in the scripts is the tuple
# (model, optimizers, scaler, guard) that these functions take


def snapshot(model, optimizers, scaler, guard):
    """Everything that training has changed, as plain values. With FSDP every rank must call it."""
    world = dict(world_size=ranks.world_size(), device=next(model.parameters()).device.type,
                 threads=torch.get_num_threads())
    return dict(model=unsharded(model.state_dict()), optimizer=unsharded(optimizers.state_dict()),
                scaler=scaler.state_dict(), guard=guard.state_dict(), world=world)


def restore(ckpt, model, optimizers, scaler, guard):
    """Weights, optimizer and guard as they were. The learning rate is a function of the iteration,
    which the loop sets, and so not restored."""
    load_weights(model, ckpt['model'])
    for optimizer, state in zip(optimizers.each, ckpt['optimizer']):
        load_optimizer(optimizer, state)
    if ckpt['scaler']:  # there is none where it was not float16
        scaler.load_state_dict(ckpt['scaler'])
    guard.load_state_dict(ckpt['guard'])


def resume(folder, about, allow_change, device, *trained):
    """Goes on from the newest good checkpoint of folder -> its iter. Rank 0 chooses, all load it.

    about: what the checkpoints of this run say of it; the id of its W&B run is added. allow_change:
    keys, with commas between, that may differ though they decide what is trained. Raises
    CheckpointError if anything else does.
    """
    iter = latest(folder, about['stage'])['iter'] if ranks.rank() == 0 else 0
    iter = ranks.same_everywhere(iter, device)
    ckpt = load(os.path.join(folder, file_name(iter)), about['stage'])
    expect(ckpt, **{key: about[key] for key in ('model_args', 'data_id', 'parents')})
    changes = expect_config(ckpt, about['config'], allow_change.split(','))
    restore(ckpt, *trained)
    about['wandb_id'] = ckpt.get('wandb_id', '')
    if ranks.rank() == 0:
        loss = ckpt['metrics'].get('loss', math.nan)
        configurator.say('; '.join([f'resume: {ckpt["path"]} (iter {iter}, loss {loss:.4f})',
                                    *changes]))
    return iter


def roll_back(folder, stage, model, optimizers, scaler, guard):
    """Goes on from best.pt at half the learning rate -> its iter."""
    rate, rollbacks = guard.rate / 2, guard.rollbacks + 1
    ckpt = load(os.path.join(folder, 'best.pt'), stage)
    restore(ckpt, model, optimizers, scaler, guard)
    guard.rate, guard.rollbacks = rate, rollbacks
    return ckpt['iter']


def make_best_the_newest(folder, stage):
    """What is newer than best.pt gets the ending .diverged, so that no resume picks it. Every rank
    calls it. -> False if there is no best.pt."""
    best = os.path.join(folder, 'best.pt')
    if ranks.rank() == 0 and os.path.exists(best):
        iter = number_best(folder, stage)['iter']
        for i, path in numbered(folder):
            if i > iter:
                os.replace(path, path + '.diverged')
    ranks.barrier()
    return os.path.exists(best)


def number_best(folder, stage):
    """The checkpoint best.pt, which has its numbered name, too, from here on: under that it may
    have been pruned, or damaged."""
    ckpt = load(os.path.join(folder, 'best.pt'), stage)
    path = os.path.join(folder, file_name(ckpt['iter']))
    give_second_name(ckpt['path'], path)
    return {**ckpt, 'path': path}


# with FSDP each rank holds a part of every tensor; a checkpoint holds the whole, the same file


def unsharded(state):
    """A state dict with the tensors that are shared out over the ranks put together again."""
    if isinstance(state, dict):
        return {k: unsharded(v) for k, v in state.items()}
    if isinstance(state, list):
        return [unsharded(v) for v in state]
    return state.full_tensor().cpu() if hasattr(state, 'full_tensor') else state


def shard_like(tensor, like):
    """The part of a whole tensor that this rank holds of `like`; all of it where none is shared."""
    if not hasattr(like, 'device_mesh') or like.shape != getattr(tensor, 'shape', None):
        return tensor
    from torch.distributed.tensor import distribute_tensor  # two seconds
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements,
                             src_data_rank=None)


def load_weights(model, weights):
    own = model.state_dict()
    model.load_state_dict({name: shard_like(t, own.get(name)) for name, t in weights.items()})


def load_optimizer(optimizer, state):
    params = [p for group in optimizer.param_groups for p in group['params']]
    moments = {i: {k: shard_like(t, params[i]) for k, t in s.items()}
               for i, s in state['state'].items()}
    optimizer.load_state_dict({**state, 'state': moments})


def weights_id(state_dict):
    """16 hex digits over names, types, shapes and bytes: which weights a later stage builds on."""
    h = hashlib.sha256()
    for name, t in sorted(state_dict.items()):
        h.update(f'{name} {t.dtype} {tuple(t.shape)}\n'.encode())
        h.update(t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return h.hexdigest()[:16]


# -----------------------------------------------------------------------------
# write


def tensors(value, where='ckpt'):
    """(where, tensor) for all tensors in value. Raises TypeError for what weights_only would refuse
    to load, months later (np.float64, Path, ...)."""
    if isinstance(value, torch.Tensor):
        yield where, value
    elif isinstance(value, dict):
        for k, v in value.items():
            if type(k) not in (str, int):
                raise TypeError(f'{where} has a key {k!r} of type {type(k).__name__}; '
                                'only str and int can be saved')
            yield from tensors(v, f'{where}[{k!r}]')
    elif type(value) in (list, tuple):
        for i, v in enumerate(value):
            yield from tensors(v, f'{where}[{i}]')
    # type(), and not isinstance(): np.float64 is an instance of float
    elif type(value) not in (str, int, float, bool, type(None)):
        raise TypeError(f'{where} is a {type(value).__module__}.{type(value).__name__}; '
                        'only tensors and plain values can be saved')


def save(folder, ckpt, keep=3, best=False):
    """
    Writes ckpt (REQUIRED but format, which is added here) to folder/ckpt_<iter>.pt, verifies it,
    calls it best.pt too if best, and then prunes all but the newest `keep` good ones. For the
    master process only. Returns the path. Raises DiskError (nothing lost), CheckpointError (what
    was written does not verify), TypeError (a value that is not plain).
    """
    ckpt = {**ckpt, 'format': FORMAT, 'torch': str(torch.__version__)}
    need = sum(t.numel() * t.element_size() for _, t in tensors(ckpt)) + 2**20  # bytes
    path = os.path.join(folder, file_name(ckpt['iter']))
    try:
        os.makedirs(folder, exist_ok=True)
        if free_space(folder) < need:
            raise OSError('the disk is full')
        with replacing(path) as tmp:
            with open(tmp, 'wb') as f:
                torch.save(ckpt, f)
            load(tmp, ckpt['stage'])  # what is called ckpt_*.pt has been read back once
        if best:
            give_second_name(path, os.path.join(folder, 'best.pt'))
        prune(folder, ckpt['iter'], keep)
    except (OSError, RuntimeError, DiskError) as e:
        # torch turns a failed write into a RuntimeError: "[enforce fail at inline_container.cc:672]
        # . unexpected pos"; all others are not the disk's
        if isinstance(e, RuntimeError) and not re.search('inline_container|unexpected pos', str(e)):
            raise
        cause = e.__cause__ if isinstance(e, DiskError) else e
        raise DiskError(f'checkpoint: {path}: cannot be written: {str(cause).splitlines()[0]}\n'
                        f'found {free_space(folder) / 2**20:.0f} MB free, expected '
                        f'{math.ceil(need / 2**20)} MB; older checkpoints are untouched') from e
    return path


def give_second_name(path, name):
    """The file at path also gets the name: that takes no space and no time, and the file stays
    whole when one of its names is pruned."""
    if os.path.exists(name) and os.path.samefile(path, name):
        return  # else a rename does nothing at all, and leaves tmp where it is
    tmp = f'{name}.tmp{os.getpid()}'
    try:
        os.link(path, tmp)
        os.replace(tmp, name)
    except OSError:  # a file system without hard links
        with replacing(name) as tmp:
            shutil.copyfile(path, tmp)


# path -> (mtime, size) when it last loaded, so that pruning reads each file once
verified = {}


def prune(folder, iter, keep):
    """
    Removes what is older than the newest `keep` good checkpoints. Only good ones count, or damaged
    newer files would push out the last one that works; and only those up to iter, for higher
    numbers are of another run, and would push out the one just written.
    """
    good = 0
    for i, path in numbered(folder):
        if i > iter:
            continue
        if good >= keep:
            os.remove(path)
            continue
        stat = os.stat(path)
        if i != iter and verified.get(path) != (stat.st_mtime_ns, stat.st_size):
            try:
                load(path)
            except CheckpointError:
                continue
        verified[path] = (stat.st_mtime_ns, stat.st_size)
        good += 1


# -----------------------------------------------------------------------------
# read


def read(f):
    """The content of an open checkpoint file. Nothing is believed before its checksums are."""
    size, head = os.fstat(f.fileno()).st_size, f.read(4)
    if size == 0:
        raise Damaged('the file is empty (0 bytes)')
    if head != b'PK\x03\x04':
        raise Damaged(f'not a checkpoint: found {head!r} at its start, expected a zip file')
    if not zipfile.is_zipfile(f):
        raise Damaged(f'truncated: its end is missing (found {size} bytes)')
    with zipfile.ZipFile(f) as z:
        records = z.infolist()
        inside = sum(r.file_size for r in records)  # bytes
        # torch stores its records and never compresses: more inside than outside is a bomb
        if inside > size or any(r.compress_type != zipfile.ZIP_STORED for r in records):
            raise Damaged(f'compressed: found {inside} bytes inside a file of {size}; refused')
        broken = z.testzip()
        if broken:
            raise Damaged(f'record {broken} fails its checksum (CRC32)')
    f.seek(0)
    ckpt = torch.load(f, map_location='cpu', weights_only=True)
    if not isinstance(ckpt, dict) or not ckpt:
        kind = 'nothing' if ckpt == {} else type(ckpt).__name__
        raise Damaged(f'found {kind} in it, expected the dict of a checkpoint')
    return ckpt


def check_content(ckpt, size):
    """Raises Damaged if something in ckpt is missing, of the wrong type or not finite. size: of the
    file, in bytes."""
    missing = [key for key in REQUIRED if key not in ckpt]
    if missing:
        raise Damaged(f'incomplete: it has no {", ".join(missing)}')
    kinds = dict(format=int, stage=str, iter=int, config=dict, model_args=dict, model=dict)
    for key, kind in kinds.items():
        if not isinstance(ckpt[key], kind):
            found = type(ckpt[key]).__name__
            raise Damaged(f'found {key} of type {found}, expected {kind.__name__}')
    model = ckpt['model']
    if not model or not all(isinstance(t, torch.Tensor) for t in model.values()):
        raise Damaged('its model is empty, or holds other things than tensors')
    for where, t in tensors(ckpt):
        # a few bytes can claim to be a tensor of any shape (stride 0)
        if not t.numel() * t.element_size() <= t.untyped_storage().nbytes() <= size:
            raise Damaged(f'{where} claims to be larger than the file')
        if not torch.isfinite(t).all():
            raise Damaged(f'{where} is not finite')


def load(path, stage=None):
    """The checkpoint at path, on the CPU, with ckpt['path'] added. Raises CheckpointError with one
    clear reason if anything is wrong."""
    try:
        with open(path, 'rb') as f:
            ckpt = read(f)
        # these two first: another format may have other keys, and neither says anything against
        # the file
        found = ckpt.get('format')
        if isinstance(found, int) and found != FORMAT:
            cure = 'an earlier version wrote it, and plays it; with this one train it anew'
            if found > FORMAT:
                cure = 'a newer version wrote it: update this one'
            raise CheckpointError(path, f'found format {found}, expected {FORMAT}', cure)
        if stage is not None and ckpt.get('stage', stage) != stage:
            raise CheckpointError(path, f'found stage {ckpt["stage"]!r}, expected {stage!r}')
        check_content(ckpt, os.path.getsize(path))
        return {**ckpt, 'path': path}
    except CheckpointError:
        raise
    except (MemoryError, PermissionError) as e:  # nothing against the file either
        raise CheckpointError(path, f'cannot be read: {e or "out of memory"}') from None
    except IsADirectoryError:
        reason = 'found a directory, expected a file'
    except FileNotFoundError:
        reason = 'there is no such file'
    except Damaged as e:
        reason = str(e)
    except pickle.UnpicklingError:
        reason = 'found Python objects in it, which could run code when loaded; refused'
    except Exception as e:  # whatever zipfile and torch raise: KeyError, BadZipFile, struct.error
        if 'enough memory' in str(e) or 'allocate memory' in str(e):  # torch's own MemoryError
            raise CheckpointError(path, 'cannot be read: out of memory') from None
        reason = f'unreadable: {type(e).__name__}: {" ".join(str(e).split())[:120]}'
    raise CheckpointError(path, reason, damaged=True)


def expect(ckpt, **wanted):
    """Raises CheckpointError with both values unless ckpt holds what is wanted, as in
    expect(ckpt, model_args=..., data_id=...)."""
    for name, want in wanted.items():
        found = ckpt[name]
        if not (isinstance(found, dict) and isinstance(want, dict)):
            found, want = {name: found}, {name: want}
        for key in {**want, **found}:
            was, now = (f'{key}={values[key]!r}' if key in values else f'no {key}'
                        for values in (found, want))
            if was != now:
                where = f' ({name})' if name != key else ''
                raise CheckpointError(ckpt['path'], f'found {was}, expected {now}{where}',
                                      'go back to the settings and data it was made with, or start '
                                      'anew with --init_from=scratch')


def expect_config(ckpt, config, allowed=()):
    """
    What differs between the settings that ckpt was made with and those of now, in words such as
    'learning_rate 0.01 -> 0.0005'. Raises CheckpointError for one of FIXED that is not in allowed.
    """
    was, changes = ckpt['config'], []
    for key in [k for k in config if k in was and was[k] != config[k]]:
        if key in FIXED and key not in allowed:
            raise CheckpointError(ckpt['path'],
                                  f'found {key}={was[key]!r}, expected {key}={config[key]!r}',
                                  'go back to the setting it was made with, or say '
                                  f'--allow_change={key}')
        changes.append(f'{key} {was[key]} -> {config[key]}')
    return changes


def latest(folder, stage=None):
    """
    The newest good checkpoint of folder, to resume from. Damaged newer ones are renamed to .bad, so
    that they neither shadow nor push out good ones; a wrong stage or another format stops at once
    and touches nothing. For the master process only. Raises CheckpointError if none is usable.
    """
    start = f'start with: python {stage or "STAGE"}.py config/NAME.py --init_from=scratch'
    reasons = []
    for _, path in numbered(folder):
        try:
            return load(path, stage)
        except CheckpointError as e:
            if not e.damaged:
                raise
            reasons.append(f'{os.path.basename(path)}: {e.reason}')
            try:
                os.replace(path, path + '.bad')
                kept = f'kept as {os.path.basename(path)}.bad'
            except OSError as problem:  # a read-only folder, or an older .bad that is a directory
                kept = f'left in place ({problem.strerror})'
            configurator.say(f'resume: skipped {reasons[-1]}; {kept}')
    if os.path.exists(os.path.join(folder, 'best.pt')):  # all that is left of the run
        return number_best(folder, stage)
    if reasons:
        raise CheckpointError(folder, 'no checkpoint is usable: ' + '; '.join(reasons), start)
    raise CheckpointError(os.path.abspath(folder), 'there is no checkpoint to resume from', start)


def best(folder, stage):
    """best.pt of folder, else the newest good one: how later stages, sample.py and eval.py get the
    models of a stage. Renames nothing. Raises CheckpointError if none is usable."""
    paths = [os.path.join(folder, 'best.pt')] + [path for _, path in numbered(folder)]
    reasons = []
    for path in filter(os.path.exists, paths):
        try:
            return load(path, stage)
        except CheckpointError as e:
            if not e.damaged:
                raise
            reasons.append(f'{os.path.basename(path)}: {e.reason}')
            print(f'checkpoint: skipped {path}: {e.reason}', flush=True)
    reason = f'there is no checkpoint of stage {stage!r}'
    if reasons:
        reason = 'no checkpoint is usable: ' + '; '.join(reasons)
    raise CheckpointError(os.path.abspath(folder), reason,
                          f'train it with: python {stage}.py config/NAME.py')
