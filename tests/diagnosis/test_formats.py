"""Whatever form a log has, it is the same log: the same rows, the same verdict. Where it could be
read otherwise that is said, and what cannot be read is named."""
import json
import pickle

import numpy as np
import pytest
import simulate
from reports import finding, report, rules, run

from diagnosis import log
from diagnosis.rules import conclude

STEPS = np.arange(300) * 250
RATE = 5e-4 * (1 - STEPS / 100_000)


def curve(bad, seed=0):
    """300 rows that fall from 6.9 to about 3.2; a bad run turns in the middle and climbs to 6."""
    x = np.arange(300)
    loss = 3 + 3.9 * np.exp(-x / 60)
    if bad:
        loss[150:] += 2.8 * (1 - np.exp(-(x[150:] - 150) / 40))
    noise = np.exp(0.03 * np.random.default_rng(seed).standard_normal(300))
    return np.round(loss * noise, 4)


def records(loss, **more):
    return [dict(step=int(s), loss=float(x), lr=float(r), **more)
            for s, x, r in zip(STEPS, loss, RATE)]


def each(row):
    """A writer of one line a row."""
    return lambda loss: '\n'.join(row(int(s), float(x)) for s, x in zip(STEPS, loss)) + '\n'


def trainer_state(loss):
    """Rows of training and of evaluation by turns, and a last one with the mean of it all."""
    history = []
    for i, record in enumerate(records(loss, epoch=0.5, grad_norm=1.0)):
        history.append(record)
        if i % 50 == 49:
            history.append(dict(eval_loss=5.0, eval_runtime=3.1, epoch=0.5, step=record['step']))
    history.append(dict(train_loss=4.5, train_runtime=99.0, total_flos=1e18, epoch=1.0, step=74750))
    return json.dumps(dict(best_metric=None, epoch=1.0, log_history=history, max_steps=80000,
                           stateful_callbacks={'TrainerControl': {'args': {'x': True}}}), indent=2)


def nanogpt(loss):
    text = 'Overriding config with config/mine.py:\nnumber of parameters: 10.65M\n'
    for s, x in zip(STEPS, loss):
        if s % 10_000 == 0:
            text += f'step {s}: train loss {x + 0.01:.4f}, val loss {x + 0.1:.4f}\n'
            text += 'saving checkpoint to out\n'
        text += f'iter {s}: loss {x:.4f}, time 135.75ms, mfu 30.48%\n'
    return text


def modded_nanogpt(loss):
    text = 'Running python 3.12\n' + '=' * 99 + '\n'
    for s, x in zip(STEPS, loss):
        text += (f'step:{s}/80000 train_loss:{x:.4f} train_time:{s * 98}ms '
                 'step_avg:98.50ms\n')
        if s % 10_000 == 0:
            text += f'step:{s}/80000 val_loss:{x:.4f} train_time:{s * 98}ms step_avg:98.50ms\n'
    return text


def tqdm(loss):
    """One huge line."""
    return 'loading\n' + '\r'.join(
        f'train:  {s // 1000}%|#5   | {s}/100000 [00:10<01:20, 110.51it/s, loss={x}, lr=0.0005]'
        for s, x in zip(STEPS, loss)) + '\ndone\n'


def hugging_face(loss):
    """What it prints between the updates of its progress bar; it names no step."""
    return 'Some weights were not used\n' + '\n'.join(
        f"  {i}%|#   | {i}/300 [00:10<01:20, 1.5it/s]\r\n"
        f"{{'loss': {x}, 'grad_norm': 1.25, 'learning_rate': 5e-05, 'epoch': {i / 100:.2f}}}"
        for i, x in enumerate(loss)) + "\n{'train_runtime': 9.0, 'train_loss': 4.5, 'epoch': 3.0}\n"


def this_project(loss):
    text = ("config: out_dir='out/s1' seed=1 (config/tiny.py, d7c78e97e7f6)\n"
            'dynamics: 585,285 parameters on 1 x cpu in float32, 17,928 windows to train on, '
            '1,992 held out, 8 an update\niter 0/80000 | val_loss 6.93 | val_action_entropy 1.2\n')
    for s, x in zip(STEPS, loss):
        text += (f'iter {s}/80000 | loss {x:.4f} (chance 6.931) | action_entropy '
                 f'{1.3 + x / 50:.3f} | lr 5.0e-03 | norm 0.22 | 133 ms | 1,120 frames/s | '
                 'ETA 4m20s\n')
        if s % 5000 == 0:
            text += f'  held out | val_loss {x:.4g} | val_action_entropy 1.4 | best\n'
            text += '  warning: the run will see each window 150 times; record more\n'
    return text + 'dynamics: 80000 updates, best held-out loss 3.1; see out/s1/dynamics\n'


