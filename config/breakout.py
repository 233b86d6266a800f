# Breakout for the Atari 2600, 15 frames a second of its 60. Without --pad the paddle is cut away.
#
#   python data.py gym ALE/Breakout-v5 data/breakout.h5 --frame_skip=4 --pad
#   python tokenizer.py      config/breakout.py
#   python latent_actions.py config/breakout.py
#   python dynamics.py       config/breakout.py
#   python sample.py         config/breakout.py
#
# On one CPU core the recording takes 2 minutes. Not trained to the end yet; after 300, 60 and 200
# updates (5 minutes): tokenizer 38.0 dB, which shows the paddle and no ball yet. For 128 pixels
# record with --size=128 and another name, and add --dataset=... --out_dir=...

dataset = 'data/breakout.h5'
out_dir = 'out/breakout'
