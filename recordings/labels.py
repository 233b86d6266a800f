"""
The labels of a video: what was done at each of its frames, and perhaps where episodes begin.

A file of arrays (.npz, .npy), a table (.csv, .tsv) or a JSON object a line (.jsonl), as recorders
write them. What has one meaning is taken, the rest is refused, or named as ignored.
"""
import csv
import difflib
import itertools
import json
import math
import os
import re
from array import array
from collections import Counter

import numpy as np

from files import printable
from recordings.arrays import (MAX_ACTIONS, OTHER_NAMES, check_actions, check_count, check_names,
                               check_starts, find_starts, name_combinations, noticed_numbers,
                               noticed_rare, number_names, starts_from_episodes, to_text)
from recordings.h5file import is_dataset, open_h5, plain_dataset, read_optional
from recordings.refusal import DataError, one_line, refuse

ENDINGS = '.npz', '.npy', '.csv', '.tsv', '.jsonl'
EXPECTED = f'an action for each frame of the video, in a file of {", ".join(ENDINGS)}'
MAX_ARRAY = 2 ** 31  # bytes of an array in memory
MAX_CELLS = 2 ** 24  # of a table: nine hours of 24 buttons at 20 a second
MAX_LINE = 2 ** 20  # bytes
MAX_NAME = 200  # characters
ACTIONS = re.compile(r'actions?([._ \[]?[0-9]+\]?|\..+)?')  # action, action_0, action[0], action.up
# columns that count the frames, or say when they were
FRAME_NUMBERS = 'frame', 'frame_id', 'frame_number', 'frame_index'
WHEN = {*FRAME_NUMBERS, '', 'frames', 'index', 'idx', 'tick', 'ticks', 'time', 'timestamp',
        'timestamps', 'seconds', 'ms', 'milli', 't', 'step'}
HEADERS = {'key', 'keys', 'button', 'buttons', 'label', 'labels', 'input', 'inputs', 'command'}
NO_OPS = {'none', 'noop', 'no_op', 'no-op', 'no op', 'nop', 'idle', 'nothing', 'wait', 'stay',
          'neutral', 'release'}

# -----------------------------------------------------------------------------
# which file


def file_beside(video):
    """The label file beside a video: a.npz, or another of ENDINGS, for a.mp4. Raises DataError
    unless there is just one."""
    stem = os.path.splitext(os.fspath(video))[0]
    if os.path.isdir(video):
        stem = os.path.normpath(video)
    found = [stem + ending for ending in ENDINGS if os.path.exists(stem + ending)]
    if not found:
        refuse(os.path.abspath(stem + ENDINGS[0]), 'no such file', EXPECTED, 'check the path')
    if len(found) > 1:
        refuse(found[0], f'{", ".join(map(printable, found[1:]))} beside it',
               f'one label file for {printable(video)}', 'move the others elsewhere')
    return found[0]


def read_labels(path):
    """What a label file says, and sentences about how it was read. Raises DataError.

    It says: actions, an array (N,) or (N,A) as it is stored; perhaps words, where actions are
    numbers of these; perhaps action_names and episode_starts, int64 (E,).
    """
    path = str(path)
    ending = os.path.splitext(path)[1].lower()
    if not os.path.exists(path):
        refuse(os.path.abspath(path), 'no such file', EXPECTED, 'check the path')
    try:
        if ending in ('.npz', '.npy'):
            return read_arrays(path)
        if ending in ('.csv', '.tsv'):
            return read_table(path, '\t' if ending == '.tsv' else None)
        if ending == '.jsonl':
            return read_json_lines(path)
        if ending in ('.h5', '.hdf5'):
            with open_h5(path) as f:
                said = said_by_dataset(f, path)
            if 'actions' not in said:
                refuse(path, 'no "actions"', EXPECTED, 'name the file that has them')
            return said, []
    except OSError as e:
        refuse(path, f'a file that cannot be read ({one_line(e)})', EXPECTED, 'check the path')
    refuse(path, f'labels that end in "{printable(ending)}"', EXPECTED,
           'np.savez("labels.npz", actions=actions)')


