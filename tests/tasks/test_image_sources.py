import errno
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from twmaml.errors import ConfigurationError
from twmaml.tasks.images import reading
from twmaml.tasks.images.base import ImageSource
from twmaml.tasks.images.image_folder import ImageFolder
from twmaml.tasks.images.omniglot import Omniglot

SETS = ["background", "evaluation"]
ALPHABETS = {"background": {"Greek": 4, "Latin": 3}, "evaluation": {"Korean": 5, "Latin": 3}}


def refusal(call):
    """The message, which must be one line."""
    with pytest.raises(ConfigurationError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path, **options)


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-30])


@pytest.fixture
def omniglot(tmp_path):
    """Two sets that share Latin, whose drawings differ in them; ink is 0."""
    generator = np.random.default_rng(0)
    for name, alphabets in ALPHABETS.items():
        for alphabet, characters in alphabets.items():
            for character in range(1, characters + 1):
                for drawer in (2, 1, 3):
                    pixels = 255 * generator.integers(0, 2, (28, 28))
                    save(tmp_path / name / alphabet / f"character{character:02}" / f"{character}_{drawer}.png", pixels)
    return tmp_path


def test_an_omniglot_drawing_is_the_file_inverted(omniglot):
    source = Omniglot(str(omniglot), ["background"])
    assert isinstance(source, ImageSource)
    images = source.load()
    assert images.pixels.shape == (7, 3, 28, 28, 1)
    assert images.counts.tolist() == [3] * 7
    assert images.names[4] == "Latin/character01"
    assert [*images.categories] == ["Greek"] * 4 + ["Latin"] * 3
    for drawer in (1, 2, 3):
        file = np.asarray(Image.open(omniglot / "background/Latin/character01" / f"1_{drawer}.png"))
        np.testing.assert_array_equal(images.pixels[4, drawer - 1, ..., 0], 255 - file)


def test_padding_is_zero(omniglot):
    (omniglot / "background/Latin/character01/1_2.png").unlink()
    images = Omniglot(str(omniglot), ["background"]).load()
    assert images.counts.tolist() == [3, 3, 3, 3, 2, 3, 3]
    assert not images.pixels[4, 2].any()
    assert images.pixels[4, 1].any()


def test_drawings_are_scaled(tmp_path):
    for drawer in range(2):
        save(tmp_path / f"set/Greek/character01/{drawer}.png", np.kron([[0, 255], [255, 255]], np.ones((50, 50))))
    image = Omniglot(str(tmp_path), ["set"], size=10).load().pixels[0, 0, ..., 0]
    assert image.shape == (10, 10)
    assert image[:4, :4].min() > 250
    assert image[6:].max() < 5


def test_a_zip_file_is_as_good_as_its_folder(omniglot):
    source = Omniglot(str(omniglot), SETS)
    before = source.load()
    for name in SETS:
        with zipfile.ZipFile(omniglot / f"{name}.zip", "w") as archive:
            for path in sorted((omniglot / name).rglob("*"), reverse=True):
                archive.write(path, path.relative_to(omniglot))
            for folder in (name, f"__MACOSX/{name}"):
                archive.writestr(f"{folder}/Latin/character01/._1_1.png", b"")
        shutil.rmtree(omniglot / name)
    after = source.load()
    assert (after.names, after.categories) == (before.names, before.categories)
    np.testing.assert_array_equal(after.pixels, before.pixels)
    np.testing.assert_array_equal(after.counts, before.counts)


def test_an_alphabet_of_two_sets_is_one_and_its_characters_are_those_of_the_first(omniglot):
    source = Omniglot(str(omniglot), SETS)
    assert source.categories() == ["Greek", "Korean", "Latin"]
    images = source.load()
    assert len({*images.names}) == len(images.names) == 4 + 5 + 3
    assert images.counts.tolist() == [3] * 12
    assert [*dict.fromkeys(images.categories)] == source.categories()
    first, second = (Omniglot(str(omniglot), [name], ["Latin"]).load().pixels for name in SETS)
    np.testing.assert_array_equal(images.pixels[-3:], first)
    assert (first != second).any()


def test_alphabets_are_used_in_the_order_given(omniglot):
    source = Omniglot(str(omniglot), SETS, ["Latin", "Greek"])
    assert source.categories() == ["Latin", "Greek"]
    assert [*source.load().categories] == ["Latin"] * 3 + ["Greek"] * 4


