"""docs/errors.md names every error of `ofa prepare`, `ofa check` and `ofa convert`: it is made of their source.

`OFA_WRITE_DOCS=1 python -m pytest tests/test_errors_page.py` writes the page anew.
"""

from __future__ import annotations

import ast
import itertools
import os
from collections.abc import Iterator

from tests.helpers.stock import ROOT

PAGE = ROOT / "docs" / "errors.md"
GAP = "…"  # where a message has a value
MOST = 6  # ways that one message can read
PARTS = {  # of the page: the files whose messages stand there
    "`ofa prepare`: flags and whole files": (
        *("ofa_plugin/commands/prepare.py", "data/prepare/__init__.py", "data/prepare/finetune.py"),
        *("data/prepare/unify.py", "data/prepare/outputs.py"),
    ),
    "`ofa prepare`: records": (
        *("data/prepare/readers.py", "data/prepare/sources.py", "data/prepare/clean.py", "data/prepare/rows.py"),
        "data/prepare/pictures.py",
    ),
    "`ofa check`: flags and whole files": ("ofa_plugin/commands/check.py", "tasks/checking.py", "data/answers.py"),
    "Rows of a TSV, in `ofa check` and in training": ("data/tsv.py",),
    "Pictures": ("data/image.py",),
    "Boxes and objects": ("data/boxes.py", "tasks/detection.py"),
    "Captions, questions, expressions, labels, texts": (
        *("tasks/caption.py", "tasks/vqa.py", "tasks/refcoco.py", "tasks/snli_ve.py", "tasks/image_classify.py"),
        *("tasks/ocr.py", "tasks/gigaword.py", "tasks/glue.py", "tasks/answering.py", "tasks/metrics/accuracy.py"),
    ),
    "`ofa convert`": ("ofa_plugin/commands/convert.py", "ofa_plugin/convert.py"),
}
BOTH = {"RowProblem": 0, "ImageProblem": 0, "BoxProblem": 0, "BadRow": 3, "bad": 2}
"""Calls with a reason and a remedy, and at which argument the reason stands."""
HEAD = """# What an error means, and what to do

Every error that `ofa prepare`, `ofa check` and `ofa convert` can give, made of their source by a test: `…` stands for
a value. `ofa prepare` names a bad record as `file:line: reason: what to do` and leaves it out; `ofa check` and training
name a bad row as `file:line: column: reason: what to do`. Everything else is one line that begins with `error:`, and
nothing was written. [Your own data](own-data.md) shows what is read.
"""


def texts(node: ast.AST, scope: ast.AST, depth: int = 0) -> list[str]:
    """The ways in which an expression of text can read, with `GAP` for what is not known from the source."""
    if isinstance(node, ast.Constant):
        return [str(node.value)]
    if isinstance(node, ast.JoinedStr):
        ways = [""]
        for part in node.values:
            ways = [way + more for way in ways for more in texts(part, scope, depth)][:MOST]
        return ways
    if isinstance(node, ast.FormattedValue):
        return texts(node.value, scope, depth)
    if isinstance(node, ast.IfExp):
        return [*texts(node.body, scope, depth), *texts(node.orelse, scope, depth)][:MOST]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return [a + b for a in texts(node.left, scope, depth) for b in texts(node.right, scope, depth)][:MOST]
    if isinstance(node, ast.Name) and depth < 2:
        values = [
            each.value
            for each in ast.walk(scope)
            if isinstance(each, ast.Assign)
            and any(isinstance(target, ast.Name) and target.id == node.id for target in each.targets)
            and isinstance(each.value, (ast.Constant, ast.JoinedStr, ast.IfExp))
        ]
        return [text for value in values for text in texts(value, scope, depth + 1)][:MOST] or [GAP]
    return [GAP]


def messages(path: str) -> Iterator[tuple[str, str]]:
    """(reason, remedy) of each error in a file, in order; the remedy of a one-part message follows its last colon."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    calls = [(call, scope) for scope in functions for call in ast.walk(scope) if isinstance(call, ast.Call)]
    seen: set[int] = set()
    for call, scope in sorted(calls, key=lambda pair: (pair[0].lineno, -pair[1].lineno)):
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        if call.lineno in seen or name not in (*BOTH, "UserError", "ValueError"):
            continue
        first = BOTH.get(name, 0)
        arguments = [each for each in call.args if not isinstance(each, ast.Starred)][first : first + 2]
        if name in ("UserError", "ValueError") and len(arguments) == 1:
            pairs = [split(text) for text in texts(arguments[0], scope)]
        elif name in BOTH and len(arguments) == 2:
            pairs = list(itertools.product(*(texts(each, scope) for each in arguments)))
        else:
            continue
        seen.add(call.lineno)
        yield from ((reason, remedy) for reason, remedy in pairs if any(sign.isalpha() for sign in reason + remedy))


def split(text: str) -> tuple[str, str]:
    """A message of one part at what to do: behind its last `; ` or `: `."""
    for sign in ("; ", ": "):
        reason, found, remedy = text.rpartition(sign)
        if found and any(letter.isalpha() for letter in remedy) and len(remedy.split()) > 1:
            return reason, remedy
    return text, ""


def page() -> str:
    """The text of docs/errors.md."""
    lines, known = [HEAD], set()
    for part, files in PARTS.items():
        rows = []
        for reason, remedy in (pair for file in files for pair in messages(file)):
            row = " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in (reason, remedy))
            if row not in known:
                known.add(row)
                rows.append(f"| {row} |")
        lines += [f"## {part}\n", "| what is said | what to do |", "|---|---|", *rows, ""]
    return "\n".join(lines)


def test_the_page_has_every_error_of_the_source():
    made = page()
    if os.environ.get("OFA_WRITE_DOCS"):
        PAGE.write_text(made, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == made, "write it anew: OFA_WRITE_DOCS=1 pytest tests/test_errors_page.py"
    assert made.count("\n| ") > 120
    for known in ("caption is an empty list", "looks like a header", "no answer of this row is in", "write NAME=VALUE"):
        assert known in made


def test_a_new_error_changes_the_page(tmp_path, monkeypatch):
    module = tmp_path / "a.py"
    module.write_text(
        "def f(x):\n    reason = f'{x} is odd' if x else 'it is none'\n"
        "    raise RowProblem(reason, 'write an even one')\n"
        "def g(x):\n    raise UserError(f'--flag {x}: unknown; give 1 or 2')\n"
    )
    assert list(messages(str(module))) == [
        (f"{GAP} is odd", "write an even one"),
        ("it is none", "write an even one"),
        (f"--flag {GAP}: unknown", "give 1 or 2"),
    ]
