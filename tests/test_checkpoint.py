"""Every promise of the checkpoint file, with the fault that would break it."""

import os
import signal
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from launch import ROOT

from files import DiskError
from training import checkpoint
from training.checkpoint import FORMAT, CheckpointError
from training.folder import RunFolder


def make(iter=10, stage='dynamics', **changes):
    g = torch.Generator().manual_seed(iter)
    model = {
        'w': torch.randn(40, 50, generator=g),
        'b': torch.randn(50, generator=g).bfloat16(),
        'n': torch.tensor(iter),
    }
    optimizer = {
        'state': {0: {'step': torch.tensor(3.0), 'm': torch.zeros(40, 50)}},
        'param_groups': [{'lr': 1e-3, 'betas': (0.9, 0.95), 'params': [0]}],
    }
    return (
        dict(
            stage=stage,
            iter=iter,
            config={'n_layer': 2, 'levels': (4, 4), 'compile': False, 'none': None},
            model_args={'n_layer': 2},
            model=model,
            optimizer=optimizer,
            guard={'best': float('inf')},
            metrics={'loss': 1.5},
            data_id='abc',
            parents={'tokenizer': '0' * 16},
        )
        | changes
    )


def write_raw(folder, content, iter=20):
    """A file that torch wrote, of any content and unchecked."""
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, checkpoint.file_name(iter))
    torch.save(content, path)
    return path


def names(folder):
    return sorted(os.listdir(folder))


def refusal(path, stage=None):
    """The message of a load that must fail: at most three lines, naming the file."""
    with pytest.raises(CheckpointError) as e:
        checkpoint.load(path, stage)
    message = str(e.value)
    assert str(path) in message and len(message.splitlines()) <= 3 and len(message) < 600, message
    return message


# -----------------------------------------------------------------------------
# write


def test_round_trip(tmp_path):
    folder = str(tmp_path / 'new' / 'dynamics')
    ckpt = make()
    path = checkpoint.save(folder, ckpt)
    assert path == os.path.join(folder, 'ckpt_00000010.pt') and names(folder) == [
        'ckpt_00000010.pt'
    ]
    found = checkpoint.load(path, 'dynamics')
    assert (
        found['path'] == path
        and found['format'] == FORMAT
        and found['torch'] == str(torch.__version__)
    )
    assert all(
        torch.equal(found['model'][k], v) and found['model'][k].dtype == v.dtype
        for k, v in ckpt['model'].items()
    )
    assert {k: found[k] for k in ckpt if k not in ('model', 'optimizer')} == {
        k: ckpt[k] for k in ckpt if k not in ('model', 'optimizer')
    }
    assert (
        found['optimizer']['param_groups'] == ckpt['optimizer']['param_groups']
        and 'format' not in ckpt
    )  # the caller's dict is his
    assert checkpoint.latest(folder)['iter'] == checkpoint.best(folder, 'dynamics')['iter'] == 10


def test_real_optimizer_states_round_trip(tmp_path):
    net = torch.nn.Linear(4, 4)
    optimizers = [torch.optim.AdamW([net.bias]), torch.optim.Muon([net.weight])]
    net(torch.ones(1, 4)).sum().backward()
    for o in optimizers:
        o.step()
    path = checkpoint.save(
        tmp_path, make(model=net.state_dict(), optimizer=[o.state_dict() for o in optimizers])
    )
    for o, state in zip(optimizers, checkpoint.load(path)['optimizer']):
        o.load_state_dict(state)


@pytest.mark.parametrize('where', ['before', 'after'])
def test_death_around_the_replace(tmp_path, monkeypatch, where):
    old = checkpoint.save(tmp_path, make(10))
    real = os.replace

    def dies(a, b):
        if where == 'after':
            real(a, b)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, 'replace', dies)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(tmp_path, make(20), keep=1)
    monkeypatch.undo()
    assert checkpoint.load(old)['iter'] == 10
    assert checkpoint.latest(tmp_path)['iter'] == (20 if where == 'after' else 10)
    checkpoint.save(tmp_path, make(30), keep=1)
    assert names(tmp_path) == ['ckpt_00000030.pt']


