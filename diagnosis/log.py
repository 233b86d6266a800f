"""
A training log of anybody's as columns of numbers. formats.py reads the cells; what is decided here
is which runs stand in a file, which column is the loss, which one counts the steps, and what is odd
about it. What could also be read otherwise is kept, for R24 to say.

In all arrays nan is a blank cell (nothing was logged), inf an infinity of either sign, and -inf a
NaN that was logged.
"""
import math
import os
import re

import numpy as np

from diagnosis import formats
from diagnosis.formats import HELD_OUT, IS_LOSS, MAX_COLUMNS, Unreadable, clean

MAX_CELLS, MAX_RUNS = 2 ** 27, 50

LOSS = ('loss', 'train[_/. ]?loss', '(train|training)[_/. ]closs', '(train|training)[_/. ].*loss',
        '.*/loss', 'closs', 'total.loss', '.*loss.*', '.*(nll|cross.?entropy).*')
# scales of a loss, and the lowest so far, which never rises
NO_LOSS = re.compile('(scale|scaler|weight)s?$|(^|[/_. ])(best|min|lowest)[/_. ]'
                     '|(^|[/_. ])z.?loss$')
# what a trainer itself counts comes first: its checkpoints have the same numbers
COUNTERS = ('(.*[/_. ])?global.?step', '(.*/)?(iter|iters|iterations?|iter.?num|it)',
            '((train|training|trainer|optimizer|optim|gradient)[/_. ])*steps?',
            '(.*/)?(num_)?updates?')
CALLS = '_step'  # of wandb.log, unless the trainer says otherwise
EPOCHS = ('epochs?', '.*[/_. ]epoch')


# -----------------------------------------------------------------------------
# from tables to columns


def tidy(name):
    """A name in a file -> (run, name). W&B's charts name a column RUN - train/loss."""
    name = clean(name.strip().strip('"'), 200).strip()
    run, _, own = name.rpartition(' - ')
    if IS_LOSS.search(run) and not IS_LOSS.search(own):
        return '', name.lower()
    return run.strip(), own.strip().lower()


def name_columns(names, path, odd):
    """(run, name) of each column of a table. Names that are equal are told apart: the second one is
    a run of its own, so that each is judged."""
    keys = [tidy(str(name)) for name in names]
    plain = [name for _, name in keys]
    if {'name', 'state', 'created'} <= set(plain):
        raise Unreadable(path, "found W&B's table of runs, one row for each, expected the history "
                               'of a run: export a chart, or run.history().to_csv()')
    if sorted(plain) == sorted(formats.TENSORBOARD):
        keys[plain.index('value')] = '', formats.tensorboard_tag(path)
    if any(run for run, _ in keys):  # the axis of a chart counts the calls of wandb.log
        keys = [('', CALLS) if key == ('', 'step') else key for key in keys]
    found = []
    for run, name in keys:
        key, n = (run, name), 1
        while key in found:
            n += 1
            key = f'{run or name} ({n})', name
        if n > 1 and not formats.is_range(name):
            odd.setdefault('equal', set()).add(name)
        found.append(key)
    return found


def row_groups(table):
    """[(run, its rows)] where a column names the run of each row, else all rows as one."""
    columns = {str(name).strip().lower(): column for name, column in table.items()}
    for name in [name for name in formats.RUNS if name in columns]:
        texts = np.array([run_name(cell) for cell in columns[name]])
        runs = np.unique(texts)
        if len(runs) <= MAX_RUNS:
            return [(str(run), np.flatnonzero(texts == run)) for run in runs]
    return [('', slice(None))]


def run_name(cell):
    if cell != cell:  # a blank cell is not itself
        return ''
    return clean(f'{cell:.10g}' if isinstance(cell, float) else cell, 60)


def held_out_rows(table):
    """Which rows another column says to be of held-out data, (rows,) of bool, or None if none."""
    for name, column in table.items():
        if str(name).strip().lower() in formats.SPLITS:
            held = np.array([bool(HELD_OUT.fullmatch(str(cell).strip().lower()))
                             for cell in column])
            if held.any():
                return held
    return None


def is_shared(name):
    """Does this column say where a row belongs, of whatever data the row is?"""
    return name == CALLS or any(re.fullmatch(pattern, name) for pattern in (*COUNTERS, *EPOCHS))


