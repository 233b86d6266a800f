"""
The checkpoint file: write, verify, find, load.

One self-describing file each, out_dir/<stage>/ckpt_00012000.pt, and best.pt beside them. Only tensors and plain values, so that
torch.load(weights_only=True) can read it: a checkpoint from a stranger runs no code. torch's reader ignores the checksums
in its own files (one flipped bit loads silently, pytorch #28858), so everything here is read through zipfile first, which does not.
"""

import hashlib, json, math, os, pickle, re, shutil, signal, time, zipfile
import torch

from files import DiskError, free_space, replacing

FORMAT = 1
REQUIRED = ('format', 'stage', 'iter', 'config', 'model_args', 'model', 'optimizer', 'guard', 'metrics', 'data_id', 'parents')

class CheckpointError(Exception):
    """A checkpoint cannot be used. damaged: the file itself is bad, so an older one may serve instead."""
    exit_code = 4

    def __init__(self, path, reason, cure='', damaged=False):
        super().__init__(f'checkpoint: {path}: {reason}' + (f'\n{cure}' if cure else ''))
        self.reason, self.damaged = reason, damaged

class Damaged(Exception):
    """Why a file is damaged; load() adds its name."""

def file_name(iter):
    return f'ckpt_{iter:08d}.pt'

def numbered(folder):
    """(iter, path) of the checkpoints in folder, newest first."""
    found = [(re.fullmatch(r'ckpt_(\d{8,})\.pt', name), name) for name in (os.listdir(folder) if os.path.isdir(folder) else [])]
    return sorted(((int(m[1]), os.path.join(folder, name)) for m, name in found if m), reverse=True)

# -----------------------------------------------------------------------------
# write

def tensors(value, where='ckpt'):
    """(where, tensor) for all tensors in value. TypeError for what weights_only would refuse to load, months later (np.float64, Path, ...)."""
    if isinstance(value, torch.Tensor):
        yield where, value
    elif isinstance(value, dict):
        for k, v in value.items():
            if type(k) not in (str, int):
                raise TypeError(f'{where} has a key {k!r} of type {type(k).__name__}; only str and int can be saved')
            yield from tensors(v, f'{where}[{k!r}]')
    elif type(value) in (list, tuple):
        for i, v in enumerate(value):
            yield from tensors(v, f'{where}[{i}]')
    elif type(value) not in (str, int, float, bool, type(None)): # type(), as np.float64 is an instance of float
        raise TypeError(f'{where} is a {type(value).__module__}.{type(value).__name__}; only tensors and plain values can be saved')

def open_run(folder, iter, need):
    """
    Make folder ready for a run: a new one (iter None; an earlier run is moved aside), or one that goes on after `iter` (log.csv is cut
    there, as what follows it is going to happen again). need: bytes for its checkpoints. For the master process only.
    Raises DiskError: it cannot be written, or has less room; then all is as it was.
    """
    log = os.path.join(folder, 'log.csv')
    try:
        free = free_space(folder)
        if free < need:
            raise DiskError(f'{folder}: found {free / 1e6:.0f} MB free, expected {need / 1e6:.0f} MB for four checkpoints\n'
                            'make room, or use another --out_dir')
        if iter is None and os.path.exists(folder):
            aside = next(f'{folder}.{k}' for k in range(1, 10**6) if not os.path.exists(f'{folder}.{k}'))
            os.rename(folder, aside)
            print(f'moved the earlier run to {aside}')
        os.makedirs(os.path.join(folder, 'samples'), exist_ok=True)
        for name in os.listdir(folder) + [os.path.join('samples', n) for n in os.listdir(os.path.join(folder, 'samples'))]:
            if re.fullmatch(r'(ckpt_\d+\.pt|best\.pt|status\.json|log\.csv|samples.\d+\.png)\.tmp\d+', name): # of a killed process
                os.remove(os.path.join(folder, name))
        if os.path.exists(log):
            with open(log, errors='replace') as f:
                lines = f.readlines()
            def happened(line): # and was written to its end
                first = line.split(',')[0]
                return line.endswith('\n') and first.isdecimal() and int(first) <= iter
            with replacing(log) as tmp, open(tmp, 'w') as f:
                f.writelines(lines[:1] + [line for line in lines[1:] if happened(line)])
    except OSError as e:
        raise DiskError(f'{folder}: cannot be written: {e}\nuse another --out_dir, or make it writable') from e

