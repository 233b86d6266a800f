"""
The labels of a video: what was done at each of its frames, and perhaps where episodes begin.
"""
import os

import numpy as np

from recordings.h5file import (check_actions, check_names, check_starts, name_combinations,
                               one_line, refuse)

# -----------------------------------------------------------------------------
# read


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


# -----------------------------------------------------------------------------
# check, join


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


# -----------------------------------------------------------------------------
# in time


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
