"""play.py as a page and as an attacker meet it: a real process on a free port. What a browser makes
of it is in test_page.py."""
import asyncio
import base64
import contextlib
import hashlib
import http.client
import io
import json
import re
import runpy
import shutil
import signal
import socket
import sys

import aiohttp
import av
import h5py
import numpy as np
import pytest
import torch
from launch import (CONFIG, ROOT, STAGES, dataset_of, recording, refused, run, serve, start,
                    train)
from PIL import Image

import data
from pictures import to_uint8
from recordings import game
from recordings.reading import find_hero
from training import checkpoint
from world import likeness, load_world

pytestmark = pytest.mark.slow
row = pytest.mark.row
NAMES = ['', 'up', 'noop', '</script><script>alert(1)</script>']
TOKEN = 'correct-horse_battery'


def altered(out, folder, **values):
    """A copy of a trained world whose dynamics checkpoint says something else."""
    shutil.copytree(out, folder)
    path = folder / 'dynamics' / 'best.pt'
    # str: a Path in the checkpoint is no plain value, and would be refused
    torch.save({**checkpoint.load(str(path)), **values}, path)
    return folder


@pytest.fixture(scope='session')
def named(world, tmp_path_factory):
    weights = checkpoint.load(world[1] / 'dynamics' / 'best.pt')['model']
    random = torch.Generator().manual_seed(0)
    # six updates teach it to say the same whatever it is shown: random weights do not
    for name in ('tokens.weight', 'actions.weight', 'head.weight'):
        weights[name] = torch.randn(weights[name].shape, generator=random)
    folder = tmp_path_factory.mktemp('named') / 'out'
    return altered(world[1], folder, action_names=NAMES, model=weights)


@pytest.fixture(scope='session')
def server(world, named):
    it = serve(world[0], f'--out_dir={named}')
    yield it
    it.process.kill()
    # nothing that was asked here is worth a line in the terminal
    assert it.process.communicate()[1] == ''


@pytest.fixture(scope='session')
def guarded(world, named):
    it = serve(world[0], f'--out_dir={named}', f'--token={TOKEN}')
    yield it
    it.process.kill()
    it.process.communicate()


def connect(server):
    return socket.create_connection(('127.0.0.1', server.port), timeout=60)


def get(server, path, method='GET', **headers):
    """(status, headers, body) of the answer to a plain request. headers: others than a browser's
    own, None to leave one out, a tuple for one that is there twice."""
    sent_headers = {'Host': f'127.0.0.1:{server.port}', **headers}
    connection = http.client.HTTPConnection('127.0.0.1', server.port, timeout=60)
    try:
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, values in sent_headers.items():
            for value in values if isinstance(values, tuple) else (values,):
                if value is not None:
                    connection.putheader(name, value.replace('PORT', str(server.port)))
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def open_socket(server, query='', **headers):
    """(status, body) of a page that opens the WebSocket; 101 if it may."""
    here = f'127.0.0.1:{server.port}'
    headers = {'Origin': f'http://{here}', 'Connection': 'Upgrade', 'Upgrade': 'websocket',
               'Sec-WebSocket-Version': '13', 'Sec-WebSocket-Key': 'AAAAAAAAAAAAAAAAAAAAAA==',
               **headers}
    with connect(server) as s:
        lines = [f'GET /world{query} HTTP/1.1']
        for name, values in {'Host': here, **headers}.items():
            for value in values if isinstance(values, tuple) else (values,):
                if value is not None:
                    lines.append(f'{name}: {value}'.replace('PORT', str(server.port)))
        s.sendall(('\r\n'.join(lines) + '\r\n\r\n').encode())
        answer = http.client.HTTPResponse(s)
        answer.begin()
        return answer.status, b'' if answer.status == 101 else answer.read()


