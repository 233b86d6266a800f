"""
From the files of strangers to tables of cells: CSV and its like, JSON of any shape, and what
trainers print. The first piece of a file decides what it is. Sizes, widths and the length of lines
are bounded, and no pattern looks back over more than a few words.
"""
import ast
import bz2
import csv
import gzip
import io
import json
import lzma
import math
import os
import re
import warnings
import zlib
from itertools import takewhile

import numpy as np

# what is larger is no training log
MAX_COLUMNS, MAX_LINE, MAX_PRINTED_LINE = 200, 100_000, 4000
MAX_BYTES, MAX_DOCUMENT, MAX_PYTHON = 2 ** 30, 2 ** 26, 2 ** 20
PIECE = 2 ** 18  # characters that are read at a time

BLANK = ['', '-', 'none', 'None', 'NONE', 'null', 'Null', 'NULL',
         'no log', 'No log']  # Hugging Face's tables, before the first evaluation
PACKED = {b'\x1f\x8b': gzip.open, b'BZh': bz2.open, b'\xfd7zXZ': lzma.open}
BY_PANDAS = '; write it as CSV: pandas.read_{}(FILE).to_csv("log.csv", na_rep="nan")'
FOREIGN = [  # what its first bytes hold, what its name may end in, what it is, the way out
    (b'.{,40}brain.Event:', r'.*tfevents.*', 'a TensorBoard event file',
     '; in TensorBoard tick "Show data download links" and take the CSV of the loss'),
    (b':W&B', r'.*\.wandb', "W&B's own binary log",
     '; wandb sync its folder, then export the history or the chart of the run as CSV'),
    (b'\x80[\2-\5]', r'.*\.(pkl|pickle)', 'a Python pickle',
     '; it may run code when loaded: load it where you trust it, and write CSV or JSON'),
    (b'PAR1', r'.*\.parquet', 'a Parquet file', BY_PANDAS.format('parquet')),
    (b'ARROW1|FEA1', r'.*\.(arrow|feather)', 'an Arrow file', BY_PANDAS.format('feather')),
    (rb'PK\x03\x04.*(\[Content_Types\]|docProps/|xl/)|\xd0\xcf\x11\xe0', r'.*\.xlsx?',
     'an Excel workbook', '; save its sheet as CSV'),
    (b'PK\3\4.*opendocument.spreadsheet', r'.*\.ods', 'an OpenDocument sheet', '; save it as CSV'),
    (b'PK\3\4', r'.*\.(zip|pt|pth|ckpt|npz)', 'a zip file, or a checkpoint',
     '; unpack it, or name the folder that holds the checkpoints'),
    (b'SQLite format 3', r'.*\.(db|sqlite3?)', 'an SQLite database',
     '; export the history of one run as CSV'),
    (b'\x93NUMPY', r'.*\.npy', 'a NumPy array', '; write it as CSV with a line of names'),
    (rb'\x28\xb5\x2f\xfd', r'.*\.zst', 'a zstd file', '; unpack it: zstd -d FILE'),
    (b'\x89HDF', r'.*\.(h5|hdf5)', 'an HDF5 file', ''), (b'%PDF', r'.*\.pdf', 'a PDF', ''),
    (b'\x89PNG', r'.*\.png', 'a PNG picture', ''), (b'GIF8', r'.*\.gif', 'a GIF picture', ''),
    (b'\xff\xd8\xff', r'.*\.jpe?g', 'a JPEG picture', ''),
    (rb'\s*<(?i:!doctype html|html)', r'.*\.html?', 'a web page', '; export the numbers as CSV'),
    (rb'\s*\{\s*"(cells|nbformat)"\s*:', r'.*\.ipynb', 'a Jupyter notebook',
     '; copy what its cell printed into a text file')]

TENSORBOARD = ('wall time', 'step', 'value')
TAGS = ('tag', 'metric', 'metric_name', 'key')  # name the column that says what `value` is
RUNS = ('run', 'run_id', 'run_name', 'run id', 'run name', 'dir_name', 'experiment', 'exp_name',
        'seed')
SPLITS = ('split', 'mode', 'phase')  # name the column that says which data a row is of
RANGES = ('__min', '__max')  # W&B's columns around a column
MATTERS = re.compile('loss|nll|step|iter|epoch|update|lr|learning.rate|time|_actions|usage|value'
                     '|entropy', re.IGNORECASE)
