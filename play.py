"""
Play the world: in a browser, with the keyboard or the buttons on the page, play.html.

    python play.py config/tiny.py                    # then open http://127.0.0.1:8000; Ctrl-C ends
    python play.py config/hunt.py --watch=True      # somebody plays; a key takes over, P gives back
    python play.py config/tiny.py --port=0           # any free port
    python play.py config/tiny.py --maskgit_steps=4  # twice as fast, nearly as good: RECORDS.md
    ssh -L 8000:127.0.0.1:8000 MACHINE               # plays here what play.py serves on MACHINE
    python play.py config/tiny.py --host=192.168.1.5 --token=...  # for others in a network that you
                                                                  # trust: it is not encrypted
    python play.py config/tiny.py --allow_hosts=play.example.org --token=...  # behind a proxy that
                                          # passes on Host: proxy_set_header Host $http_host

Reads the best.pt of the three stages and a few held-out frames to start from; writes nothing. One
world, one player: a second page that starts anew takes the world over. GET / is the page. What it
sends, and anybody who may can send too, is answered with a PNG:

    POST /start {"start": 3}                the frame that start 3 begins with
    POST /step  {"action": 1, "frame": 17}  the frame after frame 17, counted from the start, when
                                            action 1 is taken
    POST /watch {"frame": 17}               the same when the player takes the action that he likes;
                                            its number and probability are in the headers Action and
                                            Probability. Only with --watch=True

The dream is a function of seed, start and actions. Exit codes: 0 ended by Ctrl-C or SIGTERM, at
once, for there is nothing to save; 2 config, also host and port; 3 data; 4 checkpoint. Errors that
carry an exit_code end the run in their own words.
"""
import base64
import errno
import hashlib
import hmac
import io
import json
import os
import re
import secrets
import signal
import socket
import socketserver
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import torch
from PIL import Image

import configurator
import data
from player import Player
from world import Dream, load_world

# -----------------------------------------------------------------------------
# config

dataset = 'data/tiny.h5'  # its held-out part
out_dir = 'out/tiny'
host = '127.0.0.1'  # another address of this machine needs a token
port = 8000  # 0 = any that is free
token = ''  # a password, part of the address of the page
allow_hosts = ''  # other names by which browsers reach this page, comma between; they need a token
maskgit_steps = 8
temperature = 0.5  # 0 = the most likely token
watch = False  # somebody plays whom you can watch, the player of policy.py
best_of = 1  # of so many chunks that he thinks of, the best by his energy model
seed = 0
device = 'auto'  # 'auto', 'cpu', 'cuda', 'mps'
dtype = 'float32'  # 'float32', 'bfloat16', 'float16'
config = configurator.apply(__file__, globals())
device = configurator.find_device(device)
ctx = torch.autocast(device.split(':')[0], getattr(torch, dtype), enabled=dtype != 'float32')
others = [name.strip().lower() for name in allow_hosts.split(',') if name.strip()]
if not all(re.fullmatch(r'[a-z0-9.-]+|\[[0-9a-f:.]+\]', name) for name in others):
    configurator.stop(2, f'config: found allow_hosts={allow_hosts!r}\n'
                         'expected names such as play.example.org,10.0.0.5: no http://, no port')
if (host != '127.0.0.1' or others) and not token:
    configurator.stop(2, f'config: host={host!r}, allow_hosts={allow_hosts!r}: others can reach '
                         'it\nfound no token, expected one that nobody can guess; '
                         f'add --token={secrets.token_hex(16)}, or leave both as they were')
typed = host  # what others type; the Host header of their requests is held against it
if host in ('', '0.0.0.0'):
    if not others:
        configurator.stop(2, f'config: host={host!r} is no address to type\n'
                             'expected the address by which others reach this machine, or its name '
                             'as well: --allow_hosts=localhost for a port of a container')
    typed = others[0]
most_steps = 60  # a second
patience = 5  # seconds that a request may take to arrive, and an answer to be taken
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *_: os._exit(0))

# -----------------------------------------------------------------------------
# the world, and where to start in it

world = load_world(out_dir, dataset, device)
tokenizer, _, dynamics, about, recording = world
n_actions = dynamics.config.n_actions
dream = Dream(world, maskgit_steps, temperature, device)
memory, frame_stride = dream.memory, about['config']['frame_stride']
starts = data.windows(recording, 'val', memory, frame_stride,
                      f'the {memory} that the world looks back', 'use another recording')
