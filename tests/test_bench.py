"""bench.py: its formulas against torch's own counter, and that it trains as the scripts do, and
writes nothing of the run."""

import hashlib
import json
import re
import runpy
import sys

import gpu
import pytest
import torch
from launch import ROOT, STAGES, log, refused, run, train
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import configurator
import data
from model import (
    Dynamics,
    DynamicsConfig,
    LatentActionConfig,
    LatentActionModel,
    Policy,
    PolicyConfig,
    Tokenizer,
    TokenizerConfig,
    dynamics_flops,
    latent_actions_flops,
    policy_flops,
    sample_flops,
    tokenizer_flops,
)

FLOPS = dict(
    tokenizer=tokenizer_flops,
    latent_actions=latent_actions_flops,
    dynamics=dynamics_flops,
    policy=policy_flops,
)


@pytest.fixture
def bench(monkeypatch):
    """The names of bench.py, before it measures; on one thread, as the scripts of `world` were."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def names(*argv):
        monkeypatch.setattr(sys, 'argv', ['bench.py', *map(str, argv)])
        return runpy.run_path(str(ROOT / 'bench.py'), run_name='bench')

    yield names
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)  # the scripts turn it on


def counted(f):
    # the counter does not know the CPU's fused attention. (And of others it counts the scores
    # twice, as their backward computes
    # them again: that is the kernel's choice, and no work of the model)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        f()
    return counter.get_total_flops()


TOKENIZERS = [
    dict(height=32, width=32, patch_size=8, n_embd=64),
    dict(height=12, width=20, patch_size=4, levels=(3, 5), n_head=1, n_embd=12),
    dict(
        height=10,
        width=35,
        patch_size=5,
        levels=(7,),
        n_layer=3,
        n_layer_encoder=2,
        n_head=2,
        n_embd=24,
    ),
    dict(
        height=8,
        width=16,
        patch_size=4,
        n_layer=1,
        n_layer_encoder=1,
        n_head=1,
        n_embd=16,
        temporal=True,
    ),
    dict(height=64, width=128, patch_size=4, n_layer=3, n_head=1, n_embd=8),
]  # 16 x 32 patches: two windows
LABELLERS = [
    dict(height=32, width=32, n_embd=64),
    dict(height=25, width=35, patch_size=5, action_levels=(3,), n_head=1, n_embd=20),
    dict(height=130, width=140, patch_size=10, n_layer=1, n_head=1, n_embd=8),
]
DYNAMICS = [
    dict(n_tokens=64, n_embd=64),
    dict(vocab_size=81, n_tokens=15, grid_width=5, n_layer=2, n_head=1, n_embd=12),
    dict(vocab_size=10_000, n_tokens=21, grid_width=7, n_layer=1, n_head=3, n_embd=24),
]

POLICIES = [
    dict(height=32, width=32, energy='off'),
    dict(height=16, width=24, patch_size=4, chunk=3, n_embd=16, n_layer=2, n_head=2),
    dict(height=16, width=16, vocab_size=5, n_tokens=3, n_numbers=3, energy='separated'),
    dict(height=16, width=16, vocab_size=40, n_numbers=2, energy='cached', n_embd=32),
]


@pytest.mark.parametrize(
    'stage, config',
    [('tokenizer', c) for c in TOKENIZERS]
    + [('latent_actions', c) for c in LABELLERS]
    + [('dynamics', c) for c in DYNAMICS]
    + [('policy', c) for c in POLICIES],
)
def test_the_formulas_count_what_torch_counts(stage, config):
    B, T = 3, 4
    if stage == 'dynamics':
        model = Dynamics(DynamicsConfig(seq_len=T, **config))
        c = model.config
        batch = torch.randint(c.vocab_size, (B, T, c.n_tokens)), torch.randint(
            c.n_actions, (B, T - 1)
        )
    elif stage == 'policy':
        model = Policy(PolicyConfig(seq_len=T, **config))
        c = model.config
        tokens = torch.randint(c.vocab_size, (B, c.chunk, c.n_tokens))
        exists = torch.ones(B, c.chunk, dtype=torch.bool)
        clip = torch.rand(B, T, 3, c.height, c.width)
        # not an update in which the drift is measured
        batch = clip, tokens, model.vectors_of(tokens), exists, 2
    else:
        model = (
            Tokenizer(TokenizerConfig(**config))
            if stage == 'tokenizer'
            else LatentActionModel(LatentActionConfig(**config))
        )
        batch = (torch.rand(B, T, 3, model.config.height, model.config.width),)
    forward, training = FLOPS[stage](model, B, T)
    with torch.no_grad():
        assert counted(lambda: model(*batch)) == pytest.approx(forward, rel=1e-6)
    assert counted(lambda: model(*batch)[0].backward()) == pytest.approx(training, rel=1e-6)


@pytest.mark.parametrize('t, d', list(zip([*TOKENIZERS[:2], TOKENIZERS[-1]], DYNAMICS)))
def test_the_formula_of_sampling(t, d):
    tokenizer = Tokenizer(TokenizerConfig(**t))
    dynamics = Dynamics(
        DynamicsConfig(**{**d, 'n_tokens': tokenizer.n_tokens, 'vocab_size': tokenizer.vocab_size})
    )
    past, actions = torch.zeros(2, 2, tokenizer.n_tokens, dtype=torch.int64), torch.zeros(
        2, 2, dtype=torch.int64
    )
    with torch.no_grad():
        found = counted(lambda: tokenizer.decode(dynamics.generate(past, actions, 3)[:, -1:]))
    assert found == pytest.approx(sample_flops(tokenizer, dynamics, 2, 3), rel=1e-6)


def content(folder):
    return {
        str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob('*') if p.is_file()
    }


@pytest.mark.slow
def test_the_table_of_all_stages(world, tmp_path):
    config, out, _ = world
    before = content(out)
    said = train(
        'bench.py',
        config,
        '--n_iters=2',
        '--learning_rate=0.004',
        f'--json={tmp_path / "all.json"}',
    ).stdout
    assert content(out) == before
    reports = json.loads((tmp_path / 'all.json').read_text())
    words = gpu.in_words('bench', gpu.read_bench(tmp_path / 'all.json', '', said))
    assert all(f'{name} ' in words for name in (*STAGES[:3], 'sample'))  # make gpu reads it
    assert list(reports) == [*STAGES[:3], 'sample'] and all(
        f'| {stage} | 8 x 3 |' in said for stage in STAGES[:3]
    )
    for stage, r in reports.items():
        assert (
            r['frame'] == [16, 16]
            and r['parameters'] > 0
            and r['peak_memory'] > 5e7
            and r['device'] == 'cpu'
        )
        for row in r['rows'] if stage == 'sample' else [r]:
            assert 0 < row['utilisation'] < 1.2
    for stage in STAGES[:3]:
        r = reports[stage]
        t = r['seconds']
        assert sum(t.values()) - t['update'] == pytest.approx(
            t['update'], rel=0.5
        )  # medians of two
        assert r['frames_per_second'] == pytest.approx(8 * 3 / t['update']) and r[
            'tokens_per_second'
        ] == pytest.approx(16 * r['frames_per_second'])
        assert r['utilisation'] == pytest.approx(r['flops'] / t['update'] / r['matmul_rate'])
        assert r['config']['learning_rate'] == 0.004
    rows = reports['sample']['rows']
    assert [(r['rollouts'], r['maskgit_steps']) for r in rows] == [
        (B, k) for B in (1, 16) for k in (2, 4, 8, 10, 16, 25)
    ]
    assert all(r['frames_per_second'] == pytest.approx(r['rollouts'] / r['seconds']) for r in rows)


@pytest.mark.slow
@pytest.mark.parametrize('stage', STAGES)
def test_it_trains_as_the_script_does(bench, world, stage):
    report = bench(world[0], f'--stage={stage}', '--n_iters=2')['bench_training']()
    assert report['losses'] == [
        float(row['loss']) for row in log(world[1], stage)[:4]
    ]  # two to warm up, two that are timed


class Waits(TorchDispatchMode):
    """Hears of the operations after which the host has to know what the GPU has computed."""

    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        name = f.overloadpacket.__name__
        by_mask = name in ('index', 'index_put', 'index_put_') and any(
            x is not None and x.dtype == torch.bool for x in args[1]
        )
        if by_mask or name in (
            '_local_scalar_dense',
            'nonzero',
            'bincount',
            'masked_select',
            '_unique2',
            'equal',
        ):
            self.heard.append(name)
        return f(*args, **(kwargs or {}))


@pytest.mark.slow
@pytest.mark.parametrize('stage', STAGES)
def test_an_update_waits_for_the_gpu_once(bench, world, stage, monkeypatch):
    """Four updates of the script itself: for the numbers that all ranks decide by, after the next
    batch was sent off."""
    heard, draw, tolist = [], data.draw, torch.Tensor.tolist

    def drawing(starts, size, *key):
        if len(key) == 3 and not key[1]:  # a batch to train on: (seed, False, it)
            heard.append(('batch', key[2]))
        return draw(starts, size, *key)

    def asking(x):
        heard.append('asked')
        return tolist(x)

    names = bench(world[0], f'--stage={stage}', '--n_iters=2')
    watch = names['Stopwatch'](2)
    monkeypatch.setattr(data, 'draw', drawing)
    monkeypatch.setattr(torch.Tensor, 'tolist', asking)
    waits = Waits()
    waits.heard = heard
    with waits:
        s = watch.run(stage, [str(world[0]), '--device_batch_size=4'])
    loop = heard[max(i for i, x in enumerate(heard) if x == ('batch', 1)) - 1 :]
    assert s.grad_accum_steps == 2 and len(watch.rows) == 4
    # two micro-batches an update: the second of this one, the first of the next, and the question
    expected = [('batch', 1)]
    for it in range(1, 5):
        expected += [('batch', it), ('batch', it + 1), 'asked']
    assert loop == expected


@pytest.mark.slow
def test_the_whole_run_is_foretold(world):
    """Minutes, how often each window is seen, and room on the disk."""
    said = train(
        'bench.py', world[0], '--stage=tokenizer', '--n_iters=2', '--max_iters=40000'
    ).stdout
    assert re.search(r'tokenizer: 40000 updates in [\d.]+ minutes; each window is seen \d+', said)
    assert 'four checkpoints need' in said and 'MB that are free' in said


@pytest.mark.slow
def test_a_trace_of_one_stage(bench, world, tmp_path, capsys):
    path, before = tmp_path / 'a.trace.json', content(world[1])
    bench(world[0], '--stage=dynamics', '--n_iters=1', f'--profile={path}')['bench_training']()
    said = capsys.readouterr().out
    assert content(world[1]) == before and 'aten::' in said and f'see {path}' in said
    assert len(json.loads(path.read_text())['traceEvents']) > 100


@pytest.mark.slow
def test_it_makes_what_is_missing(bench, world, tmp_path):
    path, out = tmp_path / 'b.h5', tmp_path / 'out'
    refused(
        run('bench.py', world[0], '--stage=dynamics', f'--out_dir={out}'),
        4,
        'tokenizer',
        'train it with: python tokenizer.py',
    )
    found = bench(
        world[0], '--stage=dynamics', f'--dataset={path}', f'--out_dir={out}', '--prepare=64'
    )
    found['make_missing']()
    assert data.load(str(path)).frames.shape == (400, 64, 64, 3)
    assert sorted(p.name for p in out.iterdir()) == ['latent_actions', 'tokenizer'] and all(
        (p / 'best.pt').exists() for p in out.iterdir()
    )
    times = {p: p.stat().st_mtime_ns for p in [path, *out.rglob('*')]}
    found['make_missing']()
    assert times == {p: p.stat().st_mtime_ns for p in [path, *out.rglob('*')]}


@pytest.mark.slow
def test_how_cost_grows(bench, world, capsys):
    found = bench(world[0], '--n_iters=1')
    found['bench_scaling'].__globals__.update(
        base={'frame size': 16, 'context': 2, 'width': 16, 'vocabulary': 16},
        axes={
            'frame size': (16, 32),
            'context': (2, 4),
            'width': (16, 32),
            'vocabulary': (16, 65536),
        },
    )
    report = found['bench_scaling']()
    assert len(report['points']) == 5 and report['exponents']['context'][::2] == pytest.approx(
        [1, 0], abs=1e-6
    )
    assert '| **exponent of width** |' in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    'argument, words',
    [
        ('--stage=dynamic', ['stage', 'expected one of all, tokenizer']),
        ('--n_iter=3', ["did you mean 'n_iters'?"]),
        ('--prepare=100', ['64, 128']),
        ('--patch_size=4', ["'patch_size' is a key of", 'not of dynamics.py']),
    ],
)  # the stage's own complaint
def test_a_wrong_setting_is_refused(bench, world, capsys, argument, words):
    with pytest.raises(SystemExit) as stopped:
        bench(world[0], '--stage=dynamics', argument)['bench_training']()
    said = capsys.readouterr().err
    assert (
        stopped.value.code == 2
        and len(said.splitlines()) <= 3
        and all(word in said for word in words)
    )


@pytest.mark.slow
def test_a_profile_is_of_one_stage(world):
    refused(
        run('bench.py', world[0], '--profile=a.trace.json'),
        2,
        '--profile',
        'expected one of --stage=tokenizer',
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    'stage, expected', [('tokenizer', ['memory', 'mm']), ('sample', ['mm', 'memory', 'mm'])]
)
def test_memory_is_that_of_the_stage(bench, world, stage, expected):
    """On a GPU the matrices of torch.mm take 0.9 GB: it is asked for before they are made, or after
    the peak was forgotten."""
    heard = []
    names = bench(world[0], f'--stage={stage}', '--n_iters=1')

    def peak_memory(device):
        heard.append('memory')
        return 7

    def matmul_rate(device, dtype):
        heard.append('mm')
        return 1e9

    names['now'].__globals__.update(peak_memory=peak_memory, matmul_rate=matmul_rate)
    assert names['bench_sampling' if stage == 'sample' else 'bench_training']()['peak_memory'] == 7
    assert heard == expected


def test_how_cost_grows_takes_a_config_that_speaks_to_bench(bench):
    """config/failed_run.py has bench = dict(...)."""
    scripts = bench('config/failed_run.py')['read_scripts']()
    found = configurator.resolve('tokenizer', scripts, ['config/failed_run.py'])
    assert found['patch_size'] == 4


@pytest.mark.slow
@pytest.mark.parametrize('key', ['json', 'profile'])
def test_a_file_that_cannot_be_written_is_noticed_first(world, tmp_path, key):
    (tmp_path / 'file').write_text('')
    path = tmp_path / 'file' / 'numbers'
    done = run('bench.py', world[0], '--stage=tokenizer', f'--{key}={path}')
    refused(done, 7, 'cannot be written')
