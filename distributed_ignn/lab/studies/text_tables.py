"""Tables as Markdown and as LaTeX."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

_ESCAPED = {
    **{ord(c): f"\\{c}" for c in "&%$#_{}"},
    ord("^"): "\\textasciicircum{}",
    ord("~"): "\\textasciitilde{}",
    ord("\\"): "\\textbackslash{}",
    ord("±"): "$\\pm$",
}

NEEDS = "% needs \\usepackage{booktabs}\n"
"""The first line of a LaTeX file."""


def escaped(text: str) -> str:
    """Text as LaTeX prints it."""
    return text.translate(_ESCAPED)


def pipes(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table: names of rows to the left, figures to the right."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    lines = ([cell.replace("|", "\\|") for cell in row] for row in (header, rule, *rows))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def floating(columns: str, content: Iterable[str], caption: str, label: str) -> str:
    """A table of the whole width for a document that loads booktabs.

    Args:
        columns: as tabular takes them.
        content: lines between its outer rules.
        caption: plain text.
        label: its name behind ``tab:``.
    """
    lines = [
        "\\begin{table*}",
        "\\centering",
        f"\\caption{{{escaped(caption)}}}",
        f"\\label{{tab:{label}}}",
        f"\\begin{{tabular}}{{{columns}}}",
        "\\toprule",
        *content,
        "\\bottomrule",
        "\\end{tabular}",
        "\\end{table*}",
    ]
    return "".join(f"{line}\n" for line in lines)