# -----------------------------------------------------------------------------
# arrays


def read_arrays(path):
    """read_labels of numpy's files."""
    save = 'np.savez("labels.npz", actions=actions)'
    try:
        with open(path, 'rb') as f:
            if f.read(6)[:2] not in (b'PK', b'\x93N'):
                refuse(path, 'a file that numpy did not write', EXPECTED, save)
        stored = np.load(path, mmap_mode='r', allow_pickle=False)
        if isinstance(stored, np.ndarray):
            return said_by_arrays({'actions': checked_size(stored, stored.nbytes, 'actions', path)},
                                  [], path)
    except DataError:
        raise
    except Exception as e:  # zip, zlib, pickle and file errors of every kind
        refuse_unreadable('actions', e, path)
    with stored:
        arrays, sentences = {}, []
        sizes = {info.filename.removesuffix('.npy'): info.file_size
                 for info in stored.zip.infolist()}
        names = stored.files
        theirs = next((name for name in ('actions', 'action') if name in names), None)
        if theirs is None and names == ['arr_0']:
            theirs = 'arr_0'
        if theirs is None:
            refuse(path, f'no "actions", but {", ".join(map(printable, names[:12])) or "nothing"}',
                   EXPECTED, save)
        if theirs != 'actions':
            sentences.append(f'"{theirs}" is taken for actions')
        for name in names:
            if name == theirs or name in ('action_names', 'episode_starts', *OTHER_NAMES):
                try:
                    x = np.asarray(checked_size(stored, sizes.get(name, 0), name, path)[name])
                except DataError:
                    raise
                except Exception as e:
                    refuse_unreadable(name, e, path)
                arrays['actions' if name == theirs else name] = x
        return said_by_arrays(arrays, sentences + ignored(set(names) - {theirs, *arrays}), path)


def checked_size(stored, size, name, path):
    """The same, if an array of so many bytes may be read."""
    if size > MAX_ARRAY:
        refuse(path, f'"{printable(name)}" of {size:,} bytes', f'at most {MAX_ARRAY:,}',
               'write it as it needs to be: actions.astype("uint8"), say')
    return stored


def refuse_unreadable(name, error, path):
    name = printable(name)
    if 'object' not in str(error).lower():
        refuse(path, f'"{name}" that cannot be read ({one_line(error)})', EXPECTED,
               'write it again: np.savez("labels.npz", actions=actions)')
    plain = {'action_names': "np.array(['noop', 'left']), the name of 0 first"}
    refuse(path, f'"{name}" that cannot be read: it is pickled, and could run anything',
           'plain arrays', f'save {name} as {plain.get(name, f"np.array({name}, dtype=int)")}')


def ignored(names):
    """A sentence that names what is not understood, with what it may have been meant to be."""
    known = ['actions', 'action_names', 'episode_starts', *OTHER_NAMES]
    texts = []
    for name in sorted(names):
        near = difflib.get_close_matches(name.lower(), known, 1, 0.8)
        texts.append(printable(name))
        if near:
            texts[-1] += f' (did you mean {near[0]}?)'
    return [f'ignored: {", ".join(texts[:12])}'] if texts else []


def said_by_arrays(arrays, sentences, path):
    """read_labels of arrays by name, of which `actions` is one."""
    actions = arrays.pop('actions')
    if actions.dtype.kind in 'SU' and actions.ndim == 2 and actions.shape[1] == 1:
        actions = actions[:, 0]
    said = {'actions': actions}
    if actions.dtype.kind in 'SU' and actions.ndim == 1 and len(actions):
        said['actions'], said['words'] = number_names(actions)
    if 'action_names' in arrays:
        said['action_names'] = [to_text(name) for name in arrays.pop('action_names').ravel()]
    starts, about_starts = find_starts(arrays, len(np.atleast_1d(actions)), path)
    if starts is not None:
        said['episode_starts'] = starts
    return said, sentences + about_starts


