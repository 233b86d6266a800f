"""play.html in a real browser, Chromium, before both back ends: play.py, and the page alone that
export.py makes."""

import importlib.util
import io
import json
import re
import shutil

import numpy as np
import pytest
import torch
from launch import CHROMIUM, dataset_of, serve, train
from PIL import Image
from test_play import altered

from page import graphs
from training import checkpoint
from world import Dream, load_world

sync_api = pytest.importorskip('playwright.sync_api')
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not CHROMIUM, reason='no chromium')]
NAMES = ['up', 'left', 'down', 'right']


@pytest.fixture(scope='module')
def chromium():
    with sync_api.sync_playwright() as api:
        yield api.chromium


@pytest.fixture(scope='module')
def browser(chromium):
    it = chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox', '--disable-gpu'])
    yield it
    it.close()


@pytest.fixture(scope='module')
def walks(world, tmp_path_factory):
    """A world whose actions have names, none of which is to do nothing, and that tells them
    apart."""
    weights = checkpoint.load(world[1] / 'dynamics' / 'best.pt')['model']
    random = torch.Generator().manual_seed(0)
    for name in ('tokens.weight', 'actions.weight', 'head.weight'):
        weights[name] = torch.randn(weights[name].shape, generator=random)
    folder = tmp_path_factory.mktemp('walks') / 'out'
    return altered(world[1], folder, action_names=NAMES, model=weights, idle=None)


@pytest.fixture(scope='module')
def server(world, walks):
    it = serve(world[0], f'--out_dir={walks}')
    it.url = f'http://127.0.0.1:{it.port}'
    yield it
    it.process.kill()
    assert it.process.communicate()[1] == ''


@pytest.fixture
def page(browser, server):
    """The page of a player who has never been here."""
    context = browser.new_context(viewport=dict(width=1280, height=900))
    it = context.new_page()
    mistakes = []
    it.on('pageerror', lambda error: mistakes.append(str(error)))
    it.goto(server.url)
    begun(it)
    yield it
    context.close()
    assert mistakes == []


def begun(page):
    until(page, 'film.length > 0')


def shows(page):
    """The picture (H,W,3)."""
    width, rgba = page.evaluate(
        '[canvas.width, [...ink.getImageData(0, 0, canvas.width, canvas.height).data]]')
    return np.array(rgba, np.uint8).reshape(-1, width, 4)[..., :3]


def until(page, what):
    """Asks until it is so: the page's policy lets nothing in it evaluate a text."""
    for _ in range(3000):
        if page.evaluate(what):
            return
        page.wait_for_timeout(20)
    raise AssertionError(f'never: {what}; {page.text_content("#line")}')


def tap(page, key, until_frame):
    page.keyboard.down(key)
    until(page, f'frame >= {until_frame}')
    page.keyboard.up(key)


def test_keys_act_and_the_world_waits_without_one(page):
    assert 'waits for a key' in page.text_content('#line')
    first = shows(page)
    tap(page, 'ArrowRight', 3)
    assert 'right' in page.text_content('#line')
    assert (shows(page) != first).any()
    page.wait_for_timeout(300)
    frame = page.evaluate('frame')
    page.wait_for_timeout(500)
    assert page.evaluate('frame') == frame
    assert {step[0] for step in page.evaluate('played')} == {3}


def test_keys_are_known_by_their_place(page):
    """On a Russian, a Greek, a French keyboard, with a number pad, with an input method."""
    pressed = [('ц', 'KeyW', 0), ('ф', 'KeyA', 1), ('ς', 'KeyW', 0), ('é', 'Digit2', 2),
               ('z', 'KeyW', 0), ('ArrowLeft', 'Numpad4', 1), ('à', 'Digit0', 0),
               ('Process', 'KeyS', 2), ('W', 'KeyW', 0), ('1', 'Numpad1', 1)]
    for key, code, action in pressed:
        page.evaluate(f"""for (const kind of ['keydown', 'keyup']) {{
          dispatchEvent(new KeyboardEvent(kind, {{key: {key!r}, code: {code!r}}}))
        }}""")
        until(page, f'played.length && played.at(-1)[0] === {action}')


