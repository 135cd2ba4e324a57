"""The benches of learned weights, end to end on a tiny problem, and what is computed from what happened."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from benchmarks.networks import VisionTransformer
from benchmarks.weights import __main__ as command
from benchmarks.weights import driver, synthetic, truth
from benchmarks.weights.benches import BENCHES, Bench, Trained, examples_of
from benchmarks.weights.driver import run_bench, without_nan
from benchmarks.weights.figures import SHOWN, write_figure
from benchmarks.weights.fixed import DISTILLED, FIXED, LABEL_FREE, PAIRS, SIZES, TEACHER, WEIGHTINGS
from benchmarks.weights.judged import verdict
from benchmarks.weights.section import bench_section, figure_of
from benchmarks.weights.solvers import objective_of
from benchmarks.weights.truth import (
    Plan,
    Trainer,
    choose_seeds,
    seeds_for,
    seeds_from,
    truth_of,
    with_enough_seeds,
)

from benchmarks import tables
from whence import Examples, Inputs, Outcomes, attribute_with, contributions_with, lds, learn_weights, retrain, train
from whence.errors import InputError
from whence.gradients import check_gradients, loss_gradients
from whence.task import Task
from whence.weights import distill_weights, fit_weights, mixed_with_uniform, relative_to_norms
from whence.weights.objective import WeightProblem
from whence.weights.solvers.nnls import solve_nnls

TINY = SIZES["tiny"]
KEYS = {"lds", "differences", "ceiling", "seeds", "per_group", "weights", "learn_seconds", "objective", "guard"}
KEYS |= {"room", "transfer", "elsewhere", "overfits", "settings", "machine"}
METHODS = ("grad_dot", "ekfac")


def small() -> Bench:
    """The digits with two methods, and some more digits as another problem."""
    bench = BENCHES["digits"]
    methods = {name: bench.methods[name] for name in METHODS}
    return replace(bench, methods=methods, elsewhere=("other digits", lambda: tuple(reversed(bench.data()))))


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def result(work: Any) -> dict[str, Any]:
    """A whole bench; its trainings are in `work`."""
    return run_bench(small(), TINY, work)


# --- a whole bench ----------------------------------------------------------------------------------------------------


def test_a_bench_has_every_figure(result: dict[str, Any]) -> None:
    assert result.keys() >= KEYS
    assert list(result["lds"]) == list(METHODS)
    for method in METHODS:
        there = [name for name in WEIGHTINGS if method != TEACHER or name != DISTILLED]
        assert list(result["lds"][method]) == list(result["weights"][method]) == there
        assert list(result["differences"][method]) == [f"{a} - {b}" for a, b in PAIRS if {a, b} <= set(there)]
        assert set(result["learn_seconds"][method]) == {*there, "contributions"}
        assert set(result["per_group"][method]) == set(result["weights"][method]["learned"])
        for value, low, high in result["lds"][method].values():
            assert -1 <= low <= value <= high <= 1
        assert set(result["weights"][method]["uniform"].values()) == {1.0}
    assert list(result["elsewhere"]) == list(result["room"]) == list(METHODS)
    assert set(result["transfer"]) == {"grad_dot -> ekfac", "ekfac -> grad_dot"}
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["seeds"]["chosen"] in (2, 3)
    assert result["refused"] == {}


def test_figures_are_those_of_a_direct_computation(result: dict[str, Any]) -> None:
    bench = small().sized(TINY)
    examples, judging, learning = examples_of(bench, TINY)
    final = train(bench.untrained(), examples, bench.recipe)
    seeds = range(1, 1 + result["seeds"]["chosen"])
    plan = Plan.draw(len(examples), TINY)

    def outcomes(kept: Any, queries: Any) -> Outcomes:
        untrained = bench.untrained()
        runs = retrain(
            untrained, examples, queries, bench.recipe, kept=kept, seeds=seeds, initialize=bench.initialize,
            engine="loop",
        )  # fmt: skip
        return runs.outcomes()

    inputs = Inputs(final, examples, judging)
    found = contributions_with(inputs.with_queries(learning), "ekfac")
    weights = {
        "learned": learn_weights(found, "nnls", **FIXED.options()),
    }
    norms = torch.cat([rows.norm(dim=1) for _, rows in loss_gradients(final, examples)])
    relative = learn_weights(relative_to_norms(found, norms), "nnls", **FIXED.options())
    weights["relative"] = mixed_with_uniform(relative, found, FIXED.unweighted_share)
    weights["few_shot"] = fit_weights(found, outcomes(plan.few_shot, learning), towards=weights["relative"])
    other = Trained.of(replace(bench, data=bench.elsewhere[1]), TINY)  # type: ignore[index]
    assert set(other.inputs.train.ids) <= set(bench.data()[1].ids)
    away = contributions_with(other.inputs.with_queries(other.learning), "ekfac")
    norms = torch.cat([rows.norm(dim=1) for _, rows in loss_gradients(other.inputs.task, other.inputs.train)])
    weights["elsewhere"] = learn_weights(relative_to_norms(away, norms), "nnls", **FIXED.options())
    weights["elsewhere"] = mixed_with_uniform(weights["elsewhere"], away, FIXED.unweighted_share)
    scores = {name: attribute_with(inputs, "ekfac", weights=own) for name, own in weights.items()}
    scores["uniform"] = attribute_with(inputs, "ekfac")
    judged = outcomes(plan.evaluation, judging)
    even = learn_weights(found, "uniform")
    fitted = fit_weights(contributions_with(inputs, "ekfac"), judged, ridge=0.01, towards=even)
    scores["room"] = attribute_with(inputs, "ekfac", weights=fitted)
    direct = lds(scores, judged)  # type: ignore[arg-type]
    values = direct.to_dict()
    assert result["room"]["ekfac"]["lds"] == pytest.approx(values.pop("room"), abs=1e-9)
    assert result["elsewhere"]["ekfac"]["lds"] == pytest.approx(values.pop("elsewhere"), abs=1e-9)
    for name, limits in values.items():
        assert result["lds"]["ekfac"][name] == pytest.approx(limits, abs=1e-9)
    gap = direct.difference("few_shot", "learned")
    assert result["differences"]["ekfac"]["few_shot - learned"] == pytest.approx(gap, abs=1e-9)

    norms = torch.cat([rows.norm(dim=1) for _, rows in loss_gradients(final, examples)])
    found = contributions_with(inputs.with_queries(learning), "grad_dot")
    teacher = attribute_with(inputs.with_queries(learning), TEACHER)
    relative = learn_weights(relative_to_norms(found, norms), "nnls", **FIXED.options())
    own = distill_weights(relative_to_norms(found, norms), relative_to_norms(teacher, norms))  # type: ignore[type-var]
    near = [mixed_with_uniform(one, found, FIXED.unweighted_share) for one in (relative, own)]
    few = fit_weights(found, outcomes(plan.few_shot, learning), towards=near)
    scores = {
        "distilled": attribute_with(inputs, "grad_dot", weights=near[1]),
        "few_shot": attribute_with(inputs, "grad_dot", weights=few),
    }
    for name, limits in lds(scores, judged).to_dict().items():  # type: ignore[arg-type]
        assert result["lds"]["grad_dot"][name] == pytest.approx(limits, abs=1e-9)


def test_a_second_run_trains_nothing_on_kept_sets(
    result: dict[str, Any], work: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: Any, **__: Any) -> Any:
        raise AssertionError("a training was run again")

    # `train` makes the final model without it.
    monkeypatch.setattr("whence.gold.sweep.run_chunks", none)
    again = run_bench(small(), TINY, work)
    for key in KEYS - {"learn_seconds", "objective", "settings", "machine"}:
        assert again[key] == result[key], key


def test_other_settings_are_other_trainings(work: Any, result: dict[str, Any]) -> None:
    before = {path.name for path in work.iterdir()}
    assert {name.rpartition("-")[0] for name in before} >= {"digits-pilot", "digits-evaluation", "digits-few-shot"}
    bench = small().sized(replace(TINY, epochs=1))
    trainer = Trainer(bench, *examples_of(bench, TINY), driver.ENGINE, work)
    trainer.run("pilot", Plan.draw(60, TINY).evaluation[:2], [1, 2], trainer.judging)
    assert len({path.name for path in work.iterdir()} - before) == 1


def test_the_command_writes_the_bench(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "run_bench", lambda *given: {"given": [given[0].name, given[1:] == asked]})
    asked = (TINY, tmp_path, "stacked")
    out = tmp_path / "weights-adult.json"
    words = ["--bench", "adult", "--size", "tiny", "--engine", "stacked", "--out", str(out), "--work", str(tmp_path)]
    command.main(words)
    assert json.loads(out.read_text()) == {"given": ["adult", True]}
    asked = (replace(TINY, evaluation_queries=3), tmp_path, "stacked")
    command.main([*words, "--queries", "3"])
    assert json.loads(out.read_text()) == {"given": ["adult", True]}


def test_without_a_bench_it_is_the_overview(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(command, "overview", lambda work: seen.append(work) or {"k": 10})
    command.main(["--out", str(tmp_path / "weights.json"), "--work", str(tmp_path)])
    assert json.loads((tmp_path / "weights.json").read_text()) == {"k": 10}
    assert seen == [tmp_path]


# --- what is kept apart -----------------------------------------------------------------------------------------------


def test_seeds_are_added_until_the_ceiling_is_there(tmp_path: Any) -> None:
    """The ceiling of two seeds of this bench is below 1, which no number of seeds reaches: all of them are trained."""
    size = replace(TINY, wanted=1.0, most_seeds=3)
    bench = small().sized(size)
    examples, judging, learning = examples_of(bench, size)
    plan = Plan.draw(len(examples), size)
    trainer = Trainer(bench, examples, judging, learning, "loop", tmp_path)
    few = replace(size, most_seeds=2)
    evaluation, few_shot = (
        trainer.run("two", kept, seeds_from(0, 2), queries)
        for kept, queries in ((plan.evaluation, judging), (plan.few_shot, learning))
    )
    assert with_enough_seeds(trainer, plan, few, evaluation, few_shot)[0] is evaluation  # the cap is reached
    more, more_few, rounds = with_enough_seeds(trainer, plan, size, evaluation, few_shot)
    assert [one["seeds"] for one in rounds] == [2, 3]
    for found, kept, queries in ((more, plan.evaluation, judging), (more_few, plan.few_shot, learning)):
        whole = trainer.run("three", kept, seeds_from(0, 3), queries)
        torch.testing.assert_close(found.measures, whole.measures)
        assert found.seeds == whole.seeds


def test_more_seeds_are_as_many_as_spearman_and_brown_say() -> None:
    size = replace(TINY, wanted=0.7, most_seeds=16)
    assert seeds_for(0.7, 4, size) == 4
    assert seeds_for(0.6, 16, size) == 16
    # One seed has reliability r with 6 r / (1 + 5 r) = .63^2; nine are the first with 9 r / (1 + 8 r) >= .49.
    assert seeds_for(0.63, 6, size) == 9
    assert seeds_for(0.1, 6, size) == 16
    assert seeds_for(math.nan, 4, size) == 8


@pytest.mark.parametrize("size", ["tiny", "full"])
def test_few_shot_sets_are_none_of_those_that_judge(size: str) -> None:
    plan = Plan.draw(60, SIZES[size])
    assert len(plan.evaluation) == SIZES[size].evaluation_sets
    assert len(plan.few_shot) == SIZES[size].few_shot_sets
    assert not set(plan.evaluation) & set(plan.few_shot)
    assert len(set(plan.evaluation)) == len(plan.evaluation)
    assert {len(kept) for kept in (*plan.evaluation, *plan.few_shot)} == {30}
    with pytest.raises(InputError, match="two are alike"):
        Plan.draw(4, SIZES[size])


def test_queries_that_judge_are_not_learned_from() -> None:
    bench, size = BENCHES["digits"], SIZES["full"]
    examples, judging, learning = examples_of(bench, size)
    assert (len(judging), len(learning)) == (100, 100)
    sets = [set(part.ids) for part in (examples, judging, learning)]
    assert len(set.union(*sets)) == sum(map(len, sets))


def test_no_training_shares_the_start_of_the_final_model() -> None:
    assert 0 not in truth.seeds_from(0, 16)
    assert truth.seeds_from(0, 4) + truth.seeds_from(4, 16) == truth.seeds_from(0, 16)


# --- the number of seeds ----------------------------------------------------------------------------------------------


def noisy(noise: float, n_seeds: int = 4, n_query: int = 40, n_sets: int = 200) -> Outcomes:
    """Effects of standard deviation 1 and, in each seed, noise of another."""
    generator = torch.Generator().manual_seed(0)
    signal = torch.randn(n_query, n_sets, generator=generator, dtype=torch.float64)
    effects = signal + noise * torch.randn(n_seeds, n_query, n_sets, generator=generator, dtype=torch.float64)
    ids = tuple((k,) for k in range(n_sets))
    return Outcomes(effects[:, None], torch.ones(1, n_query), 1e-7, (1,), "epochs", range(n_query), ids)


def test_seeds_are_as_many_as_the_ceiling_needs() -> None:
    # With noise of variance v the reliability of m seeds is 1 / (1 + v / m): .49 at m = .96 v.
    for noise, least in ((1.0, 2), (2.0, 4), (3.0, 9)):
        found = choose_seeds(noisy(noise), SIZES["full"])
        assert abs(found["chosen"] - least) <= 1, noise  # rank correlations are a little below Pearson's
        assert found["reached"]
        assert found["predicted"] >= 0.7
        assert found["chosen"] == 2 or found["predicted_by_seeds"][str(found["chosen"] - 1)] < 0.7
        m = found["chosen"]
        assert found["predicted"] == pytest.approx(math.sqrt(1 / (1 + noise**2 / m)), abs=0.03)


def test_where_the_cap_is_too_low_it_is_said() -> None:
    found = choose_seeds(noisy(8.0), SIZES["full"])
    assert (found["chosen"], found["reached"]) == (16, False)
    assert "16 seeds" in found["note"]
    assert found["predicted"] < 0.7


def test_more_seeds_than_the_pilots_are_joined_to_them(tmp_path: Any) -> None:
    """The pilot's sets get the missing seeds, the others all of them: as if all had been trained at once."""
    bench, size = small().sized(TINY), replace(TINY, wanted=2.0, epochs=1)  # beyond reach: the cap of 3 seeds
    examples, judging, learning = examples_of(bench, size)
    plan = Plan.draw(len(examples), size)
    found = truth_of(Trainer(bench, examples, judging, learning, "loop", tmp_path), plan, size)
    runs = retrain(
        bench.untrained(), examples, judging, bench.recipe, kept=plan.evaluation, seeds=[1, 2, 3],
        initialize=bench.initialize, engine="loop",
    )  # fmt: skip
    torch.testing.assert_close(found.evaluation.effects, runs.outcomes().effects, rtol=1e-5, atol=1e-6)
    assert found.evaluation.left_out == runs.outcomes().left_out
    assert found.facts["trainings"] == 3 * (8 + 5)


