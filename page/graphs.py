"""A trained world as one web page: its networks as ONNX, and what runs them in a browser."""
import base64
import gzip
import hashlib
import importlib.util
import io
import logging
import re
import shutil
import subprocess
import tarfile
import tempfile
import warnings
from pathlib import Path

import torch
from torch import nn

import files
from world import play_html

# what runs ONNX in a browser, from npm; its licence (MIT) is in the page
RUNTIME = 'onnxruntime-web'
VERSION = '1.30.0'
SHA256 = 'd2228df7e4616bc3348bf504ee888f3bec43789a273f0a63f3e68d203ce3bf71'  # of the package
# its JavaScript and its WebAssembly, which compute on the CPU, and those for WebGPU
PARTS = {'cpu-module': 'ort.wasm.bundle.min.mjs', 'cpu-wasm': 'ort-wasm-simd-threaded.wasm',
         'gpu-module': 'ort.jspi.bundle.min.mjs', 'gpu-wasm': 'ort-wasm-simd-threaded.jspi.wasm'}
HERE = Path(__file__).parent


class PageError(Exception):
    """The page cannot be made here."""
    exit_code = 2


class Past(nn.Module):
    """What the past says of each patch of the new frame: once a frame."""

    def __init__(self, dynamics):
        super().__init__()
        self.dynamics = dynamics

    def forward(self, tokens, actions):
        return self.dynamics.past(tokens.long(), actions.long())


class Guess(nn.Module):
    """The logits of every token of the new frame: once a MaskGIT step."""

    def __init__(self, dynamics):
        super().__init__()
        self.dynamics = dynamics

    def forward(self, past, frame):
        return self.dynamics.logits(self.dynamics.trunk(past, frame.long()))


class Draw(nn.Module):
    """Tokens (1,T,N) -> the last frame (H,W,3), 0 to 255."""

    def __init__(self, tokenizer):
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, tokens):
        x = (self.tokenizer.decode(tokens.long())[0, -1] + 1) * 127.5
        return x.round().permute(1, 2, 0)


class Read(nn.Module):
    """A frame (H,W,3), 0 to 255 -> its tokens (1,T,N), as if it had stood still for T frames."""

    def __init__(self, tokenizer, T):
        super().__init__()
        self.tokenizer, self.T = tokenizer, T

    def forward(self, frame):
        x = (frame / 127.5 - 1).permute(2, 0, 1)[None, None]
        return self.tokenizer.encode(x.expand(-1, self.T, -1, -1, -1)).int()


def graphs(tokenizer, dynamics):
    """name -> bytes of an ONNX model, of the networks that a browser runs. Raises PageError."""
    if not importlib.util.find_spec('onnxscript'):
        raise PageError('world.html needs onnx and onnxscript, which are not installed\n'
                        f'pip install -r {HERE.parent / "requirements-page.txt"}, or make page')
    logging.getLogger('torch.onnx').setLevel(logging.ERROR)  # it misses torchvision, and says so
    c, t = dynamics.config, tokenizer.config
    memory, N = c.seq_len - 1, c.n_tokens
    tokens = torch.zeros(1, memory, N, dtype=torch.int32)
    seen = tokens if t.temporal else tokens[:, :1]
    parts = dict(
        past=(Past(dynamics), tokens, torch.zeros(1, memory, dtype=torch.int32)),
        guess=(Guess(dynamics), torch.zeros(1, N, c.n_embd), tokens[:, 0]),
        draw=(Draw(tokenizer), seen),
        read=(Read(tokenizer, memory), torch.zeros(t.height, t.width, 3)))
    made = {}
    for name, (module, *args) in parts.items():
        inputs = [f'x{i}' for i in range(len(args))]
        with warnings.catch_warnings():  # of torch about itself
            warnings.simplefilter('ignore')
            program = torch.onnx.export(module.eval(), tuple(args), input_names=inputs,
                                        output_names=['y'], dynamo=True, verbose=False)
        made[name] = program.model_proto.SerializeToString()
    return made


# -----------------------------------------------------------------------------
# the runtime


def runtime():
    """What is in the package for a CPU and for a GPU, {part: bytes}, from ~/.cache or from npm.
    Raises PageError."""
    folder = files.user_cache()
    kept = folder and Path(folder, f'{RUNTIME}-{VERSION}.tgz')
    is_kept = bool(kept) and kept.exists()
    package = kept.read_bytes() if is_kept else fetch()
    found = hashlib.sha256(package).hexdigest()
    if found != SHA256:
        raise PageError(f'{RUNTIME}-{VERSION}.tgz: found sha256 {found}, expected {SHA256}\n'
                        f'remove {kept} if it is there, and try again')
    if kept and not is_kept:
        with files.replacing(kept) as tmp:
            Path(tmp).write_bytes(package)
    with tarfile.open(fileobj=io.BytesIO(package)) as tar:
        return {part: tar.extractfile(f'package/dist/{name}').read()
                for part, name in PARTS.items()}


def fetch():
    """The package as npm gives it."""
    npm = shutil.which('npm')
    if not npm:
        raise PageError(f'world.html needs {RUNTIME} {VERSION}: found no npm to fetch it with\n'
                        'install Node.js (apt-get install npm), or export a world.pt')
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([npm, 'pack', '--silent', f'{RUNTIME}@{VERSION}'], cwd=folder,
                              capture_output=True, text=True)
        found = list(Path(folder).glob('*.tgz'))
        if not found:
            raise PageError(f'npm could not fetch {RUNTIME} {VERSION}: '
                            f'{" ".join(done.stderr.split())[:200]}\ntry again when it can')
        return found[0].read_bytes()


PERMISSION = (HERE.parent / 'LICENSE').read_text(encoding='utf-8').partition('\n\nPermission')[2]
LICENCE = f"""{RUNTIME} {VERSION}, which runs the networks in this page:
MIT License. Copyright (c) Microsoft Corporation

Permission{PERMISSION}"""

# -----------------------------------------------------------------------------
# the page


def packed(content):
    return base64.b64encode(gzip.compress(content, 9)).decode()


def page(tokenizer, dynamics, facts, starts, licence):
    """
    The whole page, a text. facts: what play.html is told of the world; starts: tokens
    (n,memory,N) and actions (n,memory-1) of frames to start from.
    """
    parts = {**graphs(tokenizer, dynamics), **runtime()}
    if dynamics.n_digits > 1:
        parts['pairs'] = dynamics.pairs.weight.detach().cpu().float().numpy().tobytes()
    c = dynamics.config
    facts = {**facts, 'n_tokens': c.n_tokens, 'vocab_size': c.vocab_size, 'base': dynamics.base,
             'n_digits': dynamics.n_digits, 'n_embd': c.n_embd, 'doubt': dynamics.doubt,
             'temporal': tokenizer.config.temporal,
             'starts': [dict(tokens=t.flatten().tolist(), actions=a.tolist())
                        for t, a in zip(*starts)]}
    held = ''.join(f'<script type="text/plain" id="part-{name}">{packed(content)}</script>\n'
                   for name, content in parts.items())
    local = (HERE / 'local.js').read_text(encoding='utf-8')
    notes = re.sub('-(?=-)', '- ', f'{licence}\n\n{LICENCE}')  # the comment ends where we say
    before = f'<!--\n{notes}-->\n{held}<script>{local}</script>\n<script>'
    return play_html(facts).replace('<script>', before, 1)
