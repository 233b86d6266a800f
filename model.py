"""
Every network of nanoworlds, in reading order: patches, attention, FSQ, Tokenizer,
LatentActionModel, Dynamics, Policy; then what training them takes: optimizers, FSDP, FLOPs.

B clips of T frames (C,H,W in [-1,1]); N tokens (patches) per frame; D = n_embd; V = vocab_size;
d = len(levels); nh heads of size hs. All models are trained through one contract:
loss, metrics = model(*batch). This file imports nothing else of the repository.
"""
import contextlib
import functools
import math
import warnings
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_nn
import torch.nn as nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint as compute_twice

# -----------------------------------------------------------------------------
# patches


def patchify(x, p):
    """(B,T,C,H,W) -> (B,T,N,C*p*p); p divides H and W."""
    B, T, C, H, W = x.shape
    x = x.reshape(B, T, C, H // p, p, W // p, p)
    return x.permute(0, 1, 3, 5, 2, 4, 6).reshape(B, T, (H // p) * (W // p), C * p * p)


def unpatchify(x, p, H, W):
    """(B,T,N,C*p*p) -> (B,T,C,H,W): the inverse of patchify."""
    B, T = x.shape[:2]
    x = x.reshape(B, T, H // p, W // p, -1, p, p)
    return x.permute(0, 1, 4, 2, 5, 3, 6).reshape(B, T, -1, H, W)


# -----------------------------------------------------------------------------
# attention

# torch.compile looks through the cache of rotary_cos_sin, which is right
warnings.filterwarnings('ignore', 'Dynamo detected a call to a .functools.lru_cache')


class SizeError(ValueError):
    """Sizes that do not go together. It ends a script in its own words."""
    exit_code = 2


def norm(x):
    """RMSNorm without parameters, of the type of x: under autocast CUDA would make it float32, and
    it would take twice the memory."""
    with torch.autocast(x.device.type, enabled=False):
        return F.rms_norm(x, (x.size(-1),))


@functools.lru_cache(maxsize=32)
def rotary_cos_sin(n, row, half, device, dtype):
    """Cosines and sines (n,P,half) of rotary position embedding for n places (Su et al. 2021,
    arXiv:2104.09864): of patches by row and column (P=2), `row` of them in a row of the frame, or,
    where `row` is 0, of frames by time (P=1)."""
    place = torch.arange(n, device=device)
    coordinates = [place // row, place % row] if row else [place]
    places = torch.stack(coordinates, 1).float()
    freq = 100.0 ** (-torch.arange(half, device=device) / half)  # base 100: clips are short
    angle = places[..., None] * freq
    return angle.cos().to(dtype), angle.sin().to(dtype)


def rotary(x, cos, sin):
    """x (...,L,hs) turned. Every coordinate turns its own share of the head, so that attention sees
    how far apart two places are along each."""
    a, b = x.unflatten(-1, (cos.size(1), 2, cos.size(2))).unbind(-2)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -2).flatten(-3)


class Attention(nn.Module):
    """Multi-head attention over the second-last axis; queries and keys are normalised (QK-norm)."""

    def __init__(self, n_embd, n_head):
        super().__init__()
        if n_embd % (4 * n_head):
            raise SizeError(f'config: found n_embd={n_embd} with n_head={n_head}\n'
                            f'expected n_embd to be a multiple of 4 * n_head = {4 * n_head}: '
                            'rotary turns pairs in two directions')
        self.n_head = n_head
        self.qkv = nn.Linear(n_embd, 3 * n_embd, bias=False)
        self.proj = nn.Linear(n_embd, n_embd, bias=False)

    def forward(self, x, row=0):
        """x (S,L,D): L patches in rows of `row`; or, with 0, L frames, none of which looks at a
        later one."""
        S, L, D = x.shape
        qkv = self.qkv(x).view(S, L, 3, self.n_head, D // self.n_head)
        qkv = qkv.permute(2, 0, 3, 1, 4)  # (3,S,nh,L,hs)
        qk = norm(qkv[:2])
        half = D // self.n_head // (4 if row else 2)
        q, k = rotary(qk, *rotary_cos_sin(L, row, half, x.device, qk.dtype))
        y = F.scaled_dot_product_attention(q, k, qkv[2], is_causal=not row)
        return self.proj(y.transpose(1, 2).reshape(S, L, D))


class Block(nn.Module):
    """
    Pre-norm transformer block: space attention (within a frame), causal time attention (one patch
    through the frames), MLP; each of the first two may be left out.

    grid_width: patches in a row of the frame. window: where a frame is larger than a square of so
    many patches and made of whole squares, patches see only their own square; 0 = all see all.
    """
    recompute = False  # of all blocks: compute the inside twice instead of keeping it for backward

    def __init__(self, n_embd, n_head, temporal, grid_width, spatial=True, window=0):
        super().__init__()
        self.grid_width, self.window = grid_width, window
        self.space = Attention(n_embd, n_head) if spatial else None
        self.time = Attention(n_embd, n_head) if temporal else None
        self.mlp = nn.Sequential(nn.Linear(n_embd, 4 * n_embd), nn.GELU(),
                                 nn.Linear(4 * n_embd, n_embd))

    def uses_windows(self, n_tokens):
        """Does a frame of so many patches divide into more than one whole window?"""
        if not self.window or n_tokens <= self.window ** 2:
            return False
        rows = n_tokens // self.grid_width
        return rows % self.window == 0 and self.grid_width % self.window == 0

    def forward(self, x):
        """x (B,T,N,D) -> the same shape."""
        if self.recompute:
            return compute_twice(self.inside, x, use_reentrant=False)
        return self.inside(x)

    def inside(self, x):
        B, T, N, D = x.shape
        if self.space is not None and self.uses_windows(N):
            w = self.window
            rows, columns = N // self.grid_width // w, self.grid_width // w  # of windows
            y = norm(x).view(B * T, rows, w, columns, w, D)
            y = y.transpose(2, 3).reshape(-1, w * w, D)
            y = self.space(y, w).view(B * T, rows, columns, w, w, D)
            x = x + y.transpose(2, 3).reshape(B, T, N, D)
        elif self.space is not None:
            # by row and column, so that "the patch to the left" is learned once for all places
            x = x + self.space(norm(x).view(B * T, N, D), self.grid_width).view(B, T, N, D)
        if self.time is not None:
            y = norm(x).transpose(1, 2).reshape(B * N, T, D)
            x = x + self.time(y).view(B, N, T, D).transpose(1, 2)
        return x + self.mlp(norm(x))


def init_weights(model):
    """Small normal weights. What writes into the residual stream starts at zero, so that every
    block starts as the identity."""
    for m in model.modules():
        if isinstance(m, nn.Embedding):
            nn.init.normal_(m.weight, std=0.02)
        if isinstance(m, nn.Linear):
            nn.init.normal_(m.weight, std=m.in_features ** -0.5)
            if m.bias is not None:
                nn.init.zeros_(m.bias)
    for m in model.modules():
        if isinstance(m, Attention):
            nn.init.zeros_(m.proj.weight)
        if isinstance(m, Block):
            nn.init.zeros_(m.mlp[-1].weight)


# -----------------------------------------------------------------------------
# FSQ


class FSQ(nn.Module):
    """Finite scalar quantisation (Mentzer et al. 2023, arXiv:2309.15505): each of d numbers is
    rounded to one of its levels, and the d roundings together are the token. There is no codebook
    to learn and none to collapse. Bounded with a sigmoid, so that any number of levels, odd or
    even, lies evenly in [-1,1]."""

    def __init__(self, levels):
        super().__init__()
        self.vocab_size = math.prod(levels)
        base = torch.tensor([1, *levels[:-1]]).cumprod(0)
        self.register_buffer('levels', torch.tensor(levels), persistent=False)
        self.register_buffer('base', base, persistent=False)

    def forward(self, z):
        """Latents (...,d) -> codes (...,d) in [-1,1] and tokens (...). The gradient passes the
        rounding unchanged."""
        x = self.places(z)
        i = x.round()
        code = 2 * (x + (i - x).detach()) / (self.levels - 1) - 1
        return code, (i.long() * self.base).sum(-1)

    def places(self, z):
        """Latents (...,d) -> where they lie on the way from the lowest level, 0, to the highest."""
        return torch.sigmoid(z) * (self.levels - 1).to(z.dtype)

    def codes(self, tokens):
        """Tokens (...) -> codes (...,d), float32."""
        i = tokens[..., None] // self.base % self.levels
        return 2 * i.float() / (self.levels - 1) - 1


def code_usage(tokens, vocab_size):
    """Fraction of the vocabulary that occurs in tokens, and the entropy (nats) of how often each
    does. A token vocab_size is none."""
    tokens = tokens.flatten()
    ones = torch.ones_like(tokens, dtype=torch.float32)
    p = torch.zeros(vocab_size + 1, device=tokens.device)
    p = p.index_add_(0, tokens, ones)[:-1]  # torch.bincount would wait for the GPU
    used, p = (p > 0).float().mean(), p / p.sum().clamp(min=1)
    return used, -(p * p.clamp(min=1e-10).log()).sum()


def psnr(mse):
    """Mean squared error on frames in [-1,1] -> decibels."""
    return -10 * torch.log10(mse / 4 + 1e-10)


# -----------------------------------------------------------------------------
# stage 1


@dataclass
class TokenizerConfig:
    height: int = 64
    width: int = 64
    patch_size: int = 8
    levels: tuple = (4, 4, 4, 4, 4)
    n_layer: int = 2  # of the decoder
    n_layer_encoder: int = 0  # 0: a patch's token depends on the patch alone
    n_head: int = 4
    n_embd: int = 128
    temporal: bool = False  # look at earlier frames too (Genie's choice); False: a frame is a frame


class Tokenizer(nn.Module):
    """Frames -> tokens -> frames. Trained by reconstruction."""

    changed_weight = 5  # of pixels that differ from the frame before or after, on top of 1

    def __init__(self, config):
        super().__init__()
        c = self.config = config
        grid_width = c.width // c.patch_size
        self.n_tokens = (c.height // c.patch_size) * grid_width
        self.fsq = FSQ(c.levels)
        self.vocab_size = self.fsq.vocab_size
        patch, d = 3 * c.patch_size ** 2, len(c.levels)
        self.embed = nn.Linear(patch, c.n_embd)
        first = Block(c.n_embd, c.n_head, False, grid_width, spatial=False)  # an MLP on each patch
        self.enc_blocks = nn.ModuleList([first])
        self.enc_blocks.extend(Block(c.n_embd, c.n_head, c.temporal, grid_width)
                               for _ in range(c.n_layer_encoder))
        self.to_latent = nn.Linear(c.n_embd, d)
        self.from_code = nn.Linear(d, c.n_embd)
        self.dec_pos = nn.Parameter(0.02 * torch.randn(self.n_tokens, c.n_embd))
        # tokens already say what is where: in a large frame every other block looks at what is near
        # only, in a quarter of the time
        self.dec_blocks = nn.ModuleList(
            Block(c.n_embd, c.n_head, c.temporal, grid_width, window=16 if i % 2 else 0)
            for i in range(c.n_layer))
        self.to_patch = nn.Linear(c.n_embd, patch)
        init_weights(self)

    def latents(self, clip):
        """(B,T,C,H,W) -> (B,T,N,d), before quantising."""
        x = self.embed(patchify(clip, self.config.patch_size))
        for block in self.enc_blocks:
            x = block(x)
        return self.to_latent(norm(x)).float()

    def pixels(self, codes):
        """Codes (B,T,N,d) -> (B,T,C,H,W)."""
        x = self.from_code(codes) + self.dec_pos
        for block in self.dec_blocks:
            x = block(x)
        c = self.config
        return unpatchify(self.to_patch(norm(x)), c.patch_size, c.height, c.width).float()

    def encode(self, clip):
        """(B,T,C,H,W) -> tokens (B,T,N) int64."""
        return self.fsq(self.latents(clip))[1]

    def decode(self, tokens):
        """tokens (B,T,N) -> (B,T,C,H,W) in [-1,1]."""
        return self.pixels(self.fsq.codes(tokens)).clamp(-1, 1)

    def forward(self, clip):
        """clip (B,T,C,H,W) -> loss, metrics."""
        z = self.latents(clip)
        codes, tokens = self.fsq(z)
        error = (self.pixels(codes) - clip).square().mean(2)  # (B,T,H,W)
        # what moves is a few pixels and the point of it all: they weigh more, in both of the frames
        # that they differ between
        moved = (clip[:, 1:] - clip[:, :-1]).abs().amax(2) > 0.1
        changed = F.pad(moved, (0, 0, 0, 0, 1, 0)) | F.pad(moved, (0, 0, 0, 0, 0, 1))
        error_of_patch = F.avg_pool2d(error * (1 + self.changed_weight * changed),
                                      self.config.patch_size)
        # most patches are ground and soon drawn well; what is rare, a blade, would never get a
        # token. So the worse a patch is drawn for its clip, the more it weighs
        worse = error_of_patch.detach()
        worse = (worse / (worse.mean((1, 2, 3), keepdim=True) + 1e-9)).sqrt()
        loss = (error_of_patch * (0.1 + 0.9 * worse)).mean()
        # a change that no token tells is lost for stage 3, and where it is rare, the error of what
        # is drawn teaches too little (RECORDS.md): the latents of a patch that changes are pushed
        # apart, too, until a whole level is between them
        step = patchify((clip[:, 1:] - clip[:, :-1]).square(), self.config.patch_size).mean(-1)
        places = self.fsq.places(z)
        near = F.relu(1 - (places[:, 1:] - places[:, :-1]).abs().amax(-1))  # (B,T-1,N)
        loss = loss + self.changed_weight * (step * near).sum() / max(1, step.numel())
        used, _ = code_usage(tokens, self.vocab_size)
        return loss, {'psnr': psnr(error.detach().mean()), 'code_usage': used}

    def warnings(self, val):
        """What is wrong with a held-out evaluation, in sentences."""
        if val['val_code_usage'] * self.vocab_size < 2:
            yield ('every patch gets the same token: the tokenizer has collapsed. Lower '
                   'learning_rate, or look at the data')


# -----------------------------------------------------------------------------
# stage 2


@dataclass
class LatentActionConfig:
    height: int = 64
    width: int = 64
    patch_size: int = 8
    action_levels: tuple = (2, 2, 2)
    n_layer: int = 2
    n_head: int = 4
    n_embd: int = 128
    n_classes: int = 0  # different labels, where a few transitions have one


def matching_costs(before, after, changed, reach, step, blur):
    """
    How badly the frames `before` (S,C,h,w), moved by each displacement of a square window, explain
    what `changed` (S,1,h,w) in the frames `after`: (S,17,n,n), n = 2 * reach / step + 1, the mean
    absolute difference there, from (-reach,-reach) on: in the whole frame, and in each of 4 by 4
    parts of it. All in pixels.

    Both are blurred over squares of `blur` pixels and compared at every blur-th pixel, which leaves
    the true displacement a cost of zero and saves nearly all of the work.
    """
    n, k = 2 * reach // step, blur // step
    after, changed = F.avg_pool2d(after, blur), F.avg_pool2d(changed, blur)
    rows, columns = after.shape[-2:]
    margin = reach, reach + blur - step
    moved = F.avg_pool2d(F.pad(before, margin + margin, mode='replicate'), blur, step)
    # every k-th pixel, from each of the k*k first ones on, in one piece
    phases = [[moved[:, :, y::k, x::k].contiguous() for x in range(k)] for y in range(k)]
    errors = []
    for y in range(n, -1, -1):  # the scene moves right where the window moves left
        for x in range(n, -1, -1):
            shifted = phases[y % k][x % k][:, :, y // k:y // k + rows, x // k:x // k + columns]
            error = (shifted - after).abs_().mean(1, keepdim=True)
            errors.append(F.adaptive_avg_pool2d(error * changed, 4).flatten(1))
    errors = torch.stack(errors, 2)  # (S,16,n*n)
    changed = F.adaptive_avg_pool2d(changed, 4).flatten(1)[..., None]
    # of a changed pixel; less where hardly any has changed
    pixel = 1 / (blur ** 2 * rows * columns)
    whole = errors.mean(1, keepdim=True) / (changed.mean(1, keepdim=True) + pixel)
    parts = errors / (changed + 16 * pixel)
    return torch.cat([whole, parts], 1).unflatten(2, (n + 1, n + 1))


def likely_shifts(costs, together):
    """matching_costs (S,P,n,n) -> how likely each displacement is the true one (S,P,m), of which
    together * together are one."""
    costs = -F.max_pool2d(-costs, together).flatten(2)
    costs = (costs - costs.mean(2, keepdim=True)) / (costs.std(2, keepdim=True) + 1e-3)
    return (-12 * costs).softmax(2)


def scatter(x):
    """(...,n) -> the sum of the outer products x x^T (n,n), in double precision."""
    x = x.flatten(0, -2).double()
    return x.T @ x


def most_for_least(between, within, k):
    """The k directions v (n,k) with the largest ratios (k,) of v^T between v to v^T within v,
    scaled to v^T between v = 1 (Fisher's discriminant): the generalised eigenvectors of two
    covariances (n,n). What hardly varies at all is not worth knowing, so a twentieth of the mean
    variance is added to all of `within`."""
    n = len(within)
    within = within + (0.05 * within.trace() / n + 1e-6) * torch.eye(n, dtype=within.dtype)
    root = torch.linalg.cholesky(within)
    whitened = torch.linalg.solve_triangular(root, between, upper=False)
    whitened = torch.linalg.solve_triangular(root, whitened.T, upper=False)
    ratio, v = (x.flip(-1)[..., :k] for x in torch.linalg.eigh((whitened + whitened.T) / 2))
    v = torch.linalg.solve_triangular(root.T, v, upper=True)
    return ratio, v / ((v * (between @ v)).sum(0) + 1e-6).sqrt()


def k_means(x, weight, first, k, tries=4, rounds=40):
    """Centres (k,d) of points x (N,d) by Lloyd's algorithm (1957), the best of some tries. The
    first, (d,), is given and stays. Points of weight (N,) 0 have no say, unless there are too few
    others."""
    if (weight > 0).sum() < k:
        weight = torch.ones_like(weight)
    best, chosen, generator = math.inf, None, torch.Generator().manual_seed(0)
    for _ in range(tries):
        centres = x[torch.multinomial(weight, k, len(x) < k, generator=generator)]
        for _ in range(rounds):
            centres[0] = first
            nearest = F.one_hot(torch.cdist(x, centres).argmin(1), k) * weight[:, None]
            size = nearest.sum(0)[:, None]
            centres = torch.where(size > 0, nearest.T @ x / size.clamp(min=1e-9), centres)
        centres[0] = first
        error = (weight * torch.cdist(x, centres).amin(1) ** 2).sum()
        if error < best:
            best, chosen = error, centres
    return chosen


def take_turns(groups):
    """Groups that transitions are in, (n,T,k), 1 or 0 -> how often two of them are neighbours in
    time, each pair in both orders, (k,k), and how often that is beside chance (k,k)."""
    follows = groups[:, :-1].flatten(0, 1).T @ groups[:, 1:].flatten(0, 1)
    follows = follows + follows.T
    by_chance = follows.sum(0) * follows.sum(1, keepdim=True) / follows.sum().clamp(min=1)
    return follows, follows / by_chance.clamp(min=1e-6)


def keys_of(follows, often, centres):
    """
    What take_turns says of groups and their centres (k,d), of which the first is of what no
    displacement explains -> which key each is (k,), the number of one of the groups.

    Two are one key that is held where they take turns half as often again as by chance, and each
    goes on at least as often as that, if they are nearer to each other than to the first; or where
    they are hardly apart. Else they are two that are pressed in turns. A group that does not go on
    at all, nor takes turns with one in its direction, is nobody's key: what k-means has left over.
    """
    own, itself = often.diagonal(), torch.eye(len(often), dtype=torch.bool)
    takes_turns = (often > 1.5) & ~itself
    held = takes_turns & (often <= torch.minimum(own, own[:, None]))
    apart = torch.cdist(centres, centres)
    same = held & (apart < torch.minimum(apart[0], apart[:, :1])) | (apart < 0.5) | itself
    same[0, 1:] = same[1:, 0] = False
    way = F.normalize(centres - centres[0], dim=1)
    has_partner = (takes_turns & (way @ way.T > 0.5)).any(1)
    left_over = (follows.diagonal() <= 0.2 * follows.sum(1)) & ~has_partner
    return same.int().argmax(1).masked_fill(left_over, 0)


class LatentActionModel(nn.Module):
    """What was done between two frames, as one of n_actions codes, learned without labels.

    A teacher and a student. The teacher learns nothing by gradients: `find_motions` looks once at
    some clips and asks which displacements go on while a key is held. It knows two scales, near and
    far, of the whole frame and of its parts, and says how much a transition looks like each of
    n_actions motions; but it is blind where nothing has moved, and wrong where two things have. The
    student sees besides the pixels of frame t+1 that changed, and has to say what the teacher says
    of this transition or a neighbour. So what is peculiar to one transition (a ball, a creature, a
    flicker) is not worth learning, and what the picture tells carries over to where motion says
    little: a new screen, a hero who turns on the spot. For half of the transitions the student is
    not told of motion at all, and of most of these it is shown more of frame t+1 than has changed,
    up to all of it, from which it learns to find the hero among what does not matter.

    The student must not see what the hero looked like before. One that does finds a cheaper code
    than the action: players keep walking, so his facing predicts the motion, and "as before" and
    "turned" say the rest, which is useless on a keyboard.

    What does not move is left to the second task of the code: to tell a decoder what it needs to
    draw frame t+1 from frame t.

    Where a few transitions have a label, it is the number of their action, and the teacher goes by
    them (`hear_labels`).
    """

    # how far things are looked for: (reach, step, blur) in pixels of the frame at 64 pixels. What
    # moves far is large, so it may be looked for more coarsely, and 3 by 3 displacements are one
    near, far, together = (4, 1, 2), (14, 2, 4), 3
    n_whole = 9 ** 2 + 5 ** 2  # displacements of the whole frame
    n_shifts = n_whole + 3 ** 2 + 5 ** 2  # and those that its parts vote for
    n_slow = 10  # directions in which the displacements of neighbours are alike

    def __init__(self, config):
        super().__init__()
        c = self.config = config
        n = self.n_actions = math.prod(c.action_levels)
        patch = 3 * c.patch_size ** 2
        n_tokens = c.height * c.width // c.patch_size ** 2
        self.register_buffer('mean_shifts', torch.zeros(self.n_shifts))
        self.register_buffer('slow', torch.zeros(self.n_shifts, self.n_slow))
        self.register_buffer('teacher', torch.zeros(self.n_slow + 1, n))
        self.register_buffer('means', torch.eye(n))  # which action each group of motions is
        self.after = nn.Sequential(nn.Conv2d(4, 32, 5, 2, 2), nn.GELU(),
                                   nn.Conv2d(32, 64, 3, 2, 1), nn.GELU(),
                                   nn.Conv2d(64, 64, 3, 1, 1))
        self.encoder = nn.Sequential(nn.Linear(64 + self.n_slow, c.n_embd), nn.GELU(),
                                     nn.Linear(c.n_embd, c.n_embd), nn.GELU(),
                                     nn.Linear(c.n_embd, n))
        self.register_buffer('mean', torch.zeros(n))
        self.register_buffer('var', torch.ones(n))
        if c.n_classes > n:
            raise SizeError(f'config: found action_levels={c.action_levels}, {n} actions, for '
                            f'{c.n_classes} different labels\nexpected an action for each: use '
                            f'--action_levels=({c.n_classes},), or --n_labels=0')
        self.embed = nn.Linear(patch, c.n_embd)
        self.pos = nn.Parameter(0.02 * torch.randn(n_tokens, c.n_embd))
        self.from_code = nn.Linear(n, c.n_embd)
        self.blocks = nn.ModuleList(Block(c.n_embd, c.n_head, False, c.width // c.patch_size)
                                    for _ in range(c.n_layer))
        self.to_patch = nn.Linear(c.n_embd, patch)
        init_weights(self)

    @property
    def n_used(self):
        """Actions are numbers below this one, of n_actions that there might have been."""
        return int(self.means.any(0).sum())

    @staticmethod
    def shrunk(clip):
        """(B,T,C,H,W) -> (B,T,C,h,w), about 64 pixels a side: enough to see what is done."""
        s = max(1, round(min(clip.shape[-2:]) / 64))
        if s == 1:
            return clip
        small = F.avg_pool2d(clip.flatten(0, 1), s)
        return small.view(*clip.shape[:3], *small.shape[-2:])

    @classmethod
    @torch.no_grad()
    def compare(cls, clip):
        """What there is to see of each transition; nothing is learned here.

        clip (B,T,C,H,W), S = B*(T-1) -> after (S,C,h,w): frame t+1; changed (S,1,h,w): 1 where it
        differs from frame t, else 0; shifts (S,n_shifts): which displacement explains that, near
        and far, as far as one does, and what the parts of the frame say; explained (S,): the share
        of the change that one explains.
        """
        x = cls.shrunk(clip)
        a, b = x[:, :-1].flatten(0, 1), x[:, 1:].flatten(0, 1)  # (S,C,h,w)
        changed = ((b - a).abs().amax(1, keepdim=True) > 0.1).float()  # of a range of 2
        shifts, votes, left = [], [], 1
        for scale, together in (cls.near, 1), (cls.far, cls.together):
            costs = matching_costs(a, b, changed, *scale)  # (S,1+16,n,n)
            still = costs[:, :, costs.size(2) // 2, costs.size(3) // 2]
            explained = (1 - costs.amin((2, 3)) / (still + 1e-3)).clamp(0, 1)
            # of the far ones counts what they explain of the rest: some moving by chance looks
            # like what was near, since the ground repeats
            explained = ((explained - 1 + left) / (left + 0.01)).clamp(0, 1)
            left = left * (1 - explained)
            # three quarters is as good as all, in a video
            trust = (explained / 0.75).clamp(max=1)[..., None]
            shifts.append((trust[:, :1] * likely_shifts(costs[:, :1], together))[:, 0])
            # in a part that stands still all are as likely, and that is no vote
            vote = (trust[:, 1:] * likely_shifts(costs[:, 1:], cls.together)).mean(1)
            votes.append(vote - vote.mean(1, keepdim=True))
        # where two things move, or one walks through a room, no displacement is that of all: so
        # the parts have a vote, the more the less one explains
        explained = 1 - left[:, 0]
        votes = (1 - explained[:, None] ** 4) * torch.cat(votes, 1)
        return b, changed, torch.cat([*shifts, votes], 1), explained

    @classmethod
    def best_shift(cls, clip):
        """Clip (B,T,C,H,W) -> the number of the displacement (B,T-1) that explains more than half
        of the change, or -1: what happened, as far as it can be said without learning."""
        shifts, explained = cls.compare(clip)[2:]
        best = shifts[:, :cls.n_whole].argmax(1)
        return torch.where(explained > 0.5, best, -1).view(len(clip), -1)

    def moving(self, changed):
        """Masks (S,1,h,w) -> (S,), 1 where so much has changed that something can be known."""
        return (changed.mean((1, 2, 3)) > 0.002).float()

    def motion(self, shifts):
        """(S,n_shifts) -> (S,n_slow): where to and how far, in (-1,1), as far as it lasts."""
        with torch.autocast(shifts.device.type, enabled=False):  # small differences count
            return torch.tanh((shifts - self.mean_shifts) @ self.slow)

    def teach(self, motion):
        """(S,n_slow) -> (S,n_actions) how much it looks like each action, in [0,1]."""
        groups = (motion[:, :, None] * self.teacher[:-1]).sum(1) + self.teacher[-1]
        return self.as_actions(groups.softmax(1))

    def as_actions(self, p):
        """Of groups (S,n_actions) -> of the actions that they are, (S,n_actions)."""
        return (p[:, :, None] * self.means).sum(1)  # autocast would round a matrix product

    def look(self, clip):
        """`compare`, with the motion in place of the shifts."""
        after, changed, shifts, explained = self.compare(clip)
        return after, changed, self.motion(shifts), explained

    @torch.no_grad()
    def find_motions(self, clips):
        """
        The teacher's lesson, before the training, from an iterable of clips (B,T,C,H,W).

        The directions in which displacements differ most for how little they differ between
        neighbouring transitions (slow feature analysis, Wiskott and Sejnowski 2002, solved as
        Fisher's discriminant with neighbours as the class), and n_actions groups along them.
        """
        seen = []
        for clip in clips:
            after, changed, shifts, explained = self.compare(clip)
            seen.append([x.view(len(clip), clip.size(1) - 1, -1).cpu()
                         for x in (shifts, self.moving(changed))])
        shifts, moving = (torch.cat(x) for x in zip(*seen))
        mean = (moving * shifts).sum((0, 1)) / moving.sum().clamp(min=1)
        both = moving[:, 1:] * moving[:, :-1]
        x, step = moving * (shifts - mean), both * (shifts[:, 1:] - shifts[:, :-1])
        between = scatter(x) / moving.sum().clamp(min=1)
        within = scatter(step) / (2 * both.sum().clamp(min=1))
        ratio, slow = most_for_least(between, within, self.n_slow)
        self.mean_shifts.copy_(mean)
        self.slow.copy_(slow)
        excess = (ratio - 1).clamp(min=1e-6)
        importance = (excess / excess[0]).sqrt().float()
        points = self.motion(shifts.flatten(0, 1).to(self.slow.device)).cpu() * importance
        # the first group is of what no displacement explains: a sword, say
        nothing = self.motion(torch.zeros_like(self.mean_shifts)).cpu() * importance
        centres = k_means(points, moving.flatten(), nothing, self.n_actions)
        # Gaussians 0.5 wide: a point x belongs to a centre c like exp(-2 (x - c)^2), which is like
        # exp(4xc - 2cc). So where a motion has got two groups, the student may say either
        self.teacher[:-1] = 4 * (importance * centres).T
        self.teacher[-1] = -2 * centres.square().sum(1)
        # groups that are one key are one action: else the decoder would have them tell which way a
        # sword points, which it can see in frame t. Numbers without a gap, for later stages know of
        # no others
        groups = self.codes(torch.cdist(points, centres).argmin(1)).view(*moving.shape[:2], -1)
        keys = keys_of(*take_turns(groups * moving), centres)
        self.means.copy_(self.codes(keys.unique(return_inverse=True)[1]))
        self.agree()

    @torch.no_grad()
    def hear_labels(self, pairs):
        """Another lesson, from transitions whose label is known, an iterable of pairs of frames
        (b,2,C,H,W) and labels (b,): ridge regression of the labels on the motion. What it calls 1
        and not 0 is e^5 times as likely."""
        heard = [(self.look(pair)[2], F.one_hot(label, self.n_actions)) for pair, label in pairs]
        x, y = (torch.cat(z).double().cpu() for z in zip(*heard))
        x_mean, y_mean, std = x.mean(0), y.mean(0), x.std(0) + 0.02
        z = (x - x_mean) / std
        ridge = z.T @ z + torch.eye(self.n_slow)
        slope = torch.linalg.solve(ridge, z.T @ (y - y_mean)) / std[:, None]
        self.teacher.copy_(5 * torch.cat([slope, (y_mean - x_mean @ slope)[None]]))
        self.means.copy_(torch.eye(self.n_actions))
        self.agree()

    def agree(self):
        """All ranks hear the same: others may have rounded otherwise."""
        if dist.is_initialized():
            for found in self.mean_shifts, self.slow, self.teacher, self.means:
                dist.broadcast(found, 0)

    def reveal(self, changed):
        """A third of the masks (S,1,h,w) as they are, a third with a random box added, a third with
        everything."""
        S, _, h, w = changed.shape
        corners = torch.rand(S, 2, 2, device=changed.device).sort(1)[0]
        (top, left), (bottom, right) = corners.permute(1, 2, 0)[..., None]
        y, x = ((torch.arange(n, device=changed.device) + 0.5) / n for n in (h, w))
        box = ((y > top) & (y < bottom))[:, :, None] & ((x > left) & (x < right))[:, None]
        third = torch.randint(3, (S, 1, 1), device=changed.device)
        shown = (third == 1) & box | (third == 2)
        return torch.maximum(changed, shown[:, None].float())

    def latents(self, after, changed, motion):
        """What `look` returns -> (S,n_actions), each of the numbers with mean 0 and variance 1
        over what moves in the batch (over the running statistics at evaluation): no code can die,
        and none can take over, without an auxiliary loss."""
        moving = self.moving(changed)[:, None] + 1e-6  # nothing moves: all count
        if self.training:
            blind = torch.rand(len(motion), 1, device=motion.device) < 0.5
            motion = motion.masked_fill(blind, 0)
            changed = torch.where(blind[..., None, None], self.reveal(changed), changed)
        picture = self.after(torch.cat([after * changed, changed], 1))
        # float: a compiler may round before it compares with the maximum, and find no place as high
        picture = picture.float().amax((2, 3))
        z = self.encoder(torch.cat([norm(picture), motion], 1)).float()
        if self.training:
            moments = z, z.square(), torch.ones_like(z)
            moments = torch.stack([(moving * x).sum(0) for x in moments])
            if dist.is_initialized():  # the same statistics on all ranks
                moments = dist_nn.all_reduce(moments)
            mean, square = moments[:2] / moments[2]
            var = square - mean ** 2
            with torch.no_grad():
                self.mean.lerp_(mean, 0.05)
                self.var.lerp_(var, 0.05)
        else:
            mean, var = self.mean, self.var
        return (z - mean) * (var.clamp(min=0) + 1e-5).rsqrt()

    def quantise(self, z):
        """Latents (S,n_actions) -> the probability of each action (S,n_actions), codes
        (S,n_actions), 1 for the likeliest and else 0, whose gradient is that of the probabilities,
        and actions (S,)."""
        p = self.as_actions((3 * z).softmax(1))
        actions = p.argmax(1)
        return p, self.codes(actions) + p - p.detach(), actions

    def codes(self, actions):
        """Actions (...) -> codes (...,n_actions)."""
        # F.one_hot would wait for the GPU
        return (actions[..., None] == torch.arange(self.n_actions, device=actions.device)).float()

    def encode(self, clip):
        """(B,T,C,H,W) -> actions (B,T-1) int64 in [0,n_used)."""
        B, T = clip.shape[:2]
        after, changed, motion, explained = self.look(clip)
        actions = self.quantise(self.latents(after, changed, motion))[2]
        # who turns against a wall moves nowhere, and no displacement leads to a new screen. But
        # whole frames tell where those look who walk, and if that is another way than before, or
        # the screen is another, it is the key of that way; not where what moves tells more
        still = self.teach(self.motion(torch.zeros_like(self.mean_shifts[None]))).argmax()
        unclear = (explained < 0.5) | (actions == still)
        pairs = torch.stack([clip[:, :-1], clip[:, 1:]], 2).flatten(0, 1)[unclear]
        frames = self.shrunk(pairs).flatten(0, 1)
        everything, nothing = torch.ones_like(frames[:, :1]), motion.new_zeros(1, self.n_slow)
        p = self.quantise(self.latents(frames, everything, nothing.expand(len(frames), -1)))[0]
        p[:, still] = 0
        p, way = F.normalize(p, 1, 1).view(-1, 2, self.n_actions).max(2)
        turns = (way[:, 1] != way[:, 0]) & (p.amin(1) > 0.5)
        enters = (actions[unclear] == still) & (changed[unclear].mean((1, 2, 3)) > 0.3)
        enters &= p[:, 1] > 0.9
        actions[unclear] = torch.where(turns | enters, way[:, 1], actions[unclear])
        return actions.view(B, T - 1)

    def predict(self, clip, codes):
        """`next_frames` for those outside: with FSDP their call gathers the weights first."""
        return self.next_frames(clip, codes)

    def next_frames(self, clip, codes):
        """Frames t (B,T,C,H,W) and the codes (B,T,n_actions) of what is done -> frames t+1."""
        c = self.config
        x = self.embed(patchify(clip, c.patch_size)) + self.pos + self.from_code(codes)[:, :, None]
        for block in self.blocks:
            x = block(x)
        return clip + unpatchify(self.to_patch(norm(x)), c.patch_size, c.height, c.width).float()

    def forward(self, clip, pair=None, label=None):
        """clip (B,T,C,H,W) -> loss, metrics. Where a few transitions have a label, some of these,
        pair (b,2,C,H,W), and what they are called, label (b,) in [0,n_classes)."""
        B, S = len(clip), clip.size(1) - 1
        *seen, explained = self.look(clip)
        changed, motion = seen[1:]
        if pair is not None:  # one batch, normalised together
            seen = [torch.cat(both) for both in zip(seen, self.look(pair))]
        p, codes, actions = self.quantise(self.latents(*seen))
        labelled, actions = p[B * S:], actions[:B * S]
        p, codes = (x[:B * S].view(B, S, -1) for x in (p, codes))
        # 1. what does the teacher say of this transition or its neighbours? The more a displacement
        # explains, the more it counts. To agree with one of the three is enough: a hero who turns
        # does not go on as before, and if he had to agree with all, "turned" would be an action
        taught = self.teach(motion).view(B, S, -1)
        t = torch.arange(S, device=clip.device)
        near = ((t[:, None] - t).abs() <= 1).float()
        weight = near / near.sum(1, keepdim=True) * explained.view(B, 1, S) ** 4
        total = weight.sum(2) + 1e-6
        agrees = (weight * (p @ taught.mT)).sum(2) / total
        motion_loss = -(total * self.moving(changed).view(B, S) * (agrees + 1e-6).log()).mean()
        # 2. the last frame. Every transition counts the same, a step of the hero as much as a new
        # screen. One of a clip is enough: all of them take half as long again
        before, last = clip[:, -2:-1], clip[:, -1:]
        error = (self.next_frames(before, codes[:, -1:]) - last).square().mean(2)
        changed = ((last - before).abs().amax(2) > 0.1).float()
        weight = changed / (changed.sum((2, 3), keepdim=True) + 64) + 0.1 / changed[0, 0].numel()
        pixel_loss = (weight * error).sum((2, 3)).mean()
        # more weight on 2 and the codes turn relative: "turned" gets one of its own
        loss = motion_loss + 0.1 * pixel_loss
        # 3. what is it called, where that is known? So a code is what a key does
        if pair is not None:
            loss = loss + 0.2 * F.nll_loss((labelled + 1e-6).log(), label)
        used, entropy = code_usage(actions, self.n_actions)
        return loss, {'psnr': psnr(error.detach().mean()), 'action_entropy': entropy,
                      'unique_actions': used * self.n_actions, 'codebook_usage': used}

    def warnings(self, val):
        """What is wrong with a held-out evaluation, in sentences."""
        if val['val_action_entropy'] < 0.1 * math.log(self.n_actions):
            yield ('one action takes over: nearly all transitions have the same. Lower '
                   'learning_rate, or look at the data')


# -----------------------------------------------------------------------------
# stage 3


@dataclass
class DynamicsConfig:
    vocab_size: int = 1024
    n_tokens: int = 64  # N, per frame
    grid_width: int = 8  # tokens in a row of the frame
    n_actions: int = 8
    seq_len: int = 3  # frames it sees at once: the past and the new one
    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 128
    corrupt: float = 0.1  # up to this fraction of the past's tokens are replaced by random ones


class Dynamics(nn.Module):
    """Past tokens and actions -> the next frame's tokens, by masked prediction (MaskGIT, Chang et
    al. 2022, arXiv:2202.04200; as a world model in Genie, Bruce et al. 2024, arXiv:2402.15391).

    Sampling meets one situation only, a clean past and one frame that is partly masked, so that is
    what is trained. The past is not a sequence to attend to but is summed into the new frame: every
    patch is the sum of what each of the frames shows there and of the action that led to it, with
    embeddings of its own for every age (as pixels are stacked in Diamond, Alonso et al. 2024,
    arXiv:2405.12399). All attention is within that one picture, which takes half the time of
    attention over space and time, and has learned more after the same number of updates
    (RECORDS.md).
    """

    changed_weight = 16  # of the tokens that change from the last frame to the new one, together
    doubt = 0.05  # how likely one of the tokens that are drawn together may be wrong

    def __init__(self, config):
        super().__init__()
        c = self.config = config
        # a large vocabulary is written with two digits, each embedded and predicted by itself: 2 *
        # 256 rows instead of 65,536. But the first is told to the second, or half of one likely
        # token would be drawn with half of another
        self.n_digits = 1 if c.vocab_size <= 4096 else 2
        self.base = math.ceil(c.vocab_size ** (1 / self.n_digits))
        self.register_buffer('place', self.base ** torch.arange(self.n_digits), persistent=False)
        # a table for every age (and digit), one below the other; the last row of each is the mask,
        # or an action that is not known
        self.tokens = nn.Embedding(c.seq_len * self.n_digits * (self.base + 1), c.n_embd)
        self.actions = nn.Embedding(c.seq_len * (c.n_actions + 1), c.n_embd)
        self.pos = nn.Parameter(0.02 * torch.randn(c.n_tokens, c.n_embd))
        self.blocks = nn.ModuleList(Block(c.n_embd, c.n_head, False, c.grid_width)
                                    for _ in range(c.n_layer))
        self.head = nn.Linear(c.n_embd, self.n_digits * self.base, bias=False)
        if self.n_digits == 2:
            self.pairs = nn.Embedding(self.base, self.base)
        init_weights(self)

    def digits(self, tokens):
        """tokens (...) -> (...,n_digits), the lowest first."""
        return tokens[..., None] // self.place % self.base

    def logits(self, x):
        """What trunk returns (...,D) -> (...,n_digits,base), float32."""
        return self.head(x).float().unflatten(-1, (self.n_digits, self.base))

    def told(self, logits, first=None):
        """logits (...,n_digits,base) as they are where the first digit is `first` (...), or the
        likeliest."""
        if self.n_digits == 1:
            return logits
        if first is None:
            first = logits[..., 0, :].argmax(-1)
        return torch.stack([logits[..., 0, :], logits[..., 1, :] + self.pairs(first)], -2)

    def embed(self, tokens, first=0):
        """Frames first, first + 1, ... of a clip, tokens (B,n,N) -> the sum of their embeddings
        (B,N,D)."""
        table = torch.arange(first * self.n_digits, (first + tokens.size(1)) * self.n_digits,
                             device=tokens.device)
        is_mask = tokens[..., None] == self.config.vocab_size
        rows = torch.where(is_mask, self.base, self.digits(tokens))
        rows = rows + (table * (self.base + 1)).view(-1, 1, self.n_digits)
        return self.tokens(rows).sum((1, 3))

    def past(self, tokens, actions):
        """What the past says of each patch of the new frame; the same in every MaskGIT step.

        tokens (B,T-1,N) of the past and the actions (B,T-1), the last of which leads to the new
        frame; T = seq_len -> (B,N,D).
        """
        led_to = F.pad(actions, (1, 0), value=self.config.n_actions)  # the first's is not known
        age = torch.arange(led_to.size(1), device=tokens.device)
        actions = self.actions(led_to + age * (self.config.n_actions + 1)).sum(1)
        return self.embed(tokens) + actions[:, None] + self.pos

    def trunk(self, past, frame):
        """What `past` returns and the new frame's tokens (B,N) with its masks -> (B,N,D)."""
        x = (past + self.embed(frame[:, None], self.config.seq_len - 1))[:, None]  # (B,1,N,D)
        for block in self.blocks:
            x = block(x)
        return norm(x)[:, 0]

    def n_masked(self, B, i):
        """How many tokens the i-th of B clips hides in training: mask ratios U(0.5, 1), stratified
        over the batch. All batches hide the same number, so shapes are static, and the mean over
        ranks and micro-batches is the mean over tokens."""
        # ceil((0.5 + 0.5 (i + 0.5) / B) N)
        return -(-self.config.n_tokens * (2 * B + 2 * i + 1) // (4 * B))

    def forward(self, tokens, actions):
        """tokens (B,T,N), actions (B,T-1) -> loss (cross-entropy at the masked positions of the
        last frame), metrics."""
        c = self.config
        B, T, N = tokens.shape
        past, target = tokens[:, :-1], tokens[:, -1]
        changed = target != past[:, -1]
        if self.training and c.corrupt:
            noise = torch.rand_like(past, dtype=torch.float32)
            rate = c.corrupt * torch.rand(B, T - 1, 1, device=tokens.device)
            past = torch.where(noise < rate, torch.randint_like(past, c.vocab_size), past)
        n_masked = self.n_masked(B, torch.randperm(B, device=tokens.device))
        mask = torch.rand(B, N, device=tokens.device).argsort(-1) < n_masked[:, None]
        frame = target.masked_fill(mask, c.vocab_size)
        # the masked places by number, of which there are as many in every batch: the mask itself as
        # an index would wait for the GPU
        places = mask.flatten().int().argsort(descending=True, stable=True)
        places = places[:sum(self.n_masked(B, i) for i in range(B))]

        def loss_under(actions):
            x = self.trunk(self.past(past, actions), frame).flatten(0, 1)
            digits = self.digits(target.flatten()[places])
            logits = self.told(self.logits(x.index_select(0, places)), digits[:, 0])
            error = F.cross_entropy(logits.flatten(0, 1), digits.flatten(), reduction='none')
            error = error.view(-1, self.n_digits).sum(1)  # nats a token
            if not self.training:
                return error.mean()
            # a step of the hero changes a few tokens, a new screen all of them: a token that
            # changes alone counts most. The number that is logged stays the plain mean, to be held
            # against chance
            weight = 1 + self.changed_weight * changed / (changed.sum(1, keepdim=True) + 8)
            weighted = (weight.flatten()[places] * error).mean()
            return weighted + (error.mean() - weighted).detach()

        used, entropy = code_usage(actions, c.n_actions)
        metrics = {'action_entropy': entropy, 'unique_actions': used * c.n_actions,
                   'codebook_usage': used}
        if not self.training:  # do the actions matter to it?
            order = torch.randperm(actions.numel(), device=actions.device)
            # gather: the compiler of torch 2.13 cannot take an index by randperm
            shuffled = actions.flatten().gather(0, order).view_as(actions)
            metrics['shuffled_loss'] = loss_under(shuffled)
        return loss_under(actions), metrics

    def warnings(self, val):
        """What is wrong with a held-out evaluation, in sentences."""
        n_actions = self.config.n_actions
        if n_actions > 1 and val['val_action_entropy'] < 0.1 * math.log(n_actions):
            yield ('one action takes over: nearly all transitions have the same. Look at '
                   'latent_actions, or train it anew')
        if n_actions > 1 and val['val_shuffled_ratio'] < 1.02:
            yield ('the dynamics does not care which action it is given: with shuffled ones its '
                   'loss is no higher. Early in training that is normal')

    @torch.no_grad()
    def generate(self, tokens, actions, maskgit_steps=8, temperature=1.0, generator=None):
        """Imagine the frames after a context, one at a time, MaskGIT inside each.

        tokens (B,T,N): the context. actions (B,T-1+n): those between the context's frames, then one
        for each new frame. temperature divides the logits; 0 takes the most likely token. Returns
        (B,T+n,N). maskgit_steps: looks at a frame, at most.
        """
        c = self.config
        # of a past that is too short the first frame is repeated
        missing = max(0, c.seq_len - 1 - tokens.size(1))
        tokens = torch.cat([tokens[:, :1].expand(-1, missing, -1), tokens], 1)
        actions = F.pad(actions, (missing, 0), value=c.n_actions)
        for t in range(tokens.size(1), actions.size(1) + 1):
            window = slice(t - c.seq_len + 1, t)
            past = self.past(tokens[:, window], actions[:, window])
            frame = torch.full_like(tokens[:, 0], c.vocab_size)
            luck = torch.rand(frame.shape, device=frame.device, generator=generator)
            for step in range(maskgit_steps):
                if not (frame == c.vocab_size).any():
                    break
                logits = self.logits(self.trunk(past, frame))
                hidden_share = math.cos(math.pi / 2 * (step + 1) / maskgit_steps)  # after this step
                n_hidden = math.floor(hidden_share * c.n_tokens + 1e-6)
                drawn = self.to_draw(frame, self.told(logits), n_hidden, luck)
                frame = torch.where(drawn, self.sample(logits, temperature, generator), frame)
            tokens = torch.cat([tokens, frame[:, None]], 1)
        return tokens[:, missing:]

    def to_draw(self, frame, logits, n_hidden, luck):
        """
        Which hidden tokens of the frame (B,N) are drawn next (B,N) bool, so that n_hidden stay.

        The surest, of which hardly ever one is wrong (`doubt`), and one more; if that is not
        enough, others as luck (B,N) has it, the least first. So the ground stands after one look,
        and tokens that have to agree, of a hero or of a new screen, are drawn one after the other.
        (Like the entropy bound of Ben-Hamu et al. 2025, arXiv:2505.24857. Only the surest would
        copy the last frame: what does not move is always surest.)
        """
        hidden = frame == self.config.vocab_size
        wrong = 1 - logits.softmax(-1).amax(-1).prod(-1)  # the probability that the likeliest is
        wrong, order = wrong.masked_fill(~hidden, 1).sort(1)
        sure = torch.zeros_like(hidden).scatter(1, order, wrong.cumsum(1) - wrong <= self.doubt)
        n = torch.maximum(sure.sum(1), hidden.sum(1) - n_hidden)
        luck = luck.masked_fill(sure, -1).masked_fill(~hidden, 2)
        return hidden & (luck.argsort(1).argsort(1) < n[:, None])

    def sample(self, logits, temperature, generator):
        """logits (B,k,n_digits,base) -> tokens (B,k)."""
        tokens = 0
        for digit, place in enumerate(self.place):
            if digit:
                logits = self.told(logits, guess)
            if temperature == 0:
                guess = logits[..., digit, :].argmax(-1)
            else:
                # where a random number falls in the summed probabilities; torch.multinomial takes
                # 40 times as long on a CPU
                below = (logits[..., digit, :] / temperature).softmax(-1).cumsum(-1)
                u = torch.rand(below[..., :1].shape, device=logits.device, generator=generator)
                guess = torch.searchsorted(below, u * below[..., -1:], right=True)[..., 0]
                guess = guess.clamp(max=self.base - 1)
            tokens = tokens + guess * place
        return tokens.clamp(max=self.config.vocab_size - 1)


# -----------------------------------------------------------------------------
# stage 4


@dataclass
class PolicyConfig:
    height: int = 64
    width: int = 64
    seq_len: int = 1  # frames he sees, the last of them now
    patch_size: int = 8
    chunk: int = 4  # K, steps that he plans
    n_tokens: int = 1  # J, of a step
    vocab_size: int = 6  # V, values of a token
    n_numbers: int = 6  # A, of a step's vector
    n_layer: int = 3
    n_head: int = 4
    n_embd: int = 128
    shift: int = 0  # in training a clip is moved by up to so many patches
    ct_weight: float = 1.0  # of the vectors' loss
    energy: str = 'isolated'  # how the energy model is trained beside the policy, one of ENERGY
    energy_temperature: float = 0.5


ENERGY = ('off', 'isolated', 'separated', 'alternating', 'adaptive', 'cached', 'joint')


class ActionHead(nn.Module):
    """The J queries of a step, side by side (...,J*D) -> its vector (...,A). No tanh: it is cut to
    [-1,1] when acting."""

    def __init__(self, config):
        super().__init__()
        c, D = config, config.n_embd
        self.proj = nn.Linear(c.n_tokens * D, D)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(D, D), nn.GELU(), nn.Linear(D, D))
                                    for _ in range(2))
        self.out = nn.Linear(D, c.n_numbers)

    def forward(self, x):
        x = self.proj(x)
        for block in self.blocks:
            x = x + block(norm(x))
        return self.out(norm(x))


class Seen(NamedTuple):
    """What an Actor makes of a picture."""
    context: torch.Tensor  # (B,S,D), its patches
    logits: torch.Tensor  # (B,K,J,V), of the tokens
    vectors: torch.Tensor  # (B,K,A), of the head
    layers: torch.Tensor  # (B,n_layer-1,K,A), the head on the queries after every earlier block


class Actor(nn.Module):
    """
    The last T frames are stacked in the channels and cut into S patches; K*J learned queries follow
    as further rows of the same picture. No action is an input: the chunk of K steps comes out in
    one pass, and nothing can be copied from what was done before. It sees frames, not the tokens of
    stage 1, so it is not blind to what a tokenizer loses.
    """

    def __init__(self, config):
        super().__init__()
        c = self.config = config
        self.grid_width = c.width // c.patch_size
        self.n_patches = c.height // c.patch_size * self.grid_width
        n_rows = -(-c.chunk * c.n_tokens // self.grid_width)  # the last one is filled up
        self.embed = nn.Linear(3 * c.seq_len * c.patch_size ** 2, c.n_embd)
        self.pos = nn.Parameter(0.02 * torch.randn(self.n_patches, c.n_embd))
        self.queries = nn.Parameter(torch.randn(n_rows * self.grid_width, c.n_embd))
        self.blocks = nn.ModuleList(Block(c.n_embd, c.n_head, False, self.grid_width)
                                    for _ in range(c.n_layer))
        self.to_tokens = nn.Linear(c.n_embd, c.vocab_size)
        self.head = ActionHead(c)
        init_weights(self)
        # blocks that begin as the identity, under heads that are zero, take 400 updates to begin
        with torch.no_grad():
            self.to_tokens.weight.mul_(0.3)  # it begins next to a guess
            self.head.out.weight.mul_(0.3)
            for block in self.blocks:
                for last in (block.space.proj, block.mlp[-1]):
                    last.weight.normal_(std=0.5 * last.in_features ** -0.5)

    def forward(self, clip, places=None):
        """clip (B,T,C,H,W), perhaps which patch (B,S) is seen at each place -> Seen."""
        c = self.config
        x = self.embed(patchify(clip.flatten(1, 2)[:, None], c.patch_size))  # (B,1,S,D)
        if places is not None:
            x = x.gather(2, places[:, None, :, None].expand_as(x))
        x = x + self.pos
        x = torch.cat([x, self.queries.expand(len(x), 1, -1, -1)], 2)
        steps = []
        for block in self.blocks:
            x = block(x)
            queries = x[:, 0, self.n_patches:self.n_patches + c.chunk * c.n_tokens]
            steps.append(norm(queries).unflatten(1, (c.chunk, c.n_tokens)))  # (B,K,J,D)
        vectors = self.head(torch.stack(steps, 1).flatten(3)).float()  # (B,n_layer,K,A)
        return Seen(norm(x[:, 0, :self.n_patches]), self.to_tokens(steps[-1]).float(),
                    vectors[:, -1], vectors[:, :-1])


class EnergyModel(nn.Module):
    """How badly chunks fit to a picture, in float32: a chunk asks the patches by cross-attention,
    and an MLP judges question and answer. The energy may be any number. (Held between 0.1 and 2.1
    it could not bring the loss among 64 below 0.77.)"""

    def __init__(self, config):
        super().__init__()
        c, D = config, config.n_embd
        self.n_head = c.n_head
        self.ask = nn.Sequential(nn.Linear(c.chunk * c.n_numbers, 2 * D), nn.GELU(),
                                 nn.Linear(2 * D, D))
        self.look = nn.Linear(D, 2 * D)
        self.judge = nn.Sequential(nn.Linear(2 * D, 2 * D), nn.GELU(), nn.Linear(2 * D, 1))
        init_weights(self)

    def forward(self, context, chunks):
        """context (B,S,D), M chunks (B,M,K,A) -> energies (B,M), low = fits."""
        with torch.autocast(context.device.type, enabled=False):
            question = self.ask(chunks.float().flatten(2))  # (B,M,D)
            q = question.unflatten(-1, (self.n_head, -1)).transpose(1, 2)
            k, v = self.look(context.float()).unflatten(-1, (2, self.n_head, -1)).unbind(2)
            k, v = k.transpose(1, 2), v.transpose(1, 2)  # (B,nh,S,hs)
            answer = F.scaled_dot_product_attention(norm(q), norm(k), v)
            answer = answer.transpose(1, 2).flatten(2)
            return self.judge(torch.cat([question, answer], -1)).squeeze(-1)


class Policy(nn.Module):
    """
    What somebody who plays would do next, learned from watching him: a chunk of K steps, as tokens
    under cross-entropy and as vectors in [-1,1] under L1 (Zhao et al. 2023, arXiv:2304.13705, for
    chunks). Beside it an EnergyModel learns to tell the chunk that was played from wrong ones, with
    the cross-entropy of -E / temperature over all (InfoNCE, van den Oord et al. 2018,
    arXiv:1807.03748; energies of actions, Florence et al. 2021, arXiv:2109.00137).

    How far the two touch is `energy`. off: no energy model. isolated: it gets what the actor makes
    of the picture, without gradient. separated: from a second pass of its own. alternating: five
    updates for one, then five for the other. adaptive: who is restless leaves updates out. cached:
    from a copy of the actor that is renewed every 50 updates. joint: nothing is held apart. A part
    that makes no update has no gradient at all: under momentum, zeros would move its weights.
    """

    z_weight = 1e-5  # keeps the logits near zero
    n_drawn, n_others, n_noisy, noise = 4, 4, 3, 0.3  # wrong answers, of three kinds
    n_first = 16  # at most so many with another first action; of those with several tokens 4
    too_near = 0.05  # of the truth, on average over its numbers: not wrong
    turn, renewal = 5, 50  # updates, of alternating and of cached
    memory, restless = 10, 0.3  # of adaptive: updates that it looks back, and their std / mean
    n_probe = 8  # clips, by which the drift of the layer actions is measured

    def __init__(self, config):
        super().__init__()
        c = self.config = config
        self.actor = Actor(c)
        # the vector of a token, of a step's J tokens side by side; what the best constants know
        self.register_buffer('table', torch.zeros(c.vocab_size, c.n_numbers // c.n_tokens))
        self.register_buffer('median', torch.zeros(c.n_numbers))
        self.register_buffer('entropy', torch.zeros(()))  # nats, of the tokens
        self.energy_model = None
        if c.energy == 'off':
            return
        probe = torch.zeros(self.n_probe, c.seq_len, 3, c.height, c.width)
        self.register_buffer('probe', probe, persistent=False)
        self.register_buffer('probed', torch.zeros(self.n_probe, c.n_layer - 1, c.chunk,
                                                   c.n_numbers))
        self.register_buffer('drift', torch.zeros(()))
        self.probed_at = -1
        if c.energy == 'adaptive':  # losses of head and energy model, of the updates before and now
            self.register_buffer('history', torch.full((self.memory + 1, 2), -1.0))  # -1: not yet
            self.register_buffer('newest', torch.tensor(-1))
        if c.energy == 'cached':
            for name, p in self.actor.named_parameters():
                self.register_buffer(self.copy_name(name), p.detach().clone())
        self.energy_model = EnergyModel(c)  # last, so that the actor's first weights are as without

    @property
    def apart(self):
        """The modules that are trained apart."""
        if self.config.energy in ('off', 'joint'):
            return [self]
        return [self.actor, self.energy_model]

    # what a token is

    def vectors_of(self, tokens):
        """tokens (...,J) -> vectors (...,A)."""
        return self.table[tokens].flatten(-2)

    def nearest(self, vectors):
        """vectors (...,A) -> the tokens (...,J) that they are nearest to."""
        steps = vectors.unflatten(-1, (self.config.n_tokens, -1))
        return (steps[..., None, :] - self.table).square().sum(-1).argmin(-1)

    def draw(self, logits, n, temperature, generator=None):
        """logits (B,K,J,V) -> n chunks of tokens (B,n,K,J), each token by its probability."""
        below = (logits / temperature).softmax(-1).cumsum(-1)[:, None].expand(-1, n, -1, -1, -1)
        u = torch.rand(below[..., :1].shape, device=logits.device, generator=generator)
        tokens = torch.searchsorted(below.contiguous(), u * below[..., -1:], right=True)[..., 0]
        return tokens.clamp(max=self.config.vocab_size - 1)

    # the losses

    def forward(self, clip, tokens, vectors, exists, it=0):
        """clip (B,T,C,H,W), what was done: tokens (B,K,J), vectors (B,K,A) and whether the step
        (B,K) exists, number of the update -> loss (cross-entropy of the tokens, nats; its gradient
        is that of all losses together), metrics."""
        acts, judges = self.turns(it)
        places = self.moved_places(len(clip), clip.device) if self.training else None
        with torch.set_grad_enabled(acts and torch.is_grad_enabled()):
            seen = self.actor(clip, places)
            loss, total, metrics = self.imitation(seen, tokens, vectors, exists)
        if self.energy_model is None:
            return total + (loss - total).detach(), metrics
        # random numbers of its own, so that the actor learns the same without it
        generator = torch.Generator(clip.device).manual_seed(torch.initial_seed())
        given = self.given(seen, clip, places, it)
        with torch.set_grad_enabled(judges and torch.is_grad_enabled()):
            wrong = self.wrong_answers(given, tokens, vectors, generator)
            energy_loss, figures = self.judgement(given.context, vectors, wrong, exists)
        metrics.update(figures)
        if self.training:
            metrics['grad_policy_from_energy'] = self.leak(energy_loss)
            metrics['neg_drift'] = self.measure_drift(it)
            if self.config.energy == 'adaptive':
                self.remember(it, torch.stack([metrics['loss_ct'], energy_loss]).detach())
        trained = total + energy_loss
        return trained + (loss - trained).detach(), metrics

    def moved_places(self, B, device):
        """Which patch (B,S) is seen at each place when clips are moved at random by whole patches,
        the edges repeated: where things are is not to be learned by heart (random shifts, Kostrikov
        et al. 2020, arXiv:2004.13649). None where they are not moved."""
        c = self.config
        if not c.shift:
            return None
        down, right = torch.randint(-c.shift, c.shift + 1, (2, B, 1, 1), device=device)
        rows = torch.arange(c.height // c.patch_size, device=device)[:, None] + down  # (B,rows,1)
        columns = torch.arange(self.actor.grid_width, device=device) + right  # (B,1,columns)
        rows = rows.clamp(0, c.height // c.patch_size - 1)
        columns = columns.clamp(0, self.actor.grid_width - 1)
        return (rows * self.actor.grid_width + columns).flatten(1)

    def imitation(self, seen, tokens, vectors, exists):
        """-> loss of the tokens, what the actor is trained by, metrics; means over the steps that
        exist."""
        exists = exists.float()

        def mean(x):
            """Of something (B,K)."""
            return (x * exists).sum() / exists.sum()

        log_sum = seen.logits.logsumexp(-1)  # (B,K,J)
        right = seen.logits.gather(-1, tokens[..., None]).squeeze(-1)
        loss, z_loss = mean((log_sum - right).mean(-1)), mean(log_sum.square().mean(-1))
        loss_ct = mean((seen.vectors - vectors).abs().mean(-1))
        total = loss + self.config.ct_weight * loss_ct + self.z_weight * z_loss
        hit = (seen.logits.argmax(-1) == tokens).float().mean(-1)
        metrics = dict(total=total, loss_ct=loss_ct,
                       loss_ct_median=mean((self.median - vectors).abs().mean(-1)), z_loss=z_loss,
                       share_ct=self.config.ct_weight * loss_ct / total, accuracy=mean(hit),
                       accuracy_first=(hit[:, 0] * exists[:, 0]).sum() / exists[:, 0].sum())
        return loss, total, {name: x.detach() for name, x in metrics.items()}

    def wrong_answers(self, given, tokens, vectors, generator):
        """Chunks (B,M,K,A) that were not played: what the head says after earlier layers; some that
        the policy would draw, which it will have to judge; those of other clips; the true one with
        noise; the true one with another first action."""
        c, B, device = self.config, len(tokens), tokens.device
        drawn = self.vectors_of(self.draw(given.logits.detach(), self.n_drawn, 1, generator))
        others = torch.stack([vectors.roll(i + 1, 0) for i in range(self.n_others)], 1)
        noise = torch.randn(B, self.n_noisy, *vectors.shape[1:], device=device, generator=generator)
        if c.n_tokens == 1:
            offsets = torch.arange(1, c.vocab_size, device=device)
            if len(offsets) > self.n_first:
                order = torch.rand(len(offsets), device=device, generator=generator).argsort()
                offsets = offsets[order[:self.n_first]]
            first = self.table[(tokens[:, 0] + offsets) % c.vocab_size]  # (B,m,A)
        else:
            first = torch.rand(B, 4, c.n_numbers, device=device, generator=generator) * 2 - 1
        rest = vectors[:, None, 1:].expand(-1, first.size(1), -1, -1)
        return torch.cat([given.layers, drawn, others, vectors[:, None] + self.noise * noise,
                          torch.cat([first[:, :, None], rest], 2)], 1)

    def judgement(self, context, vectors, wrong, exists):
        """-> energy_loss and its metrics. Steps that do not exist are zero for all."""
        exists = exists.float()[:, None, :, None]
        chunks = torch.cat([vectors[:, None], wrong], 1) * exists  # (B,1+M,K,A)
        distance = (chunks - chunks[:, :1]).abs().sum((2, 3))
        distance = distance / (exists.sum((2, 3)) * self.config.n_numbers)
        counts = (distance > self.too_near).float()  # (B,1+M), 0 for the true one
        energy = self.energy_model(context, chunks)
        own, others = energy[:, :1], energy[:, 1:]
        counts = counts[:, 1:]
        logits = -energy / self.config.energy_temperature
        left_out = F.pad(counts == 0, (1, 0))
        loss = -logits.masked_fill(left_out, -math.inf).log_softmax(1)[:, 0].mean()
        n = counts.sum().clamp(min=1)
        lowest = others.masked_fill(counts == 0, math.inf).amin(1)
        metrics = dict(energy_loss=loss, n_negatives=counts.sum(1).mean(), e_pos=own.mean(),
                       e_neg=(others * counts).sum() / n,
                       rank_acc=(own[:, 0] < lowest).float().mean(),
                       pair_acc=((own < others) * counts).sum() / n)
        return loss, {name: x.detach() for name, x in metrics.items()}

    # how far the two touch

    def turns(self, it):
        """Do policy and energy model make update `it`?"""
        energy = self.config.energy
        if energy == 'alternating' and self.training:
            own_turn = (it - 1) // self.turn % 2 == 0
            return own_turn, not own_turn
        if energy == 'adaptive' and self.training:
            policy_share, energy_share = self.shares(it)
            return tuple(math.floor(it * share) > math.floor((it - 1) * share)
                         for share in (policy_share, energy_share))
        return True, energy != 'off'

    def shares(self, it):
        """Of adaptive: the shares of their updates that policy and energy model make. At first, and
        where its loss is restless, the energy model makes few."""
        before = self.history[:-1] if it == int(self.newest) else self.history[1:]
        if (before < 0).any():
            return 1, 0.1
        policy_rests, energy_rests = before.std(0) > self.restless * before.mean(0).abs()
        if policy_rests:
            return 0.5, 1
        return 1, 0.3 if energy_rests else 1

    def remember(self, it, losses):
        """The losses of update `it` (2,), a mean over its micro-batches and all ranks."""
        if dist.is_initialized():
            dist.all_reduce(losses)
            losses = losses / dist.get_world_size()
        if it != int(self.newest):
            self.history.copy_(self.history.roll(-1, 0))
            self.history[-1] = 0
            self.newest.fill_(it)
            self.n_remembered = 0
        self.n_remembered += 1
        self.history[-1] += (losses - self.history[-1]) / self.n_remembered

    def given(self, seen, clip, places, it):
        """What the energy model gets to see, Seen."""
        energy = self.config.energy
        if energy == 'joint':
            return seen
        if energy == 'separated' and self.training:
            with torch.no_grad():
                return self.actor(clip, places)
        if energy == 'cached' and self.training:
            names = [name for name, _ in self.actor.named_parameters()]
            copies = {name: self.get_buffer(self.copy_name(name)) for name in names}
            with torch.no_grad():
                if it % self.renewal == 1:
                    for name, p in self.actor.named_parameters():
                        copies[name].copy_(p)
                return functional_call(self.actor, copies, (clip, places))
        return Seen(*(x.detach() for x in seen))

    @staticmethod
    def copy_name(name):
        return 'copy_' + name.replace('.', '_')

    def leak(self, energy_loss):
        """The norm of the gradient of energy_loss on the actor's parameters: 0 where they are
        apart."""
        if not energy_loss.requires_grad:
            return torch.zeros_like(energy_loss)
        parameters = list(self.actor.parameters())
        found = torch.autograd.grad(energy_loss, parameters, retain_graph=True, allow_unused=True)
        squares = [g.square().sum() for g in found if g is not None]
        return torch.stack(squares).sum().sqrt() if squares else torch.zeros_like(energy_loss)

    @torch.no_grad()
    def measure_drift(self, it):
        """How much the layer actions of a fixed probe have moved within `renewal` updates, a mean
        over their numbers; of the last time that they were looked at."""
        if it % self.renewal == 1 and it != self.probed_at and self.probed.numel():
            now = self.actor(self.probe).layers
            moved = (now - self.probed).abs().mean()
            self.drift.copy_(torch.where(self.probed.any(), moved, 0))  # 0 the first time
            self.probed.copy_(now)
            self.probed_at = it
        return self.drift.clone()

    # acting

    @torch.no_grad()
    def choose(self, clip, n=1, temperature=1.0, generator=None):
        """
        What to do: clip (B,T,C,H,W) -> tokens (B,K,J), vectors (B,K,A), and the probability (B,) of
        the first step's tokens.

        n = 1 draws the tokens; temperature divides the logits, 0 takes the most likely. n > 1 draws
        so many chunks and takes the one of lowest energy; where a step has several tokens the
        head's chunk is among them. Act the first step, then look again.
        """
        seen = self.actor(clip)
        if temperature:
            tokens = self.draw(seen.logits, n, temperature, generator)  # (B,n,K,J)
        else:
            tokens = seen.logits.argmax(-1)[:, None]
        vectors = self.vectors_of(tokens)
        if n > 1:
            if self.config.n_tokens > 1:
                of_head = seen.vectors.clamp(-1, 1)[:, None]
                vectors = torch.cat([vectors, of_head], 1)
                tokens = torch.cat([tokens, self.nearest(of_head)], 1)
            best = self.energy_model(seen.context, vectors).argmin(1)
        else:
            best = torch.zeros(len(clip), dtype=torch.int64, device=clip.device)
        rows = torch.arange(len(clip), device=clip.device)
        tokens, vectors = tokens[rows, best], vectors[rows, best]
        p = seen.logits[:, 0].softmax(-1).gather(-1, tokens[:, 0, :, None])
        return tokens, vectors, p.squeeze(-1).prod(-1)

    @torch.no_grad()
    def choose_by_head(self, clip):
        """What the head says: tokens (B,K,J), the nearest to its vectors (B,K,A), cut to [-1,1]."""
        vectors = self.actor(clip).vectors.clamp(-1, 1)
        return self.nearest(vectors), vectors

    def warnings(self, val):
        """What is wrong with a held-out evaluation, in sentences."""
        if val['val_loss_ct'] > 0.9 * val['val_loss_ct_median']:
            yield ('the head is no better than always saying the median: '
                   f'{val["val_loss_ct"]:.3f} beside {val["val_loss_ct_median"]:.3f}')
        entropy = self.entropy.item()
        if entropy < val['val_loss'] < math.log(self.config.vocab_size):
            yield ('how often each action occurs says as much as the policy: their entropy is '
                   f'{entropy:.3f}. Early in training that is normal')


class InverseModel(nn.Module):
    """Two frames (B,2,C,H,W) -> the action between them: n_outputs logits, or numbers. Learned from
    a few labelled transitions, it is the honest rival of stage 2."""

    def __init__(self, n_outputs):
        super().__init__()
        widths = 9, 32, 64, 64
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 5, 2, 2) for a, b in zip(widths, widths[1:]))
        self.out = nn.Sequential(nn.Linear(128, 128), nn.GELU(), nn.Linear(128, n_outputs))

    def forward(self, pair):
        before, after = pair.unbind(1)
        s = max(1, round(min(after.shape[-2:]) / 64))
        change = after - before
        # what did not change says nothing: with 100 labels .90 of the game are right, with it .47
        moved = F.max_pool2d((change.abs().amax(1, keepdim=True) > 0.05).float(), 5, 1, 2)
        x = F.avg_pool2d(torch.cat([before * moved, after * moved, change], 1), s)
        for conv in self.convs:
            x = F.gelu(conv(x))
        return self.out(torch.cat([x.amax((2, 3)), x.mean((2, 3))], 1))


# -----------------------------------------------------------------------------
# optimizers, FSDP


class RoundedProducts(TorchDispatchMode):
    """Inside, matrix products of bfloat16 on a CPU are computed in float32 and rounded: a CPU that
    has no instructions for bfloat16 (x86 without AVX-512) is fifty times faster in that way."""

    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        products = torch.ops.aten.mm.default, torch.ops.aten.addmm.default
        if f in products and args[0].dtype == torch.bfloat16 and args[0].device.type == 'cpu':
            return f(*(x.float() for x in args), **(kwargs or {})).bfloat16()
        return f(*args, **(kwargs or {}))


class OptimizerError(RuntimeError):
    """This version of torch lacks an optimizer."""
    exit_code = 2


class Optimizers:
    """
    Muon for the matrices inside the blocks (Jordan et al. 2024) and AdamW for the rest, or AdamW
    alone, as if they were one optimizer: `step`, `zero_grad`, `state_dict` and `param_groups`.
    Muon multiplies in bfloat16. Raises OptimizerError where torch has none.
    """

    def __init__(self, model, kind, learning_rate, weight_decay):
        matrices, rest = [], []
        for name, p in model.named_parameters():
            is_matrix = kind == 'muon' and 'blocks.' in name and p.ndim == 2
            (matrices if is_matrix else rest).append(p)
        self.slow_bfloat16 = False
        self.each = [torch.optim.AdamW(rest, learning_rate, betas=(0.9, 0.95),
                                       weight_decay=weight_decay, fused=True)]
        if not matrices:
            return
        if not hasattr(torch.optim, 'Muon'):
            raise OptimizerError(f'config: optimizer=muon: torch {torch.__version__} has no Muon, '
                                 'expected 2.9 or newer\nuse --optimizer=adamw at a lower '
                                 'learning_rate, or install a newer torch')
        # updates as large as AdamW's: one learning_rate for both
        self.each.append(torch.optim.Muon(matrices, learning_rate, weight_decay=weight_decay,
                                          adjust_lr_fn='match_rms_adamw'))
        cpu = torch.cpu.get_capabilities()
        has_bfloat16 = cpu.get('avx512_bw') or cpu.get('avx_ne_convert')
        is_slow = cpu.get('architecture') == 'x86_64' and not has_bfloat16
        self.slow_bfloat16 = is_slow and rest[0].device.type == 'cpu'

    @property
    def param_groups(self):
        """A property, for load_state_dict replaces the groups: a kept list would have no effect."""
        return [group for o in self.each for group in o.param_groups]

    def step(self):
        adamw, *muon = self.each
        adamw.step()
        with RoundedProducts() if self.slow_bfloat16 else contextlib.nullcontext():
            for o in muon:
                o.step()

    def zero_grad(self, set_to_none=True):
        for o in self.each:
            o.zero_grad(set_to_none=set_to_none)

    def state_dict(self):
        return [o.state_dict() for o in self.each]


def shard(model, device_type):
    """Shares weights, gradients and optimizer out over the ranks (FSDP2): a block's weights are
    gathered when it is their turn."""
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method  # two seconds
    mesh = dist.init_device_mesh(device_type, (dist.get_world_size(),))
    for m in (*(m for m in model.modules() if isinstance(m, Block)), model):
        fully_shard(m, mesh=mesh)
    # what pictures call; never what `forward` itself calls, or its hooks would nest
    for method in ('encode', 'decode', 'predict', 'generate', 'choose', 'choose_by_head'):
        if hasattr(model, method):
            register_fsdp_forward_method(model, method)


# -----------------------------------------------------------------------------
# FLOPs of the matrix products, two for each multiply-add. In training each costs three times its
# forward pass (the gradient of its input and that of its weights cost as much each), twice where
# the input needs no gradient


def block_flops(D, L, attentions=1):
    """Multiply-adds a patch in a Block: qkv 3 D^2 and proj D^2 for each attention, the MLP 8 D^2;
    q.k and the sum over v are D each for each of the L patches that are looked at. Causal attention
    counts in full."""
    return attentions * 4 * D * D + 8 * D * D + 2 * L * D


def decoder_flops(model, T=0):
    """Multiply-adds a patch in the blocks of the tokenizer's decoder. T: frames, if it looks at
    earlier ones."""
    total = 0
    for b in model.dec_blocks:
        seen = b.window ** 2 if b.uses_windows(model.n_tokens) else model.n_tokens
        total += block_flops(model.config.n_embd, seen + T, 2 if T else 1)
    return total


def tokenizer_flops(model, B, T):
    """B clips of T frames -> FLOPs of the forward pass, of forward and backward."""
    c, N, D, d = model.config, model.n_tokens, model.config.n_embd, len(model.config.levels)
    P = 3 * c.patch_size ** 2
    encoder_block = block_flops(D, N + T, 2) if c.temporal else block_flops(D, N)
    blocks = decoder_flops(model, T * c.temporal) + c.n_layer_encoder * encoder_block
    embed = 2 * B * T * N * P * D  # pixels need no gradient
    # the encoder's first block is an MLP alone
    others = 2 * B * T * N * (8 * D * D + blocks + 2 * d * D + D * P)
    return embed + others, 2 * embed + 3 * others


def latent_actions_flops(model, B, T):
    """The same; what compares the frames is no matrix product."""
    c, n, S = model.config, model.n_actions, B * (T - 1)
    N, P, D = len(model.pos), 3 * c.patch_size ** 2, c.n_embd
    s = max(1, round(min(c.height, c.width) / 64))
    h, w = c.height // s, c.width // s
    half = -(-h // 2) * -(-w // 2)  # places after the first convolution
    quarter = -(-h // 4) * -(-w // 4)  # and after the second
    # pixels need no gradient
    first = 2 * (S * half * 4 * 32 * 25 + B * N * P * D)
    motion = 2 * S * model.n_shifts * model.n_slow  # and has no weights
    agrees = 2 * B * (T - 1) ** 2 * n  # with the teacher, of each pair of transitions
    encoder = quarter * (32 * 64 + 64 * 64) * 9 + (64 + model.n_slow) * D + D * D + D * n
    decoder = n * D + N * (c.n_layer * block_flops(D, N) + D * P)  # of one transition a clip
    others = 2 * (S * encoder + B * decoder)
    forward = motion + first + agrees + others
    return forward, motion + 2 * first + 2 * agrees + 3 * others


def dynamics_flops(model, B, T=None):
    """The same. The past is summed into the new frame, so T does not matter; the head sees masked
    tokens alone."""
    c, D = model.config, model.config.n_embd
    masked = sum(model.n_masked(B, i) for i in range(B))
    blocks = B * c.n_tokens * c.n_layer * block_flops(D, c.n_tokens)
    forward = 2 * (blocks + masked * D * model.head.out_features)
    return forward, 3 * forward


def policy_flops(model, B, T=None):
    """The same, where both parts make the update. The frames are stacked in the channels, so T is
    the model's."""
    c, D, S = model.config, model.config.n_embd, model.actor.n_patches
    rows, K, J, A = S + len(model.actor.queries), c.chunk, c.n_tokens, c.n_numbers
    embed = 2 * B * S * 3 * c.seq_len * c.patch_size ** 2 * D  # pixels need no gradient
    heads = K * J * D * c.vocab_size + c.n_layer * K * D * (J * D + 4 * D + A)
    actor = embed + 2 * B * (rows * c.n_layer * block_flops(D, rows) + heads)
    forward, both = actor, 3 * actor - embed
    if model.energy_model is None:
        return forward, both
    first = 4 if J > 1 else min(c.vocab_size - 1, model.n_first)
    M = 1 + c.n_layer - 1 + model.n_drawn + model.n_others + model.n_noisy + first
    given = 2 * B * (M * K * A * 2 * D + S * D * 2 * D)  # without gradient, but for joint
    energy = 2 * B * M * (2 * D * D + 2 * S * D + 4 * D * D + 2 * D)
    if c.energy in ('separated', 'cached'):
        forward, both = forward + actor, both + actor
    if c.energy == 'joint':  # and the gradient is measured apart, too
        both += given
    return forward + given + energy, both + 2 * given + 3 * energy


def sample_flops(tokenizer, dynamics, B, maskgit_steps):
    """One frame of B rollouts, at most: every step looks at all, as if nothing were ever sure; then
    the decoder."""
    c, t = dynamics.config, tokenizer.config
    N, D, E = c.n_tokens, c.n_embd, t.n_embd
    look = c.n_layer * block_flops(D, N) + D * dynamics.head.out_features
    decode = decoder_flops(tokenizer) + len(t.levels) * E + 3 * t.patch_size ** 2 * E
    return 2 * B * N * (maskgit_steps * look + decode)
