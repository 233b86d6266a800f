"""HDF5 files: what is read is right, what is wrong is refused in words."""
import os
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from samples import RNG, noise, write

import data
from files import DiskError
from recordings import h5file


def test_a_file_with_only_frames_is_valid(tmp_path):
    """As tinyworlds writes it: create_dataset('frames', data=frames, compression='lzf'), frames cut
    into many chunks."""
    frames = noise(1000, 32, 32)
    path = write(tmp_path / 'zelda_frames.h5', frames, 'lzf')
    with h5py.File(path) as f:
        assert f['frames'].chunks[1:] != (32, 32, 3), 'the awkward case is meant'
    ds = data.load(path, patch_size=4)
    assert np.array_equal(ds.frames, frames) and isinstance(ds.frames, np.memmap)
    assert ds.actions is None and ds.episode_starts.tolist() == [0]
    assert ds.truth == {} and ds.fps is None


def test_everything_optional_is_read(tmp_path):
    path = write(tmp_path / 'a.h5', noise(), actions=np.arange(40, dtype=np.uint8) % 3,
                 episode_starts=np.array([0, 7]))
    with h5py.File(path, 'a') as f:
        f.attrs.update(fps=15, source='play.mp4', action_names=['a', 'b', 'c'])
        f['truth/hero'] = np.arange(80).reshape(40, 2)
    ds = data.load(path)
    assert ds.actions.dtype == np.int64 and ds.actions[:4].tolist() == [0, 1, 2, 0]
    assert (ds.fps, ds.source, ds.action_names) == (15.0, 'play.mp4', ['a', 'b', 'c'])
    assert ds.episode_starts.tolist() == [0, 7] and ds.truth['hero'][3].tolist() == [6, 7]
    floats = write(tmp_path / 'b.h5', noise(), actions=np.zeros((40, 2)))
    assert data.load(floats).actions.dtype == np.float32


def test_data_id_is_of_the_content(tmp_path):
    frames, actions = noise(300), np.arange(300) % 4

    def data_id(name, frames, compression=None, **more):
        return data.load(write(tmp_path / name, frames, compression, **more)).data_id

    first = data_id('a.h5', frames, 'lzf', actions=actions)
    assert len(first) == 16
    assert data_id('b.h5', frames, 'gzip', actions=actions.astype(np.int32)) == first
    assert data_id('c.h5', frames, actions=(actions + 1) % 4) != first
    assert data_id('d.h5', frames, actions=actions, episode_starts=np.array([0, 9])) != first
    assert data_id('e.h5', frames[:299], actions=actions[:299]) != first
    frames[0, 0, 0, 0] ^= 1
    assert data_id('f.h5', frames, actions=actions) != first


K = np.arange(40) % 3
BUTTONS = np.array([[0, 0, 0], [1, 0, 0], [1, 0, 1]])[K]


@pytest.mark.parametrize('actions, numbers', [
    (K[:, None], K), (K.astype(float), K), (K > 1, K > 1), (K.astype('>i8'), K),
    (np.eye(3, dtype=int)[K], K), (np.eye(3, dtype=bool)[K], K), (np.eye(3)[K], K),
    (BUTTONS, K), (BUTTONS.astype(bool), K), (1 << 8 * K + 1, K), (np.full(40, 5 * 10 ** 9), 0 * K),
])
def test_actions_as_people_have_them(tmp_path, actions, numbers):
    """Where there is one meaning it is taken."""
    found = data.load(write(tmp_path / 'a.h5', noise(), actions=actions)).actions
    assert found.dtype == np.int64 and np.array_equal(found, numbers)


