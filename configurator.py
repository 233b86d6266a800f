"""
Settings, nanoGPT-style but strict. The settings ("keys") of a script are the plain assignments that stand above its line

    config = configurator.apply(__file__, globals())

which overrides them from config files and the command line, in order, later wins, and returns them as a dict:

    python dynamics.py config/zelda.py --n_layer=12 --dataset=data/other.h5
    python dynamics.py --help

A config file is Python and is executed, so trust it as you trust code. A plain name in it belongs to every script that has
the key; `dynamics = dict(...)` belongs to dynamics.py alone and beats the plain name; _names are the file's own.
The keys of all scripts are read off their sources, so every launch of any script checks the whole file.
A mistake ends the run with exit code 2 and at most three lines: found, expected, cure.
"""

import ast, difflib, fnmatch, hashlib, io, math, os, signal, sys, time, tokenize, traceback, types

HERE = os.path.dirname(os.path.abspath(__file__))

def one_of(*choices):
    return 'one of ' + ', '.join(choices), lambda v: v in choices

# what a value must be beyond having the type of its default: keys (* matches anything), words for the message, test
LIMITS = [
    ('max_iters *_interval eval_iters n_iters *_batch_size', '>= 1', lambda v: v >= 1),
    ('keep_checkpoints save_seconds ddp_timeout',            '>= 1', lambda v: v >= 1),
    ('n_layer n_head n_embd patch_size frame_stride',        '>= 1', lambda v: v >= 1),
    ('maskgit_steps context_frames',                         '>= 1', lambda v: v >= 1),
    ('seq_len',                                              '>= 2', lambda v: v >= 2),
    ('levels action_levels',                    'each level >= 2', lambda v: len(v) > 0 and min(v) >= 2),
    ('learning_rate',                                   'in (0, 10]', lambda v: 0 < v <= 10),
    ('min_lr_frac corrupt',                              'in [0, 1]', lambda v: 0 <= v <= 1),
    ('seed warmup_iters weight_decay grad_clip temperature n_layer_encoder', '>= 0', lambda v: v >= 0),
    ('dropout ema_decay',                    'in [0, 1)', lambda v: 0 <= v < 1),
    ('scene_share',                          'in [0, 0.5]', lambda v: 0 <= v <= 0.5),
    ('port',                                 '0 or in [1024, 65535]', lambda v: v == 0 or 1024 <= v <= 65535),
    ('token', "'' or 16 or more of A-Z a-z 0-9 - _", lambda v: v == '' or len(v) >= 16 and v.isascii()
        and v.replace('-', '').replace('_', '').isalnum()),
    ('device', 'auto, cpu, cuda, cuda:N or mps',
        lambda v: v in ('auto', 'cpu', 'cuda', 'mps') or v.startswith('cuda:') and v[5:].isdecimal()),
    ('dtype',         *one_of('float32', 'bfloat16', 'float16')),
    ('init_from',     *one_of('scratch', 'resume')),
    ('optimizer',     *one_of('muon', 'adamw')),
    ('on_diverge',    *one_of('stop', 'rollback')),
    ('action_source', *one_of('latent', 'labels', 'none')),
    ('stage',         *one_of('all', 'tokenizer', 'latent_actions', 'dynamics', 'sample')),
    ('prepare',     '0, or 64, 128, 192 ...', lambda v: v >= 0 and v % 64 == 0),
]

class ConfigError(Exception):
    pass

def short(value):
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + '...'

# -----------------------------------------------------------------------------
# the keys of every script

def read_script(path):
    """The keys of one script: {key: (default, trailing comment)} and its docstring; (None, None) if it does not call apply."""
    with open(path, encoding='utf-8') as f:
        source = f.read()
    if 'configurator.apply(' not in source:
        return None, None
    try:
        tree = ast.parse(source)
    except SyntaxError as e:
        raise ConfigError(f'{os.path.basename(path)} line {e.lineno}: {e.msg} (every script is read for its keys)') from None
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {t.start[0]: t.string.lstrip('# ') for t in tokens if t.type == tokenize.COMMENT}
    keys = {}
    for node in tree.body:
        if not isinstance(node, (ast.Assign, ast.Expr)):
            continue
        if isinstance(node.value, ast.Call) and ast.unparse(node.value.func) == 'configurator.apply':
            return keys, ast.get_docstring(tree) or ''
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            key = node.targets[0].id
            if key.startswith('_'):
                continue
            try:
                keys[key] = (ast.literal_eval(node.value), comments.get(node.end_lineno, ''))
            except ValueError: # an expression would be a setting that nobody can set: better to hear of it
                raise ConfigError(f'{os.path.basename(path)} line {node.lineno}: {key} stands above the configurator line,\n'
                                  'so it is a setting and must be a plain literal; move it below, or call it '
                                  f'_{key}') from None
    return None, None

