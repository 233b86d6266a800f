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
from recordings.borders import cut_out
from recordings.clock import resample
from recordings.film import Film, display_matrix, noticed, one_after_the_other, rgb
from recordings.h5file import (check_actions, check_names, check_starts, check_written, create_h5,
                               name_combinations, one_line, printable, refuse)

STILL_SECONDS = 2  # longer than this without change is a pause screen or a menu, not play
STILL_LEVELS = 6, 16  # of 255: changes of a pixel that may be noise, if there is none and at most
NOISE_EVERY = 16  # frames: how often noise is measured
KEEP_STILL = 'where waiting is part of the game: --keep_still=True'
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
    used = weight.any(0)  # of whole pixels the last one has no part
    return np.minimum(pixel, n - 1)[:, used], weight[:, used].astype(np.float32)


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


def resize_all(frames, width, height, pad, crop=None):
    """(index, (av frame, its film)), ... -> (index, picture (height,width,3) uint8), ..."""
    for index, (frame, film) in frames:
        matrix = display_matrix(frame)
        aspect = frame.opaque if matrix[0] else 1 / frame.opaque
        picture = rgb(frame, matrix, film.counts)
        film.shape = film.shape or picture.shape[:2]
        if crop:
            picture = cut_out(picture, crop, film.shape, film.path)
        else:
            film.borders.look(picture)
        yield index, resize_by_area(picture, width, height, pad, aspect)


# -----------------------------------------------------------------------------
# stills and cuts


def noise_between(a, b):
    """Levels by which two pictures (h,w,3) differ where nothing moves: the standard deviation of
    the difference inside blocks of 4x4 pixels, of which a quarter has less. What is of one colour
    may move in between, it has none."""
    h, w = a.shape[0] // 4, a.shape[1] // 4
    d = (a[:4 * h, :4 * w].astype(np.float32) - b[:4 * h, :4 * w]).reshape(h, 4, w, 4, 3)
    return np.quantile(d.std((1, 3)).max(-1), 0.25)


def still_levels(noise):
    """How many levels a pixel may change while nothing does. noise: of some frames. At the edges of
    what is in the picture codecs change some 24 times as much as elsewhere (measured, H.264)."""
    least, most = STILL_LEVELS
    return min(most, least + 24 * np.median(noise)) if noise else least


def drop_stills(frames, limit, tally):
    """(index, picture), ... -> (index, picture, after), ... without the stretches of more than
    `limit` frames (None: of none) that stand still (all but their first frame) or are of one colour
    (all of them). tally['still'] and tally['blank'] count what is dropped.

    after: 'still' where frames before it were dropped, 'blank' where blank ones were dropped or
    shown, else ''.
    """
    first, first_blank = None, False  # of the stretch to which the last frame belongs
    held, dropping = [], False  # its frames that are not yet passed on; is it too long?
    noise, before = [], None
    for n, (index, picture) in enumerate(frames):
        if n % NOISE_EVERY == 1:
            noise.append(noise_between(before, picture))
        before, levels = picture, still_levels(noise)
        colour_range = picture.max(0).max(0) - picture.min(0).min(0)
        blank = (colour_range <= levels).all()
        goes_on = first is not None and blank == first_blank
        if goes_on and not blank:
            goes_on = np.abs(picture - first).max() <= levels
        if goes_on:
            held.append((index, picture, ''))
        else:
            yield from held
            after = 'blank' if first_blank else 'still' if dropping else ''
            first, first_blank = picture.astype(np.int16), blank
            held, dropping = [], False
            if blank:
                held.append((index, picture, after))
            else:
                yield index, picture, after
        if limit is None:
            yield from held
            held = []
        if dropping or limit is not None and len(held) > limit:
            tally['blank' if blank else 'still'] += len(held)
            held, dropping = [], True
    yield from held


def colours(picture):
    """Shares (64,) of the pixels in each of 4x4x4 colours."""
    r, g, b = np.moveaxis(picture >> 6, -1, 0)
    return np.bincount((r * 16 + g * 4 + b).ravel(), minlength=64) / r.size


def find_cuts(change, shift, waited=False):
    """Where does another scene begin? (N,) bool.

    It looks at each frame against its predecessor: change (N,) is the mean absolute difference in
    levels of 255, shift (N,) the share of the pixels whose colour class is replaced. waited (N,):
    time passed in between, in which nothing moved.

    Scrolling changes every pixel but hardly which colours there are; a flash of a few sprites is
    the other way round. Only a cut makes the product large (on our scrolling test recording, 13
    cuts: 5.2 and more; all else: 1.7 at most). It must also stand out from the second around it, so
    that a fade or a game that flickers all the time is not cut to pieces, unless it was still
    before. A false cut costs a few windows, a missed one teaches teleporting. A change of room at
    once is a cut, too.
    """
    score = change * shift
    around = np.lib.stride_tricks.sliding_window_view(np.pad(score, 8, mode='edge'), 17)
    stands_out = score > CUT_RATIO * np.median(around, 1)
    return (score > CUT_SCORE) & (waited | stands_out)


