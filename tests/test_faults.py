"""The fault matrix: a real run, and what happens to it when something goes wrong. Rows as in the specification; rows of one file's own
business stand in that file's tests, with the same mark. `make faults` runs them all, with 20 SIGKILLs instead of 3."""
import ast
import csv
import json
import lzma
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from training import checkpoint
import model
from launch import ROOT, STAGES, log, pair, refused, run, start, train
from test_training import sections

row = pytest.mark.row


def digest(out, stage='tokenizer', it=None):
    """What a run ended with: the weights and the optimizer's state, as one id."""
    ckpt = checkpoint.load(out / stage / checkpoint.file_name(it)) if it else checkpoint.latest(out / stage, stage)
    flat = {where: t for where, t in checkpoint.tensors({k: ckpt[k] for k in ('model', 'optimizer')})}
    return ckpt['iter'], checkpoint.weights_id(flat)


def status(out, stage='tokenizer'):
    return json.loads((out / stage / 'status.json').read_text())


def until(process, begins):
    for line in process.stdout:
        if line.startswith(begins):
            return line
    raise AssertionError(process.stderr.read())


# -----------------------------------------------------------------------------
# killed


@row(3)
def test_killed_at_random_times_it_ends_as_if_it_never_was(world, tmp_path, request, figures):
    """Two runs side by side are killed and resumed, again and again; then they go on to the end, bit for bit the unbroken one."""
    kills, interval = request.config.getoption('--kills'), 3
    more = ['--max_iters=400', f'--eval_interval={interval}', '--eval_iters=1', '--log_interval=1']

    def arguments(out):
        return [world[0], f'--out_dir={out}', *more, *['--init_from=resume'] * bool(list(out.rglob('ckpt_*.pt')))]

    def murder(out, times, rng):
        """Kills it so many times; the updates lost each time, between the last line that it printed and its newest checkpoint."""
        lost = []
        while len(lost) < times:
            if (out / 'tokenizer').exists() and status(out).get('state') == 'done':
                shutil.rmtree(out)                                      # it was quicker than its murderer: once more
            p = start('tokenizer.py', *arguments(out))
            until(p, 'iter ')                                           # it trains
            time.sleep(rng.uniform(0, 0.6))
            p.kill()
            last = int((re.findall(r'^iter (\d+)/', p.communicate()[0], re.M) or [0])[-1])
            if p.returncode == -signal.SIGKILL:
                lost.append(max(0, last - max((i for i, _ in checkpoint.numbered(out / 'tokenizer')), default=0)))
        train('tokenizer.py', *arguments(out))
        return lost

    outs, shares = [tmp_path / 'a', tmp_path / 'b'], [kills // 2, kills - kills // 2]
    with ThreadPoolExecutor() as pool:
        whole = pool.submit(train, 'tokenizer.py', *arguments(tmp_path / 'whole'))
        lost = list(pool.map(murder, outs, shares, [random.Random(0), random.Random(1)]))
        whole.result()
    exact = [digest(out, it=400) == digest(tmp_path / 'whole', it=400) for out in outs]
    everything = sum(lost, [])
    figures.update(kills=kills, kills_resumed=len(everything), kills_bit_exact=sum(n for n, e in zip(shares, exact) if e),
                   steps_lost_max=max(everything), steps_lost_mean=round(float(np.mean(everything)), 2), save_interval=interval)
    assert all(exact) and max(everything) <= interval and not list(tmp_path.rglob('*.tmp*'))
    for out in outs:
        assert [r['iter'] for r in log(out, 'tokenizer')] == [str(i) for i in range(1, 401)]


@row(4, 5)
@pytest.mark.parametrize('kind', ['kill_in_save', 'kill_before_prune'])
def test_killed_around_the_write(world, tmp_path, kind):
    out = tmp_path / 'out'
    done = run('tokenizer.py', world[0], f'--out_dir={out}', env={'FAULT': f'{kind}@6'})
    assert done.returncode == -signal.SIGKILL
    it = {'kill_in_save': 3, 'kill_before_prune': 6}[kind]
    assert checkpoint.latest(out / 'tokenizer', 'tokenizer')['iter'] == it
    assert bool(list((out / 'tokenizer').glob('*.tmp*'))) == (kind == 'kill_in_save')
    train('tokenizer.py', world[0], f'--out_dir={out}', '--init_from=resume', '--max_iters=9', '--keep_checkpoints=1')
    assert [i for i, _ in checkpoint.numbered(out / 'tokenizer')] == [9] and not list(out.rglob('*.tmp*'))


@row(7)
def test_two_interrupts_save_once(world, tmp_path):
    p = start('tokenizer.py', world[0], f'--out_dir={tmp_path}', '--max_iters=100000', '--eval_interval=100000')
    until(p, 'iter 2/')
    p.send_signal(signal.SIGINT)
    p.send_signal(signal.SIGINT)
    _, said = p.communicate(timeout=60)
    assert p.returncode == 130 and said.count('saved at iter') == 1
    assert len(checkpoint.numbered(tmp_path / 'tokenizer')) == 1 and status(tmp_path)['state'] == 'interrupted'


@row(6, 9)
def test_sigterm_to_the_whole_group_loses_nothing(world, tmp_path):
    """There are no loader processes that could die of it before the run has saved."""
    out = shutil.copytree(world[1], tmp_path / 'out')
    p = start('dynamics.py', world[0], f'--out_dir={out}', '--max_iters=100000', '--eval_interval=100000', start_new_session=True)
    until(p, 'iter 2/')
    os.killpg(p.pid, signal.SIGTERM)
    _, said = p.communicate(timeout=60)
    s = status(out, 'dynamics')
    assert p.returncode == 143 and 'saved at iter' in said
    assert s['state'] == 'interrupted' and s['saved_iter'] == s['iter'] == digest(out, 'dynamics')[0]


@row(8)
def test_sigterm_to_torchrun(world, tmp_path):
    p = start('tokenizer.py', world[0], f'--out_dir={tmp_path}', '--max_iters=100000', '--eval_interval=100000', torchrun=2)
    until(p, 'iter 2/')
    p.send_signal(signal.SIGTERM)
    p.communicate(timeout=90)
    assert p.returncode != 0 and status(tmp_path)['state'] == 'interrupted' and status(tmp_path)['iter'] == digest(tmp_path)[0]


@row(10, 11)
@pytest.mark.parametrize('kind', ['kill', 'raise'])
def test_a_rank_dies(world, pair_of_ranks, tmp_path, kind):
    t0 = time.time()
    done = run('tokenizer.py', world[0], f'--out_dir={tmp_path}', torchrun=2, env={'FAULT': f'{kind}@5:1'})
    assert done.returncode == 1 and time.time() - t0 < 60
    if kind == 'raise':
        assert 'a fault was asked for at iter 5' in done.stderr
    assert [i for i, _ in checkpoint.numbered(tmp_path / 'tokenizer')] == [3] and not list(tmp_path.rglob('*.tmp*'))
    train('tokenizer.py', world[0], f'--out_dir={tmp_path}', '--init_from=resume', ranks=2)
    assert digest(tmp_path) == digest(pair_of_ranks('tokenizer'))


@row(12)
def test_a_rank_stalls(world, tmp_path):
    fault = {'FAULT': 'sleep@5:1'}
    (code, _, said), = pair('tokenizer.py', world[0], f'--out_dir={tmp_path}', '--ddp_timeout=5', env=(fault, fault), wait_for=[0])
    assert code != 0 and 'imed out' in said
    assert checkpoint.latest(tmp_path / 'tokenizer', 'tokenizer')['iter'] == 3


# -----------------------------------------------------------------------------
# two ranks that should be one


def without_the_last(out, to):
    """A copy of a run, as if it had been killed after its first checkpoint."""
    shutil.copytree(out, to)
    for path in to.rglob('ckpt_00000006.pt'):
        os.remove(path)
    return to


@row(2, 21)
@pytest.mark.parametrize('stage', STAGES)
def test_two_ranks_resumed_equal_two_unbroken(world, pair_of_ranks, tmp_path, stage):
    whole = pair_of_ranks(stage)
    out = without_the_last(whole, tmp_path / 'out')
    train(f'{stage}.py', world[0], f'--out_dir={out}', '--init_from=resume', ranks=2)
    assert digest(out, stage) == digest(whole, stage)
    assert sorted(p.name for p in (out / stage).glob('*.pt*')) == ['best.pt', 'ckpt_00000003.pt', 'ckpt_00000006.pt']


@row(13)
def test_a_loss_that_is_not_finite_on_one_rank(world, tmp_path):
    done = run('tokenizer.py', world[0], f'--out_dir={tmp_path}', ranks=2, env={'FAULT': 'nan@5:1'})
    assert done.returncode == 0 and done.stdout.count('update skipped') == 1
    ckpt = checkpoint.latest(tmp_path / 'tokenizer', 'tokenizer')               # it compared the ranks before it was written
    assert ckpt['iter'] == 6 and ckpt['guard']['skipped'] == [5]


@row(33)
def test_ranks_with_other_settings(world, tmp_path):
    other = tmp_path / 'other.py'
    other.write_text(world[0].read_text() + '\nimport os\nlearning_rate = 1e-3 if os.environ.get("RANK") == "1" else 2e-3\n')
    t0 = time.time()
    for code, _, said in pair('tokenizer.py', other, f'--out_dir={tmp_path / "out"}'):
        assert code == 2 and 'Traceback' not in said
    assert time.time() - t0 < 30 and not (tmp_path / 'out').exists()


@row(32, 35)
@pytest.mark.parametrize('before, after', [(2, 0), (0, 2)])
def test_going_on_with_another_number_of_ranks(world, pair_of_ranks, tmp_path, before, after):
    out = without_the_last(pair_of_ranks('tokenizer') if before else world[1], tmp_path / 'out')
    train('tokenizer.py', world[0], f'--out_dir={out}', '--init_from=resume', ranks=after)
    one, two = ([float(r['loss']) for r in log(o, 'tokenizer')] for o in (world[1], out))
    assert len(two) == 6 and one == pytest.approx(two, rel=1e-4)


@row(34)
def test_a_rank_drifts(world, tmp_path):
    done = run('tokenizer.py', world[0], f'--out_dir={tmp_path}', ranks=2, env={'FAULT': 'drift@2:1'})
    assert done.returncode != 0 and 'other weights on ranks [1] than on rank 0 at iter 3' in done.stderr
    assert not list(tmp_path.rglob('*.pt'))


# -----------------------------------------------------------------------------
# not finite, diverged


@row(14, 15)
def test_never_finite_again(world, tmp_path):
    done = run('tokenizer.py', world[0], f'--out_dir={tmp_path}', '--max_iters=20', env={'FAULT': 'nan@5+'})
    assert done.returncode == 6 and status(tmp_path)['state'] == 'nonfinite' and status(tmp_path)['iter'] == 7
    ckpt = checkpoint.latest(tmp_path / 'tokenizer', 'tokenizer')                   # it loads: all in it is finite
    assert ckpt['iter'] == 6 and ckpt['guard']['skipped'] == [5, 6]


class Guard:
    """The section 'divergence guard' of the scripts, as it stands there, fed with losses."""

    def __init__(self, max_iters, chance=None):
        text = (ROOT / 'tokenizer.py').read_text()
        first = re.search(r'^guard = dict\(.*?\n.*?\)\n', text, re.M | re.S)[0]
        self.names = dict(max_iters=max_iters, chance=chance, math=__import__('math'))
        exec(first + sections('tokenizer')['divergence guard'], self.names)

    def first(self, losses, every=0):
        """The update at which it stops the run, None if never. every: it is saved and loaded so often."""
        for it, loss in enumerate(losses, 1):
            if self.names['diverging'](float(loss)):
                return it
            if every and it % every == 0:
                again = Guard(self.names['max_iters'], self.names['chance'])
                again.names['guard'].update(json.loads(json.dumps(self.names['guard'])))
                self.names = again.names


def curve(kind, n, rng, top=7.0, floor=2.0):
    """Made-up losses of n updates."""
    t = np.arange(n)
    x = floor + (top - floor) * np.exp(-t / 1500)
    if kind == 'wobble':
        x = x * (1 + 0.08 * np.sin(t / 300))
    if kind == 'jump':
        x[5000:] *= 3
    if kind == 'slow rise':
        x[5000:] *= 1 + np.minimum(1, (t[5000:] - 5000) / 10_000)
    if kind == 'chance':
        x[8000:] = top
    x = x * (1 + rng.uniform(0.08, 0.3) * rng.standard_normal(n)).clip(0.2)
    if kind == 'spikes':
        x[rng.random(n) < 1 / 500] *= 4
    return x


@row(18)
@pytest.mark.parametrize('kind, latest', [('healthy', None), ('spikes', None), ('wobble', None), ('jump', 5800), ('slow rise', 11_800), ('chance', 8800)])
def test_the_guard_on_made_up_curves(kind, latest, figures):
    rng, found = np.random.default_rng(0), []
    for _ in range(10):
        found.append(Guard(20_000, chance=6.93).first(curve(kind, 20_000, rng)))
    if latest is None:
        figures['false_alarms'] = figures.get('false_alarms', 0) + sum(f is not None for f in found)
        figures['healthy_curves'] = figures.get('healthy_curves', 0) + len(found)
        assert found == [None] * 10
    else:
        figures[f'detected, {kind}'] = [int(np.median(found)), {'chance': 8000}.get(kind, 5000)]
        assert all(5000 < f <= latest for f in found)


@row(18)
@pytest.mark.parametrize('logged, latest', [('undivided', 2500), ('divided by 4, as it was', 5000)])
def test_the_guard_on_the_failed_run(figures, logged, latest):
    """Every update of the run that this project was started for."""
    with lzma.open(ROOT / 'tests/logs/dynamics_diverged.csv.xz', 'rt') as f:
        losses = [float(r['train/loss']) * (4 if logged == 'undivided' else 1) for r in csv.DictReader(f)]
    figures[f'failed_run_stopped_at, {logged}'] = found = Guard(300_000, chance=math.log(1024)).first(losses)
    assert len(losses) == 50_344 and found < latest


@row(19)
def test_the_guard_survives_restarts():
    losses = curve('jump', 8000, np.random.default_rng(2))
    assert Guard(20_000, chance=6.93).first(losses) == Guard(20_000, chance=6.93).first(losses, every=50) is not None


@row(16)
def test_what_is_not_finite_never_reaches_the_guard(world, tmp_path):
    train('tokenizer.py', world[0], f'--out_dir={tmp_path}', env={'FAULT': 'nan@2'})
    guard = checkpoint.latest(tmp_path / 'tokenizer', 'tokenizer')['guard']
    assert np.isfinite(guard['ema']) and guard['seen'] == 5 and guard['skipped'] == [2]


WILD = ['--learning_rate=5.0', '--grad_clip=0.0', '--optimizer=adamw', '--warmup_iters=30', '--max_iters=2000', '--eval_interval=25',
        '--eval_iters=1', '--log_interval=100', '--min_lr_frac=1.0', '--total_batch_size=4', '--device_batch_size=4']


@row(17)
def test_a_rate_a_thousand_times_too_high_is_stopped(world, tmp_path):
    out = shutil.copytree(world[1], tmp_path / 'out')
    done = run('dynamics.py', world[0], f'--out_dir={out}', *WILD)
    s = status(out, 'dynamics')
    assert done.returncode == 5 and s['state'] == 'diverged' and s['iter'] < 1500, done.stdout[-2000:] + done.stderr
    assert s['resume_from'].endswith('best.pt') and '--learning_rate=2.5 --init_from=resume' in done.stderr
    best = checkpoint.best(out / 'dynamics', 'dynamics')['iter']
    assert checkpoint.latest(out / 'dynamics', 'dynamics')['iter'] == best < s['iter'] and list((out / 'dynamics').glob('*.diverged'))


@row(20)
def test_rollback(world, tmp_path):
    out = shutil.copytree(world[1], tmp_path / 'out')
    done = run('dynamics.py', world[0], f'--out_dir={out}', *WILD, '--on_diverge=rollback')
    assert re.findall(r'^rollback (\d) to iter \d+ at ([\d.]+) times', done.stdout, re.M) == [('1', '0.5'), ('2', '0.25')]
    assert done.returncode == 5 and list((out / 'dynamics').glob('*.diverged'))


# -----------------------------------------------------------------------------
# the disk


@row(28)
@pytest.mark.skipif(os.name == 'nt', reason='RLIMIT_FSIZE')
def test_a_full_disk_is_survived_and_after_three_failures_said(world, tmp_path):
    """No file may grow beyond 30 kB: checkpoints do not fit, the log does."""
    code = ('import resource, runpy, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); '
            'resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000)); sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name="__main__")')
    out = tmp_path / 'out'
    train('tokenizer.py', world[0], f'--out_dir={out}', '--max_iters=3')
    done = subprocess.run([sys.executable, '-c', code, str(ROOT / 'tokenizer.py'), str(world[0]), f'--out_dir={out}', '--init_from=resume', '--max_iters=99'],
                          capture_output=True, text=True, cwd=ROOT, env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)})
    assert done.returncode == 7 and done.stdout.count('training goes on') == 3 and 'Traceback' not in done.stderr, done.stdout + done.stderr
    assert checkpoint.latest(out / 'tokenizer', 'tokenizer')['iter'] == 3 and len(log(out, 'tokenizer')) == 12


