"""Where datasets come from: HDF5 files, videos, the built-in game."""
