"""Every rule of configurator.py, on three tiny scripts in a temporary folder that are launched as a
user launches them."""

import os
import re
import shutil
import subprocess
import sys

import pytest
from launch import ROOT

import configurator

pytestmark = pytest.mark.slow  # it starts a process for every rule

TOKENIZER = '''"""
Stage one of the fake.

    python tokenizer.py
"""
import os
import configurator
# -----------------------------------------------------------------------------
# data
dataset = 'data/tiny.h5' # path of the "#1" dataset
seed = 0
_private = os.getcwd()
# model
levels = (4, 4, 4)       # FSQ levels
n_layer = 4
scales = (1.0, 2.0)
names = []
limit = None             # seconds
learning_rate = 1e-3     # peak
compile = True
device = 'auto'
dtype = 'float32'
config = configurator.apply(__file__, globals())
ddp, *_ = configurator.processes()
derived = 7
print('RESULT', repr(config))
assert all(globals()[k] == v for k, v in config.items())
assert 'derived' not in config and '_private' not in config
'''
DYNAMICS = TOKENIZER.replace('Stage one', 'Stage three').replace(
    'n_layer = 4', 'n_layer = 6\nmaskgit_steps = 8 # passes'
)
SAMPLE = '''"""Draw."""
import configurator
maskgit_steps = 8
temperature = 1.0
config = configurator.apply(__file__, globals())
print("RESULT", config)
'''


LAUNCHER = (
    'RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT TORCHELASTIC_RUN_ID '
    'SLURM_PROCID SLURM_NTASKS SLURM_STEP_NUM_TASKS SLURM_JOB_ID OMPI_COMM_WORLD_RANK '
    'OMPI_COMM_WORLD_SIZE PMI_RANK PMI_SIZE'
).split()


def rank(r, of=2):
    """The environment of one process of several, as a launcher makes it."""
    return dict(
        RANK=str(r),
        LOCAL_RANK=str(r),
        WORLD_SIZE=str(of),
        MASTER_ADDR='127.0.0.1',
        MASTER_PORT='29500',
    )


@pytest.fixture
def repo(tmp_path):
    (tmp_path / 'config').mkdir()
    shutil.copy(os.path.join(ROOT, 'configurator.py'), tmp_path)
    for name, source in dict(
        tokenizer=TOKENIZER, dynamics=DYNAMICS, sample=SAMPLE, model='x = 1 + 1\n'
    ).items():
        (tmp_path / f'{name}.py').write_text(source)
    return tmp_path


def launch(repo, *argv, script='tokenizer', cwd=None, **env):
    env = {k: v for k, v in os.environ.items() if k not in LAUNCHER} | env
    return subprocess.run(
        [sys.executable, str(repo / f'{script}.py'), *argv],
        cwd=cwd or repo,
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
    )


def resolved(repo, *argv, **kw):
    """The resolved config of a launch that must succeed."""
    run = launch(repo, *argv, **kw)
    assert run.returncode == 0, run.stderr
    return eval(run.stdout.split('RESULT ')[1])


def refused(repo, *argv, **kw):
    """The message of a launch that must fail: exit code 2, one to three lines on stderr, no
    traceback."""
    run = launch(repo, *argv, **kw)
    assert run.returncode == 2, (run.returncode, run.stdout, run.stderr)
    assert (
        re.match(r'(rank \w+: )?config: ', run.stderr)
        and 'Traceback' not in run.stderr
        and 'RESULT' not in run.stdout
    )
    assert 1 <= len(run.stderr.strip().splitlines()) <= 3, run.stderr
    return run.stderr


# -----------------------------------------------------------------------------
# what is accepted


def test_defaults_are_the_literals_above_the_line(repo):
    assert resolved(repo) == dict(
        dataset='data/tiny.h5',
        seed=0,
        levels=(4, 4, 4),
        n_layer=4,
        scales=(1.0, 2.0),
        names=(),
        limit=None,
        learning_rate=1e-3,
        compile=True,
        device='auto',
        dtype='float32',
    )


