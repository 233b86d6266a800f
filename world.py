"""The stages together: models from their checkpoints, a recording as stage 3 sees it, and the world
that they make."""
import json
import os

import numpy as np
import torch

import configurator
import data
import pictures
from files import printable
from model import (Dynamics, DynamicsConfig, LatentActionConfig, LatentActionModel, Policy,
                   PolicyConfig, Tokenizer, TokenizerConfig, psnr)
from training import checkpoint, ranks

STAGES = {'tokenizer': (Tokenizer, TokenizerConfig),
          'latent_actions': (LatentActionModel, LatentActionConfig),
          'dynamics': (Dynamics, DynamicsConfig),
          'policy': (Policy, PolicyConfig)}


def load_stage(out_dir, stage, device):
    """The best model of a stage, rebuilt from its checkpoint alone, frozen, in eval mode.

    Also returns what else the checkpoint says (iter, config, parents ...), with the `id` of the
    weights. out_dir: or a world file, which holds what export.py found there. Raises
    checkpoint.CheckpointError.
    """
    if os.path.isfile(out_dir):
        ckpt = stage_of(read_world(out_dir), stage)
    else:
        ckpt = checkpoint.best(os.path.join(out_dir, stage), stage)
    weights = ckpt.get('ema') or ckpt['model']  # earlier versions could keep averaged weights
    Model, Config = STAGES[stage]
    try:
        check_sizes(ckpt['model_args'], weights)
        model = Model(Config(**ckpt['model_args']))
        model.load_state_dict(weights)
    # of another version; sizes that do not fit
    except (TypeError, ValueError, RuntimeError, ArithmeticError) as e:
        reason = str(e).splitlines()[0][:100]
        raise checkpoint.CheckpointError(
            ckpt['path'], f'found weights of another network than {stage}.py makes now: {reason}',
            'go back to the version that trained it, or train it again: '
            f'python {stage}.py config/NAME.py') from e
    about = {k: v for k, v in ckpt.items() if k not in ('model', 'ema', 'optimizer')}
    about['id'] = ckpt.get('id') or checkpoint.weights_id(weights)
    return model.to(device).eval().requires_grad_(False), about


def check_sizes(model_args, weights):
    """Raises ValueError for settings that would make a network far larger than its weights: a file
    of a few bytes may not take all memory."""
    longest = max(d for t in weights.values() for d in (*t.shape, 1))
    for name, value in model_args.items():
        for number in value if isinstance(value, (list, tuple)) else [value]:
            limit = 2 ** 24 if name == 'vocab_size' else 2 ** 16
            if name.startswith('n_layer'):
                limit = len(weights)
            if name == 'n_embd':
                limit = longest
            if isinstance(number, int) and not 0 <= number <= limit:
                raise ValueError(f'found {name}={number}, expected 0 to {limit}')


def load_world(out_dir, dataset, device):
    """
    The stages that belong together, and the recording `dataset` to start from: -> tokenizer,
    action_model (None if stage 3 did without stage 2), dynamics, about (what the checkpoint of the
    dynamics says), recording. Either may be a world file.

    Raises checkpoint.CheckpointError, also when an earlier stage was trained again since: its
    tokens or actions would mean something else now. Raises data.DataError if they were trained on
    another kind of recording. One of the same kind but other content is allowed, and said:
    about['other_data'] is that sentence, '' if all stages were trained on this very recording.
    """
    if not os.path.isfile(out_dir):
        return load_together(out_dir, dataset, device)
    try:  # the file may come from a stranger
        world = load_together(out_dir, dataset, device)
        if dataset == out_dir:
            dream = Dream(world, 1, 1.0, device)
            with torch.no_grad():
                dream.begin(np.zeros(1, int), 0)
                dream.step(0)
        return world
    except (checkpoint.CheckpointError, data.DataError):
        raise
    except Exception as e:
        reason = ' '.join(str(e).split())[:80]
        raise checkpoint.CheckpointError(
            out_dir, f'found no world in it that can be played ({type(e).__name__}: {reason})',
            'export it again') from e


