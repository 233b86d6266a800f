"""A video becomes a dataset, one frame at a time, in bounded memory:
decode -> resample in time -> crop or pad, average down -> drop what stands still -> write -> find the cuts."""
import functools
import math
import os
from collections import Counter

import h5py
import numpy as np
from tqdm import tqdm

from files import replacing
from recordings.h5file import check_actions, check_starts, create_h5, one_line, refuse

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
