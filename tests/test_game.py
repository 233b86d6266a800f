"""The built-in game: its rules, its truth, and a player who plays like people."""
import hashlib

import numpy as np
import pytest

from recordings import game, hunter
from recordings.game import ACTIONS, DOWN, LEFT, NOOP, RIGHT, SWORD, UP


def test_same_seed_same_game_and_another_seed_another():
    a, b, c = (game.record(300, seed=s, episode_len=100) for s in (0, 0, 1))
    assert np.array_equal(a['frames'], b['frames']) and np.array_equal(a['actions'], b['actions'])
    assert not np.array_equal(a['actions'], c['actions'])
    assert not np.array_equal(game.make_world(0), game.make_world(1))


def test_recording_has_the_shapes_of_the_contract():
    r = game.record(250, episode_len=100)
    assert r['frames'].shape == (250, 64, 64, 3) and r['frames'].dtype == np.uint8
    assert r['actions'].shape == (250,) and set(r['actions']) <= set(range(len(ACTIONS)))
    assert r['episode_starts'].tolist() == [0, 100, 200]
    assert all(len(t) == 250 for t in r['truth'].values())


def test_state_is_all_that_the_picture_needs():
    g = game.Game()
    frame = g.reset(3)
    for a in (UP, SWORD, LEFT, RIGHT):
        frame, state = g.step(a), g.state()
    assert np.array_equal(game.Game().set_state(state), frame)


def test_the_game_replays_a_recording_up_to_the_creature():
    """Stepped with the true actions from the true state: the hero goes where he went."""
    r = game.record(400, episode_len=100)
    t = np.concatenate([np.arange(e, e + 99) for e in r['episode_starts']])
    g = game.Game(len(t))
    frames = g.set_state({k: v[t] for k, v in r['truth'].items() if k != 'moved'})
    assert np.array_equal(frames, r['frames'][t])
    frames, after = g.step(r['actions'][t]), g.state()
    for k in ('hero', 'screen', 'facing', 'sword'):
        assert np.array_equal(after[k], r['truth'][k][t + 1]), k
    assert np.array_equal(g.moved, r['truth']['moved'][t])
    assert (frames == r['frames'][t + 1]).all((1, 2, 3)).mean() > 0.8


def place(**state):
    """One game in a state of our own."""
    g = game.Game()
    g.reset(0)
    g.set_state({**g.state(), **{k: np.array([v]) for k, v in state.items()}})
    return g


def half_tiles(g):
    """[screen, y, x] of the places that keys lead to: are they free?"""
    return g.free[:, :: game.STEP, :: game.STEP]


def somewhere(g, action, free):
    """A place away from the edges from which the way of `action` is free, or not."""
    inside = np.argwhere(half_tiles(g)[:, 1:-1, 1:-1]) + [0, 1, 1]
    for s, y, x in inside:
        y, x = y * game.STEP, x * game.STEP
        if g.free[s, y + game.STEP * game.DY[action], x + game.STEP * game.DX[action]] == free:
            return dict(screen=s, hero=(x, y))


@pytest.mark.parametrize('action', [UP, DOWN, LEFT, RIGHT])
def test_walking_is_half_a_tile_and_trees_stop_it(action):
    for free in (True, False):
        g = place(facing=UP, sword=0, **somewhere(game.Game(), action, free))
        before = g.state()['hero'][0]
        g.step(action)
        step = np.array([game.DX[action], game.DY[action]]) * game.STEP * free
        assert np.array_equal(g.state()['hero'][0] - before, step)
        assert g.state()['facing'][0] == action
        assert g.moved[0] == (free or action != UP)


def right_of(screen):
    row, col = divmod(screen, game.MAP)
    return row * game.MAP + (col + 1) % game.MAP


def test_leaving_a_screen_enters_the_next():
    free, last = game.Game().free, game.LAST
    ways_out = [(s, y) for s, y, x in np.argwhere(free) if x == last and free[right_of(s), y, 0]]
    s, y = ways_out[0]
    g = place(screen=s, hero=(last, y))
    g.step(RIGHT)
    after = g.state()
    assert after['screen'][0] == right_of(s) and after['hero'][0].tolist() == [0, y]