def load_together(out_dir, dataset, device):
    """load_world, of stages that nobody tampered with."""
    dynamics, about = load_stage(out_dir, 'dynamics', device)
    parents = {stage: load_stage(out_dir, stage, device) for stage in about['parents']}
    checkpoint.expect(about, parents={stage: told['id'] for stage, (_, told) in parents.items()})
    # an earlier version knew no names
    about['action_names'] = about.get('action_names') or [''] * dynamics.config.n_actions
    tokenizer = parents['tokenizer'][0]
    action_model = parents['latent_actions'][0] if 'latent_actions' in parents else None
    if action_model:
        check_stride(parents['latent_actions'][1], about['config']['frame_stride'], out_dir)
    if dataset == out_dir and os.path.isfile(out_dir):
        recording = starts_of(read_world(out_dir))
    else:
        recording = data.load(dataset, tokenizer.config.patch_size, True, folder_of(out_dir))
    found = recording.frames.shape[1:3]
    expected = tokenizer.config.height, tokenizer.config.width
    cure = 'use its dataset, or train on this one'
    if found != expected:
        data.refuse(dataset, f'frames of {found}',
                    f'{expected} as the tokenizer in {out_dir} was trained on', cure)
    if about['config']['action_source'] == 'labels':
        n_actions = dynamics.config.n_actions
        if not recording.has_labels or recording.actions.max() >= n_actions:
            data.refuse(dataset, 'no such "actions"', f'whole numbers below {n_actions} as the '
                        f'dynamics in {out_dir} was trained on', cure)
        # a rare one has no name; the second of one name has a number after it
        pairs = zip(recording.action_names or [], about['action_names'])
        if not all(trained.startswith(name) for name, trained in pairs if trained):
            data.refuse(dataset, f'actions called {", ".join(recording.action_names)}',
                        f'{", ".join(about["action_names"])}, as the dynamics in {out_dir} was '
                        'trained on', cure)
    stages = {**{stage: told for stage, (_, told) in parents.items()}, 'dynamics': about}
    about['trained_on'] = {stage: told['data_id'] for stage, told in stages.items()}
    about['other_data'] = other_data(about['trained_on'], recording)
    if about['other_data']:
        print(printable(about['other_data']), flush=True)
    return tokenizer, action_model, dynamics, about, recording


# -----------------------------------------------------------------------------
# a world file: what export.py wrote


def folder_of(out_dir):
    """Where to write what is made of a world: out_dir, or beside a world file what is called like
    it."""
    return os.path.splitext(out_dir)[0] if os.path.isfile(out_dir) else out_dir


def read_world(path):
    """What a world file holds, as checkpoint.load returns it: everything a stage's checkpoint has,
    with a level for the stages in it. Raises checkpoint.CheckpointError."""
    ckpt = checkpoint.load(path, 'world')
    stages, starts = ckpt.get('stages'), ckpt.get('starts')
    needed = dict(config=dict, model_args=dict, parents=dict, iter=int, id=str)
    ok = isinstance(stages, dict) and {'tokenizer', 'dynamics'} <= stages.keys() <= STAGES.keys()
    for told in stages.values() if ok else ():
        ok = ok and isinstance(told, dict) and all(
            isinstance(told.get(key), kind) for key, kind in needed.items())
    if not ok:
        raise checkpoint.CheckpointError(path, 'found no stages in it that are a world',
                                         'export it again')
    c, told = stages['dynamics']['config'], stages['dynamics']
    names, n = told.get('action_names'), told['model_args'].get('n_actions')
    idle = told.get('idle')
    if not (isinstance(names, (list, tuple)) and len(names) == n and idle in (None, n)
            and all(isinstance(name, str) and name == printable(name) for name in names)
            and all(isinstance(told.get('data_id'), str) for told in stages.values())):
        raise checkpoint.CheckpointError(path, 'found no names of its actions in it',
                                         'export it again')
    if not (isinstance(c.get('frame_stride'), int) and c['frame_stride'] > 0
            and c.get('action_source') in ('latent', 'labels', 'none')):
        raise checkpoint.CheckpointError(path, 'found no frame_stride and action_source in it',
                                         'export it again')
    ok = isinstance(starts, dict) and isinstance(starts.get('frames'), torch.Tensor)
    if not ok or starts['frames'].dtype != torch.uint8 or starts['frames'].dim() != 4:
        raise checkpoint.CheckpointError(path, 'found no start frames in it', 'export it again')
    return ckpt


