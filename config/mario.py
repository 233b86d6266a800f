# The first level of Super Mario Bros., which scrolls; 15 frames a second of its 60.
#
#   python data.py gym SuperMarioBros-1-1-v0 data/mario.h5 --frame_skip=4
#   python tokenizer.py      config/mario.py
#   python latent_actions.py config/mario.py
#   python dynamics.py       config/mario.py
#   python sample.py         config/mario.py

dataset = 'data/mario.h5'
out_dir = 'out/mario'
