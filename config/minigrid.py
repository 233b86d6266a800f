# MiniGrid: a key, a door and a goal in rooms of 8x8 tiles, of 8 pixels each, so that a token is a
# tile.
#
#   python data.py gym MiniGrid-DoorKey-8x8-v0 data/minigrid.h5
#   python tokenizer.py      config/minigrid.py
#   python latent_actions.py config/minigrid.py
#   python dynamics.py       config/minigrid.py
#   python sample.py         config/minigrid.py

dataset = 'data/minigrid.h5'
out_dir = 'out/minigrid'
