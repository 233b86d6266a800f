"""The rules find what is known to be wrong with real and simulated runs, and keep quiet about sound
ones."""
import re

import numpy as np
import pytest
import simulate
from reports import DIVERGED, falling, finding, report, rules, run, write_csv

from diagnosis.figures import log_windows
from diagnosis.rules import conclude, verdict

# -----------------------------------------------------------------------------
# the logs of a failed run, with the figures that were published for it


def test_a_diverged_run(logs):
    code, text, _ = run(logs / 'dynamics_diverged.csv', *DIVERGED)
    assert code == 2
    for figure in ('50344 rows', '1.7785 -> 6.0698', 'min 1.4388', 'median 5.6808',
                   '3.866 5.054 5.730 6.043 6.423', 'divided by 4', '7.114 = ln 1024 + 0.183',
                   'x1.66', '25.69 nats > ln 1024 = 6.93', '6.423 > 1.7785',
                   '0.00963 = 96.3% of its peak',
                   '0.3701 steps/s overall and 0.2601 over the last 5000', '249657 of 300000',
                   '187.4 h', '266.6 h'):
        assert figure in text, figure
    headline = r'verdict: critical: the loss is diverging \(x1.66\), it turned at step \d+'
    assert re.search(headline, text)
    code, found = report(logs / 'dynamics_diverged.csv', *DIVERGED)
    assert code == 2 and found['verdict'] == 'critical' and 'diverging' in found['headline']
    assert rules(found, 'critical') == {'R03', 'R04', 'R05', 'R14'}
    assert {'R02', 'R06', 'R07', 'R08'} <= rules(found, 'warn') and 'R09' in rules(found)
    assert finding(found, 'R02')['numbers']['k'] == 4
    assert finding(found, 'R03')['numbers']['spearman'] == 1
    lr = finding(found, 'R06')['numbers']
    rate = min(lr['lr'] / 20, lr['at_minimum'] / 3)
    assert f'lr = {rate:.2g}' in finding(found, 'R03')['action']


def test_low_action_diversity(logs):
    code, text, _ = run(logs / 'latent_actions_low_diversity.csv', '--n_actions=16')
    assert code == 1 and text.endswith('verdict: warn: low action diversity')
    for figure in ('1.0465 -> 0.02886', 'min 0.01307', 'median 0.02555', '0.3768..1.2432',
                   'last 0.4826', '0.927 / 1.023 / 0.744', '3.50 / 4.14 / 2.57',
                   '0.219 / 0.259 / 0.161',
                   'up to 1.0 of the first value 1.0465 may be a variance penalty of 100 x 0.01'):
        assert figure in text, figure


def test_epochs_of_two_regimes(logs):
    code, text, _ = run(logs / 'policy_epochs.md', '--vocab=65536',
                        '--weights=closs:1,loss_ct:10')
    assert code == 2 and 'verdict: critical: 2 spikes' in text
    for figure in ('7 (95.19, z 54.6), 10 (37.74, z 20.4)', 'median of all rows is 3.6350',
                   '0.040-0.085', '0.612-0.824', 'gap x7.2, 9 switches', 'the trend is refused',
                   'loss_ct 0.7%..79.5%, median 40.4%'):
        assert figure in text, figure
    assert 'R03' not in text


def test_two_logs_that_contradict_each_other(logs):
    code, text, _ = run(logs / 'policy_epochs.md', logs / 'policy_batches.md')
    assert code == 1 and 'reduction mismatch suspected' in text
    assert '0: 4.04/4.05, 1: 2.12/0.41, 2: 3.44/3.98' in text
    assert 'Nothing in the files says which is right' in text


def test_several_vocabularies(logs):
    code, text, _ = run(logs / 'policy_batches.md', '--vocab=65536,8192')
    for figure in ('8.51 nats is 2.58 under ln 65536', '0.50 under ln 8192',
                   '13.18 at the start is above both',
                   '0.129 on actions in [-1,1] = 6.5% of the range', '12.9 x 0.01',
                   'Plateau: from epoch 2 to 12'):
        assert figure in text, figure
    assert code == 1


# -----------------------------------------------------------------------------
# this project's own runs


@pytest.mark.parametrize('stage', ['tokenizer', 'latent_actions', 'dynamics'])
def test_a_healthy_run_of_this_project(logs, stage):
    vocab = ['--vocab=1024', '--total=7000'] if stage == 'dynamics' else []
    code, found = report(logs / f'tiny_{stage}.csv', '--n_actions=8', *vocab)
    assert (code, found['verdict']) == (0, 'ok') and 'falling' in found['headline']