def test_every_screen_can_be_reached():
    for layout in range(5):
        g = game.Game(layout=layout)
        places = np.argwhere(half_tiles(g)) * [1, game.STEP, game.STEP]
        start = next(tuple(here) for here in places if here[0] == 3)
        seen, todo = set(), [start]
        while todo:
            here = todo.pop()
            if here in seen:
                continue
            seen.add(here)
            screen, y, x = here
            g.screen, g.y, g.x = np.array([screen]), np.array([y]), np.array([x])
            for a in (UP, DOWN, LEFT, RIGHT):
                screen, y, x, free = g.ahead(game.STEP * game.DX[a], game.STEP * game.DY[a])
                if free[0]:
                    todo.append((int(screen[0]), int(y[0]), int(x[0])))
        assert {here[0] for here in seen} == set(range(game.MAP ** 2)), layout


def test_the_sword_removes_the_creature_until_the_screen_is_entered_again():
    x, y = game.Game().home[3]
    g = place(facing=RIGHT, screen=3, hero=(x - game.TILE, y), creature=(x, y), alive=1)
    with_creature = g.render()
    frame = g.step(SWORD)
    assert g.state()['alive'][0] == 0 and g.moved[0]
    assert not np.array_equal(frame, with_creature)
    assert g.step(NOOP) is not None and g.state()['alive'][0] == 0


def test_most_change_is_the_actions_doing():
    r = game.record(3000)
    episode = np.searchsorted(r['episode_starts'], np.arange(3000), 'right')
    t = np.flatnonzero(np.diff(episode) == 0)
    changed = (r['frames'][t] != r['frames'][t + 1]).any((1, 2, 3))
    assert 0.8 < r['truth']['moved'][t][changed].mean() < 1  # the rest is the creature's


def test_the_player_holds_his_actions():
    r = game.record(5000)
    a = r['actions']
    runs = np.diff(np.flatnonzero(np.r_[True, a[1:] != a[:-1], True]))
    assert 2 <= np.median(runs) <= 8 and (a[1:] == a[:-1]).mean() > 0.6
    walking = (a >= UP) & (a <= RIGHT)
    assert r['truth']['moved'][walking].mean() > 0.85  # and turns when it stops working


def test_the_player_comes_to_a_new_screen_by_a_key_just_pressed_too():
    """Else a world would learn that only who walks on gets there."""
    r = game.record(5000)
    a, screen = r['actions'], r['truth']['screen']
    t = np.arange(2, 5000)
    t = t[~np.isin(t, r['episode_starts']) & ~np.isin(t - 1, r['episode_starts'])]
    new = t[screen[t] != screen[t - 1]]
    assert len(new) > 100 and 0.2 < (a[new - 1] != a[new - 2]).mean() < 0.6


def test_a_wrong_action_is_refused():
    with pytest.raises(ValueError, match='0..5'):
        game.Game().step(6)


def test_a_recording_with_keys_is_what_it_was():
    """The tables of RECORDS.md are about these very frames (to ea5b55b of one who bumped less, to
    9b44167 of one who went back through doors less)."""
    r = game.record(600)
    digest = hashlib.sha256(r['frames'].tobytes() + r['actions'].tobytes()).hexdigest()
    assert digest[:16] == 'd25a87c895d6a83a'


# -----------------------------------------------------------------------------
# the stick


def test_a_key_is_a_stick_pushed_to_its_end():
    """On open ground, where the smaller hero of the stick makes no difference."""
    keys, stick = game.Game(8, stick=False), game.Game(8, stick=True)
    keys.reset(0)
    stick.set_state(keys.state())
    for action in (UP, UP, LEFT, SWORD, NOOP, RIGHT, DOWN):
        free = keys.ahead(game.STEP * game.DX[action], game.STEP * game.DY[action])[3]
        keys.step(action), stick.step(game.PUSH[action])
        for key in ('hero', 'facing', 'sword', 'screen'):
            a, b = keys.state()[key], stick.state()[key]
            assert np.array_equal(a[free], b[free]), (action, key)
        stick.set_state(keys.state())


