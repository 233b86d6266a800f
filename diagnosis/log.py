"""
A training log of anybody's as columns of numbers. pandas reads the cells; what is decided here is
which column is the loss, which one the step, and what is odd about the file. Logs come from
strangers, so their size, their width, the length of their lines and their names are bounded.

In all arrays nan is a blank cell (nothing was logged), inf an infinity of either sign, and -inf a
NaN that was logged.
"""
import bz2
import csv
import gzip
import io
import json
import lzma
import math
import os
import re
import zlib

import numpy as np

LOGGED_NAN, INFINITE = -math.inf, math.inf

# what is larger is no training log
MAX_COLUMNS, MAX_LINE = 200, 100_000
MAX_BYTES, MAX_CELLS = 2 ** 30, 2 ** 27
PIECE = 2 ** 18  # characters that are read at a time

HELD_OUT = re.compile(r'(val|valid|validation|eval|test|held.?out)([_/. ].*|)')
LOSS = ('loss', 'train[_/. ]?loss', r'(train|training)[_/. ].*loss', '.*/loss', 'closs',
        'total.loss', '.*loss.*')
STEP = ('_step', 'step', 'iter', 'iters', 'iteration', 'global.?step', '.*/global_step', 'steps',
        'update', 'epochs?', '.*/epoch')

BLANK = ['', '-', 'none', 'None', 'NONE', 'null', 'Null', 'NULL']
PACKED = {b'\x1f\x8b': gzip.open, b'BZh': bz2.open, b'\xfd7zXZ': lzma.open}
MAGIC = {b'\x89PNG': 'a PNG picture', b'\xff\xd8\xff': 'a JPEG picture', b'GIF8': 'a GIF picture',
         b'PK\3\4': 'a zip file, or a checkpoint', b'\x89HDF': 'an HDF5 file'}


class Unreadable(Exception):
    """An input cannot be read."""
    def __init__(self, path, reason):
        super().__init__(f'{clean(path)}: {reason}')


def clean(text, width=80):
    """Names come from strangers' files: nothing in them may steer a terminal."""
    text = ''.join(c if c.isprintable() else '?' for c in str(text))
    return text if len(text) <= width else text[:width - 3] + '...'


# -----------------------------------------------------------------------------
# from a file to lines


def chunks(path):
    """Yields lists of the lines of a text file, packed or not, that are not blank. No file is held
    in memory, and no line that never ends. Raises Unreadable."""
    if not os.path.exists(path):
        raise Unreadable(path, 'there is no such file')
    if not os.path.isfile(path):
        raise Unreadable(path, 'found something else than a file')
    try:
        packed, most = os.path.getsize(path), MAX_BYTES
        check_size(path, packed, most)
        with open(path, 'rb') as f:
            start = f.read(6)
        unpack = next((PACKED[magic] for magic in PACKED if start.startswith(magic)), open)
        if unpack is not open:  # a few packed bytes can hold any number of them
            most = min(MAX_BYTES, 2 ** 24 + 100 * packed)
        with unpack(path, 'rb') as f:
            encoding = find_encoding(path, f.read(4096))
        with unpack(path, 'rt', encoding=encoding, errors='replace') as f:
            text, rest, size = ' ', '', 0
            while text:
                text = f.read(PIECE)
                size += len(text)
                check_size(path, size, most)
                lines = (rest + text.replace('\0', '')).split('\n')
                rest = lines.pop()[:MAX_LINE + 1] if text else ''
                yield [x for x in lines if x and len(x) <= MAX_LINE and not x.isspace()]
    except (OSError, EOFError, zlib.error, lzma.LZMAError, MemoryError) as e:
        reason = getattr(e, 'strerror', None) or clean(e) or 'out of memory'
        raise Unreadable(path, f'cannot be read: {reason}') from None


def check_size(path, size, most):
    if not size:
        raise Unreadable(path, 'the file is empty')
    if size > most:
        raise Unreadable(path, f'found {size} bytes, expected a log of at most {most}')


def find_encoding(path, start):
    """The encoding of a text file that starts with these bytes. Unreadable if they are no text."""
    if start[:2] in (b'\xff\xfe', b'\xfe\xff'):  # PowerShell's > writes UTF-16
        return 'utf-16'
    if sum(c < 32 and c not in b'\t\n\f\r\x1b' for c in start) > len(start) // 100:
        kinds = [kind for magic, kind in MAGIC.items() if start.startswith(magic)]
        more = f'; its first bytes are those of {kinds[0]}' if kinds else ''
        raise Unreadable(path, f'found a binary file, expected text{more}')
    return 'utf-8-sig'


# -----------------------------------------------------------------------------
# from lines to columns


