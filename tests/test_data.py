"""Datasets: what is read is right, what is wrong is refused in words, what is imported is what was shown."""
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import h5py
import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import data

RNG = np.random.default_rng(0)


def noise(n=40, h=16, w=16):
    return RNG.integers(0, 256, (n, h, w, 3), np.uint8)


def write(path, frames, compression=None, **more):
    with h5py.File(path, 'w') as f:
        f.create_dataset('frames', data=frames, compression=compression)
        for key, value in more.items():
            f[key] = value
    return str(path)


def made(tmp_path, n=200, starts=(0,), **more):
    return data.load(write(tmp_path / 'a.h5', noise(n, 8, 8), episode_starts=np.array(starts), **more))


def cli(*args, **kw):
    return subprocess.run([sys.executable, str(ROOT / 'data.py'), *map(str, args)], capture_output=True, text=True, **kw)


# -----------------------------------------------------------------------------
# reading


def test_a_file_with_only_frames_is_valid(tmp_path):
    """As tinyworlds writes it: create_dataset('frames', data=frames, compression='lzf'), frames cut into many chunks."""
    frames = noise(1000, 32, 32)
    path = write(tmp_path / 'zelda_frames.h5', frames, 'lzf')
    with h5py.File(path) as f:
        assert f['frames'].chunks[1:] != (32, 32, 3), 'the awkward case is meant'
    ds = data.load(path, patch_size=4)
    assert np.array_equal(ds.frames, frames) and isinstance(ds.frames, np.memmap)
    assert ds.actions is None and ds.episode_starts.tolist() == [0] and ds.truth == {} and ds.fps is None


def test_everything_optional_is_read(tmp_path):
    path = write(tmp_path / 'a.h5', noise(), actions=np.arange(40, dtype=np.uint8) % 3, episode_starts=np.array([0, 7]))
    with h5py.File(path, 'a') as f:
        f.attrs.update(fps=15, source='play.mp4', action_names=['a', 'b', 'c'])
        f['truth/hero'] = np.arange(80).reshape(40, 2)
    ds = data.load(path)
    assert ds.actions.dtype == np.int64 and ds.actions[:4].tolist() == [0, 1, 2, 0]
    assert (ds.fps, ds.source, ds.action_names) == (15.0, 'play.mp4', ['a', 'b', 'c'])
    assert ds.episode_starts.tolist() == [0, 7] and ds.truth['hero'][3].tolist() == [6, 7]
    floats = write(tmp_path / 'b.h5', noise(), actions=np.zeros((40, 2)))
    assert data.load(floats).actions.dtype == np.float32


def test_data_id_is_of_the_content(tmp_path):
    frames, actions = noise(300), np.arange(300) % 4
    first = data.load(write(tmp_path / 'a.h5', frames, 'lzf', actions=actions)).data_id
    assert len(first) == 16
    assert data.load(write(tmp_path / 'b.h5', frames, 'gzip', actions=actions.astype(np.int32))).data_id == first
    assert data.load(write(tmp_path / 'c.h5', frames, actions=(actions + 1) % 4)).data_id != first
    assert data.load(write(tmp_path / 'd.h5', frames, actions=actions, episode_starts=np.array([0, 9]))).data_id != first
    assert data.load(write(tmp_path / 'e.h5', frames[:299], actions=actions[:299])).data_id != first
    frames[0, 0, 0, 0] ^= 1
    assert data.load(write(tmp_path / 'f.h5', frames, actions=actions)).data_id != first


def test_decoded_file_is_kept_until_the_h5_changes(tmp_path):
    frames = noise(300)
    path = write(tmp_path / 'a.h5', frames, 'gzip')
    data.load(path)
    npy, = tmp_path.glob('*.npy')
    before = npy.stat()
    data.load(path, master=False)
    assert npy.stat().st_ino == before.st_ino, 'decoded again'
    frames[1] = 255 - frames[1]                                       # not one of the 64 frames that data_id looks at
    write(path, frames, 'gzip')
    os.utime(path, ns=(10 ** 18, 10 ** 18))                           # an older date than the decoded file's
    assert np.array_equal(data.load(path).frames, frames), 'the pictures of the old file'
    write(path, frames[::-1], 'gzip')
    ds = data.load(path)
    assert np.array_equal(ds.frames, frames[::-1])
    assert [x.name for x in tmp_path.glob('*.npy')] == [f'a.{ds.data_id}.npy'], 'the older decoding should be gone'
    assert not list(tmp_path.glob('*.tmp'))


