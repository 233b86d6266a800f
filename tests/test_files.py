"""A file is written whole or not at all: in a block that raises, in a process that is killed, on a
full disk."""
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from launch import ROOT, start
from samples import encode, noise, numbered, shown, write

import files
from recordings import video


def test_the_new_file_or_the_old_one(tmp_path):
    path = tmp_path / 'sub' / 'a'
    with files.replacing(path) as tmp:
        Path(tmp).write_text('first')
        assert not path.exists()
    with pytest.raises(ZeroDivisionError), files.replacing(path) as tmp:
        Path(tmp).write_text('half')
        raise ZeroDivisionError
    assert path.read_text() == 'first' and len(list(path.parent.iterdir())) == 1
    with files.replacing(str(path)) as tmp:
        Path(tmp).write_text('second')
        assert path.read_text() == 'first'
    assert path.read_text() == 'second' and len(list(path.parent.iterdir())) == 1


def test_a_share_that_knows_no_fsync_is_written_to(tmp_path, monkeypatch):
    def refuses(fd, number=errno.EINVAL):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, 'fsync', refuses)
    with files.replacing(tmp_path / 'a') as tmp:
        Path(tmp).write_text('whole')
    assert (tmp_path / 'a').read_text() == 'whole'
    monkeypatch.setattr(os, 'fsync', lambda fd: refuses(fd, errno.EIO))  # a broken disk
    with pytest.raises(files.DiskError), files.replacing(tmp_path / 'a') as tmp:
        Path(tmp).write_text('lost')
    assert (tmp_path / 'a').read_text() == 'whole'


def test_what_a_killed_writer_left_goes_an_hour_later(tmp_path):
    path, leftover, fresh = (tmp_path / name for name in ('[a]', '[a].tmp1', '[a].tmp2'))
    of_user = tmp_path / '[a].tmp_backup'
    of_user.write_text('mine')
    os.utime(of_user, (0, 0))
    leftover.write_text('half')
    fresh.write_text('half')  # perhaps another process writes it now
    os.utime(leftover, (0, 0))
    with files.replacing(path) as tmp:
        Path(tmp).write_text('whole')
    assert path.read_text() == 'whole' and fresh.exists() and not leftover.exists()
    assert of_user.exists()


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / 'a').write_text('old')
    (tmp_path / 'b').symlink_to('a')
    with files.replacing(tmp_path / 'b') as tmp:
        Path(tmp).write_text('new')
    assert (tmp_path / 'b').is_symlink() and (tmp_path / 'a').read_text() == 'new'


def test_what_cannot_be_written_is_said(tmp_path):
    (tmp_path / 'a').write_text('a file, no folder')
    with pytest.raises(files.DiskError, match='a/b: cannot be written.*GB free') as e:
        with files.replacing(tmp_path / 'a' / 'b'):
            pass
    assert e.value.exit_code == 7 and str(e.value).count('\n') == 1 and 'cure: ' in str(e.value)


def test_a_folder_is_tried_and_left_as_it_was(tmp_path, read_only):
    files.expect_writable(tmp_path / 'not' / 'there')
    assert not list(tmp_path.iterdir())
    (tmp_path / 'a').write_text('a file, no folder')
    (tmp_path / 'input').mkdir()
    read_only(tmp_path / 'input')
    for folder in ('a', 'a/b', 'input', 'input/b'):
        with pytest.raises(files.DiskError, match='cannot be written.*GB free'):
            files.expect_writable(tmp_path / folder)
    assert not list((tmp_path / 'input').iterdir())


def test_the_cache_of_a_user_is_a_whole_path_or_none(monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', os.path.abspath('x'))
    assert files.user_cache() == os.path.join(os.path.abspath('x'), 'nanoworlds')
    monkeypatch.setenv('XDG_CACHE_HOME', 'relative')  # to be ignored, says the standard
    assert files.user_cache() is None
    monkeypatch.delenv('XDG_CACHE_HOME')
    monkeypatch.setattr(os.path, 'expanduser', lambda path: path)  # a container without a home
    assert files.user_cache() is None


@pytest.mark.slow
def test_full_disk_is_one_clear_message_and_leaves_nothing(tmp_path):
    """RLIMIT_FSIZE stands in for the full disk: writes past it fail like ENOSPC does."""
    resource = pytest.importorskip('resource')
    path = write(tmp_path / 'a.h5', noise(400))

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    for command in (['check', path], ['game', tmp_path / 'b.h5', '--n_frames=400']):
        process = start('data.py', *command, preexec_fn=limit)
        _, said = process.communicate()
        assert process.returncode == 7, said
        assert 'cannot be written' in said and 'Traceback' not in said, said
        assert said.count('\n') <= 3
    assert [x.name for x in tmp_path.iterdir()] == ['a.h5']


@pytest.mark.slow
def test_an_import_that_fails_or_is_killed_leaves_the_old_file(tmp_path, monkeypatch):
    source, h5 = encode(tmp_path / 'a.mp4', numbered(40)), tmp_path / 'a.h5'
    h5.write_text('old')
    monkeypatch.setattr(video, 'colours', lambda x: 1 / 0)  # in the middle of writing
    with pytest.raises(ZeroDivisionError):
        video.import_video(source, str(h5), 16, 16)
    assert h5.read_text() == 'old' and len(list(tmp_path.iterdir())) == 2
    killed = ('import os; from recordings import video; '
              'video.colours = lambda x: os.kill(os.getpid(), 9); '
              f'video.import_video({source!r}, {str(h5)!r}, 16, 16)')
    assert subprocess.run([sys.executable, '-c', killed], cwd=ROOT).returncode == -9
    assert h5.read_text() == 'old'
    leftover, = tmp_path.glob('*.tmp*')
    os.utime(leftover, (0, 0))  # the next import clears it away, an hour later
    monkeypatch.undo()
    video.import_video(source, str(h5), 16, 16)
    assert not list(tmp_path.glob('*.tmp*')) and len(shown(h5)) == 40
