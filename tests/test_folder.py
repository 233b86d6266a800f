"""The folder of a run: where its files go, and what becomes of an earlier run's."""

import json
import os

import pytest

import files
from files import DiskError
from training.folder import RunFolder


@pytest.fixture
def begin(tmp_path):
    """Makes RunFolders of out_dir tmp_path, and gives them back at the end."""
    made = []

    def begin(stage='tokenizer', **env):
        made.append(RunFolder(tmp_path, stage, 'cpu'))
        return made[-1]

    yield begin
    for folder in made:
        folder.release()


def earlier_run(folder, iter=20):
    """What a run leaves that has saved a checkpoint (which nothing here reads)."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f'ckpt_{iter:08d}.pt').write_text('weights')
    (folder / 'log.csv').write_text('iter,loss\n10,2.0\n20,1.5\n30,1.2\n4')
    return folder


def test_the_log_is_cut_at_the_checkpoint(begin, tmp_path):
    log = earlier_run(tmp_path / 'tokenizer') / 'log.csv'
    begin().open(20, 0)
    assert log.read_text() == 'iter,loss\n10,2.0\n20,1.5\n'


@pytest.mark.row(43)
def test_an_earlier_run_stays_until_the_new_one_has_a_checkpoint(begin, tmp_path, capsys):
    earlier_run(tmp_path / 'tokenizer')
    folder = begin()
    folder.open(0, 0)
    assert folder.path == str(tmp_path / 'tokenizer.new')
    assert 'stays in' in capsys.readouterr().out
    assert (tmp_path / 'tokenizer' / 'ckpt_00000020.pt').exists()
    earlier_run(tmp_path / 'tokenizer.new', iter=1)
    folder.keep()
    assert os.listdir(tmp_path / 'tokenizer.1').count('ckpt_00000020.pt') == 1
    assert (tmp_path / 'tokenizer' / 'ckpt_00000001.pt').exists()
    assert folder.path == str(tmp_path / 'tokenizer') and 'moved' in capsys.readouterr().out


@pytest.mark.row(43)
def test_starts_that_failed_leave_nothing_behind(begin, tmp_path):
    earlier_run(tmp_path / 'tokenizer')
    for _ in range(3):
        folder = begin()
        folder.open(0, 0)
        folder.release()
    assert sorted(os.listdir(tmp_path)) == ['tokenizer', 'tokenizer.new']
    status = json.loads((tmp_path / 'tokenizer.new' / 'status.json').read_text())
    assert status['state'] == 'failed'


def test_a_later_try_without_a_checkpoint_is_mentioned_on_resume(begin, tmp_path, capsys):
    earlier_run(tmp_path / 'tokenizer')
    begin().open(20, 0)
    assert capsys.readouterr().out == ''
    (tmp_path / 'tokenizer.new').mkdir()
    begin().open(20, 0)
    assert 'tokenizer.new holds a later try' in capsys.readouterr().out


def test_a_try_that_logged_rows_is_kept(begin, tmp_path):
    earlier_run(tmp_path / 'tokenizer')
    (tmp_path / 'tokenizer.new').mkdir()
    (tmp_path / 'tokenizer.new' / 'log.csv').write_text('iter,loss\n10,2.0\n')
    begin().open(0, 0)
    assert os.listdir(tmp_path / 'tokenizer.1') == ['log.csv']


def test_what_somebody_else_put_there_is_kept(begin, tmp_path):
    (tmp_path / 'tokenizer').mkdir()
    (tmp_path / 'tokenizer' / 'notes.txt').write_text('mine')
    begin().open(0, 0)
    assert (tmp_path / 'tokenizer.1' / 'notes.txt').read_text() == 'mine'


@pytest.mark.row(43)
def test_killed_between_the_two_renames(begin, tmp_path):
    earlier_run(tmp_path / 'tokenizer.new')
    assert begin().goes_on('auto')
    assert (tmp_path / 'tokenizer' / 'ckpt_00000020.pt').exists()
    assert not (tmp_path / 'tokenizer.new').exists()


@pytest.mark.row(43)
def test_killed_before_the_first_of_them(begin, tmp_path):
    """The new run has a checkpoint: that is what a resumed run goes on from."""
    earlier_run(tmp_path / 'tokenizer')
    earlier_run(tmp_path / 'tokenizer.new', iter=3)
    folder = begin()
    assert folder.path == str(tmp_path / 'tokenizer') and folder.goes_on('auto')
    assert (tmp_path / 'tokenizer' / 'ckpt_00000003.pt').exists()
    assert (tmp_path / 'tokenizer.1' / 'ckpt_00000020.pt').exists()


@pytest.mark.skipif(os.name == 'nt', reason='links')
def test_a_link_to_a_disk_that_is_not_there(begin, tmp_path):
    (tmp_path / 'tokenizer').symlink_to(tmp_path / 'disk' / 'weights')
    with pytest.raises(DiskError, match='which is not there'):
        begin()


def test_a_new_disk_is_used_as_it_is(begin, tmp_path):
    (tmp_path / 'tokenizer' / 'lost+found').mkdir(parents=True)
    begin().open(0, 0)
    assert sorted(os.listdir(tmp_path / 'tokenizer')) == ['lost+found', 'samples', 'status.json']


@pytest.mark.row(43)
@pytest.mark.skipif(os.name == 'nt', reason='links')
def test_a_link_to_another_disk_stays_a_link(begin, tmp_path):
    disk = tmp_path / 'disk'
    earlier_run(disk / 'weights')
    (tmp_path / 'tokenizer').symlink_to(disk / 'weights')
    folder = begin()
    folder.open(0, 0)
    earlier_run(disk / 'weights.new', iter=1)
    folder.keep()
    assert (tmp_path / 'tokenizer').is_symlink()
    assert (tmp_path / 'tokenizer' / 'ckpt_00000001.pt').exists()
    assert (disk / 'weights.1' / 'ckpt_00000020.pt').exists()


def test_a_disk_with_too_little_room(begin, tmp_path, monkeypatch):
    earlier_run(tmp_path / 'tokenizer')
    folder = begin()
    monkeypatch.setattr(files.shutil, 'disk_usage', lambda _: type('usage', (), dict(free=10**6)))
    with pytest.raises(DiskError, match='found 1 MB free, expected 5 MB'):
        folder.open(0, 5 * 10**6)
    assert sorted(os.listdir(tmp_path)) == ['tokenizer', 'tokenizer.lock']


@pytest.mark.row(44)
def test_auto_goes_on_where_it_can(begin, tmp_path):
    assert not begin('tokenizer').goes_on('auto')
    earlier_run(tmp_path / 'dynamics')
    folder = begin('dynamics')
    assert folder.goes_on('auto') and folder.goes_on('resume') and not folder.goes_on('scratch')


def test_status(begin, tmp_path, monkeypatch, capsys):
    path = tmp_path / 'tokenizer' / 'status.json'
    folder = begin()
    folder.write_status(state='running', iter=3, reason=None)
    assert json.loads(path.read_text()) == dict(
        state='running', iter=3, reason=None, owner=folder.lock.me, job={}
    )

    def refuses(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'replace', refuses)
    folder.write_status(state='done')
    assert 'No space left' in capsys.readouterr().out
    assert json.loads(path.read_text())['state'] == 'running'
    assert os.listdir(tmp_path / 'tokenizer') == ['status.json']


TORCHRUN = dict(TORCHELASTIC_RUN_ID='7a', TORCHELASTIC_RESTART_COUNT='0')
SLURM = dict(SLURM_JOB_ID='12', SLURM_RESTART_COUNT='0')


@pytest.mark.row(44)
@pytest.mark.parametrize(
    'first, then, goes_on',
    [
        (TORCHRUN, TORCHRUN | dict(TORCHELASTIC_RESTART_COUNT='1'), True),
        (SLURM, SLURM | dict(SLURM_RESTART_COUNT='1'), True),
        # the same command given once more by a person, and another job's restart, begin anew
        (TORCHRUN, TORCHRUN, False),
        (TORCHRUN, dict(TORCHELASTIC_RUN_ID='8b', TORCHELASTIC_RESTART_COUNT='1'), False),
        (SLURM, dict(SLURM_JOB_ID='13', SLURM_RESTART_COUNT='1'), False),
        ({}, {}, False),
    ],
)
def test_a_job_that_is_started_again_does_not_begin_again(
    begin, tmp_path, monkeypatch, first, then, goes_on
):
    """torchrun --max-restarts and a requeued job repeat their command, --init_from=scratch or not;
    checkpoints of another run are not theirs to go on from."""
    for name, value in first.items():
        monkeypatch.setenv(name, value)
    folder = begin()
    folder.open(0, 0)
    earlier_run(tmp_path / 'tokenizer')
    folder.release()
    for name, value in then.items():
        monkeypatch.setenv(name, value)
    assert begin().goes_on('scratch') == goes_on