def test_a_damaged_decoded_file_is_made_again(tmp_path):
    frames = noise()
    path = write(tmp_path / 'a.h5', frames)
    data.load(path)
    npy, = tmp_path.glob('*.npy')
    npy.write_bytes(npy.read_bytes()[:5000])
    os.utime(npy, ns=(os.stat(path).st_mtime_ns,) * 2)
    assert np.array_equal(data.load(path).frames, frames)


# -----------------------------------------------------------------------------
# refusing: (how to make the file, words that must be said)


def with_frames(make, *words):
    def build(p):
        with h5py.File(p, 'w') as f:
            make(f)
    return build, words


def raw(content, *words):
    return lambda p: p.write_bytes(content), words


def truncated(p):
    write(p, noise(100))
    p.write_bytes(p.read_bytes()[:5000])


def damaged(p):
    with h5py.File(p, 'w') as f:
        d = f.create_dataset('frames', data=noise(1600, 8, 8), chunks=(16, 8, 8, 3), fletcher32=True)
        where = d.id.get_chunk_info(33).byte_offset                   # frames 528..543
    content = bytearray(p.read_bytes())
    content[where + 7] ^= 1
    p.write_bytes(content)


def unwritten(f):
    f.create_dataset('frames', (300, 16, 16, 3), np.uint8, chunks=(1, 16, 16, 3))[:150] = noise(150)


def absurd(f):
    f.create_dataset('frames', (2 ** 26, 240, 256, 3), np.uint8, chunks=(1, 240, 256, 3))


def external(f):
    secret = Path(f.filename).with_name('secret')
    secret.write_bytes(bytes(40 * 768))
    f.create_dataset('frames', (40, 16, 16, 3), np.uint8, external=[(str(secret), 0, 40 * 768)])


def virtual(f):
    layout = h5py.VirtualLayout((40, 16, 16, 3), np.uint8)
    layout[:] = h5py.VirtualSource('other.h5', 'frames', (40, 16, 16, 3))
    f.create_virtual_dataset('frames', layout)


def external_link(f):
    other = write(Path(f.filename).with_name('other.h5'), noise())
    f['frames'] = h5py.ExternalLink(other, 'frames')


def soft_link(f):
    f['x'] = noise()
    f['frames'] = h5py.SoftLink('/x')


def scaleoffset(f):
    f.create_dataset('frames', data=noise(), scaleoffset=0)


def optional(**more):
    def make(f):
        f['frames'] = noise()
        for key, value in more.items():
            if key.startswith('attr_'):
                f.attrs[key[5:]] = value
            else:
                f[key] = value
    return make


