"""diagnose.py finds what is known to be wrong with real and simulated runs, keeps quiet about sound ones, and survives any file."""
import csv
import io
import json
import lzma
import math
import os
import random
import re
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / 'tests')]
from training import checkpoint
import diagnose
import simulate

LOGS = ROOT / 'tests' / 'logs'
DIVERGED = ['--vocab=1024', '--total=300000', '--n_actions=16']


def run(*args):
    """Exit code, what it printed, what it said on stderr."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = diagnose.main([str(a) for a in args])
        except SystemExit as e:
            code = e.code
    return code, ' '.join(out.getvalue().split()), err.getvalue()


def report(*args):
    """Exit code and the report of --json; constants such as NaN, that no JSON has, are refused."""
    code, out, err = run(*args, '--json')
    def refuse(constant):
        raise AssertionError(f'{constant} is no JSON')
    return code, json.loads(out, parse_constant=refuse)


def finding(found, rule):
    return next(f for f in found['findings'] if f['rule'] == rule)


def rules(found, least='info'):
    return {f['rule'] for f in found['findings'] if diagnose.SEVERITIES.index(f['severity']) >= diagnose.SEVERITIES.index(least)}


@pytest.fixture(scope='session')
def logs(tmp_path_factory):
    """The real logs, unpacked."""
    folder = tmp_path_factory.mktemp('logs')
    for path in LOGS.iterdir():
        data = path.read_bytes()
        (folder / path.name.removesuffix('.xz')).write_bytes(lzma.decompress(data) if path.suffix == '.xz' else data)
    return folder


def write_csv(path, columns):
    with open(path, 'w', newline='') as f:
        csv.writer(f).writerows([columns.keys(), *zip(*columns.values())])
    return path


def falling(n=200, every=10, noise=0.05, start=7.0, seed=0):
    rng = np.random.default_rng(seed)
    return dict(step=np.arange(n) * every, loss=(2 + (start - 2) * np.exp(-np.arange(n) / 30)) * np.exp(noise * rng.standard_normal(n) * (np.arange(n) > 0)),
                lr=np.full(n, 1e-3), val_loss=np.full(n, 2.5))


# -----------------------------------------------------------------------------
# the logs of a failed run, with the figures that were published for it


def test_a_diverged_run(logs):
    code, text, _ = run(logs / 'dynamics_diverged.csv', *DIVERGED)
    assert code == 2
    for figure in ('50344 rows', '1.7785 -> 6.0698', 'min 1.4388', 'median 5.6808', '3.866 5.054 5.730 6.043 6.423', 'divided by 4', '7.114 = ln 1024 + 0.183', 'x1.66',
                   '25.69 nats > ln 1024 = 6.93', '6.423 > 1.7785', '0.00963 = 96.3% of its peak', '0.3701 steps/s overall and 0.2601 over the last 5000', '249657 of 300000',
                   '187.4 h', '266.6 h'):
        assert figure in text, figure
    assert re.search(r'verdict: critical: the loss is diverging \(x1.66\), it turned at step \d+', text)
    code, found = report(logs / 'dynamics_diverged.csv', *DIVERGED)
    assert code == 2 and found['verdict'] == 'critical' and 'diverging' in found['headline']
    assert rules(found, 'critical') == {'R03', 'R04', 'R05', 'R14'} and {'R02', 'R06', 'R07', 'R08'} <= rules(found, 'warn') and 'R09' in rules(found)
    assert finding(found, 'R02')['numbers']['k'] == 4 and finding(found, 'R03')['numbers']['spearman'] == 1
    lr = finding(found, 'R06')['numbers']
    assert f'lr = {min(lr["lr"] / 20, lr["at_minimum"] / 3):.2g}' in finding(found, 'R03')['action']


def test_low_action_diversity(logs):
    code, text, _ = run(logs / 'latent_actions_low_diversity.csv', '--n_actions=16')
    assert code == 1 and text.endswith('verdict: warn: low action diversity')
    for figure in ('1.0465 -> 0.02886', 'min 0.01307', 'median 0.02555', '0.3768..1.2432', 'last 0.4826', '0.927 / 1.023 / 0.744', '3.50 / 4.14 / 2.57', '0.219 / 0.259 / 0.161',
                   'up to 1.0 of the first value 1.0465 may be a variance penalty of 100 x 0.01'):
        assert figure in text, figure


def test_epochs_of_two_regimes(logs):
    code, text, _ = run(logs / 'policy_epochs.md', '--vocab=65536', '--weights=closs:1,loss_ct:10')
    assert code == 2 and 'verdict: critical: 2 spikes' in text
    for figure in ('7 (95.19, z 54.6), 10 (37.74, z 20.4)', 'median of all rows is 3.6350', '0.040-0.085', '0.612-0.824', 'gap x7.2, 9 switches', 'the trend is refused',
                   'loss_ct 0.7%..79.5%, median 40.4%'):
        assert figure in text, figure
    assert 'R03' not in text


def test_two_logs_that_contradict_each_other(logs):
    code, text, _ = run(logs / 'policy_epochs.md', logs / 'policy_batches.md')
    assert code == 1 and 'reduction mismatch suspected' in text
    assert '0: 4.04/4.05, 1: 2.12/0.41, 2: 3.44/3.98' in text and 'Nothing in the files says which is right' in text


def test_several_vocabularies(logs):
    code, text, _ = run(logs / 'policy_batches.md', '--vocab=65536,8192')
    for figure in ('8.51 nats is 2.58 under ln 65536', '0.50 under ln 8192', '13.18 at the start is above both', '0.129 on actions in [-1,1] = 6.5% of the range', '12.9 x 0.01',
                   'Plateau: from epoch 2 to 12'):
        assert figure in text, figure
    assert code == 1


def read_cells(path):
    """Header and rows of one of the real logs, as texts."""
    lines = [x for x in path.read_text().splitlines() if x and not x.startswith('|-')]
    rows = [[c.strip() for c in (x.strip('|').split('|') if '|' in x else x.split(','))] for x in lines]
    return rows[0], rows[1:]


def as_json_lines(header, rows):
    return '\n'.join(json.dumps({h: json.loads(c) for h, c in zip(header, r) if c}) for r in rows) + '\n'


def as_csv(header, rows, end='\n'):
    return end.join(','.join(r) for r in [header, *rows]) + end


def shuffled(header, rows):
    order = random.Random(0).sample(range(len(header)), len(header))
    return as_csv([header[i] for i in order], [[r[i] for i in order] for r in rows])


def with_blanks(header, rows):
    """A column that is never logged, and rows in which only another column is."""
    i = [h.lower() in ('_step', 'epoch') for h in header].index(True)
    more = []
    for k, r in enumerate(rows):
        more.append(r + [''])
        if k % 7 == 3:
            more.append([c if j == i else '' for j, c in enumerate(r)] + [''])
    return as_csv([*header, 'never'], more)


CONVERSIONS = dict(json_lines=as_json_lines, shuffled=shuffled, blanks=with_blanks, crlf=lambda h, r: as_csv(h, r, '\r\n'), tabs=lambda h, r: as_csv(h, r).replace(',', '\t'),
                   semicolons=lambda h, r: as_csv(h, r).replace(',', ';'), quoted=lambda h, r: as_csv([f'"run 1 - {x}"' for x in h], r), utf16=as_csv)


@pytest.mark.parametrize('conversion', CONVERSIONS)
@pytest.mark.parametrize('name, args', [('dynamics_diverged.csv', DIVERGED), ('latent_actions_low_diversity.csv', ['--n_actions=16']),
                                        ('policy_epochs.md', ['--vocab=65536', '--weights=closs:1,loss_ct:10']), ('policy_batches.md', ['--vocab=65536,8192'])])
def test_the_same_log_in_another_format_gives_the_same_findings(logs, tmp_path, conversion, name, args):
    text = CONVERSIONS[conversion](*read_cells(logs / name))
    path = tmp_path / name                                    # the name is in the text of R00
    path.write_bytes(text.encode('utf-16' if conversion == 'utf16' else 'utf-8'))
    was, now = report(logs / name, *args), report(path, *args)
    assert now[0] == was[0] and now[1]['headline'] == was[1]['headline']
    assert now[1]['findings'] == was[1]['findings']


def test_whitespace_table(logs, tmp_path):
    header, rows = read_cells(logs / 'policy_batches.md')
    path = tmp_path / 'policy_batches.md'
    path.write_text('\n'.join('   '.join(r) for r in [header, *rows]))
    assert report(path)[1]['findings'] == report(logs / 'policy_batches.md')[1]['findings']


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
    path = write_csv(tmp_path / 'log.csv', dict(iter=range(50, 1050, 50), loss=np.linspace(285, 45, rows), psnr=np.linspace(-17, -10, rows), val_loss=[1] * rows))
    code, found = report(path)
    assert code == 2 and 'turned before step 50' in found['headline']
    code, found = report(write_csv(path, dict(iter=[38], loss=[91.0], psnr=[-21.0])))     # stopped early
    assert code == 2 and found['headline'] == 'worse than a grey frame'


def state(**changes):
    ckpt = dict(stage='dynamics', iter=1, config=dict(max_iters=8000), model_args=dict(vocab_size=1024, n_actions=8), model={'w': torch.ones(8, 8)},
                optimizer=[dict(state={0: dict(step=1.0, m=torch.ones(8, 8))}, param_groups=[])], guard={}, metrics={}, data_id='d', parents=None)
    return {**ckpt, **changes}


def stage_folder(tmp_path, logs, iters=(6000, 6500, 7000)):
    folder = tmp_path / 'out' / 'dynamics'
    for i in iters:
        checkpoint.save(str(folder), state(iter=i), keep=99)
    (folder / 'log.csv').write_bytes((logs / 'tiny_dynamics.csv').read_bytes())
    return folder


def test_a_folder_of_this_project(tmp_path, logs):
    """Vocabulary, actions and length come from the newest checkpoint; the folder above gives the same."""
    folder = stage_folder(tmp_path, logs)
    code, text, _ = run(folder)
    assert code == 0 and 'All 3 checkpoints (dynamics) are valid, the newest is of step 7000' in text
    assert 'ln 1024' in text and 'equally used actions of 8' in text and '1000 of 8000 steps left' in text
    assert run(folder.parent)[:2] == (code, text)


def test_a_run_that_the_trainer_stopped(tmp_path, logs):
    folder = stage_folder(tmp_path, logs)
    checkpoint.write_status(str(folder), state='diverged', iter=7000, reason='the loss rose\nand more')
    code, text, _ = run(folder)
    assert code == 2 and 'status.json: diverged at iter 7000: the loss rose.' in text


def test_the_vocabulary_of_a_run_that_saved_nothing_is_its_tokenizers(tmp_path, logs):
    folder = tmp_path / 'dynamics'
    folder.mkdir()
    (folder / 'log.csv').write_bytes((logs / 'rate_1000_times_too_high.csv').read_bytes())
    checkpoint.save(str(tmp_path / 'tokenizer'), state(stage='tokenizer', model_args=dict(levels=(4, 4, 4, 4, 4))))
    code, text, _ = run(folder)
    assert code == 2 and 'above twice ln 1024 = 6.93' in text


def damage(path, kind):
    data = bytearray(path.read_bytes())
    if kind == 'truncated':
        data = data[:len(data) * 2 // 3]
    elif kind == 'flipped':
        at = data.find(b'\x00\x00\x80\x3f' * 8)              # ones, in the weights
        data[at + 5] ^= 4
    path.write_bytes(data)


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize('kind, words', [('truncated', 'truncated'), ('flipped', 'fails its checksum'), ('empty_dict', 'found nothing in it'), ('nan', 'not finite'),
                                         ('pickle', 'could run code'), ('no_optimizer', 'the optimizer is missing')])
def test_a_bad_checkpoint_of_this_project(tmp_path, logs, kind, words):
    folder = stage_folder(tmp_path, logs)
    path, touched = folder / checkpoint.file_name(7000), tmp_path / 'touched'
    if kind in ('truncated', 'flipped'):
        damage(path, kind)
    else:
        torch.save({'empty_dict': {}, 'nan': state(format=1, model={'w': torch.full((2,), math.nan)}), 'no_optimizer': state(format=1, iter=7000, optimizer=[]),
                    'pickle': state(format=1, config=Payload(touched))}[kind], path)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    code, text, _ = run(folder)
    assert code == 2 and words in text and '1 of 3 invalid (33%), newest valid 6500, 500 steps lost' in text
    assert not touched.exists()
    assert before == {p.name: p.read_bytes() for p in folder.iterdir()}                   # read-only


# -----------------------------------------------------------------------------
# checkpoint folders of another trainer


def foreign(folder, name, model=None, optim=None, state=None):
    (folder / name).mkdir(parents=True)
    model = {'layer.weight': torch.ones(4, 4)} if model is None else model
    optim = {'state': {0: {'exp_avg': torch.zeros(4, 4)}}, 'param_groups': [{'lr': 0.01}]} if optim is None else optim
    for part, content in (('model_state_dict', model), ('optim_state_dict', optim), ('state', {'step': 1} if state is None else state)):
        if content != 'missing':
            torch.save(content, folder / name / f'{part}.pt')
    return folder / name


def test_24_of_26_checkpoints_are_empty(tmp_path, logs):
    for step in range(0, 50001, 2000):
        good = step in (26000, 44000)
        foreign(tmp_path / 'checkpoints', f'dynamics_step_{step}', None if good else {}, None if good else {})
    code, text, _ = run(logs / 'dynamics_diverged.csv', tmp_path / 'checkpoints', *DIVERGED)
    assert code == 2 and '24 of 26 invalid (92%), newest valid 44000, 6343 steps lost' in text.split('verdict: critical')[1]
    assert 'there is none, so from scratch' in text          # both are newer than the minimum of the loss
    code, text, _ = run(tmp_path / 'checkpoints')
    assert code == 2 and 'verdict: critical: checkpoints: 24 of 26 invalid (92%), newest valid 44000, 6000 steps lost' in text
    assert '24 x model_state_dict.pt holds an empty dict' in text


def test_good_checkpoints_of_another_trainer(tmp_path):
    for step in (100, 200):
        foreign(tmp_path, f'dynamics_step_{step}')
        foreign(tmp_path, f'tokenizer_step_{step}')
    code, found = report(tmp_path)
    assert code == 0 and found['verdict'] == 'ok' and len(found['findings']) == 2


@pytest.mark.parametrize('bad, severity', [((3,), 'warn'), ((20,), 'critical'), ((3, 4, 5), 'critical')])
def test_how_bad_some_bad_checkpoints_are(tmp_path, bad, severity):
    """An old one is a warning; the newest, or more than a tenth, is critical."""
    for step in range(1, 21):
        foreign(tmp_path, f'dynamics_step_{step}', {} if step in bad else None)
    assert finding(report(tmp_path)[1], 'R18')['severity'] == severity


@pytest.mark.parametrize('kind', ['truncated', 'flipped', 'nan', 'pickle', 'no_optimizer', 'empty_optimizer', 'huge', 'text', 'no_tensor'])
def test_a_bad_checkpoint_of_another_trainer(tmp_path, kind):
    touched = tmp_path / 'touched'
    model = dict(nan={'w': torch.tensor([1.0, math.inf])}, pickle={'w': torch.ones(2), 'x': Payload(touched)}, huge={'w': torch.ones(1).expand(10 ** 6, 10 ** 6)},
                 no_tensor={'a': 1}).get(kind)
    optim = dict(no_optimizer='missing', empty_optimizer={}).get(kind)
    foreign(tmp_path / 'c', 'dynamics_step_100')
    path = foreign(tmp_path / 'c', 'dynamics_step_200', model, optim) / 'model_state_dict.pt'
    if kind == 'text':
        path.write_text('hello')
    damage(path, kind)
    code, text, _ = run(tmp_path / 'c')
    assert code == 2 and '1 of 2 invalid (50%), newest valid 100, 100 steps lost' in text and not touched.exists()
    words = dict(truncated='truncated', flipped='checksum', nan='not finite', pickle='could run code', no_optimizer='optim_state_dict.pt is missing',
                 empty_optimizer='optim_state_dict.pt holds an empty dict', huge='larger than the file', text='not a checkpoint', no_tensor='no tensor')[kind]
    assert words in text


# -----------------------------------------------------------------------------
# one rule at a time


def severities(columns, tmp_path, *args):
    found = report(write_csv(tmp_path / 'log.csv', columns), *args)[1]
    return {f['rule']: f for f in found['findings']}, found


def test_a_clean_falling_log(tmp_path):
    code, found = report(write_csv(tmp_path / 'log.csv', falling()))
    assert (code, found['verdict']) == (0, 'ok') and not rules(found, 'warn')


@pytest.mark.parametrize('n, means, width', [(50344, 5, 10000), (4000, 4, 1000), (3499, 7, 500), (3249, 6, 500), (35000, 4, 10000), (7, 4, 2)])
def test_windows(n, means, width):
    """The largest 1, 2 or 5 x 10^n that gives at least 4; a short last one is merged."""
    s = np.arange(n, dtype=float)
    found = diagnose.windows(s, s)
    assert len(found) == means and found[1][0] - found[0][0] == width and sum(rows for _, rows, _ in found) == n
    assert np.average([m for _, _, m in found], weights=[r for _, r, _ in found]) == pytest.approx(s.mean())


@pytest.mark.parametrize('k', [1, 2, 4, 8, 16, 32])
def test_divided_loss(tmp_path, k):
    log = falling(start=7.05)
    log['loss'] = log['loss'] / k
    found, _ = severities(log, tmp_path, '--vocab=1024')
    assert found.get('R02', {'numbers': {'k': 1}})['numbers']['k'] == k


def test_a_first_row_that_is_a_mean_says_nothing_about_a_divisor(tmp_path):
    log = falling(start=6.93 / 8)
    log['step'] = log['step'] + 50
    assert 'R02' not in severities(log, tmp_path, '--vocab=1024')[0]
    log = falling(start=(6.93 + 1) / 4)                       # at initialisation, but a nat from any multiple
    assert 'R02' not in severities(log, tmp_path, '--vocab=1024')[0]


def test_the_step_at_which_the_loss_turned(tmp_path):
    log = falling(400)
    log['loss'][250:] *= 2
    found, all_of_it = severities(log, tmp_path)
    assert all_of_it['verdict'] == 'critical' and abs(found['R03']['numbers']['turned'] - 2500) < 150


def test_a_slight_rise_is_a_warning(tmp_path):
    log = falling(2000)
    log['loss'][1000:] *= np.linspace(1, 1.25, 1000)
    found, all_of_it = severities(log, tmp_path)
    assert all_of_it['verdict'] == 'warn' and 'rises again' in found['R03']['head']


def test_rate_too_high_and_slower(tmp_path):
    n = 1000
    log = dict(step=np.arange(n) * 20, runtime=np.cumsum(np.where(np.arange(n) < 700, 10.0, 20.0)), loss=np.linspace(2, 4, n), lr=np.linspace(1e-5, 1e-3, n), val_loss=np.ones(n))
    found, _ = severities(log, tmp_path, '--total=40000')
    assert found['R06']['severity'] == 'warn' and found['R07']['severity'] == 'warn' and found['R05']['severity'] == 'critical'
    assert found['R07']['numbers']['recent'] == pytest.approx(1) and found['R07']['numbers']['eta_recent_hours'] == pytest.approx((40000 - 19980) / 3600)


@pytest.mark.parametrize('unique, entropy, severity', [(6, 1.7, 'info'), (1.5, 0.5, 'warn'), (1, 0.5, 'critical'), (2, 0.05, 'critical')])
def test_action_diversity(tmp_path, unique, entropy, severity):
    log = {**falling(), 'action_entropy': np.r_[np.full(197, 1.7), [entropy] * 3], 'unique_actions': np.r_[np.full(100, 6.0), np.full(100, unique)]}
    found, _ = severities(log, tmp_path, '--n_actions=8')
    assert found['R08']['severity'] == severity


def test_usage_that_shrinks(tmp_path):
    log = {**falling(), 'action_entropy': np.full(200, 1.7), 'codebook_usage': np.linspace(0.9, 0.5, 200)}
    found, _ = severities(log, tmp_path)
    assert found['R08']['severity'] == 'warn' and 'below 80%' in found['R08']['text']


def test_usage_of_single_rows_is_not_compared(tmp_path):
    log = {**falling(3), 'action_entropy': [1.6, 1.5, 1.5], 'codebook_usage': [0.9, 0.7, 0.6]}
    assert severities(log, tmp_path)[0]['R08']['severity'] == 'info'


def test_correlation_words(tmp_path):
    log = falling()
    log['action_entropy'] = log['loss'] * 0.1 + 1
    found, _ = severities(log, tmp_path)
    assert found['R10']['numbers']['action_entropy'] == pytest.approx(1) and 'strong' in found['R10']['text'] and 'R09' not in found
    log['action_entropy'] = 1.2 + 0.001 * np.sin(np.arange(200))
    found, _ = severities(log, tmp_path)
    assert 'R09' in found and 'R10' not in found


@pytest.mark.parametrize('n_spikes, factor, severity', [(0, 1, None), (1, 2, 'info'), (1, 5, 'warn'), (2, 2, 'warn'), (2, 5, 'critical')])
def test_spikes(tmp_path, n_spikes, factor, severity):
    log = falling(500, noise=0.03)
    log['loss'][[200, 350][:n_spikes]] *= factor
    found, _ = severities(log, tmp_path, '--vocab=1024')
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
    assert code == 2 and {f['log'][-9:] for f in found['findings'] if f['rule'] == 'R03'} == {'a/log.csv', 'b/log.csv'}


@pytest.mark.parametrize('small, severity', [(np.full(200, 1.0), 'info'), (np.linspace(0.1, 1, 200), 'warn'), (np.full(200, 0.001), 'warn')])
def test_shares_of_terms(tmp_path, small, severity):
    log = {**falling(), 'a': np.full(200, 2.0), 'b': small}
    found, _ = severities(log, tmp_path, '--weights=a:1,b:2')
    assert found['R15']['severity'] == severity


def test_actions_against_the_median_action(tmp_path):
    log = {**falling(), 'action_l1': np.full(200, 0.13), 'median_action_l1': np.full(200, 0.14)}
    assert severities(log, tmp_path)[0]['R16']['severity'] == 'critical'
    log['median_action_l1'] += 0.2
    assert severities(log, tmp_path)[0]['R16']['severity'] == 'info'


def test_appended_and_resumed_runs(tmp_path):
    a, b = falling(100, seed=1), falling(150, seed=2)
    found, _ = severities({k: np.concatenate([a[k], b[k]]) for k in a}, tmp_path)
    assert '2 runs stand in one file (100 + 150 rows)' in found['R19']['text'] and found['R00']['numbers']['rows'] == 150
    resumed = {k: np.concatenate([v[:120], v[100:]]) for k, v in b.items()}
    found, _ = severities(resumed, tmp_path)
    assert '20 rows that were done again' in found['R19']['text'] and found['R00']['numbers']['rows'] == 150
    missing = {k: np.delete(v, range(50, 80)) for k, v in b.items()}
    found, _ = severities(missing, tmp_path)
    assert '1 gap, the widest from step 490 to 800' in found['R19']['text']
    order = np.random.default_rng(0).permutation(150)
    found, _ = severities({k: v[order] for k, v in b.items()}, tmp_path)
    assert 'out of order' in found['R19']['text'] and found['R00']['numbers']['last'] == pytest.approx(b['loss'][-1])
    path = tmp_path / 'log.csv'
    write_csv(path, a)
    path.write_text(path.read_text() * 2)
    assert 'line of names' in finding(report(path)[1], 'R19')['text']


@pytest.mark.parametrize('value, word', [('nan', 'NaN'), ('inf', 'infinite'), ('-Infinity', 'infinite'), ('1e400', 'infinite'), ('NaN', 'NaN')])
def test_the_first_step_that_is_not_finite(tmp_path, value, word):
    log = falling()
    log['loss'] = [value if i in (120, 130) else x for i, x in enumerate(log['loss'])]
    found, all_of_it = severities(log, tmp_path)
    assert all_of_it['verdict'] == 'critical' and found['R20']['numbers'] == {'first': 1200, 'times': 2} and word in found['R20']['text']


def test_energy(tmp_path):
    log = {**falling(), 'energy_loss': np.full(200, 2.0), 'n_negatives': np.full(200, 15), 'e_pos': np.full(200, 0.1), 'e_neg': np.full(200, 0.5), 'grad_policy_from_energy': np.zeros(200)}
    assert 'R21' not in severities(log, tmp_path)[0]
    assert severities({**log, 'energy_loss': np.full(200, 2.75)}, tmp_path)[0]['R21']['severity'] == 'warn'
    assert severities({**log, 'e_pos': np.full(200, 0.6)}, tmp_path)[0]['R21']['severity'] == 'warn'
    log['grad_policy_from_energy'][7] = 1e-9
    found = severities(log, tmp_path)[0]
    assert found['R21']['severity'] == 'critical' and found['R21']['numbers']['first'] == 70


def test_every_complaint_has_numbers_and_an_action():
    """Over simulated logs of every kind: no rule speaks without figures, and what it complains about it can also advise on."""
    for kind, make in simulate.KINDS.items():
        rng = np.random.default_rng(3)
        for f in (f for _ in range(15) for f in simulate.findings_of(make(rng))):
            assert f['rule'] in ('R23', 'R03') or re.search(r'\d', f['text']) and f['numbers'], f
            assert (f['severity'] in ('warn', 'critical')) == bool(f['action']) and (f['severity'] not in ('warn', 'critical') or f['head']), f


# -----------------------------------------------------------------------------
# the end of a training run


def test_the_verdict_of_a_training_script(logs, tmp_path):
    assert diagnose.verdict(str(logs / 'tiny_dynamics.csv'), vocab=1024, total=7000, n_actions=8).startswith('verdict: ok: the loss is falling')
    bad = diagnose.verdict(str(logs / 'rate_1000_times_too_high.csv'), vocab=1024)
    assert bad.startswith('verdict: critical: the loss blew up') and '\n' not in bad
    assert 'there is no such file' in diagnose.verdict(str(tmp_path / 'none.csv'))
    assert diagnose.verdict(None).startswith('verdict: none') and diagnose.verdict(str(logs / 'tiny_dynamics.csv'), vocab='x').startswith('verdict: none')


# -----------------------------------------------------------------------------
# odd inputs


def lines(*rows):
    return 'step,loss\n' + '\n'.join(rows) + '\n'


ODD = {
    'empty.csv': ('', 3, 'empty'), 'only_names.csv': ('step,loss\n', 3, 'no numbers'), 'no_names.csv': ('1,2\n3,4\n', 3, 'no line of column'),
    'one_row.csv': (lines('1,2'), 0, 'too few rows'), 'constant.csv': (lines(*(f'{i},3' for i in range(99))), 0, 'flat'),
    'all_nan.csv': (lines(*(f'{i},nan' for i in range(99))), 2, 'NaN'), 'overflow.csv': (lines(*(f'{i},1e400' for i in range(99))), 2, 'infinite'),
    'no_loss.csv': ('step,lr\n1,2\n2,3\n', 3, 'found no column of'), 'no_step.csv': ('loss\n' + '\n'.join(str(9 - i / 30) for i in range(99)), 0, 'falling'),
    'binary.csv': (bytes(range(256)) * 20, 3, 'binary'), 'picture.csv': (b'\x89PNG\r\n\x1a\n\0\0\0\rIHDR' + bytes(99), 3, 'PNG'),
    'letter.txt': ('Dear Sir,\nthe run is odd.\nYours\n', 3, 'no numbers'), 'list.json': ('[1, 2]', 3, 'expected'), 'words.jsonl': ('{"loss": "x"}\n{{{\n' + '[' * 9999 + '\n', 3, 'no numbers'),
    'long_line.csv': (lines('1,' + '9' * 2_000_000, '2,3', '3,2'), 0, '2 rows'), 'nul.csv': (lines(*(f'{i},{9 - i / 300}' for i in range(999))).replace('500,', '5\x0000,'), 0, '999 rows'),
    'ragged.csv': (lines(*(f'{i},{9 - i / 30}' + ',1' * (i % 3 == 0) for i in range(99)), '99'), 0, 'falling'),
    'absurd_steps.csv': (lines(*(f'{10 ** i},{9 - i / 30}' for i in range(99))), 1, 'gaps'), 'negative.csv': (lines(*(f'{i},{-i}' for i in range(99))), 0, 'not positive'),
    'huge_ints.jsonl': ('{"step": 1, "loss": ' + '9' * 400 + '}\n{"step": 2, "loss": 1}\n', 2, 'infinite'), 'wide.csv': (','.join(f'c{i}' for i in range(5000)) + '\n' + '1,' * 5000 + '\n', 3, 'no column'),
    'escape.csv': ('step,\x1b[31mloss\n1,2\n2,1\n', 0, 'falling'), 'quote.csv': ('step,loss\n1,"2\n2,1\n3,1\n', 0, '3 rows'),
}


@pytest.mark.parametrize('name', ODD)
def test_odd_input(tmp_path, name):
    content, expected, words = ODD[name]
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    code, text, err = run(tmp_path / name)
    assert code == expected and words in text + err, (code, text, err)
    assert len(err.splitlines()) <= 4 and '\x1b' not in text + err
    assert report(tmp_path / name)[0] == code                # and that is JSON, without NaN


def test_other_things_than_files(tmp_path):
    (tmp_path / 'folder').mkdir()
    assert run(tmp_path / 'folder')[0] == 3 and run(tmp_path / 'missing.csv')[0] == 3
    code, text, err = run(tmp_path / 'missing.csv', write_csv(tmp_path / 'log.csv', falling()))
    assert code == 3 and 'verdict: ok' in text and 'no such file' in err                  # what can be read is judged all the same
    if hasattr(os, 'mkfifo'):
        os.mkfifo(tmp_path / 'pipe')
        assert run(tmp_path / 'pipe')[0] == 3


@pytest.mark.parametrize('args', [[], ['--vocab=a', 'x'], ['--vocab=1', 'x'], ['--vocab=', 'x'], ['--total=1,2', 'x'], ['--weights=a', 'x'], ['--weights=a:-1', 'x'], ['--nonsense', 'x']])
def test_bad_usage(args):
    code, text, err = run(*args)
    assert code == 3 and err.startswith('diagnose: ') and len(err.splitlines()) == 2


TOKENS = ['', 'nan', 'inf', '-inf', '1e400', '-1e308', '1e-320', '0', '-1', 'x', '"', '""', ',', '|', '\t', ';', '{', '}', '[', 'null', '\0', '\x1b[2J', '\ufeff', '\r', '\n', ' ', '---', '9' * 400, '1_0',
          '\u0661', 'true', '0x10', '1,2', 'loss', 'step', '\ud7ff', '{"loss": NaN}', '1e15', '-0', '1.5']


def mutated(rng, text):
    """text after one to five accidents."""
    for _ in range(rng.randint(1, 5)):
        rows, kind = text.split('\n'), rng.randrange(12)
        i, j = rng.randrange(len(rows)), rng.randrange(len(rows))
        at = rng.randrange(len(text) + 1)
        if kind == 0:
            text = text[:at] + rng.choice(TOKENS) + text[at:]
        elif kind == 1:
            text = text[:at] + text[at + rng.randint(1, 30):]
        elif kind == 2:
            text = text[:at]
        elif kind == 3:
            rows[i], rows[j] = rows[j], rows[i]
        elif kind == 4:
            rows[i:i] = rows[j:j + rng.randint(1, 40)]
        elif kind == 5:
            rng.shuffle(rows)
        elif kind == 6:
            del rows[i:i + rng.randint(1, 40)]
        elif kind in (7, 8, 9):                               # one cell, or many, become something else
            mark = rng.choice([',', '|', ': ', ' '])
            for k in range(len(rows)) if kind == 9 else [i]:
                cells = rows[k].split(mark)
                cells[rng.randrange(len(cells))] = rng.choice(TOKENS)
                rows[k] = mark.join(cells)
        elif kind == 10:
            text = text + text[at:]
        elif kind == 11:
            text = text.replace(rng.choice('0123456789,.\n|'), rng.choice(TOKENS), rng.choice([1, 5, -1]))
        if kind in (3, 4, 5, 6, 7, 8, 9):
            text = '\n'.join(rows)
        text = text[:20_000] or 'step'
    return text


def test_fuzz(logs, tmp_path):
    """2400 logs after accidents: a verdict or a sentence, never an exception, never a byte that steers the terminal."""
    rng = random.Random(5)
    header, rows = read_cells(logs / 'dynamics_diverged.csv')
    few = rows[::1500]
    latent = read_cells(logs / 'latent_actions_low_diversity.csv')
    energy = {**falling(30), 'energy_loss': np.ones(30), 'n_negatives': np.ones(30), 'e_pos': np.ones(30), 'e_neg': np.ones(30), 'action_l1': np.ones(30), 'psnr': np.ones(30)}
    write_csv(tmp_path / 'energy.csv', energy)
    bases = [as_csv(header, few), as_json_lines(header, few[:20]), as_csv(latent[0], latent[1][::500]), (logs / 'policy_epochs.md').read_text(), (tmp_path / 'energy.csv').read_text(),
             '\n'.join((logs / 'tiny_dynamics.csv').read_text().split('\n')[:40]), (logs / 'tiny_latent_actions.csv').read_text()]
    path, codes = tmp_path / 'log.csv', {}
    args = [[], ['--vocab=1024'], ['--vocab=1024,8', '--total=10', '--n_actions=16', '--weights=closs:1,loss_ct:10,energy_loss:2'], ['--json', '--vocab=8']]
    for i in range(2400):
        text = mutated(rng, bases[i % len(bases)])
        path.write_bytes(text.encode('utf-8', 'replace'))
        code, out, err = run(path, *args[i // 7 % len(args)], *(['--plot', tmp_path / 'x.png'] if i % 100 == 0 else []))
        codes[code] = codes.get(code, 0) + 1
        assert code in (0, 1, 2, 3) and (out or err) and all(c.isprintable() for c in out) and 'Traceback' not in err, text
        if '--json' in args[i // 7 % len(args)]:
            json.loads(out, parse_constant=lambda c: pytest.fail(f'{c} is no JSON'))
    assert set(codes) == {0, 1, 2, 3} and min(codes.values()) > 50, codes                 # the accidents are neither all harmless nor all fatal


def test_fuzzed_checkpoints(tmp_path):
    rng = random.Random(1)
    good = foreign(tmp_path / 'c', 'dynamics_step_1')
    data = {p.name: p.read_bytes() for p in good.iterdir()}
    for _ in range(150):
        for name, content in data.items():
            content = bytearray(content)
            for _ in range(rng.randint(0, 3)):
                content[rng.randrange(len(content))] = rng.randrange(256)
            (good / name).write_bytes(content[:rng.choice([len(content)] * 3 + [rng.randrange(len(content))])])
        code, out, err = run(tmp_path / 'c')
        assert code in (0, 2) and 'verdict: ' in out and not err


# -----------------------------------------------------------------------------
# how often it is right: the whole table is printed by python tests/simulate.py


def test_three_healthy_runs_give_no_critical():
    """Noise, restarts, one recovered spike."""
    rng = np.random.default_rng(7)
    for _ in range(3):
        assert diagnose.conclude(simulate.findings_of(simulate.healthy(rng, spike=True, restarts=2)))[0] != 'critical'


def test_rates():
    found = simulate.rates(40, seed=1)
    assert found['healthy']['critical'] <= 0.05
    least = dict(slow_rise=0.7, sudden_jump=0.9, collapse_to_chance=0.9, spikes=0.9, mixed_runs=0.75, divided_loss=0.95)
    assert all(found[kind]['hit'] >= share for kind, share in least.items()), found


# -----------------------------------------------------------------------------
# the picture


def test_plot(logs, tmp_path):
    """It holds the colours of what it claims to show."""
    from PIL import Image
    path = tmp_path / 'p.png'
    assert run(logs / 'dynamics_diverged.csv', *DIVERGED, f'--plot={path}')[0] == 2
    image = np.array(Image.open(path).convert('RGB'))
    count = lambda colour: (image == [int(colour[i:i + 2], 16) for i in (1, 3, 5)]).all(2).sum()
    assert image.shape == (760, 1400, 3)
    for what, colour in dict(loss='#4a86c5', windows='#d9730d', chance='#c4162a', lr='#6aa96a', flagged='#8757b3').items():
        assert count(colour) > 300, what
    assert run(write_csv(tmp_path / 'log.csv', falling()), f'--plot={tmp_path}/no/such/folder/p.png')[0] == 3
    for odd in (dict(step=[1], loss=[2]), dict(step=[0, 1e90], loss=[1, 1e99]), dict(step=[5, 5, 5], loss=[3, 3, 3]), dict(step=[1e18, 1e18 + 256], loss=[1, 1 + 1e-15]),
                dict(step=[1, 2, 3], loss=[-1, 0, -1e-99]), dict(step=[1, 2], loss=[0, 0], lr=[1e-99, 1e99])):
        assert run(write_csv(tmp_path / 'log.csv', odd), f'--plot={path}')[0] in (0, 1, 2), odd


def test_torch_and_pillow_are_imported_only_when_needed(logs):
    import subprocess
    code = f'import sys; sys.argv = ["diagnose.py", {str(logs / "tiny_dynamics.csv")!r}]; import diagnose; diagnose.main(); print(sorted({{"torch", "PIL"}} & set(sys.modules)))'
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith('[]\n'), done.stderr
