"""
A video becomes a dataset, one frame at a time, in bounded memory:
decode -> resample in time -> crop or pad, average down -> drop what stands still -> write -> find
the cuts.
"""
import functools
import math
import os
from array import array
from collections import Counter

import h5py
import numpy as np
from tqdm import tqdm

from files import printable, replacing
from recordings.borders import cut_out
from recordings.clock import resample
from recordings.film import Film, display_matrix, noticed, one_after_the_other, rgb
from recordings.h5file import check_written, create_h5, stored
from recordings.labels import actions_while_shown, check_counts, labels_of, of_decoded
from recordings.refusal import refuse

STILL_SECONDS = 2  # longer than this without change is a pause screen or a menu, not play
STILL_LEVELS = 5, 10  # of 255: changes of 4x4 pixels that may be noise: in clean films, at most
NOISE_EVERY = 16  # frames: how often noise is measured
KEEP_STILL = 'where waiting is part of the game: --keep_still=True'
MAX_NOTICED = 12  # sentences
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
        aspect = frame.opaque or 1.0  # FFmpeg leaves none with some pictures
        aspect = aspect if matrix[0] else 1 / aspect
        picture = rgb(frame, matrix, film.counts)
        film.shape = film.shape or picture.shape[:2]
        if crop:
            picture = cut_out(picture, crop, film.shape, film.path)
        else:
            film.borders.look(picture)
        yield index, resize_by_area(picture, width, height, pad, aspect)


# -----------------------------------------------------------------------------
# stills and cuts


def blocks(x):
    """(h,w,3) -> the means of blocks of 4x4 pixels. At edges codecs change single pixels by 20
    levels while nothing moves, but these by 4 (measured: H.264, VP8, MPEG-4)."""
    h, w = x.shape[0] // 4, x.shape[1] // 4
    rows = x[:4 * h].reshape(h, 4, -1, 3).sum(1, np.int32)
    return rows[:, :4 * w].reshape(h, w, 4, 3).sum(2) / np.float32(16)


def drop_stills(frames, limit, tally):
    """(index, picture), ... -> (index, picture, after), ... without the stretches of more than
    `limit` frames (None: of none) that stand still (all but their first frame) or are of one colour
    (all of them). tally['still'] and tally['blank'] count what is dropped.

    after: 'still' where frames before it were dropped, 'blank' where blank ones were dropped or
    shown, else ''.
    """
    first, first_blank = None, False  # of the stretch to which the last frame belongs
    held, dropping = [], False  # its frames that are not yet passed on; is it too long?
    least, most = STILL_LEVELS
    noise, before = [], None
    for n, (index, picture) in enumerate(frames):
        now = blocks(picture)
        if n % NOISE_EVERY == 1:  # that of a quiet quarter of the picture: elsewhere things move
            noise.append(np.quantile(np.abs(now - before), 0.25))
        levels = min(most, least + 10 * np.median(noise)) if noise else least
        before = now
        blank = (now.max((0, 1)) - now.min((0, 1)) <= levels).all()
        goes_on = first is not None and blank == first_blank
        if goes_on and not blank:
            goes_on = np.abs(now - first).max() <= levels
        if goes_on:
            held.append((index, picture, ''))
        else:
            yield from held
            after = 'blank' if first_blank else 'still' if dropping else ''
            first, first_blank = now, blank
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


def changes(frames):
    """(index, picture, after), ... -> (picture, index, after, change, shift), ..., the last two as
    find_cuts wants them."""
    levels_before = shares_before = None
    for index, picture, after in frames:
        levels, shares, change, shift = picture.astype(np.int16), colours(picture), 0.0, 0.0
        if levels_before is not None:
            change = np.abs(levels - levels_before).mean()
            shift = np.abs(shares - shares_before).sum() / 2
        yield picture, index, after, change, shift
        levels_before, shares_before = levels, shares


def write_frames(d, frames):
    """Appends (index, picture, after), ... to the growing h5 dataset d. Returns arrays, one entry a
    frame: its index, what it comes after, its change, its shift."""
    found = array('q'), [], array('d'), array('d')  # a two-hour film fits in memory
    for row in stored(d, changes(frames)):
        for column, x in zip(found, row):
            column.append(x)
    return map(np.array, found)


