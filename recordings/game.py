"""
The built-in game: the "tiny shakespeare" of this repository. It needs numpy only, is seeded, has
its own art and knows its own ground truth.

A hero walks a small top-down overworld of grass, paths, trees and water. Trees and water stop him;
at the edge of a screen he enters the next. He swings a sword. One creature a screen moves now and
then, and is gone once the sword touches it, until the screen is entered again. So most of what
changes is the action's doing, and a little is chance. Keys move him by half a tile; a stick moves
him by up to as much, in any direction. The task, for those who want one: slay creatures.

    from recordings import game
    g = game.Game()  # one game; Game(n=64) steps 64 of them at once
    frame = g.reset(seed=0)  # (64,64,3) uint8
    frame = g.step(game.ACTIONS.index('left'))
    g.state()  # hero, screen, facing ... : what the picture was drawn from

    python -m recordings.game  # prints how many frames a second it records
"""
import re

import numpy as np

ACTIONS = ('noop', 'up', 'down', 'left', 'right', 'sword')
NOOP, UP, DOWN, LEFT, RIGHT, SWORD = range(6)
FPS = 15
SIZE = 64  # pixels a side: 8 x 8 tiles
TILE, STEP = 8, 4  # pixels; a key moves the hero by half a tile
LAST = SIZE - TILE  # a figure's corner, its place, is in 0..LAST pixels
FIRST_LEVEL = 1_000_000  # worlds from this number on are levels, in which nobody is recorded
MAP = 2  # the world is MAP x MAP screens and wraps around
CREATURE_MOVES = 0.06  # chance of a step, each frame
DX = np.array([0, 0, 0, -1, 1, 0])  # by action
DY = np.array([0, -1, 1, 0, 0, 0])
STICK = ('right', 'down', 'swing')  # what the three numbers of a stick push, each in [-1,1]
PUSH = np.stack([DX, DY, np.array([-1, -1, -1, -1, -1, 1])], 1).astype(float)  # of each key
STICK_MARGIN = 2  # pixels by which the hero is smaller with a stick: gaps are a tile wide
GRASS, PATH, TREE, WATER = range(4)

# -----------------------------------------------------------------------------
# art: one letter a pixel, '.' is transparent

INK = {
    'g': (92, 168, 72), 'G': (76, 148, 60),  # grass
    'p': (206, 174, 116), 'P': (188, 156, 98),  # path
    't': (34, 92, 46), 'T': (54, 122, 58), 'b': (104, 70, 40),  # leaves and trunk
    'w': (58, 112, 200), 'W': (110, 160, 232),  # water
    'k': (24, 24, 32), 's': (255, 214, 178), 'h': (96, 60, 30),  # eyes, skin, hair
    'r': (206, 60, 52), 'R': (150, 34, 40), 'y': (240, 208, 72),  # clothes, gold
    'm': (226, 232, 240), 'M': (150, 160, 178),  # blade
    'u': (120, 64, 168), 'U': (88, 40, 128), 'e': (250, 250, 250)}  # creature

TILES = [
    'gggggggg gGgggggg ggggggGg gggggggg gggGgggg gggggggg gGggggGg gggggggg',
    'pppppppp ppPppppp pppppppp ppppppPp pppppppp pPpppppp pppppPpp pppppppp',
    'ggttttgg gtTTTttg tTTTttTt tTTtttTt ttttTTtt gttTTttg ggtbbtgg gggbbggg',
    'wwwwwwww wWWwwwww wwwwwwww wwwwwWWw wwwwwwww wwWWwwww wwwwwwww wwwwwwww']

HERO = {
    UP: '..yyyy.. .yyyyyy. .hyyyyh. .hhhhhh. rrhhhhrr srrrrrrs .rRRRRr. ..h..h..',
    DOWN: '..yyyy.. .yyyyyy. .hsssshh .skssks. rrssssrr srrrrrrs .ryyyyr. ..h..h..',
    LEFT: '..yyyy.. .yyyyyy. yyssshhh ..kssshh ..sssrr. ..rsrrr. ..ryyr.. ..h.hh..'}
