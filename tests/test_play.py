"""play.py as a browser and as an attacker meet it: a real process on a free port, over HTTP."""
import base64
import hashlib
import html
import http.client
import io
import json
import re
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from launch import ROOT, recording, refused, run, start
from PIL import Image

import data
from pictures import to_uint8
from training import checkpoint
from world import load_world

pytestmark = pytest.mark.slow
row = pytest.mark.row
NAMES = ['', 'up', 'noop', '</script><script>alert(1)</script>']
TOKEN = 'correct-horse_battery'


def serve(*args):
    """A running play.py, and where it says that it is."""
    process = start('play.py', *args, '--port=0')
    said = next((line for line in process.stdout if line.startswith('play at ')), None)
    assert said, process.stderr.read()
    port = int(re.search(r'127\.0\.0\.1:(\d+)', said)[1])
    return SimpleNamespace(process=process, said=said, port=port)


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


def post_head(server, length):
    """The first lines of a POST /step that the page might send."""
    here = f'127.0.0.1:{server.port}'
    return (f'POST /step HTTP/1.1\r\nHost: {here}\r\nOrigin: http://{here}\r\n'
            f'Content-Length: {length}\r\n').encode()


def ask(server, method, path, body=b'', sent=None, **headers):
    """(status, headers, body) of the answer to what the page would send.

    headers: others than its own, None to leave one out, a tuple for one that is there twice.
    body: bytes, or a message. sent: the bytes that really follow, where that is not the body.
    """
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    here = f'127.0.0.1:{server.port}'
    sent_headers = {'Host': here}
    if method == 'POST':
        sent_headers.update({'Origin': f'http://{here}', 'Content-Length': str(len(body))})
    sent_headers.update({name.replace('_', '-'): value for name, value in headers.items()})
    connection = http.client.HTTPConnection('127.0.0.1', server.port, timeout=60)
    try:
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, values in sent_headers.items():
            if values is None:
                continue
            for value in values if isinstance(values, tuple) else (values,):
                connection.putheader(name, value.replace('PORT', str(server.port)))
        connection.endheaders()
        try:
            connection.send(body if sent is None else sent)
        except ConnectionError:  # it does not listen to the end: it has answered
            pass
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def picture(answer):
    assert answer[0] == 200 and answer[1]['Content-Type'].startswith('image/png'), answer
    return np.array(Image.open(io.BytesIO(answer[2])))


def play(server, number, actions, **more):
    """The pictures of a start and of what follows."""
    seen = [picture(ask(server, 'POST', '/start', {'start': number}, **more))]
    for i, action in enumerate(actions):
        message = {'action': action, 'frame': i}
        seen.append(picture(ask(server, 'POST', '/step', message, **more)))
    return np.stack(seen)


def refuses(server, status, *args, **more):
    """It says no in words of its own, and the world stands where it stood -> these words."""
    play(server, 0, [1])
    code, headers, body = ask(server, *args, **more)
    assert code == status, (code, body)
    assert len(body) < (170 if code == 403 else 60) and b'Traceback' not in body
    assert b'evil' not in body and b'\n' not in body
    assert headers['Content-Type'].startswith('text/plain')
    assert ask(server, 'POST', '/step', {'action': 1, 'frame': 1})[0] == 200
    return body.decode()


STEP = ('POST', '/step', {'action': 1, 'frame': 1})

# -----------------------------------------------------------------------------
# played


def test_the_page(server):
    status, headers, body = ask(server, 'GET', '/')
    page = body.decode()
    assert status == 200 and headers['Content-Type'].startswith('text/html')
    facts = json.loads(re.search(r'const world = (.*)', page)[1])
    assert facts == dict(names=NAMES, memory=2, watch=False, height=16, width=16, fps=15)
    assert not re.search(r'https?:|src=|href=|@import|url\(', page)  # it is all there is
    assert server.said == f'play at http://127.0.0.1:{server.port} (Ctrl-C ends)\n'


