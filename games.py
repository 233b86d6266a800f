"""
Do latent actions mean something in games that nobody tuned for? One table.

    pip install -r requirements-games.txt
    python games.py                                # all of them; `make games` does both
    python games.py --only=pong,doom --n_seeds=1

Each game is recorded once: 20,000 frames of 64 pixels by somebody who presses keys at random and
holds each for some frames. Then, for each seed, stage 2 is trained as its script stands, without
labels and with `n_labels` of them; beside it a small CNN with the same few labels, and with all of
them: the ceiling. All are judged on the same held-out transitions, those in which more than 0.2% of
the pixels changed: on a picture that stands still nobody can know what was pressed. What a latent
action means is what most training transitions of its kind have for a label. Consistency is all that
can be said without labels: of the transitions that one displacement explains, the share that goes
by the one usual for the latent action.

    share = (accuracy - most frequent label) / (ceiling - most frequent label)

A game is counted where the ceiling is clear of the most frequent label by more than their noise.
Writes out_dir/games.md and games.json. What is found for a game and a seed is kept in out_dir, so a
table that was stopped goes on there. Errors that carry an exit_code end the run in their own words.
"""
import json
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np

import configurator
import files
import trial
from scores import table

# -----------------------------------------------------------------------------
# config

only = ''  # names with commas between; '' = all games
n_seeds = 3
n_labels = 200
n_recorded = 20_000  # frames of each game; in many nothing changes
n_updates = 0  # of stage 2; 0 = as many as its script has
cnn_updates = 900  # with all labels; with few a third of them
jobs = 0  # processes side by side, of one thread each; 0 = one for each core
data_dir = 'data/games'
out_dir = 'out/games'
config = configurator.apply(__file__, globals())

# -----------------------------------------------------------------------------
# all games, all seeds, side by side

names = only.split(',') if only else list(trial.GAMES)
unknown = [name for name in names if name not in trial.GAMES]
if unknown:
    configurator.stop(2, f'games.py: found only={only}\nexpected names of '
                         f'{", ".join(trial.GAMES)}, with commas between')
settings = [f'--max_iters={n_updates}'] if n_updates else []
paths = {name: os.path.join(data_dir, f'{name}.h5') for name in names}
os.environ['OMP_NUM_THREADS'] = '1'
with ProcessPoolExecutor(jobs or os.cpu_count(), get_context('fork')) as pool:
    for done in [pool.submit(trial.record, name, paths[name], n_recorded) for name in names]:
        done.result()
    runs = {name: [pool.submit(trial.examine_once, name, paths[name], out_dir, seed, n_labels,
                               settings, cnn_updates) for seed in range(n_seeds)]
            for name in names}
    report = []
    for name in names:
        report.append(trial.summarise(name, [run.result() for run in runs[name]]))
        f = report[-1]
        print(f'{name}: ' + ', '.join(f'{m} {text}' for m, text in f['cells'].items()),
              flush=True)
lines = [f'# Latent actions in {len(names)} games', '',
         f'{n_seeds} seeds; accuracy on held-out transitions in which something changed '
         '[95% bootstrap interval].']
heads = [text.format(n_labels=n_labels) for text in trial.METHODS.values()]
rows = []
for f in report:
    about = f['about_latent']
    nmi, used, same, minutes = (np.mean([a[key] for a in about])
                                for key in ('nmi', 'used', 'consistency', 'minutes'))
    shares = [f'{f[f"share_{m}"]:.2f}' if f['counted'] else '-'
              for m in ('latent', 'anchored', 'few')]
    rows.append([f['name'], f['n'], f['cells']['most_frequent'],
                 *(f['cells'][m] for m in trial.METHODS), *shares, f'{nmi:.2f}', f'{used:.1f}',
                 f'{same:.2f}', f'{minutes:.1f}'])
lines += table(['game', 'transitions', 'most frequent label', *heads, 'share: latent',
                'with labels', 'CNN', 'NMI', 'codes used', 'consistency', 'minutes'], *rows)
if len(report) > 2:
    same = [np.mean([a['consistency'] for a in f['about_latent']]) for f in report]
    right = [np.mean(f['accuracy']['latent']) for f in report]
    lines += ['', 'Rank correlation of consistency with the accuracy of latent over the games: '
              f'{trial.rank_correlation(same, right):.2f}.']
print('\n'.join(lines))
os.makedirs(out_dir, exist_ok=True)
for end, text in (('json', json.dumps(report, indent=1)), ('md', '\n'.join([*lines, '']))):
    with files.replacing(os.path.join(out_dir, f'games.{end}')) as tmp, open(tmp, 'w') as out:
        out.write(text)
