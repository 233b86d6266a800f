"""
What is wrong with this run? Reads training logs and checkpoint folders and says in plain words, with the numbers, what
happened and what to do next. It reads only: no log and no checkpoint is ever changed.

    python diagnose.py out/tiny                               # a run of this project, all stages
    python diagnose.py out/tiny/dynamics --plot=loss.png      # one stage, and its loss as a picture
    python diagnose.py history.csv checkpoints --vocab=1024 --total=300000 --n_actions=16
    python diagnose.py epochs.md batches.md --vocab=65536,8192 --weights=closs:1,loss_ct:10

LOG: log.csv of this project, a W&B history as CSV, JSON lines, a whitespace or markdown table. A blank cell was not logged.
CHECKPOINT_DIR: a folder of this project, or of NAME_step_N/{model_state_dict,optim_state_dict,state}.pt.
Exit code: 0 ok or info, 1 warn, 2 critical, 3 something could not be read, or bad usage.

Each rule below is one function: its docstring says why it exists. The figures of R00, R01, R06, R07, R08, R10, R14, R15, R16,
R22 and R23 are for the reader: at `info` they accuse nobody and leave the verdict at ok.
"""
import argparse
import csv
import json
import math
import os
import re
import sys
import textwrap
from types import SimpleNamespace

import numpy as np

SEVERITIES = ['ok', 'info', 'warn', 'critical']
FIGURES = {'R00', 'R01', 'R06', 'R07', 'R08', 'R10', 'R14', 'R15', 'R16', 'R22', 'R23'}
MAX_COLUMNS, MAX_LINE, MAX_BYTES, MAX_CELLS = 200, 100_000, 2 ** 30, 2 ** 27      # what is larger is no training log


def clean(text, width=80):
    """Names come from strangers' files: nothing in them may steer a terminal."""
    text = ''.join(c if c.isprintable() else '?' for c in str(text))
    return text if len(text) <= width else text[:width - 3] + '...'


class Unreadable(Exception):
    """An input cannot be read."""
    def __init__(self, path, reason):
        super().__init__(f'{clean(path)}: {reason}')


def digits(x):
    """A loss as text: four decimals, or four digits where it is small or large."""
    return f'{x:.4f}' if 1 <= abs(x) < 1e4 else f'{x:.4g}'


def short(x):
    """A mean of losses: a digit less."""
    return f'{x:.3f}' if 1 <= abs(x) < 1e4 else f'{x:.4g}'


# -----------------------------------------------------------------------------
# reading a log. In the arrays nan is a blank cell (not logged), inf an infinity of either sign, -inf a NaN that was logged

NAN, INFINITE = -math.inf, math.inf


def number(cell):
    """One cell as a float; None if it is not a number. Beyond 1e100 something overflowed: infinite; below 1e-100 it is 0."""
    if cell is None or isinstance(cell, str) and cell.strip().lower() in ('', 'none', 'null', '-'):
        return math.nan
    try:
        value = float(cell)
    except OverflowError:
        return INFINITE
    except (ValueError, TypeError):
        return None
    return NAN if math.isnan(value) else INFINITE if abs(value) > 1e100 else value if abs(value) > 1e-100 else 0.0


def numbers(cells):
    """A column of texts (or JSON values) -> (floats, how many of them are not numbers and count as blank)."""
    x = np.full(len(cells), math.nan)
    rows = [i for i, c in enumerate(cells) if c is not None and c != ''] if '' in cells or None in cells else slice(None)
    try:
        values = np.array(list(map(float, cells if rows == slice(None) else [cells[i] for i in rows])))
    except (ValueError, TypeError, OverflowError):
        values = [number(c) for c in cells]
        return np.array([math.nan if v is None else v for v in values]), values.count(None)
    size = np.abs(values)
    x[rows] = values if ((size < 1e100) & ((size > 1e-100) | (size == 0))).all() else [number(v) for v in values]
    return x, 0


MAGIC = ((b'\x89PNG', 'a PNG picture'), (b'\xff\xd8\xff', 'a JPEG picture'), (b'GIF8', 'a GIF picture'),
         (b'PK\3\4', 'a zip file, or a checkpoint'), (b'\x89HDF', 'an HDF5 file'))


def chunks(path):
    """Lists of lines of a text file, about 4 MB at a time: no file is held in memory, and no line that never ends."""
    try:
        if not os.path.isfile(path):
            raise Unreadable(path, 'found something else than a file' if os.path.exists(path) else 'there is no such file')
        size = os.path.getsize(path)
        with open(path, 'rb') as f:
            start = f.read(4096)
    except OSError as e:
        raise Unreadable(path, f'cannot be read: {e.strerror}') from None
    if not size or size > MAX_BYTES:
        raise Unreadable(path, f'found {size} bytes, expected a log of at most {MAX_BYTES}' if size else 'the file is empty')
    encoding = 'utf-16' if start[:2] in (b'\xff\xfe', b'\xfe\xff') else 'utf-8-sig'       # PowerShell's > writes UTF-16
    if encoding == 'utf-8-sig' and sum(c < 32 and c not in b'\t\n\f\r\x1b' for c in start) > len(start) // 100:
        kind = next((f'; its first bytes are those of {name}' for magic, name in MAGIC if start.startswith(magic)), '')
        raise Unreadable(path, f'found a binary file, expected text{kind}')
    with open(path, encoding=encoding, errors='replace') as f:
        text, rest = ' ', ''
        while text:
            text = f.read(1 << 22)
            lines = (rest + text.replace('\0', '')).split('\n')
            rest = lines.pop()[:MAX_LINE + 1] if text else ''
            yield [x for x in lines if x and len(x) <= MAX_LINE and not x.isspace()]


def separator(line):
    """What stands between the cells of a table, judged from its first line; None: spaces."""
    if '|' in line and ',' not in line:
        return '|'
    return max(',;\t', key=line.count) if any(c in line for c in ',;\t') else None


def cells_of(line, mark):
    """One line as cells."""
    if mark == '|':
        return [c.strip() for c in line.strip().strip('|').split('|')]
    try:
        return next(csv.reader([line], delimiter=mark)) if mark and '"' in line else line.split(mark)
    except csv.Error:
        return []


def table_columns(lines, mark, width):
    """Lines of a table -> (cells by column, how many lines have too few or too many of them: blanks are added, the rest is cut)."""
    if mark in (',', ';', '\t') and not any('"' in x for x in lines) and {x.count(mark) for x in lines} == {width - 1}:
        flat = mark.join(lines).split(mark)                   # the fast way
        return [flat[i::width] for i in range(width)], 0
    rows = [cells_of(x, mark) for x in lines]
    rows = [r for r in rows if not all(re.fullmatch(':?-{2,}:?', c) for c in r)]          # the rule below a markdown header
    return list(zip(*((r + [''] * (width - len(r)))[:width] for r in rows))), sum(len(r) != width for r in rows)


def record_columns(lines):
    """JSON lines -> ({name: values}, how many lines are no objects)."""
    try:
        records = json.loads(f'[{",".join(lines)}]')          # one call is the fast way
        if len(records) != len(lines):
            raise ValueError
    except (ValueError, RecursionError):
        records = []
        for line in lines:
            try:
                records.append(json.loads(line))
            except (ValueError, RecursionError):
                records.append(None)
    good = [r for r in records if isinstance(r, dict)]
    return {k: [r.get(k) for r in good] for k in sorted(set().union(*good))[:MAX_COLUMNS]}, len(records) - len(good)