def test_what_is_played_is_what_the_dynamics_generates(server, world, named):
    """Frame by frame as in one go, from a held-out window, with the actions between its frames that
    stage 2 infers."""
    actions = [1, 0, 3, 3, 2, 1]
    played = play(server, 5, actions)
    assert played.shape == (7, 16, 16, 3) and played.dtype == np.uint8
    dataset = re.search(r"'(\S+\.h5)'", world[0].read_text())[1]
    tokenizer, action_model, dynamics, _, recording = load_world(named, dataset, 'cpu')
    picks = data.draw(data.windows(recording, 'val', 2), 1, 0, 5)
    clip = data.clips(recording.frames, picks, 2, 1, 'cpu')
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        taken = torch.cat([action_model.encode(clip), torch.tensor([actions])], 1)
        tokens = dynamics.generate(tokenizer.encode(clip), taken, 2, 0.5, generator)
        expected = to_uint8(tokenizer.decode(tokens))[0, 1:]
    assert abs(played.astype(int) - expected).max() <= 1


def test_the_same_start_and_actions_are_the_same_dream(server, guarded):
    a, b = play(server, 3, [0, 1, 2]), play(server, 3, [0, 1, 2])
    c = play(guarded, 3, [0, 1, 2], X_Token=TOKEN)
    assert (a == b).all() and (a == c).all()


def test_a_new_start_is_another(server):
    assert len({play(server, n, []).tobytes() for n in range(4)}) > 1


def test_each_action_is_accepted_from_the_same_start(server):
    played = [play(server, 2, [action] * 3) for action in range(4)]
    assert all((p[0] == played[0][0]).all() for p in played)
    assert len({p.tobytes() for p in played}) > 1


def test_a_second_page_takes_the_world_over(server):
    play(server, 0, [1, 1])
    play(server, 1, [1])
    # what the first page would send next
    status, _, body = ask(server, 'POST', '/step', {'action': 1, 'frame': 2})
    assert status == 409 and b'Another page' in body
    assert ask(server, *STEP)[0] == 200


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
    own = {'127.0.0.1:PORT', 'localhost:9000'}
    known = headers.get('Host', '127.0.0.1:PORT') in own
    words = 'must pass on the Host' if known else '--allow_hosts=NAME'
    assert words in refuses(server, 403, *STEP, **headers)
    refuses(server, 403, 'POST', '/start', {'start': 7}, **headers)
    if not known:
        assert words in refuses(server, 403, 'GET', '/', Host=headers['Host'])


@row(40)
@pytest.mark.parametrize('host', [
    'localhost:PORT', '127.0.0.1:9000', 'localhost:1', '[::1]:8888', '127.0.0.1', 'localhost',
    '[::1]', 'LOCALHOST:PORT'])
def test_every_port_of_this_machine_is_here(server, host):
    """`ssh -L 9000:127.0.0.1:8000`, the port of a container. Another page of such a port is still
    another Origin."""
    play(server, 0, [1], Host=host, Origin=f'http://{host}')
    assert ask(server, 'GET', '/', Host=host)[0] == 200
    refuses(server, 403, *STEP, Host=host, Origin='http://localhost:7777')
    refuses(server, 403, *STEP, Host=host)


@row(40)
def test_other_names_by_a_key(world, named):
    it = serve(world[0], f'--out_dir={named}', f'--token={TOKEN}', '--host=127.0.0.1',
               '--allow_hosts=Play.example.org, 10.0.0.5,[fe80::1]')
    try:
        for host in ('play.example.org', 'PLAY.example.org:8443', '10.0.0.5:80', '[fe80::1]:1'):
            assert ask(it, 'GET', f'/?token={TOKEN}', Host=host)[0] == 200
            for scheme in ('http', 'https'):  # the proxy may speak https
                play(it, 0, [1], X_Token=TOKEN, Host=host, Origin=f'{scheme}://{host}')
        # one that asks localhost, and leaves the Origin as it is
        play(it, 0, [1], X_Token=TOKEN, Host='localhost:8000', Origin='https://play.example.org')
        assert 'no token' in refuses_alone(it, Host='play.example.org')
        for host, origin in (('example.org', 'https://example.org'),
                             ('play.example.org', 'https://evil.example'),
                             ('play.example.org', 'https://10.0.0.5'),
                             ('127.0.0.1:PORT', 'https://127.0.0.1:PORT'),
                             ('127.0.0.1:PORT', 'https://example.org')):
            assert ask(it, *STEP, X_Token=TOKEN, Host=host, Origin=origin)[0] == 403
    finally:
        it.process.kill()
        assert it.process.communicate()[1] == ''


