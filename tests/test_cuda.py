"""
What only a GPU can show. `make gpu` runs these tests; without CUDA they are skipped.

All that can be told on a CPU is rehearsed there by CUDA_TESTS_ON=cpu. The scripts run in this
process, as %run does it in a notebook: a process of its own would take longer to start than to
train.
"""

import contextlib
import gc
import os
import runpy
import shutil
import sys
import warnings
from functools import partialmethod
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from launch import CONFIG, ROOT, STAGES, log, recording
from torch.nn.attention import SDPBackend, sdpa_kernel

import data
from training import checkpoint
from world import load_world

DEVICE = os.environ.get('CUDA_TESTS_ON', 'cuda')
os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')  # for deterministic kernels
MISSING = DEVICE == 'cuda' and not torch.cuda.is_available()
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.slow,
    pytest.mark.skipif(MISSING, reason=f'torch {torch.__version__} finds no CUDA device'),
]
only_cuda = pytest.mark.skipif(DEVICE != 'cuda', reason='a CPU cannot show it')
MEGABYTE = 2**20


@pytest.fixture(autouse=True)
def as_before():
    """What the scripts set for the whole process is put back; what they held is given back."""
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    hook = sys.excepthook
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)
    torch.set_flush_denormal(False)
    sys.excepthook = hook
    gc.collect()


def script(name, *argv, run_name='__main__'):
    """Runs a script to its end in this process -> its names."""
    path = str(ROOT / f'{name}.py')
    with mock.patch.object(sys, 'argv', [path, *map(str, argv)]):
        return SimpleNamespace(**runpy.run_path(path, run_name=run_name))


@pytest.fixture(scope='module')
def world_of(tmp_path_factory):
    """A function: size of a frame -> the config of a world whose stages have made six updates."""
    made = {}

    def world_of(size):
        if size not in made:
            folder = tmp_path_factory.mktemp(f'world_{size}')
            text = CONFIG.format(
                dataset=recording(folder / 'a.h5', size=size), out=str(folder / 'out')
            )
            made[size] = folder / 'small.py'
            made[size].write_text(text + f'device = {DEVICE!r}\n')
            for stage in STAGES:
                script(stage, made[size])
        return made[size]

    return world_of


def updates(stage, config, n, *argv, after_update=None):
    """Runs n updates of the script itself -> their losses and the names of the script.
    after_update: is called at the end of each, with the number of those before it."""
    Stopwatch = script('bench', config, run_name='bench').Stopwatch

    class Watch(Stopwatch):
        def mark(self, part):
            super().mark(part)
            if part == 'optimizer' and after_update:
                after_update(len(self.rows))

    watch = Watch(n - 2)  # two are its own, to warm up
    s = watch.run(stage, [str(config), f'--max_iters={n}', *argv])
    assert len(watch.losses) == n
    return watch.losses, s


# -----------------------------------------------------------------------------
# half the precision


@pytest.mark.parametrize('stage', STAGES)
@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_the_loss_falls_in_half_precision(world_of, dtype, stage):
    losses, s = updates(stage, world_of(16), 40, f'--dtype={dtype}')
    assert np.isfinite(losses).all()
    assert np.mean(losses[-10:]) < 0.95 * np.mean(losses[:10]), losses
    assert all(p.dtype == torch.float32 for p in s.raw_model.parameters())
    assert s.scaler.is_enabled() == (dtype == 'float16')


def test_a_scale_that_is_too_high_is_lowered_and_costs_no_weights(world_of):
    """float16 begins at a scale at which every gradient overflows."""
    too_high = partialmethod(torch.amp.GradScaler.__init__, init_scale=2.0**60)
    with mock.patch.object(torch.amp.GradScaler, '__init__', too_high):
        losses, s = updates('tokenizer', world_of(16), 80, '--dtype=float16')
    assert 1 <= s.scaler.get_scale() < 2.0**45
    assert np.isfinite(losses).all() and np.mean(losses[-5:]) < np.mean(losses[:5])
    assert all(p.isfinite().all() for p in s.raw_model.parameters())


# -----------------------------------------------------------------------------
# resume


@contextlib.contextmanager
def kernels(kind):
    """'deterministic' ones, or 'fast' ones, some of which add in any order."""
    if kind == 'fast':
        yield
        return
    # a warning only: the picture of stage 3 uses a sum that has no such kernel, and trains nothing
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize('stage', STAGES)
@pytest.mark.parametrize('kind, dtype', [('deterministic', 'float32'), ('fast', 'bfloat16')])
def test_a_resumed_run_is_the_unbroken_one(world_of, tmp_path, kind, dtype, stage):
    """Bit for bit with deterministic kernels. With the fast ones the first loss after the resume is
    the same to the sixth digit, for it comes from the same weights, batch and masks; what follows
    differs by what the order of sums makes of it: at most 2%."""
    config = world_of(16)
    unbroken, resumed = tmp_path / 'unbroken', tmp_path / 'resumed'
    shutil.copytree(config.parent / 'out', unbroken)
    argv = config, f'--dtype={dtype}'
    with kernels(kind):
        script(stage, *argv, f'--out_dir={unbroken}')
        shutil.copytree(unbroken, resumed)
        for name in ('best.pt', checkpoint.file_name(6)):
            (resumed / stage / name).unlink()
        script(stage, *argv, f'--out_dir={resumed}', '--init_from=resume')
    a, b = (checkpoint.load(f / stage / checkpoint.file_name(6)) for f in (unbroken, resumed))
    assert a['guard']['seen'] == b['guard']['seen'] == 6
    losses = [[float(row['loss']) for row in log(f, stage)] for f in (unbroken, resumed)]
    assert [len(x) for x in losses] == [6, 6]
    if kind == 'fast':
        assert losses[0][3] == pytest.approx(losses[1][3], rel=1e-6)
        assert losses[0] == pytest.approx(losses[1], rel=0.02)
        return
    assert losses[0] == losses[1]
    for part in ('model', 'optimizer'):
        one, other = (dict(checkpoint.tensors(x[part])) for x in (a, b))
        assert one.keys() == other.keys() and one
        differing = [name for name in one if not torch.equal(one[name], other[name])]
        assert not differing


