"""The page: well formed, escaped, self-contained, and saying what the scores say."""

import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import torch
from report_cases import HOSTILE, NAN, contributed, data_of, full, groups, pictures, table, texts, texts_of, write

import whence
from whence.data import Examples
from whence.errors import DataError, InputError, StoreError, StoreWriteError
from whence.report import ReportCase, write_report
from whence.report.album import BUDGET, PASSAGE_BUDGET, Album
from whence.report.blocks import embedded
from whence.report.charts.heat_map import layout_of
from whence.report.exhibits import TRAIN, Exhibits
from whence.report.views.concentration import carried
from whence.scores import ScoreMatrix, TopK
from whence.task import GroupWeights
from whence.weights import Contributions

VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}


class Page(HTMLParser):
    """Tags, attributes, scripts and texts of a page; every element must be closed in order."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.ids, self.scripts = [], [], [], []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        assert not any(name.startswith("on") for name in attrs)
        self.tags.append((tag, attrs))
        if "id" in attrs:
            self.ids.append(attrs["id"])
        if tag == "script":
            self.scripts.append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert "svg" in self.open  # elsewhere HTML ignores the slash
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        else:
            self.text += f"{data} "


def view(data, name, case=0):
    return data["cases"][case]["views"][name]


def blocks(data, name, kind, case=0):
    return [block for block in view(data, name, case)["blocks"] if block["kind"] == kind]


def the_table(data, name, which, case=0):
    """Columns and texts of a table of a view."""
    found = next(block for block in blocks(data, name, "table", case) if block["name"] == which)
    return [column["name"] for column in found["columns"]], found["rows"]


def entries(data, sign, case=0):
    """(id, entry) of all queries, in their order."""
    section = data["cases"][case]
    sides = [
        side for query in view(data, "queries", case)["queries"] for side in query["sides"] if side["sign"] == sign
    ]
    examples = section["examples"]
    return [(id_of(examples[entry["train"]]), entry) for side in sides for entry in side["entries"]]


def id_of(example):
    return example.get("whole", example["text"])


def plain_text(text):
    """Without the invisible isolates around data."""
    return re.sub("[\u2066-\u2069]", "", text)


# --- the file ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [pictures, table, texts])
def test_a_page_is_well_formed_and_labelled(tmp_path, case):
    html, _ = write(tmp_path / "report.html", [full(case), case()])
    page = Page(html)
    assert len(page.ids) == len(set(page.ids))
    assert {attrs["lang"] for tag, attrs in page.tags if tag == "html"} == {"en"}
    assert all(attrs.get("scope") in ("row", "col") for tag, attrs in page.tags if tag == "th")
    named = {attrs[key] for _, attrs in page.tags for key in ("aria-controls", "aria-labelledby") if key in attrs}
    assert named <= set(page.ids)
    assert [attrs["data-view"] for _, attrs in page.tags if attrs.get("role") == "tab"] == list(
        data_of(html)["cases"][0]["views"]
    )
    assert any(tag == "noscript" for tag, _ in page.tags)
    assert "scripts are switched off" in page.text


def test_nothing_is_loaded_from_elsewhere(tmp_path):
    html, data = write(tmp_path / "report.html", [full(pictures), full(table)])
    page = Page(html)
    without_names = re.sub(r'xmlns(:xlink)?="http://www\.w3\.org/[^"]*"', "", html)
    assert "http:" not in without_names
    assert "https:" not in without_names
    assert not re.search(r"@import|url\(|\bfetch\(|XMLHttpRequest|WebSocket|innerHTML|insertAdjacent|\beval\(", html)
    assert not {tag for tag, _ in page.tags} & {"link", "iframe", "object", "img"}
    assert not any("src" in attrs for _, attrs in page.tags)
    assert all(picture.startswith("data:image/png;base64,") for picture in data["pictures"])


def test_only_the_scripts_of_the_page_may_run(tmp_path):
    html, _ = write(tmp_path / "report.html", full())
    page = Page(html)
    policy = next(attrs["content"] for _, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(page.scripts[1].encode()).digest()).decode()
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert len(page.scripts) == 2  # the data, and the one that the policy names


@pytest.mark.parametrize("picture", [True, False])
def test_hostile_texts_appear_only_escaped(tmp_path, picture):
    shape = (3, 1, 4, 4) if picture else (3, 2)
    names = {"class_names": [HOSTILE, "שלום", "x" * 5000], "feature_names": [HOSTILE, "\u202eabc"]}
    train = Examples(
        (torch.rand(shape), torch.arange(3)), ids=[HOSTILE, "\x00\u202e\u2028", "y" * 5000], name=HOSTILE, **names
    )
    queries = Examples((torch.rand(shape), torch.arange(3)), ids=[HOSTILE + "q", "ש", "z"], **names)
    scores = ScoreMatrix(
        torch.eye(3) - 0.5, queries.ids, train.ids, unit=HOSTILE, method=HOSTILE, provenance={HOSTILE: 1}
    )
    case = ReportCase(
        HOSTILE,
        train,
        queries,
        scores,
        agreement={HOSTILE: {1: (0.5, 0.4, 0.6)}},
        agreement_metric=HOSTILE,
        point_unit=HOSTILE,
        notes=[HOSTILE, "<img src=x onerror=alert(1)>", "\ud800"],
        facts={HOSTILE: HOSTILE},
        suspects=pd.DataFrame({"id": [HOSTILE], "score": [NAN], "given": [HOSTILE], "true": [NAN]}),
        weights=[GroupWeights(torch.ones(2), groups(HOSTILE, "b"), HOSTILE, HOSTILE, {HOSTILE: HOSTILE})],
        contributions=Contributions(torch.ones(3, 3, 2), groups(HOSTILE, "b"), queries.ids, train.ids, HOSTILE),
        group_lds={HOSTILE: (0.1, 0.0, 0.2)},
        lds={HOSTILE: (0.1, 0.0, 0.2)},
        lds_differences={HOSTILE: (0.1, 0.0, 0.2)},
        lds_note=HOSTILE,
        missing={HOSTILE: HOSTILE, "scores": HOSTILE},
        command=HOSTILE,
        resources=pd.DataFrame({"step": [HOSTILE], "seconds": [1.0], "peak_mb": [NAN]}),
    )
    html, data = write(tmp_path / "report.html", case, title=HOSTILE)
    page = Page(html)
    assert html.count("<script") == html.count("</script") == 2
    assert "<!--" not in html
    assert "<img src=x" not in html
    assert html.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 2  # the title, and charts
    assert not set(page.scripts[0]) & set("<>&\u2028\u2029")
    assert page.scripts[0].isascii()
    assert texts_of(data).count(HOSTILE) > 20
    assert len(html) < 300_000  # long names are cut


def test_only_cut_ids_are_kept_whole_as_well(tmp_path):
    _, data = write(tmp_path / "report.html", pictures())
    assert "whole" not in data["cases"][0]["examples"][0]
    _, data = write(tmp_path / "report.html", table())
    assert data["cases"][0]["examples"][0]["whole"] == int(data["cases"][0]["examples"][0]["text"])


def test_data_in_a_script_element():
    assert embedded({"a": "</script>&\u2028\ud800", "b": NAN, "c": 2**60, "d": (True, None)}) == (
        '{"a":"\\u003c/script\\u003e\\u0026\\u2028\\ud800","b":null,"c":"1152921504606846976","d":[true,null]}'
    )


def test_the_same_input_gives_the_same_bytes(tmp_path):
    first, _ = write(tmp_path / "first.html", [full(pictures), full(table)])
    second, _ = write(tmp_path / "second.html", [full(pictures), full(table)])
    assert first == second


# --- queries ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [pictures, table, texts])
def test_the_page_lists_what_top_lists(tmp_path, case):
    shown = case()
    _, data = write(tmp_path / "report.html", shown)
    for sign in ("supports", "opposes"):
        top = shown.scores.top(10, sign=sign)
        found = entries(data, sign)
        assert [id for id, _ in found] == list(top["train"])
        assert [entry["score"] for _, entry in found] == top["score"].tolist()  # every digit
        assert [entry["share"] for _, entry in found] == top["share"].tolist()
        assert [entry["rank"] for _, entry in found] == top["rank"].tolist()
        texts = [float(entry["score_text"].replace("\N{MINUS SIGN}", "-")) for _, entry in found]
        assert texts == pytest.approx(top["score"].tolist(), rel=5e-3)


def test_top_k_shows_the_same_queries_as_all_scores(tmp_path):
    case = pictures()
    kept = TopK.from_blocks(case.scores.blocks(block_size=7), k=10)
    _, whole = write(tmp_path / "whole.html", case)
    _, streamed = write(tmp_path / "streamed.html", ReportCase(case.title, case.train, case.queries, kept))
    different = {name for name in whole["cases"][0]["views"] if view(whole, name) != view(streamed, name)}
    assert different == {"concentration"}
    texts = texts_of(view(streamed, "concentration"))
    assert "Only the strongest scores of each query were kept" in texts
    assert the_table(whole, "concentration", "same-few") == the_table(streamed, "concentration", "same-few")


def test_a_top_k_that_kept_less_says_so(tmp_path):
    case = pictures()
    kept = TopK.from_blocks(case.scores.blocks(), k=2)
    _, data = write(tmp_path / "report.html", ReportCase(case.title, case.train, case.queries, kept))
    assert "Only the 2 strongest on each side were kept." in view(data, "queries")["summary"]
    assert len(entries(data, "supports")) == 2 * 3


def test_only_the_first_queries_are_shown(tmp_path):
    _, data = write(tmp_path / "report.html", pictures(n_query=5, n_queries=2))
    assert "The first 2 of 5 queries, scored with 20 train examples" in view(data, "queries")["summary"]
    assert [query["text"] for query in view(data, "queries")["queries"]] == ["q-0", "q-1"]


def test_queries_whose_ids_are_cut_alike_have_their_own_addresses(tmp_path):
    case = pictures(n_query=2)
    ids = ["q" * 200 + middle + "q" * 200 for middle in "ab"]
    queries = Examples(case.queries, ids=ids)
    scores = ScoreMatrix(case.scores.values, ids, case.train.ids)
    _, data = write(tmp_path / "report.html", ReportCase("long", case.train, queries, scores))
    found = view(data, "queries")["queries"]
    assert found[0]["text"] == found[1]["text"]
    assert [query["key"] for query in found] == ["#1", "#2"]
    assert [query["whole"] for query in found] == ids


def test_zero_scores_support_and_oppose_nothing(tmp_path):
    case = pictures(n_query=1)
    zeros = ScoreMatrix(torch.zeros(1, 20), case.queries.ids, case.train.ids)
    _, data = write(tmp_path / "report.html", ReportCase("zeros", case.train, case.queries, zeros))
    assert entries(data, "supports") == entries(data, "opposes") == []
    assert "All scores are zero" in texts_of(view(data, "concentration"))


def test_the_banner_says_what_sign_and_unit_mean(tmp_path):
    html, data = write(tmp_path / "report.html", table())
    text = " ".join(Page(html).text.split())
    assert "positive the example supports the query: leaving it out makes the query worse" in text
    banner = plain_text(data["cases"][0]["banner"])
    assert "Worse means a higher loss of the query. A score is the predicted change of the loss" in banner
    assert {plain_text(query["measure"]) for query in view(data, "queries")["queries"]} == {"loss, worse is higher"}


def test_scores_without_unit_only_rank_and_a_margin_worsens_downwards(tmp_path):
    case = pictures()
    values = case.scores.values
    scores = ScoreMatrix(values, case.queries.ids, case.train.ids, orientation=-1.0, provenance={"measure": "margin"})
    _, data = write(tmp_path / "report.html", ReportCase("margin", case.train, case.queries, scores))
    assert "Worse means a lower margin of the query. These scores only rank" in plain_text(data["cases"][0]["banner"])


def test_each_query_says_which_way_its_measure_worsens(tmp_path):
    case = pictures(n_query=2)
    scores = ScoreMatrix(
        case.scores.values, case.queries.ids, case.train.ids, unit="loss", orientation=torch.tensor([1.0, -1.0])
    )
    _, data = write(tmp_path / "report.html", ReportCase("mixed", case.train, case.queries, scores))
    assert "a higher or lower loss" in plain_text(data["cases"][0]["banner"])
    measures = [plain_text(query["measure"]) for query in view(data, "queries")["queries"]]
    assert measures == ["loss, worse is higher", "loss, worse is lower"]


@pytest.mark.parametrize("lacking", ["train", "queries", "both"])
def test_examples_whose_contents_are_not_loaded_are_shown_by_id(tmp_path, lacking):
    case = full()
    train, queries = (None if lacking in (side, "both") else getattr(case, side) for side in ("train", "queries"))
    ids_only = ReportCase("ids", train, queries, case.scores, suspects=case.suspects)
    _, data = write(tmp_path / "report.html", ids_only)
    assert [id for id, _ in entries(data, "supports")] == list(case.scores.top(10)["train"])
    assert all(("picture" in example) == (train is not None) for example in data["cases"][0]["examples"])
    assert all(("label" in query) == (queries is not None) for query in view(data, "queries")["queries"])
    hints = " ".join(view(data, "queries").get("hints", []))
    assert ("ids only" in hints) == (lacking == "both")
    assert "contents not loaded" in texts_of(view(data, "run"))


# --- what is missing --------------------------------------------------------------------------------------------------


def test_a_case_without_scores_still_works_and_says_what_makes_them(tmp_path):
    html, data = write(tmp_path / "report.html", ReportCase("nothing", None, None, None))
    assert "`whence.attribute`" in view(data, "queries")["empty"]
    assert "`whence.attribute`" in view(data, "concentration")["empty"]
    assert "`whence.learn_weights`" in view(data, "groups")["empty"]
    assert "`whence evaluate CONFIG.toml`" in view(data, "labels")["empty"]
    assert "`whence.further_train`" in texts_of(view(data, "trust"))
    assert "No scores are shown here" in data["cases"][0]["banner"]
    assert "<svg" not in html


def test_what_is_missing_is_said_at_the_top_and_in_its_view(tmp_path):
    missing = {
        "scores": "shard 3 is damaged",
        "agreement": "no gold standard",
        "lds": "not evaluated",
        "weights": "file cut short",
        "suspects": "labels unknown",
        "resources": "no history",
        "another part": "something else",
    }
    _, data = write(tmp_path / "report.html", ReportCase("broken", None, None, None, missing=missing))
    top = [plain_text(text) for text in data["cases"][0]["missing"]]
    assert top == [f"{part}: {text}" for part, text in missing.items()]
    affected = {
        "queries": ["scores"],
        "concentration": ["scores"],
        "trust": ["agreement", "lds"],
        "groups": ["weights"],
        "labels": ["suspects"],
        "run": ["resources"],
    }
    for name, parts in affected.items():
        said = texts_of(view(data, name))
        assert all(said.count(missing[part]) == 1 for part in parts), name


def test_damaged_parts_that_are_there_are_said_beside_what_is_shown(tmp_path):
    case = pictures(missing={"scores": "2 of 5 shards", "train": "the data changed"})
    _, data = write(tmp_path / "report.html", case)
    assert view(data, "queries")["missing"] == ["2 of 5 shards", "the data changed"]
    assert view(data, "concentration")["missing"] == ["2 of 5 shards"]


# --- trust ------------------------------------------------------------------------------------------------------------


def test_agreement_is_a_chart_and_the_same_numbers(tmp_path):
    html, data = write(tmp_path / "report.html", full())
    columns, rows = the_table(data, "trust", "agreement")
    assert columns == ["method", "1 epoch", "50 epochs"]
    assert rows[0][1] == {"text": "0.60", "value": [0.6, 0.5, 0.7], "quiet": "0.50 to 0.70"}
    assert rows[1][1] == {"text": "not defined", "value": [None, None, None]}
    assert rows[2][0]["text"] == "ceiling (perfect scores)"
    assert "var(--series-1)" in html
    assert "currentColor" in html
    assert "logarithmic" in Page(html).text
    assert "Not computed" not in texts_of(view(data, "trust"))
    assert "a note" in texts_of(view(data, "trust"))


def test_missing_agreement_is_said(tmp_path):
    _html, data = write(tmp_path / "report.html", pictures())
    said = texts_of(view(data, "trust"))
    assert "Not computed for this case: nothing here says how far these scores can be trusted." in said
    assert not blocks(data, "trust", "chart")


def test_agreement_without_any_number_has_no_chart(tmp_path):
    _, data = write(tmp_path / "report.html", pictures(agreement={"flat": {1: (NAN, NAN, NAN)}}))
    assert "No value is defined" in texts_of(view(data, "trust"))
    assert not blocks(data, "trust", "chart")


def test_lds_is_a_chart_with_its_ceiling_and_the_same_numbers(tmp_path):
    _, data = write(tmp_path / "report.html", full())
    _, rows = the_table(data, "trust", "lds")
    assert [row[0]["text"] for row in rows] == ["trak", "trak, learned", "flat", "ceiling (perfect scores)"]
    assert rows[1][1] == {"text": "0.40", "value": [0.4, 0.35, 0.45], "quiet": "0.35 to 0.45"}
    assert rows[2][1]["text"] == "not defined"
    _, differences = the_table(data, "trust", "lds-differences")
    assert differences[0][0]["text"] == "learned \N{MINUS SIGN} uniform"
    assert "32 kept sets of half the data x 2 seeds" in texts_of(view(data, "trust"))
    assert len(blocks(data, "trust", "chart")) == 3  # agreement, scores, differences


# --- groups -----------------------------------------------------------------------------------------------------------


def test_weights_are_a_heat_map_and_a_table_in_the_model_s_order(tmp_path):
    html, data = write(tmp_path / "report.html", full())
    columns, rows = the_table(data, "groups", "groups")
    assert columns == ["group", "parameters", "share of score energy", "trak, rms", "trak, learned", "LDS alone"]
    assert [row[0]["text"] for row in rows] == ["conv", "head"]
    assert [row[1]["value"] for row in rows] == [10, 20]
    assert [row[2]["value"] for row in rows] == pytest.approx([0.9, 0.1])  # RMS weights 1 : 3
    assert [[row[3]["value"], row[4]["value"]] for row in rows] == [[0.5, 0.0], [1.5, 2.0]]
    assert [row[5]["value"] for row in rows] == [[0.125, 0.1, 0.2], [-0.05, -0.1, 0.0]]
    assert "var(--supports)" in html
    columns, facts = the_table(data, "groups", "weights")
    found = {row[0]["text"]: [cell.get("text", "") for cell in row[1:]] for row in facts}
    assert found["max / min"] == ["3", "∞"]
    assert found["entropy (1 = uniform)"] == ["0.811", "0"]
    assert found["note"] == ["", "fell back to uniform"]
    assert found["seconds"] == ["2.5", ""]


def test_many_groups_are_a_grid_of_depths_and_functions(tmp_path):
    names = [f"transformer.h.{k}.{part}" for k in range(37) for part in ("attn.q", "attn.k", "attn.v", "mlp")]
    case = pictures(weights=[GroupWeights(torch.arange(148.0), groups(*names))])
    html, data = write(tmp_path / "report.html", case)
    svg = re.search(r'<template id="chart-\d+">(<svg.*?</svg>)', html, re.DOTALL)[1]
    width, height = (float(re.search(rf'<svg[^>]* {side}="([0-9.]+)', svg)[1]) for side in ("width", "height"))
    assert height > 37 * 18
    assert width < 700
    assert svg.count(">transformer.h.36<") == svg.count(">attn.q<") == 1
    assert len(the_table(data, "groups", "groups")[1]) == 148
    assert [block.get("wide") for block in blocks(data, "groups", "chart")] == [True]


@pytest.mark.parametrize(
    "names, rows, columns, is_grid",
    [
        (["0.weight", "0.bias", "2.weight", "2.bias"], ("0", "2"), ("weight", "bias"), True),
        (["stem", "h.0.attn head 0", "h.0.attn head 1", "h.1.attn head 0"], ("stem", "h.0", "h.1"), None, True),
        (["up.0: attn.q", "up.1: attn.q", "mid: attn.q"], ("up.0", "up.1", "mid"), ("attn.q",), True),
        (["0[0:16]", "0[16:32]", "2[0:16]"], ("0", "2"), ("[0:16]", "[16:32]"), True),
        (["a.x", "b.y", "b.z"], ("a", "b"), ("1", "2"), False),  # no function is in two depths
        (["conv.weight", "head.bias", "other"], ("conv", "head", "other"), ("1",), False),
    ],
)
def test_the_layout_of_a_heat_map_follows_the_names(names, rows, columns, is_grid):
    layout = layout_of(names)
    assert (layout.rows, layout.is_grid) == (rows, is_grid)
    assert columns is None or layout.columns == columns
    assert len(set(layout.at)) == len(names)  # every group has a place of its own


def test_stability_and_guard_are_told_beside_the_weights(tmp_path):
    facts = {
        "stability": {"folds": 4, "cosine": 0.875, "low": [0.25, 1.0], "high": [0.5, 2.0]},
        "guard": {"chosen": "rms", "losses": [["uniform", 0.0], ["rms", -1.0]]},
    }
    case = pictures(weights=[GroupWeights(torch.tensor([1.0, 3.0]), groups("a", "b"), "learned", "trak", facts)])
    _, data = write(tmp_path / "report.html", case)
    columns, rows = the_table(data, "groups", "groups")
    assert columns == ["group", "parameters", "trak, learned"]
    assert [row[2]["value"] for row in rows] == [[0.5, 0.25, 0.5], [1.5, 1.0, 2.0]]
    assert rows[0][2]["quiet"] == "0.25 to 0.50"
    text = plain_text(texts_of(view(data, "groups")))
    for shown in ("two of 4 folds", "cosine 0.88", "the guard took rms weights", "entropy 0.81", "1.5 on b"):
        assert shown in text, shown
    assert "stability.low" not in text


@pytest.mark.parametrize("part, where", [("held_out", "held-out"), ("queries", "learning")])
def test_the_teacher_that_weights_follow_is_named(tmp_path, part, where):
    loss = {"uniform": -0.5, "rms": -0.25, "weights": -0.75}
    facts = {"teacher": "ekfac", "queries": {"n": 8, "loss": loss}, part: {"n": 8, "loss": loss}}
    case = pictures(weights=[GroupWeights(torch.tensor([1.0, 3.0]), groups("a", "b"), "learned", "grad_dot", facts)])
    _, data = write(tmp_path / "report.html", case)
    text = plain_text(texts_of(view(data, "groups")))
    shown = "they follow ekfac, with which scores correlate by 0.75 as learned and by 0.50 unweighted, on 8"
    assert f"{shown} {where} queries" in text


def test_no_caption_tells_of_a_ceiling_that_is_not_there(tmp_path):
    told = []
    for ceiling in ((0.75, 0.5, 1.0), (NAN, NAN, NAN)):
        _, data = write(tmp_path / f"{ceiling[0]}.html", replace(full(), lds_ceiling=ceiling))
        captions = [chart.get("caption", "") for name in ("trust", "groups") for chart in blocks(data, name, "chart")]
        told.append(sum("dashed rule is the ceiling" in caption for caption in captions))
    assert told[0] == told[1] + 2


def test_each_group_alone_stands_beside_the_ceiling(tmp_path):
    html, data = write(tmp_path / "report.html", full())
    chart = blocks(data, "groups", "chart")[1]
    assert "The dashed rule is the ceiling" in chart["caption"]
    svg = re.search(rf'<template id="chart-{chart["chart"]}">(<svg.*?</svg>)', html, re.DOTALL)[1]
    assert ">conv<" in svg
    assert ">head<" in svg
    assert "stroke-dasharray" in svg
    many = {f"g{k}": (k / 100, 0.0, 1.0) for k in range(50)}
    html, data = write(tmp_path / "report.html", pictures(group_lds=many))
    chart = blocks(data, "groups", "chart")[1]
    svg = re.search(rf'<template id="chart-{chart["chart"]}">(<svg.*?</svg>)', html, re.DOTALL)[1]
    assert "The 40 best of 50 groups" in chart["caption"]
    assert (svg.count(">g9<"), svg.count(">g10<"), svg.count(">g49<")) == (0, 1, 1)


def test_weights_over_other_groups_have_a_heat_map_of_their_own(tmp_path):
    weights = [GroupWeights(torch.ones(2), groups("a", "b")), GroupWeights(torch.ones(3), groups("a", "b", "c"))]
    _, data = write(tmp_path / "report.html", pictures(weights=weights))
    assert len(blocks(data, "groups", "chart")) == 2
    _, data = write(tmp_path / "report.html", pictures(group_lds={"a": (0.1, NAN, NAN)}))
    assert len(blocks(data, "groups", "chart")) == 2  # the map, and the interval
    assert "learn_weights" in texts_of(view(data, "groups"))


# --- labels -----------------------------------------------------------------------------------------------------------


def test_suspects_come_most_suspicious_first_with_their_verdict(tmp_path):
    _, data = write(tmp_path / "report.html", full())
    labels = view(data, "labels")
    assert "3 labels listed" in labels["summary"]
    assert "1 of them are known to be wrong" in labels["summary"]
    examples = data["cases"][0]["examples"]
    rows = labels["table"]["rows"]
    assert [id_of(examples[row[1]["value"]]) for row in rows] == ["t-1", "t-2", "t-0"]
    assert [row[2]["value"] for row in rows] == [3.0, 2.0, 1.0]
    assert labels["wrong"] == [True, False, False]
    assert [row[5]["text"] for row in rows] == ["wrong", "right", "right"]
    assert labels["start"] == 1


def test_suspects_without_known_truth(tmp_path):
    case = table()
    suspects = pd.DataFrame({"id": [1, 0], "score": [1.0, 2.0], "given": [0.5, 0.25]})
    _, data = write(tmp_path / "report.html", table(suspects=suspects))
    labels = view(data, "labels")
    assert "knows_truth" not in labels
    assert labels["wrong"] == [None, None]
    assert [column["name"] for column in labels["table"]["columns"]][-1] == "furthest from the mean"
    x = case.train.all()[0]
    away = ((x - x.mean(0)) / x.std(0, correction=0)).abs()[0]
    expected = [f"height {k}" for k in away.argsort(descending=True)[:3].tolist()]
    assert re.findall(r"height \d", labels["table"]["rows"][0][-1]["text"]) == expected


# --- concentration ----------------------------------------------------------------------------------------------------


def test_how_many_examples_carry_half_and_nine_tenths():
    values = torch.tensor([[0.0, -5.0, 3.0, 2.0], [1.0, 1.0, -1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    needed, curves = carried(values, np.array([1, 2, 4]))
    assert needed[:2].tolist() == [[1, 3], [2, 4]]
    np.testing.assert_allclose(curves[:2], [[0.5, 0.8, 1.0], [0.25, 0.5, 1.0]])
    assert np.isnan(curves[2]).all()


def test_the_same_few_are_counted_against_chance(tmp_path):
    values = torch.zeros(6, 40)
    values[:, 7] = 9.0  # supports every query
    values[:, 3] = -9.0
    values[range(6), range(10, 16)] = 1.0
    train, queries = Examples(torch.rand(40, 2)), Examples(torch.rand(6, 2))
    case = ReportCase("few", train, queries, ScoreMatrix(values, queries.ids, train.ids))
    _, data = write(tmp_path / "report.html", case)
    columns, rows = the_table(data, "concentration", "same-few")
    examples = data["cases"][0]["examples"]
    counts = {id_of(examples[row[0]["value"]]): [row[2]["value"], row[3]["value"]] for row in rows}
    assert counts[7] == [6, 0]
    assert counts[3] == [0, 6]
    assert counts[10] == [1, 0]
    assert list(counts)[:2] == [7, 3] or list(counts)[:2] == [3, 7]
    # 6 lists of 10 out of 40: 1.5 on average; most of 40 binomials (6, 1/4): P(X <= 4) ** 40 = 0.83 > 1/2 > 0.21
    assert "in 1.5 of 6 lists on average" in texts_of(view(data, "concentration"))
    assert "in about 4." in texts_of(view(data, "concentration"))
    assert columns[2:] == ["among the top 10 supporters", "among the top 10 opposers"]


# --- the run ----------------------------------------------------------------------------------------------------------


def test_the_run_says_settings_fingerprints_and_costs(tmp_path):
    case = full()
    scores = ScoreMatrix(
        case.scores.values,
        case.queries.ids,
        case.train.ids,
        method="ekfac",
        provenance={"model": "a1" * 32, "coverage_percent": 87.5, "settings": {"damping": 0.1}},
    )
    shown = ReportCase(
        "run", case.train, case.queries, scores, facts=case.facts, command=case.command, resources=case.resources
    )
    _, data = write(tmp_path / "report.html", shown)
    settings = {row[0]["text"]: row[1]["text"] for row in the_table(data, "run", "settings")[1]}
    assert settings["method"] == "ekfac"
    assert settings["learning rate"] == "0.03"
    assert settings["nothing"] == "none"
    assert settings["coverage"] == "87.5 % of the parameters"
    assert settings["scores.settings.damping"] == "0.1"
    assert [[cell["text"] for cell in row] for row in the_table(data, "run", "fingerprints")[1]] == [
        ["scores.model", "a1" * 32]
    ]
    assert [block["text"] for block in blocks(data, "run", "command")] == ["whence report runs/full"]
    resources = the_table(data, "run", "resources")[1]
    assert [[cell["text"] for cell in row] for row in resources] == [
        ["train", "1.50", "not measured"],
        ["score", "2.25", "512"],
        ["all steps", "3.75", "512"],
    ]


# --- exhibits ---------------------------------------------------------------------------------------------------------


def test_features_most_unlike_the_query_are_marked():
    train = Examples((torch.tensor([[0.0, 0, 0, 0, 10], [1.0, 0, -9, 8, 0]]), torch.zeros(2, 1)))
    queries = Examples((torch.zeros(1, 5), torch.zeros(1, 1)))
    rows = Exhibits(train, queries, None).feature_rows(0, [1, 0], range(5))
    assert [[mark for _, mark in row.cells] for row in rows] == [
        ["higher", ""],
        ["", ""],
        ["lower", ""],
        ["higher", ""],
        ["", "higher"],
    ]
    assert rows[2].cells[0][0] == "\N{MINUS SIGN}9"
    assert rows[2].name == "feature 2"


def test_wide_tables_show_the_features_that_differ(tmp_path):
    x = torch.zeros(2, 40)
    x[1, 30] = 5.0
    train, queries = Examples((x, torch.zeros(2))), Examples((torch.zeros(1, 40), torch.zeros(1)))
    scores = ScoreMatrix(torch.tensor([[1.0, 2.0]]), queries.ids, train.ids)
    _, data = write(tmp_path / "report.html", ReportCase("wide", train, queries, scores))
    assert "feature 30" in texts_of(data)
    assert "12 of 40 features are shown" in texts_of(data)


@pytest.mark.parametrize(
    "batch",
    [
        torch.rand(4, 3),
        (torch.randint(0, 9, (4, 6)), torch.rand(4)),
        {"tokens": torch.randint(0, 9, (4, 6)), "mask": torch.ones(4, 6).bool()},
        (torch.rand(4, 2, 3), torch.tensor([True, False, True, False])),
        (torch.rand(4, 1, 2, 2), torch.rand(4, 2)),
        (torch.randint(0, 255, (4, 3, 5, 5), dtype=torch.uint8), torch.arange(4)),
        (torch.rand(4, 3, dtype=torch.bfloat16), torch.arange(4)),
        (torch.rand(4, 3, dtype=torch.complex64), torch.arange(4)),
    ],
    ids=["no label", "tokens", "dict", "float cube", "tiny picture", "uint8 picture", "bfloat16", "complex"],
)
def test_other_batches_are_shown_too(tmp_path, batch):
    examples = Examples(batch)
    scores = ScoreMatrix(torch.eye(4) - 0.5, examples.ids, examples.ids)
    _, data = write(tmp_path / "report.html", ReportCase("any", examples, examples, scores))
    assert [entry["score_text"] for _, entry in entries(data, "supports")] == ["+0.500"] * 4


def test_whole_number_inputs_with_a_floating_target():
    examples = Examples((torch.tensor([[3, 1, 4, 1, 5, 9]]), torch.tensor([2.5])))
    exhibits = Exhibits(examples, examples, None)
    assert [row.query for row in exhibits.feature_rows(0, [0], range(6))] == ["3", "1", "4", "1", "5", "9"]
    assert float(exhibits.label(0, 0)) == 2.5


@pytest.mark.parametrize("target", [torch.tensor([0, 1]), torch.tensor([0.0, 1.0]), torch.tensor([False, True])])
def test_classes_have_names_whatever_their_type(target):
    examples = Examples((torch.zeros(2, 3), target), class_names=["no", "yes"])
    exhibits = Exhibits(examples, examples, examples.class_names)
    assert [exhibits.label(0, k) for k in range(2)] == ["no", "yes"]


def test_sixteen_queries_of_photographs_stay_below_two_megabytes(tmp_path):
    generator = torch.Generator().manual_seed(0)
    train = Examples((torch.rand(20, 3, 96, 96, generator=generator), torch.zeros(20).long()))
    queries = Examples((torch.rand(16, 3, 96, 96, generator=generator), torch.zeros(16).long()))
    scores = ScoreMatrix(torch.randn(16, 20, generator=generator), queries.ids, train.ids)
    path = write_report(tmp_path / "report.html", ReportCase("noise", train, queries, scores, n_queries=16))
    assert path.stat().st_size < 2e6  # noise is what compresses worst


def test_many_photographs_are_shrunk_to_the_budget_and_each_is_there_once(tmp_path):
    generator = torch.Generator().manual_seed(0)
    train = Examples((torch.rand(400, 3, 64, 64, generator=generator), torch.zeros(400).long()))
    queries = Examples((torch.rand(100, 3, 64, 64, generator=generator), torch.zeros(100).long()))
    scores = ScoreMatrix(torch.randn(100, 400, generator=generator), queries.ids, train.ids)
    case = ReportCase("noise", train, queries, scores)
    _, data = write(tmp_path / "report.html", [case, case])
    assert 0.7 * BUDGET < sum(map(len, data["pictures"])) <= BUDGET
    per_case = len(data["cases"][0]["examples"]) + 100
    assert len(data["pictures"]) == 2 * per_case


def test_real_scores_in_two_lines(tmp_path):
    split = whence.load("diabetes")
    model = torch.nn.Linear(10, 1).eval()
    train, queries = split.train.subset(range(50)), split.test.subset(range(4))
    scores = whence.attribute(whence.Task.regression(model), train, queries, "grad_dot")
    _, data = write(tmp_path / "report.html", ReportCase("diabetes", train, queries, scores))
    assert {"bmi", "bp", "target"} <= set(texts_of(data).split())


# --- texts ------------------------------------------------------------------------------------------------------------


def passages_of(data, examples):
    """The texts of examples or queries of the page by id."""
    return {id_of(one): data["passages"][one["passage"]] for one in examples if "passage" in one}


def test_texts_are_shown_instead_of_features(tmp_path):
    case = full(texts)
    _, data = write(tmp_path / "report.html", case)
    examples, queries = data["cases"][0]["examples"], view(data, "queries")["queries"]
    of_train = dict(zip(case.train.ids, case.train.texts, strict=True))
    assert passages_of(data, examples) == {id_of(one): of_train[id_of(one)] for one in examples}
    assert passages_of(data, queries) == dict(zip(case.queries.ids, case.queries.texts, strict=True))
    assert not any("features" in side for query in queries for side in query["sides"])
    assert [column["name"] for column in view(data, "labels")["table"]["columns"]][-1] == "label is"
    assert view(data, "queries")["hints"] == ["≠ marks another label than the query's."]
    assert {example["label"] for example in examples} == {"bad", "good"}


@pytest.mark.parametrize("side", ["train", "queries"])
def test_one_side_may_have_texts(tmp_path, side):
    case = texts()
    parts = {
        "train": Examples(case.train.all(), ids=case.train.ids),
        "queries": Examples(case.queries.all(), ids=case.queries.ids),
    } | {side: getattr(case, side)}
    _, data = write(tmp_path / "report.html", ReportCase("one side", **parts, scores=case.scores))
    examples, queries = data["cases"][0]["examples"], view(data, "queries")["queries"]
    assert bool(passages_of(data, examples)) == (side == "train")
    assert bool(passages_of(data, queries)) == (side == "queries")
    assert not any("features" in one_side for query in queries for one_side in query["sides"])


def test_pictures_keep_their_captions(tmp_path):
    case = pictures()
    captioned = Examples(case.train, texts=[f"caption {k}" for k in range(20)])
    _, data = write(tmp_path / "report.html", ReportCase("captions", captioned, case.queries, case.scores))
    examples = data["cases"][0]["examples"]
    assert all({"picture", "passage"} <= set(example) for example in examples)
    assert not any("passage" in query for query in view(data, "queries")["queries"])


def test_a_text_that_several_examples_or_cases_show_is_there_once(tmp_path):
    case = texts()
    same = Examples(case.train, texts=["the same"] * 20)
    alike = ReportCase("alike", same, case.queries, case.scores)
    _, data = write(tmp_path / "report.html", [alike, alike])
    assert sorted(data["passages"]) == sorted(["the same", *case.queries.texts])


def test_an_empty_text_is_a_text(tmp_path):
    case = texts()
    _, data = write(
        tmp_path / "report.html", ReportCase("empty", Examples(case.train, texts=[""] * 20), None, case.scores)
    )
    assert set(passages_of(data, data["cases"][0]["examples"]).values()) == {""}


def album_of(written):
    """An album that holds these texts."""
    album, exhibits = Album(), Exhibits(Examples(torch.zeros(len(written), 1), texts=written), None, None)
    for k in range(len(written)):
        album.passage(exhibits, TRAIN, k)
    return album


@pytest.mark.parametrize("letter", ["a", "<", "é", "\U0001f600", "\x00"])
def test_the_longest_texts_are_cut_to_the_budget_and_say_so(letter):
    written = [letter * length for length in (10, 100, 20_000, 30_000)]
    found = album_of(written).passages(9_000)
    assert sum(len(embedded(text)) for text in found) <= 9_000
    shown = letter.replace("\x00", "\N{REPLACEMENT CHARACTER}")
    assert found[:2] == [shown * 10, shown * 100]
    cut = [text.split("\N{HORIZONTAL ELLIPSIS}") for text in found[2:]]
    kept = {len(text) for text, _ in cut}
    assert len(kept) == 1  # all long ones alike
    assert [says for _, says in cut] == [f" [cut: {len(cut[0][0]):,} of {n} characters]" for n in ("20,000", "30,000")]
    per_letter = len(embedded(shown)) - 2
    assert kept.pop() > 0.7 * (9_000 / per_letter - 110) / 2  # little of the budget is wasted


def test_texts_within_the_budget_are_whole():
    written = ["a" * 50_000, "b\r\nc\td", "\ud800"]
    assert album_of(written).passages() == ["a" * 50_000, "b\nc\td", "\N{REPLACEMENT CHARACTER}"]
    assert Album().passages() == []


def test_where_the_budget_is_too_small_for_all_the_beginnings_stay():
    found = album_of([f"{k:03d}" + "x" * 100 for k in range(50)]).passages(100)
    assert [text.split("\N{HORIZONTAL ELLIPSIS}")[0] for text in found] == [f"{k:03d}" + "x" * 37 for k in range(50)]


def test_a_page_of_very_long_texts_stays_below_ten_megabytes(tmp_path):
    case = texts(n_query=40, n_train=400)
    long = [f"{k} " + "word " * 4_000 for k in range(400)]
    path = write_report(
        tmp_path / "report.html", ReportCase("long", Examples(case.train, texts=long), case.queries, case.scores)
    )
    assert PASSAGE_BUDGET * 0.7 < path.stat().st_size < 10e6


def test_hostile_passages_appear_only_escaped(tmp_path):
    hostile = [HOSTILE, "\u202eabc\u2066", "\x00\x1b[31m\u2028", "<" * 100_000, "\ud800", "ש" * 50, "", "  \n "]
    case = texts(n_query=8, n_train=8)
    train, queries = (Examples(part, texts=hostile) for part in (case.train, case.queries))
    html, data = write(tmp_path / "report.html", ReportCase("hostile", train, queries, case.scores))
    page = Page(html)
    assert html.count("<script") == html.count("</script") == 2
    assert "<!--" not in html
    assert not set(page.scripts[0]) & set("<>&\u2028\u2029\x00\x1b")
    assert page.scripts[0].isascii()
    found = passages_of(data, view(data, "queries")["queries"])
    assert found["q-0"] == HOSTILE
    assert found["q-2"] == "\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}[31m\u2028"
    assert found["q-3"] == "<" * 100_000
    assert found["q-4"] == "\N{REPLACEMENT CHARACTER}"


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_foreign_examples_are_refused():
    case = pictures()
    with pytest.raises(DataError, match="query ids are not among"):
        ReportCase("swapped", case.train, case.train, case.scores)
    with pytest.raises(DataError, match="query ids are not among"):
        ReportCase("swapped", case.train, case.train, None, contributions=contributed(case, "a"))
    with pytest.raises(InputError, match="`contributions` must be"):
        ReportCase("wrong", case.train, case.queries, None, contributions=case.scores)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"n_queries": 0}, "n_queries"),
        ({"k": 0}, "`k`"),
        ({"notes": "one text"}, "list of sentences"),
        ({"agreement": {"m": {"1": (0.1, 0.0, 0.2)}}}, "whole amounts"),
        ({"agreement": {"m": {1: (0.1, 0.2)}}}, "value, low, high"),
        ({"agreement": {"m": 0.5}}, "value, low, high"),
        ({"ceiling": {1: "high"}}, "`ceiling`"),
        ({"suspects": pd.DataFrame({"id": ["t-1"]})}, "lacks given, score"),
        ({"suspects": "t-1"}, "must be a table with the columns id, score and given"),
        ({"weights": GroupWeights(torch.ones(1), groups("a"))}, "single one in a list"),
        ({"weights": ["learned"]}, "list of `GroupWeights`"),
        ({"weights": [GroupWeights(torch.ones(1), groups("a"))], "group_lds": {"b": (0, 0, 0)}}, "lack, such as 'b'"),
        ({"lds": {"trak": (0.1, 0.2)}}, "`lds` must hold"),
        ({"lds_differences": [0.1]}, "`lds_differences` must hold"),
        ({"lds_ceiling": (0.1, 0.2)}, "`lds_ceiling` must hold"),
        ({"lds_note": 32}, "`lds_note` must be a text"),
        ({"command": ["whence"]}, "`command` must be a text"),
        ({"missing": {"scores": 3}}, "part: sentence"),
        ({"missing": ["scores"]}, "part: sentence"),
        ({"resources": pd.DataFrame({"step": ["a"]})}, "lacks peak_mb, seconds"),
        ({"suspects": pd.DataFrame({"id": ["?"], "score": [1.0], "given": [0]})}, "suspect ids"),
    ],
)
def test_what_cannot_be_shown_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        pictures(**options)


@pytest.mark.parametrize("field", ["train", "queries", "scores"])
def test_other_objects_are_refused(field):
    parts = {"train": None, "queries": None, "scores": None, field: torch.zeros(2, 2)}
    with pytest.raises(InputError, match=f"`{field}` must be"):
        ReportCase("wrong", **parts)


@pytest.mark.parametrize("cases", [[], ["digits"]])
def test_a_page_needs_cases(tmp_path, cases):
    with pytest.raises(InputError, match="ReportCase"):
        write_report(tmp_path / "report.html", cases)


def test_an_old_page_is_kept_when_asked(tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")
    with pytest.raises(StoreError, match="overwrite=True"):
        write_report(path, pictures(), overwrite=False)
    assert path.read_text() == "old"


def test_an_unwritable_place_is_a_store_write_error(tmp_path):
    with pytest.raises(StoreWriteError, match="no-such-folder"):
        write_report(tmp_path / "no-such-folder" / "report.html", pictures())
