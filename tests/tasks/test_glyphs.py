"""The rendered characters."""

import itertools

import numpy as np
import pytest
from pydantic import ValidationError

from twmaml.errors import ConfigurationError
from twmaml.tasks.images import glyphs
from twmaml.tasks.images.glyphs import ALPHABETS, Glyphs


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def correlations(images):
    flat = images.reshape(len(images), -1).astype(float)
    flat -= flat.mean(axis=1, keepdims=True)
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    return flat @ flat.T - 2 * np.eye(len(flat))


def test_characters_are_distinct_classes_of_distinct_instances():
    images = Glyphs([*ALPHABETS]).load()
    assert images.counts.min() >= 4
    assert len({*images.names}) == len(images.names) == len(images.pixels)
    assert correlations(images.pixels[:, 0]).max() <= 0.92 + 1e-6
    for row, count in zip(images.pixels, images.counts, strict=True):
        assert row[:count].any(axis=(1, 2, 3)).all()
        assert not row[count:].any()
        assert correlations(row[:count]).max() <= 0.995 + 1e-6
    for name in ALPHABETS:
        assert 10 <= images.categories.count(name) <= 64


def test_alphabets_are_chosen_in_their_order_and_share_nothing():
    chosen = ["Greek", "Latin", "Hebrew"]
    source = Glyphs(chosen)
    assert source.categories() == chosen
    assert [*dict.fromkeys(source.load().categories)] == chosen
    for one, other in itertools.combinations(chosen, 2):
        assert not {*Glyphs([one]).load().names} & {*Glyphs([other]).load().names}


def test_more_instances_leave_fewer_classes():
    assert Glyphs(["Lao"], instances=8).load().counts.min() == 8
    assert len(Glyphs(["Lao"], instances=8).load().names) < len(Glyphs(["Lao"]).load().names)
    with pytest.raises(ConfigurationError, match=r"no character of Arabic, Hebrew has so many"):
        Glyphs(["Lao", "Hebrew", "Arabic"], instances=8).load()


def test_a_cache_that_is_damaged_or_cannot_be_written_changes_nothing(tmp_path, monkeypatch):
    first = Glyphs(["Greek"]).load()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    np.testing.assert_array_equal(first.pixels, Glyphs(["Greek"]).load().pixels)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    Glyphs(["Greek"]).load()
    (kept,) = (tmp_path / "twmaml/glyphs").iterdir()
    kept.with_name("of-before.npz").write_text("")
    whole = kept.read_bytes()
    kept.write_bytes(whole[: len(whole) // 2])
    np.testing.assert_array_equal(first.pixels, Glyphs(["Greek"]).load().pixels)
    assert [*kept.parent.iterdir()] == [kept]
    monkeypatch.setattr(glyphs, "_render", lambda _: pytest.fail("rendered although it is kept"))
    np.testing.assert_array_equal(first.pixels, Glyphs(["Greek"]).load().pixels)


@pytest.mark.parametrize("changes", [{"alphabets": []}, {"alphabets": ["Klingon"]}, {"alphabets": ["Lao", "Lao"]}])
def test_wrong_alphabets_are_refused(changes):
    with pytest.raises(ValidationError):
        Glyphs(**changes)