# -----------------------------------------------------------------------------
# lines


def lines(path):
    """(number from 1, text) of each line of a file of text; empty ones may follow the last."""
    empty = 0
    with open(path, 'rb') as f:
        for number in itertools.count(1):
            line = f.readline(MAX_LINE + 1)
            if not line:
                return
            if len(line) > MAX_LINE or number > MAX_CELLS:
                refuse(path, f'too much in line {number:,}', f'at most {MAX_LINE:,} bytes a line '
                       f'and {MAX_CELLS:,} lines', 'is it a file of labels?')
            try:
                text = line.decode('utf-8-sig' if number == 1 else 'utf-8')
            except UnicodeDecodeError as e:
                refuse(path, f'line {number} that is no UTF-8 ({one_line(e)})', 'text in UTF-8',
                       'save it as UTF-8')
            if not text.strip():
                empty = empty or number
                continue
            if empty:
                refuse(path, f'nothing in line {empty}', 'an entry in each line',
                       'say what was done there, or that it was nothing')
            yield number, text


def add(columns, cells, number, path):
    """Appends a line's cells, text by the name of the column, to columns: ({text: code}, codes) by
    name. Codes are four bytes, so a long file fits in memory."""
    if cells.keys() != columns.keys():
        refuse(path, f'{", ".join(map(printable, cells))} in line {number}',
               f'{", ".join(map(printable, columns))}, as in the first', 'write the same each time')
    for name, text in cells.items():
        known, codes = columns[name]
        if len(text) > MAX_NAME or len(codes) * len(columns) > MAX_CELLS:
            refuse(path, f'too much in line {number:,}', f'at most {MAX_NAME} characters in a cell '
                   f'and {MAX_CELLS:,} cells', 'is it a file of labels?')
        codes.append(known.setdefault(text, len(known)))


def number_of(text):
    """The number or truth value that a text is, or None."""
    if text.lower() in ('true', 'false'):
        return text.lower() == 'true'
    for kind in (int, float):
        try:
            number = kind(text)
        except ValueError:
            continue
        if abs(number) < 2 ** 63:  # more are floats; those that are not finite are none
            return number
        if kind is float and math.isfinite(number):
            return number
    return None


def is_number(text):
    return number_of(text) is not None


def column(name, known, codes, first_line, path):
    """What a column holds -> an array (N,) of numbers or truth values, and None; or codes (N,) and
    the texts that they stand for."""
    texts, codes = list(known), np.frombuffer(codes, np.int32)
    numbers = [number_of(text) for text in texts]
    kinds = {bool: 'true or false', int: 'numbers', float: 'numbers', type(None): 'words'}
    found = [kinds[type(x)] for x in numbers]
    usual, _ = Counter(found).most_common(1)[0]
    bad = next((i for i, text in enumerate(texts) if not text or found[i] != usual), None)
    if bad is not None:
        line = first_line + int(np.argmax(codes == bad))
        what = f'"{printable(texts[bad])}"' if texts[bad] else 'nothing'
        refuse(path, f'{what} in line {line}, column "{printable(name)}"', f'{usual}, as in others',
               'where nothing was done, say so as in other lines; what is missing while something '
               'is held: pandas.read_csv(path).ffill()')
    if usual == 'words':
        if len(texts) > MAX_ACTIONS:
            refuse(path, f'{len(texts):,} different words in column "{printable(name)}"',
                   f'at most {MAX_ACTIONS:,}', 'is it the column of the actions?')
        return codes, texts
    return np.array(numbers)[codes], None


