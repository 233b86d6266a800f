"""
How fast is it, and how far from what the machine can do?

    python bench.py config/tiny.py                         # a table of the stages and of sampling
    python bench.py config/tiny.py --stage=dynamics        # or tokenizer, latent_actions, sample
    python bench.py config/hunt.py --stage=policy          # and a decision of the player
    python bench.py config/tiny.py --stage=dynamics --n_embd=256 --total_batch_size=4
    python bench.py config/tiny.py --stage=dynamics --profile=trace.json    # for chrome://tracing
    python bench.py config/tiny.py --scaling=True          # how cost grows: frame size, width ...
    torchrun --standalone --nproc_per_node=2 bench.py config/tiny.py --stage=dynamics
    python bench.py config/failed_run.py                   # the failed run; makes what it needs

Keys that bench.py does not have are those of the stage (of sample.py for --stage=sample), which
checks them as ever. What is timed is the stage itself: its script is run as it is, with a clock
around what it calls and a log that writes nothing, and stopped after some updates. Below the table
stands what the whole run would need.

frames/s are those of the training log: all frames of the clips. FLOPs are those of the network's
matrix products, by the formulas of model.py, which a test holds against torch's own counter; what
Muon multiplies counts as time alone. Utilisation: FLOPs a second over those of one large torch.mm
on the same device, in the same dtype, in the same run. Medians over the updates.
"""
import contextlib
import difflib
import io
import math
import os
import runpy
import subprocess
import sys
import tempfile
import time
import traceback
from json import dumps, load
from types import SimpleNamespace
from unittest import mock

import h5py
import numpy as np
import torch

import configurator
import data
import files
import model
import pictures
import world
from recordings import game
from training import folder, runlog

# -----------------------------------------------------------------------------
# config

stage = 'all'  # 'tokenizer', 'latent_actions', 'dynamics', 'sample', or 'all' of these; 'policy'
n_iters = 20  # updates, or imagined frames, that are timed
json = ''  # a file for the numbers
profile = ''  # a file for a trace of three more updates, for chrome://tracing
scaling = False  # instead: how the cost of an update grows. Random frames and tokens
dataset = 'data/tiny.h5'
out_dir = 'out/tiny'  # earlier stages, for --stage=sample all; nothing but its cache is written
prepare = 0  # make a recording of this frame size and barely trained stages where they are missing
_given = sys.argv[1:]
_own = configurator.read_script(__file__).keys


def key_of(argument):
    """'n_embd' of '--n_embd=256'; '' of what is no setting."""
    is_setting = argument.startswith('--') and '=' in argument
    return argument[2:].split('=')[0] if is_setting else ''


def is_own(argument):
    """Is it a setting of bench.py, or nearly one? Then it is checked here."""
    return bool(difflib.get_close_matches(key_of(argument), _own, 1, 0.8))


sys.argv[1:] = [a for a in _given if not key_of(a) or is_own(a)]
config = configurator.apply(__file__, globals())
rest = [a for a in _given if not is_own(a) or key_of(a) in ('dataset', 'out_dir')]  # the stage's
here = os.path.dirname(os.path.abspath(__file__))
stages = ('tokenizer', 'latent_actions', 'dynamics', 'sample')
parts = ('data', 'forward', 'backward', 'optimizer')
warm_up = 2  # updates, which are slower
ddp, rank, *_ = configurator.processes()  # as torchrun says
master = rank == 0

# -----------------------------------------------------------------------------
# a clock around what a script calls


def now(device):
    """A point in time of the device. On CUDA it is one of its own events: nothing waits for it."""
    if device.startswith('cuda'):
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
    world.synchronize(device)
    return time.perf_counter()


def seconds_between(a, b):
    if isinstance(a, float):
        return b - a
    b.synchronize()
    return a.elapsed_time(b) / 1000


class Enough(Exception):
    """The script has done what it was run for."""


