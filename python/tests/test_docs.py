# SPDX-License-Identifier: Apache-2.0
"""Docstrings' examples run, the stubs name what there is, README's examples are right."""

import ast
import doctest
import pathlib
import re

import numpy
import pytest

import kokkosmx
from kokkosmx import _core

MODULES = [kokkosmx, kokkosmx.reference, kokkosmx.rules]
PACKAGE = pathlib.Path(kokkosmx.__file__).parent


def documented():
    for module in MODULES:
        yield module.__name__, module.__doc__
        for name in getattr(module, "__all__", []):
            yield f"{module.__name__}.{name}", getattr(module, name).__doc__


EXAMPLES = {
    name: text for name, text in documented() if text and ">>>" in text and name != "kokkosmx.rules"
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples(name):
    if "import torch" in EXAMPLES[name]:
        pytest.importorskip("torch")
    test = doctest.DocTestParser().get_doctest(
        EXAMPLES[name], {"kokkosmx": kokkosmx, "numpy": numpy}, name, None, None
    )
    results = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test)
    assert results.attempted > 0 and results.failed == 0


def test_everything_public_is_documented():
    for module in MODULES:
        for name in module.__all__:
            value = getattr(module, name)
            if not isinstance(value, (str, dict)):
                assert value.__doc__ and len(value.__doc__) > 10, name
    # Functions show how they are used.
    functions = [n for n in kokkosmx.__all__ if callable(getattr(kokkosmx, n)) and n[0].islower()]
    assert {n for n in functions if f"kokkosmx.{n}" not in EXAMPLES} == set()
    functions = [n for n in kokkosmx.reference.__all__]
    assert {n for n in functions if f"kokkosmx.reference.{n}" not in EXAMPLES} == set()


def parameters(node):
    """Names, by position and by keyword, and which of them may be left out."""
    arguments = node.args
    names = [a.arg for a in arguments.args]
    return (
        [name for name in names if name != "self"],
        names[len(names) - len(arguments.defaults) :],
        [(a.arg, d is not None) for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults)],
    )


def parsed(signature):
    """nanobind's: ((signature, docstring, defaults), ...), with \\0, \\1, ... for the defaults."""
    return ast.parse(re.sub(r"\\\d+", "...", signature) + ": ...").body[0]


def test_stubs_are_those_of_the_module():
    assert (PACKAGE / "py.typed").exists()
    tree = ast.parse((PACKAGE / "_core.pyi").read_text())
    stubs = {n.name: n for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
    stubs_and_values = set(stubs) | {n.target.id for n in tree.body if isinstance(n, ast.AnnAssign)}
    assert stubs_and_values == {n for n in dir(_core) if not n.startswith("__")}
    for name, node in stubs.items():
        value = getattr(_core, name)
        if isinstance(node, ast.FunctionDef):
            signature = value.__nb_signature__[0][0]
            assert parameters(node) == parameters(parsed(signature)), name
        elif node.bases:
            members = {
                target.id: statement.value.value
                for statement in node.body
                if isinstance(statement, ast.Assign)
                for target in statement.targets
            }
            assert members == {member.name: member.value for member in value}, name
        else:
            methods = {n.name: n for n in node.body if isinstance(n, ast.FunctionDef)}
            assert set(methods) - {"__init__"} == {n for n in vars(value) if not n.startswith("_")}
            for method, stub in methods.items():
                if not stub.decorator_list:  # no property
                    signature = getattr(value, method).__nb_signature__[0][0]
                    assert parameters(stub) == parameters(parsed(signature)), (name, method)


README = pathlib.Path(__file__).resolve().parents[2] / "README.md"


@pytest.mark.skipif(not README.exists(), reason="away from the repository")
def test_readme():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    assert len(blocks) >= 2
    torch = pytest.importorskip("torch")
    names = {
        "A": torch.randn(16, 512).bfloat16(),
        "B": torch.randn(64, 512).bfloat16(),
        "C": torch.zeros(16, 64, dtype=torch.bfloat16),
    }
    for block in blocks:
        exec(block, names)
