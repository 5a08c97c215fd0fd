"""Every lesson has the course's anatomy and is stored in a state that reads well. nbval runs the lessons themselves."""

import re

import nbformat
import pytest

from bert_course import cli, stamp

LESSONS = stamp.lessons()
README = (stamp.ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(params=LESSONS, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture
def lesson(path):
    return nbformat.read(path, as_version=4)


def markdown(lesson):
    return [cell for cell in lesson.cells if cell.cell_type == "markdown"]


def code(lesson):
    return [cell for cell in lesson.cells if cell.cell_type == "code"]


def test_everything_is_stamped(capsys):
    assert cli.main(["stamp", "--check"]) == 0, capsys.readouterr().out


def test_the_title_and_the_badge_come_first(path, lesson):
    title = lesson.cells[0].source
    assert title.startswith("# ")
    assert stamp.badge(path) in title.splitlines()


def test_the_setup_cell_is_the_first_code_cell_and_short(lesson):
    assert code(lesson)[0].source == stamp.setup_cell()
    assert len(stamp.setup_cell().splitlines()) <= 5


def test_it_is_stored_executed_from_top_to_bottom(lesson):
    counts = [cell.execution_count for cell in code(lesson)]
    assert counts == list(range(1, len(counts) + 1))


def test_it_ends_with_what_we_learned(lesson):
    assert any(re.search(r"^#+ What we learned", cell.source, re.M) for cell in markdown(lesson)[-3:])


def test_it_links_to_the_next_lesson(path, lesson):
    following = LESSONS[LESSONS.index(path) + 1:]
    if following:
        assert f"]({following[0].name})" in lesson.cells[-1].source


def test_its_relative_links_lead_somewhere(path, lesson):
    links = re.findall(r"\]\((?!https?:|#|attachment:)([^)#\s]+)", "\n".join(cell.source for cell in markdown(lesson)))
    assert [link for link in links if not (path.parent / link).exists()] == []


def test_its_code_cells_are_short(lesson):
    assert [cell.source for cell in code(lesson) if len(cell.source.splitlines()) > 25] == []


def test_it_stores_no_widgets(lesson):
    assert "widgets" not in lesson.metadata


def test_it_stores_no_warnings_or_errors(lesson):
    outputs = [output for cell in code(lesson) if "raises-exception" not in cell.metadata.get("tags", [])
               for output in cell.outputs]
    assert [output for output in outputs if output.get("name") == "stderr" or output.output_type == "error"] == []


def test_it_stores_no_absolute_paths(path):
    absolute = re.compile(r"(?<![\w.])/(?:root|work|home|tmp|Users|usr|opt)/|\b[A-Z]:\\\\")
    assert [line for line in path.read_text(encoding="utf-8").splitlines() if absolute.search(line)] == []


def test_its_markdown_images_have_alt_text(lesson):
    text = "\n".join(cell.source for cell in markdown(lesson))
    assert re.findall(r"!\[\s*\]\(.*?\)|<img(?![^>]*\balt=)[^>]*>", text) == []


def test_its_figures_have_alt_text_and_are_explained(lesson):
    """A cell that draws has the alt text as "alt" in its metadata, and the next cell says what the figure shows."""
    for cell, following in zip(lesson.cells, [*lesson.cells[1:], None], strict=True):
        if any("image/png" in output.get("data", {}) for output in cell.get("outputs", [])):
            assert cell.metadata.get("alt"), f"no alt text in the metadata of\n{cell.source}"
            assert following is not None and following.cell_type == "markdown", f"not explained:\n{cell.source}"


def test_no_lesson_that_exists_is_called_planned(lesson):
    numbers = {path.name[:2] for path in LESSONS}
    planned = re.findall(r"\b(\d\d)\b[^.|\n]{0,30}\bplanned", "\n".join(cell.source for cell in markdown(lesson)))
    assert numbers.isdisjoint(planned)


def test_the_readme_lists_it(path):
    assert f"](notebooks/{path.name})" in README