player = None
if watch:
    player = Player(out_dir, device, best_of=best_of)
    player.enter(about)

# -----------------------------------------------------------------------------
# one frame


class Game:
    """The dream in progress. What begins or steps it returns a picture, a PNG, and what its headers
    say."""

    def begin(self, start):
        """Goes to the first frames of a held-out window, with the actions taken between them."""
        dream.begin(data.draw(starts, 1, seed, start), seed + start)
        self.frame = 0  # how many are imagined
        if player:
            player.begin(seed + start)
        return self.picture()

    def step(self, action, frame, **headers):
        """None if the frame that was seen is not the last: another page plays, too."""
        if frame != self.frame:
            return None
        dream.step(action)
        self.frame += 1
        return self.picture(**headers)

    def watch(self, frame):
        """A step with the action that the player chooses, from the picture that a person sees."""
        if frame != self.frame:
            return None
        (action,), (p,) = player.dream()
        return self.step(int(action), frame, Action=int(action), Probability=f'{p:.3f}')

    def picture(self, **headers):
        if player:
            player.look(dream.frames)
        png = io.BytesIO()
        Image.fromarray(dream.frames[0]).save(png, 'png', compress_level=1)
        return png.getvalue(), headers


def imagine(do, message):
    """do(**message), at most `most_steps` times a second."""
    global due
    time.sleep(max(0, due - time.monotonic()))
    due = time.monotonic() + 1 / most_steps
    with torch.no_grad(), ctx:
        return do(**message)


due = 0  # when the next frame may be imagined
game = Game()
# one thread for all that torch does: requests take turns, and torch keeps its own threads
worker = ThreadPoolExecutor(1)
worker.submit(imagine, game.begin, {'start': 0}).result()
# path -> what it does, and the values of a message, each of which is below its limit
accepted = {'/start': (game.begin, {'start': 10 ** 6}),
            '/step': (game.step, {'action': n_actions, 'frame': 10 ** 9})}
if player:
    accepted['/watch'] = game.watch, {'frame': 10 ** 9}

# -----------------------------------------------------------------------------
# the page

names = [str(name) for name in about.get('action_names') or [''] * n_actions]  # '' if it has none
fps = min(most_steps, round((recording.fps or 15) / frame_stride, 1))
facts = dict(names=names, memory=memory, watch=bool(player), height=tokenizer.config.height,
             width=tokenizer.config.width, fps=fps)
facts = json.dumps(facts).replace('<', r'\u003c')  # a name may not end the script
page = Path(__file__).with_name('play.html').read_text(encoding='utf-8').replace('WORLD', facts)


def source(tag):
    """What the Content-Security-Policy calls the text of the page's one <tag>."""
    text = re.search(f'<{tag}>(.*)</{tag}>', page, re.S)[1]
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"


