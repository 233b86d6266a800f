"""Small recordings, files and videos to read, import and draw. Tests import from here."""
from fractions import Fraction

import av
import h5py
import numpy as np

RNG = np.random.default_rng(0)


def noise(n=40, h=16, w=16):
    return RNG.integers(0, 256, (n, h, w, 3), np.uint8)


def write(path, frames, compression=None, **more):
    with h5py.File(path, 'w') as f:
        f.create_dataset('frames', data=frames, compression=compression)
        for key, value in more.items():
            f[key] = value
    return str(path)


def numbered(n, h=16, w=16):
    """Frame i shows i in its left part, in steps of 8 levels. The rest is green, not blank."""
    x = np.zeros((n, h, w, 3), np.uint8)
    x[:, :, w // 2:, 1] = 200
    x[:, :, :w // 2] = (np.arange(n) % 30 * 8).astype(np.uint8)[:, None, None, None]
    return x


def shown(path):
    """Which numbered() frames the dataset shows (mod 30)."""
    with h5py.File(path) as f:
        return np.round(f['frames'][:, 0, 0, 0] / 8).astype(int).tolist()


def encode(path, frames, fps=30, times=None, tick=None, faststart=False):
    """A lossless video. times: when each frame is shown, in units of `tick` seconds. faststart: an
    mp4 whose index stands in front."""
    tick = tick or Fraction(1, fps)
    if times is None:
        times = range(len(frames))
    with av.open(str(path), 'w', options={'movflags': 'faststart'} if faststart else {}) as out:
        stream = out.add_stream('libx264rgb', rate=Fraction(fps))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = 'rgb24'
        stream.options = {'crf': '0', 'preset': 'ultrafast'}
        stream.codec_context.time_base = tick
        for time, x in zip(times, frames):
            frame = av.VideoFrame.from_ndarray(x, format='rgb24')
            frame.pts, frame.time_base = time, tick
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return str(path)
