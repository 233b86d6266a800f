# The recording that this project was started for: 72,410 frames of 128x128 at 15 fps, two GPUs of
# 24 GB. Times and PSNR: nobody has measured them yet.
#
#   torchrun --standalone --nproc_per_node=2 tokenizer.py      config/zelda.py
#   torchrun --standalone --nproc_per_node=2 latent_actions.py config/zelda.py
#   torchrun --standalone --nproc_per_node=2 dynamics.py       config/zelda.py
#   python sample.py config/zelda.py
#
# An earlier run of this recipe in another code base diverged at learning rate 0.01; its peak rates
# of 1e-3, 8e-5 and 5e-4 are where to start.

dataset = 'data/zelda.h5'  # a file with only `frames` is fine
out_dir = 'out/zelda'

patch_size = 4  # 32 x 32 = 1024 tokens a frame
levels = (4, 4, 4, 4, 4)  # vocabulary of 1024
action_levels = (2, 2, 2)  # 8 actions

dtype = 'bfloat16'
compile = False  # --compile=True should be faster; no GPU has said so yet
device_batch_size = 8  # clips a GPU
total_batch_size = 16  # two GPUs
log_interval = 50
eval_interval = 2000
eval_iters = 50
warmup_iters = 1000

context_frames = 4  # of sample.py

tokenizer = dict(max_iters=40_000, learning_rate=1e-3, seq_len=4, n_layer=4, n_head=8, n_embd=256)
latent_actions = dict(max_iters=15_000, learning_rate=8e-5, seq_len=4, n_layer=4, n_head=8,
                      n_embd=256, patch_size=8)
dynamics = dict(max_iters=120_000, learning_rate=5e-4, seq_len=5, n_layer=8, n_head=16, n_embd=512,
                total_batch_size=64, device_batch_size=32)  # one new frame a clip
