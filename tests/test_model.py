"""Networks: round trips, causality, masks and temperature, and first losses that only change when
the maths does."""

import math
from types import SimpleNamespace

import pytest
import torch

import model as models
from model import (
    FSQ,
    Block,
    Dynamics,
    DynamicsConfig,
    LatentActionConfig,
    LatentActionModel,
    Tokenizer,
    TokenizerConfig,
    k_means,
    keys_of,
    matching_costs,
    most_for_least,
    patchify,
    take_turns,
    unpatchify,
)


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def make(Model, Config, trained=True, **config):
    """A small model; with `trained`, no weight is left at zero, so that every path carries
    something."""
    torch.manual_seed(0)
    m = Model(Config(**config))
    if trained:
        for p in m.parameters():
            torch.nn.init.normal_(p, std=0.2)
    return m.eval()


def tokenizer(**more):
    return make(
        Tokenizer,
        TokenizerConfig,
        **dict(
            height=8,
            width=16,
            patch_size=4,
            levels=(4, 3, 5),
            n_layer=2,
            n_head=2,
            n_embd=16,
            **more,
        ),
    )


def dynamics(**more):
    return make(
        Dynamics,
        DynamicsConfig,
        **dict(
            dict(
                vocab_size=60,
                n_tokens=8,
                grid_width=4,
                n_actions=4,
                seq_len=4,
                n_layer=2,
                n_head=2,
                n_embd=16,
            ),
            **more,
        ),
    )


def tokens(B=2, T=4, N=8, V=60, seed=0):
    return torch.randint(V, (B, T, N), generator=torch.Generator().manual_seed(seed))


# -----------------------------------------------------------------------------
# patches and FSQ


