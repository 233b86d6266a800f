# A scrolling Zelda-like game: 20,000 frames at 15 fps with the player's real actions (used by
# eval.py alone).
#
#   python data.py video zelda_like.mp4 data/zelda_like.h5 --size=64 --fps=15 \
#       --labels=zelda_like_labels.npz
#   python tokenizer.py      config/zelda_like.py
#   python latent_actions.py config/zelda_like.py
#   python dynamics.py       config/zelda_like.py
#   python sample.py         config/zelda_like.py
#   python eval.py           config/zelda_like.py
#
# At 64 pixels on one CPU core an hour and a half: tokenizer 28.7 dB, delta_psnr 5.8 dB four frames
# ahead, 4.2 dB above repeating sixteen ahead. At 128 pixels in 71 minutes 24.6, 4.5 and 3.4 dB
# (RECORDS.md): import with --size=128, give all commands
#   --dataset=data/zelda_like128.h5 --out_dir=out/zelda_like128
# and tokenizer.py --patch_size=8 --levels=(4,4,4,4,4,4,4,4,4,4) --max_iters=10000, dynamics.py
# --max_iters=6500.

dataset = 'data/zelda_like.h5'
out_dir = 'out/zelda_like'

patch_size = 4  # 16 x 16 = 256 tokens a frame at 64 pixels
levels = (4,) * 8  # vocabulary of 65,536: 4096 are too few for this art (RECORDS.md)
action_levels = (2, 2, 2)  # 8 actions
n_head, n_embd = 4, 128

tokenizer = dict(max_iters=14_000, learning_rate=5e-3, total_batch_size=2, device_batch_size=2)
latent_actions = dict(max_iters=200, learning_rate=3e-3, patch_size=8, total_batch_size=32,
                      device_batch_size=32)
dynamics = dict(max_iters=15_000, learning_rate=4e-3, total_batch_size=4, device_batch_size=4)
