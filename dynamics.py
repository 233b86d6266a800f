"""
Stage 3: tokens + action -> the next frame's tokens, learned by masked prediction (MaskGIT).

    python dynamics.py                                 # the built-in game, any device
    torchrun --standalone --nproc_per_node=2 dynamics.py config/zelda.py      # two GPUs

Reads `dataset` (stage 3: and the best.pt of stages 1 and 2). Writes out_dir/<stage>/: ckpt_*.pt,
best.pt, log.csv, loss.png, status.json, samples/*.png. Errors that carry an exit_code end the run
in their own words, so no `try` is needed here. `--help` lists the settings.
"""
import datetime
import math
from dataclasses import asdict

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel as DDP

import configurator
import data
import pictures
from model import Block, Dynamics, DynamicsConfig, Optimizers, shard
from training import checkpoint, ranks
from training.folder import RunFolder
from training.guard import Guard
from training.runlog import RunLog
from world import Encoded

# -----------------------------------------------------------------------------
# config: the defaults are for the built-in game on two CPU cores

# data
dataset = 'data/tiny.h5'  # made by data.py
action_source = 'latent'  # 'latent' (stage 2), 'labels' (the dataset's own) or 'none'
seq_len = 3  # frames in a clip: seq_len - 1 of the past, and the next one
frame_stride = 1  # every how many frames of the recording
# model
n_layer = 4
n_head = 4
n_embd = 128
rare_share = 0.125  # of a batch, for each way to end: a new scene (2), a stop, a turn, a rare token
corrupt = 0.1  # up to this fraction of the past's tokens are replaced by random ones
# the picture
maskgit_steps = 8  # looks at a frame, at most
temperature = 0.5  # 0 = the most likely token
# training
max_iters = 7000  # updates
total_batch_size = 8  # clips an update, over all ranks and micro-batches
device_batch_size = 8  # clips a micro-batch, at most
learning_rate = 5e-3  # peak
warmup_iters = 50
init_from = 'scratch'  # (an earlier run is moved aside), 'resume', or 'auto': resume if it can
allow_change = ''  # keys, with commas between, that a resumed run may change all the same
on_diverge = 'stop'  # or 'rollback': on from best.pt at half the rate, at most twice
optimizer = 'muon'  # 'muon' (hidden matrices; AdamW for the rest) or 'adamw'
min_lr_frac = 0.05  # of the peak, at the end of the cosine
weight_decay = 0.0
grad_clip = 1.0  # 0 = off
# evaluation, log, output
out_dir = 'out/tiny'
eval_interval = 1000  # updates between evaluations, each with a picture and a checkpoint
eval_iters = 64  # held-out batches
log_interval = 50
save_seconds = 600  # a checkpoint at least this often
keep_checkpoints = 3  # newest ones, besides best.pt
wandb_log = False
wandb_project = 'nanoworlds'
# system
seed = 0
device = 'auto'  # 'auto', 'cpu', 'cuda', 'mps'
dtype = 'float32'  # 'float32', 'bfloat16', 'float16'
compile = False  # torch.compile; on a CPU it needs a C++ compiler
activation_checkpointing = False  # compute what is inside the blocks twice instead of keeping it
fsdp = False  # share out weights and optimizer over the ranks: for models beyond one card
ddp_timeout = 300  # seconds that a rank waits for the others
config = configurator.apply(__file__, globals())
stage = 'dynamics'

# -----------------------------------------------------------------------------
# distributed setup

ddp, rank, local_rank, world_size, _ = configurator.processes()  # as torchrun says
master_process = rank == 0
device = configurator.find_device(device, local_rank if ddp else None)
device_type = device.split(':')[0]
device_batch_size, grad_accum_steps = ranks.share_out(total_batch_size, device_batch_size,
                                                      world_size)
ranks.set_up_device(device)
if ddp:
    backend = 'nccl' if device_type == 'cuda' else 'gloo'
    dist.init_process_group(backend, timeout=datetime.timedelta(seconds=ddp_timeout))
ctx = torch.autocast(device_type, getattr(torch, dtype), enabled=dtype != 'float32')
torch.manual_seed(seed)  # the same initial weights on every rank
folder = RunFolder(out_dir, stage, device)  # nobody else may train in it

# -----------------------------------------------------------------------------
# data: the tokens and actions that the earlier stages make of the recording

with ranks.master_first():  # rank 0 decodes the file, once
    recording = data.load(dataset, None, master_process, out_dir)
