"""A file is written whole or not at all."""
import contextlib
import errno
import glob
import os
import re
import shutil
import tempfile
import time


class DiskError(Exception):
    """A file cannot be written. What stood there before is untouched."""
    exit_code = 7


def printable(text):
    """A name from a file, or of one, as a terminal may show it."""
    return ''.join(c if c.isprintable() else '\N{REPLACEMENT CHARACTER}' for c in str(text))


def nearest_that_exists(folder):
    """The folder, or the one in which it would be made."""
    folder = os.path.abspath(folder)
    while not os.path.exists(folder):
        folder = os.path.dirname(folder)
    return folder


def free_space(folder):
    """Bytes free on the disk where folder is, or would be."""
    return shutil.disk_usage(nearest_that_exists(folder)).free


def why_not_written(path, error):
    """What a DiskError says of the OSError that kept `path` from being written."""
    reason = printable(' '.join(str(error).split())[:200])
    gigabytes = free_space(path) / 1e9
    return (f'{printable(path)}: cannot be written ({reason}; {gigabytes:.2f} GB free)\n'
            '  cure: free some space, or choose a folder that you may write to')


def expect_writable(folder):
    """Raises DiskError if no file can be written in the folder, or where it would be made.

    It tries, and leaves nothing. No flag tells: a shared disk can be read-only even for root.
    """
    try:
        with tempfile.TemporaryFile(dir=nearest_that_exists(folder)) as f:
            f.write(b'x')
    except OSError as e:
        raise DiskError(why_not_written(folder, e)) from e


def user_cache():
    """The folder for what can be made again and has no better place, or None if this user has
    none."""
    folder = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
    return os.path.join(folder, 'nanoworlds') if os.path.isabs(folder) else None


def sync(fd):
    """Waits until what was written is on the disk. Some network shares do not know how."""
    try:
        os.fsync(fd)
    except OSError as e:
        if e.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP):
            raise


@contextlib.contextmanager
def replacing(path):
    """Yields a temporary name beside `path`, to be written, and renames it to `path` at the end.

    Whoever looks sees the old file or the whole new one, whenever the process is killed; a block
    that raises leaves nothing behind. Raises DiskError where the disk says no.
    """
    path = os.path.realpath(path) if os.path.islink(path) else str(path)
    folder = os.path.dirname(path) or '.'
    tmp = f'{path}.tmp{os.getpid()}'  # same folder: a rename is atomic only within one file system
    try:
        os.makedirs(folder, exist_ok=True)
        for old in glob.glob(glob.escape(path) + '.tmp*'):
            is_ours = re.fullmatch('[0-9]+', old[len(path) + 4:]) and os.path.isfile(old)
            if is_ours and time.time() - os.path.getmtime(old) > 3600:  # its writer was killed
                os.remove(old)
        yield tmp
        with open(tmp, 'rb+') as f:
            sync(f.fileno())
        os.replace(tmp, path)
        if os.name != 'nt':  # Windows cannot open a folder; elsewhere the name outlives a power cut
            fd = os.open(folder, os.O_RDONLY)
            sync(fd)
            os.close(fd)
    except OSError as e:
        raise DiskError(why_not_written(path, e)) from e
    finally:
        with contextlib.suppress(OSError):
            os.remove(tmp)
