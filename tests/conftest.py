"""For all tests: a small world, trained once; a cache of their own; folders that are read-only."""

import os
import shutil
import signal

import pytest
from launch import CONFIG, LONG, STAGES, recording, start, train, until

pytest_plugins = ['fault_matrix']

# nothing is read-only for root, who may run these tests: so Python is told, here or in another
# process, that some folders are on a disk that is
READ_ONLY = '''
import errno, os, sys
READ_ONLY_FOLDERS = []
def refuse_to_write(event, args):
    if event == 'open' and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        path = args[0]
    elif event in ('os.mkdir', 'os.remove', 'os.rename'):
        path = args[0]
    else:
        return
    if isinstance(path, (str, os.PathLike)) and any(
            os.path.abspath(path).startswith(folder) for folder in READ_ONLY_FOLDERS):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
sys.addaudithook(refuse_to_write)
'''


@pytest.fixture(scope='session', autouse=True)
def own_cache(tmp_path_factory):
    """What goes into ~/.cache elsewhere goes here."""
    folder = tmp_path_factory.mktemp('cache')
    before = os.environ.get('XDG_CACHE_HOME')
    os.environ['XDG_CACHE_HOME'] = str(folder)
    yield folder / 'nanoworlds'
    os.environ.pop('XDG_CACHE_HOME')
    if before is not None:
        os.environ['XDG_CACHE_HOME'] = before


@pytest.fixture(scope='session')
def audit_hook():
    """The folders that are read-only in this process. A hook stays as long as the process."""
    names = {}
    exec(READ_ONLY, names)
    return names['READ_ONLY_FOLDERS']


@pytest.fixture
def read_only(audit_hook):
    """A function of a folder, which is read-only from there on to the end of the test. It returns
    what makes it so in another process: code for launch.run_after."""

    def make(folder):
        audit_hook.append(str(folder))
        return READ_ONLY + f'READ_ONLY_FOLDERS.append({str(folder)!r})'

    yield make
    audit_hook.clear()


@pytest.fixture(scope='session')
def world(tmp_path_factory):
    """A config, and its three stages trained for six updates."""
    folder = tmp_path_factory.mktemp('world')
    config = folder / 'small.py'
    config.write_text(CONFIG.format(dataset=recording(folder / 'a.h5'), out=str(folder / 'out')))
    said = {stage: train(f'{stage}.py', config).stdout for stage in STAGES}
    return config, folder / 'out', said


@pytest.fixture(scope='session')
def pair_of_ranks(world, tmp_path_factory):
    """stage -> folder in which two ranks trained that stage as `world` did, once for all tests."""
    done = {}

    def trained(stage):
        if stage not in done:
            out = tmp_path_factory.mktemp('pair') / 'out'
            shutil.copytree(world[1], out, ignore=shutil.ignore_patterns(stage))
            said = train(f'{stage}.py', world[0], f'--out_dir={out}', ranks=2).stdout
            assert said.count('parameters on 2 x cpu') == 1
            done[stage] = out
        return done[stage]

    return trained


@pytest.fixture
def trains(world, tmp_path):
    """A run of stage 1 that has begun, and would go on for long; what its pipe says is read."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # these tests may run under nohup
    p = start('tokenizer.py', world[0], f'--out_dir={tmp_path}', *LONG)
    signal.signal(signal.SIGHUP, before)
    until(p, 'iter 2/')
    yield p
    p.kill()
    p.communicate()
