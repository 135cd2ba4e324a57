"""SST-2: counts of the source, two copies against each other, the vocabulary, and damaged files."""

import gzip
import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from whence.data.sst2 import (
    DEV,
    PADDING,
    PHRASES,
    SENTENCES,
    UNKNOWN,
    Vocabulary,
    as_in_sentences,
    load_sst2,
    sst2_texts,
    sst2_vocabulary,
)
from whence.errors import DataError, InputError

needs_data = pytest.mark.skipif(
    not os.environ.get("WHENCE_DATA"), reason="WHENCE_DATA is not set: it names the folder of the larger data sets"
)
words = st.text("abc", min_size=1, max_size=3)
sentences = st.lists(words, min_size=1, max_size=6).map(" ".join)


# Vocabulary


def test_words_come_by_frequency_then_by_alphabet():
    texts = ["b d b", "c a a", "b"]
    assert Vocabulary.of(texts, 10).words == ("b", "a", "c", "d")
    assert Vocabulary.of(texts, 5).words == ("b", "a", "c")
    assert len(Vocabulary.of(texts, 5)) == 5


def test_texts_are_cut_padded_and_masked():
    vocabulary = Vocabulary(("good", "film"))
    ids, mask = vocabulary.encode(["good film", "a good film indeed", "film"], 3)
    assert ids.tolist() == [[2, 3, PADDING], [UNKNOWN, 2, 3], [3, PADDING, PADDING]]
    assert mask.tolist() == [[1, 1, 0], [1, 1, 1], [1, 0, 0]]
    assert ids.dtype == mask.dtype == torch.int64
    assert [vocabulary.decode(row) for row in ids] == ["good film", "[?] good film", "film"]


@given(st.lists(sentences, min_size=1, max_size=4))
def test_a_vocabulary_of_all_words_loses_nothing(texts):
    vocabulary = Vocabulary.of(texts, 100)
    ids, mask = vocabulary.encode(texts, 6)
    assert [vocabulary.decode(row) for row in ids] == texts
    assert mask.sum(1).tolist() == [len(text.split()) for text in texts]


# The files


@needs_data
def test_parts_have_the_counts_of_the_source():
    # Rows and positive ones: GLUE (67,349, 872); the treebank's binary sentences (6,920, of them 3,610 positive).
    split = load_sst2()
    assert (split.kind, split.n_classes, split.train.class_names) == ("classification", 2, ("negative", "positive"))
    labels = [part.all()["labels"] for part in (split.train, split.test)]
    assert [(len(y), int(y.sum())) for y in labels] == [(6_920, 3_610), (872, 444)]
    phrases, _ = sst2_texts(sentences=False, n_test=1)
    assert (len(phrases.texts), int(phrases.labels.sum())) == (67_349, 37_569)


@needs_data
def test_no_text_is_cut_and_every_mask_fits():
    split = load_sst2()
    for part in (split.train, split.test):
        batch = part.all()
        assert batch["input_ids"].shape == batch["attention_mask"].shape == (len(part), 52)
        assert torch.equal(batch["input_ids"] != PADDING, batch["attention_mask"] == 1)
        assert batch["attention_mask"][:, -1].sum() == 0
        assert int(batch["input_ids"].max()) < 8192
        assert bool((batch["attention_mask"].diff(dim=1) <= 0).all())  # padding at the end only
    assert "0 train texts cut" in split.notes


@needs_data
def test_sentences_are_the_phrases_of_the_other_source_treated_alike():
    """Two sources hold the same texts; one lost some characters, and its brackets became `lrb` and `rrb`."""
    own, dev = sst2_texts()
    others, _ = sst2_texts(sentences=False, n_test=1)
    known: dict[str, set[int]] = {}
    for text, label in zip(others.texts, others.labels.tolist(), strict=True):
        known.setdefault(as_in_sentences(text), set()).add(label)
    brackets = sum("lrb" in text.split() or "rrb" in text.split() for text in own.texts)
    found = [label in known[text] for text, label in zip(own.texts, own.labels.tolist(), strict=True) if text in known]
    assert all(found)
    assert not {"-", ".", "é"} & set("".join(dev.texts))
    assert len(found) > 6_920 - brackets - 50  # some words are in British spelling there ("colour"): 35 texts


@needs_data
def test_the_vocabulary_is_that_of_the_train_rows_in_use():
    split, vocabulary = load_sst2(n_train=40, n_test=5), sst2_vocabulary(n_train=40)
    train, test = sst2_texts(n_train=40, n_test=5)
    assert set(vocabulary.words) == {word for text in train.texts for word in text.split()}
    assert [vocabulary.decode(row) for row in split.train.all()["input_ids"]] == list(train.texts)
    assert (split.train.texts, split.test.texts) == (train.texts, test.texts)
    shown = [vocabulary.decode(row).split() for row in split.test.all()["input_ids"]]
    for text, row in zip(test.texts, shown, strict=True):
        assert row == [word if word in vocabulary.words else "[?]" for word in text.split()]
    assert len(sst2_vocabulary(vocabulary=50)) == 50


@needs_data
def test_options_out_of_range_are_refused():
    for option in ({"n_train": 6_921}, {"n_test": 0}, {"length": 0}, {"vocabulary": 2}):
        with pytest.raises(InputError, match=next(iter(option))):
            load_sst2(**option)
    assert len(load_sst2(sentences=False, n_train=6_921, n_test=1).train) == 6_921


def test_an_unset_folder_says_what_to_set(monkeypatch):
    monkeypatch.delenv("WHENCE_DATA", raising=False)
    with pytest.raises(DataError, match="Set WHENCE_DATA to that folder"):
        load_sst2()


def pack(rows, header="sentence\tlabel"):
    return gzip.compress("\n".join([header, *rows, ""]).encode())


@pytest.mark.parametrize(
    "content, cause",
    [
        (b"no gzip", ""),
        (pack(["good\t1"] * DEV[1])[:-9], ""),
        (gzip.compress(b"\xff\xfe"), ""),
        (pack(["good\t1"] * DEV[1], header="text\tlabel"), "the columns must be sentence and label"),
        (pack(["good\t1"] * (DEV[1] - 1)), "it must have 872 rows; found 871"),
        (pack(["good\t1"] * (DEV[1] - 1) + ["good"]), "data row 871 is 'good'"),
        (pack(["good\t1"] * (DEV[1] - 1) + ["good\t2"]), "data row 871"),
        (pack(["good\t1"] * (DEV[1] - 1) + ["good\t"]), "data row 871"),
        (pack(["good\t1"] * (DEV[1] - 1) + [" \t1"]), "data row 871"),
    ],
    ids=["other", "truncated", "no text", "header", "short", "no label", "label", "empty label", "empty text"],
)
def test_damaged_files_are_named(monkeypatch, tmp_path, content, cause):
    monkeypatch.setenv("WHENCE_DATA", str(tmp_path))
    (tmp_path / "sst2").mkdir()
    (tmp_path / SENTENCES[0]).write_bytes(pack(["bad\t0"] * SENTENCES[1]))
    (tmp_path / PHRASES[0]).write_bytes(pack(["bad\t0"] * PHRASES[1]))
    (tmp_path / DEV[0]).write_bytes(pack(["good\t1"] * DEV[1]))
    assert len(load_sst2().train) == SENTENCES[1]  # these files are well; then one is not
    (tmp_path / DEV[0]).write_bytes(content)
    with pytest.raises(DataError, match=rf"dev\.tsv\.gz is damaged.*{cause}"):
        load_sst2()
