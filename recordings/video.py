"""
A video becomes a dataset, one frame at a time, in bounded memory:
decode -> resample in time -> crop or pad, average down -> drop what stands still -> write -> find
the cuts.
"""
import functools
import math
import os
from collections import Counter

import h5py
import numpy as np
from tqdm import tqdm

from files import replacing
from recordings.clock import resample
from recordings.film import Film, display_matrix, noticed, one_after_the_other, rgb
from recordings.h5file import check_written, create_h5, printable, refuse
from recordings.labels import actions_while_shown, check_counts, labels_of

STILL_SECONDS = 2  # longer than this without change is a pause screen or a menu, not play
STILL_LEVELS = 16  # of 255: the largest change of a pixel that compression noise may make
CUT_SCORE = 3.0  # see find_cuts
CUT_RATIO = 4.0

# -----------------------------------------------------------------------------
# size


@functools.lru_cache(8)
def area_weights(n, length, m):
    """The middle `length` of n pixels shared out over m new ones: which pixels (m,k) each takes,
    and how much of each (m,k)."""
    edges = np.linspace((n - length) / 2, (n + length) / 2, m + 1)[:, None]
    pixel = edges[:-1].astype(np.int64) + np.arange(math.ceil(length / m) + 1)
    overlap = np.minimum(edges[1:], pixel + 1) - np.maximum(edges[:-1], pixel)
    weight = np.maximum(overlap, 0) * m / length
    return np.minimum(pixel, n - 1), weight.astype(np.float32)


def average(x, length, m):
    """(n,w,3) -> (m,w,3) float: averages in which a pixel that is cut counts by its parts.

    This is exact, as Pillow's BOX (whole pixels only) and swscale's AREA (by way of YUV) are not.
    There is no matmul, because BLAS threads wait for each other far longer than this takes when the
    processors are busy.
    """
    pixel, weight = area_weights(len(x), length, m)
    return sum(weight[:, k, None, None] * x[pixel[:, k]] for k in range(pixel.shape[1]))


def resize_by_area(picture, width, height, pad, pixel_aspect=1.0):
    """(h,w,3) uint8 -> (height,width,3) by area averaging, after cropping around the centre to the
    new shape or, with pad, before padding to it with black.
    pixel_aspect: width over height of a source pixel."""
    h, w, _ = picture.shape
    fill_x, fill_y = width / (w * pixel_aspect), height / h  # scales that fill width or height
    scale = min(fill_x, fill_y) if pad else max(fill_x, fill_y)
    used_w, used_h = min(w, w * fill_x / scale), min(h, h * fill_y / scale)
    new_w = max(1, min(width, round(width * scale / fill_x)))
    new_h = max(1, min(height, round(height * scale / fill_y)))
    rows = average(picture, used_h, new_h)
    small = average(rows.swapaxes(0, 1), used_w, new_w).swapaxes(0, 1)
    out = np.zeros((height, width, 3), np.uint8)
    top, left = (height - new_h) // 2, (width - new_w) // 2
    out[top:top + new_h, left:left + new_w] = small + 0.5  # uint8 truncates, so this rounds
    return out


def resize_all(frames, width, height, pad):
    """(index, (av frame, its film)), ... -> (index, picture (height,width,3) uint8), ..."""
    for index, (frame, film) in frames:
        matrix = display_matrix(frame)
        aspect = film.pixel_aspect if matrix[0] else 1 / film.pixel_aspect
        picture = rgb(frame, matrix, film.counts)
        yield index, resize_by_area(picture, width, height, pad, aspect)


# -----------------------------------------------------------------------------
# stills and cuts


def drop_stills(frames, limit, tally):
    """(index, picture), ... -> (index, picture, cut), ... without the stretches of more than
    `limit` frames that stand still (all but their first frame) or are of one colour (all of them).
    tally['still'] and tally['blank'] count what is dropped.

    cut: an episode starts here, because frames before it were dropped, or blank ones shown: nothing
    follows from black.
    """
    first, first_blank = None, False  # of the stretch to which the last frame belongs
    held, dropping = [], False  # its frames that are not yet passed on; is it too long?
    for index, picture in frames:
        colour_range = picture.max(0).max(0) - picture.min(0).min(0)
        blank = (colour_range <= STILL_LEVELS).all()
        goes_on = first is not None and blank == first_blank
        if goes_on and not blank:
            goes_on = np.abs(picture - first).max() <= STILL_LEVELS
        if goes_on:
            held.append((index, picture, False))
        else:
            yield from held
            cut = dropping or first_blank
            first, first_blank = picture.astype(np.int16), blank
            held, dropping = [], False
            if blank:
                held.append((index, picture, cut))
            else:
                yield index, picture, cut
        if dropping or len(held) > limit:
            tally['blank' if blank else 'still'] += len(held)
            held, dropping = [], True
    yield from held


def colours(picture):
    """Shares (64,) of the pixels in each of 4x4x4 colours."""
    r, g, b = np.moveaxis(picture >> 6, -1, 0)
    return np.bincount((r * 16 + g * 4 + b).ravel(), minlength=64) / r.size