class Page:
    """What play.html does, without a browser."""

    def __init__(self, server, query='', seen=True):
        self.server, self.query, self.acknowledges = server, query, seen

    def __enter__(self):
        self.loop = asyncio.new_event_loop()
        self.session = self.wait(self.make_session())
        url = f'http://127.0.0.1:{self.server.port}'
        self.socket = self.wait(self.session.ws_connect(
            f'{url}/world{self.query}', headers={'Origin': url}))
        return self

    async def make_session(self):
        return aiohttp.ClientSession()

    def __exit__(self, *_):
        self.wait(self.session.close())
        self.loop.close()

    def wait(self, what, seconds=60):
        return self.loop.run_until_complete(asyncio.wait_for(what, seconds))

    def say(self, **message):
        self.wait(self.socket.send_json(message))

    def look(self, seconds=60):
        """What the next message tells, and its picture (H,W,3) or other bytes."""
        said = self.wait(self.socket.receive(), seconds)
        assert said.type == aiohttp.WSMsgType.BINARY, said
        line, _, body = said.data.partition(b'\n')
        told = json.loads(line)
        if self.acknowledges:
            self.say(seen=told['n'])
        if body.startswith(b'\x89PNG'):
            body = np.array(Image.open(io.BytesIO(body)))
        return told, body

    def closed(self):
        """The code and the reason with which the server ends it."""
        for _ in range(100):
            said = self.wait(self.socket.receive())
            if said.type == aiohttp.WSMsgType.CLOSE:
                return said.data, said.extra
            if said.type in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR):
                return self.socket.close_code, ''
        raise AssertionError('it goes on and on')

    def until(self, frame):
        """The next pictures up to that of a frame, of which each is told."""
        seen = []
        while not seen or seen[-1][0]['frame'] != frame:
            seen.append(self.look())
        return seen

    def play(self, start, actions, steps=2, temperature=0.5, seed=0):
        """The pictures of a start and of what follows."""
        self.say(pause=True, speed=10)
        self.say(start=start, seed=seed)
        self.say(play=[[action, steps, temperature] for action in actions])
        while True:  # what was on its way
            told, picture = self.look()
            if told['frame'] == 0 and 'back' not in told:
                break
        seen = [picture]
        for i in range(len(actions)):
            told, picture = self.look()
            assert (told['frame'], told['action']) == (i + 1, actions[i]), told
            assert (told['maskgit_steps'], told['temperature']) == (steps, temperature)
            seen.append(picture)
        return np.stack(seen)


def still_plays(server, query=''):
    with Page(server, query) as page:
        assert page.play(0, [1]).shape == (2, 16, 16, 3)


# -----------------------------------------------------------------------------
# played


def test_the_page(server):
    status, headers, body = get(server, '/')
    page = body.decode()
    assert status == 200 and headers['Content-Type'].startswith('text/html')
    facts = json.loads(re.search(r'const world = (.*)', page)[1])
    usual = facts.pop('usual')
    assert 0 < usual < 100 and len(facts.pop('id')) == 16 and len(facts.pop('replay')) == 15
    assert facts == dict(names=NAMES, memory=2, watch=False, height=16, width=16, fps=15, idle=2,
                         beside=False, maskgit_steps=2, temperature=0.5, seed=0)
    assert not re.search(r'https?:/|src=|href=|@import|url\(', page)  # it is all there is
    assert server.said == f'play at http://127.0.0.1:{server.port} (Ctrl-C ends)\n'


def test_what_is_played_is_what_the_dynamics_generates(server, world, named):
    """Frame by frame as in one go, from a held-out window, with the actions between its frames that
    stage 2 infers."""
    actions = [1, 0, 3, 3, 2, 1]
    with Page(server) as page:
        played = page.play(5, actions)
    assert played.shape == (7, 16, 16, 3) and played.dtype == np.uint8
    tokenizer, action_model, dynamics, _, recording = load_world(named, dataset_of(world), 'cpu')
    picks = data.draw(data.windows(recording, 'val', 2), 1, 0, 5)
    clip = data.clips(recording.frames, picks, 2, 1, 'cpu')
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        taken = torch.cat([action_model.encode(clip), torch.tensor([actions])], 1)
        tokens = dynamics.generate(tokenizer.encode(clip), taken, 2, 0.5, generator)
        expected = to_uint8(tokenizer.decode(tokens))[0, 1:]
    assert abs(played.astype(int) - expected).max() <= 1


def test_a_replay_is_the_same_dream_anywhere(server, guarded):
    """Steps and temperature of each frame are part of it."""
    how = [0, 1, 2, 3]
    with Page(server) as page, Page(guarded, f'?token={TOKEN}') as other:
        a, b, c = page.play(3, how), page.play(3, how), other.play(3, how)
        warm = page.play(3, how, temperature=10)
        page.play(3, how, steps=5)
        another_seed = page.play(3, how, temperature=10, seed=1)
    assert (a == b).all() and (a == c).all()
    assert (a != warm).any() and (another_seed != warm).any()


def test_a_new_start_is_another(server):
    with Page(server) as page:
        assert len({page.play(n, []).tobytes() for n in range(4)}) > 1


