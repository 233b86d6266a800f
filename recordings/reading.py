"""What the built-in game's pictures show, read back from frames, real or imagined."""
import numpy as np

from recordings.game import (BLADE_ART, CREATURE_INK, CREATURE_RGB, DX, DY, HERO_ART, SIZE, STEP,
                             TILE, blade_of, touches)

CLOSE = 24  # grey levels a pixel by which a figure may differ from its art
FACINGS = tuple(HERO_ART)


def misfits(patches, rgb, ink):
    """How far patches (...,8,8,3) are from a figure's art, in grey levels a pixel of it (...)."""
    return np.abs(patches[..., ink, :].astype(np.int16) - rgb[ink]).mean((-1, -2))


def places_of(frames):
    """(n,H,W,3) -> what is at every half tile, (n,y,x,8,8,3)."""
    patches = np.lib.stride_tricks.sliding_window_view(frames, (TILE, TILE), (1, 2))
    return patches[:, ::STEP, ::STEP].transpose(0, 1, 2, 4, 5, 3)


def best_place(misfit):
    """Misfits (n,y,x) -> the best places (n,2), x and y in half tiles, -1 if none fits."""
    y, x = np.divmod(misfit.reshape(len(misfit), -1).argmin(1), misfit.shape[2])
    is_there = misfit.min((1, 2)) < CLOSE
    return np.where(is_there[:, None], np.stack([x, y], 1), -1)


def find_hero(frames):
    """(n,H,W,3) uint8 -> the hero's places (n,2), x and y in half tiles, -1 if there is none, and
    the way (n,) that he faces. He is where his picture, in any facing, fits best."""
    patches = places_of(frames)
    each = np.stack([misfits(patches, *HERO_ART[f]) for f in FACINGS], 1)  # (n,4,y,x)
    best = each.min((2, 3)).argmin(1)
    return best_place(each.min(1)), np.array(FACINGS)[best]


def find_creature(frames):
    """The same of the creature: its places (n,2)."""
    return best_place(misfits(places_of(frames), CREATURE_RGB, CREATURE_INK))


def sees_sword(frames, hero, facing):
    """Is a sword drawn (n,)? hero, facing: as find_hero says. One beyond the edge is not seen."""
    drawn = np.zeros(len(frames), bool)
    for i, (x, y) in enumerate(hero * STEP):
        blade_x, blade_y = x + TILE * DX[facing[i]], y + TILE * DY[facing[i]]
        if x >= 0 and 0 <= min(blade_x, blade_y) and max(blade_x, blade_y) <= SIZE - TILE:
            patch = frames[i, blade_y:blade_y + TILE, blade_x:blade_x + TILE]
            drawn[i] = misfits(patch, *BLADE_ART[facing[i]]) < CLOSE
    return drawn


def fates(frames):
    """
    What became of the creatures of n rollouts (n,T,H,W,3): was one gone (n,) in the picture in
    which a sword reached it? Was one gone (n,) without, though nothing hid it and the hero did not
    leave?
    """
    n, T = frames.shape[:2]
    flat = frames.reshape(n * T, *frames.shape[2:])
    hero, facing = find_hero(flat)
    creature, sword = find_creature(flat), sees_sword(flat, hero, facing)
    hero, creature = hero.reshape(n, T, 2), creature.reshape(n, T, 2)
    facing, sword = facing.reshape(n, T), sword.reshape(n, T)
    before, after = creature[:, :-1], creature[:, 1:]
    here = hero[:, 1:]
    known = (before >= 0).all(2) & (here >= 0).all(2) & (hero[:, :-1] >= 0).all(2)
    stays = abs(here - hero[:, :-1]).max(2) <= 2  # else he has entered the next screen
    gone = known & stays & (after < 0).any(2)
    x, y = np.moveaxis(here * STEP, 2, 0)
    reached = sword[:, 1:] & touches(x, y, facing[:, 1:], *np.moveaxis(before * STEP, 2, 0))
    blade = np.stack(blade_of(x, y, facing[:, 1:]), 2) // STEP
    hidden = (abs(here - before) < 3).all(2) | sword[:, 1:] & (abs(blade - before) < 3).all(2)
    return (gone & reached).any(1), (gone & ~reached & ~hidden).any(1)