HERO[RIGHT] = ' '.join(row[::-1] for row in HERO[LEFT].split())
BLADE = '........ ........ ........ .....y.. mmmmmyMM MMMMMyMM .....y.. ........'  # to the left
CREATURE = '........ ..uuuu.. .uuuuuu. uekuukeu ueeuueeu uuuuuuuu UuUuUuUu U.U..U.U'


def to_pixels(rows):
    """Letters -> (8,8,3) uint8 and (8,8) bool, True where something is drawn."""
    letters = [list(row) for row in rows.split()]
    rgb = np.array([[INK.get(c, (0, 0, 0)) for c in row] for row in letters], np.uint8)
    ink = np.array([[c != '.' for c in row] for row in letters])
    return rgb, ink


HERO_ART = {facing: to_pixels(rows) for facing, rows in HERO.items()}
blade_rgb, blade_ink = to_pixels(BLADE)
BLADE_ART = {
    UP: (blade_rgb.swapaxes(0, 1), blade_ink.T),
    DOWN: (blade_rgb.swapaxes(0, 1)[::-1], blade_ink.T[::-1]),
    LEFT: (blade_rgb, blade_ink),
    RIGHT: (blade_rgb[:, ::-1], blade_ink[:, ::-1])}

# stacked by facing, so that many games are drawn with one gather; nobody faces 0
FACINGS = (UP, UP, DOWN, LEFT, RIGHT)
HERO_RGB = np.stack([HERO_ART[f][0] for f in FACINGS])
HERO_INK = np.stack([HERO_ART[f][1] for f in FACINGS])
BLADE_RGB = np.stack([BLADE_ART[f][0] for f in FACINGS])
BLADE_INK = np.stack([BLADE_ART[f][1] for f in FACINGS])
CREATURE_RGB, CREATURE_INK = to_pixels(CREATURE)

# -----------------------------------------------------------------------------
# the world


def lay_path(tiles, opening, edge, y, x):
    """A path two tiles wide from an opening in the left or right edge to (y, x), where all meet."""
    tiles[opening:opening + 2, min(x, edge):max(x + 2, edge)] = PATH
    tiles[min(y, opening):max(y, opening) + 2, x:x + 2] = PATH


def make_world(layout):
    """The tiles (MAP*MAP,8,8) of a world. Neighbouring screens share an opening two tiles wide, and
    paths lead from it to the middle, so that every screen can be reached from every other."""
    rng = np.random.default_rng([layout, 7])
    n = SIZE // TILE
    # the first of the two open tiles between a screen and its right and its lower neighbour
    east, south = rng.integers(1, n - 2, (2, MAP, MAP))
    world = []
    for row in range(MAP):
        for col in range(MAP):
            tiles = np.where(rng.random((n, n)) < 0.12, TREE, GRASS)
            y, x = rng.integers(1, n - 3, 2)
            height, width = rng.integers(2, 4), rng.integers(2, 4)
            tiles[y:y + height, x:x + width] = WATER
            tiles[[0, -1], :] = TREE
            tiles[:, [0, -1]] = TREE
            y, x = rng.integers(2, n - 3, 2)
            lay_path(tiles, east[row, col], n, y, x)
            lay_path(tiles, east[row, col - 1], 0, y, x)  # -1 wraps around
            lay_path(tiles.T, south[row, col], n, x, y)
            lay_path(tiles.T, south[row - 1, col], 0, x, y)
            world.append(tiles)
    return np.stack(world)


def find_free(solid, margin=0):
    """solid (screens,64,64) -> (screens,57,57): may a figure without so many pixels on each side
    have its corner there?"""
    size = TILE - 2 * margin
    inner = np.lib.stride_tricks.sliding_window_view(solid, (size, size), (1, 2))
    inner = inner[:, margin:margin + LAST + 1, margin:margin + LAST + 1]
    return ~inner.any((3, 4))