def test_shuffled_parts_are_disjoint_and_cover_everything(omniglot):
    everything = Omniglot(str(omniglot), SETS).load().names
    parts = [[*Omniglot(str(omniglot), SETS, shuffled=part).load().names] for part in ([0, 5], [5, 8], [8, 12])]
    assert [len(part) for part in parts] == [5, 3, 4]
    assert sorted([*parts[0], *parts[1], *parts[2]]) == sorted(everything)
    assert parts[0] == [*Omniglot(str(omniglot), SETS[::-1], shuffled=[0, 5]).load().names]
    assert parts[0] != [*everything[:5]]


def test_a_list_of_classes_chooses_characters(omniglot):
    listed = omniglot / "train.txt"
    lines = [
        f"{name}/rot{turn:03}" for name in ("Latin/character02", "Greek/character01") for turn in (0, 90, 180, 270)
    ]
    listed.write_text("\n".join([*lines, "", " Korean/character05 "]))
    names = ["Greek/character01", "Korean/character05", "Latin/character02"]
    assert [*Omniglot(str(omniglot), SETS, classes=str(listed)).load().names] == names
    assert Omniglot(str(omniglot), SETS, ["Latin"], classes=str(listed)).categories() == ["Latin"]


def test_construction_reads_nothing():
    source = Omniglot("/nowhere", ["background"])
    assert (source.size, source.channels, source.category) == (28, 1, "alphabet")
    folder = ImageFolder("/nowhere", "train", 84, True)
    assert (folder.size, folder.channels, folder.category) == (84, 3, "class")
    assert isinstance(source, ImageSource)
    assert isinstance(folder, ImageSource)


@pytest.mark.parametrize("shuffled", [[1], [0, 1, 2], [3, 3], [-1, 2], ["a", "b"]])
def test_shuffled_is_a_start_and_a_stop(shuffled):
    with pytest.raises(ValueError, match="shuffled"):
        Omniglot("/nowhere", ["background"], shuffled=shuffled)


def test_refusals_of_omniglot(omniglot):
    def message(*sets, data_dir=omniglot, **arguments):
        return refusal(Omniglot(str(data_dir), sets or SETS, **arguments).categories)

    assert "data_dir=/nowhere: must be a folder that holds background.zip or background/" in message(
        data_dir="/nowhere"
    )
    assert "must be a folder that holds small1.zip or small1/" in message("small1")
    (omniglot / "empty").mkdir()
    assert "<alphabet>/<character>/*.png. There is none" in message("empty")
    assert "alphabets: Klingon, Latein must be among" in message(alphabets=["Greek", "Latein", "Klingon"])
    assert "shuffled=[8,13]: there are 12 characters in background, evaluation" in message(shuffled=[8, 13])
    listed = omniglot / "list.txt"
    assert f"classes={listed}: must be a text file" in message(classes=str(listed))
    listed.write_bytes(b"\xff\xfe\x00")
    assert f"classes={listed}: must be a text file" in message(classes=str(listed))
    listed.write_text("\n\n")
    assert f"classes={listed}: must name a class a line" in message(classes=str(listed))
    listed.write_text("Greek/character01\nGreek/character99")
    assert f"classes={listed}: Greek/character99 must be a class" in message(classes=str(listed))
    listed.write_text("Greek/character01")
    assert "no character is left" in message(classes=str(listed), alphabets=["Latin"])


def test_damaged_files_of_omniglot_are_named(omniglot):
    drawing = omniglot / "background/Latin/character02/2_3.png"
    cut_off(drawing)
    source = Omniglot(str(omniglot), ["background"])
    assert f"cannot read {drawing}: it is damaged" in refusal(source.load)
    (omniglot / "evaluation.zip").write_bytes(b"PK" + bytes(100))
    assert f"cannot read {omniglot / 'evaluation.zip'}: it is damaged, or no zip file" in refusal(
        Omniglot(str(omniglot), ["evaluation"]).categories
    )
    with zipfile.ZipFile(omniglot / "background.zip", "w") as archive:
        for path in sorted((omniglot / "background").rglob("*")):
            archive.write(path, path.relative_to(omniglot))
        start = archive.getinfo("background/Greek/character03/3_1.png").header_offset
    content = bytearray((omniglot / "background.zip").read_bytes())
    content[start + 90 : start + 120] = bytes(30)
    (omniglot / "background.zip").write_bytes(content)
    member = omniglot / "background.zip/background/Greek/character03/3_1.png"
    assert f"cannot read {member}: it is damaged" in refusal(source.load)