def cuts_in(frames):
    """At which of the frames (N,H,W,3) another scene begins."""
    found = [rest for _, _, _, *rest in changes((0, picture, '') for picture in frames)]
    return np.flatnonzero(find_cuts(*np.array(found).T))


def numbers_in_all(films):
    """Which pictures of the films in a row were decoded (N,), and how many each has with those that
    were not, where their times tell."""
    counts = np.array([film.counts['source'] if film.clock.ticks is None
                       else max(film.n_pictures, film.counts['source']) for film in films])
    numbers = [np.array(film.numbers) + n for film, n in zip(films, counts.cumsum() - counts)]
    return np.concatenate(numbers), counts


def all_noticed(films, tally, n_kept, about_labels):
    """What the user is told of an import, sentences, as many as fit on a screen. tally gets what
    the films counted."""
    dropped, sentences = tally['still'] + tally['blank'], []
    if dropped > n_kept:
        sentences.append(f'{dropped:,} of {dropped + n_kept:,} frames were dropped. '
                         + KEEP_STILL[0].upper() + KEEP_STILL[1:])
    for film in films:
        which = f'{printable(os.path.basename(film.path))}: ' if len(films) > 1 else ''
        sentences += [which + sentence for sentence in noticed(film)]
        tally.update(film.counts)
    sentences += about_labels
    if len(sentences) > MAX_NOTICED:
        more = len(sentences) - MAX_NOTICED
        sentences[MAX_NOTICED:] = [f'and {more} more things of this kind']
    return sentences


def import_video(videos, path, width=128, height=128, fps=None, labels=None, pad=False,
                 compression='gzip', source_fps=None, stream=None, no_op=None, keep_still=False,
                 crop=None):
    """Writes the h5 file `path` from anything PyAV decodes; returns a Counter of frames: source,
    still, blank, and what else was noticed, sentences, which the file keeps. Raises DataError,
    DiskError; then `path` is what it was.

    videos: one, or a list, each with episodes of its own; they, source_fps, stream: see Film. fps:
    of the dataset; else that of the first film. labels: see labels_of, read_labels; no_op: the
    action that does nothing, None: see actions_while_shown. crop: see cut_out. When labels bring
    episode_starts they are trusted: those are the episodes, nothing is dropped and no cut is looked
    for. keep_still: nothing is dropped either.
    """
    videos = [videos] if isinstance(videos, (str, os.PathLike)) else list(videos)
    given, label_files, about_labels = labels_of(labels, videos)
    films = [Film(video, source_fps, stream) for video in videos]
    if given and all(film.pictures or film.declared == film.n_pictures for film in films):
        check_counts(label_files, [film.n_pictures for film in films])  # before an hour's work
    fps = fps or films[0].clock.rate
    tally, trusted = Counter(), 'episode_starts' in given
    trusted |= all(len(film.starts) > 1 for film in films)  # datasets
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
            if len(indices) < 2:
                refuse(videos[0], f'{len(indices)} frames of play: {tally["still"]} stood still '
                       f'for more than {STILL_SECONDS} s, {tally["blank"]} are of one colour',
                       'at least 2', KEEP_STILL if tally else 'look at what was recorded')
            counts = np.array([film.counts['source'] for film in films])
            before = counts.cumsum() - counts  # source frames of the films before each
            if given:
                given = of_decoded(given, *numbers_in_all(films), label_files)
            begins = np.concatenate([np.array(film.begins) + n for film, n in zip(films, before)])
            cuts = find_cuts(change, shift, after == 'still') | (after == 'blank')
            if trusted:
                begins, cuts = given.get('episode_starts', begins), cuts & False
                begins = np.union1d(begins, before)
            starts = np.union1d(np.searchsorted(indices, begins), np.flatnonzero(cuts))
            f['episode_starts'] = starts = starts[starts < len(indices)]
            if given:
                longest = math.ceil(max(film.clock.rate for film in films) / fps - 1e-6)
                f['actions'], about = actions_while_shown(given, indices, starts, longest, no_op)
                about_labels += about
            sentences = all_noticed(films, tally, len(indices), about_labels)
            f.attrs['noticed'] = sentences
        check_written(tmp, path)
    return tally, sentences