@pytest.mark.parametrize(
    'arg, key, value',
    [
        ('--dataset=data/x.h5', 'dataset', 'data/x.h5'),  # a str needs no quotes
        ("--dataset='data/x.h5'", 'dataset', 'data/x.h5'),  # and may have them
        ('--dataset=2024', 'dataset', '2024'),  # even where it looks like a number
        ('--dataset=a=b', 'dataset', 'a=b'),
        ('--dtype=float16', 'dtype', 'float16'),
        ('--device=cuda:1', 'device', 'cuda:1'),
        ('--learning_rate=1e-2', 'learning_rate', 0.01),
        (
            '--learning_rate=1',
            'learning_rate',
            1.0,
        ),  # int becomes float; and 1.0 is allowed, the user may want to diverge
        ('--compile=False', 'compile', False),
        ('--levels=[5,5]', 'levels', (5, 5)),  # list becomes tuple
        ('--levels=5,5', 'levels', (5, 5)),
        ('--scales=(1,)', 'scales', (1.0,)),
        ("--names=('a',)", 'names', ('a',)),
        ('--limit=2.5', 'limit', 2.5),
    ],
)
def test_command_line_value(repo, arg, key, value):
    found = resolved(repo, arg)[key]
    assert found == value and type(found) is type(value)
    assert (
        all(type(a) is type(b) for a, b in zip(found, value)) if isinstance(value, tuple) else True
    )


def test_later_wins(repo):
    (repo / 'config/a.py').write_text('n_layer = 2\nseed = 1\ntokenizer = dict(seed=10)\n')
    (repo / 'config/b.py').write_text('n_layer = 3\nseed = 2\n')
    assert resolved(repo, 'config/a.py', '--n_layer=9')['n_layer'] == 9
    assert resolved(repo, '--n_layer=9', 'config/a.py')['n_layer'] == 2
    assert resolved(repo, 'config/a.py', 'config/b.py')['n_layer'] == 3
    assert resolved(repo, '--n_layer=8', '--n_layer=9')['n_layer'] == 9
    assert (
        resolved(repo, 'config/a.py', 'config/b.py')['seed'] == 2
    )  # a stage dict beats the plain names of its own file only


def test_stage_dict_beats_plain_name_and_is_for_one_script(repo):
    (repo / 'config/a.py').write_text(
        'dynamics = dict(n_layer=12)\nn_layer = 2\nmaskgit_steps = 3\n'
    )  # the order within a file is no matter
    assert resolved(repo, 'config/a.py')['n_layer'] == 2
    found = resolved(repo, 'config/a.py', script='dynamics')
    assert found['n_layer'] == 12 and found['maskgit_steps'] == 3
    assert resolved(repo, 'config/a.py', script='sample') == dict(maskgit_steps=3, temperature=1.0)


def test_config_file_is_python(repo):
    (repo / 'config/a.py').write_text(
        'import os\nfrom math import sqrt\ndef f(): return 5\n_two = 2\nn_layer = f() + _two\n'
        'seed = int(sqrt(9))\ndataset = os.path.basename(__file__)\n'
    )
    found = resolved(repo, 'config/a.py')
    assert (found['n_layer'], found['seed'], found['dataset']) == (7, 3, 'a.py')


def test_runs_from_anywhere(repo, tmp_path_factory):
    (repo / 'config/a.py').write_text('n_layer = 2\n')
    elsewhere = tmp_path_factory.mktemp('elsewhere')
    assert resolved(repo, 'config/a.py', cwd=elsewhere)['n_layer'] == 2
    (elsewhere / 'mine.py').write_text('n_layer = 3\n')
    assert resolved(repo, 'mine.py', cwd=elsewhere)['n_layer'] == 3


def test_echo_names_changes_sources_and_digest(repo):
    (repo / 'config/a.py').write_text('n_layer = 2\n')
    lines = [
        launch(repo, *argv).stdout.splitlines()[0]
        for argv in (['config/a.py', '--seed=1'], ['--seed=1', '--n_layer=2'], [])
    ]
    assert (
        lines[0].startswith('config: seed=1 n_layer=2 (config/a.py, --seed=1, ')
        and 'defaults' in lines[2]
    )
    digests = [line.rstrip(')').split()[-1] for line in lines]
    assert digests[0] == digests[1] != digests[2]  # of what was resolved, whichever way it came