def fill(folder, classes, instances=2, level=100, suffix="png"):
    for i, name in enumerate(classes):
        for instance in range(instances):
            save(folder / name / f"{instance}.{suffix}", np.full((6, 6, 3), level + 10 * i + instance))


def source_of(folder, split="train", size=6, colour=True, **arguments):
    return ImageFolder(str(folder), split, size, colour, **arguments)


def test_a_folder_of_classes(tmp_path):
    fill(tmp_path / "train", ["dog", "cat"], 3)
    (tmp_path / "train/cat/2.png").unlink()
    (tmp_path / "train/cat/notes.txt").write_text("no image")
    (tmp_path / "train/cat/.hidden.png").write_text("no image")
    (tmp_path / "train/labels.csv").write_text("no image")
    (tmp_path / "train/.cache").mkdir()
    source = source_of(tmp_path)
    assert (source.category, source.categories()) == ("class", ["cat", "dog"])
    images = source.load()
    assert (images.names, images.categories) == (["cat", "dog"], ["cat", "dog"])
    assert images.pixels.shape == (2, 3, 6, 6, 3)
    assert images.counts.tolist() == [2, 3]
    assert images.pixels.mean((2, 3, 4)).tolist() == [[110, 111, 0], [100, 101, 102]]
    assert images.pixels[0, :2].std((1, 2)).max() == 0


def test_groups_are_categories(tmp_path):
    fill(tmp_path / "train/pets", ["dog", "cat"])
    fill(tmp_path / "train/birds", ["owl", "cat"], 4, suffix="JPG")
    source = source_of(tmp_path)
    assert (source.category, source.categories()) == ("group", ["birds", "pets"])
    images = source.load()
    assert images.names == ["birds/cat", "birds/owl", "pets/cat", "pets/dog"]
    assert images.categories == ["birds", "birds", "pets", "pets"]
    assert images.counts.tolist() == [4, 4, 2, 2]


def test_a_list_of_classes_chooses_folders(tmp_path):
    fill(tmp_path / "train/pets", ["dog", "cat"])
    fill(tmp_path / "train/birds", ["owl"])
    listed = tmp_path / "list.txt"
    listed.write_text("pets/cat\n")
    source = source_of(tmp_path, classes=str(listed))
    assert source.load().names == ["pets/cat"]
    assert source.categories() == ["pets"]
    listed.write_text("pets/cow\n")
    assert f"classes={listed}: pets/cow must be a class" in refusal(source.categories)


def decoded(path, size, channels):
    return reading.decode(reading.Encoded(str(path), path.read_bytes), size, channels)


