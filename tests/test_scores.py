"""Score matrices, block sources, top-k tables and outcomes."""

import csv
import errno
import json
import math
import os
import stat

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from whence.errors import (
    DamagedShardError,
    DataError,
    InputError,
    NonFiniteError,
    ShapeError,
    StoreError,
    StoreMismatchError,
    StoreWriteError,
    UnknownNameError,
)
from whence.scores import BlockSource, Outcomes, ScoreBlock, ScoreMatrix, TopK, center

VALUES = torch.tensor([[0.5, -2.0, 0.5, 1.0], [0.0, -1.0, -3.0, 0.0]], dtype=torch.float64)


def small_matrix(**changes):
    fields = {
        "values": VALUES,
        "query_ids": ("a", "b"),
        "train_ids": (10, 11, 12, 13),
        "unit": "nats",
        "orientation": torch.tensor([1.0, -1.0]),
        "method": "by_hand",
        "provenance": {"seed": 3, "damping": [0.1, None]},
    }
    return ScoreMatrix(**(fields | changes))


def source_of(values, sizes, **changes):
    """A block source that cuts `values` into blocks of the given sizes."""
    starts = np.cumsum([0, *sizes])
    blocks = [ScoreBlock(slice(int(s), int(s) + n), values[:, s : s + n]) for s, n in zip(starts, sizes, strict=False)]
    ids = {"query_ids": range(values.shape[0]), "train_ids": range(values.shape[1])}
    return BlockSource(lambda: blocks, **(ids | changes))


# --- construction -----------------------------------------------------------------------------------------------------


def test_a_transposed_matrix_is_refused_with_advice():
    with pytest.raises(ShapeError, match=r"\(2, 4\); got \(4, 2\)\. Transposed\? Use `scores\.T`"):
        small_matrix(values=VALUES.T)


def test_nan_scores_name_query_and_train_example():
    values = VALUES.clone()
    values[1, 2] = math.nan
    with pytest.raises(NonFiniteError, match=r"1 scores .*\(query 'b', train 12\)"):
        small_matrix(values=values)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"train_ids": (10, 11, 11, 13)}, DataError, "train ids occur more than once: 11"),
        ({"query_ids": ("a", "a")}, DataError, "query ids occur more than once: 'a'"),
        ({"query_ids": ("a", 1)}, DataError, "mix int and str"),
        ({"query_ids": (1.5, 2.5)}, DataError, "must be an int or a str; got 1.5"),
        ({"query_ids": (True, False)}, DataError, "must be an int or a str; got True"),
        ({"query_ids": ()}, DataError, "At least one query id"),
        ({"orientation": 0.5}, InputError, r"\+1 or -1"),
        ({"orientation": torch.ones(3)}, ShapeError, r"\(n_query,\) = \(2,\)"),
        ({"provenance": {"path": object()}}, InputError, "JSON"),
        ({"values": VALUES.to(torch.complex64)}, InputError, "complex"),
    ],
)
def test_what_cannot_be_a_score_matrix_is_refused(changes, error, words):
    with pytest.raises(error, match=words):
        small_matrix(**changes)


def test_ids_and_values_take_one_form():
    matrix = ScoreMatrix(VALUES.bfloat16(), np.array([7, 8]), torch.arange(4))
    assert matrix.query_ids == (7, 8)
    assert all(type(x) is int for x in (*matrix.query_ids, *matrix.train_ids))
    assert matrix.values.dtype == torch.float32
    assert_close(matrix.orientation, torch.ones(2, dtype=torch.float64))


# --- blocks -----------------------------------------------------------------------------------------------------------


def test_blocks_put_together_are_the_matrix():
    assert_close(ScoreMatrix.from_blocks(source_of(VALUES, [1, 2, 1])).values, VALUES, rtol=0, atol=0)
    again = ScoreMatrix.from_blocks(small_matrix().blocks(3))
    assert_close(again.values, VALUES, rtol=0, atol=0)
    assert (again.unit, again.method, again.provenance) == ("nats", "by_hand", {"seed": 3, "damping": [0.1, None]})
    assert_close(again.orientation, torch.tensor([1.0, -1.0], dtype=torch.float64))


def test_blocks_must_cover_the_train_set_once():
    with pytest.raises(ShapeError, match="ended after 3 of 4"):
        list(source_of(VALUES, [1, 2]))
    with pytest.raises(ShapeError, match="ended after 0 of 4"):
        TopK.from_blocks(source_of(VALUES, []), 2)
    twice = [ScoreBlock(slice(0, 2), VALUES[:, :2])] * 2
    with pytest.raises(ShapeError, match="once and in order; after 2 came"):
        list(BlockSource(lambda: twice, range(2), range(4)))
    with pytest.raises(ShapeError, match=r"\(2, 4\); got \(2, 3\)"):
        list(BlockSource(lambda: [ScoreBlock(slice(0, 4), VALUES[:, :3])], range(2), range(4)))