def test_rewinding_is_exact_and_a_replay_gives_the_same_pixels(page, tmp_path):
    for key, frame in (('ArrowRight', 3), ('ArrowUp', 6), ('ArrowLeft', 9)):
        tap(page, key, frame)
    page.wait_for_timeout(300)
    last, film = page.evaluate('frame'), 'film.map(picture => [...picture.data].join())'
    seen = page.evaluate(film)
    with page.expect_download() as told:
        page.click('summary')
        page.click('#save')
    told.value.save_as(tmp_path / 'replay.json')
    page.keyboard.down('Backspace')
    until(page, 'frame < 3')
    page.keyboard.up('Backspace')
    page.wait_for_timeout(300)
    frame = page.evaluate('frame')
    assert page.evaluate('[...ink.getImageData(0, 0, 16, 16).data].join()') == seen[frame]
    tap(page, 'ArrowDown', frame + 2)  # another way from there
    page.set_input_files('#load', tmp_path / 'replay.json')
    until(page, f'frame === {last} && !last.replay')
    assert page.evaluate(film) == seen
    page.set_input_files('#load', dict(name='x.json', mimeType='', buffer=b'{"played": 1}'))
    until(page, "$('line').textContent.includes('That is no replay')")
    other = dict(json.loads((tmp_path / 'replay.json').read_text()), world='another')
    page.set_input_files('#load', dict(name='x.json', mimeType='',
                                       buffer=json.dumps(other).encode()))
    until(page, "$('line').textContent.includes('of another world')")


def test_the_session_as_films(page):
    tap(page, 'ArrowRight', 4)
    page.wait_for_timeout(300)
    shown, frames = shows(page), page.evaluate('frame') + 1
    page.click('summary')
    with page.expect_download() as told:
        page.click('#gif')
    gif = Image.open(told.value.path())
    assert gif.n_frames == frames and gif.size == (256, 256)
    gif.seek(frames - 1)
    found = np.array(gif.convert('RGB'))[8::16, 8::16]
    assert abs(found.astype(int) - shown).mean() < 12, 'of noise it keeps 256 colours'
    with page.expect_download() as told:
        page.click('#film')
    assert told.value.suggested_filename == 'dream.mp4'


def picture_file(color):
    out = io.BytesIO()
    Image.new('RGB', (300, 200), color).save(out, 'png')
    return dict(name='mine.png', mimeType='image/png', buffer=out.getvalue())


def test_a_picture_of_ones_own_begins_a_game(page):
    page.click('summary')
    page.set_input_files('#picture', picture_file((60, 60, 60)))
    until(page, "$('line').textContent.includes('tokenizer draws this picture')")
    assert page.evaluate('frame') == 0 and 'your picture' in page.text_content('#again')
    first = shows(page)
    tap(page, 'ArrowRight', 2)
    page.keyboard.press('r')
    until(page, 'frame === 0')
    page.wait_for_timeout(300)
    assert (shows(page) == first).all()
    page.set_input_files('#picture', dict(name='x.png', mimeType='image/png', buffer=b'no'))
    until(page, "$('line').textContent.includes('That is no picture')")


def test_sliders_change_what_is_imagined(page):
    page.click('summary')
    for id, value in (('maskgit_steps', 5), ('temperature', 1.5)):
        page.fill(f'#{id}', str(value))
    page.evaluate('document.activeElement.blur()')
    tap(page, 'ArrowRight', 1)
    assert page.evaluate('played[0]') == [3, 5, 1.5]


def test_names_and_keys_are_kept_for_next_time(page):
    page.click('summary')
    page.once('dialog', lambda dialog: dialog.accept('run <b>'))
    page.click('#rename')
    page.click('#actions button:nth-child(4)')
    assert page.text_content('#actions button:nth-child(4)').startswith('run <b>')
    button = page.locator('#actions button:nth-child(3)')
    button.hover()
    page.mouse.down()
    page.keyboard.press('q')
    page.mouse.up()
    page.reload()
    begun(page)
    assert page.text_content('#actions button:nth-child(4)').startswith('run <b>')
    assert 'Q' in page.text_content('#actions button:nth-child(3) small')
    page.keyboard.press('q')
    until(page, 'frame > 0')
    assert page.evaluate('played[0][0]') == 2
    page.keyboard.press('?')
    assert page.is_visible('#helped') and 'run <b>' in page.text_content('#keys')


def test_a_gamepad_plays(page):
    page.evaluate("""() => {
      globalThis.pad = {axes: [0, 0], buttons: Array.from({length: 16}, () => ({pressed: false}))}
      navigator.getGamepads = () => [pad]
      pad.axes = [1, 0.2]
    }""")
    until(page, 'frame >= 3')
    page.evaluate('pad.axes = [0, 0]; pad.buttons[12].pressed = true')
    until(page, 'played.at(-1)[0] === 0')
    page.evaluate('pad.buttons[12].pressed = false; pad.buttons[4].pressed = true')
    until(page, 'frame === 0')
    page.evaluate('pad.buttons[4].pressed = false')


