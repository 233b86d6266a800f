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

frames/s are those of the training log: all frames of the clips. FLOPs are those of matrix products alone, by formula; the
test holds the formulas against torch's own counter. Utilisation: FLOPs a second over those of one large torch.mm on the same
device, in the same dtype, in the same run. Medians over the updates.
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
import game
from model import Dynamics, DynamicsConfig, Tokenizer, TokenizerConfig, taken_actions

# -----------------------------------------------------------------------------
# config

stage = 'all'                     # 'tokenizer', 'latent_actions', 'dynamics', 'sample', or 'all'
n_iters = 20                      # updates, or imagined frames, that are timed
json = ''                         # a file for the numbers
profile = ''                      # a file for a trace of three more updates, for chrome://tracing
scaling = False                   # instead: how the cost of an update grows. Random frames and tokens
dataset = 'data/tiny.h5'
out_dir = 'out/tiny'              # earlier stages, and for --stage=sample all; read only
prepare = 0                       # frame size: make what is missing, from the built-in game, enlarged to it. Never in a folder that you care for
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

# -----------------------------------------------------------------------------
# FLOPs by formula: two for each multiply-add of a matrix product. In training each costs three times its forward pass (the
# gradient of its input and that of its weights cost as much each), twice where the input needs no gradient


def block(D, L, attentions=1):
    """Multiply-adds a patch in a Block: qkv 3 D^2 and proj D^2 for each attention, the MLP 8 D^2; q.k and the sum over v are
    D each for each of the L patches that are looked at. Causal attention counts in full."""
    return attentions * 4 * D * D + 8 * D * D + 2 * L * D


def tokenizer_flops(model, B, T):
    """B clips of T frames -> FLOPs of the forward pass, of forward and backward."""
    c, N, P, D, d = model.config, model.n_tokens, 3 * model.config.patch_size ** 2, model.config.n_embd, len(model.config.levels)
    blocks = (c.n_layer_encoder + c.n_layer) * (block(D, N + T, 2) if c.temporal else block(D, N))
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
    masked = sum(math.ceil((0.5 + 0.5 * (i + 0.5) / B) * c.n_tokens) for i in range(B))
    forward = 2 * (B * c.n_tokens * c.n_layer * block(D, c.n_tokens) + masked * D * model.head.out_features)
    return forward, 3 * forward


def sample_flops(tokenizer, dynamics, B, maskgit_steps):
    """One frame of B rollouts: every step predicts all tokens; then the decoder."""
    c, t = dynamics.config, tokenizer.config
    N, D, E = c.n_tokens, c.n_embd, t.n_embd
    step = c.n_layer * block(D, N) + D * dynamics.head.out_features
    decode = t.n_layer * block(E, N) + len(t.levels) * E + 3 * t.patch_size ** 2 * E
    return 2 * B * N * (maskgit_steps * step + decode)


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
    """Update `it` of script s, as in its training loop: from get_batch to zero_grad, and the mean of the loss over the ranks
    -> points in time, [(part that ends there, time)], and the loss."""
    clock = [('', now(s.device))]
    for o in s.optimizers:
        for group in o.param_groups:
            group['lr'] = s.guard['rate'] * s.get_lr(it)
    sums = 0
    for micro_step in range(s.grad_accum_steps):
        batch = s.get_batch('train', it, micro_step)
        torch.manual_seed(s.keyed(0, it, micro_step * s.world_size + s.rank))
        clock.append(('data', now(s.device)))
        if s.ddp:
            s.model.require_backward_grad_sync = micro_step == s.grad_accum_steps - 1
        with s.ctx:
            loss, metrics = s.model(*batch)
        clock.append(('forward', now(s.device)))
        s.scaler.scale(loss / s.grad_accum_steps).backward()
        sums = sums + torch.stack([loss, *metrics.values()]).detach().float()
        clock.append(('backward', now(s.device)))
    for o in s.optimizers:
        s.scaler.unscale_(o)
    grad_norm = torch.nn.utils.clip_grad_norm_(s.raw_model.parameters(), s.grad_clip or math.inf).item()
    if math.isfinite(grad_norm):
        for o in s.optimizers:
            s.scaler.step(o)
        if s.ema:
            s.ema.update_parameters(s.raw_model)
    s.scaler.update()
    for o in s.optimizers:
        o.zero_grad(set_to_none=True)
    loss = s.all_mean(sums / s.grad_accum_steps).tolist()[0]
    clock.append(('optimizer', now(s.device)))
    return clock, loss


