'use strict'
// The world in the page itself: what play.py does behind a WebSocket, with the networks as ONNX.
// The names are those of play.py and of model.py's Dynamics.generate.

async function unpacked(name) {
  const element = document.getElementById(`part-${name}`)
  const letters = atob(element.textContent)
  element.remove()  // the text takes twice the memory of what is in it
  const bytes = new Uint8Array(letters.length)
  for (let i = 0; i < letters.length; i++) bytes[i] = letters.charCodeAt(i)
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'))
  return new Uint8Array(await new Response(stream).arrayBuffer())
}

// The networks: past, guess, draw, read. Each takes typed arrays and returns one. On a GPU where
// the browser has WebGPU and can wait for it inside of WebAssembly; #cpu or #gpu behind the
// address of the page says which
async function loadNetworks(world) {
  const graphs = {}
  for (const name of ['past', 'guess', 'draw', 'read']) graphs[name] = await unpacked(name)
  if (world.n_digits > 1) world.pairs = new Float32Array((await unpacked('pairs')).buffer)
  const asked = location.hash.slice(1)
  if (asked !== 'cpu' && 'Suspending' in WebAssembly) {
    const gpu = await navigator.gpu?.requestAdapter().catch(() => null)
    if (gpu && (asked === 'gpu' || !gpu.info.isFallbackAdapter)) {
      try {
        return await networksOn('gpu', 'webgpu', graphs, world)
      } catch (error) {
        console.warn(`the CPU imagines, for the GPU does not: ${error.message}`)
      }
    }
  }
  return networksOn('cpu', 'wasm', graphs, world)
}

async function networksOn(device, provider, graphs, world) {
  const module = await unpacked(`${device}-module`)
  const ort = await import(URL.createObjectURL(new Blob([module], {type: 'text/javascript'})))
  ort.env.wasm.wasmBinary = await unpacked(`${device}-wasm`)
  ort.env.wasm.numThreads = 1
  ort.env.logLevel = 'error'
  const {memory, n_tokens: N, height, width, n_embd: D, temporal} = world
  const shapes = {past: [[1, memory, N], [1, memory]], guess: [[1, N, D], [1, N]],
    draw: [[1, temporal ? memory : 1, N]], read: [[height, width, 3]]}
  const networks = {device}
  for (const [name, graph] of Object.entries(graphs)) {
    const session = await ort.InferenceSession.create(graph,
      {executionProviders: [provider], graphOptimizationLevel: 'all'})
    networks[name] = async (...arrays) => {
      const feeds = {}
      session.inputNames.forEach((input, i) => {
        const type = arrays[i] instanceof Float32Array ? 'float32' : 'int32'
        feeds[input] = new ort.Tensor(type, arrays[i], shapes[name][i])
      })
      const {y} = await session.run(feeds)
      return y.data
    }
  }
  return networks
}

// A generator whose state is one number (splitmix32), so that to rewind is exact
function draw(state) {
  state.noise = (state.noise + 0x9e3779b9) | 0
  let t = state.noise ^ (state.noise >>> 16)
  t = Math.imul(t, 0x21f0aaad)
  t ^= t >>> 15
  t = Math.imul(t, 0x735a2d97)
  return ((t ^ (t >>> 15)) >>> 0) / 4294967296
}

// logits of one digit (base) of a place's token; the first digit is told to the second
function logitsOf(logits, place, digit, first, {base, n_digits, pairs}) {
  const start = (place * n_digits + digit) * base
  const some = logits.subarray(start, start + base)
  return digit ? some.map((logit, i) => logit + pairs[first * base + i]) : some
}

// logits -> a digit: the most likely one, or where a random number falls in the summed
// probabilities
function sample(logits, temperature, state) {
  let best = 0
  for (let i = 1; i < logits.length; i++) if (logits[i] > logits[best]) best = i
  if (!temperature) return best
  const below = new Float64Array(logits.length)
  let sum = 0
  for (let i = 0; i < logits.length; i++) {
    below[i] = sum += Math.exp((logits[i] - logits[best]) / temperature)
  }
  const u = draw(state) * sum
  return Math.min(logits.length - 1, below.findIndex(v => v > u))
}

// 1 - the probability that all digits of a token are the likeliest ones
function wrong(logits, place, world) {
  let right = 1, likeliest = null
  for (let digit = 0; digit < world.n_digits; digit++) {
    const some = logitsOf(logits, place, digit, likeliest, world)
    likeliest = sample(some, 0)
    right /= some.reduce((sum, logit) => sum + Math.exp(logit - some[likeliest]), 0)
  }
  return 1 - right
}

// Of the hidden places those that are drawn next, so that nHidden stay: model.py's to_draw
function toDraw(hidden, logits, nHidden, luck, world) {
  const {doubt} = world
  const found = hidden.map(place => [wrong(logits, place, world), place])
  found.sort((a, b) => a[0] - b[0])
  let before = 0
  const isSure = found.map(([p]) => (before += p) - p <= doubt)
  const sure = found.filter((_, i) => isSure[i]).map(([, place]) => place)
  const others = hidden.filter(place => !sure.includes(place)).sort((a, b) => luck[a] - luck[b])
  return [...sure, ...others].slice(0, Math.max(sure.length, hidden.length - nHidden))
}

