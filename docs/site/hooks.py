"""Fits into the site the README and its companions, which lie beside docs/, and notebooks beside their pages."""

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages of files beside docs/; a notebook does not take the place of a page of the same name."""
    root = Path(config.config_file_path).parent
    for name, page in PAGES.items():
        files.append(File.generated(config, page, content=(root / name).read_text()))
    for file in files:
        if file.src_uri.endswith(".ipynb"):
            file.dest_uri = file.url = f"{file.name}_notebook.html"
            file.abs_dest_path = str(Path(config.site_dir) / file.dest_uri)
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Turns links between docs/ and the files beside it into links inside the site."""
    outside = "" if page.file.src_uri in PAGES.values() else "../" * (page.file.src_uri.count("/") + 1)
    for name, inside in PAGES.items():
        markdown = markdown.replace(f"]({outside}{name}", f"]({outside[3:]}{inside}")
    return markdown.replace("](docs/", "](") if not outside else markdown


def on_page_content(html: str, page: Page, **_: Any) -> str:
    """Turns links of a notebook to pages into links inside the site."""
    return re.sub(r'href="([\w./]+)\.md\b', r'href="\1.html', html) if page.file.src_uri.endswith(".ipynb") else html
