"""Checkpoint folders, of this project and of another trainer: what can be loaded is what counts."""
import json
import math
import random
from pathlib import Path

import pytest
import torch
from reports import DIVERGED, finding, report, run

from training import checkpoint


def state(**changes):
    ckpt = dict(stage='dynamics', iter=1, config=dict(max_iters=8000),
                model_args=dict(vocab_size=1024, n_actions=8), model={'w': torch.ones(8, 8)},
                optimizer=[dict(state={0: dict(step=1.0, m=torch.ones(8, 8))}, param_groups=[])],
                guard={}, metrics={}, data_id='d', parents=None)
    return {**ckpt, **changes}


def stage_folder(tmp_path, logs, iters=(6000, 6500, 7000)):
    folder = tmp_path / 'out' / 'dynamics'
    for i in iters:
        checkpoint.save(str(folder), state(iter=i), keep=99)
    (folder / 'log.csv').write_bytes((logs / 'tiny_dynamics.csv').read_bytes())
    return folder


def test_a_folder_of_this_project(tmp_path, logs):
    """Vocabulary, actions and length come from the newest checkpoint; the folder above gives the
    same."""
    folder = stage_folder(tmp_path, logs)
    code, text, _ = run(folder)
    assert code == 0
    assert 'All 3 checkpoints (dynamics) are valid, the newest is of step 7000' in text
    assert 'ln 1024' in text and 'equally used actions of 8' in text
    assert '1000 of 8000 steps left' in text
    assert run(folder.parent)[:2] == (code, text)


def test_a_run_that_the_trainer_stopped(tmp_path, logs):
    folder = stage_folder(tmp_path, logs)
    status = dict(state='diverged', iter=7000, reason='the loss rose\nand more')
    (folder / 'status.json').write_text(json.dumps(status))
    code, text, _ = run(folder)
    assert code == 2 and 'status.json: diverged at iter 7000: the loss rose.' in text


def test_the_vocabulary_of_a_run_that_saved_nothing_is_its_tokenizers(tmp_path, logs):
    folder = tmp_path / 'dynamics'
    folder.mkdir()
    (folder / 'log.csv').write_bytes((logs / 'rate_1000_times_too_high.csv').read_bytes())
    tokenizer = state(stage='tokenizer', model_args=dict(levels=(4, 4, 4, 4, 4)))
    checkpoint.save(str(tmp_path / 'tokenizer'), tokenizer)
    code, text, _ = run(folder)
    assert code == 2 and 'above twice ln 1024 = 6.93' in text


