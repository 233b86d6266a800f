"""Rules about what was read: which rows, in which order, and what could be read otherwise."""
import re

import numpy as np

from diagnosis.figures import finding, loss_text, mean_text, spacing, turn
from diagnosis.formats import HELD_OUT, IS_LOSS, LOGGED_NAN, clean
from diagnosis.log import COUNTERS, NO_LOSS

DISAGREE = 1.5  # the ratio at which two tries of the same steps do not agree


def r00_rows(log, told):
    """What was read, so that a reader sees at once whether it is the right file."""
    odd = {'cells are no numbers and count as blank': log.odd['cells'],
           'lines are broken, too short or too long': log.odd['lines'],
           f'rows have no {log.unit} and are left out': log.order['no_step']}
    but = ', '.join(f'{n} {what}' for what, n in odd.items() if n)
    but = f' But {but}.' if but else ''
    if not len(log.x):
        yield finding('info', f'{log.odd["rows"]} rows, and not one finite value in column '
                      f'{log.loss_name}.{but}', rows=0)
        return
    first, last, low, median = log.x[0], log.x[-1], log.x.min(), np.median(log.x)
    at = log.s[log.x.argmin()]
    yield finding('info', f'{len(log.x)} rows of {log.loss_name} up to {log.at(log.s[-1])}: '
                  f'{loss_text(first)} -> {loss_text(last)}, min {loss_text(low)} at {log.at(at)}, '
                  f'median {loss_text(median)}.{but}', rows=len(log.x), last_step=log.s[-1],
                  first=first, last=last, min=low, min_step=at, median=median)


def r01_windows(log, told):
    """Means over windows: single rows are noise, and the eye follows the noise."""
    starts, means = [a for a, _, _ in log.windows], [m for _, _, m in log.windows]
    if means:
        width = f', {starts[1] - starts[0]:.10g} {log.unit}s each' if len(means) > 1 else ''
        yield finding('info', f'Window means{width}: {" ".join(map(mean_text, means))}.',
                      means=means, starts=starts)


def r19_order(log, told):
    """Rows of two runs in one file look like one run that jumps."""
    order, parts, steps = log.order, [], log.step[~np.isnan(log.loss)]
    gaps, usual = np.diff(steps), spacing(steps)
    repeated = int((gaps == 0).sum())
    if 'unsorted' in order:
        parts.append(f'rows are out of order in {order["unsorted"]} places; '
                     f'they were sorted by {log.unit}')
    if 'back' in order:
        places = ', '.join(f'{a:.10g} -> {b:.10g}' for a, b in order['back'])
        parts.append(f'the {log.unit} goes back {order["n_back"]} times ({places})')
    if 'runs' in order:
        rows = ' + '.join(map(str, order['runs']))
        parts.append(f'{len(order["runs"])} runs stand in one file ({rows} rows), '
                     f'only number {order["run"] + 1} is judged here')
    if order.get('overwritten'):
        parts.append(f'{order["overwritten"]} rows that were done again are left out')
    if log.odd['headers']:
        parts.append(f'the line of names comes again {log.odd["headers"]} times')
    if repeated:
        parts.append(f'{repeated} rows repeat the {log.unit} before them')
    ratio = order.get('ratio', 1.0)
    if not 1 / DISAGREE < ratio < DISAGREE:
        parts.append(f'they disagree, the second try stands at x{ratio:.2f} of the first')
    if parts:
        yield finding('info' if went_well(log, repeated) else 'warn',
                      '; '.join(parts).capitalize() + '.',
                      'the rows are not those of one unbroken run', back=order.get('n_back', 0),
                      unsorted=order.get('unsorted', 0), repeated=repeated,
                      runs=len(order.get('runs', [1])))
    wide = np.flatnonzero(gaps > 5 * usual)
    if len(wide):
        at, s = wide[gaps[wide].argmax()], 's' if len(wide) > 1 else ''
        yield finding('warn', f'{len(wide)} gap{s}, the widest from {log.at(steps[at])} to '
                      f'{steps[at + 1]:.10g}; rows are usually {usual:.10g} apart.',
                      'rows are missing', 'Find out what happened there, a crash or a log that '
                      'was cut: no rule can see it.', gaps=len(wide))


def went_well(log, repeated):
    """Is all that is odd about the order that the run was resumed, and did a few rows again?"""
    order, restarts = log.order, log.order.get('n_back', 0)
    agree = 1 / DISAGREE < order.get('ratio', 1.0) < DISAGREE
    if 'unsorted' in order or 'runs' in order or not agree:
        return False
    return log.odd['headers'] <= restarts and repeated <= max(restarts, min(3, len(log.x) / 50))


def r20_not_finite(log, told):
    """After the first NaN in the loss nothing is trained any more."""
    for name in sorted(log.columns, key=lambda n: (n != log.loss_name, n)):
        x = log.columns[name]
        rows = np.flatnonzero(np.isinf(x))
        if len(rows) and name != log.step_name:
            kind = 'NaN' if x[rows[0]] == LOGGED_NAN else 'infinite, or beyond 1e100,'
            first = log.step[rows[0]]
            # a gradient norm may overflow in float16; the update is skipped and all is well
            yield finding('critical' if 'loss' in name else 'warn', f'{name} is {kind} first at '
                          f'{log.at(first)}, {len(rows)} times in all, of {(~np.isnan(x)).sum()} '
                          f'logged.', f'{name} is not finite from {log.at(first)}', first=first,
                          times=len(rows))


