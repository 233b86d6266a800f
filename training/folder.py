"""
The folder of a run, out_dir/<stage>/: whose it is, where its files go, status.json.

One process owns it, and says so in out_dir/<stage>.lock. A run that begins anew where an earlier
one stands keeps its files in <stage>.new until it has saved its first checkpoint: whatever fails
before that, the earlier run stays where sample.py finds it.
"""
import atexit
import contextlib
import json
import os
import re

import configurator
from files import DiskError, free_space, replacing
from training import checkpoint, ranks
from training.lock import Lock, read_json

LEFT_BY_A_KILLED_PROCESS = (r'(ckpt_\d+\.pt|best\.pt|status\.json|log\.csv|loss\.png'
                            r'|samples.\d+\.png)\.tmp\d+')


class RunFolder:
    """
    path: where the files of the run go, the same on all ranks. Rank 0 owns the folder from here to
    the end of the process, or until release(). Every rank makes one. Raises FolderInUse, and
    DiskError if nothing can be written there; then all is as it was.
    """

    def __init__(self, out_dir, stage, device):
        self.device = device
        self.final = link = os.path.join(out_dir, stage)
        if os.path.islink(link):  # to another disk, perhaps: it stays where it is
            self.final = os.path.realpath(link)
            if not os.path.exists(self.final):
                raise DiskError(f'{link}: is a link to {self.final}, which is not there\n'
                                'mount its disk, or remove the link')
        self.path, self.new = self.final, self.final + '.new'
        self.master = ranks.rank() == 0
        self.status = {}
        if self.master:
            try:
                self.lock = Lock(self.final + '.lock', self.final)
            except DiskError:
                if self.final == link:
                    raise
                # what it links to lies in a folder that is not ours
                self.lock = Lock(link + '.lock', self.final)
            atexit.register(self.release)
            if holds_checkpoint(self.new):
                self.path = self.new
                self.keep()  # its process was killed before it could
        ranks.barrier()

    def goes_on(self, init_from):
        """Does this run go on from checkpoints here? Every rank calls it. A try of the same job
        that ended does not begin anew: torchrun --max-restarts and a requeued SLURM job give the
        command that was given first."""
        there = self.master and holds_checkpoint(self.final)
        again = there and configurator.is_later_try(read_json(self.in_folder('status.json')))
        if again and init_from == 'scratch':
            configurator.say('this job was started again: it goes on from its own checkpoint')
        goes_on = init_from == 'resume' or there and (again or init_from == 'auto')
        return bool(ranks.same_everywhere(int(goes_on), self.device))

    def in_folder(self, name):
        return os.path.join(self.path, name)

    def open(self, iter, disk_need):
        """
        Makes the folder ready. iter: 0 for a new run, or where it goes on: log.csv is cut there,
        for what follows will happen again. disk_need: bytes for its checkpoints. Every rank calls
        it. Raises DiskError if it cannot be written or has less room; then all is as it was.
        """
        stays = self.master and not iter and holds_checkpoint(self.final)  # the earlier run
        if ranks.same_everywhere(int(stays), self.device):
            self.path = self.new
        if not self.master:
            return
        free = free_space(self.path)
        if free < disk_need:
            raise DiskError(f'{self.path}: found {free / 1e6:.0f} MB free, expected '
                            f'{disk_need / 1e6:.0f} MB for four checkpoints\n'
                            'make room, or use another --out_dir')
        try:
            if stays and os.path.ismount(self.final):
                raise OSError('it is a mount point, so the earlier run cannot be moved aside')
            if not iter:
                move_aside(self.path, self.final)
            samples = self.in_folder('samples')
            os.makedirs(samples, exist_ok=True)
            names = [os.path.join('samples', name) for name in os.listdir(samples)]
            for name in os.listdir(self.path) + names:
                if re.fullmatch(LEFT_BY_A_KILLED_PROCESS, name):
                    os.remove(self.in_folder(name))
            self.cut_log(iter)
        except OSError as e:
            raise DiskError(f'{self.path}: cannot be written: {e}\n'
                            'use another --out_dir, or make it writable') from e
        if iter and os.path.exists(self.new):
            configurator.say(f'{self.new} holds a later try, which saved no checkpoint: this goes '
                             'on from the run before it')
        if stays:
            configurator.say(f'the earlier run stays in {self.final} until this one has saved a '
                             f'checkpoint; it begins in {self.path}')
        self.write_status(state='running', iter=iter)

    def keep(self):
        """The run has saved a checkpoint: it takes the place of the earlier one. For the master
        process only; the others set their path. Raises DiskError."""
        if self.path == self.final:
            return
        try:
            move_aside(self.final, self.final)
            os.rename(self.new, self.final)
        except OSError as e:
            raise DiskError(f'{self.final}: cannot be moved aside: {e}') from e
        self.path = self.final

    def cut_log(self, iter):
        """Leaves the rows of log.csv up to iter that were written to their end."""
        path = self.in_folder('log.csv')
        if not os.path.exists(path):
            return
        with open(path, errors='replace') as f:
            lines = f.readlines()
        kept = lines[:1]
        for line in lines[1:]:
            first = line.split(',')[0]
            if line.endswith('\n') and first.isdecimal() and int(first) <= iter:
                kept.append(line)
        with replacing(path) as tmp, open(tmp, 'w') as f:
            f.writelines(kept)

    def write_status(self, **fields):
        """status.json = fields (state, iter, saved_iter, reason ...). Under torchrun the exit code
        is always 1, so this file is how others learn the end of a run. Never raises for the disk:
        training matters more."""
        self.status = {**fields, 'owner': self.lock.me, 'job': configurator.job()}
        try:
            with replacing(self.in_folder('status.json')) as tmp, open(tmp, 'w') as f:
                f.write(json.dumps(self.status, indent=1, default=str) + '\n')
        except DiskError as e:
            configurator.say(f'warning: status.json not written in {self.path}: {e}')

    def expect_mine(self):
        """Raises FolderInUse if another process has the folder now."""
        self.lock.expect_mine(read_json(self.in_folder('status.json')).get('owner'))

    def release(self):
        """The folder belongs to nobody from here on. For the master process only."""
        if self.lock.is_mine() and self.status.get('state') == 'running':
            self.write_status(**{**self.status, 'state': 'failed',
                                 'reason': 'it ended with an error, which the console shows'})
        self.lock.release()


def holds_checkpoint(folder):
    return bool(checkpoint.numbered(folder)) or os.path.exists(os.path.join(folder, 'best.pt'))


def move_aside(path, name):
    """A folder gets the name NAME.1, or the next that is free. One that holds nothing but what a
    failed start leaves, or a new disk, is only emptied."""
    if not os.path.exists(path):
        return
    known = {'status.json', 'log.csv', 'samples', 'lost+found'}
    if os.path.isdir(path) and set(os.listdir(path)) <= known:
        log, samples = os.path.join(path, 'log.csv'), os.path.join(path, 'samples')
        if not has_rows(log) and not (os.path.isdir(samples) and os.listdir(samples)):
            for file in (log, os.path.join(path, 'status.json')):
                with contextlib.suppress(FileNotFoundError):
                    os.remove(file)
            return
    k = 1
    while os.path.exists(f'{name}.{k}'):
        k += 1
    os.rename(path, f'{name}.{k}')
    configurator.say(f'moved the earlier run to {name}.{k}')


def has_rows(log):
    with contextlib.suppress(OSError), open(log, 'rb') as f:
        return len(f.readlines(1000)) > 1
    return False
