"""A recording as batches: no window crosses a cut, no training sees what is held out, no pixel is
wrong."""
import math
import os

import numpy as np
import pytest
import torch
from launch import ROOT, refused, run, run_after
from samples import noise, write

import data
import pictures
from recordings import game, hunter
from training import ranks


def made(tmp_path, n=200, starts=(0,)):
    frames = noise(n, 8, 8)
    return data.load(write(tmp_path / 'a.h5', frames, episode_starts=np.array(starts)))


# -----------------------------------------------------------------------------
# which frames


@pytest.mark.parametrize('n, starts', [
    (200, [0]), (205, [0]), (200, [0, 50]), (200, [0, 100, 197]), (200, list(range(0, 200, 20))),
    (200, list(range(0, 200, 25))), (200, [0, 30, 60, 90, 190]),
    (211, sorted({0, *range(3, 211, 7)}))])
@pytest.mark.parametrize('seq_len, stride', [(1, 1), (2, 1), (4, 1), (3, 2)])
def test_windows_cross_nothing_and_val_is_held_out(tmp_path, n, starts, seq_len, stride):
    ds = made(tmp_path, n, starts)
    span = (seq_len - 1) * stride + 1
    parts = data.split(ds, span)
    used = {which: {i for a, b in parts[which] for i in range(a, b)} for which in parts}
    val_start = min(used['val'])
    assert not used['train'] & used['val'] and max(used['train']) < val_start
    assert used['val'] == set(range(val_start, n))
    assert 0.05 * n <= len(used['val']) <= 0.2 * n
    if val_start in starts:
        assert used['train'] == set(range(val_start)), 'whole episodes need no gap'
    else:
        assert max(used['train']) == val_start - span - 1, 'a gap of one window'
        whole = any(0.05 * n <= n - s <= 0.2 * n for s in starts)
        assert not whole, 'a whole episode could have been held out'
    of_longer = [i for a, b in data.split(ds, 3 * span)['val'] for i in (a, b)]
    assert min(of_longer) == val_start, 'val moved with the window'
    episode = np.searchsorted(starts, np.arange(n), side='right')
    for which in ('train', 'val'):
        try:
            got = data.windows(ds, which, seq_len, stride).tolist()
        except data.DataError:
            got = []
        every = [i for i in range(n - span + 1) if episode[i] == episode[i + span - 1]
                 and all(j in used[which] for j in range(i, i + span))]
        assert got == every


def test_too_few_frames_says_how_many(tmp_path):
    with pytest.raises(data.DataError) as e:
        data.windows(made(tmp_path, 40), 'val', 8, 2)
    said = str(e.value)
    assert 'found 40 frames in 1 episode' in said and 'at least 15 frames' in said
    assert 'seq_len=8, frame_stride=2' in said and said.count('\n') == 2


def test_too_few_frames_is_said_in_the_words_of_the_caller(tmp_path):
    with pytest.raises(data.DataError) as e:
        data.windows(made(tmp_path, 40), 'val', 8, 2, 'n_frames=6 after 2', 'lower n_frames')
    said = str(e.value)
    assert 'at least 15 frames in a row for n_frames=6 after 2, frame_stride=2' in said
    assert said.endswith('longer episodes, or lower n_frames') and 'seq_len' not in said


def test_draw_is_a_function_of_its_key():
    starts = np.arange(100, 1100)
    np.random.seed(0)
    first = data.draw(starts, 32, 1337, 5, 0)
    np.random.seed(1)
    data.draw(starts, 7, 3)
    assert np.array_equal(data.draw(starts, 32, 1337, 5, 0), first)
    for other in ((1337, 5, 1), (1337, 6, 0), (1338, 5, 0), (1337, 5), (5, 1337, 0)):
        assert not np.array_equal(data.draw(starts, 32, *other), first)
    many = data.draw(starts, 20000, 0)
    assert set(many) == set(starts), 'every window must have its chance'


