#!/usr/bin/env python3
"""The figures of the house, and whether they are kept: length of functions and files, parameters.

Product code only: what stands under a crate's src, without its tests. A function's length is its lines from
`fn` to its closing brace; a tuple among its parameters counts as what it holds, `self` counts as none.
Circles of files are kept by kms-server/tests/architecture.rs.
"""
import pathlib
import re
import statistics
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
CRATES = ["dlms", "kms-core", "kms-server", "kms-client"]
LINES_OF_FILE_MAX, LINES_MAX, PARAMETERS_MAX = 600, 70, 5
MEDIAN_MAX, NINETY_MAX = 7, 23

LITERAL = re.compile(
    r"""//[^\n]*|/\*.*?\*/|b?r(\#*)".*?"\1|b?"(?:\\.|[^"\\])*"|b?'(?:\\.[^']*|[^'\\])'""", re.DOTALL
)


def blank(text):
    """`text` with blanks for comments, strings and characters; its lines stay."""
    return LITERAL.sub(lambda found: re.sub(r"[^\n]", " ", found.group()), text)


def closing(text, at):
    """Where the bracket at `at` is closed."""
    pairs = {"(": ")", "{": "}", "[": "]"}
    due = []
    for here in range(at, len(text)):
        if text[here] in pairs:
            due.append(pairs[text[here]])
        elif due and text[here] == due[-1]:
            due.pop()
            if not due:
                return here
    return len(text) - 1


def parts(text):
    """`text` cut at its commas, those within brackets aside."""
    found, depth, begin = [], 0, 0
    for at, letter in enumerate(text):
        before = text[at - 1] if at else ""
        if letter in "([{<":
            depth += 1
        elif letter in ")]}" or letter == ">" and before not in "-=":
            depth -= 1
        elif letter == "," and depth == 0:
            found.append(text[begin:at])
            begin = at + 1
    return [part for part in [*found, text[begin:]] if part.strip()]


def parameters(text):
    count = 0
    for part in parts(text):
        pattern = part.split(":")[0].strip()
        if re.fullmatch(r"&?\s*('\w+\s+)?(mut\s+)?self", pattern):
            continue
        inner = re.fullmatch(r"\((.*)\)", pattern, re.DOTALL)
        count += len(parts(inner.group(1))) if inner else 1
    return count


def functions(path):
    """Name, line, length and parameters of each function of a file."""
    text = path.read_text().split("\n#[cfg(test)]\nmod ")[0]
    text = blank(text)
    for found in re.finditer(r"\bfn (\w+)", text):
        at = text.find("(", found.end())
        generic = text.find("<", found.end())
        if generic == found.end():
            depth, at = 0, generic
            while True:
                depth += (text[at] == "<") - (text[at] == ">" and text[at - 1] not in "-=")
                at += 1
                if depth == 0:
                    break
            at = text.find("(", at)
        end = closing(text, at)
        begin = re.compile(r"[{;]").search(text, end)
        if begin is None or begin.group() == ";":
            continue
        last = closing(text, begin.start())
        line = text.count("\n", 0, found.start()) + 1
        yield found.group(1), line, text.count("\n", found.start(), last) + 1, parameters(text[at + 1 : end])


def main():
    files, all_functions = [], []
    for crate in CRATES:
        for path in sorted((ROOT / crate / "src").rglob("*.rs")):
            if path.name.endswith("tests.rs") or "testing" in path.parts:
                continue
            name = str(path.relative_to(ROOT))
            files.append((len(path.read_text().splitlines()), name))
            all_functions += [(*rest, f"{name}:{line} {fn}") for fn, line, *rest in functions(path)]
    lengths = sorted(length for length, _, _ in all_functions)
    median, ninety = statistics.median(lengths), lengths[len(lengths) * 9 // 10]
    long = [it for it in all_functions if it[0] > LINES_MAX]
    many = [it for it in all_functions if it[1] > PARAMETERS_MAX]
    big = [it for it in files if it[0] > LINES_OF_FILE_MAX]
    rows = [
        ("functions", len(lengths), "", True),
        ("median of their lines", median, MEDIAN_MAX, median <= MEDIAN_MAX),
        ("90 % of them have at most", ninety, NINETY_MAX, ninety <= NINETY_MAX),
        (f"of more than {LINES_MAX} lines", len(long), 0, not long),
        (f"with more than {PARAMETERS_MAX} parameters", len(many), 0, not many),
        (f"files of more than {LINES_OF_FILE_MAX} lines", len(big), 0, not big),
    ]
    for what, found, bound, kept in rows:
        print(f"{what:38} {found:>6} {bound!s:>6}  {'kept' if kept else 'NOT KEPT'}")
    for length, count, where in sorted(long + many, reverse=True):
        print(f"  {where}: {length} lines, {count} parameters")
    for length, where in big:
        print(f"  {where}: {length} lines")
    return 0 if all(kept for *_, kept in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