class Stopwatch:
    """
    Times n updates of a training script from outside, after some to warm up, and then ends it.
    rows: [(part that ends there, time)] of each update. losses: of each, the mean over all ranks.
    profiler: torch's, of three more updates.
    """

    def __init__(self, n, profiler=None):
        self.n, self.profiler = warm_up + n, profiler
        self.rows, self.row, self.losses = [], [], []
        self.device = None  # of the script, which must have come to its loop

    def mark(self, part):
        if self.device:
            self.row.append((part, now(self.device)))

    def around(self, function, before='', after=''):
        def timed(*args, **kwargs):
            if before:
                self.mark(before)
            result = function(*args, **kwargs)
            if after:
                self.mark(after)
            return result
        return timed

    def run(self, script, argv):
        """-> the names of the script as it then stands."""
        watch = self
        total = self.n + (3 if self.profiler else 0)

        class SilentLog(runlog.RunLog):
            """Writes nothing, and ends the script in time."""

            def __init__(self, about, folder, iter_start, n_windows, n_parameters, chance):
                self.state, self.last = 'running', about['config']['max_iters']
                watch.device = folder.device

            def say(self, text):
                pass

            def begin(self, it, val):
                watch.row = []

            def wishes(self):
                return [False, False, False]

            def stop_if(self, reason, state):
                if reason:
                    configurator.stop(runlog.EXIT_CODES[state], reason)

            def count(self, means):
                watch.losses.append(means[0])

            def obey(self, sigterm, sigint):
                watch.mark('optimizer')
                watch.rows.append(watch.row)
                watch.row = watch.row[-1:]
                if len(watch.rows) == watch.n and watch.profiler:
                    watch.profiler.start()
                if len(watch.rows) == min(total, self.last):
                    raise Enough

        class NoFolder(folder.RunFolder):
            """Nothing is written, so nobody need own it."""

            def __init__(self, out_dir, stage, device):
                self.device = device

            def goes_on(self, init_from):
                return False

        scaler, tensor = torch.amp.GradScaler, torch.Tensor
        with contextlib.ExitStack() as stack:
            for owner, name, replacement in (
                    (runlog, 'RunLog', SilentLog),
                    (folder, 'RunFolder', NoFolder),
                    (data, 'key_seed', self.around(data.key_seed, before='data')),
                    (scaler, 'scale', self.around(scaler.scale, before='forward')),
                    (tensor, 'backward', self.around(tensor.backward, after='backward')),
                    (scaler, 'unscale_', self.around(scaler.unscale_, before='data'))):
                stack.enter_context(mock.patch.object(owner, name, replacement))
            never = 10 ** 9
            return names_of(script, [*argv, f'--eval_interval={never}', f'--log_interval={never}',
                                     '--eval_iters=1', '--init_from=scratch'])

    def seconds(self):
        """Median seconds of an update and of its parts, without the first updates."""
        table = []
        for row in self.rows[warm_up:self.n] or self.rows[-1:]:
            spent = dict.fromkeys(parts, 0)
            for (_, a), (part, b) in zip(row, row[1:]):
                spent[part] += seconds_between(a, b)
            table.append([sum(spent.values()), *spent.values()])
        return dict(zip(('update', *parts), np.median(table, 0).tolist()))


def names_of(script, argv):
    """Runs a script with these arguments until what it calls raises Enough -> its names."""
    path = os.path.join(here, script + '.py')
    with mock.patch.object(sys, 'argv', [path, *argv]):
        try:
            runpy.run_path(path, run_name='__main__')
        except Enough as e:
            for frame, _ in traceback.walk_tb(e.__traceback__):
                if frame.f_globals.get('__file__') == path:
                    return SimpleNamespace(**frame.f_globals)


def matmul_rate(device, dtype):
    """FLOPs a second of the best of ten large torch.mm."""
    n = 8192 if device.startswith('cuda') else 1024
    a, b = torch.randn(2, n, n, device=device).to(getattr(torch, dtype))
    best = math.inf
    for _ in range(10):
        t = now(device)
        torch.mm(a, b)
        best = min(best, seconds_between(t, now(device)))
    return 2 * n ** 3 / best


def peak_memory(device):
    """Bytes that the device, or for a CPU this process, held at most; 0 where nobody tells. Asked
    before matmul_rate, whose matrices are larger than many a model."""
    if device.startswith('cuda'):
        return torch.cuda.max_memory_allocated()
    try:
        import resource  # not on Windows
    except ImportError:
        return 0
    unit = 1 if sys.platform == 'darwin' else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def show_trace(p, device):
    """Writes torch's profile of three runs, prints the operators that took the most time."""
    if not master:
        return
    with files.replacing(profile) as tmp:
        p.export_chrome_trace(tmp)
    spent = 'self_device_time_total' if device.startswith('cuda') else 'self_cpu_time_total'
    events = sorted(p.key_averages(), key=lambda e: -getattr(e, spent))
    total = sum(getattr(e, spent) for e in events)
    for e in events[:12]:
        t = getattr(e, spent)  # microseconds
        print(f'  {t / total:6.1%} {t / 3000:9.2f} ms  {e.count / 3:6.0f} calls  {e.key[:80]}')
    print(f'  see {profile}')


