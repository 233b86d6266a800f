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
import os
import shutil
import signal
import sys

import h5py
import numpy as np
from tqdm import tqdm

from files import DiskError, replacing
from pictures import grid, save_png
from recordings.h5file import DataError, create_h5, load, one_line, refuse
from recordings.video import STILL_SECONDS, import_video

# torch and av take a second or more to import: the functions that need them import them, and the commands stay quick



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





def make_game(path, n_frames=20_000, seed=0, layout=0):
    """Records the built-in game into the h5 file `path`."""
    from recordings import game
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
    except (DataError, DiskError) as e:
        print(e, file=sys.stderr, flush=True)
        os._exit(e.exit_code)        # not sys.exit: HDF5 would crash, trying again to write what a full disk refused
