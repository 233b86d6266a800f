"""Logs in any format give the same findings; odd files get a sentence, and never an exception."""
import bz2
import gzip
import json
import lzma
import os
import random

import numpy as np
import pytest
from reports import (DIVERGED, as_csv, as_json_lines, falling, finding, no_constant, read_cells,
                     report, run, write_csv)
from test_formats import FORMS, curve

from diagnosis import log

LATENT = ('latent_actions_low_diversity.csv', ['--n_actions=16'])
EPOCHS = ('policy_epochs.md', ['--vocab=65536', '--weights=closs:1,loss_ct:10'])
BATCHES = ('policy_batches.md', ['--vocab=65536,8192'])


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


def crlf(header, rows):
    return as_csv(header, rows, '\r\n')


def tabs(header, rows):
    return as_csv(header, rows).replace(',', '\t')


def semicolons(header, rows):
    return as_csv(header, rows).replace(',', ';')


def decimal_commas(header, rows):
    return semicolons(header, rows).replace('.', ',')


def quoted_names(header, rows):
    return as_csv([f'"run 1 - {x}"' for x in header], rows)


def quoted(header, rows):
    return as_csv([f'"{x}"' for x in header], [[f'"{x}"' for x in r] for r in rows])


CONVERSIONS = dict(json_lines=as_json_lines, shuffled=shuffled, blanks=with_blanks, crlf=crlf,
                   tabs=tabs, semicolons=semicolons, decimal_commas=decimal_commas,
                   quoted_names=quoted_names, quoted=quoted, utf16=as_csv)


@pytest.mark.parametrize('conversion', CONVERSIONS)
@pytest.mark.parametrize('name, args', [
    pytest.param('dynamics_diverged.csv', DIVERGED, marks=pytest.mark.slow), LATENT, EPOCHS,
    BATCHES])
def test_the_same_log_in_another_format_gives_the_same_findings(logs, tmp_path, conversion, name,
                                                                 args):
    text = CONVERSIONS[conversion](*read_cells(logs / name))
    path = tmp_path / name  # the name is in the text of R00
    path.write_bytes(text.encode('utf-16' if conversion == 'utf16' else 'utf-8'))
    was, now = report(logs / name, *args), report(path, *args)
    assert now[0] == was[0] and now[1]['headline'] == was[1]['headline']
    assert now[1]['findings'] == was[1]['findings']


def test_whitespace_table(logs, tmp_path):
    header, rows = read_cells(logs / 'policy_batches.md')
    path = tmp_path / 'policy_batches.md'
    path.write_text('\n'.join('   '.join(r) for r in [header, *rows]))
    assert report(path)[1]['findings'] == report(logs / 'policy_batches.md')[1]['findings']


def test_a_separator_in_quotes_separates_nothing(tmp_path):
    path = tmp_path / 'log.csv'
    rows = [f'{i},"phase, {i % 2}",{9 - i / 30}' for i in range(99)]
    path.write_text('\n'.join(['step,phase,loss', *rows]))
    found = finding(report(path)[1], 'R00')
    assert found['numbers']['last'] == pytest.approx(9 - 98 / 30) and 'But' not in found['text']


def test_a_nan_is_no_blank(tmp_path):
    """In the arrays: blank nan, infinite inf, a NaN that was logged -inf."""
    path = tmp_path / 'log.csv'
    path.write_text('step,loss\n0,1.5\n1,\n2,nan\n3,-inf\n4,1e101\n5,1e-101\n6,x\n')
    expected = [1.5, np.nan, -np.inf, np.inf, np.inf, 0, np.nan]
    runs, odd = log.read_runs(path)
    np.testing.assert_array_equal(runs['']['loss'], expected)
    assert odd == dict(lines=0, cells=1, headers=0, rows=7)
    values = '1.5 null NaN -Infinity 1e101 1e-101 "x"'.split()
    path.write_text(''.join(f'{{"step": {i}, "loss": {v}}}\n' for i, v in enumerate(values)))
    runs, odd = log.read_runs(path)
    np.testing.assert_array_equal(runs['']['loss'], expected)
    assert odd == dict(lines=0, cells=1, headers=0, rows=7)


