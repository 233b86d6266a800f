# Crafter, a survival game of 17 actions in a world that is made anew for each episode.
#
#   python data.py gym CrafterReward-v1 data/crafter.h5
#   python tokenizer.py      config/crafter.py
#   python latent_actions.py config/crafter.py
#   python dynamics.py       config/crafter.py
#   python sample.py         config/crafter.py

dataset = 'data/crafter.h5'
out_dir = 'out/crafter'
