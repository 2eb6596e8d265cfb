"""The examples of the docs as modules and files, for the tests that build on them."""

import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent.parent / "docs"
PAGES = "\n".join((DOCS / f"{name}.md").read_text() for name in ("samplers", "families", "adaptations", "gallery"))
"""Those that tell how a part is added."""
FILES = dict(re.findall(r"^`([\w/.]+)`:\n\n```\w+\n(.*?)```", PAGES, re.MULTILINE | re.DOTALL))
COMMANDS = re.findall(r"^python -m (twmaml\.train --config-dir .*)$", PAGES, re.MULTILINE)


def write_examples(folder: Path) -> None:
    """Writes every example below a folder, as its reader would."""
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)


def example(module: str, name: str) -> Any:
    """The class or function of an example's module."""
    scope: dict[str, Any] = {"__name__": module}
    exec(compile(FILES[f"{module}.py"], f"{module}.py", "exec"), scope)
    return scope[name]
