"""
One function a rule. It takes a log with its figures and what was told about the run, yields its
findings, and says in its docstring why it exists. The first letters of its name are its number.
"""
import math
from dataclasses import dataclass, field, replace

import numpy as np

from diagnosis import rules_policy, rules_reading
from diagnosis.figures import (ENTROPY, LR, UNIQUE, USAGE, add_figures, correlation, events,
                               finding, loss_now, loss_text, mean_text, series,
                               smoothed_minimum, spearman, thirds)
from diagnosis.formats import Unreadable, clean
from diagnosis.log import find_column, read_logs

SEVERITIES = ['ok', 'info', 'warn', 'critical']
# the figures of these are for the reader: at info they leave the verdict at ok
NEVER_ACCUSE = {'R00', 'R01', 'R06', 'R07', 'R08', 'R10', 'R14', 'R15', 'R16', 'R19', 'R22', 'R23',
                'R24'}

LOWER = ('Restart from scratch with a rate 20 to 1000 times lower or a longer warmup; what was '
         'learned after this is not worth keeping.')
ACTIONS = {  # what to do next, where a rule does not say it itself
    'R02': 'Log the undivided mean over all micro-batches and ranks. Until then multiply before '
           'you compare with ln vocab.',
    'R04': 'Stop. If the run is older than its warmup: is --vocab right, is the loss a mean in '
           'nats, do targets and logits belong together? Then a rate 20 times lower.',
    'R05': 'As for R03; the present weights are worth less than fresh ones.',
    'R06': 'Lower the rate; the action of R03 says to what. That rate and loss go together is no '
           'proof: the smoke run is.',
    'R07': 'Look at the data loader, at what else runs on the machine, and at its temperature.',
    'R08': 'Use fewer actions, or retrain stages 2 and 3 together; look at the strip of pictures '
           'of each action first.',
    'R11': 'Log loss and gradient norm per batch; look at those batches, at gradient clipping and '
           'at the warmup.',
    'R12': 'Write one file per run, and means over all ranks and batches; then ask again.',
    'R13': 'Use one file per run and the mean over all batches and ranks in both; log the divisor '
           'if there is one.',
    'R14': 'Is this vocabulary the one that is predicted, is the loss a mean in nats and not a '
           'sum, is the last layer initialised small?',
    'R15': 'Log each term on its own and choose weights that keep each share within a factor of 3.',
    'R16': 'Compute the median-action baseline on held-out data first, then look at the labels '
           'and their alignment in time.',
    'R18': 'Let only the master write, to a temporary file that is then renamed, and verify it '
           'after each save; then run 1000 to 2000 steps including a restore.',
    'R19': 'Write one file per run; if runs were appended, split the file and judge each on its '
           'own.',
    'R20': 'Go back to a checkpoint before that; look at that batch; lower the rate, clip '
           'gradients, keep softmax and norms in float32.',
    'R21': 'Check that positives and negatives differ in the data, which of them is which, and '
           'the sign of the energy.',
}


@dataclass
class Told:
    """What the user, the script or its checkpoints say about a run."""
    vocab: tuple = ()  # sizes of the vocabularies that the cross-entropy may choose from
    total: int | None = None  # steps of the whole run
    n_actions: int | None = None
    weights: dict = field(default_factory=dict)  # of the terms of the loss


# -----------------------------------------------------------------------------
# the direction of the loss