def test_two_tabs_and_back(page, browser, server):
    context = browser.new_context()
    other = context.new_page()
    other.goto(server.url)
    begun(other)
    until(page, "$('line').textContent.includes('Another page plays this world.')")
    page.click('#fresh')
    until(other, "$('line').textContent.includes('Another page plays this world.')")
    until(page, "$('line').textContent.includes('waits for a key')")
    tap(page, 'ArrowUp', 2)
    context.close()


def test_a_server_that_goes_away_and_comes_back(browser, world, walks):
    it = serve(world[0], f'--out_dir={walks}')
    context = browser.new_context()
    page = context.new_page()
    page.goto(f'http://127.0.0.1:{it.port}')
    begun(page)
    it.process.kill()
    it.process.communicate()
    until(page, "$('line').textContent.includes('does play.py still run')")
    again = serve(world[0], f'--out_dir={walks}', port=it.port)
    try:
        until(page, "$('line').textContent.includes('waits for a key')")
        tap(page, 'ArrowUp', 2)
    finally:
        again.process.kill()
        again.process.communicate()
        context.close()


@pytest.mark.parametrize('window', [(800, 360), (667, 375), (360, 800), (1280, 800)])
def test_every_button_can_be_reached(page, window):
    """Beside the picture on a phone held sideways; the whole picture is seen at the same time."""
    page.set_viewport_size(dict(zip(('width', 'height'), window)))
    boxes = page.evaluate("""[...document.querySelectorAll('canvas, section > .row button')].map(
      element => {
        const {left, top, right, bottom} = element.getBoundingClientRect()
        return [left, top, innerWidth - right, innerHeight - bottom, right - left, bottom - top]
      })""")
    assert len(boxes) == 1 + 4 + 4
    for left, top, right, bottom, width, height in boxes:
        assert min(left, top, right, bottom) >= 0, (left, top, right, bottom)
        assert width >= 44 and height >= 40
    assert boxes[0][4] > 300, 'the picture is small'


def test_2000_frames_take_no_more_memory(page, server):
    """Of the page, and of the server: a minute of them is kept."""
    page.evaluate("world.fps = 1; back.send({speed: 4})")
    page.evaluate('back.send({play: Array(1000).fill([3, 1, 0])})')
    used = 'performance.memory.usedJSHeapSize'

    def resident():
        with open(f'/proc/{server.process.pid}/status') as f:
            return int(re.search(r'VmRSS:\s+(\d+)', f.read())[1]) / 1024  # MiB

    until(page, 'frame >= 1000')
    before = page.evaluate(used), resident()
    page.evaluate('back.send({play: Array(1000).fill([3, 1, 0])})')
    until(page, 'frame >= 2000')
    after = page.evaluate(used), resident()
    assert page.evaluate('Object.keys(film).length') <= 61
    assert after[0] - before[0] < 8e6 and after[1] - before[1] < 30


# -----------------------------------------------------------------------------
# the page alone


@pytest.fixture(scope='module')
def alone(world, walks, tmp_path_factory):
    """world.html in an empty folder."""
    if not importlib.util.find_spec('onnxscript'):
        pytest.skip('no onnxscript')
    if not shutil.which('npm'):
        pytest.skip('no npm')
    file = tmp_path_factory.mktemp('alone') / 'world.html'
    said = train('export.py', world[0], file, f'--out_dir={walks}', '--licence=CC <BY>').stdout
    assert f'{file}: ' in said and file.stat().st_size < 25e6
    return file


@pytest.fixture
def lone(browser, alone):
    context = browser.new_context()
    it = context.new_page()
    mistakes = []
    it.on('pageerror', lambda error: mistakes.append(str(error)))
    it.goto(alone.as_uri())
    begun(it)
    yield it
    context.close()
    assert mistakes == []


def test_the_page_alone_gives_token_for_token_what_python_gives(lone, world, walks):
    """With temperature 0 and the same luck of the places: 32 frames from 4 starts."""
    assert lone.evaluate('networks.device') == 'cpu'
    expect_the_same(lone, world, walks, 4, 32)