@pytest.mark.slow
def test_kill_in_the_middle_of_the_write(tmp_path):
    """SIGKILL runs no finally: the temporary stays, is never taken for a checkpoint, and goes with
    the next save."""
    checkpoint.save(tmp_path, make(10))
    code = (
        'import os, signal, sys; sys.path[:0] = sys.argv[1:3]\n'
        'from training import checkpoint; import test_checkpoint\n'
        'def dies(fd): os.kill(os.getpid(), signal.SIGKILL)\n'
        'os.fsync = dies; checkpoint.save(sys.argv[3], test_checkpoint.make(20))'
    )
    run = subprocess.run(
        [sys.executable, '-c', code, str(ROOT), os.path.dirname(__file__), str(tmp_path)],
        timeout=60,
    )
    assert run.returncode == -signal.SIGKILL
    assert any('.tmp' in n for n in names(tmp_path)) and checkpoint.latest(tmp_path)['iter'] == 10
    (tmp_path / 'notes.tmp1').write_text('not ours')
    (tmp_path / 'samples').mkdir()
    (tmp_path / 'samples' / '00000010.png.tmp77').write_text('half a picture')
    folder = RunFolder(tmp_path.parent, tmp_path.name, 'cpu')
    folder.open(10, 0)
    folder.release()
    assert names(tmp_path) == ['ckpt_00000010.pt', 'notes.tmp1', 'samples', 'status.json']
    assert not os.listdir(tmp_path / 'samples')


def test_what_does_not_verify_never_gets_the_name(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, make(10))
    real = torch.save

    def flips(obj, f):
        real(obj, f)
        f.seek(os.fstat(f.fileno()).st_size // 2)
        f.write(b'\xff\x00')

    monkeypatch.setattr(torch, 'save', flips)
    with pytest.raises(CheckpointError):
        checkpoint.save(tmp_path, make(10))
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match='not finite'):
        checkpoint.save(tmp_path, make(20, model={'w': torch.tensor([1.0, float('nan')])}))
    with pytest.raises(CheckpointError, match='has no guard'):
        checkpoint.save(tmp_path, {k: v for k, v in make(20).items() if k != 'guard'})
    assert names(tmp_path) == ['ckpt_00000010.pt'] and checkpoint.latest(tmp_path)['iter'] == 10


@pytest.mark.parametrize('keep', [1, 2, 3])
def test_retention(tmp_path, keep):
    for i in range(1, 7):
        checkpoint.save(tmp_path, make(i), keep=keep)
    assert names(tmp_path) == [checkpoint.file_name(i) for i in range(7 - keep, 7)]


@pytest.mark.row(26)
@pytest.mark.parametrize('keep', [1, 2, 3])
def test_damaged_newer_files_push_out_nothing(tmp_path, keep):
    checkpoint.save(tmp_path, make(1))
    for i in (7, 8, 900, 901, 902):
        (tmp_path / checkpoint.file_name(i)).write_bytes(b'')
    for i in (10, 11):
        checkpoint.save(tmp_path, make(i), keep=keep)
        assert checkpoint.load(tmp_path / checkpoint.file_name(i))
    good = [i for i in (11, 10, 1) if (tmp_path / checkpoint.file_name(i)).exists()]
    assert good == [11, 10, 1][:keep]  # 7 and 8 lie between 1 and 10, and are not counted


def test_newer_files_of_another_run_do_not_push_out_this_one(tmp_path):
    for i in (900, 901, 902):
        write_raw(tmp_path, checkpoint.load(checkpoint.save(tmp_path / 'other', make(i))), i)
    path = checkpoint.save(tmp_path, make(10), keep=1)
    assert checkpoint.load(path)['iter'] == 10


