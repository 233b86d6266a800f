"""
What a player is worth: how well he does what others did, how many levels of the real game he
solves, and what becomes of the creatures that he meets in the dream. eval.py puts it on the card.
"""
import math

import numpy as np
import torch

import data
from player import Played, Player, meaning_of_codes
from recordings import game
from recordings.hunter import LEVEL_FRAMES, LEVEL_SLAIN, Dice, Expert, play_levels
from recordings.reading import fates
from training.checkpoint import CheckpointError
from world import Dream

LEVELS = 100
DREAM_FRAMES = 32
MAPS = 25, 100, 200, 1000  # labels from which the meanings of latent actions are taken


def wilson(hits, n):
    """The share of hits, and its 95% interval (Wilson 1927)."""
    z, p = 1.96, hits / n
    middle, width = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return p, (middle - width) / (1 + z * z / n), (middle + width) / (1 + z * z / n)


def cell(share):
    return '{:.2f} [{:.2f}, {:.2f}]'.format(*share)


# -----------------------------------------------------------------------------
# imitation


@torch.no_grad()
def imitation(player, recording, out_dir, ctx, dtype, device):
    """Figures of the held-out part, a dict. A player who was shown a few labels is held against the
    true ones."""
    c, policy = player.about['config'], player.policy
    source = 'latent' if c['action_source'] == 'latent' else 'labels'
    played = Played(recording, out_dir, source, c['n_labels'], c['frame_stride'],
                    policy.config.chunk, c['n_bins'], c['seed'], ctx, dtype, device)
    player.expect(played)
    played.chunk, val = policy.config.chunk, played.starts['val']
    sums, weights, layers = {}, 0, []
    for i in range(0, len(val), 64):
        torch.manual_seed(i)
        batch = played.gather(val[i:i + 64], policy.config.seq_len)
        with ctx:
            loss, metrics = policy(*batch)
            off = policy.actor(batch[0]).layers - batch[2][:, None]  # (B,n_layer-1,K,A)
        layers.append((off.abs().mean((2, 3))).sum(0))
        for name, x in dict(metrics, loss=loss).items():
            sums[name] = sums.get(name, 0) + len(batch[0]) * x.item()
        weights += len(batch[0])
    figures = {name: x / weights for name, x in sums.items()}
    tokens, before = played.tokens, np.maximum(val - c['frame_stride'], played.first[val])
    known = played.tokens[played.starts['train']]
    most_frequent = [np.bincount(column).argmax() for column in known.T]
    figures.update(
        chance=math.log(policy.config.vocab_size), entropy=float(played.entropy),
        most_frequent=float((tokens[val] == most_frequent).mean()),
        as_before=float((tokens[val] == tokens[before])[before < val].mean()),
        loss_ct_layers=(sum(layers) / weights).tolist(), n=len(val))
    return figures


# -----------------------------------------------------------------------------
# levels


def levels(out_dir, recording, seed, device, best_of, ctx):
    """Rows (who, slain (LEVELS,)) of who plays the levels, and how well."""
    stick = recording.actions.ndim > 1
    numbers = np.arange(LEVELS)

    def rows(who, make):
        with ctx:
            return who, play_levels(numbers, make, stick)

    def new_player(**how):
        return Player(out_dir, device, seed=seed, **how)

    yield rows('random', Dice)
    yield rows('expert', Expert)
    player = new_player()
    yield rows('drawn', lambda game: player)
    yield rows('most likely', lambda game: new_player(temperature=0))
    yield rows('by the head', lambda game: new_player(by_head=True))
    if player.policy.energy_model is not None:
        yield rows(f'best of {best_of}', lambda game: new_player(best_of=best_of))
    if player.acting['kind'] != 'codes':
        return
    c = player.about['config']
    played = Played(recording, out_dir, 'latent', 0, 1, 1, c['n_bins'], c['seed'], ctx, c['dtype'],
                    device)
    for n in MAPS:
        t = data.labelled(played.starts['train'], n, c['seed'])
        player = new_player()
        player.acting['values'] = meaning_of_codes(played.tokens[t, 0], recording.actions[t],
                                                   len(player.acting['names']))
        yield rows(f'drawn, map from {len(t)} labels', lambda game: player)


# -----------------------------------------------------------------------------
# the dream


