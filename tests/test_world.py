"""The stages together: what stage 3 sees of a recording, and models from their checkpoints."""
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from training import checkpoint
from world import Encoded, load_stage


@pytest.mark.parametrize('stride', [1, 2])
def test_windows_of_a_new_scene_end_in_one(stride):
    """A new scene at frame 10; elsewhere one token in four changes."""
    n = 50
    tokens = np.zeros((n, 4), np.int16)
    tokens[:, 0] = np.arange(n)
    tokens[10:, 1:] = 1
    encoded = object.__new__(Encoded)
    encoded.frame_stride, encoded.tokenizer = stride, SimpleNamespace(n_tokens=4)
    encoded.changes = (tokens[stride:] != tokens[:-stride]).sum(1)
    found = encoded.ending_in_a_new_scene(np.arange(n - 2 * stride), 3)
    assert found.tolist() == list(range(10 - 2 * stride, 10 - stride))


@pytest.mark.slow
def test_averaged_weights_of_an_earlier_version_are_what_others_load(world, tmp_path):
    out = shutil.copytree(world[1] / 'tokenizer', tmp_path / 'out' / 'tokenizer').parent
    ckpt = checkpoint.best(out / 'tokenizer', 'tokenizer')
    ckpt['ema'] = {name: torch.zeros_like(t) for name, t in ckpt['model'].items()}
    torch.save({k: v for k, v in ckpt.items() if k != 'path'}, out / 'tokenizer' / 'best.pt')
    model, about = load_stage(str(out), 'tokenizer', 'cpu')
    assert not model.to_patch.bias.any() and about['id'] == checkpoint.weights_id(ckpt['ema'])