@row(29)
def test_a_place_that_cannot_be_written(world, tmp_path):
    (tmp_path / 'file').write_text('in the way')
    refused(run('tokenizer.py', world[0], f'--out_dir={tmp_path / "file"}'), 7, 'file', 'cannot be written')


@row(21)
def test_what_a_save_costs(tmp_path, figures):
    """For faults.json: the dynamics of the built-in game, saved as its script does, against the updates between two saves."""
    m = model.Dynamics(model.DynamicsConfig())
    optimizer = torch.optim.AdamW(m.parameters())
    batch, updates, saves = (torch.randint(1024, (8, 3, 64)), torch.randint(8, (8, 2))), [], []
    for i in range(1, 4):
        t0 = time.perf_counter()
        m(*batch)[0].backward()
        optimizer.step()
        t1 = time.perf_counter()
        path = checkpoint.save(tmp_path, dict(stage='dynamics', iter=i, config={}, model_args={}, model=m.state_dict(), ema=None, optimizer=[optimizer.state_dict()],
                                              scaler={}, guard={}, metrics={}, data_id='', parents={}, world={}))
        updates.append(t1 - t0)
        saves.append(time.perf_counter() - t1)
    interval = int(re.search(r'^eval_interval = (\d+)', (ROOT / 'dynamics.py').read_text(), re.M)[1])
    figures.update(save_ms=round(1000 * float(np.median(saves))), save_percent=round(100 * float(np.median(saves) / np.median(updates) / interval), 3))
    assert checkpoint.load(path, 'dynamics')['iter'] == 3