def test_a_rate_1000_times_too_high(logs):
    """A real run: it blew up before its first row, and then its loss fell below chance."""
    code, found = report(logs / 'rate_1000_times_too_high.csv', '--vocab=1024')
    assert code == 2 and 'turned before step 50' in found['headline']
    assert finding(found, 'R04')['numbers']['worst'] == pytest.approx(88.01, abs=0.01)


def test_pixels_worse_than_grey(tmp_path):
    rows = 20
    log = dict(iter=range(50, 1050, 50), loss=np.linspace(285, 45, rows),
               psnr=np.linspace(-17, -10, rows), val_loss=[1] * rows)
    path = write_csv(tmp_path / 'log.csv', log)
    code, found = report(path)
    assert code == 2 and 'turned before step 50' in found['headline']
    stopped_early = dict(iter=[38], loss=[91.0], psnr=[-21.0])
    code, found = report(write_csv(path, stopped_early))
    assert code == 2 and found['headline'] == 'worse than a grey frame'


# -----------------------------------------------------------------------------
# one rule at a time


def by_rule(columns, tmp_path, *args):
    """The findings on a log by their rules, and the whole report."""
    found = report(write_csv(tmp_path / 'log.csv', columns), *args)[1]
    return {f['rule']: f for f in found['findings']}, found


def test_a_clean_falling_log(tmp_path):
    code, found = report(write_csv(tmp_path / 'log.csv', falling()))
    assert (code, found['verdict']) == (0, 'ok') and not rules(found, 'warn')


@pytest.mark.parametrize('n, means, width', [
    (50344, 5, 10000), (4000, 4, 1000), (3499, 7, 500), (3249, 6, 500), (35000, 4, 10000),
    (7, 4, 2)])
def test_windows(n, means, width):
    """The largest 1, 2 or 5 x 10^n that gives at least 4; a short last one is merged."""
    s = np.arange(n, dtype=float)
    starts, rows, values = zip(*log_windows(s, s))
    assert len(starts) == means and starts[1] - starts[0] == width and sum(rows) == n
    assert np.average(values, weights=rows) == pytest.approx(s.mean())


@pytest.mark.parametrize('k', [1, 2, 4, 8, 16, 32])
def test_divided_loss(tmp_path, k):
    log = falling(start=7.05)
    log['loss'] = log['loss'] / k
    found, _ = by_rule(log, tmp_path, '--vocab=1024')
    assert found.get('R02', {'numbers': {'k': 1}})['numbers']['k'] == k


def test_a_first_row_that_is_a_mean_says_nothing_about_a_divisor(tmp_path):
    log = falling(start=6.93 / 8)
    log['step'] = log['step'] + 50
    assert 'R02' not in by_rule(log, tmp_path, '--vocab=1024')[0]
    log = falling(start=(6.93 + 1) / 4)  # at initialisation, but a nat from any multiple
    assert 'R02' not in by_rule(log, tmp_path, '--vocab=1024')[0]


def test_the_step_at_which_the_loss_turned(tmp_path):
    log = falling(400)
    log['loss'][250:] *= 2
    found, whole = by_rule(log, tmp_path)
    assert whole['verdict'] == 'critical' and abs(found['R03']['numbers']['turned'] - 2500) < 150


def test_a_slight_rise_is_a_warning(tmp_path):
    log = falling(2000)
    log['loss'][1000:] *= np.linspace(1, 1.25, 1000)
    found, whole = by_rule(log, tmp_path)
    assert whole['verdict'] == 'warn' and 'rises again' in found['R03']['head']


def test_rate_too_high_and_slower(tmp_path):
    n = 1000
    seconds = np.where(np.arange(n) < 700, 10.0, 20.0)
    log = dict(step=np.arange(n) * 20, runtime=np.cumsum(seconds), loss=np.linspace(2, 4, n),
               lr=np.linspace(1e-5, 1e-3, n), val_loss=np.ones(n))
    found, _ = by_rule(log, tmp_path, '--total=40000')
    assert found['R06']['severity'] == 'warn' and found['R07']['severity'] == 'warn'
    assert found['R05']['severity'] == 'critical'
    speed = found['R07']['numbers']
    assert speed['recent'] == pytest.approx(1)
    assert speed['eta_recent_hours'] == pytest.approx((40000 - 19980) / 3600)


@pytest.mark.parametrize('unique, entropy, severity', [
    (6, 1.7, 'info'), (1.5, 0.5, 'warn'), (1, 0.5, 'critical'), (2, 0.05, 'critical')])
