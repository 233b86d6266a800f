"""
An HDF5 file as a dataset: open, check, decode, create.

Every way in which such a file was seen to be wrong gets a message of its own, before anything long
begins. Every function here raises DataError for it.
"""
import contextlib
import hashlib
import itertools
import math
import os
import re
from collections import Counter

import h5py
import numpy as np
from tqdm import tqdm

from files import DiskError, free_space, printable, replacing, user_cache
from recordings.arrays import (OTHER_NAMES, check_actions, check_count, check_names, find_starts,
                               name_combinations, noticed_numbers, number_names, to_text)
from recordings.refusal import DataError, one_line, refuse

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

MAGIC = {b'ftyp': 'an mp4/mov video', b'\x1aE\xdf\xa3': 'a webm/mkv video', b'GIF8': 'a gif video',
         b'RIFF': 'an avi video', b'\x89PNG': 'a png picture', b'\x93NUM': 'a .npy array',
         b'PK\x03\x04': 'a zip or .npz archive'}
# HDF5 filters by number; any other would make HDF5 load plugin code
FILTERS = {1: 'gzip', 2: 'shuffle', 3: 'fletcher32', 32000: 'lzf'}
# deflate cannot do better than 1032:1, so a file that declares more holds no recording
MAX_RATIO = 1100
MAX_BUTTONS = 256  # arrays of a group of buttons


# -----------------------------------------------------------------------------
# open


def is_dataset(path):
    """Is it a file of this kind, whatever it is called?"""
    return os.path.isfile(path) and h5py.is_hdf5(path)