COLOUR = re.compile(r'\x1b\[[0-9;?]{0,20}[A-Za-z]')
IS_LOSS = re.compile(r'loss|nll|cross.?entropy', re.IGNORECASE)
HELD_OUT = re.compile('(.*[^a-z])?(val|valid|validation|eval|evaluation|test|held.?out'
                      '|(?<!std[^a-z])dev)([^a-z].*)?')


# In all arrays nan is a blank cell (nothing was logged) and:
LOGGED_NAN, INFINITE = -math.inf, math.inf  # a NaN that was logged; an infinity of either sign
# by decimal mark: a number whose thousands are marked as well
GROUPED = {mark: re.compile(rf"[-+]?[1-9]\d{{0,2}}(?:[{other} '\u00a0\u2009\u202f\u2019]\d{{3}})+"
                            rf"(?:[{mark}]\d*)?") for mark, other in ('.,', ',.')}
GROUPING = re.compile("[, ']")
MARKED = re.compile(r'[-+]?(\d*(?:[.,]\d+)*?[.,](\d*))([eE][-+]?\d+)?')
GROUP_OR_DECIMALS = re.compile(r'[1-9]\d{0,2}[.,]\d{3}')


class Unreadable(Exception):
    """An input cannot be read."""
    def __init__(self, path, reason):
        super().__init__(f'{clean(path)}: {reason}')


def clean(text, width=80):
    """Names come from strangers' files: nothing in them may steer a terminal."""
    text = ''.join(c if c.isprintable() else '?' for c in str(text))
    return text if len(text) <= width else text[:width - 3] + '...'


# -----------------------------------------------------------------------------
# from a file to lines


def text_pieces(path):
    """Yields the text of a file, packed or not, piece by piece. Raises Unreadable."""
    if not os.path.exists(path):
        raise Unreadable(path, 'there is no such file')
    if not os.path.isfile(path):
        raise Unreadable(path, 'found something else than a file')
    try:
        packed, most, size = os.path.getsize(path), MAX_BYTES, 0
        check_size(path, packed, most)
        with open(path, 'rb') as f:
            start = f.read(6)
        unpack = next((PACKED[magic] for magic in PACKED if start.startswith(magic)), open)
        if unpack is not open:  # a few packed bytes can hold any number of them
            most = min(MAX_BYTES, 2 ** 24 + 100 * packed)
        with unpack(path, 'rb') as f:
            encoding = find_encoding(path, f.read(4096))
        # Python ends a line at a \r as well, with which a progress bar writes over itself
        with unpack(path, 'rt', encoding=encoding, errors='replace') as f:
            while text := f.read(PIECE):
                size += len(text)
                check_size(path, size, most)
                yield COLOUR.sub('', text.replace('\0', '').replace('\b', ''))
        check_size(path, size, most)
    except (OSError, EOFError, zlib.error, lzma.LZMAError, MemoryError) as e:
        reason = getattr(e, 'strerror', None) or clean(e) or 'out of memory'
        raise Unreadable(path, f'cannot be read: {reason}') from None


def text_lines(path):
    """Yields lists of the lines that are not blank. No file is held in memory, and no line that
    never ends."""
    rest = ''
    for text in text_pieces(path):
        lines = (rest + text).split('\n')
        rest = lines.pop()[:MAX_LINE + 1]
        yield not_blank(lines)
    yield not_blank([rest])


def not_blank(lines):
    return [x for x in lines if x and len(x) <= MAX_LINE and not x.isspace()]


def check_size(path, size, most):
    if not size:
        raise Unreadable(path, 'the file is empty')
    if size > most:
        raise Unreadable(path, f'found {size} bytes, expected a log of at most {most}')


def find_encoding(path, start):
    """The encoding of a text file that starts with these bytes. Unreadable if they are no text."""
    if start[:2] in (b'\xff\xfe', b'\xfe\xff'):  # PowerShell's > writes UTF-16
        return 'utf-16'
    binary = sum(c < 32 and c not in b'\t\n\f\r\b\x1b' for c in start) > len(start) // 100
    found = foreign_format(path, start, binary)
    if found or binary:
        raise Unreadable(path, found or 'found a binary file, expected the text of a log')
    return 'utf-8-sig'


