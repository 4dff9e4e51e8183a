"""Which names of an engine's Python interface a source file uses, and which of them the installed package lacks.

A spelling mistake in a name of TensorRT shows on a GPU alone: elsewhere no line of it runs. So the source is read, not
run. What a name stands for is followed from the module through assignments, loops, results of functions and
parameters; results of the package's own functions are read from its docstrings. One name means one thing in a file:
a parameter `context` is whatever else is called `context` there.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

_MISSING = object()
_OTHER_NAMES = {"IParserError": "ParserError"}
"""Of C++, where a docstring has it, and of Python."""


@dataclass(frozen=True, slots=True)
class Ref:
    """What an expression stands for.

    kind: "object", the module, class or function itself; "instance" of a class; "call", what gives `what` when called;
    "list" of `what`; "tuple", one Ref or None per entry. None in place of a Ref: not of the package.
    """

    kind: str
    what: Any


@dataclass(frozen=True, slots=True)
class Use:
    """An attribute of something that belongs to the package. optional: the source does without it (getattr)."""

    line: int
    name: str
    there: bool
    optional: bool


@dataclass(slots=True)
class Report:
    """What a file uses; and what was not followed, so that nothing is left out unseen."""

    uses: list[Use] = field(default_factory=list)
    unfollowed: list[str] = field(default_factory=list)


class Reader:
    """Reads one source file. roots: name or attribute -> the object it stands for, such as {"trt": module}.

    declared: name -> class of the module, for what the package hands in itself (arguments of a callback).
    """

    def __init__(self, source: str, module: ModuleType, roots: Mapping[str, Any], declared: Mapping[str, str]) -> None:
        self.tree, self.module = ast.parse(source), module
        self.known: dict[str, Ref] = {name: Ref("object", value) for name, value in roots.items()}
        for name, path in declared.items():
            found = self._class(path)
            if found is not None:
                self.known[name] = Ref("instance", found)
        self.results: dict[str, Ref] = {}
        self.report = Report()

    def read(self) -> Report:
        """Follow all names until nothing new is found, then list the uses."""
        before = -1
        while before != len(self.known) + len(self.results):
            before = len(self.known) + len(self.results)
            for node in ast.walk(self.tree):
                self._learn(node)
        for node in ast.walk(self.tree):
            self._note(node)
        return self.report

    # ---- what names stand for ------------------------------------------------------------------------------------

    def _learn(self, node: ast.AST) -> None:
        match node:
            case ast.Assign(targets=targets, value=value):
                for target in targets:
                    self._bind(target, self._type(value))
            case ast.AnnAssign(target=target, value=ast.expr() as value) | ast.NamedExpr(target=target, value=value):
                self._bind(target, self._type(value))
            case ast.For(target=target, iter=items) | ast.comprehension(target=target, iter=items):
                self._bind(target, _element(self._type(items)))
            case ast.withitem(context_expr=value, optional_vars=ast.expr() as target):
                self._bind(target, self._type(value))
            case ast.ClassDef(name=name, bases=bases):
                for base in bases:
                    self._bind(ast.Name(name), self._type(base))
            case ast.FunctionDef(name=name):
                for inner in _own_nodes(node):
                    found = self._type(inner.value) if isinstance(inner, ast.Return) else None
                    if found is not None:
                        self.results[name] = found

    def _bind(self, target: ast.expr, found: Ref | None) -> None:
        if found is None:
            return
        if isinstance(target, ast.Tuple | ast.List):
            parts = found.what if found.kind == "tuple" else [_element(found)] * len(target.elts)
            for inner, part in zip(target.elts, parts, strict=False):
                self._bind(inner, part)
            return
        name = target.id if isinstance(target, ast.Name) else target.attr if isinstance(target, ast.Attribute) else ""
        if name and self.known.setdefault(name, found) != found:
            self._unfollowed(target, f"{name} stands for two things in this file: give one of them another name")

    def _type(self, node: ast.expr | None) -> Ref | None:
        match node:
            case ast.Name(id=name):
                return self.known.get(name)
            case ast.Attribute(value=value, attr=attr):
                base = self._type(value)
                return self.known.get(attr) if base is None else self._member(base, attr)
            case ast.Call(func=ast.Name(id="getattr"), args=[owner, ast.Constant(value=str(attr)), *_]):
                base = self._type(owner)
                return None if base is None else self._member(base, attr)
            case ast.Call(func=function):
                return self._called(function)
            case ast.IfExp(body=first, orelse=second):
                return self._type(first) or self._type(second)
            case ast.BoolOp(values=values):
                return next(filter(None, map(self._type, values)), None)
            case ast.Tuple(elts=elements) | ast.List(elts=elements):
                parts = tuple(map(self._type, elements))
                return Ref("tuple", parts) if any(parts) else None
            case ast.ListComp(elt=element) | ast.GeneratorExp(elt=element):
                inner = self._type(element)
                return None if inner is None else Ref("list", inner)
            case ast.Subscript(value=value):
                return _element(self._type(value))
        return None

    def _called(self, function: ast.expr) -> Ref | None:
        found = self._type(function)
        if found is None:
            name = getattr(function, "id", getattr(function, "attr", ""))
            return self.results.get(name)
        if found.kind == "call":
            result: Ref | None = found.what
            return result
        return Ref("instance", found.what) if isinstance(found.what, type) and found.kind == "object" else None

    def _member(self, base: Ref, name: str) -> Ref | None:
        value = getattr(base.what, name, _MISSING) if base.kind in ("object", "instance") else _MISSING
        if value is _MISSING:
            return None
        if isinstance(value, property):
            return self._result(value.fget.__doc__ or "")
        if isinstance(value, type | ModuleType):
            return Ref("object", value)
        if callable(value):
            return Ref("call", self._result(value.__doc__ or ""))
        owner = type(value)  # a member of an enumeration
        return Ref("instance", owner) if owner.__module__.split(".")[0] == self.module.__name__.split(".")[0] else None

    def _result(self, doc: str) -> Ref | None:
        """What a docstring tells of a result: "-> Class" (pybind11), or a section "Returns" (cuda-bindings)."""
        arrows = [self._named(text.strip()) for text in re.findall(r"\) -> (.+)", doc)]
        section = re.search(r"^Returns\n-+\n(.*?)(?:\n\n|\Z)", doc, re.MULTILINE | re.DOTALL)
        if section is None:
            return next(filter(None, arrows), None)
        lines = [line for line in section[1].splitlines() if line and not line.startswith(" ")]
        classes = [self._class(re.sub(r".* : |:py:obj:`~?\.?|`", "", line)) for line in lines]
        return Ref("tuple", tuple(None if found is None else Ref("instance", found) for found in classes))

    def _named(self, text: str) -> Ref | None:
        inner = re.fullmatch(r"(?:list|List)\[(.+)\]", text)
        if inner is not None:
            return Ref("list", self._named(inner[1]))
        found = self._class(text)
        if found is not None:
            return Ref("instance", found)
        first = re.split(r"\W", text)[0]
        if not hasattr(builtins, first) and first not in ("typing", "numpy", "capsule"):
            return Ref("unfollowed", text)
        return None

    def _class(self, path: str) -> type | None:
        """The class of a dotted path, with or without the module's name (or a namespace of C++) before it."""
        parts = [_OTHER_NAMES.get(part, part) for part in re.split(r"\.|::", path)]
        for start in range(len(parts)):
            found: Any = self.module
            for part in parts[start:]:
                found = getattr(found, part, None)
            if isinstance(found, type):
                return found
        return None

    # ---- what is used --------------------------------------------------------------------------------------------

    def _note(self, node: ast.AST) -> None:
        match node:
            case ast.Attribute(value=owner, attr=name):
                self._use(node, owner, name, optional=False)
            case ast.Call(
                func=ast.Name(id="getattr" | "hasattr" as how), args=[owner, ast.Constant(value=str(name)), *more]
            ):
                self._use(node, owner, name, optional=how == "hasattr" or bool(more))
            case ast.arg(arg=name, annotation=ast.Name(id="Any" | "object")):
                if name not in self.known:
                    self._unfollowed(node, f"nothing tells what the parameter {name} is")
            case ast.AnnAssign(target=ast.Name(id=name), annotation=ast.Name(id="Any" | "object")):
                if name not in self.known:
                    self._unfollowed(node, f"nothing tells what {name} is")
            case ast.FunctionDef(name=name, returns=ast.Name(id="Any" | "object")):
                if name not in self.results:
                    self._unfollowed(node, f"nothing tells what {name}() gives")

    def _use(self, node: ast.expr, owner: ast.expr, name: str, *, optional: bool) -> None:
        base = self._type(owner)
        if base is None or base.kind not in ("object", "instance", "unfollowed"):
            return
        if base.kind == "unfollowed":
            self._unfollowed(node, f"{name} of a {base.what}, which the module has not")
            return
        is_module = isinstance(base.what, ModuleType)
        full = name if is_module else f"{base.what.__qualname__}.{name}"
        self.report.uses.append(Use(node.lineno, full, hasattr(base.what, name), optional))

    def _unfollowed(self, node: ast.expr | ast.AST, what: str) -> None:
        self.report.unfollowed.append(f"line {getattr(node, 'lineno', 0)}: {what}")


