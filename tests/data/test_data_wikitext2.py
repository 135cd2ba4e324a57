"""WikiText-2: the source's counts, sequences that stay within articles, and damaged files."""

import gzip
import os

import pytest
import torch

from whence.data.sst2 import PADDING, UNKNOWN
from whence.data.wikitext2 import (
    TEST,
    TRAIN,
    load_wikitext2,
    read_articles,
    wikitext2_vocabulary,
    windows,
)
from whence.errors import DataError, InputError

needs_data = pytest.mark.skipif(
    not os.environ.get("WHENCE_DATA"), reason="WHENCE_DATA is not set: it names the folder of the larger data sets"
)
LINES = [" ", " = One = ", " ", " a b <unk> ", " = = Part = = ", " c ", " = 1 x = ", " ", " = Two = ", " ", " a ", ""]
WORDS = "= One = <eos> a b <unk> <eos> = = Part = = <eos> c <eos> = 1 x = <eos> = Two = <eos> a <eos>"
ONE, TWO = WORDS.split()[:21], WORDS.split()[21:]


def written(monkeypatch, folder, text):
    """A data folder whose train part holds this text."""
    path = folder / TRAIN[0]
    path.parent.mkdir(parents=True)
    path.write_bytes(gzip.compress(text.encode()))
    monkeypatch.setenv("WHENCE_DATA", str(folder))


def test_articles_begin_at_titles_that_follow_an_empty_line(monkeypatch, tmp_path):
    """A formula that looks like a title follows a line of text."""
    written(monkeypatch, tmp_path, "\n".join(LINES))
    assert read_articles(TRAIN[0], 2) == [ONE, TWO]
    with pytest.raises(DataError, match="it must have 3 articles; found 2"):
        read_articles(TRAIN[0], 3)


def test_sequences_stay_within_articles():
    assert windows([ONE, TWO], 8) == [" ".join(ONE[:8]), " ".join(ONE[8:16])]
    assert windows([ONE, TWO], 6) == [*(" ".join(ONE[k : k + 6]) for k in (0, 6, 12)), " ".join(TWO)]
    assert windows([ONE, TWO], 99) == []


def test_damaged_files_are_refused(monkeypatch, tmp_path):
    written(monkeypatch, tmp_path, "\n".join(LINES))
    path = tmp_path / TRAIN[0]
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match="is damaged"):
        read_articles(*TRAIN)


@needs_data
@pytest.mark.parametrize("source, n_words", [(TRAIN, 217_646), (TEST, 245_569)])
def test_the_counts_of_words_are_those_published(source, n_words):
    """Merity et al. (2016), arXiv:1609.07843, table 1; they count the end of every line, empty ones among them."""
    articles = read_articles(*source)
    path = os.path.join(os.environ["WHENCE_DATA"], source[0])
    with gzip.open(path, "rt", encoding="utf-8") as file:
        empty = sum(not line.strip() for line in file)
    assert sum(map(len, articles)) + empty == n_words
    assert all(article[0] == "=" and article[-1] == "<eos>" for article in articles)


@needs_data
def test_the_words_of_sequences_come_back():
    found = load_wikitext2(n_train=50, n_test=20, length=32, vocabulary=1000)
    words = wikitext2_vocabulary(vocabulary=1000)
    assert (len(found.train), len(found.test), found.n_classes, len(words)) == (50, 20, 1000, 1000)
    assert "<eos>" in words.words
    assert "<unk>" not in words.words
    for part in (found.train, found.test):
        ids = part.all()["input_ids"]
        assert ids.shape[1] == 32
        assert ids.dtype == torch.int64
        assert int(ids.min()) == UNKNOWN > PADDING
        known = {*words.words}
        expected = [" ".join(w if w in known else "[?]" for w in text.split()) for text in part.texts]
        assert [words.decode(row) for row in ids] == expected
    assert found.train.texts[0].startswith("= Homarus gammarus = <eos> Homarus gammarus , known as")


@needs_data
def test_more_than_there_is_is_refused():
    with pytest.raises(InputError, match="`n_train` must be at most"):
        load_wikitext2(n_train=10**6)
    with pytest.raises(InputError, match="`length` must be an integer of at least 2"):
        load_wikitext2(length=1)