def r03_trend(log, told):
    """The direction of the loss, by window means: the first thing to know, and what one noisy row
    cannot tell."""
    state = log.status.get('state')
    if state in ('diverged', 'nonfinite'):
        reason = clean(str(log.status.get('reason')).split('\n')[0], 200)
        yield finding('critical', f'The trainer itself stopped this run, says its status.json: '
                      f'{state} at iter {clean(log.status.get("iter"))}: {reason}.',
                      f'the trainer stopped it as {state}',
                      'Restart with a lower rate; status.json says from where.')
    means, turned = [m for _, _, m in log.windows], log.turned
    if len(means) == 1:
        yield finding('info', f'No trend: all {log.unit}s fall into one window.',
                      'too few rows for a trend')
    if log.mixed or len(means) < 2:
        return
    ratio = means[-1] / means[0] if min(means) > 0 else math.nan
    numbers = dict(spearman=spearman(means), ratio=ratio, first=means[0], last=means[-1])
    first, last = mean_text(means[0]), mean_text(means[-1])
    times = f'x{ratio:.2f}, ' if min(means) > 0 else ''
    where = (f'the window means go from {first} to {last} '
             f'({times}Spearman {numbers["spearman"]:.2f})')
    at = log.s[0]
    if turned:
        at = turned['at']
        where += (f'. The smoothed loss was last within 10% of its lowest, '
                  f'{mean_text(turned["low"])}, at about {log.at(at)}; there it turned. It has '
                  f'stayed at x{turned["ratio"]:.2f} or more and is now '
                  f'{mean_text(turned["last"])}')
        numbers.update(turned=at, lowest=turned['low'], now=turned['last'],
                       since_lowest=turned['ratio'])
    rise = ratio if log.diverging or not turned else turned['ratio']
    if log.rising and log.held_out:
        yield finding('warn', f'The held-out loss rises: {where}.', f'the held-out loss rises '
                      f'(x{rise:.2f}), it turned at {log.at(at)}', 'Judge the log of the training '
                      'loss as well: if that one falls, the model learns by heart. Then stop '
                      'there, or use more data.', **numbers)
    elif log.rising:
        yield finding('critical', f'Diverging: {where}.', f'the loss is diverging (x{rise:.2f}), '
                      f'it turned at {log.at(at)}', restart_advice(log), **numbers)
    elif turned:
        yield finding('warn', f'Rising again: {where}.', f'the loss rises again, it turned at '
                      f'{log.at(at)}', 'Watch it: from x1.3 on it counts as diverging. Keep a '
                      'checkpoint from before; lower the rate if it goes on.', **numbers)
    elif min(means) <= 0:
        yield finding('info', f'The loss is not always positive, so ratios say nothing; {where}.',
                      'the loss is not positive', **numbers)
    elif ratio < 0.95:
        yield finding('ok', f'Falling: {where}.',
                      f'the loss is falling, window means {first} -> {last}', **numbers)
    elif ratio > 1.1 and len(means) < 4:
        yield finding('info', f'{len(means)} rows are too few to call it a trend: {where}.',
                      'too few rows for a trend', **numbers)
    else:
        yield finding('info', f'Flat, or without direction: {where}.',
                      f'the loss is flat, window means {first} -> {last}', **numbers)


def restart_advice(log):
    """What to do about a diverged run: from where, and how fast."""
    _, s, lr = series(log, *LR)
    at, text = smoothed_minimum(log), 'Stop. Restart from scratch or from the last valid checkpoint'
    if at is not None:
        text += (f' at or before {log.at(at)}, the smoothed minimum (a later one holds a diverged '
                 'model)')
        text += which_checkpoint(log, at)
        if len(lr) and lr[-1] > 0:
            then = float(np.interp(at, s, lr))
            rate = min(lr[-1] / 20, then / 3 if then > 0 else math.inf)
            text += f', with lr = {rate:.2g} (the smaller of lr now / 20 and lr at the minimum / 3)'
    return text + '. Then a smoke run of 5000 steps, looking at window means.'