# -----------------------------------------------------------------------------
# one value

def convert(value, default):
    """value with the type of default; TypeError if it has another. int becomes float, list becomes tuple; bool is not int."""
    if isinstance(default, (list, tuple)) and isinstance(value, (list, tuple)):
        return tuple(convert(v, default[0]) if default else v for v in value)
    if default is None: # says nothing about the type: any single plain value
        default = value if isinstance(value, (bool, int, float, str)) else None
    if type(default) is float and type(value) is int:
        value = float(value)
    if type(value) is not type(default) or (type(value) is float and not math.isfinite(value)):
        raise TypeError
    return value

def check(value, default, key, stem, where):
    """The converted value, or a ConfigError that says what was found and expected."""
    try:
        value = convert(value, default)
    except TypeError:
        kind = type(default).__name__ + (' of ' + type(default[0]).__name__ if isinstance(default, (list, tuple)) and default else '')
        cure = '; write True or False' if kind == 'bool' else ''
        raise ConfigError(f'{where}: {key} of {stem}.py has the wrong type\nfound {type(value).__name__} {short(value)}, '
                          f'expected {kind} as its default {short(default)}{cure}') from None
    for patterns, words, test in LIMITS:
        if any(fnmatch.fnmatchcase(key, p) for p in patterns.split()) and value is not None and not test(value):
            raise ConfigError(f'{where}: {key} of {stem}.py is out of range\nfound {short(value)}, expected {words}')
    return value

def unknown(key, owners, scripts, where, only):
    """The ConfigError for a key that no script has, or that its owners have and the only script it is meant for has not."""
    if owners:
        return ConfigError(f"{where}: '{key}' is a key of {' and '.join(s + '.py' for s in owners)}, not of {only}.py")
    known = {k for keys in scripts.values() for k in keys} | (set() if only else set(scripts))
    close = difflib.get_close_matches(key, sorted(known), n=1)
    cure = f"did you mean '{close[0]}'?" if close else 'python SCRIPT.py --help lists the keys of a script'
    return ConfigError(f"{where}: no script has a key '{key}'\n{cure}")

# -----------------------------------------------------------------------------
# the two sources: a config file (Python) and the command line

def read_config_file(name):
    """The public values that a config file leaves behind. Looked for from here, then from the repository."""
    path = next((p for p in (name, os.path.join(HERE, name)) if os.path.isfile(p)), None)
    if path is None:
        folder = os.path.join(HERE, 'config')
        found = sorted(n for n in os.listdir(folder) if n.endswith('.py')) if os.path.isdir(folder) else []
        raise ConfigError(f'there is no config file {name}\n'
                          f'config/ holds {", ".join(found) or "none"}')
    namespace = {'__builtins__': __builtins__, '__file__': os.path.abspath(path)}
    try:
        with open(path, encoding='utf-8') as f:
            exec(compile(f.read(), path, 'exec'), namespace)
    except (Exception, SystemExit) as e:
        lines = [frame.lineno for frame in traceback.extract_tb(e.__traceback__) if frame.filename == path]
        line = e.lineno if isinstance(e, SyntaxError) else lines[-1] if lines else '?'
        message = ' '.join((e.msg if isinstance(e, SyntaxError) else str(e)).split())
        raise ConfigError(f'{name} line {line}: {type(e).__name__}: {message}') from None
    return {key: value for key, value in namespace.items() if not key.startswith('_')
            and not isinstance(value, (types.ModuleType, types.FunctionType, types.BuiltinFunctionType, type))}

def read_argument(arg, stem, scripts):
    """What one argument sets: [(where, key, value, only)]; only is the script it is meant for, None for all that have the key."""
    if arg.endswith('.py') and not arg.startswith('-'):
        values = read_config_file(arg)
        found = [(arg, key, value, None) for key, value in values.items() if key not in scripts]
        for script in [key for key in values if key in scripts]: # dynamics = dict(...), after the plain names, to beat them
            if not isinstance(values[script], dict):
                raise ConfigError(f'{arg}: {script} is the name of a script\n'
                                  f'found {short(values[script])}, expected {script} = dict(...) with keys of {script}.py')
            found += [(f'{arg}: {script} = dict({key}=...)', str(key), value, script) for key, value in values[script].items()]
        return found
    if not arg.startswith('--') or '=' not in arg:
        cure = f'; write {arg}=VALUE' if arg.startswith('--') else ''
        raise ConfigError(f'cannot read the argument {short(arg)}\nexpected config/NAME.py or --key=value{cure}')
    key, text = arg[2:].split('=', 1)
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        value = text
    if isinstance(scripts[stem].get(key, ('', ''))[0], str) and not isinstance(value, str):
        value = text # --out_dir=2024 needs no quotes
    return [('command line', key, value, stem)]