@row(40)
def test_a_port_of_a_container(world, named):
    """There the server listens at all addresses, and what is typed elsewhere is another port."""
    it = serve(world[0], f'--out_dir={named}', f'--token={TOKEN}', '--host=0.0.0.0',
               '--allow_hosts=127.0.0.1')
    try:
        play(it, 0, [1], X_Token=TOKEN, Host='localhost:9000', Origin='http://localhost:9000')
        assert 'no token' in refuses_alone(it, Host='localhost:9000')
        assert '--allow_hosts' in refuses_alone(it, Host='0.0.0.0:PORT')
    finally:
        it.process.kill()
        it.process.communicate()


def refuses_alone(server, **headers):
    code, _, body = ask(server, 'GET', '/', **headers)
    assert code == 403
    return body.decode()


@row(40)
@pytest.mark.parametrize('token, in_query', [
    (None, 'x'), ('', ''), ('wrong', 'wrong'), (TOKEN[:-1], TOKEN[:-1]), (TOKEN + 'x', TOKEN + 'x'),
    (TOKEN.upper(), TOKEN.upper()), ((TOKEN, TOKEN), TOKEN * 2), ('é', 'x')])
def test_a_wrong_token(guarded, token, in_query):
    status, headers, body = ask(guarded, *STEP, X_Token=token)
    assert (status, body) == (403, b'Forbidden: no token, or a wrong one. Open the whole address '
                              b'that the server printed.')
    assert ask(guarded, 'POST', f'/step?token={TOKEN}', STEP[2], X_Token=token)[0] == 403
    for path in ('/', '/elsewhere'):  # nor does it say what there is
        assert ask(guarded, 'GET', f'{path}?token={in_query}')[0] == 403
        assert ask(guarded, 'GET', path, X_Token=TOKEN)[0] == 403


@row(40)
def test_the_token_opens_and_is_not_in_the_page(guarded):
    assert f'/?token={TOKEN} ' in guarded.said
    status, _, page = ask(guarded, 'GET', f'/?token={TOKEN}')
    assert status == 200 and TOKEN.encode() not in page
    play(guarded, 0, [1], X_Token=TOKEN)
    assert ask(guarded, *STEP, X_Token=TOKEN, Origin='http://evil.example')[0] == 403


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
# what may be asked


@row(40)
@pytest.mark.parametrize('message', [
    {'action': 999, 'frame': 1}, {'action': 4, 'frame': 1}, {'action': -1, 'frame': 1},
    {'action': True, 'frame': 1}, {'action': 1.0, 'frame': 1}, {'action': 1.5, 'frame': 1},
    {'action': '1', 'frame': 1}, {'action': None, 'frame': 1}, {'action': [1], 'frame': 1},
    {'action': 1}, {'frame': 1}, {}, {'action': 1, 'frame': True}, {'action': 1, 'frame': -1},
    {'action': 1, 'frame': 1, 'path': 'x'}, [1, 1], 1, None, 'step', b'', b'{', b'action=1&frame=1',
    b'{"action": NaN, "frame": 1}', b'\xff\xfe', b'[' * 1024, b'{"a":' * 200,
    b'{"action": 1' + b'0' * 990 + b', "frame": 1}'], ids=lambda message: repr(message)[:40])
def test_a_message_that_is_none(server, message):
    refuses(server, 400, 'POST', '/step', message)


@row(40)
@pytest.mark.parametrize('message', [
    {'start': -1}, {'start': 10 ** 6}, {'start': True}, {'start': 0.5},
    {'start': 0, 'out_dir': 'x'}, {}])
def test_a_start_that_is_none(server, message):
    refuses(server, 400, 'POST', '/start', message)


@row(40)
@pytest.mark.parametrize('status, length', [
    (411, None), (400, ''), (400, 'x'), (400, '-1'), (400, '+26'), (400, '0x1a'), (400, '2_6'),
    (400, ('26', '26')), (413, '1025'), (413, '1' + '0' * 300)])
def test_a_length_that_is_none(server, status, length):
    refuses(server, status, *STEP, Content_Length=length)


@row(40)
def test_a_megabyte_is_not_even_read(server):
    refuses(server, 413, 'POST', '/step', b'x' * 2 ** 20, sent=b'')  # answered: nothing follows
    refuses(server, 413, 'POST', '/step', b'x' * 2 ** 20)
    refuses(server, 400, 'POST', '/step', b'x' * 1024)


