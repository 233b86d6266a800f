"""What a reviewer found to be read wrongly: another loss than that of the training was judged, rows
of two kinds were mixed, or the end of a run was not seen."""

import json

import numpy as np
import pytest
from reports import finding, report, rules, run
from test_formats import RATE, STEPS, curve, each, records, table, this_project

from diagnosis import log


def judged(path, text):
    """Exit code, report, and how many rows were judged."""
    path.write_text(text)
    code, found = report(path)
    return code, found, finding(found, 'R00')['numbers']['rows']


# -----------------------------------------------------------------------------
# which loss


@pytest.mark.parametrize('name', ['recon_loss', 'lm_loss', 'loss_y', 'train_loss_2'])
def test_a_loss_that_was_not_judged_and_rises(tmp_path, name):
    """The verdict is not ok; of two that fall it is."""
    for bad in (True, False):
        columns = {'step': STEPS, 'loss': curve(False), name: curve(bad)}
        code, found, _ = judged(tmp_path / 'log.csv', table(**columns))
        assert code == int(bad)
        if bad:
            assert found['headline'] == f'{name}, which was not judged, rises'
            assert finding(found, 'R24')['severity'] == 'info'  # what is judged is said as before


@pytest.mark.parametrize(
    'name, loss',
    [
        ('best_loss', 'train_loss_total'),
        ('min_loss', 'epoch_loss'),
        ('train/best_loss', 'my_loss'),
        ('lowest_loss', 'train_loss_total'),
    ],
)
def test_the_lowest_loss_so_far_is_not_the_loss(tmp_path, name, loss):
    """It never rises."""
    columns = {'step': STEPS, name: np.minimum.accumulate(curve(True)), loss: curve(True)}
    code, found, _ = judged(tmp_path / 'log.csv', table(**columns))
    assert code == 2 and loss in finding(found, 'R00')['text']


def test_dev_is_held_out(tmp_path):
    columns = dict(step=STEPS, loss_train=curve(True), dev_loss=curve(False))
    code, found, _ = judged(tmp_path / 'log.csv', table(**columns))
    assert code == 2 and 'diverging' in found['headline'] and 'R23' not in rules(found)
    write = each(lambda s, x: f'step {s} | train: loss {x} | dev: loss 3.1')
    code, found, rows = judged(tmp_path / 'log', write(curve(True)))
    assert (code, rows) == (2, 300) and 'R23' not in rules(found)
    assert not log.HELD_OUT.fullmatch('grad/std_dev') and not log.HELD_OUT.fullmatch('device')


# -----------------------------------------------------------------------------
# the end of the loss


@pytest.mark.parametrize('last', [30, 180])
def test_a_loss_that_ends_before_the_other_columns(tmp_path, last):
    """pandas wrote its NaN as blanks."""
    loss = [x if i < last else '' for i, x in enumerate(curve(False))]
    code, found, rows = judged(tmp_path / 'log.csv', table(step=STEPS, loss=loss, lr=RATE))
    assert (code, rows) == (1, last) and found[
        'headline'
    ] == f'no loss after step {STEPS[last - 1]}'
    assert 'na_rep="nan"' in str(found)


def test_a_few_rows_without_a_loss_at_the_end_are_no_matter(tmp_path):
    loss = [x if i < 290 else '' for i, x in enumerate(curve(False))]
    assert judged(tmp_path / 'log.csv', table(step=STEPS, loss=loss, lr=RATE))[0] == 0
    (tmp_path / 'x.parquet').write_bytes(b'PAR1' + bytes(99))
    assert 'na_rep="nan"' in ' '.join(run(tmp_path / 'x.parquet')[2].split())


# -----------------------------------------------------------------------------
# printed lines


def vae(loss):
    """The example of PyTorch."""
    return '\n'.join(
        f'====> Epoch: {i} Average loss: {x:.4f}\n====> Test set loss: 3.1234'
        for i, x in enumerate(loss)
    )


def megatron(loss):
    return each(
        lambda s, x: f' iteration {s:8d}/ 75000 | lm loss: {x:.6E} | loss scale: 1.0 | '
        'number of skipped iterations:   0 | number of nan iterations:   0 |'
    )(loss)


