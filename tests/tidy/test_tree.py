"""The source tree keeps its own rules. What may break one is listed here, with its reason."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from conftest import LONGEST

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "batchyard"
MODULE_LINES_MAX = 600
FUNCTION_LINES_MAX = 60

# Who may write to standard output or error, and why.
PRINTS = {
    "cli/render.py": "the one place that prints",
    "cli/outliving.py": "passes on what render prints, also when nobody reads it any more",
    "cli/serve.py": "says why `serve` does not start; the run's renderer is not loaded then",
    "server/run.py": "the ready line, one JSON object",
}
# Who may ask the machine for the time or wait on it.
TIMES = {
    "clock.py": "the clock itself",
    "emulator/clock.py": "another clock, on top of the machine's",
    "emulator/settling.py": "waits for the yard, not for time",
    "server/place.py": "waits, before there is a loop, for the workers of a killed server to end",
    "disk.py": "waits for a descriptor, in a thread",
    "client/api.py": "default wait and time of the run, both parameters",
    "client/answers.py": "`retry-after` as a date, against the wall clock of the machine",
}
# SQL that is not a constant: pragmas take no parameters.
PRAGMA = re.compile(r"PRAGMA \w+ = ")

MODULES = sorted(PACKAGE.rglob("*.py"))
assert MODULES


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def shown(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def dotted(node: ast.expr) -> str:
    """Return `a.b.c` of such an expression, else nothing."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


def calls(path: Path) -> list[ast.Call]:
    return [node for node in ast.walk(tree(path)) if isinstance(node, ast.Call)]


@pytest.mark.parametrize("path", MODULES, ids=shown)
def test_no_module_is_longer_than_600_lines(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MODULE_LINES_MAX


@pytest.mark.parametrize("path", MODULES, ids=shown)
def test_no_function_is_longer_than_60_lines(path: Path) -> None:
    long = [
        f"{node.name}: {node.end_lineno - node.lineno + 1}"
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > FUNCTION_LINES_MAX
    ]
    assert long == []


@pytest.mark.parametrize("path", MODULES, ids=shown)
def test_only_listed_modules_print(path: Path) -> None:
    found = {
        node.lineno
        for node in ast.walk(tree(path))
        if (isinstance(node, ast.Call) and dotted(node.func) in {"print", "pprint", "input"})
        or (
            isinstance(node, ast.Attribute)
            and dotted(node) in {"sys.stdout", "sys.stderr", "sys.__stdout__"}
        )
    }
    assert not found or shown(path) in PRINTS, f"lines {sorted(found)}"


@pytest.mark.parametrize("path", MODULES, ids=shown)
def test_only_listed_modules_read_a_clock_or_sleep(path: Path) -> None:
    banned = re.compile(
        r"(time\.(sleep|time|time_ns)|(datetime\.)?datetime\.(now|utcnow|today)|date\.today"
        r"|asyncio\.sleep)"
    )
    found = [
        call.lineno
        for call in calls(path)
        if banned.fullmatch(dotted(call.func))
        and not (dotted(call.func) == "asyncio.sleep" and _is_zero(call))  # lets others run
    ]
    if shown(path) in {"server/run.py", "testing/clock.py"}:
        return  # waits for the HTTP server to listen; is a clock for tests
    assert not found or shown(path) in TIMES, f"lines {found}"


def _is_zero(call: ast.Call) -> bool:
    return [ast.literal_eval(a) for a in call.args if isinstance(a, ast.Constant)] == [0]


@pytest.mark.parametrize("path", MODULES, ids=shown)
def test_no_text_is_pasted_into_sql(path: Path) -> None:
    for call in calls(path):
        name = dotted(call.func).rpartition(".")[2] or getattr(call.func, "attr", "")
        if name not in {"execute", "executemany", "executescript"} or not call.args:
            continue
        sql = call.args[0]
        if isinstance(sql, ast.JoinedStr):
            first, *rest = sql.values
            constant = isinstance(first, ast.Constant) and PRAGMA.fullmatch(str(first.value))
            names = [v.value for v in rest if isinstance(v, ast.FormattedValue)]
            ours = all(isinstance(n, ast.Name) and n.id.isupper() for n in names)
            assert constant, f"line {call.lineno}: pasted SQL"
            assert ours, f"line {call.lineno}: pasted SQL"
        pasted = isinstance(sql, ast.BinOp) or (
            isinstance(sql, ast.Call) and dotted(sql.func).endswith(("format", "join"))
        )
        assert not pasted, f"line {call.lineno}: pasted SQL"


@pytest.mark.parametrize("path", MODULES, ids=shown)
def test_every_module_says_what_it_knows(path: Path) -> None:
    assert (ast.get_docstring(tree(path)) or "").strip()


def test_the_lists_of_exceptions_name_modules_that_exist() -> None:
    names = {shown(path) for path in MODULES}
    assert set(PRINTS) | set(TIMES) <= names


def test_nothing_in_the_package_imports_its_testing_half_or_a_test_library() -> None:
    for path in MODULES:
        for node in ast.walk(tree(path)):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                if shown(path) != "testing/pytest_plugin.py":  # which pytest alone loads
                    assert not name.startswith(("pytest", "hypothesis", "unittest")), path
                if not shown(path).startswith("testing/"):
                    assert not name.startswith("batchyard.testing"), path


# Around the package ------------------------------------------------------------------------------


def test_lock_files_hold_hashes_and_no_addresses() -> None:
    locks = sorted((ROOT / "requirements").glob("*.lock"))
    assert locks
    for path in locks:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"https?://|git\+|--index-url|--find-links", text), path.name
        pins = re.findall(r"^[a-z0-9][^ =\n]*==[^ \n]+", text, re.MULTILINE)
        assert pins, path.name
        assert text.count("--hash=sha256:") >= len(pins), path.name


def test_there_is_one_way_to_lock() -> None:
    for name in ("uv.lock", "poetry.lock", "Pipfile.lock", "requirements.txt", "setup.py"):
        assert not (ROOT / name).exists()


def test_the_tests_do_not_sleep() -> None:
    """Those of real processes and sockets may poll; all others have a clock of their own."""
    for layer in ("unit", "store", "sim", "tidy"):
        for path in sorted((ROOT / "tests" / layer).rglob("*.py")):
            for call in calls(path):
                assert dotted(call.func) != "time.sleep", f"{path}:{call.lineno}"


def test_what_is_begun_first_is_there() -> None:
    assert [name for name in LONGEST if not (ROOT / "tests" / name).exists()] == []