@row(40)
def test_there_are_no_other_paths_and_methods(server):
    for path in ('/play.py', '/../play.py', '/%2e%2e/play.py', '/step', '/start', '/index.html',
                 '/out/tiny', 'http://evil.example/'):
        refuses(server, 404, 'GET', path)
    for path in ('/', '/step/', '/step?x', '/reload', '/upload', '/../step'):
        refuses(server, 404, 'POST', path, STEP[2])
    for method in ('PUT', 'DELETE', 'OPTIONS', 'PATCH', 'TRACE', 'CONNECT', 'step'):
        refuses(server, 501, method, '/step')


@row(40)
@pytest.mark.parametrize('request_', [
    b'GET /marker HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\n\r\n',
    b'marker / HTTP/1.1\r\n\r\n',
    b'GET / marker HTTP/1.1\r\n\r\n',
    b'GET / HTTP/marker\r\n\r\n',
    b'marker\r\n\r\n',
    b'GET / HTTP/1.1\r\nHost: marker\r\n\r\n',
    b'GET /' + b'marker' * 20_000 + b' HTTP/1.1\r\n\r\n',
    b'GET / HTTP/1.1\r\nmarker: ' + b'x' * 70_000 + b'\r\n\r\n',
    b'GET / HTTP/1.1\r\n' + b'marker: x\r\n' * 200 + b'\r\n',
    b'POST /step HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\nOrigin: http://127.0.0.1:PORT\r\n'
    b'Content-Length: 6\r\n\r\nmarker',
    b'GET / HTTP/9.9\r\nHost: 127.0.0.1:PORT\r\n\r\n',
    b'\x16\x03\x01marker\x00\r\n\r\n',
], ids=lambda request_: repr(request_)[2:30])
def test_an_answer_repeats_nothing_and_shows_nothing(server, request_):
    with connect(server) as s:
        try:
            s.sendall(request_.replace(b'PORT', str(server.port).encode()))
        except ConnectionError:
            pass
        answer = s.makefile('rb').read()
    assert answer and b' 200 ' not in answer.splitlines()[0] and len(answer) < 1000
    answer = answer.lower().replace(b"content-security-policy: default-src 'none'", b'')
    for word in (b'marker', b'Traceback', b'play.py', b'Python', b'Server:', b'BaseHTTP', b'<'):
        assert word.lower() not in answer


@row(40)
def test_the_browser_is_told_to_trust_nothing_but_the_page(server):
    _, headers, body = ask(server, 'GET', '/')
    policy = headers['Content-Security-Policy']
    policy = dict(part.strip().split(' ', 1) for part in policy.split(';'))
    for tag in ('script', 'style'):
        # as a browser would end it: by the first </script>
        texts = re.findall(f'<{tag}>(.*?)</{tag}>', body.decode(), re.S)
        digest = base64.b64encode(hashlib.sha256(texts[0].encode()).digest()).decode()
        assert len(texts) == 1 and policy.pop(f'{tag}-src') == f"'sha256-{digest}'"
    assert policy == {'default-src': "'none'", 'connect-src': "'self'", 'base-uri': "'none'",
                      'form-action': "'none'", 'frame-ancestors': "'none'"}
    for headers in (headers, ask(server, *STEP)[1], ask(server, 'GET', '/none')[1]):
        assert headers['X-Content-Type-Options'] == 'nosniff'
        assert headers['Cache-Control'] == 'no-store'
        assert headers['Referrer-Policy'] == 'no-referrer' and headers['Server'] is None
        assert not [name for name in headers if name.startswith('Access-Control')]


# -----------------------------------------------------------------------------
# how much may be asked


@row(40)
def test_a_slow_client_holds_nobody_up_and_is_cut_off(server):
    """Some say nothing, some half a request; one sends a byte now and then, which no timeout of one
    read would ever end."""
    slow = [connect(server) for _ in range(9)]
    for s in slow[3:]:
        s.sendall(post_head(server, 26))
    for s in slow[6:]:
        s.sendall(b'\r\n{"action"')
    play(server, 0, [1, 2])
    assert not select.select(slow, [], [], 0)[0]  # nobody had to be cut off before that
    dripping, cut, deadline = slow[3], False, time.monotonic() + 30  # its header goes on and on
    dripping.settimeout(0.3)
    while not cut and time.monotonic() < deadline:
        try:
            dripping.sendall(b'x')
            cut = dripping.recv(1) == b''
        except TimeoutError:
            pass
        except ConnectionError:
            cut = True
    assert cut and not any(s.recv(1) for s in slow[:3])
    for s in slow:
        s.close()
    play(server, 0, [1])


