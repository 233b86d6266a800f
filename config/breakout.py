# Breakout for the Atari 2600, 15 frames a second of its 60. Without --pad the paddle is cut away.
#
#   python data.py gym ALE/Breakout-v5 data/breakout.h5 --frame_skip=4 --pad
#   python tokenizer.py      config/breakout.py
#   python latent_actions.py config/breakout.py
#   python dynamics.py       config/breakout.py
#   python sample.py         config/breakout.py
#
# On one CPU core the recording takes 2 minutes, the three stages 18 without AVX-512 (dynamics.py
# with --max_iters=4000): tokenizer 48.0 dB, four frames ahead 42.6 dB, 4.7 above repeating the
# last frame, delta_psnr 6.2 dB. From two starts of four the paddle goes where it is told, from two
# it stands; the ball is a smear. For 128 pixels record with --size=128 and another name, and add
# --dataset=... --out_dir=...

dataset = 'data/breakout.h5'
out_dir = 'out/breakout'
