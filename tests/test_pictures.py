"""Pictures show what they are given, and films take as long as they should."""
import av
import numpy as np
from PIL import Image
from samples import noise, numbered

import pictures


def test_grid_and_png(tmp_path):
    rows = [noise(4), noise(3)]
    image = pictures.grid(rows, pad=2)
    assert image.shape == (2 * 130 + 2, 4 * 130 + 2, 3) and image.dtype == np.uint8
    assert np.array_equal(image[2:130:8, 2:130:8], rows[0][0])
    assert np.array_equal(image[132:260:8, 262:390:8], rows[1][2])
    labelled = pictures.grid(rows, labels=['true', 'model'])
    margin = labelled.shape[1] - image.shape[1]
    assert margin > 20 and np.array_equal(labelled[:, margin:], image)
    assert labelled[:, :margin].min() < 128, 'no text'
    pictures.save_png(tmp_path / 'a.png', image)
    assert np.array_equal(np.array(Image.open(tmp_path / 'a.png')), image)
    assert [x.name for x in tmp_path.iterdir()] == ['a.png']


def test_gif(tmp_path):
    pictures.save_gif(tmp_path / 'a.gif', numbered(15), fps=15, scale=2)
    gif = Image.open(tmp_path / 'a.gif')
    assert gif.size == (32, 32) and gif.n_frames == 15
    total = 0
    for i in range(15):
        gif.seek(i)
        total += gif.info['duration']
    assert total == 1000, '15 frames at 15 fps are one second'


def test_mp4(tmp_path):
    pictures.save_mp4(tmp_path / 'a.mp4', numbered(20, 17, 17), fps=15, scale=3)
    with av.open(str(tmp_path / 'a.mp4')) as container:
        got = [x.to_ndarray(format='rgb24') for x in container.decode(video=0)]
        stream = container.streams.video[0]
        assert stream.average_rate == 15 and stream.pix_fmt == 'yuv420p'
    assert len(got) == 20 and got[0].shape == (50, 50, 3) and abs(int(got[9][5, 5, 0]) - 72) < 12
    assert [x.name for x in tmp_path.iterdir()] == ['a.mp4']
