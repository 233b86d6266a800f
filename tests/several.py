"""Runs scripts one after the other in one process, for importing torch takes longer than they do:

    python tests/several.py tokenizer.py a.py --seed=1 , dynamics.py a.py
"""
import runpy
import sys
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)
words = sys.argv[1:]
for is_comma, command in groupby(words, ','.__eq__):
    if is_comma:
        continue
    sys.argv = list(command)
    try:
        runpy.run_path(str(ROOT / sys.argv[0]), run_name='__main__')
    except SystemExit as e:
        if e.code:
            raise
