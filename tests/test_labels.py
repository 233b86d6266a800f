"""Labels of videos: what has one meaning is read, the rest is refused with its cure, or named."""
import json
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from launch import ROOT
from samples import encode, numbered

import data
from recordings import labels as module
from recordings.film import Film
from recordings.labels import actions_while_shown, labels_of
from recordings.video import import_video

N = 40
K = np.arange(N) % 3
BUTTONS = np.array([[0, 0, 0], [1, 0, 0], [1, 0, 1]])[K]
WORDS = np.array(['noop', 'left', 'jump'])[K]  # jump 0, left 1, noop 2


def npz(**arrays):
    return 'l.npz', lambda path: np.savez(path, **arrays)


def npy(x):
    return 'l.npy', lambda path: np.save(path, x)


def text(name, *lines):
    return name, lambda path: path.write_text(''.join(f'{line}\n' for line in lines))


def csv(head, *columns, name='l.csv', by=','):
    head = [head] if head else []
    return text(name, *head, *(by.join(map(str, row)) for row in zip(*columns)))


def jsonl(*entries):
    return text('l.jsonl', *map(json.dumps, entries))


def vpt(keys, buttons=(), dx=0.0, **more):
    return dict(keyboard=dict(keys=[f'key.keyboard.{key}' for key in keys], newKeys=[], chars=''),
                mouse=dict(dx=dx, dy=0.0, buttons=list(buttons), newButtons=[]), tick=7, **more)


def read(tmp_path, made):
    """labels_of a file that is made in the test: what is known, and sentences."""
    name, make = made
    make(tmp_path / name)
    given, files, sentences = labels_of(str(tmp_path / name), ['a.mp4'])
    assert files == [(str(tmp_path / name), len(given['actions']))]
    return given, sentences


