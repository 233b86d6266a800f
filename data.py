"""
A recording as batches: load, split, windows, draw, clips. And where one is made and checked:

    python data.py game  data/tiny.h5 --n_frames=60000  # the built-in game, with true action labels
    python data.py game  data/hunt.h5 --player=hunter [--stick=True]  # by one who has an aim
    python data.py video play.mp4 data/zelda.h5 --size=128 --fps=15 [--labels=labels.npz] [--pad]
    python data.py gym   ALE/Pong-v5 data/pong.h5 --frame_skip=4 --pad  # a game of gymnasium's
    python data.py check data/zelda.h5  # data card, or what is wrong with the file

A dataset is one HDF5 file. `frames` uint8 (N,H,W,3) is required. Optional: `actions` int (N,) or
float (N,A), where actions[t] is held while going from frame t to t+1; `episode_starts` int, sorted,
first 0; attributes `fps`, `source`, `action_names`; a group `truth` of per-frame arrays (what the
built-in game knows about itself).

Exit codes: 0 done, 2 command line, 3 the data is wrong, 7 the disk is full or cannot be written.
"""
import argparse
import contextlib
import os
import re
import shutil
import signal
import sys
from dataclasses import dataclass, field

import h5py
import numpy as np
from tqdm import tqdm

from files import DiskError, printable, replacing
from pictures import grid, save_png
from recordings import game, hunter
from recordings.clock import MAX_RATE
from recordings.gym import record_gym
from recordings.h5file import (check_frames, create_h5, map_frames, open_h5, plain_dataset,
                               read_optional)
from recordings.refusal import DataError, one_line, refuse
from recordings.video import STILL_SECONDS, cuts_in, import_video

# torch takes a second to import: the functions that need it import it, so the commands are quick

# -----------------------------------------------------------------------------
# a recording


@dataclass
class Dataset:
    path: str
    frames: np.ndarray  # (N,H,W,3) uint8, memory-mapped: processes of a machine share one copy
    actions: np.ndarray | None  # (N,) int64 or (N,A) float32
    action_names: list | None
    episode_starts: np.ndarray  # (E,) int64, first 0
    fps: float | None
    source: str | None
    data_id: str  # 16 hex digits of the content, the same however the file is compressed
    truth: dict = field(default_factory=dict)
    noticed: list = field(default_factory=list)  # how what others call otherwise was read
    all_held_out: bool = False  # of the start frames in a world file none was trained on

    @property
    def has_labels(self):
        """Are its actions whole numbers, one a frame, and so something that a code can mean?"""
        return self.actions is not None and self.actions.ndim == 1


def load(path, patch_size=None, master=True, out_dir=None):
    """Opens a dataset file -> Dataset.

    All checks come first. The first time, its frames are decoded into data/NAME.<data_id>.npy
    beside it, or where that cannot be written into out_dir/cache or ~/.cache/nanoworlds; decodings
    of older contents of the same file are removed. With several processes let the master load first
    and the others, master=False, after a barrier: they find it done. (A second writer is harmless:
    its temporary file is its own, the rename is atomic.)

    patch_size: refuse frames that do not divide into patches of so many pixels.
    Raises DataError for whatever is wrong with the file, DiskError when the decoded frames cannot
    be written.
    """
    path = str(path)
    with open_h5(path) as f:
        try:
            d = plain_dataset(f, 'frames', path)
            check_frames(d, path, patch_size)
            optional = read_optional(f, len(d), path)
            frames, data_id = map_frames(d, optional, path, master, out_dir)
        except (OSError, RuntimeError, KeyError, ValueError, TypeError) as e:
            # HDF5 raises any of them for damaged metadata
            refuse(path, f'an HDF5 file that cannot be read ({one_line(e)})',
                   'frames uint8 (N,H,W,3)', 'copy or make it again')
    return Dataset(path=path, frames=frames, data_id=data_id, **optional)


# -----------------------------------------------------------------------------
# which frames: split, windows, draw