def foreign_format(path, start, by_name):
    """What a file is that is no text, and the way out, or ''."""
    name = os.path.basename(path).lower()
    for magic, names, what, way_out in FOREIGN:
        named = by_name and re.fullmatch(names, name, re.DOTALL)
        if named or re.match(magic, start, re.DOTALL):
            return f'found {what}, expected the text of a training log' + way_out
    return ''


# -----------------------------------------------------------------------------
# from lines to tables


def tables(path, odd):
    """Yields pandas tables with what a file holds, piece by piece; their columns have the names of
    the file. odd is filled in on the way: lines that are broken, lines of names that come again,
    and what was left out. Raises Unreadable."""
    first = next(text_pieces(path))
    lines = not_blank(first.split('\n'))
    json_lines = len(lines) > 1 and isinstance(decode(lines[0]), dict)
    if first.lstrip()[:1] in ('[', '{') and not json_lines:
        found = document_tables(path, odd)
        if found:
            yield from found
            return
    records = sum(isinstance(decode_line(x), dict) for x in lines if x.lstrip()[:1] == '{')
    numeric = sum(bool(NUMERIC.fullmatch(x)) for x in lines)
    if records and records > len(lines) / 2:
        read = read_records
    elif len(Printed().read(lines)[0]) > numeric:
        read = Printed().read
        if lines[0].strip() in ('{', '['):
            odd['damaged'] = True  # the lines of one JSON value
    else:
        yield from csv_tables(path, odd)
        return
    for lines in text_lines(path):
        table, broken = read(lines)
        odd['lines'] += broken
        yield table


def csv_tables(path, odd):
    names, is_checked = None, False
    for lines in text_lines(path):
        if lines and names is None:
            lines, mark, names = read_header(lines, path)
            first = lines.pop(0)
            wanted = [name for name in names if not is_range(name)]
            lost = len(wanted) - len(bounded(names))
            if lost > sum(not matters(name) for name in wanted):
                odd['lost_columns'] = lost
        if names:
            odd['headers'] += lines.count(first)  # a second run was appended
            lines = [x for x in lines if x != first and not is_ruler(x)]
        if lines:
            table, broken, too_long = read_table(lines, mark, names)
            if too_long > len(lines) / 2 and not is_checked:
                cure = '; is the first line that of the names?'
                if mark == ',':
                    cure = ('. If these are decimal commas between commas, save it with ; between '
                            'the cells')
                raise Unreadable(path, f'found more than {len(names)} cells in {too_long} of '
                                 f'{len(lines)} lines, expected {len(names)} as the line of names '
                                 'has' + cure)
            odd['lines'] += broken
            is_checked = True
            yield table


def read_header(lines, path):
    """The first lines of a table -> (the lines from that of the names on, what stands between its
    cells, the names). Above it may stand comments, and Excel's sep=;"""
    mark = ''
    excel = re.fullmatch(r'"?sep=([,;|\t])"?\s*', lines[0])
    if excel:
        mark, lines = excel[1], lines[1:]
    comments = list(takewhile(lambda x: x.lstrip()[:1] == '#', lines))
    lines = lines[len(comments):]
    if comments and lines and NUMERIC.fullmatch(lines[0]):  # as numpy.savetxt writes the names
        lines = [comments[-1].lstrip('# \t'), *lines]
    line = lines[0] if lines else ''
    if not mark:
        mark = max(',;\t', key=line.count)
        if '|' in line and ',' not in line:
            mark = '|'
        elif mark not in line:
            mark = ' '
    row, sep = with_bars([line], mark)
    names = next(csv.reader([row[0].strip()], delimiter=sep), [])
    if all(to_float(c.replace(',', '.')) is not None for c in names):
        raise Unreadable(path, 'found no line of column names at its start, '
                               'expected one such as step,loss,lr')
    return lines, mark, names


def with_bars(lines, mark):
    """Rows of a markdown table, or of one with spaces between its cells, as a|b|c; other rows as
    they are. -> (lines, what stands between their cells now)."""
    if mark == ' ':
        return ['|'.join(line.split()) for line in lines], '|'
    if mark == '|':
        rows = [line.strip().strip('|').split('|') for line in lines]
        return ['|'.join(cell.strip() for cell in row) for row in rows], '|'
    return lines, mark


