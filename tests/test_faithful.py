"""The same keys to the game and to a dream: how long do they agree?"""
import copy

import numpy as np
import pytest

import faithful
from recordings import game
from recordings.game import LEFT, RIGHT, SWORD, UP


class Both(faithful.Both):
    """Games beside dreams that are games themselves, of the same rules or of worse ones."""

    def __init__(self, n, spoil=lambda dreamed, keys: None):
        self.real = game.Game(n)
        self.real.reset(1)
        self.dreamed, self.spoil = copy.deepcopy(self.real), spoil

    def step(self, keys):
        self.real.step(keys)
        self.spoil(self.dreamed, keys)
        self.frames = self.dreamed.step(keys)
        return faithful.compare(self.real, self.frames)


def walls_do_not_stop(dreamed, keys):
    dreamed.hero_free = np.ones_like(dreamed.hero_free)


def everybody_is_gone(dreamed, keys):
    dreamed.render = lambda: dreamed.screens[dreamed.here()]


@pytest.mark.parametrize('kind', [faithful.Wanderer, faithful.Bumper])
def test_a_game_agrees_with_itself_to_the_end(kind):
    both = Both(8)
    found = faithful.stay_together(both, kind(both.real, 0), 60)
    # the sword of a hero, or a creature, may hide a part of him
    assert (found['parted'] == 60).all() and found['agree'].mean() > 0.98
    assert found['hero'].mean() > 0.98 and faithful.parted_at(found) == {}


def test_they_part_where_he_walks_through_a_wall():
    both = Both(16, walls_do_not_stop)
    found = faithful.stay_together(both, faithful.Bumper(both.real, 0), 100)
    assert (found['parted'] < 100).all()
    at = faithful.parted_at(found)
    assert set(at) <= {'facing a wall', 'turning to a wall'}
    assert sum(n for n, _ in at.values()) == 16 and sum(lost for _, lost in at.values()) < 4


def test_a_hero_who_is_nowhere_is_said_to_be_lost():
    both = Both(4, everybody_is_gone)
    found = faithful.stay_together(both, faithful.Wanderer(both.real, 0), 10)
    assert not found['hero'].any() and not found['agree'].any() and (found['parted'] == 0).all()
    assert all(n == lost for n, lost in faithful.parted_at(found).values())


def test_parted_are_those_who_do_not_agree_for_five_frames():
    agree = np.ones((3, 12), bool)
    agree[0, 3:7] = False  # four
    agree[1, [2, 5, 6, 7, 8, 9]] = False
    assert faithful.first_parting(agree).tolist() == [12, 5, 12]


def test_what_a_key_meets():
    g = game.Game(6)
    g.reset(0)
    tiles = game.make_world(0)[0]
    y = np.flatnonzero((tiles[:, 0] == game.TREE) & (tiles[:, 1] < game.TREE))[0]
    g.set_state({**g.state(), 'screen': np.zeros(6, int), 'hero': np.tile([8, y * 8], (6, 1)),
                 'facing': np.array([LEFT, UP, LEFT, UP, LEFT, RIGHT])})
    met = faithful.kinds_of(g, np.array([LEFT, LEFT, SWORD, SWORD, LEFT, LEFT]))
    said = [faithful.KINDS[i] for i in met]
    assert said == ['facing a wall', 'turning to a wall', 'sword', 'sword', 'facing a wall',
                    'turning to a wall']


def test_what_a_key_meets_at_the_edge_of_a_screen():
    both, seen = Both(32), set()
    player = faithful.Wanderer(both.real, 0)
    for _ in range(120):
        keys, before = player.act(), both.real.screen
        met = faithful.kinds_of(both.real, keys)
        both.step(keys)
        assert ((both.real.screen != before) == (met == faithful.KINDS.index('new screen'))).all()
        seen |= set(met)
    assert seen == set(range(len(faithful.KINDS)))


def test_one_step_is_judged_by_what_it_met():
    right = faithful.one_step(lambda picks: Both(len(picks)), np.arange(64))
    assert all(r.mean() > 0.95 for r in right.values() if len(r))
    right = faithful.one_step(lambda picks: Both(len(picks), walls_do_not_stop), np.arange(64))
    assert right['straight'].mean() == 1
    assert right['facing a wall'].mean() < 0.1 and right['turning to a wall'].mean() < 0.1


def just_come_in():
    """State of games in the frame in which the hero has come into a screen, and the old screen."""
    g, states, left = game.Game(32), [], []
    g.reset(0)
    player = faithful.Wanderer(g, 0)
    for _ in range(80):
        old = g.screen.copy()
        g.step(player.act())
        new = g.screen != old
        states.append({key: values[new] for key, values in g.state().items()})
        left.append(old[new])
    state = {key: np.concatenate([s[key] for s in states]) for key in states[0]}
    return state, np.concatenate(left)


def test_who_has_just_come_in_walks_on():
    state, old_screens = just_come_in()
    state['facing'][::4] = 1 + np.arange(len(old_screens[::4])) % 4  # some face a wall, or go back

    def begin(picks, spoil):
        both = Both(len(picks), spoil)
        both.real.set_state(state)
        both.dreamed.set_state(state)
        return both

    def falls_back(dreamed, keys):
        dreamed.screen = old_screens.copy()

    free = faithful.kinds_of(begin(old_screens, None).real, state['facing']) == 0
    assert 16 < free.sum() < len(free)
    right = faithful.walks_on(lambda p: begin(p, lambda dreamed, keys: None), old_screens)
    assert len(right) == free.sum() and right.mean() > 0.95
    assert faithful.walks_on(lambda p: begin(p, falls_back), old_screens).mean() == 0


def test_the_sword_is_looked_for_where_it_should_be():
    def sheathed(dreamed, keys):
        dreamed.push_of = lambda action: game.PUSH[np.where(keys == SWORD, 0, keys)]
    right = faithful.one_step(lambda picks: Both(len(picks), sheathed), np.arange(32))
    assert right['sword'].mean() == 0 and len(right['sword']) > 16


def test_a_key_without_an_action_is_one_that_is_not_known():
    codes = faithful.codes_of_keys(['', 'up', 'left 2', 'left', 'down', 'right'])
    assert codes.tolist() == [6, 1, 4, 2, 5, 6]
    counts = np.zeros((6, 6), int)
    counts[[0, 1, 1], [SWORD, SWORD, UP]] = 5, 2, 9
    codes = faithful.codes_of_keys(['', 'up', 'left 2', 'left', 'down', 'right'], counts)
    assert codes.tolist() == [6, 1, 4, 2, 5, 0]
    codes = faithful.codes_of_keys(['', 'up', 'left 2', 'left', 'down', 'right'], counts[:, :5])
    assert codes.tolist() == [6, 1, 4, 2, 5, 6]  # nobody has drawn the sword


def test_the_bumper_bumps_and_the_wanderer_never_rests():
    bumped = {}
    for kind in (game.Player, faithful.Wanderer, faithful.Bumper):
        g = game.Game(64)
        g.reset(0)
        player, met, keys = kind(g, 0), [], []
        for _ in range(100):
            keys.append(player.act())
            met.append(faithful.kinds_of(g, keys[-1]))
            g.step(keys[-1])
        walls = [faithful.KINDS.index(k) for k in ('facing a wall', 'turning to a wall')]
        bumped[kind] = np.isin(met, walls)[np.array(keys) != game.NOOP].mean()
        assert (np.array(keys) == game.NOOP).any() == (kind is game.Player)
    assert bumped[faithful.Bumper] > bumped[faithful.Wanderer] + 0.04
