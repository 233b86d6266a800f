"""A file is written whole or not at all."""
import contextlib
import glob
import os
import shutil
import time


class DiskError(Exception):
    """A file cannot be written. What stood there before is untouched."""
    exit_code = 7


def free_space(folder):
    """Bytes free on the disk where folder is, or would be."""
    folder = os.path.abspath(folder)
    while not os.path.exists(folder):
        folder = os.path.dirname(folder)
    return shutil.disk_usage(folder).free


@contextlib.contextmanager
def replacing(path):
    """Yields a temporary name beside `path`, to be written, and renames it to `path` at the end.

    Whoever looks sees the old file or the whole new one, whenever the process is killed; a block
    that raises leaves nothing behind. Raises DiskError where the disk says no.
    """
    path = str(path)
    folder = os.path.dirname(path) or '.'
    tmp = f'{path}.tmp{os.getpid()}'  # same folder: a rename is atomic only within one file system
    try:
        os.makedirs(folder, exist_ok=True)
        for old in glob.glob(glob.escape(path) + '.tmp*'):
            if time.time() - os.path.getmtime(old) > 3600:  # its writer was killed an hour ago
                os.remove(old)
        yield tmp
        with open(tmp, 'rb+') as f:
            os.fsync(f.fileno())
        os.replace(tmp, path)
        if os.name != 'nt':  # Windows cannot open a folder; elsewhere the name outlives a power cut
            fd = os.open(folder, os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)
    except OSError as e:
        reason = ' '.join(str(e).split())[:200]
        raise DiskError(f'{path}: cannot be written ({reason}; '
                        f'{free_space(folder) / 1e9:.2f} GB free)\n'
                        '  cure: free some space, or choose a folder that you may write to') from e
    finally:
        with contextlib.suppress(OSError):
            os.remove(tmp)