def test_actions_that_are_words_or_arrays_of_buttons(tmp_path):
    words = np.array([b'left', b'right', b'jump'])[K]
    found = data.load(write(tmp_path / 'a.h5', noise(), actions=words))
    assert found.action_names == ['jump', 'left', 'right']
    assert np.array_equal(found.actions, (K + 1) % 3)
    assert found.noticed == ['actions have names: jump, left, right']
    group = {f'actions/{name}': x for name, x in zip(('up', 'left', 'jump'), BUTTONS.T)}
    found = data.load(write(tmp_path / 'b.h5', noise(), **group))
    assert found.action_names == ['none', 'up', 'jump+up']
    assert np.array_equal(found.actions, K)
    stick = {f'actions/{name}': x for name, x in zip('xy', RNG.normal(size=(2, 40)))}
    found = data.load(write(tmp_path / 'c.h5', noise(), **stick))
    assert found.action_names == ['x', 'y'] and found.actions.shape == (40, 2)
    found = data.load(write(tmp_path / 'd.h5', noise(), **{'episode/x': K, 'actions': K}))
    assert np.array_equal(found.actions, K), 'a group of that name is another thing'


def test_combinations_of_buttons_have_names(tmp_path):
    path = write(tmp_path / 'a.h5', noise(), actions=BUTTONS)
    with h5py.File(path, 'a') as f:
        f.attrs['action_names'] = ['up', 'left', 'jump']
    assert data.load(path).action_names == ['none', 'up', 'up+jump']
    rare = data.load(write(tmp_path / 'c.h5', noise(), actions=np.triu(np.ones((40, 40), int))))
    assert rare.action_names[:2] == ['b39', 'b38+b39']
    assert '40 different actions in 40 frames, 40 of them only once' in rare.noticed[1]
    masks = data.load(write(tmp_path / 'b.h5', noise(), actions=1 << 8 * K + 1))
    assert masks.action_names == ['2', '512', '131072']


@pytest.mark.parametrize('name, value, starts, words', [
    ('dones', np.arange(40) % 10 == 9, [0, 10, 20, 30], '4 episodes'),
    ('terminals', np.isin(np.arange(40), (4, 30)).astype(np.uint8), [0, 5, 31], '3 episodes'),
    ('episode_ends', [10, 40], [0, 10], '2 episodes'), ('episode_ends', [9, 39], [0, 10], '2 epi'),
    ('ep_len', [15, 25], [0, 15], '2 episodes'), ('episode_start', [0, 7], [0, 7], '2 episodes'),
    ('episode_start', np.arange(40) % 20 == 0, [0, 20], '2 episodes'),
    ('is_first', np.arange(40) % 20 == 0, [0, 20], '2 episodes'),
    ('episode_index', np.arange(40) // 20, [0, 20], '2 episodes'),
    ('truncated', np.arange(40) == 19, [0, 20], '2 episodes'),
    ('dones', np.arange(40), [0], 'ignored: "dones" int64 (40,)'),
    ('ep_len', [15, 15], [0], 'ignored: "ep_len"'),
])
def test_episodes_as_other_projects_write_them(tmp_path, capsys, name, value, starts, words):
    path = write(tmp_path / 'a.h5', noise(), action=K, **{name: value})
    found = data.load(path)
    assert found.episode_starts.tolist() == starts and np.array_equal(found.actions, K)
    data.check(path)
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith('noticed')]
    assert len(said) == 2 and '"action"' in said[0] and words in said[1]


def test_an_attribute_of_another_alphabet(tmp_path):
    path = write(tmp_path / 'a.h5', noise())
    with h5py.File(path, 'a') as f:
        f.attrs['source'] = np.bytes_('Pokémon.mp4'.encode('latin-1'))
    assert data.load(path).source == 'Pokémon.mp4'


def test_what_it_says_itself_comes_first(tmp_path):
    path = write(tmp_path / 'a.h5', noise(), dones=np.arange(40) % 10 == 9, episode_starts=[0, 20])
    found = data.load(path)
    assert found.episode_starts.tolist() == [0, 20] and not found.noticed