@pytest.mark.parametrize('pack', [gzip, bz2, lzma])
def test_packed_logs(logs, tmp_path, pack):
    data, path = (logs / 'tiny_dynamics.csv').read_bytes(), tmp_path / 'tiny_dynamics.csv'
    path.write_bytes(pack.compress(data))
    assert report(path)[1]['findings'] == report(logs / 'tiny_dynamics.csv')[1]['findings']
    path.write_bytes(pack.compress(data)[:-900])  # killed while it wrote
    code, _, err = run(path)
    assert code == 3 and 'cannot be read' in ' '.join(err.split())
    path.write_bytes(pack.compress(b'step,loss\n' + b'\n' * 30_000_000))  # a bomb
    code, _, err = run(path)
    assert code == 3 and 'expected a log of at most' in ' '.join(err.split())


def lines(*rows):
    return 'step,loss\n' + '\n'.join(rows) + '\n'


ODD = {
    'empty.csv': ('', 3, 'empty'),
    'only_names.csv': ('step,loss\n', 3, 'no numbers'),
    'no_names.csv': ('1,2\n3,4\n', 3, 'no line of column'),
    'one_row.csv': (lines('1,2'), 0, 'too few rows'),
    'constant.csv': (lines(*(f'{i},3' for i in range(99))), 0, 'flat'),
    'all_nan.csv': (lines(*(f'{i},nan' for i in range(99))), 2, 'NaN'),
    'overflow.csv': (lines(*(f'{i},1e400' for i in range(99))), 2, 'infinite'),
    'no_loss.csv': ('step,lr\n1,2\n2,3\n', 3, 'found no column of'),
    'no_step.csv': ('loss\n' + '\n'.join(str(9 - i / 30) for i in range(99)), 0, 'falling'),
    'binary.csv': (bytes(range(256)) * 20, 3, 'binary'),
    'picture.csv': (b'\x89PNG\r\n\x1a\n\0\0\0\rIHDR' + bytes(99), 3, 'PNG'),
    'letter.txt': ('Dear Sir,\nthe run is odd.\nYours\n', 3, 'no numbers'),
    'list.json': ('[1, 2]', 3, 'expected'),
    'words.jsonl': ('{"loss": "x"}\n{{{\n' + '[' * 9999 + '\n', 3, 'no numbers'),
    'long_line.csv': (lines('1,' + '9' * 2_000_000, '2,3', '3,2'), 0, '2 rows'),
    'done_again.csv': (lines(*(f'{i},{9 - i / 30}' for i in [*range(50), 49, *range(45, 99)])), 0,
                       '6 rows that were done again'),
    'nul.csv': (lines(*(f'{i},{9 - i / 300}' for i in range(999))).replace('500,', '5\x0000,'), 0,
                '999 rows'),
    'ragged.csv': (lines(*(f'{i},{9 - i / 30}' + (',1' if i % 3 == 0 else '') for i in range(99)),
                         '99'), 0, 'falling'),
    'all_short.csv': ('step,loss,lr\n' + '\n'.join(f'{i},{9 - i / 30}' for i in range(99)), 0,
                      '99 lines are broken'),
    'absurd_steps.csv': (lines(*(f'{10 ** i},{9 - i / 30}' for i in range(99))), 1, 'gaps'),
    'negative.csv': (lines(*(f'{i},{-i}' for i in range(99))), 0, 'not positive'),
    'huge_ints.jsonl': ('{"step": 1, "loss": ' + '9' * 400 + '}\n{"step": 2, "loss": 1}\n', 2,
                        'infinite'),
    'wide.csv': (','.join(f'c{i}' for i in range(5000)) + '\n' + '1,' * 5000 + '\n', 3,
                 'no column'),
    'escape.csv': ('step,\x1b[31mloss\n1,2\n2,1\n', 0, 'falling'),
    'quote.csv': ('step,loss\n1,"2\n2,1\n3,1\n', 0, '3 rows'),
    'quote_inside.csv': ('step,loss\na"b,"c\n2,1\n3,1\n', 0, '2 rows'),
}


@pytest.mark.parametrize('name', ODD)
def test_odd_input(tmp_path, name):
    content, expected, words = ODD[name]
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    code, text, err = run(tmp_path / name)
    # wherever the lines were broken: that depends on how long the name of the folder is
    assert code == expected and words in text + ' '.join(err.split()), (code, text, err)
    assert len(err.splitlines()) <= 4 and '\x1b' not in text + err
    assert report(tmp_path / name)[0] == code  # and that is JSON, without NaN


