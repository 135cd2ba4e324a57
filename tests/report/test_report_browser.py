"""The page in headless Chromium: keys, addresses, exports, themes, sizes, hostile texts; and no request leaves it."""

import csv
import io
import json
import re
import shutil
import time

import pandas as pd
import pytest
import torch
from report_cases import HOSTILE, contributed, full, groups, pictures, table, texts

from whence.data import Examples
from whence.report import ReportCase, write_report
from whence.scores import ScoreMatrix
from whence.task import GroupWeights
from whence.weights import Contributions

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


class Visit:
    """An open page, with everything it said and asked for."""

    def __init__(self, browser, path, fragment="", **options):
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        self.page = self.context.new_page()
        self.said, self.asked = [], []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.said.append(dialog.message), dialog.dismiss()))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.address = path.resolve().as_uri()
        self.page.goto(self.address + fragment)
        self.page.wait_for_selector("html[data-ready=true]")

    def text(self, selector="body"):
        return self.page.inner_text(selector)

    def view(self):
        return self.page.get_attribute("[role=tab][aria-selected=true]", "data-view")

    def query(self):
        return self.text(".query-head h2")

    def download(self, act):
        with self.page.expect_download() as found:
            act()
        return found.value.path().read_text("utf-8")

    def close(self):
        """Nothing went wrong and nothing was loaded but the file, its pictures and its own downloads."""
        assert self.said == []
        assert all(url.startswith((self.address, "data:", "blob:")) for url in self.asked)
        self.context.close()


@pytest.fixture
def visit(browser):
    opened = []

    def open_page(path, fragment="", **options):
        opened.append(Visit(browser, path, fragment, **options))
        return opened[-1]

    yield open_page
    for one in opened:
        one.close()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_report(tmp_path_factory.mktemp("page") / "report.html", [full(pictures), full(table), full(texts)])


def test_every_view_opens_without_an_error_or_a_request(path, visit):
    page = visit(path)
    for case in (1, 2, 3):
        for view in ("queries", "trust", "groups", "labels", "concentration", "run"):
            page.page.goto(f"{page.address}#case={case}&view={view}")
            page.page.wait_for_function(
                "name => document.querySelector('[role=tab][aria-selected=true]').dataset.view === name", arg=view
            )
            assert len(page.text("#panel")) > 40
            assert "positive the example supports the query" in " ".join(page.text("#banner").split())


def test_every_key_works(path, visit):
    page = visit(path)
    press = page.page.keyboard.press
    assert page.query() == "Query q-0"
    press("j")
    assert page.query() == "Query q-1"
    press("k")
    assert page.query() == "Query q-0"
    for key, view in zip("234561", ["trust", "groups", "labels", "concentration", "run", "queries"], strict=True):
        press(key)
        assert page.view() == view
    press("/")
    assert page.page.evaluate("document.activeElement.getAttribute('aria-label')") == "Filter train examples"
    page.page.keyboard.type("t-1j")
    assert page.query() == "Query q-0"  # keys are letters where one types
    press("Escape")
    assert page.page.evaluate("document.activeElement === document.body")
    themes = []
    for _ in range(3):
        press("t")
        themes.append(page.page.get_attribute("html", "data-theme"))
    assert themes == ["light", "dark", "auto"]
    press("?")
    assert page.page.is_visible("dialog#help")
    press("j")
    press("Escape")
    assert not page.page.is_visible("dialog#help")
    assert page.query() == "Query q-0"
    assert page.download(lambda: press("e")).startswith("query,side,rank,train,")


def test_an_address_restores_what_was_seen(path, visit):
    page = visit(path)
    page.page.keyboard.press("j")
    page.page.fill("input[aria-label='Filter train examples']", "t-1")
    page.page.select_option(".controls select", "id")
    seen = page.text(".detail")
    again = visit(path, page.page.evaluate("location.hash"))
    assert again.text(".detail") == seen
    assert again.page.input_value("input[aria-label='Filter train examples']") == "t-1"
    assert all("t-1" in text for text in again.page.locator(".tiles .id").all_inner_texts())
    page.page.keyboard.press("Escape")  # out of the select, where keys choose
    page.page.keyboard.press("2")
    assert page.view() == "trust"
    page.page.go_back()
    page.page.wait_for_function(
        "() => document.querySelector('[role=tab][aria-selected=true]').dataset.view === 'queries'"
    )
    assert page.query() == "Query q-1"