def said_by_columns(columns, has_names, first_line, path):
    """read_labels of a table: columns as `add` fills them, from the line `first_line` on.
    has_names: or are they numbered?"""
    if not columns or not len(next(iter(columns.values()))[1]):
        refuse(path, 'no actions', EXPECTED, 'a line "action", and then one for each frame')
    lower = {name: name.lower() for name in columns}
    chosen = [name for name in columns if lower[name] in ('actions', 'action')][:1]
    chosen = chosen or [name for name in columns if ACTIONS.fullmatch(lower[name])]
    others = {lower[name]: name for name in columns
              if lower[name] in ('episode_starts', *OTHER_NAMES) and name not in chosen}
    when = [name for name in columns if lower[name] in WHEN and name not in chosen
            and not columns[name][0].keys() <= {'0', '1'}]  # that is a button: the key t
    rest = [name for name in columns if name not in (*chosen, *others.values(), *when)]
    sentences, found = [], {}
    if chosen:
        sentences += ignored(rest)
    else:
        chosen = rest
        if has_names and rest:
            more = f' and {len(rest) - 16} more' if len(rest) > 16 else ''
            sentences.append(f'{", ".join(map(printable, rest[:16]))}{more}: taken for actions')
    if not chosen:
        refuse(path, f'{", ".join(map(printable, columns))}', 'a column "action"',
               'name the column of the actions "action"')
    for name in (*chosen, *others.values()):
        found[name] = column(name, *columns[name], first_line, path)
    for name in when:
        if lower[name] in FRAME_NUMBERS:
            x, words = column(name, *columns[name], first_line, path)
            sentences += check_frame_numbers(name, x, words, first_line, path)
    said = said_by_chosen(chosen, found, has_names, path)
    flags = {}
    for plain, name in others.items():
        x, words = found[name]
        if words and OTHER_NAMES.get(plain) is not starts_from_episodes:
            sentences += ignored([name])
        else:
            flags[plain] = x
    if 'episode_starts' in flags:  # in a table it is one of flags
        flags['episode_start'] = flags.pop('episode_starts')
    starts, about_starts = find_starts(flags, len(said['actions']), path)
    if starts is not None:
        said['episode_starts'] = starts
    return said, sentences + about_starts


def said_by_chosen(chosen, found, has_names, path):
    """The actions that the chosen columns are, of those that were found, with their names."""
    values, words = found[chosen[0]]
    if len(chosen) == 1:
        if words:
            return {'actions': values.astype(np.int64), 'words': words}
        said = {'actions': values}
        plain = chosen[0].lower()
        is_button = has_names and plain not in HEADERS and not ACTIONS.fullmatch(plain)
        if is_button and ((values == 0) | (values == 1)).all():
            said['action_names'] = ['none', chosen[0]]
        return said
    if any(words for _, words in (found[name] for name in chosen)):
        refuse(path, f'words in several columns: {", ".join(map(printable, chosen))}',
               'one column of words, or columns of numbers',
               'call the one that matters "action", or join them: table["action"] = '
               'table[["key", "button"]].agg("+".join, axis=1)')
    said = {'actions': np.column_stack([found[name][0] for name in chosen])}
    if has_names:
        said['action_names'] = [re.sub(r'^actions?\.', '', name) for name in chosen]
    return said


def check_frame_numbers(name, x, words, first_line, path):
    """Raises DataError unless the lines are those of all frames in a row. A sentence if they begin
    again."""
    if words:  # of pictures, say
        return []
    steps = np.diff(x)
    if len(x) and x[0] not in (0, 1):
        refuse(path, f'"{printable(name)}" {x[0]} in the first line', 'a line for each frame from '
               'the first on', 'cut the film there, or add lines for what comes before')
    again = (steps != 1) & (x[1:] == x[0])
    wrong = (steps != 1) & ~again
    if wrong.any():
        i = int(wrong.argmax())
        name = printable(name)
        refuse(path, f'"{name}" {x[i]} and then {x[i + 1]} in line {first_line + i + 1}',
               'a line for each frame, in their order', 'fill in what was held: '
               f'table.set_index("{name}").reindex(range(N), method="ffill"), N frames')
    if again.any():
        return [f'ignored: "{printable(name)}" begins again {again.sum():,} times; are '
                'those episodes? A column episode_start, 1 at the first frame of each, says so']
    return []


