"""
All that a GPU has to show, in less than nine minutes. `make gpu` and `make gpu NPROC=2` run it.

    python tests/gpu.py --nproc=2    # needs CUDA -> gpu.json, a table, rows for RECORDS.md
    python tests/gpu.py --rehearse   # the same steps on a CPU and tiny: is this file right?

A step that fails, or that takes too long and is stopped, does not keep the others from their turn.
Exit codes: 0 done, 1 a step failed, 2 no CUDA here, and nothing was made.
"""

import argparse
import contextlib
import json
import os
import re
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUDGET = 490  # seconds for all steps
GRACE = 30  # seconds that a step which is stopped has to save and go
SMALL = '''
device, dtype = 'cpu', 'float32'
n_layer, n_head, n_embd, patch_size, levels = 1, 1, 16, 16, (4, 4)
seq_len, total_batch_size, device_batch_size = 3, 2, 2
context_frames, n_frames, n_samples, maskgit_steps = 2, 2, 1, 2
'''


@dataclass
class Step:
    name: str
    limit: int  # seconds
    argv: list  # of python
    read: Callable  # what it printed -> its figures, {} where there are none


# -----------------------------------------------------------------------------
# what a step prints -> figures -> words


def read_tests(text):
    """pytest -v: how many tests passed, and which did not."""
    verdicts = re.findall(r'^\S+::(\S+) (PASSED|FAILED|ERROR|SKIPPED)', text, re.M)
    counts = Counter(kind for _, kind in verdicts)
    failed = [name for name, kind in verdicts if kind in ('FAILED', 'ERROR')]
    if not failed and not counts['PASSED']:
        return {}
    return dict(passed=counts['PASSED'], skipped=counts['SKIPPED'], failed=failed)


def read_training(text):
    """The rows that a training script prints: medians without the first, which is slower."""
    pattern = r'^iter (\d+)/\d+ \| loss (\S+).*\| ([\d,]+) ms \| ([\d,]+) frames/s'
    rows = re.findall(pattern, text, re.M)
    if not rows:
        return {}
    figures = dict(updates=int(rows[-1][0]))
    figures.update(first_loss=float(rows[0][1]), last_loss=float(rows[-1][1]))
    for name, column in (('ms', 2), ('frames_per_second', 3)):
        numbers = [int(row[column].replace(',', '')) for row in rows[1:] or rows]
        figures[name] = statistics.median(numbers)
    return figures


def read_sample(text):
    found = re.search(r'([\d.]+) frames/s with up to (\d+) MaskGIT steps on (\S+)', text)
    if not found:
        return {}
    return dict(frames_per_second=float(found[1]), maskgit_steps=int(found[2]), device=found[3])


def read_bench(path, stage, text):
    """The reports that bench.py has written into a file, by stage; of one stage or of all."""
    report = json.loads(Path(path).read_text())
    return {stage: report} if stage else report


def in_words(name, figures):
    """The figures of a step, as many as a table has room for."""
    if name.startswith('tests'):
        failed = [f'{test} failed' for test in figures['failed']]
        return ', '.join(['{passed} passed, {skipped} skipped'.format(**figures), *failed])
    if name == 'sample':
        return '{frames_per_second:,.1f} frames/s, {maskgit_steps} steps each'.format(**figures)
    if not name.startswith('bench'):
        return (
            '{updates} updates, loss {first_loss:.4g} -> {last_loss:.4g}, {ms:,.0f} ms, '
            '{frames_per_second:,.0f} frames/s'
        ).format(**figures)
    parts = []
    for stage, report in figures.items():
        row, seconds = report, report.get('seconds', {}).get('update')
        if stage == 'sample':  # a frame for one player, at the steps nearest to 8
            rows = report['rows']
            row = min(rows, key=lambda r: (r['rollouts'], abs(r['maskgit_steps'] - 8)))
            seconds = row['seconds']
        parts.append(
            f'{stage} {1000 * seconds:.1f} ms, {row["utilisation"]:.2f} of torch.mm, '
            f'{report["peak_memory"] / 1e9:.2f} GB'
        )
    return '; '.join(parts)


# -----------------------------------------------------------------------------
# the steps