def test_help(repo):
    run = launch(repo, 'config/nowhere.py', '--help', script='dynamics')
    assert run.returncode == 0 and 'RESULT' not in run.stdout
    assert 'Stage three of the fake.' in run.stdout and '_private' not in run.stdout
    rows = {line.split()[0]: line for line in run.stdout.splitlines() if line.startswith('  --')}
    assert list(rows) == [
        '--dataset',
        '--seed',
        '--levels',
        '--n_layer',
        '--maskgit_steps',
        '--scales',
        '--names',
        '--limit',
        '--learning_rate',
        '--compile',
        '--device',
        '--dtype',
    ]
    assert "'data/tiny.h5'" in rows['--dataset'] and rows['--dataset'].endswith(
        'path of the "#1" dataset'
    )
    assert len({line.index(' = ') for line in rows.values()}) == 1  # aligned
    assert launch(repo, '-h').stdout == launch(repo, '--help').stdout


# -----------------------------------------------------------------------------
# what is refused


@pytest.mark.row(37)
@pytest.mark.parametrize(
    'argv, words',
    [
        (['--learing_rate=1e-3'], ['learing_rate', "did you mean 'learning_rate'?"]),
        (['--qqqqqq=1'], ['qqqqqq', '--help']),
        (
            ['--maskgit_steps=3'],
            ["'maskgit_steps' is a key of dynamics.py and sample.py, not of tokenizer.py"],
        ),
        (['--n_layer=4.0'], ['n_layer', 'float 4.0', 'expected int', '4']),
        (['--n_layer=True'], ['bool True', 'expected int']),
        (['--n_layer=four'], ["str 'four'", 'expected int']),
        (['--compile=true'], ["str 'true'", 'expected bool', 'write True or False']),
        (['--compile=1'], ['int 1', 'expected bool']),
        (['--learning_rate=True'], ['bool True', 'expected float']),
        (['--learning_rate=1e999'], ['inf', 'expected float']),
        (['--levels=4'], ['int 4', 'expected tuple of int']),
        (['--levels=(4,4.5)'], ['(4, 4.5)', 'expected tuple of int']),
        (['--limit=[1]'], ['list [1]']),
        (['--seed=None'], ['NoneType None', 'expected int']),
        (['--learning_rate=0'], ['learning_rate', 'found 0.0', 'expected in (0, 10]']),
        (['--n_layer=0'], ['n_layer', 'found 0', 'expected >= 1']),
        (['--levels=(4,1)'], ['levels', '(4, 1)', '>= 2']),
        (['--levels=()'], ['levels', '()', '>= 2']),
        (['--device=gpu'], ["'gpu'", 'cuda:N']),
        (['--device=cuda:'], ["'cuda:'", 'cuda:N']),
        (['--dtype=float64'], ["'float64'", 'float32, bfloat16, float16']),
        (['n_layer=4'], ["'n_layer=4'", '--key=value']),
        (['--compile'], ["'--compile'", '--compile=VALUE']),
        (['-x'], ["'-x'", '--key=value']),
        (['config/ok.py', 'config/nowhere.py'], ['config/nowhere.py', 'config holds ok.py']),
        (['--n_layer=' + '9' * 5000], ['n_layer']),
        (['--n_layer=' + '(' * 5000], ['n_layer']),
        (['--n_layer=' + '-' * 50000 + '1'], ['n_layer']),
    ],
)
def test_refused_on_the_command_line(repo, argv, words):
    (repo / 'config/ok.py').write_text('n_layer = 2\n')
    message = refused(repo, *argv)
    assert all(word in message for word in words), message