def read_columns(path):
    """The numeric columns of a file: {name: floats}, and what was odd about it: {lines, cells, headers: how many; rows}."""
    pieces, odd, rows, mark, names, first = {}, dict(lines=0, cells=0, headers=0), 0, '', None, None
    tidy = lambda name: clean(name.strip().strip('"').split(' - ')[-1], 200).strip().lower()                 # W&B: RUN - train/loss
    for lines in chunks(path):
        if names is None and lines:
            first, names = lines[0], []
            if not first.lstrip().startswith('{'):
                mark = separator(first)
                names = [tidy(c) for c in cells_of(first.strip(), mark)[:MAX_COLUMNS]]
                if all(number(c) is not None for c in names):
                    raise Unreadable(path, 'found no line of column names at its start, expected one such as step,loss,lr')
                lines = lines[1:]
        if names:
            odd['headers'] += lines.count(first)              # the header again: a second run was appended
            lines = [x for x in lines if x != first]
        few = max(1000, 10 ** 6 // len(names)) if names else len(lines)                   # many columns: fewer lines at a time
        for i in range(0, len(lines), max(1, few)):
            if names:
                columns, broken = table_columns(lines[i:i + few], mark, len(names))
                table = list(zip(names, columns))
            else:
                records, broken = record_columns(lines)
                table = [(tidy(name), values) for name, values in records.items()]
            odd['lines'] += broken
            for name, values in table:
                x, wrong = numbers(values)
                some = np.flatnonzero(~np.isnan(x))
                if len(some) and (name in pieces or len(pieces) < MAX_COLUMNS):           # no blanks: a small file can be a huge table
                    at = slice(rows, rows + len(x)) if len(some) == len(x) else rows + some
                    pieces.setdefault(name, []).append((at, x[some], wrong))
            rows += len(table[0][1]) if table else 0
    columns = {}
    for name in sorted(pieces, key=lambda n: -sum(len(x) for _, x, _ in pieces[n]))[:max(8, MAX_CELLS // max(1, rows))]:
        if not name.endswith(('__min', '__max')):             # W&B's ranges around a column
            columns[name] = np.full(rows, math.nan)
            for at, x, wrong in pieces.pop(name):
                columns[name][at] = x
                odd['cells'] += wrong
    if not columns:
        raise Unreadable(path, 'found no numbers in it, expected a training log: a line of names such as step,loss,lr, then numbers')
    return columns, {**odd, 'rows': rows}


def find(columns, *patterns):
    """The name of the column that fits the earliest of the patterns, whatever the order of the columns; None if none does."""
    for pattern in patterns:
        found = sorted((n for n in columns if re.fullmatch(pattern, n)), key=lambda n: (len(n), n))
        if found:
            return found[0]
    return None


HELD_OUT = r'(val|valid|validation|eval|test|held.?out)([_/. ].*|)'
LOSS = ['loss', 'train[_/. ]?loss', r'(train|training)[_/. ].*loss', '.*/loss', 'closs', 'total.loss', '.*loss.*']
STEP = ['_step', 'step', 'iter', 'iters', 'iteration', 'global.?step', '.*/global_step', 'steps', 'update', 'epochs?', '.*/epoch']


def read_log(path, columns=None, odd=None):
    """A log: name, columns, step, loss (columns with a blank where not logged), s and x (steps and losses that are finite), unit."""
    if columns is None:
        columns, odd = read_columns(path)
    train = [n for n in columns if not re.fullmatch(HELD_OUT, n)]
    step, loss = find(train, *STEP), find([n for n in train if n not in STEP], *LOSS)
    if loss is None:
        raise Unreadable(path, f'found no column of a training loss among {clean(", ".join(columns))}, expected loss, train/loss or the like')
    if step and 'epoch' in step:                              # many rows an epoch, or parts of epochs: no means of epochs
        epochs = columns[step][np.isfinite(columns[step]) & ~np.isnan(columns[loss])]
        step = step if len(np.unique(epochs)) > len(epochs) / 2 and (epochs % 1 == 0).all() else None
    log = SimpleNamespace(path=path, name=clean(os.path.basename(path), 60), columns=columns, odd=odd, loss_name=loss, step_name=step,
                          order={}, checkpoints=[], status={}, given=False)
    log.step = columns[step] if step else np.arange(len(columns[loss]), dtype=float)
    log.by_epoch = bool(step) and 'epoch' in step
    log.unit = 'epoch' if log.by_epoch else 'step' if step else 'row'
    log.at = lambda s: f'{log.unit} {s:.10g}'
    in_order(log)
    log.loss = log.columns[loss]
    log.s, log.x = log.step[np.isfinite(log.loss)], log.loss[np.isfinite(log.loss)]
    log.windows = windows(log.s, log.x)
    return log


def in_order(log):
    """Puts the rows into the order of their steps; log.order keeps what R19 has to say about it."""
    valid = np.isfinite(log.step)
    keep = np.flatnonzero(valid)
    log.order['no_step'] = int((~valid).sum())
    s = log.step[keep]
    logged = ~np.isnan(log.columns[log.loss_name][keep])
    back = np.flatnonzero(np.diff(s) < 0) + 1
    if len(back) and len(np.unique(s[logged])) == logged.sum():                           # each step once: out of order, no more
        log.order['unsorted'] = len(back)
        keep = keep[np.argsort(s, kind='stable')]
    elif len(back):
        log.order['back'] = [(float(s[i - 1]), float(s[i])) for i in back[:5]]
        log.order['n_back'] = len(back)
        again = back[s[back] <= s.min() + 0.01 * (s.max() - s.min())]                     # back to the start: another run
        bounds = [0, *again, len(s)]
        sizes = np.diff(bounds)
        if len(again):
            run = max(i for i, n in enumerate(sizes) if n >= 0.1 * len(s) or n == sizes.max())
            log.order['runs'] = [int(n) for n in sizes[:20]]
            log.order['run'] = run
            keep, s = keep[bounds[run]:bounds[run + 1]], s[bounds[run]:bounds[run + 1]]
        if (np.diff(s) < 0).sum() > len(s) // 10:
            keep = keep[np.argsort(s, kind='stable')]
        elif len(s):                                          # what a resumed run did again replaces the first try
            later = np.append(np.minimum.accumulate(s[::-1])[::-1][1:], math.inf)
            good = (s < later) | (np.diff(s, append=math.inf) == 0)
            log.order['overwritten'] = int((~good).sum())
            keep = keep[good]
    log.step = log.step[keep]
    log.columns = {name: x[keep] for name, x in log.columns.items()} if len(keep) < len(valid) or len(back) else log.columns


# -----------------------------------------------------------------------------
# figures that several rules use


def spacing(s):
    gaps = np.diff(s)
    gaps = gaps[gaps > 0]
    return float(np.median(gaps)) if len(gaps) else 1.0


def windows(s, x):
    """(first step, rows, mean) of each window of the largest 1, 2 or 5 x 10^n steps that gives at least 4; a last one that
    is shorter than half is merged into the one before. Fewer than 4 rows: each is its own window; hardly two steps: one window."""
    if len(x) < 4:
        return [(float(a), 1, float(b)) for a, b in zip(s, x)]
    gap = spacing(s)
    span = s[-1] - s[0] + gap
    for e in range(math.floor(math.log10(span)), math.floor(math.log10(gap)) - 2, -1):
        for width in (5 * 10.0 ** e, 2 * 10.0 ** e, 10.0 ** e):
            w = np.floor((s - s[0]) / width + 1e-9)
            starts = np.flatnonzero(np.diff(w, prepend=-1))
            if len(starts) > 1 and span - w[-1] * width < width / 2:
                starts = starts[:-1]
            if len(starts) >= 4:
                means = np.add.reduceat(x, starts) / np.diff(starts, append=len(x))
                return [(float(s[0] + w[a] * width), int(n), float(m)) for a, n, m in zip(starts, np.diff(starts, append=len(x)), means)]
    return [(float(s[0]), len(x), float(x.mean()))]


def blocks(x, m):
    """x cut into m equal runs of rows -> the rows in their middles, their medians."""
    edges = np.linspace(0, len(x), m + 1).astype(int)
    return (edges[:-1] + edges[1:] - 1) // 2, np.array([np.median(x[a:b]) for a, b in zip(edges, edges[1:])])


def smoothed(x):
    """Medians of up to 50 runs of rows, which one spike does not move: the rows in their middles, the medians."""
    return blocks(x, min(50, len(x), max(20, len(x) // 4)))


def correlation(a, b):
    """Pearson's, over the rows that have both; None where fewer than 3 have, or one of them never changes."""
    both = np.isfinite(a) & np.isfinite(b)
    a, b = a[both], b[both]
    if len(a) < 3 or np.ptp(a) <= 1e-12 * np.abs(a).max() or np.ptp(b) <= 1e-12 * np.abs(b).max():
        return None
    a, b = a - a.mean(), b - b.mean()
    return float((a @ b) / math.sqrt((a @ a) * (b @ b)))


def spearman(x):
    """Rank correlation of x with its order: 1 if it only rises."""
    r = (np.asarray(x)[:, None] > x).sum(1) + 0.5 * (np.asarray(x)[:, None] == x).sum(1)
    return correlation(r, np.arange(len(x)) + 0.0) or 0.0


def divisor(log, known):
    """R02's k: what the logged loss seems to be divided by. Only a row of step 0 or 1 is still at initialisation, where a
    cross-entropy stands at ln vocab; a mean over the first 50 updates may lie anywhere below it."""
    if not known.vocab or log.by_epoch or not len(log.x) or log.s[0] > 1:
        return 1
    chance = math.log(known.vocab[0])
    k = min((1, 2, 4, 8, 16, 32), key=lambda k: abs(k * log.x[0] - chance))
    return k if abs(k * log.x[0] - chance) <= 0.5 else 1


def regimes(x):
    """R12: (values of the lower regime, of the upper, ratio of the gap between, switches) where x lives in two, else None. The
    later half is looked at too: while a loss descends it passes through any gap."""
    for part in (x, x[len(x) // 2:]) if len(x) >= 100 else (x,):
        y = np.sort(part)
        n = len(y)
        if n < 8 or y[0] <= 0:
            continue
        quarter = math.ceil(n / 4)                            # rows that each side must have
        ratios = y[quarter:n - quarter + 1] / y[quarter - 1:n - quarter]
        if not len(ratios) or ratios.max() < 3:
            continue
        at = quarter + int(ratios.argmax())
        switches = int((np.diff(part >= y[at]) != 0).sum())
        if switches >= 3:
            return y[:at], y[at:], float(ratios.max()), switches
    return None


def turn(s, x):
    """Rising since its best? The smoothed loss of the last blocks against its lowest, where it exceeds 6 standard errors of the
    noise and a tenth: dict(low, at, last, ratio), else None. at: the last step within 10% of the lowest."""
    if len(x) < 5 or x.min() <= 0:
        return None
    rows, y = smoothed(x)
    y = np.log(y)
    noise = 1.4826 * float(np.median(np.abs(np.diff(np.log(x))))) / math.sqrt(2)          # of one row, whatever the trend
    rise = float(y[-max(2, len(y) // 15):].min() - y.min())
    if rise < max(math.log(1.1), 6 * noise / math.sqrt(len(x) / len(y))):
        return None
    last_good = rows[np.flatnonzero(y <= y.min() + math.log(1.1))[-1]]
    return dict(low=math.exp(y.min()), at=s[last_good], last=math.exp(y[-1]), ratio=math.exp(rise))


def spikes(x):
    """R11: z of each row (distance to the median in 1.4826 MAD), the median at each row, and which rows are spikes, z > 6. From
    100 rows on median and MAD are those of the rows around, as a trend is no spike, and the logarithm must stand out as well, as
    the noise of a loss is a share of it. A spike also stands a fifth above the medians before and after: a new level is none,
    nor is the descent at the start."""
    m = min(200, max(1, len(x) // 50))
    rows, (at, medians) = np.arange(len(x)), blocks(x, m)

    def score(x, centres):
        base = np.interp(rows, at, centres)
        scale = np.interp(rows, at, 1.4826 * blocks(np.abs(x - base), m)[1])
        return (x - base) / np.maximum(scale, 0.005 * np.abs(base) + 1e-30), base

    z, base = score(x, medians)
    around = np.pad(medians, 1, mode='edge')
    highest = np.maximum(np.maximum(around[:-2], medians), around[2:])[np.minimum(rows * m // len(x), m - 1)]
    flagged = (z > 6) & (x > highest + 0.2 * np.abs(highest)) & (rows > (x <= medians[0]).argmax())
    if m > 1 and x.min() > 0:
        flagged &= score(np.log(x), np.log(medians))[0] > 6
    return z, base, flagged


def events(flagged):
    """Rows that are flagged, as the first and last of each run; runs less than 1/200 of the log apart are one."""
    rows = np.flatnonzero(flagged)
    if not len(rows):
        return []
    breaks = np.flatnonzero(np.diff(rows) > max(1, len(flagged) // 200))
    return list(zip(rows[np.append(0, breaks + 1)].tolist(), rows[np.append(breaks, len(rows) - 1)].tolist()))


def logged(log, *patterns):
    """(name, steps, values) of a training column where it was logged and is finite; name None if there is none."""
    name = find([n for n in log.columns if not re.fullmatch(HELD_OUT, n)], *patterns)
    if name is None:
        return None, np.zeros(0), np.zeros(0)
    x = log.columns[name]
    good = np.isfinite(x)
    return name, log.step[good], x[good]


ENTROPY, UNIQUE, USAGE = r'(.*/)?action_entropy', r'(.*/)?unique_actions', r'.*codebook_usage'
LR = ('lr', 'learning_rate', r'.*/lr', r'.*learning_rate.*', r'lr[-_/].*')

# -----------------------------------------------------------------------------
# the rules. Each yields its findings on one log; known: what the user or the checkpoints told (vocab, total, n_actions, weights)

LOWER = 'Restart from scratch with a rate 20 to 1000 times lower or a longer warmup; what was learned after this is not worth keeping.'
ACTIONS = {                                                   # what to do next; R03 has its own
    'R02': 'Log the undivided mean over all micro-batches and ranks. Until then multiply before you compare with ln vocab.',
    'R04': 'Stop. If the run is older than its warmup: is --vocab right, is the loss a mean in nats, do targets and logits belong together? '
           'Then a rate 20 times lower.',
    'R05': 'As for R03; the present weights are worth less than fresh ones.',
    'R06': 'Lower the rate; the action of R03 says to what. That rate and loss go together is no proof: the smoke run is.',
    'R07': 'Look at the data loader, at what else runs on the machine, and at its temperature.',
    'R08': 'Use fewer actions, or retrain stages 2 and 3 together; look at the strip of pictures of each action first.',
    'R11': 'Log loss and gradient norm per batch; look at those batches, at gradient clipping and at the warmup.',
    'R12': 'Write one file per run, and means over all ranks and batches; then ask again.',
    'R13': 'Use one file per run and the mean over all batches and ranks in both; log the divisor if there is one.',
    'R14': 'Is this vocabulary the one that is predicted, is the loss a mean in nats and not a sum, is the last layer initialised small?',
    'R15': 'Log each term on its own and choose weights that keep each share within a factor of 3.',
    'R16': 'Compute the median-action baseline on held-out data first, then look at the labels and their alignment in time.',
    'R18': 'Let only the master write, to a temporary file that is then renamed, and verify it after each save; then run 1000 to 2000 steps '
           'including a restore.',
    'R19': 'Write one file per run; if runs were appended, split the file and judge each on its own.',
    'R20': 'Go back to a checkpoint before that; look at that batch; lower the rate, clip gradients, keep softmax and norms in float32.',
    'R21': 'Check that positives and negatives differ in the data, which of them is which, and the sign of the energy.',
}


def say(rule, severity, text, head='', action='', **numbers):
    """One finding. head: its few words for the verdict."""
    action = (action or ACTIONS[rule]) if severity in ('warn', 'critical') else ''
    return dict(rule=rule, severity=severity, text=text, action=action, numbers=numbers, head=head)


def r00(log, known):
    """What was read, so that a reader sees at once whether it is the right file."""
    odd = ((log.odd['cells'], 'cells are no numbers and count as blank'), (log.odd['lines'], 'lines are broken, too short or too long'),
           (log.order['no_step'], f'rows have no {log.unit} and are left out'))
    odd = ', '.join(f'{n} {what}' for n, what in odd if n)
    odd = f' But {odd}.' if odd else ''
    if not len(log.x):
        yield say('R00', 'info', f'{log.odd["rows"]} rows, and not one finite value in column {log.loss_name}.{odd}', rows=0)
        return
    figures = dict(rows=len(log.x), last_step=log.s[-1], first=log.x[0], last=log.x[-1], min=log.x.min(), min_step=log.s[log.x.argmin()],
                   median=np.median(log.x))
    first, last, low, median = (digits(figures[k]) for k in ('first', 'last', 'min', 'median'))
    yield say('R00', 'info', f'{len(log.x)} rows of {log.loss_name} up to {log.at(log.s[-1])}: {first} -> {last}, min {low} at '
              f'{log.at(figures["min_step"])}, median {median}.{odd}', **figures)


def r01(log, known):
    """Means over windows: single rows are noise, and the eye follows the noise."""
    if log.windows:
        means = [m for _, _, m in log.windows]
        width = f', {log.windows[1][0] - log.windows[0][0]:.10g} {log.unit}s each' if len(means) > 1 else ''
        yield say('R01', 'info', f'Window means{width}: {" ".join(map(short, means))}.', means=means, starts=[a for a, _, _ in log.windows])


def r02(log, known):
    """A loss divided by the accumulation steps or ranks looks better than it is, and can hide that it is worse than guessing."""
    if log.k > 1:
        chance, undivided = math.log(known.vocab[0]), log.k * log.x[0]
        yield say('R02', 'warn', f'The logged loss seems to be divided by {log.k}: an untrained model stands near ln {known.vocab[0]} = '
                  f'{chance:.3f}, and the first row, {digits(log.x[0])}, times {log.k} is {undivided:.3f} = ln {known.vocab[0]} '
                  f'{"-" if undivided < chance else "+"} {abs(undivided - chance):.3f}. The rules below count with it.',
                  f'the logged loss is divided by {log.k}', k=log.k, undivided=undivided, over=undivided - chance)


def r03(log, known):
    """The direction of the loss, by window means: the first thing to know, and what one noisy row cannot tell."""
    if log.status.get('state') in ('diverged', 'nonfinite'):
        state, reason = log.status['state'], clean(str(log.status.get('reason')).split('\n')[0], 200)
        yield say('R03', 'critical', f'The trainer itself stopped this run, says its status.json: {state} at iter '
                  f'{clean(log.status.get("iter"))}: {reason}.', f'the trainer stopped it as {state}',
                  'Restart with a lower rate; status.json says from where.')
    means = [m for _, _, m in log.windows]
    if len(means) == 1:
        yield say('R03', 'info', f'No trend: all {log.unit}s fall into one window.', 'too few rows for a trend')
    if log.mixed or len(means) < 2:
        return
    rho, ratio = spearman(means), means[-1] / means[0] if min(means) > 0 else math.nan
    times = f'x{ratio:.2f}, ' if min(means) > 0 else ''
    where = f'the window means go from {short(means[0])} to {short(means[-1])} ({times}Spearman {rho:.2f})'
    figures = dict(spearman=rho, ratio=ratio, first=means[0], last=means[-1])
    at = log.s[0]
    if log.turned:
        at, best, now, since = (log.turned[k] for k in ('at', 'low', 'last', 'ratio'))
        where += (f'. The smoothed loss was last within 10% of its lowest, {short(best)}, at about {log.at(at)}; there it turned. It has '
                  f'stayed at x{since:.2f} or more and is now {short(now)}')
        figures.update(turned=at, lowest=best, now=now, since_lowest=since)
    if log.rising:
        times = ratio if log.diverging else log.turned['ratio']
        yield say('R03', 'critical', f'Diverging: {where}.', f'the loss is diverging (x{times:.2f}), it turned at {log.at(at)}',
                  restart_advice(log), **figures)
    elif log.turned:
        yield say('R03', 'warn', f'Rising again: {where}.', f'the loss rises again, it turned at {log.at(at)}',
                  'Watch it: from x1.3 on it counts as diverging. Keep a checkpoint from before; lower the rate if it goes on.', **figures)
    elif min(means) <= 0:
        yield say('R03', 'info', f'The loss is not always positive, so ratios say nothing; {where}.', 'the loss is not positive', **figures)
    elif ratio < 0.95:
        yield say('R03', 'ok', f'Falling: {where}.', f'the loss is falling, window means {short(means[0])} -> {short(means[-1])}', **figures)
    elif ratio > 1.1 and len(means) < 4:
        yield say('R03', 'info', f'{len(means)} rows are too few to call it a trend: {where}.', 'too few rows for a trend', **figures)
    else:
        head = f'the loss is flat, window means {short(means[0])} -> {short(means[-1])}'
        yield say('R03', 'info', f'Flat, or without direction: {where}.', head, **figures)


def lowest(log):
    """The step at which the smoothed loss is lowest."""
    if len(log.x) < 5:
        return None
    at, y = smoothed(log.x)
    return log.s[at[y.argmin()]]


def restart_advice(log):
    """What to do about a diverged run: from where, and how fast."""
    _, s, lr = logged(log, *LR)
    at, text = lowest(log), 'Stop. Restart from scratch or from the last valid checkpoint'
    if at is not None:
        text += f' at or before {log.at(at)}, the smoothed minimum (a later one holds a diverged model)'
        valid = [c.step for c in log.checkpoints if not c.fault and c.step <= at]
        if log.checkpoints:
            text += f': that of {log.at(max(valid))}' if valid else ': there is none, so from scratch'
        if len(lr) and lr[-1] > 0:
            then = float(np.interp(at, s, lr))
            rate = min(lr[-1] / 20, then / 3 if then > 0 else math.inf)
            text += f', with lr = {rate:.2g} (the smaller of lr now / 20 and lr at the minimum / 3)'
    return text + '. Then a smoke run of 5000 steps, looking at window means.'


def r04(log, known):
    """Above ln vocab a model predicts worse than one that has seen nothing: everything it made is useless. Nor is a run sound
    that spent a tenth of its rows above twice that, as no untrained model does: it blew up, even if the loss falls again. For
    pixels the same is a PSNR below 0 dB: a grey frame has 6 or more."""
    if log.mixed or not log.windows:
        return
    _, s, psnr = logged(log, '(.*/)?psnr')
    if known.vocab:
        now, chance = log.k * level(log), math.log(known.vocab[0])
        if now > chance + still_untrained(log):
            which, factor = 'last row' if log.by_epoch else 'last window mean', f'{log.k} x {short(level(log))} = ' if log.k > 1 else ''
            yield say('R04', 'critical', f'Worse than guessing: the {which}, {factor}{now:.2f} nats > ln {known.vocab[0]} = {chance:.2f}.',
                      'worse than guessing', 'As for R03.' if log.rising else '', now=now, chance=chance)
        s, x, limit, where = log.s, log.k * log.x, 2 * chance, f'above twice ln {known.vocab[0]} = {chance:.2f}, at most {{:.2f}}'
    elif len(psnr):
        x, limit, where = -psnr, 0, 'below 0 dB of PSNR, worse than a grey frame, at worst -{:.1f}'
        if psnr[-1] < 0:
            yield say('R04', 'critical', f'Worse than guessing: the last row has a PSNR of {psnr[-1]:.1f} dB, a grey frame has 6 or more.',
                      'worse than a grey frame', LOWER, now=psnr[-1])
    else:
        return
    a, b = max(events(x > limit), key=lambda e: e[1] - e[0], default=(0, -1))
    top = a + int(x[a:b + 1].argmax()) if b >= a else 0       # row 0 of step 0 would be a bad initialisation: R14
    if not log.by_epoch and not log.rising and b - a + 1 >= max(3, len(x) / 10) and (top > 0 or s[0] > 1):
        when = f'at {log.at(s[a - 1])}' if a else f'before {log.at(s[0])}'
        yield say('R04', 'critical', f'The loss blew up: from {log.at(s[a])} to {s[b]:.10g}, {b - a + 1} of {len(x)} rows, it stands '
                  f'{where.format(x[top])} at {log.at(s[top])}. It turned {when}.', f'the loss blew up, it turned {when}', LOWER,
                  turned=s[max(0, a - 1)], worst=x[top])


def level(log):
    """Where the loss is now: the last window mean, or the last row where a row is the mean of an epoch."""
    return float(log.x[-1]) if log.by_epoch else log.windows[-1][2]


def still_untrained(log):
    """Nats above chance that a run of a few rows may stand at: an untrained model does."""
    return 0.5 * (len(log.windows) < 4)


def r05(log, known):
    """Worse than untrained: there is nothing in the model to rescue."""
    if log.rising and log.windows[-1][2] > 1.05 * log.x[0] > 0:
        yield say('R05', 'critical', f'Worse than at initialisation: the last window mean {short(log.windows[-1][2])} > {digits(log.x[0])}, '
                  f'the first row ({log.at(log.s[0])}).', 'worse than at initialisation', last=log.windows[-1][2], first=log.x[0])


def r06(log, known):
    """The rate is the first suspect of a rising loss: compare it with the rate at which the loss was still low."""
    _, s, lr = logged(log, *LR)
    if len(lr) < 2 or lr.max() <= 0 or not len(log.x):
        return
    peak, at, loss = int(lr.argmax()), lowest(log), np.interp(s, log.s, log.x)
    figures = dict(lr=lr[-1], peak=lr[peak], percent=100 * lr[-1] / lr[peak], before=correlation(loss[:peak + 1], lr[:peak + 1]),
                   after=correlation(loss[peak:], lr[peak:]))
    text = f'lr is {lr[-1]:.3g} = {figures["percent"]:.1f}% of its peak ({lr[peak]:.3g} at {log.at(s[peak])})'
    if at is not None:
        figures['at_minimum'] = float(np.interp(at, s, lr))
        text += f'; it was {figures["at_minimum"]:.3g} at the smoothed minimum of the loss ({log.at(at)})'
    found = [f'{figures[when]:.2f} {when} the peak' for when in ('before', 'after') if figures[when] is not None]
    text += f'; corr(loss, lr) is {" and ".join(found)}.' if found else '.'
    hot = log.rising and at is not None and lr[-1] > 3 * figures['at_minimum'] > 0
    text += f' The loss rises at {lr[-1] / figures["at_minimum"]:.1f} times that rate.' if hot else ''
    yield say('R06', 'warn' if hot else 'info', text, 'the learning rate is too high', **figures)


def r07(log, known):
    """When will it be done, and has it slowed down?"""
    name = find(log.columns, '_runtime', 'runtime', '.*/runtime', 'elapsed.*', 'wall.?time', '_timestamp', 'timestamp', 'time')
    if name is None or log.unit != 'step':
        return
    good = np.isfinite(log.columns[name])
    s, ds, dt = log.step[good], np.diff(log.step[good]), np.diff(log.columns[name][good])
    going = (dt > 0) & (ds >= 0)                              # a resumed run starts its clock anew
    late = going & (s[1:] > s[-1] - 5000) if len(s) else going
    if ds[late].sum() <= 0:
        return
    overall, recent = float(ds[going].sum() / dt[going].sum()), float(ds[late].sum() / dt[late].sum())
    figures, longer = dict(overall=overall, recent=recent), bool(s[-1] - s[0] > 5000)
    text = f'{overall:.4f} steps/s overall' + f' and {recent:.4f} over the last 5000' * longer
    left = known.total - s[-1] if known.total else 0
    if left > 0:
        figures.update(left=left, eta_overall_hours=left / overall / 3600, eta_recent_hours=left / recent / 3600)
        text += f'; {left:.10g} of {known.total} steps left: {left / overall / 3600:.1f} h'
        text += f' at the overall and {left / recent / 3600:.1f} h at the recent rate' * longer
    slow = longer and recent < 0.8 * overall
    head = f'it has slowed down to {100 * recent / overall:.0f}%'
    yield say('R07', 'warn' if slow else 'info', f'{text}. {head.capitalize()}.' if slow else f'{text}.', head, **figures)


def thirds(x):
    n = len(x)
    return [float(p.mean()) if len(p) else math.nan for p in (x[:n // 3], x[n // 3:2 * n // 3], x[2 * n // 3:])]


def r08(log, known):
    """A world with one action cannot be played, and its loss does not show it."""
    (e, _, entropy), (u, _, unique), (_, _, usage) = logged(log, ENTROPY), logged(log, UNIQUE), logged(log, USAGE)
    if e is None and u is None:
        return
    if not len(usage) and known.n_actions:
        usage = unique / known.n_actions
    series = [(name, x, d) for name, x, d in (('entropy', entropy, 3), ('unique actions', unique, 2), ('usage', usage, 3)) if len(x)]
    figures = {f'{name}_thirds': thirds(x) for name, x, _ in series}
    parts, complaints = [], []
    if len(entropy):
        figures.update(entropy_min=entropy.min(), entropy_max=entropy.max(), entropy_last=entropy[-1])
        parts.append(f'entropy {entropy.min():.4f}..{entropy.max():.4f} nats, last {entropy[-1]:.4f} = {math.exp(min(entropy[-1], 50)):.1f} '
                     'equally used actions' + (f' of {known.n_actions}' if known.n_actions else ''))
    by_third = [f'{name} ' + ' / '.join(f'{v:.{d}f}' for v in thirds(x)) for name, x, d in series if len(x) >= 3]
    parts += ['by thirds ' + '; '.join(by_third)] if by_third else []
    if len(usage):
        early, _, late = thirds(usage)
        if late < 0.25:
            complaints.append(f'late usage {100 * late:.1f}% of the codes is below 25%')
        if len(usage) >= 9 and late < 0.8 * early:            # fewer rows: single batches would be compared
            complaints.append(f'late usage is {100 * late / early:.0f}% of the early one, below 80%')
    one = ['one action'] if len(unique) >= 3 and (unique[-3:] <= 1).all() else []
    one += ['an entropy below 0.1'] if len(entropy) >= 3 and (entropy[-3:] < 0.1).all() else []
    text = f'Actions: {"; ".join(parts)}.' if parts else 'Actions: no value was logged.'
    if one:
        text += f' The last 3 logged rows have {" and ".join(one)}: collapsed.'
        yield say('R08', 'critical', text, 'the actions have collapsed', **figures)
    elif complaints:
        yield say('R08', 'warn', f'{text} {"; ".join(complaints).capitalize()}: low diversity.', 'low action diversity', **figures)
    else:
        yield say('R08', 'info', text, **figures)


def frozen(x):
    return len(x) > 100 and x.std() < 0.01


def r09(log, known):
    """A labeller that is not trained gives the same figures all along: nothing can be read off them."""
    for name, _, x in (logged(log, ENTROPY), logged(log, UNIQUE)):
        if frozen(x):
            yield say('R09', 'info', f'{name} stands at {x.mean():.4f} with a standard deviation of {x.std():.5f} over {len(x)} rows: the '
                      'labeller is frozen, so correlations with it say nothing.', 'the action labeller is frozen', mean=x.mean(), std=x.std())


def r10(log, known):
    """Does the loss move with the actions? Only a hint: both may follow the training."""
    parts, figures = [], {}
    for name, _, x in (logged(log, ENTROPY), logged(log, UNIQUE)):
        c = None if name is None or frozen(x) else correlation(log.loss, log.columns[name])
        if c is not None:
            word = 'none' if abs(c) < 0.1 else 'weak' if abs(c) < 0.3 else 'moderate' if abs(c) < 0.5 else 'strong'
            parts.append(f'corr(loss, {name}) = {c:.2f} ({word})')
            figures[name] = c
    if parts:
        yield say('R10', 'info', ', '.join(parts) + '. Both may follow the training: no cause is shown.', **figures)


def r11(log, known):
    """Single rows far above the rest: a bad batch, a gradient that was not clipped, or rows of another run."""
    if not log.spikes:
        return
    z, base, _ = log.z
    tops = [a + int(log.x[a:b + 1].argmax()) for a, b in log.spikes]
    chance = math.log(known.vocab[0]) if known.vocab else math.inf
    above = int((log.k * log.x[tops] > chance).sum())
    # a row by epoch is the mean of thousands of batches; one step above chance that came back is only a warning
    severity = 'critical' if above >= (1 if log.by_epoch else 2) else 'warn' if above or len(tops) >= 2 else 'info'
    shown = sorted(sorted(tops, key=lambda i: -log.x[i])[:6])
    text = ', '.join(f'{log.s[i]:.10g} ({log.x[i]:.4g}, z {z[i]:.1f})' for i in shown)
    text = f'{len(tops)} spike{"s" * (len(tops) > 1)} with z > 6 at {log.unit} {text}' + f' and {len(tops) - 6} lower ones' * (len(tops) > 6)
    text += f'; the median {"there" if len(log.x) >= 100 else "of all rows"} is {digits(base[shown[-1]])}.'
    text += f' {above} of them above ln {known.vocab[0]} = {chance:.2f}: worse than guessing.' if above else ''
    yield say('R11', severity, text, f'{len(tops)} spikes' + ', worse than guessing' * (above > 0), steps=log.s[tops][:100], z=z[tops][:100],
              values=log.x[tops][:100], above_chance=above)


def r12(log, known):
    """A series that jumps between two levels is two series: a trend over both is the trend of neither."""
    three = lambda x: f'{x:.3f}' if 0.01 <= x < 1000 else f'{x:.4g}'
    for name, (low, high, ratio, switches) in log.regimes.items():
        yield say('R12', 'warn', f'{name} lives on two levels, {three(low[0])}-{three(low[-1])} ({len(low)} rows) and {three(high[0])}-'
                  f'{three(high[-1])} ({len(high)} rows): nothing between them, gap x{ratio:.1f}, {switches} switches. Mixed runs or batches '
                  'are suspected; the trend is refused.', 'two levels: mixed runs or batches, no trend', gap=ratio, switches=switches)


def r13(a, b):
    """Two logs of the same run must agree; where they do not, neither is believed."""
    common, i, j = np.intersect1d(a.step, b.step, return_indices=True)
    names = [n for n in sorted(a.columns, key=lambda n: (n != a.loss_name, n)) if n in b.columns and n not in (a.step_name, b.step_name)]
    if not a.by_epoch:                                        # single steps are noise: the loss over four stretches of them
        names = [a.loss_name] * (a.loss_name == b.loss_name)
    if not len(common) or not names or a.by_epoch != b.by_epoch or not a.by_epoch and len(common) < 8:
        return
    cells = np.array([[b.columns[n][j], a.columns[n][i]] for n in names]).transpose(2, 0, 1)                   # (steps, names, 2)
    cells = np.where(np.isfinite(cells), cells, math.nan)
    if not a.by_epoch:
        stretches = np.array_split(np.arange(len(common)), 4)
        common = common[[p[0] for p in stretches]]
        cells = np.array([np.where(np.isnan(cells[p]), 0, cells[p]).mean(0) for p in stretches])
    ratios = cells[..., 0] / cells[..., 1]
    factors = ratios[np.isfinite(ratios) & (ratios > 0)]
    if not len(factors):
        return
    factors = np.maximum(factors, 1 / factors)
    near = int((np.abs(factors[:, None] / [2, 4, 8] - 1) <= 0.05).any(1).sum())
    if near >= (2 if a.by_epoch else 3):
        text, head = f'reduction mismatch suspected, {near} of {len(factors)} are within 5% of 2, 4 or 8', 'two logs differ by a whole factor'
    elif factors.max() > 1.2:
        text, head = f'they disagree, by up to x{factors.max():.2f}', 'two logs disagree'
    else:
        return
    shown = ', '.join(f'{at:.10g}: ' + '/'.join(f'{r:.2f}' for r in row) for at, row in list(zip(common, ratios))[:6])
    yield say('R13', 'warn', f'{b.name} over {a.name} at the same {a.unit}s ({"/".join(names)}) is {shown}: {text}. Nothing in the files '
              'says which is right.', head, ratios=ratios[:1000], near=near)


def r14(log, known):
    """How much has it learned, in nats under chance, for every vocabulary that is meant?"""
    if not known.vocab or not log.windows or log.mixed and not log.by_epoch:
        return
    now, first, parts = log.k * level(log), log.k * float(log.x[0]), []
    for v in known.vocab:
        over = now - math.log(v)
        parts.append(f'{abs(over):.2f} {"above" if over > 0 else "under"} ln {v} = {math.log(v):.2f} (perplexity '
                     f'{math.exp(min(now, 700)):.4g} = {math.exp(min(over, 700)):.3g} x {v})')
    above = [v for v in known.vocab if now > math.log(v) + still_untrained(log)]
    started = [v for v in known.vocab if first > math.log(v) + 0.5]                       # an untrained model stands a few tenths above
    text = f'Cross-entropy {now:.2f} nats is {" and ".join(parts)}.'
    if started and not above:
        which = 'both' if len(started) == len(known.vocab) == 2 else ' and '.join(f'ln {v}' for v in started)
        text += f' {first:.2f} at the start is above {which}.'
    yield say('R14', 'critical' if above else 'warn' if started else 'info', text,
              'worse than guessing' if above else 'it started worse than guessing', now=now, first=first)


def r15(log, known):
    """In a sum of terms the largest one is what is trained."""
    if not known.weights:
        return
    found = {n: w * log.columns[n] for n, w in known.weights.items() if n in log.columns}
    missing = ', '.join(clean(n) for n in known.weights if n not in found)
    if len(found) < 2:
        yield say('R15', 'info', f'No shares of the terms: this log has no column {missing}.')
        return
    terms = np.array(list(found.values()))
    terms = terms[:, np.isfinite(terms).all(0) & (terms >= 0).all(0) & (terms.sum(0) > 0)]
    if not terms.size:
        return
    parts, figures, worst = [], {}, []
    for name, x in zip(found, 100 * terms / terms.sum(0)):
        low, middle, high = figures[name] = [float(x.min()), float(np.median(x)), float(x.max())]
        parts.append(f'{name} {low:.1f}%..{high:.1f}%, median {middle:.1f}%')
        worst += [f'{name} varies x{high / low:.3g}' if low else f'{name} varies from nothing'] if high > 3 * low else []
        worst += [f'{name} is below 1%'] if middle < 1 else []
    text = f'Shares of the weighted terms: {"; ".join(parts + worst)}.' + f' Not in the log: {missing}.' * bool(missing)
    yield say('R15', 'warn' if worst else 'info', text, 'the terms of the loss are out of balance', **figures)


def r16(log, known):
    """An L1 on actions means nothing without its range and what a constant guess would score."""
    name, _, x = logged(log, r'(.*[/_])?(loss_ct|action_l1|l1_actions?|actions?_l1)')
    _, _, baseline = logged(log, r'(.*[/_])?(median_action_l1|l1_median_action|loss_ct_median|median_action)')
    if not len(x):
        return
    now, bad = float(x[-1]), False
    figures = dict(now=now, percent=50 * now, bins=now * 127.5, times=now / 0.01)
    text = (f'{name} is {now:.3f} on actions in [-1,1] = {50 * now + 1e-9:.1f}% of the range, {now * 127.5:.1f} bins of 2/255, '
            f'{100 * now:.1f} x 0.01; it is a mean over the dimensions already, so do not divide by their number. ')
    if len(baseline) and baseline[-1] > 0:
        ratio = figures['of_baseline'] = now / float(baseline[-1])
        bad = ratio > 0.9
        text += f'Always guessing the median action scores {baseline[-1]:.3f}: ratio {ratio:.2f}{", next to nothing is learned" * bad}.'
    else:
        text += 'How good that is depends on the score of the median action, which was not logged.'
    yield say('R16', 'critical' if bad else 'info', text, 'the actions are no better than the median action', **figures)


def r17(log, known):
    """A loss that stands still for epochs: more of the same will not help."""
    if not log.by_epoch or log.mixed or len(log.x) < 2:
        return
    moving = np.flatnonzero(np.abs(np.diff(log.x)) >= 0.01 * np.diff(log.s))
    start = moving[-1] + 1 if len(moving) else 0
    epochs = log.s[-1] - log.s[start]
    if epochs >= 3:
        rate = abs(log.x[-1] - log.x[start]) / epochs
        yield say('R17', 'info', f'Plateau: from {log.at(log.s[start])} to {log.s[-1]:.10g} the loss went from {digits(log.x[start])} to '
                  f'{digits(log.x[-1])}, {rate:.4f} per epoch (< 0.01).', f'a plateau since {log.at(log.s[start])}', per_epoch=rate)


def r18(points, log=None):
    """A checkpoint is worth what can be loaded from it: its size says nothing, and the newest one is what a restart would take."""
    other = [c for c in points if c.unjudged]
    if other:
        yield say('R18', 'warn', f'{len(other)} checkpoints could not be judged: {other[0].name}: {other[0].fault}.',
                  'checkpoints that could not be judged', 'Read them with the version that wrote them, with enough memory.')
    points = sorted((c for c in points if not c.unjudged), key=lambda c: c.step)
    if not points:
        return
    bad, good, n = [c for c in points if c.fault], [c for c in points if not c.fault], len(points)
    where, newest = f' ({points[0].group})' if points[0].group else '', points[-1].step
    last = max(newest, int(log.s[-1]) if log and len(log.s) and not log.by_epoch else 0)
    lost = last - good[-1].step if good else last
    figures = dict(checkpoints=n, invalid=len(bad), newest=newest, newest_valid=good[-1].step if good else None, steps_lost=lost)
    if not bad:
        yield say('R18', 'ok', f'All {n} checkpoints{where} are valid, the newest is of step {newest}.', **figures)
        return
    reasons = {}
    for c in bad:
        reasons.setdefault(c.fault, []).append(c.name)
    most = sorted(reasons.items(), key=lambda r: -len(r[1]))[:4]
    why = '; '.join(f'{len(names)} x {fault} (such as {names[-1]})' for fault, names in most)
    summary = f'{len(bad)} of {n} invalid ({100 * len(bad) / n:.0f}%), '
    summary += f'newest valid {good[-1].step}, {lost} steps lost' if good else f'none valid, all {lost} steps lost'
    yield say('R18', 'critical' if points[-1].fault or len(bad) > 0.1 * n else 'warn',
              f'Checkpoints{where}: {summary}. The newest is of step {newest}. {why}.', f'checkpoints: {summary}', **figures)


def r19(log, known):
    """Rows of two runs in one file look like one run that jumps."""
    o, parts, steps = log.order, [], log.step[~np.isnan(log.loss)]
    repeated, gap = int((np.diff(steps) == 0).sum()), spacing(steps)
    if 'unsorted' in o:
        parts.append(f'rows are out of order in {o["unsorted"]} places; they were sorted by {log.unit}')
    if 'back' in o:
        parts.append(f'the {log.unit} goes back {o["n_back"]} times (' + ', '.join(f'{a:.10g} -> {b:.10g}' for a, b in o['back']) + ')')
    if 'runs' in o:
        rows = ' + '.join(map(str, o['runs']))
        parts.append(f'{len(o["runs"])} runs stand in one file ({rows} rows), only number {o["run"] + 1} is judged here')
    if o.get('overwritten'):
        parts.append(f'{o["overwritten"]} rows that were done again are left out')
    if log.odd['headers']:
        parts.append(f'the line of names comes again {log.odd["headers"]} times')
    if repeated:
        parts.append(f'{repeated} rows repeat the {log.unit} before them')
    if parts:
        yield say('R19', 'warn', '; '.join(parts).capitalize() + '.', 'the rows are not those of one unbroken run',
                  back=o.get('n_back', 0), unsorted=o.get('unsorted', 0), repeated=repeated, runs=len(o.get('runs', [1])))
    gaps = np.flatnonzero(np.diff(steps) > 5 * gap)
    if len(gaps):
        widest = gaps[np.diff(steps)[gaps].argmax()]
        yield say('R19', 'warn', f'{len(gaps)} gap{"s" * (len(gaps) > 1)}, the widest from {log.at(steps[widest])} to '
                  f'{steps[widest + 1]:.10g}; rows are usually {gap:.10g} apart.', 'rows are missing',
                  'Find out what happened there, a crash or a log that was cut: no rule can see it.', gaps=len(gaps))


def r20(log, known):
    """After the first NaN in the loss nothing is trained any more."""
    for name in sorted(log.columns, key=lambda n: (n != log.loss_name, n)):
        x = log.columns[name]
        rows = np.flatnonzero(np.isinf(x))
        if len(rows) and name != log.step_name:
            kind, first = 'NaN' if x[rows[0]] == NAN else 'infinite, or beyond 1e100,', log.at(log.step[rows[0]])
            # a gradient norm may overflow in float16; the update is skipped and all is well
            yield say('R20', 'critical' if 'loss' in name else 'warn', f'{name} is {kind} first at {first}, {len(rows)} times in all, of '
                      f'{int((~np.isnan(x)).sum())} logged.', f'{name} is not finite from {first}', first=log.step[rows[0]], times=len(rows))


def r21(log, known):
    """An energy term that tells nothing apart trains nothing; one whose gradient reaches the policy teaches it to cheat. Columns:
    energy_loss and n_negatives (M), e_pos and e_neg (a low energy means a good match), grad_policy_from_energy."""
    def late(pattern):                                        # the median of the last tenth
        x = logged(log, r'(.*/)?' + pattern)[2]
        return float(np.median(x[-max(1, len(x) // 10):])) if len(x) else None

    loss, m, e_pos, e_neg = map(late, ('energy_loss', '(n_|num_)?(energy_)?negatives', '(e_pos|energy_pos)', '(e_neg|energy_neg)'))
    if loss is not None and m is not None and m >= 1 and loss >= 0.95 * math.log(1 + m):
        chance = math.log(1 + m)
        yield say('R21', 'warn', f'The energy loss is {loss:.3f}, {100 * loss / chance:.0f}% of ln(1 + {m:.10g}) = {chance:.3f}: it hardly '
                  f'tells the true pair from {m:.10g} others.', 'the energy term has not learned', loss=loss, m=m)
    if e_pos is not None and e_neg is not None and e_pos >= e_neg:
        yield say('R21', 'warn', f'E_pos = {e_pos:.4g} >= E_neg = {e_neg:.4g}: true pairs get no lower energy than false ones.',
                  'the energies are the wrong way round', e_pos=e_pos, e_neg=e_neg)
    name, s, g = logged(log, r'(.*/)?(grad_policy_from_energy|policy_grad_from_energy)')
    if (g != 0).any():
        at = s[np.flatnonzero(g)[0]]
        yield say('R21', 'critical', f'The energy loss reaches the policy: {name} is at most {np.abs(g).max():.3g}, and not 0 first at '
                  f'{log.at(at)}.', 'the energy loss leaks into the policy',
                  'Detach what the policy gives to the energy term, and test that this gradient is exactly 0.', first=at)


def r22(log, known):
    """A penalty that is spent after a few steps makes the first value look like learning: 100 x a variance that is 0.01 short."""
    latent = any('latent_action' in n for n in log.columns) or 'latent_action' in os.path.basename(log.path)
    if latent and len(log.x) and log.s[0] <= 1 and 1 <= log.x[0] <= 2 and np.median(log.x) < 0.5:
        yield say('R22', 'info', f'Composite loss: up to 1.0 of the first value {digits(log.x[0])} may be a variance penalty of 100 x 0.01, '
                  f'so the fall to {digits(log.x[-1])} is not all reconstruction.', first=log.x[0], penalty=1.0)


def r23(log, known):
    """Without held-out data nobody can tell learning from learning by heart."""
    if not any(re.fullmatch(HELD_OUT, n) or re.match(r'.*/(val|eval|test)_?loss', n) for n in log.columns):
        yield say('R23', 'info', 'No validation column: the log cannot tell learning from learning by heart.')


RULES = [r00, r01, r02, r03, r04, r05, r06, r07, r08, r09, r10, r11, r12, r14, r15, r16, r17, r19, r20, r21, r22, r23]


def examine(log, known):
    """All findings on one log. What several rules need is computed first; r13 wants two logs and r18 checkpoints."""
    log.k = divisor(log, known)
    terms = [n for n in sorted(log.columns) if n == log.loss_name or n in known.weights or 'loss' in n and not re.fullmatch(HELD_OUT, n)]
    found = {n: regimes(log.columns[n][np.isfinite(log.columns[n])]) for n in terms}
    log.regimes = {n: r for n, r in found.items() if r}
    log.mixed = bool(log.regimes)
    log.turned = None if log.mixed else turn(log.s, log.x)
    means = [m for _, _, m in log.windows]
    log.diverging = not log.mixed and len(means) >= 4 and min(means) > 0 and means[-1] > 1.1 * means[0] and spearman(means) >= 0.8
    log.rising = log.diverging or bool(log.turned) and log.turned['ratio'] >= 1.3         # the ratio of this project's own guard
    log.z = spikes(log.x) if len(log.x) >= 5 else None
    log.spikes = events(log.z[2]) if log.z else []
    return [f for rule in RULES for f in rule(log, known)]


# -----------------------------------------------------------------------------
# checkpoints: checkpoint.py reads every file, as it believes no size, no pickle and no zip entry before its checksum


def content_fault(path, name):
    """Why one file of a foreign checkpoint folder is no good, or ''."""
    from training import checkpoint
    import torch
    try:
        with open(path, 'rb') as f:
            content = checkpoint.read(f)                      # zip checksums, then torch.load(weights_only=True)
        size = os.path.getsize(path)
        todo, found = [content], 0
        while todo:
            value = todo.pop()
            if isinstance(value, torch.Tensor):
                found += 1
                if value.numel() * value.element_size() > size:                           # a few bytes can claim any shape
                    return f'a tensor in {name} claims to be larger than the file'
                if not torch.isfinite(value).all():
                    return f'{name} is not finite'
            elif isinstance(value, (dict, list, tuple)):
                todo += value.values() if isinstance(value, dict) else value
        return '' if found or not name.startswith('model') else f'{name} holds no tensor'
    except FileNotFoundError:
        return f'{name} is missing'
    except checkpoint.Damaged as e:
        return f'{name} holds an empty dict' if 'found nothing' in str(e) else f'{name}: {clean(e, 200)}'
    except checkpoint.pickle.UnpicklingError:
        return f'{name} holds Python objects, which could run code when loaded; refused'
    except Exception as e:                                    # whatever zipfile and torch raise for a broken file
        return f'{name} is unreadable: {type(e).__name__}'


def point(group, step, name, fault, unjudged=False, content=None):
    return SimpleNamespace(group=group, step=step, name=clean(name, 60), fault=fault, unjudged=unjudged, content=content)


def foreign_points(folder):
    """The checkpoints NAME_step_N/ in a folder, or the folder itself if it is one."""
    names = [n for n in sorted(os.listdir(folder)) if os.path.isdir(os.path.join(folder, n))]
    here = os.path.basename(os.path.abspath(folder))
    found = []
    for name in names + [here] * (not any(re.fullmatch(r'.*step_\d{1,15}', n) for n in names)):
        m = re.fullmatch(r'(.*?)_?step_(\d{1,15})', name)
        if not m:
            continue
        path = folder if name == here else os.path.join(folder, name)
        faults = [content_fault(os.path.join(path, part), part) for part in ('model_state_dict.pt', 'optim_state_dict.pt', 'state.pt')]
        found.append(point(clean(m[1], 40), int(m[2]), name, next((f for f in faults if f), '')))
    return found


def own_points(folder):
    """The checkpoints of one stage folder of this project."""
    from training import checkpoint
    found = []
    for step, path in checkpoint.numbered(folder):
        fault, unjudged, content = '', False, None
        try:
            content = checkpoint.load(path)
            fault = '' if content['optimizer'] else 'the optimizer is missing'
            content = {k: content[k] for k in ('stage', 'iter', 'config', 'model_args')}
        except checkpoint.CheckpointError as e:
            fault, unjudged = clean(e.reason, 200), not e.damaged
        found.append(point(clean(os.path.basename(os.path.abspath(folder)), 40), step, os.path.basename(path), fault, unjudged, content))
    return found


def is_stage(folder):
    return os.path.isfile(os.path.join(folder, 'log.csv')) or any(re.fullmatch(r'ckpt_\d{8,}\.pt', n) for n in os.listdir(folder))


def told_by(folder, points, known):
    """What the user did not say, from the newest valid checkpoint of a stage: the vocabulary (of dynamics: no other stage has a
    cross-entropy), the number of actions, the length of the run. A dynamics run that saved none has its tokenizer beside it."""
    whole = lambda v: v if type(v) is int and 1 < v < 10 ** 12 else None
    product = lambda v: whole(math.prod(v)) if isinstance(v, (tuple, list)) and len(v) < 20 and all(whole(n) for n in v) else None
    valid = lambda points: [p.content for p in sorted(points, key=lambda p: -p.step) if p.content and not p.fault]
    args, config = [(c['model_args'], c['config']) for c in [*valid(points), dict(model_args={}, config={})]][0]
    folder, vocab = os.path.abspath(folder), ()
    if os.path.basename(folder) == 'dynamics':
        size = whole(args.get('vocab_size'))
        for tokenizer in [] if size or known.vocab else valid(own_points(os.path.join(os.path.dirname(folder), 'tokenizer')))[:1]:
            size = product(tokenizer['model_args'].get('levels'))
        vocab = known.vocab or (size,) * bool(size)
    return SimpleNamespace(vocab=vocab, n_actions=known.n_actions or whole(args.get('n_actions')) or product(args.get('action_levels')),
                           total=known.total or whole(config.get('max_iters')), weights=known.weights)


def status_of(folder):
    """status.json of a stage folder, {} where there is none that can be read."""
    try:
        with open(os.path.join(folder, 'status.json'), encoding='utf-8', errors='replace') as f:
            status = json.loads(f.read(100_000))
        return status if isinstance(status, dict) else {}
    except (OSError, ValueError, RecursionError):
        return {}


# -----------------------------------------------------------------------------
# the report


def plain(v):
    """Numbers as JSON has them: no numpy, no NaN."""
    if isinstance(v, dict):
        return {str(k): plain(x) for k, x in v.items()}
    if isinstance(v, (list, tuple, np.ndarray)):
        return [plain(x) for x in v]
    if isinstance(v, (float, np.floating)):
        return float(v) if math.isfinite(v) else None
    return int(v) if isinstance(v, np.integer) else v


def conclude(findings):
    """(severity, headline): the worst finding's; of several as bad, what the loss did comes first."""
    counted = [f for f in findings if f['severity'] != 'info' or f['rule'] not in FIGURES]
    worst = max((f['severity'] for f in counted), key=SEVERITIES.index, default='ok')
    heads = [f for f in counted if f['head'] and f['severity'] == worst]
    order = ['R20', 'R03', 'R18', 'R04', 'R05', 'R14', 'R12', 'R08']
    heads.sort(key=lambda f: order.index(f['rule']) if f['rule'] in order else len(order))
    heads = list(dict.fromkeys((f['log'] + ': ' if f.get('log') else '') + f['head'] for f in heads))
    more = f'; and {len(heads) - 3} more' if len(heads) > 3 else ''
    return worst, '; '.join(heads[:3]) + more if heads else 'nothing was found' if findings else 'nothing could be read'


def verdict(log_path, vocab=None, total=None, n_actions=None):
    """The verdict on one log as one line, for the end of a training run: it never raises, whatever the log is like."""
    try:
        with np.errstate(all='ignore'):
            log = read_log(log_path, *read_columns(log_path))
            findings = examine(log, SimpleNamespace(vocab=(vocab,) if vocab else (), total=total, n_actions=n_actions, weights={}))
        severity, headline = conclude(findings)
        return f'verdict: {severity}: {headline}' + f' (python diagnose.py {clean(log_path)})' * (severity in ('warn', 'critical'))
    except Unreadable as e:
        return f'verdict: none: {e}'
    except Exception as e:                                    # the run that calls this has ended well; this must not end it otherwise
        return f'verdict: none: {type(e).__name__} in diagnose.py: {clean(e)}'


def print_findings(findings):
    """A section for each log; in it facts first and the worst last: the end is what a terminal shows."""
    for name in dict.fromkeys(f['log'] for f in findings):
        if name:
            print(f'--- {name}')
        for f in sorted((f for f in findings if f['log'] == name), key=lambda f: (max(1, SEVERITIES.index(f['severity'])), f['rule'])):
            for start, text in ((f'{f["rule"]} {f["severity"]:<9}', f['text']), (' ' * 10 + '-> ', f['action'])):
                if text:
                    print(textwrap.fill(text, 100, initial_indent=start, subsequent_indent=' ' * 13, break_on_hyphens=False))


class Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(3, f'diagnose: {clean(message, 200)}\npython diagnose.py --help shows how it is used\n')


def whole_numbers(text):
    if not re.fullmatch(r'\d{1,12}(,\d{1,12})*', text) or not all(1 < int(v) for v in text.split(',')):
        raise argparse.ArgumentTypeError(f'found {clean(text)!r}, expected whole numbers above 1, such as 65536 or 65536,8192')
    return tuple(map(int, text.split(',')))


def whole_number(text):
    if ',' in text:
        raise argparse.ArgumentTypeError(f'found {clean(text)!r}, expected one whole number')
    return whole_numbers(text)[0]


def weights(text):
    found = re.findall(r'([^:,]+):(\d+\.?\d*(?:e-?\d{1,2})?)(?:,|$)', text.lower())
    if ','.join(f'{name}:{w}' for name, w in found) != text.lower():
        raise argparse.ArgumentTypeError(f'found {clean(text)!r}, expected NAME:WEIGHT,NAME:WEIGHT such as closs:1,loss_ct:10')
    return {name.strip(): float(w) for name, w in found}


def collect(paths, known):
    """What stands at the paths: (logs with what is known about each, checkpoint groups, sentences about what cannot be read)."""
    logs, groups, unreadable = [], [], []

    def add_log(path, known, points=(), given=False):
        try:
            log = read_log(path, *read_columns(path))
            log.checkpoints, log.given = points, given
            logs.append((log, known))
            return log
        except Unreadable as e:
            unreadable.append(str(e))

    for path in paths:
        if not os.path.isdir(path):
            add_log(path, known, given=True)
            continue
        try:
            below = [os.path.join(path, n) for n in ('tokenizer', 'latent_actions', 'dynamics', 'policy')]
            stages = [path] if is_stage(path) else [p for p in below if os.path.isdir(p) and is_stage(p)]
            points = [] if stages else foreign_points(path)
            for stage in stages:
                own = own_points(stage)
                file = os.path.join(stage, 'log.csv')
                log = add_log(file, told_by(stage, own, known), own) if os.path.isfile(file) else None
                if log:
                    log.name, log.status = clean(os.path.basename(os.path.abspath(stage)), 40), status_of(stage)
                groups += [(own, log)] if own else []
            for group in sorted({p.group for p in points}):
                groups.append(([p for p in points if p.group == group], None))
            if not stages and not points:
                unreadable.append(f'{clean(path)}: found a folder without log.csv, ckpt_*.pt, stages or NAME_step_N folders')
        except (OSError, ImportError) as e:                   # ImportError: torch is wanted for checkpoints only
            unreadable.append(f'{clean(path)}: cannot be read: {clean(e, 200)}')
    names = [log.name for log, _ in logs]
    for log, _ in logs:
        log.name = log.name if names.count(log.name) == 1 else clean(log.path)
    lone = [log for log, _ in logs if log.given]
    if len(lone) == 1:                                        # one log and checkpoints without one: they belong together
        for i, (points, log) in enumerate(groups):
            if log is None:
                groups[i] = (points, lone[0])
                lone[0].checkpoints = points
    return logs, groups, unreadable


def main(argv=None):
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('paths', nargs='+', metavar='LOG or CHECKPOINT_DIR')
    parser.add_argument('--vocab', type=whole_numbers, default=(), help='how many tokens the cross-entropy chooses from: N or N,N')
    parser.add_argument('--total', type=whole_number, help='steps of the whole run, for the time left')
    parser.add_argument('--n_actions', type=whole_number, help='how many actions there are')
    parser.add_argument('--weights', type=weights, default={}, help='weights of the terms of the loss: closs:1,loss_ct:10')
    parser.add_argument('--json', action='store_true', help='the same as one JSON object')
    parser.add_argument('--plot', metavar='FILE.png', help='draw the first log')
    args = parser.parse_args(argv)
    known = SimpleNamespace(vocab=args.vocab, total=args.total, n_actions=args.n_actions, weights=args.weights)
    with np.errstate(all='ignore'):
        logs, groups, unreadable = collect(args.paths, known)
        findings, tables = [], {}
        for log, about in logs:
            findings += [dict(f, log=log.name * (len(logs) > 1)) for f in examine(log, about)]
            tables[log.path] = dict(windows=[dict(start=a, rows=n, mean=m) for a, n, m in log.windows], columns=sorted(log.columns))
        for points, log in groups:
            findings += [dict(f, log=log.name if log and len(logs) > 1 else '') for f in r18(points, log)]
            tables[f'checkpoints {points[0].group}'] = [dict(name=p.name, step=p.step, fault=p.fault) for p in points]
        given = [log for log, _ in logs if log.given]
        for a, b in zip(given, given[1:]):
            findings += [dict(f, log=f'{a.name} and {b.name}') for f in r13(a, b)]
        severity, headline = conclude(findings)
        if args.plot and logs:
            try:
                plot(*logs[0], headline, args.plot)
            except (OSError, ValueError, ImportError) as e:
                unreadable.append(f'{clean(args.plot)}: the picture cannot be written: {clean(e, 200)}')
    if args.json:
        report = dict(verdict=severity, headline=headline, findings=findings, tables=tables, unreadable=unreadable)
        print(json.dumps(plain(report), indent=1))
    else:
        print_findings(findings)
        for sentence in unreadable:
            print(textwrap.fill(sentence, 100), file=sys.stderr)
        sys.stderr.flush()
        if findings:
            print(f'verdict: {severity}: {headline}')
    return 3 if unreadable else {'ok': 0, 'info': 0, 'warn': 1, 'critical': 2}[severity]


# -----------------------------------------------------------------------------
# the picture


def ticks(low, high, log_scale):
    """Round values between two bounds for the marks of an axis."""
    if log_scale:
        exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        steps = (1, 2, 5) if high / low < 300 else (1,)
        values = [m * 10.0 ** e for e in exponents for m in steps if low <= m * 10.0 ** e <= high]
        return values[::max(1, math.ceil(len(values) / 8))]
    step = 10.0 ** math.floor(math.log10((high - low) / 4))
    step = next(m * step for m in (1, 2, 5, 10) if (high - low) / (m * step) <= 6)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def plot(log, known, headline, path):
    """The picture that one wants to see first: loss, window means, chance, learning rate, flagged steps."""
    from PIL import Image, ImageDraw, ImageFont
    if not len(log.x):
        raise ValueError('there is no finite loss to draw')
    W, H, left, right, top, bottom = 1400, 760, 110, 1270, 110, 650                       # pixels
    image = Image.new('RGB', (W, H), 'white')
    draw, font, large = ImageDraw.Draw(image), ImageFont.load_default(17), ImageFont.load_default(24)
    grey, blue, orange, red, green, purple = '#777777', '#4a86c5', '#d9730d', '#c4162a', '#6aa96a', '#8757b3'
    s, x, chance = log.s, log.x, math.log(known.vocab[0]) / log.k if known.vocab else None
    means = [m for _, _, m in log.windows]
    low, high = float(x.min()), float(np.quantile(x, 0.999) if len(x) > 2000 else x.max())
    if chance and low / 30 < chance < high * 30:
        low, high = min(low, chance), max(high, chance)
    log_scale = low > 0 and high / low >= 10
    pad = (high / low) ** 0.06 if log_scale else 0.06 * (high - low) if high - low > 1e-9 * abs(high) else 0.5 * abs(high) or 1.0
    low, high = (low / pad, high * pad) if log_scale else (low - pad, high + pad)
    span = (s[-1] - s[0]) or 1.0
    px = lambda v: left + (v - s[0]) / span * (right - left)
    scale = np.log if log_scale else (lambda v: v)
    py = lambda v: bottom - (scale(np.clip(v, low, high)) - scale(low)) / (scale(high) - scale(low)) * (bottom - top)

    for v in ticks(low, high, log_scale):
        draw.line([(left, py(v)), (right, py(v))], '#e4e4e4')
        draw.text((left - 10, py(v)), f'{v:.4g}', 'black', font, anchor='rm')
    for v in ticks(float(s[0]), float(s[0] + span), False):
        draw.line([(px(v), bottom), (px(v), bottom + 6)], 'black')
        draw.text((px(v), bottom + 12), f'{v:,.10g}', 'black', font, anchor='mt')
    name, ls, lr = logged(log, *LR)
    legend = [('loss, row by row', blue)]
    if len(lr) > 1 and lr.max() > 0:                          # its own axis on the right, from 0
        most = lr.max() * 1.08
        ly = lambda v: bottom - v / most * (bottom - top)
        keep = np.unique(np.linspace(0, len(ls) - 1, 1000).astype(int))
        draw.line([(px(a), ly(b)) for a, b in zip(ls[keep], lr[keep])], green, 2)
        for v in ticks(0.0, float(most), False):
            draw.text((right + 10, ly(v)), f'{v:.3g}', green, font, anchor='lm')
        draw.text((right + 10, top - 28), 'learning rate', green, font)
        legend.append(('learning rate (right)', green))
    columns = np.minimum(((s - s[0]) / span * (right - left)).astype(int), right - left)
    starts = np.flatnonzero(np.diff(columns, prepend=-1))     # one vertical line for the rows that share a column of pixels
    lows, highs = np.minimum.reduceat(x, starts), np.maximum.reduceat(x, starts)
    draw.line([(left + columns[a], py((lo + hi) / 2)) for a, lo, hi in zip(starts, lows, highs)], blue, 2 if len(x) < 600 else 1)
    for a, lo, hi in zip(starts, lows, highs):
        draw.line([(left + columns[a], py(lo)), (left + columns[a], py(hi) - 1)], blue)
    if len(means) > 1:
        ends = [a for a, _, _ in log.windows[1:]] + [float(s[-1])]
        for (a, _, m), b in zip(log.windows, ends):
            draw.line([(px(a), py(m)), (px(b), py(m))], orange, 4)
            draw.text(((px(a) + px(b)) / 2, py(m) - 8), short(m), orange, font, anchor='mb', stroke_width=3, stroke_fill='white')
        legend.append(('window means', orange))
    if chance and low <= chance <= high:
        for a in range(left, right, 16):
            draw.line([(a, py(chance)), (a + 8, py(chance))], red, 2)
        words = f'chance, ln {known.vocab[0]}' + (f' / {log.k}' if log.k > 1 else '') + f' = {chance:.3f}'
        draw.text((right - 6, py(chance) - 5), words, red, font, anchor='rb', stroke_width=3, stroke_fill='white')
    flags = [(log.turned['at'], 'turned')] if log.turned else []
    flags += [(log.s[a], 'spike') for a, _ in log.spikes[:40]]
    flags += [(log.step[i], 'not finite') for i in np.flatnonzero(np.isinf(log.loss))[:1]]
    used = -1e9
    for at, word in sorted(flags):
        draw.line([(px(at), top), (px(at), bottom)], purple, 2 if word != 'spike' else 1)
        if px(at) - used > 130:
            draw.text((px(at) + 5, top + 4), f'{word} at {at:.10g}', purple, font, stroke_width=3, stroke_fill='white')
            used = px(at)
    legend += [('flagged', purple)] * bool(flags)
    draw.rectangle([left, top, right, bottom], None, 'black')
    draw.text((left, 18), f'{log.name}: {clean(log.loss_name, 40)} by {log.unit}', 'black', large)
    draw.text((left, 50), clean(headline, 130), grey, font)
    draw.text(((left + right) / 2, bottom + 46), log.unit, 'black', font, anchor='mt')
    draw.text((left, top - 28), f'loss{" (log scale)" if log_scale else ""}', 'black', font)
    at = left
    for words, colour in legend:
        draw.rectangle([at, H - 38, at + 26, H - 32], colour)
        draw.text((at + 34, H - 35), words, 'black', font, anchor='lm')
        at += 60 + draw.textlength(words, font)
    image.save(path, 'PNG')


if __name__ == '__main__':
    sys.stdout.reconfigure(errors='replace')                  # a name that this terminal cannot show is no reason to stop
    try:
        sys.exit(main())
    except BrokenPipeError:                                   # python diagnose.py LOG | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
