"""
Every network of nanoworlds, in reading order: patches, attention, FSQ, Tokenizer, LatentActionModel, Dynamics.

B clips of T frames (C,H,W in [-1,1]); N tokens (patches) per frame; D = n_embd; V = vocab_size; d = len(levels);
nh heads of size hs. All models are trained through one contract: loss, metrics = model(*batch).
"""
import functools
import math
import warnings
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_nn
import torch.nn as nn
from torch.nn import functional as F

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


def norm(x):
    """RMSNorm without parameters, of the type of x: autocast on CUDA would make it float32, and twice the memory."""
    with torch.autocast(x.device.type, enabled=False):
        return F.rms_norm(x, (x.size(-1),))


warnings.filterwarnings('ignore', 'Dynamo detected a call to a .functools.lru_cache')     # torch.compile looks through it, which is right


@functools.lru_cache(maxsize=32)
def turns(n, row, half, device, dtype):
    """Cosines and sines (n,P,half) of rotary position embedding (Su et al. 2021, arXiv:2104.09864) for n places: patches by row and
    column (P=2) if row, the number of patches in one, is not 0; else frames by time (P=1)."""
    place = torch.arange(n, device=device)
    places = torch.stack([place // row, place % row] if row else [place], 1).float()
    freq = 100.0 ** (-torch.arange(half, device=device) / half)                      # base 100: clips are short
    angle = places[..., None] * freq
    return angle.cos().to(dtype), angle.sin().to(dtype)


def rotary(x, cos, sin):
    """x (...,L,hs). Every coordinate turns its own share of the head, so attention sees how far apart two things are along each."""
    a, b = x.unflatten(-1, (cos.size(1), 2, cos.size(2))).unbind(-2)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -2).flatten(-3)


class Attention(nn.Module):
    """Multi-head attention over the second-last axis, with queries and keys normalised (QK-norm)."""

    def __init__(self, n_embd, n_head):
        super().__init__()
        if n_embd % (4 * n_head):
            raise ValueError(f'n_embd={n_embd} must be a multiple of 4*n_head={4 * n_head}: rotary turns pairs in two directions')
        self.n_head = n_head
        self.qkv = nn.Linear(n_embd, 3 * n_embd, bias=False)
        self.proj = nn.Linear(n_embd, n_embd, bias=False)

    def forward(self, x, row=0):
        """x (S,L,D): L patches in rows of `row`, or, 0, L frames, none of which looks at a later one."""
        S, L, D = x.shape
        qkv = self.qkv(x).view(S, L, 3, self.n_head, D // self.n_head).permute(2, 0, 3, 1, 4)        # (3,S,nh,L,hs)
        qk = norm(qkv[:2])
        q, k = rotary(qk, *turns(L, row, D // self.n_head // (4 if row else 2), x.device, qk.dtype))
        y = F.scaled_dot_product_attention(q, k, qkv[2], is_causal=not row)
        return self.proj(y.transpose(1, 2).reshape(S, L, D))


class Block(nn.Module):
    """Space attention (within a frame, if spatial, or only within windows of so many patches squared, where they fit in), causal time
    attention (one patch through the frames, if temporal), MLP; pre-norm."""

    def __init__(self, n_embd, n_head, temporal, grid_width, spatial=True, window=0):
        super().__init__()
        self.grid_width, self.window = grid_width, window                            # patches in a row of the frame
        self.space = Attention(n_embd, n_head) if spatial else None
        self.time = Attention(n_embd, n_head) if temporal else None
        self.mlp = nn.Sequential(nn.Linear(n_embd, 4 * n_embd), nn.GELU(), nn.Linear(4 * n_embd, n_embd))

    def windowed(self, n_tokens):
        """Is a frame of so many patches larger than a window, and made of whole ones?"""
        rows = n_tokens // self.grid_width
        return bool(self.window) and n_tokens > self.window ** 2 and rows % self.window == self.grid_width % self.window == 0

    def forward(self, x):
        """x (B,T,N,D) -> the same shape."""
        B, T, N, D = x.shape
        if self.space is not None:
            # by row and column, so that "the patch to the left" is learned once and not for every place
            if self.windowed(N):
                w, rows, columns = self.window, N // self.grid_width // self.window, self.grid_width // self.window
                y = norm(x).view(B * T, rows, w, columns, w, D).transpose(2, 3).reshape(-1, w * w, D)
                y = self.space(y, w).view(B * T, rows, columns, w, w, D).transpose(2, 3)
                x = x + y.reshape(B, T, N, D)
            else:
                x = x + self.space(norm(x).view(B * T, N, D), self.grid_width).view(B, T, N, D)
        if self.time is not None:
            y = norm(x).transpose(1, 2).reshape(B * N, T, D)
            x = x + self.time(y).view(B, N, T, D).transpose(1, 2)
        return x + self.mlp(norm(x))


def init_weights(model):
    """Small normal weights; what writes into the residual stream starts at zero, so every block starts as the identity."""
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
    """Finite scalar quantisation (Mentzer et al. 2023, arXiv:2309.15505): each of d numbers is rounded to one of its
    levels, and the d roundings together are the token. No codebook to learn and none to collapse. Bounded with a
    sigmoid, so that any number of levels, odd or even, lies evenly in [-1,1]."""

    def __init__(self, levels):
        super().__init__()
        self.vocab_size = math.prod(levels)
        base = torch.tensor([1, *levels[:-1]]).cumprod(0)
        self.register_buffer('levels', torch.tensor(levels), persistent=False)
        self.register_buffer('base', base, persistent=False)

    def forward(self, z):
        """Latents (...,d) -> codes (...,d) in [-1,1] and tokens (...). The gradient passes the rounding unchanged."""
        top = (self.levels - 1).to(z.dtype)
        x = torch.sigmoid(2 * z) * top
        i = x.round()
        code = 2 * (x + (i - x).detach()) / top - 1
        return code, (i.long() * self.base).sum(-1)

    def codes(self, tokens):
        """Tokens (...) -> codes (...,d), float32."""
        i = tokens[..., None] // self.base % self.levels
        return 2 * i.float() / (self.levels - 1) - 1


def usage(tokens, vocab_size):
    """Fraction of the vocabulary that occurs in tokens, and the entropy (nats) of how often each does."""
    tokens = tokens.flatten()                                # (torch.bincount would wait for the GPU)
    p = torch.zeros(vocab_size, device=tokens.device).index_add_(0, tokens, torch.ones_like(tokens, dtype=torch.float32))
    used, p = (p > 0).float().mean(), p / p.sum()
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
    n_layer: int = 2                  # of the decoder
    n_layer_encoder: int = 0          # 0: a patch's token is a function of the patch alone, and stays when others change
    n_head: int = 4
    n_embd: int = 128
    temporal: bool = False            # look at earlier frames too (Genie's choice); False: a frame is a frame


class Tokenizer(nn.Module):
    """Frames -> tokens -> frames. Trained by reconstruction."""

    changed_weight = 5                # of pixels that differ from the frame before or after, on top of everyone's 1

    def __init__(self, config):
        super().__init__()
        c = self.config = config
        self.n_tokens = (c.height // c.patch_size) * (c.width // c.patch_size)
        self.fsq = FSQ(c.levels)
        self.vocab_size = self.fsq.vocab_size
        patch, d = 3 * c.patch_size ** 2, len(c.levels)
        self.embed = nn.Linear(patch, c.n_embd)
        self.enc_blocks = nn.ModuleList([Block(c.n_embd, c.n_head, False, c.width // c.patch_size, spatial=False)])
        self.enc_blocks.extend(Block(c.n_embd, c.n_head, c.temporal, c.width // c.patch_size) for _ in range(c.n_layer_encoder))
        self.to_latent = nn.Linear(c.n_embd, d)
        self.from_code = nn.Linear(d, c.n_embd)
        self.dec_pos = nn.Parameter(0.02 * torch.randn(self.n_tokens, c.n_embd))
        # tokens already say what is where: in a large frame every other block looks at what is near only, in a quarter of the time
        self.dec_blocks = nn.ModuleList(Block(c.n_embd, c.n_head, c.temporal, c.width // c.patch_size, window=16 if i % 2 else 0)
                                        for i in range(c.n_layer))
        self.to_patch = nn.Linear(c.n_embd, patch)
        init_weights(self)

    def latents(self, clip):
        x = self.embed(patchify(clip, self.config.patch_size))
        for block in self.enc_blocks:
            x = block(x)
        return self.to_latent(norm(x)).float()

    def pixels(self, codes):
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
        codes, tokens = self.fsq(self.latents(clip))
        error = (self.pixels(codes) - clip).square().mean(2)                         # (B,T,H,W)
        # what moves is a few pixels and the point of it all: they weigh more, in both frames that they differ between
        moved = (clip[:, 1:] - clip[:, :-1]).abs().amax(2) > 0.1
        changed = F.pad(moved, (0, 0, 0, 0, 1, 0)) | F.pad(moved, (0, 0, 0, 0, 0, 1))
        loss = (error * (1 + self.changed_weight * changed)).mean()
        return loss, {'psnr': psnr(error.detach().mean()), 'code_usage': usage(tokens, self.vocab_size)[0]}

    def complaints(self, val):
        """What is wrong with a held-out evaluation, in sentences."""
        if val['val_code_usage'] * self.vocab_size < 2:
            yield 'every patch gets the same token: the tokenizer has collapsed. Lower learning_rate, or look at the data'


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


class LatentActionModel(nn.Module):
    """What was done between two frames, as one of n_actions codes, learned without labels.

    The encoder must not see what the hero looked like before. One that does finds a cheaper code than the action: players
    keep walking, so his facing predicts the motion, and "as before" and "turned" say the rest, which is useless on a
    keyboard. It sees two things that cannot say this: the pixels of frame t+1 that changed (which way does he face now?
    is a sword drawn?), and matching costs: how well frame t, shifted by each displacement of a small window, explains
    those pixels.

    The code has to say which displacement explains the change, where one does: there the same motion gets the same code.
    What the encoder learns of the picture has to carry over to where motion says little: a new screen, a hero who turns
    on the spot, two things that move at once. So it is shown the costs only as far as they explain anything, and for half of
    the transitions not at all; to most of these more of frame t+1 is shown than has changed, up to all of it, from which it
    learns to find the hero among what does not matter. What does not move is left to the second task of the code, to tell a
    decoder what it needs to draw frame t+1 from frame t.
    """

    reach = 4                         # displacements -4..4 in both directions, in pixels of the frame at 64 pixels
    n_costs = (2 * reach + 1) ** 2

    def __init__(self, config):
        super().__init__()
        c = self.config = config
        self.fsq = FSQ(c.action_levels)
        self.n_actions = self.fsq.vocab_size
        patch, d, n_tokens = 3 * c.patch_size ** 2, len(c.action_levels), c.height * c.width // c.patch_size ** 2
        self.after = nn.Sequential(nn.Conv2d(4, 32, 5, 2, 2), nn.GELU(), nn.Conv2d(32, 64, 3, 2, 1), nn.GELU(),
                                   nn.Conv2d(64, 64, 3, 1, 1))
        self.encoder = nn.Sequential(nn.Linear(64 + self.n_costs, c.n_embd), nn.GELU(),
                                     nn.Linear(c.n_embd, c.n_embd), nn.GELU(), nn.Linear(c.n_embd, d))
        self.explain = nn.Sequential(nn.Linear(d, c.n_embd), nn.GELU(), nn.Linear(c.n_embd, self.n_costs))
        self.register_buffer('mean', torch.zeros(d))
        self.register_buffer('var', torch.ones(d))
        self.embed = nn.Linear(patch, c.n_embd)
        self.pos = nn.Parameter(0.02 * torch.randn(n_tokens, c.n_embd))
        self.from_code = nn.Linear(d, c.n_embd)
        self.blocks = nn.ModuleList(Block(c.n_embd, c.n_head, False, c.width // c.patch_size) for _ in range(c.n_layer))
        self.to_patch = nn.Linear(c.n_embd, patch)
        init_weights(self)

    @torch.no_grad()
    def compare(self, clip):
        """clip (B,T,C,H,W), S = B*(T-1) -> what there is to see of each transition; nothing is learned here.
        after (S,C,h,w): frame t+1; changed (S,1,h,w): 1 where it differs from frame t, else 0; costs (S,n_costs), normalised;
        explained (S,1): the share of the change that the best displacement explains."""
        B, T, C, H, W = clip.shape
        s = max(1, round(min(H, W) / 64))
        x = F.avg_pool2d(clip.flatten(0, 1), s).view(B, T, C, H // s, W // s)
        a, b = x[:, :-1].flatten(0, 1), x[:, 1:].flatten(0, 1)                        # (S,C,h,w)
        changed = ((b - a).abs().amax(1, keepdim=True) > 0.1).float()                # of a range of 2
        area = changed.sum((2, 3))                                                   # (S,1)
        r, (h, w) = self.reach, a.shape[-2:]
        padded = F.pad(a, (r, r, r, r), mode='replicate')
        costs = []
        for dy in range(-r, r + 1):
            for dx in range(-r, r + 1):                                              # the scene moved by (dx, dy)
                shifted = padded[:, :, r - dy:r - dy + h, r - dx:r - dx + w]
                costs.append(((shifted - b).abs().mean(1, keepdim=True) * changed).sum((1, 2, 3)))
        costs = torch.stack(costs, 1) / (area + 1)
        still = costs[:, costs.size(1) // 2, None]
        explained = (1 - costs.amin(1, keepdim=True) / (still + 1e-3)).clamp(0, 1)
        costs = (costs - costs.mean(1, keepdim=True)) / (costs.std(1, keepdim=True) + 1e-3)
        return b, changed, costs, explained

    def reveal(self, changed):
        """A third of the masks (S,1,h,w) as they are, a third with a random box added, a third with everything."""
        S, _, h, w = changed.shape
        (top, left), (bottom, right) = torch.rand(S, 2, 2, device=changed.device).sort(1)[0].permute(1, 2, 0)[..., None]
        rows, columns = ((torch.arange(n, device=changed.device) + 0.5) / n for n in (h, w))
        box = ((rows > top) & (rows < bottom))[:, :, None] & ((columns > left) & (columns < right))[:, None]
        third = torch.randint(3, (S, 1, 1), device=changed.device)
        return torch.maximum(changed, ((third == 1) & box | (third == 2))[:, None].float())

    def latents(self, after, changed, costs, explained):
        """What `compare` returns -> (S,d), each of the d numbers with mean 0 and variance 1 over the batch (over the running
        statistics at evaluation): no code can die, and none can take over, without an auxiliary loss."""
        motion = costs * (explained / 0.75).clamp(max=1) ** 4                        # three quarters is as good as all, in a video
        if self.training:
            hidden = torch.rand(len(costs), 1, device=costs.device) < 0.5
            motion = motion.masked_fill(hidden, 0)
            changed = torch.where(hidden[..., None, None], self.reveal(changed), changed)
        # float: a compiler may round before it compares with the maximum, and find no place that is as high
        picture = self.after(torch.cat([after * changed, changed], 1)).float().amax((2, 3))
        z = self.encoder(torch.cat([norm(picture), motion], 1)).float()
        if self.training:
            moments = torch.stack([z.mean(0), z.square().mean(0)])
            if dist.is_initialized():                                                # the same statistics on all ranks
                moments = dist_nn.all_reduce(moments) / dist.get_world_size()
            mean, var = moments[0], moments[1] - moments[0] ** 2
            with torch.no_grad():
                self.mean.lerp_(mean, 0.01)
                self.var.lerp_(var, 0.01)
        else:
            mean, var = self.mean, self.var
        return (z - mean) * (var + 1e-5).rsqrt()

    def encode(self, clip):
        """(B,T,C,H,W) -> actions (B,T-1) int64 in [0,n_actions)."""
        return self.fsq(self.latents(*self.compare(clip)))[1].view(len(clip), -1)

    def predict(self, clip, codes):
        """Frames t (B,T,C,H,W) and the codes (B,T,d) of what is done -> frames t+1."""
        c = self.config
        x = self.embed(patchify(clip, c.patch_size)) + self.pos + self.from_code(codes)[:, :, None]
        for block in self.blocks:
            x = block(x)
        return clip + unpatchify(self.to_patch(norm(x)), c.patch_size, c.height, c.width).float()

    def forward(self, clip):
        """clip (B,T,C,H,W) -> loss, metrics."""
        B, T = clip.shape[:2]
        seen = self.compare(clip)
        costs, explained = seen[2:]
        codes, actions = self.fsq(self.latents(*seen))
        # 1. which displacement explains the change? The more it explains, the more it counts
        motion_loss = F.cross_entropy(self.explain(codes).float(), (-12 * costs).softmax(1), reduction='none')
        motion_loss = (explained[:, 0] ** 4 * motion_loss).mean()
        # 2. frame t+1. Every transition counts the same, a step of the hero as much as a new screen
        error = (self.predict(clip[:, :-1], codes.view(B, T - 1, -1)) - clip[:, 1:]).square().mean(2)
        changed = ((clip[:, 1:] - clip[:, :-1]).abs().amax(2) > 0.1).float()
        weight = changed / (changed.sum((2, 3), keepdim=True) + 64) + 0.1 / changed[0, 0].numel()
        pixel_loss = (weight * error).sum((2, 3)).mean()
        # more weight on 2 and the codes turn relative: "turned" gets one of its own
        loss = motion_loss + 0.1 * pixel_loss
        used, entropy = usage(actions, self.n_actions)
        return loss, {'psnr': psnr(error.detach().mean()), 'action_entropy': entropy,
                      'unique_actions': used * self.n_actions, 'codebook_usage': used}

    def complaints(self, val):
        """What is wrong with a held-out evaluation, in sentences."""
        if val['val_action_entropy'] < 0.1 * math.log(self.n_actions):
            yield 'one action takes over: nearly all transitions have the same. Lower learning_rate, or look at the data'


# -----------------------------------------------------------------------------
# stage 3


@dataclass
class DynamicsConfig:
    vocab_size: int = 1024
    n_tokens: int = 64                # N, per frame
    grid_width: int = 8               # tokens in a row of the frame
    n_actions: int = 8
    seq_len: int = 3                  # frames it sees at once: the past and the new one
    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 128
    corrupt: float = 0.1              # up to this fraction of the past's tokens are replaced by random ones


class Dynamics(nn.Module):
    """Past tokens and actions -> the next frame's tokens, by masked prediction (MaskGIT, Chang et al. 2022,
    arXiv:2202.04200; as a world model in Genie, Bruce et al. 2024, arXiv:2402.15391).

    Sampling meets one situation only, a clean past and one frame that is partly masked, so that is what is trained. The past
    is not a sequence to attend to but is summed into the new frame: every patch is the sum of what each of the frames shows
    there and of the action that led to it, with embeddings of its own for every age (as pixels are stacked in Diamond,
    Alonso et al. 2024, arXiv:2405.12399). All attention is within that one picture, which takes half the time of attention
    over space and time, and has learned more after the same number of updates (RECORDS.md).
    """

    changed_weight = 16               # of the tokens that change from the last frame to the new one, together

    def __init__(self, config):
        super().__init__()
        c = self.config = config
        # a large vocabulary is written with two digits, each embedded and predicted by itself: 2 * 256 instead of 65,536
        self.n_digits = 1 if c.vocab_size <= 4096 else 2
        self.base = math.ceil(c.vocab_size ** (1 / self.n_digits))
        self.register_buffer('place', self.base ** torch.arange(self.n_digits), persistent=False)
        # a table for every age (and digit), one below the other; the last row of each is the mask / an action that is not known
        self.tokens = nn.Embedding(c.seq_len * self.n_digits * (self.base + 1), c.n_embd)
        self.actions = nn.Embedding(c.seq_len * (c.n_actions + 1), c.n_embd)
        self.pos = nn.Parameter(0.02 * torch.randn(c.n_tokens, c.n_embd))
        self.blocks = nn.ModuleList(Block(c.n_embd, c.n_head, False, c.grid_width) for _ in range(c.n_layer))
        self.head = nn.Linear(c.n_embd, self.n_digits * self.base, bias=False)
        init_weights(self)

    def digits(self, tokens):
        """tokens (...) -> (...,n_digits), the lowest first."""
        return tokens[..., None] // self.place % self.base

    def logits(self, x):
        """What trunk returns (...,D) -> (...,n_digits,base), float32."""
        return self.head(x).float().unflatten(-1, (self.n_digits, self.base))

    def embed(self, tokens, first=0):
        """Frames first, first + 1, ... of a clip, tokens (B,n,N) -> the sum of their embeddings (B,N,D)."""
        table = torch.arange(first * self.n_digits, (first + tokens.size(1)) * self.n_digits, device=tokens.device)
        rows = torch.where(tokens[..., None] == self.config.vocab_size, self.base, self.digits(tokens))
        return self.tokens(rows + (table * (self.base + 1)).view(-1, 1, self.n_digits)).sum((1, 3))

    def past(self, tokens, actions):
        """tokens (B,T-1,N) of the past and the actions (B,T-1), the last of which leads to the new frame; T = seq_len -> (B,N,D),
        what they say of each patch of the new frame. The same in every MaskGIT step."""
        led_to = F.pad(actions, (1, 0), value=self.config.n_actions)                 # the first frame's is not known
        age = torch.arange(led_to.size(1), device=tokens.device)
        return self.embed(tokens) + self.actions(led_to + age * (self.config.n_actions + 1)).sum(1)[:, None] + self.pos

    def trunk(self, past, frame):
        """What `past` returns and the new frame's tokens (B,N) with its masks -> (B,N,D)."""
        x = (past + self.embed(frame[:, None], self.config.seq_len - 1))[:, None]    # (B,1,N,D)
        for block in self.blocks:
            x = block(x)
        return norm(x)[:, 0]

    def n_masked(self, B, i):
        """How many tokens the i-th of B clips hides in training. Mask ratios U(0.5, 1), stratified over the batch: all batches
        hide the same number, so shapes are static and the mean over ranks and micro-batches is the mean over tokens."""
        return -(-self.config.n_tokens * (2 * B + 2 * i + 1) // (4 * B))             # ceil((0.5 + 0.5 (i + 0.5) / B) N)

    def forward(self, tokens, actions):
        """tokens (B,T,N), actions (B,T-1) -> loss (cross-entropy at the masked positions of the last frame), metrics."""
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
        # where it is, as so many numbers as there must be: mask itself as an index would wait for the GPU
        places = mask.flatten().int().argsort(descending=True, stable=True)[:sum(self.n_masked(B, i) for i in range(B))]

        def loss_under(actions):
            logits = self.logits(self.trunk(self.past(past, actions), frame).flatten(0, 1).index_select(0, places))
            error = F.cross_entropy(logits.flatten(0, 1), self.digits(target.flatten()[places]).flatten(), reduction='none')
            error = error.view(-1, self.n_digits).sum(1)                             # nats a token
            if not self.training:
                return error.mean()
            # a step of the hero changes a few tokens, a new screen all of them: a token that changes alone counts most.
            # The number that is logged stays the plain mean, to be held against chance
            weight = (1 + self.changed_weight * changed / (changed.sum(1, keepdim=True) + 8)).flatten()[places]
            weighted = (weight * error).mean()
            return weighted + (error.mean() - weighted).detach()

        used, entropy = usage(actions, c.n_actions)
        metrics = {'action_entropy': entropy, 'unique_actions': used * c.n_actions, 'codebook_usage': used}
        if not self.training:                                                        # do the actions matter to it?
            shuffled = actions.flatten()[torch.randperm(actions.numel(), device=actions.device)].view_as(actions)
            metrics['shuffled_loss'] = loss_under(shuffled)
        return loss_under(actions), metrics

    def complaints(self, val):
        """What is wrong with a held-out evaluation, in sentences."""
        if self.config.n_actions > 1 and val['val_action_entropy'] < 0.1 * math.log(self.config.n_actions):
            yield 'one action takes over: nearly all transitions have the same. Look at latent_actions, or train it anew'
        if self.config.n_actions > 1 and val['val_shuffled_ratio'] < 1.02:
            yield ('the dynamics does not care which action it is given: with shuffled ones its loss is no higher. '
                   'Early in training that is normal')

    @torch.no_grad()
    def generate(self, tokens, actions, maskgit_steps=8, temperature=1.0, generator=None):
        """Imagine the frames after a context, one at a time, MaskGIT inside each.

        tokens (B,T,N): the context. actions (B,T-1+n): those between the context's frames, then one for each new
        frame. temperature divides the logits; 0 takes the most likely token. Returns (B,T+n,N).
        Each step draws a random part of the hidden tokens, by the cosine schedule: few first, all that are left in the
        last. (Keeping the most confident ones copies the last frame: what does not move is always surest.)
        """
        c = self.config
        missing = max(0, c.seq_len - 1 - tokens.size(1))                             # a past too short: its first frame, repeated
        tokens = torch.cat([tokens[:, :1].expand(-1, missing, -1), tokens], 1)
        actions = F.pad(actions, (missing, 0), value=c.n_actions)
        for t in range(tokens.size(1), actions.size(1) + 1):
            window = slice(t - c.seq_len + 1, t)
            past = self.past(tokens[:, window], actions[:, window])
            frame = torch.full_like(tokens[:, 0], c.vocab_size)
            order = torch.rand(frame.shape, device=frame.device, generator=generator).argsort(-1)
            shown = 0
            for step in range(maskgit_steps):
                hidden = math.cos(math.pi / 2 * (step + 1) / maskgit_steps)          # fraction that stays hidden
                places = order[:, shown:c.n_tokens - math.floor(hidden * c.n_tokens + 1e-6)]         # (B,k)
                shown += places.size(1)
                if not places.size(1):                                               # more steps than tokens
                    continue
                x = self.trunk(past, frame).gather(1, places[..., None].expand(-1, -1, c.n_embd))
                logits = self.logits(x)                                              # of those alone: few, with a large vocabulary
                if temperature == 0:
                    guess = logits.argmax(-1)
                else:
                    # where a random number falls in the summed probabilities; torch.multinomial takes 40 times as long on a CPU
                    below = (logits / temperature).softmax(-1).cumsum(-1)
                    u = torch.rand(below[..., :1].shape, device=frame.device, generator=generator) * below[..., -1:]
                    guess = torch.searchsorted(below, u, right=True)[..., 0].clamp(max=self.base - 1)
                guess = (guess * self.place).sum(-1).clamp(max=c.vocab_size - 1)
                frame = frame.scatter(1, places, guess)
            tokens = torch.cat([tokens, frame[:, None]], 1)
        return tokens[:, missing:]



