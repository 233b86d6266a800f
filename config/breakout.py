# Breakout for the Atari 2600, 15 frames a second of its 60. Without --pad the paddle is cut away.
#
#   python data.py gym ALE/Breakout-v5 data/breakout.h5 --frame_skip=4 --pad
#   python tokenizer.py      config/breakout.py
#   python latent_actions.py config/breakout.py
#   python dynamics.py       config/breakout.py
#   python sample.py         config/breakout.py

dataset = 'data/breakout.h5'
out_dir = 'out/breakout'