def test_best_survives_pruning(tmp_path):
    for i in range(1, 6):
        checkpoint.save(tmp_path, make(i), keep=1, best=i in (2, 3))
    assert names(tmp_path) == ['best.pt', 'ckpt_00000005.pt']
    assert (
        checkpoint.best(tmp_path, 'dynamics')['iter'] == 3
        and checkpoint.latest(tmp_path)['iter'] == 5
    )


def test_best_without_hard_links(tmp_path, monkeypatch):
    def refuses(*_):
        raise OSError('no hard links here')

    monkeypatch.setattr(os, 'link', refuses)
    checkpoint.save(tmp_path, make(1), best=True)
    assert (
        names(tmp_path) == ['best.pt', 'ckpt_00000001.pt']
        and checkpoint.best(tmp_path, 'dynamics')['iter'] == 1
    )


def test_a_second_name_that_it_has_already(tmp_path):
    """To rename one of two names of a file to the other does nothing, and leaves both."""
    checkpoint.save(tmp_path, make(1), best=True)
    for _ in range(3):
        assert checkpoint.make_best_the_newest(tmp_path, 'dynamics')
        assert names(tmp_path) == ['best.pt', 'ckpt_00000001.pt']


def test_same_iter_saved_twice(tmp_path):
    for loss in (1.0, 2.0):
        checkpoint.save(tmp_path, make(1, metrics={'loss': loss}), best=True)
    assert checkpoint.best(tmp_path, 'dynamics')['metrics']['loss'] == 2.0 and names(tmp_path) == [
        'best.pt',
        'ckpt_00000001.pt',
    ]


@pytest.mark.parametrize(
    'changes, where',
    [
        (dict(metrics={'psnr': np.float64(3)}), "ckpt['metrics']['psnr'] is a numpy.float64"),
        (dict(metrics={'x': [1, (np.zeros(2),)]}), "ckpt['metrics']['x'][1][0] is a numpy.ndarray"),
        (dict(config={(1, 2): 3}), "ckpt['config'] has a key (1, 2)"),
        (dict(data_id=b'bytes'), "ckpt['data_id'] is a builtins.bytes"),
    ],
)
def test_values_that_are_not_plain(tmp_path, changes, where):
    with pytest.raises(TypeError) as e:
        checkpoint.save(tmp_path, make(**changes))
    assert where in str(e.value) and names(tmp_path) == []


FULL = '''
import resource, signal, sys
sys.path[:0] = sys.argv[1:3]
from training import checkpoint; import test_checkpoint
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
# bytes: it fails in the first record, in the middle, in the directory at the end
for limit in (1000, 9000, int(sys.argv[4]) - 10):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        checkpoint.save(sys.argv[3], test_checkpoint.make(20))
    except checkpoint.DiskError as e:
        said = str(e)
        print('DiskError', len(said.splitlines()), 'MB free' in said, 'ckpt_00000020.pt' in said)
'''


