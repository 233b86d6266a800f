"""
Play the world: in a browser, with the keyboard or the buttons on the page.

    python play.py config/tiny.py                             # then open http://127.0.0.1:8000; Ctrl-C ends
    python play.py config/tiny.py --port=0                    # any free port
    python play.py config/tiny.py --maskgit_steps=4           # twice the frames/s, nearly as good (RECORDS.md)
    ssh -L 8000:127.0.0.1:8000 MACHINE                        # plays here what `python play.py` serves on MACHINE
    python play.py config/tiny.py --host=192.168.1.5 --token=...    # for others in a network that you trust: unencrypted

Reads the best.pt of the three stages and a few held-out frames to start from; writes nothing. One world, one player: a second page
that starts anew takes the world over. GET / is the page; what it sends, and anybody who may can send too, is answered with a PNG:

    POST /start {"start": 3}                the frame that start 3 begins with; the dream is a function of seed, start and actions
    POST /step  {"action": 1, "frame": 17}  the frame after frame 17, counted from the start, when action 1 is taken

Exit codes: 0 ended by Ctrl-C or SIGTERM, at once, for there is nothing to save; 2 config, also host and port; 3 data; 4 checkpoint.
"""
import base64
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

import torch
from PIL import Image

import configurator
import data
import pictures
from training import checkpoint
from world import load_world, taken_actions

# -----------------------------------------------------------------------------
# config

dataset = 'data/tiny.h5'          # its held-out part
out_dir = 'out/tiny'
host = '127.0.0.1'                # another address of this machine needs a token
port = 8000                       # 0 = any that is free
token = ''                        # a password, part of the address of the page
maskgit_steps = 8
temperature = 0.5                 # 0 = the most likely token
seed = 0
device = 'auto'                   # 'auto', 'cpu', 'cuda', 'mps'
dtype = 'float32'                 # 'float32', 'bfloat16', 'float16'
config = configurator.apply(__file__, globals())
device = configurator.find_device(device)
ctx = torch.autocast(device.split(':')[0], getattr(torch, dtype), enabled=dtype != 'float32')
if host != '127.0.0.1' and not token:
    configurator.stop(2, f'config: host={host!r} can be reached from other machines\nfound no token, expected one that nobody can guess; '
                         f'add --token={secrets.token_hex(16)}, or leave host at 127.0.0.1')
if host in ('', '0.0.0.0'):       # what they type is what the Host header of their requests is held against
    configurator.stop(2, f'config: host={host!r} is no address to type\nexpected the address or name by which others reach this machine')
most_steps, patience = 60, 5      # a second; seconds that a request may take to arrive, and an answer to be taken
for name in (signal.SIGINT, signal.SIGTERM):
    signal.signal(name, lambda *_: os._exit(0))

# -----------------------------------------------------------------------------
# the world, and where to start in it

try:
    tokenizer, labeller, dynamics, about, recording = load_world(out_dir, dataset, device)
    n_actions, memory = dynamics.config.n_actions, dynamics.config.seq_len - 1    # memory: frames that it looks back
    frame_stride, action_source = about['config']['frame_stride'], about['config']['action_source']
    starts = data.windows(recording, 'val', memory, frame_stride)
except (checkpoint.CheckpointError, data.DataError) as e:
    configurator.stop(e.exit_code, e)

# -----------------------------------------------------------------------------
# one frame

def begin(start):
    """The first frames of a held-out window, and the actions between them as the dynamics was trained to hear them."""
    global tokens, actions, generator, frame
    picks = data.draw(starts, 1, seed, start)
    clip = data.clips(recording.frames, picks, memory, frame_stride, device)
    tokens, actions = tokenizer.encode(clip), taken_actions(action_source, labeller, clip, recording, picks)
    generator, frame = torch.Generator(device).manual_seed(seed + start), 0

def step(action):
    global tokens, actions, frame
    taken = torch.cat([actions, torch.full_like(tokens[:, :1, 0], action)], 1)       # (1,memory)
    tokens = dynamics.generate(tokens, taken, maskgit_steps, temperature, generator)[:, 1:]
    actions, frame = taken[:, 1:], frame + 1

