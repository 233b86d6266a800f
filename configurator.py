"""
Settings, nanoGPT-style but strict. The settings ("keys") of a script are the plain assignments that
stand above its line

    config = configurator.apply(__file__, globals())

which overrides them from config files and the command line, in order, later wins, and returns them
as a dict:

    python dynamics.py config/zelda.py --n_layer=12 --dataset=data/other.h5
    python dynamics.py --help
    python play.py world.pt  # a file of export.py, for out_dir and dataset

A config file is Python and is executed, so trust it as you trust code. A plain name in it belongs
to every script that has the key; `dynamics = dict(...)` belongs to dynamics.py alone and beats the
plain name; _names are the file's own. The keys of all scripts are read off their sources, so every
launch of any script checks the whole file. (A copy of a script belongs to the stage that its line
`stage = '...'` names, whatever its file is called.) A mistake ends the run with exit code 2 and at
most three lines: found, expected, cure. From here on, so does every error with an exit_code.
"""
import ast
import contextlib
import difflib
import fnmatch
import hashlib
import io
import math
import os
import signal
import sys
import time
import tokenize
import traceback
import types
from dataclasses import dataclass
from typing import NamedTuple

HERE = os.path.dirname(os.path.abspath(__file__))


def one_of(*choices):
    return 'one of ' + ', '.join(choices), lambda v: v in choices


# what a value must be beyond having the type of its default: keys (* matches anything), words for
# the message, test
LIMITS = [
    ('max_iters *_interval eval_iters n_iters *_batch_size', '>= 1', lambda v: v >= 1),
    ('keep_checkpoints save_seconds ddp_timeout', '>= 1', lambda v: v >= 1),
    ('n_layer n_head n_embd patch_size frame_stride', '>= 1', lambda v: v >= 1),
    ('seq_len', '>= 1', lambda v: v >= 1),
    ('chunk best_of', 'in [1, 256]', lambda v: 1 <= v <= 256),
    ('maskgit_steps context_frames n_frames n_samples hold', '>= 1', lambda v: v >= 1),
    ('n_windows', '>= 2', lambda v: v >= 2),
    ('maskgit_steps n_frames n_samples hold', 'at most 10,000', lambda v: v <= 10_000),
    ('n_games', '>= 0', lambda v: v >= 0),
    ('levels action_levels', 'each level >= 2', lambda v: len(v) > 0 and min(v) >= 2),
    ('levels', 'a vocabulary, their product, of at most 2**24', lambda v: math.prod(v) <= 2**24),
    ('action_levels', 'at most 4096 actions, their product', lambda v: math.prod(v) <= 4096),
    ('learning_rate', 'in (0, 10]', lambda v: 0 < v <= 10),
    ('min_lr_frac corrupt', 'in [0, 1]', lambda v: 0 <= v <= 1),
    ('seed warmup_iters weight_decay grad_clip n_labels ct_weight', '>= 0', lambda v: v >= 0),
    ('*', 'a number of at most 2**31', lambda v: not isinstance(v, (int, float)) or v <= 2**31),
    ('temperature', '0 or >= 0.001', lambda v: v == 0 or v >= 1e-3),
    ('n_layer_encoder shift', '>= 0', lambda v: v >= 0),
    ('rare_share', 'in [0, 0.2]', lambda v: 0 <= v <= 0.2),
    ('file', 'a name that ends in .pt or .html', lambda v: v.endswith(('.pt', '.html'))),
    ('port', '0 or in [1024, 65535]', lambda v: v == 0 or 1024 <= v <= 65535),
    ('token', "'' or 16 or more of A-Z a-z 0-9 - _",
        lambda v: v == '' or len(v) >= 16 and v.isascii()
        and v.replace('-', '').replace('_', '').isalnum()),
    ('device', 'auto, cpu, cuda, cuda:N or mps',
        lambda v: v in ('auto', 'cpu', 'cuda', 'mps')
        or v.startswith('cuda:') and v[5:].isdecimal()),
    ('dtype', *one_of('float32', 'bfloat16', 'float16')),
    ('init_from', *one_of('scratch', 'resume', 'auto')),
    ('optimizer', *one_of('muon', 'adamw')),
    ('on_diverge', *one_of('stop', 'rollback')),
    ('action_source', *one_of('latent', 'labels', 'inverse', 'none')),
    ('energy', *one_of('off', 'isolated', 'separated', 'alternating', 'adaptive', 'cached',
                       'joint')),
    ('n_bins', 'odd and >= 3', lambda v: v >= 3 and v % 2),
    ('energy_temperature', '>= 0.001', lambda v: v >= 1e-3),
    ('stage', *one_of('all', 'tokenizer', 'latent_actions', 'dynamics', 'policy', 'sample')),
    ('part', *one_of('all', 'player')),
    ('prepare', '0, or 64, 128, 192 ...', lambda v: v >= 0 and v % 64 == 0),
]


