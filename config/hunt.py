# The game of hunters, who know what they want, and a player who learns from watching them.
#
#   python data.py game data/hunt.h5 --player=hunter --n_frames=24000

dataset = 'data/hunt.h5'
out_dir = 'out/hunt'

patch_size = 8
levels = (4, 4, 4, 4, 4)  # vocabulary of 1024
action_levels = (2, 2, 2, 2)  # 16 actions: with 8 the sword shares one with left (RECORDS.md)
n_head, n_embd = 4, 128

tokenizer = dict(max_iters=2000, learning_rate=5e-3, total_batch_size=8, device_batch_size=8)
latent_actions = dict(max_iters=200, learning_rate=3e-3, total_batch_size=32, device_batch_size=32)
dynamics = dict(max_iters=7000, learning_rate=5e-3, total_batch_size=8, device_batch_size=8)
policy = dict(n_embd=64, max_iters=7000, learning_rate=4e-3, weight_decay=0.1, total_batch_size=16,
              device_batch_size=16)
