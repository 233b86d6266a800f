"""Figures of a log that several rules use, and how a rule writes down what it found. s are steps
and x values, (rows,)."""
import math

import numpy as np

from diagnosis.formats import HELD_OUT
from diagnosis.log import find_column

ENTROPY, UNIQUE = r'(.*/)?action_entropy', r'(.*/)?unique_actions'
USAGE = r'.*codebook_usage'
LR = ('lr', 'learning.rate', r'.*[/_ ]lr', r'.*learning.rate.*', r'lr[-_/].*')


def finding(severity, text, head='', action='', **numbers):
    """What a rule yields: a sentence, its few words for the verdict, what to do next."""
    return dict(severity=severity, text=text, action=action, numbers=numbers, head=head)


def loss_text(x):
    """A loss: four decimals, or four digits where it is small or large."""
    return f'{x:.4f}' if 1 <= abs(x) < 1e4 else f'{x:.4g}'


def mean_text(x):
    """A mean of losses: a digit less."""
    return f'{x:.3f}' if 1 <= abs(x) < 1e4 else f'{x:.4g}'


def add_figures(log, told):
    """Gives the log what several rules need:

    windows    [(first step, rows, mean)]
    k          what the logged loss is divided by
    regimes    {column: its two levels}; mixed: there are any, so that no trend is believed
    turned     where the loss turned for the worse, or None; diverging, rising: how sure that is
    z          score, median and flag of each row; spikes: [(first row, last row)]
    """
    log.windows = log_windows(log.s, log.x)
    log.k = divisor(log, told)
    terms = {n for n in log.columns if 'loss' in n and not HELD_OUT.fullmatch(n)}
    terms |= {log.loss_name, *map(log.term, told.weights)} & set(log.columns)
    levels = {n: regimes(log.columns[n][np.isfinite(log.columns[n])]) for n in sorted(terms)}
    log.regimes = {n: found for n, found in levels.items() if found}
    log.mixed = bool(log.regimes)
    log.turned = None if log.mixed else turn(log.s, log.x)
    means = [m for _, _, m in log.windows]
    log.diverging = (not log.mixed and len(means) >= 4 and min(means) > 0
                     and means[-1] > 1.1 * means[0] and spearman(means) >= 0.8)
    # 1.3 is the ratio of this project's own guard
    log.rising = log.diverging or bool(log.turned) and log.turned['ratio'] >= 1.3
    log.z = spike_scores(log.x) if len(log.x) >= 5 else None
    log.spikes = events(log.z[2]) if log.z else []


def series(log, *patterns):
    """(name, steps, values) of a training column where it was logged and is finite; name is None
    if there is no such column."""
    name = find_column(log.names, *patterns)
    if name is None:
        return None, np.zeros(0), np.zeros(0)
    x = log.columns[name]
    good = np.isfinite(x)
    return name, log.step[good], x[good]


def spacing(s):
    """The usual distance of two steps that differ."""
    gaps = np.diff(s)
    gaps = gaps[gaps > 0]
    return float(np.median(gaps)) if len(gaps) else 1.0


def log_windows(s, x):
    """(first step, rows, mean) of each window of the largest 1, 2 or 5 x 10^n steps that gives at
    least 4; a last one that is shorter than half is merged into the one before. Fewer than 4 rows:
    each is its own window. Hardly two different steps: one window."""
    if len(x) < 4:
        return [(float(a), 1, float(b)) for a, b in zip(s, x)]
    gap = spacing(s)
    span = s[-1] - s[0] + gap
    largest, smallest = math.floor(math.log10(span)), math.floor(math.log10(gap)) - 1
    for width in (m * 10.0 ** e for e in range(largest, smallest - 1, -1) for m in (5, 2, 1)):
        window = np.floor((s - s[0]) / width + 1e-9)
        starts = np.flatnonzero(np.diff(window, prepend=-1))
        if len(starts) > 1 and span - window[-1] * width < width / 2:
            starts = starts[:-1]
        if len(starts) >= 4:
            rows = np.diff(starts, append=len(x))
            means = np.add.reduceat(x, starts) / rows
            first = s[0] + window[starts] * width
            return list(zip(first.tolist(), rows.tolist(), means.tolist()))
    return [(float(s[0]), len(x), float(x.mean()))]


def blocks(x, m):
    """x cut into m equal runs of rows -> the rows in their middles, their medians."""
    edges = np.linspace(0, len(x), m + 1).astype(int)
    medians = np.array([np.median(x[a:b]) for a, b in zip(edges, edges[1:])])
    return (edges[:-1] + edges[1:] - 1) // 2, medians