# what other trainers call a key -> what it is called here
ELSEWHERE = {'lr': 'learning_rate', 'steps': 'max_iters', 'max_steps': 'max_iters',
             'epochs': 'max_iters', 'resume': 'init_from', 'data': 'dataset',
             'save_interval': 'eval_interval', 'output_dir': 'out_dir'}


class ConfigError(Exception):
    """What is wrong with the settings, in at most three lines."""
    exit_code = 2

    def __init__(self, text):
        super().__init__('config: ' + text.replace('\n', '\n        '))


def shortened(value):
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + '...'


# -----------------------------------------------------------------------------
# who started this process? It is asked here and nowhere else


class Processes(NamedTuple):
    """This process among those of its run."""
    ddp: bool = False  # a launcher such as torchrun started it
    rank: int = 0
    local_rank: int = 0  # among those of this machine
    world_size: int = 1
    local_world_size: int = 1


# who starts a command several times without telling the copies of each other: the names in their
# environment of the number of a task, and of how many there are (srun's own, then its job's)
COPIERS = [('srun', 'SLURM_PROCID', 'SLURM_STEP_NUM_TASKS', 'SLURM_NTASKS'),
           ('mpirun', 'OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE'),
           ('mpirun', 'PMI_RANK', 'PMI_SIZE')]


def processes(several=True):
    """
    What a launcher says in the environment -> Processes. Half of what it says is never believed: a
    forgotten WORLD_SIZE would divide every batch and every loss. several: may this script run as
    several processes? Raises ConfigError where it may not, and for half an environment.
    """
    env = {name: value for name, value in os.environ.items() if value}  # empty is not set
    script = os.path.basename(sys.argv[0])
    alone = f'for one process: env -u RANK -u WORLD_SIZE python {script} ...'
    if 'RANK' not in env:
        for launcher, task_name, *n_names in COPIERS:
            task = env.get(task_name, '')
            n = next((env[name] for name in n_names if name in env), '1')
            if task and n != '1' and (several or task != '0'):
                cure = f'for one process: {launcher} -n 1 python {script} ...'
                if several:
                    cure += (f'\nfor several: {launcher} with one task a machine, and in it '
                             f'torchrun --nproc_per_node=... {script} ...')
                raise ConfigError(f'found task {task} of {n} of {launcher}, and no RANK: each task '
                                  f'would do all of it, and write the same files\n{cure}')
        n = env.get('WORLD_SIZE') or '1'
        if several and n != '1':
            raise ConfigError(f'found WORLD_SIZE={n} in the environment and no RANK, expected both '
                              'or neither\n'
                              f'for {n} processes: torchrun --standalone --nproc_per_node={n} '
                              f'{script} ...\n{alone}')
        return Processes()
    needed = 'RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT'
    missing = [name for name in needed if not env.get(name)]
    found = f'found RANK={env["RANK"]} in the environment'
    if not several and (missing or env['WORLD_SIZE'] != '1'):
        if missing and env['RANK'] == '0':
            return Processes()
        raise ConfigError(f'{found}, but {script} is one process, and more of them would write the '
                          f'same files\n{alone}')
    if missing:
        raise ConfigError(f'{found}, but no {", ".join(missing)}: no launcher says so little\n'
                          f'for several processes: torchrun --standalone --nproc_per_node=2 '
                          f'{script} ...\n{alone}')
    names = 'RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'LOCAL_WORLD_SIZE'
    numbers = [env.get(name) or env['WORLD_SIZE'] for name in names]
    if all(text.isdecimal() for text in [*numbers, env['MASTER_PORT']]):
        rank, local_rank, world_size, local_world_size = map(int, numbers)
        if local_rank <= rank < world_size and local_rank < local_world_size <= world_size:
            return Processes(True, rank, local_rank, world_size, local_world_size)
    told = ', '.join(f'{name}={number}' for name, number in zip(names, numbers))
    raise ConfigError(f'found {told}, MASTER_PORT={env["MASTER_PORT"]} in the environment\n'
                      'expected whole numbers, LOCAL_RANK <= RANK < WORLD_SIZE, as torchrun says')


