"""Cases that several tests of the report show."""

import json
import re

import pandas as pd
import torch

from whence.data import Examples
from whence.report import ReportCase, write_report
from whence.scores import ScoreMatrix
from whence.task import GroupWeights, ParameterGroups
from whence.weights import Contributions

HOSTILE = "<script>alert(1)</script>\"'&</script><!--"
NAN = float("nan")


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


def texts(n_query=3, n_train=20, **options):
    generator = torch.Generator().manual_seed(0)

    def examples(n, name):
        tokens, labels = (
            torch.randint(0, high, shape, generator=generator) for high, shape in ((99, (n, 6)), (2, (n,)))
        )
        return Examples(
            {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": labels},
            ids=[f"{name}-{k}" for k in range(n)],
            class_names=["bad", "good"],
            texts=[f"the film of {name} is {'very ' * k}long" for k in range(n)],
        )

    train, queries = examples(n_train, "t"), examples(n_query, "q")
    scores = ScoreMatrix(torch.randn(n_query, n_train, generator=generator), queries.ids, train.ids)
    return ReportCase("texts", train, queries, scores, **options)


def groups(*names):
    return ParameterGroups(names, tuple(range(len(names))), tuple(10 * (k + 1) for k in range(len(names))), names)


def contributed(case, *names, method="trak"):
    """Contributions of groups to the scores of a case."""
    generator, shape = torch.Generator().manual_seed(1), (len(case.queries), len(case.train), len(names))
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    return Contributions(values, groups(*names), case.queries.ids, case.train.ids, method)


def full(case=pictures):
    """A case with everything a page can show."""
    plain = case()
    suspects = pd.DataFrame(
        {"id": plain.train.ids[:3], "score": [1.0, 3.0, 2.0], "given": [0, 1, 2], "true": [0, 2, 2]}
    )
    cut = groups("conv", "head")
    return case(
        agreement={
            "grad_dot": {1: (0.6, 0.5, 0.7), 50: (0.3, 0.2, 0.4)},
            "horizon": {1: (NAN, NAN, NAN), 50: (0.5, NAN, NAN)},
        },
        ceiling={1: 0.9, 50: (0.8, 0.7, 0.9)},
        notes=["a note"],
        facts={"learning rate": 0.03, "commit": "abc", "nothing": None},
        suspects=suspects,
        weights=[
            GroupWeights(torch.tensor([1.0, 3.0]), cut, "rms", "trak", {"seconds": 2.5}),
            GroupWeights(torch.tensor([0.0, 1.0]), cut, "learned", "trak", {"note": "fell back to uniform"}),
        ],
        contributions=contributed(plain, "conv", "head"),
        group_lds={"conv": (0.125, 0.1, 0.2), "head": (-0.05, -0.1, 0.0)},
        lds={"trak": (0.3, 0.25, 0.35), "trak, learned": (0.4, 0.35, 0.45), "flat": (NAN, NAN, NAN)},
        lds_ceiling=(0.8, 0.75, 0.85),
        lds_differences={"learned \N{MINUS SIGN} uniform": (0.1, 0.05, 0.15)},
        lds_note="32 kept sets of half the data x 2 seeds",
        audit=pd.DataFrame(
            {
                "candidate": ["unrolled", "broken"],
                "choice": [0.75, NAN],
                "verdict": [0.625, NAN],
                "seconds": [1.25, NAN],
                "peak_mb": [30.0, NAN],
                "note": ["", "no inverse"],
            }
        ),
        audit_summary=["Use unrolled."],
        command="whence report runs/full",
        resources=pd.DataFrame({"step": ["train", "score"], "seconds": [1.5, 2.25], "peak_mb": [NAN, 512.0]}),
    )


def data_of(html):
    """What the page's script reads."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)[1])


def write(path, cases, **options):
    """The page and its data."""
    html = write_report(path, cases, **options).read_text("utf-8")
    return html, data_of(html)


def texts_of(value):
    """All texts of the data, one a line."""
    if isinstance(value, dict):
        value = list(value.values())
    return "\n".join(map(texts_of, value)) if isinstance(value, list) else value if isinstance(value, str) else ""
