"""An extension of griffe: the references of docstrings, such as :func:`~msrnn.generate`, become links of the site.

A reference to a name that does not exist stops the build. A name without a page of its own is shown without a link.
"""

import re
from collections import defaultdict
from typing import Any

import griffe

EXTERNAL = ("torch", "nn", "tokenizers", "transformers", "gguf", "numpy")
"""Packages without pages here; their names are shown without a link."""
PACKAGES = ("msrnn", "converters")
ROLE = re.compile(r":(?:func|class|meth|mod|attr|data):`(~?)\.?([^`<]+)`")


class References(griffe.Extension):
    """Rewrites all docstrings of a package after it is loaded."""

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **_: Any) -> None:
        """Rewrite the docstrings of ``pkg``.

        Raises:
            ValueError: a docstring refers to names that do not exist; all are listed.
        """
        self.index, self.missing = defaultdict[str, set[str]](set), list[str]()
        self._add_to_index(pkg)
        self._rewrite(pkg)
        if self.missing:
            raise ValueError("docstrings refer to names that do not exist:\n" + "\n".join(self.missing))

    def _add_to_index(self, owner: Any) -> None:
        """Collect the last one and the last two parts of every path."""
        for member in owner.members.values():
            if not member.is_alias:
                self.index[member.name].add(member.path)
                self.index[f"{owner.name}.{member.name}"].add(member.path)
                self._add_to_index(member)

    def _rewrite(self, owner: Any) -> None:
        if owner.docstring is not None:
            owner.docstring.value = ROLE.sub(lambda match: self._link(owner, match), owner.docstring.value)
        for member in owner.members.values():
            if not member.is_alias:
                self._rewrite(member)

    def _link(self, owner: Any, match: re.Match[str]) -> str:
        short, name = match[1], match[2]
        shown = name.rpartition(".")[2] if short else name
        path = self._resolve(owner, name)
        if path is None:
            self.missing.append(f"{owner.path}: {name}")
        return f'<autoref identifier="{path}" optional><code>{shown}</code></autoref>'

    def _resolve(self, owner: Any, name: str) -> str | None:
        """Return the full path of a name as ``owner`` sees it, or else the only one in the package."""
        modules, scope = owner.modules_collection, owner
        first, package = name.split(".")[0], owner.path.split(".")[0]
        if first in EXTERNAL or (first in PACKAGES and first != package):
            return name
        while scope is not None:
            for candidate in (f"{scope.path}.{name}", name):
                if _exists(modules, candidate):
                    return modules[candidate].canonical_path
            scope = scope.parent
        found = self.index[".".join(name.split(".")[-2:])] or self.index[name]
        return next(iter(found)) if len(found) == 1 else None


def _exists(modules: Any, path: str) -> bool:
    try:
        return bool(modules[path].canonical_path)
    except (KeyError, griffe.AliasResolutionError):
        return False