def test_nan_in_a_late_block_names_the_train_example():
    values = VALUES.clone()
    values[0, 3] = math.inf
    with pytest.raises(NonFiniteError, match=r"\(query 0, train 3\)"):
        ScoreMatrix.from_blocks(source_of(values, [2, 2]))


# --- tables -----------------------------------------------------------------------------------------------------------


def test_top_by_hand():
    expected = pd.DataFrame(
        {
            "query": ["a", "a"],  # query b has no supporter
            "rank": [1, 2],
            "train": [13, 10],  # 10 and 12 tie: the earlier one
            "score": [1.0, 0.5],
            "share": [0.25, 0.125],  # sum of absolute scores is 4
        }
    )
    pd.testing.assert_frame_equal(small_matrix().top(2), expected, check_dtype=False)


def test_top_opposes_and_magnitude_by_hand():
    opposes = small_matrix().top(3, sign="opposes")
    assert list(zip(opposes["query"], opposes["train"], opposes["score"], strict=True)) == [
        ("a", 11, -2.0),
        ("b", 12, -3.0),
        ("b", 11, -1.0),
    ]
    magnitude = small_matrix().top(3, sign="magnitude")
    assert list(magnitude["train"]) == [11, 13, 10, 12, 11]
    assert list(magnitude["share"]) == [-0.5, 0.25, 0.125, -0.75, -0.25]
    with pytest.raises(UnknownNameError, match="supports"):
        small_matrix().top(3, sign="support")
    with pytest.raises(InputError, match="`k`"):
        small_matrix().top(0)


def test_all_zero_scores_have_no_top():
    assert len(small_matrix(values=torch.zeros(2, 4)).top(2, sign="magnitude")) == 0


tied_scores = st.integers(1, 4).flatmap(
    lambda q: st.integers(1, 12).flatmap(
        lambda n: st.lists(st.lists(st.integers(-3, 3), min_size=n, max_size=n), min_size=q, max_size=q)
    )
)


@settings(deadline=None)
@given(tied_scores, st.integers(1, 14), st.integers(1, 6), st.sampled_from(["supports", "opposes", "magnitude"]))
def test_streamed_top_k_equals_the_dense_one(rows, k, block_size, sign):
    matrix = ScoreMatrix(torch.tensor(rows).double() / 7, range(len(rows)), range(100, 100 + len(rows[0])))
    streamed = TopK.from_blocks(matrix.blocks(block_size), k)
    pd.testing.assert_frame_equal(streamed.top(sign=sign), matrix.top(k, sign=sign))  # shares to rounding


@settings(deadline=None)
@given(tied_scores, st.integers(1, 5))
def test_dense_top_equals_a_sort(rows, k):
    matrix = ScoreMatrix(torch.tensor(rows).double(), range(len(rows)), range(len(rows[0])))
    expected = [
        (q, i) for q, row in enumerate(rows) for i in sorted(range(len(row)), key=lambda i: -row[i])[:k] if row[i] > 0
    ]
    table = matrix.top(k)
    assert list(zip(table["query"], table["train"], strict=True)) == expected


def test_top_k_refuses_more_than_it_kept():
    kept = TopK.from_blocks(small_matrix().blocks(2), 2)
    assert list(kept.top(1)["train"]) == [13]
    with pytest.raises(InputError, match="`k`=3 was asked for, 2 were kept"):
        kept.top(3)
    table = kept.to_pandas()
    assert list(table.columns) == ["query", "sign", "rank", "train", "score", "share"]
    assert list(table["train"]) == [13, 10, 11, 12, 11]


# --- selection --------------------------------------------------------------------------------------------------------


def test_selection_follows_the_order_asked_for():
    part = small_matrix().select(train_ids=[13, 10], query_ids=["b"])
    assert part.train_ids == (13, 10)
    assert part.query_ids == ("b",)
    assert_close(part.values, torch.tensor([[0.0, 0.0]], dtype=torch.float64))
    assert_close(part.orientation, torch.tensor([-1.0], dtype=torch.float64))
    assert_close(small_matrix().columns([11]).values, VALUES[:, 1:2])
    with pytest.raises(DataError, match=r"2 train ids are not among the 4 scored: 99, 98"):
        small_matrix().columns([10, 99, 98])
    with pytest.raises(DataError, match="query ids are not among the 2 scored: 'z'"):
        small_matrix().rows(["z"])


def test_centered_rows_sum_to_zero():
    assert_close(small_matrix().centered().values.sum(1), torch.zeros(2, dtype=torch.float64))


