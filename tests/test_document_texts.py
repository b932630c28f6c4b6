"""Texts that are read from their file a row group at a time."""

from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sae_explore.document_texts import DocumentTexts

TEXTS = [f"text {i} 🦜" for i in range(730)]


@pytest.fixture
def file(tmp_path):
    pq.write_table(pa.table({"id": list(map(str, range(730))), "text": TEXTS}), tmp_path / "a.parquet", row_group_size=100)
    return tmp_path / "a.parquet"


def test_each_text_is_found_whatever_the_order_and_few_are_kept(file):
    texts = DocumentTexts(file)
    assert len(texts) == 730
    order = [i * 311 % 730 for i in range(730)]
    assert [texts[i] for i in order] == [TEXTS[i] for i in order]
    assert len(texts._groups) == 4
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(texts.__getitem__, order)) == [TEXTS[i] for i in order]


def test_the_texts_stay_when_the_file_goes(file):
    texts = DocumentTexts(file)
    file.unlink()
    assert texts[729] == TEXTS[729]


@pytest.mark.parametrize("statistics", [True, False])
def test_gaps_are_counted(tmp_path, statistics):
    pq.write_table(pa.table({"text": ["a", None, "b", None, None]}), tmp_path / "a.parquet", row_group_size=2, write_statistics=statistics)
    texts = DocumentTexts(tmp_path / "a.parquet")
    assert (texts.gaps, texts[1], texts[2]) == (3, None, "b")


def test_a_file_without_texts_is_refused(tmp_path):
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(KeyError, match="text"):
        DocumentTexts(tmp_path / "a.parquet")
