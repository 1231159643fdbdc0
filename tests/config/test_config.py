import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rjem_cli.config.common import DATASETS, DEFAULT_PRESETS, OWN_IMAGES_PRESET, check_radius
from rjem_cli.config.fields import flag_name, format_epsilon, given_flags, parse_epsilon
from rjem_cli.config.scoring import CompareConfig, EvalConfig
from rjem_cli.config.sources import (
    ConfigSource,
    environment_source,
    locate,
    parse_mapping,
    preset_for,
    preset_names,
    preset_source,
    resolve,
    unknown_variables,
)
from rjem_cli.config.training import TrainConfig
from rjem_cli.errors import ConfigError, OptionError


def test_fractions_are_pixel_units_and_plain_numbers_are_in_the_named_space():
    assert parse_epsilon("8/255", "model") == parse_epsilon("8/255", "pixel") == pytest.approx(16 / 255)
    assert parse_epsilon("0.1", "model") == 0.1
    assert parse_epsilon(0.1, "pixel") == 0.2
    assert format_epsilon(0.1, "linf") == "0.1 = 12.75/255"
    assert format_epsilon(1, "l2") == "1 = 0.5 in [0, 1]"


@given(st.floats(0, 16))
def test_both_units_are_the_same_radius(eps):
    assert parse_epsilon(f"{eps / 2 * 255!r}/255", "model") == pytest.approx(eps)


def test_text_becomes_the_declared_type():
    config = TrainConfig(lr="1e-3", steps="500", flip="no", run=None, seed="3")
    assert (config.lr, config.steps, config.flip, config.seed) == (0.001, 500, False, 3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"adv_eps": -1}, "--adv-eps -1 is too small; give 0 or more"),
        ({"adv_eps": "a/b"}, "--adv-eps 'a/b': give a number such as 0.1, or pixel units such as 8/255"),
        ({"adv_eps": "nan"}, "--adv-eps nan: give a finite number"),
        ({"lr": "fast"}, "--lr 'fast': give a number"),
        ({"lr": 0}, "--lr 0 is too small; give more than 0"),
        ({"steps": 2.5}, "--steps 2.5: give a whole number"),
        ({"steps": True}, "--steps True: give a whole number"),
        ({"flip": "perhaps"}, "--flip 'perhaps': give true or false"),
        ({"dataset": "cifar11"}, "--dataset 'cifar11' is unknown; did you mean cifar10"),
        ({"depth": 12}, "--depth 12: a WRN's depth is 6k \\+ 4; give 10 or 16"),
        ({"px_weight": 0, "ce_weight": 0}, "leave nothing to train"),
        ({"test_data": "x"}, "--test-data needs --data"),
        ({"seed": "1e400"}, "--seed '1e400': give a whole number"),
    ],
)
def test_an_invalid_value_is_reported_with_its_flag_and_the_remedy(values, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**values)


def test_an_unknown_key_gets_the_nearest_name():
    with pytest.raises(ConfigError, match=r"unknown key 'adv_epz'.*did you mean adv_eps"):
        TrainConfig.from_dict({"adv_epz": 1})


@settings(deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["adv_eps", "steps", "lr", "flip", "dataset", "seed"]), st.text() | st.floats() | st.integers()
    )
)
def test_any_value_is_accepted_or_named_in_one_error(values):
    try:
        TrainConfig(**values)
    except ConfigError as error:
        assert str(error).startswith("--")


def test_the_strongest_source_wins_and_each_value_knows_its_origin():
    sources = [
        ConfigSource("preset p", {"lr": 0.2, "steps": 5}),
        ConfigSource("f.yaml", {"steps": 6}),
        ConfigSource("flag", {"lr": "0.3"}),
    ]
    resolved = resolve(TrainConfig, sources)
    assert (resolved.config.lr, resolved.config.steps) == (0.3, 6)
    assert (resolved.origins["lr"], resolved.origins["steps"]) == ("flag", "f.yaml")


def test_the_pixel_space_of_flags_leaves_preset_radii_alone():
    resolved = resolve(
        TrainConfig, [ConfigSource("preset p", {"attack_eps": 0.5}), ConfigSource("flag", {"adv_eps": "0.1"}, "pixel")]
    )
    assert (resolved.config.attack_eps, resolved.config.adv_eps) == (0.5, 0.2)


