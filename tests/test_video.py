"""Videos: what is imported is what was shown, cut where it was cut, with the labels it had."""
import os
from collections import Counter
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import h5py
import numpy as np
import pytest
from av.stream import Disposition
from PIL import Image
from samples import encode, noise, numbered, shown, write

import data
import pictures
from recordings.clock import Clock
from recordings.film import Film
from recordings.film import noticed as noticed_of
from recordings.video import drop_stills, find_cuts, import_video, resize_by_area


def starts(path):
    with h5py.File(path) as f:
        return f['episode_starts'][:].tolist()


# -----------------------------------------------------------------------------
# time


def test_import_at_half_the_rate(tmp_path):
    video, h5 = encode(tmp_path / 'a.mp4', numbered(40), 30), str(tmp_path / 'sub' / 'a.h5')
    import_video(video, h5, 16, 16, fps=15)
    assert shown(h5) == [i % 30 for i in range(0, 40, 2)]
    ds = data.load(h5)
    assert ds.fps == 15 and ds.source == 'a.mp4' and ds.actions is None
    assert np.array_equal(ds.frames, numbered(40)[::2]), 'the same size must be the same pixels'
    import_video(video, h5, 16, 16)  # the video's own rate
    assert shown(h5) == [i % 30 for i in range(40)] and data.load(h5).fps == 30
    import_video(video, h5, 16, 16, fps=20, compression='lzf')
    assert shown(h5) == [int(k * 1.5 + 1e-6) % 30 for k in range(27)]
    with h5py.File(h5) as f:
        assert f['frames'].compression == 'lzf' and f['frames'].fletcher32
        assert f['frames'].chunks[1:] == (16, 16, 3)


@pytest.mark.parametrize('container, ticks', [('mp4', 15360), ('mkv', 1000)])
def test_import_of_a_variable_frame_rate(tmp_path, container, ticks):
    at = np.array([0, 1, 2, 3, 7, 8, 12, 13, 14, 15, 16, 17, 20]) / 60  # seconds
    times = np.round(at * ticks).astype(int).tolist()
    video = encode(tmp_path / f'a.{container}', numbered(13), 60, times, Fraction(1, ticks))
    h5 = str(tmp_path / 'a.h5')
    import_video(video, h5, 16, 16, fps=15)
    wanted = [int(np.flatnonzero(at <= k / 15 + 1e-6)[-1]) for k in range(6)]
    assert shown(h5)[:6] == wanted == [0, 3, 5, 6, 10, 12]


def test_import_of_a_gif(tmp_path):
    pictures.save_gif(tmp_path / 'a.gif', numbered(12), fps=10)
    import_video(str(tmp_path / 'a.gif'), str(tmp_path / 'a.h5'), 16, 16)
    got = data.load(tmp_path / 'a.h5')
    assert got.fps == pytest.approx(10)
    assert abs(got.frames.astype(int) - numbered(12)).max() <= 2