# --- judgements and pages ---------------------------------------------------------------------------------------------


def test_verdicts_need_an_interval_without_zero() -> None:
    assert [verdict(limits) for limits in ([0.1, 0.01, 0.2], [-0.1, -0.2, -0.01], [0.1, -0.01, 0.2])] == [
        "better",
        "worse",
        "same",
    ]


def test_the_guard_says_what_it_chose_and_what_came_of_it(result: dict[str, Any]) -> None:
    for method, found in result["guard"].items():
        values = result["lds"][method]
        assert found["chosen"] == min(found["losses"], key=found["losses"].__getitem__)
        assert list(found["losses"]) == list(LABEL_FREE)
        assert found["lds"] == values[found["chosen"]]
        assert values[found["best"]][0] == max(values[name][0] for name in LABEL_FREE)
        gap = values[found["chosen"]][0] - values["uniform"][0]
        assert found["minus_uniform"][0] == pytest.approx(gap, abs=1e-12)


def test_what_the_published_loss_gets_wrong_is_said(result: dict[str, Any]) -> None:
    for found in result["overfits"].values():
        fell = [found[part]["weights"] < found[part]["uniform"] for part in ("loss", "held_out_loss")]
        assert found["overfits"] == (fell[0] and found["verdict"] == "worse")
        assert found["on_held_out_too"] == (found["overfits"] and fell[1])
    wrong = {"overfits": True, "on_held_out_too": True, "minus_uniform": [-0.2, -0.3, -0.1]}
    blind = {**wrong, "on_held_out_too": False}
    text = "\n".join(bench_section({**result, "overfits": {"grad_dot": wrong, "ekfac": blind}}))
    assert "for `grad_dot` (-0.200 (-0.300 to -0.100)), `ekfac` (-0.200" in text
    assert "in 1 of these" in text
    right = {**wrong, "overfits": False}
    assert "for no method" in "\n".join(bench_section({**result, "overfits": {"grad_dot": right}}))


