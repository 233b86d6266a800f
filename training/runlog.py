"""
What a run tells: console, log.csv, status.json, W&B, signals, and how it ends.

RunLog holds numbers and words, never a model, an optimizer or a batch, and it calls nothing back:
what is trained stands in the scripts.
"""
import contextlib
import csv
import json
import math
import os
import re
import signal
import sys
import time

import numpy as np
import torch

import configurator
import pictures
from files import DiskError, free_space, replacing
from training import checkpoint, ranks

EXIT_CODES = {'done': 0, 'diverged': 5, 'nonfinite': 6, 'io_error': 7, 'interrupted': 130}
LEFT_BY_A_KILLED_PROCESS = (r'(ckpt_\d+\.pt|best\.pt|status\.json|log\.csv|loss\.png'
                            r'|samples.\d+\.png)\.tmp\d+')


def open_folder(folder, iter, disk_need):
    """
    Makes the folder of a run ready. iter: None for a new run (an earlier one is moved aside), or
    where it goes on: log.csv is cut there, for what follows will happen again. disk_need: bytes for
    its checkpoints. For the master process only. Raises DiskError if the folder cannot be written
    or has less room; then all is as it was.
    """
    log = os.path.join(folder, 'log.csv')
    free = free_space(folder)
    if free < disk_need:
        raise DiskError(f'{folder}: found {free / 1e6:.0f} MB free, expected '
                        f'{disk_need / 1e6:.0f} MB for four checkpoints\n'
                        'make room, or use another --out_dir')
    try:
        if iter is None and os.path.exists(folder):
            k = 1
            while os.path.exists(f'{folder}.{k}'):
                k += 1
            os.rename(folder, f'{folder}.{k}')
            print(f'moved the earlier run to {folder}.{k}')
        samples = os.path.join(folder, 'samples')
        os.makedirs(samples, exist_ok=True)
        for name in os.listdir(folder) + [os.path.join('samples', n) for n in os.listdir(samples)]:
            if re.fullmatch(LEFT_BY_A_KILLED_PROCESS, name):
                os.remove(os.path.join(folder, name))
        if os.path.exists(log):
            cut_log(log, iter)
    except OSError as e:
        raise DiskError(f'{folder}: cannot be written: {e}\n'
                        'use another --out_dir, or make it writable') from e


def cut_log(path, iter):
    """Leaves the rows up to iter that were written to their end."""
    with open(path, errors='replace') as f:
        lines = f.readlines()
    kept = lines[:1]
    for line in lines[1:]:
        first = line.split(',')[0]
        if line.endswith('\n') and first.isdecimal() and int(first) <= iter:
            kept.append(line)
    with replacing(path) as tmp, open(tmp, 'w') as f:
        f.writelines(kept)


def write_status(folder, **fields):
    """folder/status.json = fields (state, iter, saved_iter, reason ...). Under torchrun the exit
    code is always 1, so this file is how others learn the end of a run. Never raises for the disk:
    training matters more."""
    try:
        with replacing(os.path.join(folder, 'status.json')) as tmp, open(tmp, 'w') as f:
            f.write(json.dumps(fields, indent=1, default=str) + '\n')
    except DiskError as e:
        print(f'warning: status.json not written in {folder}: {e}', flush=True)