@pytest.mark.parametrize("case", [1, 2, 3])
def test_an_export_holds_the_rows_shown(path, visit, case):
    page = visit(path, f"#case={case}&filter=1&sort=id")
    shown = page.page.locator(".side .id").all_inner_texts()
    shown = [text for text in shown if text != page.query().removeprefix("Query ")] if case == 2 else shown
    rows = list(csv.DictReader(page.download(lambda: page.page.click("[data-export=csv]")).splitlines()))
    entries = json.loads(page.download(lambda: page.page.click("[data-export=json]")))
    assert [row["train"] for row in rows] == shown
    assert [str(entry["train"]) for entry in entries] == shown
    assert 0 < len(shown) < 20
    chips = [float(text.replace("\N{MINUS SIGN}", "-")) for text in page.page.locator(".side .score").all_inner_texts()]
    assert [float(row["score"]) for row in rows] == pytest.approx(chips, rel=5e-3)
    assert [entry["score"] for entry in entries] == [float(row["score"]) for row in rows]  # all digits in both


def test_a_table_sorts_and_its_export_follows(path, visit):
    page = visit(path, "#view=trust")
    lds = page.page.locator("table[data-table=lds]")
    lds.locator("thead button").nth(1).click()
    first = lds.locator("tbody tr").first.inner_text()
    assert first.startswith("ceiling")
    block = page.page.locator(".block", has=page.page.locator("table[data-table=lds]"))
    exported = page.download(lambda: block.locator("[data-export=csv]").click()).splitlines()
    assert len(exported) == 1 + lds.locator("tbody tr").count()
    assert exported[1].startswith("ceiling")


def test_the_slider_counts_what_is_selected(path, visit):
    page = visit(path, "#view=labels&cut=1")
    assert "1 of 3 labels selected" in page.text(".verdict")
    assert (
        "1 of 1 with known truth are wrong (precision 1.00). 1 of the 1 wrong ones are found (recall 1.00)."
        in page.text(".verdict")
    )
    page.page.locator("input[type=range]").fill("3")
    assert "1 of 3 with known truth are wrong (precision 0.33)" in page.text(".verdict")
    rows = list(csv.DictReader(page.download(lambda: page.page.keyboard.press("e")).splitlines()))
    assert [next(v for v in row.values() if v.startswith("t-")) for row in rows] == ["t-1", "t-2", "t-0"]
    assert "cut=3" in page.page.evaluate("location.hash")


def test_both_themes_and_the_choice_over_the_system(path, visit):
    ground = "getComputedStyle(document.body).backgroundColor"
    light, dark = (visit(path, color_scheme=scheme) for scheme in ("light", "dark"))
    bright, dim = light.page.evaluate(ground), dark.page.evaluate(ground)
    assert bright != dim
    dark.page.keyboard.press("t")
    assert dark.page.evaluate(ground) == bright
    light.page.keyboard.press("t")
    light.page.keyboard.press("t")
    assert light.page.evaluate(ground) == dim


@pytest.mark.parametrize("case", [1, 2, 3])
def test_a_phone_shows_every_view_without_scrolling_sideways(path, visit, case):
    page = visit(path, viewport={"width": 390, "height": 844})
    for view in ("queries", "trust", "groups", "labels", "concentration", "run"):
        page.page.goto(f"{page.address}#case={case}&view={view}")
        page.page.wait_for_function(
            "name => document.querySelector('[role=tab][aria-selected=true]').dataset.view === name", arg=view
        )
        assert page.page.evaluate("document.documentElement.scrollWidth") <= 390, view
        tab = page.page.locator("[role=tab][aria-selected=true]").bounding_box()
        assert tab["x"] >= 0, view
        assert tab["x"] + tab["width"] <= 390, view


def large(shape, n_train=2000, n_query=200):
    generator = torch.Generator().manual_seed(0)

    def examples(n):
        return Examples((torch.rand(n, *shape, generator=generator), torch.randint(0, 9, (n,), generator=generator)))

    train, queries = examples(n_train), examples(n_query)
    scores = ScoreMatrix(torch.randn(n_query, n_train, generator=generator), queries.ids, train.ids)
    suspects = pd.DataFrame({"id": train.ids, "score": range(n_train), "given": train.all()[1].tolist()})
    return ReportCase("large", train, queries, scores, suspects=suspects)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 96, 96), (90,)], ids=["digits", "photographs", "table"])
