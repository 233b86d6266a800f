"""
What is around a game in its pictures: letterbox bars, a desktop. It is looked for while a film is
imported, and cut away only where the user says so.
"""
import numpy as np

from recordings.refusal import refuse

SAMPLES = 64  # pictures of a film that are looked at, and a quarter of them at least
MOVES = 16  # levels of 255 by which a pixel of the game changes at least once in these
FULL = 0.1  # of the fullest row: rows in which fewer pixels change show a clock, not a game
WORTH = 0.05  # of the picture: less is not worth a word


def cut_out(picture, crop, first_shape, path):
    """The rectangle crop, (x, y, width, height) in pixels of the film's first picture, whose shape
    is (h,w); pictures of another size are cut alike. Raises DataError where it is not inside."""
    x, y, w, h = crop
    high, wide = first_shape
    if x + w > wide or y + h > high:
        refuse(path, f'pictures of {wide}x{high}', f'room for --crop={x},{y},{w},{h}',
               'x, y, width and height, in pixels, from the upper left corner')
    if picture.shape[:2] != first_shape:
        across, down = picture.shape[1] / wide, picture.shape[0] / high
        x, w, y, h = round(x * across), round(w * across), round(y * down), round(h * down)
    return picture[y:y + h, x:x + w]


def span(share):
    """From where to where there are rows in which enough pixels change (their shares (n,)): the
    longest run, with holes of a twentieth of all at most."""
    full = np.flatnonzero(share > FULL * share.max())
    runs = np.split(full, np.flatnonzero(np.diff(full) > max(1, len(share) // 20)) + 1)
    longest = max(runs, key=len)
    return longest[0], longest[-1] + 1


class Borders:
    """Which pixels of a film change, by some of its pictures. n_pictures: how many it will have."""

    def __init__(self, n_pictures):
        self.every, self.n = max(1, n_pictures // SAMPLES), 0
        self.low = self.high = None

    def look(self, picture):
        """(h,w,3) uint8, of one size in all but a few films."""
        self.n += 1
        if self.n % self.every:
            return
        if self.low is None:
            self.low, self.high = picture.copy(), picture.copy()
        elif picture.shape == self.low.shape:
            np.minimum(self.low, picture, out=self.low)
            np.maximum(self.high, picture, out=self.high)

    def inside(self):
        """(x, y, width, height) of what changes, or None where that is almost everything."""
        if self.n // self.every < SAMPLES // 4:
            return None
        moves = (self.high - self.low).max(2) > MOVES
        if not moves.any():
            return None
        top, bottom = span(moves.mean(1))
        left, right = span(moves.mean(0))
        w, h = int(right - left), int(bottom - top)
        if min(w, h) < 16 or w * h > (1 - WORTH) * moves.size:
            return None
        return int(left), int(top), w, h

    def sentence(self):
        """What the user is told, or ''."""
        found = self.inside()
        if not found:
            return ''
        x, y, w, h = found
        high, wide = self.low.shape[:2]
        return (f'the pictures of {wide}x{high} change in {w}x{h} of them only: bars, a desktop, a '
                f'score? --crop={x},{y},{w},{h} takes what changes')
