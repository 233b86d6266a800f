"""page/local.js draws the tokens that model.py draws: Node.js is asked, for there may be no
browser."""
import json
import shutil
import subprocess

import pytest
import torch
from launch import ROOT

from model import Dynamics, DynamicsConfig

pytestmark = pytest.mark.skipif(not shutil.which('node'), reason='no Node.js')
ASK = """
const {world, looks, luck, steps} = JSON.parse(require('fs').readFileSync(0))
world.pairs = Float32Array.from(world.pairs)
const networks = {past: () => null, guess: () => Float32Array.from(looks.shift())}
generate(networks, world, null, null, steps, 0, {noise: 0}, luck)
  .then(frame => console.log(JSON.stringify([[...frame], looks.length])))
"""


@pytest.mark.parametrize('scale', [3, 30])  # some tokens are sure; nearly all are
@pytest.mark.parametrize('vocab_size', [60, 5000])
def test_the_same_looks_give_the_same_frame(monkeypatch, vocab_size, scale):
    torch.manual_seed(0)
    model = Dynamics(DynamicsConfig(vocab_size, 32, 8, 4, 3, 1, 2, 16)).eval()
    if model.n_digits > 1:
        torch.nn.init.normal_(model.pairs.weight, std=1.5)
    looks, luck = [], torch.rand(32)

    def logits(x):
        looks.append(scale * torch.randn(1, 32, model.n_digits, model.base))
        return looks[-1]

    monkeypatch.setattr(model, 'logits', logits)
    monkeypatch.setattr(torch, 'rand', lambda *_, **__: luck[None])
    past, actions = torch.randint(vocab_size, (1, 2, 32)), torch.zeros(1, 2, dtype=torch.long)
    expected = model.generate(past, actions, 6, temperature=0)[0, -1].tolist()
    world = dict(n_tokens=32, vocab_size=vocab_size, base=model.base, n_digits=model.n_digits,
                 doubt=model.doubt, pairs=[])
    if model.n_digits > 1:
        world['pairs'] = model.pairs.weight.flatten().tolist()
    asked = dict(world=world, luck=luck.tolist(), steps=6,
                 looks=[x.flatten().tolist() for x in looks])
    script = (ROOT / 'page' / 'local.js').read_text(encoding='utf-8') + ASK
    done = subprocess.run(['node', '-e', script], input=json.dumps(asked), capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [expected, 0]