def test_center_keeps_constant_rows_exactly_zero_and_works_per_size():
    assert torch.equal(center(torch.full((1, 10), 0.1)), torch.zeros(1, 10))
    values = torch.tensor([[1.0, 3.0, 10.0, 20.0]])
    assert_close(center(values, sizes=(1, 1, 5, 5)), torch.tensor([[-1.0, 1.0, -5.0, 5.0]]))
    assert_close(center(values, sizes=(1, 5, 1, 5)), torch.tensor([[-4.5, -8.5, 4.5, 8.5]]))


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("query_ids", [("é", 'b"c'), (2**62, -1)])
def test_saved_scores_come_back_exactly(tmp_path, dtype, query_ids):
    matrix = small_matrix(values=VALUES.to(dtype) / 3, query_ids=query_ids)
    again = ScoreMatrix.load(matrix.save(tmp_path / "scores.safetensors"))
    assert torch.equal(again.values, matrix.values)
    assert again.values.dtype == dtype
    assert (again.query_ids, again.train_ids) == (query_ids, (10, 11, 12, 13))
    assert (again.unit, again.method, again.provenance) == (matrix.unit, matrix.method, matrix.provenance)
    assert torch.equal(again.orientation, matrix.orientation)
    assert os.listdir(tmp_path) == ["scores.safetensors"]


def test_saved_top_k_comes_back_exactly(tmp_path):
    kept = TopK.from_blocks(small_matrix(unit=None).blocks(3), 2)
    again = TopK.load(kept.save(tmp_path / "top.safetensors"))
    pd.testing.assert_frame_equal(again.to_pandas(), kept.to_pandas(), check_exact=True)
    assert (again.k, again.unit, again.query_ids) == (2, None, ("a", "b"))


@pytest.mark.skipif(os.name == "nt", reason="file modes are a POSIX matter")
def test_saved_files_are_readable_by_whom_the_umask_says(tmp_path):
    plain = tmp_path / "plain"
    plain.touch()
    saved = small_matrix().save(tmp_path / "scores.safetensors")
    assert stat.S_IMODE(saved.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_an_existing_file_is_kept_unless_told(tmp_path):
    path = small_matrix().save(tmp_path / "scores.safetensors")
    with pytest.raises(StoreError, match="overwrite=True"):
        small_matrix(method="other").save(path)
    assert ScoreMatrix.load(path).method == "by_hand"
    small_matrix(method="other").save(path, overwrite=True)
    assert ScoreMatrix.load(path).method == "other"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_full_or_read_only_disk_loses_nothing(tmp_path, monkeypatch, code):
    path = small_matrix().save(tmp_path / "scores.safetensors")

    def fail(descriptor):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StoreWriteError, match=os.strerror(code)):
        small_matrix(method="other").save(path, overwrite=True)
    assert ScoreMatrix.load(path).method == "by_hand"
    assert os.listdir(tmp_path) == [path.name]


def test_a_missing_folder_is_a_write_error(tmp_path):
    with pytest.raises(StoreWriteError, match="Could not write"):
        small_matrix().to_csv(tmp_path / "nowhere" / "scores.csv")