def with_prefix(write, prefix):
    return lambda loss: ''.join(prefix + x + '\n' for x in write(loss).splitlines())


def keras(loss):
    return '\n'.join(f'Epoch {i + 1}/300\n100/100 [====] - 3s 20ms/step - loss: {x} - accuracy: 0.3'
                     f' - val_loss: {x + 0.1:.4f}' for i, x in enumerate(loss))


def by_batches(loss):
    """MetricLogger of DeiT, MAE and others: its counter starts again in every epoch."""
    text = ''
    for i, x in enumerate(loss):
        text += (f'Epoch: [{i // 100}]  [ {10 * (i % 100)}/1000]  eta: 0:04:01  lr: 0.000100  '
                 f'loss: {x:.4f} ({x + 1:.4f})  time: 0.2  data: 0.1  max mem: 1234\n')
        if i % 100 == 99:
            text += 'Test:  [ 0/79]  eta: 0:01:01  loss: 9.9000 (9.9)  acc1: 30.0 (30.0)\n'
    return text


def long_format(loss):
    rows = ['run,tag,step,value,wall_time']
    for s, x in zip(STEPS, loss):
        rows += [f'a,train/loss,{s},{x},{1.76e9 + s}', f'a,lr,{s},0.0005,{1.76e9 + s}']
    return '\n'.join(rows)


FORMS = {  # the name of the file, how it is written, what counts its rows
    'csv': ('log.csv', lambda x: 'step,loss\n' + each(lambda s, x: f'{s},{x}')(x), 'step'),
    'tensorboard': ('run-a-tag-train_loss.csv', lambda x: 'Wall time,Step,Value\n' + each(
        lambda s, x: f'{1.76e9 + s / 9:.4f},{s},{x}')(x), 'step'),
    'tensorboard_json': ('run-a-tag-train_loss (1).json', lambda loss: json.dumps(
        [[1.76e9 + int(s), int(s), float(x)] for s, x in zip(STEPS, loss)]), 'step'),
    'trainer_state': ('trainer_state.json', trainer_state, 'step'),
    'trainer_state_in_a_line': ('x.json', lambda x: json.dumps(json.loads(trainer_state(x))),
                                'step'),
    'json_array': ('log.json', lambda x: json.dumps(records(x)), 'step'),
    'json_array_over_lines': ('log.json', lambda x: json.dumps(records(x), indent=4), 'step'),
    'json_array_that_breaks_off': (
        'log.json', lambda x: '[\n' + ',\n'.join(map(json.dumps, records(x))) + ',\n', 'step'),
    'json_lines_nested': ('log.jsonl', lambda loss: '\n'.join(
        json.dumps(dict(step=int(s), train=dict(loss=float(x)))) for s, x in zip(STEPS, loss)),
        'step'),
    'dict_of_columns': ('h.json', lambda x: json.dumps(
        dict(step=STEPS.tolist(), loss=x.tolist(), val_loss=[5.0, 4.0])), 'step'),
    'dict_of_columns_below': ('h.json', lambda x: json.dumps(
        dict(config=dict(lr=1), history=dict(step=STEPS.tolist(), loss=x.tolist()))), 'step'),
    'pandas_columns': ('h.json', lambda x: json.dumps(
        {k: {str(i): r[k] for i, r in enumerate(records(x))} for k in ('step', 'loss')}), 'step'),
    'pandas_split': ('h.json', lambda x: json.dumps(dict(
        columns=['step', 'loss'], index=list(range(300)),
        data=[[r['step'], r['loss']] for r in records(x)])), 'step'),
    'printed_dicts': ('train.log', hugging_face, 'row'),
    'printed_dicts_of_strings': ('train.log', lambda x: hugging_face(x).replace(
        "'loss': ", "'loss': '").replace(", 'grad", "', 'grad"), 'row'),
    'printed_dicts_of_numpy': ('train.log', each(
        lambda s, x: f"{{'loss': np.float64({x}), 'step': {s}}}"), 'step'),
    'nanogpt': ('out.txt', nanogpt, 'step'),
    'modded_nanogpt': ('out.txt', modded_nanogpt, 'step'),
    'tqdm': ('out.txt', tqdm, 'step'),
    'this_project': ('train.log', this_project, 'step'),
    'torchrun': ('train.log', with_prefix(this_project, '[rank0]: '), 'step'),
    'torchrun_tee': ('train.log', with_prefix(this_project, '[default0]:'), 'step'),
    'srun_label': ('train.log', with_prefix(this_project, ' 0: '), 'step'),
    'coloured': ('train.log', with_prefix(nanogpt, '\x1b[32m2025-01-01 12:00:00,123\x1b[0m INFO '),
                 'step'),
    'json_in_lines': ('train.log', each(
        lambda s, x: f'2025-01-01 | INFO | train | {{"step": {s}, "loss": "{x}"}}'), 'step'),
    'step_in_front': ('train.log', each(lambda s, x: f'{s}: loss {x}'), 'step'),
    'llm_c': ('train.log', each(lambda s, x: f'step {s:5d}/80000 | loss {x} (+0.1z)| norm 15.4 '
                                '(+nanz)| lr 8.57e-07 | 3056 ms | 45.0% bf16 MFU | 171k tok/s'),
              'step'),
    'megatron': ('train.log', each(
        lambda s, x: f' iteration {s:8d}/ 500000 | consumed samples: {s * 8} | learning rate: '
        f'1.5E-06 | lm loss: {x:.4E} | loss scale: 1.0 | grad norm: 1.2 |'), 'step'),
    'keras': ('train.log', keras, 'epoch'),
    'by_batches': ('train.log', by_batches, 'row'),
    'long_format': ('scalars.csv', long_format, 'step'),
}


