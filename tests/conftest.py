"""For all tests: a small world, and the scripts as people run them. And marks `row(n)`, the row of the fault matrix that a test
covers; `make faults` runs those alone and writes faults.json."""
import csv
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
ROWS, FIGURES = {}, {}                  # row -> [survived, tried]; what tests measured
BAD_INPUT = {22, 23, 24, 25, 27, 29, 30, 36, 37, 38}      # rows of something bad that is refused: file, found, expected, exit code
started = time.time()


def pytest_addoption(parser):
    parser.addoption('--kills', type=int, default=3, help='SIGKILLs at random times')
    parser.addoption('--faults_only', action='store_true', help='no tests but those of the fault matrix')
    parser.addoption('--faults_json', default='', help='where to write what became of the fault matrix')


def pytest_collection_modifyitems(config, items):
    if config.getoption('--faults_only'):
        items[:] = [item for item in items if item.get_closest_marker('row')]


def pytest_configure(config):
    config.addinivalue_line('markers', 'row(n, ...): the rows of the fault matrix that the test covers')


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    if report.when == 'call' or report.outcome == 'failed':
        rows = {n for mark in item.iter_markers('row') for n in mark.args}
        if rows & BAD_INPUT:
            for name, more in (('bad_inputs', 1), ('bad_inputs_refused_clearly', report.outcome == 'passed')):
                FIGURES[name] = FIGURES.get(name, 0) + more
        if rows:
            for n in rows:
                survived, tried = ROWS.get(n, (0, 0))
                ROWS[n] = (survived + (report.outcome == 'passed'), tried + 1)


@pytest.fixture(scope='session')
def figures():
    return FIGURES


def pytest_sessionfinish(session):
    path = session.config.getoption('--faults_json')
    if path:
        survived = [n for n, (good, tried) in ROWS.items() if good == tried]
        result = dict(rows=40, rows_tried=len(ROWS), rows_survived=len(survived), cases_tried=sum(t for _, t in ROWS.values()),
                      cases_survived=sum(s for s, _ in ROWS.values()), **FIGURES, minutes=round((time.time() - started) / 60, 2),
                      cores=os.cpu_count(), by_row={n: ROWS[n] for n in sorted(ROWS)})
        Path(path).write_text(json.dumps(result, indent=1) + '\n')
        print(f'\n{path}: {result["cases_survived"]} of {result["cases_tried"]} cases, {len(survived)} of {len(ROWS)} rows survived')


# -----------------------------------------------------------------------------
# a small world, trained once, and the scripts as people run them

STAGES = ('tokenizer', 'latent_actions', 'dynamics')
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
        frames[t, y:y + 4, x:x + 4] = (240, 200, 40)
    frames[:, 0, :, 0] = (np.arange(n) % 200)[:, None]          # no two frames are the same
    with h5py.File(path, 'w') as f:
        f.create_dataset('frames', data=frames, compression=compression)
    return str(path)


def process(script, *args, env=(), torchrun=0):
    """What subprocess wants to know to run a script, alone or on so many ranks of torchrun."""
    command = [sys.executable, str(ROOT / script), *map(str, args)]
    if torchrun:
        command[1:1] = ['-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={torchrun}']
    return dict(args=command, text=True, cwd=ROOT, env={**os.environ, 'OMP_NUM_THREADS': '1', 'GLOO_SOCKET_IFNAME': 'lo', **dict(env)})


def start(script, *args, env=(), torchrun=0, **more):
    return subprocess.Popen(**process(script, *args, env=env, torchrun=torchrun), stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more)


def pair(script, *args, env=({}, {}), wait_for=(0, 1)):
    """Two ranks without torchrun: three seconds quicker, and the exit codes are theirs. Returns [(code, stdout, stderr)] of those waited
    for; the others are killed then."""
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    where = dict(WORLD_SIZE='2', LOCAL_WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    both = [start(script, *args, env={**where, 'RANK': str(r), 'LOCAL_RANK': str(r), **env[r]}) for r in range(2)]
    try:
        said = {r: both[r].communicate(timeout=240) for r in wait_for}
    finally:
        for p in both:
            p.kill()
    return [(both[r].returncode, *said[r]) for r in wait_for]


def run(script, *args, env=(), ranks=0, torchrun=0):
    t0 = time.time()
    if ranks:
        codes, *said = zip(*pair(script, *args, env=[dict(env)] * ranks))
        done = SimpleNamespace(returncode=max(codes, key=abs), stdout=''.join(said[0]), stderr=''.join(said[1]))
    else:
        done = subprocess.run(**process(script, *args, env=env, torchrun=torchrun), capture_output=True, timeout=240)
    done.seconds = time.time() - t0
    return done


def train(script, *args, **more):
    done = run(script, *args, **more)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope='session')
def world(tmp_path_factory):
    """A config, and its three stages trained for six updates."""
    folder = tmp_path_factory.mktemp('world')
    config = folder / 'small.py'
    config.write_text(CONFIG.format(dataset=recording(folder / 'a.h5'), out=str(folder / 'out')))
    said = {stage: train(f'{stage}.py', config).stdout for stage in STAGES}
    return config, folder / 'out', said


@pytest.fixture(scope='session')
def pair_of_ranks(world, tmp_path_factory):
    """stage -> folder in which two ranks trained that stage as `world` did, once for all tests."""
    done = {}

    def trained(stage):
        if stage not in done:
            out = tmp_path_factory.mktemp('pair') / 'out'
            shutil.copytree(world[1], out, ignore=shutil.ignore_patterns(stage))
            said = train(f'{stage}.py', world[0], f'--out_dir={out}', ranks=2).stdout
            assert said.count('parameters on 2 x cpu') == 1
            done[stage] = out
        return done[stage]
    return trained


def log(out, stage):
    with open(out / stage / 'log.csv', newline='') as f:
        return list(csv.DictReader(f))


def refused(done, code, *words):
    assert done.returncode == code, done.stdout + done.stderr
    assert 'Traceback' not in done.stderr and 1 <= len(done.stderr.strip().splitlines()) <= 3, done.stderr
    FIGURES['slowest_refusal_seconds'] = round(max(FIGURES.get('slowest_refusal_seconds', 0), getattr(done, 'seconds', 0)), 1)
    for word in words:
        assert word in done.stderr, done.stderr