class Columns:
    """Collects the columns of a file, {(run, name): floats (rows,)}, from tables one after the
    other."""

    def __init__(self, path):
        self.path, self.rows, self.numbers = path, 0, 0
        self.pieces = {}  # key: [(rows, floats)]
        self.wrong = {}  # key: how many cells are no numbers
        self.marks = {}  # key: the decimal mark
        self.odd = dict(lines=0, cells=0, headers=0)

    def add(self, table):
        table = formats.widened(table)
        keys = name_columns(table.columns, self.path, self.odd)
        marks = self.decimal_marks(keys, table)
        held = held_out_rows(table)
        for row_run, at in row_groups(table):
            for (run, name), mark, (_, column) in zip(keys, marks, table.items()):
                key = run or row_run, name
                if formats.is_range(name):
                    continue
                if held is None or is_shared(name) or HELD_OUT.fullmatch(name):
                    self.add_column(key, column.iloc[at], mark, at)
                    continue
                # `loss` in rows of training and of validation is two columns
                rows = np.arange(len(table))[at]
                trained, tested = rows[~held[rows]], rows[held[rows]]
                self.add_column(key, column.iloc[trained], mark, trained)
                self.add_column((key[0], f'val/{name}'), column.iloc[tested], mark, tested)
        self.rows += len(table)

    def add_column(self, key, column, mark, at):
        x, wrong = formats.to_floats(column, mark)
        self.wrong[key] = self.wrong.get(key, 0) + wrong
        # no blanks: a small file can be a huge table
        some = np.flatnonzero(~np.isnan(x))
        # the runs of a wide file share the room, and a loss of the last one must find some
        room = MAX_COLUMNS * MAX_RUNS if formats.matters(key[1]) else MAX_COLUMNS
        if not len(some) or key not in self.pieces and len(self.pieces) >= room:
            return
        rows = self.rows + (some if isinstance(at, slice) else at[some])
        if isinstance(at, slice) and len(some) == len(x):
            rows = slice(self.rows, self.rows + len(x))
        self.pieces.setdefault(key, []).append((rows, x[some]))
        self.numbers += len(some)
        if self.numbers > MAX_CELLS:
            raise Unreadable(self.path, f'found more than {MAX_CELLS} numbers, expected fewer')

    def decimal_marks(self, keys, table):
        """The mark of each column: its own cells tell it, or those of the other columns do."""
        found, unclear = formats.decimal_marks(table)
        for key, mark in zip(keys, found):
            if mark:
                self.marks.setdefault(key, mark)
        known = set(self.marks.values())
        usual = '.'
        if known == {','} or not known and ',' in unclear:
            usual = ','
        if unclear and len(known) != 1 and ',' in unclear:
            self.odd['unclear'] = unclear
        return [self.marks.get(key, usual) for key in keys]

    def joined(self):
        """{(run, name): floats (rows,)} of the fullest columns."""
        columns, sizes = {}, dict.fromkeys(self.wrong, 0)
        for key, pieces in self.pieces.items():
            sizes[key] = sum(len(x) for _, x in pieces)
        bad = {key[1]: (sizes[key], n) for key, n in self.wrong.items() if n > sizes[key]}
        if bad:
            self.odd['unreadable'] = bad  # most of their cells are no numbers
        fullest = sorted(self.pieces, key=sizes.get, reverse=True)
        for key in fullest[:max(8, MAX_CELLS // max(1, self.rows))]:
            self.odd['cells'] += self.wrong[key]
            columns[key] = np.full(self.rows, math.nan)
            for at, x in self.pieces.pop(key):
                columns[key][at] = x
        return columns


def read_runs(path):
    """The numeric columns of a file -> ({run: {name: floats (rows,)}}, what is odd about it: how
    many lines, cells and headers; the rows; and what R24 says). A run without a name is the only
    one. Raises Unreadable."""
    columns = Columns(path)
    for table in formats.tables(path, columns.odd):
        columns.add(table)
    runs, odd = {}, columns.odd
    for (run, name), x in columns.joined().items():
        runs.setdefault(run, {})[name] = x
    if not runs:
        what = formats.foreign_format(path, b'', by_name=True)
        raise Unreadable(path, what or 'found no numbers in it, expected a training log: a line of '
                                       'names such as step,loss,lr, then numbers')
    shared = runs.get('', {})
    judged = {run: {**shared, **own} for run, own in runs.items() if any(map(IS_LOSS.search, own))}
    if len(judged) < 2:
        together = {}
        for own in [*runs.values(), *judged.values()]:
            together |= own
        judged = split_by_prefix(together)
    return judged, dict(odd, rows=columns.rows)


def split_by_prefix(columns):
    """a/loss and b/loss are two runs, unless there is a loss of the whole beside them."""
    losses = [n for n in columns if n.endswith('/loss') and not HELD_OUT.fullmatch(n)]
    runs = [n.removesuffix('/loss') for n in losses]
    if len(runs) < 2 or find_column(columns, 'loss', 'train.?loss'):
        return {'': columns}
    other = {run: tuple(f'{r}/' for r in runs if r != run) for run in runs}
    return {run: {n: x for n, x in columns.items() if not n.startswith(other[run])}
            for run in runs}


# -----------------------------------------------------------------------------
# from columns to a log


def find_column(names, *patterns):
    """The name that fits the earliest of the patterns, whatever the order of the names, or None."""
    for pattern in patterns:
        found = [n for n in names if re.fullmatch(pattern, n)]
        if found:
            return min(found, key=lambda n: (len(n), n))
    return None


def find_loss(names):
    return find_column([n for n in names if not NO_LOSS.search(n)], *LOSS)


class Log:
    """columns; step and loss (rows,), blank where not logged; s and x: the steps and values of the
    losses that are finite. The rows are in the order of their steps; order says what was not.
    names: the columns of the training, or of a held-out set if there is nothing else (held_out).
    counted: what there is to say about the counter of steps. diagnosis.figures adds what several
    rules need."""

    def __init__(self, path, columns, odd, run=''):
        self.path, self.run, self.name = path, run, clean(run or os.path.basename(path), 60)
        self.odd, self.checkpoints, self.status, self.given = odd, [], {}, False
        self.names = [n for n in columns if not HELD_OUT.fullmatch(n)]
        loss = find_loss(self.names)
        self.held_out = loss is None
        if self.held_out:
            self.names, loss = list(columns), find_loss(columns)
        if loss is None:
            raise Unreadable(path, 'found no column of a training loss among '
                             f'{clean(", ".join(columns))}, expected loss, train/loss or the like')
        rows = np.isfinite(columns[loss]).sum()
        self.other_losses = [n for n in self.names if n != loss and IS_LOSS.search(n)
                             and np.isfinite(columns[n]).sum() > rows / 2]
        step, self.counted = find_counter(columns, self.names, loss)
        self.by_epoch = False
        if step is None:
            step = find_column(self.names, *EPOCHS)
            self.by_epoch = bool(step) and counts_epochs(columns[step], columns[loss])
            step = step if self.by_epoch else None
        self.step_name, self.loss_name = step, loss
        self.unit = 'step' if step else 'row'
        if self.by_epoch:
            self.unit = 'epoch'
        steps = columns[step] if step else np.arange(len(columns[loss]), dtype=float)
        keep, self.order = in_order(steps, columns[loss])
        self.step = steps[keep]
        self.columns = {name: x[keep] for name, x in columns.items()}
        self.loss = self.columns[loss]
        finite = np.isfinite(self.loss)
        self.s, self.x = self.step[finite], self.loss[finite]

    @property
    def place(self):
        return f'{self.path}: {self.run}' if self.run else self.path

    def at(self, step):
        return f'{self.unit} {step:.10g}'

    def term(self, name):
        """The column of a term of the loss: closs is train_closs in many a log; None if it is not
        there."""
        prefix = r'(.*[/. ]|train_|training_|val_|valid_|dev_|eval_|test_)?'
        return find_column(self.names, re.escape(name), prefix + re.escape(name))


def read_logs(path):
    """The logs in a file, one for each run, or Unreadable."""
    (runs, odd), logs, fault = read_runs(path), [], None
    for run, columns in runs.items():
        try:
            logs.append(Log(path, columns, odd, run))
        except Unreadable as e:
            fault = e
    if not logs:
        raise fault
    return logs


def find_counter(columns, names, loss):
    """-> (the column that counts the steps or None; what there is to say about it: `calls`, `other`
    (name, its last value, that of the chosen one); `sparse` (name, rows, of); `restarts` name)."""
    logged, said = ~np.isnan(columns[loss]), {}
    own = []
    for pattern in COUNTERS:
        own += sorted(n for n in names if n != CALLS and n not in own and re.fullmatch(pattern, n))
    epochs = find_column(names, *EPOCHS)
    if epochs:
        epochs = columns[epochs][logged]
        again = [n for n in own if restarts(columns[n][logged], epochs)]
        said.update({'restarts': n for n in again})
        own = [n for n in own if n not in again]
    rows = {n: int(np.isfinite(columns[n][logged]).sum()) for n in own}
    full = [n for n in own if rows[n] >= max(1, logged.sum() / 2)]
    # one that only rows of evaluations have is no counter of the loss, but it is there
    sparse = [n for n in own if n not in full and np.isfinite(columns[n]).sum() > 1]
    if sparse and not full:
        said['sparse'] = sparse[0], rows[sparse[0]], int(logged.sum())
    others = full[1:]
    if CALLS in columns:
        others = [*others, CALLS]
    step = full[0] if full else None
    if step:
        said.pop('restarts', None)
        for n in others:
            both = np.isfinite(columns[n]) & np.isfinite(columns[step]) & logged
            a, b = columns[n][both], columns[step][both]
            if len(a) and (np.abs(a - b) > 1).mean() > 0.01:
                said.setdefault('calls' if n == CALLS else 'other', (n, a[-1], b[-1]))
    elif CALLS in columns:
        step = CALLS
    return step, said


def restarts(steps, epochs):
    """Does this counter start again in every epoch?"""
    good = np.isfinite(steps) & np.isfinite(epochs)
    rests = np.diff(steps[good]) <= 0
    return rests.any() and (np.diff(epochs[good])[rests] > 0).mean() > 0.9


def counts_epochs(epochs, loss):
    """Is each row the mean of an epoch? Not with many rows an epoch, or with parts of epochs."""
    epochs = epochs[np.isfinite(epochs) & ~np.isnan(loss)]
    return len(np.unique(epochs)) > len(epochs) / 2 and (epochs % 1 == 0).all()


def in_order(step, loss):
    """-> (the rows to keep, in the order of their steps; a dict of what R19 has to say about it).

    A step that goes back means a shuffled file, a run that was resumed, or another run appended.
    """
    keep = np.flatnonzero(np.isfinite(step))
    order = dict(no_step=len(step) - len(keep))
    s, x = step[keep], loss[keep]
    back = np.flatnonzero(np.diff(s) < 0) + 1
    if not len(back):
        return keep if order['no_step'] else slice(None), order
    if (np.diff(s[~np.isnan(x)]) >= 0).all():  # a long table, with a block of rows for each tag
        return keep[np.argsort(s, kind='stable')], order
    if is_shuffled(s[~np.isnan(x)]):
        order['unsorted'] = len(back)
        return keep[np.argsort(s, kind='stable')], order
    order['n_back'] = len(back)
    order['back'] = [(float(s[i - 1]), float(s[i])) for i in back[:5]]
    starts = back[s[back] <= s.min() + 0.01 * (s.max() - s.min())]
    if len(starts):  # back to the start: another run. The last one of some length is judged
        bounds = [0, *starts, len(s)]
        sizes = np.diff(bounds)
        run = max(i for i, n in enumerate(sizes) if n >= 0.1 * len(s) or n == sizes.max())
        order['runs'], order['run'] = [int(n) for n in sizes[:20]], run
        keep = keep[bounds[run]:bounds[run + 1]]
        s, x = step[keep], loss[keep]
    if (np.diff(s) < 0).sum() > len(s) // 10:
        return keep[np.argsort(s, kind='stable')], order
    # what a resumed run did again replaces the first try
    lowest_after = np.append(np.minimum.accumulate(s[::-1])[::-1][1:], math.inf)
    good = (s < lowest_after) | (s == lowest_after) & (np.diff(s, append=math.inf) == 0)
    order['overwritten'] = int((~good).sum())
    order['ratio'] = second_try(s, x, good)
    return keep[good], order


def is_shuffled(s):
    """Is each step there once, and the file only out of order? A run that was resumed overlaps with
    its first try instead."""
    if len(np.unique(s)) < len(s):
        return False
    back = np.flatnonzero(np.diff(s) < 0) + 1
    if len(back) > len(s) / 10:
        return True
    parts = sorted((part[0], part[-1]) for part in np.split(s, back) if len(part))
    return all(a[1] < b[0] for a, b in zip(parts, parts[1:]))


def second_try(s, x, good):
    """The loss of the rows that were done again over that of the first try, 1 where there are too
    few to tell, or where the first try rose and was abandoned for it."""
    first, kept = ~good & np.isfinite(x), good & np.isfinite(x)
    if first.sum() < 5 or kept.sum() < 5 or min(x[first].min(), x[kept].min()) <= 0:
        return 1.0
    ratio = float(np.median(np.interp(s[first], s[kept], x[kept]) / x[first]))
    before = x[kept & (s < s[first].min())][-int(first.sum()):]
    abandoned = len(before) and np.median(x[first]) > 1.3 * np.median(before)
    return 1.0 if abandoned and ratio < 1 else ratio
