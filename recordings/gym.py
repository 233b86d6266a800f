"""
Any game of the gymnasium ecosystem becomes a dataset: somebody plays it, and what was shown and
done is written down, one frame at a time, in bounded memory.

The games are in requirements-games.txt; none is imported before it is asked for. An id is what
gymnasium.make takes, so `module:ID` is a game of any other package.
"""
import contextlib
import difflib
import importlib.machinery
import importlib.util
import itertools
import os
import tempfile
import traceback
import warnings

import h5py
import numpy as np
from tqdm import tqdm

from files import printable, replacing
from recordings.h5file import check_written, create_h5, stored
from recordings.refusal import one_line, refuse
from recordings.video import resize_by_area

INSTALL = 'pip install -r requirements-games.txt'
PACKAGES = {'ALE/': 'ale_py', 'MiniGrid-': 'minigrid', 'BabyAI-': 'minigrid',
            'Vizdoom': 'vizdoom.gymnasium_wrapper', 'SuperMarioBros': 'gymnasium_mariobros',
            'Crafter': 'crafter'}
CRAFTER_IDS = ['CrafterReward-v1', 'CrafterNoReward-v1']  # the pictures are the same
FPS = 10  # of a game that says none, because it waits for its player
# a game that skips frames or repeats actions by itself would not do what is written down
OWN_WAYS = dict(frameskip=1, frame_skip=1, repeat_action_probability=0.0)

# -----------------------------------------------------------------------------
# the game


def find_game(env_id):
    """gymnasium, and the spec of this id, None for Crafter, which gymnasium does not know."""
    module, _, name = env_id.rpartition(':')
    modules = [module] if module else [m for start, m in PACKAGES.items() if name.startswith(start)]
    try:
        gymnasium = importlib.import_module('gymnasium')
        for m in modules:
            importlib.import_module(m)
    except Exception as e:  # a package that is there may lack a library, or break with another
        refuse(env_id, f'{type(e).__name__}: {one_line(e)}',
               'gymnasium and the package of the game', INSTALL)
    if name not in gymnasium.registry and name not in CRAFTER_IDS:
        for m in PACKAGES.values():
            with contextlib.suppress(Exception):
                importlib.import_module(m)
        near = difflib.get_close_matches(name, [*gymnasium.registry, *CRAFTER_IDS], cutoff=0.4)
        refuse(env_id, 'no game of this name', 'an id that gymnasium knows',
               f'perhaps {" or ".join(near) or "ALE/Pong-v5"}; of another package: module:ID')
    return gymnasium, gymnasium.registry.get(name)


def make_env(env_id, size, seed):
    """The game of this id, as gymnasium has it, not begun yet. size: width, height. Raises
    DataError if its package is missing, nothing has this id, it cannot be made, or its actions are
    not numbered."""
    gymnasium, spec = find_game(env_id)
    try:
        # v3 is another game and not, as gymnasium warns, a newer v0
        warnings.filterwarnings('ignore', module='gymnasium')
        if spec is None:  # drawn tile by tile in the size that is asked for, so nothing is blurred
            env = importlib.import_module('crafter').Env(size=size, seed=seed)
        else:
            ways = {key: OWN_WAYS[key] for key in OWN_WAYS if key in spec.kwargs}
            env = gymnasium.make(spec.id, render_mode='rgb_array', **ways)
        if 'SuperMarioBros' in env_id:  # seven combinations of buttons, of 256
            from gymnasium_mariobros.actions import SIMPLE_MOVEMENT
            from gymnasium_mariobros.wrappers import JoypadSpace
            env = JoypadSpace(env, SIMPLE_MOVEMENT)
    except Exception as e:
        refuse_game(env_id, e)
    space = env.action_space
    if not hasattr(space, 'n') or getattr(space, 'shape', ()):
        refuse(env_id, f'actions {printable(space)[:100]}', 'numbered ones, Discrete(n)',
               'choose an id of the game that has them')
    return env


