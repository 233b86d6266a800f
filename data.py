"""
Datasets: make, import, check, draw windows; pictures.

    python data.py game  data/tiny.h5 --n_frames=20000           # the built-in game, with true action labels
    python data.py video play.mp4 data/zelda.h5 --size=128 --fps=15 [--labels=labels.npz] [--pad] [--compression=lzf]
    python data.py check data/zelda.h5                           # data card, or what is wrong with the file

A dataset is one HDF5 file. `frames` uint8 (N,H,W,3) is required. Optional: `actions` int (N,) or float (N,A), where
actions[t] is held while going from frame t to t+1; `episode_starts` int, sorted, first 0; attributes `fps`, `source`,
`action_names`; a group `truth` of per-frame arrays (what the built-in game knows about itself).

The training scripts use load, split, windows, draw, clips and the pictures. Exit codes: 0 done, 2 command line,
3 the data is wrong, 7 the disk is full or cannot be written.
"""
import argparse
import contextlib
import functools
import glob
import hashlib
import itertools
import math
import os
import re
import shutil
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass, field

import h5py
import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm
# torch and av take a second or more to import: the functions that need them import them, and the commands stay quick


class DataError(Exception):
    """What is wrong with the data, in at most three lines. Scripts print it and exit with `exit_code`."""
    exit_code = 3


class DiskError(DataError):
    """Nothing is wrong with the data, but a file could not be written."""
    exit_code = 7


def refuse(path, found, expected, cure):
    raise DataError(f'{path}: found {found}\n  expected {expected}\n  cure: {cure}')


@dataclass
class Dataset:
    path: str
    frames: np.ndarray            # (N,H,W,3) uint8, memory-mapped: all processes of a machine share one copy
    actions: np.ndarray | None    # (N,) int64 or (N,A) float32
    action_names: list | None
    episode_starts: np.ndarray    # (E,) int64, first 0
    fps: float | None
    source: str | None
    data_id: str                  # 16 hex digits of the content, the same however the file is compressed
    truth: dict = field(default_factory=dict)


# -----------------------------------------------------------------------------
# reading: every way in which a file was seen to be wrong gets its own line, before anything long begins

MAGIC = {b'ftyp': 'an mp4/mov video', b'\x1aE\xdf\xa3': 'a webm/mkv video', b'GIF8': 'a gif video',
         b'RIFF': 'an avi video', b'\x89PNG': 'a png picture', b'\x93NUM': 'a .npy array',
         b'PK\x03\x04': 'a zip or .npz archive'}
FILTERS = {1: 'gzip', 2: 'shuffle', 3: 'fletcher32', 32000: 'lzf'}    # others would make HDF5 load plugin code
MAX_RATIO = 1100                  # deflate cannot do better than 1032:1: a file that declares more holds no recording


def one_line(error):
    return ' '.join(str(error).split())[:200]


def open_h5(path):
    """Returns an open h5py.File, or raises DataError saying what the file is instead."""
    expected = 'an HDF5 file with frames uint8 (N,H,W,3)'
    if not os.path.exists(path):
        refuse(path, 'no such file', expected, f'make one: python data.py game {path}')
    if os.path.isdir(path):
        inside = sorted(x for x in os.listdir(path) if x.endswith(('.h5', '.hdf5')))[:5]
        refuse(path, 'a directory', expected, f'name a file in it: {", ".join(inside) or "there is no .h5 in it"}')
    try:
        if os.path.getsize(path) == 0:
            refuse(path, 'an empty file (0 bytes)', expected, 'make it or copy it again')
        if h5py.is_hdf5(path):
            return h5py.File(path, 'r', locking=False)
        with open(path, 'rb') as f:
            head = f.read(4096)
    except OSError as e:
        eof = re.search(r'eof = (\d+).*stored_eof = (\d+)', str(e))
        if eof:
            refuse(path, f'a truncated file: {eof[1]} bytes', f'{eof[2]} bytes', 'copy or make it again')
        refuse(path, f'a file that cannot be opened ({one_line(e)})', expected, 'copy or make it again')
    kind = MAGIC.get(head[4:8]) or MAGIC.get(head[:4]) or ('binary data' if b'\0' in head else 'a text file')
    refuse(path, kind, expected,
           f'import it: python data.py video {path} data/NAME.h5' if 'video' in kind else 'name the .h5 file')


def has(group, key):
    return group.id.links.exists(key.encode())


def hard(group, key):
    """Is `key` an object of this very file? Looks at the link only: `in` and [] would follow it into another file."""
    return has(group, key) and group.id.links.get_info(key.encode()).type == h5py.h5l.TYPE_HARD


def contents(group):
    names = [k for k in itertools.islice(group, 12) if hard(group, k)]
    return ', '.join(f'{k} {getattr(group[k], "shape", "(a group)")}' for k in names) or 'nothing'