def to_float(cell):
    """One cell as a float; None if it is no number. What is beyond 1e100 has overflowed."""
    # pandas' blank is the one value that is not itself
    if cell is None or cell != cell or isinstance(cell, str) and cell.strip().lower() in BLANK:
        return math.nan
    try:
        value = float(cell)
    except OverflowError:
        return INFINITE
    except (ValueError, TypeError):
        return None
    if math.isnan(value):
        return LOGGED_NAN
    if abs(value) > 1e100:
        return INFINITE
    return value if abs(value) > 1e-100 else 0.0


def to_floats(column):
    """A pandas column -> (floats, how many cells are no numbers and count as blank)."""
    if column.dtype.kind in 'iufb':
        x = np.array(column, float)
        x[np.abs(x) > 1e100] = INFINITE
        x[np.abs(x) <= 1e-100] = 0
        return x, 0
    cells = [to_float(c) for c in column]
    return np.array([math.nan if c is None else c for c in cells]), cells.count(None)


def read_header(line, path):
    """The first line of a table -> (what stands between its cells, the names of its columns)."""
    mark = max(',;\t', key=line.count)
    if '|' in line and ',' not in line:
        mark = '|'
    elif mark not in line:
        mark = ' '
    line, sep = with_bars([line], mark)
    names = next(csv.reader([line[0].strip()], delimiter=sep), [])[:MAX_COLUMNS]
    if all(to_float(c.replace(',', '.')) is not None for c in names):
        raise Unreadable(path, 'found no line of column names at its start, '
                               'expected one such as step,loss,lr')
    return mark, [tidy(name) for name in names]


def tidy(name):
    """W&B names a column RUN - train/loss."""
    return clean(name.strip().strip('"').split(' - ')[-1], 200).strip().lower()


def with_bars(lines, mark):
    """Rows of a markdown table, or of one with spaces between its cells, as a|b|c; other rows as
    they are. -> (lines, what stands between their cells now)."""
    if mark == ' ':
        return ['|'.join(line.split()) for line in lines], '|'
    if mark == '|':
        rows = [line.strip().strip('|').split('|') for line in lines]
        return ['|'.join(cell.strip() for cell in row) for row in rows], '|'
    return lines, mark


def is_ruler(line):
    """Is this the line below the names of a markdown table?"""
    return '--' in line and not line.strip(':-| \t,;')


def read_table(lines, mark, names):
    """Lines of a table -> (DataFrame, how many lines had too few or too many cells: blanks are
    added, the rest is cut)."""
    import pandas as pd
    lines, sep = with_bars(lines, mark)
    text = unquoted = '\n'.join(lines)
    if '"' in text:  # what separates cells separates nothing in quotes
        edge = re.escape(sep)
        unquoted = re.sub(rf'(?m)(?:^|(?<={edge}))"[^"\n]*"(?={edge}|$)', '', text)
    if '"' in unquoted:  # a quote that is never closed would swallow the lines after it
        text = unquoted = text.replace('"', '')
    if sep != ',' and re.search(r'\d,\d', text) and not re.search(r'\d\.\d', text):
        text = text.replace(',', '.')  # decimal commas
    n = len(names)
    broken = sum(line.count(sep) != n - 1 for line in unquoted.split('\n'))
    text = f'{sep.join(map(str, range(n)))}\n{text}\n'  # pandas must know the width
    shape = dict(sep=sep, usecols=range(n), index_col=False, skip_blank_lines=False,
                 keep_default_na=False)
    try:
        table = pd.read_csv(io.StringIO(text), dtype=float, na_values=BLANK, **shape)
    except ValueError:  # a word, or a NaN that was logged, which is no blank cell
        table = pd.read_csv(io.StringIO(text), dtype=str, na_filter=False, **shape)
    table.columns = names
    return table, broken


def read_records(lines):
    """JSON lines -> (DataFrame, how many lines are no objects). A NaN becomes a word, as pandas
    would take it for a blank."""
    import pandas as pd

    def decode(text):
        try:
            return json.loads(text, parse_constant=str)
        except (ValueError, RecursionError):
            return None

    records = decode(f'[{",".join(lines)}]') or []  # all at once is quick
    if len(records) != len(lines):
        records = [decode(line) for line in lines]
    good = [r for r in records if isinstance(r, dict)]
    keys = sorted(set().union(*good))[:MAX_COLUMNS]
    table = pd.DataFrame(good, columns=keys)
    table.columns = [tidy(key) for key in keys]
    return table, len(records) - len(good)


