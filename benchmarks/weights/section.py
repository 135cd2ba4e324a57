"""The sections of docs/results.md about the benches of learned weights."""

from __future__ import annotations

from typing import Any

from benchmarks.weights.fixed import SIZES, TEACHER, WEIGHTINGS

Cell = list[float | None]  # value, low, high; None where undefined
TITLE = "## Learned weights on {bench}"


def figure_of(result: dict[str, Any]) -> str:
    """Path of a bench's figure, from the folder of the page."""
    return f"figures/weights-{result['bench']}.svg"


def bench_section(result: dict[str, Any]) -> list[str]:
    """Methods x weightings, what may be read from it, and what the guard did."""
    return [
        TITLE.format(bench=result["bench"]),
        "",
        _setting(result),
        "",
        _trust(result),
        "",
        f"![Scores of all methods and weightings with the ceiling, groups alone, weights]({figure_of(result)})",
        "",
        *_scores(result),
        "",
        *_differences(result),
        "",
        *_room(result.get("room", {})),
        _guard(result["guard"]),
        _published(result["overfits"]),
        _solvers(result["objective"]),
        _transfer(result["transfer"]),
        *_elsewhere(result.get("elsewhere", {}), result["settings"].get("elsewhere")),
        *_refused(result["refused"]),
        "",
    ]


def _setting(result: dict[str, Any]) -> str:
    settings, machine, size = result["settings"], result["machine"], result["settings"]["size"]
    fixed = settings["fixed"]
    return (
        f"{_sentence(result['remark'])} ({settings['n_params']:,} parameters). Weights of "
        f"{_count(len(_first(result['weights'], 'uniform')), 'parameter tensor')}, learned on "
        f"{_count(settings['learning_queries'], 'query', 'queries')} that judge nothing, with the settings of all "
        f"benches (k = {fixed['k']}, {'centered' if fixed['center'] else 'not centered'}, in units of "
        f"{fixed['normalise']}); `relative` learns on contributions divided by the norms of train gradients and is "
        f"mixed with uniform weights; `distilled` does the same with the scores of `{TEACHER}` as the signal; "
        f"`few_shot` also sees {size['few_shot_sets']} kept sets that judge nothing. "
        f"{machine['cpu']}, {machine['cores']} cores, torch {machine['torch']}. "
        f"`python -m benchmarks.weights --bench {result['bench']}{_queries(settings['evaluation_queries'])}`."
    )


def _queries(n: int) -> str:
    """The option that it was run with."""
    return "" if n == SIZES["full"].evaluation_queries else f" --queries {n}"


def _trust(result: dict[str, Any]) -> str:
    size, seeds = result["settings"]["size"], result["seeds"]
    missed = "" if seeds["reached"] else f" This misses the {seeds['wanted']:g} that were wanted: {seeds['note']}."
    return (
        f"Linear datamodeling scores over {size['evaluation_sets']} kept halves x {seeds['chosen']} seeds, "
        f"{result['settings']['evaluation_queries']} queries. **Ceiling {_limits(result['ceiling'])}**; a pilot of "
        f"{size['pilot_sets']} sets x {size['pilot_seeds']} seeds predicted {seeds['predicted']:.3f}.{missed}"
    )


def _scores(result: dict[str, Any]) -> list[str]:
    lines = [_row(["LDS", *(f"`{name}`" for name in WEIGHTINGS)]), _row(["---"] * (1 + len(WEIGHTINGS)))]
    for method, cells in result["lds"].items():
        lines.append(_row([f"`{method}`", *(_limits(cells.get(name)) for name in WEIGHTINGS)]))
    return lines


def _differences(result: dict[str, Any]) -> list[str]:
    pairs = result["settings"]["pairs"]
    lines = [_row(["paired difference", *pairs]), _row(["---"] * (1 + len(pairs)))]
    for method, cells in result["differences"].items():
        lines.append(_row([f"`{method}`", *(_limits(cells.get(pair), sign="+") for pair in pairs)]))
    return lines


def _room(room: dict[str, Any]) -> list[str]:
    cells = [f"`{method}` {_limits(found['minus_uniform'], sign='+')}" for method, found in room.items()]
    return (
        [f"- Weights fitted to the judging outcomes themselves are above uniform by {'; '.join(cells)}."]
        if room
        else []
    )