def imagine(do, number, seen=None):
    """begin(number) or step(number) -> the picture, a PNG; None if the frame that was seen is not the last: another page plays, too."""
    time.sleep(max(0, imagine.due - time.monotonic()))
    imagine.due = time.monotonic() + 1 / most_steps
    if seen is not None and seen != frame:
        return None
    with torch.no_grad(), ctx:
        do(number)
        shown = tokens if tokenizer.config.temporal else tokens[:, -1:]
        picture = pictures.to_uint8(tokenizer.decode(shown))[0, -1]
    png = io.BytesIO()
    Image.fromarray(picture).save(png, 'png', compress_level=1)
    return png.getvalue()

imagine.due = 0
world = ThreadPoolExecutor(1)     # one thread for all that torch does: requests take turns, and torch keeps its threads
world.submit(imagine, begin, 0).result()
accepted = {'/start': (begin, {'start': 10 ** 6}), '/step': (step, {'action': n_actions, 'frame': 10 ** 9})}    # each value is below

# -----------------------------------------------------------------------------
# the page

PAGE = r'''<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>nanoworlds</title>
<style>
  body { max-width: 512px; margin: 0 auto; padding: 8px; font: 15px/1.4 system-ui, sans-serif; color: #ddd; background: #17171c;
         user-select: none; -webkit-user-select: none }
  canvas { display: block; width: min(100%, 70vh); margin: 0 auto; image-rendering: pixelated; background: #000 }
  p { margin: 8px 0; min-height: 1.4em; font-variant-numeric: tabular-nums }
  div { display: flex; flex-wrap: wrap; gap: 6px; margin: 6px 0 }
  button { flex: 1 0 22%; min-height: 52px; border: 1px solid #555; border-radius: 6px; font: inherit; color: inherit; background: #2a2a33 }
  #actions button { touch-action: none }
  button.on { background: #3b6ea5 }
  small { display: block; color: #999 }
</style>
<canvas id="canvas"></canvas>
<p id="line"></p>
<div id="actions"></div>
<div><button id="again">again<small>R</small></button><button id="fresh">new start<small>N</small></button></div>
<p><small id="about"></small></p>
<script>
'use strict'
const world = WORLD
const $ = id => document.getElementById(id)
const token = new URLSearchParams(location.search).get('token') || ''
const paper = $('canvas').getContext('2d')
const about = `Nothing here is drawn by a game: each frame is imagined from the last ${world.memory} and the action, and what goes wrong
  stays in the picture. So it melts with time, or the hero gets lost; a new start mends it.
  To put an action on another key, hold its button and press the key.`
;[$('canvas').width, $('canvas').height, $('about').textContent] = [world.width, world.height, about]

// ---- keys: by the actions' names, where they have some; a digit for every action
const find = (...words) => {
  const names = world.names.map(name => name.toLowerCase())
  const exact = names.findIndex(name => words.includes(name))
  return exact >= 0 ? exact : names.findIndex(name => name.split(' ').some(word => words.includes(word)))
}
const noop = find('noop', 'none', 'stay', 'idle', 'wait', 'nothing')
const keys = new Map([[find('up', 'north'), 'ArrowUp', 'w'], [find('left', 'west'), 'ArrowLeft', 'a'],
  [find('down', 'south'), 'ArrowDown', 's'], [find('right', 'east'), 'ArrowRight', 'd'],
  [find('sword', 'jump', 'attack', 'fire', 'shoot', 'use'), ' ']]
  .flatMap(([action, ...ids]) => ids.map(id => [id, action])).filter(([, action]) => action >= 0))
world.names.slice(0, 10).forEach((_, action) => keys.set(String(action), action))
const say = id => ({ArrowUp: '↑', ArrowLeft: '←', ArrowDown: '↓', ArrowRight: '→', ' ': 'space'})[id] || id.toUpperCase()
const called = action => world.names[action] || `action ${action}`

const held = new Map()                 // what is pressed -> its action, the latest last
let tapped = null                      // pressed since the last step: a short tap is a step too
let touched = null                     // the action of the button under the finger
const press = (what, action) => { held.delete(what); held.set(what, action); tapped = action }

const buttons = world.names.map((_, action) => {
  const button = $('actions').appendChild(document.createElement('button'))
  button.onpointerdown = e => { e.preventDefault(); button.setPointerCapture(e.pointerId); press(e.pointerId, touched = action) }
  button.onlostpointercapture = e => { held.delete(e.pointerId); touched = null }
  button.oncontextmenu = e => e.preventDefault()
  return button
})
const label = () => buttons.forEach((button, action) => {
  button.textContent = called(action)
  button.appendChild(document.createElement('small')).textContent = [...keys].map(([id, a]) => a === action ? say(id) : '').join(' ')
})
label()
onkeydown = e => {
  if (e.ctrlKey || e.metaKey || e.altKey) return held.clear()          // the browser's own, and it may swallow the release
  const id = e.key.length === 1 ? e.key.toLowerCase() : e.key
  if (touched !== null && !e.repeat) { keys.set(id, touched); label() }
  if (keys.has(id)) { e.preventDefault(); if (!e.repeat) press(e.code, keys.get(id)) }
  else if (id === 'r' && !e.repeat) $('again').click()
  else if (id === 'n' && !e.repeat) $('fresh').click()
}
onkeyup = e => { if (held.delete(e.code)) e.preventDefault() }
onblur = () => held.clear()

// ---- play: one request at a time, so that no key press waits behind older ones
let start = 0, frame = 0, wanted = 0   // wanted: the start to go to, null when there
let broken = '', times = []
$('again').onclick = () => { wanted = start; $('again').blur() }
$('fresh').onclick = () => { wanted = start + 1; $('fresh').blur() }
const post = async (path, message) => {
  const answer = await fetch(path, {method: 'POST', headers: {'X-Token': token}, body: JSON.stringify(message)})
    .catch(() => { throw Error('no answer: does play.py still run?') })
  if (!answer.ok) throw Error(await answer.text())
  paper.drawImage(await createImageBitmap(await answer.blob()), 0, 0)
}
const play = async () => {
  for (let due = 0;;) {
    const action = tapped ?? [...held.values()].at(-1) ?? (noop >= 0 ? noop : null)
    const steps = wanted === null && action !== null && !broken && !document.hidden
    try {
      if (wanted !== null) {
        [start, wanted, broken] = [wanted, null, '']
        await post('start', {start})
        ;[frame, tapped, times, $('again').firstChild.data] = [0, null, [], `start ${start} again`]
      } else if (steps) {
        tapped = null
        await post('step', {action, frame})
        frame += 1
        times = [...times.slice(-15), performance.now()]
      } else times = []
    } catch (e) { broken = e.message }
    const rate = times.length > 1 ? ((times.length - 1) / (times.at(-1) - times[0]) * 1000).toFixed(1) : '–'
    $('line').textContent = broken ? `${broken} "new start" tries again.`
      : `${steps ? called(action) : 'waits for a key'} · ${frame} frames imagined · ${rate} of ${world.fps} frames/s`
    buttons.forEach((button, a) => button.classList.toggle('on', steps && a === action))
    due = Math.max(due + (steps ? 1000 / world.fps : 10), performance.now())
    await new Promise(done => setTimeout(done, due - performance.now()))
  }
}
play()
</script>
'''
names = [str(name) for name in about.get('action_names') or [''] * n_actions]    # '' for an action without a name
facts = dict(names=names, memory=memory, height=tokenizer.config.height, width=tokenizer.config.width,
             fps=min(most_steps, round((recording.fps or 15) / frame_stride, 1)))