@pytest.mark.parametrize('form', FORMS)
def test_a_form_of_a_log(tmp_path, form):
    """All its rows are read, and a bad run is found; the good one gives no alarm."""
    name, write, unit = FORMS[form]
    for bad in (True, False):
        loss = curve(bad)
        (tmp_path / name).write_text(write(loss), newline='')
        code, found = report(tmp_path / name)
        rows = finding(found, 'R00')['numbers']
        last = dict(step=74750, row=300, epoch=300)[unit]
        assert (rows['rows'], rows['first'], rows['last']) == (300, loss[0], loss[-1])
        assert rows['last_step'] == pytest.approx(last, abs=unit == 'row')
        assert unit in finding(found, 'R00')['text']
        if bad:
            assert code == 2 and 'diverging' in found['headline']
        else:
            assert code == 0 and 'falling' in found['headline'] and not rules(found, 'warn')


def test_held_out_rows_of_printed_lines_are_at_the_step_before(tmp_path):
    (tmp_path / 'log').write_text(this_project(curve(True)))
    columns = log.read_runs(tmp_path / 'log')[0]['']
    at = np.isfinite(columns['val_loss'])
    assert columns['step'][at].tolist() == [0, *range(0, 75_000, 5000)]


def test_worse_than_the_chance_that_is_printed(tmp_path):
    (tmp_path / 'log').write_text(this_project(curve(False) + 4))
    code, text, _ = run(tmp_path / 'log')
    assert code == 2 and '> ln 1024 = 6.93' in text and 'But' not in text


def test_several_ranks_are_several_runs(tmp_path):
    """Not one run whose step repeats."""
    lines = [f'[rank{r}]: iter {s}: loss {x + 0.01 * r:.4f}' for s, x in zip(STEPS, curve(False))
             for r in (0, 1)]
    (tmp_path / 'log').write_text('\n'.join(lines))
    code, found = report(tmp_path / 'log')
    assert code == 0 and {f['log'] for f in found['findings']} == {'rank0', 'rank1'}


HUGE = ['a' * 99_000, 'loss ' * 19_000, 'loss = ' + ' ' * 99_000, '1/' * 49_000,
        'loss ' + '1,000' * 19_000, 'val: ' * 19_000, "{'loss': " * 11_000, 'loss.' * 19_000,
        'loss 1' + '0' * 99_000, '[rank' + '0' * 99_000, 'loss' + '_a/b.' * 19_000, '\\' * 99_000]


@pytest.mark.parametrize('line', HUGE, ids=range(len(HUGE)))
def test_huge_lines_among_printed_ones(tmp_path, line):
    (tmp_path / 'log').write_text(line + '\n' + nanogpt(curve(True)) + line + '\n')
    assert report(tmp_path / 'log')[0] == 2
    (tmp_path / 'log').write_text(line)
    report(tmp_path / 'log')  # whatever it is, no exception


# -----------------------------------------------------------------------------
# several runs, equal names


def chart(*runs, axis='Step'):
    """W&B's export of a chart."""
    names = [f'{name} - train/loss{end}' for name, _ in runs for end in ('', '__MIN', '__MAX')]
    rows = [[f'"{x}"' for x in [axis, *names]]]
    for i, s in enumerate(STEPS):
        rows.append([f'"{s}"', *(f'"{loss[i]}"' for _, loss in runs for _ in range(3))])
    return '\n'.join(','.join(row) for row in rows)


