"""
The built-in game: the "tiny shakespeare" of this repository. numpy only, seeded, its own art, its own ground truth.

A hero walks a small top-down overworld of grass, paths, trees and water in half-tile steps, is stopped by trees and
water, leaves a screen at its edge and enters the next, and swings a sword. One creature a screen moves now and then
and is gone (until the screen is entered again) once the sword touches it: most of what changes is the action's doing,
a little is chance.

    from recordings import game
    g = game.Game()                      # one game; Game(n=64) steps 64 of them at once
    frame = g.reset(seed=0)              # (64,64,3) uint8
    frame = g.step(game.ACTIONS.index('left'))
    g.state()                            # hero, screen, facing ... : what the picture was drawn from

    python -m recordings.game                       # frames/s
"""
import numpy as np

ACTIONS = ('noop', 'up', 'down', 'left', 'right', 'sword')
NOOP, UP, DOWN, LEFT, RIGHT, SWORD = range(6)
FPS = 15
SIZE = 64                                 # pixels a side: 8 x 8 tiles
TILE, STEP = 8, 4                         # pixels; the hero walks half a tile at a time
GRID = SIZE // STEP                       # positions are counted in half tiles: the hero's corner is in 0..GRID-2
MAP = 2                                   # the world is MAP x MAP screens and wraps around
CREATURE_MOVES = 0.06                     # chance of a step, each frame
DX = np.array([0, 0, 0, -1, 1, 0])        # by action
DY = np.array([0, -1, 1, 0, 0, 0])
GRASS, PATH, TREE, WATER = range(4)

# -----------------------------------------------------------------------------
# art: one letter a pixel, '.' is transparent

INK = {'g': (92, 168, 72), 'G': (76, 148, 60), 'p': (206, 174, 116), 'P': (188, 156, 98), 't': (34, 92, 46),
       'T': (54, 122, 58), 'b': (104, 70, 40), 'w': (58, 112, 200), 'W': (110, 160, 232), 'k': (24, 24, 32),
       's': (255, 214, 178), 'r': (206, 60, 52), 'R': (150, 34, 40), 'h': (96, 60, 30), 'y': (240, 208, 72),
       'm': (226, 232, 240), 'M': (150, 160, 178), 'u': (120, 64, 168), 'U': (88, 40, 128), 'e': (250, 250, 250)}

TILES = ['gggggggg gGgggggg ggggggGg gggggggg gggGgggg gggggggg gGggggGg gggggggg',
         'pppppppp ppPppppp pppppppp ppppppPp pppppppp pPpppppp pppppPpp pppppppp',
         'ggttttgg gtTTTttg tTTTttTt tTTtttTt ttttTTtt gttTTttg ggtbbtgg gggbbggg',
         'wwwwwwww wWWwwwww wwwwwwww wwwwwWWw wwwwwwww wwWWwwww wwwwwwww wwwwwwww']

HERO = {UP: '..yyyy.. .yyyyyy. .hyyyyh. .hhhhhh. rrhhhhrr srrrrrrs .rRRRRr. ..h..h..',
        DOWN: '..yyyy.. .yyyyyy. .hsssshh .skssks. rrssssrr srrrrrrs .ryyyyr. ..h..h..',
        LEFT: '..yyyy.. .yyyyyy. yyssshhh ..kssshh ..sssrr. ..rsrrr. ..ryyr.. ..h.hh..'}
HERO[RIGHT] = ' '.join(row[::-1] for row in HERO[LEFT].split())
BLADE = {LEFT: '........ ........ ........ .....y.. mmmmmyMM MMMMMyMM .....y.. ........'}
CREATURE = '........ ..uuuu.. .uuuuuu. uekuukeu ueeuueeu uuuuuuuu UuUuUuUu U.U..U.U'


def draw(rows):
    """Letters -> (8,8,3) uint8 and (8,8) bool, True where something is drawn."""
    letters = [list(r) for r in rows.split()]
    rgb = np.array([[INK.get(c, (0, 0, 0)) for c in r] for r in letters], np.uint8)
    return rgb, np.array([[c != '.' for c in r] for r in letters])