# -----------------------------------------------------------------------------
# import


def read_labels(path):
    """The arrays of a label file: actions, and perhaps episode_starts and action_names."""
    keys = 'actions', 'episode_starts', 'action_names'
    expected = ('an .npz with actions, one per frame of the video, '
                'and perhaps episode_starts, action_names')
    try:
        with np.load(path, allow_pickle=False) as z:
            labels = {key: z[key] for key in keys if key in z}
    except Exception as e:  # zip, zlib, pickle and file errors of every kind
        refuse(path, f'labels that cannot be read ({one_line(e)})', expected,
               'write them with np.savez')
    if 'actions' not in labels:
        refuse(path, 'no "actions"', expected, 'write them with np.savez')
    return labels


def check_labels(labels, path):
    """What read_labels found, checked and as data.load would have it."""
    labels['actions'], table = check_actions(labels['actions'], None, path)
    names = labels.pop('action_names', None)
    if names is not None:
        names = [str(name) for name in np.atleast_1d(names)]
    names = name_combinations(names, table)
    if names is not None:
        check_names(names, labels['actions'], path)
        labels['action_names'] = names
    if 'episode_starts' in labels:
        n = len(labels['actions'])
        labels['episode_starts'] = check_starts(labels['episode_starts'], n, path)
    return labels


def append(d, pictures):
    """Appends them to the growing h5 dataset d."""
    n = len(d)
    d.resize(n + len(pictures), 0)
    d[n:] = np.stack(pictures)


def write_frames(d, frames):
    """Appends (index, picture, after), ... to the growing h5 dataset d, a chunk at a time.

    Returns arrays, one entry a frame: its index; what it comes after; its change and its shift, as
    find_cuts wants them.
    """
    found, block = [], []
    for index, picture, after in frames:
        levels, shares = picture.astype(np.int16), colours(picture)
        if not found:
            levels_before, shares_before = levels, shares
        found.append((index, after, np.abs(levels - levels_before).mean(),
                      np.abs(shares - shares_before).sum() / 2))
        levels_before, shares_before = levels, shares
        block.append(picture)
        if len(block) == d.chunks[0]:
            append(d, block)
            block = []
    if block:
        append(d, block)
    return map(np.array, zip(*found)) if found else [np.zeros(0)] * 4


def actions_while_shown(actions, indices, longest, no_op):
    """What was done while each new frame was shown, that of source frame indices[k] and what comes
    before the next one, at most `longest` frames; and how many short ones would else be lost.

    Of whole numbers it is the frame's own; where that is no_op (None: never) the first other one,
    so that a tap between two frames is kept. Of floats the mean.
    """
    ends = np.minimum(np.append(indices[1:], len(actions)), indices + longest)
    ends = np.maximum(ends, indices + 1)
    if actions.ndim == 2:
        sums = np.cumsum(np.vstack([np.zeros_like(actions[:1]), actions]), 0, np.float64)
        return ((sums[ends] - sums[indices]) / (ends - indices)[:, None]).astype(np.float32), 0
    found, n_taps = actions[indices], 0
    if no_op is None:
        return found, 0
    for k in np.flatnonzero(found == no_op):
        others = actions[indices[k]:ends[k]]
        others = others[others != no_op]
        if len(others):
            found[k], n_taps = others[0], n_taps + 1
    return found, n_taps


def labels_of(labels, videos):
    """What is known of films in a row, as of one: from one file, or with 'beside' from a file
    beside each, a.npz for a.mp4. And (path, number of actions) of each file. Raises DataError."""
    if not labels:
        return {}, []
    paths = [labels]
    if labels == 'beside':
        paths = [os.path.splitext(video)[0] + '.npz' for video in videos]
    found = [read_labels(path) for path in paths]
    first = found[0]
    for path, known in zip(paths, found):
        check_labels(dict(known), path)
        if set(known) != set(first) or known['actions'].shape[1:] != first['actions'].shape[1:]:
            refuse(path, f'{", ".join(known)}', f'{", ".join(first)}, as in {paths[0]}',
                   'label all films in one way')
        if not np.array_equal(known.get('action_names', ()), first.get('action_names', ())):
            refuse(path, 'other action_names', f'those of {paths[0]}',
                   'number the actions in one way')
    counts = [len(known['actions']) for known in found]
    before = np.cumsum(counts) - counts
    # numbered together, or one combination of buttons would be another number in another film
    together = dict(first, actions=np.concatenate([known['actions'] for known in found]))
    if 'episode_starts' in first:
        together['episode_starts'] = np.concatenate(
            [known['episode_starts'] + n for known, n in zip(found, before)])
    return check_labels(together, paths[0]), list(zip(paths, counts))


