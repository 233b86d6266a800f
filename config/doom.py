# Doom, seen through the eyes of who walks: medkits in a room with a floor of acid.
#
#   python data.py gym VizdoomHealthGathering-v1 data/doom.h5 --frame_skip=4
#   python tokenizer.py      config/doom.py
#   python latent_actions.py config/doom.py
#   python dynamics.py       config/doom.py
#   python sample.py         config/doom.py
#
# On one CPU core the recording takes 3 minutes. Not trained to the end yet; after 300, 60 and 200
# updates (3 minutes): tokenizer 27.1 dB; four frames ahead 22.0 dB, 0.8 above repeating the last
# frame. For 128 pixels record with --size=128 and another name, and add --dataset=...
# --out_dir=...

dataset = 'data/doom.h5'
out_dir = 'out/doom'
