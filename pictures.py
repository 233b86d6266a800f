"""Pictures: uint8 RGB numpy arrays, as grids, png, gif, mp4."""
import numpy as np
from PIL import Image, ImageDraw

from files import replacing


def to_uint8(x):
    """Tensor (...,C,H,W) in [-1,1] -> uint8 (...,H,W,C). The exact inverse of what clips does."""
    return ((x.detach().float().clamp(-1, 1) + 1) * 127.5).round().byte().movedim(-3, -1).cpu().numpy()


def enlarge(frames, scale):
    """(...,H,W,C) -> (...,H*scale,W*scale,C), every pixel a square."""
    return np.repeat(np.repeat(frames, scale, -3), scale, -2)


def grid(rows, pad=2, labels=None):
    """rows: a list of (T,H,W,3), of any T -> one picture, a row each, frames at least 128 pixels wide.
    labels: one short text per row, in a margin at the left."""
    h, w = rows[0].shape[1:3]
    scale = -(-128 // w)
    h, w = h * scale, w * scale
    margin = 8 + 7 * max(map(len, labels)) if labels else 0
    n = max(map(len, rows))
    image = np.full((len(rows) * (h + pad) + pad, margin + n * (w + pad) + pad, 3), 255, np.uint8)
    for r, row in enumerate(rows):
        y = pad + r * (h + pad)
        for t, frame in enumerate(row):
            x = margin + pad + t * (w + pad)
            image[y:y + h, x:x + w] = enlarge(frame, scale)
    if not labels:
        return image
    canvas = Image.fromarray(image)
    for r, text in enumerate(labels):
        ImageDraw.Draw(canvas).text((4, pad + r * (h + pad) + h // 2 - 6), text, fill=(0, 0, 0))
    return np.array(canvas)


def save_png(path, image):
    with replacing(str(path)) as tmp:
        Image.fromarray(image).save(tmp, format='png')


def save_gif(path, frames, fps=15, scale=1):
    """frames (T,H,W,3). A gif counts in 1/100 s, so frame times are rounded one by one and do not drift."""
    ticks = [round(100 * t / fps) for t in range(len(frames) + 1)]
    images = [Image.fromarray(enlarge(x, scale)) for x in frames]
    with replacing(str(path)) as tmp:
        images[0].save(tmp, format='gif', save_all=True, append_images=images[1:], loop=0,
                       duration=[10 * (b - a) for a, b in zip(ticks, ticks[1:])])


def save_mp4(path, frames, fps=15, scale=1):
    """frames (T,H,W,3). h264 where this PyAV has it; odd sizes lose a line, which yuv420p cannot hold."""
    import av
    from fractions import Fraction
    frames = enlarge(frames, scale)
    frames = frames[:, :frames.shape[1] // 2 * 2, :frames.shape[2] // 2 * 2]
    codec = 'libx264' if 'libx264' in av.codecs_available else 'mpeg4'
    with replacing(str(path)) as tmp, av.open(tmp, 'w', format='mp4') as out:
        stream = out.add_stream(codec, rate=Fraction(fps).limit_denominator(1000))
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], 'yuv420p'
        stream.options = {'crf': '18'} if codec == 'libx264' else {'qscale': '3'}
        for x in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(x), format='rgb24')))
        out.mux(stream.encode())