def test_2000_by_200_open_in_3_seconds_and_stay_below_10_mb(tmp_path, visit, shape):
    page_path = write_report(tmp_path / "report.html", large(shape))
    assert page_path.stat().st_size < 10e6
    started = time.perf_counter()
    page = visit(page_path)
    assert time.perf_counter() - started < 3.0
    assert page.page.locator("*").count() < 3000  # only what is visible is in the page
    page.page.keyboard.press("4")
    assert "2000 labels" in page.text("#panel")


def test_hostile_texts_are_texts(tmp_path, visit):
    names = {"class_names": [HOSTILE, "שלום", "x" * 5000], "feature_names": [HOSTILE, "\u202eabc"]}
    train = Examples(
        (torch.rand(3, 2), torch.arange(3)), ids=[HOSTILE, "\x00\u202e", "y" * 5000], name=HOSTILE, **names
    )
    queries = Examples((torch.rand(3, 2), torch.arange(3)), ids=[HOSTILE + "q", "ש", "z"], **names)
    scores = ScoreMatrix(torch.eye(3) - 0.5, queries.ids, train.ids, unit=HOSTILE, method=HOSTILE)
    nan = float("nan")
    case = ReportCase(
        HOSTILE,
        train,
        queries,
        scores,
        agreement={HOSTILE: {1: (nan, nan, nan), 2: (0.5, 0.4, 0.6)}},
        lds={HOSTILE: (nan, nan, nan)},
        notes=["<img src=x onerror=alert(1)>", "\ud800"],
        facts={HOSTILE: HOSTILE},
        weights=[GroupWeights(torch.ones(2), groups(HOSTILE, "b" * 300), HOSTILE, HOSTILE)],
        contributions=Contributions(torch.rand(3, 3, 2), groups(HOSTILE, "b" * 300), queries.ids, train.ids, HOSTILE),
        missing={HOSTILE: HOSTILE},
        suspects=pd.DataFrame({"id": [HOSTILE], "score": [nan], "given": [HOSTILE], "true": [nan]}),
    )
    page = visit(write_report(tmp_path / "report.html", case, title=HOSTILE), viewport={"width": 390, "height": 844})
    for key in "123456":
        page.page.keyboard.press(key)
        assert page.page.locator("script").count() == 2  # the page's own: its data and its program
        assert page.page.locator("img[src=x]").count() == 0
        assert page.page.evaluate("document.documentElement.scrollWidth") <= 390
    assert HOSTILE in page.text("h1")


def rows_of(page, act):
    return list(csv.DictReader(io.StringIO(page.download(act), newline="")))


def test_texts_are_cards_below_the_text_of_their_query(path, visit):
    case = texts()
    page = visit(path, "#case=3&query=q-1")
    assert page.text(".query-head .words") == case.queries.texts[1]
    shown = dict(zip(case.train.ids, case.train.texts, strict=True))
    top = {
        sign: list(case.scores.top(10, sign=sign).query("query == 'q-1'")["train"]) for sign in ("supports", "opposes")
    }
    for sign, ids in top.items():
        cards = page.page.locator(f".side[data-sign={sign}] .cards li")
        assert cards.locator(".id").all_inner_texts() == ids
        assert cards.locator(".words").all_inner_texts() == [shown[id] for id in ids]
        assert cards.locator(".score").count() == len(ids)
        labels = [case.train.class_names[k] for k in case.train.all()["labels"][[int(id[2:]) for id in ids]].tolist()]
        assert [text.split()[1] for text in cards.locator(".label").all_inner_texts()] == labels
    assert page.page.locator(".detail table").count() == 0
    rows = page.page.locator(".list .row")
    assert rows.locator(".glimpse").all_inner_texts() == list(case.queries.texts)
    page.page.fill("input[aria-label='Find a query']", "very very")
    assert page.page.locator(".list .row").count() == 1
    page.page.fill("input[aria-label='Filter train examples']", "very " * 15)
    kept = [id for ids in top.values() for id in ids if "very " * 15 in shown[id]]
    assert page.page.locator(".side .id").all_inner_texts() == kept != []


def test_exports_hold_the_texts(path, visit):
    case = texts()
    of_train, of_queries = (dict(zip(part.ids, part.texts, strict=True)) for part in (case.train, case.queries))
    page = visit(path, "#case=3")
    rows = rows_of(page, lambda: page.page.keyboard.press("e"))
    assert len(rows) > 10
    assert all((row["text"], row["query text"]) == (of_train[row["train"]], of_queries[row["query"]]) for row in rows)
    page.page.keyboard.press("4")
    rows = rows_of(page, lambda: page.page.keyboard.press("e"))
    assert [row["example text"] for row in rows] == [of_train[row["example"]] for row in rows] != []
    page.page.keyboard.press("5")
    rows = rows_of(page, lambda: page.page.keyboard.press("e"))
    assert [row["query text"] for row in rows] == [of_queries[row["query"]] for row in rows] != []


