"""
Scripts in processes that have torch already: importing it takes three seconds, and most of what
tests start takes less. A server, started once for each process of pytest, imports libraries and no
module of this repository; each script is a child that it forks.
"""

import atexit
import io
import multiprocessing
import os
import runpy
import sys
import tempfile
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIBRARIES = [
    'torch',
    'torch.distributed.nn.functional',
    'torch.func',
    'torch.nn.parallel',
    'torch.utils.checkpoint',
    'h5py',
    'PIL.Image',
    'PIL.ImageDraw',
]


def server():
    os.environ.setdefault('OMP_NUM_THREADS', '1')  # torch reads it when it is imported
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(LIBRARIES)
    return context


class Script:
    """A script that runs as `python argv` would."""

    def __init__(self, argv, env):
        self.folder = tempfile.TemporaryDirectory()  # where its output goes
        self.files = [os.path.join(self.folder.name, name) for name in ('stdout', 'stderr')]
        self.child = server().Process(target=be, args=(argv, env, *self.files))
        self.child.start()
        self.kill = self.child.kill

    def wait(self, timeout):
        """To its end: (exit code, stdout, stderr)."""
        self.child.join(timeout)
        if self.child.is_alive():
            self.kill()
            raise TimeoutError(self.child)
        with self.folder:
            return self.child.exitcode, *(Path(path).read_text() for path in self.files)


def be(argv, env, stdout, stderr):
    """In the child: becomes the script, and ends as Python does."""
    for number, path in ((1, stdout), (2, stderr)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
        os.close(file)
    sys.stdout = io.TextIOWrapper(open(1, 'wb', closefd=False))
    sys.stderr = io.TextIOWrapper(open(2, 'wb', closefd=False), line_buffering=True)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(ROOT)
    sys.argv, sys.path[0] = argv, os.path.dirname(argv[0])
    try:
        try:
            runpy.run_path(sys.argv[0], run_name='__main__')
        except SystemExit:
            raise
        except BaseException:
            sys.excepthook(*sys.exc_info())  # may raise SystemExit, too
            raise SystemExit(1) from None
        code = 0
    except SystemExit as e:
        code = e.code or 0
    if not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code & 255)