@pytest.mark.parametrize('H, W, p', [(8, 8, 4), (8, 16, 4), (12, 6, 2), (5, 7, 1)])
def test_patchify_round_trip(H, W, p):
    x = noise(2, 3, 3, H, W)
    patches = patchify(x, p)
    assert patches.shape == (2, 3, H * W // p**2, 3 * p * p)
    assert torch.equal(unpatchify(patches, p, H, W), x)


def test_a_patch_is_a_square_of_one_frame():
    x = torch.zeros(1, 2, 3, 8, 16)
    x[0, 1, :, 4:8, 8:12] = 1  # second row of patches, third column
    patches = patchify(x, 4)
    assert patches[0, 1, 6].eq(1).all() and patches.sum() == 3 * 16


@pytest.mark.parametrize('levels', [(2,), (3,), (2, 2, 2), (4, 4, 4, 4, 4), (8, 5, 3), (7, 2)])
def test_fsq_round_trip_for_every_token(levels):
    fsq = FSQ(levels)
    every = torch.arange(fsq.vocab_size)
    codes = fsq.codes(every)
    assert codes.shape == (math.prod(levels), len(levels)) and codes.abs().max() <= 1
    assert len(torch.unique(codes, dim=0)) == fsq.vocab_size
    z = torch.logit(((codes + 1) / 2).clamp(0.01, 0.99))  # in the middle of each code's cell
    again, back = fsq(z)
    assert torch.equal(back, every)
    assert torch.allclose(again, codes, atol=1e-6)


def test_fsq_passes_the_gradient_through_the_rounding():
    z = torch.zeros(5, 3, requires_grad=True)
    FSQ((4, 4, 4))(z + 0.1)[0].sum().backward()
    assert (z.grad > 0).all()


def pull_of_patches(clip, error):
    """The gradient of the tokenizer's loss at what it draws, of a pixel of each patch (B,T,N), if
    it draws each pixel of a clip (B,T,3,8,8) wrong by `error`, of the same shape."""
    m = Tokenizer(TokenizerConfig(8, 8, 4, (4, 4), n_head=1, n_embd=16)).train()
    drawn = (clip + error).requires_grad_()
    m.pixels = lambda codes: drawn
    m(clip)[0].backward()
    return patchify(drawn.grad, 4)[..., 0].abs()


def test_the_worse_a_patch_is_drawn_the_more_it_weighs():
    """Not only by its error, twice as large in one patch, but by a weight that grows with it."""
    clip, error = torch.zeros(2, 2, 3, 8, 8), torch.full((2, 2, 3, 8, 8), 0.1)
    error[0, 0, :, :4, :4] = 0.2
    pull = pull_of_patches(clip, error)
    mean = (0.2 ** 2 + 7 * 0.1 ** 2) / 8  # of the clip
    weights = [0.1 + 0.9 * (e ** 2 / mean) ** 0.5 for e in (0.1, 0.2)]
    assert (pull[0, 0, 0] / pull[0, 0, 1]).item() == pytest.approx(2 * weights[1] / weights[0])
    # of a clip that is drawn evenly each patch weighs 1, whatever the others of the batch are
    assert torch.allclose(pull[1], pull[0, 0, 1] / weights[0])
    error[0, 0, :, :4, :4] = 0.9
    assert torch.allclose(pull_of_patches(clip, error)[1], pull[1])


def test_what_moves_weighs_six_times_as_much():
    clip, error = torch.zeros(1, 2, 3, 8, 8), torch.full((1, 2, 3, 8, 8), 0.1)
    clip[:, 1, :, :4, :4] = 1
    pull = pull_of_patches(clip, error)
    worse = [(e / (0.01 * (2 * 6 + 6) / 8)) ** 0.5 for e in (0.06, 0.01)]
    expected = 6 * (0.1 + 0.9 * worse[0]) / (0.1 + 0.9 * worse[1])
    assert (pull[0, :, 0] / pull[0, :, 1]).tolist() == pytest.approx([expected] * 2)


def test_a_patch_that_changes_is_pushed_to_another_token():
    """By as much as it changes, until a whole level lies between; one that stays is left alone."""
    m = Tokenizer(TokenizerConfig(8, 8, 4, (4, 4), n_head=1, n_embd=16)).train()
    m.pixels = lambda codes: clip  # all is drawn well
    clip = torch.zeros(1, 2, 3, 8, 8)
    clip[0, 1, :, :4], clip[0, 1, :, 4:, :4] = 1, 0.5  # patches 0 and 1, less so 2
    between = torch.tensor([0.5, 1.5, 0.5, 0.5])  # of the 3 levels' lengths
    places = torch.stack([torch.ones(4), 1 + between])[None, :, :, None].expand(-1, -1, -1, 2)
    z = torch.logit(places / 3).clone()
    z[..., 1] = 0  # a single coordinate tells a token from another
    z.requires_grad_()
    m.latents = lambda clip: z
    m(clip)[0].backward()
    pull = z.grad[0, ..., 0]
    assert (pull[0, [0, 2]] > 0).all() and (pull[1, [0, 2]] < 0).all()  # downhill: apart
    assert (pull[:, [1, 3]] == 0).all() and (z.grad[..., 1] == 0).all()
    assert torch.allclose(pull[:, 0], 4 * pull[:, 2])
    assert torch.isfinite(tokenizer()(noise(2, 1, 3, 8, 16))[0])  # in single frames nothing does


# -----------------------------------------------------------------------------
# causality: what comes later must not be seen


def test_temporal_tokenizer_is_causal():
    m = tokenizer(temporal=True, n_layer_encoder=1)
    a = noise(1, 5, 3, 8, 16)
    b = a.clone()
    b[:, 3:] = noise(1, 2, 3, 8, 16, seed=1)
    za, zb = m.latents(a), m.latents(b)
    assert torch.allclose(za[:, :3], zb[:, :3], atol=1e-5) and not torch.allclose(
        za[:, 3:], zb[:, 3:], atol=1e-2
    )
    c = a.clone()
    c[:, 0] = -c[:, 0]
    assert not torch.allclose(
        za[:, 4], m.latents(c)[:, 4], atol=1e-2
    ), 'time attention sees nothing at all'
    t = m.encode(a)
    u = t.clone()
    u[:, 3:] = (u[:, 3:] + 1) % m.vocab_size
    assert torch.allclose(m.decode(t)[:, :3], m.decode(u)[:, :3], atol=1e-5)


def test_per_frame_tokenizer_sees_one_frame():
    m, x = tokenizer(n_layer_encoder=1), noise(1, 4, 3, 8, 16)
    assert torch.equal(m.encode(x)[:, 2], m.encode(x[:, 2:3])[:, 0])


def test_a_token_says_what_is_in_its_patch_and_nothing_else():
    """By default, so that a token stays when others change, and a patch has the same token wherever
    it is."""
    m, x = tokenizer(), noise(1, 1, 3, 8, 16)
    y = x.clone()
    y[..., :4, :4], y[..., 4:, 12:] = noise(1, 1, 3, 4, 4, seed=1), x[..., :4, :4]
    a, b = m.encode(x)[0, 0], m.encode(y)[0, 0]
    assert a[0] != b[0] and torch.equal(a[1:7], b[1:7]) and b[7] == a[0]


def test_a_windowed_block_looks_at_its_window_alone():
    """4 x 6 patches in windows of 2 x 2; a grid that is not made of whole windows is looked at as a
    whole."""
    block = Block(16, 1, False, 6, window=2)
    torch.nn.init.normal_(block.space.proj.weight)
    x = noise(1, 1, 24, 16).requires_grad_()
    block(x)[0, 0, 9].sum().backward()  # row 1, column 3: the window of rows 0-1 and columns 2-3
    assert x.grad[0, 0].abs().sum(-1).nonzero().flatten().tolist() == [2, 3, 8, 9]
    y = x[:, :, [2, 3, 8, 9]]  # that window alone, as a frame of its own
    small = Block(16, 1, False, 2, window=2)
    small.load_state_dict(block.state_dict())
    assert torch.allclose(small(y), block(x)[:, :, [2, 3, 8, 9]], atol=1e-5)
    odd = Block(16, 1, False, 5, window=2)
    torch.nn.init.normal_(odd.space.proj.weight)
    x = noise(1, 1, 20, 16).requires_grad_()
    odd(x)[0, 0, 9].sum().backward()
    assert (x.grad[0, 0].abs().sum(-1) > 0).all()


# -----------------------------------------------------------------------------
# dynamics


def look(m, t, actions):
    """The past and, last, the new frame (B,T,N) -> what the network makes of the new one."""
    return m.trunk(m.past(t[:, :-1], actions), t[:, -1])


@pytest.fixture
def watch(monkeypatch):
    """watch(m) -> the list of all its looks from then on: past, actions, frame, out."""

    def watched(m):
        looks, last, past, trunk = [], {}, m.past, m.trunk
        monkeypatch.setattr(m, 'past', lambda t, a: last.update(past=t, actions=a) or past(t, a))
        monkeypatch.setattr(
            m,
            'trunk',
            lambda p, f: looks.append(SimpleNamespace(**last, frame=f, out=trunk(p, f)))
            or looks[-1].out,
        )
        return looks

    return watched


def test_every_frame_action_and_shown_token_reaches_the_output_from_the_first_step():
    m = dynamics(trained=False)
    frames, actions = tokens(), torch.zeros(2, 3, dtype=torch.long)
    frames[:, 3] = 60
    before = m.head(look(m, frames, actions))
    for x, at in [(frames, (0, i, j)) for i, j in ((0, 5), (1, 5), (2, 5), (3, 5))] + [
        (actions, (0, i)) for i in range(3)
    ]:
        old, x[at] = x[at].item(), (x[at] + 1) % 4
        after = m.head(look(m, frames, actions))
        x[at] = old
        assert (before - after)[0].abs().max() > 1e-2 and torch.equal(before[1], after[1]), at


def test_the_same_token_or_action_at_another_age_is_another_thing():
    m, t, actions = dynamics(), tokens(), torch.tensor([[0, 1, 2], [2, 0, 1]])
    before = look(m, t, actions)
    assert (before - look(m, t[:, [1, 0, 2, 3]], actions)).abs().max() > 1e-3
    assert (before - look(m, t, actions[:, [1, 0, 2]])).abs().max() > 1e-3


def test_loss_is_the_cross_entropy_at_masked_positions_of_the_last_frame(watch):
    m = dynamics(corrupt=0.0)
    looks, t = watch(m), tokens()
    for mode in (False, True):
        m.train(mode)
        loss, _ = m(t, torch.zeros(2, 3, dtype=torch.long))
        seen = looks[-1]
        hidden = seen.frame == 60
        assert torch.equal(seen.past, t[:, :3]), 'the past is clean'
        assert torch.equal(seen.frame[~hidden], t[:, 3][~hidden])
        logits = m.head(seen.out)
        assert torch.allclose(
            loss, torch.nn.functional.cross_entropy(logits[hidden], t[:, 3][hidden]), rtol=1e-5
        )


def test_a_token_that_changes_alone_pulls_more():
    """The gradient at a masked token: 1 where nothing changes, 1 + 16 / (n + 8) where it is one of
    n that do."""
    m = dynamics(n_tokens=16, corrupt=0.0).train()
    t, pulls, logits = tokens(1, 4, 16), [], []
    m.head.register_forward_hook(
        lambda head, x, out: logits.append(out.detach().requires_grad_()) or logits[-1]
    )
    torch.manual_seed(0)  # the mask that the model is going to draw
    torch.randperm(1)
    hidden = (torch.rand(1, 16).argsort(-1) < 12)[0]  # ratio 0.75
    first = hidden.nonzero()[0]
    for changed in ([], first, slice(None)):
        t[:, 3] = t[:, 2]
        t[:, 3, changed] = (t[:, 2, changed] + 1) % 60
        torch.manual_seed(0)
        m(t, torch.zeros(1, 3, dtype=torch.long))[0].backward()
        plain = (
            logits[-1].softmax(-1)[0] - torch.nn.functional.one_hot(t[0, 3, first][0], 60)
        ) / 12
        pulls.append((logits[-1].grad[0] / plain).mean().item())
    assert pulls == pytest.approx([1, 1 + 16 / 9, 1 + 16 / 24], rel=1e-3)


def test_a_large_vocabulary_is_written_with_two_digits(watch):
    m = dynamics(vocab_size=5000, corrupt=0.0)
    assert (m.n_digits, m.base) == (2, 71) and dynamics(vocab_size=4096).n_digits == 1
    assert m.digits(torch.tensor([0, 70, 71, 4999])).tolist() == [[0, 0], [70, 0], [0, 1], [29, 70]]
    torch.manual_seed(1)
    t, actions = tokens(64, V=5000), torch.zeros(64, 3, dtype=torch.long)
    looks = watch(m)
    loss, _ = m(t, actions)
    shuffled, seen = looks
    hidden = seen.frame == 5000
    low, high = t[:, 3] % 71, t[:, 3] // 71
    of_low, of_high = m.head(seen.out).view(64, 8, 2, 71).unbind(2)
    both = of_low.log_softmax(-1).gather(-1, low[..., None])
    both = both + (of_high + m.pairs.weight[low]).log_softmax(-1).gather(-1, high[..., None])
    assert torch.allclose(loss, -both[..., 0][hidden].mean(), rtol=1e-4)
    out = m.generate(t[:, :3], actions, 1, temperature=0)
    t[:, 3] = 5000
    of_low, of_high = m.head(look(m, t, actions)).view(64, 8, 2, 71).unbind(2)
    low = of_low.argmax(-1)
    high = (of_high + m.pairs.weight[low]).argmax(-1)
    assert torch.equal(out[:, 3], (low + 71 * high).clamp(max=4999))


@pytest.mark.parametrize('temperature', [0.5, 1.0])
def test_two_digits_are_those_of_one_token(monkeypatch, temperature):
    """Token 3 + 71 * 5 is as likely as 7 + 71 * 9: never is half of one drawn with half of the
    other, and how sure the likeliest is says so, too."""
    m = dynamics(vocab_size=5000)
    logits = torch.zeros(1, 8, 2, 71)
    logits[..., 0, [3, 7]] = logits[..., 1, [5, 9]] = 20
    torch.nn.init.zeros_(m.pairs.weight)
    m.pairs.weight.data[[3, 7], [9, 5]] = -20
    monkeypatch.setattr(m, 'logits', lambda x: logits.expand(len(x), -1, -1, -1))
    seen, to_draw = [], m.to_draw
    monkeypatch.setattr(m, 'to_draw', lambda frame, logits, *rest: seen.append(logits)
                        or to_draw(frame, logits, *rest))
    past, actions = tokens(1, 3).expand(200, -1, -1), torch.zeros(200, 3, dtype=torch.long)
    out = m.generate(past, actions, 8, temperature, torch.Generator().manual_seed(0))[:, 3]
    assert set(out.flatten().tolist()) == {3 + 71 * 5, 7 + 71 * 9}
    assert 0.4 < (out == 3 + 71 * 5).float().mean() < 0.6
    sure = seen[0].softmax(-1).amax(-1).prod(-1)
    assert torch.allclose(sure, torch.tensor(0.5), atol=1e-3)


def test_mask_ratios_are_spread_over_half_to_all_and_their_sum_is_fixed(watch):
    m = dynamics(n_tokens=64)
    looks = watch(m)
    for seed in range(4):
        torch.manual_seed(seed)
        m(tokens(8, 4, 64), torch.zeros(8, 3, dtype=torch.long))
    counts = [
        (seen.frame == 60).sum(-1) for seen in looks[::2]
    ]  # evaluation looks twice, with other actions
    assert (
        len({int(c.sum()) for c in counts}) == 1
    )  # static shapes; the mean over ranks is the mean over tokens
    every = torch.stack(counts)
    assert 32 <= every.min() <= 36 and 62 <= every.max() <= 64
    assert len({tuple(c.flatten().tolist()) for c in counts}) == 4


def test_corruption_only_in_training_and_only_of_the_past(watch):
    m, t = dynamics(corrupt=0.5), tokens(8)
    looks = watch(m)
    for mode in (False, True):
        m.train(mode)
        m(t, torch.zeros(8, 3, dtype=torch.long))
    assert torch.equal(looks[0].past, t[:, :3])
    assert 0.1 < (looks[-1].past != t[:, :3]).float().mean() < 0.4
    shown = looks[-1].frame != 60
    assert torch.equal(looks[-1].frame[shown], t[:, 3][shown])


def test_temperature_zero_is_argmax():
    m, t = dynamics(), tokens()
    actions = torch.ones(2, 3, dtype=torch.long)
    out = m.generate(t[:, :3], actions, maskgit_steps=1, temperature=0)
    t[:, 3] = 60
    assert torch.equal(out[:, :3], t[:, :3]) and torch.equal(
        out[:, 3], m.head(look(m, t, actions)).argmax(-1)
    )


def test_a_short_context_is_filled_up_with_its_first_frame(watch):
    m, t = dynamics(), tokens()
    looks = watch(m)
    out = m.generate(
        t[:, :1],
        torch.tensor([[1, 2], [3, 1]]),
        maskgit_steps=1,
        generator=torch.Generator().manual_seed(0),
    )
    assert out.shape == (2, 3, 8) and torch.equal(out[:, 0], t[:, 0])
    assert torch.equal(looks[0].past, t[:, :1].expand(-1, 3, -1)) and looks[0].actions.tolist() == [
        [4, 4, 1],
        [4, 4, 3],
    ]
    assert torch.equal(looks[1].past[:, 2], out[:, 1]) and looks[1].actions.tolist() == [
        [4, 1, 2],
        [4, 3, 1],
    ]


def test_tokens_are_drawn_as_often_as_their_probability_says():
    m, t = dynamics(n_tokens=1), tokens(1, 4, 1)
    t[:, 3], actions = 60, torch.ones(1, 3, dtype=torch.long)
    p = (m.head(look(m, t, actions))[0, 0] / 0.7).softmax(-1)
    out = m.generate(
        t[:, :3].expand(20_000, -1, -1),
        actions.expand(20_000, -1),
        1,
        0.7,
        torch.Generator().manual_seed(0),
    )
    found = torch.bincount(out[:, 3, 0], minlength=60) / 20_000
    assert (found - p).abs().max() < 4 * (p.max() / 20_000).sqrt()


def test_higher_temperature_means_more_entropy():
    m, t = dynamics(), tokens(1).expand(256, -1, -1)
    entropy = []
    for temperature in (0, 0.5, 1.0, 4.0):
        out = m.generate(
            t[:, :3],
            torch.ones(256, 3, dtype=torch.long),
            1,
            temperature,
            torch.Generator().manual_seed(0),
        )
        p = torch.bincount(out[:, 3, 0], minlength=60) / 256
        entropy.append(-(p * p.clamp(min=1e-9).log()).sum().item())
    assert entropy[0] == pytest.approx(0, abs=1e-6)
    assert entropy[0] < entropy[1] < entropy[2] < entropy[3]


def test_maskgit_reveals_few_first_and_all_in_the_last_step(watch):
    m = dynamics(n_tokens=64)
    looks = watch(m)
    out = m.generate(
        tokens(1, 3, 64),
        torch.zeros(1, 3, dtype=torch.long),
        maskgit_steps=8,
        generator=torch.Generator().manual_seed(0),
    )
    hidden = [int((seen.frame == 60).sum()) for seen in looks]
    revealed = [a - b for a, b in zip(hidden, hidden[1:] + [0])]
    assert (
        hidden[0] == 64
        and revealed[0] <= 2
        and revealed[-1] == max(revealed)
        and sum(revealed) == 64
    )
    assert revealed == sorted(revealed)
    assert (out < 60).all(), 'a mask token is left in the output'


def sure_of(*p):
    """Logits (1,N,1,60): token i of each place with probability p[i], the others alike."""
    p = torch.tensor(p)[:, None]
    rest = torch.log((1 - p) / 59)
    return torch.cat([torch.log(p), rest.expand(-1, 59)], 1)[None, :, None]


def test_what_is_sure_is_drawn_together_and_one_more():
    m = dynamics(n_tokens=8)
    frame, luck = torch.full((1, 8), 60), torch.linspace(0.9, 0, 8)[None]
    logits = sure_of(0.5, 0.99, 0.6, 0.999, 0.98, 0.96, 0.7, 0.1)
    drawn = m.to_draw(frame, logits, 8, luck)[0]
    assert drawn.nonzero().flatten().tolist() == [1, 3, 4, 5], 'three, .031 together, and one more'
    frame[0, [1, 3]] = 7
    drawn = m.to_draw(frame, logits, 5, luck)[0]
    assert drawn.nonzero().flatten().tolist() == [4, 5], 'what is shown is not drawn again'
    drawn = m.to_draw(frame, logits, 2, luck)[0]
    assert drawn.nonzero().flatten().tolist() == [4, 5, 6, 7], 'the schedule asks for two by luck'
    assert m.to_draw(frame, logits, 0, luck)[0].sum() == 6
    assert not m.to_draw(torch.zeros(1, 8, dtype=torch.long), logits, 0, luck).any()


@pytest.mark.parametrize('temperature', [0.5, 1.0])
def test_tokens_that_have_to_agree_do(monkeypatch, temperature):
    """The ground is sure; all of the hero is token 1 or all of him 2, and either is as likely."""
    m = dynamics(n_tokens=8)
    hero = torch.arange(8) >= 4

    def look(past, frame):
        p = torch.full((len(frame), 8, 60), 1e-6)
        p[:, ~hero, 5] = 1
        seen = [(frame[:, 4:] == token).any(1) for token in (1, 2)]
        for token, other in ((1, 1), (2, 0)):
            p[:, 4:, token] = torch.where(seen[other], 1e-6, 1.0)[:, None]
        return p.log()

    looks = []
    monkeypatch.setattr(m, 'trunk', lambda past, frame: looks.append(0) or look(past, frame))
    monkeypatch.setattr(m, 'logits', lambda x: x[:, :, None])
    past, actions = tokens(1, 3).expand(200, -1, -1), torch.zeros(200, 3, dtype=torch.long)
    out = m.generate(past, actions, 8, temperature, torch.Generator().manual_seed(0))[:, 3]
    assert (out[:, :4] == 5).all() and (out[:, 4:] == out[:, 4:5]).all()
    assert 70 < (out[:, 4] == 1).sum() < 130 and len(looks) == 2


def test_more_steps_than_tokens(watch):
    m = dynamics(n_tokens=8)
    looks = watch(m)
    out = m.generate(tokens(2, 3, 8), torch.zeros(2, 3, dtype=torch.long), maskgit_steps=40)
    assert len(looks) == 8 and (out < 60).all()  # one token each, and no look for nothing


def test_a_revealed_token_stays(watch):
    m = dynamics(n_tokens=64)
    looks = watch(m)
    out = m.generate(
        tokens(1, 3, 64),
        torch.zeros(1, 3, dtype=torch.long),
        6,
        generator=torch.Generator().manual_seed(0),
    )
    frames = [seen.frame for seen in looks] + [out[:, 3]]
    for a, b in zip(frames, frames[1:]):
        assert torch.equal(a[a < 60], b[a < 60])


def test_generate_is_a_function_of_its_generator_and_rolls_past_its_window():
    m = dynamics()
    first, again, other = (
        m.generate(
            tokens()[:, :1],
            torch.zeros(2, 9, dtype=torch.long),
            4,
            1.0,
            torch.Generator().manual_seed(s),
        )
        for s in (0, 0, 1)
    )
    assert first.shape == (2, 10, 8) and torch.equal(first, again) and not torch.equal(first, other)


def test_what_is_kept_from_step_to_step_is_what_a_fresh_look_gives(watch):
    """The past is summed once a frame: in every MaskGIT step of a rollout that leaves its first
    window far behind."""
    m, actions = dynamics(), torch.arange(24).view(2, 12) % 4
    looks = watch(m)
    out = m.generate(tokens()[:, :3], actions, 4)
    assert out.shape == (2, 13, 8) and len(looks) == 4 * 10
    for i, seen in enumerate(list(looks)):
        window = slice(i // 4, i // 4 + 3)
        fresh = look(m, torch.cat([out[:, window], seen.frame[:, None]], 1), actions[:, window])
        assert torch.allclose(seen.out, fresh, atol=1e-4)


# -----------------------------------------------------------------------------
# latent actions


def moved(dx, dy, n=1):
    """A bright square on a textured ground, and the same picture with the square moved."""
    g = torch.Generator().manual_seed(3)
    ground = 0.2 * torch.rand(n, 3, 64, 64, generator=g) - 0.5
    square = torch.rand(n, 3, 8, 8, generator=g)
    a, b = ground.clone(), ground.clone()
    a[:, :, 28:36, 28:36] = square
    b[:, :, 28 + dy : 36 + dy, 28 + dx : 36 + dx] = square
    return torch.stack([a, b], 1)


@pytest.mark.parametrize('dx, dy', [(4, 0), (-4, 0), (0, 4), (0, -4), (2, -3)])
def test_matching_costs_are_lowest_at_the_true_displacement(dx, dy):
    m, clip = LatentActionModel(LatentActionConfig()), moved(dx, dy)
    shifts, explained = m.compare(clip)[2:]
    assert divmod(int(shifts[0, :81].argmax()), 9) == (dy + 4, dx + 4) and explained.item() > 0.5
    costs = matching_costs(clip[:, 0], clip[:, 1], m.compare(clip)[1], 4, 1, 1)
    assert costs.shape == (1, 17, 9, 9) and costs[0, 0].argmin() == 9 * (dy + 4) + dx + 4
    costs = matching_costs(clip[:, 0], clip[:, 0], torch.ones(1, 1, 64, 64), 8, 2, 4)
    assert (costs[0, :, 4, 4] == 0).all() and (costs > 0).sum() == 17 * 80


@pytest.mark.parametrize('dx, dy', [(8, 0), (-12, 0), (0, 7), (0, -13), (-7, 8)])
def test_what_moves_far_is_found_in_the_coarse_window(dx, dy):
    shifts, explained = LatentActionModel(LatentActionConfig()).compare(moved(dx, dy))[2:]
    row, column = divmod(int(shifts[0, 81:].argmax()), 5)  # of 6 pixels each
    assert abs(6 * (row - 2) - dy) <= 3 and abs(6 * (column - 2) - dx) <= 3
    assert shifts[0, 81:].sum() > shifts[0, :81].sum() and explained.item() > 0.5


def test_what_the_near_window_explains_is_not_explained_again():
    shifts = LatentActionModel(LatentActionConfig()).compare(moved(2, 0))[2]
    assert shifts[0, :81].sum() > 0.9 and shifts[0, 81:].sum() < 0.2


def test_where_two_things_move_each_part_has_a_vote():
    # what is left of one goes left and what is right of one goes right, as who walks sees it
    a = noise(1, 3, 32, 32, seed=3).repeat_interleave(2, 2).repeat_interleave(2, 3)
    b = torch.cat([a[..., 3:32], a[..., 29:35], a[..., 32:61]], 3)
    shifts, explained = LatentActionModel.compare(torch.stack([a, b], 1))[2:]
    up, still, down = shifts[0, 106:115].view(3, 3) / (1 - explained**4)
    assert still[0] > 0.2 and still[2] > 0.2 and max(*up, *down, still[1]) < 0.05
    assert explained.item() < 0.6 and shifts[0, 106:].sum().abs() < 1e-6
    # where one displacement is that of all there is nothing to vote for
    shifts = LatentActionModel.compare(moved(3, 0))[2][0]
    assert shifts[106:].abs().max() < 0.05 * shifts[:106].max()


def test_what_no_displacement_explains_counts_little():
    clip = moved(4, 0)
    clip[:, 1] = noise(1, 1, 3, 64, 64)[:, 0]
    assert LatentActionModel(LatentActionConfig()).compare(clip)[3].item() < 0.3


def held(n, seed=0):
    """Clips (n,4,3,64,64) in which a square goes on to the right or to the left, (n,) 1 or 0, while
    a smaller one jumps about as it likes."""
    g = torch.Generator().manual_seed(seed)
    right = torch.arange(n) % 2
    clips = (0.2 * torch.rand(3, 64, 64, generator=g) - 0.5).expand(n, 4, 3, 64, 64).clone()
    hero, other = torch.rand(3, 8, 8, generator=g), torch.rand(3, 4, 4, generator=g)
    for clip, to_the_right in zip(clips, right):
        x, y = (int(i) for i in torch.randint(12, 40, (2,), generator=g))
        for t, frame in enumerate(clip):
            there = 4 + torch.randint(8, (2,), generator=g)
            at = x + (2 * to_the_right - 1) * 3 * t
            frame[:, y:y + 8, at:at + 8] = hero
            frame[:, there[0]:there[0] + 4, there[1]:there[1] + 4] = other
    return clips, right


def test_the_teacher_tells_apart_what_goes_on():
    m = LatentActionModel(LatentActionConfig(action_levels=(3,)))
    m.find_motions(held(64)[0].split(16))
    clips, right = held(32, 1)
    said = m.teach(m.look(clips)[2]).argmax(1).view(32, 3)
    agrees = (said == 1 + right[:, None]).float().mean()
    assert max(agrees, ((said == 2 - right[:, None]).float().mean())) > 0.9
    nothing = m.teach(m.motion(torch.zeros(1, m.n_shifts)))
    assert nothing.argmax() == 0
    m.find_motions([held(32)[0][:, :1].expand(32, 4, 3, 64, 64)])  # nothing moves
    assert all(torch.isfinite(x).all() for x in m.state_dict().values())


def test_the_directions_that_differ_most_for_how_little_they_differ_within():
    g = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(4, 4, generator=g, dtype=torch.double))[0]
    between = turn @ torch.diag(torch.tensor([1., 9, 4, 2]).double()) @ turn.T
    within = turn @ torch.diag(torch.tensor([1., 8.9, 0.5, 1.9]).double()) @ turn.T
    ratio, v = most_for_least(between, within, 2)
    assert (v[:, 0] @ turn).abs().argmax() == 2 and ratio[0] > 5 > 1.2 > ratio[1]
    assert torch.allclose(v.T @ between @ v, torch.eye(2).double(), atol=1e-3)


def test_k_means_finds_groups_and_leaves_out_what_has_no_weight():
    g = torch.Generator().manual_seed(0)
    true = torch.tensor([[0., 0], [5, 0], [0, 5]])
    x = true.repeat(20, 1) + 0.1 * torch.randn(60, 2, generator=g)
    weight = torch.ones(60)
    weight[0], x[0] = 0, 100
    found = k_means(x, weight, true[1] + 0.3, 3)
    assert torch.cdist(found[1:], true[[0, 2]]).amin(0).max() < 0.2
    assert torch.equal(found[0], true[1] + 0.3)
    assert k_means(x[:2], torch.zeros(2), true[0], 3).shape == (3, 2)


def keys_held(groups, centres):
    """keys_of for groups (T,), one after the other, around these centres."""
    groups = torch.nn.functional.one_hot(groups, len(centres)).float()
    return keys_of(*take_turns(groups[None]), torch.tensor(centres)).tolist()


def test_groups_that_take_turns_while_a_key_is_held_are_one_key():
    groups = torch.tensor([0] * 6 + [1, 1, 3, 3, 1, 1, 3, 3] + [2] * 6).repeat(40)
    assert keys_held(groups, [[0., 0], [1, 0], [-1, 0], [0.8, 0.8]]) == [0, 1, 2, 1]
    assert keys_held(groups, [[0., 0], [1, 0], [-1, 0], [0, 1.2]]) == [0, 1, 2, 3], 'another way'
    assert keys_held(groups, [[0., 0], [1, 0], [0.9, 0.2], [-1, 0]]) == [0, 1, 1, 3], 'hardly apart'
    # two keys that are pressed in turns, but not held, are two
    groups = torch.tensor([0] * 6 + [1, 3, 1, 3, 1, 3] + [2] * 6).repeat(40)
    assert keys_held(groups, [[0., 0], [1, 0], [-1, 0], [0.8, 0.8]]) == [0, 1, 2, 3]


def test_what_nobody_holds_is_no_key():
    """Group 3 comes for one step at a time, anywhere; and 4 never."""
    groups = torch.tensor([0] * 6 + [1] * 6 + [2] * 6 + [1] * 3 + [0] * 3).repeat(40)
    groups[torch.randperm(len(groups), generator=torch.Generator().manual_seed(0))[:60]] = 3
    centres = [[0., 0], [1, 0], [-1, 0], [0, 1], [0, -1]]
    assert keys_held(groups, centres) == [0, 1, 2, 0, 0]
    # half of a step, which takes turns with the rest, is the key's
    groups = torch.tensor([0] * 6 + [1, 3, 1, 1, 3, 1] + [2] * 6).repeat(40)
    assert keys_held(groups, [[0., 0], [1, 0], [-1, 0], [0.9, 0.6], [0, -1]])[3] != 0


def test_nobody_takes_the_actions_that_are_left_over():
    m = LatentActionModel(LatentActionConfig(action_levels=(6,)))
    clips, to_the_right = held(96)
    clips[:32] = clips[:32, :, :, 20:21, 20:21]  # the ground, and then another: a third of them
    clips[:32, 1::2] += torch.rand(16, 3, 1, 1, generator=torch.Generator().manual_seed(1))[0]
    m.find_motions(clips.split(16))
    taken = m.means.any(0)
    assert 2 < m.n_used < 6 and (m.means.sum(1) == 1).all()  # each group is one action
    assert taken.tolist() == [True] * m.n_used + [False] * (6 - m.n_used)
    # a group in which k-means leaves nobody is of the first action; no motion is
    assert m.means[0].argmax() == 0
    said = m.teach(m.look(clips)[2]).argmax(1).view(96, 3)
    right, left = (set(said[32:][to_the_right[32:] == way].flatten().tolist()) for way in (1, 0))
    assert len(right) == len(left) == 1 and not right & left
    assert not (right | left) & {0, *said[:32].flatten().tolist()}
    p, codes, actions = m.quantise(torch.randn(500, 6, generator=torch.Generator().manual_seed(2)))
    assert torch.allclose(p.sum(1), torch.ones(500)) and not p[:, ~taken].any()
    assert set(actions.tolist()) == set(taken.nonzero().flatten().tolist())
    nothing = m.teach(m.motion(torch.zeros(1, m.n_shifts)))[0]
    assert nothing[0] == nothing.max() and not nothing[~taken].any()


def test_the_student_learns_from_what_the_teacher_says_of_the_neighbours():
    m = LatentActionModel(LatentActionConfig(action_levels=(2,), n_layer=1, n_embd=32))
    clips = held(8)[0]
    m.find_motions([clips])
    said, gradients = m.teach(m.look(clips)[2]), []
    of_the_last = (torch.arange(24) % 3 == 2)[:, None]
    for taught in (said, torch.where(of_the_last, said.flip(1), said)):
        m.teach = lambda motion: taught
        gradients.append(motion_gradient(m, clips, torch.zeros(24, 2)))
    changed = (gradients[0] - gradients[1]).abs().amax((0, 2)) > 1e-6
    assert changed.tolist() == [False, True, True]


def motion_gradient(m, clips, log_p):
    """Of the loss, at what the student says, log_p (S,n_actions) -> (B,T-1,n_actions)."""
    torch.manual_seed(0)
    log_p = log_p.clone().requires_grad_()
    codes = m.codes(torch.zeros(len(log_p), dtype=torch.long))
    m.quantise = lambda z: (log_p.exp(), codes, z.argmax(1))
    m(clips)[0].backward()
    return log_p.grad.view(len(clips), -1, m.n_actions)


def test_to_agree_with_one_neighbour_is_enough():
    m = LatentActionModel(LatentActionConfig(action_levels=(2,), n_layer=1, n_embd=32))
    clips = held(8)[0]
    m.find_motions([clips])
    m.teach = lambda motion: torch.eye(2)[(torch.arange(24) % 3 == 2).long()]  # 0, 0, 1 in each
    middle = {}
    for p in (0.01, 0.99):  # what the student gives to the first of two actions
        log_p = torch.tensor([p, 1 - p]).log().expand(24, 2)
        middle[p] = motion_gradient(m, clips, log_p)[:, 1].mean(0)
    # who is sure of one of the two hears next to nothing of the other
    assert middle[0.99][1] > 0.05 * middle[0.99][0] and middle[0.01][0] > 0.05 * middle[0.01][1]


def test_where_a_motion_has_two_groups_the_student_may_say_either():
    m = LatentActionModel(LatentActionConfig(action_levels=(3,), n_layer=1, n_embd=32))
    clips, pulls = held(8)[0], []
    m.find_motions([clips])
    m.teach = lambda motion: torch.tensor([[0.5, 0.5, 0]]).expand(24, 3)
    for sure_of in range(3):
        log_p = torch.full((24, 3), 0.02).index_fill(1, torch.tensor(sure_of), 0.96).log()
        pulls.append(motion_gradient(m, clips, log_p).sum((0, 1)))
    # of log p: who says the one is not pulled to the other, who says the third is, to both
    assert pulls[0][1] > 0.1 * pulls[0][0] and pulls[1][0] > 0.1 * pulls[1][1]
    assert torch.allclose(pulls[2][0], pulls[2][1]) and pulls[2][0] < 0 == pulls[2][2]


def test_the_encoder_does_not_see_what_the_hero_looked_like_before():
    m, clip = LatentActionModel(LatentActionConfig()), moved(4, 0)
    other = clip.clone()
    other[:, 0, :, 28:36, 28:36] = -0.9  # another hero in the first frame, in the same place
    for a, b in zip(m.compare(clip)[:2], m.compare(other)[:2]):
        assert torch.equal(a, b)
    assert not torch.equal(m.compare(clip)[0], m.compare(moved(0, 4))[0])


@pytest.mark.parametrize('sure, turns', [(9, True), (0.4, False)])
def test_who_turns_against_a_wall_does_what_those_do_who_walk_that_way(sure, turns):
    m = LatentActionModel(LatentActionConfig()).eval()

    def latents(after, changed, motion):  # a red hero goes the way 3, one in green and blue 5
        assert not changed.all() or not motion.any()
        way = 3 + 2 * (after[:, 0, 30, 30] < 0).long()
        return sure * m.codes(torch.where(changed.flatten(1).all(1), way, 1))

    m.latents = latents
    clip = moved(4, 0).expand(3, -1, -1, -1, -1).clone()
    red = torch.tensor([0.9, -0.9, -0.9])[:, None, None]
    clip[:2, 1] = clip[:2, 0]
    clip[:2, :, :, 28:36, 28:36] = red
    clip[0, 1, :, 28:36, 28:36] = -red  # he turns
    clip[1, 1, :, 40:48, 40:48] = red  # he does not, and something appears
    assert m.encode(clip).flatten().tolist() == [5 if turns else 1, 1, 1]


@pytest.mark.parametrize('sure, alone, enters', [
    (9, 0, True), (0.6, 0, False), (9, 1, False)],
    ids=['sure', 'not sure', 'what moves tells more'])
def test_who_enters_a_new_screen_does_what_those_do_who_walk_that_way(sure, alone, enters):
    m = LatentActionModel(LatentActionConfig()).eval()

    def latents(after, changed, motion):  # all look the way 5; what changed alone says little
        return m.codes(torch.where(changed.flatten(1).all(1), 5, alone)) * sure

    m.latents = latents
    clip = moved(4, 0).expand(2, -1, -1, -1, -1).clone()
    clip[0, 1] = noise(3, 64, 64, seed=1)
    clip[1, 1] = clip[1, 0]
    clip[1, 1, :, 28:36, 28:36] += 0.9  # something appears
    assert m.encode(clip).flatten().tolist() == [5 if enters else alone, alone]


def test_the_encoder_is_shown_what_changed_and_in_training_now_and_then_more():
    m, seen = LatentActionModel(LatentActionConfig()), []
    m.after.register_forward_hook(lambda module, args, out: seen.append(args[0]))
    after, changed, motion, _ = m.look(moved(4, 0, 64))
    elsewhere = after * changed  # as it is, but for the pixels that did not change
    for training in (False, True):
        m.train(training)
        m.latents(after, changed, motion)
        picture, mask = seen[-1][:, :3], seen[-1][:, 3:]
        assert torch.equal(picture, after * mask)
        as_it_is, whole = (mask == changed).flatten(1).all(1), mask.flatten(1).all(1)
        if training:  # costs hidden: a half, of it a third each as it is, a box, all
            assert 0.5 < as_it_is.float().mean() < 0.85 and 0.05 < whole.float().mean() < 0.3
            assert (~as_it_is & ~whole).any() and (mask >= changed).all()
        else:
            assert torch.equal(seen[-1][:, :3], elsewhere)


def test_latents_are_normalised_over_the_batch_and_running_statistics_follow():
    m = LatentActionModel(
        LatentActionConfig(height=16, width=16, n_embd=16, n_head=1, n_layer=1)
    ).train()
    clips = noise(192, 2, 3, 16, 16)
    clips[150:, 1] = clips[150:, 0]  # where nothing moves nothing is known
    seen = m.look(clips)[:3]
    z = m.latents(*seen)[:150]
    assert torch.allclose(z.mean(0), torch.zeros(8), atol=1e-3) and torch.allclose(
        z.var(0), torch.ones(8), atol=2e-2
    )
    m.mean.fill_(9)
    for _ in range(200):
        m.latents(*seen)
    z = m.eval().latents(*seen)[:150]
    assert z.mean(0).abs().max() < 1 and 0.3 < z.var(0).mean() < 3


def test_labels_move_what_makes_the_codes():
    m = LatentActionModel(LatentActionConfig(action_levels=(2,), n_layer=1, n_embd=32, n_classes=2))
    clip, label, losses = moved(4, 0, 8), (torch.arange(8) > 4).long(), []
    for called in (label, 1 - label):
        torch.manual_seed(0)
        losses.append(m(clip, clip, called)[0])
    (losses[0] - losses[1]).backward()
    for p in (*m.after.parameters(), *m.encoder.parameters()):
        assert p.grad is not None and p.grad.abs().max() > 0
    assert all(p.grad is None or not p.grad.any() for p in m.blocks.parameters())


def test_a_label_is_the_number_of_its_action():
    torch.manual_seed(0)
    m = LatentActionModel(LatentActionConfig(action_levels=(3,), n_layer=1, n_embd=32, n_classes=3))
    clips, label = held(16)
    m.find_motions([clips])
    m.hear_labels([(clips[:, 1:3], 1 + label)])
    said = m.teach(m.look(clips[:, 1:3])[2]).argmax(1)
    assert (said == 1 + label).float().mean() > 0.9
    optimizer = torch.optim.AdamW(m.train().parameters(), 3e-3)
    for _ in range(80):
        m(clips, clips[:, 1:3], 1 + label)[0].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert (m.eval().encode(clips[:, 1:3])[:, 0] == 1 + label).float().mean() > 0.9
    with pytest.raises(models.SizeError, match='4 different labels'):
        LatentActionModel(LatentActionConfig(action_levels=(3,), n_classes=4))


def test_any_action_levels_and_any_vocabulary():
    m = LatentActionModel(
        LatentActionConfig(
            height=16, width=16, action_levels=(3, 2), n_embd=16, n_head=1, n_layer=1
        )
    )
    assert m.n_actions == 6
    loss, metrics = m(noise(4, 3, 3, 16, 16))
    assert (
        torch.isfinite(loss)
        and m.encode(noise(4, 3, 3, 16, 16)).max() < 6
        and metrics['unique_actions'] <= 6
    )


# -----------------------------------------------------------------------------
# first losses: they move when the maths, the initialisation or the masks do. Change them on purpose
# only


def first_losses(which):
    """The loss before the first and after the fourth update: at first every block is the identity,
    later it is not."""
    torch.manual_seed(0)
    clip = noise(4, 3, 3, 16, 16)
    if which == 'tokenizer':
        m, batch = Tokenizer(TokenizerConfig(16, 16, 4, (4, 4, 4), 2, 2, 2, 32)), (clip,)
    elif which == 'latent_actions':
        m = LatentActionModel(LatentActionConfig(64, 64, 8, (2, 2, 2), 2, 2, 32))
        batch = (torch.cat([moved(4, 0, 2), moved(0, -4, 2), moved(-3, 1, 2)]),)
        # six transitions would leave most of its directions to rounding
        torch.nn.init.normal_(m.slow)
        torch.nn.init.normal_(m.teacher)
    else:
        m = Dynamics(
            DynamicsConfig(
                vocab_size=64,
                n_tokens=16,
                grid_width=4,
                n_actions=8,
                seq_len=3,
                n_layer=2,
                n_head=2,
                n_embd=32,
            )
        )
        batch = tokens(4, 3, 16, 64), torch.randint(8, (4, 2))
    optimizer, losses = torch.optim.SGD(m.parameters(), 0.1), []
    for step in range(5):
        torch.manual_seed(1)
        loss, _ = m.train()(*batch)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses[0], losses[-1]


GOLDEN = {
    'tokenizer': (6.97429, 2.39942),
    'latent_actions': (2.90219, 1.31759),
    'dynamics': (4.70041, 3.48812),
}


@pytest.mark.parametrize('which', GOLDEN)
def test_golden_first_losses(which):
    assert first_losses(which) == pytest.approx(GOLDEN[which], rel=2e-3)


def test_every_parameter_is_trained():
    """DDP waits for the gradient of every parameter: one that has none stops a run with two ranks
    at its second update."""
    clip = noise(4, 3, 3, 16, 16)
    for m, batch in (
        (Tokenizer(TokenizerConfig(16, 16, 4, (4, 4), 1, 1, 1, 16, True)), (clip,)),
        (LatentActionModel(LatentActionConfig(16, 16, 4, (2, 2), 1, 1, 16)), (clip,)),
        (
            Dynamics(DynamicsConfig(64, 16, 4, 8, 3, 1, 1, 16)),
            (tokens(4, 3, 16, 64), torch.randint(8, (4, 2))),
        ),
    ):
        m.train()(*batch)[0].backward()
        assert [n for n, p in m.named_parameters() if p.grad is None] == []


def test_head_size_is_checked_with_a_message():
    with pytest.raises(ValueError, match='n_embd=10'):
        models.Attention(10, 3)


def test_warnings():
    healthy = dict(val_action_entropy=1.5, val_shuffled_ratio=1.5, val_code_usage=0.5)
    few = (
        LatentActionModel(LatentActionConfig(16, 16, 4, (2, 2), 1, 1, 16)),
        dynamics(),
        Tokenizer(TokenizerConfig(16, 16, 4, (4, 4), 1, 1, 1, 16)),
    )
    for m in few:
        assert list(m.warnings(healthy)) == []
    assert 'one action takes over' in next(few[0].warnings({**healthy, 'val_action_entropy': 0.01}))
    assert 'one action takes over' in next(few[1].warnings({**healthy, 'val_action_entropy': 0.01}))
    assert 'does not care' in next(few[1].warnings({**healthy, 'val_shuffled_ratio': 1.0}))
    assert 'collapsed' in next(few[2].warnings({**healthy, 'val_code_usage': 1 / 16}))


# -----------------------------------------------------------------------------
# optimizers


def test_products_of_bfloat16_are_those_of_float32_rounded():
    """What Muon multiplies with on a CPU that has no instructions for bfloat16."""
    a, b = noise(24, 40).bfloat16(), noise(40, 24, seed=1).bfloat16()
    exact = a.float() @ b.float()
    with models.RoundedProducts():
        product, sum_ = a @ b, torch.addmm(a[:, :24], a, b, beta=2, alpha=3)
        single = a.float() @ b.float()
    assert product.dtype == sum_.dtype == torch.bfloat16 and torch.equal(single, exact)
    assert torch.equal(product, exact.bfloat16())
    assert torch.equal(sum_, (2 * a[:, :24].float() + 3 * exact).bfloat16())


@pytest.mark.parametrize('slow_bfloat16', [False, True])
def test_the_optimizers_look_like_one(slow_bfloat16):
    m = make(Tokenizer, TokenizerConfig, height=16, width=16, n_embd=32, n_head=2, n_layer=1)
    optimizers = models.Optimizers(m, 'muon', 0.1, 0.0)
    optimizers.slow_bfloat16 = slow_bfloat16
    counted = [p for group in optimizers.param_groups for p in group['params']]
    assert len(counted) == len(list(m.parameters())) and len(optimizers.state_dict()) == 2
    # load_state_dict replaces the groups: a learning rate that is set later must still arrive
    for o, state in zip(optimizers.each, optimizers.state_dict()):
        o.load_state_dict(state)
    for group in optimizers.param_groups:
        group['lr'] = 1e-3
    before = {name: p.detach().clone() for name, p in m.named_parameters()}
    m(noise(2, 2, 3, 16, 16))[0].backward()
    optimizers.step()
    moved = [(p - before[name]).abs().max().item() for name, p in m.named_parameters()]
    assert 0 < max(moved) < 0.02  # at a rate of 0.1 it would be more
    optimizers.zero_grad()
    assert all(p.grad is None for p in m.parameters())


def test_rounding_the_products_hardly_changes_a_step_of_muon():
    steps = []
    for slow_bfloat16 in (False, True):
        m = make(Tokenizer, TokenizerConfig, height=16, width=16, n_embd=32, n_head=2, n_layer=1)
        optimizers = models.Optimizers(m, 'muon', 0.1, 0.0)
        optimizers.slow_bfloat16 = slow_bfloat16
        before = m.dec_blocks[0].mlp[0].weight.detach().clone()
        m(noise(2, 2, 3, 16, 16))[0].backward()
        optimizers.step()
        steps.append(m.dec_blocks[0].mlp[0].weight.detach() - before)
    assert (steps[0] - steps[1]).norm() < 0.02 * steps[0].norm()


def test_an_older_torch_has_no_muon(monkeypatch):
    monkeypatch.delattr(torch.optim, 'Muon')
    monkeypatch.delattr(torch.cpu, 'get_capabilities')
    m = models.Tokenizer(models.TokenizerConfig(16, 16, 4, (4, 4), n_head=1, n_embd=16))
    with pytest.raises(models.OptimizerError, match='--optimizer=adamw') as e:
        models.Optimizers(m, 'muon', 0.1, 0.0)
    assert e.value.exit_code == 2
    models.Optimizers(m, 'adamw', 0.1, 0.0)
