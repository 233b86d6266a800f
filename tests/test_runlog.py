"""What a run tells: its folder and log.csv."""

import os

import pytest

import files
from files import DiskError
from training.runlog import open_folder


def test_open_folder_cuts_the_log_at_the_checkpoint(tmp_path, capsys):
    (tmp_path / 'log.csv').write_text('iter,loss\n10,2.0\n20,1.5\n30,1.2\n4')
    open_folder(tmp_path, 20, 0)
    assert (tmp_path / 'log.csv').read_text() == 'iter,loss\n10,2.0\n20,1.5\n'
    open_folder(tmp_path, None, 0)  # a new run
    assert (
        not (tmp_path / 'log.csv').exists()
        and 'moved the earlier run to' in capsys.readouterr().out
    )
    assert (tmp_path.parent / f'{tmp_path.name}.1' / 'log.csv').exists()


def test_open_folder_refuses_a_disk_with_too_little_room(tmp_path, monkeypatch):
    (tmp_path / 'log.csv').write_text('iter,loss\n')
    monkeypatch.setattr(files.shutil, 'disk_usage', lambda _: type('usage', (), dict(free=10**6)))
    with pytest.raises(DiskError, match='found 1 MB free, expected 5 MB'):
        open_folder(tmp_path, None, 5 * 10**6)
    assert os.listdir(tmp_path) == ['log.csv']