def test_closed_form_and_adamw_meet_on_contributions_with_heavy_tails() -> None:
    values, _ = synthetic("heavy-tailed influence", 0, n_query=20, n_train=300, n_groups=6)
    found = objective_of(values, repeats=1)
    assert found["within_1_percent"]
    assert found["gap_percent"] == pytest.approx(100 * (1 - found["nnls"] / found["adamw"]), abs=1e-9)  # both negative
    assert found["nnls"] <= found["rms"]
    assert found["adamw_over_nnls"] == pytest.approx(found["seconds"]["adamw"] / found["seconds"]["nnls"])
    equal = found["equal"]
    assert found["nnls"] <= equal["nnls"] <= found["adamw"]
    assert equal["adamw_over_nnls"] == pytest.approx(found["seconds"]["adamw"] / equal["seconds"])
    problem = WeightProblem(values, FIXED.k)
    if equal["rounds"] > 1:
        before = solve_nnls(problem, max_rounds=equal["rounds"] - 1)
        assert problem.loss(before.weights) > found["adamw"]


def test_the_section_prints_every_figure(result: dict[str, Any]) -> None:
    text = "\n".join(bench_section(result))
    for method in METHODS:
        for value, low, high in result["lds"][method].values():
            assert f"{value:.3f} ({low:.3f} to {high:.3f})" in text
    value, low, high = result["ceiling"]
    assert f"Ceiling {value:.3f} ({low:.3f} to {high:.3f})" in text
    assert "chose for 2 methods" in text