# -----------------------------------------------------------------------------
# resumed with something changed


@row(30)
@pytest.mark.parametrize('change, words', [('--n_embd=32', ('n_embd=16', 'n_embd=32')), ('--seed=7', ('seed=0', 'seed=7', '--allow_change=seed')),
                                           ('--total_batch_size=16', ('total_batch_size=8', '16')), ('--seq_len=4', ('seq_len=3', 'seq_len=4'))])
def test_what_must_not_change_on_resume(world, change, words):
    refused(run('tokenizer.py', world[0], '--init_from=resume', change), 4, *words)


@row(30, 31)
def test_what_may_change_on_resume_does(world, tmp_path):
    out = shutil.copytree(world[1], tmp_path / 'out')
    said = train('tokenizer.py', world[0], f'--out_dir={out}', '--init_from=resume', '--max_iters=12', '--learning_rate=1e-4', '--seed=7', '--allow_change=seed').stdout
    assert re.search(r'learning_rate \S+ -> 0.0001', said) and 'seed 0 -> 7' in said and 'max_iters 6 -> 12' in said
    assert 0 < float(log(out, 'tokenizer')[6]['lr']) <= 1e-4
    ckpt = checkpoint.latest(out / 'tokenizer', 'tokenizer')
    assert all(g['lr'] == float(log(out, 'tokenizer')[-1]['lr']) for o in ckpt['optimizer'] for g in o['param_groups'])