def damage(path, kind):
    data = bytearray(path.read_bytes())
    if kind == 'truncated':
        data = data[:len(data) * 2 // 3]
    elif kind == 'flipped':
        at = data.find(b'\x00\x00\x80\x3f' * 8)  # ones, in the weights
        data[at + 5] ^= 4
    path.write_bytes(data)


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize('kind, words', [
    ('truncated', 'truncated'), ('flipped', 'fails its checksum'),
    ('empty_dict', 'found nothing in it'), ('nan', 'not finite'), ('pickle', 'could run code'),
    ('no_optimizer', 'the optimizer is missing')])
def test_a_bad_checkpoint_of_this_project(tmp_path, logs, kind, words):
    folder = stage_folder(tmp_path, logs)
    path, touched = folder / checkpoint.file_name(7000), tmp_path / 'touched'
    if kind in ('truncated', 'flipped'):
        damage(path, kind)
    else:
        nan = {'w': torch.full((2,), math.nan)}
        contents = {'empty_dict': {}, 'nan': state(format=checkpoint.FORMAT, model=nan),
                    'no_optimizer': state(format=checkpoint.FORMAT, iter=7000, optimizer=[]),
                    'pickle': state(format=checkpoint.FORMAT, config=Payload(touched))}
        torch.save(contents[kind], path)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    code, text, _ = run(folder)
    assert code == 2 and words in text
    assert '1 of 3 invalid (33%), newest valid 6500, 500 steps lost' in text
    assert not touched.exists()
    assert before == {p.name: p.read_bytes() for p in folder.iterdir()}  # read-only


# -----------------------------------------------------------------------------
# of another trainer


def foreign(folder, name, model=None, optim=None, state=None):
    (folder / name).mkdir(parents=True)
    if model is None:
        model = {'layer.weight': torch.ones(4, 4)}
    if optim is None:
        optim = {'state': {0: {'exp_avg': torch.zeros(4, 4)}}, 'param_groups': [{'lr': 0.01}]}
    parts = dict(model_state_dict=model, optim_state_dict=optim,
                 state={'step': 1} if state is None else state)
    for part, content in parts.items():
        if content != 'missing':
            torch.save(content, folder / name / f'{part}.pt')
    return folder / name


def test_24_of_26_checkpoints_are_empty(tmp_path, logs):
    for step in range(0, 50001, 2000):
        content = None if step in (26000, 44000) else {}
        foreign(tmp_path / 'checkpoints', f'dynamics_step_{step}', content, content)
    code, text, _ = run(logs / 'dynamics_diverged.csv', tmp_path / 'checkpoints', *DIVERGED)
    lost = '24 of 26 invalid (92%), newest valid 44000, 6343 steps lost'
    assert code == 2 and lost in text.split('verdict: critical')[1]
    # both are newer than the minimum of the loss
    assert 'there is none, so from scratch' in text
    code, text, _ = run(tmp_path / 'checkpoints')
    assert code == 2 and ('verdict: critical: checkpoints: 24 of 26 invalid (92%), newest valid '
                          '44000, 6000 steps lost') in text
    assert '24 x model_state_dict.pt holds an empty dict' in text


def test_good_checkpoints_of_another_trainer(tmp_path):
    for step in (100, 200):
        foreign(tmp_path, f'dynamics_step_{step}')
        foreign(tmp_path, f'tokenizer_step_{step}')
    code, found = report(tmp_path)
    assert code == 0 and found['verdict'] == 'ok' and len(found['findings']) == 2


def test_one_checkpoint_of_another_trainer(tmp_path):
    """Its own folder, instead of the one above."""
    code, text, _ = run(foreign(tmp_path, 'dynamics_step_100'))
    assert code == 0 and 'All 1 checkpoints (dynamics) are valid, the newest is of step 100' in text


@pytest.mark.parametrize('bad, severity',
                         [((3,), 'warn'), ((20,), 'critical'), ((3, 4, 5), 'critical')])
def test_how_bad_some_bad_checkpoints_are(tmp_path, bad, severity):
    """An old one is a warning; the newest, or more than a tenth, is critical."""
    for step in range(1, 21):
        foreign(tmp_path, f'dynamics_step_{step}', {} if step in bad else None)
    assert finding(report(tmp_path)[1], 'R18')['severity'] == severity


@pytest.mark.parametrize('kind, words', [
    ('truncated', 'truncated'), ('flipped', 'checksum'), ('nan', 'not finite'),
    ('pickle', 'could run code'), ('no_optimizer', 'optim_state_dict.pt is missing'),
    ('empty_optimizer', 'optim_state_dict.pt holds an empty dict'),
    ('huge', 'larger than the file'), ('text', 'not a checkpoint'), ('no_tensor', 'no tensor')])
def test_a_bad_checkpoint_of_another_trainer(tmp_path, kind, words):
    touched = tmp_path / 'touched'
    models = dict(nan={'w': torch.tensor([1.0, math.inf])},
                  pickle={'w': torch.ones(2), 'x': Payload(touched)},
                  huge={'w': torch.ones(1).expand(10 ** 6, 10 ** 6)}, no_tensor={'a': 1})
    optim = dict(no_optimizer='missing', empty_optimizer={}).get(kind)
    foreign(tmp_path / 'c', 'dynamics_step_100')
    path = foreign(tmp_path / 'c', 'dynamics_step_200', models.get(kind), optim)
    path = path / 'model_state_dict.pt'
    if kind == 'text':
        path.write_text('hello')
    damage(path, kind)
    code, text, _ = run(tmp_path / 'c')
    assert code == 2 and '1 of 2 invalid (50%), newest valid 100, 100 steps lost' in text
    assert words in text and not touched.exists()


@pytest.mark.slow
def test_fuzzed_checkpoints(tmp_path):
    rng = random.Random(1)
    good = foreign(tmp_path / 'c', 'dynamics_step_1')
    data = {p.name: p.read_bytes() for p in good.iterdir()}
    for _ in range(150):
        for name, content in data.items():
            content = bytearray(content)
            for _ in range(rng.randint(0, 3)):
                content[rng.randrange(len(content))] = rng.randrange(256)
            size = rng.choice([len(content)] * 3 + [rng.randrange(len(content))])
            (good / name).write_bytes(content[:size])
        code, out, err = run(tmp_path / 'c')
        assert code in (0, 2) and 'verdict: ' in out and not err
