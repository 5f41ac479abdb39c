#!/usr/bin/env python3
"""The documents stay true: every sentence with which the service refuses to start stands in the handbook, every
setting is explained in deploy/kms.toml, no link between the documents leads nowhere, no source that they name
is gone, and every dependency has its reason beside it.

With --list: prints the sentences' heads.
"""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
HANDBOOK = ROOT / "docs" / "HANDBOOK.md"

# Where the sentences of a start are made. Those of a whole file, or of one enum in it.
SOURCES = [
    ("kms-server/src/config/error.rs", None),
    ("kms-server/src/config/findings.rs", None),
    ("kms-server/src/rpc/tls/error.rs", None),
    ("kms-server/src/rpc/access/policy.rs", "PolicyError"),
    ("kms-server/src/rpc/server/error.rs", "RpcError"),
    ("kms-server/src/store/sqlite/open.rs", None),
    ("kms-server/src/store/postgres/config.rs", None),
    ("kms-server/src/store/postgres/open.rs", None),
    ("kms-server/src/keyring/resident/arena.rs", None),
    ("kms-server/src/hsm/error.rs", "TokenError"),
    ("kms-server/src/hsm/pkcs11/init.rs", "InitError"),
    ("kms-server/src/hsm/pkcs11/keys/canary.rs", None),
]
# `Fault::Broken("…")` and such, and sentences in constants.
STRINGS_IN = [
    ("kms-server/src/app/database.rs", r"NO_DOMAIN: &str = "),
    ("kms-server/src/app/init.rs", r"Fault::Store\(\s*"),
    ("kms-server/src/app/migrate.rs", r": &str = |Fault::Store\(\s*|let sentence = "),
    ("kms-server/src/hsm/pkcs11/connection/library.rs", r"Failure::(?:Broken|Refused|Unfit)\(format!\(\s*"),
    ("kms-server/src/hsm/pkcs11/connection/epoch.rs", r"Failure::(?:Broken|Refused|Unfit)\(format!\(\s*"),
    ("kms-server/src/hsm/pkcs11/keys/canary.rs", r"Failure::(?:Broken|Refused|Unfit)\(format!\(\s*"),
    ("kms-server/src/hsm/pkcs11/init.rs", r"InitError::Token\(\s*"),
    ("kms-server/src/config/findings.rs", r"let sentence = format!\(\s*|let sentence =\s*format!\(\s*"),
    ("kms-server/src/hsm/pkcs11/probe/report.rs", r"Some\(format!\(\s*"),
    ("kms-server/src/app/token.rs", r"let sentence = format!\(\s*"),
    ("kms-server/src/app/check.rs", r"let sentence = format!\(\s*"),
    ("kms-server/src/app/alone.rs", r"let sentence = format!\(\s*"),
    ("kms-server/src/app/serve.rs", r"BEFORE_1970: &str = "),
]
# Said of what only a fault of the program can bring about, or with no word of its own.
LEFT_OUT = {"… bytes where … are due"}

STRING = r'"((?:[^"\\]|\\[\s\S])*)"'


def body_of(source, enum):
    """The text of one enum, with the attributes in it; all of it if there is none to look for."""
    if enum is None:
        return source
    start = source.index(f"pub enum {enum} ") if f"pub enum {enum} " in source else source.index(f"enum {enum}")
    return source[start : source.index("\n}", start)]


def head(sentence):
    """Up to the advice; what is filled in shows as `…`."""
    sentence = re.sub(r"\\\n\s*", "", sentence).replace('\\"', '"')
    sentence = sentence.replace("{{", "").replace("}}", "")
    sentence = re.sub(r"\{[^}]*\}", "…", sentence)
    for end in (": ", "; "):
        sentence = sentence.split(end)[0]
    return " ".join(sentence.split()).strip()


def sentences():
    for path, enum in SOURCES:
        text = (ROOT / path).read_text().split("#[cfg(test)]")[0]
        for found in re.finditer(r"#\[error\(\s*" + STRING, body_of(text, enum)):
            yield path, head(found.group(1))
    for path, before in STRINGS_IN:
        text = (ROOT / path).read_text().split("#[cfg(test)]")[0]
        found = list(re.finditer(f"(?:{before}){STRING}", text))
        if not found:
            yield path, f"NOTHING FOUND THAT FOLLOWS {before}"
        for one in found:
            yield path, head(one.group(1))


def wanted():
    """Heads with words of their own, once each."""
    seen = {}
    for path, sentence in sentences():
        if sentence.strip("… `") and sentence not in LEFT_OUT:
            seen.setdefault(sentence, path)
    return seen


def missing_sentences():
    text = " ".join("\n".join(path.read_text() for path in (ROOT / "docs").glob("*.md")).split())
    for sentence, path in wanted().items():
        if sentence not in text:
            yield f"{path}: the handbook does not explain: {sentence}"


