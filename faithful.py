"""
How long is the dream the game? The same keys are given to the real built-in game and to the dream,
and held against each other is where the hero stands, which way he faces and on which screen.
eval.py puts it on the card.
"""
import numpy as np
import torch

from recordings import game
from recordings.reading import find_hero, sees_sword
from world import Dream

HORIZONS = 1, 4, 16, 64, 128, 300
PARTED = 5  # frames in a row in which the two do not agree
KINDS = 'straight', 'turn', 'new screen', 'facing a wall', 'turning to a wall', 'sword'
WALKS = game.UP, game.DOWN, game.LEFT, game.RIGHT


class Wanderer(game.Player):
    """Plays as the recording does, but always does something."""
    stands = {game.SWORD: 0.1}


class Bumper(Wanderer):
    """And goes against a wall on purpose in a tenth of the steps, where there is one."""
    bumps = 0.1


def kinds_of(real, keys):
    """What keys (n,) meet in n games, a number of KINDS (n,)."""
    screen, _, _, free = real.ahead(game.STEP * game.DX[keys], game.STEP * game.DY[keys])
    turns = keys != real.facing
    walk = np.where(free, np.where(screen != real.screen, 2, turns), 3 + turns)
    return np.where(keys == game.SWORD, 5, walk)


def screen_of(real, frames):
    """Which screen of its world each frame (n,H,W,3) shows (n,): whose ground is nearest."""
    misfit = [abs(frames.astype(np.int16) - real.screens[real.first_screen + k]).mean((1, 2, 3))
              for k in range(game.MAP ** 2)]
    return np.argmin(misfit, 0)


def compare(real, frames):
    """Does the hero of frames (n,H,W,3) stand where that of the real games does, on the same screen
    (n,)? Does he face the same way (n,)? Is there one (n,)?"""
    hero, facing = find_hero(frames)
    there = (hero == np.stack([real.x, real.y], 1) // game.STEP).all(1)
    return there & (screen_of(real, frames) == real.screen), facing == real.facing, hero[:, 0] >= 0


def codes_of_keys(names, counts=None):
    """The action of the world for each key of the game: the first that has its name, or that most
    often goes with it by counts[action, key], if there are any; else one that is not known."""
    words = [name.split(' ')[0] for name in names]
    codes = np.full(len(game.ACTIONS), len(names))
    for key, word in enumerate(game.ACTIONS):
        if word in words:
            codes[key] = words.index(word)
        # who records may not know a key; to press none is no action
        elif key != game.NOOP and counts is not None and counts[:, key:key + 1].any():
            codes[key] = counts[:, key].argmax()
    return codes


class Both:
    """n real games and their dreams, from the starts `picks` (n,) of the world's recording. codes:
    the action for each key."""

    def __init__(self, world, picks, codes, maskgit_steps, temperature, device, seed):
        recording, about = world[-1], world[3]
        self.dream = Dream(world, maskgit_steps, temperature, device)
        last = picks + (self.dream.memory - 1) * about['config']['frame_stride']
        state = {key: values[last] for key, values in recording.truth.items()}
        self.real = game.Game(len(picks), state.get('layout', game.layout_of(recording.source)))
        self.real.set_state(state)
        self.codes = codes
        self.dream.begin(picks, seed)

    def step(self, keys):
        self.real.step(keys)
        self.dream.step(torch.from_numpy(self.codes[keys]))
        self.frames = self.dream.frames
        return compare(self.real, self.frames)


def first_parting(agree):
    """agree (n,T) -> the first of PARTED frames in a row in which the two do not agree, (n,), T for
    those who stay together."""
    run = np.lib.stride_tricks.sliding_window_view(~agree, PARTED, 1).all(2)
    return np.where(run.any(1), run.argmax(1), agree.shape[1])


@torch.no_grad()
def stay_together(both, player, n_frames=HORIZONS[-1]):
    """
    Plays on in both -> dict(agree (n,n_frames), hero (n,n_frames): is there one; met (n,n_frames):
    which of KINDS the key met; parted (n,), counted from 0, n_frames if never).
    """
    agree, hero, met = [], [], []
    for _ in range(n_frames):
        keys = player.act()
        met.append(kinds_of(both.real, keys))
        there, _, found = both.step(keys)
        agree.append(there)
        hero.append(found)
    agree, hero, met = (np.stack(x, 1) for x in (agree, hero, met))
    return dict(agree=agree, hero=hero, met=met, parted=first_parting(agree))


def parted_at(found):
    """What the key met when they parted: {kind: [how often, how often no hero was seen]}."""
    games = np.flatnonzero(found['parted'] < found['agree'].shape[1])
    when = found['parted'][games]
    met, lost = found['met'][games, when], ~found['hero'][games, when]
    return {kind: [int((met == i).sum()), int(lost[met == i].sum())]
            for i, kind in enumerate(KINDS) if (met == i).any()}


@torch.no_grad()
def one_step(make, picks):
    """
    One step from true frames: {kind: which are right (n_kind,)}: a hero who stands and faces as the
    real one does, on the same screen; with the sword, a blade where it should be, if that is on the
    screen. make: picks -> Both.
    """
    right = {kind: [] for kind in KINDS}
    for key in (*WALKS, game.SWORD):
        both = make(picks)
        keys = np.full(len(picks), key)
        met = kinds_of(both.real, keys)
        there, faces, _ = both.step(keys)
        if key == game.SWORD:
            real = both.real
            blade = np.stack(real.blade(), 1)
            seen = ((blade >= 0) & (blade <= game.LAST)).all(1)
            place = np.stack([real.x, real.y], 1) // game.STEP
            right['sword'].append(sees_sword(both.frames, place, real.facing)[seen])
            continue
        for i, kind in enumerate(KINDS):
            right[kind].append((there & faces)[met == i])
    return {kind: np.concatenate(parts) for kind, parts in right.items()}


@torch.no_grad()
def walks_on(make, picks):
    """
    One step from true frames in which the hero has just come in, by the key that brought him, where
    the way is free: which are right (n,)? A dream that remembers the old screen better falls back
    into it. make: picks -> Both.
    """
    both = make(picks)
    keys = both.real.facing.copy()
    straight = kinds_of(both.real, keys) == KINDS.index('straight')
    there, faces, _ = both.step(keys)
    return (there & faces)[straight]
