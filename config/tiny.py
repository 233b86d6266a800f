# The built-in game on two CPU cores. `make` runs this.
dataset = 'data/tiny.h5'
out_dir = 'out/tiny'
