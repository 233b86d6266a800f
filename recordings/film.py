"""
A film, a folder of pictures or a dataset, as the pictures that a player of videos would show:
upright, in their colours, of the right stream. What was done to them is counted, for the user is
told.
"""
import contextlib
import functools
import os
import re
from array import array
from collections import Counter
from fractions import Fraction

import numpy as np

from recordings.borders import Borders
from recordings.clock import GAP_SECONDS, MAX_RATE, Clock, packet_times
from recordings.h5file import check_frames, is_dataset, open_h5, plain_dataset, read, read_optional
from recordings.refusal import one_line, refuse

# av takes a second to import: the functions that need it import it

PICTURES = '.png', '.jpg', '.jpeg', '.bmp', '.webp', '.tif', '.tiff'
HD_HEIGHT = 720  # pixels from which untagged colours are those of BT.709, not of BT.601
UNTAGGED, BT709, PQ, HLG = 2, 1, 16, 18  # as H.273 numbers them

# what has the name of a video and is none: how it begins, what it is, what to do
IMPOSTORS = (
    (b'version https://git-lfs', 'a pointer of Git LFS in place of the file', 'git lfs pull'),
    (b'\0\x05\x16\x07', 'what a Mac stores beside a file of this name without "._"',
     'name the file itself'),
    (b'<!doctype html', 'a page of HTML', 'download the video itself, not the page about it'),
    (b'<html', 'a page of HTML', 'download the video itself, not the page about it'),
    (b'<?xml', 'XML', 'download the video itself, not what is written about it'),
    (b'#extm3u', 'a list of other files', 'name the files themselves'),
    (b'ffconcat', 'a list of other files', 'name the files themselves'))

# -----------------------------------------------------------------------------
# open


def expect_video(path):
    """Raises DataError for a file that is known not to be one."""
    try:
        with open(path, 'rb') as f:
            head = f.read(4096)
    except OSError:
        return  # av says why
    for begins, found, cure in IMPOSTORS:
        if head.lstrip(b'\xef\xbb\xbf \t\r\n').lower().startswith(begins):
            refuse(path, found, 'a video', cure)
    if not head:
        refuse(path, 'an empty file (0 bytes)', 'a video', 'copy it again')
    if head[:4] == b'RIFF' and head[8:12] == b'WEBP' and b'ANIM' in head:
        refuse(path, 'an animated webp, which FFmpeg does not decode', 'a video or a gif',
               'python -c "from PIL import Image; '
               "Image.open('IN.webp').save('OUT.gif', save_all=True)\"")


def is_mp4(path):
    with open(path, 'rb') as f:
        return f.read(8)[4:] in (b'ftyp', b'moov', b'mdat', b'free', b'skip', b'wide')


def open_container(path):
    """An open av container that has a video stream. Raises DataError."""
    import av
    source = path = str(path)
    if os.path.exists(path):  # then a colon in its name is not the end of a protocol
        expect_video(path)
        source = 'file:' + path
        if not path.isprintable():  # nor does av take bytes that are not UTF-8
            source = open(path, 'rb')
    before = av.logging.get_level()
    av.logging.set_level(av.logging.ERROR)
    with av.logging.Capture() as log:
        try:
            container = av.open(source)
        except (av.FFmpegError, OSError) as e:
            said = [message.strip() for _, _, message in log if message.strip()]
            why = one_line('; '.join(dict.fromkeys(said)) or e)
            cure = 'check the path, or ffmpeg -i IN OUT.mp4'
            if 'moov atom' in why and not is_mp4(path):
                why, cure = 'its head is of no kind of video', 'look at what was downloaded'
            if 'moov atom' in why:
                cure = ('its index, which is written last, is missing: copy it again, let the '
                        'recorder end, or mend it with untrunc')
            refuse(path, f'a file that PyAV cannot open ({why})', 'a video', cure)
        finally:
            av.logging.set_level(before)
    if not container.streams.video:
        container.close()
        refuse(path, 'no video stream in it', 'a video', 'check the path')
    return container


def pictures_of(path):
    """Of what has no timestamps, a folder of pictures, their names with %d or %04d for the number,
    or a dataset: how many, how many a second or None, a function that yields them as av frames, and
    where episodes start. None of anything else. Raises DataError."""
    if is_dataset(path):
        with open_dataset(path) as (d, rate, starts):
            return len(d), rate, functools.partial(of_dataset, path), starts
    files = picture_files(path)
    return files and (len(files), None, functools.partial(of_files, files), [])