def smoothed(x):
    """Medians of up to 50 runs of rows, which one spike does not move: the rows in their middles,
    the medians."""
    return blocks(x, min(50, len(x), max(20, len(x) // 4)))


def smoothed_minimum(log):
    """The step at which the smoothed loss is lowest; None for fewer than 5 rows."""
    if len(log.x) < 5:
        return None
    rows, medians = smoothed(log.x)
    return log.s[rows[medians.argmin()]]


def loss_now(log):
    """The last window mean, or the last row where a row is the mean of an epoch."""
    return float(log.x[-1]) if log.by_epoch else log.windows[-1][2]


def correlation(a, b):
    """Pearson's, over the rows that have both; None where fewer than 3 have, or one of them never
    changes."""
    both = np.isfinite(a) & np.isfinite(b)
    a, b = a[both], b[both]
    if len(a) < 3 or any(np.ptp(v) <= 1e-12 * np.abs(v).max() for v in (a, b)):
        return None
    a, b = a - a.mean(), b - b.mean()
    return float((a @ b) / math.sqrt((a @ a) * (b @ b)))


def spearman(x):
    """Rank correlation of x with its order: 1 if it only rises."""
    x = np.asarray(x)
    ranks = (x[:, None] > x).sum(1) + 0.5 * (x[:, None] == x).sum(1)
    return correlation(ranks, np.arange(len(x)) + 0.0) or 0.0


def thirds(x):
    """The means of the first, the middle and the last third of the rows."""
    n = len(x)
    parts = x[:n // 3], x[n // 3:2 * n // 3], x[2 * n // 3:]
    return [float(p.mean()) if len(p) else math.nan for p in parts]


def divisor(log, told):
    """What the logged loss seems to be divided by. Only a row of step 0 or 1 is still at
    initialisation, where a cross-entropy stands at ln vocab; a mean over the first 50 updates may
    lie anywhere below it."""
    if not told.vocab or log.by_epoch or not len(log.x) or log.s[0] > 1:
        return 1
    chance = math.log(told.vocab[0])
    k = min((1, 2, 4, 8, 16, 32), key=lambda k: abs(k * log.x[0] - chance))
    return k if abs(k * log.x[0] - chance) <= 0.5 else 1


def regimes(x):
    """(values of the lower level, of the upper, ratio of the gap between, switches) where x lives
    on two levels, else None. The later half is looked at too: a loss that descends passes through
    any gap."""
    for part in (x, x[len(x) // 2:]) if len(x) >= 100 else (x,):
        y = np.sort(part)
        n = len(y)
        if n < 8 or y[0] <= 0:
            continue
        quarter = math.ceil(n / 4)  # rows that each level must have
        ratios = y[quarter:n - quarter + 1] / y[quarter - 1:n - quarter]
        if not len(ratios) or ratios.max() < 3:
            continue
        at = quarter + int(ratios.argmax())
        switches = int((np.diff(part >= y[at]) != 0).sum())
        if switches >= 3:
            return y[:at], y[at:], float(ratios.max()), switches
    return None


def turn(s, x):
    """Has the loss risen since its best? Compares the smoothed loss of the last blocks with its
    lowest; a rise is more than 6 standard errors of the noise, and than a tenth.

    -> dict(low, at, last, ratio), at: the last step within 10% of the lowest; or None.
    """
    if len(x) < 5 or x.min() <= 0:
        return None
    rows, y = smoothed(x)
    y = np.log(y)
    # of one row, whatever the trend
    noise = 1.4826 * float(np.median(np.abs(np.diff(np.log(x))))) / math.sqrt(2)
    rise = float(y[-max(2, len(y) // 15):].min() - y.min())
    if rise < max(math.log(1.1), 6 * noise / math.sqrt(len(x) / len(y))):
        return None
    last_good = rows[np.flatnonzero(y <= y.min() + math.log(1.1))[-1]]
    return dict(low=math.exp(y.min()), at=s[last_good], last=math.exp(y[-1]), ratio=math.exp(rise))


def spike_scores(x):
    """z of each row (distance to the median in 1.4826 MAD), the median at each row, and which rows
    are spikes, z > 6.

    From 100 rows on, median and MAD are those of the rows around, as a trend is no spike, and the
    logarithm must stand out as well, as the noise of a loss is a share of it. A spike also stands
    a fifth above the medians before and after: a new level is none, nor is the first descent.
    """
    m = min(200, max(1, len(x) // 50))
    rows, (middles, medians) = np.arange(len(x)), blocks(x, m)

    def score(x, medians):
        base = np.interp(rows, middles, medians)
        scale = np.interp(rows, middles, 1.4826 * blocks(np.abs(x - base), m)[1])
        return (x - base) / np.maximum(scale, 0.005 * np.abs(base) + 1e-30), base

    z, base = score(x, medians)
    around = np.pad(medians, 1, mode='edge')
    highest = np.maximum(np.maximum(around[:-2], medians), around[2:])
    highest = highest[np.minimum(rows * m // len(x), m - 1)]
    descended = rows > (x <= medians[0]).argmax()
    flagged = (z > 6) & (x > highest + 0.2 * np.abs(highest)) & descended
    if m > 1 and x.min() > 0:
        flagged &= score(np.log(x), np.log(medians))[0] > 6
    return z, base, flagged


def events(flagged):
    """Flagged rows as the first and last of each run of them; runs that are less than 1/200 of the
    log apart are one."""
    rows = np.flatnonzero(flagged)
    if not len(rows):
        return []
    breaks = np.flatnonzero(np.diff(rows) > max(1, len(flagged) // 200))
    firsts = rows[np.append(0, breaks + 1)]
    lasts = rows[np.append(breaks, len(rows) - 1)]
    return list(zip(firsts.tolist(), lasts.tolist()))
