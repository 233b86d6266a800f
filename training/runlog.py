"""
What a run tells: console, log.csv, status.json, W&B, signals, and how it ends.

RunLog holds numbers and words, never a model, an optimizer or a batch, and it calls nothing back:
what is trained stands in the scripts.
"""
import contextlib
import csv
import math
import os
import shlex
import signal
import sys
import time

import numpy as np
import torch

import configurator
import pictures
from files import DiskError
from training import checkpoint, ranks
from training.tracker import Tracker

EXIT_CODES = {'done': 0, 'diverged': 5, 'nonfinite': 6, 'io_error': 7, 'interrupted': 130}
# a connection that is lost (HUP) and the warnings of batch systems end a run as TERM does
SIGNALS = [getattr(signal, name) for name in ('SIGTERM', 'SIGINT', 'SIGHUP', 'SIGUSR1', 'SIGUSR2',
                                              'SIGXCPU')
           if hasattr(signal, name)]  # Windows lacks most


class RunLog:
    """
    The run as others see it. `state` is 'running' or, in the word of status.json, why not.

    about: what every checkpoint says of the run (stage, config ...); the id of its W&B run is
    added. folder: its RunFolder, which is opened. n_windows: of each split. chance: nats, the loss
    of a guess, or None. Raises DiskError if the folder cannot be written, ConfigError if W&B is
    asked for and cannot be used.
    """

    def __init__(self, about, folder, iter_start, n_windows, n_parameters, chance):
        self.stage, self.config, self.folder = about['stage'], about['config'], folder
        self.chance, self.device = chance, folder.device
        self.state, self.reason = 'running', ''
        self.signals = []  # received, and acted upon after the update
        self.sigterm = False
        self.saved_iter, self.failed_saves, self.trouble = iter_start, 0, ''
        self.window = []  # loss and metrics of the updates since the last row
        self.updates, self.metrics, self.val_columns = 0, [], []
        self.t_start = self.t_row = self.t_saved = time.time()
        self.seconds = self.eta = 0.0  # of an update; until the end
        self.model_args = about['model_args']
        self.master = ranks.rank() == 0
        if self.master:
            # W&B comes first: it may refuse, and nothing has been touched yet
            self.tracker = Tracker(self.config, self.stage, about.get('wandb_id', ''))
            about['wandb_id'] = self.tracker.id
        folder.open(iter_start, 4 * 12 * n_parameters)  # weights, two moments in float32, 4 times
        self.introduce(n_windows, n_parameters)
        self.listen(sys._getframe(1).f_code)

    def listen(self, script):
        """Signals are kept for the end of an update, as long as the code `script` runs."""
        def receive(number, frame):
            while frame and frame.f_code is not script:
                frame = frame.f_back
            if frame:
                self.signals.append(number)
            else:  # it ended with an error, in a notebook that lives on
                self.put_handlers_back()
                signal.raise_signal(number)

        self.handlers = {}
        for number in SIGNALS:
            # nohup has HUP ignored, and wants it to stay so
            if signal.getsignal(number) != signal.SIG_IGN or number == signal.SIGINT:
                self.handlers[number] = signal.signal(number, receive)

    def put_handlers_back(self):
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def say(self, text):
        """Prints on rank 0."""
        if self.master:
            configurator.say(text)

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
            used, there = configurator.processes().local_world_size, torch.cuda.device_count()
            if used < there:
                self.say(f'  warning: {used} of {there} GPUs in use; torchrun --standalone '
                         f'--nproc_per_node={there} {os.path.basename(sys.argv[0])} uses all')

    def begin(self, it, val):
        """The first evaluation, before any update: its clock starts here."""
        self.val_columns = list(val)
        numbers = ' | '.join(f'{k} {v:.4g}' for k, v in val.items())
        self.say(f'iter {it}/{self.config["max_iters"]} | {numbers}')
        self.t_start = self.t_row = self.t_saved = time.time()

    # -------------------------------------------------------------------------
    # in every update

    def wishes(self):
        """What this rank tells the others: was it told to stop, by SIGTERM or the like or by
        SIGINT, and is it time to save?"""
        save_due = self.master and time.time() - self.t_saved > self.config['save_seconds']
        sigterm = any(number != signal.SIGINT for number in self.signals)
        return [sigterm, signal.SIGINT in self.signals, save_due]

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
        path = self.folder.in_folder('log.csv')
        try:
            with open(path, 'a', newline='') as f:
                if f.tell() == 0:
                    csv.writer(f).writerow(logged.keys())
                csv.writer(f).writerow(logged.values())
        except OSError as e:
            self.say(f'  warning: {path}: cannot be written: {e}')
        self.tracker.log({k: v for k, v in logged.items() if v != ''})

    # -------------------------------------------------------------------------
    # around a save

    @contextlib.contextmanager
    def surviving_disk_trouble(self, it):
        """What the block saves may fail: the reason is said, and training goes on."""
        try:
            self.folder.expect_mine()
            yield
            self.folder.keep()
            self.folder.write_status(state='running', iter=it, saved_iter=it)
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
            self.folder.path = self.folder.final  # on every rank: see RunFolder.keep
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
                path = os.path.join(self.folder.path, 'samples', f'{it:08d}.png')
                pictures.save_png(path, image)
            except DiskError as e:
                self.say(f'  warning: no picture: {e}')
        self.t_row = time.time()

    def rolled_back(self, diverged_at, it, rate, rollbacks):
        if self.master:
            self.folder.cut_log(it)
        self.say(f'iter {diverged_at}: {self.reason}\n'
                 f'rollback {rollbacks} to iter {it} at {rate} times the learning rate')
        self.state, self.reason, self.t_row = 'running', '', time.time()

    # -------------------------------------------------------------------------
    # the end

    def finish(self, it, best_loss, best_iter):
        """status.json, the last words and the verdict on log.csv. Every rank calls it."""
        self.state = 'done' if self.state == 'running' else self.state
        best_path = self.folder.in_folder('best.pt')
        resume_from = ''
        if self.state == 'done':
            minutes = (time.time() - self.t_start) / 60
            self.reason = (f'{it} updates, {minutes:.1f} minutes, best held-out loss '
                           f'{best_loss:.4f}; see {self.folder.path}')
        elif self.state == 'interrupted':
            self.reason = f'stopped by a signal and saved at iter {it}; --init_from=resume goes on'
        elif self.state == 'diverged' and os.path.exists(best_path):
            resume_from = best_path
            self.reason += f'\ngo back to iter {best_iter}: {self.slower()} --init_from=resume'
        elif self.state == 'diverged':
            self.reason += f'\nno checkpoint was written before that; start anew: {self.slower()}'
        if self.master:
            self.folder.write_status(state=self.state, iter=it, reason=self.reason,
                                     saved_iter=self.saved_iter, resume_from=resume_from)
            if self.state == 'done':
                self.say(f'{self.stage}: {self.reason}')
            from diagnosis.rules import verdict  # takes a second
            log, picture = self.folder.in_folder('log.csv'), self.folder.in_folder('loss.png')
            self.say(verdict(log, self.model_args.get('vocab_size'), self.config['max_iters'],
                             self.model_args.get('n_actions'), picture=picture))
            self.tracker.finish()
        ranks.barrier()  # once another rank ends, torchrun would end the master, who still writes

    def slower(self):
        """The command of this run at half the learning rate."""
        launch, script = 'python', os.path.basename(sys.argv[0])  # perhaps a copy
        if ranks.world_size() > 1:
            launch = f'torchrun --standalone --nproc_per_node={ranks.world_size()}'
        rate = self.config['learning_rate'] / 2
        return f'{launch} {script} {shlex.join(sys.argv[1:])} --learning_rate={rate:g}'

    def exit(self):
        """Ends the process with the exit code of the state. In a notebook the process goes on, so
        signals and the folder are given back."""
        if self.master:
            self.folder.release()
        self.put_handlers_back()
        code = EXIT_CODES[self.state]
        if self.state == 'interrupted' and self.sigterm:
            code = 143
        if code:
            configurator.stop(code, f'{self.stage}: {self.reason}')