def is_ruler(line):
    """Is this the line below the names of a markdown table?"""
    return '--' in line and not line.strip(':-| \t,;')


def read_table(lines, mark, names):
    """Lines of a table -> (DataFrame, how many lines had too few or too many cells: blanks are
    added, the rest is cut; how many of these had too many)."""
    import pandas as pd
    lines, sep = with_bars(lines, mark)
    text = unquoted = '\n'.join(lines)
    if '"' in text:  # what separates cells separates nothing in quotes
        edge = re.escape(sep)
        unquoted = re.sub(rf'(?m)(?:^|(?<={edge}))"[^"\n]*"(?={edge}|$)', '', text)
    if '"' in unquoted:  # a quote that is never closed would swallow the lines after it
        text = unquoted = text.replace('"', '')
    n, marks = len(names), [line.count(sep) for line in unquoted.split('\n')]
    broken = [line for line, m in zip(unquoted.split('\n'), marks) if m != n - 1]
    too_long = sum(line.rstrip(sep + ' \t').count(sep) > n - 1 for line in broken)
    kept = bounded(names)
    text = f'{sep.join(map(str, range(n)))}\n{text}\n'  # pandas must know the width
    shape = dict(sep=sep, usecols=kept, index_col=False, skip_blank_lines=False,
                 keep_default_na=False)
    try:
        table = pd.read_csv(io.StringIO(text), dtype=float, na_values=BLANK, **shape)
    except (ValueError, OverflowError):  # a word, a comma, or a NaN, which is no blank cell
        table = pd.read_csv(io.StringIO(text), dtype=str, na_filter=False, **shape)
    table.columns = [names[i] for i in kept]
    return table, len(broken), too_long


def bounded(names):
    """Which columns are read: at most MAX_COLUMNS, those that a rule may ask for before others."""
    wanted = [i for i, name in enumerate(names) if not is_range(name)]
    order = sorted(wanted, key=lambda i: not matters(names[i]))
    return sorted(order[:MAX_COLUMNS])


def matters(name):
    """May a rule ask for this column, or does it say where a row belongs?"""
    return MATTERS.search(name) or name.strip(' "').lower() in (*TAGS, *RUNS, *SPLITS)


def is_range(name):
    """Is this one of W&B's two columns around a column?"""
    return str(name).strip(' "').lower().endswith(RANGES)


def decode(text):
    """A JSON value, or None. A NaN becomes a word, as pandas would take it for a blank."""
    try:
        return json.loads(text, parse_constant=str)
    except (ValueError, RecursionError):
        return None


def decode_line(line):
    """The JSON value in a line, also of an array that breaks off."""
    return decode(line.strip(' \t[],'))


def read_records(lines):
    """JSON lines -> (DataFrame, how many lines are no objects)."""
    records = decode(f'[{",".join(lines)}]') or []  # all at once is quick
    if len(records) != len(lines):
        records = [decode_line(line) for line in lines]
    good = [r for r in records if isinstance(r, dict)]
    return frame(good), len(records) - len(good)


def frame(records):
    """Dicts -> DataFrame. {"train": {"loss": 1}} is the column train/loss."""
    import pandas as pd
    flat = records
    if any(isinstance(value, dict) for record in records for value in record.values()):
        flat = [flattened(record) for record in records]
    keys = sorted(set().union(*flat))
    return pd.DataFrame(flat, columns=[keys[i] for i in bounded(keys)])


def widened(table):
    """A table with one value a row, and its tag beside it, gets a column for each tag."""
    names = {str(name).strip().lower(): name for name in table.columns}
    column = next((names[tag] for tag in TAGS if tag in names), None)
    if column is None or 'value' not in names or not table.columns.is_unique:
        return table
    tags = table[column].unique()[:MAX_COLUMNS]
    if not any(isinstance(tag, str) and IS_LOSS.search(tag) for tag in tags):
        return table
    wide = table.drop(columns=[column, names['value']])
    for tag in tags:
        wide[str(tag)] = table[names['value']].where(table[column] == tag)
    return wide