def has_writer(path):
    """Does a process of this machine hold the lock that HDF5 takes while it writes?"""
    try:
        import fcntl  # not on Windows
        with open(path, 'rb') as f:
            fcntl.flock(f, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (ImportError, OSError):  # some disks know no locks
        pass
    return False


def open_h5(path):
    """Returns an open h5py.File, or says what the file is instead."""
    expected = 'an HDF5 file with frames uint8 (N,H,W,3)'
    if not os.path.exists(path):
        cure = f'make one: python data.py game {path}'
        if os.path.exists(os.path.join(ROOT, path)):
            cure = f'start the script in {ROOT}, where {path} is'
        refuse(os.path.abspath(path), 'no such file', expected, cure)
    if os.path.isdir(path):
        inside = sorted(name for name in os.listdir(path) if name.endswith(('.h5', '.hdf5')))
        inside = ', '.join(inside[:5]) or 'there is no .h5 in it'
        refuse(path, 'a directory', expected, f'name a file in it: {inside}')
    try:
        if has_writer(path):
            refuse(path, 'a file that a program has open for writing', expected,
                   'let it end, or close the file: h5py.File(...).close()')
        if os.path.getsize(path) == 0:
            refuse(path, 'an empty file (0 bytes)', expected, 'make it or copy it again')
        if h5py.is_hdf5(path):
            return h5py.File(path, 'r', locking=False)
        with open(path, 'rb') as f:
            head = f.read(4096)
    except OSError as e:
        found = f'a file that cannot be opened ({one_line(e)})'
        eof = re.search(r'eof = (\d+).*stored_eof = (\d+)', str(e))
        if eof:
            found, expected = f'a truncated file: {eof[1]} bytes', f'{eof[2]} bytes'
        refuse(path, found, expected, 'copy or make it again')
    kind = MAGIC.get(head[4:8]) or MAGIC.get(head[:4])
    if kind is None:
        kind = 'binary data' if b'\0' in head else 'a text file'
    cure = 'name the .h5 file'
    if 'video' in kind:
        cure = f'import it: python data.py video {path} data/NAME.h5'
    refuse(path, kind, expected, cure)


def has_link(group, key):
    return group.id.links.exists(key.encode())


def is_in_this_file(group, key):
    """Is `key` an object of this very file? It looks at the link only: `in` and [] would follow it
    into another file."""
    if not has_link(group, key):
        return False
    return group.id.links.get_info(key.encode()).type == h5py.h5l.TYPE_HARD


def contents(group):
    """The first things in a group and their shapes, in words."""
    keys = [key for key in itertools.islice(group, 12) if is_in_this_file(group, key)]
    texts = [f'{key} {getattr(group[key], "shape", "(a group)")}' for key in keys]
    return ', '.join(texts) or 'nothing'


def plain_dataset(group, key, path, kinds='uifb'):
    """The h5py.Dataset `key` of a group, only if its data lies whole in this very file.
    kinds: of numpy's dtypes.

    A link, a virtual or an external dataset can name any file of this machine, and when that file
    is missing it reads as zeros. So do chunks that a killed writer never wrote.
    """
    stored = f'"{key}" stored whole in this file'
    rewrite = 'write the file again with plain h5py create_dataset'
    if not has_link(group, key):
        refuse(path, f'no "{key}", but {contents(group)}', 'frames uint8 (N,H,W,3)',
               f'store the pictures as "{key}"')
    if not is_in_this_file(group, key):
        refuse(path, f'"{key}" is a link to something else', stored, rewrite)
    d = group[key]
    if not isinstance(d, h5py.Dataset):
        refuse(path, f'"{key}" is a group holding {contents(d)}', f'a dataset "{key}"',
               f'store the array itself as "{key}"')
    if d.shape is None or d.dtype.kind not in kinds:
        refuse(path, f'"{key}" of type {d.dtype}, shape {d.shape}', 'an array of numbers', rewrite)
    if d.is_virtual or d.external:
        kind = 'virtual' if d.is_virtual else 'external'
        refuse(path, f'"{key}" is {kind}: its data lies in other files', stored, rewrite)
    plist = d.id.get_create_plist()
    for i in range(plist.get_nfilters()):
        code = plist.get_filter(i)[0]
        if code not in FILTERS:
            refuse(path, f'"{key}" compressed by HDF5 filter {code}',
                   f'none or {", ".join(FILTERS.values())}', rewrite)
    declared, held = math.prod(d.shape) * d.dtype.itemsize, os.path.getsize(path)
    if declared > MAX_RATIO * held:
        refuse(path, f'"{key}" declares {declared:,} bytes in a file of {held:,}',
               f'at most {MAX_RATIO} to 1', 'make it again')
    if d.chunks:
        missing = math.prod(-(-n // c) for n, c in zip(d.shape, d.chunks)) - d.id.get_num_chunks()
    else:
        missing = int(d.id.get_storage_size() < declared)
    if missing > 0:
        refuse(path, f'"{key}" with {missing} chunks that were never written', stored,
               'its writer was stopped: make it again')
    return d


# -----------------------------------------------------------------------------
# check


def check_frames(d, path, patch_size):
    """d must be uint8 (N,H,W,3), with H and W divisible by patch_size, unless that is None."""
    expected = 'uint8 (N,H,W,3), at least 2 frames'
    shape = d.shape
    if d.dtype != np.uint8:
        cure = 'frames.astype("uint8") if they are in 0..255'
        if d.dtype.kind == 'f':
            cure = 'scale to 0..255: (frames * 255).round().astype("uint8") if they are in 0..1'
        refuse(path, f'frames of type {d.dtype} {shape}', expected, cure)
    if len(shape) != 4 or shape[3] != 3 or shape[0] < 2 or 0 in shape:
        refuse(path, f'frames of shape {shape}', expected, cure_of_shape(d))
    h, w = shape[1:3]
    if patch_size and (h % patch_size or w % patch_size):
        wide, high = nearest_multiples(w, patch_size), nearest_multiples(h, patch_size)
        fits = [p for p in range(2, 33) if h % p == 0 and w % p == 0]
        refuse(path, f'frames {w} wide and {h} high', f'multiples of patch_size={patch_size}',
               f'data.py video --size with {wide} wide, {high} high; or patch_size one of {fits}')


def cure_of_shape(d):
    """How frames of another shape become (N,H,W,3)."""
    shape = d.shape
    if len(shape) == 3:
        return 'grey to colour: np.repeat(frames[..., None], 3, -1)'
    if len(shape) != 4:
        return 'store it as one long (N,H,W,3)'
    if shape[3] == 3:
        return 'record more'
    if shape[1] == 3:
        return 'channels last: frames.transpose(0, 2, 3, 1)'
    if shape[3] == 4:
        last = d[shape[0] // 2, :, :, 3]
        if last.min() == last.max():  # nothing or everything is transparent
            return 'drop the alpha channel: frames[..., :3]'
        return ('of a stack of four grey moments the last: np.repeat(frames[..., 3:], 3, -1); of '
                'colours and alpha: frames[..., :3]')
    if shape[3] == 1:
        return 'grey to colour: np.repeat(frames, 3, -1)'
    return 'three colour channels, last'


def nearest_multiples(n, patch_size):
    """36, 8 -> '32 or 40'."""
    patches = sorted({n // patch_size, -(-n // patch_size)})
    return ' or '.join(str(p * patch_size) for p in patches if p)


# the arrays beside the frames


def stored_starts(f, path):
    """The arrays of an open file that may say where episodes begin, by name."""
    if has_link(f, 'episode_starts'):
        return {'episode_starts': plain_dataset(f, 'episode_starts', path)[...]}
    arrays = {}
    for name in OTHER_NAMES:
        is_group = is_in_this_file(f, name) and isinstance(f[name], h5py.Group)
        if has_link(f, name) and not is_group:
            arrays[name] = plain_dataset(f, name, path)[...]
    return arrays


def read_truth(f, n, path):
    """The arrays of the group `truth`, each (N,...), by name."""
    if not is_in_this_file(f, 'truth') or not isinstance(f['truth'], h5py.Group):
        refuse(path, '"truth" that is no group', 'a group of per-frame arrays', 'delete "truth"')
    truth = {}
    for key in f['truth']:
        truth[key] = plain_dataset(f['truth'], key, path)[...]
        if truth[key].shape[:1] != (n,):
            refuse(path, f'truth/{key} of shape {truth[key].shape}', f'({n},...), one per frame',
                   f'mend or delete truth/{key}')
    return truth


def stored_actions(f, name, n, path):
    """What an open file calls its actions, a dataset or an array, and their names if they are
    stored as names, or as a group of an array for each button; else None."""
    if is_in_this_file(f, name) and isinstance(f[name], h5py.Group):
        return buttons_of_group(f[name], name, n, path)
    stored = plain_dataset(f, name, path, 'uifbSOV')
    if h5py.check_string_dtype(stored.dtype) and stored.dtype.kind == 'O':
        refuse(path, f'{name} {stored.shape} that are texts of any length', 'int (N,)',
               f'texts of one length: f["{name}"] = np.array(texts, "S")')
    if stored.dtype.kind == 'S' and stored.ndim == 1 and len(stored):
        return number_names(stored[...])
    return stored, None


def buttons_of_group(group, name, n, path):
    """A group of arrays (n,), one for each button or number -> (n,A) and their names."""
    keys = list(itertools.islice(group, MAX_BUTTONS + 1))
    columns = [plain_dataset(group, key, path) for key in keys]
    shapes = {column.shape for column in columns}
    if len(shapes) != 1 or len(keys) > MAX_BUTTONS or columns[0].ndim != 1:
        refuse(path, f'"{name}" is a group holding {contents(group)}',
               f'one array, or a group of at most {MAX_BUTTONS} arrays (N,)',
               f'f["actions"] = np.column_stack([g[key] for key in g]), g having been f["{name}"]')
    check_count(len(columns[0]), n, path)  # before they are read: it bounds them by the frames
    return np.column_stack([column[...] for column in columns]), keys


def read_optional(f, n, path):
    """All that an open file holds beside its n frames, checked: a dict of data.Dataset's fields."""
    actions, table, truth, noticed = None, None, {}, []
    noticed += [to_text(sentence) for sentence in np.atleast_1d(f.attrs.get('noticed', []))]
    names, fps, source = f.attrs.get('action_names'), f.attrs.get('fps'), f.attrs.get('source')
    if names is not None:
        names = [to_text(name) for name in np.atleast_1d(names)]
    name = 'actions'
    if not has_link(f, 'actions') and has_link(f, 'action'):
        name = 'action'
        noticed.append('"action" is taken for actions')
    if has_link(f, name):
        stored, their_names = stored_actions(f, name, n, path)
        if their_names:
            names = their_names
            noticed.append(f'actions have names: {", ".join(map(printable, names[:16]))}')
        actions, table = check_actions(stored, n, path)
        noticed += noticed_numbers(stored, actions, table)
    starts, sentences = find_starts(stored_starts(f, path), n, path)
    starts = np.zeros(1, np.int64) if starts is None else starts
    noticed += sentences
    if has_link(f, 'truth'):
        truth = read_truth(f, n, path)
    names = name_combinations(names, table)
    if names is not None and actions is not None:
        check_names(names, actions, path)
    if getattr(fps, 'size', 0) == 1:  # an array of one
        fps = fps.item()
    if fps is not None:
        if not isinstance(fps, (int, float, np.number)) or not 0 < fps < 1e4:
            refuse(path, f'fps = {fps}', 'a positive number, below 10,000',
                   'mend or delete the attribute')
        fps = float(fps)
    return dict(actions=actions, action_names=names, episode_starts=starts, truth=truth, fps=fps,
                noticed=noticed, source=None if source is None else to_text(source))


def check_written(tmp, path):
    """Raises DataError unless what was written to `tmp` can be loaded as `path`."""
    try:
        with open_h5(tmp) as f:
            frames = plain_dataset(f, 'frames', tmp)
            check_frames(frames, tmp, None)
            read_optional(f, len(frames), tmp)
            expect_change(fingerprints(frames, tmp), tmp)
    except DataError as e:
        raise DataError(str(e).replace(tmp, str(path))) from None


# -----------------------------------------------------------------------------
# decode


def read(d, a, b, path):
    """Frames a to b-1 of an h5py.Dataset, or of an array."""
    try:
        return d[a:b]
    except (OSError, RuntimeError) as e:
        refuse(path, f'damaged data in frames {a} to {min(b, len(d)) - 1} ({one_line(e)})',
               'chunks that decode', 'copy or make the file again')


def fingerprints(frames, path):
    """Hashes of at most 256 frames, evenly spread. Raises DataError if they are all but black.

    Some files cut a frame into hundreds of chunks of thousands of frames each. Neighbours in time
    are read at one go there, or each frame would cost the decoding of them all.
    """
    n = len(frames)
    picks = np.unique(np.linspace(0, n - 1, min(n, 256)).astype(np.int64))
    rows = (getattr(frames, 'chunks', None) or (1,))[0]  # of a chunk
    marks, brightest = [], 0
    groups = itertools.groupby(picks, lambda i: i // rows)
    for _, group in tqdm(groups, desc='checking', delay=3, leave=False, disable=None):
        group = np.array(list(group))
        block = read(frames, group[0], group[-1] + 1, path)
        for frame in block[group - group[0]]:
            marks.append(hashlib.sha256(np.ascontiguousarray(frame)).hexdigest())
            brightest = max(brightest, int(frame.max()))
    if brightest == 1:
        refuse(path, 'frames in which no pixel is above 1', 'levels of 0..255',
               'frames * 255, if they were made as 0..1')
    return marks


def expect_change(marks, path):
    """Raises DataError where most of the frames with these fingerprints are alike."""
    same = Counter(marks).most_common(1)[0][1]
    if same > len(marks) / 2:
        refuse(path, f'{same} of {len(marks)} frames sampled are one and the same picture',
               'a recording of play', 'cut the still part away, or see what the recorder recorded: '
               'was it the right window?')


def identify(frames, optional, path):
    """The data_id of frames and what read_optional returned, and the fingerprints: 16 hex digits,
    the same however the file is compressed."""
    marks = fingerprints(frames, path)
    h = hashlib.sha256(repr(frames.shape).encode())
    h.update(optional['episode_starts'].tobytes())
    actions = optional['actions']
    if actions is not None:
        h.update(str(actions.dtype).encode() + actions.tobytes())
    h.update(''.join(marks[::4]).encode())
    return h.hexdigest()[:16], marks


def decoded_names(path, out_dir=None):
    """Where the decoding of an h5 file may lie, best first, without the ending .<data_id>.npy:
    beside it; else in out_dir/cache or a folder of the user, whose files of one name can belong to
    several recordings."""
    path = os.path.abspath(path)
    beside = os.path.splitext(path)[0]
    spare = f'frames_{os.path.basename(beside)}_{hashlib.sha256(path.encode()).hexdigest()[:8]}'
    folders = [out_dir and os.path.join(os.path.abspath(out_dir), 'cache'), user_cache()]
    return [beside] + [os.path.join(folder, spare) for folder in folders if folder]


def decoded_files(names):
    """The decodings under these names, of old contents too: data/tiny -> data/tiny.<data_id>.npy.
    """
    found = []
    for folder, name in map(os.path.split, names):
        pattern = re.escape(name) + r'\.[0-9a-f]{16}\.npy'
        with contextlib.suppress(OSError):  # a spare folder that nobody has needed
            inside = [x for x in os.listdir(folder) if re.fullmatch(pattern, x)]
            found += [os.path.join(folder, x) for x in inside]
    return found


def stamp_of(path):
    """32 bytes by which a changed h5 file is noticed, whatever has changed in it: of its size, its
    time of modification, which archives and sync tools set to what it was, and samples of it."""
    about = os.stat(path)
    h = hashlib.sha256(f'{about.st_size} {about.st_mtime_ns}'.encode())
    with open(path, 'rb') as f:
        for at in np.linspace(0, max(0, about.st_size - 4096), 64).astype(np.int64):
            f.seek(at)
            h.update(f.read(4096))
    return h.digest()


def find_decoded(path, names, shape):
    """The decoded frames of exactly this h5 file, memory-mapped, and their path; or (None, None).
    Behind its frames a decoded file carries the stamp of the h5 file."""
    stamp = stamp_of(path)
    for npy in decoded_files(names):
        with contextlib.suppress(OSError, ValueError):
            with open(npy, 'rb') as f:
                f.seek(-len(stamp), os.SEEK_END)
                if f.read() != stamp:
                    continue
            frames = np.load(npy, mmap_mode='r', allow_pickle=False)
            if frames.shape == shape and frames.dtype == np.uint8:
                return frames, npy
    return None, None


def decode(d, path, npy, show):
    """Writes the h5py.Dataset d of the file `path` as the file npy, in blocks of whole chunks.
    show: a progress bar. Raises DiskError too."""
    frame_bytes = int(np.prod(d.shape[1:]))
    rows = (d.chunks or (1,))[0]
    rows *= max(1, 2 ** 26 // (rows * frame_bytes))  # blocks of about 64 MB
    free = free_space(os.path.dirname(npy))
    if free < d.nbytes + 2 ** 26:
        raise DiskError(f'{npy}: needs {d.nbytes / 1e9:.2f} GB for the decoded frames, '
                        f'found {free / 1e9:.2f} GB free\n'
                        f'  cure: free some space, or move {path} to a larger disk')
    stamp = stamp_of(path)
    hide = not show or d.nbytes < 2 ** 28
    bar = tqdm(total=len(d), desc=f'decoding {os.path.basename(path)}', unit=' frames',
               leave=False, disable=hide or None)  # None: no bar in a log file
    with replacing(npy) as tmp, open(tmp, 'wb') as out, bar:
        header = dict(descr='|u1', fortran_order=False, shape=d.shape)
        np.lib.format.write_array_header_1_0(out, header)
        for a in range(0, len(d), rows):
            block = read(d, a, a + rows, path)
            out.write(block.data)
            bar.update(len(block))
        out.write(stamp)


def decode_where_it_fits(d, path, names, data_id, master):
    """Decodes the h5py.Dataset d under the first of the names that can be written -> the file.
    Raises DiskError if none can: the disk is full, or read-only as /kaggle/input is."""
    problems = []
    for name in names:
        npy = f'{name}.{data_id}.npy'
        try:
            decode(d, path, npy, show=master)
        except DiskError as e:
            problems.append(str(e))
            continue
        if problems and master:
            print(f'decoded into {npy}, for {problems[0].splitlines()[0]}', flush=True)
        return npy
    tried = ', '.join(os.path.dirname(name) for name in names)
    raise DiskError(f'{problems[0]}\n  tried {tried}')


def map_frames(d, optional, path, master, out_dir):
    """The frames of the h5py.Dataset d as a memory-mapped array, and their data_id.

    They are decoded at the first time; then, the master removes the decodings of older contents.
    Raises DiskError too.
    """
    names = decoded_names(path, out_dir)
    frames, npy = find_decoded(path, names, d.shape)
    if frames is not None:
        data_id, marks = identify(frames, optional, path)
        if not npy.endswith(f'.{data_id}.npy'):
            frames = None
    if frames is None:
        data_id, marks = identify(d, optional, path)
    expect_change(marks, path)
    if frames is None:
        npy = decode_where_it_fits(d, path, names, data_id, master)
        for old in decoded_files(names):
            if master and old != npy:
                with contextlib.suppress(OSError):  # Windows: another process still has it open
                    os.remove(old)
        frames = np.load(npy, mmap_mode='r', allow_pickle=False)
    return frames, data_id


# -----------------------------------------------------------------------------
# create


def create_h5(f, height, width, compression, source, fps, action_names):
    """Fills in the attributes of a new file and returns its empty, growing `frames`."""
    f.attrs['source'] = source
    f.attrs['fps'] = float(fps)
    if action_names is not None:
        f.attrs['action_names'] = [str(name) for name in action_names]
    shape = height, width, 3
    rows = max(1, 2 ** 18 // math.prod(shape))  # frames a chunk: about 256 KB
    return f.create_dataset('frames', (0, *shape), np.uint8, maxshape=(None, *shape),
                            chunks=(rows, *shape), shuffle=True,
                            fletcher32=True,  # else a flipped bit goes unnoticed
                            compression=compression,
                            compression_opts=4 if compression == 'gzip' else None)


def stored(d, frames):
    """Appends the picture of each (picture, ...) to the growing h5 dataset d, a chunk at a time;
    yields the rest of each, a list."""
    block = []

    def append():
        n = len(d)
        d.resize(n + len(block), 0)
        d[n:] = np.stack(block)
        block.clear()

    for picture, *rest in frames:
        block.append(picture)
        if len(block) == d.chunks[0]:
            append()
        yield rest
    if block:
        append()
