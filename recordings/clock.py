"""
When each picture of a film is shown. Time is measured, not believed: containers say of their rate
what they like, and some know only in which order pictures are stored.
"""
import numpy as np

GAP_SECONDS = 2  # longer than this without a picture: the recorder slept, or nothing changed
MAX_REORDER = 16  # pictures, by which one may be stored before it is shown; of a gap at least
MAX_RATE = 1000  # pictures a second


def packet_times(container, stream):
    """The timestamps of all pictures in the order in which they are stored, in ticks; one that has
    none has that before it. And the share that has one. Nothing is decoded."""
    found = [packet.pts for packet in container.demux(stream)
             if packet.size and not packet.is_discard] or [None]
    has_one = np.array([pts is not None for pts in found], bool)
    ticks, before = np.zeros(len(found), np.int64), 0
    for i, pts in enumerate(found):
        before = ticks[i] = before if pts is None else pts
    return ticks, has_one.mean()


def usual_step(differences):
    """Seconds between two pictures: of those near the median the mean, for a clock may round."""
    d = differences[differences > 0]
    middle = np.median(d)
    short = d[d < GAP_SECONDS / 2]
    if len(short) > 1 and middle < short.mean() / 10:  # pairs: a muxer moved the second by a tick
        return short.mean()
    return d[(d > middle / 2) & (d < middle * 1.5)].mean()


class Clock:
    """
    When each picture of a film is shown, in seconds since the first one, read off the timestamps of
    all of them: what the container says of its rate may be anything.

    Pictures of one timestamp share the time up to the next. Where the clock goes back as far as
    reordered pictures do not, another film was joined on; there, and where nothing was shown for
    `longest` seconds, one step passes and a stretch begins. Times are by the count where the rate
    is stated or timestamps are missing, and in the order of showing where the container knows only
    that of storing (avi with B pictures).

    ticks, share: of packet_times. stream: of av, None where the source has none.
    """

    def __init__(self, ticks, share, stream, source_fps=None):
        says, n = [], len(ticks)
        if stream:
            says = [stream.average_rate, stream.guessed_rate, stream.base_rate]
        self.tick = tick = float(stream.time_base or 0) if stream else 0.0
        self.at = -1  # number of the picture that is shown
        self.lost, self.late = 0, 0.0  # pictures that could not be decoded, seconds they would take
        if source_fps or share < 0.5 or not tick or len(np.unique(ticks)) < 2:
            self.ticks, self.stretch = None, np.zeros(n, np.int64)
            self.rate = float(source_fps or next(filter(None, says), 25))
            self.step = self.longest = 1 / self.rate
            self.seconds = np.arange(n) * self.step
            return
        as_shown = (np.diff(ticks) > 0).all() and stream.codec_context.has_b_frames
        usual = usual_step(np.diff(np.unique(ticks)) * tick)
        parts = list(films(ticks, MAX_REORDER * usual / tick))
        ticks = np.concatenate(parts)
        self.ticks = None if as_shown else ticks
        # each timestamp: where it first occurs, how often, and the seconds to the next one
        new = np.concatenate([np.append(True, np.diff(part) * tick > usual / 10) for part in parts])
        first = np.flatnonzero(new)
        counts, lasts = np.diff(np.append(first, n)), np.diff(ticks[first]) * tick
        self.step = usual_step(lasts / counts[:-1])
        self.longest = max(GAP_SECONDS, MAX_REORDER * self.step)
        gap = (lasts > self.longest) | (lasts <= 0)
        self.rate = named_rate(self.step, (1 + gap.sum()) * tick / n, says)
        lasts = np.append(np.where(gap, counts[:-1] * self.step, lasts), counts[-1] * self.step)
        self.seconds = np.interp(np.arange(n), np.append(first, n), np.append(0, lasts.cumsum()))
        self.stretch = np.zeros(n, np.int64)
        self.stretch[first[1:][gap]] = 1
        self.stretch = self.stretch.cumsum()

    def next(self, pts):
        """The next picture was decoded, pts is its timestamp: (seconds, number of its stretch).
        What could not be decoded before it is passed over and takes no time."""
        self.at += 1
        ahead = ()
        if self.ticks is not None and pts is not None:
            ahead = self.ticks[self.at:self.at + 1000]
        if len(ahead) and ahead[0] != pts:
            found = np.flatnonzero(ahead == pts)
            lost = found[0] if len(found) else 0
            self.lost += lost
            self.late += self.seconds[self.at + lost] - self.seconds[self.at]
            self.at += lost
        beyond = max(0, self.at - len(self.seconds) + 1)  # more pictures than packets
        i = self.at - beyond
        return self.seconds[i] + beyond * self.step - self.late, self.stretch[i]


def films(ticks, farthest):
    """Timestamps in the order of storing -> those of each film, sorted. Another one begins where
    they go back by more than `farthest`."""
    while len(ticks):
        back = np.flatnonzero(ticks < np.maximum.accumulate(ticks) - farthest)
        end = back[0] if len(back) else len(ticks)
        yield np.sort(ticks[:end])
        ticks = ticks[end:]


def named_rate(step, error, says):
    """Pictures a second: what the container says, or a whole number, if `step` is as long but for
    an error; else 1 / step."""
    for rate in (*says, *range(1, 241)):
        if rate and abs(1 / float(rate) - step) <= error:
            return float(rate)
    return 1 / step


def resample(timed, fps, slack):
    """(seconds, picture), ... -> (index, picture) of the latest one shown at each time k / fps.
    slack: seconds by which a container's clock may round (mkv: 1/1000, gif: 1/100)."""
    k, shown = 0, None
    for i, (seconds, picture) in enumerate(timed):
        while shown and k / fps < seconds - slack:
            yield shown
            k += 1
        shown = i, picture