def tensorboard_tag(path):
    """What the values of run-NAME-tag-TAG.csv are. Raises Unreadable if they are no loss."""
    name = clean(os.path.basename(path).lower(), 200)
    tag = re.sub(r'( \(\d+\))?(\.(csv|json|txt|gz|bz2|xz))*$', '', name)
    run, _, tag = tag.rpartition('tag-')
    if not IS_LOSS.search(tag):
        raise Unreadable(path, f'found values that TensorBoard exported, and their tag, "{tag}" in '
                         'the name of the file, is no loss; expected a name such as '
                         'run-NAME-tag-train_loss.csv')
    return f'val/{tag}' if HELD_OUT.fullmatch(run) else tag


def flattened(record):
    row, todo = {}, [('', record, 0)]
    while todo:
        prefix, value, depth = todo.pop()
        if not isinstance(value, dict):
            row[prefix[1:]] = value
        elif depth < 4:
            todo += [(f'{prefix}/{key}', v, depth + 1) for key, v in value.items()]
    return row


def document_tables(path, odd):
    """The tables in a file that is one JSON value, [] where it is none."""
    text = ''
    for piece in text_pieces(path):
        text += piece
        if len(text) > MAX_DOCUMENT:
            return []
    found = tables_in(decode(text) or python_lists(text), odd)
    for run, table in found:
        if len(found) > 1:
            table['run'] = run
    return [table for _, table in found if len(table.columns)]


def python_lists(text):
    """The lists in a dict as Python prints it, such as print(history.history) of Keras, or None.
    literal_eval runs no code."""
    if len(text) > MAX_PYTHON:
        return None
    text = re.sub(r'\b(?:np|numpy)\.float\d\d\(([^()]{1,40})\)', r'\1', text)
    text = re.sub(r'(?<=[\[ ,])(-?(?:nan|inf))(?=[],])', r"'\1'", text)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # of an odd escape in a text, for one
            value = ast.literal_eval(text.strip())
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return None
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        return None
    return value if all(isinstance(cells, list) for cells in value.values()) else None


def tables_in(value, odd, run='', depth=0):
    """[(name, DataFrame)] of what stands in a JSON value: lists of records, such as log_history of
    Hugging Face's trainer_state.json; TensorBoard's [[wall time, step, value], ...]; rows below a
    row of names; columns, also as pandas writes them."""
    import pandas as pd
    if depth > 3:
        return []
    if isinstance(value, list):
        rows = [row for row in value if row]
        if rows and all(isinstance(row, dict) for row in rows):
            return [(run, frame(rows))]
        if not rows or not all(isinstance(row, list) for row in rows):
            return []
        names = TENSORBOARD
        if all(isinstance(cell, str) for cell in rows[0]):
            names, *rows = rows
        rows = [row for row in rows if len(row) == len(names)]
        return [(run, pd.DataFrame(rows, columns=names))] if rows else []
    if not isinstance(value, dict) or not value:
        return []
    if isinstance(value.get('columns'), list) and isinstance(value.get('data'), list):
        return tables_in([value['columns'], *value['data']], odd, run, depth + 1)
    columns = {}
    for name, cells in value.items():
        if isinstance(cells, dict) and cells and all(key.isdecimal() for key in cells):
            cells = list(cells.values())
        if isinstance(cells, list) and cells and not isinstance(cells[0], (list, dict)):
            columns[name] = cells
    if any(IS_LOSS.search(name) for name in columns):
        # columns of other lengths do not belong to the same rows
        lengths = [len(cells) for name, cells in columns.items() if IS_LOSS.search(name)]
        same = [name for name, cells in columns.items() if len(cells) == max(lengths)]
        odd['other_lengths'] = sorted(set(columns) - set(same))
        return [(run, pd.DataFrame({same[i]: columns[same[i]] for i in bounded(same)}))]
    found = []
    for name, part in value.items():
        found += tables_in(part, odd, f'{run}/{name}'.lstrip('/'), depth + 1)
    if not found and depth == 0:
        return [(run, frame([value]))]
    return found


# -----------------------------------------------------------------------------
# from cells to floats


def to_float(cell, decimal='.'):
    """One cell as a float; None if it is no number. What is beyond 1e100 has overflowed."""
    # pandas' blank is the one value that is not itself
    if cell is None or cell != cell or isinstance(cell, str) and cell.strip().lower() in BLANK:
        return math.nan
    if isinstance(cell, str) and (decimal == ',' or not cell.isascii() or GROUPING.search(cell)):
        cell = without_groups(cell.strip(), decimal)
    try:
        value = float(cell)
    except OverflowError:
        return INFINITE
    except (ValueError, TypeError):
        return None
    if math.isnan(value):
        return LOGGED_NAN
    if abs(value) > 1e100:
        return INFINITE
    return value if abs(value) > 1e-100 else 0.0