def save(folder, ckpt, keep=3, best=False):
    """
    Write ckpt (REQUIRED but format, which is added here) to folder/ckpt_<iter>.pt, verify it, point best.pt at it if best, and
    then prune all but the newest `keep` good ones. For the master process only. Returns the path.
    Raises DiskError (nothing lost), CheckpointError (what was written does not verify), TypeError (a value that is not plain).
    """
    ckpt = {**ckpt, 'format': FORMAT, 'torch': str(torch.__version__)}
    need = sum(t.numel() * t.element_size() for _, t in tensors(ckpt)) + 2**20 # bytes
    path = os.path.join(folder, file_name(ckpt['iter']))
    try:
        os.makedirs(folder, exist_ok=True)
        if free_space(folder) < need:
            raise OSError('the disk is full')
        with replacing(path) as tmp:
            with open(tmp, 'wb') as f:
                torch.save(ckpt, f)
            load(tmp, ckpt['stage'])  # before it gets its name: what is called ckpt_*.pt was read back once
            kill_if_asked('kill_in_save', ckpt['iter'])
        kill_if_asked('kill_before_prune', ckpt['iter'])
        if best:
            point_best_at(path)
        prune(folder, ckpt['iter'], keep)
    except (OSError, RuntimeError, DiskError) as e:
        # torch turns a failed write into RuntimeError: [enforce fail at inline_container.cc:672] . unexpected pos
        if isinstance(e, RuntimeError) and 'inline_container' not in str(e) and 'unexpected pos' not in str(e):
            raise
        raise DiskError(f'checkpoint: {path}: cannot be written: {str(e).splitlines()[0]}\n'
                        f'found {free_space(folder) / 2**20:.0f} MB free, expected {math.ceil(need / 2**20)} MB; older checkpoints are untouched') from e
    return path

def point_best_at(path):
    """best.pt becomes a second name for the file: no space, no time, and pruning the first name leaves it whole."""
    best = os.path.join(os.path.dirname(path), 'best.pt')
    tmp = f'{best}.tmp{os.getpid()}'
    try:
        os.link(path, tmp)
        os.replace(tmp, best)
    except OSError: # a file system without hard links
        with replacing(best) as tmp:
            shutil.copyfile(path, tmp)

verified = {} # path -> (mtime, size) when it last loaded, so that pruning reads each file once and not at every save