def test_time_is_measured_and_not_believed(tmp_path):
    """Each is 30 pictures, a thirtieth of a second apart; the dataset has them all, once."""
    i, h5 = np.arange(30), str(tmp_path / 'a.h5')
    millisecond = Fraction(1, 1000)
    stored = {
        'a browser, whose nominal rate is its clock': (i * 100 // 3, 1000, [0]),
        'timestamps twice each': (i // 2 * 2 * 100 // 3, 30, [0]),
        'pairs, the second moved by a tick': (i // 2 * 200 // 3 + i % 2, 30, [0]),
        'nothing for 5 s': (i * 100 // 3 + (i >= 10) * 5_000, 30, [0, 10]),
        'nothing for 11 s': (i * 100 // 3 + (i >= 10) * 11_000, 30, [0, 10]),
    }
    for what, (times, rate, begins) in stored.items():
        video = encode(tmp_path / 'a.mkv', numbered(30), rate, times.tolist(), millisecond)
        tally, _ = import_video(video, h5, 16, 16)
        assert tally['source'] == 30 and shown(h5) == list(range(30)), what
        assert data.load(h5).fps == pytest.approx(30, abs=0.02) and starts(h5) == begins, what
    for source_fps, fps, wanted in ((15, None, list(range(30))), (60, 15, list(range(0, 30, 4)))):
        import_video(video, h5, 16, 16, fps=fps, source_fps=source_fps)  # whatever is stored
        assert shown(h5) == wanted and data.load(h5).fps == 15


def test_films_joined_into_one_file(tmp_path):
    """The clock goes back where the second begins; so does an episode."""
    parts = [encode(tmp_path / f'{k}.ts', numbered(28), 30) for k in (0, 1)]
    joined, h5 = tmp_path / 'a.ts', str(tmp_path / 'a.h5')
    joined.write_bytes(b''.join(Path(part).read_bytes() for part in parts))
    import_video(str(joined), h5, 16, 16)
    assert shown(h5) == [*range(28)] * 2 and starts(h5) == [0, 28] and data.load(h5).fps == 30


def stream(ticks_a_second=1000, says=None, b_frames=0):
    return SimpleNamespace(time_base=Fraction(1, ticks_a_second), average_rate=says,
                           guessed_rate=None, base_rate=None,
                           codec_context=SimpleNamespace(has_b_frames=b_frames))


def shown_at(clock, timestamps):
    return [round(float(clock.next(pts)[0]), 3) for pts in timestamps]


def test_b_pictures_in_a_container_that_knows_only_how_they_are_stored():
    """avi numbers them in that order. As they are decoded, in that of showing: 1, 3, 4, 2."""
    clock = Clock(np.arange(1, 9), 1, stream(30, says=30, b_frames=2))
    assert shown_at(clock, [1, 3, 4, 2, 6, 7, 5, 8]) == [round(k / 30, 3) for k in range(8)]
    stored = np.array([0, 4, 2, 1, 3, 8, 6, 5, 7])  # any other container has the times of showing
    clock = Clock(stored, 1, stream(30, says=30, b_frames=2))
    assert shown_at(clock, range(9)) == [round(k / 30, 3) for k in range(9)]
    clock = Clock(stored, 1, stream(30, says=30, b_frames=2))  # some cannot be decoded
    assert shown_at(clock, [2, 3, 7, 8]) == [round(k / 30, 3) for k in range(4)]
    assert clock.lost == 2 + 3, 'and they take no time'


def test_rates_are_named_as_nearly_as_the_clock_allows():
    times = np.arange(90) * 1001 // 30
    assert Clock(times, 1, stream(says=Fraction(30000, 1001))).rate == 30000 / 1001
    assert Clock(times, 1, stream(says=1000)).rate == pytest.approx(29.97, abs=0.01)
    assert Clock(np.arange(90) * 100 // 3, 1, stream(says=1000)).rate == 30
    assert Clock(np.arange(9) * 5000, 1, stream(says=None)).rate == 0.2, 'no gap: slow'
    assert Clock(np.zeros(9, np.int64), 0, stream(says=None)).rate == 25, 'no timestamps'


def test_the_last_picture_lasts_no_longer_than_a_gap():
    """A recorder that forgot to stop: it stands for nine hours."""
    frames = [SimpleNamespace(pts=k * 100, duration=100, time_base=0.001, is_corrupt=False,
                              interlaced_frame=False) for k in range(9)]
    film = SimpleNamespace(decoded=lambda: frames, counts=Counter(), begins=[], starts=set(),
                           numbers=[])
    film.ticks_of = lambda frame: frame.pts
    for duration, end in ((9 * 3_600_000, 0.9), (300, 1.1), (1, 0.9)):
        frames[-1].duration = duration
        film.clock = Clock(np.arange(9) * 100, 1, stream())
        *_, last = Film.frames(film)
        assert last[0] == pytest.approx(end) and last[1] is None


def test_a_camera_says_how_it_was_held(tmp_path):
    for k, picture in enumerate(CORNERS):
        exif = Image.Exif()
        exif[0x112] = 6  # to be turned by 90 degrees
        Image.fromarray(picture).save(tmp_path / f'{k}.png')
        Image.fromarray(picture).save(tmp_path / f'{k}.jpg', quality=98, subsampling=0, exif=exif)
    upright = np.rot90(CORNERS[0], -1)
    import_video(str(tmp_path / '%d.jpg'), str(tmp_path / 'a.h5'), 32, 16, source_fps=10)
    assert np.abs(data.load(tmp_path / 'a.h5').frames[0].astype(int) - upright).mean() < 8


def test_a_folder_is_of_one_sequence(tmp_path):
    for k, picture in enumerate(numbered(12)):
        pictures.save_png(tmp_path / f'shot_{k}.png', picture)
    pictures.save_png(tmp_path / 'cover.png', numbered(1)[0] + 9)
    import_video(str(tmp_path), str(tmp_path / 'a.h5'), 16, 16, source_fps=10)
    assert shown(tmp_path / 'a.h5') == list(range(12))
    pictures.save_png(tmp_path / 'other_1.png', numbered(1)[0])
    with pytest.raises(data.DataError, match='2 sequences of pictures.*\n.*\n.*shot_%d.png'):
        import_video(str(tmp_path), str(tmp_path / 'a.h5'), 16, 16, source_fps=10)


def test_pictures_are_a_source_of_a_stated_rate(tmp_path):
    for k, picture in enumerate(numbered(12)):
        pictures.save_png(tmp_path / f'shot_{k}.png', picture)
        (tmp_path / f'._shot_{k}.png').write_bytes(b'what a Mac stores beside each')
    h5 = str(tmp_path / 'a.h5')
    for source in (tmp_path, tmp_path / 'shot_%d.png'):
        import_video(str(source), h5, 16, 16, source_fps=10)
        assert shown(h5) == list(range(12)) and data.load(h5).fps == 10, '10 comes after 9'
    for source, words in ((tmp_path, 'source_fps=15'), (tmp_path / 'x_%d.png', 'found 0 pictures')):
        with pytest.raises(data.DataError, match=words):
            import_video(str(source), h5, 16, 16)


def test_what_cannot_be_loaded_replaces_nothing(tmp_path):
    """Names that do not suffice are found before anything is decoded, a rate of 90,000 too."""
    h5 = tmp_path / 'a.h5'
    h5.write_bytes(b'a good one')
    np.savez(tmp_path / 'few.npz', actions=np.arange(30) % 4, action_names=['noop', 'left'])
    good = encode(tmp_path / 'a.mkv', numbered(30), 30)
    with pytest.raises(data.DataError, match='2 action_names'):
        import_video(str(tmp_path / 'never opened'), h5, 16, 16, labels=tmp_path / 'few.npz')
    fast = encode(tmp_path / 'b.mp4', numbered(30), 90_000, range(30), Fraction(1, 90_000))
    with pytest.raises(data.DataError, match='90,000 pictures a second'):
        import_video(fast, h5, 16, 16)
    with pytest.raises(data.DataError, match='fps = 20000') as e:  # which loading the file finds
        import_video(good, h5, 16, 16, fps=20_000.0)
    assert '.tmp' not in str(e.value)
    assert h5.read_bytes() == b'a good one' and not list(tmp_path.glob('*.tmp*'))


# -----------------------------------------------------------------------------
# what a player of videos would show


def film(path, frames, fmt='yuv444p', codec='libx264', prepare=lambda stream: None, **tags):
    """A video whose colours are stored as YUV."""
    with av.open(str(path), 'w') as out:
        stream = out.add_stream(codec, rate=10)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], fmt
        stream.options = {'crf': '0', 'preset': 'ultrafast'} if codec == 'libx264' else {}
        prepare(stream)
        for x in frames:
            frame = av.VideoFrame.from_ndarray(x, format='rgb24')
            out.mux(stream.encode(frame.reformat(format=fmt, **tags)))
        out.mux(stream.encode())
    return str(path)


CORNERS = np.zeros((4, 32, 16, 3), np.uint8)  # red, green, blue and grey
CORNERS[:, :16, :8, 0], CORNERS[:, :16, 8:, 1] = 200, 200
CORNERS[:, 16:, :8, 2], CORNERS[:, 16:, 8:] = 200, 120
CORNERS[:, :, 4] = np.arange(4)[:, None, None] * 60  # no still


@pytest.mark.parametrize('matrix, by_hand', [
    ((0, 1, -1, 0), lambda x: np.rot90(x, -1)),  # a phone held upright
    ((0, -1, 1, 0), np.rot90),
    ((-1, 0, 0, -1), lambda x: np.rot90(x, 2)),
    ((-1, 0, 0, 1), np.fliplr),  # a selfie
    ((0, 1, 1, 0), lambda x: x.swapaxes(0, 1)),
])
def test_pictures_are_turned_as_they_are_marked(tmp_path, matrix, by_hand):
    a, b, c, d = matrix

    def mark(stream):
        stream.set_display_matrix([a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30])

    turned = by_hand(CORNERS[0])
    path = film(tmp_path / 'a.mp4', CORNERS, prepare=mark)
    height, width = turned.shape[:2]
    _, noticed = import_video(path, str(tmp_path / 'a.h5'), width, height)
    got = data.load(tmp_path / 'a.h5').frames[0]
    assert np.abs(got.astype(int) - turned).max() <= 3
    assert noticed == ['4 pictures turned, as marked']


def test_transparent_pixels_are_black(tmp_path):
    for k in range(3):
        pixels = np.full((16, 16, 4), 200, np.uint8)
        pixels[:8, :, 3] = 0
        pixels[8:, k:, 3] = 128
        Image.fromarray(pixels, 'RGBA').save(tmp_path / f'{k}.png')
    _, noticed = import_video(str(tmp_path), str(tmp_path / 'a.h5'), 16, 16, source_fps=10)
    got = data.load(tmp_path / 'a.h5').frames
    assert (got[:, :8] == 0).all() and abs(got[0, 8:].astype(int) - 100).max() <= 1
    assert noticed == ['3 pictures transparent: shown on black']


@pytest.mark.parametrize('height, space', [(736, 'ITU709'), (64, 'ITU601')])
def test_colours_without_a_tag_are_those_of_their_size(tmp_path, height, space):
    frames = np.repeat(np.repeat(CORNERS, height // 32, 1), height // 32, 2)
    path = film(tmp_path / 'a.mkv', frames, dst_colorspace=space)
    import_video(path, str(tmp_path / 'a.h5'), 16, 32)
    assert np.abs(data.load(tmp_path / 'a.h5').frames.astype(int) - CORNERS).max() <= 3


def test_hdr_is_said(tmp_path):
    def mark(stream):
        stream.options = {'crf': '0', 'x264-params': 'transfer=smpte2084:colormatrix=bt2020nc'}

    path = film(tmp_path / 'a.mkv', CORNERS, 'yuv420p10le', prepare=mark)
    _, noticed = import_video(path, str(tmp_path / 'a.h5'), 16, 32)
    assert len(noticed) == 1 and noticed[0].startswith('4 pictures HDR, and too dark here')


def test_of_several_streams_the_one_that_a_player_would_show(tmp_path):
    path = str(tmp_path / 'two.mkv')
    with av.open(path, 'w') as out:
        streams = [out.add_stream('ffv1', rate=10) for _ in range(2)]
        for k, stream in enumerate(streams):
            stream.height, stream.width, stream.pix_fmt = 32, 16, 'bgr0'
            stream.disposition = Disposition.default if k else Disposition(0)
        for x in CORNERS:
            for k, stream in enumerate(streams):
                frame = av.VideoFrame.from_ndarray(x // (2 - k), format='rgb24')
                out.mux(stream.encode(frame.reformat(format='bgr0')))
        for stream in streams:
            out.mux(stream.encode())
    for number, wanted in ((None, CORNERS), (0, CORNERS // 2), (1, CORNERS)):
        _, noticed = import_video(path, str(tmp_path / 'a.h5'), 16, 32, stream=number)
        assert np.array_equal(data.load(tmp_path / 'a.h5').frames, wanted)
        assert len(noticed) == 1 and f'streams: {int(number == 1 or number is None) ^ 1} (' \
            in noticed[0]
    with pytest.raises(data.DataError, match='2 video streams'):
        import_video(path, str(tmp_path / 'a.h5'), 16, 32, stream=2)


def test_half_a_download_is_what_it_holds_and_said(tmp_path):
    whole = Path(encode(tmp_path / 'a.mp4', scene(1, 90), 15, faststart=True))
    half = tmp_path / 'half.mp4'
    half.write_bytes(whole.read_bytes()[:whole.stat().st_size // 2])
    tally, noticed = import_video(str(half), str(tmp_path / 'a.h5'))
    assert 2 < tally['source'] < 80
    assert 'pictures of 90 that the file declares' in noticed[0]
    mkv = Path(encode(tmp_path / 'a.mkv', scene(1, 90), 15))
    mkv.write_bytes(mkv.read_bytes()[:mkv.stat().st_size // 2])
    _, noticed = import_video(str(mkv), str(tmp_path / 'a.h5'))
    assert 'seconds that the file declares are missing' in noticed[0]
    late = tmp_path / 'noindex.mp4'
    late.write_bytes(Path(encode(tmp_path / 'b.mp4', scene(1, 90), 15)).read_bytes()[:-3000])
    with pytest.raises(data.DataError, match='moov atom not found.*\n.*\n.*index'):
        import_video(str(late), str(tmp_path / 'a.h5'))


def test_interlaced_pictures_are_deinterlaced(tmp_path):
    """Every second row is of a moment later: combs at the sides of what moves."""
    def combed(frames):
        x = frames[2:-2].astype(int)
        return np.abs(x[:, 2:-2:2] + x[:, 4::2] - 2 * x[:, 3:-1:2]).mean()

    frames = np.zeros((12, 64, 64, 3), np.uint8)
    for k, x in enumerate(frames):
        x[0::2, 4 * k:4 * k + 8], x[1::2, 4 * k + 4:4 * k + 12] = 200, 200
        x[:, :2] = 90

    def interlace(stream):
        stream.options = {'flags': '+ilme+ildct', 'qscale': '1'}
        stream.bit_rate = 8_000_000

    path = film(tmp_path / 'a.mpg', frames, 'yuv420p', 'mpeg2video', interlace)
    tally, noticed = import_video(path, str(tmp_path / 'a.h5'), 64, 64)
    got = data.load(tmp_path / 'a.h5').frames
    assert tally['source'] == tally['interlaced'] == len(got) == 12
    assert noticed == ['12 pictures interlaced: deinterlaced']
    assert combed(got) < combed(frames) / 3


def test_interlaced_pictures_keep_their_times(tmp_path):
    """The filter counts time in halves of what the container does."""
    def interlace(stream):
        stream.options = {'qp': '4', 'preset': 'ultrafast', 'x264-params': 'tff=1'}

    path = film(tmp_path / 'a.mp4', scene(1, 40, 64, 64), 'yuv420p', prepare=interlace)
    tally, _ = import_video(path, str(tmp_path / 'a.h5'), 64, 64)
    assert tally['interlaced'] == len(data.load(tmp_path / 'a.h5').frames) == 40


def test_pictures_that_are_lost_leave_no_frozen_one(tmp_path):
    """Neither in the middle, where another episode begins, nor before the first key picture."""
    h5, gops = str(tmp_path / 'a.h5'), tmp_path / 'gops.mp4'
    with av.open(str(gops), 'w') as out:
        stream = out.add_stream('libx264rgb', rate=15)
        stream.height, stream.width, stream.pix_fmt, stream.gop_size = 16, 16, 'rgb24', 20
        stream.options = {'crf': '0', 'preset': 'ultrafast', 'sc_threshold': '0'}
        for x in numbered(60):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(x, format='rgb24')))
        out.mux(stream.encode())
    with av.open(str(gops)) as container:
        places = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    whole = gops.read_bytes()
    for lost, kept in ((range(25, 40), [*range(25), *range(40, 60)]),
                       (range(0, 20), range(20, 60))):
        broken = bytearray(whole)
        for k in lost:
            a, n = places[k]
            broken[a:a + n] = b'\xff' * n
        (tmp_path / 'b.mp4').write_bytes(broken)
        np.savez(tmp_path / 'b.npz', actions=np.arange(60))
        _, noticed = import_video(str(tmp_path / 'b.mp4'), h5, 16, 16, labels='beside')
        assert shown(h5) == [k % 30 for k in kept], 'each once'
        assert data.load(h5).actions.tolist() == [*kept], 'and its own label'
        assert starts(h5)[:2] == ([0, 25] if lost[0] else [0, 10]), '10 is a cut'
        assert any(f'{len(lost)} pictures that cannot be decoded' in x for x in noticed), noticed


@pytest.mark.parametrize('name, content, words', [
    ('a.mp4', b'version https://git-lfs.github.com/spec/v1\noid sha256:0\n', 'git lfs pull'),
    ('a.mp4', b'\n<!DOCTYPE html><html><title>Video</title>', 'not the page about it'),
    ('._a.mp4', b'\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X', 'without "._"'),
    ('a.mp4', b'hello', 'no kind of video'),
    ('a.mp4', b'ffconcat version 1.0\nfile b.mp4\n', 'a list of other files'),
    ('a.mp4', b'', 'empty file')])
def test_what_has_the_name_of_a_video_and_is_none(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(data.DataError, match=words) as e:
        import_video(str(tmp_path / name), str(tmp_path / 'a.h5'))
    assert str(e.value).count('\n') == 2


def test_an_animated_webp_is_named_with_a_cure_that_works(tmp_path):
    first, *others = map(Image.fromarray, numbered(12))
    first.save(tmp_path / 'a.webp', save_all=True, append_images=others, duration=100)
    with pytest.raises(data.DataError, match='animated webp') as e:
        import_video(str(tmp_path / 'a.webp'), str(tmp_path / 'a.h5'), 16, 16)
    assert "Image.open('IN.webp').save('OUT.gif', save_all=True)" in str(e.value)
    Image.open(tmp_path / 'a.webp').save(tmp_path / 'a.gif', save_all=True)
    import_video(str(tmp_path / 'a.gif'), str(tmp_path / 'a.h5'), 16, 16)
    assert len(data.load(tmp_path / 'a.h5').frames) == 12


def test_a_recorder_that_still_runs(tmp_path):
    path = tmp_path / 'a.ts'
    encode(path, numbered(28), 30)
    film = Film(str(path))
    frames = list(film.frames())
    assert len(frames) == 29 and not any('grew' in sentence for sentence in noticed_of(film))
    film = Film(str(path))
    path.write_bytes(path.read_bytes() * 2)
    list(film.frames())
    assert 'the file grew while it was read' in noticed_of(film)[0]


@pytest.mark.parametrize('name', ['Hero: the quest.mp4', b'\x96\x60\x8c\xaf.mp4'])
def test_any_name_is_a_file(tmp_path, name):
    path = os.path.join(tmp_path, os.fsdecode(name))
    os.rename(encode(tmp_path / 'a.mp4', numbered(20), 10), path)
    import_video(path, str(tmp_path / 'a.h5'), 16, 16)
    assert shown(tmp_path / 'a.h5') == list(range(20))
    assert data.load(tmp_path / 'a.h5').source.isprintable()


def test_several_films_are_one_dataset(tmp_path):
    """Each with episodes of its own, and with labels beside each or in one file for all."""
    h5 = str(tmp_path / 'a.h5')
    films = [encode(tmp_path / name, numbered(n), 30) for name, n in (('a.mp4', 20), ('b.mkv', 26))]
    np.savez(tmp_path / 'a.npz', actions=np.arange(20) % 5)
    np.savez(tmp_path / 'b.npz', actions=np.arange(26) % 3)
    np.savez(tmp_path / 'all.npz', actions=np.r_[np.arange(20) % 5, np.arange(26) % 3])
    for labels in ('beside', str(tmp_path / 'all.npz')):
        tally, _ = import_video(films, h5, 16, 16, labels=labels)
        ds = data.load(h5)
        assert shown(h5) == [*range(20), *range(26)] and starts(h5) == [0, 20]
        assert tally['source'] == 46 and ds.source == 'a.mp4 and 1 more'
        assert ds.actions.tolist() == [*np.arange(20) % 5, *np.arange(26) % 3]
    np.savez(tmp_path / 'b.npz', actions=np.arange(26) % 3, episode_starts=[0, 6])
    with pytest.raises(data.DataError, match='b.npz: found actions, episode_starts'):
        import_video(films, h5, 16, 16, labels='beside')
    np.savez(tmp_path / 'a.npz', actions=np.arange(20) % 5, episode_starts=[0, 10])
    import_video(films, h5, 16, 16, fps=15, labels='beside')
    assert shown(h5) == [*range(0, 20, 2), *range(0, 26, 2)] and starts(h5) == [0, 5, 10, 13]
    np.savez(tmp_path / 'b.npz', actions=np.arange(25) % 3, episode_starts=[0, 6])
    np.savez(tmp_path / 'a.npz', actions=np.arange(21) % 5, episode_starts=[0, 10])
    with pytest.raises(data.DataError, match='a.npz: found 21 actions for 20 frames'):
        import_video(films, h5, 16, 16, labels='beside')
    assert starts(h5) == [0, 5, 10, 13], 'the old file stands'
    buttons = np.array([[0, 0], [1, 1], [0, 1]])
    np.savez(tmp_path / 'a.npz', actions=buttons[[0, 1] * 10])
    np.savez(tmp_path / 'b.npz', actions=buttons[[1, 2] * 13])
    import_video(films, h5, 16, 16, labels='beside')
    assert data.load(h5).actions.tolist() == [0, 2] * 10 + [2, 1] * 13, 'one number, one meaning'


def test_a_broken_video_is_refused(tmp_path):
    video = Path(encode(tmp_path / 'a.mkv', scene(1, 90), 15))
    content = video.read_bytes()
    video.write_bytes(content[:300])
    with pytest.raises(data.DataError) as e:
        import_video(str(video), str(tmp_path / 'a.h5'))
    assert str(e.value).count('\n') == 2 and not (tmp_path / 'a.h5').exists()
    with pytest.raises(data.DataError, match='cannot open'):
        import_video(str(tmp_path / 'none.mp4'), str(tmp_path / 'a.h5'))


# -----------------------------------------------------------------------------
# size


def exact(picture, box, w, h):
    """Area average by brute force: each pixel of the result from a fine grid of samples."""
    x0, y0, x1, y1 = box
    fine = 60  # divides all the ratios below into whole samples, so this is exact
    xs = (x0 + (np.arange(w * fine) + 0.5) / fine * (x1 - x0) / w).astype(int)
    ys = (y0 + (np.arange(h * fine) + 0.5) / fine * (y1 - y0) / h).astype(int)
    return picture[ys][:, xs].reshape(h, fine, w, fine, 3).mean((1, 3))


def test_crop_pad_and_area_averaging():
    picture = noise(1, 60, 96)[0]
    halved = np.floor(picture.reshape(30, 2, 48, 2, 3).mean((1, 3)) + 0.5)
    assert np.array_equal(resize_by_area(picture, 48, 30, False), halved)
    assert np.array_equal(resize_by_area(picture, 96, 60, False), picture)

    square = resize_by_area(picture, 16, 16, False)
    wanted = exact(picture, (18, 0, 78, 60), 16, 16)
    assert np.abs(square - wanted).max() < 0.51, 'crops left and right'
    flat = resize_by_area(picture, 32, 16, False)
    wanted = exact(picture, (0, 6, 96, 54), 32, 16)
    assert np.abs(flat - wanted).max() < 0.51, 'crops top and bottom'

    padded = resize_by_area(picture, 32, 32, True)
    assert padded[:6].max() == 0 and padded[26:].max() == 0
    assert np.abs(padded[6:26] - exact(picture, (0, 0, 96, 60), 32, 20)).max() < 0.51

    # shown 192 x 60, it fills 96 x 30
    wide = resize_by_area(picture, 96, 30, True, pixel_aspect=2.0)
    assert wide.min(2).max(1).min() > 0
    assert np.array_equal(wide, np.floor(picture.reshape(30, 2, 96, 3).mean(1) + 0.5))

    doubled = picture[:8, :8].repeat(2, 0).repeat(2, 1)
    assert np.array_equal(resize_by_area(picture[:8, :8], 16, 16, False), doubled)


def game_in_a_window(n, wide=96, high=64):
    """A game of 48x32 at (20,16) of a desktop that never moves but for its clock."""
    desktop = np.repeat(noise(1, high, wide), n, 0)
    desktop[:, 16:48, 20:68] = scene(1, n, 32, 48)
    desktop[:, 60:62, 90:94] = np.arange(n)[:, None, None, None] % 2 * 200
    return desktop


def test_what_never_moves_around_the_game_is_a_hint(tmp_path):
    video, h5 = encode(tmp_path / 'a.mp4', game_in_a_window(60), 15), str(tmp_path / 'a.h5')
    _, noticed = import_video(video, h5, 48, 32)
    assert len(noticed) == 1 and '--crop=20,16,48,32 takes' in noticed[0]
    _, noticed = import_video(video, h5, 48, 32, crop=(20, 16, 48, 32))
    assert not noticed and np.array_equal(data.load(h5).frames, scene(1, 60, 32, 48))
    with pytest.raises(data.DataError, match='found pictures of 96x64.*\n.*--crop=60,0,48,32'):
        import_video(video, h5, 48, 32, crop=(60, 0, 48, 32))
    assert np.array_equal(data.load(h5).frames, scene(1, 60, 32, 48)), 'the old file stands'
    bars = np.zeros((60, 48, 32, 3), np.uint8)
    bars[:, 8:40] = scene(1, 60, 32, 32)
    _, noticed = import_video(encode(tmp_path / 'b.mp4', bars, 15), h5, 32, 32)
    assert '--crop=0,8,32,32' in noticed[0]
    _, noticed = import_video(encode(tmp_path / 'c.mp4', scene(1, 60), 15), h5, 32, 32)
    assert not noticed


def test_a_crop_is_of_pictures_of_any_size(tmp_path):
    for k, size in enumerate((32, 64, 32)):
        picture = np.zeros((size, size, 3), np.uint8)
        picture[size // 4:size // 2, size // 2:] = 200, 60 * k, 0
        pictures.save_png(tmp_path / f'{k}.png', picture)
    import_video(str(tmp_path), str(tmp_path / 'a.h5'), 16, 8, source_fps=10, crop=(16, 8, 16, 8))
    assert (data.load(tmp_path / 'a.h5').frames[..., 0] == 200).all()


@pytest.mark.parametrize('reordered', [0, 2])
def test_pixels_become_wider_midway(tmp_path, reordered):
    """64x32 pixels, square ones and then of twice the width: the middle half is then shown."""
    ramp = np.repeat(np.arange(40, 232, 3, np.uint8)[None, :, None], 32, 0).repeat(3, 2)
    frames = np.repeat(ramp[None], 20, 0)
    frames[:, :4] = np.arange(20)[:, None, None, None] * 12  # no still
    for k, aspect in enumerate((1, 2)):
        def widen(stream, aspect=aspect):
            stream.codec_context.sample_aspect_ratio = Fraction(aspect)
            stream.options = {'crf': '1', 'bf': str(reordered)}
        film(tmp_path / f'{k}.ts', frames, 'yuv420p', prepare=widen)
    joined = tmp_path / 'a.ts'
    joined.write_bytes(b''.join((tmp_path / f'{k}.ts').read_bytes() for k in range(2)))
    import_video(str(joined), str(tmp_path / 'a.h5'), 32, 16)
    row = data.load(tmp_path / 'a.h5').frames[:, 8, :, 0].astype(int)
    assert len(row) == 40
    for k, x in enumerate(row):
        wanted = ramp[0, :, 0].reshape(32, 2).mean(1) if k < 20 else ramp[0, 16:48, 0]
        assert np.abs(x - wanted).max() <= 4, k


# -----------------------------------------------------------------------------
# cuts and stills


def scene(seed, n, h=32, w=32):
    """Tiles of a few colours, scrolling one pixel a frame: all pixels change, the colours stay."""
    rng = np.random.default_rng(seed)
    tiles = rng.choice([30, 90, 160, 230], (16, 40, 3), p=rng.dirichlet(np.ones(4)))
    world = tiles.astype(np.uint8).repeat(4, 0).repeat(4, 1)
    return np.stack([world[:h, i:i + w] for i in range(n)])


def test_cuts_are_found_and_scrolling_is_none(tmp_path):
    frames = np.concatenate([scene(1, 60), scene(2, 50), scene(3, 70)])
    video = encode(tmp_path / 'a.mp4', frames, 15)
    import_video(video, str(tmp_path / 'a.h5'), 32, 32)
    assert starts(tmp_path / 'a.h5') == [0, 60, 110]
    import_video(video, str(tmp_path / 'a.h5'), 16, 16)
    assert starts(tmp_path / 'a.h5') == [0, 60, 110]


@pytest.mark.parametrize('change, shift, cuts', [(36, 0.14, [30]), (29, 0.06, []), (2, 0.9, [])])
def test_cut_or_not_by_measured_values(change, shift, cuts):
    """The weakest true cut and the strongest change that is none of a real scrolling recording,
    amid its usual level."""
    changes, shifts = np.full(60, 15.0), np.full(60, 0.017)
    changes[30], shifts[30] = change, shift
    assert np.flatnonzero(find_cuts(changes, shifts)).tolist() == cuts


def test_blank_and_still_stretches(tmp_path):
    play = scene(1, 90)
    still = np.repeat(play[59:60], 40, 0)  # 40 frames at 15 fps: longer than 2 s
    short = np.repeat(play[29:30], 20, 0)
    black = np.zeros((35, 32, 32, 3), np.uint8)
    before = [play[:30], short, play[30:60]]
    after = [play[:20], black[:5], play[20:40]]
    frames = np.concatenate([*before, still, play[60:], black, *after])
    tally, _ = import_video(encode(tmp_path / 'a.mp4', frames, 15), str(tmp_path / 'a.h5'), 32, 32)
    assert tally == Counter(source=len(frames), still=40, blank=35)
    kept = np.concatenate([*before, play[60:], *after])
    with h5py.File(tmp_path / 'a.h5') as f:
        assert np.array_equal(f['frames'], kept)
    found = set(starts(tmp_path / 'a.h5')) - {130}
    assert found == {0, 110, 135}, 'after black, after a short black; not after still'
    tally, _ = import_video(str(tmp_path / 'a.mp4'), str(tmp_path / 'a.h5'), 32, 32,
                            keep_still=True)
    with h5py.File(tmp_path / 'a.h5') as f:
        assert tally == Counter(source=len(frames)) and np.array_equal(f['frames'], frames)
    assert {0, 185, 210} <= set(starts(tmp_path / 'a.h5'))


def test_another_scene_after_a_still_is_another_episode(tmp_path):
    frames = np.concatenate([scene(1, 30), np.repeat(scene(1, 30)[29:], 50, 0), scene(2, 30)])
    import_video(encode(tmp_path / 'a.mp4', frames, 15), str(tmp_path / 'a.h5'), 32, 32)
    assert len(shown(tmp_path / 'a.h5')) == 60 and starts(tmp_path / 'a.h5') == [0, 30]


def turns(n, each=45, size=32):
    """A board on which something moves after every `each` pictures."""
    board = np.full((n, size, size, 3), 150, np.uint8)
    for k, picture in enumerate(board):
        at = 4 * (k // each * 3 % 8)
        picture[at:at + 4, 8:12] = 20
    return board


def night(n):
    world = np.random.default_rng(0).integers(2, 15, (4, 40, 1)).astype(np.uint8)
    world = world.repeat(8, 0).repeat(8, 1).repeat(3, 2)
    return np.stack([world[:, k:k + 32] for k in range(n)])


def stealth(n):
    frames = np.repeat(turns(1), n, 0)
    for k, picture in enumerate(frames):
        at = int(12 + 10 * np.sin(k / 9))
        picture[at:at + 5, 20:25] += 9
    return frames


def test_games_in_which_little_happens(tmp_path):
    """Dark ones and faint heroes are play; waiting is a choice, and one scene stays one episode."""
    h5 = str(tmp_path / 'a.h5')
    for frames in (night(90), stealth(90)):
        tally, _ = import_video(encode(tmp_path / 'a.mp4', frames, 15), h5, 32, 32)
        assert tally == Counter(source=90) and starts(h5) == [0]
    video = encode(tmp_path / 'b.mp4', turns(45 * 8), 15)
    tally, noticed = import_video(video, h5, 32, 32)
    assert np.array_equal(data.load(h5).frames, turns(45 * 8)[::45]) and starts(h5) == [0]
    assert noticed == ['352 of 360 frames were dropped. Where waiting is part of the game: '
                       '--keep_still=True']
    tally, noticed = import_video(video, h5, 32, 32, keep_still=True)
    assert tally == Counter(source=360) and not noticed and starts(h5) == [0]
    with pytest.raises(data.DataError, match='1 frames of play: 44 stood still.*0 are of one.*\n'
                       '.*\n.*keep_still=True'):
        import_video(encode(tmp_path / 'c.mp4', turns(45), 15), h5, 32, 32)
    menu = encode(tmp_path / 'd.mp4', np.concatenate([turns(45), turns(90, each=3)[45:]]), 15)
    with pytest.raises(data.DataError, match='frames sampled are one and the same'):
        import_video(menu, h5, 32, 32, keep_still=True)
    assert len(data.load(h5).frames) == 360, 'the old file stands'


def test_what_a_noisy_camera_sees_stands_still(tmp_path):
    """In noise of up to 15 levels; the same threshold would swallow the faint hero."""
    rng = np.random.default_rng(0)
    frames = np.concatenate([scene(1, 30), np.repeat(scene(1, 30)[29:], 60, 0), scene(1, 60)[30:]])
    frames = np.clip(frames + rng.uniform(-7, 7, frames.shape), 0, 255).astype(np.uint8)
    tally, _ = import_video(encode(tmp_path / 'a.mp4', frames, 15), str(tmp_path / 'a.h5'), 32, 32)
    assert tally == Counter(source=120, still=60)


def test_an_episode_starts_after_black_even_if_it_fades_in():
    play, black = scene(1, 4), np.zeros((1, 32, 32, 3), np.uint8)
    frames = np.concatenate([play, black, (play * 0.2).astype(np.uint8), play])
    got = list(drop_stills(enumerate(frames), 30, Counter()))
    assert [i for i, _, _ in got] == list(range(13)) and [i for i, _, cut in got if cut] == [5]


# -----------------------------------------------------------------------------
# a dataset as a source, and what is told of it


def card(path, capsys):
    data.check(path)
    said = capsys.readouterr().out.splitlines()
    return [line.removeprefix('noticed     ') for line in said if line.startswith('noticed')]


def test_a_file_of_only_frames_is_offered_its_cuts(tmp_path, capsys):
    frames = np.concatenate([scene(1, 60), scene(2, 50), scene(3, 70)])
    bare, h5 = write(tmp_path / 'bare.h5', frames), str(tmp_path / 'a.h5')
    said, = card(bare, capsys)
    assert 'another scene begins at once 2 times' in said and f'video {bare} NEW.h5' in said
    with pytest.raises(data.DataError, match='180 pictures, which have no rate'):
        import_video(bare, h5, 32, 32)
    import_video(bare, h5, 32, 32, source_fps=15)
    ds = data.load(h5)
    assert np.array_equal(ds.frames, frames) and ds.episode_starts.tolist() == [0, 60, 110]
    assert ds.fps == 15 and ds.actions is None and not card(h5, capsys)
    assert not card(write(tmp_path / 'one.h5', scene(1, 60)), capsys)


def test_a_dataset_keeps_its_actions_when_it_is_made_smaller(tmp_path):
    with h5py.File(write(tmp_path / 'a.h5', scene(1, 60), actions=np.arange(60) % 4), 'a') as f:
        f.attrs.update(fps=10, action_names=['noop', 'up', 'down', 'jump'])
    h5 = str(tmp_path / 'b.h5')
    import_video(str(tmp_path / 'a.h5'), h5, 16, 16)
    ds = data.load(h5)
    assert ds.actions.tolist() == (np.arange(60) % 4).tolist() and ds.action_names[3] == 'jump'
    assert ds.fps == 10 and ds.frames.shape == (60, 16, 16, 3)
    marked = write(tmp_path / 'd.h5', scene(1, 60), episode_starts=np.array([0, 7, 30]))
    import_video(marked, h5, 16, 16, source_fps=10)
    assert starts(h5) == [0, 7, 30], 'it knows its episodes'
    with pytest.raises(data.DataError, match='actions, which other sources lack'):
        import_video([str(tmp_path / 'a.h5'), write(tmp_path / 'c.h5', scene(1, 60))], h5, 16, 16)


def test_what_an_import_noticed_stays_on_the_card(tmp_path, capsys):
    h5 = str(tmp_path / 'a.h5')
    _, noticed = import_video(encode(tmp_path / 'b.mp4', turns(45 * 8), 15), h5, 32, 32)
    assert card(h5, capsys) == noticed and '352 of 360' in noticed[0]
    with h5py.File(h5, 'a') as f:
        f.attrs['noticed'] = ['a\x1b[31m']  # from a stranger's file
    assert card(h5, capsys) == ['a\N{REPLACEMENT CHARACTER}[31m']
