"""
Somebody who knows what he wants in the built-in game: to slay creatures. And the levels by which
another's play is measured.

    python -m recordings.hunter  # prints how well he does, with keys and with a stick
"""
import math

import numpy as np

from recordings.game import (ACTIONS, DX, DY, FIRST_LEVEL, LAST, MAP, RIGHT, STEP, SWORD, UP, Game,
                             facing_of, touches)

PLACES = LAST // STEP + 1  # a side, in half tiles
FAR = 99  # half-tile steps: no way leads there
LEVEL_FRAMES, LEVEL_SLAIN = 64, 3


class Hunter:
    """
    Knows the way to the creature, slays it, and leaves the screen, for another one lives on the
    next. noise: of his frames are distractions, 1 to 3 at a time, from which a learner sees how to
    come back. Of ways that are as short he takes the one he faces, or else the first in the order
    of the keys: what is chosen by dice cannot be learned.
    """
    episode_len, own_worlds = 100, True

    def __init__(self, game, seed, noise=0.1):
        self.game, self.noise = game, noise
        self.rng = np.random.default_rng([seed, 11])
        self.left = np.zeros(game.n, np.int64)  # frames for which he is distracted still
        self.whim = np.zeros((game.n, 3) if game.stick else game.n)
        self.planned = np.full((game.n, 4), -1)  # what the plan of each game is for
        self.steps = np.zeros((game.n, 4, PLACES, PLACES))  # [way, y, x]: to the aim, by that way
        angle = np.arange(16) * math.tau / 16
        directions = np.stack([np.cos(angle), np.sin(angle)], 1)
        self.directions = directions / abs(directions).max(1, keepdims=True)  # pushed to the end

    def act(self):
        """The actions for the frames that the game shows now: (n,) keys, or (n,3) of a stick."""
        game, rng, n = self.game, self.rng, self.game.n
        self.plan()
        ready = game.alive & game.reaches(game.x, game.y, game.facing)
        if game.stick:
            action = np.concatenate([self.direction(), np.full((n, 1), -1.0)], 1)
            action[ready] = 0, 0, 1
            action += rng.normal(0, 0.05, action.shape)
            whim = rng.uniform(-1, 1, (n, 3))
        else:
            cost = self.steps[np.arange(n), :, game.y // STEP, game.x // STEP]  # (n,4)
            faced = np.arange(UP, RIGHT + 1) == game.facing[:, None]
            action = UP + np.argmin(2 * cost - faced, 1)
            action = np.where(ready, SWORD, action)
            whim = rng.integers(0, len(ACTIONS), n)
        begins = (self.left <= 0) & (rng.random(n) < self.noise / (2 - 2 * self.noise))
        self.left = np.where(begins, rng.integers(1, 4, n), self.left)
        distracted, self.left = self.left > 0, self.left - 1
        if game.stick:
            begins, distracted = begins[:, None], distracted[:, None]
        self.whim = np.where(begins, whim, self.whim)
        action = np.where(distracted, self.whim, action)
        return action.clip(-1, 1) if game.stick else action.astype(np.int64)

    def plan(self):
        """Brings `steps` up to date, where screen or creature changed."""
        game = self.game
        aim = np.column_stack([game.screen, game.creature, game.alive])
        games = np.flatnonzero((aim != self.planned).any(1))
        self.planned = aim
        if len(games):
            self.steps[games] = self.steps_to(games, game.alive[games])
            # one that cannot be reached is left alone
            y, x = game.y[games] // STEP, game.x[games] // STEP
            lost = games[self.steps[games, :, y, x].min(1) >= FAR]
            if len(lost):
                self.steps[lost] = self.steps_to(lost, np.zeros(len(lost), bool))

    def steps_to(self, games, hunts):
        """How many half-tile steps it takes from every place by each way (games,4,15,15): to where
        the sword reaches the creature, where he hunts, else off the screen. A step that is blocked
        only turns him. By relaxation: each place is a step farther than its nearest neighbour."""
        game, n, P = self.game, len(games), PLACES
        free = np.zeros((n, P + 2, P + 2), bool)  # with the places beyond the four edges
        first, screen = game.first_screen[games], game.screen[games]
        row, col = np.divmod(screen, MAP)

        def free_on(row, col):
            here = first + row % MAP * MAP + col % MAP
            return game.hero_free[here, ::STEP, ::STEP]

        free[:, 1:-1, 1:-1] = free_on(row, col)
        free[:, 0, 1:-1] = free_on(row - 1, col)[:, -1]
        free[:, -1, 1:-1] = free_on(row + 1, col)[:, 0]
        free[:, 1:-1, 0] = free_on(row, col - 1)[:, :, -1]
        free[:, 1:-1, -1] = free_on(row, col + 1)[:, :, 0]
        place = np.arange(-1, P + 1) * STEP
        creature_x, creature_y = game.creature[games].T[:, :, None, None]
        hunts = hunts[:, None, None]
        reached = [hunts & touches(place, place[:, None], UP + way, creature_x, creature_y)
                   for way in range(4)]
        far = np.full((n, P + 2, P + 2), float(FAR))
        beyond = np.ones((P + 2, P + 2), bool)
        beyond[1:-1, 1:-1] = False
        far[~hunts & beyond] = -1  # a step that leads there is the last
        while True:
            steps = []
            for way in range(4):
                there = slice(1 + DY[UP + way], P + 1 + DY[UP + way])
                there = np.s_[:, there, slice(1 + DX[UP + way], P + 1 + DX[UP + way])]
                after = np.where(reached[way], 0, 1 + far)
                after = np.where(free[there], after[there], after[:, 1:-1, 1:-1])
                steps.append(np.minimum(after, FAR))
            nearer = np.min(steps, 0)
            if (nearer == far[:, 1:-1, 1:-1]).all():
                return np.stack(steps, 1)
            far[:, 1:-1, 1:-1] = nearer

    def direction(self):
        """Of 16 directions of the stick (n,2), the one that ends nearest."""
        game = self.game
        best, chosen = np.full(game.n, math.inf), np.zeros((game.n, 2))
        for push in self.directions:
            dx, dy = np.round(push * STEP).astype(int)
            screen, y, x = game.walk(dx, dy)
            leaves, facing = screen != game.screen, facing_of(push)
            cost = self.distance(y, x)
            cost = np.where(game.alive & game.reaches(x, y, facing), -1, cost)
            cost = np.where(leaves, np.where(game.alive, FAR, -1), cost)
            nearer = cost < best - 1e-9
            best, chosen = np.where(nearer, cost, best), np.where(nearer[:, None], push, chosen)
        return chosen

    def distance(self, y, x):
        """Half-tile steps to the aim from places between the half tiles."""
        games, nearest = np.arange(self.game.n), self.steps.min(1)
        best = np.full(self.game.n, float(FAR))
        for y0 in (y // STEP, -(-y // STEP)):
            for x0 in (x // STEP, -(-x // STEP)):
                off = (abs(y - y0 * STEP) + abs(x - x0 * STEP)) / STEP
                best = np.minimum(best, nearest[games, y0, x0] + off)
        return best


# -----------------------------------------------------------------------------
# levels


def play_levels(levels, make_player, stick=False):
    """
    How many creatures are slain (n,) within 64 frames of each level; it is solved with three. Level
    i is a world in which nobody was recorded, and a start away from the creature.

    levels: (n,) numbers. make_player(game) -> something whose act(frames) gives the actions for the
    frames (n,64,64,3) that are shown.
    """
    game = Game(len(levels), FIRST_LEVEL + np.asarray(levels), stick)
    frames = game.reset(0, far=5 * STEP)
    player = make_player(game)
    for _ in range(LEVEL_FRAMES):
        frames = game.step(player.act(frames))
    return game.slain


class Expert(Hunter):
    """Who is never distracted, in the place of a player."""

    def __init__(self, game):
        super().__init__(game, seed=0, noise=0)

    def act(self, frames):
        return super().act()


class Dice:
    """Actions by chance, in the place of a player."""

    def __init__(self, game):
        self.game, self.rng = game, np.random.default_rng(14)

    def act(self, frames):
        if self.game.stick:
            return self.rng.uniform(-1, 1, (self.game.n, 3))
        return self.rng.integers(0, len(ACTIONS), self.game.n)


if __name__ == '__main__':
    for stick in (False, True):
        slain = play_levels(np.arange(100), Expert, stick)
        print(f'stick {stick}: {(slain >= LEVEL_SLAIN).sum()} of 100 levels solved, '
              f'{slain.mean():.1f} slain')