@pytest.mark.parametrize('order', [(0, 1), (1, 0)])
def test_two_runs_in_one_chart(tmp_path, order):
    """Each is judged, whichever comes first, and the verdict names the bad one."""
    runs = ('Amber-fox-3', curve(True)), ('quiet - lake', curve(False))
    (tmp_path / 'c.csv').write_text(chart(*[runs[i] for i in order]))
    code, text, _ = run(tmp_path / 'c.csv')
    assert code == 2 and 'verdict: critical: Amber-fox-3: the loss is diverging' in text
    assert '--- Amber-fox-3 R00' in text and '--- quiet - lake R00' in text
    code, found = report(tmp_path / 'c.csv')
    assert code == 2 and len(found['tables']) == 2 and 'R13' not in rules(found)
    good = {f['severity'] for f in found['findings'] if f['log'] == 'quiet - lake'}
    assert good == {'info', 'ok'}


def test_runs_of_other_lengths_in_one_chart(tmp_path):
    short = [x if i < 60 else '' for i, x in enumerate(curve(True))]
    (tmp_path / 'c.csv').write_text(chart(('a', short), ('b', curve(False))))
    rows = {f['log']: f['numbers']['rows'] for f in report(tmp_path / 'c.csv')[1]['findings']
            if f['rule'] == 'R00'}
    assert rows == {'a': 60, 'b': 300}


@pytest.mark.parametrize('write', [
    lambda a, b: json.dumps(dict(good=records(b), bad=records(a))),
    lambda a, b: json.dumps(dict(bad=dict(step=STEPS.tolist(), loss=a.tolist()),
                                 good=dict(step=STEPS.tolist(), loss=b.tolist()))),
    lambda a, b: table(**{'step': STEPS, 'good/loss': b, 'bad/loss': a, 'bad/lr': RATE}),
    lambda a, b: 'run,step,loss\n' + '\n'.join(
        f'{name},{s},{loss[i]}' for name, loss in (('bad', a), ('good', b))
        for i, s in enumerate(STEPS)),
    lambda a, b: '\n'.join(json.dumps(dict(r, run_id=name)) for pair in zip(records(a), records(b))
                           for name, r in zip(('bad', 'good'), pair))])
def test_two_runs_in_a_file_of_another_tool(tmp_path, write):
    (tmp_path / 'runs').write_text(write(curve(True), curve(False)))
    code, found = report(tmp_path / 'runs')
    assert code == 2 and found['headline'].startswith('bad: the loss is diverging')
    assert {f['log'] for f in found['findings']} == {'bad', 'good'}


@pytest.mark.parametrize('names', [('Loss', 'loss'), ('loss', 'loss'), ('"loss"', ' loss')])
@pytest.mark.parametrize('first', [True, False])
def test_equal_names(tmp_path, names, first):
    """Said, and never ok; the bad column is found in either place."""
    text = 'step,%s,%s\n' % names
    text += '\n'.join(f'{s},{a},{b}' for s, a, b in zip(STEPS, curve(first), curve(not first)))
    (tmp_path / 'log.csv').write_text(text)
    code, found = report(tmp_path / 'log.csv')
    assert code == 2 and 'several columns have the name loss' in str(found)
    (tmp_path / 'log.csv').write_text('step,loss,lr,lr\n' + '\n'.join(
        f'{s},{x},1,2' for s, x in zip(STEPS, curve(False))))
    code, found = report(tmp_path / 'log.csv')
    assert code == 1 and found['headline'] == 'several columns have the name lr'


# -----------------------------------------------------------------------------
# two counters


def table(**columns):
    return ','.join(columns) + '\n' + '\n'.join(
        ','.join(map(str, row)) for row in zip(*columns.values())) + '\n'


@pytest.mark.parametrize('own', ['iter', 'step', 'global_step', 'train/global_step', 'Iteration',
                                 'trainer/global_step', 'num_updates'])
def test_a_count_of_calls_does_not_win(tmp_path, own):
    columns = {'_step': range(300), 'train/loss': curve(True), own: STEPS}
    (tmp_path / 'log.csv').write_text(table(**columns))
    code, found = report(tmp_path / 'log.csv')
    turned = finding(found, 'R03')['numbers']['turned']
    assert code == 2 and 36_000 <= turned <= 48_000 and f'step {turned:.0f}' in found['headline']
    said = finding(found, 'R24')
    assert own.lower() in said['text'] and '_step' in said['text'] and said['severity'] == 'info'
    (tmp_path / 'log.csv').write_text(table(**{**columns, 'train/loss': curve(False)}))
    assert report(tmp_path / 'log.csv')[0] == 0