def test_each_action_is_accepted_from_the_same_start(server):
    with Page(server) as page:
        played = [page.play(2, [action] * 3) for action in range(4)]
    assert all((p[0] == played[0][0]).all() for p in played)
    assert len({p.tobytes() for p in played}) > 1


def test_a_key_acts_while_it_is_held_and_else_the_world_goes_on(server):
    """Its action 2 is called noop."""
    with Page(server) as page:
        page.play(0, [])
        page.say(press=3, pause=False)
        assert [page.look()[0]['action'] for _ in range(5)] == [3] * 5
        page.say(hold=None)
        acted = [page.look()[0]['action'] for _ in range(6)]
        assert acted == sorted(acted, reverse=True) and acted[-1] == 2
        page.play(0, [])
        page.say(press=1)
        page.say(hold=None)  # a tap between two frames is a step, too, and one
        page.say(pause=False)
        acted = [page.look()[0]['action'] for _ in range(6)]
        assert acted.count(1) == 1 and acted[-1] == 2
        page.play(0, [])
        page.say(press=3)
        page.say(press=1)
        page.say(hold=3)  # the other key is still down
        page.say(pause=False)
        assert [page.look()[0]['action'] for _ in range(3)] == [1, 3, 3]


def test_a_key_does_not_wait_for_the_next_frame(world, named, tmp_path):
    """Which here comes after 100 seconds."""
    slow = shutil.copy(dataset_of(world), tmp_path / 'slow.h5')
    with h5py.File(slow, 'a') as f:
        f.attrs['fps'] = 0.1
    it = serve(world[0], f'--out_dir={named}', f'--dataset={slow}')
    try:
        with Page(it) as page:
            page.say(speed=0.1, start=0)
            page.until(0)
            for action in (3, 1, 3):
                page.say(press=action)
                assert page.look()[0]['action'] == action
    finally:
        it.process.kill()
        it.process.communicate()


def test_without_an_idle_action_the_world_waits(world, tmp_path):
    it = serve(world[0], f'--out_dir={altered(world[1], tmp_path / "out", idle=None)}')
    try:
        with Page(it) as page:
            page.say(start=0)
            assert page.look()[0]['frame'] == 0
            with pytest.raises(TimeoutError):
                page.look(seconds=0.5)
    finally:
        it.process.kill()
        it.process.communicate()


def test_rewinding_is_exact(server):
    """Back to what was shown, and the same keys lead to the same pictures again."""
    actions = [1, 3, 0, 2, 1, 3]
    with Page(server) as page:
        seen = page.play(4, actions)
        page.say(back=True)
        returned = page.until(0)
        page.say(back=False, play=[[action, 2, 0.5] for action in actions])
        again = [picture for _, picture in page.until(6)]
    assert [told['frame'] for told, _ in returned] == [5, 4, 3, 2, 1, 0]
    assert all(told['back'] for told, _ in returned)
    assert (np.stack([picture for _, picture in returned]) == seen[-2::-1]).all()
    assert (np.stack(again) == seen[1:]).all()


def test_a_link_that_is_slow_gets_no_queue(server):
    """Two pictures are on their way at most; what was not sent was not imagined."""
    with Page(server, seen=False) as page:
        page.say(start=0, speed=10)
        assert [page.look()[0]['frame'] for _ in range(2)] == [0, 1]
        page.say(pause=False)  # a message that acknowledges nothing
        with pytest.raises(TimeoutError):
            page.look(seconds=0.5)
    with Page(server, seen=False) as page:
        page.say(start=0, speed=10)
        first = [page.look()[0] for _ in range(2)]
        page.say(press=3)
        page.say(press=1)
        page.say(seen=2)
        assert [told['frame'] for told in first] == [0, 1]
        told, _ = page.look()
        assert (told['frame'], told['action']) == (2, 1), 'the last key wins'


def test_a_second_page_takes_the_world_over(server):
    with Page(server) as first:
        first.play(0, [1, 1])
        with Page(server) as second:
            assert first.closed() == (4001, 'Another page plays this world.')
            assert second.play(1, [1]).shape == (2, 16, 16, 3)


