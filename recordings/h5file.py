"""An HDF5 file as a dataset: every way in which one was seen to be wrong gets its own line, before anything long begins."""
import contextlib
import hashlib
import itertools
import math
import os
import re
import shutil
from collections import Counter
from dataclasses import dataclass, field

import h5py
import numpy as np
from tqdm import tqdm

from files import DiskError, replacing


class DataError(Exception):
    """What is wrong with the data, in at most three lines. Scripts print it and exit with `exit_code`."""
    exit_code = 3


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