def test_the_section_says_what_is_missing(result: dict[str, Any]) -> None:
    few = {
        **result,
        "refused": {"trak": "It is refused. Use another.", "ekfac": {"few_shot": "No group predicts. So."}},
    }
    few["seeds"] = {**result["seeds"], "reached": False, "note": "the cap of 3 seeds is predicted to stay below 0.7"}
    few["lds"] = {**result["lds"], "ekfac": {**result["lds"]["ekfac"], "few_shot": [None, None, None]}}
    text = "\n".join(bench_section(few))
    assert "- Not computed: `trak`, scores: It is refused." in text
    assert "- Not computed: `ekfac`, few_shot: No group predicts." in text
    assert "the cap of 3 seeds" in text


def test_the_page_reads_the_files_of_the_benches(
    result: dict[str, Any], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "weights-digits.json").write_text(json.dumps(result))
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    monkeypatch.setattr(tables, "PAGE", tmp_path / "page.md")
    tables.main()
    assert "## Learned weights on digits" in (tmp_path / "page.md").read_text()


def test_nan_becomes_null() -> None:
    found = without_nan({"a": [math.nan, 1.0], 2: {"b": math.inf}, "c": "x"})
    assert found == {"a": [None, 1.0], "2": {"b": None}, "c": "x"}