def test_decoded_file_is_kept_until_the_h5_changes(tmp_path):
    frames = noise(300)
    path = write(tmp_path / 'a.h5', frames, 'gzip')
    data.load(path)
    npy, = tmp_path.glob('*.npy')
    before = npy.stat()
    data.load(path, master=False)
    assert npy.stat().st_ino == before.st_ino, 'decoded again'
    frames[1] = 255 - frames[1]  # not one of the 64 frames that data_id looks at
    write(path, frames, 'gzip')
    os.utime(path, ns=(10 ** 18, 10 ** 18))  # an older date than the decoded file's
    assert np.array_equal(data.load(path).frames, frames), 'the pictures of the old file'
    write(path, frames)
    data.load(path)
    date, size = os.stat(path).st_mtime_ns, os.stat(path).st_size
    frames[2:] = 255 - frames[2:]
    write(path, frames)
    os.utime(path, ns=(date, date))  # unpacked from an archive, say
    assert os.stat(path).st_size == size
    assert np.array_equal(data.load(path).frames, frames), 'of one size and date'
    write(path, frames[::-1], 'gzip')
    ds = data.load(path)
    assert np.array_equal(ds.frames, frames[::-1])
    left = [x.name for x in tmp_path.glob('*.npy')]
    assert left == [f'a.{ds.data_id}.npy'], 'the older decoding should be gone'
    assert not list(tmp_path.glob('*.tmp*'))


def test_a_damaged_decoded_file_is_made_again(tmp_path):
    frames = noise()
    path = write(tmp_path / 'a.h5', frames)
    data.load(path)
    npy, = tmp_path.glob('*.npy')
    npy.write_bytes(npy.read_bytes()[:5000] + npy.read_bytes()[-32:])
    assert np.array_equal(data.load(path).frames, frames)


def test_too_little_disk_is_noticed_before_writing(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, 'disk_usage', lambda p: type('usage', (), dict(free=1000)))
    with pytest.raises(DiskError, match='GB free'):
        data.load(write(tmp_path / 'a.h5', noise()))
    assert len(list(tmp_path.iterdir())) == 1


# -----------------------------------------------------------------------------
# a dataset on a disk that cannot be written, or has no room


@pytest.fixture
def given(tmp_path, read_only, own_cache):
    """A recording in a folder that is read-only, as /kaggle/input is."""
    shutil.rmtree(own_cache, ignore_errors=True)
    (tmp_path / 'input').mkdir()
    path = write(tmp_path / 'input' / 'tokens_a.h5', noise(300))
    read_only(tmp_path / 'input')
    return path


@pytest.mark.row(48)
def test_a_read_only_dataset_is_decoded_into_out_dir(given, tmp_path, own_cache, capsys):
    frames = data.load(given, None, True, str(tmp_path / 'out')).frames
    npy, = (tmp_path / 'out' / 'cache').iterdir()
    said = capsys.readouterr().out
    assert frames.filename == str(npy) and said.count('\n') == 1
    assert said.startswith(f'decoded into {npy}, for {given[:-3]}.') and 'Read-only' in said
    before = npy.stat()
    again = data.load(given, None, False, str(tmp_path / 'out')).frames
    assert again.filename == str(npy) and npy.stat().st_ino == before.st_ino, 'decoded again'
    assert capsys.readouterr().out == ''
    data.cached(str(tmp_path / 'out' / 'cache' / 'tokens_1.npy'), 5, lambda picks: picks)
    assert npy.exists(), 'it is no older cache of the tokens'
    assert not own_cache.exists() and os.listdir(tmp_path / 'input') == ['tokens_a.h5']


@pytest.mark.row(48)
def test_a_read_only_dataset_is_decoded_into_the_cache_of_the_user(given, own_cache, capsys):
    data.load(given, master=False)
    npy, = own_cache.iterdir()
    assert capsys.readouterr().out == '', 'one process speaks for all'
    frames = noise(300)
    write(given, frames)  # by another machine
    ds = data.load(given)
    new, = own_cache.iterdir()
    assert new != npy and np.array_equal(ds.frames, frames), 'the pictures of the old file'