def refuse_game(env_id, error):
    """The error can be of any kind: a ROM or a library is missing, a mode unknown."""
    refuse(env_id, f'a game that does not start ({type(error).__name__}: {one_line(error)})',
           'one that runs without a screen, render_mode="rgb_array"',
           f'{INSTALL}; or record the screen, and data.py video')


def first_picture(env, env_id, seed):
    """Begins the game -> (h,w,3) uint8. Raises DataError if it draws no pictures."""
    try:
        begin(env, seed)
        picture = env.render()
    except Exception as e:
        refuse_game(env_id, e)
    if np.ndim(picture) != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
        refuse(env_id, f'a game that draws {type(picture).__name__} {np.shape(picture)}',
               'pictures uint8 (h,w,3) with render_mode="rgb_array"', 'choose another game')
    return picture


def begin(env, seed):
    """Begins an episode -> the game's observation."""
    if type(env).__module__ == 'crafter.env':  # older than gymnasium: it counts its episodes
        return env.reset()
    return env.reset(seed=seed)[0]


def action_names(env):
    """What the game calls its actions, or 'action 0' and so on."""
    game, n, names = getattr(env, 'unwrapped', env), int(env.action_space.n), []
    if hasattr(env, 'get_action_meanings'):  # Mario
        names = [name.replace(' ', '+') for name in env.get_action_meanings()]
    elif hasattr(game, 'get_action_meanings'):  # Atari
        names = game.get_action_meanings()
    elif hasattr(game, 'action_names'):  # Crafter
        names = game.action_names
    elif hasattr(getattr(game, 'actions', None), '__members__'):  # MiniGrid
        names = list(game.actions.__members__)
    elif hasattr(game, 'button_map'):  # Doom
        buttons = [button.name for button in game.game.get_available_buttons()]
        names = ['+'.join(itertools.compress(buttons, row)) or 'noop' for row in game.button_map]
    if len(names) != n:
        names = [f'action {i}' for i in range(n)]
    return [name.lower().replace('_', ' ') for name in names]  # play.py knows the word left


def rate_of(env):
    """Steps a second."""
    if hasattr(getattr(env, 'unwrapped', env), 'ale'):
        return 60  # of the console; ale_py says 30, its pace when it shows them
    return (getattr(env, 'metadata', None) or {}).get('render_fps') or FPS


# -----------------------------------------------------------------------------
# who plays


def random_actions(keys, rng):
    """Another one each frame."""
    while True:
        yield keys[rng.integers(len(keys))]


def sticky_actions(keys, rng):
    """Held for 2 to 11 frames, as people do and the player of the built-in game does."""
    while True:
        yield from [keys[rng.integers(len(keys))]] * int(rng.integers(2, 12))


POLICIES = dict(sticky=sticky_actions, random=random_actions)


@contextlib.contextmanager
def blamed(path):
    """What goes wrong in the user's file is said in one line."""
    try:
        yield
    except Exception as e:
        lines = [x.lineno for x in traceback.extract_tb(e.__traceback__) if x.filename == path]
        if isinstance(e, SyntaxError):
            lines.append(e.lineno)
        where = f' in line {lines[-1]}' if lines else ''
        refuse(path, f'{type(e).__name__}{where}: {one_line(e)}',
               'def act(observation): a number', 'mend it')


def load_act(path):
    """The function `act` of a Python file."""
    if not os.path.isfile(path):
        refuse(path, 'no such file', f'{", ".join(POLICIES)} or a Python file', 'check the path')
    loader = importlib.machinery.SourceFileLoader('policy_of_the_user', path)
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    with blamed(path):
        loader.exec_module(module)
    if not callable(getattr(module, 'act', None)):
        refuse(path, 'no function act', 'def act(observation): a number', 'write one')
    return module.act