def r23_no_validation(log, told):
    """Without held-out data nobody can tell learning from learning by heart."""
    if not any(HELD_OUT.fullmatch(name) for name in log.columns):
        yield finding('info', 'No validation column: the log cannot tell learning from learning '
                      'by heart.')


def r24_reading(log, told):
    """What could be read otherwise is said, and then the verdict is never ok: the first reading
    that fits may be the wrong one."""
    odd, counted = log.odd, log.counted
    for name, (n, wrong) in odd.get('unreadable', {}).items():
        if IS_LOSS.search(name) or any(re.fullmatch(pattern, name) for pattern in COUNTERS):
            yield finding('warn', f'Of {n + wrong} cells of {name} only {n} are numbers.',
                          f'only {n} of {n + wrong} cells of {name} can be read',
                          'Look at these cells. Write numbers as 1234.5, without units.',
                          numbers=n, wrong=wrong)
    if odd['lines'] > odd['rows']:
        yield finding('warn', f'{odd["lines"]} lines could not be read, and {odd["rows"]} could.',
                      f'only {odd["rows"]} of {odd["lines"] + odd["rows"]} lines can be read',
                      'Look at the file: is it a log, and whole?', lines=odd['lines'])
    if 'damaged' in odd:
        yield finding('warn', 'The file is JSON that breaks off; it was read line by line.',
                      'the file is JSON that breaks off', 'Take an earlier copy, such as the '
                      'trainer_state.json of the checkpoint before.')
    if 'unclear' in odd:
        yield finding('warn', f'Is a number such as {clean(odd["unclear"], 30)} one with decimals, '
                      'or thousands? Nothing in the file says it.', 'numbers that can be read '
                      'in two ways', 'Write them without marks between thousands.')
    for name in sorted(odd.get('equal', ())):
        yield finding('warn', f'Several columns have the name {name}; each of a loss is judged on '
                      'its own, of others the first one is used.',
                      f'several columns have the name {name}', 'Give them names of their own.')
    if 'lost_columns' in odd:
        yield finding('warn', f'{odd["lost_columns"]} columns were not read: there are too many.',
                      f'{odd["lost_columns"]} columns were not read', 'Export fewer at a time.')
    if odd.get('other_lengths'):
        names = clean(', '.join(odd['other_lengths']))
        yield finding('info', f'Of another length than the loss, and left out: {names}.')
    if 'other' in counted:
        name, there, here = counted['other']
        used = log.step_name
        yield finding('warn', f'Two counters disagree: where {used} is {here:.10g}, {name} is '
                      f'{there:.10g}. {used} is used.', f'two counters disagree, {used} and {name}',
                      'Compare them with the name of a checkpoint before you choose one.',
                      here=here, there=there)
    if 'sparse' in counted:
        name, n, of = counted['sparse']
        used = log.step_name or 'the number of the row'
        yield finding('warn', f'{name} is there in {n} of {of} rows only, so {used} is used.',
                      f'{name} is there in {n} of {of} rows only', f'Log {name} in each row.',
                      rows=n, of=of)
    if 'calls' in counted:
        name, there, here = counted['calls']
        yield finding('info', f'Steps are those of {log.step_name}, which the trainer counts; '
                      f'{name}, which counts the calls of wandb.log, says {there:.10g} where it is '
                      f'{here:.10g}.', here=here, there=there)
    if 'restarts' in counted:
        yield finding('info', f'{counted["restarts"]} starts again in every epoch, so it is not '
                      f'used: {log.unit}s are counted.')
    if log.other_losses:
        yield finding('info', f'Judged is {log.loss_name}; other losses in it are not: '
                      f'{clean(", ".join(log.other_losses), 200)}.')
        yield from losses_that_rise(log)
    own, last = log.step[~np.isnan(log.loss)], last_logged(log)
    if len(own) > 1 and last - own[-1] > max(0.05 * (last - own[0]), 5 * spacing(own)):
        yield finding('warn', f'{log.loss_name} is blank after {log.at(own[-1])}, other columns go '
                      f'on to {last:.10g}.', f'no loss after {log.at(own[-1])}',
                      'Was it NaN? pandas writes a NaN as a blank cell: to_csv(..., '
                      'na_rep="nan").', last=own[-1], logged=last)
    if log.held_out:
        yield finding('info', f'No training loss is in it: {log.loss_name}, of held-out data, is '
                      'judged instead. Where it rises, the model may learn by heart.')


def losses_that_rise(log):
    """The first loss that fits is judged, and it may be the wrong one."""
    if log.mixed:
        return
    for name in log.other_losses:
        good = np.isfinite(log.columns[name])
        turned = turn(log.step[good], log.columns[name][good])
        if turned and turned['ratio'] >= 1.3 and not NO_LOSS.search(name):
            yield finding('warn', f'{name} was not judged, and it rises: x{turned["ratio"]:.2f} '
                          f'since {log.at(turned["at"])}.', f'{name}, which was not judged, rises',
                          'If that is the loss of the training, judge it alone.',
                          ratio=turned['ratio'], turned=turned['at'])


def last_logged(log):
    """The last step at which any column of the training was logged."""
    others = [x for name, x in log.columns.items() if name in log.names and name != log.step_name]
    return max((log.step[~np.isnan(x)][-1] for x in others if not np.isnan(x).all()), default=0.0)