def test_action_diversity(tmp_path, unique, entropy, severity):
    log = {**falling(), 'action_entropy': np.r_[np.full(197, 1.7), [entropy] * 3],
           'unique_actions': np.r_[np.full(100, 6.0), np.full(100, unique)]}
    found, _ = by_rule(log, tmp_path, '--n_actions=8')
    assert found['R08']['severity'] == severity


def test_usage_that_shrinks(tmp_path):
    log = {**falling(), 'action_entropy': np.full(200, 1.7),
           'codebook_usage': np.linspace(0.9, 0.5, 200)}
    found, _ = by_rule(log, tmp_path)
    assert found['R08']['severity'] == 'warn' and 'below 80%' in found['R08']['text']


def test_usage_of_single_rows_is_not_compared(tmp_path):
    log = {**falling(3), 'action_entropy': [1.6, 1.5, 1.5], 'codebook_usage': [0.9, 0.7, 0.6]}
    assert by_rule(log, tmp_path)[0]['R08']['severity'] == 'info'


def test_correlation_words(tmp_path):
    log = falling()
    log['action_entropy'] = log['loss'] * 0.1 + 1
    found, _ = by_rule(log, tmp_path)
    assert found['R10']['numbers']['action_entropy'] == pytest.approx(1)
    assert 'strong' in found['R10']['text'] and 'R09' not in found
    log['action_entropy'] = 1.2 + 0.001 * np.sin(np.arange(200))
    found, _ = by_rule(log, tmp_path)
    assert 'R09' in found and 'R10' not in found


@pytest.mark.parametrize('n_spikes, factor, severity', [
    (0, 1, None), (1, 2, 'info'), (1, 5, 'warn'), (2, 2, 'warn'), (2, 5, 'critical')])
def test_spikes(tmp_path, n_spikes, factor, severity):
    log = falling(500, noise=0.03)
    log['loss'][[200, 350][:n_spikes]] *= factor
    found, _ = by_rule(log, tmp_path, '--vocab=1024')
    assert found.get('R11', {}).get('severity') == severity
    if n_spikes:
        assert found['R11']['numbers']['steps'] == [2000, 3500][:n_spikes]


def test_two_step_logs(tmp_path):
    a, b = falling(seed=1), falling(seed=2)
    paths = [write_csv(tmp_path / 'a.csv', a), write_csv(tmp_path / 'b.csv', b)]
    assert 'R13' not in rules(report(*paths)[1])
    write_csv(paths[1], {**b, 'loss': b['loss'] / 4})
    assert 'reduction mismatch' in finding(report(*paths)[1], 'R13')['text']
    write_csv(paths[1], {**b, 'loss': b['loss'] * 1.4})
    assert 'disagree' in finding(report(*paths)[1], 'R13')['text']


def test_two_logs_of_one_name(tmp_path):
    for name, log in (('a', falling()), ('b', {**falling(), 'loss': np.linspace(2, 9, 200)})):
        (tmp_path / name).mkdir()
        write_csv(tmp_path / name / 'log.csv', log)
    code, found = report(tmp_path / 'a' / 'log.csv', tmp_path / 'b' / 'log.csv')
    named = {f['log'][-9:] for f in found['findings'] if f['rule'] == 'R03'}
    assert code == 2 and named == {'a/log.csv', 'b/log.csv'}


@pytest.mark.parametrize('small, severity', [
    (np.full(200, 1.0), 'info'), (np.linspace(0.1, 1, 200), 'warn'), (np.full(200, 0.001), 'warn')])
def test_shares_of_terms(tmp_path, small, severity):
    log = {**falling(), 'a': np.full(200, 2.0), 'b': small}
    found, _ = by_rule(log, tmp_path, '--weights=a:1,b:2')
    assert found['R15']['severity'] == severity


def test_actions_against_the_median_action(tmp_path):
    log = {**falling(), 'action_l1': np.full(200, 0.13), 'median_action_l1': np.full(200, 0.14)}
    assert by_rule(log, tmp_path)[0]['R16']['severity'] == 'critical'
    log['median_action_l1'] += 0.2
    assert by_rule(log, tmp_path)[0]['R16']['severity'] == 'info'


def test_appended_and_resumed_runs(tmp_path):
    a, b = falling(100, seed=1), falling(150, seed=2)
    found, _ = by_rule({k: np.concatenate([a[k], b[k]]) for k in a}, tmp_path)
    assert '2 runs stand in one file (100 + 150 rows)' in found['R19']['text']
    assert found['R00']['numbers']['rows'] == 150
    resumed = {k: np.concatenate([v[:120], v[100:]]) for k, v in b.items()}
    found, _ = by_rule(resumed, tmp_path)
    assert '20 rows that were done again' in found['R19']['text']
    assert found['R00']['numbers']['rows'] == 150
    missing = {k: np.delete(v, range(50, 80)) for k, v in b.items()}
    found, _ = by_rule(missing, tmp_path)
    assert '1 gap, the widest from step 490 to 800' in found['R19']['text']
    order = np.random.default_rng(0).permutation(150)
    found, _ = by_rule({k: v[order] for k, v in b.items()}, tmp_path)
    assert 'out of order' in found['R19']['text']
    assert found['R00']['numbers']['last'] == pytest.approx(b['loss'][-1])
    path = tmp_path / 'log.csv'
    write_csv(path, a)
    path.write_text(path.read_text() * 2)
    assert 'line of names' in finding(report(path)[1], 'R19')['text']