def steps(folder, n_processes, rehearse, dtype, done):
    """One after the other, those that tell most first. done: what became of the earlier ones."""
    updates, n_iters, tests, small, launcher = 300, 10, 'not compiled', [], []
    if rehearse:
        updates, n_iters, tests, small = 6, 2, 'imagined or waits', [f'{folder}/small.py']
    if n_processes > 1:
        launcher = ['-m', 'torch.distributed.run', '--standalone']
        launcher.append(f'--nproc_per_node={n_processes}')
    zelda = ['config/zelda.py', *small, f'--dataset={folder}/large.h5', f'--out_dir={folder}/zelda']
    zelda += dtype

    def training(stage, limit, n):
        """It is evaluated at its end alone: there is one checkpoint, and no time is lost."""
        argv = [*launcher, f'{stage}.py', *zelda, f'--max_iters={n}', f'--warmup_iters={n // 10}']
        argv += [f'--log_interval={max(1, n // 12)}', f'--eval_interval={n}', '--eval_iters=4']
        return Step(stage, limit, argv, read_training)

    def bench(name, limit, argv, stage=''):
        """Of one stage, or of all of them and of sampling."""
        path = f'{folder}/{name}.json'
        argv = ['bench.py', *argv, f'--stage={stage or "all"}', f'--n_iters={n_iters}']
        argv += ['--prepare=64', f'--json={path}']  # it makes the stages that are missing
        return Step(f'bench {name}', limit, argv, partial(read_bench, path, stage))

    pytest = ['-m', 'pytest', '-v', '-p', 'no:cacheprovider', '-m', 'cuda', 'tests/test_cuda.py']
    yield Step('tests', 130, [*pytest, '-k', tests], read_tests)
    yield training('tokenizer', 70, updates)
    yield training('latent_actions', 60, updates)
    yield bench('zelda', 110, zelda, 'dynamics' if rehearse else '')
    measured = done['bench zelda']['figures'].get('dynamics')
    if measured:  # as many as fit into a minute
        updates = min(updates, max(50, round(60 / measured['seconds']['update'])))
    yield training('dynamics', 120, updates)
    yield Step('sample', 40, ['sample.py', *zelda], read_sample)
    for name, recording in (('failed_run', 'large'), ('tiny', 'small')):
        argv = [f'config/{name}.py', *small, f'--dataset={folder}/{recording}.h5']
        argv.append(f'--out_dir={folder}/{name}')
        yield bench(name, 70, argv, 'tokenizer' if rehearse else '')
    if not rehearse:  # the longest, and the last
        yield Step('tests of compile', 160, [*pytest, '-k', 'compiled'], read_tests)


def run(step, seconds):
    """Runs a step for so many seconds at most -> what became of it."""
    start, reason, figures = time.time(), '', {}
    env = {**os.environ, 'PYTHONUNBUFFERED': '1'}  # so that what a stopped step printed is kept
    with tempfile.TemporaryFile('w+', errors='replace') as out:
        to = dict(stdout=out, stderr=subprocess.STDOUT, env=env, cwd=ROOT)
        p = subprocess.Popen([sys.executable, *step.argv], start_new_session=True, **to)
        try:
            p.wait(seconds)
        except subprocess.TimeoutExpired:
            reason = f'stopped after its {seconds:.0f} seconds'
        finally:
            stop(p)
        out.seek(0)
        text = out.read()
    with contextlib.suppress(OSError, ValueError):
        figures = step.read(text)
    if not reason and p.returncode:
        reason = f'exit code {p.returncode}'
    if not reason and not figures:
        reason = 'no figures in what it printed'
    minutes = round((time.time() - start) / 60, 2)
    became = dict(state='failed' if reason else 'ok', reason=reason, exit_code=p.returncode)
    last_lines = text.splitlines()[-15:] if reason else []
    return dict(became, minutes=minutes, figures=figures, last_lines=last_lines)


