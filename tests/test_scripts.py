"""The contract of the training scripts: the same sections, of which most are the same text."""

import re

import pytest
from launch import ROOT, STAGES

TITLES = ['config', 'distributed setup', 'data', 'model, and its picture',
          'optimizer, resume, compile, DDP', 'evaluation, learning rate, order of the batches',
          'training loop']
SHARED = ['distributed setup', *TITLES[4:]]
CURE = """
Was the change meant? Then make it in all four scripts: copy the section from %s.py into the
others; `diff tokenizer.py latent_actions.py` shows that what is left is the stage's own. If only
one stage needs it, it belongs into that script's sections config, data or model, or into model.py.
"""


def sections(stage):
    """title -> text of each section of a script."""
    text = (ROOT / f'{stage}.py').read_text()
    parts = re.split(r'^# -{77}\n# ([a-z, A-Z-]+?)(?::.*)?\n', text, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2]))


def test_the_scripts_have_the_same_sections_in_the_same_order():
    for stage in STAGES:
        assert list(sections(stage)) == TITLES, f'{stage}.py'


@pytest.mark.parametrize('title', SHARED)
def test_shared_sections_are_the_same_text(title):
    texts = {stage: sections(stage)[title] for stage in STAGES}
    drifted = [s for s in STAGES if list(texts.values()).count(texts[s]) == 1]
    assert len(set(texts.values())) == 1, (
        f'section "{title}" of {" and ".join(drifted)} has drifted from the others'
        + CURE % drifted[0]
    )


def test_shared_keys_come_with_the_same_names_in_the_same_order():
    keys = {
        s: re.findall(r'^(\w+) = ', sections(s)['config'].split('# training\n')[1], re.M)
        for s in STAGES
    }
    assert len({tuple(k[:-1]) for k in keys.values()}) == 1


def test_no_script_has_a_main_or_bypasses_ddp():
    for stage in STAGES:
        text = (ROOT / f'{stage}.py').read_text()
        assert 'def main' not in text and '.module(' not in text and 'model(*batch)' in text


@pytest.mark.parametrize('stage', STAGES)
def test_every_script_visibly_does_its_own(stage):
    """What a reader must find in the script, and not behind a call."""
    text = (ROOT / f'{stage}.py').read_text()
    for line in (
        'dist.init_process_group(',
        'model = DDP(model',
        'require_backward_grad_sync =',
        'torch.autocast(',
        'torch.amp.GradScaler(',
        'def get_lr(it)',
        'clip_grad_norm_(',
        'ranks.all_mean(',
        'if master_process:\n',
        'checkpoint.save(',
        'dist.destroy_process_group()',
    ):
        assert text.count(line) >= 1, line


@pytest.mark.parametrize('stage', STAGES)
def test_a_script_is_a_page(stage):
    lines = (ROOT / f'{stage}.py').read_text().splitlines()
    most = 320 if stage == 'policy' else 290
    assert len(lines) <= most and max(map(len, lines)) <= 100
    loop = [i for i, line in enumerate(lines) if re.match('while |run.finish', line)]
    assert loop[1] - loop[0] <= 76
