"""Where tools write: what stands in the way is named."""

import pytest

from snella_seg.loading.files import atomic_write, make_folder


def test_a_folder_where_a_file_is_to_be_written(tmp_path):
    with pytest.raises(IsADirectoryError, match=f"{tmp_path} is a folder, where a file"):
        with atomic_write(tmp_path) as partial:
            partial.write_text("never")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("below", ["a.txt", "more/a.txt"])
def test_a_file_where_a_folder_is_to_be(tmp_path, below):
    taken = tmp_path / "taken"
    taken.write_text("mine")
    with pytest.raises(NotADirectoryError, match=f"{taken} is a file, where a folder"):
        with atomic_write(taken / below) as partial:
            partial.write_text("never")
    assert taken.read_text() == "mine"


def test_a_folder_is_made_with_those_above_it(tmp_path):
    assert make_folder(tmp_path / "a/b").is_dir() and make_folder(tmp_path / "a/b").is_dir()