@row(40)
def test_connections_are_bounded(server):
    many = [connect(server) for _ in range(80)]
    for s, answered in ((many[-1], False), (many[0], True)):
        try:
            s.sendall(f'GET / HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n\r\n'.encode())
            assert (s.recv(1) != b'') == answered
        except ConnectionError:
            assert not answered
    for s in many:
        s.close()
    for _ in range(1000):  # until their threads have noticed
        try:
            play(server, 0, [1])
            return
        except (ConnectionError, http.client.BadStatusLine):
            time.sleep(0.01)
    raise AssertionError('it never recovered')


@row(40)
def test_steps_a_second_are_bounded(server):
    began = time.monotonic()
    play(server, 0, [1] * 30)
    assert time.monotonic() - began > 29 / 60


@row(40)
def test_two_at_a_time_take_turns(server):
    """Of requests for the same step that come together one is answered and the others are too
    late."""
    body = b'{"action": 1, "frame": 0}'
    for _ in range(5):
        play(server, 0, [])
        several = [connect(server) for _ in range(8)]
        for part in (post_head(server, len(body)) + b'\r\n' + body[:-1], body[-1:]):
            for s in several:
                s.sendall(part)
        statuses = sorted(s.makefile('rb').readline().split()[1] for s in several)
        assert statuses == [b'200'] + [b'409'] * 7
        for s in several:
            s.close()


# -----------------------------------------------------------------------------
# the page in a browser: other keyboards, a phone held sideways

CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser')
BEFORE = """<script>
const posted = []
fetch = async (path, request) => {
  posted.push(JSON.parse(request.body))
  return {ok: true, blob: async () => null}
}
createImageBitmap = async () => document.createElement('canvas')
const pause = ms => new Promise(done => setTimeout(done, ms))
</script>"""


def in_browser(tmp_path, code, names, width=800, height=360):
    """What `code` returns in the page, in a frame of that size. The server is a stub."""
    facts = dict(names=names, memory=2, height=64, width=64, fps=15)
    page = (ROOT / 'play.html').read_text().replace('WORLD', json.dumps(facts))
    after = f"""<script>(async () => {{
      await pause(300)
      top.document.title = 'result' + JSON.stringify(await (async () => {{ {code} }})())
    }})()</script>"""
    path = tmp_path / 'page.html'
    page = html.escape(page.replace('<style>', BEFORE + '<style>') + after)
    size = f'width: {width}px; height: {height}px'
    path.write_text(f'<iframe style="{size}" srcdoc="{page}"></iframe>')
    done = subprocess.run(
        [CHROMIUM, '--headless', '--no-sandbox', '--disable-gpu', '--hide-scrollbars',
         f'--user-data-dir={tmp_path}/user', '--window-size=1400,1000',
         '--virtual-time-budget=20000', '--dump-dom', path.as_uri()],
        capture_output=True, text=True, timeout=120)
    result = re.search('<title>result(.*)</title>', done.stdout)
    assert result, done.stdout[:300] + done.stderr[-300:]
    return json.loads(html.unescape(result[1]))


@pytest.mark.skipif(not CHROMIUM, reason='no chromium')
def test_keys_are_known_by_their_place(tmp_path):
    """On a Russian, a Greek, a French keyboard, with a number pad, with an input method."""
    names = ['up', 'left', 'down', 'right', 'sword']
    pressed = {
        'russian': [('ц', 'KeyW', 0), ('ф', 'KeyA', 1), ('ы', 'KeyS', 2), ('в', 'KeyD', 3)],
        'greek': [('ς', 'KeyW', 0), ('α', 'KeyA', 1), ('σ', 'KeyS', 2), ('δ', 'KeyD', 3)],
        'french': [('z', 'KeyW', 0), ('q', 'KeyA', 1), ('à', 'Digit0', 0), ('é', 'Digit2', 2)],
        'english': [('w', 'KeyW', 0), ('W', 'KeyW', 0), (' ', 'Space', 4), ('3', 'Digit3', 3)],
        'arrows': [('ArrowUp', 'ArrowUp', 0), ('ArrowLeft', 'Numpad4', 1), ('1', 'Numpad1', 1)],
        'input method': [('Process', 'KeyS', 2)]}
    keys = [key for keys in pressed.values() for key in keys]
    code = f"""
    for (const [key, code] of {json.dumps(keys)}) {{
      dispatchEvent(new KeyboardEvent('keydown', {{key, code}}))
      dispatchEvent(new KeyboardEvent('keyup', {{key, code}}))
      await pause(150)
    }}
    return posted.filter(message => 'action' in message).map(message => message.action)"""
    assert in_browser(tmp_path, code, names) == [action for _, _, action in keys]