def plain_dataset(group, key, path):
    """The h5py.Dataset `key`, only if its data lies whole in this very file. A link, a virtual or an external dataset
    can name any file of this machine, and reads as zeros, silently, when that file is missing; so do chunks that were
    never written because the writer was killed."""
    expected, cure = f'"{key}" stored whole in this file', 'write the file again with plain h5py create_dataset'
    if not has(group, key):
        refuse(path, f'no "{key}", but {contents(group)}', 'frames uint8 (N,H,W,3)', f'store the pictures as "{key}"')
    if not hard(group, key):
        refuse(path, f'"{key}" is a link to something else', expected, cure)
    d = group[key]
    if not isinstance(d, h5py.Dataset):
        refuse(path, f'"{key}" is a group holding {contents(d)}', f'a dataset "{key}"',
               f'store the array itself as "{key}"')
    if d.shape is None or d.dtype.kind not in 'uifb':
        refuse(path, f'"{key}" of type {d.dtype}, shape {d.shape}', 'an array of numbers', cure)
    if d.is_virtual or d.external:
        kind = 'virtual' if d.is_virtual else 'external'
        refuse(path, f'"{key}" is {kind}: its data lies in other files', expected, cure)
    plist = d.id.get_create_plist()
    for code in (plist.get_filter(i)[0] for i in range(plist.get_nfilters())):
        if code not in FILTERS:
            refuse(path, f'"{key}" compressed by HDF5 filter {code}', f'none or {", ".join(FILTERS.values())}', cure)
    declared, held = math.prod(d.shape) * d.dtype.itemsize, os.path.getsize(path)
    if declared > MAX_RATIO * held:
        refuse(path, f'"{key}" declares {declared:,} bytes in a file of {held:,}', f'at most {MAX_RATIO} to 1',
               'make it again')
    if d.chunks:
        missing = math.prod(-(-n // c) for n, c in zip(d.shape, d.chunks)) - d.id.get_num_chunks()
    else:
        missing = int(d.id.get_storage_size() < declared)
    if missing > 0:
        refuse(path, f'"{key}" with {missing} chunks that were never written', expected,
               'its writer was stopped: make it again')
    return d


def check_frames(d, path, patch_size):
    """Raises DataError unless d is uint8 (N,H,W,3) with H and W divisible by patch_size."""
    expected, s = 'uint8 (N,H,W,3), at least 2 frames', d.shape
    if d.dtype != np.uint8:
        refuse(path, f'frames of type {d.dtype} {s}', expected,
               'scale to 0..255: (frames * 255).round().astype("uint8") if they are in 0..1' if d.dtype.kind == 'f' else
               'frames.astype("uint8") if they are in 0..255')
    if len(s) != 4 or s[3] != 3 or s[0] < 2 or 0 in s:
        refuse(path, f'frames of shape {s}', expected,
               'grey to colour: np.repeat(frames[..., None], 3, -1)' if len(s) == 3 else
               'store it as one long (N,H,W,3)' if len(s) != 4 else
               'record more' if s[3] == 3 else
               'channels last: frames.transpose(0, 2, 3, 1)' if s[1] == 3 else
               'drop the alpha channel: frames[..., :3]' if s[3] == 4 else
               'grey to colour: np.repeat(frames, 3, -1)' if s[3] == 1 else 'three colour channels, last')
    if patch_size and (s[1] % patch_size or s[2] % patch_size):
        near = lambda n: ' or '.join(str(m * patch_size) for m in sorted({n // patch_size, -(-n // patch_size)}) if m)
        fits = [p for p in range(2, 33) if s[1] % p == 0 and s[2] % p == 0]
        refuse(path, f'frames {s[2]} wide and {s[1]} high', f'multiples of patch_size={patch_size}',
               f'data.py video --size with {near(s[2])} wide, {near(s[1])} high; or patch_size one of {fits}')


def read_optional(f, path, n):
    """Everything in the file but the frames, checked: the rest of Dataset's fields."""
    actions, starts, truth = None, np.zeros(1, np.int64), {}
    if has(f, 'actions'):
        actions = check_actions(plain_dataset(f, 'actions', path), n, path)
    if has(f, 'episode_starts'):
        starts = check_starts(plain_dataset(f, 'episode_starts', path), n, path)
    if has(f, 'truth'):
        if not hard(f, 'truth') or not isinstance(f['truth'], h5py.Group):
            refuse(path, '"truth" that is no group', 'a group of per-frame arrays', 'delete "truth"')
        for key in f['truth']:
            truth[key] = plain_dataset(f['truth'], key, path)[...]
            if truth[key].shape[:1] != (n,):
                refuse(path, f'truth/{key} of shape {truth[key].shape}', f'({n},...), one per frame',
                       f'mend or delete truth/{key}')
    names, fps, source = (f.attrs.get(k) for k in ('action_names', 'fps', 'source'))
    text = lambda x: x.decode() if isinstance(x, bytes) else str(x)
    if names is not None:
        names = [text(x) for x in np.atleast_1d(names)]
        needed = 0 if actions is None else actions.shape[1] if actions.ndim == 2 else int(actions.max()) + 1
        if len(names) < needed:
            refuse(path, f'{len(names)} action_names', f'{needed}, one per action', 'mend or delete the attribute')
    if fps is not None and not (isinstance(fps, (int, float, np.number)) and 0 < fps < 1e4):
        refuse(path, f'fps = {fps!r}', 'a positive number', 'mend or delete the attribute')
    return dict(actions=actions, action_names=names, episode_starts=starts, truth=truth,
                fps=None if fps is None else float(fps), source=None if source is None else text(source))


def check_actions(a, n, path):
    """int (N,) -> int64, float (N,A) -> float32; DataError otherwise. n: frames, or None if not known yet."""
    cure = 'mend or leave out "actions"'
    if n not in (None, *a.shape[:1]) or (a.ndim, a.dtype.kind) not in ((1, 'i'), (1, 'u'), (2, 'f')) or 0 in a.shape:
        refuse(path, f'actions {a.dtype} {a.shape}', f'int ({n or "N"},) or float ({n or "N"},A), one per frame', cure)
    a = a[...].astype(np.int64 if a.ndim == 1 else np.float32)
    if not np.isfinite(a).all() or (a.ndim == 1 and a.min() < 0):
        refuse(path, 'actions that are negative or not finite', 'action numbers from 0 on, or finite floats', cure)
    return a


def check_starts(e, n, path):
    """-> int64 (E,); DataError unless sorted, first 0, below n."""
    expected, cure = f'whole numbers, first 0, increasing, below {n}', 'mend or leave out "episode_starts"'
    if e.ndim != 1 or e.dtype.kind not in 'iu' or not 0 < len(e) <= n:
        refuse(path, f'episode_starts {e.dtype} {e.shape}', expected, cure)
    e = e[...].astype(np.int64)
    if e[0] != 0 or (np.diff(e) <= 0).any() or e[-1] >= n:
        refuse(path, f'episode_starts {e[:4].tolist()} ... {e[-1]}', expected, cure)
    return e


def read(d, a, b, path):
    """Frames a to b-1 of an h5py.Dataset, or of an array."""
    try:
        return d[a:b]
    except (OSError, RuntimeError) as e:
        refuse(path, f'damaged data in frames {a} to {min(b, len(d)) - 1} ({one_line(e)})', 'chunks that decode',
               'copy or make the file again')


def fingerprints(frames, path):
    """Hashes of at most 256 frames, evenly spread. tinyworlds' files cut a frame into hundreds of chunks of thousands
    of frames each: neighbours in time are read at one go there, or each frame would cost the decoding of them all."""
    n = len(frames)
    picks = np.unique(np.linspace(0, n - 1, min(n, 256)).astype(np.int64))
    rows = (getattr(frames, 'chunks', None) or (1,))[0]
    marks = []
    groups = itertools.groupby(picks, lambda i: i // rows)
    for _, group in tqdm(groups, desc='checking', delay=3, leave=False, disable=None):
        group = np.array(list(group))
        block = read(frames, group[0], group[-1] + 1, path)
        marks += [hashlib.sha256(np.ascontiguousarray(x)).hexdigest() for x in block[group - group[0]]]
    return marks


def decoded_files(path):
    """Earlier decodings of this h5: data/tiny.h5 -> data/tiny.<data_id>.npy."""
    folder, name = os.path.split(os.path.abspath(path))
    stem = re.escape(os.path.splitext(name)[0])
    return [os.path.join(folder, x) for x in os.listdir(folder) if re.fullmatch(stem + r'\.[0-9a-f]{16}\.npy', x)]


def map_decoded(path, shape):
    """The decoded frames of exactly this h5 file, (N,H,W,3) memory-mapped, and their file name; or (None, None).
    The decoded file carries the h5's own modification time, so that a changed h5 is noticed whatever changed in it."""
    stamp = os.stat(path).st_mtime_ns
    for npy in decoded_files(path):
        with contextlib.suppress(OSError, ValueError):
            if os.stat(npy).st_mtime_ns == stamp:
                frames = np.load(npy, mmap_mode='r', allow_pickle=False)
                if frames.shape == shape and frames.dtype == np.uint8:
                    return frames, npy
    return None, None


def decode(d, path, npy, show):
    """Writes the h5py.Dataset d as the file npy, in blocks of whole chunks."""
    frame_bytes = int(np.prod(d.shape[1:]))
    rows = (d.chunks or (1,))[0]
    rows *= max(1, 2 ** 26 // (rows * frame_bytes))                   # about 64 MB
    free = shutil.disk_usage(os.path.dirname(npy)).free
    if free < d.nbytes + 2 ** 26:
        raise DiskError(f'{npy}: needs {d.nbytes / 1e9:.2f} GB for the decoded frames, found {free / 1e9:.2f} GB free\n'
                        f'  cure: free some space, or move {path} to a larger disk')
    stamp = os.stat(path).st_mtime_ns
    bar = tqdm(total=len(d), desc=f'decoding {os.path.basename(path)}', unit=' frames', leave=False,
               disable=True if not show or d.nbytes < 2 ** 28 else None)   # None: no bar in a log file
    with replacing(npy) as tmp, open(tmp, 'wb') as out, bar:
        np.lib.format.write_array_header_1_0(out, dict(descr='|u1', fortran_order=False, shape=d.shape))
        for a in range(0, len(d), rows):
            block = read(d, a, a + rows, path)
            out.write(block.data)
            bar.update(len(block))
    os.utime(npy, ns=(stamp, stamp))


def load(path, patch_size=None, master=True):
    """Opens a dataset file.

    All checks come first. The first time, its frames are decoded into data/NAME.<data_id>.npy beside it; decodings
    of older contents of the same file are deleted. With several processes let the master load first and the others,
    master=False, after a barrier: they find it done. (A second writer is harmless: its temporary file is its own,
    the rename is atomic.)

    patch_size: refuse frames that do not divide into patches of so many pixels.
    Raises DataError for whatever is wrong with the file, DiskError when the decoded frames cannot be written.
    """
    path = str(path)
    with open_h5(path) as f:
        try:
            d = plain_dataset(f, 'frames', path)
            check_frames(d, path, patch_size)
            rest = read_optional(f, path, len(d))

            def identify(frames):
                marks = fingerprints(frames, path)
                h = hashlib.sha256(repr(d.shape).encode())
                h.update(rest['episode_starts'].tobytes())
                if rest['actions'] is not None:
                    h.update(str(rest['actions'].dtype).encode() + rest['actions'].tobytes())
                h.update(''.join(marks[::4]).encode())
                return h.hexdigest()[:16], marks

            frames, npy = map_decoded(path, d.shape)
            if frames is not None:
                data_id, marks = identify(frames)
            if frames is None or not npy.endswith(f'.{data_id}.npy'):
                frames = None
                data_id, marks = identify(d)
            same = Counter(marks).most_common(1)[0][1]
            if same > len(marks) / 2:
                refuse(path, f'{same} of {len(marks)} frames sampled are one and the same picture',
                       'a recording of play',
                       'cut the still part away, or see what the recorder recorded: was it the right window?')
            if frames is None:
                npy = os.path.splitext(os.path.abspath(path))[0] + f'.{data_id}.npy'
                decode(d, path, npy, show=master)
                for old in decoded_files(path):
                    if master and old != npy:
                        with contextlib.suppress(OSError):            # Windows: another process still has it open
                            os.remove(old)
                frames = np.load(npy, mmap_mode='r', allow_pickle=False)
        except (OSError, RuntimeError, KeyError, ValueError, TypeError) as e:         # HDF5's, from damaged metadata
            refuse(path, f'an HDF5 file that cannot be read ({one_line(e)})', 'frames uint8 (N,H,W,3)',
                   'copy or make it again')
    return Dataset(path=path, frames=frames, data_id=data_id, **rest)


@contextlib.contextmanager
def replacing(path):
    """Yields a temporary name in the folder of `path`, to be written, and renames it to `path` at the end: whoever
    looks sees the old file or the whole new one, and a writer that fails leaves nothing. Raises DiskError."""
    folder = os.path.dirname(path) or '.'
    tmp = f'{path}.{os.getpid()}.tmp'
    try:
        os.makedirs(folder, exist_ok=True)
        for old in glob.glob(glob.escape(path) + '.*.tmp'):           # a writer that was killed an hour ago
            if time.time() - os.path.getmtime(old) > 3600:
                os.remove(old)
        yield tmp
        with open(tmp, 'rb+') as f:
            os.fsync(f.fileno())
        os.replace(tmp, path)
    except OSError as e:
        free = f'{shutil.disk_usage(folder).free / 1e9:.2f} GB free' if os.path.isdir(folder) else 'no such folder'
        raise DiskError(f'{path}: cannot be written ({one_line(e)}; {free})\n'
                        f'  cure: free some space, or choose a folder that you may write to') from e
    finally:
        with contextlib.suppress(OSError):
            os.remove(tmp)


# -----------------------------------------------------------------------------
# windows


def split(dataset, window):
    """Decides what is held out; every script asks here and nowhere else.

    Whole episodes at the end, about 10% of the frames (5 to 20%). If no episode start lies there, the last 10% of the
    frames, and the train part ends `window` frames earlier, so that no training clip shows what validation starts with.
    Where `val` begins does not depend on `window`.

    Returns {'train': [(start, stop), ...], 'val': [...]}, frame ranges that never cross an episode start.
    """
    n, starts = len(dataset.frames), dataset.episode_starts
    near = starts[(n - starts >= 0.05 * n) & (n - starts <= 0.2 * n)]
    if len(near):
        val = train_stop = int(near[np.argmin(abs(n - near - 0.1 * n))])
    else:
        val = n - max(1, n // 10)
        train_stop = max(0, val - window)
    episodes = list(zip(starts.tolist(), starts.tolist()[1:] + [n]))
    return {'train': [(a, min(b, train_stop)) for a, b in episodes if a < train_stop],
            'val': [(max(a, val), b) for a, b in episodes if b > val]}


def windows(dataset, which, seq_len, frame_stride=1):
    """First frames (int64) of every clip of seq_len frames, frame_stride apart, in the 'train' or the 'val' part.
    Raises DataError if there is none."""
    span = (seq_len - 1) * frame_stride + 1
    ranges = split(dataset, span)[which]
    starts = [np.arange(a, b - span + 1) for a, b in ranges]
    starts = np.concatenate(starts or [np.zeros(0)]).astype(np.int64)
    if not len(starts):
        n, episodes = len(dataset.frames), len(dataset.episode_starts)
        longest = max((b - a for a, b in ranges), default=0)
        refuse(dataset.path,
               f'{n} frames in {episodes} episode(s); the longest stretch of its {which} part is {longest} frames',
               f'at least {span} frames in a row for seq_len={seq_len}, frame_stride={frame_stride}'
               + (f' (about {11 * span} frames in all)' if episodes == 1 else ''),
               'record more, in longer episodes, or lower seq_len or frame_stride')
    return starts


def draw(starts, batch_size, *key):
    """(batch_size,) of starts, with replacement: a pure function of the key, whole numbers such as seed, iter, rank.
    So nothing about the order of the data has to be saved to resume."""
    return starts[np.random.default_rng([len(key), *key]).integers(len(starts), size=batch_size)]


def to_device(array, device):
    """A memory-mapped array as a tensor on the GPU if it takes less than half of the free memory there, else as it is."""
    import torch
    if torch.device(device).type != 'cuda' or array.nbytes > torch.cuda.mem_get_info(device)[0] / 2:
        return array
    out = torch.empty(array.shape, dtype=torch.from_numpy(np.array(array[:1])).dtype, device=device)
    for a in range(0, len(out), 1024):
        out[a:a + 1024] = torch.from_numpy(np.array(array[a:a + 1024])).to(device)
    return out


def rows(array, index, device):
    """array[index] as a tensor on the device; array: what to_device returns, index: whole numbers of any shape."""
    import torch
    x = torch.from_numpy(index if isinstance(array, torch.Tensor) else array[index])
    if torch.device(device).type == 'cuda':
        x = x.pin_memory()                                            # so that the copy does not wait for the GPU
    x = x.to(device, non_blocking=True)
    return array[x] if isinstance(array, torch.Tensor) else x


def clips(frames, starts, seq_len, frame_stride, device):
    """frames (N,H,W,3) uint8, as to_device returns them; starts (B,) -> (B,T,C,H,W) float32 in [-1,1] on the device.
    Bytes cross to the device, not floats: a quarter of the traffic."""
    import torch
    x = rows(frames, np.asarray(starts)[:, None] + frame_stride * np.arange(seq_len), device).permute(0, 1, 4, 2, 3)
    return x.to(torch.float32, memory_format=torch.contiguous_format).div_(127.5).sub_(1)


# -----------------------------------------------------------------------------
# what is computed from a dataset once


def cached(path, n, compute, rank=0, world_size=1, barrier=None):
    """The rows 0 to n - 1 of something, memory-mapped from the file `path`, which is made if it does not exist.

    compute(picks) -> numpy array (len(picks), ...), for 32 rows at a time (with 64, attention over time at 1024 patches a frame would be
    65,536 sequences, one more than some CUDA kernels take). Parts of 1024 rows are files of their own at first,
    shared out among the ranks: a process that is killed loses one of them. path must name all that the rows depend on: other files
    in its folder with the same word before the '_' are of the past and removed. Raises DiskError; DataError if the file is damaged.
    """
    folder, name = os.path.split(path)
    parts = [os.path.join(path + '.parts', f'{a:09d}.npy') for a in range(0, n, 1024)]
    if not os.path.exists(path):
        mine = tqdm(parts[rank::world_size], name.split('_')[0], unit_scale=1024, unit=' frames', leave=False, disable=rank > 0 or None)
        for part in mine:
            if not os.path.exists(part):
                a = int(os.path.basename(part)[:-4])
                picks = np.arange(a, min(a + 1024, n))
                with replacing(part) as tmp, open(tmp, 'wb') as f:
                    np.save(f, np.concatenate([compute(picks[i:i + 32]) for i in range(0, len(picks), 32)]))
        if barrier:
            barrier()
        if rank == 0:
            first = np.load(parts[0], allow_pickle=False)
            with replacing(path) as tmp, open(tmp, 'wb') as f:
                np.lib.format.write_array_header_1_0(f, dict(descr=first.dtype.str, fortran_order=False, shape=(n, *first.shape[1:])))
                for part in parts:
                    f.write(np.load(part, allow_pickle=False).tobytes())
            for old in os.listdir(folder):
                if old.split('_')[0] == name.split('_')[0] and old != name:
                    old = os.path.join(folder, old)
                    shutil.rmtree(old) if os.path.isdir(old) else os.remove(old)
        if barrier:
            barrier()
    try:
        return np.load(path, mmap_mode='r', allow_pickle=False)
    except (OSError, ValueError) as e:
        raise DataError(f'{path}: found a damaged file ({one_line(e)}), expected an array\n  cure: remove it; it is made again') from e


# -----------------------------------------------------------------------------
# pictures: uint8 RGB numpy arrays


def to_uint8(x):
    """Tensor (...,C,H,W) in [-1,1] -> uint8 (...,H,W,C). The exact inverse of what clips does."""
    return ((x.detach().float().clamp(-1, 1) + 1) * 127.5).round().byte().movedim(-3, -1).cpu().numpy()


def enlarge(frames, scale):
    """(...,H,W,C) -> (...,H*scale,W*scale,C), every pixel a square."""
    return np.repeat(np.repeat(frames, scale, -3), scale, -2)


def grid(rows, pad=2, labels=None):
    """rows: a list of (T,H,W,3), of any T -> one picture, a row each, frames at least 128 pixels wide.
    labels: one short text per row, in a margin at the left."""
    h, w = rows[0].shape[1:3]
    scale = -(-128 // w)
    h, w = h * scale, w * scale
    margin = 8 + 7 * max(map(len, labels)) if labels else 0
    n = max(map(len, rows))
    image = np.full((len(rows) * (h + pad) + pad, margin + n * (w + pad) + pad, 3), 255, np.uint8)
    for r, row in enumerate(rows):
        y = pad + r * (h + pad)
        for t, frame in enumerate(row):
            x = margin + pad + t * (w + pad)
            image[y:y + h, x:x + w] = enlarge(frame, scale)
    if not labels:
        return image
    canvas = Image.fromarray(image)
    for r, text in enumerate(labels):
        ImageDraw.Draw(canvas).text((4, pad + r * (h + pad) + h // 2 - 6), text, fill=(0, 0, 0))
    return np.array(canvas)


def save_png(path, image):
    with replacing(str(path)) as tmp:
        Image.fromarray(image).save(tmp, format='png')


def save_gif(path, frames, fps=15, scale=1):
    """frames (T,H,W,3). A gif counts in 1/100 s, so frame times are rounded one by one and do not drift."""
    ticks = [round(100 * t / fps) for t in range(len(frames) + 1)]
    images = [Image.fromarray(enlarge(x, scale)) for x in frames]
    with replacing(str(path)) as tmp:
        images[0].save(tmp, format='gif', save_all=True, append_images=images[1:], loop=0,
                       duration=[10 * (b - a) for a, b in zip(ticks, ticks[1:])])


def save_mp4(path, frames, fps=15, scale=1):
    """frames (T,H,W,3). h264 where this PyAV has it; odd sizes lose a line, which yuv420p cannot hold."""
    import av
    from fractions import Fraction
    frames = enlarge(frames, scale)
    frames = frames[:, :frames.shape[1] // 2 * 2, :frames.shape[2] // 2 * 2]
    codec = 'libx264' if 'libx264' in av.codecs_available else 'mpeg4'
    with replacing(str(path)) as tmp, av.open(tmp, 'w', format='mp4') as out:
        stream = out.add_stream(codec, rate=Fraction(fps).limit_denominator(1000))
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], 'yuv420p'
        stream.options = {'crf': '18'} if codec == 'libx264' else {'qscale': '3'}
        for x in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(x), format='rgb24')))
        out.mux(stream.encode())


# -----------------------------------------------------------------------------
# a video becomes a dataset, one frame at a time, in bounded memory:
# decode -> resample in time -> crop or pad, average down -> drop what stands still -> write -> find the cuts

STILL_SECONDS = 2                 # longer than this without change is a pause screen or a menu, not play
STILL_LEVELS = 16                 # of 255: the largest change of any pixel that compression noise may make
CUT_SCORE = 3.0                   # see find_cuts
CUT_RATIO = 4.0


def presentation(container, path, tally):
    """Yields (seconds since the first frame, av frame) as the container times them, and at last (end, None).
    A step backwards or of more than 10 s (files joined, a recorder asleep) counts as one ordinary step.
    tally['source'] counts the frames."""
    import av
    stream = container.streams.video[0]
    stream.thread_type = 'AUTO'
    step = 1 / float(stream.average_rate or 25)
    seconds, last = 0.0, None
    try:
        for frame in container.decode(stream):
            if tally['source']:
                known = frame.time is not None and last is not None and 0 < frame.time - last <= 10
                seconds += frame.time - last if known else step
            last = frame.time
            tally['source'] += 1
            yield seconds, frame
    except av.FFmpegError as e:
        refuse(path, f'a video that cannot be decoded after frame {tally["source"]} ({one_line(e)})', 'a whole video',
               'copy it again, or mend it: ffmpeg -i IN -c:v libx264 -crf 12 OUT.mp4')
    if not tally['source']:
        refuse(path, 'a video without frames', 'at least 2 frames', 'record it again')
    held = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else step
    yield seconds + held, None


def resample(timed, fps, slack):
    """(seconds, picture), ... -> (index, picture) of the latest one shown at each time k / fps.
    slack: seconds by which a container's clock may round (mkv: 1/1000, gif: 1/100)."""
    k, shown = 0, None
    for i, (seconds, picture) in enumerate(timed):
        while shown and k / fps < seconds - slack:
            yield shown
            k += 1
        shown = i, picture


@functools.lru_cache(8)
def area_weights(n, length, m):
    """The middle `length` of n pixels shared out over m new ones: which pixels (m,k) each takes, how much of them."""
    edges = np.linspace((n - length) / 2, (n + length) / 2, m + 1)[:, None]
    pixel = edges[:-1].astype(np.int64) + np.arange(math.ceil(length / m) + 1)
    overlap = np.minimum(edges[1:], pixel + 1) - np.maximum(edges[:-1], pixel)
    return np.minimum(pixel, n - 1), (np.maximum(overlap, 0) * m / length).astype(np.float32)


def area(x, length, m):
    """(n,w,3) -> (m,w,3) float: averages in which a pixel that is cut counts by its parts. Exact, as Pillow's BOX
    (whole pixels only) and swscale's AREA (by way of YUV) are not. No matmul: with the processors busy, numpy's BLAS
    threads wait for each other far longer than this takes."""
    pixel, weight = area_weights(len(x), length, m)
    return sum(weight[:, k, None, None] * x[pixel[:, k]] for k in range(pixel.shape[1]))


def fit(picture, width, height, pad, pixel_aspect=1.0):
    """(h,w,3) uint8 -> (height,width,3) by area averaging, after cropping around the centre, or before padding with
    black, to the new shape. pixel_aspect: width over height of a source pixel."""
    h, w, _ = picture.shape
    scale_x, scale_y = width / (w * pixel_aspect), height / h          # what would fill the width, or the height
    scale = min(scale_x, scale_y) if pad else max(scale_x, scale_y)
    used_w, used_h = min(w, w * scale_x / scale), min(h, h * scale_y / scale)
    new_w = max(1, min(width, round(width * scale / scale_x)))
    new_h = max(1, min(height, round(height * scale / scale_y)))
    rows = area(picture, used_h, new_h)
    small = area(rows.swapaxes(0, 1), used_w, new_w).swapaxes(0, 1)
    out = np.zeros((height, width, 3), np.uint8)
    top, left = (height - new_h) // 2, (width - new_w) // 2
    out[top:top + new_h, left:left + new_w] = small + 0.5              # truncated to whole numbers: rounds
    return out


def drop_stills(frames, limit, tally):
    """(index, picture), ... -> (index, picture, cut): without the stretches of more than `limit` frames that stand
    still (all but their first frame) or are of one colour (all of them); tally['still'] and ['blank'] count them.
    cut: an episode starts here, as frames were dropped before, or blank ones shown: nothing follows from black."""
    first, first_blank, held, long = None, False, [], False            # held: frames not yet passed on
    for index, picture in frames:
        blank = (picture.max(0).max(0) - picture.min(0).min(0) <= STILL_LEVELS).all()
        same = first is not None and blank == first_blank
        if not same or not (blank or np.abs(picture - first).max() <= STILL_LEVELS):
            yield from held
            cut, held = long or first_blank, []
            first, first_blank, long = picture.astype(np.int16), blank, False
            if not blank:
                yield index, picture, cut
                continue
            held = [(index, picture, cut)]
        else:
            held.append((index, picture, False))
        if long or len(held) > limit:
            tally['blank' if blank else 'still'] += len(held)
            held, long = [], True
    yield from held


def colours(picture):
    """Shares (64,) of the pixels in each of 4x4x4 colours."""
    q = picture >> 6
    return np.bincount((q[..., 0] * 16 + q[..., 1] * 4 + q[..., 2]).ravel(), minlength=64) / q[..., 0].size


def find_cuts(change, shift):
    """Where does another scene begin? (N,) bool from, per frame and against its predecessor, change = mean absolute
    difference in levels of 255 and shift = share of the pixels whose colour class is replaced.

    Scrolling changes every pixel but hardly which colours there are; a flash of a few sprites is the other way
    round: only a cut makes the product large (on our scrolling test recording, 13 cuts: 5.2 and more; all else: 1.7
    at most). It must also stand out from the second around it, so that a fade or a game that flickers all the time
    is not cut to pieces. A false cut costs a few windows, a missed one teaches teleporting. A change of room at
    once is a cut, too."""
    score = change * shift
    around = np.lib.stride_tricks.sliding_window_view(np.pad(score, 8, mode='edge'), 17)
    return (score > CUT_SCORE) & (score > CUT_RATIO * np.median(around, 1))


def read_labels(path):
    """The checked arrays of a label file: actions, and perhaps episode_starts and action_names."""
    expected = 'an .npz with actions, one per frame of the video, and perhaps episode_starts, action_names'
    try:
        with np.load(path, allow_pickle=False) as z:
            labels = {k: z[k] for k in ('actions', 'episode_starts', 'action_names') if k in z}
    except Exception as e:                                            # zip, zlib, pickle and file errors of every kind
        refuse(path, f'labels that cannot be read ({one_line(e)})', expected, 'write them with np.savez')
    if 'actions' not in labels:
        refuse(path, 'no "actions"', expected, 'write them with np.savez')
    labels['actions'] = check_actions(labels['actions'], None, path)
    if 'episode_starts' in labels:
        labels['episode_starts'] = check_starts(labels['episode_starts'], len(labels['actions']), path)
    return labels


def create_h5(f, height, width, compression, source, fps, action_names):
    """Fills in the attributes and returns the empty, growing `frames`."""
    f.attrs['source'], f.attrs['fps'] = source, float(fps)
    if action_names is not None:
        f.attrs['action_names'] = [str(x) for x in action_names]
    rows = max(1, 2 ** 18 // (height * width * 3))                    # frames a chunk: about 256 KB
    return f.create_dataset('frames', (0, height, width, 3), np.uint8, maxshape=(None, height, width, 3),
                            chunks=(rows, height, width, 3), shuffle=True,
                            fletcher32=True,                          # else a flipped bit goes unnoticed
                            compression=compression, compression_opts=4 if compression == 'gzip' else None)


def import_video(video, path, width=128, height=128, fps=None, labels=None, pad=False, compression='gzip'):
    """Writes the h5 file `path` from anything PyAV decodes; returns a Counter of frames: source, still, blank.

    labels: an .npz, see read_labels. A new frame takes the action of the source frame that it shows. When labels bring
    episode_starts they are trusted: those are the episodes, nothing is dropped and no cut is looked for.
    """
    import av
    given = read_labels(labels) if labels else {}
    trusted = 'episode_starts' in given
    tally, index, cuts, change, shift, before = Counter(), [], [], [], [], None
    try:
        container = av.open(video)
    except (av.FFmpegError, OSError) as e:
        refuse(video, f'a file that PyAV cannot open ({one_line(e)})', 'a video',
               'check the path, or ffmpeg -i IN OUT.mp4')
    with container:
        if not container.streams.video:
            refuse(video, 'no video stream in it', 'a video', 'check the path')
        stream = container.streams.video[0]
        rate = float(stream.average_rate or 0)
        fps = fps or rate or 15.0
        aspect = float(stream.sample_aspect_ratio or 1) or 1.0
        frames = resample(presentation(container, video, tally), fps, min(float(stream.time_base or 0), 0.25 / fps))
        frames = tqdm(frames, desc='importing', unit=' frames', disable=None,
                      total=round(stream.frames * fps / rate) if rate else None)
        frames = ((i, fit(x.to_ndarray(format='rgb24'), width, height, pad, aspect)) for i, x in frames)
        frames = ((*x, False) for x in frames) if trusted else drop_stills(frames, STILL_SECONDS * fps, tally)
        with replacing(path) as tmp, h5py.File(tmp, 'w') as f:
            d = create_h5(f, height, width, compression, os.path.basename(video), fps, given.get('action_names'))
            for n, (i, x, cut) in enumerate(frames):
                d.resize(n + 1, 0)
                d[n] = x                                              # HDF5 compresses a chunk when it is full
                now = x.astype(np.int16), colours(x)
                change.append(np.abs(now[0] - before[0]).mean() if n else 0)
                shift.append(np.abs(now[1] - before[1]).sum() / 2 if n else 0)
                before = now
                index.append(i)                                       # the source frame it shows
                cuts.append(cut or n == 0)
            if len(index) < 2:
                refuse(video, f'{len(index)} frames of play in {tally["source"]}', 'at least 2',
                       'look at what was recorded')
            if given and len(given['actions']) != tally['source']:
                refuse(labels, f'{len(given["actions"])} actions', f'{tally["source"]}, one per frame of {video}',
                       'label every frame')
            if given:
                f['actions'] = given['actions'][index]
            if trusted:
                starts = np.unique(np.searchsorted(index, given['episode_starts']))
                f['episode_starts'] = starts[starts < len(index)]
            else:
                f['episode_starts'] = np.flatnonzero(np.array(cuts) | find_cuts(np.array(change), np.array(shift)))
    return tally


def make_game(path, n_frames=20_000, seed=0, layout=0):
    """Records the built-in game into the h5 file `path`."""
    import game
    rec = game.record(n_frames, seed=seed, layout=layout)
    frames = rec['frames']
    with replacing(path) as tmp, h5py.File(tmp, 'w') as f:
        d = create_h5(f, *frames.shape[1:3], 'lzf', f'game.py seed={seed} layout={layout}', game.FPS, game.ACTIONS)
        d.resize(len(frames), 0)
        d[...] = frames
        f['actions'], f['episode_starts'] = rec['actions'], rec['episode_starts']
        for key, value in rec['truth'].items():
            f.create_dataset(f'truth/{key}', data=value)


def check(path):
    """Prints the data card of a dataset and writes a contact sheet beside it."""
    ds = load(path)
    n, h, w, _ = ds.frames.shape
    lengths = np.diff(np.append(ds.episode_starts, n))
    parts = {k: sum(b - a for a, b in v) for k, v in split(ds, 16).items()}
    same = 0
    for a in range(1, n, 512):
        block = ds.frames[a - 1:a + 512]
        same += int((block[1:] == block[:-1]).all((1, 2, 3)).sum())
    sheet = os.path.splitext(path)[0] + '.check.png'
    picks = np.linspace(0, n - 1, 48).astype(np.int64).reshape(6, 8)
    save_png(sheet, grid([ds.frames[row] for row in picks], labels=[str(row[0]) for row in picks]))
    print(f'{path}   data_id {ds.data_id}   source {ds.source or "unknown"}')
    length = f'{n / ds.fps / 60:.1f} minutes at {ds.fps:g} fps' if ds.fps else 'fps unknown'
    print(f'frames      {n:,} of {w}x{h}, {length}')
    print(f'episodes    {len(lengths)}, shortest {lengths.min()}, median {int(np.median(lengths))} frames')
    print(f'split       train {parts["train"]:,}, val {parts["val"]:,} frames (for windows of 16)')
    print(f'duplicates  {same / (n - 1):.1%} of the frames equal the one before')
    if ds.actions is None:
        print('actions     none')
    elif ds.actions.ndim == 2:
        print(f'actions     {ds.actions.shape[1]} numbers a frame, {ds.actions.min():.3g} to {ds.actions.max():.3g}')
    else:
        counts = np.bincount(ds.actions)
        names = ds.action_names or [str(i) for i in range(len(counts))]
        print('actions     ' + ', '.join(f'{name} {c:,}' for name, c in zip(names, counts)))
    print(f'truth       {", ".join(ds.truth) or "none"}')
    print(f'decoded     {ds.frames.nbytes / 1e9:.2f} GB beside it, {ds.data_id}.npy')
    print(f'look at     {sheet}')


def size(text):
    """'128' or '128x96' (width x height) -> (width, height)."""
    w, h = (int(x) for x in (text.split('x') if 'x' in text else (text, text)))
    if not 8 <= min(w, h) <= max(w, h) <= 2048:
        raise ValueError
    return w, h


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True)
    p = commands.add_parser('game', help='record the built-in game')
    p.add_argument('path')
    p.add_argument('--n_frames', type=int, default=20_000)
    p.add_argument('--seed', type=int, default=0, help='of the player')
    p.add_argument('--layout', type=int, default=0, help='which world')
    p = commands.add_parser('video', help='import a video')
    p.add_argument('video')
    p.add_argument('path')
    p.add_argument('--size', type=size, default=(128, 128), help='128 or 128x96, width x height')
    p.add_argument('--fps', type=float, help="default: the video's own average rate")
    p.add_argument('--labels', help='.npz with actions, one per source frame; perhaps episode_starts, action_names')
    p.add_argument('--pad', action='store_true', help='black bars; default: crop around the centre')
    p.add_argument('--compression', choices=('gzip', 'lzf'), default='gzip', help='gzip is smaller, lzf faster')
    p = commands.add_parser('check', help='data card and contact sheet')
    p.add_argument('path')
    a = parser.parse_args()
    if a.command != 'check' and not a.path.endswith(('.h5', '.hdf5')):
        parser.error(f'{a.path}: the file to write should end in .h5')
    if a.command == 'game' and (a.n_frames < 2 or a.seed < 0 or a.layout < 0):
        parser.error('at least 2 frames, and no negative seed or layout')
    if a.command == 'video' and a.fps is not None and not 0 < a.fps <= 1000:
        parser.error(f'--fps={a.fps:g}: frames per second, above 0, at most 1000')
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))          # so that temporary files are removed
    try:
        if a.command == 'game':
            make_game(a.path, a.n_frames, a.seed, a.layout)
        if a.command == 'video':
            tally = import_video(a.video, a.path, *a.size, a.fps, a.labels, a.pad, a.compression)
            print(f'imported {tally["source"]:,} frames; dropped {tally["still"]} that stood still and '
                  f'{tally["blank"]} blank ones (stretches of more than {STILL_SECONDS} s)')
        check(a.path)
    except DataError as e:
        print(e, file=sys.stderr, flush=True)
        os._exit(e.exit_code)        # not sys.exit: HDF5 would crash, trying again to write what a full disk refused