@contextlib.contextmanager
def open_dataset(path):
    """The frames of a dataset, their rate or None, and where its episodes start."""
    with open_h5(path) as f:
        d = plain_dataset(f, 'frames', path)
        check_frames(d, path, None)
        optional = read_optional(f, len(d), path)
        yield d, optional['fps'], optional['episode_starts']


def of_dataset(path):
    import av
    with open_dataset(path) as (d, *_):
        rows = max(1, 2 ** 24 // (d.nbytes // len(d)))  # blocks of at most 16 MB
        for a in range(0, len(d), rows):
            for picture in read(d, a, a + rows, path):
                yield av.VideoFrame.from_ndarray(picture, format='rgb24')


def of_files(files):
    for file in files:
        with open_container(file) as picture:
            yield next(picture.decode(video=0))


def picture_files(path):
    """The files of an image sequence in the order of their numbers, or None."""
    folder, name = (path, '*') if os.path.isdir(path) else os.path.split(path)
    number = re.search('%(0[0-9]+)?d', name)
    if name != '*' and (number is None or os.path.exists(path)):
        return None
    pattern = '.*'
    if number:
        before, after = map(re.escape, (name[:number.start()], name[number.end():]))
        pattern = f'{before}[0-9]{{{int(number[1] or 1)},}}{after}'
    try:
        found = [n for n in os.listdir(folder or '.') if n.lower().endswith(PICTURES)
                 and re.fullmatch(pattern, n) and not n.startswith('.')]
    except OSError as e:
        refuse(path, f'a folder that cannot be read ({one_line(e)})', 'pictures', 'check the path')
    if len(found) < 2:
        refuse(path, f'{len(found)} pictures', f'at least 2, {", ".join(PICTURES)}',
               'check the path')
    sequences = Counter(re.sub('[0-9]+', '%d', n) for n in found)
    if name == '*' and len(sequences) > 1:
        of_one = [s for s in sequences if '%d' in s]  # others are covers, contact sheets
        if len(of_one) > 1:
            refuse(path, f'{len(of_one)} sequences of pictures', 'one',
                   f'name it: {" or ".join(os.path.join(path, s) for s in of_one[:2])}')
        found = [n for n in found if re.sub('[0-9]+', '%d', n) in of_one or not of_one]
    digits = {n: [int(x) for x in re.findall('[0-9]+', n)] for n in found}
    return [os.path.join(folder, n) for n in sorted(found, key=lambda n: (digits[n], n))]


def choose_stream(container, number, path):
    """The video stream of that number among them, or else the one that a player would show: marked
    default, and no cover picture. Raises DataError."""
    from av.stream import Disposition
    streams = container.streams.video
    if number is not None:
        if not 0 <= number < len(streams):
            refuse(path, f'{len(streams)} video streams', f'one of number {number}',
                   f'--stream=0 to {len(streams) - 1}')
        return streams[number]

    def rank(stream):
        return (bool(stream.disposition & Disposition.attached_pic),
                not stream.disposition & Disposition.default)

    return min(streams, key=rank)


def size_of(path):
    """Bytes of a file, 0 of anything else."""
    return os.path.getsize(path) if os.path.isfile(path) else 0


class Film:
    """
    frames(): what is shown, one after the other, and when. begins: the numbers of the frames with
    which a stretch begins. counts: of frames in all (source), and of those that are turned, ...

    n_pictures: how many there should be; numbers: which of them were decoded. path: a file, an
    address, a folder of pictures, their names with %d or %04d for the number, or a dataset. Raises
    DataError.
    """

    def __init__(self, path, source_fps=None, stream=None):
        self.path, self.counts, self.begins, self.numbers = path, Counter(), [], array('q')
        self.declared, self.others, self.error, self.shape = 0, [], '', None
        self.missing, self.hides_alpha, self.starts = 0, False, set()
        self.stream, self.size = stream, size_of(path)
        self.pictures = pictures_of(path)
        if self.pictures:
            n, rate, _, starts = self.pictures
            self.starts = set(starts)
            if not (source_fps or rate):
                refuse(path, f'{n} pictures, which have no rate', '--source_fps',
                       'say how many there are a second: --source_fps=15')
            self.clock = Clock(np.zeros(n, np.int64), 0, None, source_fps or rate)
        else:
            with open_container(path) as container:
                chosen = choose_stream(container, stream, path)
                self.clock = Clock(*packet_times(container, chosen), chosen, source_fps)
                self.others = [f'{i} ({s.width}x{s.height})'
                               for i, s in enumerate(container.streams.video) if s != chosen]
                self.declared = chosen.frames
                self.hides_alpha = chosen.metadata.get('alpha_mode') == '1'
                if not self.declared and self.clock.ticks is not None and container.duration:
                    lasts = np.ptp(self.clock.ticks) * self.clock.tick  # sound may last longer
                    self.missing = container.duration / 1e6 - 1.2 * lasts
        self.n_pictures = len(self.clock.seconds)
        self.borders = Borders(self.n_pictures)
        if self.clock.rate > MAX_RATE:
            refuse(path, f'timestamps for {self.clock.rate:,.0f} pictures a second',
                   f'at most {MAX_RATE}', 'say how many there are: --source_fps=30')

    def decoded(self):
        """av frames, or None where something could not be decoded. opaque: width over height of a
        pixel, as the container says, or the codec where it says something new."""
        import av
        if self.pictures:
            for frame in self.pictures[2]():
                frame.opaque = 1.0
                yield frame
            return
        with open_container(self.path) as container:
            stream = choose_stream(container, self.stream, self.path)
            stream.thread_type = 'AUTO'
            codec, aspect = stream.codec_context, stream.sample_aspect_ratio
            codec_said = codec.sample_aspect_ratio
            packets, packet = container.demux(stream), None
            while self.counts['undecodable'] < 1000:
                try:
                    packet = next(packets, None)
                    frames = packet.decode() if packet else ()
                except av.FFmpegError as e:
                    self.counts['undecodable'] += 1
                    self.error, frames = one_line(e.strerror or e), [None]
                for frame in frames:
                    # what the codec says may already be of pictures that come out later
                    if frame and frame.key_frame and codec.sample_aspect_ratio != codec_said:
                        aspect = codec_said = codec.sample_aspect_ratio
                    if frame:
                        frame.opaque = float(aspect or 1)
                    yield frame
                if packet is None:
                    return

    def ticks_of(self, frame):
        """Its timestamp as the container counts. A filter may have made the ticks shorter."""
        if frame.pts is None or not frame.time_base or not self.clock.tick:
            return frame.pts
        return round(frame.pts * float(frame.time_base) / self.clock.tick)

    def frames(self):
        """Yields (seconds since the first one, (av frame, this film)) as the clock times them, and
        at last (end, None); `begins` gets the numbers of those with which a stretch begins."""
        last, duration, broken = None, 0, False
        for frame in deinterlaced(self.decoded(), self.counts):
            if frame is None or frame.is_corrupt:
                broken = True
            if frame is None:
                continue
            seconds, stretch = self.clock.next(self.ticks_of(frame))
            broken |= self.clock.lost > self.counts['lost']
            self.counts['lost'] = self.clock.lost
            self.numbers.append(self.clock.at)
            self.counts['gaps'] += last is not None and stretch != last
            if stretch != last or broken or self.counts['source'] in self.starts:
                self.begins.append(self.counts['source'])
            last, duration = stretch, float(frame.duration * (frame.time_base or 0))
            broken = frame.is_corrupt
            self.counts['corrupt'] += frame.is_corrupt
            self.counts['source'] += 1
            yield seconds, (frame, self)
        if not self.counts['source']:
            reason = f' that can be decoded ({self.error})' if self.error else ''
            refuse(self.path, f'a video without frames{reason}', 'at least 2 frames',
                   'copy it again, or record it again')
        if not self.clock.step / 2 < duration <= self.clock.longest:
            duration = self.clock.step
        yield seconds + duration, None


def one_after_the_other(films):
    """As Film.frames of one film; each begins where the one before it ends."""
    end = 0
    for film in films:
        for seconds, picture in film.frames():
            if picture is not None:
                yield end + seconds, picture
        end += seconds
    yield end, None


def deinterlaced(frames, counts):
    """The same frames; from the first interlaced one on they go through FFmpeg's yadif, which
    leaves those alone that are not."""
    import av
    graph = shape = None

    def pulled():
        while graph:
            try:
                yield graph.pull()
            except (av.BlockingIOError, av.EOFError):
                return

    for frame in frames:
        if frame is None or not graph and not frame.interlaced_frame:
            yield frame
            continue
        now = frame.width, frame.height, frame.format.name
        if now != shape:
            if graph:
                graph.push(None)
                yield from pulled()
            graph, shape = av.filter.Graph(), now
            first = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format,
                                     time_base=frame.time_base or Fraction(1, 1000))
            graph.link_nodes(first, graph.add('yadif', 'deint=interlaced'),
                             graph.add('buffersink')).configure()
        counts['interlaced'] += frame.interlaced_frame
        graph.push(frame)
        yield from pulled()
    if graph:
        graph.push(None)
        yield from pulled()


