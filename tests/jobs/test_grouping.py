"""Jobs that differ only in numbers which a program can be told."""

import json

from hypothesis import given
from hypothesis import strategies as st

from twmaml.jobs.grouping import divide

VALUES = st.sampled_from([0.1, 0.2, 0.3])
CONFIGS = st.fixed_dictionaries(
    {
        "steps": st.sampled_from([5, 6]),
        "adaptation": st.fixed_dictionaries(
            {"learning_rate": VALUES, "decay": VALUES, "steps": st.sampled_from([1, 2])}
        ),
        "optimizer": st.fixed_dictionaries({"learning_rate": VALUES | st.just({"init_value": 0.1})}),
        "task": st.fixed_dictionaries({"noise": VALUES}),
    }
)


@given(st.lists(CONFIGS, min_size=1, max_size=12))
def test_jobs_share_a_program_exactly_if_they_differ_in_its_arguments_only(configs):
    refused = "adaptation.decay"
    classes = divide(configs, configs, lambda _, others: {*others} - {refused})
    assert sorted(index for each in classes for index in each) == [*range(len(configs))]

    def constant(config):
        """What a program has as constants, if the inner learning rate and the optimiser's are its arguments."""
        rate = config["optimizer"]["learning_rate"]
        plain = {**config["adaptation"], "learning_rate": None}
        rest = config["steps"], plain, "?" if isinstance(rate, float) else rate, config["task"]
        return json.dumps(rest, sort_keys=True)

    for one in classes:
        assert len({constant(configs[i]) for i in one}) == 1
        for i, numbers in one.items():
            for key, number in numbers.items():
                part, name = key.split(".")
                assert configs[i][part][name] == number
        first = configs[min(one)]
        for i, numbers in one.items():  # whatever differs is among the numbers
            told = {"adaptation": dict(first["adaptation"]), "optimizer": dict(first["optimizer"])}
            for key, number in numbers.items():
                part, name = key.split(".")
                told[part][name] = number
            assert (told["adaptation"], told["optimizer"]) == (configs[i]["adaptation"], configs[i]["optimizer"])
    constants = [constant(configs[min(one)]) for one in classes]
    assert len({*constants}) == len(constants)