def test_a_picture_of_ones_own_begins_a_game(server, named, world):
    """And is held against what the tokenizer knows."""
    tokenizer = load_world(named, dataset_of(world), 'cpu')[0]
    rng = np.random.default_rng(0)
    with Page(server) as page:
        page.play(0, [])
        for mine in rng.integers(0, 256, (2, 16, 16, 3), np.uint8):
            page.wait(page.socket.send_bytes(mine.tobytes()))
            told, picture = page.look()
            clip = data.clips(mine[None], [0], 1, 1, 'cpu')
            with torch.no_grad():
                expected = to_uint8(tokenizer.decode(tokenizer.encode(clip)))[0, 0]
                assert told['likeness'] == likeness(tokenizer, clip)
            assert told['frame'] == 0 and abs(picture.astype(int) - expected).max() <= 1
        page.say(pause=False)
        assert page.look()[0]['frame'] == 1


def test_a_film_of_the_session(server, tmp_path):
    with Page(server) as page:
        page.play(0, [1, 2, 3])
        page.say(film=True)
        told, film = page.look()
        assert told['film'] is True
        (tmp_path / 'a.mp4').write_bytes(film)
        with av.open(str(tmp_path / 'a.mp4')) as opened:
            assert len(list(opened.decode(video=0))) == 4
        page.say(pause=False)
        assert page.look()[0]['frame'] == 4, 'the game went on'


@pytest.fixture(scope='session')
def in_game(tmp_path_factory):
    """A world of the built-in game that has learned nothing, with names for its actions."""
    folder = tmp_path_factory.mktemp('in_game')
    dataset = str(folder / 'game.h5')
    data.make_game(dataset, n_frames=600)
    config = folder / 'game.py'
    text = CONFIG.format(dataset=dataset, out=str(folder / 'out'))
    config.write_text(text + 'patch_size = 8\n')
    for stage in STAGES[:3]:
        train(f'{stage}.py', config, '--max_iters=1', '--eval_iters=1')
    names = ['up', 'down', 'left', 'right']
    out = altered(folder / 'out', folder / 'named', action_names=names, idle=4)
    it = serve(config, f'--out_dir={out}')
    yield it
    it.process.kill()
    assert it.process.communicate()[1] == ''


def test_the_real_game_goes_on_beside_the_dream(in_game):
    """With the same keys; rewound with it; no other world has one."""
    actions = [3, 3, 0, 0, 2, 1]
    with Page(in_game) as page:
        page.say(beside=True)
        seen = page.play(1, actions)
        assert seen.shape == (7, 64, 128, 3)
        page.say(back=True)
        returned = [picture for _, picture in page.until(0)]
        page.say(back=False, play=[[action, 2, 0.5] for action in actions])
        told, again = zip(*page.until(6))
        page.say(beside=False, play=[[0, 2, 0.5]])
        assert page.look()[1].shape == (64, 64, 3)
    assert (np.stack(returned) == seen[-2::-1]).all() and (np.stack(again) == seen[1:]).all()
    assert all(type(it['agree']) is int for it in told)
    real, places = seen[:, :, :64], []
    for frame in real:
        hero, facing = find_hero(frame[None])
        places.append((*hero[0], facing[0]))
    assert min(place[0] for place in places) >= 0, 'there is a hero in each'
    assert places[2][2] == game.RIGHT and places[4][2] == game.UP and places[6][2] == game.DOWN


def test_a_world_that_has_learned_to_stand_goes_on_without_a_key(in_game):
    with Page(in_game) as page:
        page.say(start=0)
        assert [page.look()[0].get('action') for _ in range(4)] == [None, 4, 4, 4]


def test_another_world_has_no_game_beside_it(server):
    with Page(server) as page:
        page.say(beside=True)
        assert page.play(1, [1])[0].shape == (16, 16, 3)


# -----------------------------------------------------------------------------
# who may ask


