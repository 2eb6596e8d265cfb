"""The docs: their examples as they stand, their pictures, and the site that is made of them."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import pytest

from tests.conftest import SMALL, succeed
from tests.examples import COMMANDS, DOCS, FILES, write_examples
from twmaml.analysis.figures import FIGURES as OF_COMPARISONS
from twmaml.figures.run import FIGURES

ROOT = DOCS.parent
MARKDOWN = {path: path.read_text() for path in (*ROOT.glob("*.md"), *DOCS.rglob("*.md"))}
PICTURE = re.compile(r"!\[[^]]+\]\(([^)]+)\)")


def test_every_example_is_a_module_and_a_yaml_of_at_most_40_lines():
    assert len(FILES) == 2 * len(COMMANDS) >= 12
    assert all(len(content.splitlines()) <= 40 for content in FILES.values())


@pytest.mark.parametrize("command", COMMANDS)
def test_an_example_runs(command, tmp_path, environment):
    write_examples(tmp_path)
    small = [item for item in SMALL if not item.startswith(("task.", "evaluation.cells")) or "task=" not in command]
    process = subprocess.run(
        [sys.executable, "-m", *command.split(), *small, "wandb.mode=disabled"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    drawn = {path.stem for path in tmp_path.glob("outputs/*/*/figures/*.png")}
    assert {*FIGURES} - {"pictures", "learned", "contexts"} <= drawn  # of some families and adaptations only
    assert ("forgotten" in drawn) == ("forgotten" in command)


def test_a_trained_initialisation_is_used(train, tmp_path, environment):
    succeed(train("hydra.run.dir=run"))
    (code,) = re.findall(r"```python\n(import sys\n.*?)```", MARKDOWN[DOCS / "start.md"], re.DOTALL)
    command = [sys.executable, "-c", code, "run"]
    output = succeed(
        subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    )
    assert re.fullmatch(r"loss after 5 steps on 10 examples: \d+\.\d+\n", output.stdout)


def test_every_picture_is_shown_and_is_there():
    shown = {(path.parent / picture).resolve() for path, text in MARKDOWN.items() for picture in PICTURE.findall(text)}
    assert shown == {*DOCS.rglob("*.png")}


def test_the_gallery_has_every_figure_with_a_command():
    sections = re.split(r"^#+ ", MARKDOWN[DOCS / "gallery.md"], flags=re.MULTILINE)
    shown = [section for section in sections if PICTURE.search(section)]
    assert all(re.search(r"^python -m twmaml\.train ", section, re.MULTILINE) for section in shown)
    titles = {section.split("`")[1] for section in shown if section.startswith("`")}
    assert {*FIGURES, *OF_COMPARISONS} <= titles


class References(HTMLParser):
    """The addresses that a page fetches, and those that it only links."""

    def __init__(self, page):
        super().__init__()
        self.fetched, self.linked = [], []
        self.feed(page.read_text())

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name in ("src", "href", "srcset", "data", "poster"):
                (self.linked if tag == "a" else self.fetched).append(value or "")


def test_the_site_fetches_nothing_from_outside_and_no_link_of_it_is_broken(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    succeed(subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False))
    pages = [page for page in tmp_path.rglob("*.html") if page.name != "404.html"]
    assert len(pages) >= len([path for path in MARKDOWN if path.is_relative_to(DOCS)])
    for page in pages:
        references = References(page)
        fetched = [link for link in references.fetched if urlsplit(link).scheme != "data"]
        inside = [link for link in references.linked if urlsplit(link).scheme not in ("http", "https")]
        for link in (*fetched, *inside):
            parts = urlsplit(link)
            assert (parts.scheme, parts.netloc) == ("", ""), f"{page.name} needs {link}"
            assert (page.parent / unquote(parts.path)).exists(), f"{page.name} leads to {link}, which is not there"
    styles = "".join(path.read_text() for path in tmp_path.rglob("*.css"))
    assert not re.search(r"""(url\(|@import)\s*["']?(https?:)?//""", styles)