PRESSED = [vpt(()), vpt(('w',)), vpt(('w', 'space', 'w'), (0,))]
NAMES3 = ['none', 'up', 'up+jump']
FLOATS = np.arange(N)[:, None] * [0.5, 2]
# the file, its actions, their names, words that must be noticed
READ = dict(
    npz=(npz(actions=K), K, None, ''),
    npy=(npy(K), K, None, ''),
    positional=(npz(arr_0=K), K, None, '"arr_0" is taken for actions'),
    action=(npz(action=K), K, None, '"action" is taken for actions'),
    fps=(npz(actions=K, fps=20), K, None, 'ignored: fps'),
    typo=(npz(actions=K, action_name=['a', 'b', 'c']), K, None, 'did you mean action_names?'),
    bytes_names=(npz(actions=K, action_names=np.array(['a', 'b', 'c'], 'S')), K, ['a', 'b', 'c'],
                 ''),
    words_npy=(npy(WORDS), 2 - K, ['jump', 'left', 'noop'], ''),
    bools=(npz(actions=BUTTONS > 0), K, ['none', 'b0', 'b0+b2'], 'read as numbers from 0 to 2'),
    buttons=(npz(actions=BUTTONS, action_names=['up', 'left', 'jump']), K, NAMES3, 'from 0 to 2'),
    masks=(npz(actions=1 << 8 * K + 1), K, ['2', '512', '131072'], 'from 0 to 2'),
    huge=(npz(actions=K * 5 * 10 ** 9), K, ['0', '5000000000', '10000000000'], 'from 0 to 2'),
    huge_csv=(csv('action', K * 5 * 10 ** 9), K, ['0', '5000000000', '10000000000'], '0 to 2'),
    one_hot=(npz(actions=np.eye(3)[K]), K, None, 'from 0 to 2'),
    column=(npz(actions=K[:, None]), K, None, 'from 0 to 2'),
    whole_floats=(npz(actions=K * 1.0), K, None, ''),
    csv=(csv('frame,action', range(N), K), K, None, ''),
    csv_from_1=(csv('Frame, Action', range(1, N + 1), K), K, None, ''),
    csv_bare=(csv('', K), K, None, ''),
    csv_counted=(csv('', range(N), K), K, None, ''),
    csv_semicolons=(csv('frame;action', range(N), K, by=';'), K, None, ''),
    csv_excel=(csv('\ufeffaction', K), K, None, ''),
    savetxt=(('l.csv', lambda path: np.savetxt(path, K)), K, None, ''),
    savetxt_rows=(('l.csv', lambda path: np.savetxt(path, FLOATS)), FLOATS, None, ''),
    savetxt_head=(('l.csv', lambda path: np.savetxt(path, np.c_[np.arange(N), K],
                                                    header='frame action')), K, None, ''),
    pandas_csv=(csv(',action,reward', range(N), K, K), K, None, 'ignored: reward'),
    tsv=(csv('tick\taction', range(N), K, name='l.tsv', by='\t'), K, None, ''),
    csv_words=(csv('time,action', np.arange(N) / 20, WORDS), 2 - K, ['jump', 'left', 'noop'], ''),
    csv_bare_words=(csv('', WORDS), 2 - K, ['jump', 'left', 'noop'], ''),
    csv_keys=(csv('key', WORDS), 2 - K, ['jump', 'left', 'noop'], 'key: taken for actions'),
    csv_buttons=(csv('up,left,jump', *BUTTONS.T), K, NAMES3, 'up, left, jump: taken for actions'),
    csv_true=(csv('frame,up,left,jump', range(N), *(BUTTONS.T > 0)), K, NAMES3, 'up, left, jump'),
    csv_key_t=(csv('w,t', *BUTTONS.T[::2]), K, ['none', 'w', 'w+t'], 'w, t: taken for actions'),
    csv_one_button=(csv('frame,jump', range(N), K % 2), K % 2, ['none', 'jump'], 'jump: taken'),
    csv_floats=(csv('frame,dx,dy', range(N), *FLOATS.T), FLOATS, ['dx', 'dy'], 'dx, dy: taken'),
    vpt=(jsonl(*[PRESSED[k] for k in K]), np.array([0, 2, 1])[K],
         ['none', 'space+w+mouse0', 'w'], ''),
    vpt_mouse=(jsonl(*[vpt('w', dx=1.5 * (k > 0)) for k in K]), 0 * K, ['w'],
               'ignored: mouse movement, in 26 of 40 lines'),
    vpt_alike=(jsonl(*[vpt('w', dx=1.0) for k in K]), 0 * K, ['w'], ''),
    jsonl=(jsonl(*[dict(frame=i, action=int(k)) for i, k in enumerate(K)]), K, None, ''),
    jsonl_words=(jsonl(*[dict(action=str(word), hp=1) for word in WORDS]), 2 - K,
                 ['jump', 'left', 'noop'], 'ignored: hp'),
    jsonl_bare=(jsonl(*K.tolist()), K, None, ''),
    jsonl_true=(jsonl(*[dict(up=bool(a), left=False, jump=bool(c)) for a, _, c in BUTTONS]), K,
                NAMES3, 'up, left, jump'),
    jsonl_rows=(jsonl(*[dict(action=row) for row in FLOATS.tolist()]), FLOATS,
                ['action[0]', 'action[1]'], ''),
    jsonl_held=(jsonl(*[dict(keys=[['up'], ['up', 'jump'], []][k]) for k in K]),
                np.array([2, 0, 1])[K], ['jump+up', 'none', 'up'], 'keys: taken for actions'),
    jsonl_dicts=(jsonl(*[dict(action=dict(up=int(a), jump=int(c))) for a, _, c in BUTTONS]), K,
                 NAMES3, 'from 0 to 2'),
)


@pytest.mark.parametrize('case', READ)
def test_read(case, tmp_path):
    made, actions, names, words = READ[case]
    given, sentences = read(tmp_path, made)
    assert np.array_equal(given['actions'], actions) and given.get('action_names') == names
    assert given['actions'].dtype == (np.int64 if actions.ndim == 1 else np.float32)
    assert 'episode_starts' not in given
    assert bool(sentences) == bool(words) and words in ''.join(sentences)


