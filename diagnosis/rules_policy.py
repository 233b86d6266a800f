"""Rules about a policy, ours or another trainer's: terms with weights, an L1 on actions, an energy,
a penalty."""
import math
import os

import numpy as np

from diagnosis.figures import finding, loss_text, series
from diagnosis.formats import clean


def r15_shares(log, told):
    """In a sum of terms the largest one is what is trained."""
    if not told.weights:
        return
    columns = {name: log.term(name) for name in told.weights}
    found = {name: told.weights[name] * log.columns[column] for name, column in columns.items()
             if column}
    missing = ', '.join(clean(name) for name in told.weights if name not in found)
    if len(found) < 2:
        yield finding('info', f'No shares of the terms: this log has no column {missing}.')
        return
    terms = np.array(list(found.values()))
    terms = terms[:, np.isfinite(terms).all(0) & (terms >= 0).all(0) & (terms.sum(0) > 0)]
    if not terms.size:
        return
    parts, numbers, complaints = [], {}, []
    for name, x in zip(found, 100 * terms / terms.sum(0)):
        low, middle, high = numbers[name] = [float(x.min()), float(np.median(x)), float(x.max())]
        parts.append(f'{name} {low:.1f}%..{high:.1f}%, median {middle:.1f}%')
        if high > 3 * low:
            complaints.append(f'{name} varies ' + (f'x{high / low:.3g}' if low else 'from nothing'))
        if middle < 1:
            complaints.append(f'{name} is below 1%')
    text = f'Shares of the weighted terms: {"; ".join(parts + complaints)}.'
    if missing:
        text += f' Not in the log: {missing}.'
    yield finding('warn' if complaints else 'info', text,
                  'the terms of the loss are out of balance', **numbers)


def r16_action_l1(log, told):
    """An L1 on actions means nothing without its range and what a constant guess would score."""
    name, _, x = series(log, r'(.*[/_])?(loss_ct|action_l1|l1_actions?|actions?_l1)')
    _, _, baseline = series(log, r'(.*[/_])?(median_action_l1|l1_median_action|loss_ct_median|'
                                 r'median_action)')
    if not len(x):
        return
    now = float(x[-1])
    severity, numbers = 'info', dict(now=now, percent=50 * now, bins=now * 127.5, times=now / 0.01)
    text = (f'{name} is {now:.3f} on actions in [-1,1] = {50 * now + 1e-9:.1f}% of the range, '
            f'{now * 127.5:.1f} bins of 2/255, {100 * now:.1f} x 0.01; it is a mean over the '
            'dimensions already, so do not divide by their number. ')
    if len(baseline) and baseline[-1] > 0:
        ratio = numbers['of_baseline'] = now / float(baseline[-1])
        text += f'Always guessing the median action scores {baseline[-1]:.3f}: ratio {ratio:.2f}'
        if ratio > 0.9:
            severity = 'critical'
            text += ', next to nothing is learned'
        text += '.'
    else:
        text += 'How good that is depends on the score of the median action, which was not logged.'
    yield finding(severity, text, 'the actions are no better than the median action',
                  **numbers)


def r21_energy(log, told):
    """An energy term that tells nothing apart trains nothing; one whose gradient reaches the policy
    teaches it to cheat. Columns: energy_loss and n_negatives (M), e_pos and e_neg (a low energy
    means a good match), grad_policy_from_energy."""
    def late(pattern):
        """The median of the last tenth."""
        _, _, x = series(log, r'(.*/)?' + pattern)
        return float(np.median(x[-max(1, len(x) // 10):])) if len(x) else None

    loss, m = late('energy_loss'), late('(n_|num_)?(energy_)?negatives')
    e_pos, e_neg = late('(e_pos|energy_pos)'), late('(e_neg|energy_neg)')
    if loss is not None and m is not None and m >= 1 and loss >= 0.95 * math.log(1 + m):
        chance = math.log(1 + m)
        yield finding('warn', f'The energy loss is {loss:.3f}, {100 * loss / chance:.0f}% '
                      f'of ln(1 + {m:.10g}) = {chance:.3f}: it hardly tells the true pair from '
                      f'{m:.10g} others.', 'the energy term has not learned', loss=loss, m=m)
    if e_pos is not None and e_neg is not None and e_pos >= e_neg:
        yield finding('warn', f'E_pos = {e_pos:.4g} >= E_neg = {e_neg:.4g}: true pairs get '
                      'no lower energy than false ones.', 'the energies are the wrong way round',
                      e_pos=e_pos, e_neg=e_neg)
    name, s, gradient = series(log, r'(.*/)?(grad_policy_from_energy|policy_grad_from_energy)')
    leaks = np.flatnonzero(gradient)
    if len(leaks):
        at = s[leaks[0]]
        yield finding('critical', f'The energy loss reaches the policy: {name} is at most '
                      f'{np.abs(gradient).max():.3g}, and not 0 first at {log.at(at)}.',
                      'the energy loss leaks into the policy',
                      'Detach what the policy gives to the energy term, and test that this '
                      'gradient is exactly 0.', first=at)


def r22_penalty(log, told):
    """A penalty that is spent after a few steps makes the first value look like learning: 100 x a
    variance that is 0.01 short."""
    latent = any('latent_action' in name for name in [*log.columns, os.path.basename(log.path)])
    if latent and len(log.x) and log.s[0] <= 1 and 1 <= log.x[0] <= 2 and np.median(log.x) < 0.5:
        yield finding('info', f'Composite loss: up to 1.0 of the first value '
                      f'{loss_text(log.x[0])} may be a variance penalty of 100 x 0.01, so the fall '
                      f'to {loss_text(log.x[-1])} is not all reconstruction.',
                      first=log.x[0], penalty=1.0)