def resolve(stem, scripts, argv):
    """All keys of script `stem` after the arguments. scripts is {stem: {key: (default, comment)}}."""
    config = {key: check(default, default, key, stem, stem + '.py') for key, (default, _) in scripts[stem].items()}
    for where, key, value, only in (setting for arg in argv for setting in read_argument(arg, stem, scripts)):
        owners = [s for s in scripts if key in scripts[s]]
        if not owners or only and only not in owners:
            raise unknown(key, owners, scripts, where, only)
        for s in [only] if only else owners: # a plain name must suit every script that has the key, not only this one
            checked = check(value, scripts[s][key][0], key, s, where)
            if s == stem:
                config[key] = checked
    return config

# -----------------------------------------------------------------------------

def digest(config):
    """12 hex digits that tell two resolved configs apart."""
    return hashlib.sha256(repr(sorted(config.items())).encode()).hexdigest()[:12]

def number(*texts):
    """The texts as one whole number of 60 bits, to compare them between processes."""
    return int(hashlib.sha256('\n'.join(texts).encode()).hexdigest()[:15], 16)

def peak_memory():
    """Bytes of main memory that this process held at most; 0 where the system does not tell."""
    try:
        import resource # not on Windows
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)

def print_help(stem, keys, docstring):
    print(f'{docstring}\n\nkeys of {stem}.py, any of them in a config file or as --key=value\n'.lstrip())
    defaults = {key: repr(default) for key, (default, _) in keys.items()}
    left, middle = max(map(len, keys), default=0), min(24, max(map(len, defaults.values()), default=0))
    for key, (_, comment) in keys.items():
        print(f'  --{key:<{left}} = {defaults[key]:<{middle}}  {comment}'.rstrip())

def stop(code, message):
    """Ends this process with an exit code and a message, said once: by rank 0, or under torchrun by a rank that fails alone."""
    rank = int(os.environ.get('RANK', 0))
    if rank == 0:
        print(message, file=sys.stderr, flush=True)
    elif 'TORCHELASTIC_RUN_ID' in os.environ:
        # torchrun ends all ranks once one has ended: first let rank 0 say why. Still alive after that, rank 0 did not fail.
        signal.signal(signal.SIGTERM, signal.SIG_DFL) # a training script's own handler would sleep on
        time.sleep(5)
        print(f'rank {rank}: {message}', file=sys.stderr, flush=True)
    sys.exit(code)

def find_device(device):
    """'auto', 'cpu', 'mps', 'cuda' or 'cuda:1' -> the device that is meant; ends the process if torch does not find it here."""
    import torch
    there = [f'cuda:{i}' for i in range(torch.cuda.device_count())] + ['mps'] * torch.backends.mps.is_available() + ['cpu']
    device = {'auto': there[0], 'cuda': 'cuda:0'}.get(device, device)
    if device not in there:
        stop(2, f'config: device={device!r}: torch {torch.__version__} finds no such device here\n'
                f'expected one of {", ".join(there)}; use --device=auto' + ', and no more processes than GPUs' * ('RANK' in os.environ))
    return device

def apply(script, namespace):
    """Override the keys in namespace (the globals() of file `script`) from sys.argv; returns them all as a dict."""
    master = int(os.environ.get('RANK', 0)) == 0 # under torchrun one process speaks for all
    stem, argv = os.path.splitext(os.path.basename(script))[0], sys.argv[1:]
    try:
        paths = {os.path.join(HERE, n) for n in os.listdir(HERE) if n.endswith('.py') and n != os.path.basename(__file__)}
        found = {os.path.basename(p)[:-3]: read_script(p) for p in sorted(paths | {os.path.abspath(script)})}
        scripts = {s: keys for s, (keys, _) in found.items() if keys is not None}
        assert stem in scripts, f'{script} must call configurator.apply(...) by that name, outside of any function'
        if '--help' in argv or '-h' in argv:
            if master:
                print_help(stem, scripts[stem], found[stem][1])
            sys.exit(0)
        config = resolve(stem, scripts, argv)
    except ConfigError as e:
        stop(2, 'config: ' + str(e).replace('\n', '\n        '))
    namespace.update(config)
    if master:
        defaults = resolve(stem, scripts, [])
        changed = [f'{k}={v!r}' for k, v in config.items() if v != defaults[k]] or ['defaults']
        print(f'config: {" ".join(changed)} ({", ".join(argv + [digest(config)])})', flush=True)
    return config