@pytest.mark.parametrize('write', [vae, megatron])
@pytest.mark.parametrize('bad', [True, False])
def test_words_beside_the_loss(tmp_path, write, bad):
    code, found, rows = judged(tmp_path / 'log', write(curve(bad)))
    assert (code, rows) == (2 * bad, 300) and 'R20' not in rules(found)
    assert ('diverging' if bad else 'falling') in found['headline']


def make(*stages):
    """What `make | tee make.log` keeps."""
    return ''.join(this_project(loss).replace('dynamics', name) for name, loss in stages)


def test_each_stage_of_make_is_judged(tmp_path):
    good, bad = curve(False), curve(True)
    stages = [('tokenizer', good), ('latent_actions', bad), ('dynamics', good)]
    code, found, rows = judged(tmp_path / 'make.log', make(*stages))
    assert (code, rows) == (2, 300) and 'R19' not in rules(found)
    assert found['headline'].startswith('latent_actions: the loss is diverging')
    assert {f['log'] for f in found['findings']} == {name for name, _ in stages}
    stages = [(name, good) for name, _ in stages]
    assert judged(tmp_path / 'make.log', make(*stages))[0] == 0


def test_a_stage_that_is_run_again_is_its_later_try(tmp_path):
    text = make(('dynamics', curve(True)), ('tokenizer', curve(False)), ('dynamics', curve(False)))
    code, found, _ = judged(tmp_path / 'make.log', text)
    assert code == 1 and 'only number 2 is judged here' in str(found)
    assert 'diverging' not in str(found)


# -----------------------------------------------------------------------------
# rows of two kinds


def test_a_long_table_that_is_sorted_by_tag(tmp_path):
    for bad in (True, False):
        rows = [f'{s},lr,{r}' for s, r in zip(STEPS, RATE)]
        rows += [f'{s},train/loss,{x}' for s, x in zip(STEPS, curve(bad))]
        code, found, n = judged(tmp_path / 'log.csv', 'step,tag,value\n' + '\n'.join(rows))
        assert (code, n) == (2 * bad, 300) and 'R19' not in rules(found)


@pytest.mark.parametrize('column', ['split', 'mode', 'phase'])
@pytest.mark.parametrize('value', ['val', 'valid', 'eval', 'test', 'dev'])
def test_rows_of_held_out_data(tmp_path, column, value):
    """`loss` is there in the rows of both; the training is judged."""
    for bad in (True, False):
        pairs = [
            ({**a, column: 'train'}, {**b, column: value})
            for a, b in zip(records(curve(bad)), records(curve(not bad)))
        ]
        rows = [row for pair in pairs for row in pair]
        csv = '\n'.join([','.join(rows[0]), *(','.join(map(str, r.values())) for r in rows)])
        for text in ('\n'.join(map(json.dumps, rows)), csv):
            code, found, n = judged(tmp_path / 'log', text)
            assert (code, n) == (2 * bad, 300) and 'R19' not in rules(found)
            columns = log.read_runs(tmp_path / 'log')[0]['']
            assert np.isfinite(columns['val/loss']).sum() == 300
            assert np.isfinite(columns['step']).sum() == 600


@pytest.mark.parametrize('column', ['experiment', 'exp_name', 'seed'])
def test_columns_that_name_the_run(tmp_path, column):
    """Only where several values occur."""
    rows = [
        f'{name},{s},{x}'
        for s, a, b in zip(STEPS, curve(True), curve(False))
        for name, x in ((7, a), (8, b))
    ]
    code, found, n = judged(tmp_path / 'log.csv', f'{column},step,loss\n' + '\n'.join(rows))
    assert (code, n) == (2, 300) and found['headline'].startswith('7: the loss is diverging')
    one = [row for row in rows if row.startswith('8')]
    code, found, n = judged(tmp_path / 'log.csv', f'{column},step,loss\n' + '\n'.join(one))
    assert (code, n) == (0, 300) and {f['log'] for f in found['findings']} == {''}


def test_a_counter_that_only_evaluations_have(tmp_path):
    rows = [f'{i},,{x},' if i % 10 else f'{i},{i * 100},,{x}' for i, x in enumerate(curve(False))]
    text = '_step,global_step,train/loss,eval/loss\n' + '\n'.join(rows)
    code, found, n = judged(tmp_path / 'log.csv', text)
    assert (code, n) == (1, 270)
    assert found['headline'] == 'global_step is there in 0 of 270 rows only'