def test_exports_without_texts_have_no_column_for_them(path, visit):
    page = visit(path, "#case=1")
    for key in "145":
        page.page.keyboard.press(key)
        assert "text" not in page.download(lambda: page.page.keyboard.press("e")).splitlines()[0]


def hostile_texts():
    case = texts(n_query=1, n_train=6)
    written = [
        "\u202e<b>bold</b> & \x00" + "x" * 100_000,
        "line\n" * 30,
        "שלום עולם",
        "",
        HOSTILE,
        "a" + "\U0001f600" * 400,
    ]
    train, queries = Examples(case.train, texts=written), Examples(case.queries, texts=[HOSTILE + "word " * 500])
    scores = ScoreMatrix(torch.tensor([[6.0, 5, 4, 3, 2, 1]]), queries.ids, train.ids)
    suspects = pd.DataFrame({"id": train.ids, "score": [6.0, 5, 4, 3, 2, 1], "given": [0] * 6})
    return ReportCase("hostile", train, queries, scores, suspects=suspects), written


def test_a_long_text_begins_cut_and_the_keys_open_it(tmp_path, visit):
    case, written = hostile_texts()
    page = visit(write_report(tmp_path / "report.html", case))
    card = page.page.locator(".cards li").first
    words, button = card.locator(".words"), card.locator("button")
    assert len(words.text_content()) == 281
    assert button.get_attribute("aria-expanded") == "false"
    assert button.text_content() == f"Show all {len(written[0]):,} characters of train example t-0"
    button.focus()
    page.page.keyboard.press("Enter")
    assert words.text_content() == written[0].replace("\x00", "\N{REPLACEMENT CHARACTER}")
    assert button.get_attribute("aria-expanded") == "true"
    assert words.bounding_box()["height"] < 900  # it scrolls in its own box
    words.focus()
    page.page.keyboard.press("End")
    page.page.wait_for_function("() => document.activeElement.scrollTop > 0")
    button.press("Enter")
    assert len(words.text_content()) == 281
    lines = page.page.locator(".cards li").nth(1).locator(".words")
    assert lines.text_content() == "line\n" * 7 + "line…"
    assert page.page.locator(".cards li").nth(5).locator(".words").text_content() == "a" + "\U0001f600" * 139 + "…"
    assert "Show all 401 characters" in page.page.locator(".cards li").nth(5).inner_text()
    assert "empty text" in page.page.locator(".cards li").nth(3).inner_text()


@pytest.mark.parametrize("width", [390, 1280])
def test_hostile_passages_are_texts(tmp_path, visit, width):
    case, _ = hostile_texts()
    page = visit(write_report(tmp_path / "report.html", case), viewport={"width": width, "height": 844})
    for key in "145":
        page.page.keyboard.press(key)
        for button in page.page.locator("button.all").all():
            button.click()
        assert page.page.locator("script").count() == 2
        assert page.page.locator("main b").count() == 0
        assert page.page.evaluate("document.documentElement.scrollWidth") <= width
    page.page.keyboard.press("1")
    assert page.text(".query-head .words").startswith(HOSTILE)
    directions = page.page.locator(".cards .words").evaluate_all(
        "all => all.map((one) => getComputedStyle(one).direction)"
    )
    assert directions[2] == "rtl"
    assert directions[4] == "ltr"


def test_captions_stand_beside_their_pictures(tmp_path, visit):
    case = pictures()
    train = Examples(case.train, texts=[f"caption {k}" for k in range(20)])
    page = visit(write_report(tmp_path / "report.html", ReportCase("captions", train, case.queries, case.scores)))
    cards = page.page.locator(".cards li")
    assert cards.count() == cards.locator("img").count() == cards.locator(".words").count() > 0


def test_a_page_with_nothing_says_what_would_make_it(tmp_path, visit):
    case = ReportCase(
        "empty", None, None, None, missing={"scores": "The scores are damaged: run `whence score` again."}
    )
    page = visit(write_report(tmp_path / "report.html", case))
    assert "The scores are damaged: run whence score again." in page.text("#missing")
    for key, command in zip("1235", ["whence score", "whence agree", "whence weigh", "whence score"], strict=True):
        page.page.keyboard.press(key)
        assert command in page.text("#panel")