def test_an_image_is_cut_around_its_centre_and_scaled(tmp_path):
    stripes = np.zeros((8, 24, 3), np.uint8)
    stripes[:, 8:12], stripes[:, 12:16] = (200, 0, 0), (0, 100, 0)
    for name, pixels in (("wide", stripes), ("tall", stripes.transpose(1, 0, 2))):
        save(tmp_path / f"{name}.png", pixels)
    for size in (8, 40):
        wide, tall = (decoded(tmp_path / f"{name}.png", size, 3) for name in ("wide", "tall"))
        assert wide.shape == (size, size, 3)
        np.testing.assert_array_equal(tall, wide.transpose(1, 0, 2))
        red, green = wide[:, size // 4], wide[:, -size // 4]
        assert np.abs(red - np.array([200.0, 0, 0])).max() < 30
        assert np.abs(green - np.array([0, 100.0, 0])).max() < 30


def test_modes_of_files(tmp_path):
    path = tmp_path / "image.png"
    save(path, np.full((4, 4, 3), (0, 200, 0)))
    assert decoded(path, 4, 1).tolist() == np.full((4, 4, 1), 117).tolist()  # the luminance of green
    save(path, np.full((4, 4), 77))
    assert decoded(path, 4, 3).tolist() == np.full((4, 4, 3), 77).tolist()
    Image.fromarray(np.full((4, 4), 0x4D00, np.uint16)).save(path)
    assert decoded(path, 4, 1).tolist() == np.full((4, 4, 1), 0x4D).tolist()
    save(path, np.full((4, 4, 4), (10, 10, 10, 0)))
    assert decoded(path, 4, 1).tolist() == np.full((4, 4, 1), 255).tolist()
    palette = Image.new("L", (4, 4), 10).convert("P")
    palette.save(path, transparency=bytes([255] * 256))
    assert decoded(path, 4, 3).tolist() == np.full((4, 4, 3), 10).tolist()
    Image.new("CMYK", (4, 4)).save(path, "JPEG")
    assert decoded(path, 4, 3).min() == 255


def test_refusals_of_an_image_folder(tmp_path):
    def message(part="load", **arguments):
        return refusal(getattr(source_of(tmp_path, **arguments), part))

    nowhere = source_of("/nowhere")
    assert "data_dir=/nowhere: must be a folder with a folder for each split" in refusal(nowhere.categories)
    assert f"split=train: must be a folder in {tmp_path}. There is none" in message("categories")
    (tmp_path / "train").mkdir()
    fill(tmp_path / "val", ["cow", "pig"])
    fill(tmp_path / "test", ["hen", "cow"])
    assert "split=tset: must be a folder in" in message("categories", split="tset")
    assert "There is test, train, val" in message("categories", split="tset")
    assert f"{tmp_path / 'train'} must hold a folder of images for each class" in message("categories")
    assert "Got cow in val and in test" in message("categories", split="val")
    fill(tmp_path / "train", ["cat"], 1)
    assert f"{tmp_path / 'train/cat'} must hold at least 2 images" in message()
    fill(tmp_path / "train", ["cat", "dog"])
    broken = tmp_path / "train/dog/1.png"
    for damage in (cut_off, lambda path: path.write_text("no image"), lambda path: path.write_bytes(b"")):
        damage(broken)
        assert f"cannot read {broken}: it is damaged" in message()


@pytest.mark.parametrize(
    ("folders", "image", "expected"),
    [
        (["cat", "dog"], "extra.png", "train must hold folders or images. Got both: cat, extra.png"),
        (["pets/cat", "pets/dog"], "pets/extra.png", "pets must hold folders or images. Got both: cat, extra.png"),
        (["cat", "dog"], "dog/sub/extra.png", "dog must hold folders or images. Got both: sub, 0.png"),
        (["cat", "pets/dog"], "cat/2.png", "pets must hold images of a class, as others do. Got a folder dog"),
        (["pets/dog", "rat"], "rat/2.png", "rat must hold a folder of images for each class. Got none"),
        (["a/b/c"], "a/b/c/2.png", "b must hold images of a class, as others do. Got a folder c"),
    ],
)
def test_folders_are_all_classes_or_all_groups(tmp_path, folders, image, expected):
    fill(tmp_path / "train", folders)
    save(tmp_path / "train" / image, np.zeros((6, 6)))
    assert expected in refusal(source_of(tmp_path).load)


def test_only_the_usual_splits_must_be_apart(tmp_path):
    for split in ("train", "trainval", "mine"):
        fill(tmp_path / split, ["cat"])
    assert source_of(tmp_path).categories() == source_of(tmp_path, "trainval").categories() == ["cat"]


def test_what_may_not_be_read_is_named(tmp_path, monkeypatch):
    fill(tmp_path / "train", ["cat"])
    source, forbidden = source_of(tmp_path), tmp_path / "train/cat/1.png"
    read_bytes, scandir = Path.read_bytes, os.scandir

    def deny(path):
        if path == forbidden:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", lambda path: deny(path) or read_bytes(path))
    assert f"cannot read {forbidden}: Permission denied" in refusal(source.load)
    forbidden = tmp_path / "train/cat"
    monkeypatch.setattr(os, "scandir", lambda path: deny(path) or scandir(path))
    assert f"cannot list {forbidden} (Permission denied)" in refusal(source.load)


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_is_shown_in_a_terminal_only(tmp_path, monkeypatch, capsys, terminal):
    fill(tmp_path / "train", ["cat"])
    monkeypatch.setattr("rich.console.Console.is_terminal", terminal)
    source_of(tmp_path).load()
    out, err = capsys.readouterr()
    assert out == ""
    assert "reads the images" in err if terminal else err == ""
