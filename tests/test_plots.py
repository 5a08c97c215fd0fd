"""Figures are looked at, not tested; text that is marked for a page is."""

import pytest

from bert_course import plots


def test_a_highlighted_span_has_its_label_beside_it_as_text():
    page = plots.highlighted([("model", "Ada left Bath", [(0, 3, "PER"), (9, 13, "LOC")])], ["PER", "LOC"]).data
    assert "[Ada <b><small>PER</small></b>]</span> left <span" in page
    assert page.endswith("[Bath <b><small>LOC</small></b>]</span></p>")


def test_highlighted_text_cannot_break_the_page():
    page = plots.highlighted([("<i>", "a < b & <script>", [(0, 5, "<X>")])], ["<X>"]).data
    assert "<b>&lt;i&gt;</b>: " in page and "[a &lt; b <b><small>&lt;X&gt;</small></b>]</span> &amp; &lt;script&gt;" in page


def test_more_labels_than_colours_are_refused():
    assert plots.highlighted([], list("ABCDEFG")).data == ""
    with pytest.raises(ValueError, match="8 labels, but there are colours for at most 7 labels"):
        plots.highlighted([], list("ABCDEFGH"))


def test_a_label_has_the_same_colour_in_every_text():
    labels = ["PER", "LOC"]
    one, other = (plots.highlighted([("", "Lima", [(0, 4, "LOC")])], labels).data, plots.highlighted(
        [("", "Ada in Lima", [(0, 3, "PER"), (7, 11, "LOC")])], labels).data)
    assert one.removeprefix('<p style="margin:0.3em 0">') in other
