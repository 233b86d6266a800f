# The shape of the run that failed, to be measured and not to be trained: 2 clips of 4 frames of
# 128x128 an update, patch 4 (1024 tokens a frame), 8 blocks of width 32. Its heads of size 4 are
# one head of 32 here.
#
#   python bench.py config/failed_run.py    # makes what it needs; 3 minutes on two CPU cores

dataset = 'data/bench_128.h5'  # the built-in game, every pixel four
out_dir = 'out/failed_run'

patch_size = 4
levels = (4, 4, 4, 4, 4)  # vocabulary of 1024
n_layer, n_head, n_embd = 8, 1, 32
seq_len = 4
total_batch_size = device_batch_size = 2
maskgit_steps = 10
n_frames = 4  # of sample.py

bench = dict(prepare=128)