@pytest.mark.row(37)
@pytest.mark.parametrize(
    'source, words',
    [
        ('learing_rate = 1e-3', ['config/a.py', "'learing_rate'", "did you mean 'learning_rate'?"]),
        ('dynamcs = dict(n_layer=3)', ["'dynamcs'", "did you mean 'dynamics'?"]),
        (
            'dynamics = dict(n_laier=3)',
            ['dynamics', "'n_laier'", "did you mean 'n_layer'?"],
        ),  # checked though tokenizer.py runs
        (
            'sample = dict(n_layer=3)',
            ["'n_layer' is a key of dynamics.py and tokenizer.py, not of sample.py"],
        ),
        (
            'sample = dict(temperature="hot")',
            ['sample', 'temperature', "str 'hot'", 'expected float'],
        ),
        (
            'temperature = -1.0',
            ['temperature', 'sample.py', 'found -1.0', 'expected 0 or >= 0.001'],
        ),  # no key of tokenizer.py
        ('dynamics = 3', ['dynamics', 'found 3', 'dict(...)']),
        ('n_layer = "4"', ['config/a.py', 'n_layer', "str '4'", 'expected int']),
        ('n_layer = None', ['NoneType']),
        ('learning_rate = float("nan")', ['learning_rate', 'nan']),
        ('seed = 1\nn_layer = 1 / 0', ['config/a.py line 2: ZeroDivisionError']),
        ('seed = 1\nn_layer = (', ['config/a.py line 2: SyntaxError']),
        ('def f():\n    return nothing\nseed = f()', ['config/a.py line 2: NameError']),
        ('raise SystemExit(0)', ['config/a.py line 1: SystemExit']),
        ('raise ValueError("a\\nb\\nc\\nd")', ['config/a.py line 1: ValueError: a b c d']),
        ('seed = 1\0', ['config/a.py']),
    ],
)
def test_refused_in_a_config_file(repo, source, words):
    (repo / 'config/a.py').write_text(source + '\n')
    message = refused(repo, 'config/a.py')
    assert all(word in message for word in words), message


def test_setting_that_is_not_a_literal_is_told_to_the_author(repo):
    (repo / 'dynamics.py').write_text(DYNAMICS.replace('seed = 0', 'seed = 16 * 64'))
    message = refused(repo)  # tokenizer.py cannot know the keys of dynamics.py either
    assert 'dynamics.py line 11: seed' in message and 'literal' in message


def test_syntax_error_in_another_script(repo):
    (repo / 'dynamics.py').write_text(DYNAMICS + 'def (\n')
    assert 'dynamics.py line' in refused(repo)


def test_rank_0_speaks_for_all_and_every_rank_of_its_own_mistakes(repo):
    assert refused(repo, '--n_layer=x', **rank(0)).startswith('config: ')
    assert refused(repo, '--n_layer=x', **rank(1)).startswith('rank 1: config: ')
    assert launch(repo, '--seed=1', **rank(1)).stdout.startswith('RESULT')
    assert launch(repo, '--help', **rank(1)).stdout == ''


TORCHRUN = 'torchrun --standalone --nproc_per_node=4 tokenizer.py'
ALONE = 'env -u RANK -u WORLD_SIZE python tokenizer.py'


