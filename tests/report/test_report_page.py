"""The page: well formed, escaped, self-contained, and saying what the scores say."""

import re
from html.parser import HTMLParser

import pandas as pd
import pytest
import torch

import whence
from whence.data import Examples
from whence.errors import DataError, InputError, StoreError, StoreWriteError
from whence.report import ReportCase, write_report
from whence.report.exhibits import Exhibits
from whence.report.wording import MINUS
from whence.scores import ScoreMatrix, TopK

VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
HOSTILE = "<script>alert(1)</script>\"'&"
NAN = float("nan")


class Page(HTMLParser):
    """Tags, attributes and texts of a page; every element must be closed in order."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.ids, self.links = [], [], [], []
        self.found = {}  # (class, sign of the side or "") -> texts
        self.sign, self.text = "", ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        assert not any(name.startswith("on") for name in attrs)
        self.tags.append((tag, attrs))
        self.text += attrs.get("alt", "")
        if "id" in attrs:
            self.ids.append(attrs["id"])
        if tag == "a":
            self.links.append(attrs["href"])
        if tag not in VOID:
            self.open.append((tag, attrs))

    def handle_startendtag(self, tag, attrs):
        assert any(name == "svg" for name, _ in self.open)  # elsewhere HTML ignores the slash
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        self.text += f"{data} "
        side = next((attrs["data-sign"] for _, attrs in self.open if "data-sign" in attrs), "")
        for name in {name for _, attrs in self.open for name in attrs.get("class", "").split()}:
            self.found.setdefault((name, side), []).append(data.strip())

    def texts(self, name, side):
        return [text for text in self.found.get((name, side), []) if text]


def pictures(n_query=3, n_train=20, **options):
    generator = torch.Generator().manual_seed(0)

    def examples(n, name):
        x, y = torch.rand(n, 1, 8, 8, generator=generator), torch.randint(0, 3, (n,), generator=generator)
        return Examples((x, y), ids=[f"{name}-{k}" for k in range(n)], class_names=["ant", "bee", "cat"])

    train, queries = examples(n_train, "t"), examples(n_query, "q")
    values = torch.randn(n_query, n_train, generator=generator)
    return ReportCase("pictures", train, queries, ScoreMatrix(values, queries.ids, train.ids), **options)


def table(n_query=3, n_train=20, dim=4, **options):
    generator = torch.Generator().manual_seed(0)

    def examples(n):
        x = torch.randn(n, dim, generator=generator)
        return Examples((x, x.sum(1, keepdim=True)), feature_names=[f"height {k}" for k in range(dim)])

    train, queries = examples(n_train), examples(n_query)
    values = torch.randn(n_query, n_train, generator=generator)
    scores = ScoreMatrix(values, queries.ids, train.ids, unit="loss", method="grad_dot")
    return ReportCase("table", train, queries, scores, **options)


def full(case=pictures):
    """A case with everything a page can show."""
    plain = case()
    suspects = pd.DataFrame(
        {"id": plain.train.ids[:3], "score": [1.0, 3.0, 2.0], "given": [0, 1, 2], "true": [0, 2, 2]}
    )
    return case(
        agreement={
            "grad_dot": {1: (0.6, 0.5, 0.7), 50: (0.3, 0.2, 0.4)},
            "horizon": {1: (NAN, NAN, NAN), 50: (0.5, NAN, NAN)},
        },
        ceiling={1: 0.9, 50: (0.8, 0.7, 0.9)},
        notes=["a note"],
        facts={"learning rate": 0.03, "commit": "abc", "nothing": None},
        suspects=suspects,
    )


def write(tmp_path, cases, **options):
    path = write_report(tmp_path / "report.html", cases, **options)
    html = path.read_text("utf-8")
    return html, Page(html)


@pytest.mark.parametrize("case", [pictures, table])
def test_a_page_is_well_formed_and_linked(tmp_path, case):
    _, page = write(tmp_path, [full(case), case()])
    assert len(page.ids) == len(set(page.ids))
    assert page.links
    assert {link.removeprefix("#") for link in page.links} <= set(page.ids)
    assert {attrs["lang"] for tag, attrs in page.tags if tag == "html"} == {"en"}
    assert all(attrs.get("alt") for tag, attrs in page.tags if tag == "img")
    assert all(attrs.get("scope") in ("row", "col") for tag, attrs in page.tags if tag == "th")


def test_nothing_is_loaded_from_elsewhere(tmp_path):
    html, page = write(tmp_path, [full(pictures), full(table)])
    without_names = re.sub(r'xmlns(:xlink)?="http://www\.w3\.org/[^"]*"', "", html)
    assert "http:" not in without_names
    assert "https:" not in without_names
    assert not re.search(r"@import|url\(", html)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object"}
    assert all(attrs["src"].startswith("data:image/png;base64,") for _, attrs in page.tags if "src" in attrs)
    policy = next(attrs["content"] for _, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


@pytest.mark.parametrize("picture", [True, False])
def test_hostile_texts_appear_only_escaped(tmp_path, picture):
    shape = (3, 1, 4, 4) if picture else (3, 2)
    names = {"class_names": [HOSTILE, "שלום", "x" * 5000], "feature_names": [HOSTILE, "\u202eabc"]}
    train = Examples(
        (torch.rand(shape), torch.arange(3)), ids=[HOSTILE, "\x00\u202e", "y" * 5000], name=HOSTILE, **names
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
    )
    html, page = write(tmp_path, case, title=HOSTILE)
    assert "<script" not in html
    assert "<img src=x" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert page.text.count(HOSTILE) > 20
    assert len(html) < 200_000  # long names are cut


@pytest.mark.parametrize("case", [pictures, table])
def test_the_page_lists_what_top_lists(tmp_path, case):
    shown = case()
    _, page = write(tmp_path, shown)
    for sign in ("supports", "opposes"):
        top = shown.scores.top(5, sign=sign)
        ids = [text for text in page.texts("id", sign) if text not in ("id", *map(str, shown.queries.ids))]
        if case is table:  # ids of queries and of train examples are both positions: the query leads each row
            ids = [text for k, text in enumerate(page.texts("id", sign)) if k % 6]
        assert ids == [str(id) for id in top["train"]]
        scores = [float(text.replace(MINUS, "-")) for text in page.texts("score", sign)]
        assert scores == pytest.approx(top["score"].tolist(), rel=5e-3)


def test_top_k_shows_the_same_page_as_all_scores(tmp_path):
    case = pictures()
    kept = TopK.from_blocks(case.scores.blocks(block_size=7), k=5)
    whole, _ = write(tmp_path, case)
    streamed, _ = write(tmp_path, ReportCase(case.title, case.train, case.queries, kept))
    assert streamed == whole


def test_a_top_k_that_kept_less_says_so(tmp_path):
    case = pictures()
    kept = TopK.from_blocks(case.scores.blocks(), k=2)
    _, page = write(tmp_path, ReportCase(case.title, case.train, case.queries, kept))
    assert "Only the 2 strongest on each side were kept." in page.text
    assert len(page.texts("score", "supports")) == 2 * 3


def test_only_the_first_queries_are_shown(tmp_path):
    _, page = write(tmp_path, pictures(n_query=5, n_queries=2))
    assert "The first 2 of 5 queries, scored with 20 train examples." in page.text
    assert [id for id in page.ids if re.fullmatch(r"case-1-query-\d+", id)] == ["case-1-query-1", "case-1-query-2"]


def test_zero_scores_support_and_oppose_nothing(tmp_path):
    case = pictures(n_query=1)
    zeros = ScoreMatrix(torch.zeros(1, 20), case.queries.ids, case.train.ids)
    _, page = write(tmp_path, ReportCase("zeros", case.train, case.queries, zeros))
    assert "No train example supports this query." in page.text
    assert "No train example opposes this query." in page.text


def test_the_banner_says_what_sign_and_unit_mean(tmp_path):
    _, page = write(tmp_path, table())
    text = " ".join(page.text.split())
    assert "supports the query: leaving it out makes the query worse" in text
    assert "Worse means a higher loss of the query. A score is the predicted change of the loss" in text


def test_scores_without_unit_only_rank_and_a_margin_worsens_downwards(tmp_path):
    case = pictures()
    values = case.scores.values
    scores = ScoreMatrix(values, case.queries.ids, case.train.ids, orientation=-1.0, provenance={"measure": "margin"})
    _, page = write(tmp_path, ReportCase("margin", case.train, case.queries, scores))
    assert "Worse means a lower margin of the query. These scores only rank" in page.text


def test_agreement_is_a_chart_and_the_same_numbers(tmp_path):
    html, page = write(tmp_path, full())
    assert "0.60" in page.text
    assert "0.50 to 0.70" in page.text
    assert "not defined" in page.text
    assert "var(--series-1)" in html
    assert "currentColor" in html
    assert "logarithmic" in page.text
    assert "Not computed" not in page.text


def test_missing_agreement_is_said(tmp_path):
    html, page = write(tmp_path, pictures())
    assert "Not computed for this case: nothing here says how far these scores can be trusted." in page.text
    assert "<svg" not in html


def test_agreement_without_any_number_has_no_chart(tmp_path):
    html, page = write(tmp_path, pictures(agreement={"flat": {1: (NAN, NAN, NAN)}}))
    assert "No value is defined" in page.text
    assert "<svg" not in html


def test_suspects_come_most_suspicious_first_with_their_verdict(tmp_path):
    _, page = write(tmp_path, full())
    assert "The 3 most suspicious of 3 listed labels. Of those shown 1 are known to be wrong" in page.text
    assert [text for text in page.texts("suspects", "") if text.startswith("t-")] == ["t-1", "t-2", "t-0"]


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
    assert rows[2].cells[0][0] == f"{MINUS}9"
    assert rows[2].name == "feature 2"


def test_wide_tables_show_the_features_that_differ(tmp_path):
    x = torch.zeros(2, 40)
    x[1, 30] = 5.0
    train, queries = Examples((x, torch.zeros(2))), Examples((torch.zeros(1, 40), torch.zeros(1)))
    scores = ScoreMatrix(torch.tensor([[1.0, 2.0]]), queries.ids, train.ids)
    _, page = write(tmp_path, ReportCase("wide", train, queries, scores))
    assert "feature 30" in page.text
    assert "12 of 40 features are shown" in page.text


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
    _, page = write(tmp_path, ReportCase("any", examples, examples, scores))
    assert len(page.texts("score", "supports")) == 4


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


def test_the_same_input_gives_the_same_bytes(tmp_path):
    first, _ = write(tmp_path, [full(pictures), full(table)])
    second, _ = write(tmp_path, [full(pictures), full(table)])
    assert first == second


def test_sixteen_queries_of_photographs_stay_below_two_megabytes(tmp_path):
    generator = torch.Generator().manual_seed(0)
    train = Examples((torch.rand(20, 3, 96, 96, generator=generator), torch.zeros(20).long()))
    queries = Examples((torch.rand(16, 3, 96, 96, generator=generator), torch.zeros(16).long()))
    scores = ScoreMatrix(torch.randn(16, 20, generator=generator), queries.ids, train.ids)
    path = write_report(tmp_path / "report.html", ReportCase("noise", train, queries, scores, n_queries=16))
    assert path.stat().st_size < 2e6  # noise is what compresses worst


def test_real_scores_in_two_lines(tmp_path):
    split = whence.load("diabetes")
    model = torch.nn.Linear(10, 1).eval()
    train, queries = split.train.subset(range(50)), split.test.subset(range(4))
    scores = whence.attribute(whence.Task.regression(model), train, queries, "grad_dot")
    _, page = write(tmp_path, ReportCase("diabetes", train, queries, scores))
    assert {"bmi", "bp", "target"} <= set(page.text.split())


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_foreign_examples_are_refused():
    case = pictures()
    with pytest.raises(DataError, match="query ids are not among"):
        ReportCase("swapped", case.train, case.train, case.scores)


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
        ({"suspects": pd.DataFrame({"id": ["?"], "score": [1.0], "given": [0]})}, "suspect ids"),
    ],
)
def test_what_cannot_be_shown_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        pictures(**options)


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