put = lambda x: lambda f: f.create_dataset('frames', data=x)
WRONG = dict(
    missing=(lambda p: None, ['no such file', 'data.py game']),
    directory=(lambda p: p.mkdir(), ['a directory']),
    empty=raw(b'', '0 bytes'),
    text=raw(b'hello\n' * 99, 'a text file'),
    mp4=raw(b'\0\0\0\x20ftypisom' + bytes(999), 'mp4', 'data.py video'),
    webm=raw(b'\x1aE\xdf\xa3' + bytes(999), 'webm', 'data.py video'),
    gif=raw(b'GIF89a' + bytes(999), 'gif', 'data.py video'),
    png=raw(b'\x89PNG\r\n' + bytes(999), 'png'),
    zeros=raw(bytes(9999), 'binary'),
    truncated=(truncated, ['truncated', '5000 bytes']),
    damaged=(damaged, ['damaged data in frames 5']),
    no_frames=with_frames(lambda f: f.create_dataset('images', data=noise()), 'no "frames"', 'images (40, 16, 16, 3)'),
    group=with_frames(lambda f: f.create_dataset('frames/0', data=noise()), 'is a group', '0 (40, 16, 16, 3)'),
    floats=with_frames(put(RNG.random((40, 16, 16, 3)).astype('f4')), 'float32', '* 255'),
    int64=with_frames(put(noise().astype(int)), 'int64', 'astype'),
    strings=with_frames(put([b'a', b'b']), 'object'),
    channels_first=with_frames(put(noise().transpose(0, 3, 1, 2)), '(40, 3, 16, 16)', 'transpose(0, 2, 3, 1)'),
    grey=with_frames(put(noise()[..., 0]), '(40, 16, 16)', 'np.repeat'),
    grey1=with_frames(put(noise()[..., :1]), '(40, 16, 16, 1)', 'np.repeat'),
    rgba=with_frames(put(np.repeat(noise()[..., :1], 4, -1)), '(40, 16, 16, 4)', 'frames[..., :3]'),
    clips=with_frames(put(noise().reshape(10, 4, 16, 16, 3)), '(10, 4, 16, 16, 3)', 'long'),
    one_frame=with_frames(put(noise(1)), '(1, 16, 16, 3)', 'at least 2'),
    no_frame=with_frames(put(noise(0)), '(0, 16, 16, 3)', 'at least 2'),
    unwritten=with_frames(unwritten, '150 chunks', 'never written'),
    unwritten_plain=with_frames(lambda f: f.create_dataset('frames', (40, 16, 16, 3), np.uint8), 'never written'),
    absurd=with_frames(absurd, 'declares 12,369,505,812,480 bytes'),
    external=with_frames(external, 'external'),
    virtual=with_frames(virtual, 'virtual'),
    external_link=with_frames(external_link, 'link'),
    soft_link=with_frames(soft_link, 'link'),
    other_filter=with_frames(scaleoffset, 'filter 6', 'gzip'),
    black=with_frames(put(np.zeros((400, 16, 16, 3), np.uint8)), '256 of 256', 'same picture'),
    still=with_frames(put(np.concatenate([noise(100), np.repeat(noise(1), 120, 0)])), '120 of 220', 'same picture'),
    patches=with_frames(put(noise(40, 60, 36)), '36 wide and 60 high', 'patch_size=8', '32 or 40 wide', '56 or 64 high', '[2, 3, 4, 6, 12]'),
    actions_length=with_frames(optional(actions=np.zeros(39, int)), 'actions int64 (39,)', 'int (40,)'),
    actions_type=with_frames(optional(actions=np.zeros(40)), 'actions float64 (40,)'),
    actions_negative=with_frames(optional(actions=np.full(40, -1)), 'negative'),
    actions_nan=with_frames(optional(actions=np.full((40, 2), np.nan)), 'not finite'),
    actions_link=with_frames(optional(actions=h5py.SoftLink('/frames')), '"actions" is a link'),
    starts_first=with_frames(optional(episode_starts=np.array([3, 9])), 'episode_starts [3, 9]', 'first 0'),
    starts_order=with_frames(optional(episode_starts=np.array([0, 9, 5])), 'increasing'),
    starts_range=with_frames(optional(episode_starts=np.array([0, 40])), 'below 40'),
    starts_none=with_frames(optional(episode_starts=np.zeros(0, int)), 'episode_starts int64 (0,)'),
    names=with_frames(optional(actions=np.arange(40), attr_action_names=['a']), '1 action_names', '40'),
    fps=with_frames(optional(attr_fps=-1.0), 'fps = ', 'positive'),
    truth_length=with_frames(optional(**{'truth/x': np.zeros(3)}), 'truth/x of shape (3,)', '(40,...)'),
    truth_link=with_frames(optional(truth=h5py.ExternalLink('other.h5', '/')), '"truth"'),
)


@pytest.mark.row(36)
@pytest.mark.parametrize('case', WRONG)
def test_refused(case, tmp_path):
    build, words = WRONG[case]
    path = tmp_path / 'wrong.h5'
    build(path)
    with pytest.raises(data.DataError) as e:
        data.load(path, patch_size=8)
    said = str(e.value)
    assert type(e.value) is data.DataError and e.value.exit_code == 3
    assert said.startswith(f'{path}: found ') and '\n  expected ' in said and '\n  cure: ' in said and said.count('\n') == 2
    said = said.replace(str(path), '')                                # whose name holds the case's
    for word in words:
        assert word in said, said
    assert not list(tmp_path.glob('*.npy')) and not list(tmp_path.glob('*.tmp'))


def test_command_says_it_and_exits_3(tmp_path):
    path = tmp_path / 'play.h5'
    path.write_bytes(b'\0\0\0\x20ftypisom' + bytes(999))
    r = cli('check', path)
    assert r.returncode == 3 and r.stdout == '' and r.stderr.count('\n') == 3 and 'found an mp4' in r.stderr, r.stderr
    r = cli('video', path, tmp_path / 'b.h5')
    assert r.returncode == 3 and 'PyAV cannot open' in r.stderr and not (tmp_path / 'b.h5').exists(), r.stderr
    r = cli('video', path, tmp_path / 'b.mp4')
    assert r.returncode == 2 and '.h5' in r.stderr