def job():
    """Who would start this very run again, and how often he has: {launcher: [name, tries]}."""
    env, found = os.environ, {}
    if 'TORCHELASTIC_RUN_ID' in env:  # its processes change, torchrun itself stays
        name = f'{env["TORCHELASTIC_RUN_ID"]} {os.getppid()}'
        found['torchrun'] = [name, int(env.get('TORCHELASTIC_RESTART_COUNT') or 0)]
    if 'SLURM_JOB_ID' in env:
        found['slurm'] = [env['SLURM_JOB_ID'], int(env.get('SLURM_RESTART_COUNT') or 0)]
    return found


def is_later_try(earlier):
    """Has the launcher started this process again, after the one whose job() stands in
    earlier['job'] has ended?"""
    before = earlier.get('job')
    for launcher, (name, tries) in job().items():
        with contextlib.suppress(TypeError, KeyError, IndexError):  # a file may hold anything
            if before[launcher][0] == name and before[launcher][1] < tries:
                return True
    return False


# -----------------------------------------------------------------------------
# the keys of every script


@dataclass
class Script:
    """What is read off a script: its keys are those above its call of apply."""
    keys: dict  # key -> (default, trailing comment)
    docstring: str
    stage: str  # NAME if `NAME = dict(...)` in a config file is for it
    several: bool  # does it ask for its processes, and so may run as several?


def read_script(path):
    """-> Script, or None if it does not call apply."""
    try:
        with open(path, encoding='utf-8') as f:
            source = f.read()
    except (OSError, UnicodeDecodeError):  # what an editor or another system leaves
        return None
    if 'configurator.apply(' not in source:
        return None
    name = os.path.basename(path)
    try:
        tree = ast.parse(source)
    except SyntaxError as e:
        raise ConfigError(f'{name} line {e.lineno}: {e.msg} '
                          '(every script is read for its keys)') from None
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {t.start[0]: t.string.lstrip('# ') for t in tokens if t.type == tokenize.COMMENT}
    keys, script = {}, None
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and node.value:  # stage: str = 'dynamics'
            node = ast.Assign([node.target], node.value, lineno=node.lineno,
                              end_lineno=node.end_lineno)
        if not isinstance(node, (ast.Assign, ast.Expr)):
            continue
        call = isinstance(node.value, ast.Call) and ast.unparse(node.value.func)
        if call == 'configurator.apply':
            several = 'configurator.processes(' in source
            script = Script(keys, ast.get_docstring(tree) or '', name[:-3], several)
            continue
        target = node.targets[0] if isinstance(node, ast.Assign) else None
        if not isinstance(target, ast.Name) or len(node.targets) > 1 or target.id.startswith('_'):
            continue
        if script:  # below the settings only one thing is looked for
            if target.id == 'stage':
                script.stage = getattr(node.value, 'value', None)
                if not isinstance(script.stage, str):
                    found = ast.unparse(node.value)
                    raise ConfigError(f"{name} line {node.lineno}: found stage = {found}, expected "
                                      "stage = 'NAME'\nit says which dict of a config and which "
                                      'folder belong to the script')
            continue
        try:
            default = ast.literal_eval(node.value)
        except ValueError:  # an expression would be a setting that nobody can set
            raise ConfigError(f'{name} line {node.lineno}: {target.id} stands above the '
                              'configurator line,\nso it is a setting and must be a plain literal; '
                              f'move it below, or call it _{target.id}') from None
        keys[target.id] = default, comments.get(node.end_lineno, '')
    return script


