"""Whose is this folder? A file beside it says so: two runs in one folder would mix their rows."""
import contextlib
import json
import os
import platform
import tempfile
import threading
import time

import configurator
from files import DiskError

SIGN_OF_LIFE = 20  # seconds between two of an owner
SILENT = 300  # seconds without one, after which an owner on another machine counts as gone


class FolderInUse(Exception):
    """Another process trains in this folder."""
    exit_code = 2


class Lock:
    """
    The file `path` says which process owns the folder `name`: host, pid and since when. The owner
    touches it as a sign of life. It is stale when its process is gone (on this machine) or was
    silent for long (on another). Raises FolderInUse, DiskError.
    """

    def __init__(self, path, name):
        self.path, self.name = path, name
        pid = os.getpid()
        self.me = dict(host=platform.node(), pid=pid, since=time.strftime('%F %T'),
                       born=birth(pid), pid_space=pid_space(), job=configurator.job())
        self.parent = os.path.dirname(os.path.abspath(path))
        self.parent_is_mine = not os.path.exists(self.parent)
        try:
            os.makedirs(self.parent, exist_ok=True)
            with self.held() as f:
                owner = json_of(f)
                if owner and not self.is_gone(owner, f):
                    raise FolderInUse(in_use(name, owner))
                f.seek(0)
                f.truncate()
                f.write(json.dumps(self.me))
        except OSError as e:
            owner = read_json(path)  # perhaps of another user
            if owner:
                raise FolderInUse(in_use(name, owner)) from e
            raise DiskError(f'{path}: cannot be written: {e}\n'
                            'use another --out_dir, or make it writable') from e
        self.released = threading.Event()
        threading.Thread(target=self.show_life, daemon=True).start()

    @contextlib.contextmanager
    def held(self):
        """The file, open, while no other process is in here. (A file system without flock gets
        along without that.)"""
        while True:
            f = open(self.path, 'a+')
            with contextlib.suppress(ImportError, OSError):
                import fcntl  # not on Windows
                fcntl.flock(f, fcntl.LOCK_EX)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(f.fileno()), os.stat(self.path)):
                    break
            f.close()  # its owner has removed it meanwhile
        with f:
            f.seek(0)
            yield f

    def is_gone(self, owner, f):
        pid, born = owner.get('pid'), owner.get('born')
        if all(owner.get(key) == self.me[key] for key in ('host', 'pid_space')) and born:
            return birth(pid) != born or pid == self.me['pid']  # or: a notebook runs it again
        if configurator.is_later_try(owner):
            return True
        with tempfile.TemporaryFile(dir=self.parent) as now:  # the disk's own clock
            silent = os.fstat(now.fileno()).st_mtime - os.fstat(f.fileno()).st_mtime
        return silent > SILENT

    def show_life(self):
        while not self.released.wait(SIGN_OF_LIFE):
            if self.is_mine():
                with contextlib.suppress(OSError):
                    os.utime(self.path)

    def is_mine(self):
        return read_json(self.path) == self.me

    def expect_mine(self, last_owner):
        """Raises FolderInUse if another process has taken the folder over, as it may while this one
        is asleep, and on a disk without flock. last_owner: who has written status.json: where that
        is this process, somebody has only removed the file."""
        owner = read_json(self.path) or last_owner or self.me
        if owner != self.me:
            raise FolderInUse(in_use(self.name, owner))

    def release(self):
        self.released.set()
        with contextlib.suppress(OSError):
            if read_json(self.path) == self.me:
                with self.held() as f:
                    if json_of(f) == self.me:
                        os.remove(self.path)
            if self.parent_is_mine:  # a start that was refused leaves nothing
                os.rmdir(self.parent)


def json_of(f):
    """The object in an open file; {} if its writer was killed, or if it is none of ours."""
    try:
        content = json.loads(f.read(100_000))
        return content if isinstance(content, dict) else {}
    except (ValueError, RecursionError):
        return {}


def read_json(path):
    """The object in a file, {} where there is none that can be read."""
    with contextlib.suppress(OSError), open(path, encoding='utf-8', errors='replace') as f:
        return json_of(f)
    return {}


def in_use(name, owner):
    host, pid, since = (owner.get(key, 'unknown') for key in ('host', 'pid', 'since'))
    return (f'{name} is in use: process {pid} on {host!r} trains there since {since}\n'
            'wait for it or stop it, or use another --out_dir\n(a process that was killed on '
            f'another machine counts as gone after {SILENT // 60} minutes)')


def birth(pid):
    """When a process of this machine was started, in ticks since boot; 'alive' where nobody can
    tell, '' where it is gone."""
    try:
        if os.path.exists('/proc/self/stat'):
            with open(f'/proc/{int(pid)}/stat') as f:
                fields = f.read().rpartition(')')[2].split()
            return '' if fields[0] in 'ZX' else fields[19]  # a zombie writes nothing any more
        if os.name == 'posix':  # elsewhere, kill would do what it is called
            os.kill(int(pid), 0)
            return 'alive'
    except (OSError, ValueError, TypeError, OverflowError):
        pass
    return ''


def pid_space():
    """Containers may have one name for their host, and count their processes each from 1."""
    try:
        return os.readlink('/proc/self/ns/pid')
    except OSError:
        return ''