@pytest.mark.row(48)
def test_two_read_only_datasets_of_one_name(tmp_path, read_only, own_cache):
    """Of one shape and date, too, as an archive may have made them."""
    paths, every = [], [noise(40), noise(40)]
    for name, frames in zip('xy', every):
        (tmp_path / name).mkdir()
        paths.append(write(tmp_path / name / 'a.h5', frames))
        os.utime(paths[-1], (0, 0))
        read_only(tmp_path / name)
    for _ in range(2):
        for path, frames in zip(paths, every):
            assert np.array_equal(data.load(path).frames, frames)
    assert len(list(own_cache.glob('frames_a_*.npy'))) == 2


@pytest.mark.row(48)
def test_nowhere_to_decode(given, tmp_path, read_only, own_cache):
    read_only(tmp_path / 'out')
    read_only(own_cache)
    with pytest.raises(DiskError) as e:
        data.load(given, None, True, str(tmp_path / 'out'))
    said = str(e.value)
    assert said.count('\n') == 2 and 'cannot be written' in said
    for folder in (tmp_path / 'input', tmp_path / 'out' / 'cache', own_cache):
        assert str(folder) in said.splitlines()[-1]


def test_a_full_disk_beside_the_dataset(tmp_path, monkeypatch, capsys):
    def free_space(folder):
        return 10 ** 12 if str(folder).endswith('cache') else 1000

    monkeypatch.setattr(h5file, 'free_space', free_space)
    frames = noise()
    ds = data.load(write(tmp_path / 'a.h5', frames), None, True, str(tmp_path / 'out'))
    assert np.array_equal(ds.frames, frames)
    assert os.path.dirname(ds.frames.filename) == str(tmp_path / 'out' / 'cache')
    assert 'GB free' in capsys.readouterr().out


def test_a_decoding_beside_a_read_only_dataset_is_used(tmp_path, read_only, capsys):
    path = write(tmp_path / 'a.h5', noise())
    beside = data.load(path).frames.filename
    read_only(tmp_path)
    assert data.load(path, None, True, str(tmp_path / 'out')).frames.filename == beside
    assert capsys.readouterr().out == '' and os.path.dirname(beside) == str(tmp_path)


def test_a_missing_file_is_said_with_the_folder_it_was_looked_for_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(data.DataError) as e:
        data.load('data/none.h5')
    assert str(e.value).startswith(f'{tmp_path}/data/none.h5: found no such file')
    with pytest.raises(data.DataError) as e:  # a name that is one in the repository
        data.load('README.md')
    assert str(e.value).endswith(f'cure: start the script in {h5file.ROOT}, where README.md is')


# -----------------------------------------------------------------------------
# refusing: (how to make the file, words that must be said)


def raw(content, *words):
    return lambda path: path.write_bytes(content), words


def built(make, *words):
    """make: a function of the open file."""
    def build(path):
        with h5py.File(path, 'w') as f:
            make(f)
    return build, words


def only(x, *words):
    """Nothing but x, as frames."""
    return built(lambda f: f.create_dataset('frames', data=x), *words)


def beside(more, *words):
    """Good frames, and `more` beside them; 'attr_NAME' is an attribute."""
    def make(f):
        f['frames'] = noise()
        for key, value in more.items():
            if key.startswith('attr_'):
                f.attrs[key[5:]] = value
            else:
                f[key] = value
    return built(make, *words)


def truncated(path):
    write(path, noise(100))
    path.write_bytes(path.read_bytes()[:5000])


def damaged(path):
    with h5py.File(path, 'w') as f:
        d = f.create_dataset('frames', data=noise(1600, 8, 8), chunks=(16, 8, 8, 3),
                             fletcher32=True)
        where = d.id.get_chunk_info(33).byte_offset  # frames 528..543
    content = bytearray(path.read_bytes())
    content[where + 7] ^= 1
    path.write_bytes(content)


def images(f):
    f['images'] = noise()


def group(f):
    f['frames/0'] = noise()


def unwritten(f):
    d = f.create_dataset('frames', (300, 16, 16, 3), np.uint8, chunks=(1, 16, 16, 3))
    d[:150] = noise(150)


