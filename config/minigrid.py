# MiniGrid: a key, a door and a goal in rooms of 8x8 tiles, of 8 pixels each, so that a token is a
# tile.
#
#   python data.py gym MiniGrid-DoorKey-8x8-v0 data/minigrid.h5
#   python tokenizer.py      config/minigrid.py
#   python latent_actions.py config/minigrid.py
#   python dynamics.py       config/minigrid.py
#   python sample.py         config/minigrid.py
#
# On one CPU core the recording takes 3 minutes. Not trained to the end yet; after 300, 120 and 300
# updates (6 minutes): tokenizer 32.9 dB; one frame ahead 27.9 dB, 3.7 above repeating the last
# frame; delta_psnr 7.7 dB. Two in three frames equal the one before. For 128 pixels record with
# --size=128 and another name, and add --dataset=... --out_dir=...

dataset = 'data/minigrid.h5'
out_dir = 'out/minigrid'
