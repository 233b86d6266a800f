"""Several processes, one run: who this one is, and what they agree on. Alone, all of it is trivial."""
import torch.distributed as dist


def rank():
    return dist.get_rank() if dist.is_initialized() else 0


def world_size():
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier():
    """Waits until every rank has come here."""
    if dist.is_initialized():
        dist.barrier()