HERO_ART = {facing: draw(rows) for facing, rows in HERO.items()}
left_rgb, left_ink = draw(BLADE[LEFT])
BLADE_ART = {LEFT: (left_rgb, left_ink), RIGHT: (left_rgb[:, ::-1], left_ink[:, ::-1]),
             UP: (left_rgb.swapaxes(0, 1), left_ink.T), DOWN: (left_rgb.swapaxes(0, 1)[::-1], left_ink.T[::-1])}
# indexed by facing (1..4, row 0 unused) so that many games are drawn with one gather
HERO_RGB, HERO_INK = (np.stack([HERO_ART[f or UP][i] for f in range(5)]) for i in (0, 1))
BLADE_RGB, BLADE_INK = (np.stack([BLADE_ART[f or UP][i] for f in range(5)]) for i in (0, 1))
CREATURE_RGB, CREATURE_INK = draw(CREATURE)

# -----------------------------------------------------------------------------
# the world


def make_world(layout):
    """Returns tiles (MAP*MAP, 8, 8). Neighbouring screens share an opening two tiles wide, and paths lead to the
    middle of the screen, so that every screen can be reached from every other."""
    rng = np.random.default_rng([layout, 7])
    n = SIZE // TILE
    # opening of the border between a screen and its right / lower neighbour: first of its two tiles
    east, south = rng.integers(1, n - 2, (2, MAP, MAP))
    world = []
    for r in range(MAP):
        for c in range(MAP):
            tiles = np.where(rng.random((n, n)) < 0.12, TREE, GRASS)
            y, x = rng.integers(1, n - 3, 2)
            tiles[y:y + rng.integers(2, 4), x:x + rng.integers(2, 4)] = WATER
            tiles[[0, -1], :] = tiles[:, [0, -1]] = TREE
            e, w, s, t = east[r, c], east[r, c - 1], south[r, c], south[r - 1, c]    # -1 wraps around
            my, mx = rng.integers(2, n - 3, 2)                                       # where the four paths meet
            for a, b in ((e, n), (w, 0)):
                tiles[a:a + 2, min(mx, b):max(mx + 2, b)] = PATH
                tiles[min(my, a):max(my, a) + 2, mx:mx + 2] = PATH
            for a, b in ((s, n), (t, 0)):
                tiles[min(my, b):max(my + 2, b), a:a + 2] = PATH
                tiles[my:my + 2, min(mx, a):max(mx, a) + 2] = PATH
            world.append(tiles)
    return np.stack(world)


