"""
What is wrong with this run? Reads training logs and checkpoint folders and says in plain words,
with the numbers, what happened and what to do next. It reads only: no log and no checkpoint is
ever changed.

    python diagnose.py out/tiny                              # a run of this project, all stages
    python diagnose.py out/tiny/dynamics --plot=loss.png     # one stage, and its loss as a picture
    python diagnose.py history.csv checkpoints --vocab=1024 --total=300000 --n_actions=16
    python diagnose.py epochs.md batches.md --vocab=65536,8192 --weights=closs:1,loss_ct:10

LOG may be:
  log.csv of this project, or what its scripts print (python dynamics.py ... | tee train.log);
  any table with a line of names: CSV, also with ; or tabs, decimal commas or 66,000; markdown;
  W&B: a history, or a chart of several runs, each of which is judged;
  TensorBoard: run-NAME-tag-TAG.csv or .json, as its download links name them;
  JSON: lines, an array, a dict of columns, trainer_state.json of Hugging Face;
  a dict of lists as Python prints it, such as print(history.history) of Keras;
  what others print: nanoGPT, modded-nanogpt, Hugging Face, MetricLogger, tqdm, llm.c, Keras ...,
  also with [rank0]: or 0: in front.
A blank cell was not logged. The file may be packed as .gz, .bz2 or .xz.
CHECKPOINT_DIR: a folder of this project, or of
NAME_step_N/{model_state_dict,optim_state_dict,state}.pt.
Exit code: 0 ok or info, 1 warn, 2 critical, 3 something could not be read, or bad usage.

What it knows is in diagnosis/: each rule is one function of rules.py, whose docstring says why the
rule exists.
"""
import argparse
import json
import math
import os
import re
import sys
import textwrap

import numpy as np

from diagnosis import folders, rules
from diagnosis.formats import Unreadable, clean
from diagnosis.log import read_logs


KNOWN_LOGS = re.compile(r'trainer_state\.json|.*tfevents.*|.*\.wandb|log.*\.txt|.*\.(csv|jsonl)')


class Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(3, f'diagnose: {clean(message, 200)}\n'
                     'python diagnose.py --help shows how it is used\n')


def whole_numbers(text):
    found = text.split(',') if re.fullmatch(r'\d{1,12}(,\d{1,12})*', text) else ['0']
    if any(int(v) < 2 for v in found):
        raise argparse.ArgumentTypeError(f'found {clean(text)!r}, expected whole numbers above 1, '
                                         'such as 65536 or 65536,8192')
    return tuple(map(int, found))


def whole_number(text):
    if ',' in text:
        raise argparse.ArgumentTypeError(f'found {clean(text)!r}, expected one whole number')
    return whole_numbers(text)[0]


def weights(text):
    found = re.findall(r'([^:,]+):(\d+\.?\d*(?:e-?\d{1,2})?)(?:,|$)', text.lower())
    if ','.join(f'{name}:{weight}' for name, weight in found) != text.lower():
        raise argparse.ArgumentTypeError(f'found {clean(text)!r}, expected NAME:WEIGHT,NAME:WEIGHT '
                                         'such as closs:1,loss_ct:10')
    return {name.strip(): float(weight) for name, weight in found}


class Inputs:
    """What stands at the paths of the command line."""

    def __init__(self, paths, told):
        self.logs = []  # (log, what is told about it)
        self.groups = []  # (checkpoints, the log of their run or None)
        self.unreadable = []  # sentences
        for path in paths:
            try:
                if os.path.isdir(path):
                    self.add_folder(path, told)
                else:
                    self.add_logs(path, told, given=True)
            except (OSError, ImportError) as e:  # ImportError: torch, for checkpoints
                self.unreadable.append(f'{clean(path)}: cannot be read: {clean(e, 200)}')
        names = [log.name for log, _ in self.logs]
        for log, _ in self.logs:
            if names.count(log.name) > 1:
                log.name = clean(log.place)
        if len(self.given()) == 1:  # one log and checkpoints without one: they belong together
            log, = self.given()
            for i, (points, other) in enumerate(self.groups):
                if other is None:
                    self.groups[i], log.checkpoints = (points, log), points

    def given(self):
        """The logs that were named one by one."""
        return [log for log, _ in self.logs if log.given]

    def add_logs(self, path, told, points=(), given=False):
        """-> the logs of the runs in a file."""
        try:
            logs = read_logs(path)
        except Unreadable as e:
            self.unreadable.append(str(e))
            return []
        for log in logs:
            log.checkpoints, log.given = points, given
            self.logs.append((log, told))
        return logs

    def add_folder(self, path, told):
        stages = [path]
        if not folders.is_stage(path):
            below = [os.path.join(path, name) for name in folders.STAGES]
            stages = [p for p in below if folders.is_stage(p)]
        for stage in stages:
            points, logs = folders.own_points(stage), []
            file = os.path.join(stage, 'log.csv')
            if os.path.isfile(file):
                about = folders.told_by_checkpoints(stage, points, told)
                logs = self.add_logs(file, about, points)
            for log in logs:
                log.name = clean(os.path.basename(os.path.abspath(stage)), 40)
                log.status = folders.status_of(stage)
            if points:
                self.groups.append((points, logs[0] if logs else None))
        points = [] if stages else folders.foreign_points(path)
        for group in sorted({p.group for p in points}):
            self.groups.append(([p for p in points if p.group == group], None))
        if not stages and not points:
            logs = [n for n in sorted(os.listdir(path)) if KNOWN_LOGS.fullmatch(n)]
            hint = f'; name its file {clean(logs[0])}' if logs else ''
            self.unreadable.append(f'{clean(path)}: found a folder without log.csv, ckpt_*.pt, '
                                   f'stages or NAME_step_N folders{hint}')