def test_on_a_gpu_too(chromium, alone, world, walks):
    """One that is made of software: it is slow."""
    browser = chromium.launch(executable_path=CHROMIUM, args=[
        '--no-sandbox', '--enable-unsafe-webgpu', '--enable-features=Vulkan',
        '--use-vulkan=swiftshader', '--use-webgpu-adapter=swiftshader'])
    page = browser.new_page()
    page.goto(alone.as_uri() + '#gpu')
    if not page.evaluate('navigator.gpu?.requestAdapter().then(gpu => Boolean(gpu))'):
        browser.close()
        pytest.skip('this Chromium has no WebGPU')
    begun(page)
    assert page.evaluate('networks.device') == 'gpu'
    page.evaluate('back.send({pause: true})')
    expect_the_same(page, world, walks, 2, 2)
    browser.close()


def expect_the_same(page, world, walks, n_starts, n_frames):
    theirs = load_world(str(walks), dataset_of(world), 'cpu')
    dynamics = theirs[2]
    N, rng = dynamics.config.n_tokens, np.random.default_rng(0)
    facts = page.evaluate('world')
    memory = facts['memory']
    for start in facts['starts'][:n_starts]:
        tokens = torch.tensor(start['tokens']).view(1, memory, N)
        actions = torch.tensor([start['actions']])
        for action in rng.integers(4, size=n_frames).tolist():
            luck = torch.from_numpy(rng.random(N, np.float32))
            actions = torch.cat([actions, torch.tensor([[action]])], 1)[:, -memory:]
            expected = generate_with(luck, dynamics, tokens, actions)
            found = page.evaluate(
                '([t, a, luck]) => generate(networks, world, Int32Array.from(t), '
                'Int32Array.from(a), 4, 0, {noise: 0}, luck).then(frame => [...frame])',
                [tokens.flatten().tolist(), actions[0].tolist(), luck.tolist()])
            assert found == expected.tolist()
            tokens = torch.cat([tokens[:, 1:], expected.view(1, 1, N)], 1)


def generate_with(luck, dynamics, tokens, actions):
    """Dynamics.generate with 4 steps and temperature 0, where the places have this luck."""
    rand, torch.rand = torch.rand, lambda *_, **__: luck[None]
    try:
        with torch.no_grad():
            return dynamics.generate(tokens, actions, 4, 0)[0, -1]
    finally:
        torch.rand = rand


def test_the_page_alone_plays(lone):
    first = shows(lone)
    tap(lone, 'ArrowRight', 4)
    lone.wait_for_timeout(300)
    seen = lone.evaluate('film.map(picture => [...picture.data].join())')
    assert (shows(lone) != first).any() and len(set(seen)) > 1
    text = lone.evaluate('JSON.stringify({world: world.replay, ...origin, played})')
    last = lone.evaluate('frame')
    lone.keyboard.down('Backspace')
    until(lone, 'frame === 0')
    lone.keyboard.up('Backspace')
    assert (shows(lone) == first).all()
    lone.evaluate('replay', text)
    until(lone, f'frame === {last} && !last.replay')
    assert lone.evaluate('film.map(picture => [...picture.data].join())') == seen
    lone.click('summary')
    lone.set_input_files('#picture', picture_file((60, 60, 60)))
    until(lone, "$('line').textContent.includes('tokenizer draws this picture')")
    assert not lone.is_visible('#film') and not lone.is_visible('#beside')


def test_its_first_frame_is_that_of_python(lone, world, walks):
    dream = Dream(load_world(str(walks), dataset_of(world), 'cpu'), 4, 0, 'cpu')
    with torch.no_grad():
        dream.begin(np.array([144]), 0)  # the first held-out frame
    assert abs(shows(lone).astype(int) - dream.frames[0]).max() <= 1


def test_licences_are_in_the_page(alone):
    text = alone.read_text()
    assert 'Licence: CC <BY>' in text and 'Copyright (c) Microsoft Corporation\n' in text
    assert 'Permission is hereby granted' in text and 'OUT OF OR IN CONNECTION' in text


def test_what_a_page_needs_is_said(world, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(graphs.PageError, match='onnxscript.*\n.*requirements-page.txt'):
        graphs.graphs(None, None)
    monkeypatch.setattr(graphs, 'user_cache', lambda: None, raising=False)
    monkeypatch.setattr(graphs.files, 'user_cache', lambda: None)
    monkeypatch.setattr(graphs.shutil, 'which', lambda name: None)
    with pytest.raises(graphs.PageError, match='found no npm'):
        graphs.runtime()
    monkeypatch.setattr(graphs, 'fetch', lambda: b'another package')
    with pytest.raises(graphs.PageError, match='expected ' + graphs.SHA256):
        graphs.runtime()