def facing_of(push):
    """Where a stick (...,3) or (...,2) turns the hero: to its larger push."""
    right, down = push[..., 0], push[..., 1]
    across, along = np.where(right < 0, LEFT, RIGHT), np.where(down < 0, UP, DOWN)
    return np.where(abs(right) > abs(down), across, along)


def blade_of(x, y, facing):
    """Where the sword of a hero who stands there is, x, y: one tile ahead of him."""
    return x + TILE * DX[facing], y + TILE * DY[facing]


def touches(x, y, facing, creature_x, creature_y):
    """Would the sword of a hero who stands there touch a creature that stands there?"""
    blade_x, blade_y = blade_of(x, y, facing)
    return (abs(creature_x - blade_x) < TILE) & (abs(creature_y - blade_y) < TILE)


class Game:
    """n games stepped in lockstep. With n=None (one game) frames and actions have no leading axis.

    layout: which world, one number or one for each game. Worlds differ in their screens; the same
    layout is the same world for every seed. stick: actions are three numbers instead of a key.
    """

    def __init__(self, n=None, layout=0, stick=False):
        self.single, self.stick = n is None, stick
        self.n = n or 1
        layouts, world = np.unique(np.broadcast_to(layout, self.n), return_inverse=True)
        self.first_screen = world * MAP * MAP  # of each game's world, among the screens of all
        tiles = np.concatenate([make_world(int(k)) for k in layouts])
        art = np.stack([to_pixels(rows)[0] for rows in TILES])
        self.screens = art[tiles].transpose(0, 1, 3, 2, 4, 5).reshape(-1, SIZE, SIZE, 3)
        solid = np.isin(tiles, (TREE, WATER)).repeat(TILE, 1).repeat(TILE, 2)
        self.free = find_free(solid)  # [screen, y, x]: may a figure stand there?
        self.hero_free = find_free(solid, STICK_MARGIN) if stick else self.free
        self.home = np.concatenate([self.homes(int(k), i) for i, k in enumerate(layouts)])
        self.reset(0)

    def homes(self, layout, world):
        """Where the creature of each screen lives (screens,2) as x, y: of the free places away from
        the edges the nearest to a fixed point."""
        last = LAST // STEP
        points = np.random.default_rng([layout, 8]).integers(4, last - 3, (MAP * MAP, 2))
        homes = np.empty_like(points)
        for screen, (x, y) in enumerate(points):
            free = self.free[world * MAP * MAP + screen, ::STEP, ::STEP]
            ys, xs = np.nonzero(free[2:-2, 2:-2])
            nearest = np.argmin(abs(ys + 2 - y) + abs(xs + 2 - x))
            homes[screen] = xs[nearest] + 2, ys[nearest] + 2
        return homes * STEP

    def here(self):
        """The screen of each game among those of all worlds."""
        return self.first_screen + self.screen

    def reset(self, seed, far=0):
        """New games on random screens, with the hero so many pixels from the creature, along one
        axis at least. Returns the first frames."""
        self.rng = np.random.default_rng([seed, 9])
        self.screen, self.y, self.x = np.zeros((3, self.n), np.int64)
        for first in np.unique(self.first_screen):
            games = np.flatnonzero(self.first_screen == first)
            free = self.free[first:first + MAP * MAP, ::STEP, ::STEP]
            places = np.argwhere(free[:, 2:-2, 2:-2]) + [0, 2, 2]
            if far:
                home = self.home[first + places[:, 0], ::-1]
                places = places[abs(places[:, 1:] * STEP - home).max(1) >= far]
            drawn = places[self.rng.integers(len(places), size=len(games))]
            self.screen[games], self.y[games], self.x[games] = (drawn * [1, STEP, STEP]).T
        self.facing = self.rng.integers(UP, RIGHT + 1, self.n)
        self.sword = np.zeros(self.n, bool)
        self.creature = self.home[self.here()].copy()  # (n,2) as x, y
        self.alive = np.ones(self.n, bool)
        self.slain = np.zeros(self.n, np.int64)  # creatures, since the reset
        return self.render()

    def ahead(self, dx, dy, place=None):
        """Where the hero would stand after a step of so many pixels from a place (screen, y, x),
        his own if None: screen, y, x, and whether that is free. Beyond an edge he stands at the
        other side of the next screen."""
        screen, y, x = place or (self.screen, self.y, self.x)
        x, y = x + dx, y + dy
        row, col = np.divmod(screen, MAP)
        col = (col + (x > LAST) - (x < 0)) % MAP
        row = (row + (y > LAST) - (y < 0)) % MAP
        x = np.where(x > LAST, 0, np.where(x < 0, LAST, x))
        y = np.where(y > LAST, 0, np.where(y < 0, LAST, y))
        screen = row * MAP + col
        return screen, y, x, self.hero_free[self.first_screen + screen, y, x]

    def walk(self, dx, dy):
        """Where he would come to, screen, y, x: first along x, then along y, and an axis that is
        blocked stays."""
        place = self.screen, self.y, self.x
        for step in ((dx, 0), (0, dy)):
            *there, free = self.ahead(*step, place)
            place = tuple(np.where(free, after, before) for after, before in zip(there, place))
        return place

    def step(self, action):
        """action: keys, int or (n,) ints in [0,6); with a stick floats (3,) or (n,3) in [-1,1].
        Returns the new frames (n,64,64,3) uint8.

        A stick moves him by 4 pixels times its push, rounded; the larger push turns him, blocked or
        not; he swings while he stands.
        `moved` then tells where the hero's own state changed: place, screen, facing or sword.
        """
        push = self.push_of(action)
        before = self.screen, self.y, self.x, self.facing, self.sword
        dx, dy = np.round(push[:, :2] * STEP).astype(np.int64).T
        self.screen, self.y, self.x = self.walk(dx, dy)
        stands = (dx == 0) & (dy == 0)
        self.facing = np.where(stands, self.facing, facing_of(push))
        self.sword = stands & (push[:, 2] > 0)
        after = self.screen, self.y, self.x, self.facing, self.sword
        self.moved = np.any([a != b for a, b in zip(before, after)], 0)
        self.step_creature(entered=self.screen != before[0])
        return self.render()

    def push_of(self, action):
        """Actions as a stick's three numbers, (n,3): a key is a stick pushed to its end."""
        if self.stick:
            push = np.broadcast_to(np.asarray(action, float), (self.n, 3))
            if not (abs(push) <= 1).all():
                raise ValueError(f'action {action} is not in [-1,1]')
            return push
        action = np.broadcast_to(np.asarray(action), (self.n,))
        if not ((action >= 0) & (action < len(ACTIONS))).all():
            legal = f'0..{len(ACTIONS) - 1} ({", ".join(ACTIONS)})'
            raise ValueError(f'action {action} is not in {legal}')
        return PUSH[action]

    def step_creature(self, entered):
        """A step of half a tile now and then, where the ground is free and the hero is not.
        entered: (n,) bool, the hero is new on this screen, and its creature back at home."""
        self.creature = np.where(entered[:, None], self.home[self.here()], self.creature)
        self.alive |= entered
        wants = self.rng.random(self.n) < CREATURE_MOVES
        way = self.rng.integers(UP, RIGHT + 1, self.n)
        step = np.stack([DX[way], DY[way]], 1) * STEP
        to = np.clip(self.creature + step, STEP, LAST - STEP)
        clear = (abs(to - np.stack([self.x, self.y], 1)) >= TILE).any(1)
        goes = wants & ~entered & clear & self.free[self.here(), to[:, 1], to[:, 0]]
        self.creature = np.where(goes[:, None], to, self.creature)
        hit = self.alive & self.sword & self.reaches(self.x, self.y, self.facing)
        self.alive &= ~hit
        self.slain += hit

    def reaches(self, x, y, facing):
        """Would a sword, drawn by a hero who stands there, touch the creature?"""
        return touches(x, y, facing, *self.creature.T)

    def blade(self):
        """Where the sword is when it is drawn: x, y."""
        return blade_of(self.x, self.y, self.facing)

    def render(self):
        frames = self.screens[self.here()]  # (n,64,64,3), a fresh copy
        creature_x, creature_y = self.creature.T
        self.paste(frames, creature_x, creature_y, CREATURE_RGB[None], CREATURE_INK[None],
                   self.alive)
        self.paste(frames, self.x, self.y, HERO_RGB[self.facing], HERO_INK[self.facing], True)
        self.paste(frames, *self.blade(), BLADE_RGB[self.facing], BLADE_INK[self.facing],
                   self.sword)
        return frames[0] if self.single else frames

    def paste(self, frames, x, y, rgb, ink, shown):
        """Draws 8x8 figures at (x, y), where shown; what lies off the screen is cut."""
        rows = y[:, None, None] + np.arange(TILE)[:, None]
        cols = x[:, None, None] + np.arange(TILE)
        on = ink & np.reshape(shown, (-1, 1, 1))
        on = on & (rows >= 0) & (rows < SIZE) & (cols >= 0) & (cols < SIZE)
        g, i, j = np.nonzero(on)
        k = g if len(rgb) > 1 else 0  # one picture for all games, or one for each
        frames[g, rows[g, i, 0], cols[g, 0, j]] = rgb[k, i, j]

    def state(self):
        """The truth behind the picture, as a dict of (n,...) integer arrays, places in pixels.
        `set_state` brings it back."""
        return dict(screen=self.screen.copy(), hero=np.stack([self.x, self.y], 1),
                    facing=self.facing.copy(), sword=self.sword.astype(np.int64),
                    creature=self.creature.copy(), alive=self.alive.astype(np.int64))

    def set_state(self, state):
        """state: what `state()` returned, or the `truth` of a recording at n frames.
        Returns the frames."""
        self.screen = np.array(state['screen'], np.int64).reshape(self.n)
        self.facing = np.array(state['facing'], np.int64).reshape(self.n)
        self.x, self.y = np.array(state['hero'], np.int64).reshape(self.n, 2).T
        self.creature = np.array(state['creature'], np.int64).reshape(self.n, 2)
        self.sword = np.array(state['sword']).reshape(self.n).astype(bool)
        self.alive = np.array(state['alive']).reshape(self.n).astype(bool)
        return self.render()


