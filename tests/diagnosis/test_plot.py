"""The picture shows what it claims to show, whatever the numbers and the names are."""
import subprocess
import sys

import numpy as np
import pytest
from launch import ROOT
from PIL import Image
from reports import DIVERGED, falling, run, write_csv

from diagnosis.rules import verdict


def count(image, colour):
    rgb = [int(colour[i:i + 2], 16) for i in (1, 3, 5)]
    return (image == rgb).all(2).sum()


@pytest.mark.slow
def test_plot(logs, tmp_path):
    """It holds the colours of what it claims to show."""
    path = tmp_path / 'p.png'
    assert run(logs / 'dynamics_diverged.csv', *DIVERGED, f'--plot={path}')[0] == 2
    image = np.array(Image.open(path).convert('RGB'))
    assert image.shape == (760, 1400, 3)
    colours = dict(loss='#4a86c5', windows='#d9730d', chance='#c4162a', lr='#6aa96a',
                   flagged='#8757b3')
    for what, colour in colours.items():
        assert count(image, colour) > 300, what


ABSURD = [
    dict(step=[1], loss=[2]), dict(step=[0, 1e90], loss=[1, 1e99]),
    dict(step=[5, 5, 5], loss=[3, 3, 3]), dict(step=[1e18, 1e18 + 256], loss=[1, 1 + 1e-15]),
    dict(step=[1, 2, 3], loss=[-1, 0, -1e-99]), dict(step=[1, 2], loss=[0, 0], lr=[1e-99, 1e99])]


@pytest.mark.slow
@pytest.mark.parametrize('columns', ABSURD)
def test_absurd_numbers(tmp_path, columns):
    path = tmp_path / 'p.png'
    code, _, err = run(write_csv(tmp_path / 'log.csv', columns), f'--plot={path}')
    assert code in (0, 1, 2) and path.exists() and not err


@pytest.mark.slow
def test_names_are_no_formulas(tmp_path):
    """Of a file, of a column; and letters that the font lacks are not worth a word."""
    log = {k.replace('loss', r'$\frac{loss$ 日'): v for k, v in falling().items()}
    path = tmp_path / 'p.png'
    code, _, err = run(write_csv(tmp_path / '$x_^$.csv', log), f'--plot={path}')
    assert code == 0 and path.exists() and not err


def test_a_picture_that_cannot_be_written(tmp_path):
    path = write_csv(tmp_path / 'log.csv', falling())
    assert run(path, f'--plot={tmp_path}/no/such/folder/p.png')[0] == 3


@pytest.mark.slow
def test_the_picture_of_a_training_script(logs, tmp_path):
    """One that cannot be drawn changes nothing."""
    log, path = str(logs / 'tiny_dynamics.csv'), tmp_path / 'loss.png'
    words = verdict(log, vocab=1024)
    assert words == verdict(log, vocab=1024, picture=str(path)) and path.exists()
    assert words == verdict(log, vocab=1024, picture=str(tmp_path / 'no/such/folder/p.png'))
    bad = write_csv(tmp_path / 'nan.csv', dict(step=[1, 2], loss=['nan', 'nan']))
    assert verdict(str(bad), picture=str(path)) == verdict(str(bad))


def loaded_after(code):
    """Which of the large libraries a Python has imported at the end."""
    code += ('\nimport sys; print(sorted({"torch", "PIL", "pandas", "matplotlib"} '
             '& set(sys.modules)))')
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.mark.slow
def test_torch_and_the_like_are_imported_only_when_needed(logs):
    argv = ['diagnose.py', str(logs / 'tiny_dynamics.csv')]
    main = f'import sys; sys.argv = {argv}; import diagnose; diagnose.main()'
    assert loaded_after(main) == "['pandas']"
    assert loaded_after('import diagnosis.rules, diagnosis.folders, diagnose') == '[]'