def stage_of(ckpt, stage):
    """What the checkpoint of one stage says, of all that a world file holds."""
    if stage not in ckpt['stages']:
        inside = ', '.join(ckpt['stages'])
        raise checkpoint.CheckpointError(ckpt['path'], f'found {inside} in it, and no {stage}',
                                         f'train a {stage}, and export it again')
    weights = {name.removeprefix(f'{stage}.'): t for name, t in ckpt['model'].items()
               if name.startswith(f'{stage}.')}
    return {**ckpt['stages'][stage], 'model': weights, 'path': ckpt['path']}


def starts_of(ckpt):
    """The start frames of a world file as a recording in which nothing was trained on."""
    starts = ckpt['starts']
    arrays = {key: value.numpy() for key, value in starts.items()
              if isinstance(value, torch.Tensor)}
    n, length = len(arrays['frames']), starts.get('length')
    ok = isinstance(length, int) and 0 < length <= n and arrays['frames'].shape[3] == 3
    if not ok or any(len(array) != n for array in arrays.values()):
        raise checkpoint.CheckpointError(ckpt['path'], 'found start frames that do not go together',
                                         'export it again')
    truth = {key.removeprefix('truth.'): array for key, array in arrays.items()
             if key.startswith('truth.')}
    names, fps, source = (starts.get(key) for key in ('action_names', 'fps', 'source'))
    return data.Dataset(
        path=ckpt['path'], frames=arrays['frames'], actions=arrays.get('actions'),
        action_names=[str(name) for name in names] if isinstance(names, (list, tuple)) else None,
        episode_starts=np.arange(0, n, length), fps=fps if isinstance(fps, float) else None,
        source=str(source) if source else None, data_id=ckpt['data_id'], truth=truth,
        all_held_out=True)


def check_stride(about, frame_stride, out_dir, stage='dynamics'):
    """Raises checkpoint.CheckpointError if stage 2, of which about is what its checkpoint says,
    learned what happens within steps of another length than those of a later stage."""
    found = about['config']['frame_stride']
    if found != frame_stride:
        raise checkpoint.CheckpointError(
            os.path.join(out_dir, 'latent_actions'),
            f'found frame_stride={found}, expected frame_stride={frame_stride} as {stage}.py has',
            f'give {stage}.py --frame_stride={found}, or train latent_actions.py again')


def other_data(trained_on, recording):
    """A sentence if a stage was trained on another recording, else ''. trained_on: the data_id of
    each stage, None if it is not known."""
    others = {stage: i for stage, i in trained_on.items() if i not in (recording.data_id, None)}
    if not others:
        return ''
    ids = ', '.join(sorted(set(others.values())))
    return (f'note: {recording.path} (data_id {recording.data_id}) is not what '
            f'{", ".join(others)} trained on (data_id {ids}): where the two share frames, some '
            'that are held out here were trained on')


def taken_actions(source, action_model, clip, recording, picks):
    """The actions (B,T-1) that were really taken in the clips (B,T,C,H,W) that start at frames
    `picks` of the recording, as the dynamics was trained to hear them; where nothing
    changes none, which is number n_actions. source: its `action_source`."""
    if source == 'latent':
        same = (clip[:, 1:] == clip[:, :-1]).flatten(2).all(2)
        return action_model.encode(clip).masked_fill(same, action_model.n_used)
    if source == 'labels':
        index = picks[:, None] + np.arange(clip.size(1) - 1)
        return torch.from_numpy(recording.actions[index]).to(clip.device)
    return torch.zeros(len(clip), clip.size(1) - 1, dtype=torch.int64, device=clip.device)