def table_rows(path, delimiter):
    """(number of its line, cells) of each row of a table of text. delimiter: or None, for the one
    of , ; tab that the first line has, or spaces."""
    numbered = lines(path)
    _, head = next(numbered, (0, ''))
    head = re.sub(r'^\s*#\s*', '', head)  # as numpy.savetxt begins a header
    texts = itertools.chain([head], (text for _, text in numbered))
    if delimiter is None:
        delimiter = next((c for c in ',;\t' if c in head), ',')
        cells = head.split()
        if delimiter not in head and (is_known(cells) or all(map(is_number, cells))):
            delimiter, texts = ' ', (' '.join(text.split()) for text in texts)
    rows = csv.reader(texts, delimiter=delimiter, strict=True)
    try:
        for row in rows:
            yield rows.line_num, [cell.strip() for cell in row]
    except csv.Error as e:
        refuse(path, f'line {rows.line_num} that cannot be read ({one_line(e)})', EXPECTED,
               'a line "action", and then one for each frame')


def read_table(path, delimiter):
    """read_labels of a table of text, with a first line of names or none. delimiter: see
    table_rows."""
    rows = table_rows(path, delimiter)
    _, first = next(rows)
    is_header = is_known(first)
    has_names = is_header or not any(map(is_number, first))
    names = first if has_names else [f'column {i + 1}' for i in range(len(first))]
    if len(set(names)) < len(names):
        refuse(path, f'two columns of one name: {", ".join(map(printable, names[:12]))}',
               'a name for each column', 'name them, or leave one out')
    columns = {name: ({}, array('i')) for name in names}
    if not has_names:
        rows = itertools.chain([(1, first)], rows)
    for number, cells in rows:
        if len(cells) != len(names):
            refuse(path, f'{len(cells)} cells in line {number}', f'{len(names)}, as in the first',
                   'mend that line')
        add(columns, dict(zip(names, cells)), number, path)
    if len(names) == 1 and has_names and not is_header:
        columns = with_first_line(columns, path)
        has_names = names[0] in columns
    if not has_names and len(names) > 1 and counts_frames(*columns[names[0]]):
        columns = {'frame': columns[names[0]], **{name: columns[name] for name in names[1:]}}
    return said_by_columns(columns, has_names, 1 + has_names, path)


def counts_frames(texts, codes):
    """Is a column 0, 1, 2, ... or 1, 2, 3, ...? See `add`."""
    n = len(codes)
    return n > 2 and list(texts) in ([str(i) for i in range(n)], [str(i + 1) for i in range(n)])


def is_known(cells):
    """Is one of these the name of a column?"""
    known = {'episode_starts', *WHEN, *HEADERS, *OTHER_NAMES} - {''}
    return any(cell.lower() in known or ACTIONS.fullmatch(cell.lower()) for cell in cells)


def with_first_line(columns, path):
    """Columns of a file of one column, whose first line is taken for its name: is it one, or the
    first action?"""
    (name, (known, codes)), = columns.items()
    if name not in known and not any(map(is_number, known)):
        refuse(path, f'"{printable(name)}" in line 1, which may be an action or the name of the '
               'column', 'a first line "action"', 'write one')
    if name not in known:
        return columns
    return {'column 1': (known, array('i', [known[name]]) + codes)}


# -----------------------------------------------------------------------------
# JSON


def entries(path):
    """(number of its line, a dict) for each line of a .jsonl; what is none is its action."""
    for number, text in lines(path):
        try:
            entry = json.loads(text)
        except (ValueError, RecursionError) as e:
            refuse(path, f'line {number} that is no JSON ({one_line(e)})', 'a JSON object a line',
                   'mend that line; of a recorder that was stopped the last is cut short')
        yield number, entry if isinstance(entry, dict) else {'action': entry}