class Player:
    """Plays as people do: holds an action for 2 to 11 frames, and turns when it stops working.
    People see the trees: a way that is free is chosen more often than one that is not, and turning
    back is rare. He goes against them often enough to show what they are, and through a door as
    soon as he came in by it: a world learns that from nothing else (RECORDS.md)."""
    episode_len, own_worlds = 250, False
    stands = {NOOP: 0.1, SWORD: 0.2}  # what he does for a while without walking, and how often
    bumps = 0  # share of the frames in which he goes against a wall on purpose, where there is one

    def __init__(self, game, seed):
        self.game = game
        self.rng = np.random.default_rng([seed, 10])
        self.action = np.zeros(game.n, np.int64)
        self.left = np.zeros(game.n, np.int64)  # frames for which to hold it still
        self.screen = game.screen.copy()

    def is_free(self, key):
        return self.game.ahead(STEP * DX[key], STEP * DY[key])[3]

    def act(self):
        """The actions (n,) for the frames that the game shows now."""
        game, n = self.game, self.game.n
        walking = (self.action >= UP) & (self.action <= RIGHT)
        blocked = walking & ~self.is_free(self.action)
        gives_up = (blocked | (game.screen != self.screen)) & (self.rng.random(n) < 0.4)
        self.screen = game.screen.copy()
        chooses = (self.left <= 0) | gives_up
        weight = np.zeros((n, len(ACTIONS)))
        for a in (UP, DOWN, LEFT, RIGHT):
            back = (DX[a] == -DX[game.facing]) & (DY[a] == -DY[game.facing])
            screen, _, _, free = game.ahead(STEP * DX[a], STEP * DY[a])
            weight[:, a] = np.where(free, np.where(back, 0.4, 1.0), 0.3)
            weight[:, a] = np.where(free & (screen != game.screen), 2, weight[:, a])
        weight *= (1 - sum(self.stands.values())) / weight.sum(1, keepdims=True)
        weight[:, list(self.stands)] = list(self.stands.values())
        choice = (weight.cumsum(1) < self.rng.random((n, 1))).sum(1)
        choice = choice.clip(max=len(ACTIONS) - 1)
        stands = np.isin(choice, (NOOP, SWORD))
        hold = np.where(stands, self.rng.integers(2, 5, n), self.rng.integers(2, 12, n))
        self.action = np.where(chooses, choice, self.action)
        self.left = np.where(chooses, hold, self.left) - 1
        if self.bumps:
            self.bump()
        return PUSH[self.action] if game.stick else self.action

    def bump(self):
        """Now and then the key of a blocked way instead, for a frame."""
        wall = np.stack([~self.is_free(key) for key in (UP, DOWN, LEFT, RIGHT)], 1)
        which = (wall * self.rng.random(wall.shape)).argmax(1) + UP
        now = wall.any(1) & (self.rng.random(self.game.n) < self.bumps)
        self.action = np.where(now, which, self.action)
        self.left = np.where(now, 0, self.left)