def prune(folder, iter, keep):
    """
    Remove what is older than the newest `keep` good checkpoints. Only good ones count, or damaged newer files would push out the
    last one that works; and only up to iter: higher numbers are of another run, and would push out the one just written.
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

def write_status(folder, **fields):
    """folder/status.json = fields (state, iter, saved_iter, reason ...), atomically. Under torchrun the exit code is always 1, so this
    file is how others learn the end of a run. Never raises for the disk: training matters more."""
    try:
        os.makedirs(folder, exist_ok=True)
        text = json.dumps(fields, indent=1, default=str) + '\n'
        with replacing(os.path.join(folder, 'status.json')) as tmp, open(tmp, 'w') as f:
            f.write(text)
    except (OSError, DiskError) as e:
        print(f'warning: status.json not written in {folder}: {e}', flush=True)

# -----------------------------------------------------------------------------
# read

def read(f):
    """The content of an open checkpoint file. Nothing is believed before its checksums have been compared."""
    size, head = os.fstat(f.fileno()).st_size, f.read(4)
    if size == 0:
        raise Damaged('the file is empty (0 bytes)')
    if head != b'PK\x03\x04':
        raise Damaged(f'not a checkpoint: found {head!r} at its start, expected a zip file')
    if not zipfile.is_zipfile(f):
        raise Damaged(f'truncated: its end is missing (found {size} bytes)')
    with zipfile.ZipFile(f) as z:
        records = z.infolist()
        inside = sum(r.file_size for r in records) # bytes
        # torch stores its records and never compresses them: more inside than outside is a bomb
        if inside > size or any(r.compress_type != zipfile.ZIP_STORED for r in records):
            raise Damaged(f'compressed: found {inside} bytes inside a file of {size}; refused')
        broken = z.testzip()
        if broken:
            raise Damaged(f'record {broken} fails its checksum (CRC32)')
    f.seek(0)
    ckpt = torch.load(f, map_location='cpu', weights_only=True)
    if not isinstance(ckpt, dict) or not ckpt:
        raise Damaged(f'found {"nothing" if ckpt == {} else type(ckpt).__name__} in it, expected the dict of a checkpoint')
    return ckpt

def check_content(ckpt, size):
    """Damaged if something is missing from ckpt, of the wrong type or not finite. size of the file in bytes."""
    missing = [key for key in REQUIRED if key not in ckpt]
    if missing:
        raise Damaged(f'incomplete: it has no {", ".join(missing)}')
    for key, kind in dict(format=int, stage=str, iter=int, config=dict, model_args=dict, model=dict).items():
        if not isinstance(ckpt[key], kind):
            raise Damaged(f'found {key} of type {type(ckpt[key]).__name__}, expected {kind.__name__}')
    if not ckpt['model'] or not all(isinstance(t, torch.Tensor) for t in ckpt['model'].values()):
        raise Damaged('its model is empty, or holds other things than tensors')
    for where, t in tensors(ckpt):
        # a few bytes can claim to be a tensor of any shape (stride 0)
        if not t.numel() * t.element_size() <= t.untyped_storage().nbytes() <= size:
            raise Damaged(f'{where} claims to be larger than the file')
        if not torch.isfinite(t).all():
            raise Damaged(f'{where} is not finite')

def load(path, stage=None):
    """The checkpoint at path, on the CPU, with ckpt['path'] added. CheckpointError with one clear reason if anything is wrong."""
    try:
        with open(path, 'rb') as f:
            ckpt = read(f)
        # these two first: a newer format may have other keys, and neither says anything against the file
        if isinstance(ckpt.get('format'), int) and ckpt['format'] > FORMAT:
            raise CheckpointError(path, f'found format {ckpt["format"]}, expected {FORMAT}', 'a newer version wrote it: update this one')
        if stage is not None and ckpt.get('stage', stage) != stage:
            raise CheckpointError(path, f'found stage {ckpt["stage"]!r}, expected {stage!r}')
        check_content(ckpt, os.path.getsize(path))
    except CheckpointError:
        raise
    except (MemoryError, PermissionError) as e: # nothing against the file either
        raise CheckpointError(path, f'cannot be read: {e or "out of memory"}') from None
    except IsADirectoryError:
        reason = 'found a directory, expected a file'
    except FileNotFoundError:
        reason = 'there is no such file'
    except Damaged as e:
        reason = str(e)
    except pickle.UnpicklingError:
        reason = 'found Python objects in it, which could run code when loaded; refused'
    except Exception as e: # whatever zipfile and torch raise for a broken file: KeyError, BadZipFile, struct.error ...
        if 'enough memory' in str(e) or 'allocate memory' in str(e): # torch's own MemoryError is a RuntimeError
            raise CheckpointError(path, 'cannot be read: out of memory') from None
        reason = f'unreadable: {type(e).__name__}: {" ".join(str(e).split())[:120]}'
    else:
        return {**ckpt, 'path': path}
    raise CheckpointError(path, reason, damaged=True)

def expect(ckpt, **wanted):
    """CheckpointError with both values unless ckpt holds what is wanted, as expect(ckpt, model_args=..., data_id=...)."""
    for name, want in wanted.items():
        found = ckpt[name]
        if not (isinstance(found, dict) and isinstance(want, dict)):
            found, want = {name: found}, {name: want}
        for key in {**want, **found}:
            was, now = (f'{key}={values[key]!r}' if key in values else f'no {key}' for values in (found, want))
            if was != now:
                raise CheckpointError(ckpt['path'], f'found {was}, expected {now}' + (f' ({name})' if name != key else ''),
                                      'go back to the settings and data it was made with, or start anew with --init_from=scratch')

# settings that decide what is trained; the rest may change on resume, and do at once
FIXED = ('seed', 'total_batch_size', 'seq_len', 'frame_stride', 'optimizer', 'action_source', 'corrupt')

def expect_config(ckpt, config, allowed=()):
    """
    What differs between the settings that ckpt was made with and those of now, as 'learning_rate 0.01 -> 0.0005'.
    CheckpointError if one of FIXED does and is not in allowed.
    """
    was, changes = ckpt['config'], []
    for key in [k for k in config if k in was and was[k] != config[k]]:
        if key in FIXED and key not in allowed:
            raise CheckpointError(ckpt['path'], f'found {key}={was[key]!r}, expected {key}={config[key]!r}',
                                  f'go back to the setting it was made with, or say --allow_change={key}')
        changes.append(f'{key} {was[key]} -> {config[key]}')
    return changes

def go_back(folder, stage):
    """Makes best.pt the newest checkpoint of folder: what is newer gets the ending .diverged, so that no resume picks it. For the
    master process only."""
    best = os.path.join(folder, 'best.pt')
    iter = load(best, stage)['iter']
    for i, path in numbered(folder):
        if i > iter:
            os.replace(path, path + '.diverged')
    path = os.path.join(folder, file_name(iter))
    if not os.path.exists(path): # pruned under its own name
        shutil.copyfile(best, path + '.tmp0')
        os.replace(path + '.tmp0', path)

def latest(folder, stage=None):
    """
    The newest good checkpoint of folder, to resume from. Damaged newer ones are renamed to .bad, so that they neither shadow nor push out
    good ones; a wrong stage or a newer format stops at once and touches nothing. For the master process only.
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
            except OSError as problem: # a folder that is read-only, an older .bad that is a directory
                kept = f'left in place ({problem.strerror})'
            print(f'resume: skipped {reasons[-1]}; {kept}', flush=True)
    if reasons:
        raise CheckpointError(folder, 'no checkpoint is usable: ' + '; '.join(reasons), start)
    raise CheckpointError(folder, 'there is no checkpoint to resume from', start)