class Game:
    """n games stepped in lockstep. With n=None (one game) frames and actions have no leading axis.

    layout: which world. Worlds differ in their screens; the same layout is the same world for every seed.
    """

    def __init__(self, n=None, layout=0):
        self.single, self.n = n is None, n or 1
        self.tiles = make_world(layout)
        art = np.stack([draw(t)[0] for t in TILES])
        self.screens = art[self.tiles].transpose(0, 1, 3, 2, 4, 5).reshape(-1, SIZE, SIZE, 3)
        solid = np.isin(self.tiles, (TREE, WATER)).repeat(2, 1).repeat(2, 2)         # in half tiles
        # free[screen, y, x]: a figure of 2 x 2 half tiles may stand there
        self.free = ~(solid[:, :-1, :-1] | solid[:, 1:, :-1] | solid[:, :-1, 1:] | solid[:, 1:, 1:])
        # a creature's home on each screen: the free place nearest to a fixed point, away from the edges
        home = np.random.default_rng([layout, 8]).integers(4, GRID - 5, (len(self.free), 2))
        self.home = np.empty_like(home)                                              # (screens, 2) as x, y
        for s, (x, y) in enumerate(home):
            ys, xs = np.nonzero(self.free[s, 2:-2, 2:-2])
            i = np.argmin(abs(ys + 2 - y) + abs(xs + 2 - x))
            self.home[s] = xs[i] + 2, ys[i] + 2
        self.reset(0)

    def reset(self, seed):
        """New games on random screens. Returns the first frames."""
        self.rng = np.random.default_rng([seed, 9])
        places = np.argwhere(self.free[:, 2:-2, 2:-2])
        self.screen, self.y, self.x = (places[self.rng.integers(len(places), size=self.n)] + [0, 2, 2]).T
        self.facing = self.rng.integers(UP, RIGHT + 1, self.n)
        self.sword = np.zeros(self.n, bool)
        self.creature = self.home[self.screen].copy()                                # (n,2) as x, y
        self.alive = np.ones(self.n, bool)
        return self.render()

    def ahead(self, action):
        """Where the hero would stand after `action`: screen, y, x, and whether that place is free."""
        x, y = self.x + DX[action], self.y + DY[action]
        last = GRID - 2
        row, col = np.divmod(self.screen, MAP)
        col = (col + (x > last) - (x < 0)) % MAP
        row = (row + (y > last) - (y < 0)) % MAP
        screen, y, x = row * MAP + col, y % (last + 1), x % (last + 1)
        return screen, y, x, self.free[screen, y, x]

    def step(self, action):
        """action: int or (n,) ints in [0,6). Returns the new frames (n,64,64,3) uint8; `moved` tells where the
        hero's own state changed (place, screen, facing or sword)."""
        action = np.broadcast_to(np.asarray(action), (self.n,))
        if not ((action >= 0) & (action < len(ACTIONS))).all():
            raise ValueError(f'action {action} is not in 0..{len(ACTIONS) - 1} ({", ".join(ACTIONS)})')
        before = self.screen, self.y, self.x, self.facing, self.sword
        walks = (action >= UP) & (action <= RIGHT)
        screen, y, x, free = self.ahead(action)
        go = walks & free
        self.facing = np.where(walks, action, self.facing)                           # a blocked hero still turns
        self.screen, self.y, self.x = np.where(go, (screen, y, x), before[:3])
        self.sword = action == SWORD
        self.moved = np.any([a != b for a, b in zip(before, (self.screen, self.y, self.x, self.facing, self.sword))], 0)

        entered = self.screen != before[0]
        self.creature = np.where(entered[:, None], self.home[self.screen], self.creature)
        self.alive |= entered
        # the creature: a step now and then, where the ground is free and the hero is not
        wants = self.rng.random(self.n) < CREATURE_MOVES
        way = self.rng.integers(UP, RIGHT + 1, self.n)
        to = np.clip(self.creature + np.stack([DX[way], DY[way]], 1), 1, GRID - 3)
        clear = (abs(to[:, 0] - self.x) > 1) | (abs(to[:, 1] - self.y) > 1)
        ok = wants & ~entered & clear & self.free[self.screen, to[:, 1], to[:, 0]]
        self.creature = np.where(ok[:, None], to, self.creature)
        tip = np.stack([self.x + 2 * DX[self.facing], self.y + 2 * DY[self.facing]], 1)
        self.alive &= ~(self.sword & (abs(self.creature - tip) <= 1).all(1))
        return self.render()

    def render(self):
        frames = self.screens[self.screen]                                           # a fresh copy: (n,64,64,3)
        self.paste(frames, self.creature[:, 0], self.creature[:, 1], CREATURE_RGB[None], CREATURE_INK[None], self.alive)
        self.paste(frames, self.x, self.y, HERO_RGB[self.facing], HERO_INK[self.facing], True)
        self.paste(frames, self.x + 2 * DX[self.facing], self.y + 2 * DY[self.facing],
                   BLADE_RGB[self.facing], BLADE_INK[self.facing], self.sword)
        return frames[0] if self.single else frames

    def paste(self, frames, x, y, rgb, ink, shown):
        """Draw 8x8 figures at (x, y) half tiles; what lies off the screen is cut."""
        rows = (y * STEP)[:, None, None] + np.arange(TILE)[:, None]
        cols = (x * STEP)[:, None, None] + np.arange(TILE)
        on = ink & (rows >= 0) & (rows < SIZE) & (cols >= 0) & (cols < SIZE) & np.reshape(shown, (-1, 1, 1))
        g, i, j = np.nonzero(on)
        k = g if len(rgb) > 1 else 0
        frames[g, rows[g, i, 0], cols[g, 0, j]] = rgb[k, i, j]

    def state(self):
        """The truth behind the picture, as a dict of (n,...) integer arrays; `set_state` brings it back."""
        return dict(screen=self.screen.copy(), hero=np.stack([self.x, self.y], 1) * STEP, facing=self.facing.copy(),
                    sword=self.sword.astype(np.int64), creature=self.creature * STEP, alive=self.alive.astype(np.int64))

    def set_state(self, state):
        """state: what `state()` returned, or the `truth` of a recording at n frames. Returns the frames."""
        self.screen, self.facing = (np.array(state[k], np.int64).reshape(self.n) for k in ('screen', 'facing'))
        self.x, self.y = np.array(state['hero'], np.int64).reshape(self.n, 2).T // STEP
        self.creature = np.array(state['creature'], np.int64).reshape(self.n, 2) // STEP
        self.sword, self.alive = (np.array(state[k]).reshape(self.n).astype(bool) for k in ('sword', 'alive'))
        return self.render()


