"""Several processes, one run: what they share out, and what they agree on."""
import contextlib
import os

import torch
import torch.distributed as dist

import configurator


def rank():
    return dist.get_rank() if dist.is_initialized() else 0


def world_size():
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier():
    """Waits until every rank has come here."""
    if dist.is_initialized():
        dist.barrier()


@contextlib.contextmanager
def master_first():
    """The block runs on rank 0 first, and then on the others, who find there what it has made."""
    if rank() > 0:
        barrier()
    try:
        yield
    finally:
        if rank() == 0:
            barrier()


def share_out(total_batch_size, device_batch_size, world_size):
    """How total_batch_size clips are divided: -> (clips a micro-batch, micro-batches an update).

    Ends the process with exit code 2 where they cannot be divided evenly.
    """
    device_batch_size = min(device_batch_size, max(1, total_batch_size // world_size))
    together = device_batch_size * world_size
    if total_batch_size % together:
        configurator.stop(2, f'config: total_batch_size={total_batch_size} is not a multiple of '
                             'device_batch_size * processes\n'
                             f'found {device_batch_size} * {world_size}; change one of them')
    return device_batch_size, total_batch_size // together


def set_up_device(device):
    """Threads and number formats that are fast on it; a CUDA device becomes the current one."""
    if device == 'cpu':
        torch.set_flush_denormal(True)  # numbers next to zero are slow
        here = configurator.processes()
        if here.ddp:  # torchrun leaves each rank with one thread
            torch.set_num_threads(max(1, os.cpu_count() // here.local_world_size))
    if device.startswith('cuda'):
        torch.set_float32_matmul_precision('high')  # TF32
        torch.cuda.set_device(device)


def all_mean(x):
    """The mean of a tensor over all ranks."""
    if dist.is_initialized():
        dist.all_reduce(x)  # SUM: not every backend has AVG, and MAX and MIN drop NaN
    return x / world_size()


def norm_of_all(norms, device):
    """The norm of a gradient whose parts have these; with FSDP each is in pieces. A part without
    gradient has its 0 on the CPU."""
    norms = [n.full_tensor() if hasattr(n, 'full_tensor') else n.to(device) for n in norms]
    return torch.stack(norms).norm()


def same_everywhere(number, device):
    """The whole number that rank 0 has, on every rank."""
    number = torch.tensor(number, device=device)
    if dist.is_initialized():
        dist.broadcast(number, 0)
    return number.item()


def differing_ranks(device, *texts):
    """The ranks whose texts are not those of rank 0."""
    if not dist.is_initialized():
        return []
    mine = torch.tensor(configurator.hash_texts(*texts), device=device)
    every = [torch.empty_like(mine) for _ in range(world_size())]
    dist.all_gather(every, mine)
    return [r for r in range(world_size()) if every[r] != every[0]]


def expect_same_start(about, weights_id, device):
    """Ends all ranks with exit code 2 if one has other settings, data or initial weights."""
    differing = differing_ranks(device, repr(sorted(about.items())), weights_id)
    if differing:
        configurator.stop(2, f'{about["stage"]}: found ranks {differing} with other settings, data '
                             'or initial weights than rank 0\nexpected the same on all: start '
                             'every rank with the same command, files and version of torch')


def expect_same_weights(weights_id, stage, it, device):
    """Ends all ranks with exit code 1 if one has drifted: gradients of different models would be
    averaged. Every rank calls it before each save."""
    differing = differing_ranks(device, weights_id)
    if differing:
        configurator.stop(1, f'{stage}: found other weights on ranks {differing} than on rank 0 at '
                             f'iter {it}, expected the same\nnothing was saved; '
                             '--init_from=resume goes back to the last checkpoint')


def compile_if_it_works(model, ctx, batch):
    """model.compile(), or not: if one real forward and backward pass, or one as in an evaluation,
    fails on any rank, all of them do without it and say so. The model is left as it was, running
    statistics included."""
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    model.compile()  # in place: the names in state_dict stay as they are
    problem = ''
    try:  # it is lazy: forward and backward fail at their first call
        with ctx:
            loss, _ = model(*batch)
        loss.backward()
        if not all(p.grad is None or p.grad.isfinite().all() for p in model.parameters()):
            problem = 'found gradients that are not finite'
        model.eval()  # an evaluation is another graph
        with torch.no_grad(), ctx:
            model(*batch)
    except Exception as e:  # whatever a compiler raises
        problem = f'{type(e).__name__}: {str(e).strip().splitlines()[0][:120]}'
    model.train()
    model.zero_grad(set_to_none=True)
    with torch.no_grad():
        for name, b in model.named_buffers():
            b.copy_(buffers[name])
    device = next(model.parameters()).device
    if all_mean(torch.tensor(float(bool(problem)), device=device)):
        model._compiled_call_impl = None
        if problem:
            print(f'compile failed ({problem}); training goes on without it', flush=True)

