"""What diagnose.py knows: logs of strangers, the rules, checkpoint folders, the picture."""
