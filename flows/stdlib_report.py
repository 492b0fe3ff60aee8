"""The demo's steps: ordinary Python functions that run in worker processes.

None of them knows that it runs durably. Each may be called again after a crash, which is harmless: reading
is, and the report is written under its final name only when it is complete.
"""

import ast
import html
import os
import sys
import sysconfig
from collections import Counter
from pathlib import Path
from typing import Any

FILES_MAX = 20_000
SOURCE_BYTES_MAX = 4 * 1024 * 1024
"""A larger file (generated tables) is left out, and counted."""

_LEFT_OUT = {"site-packages", "dist-packages", "__pycache__", "lib2to3", "idlelib", "turtledemo"}
_BRANCHES = (
    ast.If,
    ast.IfExp,
    ast.For,
    ast.AsyncFor,
    ast.While,
    ast.ExceptHandler,
    ast.With,
    ast.AsyncWith,
    ast.Assert,
    ast.comprehension,
    ast.match_case,
)


def library() -> Path:
    """The folder of this interpreter's standard library."""
    return Path(sysconfig.get_path("stdlib")).resolve()


def list_sources(files_max: int | None = None) -> list[str]:
    """Paths of the library's source files, relative to it, in order."""
    root = library()
    found: list[str] = []
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in _LEFT_OUT)
        found += [str(Path(folder, name).relative_to(root)) for name in sorted(files) if name.endswith(".py")]
    return found[: min(files_max or FILES_MAX, FILES_MAX)]


def parse_source(path: str) -> dict[str, Any]:
    """Size, functions, complexity and imports of one source file.

    ``complexity`` of a function is McCabe's: one, and one more for each branch and boolean operator.
    """
    file = library() / path
    if file.stat().st_size > SOURCE_BYTES_MAX:
        raise ValueError(f"{path} is larger than {SOURCE_BYTES_MAX} bytes")
    source = file.read_bytes()
    tree = ast.parse(source, filename=path)
    functions: list[tuple[int, str, int]] = []
    imports: set[str] = set()
    classes = 0
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            functions.append((_complexity(node), node.name, node.lineno))
        elif isinstance(node, ast.ClassDef):
            classes += 1
        elif isinstance(node, ast.Import):
            imports |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            imports.add(node.module.partition(".")[0])
    functions.sort(reverse=True)
    return {
        "path": path,
        "lines": source.count(b"\n") + 1,
        "functions": len(functions),
        "classes": classes,
        "hardest": [
            {"name": name, "line": line, "complexity": complexity} for complexity, name, line in functions[:3]
        ],
        "branches": sum(complexity for complexity, _, _ in functions),
        "imports": sorted(imports),
    }