def without_groups(text, decimal):
    """'1.234,5' or "1'234.5" as Python writes it."""
    if GROUPED[decimal].fullmatch(text):
        text = re.sub(rf'[^-+\d{decimal}]', '', text)
    return text.replace(decimal, '.')


def to_floats(column, decimal='.'):
    """A pandas column -> (floats, how many cells are no numbers and count as blank)."""
    if column.dtype.kind in 'iufb':
        x = np.array(column, float)
        x[np.abs(x) > 1e100] = INFINITE
        x[np.abs(x) <= 1e-100] = 0
        return x, 0
    cells = [to_float(c, decimal) for c in column]
    return np.array([math.nan if c is None else c for c in cells]), cells.count(None)


def decimal_marks(table):
    """-> (the decimal mark of each column, '' where nothing tells it from one between thousands; a
    cell of such a column or ''). 66.000 may be 66 or 66 thousand; 6.71956 and 1.234,5 are clear."""
    marks, unclear, whole = [], [], []  # the last: are there cells without a mark?
    for _, column in table.items():
        votes, either, without = '', '', False
        for cell in column[:1000] if column.dtype.kind not in 'iufb' else ():
            cell = cell.strip() if isinstance(cell, str) else ''
            m = MARKED.fullmatch(cell)
            if m and not m[3] and GROUP_OR_DECIMALS.fullmatch(m[1]):
                either = either or cell
            elif m:
                mark = m[1][-1 - len(m[2])]
                votes += mark if m[1].count(mark) == 1 else ',.'.replace(mark, '')
            without = without or cell.isdecimal()
        marks.append(max(',.', key=votes.count) if votes else '')
        unclear.append('' if votes else either)
        whole.append(without)
    has_commas = ',' in ''.join(marks + unclear)
    for i, cell in enumerate(unclear):
        if cell and whole[i] and has_commas:  # 750, then 1,000: decimals would always be there
            marks[i], unclear[i] = '.' if ',' in cell else ',', ''
    return marks, next(filter(None, unclear), '')


# -----------------------------------------------------------------------------
# what trainers print

# Megatron prints a `number of nan iterations`
NUMBER = (r'[-+]?(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+\.?\d*|\.\d+|nan(?!\s+iter)|inf(?:inity)?)'
          r'(?:e[-+]?\d+)?')
WORD = '(?:train|training|val|valid|validation|dev|eval|evaluation|test|testing|held.out)'
SET = re.compile(rf'\b({WORD}) (?:set:? |(?=(?:avg|average|mean|total) loss))', re.IGNORECASE)
PRINTED = re.compile(  # in a line: `val:` before other names, `lr 1e-3` or `step 1/9`, a bare `1/9`
    rf"""\b(?P<part>{WORD})\b["')\]]{{0,2}}\s?[:|\])>-](?!\s{{0,9}}{NUMBER})
    |(?<![\w./@])(?P<name>[a-z_][\w/.@]{{0,60}}(?:[ ][a-z_][\w/.]{{0,30}})?)["']?
     (?:\s{{0,20}}[:=])?\s{{0,20}}(?:[\w.]{{1,20}}\()?["'\[]?(?P<value>{NUMBER})
     (?:\s?/\s?\d{{1,12}})?(?![\w%]|[.,]\d)
    |(?<![\w./])(?P<at>\d{{1,12}})/(?P<of>\d{{1,12}})(?![\w/.%])""",
    re.IGNORECASE | re.VERBOSE)
COUNTER = re.compile(r'(?:.* )?((?:[\w/]*global.)?step|iter|iters|iteration|it|update|num_updates)')
STAGE = re.compile(r'(\w{1,60}): [\d,]{1,30} parameters on ')  # this project's first line
NO_NUMBER = re.compile(r'loss["\']?\s{0,9}[:=]\s{0,9}["\']?(\d|$)', re.IGNORECASE)
RANK = re.compile(r'\s*\[?(rank|default|worker|node|)[ _]?(\d{1,6})(?:\]:|: |\] )', re.IGNORECASE)
NUMERIC = re.compile(r'[-+\d.,;|\s"\'%:_/einfa]*', re.IGNORECASE)