def _guard(guard: dict[str, Any]) -> str:
    choices = [found["chosen"] for found in guard.values()]
    chosen = ", ".join(f"`{name}` {choices.count(name)}" for name in dict.fromkeys(choices))
    verdicts = [found["verdict"] for found in guard.values()]
    best = sum(found["best"] == found["chosen"] for found in guard.values())
    return (
        "- The guard, which sees the loss on held-out learning queries only, chose for "
        f"{_count(len(guard), 'method')}: {chosen}. Against uniform weights its choice is better in "
        f"{verdicts.count('better')}, worse in {verdicts.count('worse')} and not to be told apart in "
        f"{verdicts.count('same')} (95 % interval); in {best} it has the highest LDS of what it could choose from."
    )


def _published(overfits: dict[str, Any]) -> str:
    below = {name: found for name, found in overfits.items() if found["overfits"]}
    if not below:
        return "- The published loss and solver (not centered, AdamW) end below uniform weights for no method."
    named = ", ".join(f"`{name}` ({_limits(found['minus_uniform'], sign='+')})" for name, found in below.items())
    too = sum(found["on_held_out_too"] for found in below.values())
    return (
        f"- The published loss and solver (not centered, AdamW) lower their loss and end below uniform weights for "
        f"{named}; in {too} of these the loss falls on held-out queries too, so that the objective is wrong there and "
        "not merely overfitted."
    )


def _solvers(objective: dict[str, Any]) -> str:
    gaps = [found["gap_percent"] for found in objective.values()]
    ratios = [found["adamw_over_nnls"] for found in objective.values()]
    equal = [found["equal"] for found in objective.values() if found.get("equal") is not None]
    faster, rounds = [found["adamw_over_nnls"] for found in equal], [found["rounds"] for found in equal]
    as_low = (
        f" To come as low as AdamW, which it does for {_count(len(equal), 'method')}, it needs {min(rounds)} to "
        f"{max(rounds)} rounds; AdamW takes {min(faster):.1f} to {max(faster):.1f} times as long as these."
        if equal
        else ""
    )
    return (
        f"- Loss of the closed form above that of AdamW with norms from Gram matrices: {min(gaps):+.3f} to "
        f"{max(gaps):+.3f} %; AdamW takes {min(ratios):.1f} to {max(ratios):.1f} times as long.{as_low}"
    )


def _transfer(transfer: dict[str, Any]) -> str:
    if not transfer:
        return "- One method: nothing to transfer."
    cosines = [found["cosine"] for found in transfer.values()]
    centered = [c for found in transfer.values() if (c := found["cosine_without_uniform"]) is not None]
    gaps = [found["minus_own"] for found in transfer.values() if found["minus_own"][0] is not None]
    higher, lower = sum(gap[1] > 0 for gap in gaps), sum(gap[2] < 0 for gap in gaps)
    without = f", without the uniform part {min(centered):.2f} to {max(centered):.2f}" if centered else ""
    return (
        f"- `relative` weights of one method used with another ({len(transfer)} ordered pairs): cosines of the weights "
        f"{min(cosines):.2f} to {max(cosines):.2f}{without}; LDS above that of the method's own weights in {higher}, "
        f"below in {lower}."
    )


def _elsewhere(elsewhere: dict[str, Any], name: str | None) -> list[str]:
    cells = (
        f"`{method}` {_limits(found['minus_uniform'], '+')} (its weights' cosine with those learned here "
        f"{found['cosine']:.2f}, LDS {found['minus_own'][0]:+.3f} from these)"
        for method, found in elsewhere.items()
    )
    return [f"- `relative` weights learned on {name}, LDS here less uniform: {'; '.join(cells)}."] if elsewhere else []


def _refused(refused: dict[str, Any]) -> list[str]:
    lines = []
    for method, why in refused.items():
        for name, reason in why.items() if isinstance(why, dict) else [("scores", why)]:
            lines.append(f"- Not computed: `{method}`, {name}: {reason.partition('. ')[0]}.")
    return lines


def _first(nested: dict[str, dict[str, Any]], name: str) -> Any:
    return next(iter(nested.values()))[name]


def _count(n: int, one: str, many: str | None = None) -> str:
    return f"{n} {one if n == 1 else many or one + 's'}"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _limits(cell: Cell | None, sign: str = "") -> str:
    if cell is None or cell[0] is None:
        return ""
    value, low, high = (f"{v:{sign}.3f}" for v in cell)
    return f"{value} ({low} to {high})"