# -----------------------------------------------------------------------------
# one value


def convert(value, default):
    """value with the type of default; TypeError if it has another. int becomes float, list becomes
    tuple; bool is not int."""
    if isinstance(default, (list, tuple)) and isinstance(value, (list, tuple)):
        return tuple(convert(v, default[0]) if default else v for v in value)
    if default is None:  # says nothing about the type: any single plain value
        default = value if isinstance(value, (bool, int, float, str)) else None
    if type(default) is float and type(value) is int:
        value = float(value)
    if type(value) is not type(default) or (type(value) is float and not math.isfinite(value)):
        raise TypeError
    return value


def check(value, default, key, stem, where):
    """The converted value. Raises ConfigError, which says what was found and expected."""
    try:
        value = convert(value, default)
    except TypeError:
        kind = type(default).__name__
        if isinstance(default, (list, tuple)) and default:
            kind += ' of ' + type(default[0]).__name__
        cure = '; write True or False' if kind == 'bool' else ''
        raise ConfigError(f'{where}: {key} of {stem}.py has the wrong type\n'
                          f'found {type(value).__name__} {shortened(value)}, '
                          f'expected {kind} as its default {shortened(default)}{cure}') from None
    for patterns, words, test in LIMITS:
        concerned = any(fnmatch.fnmatchcase(key, p) for p in patterns.split())
        if concerned and value is not None and not test(value):
            raise ConfigError(f'{where}: {key} of {stem}.py is out of range\n'
                              f'found {shortened(value)}, expected {words}')
    return value