@row(40)
@pytest.mark.parametrize('headers', [
    dict(Origin='http://evil.example'),
    dict(Origin='http://evil.example:PORT'),
    dict(Origin=None),
    dict(Origin='null'),
    dict(Origin='https://127.0.0.1:PORT'),
    dict(Origin='http://127.0.0.1'),
    dict(Origin='http://127.0.0.1:PORT.evil.example'),
    dict(Origin=('http://127.0.0.1:PORT', 'http://evil.example')),
    dict(Origin='http://127.0.0.1:PORT/'),
    dict(Origin='http://localhost:PORT'),
    dict(Origin='http://127.0.0.1:9000'),
    dict(Host='localhost:9000', Origin='http://localhost:PORT'),
    dict(Host='localhost:9000', Origin='https://localhost:9000'),
    dict(Host='evil.example'),
    dict(Host='evil.example:PORT'),
    dict(Host='127.0.0.1.evil.example:PORT'),
    dict(Host='localhost.:PORT'),
    dict(Host='evil.example:127.0.0.1'),
    dict(Host='evil.example@127.0.0.1:PORT'),
    dict(Host='127.0.0.1:PORT:1'),
    dict(Host='127.0.0.1:'),
    dict(Host='127.0.0.1:x'),
    dict(Host='0.0.0.0:PORT', Origin='http://0.0.0.0:PORT'),
    dict(Host='[::2]:PORT', Origin='http://[::2]:PORT'),
    dict(Host=''),
    dict(Host='', Origin='http://'),
    dict(Host=None),
    dict(Host=('127.0.0.1:PORT', 'evil.example')),
    dict(Host='evil.example:PORT', Origin='http://evil.example:PORT'),
], ids=lambda headers: ' '.join(f'{k}={v}' for k, v in headers.items()))
def test_other_sites_may_not(server, headers):
    known = headers.get('Host', '127.0.0.1:PORT') in {'127.0.0.1:PORT', 'localhost:9000'}
    words = b'must pass on the Host' if known else b'--allow_hosts=NAME'
    with Page(server) as page:
        page.play(0, [1])
        status, body = open_socket(server, **headers)
        # one Host of two is no request at all
        assert status in (400, 403) and (status == 400 or words in body) and b'evil' not in body
        assert page.play(0, [1]).shape == (2, 16, 16, 3), 'who plays goes on'
    if not known:
        assert get(server, '/', Host=headers['Host'])[0] in (400, 403)


@row(40)
@pytest.mark.parametrize('host', [
    'localhost:PORT', '127.0.0.1:9000', 'localhost:1', '[::1]:8888', '127.0.0.1', 'localhost',
    '[::1]', 'LOCALHOST:PORT'])
def test_every_port_of_this_machine_is_here(server, host):
    """`ssh -L 9000:127.0.0.1:8000`, the port of a container. Another page of such a port is still
    another Origin."""
    assert open_socket(server, Host=host, Origin=f'http://{host}')[0] == 101
    assert get(server, '/', Host=host)[0] == 200
    assert open_socket(server, Host=host, Origin='http://localhost:7777')[0] == 403
    assert open_socket(server, Host=host)[0] == 403


@row(40)
def test_other_names_by_a_key(world, named):
    it = serve(world[0], f'--out_dir={named}', f'--token={TOKEN}', '--host=127.0.0.1',
               '--allow_hosts=Play.example.org, 10.0.0.5,[fe80::1]')
    query = f'?token={TOKEN}'
    try:
        for host in ('play.example.org', 'PLAY.example.org:8443', '10.0.0.5:80', '[fe80::1]:1'):
            assert get(it, f'/{query}', Host=host)[0] == 200
            for scheme in ('http', 'https'):  # the proxy may speak https
                assert open_socket(it, query, Host=host, Origin=f'{scheme}://{host}')[0] == 101
        # one that asks localhost, and leaves the Origin as it is
        there = dict(Host='localhost:8000', Origin='https://play.example.org')
        assert open_socket(it, query, **there)[0] == 101
        assert 'no token' in refuses_alone(it, Host='play.example.org')
        for host, origin in (('example.org', 'https://example.org'),
                             ('play.example.org', 'https://evil.example'),
                             ('play.example.org', 'https://10.0.0.5'),
                             ('127.0.0.1:PORT', 'https://127.0.0.1:PORT'),
                             ('127.0.0.1:PORT', 'https://example.org')):
            assert open_socket(it, query, Host=host, Origin=origin)[0] == 403
    finally:
        it.process.kill()
        assert it.process.communicate()[1] == ''


@row(40)
def test_a_port_of_a_container(world, named):
    """There the server listens at all addresses, and what is typed elsewhere is another port."""
    it = serve(world[0], f'--out_dir={named}', f'--token={TOKEN}', '--host=0.0.0.0',
               '--allow_hosts=127.0.0.1')
    there = dict(Host='localhost:9000', Origin='http://localhost:9000')
    try:
        assert open_socket(it, f'?token={TOKEN}', **there)[0] == 101
        assert 'no token' in refuses_alone(it, Host='localhost:9000')
        assert '--allow_hosts' in refuses_alone(it, Host='0.0.0.0:PORT')
    finally:
        it.process.kill()
        it.process.communicate()


def refuses_alone(server, **headers):
    code, _, body = get(server, '/', **headers)
    assert code == 403
    return body.decode()