class Dream:
    """
    Games that go on as the world imagines, all at once, a frame for each action. `frames`
    (B,H,W,3) uint8 are what a person sees now.

    world: as load_world returns it. picks: the first frames (B,) of what is remembered, `memory`
    true frames of the recording, whose last one is seen first.
    """

    def __init__(self, world, maskgit_steps, temperature, device):
        self.tokenizer, self.action_model, self.dynamics, self.about, self.recording = world
        self.maskgit_steps, self.temperature = maskgit_steps, temperature
        self.device = device
        self.memory = self.dynamics.config.seq_len - 1  # frames that the world looks back

    def begin(self, picks, seed):
        stride, source = (self.about['config'][key] for key in ('frame_stride', 'action_source'))
        clip = data.clips(self.recording.frames, picks, self.memory, stride, self.device)
        # (B,memory-1), as the dynamics was trained to hear them
        actions = taken_actions(source, self.action_model, clip, self.recording, picks)
        self.go_on_from(clip, actions, seed)

    def begin_with(self, frames, seed):
        """Goes on from frames (B,H,W,3) uint8 of anywhere, as if they had stood still."""
        index = np.zeros(self.memory, int) + np.arange(len(frames))[:, None]
        clip = data.frames_at(frames, index, self.device)
        unknown = self.dynamics.config.n_actions
        self.go_on_from(clip, torch.full((len(clip), self.memory - 1), unknown,
                                         device=self.device), seed)

    def go_on_from(self, clip, actions, seed):
        self.tokens = self.tokenizer.encode(clip)  # (B,memory,N)
        self.actions = actions
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.show()

    def step(self, actions):
        """actions: (B,) whole numbers, or one for all."""
        actions = torch.as_tensor(actions, device=self.device).expand(len(self.tokens))
        taken = torch.cat([self.actions, actions[:, None]], 1)
        tokens = self.dynamics.generate(self.tokens, taken, self.maskgit_steps, self.temperature,
                                        self.generator)
        self.tokens, self.actions = tokens[:, 1:], taken[:, 1:]
        self.show()

    def show(self):
        shown = self.tokens if self.tokenizer.config.temporal else self.tokens[:, -1:]
        self.frames = pictures.to_uint8(self.tokenizer.decode(shown))[:, -1]


def likeness(tokenizer, clip):
    """How well the tokenizer draws a clip (B,T,C,H,W): its PSNR, in dB."""
    error = (tokenizer.decode(tokenizer.encode(clip)) - clip).square().mean()
    return round(psnr(error).item(), 1)


# what an action is called that does nothing
IDLE = 'noop', 'none', 'stay', 'idle', 'wait', 'nothing'


@torch.no_grad()
def facts_for_page(world, starts, device):
    """What play.html is told of a world: names of its actions ('' for one that has none), the one
    that is taken where no key is down (None: the world waits), sizes, frames/s. starts: the windows
    (n,) to start from."""
    tokenizer, _, dynamics, about, recording = world
    stride, memory = about['config']['frame_stride'], dynamics.config.seq_len - 1
    names = [str(name) for name in about['action_names']]
    idle = next((i for i, name in enumerate(names) if name.split(' ')[0].lower() in IDLE),
                about.get('idle'))
    some = starts[np.linspace(0, len(starts) - 1, 8).astype(int)]
    clip = data.clips(recording.frames, some, memory, stride, device)
    fps = round((recording.fps or 15) / stride, 1)
    return dict(names=names, idle=idle, memory=memory, height=tokenizer.config.height,
                width=tokenizer.config.width, fps=min(60, max(0.1, fps)),
                usual=likeness(tokenizer, clip), id=about['id'])


def play_html(facts):
    """The page of a world of which that is told."""
    with open(os.path.join(os.path.dirname(__file__), 'play.html'), encoding='utf-8') as f:
        # a name may not end the script
        return f.read().replace('WORLD', json.dumps(facts).replace('<', r'\u003c'), 1)


def synchronize(device):
    """Waits until the device has done what it was told to, before a clock is read."""
    if device.startswith('cuda'):
        torch.cuda.synchronize()
    if device == 'mps':
        torch.mps.synchronize()


# -----------------------------------------------------------------------------
# a recording as stage 3 sees it