def judge(inputs):
    """All findings, each with the log that it is about where there are several; and the tables of
    the JSON report."""
    findings, tables, several = [], {}, len(inputs.logs) > 1
    for log, told in inputs.logs:
        name = log.name if several else ''
        findings += [dict(f, log=name) for f in rules.examine(log, told)]
        windows = [dict(start=start, rows=n, mean=mean) for start, n, mean in log.windows]
        tables[log.place] = dict(windows=windows, columns=sorted(log.columns))
    for points, log in inputs.groups:
        name = log.name if log and several else ''
        found = rules.findings_by(rules.r18_checkpoints, points, log)
        findings += [dict(f, log=name) for f in found]
        table = [dict(name=p.name, step=p.step, fault=p.fault) for p in points]
        tables[f'checkpoints {points[0].group}'] = table
    for a, b in zip(inputs.given(), inputs.given()[1:]):
        if a.path == b.path:  # two runs of one file are not two logs of one run
            continue
        found = rules.findings_by(rules.r13_two_logs, a, b)
        findings += [dict(f, log=f'{a.name} and {b.name}') for f in found]
    return findings, tables


def print_findings(findings):
    """A section for each log; in it facts first and the worst last: the end is what a terminal
    shows."""
    def by_severity(finding):
        return max(1, rules.SEVERITIES.index(finding['severity'])), finding['rule']

    for name in dict.fromkeys(f['log'] for f in findings):
        if name:
            print(f'--- {name}')
        for f in sorted((f for f in findings if f['log'] == name), key=by_severity):
            print(paragraph(f'{f["rule"]} {f["severity"]:<9}', f['text']))
            if f['action']:
                print(paragraph(' ' * 10 + '-> ', f['action']))


def paragraph(start, text):
    return textwrap.fill(text, 100, initial_indent=start, subsequent_indent=' ' * 13,
                         break_on_hyphens=False)


def as_json(value):
    """The same without numpy and NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {str(k): as_json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [as_json(v) for v in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value


def main(argv=None):
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('paths', nargs='+', metavar='LOG or CHECKPOINT_DIR')
    parser.add_argument('--vocab', type=whole_numbers, default=(),
                        help='how many tokens the cross-entropy chooses from: N or N,N')
    parser.add_argument('--total', type=whole_number,
                        help='steps of the whole run, for the time left')
    parser.add_argument('--n_actions', type=whole_number, help='how many actions there are')
    parser.add_argument('--weights', type=weights, default={},
                        help='weights of the terms of the loss: closs:1,loss_ct:10')
    parser.add_argument('--json', action='store_true', help='the same as one JSON object')
    parser.add_argument('--plot', metavar='FILE.png', help='draw the log that the verdict is about')
    args = parser.parse_args(argv)
    with np.errstate(all='ignore'):
        told = rules.Told(args.vocab, args.total, args.n_actions, args.weights)
        inputs = Inputs(args.paths, told)
        findings, tables = judge(inputs)
        severity, headline = rules.conclude(findings)
        severity = severity if findings else 'none'
        if args.plot and inputs.logs:
            try:
                from diagnosis.plot import plot
                accused = {f['log'] for f in findings if f['severity'] == severity}
                pairs = [pair for pair in inputs.logs if pair[0].name in accused]
                plot(*(pairs or inputs.logs)[0], headline, args.plot)
            except Exception as e:  # whatever a library for drawing raises for absurd numbers
                inputs.unreadable.append(f'{clean(args.plot)}: the picture cannot be written: '
                                         f'{clean(e, 200)}')
    if args.json:
        print(json.dumps(as_json(dict(verdict=severity, headline=headline, findings=findings,
                                      tables=tables, unreadable=inputs.unreadable)), indent=1))
    else:
        print_findings(findings)
        for sentence in inputs.unreadable:
            print(textwrap.fill(sentence, 100), file=sys.stderr)
        sys.stderr.flush()
        if findings:
            print(f'verdict: {severity}: {headline}')
    if inputs.unreadable:
        return 3
    return {'none': 0, 'ok': 0, 'info': 0, 'warn': 1, 'critical': 2}[severity]


if __name__ == '__main__':
    sys.stdout.reconfigure(errors='replace')  # this terminal may lack a letter of some name
    try:
        sys.exit(main())
    except BrokenPipeError:  # python diagnose.py LOG | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