def joined(pieces, rows):
    """{name: [(rows, floats, how many cells are no numbers)]} -> (the fullest columns, {name:
    floats (rows,)}; how many of their cells are no numbers)."""
    columns, wrong_cells = {}, 0
    fullest = sorted(pieces, key=lambda name: -sum(len(x) for _, x, _ in pieces[name]))
    for name in fullest[:max(8, MAX_CELLS // max(1, rows))]:
        if not name.endswith(('__min', '__max')):  # W&B's ranges around a column
            columns[name] = np.full(rows, math.nan)
            for at, x, wrong in pieces.pop(name):
                columns[name][at] = x
                wrong_cells += wrong
    return columns, wrong_cells


def read_columns(path):
    """The numeric columns of a file -> ({name: floats (rows,)}, what is odd about it: how many
    lines, cells and headers; and the rows). Raises Unreadable."""
    pieces, rows, kept = {}, 0, 0
    first, odd = '', dict(lines=0, cells=0, headers=0)
    for lines in chunks(path):
        if lines and not first:
            first, mark, names = lines[0], '', []
            if not first.lstrip().startswith('{'):
                mark, names = read_header(first, path)
                lines = lines[1:]
        if first and names:
            odd['headers'] += lines.count(first)  # a second run was appended
            lines = [x for x in lines if x != first and not is_ruler(x)]
        if not lines:
            continue
        table, broken = read_table(lines, mark, names) if names else read_records(lines)
        odd['lines'] += broken
        for name, column in table.items():
            x, wrong = to_floats(column)
            some = np.flatnonzero(~np.isnan(x))  # no blanks: a small file can be a huge table
            if len(some) and (name in pieces or len(pieces) < MAX_COLUMNS):
                full = len(some) == len(x)
                at = slice(rows, rows + len(x)) if full else rows + some
                pieces.setdefault(name, []).append((at, x[some], wrong))
                kept += len(some)
        rows += len(table)
        if kept > MAX_CELLS:
            raise Unreadable(path, f'found more than {MAX_CELLS} numbers, expected fewer')
    columns, odd['cells'] = joined(pieces, rows)
    if not columns:
        raise Unreadable(path, 'found no numbers in it, expected a training log: a line of names '
                               'such as step,loss,lr, then numbers')
    return columns, dict(odd, rows=rows)


# -----------------------------------------------------------------------------
# from columns to a log


def find_column(names, *patterns):
    """The name that fits the earliest of the patterns, whatever the order of the names, or None."""
    for pattern in patterns:
        found = [n for n in names if re.fullmatch(pattern, n)]
        if found:
            return min(found, key=lambda n: (len(n), n))
    return None


class Log:
    """columns; step and loss (rows,), blank where not logged; s and x: the steps and values of the
    losses that are finite. The rows are in the order of their steps; order says what was not.
    diagnosis.figures adds what several rules need."""

    def __init__(self, path, columns, odd):
        self.path, self.name = path, clean(os.path.basename(path), 60)
        self.odd, self.checkpoints, self.status, self.given = odd, [], {}, False
        train = [n for n in columns if not HELD_OUT.fullmatch(n)]
        step = find_column(train, *STEP)
        loss = find_column([n for n in train if n not in STEP], *LOSS)
        if loss is None:
            raise Unreadable(path, 'found no column of a training loss among '
                             f'{clean(", ".join(columns))}, expected loss, train/loss or the like')
        if step and 'epoch' in step and not counts_epochs(columns[step], columns[loss]):
            step = None
        self.step_name, self.loss_name = step, loss
        self.by_epoch = bool(step) and 'epoch' in step
        self.unit = 'step' if step else 'row'
        if self.by_epoch:
            self.unit = 'epoch'
        steps = columns[step] if step else np.arange(len(columns[loss]), dtype=float)
        keep, self.order = in_order(steps, ~np.isnan(columns[loss]))
        self.step = steps[keep]
        self.columns = {name: x[keep] for name, x in columns.items()}
        self.loss = self.columns[loss]
        finite = np.isfinite(self.loss)
        self.s, self.x = self.step[finite], self.loss[finite]

    def at(self, step):
        return f'{self.unit} {step:.10g}'


def read_log(path):
    """The log in a file, or Unreadable."""
    return Log(path, *read_columns(path))


def counts_epochs(epochs, loss):
    """Is each row the mean of an epoch? Not with many rows an epoch, or with parts of epochs."""
    epochs = epochs[np.isfinite(epochs) & ~np.isnan(loss)]
    return len(np.unique(epochs)) > len(epochs) / 2 and (epochs % 1 == 0).all()


def in_order(step, has_loss):
    """-> (the rows to keep, in the order of their steps; a dict of what R19 has to say about it).

    A step that goes back means a shuffled file, a run that was resumed, or another run appended.
    """
    keep = np.flatnonzero(np.isfinite(step))
    order = dict(no_step=len(step) - len(keep))
    s = step[keep]
    back = np.flatnonzero(np.diff(s) < 0) + 1
    if not len(back):
        return keep if order['no_step'] else slice(None), order
    if len(np.unique(s[has_loss[keep]])) == has_loss[keep].sum():  # each step once: only shuffled
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
        s = step[keep]
    if (np.diff(s) < 0).sum() > len(s) // 10:
        return keep[np.argsort(s, kind='stable')], order
    # what a resumed run did again replaces the first try
    lowest_after = np.append(np.minimum.accumulate(s[::-1])[::-1][1:], math.inf)
    good = (s < lowest_after) | (np.diff(s, append=math.inf) == 0)
    order['overwritten'] = int((~good).sum())
    return keep[good], order