@pytest.mark.row(42)
@pytest.mark.parametrize(
    'env, words',
    [
        (dict(WORLD_SIZE='4'), ['WORLD_SIZE=4', 'no RANK', TORCHRUN, ALONE]),
        (dict(WORLD_SIZE='4', MASTER_ADDR='node1', MASTER_PORT='29500'), ['WORLD_SIZE=4', ALONE]),
        (dict(RANK='1'), ['rank 1: ', 'RANK=1', 'LOCAL_RANK, WORLD_SIZE, MASTER_ADDR', ALONE]),
        (dict(RANK='0'), ['RANK=0', 'MASTER_ADDR', 'torchrun', ALONE]),
        (rank(0) | dict(MASTER_ADDR=''), ['no MASTER_ADDR:']),
        (rank(2), ['RANK=2', 'WORLD_SIZE=2']),
        (rank(0) | dict(RANK='x'), ['RANK=x', 'whole numbers']),
        (rank(0) | dict(MASTER_PORT='http'), ['MASTER_PORT=http', 'whole numbers']),
        (dict(SLURM_PROCID='0', SLURM_NTASKS='2'), ['task 0 of 2 of srun', 'torchrun']),
        (
            dict(SLURM_PROCID='1', SLURM_STEP_NUM_TASKS='2'),
            ['task 1 of 2', 'srun -n 1 python tokenizer.py'],
        ),
        (
            dict(OMPI_COMM_WORLD_RANK='1', OMPI_COMM_WORLD_SIZE='4'),
            ['task 1 of 4 of mpirun', 'mpirun -n 1 python tokenizer.py'],
        ),
    ],
)
def test_half_of_what_a_launcher_says_is_refused(repo, env, words):
    """Alone with the batches of a quarter, a run would report a quarter of every loss."""
    message = refused(repo, **env)
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    'env, here',
    [
        ({}, (False, 0, 0, 1, 1)),
        (dict(WORLD_SIZE='1'), (False, 0, 0, 1, 1)),
        (rank(1), (True, 1, 1, 2, 2)),
        (rank(3, of=4) | dict(LOCAL_RANK='1', LOCAL_WORLD_SIZE='2'), (True, 3, 1, 4, 2)),
        # a job of several tasks, in the shell of the job itself, or in one of `srun --ntasks=1`
        (dict(SLURM_PROCID='0', SLURM_NTASKS='4', SLURM_STEP_NUM_TASKS='1'), (False, 0, 0, 1, 1)),
    ],
)
def test_what_a_launcher_says(monkeypatch, env, here):
    for name in LAUNCHER:
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert configurator.processes() == here


@pytest.mark.row(42)
@pytest.mark.parametrize(
    'env, words',
    [
        (dict(RANK='1'), ['rank 1: ', 'sample.py is one process', 'python sample.py']),
        (rank(0), ['sample.py is one process']),
        (dict(SLURM_PROCID='1', SLURM_NTASKS='2'), ['srun -n 1 python sample.py']),
    ],
)
def test_a_script_that_is_one_process_is_not_started_twice(repo, env, words):
    message = refused(repo, script='sample', **env)
    assert all(word in message for word in words), message
    assert (
        launch(repo, script='sample', WORLD_SIZE='4', SLURM_PROCID='0', SLURM_NTASKS='4').returncode
        == 0
    )  # in the same batch script as the training


@pytest.mark.parametrize('argument', ['--local-rank=0', '--local_rank=1'])
def test_the_old_launcher(repo, argument):
    assert 'torchrun --standalone --nproc_per_node=2 tokenizer.py' in refused(repo, argument)


def test_processes_that_do_not_find_each_other_say_so(repo):
    """What torch raises for it has no exit code of ours."""
    error = """
class DistNetworkError(Exception):
    pass
raise DistNetworkError('the client socket\\nhas timed out')
"""
    (repo / 'tokenizer.py').write_text((repo / 'tokenizer.py').read_text() + error)
    done = launch(repo, **rank(0))
    assert done.returncode == 2 and 'Traceback' not in done.stderr
    assert '127.0.0.1:29500: the client socket has timed out' in done.stderr


# -----------------------------------------------------------------------------
# a copied script


def test_a_copy_is_the_stage_that_its_line_names(repo):
    """`cp dynamics.py dynamics_v2.py` is the way of working: the config still reaches it."""
    source = DYNAMICS + "stage = 'dynamics'\n"
    (repo / 'dynamics.py').write_text(source)
    (repo / 'dynamics_v2.py').write_text(source.replace('n_layer = 6', 'n_layer = 7\nwidth = 1'))
    (repo / 'config/a.py').write_text('dynamics = dict(maskgit_steps=3)\n')
    assert resolved(repo, 'config/a.py', script='dynamics_v2')['maskgit_steps'] == 3
    said = launch(repo, 'config/a.py', script='dynamics_v2').stdout
    assert 'dynamics_v2.py is a copy of the stage' in said and 'out_dir/dynamics.' in said
    assert 'a copy' not in launch(repo, 'config/a.py', script='dynamics').stdout
    (repo / 'config/b.py').write_text('dynamics = dict(width=3)\n')  # a key of the copy alone
    assert resolved(repo, 'config/b.py', script='dynamics_v2')['width'] == 3