def which_checkpoint(log, at):
    """The last valid one at or before a step, if the log counts what checkpoints count."""
    if log.unit != 'step':
        return (f'. Checkpoints count steps and this log is judged by {log.unit}s, so none can be '
                f'chosen by it: look up at which step {log.at(at)} was')
    if 'other' in log.counted or 'sparse' in log.counted:
        return ('. Which of its counters the checkpoints have is not said in the log, so none is '
                'chosen here: compare them first')
    newest = max((c.step for c in log.checkpoints), default=0)
    if newest > 2 * log.step[-1]:
        return (f'. None is chosen here: the checkpoints go to step {newest} and {log.step_name} '
                f'to {log.step[-1]:.10g}, so they do not count the same')
    valid = [c.step for c in log.checkpoints if not c.fault and c.step <= at]
    if valid:
        return f': that of {log.at(max(valid))}'
    return ': there is none, so from scratch' if log.checkpoints else ''


def r05_worse_than_untrained(log, told):
    """Worse than untrained: there is nothing in the model to rescue."""
    if log.rising and not log.held_out and log.windows[-1][2] > 1.05 * log.x[0] > 0:
        last, first = log.windows[-1][2], log.x[0]
        yield finding('critical', f'Worse than at initialisation: the last window mean '
                      f'{mean_text(last)} > {loss_text(first)}, the first row '
                      f'({log.at(log.s[0])}).', 'worse than at initialisation',
                      last=last, first=first)


def r06_learning_rate(log, told):
    """The rate is the first suspect of a rising loss: compare it with the rate at which the loss
    was still low."""
    _, s, lr = series(log, *LR)
    if len(lr) < 2 or lr.max() <= 0 or not len(log.x):
        return
    peak, at, loss = int(lr.argmax()), smoothed_minimum(log), np.interp(s, log.s, log.x)
    percent = 100 * lr[-1] / lr[peak]
    together = dict(before=correlation(loss[:peak + 1], lr[:peak + 1]),
                    after=correlation(loss[peak:], lr[peak:]))
    numbers = dict(lr=lr[-1], peak=lr[peak], percent=percent, **together)
    severity, hot = 'info', ''
    text = f'lr is {lr[-1]:.3g} = {percent:.1f}% of its peak ({lr[peak]:.3g} at {log.at(s[peak])})'
    if at is not None:
        then = numbers['at_minimum'] = float(np.interp(at, s, lr))
        text += f'; it was {then:.3g} at the smoothed minimum of the loss ({log.at(at)})'
        if log.rising and lr[-1] > 3 * then > 0:
            severity, hot = 'warn', f' The loss rises at {lr[-1] / then:.1f} times that rate.'
    found = [f'{c:.2f} {when} the peak' for when, c in together.items() if c is not None]
    if found:
        text += f'; corr(loss, lr) is {" and ".join(found)}'
    yield finding(severity, f'{text}.{hot}', 'the learning rate is too high', **numbers)


def r11_spikes(log, told):
    """Single rows far above the rest: a bad batch, a gradient that was not clipped, or rows of
    another run."""
    if not log.spikes:
        return
    z, medians, _ = log.z
    tops = [a + int(log.x[a:b + 1].argmax()) for a, b in log.spikes]
    chance = math.log(told.vocab[0]) if told.vocab else math.inf
    above = int((log.k * log.x[tops] > chance).sum())
    severity = 'warn' if above or len(tops) >= 2 else 'info'
    # a row by epoch is the mean of thousands of batches; one step that came back only warns
    if above >= (1 if log.by_epoch else 2):
        severity = 'critical'
    shown = sorted(sorted(tops, key=lambda i: -log.x[i])[:6])
    spikes = ', '.join(f'{log.s[i]:.10g} ({log.x[i]:.4g}, z {z[i]:.1f})' for i in shown)
    s, of = 's' if len(tops) > 1 else '', 'there' if len(log.x) >= 100 else 'of all rows'
    text, head = f'{len(tops)} spike{s} with z > 6 at {log.unit} {spikes}', f'{len(tops)} spikes'
    if len(tops) > 6:
        text += f' and {len(tops) - 6} lower ones'
    text += f'; the median {of} is {loss_text(medians[shown[-1]])}.'
    if above:
        text += f' {above} of them above ln {told.vocab[0]} = {chance:.2f}: worse than guessing.'
        head += ', worse than guessing'
    yield finding(severity, text, head, steps=log.s[tops][:100], z=z[tops][:100],
                  values=log.x[tops][:100], above_chance=above)