def timed(s, n, warm_up=2):
    """n updates after the first ones, which are slower -> median seconds of an update and of its parts, and all losses."""
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
    try:
        with data.replacing(profile) as tmp:
            p.export_chrome_trace(tmp)
    except data.DiskError as e:
        configurator.stop(7, e)
    spent = 'self_device_time_total' if device.startswith('cuda') else 'self_cpu_time_total'                 # microseconds
    events = sorted(p.key_averages(), key=lambda e: -getattr(e, spent))
    total = sum(getattr(e, spent) for e in events)
    for e in events[:12]:
        print(f'  {getattr(e, spent) / total:6.1%} {getattr(e, spent) / 3000:9.2f} ms  {e.count // 3:5} calls  {e.key[:80]}')
    print(f'  see {profile}')


def settings(device, dtype, **more):
    return dict(device=device, dtype=dtype, threads=torch.get_num_threads(), torch=str(torch.__version__), **more)


def peak_memory(device):
    return torch.cuda.max_memory_allocated() if device.startswith('cuda') else configurator.peak_memory()

# -----------------------------------------------------------------------------
# one stage


def bench_training():
    """Prints and returns what an update of the stage costs."""
    s = SimpleNamespace(**execute(stage, rest, 'training loop'))
    rate = matmul_rate(s.device, s.dtype)
    spent, losses = timed(s, n_iters)
    rate = max(rate, matmul_rate(s.device, s.dtype))                                 # other work on the machine only lowers it
    work = s.grad_accum_steps * flops[stage](s.raw_model, s.device_batch_size, s.seq_len)[1]         # of this rank
    size = s.recording.frames.shape[1:3]
    patch_size = getattr(s, 'patch_size', None) or s.tokenizer.config.patch_size
    clips = s.total_batch_size / spent['update']
    n_parameters = sum(p.numel() for p in s.raw_model.parameters())
    report = dict(
        settings(s.device, s.dtype, world_size=s.world_size), config=s.config, frame_size=size, seconds=spent,
        clips_per_second=clips, frames_per_second=clips * s.seq_len,
        tokens_per_second=clips * s.seq_len * math.prod(n // patch_size for n in size), flops=work, matmul_rate=rate,
        utilisation=work / spent['update'] / rate, peak_memory=peak_memory(s.device), parameters=n_parameters, losses=losses)
    if s.master_process:
        print(f'{stage}: {n_parameters:,} parameters on {s.world_size} x {s.device} in {s.dtype} ({report["threads"]} threads); an update is '
              f'{s.total_batch_size} clips of {s.seq_len} frames of {size[0]}x{size[1]}, patch {patch_size}\n'
              f'  {1000 * spent["update"]:.4g} ms an update: ' + ' | '.join(f'{p} {1000 * spent[p]:.4g}' for p in parts) + '\n'
              f'  {report["frames_per_second"]:,.1f} frames/s, {report["tokens_per_second"]:,.0f} tokens/s\n'
              f'  {work / 1e9:.4g} GFLOP an update, {work / spent["update"] / 1e9:.4g} GFLOP/s of the {rate / 1e9:.4g} of torch.mm: '
              f'utilisation {report["utilisation"]:.2f}\n  memory at its peak {report["peak_memory"] / 1e9:.2f} GB')
    if profile:
        trace(lambda: update(s, len(losses) + 1), s.device)
    if s.ddp:
        del s.model                                                                  # its threads outlive the group
        torch.distributed.destroy_process_group()
    return report


@torch.no_grad()
def bench_sampling():
    """Prints and returns what it takes to imagine one frame and decode it, for one player and for 16 rollouts at once."""
    s = SimpleNamespace(**execute('sample', rest, 'imagine'))
    rate, rows = matmul_rate(s.device, s.dtype), []
    clip, temporal = s.truth[:1, :s.context_frames + 1], s.tokenizer.config.temporal

    def imagine(B, steps):
        a = now(s.device)
        dream = s.dynamics.generate(tokens.expand(B, -1, -1), actions.expand(B, -1), steps, s.temperature)
        b = now(s.device)
        s.tokenizer.decode(dream if temporal else dream[:, -1:])                     # a tokenizer that looks back needs the past
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
                work = sample_flops(s.tokenizer, s.dynamics, B, steps)
                rows.append(dict(rollouts=B, maskgit_steps=steps, seconds_per_frame=generate + decode, generate=generate, decode=decode,
                                 frames_per_second=B / (generate + decode), flops=work))
        if profile:
            trace(lambda: imagine(1, s.maskgit_steps), s.device)
    rate = max(rate, matmul_rate(s.device, s.dtype))
    for row in rows:
        row['utilisation'] = row['flops'] / row['seconds_per_frame'] / rate
    size = s.recording.frames.shape[1:3]
    report = dict(settings(s.device, s.dtype), config=s.config, frame_size=size, maskgit_steps=s.maskgit_steps, matmul_rate=rate,
                  peak_memory=peak_memory(s.device), parameters=sum(p.numel() for p in s.dynamics.parameters()), rows=rows)
    print(f'sample: frames of {size[0]}x{size[1]} on {s.device} in {s.dtype} ({report["threads"]} threads); torch.mm {rate / 1e9:.4g} GFLOP/s; '
          f'memory at its peak {report["peak_memory"] / 1e9:.2f} GB\n' + sampling_table(report))
    return report


def sampling_table(report):
    """Markdown: a row for each number of MaskGIT steps."""
    lines = ['| MaskGIT steps | ms a frame, 1 rollout | of which decoding | frames/s | utilisation | 16 rollouts: frames/s | utilisation |',
             '|---|---|---|---|---|---|---|']
    half = len(report['rows']) // 2
    for one, many in zip(report['rows'][:half], report['rows'][half:]):
        lines.append(f'| {one["maskgit_steps"]} | {1000 * one["seconds_per_frame"]:.4g} | {1000 * one["decode"]:.3g} | {one["frames_per_second"]:.1f} '
                     f'| {one["utilisation"]:.2f} | {many["frames_per_second"]:.1f} | {many["utilisation"]:.2f} |')
    return '\n'.join(lines)

# -----------------------------------------------------------------------------
# all stages, each in a process of its own: so that memory at its peak is the stage's


def bench_all():
    keys = {name: set(configurator.read_script(os.path.join(here, name + '.py'))[0]) for name in stages}
    reports, missing = {}, []
    with tempfile.TemporaryDirectory() as folder:
        for name in stages:
            theirs = [a for a in rest if not key(a) or key(a) in keys[name] or not any(key(a) in k for k in keys.values())]
            file = os.path.join(folder, name)
            command = [sys.executable, os.path.abspath(__file__), *theirs, f'--stage={name}', f'--n_iters={n_iters}', f'--prepare={prepare}', f'--json={file}']
            done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            if done.returncode == 4:                                                 # not trained yet: the others are still worth a look
                missing.append(f'{name}: ' + ' '.join(done.stderr.split()))
            elif done.returncode:
                configurator.stop(done.returncode, done.stderr.strip())
            else:
                with open(file) as f:
                    reports[name] = load(f)
    rate = max(r['matmul_rate'] for r in reports.values())
    any_of = next(iter(reports.values()))
    print(f'{" ".join(rest)}: frames of {any_of["frame_size"][0]}x{any_of["frame_size"][1]} on {any_of["device"]} in {any_of["dtype"]} '
          f'({any_of["threads"]} threads); torch.mm {rate / 1e9:.4g} GFLOP/s\n\n'
          '| stage | ms an update | data | forward | backward | optimizer | frames/s | tokens/s | GFLOP | utilisation | memory, GB | parameters |\n'
          '|---|---|---|---|---|---|---|---|---|---|---|---|')
    for name, r in reports.items():
        if name != 'sample':
            print(f'| {name} | ' + ' | '.join(f'{1000 * r["seconds"][k]:.4g}' for k in ('update', *parts)) + f' | {r["frames_per_second"]:,.1f} '
                  f'| {r["tokens_per_second"]:,.0f} | {r["flops"] / 1e9:.4g} | {r["utilisation"]:.2f} | {r["peak_memory"] / 1e9:.2f} | {r["parameters"]:,} |')
    if 'sample' in reports:
        print('\n' + sampling_table(reports['sample']))
    if missing:
        print('\n' + '\n'.join(missing))
    return reports

# -----------------------------------------------------------------------------
# how cost grows: one thing changes at a time. Networks straight from model.py, random frames and tokens


def bench_scaling():
    axes = {'frame size': (64, 128, 256), 'context': (4, 8, 16), 'width': (64, 128, 256, 384), 'vocabulary': (256, 1024, 4096, 65536)}
    base = {'frame size': 128, 'context': 4, 'width': 128, 'vocabulary': 1024}
    files = [a for a in rest if not key(a)]

    def cost(name, point):
        size, T, D, V = point.values()
        argv = [*files, f'--seq_len={T}', f'--n_embd={D}', f'--n_head={max(1, D // 32)}']
        with contextlib.redirect_stdout(io.StringIO()):                              # the line with the settings
            c = SimpleNamespace(**execute('tokenizer', argv, 'data'))
            names = execute(name, argv, 'data')
        s, p, B = SimpleNamespace(**names), c.patch_size, names['device_batch_size']
        if name == 'tokenizer':
            levels = (4,) * round(math.log(V, 4))
            model = Tokenizer(TokenizerConfig(size, size, p, levels, s.n_layer, s.n_layer_encoder, s.n_head, D, s.temporal))
            batch = (torch.rand(B, T, 3, size, size, device=s.device) * 2 - 1,)
        else:
            N = (size // p) ** 2
            model = Dynamics(DynamicsConfig(V, N, size // p, 8, T, s.n_layer, s.n_head, D, s.corrupt))
            batch = torch.randint(V, (B, T, N), device=s.device), torch.randint(8, (B, T - 1), device=s.device)
        names.update(model=model.to(s.device), get_batch=lambda *_: batch, dataset_id='', parents={}, chance=None)
        s = SimpleNamespace(**execute(name, argv, 'training loop', 'resume, optimizer, compile, DDP', names))
        return s.grad_accum_steps * flops[name](s.raw_model, B, T)[1], timed(s, max(3, n_iters // 4))[0]['update']

    report, exponents = {}, {}
    print('Cost of an update on random frames and tokens, one thing changed at a time; the base is ' + ', '.join(f'{k} {v}' for k, v in base.items()))
    print('\n| | stage 1: GFLOP | ms | stage 3: GFLOP | ms |\n|---|---|---|---|---|')
    for axis, values in axes.items():
        for value in values:
            point = {**base, axis: value}
            if str(point) not in report:
                report[str(point)] = dict(point, **{name: cost(name, point) for name in ('tokenizer', 'dynamics')})
            row = report[str(point)]
            print(f'| {axis} {value} | ' + ' | '.join(f'{row[name][0] / 1e9:.4g} | {1000 * row[name][1]:.4g}' for name in ('tokenizer', 'dynamics')) + ' |', flush=True)
        points = [report[str({**base, axis: value})] for value in values]
        slope = lambda name, i: np.polyfit(np.log(values), np.log([p[name][i] for p in points]), 1)[0]
        exponents[axis] = {name: slope(name, 1) for name in ('tokenizer', 'dynamics')}
        print(f'| **exponent of {axis}** | ' + ' | '.join(f'{slope(name, 0):.2f} | **{slope(name, 1):.2f}**' for name in ('tokenizer', 'dynamics')) + ' |')
    order = sorted(axes, key=lambda axis: -exponents[axis]['dynamics'])
    halved = ', '.join(f'{axis} {2 ** -exponents[axis]["dynamics"]:.2f}' for axis in order)
    print(f'\nToo slow? Change the {order[0]} first. Half of it leaves of an update of stage 3: {halved}. '
          'A patch twice as large saves what half the frame size does.')
    return dict(base=base, exponents=exponents, points=list(report.values()))

# -----------------------------------------------------------------------------
# a recording and earlier stages, where they are missing


def make_missing():
    """A recording of a few hundred frames, and one update of each stage before this one: as fast as a world that has learned."""
    files = [a for a in _given if not key(a)]
    try:
        if not os.path.exists(dataset):
            frames = game.record(400, episode_len=40)['frames']
            with data.replacing(dataset) as tmp, h5py.File(tmp, 'w') as f:
                f['frames'], f['episode_starts'] = data.enlarge(frames, prepare // frames.shape[1]), np.arange(0, 400, 40)
    except data.DiskError as e:
        configurator.stop(7, e)
    for name in dict(dynamics=stages[:2], sample=stages[:3]).get(stage, ()):
        if not os.path.exists(os.path.join(out_dir, name, 'best.pt')):
            print(f'one update of {name}, to have a checkpoint in {out_dir}', flush=True)
            quick = ['--max_iters=1', '--eval_iters=1', '--warmup_iters=1', *['--maskgit_steps=1'] * (name == 'dynamics')]
            done = subprocess.run([sys.executable, os.path.join(here, name + '.py'), *files, f'--dataset={dataset}', f'--out_dir={out_dir}', *quick],
                                  stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            if done.returncode:
                configurator.stop(done.returncode, done.stderr.strip())

# -----------------------------------------------------------------------------
# measure

if stage == 'all' and ('RANK' in os.environ or profile) and not scaling:
    configurator.stop(2, 'config: --stage=all is for one process and without a profile\nexpected one of --stage=' + ', '.join(stages))
if prepare and 'RANK' not in os.environ:
    make_missing()
bench = bench_scaling if scaling else bench_all if stage == 'all' else bench_sampling if stage == 'sample' else bench_training
report = bench()
if json and int(os.environ.get('RANK', 0)) == 0:
    try:
        with data.replacing(json) as tmp, open(tmp, 'w') as f:
            f.write(dumps(report, indent=1) + '\n')
    except data.DiskError as e:
        configurator.stop(7, e)