def test_other_things_than_files(tmp_path):
    (tmp_path / 'folder').mkdir()
    assert run(tmp_path / 'folder')[0] == 3 and run(tmp_path / 'missing.csv')[0] == 3
    code, text, err = run(tmp_path / 'missing.csv', write_csv(tmp_path / 'log.csv', falling()))
    # what can be read is judged all the same
    assert code == 3 and 'verdict: ok' in text
    assert 'no such file' in ' '.join(err.split())
    if hasattr(os, 'mkfifo'):
        os.mkfifo(tmp_path / 'pipe')
        assert run(tmp_path / 'pipe')[0] == 3


TOKENS = ['', 'nan', 'inf', '-inf', '1e400', '-1e308', '1e-320', '0', '-1', 'x', '"', '""', ',',
          '|', '\t', ';', '{', '}', '[', 'null', '\0', '\x1b[2J', '\ufeff', '\r', '\n', ' ', '---',
          '9' * 400, '1_0', '\u0661', 'true', '0x10', '1,2', 'loss', 'step', '\ud7ff',
          '{"loss": NaN}', '1e15', '-0', '1.5']


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
        elif kind in (7, 8, 9):  # one cell, or many, become something else
            mark = rng.choice([',', '|', ': ', ' '])
            for k in range(len(rows)) if kind == 9 else [i]:
                cells = rows[k].split(mark)
                cells[rng.randrange(len(cells))] = rng.choice(TOKENS)
                rows[k] = mark.join(cells)
        elif kind == 10:
            text = text + text[at:]
        elif kind == 11:
            some = rng.choice('0123456789,.\n|')
            text = text.replace(some, rng.choice(TOKENS), rng.choice([1, 5, -1]))
        if kind in (3, 4, 5, 6, 7, 8, 9):
            text = '\n'.join(rows)
        text = text[:20_000] or 'step'
    return text


@pytest.mark.slow
def test_fuzz(logs, tmp_path):
    """2400 logs after accidents: a verdict or a sentence, never an exception, never a byte that
    steers the terminal."""
    rng = random.Random(5)
    header, rows = read_cells(logs / 'dynamics_diverged.csv')
    few = rows[::1500]
    latent = read_cells(logs / 'latent_actions_low_diversity.csv')
    ones = dict.fromkeys(['energy_loss', 'n_negatives', 'e_pos', 'e_neg', 'action_l1', 'psnr'],
                         np.ones(30))
    energy = write_csv(tmp_path / 'energy.csv', {**falling(30), **ones})
    bases = [as_csv(header, few), as_json_lines(header, few[:20]),
             as_csv(latent[0], latent[1][::500]), (logs / 'policy_epochs.md').read_text(),
             energy.read_text(),
             '\n'.join((logs / 'tiny_dynamics.csv').read_text().split('\n')[:40]),
             (logs / 'tiny_latent_actions.csv').read_text()]
    bases += [FORMS[form][1](curve(True)[:40]) for form in (
        'trainer_state', 'tensorboard_json', 'dict_of_columns', 'printed_dicts', 'this_project',
        'tqdm', 'by_batches', 'long_format')]
    path, codes = tmp_path / 'log.csv', {}
    args = [[], ['--vocab=1024'],
            ['--vocab=1024,8', '--total=10', '--n_actions=16',
             '--weights=closs:1,loss_ct:10,energy_loss:2'], ['--json', '--vocab=8']]
    for i in range(2400):
        text, flags = mutated(rng, bases[i % len(bases)]), args[i // 7 % len(args)]
        path.write_bytes(text.encode('utf-8', 'replace'))
        picture = ['--plot', tmp_path / 'x.png'] if i % 100 == 0 else []
        code, out, err = run(path, *flags, *picture)
        codes[code] = codes.get(code, 0) + 1
        assert code in (0, 1, 2, 3) and (out or err), text
        assert all(c.isprintable() for c in out) and 'Traceback' not in err, text
        if '--json' in flags:
            json.loads(out, parse_constant=no_constant)
    # the accidents are neither all harmless nor all fatal
    assert set(codes) == {0, 1, 2, 3} and min(codes.values()) > 50, codes
