"""
Runs a training script with a fault in it, injected from outside by wrapping what the script calls:

    FAULT=KIND@ITER python tests/with_fault.py tokenizer.py config/tiny.py

KIND: kill, raise, sleep, nan (the loss), drift (a weight) in the forward pass of that update;
kill_in_save (when the file is written and has no name yet), kill_before_prune. @ITER+ is from then
on, @ITER:RANK on that rank alone. Only in the first try, where a launcher starts again what failed.
"""
import contextlib
import math
import os
import runpy
import signal
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:1] = [ROOT]

import model  # noqa: E402
from training import checkpoint, runlog  # noqa: E402

kind, _, place = os.environ['FAULT'].partition('@')
at, _, rank = place.partition(':')
update = 0  # that is being made


def is_due(*kinds, it):
    here = rank in ('', os.environ.get('RANK', '0'))
    here = here and os.environ.get('TORCHELASTIC_RESTART_COUNT', '0') == '0'
    now = it >= int(at[:-1]) if at.endswith('+') else it == int(at)
    return kind in kinds and here and now


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def forward_with_fault(forward):
    def faulty(self, *batch):
        loss, metrics = forward(self, *batch)
        if not self.training:
            return loss, metrics
        if is_due('kill', it=update):
            die()
        if is_due('raise', it=update):
            raise RuntimeError(f'a fault was asked for at iter {update}')
        if is_due('sleep', it=update):
            time.sleep(3600)
        if is_due('drift', it=update):
            next(self.parameters()).data += 1
        return loss * math.nan if is_due('nan', it=update) else loss, metrics
    return faulty


def begin(self, it, val, original=runlog.RunLog.begin):
    global update
    update = it + 1
    original(self, it, val)


def obey(self, *signals, original=runlog.RunLog.obey):
    global update
    update += 1
    original(self, *signals)


@contextlib.contextmanager
def replacing(path, original=checkpoint.replacing):
    with original(path) as tmp:
        yield tmp
        if is_saved(path, 'kill_in_save'):
            die()
    if is_saved(path, 'kill_before_prune'):
        die()


def is_saved(path, kind):
    """Is this the checkpoint at whose save the fault is due?"""
    numbers = [it for it in range(100) if path.endswith(checkpoint.file_name(it))]
    return bool(numbers) and is_due(kind, it=numbers[0])


for network in (model.Tokenizer, model.LatentActionModel, model.Dynamics):
    network.forward = forward_with_fault(network.forward)
runlog.RunLog.begin, runlog.RunLog.obey, checkpoint.replacing = begin, obey, replacing
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name='__main__')