class Printed:
    """Reads lines as trainers print them: nanoGPT, Hugging Face, MetricLogger, progress bars, this
    project; also with the rank in front, as torchrun and srun write it.

    A line with a loss is a row, all else is passed over. A row without a counter of its own has
    that of its progress bar, or, if it tells of held-out data, that of the row before. The stages
    of `make | tee make.log` are runs of their own.
    """

    def __init__(self):
        self.last = {}  # rank: the counters of its last row
        self.bars = {}  # rank: (at, of, epoch) of its progress bar
        self.epoch = {}  # rank: the last that was named
        self.ranked = False  # does a number in front of a line mean a rank?
        self.stage = ''

    def read(self, lines):
        """-> (DataFrame, how many lines name a loss that is no number)."""
        rows, broken = [], 0
        for line in lines:
            if ' parameters on ' in line:
                self.start_stage(line[:MAX_PRINTED_LINE])
            elif IS_LOSS.search(line) or 'poch' in line:
                line = line[:MAX_PRINTED_LINE]
                row = self.row(line)
                if row:
                    rows.append(row)
                elif NO_NUMBER.search(line):
                    broken += 1
        return frame(rows), broken

    def start_stage(self, line):
        label = RANK.match(line)
        stage = STAGE.match(line[label.end():] if label else line)
        if stage and stage[1] != self.stage:
            self.stage = stage[1]
            self.last, self.bars, self.epoch = {}, {}, {}

    def row(self, line):
        """{name: text of a number}, or None."""
        rank, label = '', RANK.match(line)
        if label:
            rank, line = label[0].strip(' []:').lower(), line[label.end():]
        row, counters, bar = pairs(line)
        if 'epoch' in row:
            self.epoch[rank] = row['epoch']
        losses = [name for name in row if IS_LOSS.search(name)]
        if not losses:
            return None
        if label and not label[1]:  # a bare number: a rank, or the step itself?
            self.ranked = self.ranked or bool(counters or bar or 'epoch' in row)
            if not self.ranked:
                rank, counters = '', {'step': label[2]}
        if rank in self.epoch:
            row.setdefault('epoch', self.epoch[rank])
        if len(counters) == 1:
            counters = {'step': value for value in counters.values()}
        elif not counters and all(HELD_OUT.fullmatch(name) for name in losses):
            counters = self.last.get(rank, {})
        elif not counters and bar:
            counters = {'step': bar[0]}
            at, of, epoch = self.bars.get(rank, (0, 1, 0))
            if bar[0] < at >= 0.9 * of:  # the bar of the next epoch
                epoch += 1
            self.bars[rank] = (*bar, epoch)
            row.setdefault('epoch', epoch)
        elif not counters and self.last.get(rank):  # words at the end: `done, loss 3.1`
            return None
        self.last[rank] = counters
        if self.stage or rank:
            row['run'] = f'{self.stage} {rank}'.strip()
        return {**row, **counters}


def pairs(line):
    """The numbers in a printed line by their names -> (metrics and the epoch; counters; the
    progress bar as (at, of) or None)."""
    row, counters, bar, part = {}, {}, None, ''
    line = SET.sub(r'\1: ', line)  # `Test set loss` has a word too many for a name
    for m in PRINTED.finditer(line):
        if m['part']:
            part = '' if m['part'].lower().startswith('train') else 'val '
            continue
        if m['at']:
            if not bar and int(m['at']) <= int(m['of']):
                bar = int(m['at']), int(m['of'])
            continue
        name, value = ' '.join(m['name'].lower().split()), m['value'].replace(',', '')
        counter = COUNTER.fullmatch(name)
        if ',' in m['value'] and IS_LOSS.search(name):
            continue  # a decimal comma, more likely than thousands
        if counter:
            counters.setdefault(counter[1], value)
        elif name.split()[-1] == 'epoch':
            row['epoch'] = value
        elif HELD_OUT.fullmatch(name) or name.startswith('train'):
            row.setdefault(name, value)
        else:
            row.setdefault(part + name, value)
    return row, counters, bar
