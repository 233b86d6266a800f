"""
Stage 3: tokens + action -> next tokens. Trains the Dynamics of model.py on the tokens of stage 1 and the actions of stage 2
(or the dataset's own: --action_source=labels, or none).

    python dynamics.py                                                         # the built-in game, any device
    python dynamics.py config/tiny.py --max_iters=200 --device=cpu
    torchrun --standalone --nproc_per_node=2 dynamics.py config/zelda.py       # two GPUs
    torchrun --nnodes=2 --nproc_per_node=8 --node_rank=0 --master_addr=HOST --master_port=29500 dynamics.py config/zelda.py

Reads `dataset` and the best.pt of the earlier stages; writes out_dir/dynamics/: ckpt_*.pt, best.pt, log.csv, status.json,
samples/*.png (truth above, imagination below). `python dynamics.py --help` lists the settings.
"""
import csv
import datetime
import functools
import math
import os
import signal
import sys
import time
from dataclasses import asdict

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint as recompute

import configurator
import data
import diagnose
import files
import pictures
from model import Block, Dynamics, DynamicsConfig
from training import checkpoint
from world import load_stage

# -----------------------------------------------------------------------------
# config: the defaults are for the built-in game on two CPU cores

# data
dataset = 'data/tiny.h5'          # made by data.py
action_source = 'latent'          # 'latent' (stage 2), 'labels' (the dataset's own) or 'none'
seq_len = 3                       # frames in a clip: seq_len - 1 of the past, and the next one
frame_stride = 1                  # every how many frames of the recording
# model
n_layer = 4
n_head = 4
n_embd = 128
scene_share = 0.125               # of a batch: windows that end in a new scene; rare otherwise, and most of the error
corrupt = 0.1                     # up to this fraction of the past's tokens are replaced by random ones
# the picture
maskgit_steps = 8
temperature = 0.5                 # 0 = the most likely token
# training
init_from = 'scratch'             # 'scratch' (an earlier run is moved aside) or 'resume'
allow_change = ''                 # keys, with commas between, that may differ from those of the checkpoint that is resumed
on_diverge = 'stop'               # 'stop', or 'rollback': on from best.pt at half the rate, at most twice
dry_run = False                   # a few updates, what the whole run would need, and nothing written
max_iters = 7000                  # updates
total_batch_size = 8              # clips an update, over all ranks and micro-batches
device_batch_size = 8             # clips a micro-batch, at most
optimizer = 'muon'                # 'muon' (hidden matrices; AdamW for the rest) or 'adamw'
learning_rate = 5e-3              # peak
min_lr_frac = 0.05                # of the peak, at the end of the cosine
warmup_iters = 50
weight_decay = 0.0
grad_clip = 1.0                   # 0 = off
ema_decay = 0.0                   # averaged weights, evaluated and saved beside the raw ones; 0 = off
# evaluation, log, output
out_dir = 'out/tiny'
eval_interval = 1000              # updates between evaluations, each with a picture and a checkpoint
eval_iters = 64                   # held-out batches
log_interval = 50
save_seconds = 600                # a checkpoint at least this often
keep_checkpoints = 3              # newest ones, besides best.pt
wandb_log = False
wandb_project = 'nanoworlds'
# system
seed = 0
device = 'auto'                   # 'auto', 'cpu', 'cuda', 'mps'
dtype = 'float32'                 # 'float32', 'bfloat16', 'float16'
compile = False                   # torch.compile; on a CPU it needs a C++ compiler
activation_checkpointing = False  # compute what is inside the blocks twice instead of keeping it for the backward pass
fsdp = False                      # share out weights and optimizer over the ranks (FSDP2): for models beyond one card
ddp_timeout = 300                 # seconds that a rank waits for the others
config = configurator.apply(__file__, globals())
stage = 'dynamics'

# -----------------------------------------------------------------------------
# distributed setup

ddp = 'RANK' in os.environ        # started by torchrun
rank, local_rank, world_size, local_world_size = (
    int(os.environ.get(k, d)) for k, d in (('RANK', 0), ('LOCAL_RANK', 0), ('WORLD_SIZE', 1), ('LOCAL_WORLD_SIZE', 1)))