@pytest.mark.parametrize(
    'push, moved, facing, sword',
    [
        ((0.5, 0.0, -1), (2, 0), RIGHT, 0),
        ((0.6, -0.9, -1), (2, -4), UP, 0),
        ((0.1, 0.1, -1), (0, 0), LEFT, 0),  # too little to move, or to turn
        ((0.1, 0.1, 0.2), (0, 0), LEFT, 1),
        ((1.0, 0.0, 1.0), (4, 0), RIGHT, 0),  # who walks does not swing
    ],
)
def test_what_a_stick_does(push, moved, facing, sword):
    g = game.Game(stick=True)
    around = np.lib.stride_tricks.sliding_window_view(g.free[0], (9, 9))
    y, x = np.argwhere(around.all((2, 3)))[0] + 4  # room on all sides
    g.set_state({**g.state(), 'screen': 0, 'hero': (x, y), 'facing': LEFT})
    before = g.state()['hero'][0]
    g.step(push)
    after = g.state()
    assert (after['hero'][0] - before).tolist() == list(moved)
    assert (after['facing'][0], after['sword'][0]) == (facing, sword)


def test_nothing_enters_trees():
    g, rng = game.Game(20, layout=np.arange(20), stick=True), np.random.default_rng(0)
    for _ in range(500):
        g.step(rng.uniform(-1, 1, (20, 3)))
        assert g.hero_free[g.here(), g.y, g.x].all()


def test_a_push_beyond_the_end_is_refused():
    with pytest.raises(ValueError, match='-1,1'):
        game.Game(stick=True).step((0, 1.5, 0))


# -----------------------------------------------------------------------------
# the hunter, and the levels


@pytest.mark.parametrize('stick', [False, True])
def test_the_hunter_solves_every_level(stick):
    assert (hunter.play_levels(range(20), hunter.Expert, stick) >= hunter.LEVEL_SLAIN).all()


def test_nobody_solves_a_level_by_chance():
    slain = hunter.play_levels(range(100), hunter.Dice)
    assert slain.mean() < 0.5 and (slain < hunter.LEVEL_SLAIN).all()


def test_a_level_begins_away_from_its_creature():
    g = game.Game(50, game.FIRST_LEVEL + np.arange(50))
    g.reset(0, far=5 * game.STEP)
    hero = g.state()['hero']
    assert (abs(hero - g.state()['creature']).max(1) >= 5 * game.STEP).all()


@pytest.mark.parametrize('stick', [False, True])
def test_a_hunter_plays_each_episode_in_a_world_of_its_own(stick):
    r = game.record(450, layout=7, player=hunter.Hunter, stick=stick)
    assert r['episode_starts'].tolist() == [0, 100, 200, 300, 400]
    assert r['truth']['layout'][::100].tolist() == [7, 8, 9, 10, 11]
    assert r['actions'].dtype == (np.float32 if stick else np.int64)
    assert len(r['actions']) == 450 and abs(r['actions']).max() <= (1 if stick else 5)
    with pytest.raises(ValueError, match='levels'):
        game.record(450, layout=game.FIRST_LEVEL - 2, player=hunter.Hunter)


def test_equal_ways_are_not_chosen_by_chance():
    """What dice chose cannot be learned: two hunters in one place take the same way."""
    a, b = game.Game(64, np.arange(64)), game.Game(64, np.arange(64))
    a.reset(0)
    one, other = hunter.Hunter(a, seed=1, noise=0), hunter.Hunter(b, seed=2, noise=0)
    for _ in range(30):
        b.set_state(a.state())
        action = one.act()
        assert np.array_equal(action, other.act())
        a.step(action)


def test_a_tenth_of_his_frames_are_distractions():
    g = game.Game(200, np.arange(200))
    g.reset(0)
    distracted, sure = hunter.Hunter(g, seed=0), hunter.Hunter(g, seed=0, noise=0)
    other = []
    for _ in range(60):
        action = distracted.act()
        other.append((action != sure.act()).mean())
        g.step(action)
    assert 0.05 < np.mean(other) < 0.12  # some of what he does on a whim is right