def r12_regimes(log, told):
    """A series that jumps between two levels is two series: a trend over both is the trend of
    neither."""
    def three_digits(x):
        return f'{x:.3f}' if 0.01 <= x < 1000 else f'{x:.4g}'

    for name, (low, high, ratio, switches) in log.regimes.items():
        levels = [f'{three_digits(x[0])}-{three_digits(x[-1])} ({len(x)} rows)'
                  for x in (low, high)]
        yield finding('warn', f'{name} lives on two levels, {" and ".join(levels)}: nothing '
                      f'between them, gap x{ratio:.1f}, {switches} switches. Mixed runs or batches '
                      'are suspected; the trend is refused.',
                      'two levels: mixed runs or batches, no trend', gap=ratio, switches=switches)


def r17_plateau(log, told):
    """A loss that stands still for epochs: more of the same will not help."""
    if not log.by_epoch or log.mixed or len(log.x) < 2:
        return
    moving = np.flatnonzero(np.abs(np.diff(log.x)) >= 0.01 * np.diff(log.s))
    start = moving[-1] + 1 if len(moving) else 0
    (s, x), epochs = (log.s[start:], log.x[start:]), log.s[-1] - log.s[start]
    if epochs >= 3:
        rate = abs(x[-1] - x[0]) / epochs
        yield finding('info', f'Plateau: from {log.at(s[0])} to {s[-1]:.10g} the loss went from '
                      f'{loss_text(x[0])} to {loss_text(x[-1])}, {rate:.4f} per epoch (< 0.01).',
                      f'a plateau since {log.at(s[0])}', per_epoch=rate)


# -----------------------------------------------------------------------------
# the loss against chance, ln vocab


def r02_divided_loss(log, told):
    """A loss divided by the accumulation steps or ranks looks better than it is, and can hide that
    it is worse than guessing."""
    if log.k > 1:
        vocab, chance, undivided = told.vocab[0], math.log(told.vocab[0]), log.k * log.x[0]
        over, sign = undivided - chance, '-' if undivided < chance else '+'
        yield finding('warn', f'The logged loss seems to be divided by {log.k}: an untrained model '
                      f'stands near ln {vocab} = {chance:.3f}, and the first row, '
                      f'{loss_text(log.x[0])}, times {log.k} is {undivided:.3f} = ln {vocab} '
                      f'{sign} {abs(over):.3f}. The rules below count with it.',
                      f'the logged loss is divided by {log.k}', k=log.k, undivided=undivided,
                      over=over)


def untrained_margin(log):
    """Nats above chance that a run of a few rows may stand at, as an untrained model does."""
    return 0.5 if len(log.windows) < 4 else 0.0


