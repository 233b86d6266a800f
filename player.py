"""Stage 4 from outside: what there is to learn from a recording, and somebody who plays."""
import functools
import os

import numpy as np
import torch
from torch.nn import functional as F

import configurator
import data
import pictures
from model import FSQ, InverseModel
from training import checkpoint, ranks
from world import check_stride, latent_actions, load_stage, of_every_frame, other_data

MAP_LABELS = 200  # transitions whose labels say which key a latent action is

# -----------------------------------------------------------------------------
# a recording as stage 4 sees it


class Played:
    """
    What was done in every frame of a recording, as J tokens of V values and as a vector of A
    numbers in [-1,1]; which of it is known is `action_source`:

    latent: the actions of stage 2, from the cache that stage 3 uses. J = 1; the vector is the code.
    labels: the recording's own. Whole numbers: J = 1, the vector is -1 and a 1 at the token. Floats
        (N,A): J = A, n_bins tokens each; from the 1st to the 99th percentile of the training part.
    inverse: as labels, of which an InverseModel is shown n_labels, and names all others itself.

    n_labels: transitions whose label may be seen, 0 = all. With `labels` those alone are learned,
    one step each. `acting` is what a checkpoint says of the actions. Raises DataError where the
    recording has not what it takes, CheckpointError for a stage 2 that does not go with it.
    """

    def __init__(self, recording, out_dir, action_source, n_labels, frame_stride, chunk, n_bins,
                 seed, ctx, dtype, device):
        self.recording, self.frame_stride, self.seed = recording, frame_stride, seed
        self.ctx, self.dtype, self.device = ctx, dtype, device
        self.out_dir, self.n_labels = out_dir, n_labels
        self.frames = data.to_device(recording.frames, device)
        self.parents, steps = {}, chunk - 1
        self.starts = {s: data.windows(recording, s, 2, frame_stride) for s in ('train', 'val')}
        longest = max(b - a for a, b in data.split(recording, 1)['train'])
        if longest < 1 + chunk * frame_stride:
            data.refuse(recording.path, f'episodes of at most {longest} frames',
                        f'{1 + chunk * frame_stride} in a row for chunk={chunk}, '
                        f'frame_stride={frame_stride}', 'lower chunk, or record longer episodes')
        if action_source == 'latent':
            self.learn_from_stage_2()
        else:
            self.check_labels(action_source)
            self.learn_from_labels(action_source, n_bins)
            if action_source == 'labels' and n_labels:
                self.starts['train'], steps = self.labelled, 0
        self.chunk = 1 + steps
        # the first and the last frame of each frame's episode, within its part
        ranges = data.split(recording, 1 + frame_stride)
        self.first, self.last = np.zeros((2, len(recording.frames)), np.int64)
        for a, b in ranges['train'] + ranges['val']:
            self.first[a:b], self.last[a:b] = a, b - 1
        known = self.tokens[self.starts['train']]
        self.median = np.median(self.vectors[self.starts['train']], 0)
        shares = [np.bincount(column) / len(known) for column in known.T]
        self.entropy = np.mean([-(p[p > 0] * np.log(p[p > 0])).sum() for p in shares])

    # where the actions come from

    def learn_from_stage_2(self):
        model, about = load_stage(self.out_dir, 'latent_actions', self.device)
        recording, c = self.recording, model.config
        found, expected = recording.frames.shape[1:3], (c.height, c.width)
        if found != expected:
            raise checkpoint.CheckpointError(
                os.path.join(self.out_dir, 'latent_actions'),
                f'was trained on frames of {expected}, {recording.path} has {found}',
                'train latent_actions.py again, or use its dataset')
        check_stride(about, self.frame_stride, self.out_dir, 'policy')
        note = other_data({'latent_actions': about.get('data_id')}, recording)
        if note and ranks.rank() == 0:
            print(note, flush=True)
        self.parents['latent_actions'] = about['id']
        codes = latent_actions(recording, self.out_dir, model, about['id'], self.frame_stride,
                               self.ctx, self.dtype, self.device)
        self.tokens = np.asarray(codes, np.int64)[:, None]
        self.table = FSQ(c.action_levels).codes(torch.arange(model.n_actions)).numpy()
        self.vectors = self.table[self.tokens[:, 0]]
        self.acting = dict(kind='codes', names=[''] * model.n_actions, values=[])
        if recording.actions is not None and self.frame_stride == 1:
            t = data.labelled(self.starts['train'], MAP_LABELS, self.seed)
            values = meaning_of_codes(codes[t], recording.actions[t], model.n_actions)
            self.acting.update(values=values.tolist())
            if recording.has_labels:
                self.acting['names'] = [name_of(v, recording) for v in values]

    def check_labels(self, action_source):
        recording, train = self.recording, self.starts['train']
        if recording.actions is None or self.frame_stride != 1:
            data.refuse(recording.path, 'no "actions" in it' if recording.actions is None else
                        f'frame_stride={self.frame_stride}',
                        f'"actions" of every frame, and frame_stride=1, for '
                        f'action_source={action_source}', 'use --action_source=latent')
        if self.n_labels > len(train):
            data.refuse(recording.path, f'{len(train)} transitions to train on',
                        f'at least n_labels={self.n_labels}', 'lower n_labels')

    def learn_from_labels(self, action_source, n_bins):
        recording = self.recording
        actions, train = recording.actions, self.starts['train']
        self.labelled = data.labelled(train, self.n_labels, self.seed) if self.n_labels else train
        if recording.has_labels:
            values, tokens = np.unique(actions, return_inverse=True)
            if len(values) > 2 ** 16:
                data.refuse(recording.path, f'{len(values):,} different actions',
                            'at most 65,536', 'use --action_source=latent')
            self.table = 2 * np.eye(len(values), dtype=np.float32) - 1
            self.acting = dict(kind='keys', values=values.tolist(),
                               names=[name_of(v, recording) for v in values])
            if action_source == 'inverse':
                tokens = self.named_by_inverse(tokens, len(values))
            self.tokens = tokens.reshape(-1, 1).astype(np.int64)
            self.vectors = self.table[self.tokens[:, 0]]
            return
        low, high = np.percentile(actions[self.labelled], (1, 99), axis=0)
        still = np.flatnonzero(high - low < 1e-6)
        if len(still):
            data.refuse(recording.path, f'action {still[0]} is always {low[still[0]]:.4g}',
                        'every number of "actions" to change', 'leave it out of the file')
        self.vectors = (2 * (actions - low) / (high - low) - 1).clip(-1, 1).astype(np.float32)
        if action_source == 'inverse':
            self.vectors = self.named_by_inverse(self.vectors, actions.shape[1])
        self.table = np.linspace(-1, 1, n_bins, dtype=np.float32)[:, None]
        self.tokens = np.rint((self.vectors + 1) / 2 * (n_bins - 1)).astype(np.int64)
        names = recording.action_names or [str(i) for i in range(actions.shape[1])]
        self.acting = dict(kind='numbers', names=[str(n) for n in names], values=[],
                           low=low.tolist(), high=high.tolist())

    def named_by_inverse(self, actions, n_outputs):
        """Of every frame the action that an InverseModel names, which has seen those of n_labels:
        tokens, or vectors (N,A)."""
        recording, frames, device = self.recording, self.recording.frames, self.device
        last = len(frames) - 2

        @functools.cache
        def learned():
            rng = np.random.default_rng([self.seed, 13])
            with torch.enable_grad(), torch.random.fork_rng():
                torch.manual_seed(self.seed)
                model = InverseModel(n_outputs).to(device)
                optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
                for it in range(200):
                    t = rng.choice(self.labelled, 64)
                    found = model(data.clips(frames, t, 2, 1, device))
                    target = torch.from_numpy(actions[t]).to(device)
                    loss = F.l1_loss if target.is_floating_point() else F.cross_entropy
                    loss(found, target).backward()
                    optimizer.step()
                    optimizer.zero_grad()
            return model

        @torch.no_grad()
        def compute(picks):
            found = learned()(data.clips(frames, np.minimum(picks, last), 2, 1, device))
            found = found.clamp(-1, 1) if actions.dtype == np.float32 else found.argmax(-1)
            return found.cpu().numpy()

        return np.asarray(of_every_frame(recording, self.out_dir, 'inverse', compute, self.n_labels,
                                         self.seed))

    # batches

    def clips(self, picks, seq_len):
        """The seq_len frames up to each of picks (B,T,C,H,W); before its episode its first one."""
        back = self.frame_stride * np.arange(seq_len - 1, -1, -1)
        index = np.maximum(picks[:, None] - back, self.first[picks][:, None])
        return data.frames_at(self.frames, index, self.device)

    def gather(self, picks, seq_len):
        """What policy.py trains on: clip, tokens (B,K,J), vectors (B,K,A) and whether each step
        (B,K) exists before the end of its episode."""
        index = picks[:, None] + self.frame_stride * np.arange(self.chunk)
        exists = index + self.frame_stride <= self.last[picks][:, None]
        index = np.minimum(index, len(self.tokens) - 1)
        tokens, vectors = (data.rows(x, index, self.device) for x in (self.tokens, self.vectors))
        exists = data.rows(exists, np.arange(len(picks)), self.device)
        return self.clips(picks, seq_len), tokens, vectors, exists

    def describe(self, model):
        """Tells a Policy what its tokens are, what the best constants know, and gives it clips to
        measure its drift by."""
        model.table.copy_(torch.from_numpy(self.table))
        model.median.copy_(torch.from_numpy(self.median))
        model.entropy.fill_(self.entropy)
        if model.energy_model is not None:
            picks = self.starts['val']
            picks = picks[np.linspace(0, len(picks) - 1, model.n_probe).astype(int)]
            model.probe.copy_(self.clips(picks, model.config.seq_len))

    def picture(self, clip, done, chosen, of_head):
        """Frames (B,T,C,H,W), and below each what was done, what the player would do, and what his
        head says: (tokens (B,K,J), vectors (B,K,A)), as words; numbers also as paths from the
        middle, white, red and yellow."""
        images = []
        for i, frame in enumerate(pictures.to_uint8(clip[:, -1])):
            lines, paths = [], []
            for who, (tokens, vectors, *_) in (('was', done), ('token', chosen), ('head', of_head)):
                tokens, vectors = tokens[i].cpu().numpy(), vectors[i].cpu().numpy()
                if self.acting['kind'] == 'numbers':
                    lines.append(f'{who} ' + ' '.join(f'{x:.1f}' for x in vectors[0]))
                    paths.append(vectors[:, :2])
                else:
                    words = [self.acting['names'][t] or str(t) for t in tokens[:, 0]]
                    lines.append(f'{who} ' + ' '.join(word[:5] for word in words))
            images.append(pictures.captioned(frame, lines, paths))
        columns = 4
        rows = [images[i:i + columns] for i in range(0, len(images), columns)]
        return np.concatenate([np.concatenate(row, 1) for row in rows if len(row) == columns])