@pytest.mark.parametrize('value, word', [
    ('nan', 'NaN'), ('inf', 'infinite'), ('-Infinity', 'infinite'), ('1e400', 'infinite'),
    ('NaN', 'NaN')])
def test_the_first_step_that_is_not_finite(tmp_path, value, word):
    log = falling()
    log['loss'] = [value if i in (120, 130) else x for i, x in enumerate(log['loss'])]
    found, whole = by_rule(log, tmp_path)
    assert whole['verdict'] == 'critical' and word in found['R20']['text']
    assert found['R20']['numbers'] == {'first': 1200, 'times': 2}


def test_energy(tmp_path):
    log = {**falling(), 'energy_loss': np.full(200, 2.0), 'n_negatives': np.full(200, 15),
           'e_pos': np.full(200, 0.1), 'e_neg': np.full(200, 0.5),
           'grad_policy_from_energy': np.zeros(200)}
    assert 'R21' not in by_rule(log, tmp_path)[0]
    for change in ({'energy_loss': np.full(200, 2.75)}, {'e_pos': np.full(200, 0.6)}):
        assert by_rule({**log, **change}, tmp_path)[0]['R21']['severity'] == 'warn'
    log['grad_policy_from_energy'][7] = 1e-9
    found = by_rule(log, tmp_path)[0]
    assert found['R21']['severity'] == 'critical' and found['R21']['numbers']['first'] == 70


def test_every_complaint_has_numbers_and_an_action():
    """Over simulated logs of every kind: no rule speaks without figures, and what it complains
    about it can also advise on."""
    for make in simulate.KINDS.values():
        rng = np.random.default_rng(3)
        for f in (f for _ in range(15) for f in simulate.findings_of(make(rng))):
            complains = f['severity'] in ('warn', 'critical')
            has_figures = re.search(r'\d', f['text']) and f['numbers']
            assert f['rule'] in ('R23', 'R03') or has_figures, f
            assert complains == bool(f['action']) and (not complains or f['head']), f


# -----------------------------------------------------------------------------
# the end of a training run, and how one uses it wrongly


def test_the_verdict_of_a_training_script(logs, tmp_path):
    good, bad = str(logs / 'tiny_dynamics.csv'), str(logs / 'rate_1000_times_too_high.csv')
    words = verdict(good, vocab=1024, total=7000, n_actions=8)
    assert words.startswith('verdict: ok: the loss is falling')
    words = verdict(bad, vocab=1024)
    assert words.startswith('verdict: critical: the loss blew up') and '\n' not in words
    assert 'there is no such file' in verdict(str(tmp_path / 'none.csv'))
    assert verdict(None).startswith('verdict: none')
    assert verdict(good, vocab='x').startswith('verdict: none')


@pytest.mark.parametrize('args', [
    [], ['--vocab=a', 'x'], ['--vocab=1', 'x'], ['--vocab=', 'x'], ['--total=1,2', 'x'],
    ['--weights=a', 'x'], ['--weights=a:-1', 'x'], ['--nonsense', 'x']])
def test_bad_usage(args):
    code, _, err = run(*args)
    assert code == 3 and err.startswith('diagnose: ') and len(err.splitlines()) == 2


# -----------------------------------------------------------------------------
# how often it is right: the whole table is printed by python tests/diagnosis/simulate.py


def test_three_healthy_runs_give_no_critical():
    """Noise, restarts, one recovered spike."""
    rng = np.random.default_rng(7)
    for _ in range(3):
        log = simulate.healthy(rng, spike=True, restarts=2)
        assert conclude(simulate.findings_of(log))[0] != 'critical'


@pytest.mark.slow
def test_rates():
    found = simulate.rates(40, seed=1)
    assert found['healthy']['critical'] <= 0.05
    least = dict(slow_rise=0.7, sudden_jump=0.9, collapse_to_chance=0.9, spikes=0.9,
                 mixed_runs=0.75, divided_loss=0.95)
    assert all(found[kind]['hit'] >= share for kind, share in least.items()), found