def r04_worse_than_guessing(log, told):
    """Above ln vocab a model predicts worse than one that has seen nothing: everything it made is
    useless. Nor is a run sound that spent a tenth of its rows above twice that, as no untrained
    model does: it blew up, even if the loss falls again. For pixels the same is a PSNR below 0 dB:
    a grey frame has 6 or more."""
    _, s, psnr = series(log, '(.*/)?psnr')
    if log.mixed or not log.windows or not told.vocab and not len(psnr):
        return
    if told.vocab:
        vocab, chance, now = told.vocab[0], math.log(told.vocab[0]), log.k * loss_now(log)
        if now > chance + untrained_margin(log):
            which = 'last row' if log.by_epoch else 'last window mean'
            product = f'{log.k} x {mean_text(loss_now(log))} = ' if log.k > 1 else ''
            yield finding('critical', f'Worse than guessing: the {which}, {product}{now:.2f} nats '
                          f'> ln {vocab} = {chance:.2f}.', 'worse than guessing',
                          'As for R03.' if log.rising else '', now=now, chance=chance)
        s, x, limit = log.s, log.k * log.x, 2 * chance
    else:
        if psnr[-1] < 0:
            yield finding('critical', f'Worse than guessing: the last row has a PSNR of '
                          f'{psnr[-1]:.1f} dB, a grey frame has 6 or more.',
                          'worse than a grey frame', LOWER, now=psnr[-1])
        x, limit = -psnr, 0
    a, b = max(events(x > limit), key=lambda e: e[1] - e[0], default=(0, -1))
    n = b - a + 1
    if log.by_epoch or log.rising or n < max(3, len(x) / 10):
        return
    top = a + int(x[a:b + 1].argmax())
    if top > 0 or s[0] > 1:  # row 0 of step 0 would be a bad initialisation: R14
        when = f'at {log.at(s[a - 1])}' if a else f'before {log.at(s[0])}'
        where = f'below 0 dB of PSNR, worse than a grey frame, at worst -{x[top]:.1f}'
        if told.vocab:
            where = f'above twice ln {vocab} = {chance:.2f}, at most {x[top]:.2f}'
        yield finding('critical', f'The loss blew up: from {log.at(s[a])} to {s[b]:.10g}, {n} of '
                      f'{len(x)} rows, it stands {where} at {log.at(s[top])}. It turned {when}.',
                      f'the loss blew up, it turned {when}', LOWER, turned=s[max(0, a - 1)],
                      worst=x[top])


def r14_vocabularies(log, told):
    """How much has it learned, in nats under chance, for every vocabulary that is meant?"""
    if not told.vocab or not log.windows or log.mixed and not log.by_epoch:
        return
    now, first, parts = log.k * loss_now(log), log.k * float(log.x[0]), []
    for v in told.vocab:
        over = now - math.log(v)
        side = 'above' if over > 0 else 'under'
        parts.append(f'{abs(over):.2f} {side} ln {v} = {math.log(v):.2f} (perplexity '
                     f'{math.exp(min(now, 700)):.4g} = {math.exp(min(over, 700)):.3g} x {v})')
    text = f'Cross-entropy {now:.2f} nats is {" and ".join(parts)}.'
    severity, head = 'info', 'it started worse than guessing'
    # an untrained model stands a few tenths above
    started = [f'ln {v}' for v in told.vocab if first > math.log(v) + 0.5]
    if any(now > math.log(v) + untrained_margin(log) for v in told.vocab):
        severity, head = 'critical', 'worse than guessing'
    elif started:
        both = len(started) == len(told.vocab) == 2
        text += f' {first:.2f} at the start is above {"both" if both else " and ".join(started)}.'
        severity = 'warn'
    yield finding(severity, text, head, now=now, first=first)


# -----------------------------------------------------------------------------
# speed, and the latent actions


def r07_speed(log, told):
    """When will it be done, and has it slowed down?"""
    name = find_column(log.columns, '_runtime', 'runtime', '.*/runtime', 'elapsed.*',
                       'wall.?time', '_timestamp', 'timestamp', 'time')
    if name is None or log.unit != 'step':
        return
    good = np.isfinite(log.columns[name])
    s, ds, dt = log.step[good], np.diff(log.step[good]), np.diff(log.columns[name][good])
    if not len(dt) or (dt < 0).mean() > 0.1:  # the time of an update is no clock
        return
    going = (dt > 0) & (ds >= 0)  # a resumed run starts its clock anew
    late = going & (s[1:] > s[-1] - 5000)
    if ds[late].sum() <= 0:
        return
    overall, recent = (float(ds[rows].sum() / dt[rows].sum()) for rows in (going, late))
    numbers, longer = dict(overall=overall, recent=recent), s[-1] - s[0] > 5000
    text = f'{overall:.4f} steps/s overall'
    if longer:
        text += f' and {recent:.4f} over the last 5000'
    left = told.total - s[-1] if told.total else 0
    if left > 0:
        hours, recent_hours = left / overall / 3600, left / recent / 3600
        numbers.update(left=left, eta_overall_hours=hours, eta_recent_hours=recent_hours)
        text += f'; {left:.10g} of {told.total} steps left: {hours:.1f} h'
        if longer:
            text += f' at the overall and {recent_hours:.1f} h at the recent rate'
    severity, head = 'info', f'it has slowed down to {100 * recent / overall:.0f}%'
    if longer and recent < 0.8 * overall:
        severity, text = 'warn', f'{text}. {head.capitalize()}'
    yield finding(severity, f'{text}.', head, **numbers)


