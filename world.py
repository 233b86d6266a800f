"""The stages together: models from their checkpoints, and the world that they make."""
import os

import numpy as np
import torch

import data
from model import (Dynamics, DynamicsConfig, LatentActionConfig, LatentActionModel, Tokenizer,
                   TokenizerConfig)
from training import checkpoint

STAGES = {'tokenizer': (Tokenizer, TokenizerConfig), 'latent_actions': (LatentActionModel, LatentActionConfig),
          'dynamics': (Dynamics, DynamicsConfig)}


def load_stage(out_dir, stage, device):
    """The best model of a stage, rebuilt from its checkpoint alone, frozen, in eval mode; and what else the checkpoint says
    (iter, config, parents ...) with the `id` of the weights. Raises checkpoint.CheckpointError."""
    ckpt = checkpoint.best(os.path.join(out_dir, stage), stage)
    weights = checkpoint.weights(ckpt)
    Model, Config = STAGES[stage]
    try:
        model = Model(Config(**ckpt['model_args']))
        model.load_state_dict(weights)
    except (TypeError, ValueError, RuntimeError) as e:       # another version's network; sizes that do not go together
        raise checkpoint.CheckpointError(ckpt['path'], f'found weights of another network than {stage}.py makes now: {str(e).splitlines()[0][:100]}',
                                         f'go back to the version that trained it, or train it again: python {stage}.py config/NAME.py') from e
    about = {k: v for k, v in ckpt.items() if k not in ('model', 'ema', 'optimizer')}
    return model.to(device).eval().requires_grad_(False), {**about, 'id': checkpoint.weights_id(weights)}


def load_world(out_dir, dataset, device):
    """The stages that belong together: tokenizer, labeller (None if stage 3 did without stage 2), dynamics, and what the
    dynamics' checkpoint says; and the recording `dataset` to start from. Raises checkpoint.CheckpointError, also when an earlier
    stage was trained again since: its tokens or actions would mean something else now. Raises data.DataError if the recording
    is no such as they were trained on."""
    dynamics, about = load_stage(out_dir, 'dynamics', device)
    parents = {stage: load_stage(out_dir, stage, device) for stage in about['parents']}
    checkpoint.expect(about, parents={stage: parent['id'] for stage, (_, parent) in parents.items()})
    tokenizer, n_actions = parents['tokenizer'][0], dynamics.config.n_actions
    recording = data.load(dataset, tokenizer.config.patch_size)
    found, expected = recording.frames.shape[1:3], (tokenizer.config.height, tokenizer.config.width)
    if found != expected:
        data.refuse(dataset, f'frames of {found}', f'{expected} as the tokenizer in {out_dir} was trained on', 'use its dataset, or train on this one')
    actions = recording.actions
    if about['config']['action_source'] == 'labels' and (actions is None or actions.ndim != 1 or actions.max() >= n_actions):
        data.refuse(dataset, 'no such "actions"', f'whole numbers below {n_actions} as the dynamics in {out_dir} was trained on',
                    'use its dataset, or train on this one')
    return tokenizer, parents['latent_actions'][0] if 'latent_actions' in parents else None, dynamics, about, recording


def taken_actions(source, labeller, clip, recording, picks):
    """The actions (B,T-1) that were really taken in the clips (B,T,C,H,W) that start at frames `picks` of the recording, as
    the dynamics was trained to hear them. source: its `action_source`."""
    if source == 'latent':
        return labeller.encode(clip)
    if source == 'labels':
        return torch.from_numpy(recording.actions[picks[:, None] + np.arange(clip.size(1) - 1)]).to(clip.device)
    return torch.zeros(len(clip), clip.size(1) - 1, dtype=torch.int64, device=clip.device)
