# Crafter, a survival game of 17 actions in a world that is made anew for each episode.
#
#   python data.py gym CrafterReward-v1 data/crafter.h5
#   python tokenizer.py      config/crafter.py
#   python latent_actions.py config/crafter.py
#   python dynamics.py       config/crafter.py
#   python sample.py         config/crafter.py
#
# On one CPU core the recording takes 14 minutes. Not trained to the end yet; after 300, 60 and 200
# updates (3 minutes), with 6,000 frames: tokenizer 21.1 dB, below repeating the last frame (25.8).
# Its tiles have 7 pixels and not the 8 of a patch. For 128 pixels record with --size=128 and
# another name, and add --dataset=... --out_dir=...

dataset = 'data/crafter.h5'
out_dir = 'out/crafter'