def test_full_disk_is_one_clear_message_and_leaves_nothing(tmp_path):
    """RLIMIT_FSIZE stands in for the full disk: writes past it fail like ENOSPC does."""
    resource = pytest.importorskip('resource')
    path = Path(write(tmp_path / 'a.h5', noise(400)))
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    for command in (['check', path], ['game', tmp_path / 'b.h5', '--n_frames=400']):
        r = cli(*command, preexec_fn=limit)
        assert r.returncode == 7 and 'cannot be written' in r.stderr and 'Traceback' not in r.stderr, r.stderr
        assert r.stderr.count('\n') <= 3
    assert [x.name for x in tmp_path.iterdir()] == ['a.h5']


def test_too_little_disk_is_noticed_before_writing(tmp_path, monkeypatch):
    monkeypatch.setattr(data.shutil, 'disk_usage', lambda p: type('usage', (), dict(free=1000)))
    with pytest.raises(data.DiskError, match='GB free'):
        data.load(write(tmp_path / 'a.h5', noise()))
    assert len(list(tmp_path.iterdir())) == 1


# -----------------------------------------------------------------------------
# split, windows, batches


@pytest.mark.parametrize('n, starts', [
    (200, [0]), (205, [0]), (200, [0, 50]), (200, [0, 100, 197]), (200, list(range(0, 200, 20))), (200, list(range(0, 200, 25))),
    (200, [0, 30, 60, 90, 190]), (211, sorted({0, *range(3, 211, 7)}))])
@pytest.mark.parametrize('seq_len, stride', [(1, 1), (2, 1), (4, 1), (3, 2)])
def test_windows_cross_nothing_and_val_is_held_out(tmp_path, n, starts, seq_len, stride):
    ds = made(tmp_path, n, starts)
    span = (seq_len - 1) * stride + 1
    parts = data.split(ds, span)
    used = {k: {i for a, b in v for i in range(a, b)} for k, v in parts.items()}
    val_start = min(used['val'])
    assert not used['train'] & used['val'] and max(used['train']) < val_start and used['val'] == set(range(val_start, n))
    assert 0.05 * n <= len(used['val']) <= 0.2 * n
    if val_start in starts:
        assert used['train'] == set(range(val_start)), 'whole episodes need no gap'
    else:
        assert max(used['train']) == val_start - span - 1, 'a gap of one window'
        assert not any(0.05 * n <= n - s <= 0.2 * n for s in starts), 'a whole episode could have been held out'
    assert min(i for a, b in data.split(ds, 3 * span)['val'] for i in (a, b)) == val_start, 'val moved with the window'
    for which in ('train', 'val'):
        try:
            got = data.windows(ds, which, seq_len, stride).tolist()
        except data.DataError:
            got = []
        episode = np.searchsorted(starts, np.arange(n), side='right')
        every = [i for i in range(n - span + 1) if episode[i] == episode[i + span - 1]
                 and all(j in used[which] for j in range(i, i + span))]
        assert got == every


def test_too_few_frames_says_how_many(tmp_path):
    with pytest.raises(data.DataError) as e:
        data.windows(made(tmp_path, 40), 'val', 8, 2)
    assert 'found 40 frames in 1 episode' in str(e.value) and 'at least 15 frames' in str(e.value)
    assert 'seq_len=8, frame_stride=2' in str(e.value) and str(e.value).count('\n') == 2


def test_draw_is_a_function_of_its_key(tmp_path):
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
    assert np.array_equal(data.to_uint8(every)[0, :, :, 0].ravel(), np.arange(256))
    assert np.array_equal(data.to_uint8(x), ds.frames[starts[:, None] + 3 * np.arange(4)])


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
# video: frames whose colours say which frame they are


