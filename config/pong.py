# Pong for the Atari 2600, 15 frames a second of its 60.
#
#   python data.py gym ALE/Pong-v5 data/pong.h5 --frame_skip=4 --pad
#   python tokenizer.py      config/pong.py
#   python latent_actions.py config/pong.py
#   python dynamics.py       config/pong.py
#   python sample.py         config/pong.py

dataset = 'data/pong.h5'
out_dir = 'out/pong'