def read_json_lines(path):
    """read_labels of a .jsonl, such as a recorder of keyboard and mouse writes for Video
    PreTraining: {"tick": 0, "keyboard": {"keys": ["key.keyboard.w"]}, "mouse": {...}}."""
    numbered = entries(path)
    first = next(numbered, (1, {}))
    numbered = itertools.chain([first], numbered)
    if 'keyboard' in first[1] or 'mouse' in first[1]:
        return said_by_keys(numbered, path)
    columns, left_out = {}, set()
    for number, entry in numbered:
        cells = {}
        for name, value in entry.items():
            if not flatten(cells, name, value):
                left_out.add(name)
        if not columns:
            columns = {name: ({}, array('i')) for name in cells}
        add(columns, cells, number, path)
    said, sentences = said_by_columns(columns, True, 1, path)
    return said, sentences + ignored(left_out)


def flatten(cells, name, value):
    """Adds a value of JSON to the cells of its line, as text; False if it is no part of an action.
    Several words are pressed together; several numbers, or things with names, are a column each."""
    if isinstance(value, list) and all(isinstance(x, str) for x in value):
        cells[name] = '+'.join(sorted(set(value))) or 'none'
        return True
    if isinstance(value, (list, dict)):
        is_list = isinstance(value, list)
        too_deep = name.count('.') + name.count('[') > 8
        if too_deep or not ACTIONS.fullmatch(name.lower()):
            return False
        for key, x in enumerate(value) if is_list else value.items():
            if not flatten(cells, f'{name}[{key}]' if is_list else f'{name}.{key}', x):
                return False
        return True
    cells[name] = '' if value is None else str(value).strip()
    return True


def said_by_keys(numbered, path):
    """read_labels of lines with a keyboard and a mouse: keys and buttons by combination."""
    known, codes = {}, array('i')
    n_moved, movements = 0, set()
    for number, entry in numbered:
        try:
            text, moved = combination(entry)
        except (AttributeError, KeyError, TypeError, ValueError):
            refuse(path, f'line {number} without the keys and buttons that were held',
                   '{"keyboard": {"keys": ["key.keyboard.w"]}, "mouse": {"dx": 0, "dy": 0, '
                   '"buttons": [0]}}', 'mend that line, or leave out the file')
        codes.append(known.setdefault(text, len(known)))
        if len(known) > MAX_ACTIONS or len(text) > MAX_NAME:
            refuse(path, f'too much in line {number:,}', f'at most {MAX_ACTIONS:,} combinations of '
                   f'{MAX_NAME} characters', 'is it a recording of play?')
        n_moved += any(moved)
        if len(movements) < 2:
            movements.add(moved)
    sentences = []
    if len(movements) > 1:
        sentences.append(f'ignored: mouse movement, in {n_moved:,} of {len(codes):,} lines; an '
                         'action is a combination of keys and buttons. To have the movement '
                         'instead, write dx, dy as floats (N,2): np.savez("labels.npz", '
                         'actions=movement)')
    return {'actions': np.array(codes, np.int64), 'words': list(known)}, sentences


def combination(entry):
    """{"keyboard": {"keys": ["key.keyboard.w"]}, "mouse": {"dx": 1, "dy": 0, "buttons": [0]}} ->
    'w+mouse0', (1.0, 0.0). Raises what a dict of another kind makes of it."""
    if 'keyboard' not in entry and 'mouse' not in entry:
        raise KeyError('keyboard')
    mouse = entry.get('mouse') or {}
    keys = (entry.get('keyboard') or {}).get('keys') or []
    buttons = mouse.get('buttons') or []
    if not isinstance(keys, list) or not isinstance(buttons, list):
        raise TypeError('lists')
    pressed = sorted({key.removeprefix('key.keyboard.') for key in keys})
    pressed += [f'mouse{button:d}' for button in sorted(set(buttons))]
    return '+'.join(pressed) or 'none', (float(mouse.get('dx', 0)), float(mouse.get('dy', 0)))