master_process = rank == 0
device = configurator.find_device(device)
device_type = device.split(':')[0]
if ddp and device_type == 'cuda':
    device = configurator.find_device(f'cuda:{local_rank}')
device_batch_size = min(device_batch_size, max(1, total_batch_size // world_size))
if total_batch_size % (device_batch_size * world_size):
    configurator.stop(2, f'config: total_batch_size={total_batch_size} is not a multiple of device_batch_size * processes\n'
                         f'found {device_batch_size} * {world_size}; change one of them')
grad_accum_steps = total_batch_size // (device_batch_size * world_size)
if fsdp and (not ddp or ema_decay):
    configurator.stop(2, f'config: fsdp=True: found {world_size} processes and ema_decay={ema_decay}\n'
                         'expected to be started by torchrun, and ema_decay=0.0; or use --fsdp=False')
if device_type == 'cpu':
    torch.set_flush_denormal(True)                          # numbers next to zero are slow
    if ddp:
        torch.set_num_threads(max(1, os.cpu_count() // local_world_size))    # torchrun leaves each rank with one
if device_type == 'cuda':
    torch.set_float32_matmul_precision('high')              # TF32
    torch.cuda.set_device(device)
if ddp:
    dist.init_process_group('nccl' if device_type == 'cuda' else 'gloo', timeout=datetime.timedelta(seconds=ddp_timeout))
ctx = torch.autocast(device_type, getattr(torch, dtype), enabled=dtype != 'float32')
torch.manual_seed(seed)                                     # the same initial weights on every rank

def keyed(*key):
    """A seed that is a function of the key alone, so that a resumed run draws what an unbroken one would."""
    return int(np.random.SeedSequence((seed, *key)).generate_state(1, np.uint64)[0] >> 1)

def all_mean(x):
    """The mean of a tensor over all ranks. (SUM: not every backend has AVG, and MAX and MIN drop NaN.)"""
    if ddp:
        dist.all_reduce(x)
    return x / world_size

def odd_ranks(*texts):
    """The ranks whose texts are not those of rank 0."""
    mine = torch.tensor(configurator.number(*texts), device=device)
    every = [torch.empty_like(mine) for _ in range(world_size)]
    if ddp:
        dist.all_gather(every, mine)
    return [r for r in range(world_size) if ddp and every[r] != every[0]]

# -----------------------------------------------------------------------------
# data

if ddp and not master_process:
    dist.barrier()                                          # the master decodes the file, once
try:
    recording = data.load(dataset, None, master_process)
    starts = {split: data.windows(recording, split, seq_len, frame_stride) for split in ('train', 'val')}
except data.DataError as e:
    configurator.stop(e.exit_code, e)
finally:
    if ddp and master_process:
        dist.barrier()
try:
    tokenizer, about = load_stage(out_dir, 'tokenizer', device)
    parents = {'tokenizer': about['id']}                    # ids of the weights that this stage builds on
    if action_source == 'latent':
        labeller, about = load_stage(out_dir, 'latent_actions', device)
        parents['latent_actions'] = about['id']
except checkpoint.CheckpointError as e:
    configurator.stop(4, e)
if recording.frames.shape[1:3] != (tokenizer.config.height, tokenizer.config.width):
    configurator.stop(4, f'{dataset} has frames of {recording.frames.shape[1:3]}, the tokenizer in {out_dir} was trained on '
                         f'{(tokenizer.config.height, tokenizer.config.width)}\ntrain the tokenizer again, or use its dataset')
if action_source == 'labels' and (recording.actions is None or recording.actions.ndim != 1 or frame_stride != 1):
    configurator.stop(3, f'{dataset}: action_source=labels needs whole-number "actions" in the file, and frame_stride=1\n'
                         'use --action_source=latent')
n_actions = labeller.n_actions if action_source == 'latent' else int(recording.actions.max()) + 1 if action_source == 'labels' else 1
frames, dataset_id = recording.frames, recording.data_id
if tokenizer.config.temporal:                               # else they are looked at once, and the GPU has better things to hold
    frames = data.to_device(frames, device)

@torch.no_grad()
def tokens_of(picks):
    """Frames (n,) -> their tokens (n,N)."""
    with ctx:
        return tokenizer.encode(data.clips(frames, picks, 1, 1, device))[:, 0].cpu().numpy().astype(token_type)

@torch.no_grad()
def actions_of(picks):
    """Frames (n,) -> the action that follows each. (Across a cut, or after the end, it is nonsense; no window holds one.)"""
    with ctx:
        pairs = data.clips(frames, np.minimum(picks, len(frames) - 1 - frame_stride), 2, frame_stride, device)
        return labeller.encode(pairs)[:, 0].cpu().numpy().astype(np.int32)

def once(name, compute, *key):
    """What compute says of every frame: asked once, by all ranks, and found in out_dir/cache by later runs with the same key."""
    path = os.path.join(out_dir, 'cache', f'{name}_{configurator.number(dataset_id, dtype, *map(str, key)):015x}.npy')
    try:
        return data.cached(path, len(frames), compute, rank, world_size, dist.barrier if ddp else None)
    except (data.DataError, files.DiskError) as e:
        configurator.stop(e.exit_code, e)

token_type = np.int16 if tokenizer.vocab_size <= 2 ** 15 else np.int32
tokens_cache = once('tokens', tokens_of, parents['tokenizer'])
if action_source == 'latent':
    actions_cache = once('actions', actions_of, parents['latent_actions'], frame_stride)
else:
    actions_cache = recording.actions.astype(np.int32) if action_source == 'labels' else np.zeros(len(frames), np.int32)
all_tokens, all_actions = (data.to_device(x, device) for x in (tokens_cache, actions_cache))

def gather(picks, length):
    """tokens (B,length,N) and actions (B,length-1) of the windows that start at picks."""
    index = picks[:, None] + np.arange(length) * frame_stride
    if tokenizer.config.temporal:                           # its tokens depend on the frames before: nothing to look up
        with torch.no_grad(), ctx:
            tokens = tokenizer.encode(data.clips(frames, picks, length, frame_stride, device))
    else:
        tokens = data.rows(all_tokens, index, device).long()
    return tokens, data.rows(all_actions, index[:, :-1], device).long()

changes = (tokens_cache[frame_stride:] != tokens_cache[:-frame_stride]).sum(1)      # tokens, from each frame to the next
new_scene = starts['train'][changes[starts['train'] + (seq_len - 2) * frame_stride] > tokenizer.n_tokens / 2]

def get_batch(split, it, micro_step):
    """(tokens, actions) of this rank's share. The whole batch is a function of (seed, split, it), whatever the number of ranks."""
    share = (micro_step * world_size + rank) * device_batch_size
    picks = data.draw(starts[split], total_batch_size, seed, split == 'val', it)
    n = int(scene_share * total_batch_size)
    if split == 'train' and n and len(new_scene):
        picks[:n] = data.draw(new_scene, n, seed, 2, it)
    return gather(picks[share:share + device_batch_size], seq_len)

# -----------------------------------------------------------------------------
# model

def name_actions():
    """What each action is called, where the dataset says: the label of three quarters of its transitions in which something changed.
    Two actions of one name are told apart by number, the more frequent first; '' for a rare one or a mixture of labels.
    For the keys of those who play and for eval.py; no weight is trained on it."""
    names = [''] * n_actions
    if recording.actions is not None and recording.actions.ndim == 1 and frame_stride == 1 and action_source != 'none':
        t = data.windows(recording, 'train', 2)
        t = t[changes[t] > 0]
        counts = np.zeros((n_actions, int(recording.actions.max()) + 1), int)
        np.add.at(counts, (actions_cache[t], recording.actions[t]), 1)
        words = recording.action_names or [str(i) for i in range(counts.shape[1])]
        used = []
        for action in counts.max(1).argsort()[::-1]:
            word, most = words[counts[action].argmax()], counts[action].max()
            if most > max(0.75 * counts[action].sum(), 0.005 * counts.sum()):
                names[action] = f'{word} {used.count(word) + 1}' if word in used else word
                used.append(word)
    return names

grid_width = tokenizer.config.width // tokenizer.config.patch_size
model = Dynamics(DynamicsConfig(tokenizer.vocab_size, tokenizer.n_tokens, grid_width, n_actions, seq_len,
                                n_layer, n_head, n_embd, corrupt)).to(device)
notes = dict(action_names=name_actions())                   # what else its checkpoints say
chance = math.log(tokenizer.vocab_size)                     # nats: the loss of a guess

# -----------------------------------------------------------------------------
# picture

@torch.no_grad()
def picture(path, model):
    """What followed a held-out context above, what the model imagines below, with the same actions."""
    length = seq_len - 1 + 8
    try:
        picks = data.draw(data.windows(recording, 'val', length, frame_stride), 4, seed)
    except data.DataError:                                  # the held-out episodes are shorter than that
        length, picks = seq_len, data.draw(starts['val'], 4, seed)
    tokens, actions = gather(picks, length)
    model.eval()
    with ctx:
        dream = model.generate(tokens[:, :seq_len - 1], actions, maskgit_steps, temperature, torch.Generator(device).manual_seed(seed))
        clip, dream = data.clips(frames, picks, length, frame_stride, device), tokenizer.decode(dream)
    raw_model.train()
    rows = [pictures.to_uint8(x[i]) for i in range(len(picks)) for x in (clip, dream)]
    pictures.save_png(path, pictures.grid(rows, labels=['truth', 'imagined'] * len(picks)))

# -----------------------------------------------------------------------------
# resume, optimizer, compile, DDP

run_dir = os.path.join(out_dir, stage)
odd = odd_ranks(configurator.digest(config), dataset_id, *parents.values(), checkpoint.weights_id(model.state_dict()))
if odd:
    configurator.stop(2, f'{stage}: found ranks {odd} with other settings, data or initial weights than rank 0\n'
                         'expected the same on all: start every rank with the same command, files and version of torch')
# what the divergence guard knows; in every checkpoint, or a job that restarts every few hundred updates would never trip it
guard = dict(best_loss=math.inf, best_iter=0, ema=0.0, seen=0, best_ema=math.inf, above_best=0, above_chance=0, bad_evals=0,
             skipped=[], rate=1.0, rollbacks=0)
iter_start, ckpt = 0, None
if init_from == 'resume':
    try:
        if master_process:                                  # the master chooses, all load the same file
            iter_start = checkpoint.latest(run_dir, stage)['iter']
        if ddp:
            iter_start = torch.tensor(iter_start, device=device)
            dist.broadcast(iter_start, 0)
            iter_start = iter_start.item()
        ckpt = checkpoint.load(os.path.join(run_dir, checkpoint.file_name(iter_start)), stage)
        checkpoint.expect(ckpt, model_args=asdict(model.config), data_id=dataset_id, parents=parents)
        altered = checkpoint.expect_config(ckpt, config, allow_change.split(','))
    except checkpoint.CheckpointError as e:
        configurator.stop(4, e)
    if master_process:
        print(f'resume: {ckpt["path"]} (iter {iter_start}, loss {ckpt["metrics"].get("loss", math.nan):.4f})' + ''.join(f'; {c}' for c in altered))

blocks = [m for m in model.modules() if isinstance(m, Block)]
n_parameters = sum(p.numel() for p in model.parameters())
if fsdp:
    from torch.distributed.fsdp import fully_shard          # two seconds
    mesh = dist.init_device_mesh(device_type, (world_size,))             # (of a GPU by default, where there is one)
    for m in (*blocks, model):                              # a block's weights are gathered when it is their turn
        fully_shard(m, mesh=mesh)
hidden = {name: p for name, p in model.named_parameters() if optimizer == 'muon' and 'blocks.' in name and p.ndim == 2}
rest = [p for name, p in model.named_parameters() if name not in hidden]
optimizers = [torch.optim.AdamW(rest, learning_rate, betas=(0.9, 0.95), weight_decay=weight_decay, fused=True)]
if hidden:                                                  # updates as large as AdamW's: one learning_rate for both
    optimizers.append(torch.optim.Muon(hidden.values(), learning_rate, weight_decay=weight_decay, adjust_lr_fn='match_rms_adamw'))
scaler = torch.amp.GradScaler(device_type, enabled=dtype == 'float16')
ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(ema_decay)) if ema_decay else None
raw_model, eval_model = model, ema.module if ema else model

def restore(ckpt):
    """Weights, optimizer and guard as they were; the learning rate is a function of the iteration and not restored."""
    checkpoint.load_weights(raw_model, ckpt['model'])
    for o, state in zip(optimizers, ckpt['optimizer']):
        checkpoint.load_optimizer(o, state)
    if ckpt['scaler']:                                      # none if it was not float16 then
        scaler.load_state_dict(ckpt['scaler'])
    guard.update(ckpt['guard'])
    if ema:
        ema.module.load_state_dict(ckpt['ema'] or ckpt['model'])
        ema.n_averaged.fill_(1)                             # or the first update would copy the raw weights over

if activation_checkpointing:
    for m in blocks:
        m.forward = functools.partial(recompute, m.forward, use_reentrant=False)
if compile:
    model.compile()                                         # in place: the names in state_dict stay as they are
    problem = ''
    batch = get_batch('train', 0, 0)
    try:                                                    # it is lazy: forward and backward fail at their first call
        with ctx:
            loss, _ = model(*batch)
        loss.backward()
        if not all(p.grad is None or p.grad.isfinite().all() for p in model.parameters()):
            problem = 'found gradients that are not finite'
    except Exception as e:                                  # whatever a compiler raises
        problem = f'{type(e).__name__}: {str(e).strip().splitlines()[0][:120]}'
    model.zero_grad(set_to_none=True)
    if all_mean(torch.tensor(float(bool(problem)), device=device)):     # on any rank: all of them do without
        model._compiled_call_impl = None
        if problem:
            print(f'{stage}: compile failed ({problem}); training goes on without it', flush=True)
if ckpt:                                                    # after that trial, which may have moved running statistics
    restore(ckpt)
    del ckpt                                                # frees the memory
if ddp and not fsdp:
    model = DDP(model, device_ids=[local_rank] if device_type == 'cuda' else None, forward_sync_buffers=False)

# -----------------------------------------------------------------------------
# evaluation

@torch.no_grad()
def estimate_loss():
    """Means over the same held-out batches with the same masks each time; every rank evaluates its share."""
    eval_model.eval()
    total = 0
    for i in range(eval_iters):
        for micro_step in range(grad_accum_steps):
            torch.manual_seed(keyed(1, i, micro_step * world_size + rank))
            batch = get_batch('val', i, micro_step)
            with ctx:
                loss, metrics = eval_model(*batch)
            total = total + torch.stack([loss, *metrics.values()]).float()
    raw_model.train()
    means = all_mean(total / eval_iters / grad_accum_steps).tolist()
    val = dict(zip(['val_loss', *('val_' + k for k in metrics)], means))
    if 'val_shuffled_loss' in val:
        val['val_shuffled_ratio'] = val['val_shuffled_loss'] / max(val['val_loss'], 1e-9)
    return val

# -----------------------------------------------------------------------------
# learning-rate schedule

def get_lr(it):
    """Linear warmup, then a cosine down to min_lr_frac of the peak at max_iters. A function of `it` alone."""
    if it <= warmup_iters:
        return learning_rate * it / warmup_iters
    progress = min(1, (it - warmup_iters) / max(1, max_iters - warmup_iters))
    return learning_rate * (min_lr_frac + (1 - min_lr_frac) * 0.5 * (1 + math.cos(math.pi * progress)))

# -----------------------------------------------------------------------------
# divergence guard

def diverging(loss):
    """Takes the loss of an update, undivided and over all ranks; returns the rule that the run breaks, or ''."""
    guard['seen'] += 1
    guard['ema'] += (loss - guard['ema']) / min(200, guard['seen'])      # at first a plain mean, so no bias to correct
    if guard['seen'] <= min(1000, max_iters // 50):
        return ''
    guard['best_ema'] = min(guard['best_ema'], guard['ema'])
    guard['above_best'] = guard['above_best'] + 1 if guard['ema'] > 1.3 * guard['best_ema'] else 0
    guard['above_chance'] = guard['above_chance'] + 1 if chance and guard['ema'] > 1.05 * chance else 0
    if guard['above_chance'] >= 500:
        return f'the mean loss {guard["ema"]:.4f} was above chance, {chance:.4f}, for 500 updates'
    if guard['above_best'] >= 500:
        return f'the mean loss {guard["ema"]:.4f} was 1.3 times its best, {guard["best_ema"]:.4f}, for 500 updates'
    return ''

def worse(val_loss):
    """The same for an evaluation."""
    guard['bad_evals'] = guard['bad_evals'] + 1 if val_loss > 1.5 * guard['best_loss'] else 0
    if guard['bad_evals'] >= 3:
        return f'the held-out loss {val_loss:.4f} was 1.5 times its best, {guard["best_loss"]:.4f}, in 3 evaluations running'
    return ''

# -----------------------------------------------------------------------------
# training loop

log_path = os.path.join(run_dir, 'log.csv')
need = 4 * 12 * n_parameters                                # bytes: four checkpoints, each weights and two moments in float32
if master_process and not dry_run:
    try:
        checkpoint.open_run(run_dir, iter_start if init_from == 'resume' else None, need)
    except files.DiskError as e:
        configurator.stop(7, e)
    if wandb_log:
        import wandb
        wandb.init(project=wandb_project, name=f'{out_dir}/{stage}', config=config)
    checkpoint.write_status(run_dir, state='running', iter=iter_start)
if master_process:
    print(f'{stage}: {n_parameters:,} parameters on {world_size} x {device} in {dtype}, '
          f'{len(starts["train"]):,} windows to train on, {len(starts["val"]):,} held out, {total_batch_size} an update')
    passes = max_iters * total_batch_size / len(starts['train'])
    if passes > 100:
        print(f'  warning: the run will see each window {passes:.0f} times; it may learn the recording by heart. Record more, or lower max_iters')
    if device_type == 'cuda' and local_world_size < torch.cuda.device_count():
        print(f'  warning: {local_world_size} of {torch.cuda.device_count()} GPUs in use; '
              f'torchrun --standalone --nproc_per_node={torch.cuda.device_count()} {stage}.py uses all')

signals = []                                                # acted upon after the update
for s in (signal.SIGTERM, signal.SIGINT):
    signal.signal(s, lambda number, frame: signals.append(number))

it, state, reason, term, failed_saves, saved_iter, window, batch = iter_start, '', '', 0, 0, iter_start, [], None
val_columns = estimate_loss()                               # before the first update: a mistake in it shows at once
if master_process:
    print(f'iter {it}/{max_iters} | ' + ' | '.join(f'{k} {v:.4g}' for k, v in val_columns.items()), flush=True)
t_start = t_log = t_saved = time.time()
while it < max_iters and not state:
    it += 1
    lr = guard['rate'] * get_lr(it)
    for o in optimizers:
        for group in o.param_groups:
            group['lr'] = lr
    sums = 0
    for micro_step in range(grad_accum_steps):
        batch = batch or get_batch('train', it + guard['rollbacks'] * max_iters, micro_step)     # after a rollback: other batches
        torch.manual_seed(keyed(0, it, micro_step * world_size + rank))
        last = micro_step == grad_accum_steps - 1           # gradients meet once an update
        if fsdp:
            model.set_requires_gradient_sync(last)
        elif ddp:
            model.require_backward_grad_sync = last
        with ctx:
            loss, metrics = model(*batch)
        loss = checkpoint.fault(it, loss, raw_model)        # for the tests
        scaler.scale(loss / grad_accum_steps).backward()
        sums = sums + torch.stack([loss, *metrics.values()]).detach().float()
        # the next one is read and sent off while the GPU still computes
        batch = get_batch('train', it + last + guard['rollbacks'] * max_iters, 0 if last else micro_step + 1)
    for o in optimizers:
        scaler.unscale_(o)
    grad_norm = torch.nn.utils.clip_grad_norm_(raw_model.parameters(), grad_clip or math.inf)
    grad_norm = grad_norm.full_tensor() if fsdp else grad_norm

    # one small all-reduce an update, and the only time that the host waits for the GPU: what all ranks decide by. The norm
    # and the loss, was any told to stop, is it time to save
    flags = [signal.SIGTERM in signals, signal.SIGINT in signals, master_process and time.time() - t_saved > save_seconds]
    known = torch.cat([sums / grad_accum_steps, grad_norm[None], torch.tensor(flags).to(sums, non_blocking=True)])
    *means, grad_norm, term, interrupt, overdue = all_mean(known).tolist()
    if math.isfinite(grad_norm):
        for o in optimizers:
            scaler.step(o)
        if ema:
            ema.update_parameters(raw_model)
    elif scaler.get_scale() <= 1:                           # float16 lowers its scale first
        guard['skipped'] = [i for i in guard['skipped'] if i > it - 1000] + [it]
        if master_process:
            print(f'iter {it}: the gradient is not finite; update skipped', flush=True)
        if len(guard['skipped']) >= 10 or guard['skipped'][-3:] == [it - 2, it - 1, it]:
            state, reason = 'nonfinite', f'gradients were not finite in updates {guard["skipped"]}\nlower learning_rate; --init_from=resume'
    scaler.update()
    for o in optimizers:
        o.zero_grad(set_to_none=True)
    if math.isfinite(means[0]):
        window.append(means)
        reason = reason or diverging(means[0])
        state = state or 'diverged' * bool(reason)
    state = state or 'interrupted' * bool(term or interrupt)

    # what follows happens at log lines: log, evaluate, save, go back
    evaluating = it % eval_interval == 0 or it == max_iters
    saving = evaluating or overdue or state == 'interrupted'
    if dry_run:
        if it == min(iter_start + 4, max_iters):
            break
        if it == iter_start + 1:
            t_log, window = time.time(), []                 # the first update also warms up
        continue
    if it % log_interval and not saving and not state:
        continue
    now, n = time.time(), max(1, len(window))
    dt, eta = (now - t_log) / n, (now - t_start) / (it - iter_start) * (max_iters - it)   # seconds an update, seconds to go
    means = np.mean(window, 0).tolist() if window else [math.nan] * len(means)
    row = dict(iter=it, runtime=round(now - t_start, 2), loss=means[0], lr=lr, grad_norm=grad_norm, **dict(zip(metrics, means[1:])))
    window, val, best = [], {}, False
    if saving:                                              # with fsdp the ranks put them together
        weights, moments = checkpoint.whole(raw_model.state_dict()), [checkpoint.whole(o.state_dict()) for o in optimizers]
    odd = saving and odd_ranks(checkpoint.weights_id(weights))
    if odd:                                                 # gradients would be averaged over strangers
        configurator.stop(1, f'{stage}: found other weights on ranks {odd} than on rank 0 at iter {it}, expected the same\n'
                             'nothing was saved; --init_from=resume goes back to the last checkpoint')
    if evaluating:
        val = estimate_loss()
        best = val['val_loss'] < guard['best_loss']
        if best:
            guard.update(best_loss=val['val_loss'], best_iter=it)
        if not state:
            reason = worse(val['val_loss'])
            state = 'diverged' * bool(reason)
    if master_process:
        line = f'iter {it}/{max_iters} | loss {means[0]:.4f}' + (f' (chance {chance:.3f})' if chance else '')
        line += ''.join(f' | {k} {row[k]:.3g}' for k in metrics) + f' | lr {lr:.1e} | norm {grad_norm:.2f} | {1000 * dt:.0f} ms'
        print(f'{line} | {total_batch_size * seq_len / dt:,.0f} frames/s | ETA {eta // 60:.0f}m{eta % 60:02.0f}s', flush=True)
        if val:
            print('  held out | ' + ' | '.join(f'{k} {v:.4g}' for k, v in val.items()) + ' | best' * best, flush=True)
            for sentence in raw_model.complaints(val):
                print(f'  warning: {sentence}', flush=True)
        logged = {**row, **(val or dict.fromkeys(val_columns, ''))}
        try:
            with open(log_path, 'a', newline='') as f:
                csv.writer(f).writerows([logged.keys(), logged.values()] if f.tell() == 0 else [logged.values()])
        except OSError as e:
            print(f'  warning: {log_path}: cannot be written: {e}', flush=True)
        if wandb_log:
            wandb.log({k: v for k, v in logged.items() if v != ''}, step=it)
    if saving:
        problem = 0
        if master_process:
            try:
                checkpoint.save(run_dir, dict(
                    stage=stage, iter=it, config=config, model_args=asdict(raw_model.config), model=weights,
                    ema=ema.module.state_dict() if ema else None, optimizer=moments,
                    scaler=scaler.state_dict(), guard=dict(guard), metrics={**row, **val}, data_id=dataset_id, parents=parents,
                    **notes, world=dict(world_size=world_size, device=device_type, threads=torch.get_num_threads()),
                ), keep_checkpoints, best)
                checkpoint.write_status(run_dir, state='running', iter=it, saved_iter=it)
                if evaluating:
                    shown = eval_model
                    if fsdp:                                # whole again, for the master alone
                        shown = type(raw_model)(raw_model.config).to(device)
                        shown.load_state_dict(weights)
                    picture(os.path.join(run_dir, 'samples', f'{it:08d}.png'), shown)
            except files.DiskError as e:
                problem = 1
                print(f'{e}\ntraining goes on; the next try is at the next evaluation', flush=True)
            except checkpoint.CheckpointError as e:         # weights that are not finite, for one: never written
                problem = 2
                print(e, flush=True)
        problem = round(all_mean(torch.tensor(float(problem), device=device)).item() * world_size)
        failed_saves, saved_iter, t_saved = (failed_saves + 1, saved_iter, time.time()) if problem else (0, it, time.time())
        if problem == 2:
            state, reason = 'nonfinite', f'the weights of iter {it} are not fit to be saved; nothing was replaced\nlower learning_rate; --init_from=resume'
        elif failed_saves >= 3 or problem and (state or it == max_iters):
            state, reason = 'io_error', f'{failed_saves} checkpoints in a row could not be written, up to iter {it}'
    if state == 'diverged' and os.path.exists(os.path.join(run_dir, 'best.pt')):
        if master_process:
            checkpoint.go_back(run_dir, stage)              # best.pt is the newest now; later ones are called .diverged
        if ddp:
            dist.barrier()
        if on_diverge == 'rollback' and guard['rollbacks'] < 2:
            rate, rollbacks = guard['rate'] / 2, guard['rollbacks'] + 1
            ckpt = checkpoint.load(os.path.join(run_dir, 'best.pt'), stage)
            restore(ckpt)
            guard.update(rate=rate, rollbacks=rollbacks)
            if master_process:
                print(f'iter {it}: {reason}\nrollback {rollbacks} to iter {ckpt["iter"]} at {rate} times the learning rate', flush=True)
            it, state, reason, batch = ckpt['iter'], '', '', None
            del ckpt
    t_log = time.time()

minutes = (time.time() - t_start) / 60
best_path = os.path.join(run_dir, 'best.pt')
code = {'': 0, 'diverged': 5, 'nonfinite': 6, 'io_error': 7, 'interrupted': 143 if term else 130}[state]
if dry_run:
    if master_process:
        seconds = (time.time() - t_log) / max(1, len(window))
        peak = torch.cuda.max_memory_allocated() if device_type == 'cuda' else configurator.peak_memory()
        print(f'dry run: {1000 * seconds:.0f} ms an update, {seconds * max_iters / 60:.1f} minutes for {max_iters} of them; '
              f'memory at its peak {peak / 1e9:.2f} GB a rank\n'
              f'each window is seen {passes:.1f} times; four checkpoints need {need / 1e6:.0f} MB of the {files.free_space(run_dir) / 1e6:.0f} MB that are free\n'
              'nothing was written')
elif master_process:
    if not code:
        reason = f'{it} updates, {minutes:.1f} minutes, best held-out loss {guard["best_loss"]:.4f}; see {run_dir}'
    elif state == 'interrupted':
        reason = f'stopped by a signal and saved at iter {it}; --init_from=resume goes on'
    elif state == 'diverged':
        launch = f'torchrun --standalone --nproc_per_node={world_size}' if ddp else 'python'
        again = f'{launch} {stage}.py {" ".join(sys.argv[1:])} --learning_rate={learning_rate / 2:g}'
        reason += (f'\ngo back to iter {guard["best_iter"]}: {again} --init_from=resume' if os.path.exists(best_path) else
                   f'\nno checkpoint was written before that; start anew: {again}')
    checkpoint.write_status(run_dir, state=state or 'done', iter=it, saved_iter=saved_iter, reason=reason, resume_from=best_path if state == 'diverged' else '')
    if wandb_log:
        wandb.finish()
    if not code:
        print(f'{stage}: {reason}')
    print(diagnose.verdict(log_path, round(math.exp(chance)) if chance else None, max_iters, getattr(raw_model, 'n_actions', None)))
if ddp:
    del model                                               # its threads outlive the group, and may abort the exit
    dist.destroy_process_group()
if code:
    configurator.stop(code, f'{stage}: {reason}')