def missing_settings():
    """Fields of the sections in sections.rs that deploy/kms.toml does not show."""
    source = (ROOT / "kms-server/src/config/sections.rs").read_text()
    example = (ROOT / "deploy/kms.toml").read_text()
    shown = set(re.findall(r"^#?([a-z_0-9]+) *=", example, re.MULTILINE))
    shown |= {part for name in re.findall(r"^#?\[+([a-z_.]+)\]+", example, re.MULTILINE) for part in name.split(".")}
    for struct in re.finditer(r"struct (\w*Section)s? \{\n(.*?)\n\}", source, re.DOTALL):
        for field in re.findall(r"^    (\w+):", struct.group(2), re.MULTILINE):
            if field not in shown:
                yield f"deploy/kms.toml does not show `{field}` of {struct.group(1)}"


def documents():
    return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benches").glob("*.md")])


def dead_links():
    for path in documents():
        text = path.read_text()
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            if link.startswith(("http://", "https://")):
                continue
            file, _, anchor = link.partition("#")
            target = (path.parent / file).resolve() if file else path
            if not target.exists():
                yield f"{path.name}: there is no {link}"
            elif anchor and anchor not in anchors(target):
                yield f"{path.name}: {target.name} has no heading #{anchor}"


def anchors(path):
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


# Below which a document may name a source: `rpc/gate.rs` is kms-server's.
SOURCE_ROOTS = ["", "kms-server/src", "kms-server/tests", "kms-client/src", "softhsm-tests/src", "softhsm-tests/tests"]
PARTS = "app|audit|ciphering|config|hsm|keyring|lifecycle|rpc|site_health|store|telemetry"


def dead_paths():
    """Sources that a document names, as `rpc/gate.rs`, `kms-core/src/{block,freshness}.rs` or `rpc/gate`, and
    that are not there."""
    for document in documents():
        text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
        for named in re.findall(r"`([\w./{},*-]+)`", text):
            is_source = named.endswith(".rs") or re.fullmatch(rf"(?:{PARTS})/[a-z_0-9/]+", named)
            if not is_source or "*" in named or named == "mod.rs":
                continue
            for one in alternatives(named):
                ends = [one] if one.endswith(".rs") else [one, one + ".rs"]
                homes = [document.parent, *(ROOT / root for root in SOURCE_ROOTS)]
                if not any((home / end).exists() for home in homes for end in ends):
                    yield f"{document.relative_to(ROOT)}: there is no {one}"


def alternatives(named):
    """`a/{b,c}.rs` spread out."""
    braces = re.fullmatch(r"(.*)\{(.*)\}(.*)", named)
    if not braces:
        return [named]
    before, among, after = braces.groups()
    return [before + each + after for each in among.split(",")]


def unexplained_dependencies():
    """Lines of a dependency without a comment on them or on the line above; in members only those that are not
    in the workspace's list."""
    for path in [ROOT / "Cargo.toml", *sorted(ROOT.glob("*/Cargo.toml")), *sorted(ROOT.glob("*/*/Cargo.toml"))]:
        if path.relative_to(ROOT).parts[0].startswith((".", "target")):
            continue
        wanted, above = False, ""
        for line in path.read_text().splitlines():
            if line.startswith("["):
                wanted = "dependencies" in line
            elif wanted and re.match(r"[\w-]+(\.workspace)? *=", line):
                listed = "workspace = true" in line or "path = " in line
                if not listed and not above.startswith("#") and " # " not in line:
                    yield f"{path.relative_to(ROOT)}: no reason beside {line.split()[0]}"
            above = line


def told_twice():
    """Errors whose sentence has their cause in it and that name it as a cause besides: whoever prints an error with
    its causes, as the server and the tool do, says it twice."""
    variant = re.compile(r"#\[error\((.*?)\)\]\s*\n((?:\s*///[^\n]*\n)*)\s*(?:pub struct )?(\w+)(\s*[({].*?[)}])", re.DOTALL)
    for path in sorted(ROOT.glob("*/src/**/*.rs")):
        for sentence, _, name, body in variant.findall(path.read_text()):
            unnamed = re.search(r"\{0[:}]", sentence) and ("#[from]" in body or "#[source]" in body)
            named = re.search(r"\{source[:}]", sentence) and re.search(r"\bsource:", body)
            if unnamed or named:
                yield f"{path.relative_to(ROOT)}: {name} says its cause in its sentence and names it as a cause"


def main():
    if sys.argv[1:] == ["--list"]:
        for sentence, path in wanted().items():
            print(f"{path}\t{sentence}")
        return 0
    complaints = [*missing_sentences(), *missing_settings(), *dead_links(), *dead_paths(), *unexplained_dependencies(), *told_twice()]
    for complaint in complaints:
        print(complaint, file=sys.stderr)
    print(f"handbook: {len(wanted())} start-up sentences, {len(complaints)} complaints")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
