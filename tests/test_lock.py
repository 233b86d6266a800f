"""One process owns the folder of a run."""

import json
import os
import subprocess
import sys
import time

import pytest

import configurator
from files import DiskError
from training import lock
from training.lock import FolderInUse, Lock

row = pytest.mark.row


@pytest.fixture
def take(tmp_path):
    """Takes tmp_path/run, which a process is said to own or not."""
    taken = []

    def take(owner=None, silent=0):
        path = tmp_path / 'run.lock'
        if owner is not None:
            path.write_text(owner if isinstance(owner, str) else json.dumps(owner))
            os.utime(path, (time.time() - silent,) * 2)
        taken.append(Lock(str(path), 'out/run'))
        return taken[-1]

    yield take
    for mine in taken:
        mine.release()


def someone(**more):
    """The owner that this very process would be, but for what is told."""
    me = dict(host=lock.platform.node(), pid=os.getpid(), since='2026-01-01 10:00:00')
    return me | dict(born=lock.birth(os.getpid()), pid_space=lock.pid_space(), job={}) | more


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end


@pytest.fixture
def other():
    """Another process of this machine."""
    p = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE)
    yield p
    p.kill()
    p.wait()


@row(41)
def test_a_folder_in_use_is_refused_with_its_owner(take, other, tmp_path):
    owner = someone(pid=other.pid, born=lock.birth(other.pid))
    with pytest.raises(FolderInUse) as e:
        take(owner, silent=10**6)  # it lives, and nothing else counts
    assert e.value.exit_code == 2
    for word in ('out/run', str(other.pid), lock.platform.node(), '2026-01-01', '--out_dir'):
        assert word in str(e.value)
    assert json.loads((tmp_path / 'run.lock').read_text()) == owner


@row(41)
def test_an_owner_that_was_killed_is_forgotten_at_once(take, other):
    owner = someone(pid=other.pid, born=lock.birth(other.pid))
    other.kill()  # and nobody has waited for it: it is still in the table of processes
    wait_for(lambda: not lock.birth(other.pid))
    assert take(owner).is_mine()


@row(41)
@pytest.mark.parametrize('more', [dict(born='1'), {}])
def test_a_number_that_another_process_has_now(take, more):
    """Process numbers come again; and in a notebook the same process trains twice."""
    assert take(someone(**more)).is_mine()


@row(41)
@pytest.mark.parametrize('elsewhere', [dict(host='node7'), dict(pid_space='pid:[1]')])
def test_an_owner_on_another_machine_is_gone_once_it_is_silent(take, elsewhere):
    with pytest.raises(FolderInUse, match='counts as gone after 5 minutes'):
        take(someone(**elsewhere), silent=lock.SILENT - 100)
    assert take(someone(**elsewhere), silent=lock.SILENT + 100).is_mine()


@row(44)
def test_a_requeued_job_takes_over_from_its_own_last_try(take, monkeypatch):
    monkeypatch.setenv('SLURM_JOB_ID', '12')
    owner = someone(host='node7', job=configurator.job())
    with pytest.raises(FolderInUse):
        take(owner)  # two tasks of one try
    monkeypatch.setenv('SLURM_RESTART_COUNT', '1')
    assert take(owner).is_mine()


@pytest.mark.parametrize('content', ['', '{"host"', '[1]', 'null'])
def test_a_lock_that_says_nothing_keeps_nobody_out(take, content):
    assert take(content).is_mine()


def test_the_owner_shows_that_it_lives(take, tmp_path, monkeypatch):
    monkeypatch.setattr(lock, 'SIGN_OF_LIFE', 0.01)
    mine = take()
    os.utime(mine.path, (0, 0))
    wait_for(lambda: os.stat(mine.path).st_mtime)
    mine.release()
    assert not os.path.exists(mine.path)


def test_one_that_was_taken_over_is_noticed_and_not_removed(take, tmp_path):
    mine = take()
    (tmp_path / 'run.lock').write_text(json.dumps(someone(host='node7')))
    with pytest.raises(FolderInUse, match='node7'):
        mine.expect_mine(mine.me)
    mine.release()
    assert (tmp_path / 'run.lock').exists()


def test_one_that_was_taken_over_and_ended_is_noticed(take):
    """The other has removed its lock; but status.json says who has written it last. Where that is
    this process, somebody has only removed the file."""
    mine = take()
    os.remove(mine.path)
    mine.expect_mine(mine.me)
    mine.expect_mine(None)
    with pytest.raises(FolderInUse, match='node7'):
        mine.expect_mine(someone(host='node7'))
    assert not mine.is_mine()


def test_the_lock_of_another_user_is_named(take, tmp_path, monkeypatch):
    """It cannot be written, and that is not its fault."""
    (tmp_path / 'run.lock').write_text(json.dumps(someone(host='node7')))
    monkeypatch.setattr(Lock, 'held', lambda self: open('/', 'a+'))
    with pytest.raises(FolderInUse, match='node7'):
        take()


@pytest.mark.parametrize('job', ['x', [1], {'slurm': 3}, {'slurm': ['12']}, {'slurm': ['12', '0']}])
def test_a_lock_that_holds_nonsense(take, monkeypatch, job):
    monkeypatch.setenv('SLURM_JOB_ID', '12')
    monkeypatch.setenv('SLURM_RESTART_COUNT', '1')
    with pytest.raises(FolderInUse):
        take(someone(host='node7', job=job))
    monkeypatch.setenv('SLURM_RESTART_COUNT', '')  # as templates export it
    assert configurator.job() == {'slurm': ['12', 0]}


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(DiskError, match='cannot be written'):
        Lock(str(tmp_path / 'file' / 'run.lock'), 'run')


def test_a_folder_made_for_the_lock_goes_with_it(tmp_path):
    Lock(str(tmp_path / 'out' / 'run.lock'), 'run').release()
    assert os.listdir(tmp_path) == []