def r08_action_diversity(log, told):
    """A world with one action cannot be played, and its loss does not show it."""
    has_entropy, _, entropy = series(log, ENTROPY)
    has_unique, _, unique = series(log, UNIQUE)
    _, _, usage = series(log, USAGE)
    if not has_entropy and not has_unique:
        return
    if not len(usage) and told.n_actions:
        usage = unique / told.n_actions
    numbers, parts, by_thirds = {}, [], []
    for name, x, decimals in (('entropy', entropy, 3), ('unique actions', unique, 2),
                              ('usage', usage, 3)):
        if len(x):
            numbers[f'{name}_thirds'] = thirds(x)
        if len(x) >= 3:
            by_thirds.append(f'{name} ' + ' / '.join(f'{v:.{decimals}f}' for v in thirds(x)))
    if len(entropy):
        low, high, last = entropy.min(), entropy.max(), entropy[-1]
        numbers.update(entropy_min=low, entropy_max=high, entropy_last=last)
        of = f' of {told.n_actions}' if told.n_actions else ''
        parts.append(f'entropy {low:.4f}..{high:.4f} nats, last {last:.4f} = '
                     f'{math.exp(min(last, 50)):.1f} equally used actions{of}')
    if by_thirds:
        parts.append('by thirds ' + '; '.join(by_thirds))
    text = f'Actions: {"; ".join(parts) or "no value was logged"}.'
    collapsed, complaints = [], []
    if len(unique) >= 3 and (unique[-3:] <= 1).all():
        collapsed.append('one action')
    if len(entropy) >= 3 and (entropy[-3:] < 0.1).all():
        collapsed.append('an entropy below 0.1')
    early, _, late = thirds(usage)
    if late < 0.25:
        complaints.append(f'late usage {100 * late:.1f}% of the codes is below 25%')
    if len(usage) >= 9 and late < 0.8 * early:  # fewer rows would be single batches
        complaints.append(f'late usage is {100 * late / early:.0f}% of the early one, below 80%')
    if collapsed:
        yield finding('critical', f'{text} The last 3 logged rows have {" and ".join(collapsed)}: '
                      'collapsed.', 'the actions have collapsed', **numbers)
    elif complaints:
        yield finding('warn', f'{text} {"; ".join(complaints).capitalize()}: low diversity.',
                      'low action diversity', **numbers)
    else:
        yield finding('info', text, **numbers)


def is_frozen(x):
    return len(x) > 100 and x.std() < 0.01


def r09_frozen_labeller(log, told):
    """A labeller that is not trained gives the same figures all along: nothing can be read off
    them."""
    for name, _, x in (series(log, ENTROPY), series(log, UNIQUE)):
        if is_frozen(x):
            yield finding('info', f'{name} stands at {x.mean():.4f} with a standard deviation of '
                          f'{x.std():.5f} over {len(x)} rows: the labeller is frozen, so '
                          'correlations with it say nothing.', 'the action labeller is frozen',
                          mean=x.mean(), std=x.std())


