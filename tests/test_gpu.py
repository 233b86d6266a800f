"""What a CPU can say of `make gpu`: its plan, how it reads what the steps print, what it does with
a step that fails; and the networks of config/zelda.py at their true size, as shapes alone."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import gpu
import pytest
import torch
from launch import ROOT, STAGES
from torch._subclasses.fake_tensor import FakeTensorMode

import configurator
import model


@pytest.fixture(scope='module')
def scripts():
    paths = [path for path in ROOT.glob('*.py') if path.stem != 'configurator']
    found = {path.stem: configurator.read_script(path) for path in paths}
    return {name: script for name, script in found.items() if script}


# -----------------------------------------------------------------------------
# config/zelda.py, before it costs anything


def zelda_networks(c, stage):
    """A network of config/zelda.py and a micro-batch of it, for frames of 128 pixels. c: settings
    of all stages."""
    B, T = c[stage]['device_batch_size'], c[stage]['seq_len']
    sizes = {k: c[stage][k] for k in ('n_layer', 'n_head', 'n_embd')}
    patch, levels = c['tokenizer']['patch_size'], c['tokenizer']['levels']
    if stage == 'dynamics':
        config = model.DynamicsConfig(1024, (128 // patch) ** 2, 128 // patch, 8, T, **sizes)
        batch = torch.randint(1024, (B, T, config.n_tokens)), torch.randint(8, (B, T - 1))
        return model.Dynamics(config), batch
    clip = torch.rand(B, T, 3, 128, 128)
    if stage == 'tokenizer':
        config = model.TokenizerConfig(128, 128, patch, levels, **sizes)
        return model.Tokenizer(config), (clip,)
    patch, levels = c[stage]['patch_size'], c[stage]['action_levels']
    config = model.LatentActionConfig(128, 128, patch, levels, **sizes)
    return model.LatentActionModel(config), (clip,)


@pytest.mark.slow
@pytest.mark.parametrize(
    'stage, parameters, tflop, gigabytes',
    [
        ('tokenizer', 3_966_261, 0.984, 2.0),
        ('latent_actions', 3_463_144, 0.04847, 0.1256),
        ('dynamics', 28_881_920, 6.67, 7.0),
    ],
)
def test_zelda_at_its_true_size(scripts, stage, parameters, tflop, gigabytes):
    """An update in bfloat16 with tensors that have shapes and no content. (They are on the meta
    device and say that they are on a CPU, for autocast does not know `meta`.) What is kept for the
    backward pass leaves room on a card of 24 GB."""
    c = {s: configurator.resolve(s, scripts, ['config/zelda.py']) for s in STAGES[:3]}
    kept = {}

    def keep(x):
        kept[x.untyped_storage()._cdata] = x.untyped_storage().nbytes()
        return x

    model.rotary_cos_sin.cache_clear()  # what stands in it has content
    try:
        with FakeTensorMode():
            network, batch = zelda_networks(c, stage)
            optimizers = model.Optimizers(network, 'muon', 1e-3, 0.0)
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
                with torch.autocast('cpu', torch.bfloat16):
                    loss, metrics = network(*batch)
            loss.backward()
            optimizers.step()
    finally:
        model.rotary_cos_sin.cache_clear()  # and now, what has none
    assert [x.shape for x in (loss, *metrics.values())] == [()] * (1 + len(metrics))
    assert loss.dtype == torch.float32
    assert all(p.grad is not None and p.grad.shape == p.shape for p in network.parameters())
    assert sum(p.numel() for p in network.parameters()) == parameters
    flops = getattr(model, f'{stage}_flops')(network, len(batch[0]), c[stage]['seq_len'])
    assert flops[1] / 1e12 == pytest.approx(tflop, rel=0.01)
    assert sum(kept.values()) / 1e9 == pytest.approx(gigabytes, rel=0.1)


# -----------------------------------------------------------------------------
# what the steps print

PYTEST = '''
test_cuda.py::test_the_loss_falls_in_half_precision[bfloat16-tokenizer] PASSED [  3%]
test_cuda.py::test_the_host_waits_once_an_update[float16-2-dynamics] FAILED [ 50%]
test_cuda.py::test_the_compiled_loss_is_the_eager_one[tokenizer-64] SKIPPED (why) [ 90%]
test_cuda.py::test_a_frame_is_imagined_as_on_a_cpu ERROR                 [ 96%]
=================================== FAILURES ===================================
FAILED test_cuda.py::test_the_host_waits_once_an_update[float16-2-dynamics] - assert 3 == 2
==================== 1 failed, 1 passed, 1 skipped, 1 error in 12.26s ==========
test_cuda.py::test_that_was_running '''

TRAINING = '''
dynamics: 28,881,920 parameters on 1 x cuda:0 in bfloat16, 828 windows to train on, 92 held out
iter 0/300 | val_loss 6.931 | val_action_entropy 1.2
iter 25/300 | loss 6.9305 (chance 6.931) | lr 4.2e-04 | 900 ms | 355 frames/s | ETA 4m07s
iter 50/300 | loss 5.1 (chance 6.931) | norm 0.28 | 120 ms | 2,666 frames/s | ETA 0m30s
  held out | val_loss 4.9 | best
iter 75/300 | loss 4.2000 (chance 6.931) | norm 0.28 | 1,100 ms | 2,910 frames/s | ETA 0m25s
'''


def test_what_pytest_prints():
    found = gpu.read_tests(PYTEST)
    failed = ['test_the_host_waits_once_an_update[float16-2-dynamics]']
    failed.append('test_a_frame_is_imagined_as_on_a_cpu')
    assert found == dict(passed=1, skipped=1, failed=failed)
    assert gpu.in_words('tests', found).startswith('1 passed, 1 skipped, test_the_host')
    assert gpu.read_tests('test_cuda.py::test_a SKIPPED (no CUDA)') == {}  # nothing was shown


def test_what_a_training_prints():
    found = gpu.read_training(TRAINING)
    assert found == dict(
        updates=75, first_loss=6.9305, last_loss=4.2, ms=610, frames_per_second=2788
    )
    words = '75 updates, loss 6.931 -> 4.2, 610 ms, 2,788 frames/s'
    assert gpu.in_words('dynamics', found) == words
    assert gpu.read_training('iter 0/300 | val_loss 6.931') == {}
    assert gpu.read_training('\n'.join(TRAINING.splitlines()[:4]))['ms'] == 900  # one row alone


def test_what_sample_prints():
    said = '4 rollouts ...: 12.5 frames/s with up to 8 MaskGIT steps on cuda:0'
    found = gpu.read_sample(said)
    assert found == dict(frames_per_second=12.5, maskgit_steps=8, device='cuda:0')
    assert gpu.in_words('sample', found) == '12.5 frames/s, 8 steps each'
    assert gpu.read_sample('Traceback') == {}


def test_what_bench_writes(tmp_path):
    path = tmp_path / 'a.json'
    report = dict(seconds=dict(update=0.08123), utilisation=0.314, peak_memory=3.2e9)
    rows = [
        dict(rollouts=B, maskgit_steps=k, seconds=B * k / 1000, utilisation=0.5)
        for B in (1, 16)
        for k in (2, 8, 25)
    ]
    both = dict(dynamics=report, sample=dict(rows=rows, peak_memory=1e9))
    path.write_text(json.dumps(both))
    assert gpu.read_bench(path, '', '') == both
    words = 'dynamics 81.2 ms, 0.31 of torch.mm, 3.20 GB; sample 8.0 ms, 0.50 of torch.mm, 1.00 GB'
    assert gpu.in_words('bench zelda', both) == words
    path.write_text(json.dumps(report))
    assert gpu.read_bench(path, 'dynamics', '') == dict(dynamics=report)


@pytest.mark.slow
def test_the_scripts_still_print_it(world):
    for stage, said in world[2].items():
        found = gpu.read_training(said)
        assert found['updates'] == 6 and found['frames_per_second'] > 0, said


# -----------------------------------------------------------------------------
# the plan


def planned(n_processes=1, update=0.1, **more):
    """All steps by name, where an update of stage 3 takes so many seconds; None: nobody knows."""
    figures = dict(dynamics=dict(seconds=dict(update=update))) if update else {}
    done = {'bench zelda': dict(figures=figures)}
    options = {**dict(rehearse=False, dtype=[]), **more}
    return {step.name: step for step in gpu.steps('OUT', n_processes, done=done, **options)}


def test_every_setting_of_the_plan_is_one(scripts):
    """The commands that only a GPU runs: are their files there, are their keys those of the
    scripts, do their values fit?"""
    seen = set()
    for step in planned(dtype=['--dtype=float16']).values():
        if step.argv[0] == '-m':
            assert (ROOT / 'tests/test_cuda.py').exists()
            continue
        name, argv = step.argv[0][:-3], step.argv[1:]
        users = [name]
        if name == 'bench':
            own = [a for a in argv if a[2:].split('=')[0] in scripts['bench'].keys]
            assert configurator.resolve('bench', scripts, [argv[0], *own])['stage'] == 'all'
            users = [*STAGES[:3], 'sample']
            argv = [a for a in argv if a not in own or a.startswith(('--dataset', '--out_dir'))]
        for user in users:
            config = configurator.resolve(user, scripts, argv)
            assert config['out_dir'].startswith('OUT/')
            seen.add((user, config['out_dir']))
            if 'zelda' in config['out_dir']:
                assert config['dtype'] == 'float16'
    assert len(seen) == 3 * 4  # three configs, by the stages and sample.py


def test_stage_3_gets_as_many_updates_as_fit():
    for seconds, expected in ((0.01, 300), (0.5, 120), (9, 50), (None, 300)):
        assert f'--max_iters={expected}' in planned(update=seconds)['dynamics'].argv


def test_several_processes():
    argv = planned(n_processes=2)['tokenizer'].argv
    assert argv[:4] == ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2']
    assert argv[4] == 'tokenizer.py'
    assert planned(n_processes=2)['sample'].argv[0] == 'sample.py'


def test_it_ends_within_nine_minutes():
    assert gpu.BUDGET + gpu.GRACE < 9 * 60
    needed = [step.limit for step in planned().values() if step.name != 'tests of compile']
    assert sum(needed) < 1.5 * gpu.BUDGET  # a limit is twice what a step should take


# -----------------------------------------------------------------------------
# a step


def step(code, limit=60, read=lambda text: dict(words=text.strip())):
    return gpu.Step('a', limit, ['-c', code], read)


@pytest.mark.slow
def test_a_step_and_what_becomes_of_it():
    became = gpu.run(step('print("good")'), 60)
    assert became['state'] == 'ok' and became['figures'] == dict(words='good')
    assert became['exit_code'] == 0 and became['last_lines'] == []
    became = gpu.run(step('print("it was this"); raise SystemExit(7)'), 60)
    assert became['state'] == 'failed' and became['reason'] == 'exit code 7'
    assert became['last_lines'] == ['it was this']
    for read in (lambda text: {}, lambda text: json.loads(text), lambda text: open('/not/there')):
        became = gpu.run(step('print("all is well")', read=read), 60)
        assert became['reason'] == 'no figures in what it printed'


@pytest.mark.slow
def test_a_step_that_takes_too_long_is_stopped_with_all_that_it_started(tmp_path):
    """It may save first. What it started and does not listen is killed."""
    child = 'import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)'
    code = f'''
import signal, subprocess, sys, time
def save(*_):
    print('saved')
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
print(subprocess.Popen([sys.executable, '-c', {child!r}]).pid)
time.sleep(600)'''
    became = gpu.run(step(code), 2)
    assert became['state'] == 'failed' and became['reason'] == 'stopped after its 2 seconds'
    pid, saved = became['figures']['words'].split()
    assert saved == 'saved' and became['exit_code'] == 143
    for _ in range(100):
        state = subprocess.run(['ps', '-o', 'stat=', '-p', pid], capture_output=True, text=True)
        if state.stdout.strip()[:1] in ('', 'Z'):
            break
        time.sleep(0.1)
    else:
        os.kill(int(pid), signal.SIGKILL)
        pytest.fail('its child lives on')


@pytest.fixture
def here(monkeypatch, tmp_path):
    """gpu.py, as if there were a GPU; a function of the steps -> exit code, report."""
    (tmp_path / 'gpu.json').unlink(missing_ok=True)
    facts = dict(card='a card', commit='c0ffee', torch='2', capability=[9, 0])
    for name, result in (('why_not', ''), ('describe', facts), ('make_recordings', None)):
        monkeypatch.setattr(gpu, name, lambda *_, result=result: result)
    monkeypatch.setattr(gpu, 'ROOT', tmp_path)
    monkeypatch.setattr(sys, 'argv', ['gpu.py'])
    before = signal.getsignal(signal.SIGTERM)

    def main(*steps):
        monkeypatch.setattr(gpu, 'steps', lambda *_: iter(steps))
        return gpu.main(), json.loads((tmp_path / 'gpu.json').read_text())

    yield main
    signal.signal(signal.SIGTERM, before)
    assert list((tmp_path / 'out').iterdir()) == []


@pytest.mark.slow
def test_a_step_that_fails_does_not_stop_the_others(here, capsys):
    def named(name, code, limit=60):
        figures = dict(frames_per_second=12, maskgit_steps=8)
        return gpu.Step(name, limit, ['-c', code], lambda text: figures if text == '1\n' else {})

    good, bad = named('sample', 'print(1)'), named('bad', 'raise SystemExit("its last words")')
    code, report = here(bad, good, named('long', 'print(1)', 1e6))
    assert code == 1
    assert [s['state'] for s in report['steps'].values()] == ['failed', 'ok', 'skipped']
    assert report['steps']['sample']['command'] == "python -c 'print(1)'"
    assert report['rehearsal'] is False and report['card'] == 'a card'
    said = capsys.readouterr().out
    assert '    its last words' in said and '| long | skipped no time was left | 0 |  |' in said
    assert '| sample, 1 x a card | 12.0 frames/s, 8 steps each | `python' in said
    assert said.count('| bad') == 1  # no row for RECORDS.md
    assert here(good)[0] == 0


# -----------------------------------------------------------------------------
# no GPU


@pytest.mark.parametrize(
    'cuda, cards, asked, words',
    [
        (None, 0, 1, 'torch 2.x+cpu is built without CUDA'),
        ('12.8', 0, 1, 'built for CUDA 12.8, finds no GPU that it can use'),
        ('12.8', 1, 2, 'found 1 GPU(s) for 2 processes\nmake gpu NPROC=1'),
        ('12.8', 2, 2, ''),
    ],
)
def test_why_it_cannot_be_done(monkeypatch, cuda, cards, asked, words):
    version = SimpleNamespace(cuda=cuda, hip=None)
    there = SimpleNamespace(is_available=lambda: cards > 0, device_count=lambda: cards)
    fake = SimpleNamespace(__version__='2.x+cpu', version=version, cuda=there)
    monkeypatch.setitem(sys.modules, 'torch', fake)
    reason = gpu.why_not(asked)
    assert words in reason and bool(words) == bool(reason) and reason.count('\n') <= 1


def run_it(*argv, **env):
    command = [sys.executable, 'tests/gpu.py', *map(str, argv)]
    env = {**os.environ, 'OMP_NUM_THREADS': '1', **env}
    return subprocess.run(command, cwd=ROOT, env=env, text=True, capture_output=True)


@pytest.mark.slow
def test_without_cuda_it_says_so_and_does_nothing(tmp_path):
    done = run_it('--json', tmp_path / 'gpu.json', CUDA_VISIBLE_DEVICES='')
    assert done.returncode == 2 and done.stdout == '' and list(tmp_path.iterdir()) == []
    assert done.stderr.startswith('gpu: torch') and len(done.stderr.splitlines()) == 2


@pytest.mark.slow
@pytest.mark.skipif(bool(shutil.which('nvidia-smi')), reason='there is a GPU here')
def test_make_gpu_installs_nothing_without_a_gpu(tmp_path):
    for name in ('Makefile', 'requirements.txt'):
        shutil.copy(ROOT / name, tmp_path)
    done = subprocess.run(['make', 'gpu'], cwd=tmp_path, text=True, capture_output=True)
    assert done.returncode == 2 and 'no GPU' in done.stdout + done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ['Makefile', 'requirements.txt']


@pytest.mark.slow
def test_tests_that_need_cuda_are_skipped_with_a_reason():
    command = ['-m', 'pytest', '-q', '-rs', '-p', 'no:cacheprovider', 'tests/test_cuda.py']
    env = {**os.environ, 'CUDA_VISIBLE_DEVICES': ''}
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=env, text=True, capture_output=True
    )
    assert done.returncode == 0 and re.search(r'^\d+ skipped', done.stdout, re.M), done.stdout
    assert 'finds no CUDA device' in done.stdout


# -----------------------------------------------------------------------------
# the rehearsal


@pytest.mark.slow
def test_the_rehearsal(tmp_path):
    done = run_it('--rehearse', '--json', tmp_path / 'gpu.json')
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / 'gpu.json').read_text())
    assert report['rehearsal'] is True and report['card'] == 'none' and report['commit']
    found = report['steps']
    assert list(found) == [name for name in planned() if name != 'tests of compile']
    assert all(s['state'] == 'ok' and s['figures'] and s['command'] for s in found.values())
    assert found['tests']['figures'] == dict(passed=1, skipped=12, failed=[])
    for stage in STAGES[:3]:
        assert found[stage]['figures']['updates'] == 6
    assert list(found['bench zelda']['figures']) == ['dynamics']
    assert list(found['bench tiny']['figures']) == ['tokenizer']
    assert 'a rehearsal on a CPU, no measurement' in done.stdout