def test_an_error_names_a_value_as_the_source_that_it_came_from_does():
    for sources, message in (
        ([ConfigSource("bad.yaml", {"lr": -1})], "^bad.yaml: lr -1 is too small"),
        ([ConfigSource("bad.yaml", {"lr": None})], "^bad.yaml: lr null: give a number, or remove it"),
        ([ConfigSource("bad.yaml", {"device": "gpu"})], "^bad.yaml: device 'gpu' is unknown"),
        ([ConfigSource("bad.yaml", {"lrr": 1})], "^unknown key 'lrr' in bad.yaml; did you mean lr"),
        ([ConfigSource("bad.yaml", {"depth": 12})], "^bad.yaml: depth 12: a WRN's depth is"),
        (
            [ConfigSource("bad.yaml", {"adv_eps": 1}), ConfigSource("environment", {"adv_eps": "x"})],
            "^RJEM_ADV_EPS 'x': give a number",
        ),
        ([ConfigSource("bad.yaml", {"lr": -1}), ConfigSource("flag", {"lr": -2})], "^--lr -2"),
    ):
        with pytest.raises(ConfigError, match=message):
            resolve(TrainConfig, sources)


def test_only_the_value_that_is_used_is_checked():
    sources = [ConfigSource("f.yaml", {"adv_eps": "-1", "lr": "fast"}), ConfigSource("flag", {"adv_eps": 0, "lr": 1})]
    assert resolve(TrainConfig, sources).config.adv_eps == 0


@pytest.mark.parametrize("value", [None, ""])
def test_an_empty_data_set_is_an_error_in_a_file_and_unset_in_a_variable(monkeypatch, value):
    with pytest.raises(ConfigError, match="^f.yaml: dataset (null|''): give one of shifted-digits, digits"):
        resolve(TrainConfig, [ConfigSource("f.yaml", {"dataset": value})])
    monkeypatch.setenv("RJEM_DATASET", "")
    assert "dataset" not in environment_source(TrainConfig, "model").values


@pytest.mark.parametrize("flags", [{"dataset": "digits", "data": "photos"}, {"steps": "5", "epochs": "2"}])
def test_two_flags_that_replace_each_other_are_an_error_but_not_two_keys_of_a_printed_config(flags):
    with pytest.raises(ConfigError, match="^--.* and --.* exclude each other; give one$"):
        resolve(TrainConfig, [preset_source("quickstart"), ConfigSource("flag", flags)])
    printed = resolve(TrainConfig, [preset_source("quickstart")]).to_yaml()
    values = parse_mapping(printed, "printed.yaml")
    assert values["steps"] is not None and values["epochs"] is not None
    assert resolve(TrainConfig, [ConfigSource("printed.yaml", values)]).config.steps == int(values["steps"])