// The next frame's tokens. tokens: memory * N of the past; actions: as many as the past has frames,
// the last of which leads to the new one. luck: a number for each place, which toDraw goes by
async function generate(networks, world, tokens, actions, steps, temperature, state, luck) {
  const {n_tokens: N, vocab_size, base, n_digits} = world
  const past = await networks.past(tokens, actions)
  const frame = new Int32Array(N).fill(vocab_size)  // all masked
  luck ??= Array.from({length: N}, () => draw(state))
  let hidden = Array.from({length: N}, (_, i) => i)
  for (let step = 0; step < steps && hidden.length; step++) {
    const nHidden = Math.floor(Math.cos(Math.PI / 2 * (step + 1) / steps) * N + 1e-6)
    const logits = await networks.guess(past, frame)
    for (const place of toDraw(hidden, logits, nHidden, luck, world)) {
      let token = 0, drawn = null
      for (let digit = 0; digit < n_digits; digit++) {
        drawn = sample(logitsOf(logits, place, digit, drawn, world), temperature, state)
        token += drawn * base ** digit
      }
      frame[place] = Math.min(token, vocab_size - 1)
    }
    hidden = hidden.filter(place => frame[place] === vocab_size)
  }
  return frame
}

function localWorld(world, show) {
  const {n_tokens: N, memory, height, width} = world
  const now = {tokens: null, actions: null, noise: 0, frame: 0, pixels: null}
  const longest = Math.round(60 * world.fps)
  let past = [], networks = null

  async function pictureOf(tokens) {
    const rgb = await networks.draw(world.temporal ? tokens : tokens.slice(-N))
    const picture = new ImageData(width, height)
    for (let i = 0; i < height * width; i++) {
      for (let c = 0; c < 3; c++) picture.data[4 * i + c] = rgb[3 * i + c]
      picture.data[4 * i + 3] = 255
    }
    return picture
  }

  async function begin(tokens, actions, seed, more = {}) {
    past = []
    Object.assign(now, {tokens, actions, noise: seed, frame: 0, pixels: await pictureOf(tokens)})
    return shown(more)
  }

  function beginAt(start, seed) {
    const {tokens, actions} = world.starts[start % world.starts.length]
    return begin(Int32Array.from(tokens), actions, (seed + start) | 0)
  }

  async function beginWith(bytes) {
    const rgb = Float32Array.from(bytes)
    const tokens = Int32Array.from(await networks.read(rgb))
    const unknown = Array(memory - 1).fill(world.names.length)
    const told = await begin(tokens, unknown, world.seed)
    let error = 0  // of the picture as the tokenizer draws it
    for (let i = 0; i < rgb.length; i++) {
      error += ((now.pixels.data[4 * Math.floor(i / 3) + i % 3] - rgb[i]) / 127.5) ** 2
    }
    told.likeness = +(-10 * Math.log10(error / rgb.length / 4 + 1e-10)).toFixed(1)
    return told
  }

  async function step(action, steps, temperature) {
    past.push({...now})
    if (past.length > longest) past.shift()
    const actions = [...now.actions, action]
    const frame = await generate(networks, world, now.tokens, Int32Array.from(actions), steps,
      temperature, now)
    const tokens = new Int32Array(memory * N)
    tokens.set(now.tokens.subarray(N))
    tokens.set(frame, (memory - 1) * N)
    const pixels = await pictureOf(tokens)
    Object.assign(now, {tokens, actions: actions.slice(1), frame: now.frame + 1, pixels})
    return shown({action, maskgit_steps: steps, temperature})
  }

  async function back() {
    Object.assign(now, past.pop())
    return shown({back: true})
  }

  const shown = more => ({frame: now.frame, replay: wants.replay.length, ...more})

  // ---- what the page wants, as play.py's Seat
  const wants = {begin: null, begun: false, held: null, tapped: null, replay: [], back: false,
    pause: false, maskgit_steps: world.maskgit_steps, temperature: world.temperature, speed: 1}
  let wake = () => {}

  function send(message) {
    if (message instanceof Uint8Array) {
      Object.assign(wants, {begin: () => beginWith(message), tapped: null, replay: []})
    } else {
      if ('start' in message) {
        const {start, seed} = message
        Object.assign(wants, {begin: () => beginAt(start, seed), tapped: null, replay: []})
      }
      if ('hold' in message) wants.held = message.hold
      if ('press' in message) wants.held = wants.tapped = message.press
      if (wants.held !== null || message.back) wants.replay = []
      wants.replay.push(...message.play ?? [])
      for (const key of ['back', 'pause', 'maskgit_steps', 'temperature', 'speed']) {
        if (key in message) wants[key] = message[key]
      }
      if (message.film) show({error: 'A page alone makes no mp4. GIF does it.'})
    }
    wake()
  }

  function nextJob() {
    const {maskgit_steps, temperature} = wants
    if (wants.begin) {
      const begins = wants.begin
      Object.assign(wants, {begin: null, begun: true})
      return begins
    }
    if (!wants.begun) return null
    if (wants.back) return past.length ? back : null
    if (wants.replay.length) {
      const [action, steps, warm] = wants.replay.shift()
      return () => step(action, steps, warm)
    }
    if (wants.pause) return null
    const action = wants.tapped ?? wants.held ?? world.idle
    wants.tapped = null
    return action === null ? null : () => step(action, maskgit_steps, temperature)
  }

  async function play() {
    networks = await loadNetworks(world)
    document.querySelectorAll('[id^=part-]').forEach(part => part.remove())  // of another device
    globalThis.networks = networks  // for those who look under the bonnet, and a test
    for (let due = 0;;) {
      await new Promise(done => setTimeout(done, due - performance.now()))
      const job = nextJob()
      if (!job) {
        await new Promise(done => { wake = done })
        continue
      }
      due = Math.max(due + 1000 / (world.fps * wants.speed), performance.now())
      try {
        const told = await job()
        show(told, now.pixels)
      } catch (error) {
        Object.assign(wants, {held: null, tapped: null, replay: [], begun: false})
        show({error: `It could not imagine that: ${error.message}.`})
      }
    }
  }

  play().catch(error => show({error: `The networks do not run here: ${error.message}.`}))
  return {send}
}