class RunLog:
    """
    The run as others see it. `state` is 'running' or, in the word of status.json, why not.

    about: what every checkpoint says of the run (stage, config ...). n_windows: of each split.
    chance: nats, the loss of a guess, or None. Raises DiskError if its folder cannot be made.
    """

    def __init__(self, about, iter_start, n_windows, n_parameters, chance, device):
        self.stage, self.config = about['stage'], about['config']
        self.chance, self.device = chance, device
        self.folder = os.path.join(self.config['out_dir'], self.stage)
        self.log_path = os.path.join(self.folder, 'log.csv')
        self.state, self.reason = 'running', ''
        self.signals = []  # received, and acted upon after the update
        self.sigterm = False
        self.saved_iter, self.failed_saves, self.trouble = iter_start, 0, ''
        self.window = []  # loss and metrics of the updates since the last row
        self.updates, self.metrics, self.val_columns, self.wandb = 0, [], [], None
        self.t_start = self.t_row = self.t_saved = time.time()
        self.seconds = self.eta = 0.0  # of an update; until the end
        self.model_args = about['model_args']
        self.master = ranks.rank() == 0
        if self.master:
            # W&B comes first: it may fail, and nothing has been moved yet
            if self.config['wandb_log']:
                import wandb
                name = f'{self.config["out_dir"]}/{self.stage}'
                self.wandb = wandb.init(project=self.config['wandb_project'], name=name,
                                        config=self.config)
            resumed = self.config['init_from'] == 'resume'
            disk_need = 4 * 12 * n_parameters  # four times weights and two moments in float32
            open_folder(self.folder, iter_start if resumed else None, disk_need)
            write_status(self.folder, state='running', iter=iter_start)
            self.introduce(n_windows, n_parameters)
        for s in (signal.SIGTERM, signal.SIGINT):
            signal.signal(s, lambda number, frame: self.signals.append(number))

    def say(self, text):
        """Prints on rank 0."""
        if self.master:
            print(text, flush=True)

    def introduce(self, n_windows, n_parameters):
        batch, world_size = self.config['total_batch_size'], ranks.world_size()
        self.say(f'{self.stage}: {n_parameters:,} parameters on {world_size} x {self.device} in '
                 f'{self.config["dtype"]}, {n_windows["train"]:,} windows to train on, '
                 f'{n_windows["val"]:,} held out, {batch} an update')
        passes = self.config['max_iters'] * batch / n_windows['train']
        if passes > 100:
            self.say(f'  warning: the run will see each window {passes:.0f} times; it may learn '
                     'the recording by heart. Record more, or lower max_iters')
        if self.device.startswith('cuda'):
            used, there = int(os.environ.get('LOCAL_WORLD_SIZE', 1)), torch.cuda.device_count()
            if used < there:
                self.say(f'  warning: {used} of {there} GPUs in use; torchrun --standalone '
                         f'--nproc_per_node={there} {self.stage}.py uses all')

    def begin(self, it, val):
        """The first evaluation, before any update: its clock starts here."""
        self.val_columns = list(val)
        numbers = ' | '.join(f'{k} {v:.4g}' for k, v in val.items())
        self.say(f'iter {it}/{self.config["max_iters"]} | {numbers}')
        self.t_start = self.t_row = self.t_saved = time.time()

    # -------------------------------------------------------------------------
    # in every update

    def wishes(self):
        """What this rank tells the others: was it told to stop, by SIGTERM or by SIGINT, and is it
        time to save?"""
        save_due = self.master and time.time() - self.t_saved > self.config['save_seconds']
        return [signal.SIGTERM in self.signals, signal.SIGINT in self.signals, save_due]

    def count(self, means):
        """An update was made. means: of its loss and metrics; left out where not finite."""
        self.updates += 1
        if math.isfinite(means[0]):
            self.window.append(means)

    def obey(self, sigterm, sigint):
        """A signal told some rank to stop: all save after this update, and end."""
        self.sigterm = bool(sigterm)
        self.stop_if('stopped by a signal' if sigterm or sigint else '', 'interrupted')

    def stop_if(self, reason, state):
        """Ends the run after this update if there is a reason; the first one stays."""
        if reason and self.state == 'running':
            self.state, self.reason = state, reason

    # -------------------------------------------------------------------------
    # in every log_interval

    def row(self, it, lr, grad_norm, metrics):
        """The row of log.csv: means over the updates since the last row."""
        now = time.time()
        self.seconds = (now - self.t_row) / max(1, len(self.window))  # an update
        self.eta = (now - self.t_start) / self.updates * (self.config['max_iters'] - it)
        means = [math.nan] * (1 + len(metrics))
        if self.window:
            means = np.mean(self.window, 0).tolist()
        self.window, self.metrics = [], list(metrics)
        return dict(iter=it, runtime=round(now - self.t_start, 2), loss=means[0], lr=lr,
                    grad_norm=grad_norm, **dict(zip(metrics, means[1:])))

    def log(self, row, val, best, warnings):
        """Prints a row and, if there was one, its evaluation; log.csv and W&B get the same."""
        if self.master:
            self.print_row(row, val, best, warnings)
            self.write_row({**row, **(val or dict.fromkeys(self.val_columns, ''))})
        self.t_row = time.time()

    def print_row(self, row, val, best, warnings):
        parts = [f'iter {row["iter"]}/{self.config["max_iters"]}', f'loss {row["loss"]:.4f}']
        if self.chance:
            parts[-1] += f' (chance {self.chance:.3f})'
        parts += [f'{k} {row[k]:.3g}' for k in self.metrics]
        parts += [f'lr {row["lr"]:.1e}', f'norm {row["grad_norm"]:.2f}']
        frames = self.config['total_batch_size'] * self.config['seq_len']
        parts += [f'{1000 * self.seconds:.0f} ms', f'{frames / self.seconds:,.0f} frames/s']
        parts += [f'ETA {self.eta // 60:.0f}m{self.eta % 60:02.0f}s']
        self.say(' | '.join(parts))
        if val:
            parts = ['  held out', *(f'{k} {v:.4g}' for k, v in val.items())]
            if best:
                parts.append('best')
            self.say(' | '.join(parts))
        for sentence in warnings:
            self.say(f'  warning: {sentence}')

    def write_row(self, logged):
        """A row of log.csv; '' where there was no evaluation."""
        try:
            with open(self.log_path, 'a', newline='') as f:
                if f.tell() == 0:
                    csv.writer(f).writerow(logged.keys())
                csv.writer(f).writerow(logged.values())
        except OSError as e:
            self.say(f'  warning: {self.log_path}: cannot be written: {e}')
        if self.wandb:
            self.wandb.log({k: v for k, v in logged.items() if v != ''}, step=logged['iter'])

    # -------------------------------------------------------------------------
    # around a save

    @contextlib.contextmanager
    def surviving_disk_trouble(self, it):
        """What the block saves may fail: the reason is said, and training goes on."""
        try:
            yield
            write_status(self.folder, state='running', iter=it, saved_iter=it)
        except DiskError as e:
            self.trouble = 'disk'
            self.say(f'{e}\ntraining goes on; the next try is at the next evaluation')
        except checkpoint.CheckpointError as e:  # weights that are not finite are never written
            self.trouble = 'weights'
            self.say(e)

    def agree_on_save(self, it):
        """All ranks hear whether the master could save. Three failures in a row end the run, as do
        one at its end and weights that are not finite."""
        kinds = ['', 'disk', 'weights']
        trouble = kinds[ranks.same_everywhere(kinds.index(self.trouble), self.device)]
        self.trouble, self.t_row, self.t_saved = '', time.time(), time.time()
        if not trouble:
            self.failed_saves, self.saved_iter = 0, it
            return
        self.failed_saves += 1
        last = self.state != 'running' or it == self.config['max_iters']
        if trouble == 'weights':
            self.state = 'nonfinite'
            self.reason = (f'the weights of iter {it} are not fit to be saved; nothing was '
                           'replaced\nlower learning_rate; --init_from=resume')
        elif self.failed_saves >= 3 or last:
            self.state = 'io_error'
            self.reason = (f'{self.failed_saves} checkpoints in a row could not be written, '
                           f'up to iter {it}')

    def save_picture(self, it, image):
        """samples/00012000.png. Training goes on without it where it cannot be written."""
        if self.master:
            try:
                pictures.save_png(os.path.join(self.folder, 'samples', f'{it:08d}.png'), image)
            except DiskError as e:
                self.say(f'  warning: no picture: {e}')
        self.t_row = time.time()

    def rolled_back(self, diverged_at, it, rate, rollbacks):
        self.say(f'iter {diverged_at}: {self.reason}\n'
                 f'rollback {rollbacks} to iter {it} at {rate} times the learning rate')
        self.state, self.reason, self.t_row = 'running', '', time.time()

    # -------------------------------------------------------------------------
    # the end

    def finish(self, it, best_loss, best_iter):
        """status.json, the last words and the verdict on log.csv. Every rank calls it."""
        self.state = 'done' if self.state == 'running' else self.state
        best_path = os.path.join(self.folder, 'best.pt')
        resume_from = ''
        if self.state == 'done':
            minutes = (time.time() - self.t_start) / 60
            self.reason = (f'{it} updates, {minutes:.1f} minutes, best held-out loss '
                           f'{best_loss:.4f}; see {self.folder}')
        elif self.state == 'interrupted':
            self.reason = f'stopped by a signal and saved at iter {it}; --init_from=resume goes on'
        elif self.state == 'diverged' and os.path.exists(best_path):
            resume_from = best_path
            self.reason += f'\ngo back to iter {best_iter}: {self.slower()} --init_from=resume'
        elif self.state == 'diverged':
            self.reason += f'\nno checkpoint was written before that; start anew: {self.slower()}'
        if self.master:
            write_status(self.folder, state=self.state, iter=it, reason=self.reason,
                         saved_iter=self.saved_iter, resume_from=resume_from)
            if self.state == 'done':
                self.say(f'{self.stage}: {self.reason}')
            from diagnosis.rules import verdict  # takes a second
            picture = os.path.join(self.folder, 'loss.png')
            self.say(verdict(self.log_path, self.model_args.get('vocab_size'),
                             self.config['max_iters'], self.model_args.get('n_actions'),
                             picture=picture))
        ranks.barrier()  # once another rank ends, torchrun would end the master, who still writes
        if self.wandb:
            self.wandb.finish()

    def slower(self):
        """The command of this run at half the learning rate."""
        launch = 'python'
        if ranks.world_size() > 1:
            launch = f'torchrun --standalone --nproc_per_node={ranks.world_size()}'
        rate = self.config['learning_rate'] / 2
        return f'{launch} {self.stage}.py {" ".join(sys.argv[1:])} --learning_rate={rate:g}'

    def exit(self):
        """Ends the process with the exit code of the state."""
        code = EXIT_CODES[self.state]
        if self.state == 'interrupted' and self.sigterm:
            code = 143
        if code:
            configurator.stop(code, f'{self.stage}: {self.reason}')