# -----------------------------------------------------------------------------
# recordings


def layout_of(source):
    """The (first) world of a recording of this game, by what its file says of its `source`; None
    if it is of another game."""
    said = re.fullmatch(r'game\.py seed=\d+ layout=(\d+)( player=\w+ stick=\w+)?', source or '')
    return int(said[1]) if said else None


def record(n_frames, seed=0, layout=0, episode_len=None, player=Player, stick=False):
    """
    Many short games played side by side, one after the other in the result. player: the class of
    who plays; some play each episode in a world of its own, from number `layout` on.

    Returns dict(frames (N,64,64,3) uint8; actions (N,) int64, of a stick (N,3) float32: actions[t]
    leads from frame t to t+1; episode_starts (E,) int64; truth: per-frame arrays as in
    Game.state(), and `moved` (N,): did the hero's own state change from t to t+1; the
    `layout` where each episode has its own).
    """
    episode_len = episode_len or player.episode_len
    n = -(-n_frames // episode_len)
    if player.own_worlds:
        layout = layout + np.arange(n)
    if np.max(layout) >= FIRST_LEVEL:
        raise ValueError(f'worlds from {FIRST_LEVEL} on are levels: nobody is recorded there')
    game = Game(n, layout, stick)
    frames = np.empty((n, episode_len, SIZE, SIZE, 3), np.uint8)
    actions = np.zeros((n, episode_len, 3) if stick else (n, episode_len),
                       np.float32 if stick else np.int64)
    moved = np.zeros((n, episode_len), np.int64)
    states = []
    frame = game.reset(seed)
    plays = player(game, seed)
    for t in range(episode_len):
        frames[:, t] = frame
        states.append(game.state())
        actions[:, t] = plays.act()
        frame = game.step(actions[:, t])
        moved[:, t] = game.moved
    moved[:, -1] = 0  # nothing follows the last frame

    def one_after_the_other(x):
        return x.reshape(n * episode_len, *x.shape[2:])[:n_frames]

    truth = {key: np.stack([state[key] for state in states], 1) for key in states[0]}
    truth['moved'] = moved
    if player.own_worlds:
        truth['layout'] = layout[:, None].repeat(episode_len, 1)
    return dict(frames=one_after_the_other(frames),
                actions=one_after_the_other(actions),
                episode_starts=np.arange(0, n_frames, episode_len),
                truth={key: one_after_the_other(x) for key, x in truth.items()})


if __name__ == '__main__':
    import time
    t0 = time.perf_counter()
    n = len(record(20_000)['frames'])
    print(f'{n / (time.perf_counter() - t0):,.0f} frames/s recorded on one core')
