"""What a run has learned, loaded from its folder and adapted to a user's own data, for every adaptation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.configuration.test_build import CONF, build
from twmaml.adaptation.base import adapt, bind
from twmaml.api import load
from twmaml.configuration.composition import compose_configuration
from twmaml.storage.checkpoint import Checkpoint, Notes, pack, write
from twmaml.storage.metrics_file import Mark

ADAPTATIONS = sorted(path.stem for path in (CONF / "adaptation").iterdir())
SMALL = ("model.widths=[8]", "evaluation.cells=[2,2]", "evaluation.steps=1", "adaptation.steps=2")


@pytest.fixture(params=ADAPTATIONS)
def adaptation(request):
    return request.param


def test_a_loaded_run_adapts_as_its_adaptation_says(adaptation, tmp_path):
    overrides = (f"adaptation={adaptation}", *SMALL)
    learner = build(*overrides).learner
    # Of a network in the middle of training: everything that is learned has moved.
    moved = jax.tree.map(lambda p: p + 0.1 * jnp.cos(jnp.arange(p.size)).reshape(p.shape), learner.init(0).meta_params)
    state = learner.init(0)._replace(meta_params=moved)
    notes = Notes(5, 0, compose_configuration(overrides).config, {}, 1.0, Mark(0, ""), None)
    (tmp_path / "checkpoints").mkdir()
    write(tmp_path, Checkpoint(notes, {name: np.asarray(leaf) for name, leaf in pack(state).items()}), keep=1)

    trained = load(tmp_path)
    x = jnp.linspace(-4.0, 4.0, 10)[:, None]
    y, places = 2.0 * jnp.sin(x + 1.0), jnp.linspace(-3.0, 3.0, 7)[:, None]
    before, after = trained.predict(places), trained.adapt(x, y, steps=2)(places)
    assert after.shape == places.shape
    assert not np.allclose(before, after, atol=1e-4)

    def loss_of(predict, _):
        return jnp.mean((predict(x) - y) ** 2)

    fast = adapt(learner.adaptation, learner.model, moved, loss_of, jax.random.key(0), 2)
    expected = bind(learner.adaptation, learner.model, moved, fast)(places)
    np.testing.assert_allclose(after, expected, rtol=1e-5, atol=1e-6)
    loss = [jnp.mean((predict(x) - y) ** 2) for predict in (trained.predict, trained.adapt(x, y, steps=2))]
    if adaptation not in ("meta_sgd", "maml_pp", "meta_curvature"):  # whose moved rates may lead upwards
        assert loss[1] < loss[0]


def test_figures_show_what_is_learned_and_what_is_adapted_besides_weights(adaptation):
    learner = build(f"adaptation={adaptation}", *SMALL).learner
    meta_params = learner.init(0).meta_params
    learned = jax.tree.leaves(dict(learner.adaptation.learned(jax.tree.map(np.asarray, meta_params))))
    assert bool(learned) == (adaptation in ("meta_sgd", "maml_pp", "meta_curvature"))
    rate = {"meta_curvature": 1.0}.get(adaptation, 0.01)
    for array in learned:
        np.testing.assert_allclose(array, rate, rtol=1e-6)
    context = learner.adaptation.context(learner.adaptation.start(meta_params))
    assert (context is not None) == (adaptation == "cavia")


def test_contexts_are_those_of_the_evaluation_tasks():
    evaluation = build("adaptation=cavia", "adaptation.size=2", *SMALL).evaluation
    learner, fixed = evaluation.learner, evaluation.tasks()
    meta_params = learner.init(3).meta_params
    contexts = evaluation.contexts(meta_params, fixed)
    assert contexts is not None
    assert contexts.shape == (4, 2)
    episode, support, adapt_key, _ = learner.begin(fixed.keys[1], fixed.tasks[1], ())
    loss_of = learner.loss_of(episode, support)
    alone = adapt(learner.adaptation, learner.model, meta_params, loss_of, adapt_key, 2)
    np.testing.assert_allclose(contexts[1], alone, rtol=1e-4)
    assert build(*SMALL).evaluation.contexts(meta_params, fixed) is None
