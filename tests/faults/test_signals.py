"""Signals that end a run: the terminal goes away, a batch system warns, a notebook goes on."""

import signal
import subprocess

import pytest
from ended import digest, status
from launch import LONG, process, until

from training import checkpoint

row = pytest.mark.row
pytestmark = pytest.mark.slow


@row(45)
@pytest.mark.parametrize('number', ['SIGHUP', 'SIGUSR1'])
def test_a_lost_connection_and_a_warning_are_as_sigterm(trains, tmp_path, number):
    trains.send_signal(getattr(signal, number))
    _, said = trains.communicate(timeout=60)
    assert trains.returncode == 143 and 'saved at iter' in said
    assert status(tmp_path)['saved_iter'] == digest(tmp_path)[0]


@row(45)
def test_nobody_reads_what_it_prints_any_more(trains, tmp_path):
    """As when `| tee` dies of the same Ctrl-C: there is something to save."""
    trains.stdout.close()
    trains.stderr.close()
    trains.send_signal(signal.SIGINT)
    assert trains.wait(timeout=60) == 130
    assert status(tmp_path)['state'] == 'interrupted'
    assert checkpoint.latest(tmp_path / 'tokenizer', 'tokenizer')['iter'] >= 2


@row(45)
def test_nohup(world, tmp_path):
    """It has HUP ignored, and the script leaves it so."""
    what = process('tokenizer.py', world[0], f'--out_dir={tmp_path}', *LONG)
    what['args'].insert(0, 'nohup')
    p = subprocess.Popen(**what, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    until(p, 'iter 2/')
    p.send_signal(signal.SIGHUP)
    until(p, 'iter 9/')
    p.send_signal(signal.SIGTERM)
    p.communicate(timeout=60)
    assert p.returncode == 143


NOTEBOOK = """
import os, runpy, signal, sys, time
path, sys.argv = sys.argv[1], sys.argv[1:]
sys.path.insert(0, os.path.dirname(path))
numbers = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
signal.signal(signal.SIGINT, signal.default_int_handler)  # these tests may run in the background
before = [signal.getsignal(n) for n in numbers]
for cell in range(2):
    try:
        runpy.run_path(path, run_name='__main__')
    except BaseException as e:
        print('ended with', type(e).__name__)
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(30)
except KeyboardInterrupt:
    print('INTERRUPTED')
print([signal.getsignal(n) for n in numbers] == before)
"""
FAULT = """
from training.runlog import RunLog
def count(self, means):
    raise RuntimeError('in an update')
RunLog.count = count
for cell"""


@row(45)
@pytest.mark.parametrize('code', [NOTEBOOK, NOTEBOOK.replace('for cell', FAULT.strip(), 1)])
def test_in_a_notebook_signals_are_given_back(world, tmp_path, code):
    """After %run, and after one that failed, Ctrl-C is that of the notebook; and the same notebook
    may run it again."""
    what = process('tokenizer.py', world[0], f'--out_dir={tmp_path}', '--max_iters=2')
    what['args'][1:1] = ['-c', code]
    done = subprocess.run(**what, capture_output=True, timeout=240)
    assert done.stdout.endswith('INTERRUPTED\nTrue\n'), done.stdout + done.stderr
    assert done.stdout.count('ended with RuntimeError') == 2 * ('in an update' in code)