# -----------------------------------------------------------------------------
# pixels


def display_matrix(frame):
    """How the frame is to be turned, (a, b, c, d) of -1, 0 and 1: a pixel at (x, y) is shown at
    (a x + c y, b x + d y). Other angles than quarters of a turn, which nobody records, are 0."""
    try:
        sides = list(frame.side_data)
    except ValueError:  # of a kind that PyAV does not know, such as a camera's EXIF
        a, b = np.round((np.cos(np.radians(frame.rotation)), -np.sin(np.radians(frame.rotation))))
        return int(a), int(b), int(-b), int(a)
    for side in sides:
        if side.type.name == 'DISPLAYMATRIX':
            a, b, _, c, d = np.frombuffer(bytes(side), np.int32)[:5] / 65536
            if abs(a * d - b * c) == 1 and {abs(a), abs(b)} == {0, 1}:
                return int(a), int(b), int(c), int(d)
    return 1, 0, 0, 1


def upright(picture, matrix):
    """(h,w,3) as it is to be shown."""
    a, b, c, d = matrix
    if not a:
        picture, a, d = picture.swapaxes(0, 1), c, b
    return picture[::d, ::a]


@functools.cache
def has_alpha(pixel_format):
    import av
    return any(component.is_alpha for component in av.VideoFormat(pixel_format).components)