@row(40)
@pytest.mark.parametrize('query', ['', '?', '?token=', '?token=wrong', f'?token={TOKEN[:-1]}',
                                   f'?token={TOKEN}x', f'?token={TOKEN.upper()}',
                                   f'?token={TOKEN}&token={TOKEN}', f'?x=1&token={TOKEN}',
                                   '?token=%C3%A9'])
def test_a_wrong_token(guarded, query):
    status, body = open_socket(guarded, query)
    assert (status, body) == (403, b'Forbidden: no token, or a wrong one. Open the whole address '
                              b'that the server printed.')
    for path in ('/', '/elsewhere'):  # nor does it say what there is
        assert get(guarded, f'{path}{query}')[0] == 403


@row(40)
def test_the_token_opens_and_is_not_in_the_page(guarded):
    assert f'/?token={TOKEN} ' in guarded.said
    status, _, page = get(guarded, f'/?token={TOKEN}')
    assert status == 200 and TOKEN.encode() not in page
    still_plays(guarded, f'?token={TOKEN}')
    assert open_socket(guarded, f'?token={TOKEN}', Origin='http://evil.example')[0] == 403


@row(40)
@pytest.mark.parametrize('args, words', [
    (['--host=0.0.0.0'], ['0.0.0.0', 'found no token', '--token=']),
    (['--token=short'], ['token', '16']),
    (['--host=0.0.0.0', f'--token={TOKEN}'], ['0.0.0.0', 'address', '--allow_hosts=localhost']),
    (['--allow_hosts=play.example.org'], ['play.example.org', 'found no token', '--token=']),
    (['--allow_hosts=https://play.example.org', f'--token={TOKEN}'], ['https', 'no http://']),
    (['--allow_hosts=play.example.org:80', f'--token={TOKEN}'], [':80', 'no port']),
    (['--allow_hosts=*', f'--token={TOKEN}'], ["'*'", 'expected names'])])
def test_nobody_else_can_reach_it_without_a_token(world, args, words):
    refused(run('play.py', world[0], '--port=0', *args), 2, *words)


@row(40)
def test_it_listens_at_this_machine_alone(server):
    if sys.platform != 'linux':
        pytest.skip('asks Linux which ports are open')
    lines = [line.split() for table in ('tcp', 'tcp6') for line in open(f'/proc/net/{table}')]
    listening = [words[1] for words in lines if words[3] == '0A']
    port = f'{server.port:04X}'
    assert [a for a in listening if a.endswith(f':{port}')] == [f'0100007F:{port}']


# -----------------------------------------------------------------------------
# what may be said


@row(40)
@pytest.mark.parametrize('message', [
    '{"hold": 999}', '{"press": 5}', '{"press": null}', '{"hold": 5}', '{"hold": -1}',
    '{"hold": true}', '{"hold": 1.0}',
    '{"hold": "1"}', '{"hold": [1]}', '{}', '{"hold": 1, "path": "x"}', '[1, 1]', '1', 'null',
    '"step"', '', '{', 'hold=1', '{"hold": NaN}', '[' * 1024, '{"a":' * 200, '{"start": -1}',
    '{"start": 1000000000}', '{"start": true}', '{"start": 0.5}', '{"start": 0, "seed": -1}',
    '{"start": 0, "out_dir": "x"}', '{"maskgit_steps": 0}', '{"maskgit_steps": 1000}',
    '{"temperature": -1}', '{"temperature": 1e-9}', '{"temperature": false}',
    '{"temperature": NaN}', '{"temperature": 1e9}', '{"speed": 0}',
    '{"speed": 1e99}', '{"play": 1}', '{"play": [1]}', '{"play": [[9, 8, 0.5]]}',
    '{"play": [[1, 0, 0.5]]}', '{"play": [[1, 8, "x"]]}', '{"play": [[1, 8]]}', '{"back": 1}',
    b'', b'x' * 767, b'x' * 769], ids=lambda message: repr(message)[:40])
def test_a_message_that_is_none_ends_the_game(server, message):
    """In words of its own: nothing of it comes back, or is printed."""
    with Page(server) as page:
        if isinstance(message, bytes):
            page.wait(page.socket.send_bytes(message))
        else:
            page.wait(page.socket.send_str(message))
        assert page.closed() == (1008, 'That is no message of this page.')
    still_plays(server)


@row(40)
def test_what_is_too_long_is_not_even_read(server):
    with Page(server) as page:
        page.wait(page.socket.send_str('{"play": [' + '[1, 8, 0.5],' * 10_000 + ']}'))
        assert page.closed()[0] == 1009
    still_plays(server)


