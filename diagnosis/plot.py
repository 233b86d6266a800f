"""The picture that one wants to see first: the loss with its window means, chance, the learning
rate and the steps that were flagged."""
import logging
import math
import os
import warnings

import numpy as np

from diagnosis.figures import LR, mean_text, series
from diagnosis.formats import clean
from files import replacing

BLUE, ORANGE, RED = '#4a86c5', '#d9730d', '#c4162a'
GREEN, PURPLE, GREY = '#6aa96a', '#8757b3', '#666666'
PIXELS = 1160  # about what is between the two axes; more rows than that cannot be told apart


def limits(x, chance):
    """(lowest, highest value to show, are they far enough apart for a log scale?)"""
    low, high = float(x.min()), float(np.quantile(x, 0.999) if len(x) > 2000 else x.max())
    if chance and low / 30 < chance < high * 30:
        low, high = min(low, chance), max(high, chance)
    if low > 0 and high / low >= 10:
        room = (high / low) ** 0.06
        return low / room, high * room, True
    room = 0.06 * (high - low)
    if high - low <= 1e-9 * abs(high):
        room = 0.5 * abs(high) or 1.0
    return low - room, high + room, False


def envelope(s, x):
    """Steps and values, at most two points a column of pixels: its lowest and its highest row."""
    column = np.floor((s - s[0]) / ((s[-1] - s[0]) or 1.0) * PIXELS)
    starts = np.flatnonzero(np.diff(column, prepend=-1))
    ends = np.minimum.reduceat(x, starts), np.maximum.reduceat(x, starts)
    return np.repeat(s[starts], 2), np.stack(ends, 1).ravel()


def flags(log):
    """(step, word) of what to mark, in order."""
    found = [(log.s[first], 'spike') for first, _ in log.spikes[:40]]
    if log.turned:
        found.append((log.turned['at'], 'turned'))
    found += [(log.step[row], 'not finite') for row in np.flatnonzero(np.isinf(log.loss))[:1]]
    return sorted(found)


@np.errstate(all='ignore')
def plot(log, told, headline, path):
    """Draws a log that was examined to a PNG of 1400 x 760 pixels. Raises what matplotlib raises
    for absurd numbers, ValueError where there is no loss to draw."""
    logging.getLogger('matplotlib').setLevel(logging.ERROR)  # it speaks when used the first time
    from matplotlib.figure import Figure
    from matplotlib.patheffects import withStroke
    from matplotlib.ticker import LogLocator, NullLocator
    if not len(log.x):
        raise ValueError('there is no finite loss to draw')
    figure = Figure(figsize=(14, 7.6), dpi=100)
    axes = figure.add_axes((0.06, 0.15, 0.875, 0.68))
    first, last = log.s[0], log.s[-1]

    def write(words, x, y, dx, dy, colour, **more):
        """words beside a point of the data, or of the axes where xycoords says so."""
        halo = withStroke(linewidth=3, foreground='white')
        axes.annotate(words, (x, y), (dx, dy), textcoords='offset points', color=colour,
                      fontsize=12, path_effects=[halo], **more)

    axes.plot(*envelope(log.s, log.x), color=BLUE, lw=1 if len(log.x) > 600 else 1.6,
              label='loss, row by row')
    if len(log.windows) > 1:
        ends = [start for start, _, _ in log.windows[1:]] + [last]
        for (start, _, mean), end in zip(log.windows, ends):
            line, = axes.plot((start, end), (mean, mean), color=ORANGE, lw=3.5,
                              solid_capstyle='butt')
            write(mean_text(mean), (start + end) / 2, mean, 0, 6, ORANGE, ha='center',
                  weight='bold')
        line.set_label('window means')
    chance = math.log(told.vocab[0]) / log.k if told.vocab else None
    low, high, log_scale = limits(log.x, chance)
    if chance and low <= chance <= high:
        axes.axhline(chance, color=RED, lw=1.6, ls='--', label='chance')
        divided = f' / {log.k}' if log.k > 1 else ''
        write(f'chance, ln {told.vocab[0]}{divided} = {chance:.3f}', 1, chance, -8, 5, RED,
              ha='right', xycoords=('axes fraction', 'data'))
    free = first
    for step, word in flags(log):
        line = axes.axvline(step, color=PURPLE, lw=1 if word == 'spike' else 2, zorder=1.5)
        if step >= free:  # else the words would stand on those of the step before
            write(f'{word} at {step:,.10g}', step, 1, 6, -16, PURPLE,
                  xycoords=('data', 'axes fraction'))
            free = step + 0.12 * (last - first)
        line.set_label('flagged')

    _, s, lr = series(log, *LR)
    lines = axes.get_lines()
    if len(lr) > 1 and lr.max() > 0:
        right = axes.twinx()
        keep = np.unique(np.linspace(0, len(s) - 1, PIXELS).astype(int))
        lines += right.plot(s[keep], lr[keep], color=GREEN, lw=1.6, label='learning rate (right)')
        right.set_ylim(0, 1.08 * lr.max())
        right.tick_params(colors=GREEN, labelsize=12, length=0, pad=9)
        right.spines[:].set_visible(False)
        right.yaxis.set_major_formatter('{x:.3g}')
        axes.set_zorder(1)  # the loss is drawn over the learning rate
        axes.patch.set_visible(False)
    axes.set_xlim(first, last if last > first else first + (abs(first) or 1))
    if log_scale:
        axes.set_yscale('log')
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 300 else (1,)))
        axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylim(low, high)
    axes.yaxis.set_major_formatter('{x:.4g}')
    axes.xaxis.set_major_formatter('{x:,.10g}')
    axes.grid(axis='y', color='#e4e4e4')
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=12, length=0)
    axes.spines[['top', 'left', 'right']].set_visible(False)
    axes.set_xlabel(log.unit, fontsize=13)
    legend = {line.get_label(): line for line in lines if not line.get_label().startswith('_')}
    figure.legend(legend.values(), legend.keys(), loc='lower left', bbox_to_anchor=(0.02, 0.005),
                  ncols=5, frameon=False, fontsize=13)
    title = f'{log.name}: {clean(log.loss_name, 40)} by {log.unit}'
    if log_scale:
        title += ', log scale'
    # the names are a stranger's: a $ in them starts no formula
    figure.text(0.03, 0.94, title, fontsize=19, weight='bold', parse_math=False)
    figure.text(0.03, 0.89, clean(headline, 130), fontsize=14, color=GREY, parse_math=False)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # a letter that the font lacks
        if not os.path.isdir(os.path.dirname(path) or '.'):
            raise OSError('there is no such folder')
        with replacing(path) as tmp:
            figure.savefig(tmp, format='png')