@pytest.mark.skipif(not CHROMIUM, reason='no chromium')
def test_a_key_is_put_elsewhere_by_its_place_and_called_what_is_printed_on_it(tmp_path):
    code = """
    const button = document.querySelector('#actions button')
    button.setPointerCapture = () => {}
    button.onpointerdown({preventDefault() {}, pointerId: 1})
    dispatchEvent(new KeyboardEvent('keydown', {key: 'й', code: 'KeyQ'}))
    button.onlostpointercapture({pointerId: 1})
    dispatchEvent(new KeyboardEvent('keyup', {key: 'q', code: 'KeyQ'}))
    await pause(200)
    posted.length = 0
    dispatchEvent(new KeyboardEvent('keydown', {key: 'q', code: 'KeyQ'}))
    dispatchEvent(new KeyboardEvent('keyup', {key: 'Q', code: 'KeyQ'}))
    await pause(200)
    const label = button.querySelector('small').textContent
    dispatchEvent(new KeyboardEvent('keydown', {key: 'т', code: 'KeyN'}))
    await pause(200)
    return [label, posted]"""
    label, posted = in_browser(tmp_path, code, ['fire', 'run'])
    assert set(label.split()) in ({'SPACE', '0', 'Й'}, {'space', '0', 'Й'}, {'space', '0', 'Q'})
    assert [message.get('action', message.get('start')) for message in posted] == [0, 1]


@pytest.mark.skipif(not CHROMIUM, reason='no chromium')
@pytest.mark.parametrize('window', [(800, 360), (667, 375), (360, 800), (1280, 800)])
def test_every_button_can_be_reached(tmp_path, window):
    """Beside the picture on a phone held sideways; the whole picture is seen at the same time."""
    code = """
    const boxes = [...document.querySelectorAll('canvas, button')].map(element => {
      const {left, top, right, bottom} = element.getBoundingClientRect()
      return [left, top, innerWidth - right, innerHeight - bottom, right - left, bottom - top]
    })
    return boxes"""
    names = ['noop', 'up', 'down', 'left', 'right', 'sword', '', '']
    boxes = in_browser(tmp_path, code, names, *window)
    assert len(boxes) == 11
    for left, top, right, bottom, width, height in boxes:
        assert min(left, top, right, bottom) >= 0, (left, top, right, bottom)
        assert width >= 44 and height >= 40
    assert boxes[0][4] > 300, 'the picture is small'


# -----------------------------------------------------------------------------
# how it ends


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it(world, number):
    it = serve(world[0])
    play(it, 0, [0])  # silently
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
        seen = [picture(ask(it, 'POST', '/start', {'start': 0}))]
        for i in range(200):
            answer = ask(it, 'POST', '/watch', {'frame': i})
            seen.append(picture(answer))
            assert 0 <= int(answer[1]['Action']) < 4 and 0 <= float(answer[1]['Probability']) <= 1
        assert ask(it, 'POST', '/watch', {'frame': 7})[0] == 409
        assert ask(it, 'POST', '/watch', {'frame': 200, 'action': 1})[0] == 400
        # a person takes over, and gives back
        picture(ask(it, 'POST', '/step', {'action': 1, 'frame': 200}))
        picture(ask(it, 'POST', '/watch', {'frame': 201}))
        assert b'"watch": true' in ask(it, 'GET', '/')[2]
    finally:
        it.process.kill()
        it.process.communicate()
    argv = ['sample.py', str(world[0]), '--actions=policy', '--n_samples=1', '--n_frames=200']
    monkeypatch.setattr(sys, 'argv', argv)
    monkeypatch.setattr(sys, 'excepthook', sys.excepthook)  # which the script sets
    names = runpy.run_path(str(ROOT / 'sample.py'))
    assert (names['imagined'][0, names['context_frames'] - 1:] == np.stack(seen)).all()


def test_nobody_to_watch(server, world, tmp_path):
    assert ask(server, 'POST', '/watch', {'frame': 0})[0] == 404
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
