"""
Play the world: in a browser, with the keyboard, the buttons on the page or a gamepad, play.html.

    python play.py config/tiny.py                    # then open http://127.0.0.1:8000; Ctrl-C ends
    python play.py world.pt                          # a file of export.py, and nothing else
    python play.py config/hunt.py --watch=True      # somebody plays; a key takes over, P gives back
    python play.py config/tiny.py --port=0           # any free port
    ssh -L 8000:127.0.0.1:8000 MACHINE               # plays here what play.py serves on MACHINE
    python play.py config/tiny.py --host=192.168.1.5 --token=...  # for others in a network that you
                                                                  # trust: it is not encrypted
    python play.py config/tiny.py --allow_hosts=play.example.org --token=...  # behind a proxy that
                                          # passes on Host: proxy_set_header Host $http_host

Reads the best.pt of the three stages and a few held-out frames to start from; writes nothing. GET /
is the page, and /world its WebSocket: frames are pushed at the rate of the recording, the last key
wins, and no frame is imagined while two are on their way. One world, one player: a second page
takes the world over. The page says one of these at a time (section "what a page may say"), in JSON,
and a picture to start from in raw bytes:

    {"start": 3, "seed": 0}      go to start 3
    {"press": 1}                 the key of action 1 goes down: at least one step
    {"hold": 2}, {"hold": null}  one was released: that of action 2 is still down, or none is
    {"back": true}               go back a frame at a time, up to a minute; false: play on
    {"play": [[1, 8, 0.5]]}      a replay: action, MaskGIT steps and temperature of each frame
    {"pause": true}              nobody acts: that leaves replays
    {"seen": 17}                 picture 17 has arrived

The answers are a line of JSON and, if it says so, a PNG. The dream is a function of seed, start,
actions and the settings of each frame. Exit codes: 0 ended by Ctrl-C or SIGTERM, at once, for there
is nothing to save; 2 config, also host and port; 3 data; 4 checkpoint. Errors that carry an
exit_code end the run in their own words.
"""
import asyncio
import base64
import contextlib
import errno
import hashlib
import hmac
import io
import json
import logging
import os
import re
import secrets
import signal
import tempfile
import traceback
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from aiohttp import WSMsgType, web
from PIL import Image

import configurator
import data
import faithful
import pictures
from player import Player
from recordings import game
from training import checkpoint
from world import Dream, facts_for_page, likeness, load_world, play_html

# -----------------------------------------------------------------------------
# config

dataset = 'data/tiny.h5'  # its held-out part
out_dir = 'out/tiny'
host = '127.0.0.1'  # another address of this machine needs a token
port = 8000  # 0 = any that is free
token = ''  # a password, part of the address of the page
allow_hosts = ''  # other names by which browsers reach this page, comma between; they need a token
maskgit_steps = 8  # looks at a frame, at most
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
if maskgit_steps > 64:
    configurator.stop(2, f'config: found maskgit_steps={maskgit_steps}, expected at most 64')
most_steps = 60  # a second
logging.getLogger('aiohttp').setLevel(logging.CRITICAL)  # what a client says is no news
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
with ctx:
    facts = facts_for_page(world, starts, device)
height, width, fps, idle = (facts[key] for key in ('height', 'width', 'fps', 'idle'))
player = None
if watch:
    player = Player(out_dir, device, best_of=best_of)
    player.enter(about)
# the built-in game can be played beside its dream, with the key that each action has there
layout = game.layout_of(recording.source)
words = [name.split(' ')[0] for name in facts['names']]
keys = [game.ACTIONS.index(word) if word in game.ACTIONS else None for word in words]
keys.append(game.NOOP)  # no action
has_game = (layout is not None and frame_stride == 1 and any(word in game.ACTIONS for word in words)
            and game.Game(1).state().keys() <= recording.truth.keys())

# -----------------------------------------------------------------------------
# the game. What begins or steps it returns what the page is told of a frame, and the frame; it runs
# in a thread of its own, the only one that touches torch