@row(40)
def test_there_are_no_other_paths_and_methods(server):
    for path in ('/play.py', '/../play.py', '/%2e%2e/play.py', '/step', '/index.html',
                 '/out/tiny', '/world/'):
        origin = f'http://127.0.0.1:{server.port}'
        status, _, body = get(server, path, Origin=origin)
        assert (status, body) == (404, b'Not Found.')
        assert get(server, path)[0] == 403, 'another site is not told what there is'
    for method in ('PUT', 'DELETE', 'OPTIONS', 'PATCH', 'POST', 'HEAD'):
        assert get(server, '/', method)[0] == 405
    # it need not read what it refuses: who sends all of it first may find a reset, and no answer
    with connect(server) as s:
        s.sendall(f'POST / HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n'
                  f'Content-Length: {2 ** 20}\r\n\r\n'.encode())
        answer = http.client.HTTPResponse(s)
        answer.begin()
        assert answer.status in (400, 405)
        with contextlib.suppress(ConnectionError):
            s.sendall(b'x' * 2 ** 20)
    assert get(server, '/world', Origin=f'http://127.0.0.1:{server.port}')[0] == 400
    still_plays(server)


@row(40)
@pytest.mark.parametrize('request_', [
    b'marker / HTTP/1.1\r\n\r\n',
    b'GET / marker HTTP/1.1\r\n\r\n',
    b'marker\r\n\r\n',
    b'GET / HTTP/1.1\r\nHost: marker\r\n\r\n',
    b'GET /' + b'marker' * 20_000 + b' HTTP/1.1\r\n\r\n',
    b'GET / HTTP/1.1\r\n' + b'marker: x\r\n' * 20_000 + b'\r\n',
    b'\x16\x03\x01marker\x00\r\n\r\n',
], ids=lambda request_: repr(request_)[2:30])
def test_what_is_no_request_is_refused_and_tells_nothing(server, request_):
    with connect(server) as s:
        try:
            s.sendall(request_.replace(b'PORT', str(server.port).encode()))
            answer = s.recv(65_536)
        except ConnectionError:
            answer = b''
    assert b' 200 ' not in answer[:20]
    for word in (b'Traceback', b'play.py', b'<script', b'BaseHTTP'):
        assert word not in answer
    still_plays(server)


@row(40)
def test_the_browser_is_told_to_trust_nothing_but_the_page(server):
    _, headers, body = get(server, '/')
    policy = headers['Content-Security-Policy']
    policy = dict(part.strip().split(' ', 1) for part in policy.split(';'))
    for tag in ('script', 'style'):
        # as a browser would end it: by the first </script>
        texts = re.findall(f'<{tag}>(.*?)</{tag}>', body.decode(), re.S)
        digest = base64.b64encode(hashlib.sha256(texts[0].encode()).digest()).decode()
        assert len(texts) == 1 and policy.pop(f'{tag}-src') == f"'sha256-{digest}'"
    assert policy == {'default-src': "'none'", 'connect-src': "'self'", 'base-uri': "'none'",
                      'img-src': 'blob: data:', 'form-action': "'none'",
                      'frame-ancestors': "'none'"}
    for headers in (headers, get(server, '/none')[1]):
        assert headers['X-Content-Type-Options'] == 'nosniff'
        assert headers['Cache-Control'] == 'no-store'
        assert headers['Referrer-Policy'] == 'no-referrer' and headers['Server'] is None
        assert not [name for name in headers if name.startswith('Access-Control')]


@row(40)
def test_who_says_nothing_holds_nobody_up(server):
    slow = [connect(server) for _ in range(9)]
    for s in slow[3:]:
        s.sendall(b'GET /world HTTP/1.1\r\nHost: 127.0')
    still_plays(server)
    for s in slow:
        s.close()


@row(40)
def test_frames_a_second_are_bounded(server):
    with Page(server) as page:
        began = page.loop.time()
        page.play(0, [1] * 30)
        assert page.loop.time() - began > 29 / 60


# -----------------------------------------------------------------------------
# how it ends


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it(world, number):
    it = serve(world[0])
    still_plays(it)  # silently
    slow = connect(it)
    it.process.send_signal(number)
    out, err = it.process.communicate(timeout=60)
    assert (it.process.returncode, out, err) == (0, '', '')
    slow.close()