def split(dataset, window):
    """Decides what is held out; every script asks here and nowhere else.

    Held out are whole episodes at the end, about 10% of the frames (5 to 20%). If no episode starts
    there, it is the last 10% of the frames, and the train part ends `window` frames earlier, so
    that no training clip shows what validation starts with. Where `val` begins does not depend on
    `window`.

    Returns {'train': [(start, stop), ...], 'val': [...]}, ranges of frames that never cross an
    episode start.
    """
    n, starts = len(dataset.frames), dataset.episode_starts
    if dataset.all_held_out:
        return {'train': [], 'val': list(zip(starts.tolist(), starts[1:].tolist() + [n]))}
    left = n - starts  # frames from each episode's start to the end
    candidates = starts[(left >= 0.05 * n) & (left <= 0.2 * n)]
    if len(candidates):
        val = train_stop = int(candidates[np.argmin(abs(n - candidates - 0.1 * n))])
    else:
        val = n - max(1, n // 10)
        train_stop = max(0, val - window)
    starts = starts.tolist()
    episodes = list(zip(starts, starts[1:] + [n]))
    return {'train': [(a, min(b, train_stop)) for a, b in episodes if a < train_stop],
            'val': [(max(a, val), b) for a, b in episodes if b > val]}


def windows(dataset, which, seq_len, frame_stride=1, asked='',
            cure='lower seq_len or frame_stride'):
    """First frames (int64) of every clip of seq_len frames, frame_stride apart, in the 'train' or
    the 'val' part. Raises DataError if there is none.

    asked, cure: for that message, the keys that ask for so many frames, and what helps other than
    to record more. A caller without a seq_len says them.
    """
    span = (seq_len - 1) * frame_stride + 1
    ranges = split(dataset, span)[which]
    starts = [np.arange(a, b - span + 1) for a, b in ranges]
    starts = np.concatenate(starts or [np.zeros(0)]).astype(np.int64)
    if not len(starts):
        n, episodes = len(dataset.frames), len(dataset.episode_starts)
        longest = max((b - a for a, b in ranges), default=0)
        expected = (f'at least {span} frames in a row for {asked or f"seq_len={seq_len}"}, '
                    f'frame_stride={frame_stride}')
        if episodes == 1:
            expected += f' (about {11 * span} frames in all)'
        refuse(dataset.path, f'{n} frames in {episodes} episode(s); the longest stretch of its '
               f'{which} part is {longest} frames', expected,
               f'record more, in longer episodes, or {cure}')
    return starts


def draw(starts, batch_size, *key):
    """(batch_size,) of starts, with replacement: a function of the key alone, whole numbers such as
    seed, iter, rank. So nothing about the order of the data has to be saved to resume."""
    rng = np.random.default_rng([len(key), *key])
    return starts[rng.integers(len(starts), size=batch_size)]


def mix_in(picks, kinds, n, seed, it):
    """Draws the first of the batch `picks` (B,) anew: n from each of the kinds, arrays of starts.
    With n a fraction they take turns: of half a clip there is one in every other batch."""
    to = [int(n * i + it * 0.618 % 1) for i in range(len(kinds) + 1)]  # 0.618: hits all parts alike
    for i, starts in enumerate(kinds):
        picks[to[i]:to[i + 1]] = draw(starts, to[i + 1] - to[i], seed, 2 + i, it)


def key_seed(*key):
    """A seed that is a function of the key alone, so that a resumed run draws what an unbroken one
    would."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)


def changed(recording, starts, frame_stride=1):
    """In which of the transitions from frames `starts` (n,) on more than 0.2% of the pixels change:
    in the others nobody can see what was done. A lossy video never stands quite still."""
    found = []
    for some in np.array_split(starts, len(starts) // 256 + 1):
        before, after = recording.frames[some], recording.frames[some + frame_stride]
        differs = np.abs(before.astype(np.int16) - after).max(3) > 0.05 * 255
        found.append(differs.mean((1, 2)) > 0.002)
    return np.concatenate(found)


def lively(recording, starts, n, seed, frame_stride=1):
    """n of the starts, at random; first those at which something changes."""
    picks = draw(starts, 4 * n, seed, 3)
    return picks[np.argsort(~changed(recording, picks, frame_stride), kind='stable')][:n]


def labelled(starts, n, seed):
    """n of the transitions, those whose label may be seen."""
    order = np.random.default_rng([seed, 12]).permutation(len(starts))
    return starts[order[:n]]


def few_labels(recording, n, frame_stride, seed):
    """
    What a recording tells of n transitions: their first frames (n,), drawn from those of the train
    part in which something changes; the label (N,) of every frame, numbered from 0 on by what
    occurs; and how many there are. n = 0: nothing, nothing, 0. Raises DataError if it cannot.
    """
    if not n:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), 0
    if not recording.has_labels or frame_stride != 1:
        found = 'no whole-number "actions" in it'
        refuse(recording.path, f'frame_stride={frame_stride}' if recording.has_labels else found,
               f'a label for every frame, and frame_stride=1, for n_labels={n}',
               'use --n_labels=0')
    starts = windows(recording, 'train', 2)
    starts = starts[changed(recording, starts)]
    if len(starts) < n:
        refuse(recording.path, f'{len(starts)} transitions to train on in which something changes',
               f'at least n_labels={n}', 'lower n_labels')
    values, labels = np.unique(recording.actions, return_inverse=True)
    return labelled(starts, n, seed), labels, len(values)


# -----------------------------------------------------------------------------
# onto the device


def to_device(array, device):
    """A memory-mapped array as a tensor on the GPU if it takes less than half of the free memory
    there, else as it is."""
    import torch
    if torch.device(device).type != 'cuda':
        return array
    if array.nbytes > torch.cuda.mem_get_info(device)[0] / 2:
        return array
    dtype = torch.from_numpy(np.array(array[:1])).dtype
    out = torch.empty(array.shape, dtype=dtype, device=device)
    for a in range(0, len(out), 1024):
        out[a:a + 1024] = torch.from_numpy(np.array(array[a:a + 1024])).to(device)
    return out


def rows(array, index, device):
    """array[index] as a tensor on the device. array: what to_device returns; index: whole numbers
    of any shape."""
    import torch
    on_device = isinstance(array, torch.Tensor)
    x = torch.from_numpy(index if on_device else array[index])
    if torch.device(device).type == 'cuda':
        x = x.pin_memory()  # so that the copy does not wait for the GPU
    x = x.to(device, non_blocking=True)
    return array[x] if on_device else x


def clips(frames, starts, seq_len, frame_stride, device):
    """Frames from `starts` (B,) on -> (B,T,C,H,W) float32 in [-1,1] on the device.

    frames: (N,H,W,3) uint8, as to_device returns them. Bytes cross to the device, not floats: a
    quarter of the traffic.
    """
    index = np.asarray(starts)[:, None] + frame_stride * np.arange(seq_len)  # (B,T)
    return frames_at(frames, index, device)


def frames_at(frames, index, device):
    """The frames of these numbers (B,T), as above."""
    import torch
    x = rows(frames, index, device).permute(0, 1, 4, 2, 3)
    x = x.to(torch.float32, memory_format=torch.contiguous_format)
    return x.div_(127.5).sub_(1)


# -----------------------------------------------------------------------------
# what is computed from a recording once


def cached(path, n, compute):
    """The rows 0 to n-1 of something, memory-mapped from the file `path`, which is made if it does
    not exist. Every rank calls it.

    compute(picks) -> numpy array (len(picks),...), for 32 rows at a time: with 64, attention over
    time at 1024 patches a frame would be 65,536 sequences, one more than some CUDA kernels take.
    Parts of 1024 rows are files of their own at first, shared out among the ranks, so that a
    process that is killed loses one of them.

    The path must name all that the rows depend on: other files in its folder with the same word
    before the '_' are older, and removed. Raises DiskError; DataError if the file is damaged.
    """
    from training import ranks
    rank, world_size = ranks.rank(), ranks.world_size()
    parts = {a: os.path.join(path + '.parts', f'{a:09d}.npy') for a in range(0, n, 1024)}
    if not os.path.exists(path):
        bar = tqdm(list(parts)[rank::world_size], first_word(path), unit_scale=1024,
                   unit=' frames', leave=False, disable=rank > 0 or None)
        with unless_made(path):
            for a in bar:
                if not (os.path.exists(parts[a]) or os.path.exists(path)):
                    compute_part(parts[a], np.arange(a, min(a + 1024, n)), compute)
        ranks.barrier()
        if rank == 0:
            with unless_made(path):
                join_parts(list(parts.values()), path, n)
                remove_older(path)
        ranks.barrier()
    try:
        return np.load(path, mmap_mode='r', allow_pickle=False)
    except (OSError, ValueError) as e:
        raise DataError(f'{path}: found a damaged file ({one_line(e)}), expected an array\n'
                        '  cure: remove it; it is made again') from e


@contextlib.contextmanager
def unless_made(path):
    """Another process that makes the same file may be first, and remove the parts."""
    try:
        yield
    except (DiskError, FileNotFoundError):
        if not os.path.exists(path):
            raise


def first_word(path):
    """'out/cache/tokens_1234.npy' -> 'tokens'."""
    return os.path.basename(path).split('_')[0]


def compute_part(part, picks, compute):
    with replacing(part) as tmp, open(tmp, 'wb') as f:
        blocks = [compute(picks[i:i + 32]) for i in range(0, len(picks), 32)]
        np.save(f, np.concatenate(blocks))


def join_parts(parts, path, n):
    first = np.load(parts[0], allow_pickle=False)
    header = dict(descr=first.dtype.str, fortran_order=False, shape=(n, *first.shape[1:]))
    with replacing(path) as tmp, open(tmp, 'wb') as f:
        np.lib.format.write_array_header_1_0(f, header)
        for part in parts:
            f.write(np.load(part, allow_pickle=False).tobytes())


def remove_older(path):
    """Removes what begins with the same word: arrays for other data, and the parts."""
    folder, name = os.path.split(path)
    for other in os.listdir(folder):
        if first_word(other) == first_word(name) and other != name:
            other = os.path.join(folder, other)
            if os.path.isdir(other):
                shutil.rmtree(other)
            else:
                os.remove(other)


# -----------------------------------------------------------------------------
# the door


PLAYERS = {'wanderer': game.Player, 'hunter': hunter.Hunter}


def make_game(path, n_frames=60_000, seed=0, layout=0, player='wanderer', stick=False):
    """Records the built-in game into the h5 file `path`. stick: with three numbers for actions, not
    keys."""
    recording = game.record(n_frames, seed, layout, player=PLAYERS[player], stick=stick)
    frames = recording['frames']
    source = f'game.py seed={seed} layout={layout}'
    if player != 'wanderer' or stick:
        source += f' player={player} stick={stick}'
    with replacing(path) as tmp, h5py.File(tmp, 'w') as f:
        names = game.STICK if stick else game.ACTIONS
        d = create_h5(f, *frames.shape[1:3], 'lzf', source, game.FPS, names)
        d.resize(len(frames), 0)
        d[...] = frames
        f['actions'] = recording['actions']
        f['episode_starts'] = recording['episode_starts']
        for key, value in recording['truth'].items():
            f.create_dataset(f'truth/{key}', data=value)


def card_of(ds):
    """What there is to say of a Dataset, in lines: its data card."""
    n, h, w, _ = ds.frames.shape
    lengths = np.diff(np.append(ds.episode_starts, n))
    parts = {which: sum(b - a for a, b in ranges) for which, ranges in split(ds, 16).items()}
    repeats = count_repeats(ds.frames) / (n - 1)
    length = f'{n / ds.fps / 60:.1f} minutes at {ds.fps:g} fps' if ds.fps else 'fps unknown'
    yield f'{ds.path}   data_id {ds.data_id}   source {printable(ds.source or "unknown")}'
    yield f'frames      {n:,} of {w}x{h}, {length}'
    yield (f'episodes    {len(lengths)}, shortest {lengths.min()}, '
           f'median {int(np.median(lengths))} frames')
    yield f'split       train {parts["train"]:,}, val {parts["val"]:,} frames (for windows of 16)'
    yield f'duplicates  {repeats:.1%} of the frames equal the one before'
    yield f'actions     {describe_actions(ds)}'
    yield f'truth       {printable(", ".join(ds.truth) or "none")}'
    if len(ds.episode_starts) == 1:
        n_cuts = len(cuts_in(ds.frames))
        if n_cuts:
            yield (f'noticed     no episode_starts, but another scene begins at once {n_cuts:,} '
                   f'times. data.py video {ds.path} NEW.h5 begins an episode there')
    for sentence in ds.noticed:
        yield f'noticed     {printable(sentence)}'


def check(path):
    """Prints the data card of a dataset and then writes a contact sheet beside it, or beside the
    decoded frames if those had to go elsewhere."""
    ds = load(path)
    for line in card_of(ds):
        print(line)
    print(f'decoded     {ds.frames.nbytes / 1e9:.2f} GB, {ds.frames.filename}', flush=True)
    picks = np.linspace(0, len(ds.frames) - 1, 48).astype(np.int64).reshape(6, 8)
    sheet = grid([ds.frames[row] for row in picks], labels=[str(row[0]) for row in picks])
    for beside in (path, ds.frames.filename):
        png = os.path.splitext(beside)[0] + '.check.png'
        try:
            save_png(png, sheet)
            print(f'look at     {png}')
            return
        except DiskError as e:
            problem = e
    print(f'look at     nothing, for the contact sheet {problem}')


def count_repeats(frames):
    """How many frames equal the one before."""
    repeats = 0
    for a in range(1, len(frames), 512):
        block = frames[a - 1:a + 512]
        repeats += int((block[1:] == block[:-1]).all((1, 2, 3)).sum())
    return repeats


def describe_actions(dataset):
    actions = dataset.actions
    if actions is None:
        return 'none'
    if actions.ndim == 2:
        return f'{actions.shape[1]} numbers a frame, {actions.min():.3g} to {actions.max():.3g}'
    numbers, counts = np.unique(actions, return_counts=True)
    names = dataset.action_names or range(numbers[-1] + 1)
    shown = np.arange(len(numbers))
    if len(numbers) > 16:
        shown = np.argsort(-counts, kind='stable')[:10]  # the most frequent
    said = [f'{printable(names[numbers[i]])} {counts[i]:,}' for i in shown]
    if len(numbers) > len(said):
        said.append(f'and {len(numbers) - len(said)} rarer ones up to {numbers[-1]}')
    return ', '.join(said)


def size(text):
    """'128' or '128x96' (width x height) -> (width, height)."""
    wrong = argparse.ArgumentTypeError(f'{text!r}: 128 or 128x96, width x height, of 8 to 2048')
    if not re.fullmatch('[0-9]{1,4}(x[0-9]{1,4})?', text):
        raise wrong
    w, h = text.split('x') if 'x' in text else (text, text)
    w, h = int(w), int(h)
    if not 8 <= min(w, h) <= max(w, h) <= 2048:
        raise wrong
    return w, h


def rectangle(text):
    """'0,60,640,360' -> (x, y, width, height)."""
    if not re.fullmatch('[0-9]{1,5},[0-9]{1,5},[1-9][0-9]{0,4},[1-9][0-9]{0,4}', text):
        raise argparse.ArgumentTypeError(f'{text!r}: x,y,width,height in pixels: 0,60,640,360')
    return tuple(map(int, text.split(',')))


def numbers(text):
    if not re.fullmatch('[0-9]{1,4}(,[0-9]{1,4})*', text):
        raise argparse.ArgumentTypeError(f'{text!r}: numbers with commas between: 0,1,2')
    return tuple(map(int, text.split(',')))


def true_or_false(text):
    if text not in ('True', 'False'):
        raise argparse.ArgumentTypeError(f'{text!r}: True or False')
    return text == 'True'


def expect_files(videos):
    """Raises DataError for a video that is not there: from which folder it was looked for."""
    for path in videos:
        is_pattern = '%' in os.path.basename(path)
        if '://' not in path and not is_pattern and not os.path.exists(path):
            refuse(os.path.abspath(path), 'no such file', 'a video', 'check the path')


def expect_another(path, sources):
    """Raises DataError if the file to write is one of those to read."""
    for source in sources:
        if source and os.path.exists(source) and os.path.exists(path) \
                and os.path.samefile(source, path):
            refuse(path, 'the file to write among those to read', 'another name',
                   'write it beside, and move it when you have looked at it')


def parse_command_line():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True)
    p = commands.add_parser('game', help='record the built-in game')
    p.add_argument('path')
    p.add_argument('--n_frames', type=int, default=60_000)
    p.add_argument('--seed', type=int, default=0, help='of the player')
    p.add_argument('--layout', type=int, default=0, help='which world; of a hunter the first')
    p.add_argument('--player', choices=PLAYERS, default='wanderer',
                   help='a hunter slays creatures, each 100 frames in another world')
    p.add_argument('--stick', type=true_or_false, default=False,
                   help='True: actions are three numbers, right, down and swing, instead of keys')
    p = commands.add_parser('video', help='import a video')
    p.add_argument('videos', nargs='+', metavar='video',
                   help='a file, a folder of pictures, or shot_%%04d.png; several may be given')
    p.add_argument('path')
    p.add_argument('--size', type=size, default=(128, 128), help='128 or 128x96, width x height')
    p.add_argument('--fps', type=float, help='default: the rate of the video')
    p.add_argument('--source_fps', type=float, help='the rate of the video, where its timestamps '
                   'are wrong; pictures have none')
    p.add_argument('--stream', type=int, help='number of the video stream, of several')
    p.add_argument('--labels', help='.npz, .npy, .csv, .tsv or .jsonl with actions, one per source '
                   'frame; perhaps episode_starts, action_names. "beside": a.npz for each a.mp4')
    p.add_argument('--no_op', type=int, help='the action that does nothing; default: none pressed, '
                   'or what is called noop, or 0')
    p.add_argument('--crop', type=rectangle, metavar='X,Y,W,H',
                   help='the part of the pictures to take, in their pixels; before --size')
    p.add_argument('--keep_still', type=true_or_false, default=False,
                   help=f'True: keep what stands still or is of one colour for {STILL_SECONDS} s')
    p.add_argument('--pad', action='store_true', help='black bars; default: crop around the centre')
    p.add_argument('--compression', choices=('gzip', 'lzf'), default='gzip',
                   help='gzip is smaller, lzf faster')
    p = commands.add_parser('gym', help='play and record a game of requirements-games.txt, or of '
                            'any package with gymnasium environments')
    p.add_argument('env_id', help='ALE/Pong-v5, say; module:ID imports a module first')
    p.add_argument('path')
    p.add_argument('--n_frames', type=int, default=20_000)
    p.add_argument('--size', type=size, default=(64, 64), help='64 or 128x96, width x height')
    p.add_argument('--fps', type=float, help='of the dataset; default: what the game says, divided '
                   'by frame_skip')
    p.add_argument('--frame_skip', type=int, default=1, help='steps of the game from one frame to '
                   'the next, all with one action')
    p.add_argument('--seed', type=int, default=0, help='of the game and of who plays')
    p.add_argument('--policy', default='sticky', help='who plays: sticky (holds each action for 2 '
                   'to 11 frames), random, or a Python file with act(observation)')
    p.add_argument('--keys', type=numbers, default=(), metavar='0,1,2', help='the actions that '
                   'are pressed; default: all. Crafter falls asleep for long if it can')
    p.add_argument('--pad', action='store_true', help='black bars; default: crop around the centre')
    p = commands.add_parser('check', help='data card and contact sheet')
    p.add_argument('path')
    a = parser.parse_args()
    if a.command != 'check' and not a.path.endswith(('.h5', '.hdf5')):
        parser.error(f'{printable(a.path)}: the file to write should end in .h5')
    if a.command != 'check' and (os.path.isdir(a.path) or '\udc80' <= max(a.path) <= '\udcff'):
        parser.error(f'{printable(a.path)}: a folder, or a name that is not UTF-8')
    if a.command == 'game' and not 2 <= a.n_frames <= 10 ** 6:
        parser.error(f'--n_frames={a.n_frames}: 2 to 1,000,000 (12 GB, which must fit in memory)')
    if a.command == 'game' and (a.seed < 0 or not 0 <= a.layout <= game.FIRST_LEVEL // 2):
        parser.error('no negative seed or layout, and no layout above '
                     f'{game.FIRST_LEVEL // 2:,}, where the levels are near')
    if a.command == 'gym' and not (2 <= a.n_frames <= 10 ** 7 and a.seed >= 0):
        parser.error('--n_frames: 2 to 10,000,000; --seed: 0 or more')
    if a.command == 'gym' and not 1 <= a.frame_skip <= 1000:
        parser.error(f'--frame_skip={a.frame_skip}: 1 to 1000 steps')
    for name in ('fps', 'source_fps'):
        rate = getattr(a, name, None)
        if rate is not None and not 0 < rate <= MAX_RATE:
            parser.error(f'--{name}={rate:g}: frames per second, above 0, at most {MAX_RATE}')
    return a


if __name__ == '__main__':
    a = parse_command_line()
    # an exception, so that temporary files are removed
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        if a.command == 'game':
            make_game(a.path, a.n_frames, a.seed, a.layout, a.player, a.stick)
        if a.command == 'video':
            expect_files(a.videos)
            expect_another(a.path, (*a.videos, a.labels))
            tally, _ = import_video(a.videos, a.path, *a.size, a.fps, a.labels, a.pad,
                                    a.compression, a.source_fps, a.stream, a.no_op,
                                    a.keep_still, a.crop)
            print(f'imported {tally["source"]:,} frames; dropped {tally["still"]} that stood still '
                  f'and {tally["blank"]} blank ones (stretches of more than {STILL_SECONDS} s)')
        if a.command == 'gym':
            record_gym(a.env_id, a.path, a.n_frames, *a.size, a.pad, a.fps, a.frame_skip, a.seed,
                       a.policy, a.keys)
        check(a.path)
    except (DataError, DiskError) as e:
        print(e, file=sys.stderr, flush=True)
        # not sys.exit: HDF5 would crash, trying again to write what a full disk refused
        os._exit(e.exit_code)