class Game:
    """The dream in progress, and the real game beside it if it is wanted."""

    def __init__(self):
        self.past = deque(maxlen=int(60 * fps))  # what was before each step: a minute
        self.begin(0, seed)

    def begin(self, start, seed):
        """Goes to the first frames of a held-out window, with the actions taken between them."""
        picks = data.draw(starts, 1, seed, start)
        dream.begin(picks, seed + start)
        self.real = None
        if has_game:
            last = picks + memory - 1
            state = {key: values[last] for key, values in recording.truth.items()}
            self.real = game.Game(1, state.get('layout', layout))
            self.real.reset(seed + start)
            self.real.set_state(state)
        return self.first(seed + start)

    def begin_with(self, picture):
        """Starts from a picture (H,W,3) of somebody, as if it had stood still."""
        dream.begin_with(picture[None], seed)
        self.real = None
        clip = data.frames_at(picture[None], np.zeros((1, 1), int), device)
        return self.first(seed, likeness=likeness(tokenizer, clip))

    def first(self, seed, **more):
        self.past.clear()
        self.frame = self.agree = 0  # how many are imagined; how long both games have been the same
        if player:
            player.begin(seed)
        return self.shown(**more)

    def step(self, action, maskgit_steps, temperature, before=None):
        """The next frame."""
        self.past.append(before or self.state())
        dream.maskgit_steps, dream.temperature = maskgit_steps, temperature
        dream.step(action)
        self.frame += 1
        if self.real:
            key = keys[action]  # one that has no name is none that he knows
            self.real.step(game.NOOP if key is None else key)
            is_same = key is not None and faithful.compare(self.real, dream.frames)[0][0]
            self.agree = self.agree + 1 if is_same else 0
        return self.shown(action=action, maskgit_steps=maskgit_steps, temperature=temperature)

    def watch(self, maskgit_steps, temperature):
        """A step with the action that the player chooses, from the picture that a person sees."""
        before = self.state()
        (action,), (p,) = player.dream()
        told, frame = self.step(int(action), maskgit_steps, temperature, before)
        return {**told, 'probability': round(float(p), 3)}, frame

    def back(self):
        """To the frame before, exactly as it was."""
        self.set_state(self.past.pop())
        return self.shown(back=True)

    def shown(self, **more):
        if player:
            player.look(dream.frames)
        told = dict(frame=self.frame, **more)
        if self.real:
            told['agree'] = self.agree
        return told, dream.frames[0]

    def both(self):
        """The real game's picture and the dream's, side by side."""
        return np.concatenate([self.real.render(), dream.frames], 2)[0]

    def state(self):
        return (dream.tokens, dream.actions, dream.frames, dream.generator.get_state(), self.frame,
                self.agree,
                player and (player.seen, player.generator.get_state()),
                self.real and (self.real.state(), self.real.rng.bit_generator.state))

    def set_state(self, state):
        dream.tokens, dream.actions, dream.frames, noise, self.frame, self.agree, his, real = state
        dream.generator.set_state(noise)
        if player:
            player.seen = his[0][:-1]  # he is shown the last one again
            player.generator.set_state(his[1])
        if real:
            self.real.set_state(real[0])
            self.real.rng.bit_generator.state = real[1]

    def film(self):
        """The last minute as an mp4."""
        frames = np.stack([state[2][0] for state in self.past] + [dream.frames[0]])
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, 'dream.mp4')
            pictures.save_mp4(path, frames, fps, max(1, 256 // height))
            return dict(film=True), Path(path).read_bytes()


def png(frame):
    out = io.BytesIO()
    Image.fromarray(frame).save(out, 'png', compress_level=1)
    return out.getvalue()


worker = ThreadPoolExecutor(1)


def imagine(do, *args):
    """do(*args) in the worker -> what the page is told, bytes."""
    with torch.no_grad(), ctx:
        return do(*args)


the_game = worker.submit(imagine, Game).result()

# -----------------------------------------------------------------------------
# what a page may say

longest = 65_536 + height * width * 3  # bytes of a message


def is_number(low, high, kind=int):
    """A test of values: a number in [low, high], of which True is none."""
    kinds = (int, float) if kind is float else (int,)
    return lambda v: type(v) in kinds and low <= v <= high


is_action, is_steps = is_number(0, n_actions), is_number(1, 64)
is_positive = is_number(1e-3, 10, float)


def is_warm(value):
    return value == 0 and type(value) is not bool or is_positive(value)


def is_flag(value):
    return type(value) is bool


def is_replay(value):
    return type(value) is list and all(
        type(step) is list and len(step) == 3 and is_action(step[0]) and is_steps(step[1])
        and is_warm(step[2]) for step in value)


accepted = {'press': is_action, 'hold': lambda v: v is None or is_action(v),
            'start': is_number(0, 10 ** 6), 'seed': is_number(0, 2 ** 31 - 1),
            'back': is_flag, 'pause': is_flag, 'beside': is_flag, 'watch': is_flag,
            'film': is_flag, 'seen': is_number(0, 10 ** 9), 'maskgit_steps': is_steps,
            'temperature': is_warm, 'speed': is_number(0.1, 10, float), 'play': is_replay}


def read_message(text):
    """The JSON object in text if all that it says is accepted, else None."""
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if type(message) is not dict or not message or not message.keys() <= accepted.keys():
        return None
    return message if all(accepted[key](value) for key, value in message.items()) else None


# -----------------------------------------------------------------------------
# the page that plays


class Seat:
    """A page, and what it wants."""

    def __init__(self, socket):
        self.socket = socket
        self.news = asyncio.Event()
        self.wanted = None  # what begins the next game
        self.begun = False
        self.held = self.tapped = None  # a short tap is a step, too
        self.replay = deque()
        self.back = self.paused = self.beside = self.film = False
        self.watching = bool(player)
        self.settings = dict(maskgit_steps=maskgit_steps, temperature=temperature, speed=1.0)
        self.sent = self.seen = 0  # pictures

    def begin(self, *job):
        self.wanted, self.begun, self.tapped = job, True, None
        self.replay.clear()
        self.news.set()

    def hear(self, message):
        if 'start' in message:
            self.begin(the_game.begin, message['start'], message.get('seed', seed))
        if 'hold' in message:
            self.held = message['hold']
        if 'press' in message:
            self.held = self.tapped = message['press']
        if self.held is not None:
            self.watching = False
        self.back = message.get('back', self.back)
        if self.held is not None or self.back:
            self.replay.clear()
        self.replay.extend(message.get('play', ()))
        self.paused = message.get('pause', self.paused)
        self.beside = message.get('beside', self.beside) and has_game
        self.film = message.get('film', self.film)
        self.watching = message.get('watch', self.watching) and bool(player)
        self.seen = max(self.seen, min(self.sent, message.get('seen', 0)))
        self.settings.update({key: message[key] for key in self.settings if key in message})
        self.news.set()

    def next_job(self):
        """What to do now, a function and its arguments; None if there is nothing to do."""
        how = self.settings['maskgit_steps'], self.settings['temperature']
        if self.wanted:
            return self.wanted
        if self.film:
            return (the_game.film,)
        if not self.begun or self.sent - self.seen >= 2:
            return None
        if self.back:
            return (the_game.back,) if the_game.past else None
        if self.replay:
            return the_game.step, *self.replay[0]
        if self.paused:
            return None
        action = self.held if self.tapped is None else self.tapped
        if action is not None:
            return the_game.step, action, *how
        if self.watching:
            return the_game.watch, *how
        return None if idle is None else (the_game.step, idle, *how)

    def begin_job(self, job):
        """The job is on its way: what it was asked by is done with."""
        if job is self.wanted:
            self.wanted = None
        elif job == (the_game.film,):
            self.film = False
        elif self.replay and not self.back:
            self.replay.popleft()
        else:
            self.tapped = None

    async def play(self):
        """Sends frames at the recording's rate, for as long as it is asked for any."""
        loop = asyncio.get_running_loop()
        due = soonest = loop.time()  # of the next frame; of one that somebody asks for now
        while True:
            self.news.clear()
            asked = self.wanted or self.film or self.tapped is not None
            wait = (soonest if asked else due) - loop.time()
            if wait > 0:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait):  # wait_for may swallow the end of the task
                        await self.news.wait()
                continue
            job = self.next_job()  # the last key wins
            if job is None:
                await self.news.wait()
                continue
            self.begin_job(job)
            rate, now = min(most_steps, fps * self.settings['speed']), loop.time()
            due = max(min(due, now) + 1 / rate, now)
            soonest = now + 1 / most_steps
            try:
                told, body = await loop.run_in_executor(worker, imagine, self.do, *job)
            except Exception:  # out of memory, say: for the terminal, not for the page
                traceback.print_exc()
                told, body = dict(error='It could not imagine that. Its terminal says why.'), b''
                self.begun, self.held, self.watching = False, None, False
                self.replay.clear()
            self.sent += 1
            line = json.dumps(dict(n=self.sent, replay=len(self.replay), **told))
            await self.socket.send_bytes(line.encode() + b'\n' + body)

    def do(self, job, *args):
        told, body = job(*args)
        if isinstance(body, bytes):
            return told, body
        return told, png(the_game.both() if self.beside and the_game.real else body)


seat = None  # one world, one player


async def sit_down(request):
    """A WebSocket, from when a page opens it to its end."""
    global seat
    socket = web.WebSocketResponse(max_msg_size=longest, heartbeat=20, compress=False)
    await socket.prepare(request)
    mine = Seat(socket)
    before, seat = seat, mine
    if before:  # its page may be one that reads nothing any more: nobody waits for that
        before.playing.cancel()
        asyncio.create_task(before.socket.close(code=4001, drain=False,
                                                message=b'Another page plays this world.'))
    playing = mine.playing = asyncio.create_task(mine.play())
    playing.add_done_callback(lambda task: task.cancelled() or task.exception())
    try:
        async for said in socket:
            if said.type == WSMsgType.BINARY and len(said.data) == height * width * 3:
                picture = np.frombuffer(said.data, np.uint8).reshape(height, width, 3)
                mine.begin(the_game.begin_with, picture)
                continue
            message = read_message(said.data) if said.type == WSMsgType.TEXT else None
            if message is None or len(mine.replay) > 10 ** 6:
                await socket.close(code=1008, message=b'That is no message of this page.')
                break
            mine.hear(message)
    finally:
        playing.cancel()
        if seat is mine:
            seat = None
    return socket

# -----------------------------------------------------------------------------
# the page


# a replay is the same dream where all of this is the same
told = about['id'], checkpoint.weights_id(dynamics.state_dict()), recording.data_id, len(starts)
facts['replay'] = f'{configurator.hash_texts(*map(str, told), device, dtype, str(seed)):015x}'
facts.update(watch=bool(player), beside=has_game, maskgit_steps=maskgit_steps,
             temperature=temperature, seed=seed)
page = play_html(facts)


def source(tag):
    """What the Content-Security-Policy calls the text of the page's one <tag>."""
    text = re.search(f'<{tag}>(.*)</{tag}>', page, re.S)[1]
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"


# nothing else in the page is run or fetched
policy = ["default-src 'none'", f"script-src {source('script')}", f"style-src {source('style')}",
          "connect-src 'self'", "img-src blob: data:", "base-uri 'none'", "form-action 'none'",
          "frame-ancestors 'none'"]
HEADERS = {
    'Content-Security-Policy': '; '.join(policy),
    'X-Content-Type-Options': 'nosniff',
    'Cache-Control': 'no-store',
    'Referrer-Policy': 'no-referrer',
    'Cross-Origin-Resource-Policy': 'same-origin',
}


async def send_page(request):
    return web.Response(text=page, content_type='text/html')

# -----------------------------------------------------------------------------
# who may ask. Whatever a browser shows may send requests to 127.0.0.1, so being reachable from here
# alone protects nothing: a page of another site is known by its Origin, and one that had its own
# name point here (DNS rebinding) by its Host. The port tells neither, and a tunnel changes it


local = '127.0.0.1', 'localhost', '[::1]'
known = {*local, typed.lower(), *others}
UNKNOWN_HOST = ('Forbidden: nobody has said that this address is that of the game. If it is, start '
                'the server with --allow_hosts=NAME, the name without http:// and port.')
OTHER_ORIGIN = ('Forbidden: a page of another address asks. If a proxy is between, it must pass on '
                'the Host that the browser sends.')
WRONG_TOKEN = 'Forbidden: no token, or a wrong one. Open the whole address that the server printed.'


def refusal(request):
    """Why this request may not be answered, and what helps; '' if it may."""

    def header(name):  # its value if it is there once, else ''
        values = request.headers.getall(name, [])
        return values[0].lower() if len(values) == 1 else ''

    address, origin = header('Host'), header('Origin')
    name = re.sub(':[0-9]{1,5}$', '', address)
    if name not in known:
        return UNKNOWN_HOST
    # a proxy may speak https, and may say for a Host that it asks this machine
    by_proxy = re.fullmatch('https?://(.+?)(:[0-9]{1,5})?', origin)
    is_named = by_proxy and by_proxy[1] in others and name in (by_proxy[1], *local)
    if request.path != '/' and not is_named and origin != f'http://{address}':
        return OTHER_ORIGIN
    found = request.query_string
    if token and not hmac.compare_digest(found.encode(), f'token={token}'.encode()):
        return WRONG_TOKEN
    return ''


@web.middleware
async def guard(request, handler):
    """Refuses who may not ask, and puts what else goes wrong into words of its own."""
    why = refusal(request)
    if why:
        return web.Response(status=403, text=why)
    try:
        return await handler(request)
    except web.HTTPException as e:  # no such path or method
        return web.Response(status=e.status, text=f'{e.reason}.')


async def harden(request, response):
    response.headers.update(HEADERS)
    response.headers.popall('Server', None)


async def serve():
    global port
    app = web.Application(middlewares=[guard], client_max_size=1024)
    app.on_response_prepare.append(harden)
    app.add_routes([web.get('/', send_page, allow_head=False), web.get('/world', sit_down)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as e:
        cure = 'expected an address of this machine, 127.0.0.1 for itself alone'
        if e.errno == errno.EADDRINUSE:
            cure = 'use --port=0 for any free port'
        found = f'config: cannot listen at host={host!r}, port={port}: {os.strerror(e.errno)}'
        configurator.stop(2, f'{found}\n{cure}')
    port = runner.addresses[0][1]
    query = f'/?token={token}' if token else ''
    print(f'play at http://{typed}:{port}{query} (Ctrl-C ends)', flush=True)
    await asyncio.Event().wait()


asyncio.run(serve())