@pytest.mark.slow
@pytest.mark.row(28)
@pytest.mark.skipif(os.name == 'nt', reason='RLIMIT_FSIZE')
def test_disk_full(tmp_path):
    size = os.path.getsize(checkpoint.save(tmp_path, make(10)))
    run = subprocess.run(
        [
            sys.executable,
            '-c',
            FULL,
            str(ROOT),
            os.path.dirname(__file__),
            str(tmp_path),
            str(size),
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.stdout.splitlines() == ['DiskError 2 True True'] * 3, run.stdout + run.stderr
    assert names(tmp_path) == ['ckpt_00000010.pt'] and checkpoint.latest(tmp_path)['iter'] == 10


def test_disk_nearly_full(tmp_path, monkeypatch):
    monkeypatch.setattr(
        checkpoint.shutil, 'disk_usage', lambda _: type('usage', (), dict(free=2**20))
    )
    monkeypatch.setattr(torch, 'save', None)  # must not be reached
    with pytest.raises(DiskError, match='1 MB free, expected 2 MB'):
        checkpoint.save(tmp_path, make())


@pytest.mark.row(29)
def test_folder_is_a_file(tmp_path):
    (tmp_path / 'out').write_text('')
    with pytest.raises(DiskError):
        checkpoint.save(tmp_path / 'out', make())
    with pytest.raises(DiskError):
        checkpoint.save(tmp_path / 'out' / 'dynamics', make())


def test_other_runtime_errors_are_not_the_disk(tmp_path, monkeypatch):
    def fails(*_):
        raise RuntimeError('CUDA error: an illegal memory access was encountered')

    monkeypatch.setattr(torch, 'save', fails)
    with pytest.raises(RuntimeError, match='CUDA'):
        checkpoint.save(tmp_path, make())
    assert names(tmp_path) == []


def test_best_is_all_that_is_left(tmp_path):
    """A resumed run goes on from it, rather than never again."""
    path = checkpoint.save(tmp_path, make(10), best=True)
    os.truncate(checkpoint.save(tmp_path, make(20)), 50)
    os.remove(path)
    found = checkpoint.latest(tmp_path, 'dynamics')
    assert found['iter'] == 10 and found['path'] == path
    assert names(tmp_path) == ['best.pt', 'ckpt_00000010.pt', 'ckpt_00000020.pt.bad']


# -----------------------------------------------------------------------------
# damaged files: each is refused with its own reason, and an older one is used instead


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, 'w')


def good_bytes(tmp_path):
    return open(checkpoint.save(tmp_path / 'good', make(20)), 'rb').read()


def flipped(tmp_path):
    data = bytearray(good_bytes(tmp_path))
    at = data.find(make(20)['model']['w'].numpy().tobytes())
    assert at > 0
    data[at + 1000] ^= 1  # one bit of one weight: still finite, and torch loads it without a word
    return bytes(data)


def bomb(tmp_path):
    path = tmp_path / 'bomb'
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as z:
        z.writestr('archive/data.pkl', bytes(20_000_000))
    return path.read_bytes()


def without(key):
    return {k: v for k, v in make(20, format=FORMAT).items() if k != key}


CASES = {
    'empty': (lambda p: b'', 'empty (0 bytes)'),
    'text': (lambda p: b'hello, I am a text file', "found b'hell' at its start"),
    'truncated': (lambda p: good_bytes(p)[:-1000], 'truncated'),
    'half': (lambda p: good_bytes(p)[:5000], 'truncated'),
    'head only': (lambda p: b'PK\x03\x04', 'truncated'),
    'bit flip': (flipped, 'fails its checksum'),
    'bomb': (bomb, 'found 20000000 bytes inside a file of'),
    'directory': (None, 'found a directory'),
    '{}': (lambda p: {}, 'found nothing in it'),
    'a list': (lambda p: [1, 2], 'found list in it'),
    'no model': (lambda p: without('model'), 'it has no model'),
    'no format': (lambda p: without('format'), 'it has no format'),
    'no guard': (lambda p: without('guard'), 'it has no guard'),
    'empty model': (lambda p: make(20, format=FORMAT, model={}), 'its model is empty'),
    'odd model': (lambda p: make(20, format=FORMAT, model={'w': 'x'}), 'other things than tensors'),
    'odd iter': (lambda p: make('20', format=FORMAT), 'found iter of type str, expected int'),
    'nan': (
        lambda p: make(20, format=FORMAT, model={'w': torch.tensor([0, float('nan')])}),
        "ckpt['model']['w'] is not finite",
    ),
    'inf state': (
        lambda p: make(20, format=FORMAT, optimizer={'m': torch.tensor(float('inf'))}),
        "ckpt['optimizer']['m'] is not finite",
    ),
    'huge': (
        lambda p: make(20, format=FORMAT, model={'w': torch.zeros(1).expand(10**13)}),
        'claims to be larger than the file',
    ),
    'payload': (
        lambda p: make(20, format=FORMAT, metrics=Payload(str(p / 'ran'))),
        'found Python objects',
    ),
    'numpy': (lambda p: make(20, format=FORMAT, metrics=np.float64(1)), 'found Python objects'),
}


@pytest.mark.row(22, 23, 24, 25)
@pytest.mark.parametrize('name', CASES)
def test_damaged(tmp_path, capsys, name):
    content, reason = CASES[name]
    run = str(tmp_path / 'run')
    checkpoint.save(run, make(10))
    path = os.path.join(run, checkpoint.file_name(20))
    if content is None:
        os.makedirs(path)
    else:
        if name == 'odd iter':
            ckpt = make(20, format=FORMAT) | {'iter': '20'}
        else:
            ckpt = content(tmp_path)
        if isinstance(ckpt, bytes):
            open(path, 'wb').write(ckpt)
        else:
            write_raw(run, ckpt)
    assert reason in refusal(path)
    assert (
        checkpoint.best(run, 'dynamics')['iter'] == 10 and len(names(run)) == 2
    )  # renames nothing
    capsys.readouterr()
    found = checkpoint.latest(run, 'dynamics')
    assert found['iter'] == 10 and found['path'].endswith('ckpt_00000010.pt')
    assert names(run) == ['ckpt_00000010.pt', 'ckpt_00000020.pt.bad']
    said = capsys.readouterr().out
    assert (
        said.startswith('resume: skipped ckpt_00000020.pt: ')
        and reason in said
        and said.endswith('kept as ckpt_00000020.pt.bad\n')
    )
    assert not (tmp_path / 'ran').exists()  # the payload


def test_missing_file(tmp_path):
    assert 'no such file' in refusal(tmp_path / 'x.pt')


@pytest.mark.row(23)
def test_every_bit_flip_is_harmless_or_refused(tmp_path):
    """Anywhere in the file: the checkpoint loads as it was written, or is refused; never other
    values."""
    ckpt = make(20, model={'w': torch.arange(6.0)}, optimizer=None)
    good = checkpoint.load(checkpoint.save(tmp_path, ckpt))
    data, path = open(good['path'], 'rb').read(), str(tmp_path / 'flipped.pt')
    refused = 0
    for at in range(0, len(data), 23):
        open(path, 'wb').write(data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :])
        try:
            found = checkpoint.load(path)
        except CheckpointError:
            refused += 1
        else:
            assert torch.equal(found.pop('model')['w'], ckpt['model']['w'])
            assert found | {'path': 0} == {k: v for k, v in good.items() if k != 'model'} | {
                'path': 0
            }
    assert refused > 20


