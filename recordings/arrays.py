"""
What the arrays beside the frames mean, in a dataset or in a file of labels: what was done, what it
is called, where episodes begin. People store them in many ways. What has one meaning is taken, the
rest is refused with DataError.
"""
import contextlib
import functools

import numpy as np

from recordings.refusal import DataError, refuse

MAX_ACTIONS = 2 ** 16  # numbers from here on are masks
MANY_COMBINATIONS = 512  # more, or more than a quarter of the frames, are more than a model learns

# -----------------------------------------------------------------------------
# actions


def check_actions(actions, n, path):
    """Actions as people have them -> int64 (N,) or float32 (N,A), and what the K numbers were: the
    buttons (K,A) of a combination, or a mask (K,), or None. n: frames, or None if not known yet.

    int (N,) and float (N,A) are what they are. Where there is one meaning it is taken: (N,1) is
    (N,), whole floats and booleans are whole numbers, rows with a single 1 are one-hot, other rows
    of 0 and 1 are buttons, numbered by the combinations that occur; so are numbers from MAX_ACTIONS
    on, which are masks of buttons. Raises DataError.
    """
    expected = f'int ({n or "N"},) or float ({n or "N"},A), one per frame'
    if actions.ndim not in (1, 2) or actions.dtype.kind not in 'iufb' or 0 in actions.shape:
        refuse(path, f'actions {actions.dtype} {actions.shape}', expected, cure_of_kind(actions))
    if n is not None:
        check_count(len(actions), n, path)
    actions = actions[...]
    if actions.ndim == 2 and actions.shape[1] == 1 and actions.dtype.kind != 'f':
        actions = actions[:, 0]
    check_values(actions, expected, path)
    if actions.ndim == 1:
        if actions.max() >= MAX_ACTIONS:
            masks, numbers = np.unique(actions, return_inverse=True)
            return numbers.astype(np.int64), masks
        return actions.astype(np.int64), None
    of_bits = ((actions == 0) | (actions == 1)).all()
    if of_bits and (actions.sum(1) == 1).all():
        return actions.argmax(1).astype(np.int64), None
    if of_bits and actions.dtype.kind != 'f':
        table, numbers = np.unique(actions.astype(bool), axis=0, return_inverse=True)
        return numbers.reshape(-1).astype(np.int64), table
    if actions.dtype.kind != 'f':
        refuse(path, f'actions {actions.dtype} {actions.shape}', expected, 'number the rows that '
               'occur: actions = np.unique(actions, axis=0, return_inverse=True)[1]; if they are '
               'amounts, as of a mouse: actions.astype("float32")')
    if abs(actions).max() > np.finfo(np.float32).max:
        refuse(path, f'actions up to {abs(actions).max():.3g}, beyond float32', expected,
               'divide them: actions / abs(actions).max()')
    return actions.astype(np.float32), None


def cure_of_kind(actions):
    """How an array of another kind becomes actions."""
    if actions.dtype.names:
        return ('a column of numbers for each field: actions = np.column_stack([actions[name] '
                'for name in actions.dtype.names]).astype("float32")')
    if actions.dtype.kind in 'OSU' and actions.ndim < 2:
        return 'names, one a frame, as np.array(names, "S")'
    if actions.ndim == 0 and actions.dtype.kind in 'iufb':
        return 'if it was held all the time: np.full(len(frames), actions)'
    if actions.ndim > 2 and 0 not in actions.shape:
        return 'one row a frame: actions.reshape(len(actions), -1)'
    return 'mend or leave out "actions"'


def check_count(n_actions, n, path):
    """Raises DataError unless there is an action for each of n frames."""
    if n_actions == n:
        return
    cure = {-1: 'the last frame has none: np.append(actions, actions[-1:], 0)',
            1: 'what the last one led to was not recorded: actions[:-1]; if the first is from '
               'before the recording: actions[1:]'}
    refuse(path, f'{n_actions} actions for {n} frames', f'int ({n},) or float ({n},A), one per '
           'frame', cure.get(n_actions - n, 'mend or leave out "actions"'))