# -----------------------------------------------------------------------------
# cells and columns


def test_a_dict_of_lists_as_python_prints_it(tmp_path):
    loss = curve(True).tolist()
    code, found, n = judged(tmp_path / 'log', str(dict(loss=loss, val_loss=loss)))
    assert (code, n) == (2, 300) and 'diverging' in found['headline']
    numpy = ', '.join(f'np.float64({x})' for x in loss[:50])
    code, found, n = judged(tmp_path / 'log', f"{{'loss': [{numpy}, nan, nan]}}")
    assert (code, n) == (2, 50) and 'loss is NaN first at row 50' in str(found)


@pytest.mark.parametrize(
    'text',
    [
        "{'loss': " + '[' * 99_000,
        "{'loss\\d': [1, 2], 3: [4]}",
        "{'loss': [__import__('os').abort()]}",
        "{'loss': {1, 2}}",
        "{'loss': [1, {2}, b'3', 4j, (5,)]}",
    ],
)
def test_no_list_of_python(tmp_path, text):
    (tmp_path / 'log').write_text(text)
    code, _, err = run(tmp_path / 'log')
    assert code in (0, 1, 3) and 'Warning' not in err


def test_no_log_is_blank(tmp_path):
    rows = [
        f'{s}\t{x}\t' + (f'{x}' if i % 100 == 99 else 'No log')
        for i, (s, x) in enumerate(zip(STEPS, curve(False)))
    ]
    text = 'Step\tTraining Loss\tValidation Loss\n' + '\n'.join(rows)
    code, found, n = judged(tmp_path / 'log', text)
    assert (code, n) == (0, 300) and 'no numbers' not in str(found)


def test_the_cure_for_long_lines_is_that_of_commas_only_for_commas(tmp_path):
    for mark in ';\t|':
        rows = [mark.join(map(str, (i, 3.1, 1, 2))) for i in range(99)]
        (tmp_path / 'log.csv').write_text(f'step{mark}loss\n' + '\n'.join(rows))
        code, _, err = run(tmp_path / 'log.csv')
        assert code == 3 and 'expected 2' in err and 'decimal commas' not in err


def test_ranges_of_a_chart_take_no_room(tmp_path):
    """120 runs are 361 columns, of which 120 hold a loss."""
    names = [f'r{i} - train/loss{end}' for i in range(120) for end in ('', '__MIN', '__MAX')]
    rows = [
        ','.join([str(s), *(f'{x}' for _ in range(360))])
        for s, x in zip(STEPS[::6], curve(False)[::6])
    ]
    code, found, _ = judged(tmp_path / 'c.csv', '\n'.join([','.join(['Step', *names]), *rows]))
    assert code == 0 and len({f['log'] for f in found['findings']}) == 120


@pytest.mark.parametrize(
    'column, values', [('split', ('train', 'val')), ('seed', (7, 8)), ('run', (8, 7))]
)
def test_what_says_where_a_row_belongs_is_read_of_many_columns(tmp_path, column, values):
    many = {f'grad/{i}': 1 for i in range(201)}  # more than are read
    rows = []
    for a, b in zip(records(curve(True)), records(curve(False))):
        rows += [{**many, **a, column: values[0]}, {**many, **b, column: values[1]}]
    code, found, n = judged(tmp_path / 'log', '\n'.join(map(json.dumps, rows)))
    assert (code, n) == (2, 300) and 'R19' not in rules(found)


@pytest.mark.parametrize('more', [5, 40])
def test_a_long_file_gives_its_rows_to_the_right_run(tmp_path, more):
    """It is read piece by piece."""
    lines = make(('tokenizer', curve(False)), ('dynamics', curve(True))).splitlines()
    text = '\n'.join(line + ' ' * 20 * more for line in lines)
    code, found, n = judged(tmp_path / 'log', text)
    assert (code, n) == (2, 300) and found['headline'].startswith('dynamics: the loss is div')
    rows = [
        f'{name},{s},{x},{"0" * 20 * more}1'
        for name, loss in ((7, curve(True)), (8, curve(False)))
        for s, x in zip(STEPS, loss)
    ]
    code, found, n = judged(tmp_path / 'log.csv', 'seed,step,loss,x\n' + '\n'.join(rows))
    assert (code, n) == (2, 300) and found['headline'].startswith('7: the loss is diverging')