def of_every_frame(recording, out_dir, name, compute, *key):
    """What compute(picks) says of every frame, from out_dir/cache if it stands there. key: all that
    it depends on besides the recording."""
    key = recording.data_id, *map(str, key)
    file = f'{name}_{configurator.hash_texts(*key):015x}.npy'
    folder = os.path.join(folder_of(out_dir), 'cache')
    return data.cached(os.path.join(folder, file), len(recording.frames), compute)


def latent_actions(recording, out_dir, action_model, weights_id, frame_stride, ctx, dtype, device):
    """The action (N,) that stage 2 says follows each frame. (Across a cut, or after the end, it is
    nonsense; no window holds one.) weights_id: of action_model."""
    last = len(recording.frames) - 1 - frame_stride

    @torch.no_grad()
    def compute(picks):
        pairs = data.clips(recording.frames, np.minimum(picks, last), 2, frame_stride, device)
        with ctx:
            return action_model.encode(pairs)[:, 0].cpu().numpy().astype(np.int32)

    return of_every_frame(recording, out_dir, 'actions', compute, dtype, weights_id, frame_stride)


def goes_on_elsewhere(differs, grid, episode_starts):
    """In which transitions (n,) nothing changes but what lies apart, by a token at least, from all
    that changed in the last three that did. Who plays leaves a trail; what happens away from it
    happens whatever he does. differs (n,N) bool: which tokens change, of a grid (h,w)."""
    n, (h, w) = len(differs), grid
    moves = np.flatnonzero(differs.any(1))
    episode = np.searchsorted(episode_starts, moves, 'right')
    changed = differs[moves].reshape(-1, h, w)
    wide = np.pad(changed, ((0, 0), (1, 1), (1, 1)))
    near = np.zeros_like(changed)
    for y in range(3):
        for x in range(3):
            near |= wide[:, y:y + h, x:x + w]
    apart = np.zeros(len(moves), bool)
    apart[1:] = episode[1:] == episode[:-1]  # what is the first of its episode has no trail
    for k in range(1, 4):
        touches = (changed[k:] & near[:-k]).any((1, 2))
        apart[k:] &= ~(touches & (episode[k:] == episode[:-k]))
    found = np.zeros(n, bool)
    found[moves] = apart
    return found


def lets_go(tokens, changes, actions, episode_starts):
    """In which transitions (n,) a key is released that does something while it is held, draws a
    sword, say: what was before the last change comes back, under the same action. Who has walked
    comes back by another. tokens (n+stride,N), of which so many change (n,), actions (n,)."""
    found, stride = np.zeros(len(changes), bool), len(tokens) - len(changes)
    for phase in range(stride):
        moves = np.flatnonzero(changes[phase::stride]) * stride + phase
        episode = np.searchsorted(episode_starts, moves, 'right')
        last, now = moves[:-1], moves[1:]
        back = (tokens[now + stride] == tokens[last]).all(1)
        found[now] = back & (actions[now] == actions[last]) & (episode[1:] == episode[:-1])
    return found