def stop(p):
    """Ends a process and those that it started. A training saves first."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        if p.poll() is None:
            os.killpg(p.pid, signal.SIGTERM)
            p.wait(GRACE)
    with contextlib.suppress(OSError):  # who is left
        os.killpg(p.pid, signal.SIGKILL)
    p.wait()


# -----------------------------------------------------------------------------
# this machine


def why_not(n_processes):
    """Why this machine cannot do it, in two lines; '' if it can."""
    try:
        import torch
    except ImportError as e:
        return f'torch cannot be imported ({e})\nmake .venv/installed, or pip install torch'
    version, built_for = torch.__version__, torch.version.cuda or torch.version.hip
    if not built_for:
        return f'torch {version} is built without CUDA\npytorch.org says how to install one with it'
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not found:
        return (
            f'torch {version}, built for CUDA {built_for}, finds no GPU that it can use\n'
            'nvidia-smi says whether the card and its driver are there'
        )
    if n_processes > found:
        return f'found {found} GPU(s) for {n_processes} processes\nmake gpu NPROC={found}'
    return ''


def first_line(*command):
    """Of what a command prints; '' where there is no such command."""
    with contextlib.suppress(OSError, IndexError):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        return done.stdout.splitlines()[0].strip()
    return ''


def describe(on_cuda):
    import torch

    facts = dict(card='none', commit=first_line('git', 'describe', '--always', '--dirty=+changes'))
    facts.update(torch=str(torch.__version__), python=sys.version.split()[0])
    facts.update(cores=os.cpu_count(), date=time.strftime('%F %T'))
    if on_cuda:
        card = torch.cuda.get_device_properties(0)
        facts.update(card=card.name, cards=torch.cuda.device_count(), memory=card.total_memory)
        facts.update(capability=[card.major, card.minor], cuda=torch.version.cuda)
        facts.update(cudnn=torch.backends.cudnn.version(), hip=torch.version.hip)
        query = '--query-gpu=driver_version', '--format=csv,noheader'
        facts['driver'] = first_line('nvidia-smi', *query)
    return facts


def make_recordings(folder, scale):
    """The built-in game: small.h5 as it is, 64 pixels a side, and large.h5, `scale` times that."""
    sys.path[:1] = [str(ROOT)]
    import h5py

    import pictures
    from recordings import game

    recording = game.record(1000, episode_len=50)
    for name, times in (('small', 1), ('large', scale)):
        with h5py.File(f'{folder}/{name}.h5', 'w') as f:
            f['frames'] = pictures.enlarge(recording['frames'], times)
            f['episode_starts'] = recording['episode_starts']


# -----------------------------------------------------------------------------
# all of it


def main():
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument('--nproc', type=int, default=1, help='processes of torchrun, a GPU each')
    parser.add_argument('--rehearse', action='store_true', help='on a CPU, and tiny')
    parser.add_argument('--json', help='the report: gpu.json, or out/gpu_rehearsal.json')
    o = parser.parse_args()
    reason = '' if o.rehearse else why_not(o.nproc)
    if reason:
        print(f'gpu: {reason}', file=sys.stderr)
        return 2
    start, dtype = time.time(), []
    report = dict(rehearsal=o.rehearse, n_processes=o.nproc, **describe(not o.rehearse), steps={})
    if report.get('capability', [9, 0]) < [8, 0]:
        dtype = ['--dtype=float16']  # older cards have no bfloat16
    path = Path(o.json or ROOT / ('out/gpu_rehearsal.json' if o.rehearse else 'gpu.json'))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the step that runs is ended then
    (ROOT / 'out').mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix='gpu.', dir=ROOT / 'out') as folder:
        make_recordings(folder, 1 if o.rehearse else 2)
        if o.rehearse:
            Path(folder, 'small.py').write_text(SMALL)
            os.environ['CUDA_TESTS_ON'] = 'cpu'
        for step in steps(folder, o.nproc, o.rehearse, dtype, report['steps']):
            left, limit = start + BUDGET - time.time(), step.limit
            if o.rehearse:  # on a CPU that may have other work
                left = limit = 600
            became = dict(state='skipped', reason='no time was left', minutes=0, figures={})
            if left > limit / 2:
                became = run(step, min(left, limit))
            command = shlex.join(['python', *step.argv]).replace(folder, 'OUT')
            report['steps'][step.name] = dict(became, command=command)
            report['minutes'] = round((time.time() - start) / 60, 2)
            path.write_text(json.dumps(report, indent=1) + '\n')
            print(f'{step.name}: {became["state"]} {became["reason"]}', flush=True)
            print(''.join(f'    {line}\n' for line in became.get('last_lines', [])), end='')
    show(report)
    print(f'\nall figures: {path}')
    return int(any(became['state'] == 'failed' for became in report['steps'].values()))


def show(report):
    """A table for those who look on, and rows that RECORDS.md could take."""
    place = f'{report["n_processes"]} x {report["card"]}'
    if report['rehearsal']:
        place = 'a rehearsal on a CPU, no measurement'
    print(f'\n{place}, torch {report["torch"]}, {report["commit"]}, {report["minutes"]} minutes')
    table, records = [], []
    for name, became in report['steps'].items():
        words = in_words(name, became['figures']) if became['figures'] else ''
        outcome = f'{became["state"]} {became["reason"]}'.strip()
        table.append(f'| {name} | {outcome} | {became["minutes"]} | {words} |')
        if became['state'] == 'ok':
            source = f'`{became["command"]}`, {report["commit"]}'
            records.append(f'| {name}, {place} | {words} | {source} |')
    print('\n| step | | minutes | |', '|---|---|---|---|', *table, sep='\n')
    print('\nfor RECORDS.md:\n\n| what | figures | command, commit |', '|---|---|---|', sep='\n')
    print(*records, sep='\n')


if __name__ == '__main__':
    sys.exit(main())