# --- networks ---------------------------------------------------------------------------------------------------------


def test_the_vision_transformer_sees_patches_and_their_places() -> None:
    torch.manual_seed(0)
    model = VisionTransformer(1, 3, 8, patch=4, dim=8, heads=2, n_layers=1).eval()
    x = torch.randn(2, 1, 8, 8)
    swapped = torch.cat([x[..., 4:], x[..., :4]], -1)  # the same patches in other places
    with torch.no_grad():
        assert model(x).shape == (2, 3)
        assert not torch.allclose(model(x), model(swapped), atol=1e-5)
        model.places.weight.zero_()
        torch.testing.assert_close(model(x), model(swapped))
    assert sum(p.numel() for p in VisionTransformer(3, 10, 32).parameters()) == 67_162


def test_every_parameter_of_the_vision_transformer_has_a_layer_rule() -> None:
    model = VisionTransformer(1, 3, 8, patch=4, dim=8, heads=2, n_layers=1).eval()
    examples = Examples((torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])))
    found = check_gradients(Task.classification(model), examples, dtype=torch.float64)
    assert (found.path, found.agrees, found.untouched) == ("hooks", True, ())


def test_the_figure_shows_every_score_and_the_ceiling(result: dict[str, Any], tmp_path: Any) -> None:
    path = write_figure(result, tmp_path)
    assert path == tmp_path / figure_of(result)
    assert f"]({figure_of(result)})" in "\n".join(bench_section(result))
    drawn = ElementTree.parse(path)
    dashed = [one for one in drawn.iter() if one.get("stroke-dasharray") not in (None, "0")]
    assert len(dashed) == 1  # the ceiling
    texts = {one.text for one in drawn.iter() if one.text}
    assert {*result["lds"], *WEIGHTINGS, *result["per_group"]["grad_dot"]} <= texts
    n_scores = sum(cell[0] is not None for cells in result["lds"].values() for cell in cells.values())
    classes = [(one, one.get("class") or "") for one in drawn.iter()]
    dots = sum(len(list(one)) for one, names in classes if "mark-symbol" in names and "role-mark" in names)
    assert dots == n_scores + len(SHOWN) * len(result["per_group"]["grad_dot"])
