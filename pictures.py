"""Pictures: uint8 RGB numpy arrays, as grids, png, gif, mp4."""
from fractions import Fraction

import numpy as np
from PIL import Image, ImageDraw

from files import replacing


def to_uint8(x):
    """Tensor (...,C,H,W) in [-1,1] -> uint8 (...,H,W,C). The exact inverse of data.clips."""
    x = (x.detach().float().clamp(-1, 1) + 1) * 127.5
    return x.round().byte().movedim(-3, -1).cpu().numpy()


def enlarge(frames, scale):
    """(...,H,W,C) -> (...,H*scale,W*scale,C), every pixel a square."""
    return np.repeat(np.repeat(frames, scale, -3), scale, -2)


def grid(rows, pad=2, labels=None):
    """rows: a list of (T,H,W,3), of any T -> one picture, a row each, frames at least 128 wide.
    labels: one short text per row, in a margin at the left."""
    h, w = rows[0].shape[1:3]
    scale = -(-128 // w)
    h, w = h * scale, w * scale
    margin = 8 + 7 * max(len(text) for text in labels) if labels else 0
    height = len(rows) * (h + pad) + pad
    width = margin + max(len(row) for row in rows) * (w + pad) + pad
    image = np.full((height, width, 3), 255, np.uint8)
    for r, row in enumerate(rows):
        y = pad + r * (h + pad)
        for t, frame in enumerate(row):
            x = margin + pad + t * (w + pad)
            image[y:y + h, x:x + w] = enlarge(frame, scale)
    if not labels:
        return image
    canvas = Image.fromarray(image)
    for r, text in enumerate(labels):
        middle = pad + r * (h + pad) + h // 2
        ImageDraw.Draw(canvas).text((4, middle - 6), text, fill=(0, 0, 0))
    return np.array(canvas)


def captioned(frame, lines, paths=(), width=192):
    """frame (H,W,3) enlarged to `width` or more, lines of text below it -> (H',W',3). paths: up to
    three of steps (K,2), right and down in [-1,1], drawn from its middle in white, red, yellow."""
    image = enlarge(frame, -(-width // frame.shape[1]))
    h, w = image.shape[:2]
    canvas = Image.new('RGB', (w + 4, h + 6 + 13 * len(lines)), (255, 255, 255))
    canvas.paste(Image.fromarray(image), (2, 2))
    draw = ImageDraw.Draw(canvas)
    for path, ink in zip(paths, ('white', 'red', 'yellow')):
        points = np.cumsum(np.concatenate([[[w / 2, h / 2]], np.asarray(path) * w / 16]), 0)
        draw.line([tuple(point) for point in points.tolist()], fill=ink, width=3)
    for i, text in enumerate(lines):
        draw.text((4, h + 4 + 13 * i), text, fill=(0, 0, 0))
    return np.array(canvas)


def save_png(path, image):
    """image (H,W,3)."""
    with replacing(path) as tmp:
        Image.fromarray(image).save(tmp, format='png')


def save_gif(path, frames, fps=15, scale=1):
    """frames (T,H,W,3). A gif counts in 1/100 s: the times of the frames are rounded, not their
    durations, so that errors do not add up."""
    ticks = [round(100 * t / fps) for t in range(len(frames) + 1)]
    durations = [10 * (b - a) for a, b in zip(ticks, ticks[1:])]  # ms
    first, *others = [Image.fromarray(enlarge(frame, scale)) for frame in frames]
    with replacing(path) as tmp:
        first.save(tmp, format='gif', save_all=True, append_images=others, loop=0,
                   duration=durations)


def save_mp4(path, frames, fps=15, scale=1):
    """frames (T,H,W,3). It is h264 where this PyAV has it. An odd size loses a line, which yuv420p
    cannot hold."""
    import av  # a second
    frames = enlarge(frames, scale)
    height, width = frames.shape[1] // 2 * 2, frames.shape[2] // 2 * 2
    codec, options = 'mpeg4', {'qscale': '3'}
    if 'libx264' in av.codecs_available:
        codec, options = 'libx264', {'crf': '18'}
    with replacing(path) as tmp, av.open(tmp, 'w', format='mp4') as out:
        stream = out.add_stream(codec, rate=Fraction(fps).limit_denominator(1000))
        stream.height, stream.width = height, width
        stream.pix_fmt = 'yuv420p'
        stream.options = options
        for frame in frames:
            frame = np.ascontiguousarray(frame[:height, :width])
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format='rgb24')))
        out.mux(stream.encode())
