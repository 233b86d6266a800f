"""
How fast is it, and how far from what the machine can do?

    python bench.py config/tiny.py                                # a table of the three stages and of sampling
    python bench.py config/tiny.py --stage=dynamics               # one of them: tokenizer, latent_actions, dynamics, sample
    python bench.py config/tiny.py --stage=dynamics --n_embd=256 --total_batch_size=4
    python bench.py config/tiny.py --stage=dynamics --profile=trace.json      # for chrome://tracing; the top operators in print
    python bench.py config/tiny.py --scaling=True                 # how cost grows with frame size, context, width, vocabulary
    torchrun --standalone --nproc_per_node=2 bench.py config/tiny.py --stage=dynamics
    python bench.py config/failed_run.py                          # the shape of the failed run; makes what it needs

Keys that bench.py does not have are those of the stage (of sample.py for --stage=sample), which checks them as ever. What
is timed is the stage itself: its script is executed down to the training loop, and then updates are made with the
batches, network and optimizers that it has set up. Nothing of the run is written.

frames/s are those of the training log: all frames of the clips. FLOPs are those of the network's matrix products, by
formula, which a test holds against torch's own counter; what Muon multiplies counts as time alone. Utilisation: FLOPs a
second over those of one large torch.mm on the same device, in the same dtype, in the same run. Medians over the updates.
"""
import contextlib
import io
import math
import os
import subprocess
import sys
import tempfile
import time
from json import dumps, load
from types import SimpleNamespace

import h5py
import numpy as np
import torch

import configurator
import data
import files
import pictures
from model import Dynamics, DynamicsConfig, Tokenizer, TokenizerConfig
from recordings import game
from world import taken_actions

# -----------------------------------------------------------------------------
# config

stage = 'all'                     # 'tokenizer', 'latent_actions', 'dynamics', 'sample', or 'all'
n_iters = 20                      # updates, or imagined frames, that are timed
json = ''                         # a file for the numbers
profile = ''                      # a file for a trace of three more updates, for chrome://tracing
scaling = False                   # instead: how the cost of an update grows. Random frames and tokens
dataset = 'data/tiny.h5'
out_dir = 'out/tiny'              # earlier stages, and for --stage=sample all; read only
prepare = 0                       # make a recording of this frame size and barely trained earlier stages, where they are missing
_given = sys.argv[1:]
_own = configurator.read_script(__file__)[0]


def key(argument):
    """'n_embd' of '--n_embd=256'; '' of what is no setting."""
    return argument[2:].split('=')[0] if argument.startswith('--') and '=' in argument else ''


sys.argv[1:] = [a for a in _given if not key(a) or key(a) in _own]
config = configurator.apply(__file__, globals())
rest = [a for a in _given if not key(a) or key(a) not in set(_own) - {'dataset', 'out_dir'}]     # for the stage
here = os.path.dirname(os.path.abspath(__file__))
stages = ('tokenizer', 'latent_actions', 'dynamics', 'sample')
parts = ('data', 'forward', 'backward', 'optimizer')
ddp = 'RANK' in os.environ        # started by torchrun
master = os.environ.get('RANK', '0') == '0'

# -----------------------------------------------------------------------------
# FLOPs by formula: two for each multiply-add of a matrix product. In training each costs three times its forward pass (the
# gradient of its input and that of its weights cost as much each), twice where the input needs no gradient


def block(D, L, attentions=1):
    """Multiply-adds a patch in a Block: qkv 3 D^2 and proj D^2 for each attention, the MLP 8 D^2; q.k and the sum over v are
    D each for each of the L patches that are looked at. Causal attention counts in full."""
    return attentions * 4 * D * D + 8 * D * D + 2 * L * D


def decoder(model, T=0):
    """Multiply-adds a patch in the blocks of the tokenizer's decoder; T frames if it looks at earlier ones. In a large frame every
    other block looks at a window."""
    looks = [b.window ** 2 if b.windowed(model.n_tokens) else model.n_tokens for b in model.dec_blocks]
    return sum(block(model.config.n_embd, L + T, 2 if T else 1) for L in looks)