# -----------------------------------------------------------------------------
# memory

LARGE = '--total_batch_size=32', '--device_batch_size=32', '--n_layer=6', '--n_embd=128'


def weigh(stage, config, *argv):
    """Six updates -> bytes on the GPU after each, and at most in each, beyond those of before. As
    many as were asked for: the blocks in which they lie are larger, now more, now less."""
    gc.collect()
    held, peaks = [], []

    def requested(when):
        return torch.cuda.memory_stats().get(f'requested_bytes.all.{when}', 0)

    start = requested('current')

    def after_update(_):
        held.append(requested('current') - start)
        peaks.append(requested('peak') - start)
        torch.cuda.reset_peak_memory_stats()

    updates(stage, config, 6, *LARGE, '--n_head=4', *argv, after_update=after_update)
    return held, peaks


@only_cuda
@pytest.mark.parametrize('stage', STAGES)
def test_memory_does_not_grow_and_checkpointing_lowers_its_peak(world_of, stage):
    config = world_of(64)
    held, peaks = weigh(stage, config)
    low_held, low_peaks = weigh(stage, config, '--activation_checkpointing=True')
    for series in (held, peaks, low_held, low_peaks):
        settled = series[2:]  # the optimizer makes its moments in the first update
        assert max(settled) - min(settled) < MEGABYTE, series
    assert peaks[-1] > 100 * MEGABYTE  # else it would not be the blocks that fill it
    assert low_peaks[-1] < 0.7 * peaks[-1]


# -----------------------------------------------------------------------------
# the host waits


@only_cuda
@pytest.mark.parametrize('stage', STAGES)
@pytest.mark.parametrize('dtype, expected', [('float32', 1), ('bfloat16', 1), ('float16', 2)])
def test_the_host_waits_once_an_update(world_of, dtype, expected, stage):
    """For the numbers that the ranks decide by; float16 asks again, whether its gradients are
    finite. torch warns of each."""
    n = 8

    def after_update(i):
        if i == 1:  # two updates have warmed up
            torch.cuda.set_sync_debug_mode('warn')

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        try:
            argv = f'--dtype={dtype}', '--device_batch_size=4'
            _, s = updates(stage, world_of(128), n, *argv, after_update=after_update)
        finally:
            torch.cuda.set_sync_debug_mode('default')
    assert s.grad_accum_steps == 2
    waits = [w for w in caught if 'called a synchronizing CUDA operation' in str(w.message)]
    places = [f'{os.path.basename(w.filename)}:{w.lineno}' for w in waits]
    assert len(waits) == (n - 2) * expected, places


# -----------------------------------------------------------------------------
# sampling


def test_a_frame_is_imagined_as_on_a_cpu(world_of):
    """One step of MaskGIT that takes the most likely tokens draws no random numbers that matter, so
    tokens are the same; one in fifty may fall on the other side of a tie."""
    torch.set_float32_matmul_precision('highest')
    config, found = world_of(16), {}
    for device in (DEVICE, 'cpu'):
        tokenizer, action_model, dynamics, _, recorded = load_world(
            str(config.parent / 'out'), str(config.parent / 'a.h5'), device
        )
        picks = data.draw(data.windows(recorded, 'val', 3), 8, 0)
        clip = data.clips(recorded.frames, picks, 3, 1, device)
        with torch.no_grad():
            tokens, actions = tokenizer.encode(clip[:, :2]), action_model.encode(clip)
            dream = dynamics.generate(tokens, actions, 1, 0.0)
            frames = tokenizer.decode(dream)
        assert dream.shape == (8, 3, 16) and frames.shape == (8, 3, 3, 16, 16)
        assert dream.device.type == device.split(':')[0]
        found[device] = tokens.cpu(), actions.cpu(), dream.cpu()
    for here, there in zip(found[DEVICE], found['cpu']):
        assert (here == there).float().mean() >= 0.98


# -----------------------------------------------------------------------------
# compile; last, for it takes longest


@only_cuda
@pytest.mark.parametrize('size', [64, 128])
@pytest.mark.parametrize('stage', ['tokenizer', 'dynamics', 'latent_actions'])
def test_the_compiled_loss_is_the_eager_one(world_of, capsys, stage, size):
    """With the same random numbers: a compiler draws its own unless it is told not to."""
    import torch._inductor.config as inductor

    config = world_of(size)
    eager, _ = updates(stage, config, 4)
    torch._dynamo.reset()
    capsys.readouterr()
    with inductor.patch(fallback_random=True):
        compiled, s = updates(stage, config, 4, '--compile=True')
    said = capsys.readouterr().out
    assert 'compile failed' not in said and s.raw_model._compiled_call_impl is not None, said
    # of the same weights; then of weights that sums in another order have changed
    assert compiled[0] == pytest.approx(eager[0], rel=0.02)
    assert compiled == pytest.approx(eager, rel=0.1)