def player(policy, space, rng, keys=()):
    """A function of the game's own observation -> the number of an action, from 0 on. keys: the
    only ones that are pressed; none = all. Raises DataError for one that the game has not."""
    n, first = int(space.n), int(getattr(space, 'start', 0))
    if keys and (max(keys) >= n or policy not in POLICIES):
        refuse(f'--keys={",".join(map(str, keys))}', f'a game of {n} actions, --policy={policy}',
               f'numbers up to {n - 1}, and a policy that presses by chance', 'leave --keys out')
    if policy in POLICIES:
        actions = POLICIES[policy](keys or range(n), rng)
        return lambda observation: next(actions)
    path = os.path.abspath(policy)
    act = load_act(path)

    def choose(observation):
        with blamed(path):
            action = act(observation)
        if np.ndim(action) or np.asarray(action).dtype.kind not in 'iu' \
                or not first <= action < first + n:
            refuse(path, f'act(observation) = {printable(action)[:60]}',
                   f'a whole number, {first} to {first + n - 1}', 'mend it')
        return int(action) - first

    return choose


# -----------------------------------------------------------------------------
# the recording


def play(env, choose, frame_skip, rng):
    """Yields (picture, action, begins), ... without end. The action is held for frame_skip steps
    and leads to the next picture; begins: a new episode, each with a seed of its own.

    The last picture of an episode is the one it ended with. Its action, that of the picture before,
    leads nowhere. A game that then shows one colour (Doom) has ended one picture earlier.
    """
    first = int(getattr(env.action_space, 'start', 0))
    while True:
        observation = begin(env, int(rng.integers(2 ** 31)))
        begins, over = True, False
        while not over:
            action = choose(observation)
            yield env.render(), action, begins
            begins = False
            for _ in range(frame_skip):
                observation, _, *ends, _ = env.step(first + action)  # terminated, truncated
                over = any(ends)
                if over:
                    break
        picture = env.render()
        if (picture != picture[0, 0]).any():
            yield picture, action, False


def record_gym(env_id, path, n_frames=20_000, width=64, height=64, pad=False, fps=None,
               frame_skip=1, seed=0, policy='sticky', keys=()):
    """Writes the h5 file `path`; returns what was noticed, sentences, which the file keeps. Raises
    DataError, DiskError; then `path` is what it was.

    n_frames: to write, one after every frame_skip steps of the game. fps: of the dataset; else what
    the game says, over frame_skip. policy: 'sticky', 'random' or a Python file with
    act(observation), which gets what the game returns and returns what it takes. keys: the actions
    that are pressed, where that is not all. The same seed gives the same file, if the game repeats
    itself.
    """
    source = f'gym {env_id} seed={seed} policy={os.path.basename(policy)} frame_skip={frame_skip}'
    if keys:
        source += f' keys={",".join(map(str, keys))}'
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        with contextlib.chdir(folder):  # Doom writes its settings where it is started
            env = make_env(env_id, (width, height), seed)
            if hasattr(env, 'close'):  # else Doom, a process of its own, would go on
                stack.callback(env.close)
            picture = first_picture(env, env_id, seed)
        choose = player(policy, env.action_space, np.random.default_rng([seed, 11]), keys)
        frames = play(env, choose, frame_skip, np.random.default_rng([seed, 12]))
        frames = tqdm(itertools.islice(frames, n_frames), 'playing', n_frames, unit=' frames',
                      disable=None)
        tmp = stack.enter_context(replacing(path))
        actions, starts = [], []
        with h5py.File(tmp, 'w') as f:
            d = create_h5(f, height, width, 'gzip', source, fps or rate_of(env) / frame_skip,
                          action_names(env))
            frames = ((resize_by_area(shown, width, height, pad), *rest) for shown, *rest in frames)
            for n, (action, begins) in enumerate(stored(d, frames)):
                actions.append(action)
                if begins:
                    starts.append(n)
            f['actions'] = np.array(actions, np.int64)
            f['episode_starts'] = np.array(starts, np.int64)
            f.attrs['noticed'] = sentences = [] if pad else cut_away(picture, width, height)
        check_written(tmp, path)
    return sentences


def cut_away(picture, width, height):
    """How much of the picture is lost to the shape of the dataset, in a sentence or none."""
    h, w = picture.shape[:2]
    kept = min(width * h, height * w) / max(width * h, height * w)
    if kept > 0.99:
        return []
    return [f'{1 - kept:.0%} of the {w}x{h} picture is cut away around its centre (--pad keeps it)']