# -----------------------------------------------------------------------------
# check, join


def has_actions(video):
    """Is it a dataset with actions?"""
    if not is_dataset(video):
        return False
    with open_h5(video) as f:
        return 'actions' in said_by_dataset(f, video)


def said_by_dataset(f, path):
    """read_labels of an open dataset, but for the sentences."""
    optional = read_optional(f, len(plain_dataset(f, 'frames', path)), path)
    said = {key: optional[key] for key in ('actions', 'action_names')
            if optional[key] is not None}
    if len(optional['episode_starts']) > 1:
        said['episode_starts'] = optional['episode_starts']
    return said


def check_labels(said, path):
    """What read_labels returned -> as data.load would have it, with no_op, the action that does
    nothing or None; and sentences."""
    names, words = said.get('action_names'), said.get('words')
    if words:
        order = sorted(range(len(words)), key=words.__getitem__)
        names = [words[i] for i in order]
        number = np.empty(len(words), np.int64)
        number[order] = np.arange(len(words))
        actions, table = number[said['actions']], None
        sentences = noticed_rare(actions)
    else:
        actions, table = check_actions(said['actions'], None, path)
        sentences = noticed_numbers(said['actions'], actions, table)
    names = name_combinations(names, table)
    if names is not None:
        names = [printable(name) for name in names]  # HDF5 takes no zeros in them
    labels = {'actions': actions, 'no_op': find_no_op(names, table, bool(words))}
    if names is not None:
        check_names(names, actions, path)
        labels['action_names'] = names
    if 'episode_starts' in said:
        labels['episode_starts'] = check_starts(said['episode_starts'], len(actions), path)
    return labels, sentences


def find_no_op(names, table, has_words):
    """The number of the action that does nothing: of buttons, or a mask of them, when none is
    pressed (np.unique puts it first); else the one that is called so; else 0, or None of words."""
    if table is not None:
        return None if table[0].any() else 0
    called = [i for i, name in enumerate(names or ()) if name.lower() in NO_OPS]
    if called:
        return called[0]
    return None if has_words else 0


def labels_of(labels, videos):
    """What is known of films in a row, as of one: from one file, or with 'beside' from a file
    beside each. And (path, number of actions) of each file, and sentences about how they were read.
    Raises DataError."""
    paths = [str(labels)]
    if labels == 'beside':
        paths = [file_beside(video) for video in videos]
    if not labels:  # what a dataset has
        paths = [str(video) for video in videos if has_actions(video)]
        if not paths:
            return {}, [], []
        if len(paths) < len(videos):
            refuse(paths[0], 'actions, which other sources lack', 'actions of all, or of none',
                   '--labels says them of all')
    found, sentences = [], []
    for path in paths:
        said, about = read_labels(path)
        check_labels(said, path)
        found.append(said)
        which = f'{printable(os.path.basename(path))}: ' if len(paths) > 1 else ''
        sentences += [which + sentence for sentence in about]
    first = found[0]
    if not labels and any('episode_starts' in said for said in found):
        for said in found:
            said.setdefault('episode_starts', np.zeros(1, np.int64))
    for path, said in zip(paths, found):
        if set(said) != set(first) or said['actions'].shape[1:] != first['actions'].shape[1:]:
            refuse(path, f'{", ".join(said)}', f'{", ".join(first)}, as in {paths[0]}',
                   'label all films in one way')
        if said.get('action_names') != first.get('action_names'):
            refuse(path, 'other action_names', f'those of {paths[0]}',
                   'number the actions in one way')
    counts = [len(said['actions']) for said in found]
    before = np.cumsum(counts) - counts
    # numbered together, or one combination of buttons would be another number in another film
    together = dict(first)
    if 'words' in first:
        together['words'] = list(dict.fromkeys(word for said in found for word in said['words']))
        number = {word: i for i, word in enumerate(together['words'])}
        for said in found:
            said['actions'] = np.array([number[word] for word in said['words']])[said['actions']]
    together['actions'] = np.concatenate([said['actions'] for said in found])
    if 'episode_starts' in first:
        together['episode_starts'] = np.concatenate(
            [said['episode_starts'] + n for said, n in zip(found, before)])
    given, about = check_labels(together, paths[0])
    return given, list(zip(paths, counts)), sentences + about