def name_of(value, recording):
    """What the recording calls this action."""
    names = recording.action_names or []
    return str(names[value]) if 0 <= value < len(names) else str(value)


def meaning_of_codes(codes, actions, n_codes):
    """What each latent action is in the real game, as some transitions show: the key that most of
    its own have, or the median of their numbers; for one that occurs in none of them, of all."""
    meanings = []
    for code in range(n_codes):
        own = actions[codes == code] if (codes == code).any() else actions
        if own.ndim > 1:
            meanings.append(np.median(own, 0))
        else:
            values, counts = np.unique(own, return_counts=True)
            meanings.append(values[counts.argmax()])
    return np.stack(meanings)


# -----------------------------------------------------------------------------
# somebody who plays


class Player:
    """
    The policy of out_dir, and what its actions mean. best_of > 1: of so many chunks the one of
    lowest energy. temperature: 0 = the most likely tokens. by_head: as the head says. Raises
    CheckpointError.
    """

    def __init__(self, out_dir, device, temperature=1.0, best_of=1, by_head=False, seed=0):
        self.policy, self.about = load_stage(out_dir, 'policy', device)
        self.path = os.path.join(out_dir, 'policy')
        self.device, self.temperature = device, temperature
        self.best_of, self.by_head = best_of, by_head
        self.acting = self.about['acting']
        self.stride, self.seed = self.about['config']['frame_stride'], seed
        if best_of > 1 and self.policy.energy_model is None:
            configurator.stop(2, f'config: found best_of={best_of}, and a player with energy=off '
                                 f'in {self.path}\nexpected best_of=1, or train policy.py with '
                                 '--energy=isolated')
        self.begin()

    def expect(self, played):
        """Raises CheckpointError unless he has learned from actions such as those of `played`."""
        c, p = self.policy.config, played.acting
        found = (c.height, c.width), self.about['parents'], self.acting['kind']
        expected = played.recording.frames.shape[1:3], played.parents, p['kind']
        if p['kind'] == 'keys':
            found, expected = (*found, self.acting['values']), (*expected, p['values'])
        if found != expected or c.vocab_size != len(played.table) or (
                c.n_numbers != len(played.median)):
            raise checkpoint.CheckpointError(
                self.path, f'found a player of {found}, expected {expected} as '
                f'{played.recording.path} has', 'train policy.py again, or use its dataset')

    def begin(self, seed=None):
        """A new game: nothing has been seen."""
        self.seen = []
        seed = self.seed if seed is None else seed
        self.generator = torch.Generator(self.device).manual_seed(seed)

    def look(self, frames):
        """Sees the frames (B,H,W,3) uint8 that are shown now; those of all steps in turn."""
        now = data.frames_at(frames, np.arange(len(frames))[:, None], self.device)[:, 0]
        self.seen = [*self.seen, now][-self.policy.config.seq_len:]

    def decide(self):
        """What he would do next: tokens (B,J), vectors (B,A), probability (B,) of the tokens."""
        missing = self.policy.config.seq_len - len(self.seen)
        clip = torch.stack([self.seen[0]] * missing + self.seen, 1)
        if self.by_head:
            tokens, vectors = self.policy.choose_by_head(clip)
            return tokens[:, 0], vectors[:, 0], torch.ones(len(clip))
        tokens, vectors, p = self.policy.choose(clip, self.best_of, self.temperature,
                                                self.generator)
        return tokens[:, 0], vectors[:, 0], p

    def act(self, frames):
        """frames (n,H,W,3) -> what to do in the real game: keys (n,), or numbers (n,A)."""
        self.look(frames)
        tokens, vectors, _ = self.decide()
        if self.acting['kind'] == 'numbers':
            low, high = np.array(self.acting['low']), np.array(self.acting['high'])
            return low + (vectors.cpu().numpy() + 1) / 2 * (high - low)
        return np.array(self.acting['values'])[tokens[:, 0].cpu().numpy()]

    def enter(self, world):
        """Plays in the dream of a world (load_world's `about`) from now on: `dream_actions` says
        which of its actions each token is. Raises CheckpointError where that is not known."""
        source, kind = world['config']['action_source'], self.acting['kind']
        names, values = self.acting['names'], self.acting['values']
        found = f'found a player of {kind}, and a world with action_source={source}'
        cure = 'train policy.py with the same action_source as dynamics.py, or on its actions'
        if self.about['config']['frame_stride'] != world['config']['frame_stride']:
            found = (f'found a player with frame_stride={self.about["config"]["frame_stride"]}, '
                     f'expected {world["config"]["frame_stride"]} as the world has')
        elif source == 'latent' and kind == 'codes':
            if self.about['parents'] == {'latent_actions': world['parents']['latent_actions']}:
                self.dream_actions = np.arange(len(names))
                return
            found = 'found a player of another stage 2 than that of the world'
            cure = 'train policy.py again'
        elif source == 'labels' and kind != 'numbers' and len(values):
            self.dream_actions = np.array(values)
            return
        elif source == 'latent' and kind == 'keys':
            # a second code of one name has a number after it
            theirs = [name.split(' ')[0] for name in world['action_names']]
            unknown = [name for name in names if name not in theirs]
            if not unknown:
                self.dream_actions = np.array([theirs.index(name) for name in names])
                return
            found += f', in which no action is called {", ".join(unknown)}'
        raise checkpoint.CheckpointError(self.path, found, cure)

    def dream(self):
        """What he would do in the dream that he has entered: its action (B,), probability (B,)."""
        tokens, _, p = self.decide()
        return self.dream_actions[tokens[:, 0].cpu().numpy()], p