def _element(found: Ref | None) -> Ref | None:
    """What a loop over it, or an index, gives."""
    if found is None or found.kind not in ("list", "tuple"):
        return None
    if found.kind == "list":
        inner: Ref | None = found.what
        return inner
    parts = [part for part in found.what if part is not None]
    if all(part.kind == "tuple" for part in parts):  # rows: what stands in the same place is of one kind
        columns = zip(*(part.what for part in parts), strict=False)
        return Ref("tuple", tuple(next(filter(None, column), None) for column in columns))
    return parts[0]


def _own_nodes(function: ast.FunctionDef) -> Iterator[ast.AST]:
    """All nodes of a function, but those of functions and classes in it."""
    waiting: list[ast.AST] = list(function.body)
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Lambda):
            waiting.extend(ast.iter_child_nodes(node))


def engine_names(source: str, module: ModuleType, declared: Mapping[str, str]) -> Report:
    """Uses of `module`, which the source calls `trt` or keeps as `_trt`."""
    return Reader(source, module, {"trt": module, "_trt": module}, declared).read()


def cuda_names(source: str) -> Report:
    """Uses of cuda-bindings, whose modules the source imports (`from cuda.bindings import runtime as cuda`)."""
    roots = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module == "cuda.bindings":
            for alias in node.names:
                roots[alias.asname or alias.name] = importlib.import_module(f"cuda.bindings.{alias.name}")
    if not roots:
        return Report()
    return Reader(source, next(iter(roots.values())), roots, {}).read()


def main(module: str, declared: str, *files: str) -> None:
    """For a module that can be imported in a process of its own alone: one JSON object, file -> its report."""
    package = importlib.import_module(module)
    reports = {
        file: asdict(engine_names(Path(file).read_text(encoding="utf-8"), package, json.loads(declared)))
        for file in files
    }
    print(json.dumps(reports))


if __name__ == "__main__":
    main(*sys.argv[1:])
