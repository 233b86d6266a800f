# Doom, seen through the eyes of who walks: medkits in a room with a floor of acid.
#
#   python data.py gym VizdoomHealthGathering-v1 data/doom.h5 --frame_skip=4
#   python tokenizer.py      config/doom.py
#   python latent_actions.py config/doom.py
#   python dynamics.py       config/doom.py
#   python sample.py         config/doom.py

dataset = 'data/doom.h5'
out_dir = 'out/doom'