def numbered(n, h=16, w=16):
    """Frame i: the left part shows i in steps of 8 levels, over a fixed pattern that is not blank."""
    x = np.zeros((n, h, w, 3), np.uint8)
    x[:, :, w // 2:, 1] = 200
    x[:, :, :w // 2] = (np.arange(n) % 30 * 8).astype(np.uint8)[:, None, None, None]
    return x


def encode(path, frames, fps=30, pts=None, codec='libx264rgb', tick=None):
    """A lossless video. pts: presentation times in units of `tick` seconds."""
    with av.open(str(path), 'w') as out:
        s = out.add_stream(codec, rate=Fraction(fps))
        s.height, s.width = frames.shape[1:3]
        s.pix_fmt = 'rgb24' if codec == 'libx264rgb' else 'rgb8'
        s.options = {'crf': '0', 'preset': 'ultrafast'} if codec == 'libx264rgb' else {}
        s.codec_context.time_base = tick or Fraction(1, fps)
        for i, x in enumerate(frames):
            f = av.VideoFrame.from_ndarray(x, format='rgb24').reformat(format=s.pix_fmt)
            f.pts, f.time_base = i if pts is None else pts[i], tick or Fraction(1, fps)
            out.mux(s.encode(f))
        out.mux(s.encode())
    return str(path)


def shown(path):
    """Which numbered() frames the dataset shows (mod 30)."""
    with h5py.File(path) as f:
        return np.round(f['frames'][:, 0, 0, 0] / 8).astype(int).tolist()


def starts(path):
    with h5py.File(path) as f:
        return f['episode_starts'][:].tolist()


def test_import_at_half_the_rate(tmp_path):
    video, h5 = encode(tmp_path / 'a.mp4', numbered(40), 30), str(tmp_path / 'sub' / 'a.h5')
    data.import_video(video, h5, 16, 16, fps=15)
    assert shown(h5) == [i % 30 for i in range(0, 40, 2)]
    ds = data.load(h5)
    assert ds.fps == 15 and ds.source == 'a.mp4' and ds.actions is None
    assert np.array_equal(ds.frames, numbered(40)[::2]), 'the same size must be the same pixels'
    data.import_video(video, h5, 16, 16)                              # the video's own rate
    assert shown(h5) == [i % 30 for i in range(40)] and data.load(h5).fps == 30
    data.import_video(video, h5, 16, 16, fps=20, compression='lzf')
    assert shown(h5) == [int(k * 1.5 + 1e-6) % 30 for k in range(27)]
    with h5py.File(h5) as f:
        assert f['frames'].compression == 'lzf' and f['frames'].fletcher32 and f['frames'].chunks[1:] == (16, 16, 3)


@pytest.mark.parametrize('container, ticks', [('mp4', 15360), ('mkv', 1000)])
def test_import_of_a_variable_frame_rate(tmp_path, container, ticks):
    at = np.array([0, 1, 2, 3, 7, 8, 12, 13, 14, 15, 16, 17, 20]) / 60    # seconds
    video = encode(tmp_path / f'a.{container}', numbered(13), 60, np.round(at * ticks).astype(int).tolist(), tick=Fraction(1, ticks))
    h5 = str(tmp_path / 'a.h5')
    data.import_video(video, h5, 16, 16, fps=15)
    wanted = [int(np.flatnonzero(at <= k / 15 + 1e-6)[-1]) for k in range(6)]
    assert shown(h5)[:6] == wanted == [0, 3, 5, 6, 10, 12]


def test_import_of_a_gif(tmp_path):
    data.save_gif(tmp_path / 'a.gif', numbered(12), fps=10)
    data.import_video(str(tmp_path / 'a.gif'), str(tmp_path / 'a.h5'), 16, 16)
    got = data.load(tmp_path / 'a.h5')
    assert got.fps == pytest.approx(10) and abs(got.frames.astype(int) - numbered(12)).max() <= 2


def exact(picture, box, w, h):
    """Area average by brute force: every pixel of the result from a fine grid of samples over the box."""
    x0, y0, x1, y1 = box
    fine = 60                         # divides all the ratios below into whole samples, so this is exact
    xs = (x0 + (np.arange(w * fine) + 0.5) / fine * (x1 - x0) / w).astype(int)
    ys = (y0 + (np.arange(h * fine) + 0.5) / fine * (y1 - y0) / h).astype(int)
    return picture[ys][:, xs].reshape(h, fine, w, fine, 3).mean((1, 3))


def test_crop_pad_and_area_averaging():
    picture = noise(1, 60, 96)[0]
    assert np.array_equal(data.fit(picture, 48, 30, False), np.floor(picture.reshape(30, 2, 48, 2, 3).mean((1, 3)) + 0.5))
    assert np.array_equal(data.fit(picture, 96, 60, False), picture)
    assert np.abs(data.fit(picture, 16, 16, False) - exact(picture, (18, 0, 78, 60), 16, 16)).max() < 0.51, 'crops left and right'
    assert np.abs(data.fit(picture, 32, 16, False) - exact(picture, (0, 6, 96, 54), 32, 16)).max() < 0.51, 'crops top and bottom'
    padded = data.fit(picture, 32, 32, True)
    assert padded[:6].max() == 0 and padded[26:].max() == 0
    assert np.abs(padded[6:26] - exact(picture, (0, 0, 96, 60), 32, 20)).max() < 0.51
    wide = data.fit(picture, 96, 30, True, pixel_aspect=2.0)           # shown 192 x 60: fills 96 x 30
    assert wide.min(2).max(1).min() > 0 and np.array_equal(wide, np.floor(picture.reshape(30, 2, 96, 3).mean(1) + 0.5))
    assert np.array_equal(data.fit(picture[:8, :8], 16, 16, False), picture[:8, :8].repeat(2, 0).repeat(2, 1))


def scene(seed, n, h=32, w=32):
    """Tiles of a few colours, scrolling one pixel a frame: every pixel changes, the colours stay."""
    rng = np.random.default_rng(seed)
    world = rng.choice([30, 90, 160, 230], (16, 40, 3), p=rng.dirichlet(np.ones(4))).astype(np.uint8).repeat(4, 0).repeat(4, 1)
    return np.stack([world[:h, i:i + w] for i in range(n)])


def test_cuts_are_found_and_scrolling_is_none(tmp_path):
    video = encode(tmp_path / 'a.mp4', np.concatenate([scene(1, 60), scene(2, 50), scene(3, 70)]), 15)
    data.import_video(video, str(tmp_path / 'a.h5'), 32, 32)
    assert starts(tmp_path / 'a.h5') == [0, 60, 110]
    data.import_video(video, str(tmp_path / 'a.h5'), 16, 16)
    assert starts(tmp_path / 'a.h5') == [0, 60, 110]


def test_cut_or_not_by_measured_values():
    """The weakest true cut and the strongest change that is none of a real scrolling recording, amid its usual level."""
    for change, shift, cut in ((36, 0.14, True), (29, 0.06, False), (2, 0.9, False)):
        changes, shifts = np.full(60, 15.0), np.full(60, 0.017)
        changes[30], shifts[30] = change, shift
        assert np.flatnonzero(data.find_cuts(changes, shifts)).tolist() == [30] * cut


def test_blank_and_still_stretches(tmp_path):
    play = scene(1, 90)
    still = np.repeat(play[59:60], 40, 0)                             # 40 frames at 15 fps: longer than 2 s
    short = np.repeat(play[29:30], 20, 0)
    black = np.zeros((35, 32, 32, 3), np.uint8)
    frames = np.concatenate([play[:30], short, play[30:60], still, play[60:], black, play[:20], black[:5], play[20:40]])
    tally = data.import_video(encode(tmp_path / 'a.mp4', frames, 15), str(tmp_path / 'a.h5'), 32, 32)
    assert tally == dict(source=len(frames), still=40, blank=35)
    kept = np.concatenate([play[:30], short, play[30:60], play[60:], play[:20], black[:5], play[20:40]])
    with h5py.File(tmp_path / 'a.h5') as f:
        assert np.array_equal(f['frames'], kept)
    assert set(starts(tmp_path / 'a.h5')) - {130} == {0, 80, 110, 135}, 'after still, after black, after a short black'


def test_an_episode_starts_after_black_even_if_it_fades_in():
    play, black = scene(1, 4), np.zeros((1, 32, 32, 3), np.uint8)
    frames = np.concatenate([play, black, (play * 0.2).astype(np.uint8), play])
    got = list(data.drop_stills(enumerate(frames), 30, data.Counter()))
    assert [i for i, _, _ in got] == list(range(13)) and [i for i, _, cut in got if cut] == [5]


def test_labels_follow_the_frames(tmp_path):
    video, h5 = encode(tmp_path / 'a.mp4', numbered(60), 30), str(tmp_path / 'a.h5')
    labels = tmp_path / 'l.npz'
    np.savez(labels, actions=np.arange(60, dtype=np.uint8), episode_starts=[0, 21, 58], action_names=[f'a{i}' for i in range(60)])
    data.import_video(video, h5, 16, 16, fps=15, labels=str(labels))
    ds = data.load(h5)
    assert ds.actions.tolist() == list(range(0, 60, 2)) and ds.action_names[7] == 'a7'
    assert ds.episode_starts.tolist() == [0, 11, 29], 'an episode starts at the first frame shown from 21 on'
    # without episode_starts frames are dropped, and their labels with them
    frames = np.concatenate([scene(1, 30), np.repeat(scene(1, 30)[29:], 50, 0), scene(2, 30)])
    np.savez(labels, actions=np.arange(len(frames)))
    data.import_video(encode(tmp_path / 'b.mp4', frames, 15), h5, 32, 32, labels=str(labels))
    assert data.load(h5).actions.tolist() == [*range(30), *range(80, 110)] and starts(h5) == [0, 30]
    # with them, nothing is
    np.savez(labels, actions=np.arange(len(frames)), episode_starts=[0])
    assert data.import_video(str(tmp_path / 'b.mp4'), h5, 32, 32, labels=str(labels)) == dict(source=110)
    assert starts(h5) == [0] and len(shown(h5)) == 110


class Evil:
    def __reduce__(self):
        return os.mkdir, ('pickle_ran',)


@pytest.mark.parametrize('labels, words', [
    (dict(actions=np.zeros(39, int)), ['39 actions', '40, one per frame']),
    (dict(actions=np.zeros(41, int)), ['41 actions']),
    (dict(buttons=np.zeros(40, int)), ['no "actions"']),
    (dict(actions=np.zeros((40, 2), int)), ['actions int64 (40, 2)']),
    (dict(actions=np.zeros(40, int), episode_starts=[0, 40]), ['episode_starts', 'below 40']),
    (dict(actions=np.array([Evil()] * 40)), ['cannot be read'])])
def test_wrong_labels_leave_no_file(tmp_path, monkeypatch, labels, words):
    monkeypatch.chdir(tmp_path)
    video = encode('a.mp4', numbered(40))
    np.savez('l.npz', **labels)
    with pytest.raises(data.DataError) as e:
        data.import_video(video, 'a.h5', 16, 16, labels='l.npz')
    assert all(w in str(e.value) for w in words) and str(e.value).startswith('l.npz: ') and str(e.value).count('\n') <= 2, e.value
    assert sorted(os.listdir()) == ['a.mp4', 'l.npz']


def test_an_import_that_fails_or_is_killed_leaves_the_old_file(tmp_path, monkeypatch):
    video, h5 = encode(tmp_path / 'a.mp4', numbered(40)), tmp_path / 'a.h5'
    h5.write_text('old')
    monkeypatch.setattr(data, 'colours', lambda x: 1 / 0)             # in the middle of writing
    with pytest.raises(ZeroDivisionError):
        data.import_video(video, str(h5), 16, 16)
    assert h5.read_text() == 'old' and len(list(tmp_path.iterdir())) == 2
    killed = f'import data, os; data.colours = lambda x: os.kill(os.getpid(), 9); data.import_video({video!r}, {str(h5)!r}, 16, 16)'
    assert subprocess.run([sys.executable, '-c', killed], cwd=ROOT).returncode == -9
    assert h5.read_text() == 'old'
    leftover, = tmp_path.glob('*.tmp')
    os.utime(leftover, (0, 0))                                        # the next import clears it away, an hour later
    monkeypatch.undo()
    data.import_video(video, str(h5), 16, 16)
    assert not list(tmp_path.glob('*.tmp')) and len(shown(h5)) == 40


def test_a_broken_video_is_refused(tmp_path):
    video = Path(encode(tmp_path / 'a.mkv', scene(1, 90), 15))
    content = video.read_bytes()
    video.write_bytes(content[:300])
    with pytest.raises(data.DataError) as e:
        data.import_video(str(video), str(tmp_path / 'a.h5'))
    assert str(e.value).count('\n') == 2 and not (tmp_path / 'a.h5').exists()
    with pytest.raises(data.DataError, match='cannot open'):
        data.import_video(str(tmp_path / 'none.mp4'), str(tmp_path / 'a.h5'))


# -----------------------------------------------------------------------------
# pictures and commands


def test_pictures(tmp_path):
    from PIL import Image
    rows = [noise(4), noise(3)]
    image = data.grid(rows, pad=2)
    assert image.shape == (2 * 130 + 2, 4 * 130 + 2, 3) and image.dtype == np.uint8
    assert np.array_equal(image[2:130:8, 2:130:8], rows[0][0]) and np.array_equal(image[132:260:8, 262:390:8], rows[1][2])
    labelled = data.grid(rows, labels=['true', 'model'])
    margin = labelled.shape[1] - image.shape[1]
    assert margin > 20 and np.array_equal(labelled[:, margin:], image) and labelled[:, :margin].min() < 128, 'no text'
    data.save_png(tmp_path / 'a.png', image)
    assert np.array_equal(np.array(Image.open(tmp_path / 'a.png')), image)
    data.save_gif(tmp_path / 'a.gif', numbered(15), fps=15, scale=2)
    gif = Image.open(tmp_path / 'a.gif')
    assert gif.size == (32, 32) and gif.n_frames == 15
    total = sum((gif.seek(i), gif.info['duration'])[1] for i in range(15))
    assert total == 1000, '15 frames at 15 fps are one second'
    data.save_mp4(tmp_path / 'a.mp4', numbered(20, 17, 17), fps=15, scale=3)
    with av.open(str(tmp_path / 'a.mp4')) as c:
        got = [x.to_ndarray(format='rgb24') for x in c.decode(video=0)]
        assert c.streams.video[0].average_rate == 15 and c.streams.video[0].pix_fmt == 'yuv420p'
    assert len(got) == 20 and got[0].shape == (50, 50, 3) and abs(int(got[9][5, 5, 0]) - 72) < 12
    assert not list(tmp_path.glob('*.tmp'))


def test_game_command_and_card(tmp_path):
    pytest.importorskip('game')
    r = cli('game', tmp_path / 'tiny.h5', '--n_frames=600', '--seed=3')
    assert r.returncode == 0, r.stderr
    for word in ('frames      600 of 64x64, 0.7 minutes at 15 fps', 'episodes    3', 'duplicates', 'noop', 'sword', 'decoded'):
        assert word in r.stdout, r.stdout
    assert (tmp_path / 'tiny.check.png').stat().st_size > 1000
    from recordings import game
    ds, rec = data.load(tmp_path / 'tiny.h5', patch_size=8), game.record(600, seed=3)
    assert np.array_equal(ds.frames, rec['frames']) and np.array_equal(ds.actions, rec['actions'])
    assert ds.action_names == list(game.ACTIONS) and ds.fps == game.FPS and set(ds.truth) == set(rec['truth'])
    assert all(np.array_equal(ds.truth[k], rec['truth'][k]) for k in ds.truth)


# -----------------------------------------------------------------------------
# what is computed once


def squares(asked):
    def compute(picks):
        asked.append(len(picks))
        return np.stack([picks, picks ** 2], 1).astype(np.int32)
    return compute


def test_cached_is_computed_once_in_order_and_memory_mapped(tmp_path):
    asked, path = [], str(tmp_path / 'cache' / 'squares_1.npy')
    x = data.cached(path, 2500, squares(asked))
    assert isinstance(x, np.memmap) and x.dtype == np.int32 and np.array_equal(x, np.stack([np.arange(2500), np.arange(2500) ** 2], 1))
    assert sum(asked) == 2500 and max(asked) == 32 and os.listdir(tmp_path / 'cache') == ['squares_1.npy']
    assert np.array_equal(data.cached(path, 2500, None), x)


def test_cached_goes_on_where_it_was_killed(tmp_path):
    asked, path = [], str(tmp_path / 'squares_1.npy')
    whole = squares(asked)

    def dies(picks):
        if picks[0] >= 2048:
            raise KeyboardInterrupt
        return whole(picks)
    with pytest.raises(KeyboardInterrupt):
        data.cached(path, 2500, dies)
    assert not os.path.exists(path)
    asked.clear()
    assert np.array_equal(data.cached(path, 2500, whole)[:, 0], np.arange(2500)) and sum(asked) == 2500 - 2048


def test_cached_is_shared_out_among_the_ranks(tmp_path):
    path, asked = str(tmp_path / 'squares_1.npy'), ([], [])
    with pytest.raises(data.DataError):                               # rank 1 alone: nobody has put the parts together
        data.cached(path, 3000, squares(asked[1]), 1, 2)
    x = data.cached(path, 3000, squares(asked[0]), 0, 2)
    assert (sum(asked[0]), sum(asked[1])) == (3000 - 1024, 1024) and np.array_equal(x[:, 0], np.arange(3000))


def test_cached_removes_what_is_of_the_past_and_nothing_else(tmp_path):
    for name in ('tokens_1.npy', 'actions_1.npy', 'mine.txt'):
        (tmp_path / name).write_text('old')
    (tmp_path / 'tokens_0.npy.parts').mkdir()
    data.cached(str(tmp_path / 'tokens_2.npy'), 10, squares([]))
    assert sorted(os.listdir(tmp_path)) == ['actions_1.npy', 'mine.txt', 'tokens_2.npy']


def test_a_damaged_cache_is_said(tmp_path):
    path = tmp_path / 'tokens_1.npy'
    data.cached(str(path), 100, squares([]))
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(data.DataError, match='damaged.*\n.*remove it'):
        data.cached(str(path), 100, None)
