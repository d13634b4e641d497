"""Reports as Markdown and as a page: nothing that a run is named by becomes markup."""

import pytest
from scipy.stats import t

from snella_seg.lab.compare.statistics import confidence
from snella_seg.lab.document import Document, Section, markdown_table, render_template


@pytest.fixture
def document() -> Document:
    table = Section("A table", "Of <b>.", header=["name", "value"], rows=[["a|b", "<1"]])
    empty = Section("For the page alone", live=render_template("player.html", history={}, view={}))
    return Document("<Run> & co", [("command", "<x>")], [table, empty], ["a 'note'"])


def test_text_is_escaped_on_the_page(document):
    page = document.html()
    assert "<h1>&lt;Run&gt; &amp; co</h1>" in page and "<td>&lt;x&gt;</td>" in page
    assert "<td>a|b</td><td>&lt;1</td>" in page and "Of &lt;b&gt;." in page
    assert "<b>" not in page and '<p class="note">a &#39;note&#39;</p>' in page
    assert page.count('<script type="application/json"') == 2


def test_data_cannot_end_the_script():
    page = render_template("player.html", history={"names": ["</script><b>"]}, view={})
    assert "</script><b>" not in page and "\\u003c/script\\u003e\\u003cb\\u003e" in page


def test_markdown(document):
    text = document.markdown()
    assert text.startswith("# <Run> & co\n\n- **command**: <x>\n\nNote: a 'note'\n\n## A table")
    assert "| a\\|b | <1 |" in text and "For the page alone" not in text
    assert markdown_table(["a", "b"], [[1, 2]]).splitlines()[1] == "| --- | ---: |"


def test_files_lie_side_by_side(document, tmp_path):
    assert document.write(tmp_path / "new", "index.html").read_text() == document.html()
    assert (tmp_path / "new/report.md").read_text() == document.markdown()


@pytest.mark.parametrize("count", [2, 5, 31])
def test_intervals_are_those_of_student(count):
    half = confidence(2.0, count)
    assert t.cdf(half / 2.0, count - 1) == pytest.approx(0.975)
    assert confidence(1.0, 2) == pytest.approx(12.706, abs=1e-3)