def of_decoded(given, numbers, counts, files):
    """The labels of all pictures of films -> those of the pictures that were decoded, with these
    numbers, increasing (N,). counts: pictures of each film; files: as labels_of returns them.
    Raises DataError where there are more or fewer labels."""
    check_counts(files, counts)
    given = dict(given, actions=given['actions'][numbers])
    if 'episode_starts' in given:
        starts = np.unique(np.searchsorted(numbers, given['episode_starts']))
        given['episode_starts'] = starts[starts < len(numbers)]
    return given


def check_counts(files, counts):
    """Raises DataError unless the files have an action for every source frame of the films.
    files: as labels_of returns them; counts: source frames of each film."""
    if len(files) == 1:
        counts = [sum(counts)]
    for (path, n_actions), n in zip(files, counts):
        is_text = os.path.splitext(path)[1].lower() not in ('.npz', '.npy')
        if is_text and n_actions == n - 1:
            refuse(path, f'{n_actions} actions for {n} frames', f'{n}, one per frame',
                   'the last frame has none: write the last line twice')
        if is_text and n_actions == n + 1:
            refuse(path, f'{n_actions} actions for {n} frames', f'{n}, one per frame',
                   'what the last one led to was not recorded: delete the last line; if the first '
                   'is from before the recording: delete that one')
        check_count(n_actions, n, path)


# -----------------------------------------------------------------------------
# in time


def actions_while_shown(given, indices, starts, longest, no_op=None):
    """What was done while each new frame was shown: at its source frame indices[k] and those up to
    the next one's, at most `longest` in all where that is of another episode (starts: of the new
    frames); between them may be others that stood still. And sentences about it.

    given: see labels_of. Of whole numbers it is the last that is not no_op, so that a tap between
    two frames is kept; no_op: None is that of the labels. Of floats it is the mean, of the last
    `longest`.
    """
    actions = given['actions']
    goes_on = ~np.isin(np.arange(len(indices)) + 1, np.append(starts, len(indices)))
    ends = np.append(indices[1:], len(actions))
    ends = np.where(goes_on, ends, np.minimum(ends, indices + longest))
    ends = np.maximum(ends, indices + 1)  # one that is shown twice
    n_several = (ends - indices > 1).sum()
    sentence = f'{n_several:,} frames stand for several of the video: each has '
    if actions.ndim == 2:
        sums = np.cumsum(np.vstack([np.zeros_like(actions[:1]), actions]), 0, np.float64)
        begins = np.maximum(indices, ends - longest)
        found = ((sums[ends] - sums[begins]) / (ends - begins)[:, None]).astype(np.float32)
        sentence += 'the mean of their actions'
    else:
        no_op = given['no_op'] if no_op is None else no_op
        last = np.arange(len(actions))
        if no_op is not None:
            last = np.maximum.accumulate(np.where(actions == no_op, -1, last))
        last = last[ends - 1]  # the last that is not no_op, from the beginning on
        found = np.where(last >= indices, actions[last], actions[indices])
        sentence += f'the last of their actions{but_no_op(given, no_op)}; in '
        sentence += f'{(found != actions[indices]).sum():,} it is not the first'
    return found, [sentence] if n_several else []


def but_no_op(given, no_op):
    """In words, which action counts only where there is no other."""
    if no_op is None:
        return ' (none is known to do nothing: --no_op)'
    called = given.get('action_names', ())[no_op:no_op + 1] if no_op >= 0 else ()
    return f' that is not {printable(called[0]) if called else no_op} (--no_op)'
