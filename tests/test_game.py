"""The built-in game: its rules, its truth, and a player who plays like people."""
import numpy as np
import pytest

from recordings import game
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


def somewhere(g, action, free):
    """A place away from the edges from which the way of `action` is free, or not."""
    inside = np.argwhere(g.free[:, 1:-1, 1:-1]) + [0, 1, 1]
    for s, y, x in inside:
        if g.free[s, y + game.DY[action], x + game.DX[action]] == free:
            return dict(screen=s, hero=(x * game.STEP, y * game.STEP))


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
    free, last = game.Game().free, game.GRID - 2
    ways_out = [(s, y) for s, y, x in np.argwhere(free) if x == last and free[right_of(s), y, 0]]
    s, y = ways_out[0]
    g = place(screen=s, hero=(last * game.STEP, y * game.STEP))
    g.step(RIGHT)
    after = g.state()
    assert after['screen'][0] == right_of(s) and after['hero'][0].tolist() == [0, y * game.STEP]


def test_every_screen_can_be_reached():
    for layout in range(5):
        g = game.Game(layout=layout)
        start = next(tuple(here) for here in np.argwhere(g.free) if here[0] == 3)
        seen, todo = set(), [start]
        while todo:
            here = todo.pop()
            if here in seen:
                continue
            seen.add(here)
            screen, y, x = here
            g.screen, g.y, g.x = np.array([screen]), np.array([y]), np.array([x])
            for a in (UP, DOWN, LEFT, RIGHT):
                screen, y, x, free = g.ahead(np.array([a]))
                if free[0]:
                    todo.append((int(screen[0]), int(y[0]), int(x[0])))
        assert {here[0] for here in seen} == set(range(game.MAP ** 2)), layout


def test_the_sword_removes_the_creature_until_the_screen_is_entered_again():
    x, y = game.Game().home[3] * game.STEP
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


def test_a_wrong_action_is_refused():
    with pytest.raises(ValueError, match='0..5'):
        game.Game().step(6)