@pytest.mark.parametrize('made, starts, words', [
    (npz(actions=K, episode_starts=[0, 20]), [0, 20], ''),
    (npz(actions=K, episode_starts=[0., 20.]), [0, 20], ''),
    (npz(actions=K, episode_starts=np.arange(N) % 20 == 0), [0, 20], ''),
    (npz(actions=K, episode_starts=[0, 20, 40]), [0, 20], '40, is the number of frames: left out'),
    (npz(actions=K, episode_starts=[0, 40]), [0], 'is the number of frames: left out'),
    (npz(actions=K, dones=np.arange(N) % 20 == 19), [0, 20], '"dones" says where 2 episodes'),
    (npz(actions=K, episode_ends=[20, 40]), [0, 20], '"episode_ends" says where 2'),
    (npz(actions=K, ep_len=[15, 25]), [0, 15], '"ep_len" says where 2'),
    (npz(actions=K, terminals=np.arange(N) == 9, timeouts=np.arange(N) == 19), [0, 10, 20],
     '"terminals" and "timeouts" say where 3'),
    (npz(actions=K, dones=np.arange(N) == 19, ep_len=[15, 25]), [0, 20],
     'ignored: "ep_len", which says that others begin'),
    (npz(actions=K, dones=K), None, 'ignored: "dones" int64 (40,); windows may cross'),
    (csv('action,done', K, np.arange(N) % 20 == 19), [0, 20], '"done" says where 2'),
    (csv('action,episode_start', K, 1 * (np.arange(N) % 20 == 0)), [0, 20], '"episode_start" says'),
    (csv('action,episode_starts', K, 1 * (np.arange(N) % 20 == 0)), [0, 20], 'says where 2'),
    (csv('action,episode', K, np.arange(N) // 20), [0, 20], '"episode" says where 2'),
    (csv('action,episode', K, np.repeat(['b', 'a'], 20)), [0, 20], '"episode" says where 2'),
    (csv('frame,action', np.arange(N) % 20, K), None, '"frame" begins again 1 times'),
    (jsonl(*[dict(action=int(k), terminal=bool(i % 20 == 19)) for i, k in enumerate(K)]), [0, 20],
     '"terminal" says where 2'),
])
def test_episodes(tmp_path, made, starts, words):
    given, sentences = read(tmp_path, made)
    found = given.get('episode_starts')
    assert starts == (found if found is None else found.tolist())
    assert np.array_equal(given['actions'], K)
    assert bool(sentences) == bool(words) and words in ''.join(sentences)


@pytest.mark.parametrize('made, no_op', [
    (npz(actions=K), 0), (npz(actions=K, action_names=['a', 'b', 'noop']), 2),
    (npz(actions=K, action_names=['a', 'b', 'c']), 0), (csv('action', WORDS), 2),
    (csv('action', np.array(['up', 'left', 'jump'])[K]), None),
    (npz(actions=BUTTONS), 0), (npz(actions=BUTTONS | [1, 0, 0]), None),
    (npz(actions=K * 10 ** 6), 0), (npz(actions=(K + 1) * 10 ** 6), None),
    (jsonl(*[vpt('w' * (i > 3)) for i in range(N)]), 0), (jsonl(*[vpt('w')] * N), None),
])
def test_which_action_does_nothing(tmp_path, made, no_op):
    assert read(tmp_path, made)[0]['no_op'] == no_op


def test_combinations_that_are_too_rare_to_be_learned_are_said(tmp_path):
    rows = np.random.default_rng(0).random((100, 20)) < 0.1
    rows[:20] = 0
    _, sentences = read(tmp_path, npz(actions=rows))
    different = len(np.unique(rows, axis=0))
    assert f'{different} different actions in 100 frames' in sentences[-1]
    _, sentences = read(tmp_path, jsonl(*[vpt([f'x{i}']) for i in range(100)]))
    assert sentences == ['100 different actions in 100 frames, 100 of them only once: too rare to '
                         'be learned; leave out buttons that matter little']
    _, sentences = read(tmp_path, npz(actions=rows[np.r_[np.zeros(396, int), 20:24]]))
    assert len(sentences) == 1 and 'read as numbers' in sentences[0]


# -----------------------------------------------------------------------------
# refusing


class Evil:
    def __reduce__(self):
        return os.mkdir, ('pickle_ran',)


def raw(name, content):
    return name, lambda path: path.write_bytes(content)


DEEP = '[' * 100_000
WRONG = dict(
    pickled=(npz(actions=np.array([Evil()] * N)), '"actions" that cannot be read: it is pickled',
             'np.array(actions, dtype=int)'),
    pickled_npy=(npy(np.array([Evil()] * N)), 'pickled', 'np.array(actions, dtype=int)'),
    pickled_names=(npz(actions=K, action_names=np.array({'noop': 0}, object)),
                   '"action_names" that cannot be read: it is pickled', "np.array(['noop', 'left"),
    few_names=(npz(actions=K, action_names=['a', 'b']), '2 action_names', 'name actions 2 to 2'),
    no_actions=(npz(buttons=K), 'no "actions", but buttons', 'np.savez("labels.npz", actions'),
    two_arrays=(npz(arr_0=K, arr_1=K), 'no "actions", but arr_0, arr_1', 'np.savez('),
    rows=(npz(actions=np.full((N, 2), 3)), 'int64 (40, 2)', 'return_inverse=True)[1]',
          'astype("float32")'),
    compound=(npy(np.zeros(N, [('left', '?'), ('camera', 'f4', 2)])), 'camera',
              'np.column_stack([actions[name] for name in actions.dtype.names])'),
    scalar=(npz(actions=3), 'actions int64 ()', 'np.full('),
    minus1=(npz(actions=np.r_[-1, K[1:]]), 'negative in 1 of 40 frames, the first is 0 (-1)',
            'np.append(actions[1:], actions[-1:])', 'np.maximum(actions, 0)'),
    negative=(npz(actions=K - 1), 'negative in 14', 'np.unique(actions, return_inverse=True)[1]'),
    nan=(npz(actions=np.where(K[:, None] == 2, np.nan, FLOATS)), 'not finite in 13 of 40 frames',
         'the first is 2', 'np.nan_to_num('),
    far=(npz(actions=FLOATS * 1e300), 'beyond float32', 'actions / abs(actions).max()'),
    starts=(npz(actions=K, episode_starts=[5, 20]), 'episode_starts [5, 20]', 'np.append(0, '),
    starts_beyond=(npz(actions=K, episode_starts=[0, 41]), 'below 40', 'mend'),
    not_numpy=(raw('l.npz', b'hello'), 'numpy did not write', 'np.savez'),
    empty=(raw('l.npz', b''), 'numpy did not write', 'np.savez'),
    damaged=(raw('l.npz', b'PK\x03\x04' + bytes(99)), 'cannot be read', 'np.savez'),
    cut_short=(raw('l.npy', b'\x93NUMPY\x01\0'), 'cannot be read', 'np.savez'),
    other=(raw('l.txt', b'1\n'), 'end in ".txt"', 'np.savez'),
    csv_empty=(raw('l.csv', b''), 'no actions', 'a line "action"'),
    csv_head=(text('l.csv', 'frame,action'), 'no actions', 'a line "action"'),
    csv_cell=(text('l.csv', 'frame,action', '0,1', '1,', '2,1'), 'nothing in line 3, column "act'),
    csv_word=(text('l.csv', 'frame,action', '0,up', '1,', '2,up'), 'nothing in line 3, column'),
    csv_nan=(text('l.csv', 'action', *[1] * 9, 'nan', 1), '"nan" in line 11', 'ffill()'),
    csv_mixed=(text('l.csv', 'action', 0, 1, 2, '?', 3), '"?" in line 5', 'numbers, as in others'),
    csv_blank=(text('l.csv', 'action', 1, '', 1), 'nothing in line 3', 'each line'),
    csv_short=(text('l.csv', 'frame,action', '0,1', '1', '2,1'), '1 cells in line 3', 'mend'),
    csv_gap=(text('l.csv', 'frame,action', '0,1', '4,2', '9,1'),
             '"frame" 0 and then 4 in line 3', 'reindex(range(N), method="ffill")'),
    csv_twice=(text('l.csv', 'a,a', '0,1'), 'two columns of one name'),
    csv_no_column=(csv('frame,time', range(N), range(N)), 'frame, time', 'a column "action"'),
    csv_words=(csv('device,key', WORDS, WORDS), 'words in several columns: device, key',
               '"+".join'),
    csv_first=(csv('', ['wait', *WORDS[1:]]), '"wait" in line 1', 'a first line "action"'),
    csv_bare_rows=(csv('', np.arange(N) // 4, K), 'int64 (40, 2)', 'np.unique('),
    csv_rows=(csv('a,b', K, K), 'int64 (40, 2)', 'np.unique('),
    csv_latin=(raw('l.csv', 'action\nup\nà gauche\n'.encode('latin-1')), 'line 3', 'UTF-8'),
    csv_quote=(raw('l.csv', b'action\n"up\n' + b'up\n' * 5), 'cannot be read'),
    csv_long=(raw('l.csv', b'action\n' + b'x' * 2 ** 21), 'too much in line 2', '1,048,576'),
    csv_name=(raw('l.csv', b'action\n' + b'x' * 300), 'too much in line 2', '200 characters'),
    jsonl_text=(text('l.jsonl', '{"action": 1}', '{"action": '), 'line 2 that is no JSON', 'mend'),
    jsonl_deep=(text('l.jsonl', DEEP), 'line 1 that is no JSON'),
    jsonl_nested=(text('l.jsonl', '{"action":' * 500 + '1' + '}' * 500), 'no actions'),
    jsonl_other=(jsonl(dict(action=1), dict(key=1)), 'key in line 2', 'action, as in the first'),
    jsonl_null=(jsonl(dict(action=1), dict(action=None)), 'nothing in line 2, column "action"'),
    jsonl_empty=(raw('l.jsonl', b''), 'no actions', 'a line "action"'),
    vpt_keys=(jsonl(vpt('w'), dict(tick=1)), 'line 2 without the keys', '"key.keyboard.w"'),
    vpt_numbers=(jsonl(vpt('w'), dict(keyboard=dict(keys=[7]))), 'line 2 without the keys'),
)


@pytest.mark.parametrize('case', WRONG)
def test_refused(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (name, make), *words = WRONG[case]
    make(tmp_path / name)
    with pytest.raises(data.DataError) as e:
        labels_of(name, ['a.mp4'])
    said = str(e.value)
    assert said.startswith(f'{name}: found ') and said.count('\n') == 2, said
    assert '\n  expected ' in said and '\n  cure: ' in said
    assert all(word in said for word in words), said
    assert os.listdir() == [name]


def test_a_large_array_in_a_small_file_is_not_read(tmp_path):
    x = np.zeros(2 ** 20)
    np.savez_compressed(tmp_path / 'l.npz', actions=x)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, 'MAX_ARRAY', x.nbytes)
        with pytest.raises(data.DataError, match='8,388,736 bytes'):
            labels_of(tmp_path / 'l.npz', ['a.mp4'])
    header = b"{'descr': '<i8', 'fortran_order': False, 'shape': (10000000000000,), }\n"
    (tmp_path / 'l.npy').write_bytes(b'\x93NUMPY\x01\0' + bytes([len(header), 0]) + header)
    with pytest.raises(data.DataError, match='cannot be read'):
        labels_of(tmp_path / 'l.npy', ['a.mp4'])
    (tmp_path / 'l.csv').write_text('a,b\n' + '1,0\n' * 100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, 'MAX_CELLS', 110)
        with pytest.raises(data.DataError, match='too much in line 58'):
            labels_of(tmp_path / 'l.csv', ['a.mp4'])


def test_names_that_hdf5_or_a_terminal_would_not_take(tmp_path):
    video, h5 = encode(tmp_path / 'a.mp4', numbered(N)), str(tmp_path / 'a.h5')
    odd = ['\ud800', 'a\0b', '\x1b[31m']
    _, make = jsonl(*[dict(action=odd[k]) for k in K])
    make(tmp_path / 'l.jsonl')
    import_video(video, h5, 16, 16, labels=str(tmp_path / 'l.jsonl'))
    assert data.load(h5).action_names == ['\ufffd[31m', 'a\ufffdb', '\ufffd']


# -----------------------------------------------------------------------------
# beside films


def test_a_file_beside_each_film(tmp_path):
    """Of any ending; words and combinations are numbered together."""
    films = [encode(tmp_path / name, numbered(n), 30) for name, n in (('a.mp4', 20), ('b.mp4', 26))]
    h5 = str(tmp_path / 'x.h5')
    _, make = csv('action', np.array(['noop', 'up'])[np.arange(20) % 2])
    make(tmp_path / 'a.csv')
    _, make = jsonl(*[dict(action=['down', 'noop'][i % 2]) for i in range(26)])
    make(tmp_path / 'b.jsonl')
    import_video(films, h5, 16, 16, labels='beside')
    ds = data.load(h5)
    assert ds.action_names == ['down', 'noop', 'up']
    assert ds.actions.tolist() == [1, 2] * 10 + [0, 1] * 13
    _, make = csv('action,hp', np.arange(20) % 2, range(20))
    make(tmp_path / 'a.csv')
    with pytest.raises(data.DataError, match='b.jsonl: found actions, words'):
        import_video(films, h5, 16, 16, labels='beside')
    np.save(tmp_path / 'b.npy', np.arange(26) % 3)
    with pytest.raises(data.DataError, match=r'b\.npy: found .*b\.jsonl beside it'):
        import_video(films, h5, 16, 16, labels='beside')
    os.remove(tmp_path / 'b.jsonl')
    _, noticed = import_video(films, h5, 16, 16, labels='beside')
    assert data.load(h5).actions.tolist() == [*np.arange(20) % 2, *np.arange(26) % 3]
    assert noticed == ['a.csv: ignored: hp']
    os.remove(tmp_path / 'b.npy')
    with pytest.raises(data.DataError, match='b.npz: found no such file'):
        import_video(films, h5, 16, 16, labels='beside')


def test_a_file_beside_a_folder_of_pictures(tmp_path):
    (tmp_path / 'run.1').mkdir()
    np.save(tmp_path / 'run.1.npy', K)
    given, _, _ = labels_of('beside', [f'{tmp_path}/run.1/'])
    assert np.array_equal(given['actions'], K)


def test_the_command_says_what_was_noticed(tmp_path):
    encode(tmp_path / 'a.mp4', numbered(N), 30)

    def command(*more):
        ran = subprocess.run([sys.executable, ROOT / 'data.py', 'video', 'a.mp4', 'a.h5',
                              '--size=16', *more], cwd=tmp_path, capture_output=True, text=True)
        return ran.returncode, ran.stdout, ran.stderr

    code, _, error = command('--labels=beside')
    assert code == 3 and 'a.npz: found no such file' in error, 'before anything is decoded'
    _, make = csv('frame,action,hp', range(N), WORDS, K)
    make(tmp_path / 'a.csv')
    for more in ('--labels=beside', '--labels=a.csv'):
        code, said, _ = command('--fps=15', more)
        assert code == 0 and 'noticed     ignored: hp' in said and 'noop' in said
    np.savez(tmp_path / 'a.npz', actions=K)
    code, _, error = command('--labels=beside')
    assert code == 3 and 'a.csv beside it' in error
    code, said, _ = command('--labels=a.npz', '--fps=15', '--no_op=2')
    assert code == 0 and 'the last of their actions that is not 2 (--no_op)' in said


@pytest.mark.parametrize('n, kind, words', [
    (39, 'npz', 'np.append(actions, actions[-1:], 0)'), (41, 'npz', 'actions[:-1]'),
    (39, 'csv', 'write the last line twice'), (41, 'csv', 'delete the last line'),
    (20, 'npz', 'leave out'), (20, 'csv', 'leave out')])
def test_another_number_of_actions_than_frames(tmp_path, n, kind, words):
    video = encode(tmp_path / 'a.mp4', numbered(N))
    name, make = npz(actions=np.zeros(n, int)) if kind == 'npz' else csv('action', [0] * n)
    make(tmp_path / name)
    with pytest.raises(data.DataError) as e:
        import_video(video, str(tmp_path / 'a.h5'), 16, 16, labels=str(tmp_path / name))
    said = str(e.value)
    assert said.startswith(f'{tmp_path}/{name}: found {n} actions for 40 frames') and words in said
    assert said.count('\n') == 2 and sorted(os.listdir(tmp_path)) == ['a.mp4', name]


# -----------------------------------------------------------------------------
# in time


def test_a_tap_between_two_frames_is_not_lost(tmp_path):
    taps = np.zeros(60, int)
    taps[[1, 8, 18, 19, 31]] = 2, 1, 3, 1, 4
    np.savez(tmp_path / 'l.npz', actions=taps, episode_starts=[0])
    video, h5 = encode(tmp_path / 'a.mp4', numbered(60), 60), str(tmp_path / 'a.h5')
    for no_op in (None, 0):
        _, noticed = import_video(video, h5, 16, 16, fps=15, labels=str(tmp_path / 'l.npz'),
                                  no_op=no_op)
        assert data.load(h5).actions.tolist() == [2, 0, 1, 0, 1, 0, 0, 4] + 7 * [0], 'the last one'
        assert noticed == ['15 frames stand for several of the video: each has the last of their '
                           'actions that is not 0 (--no_op); in 3 it is not the first']
    import_video(video, h5, 16, 16, fps=15, labels=str(tmp_path / 'l.npz'), no_op=9)
    assert data.load(h5).actions.tolist() == taps[3::4].tolist()
    np.savez(tmp_path / 'l.npz', actions=np.arange(60.)[:, None], episode_starts=[0])
    import_video(video, h5, 16, 16, fps=15, labels=str(tmp_path / 'l.npz'))
    assert data.load(h5).actions[:, 0].tolist() == [4 * k + 1.5 for k in range(15)], 'the mean'
    import_video(video, h5, 16, 16, fps=90, labels=str(tmp_path / 'l.npz'))
    assert data.load(h5).actions[:3, 0].tolist() == [0, 0, 1], 'one that is shown twice'


def test_of_actions_that_change_between_two_frames_it_is_the_last():
    indices = np.array([0, 4, 5, 20])
    given = dict(actions=np.array([1, 2, 3, 0, 5, 0, 6, *[0] * 12, 7, 0, 8]), no_op=0)
    found, _ = actions_while_shown(given, indices, [0, 3], longest=4)
    assert found.tolist() == [3, 5, 6, 8], '7 lies among dropped frames, before another episode'
    found, _ = actions_while_shown(given, indices, [0], longest=4)
    assert found.tolist() == [3, 5, 7, 8], '7 is what the wait ended with'
    floats = dict(actions=given['actions'][:, None] / 1)
    found, _ = actions_while_shown(floats, indices, [0], longest=4)
    assert found.tolist() == [[1.5], [5], [1.75], [4]], 'the end of the wait'
    found, sentences = actions_while_shown(dict(given, no_op=None), indices, [0, 3], longest=4)
    assert found.tolist() == [0, 5, 0, 8] and 'none is known to do nothing' in sentences[0]
    found, sentences = actions_while_shown(given, np.arange(22), [0], longest=1)
    assert np.array_equal(found, given['actions']) and not sentences


def test_labels_follow_the_frames(tmp_path):
    video, h5 = encode(tmp_path / 'a.mp4', numbered(60), 30), str(tmp_path / 'a.h5')
    labels = str(tmp_path / 'l.npz')
    np.savez(labels, actions=np.arange(60, dtype=np.uint8) // 2, episode_starts=[0, 21, 58],
             action_names=[f'a{i}' for i in range(30)])
    import_video(video, h5, 16, 16, fps=15, labels=labels)
    ds = data.load(h5)
    assert ds.actions.tolist() == list(range(30)) and ds.action_names[7] == 'a7'
    first_shown = 'an episode starts at the first frame shown from 21 on'
    assert ds.episode_starts.tolist() == [0, 11, 29], first_shown


def test_labels_of_still_frames_go_with_them_unless_episodes_are_given(tmp_path):
    h5, labels = str(tmp_path / 'a.h5'), str(tmp_path / 'l.npz')
    order = np.arange(30) * 7 % 30  # so that each differs enough from the one before
    frames = numbered(30)[np.r_[order, [order[-1]] * 50, order]]
    video = encode(tmp_path / 'b.mp4', frames, 15)
    np.savez(labels, actions=np.arange(len(frames)))
    tally, _ = import_video(video, h5, 16, 16, labels=labels)
    ds = data.load(h5)
    assert ds.actions.tolist() == [*range(30), *range(80, 110)] and tally['still'] == 50
    assert ds.episode_starts.tolist() == [0, 30]
    np.savez(labels, actions=np.arange(len(frames)), episode_starts=[0])
    tally, _ = import_video(video, h5, 16, 16, labels=labels)
    ds = data.load(h5)
    assert tally == Counter(source=110) and len(ds.frames) == 110
    assert ds.episode_starts.tolist() == [0]


def test_one_label_too_few_is_found_before_anything_is_decoded(tmp_path, monkeypatch):
    video = encode(tmp_path / 'a.mp4', numbered(40), 15)
    np.savez(tmp_path / 'l.npz', actions=np.arange(39) % 3)
    monkeypatch.setattr(Film, 'decoded', None)
    with pytest.raises(data.DataError, match='39 actions for 40 frames'):
        import_video(video, str(tmp_path / 'a.h5'), 16, 16, labels=str(tmp_path / 'l.npz'))
