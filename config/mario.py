# The first level of Super Mario Bros., which scrolls; 15 frames a second of its 60.
#
#   python data.py gym SuperMarioBros-1-1-v0 data/mario.h5 --frame_skip=4
#   python tokenizer.py      config/mario.py
#   python latent_actions.py config/mario.py
#   python dynamics.py       config/mario.py
#   python sample.py         config/mario.py
#
# On one CPU core the recording takes 12 minutes. Not trained to the end yet; after 300, 60 and 200
# updates (3 minutes), with 6,000 frames: tokenizer 26.6 dB; four frames ahead 21.8 dB, 1.6 above
# repeating the last frame. For 128 pixels record with --size=128 and another name, and add
# --dataset=... --out_dir=...

dataset = 'data/mario.h5'
out_dir = 'out/mario'