class Encoded:
    """
    The tokens of every frame and the action that follows each, computed by the earlier stages once
    and kept in out_dir/cache, where later runs find them. (A temporal tokenizer's tokens depend on
    the frames before, so they are computed for every clip anew.)

    ctx, dtype: of the autocast to compute under, and its name. Ends the process with exit code 3 or
    4 if recording, earlier stages, action_source and frame_stride do not go together. An earlier
    stage may have seen another recording, and that is said.
    """

    def __init__(self, recording, out_dir, action_source, frame_stride, ctx, dtype, device):
        self.recording, self.out_dir, self.frame_stride = recording, out_dir, frame_stride
        self.ctx, self.device = ctx, device
        self.tokenizer, about = load_stage(out_dir, 'tokenizer', device)
        self.stages = {'tokenizer': about}  # what the checkpoints of the earlier stages say
        self.action_model = None
        if action_source == 'latent':
            self.action_model, self.stages['latent_actions'] = load_stage(
                out_dir, 'latent_actions', device)
        # ids of the weights that stage 3 builds on
        self.parents = {stage: told['id'] for stage, told in self.stages.items()}
        self.check(action_source)
        self.frames = recording.frames
        if self.tokenizer.config.temporal:  # else each is looked at once, and the GPU stays free
            self.frames = data.to_device(recording.frames, device)
        self.tokens = of_every_frame(recording, out_dir, 'tokens', self.compute_tokens, dtype,
                                     self.parents['tokenizer'])
        if action_source == 'latent':
            self.actions = latent_actions(recording, out_dir, self.action_model,
                                          self.parents['latent_actions'], frame_stride, ctx, dtype,
                                          device)
            self.n_actions = self.action_model.n_used
        elif action_source == 'labels':
            self.actions = recording.actions.astype(np.int32)
            self.n_actions = int(recording.actions.max()) + 1
        else:
            self.actions = np.zeros(len(self.frames), np.int32)
            self.n_actions = 1
        differs = self.tokens[frame_stride:] != self.tokens[:-frame_stride]
        self.changes = differs.sum(1)  # tokens, from each frame to the next
        self.idle = None  # the action that does nothing, if the recording shows one
        if action_source == 'latent':
            c = self.tokenizer.config
            grid = c.height // c.patch_size, c.width // c.patch_size
            elsewhere = goes_on_elsewhere(differs, grid, recording.episode_starts)
            released = lets_go(self.tokens, self.changes, self.actions[:-frame_stride],
                               recording.episode_starts)
            self.actions = self.held(self.actions, elsewhere, released)
            if (self.actions == self.n_actions).mean() > 0.01:
                self.idle = self.n_actions
        self.all_tokens = data.to_device(self.tokens, device)
        self.all_actions = data.to_device(self.actions, device)

    def held(self, actions, elsewhere, released):
        """
        Where nothing changes, nothing tells what was pressed. For half of such transitions it is
        taken to be the action of the step before, as of one who goes on against a wall; for the
        others, and where an episode begins so, none, number n_actions, as of one who stands. None,
        too, where what changes does so `elsewhere` (n,), and where and after a key is `released`
        (n,). So a world learns what walls are, and that without a key it goes on and he who plays
        stands (RECORDS.md).
        """
        actions, stride = actions.copy(), self.frame_stride
        same = np.flatnonzero((self.changes == 0) | elsewhere | released)
        first = np.searchsorted(self.recording.episode_starts, same, 'right') - 1
        begins = same - stride < self.recording.episode_starts[first]
        begins |= released[same]  # and holds nothing
        half = np.random.default_rng(14).random(len(same)) < 0.5
        stands = begins | half | elsewhere[same]
        last = actions.copy()  # what was pressed last, in each place
        for t, no_past, none in zip(same, begins, stands):
            last[t] = self.n_actions if no_past else last[t - stride]
            actions[t] = self.n_actions if none else last[t]
        return actions

    def check(self, action_source):
        if self.action_model:
            check_stride(self.stages['latent_actions'], self.frame_stride, self.out_dir)
        trained_on = {stage: told.get('data_id') for stage, told in self.stages.items()}
        note = other_data(trained_on, self.recording)
        if note and ranks.rank() == 0:
            print(note, flush=True)
        recording, c = self.recording, self.tokenizer.config
        found, expected = recording.frames.shape[1:3], (c.height, c.width)
        if found != expected:
            configurator.stop(4, f'{recording.path} has frames of {found}, the tokenizer in '
                                 f'{self.out_dir} was trained on {expected}\n'
                                 'train the tokenizer again, or use its dataset')
        if action_source == 'labels' and not (recording.has_labels and self.frame_stride == 1):
            configurator.stop(3, f'{recording.path}: action_source=labels needs whole-number '
                                 '"actions" in the file, and frame_stride=1\n'
                                 'use --action_source=latent')

    @torch.no_grad()
    def compute_tokens(self, picks):
        """Frames (n,) -> their tokens (n,N)."""
        small = self.tokenizer.vocab_size <= 2 ** 15
        with self.ctx:
            tokens = self.tokenizer.encode(data.clips(self.frames, picks, 1, 1, self.device))
        return tokens[:, 0].cpu().numpy().astype(np.int16 if small else np.int32)

    def gather(self, picks, length):
        """tokens (B,length,N) and actions (B,length-1) of the windows that start at picks."""
        index = picks[:, None] + np.arange(length) * self.frame_stride
        if self.tokenizer.config.temporal:
            clip = data.clips(self.frames, picks, length, self.frame_stride, self.device)
            with torch.no_grad(), self.ctx:
                tokens = self.tokenizer.encode(clip)
        else:
            tokens = data.rows(self.all_tokens, index, self.device).long()
        return tokens, data.rows(self.all_actions, index[:, :-1], self.device).long()

    def held_out(self, n, shortest, length, seed):
        """First frames of n held-out windows of `length` frames, and that length; of the shortest
        one where no held-out episode is as long."""
        try:
            starts = data.windows(self.recording, 'val', length, self.frame_stride)
        except data.DataError:
            length = shortest
            starts = data.windows(self.recording, 'val', length, self.frame_stride)
        return data.draw(starts, n, seed), length

    def rare_ends(self, starts, seq_len):
        """
        Those of the windows in whose last step happens what is rare and much of the error: a new
        scene, under the action of the step before or under another; no token changes any more;
        another action is taken; a token comes that is rarer than what comes in nine steps of ten: a
        sword, somebody in front of somebody else. A list of arrays, without empty ones.

        A scene is new where more than a quarter of the tokens change: screens have ground in
        common. The step after one is of the first kind, too, or he who walks on goes back to the
        old screen.
        """
        last = starts + (seq_len - 2) * self.frame_stride
        before = np.maximum(last - self.frame_stride, 0)
        changes, another = self.changes[last], self.actions[last] != self.actions[before]
        changes_before, many = self.changes[before], self.tokenizer.n_tokens / 4
        scene, after_scene = changes > many, changes_before > many
        seen = self.rarest_new(last)
        usual = np.quantile(seen[changes > 0], 0.1) if changes.any() else 0
        kinds = (scene & ~another | after_scene, scene & another,
                 (changes == 0) & (changes_before > 0), (changes > 0) & another,
                 (seen < usual) & ~scene)
        return [starts[kind] for kind in kinds if kind.any()]

    def rarest_new(self, steps):
        """Steps, by their first frames (n,) -> how common the rarest token is that each brings: how
        often it is in the frames that the steps lead to (n,). Where nothing changes, beyond all."""
        parts = np.array_split(steps + self.frame_stride, len(steps) // 4096 + 1)
        count = sum(np.bincount(self.tokens[after].ravel(), minlength=self.tokenizer.vocab_size)
                    for after in parts)  # a few million tokens at once
        seen = []
        for after in parts:
            new = self.tokens[after] != self.tokens[after - self.frame_stride]
            seen.append(np.where(new, count[self.tokens[after]], count.sum() + 1).min(1))
        return np.concatenate(seen)

    def action_names(self, action_source):
        """
        What each action is called, where the dataset says: the label of more than half of its
        transitions in which something changed. Two actions of one name are told apart by number,
        the more frequent first; '' for a rare one or a mixture of labels. For the keys of those who
        play and for eval.py; no weight is trained on it.
        """
        names, recording = [''] * self.n_actions, self.recording
        if not recording.has_labels or self.frame_stride != 1 or action_source == 'none':
            return names
        t = data.windows(recording, 'train', 2)
        t = t[(self.changes[t] > 0) & (self.actions[t] < self.n_actions)]
        labels, index = np.unique(recording.actions, return_inverse=True)  # they may be any numbers
        counts = np.zeros((self.n_actions, len(labels)), int)
        np.add.at(counts, (self.actions[t], index[t]), 1)
        names_of = recording.action_names or range(labels[-1] + 1)
        words = [str(names_of[i]) for i in labels]
        used = []
        for action in counts.max(1).argsort()[::-1]:
            word, most = words[counts[action].argmax()], counts[action].max()
            if most > max(0.5 * counts[action].sum(), 0.005 * counts.sum()):
                names[action] = f'{word} {used.count(word) + 1}' if word in used else word
                used.append(word)
        return names
