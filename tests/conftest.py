"""For all tests: a small world, trained once."""

import shutil

import pytest
from launch import CONFIG, STAGES, recording, train

pytest_plugins = ['fault_matrix']


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