def test_variables_that_no_command_reads_are_named(monkeypatch):
    for name in ("RJEM_ADV_EP", "RJEM_ADV_EPS", "RJEM_HOME", "RJEM_XYZZY"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("RJEM_CACHE", "1")
    assert list(unknown_variables([TrainConfig])) == [
        "no command reads RJEM_ADV_EP; did you mean RJEM_ADV_EPS?",
        "no command reads RJEM_XYZZY",
    ]


def test_every_data_set_has_a_default_preset():
    assert DEFAULT_PRESETS.keys() == set(DATASETS) and {*DEFAULT_PRESETS.values(), OWN_IMAGES_PRESET} <= {
        *preset_names()
    }
    for name in preset_names():
        dataset = preset_source(name).values["dataset"]
        preset, default_for = preset_for([ConfigSource("flag", {"dataset": dataset})])
        assert preset.values["dataset"] == dataset == default_for
    cifar, svhn = (dict(preset_source(name).values) for name in ("cifar10-small", "svhn-small"))
    assert svhn == {**cifar, "preset": "svhn-small", "dataset": "svhn", "flip": "false"}


@pytest.mark.parametrize(
    ("sources", "preset", "default_for"),
    [
        ([], "quickstart", "built-in digits"),
        ([ConfigSource("environment", {"dataset": "cifar10"})], "cifar10-small", "cifar10"),
        (
            [ConfigSource("environment", {"data": "photos/"}), ConfigSource("flag", {"dataset": "digits"})],
            "quickstart",
            "digits",
        ),
        (
            [ConfigSource("environment", {"dataset": "digits"}), ConfigSource("flag", {"data": "photos/"})],
            "cifar10-small",
            "--data",
        ),
        ([ConfigSource("f.yaml", {"preset": "rjem"}), ConfigSource("flag", {"dataset": "digits"})], "rjem", ""),
    ],
)
def test_the_strongest_source_decides_on_the_preset(sources, preset, default_for):
    found, why = preset_for(sources)
    assert (found.values["preset"], why) == (preset, default_for)
    config = resolve(TrainConfig, [found, *sources]).config
    assert config.preset == preset and (config.data is None) == (default_for != "--data")


def test_an_unknown_preset_is_named_as_it_was_given():
    with pytest.raises(ConfigError, match="^f.yaml: preset 'rjam' is unknown; did you mean rjem"):
        preset_for([ConfigSource("f.yaml", {"preset": "rjam"})])


def test_a_replaced_option_says_so():
    sources = [preset_source("quickstart"), ConfigSource("flag", {"epochs": "2"})]
    resolved = resolve(TrainConfig, sources)
    assert resolved.config.steps is None and resolved.origins["steps"] == "replaced by --epochs"
    assert "replaced" not in resolve(TrainConfig, [preset_source("rjem"), sources[1]]).to_yaml()  # it has no steps


BOX = r" covers the whole box \[-1, 1\]; give at most 255/255, such as 8/255$"
SMALL = " is too small; give 0 or more$"


@pytest.mark.parametrize(
    ("text", "space", "message"),
    [
        ("8", "pixel", f"^--adv-eps 8{BOX}"),
        ("8", "model", f"^--adv-eps 8{BOX}"),
        ("300", "pixel", f"^--adv-eps 300{BOX}"),
        ("510/255", "pixel", f"^--adv-eps 510/255{BOX}"),
        ("-1", "pixel", f"^--adv-eps -1{SMALL}"),
        (" -8/255", "model", f"^--adv-eps -8/255{SMALL}"),
        ("3000000", "pixel", "^--adv-eps 3000000 is too large"),
    ],
)
def test_an_invalid_radius_is_quoted_as_written(text, space, message):
    with pytest.raises(ConfigError, match=message):
        resolve(TrainConfig, [preset_source("rjem"), ConfigSource("flag", {"adv_eps": text}, space)])
    assert resolve(TrainConfig, [ConfigSource("flag", {"adv_eps": "8", "norm": "l2"}, "pixel")]).config.adv_eps == 16


@pytest.mark.parametrize("values", ["2/255,-8/255,-9", ["2/255", "-8/255"]])
def test_an_invalid_radius_of_several_is_quoted_as_written(values):
    with pytest.raises(ConfigError, match=f"^a.yaml: eps -8/255{SMALL}"):
        resolve(EvalConfig, [ConfigSource("a.yaml", {"eps": values})])
    with pytest.raises(ConfigError, match="^a.yaml: eps 'x': give a number such as 0.1, .*, or several with commas$"):
        resolve(EvalConfig, [ConfigSource("a.yaml", {"eps": ["2/255", "x"]})])
    with pytest.raises(ConfigError, match=r"^a.yaml: eps \[\]: give a number"):
        resolve(EvalConfig, [ConfigSource("a.yaml", {"eps": []})])
    with pytest.raises(ConfigError, match="^--eps '0.1,,8/255': give a number"):
        resolve(EvalConfig, [ConfigSource("flag", {"eps": "0.1,,8/255"})])


def test_the_largest_radius_that_an_error_suggests_is_accepted():
    check_radius("--eps", parse_epsilon("255/255", "model"), "linf")


def test_a_radius_of_minus_zero_is_zero():
    (eps,) = resolve(EvalConfig, [ConfigSource("flag", {"eps": "-0"}, "pixel")]).config.eps
    assert format_epsilon(eps, "linf") == "0 = 0/255"


def test_an_error_of_an_option_survives_pickling_and_finds_its_source():
    error = OptionError("--eps", 16.0, " is wrong")
    error.reported = True
    copy = pickle.loads(pickle.dumps(error))
    assert copy.reported and str(copy) == "--eps 16 is wrong"
    assert str(locate(copy, [ConfigSource("environment", {"eps": "8"}, "pixel")])) == "RJEM_EPS 8 is wrong"


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_a_valid_config_and_reads_back_from_its_printed_form(name):
    resolved = resolve(TrainConfig, [preset_source(name)])
    assert (
        resolve(TrainConfig, [ConfigSource("file", parse_mapping(resolved.to_yaml(), "file"))]).config
        == resolved.config
    )


def test_the_papers_presets_are_special_cases_of_one():
    def essence(name):
        config = resolve(TrainConfig, [preset_source(name)]).config
        rest = {**config.to_dict(), "preset": None, "pgd_steps": 0, "px_weight": 0}
        return (bool(config.pgd_steps), bool(config.px_weight)), rest

    cases, rests = zip(*(essence(name) for name in ("rjem", "jempp", "robust", "standard")))
    assert cases == ((True, True), (False, True), (True, False), (False, False))
    assert all(rest == rests[0] for rest in rests)


def test_the_flags_of_a_config_give_it_back():
    config = CompareConfig(reproduce="table1", published=True, eps=(0.25,), seeds=3, html="a b.html", allow_few=True)
    flags = list(given_flags(config))
    assert flags.count("--published") == flags.count("--allow-few") == 1
    names = {flag_name(name): name for name in config.to_dict()}
    pairs = [(flag, value) for flag, value in zip(flags, [*flags[1:], ""]) if flag in names]
    given = {names[flag]: value if not value.startswith("--") else True for flag, value in pairs}
    assert resolve(CompareConfig, [ConfigSource("flags", given)]).config == config
    assert list(given_flags(CompareConfig())) == []
    assert list(given_flags(TrainConfig(flip=False))) == ["--no-flip"]
