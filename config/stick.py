# The game of hunters with a stick: actions are three numbers, right, down and swing.
#
#   python data.py game data/stick.h5 --player=hunter --stick=True --n_frames=24000
#   python policy.py config/stick.py

dataset = 'data/stick.h5'
out_dir = 'out/stick'

patch_size = 8
n_head, n_embd = 4, 64

policy = dict(action_source='labels', max_iters=6000, learning_rate=4e-3, weight_decay=0.1,
              total_batch_size=16, device_batch_size=16)
