"""The benchmark of `--size auto`: the rule in the package is what it fits to the runs in the repository."""

import itertools
import json

import pytest

from gpt2_hf.planning.size import RULE, LossRule, Size

from ..conftest import REPOSITORY
from .scripts import load_script

TRUTH = LossRule(floor=2.0, capacity=30.0, alpha=0.25, data=400.0, beta=0.4, repeats=6.0)


@pytest.fixture(scope="module")
def dial():
    """The benchmark."""
    return load_script("dial")


@pytest.fixture(scope="module")
def document(dial):
    """The runs in the repository, of the seed that the documentation shows."""
    return dial.of_seed(json.loads(dial.RESULTS.read_text(encoding="utf-8")), 1)


@pytest.fixture(scope="module")
def fitted(dial, document):
    """The rule that these runs give, and its error."""
    return dial.fit(dial.without_choices(document))


def runs_of(rule: LossRule, texts=(("python-docs", 130_000, 0.7), ("wikitext", 2_400_000, 0.0))):
    """What a machine would give on which the rule is the truth, but for a constant of each text."""
    runs = []
    for (text, unique, constant), minutes, size in itertools.product(texts, (3, 10, 30), (64, 128, 192, 256, 384)):
        parameters = 12 * 6 * size**2 + 20_000 * size
        tokens = minutes * 60 * 3e10 / (6 * parameters)
        run = {"text": text, "minutes": minutes, "asked": f"{size}x6", "size": f"{size}x6", "parameters": parameters}
        loss = rule.loss(Size(size, 6).capacity(parameters), tokens, unique) + constant
        runs.append({**run, "tokens": tokens, "text_tokens": unique, "loss": loss})
    return runs


def test_the_fit_finds_the_rule_that_made_the_runs(dial):
    """On both texts, although their constants differ; so its choices are the best."""
    runs = runs_of(TRUTH)
    rule, error = dial.fit(runs)
    assert error < 0.01
    for each in runs:
        constant = 0.7 if each["text"] == "python-docs" else 0.0
        expected = rule.loss(dial.weights(each), each["tokens"], each["text_tokens"]) + constant
        assert expected == pytest.approx(each["loss"], abs=0.03)
    assert max(dial.regrets(runs, rule).values()) < 0.02


def test_a_choice_is_held_against_the_best_fixed_size(dial):
    """A rule that always takes the largest loses what the best is better by; the table says it of the choice."""
    runs = runs_of(TRUTH, texts=(("wikitext", 2_400_000, 0.0),))
    largest = LossRule(floor=0.0, capacity=1.0, alpha=1.0, data=0.0, beta=1.0, repeats=1.0)
    losses = {each["asked"]: each["loss"] for each in runs if each["minutes"] == 3}
    lost = dial.regrets(runs, largest)[("wikitext", 3)]
    assert lost == pytest.approx(losses["384x6"] - min(losses.values())) and lost > 0
    named = [{**each, "asked": "64x4"} for each in runs if each["asked"] == "64x6" and each["minutes"] == 3]
    choice = {**named[0], "asked": "auto", "size": "128x6", "loss": named[0]["loss"] + 0.2}
    row = list(dial.table([*named, choice]))[-1]
    assert row.startswith("| wikitext | 3 | ") and row.endswith("(128 × 6) | +0.200 |")
    assert f"**{choice['loss'] - 0.2:.3f}**" in row


def test_runs_of_two_seeds_are_not_compared(dial, tmp_path, monkeypatch, capsys):
    """Table, plot and fit are of the seed that is asked for."""
    path, shown = tmp_path / "results.json", []
    runs = [{**each, "seed": seed, "loss": each["loss"] + seed} for seed in (1, 2) for each in runs_of(TRUTH)]
    path.write_text(json.dumps({"runs": runs}))
    monkeypatch.setattr(dial, "plot", lambda runs, path: shown.append(runs))
    monkeypatch.setattr(dial, "describe_fit", lambda document: shown.append(document["runs"]) or [])
    for seed in (1, 2):
        expected = [each for each in runs if each["seed"] == seed]
        monkeypatch.setattr("sys.argv", ["dial.py", "--table", "--fit", "--results", str(path), "--seed", str(seed)])
        dial.main()
        assert capsys.readouterr().out.strip().splitlines() == list(dial.table(expected))
        assert shown[-2:] == [expected, expected]


def test_the_rule_of_the_package_is_the_fit(fitted):
    """Of the runs that are in the repository."""
    assert fitted[0] == RULE


def test_the_grid_in_the_documentation_is_that_of_the_runs(dial, document):
    """Row for row."""
    page = (REPOSITORY / "docs" / "how-to" / "size-auto.md").read_text(encoding="utf-8")
    for row in dial.table(document["runs"]):
        assert row in page


def test_the_figures_of_the_rule_in_the_documentation_are_those_of_the_runs(dial, document, fitted):
    """How many runs it is fitted to, how well, where they lie, and what it costs on a text that it has not seen."""
    runs = dial.without_choices(document)
    parameters, tokens = ([each[name] / 1e6 for each in runs] for name in ("parameters", "tokens"))
    epochs = max(each["tokens"] / each["text_tokens"] for each in runs)
    unseen = []
    for text in sorted(dial.TEXTS):
        lost = dial.regrets(runs, dial.fit([each for each in runs if each["text"] != text])[0])
        unseen.append(f"{round(max(value for (name, _), value in lost.items() if name == text), 3):g} ({text})")
    sentences = [
        f"would lose on that text at most {unseen[0]}, {unseen[1]} and {unseen[2]}",
        f"The fixed sizes below, {len(runs)} runs,",
        f"The error is {fitted[1]:.3f} nats.",
        f"The runs have {min(parameters):.2g} to {max(parameters):.2g} million parameters in use and "
        f"{min(tokens):.2g} to {max(tokens):.2g} million tokens, for up to {epochs:.0f} epochs;",
    ]
    page = " ".join((REPOSITORY / "docs" / "how-to" / "size-auto.md").read_text(encoding="utf-8").split())
    missing = [sentence for sentence in sentences if sentence not in page]
    assert not missing, f"docs/how-to/size-auto.md should say: {missing}"


def test_a_plot_has_a_panel_for_each_text(dial, tmp_path):
    """It is written where it is asked for."""
    dial.plot(runs_of(TRUTH), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000