def unwritten_plain(f):
    f.create_dataset('frames', (40, 16, 16, 3), np.uint8)


def absurd(f):
    f.create_dataset('frames', (2 ** 26, 240, 256, 3), np.uint8, chunks=(1, 240, 256, 3))


def external(f):
    secret = Path(f.filename).with_name('secret')
    secret.write_bytes(bytes(40 * 768))
    f.create_dataset('frames', (40, 16, 16, 3), np.uint8, external=[(str(secret), 0, 40 * 768)])


def virtual(f):
    layout = h5py.VirtualLayout((40, 16, 16, 3), np.uint8)
    layout[:] = h5py.VirtualSource('other.h5', 'frames', (40, 16, 16, 3))
    f.create_virtual_dataset('frames', layout)


def external_link(f):
    other = write(Path(f.filename).with_name('other.h5'), noise())
    f['frames'] = h5py.ExternalLink(other, 'frames')


def soft_link(f):
    f['x'] = noise()
    f['frames'] = h5py.SoftLink('/x')


def scaleoffset(f):
    f.create_dataset('frames', data=noise(), scaleoffset=0)


BLACK = np.zeros((400, 16, 16, 3), np.uint8)
STILL = np.concatenate([noise(100), np.repeat(noise(1), 120, 0)])
GREY = noise()[..., :1]
WRONG = dict(
    missing=(lambda path: None, ['no such file', 'data.py game']),
    directory=(lambda path: path.mkdir(), ['a directory']),
    empty=raw(b'', '0 bytes'),
    text=raw(b'hello\n' * 99, 'a text file'),
    mp4=raw(b'\0\0\0\x20ftypisom' + bytes(999), 'mp4', 'data.py video'),
    webm=raw(b'\x1aE\xdf\xa3' + bytes(999), 'webm', 'data.py video'),
    gif=raw(b'GIF89a' + bytes(999), 'gif', 'data.py video'),
    png=raw(b'\x89PNG\r\n' + bytes(999), 'png'),
    zeros=raw(bytes(9999), 'binary'),
    truncated=(truncated, ['truncated', '5000 bytes']),
    damaged=(damaged, ['damaged data in frames 5']),
    no_frames=built(images, 'no "frames"', 'images (40, 16, 16, 3)'),
    group=built(group, 'is a group', '0 (40, 16, 16, 3)'),
    floats=only(RNG.random((40, 16, 16, 3)).astype('f4'), 'float32', '* 255'),
    int64=only(noise().astype(int), 'int64', 'astype'),
    strings=only([b'a', b'b'], 'object'),
    channels_first=only(noise().transpose(0, 3, 1, 2), '(40, 3, 16, 16)', 'transpose(0, 2, 3, 1)'),
    stack=only(noise()[..., :1] // np.arange(1, 5, dtype=np.uint8), 'four grey moments'),
    dark=only(noise() % 2, 'no pixel is above 1', 'frames * 255'),
    grey=only(noise()[..., 0], '(40, 16, 16)', 'np.repeat'),
    grey1=only(GREY, '(40, 16, 16, 1)', 'np.repeat'),
    rgba=only(np.repeat(GREY, 4, -1), '(40, 16, 16, 4)', 'frames[..., :3]'),
    clips=only(noise().reshape(10, 4, 16, 16, 3), '(10, 4, 16, 16, 3)', 'long'),
    one_frame=only(noise(1), '(1, 16, 16, 3)', 'at least 2'),
    no_frame=only(noise(0), '(0, 16, 16, 3)', 'at least 2'),
    unwritten=built(unwritten, '150 chunks', 'never written'),
    unwritten_plain=built(unwritten_plain, 'never written'),
    absurd=built(absurd, 'declares 12,369,505,812,480 bytes'),
    external=built(external, 'external'),
    virtual=built(virtual, 'virtual'),
    external_link=built(external_link, 'link'),
    soft_link=built(soft_link, 'link'),
    other_filter=built(scaleoffset, 'filter 6', 'gzip'),
    black=only(BLACK, '256 of 256', 'same picture'),
    still=only(STILL, '120 of 220', 'same picture'),
    patches=only(noise(40, 60, 36), '36 wide and 60 high', 'patch_size=8', '32 or 40 wide',
                 '56 or 64 high', '[2, 3, 4, 6, 12]'),
    actions_short=beside(dict(actions=np.zeros(39, int)), '39 actions for 40', 'actions[-1:]'),
    actions_long=beside(dict(actions=np.zeros(41, int)), '41 actions for 40', 'actions[:-1]'),
    actions_other=beside(dict(actions=np.zeros(20, int)), '20 actions for 40', 'leave out'),
    actions_type=beside(dict(actions=np.full(40, 0.5)), 'actions float64 (40,) with fractions'),
    actions_rows=beside(dict(actions=np.full((40, 2), 3)), 'int64 (40, 2)', 'np.unique('),
    actions_far=beside(dict(actions=np.full((40, 2), 1e99)), 'up to 1e+99'),
    actions_negative=beside(dict(actions=np.full(40, -1)), 'negative', 'np.unique('),
    actions_before=beside(dict(actions=np.r_[-1, K[1:]]), 'the first is 0 (-1)', 'actions[1:]'),
    actions_nan=beside(dict(actions=np.full((40, 2), np.nan)), 'not finite', 'np.nan_to_num('),
    actions_scalar=beside(dict(actions=3), 'actions int64 ()', 'np.full('),
    actions_clips=beside(dict(actions=np.zeros((40, 2, 2))), '(40, 2, 2)', 'reshape('),
    actions_texts=beside(dict(actions=['up', 'left'] * 20), 'texts of any length', '"S")'),
    actions_fields=beside(dict(actions=np.zeros(40, [('up', '?'), ('camera', 'f4', 2)])),
                          'camera', 'np.column_stack([actions[name]'),
    actions_group=beside({'actions/up': K, 'actions/camera': np.zeros((40, 2))},
                         'a group holding camera (40, 2), up (40,)', 'np.column_stack('),
    actions_group_short=beside({'actions/up': K[1:], 'actions/left': K[1:]}, '39 actions for 40'),
    actions_link=beside(dict(actions=h5py.SoftLink('/frames')), '"actions" is a link'),
    starts_first=beside(dict(episode_starts=np.array([3, 9])), 'episode_starts [3, 9]', 'first 0'),
    starts_late=beside(dict(episode_starts=np.array([3, 9])), 'np.append(0, episode_starts)'),
    starts_order=beside(dict(episode_starts=np.array([0, 9, 5])), 'increasing'),
    starts_range=beside(dict(episode_starts=np.array([0, 41])), 'below 40'),
    starts_none=beside(dict(episode_starts=np.zeros(0, int)), 'episode_starts int64 (0,)'),
    names=beside(dict(actions=np.arange(40), attr_action_names=['a']), '1 action_names', '40'),
    fps=beside(dict(attr_fps=-1.0), 'fps = ', 'positive'),
    truth_length=beside({'truth/x': np.zeros(3)}, 'truth/x of shape (3,)', '(40,...)'),
    truth_link=beside(dict(truth=h5py.ExternalLink('other.h5', '/')), '"truth"'),
)


@pytest.mark.row(36)
@pytest.mark.parametrize('case', WRONG)
def test_refused(case, tmp_path):
    build, words = WRONG[case]
    path = tmp_path / 'wrong.h5'
    build(path)
    with pytest.raises(data.DataError) as e:
        data.load(path, patch_size=8)
    said = str(e.value)
    assert type(e.value) is data.DataError and e.value.exit_code == 3
    assert said.startswith(f'{path}: found ') and said.count('\n') == 2
    assert '\n  expected ' in said and '\n  cure: ' in said
    said = said.replace(str(path), '')  # whose name holds the case's
    for word in words:
        assert word in said, said
    assert not list(tmp_path.glob('*.npy')) and not list(tmp_path.glob('*.tmp*'))
