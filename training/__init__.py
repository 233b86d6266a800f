"""What a run needs besides its loop: the checkpoint file, the guard, the log, several processes."""