def test_truncated_anywhere(tmp_path):
    data, path = good_bytes(tmp_path), str(tmp_path / 'cut.pt')
    for size in list(range(0, len(data), 997)) + [len(data) - 1]:
        open(path, 'wb').write(data[:size])
        refusal(path)


@pytest.mark.row(27)
def test_all_damaged(tmp_path):
    for i in (10, 20):
        (tmp_path / checkpoint.file_name(i)).write_bytes(b'')
    with pytest.raises(
        CheckpointError,
        match='ckpt_00000020.pt: the file is empty.*ckpt_00000010.pt: the file is empty',
    ):
        checkpoint.best(tmp_path, 'dynamics')
    with pytest.raises(
        CheckpointError,
        match='ckpt_00000020.pt: the file is empty.*ckpt_00000010.pt: the file is empty',
    ):
        checkpoint.latest(tmp_path, 'dynamics')
    assert names(tmp_path) == ['ckpt_00000010.pt.bad', 'ckpt_00000020.pt.bad']


def test_none_at_all(tmp_path):
    for folder in (tmp_path, tmp_path / 'nowhere'):
        with pytest.raises(
            CheckpointError, match='python dynamics.py config/NAME.py --init_from=scratch'
        ):
            checkpoint.latest(folder, 'dynamics')
        with pytest.raises(CheckpointError, match='python tokenizer.py config/NAME.py'):
            checkpoint.best(folder, 'tokenizer')