def test_a_page_opens_on_the_first_view_that_has_something(tmp_path, visit):
    case = ReportCase("an audit alone", None, None, None, audit_summary=["Use unrolled."], audit=full().audit)
    path = write_report(tmp_path / "report.html", case)
    there = visit(path)
    assert there.view() == "trust"
    there.page.click("[data-view=queries]")
    assert there.view() == "queries"
    assert visit(path, "#view=run").view() == "run"


def test_ids_alone_are_shown_where_examples_are_gone(tmp_path, visit):
    case = pictures()
    page = visit(write_report(tmp_path / "report.html", ReportCase("ids", None, None, case.scores)))
    assert page.query() == "Query q-0"
    assert "t-" in page.text(".detail")
    assert page.page.locator("img").count() == 0


def test_exports_are_no_formulas_to_a_spreadsheet(tmp_path, visit):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 3, generator=generator)
    train = Examples((x, x[:, :1]), ids=["=1+1", "+2", "@x", "-3", "'=kept", "plain"])
    queries = Examples((x[:1], x[:1, :1]), ids=["=query"])
    values = torch.tensor([[0.5, 0.4, -0.3, 0.2, 0.1, -0.6]])
    case = ReportCase("formulas", train, queries, ScoreMatrix(values, queries.ids, train.ids))
    page = visit(write_report(tmp_path / "report.html", case))
    rows = rows_of(page, lambda: page.page.keyboard.press("e"))
    cells = [cell for row in rows for cell in row.values()]
    assert {"'=1+1", "'+2", "'@x", "'-3", "''=kept", "plain"} <= set(cells)
    for cell in cells:
        assert cell[:1] not in ("=", "+", "@")
    # Numbers stay numbers, negative ones too.
    assert "-0.3" in " ".join(cells)


# --- lists by other weights -------------------------------------------------------------------------------------------


def weighed(make, n_groups=4):
    """A case whose first group decides nothing alone, and weights that leave one out."""
    plain = make(n_query=4, n_train=80, k=6)
    found = contributed(plain, *(f"layers.{k}.<b>weight</b>" for k in range(n_groups)), method="grad_dot")
    values = torch.tensor([0.0, 1.0, 5.0, *[1.0] * (n_groups - 3)])
    weights = [GroupWeights(values.flip(0) + 1, found.groups, "rms", "grad_dot")]
    weights.append(GroupWeights(values, found.groups, "learned", "grad_dot"))
    return ReportCase(plain.title, plain.train, plain.queries, plain.scores, k=6, weights=weights, contributions=found)


MADE = {"pictures": pictures, "table": table, "texts": texts}


@pytest.fixture(scope="module")
def lists(tmp_path_factory):
    """A page with three cases that can be ranked anew, and the cases."""
    cases = [weighed(make) for make in MADE.values()]
    return write_report(tmp_path_factory.mktemp("lists") / "report.html", cases), cases


def listed(page, name):
    """Ids of a list; a table begins with the id of the query."""
    ids = page.page.locator(f"[data-list={name}] .id").all_inner_texts()
    is_table = page.page.locator(f"[data-list={name}] table").count() > 0
    return ids[1:] if is_table else ids


def wanted(case, query, weights, side):
    top = case.contributions.scores(weights).top(6, sign=side)
    return [str(id) for id in top[top["query"] == case.contributions.query_ids[query]]["train"]]


@pytest.mark.parametrize("case", [1, 2, 3], ids=list(MADE))
@pytest.mark.parametrize("side", ["supports", "opposes"])
def test_the_browser_ranks_by_a_group_as_python_does(lists, visit, case, side):
    path, cases = lists
    chosen = cases[case - 1]
    key = chosen.contributions.query_ids[1]
    page = visit(path, f"#case={case}&view=groups&query={key}&side={side}")
    for k, group in enumerate(chosen.contributions.groups.names):
        page.page.locator(".picks input").nth(k).check()
        alone = GroupWeights.only(chosen.contributions.groups, group)
        assert listed(page, "after") == wanted(chosen, 1, alone, side)
        assert listed(page, "before") == wanted(chosen, 1, None, side)
        assert "certain" not in page.text(".detail > .status")
        page.page.locator(".picks input").nth(k).uncheck()
    assert listed(page, "after") == wanted(chosen, 1, chosen.weights[-1], side)