def r10_correlation(log, told):
    """Does the loss move with the actions? Only a hint: both may follow the training."""
    parts, numbers = [], {}
    for name, _, x in (series(log, ENTROPY), series(log, UNIQUE)):
        c = correlation(log.loss, log.columns[name]) if name and not is_frozen(x) else None
        if c is not None:
            words = {'none': 0.1, 'weak': 0.3, 'moderate': 0.5}
            word = next((word for word, limit in words.items() if abs(c) < limit), 'strong')
            parts.append(f'corr(loss, {name}) = {c:.2f} ({word})')
            numbers[name] = c
    if parts:
        yield finding('info', ', '.join(parts) + '. Both may follow the training: no cause is '
                      'shown.', **numbers)


# -----------------------------------------------------------------------------
# two logs, and checkpoints


def r13_two_logs(a, b):
    """Two logs of the same run must agree; where they do not, neither is believed."""
    common, i, j = np.intersect1d(a.step, b.step, return_indices=True)
    names = [n for n in sorted(a.columns, key=lambda n: (n != a.loss_name, n))
             if n in b.columns and n not in (a.step_name, b.step_name)]
    if not a.by_epoch:  # single steps are noise: the loss over four stretches of them
        names = [a.loss_name] if a.loss_name == b.loss_name else []
    enough = 1 if a.by_epoch else 8
    if a.by_epoch != b.by_epoch or len(common) < enough or not names:
        return
    cells = np.array([[b.columns[n][j], a.columns[n][i]] for n in names])
    cells = cells.transpose(2, 0, 1)  # (steps, names, 2)
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
        text = f'reduction mismatch suspected, {near} of {len(factors)} are within 5% of 2, 4 or 8'
        head = 'two logs differ by a whole factor'
    elif factors.max() > 1.2:
        text, head = f'they disagree, by up to x{factors.max():.2f}', 'two logs disagree'
    else:
        return
    shown = ', '.join(f'{at:.10g}: ' + '/'.join(f'{r:.2f}' for r in row)
                      for at, row in list(zip(common, ratios))[:6])
    yield finding('warn', f'{b.name} over {a.name} at the same {a.unit}s ({"/".join(names)}) is '
                  f'{shown}: {text}. Nothing in the files says which is right.', head,
                  ratios=ratios[:1000], near=near)


def r18_checkpoints(points, log=None):
    """A checkpoint is worth what can be loaded from it: its size says nothing, and the newest one
    is what a restart would take."""
    unjudged = [c for c in points if c.unjudged]
    if unjudged:
        yield finding('warn', f'{len(unjudged)} checkpoints could not be judged: '
                      f'{unjudged[0].name}: {unjudged[0].fault}.',
                      'checkpoints that could not be judged',
                      'Read them with the version that wrote them, with enough memory.')
    points = sorted((c for c in points if not c.unjudged), key=lambda c: c.step)
    if not points:
        return
    faults, good, n = {}, [c.step for c in points if not c.fault], len(points)
    for c in points:
        if c.fault:
            faults.setdefault(c.fault, []).append(c.name)
    bad, newest, where = n - len(good), points[-1].step, ''
    if points[0].group:
        where = f' ({points[0].group})'
    by_step = log and len(log.s) and log.unit == 'step'
    last = max(newest, int(log.s[-1])) if by_step else newest
    lost = last - good[-1] if good else last
    numbers = dict(checkpoints=n, invalid=bad, newest=newest,
                   newest_valid=good[-1] if good else None, steps_lost=lost)
    if not bad:
        yield finding('ok', f'All {n} checkpoints{where} are valid, the newest is of step '
                      f'{newest}.', **numbers)
        return
    most = sorted(faults.items(), key=lambda f: -len(f[1]))[:4]
    why = '; '.join(f'{len(names)} x {fault} (such as {names[-1]})' for fault, names in most)
    rest = f'none valid, all {lost} steps lost'
    if good:
        rest = f'newest valid {good[-1]}, {lost} steps lost'
    summary = f'{bad} of {n} invalid ({100 * bad / n:.0f}%), {rest}'
    yield finding('critical' if points[-1].fault or bad > 0.1 * n else 'warn',
                  f'Checkpoints{where}: {summary}. The newest is of step {newest}. {why}.',
                  f'checkpoints: {summary}', **numbers)