def check_together(config, stem, stage):
    """Raises ConfigError for values that are right alone and do not go together, or not in this
    stage."""
    if config.get('seq_len') == 1 and stage != 'policy':
        raise ConfigError(f'{stem}.py: found seq_len=1, expected seq_len >= 2: a frame alone has '
                          'none that follows')
    source, n_labels = config.get('action_source'), config.get('n_labels')
    if source == ('none' if stage == 'policy' else 'inverse'):
        other = 'inverse' if stage == 'policy' else 'none'
        raise ConfigError(f'{stem}.py: found action_source={source!r}, expected one of latent, '
                          f'labels, {other}')
    if source == 'latent' and n_labels:
        raise ConfigError(f'{stem}.py: found n_labels={n_labels} with action_source=latent, which '
                          'sees no label\nuse --n_labels=0, or --action_source=inverse')
    if source == 'inverse' and not n_labels:
        raise ConfigError(f'{stem}.py: found action_source=inverse without n_labels, expected how '
                          'many labels it may see\nuse --n_labels=200, or --action_source=labels')
    if config.get('fsdp') and config.get('energy') == 'cached':
        raise ConfigError(f'{stem}.py: fsdp=True does not go with energy=cached, which keeps a '
                          'whole copy of the policy\nuse --energy=isolated, or --fsdp=False')
    n_embd, n_head = config.get('n_embd', 0), config.get('n_head', 1)
    if n_embd % (4 * n_head):
        near = max(1, n_embd // (4 * n_head)) * 4 * n_head
        raise ConfigError(f'{stem}.py: n_head={n_head} does not go with n_embd={n_embd}\n'
                          f'expected n_embd to be a multiple of 4 * n_head = {4 * n_head}, '
                          f'such as {near}; change one of them')
    if config.get('fsdp') and not processes().ddp:
        raise ConfigError('fsdp=True: found one process, expected several\n'
                          'start them with torchrun, or use --fsdp=False')


def unknown(key, owners, scripts, where, meant):
    """The ConfigError for a key that no script has, or that its owners have and the scripts it is
    meant for have not."""
    if owners:
        owners = ' and '.join(s + '.py' for s in owners)
        return ConfigError(f"{where}: '{key}' is a key of {owners}, not of {meant[0]}.py")
    legal = {k for s in meant or scripts for k in scripts[s].keys}
    if not meant:
        legal |= {script.stage for script in scripts.values()}
    close = [ELSEWHERE.get(key)] if ELSEWHERE.get(key) in legal else []
    close += sorted(k for k in legal if k.endswith('_' + key) or k.startswith(key + '_'))
    close = close or difflib.get_close_matches(key, sorted(legal), n=1)
    cure = 'python SCRIPT.py --help lists the keys of a script'
    if close:
        cure = f'did you mean {" or ".join(map(repr, close[:3]))}?'
    return ConfigError(f"{where}: no script has a key '{key}'\n{cure}")


# -----------------------------------------------------------------------------
# the two sources: a config file (Python) and the command line


def read_config_file(name):
    """The public values that a config file leaves behind. It is looked for from here, then from the
    repository."""
    path = next((p for p in (name, os.path.join(HERE, name)) if os.path.isfile(p)), None)
    if path is None:
        folder = os.path.join(HERE, 'config')
        names = os.listdir(folder) if os.path.isdir(folder) else []
        found = ', '.join(sorted(n for n in names if n.endswith('.py')))
        raise ConfigError(f'there is no config file {os.path.abspath(name)}\n'
                          f'{folder} holds {found or "none"}')
    namespace = {'__builtins__': __builtins__, '__file__': os.path.abspath(path)}
    try:
        with open(path, encoding='utf-8') as f:
            exec(compile(f.read(), path, 'exec'), namespace)
    except (Exception, SystemExit) as e:
        if isinstance(e, SyntaxError):
            line, message = e.lineno, e.msg
        else:
            frames = traceback.extract_tb(e.__traceback__)
            lines = [frame.lineno for frame in frames if frame.filename == path]
            line, message = lines[-1] if lines else '?', str(e)
        message = ' '.join(message.split())
        raise ConfigError(f'{name} line {line}: {type(e).__name__}: {message}') from None
    no_settings = (types.ModuleType, types.FunctionType, types.BuiltinFunctionType, type)
    return {key: value for key, value in namespace.items()
            if not key.startswith('_') and not isinstance(value, no_settings)}


def read_argument(arg, stem, scripts):
    """What one argument sets: [(where, key, value, meant)]; meant are the scripts it is meant for,
    [] for all that have the key."""
    if arg.endswith('.py') and not arg.startswith('-'):
        values = read_config_file(arg)
        stages = {}  # a stage -> its scripts: a copy is one, too
        for name, script in scripts.items():
            stages.setdefault(script.stage, []).append(name)
        found = [(arg, key, value, []) for key, value in values.items()
                 if key not in stages and key not in scripts]
        # dynamics = dict(...) after the plain names, to beat them
        for stage in [key for key in values if key in stages or key in scripts]:
            theirs = values[stage]
            if stage not in stages:
                theirs = scripts[stage].stage
                raise ConfigError(f'{arg}: found {stage} = ..., but {stage}.py says that its stage '
                                  f'is {theirs!r}\nwrite {theirs} = dict(...), or change the line '
                                  f'stage = {theirs!r} of {stage}.py')
            if not isinstance(theirs, dict):
                raise ConfigError(f'{arg}: {stage} is the name of a script\n'
                                  f'found {shortened(theirs)}, '
                                  f'expected {stage} = dict(...) with keys of {stage}.py')
            found += [(f'{arg}: {stage} = dict({key}=...)', str(key), value, stages[stage])
                      for key, value in theirs.items()]
        return found
    keys = scripts[stem].keys
    if not arg.startswith('-') and arg.endswith(('.pt', '.html')) and 'file' in keys:
        return [(arg, 'file', arg, [stem])]
    if not arg.startswith('-') and arg.endswith('.pt') and not scripts[stem].several:
        if not os.path.isfile(arg):
            raise ConfigError(f'there is no world file {os.path.abspath(arg)}\n'
                              f'python export.py config/NAME.py {arg} makes one')
        return [(arg, key, arg, [stem]) for key in ('out_dir', 'dataset') if key in keys]
    if arg.startswith(('--local-rank', '--local_rank')):
        raise ConfigError(f'found {arg}, which torch.distributed.launch adds\nuse its successor: '
                          f'torchrun --standalone --nproc_per_node=2 {stem}.py ...')
    if not arg.startswith('--') or '=' not in arg:
        cure = f'; write {arg}=VALUE' if arg.startswith('--') else ''
        raise ConfigError(f'cannot read the argument {shortened(arg)}\n'
                          f'expected config/NAME.py or --key=value{cure}')
    key, text = arg[2:].split('=', 1)
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        value = text
    if isinstance(keys.get(key, ('', ''))[0], str) and not isinstance(value, str):
        value = text  # --out_dir=2024 needs no quotes
    return [('command line', key, value, [stem])]


def resolve(stem, scripts, argv):
    """All keys of script `stem` after the arguments. scripts is {stem: Script}. Raises
    ConfigError."""
    config = {key: check(default, default, key, stem, stem + '.py')
              for key, (default, _) in scripts[stem].keys.items()}
    settings = [setting for arg in argv for setting in read_argument(arg, stem, scripts)]
    # a world file stands for the out_dir and dataset of a config; --dataset says of another one
    given = [setting for setting in settings if setting[0].endswith('.pt')]
    if given:
        theirs = {key for _, key, *_ in given}
        settings = given + [s for s in settings if s not in given
                            and (s[0] == 'command line' or s[1] not in theirs)]
    files = [value for _, key, value, _ in settings if key == 'file']
    if len(set(files)) > 1:
        raise ConfigError(f'found {" and ".join(map(shortened, files))}, expected one file to '
                          'write\nwhat to read is a config, or --out_dir and --dataset')
    for where, key, value, meant in settings:
        owners = [s for s in scripts if key in scripts[s].keys]
        concerned = [s for s in owners if s in meant or not meant]
        if not concerned:
            raise unknown(key, owners, scripts, where, meant)
        # a plain name must suit every script that has the key, not only this one
        for s in concerned:
            checked = check(value, scripts[s].keys[key][0], key, s, where)
            if s == stem:
                config[key] = checked
    check_together(config, stem, scripts[stem].stage)
    return config


# -----------------------------------------------------------------------------
# how a run begins and ends


def digest(config):
    """12 hex digits that tell two resolved configs apart."""
    return hashlib.sha256(repr(sorted(config.items())).encode()).hexdigest()[:12]


def hash_texts(*texts):
    """The texts as one whole number of 60 bits, to compare them between processes."""
    return int(hashlib.sha256('\n'.join(texts).encode()).hexdigest()[:15], 16)


def print_help(stem, keys, docstring):
    print(f'{docstring}\n\n'
          f'keys of {stem}.py, any of them in a config file or as --key=value\n'.lstrip())
    defaults = {key: repr(default) for key, (default, _) in keys.items()}
    left = max(map(len, keys), default=0)
    middle = min(24, max(map(len, defaults.values()), default=0))
    for key, (_, comment) in keys.items():
        print(f'  --{key:<{left}} = {defaults[key]:<{middle}}  {comment}'.rstrip())


def say(text):
    """Prints. A terminal that is gone, or a pipe that was closed, may not end a run: it may be on
    its way to save."""
    try:
        print(text, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def stop(code, message):
    """Ends this process with an exit code and a message. Under torchrun all ranks say it once."""
    rank = os.environ.get('RANK', '0')
    if rank != '0':
        message = f'rank {rank}: {message}'
        if 'TORCHELASTIC_RUN_ID' in os.environ:
            # torchrun ends all ranks once one has ended, so rank 0 gets time to say why. If this
            # rank is still alive after that, rank 0 had nothing to say
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a script's own handler would sleep on
            time.sleep(5)
    with contextlib.suppress(OSError):  # the terminal may be gone
        print(message, file=sys.stderr, flush=True)
    sys.exit(code)


def end_in_words(kind, error, trace):
    """sys.excepthook: an error that carries an exit_code is a mistake that has a cure. It gets its
    own words and that exit code; any other gets its traceback."""
    if hasattr(error, 'exit_code'):
        stop(error.exit_code, error)
    if kind.__name__ in ('DistNetworkError', 'DistStoreError'):  # of torch, from init_process_group
        place = ':'.join(os.environ.get(name, '') for name in ('MASTER_ADDR', 'MASTER_PORT'))
        stop(2, f'config: the processes of this run do not find each other at {place}: '
                f'{" ".join(str(error).split())[:160]}\nstart all of them, with one MASTER_ADDR '
                'that each can reach and a MASTER_PORT that is free')
    sys.__excepthook__(kind, error, trace)


def find_device(device, local_rank=None):
    """'auto', 'cpu', 'mps', 'cuda' or 'cuda:1' -> the device that is meant, of several CUDA ones
    that of this local_rank. Raises ConfigError if torch does not find it here."""
    import torch
    there = [f'cuda:{i}' for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        there.append('mps')
    there.append('cpu')
    device = {'auto': there[0], 'cuda': 'cuda:0'}.get(device, device)
    if local_rank is not None and device in there and device.startswith('cuda'):
        device = f'cuda:{local_rank}'
    if device not in there:
        cure = 'use --device=auto'
        if local_rank is not None:
            cure += ', and no more processes than GPUs'
        raise ConfigError(f'device={device!r}: torch {torch.__version__} finds no such device here'
                          f'\nexpected one of {", ".join(there)}; {cure}')
    return device


def apply(script, namespace):
    """Overrides the keys in namespace (the globals() of file `script`) from sys.argv; returns them
    all as a dict."""
    sys.excepthook = end_in_words
    stem, argv = os.path.splitext(os.path.basename(script))[0], sys.argv[1:]
    paths = {os.path.join(HERE, n) for n in os.listdir(HERE)
             if n.endswith('.py') and not n.startswith('.')} - {os.path.abspath(__file__)}
    try:
        # this script last: another of its name may stand in the repository
        paths = [*sorted(paths - {os.path.abspath(script)}), os.path.abspath(script)]
        found = {os.path.basename(p)[:-3]: read_script(p) for p in paths}
        scripts = {s: script for s, script in found.items() if script}
        assert stem in scripts, (f'{script} must call configurator.apply(...) by that name, '
                                 'outside of any function')
        this = scripts[stem]
        if '--help' in argv or '-h' in argv:
            if os.environ.get('RANK', '0') == '0':
                print_help(stem, this.keys, this.docstring)
            sys.exit(0)
        rank = processes(this.several).rank
        config = resolve(stem, scripts, argv)
    except ConfigError as e:
        stop(2, e)
    namespace.update(config)
    if rank == 0:  # one process speaks for all
        defaults = resolve(stem, scripts, [])
        changed = [f'{k}={v!r}' for k, v in config.items() if v != defaults[k]]
        words = ' '.join(changed or ['defaults'])
        say(f'config: {words} ({", ".join(argv + [digest(config)])})')
        if this.several and this.stage != stem and this.stage in found:
            say(f'{stem}.py is a copy of the stage {this.stage!r}: it reads {this.stage} = '
                f'dict(...) of a config and trains into out_dir/{this.stage}. To give it its own '
                f'of both, change its line stage = {this.stage!r}')
    return config
