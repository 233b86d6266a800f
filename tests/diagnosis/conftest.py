"""For the tests of diagnose.py: the real logs, unpacked."""
import lzma

import pytest
from reports import LOGS


@pytest.fixture(scope='session')
def logs(tmp_path_factory):
    folder = tmp_path_factory.mktemp('logs')
    for path in LOGS.iterdir():
        data = path.read_bytes()
        if path.suffix == '.xz':
            data = lzma.decompress(data)
        (folder / path.name.removesuffix('.xz')).write_bytes(data)
    return folder