@pytest.mark.parametrize('batch_size, n', [(8, 1), (8, 0), (4, 0.5), (5, 1), (6, 0.3), (8, 1.6)])
def test_each_kind_gets_its_share_even_if_it_is_less_than_a_clip(batch_size, n):
    kinds, counts = [np.arange(k, k + 10) for k in range(1000, 6000, 1000)], []
    for it in range(500):
        picks = np.zeros(batch_size, int)
        data.mix_in(picks, kinds, n, 1337, it)
        counts.append(np.bincount(picks // 1000, minlength=6)[1:])
        assert set(counts[-1]) <= {math.floor(n), math.ceil(n)}
    assert np.allclose(np.mean(counts, 0), n, atol=0.02)


def test_key_seed_is_a_function_of_its_key():
    first = data.key_seed(1337, 0, 5, 1)
    assert first == 925342872656559920 == data.key_seed(1337, 0, 5, 1)
    assert 0 <= first < 2 ** 63
    for other in ((1337, 0, 5, 2), (1337, 0, 6, 1), (1338, 0, 5, 1), (1337, 1, 5, 1)):
        assert data.key_seed(*other) != first


# -----------------------------------------------------------------------------
# onto the device


def test_clips_are_exactly_the_pixels(tmp_path):
    ds = made(tmp_path, 60)
    starts = np.array([5, 0, 31])
    x = data.clips(ds.frames, starts, 4, 3, 'cpu')
    assert x.shape == (3, 4, 3, 8, 8) and x.dtype == torch.float32 and x.is_contiguous()
    for b, s in enumerate(starts):
        for t in range(4):
            expected = ds.frames[s + 3 * t].astype(np.float32).transpose(2, 0, 1) / 127.5 - 1
            assert np.allclose(x[b, t].numpy(), expected, atol=1e-6)
    assert x.min() >= -1 and x.max() <= 1
    resident = data.clips(torch.from_numpy(np.array(ds.frames)), starts, 4, 3, 'cpu')
    assert torch.equal(resident, x), 'frames kept on the device give another batch'
    assert data.to_device(ds.frames, 'cpu') is ds.frames
    every = torch.arange(256).reshape(1, 1, 16, 16).expand(1, 3, 16, 16) / 127.5 - 1
    assert np.array_equal(pictures.to_uint8(every)[0, :, :, 0].ravel(), np.arange(256))
    shown = ds.frames[starts[:, None] + 3 * np.arange(4)]
    assert np.array_equal(pictures.to_uint8(x), shown)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
def test_clips_on_the_gpu(tmp_path):
    ds = made(tmp_path, 60)
    x = data.clips(ds.frames, np.array([5, 0]), 4, 3, 'cpu')
    on_gpu = data.to_device(ds.frames, 'cuda')
    assert on_gpu.is_cuda
    for frames in (ds.frames, on_gpu):
        y = data.clips(frames, np.array([5, 0]), 4, 3, 'cuda')
        assert y.is_cuda and torch.allclose(y.cpu(), x, atol=1e-6)


# -----------------------------------------------------------------------------
# what is computed once


class Squares:
    """Computes rows (i, i * i), and counts how many it was asked for at a time."""

    def __init__(self):
        self.asked = []

    def __call__(self, picks):
        self.asked.append(len(picks))
        return np.stack([picks, picks ** 2], 1).astype(np.int32)


def test_cached_is_computed_once_in_order_and_memory_mapped(tmp_path):
    squares, path = Squares(), str(tmp_path / 'cache' / 'squares_1.npy')
    x = data.cached(path, 2500, squares)
    assert isinstance(x, np.memmap) and x.dtype == np.int32
    assert np.array_equal(x, np.stack([np.arange(2500), np.arange(2500) ** 2], 1))
    assert sum(squares.asked) == 2500 and max(squares.asked) == 32
    assert os.listdir(tmp_path / 'cache') == ['squares_1.npy']
    assert np.array_equal(data.cached(path, 2500, None), x)


def test_cached_goes_on_where_it_was_killed(tmp_path):
    squares, path = Squares(), str(tmp_path / 'squares_1.npy')

    def dies(picks):
        if picks[0] >= 2048:
            raise KeyboardInterrupt
        return squares(picks)
    with pytest.raises(KeyboardInterrupt):
        data.cached(path, 2500, dies)
    assert not os.path.exists(path)
    squares.asked.clear()
    assert np.array_equal(data.cached(path, 2500, squares)[:, 0], np.arange(2500))
    assert sum(squares.asked) == 2500 - 2048


@pytest.mark.parametrize('part', [0, 1024, 2048])
def test_another_process_may_make_the_same_and_be_first(tmp_path, part):
    path, squares = str(tmp_path / 'cache' / 'squares_1.npy'), Squares()

    def is_overtaken(picks):
        if picks[0] == part:
            data.cached(path, 2500, squares)
        return squares(picks)

    x = data.cached(path, 2500, is_overtaken)
    assert np.array_equal(x[:, 0], np.arange(2500)) and sum(squares.asked) <= 2500 + part + 1024
    assert os.listdir(tmp_path / 'cache') == ['squares_1.npy']


def test_cached_is_shared_out_among_the_ranks(tmp_path, monkeypatch):
    path, of_rank = str(tmp_path / 'squares_1.npy'), (Squares(), Squares())
    monkeypatch.setattr(ranks, 'world_size', lambda: 2)
    monkeypatch.setattr(ranks, 'rank', lambda: 1)
    with pytest.raises(data.DataError):  # rank 1 alone: nobody has put the parts together
        data.cached(path, 3000, of_rank[1])
    monkeypatch.setattr(ranks, 'rank', lambda: 0)
    x = data.cached(path, 3000, of_rank[0])
    assert sum(of_rank[0].asked) == 3000 - 1024 and sum(of_rank[1].asked) == 1024
    assert np.array_equal(x[:, 0], np.arange(3000))


def test_cached_removes_what_is_older_and_nothing_else(tmp_path):
    for name in ('tokens_1.npy', 'actions_1.npy', 'mine.txt'):
        (tmp_path / name).write_text('old')
    (tmp_path / 'tokens_0.npy.parts').mkdir()
    data.cached(str(tmp_path / 'tokens_2.npy'), 10, Squares())
    assert sorted(os.listdir(tmp_path)) == ['actions_1.npy', 'mine.txt', 'tokens_2.npy']


def test_a_damaged_cache_is_said(tmp_path):
    path = tmp_path / 'tokens_1.npy'
    data.cached(str(path), 100, Squares())
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(data.DataError, match='damaged.*\n.*remove it'):
        data.cached(str(path), 100, None)


# -----------------------------------------------------------------------------
# the commands


@pytest.mark.slow
def test_command_says_it_and_exits_3(tmp_path):
    path = tmp_path / 'play.h5'
    path.write_bytes(b'\0\0\0\x20ftypisom' + bytes(999))
    r = run('data.py', 'check', path)
    assert r.returncode == 3 and r.stdout == '', r.stdout
    assert r.stderr.count('\n') == 3 and 'found an mp4' in r.stderr, r.stderr
    r = run('data.py', 'video', path, tmp_path / 'b.h5')
    assert r.returncode == 3 and 'PyAV cannot open' in r.stderr, r.stderr
    assert not (tmp_path / 'b.h5').exists()
    r = run('data.py', 'video', path, tmp_path / 'b.mp4')
    assert r.returncode == 2 and '.h5' in r.stderr


@pytest.mark.slow
def test_what_is_read_is_not_written_over(tmp_path):
    path = tmp_path / 'a.h5'
    write(path, noise())
    before = path.read_bytes()
    (tmp_path / 'b.h5').symlink_to(path)
    for out in ('a.h5', 'b.h5'):
        r = run('data.py', 'video', path, tmp_path / out, '--source_fps=10', '--size=8')
        assert r.returncode == 3 and 'among those to read' in r.stderr, r.stderr
    assert path.read_bytes() == before
    (tmp_path / 'folder.h5').mkdir()
    for out in ('folder.h5', os.fsdecode(b'\x83\x65.h5')):
        r = run('data.py', 'video', path, tmp_path / out)
        assert r.returncode == 2 and 'a folder, or a name that is not UTF-8' in r.stderr, r.stderr


@pytest.mark.slow
def test_game_command_and_card(tmp_path):
    r = run('data.py', 'game', tmp_path / 'tiny.h5', '--n_frames=600', '--seed=3')
    assert r.returncode == 0, r.stderr
    for word in ('frames      600 of 64x64, 0.7 minutes at 15 fps', 'episodes    3', 'duplicates',
                 'noop', 'sword', 'decoded'):
        assert word in r.stdout, r.stdout
    assert (tmp_path / 'tiny.check.png').stat().st_size > 1000
    ds, rec = data.load(tmp_path / 'tiny.h5', patch_size=8), game.record(600, seed=3)
    assert np.array_equal(ds.frames, rec['frames']) and np.array_equal(ds.actions, rec['actions'])
    assert ds.action_names == list(game.ACTIONS) and ds.fps == game.FPS
    assert set(ds.truth) == set(rec['truth'])
    assert all(np.array_equal(ds.truth[k], rec['truth'][k]) for k in ds.truth)


@pytest.mark.slow
@pytest.mark.parametrize('stick', [False, True])
def test_a_hunters_recording_and_its_card(tmp_path, stick):
    r = run('data.py', 'game', tmp_path / 'hunt.h5', '--n_frames=300', '--player=hunter',
            f'--stick={stick}')
    assert r.returncode == 0, r.stderr
    for word in ('episodes    3', 'layout', '3 numbers a frame' if stick else 'sword'):
        assert word in r.stdout, r.stdout
    ds = data.load(tmp_path / 'hunt.h5')
    rec = game.record(300, player=hunter.Hunter, stick=stick)
    assert np.array_equal(ds.frames, rec['frames']) and np.array_equal(ds.actions, rec['actions'])
    assert ds.action_names == list(game.STICK if stick else game.ACTIONS)


def test_few_labels_are_of_transitions_that_can_be_seen(tmp_path):
    """Every second picture stands still; numbers with gaps are numbered anew."""
    frames = np.repeat(noise(200), 2, 0)
    path = write(tmp_path / 'a.h5', frames, actions=np.arange(400) % 4 * 1000)
    recording = data.load(path)
    picks, labels, n_classes = data.few_labels(recording, 50, 1, 0)
    assert len(set(picks)) == 50 and (picks % 2 == 1).all() and n_classes == 4
    assert np.array_equal(labels, np.arange(400) % 4)
    assert max(picks) < min(data.windows(recording, 'val', 2))
    assert not np.array_equal(picks, data.few_labels(recording, 50, 1, 1)[0])
    assert data.few_labels(recording, 0, 1, 0)[2] == 0
    with pytest.raises(data.DataError, match='at least n_labels=200'):
        data.few_labels(recording, 200, 1, 0)
    with pytest.raises(data.DataError, match='frame_stride=2'):
        data.few_labels(recording, 50, 2, 0)


def test_lively_starts_come_before_those_at_which_nothing_changes(tmp_path):
    recording = data.load(write(tmp_path / 'a.h5', np.repeat(noise(100), 4, 0)))
    picks = data.lively(recording, data.windows(recording, 'train', 2), 60, 0)
    assert len(picks) == 60 and data.changed(recording, picks[:40]).all()
    still = np.arange(0, 300)[np.arange(300) % 4 < 3]
    assert len(data.lively(recording, still, 10, 0)) == 10  # there are no others


@pytest.mark.parametrize('largest', [40, 2**40])
def test_actions_of_any_size_are_described(tmp_path, largest):
    actions = np.arange(300) % 40
    actions[7] = largest
    path = write(tmp_path / 'a.h5', noise(300), actions=actions)
    said = data.describe_actions(data.load(path))
    assert said.startswith('0 8, 1 8, ') and said.endswith('and 31 rarer ones up to 40')
    assert len(said) < 400


@pytest.mark.slow
@pytest.mark.row(48)
def test_the_card_of_a_read_only_dataset(tmp_path, read_only, own_cache):
    (tmp_path / 'input').mkdir()
    path = write(tmp_path / 'input' / 'given.h5', noise(300))
    code = read_only(tmp_path / 'input')
    r = run_after(code, 'data.py', 'check', path)
    assert r.returncode == 0 and r.stderr == '', r.stderr
    npy, = own_cache.glob('frames_given_*.npy')
    sheet, = own_cache.glob('frames_given_*.check.png')
    for words in (f'decoded into {npy}, for ', 'frames      300 of 16x16', f'GB, {npy}\n',
                  f'look at     {sheet}'):
        assert words in r.stdout, r.stdout
    # nowhere at all: the frames are decoded already, and the card is still worth printing
    nowhere = code + f'\nREAD_ONLY_FOLDERS.append({str(own_cache)!r})'
    r = run_after(nowhere, 'data.py', 'check', path)
    assert r.returncode == 0 and 'frames      300 of 16x16' in r.stdout, r.stderr
    assert 'look at     nothing, for the contact sheet' in r.stdout


@pytest.mark.parametrize('args, words', [
    (['game', 'a.h5', '--n_frames=100000000000'], ['--n_frames=100000000000', '2 to 1,000,000']),
    (['game', 'a.h5', '--n_frames=1'], ['--n_frames=1', '2 to']),
    (['game', 'a.h5', '--n_frames=-5'], ['--n_frames=-5', '2 to']),
    (['game', 'a.h5', '--seed=-1'], ['no negative seed']),
    (['game', 'a.h5', '--layout=-1'], ['layout']),
    (['game', 'a.h5', '--layout=1000000'], ['500,000', 'levels']),
    (['game', 'a.h5', '--player=expert'], ['wanderer', 'hunter']),
    (['game', 'a.h5', '--stick=1'], ["'1'", 'True or False']),
    (['video', 'a.mp4', 'a.h5', '--size=0'], ["'0'", '128x96', 'of 8 to 2048']),
    (['video', 'a.mp4', 'a.h5', '--size=-8'], ["'-8'", 'of 8 to 2048']),
    (['video', 'a.mp4', 'a.h5', '--size=128x'], ["'128x'", '128x96']),
    (['video', 'a.mp4', 'a.h5', '--size=16x99999999999999999999'], ['of 8 to 2048']),
    (['video', 'a.mp4', 'a.h5', '--fps=nan'], ['--fps=nan', 'at most 1000']),
    (['video', 'a.mp4', 'a.h5', '--fps=1e9'], ['--fps=1e+09', 'at most 1000']),
    (['video', 'a.mp4', 'a.h5', '--fps=0'], ['--fps=0', 'above 0'])],
    ids=lambda x: x[-1] if x[0] in ('game', 'video') else '')
def test_numbers_have_limits(args, words, monkeypatch, capsys):
    monkeypatch.setattr('sys.argv', ['data.py', *args])
    with pytest.raises(SystemExit) as e:
        data.parse_command_line()
    said = capsys.readouterr().err
    assert e.value.code == 2 and all(word in said for word in words), said


@pytest.mark.slow
def test_a_video_that_is_not_there_is_said_with_its_folder(tmp_path):
    for name, more in (('none.mp4', []), (__file__, ['--labels=none.npz'])):
        done = run('data.py', 'video', name, tmp_path / 'a.h5', *more)
        missing = ROOT / (more[0][9:] if more else name)
        refused(done, 3, f'{missing}: found no such file')