def common_facts(s, rate, memory, frame, network, **more):
    """What every report says of the script s."""
    n_parameters = sum(p.numel() for p in network.parameters())
    return dict(device=s.device, dtype=s.dtype, threads=torch.get_num_threads(),
                torch=str(torch.__version__), config=s.config, matmul_rate=rate, frame=frame,
                parameters=n_parameters, peak_memory=memory, **more)


# -----------------------------------------------------------------------------
# one stage

flops = dict(tokenizer=model.tokenizer_flops, latent_actions=model.latent_actions_flops,
             dynamics=model.dynamics_flops, policy=model.policy_flops)


def bench_training():
    """What an update of the stage costs."""
    profiler = torch.profiler.profile() if profile else None
    watch = Stopwatch(n_iters, profiler)
    s = watch.run(stage, rest)
    if profile:
        profiler.stop()
    spent, memory = watch.seconds(), peak_memory(s.device)
    rate = matmul_rate(s.device, s.dtype)
    frame, clips = s.recording.frames.shape[1:3], s.total_batch_size / spent['update']
    patch_size = s.tokenizer.config.patch_size if stage == 'dynamics' else s.patch_size
    tokens = (frame[0] // patch_size) * (frame[1] // patch_size)
    work = flops[stage](s.raw_model, s.device_batch_size, s.seq_len)[1] * s.grad_accum_steps
    report = common_facts(
        s, rate, memory, frame, s.raw_model, world_size=s.world_size, seconds=spent,
        frames_per_second=clips * s.seq_len, clips_per_second=clips, clips=s.total_batch_size,
        seq_len=s.seq_len, tokens_per_second=clips * s.seq_len * tokens, flops=work,
        utilisation=work / spent['update'] / rate, losses=watch.losses,
        n_windows=len(s.starts['train']))
    if stage == 'policy':
        report['decision'] = bench_decision(s)
    if s.ddp:
        s.picture.__globals__.pop('model')  # its threads outlive the group
        del s.model
        torch.distributed.destroy_process_group()
    if profile:
        show_trace(profiler, s.device)
    return report


def bench_decision(s):
    """Median seconds in which the policy of script s decides, alone and as the best of 16."""
    clip = s.played.clips(s.starts['val'][:1], s.seq_len)
    seconds = {}
    for n in (1, 16) if s.raw_model.energy_model else (1,):
        times = []
        for _ in range(20 + n_iters):
            a = now(s.device)
            with s.ctx:
                s.raw_model.choose(clip, n)
            times.append(seconds_between(a, now(s.device)))
        seconds[n] = float(np.median(times[20:]))
    return seconds


@torch.no_grad()
def bench_sampling():
    """What it takes at most to imagine one more frame and to draw it, for one player and for 16
    rollouts at once."""
    with mock.patch.object(model.Dynamics, 'generate', side_effect=Enough):
        s = names_of('sample', rest)
    clip = s.truth[:1, :s.context_frames + 1]

    def imagine(B, steps):
        """Seconds of MaskGIT and of the decoder."""
        a = now(s.device)
        dream = s.dynamics.generate(tokens.expand(B, -1, -1), actions.expand(B, -1), steps,
                                    s.temperature)
        b = now(s.device)
        s.tokenizer.decode(dream if s.tokenizer.config.temporal else dream[:, -1:])
        return seconds_between(a, b), seconds_between(b, now(s.device))

    s.dynamics.doubt = -1  # a world that is sure of nothing takes all the steps
    rate, rows = matmul_rate(s.device, s.dtype), []
    if s.device.startswith('cuda'):
        torch.cuda.reset_peak_memory_stats()
    with s.ctx:
        tokens = s.tokenizer.encode(clip[:, :-1])
        actions = world.taken_actions(s.about['config']['action_source'], s.action_model, clip,
                                      s.recording, s.picks[:1])
        for B in (1, 16):
            imagine(B, 1)  # the first one is slower
            for steps in sorted({2, 4, 8, 10, 16, 25, s.maskgit_steps}):
                times, start = [], time.perf_counter()
                while len(times) < n_iters and (not times or time.perf_counter() - start < 3):
                    times.append(imagine(B, steps))
                generate, decode = np.median(times, 0).tolist()
                work = model.sample_flops(s.tokenizer, s.dynamics, B, steps)
                rows.append(dict(rollouts=B, maskgit_steps=steps, generate=generate, decode=decode,
                                 seconds=generate + decode, flops=work,
                                 frames_per_second=B / (generate + decode)))
        if profile:
            with torch.profiler.profile() as p:
                for _ in range(3):
                    imagine(1, s.maskgit_steps)
            show_trace(p, s.device)
    memory = peak_memory(s.device)
    rate = max(rate, matmul_rate(s.device, s.dtype))  # others on the machine only lower it
    for row in rows:
        row['utilisation'] = row['flops'] / row['seconds'] / rate
    return common_facts(s, rate, memory, s.recording.frames.shape[1:3], s.dynamics, rows=rows)


# -----------------------------------------------------------------------------
# all stages, each in a process of its own: so that memory at its peak is the stage's


def child(script, *argv):
    """Runs a script in silence -> its exit code and its last words."""
    done = subprocess.run([sys.executable, os.path.join(here, script), *argv], text=True,
                          stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    return done.returncode, done.stderr.strip()


def read_scripts():
    return {s: configurator.read_script(os.path.join(here, s + '.py'))
            for s in (*stages, 'policy', 'bench')}


def bench_all():
    """The reports of all stages, by name; what is not trained yet is said and left out."""
    keys = {s: script.keys for s, script in read_scripts().items() if s in stages}
    strange = [a for a in rest if key_of(a) and not any(key_of(a) in k for k in keys.values())]
    reports = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in stages:
            theirs = [a for a in rest if not key_of(a) or key_of(a) in keys[name]] + strange
            path = os.path.join(folder, name)
            code, words = child('bench.py', *theirs, f'--stage={name}', f'--n_iters={n_iters}',
                                f'--prepare={prepare}', f'--json={path}')
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
    print(f'frames of {r["frame"][0]}x{r["frame"][1]} on {r["device"]} in {r["dtype"]}, '
          f'{r["threads"]} threads; torch.mm: {rate / 1e9:,.1f} GFLOP/s')
    training = {name: r for name, r in reports.items() if name != 'sample'}
    if training:
        print('\n| stage | clips x frames | ms an update | data | forward | backward | optimizer '
              '| frames/s | tokens/s | GFLOP | utilisation | memory, GB | parameters |\n|---'
              + '|---' * 12 + '|')
    for name, r in training.items():
        spent = ' | '.join(f'{1000 * r["seconds"][k]:.1f}' for k in ('update', *parts))
        print(f'| {name} | {r["clips"]} x {r["seq_len"]} | {spent} | {r["frames_per_second"]:,.1f} '
              f'| {r["tokens_per_second"]:,.0f} | {r["flops"] / 1e9:.2f} | {r["utilisation"]:.2f} '
              f'| {r["peak_memory"] / 1e9:.2f} | {r["parameters"]:,} |')
    if training:
        print('\nthe whole run:')
    for name, r in training.items():
        updates, free = r['config']['max_iters'], files.free_space(r['config']['out_dir'])
        minutes = r['seconds']['update'] * updates / 60
        print(f'- {name}: {updates} updates in {minutes:.1f} minutes; each window is seen '
              f'{updates * r["clips"] / r["n_windows"]:.1f} times; four checkpoints need '
              f'{4 * 12 * r["parameters"] / 1e6:.0f} MB of the {free / 1e6:.0f} MB that are free')
    if 'policy' in reports:
        print('- a decision of the player: ' + ', '.join(
            f'{1000 * seconds:.1f} ms' + (f' as the best of {n}' if n > 1 else '')
            for n, seconds in reports['policy']['decision'].items()))
    if 'sample' in reports:
        print('\n| sampling: MaskGIT steps | ms a frame | of which decoding | frames/s '
              '| utilisation | 16 rollouts: frames/s | utilisation |\n|---' + '|---' * 6 + '|')
        rows = reports['sample']['rows']
        for one, many in zip(rows[:len(rows) // 2], rows[len(rows) // 2:]):
            print(f'| {one["maskgit_steps"]} | {1000 * one["seconds"]:.1f} '
                  f'| {1000 * one["decode"]:.1f} | {one["frames_per_second"]:.1f} '
                  f'| {one["utilisation"]:.2f} | {many["frames_per_second"]:.1f} '
                  f'| {many["utilisation"]:.2f} |')


# -----------------------------------------------------------------------------
# how cost grows: one thing changes at a time, from where `base` is

base = {'frame size': 128, 'context': 4, 'width': 128, 'vocabulary': 1024}
axes = {'frame size': (64, 128, 256), 'context': (4, 8, 16), 'width': (64, 128, 256, 384),
        'vocabulary': (256, 1024, 4096, 65536)}


def cost(name, size, T, D, V):
    """(FLOPs, seconds) of an update of a stage on random frames and tokens; the rest as the script
    and the config files have it. Heads of 32."""
    argv = [a for a in rest if not key_of(a)]
    argv += [f'--seq_len={T}', f'--n_embd={D}', f'--n_head={max(1, D // 32)}']
    levels = (4,) * round(math.log(V, 4))
    rng, n = np.random.default_rng(0), 20 * T
    recording = data.Dataset(
        path='random', frames=rng.integers(0, 256, (n, size, size, 3), np.uint8),
        actions=np.arange(n) % 8, action_names=None, episode_starts=np.zeros(1, np.int64),
        fps=None, source=None, data_id='random')
    if name == 'tokenizer':
        argv += [f'--levels={levels}']
    else:
        argv += ['--action_source=labels']
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))  # the line of settings
        stack.enter_context(mock.patch.object(data, 'load', lambda *_: recording))
        if name == 'dynamics':
            files_alone = [a for a in rest if not key_of(a)]
            p = configurator.resolve('tokenizer', read_scripts(), files_alone)['patch_size']
            tokenizer = model.Tokenizer(model.TokenizerConfig(size, size, p, levels, n_embd=16,
                                                              n_head=1))
            tokens = rng.integers(V, size=(n, tokenizer.n_tokens), dtype=np.int32)
            stack.enter_context(mock.patch.object(
                world, 'load_stage', lambda *_: (tokenizer, {'id': 'random'})))
            stack.enter_context(mock.patch.object(data, 'cached', lambda *_: tokens))
        watch = Stopwatch(max(3, n_iters // 4))
        s = watch.run(name, argv)
    work = s.grad_accum_steps * flops[name](s.raw_model, s.device_batch_size, T)[1]
    return work, watch.seconds()['update']


def bench_scaling():
    """Prints the table as it comes."""
    points, exponents = {}, {}
    print('cost of an update on random frames and tokens; what is not changed is '
          + ', '.join(f'{k} {v}' for k, v in base.items()))
    print('\n| | stage 1: GFLOP | ms | stage 3: GFLOP | ms |\n|---|---|---|---|---|')
    for axis, values in axes.items():
        costs = []
        for value in values:
            point = tuple({**base, axis: value}.values())
            if point not in points:
                points[point] = *cost('tokenizer', *point), *cost('dynamics', *point)
            costs.append(points[point])
            scaled = np.array(points[point]) / [1e9, 1e-3, 1e9, 1e-3]  # GFLOP, ms
            cells = ' | '.join(f'{x:.4g}' for x in scaled)
            print(f'| {axis} {value} | {cells} |', flush=True)
        # slopes of log cost over log value
        exponents[axis] = np.polyfit(np.log(values), np.log(costs), 1)[0].tolist()
        cells = ' | '.join(f'{x:.2f}' for x in exponents[axis])
        print(f'| **exponent of {axis}** | {cells} |')
    order = sorted(axes, key=lambda axis: -exponents[axis][3])
    left = ', '.join(f'{axis} {2 ** -exponents[axis][3]:.2f}' for axis in order)
    print(f'\ntoo slow? Change the {order[0]} first. What half of it leaves of an update of '
          f'stage 3: {left}. Twice the patch size is half the frame size')
    return dict(base=base, exponents=exponents,
                points=[[*point, *costs] for point, costs in points.items()])


# -----------------------------------------------------------------------------
# what is missing


def make_missing():
    """A recording of a few hundred frames, and one update of each earlier stage: as fast as one
    that has learned."""
    if not os.path.exists(dataset):
        frames = game.record(400, episode_len=40)['frames']
        with files.replacing(dataset) as tmp, h5py.File(tmp, 'w') as f:
            f['frames'] = pictures.enlarge(frames, prepare // frames.shape[1])
            f['episode_starts'] = np.arange(0, 400, 40)
    config_files = [a for a in rest if not key_of(a)]
    for name in dict(dynamics=stages[:2], sample=stages[:3]).get(stage, ()):
        if os.path.exists(os.path.join(out_dir, name, 'best.pt')):
            continue
        print(f'one update of {name}, to have a checkpoint in {out_dir}', flush=True)
        argv = [f'--dataset={dataset}', f'--out_dir={out_dir}', '--max_iters=1', '--eval_iters=1',
                '--warmup_iters=1']
        if name == 'dynamics':
            argv.append('--maskgit_steps=1')
        code, words = child(name + '.py', *config_files, *argv)
        if code:
            configurator.stop(code, words)


# -----------------------------------------------------------------------------
# measure

if __name__ == '__main__':
    if (ddp or profile) and (scaling or stage == 'all'):
        configurator.stop(2, 'config: torchrun and --profile are for one stage\n'
                             'expected one of --stage=' + ', '.join(stages))
    for path in filter(None, (json, profile)):  # minutes later it would be too late
        files.expect_writable(os.path.dirname(path) or '.')
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
