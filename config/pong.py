# Pong for the Atari 2600, 15 frames a second of its 60.
#
#   python data.py gym ALE/Pong-v5 data/pong.h5 --frame_skip=4 --pad
#   python tokenizer.py      config/pong.py
#   python latent_actions.py config/pong.py
#   python dynamics.py       config/pong.py
#   python sample.py         config/pong.py
#
# On one CPU core the recording takes 2 minutes. Not trained to the end yet; after 300, 60 and 200
# updates (7 minutes): tokenizer 36.7 dB, which shows no ball yet. For 128 pixels record with
# --size=128 and another name, and add --dataset=... --out_dir=...

dataset = 'data/pong.h5'
out_dir = 'out/pong'