def check_counts(given, files, counts):
    """Raises DataError unless the files have an action for every source frame of the films."""
    if len(files) == 1:
        check_actions(given['actions'], counts.sum(), files[0][0])
        return
    for (path, n_actions), n in zip(files, counts):
        check_actions(given['actions'][:n_actions], n, path)


def import_video(videos, path, width=128, height=128, fps=None, labels=None, pad=False,
                 compression='gzip', source_fps=None, stream=None, no_op=None, keep_still=False,
                 crop=None):
    """Writes the h5 file `path` from anything PyAV decodes; returns a Counter of frames: source,
    still, blank, and what else was noticed, sentences. Raises DataError, DiskError; then `path` is
    what it was.

    videos: one, or a list, each with episodes of its own; they, source_fps, stream: see Film. fps:
    of the dataset; else that of the first film. labels: see labels_of, read_labels; no_op: the
    action that does nothing, see actions_while_shown. crop: see cut_out. When labels bring
    episode_starts they are trusted: those are the episodes, nothing is dropped and no cut is looked
    for. keep_still: nothing is dropped either.
    """
    videos = [videos] if isinstance(videos, (str, os.PathLike)) else list(videos)
    given, label_files = labels_of(labels, videos)
    films = [Film(video, source_fps, stream) for video in videos]
    fps = fps or films[0].clock.rate
    tally, n_taps, trusted = Counter(), 0, 'episode_starts' in given
    frames = resample(one_after_the_other(films), fps,
                      slack=min(max(film.clock.tick for film in films) + 1e-6, 0.25 / fps))
    total = round(sum(len(film.clock.seconds) * film.clock.step for film in films) * fps)
    frames = tqdm(frames, desc='importing', unit=' frames', disable=None, total=total)
    frames = resize_all(frames, width, height, pad, crop)
    frames = drop_stills(frames, None if keep_still or trusted else STILL_SECONDS * fps, tally)
    name = printable(os.path.basename(videos[0]))
    if len(videos) > 1:
        name += f' and {len(videos) - 1} more'
    with replacing(path) as tmp:
        with h5py.File(tmp, 'w') as f:
            d = create_h5(f, height, width, compression, name, fps, given.get('action_names'))
            indices, after, change, shift = write_frames(d, frames)
            counts = np.array([film.counts['source'] for film in films])
            before = counts.cumsum() - counts  # source frames of the films before each
            dropped = tally['still'] + tally['blank']
            if len(indices) < 2:
                refuse(videos[0], f'{len(indices)} frames of play: {tally["still"]} stood still for '
                       f'more than {STILL_SECONDS} s, {tally["blank"]} are of one colour',
                       'at least 2', KEEP_STILL if dropped else 'look at what was recorded')
            begins = np.concatenate([np.array(film.begins) + n for film, n in zip(films, before)])
            cuts = find_cuts(change, shift, after == 'still') | (after == 'blank')
            if trusted:
                begins, cuts = np.union1d(given['episode_starts'], before), cuts & False
            starts = np.union1d(np.searchsorted(indices, begins), np.flatnonzero(cuts))
            starts = starts[starts < len(indices)]
            if given:
                check_counts(given, label_files, counts)
                longest = math.ceil(max(film.clock.rate for film in films) / fps - 1e-6)
                f['actions'], n_taps = actions_while_shown(given['actions'], indices, longest,
                                                           no_op)
            f['episode_starts'] = starts
        check_written(tmp, path)
    sentences = []
    if dropped > len(indices):
        sentences.append(f'{dropped:,} of {dropped + len(indices):,} frames were dropped. '
                         + KEEP_STILL[0].upper() + KEEP_STILL[1:])
    for film in films:
        which = f'{printable(os.path.basename(film.path))}: ' if len(films) > 1 else ''
        sentences += [which + sentence for sentence in noticed(film)]
        tally.update(film.counts)
    if n_taps:
        sentences.append(f'{n_taps:,} actions lie between two frames: each is that of the frame '
                         f'before it, whose own is {no_op} (--no_op)')
    return tally, sentences
