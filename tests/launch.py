"""The scripts as people run them, and a recording and a config that train in seconds. Tests import
from here."""

import csv
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import forked
import h5py
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser')
MEASURED = {}  # what tests of the fault matrix measured, for faults.json

STAGES = ('tokenizer', 'latent_actions', 'dynamics', 'policy')
LONG = ['--max_iters=100000', '--eval_interval=100000']  # a run that has to be stopped
CONFIG = '''
dataset, out_dir = {dataset!r}, {out!r}
device, dtype, seed = 'cpu', 'float32', 0
patch_size, levels, action_levels = 4, (4, 4), (2, 2)
n_layer, n_head, n_embd, seq_len = 1, 1, 16, 3
max_iters, eval_interval, eval_iters, log_interval, warmup_iters = 6, 3, 2, 1, 2
total_batch_size, device_batch_size = 8, 4
maskgit_steps, context_frames = 2, 2
n_frames = 4
'''


def recording(path, n=160, size=16, compression='lzf'):
    """A bright square that walks about: only `frames`, as other tools write it."""
    rng = np.random.default_rng(0)
    frames = np.full((n, size, size, 3), 60, np.uint8)
    x = y = 4
    for t in range(n):
        x, y = (int(np.clip(v + rng.integers(-2, 3), 0, size - 4)) for v in (x, y))
        frames[t, y : y + 4, x : x + 4] = (240, 200, 40)
    frames[:, 0, :, 0] = (np.arange(n) % 200)[:, None]  # no two frames are the same
    with h5py.File(path, 'w') as f:
        f.create_dataset('frames', data=frames, compression=compression)
    return str(path)


def process(script, *args, env=(), torchrun=0, restarts=0):
    """What subprocess wants to know to run a script, alone or on so many ranks of torchrun, which
    starts them again so often when they fail."""
    command = [sys.executable, str(ROOT / script), *map(str, args)]
    if 'FAULT' in dict(env):
        command.insert(1, str(ROOT / 'tests' / 'with_fault.py'))
    if torchrun:
        command[1:1] = [
            '-m',
            'torch.distributed.run',
            '--standalone',
            f'--nproc_per_node={torchrun}',
            f'--max-restarts={restarts}',
        ]
    return dict(
        args=command,
        text=True,
        cwd=ROOT,
        env={**os.environ, 'OMP_NUM_THREADS': '1', 'GLOO_SOCKET_IFNAME': 'lo', **dict(env)},
    )


def start(script, *args, env=(), torchrun=0, **more):
    return subprocess.Popen(
        **process(script, *args, env=env, torchrun=torchrun),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **more,
    )


def serve(*args, port=0):
    """A running play.py, and where it says that it is."""
    process = start('play.py', *args, f'--port={port}')
    said = next((line for line in process.stdout if line.startswith('play at ')), None)
    assert said, process.stderr.read()
    port = int(re.search(r'127\.0\.0\.1:(\d+)', said)[1])
    return SimpleNamespace(process=process, said=said, port=port)


def dataset_of(world):
    """The recording that the fixture `world` was trained on."""
    return re.search(r"'(\S+\.h5)'", world[0].read_text())[1]


def quick(script, *args, env=()):
    """The same without the three seconds that importing torch takes."""
    what = process(script, *args, env=env)
    return forked.Script(what['args'][1:], what['env'])


def until(process, begins):
    """Reads what a process prints up to the line that begins so."""
    for line in process.stdout:
        if line.startswith(begins):
            return line
    raise AssertionError(process.stderr.read())


def pair(script, *args, env=({}, {}), wait_for=(0, 1)):
    """Two ranks without torchrun: three seconds quicker, and the exit codes are theirs. Returns
    [(code, stdout, stderr)] of those waited for; the others are killed then."""
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    where = dict(
        WORLD_SIZE='2', LOCAL_WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port)
    )
    both = [
        quick(script, *args, env={**where, 'RANK': str(r), 'LOCAL_RANK': str(r), **env[r]})
        for r in range(2)
    ]
    try:
        return [both[r].wait(timeout=240) for r in wait_for]
    finally:
        for p in both:
            p.kill()


def run(script, *args, env=(), ranks=0, torchrun=0, restarts=0):
    t0 = time.time()
    if ranks:
        codes, *said = zip(*pair(script, *args, env=[dict(env)] * ranks))
        done = SimpleNamespace(
            returncode=max(codes, key=abs), stdout=''.join(said[0]), stderr=''.join(said[1])
        )
    elif not torchrun and '--faults_only' not in sys.argv:  # faults.json is of whole processes
        code, *said = quick(script, *args, env=env).wait(timeout=240)
        done = SimpleNamespace(returncode=code, stdout=said[0], stderr=said[1])
    else:
        done = subprocess.run(
            **process(script, *args, env=env, torchrun=torchrun, restarts=restarts),
            capture_output=True,
            timeout=240,
        )
    done.seconds = time.time() - t0
    return done


def run_after(code, script, *args):
    """A script in a process in which some Python code was run first."""
    code += '\nimport runpy, sys; sys.argv = sys.argv[1:]; sys.path.insert(0, ".")'
    code += '\nrunpy.run_path(sys.argv[0], run_name="__main__")'
    what = process(script, *args)
    what['args'][1:1] = ['-c', code]
    return subprocess.run(**what, capture_output=True, timeout=240)


def train(script, *args, **more):
    done = run(script, *args, **more)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def log(out, stage):
    with open(out / stage / 'log.csv', newline='') as f:
        return list(csv.DictReader(f))


def refused(done, code, *words):
    assert done.returncode == code, done.stdout + done.stderr
    assert (
        'Traceback' not in done.stderr and 1 <= len(done.stderr.strip().splitlines()) <= 3
    ), done.stderr
    MEASURED['slowest_refusal_seconds'] = round(
        max(MEASURED.get('slowest_refusal_seconds', 0), getattr(done, 'seconds', 0)), 1
    )
    for word in words:
        assert word in done.stderr, done.stderr