# -----------------------------------------------------------------------------
# the verdict

RULES = sorted([
    rules_reading.r00_rows, rules_reading.r01_windows, rules_reading.r19_order,
    rules_reading.r20_not_finite, rules_reading.r23_no_validation, rules_reading.r24_reading,
    r02_divided_loss, r03_trend, r04_worse_than_guessing, r05_worse_than_untrained,
    r06_learning_rate, r07_speed, r08_action_diversity, r09_frozen_labeller, r10_correlation,
    r11_spikes, r12_regimes, r14_vocabularies, r17_plateau, rules_policy.r15_shares,
    rules_policy.r16_action_l1, rules_policy.r21_energy, rules_policy.r22_penalty,
], key=lambda rule: rule.__name__)


def findings_by(rule, *subjects):
    """The findings of a rule, each with its number and, if it complains, with what to do next."""
    number, found = rule.__name__[:3].upper(), []
    for f in rule(*subjects):
        if f['severity'] in ('ok', 'info'):
            f['action'] = ''
        elif not f['action']:
            f['action'] = ACTIONS[number]
        found.append({'rule': number, **f})
    return found


def examine(log, told):
    """All findings on one log; r13 wants two of them, and r18 checkpoints."""
    _, _, chance = series(log, 'chance')  # as this project prints it
    if not told.vocab and len(chance) and 1 < chance[-1] < 20:
        told = replace(told, vocab=(round(math.exp(chance[-1])),))
    add_figures(log, told)
    return [f for rule in RULES for f in findings_by(rule, log, told)]


def conclude(findings):
    """(severity, headline): the worst finding's; of several as bad, what the loss did comes
    first."""
    counted = [f for f in findings if f['severity'] != 'info' or f['rule'] not in NEVER_ACCUSE]
    worst = max((f['severity'] for f in counted), key=SEVERITIES.index, default='ok')
    order = ['R20', 'R03', 'R18', 'R04', 'R05', 'R14', 'R12', 'R08']
    heads = [f for f in counted if f['head'] and f['severity'] == worst]
    heads.sort(key=lambda f: order.index(f['rule']) if f['rule'] in order else len(order))
    heads = [f'{f["log"]}: {f["head"]}' if f.get('log') else f['head'] for f in heads]
    heads = list(dict.fromkeys(heads))
    if not heads:
        return worst, 'nothing was found' if findings else 'nothing could be read'
    more = f'; and {len(heads) - 3} more' if len(heads) > 3 else ''
    return worst, '; '.join(heads[:3]) + more


def verdict(log_path, vocab=None, total=None, n_actions=None, picture=''):
    """The verdict on one log as one line, for the end of a training run, and its loss as a PNG at
    `picture`. It never raises, whatever the log is like: the run that asks has ended well."""
    try:
        told = Told((vocab,) if vocab else (), total, n_actions)
        with np.errstate(all='ignore'):
            logs = read_logs(log_path)  # one, as the trainer wrote it
            severity, headline = conclude([f for log in logs for f in examine(log, told)])
    except Unreadable as e:
        return f'verdict: none: {e}'
    except Exception as e:
        return f'verdict: none: {type(e).__name__} in diagnose.py: {clean(e)}'
    if picture:
        try:
            from diagnosis.plot import plot
            plot(logs[0], told, headline, picture)
        except Exception:  # the verdict stands without it
            pass
    more = f' (python diagnose.py {clean(log_path)})' if severity in ('warn', 'critical') else ''
    return f'verdict: {severity}: {headline}{more}'