def rgb(frame, matrix, counts):
    """(h,w,3) uint8 of an av frame: upright, transparent pixels on black, the colours of HD that
    are not tagged as those of BT.709."""
    how = {}
    if frame.colorspace == UNTAGGED and frame.height >= HD_HEIGHT:
        how = dict(src_colorspace=BT709)
    counts['HDR'] += frame.color_trc in (PQ, HLG)
    if has_alpha(frame.format.name):
        rgba = frame.reformat(format='rgba', **how).to_ndarray().astype(np.uint16)
        counts['transparent'] += bool((rgba[..., 3] < 255).any())
        picture = ((rgba[..., :3] * rgba[..., 3:] + 127) // 255).astype(np.uint8)
    else:
        picture = frame.reformat(format='rgb24', **how).to_ndarray()
    counts['turned'] += matrix != (1, 0, 0, 1)
    return upright(picture, matrix)


# -----------------------------------------------------------------------------
# what the user is told


def counted(n, what):
    """'1 picture', '2,000 pictures'."""
    return f'{n:,} {what}' + ('s' if n != 1 else '')


def noticed(film):
    """What was found in a film beside pictures, and what was done about it: sentences."""
    counts = film.counts
    of = {key: counted(counts[key], 'picture') for key in counts}
    grew, borders = size_of(film.path) != film.size, film.borders.sentence()
    checks = (
        (film.others, lambda: 'other video streams: ' + ', '.join(film.others)
         + '; --stream=N takes one'),
        (counts['turned'], lambda: f'{of["turned"]} turned, as marked'),
        (film.declared > film.n_pictures, lambda: f'{film.n_pictures:,} pictures of '
         f'{film.declared:,} that the file declares: half a download?'),
        (film.missing > GAP_SECONDS, lambda: f'{film.missing:.0f} seconds that the file declares '
         'are missing at its end: half a download?'),
        (counts['lost'], lambda: f'{of["lost"]} that cannot be decoded: an episode begins after '
         'them'),
        (film.hides_alpha, lambda: 'its transparency (VP8, VP9) is not read: what lies under it is '
         'shown'),
        (grew, lambda: 'the file grew while it was read: its recorder runs on, and what came later '
         'is missing'),
        (counts['undecodable'], lambda: f'{counted(counts["undecodable"], "place")} that cannot be '
         f'decoded ({film.error}): an episode begins after each'),
        (counts['corrupt'], lambda: f'{of["corrupt"]} damaged: an episode begins with each and '
         'after it'),
        (counts['gaps'], lambda: f'{counted(counts["gaps"], "time")} the clock stands still or '
         'goes back, or pictures are missing: an episode begins there'),
        (counts['transparent'], lambda: f'{of["transparent"]} transparent: shown on black'),
        (counts['interlaced'], lambda: f'{of["interlaced"]} interlaced: deinterlaced'),
        (borders, lambda: borders),
        (counts['HDR'], lambda: f'{of["HDR"]} HDR, and too dark here: convert the film first, '
         'ffmpeg -i IN -vf zscale=t=linear,tonemap=hable,zscale=t=bt709 OUT.mp4'),
    )
    return [sentence() for found, sentence in checks if found]