def test_a_port_in_use(world, server):
    words = f'port={server.port}', 'in use', '--port=0'
    refused(run('play.py', world[0], f'--port={server.port}'), 2, *words)
    elsewhere = '--host=203.0.113.7', f'--token={TOKEN}', '--port=0'
    done = run('play.py', world[0], *elsewhere)
    refused(done, 2, '203.0.113.7', 'an address of this machine')
    assert '--port=0' not in done.stderr


def test_another_recording_is_said(world, tmp_path):
    it = start('play.py', world[0], '--port=0', f'--dataset={recording(tmp_path / "b.h5", n=170)}')
    said = []
    while not said or not said[-1].startswith('play at '):
        said.append(next(it.stdout))
    it.kill()
    it.communicate()
    note, = [line for line in said if line.startswith('note: ')]
    assert 'dynamics trained on' in note


def test_a_recording_that_is_too_short_is_said_in_words_of_the_game(world, tmp_path):
    done = run('play.py', world[0], f'--dataset={recording(tmp_path / "b.h5", n=12)}')
    refused(done, 3, 'at least 2 frames in a row for the 2 that the world looks back', '12 frames')
    assert 'seq_len' not in done.stderr


def test_a_world_that_is_not_there(world, tmp_path):
    refused(run('play.py', world[0], '--port=0', f'--out_dir={tmp_path}'), 4, str(tmp_path))


def test_a_recording_that_is_none(world, tmp_path):
    path = tmp_path / 'shape.h5'
    with h5py.File(path, 'w') as f:
        f['frames'] = np.zeros((60, 3, 16, 16), np.uint8)
    done = run('play.py', world[0], '--port=0', f'--dataset={path}')
    refused(done, 3, path.name, 'transpose')


def test_labels_that_are_not_there(world, tmp_path):
    ckpt = checkpoint.load(world[1] / 'dynamics' / 'best.pt')
    config = {**ckpt['config'], 'action_source': 'labels'}
    out = altered(world[1], tmp_path / 'out', config=config)
    refused(run('play.py', world[0], '--port=0', f'--out_dir={out}'), 3, 'actions', 'expected')


# -----------------------------------------------------------------------------
# somebody else plays


def test_who_watches_sees_what_sample_draws(world, monkeypatch):
    it = serve(world[0], '--watch=True')
    try:
        with Page(it) as page:
            page.say(pause=True, start=0, speed=10)
            first = page.look()[1]
            page.say(pause=False)
            watched = page.until(100)
            page.say(press=1)  # a person takes over, and gives back
            while page.look()[0]['action'] != 1 or 'probability' in page.look()[0]:
                pass
            page.say(hold=None)
            page.say(watch=True)
            while 'probability' not in page.look()[0]:
                pass
            page.say(back=True)  # he is there when the world is rewound
            page.until(0)
            page.say(back=False)
            again = page.until(100)
        seen = [first, *(picture for _, picture in watched)]
        for told, _ in watched:
            assert 0 <= told['action'] < 4 and 0 <= told['probability'] <= 1
        assert (np.stack([p for _, p in again][-100:]) == np.stack(seen[1:])).all()
        assert b'"watch": true' in get(it, '/')[2]
    finally:
        it.process.kill()
        it.process.communicate()
    argv = ['sample.py', str(world[0]), '--actions=policy', '--n_samples=1', '--n_frames=100']
    monkeypatch.setattr(sys, 'argv', argv)
    monkeypatch.setattr(sys, 'excepthook', sys.excepthook)  # which the script sets
    names = runpy.run_path(str(ROOT / 'sample.py'))
    assert (names['imagined'][0, names['context_frames'] - 1:] == np.stack(seen)).all()


def test_nobody_to_watch(server, world, tmp_path):
    with Page(server) as page:
        page.say(start=0, watch=True)
        assert 'probability' not in page.until(2)[-1][0]
    config, out, _ = world
    shutil.copytree(out, tmp_path / 'out', ignore=shutil.ignore_patterns('policy'))
    refused(run('play.py', config, f'--out_dir={tmp_path / "out"}', '--watch=True'), 4,
            'no checkpoint of stage', 'policy.py')
    # of another stage 2 than the world's
    folder = altered(out, tmp_path / 'other')
    path = folder / 'policy' / 'best.pt'
    ckpt = {**checkpoint.load(str(path)), 'parents': {'latent_actions': 'another'}}
    torch.save({**ckpt, 'path': ''}, path)
    refused(run('sample.py', config, f'--out_dir={folder}', '--actions=policy'), 4,
            'another stage 2', 'train policy.py again')