def test_several_groups_are_ranked_by_their_sum_as_far_as_that_is_certain(lists, visit):
    path, cases = lists
    chosen = cases[0]
    page = visit(path, "#view=groups&by=g0.2")
    assert [page.page.locator(".picks input").nth(k).is_checked() for k in range(4)] == [True, False, True, False]
    both = GroupWeights(torch.tensor([1.0, 0.0, 1.0, 0.0]), chosen.contributions.groups)
    found, said = listed(page, "after"), page.text(".detail > .status")
    certain = re.search(r"Only the first (\d+) rank|(No rank is certain)", said)
    until = 6 if certain is None else int(certain[1] or 0)
    assert found[:until] == wanted(chosen, 0, both, "supports")[:until]
    page.page.get_by_role("button", name="all", exact=True).click()
    assert listed(page, "after") == listed(page, "before") == wanted(chosen, 0, None, "supports")
    page.page.get_by_role("button", name="none", exact=True).click()
    assert "by=" not in page.page.evaluate("location.hash")


@pytest.mark.parametrize("case", [1, 2, 3], ids=list(MADE))
def test_lists_before_and_after_say_how_examples_moved(lists, visit, case):
    path, cases = lists
    chosen = cases[case - 1]
    page = visit(path, f"#case={case}&view=groups")
    for name, weights in (("w0", chosen.weights[0]), ("w1", chosen.weights[1])):
        page.page.select_option(".lists label:has-text('Compare') select", name)
        before, after = wanted(chosen, 0, None, "supports"), wanted(chosen, 0, weights, "supports")
        assert (listed(page, "before"), listed(page, "after")) == (before, after)
        moves = page.page.locator("[data-list=after] .move").all_inner_texts()
        for rank, (id, move) in enumerate(zip(after, moves, strict=True)):
            at = before.index(id) if id in before else None
            arrow = "\u25b2" if at is not None and at > rank else "\u25bc"
            assert move == ("new, was below 6" if at is None else "stays" if at == rank else f"{arrow} was #{at + 1}")
        gone = page.page.locator("[data-list=before] .move.lower", has_text="leaves the first 6").count()
        assert gone == len(set(before) - set(after)) > 0
    shown = page.page.locator("[data-list=after] .score").all_inner_texts()
    top = chosen.contributions.scores(chosen.weights[1]).top(6)["score"][:6]
    assert [float(text.replace("\N{MINUS SIGN}", "-")) for text in shown] == pytest.approx(list(top), rel=5e-3)


def test_group_names_are_texts_and_lists_are_exported(lists, visit):
    path, cases = lists
    page = visit(path, "#view=groups&by=g1")
    assert page.page.locator("#panel b").count() == 0
    assert "layers.1.<b>weight</b>" in page.text(".picks")
    assert "layers.1.<b>weight</b>" in page.text("[data-list=after] h3")
    rows = list(csv.DictReader(page.download(lambda: page.page.click(".lists [data-export=csv]")).splitlines()))
    alone = GroupWeights.only(cases[0].contributions.groups, "layers.1.<b>weight</b>")
    assert [row["train"] for row in rows[:6]] == wanted(cases[0], 0, None, "supports")
    assert [row["train"] for row in rows[6:]] == wanted(cases[0], 0, alone, "supports")
    assert rows[6]["weights"] == "layers.1.<b>weight</b>"


def test_the_keyboard_alone_picks_groups_and_steps_through_queries(lists, visit):
    path, _ = lists
    page = visit(path, "#view=groups")
    page.page.focus(".picks input")
    page.page.keyboard.press("Space")
    assert "by=g0" in page.page.evaluate("location.hash")
    assert page.page.evaluate("document.activeElement.matches('.picks input')")  # the focus is not lost by the lists
    page.page.keyboard.press("j")
    assert page.query() == "Query q-1"
    assert page.page.input_value(".lists label:has-text('Query') select") == "q-1"
    page.page.keyboard.press("1")
    assert (page.view(), page.query()) == ("queries", "Query q-1")


def test_printed_lists_stay_and_their_controls_go(lists, visit):
    path, _ = lists
    page = visit(path, "#view=groups")
    page.page.emulate_media(media="print")
    assert page.page.locator("[data-list=after] .score").first.is_visible()
    assert not page.page.locator(".picks").is_visible()
    assert not page.page.locator(".lists").is_visible()


@pytest.mark.parametrize("case", [1, 2, 3], ids=list(MADE))
def test_lists_fit_a_phone(lists, visit, case):
    path, _ = lists
    page = visit(path, f"#case={case}&view=groups&by=g0", viewport={"width": 390, "height": 844})
    assert page.page.evaluate("document.documentElement.scrollWidth") <= 390