class Player:
    """Plays as people do: holds an action for 2-11 frames, and turns when it stops working. People see the trees:
    a way that is free is chosen far more often than one that is not, and turning back is rare."""

    def __init__(self, game, seed):
        self.game, self.rng = game, np.random.default_rng([seed, 10])
        self.action = np.zeros(game.n, np.int64)
        self.left = np.zeros(game.n, np.int64)                                       # frames still to hold it

    def act(self):
        g, n = self.game, self.game.n
        walking = (self.action >= UP) & (self.action <= RIGHT)
        stuck = walking & ~g.ahead(self.action)[3] & (self.rng.random(n) < 0.6)
        new = (self.left <= 0) | stuck
        weight = np.zeros((n, len(ACTIONS)))
        for a in (UP, DOWN, LEFT, RIGHT):
            back = (DX[a] == -DX[g.facing]) & (DY[a] == -DY[g.facing])
            weight[:, a] = np.where(g.ahead(a)[3], np.where(back, 0.4, 1.0), 0.03)
        weight *= 0.8 / weight.sum(1, keepdims=True)
        weight[:, NOOP], weight[:, SWORD] = 0.1, 0.1
        choice = (weight.cumsum(1) < self.rng.random((n, 1))).sum(1).clip(max=len(ACTIONS) - 1)
        hold = np.where(np.isin(choice, (NOOP, SWORD)), self.rng.integers(2, 5, n), self.rng.integers(2, 12, n))
        self.action = np.where(new, choice, self.action)
        self.left = np.where(new, hold, self.left) - 1
        return self.action


def record(n_frames, seed=0, layout=0, episode_len=250):
    """Many short games played side by side, one after the other in the result.

    Returns dict(frames (N,64,64,3) uint8, actions (N,) int64: actions[t] leads from frame t to t+1,
    episode_starts (E,) int64, truth: per-frame arrays as in Game.state(), and `moved` (N,): did the hero's own
    state change from t to t+1).
    """
    n = -(-n_frames // episode_len)
    game = Game(n, layout)
    frames = np.empty((n, episode_len, SIZE, SIZE, 3), np.uint8)
    actions = np.zeros((n, episode_len), np.int64)
    moved = np.zeros((n, episode_len), np.int64)
    truth = []
    frame = game.reset(seed)
    player = Player(game, seed)
    for t in range(episode_len):
        frames[:, t] = frame
        truth.append(game.state())
        actions[:, t] = player.act()
        frame = game.step(actions[:, t])
        moved[:, t] = game.moved
    moved[:, -1] = 0                                                                 # nothing follows the last frame
    flat = lambda a: a.reshape(n * episode_len, *a.shape[2:])[:n_frames]
    truth = {k: flat(np.stack([s[k] for s in truth], 1)) for k in truth[0]}
    return dict(frames=flat(frames), actions=flat(actions), episode_starts=np.arange(0, n_frames, episode_len),
                truth=dict(truth, moved=flat(moved)))


if __name__ == '__main__':
    import time
    t0 = time.perf_counter()
    n = len(record(20_000)['frames'])
    print(f'{n / (time.perf_counter() - t0):,.0f} frames/s recorded on one core')