def find_cuts(change, shift):
    """Where does another scene begin? (N,) bool.

    It looks at each frame against its predecessor: change (N,) is the mean absolute difference in
    levels of 255, shift (N,) the share of the pixels whose colour class is replaced.

    Scrolling changes every pixel but hardly which colours there are; a flash of a few sprites is
    the other way round. Only a cut makes the product large (on our scrolling test recording, 13
    cuts: 5.2 and more; all else: 1.7 at most). It must also stand out from the second around it, so
    that a fade or a game that flickers all the time is not cut to pieces. A false cut costs a few
    windows, a missed one teaches teleporting. A change of room at once is a cut, too.
    """
    score = change * shift
    around = np.lib.stride_tricks.sliding_window_view(np.pad(score, 8, mode='edge'), 17)
    return (score > CUT_SCORE) & (score > CUT_RATIO * np.median(around, 1))


# -----------------------------------------------------------------------------
# import


def write_frames(d, frames):
    """Appends (index, picture, cut), ... to the growing h5 dataset d.

    Returns lists, one entry a frame: its index; its cut, or True for the first one; its change and
    its shift, as find_cuts wants them.
    """
    indices, cuts, change, shift = [], [], [], []
    for n, (index, picture, cut) in enumerate(frames):
        d.resize(n + 1, 0)
        d[n] = picture  # HDF5 compresses a chunk when it is full
        levels, shares = picture.astype(np.int16), colours(picture)
        if n == 0:
            levels_before, shares_before = levels, shares
        indices.append(index)
        cuts.append(cut or n == 0)
        change.append(np.abs(levels - levels_before).mean())
        shift.append(np.abs(shares - shares_before).sum() / 2)
        levels_before, shares_before = levels, shares
    return indices, cuts, change, shift


def import_video(videos, path, width=128, height=128, fps=None, labels=None, pad=False,
                 compression='gzip', source_fps=None, stream=None, no_op=None):
    """Writes the h5 file `path` from anything PyAV decodes; returns a Counter of frames: source,
    still, blank, and what else was noticed, sentences. Raises DataError, DiskError; then `path` is
    what it was.

    videos: one, or a list, each with episodes of its own; they, source_fps, stream: see Film. fps:
    of the dataset; else that of the first film. labels: see labels_of, read_labels; no_op: the
    action that does nothing, None: see actions_while_shown. When labels bring episode_starts they
    are trusted: those are the episodes, nothing is dropped and no cut is looked for.
    """
    videos = [videos] if isinstance(videos, (str, os.PathLike)) else list(videos)
    given, label_files, about_labels = labels_of(labels, videos)
    films = [Film(video, source_fps, stream) for video in videos]
    fps = fps or films[0].clock.rate
    tally = Counter()
    frames = resample(one_after_the_other(films), fps,
                      slack=min(max(film.clock.tick for film in films) + 1e-6, 0.25 / fps))
    total = round(sum(len(film.clock.seconds) * film.clock.step for film in films) * fps)
    frames = tqdm(frames, desc='importing', unit=' frames', disable=None, total=total)
    frames = resize_all(frames, width, height, pad)
    if 'episode_starts' in given:
        frames = ((index, picture, False) for index, picture in frames)
    else:
        frames = drop_stills(frames, STILL_SECONDS * fps, tally)
    name = printable(os.path.basename(videos[0]))
    if len(videos) > 1:
        name += f' and {len(videos) - 1} more'
    with replacing(path) as tmp:
        with h5py.File(tmp, 'w') as f:
            d = create_h5(f, height, width, compression, name, fps, given.get('action_names'))
            indices, cuts, change, shift = map(np.array, write_frames(d, frames))
            counts = np.array([film.counts['source'] for film in films])
            before = counts.cumsum() - counts  # source frames of the films before each
            if len(indices) < 2:
                refuse(videos[0], f'{len(indices)} frames of play in {counts.sum()}', 'at least 2',
                       'look at what was recorded')
            begins = np.concatenate([np.array(film.begins) + n for film, n in zip(films, before)])
            if given:
                check_counts(label_files, counts)
                longest = math.ceil(max(film.clock.rate for film in films) / fps - 1e-6)
                f['actions'], about = actions_while_shown(given, indices, longest, no_op)
                about_labels += about
            if 'episode_starts' in given:
                begins = np.union1d(given['episode_starts'], before)
            else:
                cuts |= find_cuts(change, shift)
            starts = np.union1d(np.searchsorted(indices, begins), np.flatnonzero(cuts))
            f['episode_starts'] = starts[starts < len(indices)]
        check_written(tmp, path)
    sentences = []
    for film in films:
        which = f'{printable(os.path.basename(film.path))}: ' if len(films) > 1 else ''
        sentences += [which + sentence for sentence in noticed(film)]
        tally.update(film.counts)
    return tally, sentences + about_labels
