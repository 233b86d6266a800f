"""What several processes share out. What they agree on is tested with two, in test_training and
faults."""

import contextlib

import pytest
import torch
from torch import nn

from training import ranks


@pytest.mark.parametrize(
    'total, device_batch, world_size, shares',
    [(8, 8, 1, (8, 1)), (8, 4, 1, (4, 2)), (8, 8, 2, (4, 1)), (8, 2, 2, (2, 2)), (2, 8, 2, (1, 1))],
)
def test_a_batch_is_shared_out(total, device_batch, world_size, shares):
    assert ranks.share_out(total, device_batch, world_size) == shares


@pytest.mark.parametrize('total, device_batch, world_size', [(6, 4, 1), (3, 8, 2), (1, 1, 2)])
def test_a_batch_that_cannot_be_shared_out_is_refused(capsys, total, device_batch, world_size):
    with pytest.raises(SystemExit) as stopped:
        ranks.share_out(total, device_batch, world_size)
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and f'total_batch_size={total}' in said


def test_alone_everything_is_trivial():
    assert (ranks.rank(), ranks.world_size()) == (0, 1)
    assert ranks.all_mean(torch.tensor(3.0)) == 3 and ranks.same_everywhere(5, 'cpu') == 5
    assert ranks.differing_ranks('cpu', 'a text') == []
    with ranks.master_first():
        ranks.barrier()


class Counting(nn.Module):
    """Its buffer counts its forward passes, as running statistics do."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(1))
        self.register_buffer('n', torch.zeros(1))

    def forward(self, x):
        self.n += 1
        return (self.w * x).sum(), {}


def test_a_trial_of_the_compiler_leaves_the_model_as_it_was(monkeypatch, capsys):
    m, ctx = Counting(), torch.autocast('cpu', enabled=False)

    def broken(model):
        def compiled(*args):
            model._call_impl(*args)
            raise RuntimeError('no compiler here\nand a second line')

        model._compiled_call_impl = compiled

    monkeypatch.setattr(nn.Module, 'compile', broken)
    ranks.compile_if_it_works(m, ctx, [torch.ones(2)])
    assert m.n == 0 and m.w.grad is None and m._compiled_call_impl is None
    said = capsys.readouterr().out
    assert 'compile failed (RuntimeError: no compiler here); training goes on without it' in said
    assert m(torch.ones(2))[0] == 2


def test_a_trial_of_the_compiler_finds_what_fails_in_an_evaluation(monkeypatch, capsys):
    """An evaluation is another graph than an update, and may fail alone."""
    ctx = contextlib.nullcontext()
    m = nn.Linear(2, 2)
    m.forward = lambda x: (m.weight.sum() * x.sum(), {})

    def broken(model):
        def compiled(*args):
            if not model.training:
                raise RuntimeError('no such pattern')
            return model.forward(*args)

        model._compiled_call_impl = compiled

    monkeypatch.setattr(nn.Module, 'compile', broken)
    ranks.compile_if_it_works(m, ctx, [torch.ones(2)])
    assert m.training and m._compiled_call_impl is None
    said = capsys.readouterr().out
    assert 'compile failed (RuntimeError: no such pattern); training goes on without it' in said
