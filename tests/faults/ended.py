"""What a run left behind."""

import json

from training import checkpoint


def digest(out, stage='tokenizer', it=None):
    """What a run ended with: the weights and the optimizer's state, as one id."""
    ckpt = (
        checkpoint.load(out / stage / checkpoint.file_name(it))
        if it
        else checkpoint.latest(out / stage, stage)
    )
    flat = {
        where: t for where, t in checkpoint.tensors({k: ckpt[k] for k in ('model', 'optimizer')})
    }
    return ckpt['iter'], checkpoint.weights_id(flat)


def status(out, stage='tokenizer'):
    return json.loads((out / stage / 'status.json').read_text())