starts = {s: data.windows(recording, s, seq_len, frame_stride) for s in ('train', 'val')}
encoded = Encoded(recording, out_dir, action_source, frame_stride, ctx, dtype, device)
tokenizer, n_actions = encoded.tokenizer, encoded.n_actions
rare = encoded.rare_ends(starts['train'], seq_len)


def get_batch(split, it, micro_step):
    """(tokens, actions) of this rank's share. Batch `it` is the same for any number of ranks."""
    picks = data.draw(starts[split], total_batch_size, seed, split == 'val', it)
    if split == 'train':
        data.mix_in(picks, rare, rare_share * total_batch_size, seed, it)
    share = (micro_step * world_size + rank) * device_batch_size
    return encoded.gather(picks[share:share + device_batch_size], seq_len)


# -----------------------------------------------------------------------------
# model, and its picture

grid_width = tokenizer.config.width // tokenizer.config.patch_size
model = Dynamics(DynamicsConfig(tokenizer.vocab_size, tokenizer.n_tokens, grid_width, n_actions,
                                seq_len, n_layer, n_head, n_embd, corrupt)).to(device)
chance = math.log(tokenizer.vocab_size)  # nats: the loss of a guess
about = dict(stage=stage, config=config, model_args=asdict(model.config),
             data_id=recording.data_id, parents=encoded.parents,
             action_names=encoded.action_names(action_source), idle=encoded.idle)
apart = [model]  # what is trained apart is clipped apart


@torch.no_grad()
def picture():
    """What followed a held-out context above, what is imagined below, with the same actions."""
    picks, length = encoded.held_out(4, seq_len, seq_len - 1 + 8, seed)
    tokens, actions = encoded.gather(picks, length)
    generator = torch.Generator(device).manual_seed(seed)
    with ctx:
        dream = raw_model.generate(tokens[:, :seq_len - 1], actions, maskgit_steps, temperature,
                                   generator)
        dream = pictures.to_uint8(tokenizer.decode(dream))
    truth = pictures.to_uint8(data.clips(encoded.frames, picks, length, frame_stride, device))
    rows = [row for pair in zip(truth, dream) for row in pair]
    return pictures.grid(rows, labels=['truth', 'imagined'] * len(picks))


# -----------------------------------------------------------------------------
# optimizer, resume, compile, DDP

raw_model = model
n_parameters = sum(p.numel() for p in model.parameters())
ranks.expect_same_start(about, checkpoint.weights_id(model.state_dict()), device)
Block.recompute = activation_checkpointing
if fsdp:
    shard(model, device_type)
optimizers = Optimizers(model, optimizer, learning_rate, weight_decay)
parts = [list(m.parameters()) for m in apart]
scaler = torch.amp.GradScaler(device_type, enabled=dtype == 'float16')
guard = Guard(max_iters, chance)
trained = raw_model, optimizers, scaler, guard  # what a checkpoint saves and a resumed run restores
iter_start = 0
if folder.goes_on(init_from):
    iter_start = checkpoint.resume(folder.path, about, allow_change, device, *trained)
if compile:
    ranks.compile_if_it_works(model, ctx, get_batch('train', 0, 0))
if ddp and not fsdp:
    device_ids = [local_rank] if device_type == 'cuda' else None
    model = DDP(model, device_ids=device_ids, forward_sync_buffers=False,
                find_unused_parameters=len(parts) > 1)

# -----------------------------------------------------------------------------
# evaluation, learning rate, order of the batches


@torch.no_grad()
def estimate_loss():
    """Means over the same held-out batches and masks each time; every rank evaluates its share."""
    raw_model.eval()
    total = 0
    for i in range(eval_iters):
        for micro_step in range(grad_accum_steps):
            torch.manual_seed(data.key_seed(seed, 1, i, micro_step * world_size + rank))
            batch = get_batch('val', i, micro_step)
            with ctx:
                loss, metrics = raw_model(*batch)
            total = total + torch.stack([loss, *metrics.values()]).float()
    raw_model.train()
    means = ranks.all_mean(total / eval_iters / grad_accum_steps).tolist()
    val = {f'val_{name}': mean for name, mean in zip(['loss', *metrics], means)}
    if 'val_shuffled_loss' in val:
        val['val_shuffled_ratio'] = val['val_shuffled_loss'] / max(val['val_loss'], 1e-9)
    return val