# nothing else in the page is run or fetched
policy = ["default-src 'none'", f"script-src {source('script')}", f"style-src {source('style')}",
          "connect-src 'self'", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"]
HEADERS = {
    'Content-Security-Policy': '; '.join(policy),
    'X-Content-Type-Options': 'nosniff',
    'Cache-Control': 'no-store',
    'Referrer-Policy': 'no-referrer',
    'Cross-Origin-Resource-Policy': 'same-origin',
    'Connection': 'close',
}

# -----------------------------------------------------------------------------
# the server. Whatever a browser shows may send requests to 127.0.0.1, so being reachable from here
# alone protects nothing: a page of another site is known by its Origin, and one that had its own
# name point here (DNS rebinding) by its Host. The port tells neither, and a tunnel changes it

local = '127.0.0.1', 'localhost', '[::1]'
known = {*local, typed.lower(), *others}
UNKNOWN_HOST = ('Forbidden: nobody has said that this address is that of the game. If it is, start '
                'the server with --allow_hosts=NAME, the name without http:// and port.')
OTHER_ORIGIN = ('Forbidden: a page of another address asks. If a proxy is between, it must pass on '
                'the Host that the browser sends.')
WRONG_TOKEN = 'Forbidden: no token, or a wrong one. Open the whole address that the server printed.'


def read_message(body, limits):
    """The JSON object in body, if it has a whole number below each limit and nothing else."""
    try:
        message = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if type(message) is not dict or message.keys() != limits.keys():
        return None
    for key, value in message.items():
        # isinstance would let True in
        if type(value) is not int or not 0 <= value < limits[key]:
            return None
    return message


class Handler(BaseHTTPRequestHandler):
    """One request: HTTP/1.0 closes the connection after it."""
    timeout = patience
    disable_nagle_algorithm = True

    def handle(self):
        # `timeout` is that of one read or write, and a byte now and then would begin it anew
        self.late = threading.Timer(patience, self.connection.shutdown, [socket.SHUT_RDWR])
        self.late.start()
        try:
            super().handle()
        finally:
            self.late.cancel()

    def answer(self, code, body, kind='text/plain', more=()):
        self.send_response_only(code)
        about_body = {'Content-Type': f'{kind}; charset=utf-8', 'Content-Length': len(body)}
        for name, value in {**HEADERS, **about_body, **dict(more)}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def send_error(self, code, message='', explain=''):
        """Without the message of http.server, which would repeat what the client said."""
        self.answer(code, (HTTPStatus(code).phrase + '.').encode())

    def log_message(self, *_):
        pass

    def header(self, name):
        """Its value if it is there once, else ''."""
        values = self.headers.get_all(name, [])
        return values[0] if len(values) == 1 else ''

    def refusal(self, posted):
        """Why this request may not be answered, and what helps; '' if it may."""
        address = self.header('Host').lower()
        name = re.sub(':[0-9]{1,5}$', '', address)
        if name not in known:
            return UNKNOWN_HOST
        origin = self.header('Origin').lower()
        # a proxy may speak https, and may say for a Host that it asks this machine
        by_proxy = re.fullmatch('https?://(.+?)(:[0-9]{1,5})?', origin)
        is_named = by_proxy and by_proxy[1] in others and name in (by_proxy[1], *local)
        if posted and not is_named and origin != f'http://{address}':
            return OTHER_ORIGIN
        if posted:
            found, expected = self.header('X-Token'), token
        else:
            found, expected = self.path.partition('?')[2], f'token={token}'
        if token and not hmac.compare_digest(found.encode(), expected.encode()):
            return WRONG_TOKEN
        return ''

    def do_GET(self):
        refusal = self.refusal(posted=False)
        if refusal:
            self.answer(403, refusal.encode())
        elif self.path.partition('?')[0] != '/':
            self.send_error(404)
        else:
            self.answer(200, page.encode(), 'text/html')

    def do_POST(self):
        refusal = self.refusal(posted=True)
        if refusal:
            return self.answer(403, refusal.encode())
        if self.path not in accepted:
            return self.send_error(404)
        if 'Content-Length' not in self.headers:
            return self.send_error(411)
        length = self.header('Content-Length')
        if not re.fullmatch('[0-9]+', length):
            return self.send_error(400)
        if len(length) > 4 or int(length) > 1024:
            return self.send_error(413)
        body = self.rfile.read(int(length))
        self.late.cancel()  # the request is here; the answer takes as long as it takes
        do, limits = accepted[self.path]
        message = read_message(body, limits)
        if len(body) != int(length) or message is None:
            return self.send_error(400)
        try:
            answer = worker.submit(imagine, do, message).result()
        except Exception:  # out of memory, say: for the terminal, not for the client
            traceback.print_exc()
            return self.send_error(500)
        if answer is None:
            return self.answer(409, b'Another page plays this world.')
        picture, headers = answer
        self.answer(200, picture, 'image/png', headers)


class Server(socketserver.ThreadingTCPServer):
    """Not an HTTPServer, which would ask DNS for its own name."""
    daemon_threads, request_queue_size = True, 64
    allow_reuse_address = os.name != 'nt'  # Windows would let two servers have one port

    def verify_request(self, request, address):
        return threading.active_count() < 64  # a connection has two threads, its own and its timer

    def handle_error(self, request, address):
        if not isinstance(sys.exc_info()[1], OSError):  # a client that went away is no error
            super().handle_error(request, address)


try:
    server = Server((host, port), Handler)
except OSError as e:
    cure = 'expected an address of this machine, 127.0.0.1 for itself alone'
    if e.errno == errno.EADDRINUSE:
        cure = 'use --port=0 for any free port'
    found = f'config: cannot listen at host={host!r}, port={port}: {e.strerror}'
    configurator.stop(2, f'{found}\n{cure}')
port = server.server_address[1]
query = f'/?token={token}' if token else ''
print(f'play at http://{typed}:{port}{query} (Ctrl-C ends)', flush=True)
server.serve_forever()