def test_files_that_cannot_be_read_say_why(tmp_path):
    with pytest.raises(StoreError, match="no file"):
        ScoreMatrix.load(tmp_path / "none")
    path = small_matrix().save(tmp_path / "scores.safetensors")
    with pytest.raises(StoreMismatchError, match="holds ScoreMatrix; TopK was asked for"):
        TopK.load(path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(DamagedShardError, match="truncated or altered"):
        ScoreMatrix.load(path)


def test_parquet_is_long_and_carries_its_metadata(tmp_path):
    path = small_matrix().to_parquet(tmp_path / "scores.parquet")
    table = pd.read_parquet(path)
    assert list(table.columns) == ["query", "train", "score"]
    wide = table.pivot(index="query", columns="train", values="score")
    assert_close(torch.tensor(wide.to_numpy()), VALUES, rtol=0, atol=0)
    metadata = json.loads(pq.read_schema(path).metadata[b"whence"])
    assert (metadata["unit"], metadata["method"], metadata["orientation"]) == ("nats", "by_hand", [1, -1])
    assert metadata["provenance"] == {"seed": 3, "damping": [0.1, None]}


def test_parquet_row_groups_keep_queries_in_place(tmp_path, monkeypatch):
    monkeypatch.setattr("whence.scores._WORKING_ELEMENTS", 64)  # one query per row group
    path = small_matrix().to_parquet(tmp_path / "scores.parquet")
    assert pq.ParquetFile(path).num_row_groups == 2
    assert list(pd.read_parquet(path)["score"]) == VALUES.flatten().tolist()


def test_csv_is_wide_and_exact(tmp_path):
    matrix = small_matrix(values=VALUES / 3)
    header, *lines = matrix.to_csv(tmp_path / "scores.csv").read_text().splitlines()
    assert header == "query,10,11,12,13"
    numbers = [[float(x) for x in line.split(",")[1:]] for line in lines]
    assert_close(torch.tensor(numbers, dtype=torch.float64), matrix.values, rtol=0, atol=0)
    assert_close(torch.tensor(matrix.to_pandas().to_numpy()), matrix.values, rtol=0, atol=0)


def test_no_id_in_a_csv_is_a_formula_and_numbers_stay(tmp_path):
    ids = ["=1+1", "+a", "-b", "@c", "'=1+1", "'d", "e=1", ""]
    values = torch.tensor([[-1.0] * len(ids)] * len(ids), dtype=torch.float64)
    path = ScoreMatrix(values, query_ids=ids, train_ids=ids).to_csv(tmp_path / "scores.csv")
    (_, *header), *lines = csv.reader(path.read_text().splitlines())
    written = ["'=1+1", "'+a", "'-b", "'@c", "''=1+1", "'d", "e=1", ""]
    assert header == [line[0] for line in lines] == written
    assert [cell[1:] if cell.lstrip("'")[:1] in tuple("=+-@") else cell for cell in written] == ids
    assert {cell for line in lines for cell in line[1:]} == {"-1.0"}
    numbers = ScoreMatrix(values[:1, :1], query_ids=[-3], train_ids=[-4]).to_csv(tmp_path / "numbers.csv")
    assert numbers.read_text().splitlines() == ["query,-4", "-3,-1.0"]


def test_top_k_parquet_holds_both_sides(tmp_path):
    kept = TopK.from_blocks(small_matrix().blocks(3), 1)
    path = kept.to_parquet(tmp_path / "top.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(path), kept.to_pandas(), check_exact=True)
    assert json.loads(pq.read_schema(path).metadata[b"whence"])["kind"] == "TopK"


# --- outcomes ---------------------------------------------------------------------------------------------------------


def small_outcomes(effects, **changes):
    _, n_points, n_query, n_sets = effects.shape
    fields = {
        "effects": effects,
        "level": torch.ones(n_points, n_query),
        "eps": torch.finfo(torch.float32).eps,
        "points": tuple(range(1, n_points + 1)),
        "point_unit": "epochs",
        "query_ids": range(n_query),
        "left_out": [(i,) for i in range(n_sets)],
    }
    return Outcomes(**(fields | changes))


def test_mean_and_standard_error_over_seeds():
    effects = torch.tensor([1.0, 3.0]).reshape(2, 1, 1, 1).expand(2, 1, 2, 3)
    outcomes = small_outcomes(effects)
    assert_close(outcomes.mean(), torch.full((1, 2, 3), 2.0, dtype=torch.float64))
    assert_close(outcomes.standard_error(), torch.full((1, 2, 3), 1.0, dtype=torch.float64))  # sqrt(2) / sqrt(2)
    assert bool(small_outcomes(effects[:1]).standard_error().isnan().all())
    assert (outcomes.n_seeds, outcomes.set_sizes) == (2, (1, 1, 1))


def test_effects_no_larger_than_rounding_are_undefined():
    eps = torch.finfo(torch.float32).eps
    rows = torch.tensor([[15 * eps, -15 * eps], [17 * eps, -17 * eps], [1.0, 1.0], [0.0, 0.0]])
    level = torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    assert small_outcomes(rows[None, None], level=level).defined(0).tolist() == [False, True, False, False]


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"points": (1, 2)}, ShapeError, r"`effects` must be .* 2, 2, 3\); got \(1, 1, 2, 3\)"),
        ({"level": torch.ones(2)}, ShapeError, "`level` must be"),
        ({"left_out": [(0,), (), (2,)]}, DataError, "At least one left-out id"),
        ({"left_out": [(0,), (1, 1), (2,)]}, DataError, "more than once"),
        ({"eps": 0.0}, InputError, "`eps`"),
        ({"point_unit": "epoch"}, UnknownNameError, "epochs"),
        ({"adjustment": "median"}, UnknownNameError, "mean"),
    ],
)
def test_outcomes_that_do_not_fit_are_refused(changes, error, words):
    with pytest.raises(error, match=words):
        small_outcomes(torch.rand(1, 1, 2, 3), **changes)


def test_a_diverged_run_is_named():
    effects = torch.rand(2, 1, 2, 3)
    effects[1, 0, 0, 2] = math.nan
    with pytest.raises(NonFiniteError, match="seed 1, point 1, query 0, left-out set 2"):
        small_outcomes(effects)