def get_lr(it):
    """Linear warmup, then a cosine down to min_lr_frac of the peak at max_iters."""
    if it <= warmup_iters:
        return learning_rate * it / warmup_iters
    progress = min(1, (it - warmup_iters) / max(1, max_iters - warmup_iters))
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return learning_rate * (min_lr_frac + (1 - min_lr_frac) * cosine)


def batches_after(it):
    """The micro-batches of the updates after `it`; others after a rollback."""
    while True:
        it += 1
        for micro_step in range(grad_accum_steps):
            yield get_batch('train', it + guard.rollbacks * max_iters, micro_step)


# -----------------------------------------------------------------------------
# training loop

n_windows = {split: len(s) for split, s in starts.items()}
run = RunLog(about, folder, iter_start, n_windows, n_parameters, chance)
run.begin(iter_start, estimate_loss())  # before the first update: a mistake in it shows at once
it = iter_start
batches = batches_after(it)
batch = next(batches)
while it < max_iters and run.state == 'running':
    it += 1
    lr = guard.rate * get_lr(it)
    for group in optimizers.param_groups:
        group['lr'] = lr
    sums = 0
    for micro_step in range(grad_accum_steps):
        # the seed depends on the update alone, so a resumed run draws what an unbroken one would
        torch.manual_seed(data.key_seed(seed, 0, it, micro_step * world_size + rank))
        if ddp and not fsdp:  # the ranks average their gradients once an update
            model.require_backward_grad_sync = micro_step == grad_accum_steps - 1
        with ctx:
            loss, metrics = model(*batch)
        scaler.scale(loss / grad_accum_steps).backward()
        sums = sums + torch.stack([loss, *metrics.values()]).detach().float()
        batch = next(batches)  # is read and sent off while the GPU still computes
    scaler.unscale_(optimizers)
    norms = [torch.nn.utils.clip_grad_norm_(part, grad_clip or math.inf) for part in parts]
    grad_norm = ranks.norm_of_all(norms, device)

    # all that the ranks decide by, in one small all-reduce; the only time that the host waits for
    # the GPU (float16 asks again). The loss is the undivided mean over ranks and micro-batches
    wishes = torch.tensor(run.wishes()).to(sums, non_blocking=True)
    agreed = ranks.all_mean(torch.cat([sums / grad_accum_steps, grad_norm[None], wishes]))
    *means, grad_norm, sigterm, sigint, save_due = agreed.tolist()
    if math.isfinite(grad_norm):
        scaler.step(optimizers)
    elif scaler.get_scale() <= 1:  # float16 lowers its scale first
        run.say(f'iter {it}: the gradient is not finite; update skipped')
        run.stop_if(guard.check_gradient(it), 'nonfinite')
    scaler.update()
    optimizers.zero_grad(set_to_none=True)
    run.count(means)
    if math.isfinite(means[0]):
        run.stop_if(guard.check_update(means[0]), 'diverged')
    run.obey(sigterm, sigint)

    # every now and then: log, evaluate, save, go back
    evaluating = it % eval_interval == 0 or it == max_iters
    saving = evaluating or save_due or run.state == 'interrupted'
    if it % log_interval and not saving and run.state == 'running':
        continue
    row, val, best = run.row(it, lr, grad_norm, metrics), {}, False
    if evaluating:
        val = estimate_loss()
        best = guard.is_best(val['val_loss'], it)
        run.stop_if(guard.check_evaluation(val['val_loss']), 'diverged')
    run.log(row, val, best, raw_model.warnings(val) if val else [])
    if saving:
        state = checkpoint.snapshot(*trained)  # by every rank: with fsdp each holds a part
        ranks.expect_same_weights(checkpoint.weights_id(state['model']), stage, it, device)
        if master_process:
            with run.surviving_disk_trouble(it):
                ckpt = dict(about, iter=it, metrics={**row, **val}, **state)
                checkpoint.save(folder.path, ckpt, keep_checkpoints, best)
        run.agree_on_save(it)
    if evaluating:
        run.save_picture(it, picture())  # drawn by every rank: fsdp takes all of them
    if run.state == 'diverged':
        has_best = checkpoint.make_best_the_newest(folder.path, stage)
        if has_best and on_diverge == 'rollback' and guard.rollbacks < 2:
            diverged_at, it = it, checkpoint.roll_back(folder.path, stage, *trained)
            run.rolled_back(diverged_at, it, guard.rate, guard.rollbacks)
            batches = batches_after(it)
            batch = next(batches)

run.finish(it, guard.best_loss, guard.best_iter)
if ddp:
    del model  # its threads outlive the group, and may abort the exit
    dist.destroy_process_group()
run.exit()
