"""Lets the reference show the arguments of Pydantic's dataclasses: Griffe knows only the standard library's."""

from typing import Any

from griffe import Alias, Extension


class PydanticDataclasses(Extension):
    """Reads `pydantic.dataclasses.dataclass` as `dataclasses.dataclass`."""

    def on_alias_instance(self, *, alias: Alias, **_: Any) -> None:
        """Changes what an import names."""
        if alias.target_path == "pydantic.dataclasses.dataclass":
            alias.target_path = "dataclasses.dataclass"
            assert alias.parent is not None
            alias.parent.imports[alias.name] = alias.target_path