# -----------------------------------------------------------------------------
# before the run


@row(39)
def test_a_compile_that_fails_is_said_and_done_without(world, tmp_path):
    done = run('tokenizer.py', world[0], f'--out_dir={tmp_path}', '--compile=True', env={'CXX': '/bin/false', 'TORCHINDUCTOR_CACHE_DIR': str(tmp_path / 'cache')})
    assert done.returncode == 0 and 'compile failed' in done.stdout and 'without it' in done.stdout
    assert digest(tmp_path)[0] == 6


def test_dry_run_says_what_the_run_needs_and_writes_nothing(world, tmp_path):
    said = train('tokenizer.py', world[0], f'--out_dir={tmp_path / "out"}', '--dry_run=True', '--max_iters=40000').stdout
    assert re.search(r'dry run: \d+ ms an update, [\d.]+ minutes for 40000', said) and 'memory at its peak' in said and 'MB that are free' in said
    assert 'the run will see each window' in said and not (tmp_path / 'out').exists()


def test_a_disk_too_small_for_the_run_is_noticed_first(world, tmp_path):
    code = 'import shutil, runpy, sys; shutil.disk_usage = lambda p: type("U", (), dict(free=1000)); sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name="__main__")'
    done = subprocess.run([sys.executable, '-c', code, str(ROOT / 'tokenizer.py'), str(world[0]), f'--out_dir={tmp_path}'], capture_output=True, text=True,
                          cwd=ROOT, env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)})
    refused(done, 7, 'free', 'expected')


