"""
How long it takes from a key to its picture, in a real browser before a running play.py.

    python tests/latency.py config/tiny.py                # 4 MaskGIT steps, 200 keys, 2 minutes

Keys are pressed at random moments, other ones each time, and let go; between them the world goes on
by itself where it can. Timed is, in the page, from the event of the key to when its picture is on
the canvas, and to the animation frame after that. Nothing else should be running. Needs Chromium.
"""
import sys

import numpy as np
from launch import CHROMIUM, serve
from playwright.sync_api import sync_playwright

PRESS = """async n => {
  const wait = ms => new Promise(done => setTimeout(done, ms))
  const placeOfAction = new Map([...keys].map(([place, action]) => [action, place]))
  const actions = [...placeOfAction.keys()], shown = []
  let wanted = null, pressedAt = 0, before = null
  const showAsEver = show
  window.show = (told, picture) => {
    showAsEver(told, picture)
    if (told.action !== wanted) return
    const drawn = performance.now() - pressedAt
    wanted = null
    requestAnimationFrame(() => shown.push([drawn, performance.now() - pressedAt]))
  }
  for (let i = 0; i < n; i++) {
    const others = actions.filter(action => action !== before)
    before = wanted = others[Math.floor(Math.random() * others.length)]
    const place = placeOfAction.get(wanted)
    const key = {code: place, key: place.startsWith('Arrow') ? place : 'x'}
    pressedAt = performance.now()
    window.dispatchEvent(new KeyboardEvent('keydown', key))
    await wait(150 + 100 * Math.random())
    window.dispatchEvent(new KeyboardEvent('keyup', key))
    await wait(200 + 400 * Math.random())
  }
  return shown
}"""
# what the server can do at its best: a key is held, four times as fast as the recording
HURRY = """() => {
  $('speed').value = 4
  sendSettings()
  press('held', 1)
}"""

if not CHROMIUM:
    sys.exit('tests/latency.py: there is no Chromium here: apt-get install chromium')
served = serve(*sys.argv[1:], '--maskgit_steps=4')
try:
    with sync_playwright() as api:
        browser = api.chromium.launch(executable_path=CHROMIUM,
                                      args=['--no-sandbox', '--disable-gpu'])
        page = browser.new_page()
        page.goto(f'http://127.0.0.1:{served.port}')
        while not page.evaluate('film.length'):
            page.wait_for_timeout(200)
        page.wait_for_timeout(2000)
        times = np.array(page.evaluate(PRESS, 200))
        for what, ms in zip(('on the canvas', 'at the next animation frame'), times.T):
            print(f'{len(ms)} keys, {what}: median {np.median(ms):.0f} ms, 95th percentile '
                  f'{np.percentile(ms, 95):.0f} ms, longest {ms.max():.0f} ms')
        page.evaluate(HURRY)
        page.wait_for_timeout(8000)
        print('a key held, speed 4:', page.inner_text('#line'))
        browser.close()
finally:
    served.process.kill()
    served.process.communicate()