@pytest.mark.parametrize(
    'changes, words',
    [
        (dict(stage='tokenizer'), ["'tokenizer'", "expected 'dynamics'"]),
        (
            dict(format=FORMAT + 1),
            [f'found format {FORMAT + 1}', f'expected {FORMAT}', 'newer'],
        ),
        (dict(format=1), ['found format 1', f'expected {FORMAT}', 'earlier version']),
    ],
)
def test_refused_without_touching_anything(tmp_path, changes, words):
    checkpoint.save(tmp_path, make(10))
    path = write_raw(tmp_path, make(20, **{'format': FORMAT} | changes))
    assert all(w in refusal(path, 'dynamics') for w in words)
    for find in (checkpoint.latest, checkpoint.best):
        with pytest.raises(CheckpointError):
            find(tmp_path, 'dynamics')
    assert names(tmp_path) == ['ckpt_00000010.pt', 'ckpt_00000020.pt']


@pytest.mark.parametrize(
    'problem',
    [
        MemoryError(),
        PermissionError(13, 'Permission denied'),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_a_full_memory_is_not_a_damaged_file(tmp_path, monkeypatch, problem):
    checkpoint.save(tmp_path, make(10))

    def fails(*_, **__):
        raise problem

    monkeypatch.setattr(torch, 'load', fails)
    with pytest.raises(CheckpointError, match='cannot be read'):
        checkpoint.latest(tmp_path, 'dynamics')
    assert names(tmp_path) == ['ckpt_00000010.pt']


def test_damaged_best_falls_back(tmp_path):
    checkpoint.save(tmp_path, make(10))
    (tmp_path / 'best.pt').write_bytes(b'PK')
    assert checkpoint.best(tmp_path, 'dynamics')['iter'] == 10


# -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    'wanted, words',
    [
        (dict(model_args={'n_layer': 3}), 'found n_layer=2, expected n_layer=3 (model_args)'),
        (
            dict(model_args={'n_layer': 2, 'n_head': 1}),
            'found no n_head, expected n_head=1 (model_args)',
        ),
        (dict(model_args={}), 'found n_layer=2, expected no n_layer (model_args)'),
        (dict(data_id='xyz'), "found data_id='abc', expected data_id='xyz'"),
        (
            dict(parents={'tokenizer': '1' * 16}),
            f"found tokenizer='{'0' * 16}', expected tokenizer='{'1' * 16}' (parents)",
        ),
    ],
)
def test_expect(tmp_path, wanted, words):
    ckpt = checkpoint.load(checkpoint.save(tmp_path, make()))
    checkpoint.expect(
        ckpt,
        model_args={'n_layer': 2},
        data_id='abc',
        parents={'tokenizer': '0' * 16},
        config=make()['config'],
    )
    with pytest.raises(CheckpointError) as e:
        checkpoint.expect(ckpt, **wanted)
    assert (
        words in str(e.value)
        and ckpt['path'] in str(e.value)
        and len(str(e.value).splitlines()) <= 3
        and not e.value.damaged
    )


def test_weights_id():
    state = {
        'a': torch.arange(6.0),
        'b': torch.tensor(2),
        'c': torch.ones(3).bfloat16(),
        'e': torch.ones(2, 3).t(),
        'z': torch.zeros(0),
    }
    first = checkpoint.weights_id(state)
    assert len(first) == 16 and int(first, 16) >= 0
    assert checkpoint.weights_id(dict(reversed(state.items()))) == first  # the order says nothing
    others = [
        state | {'a': state['a'].view(2, 3)},
        state | {'a': state['a'] + 1e-6},
        state | {'a': state['a'].view(torch.int32)},
        state | {'e': torch.ones(3, 2) * 2},
        {('aa' if k == 'a' else k): v for k, v in state.items()},
    ]
    assert len({first} | {checkpoint.weights_id(s) for s in others}) == 6