def tokenizer_flops(model, B, T):
    """B clips of T frames -> FLOPs of the forward pass, of forward and backward."""
    c, N, P, D, d = model.config, model.n_tokens, 3 * model.config.patch_size ** 2, model.config.n_embd, len(model.config.levels)
    blocks = decoder(model, T * c.temporal) + c.n_layer_encoder * (block(D, N + T, 2) if c.temporal else block(D, N))
    embed = 2 * B * T * N * P * D                                                    # pixels need no gradient
    others = 2 * B * T * N * (8 * D * D + blocks + 2 * d * D + D * P)                # the encoder's first block is an MLP alone
    return embed + others, 2 * embed + 3 * others


def latent_actions_flops(model, B, T):
    """The same; what compares the frames is no matrix product."""
    c, n_costs, S = model.config, model.n_costs, B * (T - 1)
    N, P, D, d = len(model.pos), 3 * c.patch_size ** 2, c.n_embd, len(c.action_levels)
    s = max(1, round(min(c.height, c.width) / 64))
    h, w = (n // s for n in (c.height, c.width))
    half, quarter = (-(-h // k) * -(-w // k) for k in (2, 4))                        # places after each convolution with stride 2
    first = 2 * S * (half * 4 * 32 * 25 + N * P * D)                                 # pixels need no gradient
    encoder = quarter * (32 * 64 + 64 * 64) * 9 + (64 + n_costs) * D + D * D + D * d
    decoder = d * D + N * (c.n_layer * block(D, N) + D * P)
    others = 2 * S * (encoder + d * D + D * n_costs + decoder)                       # `explain` between the two
    return first + others, 2 * first + 3 * others


def dynamics_flops(model, B, T=None):
    """The same. The past is summed into the new frame, so T does not matter; the head sees masked tokens alone."""
    c, D = model.config, model.config.n_embd
    masked = sum(model.n_masked(B, i) for i in range(B))
    forward = 2 * (B * c.n_tokens * c.n_layer * block(D, c.n_tokens) + masked * D * model.head.out_features)
    return forward, 3 * forward


def sample_flops(tokenizer, dynamics, B, maskgit_steps):
    """One frame of B rollouts: every step that reveals a token looks at all; the head sees each once; then the decoder."""
    c, t = dynamics.config, tokenizer.config
    N, D, E = c.n_tokens, c.n_embd, t.n_embd
    steps = len({math.floor(math.cos(math.pi / 2 * i / maskgit_steps) * N + 1e-6) for i in range(maskgit_steps + 1)}) - 1
    step = steps * c.n_layer * block(D, N) + D * dynamics.head.out_features
    decode = decoder(tokenizer) + len(t.levels) * E + 3 * t.patch_size ** 2 * E
    return 2 * B * N * (step + decode)


flops = dict(tokenizer=tokenizer_flops, latent_actions=latent_actions_flops, dynamics=dynamics_flops)

# -----------------------------------------------------------------------------
# the script of a stage, its updates, and what the device can do


def execute(script, argv, until, since='', names=()):
    """Executes a script with these arguments from its section `since` down to its section `until`, with names beforehand
    -> all its names."""
    path = os.path.join(here, script + '.py')
    with open(path, encoding='utf-8') as f:
        source = f.read()
    title = lambda section: source.index(f'# {"-" * 77}\n# {section}\n')
    a, b = title(since) if since else 0, title(until)
    names = dict(names, __file__=path, __name__='__main__')
    sys.argv[:] = [path, *argv]
    exec(compile('\n' * source[:a].count('\n') + source[a:b], path, 'exec'), names)    # line numbers as in the file
    return names


def now(device):
    """A point in time of the device. On CUDA one of its own events: nothing waits for it."""
    if device.startswith('cuda'):
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
    if device == 'mps':
        torch.mps.synchronize()
    return time.perf_counter()


def seconds(a, b):
    if isinstance(a, float):
        return b - a
    b.synchronize()
    return a.elapsed_time(b) / 1000


def matmul_rate(device, dtype):
    """FLOPs a second of the best of ten large torch.mm."""
    n = 8192 if device.startswith('cuda') else 1024
    a, b = torch.randn(2, n, n, device=device).to(getattr(torch, dtype))
    best = math.inf
    for _ in range(10):
        t = now(device)
        torch.mm(a, b)
        best = min(best, seconds(t, now(device)))
    return 2 * n ** 3 / best


def update(s, it):
    """Update `it` of script s, as in its training loop, to zero_grad -> points in time, [(part that ends there, time)], and the
    mean of the loss over the ranks."""
    clock = [('', now(s.device))]
    for o in s.optimizers:
        for group in o.param_groups:
            group['lr'] = s.guard['rate'] * s.get_lr(it)
    sums = 0
    for micro_step in range(s.grad_accum_steps):
        torch.manual_seed(s.keyed(0, it, micro_step * s.world_size + s.rank))
        last = micro_step == s.grad_accum_steps - 1
        if s.fsdp:
            s.model.set_requires_gradient_sync(last)
        elif s.ddp:
            s.model.require_backward_grad_sync = last
        with s.ctx:
            loss, metrics = s.model(*s.batch)
        clock.append(('forward', now(s.device)))
        s.scaler.scale(loss / s.grad_accum_steps).backward()
        sums = sums + torch.stack([loss, *metrics.values()]).detach().float()
        clock.append(('backward', now(s.device)))
        s.batch = s.get_batch('train', it + last, 0 if last else micro_step + 1)
        clock.append(('data', now(s.device)))
    for o in s.optimizers:
        s.scaler.unscale_(o)
    grad_norm = torch.nn.utils.clip_grad_norm_(s.raw_model.parameters(), s.grad_clip or math.inf)
    grad_norm = grad_norm.full_tensor() if s.fsdp else grad_norm
    loss, *_, grad_norm = s.all_mean(torch.cat([sums / s.grad_accum_steps, grad_norm[None]])).tolist()
    if math.isfinite(grad_norm):
        for o in s.optimizers:
            s.scaler.step(o)
        if s.ema:
            s.ema.update_parameters(s.raw_model)
    s.scaler.update()
    for o in s.optimizers:
        o.zero_grad(set_to_none=True)
    clock.append(('optimizer', now(s.device)))
    return clock, loss


def timed(s, n, warm_up=2):
    """n updates after the first ones, which are slower -> median seconds of an update and of its parts, and all losses."""
    s.batch = s.get_batch('train', 1, 0)
    clocks, losses = zip(*(update(s, it) for it in range(1, warm_up + n + 1)))
    rows = []
    for clock in clocks[warm_up:]:
        spent = dict.fromkeys(parts, 0)
        for (_, a), (part, b) in zip(clock, clock[1:]):
            spent[part] += seconds(a, b)
        rows.append([sum(spent.values()), *spent.values()])
    return dict(zip(('update', *parts), np.median(rows, 0).tolist())), list(losses)


def trace(run, device):
    """Three runs under torch's profiler: writes the trace, prints the operators that took the most time."""
    with torch.profiler.profile() as p:
        for _ in range(3):
            run()
    if not master:
        return
    with files.replacing(profile) as tmp:
        p.export_chrome_trace(tmp)
    spent = 'self_device_time_total' if device.startswith('cuda') else 'self_cpu_time_total'         # microseconds
    events = sorted(p.key_averages(), key=lambda e: -getattr(e, spent))
    total = sum(getattr(e, spent) for e in events)
    for e in events[:12]:
        t = getattr(e, spent)
        print(f'  {t / total:6.1%} {t / 3000:9.2f} ms  {e.count / 3:6.0f} calls  {e.key[:80]}')
    print(f'  see {profile}')


def about(s, rate, frame, n_parameters, **more):
    """What every report says; s is a script."""
    peak = torch.cuda.max_memory_allocated() if s.device.startswith('cuda') else configurator.peak_memory()
    return dict(device=s.device, dtype=s.dtype, threads=torch.get_num_threads(), torch=str(torch.__version__), config=s.config,
                matmul_rate=rate, frame=frame, parameters=n_parameters, peak_memory=peak, **more)

# -----------------------------------------------------------------------------
# one stage


def bench_training():
    """What an update of the stage costs."""
    s = SimpleNamespace(**execute(stage, rest, 'training loop'))
    rate = matmul_rate(s.device, s.dtype)
    spent, losses = timed(s, n_iters)
    rate = max(rate, matmul_rate(s.device, s.dtype))                                 # others on the machine only lower it
    if profile:
        trace(lambda: update(s, len(losses) + 1), s.device)
    frame, clips = s.recording.frames.shape[1:3], s.total_batch_size / spent['update']
    patch_size = s.tokenizer.config.patch_size if stage == 'dynamics' else s.patch_size
    work = s.grad_accum_steps * flops[stage](s.raw_model, s.device_batch_size, s.seq_len)[1]         # of this rank
    report = about(s, rate, frame, sum(p.numel() for p in s.raw_model.parameters()), world_size=s.world_size, seconds=spent,
                   frames_per_second=clips * s.seq_len, clips_per_second=clips, clips=s.total_batch_size, seq_len=s.seq_len,
                   tokens_per_second=clips * s.seq_len * (frame[0] // patch_size) * (frame[1] // patch_size),
                   flops=work, utilisation=work / spent['update'] / rate, losses=losses)
    if s.ddp:
        del s.model                                                                  # its threads outlive the group
        torch.distributed.destroy_process_group()
    return report


@torch.no_grad()
def bench_sampling():
    """What it takes to imagine one more frame and to draw it, for one player and for 16 rollouts at once."""
    s = SimpleNamespace(**execute('sample', rest, 'imagine'))
    rate, rows, clip = matmul_rate(s.device, s.dtype), [], s.truth[:1, :s.context_frames + 1]

    def imagine(B, steps):
        """Seconds of MaskGIT and of the decoder."""
        a = now(s.device)
        dream = s.dynamics.generate(tokens.expand(B, -1, -1), actions.expand(B, -1), steps, s.temperature)
        b = now(s.device)
        s.tokenizer.decode(dream if s.tokenizer.config.temporal else dream[:, -1:])  # a temporal one needs the past
        return seconds(a, b), seconds(b, now(s.device))

    with s.ctx:
        tokens = s.tokenizer.encode(clip[:, :-1])
        actions = taken_actions(s.about['config']['action_source'], s.labeller, clip, s.recording, s.picks[:1])
        for B in (1, 16):
            imagine(B, 1)                                                            # the first one is slower
            for steps in sorted({2, 4, 8, 10, 16, 25, s.maskgit_steps}):
                times, start = [], time.perf_counter()
                while len(times) < n_iters and (not times or time.perf_counter() - start < 3):
                    times.append(imagine(B, steps))
                generate, decode = np.median(times, 0).tolist()
                rows.append(dict(rollouts=B, maskgit_steps=steps, generate=generate, decode=decode, seconds=generate + decode,
                                 frames_per_second=B / (generate + decode), flops=sample_flops(s.tokenizer, s.dynamics, B, steps)))
        if profile:
            trace(lambda: imagine(1, s.maskgit_steps), s.device)
    rate = max(rate, matmul_rate(s.device, s.dtype))
    for row in rows:
        row['utilisation'] = row['flops'] / row['seconds'] / rate
    return about(s, rate, s.recording.frames.shape[1:3], sum(p.numel() for p in s.dynamics.parameters()), rows=rows)

# -----------------------------------------------------------------------------
# all stages, each in a process of its own: so that memory at its peak is the stage's


def child(script, *argv):
    """Runs a script in silence -> its exit code and its last words."""
    done = subprocess.run([sys.executable, os.path.join(here, script), *argv], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    return done.returncode, done.stderr.strip()


def bench_all():
    """The reports of all stages, by name; what is not trained yet is said and left out."""
    keys = {name: configurator.read_script(os.path.join(here, name + '.py'))[0] for name in stages}
    reports, strange = {}, [a for a in rest if key(a) and not any(key(a) in k for k in keys.values())]
    with tempfile.TemporaryDirectory() as folder:
        for name in stages:
            theirs = [a for a in rest if not key(a) or key(a) in keys[name]] + strange
            path = os.path.join(folder, name)
            code, words = child('bench.py', *theirs, f'--stage={name}', f'--n_iters={n_iters}', f'--prepare={prepare}', f'--json={path}')
            if code == 4:
                print(f'{name}: ' + ' '.join(words.split()))
            elif code:
                configurator.stop(code, words)
            else:
                with open(path) as f:
                    reports[name] = load(f)
    return reports


def show(reports):
    """Prints reports as tables."""
    r = next(iter(reports.values()))
    rate = max(r['matmul_rate'] for r in reports.values())
    print(f'frames of {r["frame"][0]}x{r["frame"][1]} on {r["device"]} in {r["dtype"]}, {r["threads"]} threads; torch.mm: {rate / 1e9:,.1f} GFLOP/s')
    training = {name: r for name, r in reports.items() if name != 'sample'}
    if training:
        print('\n| stage | clips x frames | ms an update | data | forward | backward | optimizer | frames/s | tokens/s | GFLOP | utilisation '
              '| memory, GB | parameters |\n|---' + '|---' * 12 + '|')
    for name, r in training.items():
        print(f'| {name} | {r["clips"]} x {r["seq_len"]} | ' + ' | '.join(f'{1000 * r["seconds"][k]:.1f}' for k in ('update', *parts))
              + f' | {r["frames_per_second"]:,.1f} | {r["tokens_per_second"]:,.0f} | {r["flops"] / 1e9:.2f} | {r["utilisation"]:.2f} '
              f'| {r["peak_memory"] / 1e9:.2f} | {r["parameters"]:,} |')
    if 'sample' in reports:
        print('\n| sampling: MaskGIT steps | ms a frame | of which decoding | frames/s | utilisation | 16 rollouts: frames/s | utilisation |'
              '\n|---' + '|---' * 6 + '|')
        rows = reports['sample']['rows']
        for one, many in zip(rows[:len(rows) // 2], rows[len(rows) // 2:]):
            print(f'| {one["maskgit_steps"]} | {1000 * one["seconds"]:.1f} | {1000 * one["decode"]:.1f} | {one["frames_per_second"]:.1f} '
                  f'| {one["utilisation"]:.2f} | {many["frames_per_second"]:.1f} | {many["utilisation"]:.2f} |')

# -----------------------------------------------------------------------------
# how cost grows: one thing changes at a time, from where `base` is

base = {'frame size': 128, 'context': 4, 'width': 128, 'vocabulary': 1024}
axes = {'frame size': (64, 128, 256), 'context': (4, 8, 16), 'width': (64, 128, 256, 384), 'vocabulary': (256, 1024, 4096, 65536)}


def cost(name, size, T, D, V):
    """(FLOPs, seconds) of an update of a stage on random frames or tokens: a network straight from model.py, the rest as
    the script and the config files have it. Heads of 32."""
    argv = [a for a in rest if not key(a)] + [f'--seq_len={T}', f'--n_embd={D}', f'--n_head={max(1, D // 32)}']
    with contextlib.redirect_stdout(io.StringIO()):                                  # the line with the settings
        p = execute('tokenizer', argv, 'data')['patch_size']
        names = execute(name, argv, 'data')
    s, N = SimpleNamespace(**names), (size // p) ** 2
    B = s.device_batch_size
    if name == 'tokenizer':
        model = Tokenizer(TokenizerConfig(size, size, p, (4,) * round(math.log(V, 4)), s.n_layer, s.n_layer_encoder, s.n_head, D, s.temporal))
        batch = [torch.rand(B, T, 3, size, size, device=s.device) * 2 - 1]
    else:
        model = Dynamics(DynamicsConfig(V, N, size // p, 8, T, s.n_layer, s.n_head, D, s.corrupt))
        batch = [torch.randint(V, (B, T, N), device=s.device), torch.randint(8, (B, T - 1), device=s.device)]
    names.update(model=model.to(s.device), get_batch=lambda *_: batch, dataset_id='', parents={}, chance=None)
    s = SimpleNamespace(**execute(name, argv, 'training loop', 'resume, optimizer, compile, DDP', names))
    return s.grad_accum_steps * flops[name](s.raw_model, B, T)[1], timed(s, max(3, n_iters // 4))[0]['update']


def bench_scaling():
    """Prints the table as it comes."""
    points, exponents = {}, {}
    print('cost of an update on random frames and tokens; what is not changed is ' + ', '.join(f'{k} {v}' for k, v in base.items()))
    print('\n| | stage 1: GFLOP | ms | stage 3: GFLOP | ms |\n|---|---|---|---|---|')
    for axis, values in axes.items():
        costs = []
        for value in values:
            point = tuple({**base, axis: value}.values())
            if point not in points:
                points[point] = *cost('tokenizer', *point), *cost('dynamics', *point)
            costs.append(points[point])
            print(f'| {axis} {value} | ' + ' | '.join(f'{x:.4g}' for x in np.array(points[point]) / [1e9, 1e-3, 1e9, 1e-3]) + ' |', flush=True)
        exponents[axis] = np.polyfit(np.log(values), np.log(costs), 1)[0].tolist()   # slopes of log cost over log value
        print(f'| **exponent of {axis}** | ' + ' | '.join(f'{x:.2f}' for x in exponents[axis]) + ' |')
    order = sorted(axes, key=lambda axis: -exponents[axis][3])
    print(f'\ntoo slow? Change the {order[0]} first. What half of it leaves of an update of stage 3: '
          + ', '.join(f'{axis} {2 ** -exponents[axis][3]:.2f}' for axis in order) + '. Twice the patch size is half the frame size')
    return dict(base=base, exponents=exponents, points=[[*point, *costs] for point, costs in points.items()])

# -----------------------------------------------------------------------------
# what is missing


def make_missing():
    """A recording of a few hundred frames, and one update of each earlier stage: as fast as one that has learned."""
    if not os.path.exists(dataset):
        frames = game.record(400, episode_len=40)['frames']
        with files.replacing(dataset) as tmp, h5py.File(tmp, 'w') as f:
            f['frames'], f['episode_starts'] = pictures.enlarge(frames, prepare // frames.shape[1]), np.arange(0, 400, 40)
    files, once = [a for a in rest if not key(a)], ['--max_iters=1', '--eval_iters=1', '--warmup_iters=1']
    for name in dict(dynamics=stages[:2], sample=stages[:3]).get(stage, ()):
        if not os.path.exists(os.path.join(out_dir, name, 'best.pt')):
            print(f'one update of {name}, to have a checkpoint in {out_dir}', flush=True)
            code, words = child(name + '.py', *files, f'--dataset={dataset}', f'--out_dir={out_dir}', *once,
                                *['--maskgit_steps=1'] * (name == 'dynamics'))
            if code:
                configurator.stop(code, words)

# -----------------------------------------------------------------------------
# measure

if (ddp or profile) and (scaling or stage == 'all'):
    configurator.stop(2, 'config: torchrun and --profile are for one stage\nexpected one of --stage=' + ', '.join(stages))
try:
    if prepare and not ddp:
        make_missing()
    if scaling:
        report = bench_scaling()
    elif stage == 'all':
        report = bench_all()
        show(report)
    else:
        report = bench_sampling() if stage == 'sample' else bench_training()
        if master:
            show({stage: report})
    if json and master:
        with files.replacing(json) as tmp, open(tmp, 'w') as f:
            f.write(dumps(report, indent=1) + '\n')
except files.DiskError as e:
    configurator.stop(7, e)