@torch.no_grad()
def dreams(player, world, picks, layout, seed, device, ctx, maskgit_steps, temperature):
    """What becomes of creatures, with the player and with actions by chance, in the dream and in
    the real game from the same starts: {who: {'slain': share, 'gone': share}}, shares of the
    starts, with intervals."""
    recording, n_actions = world[-1], world[2].config.n_actions
    dream = Dream(world, maskgit_steps, temperature, device)
    rng = np.random.default_rng([seed, 15])
    last = picks + (dream.memory - 1) * player.stride
    state = {key: values[last] for key, values in recording.truth.items()}
    found = {}
    for who in ('player', 'random'):
        frames = []
        with ctx:
            dream.begin(picks, seed)
            player.begin(seed)
            for _ in range(DREAM_FRAMES):
                frames.append(dream.frames)
                player.look(dream.frames)
                if who == 'player':
                    dream.step(torch.from_numpy(player.dream()[0]))
                else:
                    dream.step(torch.from_numpy(rng.integers(0, n_actions, len(picks))))
            slain, gone = fates(np.stack([*frames, dream.frames], 1))
            real = game.Game(len(picks), state.get('layout', layout))
            shown = real.set_state(state)
            dice = Dice(real)
            player.begin(seed)
            for _ in range(DREAM_FRAMES):
                shown = real.step((player if who == 'player' else dice).act(shown))
        n = len(picks)
        found[who] = dict(slain=wilson(slain.sum(), n), gone=wilson(gone.sum(), n),
                          really=wilson((real.slain > 0).sum(), n))
    return found


# -----------------------------------------------------------------------------
# the card


def table(header, *rows):
    """The lines of a Markdown table, after an empty one."""
    lines = ['| ' + ' | '.join(map(str, cells)) + ' |' for cells in (header, *rows)]
    lines = [line.replace('|  |', '| |') for line in lines]
    return ['', lines[0], '|---' * len(header) + '|', *lines[1:]]


def imitation_table(f):
    """Lines of the card; f: as imitation returns it."""
    rows = [['cross-entropy, nats', f'{f["loss"]:.3f}', f'{f["chance"]:.3f} a guess, '
             f'{f["entropy"]:.3f} how often each occurs'],
            ['right, first step', f'{f["accuracy_first"]:.3f}',
             f'{f["most_frequent"]:.3f} the most frequent, {f["as_before"]:.3f} as before'],
            ['right, whole chunk', f'{f["accuracy"]:.3f}', ''],
            ['L1 of the head', f'{f["loss_ct"]:.3f}', f'{f["loss_ct_median"]:.3f} the median'],
            ['L1 of the head after earlier blocks',
             ', '.join(f'{x:.3f}' for x in f['loss_ct_layers']), '']]
    if 'rank_acc' in f:
        rows.append(['true chunk has the lowest energy', f'{f["rank_acc"]:.3f}',
                     f'{1 / (1 + f["n_negatives"]):.3f} by chance'])
    return table(['the player, held out', '', 'beside'], *rows)


def levels_table(rows):
    """Lines of the card, and the figures {who: {'solved', 'slain': (figure, low, high)}}."""
    rng, figures, lines = np.random.default_rng(16), {}, []
    for who, slain in rows:
        n = len(slain)
        solved = wilson((slain >= LEVEL_SLAIN).sum(), n)
        low, high = np.percentile(slain[rng.integers(n, size=(2000, n))].mean(1), [2.5, 97.5])
        mean = float(slain.mean()), float(low), float(high)
        figures[who] = dict(solved=solved, slain=mean)
        lines.append([who, cell(solved), cell(mean)])
    head = [f'{LEVELS} unseen levels, {LEVEL_FRAMES} frames', f'solved ({LEVEL_SLAIN} slain)',
            'slain']
    return table(head, *lines), figures


def dream_table(found):
    rows = [[who, cell(f['slain']), cell(f['gone']), cell(f['really'])]
            for who, f in found.items()]
    return table([f'in the dream, {DREAM_FRAMES} frames', 'imagined: a creature is gone that the '
                  'sword reached', 'gone without', 'really slain, from the same starts'], *rows)


def measure(out_dir, recording, world, picks, seed, device, ctx, dtype, best_of, maskgit_steps,
            temperature):
    """The player of out_dir -> his part of the card as lines, its figures. world: load_world's, or
    None; picks: where games in it begin. Another dataset than the built-in game has the imitation
    part alone. Raises CheckpointError, DataError."""
    player = Player(out_dir, device, seed=seed)
    report = dict(imitation=imitation(player, recording, out_dir, ctx, dtype, device))
    lines = imitation_table(report['imitation'])
    layout = game.layout_of(recording.source)
    if layout is None or player.stride > 1 or not len(player.acting['values']) and (
            player.acting['kind'] == 'codes'):
        return lines, report
    rows = levels(out_dir, recording, seed, device, best_of, ctx)
    more, report['levels'] = levels_table(rows)
    lines += more
    if world is None or recording.actions.ndim > 1:
        return lines, report
    try:
        player.enter(world[3])
    except CheckpointError as e:
        lines += ['', f'He does not play in the dream: {e.reason}.']
        return lines, report
    report['dream'] = dreams(player, world, picks, layout, seed, device, ctx, maskgit_steps,
                             temperature)
    return lines + dream_table(report['dream']), report
