# The built-in game on two CPU cores: `make` runs this.
#
#   python data.py game data/tiny.h5              # 60,000 frames
#   python tokenizer.py      config/tiny.py       # 3.0 minutes, 45 dB
#   python latent_actions.py config/tiny.py       # 0.7 minutes, 99% right where something moved
#   python dynamics.py       config/tiny.py       # 8.9 minutes, 9 dB above repeating, 4 frames on
#   python sample.py         config/tiny.py       # out/tiny/samples/
#   python eval.py           config/tiny.py       # out/tiny/eval.md

dataset = 'data/tiny.h5'
out_dir = 'out/tiny'

patch_size = 8  # 8 x 8 = 64 tokens a frame; a tile of the game is 8 pixels
levels = (4, 4, 4, 4, 4)  # vocabulary of 1024
action_levels = (2, 2, 2)  # 8 actions, for the game's 6
n_head, n_embd = 4, 128

tokenizer = dict(max_iters=3000, learning_rate=5e-3, total_batch_size=8, device_batch_size=8)
latent_actions = dict(max_iters=200, learning_rate=3e-3, total_batch_size=32, device_batch_size=32)
dynamics = dict(max_iters=8000, learning_rate=5e-3, total_batch_size=8, device_batch_size=8)