@row(38)
def test_another_tokenizer_than_the_dynamics_was_trained_with(world, tmp_path):
    out = shutil.copytree(world[1], tmp_path / 'out')
    train('tokenizer.py', world[0], f'--out_dir={out}', '--seed=3')
    ids = [checkpoint.best(world[1] / 'dynamics', 'dynamics')['parents']['tokenizer'], checkpoint.weights_id(checkpoint.best(out / 'tokenizer', 'tokenizer')['model'])]
    for script in ('sample.py', 'eval.py'):
        refused(run(script, world[0], f'--out_dir={out}'), 4, *ids)
    refused(run('dynamics.py', world[0], f'--out_dir={out}', '--init_from=resume'), 4, *ids)


@row(25)
def test_nothing_else_reads_a_pickle():
    for path in ROOT.glob('*.py'):
        text = path.read_text()
        for call, needs in (('torch.load(', 'weights_only=True'), ('np.load(', 'allow_pickle=False')):
            for args in re.findall(re.escape(call) + r'[^\n]*', text):
                assert needs in args or '`' in args, f'{path.name}: {args}'
        assert not re.search(r'weights_only=False|allow_pickle=True|pickle\.loads?\(|(?<![\w.])eval\(|_object\(', text), path.name


def test_nothing_is_sent_and_only_play_listens():
    """No script imports what talks to a network, but wandb where wandb_log asks for it, and the server of play.py."""
    talks = {'socket', 'ssl', 'http', 'urllib', 'requests', 'ftplib', 'smtplib', 'xmlrpc', 'socketserver', 'asyncio', 'webbrowser'}
    for path in ROOT.glob('*.py'):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ''] if isinstance(node, ast.ImportFrom) else []
            if path.name != 'play.py':
                assert not talks & {name.split('.')[0] for name in names}, f'{path.name} line {node.lineno}: {names}'
        assert 'import wandb' not in path.read_text().replace('if wandb_log:\n        import wandb', ''), path.name


def test_a_checkpoint_tells_nothing_of_its_machine(world):
    """Strings of the environment, the host's name and the folder of the code: none of them is in the file."""
    import socket
    secrets = [s for s in (*os.environ.values(), socket.gethostname(), str(ROOT)) if len(s) > 6 and not s.isdecimal()]
    content = (world[1] / 'tokenizer' / 'best.pt').read_bytes()
    ckpt = checkpoint.best(world[1] / 'tokenizer', 'tokenizer')
    allowed = ' '.join(str(v) for v in ckpt['config'].values())                 # paths as the user gave them
    assert [s for s in secrets if s.encode() in content and s not in allowed] == []
