"""W&B, played by a module of the same name."""

import json
import sys
from types import ModuleType, SimpleNamespace

import pytest

from configurator import ConfigError
from training.tracker import Tracker

CONFIG = dict(wandb_log=True, wandb_project='p', out_dir='out/tiny')


class UsageError(Exception):
    pass


class CommError(Exception):
    pass


class AuthenticationError(CommError):
    pass


class Run(SimpleNamespace):
    """A run of W&B that remembers what it was told."""

    def define_metric(self, name, step_metric):
        self.metric = name, step_metric

    def log(self, row):
        if self.broken:
            raise CommError('no route to host')
        self.rows.append(row)

    def finish(self):
        self.log('finished')


@pytest.fixture
def wandb(monkeypatch):
    """.error: what init raises; .run: what it has made."""
    fake = ModuleType('wandb')
    fake.error, fake.run = None, None

    def init(**told):
        if fake.error:
            raise fake.error
        fake.run = Run(id=told['id'] or 'new1', rows=[], broken=False, told=told)
        return fake.run

    fake.init = init
    monkeypatch.setitem(sys.modules, 'wandb', fake)
    return fake


def test_a_run_and_the_one_that_goes_on_from_it_are_one(wandb):
    assert Tracker(CONFIG, 'dynamics', '').id == 'new1'
    assert wandb.run.told['name'] == 'out/tiny/dynamics' and wandb.run.told['id'] is None
    assert Tracker(CONFIG, 'dynamics', 'new1').id == 'new1'
    assert wandb.run.told['id'] == 'new1' and wandb.run.told['resume'] == 'allow'


def test_its_step_is_a_column(wandb):
    """W&B's own step only rises, and would drop what a rollback does again."""
    tracker = Tracker(CONFIG, 'dynamics', '')
    assert wandb.run.metric == ('*', 'iter')
    for row in (dict(iter=30, loss=9.0), dict(iter=20, loss=2.0)):
        tracker.log(row)
    tracker.finish()
    assert wandb.run.rows == [dict(iter=30, loss=9.0), dict(iter=20, loss=2.0), 'finished']


@pytest.mark.row(43)
@pytest.mark.parametrize(
    'error',
    [
        UsageError('No API key configured. Use `wandb login` to log in.'),
        AuthenticationError('API key verification failed'),
        CommError('permission denied'),
        TypeError('project must be a string'),
        ValueError('no such mode'),
    ],
)
def test_what_the_user_can_mend_is_refused(wandb, error):
    wandb.error = error
    with pytest.raises(ConfigError) as e:
        Tracker(CONFIG, 'dynamics', '')
    assert e.value.exit_code == 2 and str(error) in str(e.value)
    assert 'wandb login' in str(e.value) and 'WANDB_MODE=offline' in str(e.value)


@pytest.mark.parametrize(
    'error', [json.JSONDecodeError('a page of a hotel', '<html>', 0), PermissionError(13, 'wandb')]
)
def test_what_is_not_about_the_login_stops_no_training(wandb, error):
    wandb.error = error
    assert Tracker(CONFIG, 'dynamics', '').run is None


def test_a_folder_that_w_and_b_left_is_not_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, 'wandb', ModuleType('wandb'))
    with pytest.raises(ConfigError, match='pip install wandb'):
        Tracker(CONFIG, 'dynamics', '')


@pytest.mark.row(43)
def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, 'wandb', None)
    with pytest.raises(ConfigError, match='pip install wandb'):
        Tracker(CONFIG, 'dynamics', '')
    Tracker(CONFIG | dict(wandb_log=False), 'dynamics', '').log({})


def test_a_dead_network_stops_no_training(wandb, capsys):
    wandb.error = CommError('Run initialization has timed out after 90.0 sec')
    tracker = Tracker(CONFIG, 'dynamics', 'old1')
    assert 'goes on without it' in capsys.readouterr().out and tracker.id == 'old1'
    tracker.log(dict(iter=1))
    wandb.error = None
    tracker = Tracker(CONFIG, 'dynamics', '')
    wandb.run.broken = True
    for i in range(3):
        tracker.log(dict(iter=i))
    tracker.finish()
    assert capsys.readouterr().out.count('goes on without it') == 1