page = PAGE.replace('WORLD', json.dumps(facts).replace('<', r'\u003c'))              # a name may not end the script

def source(tag):
    """What the Content-Security-Policy calls the one <tag> of the page; nothing else in it is run or fetched."""
    return "'sha256-" + base64.b64encode(hashlib.sha256(re.search(f'<{tag}>(.*)</{tag}>', page, re.S)[1].encode()).digest()).decode() + "'"

HEADERS = {
    'Content-Security-Policy': f"default-src 'none'; script-src {source('script')}; style-src {source('style')}; connect-src 'self'; "
                               "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    'X-Content-Type-Options': 'nosniff', 'Cache-Control': 'no-store', 'Referrer-Policy': 'no-referrer',
    'Cross-Origin-Resource-Policy': 'same-origin', 'Connection': 'close'}

# -----------------------------------------------------------------------------
# the server. Whatever a browser shows may send requests to 127.0.0.1, so being reachable from here alone protects nothing: a page of
# another site is known by its Origin, and one that had its own name point here (DNS rebinding) by its Host

class Handler(BaseHTTPRequestHandler):                     # HTTP/1.0: a connection is one request
    timeout, disable_nagle_algorithm = patience, True

    def handle(self):                                      # the timeout is of one read or write, and a byte now and then begins it anew
        self.late = threading.Timer(patience, self.connection.shutdown, [socket.SHUT_RDWR])
        self.late.start()
        try:
            super().handle()
        finally:
            self.late.cancel()

    def answer(self, code, body, kind='text/plain'):
        self.send_response_only(code)
        for name, value in {**HEADERS, 'Content-Type': f'{kind}; charset=utf-8', 'Content-Length': len(body)}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def send_error(self, code, message='', explain=''):    # http.server's own would repeat what the client said
        self.answer(code, (HTTPStatus(code).phrase + '.').encode())

    def log_message(self, *_):
        pass

    def header(self, name):
        """Its value if it is there once, else ''."""
        values = self.headers.get_all(name, [])
        return values[0] if len(values) == 1 else ''

    def forbidden(self, posted):
        return (self.header('Host').lower() not in hosts
                or posted and self.header('Origin').lower() not in {f'http://{h}' for h in hosts}
                or token and not hmac.compare_digest(self.header('X-Token').encode() if posted else self.path.partition('?')[2].encode(),
                                                     token.encode() if posted else f'token={token}'.encode()))

    def do_GET(self):
        if self.forbidden(posted=False):
            self.send_error(403)
        elif self.path.partition('?')[0] != '/':
            self.send_error(404)
        else:
            self.answer(200, page.encode(), 'text/html')

    def do_POST(self):
        if self.forbidden(posted=True):
            return self.send_error(403)
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
        self.late.cancel()                                            # it is all here: what follows takes as long as it takes
        do, limits = accepted[self.path]
        try:
            message = json.loads(body)
        except (ValueError, RecursionError):
            message = None
        if not (len(body) == int(length) and type(message) is dict and message.keys() == limits.keys()
                and all(type(message[k]) is int and 0 <= message[k] < limits[k] for k in limits)):     # True is an int, too
            return self.send_error(400)
        try:
            picture = world.submit(imagine, do, *(message[k] for k in limits)).result()
        except Exception:                                             # out of memory, say: for the terminal, not for the client
            traceback.print_exc()
            return self.send_error(500)
        if picture is None:
            return self.answer(409, b'Another page plays this world.')
        self.answer(200, picture, 'image/png')


class Server(socketserver.ThreadingTCPServer):             # HTTPServer would ask DNS for its own name
    daemon_threads, request_queue_size = True, 64
    allow_reuse_address = os.name != 'nt'                  # where it would let two servers have one port

    def verify_request(self, request, address):            # a connection has two threads, its own and its timer
        return threading.active_count() < 64

    def handle_error(self, request, address):
        if not isinstance(sys.exc_info()[1], OSError):       # a client that went away is none
            super().handle_error(request, address)


try:
    server = Server((host, port), Handler)
except OSError as e:
    configurator.stop(2, f'config: cannot listen at host={host!r}, port={port}: {e.strerror}\nuse --port=0 for any free port')
address = f'{host}:{server.server_address[1]}'
hosts = {address.lower()} | {f'{name}:{server.server_address[1]}' for name in ('127.0.0.1', 'localhost')}
print(f'play at http://{address}{"/?token=" + token if token else ""} (Ctrl-C ends)', flush=True)
server.serve_forever()