def test_a_copy_with_its_own_line_is_a_stage_of_its_own(repo):
    (repo / 'dynamics_v2.py').write_text(DYNAMICS + "stage = 'dynamics_v2'\n")
    (repo / 'config/a.py').write_text('dynamics = dict(n_layer=3)\ndynamics_v2 = dict(n_layer=4)')
    assert resolved(repo, 'config/a.py', script='dynamics_v2')['n_layer'] == 4
    assert resolved(repo, 'config/a.py', script='dynamics')['n_layer'] == 3


@pytest.mark.parametrize('line', ["stage = 'dyn' + 'amics'", 'stage: str = STAGE', 'stage = 3'])
def test_a_stage_line_that_cannot_be_read(repo, line):
    (repo / 'dynamics_v2.py').write_text(DYNAMICS + line)
    message = refused(repo)
    assert 'dynamics_v2.py line' in message and "expected stage = 'NAME'" in message


def test_a_stage_line_with_a_type(repo):
    (repo / 'dynamics_v2.py').write_text(DYNAMICS + "stage: str = 'dynamics'\n")
    (repo / 'config/a.py').write_text('dynamics = dict(n_layer=3)')
    assert resolved(repo, 'config/a.py', script='dynamics_v2')['n_layer'] == 3


def test_a_copy_of_the_same_name_elsewhere_has_its_own_defaults(repo):
    for folder in ('aaa', 'zzz'):  # before and after the repository's in the alphabet
        copy = repo.parent / f'{folder}{repo.name}' / 'tokenizer.py'
        copy.parent.mkdir()
        copy.write_text(TOKENIZER.replace('n_layer = 4', 'n_layer = 9'))
        done = subprocess.run(
            [sys.executable, str(copy)],
            cwd=repo,
            capture_output=True,
            text=True,
            env=os.environ | dict(PYTHONPATH=str(repo)),
        )
        assert "'n_layer': 9" in done.stdout, done.stderr


def test_what_an_editor_leaves_is_no_script(repo):
    (repo / '.#dynamics.py').symlink_to('nobody@nowhere')
    (repo / '._dynamics.py').write_bytes(b'\0\xb0')
    (repo / 'latin.py').write_bytes(b"word = 'caf\xe9'")
    assert resolved(repo)['n_layer'] == 4


def test_the_name_of_a_file_that_is_no_stage(repo):
    (repo / 'dynamics_v2.py').write_text(DYNAMICS + "stage = 'dynamics'\n")
    (repo / 'config/a.py').write_text('dynamics_v2 = dict(n_layer=3)\n')
    message = refused(repo, 'config/a.py')
    assert 'write dynamics = dict(...)' in message and "stage = 'dynamics'" in message


@pytest.mark.parametrize(
    'argument, meant',
    [
        ('--lr=1', ["'learning_rate'"]),
        ('--epochs=3', ["'max_iters'"]),
        ('--batch_size=3', ["'device_batch_size'", "'total_batch_size'"]),
        ('--size=3', ["'patch_size'"]),
    ],
)
def test_a_key_of_other_trainers_leads_to_ours(argument, meant):
    with pytest.raises(configurator.ConfigError) as e:
        configurator.resolve('tokenizer', real_scripts(), [argument])
    assert all(key in str(e.value) for key in meant), e.value


def test_one_window_has_no_other_to_be_compared_with():
    with pytest.raises(configurator.ConfigError, match='>= 2'):
        configurator.resolve('eval', real_scripts(), ['--n_windows=1'])


@pytest.mark.parametrize('argument', ['--seed=12345678901234567890', '--max_iters=9999999999'])
def test_a_number_that_torch_cannot_take(argument):
    for stem in ('tokenizer', 'sample'):
        if argument.startswith('--seed') or stem == 'tokenizer':
            with pytest.raises(configurator.ConfigError, match='at most 2'):
                configurator.resolve(stem, real_scripts(), [argument])


