"""Makes pages of what lies beside docs/: the README and its companions."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages, with their links as they are from within docs/."""
    root = Path(config.config_file_path).parent
    for name, page in PAGES.items():
        text = (root / name).read_text()
        for link, inside in {"docs/": "", **PAGES}.items():
            text = text.replace(f"]({link}", f"]({inside}")
        files.append(File.generated(config, page, content=text))
    return files
