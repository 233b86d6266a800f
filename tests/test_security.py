"""What SECURITY.md promises and no other test holds."""

import ast
import os
import re

import pytest
from launch import ROOT

from training import checkpoint

row = pytest.mark.row
OURS = [
    path
    for path in ROOT.rglob('*.py')
    if path.relative_to(ROOT).parts[0]
    in ('training', 'recordings', 'diagnosis', 'page', 'config', path.name)
]


@row(25)
def test_nothing_else_reads_a_pickle():
    for path in OURS:
        text = path.read_text()
        for call, needs in (
            ('torch.load(', 'weights_only=True'),
            ('np.load(', 'allow_pickle=False'),
        ):
            for args in re.findall(re.escape(call) + r'[^\n]*', text):
                assert needs in args or '`' in args, f'{path.name}: {args}'
        assert not re.search(
            r'weights_only=False|allow_pickle=True|pickle\.loads?\(|(?<![\w.])eval\(|_object\(',
            text,
        ), path.name


def test_nothing_is_sent_and_only_play_listens():
    """No script imports what talks to a network, but wandb where wandb_log asks for it, and the
    server of play.py."""
    talks = {
        *'socket ssl http urllib requests ftplib smtplib xmlrpc socketserver asyncio'.split(),
        'webbrowser',
        'aiohttp',
    }
    for path in OURS:
        text, names = path.read_text(), []
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                names += [a.name for a in node.names]
            if isinstance(node, ast.ImportFrom):
                names.append(node.module or '')
        if path.name != 'play.py':
            assert not talks & {name.split('.')[0] for name in names}, f'{path.name}: {names}'
        # export.py world.html asks npm for a package, once
        assert ("'npm'" in text) == (path.name == 'graphs.py'), path.name
        assert ('import wandb' in text) == (path.name == 'tracker.py'), path.name


@pytest.mark.slow
def test_a_checkpoint_tells_nothing_of_its_machine(world):
    """Strings of the environment, the host's name and the folder of the code: none of them is in
    the file."""
    import socket

    secrets = [
        s
        for s in (*os.environ.values(), socket.gethostname(), str(ROOT))
        if len(s) > 6 and not s.isdecimal()
    ]
    content = (world[1] / 'tokenizer' / 'best.pt').read_bytes()
    ckpt = checkpoint.best(world[1] / 'tokenizer', 'tokenizer')
    allowed = ' '.join(str(v) for v in ckpt['config'].values())  # paths as the user gave them
    assert [s for s in secrets if s.encode() in content and s not in allowed] == []