def _complexity(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    total = 1
    for node in ast.walk(function):
        if isinstance(node, _BRANCHES):
            total += 1
        elif isinstance(node, ast.BoolOp):
            total += len(node.values) - 1
    return total


def add_up(results: list[dict[str, Any] | None], errors: list[dict[str, Any]]) -> dict[str, Any]:
    """The library's totals. ``results``: null where a file could not be parsed, then named in ``errors``."""
    parsed = [result for result in results if result is not None]
    packages: dict[str, Counter[str]] = {}
    imported: Counter[str] = Counter()
    hardest: list[dict[str, Any]] = []
    for result in parsed:
        package = result["path"].partition("/")[0].removesuffix(".py")
        counts = packages.setdefault(package, Counter())
        counts.update(
            files=1,
            lines=result["lines"],
            functions=result["functions"],
            classes=result["classes"],
            branches=result["branches"],
        )
        imported.update(result["imports"])
        hardest += [{"path": result["path"], **function} for function in result["hardest"]]
    hardest.sort(key=lambda function: (-function["complexity"], function["path"], function["line"]))
    tests = packages.pop("test", Counter())  # more lines than all the rest: it would flatten the chart
    largest = sorted(packages.items(), key=lambda item: (-item[1]["lines"], item[0]))
    return {
        "python": sys.version.partition(" ")[0],
        "files": len(parsed),
        "not_parsed": len(errors),
        "lines": sum(result["lines"] for result in parsed),
        "functions": sum(result["functions"] for result in parsed),
        "classes": sum(result["classes"] for result in parsed),
        "test_lines": tests["lines"],
        "packages": [{"name": name, **counts} for name, counts in largest[:20]],
        "imported": imported.most_common(15),
        "hardest": hardest[:15],
    }


def write_report(totals: dict[str, Any], path: str) -> str:
    """Write the report to ``path``; its absolute path."""
    target = Path(path).absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    partial.write_text(_page(totals), encoding="utf-8")
    partial.replace(target)
    return str(target)


_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1d2733; background: #f7f5f0; margin: 0 }
main { max-width: 60rem; margin: 0 auto; padding: 3rem 1.5rem 4rem }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .25rem } h2 { margin: 3rem 0 1rem; font-size: 1.25rem }
p { margin: 0 0 1rem; color: #55606d } svg { display: block; width: 100%; height: auto }
.figures { display: flex; flex-wrap: wrap; gap: 1rem; margin: 2rem 0 0 }
.figures div { flex: 1 1 8rem; background: #fff; border-radius: .5rem; padding: 1rem 1.25rem }
.figures b { display: block; font-size: 1.75rem; line-height: 1.2; font-variant-numeric: tabular-nums }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
td, th { text-align: left; padding: .4rem .75rem .4rem 0; border-bottom: 1px solid #e3ded3 }
.number { text-align: right; padding-right: 0 } code { font: .9em ui-monospace, monospace }
"""


def _page(totals: dict[str, Any]) -> str:
    figures = "".join(
        f"<div><b>{totals[key]:,}</b>{label}</div>"
        for key, label in (
            ("files", "files"),
            ("lines", "lines"),
            ("functions", "functions"),
            ("classes", "classes"),
        )
    )
    left_out = totals["not_parsed"]
    skipped = (
        f" {left_out} files could not be parsed, on purpose mostly: they test the parser." if left_out else ""
    )
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Python {html.escape(totals["python"])}: its standard library</title>
<style>{_STYLE}</style>
<main>
<h1>Python {html.escape(totals["python"])}: its standard library</h1>
<p>Every source file parsed in worker processes by a durable execution.{skipped}</p>
<div class="figures">{figures}</div>
<h2>Largest modules and packages</h2>
<p>Bars: lines of source. Dots: branches in a hundred lines, a measure of how dense the logic is.
The library's own tests, {totals["test_lines"]:,} lines, are left out here.</p>
{_chart(totals["packages"])}
<h2>Most branching functions</h2>
{_hardest(totals["hardest"])}
<h2>Most imported</h2>
{_imported(totals["imported"], totals["files"])}
</main>
</html>
"""


def _chart(packages: list[dict[str, Any]]) -> str:
    """Horizontal bars as SVG, one a package, with the density of branches as a dot on its own scale."""
    width, row, left, right = 900, 26, 150, 90
    most = max((package["lines"] for package in packages), default=1)
    densities = [100 * package["branches"] / package["lines"] for package in packages]
    densest = max(densities, default=1.0) or 1.0
    span = width - left - right
    marks: list[str] = []
    for index, (package, density) in enumerate(zip(packages, densities, strict=True)):
        top = index * row
        bar = span * package["lines"] / most
        dot = left + span * density / densest
        name = html.escape(package["name"])
        marks.append(
            f'<text x="{left - 10}" y="{top + 17}" text-anchor="end">{name}</text>'
            f'<rect x="{left}" y="{top + 5}" width="{bar:.1f}" height="16" rx="3" fill="#e0a030"/>'
            f'<circle cx="{dot:.1f}" cy="{top + 13}" r="4.5" fill="#1d4e89" stroke="#f7f5f0"/>'
            f'<text x="{width}" y="{top + 17}" text-anchor="end">{package["lines"]:,}</text>'
        )
    height = max(row, row * len(packages))
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="Lines of source by package" '
        f'font-family="system-ui, sans-serif" font-size="14" fill="#1d2733">{"".join(marks)}</svg>'
    )


def _hardest(functions: list[dict[str, Any]]) -> str:
    rows = "".join(
        f"<tr><td><code>{html.escape(one['name'])}</code></td>"
        f"<td>{html.escape(one['path'])}:{one['line']}</td>"
        f"<td class=number>{one['complexity']}</td></tr>"
        for one in functions
    )
    return f"<table><tr><th>Function<th>Where<th class=number>Complexity</tr>{rows}</table>"


def _imported(modules: list[tuple[str, int]], files: int) -> str:
    rows = "".join(
        f"<tr><td><code>{html.escape(name)}</code></td><td class=number>{count:,}</td>"
        f"<td class=number>{100 * count / max(1, files):.0f} %</td></tr>"
        for name, count in modules
    )
    return f"<table><tr><th>Module<th class=number>Files<th class=number>Share</tr>{rows}</table>"