def test_the_axis_of_a_chart_counts_calls(tmp_path):
    text = '"Step","a - iter","a - loss"\n' + '\n'.join(
        f'"{i}","{s}","{x}"' for i, (s, x) in enumerate(zip(STEPS, curve(False))))
    (tmp_path / 'c.csv').write_text(text)
    found = report(tmp_path / 'c.csv')[1]
    assert finding(found, 'R00')['numbers']['last_step'] == 74750 and 'iter' in str(found)


@pytest.mark.parametrize('columns, words', [
    (dict(iter=STEPS, step=STEPS // 8), 'two counters disagree, iter and step'),
    ({'_step': range(300), 'iter': [s if s % 2500 == 0 else '' for s in STEPS]},
     'iter is there in 30 of 300 rows only')])
def test_counters_of_which_it_is_unclear_what_checkpoints_have(tmp_path, columns, words):
    """Said, never ok, and none of the checkpoints is chosen."""
    (tmp_path / 'log.csv').write_text(table(**columns, loss=curve(False)))
    code, found = report(tmp_path / 'log.csv')
    assert code == 1 and found['headline'] == words
    checkpoints(tmp_path, 20_000)
    (tmp_path / 'log.csv').write_text(table(**columns, loss=curve(True)))
    code, found = report(tmp_path / 'log.csv', tmp_path / 'checkpoints')
    assert code == 2 and 'none is chosen here' in finding(found, 'R03')['action']


def checkpoints(folder, *steps):
    import torch
    for step in steps:
        path = folder / 'checkpoints' / f'dynamics_step_{step}'
        path.mkdir(parents=True, exist_ok=True)
        for part in ('model_state_dict', 'optim_state_dict', 'state'):
            torch.save({'w': torch.ones(2)}, path / f'{part}.pt')


def test_counters_that_agree_are_no_matter(tmp_path):
    columns = {'_step': STEPS, 'iter': STEPS, 'global_step': STEPS + 1, 'loss': curve(False)}
    (tmp_path / 'log.csv').write_text(table(**columns))
    code, found = report(tmp_path / 'log.csv')
    assert (code, found['verdict']) == (0, 'ok') and 'R24' not in rules(found)


def test_the_checkpoint_is_chosen_by_the_counter_of_the_trainer(tmp_path):
    checkpoints(tmp_path, 20_000, 30_000, 70_000)
    columns = {'_step': range(300), 'iter': STEPS, 'loss': curve(True)}
    (tmp_path / 'log.csv').write_text(table(**columns))
    action = finding(report(tmp_path / 'log.csv', tmp_path / 'checkpoints')[1], 'R03')['action']
    assert 'that of step 30000' in action


@pytest.mark.parametrize('name, counter, words', [
    ('row', [''] * 300, 'judged by rows, so none can be chosen by it'),
    ('epoch', range(300), 'judged by epochs, so none can be chosen by it'),
    ('_step', range(300), 'they do not count the same')])
def test_rows_epochs_and_calls_choose_no_checkpoint(tmp_path, name, counter, words):
    """They would say that none is old enough, though one of step 30,000 is good."""
    checkpoints(tmp_path, 30_000)
    (tmp_path / 'log.csv').write_text(table(**{name: counter, 'loss': curve(True)}))
    code, found = report(tmp_path / 'log.csv', tmp_path / 'checkpoints')
    action = finding(found, 'R03')['action']
    assert code == 2 and words in action and 'from scratch.' not in action
    assert 'All 1 checkpoints' in finding(found, 'R18')['text']


# -----------------------------------------------------------------------------
# numbers as people write them


def written(thousands, decimal, sep, quote=''):
    """A table whose numbers have these marks."""
    def cell(x, digits):
        text = f'{x:,.{digits}f}'.replace(',', '_').replace('.', decimal).replace('_', thousands)
        return f'{quote}{text}{quote}'

    rows = [sep.join([cell(s, 0), cell(x, 5), cell(r, 7)])
            for s, x, r in zip(STEPS, curve(True), RATE)]
    return '\n'.join([sep.join(['Step', 'train/loss', 'lr']), *rows])


@pytest.mark.parametrize('thousands, decimal, sep, quote', [
    ('', ',', ';', ''), ('', ',', '\t', ''), ('', ',', ',', '"'), (',', '.', ';', ''),
    (',', '.', ',', '"'), ('.', ',', ';', ''), ('.', ',', ',', '"'), (' ', '.', ';', ''),
    (' ', ',', '\t', ''), ("'", '.', ';', ''), ('\u202f', ',', ';', ''), ('\xa0', ',', ';', ''),
    ('\u2019', '.', ',', ''), (',', '.', '|', '')])
def test_marks_in_numbers(tmp_path, thousands, decimal, sep, quote):
    check_marks(tmp_path, written(thousands, decimal, sep, quote))


@pytest.mark.parametrize('start', ['\ufeff', 'sep=;\n', '"sep=;"\n', '# made by a tool\n'])
def test_lines_above_a_table(tmp_path, start):
    check_marks(tmp_path, start + written('.', ',', ';'))


def check_marks(tmp_path, text):
    (tmp_path / 'log.csv').write_text(text)
    code, found = report(tmp_path / 'log.csv')
    rows = finding(found, 'R00')['numbers']
    assert (rows['rows'], rows['last_step']) == (300, 74750)
    assert rows['first'] == curve(True)[0] and rows['last'] == curve(True)[-1]
    assert code == 2 and 'diverging' in found['headline'] and 'R24' not in rules(found)
    assert finding(found, 'R06')['numbers']['peak'] == pytest.approx(5e-4)


def test_marks_that_change_from_column_to_column(tmp_path):
    rows = [f'{s},00;{x}' for s, x in zip(STEPS, curve(True))]
    (tmp_path / 'log.csv').write_text('step;loss\n' + '\n'.join(rows))
    rows = finding(report(tmp_path / 'log.csv')[1], 'R00')['numbers']
    assert (rows['rows'], rows['last_step'], rows['last']) == (300, 74750, curve(True)[-1])


@pytest.mark.parametrize('thousands, decimal', [(',', '.'), ('.', ',')])
def test_three_decimals_beside_thousands(tmp_path, thousands, decimal):
    """750 and then 1,000: these are thousands, so that 6.719 has decimals."""
    rows = [f'"{s:,}","{x:.3f}"'.replace(',', ';').replace('.', decimal).replace('";"', '","')
            .replace(';', thousands) for s, x in zip(STEPS, curve(True))]
    (tmp_path / 'log.csv').write_text('step,loss\n' + '\n'.join(rows))
    code, found = report(tmp_path / 'log.csv')
    rows = finding(found, 'R00')['numbers']
    assert (rows['rows'], rows['last_step']) == (300, 74750) and 'R24' not in rules(found)
    assert rows['last'] == pytest.approx(curve(True)[-1], abs=1e-3)


def test_numbers_that_can_be_read_in_two_ways(tmp_path):
    rows = [f'{i};{x:.3f}'.replace('.', ',') for i, x in enumerate(curve(False))]
    (tmp_path / 'log.csv').write_text('step;loss\n' + '\n'.join(rows))
    code, found = report(tmp_path / 'log.csv')
    assert code == 1 and 'in two ways' in found['headline']
    assert finding(found, 'R00')['numbers']['last'] == pytest.approx(curve(False)[-1], abs=1e-3)


@pytest.mark.parametrize('cells, words', [
    (lambda i, s, x: (s if i < 4 else f'{s / 1000}k', x), 'only 4 of 300 cells of step'),
    (lambda i, s, x: (s, x if i < 100 else f'{x} nats'), 'only 100 of 300 cells of loss'),
    (lambda i, s, x: (f'{s} it', x), 'only 0 of 300 cells of step')])
def test_a_small_share_that_can_be_read(tmp_path, cells, words):
    rows = [cells(i, s, x) for i, (s, x) in enumerate(zip(STEPS, curve(False)))]
    (tmp_path / 'log.csv').write_text('step,loss\n' + '\n'.join(f'{a},{b}' for a, b in rows))
    code, found = report(tmp_path / 'log.csv')
    assert code == 1 and words in found['headline'] and 'falling' not in found['headline']


def test_few_lines_of_json_among_others(tmp_path):
    lines = [json.dumps(r) for r in records(curve(False))]
    lines = [x if i % 3 == 0 else x[:x.index('loss": ') + 6] for i, x in enumerate(lines)]
    (tmp_path / 'log.jsonl').write_text('\n'.join(lines))
    code, found = report(tmp_path / 'log.jsonl')
    assert code == 1 and 'of 300 lines can be read' in found['headline']


@pytest.mark.parametrize('digits', [3, 4])
def test_decimal_commas_in_printed_lines_are_not_thousands(tmp_path, digits):
    text = each(lambda s, x: f'step {s}: loss {x:.{digits}f}')(curve(False))
    (tmp_path / 'log').write_text(text.replace('.', ','))
    assert run(tmp_path / 'log')[0] == 3


def test_json_that_breaks_off(tmp_path):
    (tmp_path / 'trainer_state.json').write_text(trainer_state(curve(False))[:30_000])
    code, found = report(tmp_path / 'trainer_state.json')
    assert code == 1 and 'breaks off' in found['headline']


def test_decimal_commas_between_commas_are_refused(tmp_path):
    rows = [f'{s},{x},{r:.6f}'.replace('.', ',') for s, x, r in zip(STEPS, curve(True), RATE)]
    (tmp_path / 'log.csv').write_text('step,loss,lr\n' + '\n'.join(rows))
    code, _, err = run(tmp_path / 'log.csv')
    assert code == 3 and 'decimal commas between commas' in ' '.join(err.split())


def test_too_many_columns(tmp_path):
    """Those that a rule asks for are read, wherever they stand."""
    columns = {f'grad/{i}': [1] * 300 for i in range(300)}
    (tmp_path / 'log.csv').write_text(table(**columns, step=STEPS, loss=curve(True)))
    code, found = report(tmp_path / 'log.csv')
    assert code == 2 and finding(found, 'R00')['numbers']['last_step'] == 74750
    (tmp_path / 'log.jsonl').write_text('\n'.join(
        json.dumps({**dict.fromkeys(columns, 1), **r}) for r in records(curve(True))))
    assert report(tmp_path / 'log.jsonl')[0] == 2
    columns = {f'loss/{i}': [1] * 300 for i in range(300)}
    (tmp_path / 'log.csv').write_text(table(step=STEPS, loss=curve(False), **columns))
    code, found = report(tmp_path / 'log.csv')
    assert code == 1 and 'columns were not read' in found['headline']


# -----------------------------------------------------------------------------
# held-out losses, terms with a prefix, and what is refused


@pytest.mark.parametrize('name', [
    'run-a-tag-val_loss.csv', 'run-a-tag-loss_val.csv', 'run-validation-tag-epoch_loss.csv',
    'run-a-tag-Loss_test.csv'])
def test_the_tag_is_of_held_out_data(tmp_path, name):
    """It is judged and that is said; where it rises, that is no reason to lower the rate."""
    for bad in (True, False):
        text = FORMS['tensorboard'][1](curve(bad))
        (tmp_path / name).write_text(text)
        code, found = report(tmp_path / name)
        assert code == int(bad) and 'held-out data, is judged instead' in str(found)
        assert not bad or 'the held-out loss rises' in found['headline']
        assert 'R23' not in rules(found)


@pytest.mark.parametrize('name', ['run-a-tag-learning_rate.csv', 'export.csv', 'accuracy.csv'])
def test_the_tag_is_no_loss(tmp_path, name):
    (tmp_path / name).write_text(FORMS['tensorboard'][1](curve(False)))
    code, _, err = run(tmp_path / name)
    err = ' '.join(err.split())
    assert code == 3 and 'is no loss' in err and 'tag-train_loss.csv' in err


def test_terms_with_a_prefix(tmp_path):
    """closs of --weights is train_closs in log_train.txt, and val_closs in log_eval_ind.txt."""
    for prefix in ('train_', 'val_', 'train/', ''):
        lines = [json.dumps({f'{prefix}lr': 2e-5, f'{prefix}closs': 8 * 0.9 ** e,
                             f'{prefix}loss_ct': 0.5 * 0.9 ** e, 'epoch': e}) for e in range(20)]
        (tmp_path / 'log.txt').write_text('\n'.join(lines))
        code, found = report(tmp_path / 'log.txt', '--weights=closs:1,loss_ct:10')
        shares = finding(found, 'R15')['numbers']
        assert code == 0 and shares['closs'][1] == pytest.approx(100 * 8 / 13)
        assert f'{prefix}closs' in finding(found, 'R00')['text']
        assert finding(found, 'R06')['numbers']['lr'] == pytest.approx(2e-5)
        assert finding(found, 'R16')['numbers']['now'] == pytest.approx(0.5 * 0.9 ** 19)


NOT_TEXT = bytes(range(256)) * 8
REFUSED = {
    'events.out.tfevents.1760000000.host.1.0': (NOT_TEXT, 'TensorBoard event file', 'CSV'),
    'x.1': (b'\x18\0\0\0\0\0\0\0\xa3\x7fK"\t\0\0\xc0\x15\xa4\x9e\xdaA\x1a\rbrain.Event:2'
            + NOT_TEXT, 'TensorBoard event file', 'show data download links'),
    'run-abc.wandb': (b':W&B\xe1\xbe\0' + NOT_TEXT, "W&B's own binary log", 'wandb sync'),
    'history.pkl': (pickle.dumps(dict(loss=[1.0, 2.0] * 99)), 'Python pickle', 'CSV'),
    'history.parquet': (b'PAR1' + NOT_TEXT, 'Parquet', 'to_csv'),
    'history.feather': (b'ARROW1' + NOT_TEXT, 'Arrow', 'to_csv'),
    'log.xlsx': (b'PK\3\4' + b'\0' * 26 + b'docProps/app.xml' + NOT_TEXT, 'Excel', 'CSV'),
    'model.pt': (b'PK\3\4' + NOT_TEXT, 'zip file, or a checkpoint', 'checkpoints'),
    'mlflow.db': (b'SQLite format 3\0' + NOT_TEXT, 'SQLite', 'CSV'),
    'log.zst': (b'\x28\xb5\x2f\xfd' + NOT_TEXT, 'zstd', 'zstd -d'),
    'loss.npy': (b'\x93NUMPY\1\0' + NOT_TEXT, 'NumPy', 'CSV'),
    'train.ipynb': (b'{\n "cells": [\n  {"cell_type": "code", "outputs": []}], "nbformat": 4}',
                    'Jupyter notebook', 'text file'),
    'chart.html': (b'<!DOCTYPE html><html>loss 3.1</html>', 'web page', 'CSV'),
    'runs.csv': (b'"Name","State","Created","loss"\n"a","finished","2025","3.1"\n',
                 "W&B's table of runs", 'history'),
}


@pytest.mark.parametrize('name', REFUSED)
def test_a_format_that_is_refused_is_named_with_a_way_out(tmp_path, name):
    content, what, way_out = REFUSED[name]
    (tmp_path / name).write_bytes(content)
    code, out, err = run(tmp_path / name)
    text = ' '.join(err.split())
    assert code == 3 and what in text and way_out.lower() in text.lower(), err
    assert not out and len(err.splitlines()) <= 3


# -----------------------------------------------------------------------------
# no false alarm


def test_a_run_that_was_resumed_and_went_well(tmp_path):
    """It did 20 rows again: no alarm. If the second try stands elsewhere, it is not that run."""
    rng, loss = np.random.default_rng(1), curve(False)
    again = loss[180:200] * np.exp(0.03 * rng.standard_normal(20))
    for factor, severity in ((1, 'info'), (1.1, 'info'), (3, 'warn'), (0.3, 'warn')):
        for headers in ('', 'step,loss\n'):
            rows = [f'{s},{x}\n' for s, x in zip(STEPS, loss)]
            redone = [f'{s},{x}\n' for s, x in zip(STEPS[180:], factor * np.r_[again, loss[200:]])]
            (tmp_path / 'log.csv').write_text('step,loss\n' + ''.join(rows[:200]) + headers
                                              + ''.join(redone))
            code, found = report(tmp_path / 'log.csv')
            assert finding(found, 'R19')['severity'] == severity
            assert finding(found, 'R00')['numbers']['rows'] == 300
            if severity == 'info':
                assert (code, found['verdict']) == (0, 'ok')


def test_a_run_that_was_resumed_between_its_rows(tmp_path):
    """Its steps are others, so each is there once; it is not a shuffled file all the same."""
    loss = curve(False)
    rows = [(s, x) for s, x in zip(STEPS[:200], loss)]
    rows += [(s + 37, x) for s, x in zip(STEPS[180:], loss[180:])]
    (tmp_path / 'log.csv').write_text('step,loss\n' + '\n'.join(f'{s},{x}' for s, x in rows))
    code, found = report(tmp_path / 'log.csv')
    assert code == 0 and '19 rows that were done again' in finding(found, 'R19')['text']


def test_a_run_that_rose_and_was_rolled_back(tmp_path):
    """What was abandoned is no complaint about what came after it."""
    loss = curve(False)
    first = np.r_[loss[:180], 3 * loss[180:200]]
    rows = list(zip(STEPS, first)) + list(zip(STEPS[180:], loss[180:]))
    (tmp_path / 'log.csv').write_text('step,loss\n' + '\n'.join(f'{s},{x}' for s, x in rows))
    code, found = report(tmp_path / 'log.csv')
    assert code == 0 and finding(found, 'R19')['severity'] == 'info'


def test_rows_that_repeat_are_two_runs(tmp_path):
    a, b = curve(False), curve(False, seed=1)
    rows = [f'{s},{x}' for s, *pair in zip(STEPS, a, b) for x in pair]
    (tmp_path / 'log.csv').write_text('step,loss\n' + '\n'.join(rows))
    assert finding(report(tmp_path / 'log.csv')[1], 'R19')['severity'] == 'warn'


def test_200_healthy_logs():
    """At most 2% are called critical, as before, and at most 20% warned of, for their spikes: 71%
    were when a restart that went well was a warning."""
    rng, verdicts = np.random.default_rng([0, 0]), []
    for _ in range(200):
        findings = simulate.findings_of(simulate.healthy(rng))
        verdicts.append(conclude(findings)[0])
        assert not [f for f in findings if f['rule'] == 'R19' and f['severity'] == 'warn']
    assert verdicts.count('critical') <= 4 and verdicts.count('warn') <= 40