def test_stop(repo):
    code = 'import configurator; configurator.time.sleep = print; configurator.stop(5, "why")'

    def run(**env):
        done = subprocess.run(
            [sys.executable, '-c', code],
            cwd=repo,
            env=os.environ | env,
            capture_output=True,
            text=True,
        )
        return done.returncode, done.stderr, done.stdout

    assert run(RANK='0') == (5, 'why\n', '')
    assert run(RANK='1') == (5, 'rank 1: why\n', '')  # nobody else would say it
    assert run(RANK='1', TORCHELASTIC_RUN_ID='x') == (
        5,
        'rank 1: why\n',
        '5\n',
    )  # waits, and speaks where rank 0 did not


def test_an_error_that_carries_an_exit_code_ends_a_script_in_its_own_words(repo):
    """And any other in a traceback: no script needs a `try` around what it loads."""
    error = """
class Mistake(Exception):
    exit_code = 3
raise Mistake('the file is empty')
"""
    (repo / 'tokenizer.py').write_text((repo / 'tokenizer.py').read_text() + error)
    done = launch(repo)
    assert done.returncode == 3 and done.stderr == 'the file is empty\n'
    other = launch(repo, **rank(1))
    assert other.returncode == 3 and other.stderr == 'rank 1: the file is empty\n'
    text = (repo / 'tokenizer.py').read_text().replace('exit_code = 3', 'pass')
    (repo / 'tokenizer.py').write_text(text)
    done = launch(repo)
    assert (
        done.returncode == 1 and 'Traceback' in done.stderr and 'the file is empty' in done.stderr
    )


# -----------------------------------------------------------------------------
# the scripts and config files of this repository


def real_scripts():
    found = {
        n[:-3]: configurator.read_script(os.path.join(ROOT, n))
        for n in sorted(os.listdir(ROOT))
        if n.endswith('.py') and n != 'configurator.py'
    }
    return {stem: script for stem, script in found.items() if script}


def test_every_config_file_suits_every_script():
    scripts, folder = real_scripts(), os.path.join(ROOT, 'config')
    files = (
        [os.path.join(folder, n) for n in sorted(os.listdir(folder)) if n.endswith('.py')]
        if os.path.isdir(folder)
        else []
    )
    for stem in scripts:
        for argv in [[]] + [[f] for f in files]:
            configurator.resolve(stem, scripts, argv)


def test_a_key_has_one_type_in_all_scripts():
    kinds = {}
    for stem, script in real_scripts().items():
        for key, (default, _) in script.keys.items():
            first, kind = kinds.setdefault(key, (stem, type(default)))
            assert (
                type(default) is kind
            ), f'{key} is {kind.__name__} in {first}.py and {type(default).__name__} in {stem}.py'


@pytest.mark.parametrize(
    'asked, meant', [('auto', 'cuda:0'), ('cuda', 'cuda:0'), ('cuda:1', 'cuda:1'), ('cpu', 'cpu')]
)
def test_the_device_that_is_meant(monkeypatch, asked, meant):
    monkeypatch.setattr('torch.cuda.device_count', lambda: 2)
    assert configurator.find_device(asked) == meant


def test_a_gpu_that_is_not_there(monkeypatch):
    """Under torchrun rank 2 asks for the third one."""
    monkeypatch.setattr('torch.cuda.device_count', lambda: 2)
    with pytest.raises(configurator.ConfigError) as e:
        configurator.find_device('cuda:2', 2)
    assert all(
        w in str(e.value)
        for w in ("'cuda:2'", 'expected one of cuda:0, cuda:1, cpu', 'no more processes than GPUs')
    )


@pytest.mark.parametrize(
    'argument, words',
    [
        ('--n_head=7', ['n_head=7', 'n_embd=128', 'multiple of 4 * n_head = 28', '112']),
        ('--n_embd=130', ['n_embd=130', 'multiple of 4 * n_head = 16']),
        ('--levels=(4096,4096,2)', ['2**24']),
        ('--fsdp=True', ['torchrun']),
    ],
)
def test_sizes_that_do_not_go_together_are_refused(argument, words):
    """What a constructor of model.py would raise is said before anything begins."""
    with pytest.raises(configurator.ConfigError) as e:
        configurator.resolve('tokenizer', real_scripts(), [argument])
    assert e.value.exit_code == 2 and all(word in str(e.value) for word in words)