def best(folder, stage):
    """best.pt of folder, else the newest good one: how later stages, sample.py and eval.py get the models of a stage. Renames nothing."""
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
    raise CheckpointError(folder, 'no checkpoint is usable: ' + '; '.join(reasons) if reasons else f'there is no checkpoint of stage {stage!r}',
                          f'train it with: python {stage}.py config/NAME.py')

def weights(ckpt):
    """The state dict to use a model with: the averaged weights where the stage keeps them."""
    return ckpt['model'] if ckpt.get('ema') is None else ckpt['ema']

# with fsdp each rank holds a part of every tensor; a checkpoint holds the whole, and is the same file with fsdp and without

def whole(state):
    """A state dict with the tensors that are shared out over the ranks (DTensor) put together; all ranks must call it."""
    if isinstance(state, dict):
        return {k: whole(v) for k, v in state.items()}
    if isinstance(state, list):
        return [whole(v) for v in state]
    return state.full_tensor().cpu() if hasattr(state, 'full_tensor') else state

def shared_as(tensor, like):
    """The part of a whole tensor that this rank holds of `like`; the tensor itself where that is not shared out."""
    if not hasattr(like, 'device_mesh') or like.shape != getattr(tensor, 'shape', None):
        return tensor
    from torch.distributed.tensor import distribute_tensor # two seconds
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)

def load_weights(model, weights):
    own = model.state_dict()
    model.load_state_dict({name: shared_as(t, own.get(name)) for name, t in weights.items()})

def load_optimizer(optimizer, state):
    params = [p for group in optimizer.param_groups for p in group['params']]
    moments = {i: {k: shared_as(t, params[i]) for k, t in s.items()} for i, s in state['state'].items()}
    optimizer.load_state_dict({**state, 'state': moments})

def weights_id(state_dict):
    """16 hex digits over names, dtypes, shapes and bytes: says which weights a later stage was trained on."""
    h = hashlib.sha256()
    for name, t in sorted(state_dict.items()):
        h.update(f'{name} {t.dtype} {tuple(t.shape)}\n'.encode())
        h.update(t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return h.hexdigest()[:16]

# -----------------------------------------------------------------------------
# faults, for the tests: FAULT=kind@iter, kind@iter+ (from then on) or kind@iter:rank in the environment. Unset, nothing happens

def asked(kind, it):
    wanted, _, place = os.environ.get('FAULT', '').partition('@')
    at, _, rank = place.partition(':')
    return wanted == kind and (it >= int(at[:-1]) if at.endswith('+') else it == int(at)) and rank in ('', os.environ.get('RANK', '0'))

def kill_if_asked(kind, it):
    if asked(kind, it):
        os.kill(os.getpid(), signal.SIGKILL)

def fault(it, loss, model):
    """Called in every update between forward and backward; returns the loss."""
    kill_if_asked('kill', it)
    if asked('raise', it):
        raise RuntimeError(f'a fault was asked for at iter {it}')
    if asked('sleep', it):
        time.sleep(3600)
    if asked('drift', it):
        next(model.parameters()).data += 1
    return loss * math.nan if asked('nan', it) else loss