def check_values(actions, expected, path):
    """Raises DataError for numbers (N,) or (N,A) that are no actions, with what makes them some."""
    n = len(actions)
    wrong = ~np.isfinite(actions).reshape(n, -1).all(1)
    if wrong.any():
        refuse(path, f'actions that are not finite in {wrong.sum()} of {n} frames, the first is '
               f'{wrong.argmax()}', expected,
               'if they mean none: np.nan_to_num(actions, posinf=0, neginf=0)')
    if actions.ndim == 2:
        return
    if actions.dtype.kind == 'f' and (actions != np.round(actions)).any():
        refuse(path, f'actions {actions.dtype} {actions.shape} with fractions', expected,
               'one number a frame is (N,1): actions[:, None]')
    wrong = actions < 0
    if not wrong.any():
        return
    cure = ('number those that occur: np.unique(actions, return_inverse=True)[1]; if they are '
            'amounts: actions[:, None].astype("float32")')
    if wrong.sum() == wrong[0]:
        cure = ('if actions[t] led to frame t: np.append(actions[1:], actions[-1:]); if it means '
                'that nothing was done: np.maximum(actions, 0)')
    refuse(path, f'actions that are negative in {wrong.sum()} of {n} frames, the first is '
           f'{wrong.argmax()} ({actions[wrong.argmax()]})', 'action numbers from 0 on', cure)


def noticed_numbers(stored, numbers, table):
    """Sentences: how check_actions read an array, and whether its combinations occur too rarely."""
    sentences = []
    if stored.ndim != numbers.ndim or table is not None:
        sentences.append(f'actions {stored.dtype} {stored.shape} are read as numbers from 0 to '
                         f'{numbers.max()}')
    if table is not None:
        sentences += noticed_rare(numbers)
    return sentences


def noticed_rare(numbers):
    """A sentence if numbers (N,) that stand for combinations are too many to be learned."""
    counts = np.bincount(numbers)
    if len(counts) <= min(MANY_COMBINATIONS, len(numbers) / 4):
        return []
    return [f'{len(counts):,} different actions in {len(numbers):,} frames, {(counts == 1).sum():,}'
            ' of them only once: too rare to be learned; leave out buttons that matter little']


def number_names(actions):
    """Names of what was done (N,), text or bytes -> numbers int64 (N,) and the names, sorted."""
    names, numbers = np.unique(actions, return_inverse=True)
    return numbers.astype(np.int64), [to_text(name) for name in names]


def name_combinations(names, table):
    """The names of what check_actions has numbered, (K,): of buttons with names (A,) 'up+jump',
    without names 'b0+b4', of masks themselves. Others are left."""
    if table is not None and table.ndim == 1 and len(names or ()) != len(table):
        return [str(mask) for mask in table]
    if table is None or table.ndim == 1:
        return names
    if names is None:
        names = [f'b{i}' for i in range(table.shape[1])]
    if len(names) != table.shape[1]:
        return names
    return ['+'.join(name for name, on in zip(names, row) if on) or 'none' for row in table]


def check_names(names, actions, path):
    needed = actions.shape[1] if actions.ndim == 2 else int(actions.max()) + 1
    if len(names) < needed:
        refuse(path, f'{len(names)} action_names', f'{needed}, one per action',
               f'name actions {len(names)} to {needed - 1} too, or leave out "action_names"')


def check_starts(starts, n, path):
    """-> int64 (E,), if they are sorted, the first is 0 and all are below n."""
    expected = f'whole numbers, first 0, increasing, below {n}'
    cure = 'mend or leave out "episode_starts"'
    if starts.ndim != 1 or starts.dtype.kind not in 'iu' or not 0 < len(starts) <= n:
        refuse(path, f'episode_starts {starts.dtype} {starts.shape}', expected, cure)
    starts = starts[...].astype(np.int64)
    if starts[0] != 0 or (np.diff(starts) <= 0).any() or starts[-1] >= n:
        if (np.diff(starts) > 0).all() and 0 < starts[0] and starts[-1] < n:
            cure = 'what comes before the first is an episode, too: np.append(0, episode_starts)'
        refuse(path, f'episode_starts {starts[:4].tolist()} ... {starts[-1]}', expected, cure)
    return starts


