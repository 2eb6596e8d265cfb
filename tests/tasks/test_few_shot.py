"""Episodes: classes, instances, labels, and what is done to the images of them."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure
from pydantic import ValidationError

from twmaml.errors import ConfigurationError
from twmaml.models.conv4 import Conv4
from twmaml.space.axis import Interval
from twmaml.tasks.few_shot import FewShot
from twmaml.tasks.images.base import Images
from twmaml.tasks.images.transforms import Jitter
from twmaml.types import Predict

SIZE, INSTANCES, CATEGORIES = 6, 7, {"a": 6, "b": 4, "c": 1}


class Numbered:
    """Images, of which the first two pixels tell the class and the instance."""

    size, channels, category = SIZE, 1, "letter"

    def __repr__(self):
        return "numbered images"

    def categories(self):
        return list(CATEGORIES)

    def load(self):
        categories = [name for name, n in CATEGORIES.items() for _ in range(n)]
        names = [f"{name}{i}" for name, n in CATEGORIES.items() for i in range(n)]
        counts = np.array([INSTANCES - k % 3 for k in range(len(names))], np.int32)
        pixels = np.zeros((len(names), INSTANCES, SIZE, SIZE, 1), np.uint8)
        for k, count in enumerate(counts):
            pixels[k, :count] = [self._image(10 * k + 5, j) for j in range(count)]
        return Images(names, categories, pixels, counts)

    def _image(self, number, instance):
        image = np.random.default_rng([number, instance]).integers(0, 255, (SIZE, SIZE, 1)).astype(np.uint8)
        image[0, 0], image[0, 1] = number, instance
        return image


def make_family(**changes) -> Any:
    return FewShot(**{"source": Numbered(), "ways": 4, **changes})


def identity(inputs):
    return inputs


def draw(family, task, key, shots=2, queries=3):
    """Class and instance of each image of an episode, [ways, n, 2]."""
    data = jax.tree.map(jnp.asarray, family.data())

    @jax.jit
    @jax.vmap
    def of(key):
        episode = family.episode(key, jnp.asarray(task, jnp.float32), data)
        return [family.collect(key, episode, part, identity, n) for part, n in (("support", shots), ("query", queries))]

    parts = of(jax.random.split(key, 40))
    numbers = [np.round(np.asarray(part.images)[:, :, 0, :2, 0] * 255).astype(int) for part in parts]
    return [n.reshape(40, family.ways, -1, 2) for n in numbers], [np.asarray(part.labels) for part in parts]


@pytest.mark.parametrize(("task", "ways"), [(0.0, 2), (1.0, 4), (2.0, 11)])
def test_no_class_and_no_image_is_twice_in_an_episode(task, ways):
    (support, query), labels = draw(make_family(ways=ways), [task], jax.random.key(ways))
    for shown, told in zip((support, query), labels, strict=True):
        assert (shown[..., 0] == shown[:, :, :1, 0]).all()  # a row is one class
        assert (told == np.repeat(np.arange(ways), shown.shape[2])).all()
    assert (support[:, :, 0, 0] == query[:, :, 0, 0]).all()
    for of_task in support[:, :, 0, 0]:
        assert len({*of_task}) == ways
    for of_task in np.concatenate([support, query], axis=2).reshape(len(support), -1, 2):
        assert len({*map(tuple, of_task)}) == len(of_task)


@pytest.mark.parametrize(("task", "ways", "inside"), [(0.0, 4, 4), (1.0, 4, 4), (1.0, 6, 4), (2.0, 3, 1)])
def test_classes_are_of_the_category_and_others_only_fill_up(task, ways, inside):
    (support, _), _ = draw(make_family(ways=ways), [task], jax.random.key(0))
    starts = np.cumsum([0, *CATEGORIES.values()])
    classes = (support[:, :, 0, 0] - 5) // 10
    own = (classes >= starts[int(task)]) & (classes < starts[int(task) + 1])
    assert (own.sum(axis=1) == inside).all()
    if inside < ways:  # a label says nothing of who fills up
        assert own.any(axis=0).all()


def test_every_class_and_every_label_is_drawn_equally_often():
    family = make_family(ways=4)
    data = jax.tree.map(jnp.asarray, family.data())
    keys = jax.random.split(jax.random.key(1), 6000)
    classes = np.asarray(jax.jit(jax.vmap(lambda k: family.episode(k, jnp.zeros(1), data).classes))(keys))
    counts = np.array([[(classes[:, label] == c).sum() for c in range(6)] for label in range(4)])
    assert counts.sum() == classes.size  # of the first category alone
    expected = 6000 / 6
    assert ((counts - expected) ** 2 / expected).sum() < 45  # chi-square of 20 degrees of freedom: p = .001


def test_pooled_classes_are_of_all_categories():
    (support, _), _ = draw(make_family(pooled=True, ways=11), [0.0], jax.random.key(0), shots=1, queries=1)
    assert all(len({*of_task}) == 11 for of_task in support[:, :, 0, 0])
    assert make_family(pooled=True).grid.shape == (1,)


def test_a_turned_class_is_the_image_turned_and_all_its_images_are_turned_alike():
    plain, turned = make_family(), make_family(rotations=True)
    data = jax.tree.map(jnp.asarray, plain.data())
    seen = set()
    for seed in range(6):
        key = jax.random.key(seed)
        episode = turned.episode(key, jnp.zeros(1), data)
        seen |= {*np.asarray(episode.turns).tolist()}
        before = plain.collect(key, episode, "query", identity, 2).images
        after = turned.collect(key, episode, "query", identity, 2).images
        for i, (one, other) in enumerate(zip(np.asarray(before), np.asarray(after), strict=True)):
            expected = np.rot90(one, -int(episode.turns[i // 2]))
            np.testing.assert_allclose(other, expected, atol=1e-6)
    assert seen == {0, 1, 2, 3}


def test_jitter_of_nothing_changes_nothing_and_a_shift_stays_in_its_range():
    data = jax.tree.map(jnp.asarray, make_family().data())
    still, plain = make_family(jitter=Jitter(0.0, 0.0, 0.0)), make_family()
    key = jax.random.key(3)
    episode = plain.episode(key, jnp.zeros(1), data)
    before, after = (f.collect(key, episode, "support", identity, 2).images for f in (plain, still))
    np.testing.assert_allclose(after, before, atol=1e-5)
    dot = jnp.zeros((SIZE, SIZE, 1)).at[2, 3].set(255).astype(jnp.uint8)
    dots = data._replace(pixels=jnp.broadcast_to(dot, data.pixels.shape))
    shifted = make_family(jitter=Jitter(0.0, 0.0, 1.0)).collect(
        key, episode._replace(images=dots), "query", identity, 2
    )
    images = np.asarray(shifted.images)[..., 0]
    np.testing.assert_allclose(images.sum(axis=(1, 2)), 1, atol=1e-5)  # of one pixel nothing is lost by a shift
    rows, columns = ((images.sum(axis=2 - i) * np.arange(SIZE)).sum(axis=1) for i in range(2))
    assert (np.abs(rows - 2) <= 1 + 1e-5).all()
    assert (np.abs(columns - 3) <= 1 + 1e-5).all()
    assert np.std(rows) > 0.2


def test_noise_has_the_standard_deviation_of_the_task():
    family = make_family(noise=Interval(0.0, 1.0, 4))
    data = jax.tree.map(jnp.asarray, family.data())
    key = jax.random.key(0)

    def images(noise):
        episode = family.episode(key, jnp.array([0.0, noise]), data)
        return np.asarray(family.collect(key, episode, "query", identity, 3).images)

    assert np.std(images(0.6) - images(0.0)) == pytest.approx(0.6, rel=0.1)
    assert family.grid.shape == (3, 4)
    assert not family.grid.continuous


def test_the_order_of_the_labels_leaves_the_loss_as_it_is():
    family, model = make_family(noise=0.1), Conv4(filters=4, layers=2, outputs=4)
    data, key = jax.tree.map(jnp.asarray, family.data()), jax.random.key(0)
    episode = family.episode(key, jnp.zeros(1), data)
    params = model.init(key, family.example_input)
    order = np.array([2, 0, 3, 1])
    examples = family.collect(key, episode, "support", identity, 2)
    renamed = examples._replace(labels=jnp.asarray(np.argsort(order))[examples.labels])
    head = params.head._replace(weight=params.head.weight[:, order], bias=params.head.bias[order])
    one = family.outcome(partial(model.apply, params), examples)
    other = family.outcome(partial(model.apply, params._replace(head=head)), renamed)
    np.testing.assert_allclose(one.loss, other.loss, rtol=1e-5)
    assert one.metrics["accuracy"] == other.metrics["accuracy"]


def test_perfect_and_blind_predictions_have_the_outcomes_that_they_must_have():
    family = make_family()
    data, key = jax.tree.map(jnp.asarray, family.data()), jax.random.key(0)
    examples = family.collect(key, family.episode(key, jnp.zeros(1), data), "query", identity, 3)
    sure = family.outcome(lambda _: 50 * jax.nn.one_hot(examples.labels, 4), examples)
    blind = family.outcome(lambda _: jnp.zeros((12, 4)), examples)
    assert (float(sure.score), float(sure.metrics["accuracy"])) == (0.0, 1.0)
    assert float(blind.loss) == pytest.approx(np.log(4))
    with pytest.raises(ValueError, match="4 outputs"):
        family.outcome(lambda _: jnp.zeros((12, 5)), examples)


def test_more_examples_than_there_are_are_refused_with_the_class():
    family = make_family()
    data = family.data()
    family.check_data(data, 2, 3)
    with pytest.raises(ValueError, match=r"need 6 images of a class; a2 has 5"):
        family.check_data(data, 2, 4)
    with pytest.raises(ConfigurationError, match=r"task\.ways=12: there are 11 classes"):
        make_family(ways=12).data()


def test_images_of_ones_own_are_support_data():
    family = make_family(mean=[0.5], std=[0.25])
    images, labels = np.random.default_rng(0).random((4, SIZE, SIZE)), [0, 1, 2, 3]
    support = family.support_of(images, labels)
    np.testing.assert_allclose(support.images[..., 0], (images - 0.5) / 0.25, rtol=1e-5, atol=1e-6)
    wrong = [(images[:, :5], labels), (images, labels[:3]), (images[0], labels), (images[:0], [])]
    wrong += [(images, each) for each in ([1, 2, 3, 4], [0, -1, 2, 3], [0.0, 1.0, 2.0, 3.0])]
    for x, y in [*wrong, ((255 * images).astype(np.uint8), labels)]:
        with pytest.raises(ValueError, match=r"must "):
            family.support_of(x, y)


def test_grey_takes_the_mean_of_three_colours():
    one, three = make_family(mean=[0.4], std=[0.2]), make_family(mean=[0.3, 0.4, 0.5], std=[0.1, 0.2, 0.3])
    images = np.random.default_rng(0).random((4, SIZE, SIZE))
    np.testing.assert_allclose(one.inputs_of(images), three.inputs_of(images), rtol=1e-6)


def test_classes_that_training_has_are_told_by_their_images():
    family = make_family()
    data = family.data()
    others = data._replace(pixels=255 - data.pixels)
    mixed = data._replace(pixels=np.concatenate([data.pixels[:4], others.pixels[4:]]))
    assert family.relate_data(data, data) == "classes seen in training"
    assert family.relate_data(others, data) == "classes not seen in training"
    assert family.relate_data(mixed, data) == "4 of 11 classes seen in training"
    assert family.data().pixels is data.pixels  # loaded once


def test_a_picture_shows_no_support_image_as_a_query():
    family = make_family()
    data, key = jax.tree.map(jnp.asarray, family.data()), jax.random.key(0)
    data = data._replace(counts=jnp.full_like(data.counts, 3))
    episode = family.episode(key, jnp.zeros(1), data)
    support = family.collect(key, episode, "support", identity, 2)
    picture = family.picture(
        episode, support, lambda observe: observe(lambda inputs: jnp.zeros((len(inputs), 4)))[None]
    )
    shown = [np.round(255 * np.asarray(picture[f"{part}_images"])[:, :, 0, 1, 0]) for part in ("support", "query")]
    for of_support, of_query in zip(*shown, strict=True):
        assert not {*of_support} & {*of_query}
        assert len({*of_query}) == 1


@pytest.mark.parametrize("ways", [3, 11])
def test_a_picture_shows_every_class_and_frames_what_is_told_wrong(ways):
    family = make_family(ways=ways, noise=0.1)
    data, key = jax.tree.map(jnp.asarray, family.data()), jax.random.key(0)
    episode = family.episode(key, jnp.zeros(1), data)
    support = family.collect(key, episode, "support", identity, 2)

    def path(observe):
        def predicts(label) -> Predict:
            return lambda inputs: jnp.broadcast_to(jax.nn.one_hot(label, ways), (len(inputs), ways))

        return jnp.stack([observe(predicts(label)) for label in (1, 2)])

    picture = jax.tree.map(np.asarray, family.picture(episode, support, path))
    assert picture["support_images"].shape == (ways, 2, SIZE, SIZE, 1)
    assert picture["query_images"].min() >= 0
    assert picture["query_images"].max() <= 1
    axes = Figure().add_subplot()
    family.draw_picture(axes, picture)
    assert len(axes.images) == picture["support_images"].shape[:2][1] * ways + picture["query_images"].shape[1] * ways
    colours = [line.get_color() for line in axes.lines]
    assert colours.count("#009E73") == picture["query_images"].shape[1]  # of class 2, which all are taken for
    assert len(colours) == picture["query_images"].shape[1] * ways


@pytest.mark.parametrize(
    "changes",
    [
        {"ways": 1},
        {"noise": -0.1},
        {"noise": Interval(-0.1, 1.0, 3)},
        {"source": 3},
        {"std": [0.0]},
        {"mean": [0.1] * 2},
    ],
)
def test_a_wrong_argument_is_refused(changes):
    with pytest.raises(ValidationError):
        make_family(**changes)