def starts_as_meant(x, n):
    """episode_starts as people write them -> what check_starts wants if they mean that, and
    sentences about it: whole floats, a flag for each frame, the number of frames at the end."""
    if x.ndim == 1 and x.dtype.kind == 'f' and (x == np.round(x)).all() and (abs(x) <= n).all():
        x = x.astype(np.int64)
    is_flags = x.dtype == bool or x.dtype.kind in 'iu' and n > 2 and ((x == 0) | (x == 1)).all()
    if is_flags and x.shape == (n,):
        x = np.flatnonzero(x)
    if x.ndim == 1 and x.dtype.kind in 'iu' and len(x) > 1 and x[-1] == n:
        return x[:-1], [f'the last of episode_starts, {n:,}, is the number of frames: left out']
    return x, []


# -----------------------------------------------------------------------------
# where episodes begin, as other projects say it


def starts_from_flags(x, n):
    """1 at the last frame of an episode."""
    if x.shape == (n,) and ((x == 0) | (x == 1)).all():
        return np.append(0, np.flatnonzero(x[:-1]) + 1)


def starts_from_ends(x, n):
    """The last frames, or those after them."""
    if x.ndim == 1 and len(x) and x[-1] in (n - 1, n):
        return np.append(0, x[:-1] + (x[-1] == n - 1))


def starts_from_lengths(x, n):
    if x.ndim == 1 and len(x) and x.sum() == n:
        return np.append(0, np.cumsum(x)[:-1])


def starts_from_starts(x, n):
    if x.shape == (n,) and n > 1 and ((x == 0) | (x == 1)).all():
        return np.flatnonzero(x)
    return x


def starts_from_episodes(x, n):
    """The number of its episode, of each frame."""
    if x.shape == (n,):
        return np.append(0, np.flatnonzero(x[1:] != x[:-1]) + 1)


FLAGS = ('dones', 'done', 'terminals', 'terminal', 'terminations', 'terminated', 'timeouts',
         'timeout', 'truncations', 'truncated')
OTHER_NAMES = {**dict.fromkeys(FLAGS, starts_from_flags),
               **dict.fromkeys(('episode_ends', 'ends'), starts_from_ends),
               **dict.fromkeys(('ep_len', 'ep_lens', 'episode_lengths', 'lengths'),
                               starts_from_lengths),
               **dict.fromkeys(('episode_start', 'starts', 'is_first'), starts_from_starts),
               **dict.fromkeys(('episode', 'episode_id', 'episode_index'), starts_from_episodes)}


def find_starts(arrays, n, path):
    """Episode starts (E,) among arrays by name, as we or other projects write them, or None; and
    sentences about it. Raises DataError only for an `episode_starts` that cannot be meant."""
    if 'episode_starts' in arrays:
        starts, sentences = starts_as_meant(arrays['episode_starts'], n)
        return check_starts(starts, n, path), sentences
    found, sentences = {}, []
    for name, convert in OTHER_NAMES.items():
        if name not in arrays:
            continue
        x = arrays[name]
        try:
            starts, _ = starts_as_meant(np.asarray(convert(x, n)), n)
            found[name] = check_starts(starts, n, path)
        except (DataError, TypeError, ValueError):
            sentences.append(f'ignored: "{name}" {x.dtype} {x.shape}; windows may cross what it '
                             'marks. Write episode_starts, the first frame of each episode')
    if not found:
        return None, sentences
    # flags come in parts: an episode ends where it is a terminal or a timeout
    kind = OTHER_NAMES[next(iter(found))]
    used = [name for name in found if OTHER_NAMES[name] is kind]
    starts = functools.reduce(np.union1d, [found[name] for name in used])
    names, says = ' and '.join(f'"{name}"' for name in used), 'say' if used[1:] else 'says'
    sentences.append(f'{names} {says} where {len(starts):,} episodes begin')
    sentences += [f'ignored: "{name}", which says that others begin' for name in found
                  if name not in used and not np.array_equal(found[name], starts)]
    return starts, sentences


def to_text(attribute):
    if not isinstance(attribute, bytes):
        return str(attribute)
    with contextlib.suppress(UnicodeDecodeError):
        return attribute.decode()
    return attribute.decode('latin-1')
