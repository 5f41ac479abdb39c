//! Reads as much of Rust as it takes to know which paths a file names: words and `::`, `use` trees,
//! no comments and no strings.

use std::collections::BTreeSet;

/// A word or a mark of a source file.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    /// `::`
    Path,
    Mark(char),
}

/// A file, taken apart.
pub(super) struct Source {
    tokens: Vec<Token>,
    /// Every path that it names, from its first segment; `use` trees are spread out. A single word is
    /// a path only in a `use` or an `extern crate`.
    paths: Vec<Vec<String>>,
    /// What it hands on by `pub use`: under which name, and from where.
    reexports: Vec<(String, Vec<String>)>,
}

impl Source {
    pub(super) fn of(text: &str) -> Self {
        let tokens = tokens(text);
        let mut paths = paths(&tokens);
        let behind_imports = spread(&paths, &imports(&tokens));
        paths.extend(behind_imports);
        let reexports = reexports(&tokens);
        Self { tokens, paths, reexports }
    }

    /// Every path that it names.
    pub(super) fn paths(&self) -> &[Vec<String>] {
        &self.paths
    }

    /// What it hands on: a name, and the path behind it.
    pub(super) fn reexports(&self) -> &[(String, Vec<String>)] {
        &self.reexports
    }

    /// Whether the word stands anywhere.
    pub(super) fn says(&self, word: &str) -> bool {
        self.tokens.iter().any(|token| matches!(token, Token::Word(it) if it == word))
    }

    /// Whether the word stands anywhere but in a `use` or a `mod`, alone or at the head of a path.
    pub(super) fn uses(&self, word: &str) -> bool {
        let mut at = 0;
        while at < self.tokens.len() {
            match &self.tokens[at] {
                Token::Word(it) if it == "use" => {
                    at = tree(&self.tokens, at + 1, &mut Vec::new(), &mut Vec::new());
                }
                Token::Word(it) if it == "mod" => at += 2,
                Token::Word(it) if it == word => {
                    let within = at > 0 && self.tokens[at - 1] == Token::Path;
                    if !within {
                        return true;
                    }
                    at += 1;
                }
                _ => at += 1,
            }
        }
        false
    }

    /// Whether a path begins like this one.
    pub(super) fn names_path(&self, start: &str) -> bool {
        let start: Vec<&str> = start.split("::").collect();
        let begins = |path: &Vec<String>| {
            path.len() >= start.len() && path.iter().zip(&start).all(|(one, other)| one == other)
        };
        self.paths.iter().any(begins)
    }

    /// Whether a path begins with this crate.
    pub(super) fn names_crate(&self, name: &str) -> bool {
        self.names_path(name)
    }
}

/// The top-level modules of the crate that a file of its `src` names: through `crate::`, through the
/// crate's own name, or upwards through `super::`.
pub(super) fn named_modules(path: &str, source: &Source) -> BTreeSet<String> {
    // How many modules the file lies deep: `keyring/mod.rs` one, `keyring/open.rs` two.
    let depth = path.trim_end_matches("/mod.rs").split('/').count();
    source.paths.iter().filter_map(|path| top_module(path, depth)).collect()
}

/// What a file names directly below `part`, through `crate::` or the crate's own name.
pub(super) fn named_below(part: &str, source: &Source) -> BTreeSet<String> {
    let below = |path: &Vec<String>| match path.first()?.as_str() {
        "crate" | "kms_server" if path.get(1)? == part => path.get(2).cloned(),
        _ => None,
    };
    source.paths.iter().filter_map(below).collect()
}

/// What a file within `part` may name directly below it through `super::`: as in [`top_module`], any number of
/// `super` that is high enough counts.
pub(super) fn named_upwards(part: &str, path: &str, source: &Source) -> BTreeSet<String> {
    // How many modules the file lies deep: `rpc/config.rs` two, `rpc/gate/peer.rs` three.
    let depth = path.trim_end_matches(".rs").trim_end_matches("/mod").split('/').count();
    let below = |path: &Vec<String>| {
        let ups = path.iter().take_while(|segment| *segment == "super").count();
        let first = path.get(ups).filter(|_| ups + 1 >= depth)?;
        if first == part { path.get(ups + 1).cloned() } else { Some(first.clone()) }
    };
    source.paths.iter().filter_map(below).collect()
}

/// Where a path ends up below the crate's root. An inline `mod` makes paths one `super` longer, so
/// any number of `super` that is high enough counts; a module of the same name as a part, deeper
/// down, would be taken for the part, which the names of the parts are too telling for.
fn top_module(path: &[String], depth: usize) -> Option<String> {
    match path.first()?.as_str() {
        "crate" | "kms_server" => path.get(1).cloned(),
        "super" => {
            let ups = path.iter().take_while(|segment| *segment == "super").count();
            (ups >= depth).then(|| path.get(ups).cloned()).flatten()
        }
        _ => None,
    }
}

/// All paths: `a::b::c` wherever it stands, and each leaf of `use a::{b, c::{d}}`.
fn paths(tokens: &[Token]) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        match &tokens[at] {
            Token::Word(word) if word == "use" => {
                at = tree(tokens, at + 1, &mut Vec::new(), &mut found);
            }
            Token::Word(word) if word == "extern" => {
                if let Some(Token::Word(name)) = tokens.get(at + 2) {
                    found.push(vec![name.clone()]);
                }
                at += 1;
            }
            Token::Word(_) if matches!(tokens.get(at + 1), Some(Token::Path)) => {
                at = plain(tokens, at, &mut found);
            }
            _ => at += 1,
        }
    }
    found
}

/// Paths that begin with an imported name, from where that comes from on.
fn spread(paths: &[Vec<String>], imports: &[(String, Vec<String>)]) -> Vec<Vec<String>> {
    let behind = |path: &Vec<String>| {
        let (first, rest) = path.split_first().filter(|(_, rest)| !rest.is_empty())?;
        let (_, from) =
            imports.iter().find(|(name, from)| name == first && from.first() != Some(first))?;
        Some([from, rest].concat())
    };
    paths.iter().filter_map(behind).collect()
}

/// What the file imports: a name, and the path behind it.
fn imports(tokens: &[Token]) -> Vec<(String, Vec<String>)> {
    let mut found = Vec::new();
    for (at, token) in tokens.iter().enumerate() {
        if matches!(token, Token::Word(word) if word == "use") {
            tree(tokens, at + 1, &mut Vec::new(), &mut found);
        }
    }
    found.into_iter().filter_map(named).collect()
}

/// A leaf of a `use` by its name; `self` is the module before it.
fn named(mut path: Vec<String>) -> Option<(String, Vec<String>)> {
    if path.last().is_some_and(|last| last == "self") {
        path.pop();
    }
    Some((path.last()?.clone(), path))
}

/// The leaves of each `use` that follows a `pub`, whoever it is public to.
fn reexports(tokens: &[Token]) -> Vec<(String, Vec<String>)> {
    let mut found = Vec::new();
    for (at, token) in tokens.iter().enumerate() {
        if !matches!(token, Token::Word(word) if word == "pub") {
            continue;
        }
        let after = match tokens.get(at + 1) {
            Some(Token::Mark('(')) => tokens[at..]
                .iter()
                .position(|token| *token == Token::Mark(')'))
                .map(|end| at + end + 1),
            _ => Some(at + 1),
        };
        let Some(after) = after else { continue };
        if matches!(tokens.get(after), Some(Token::Word(word)) if word == "use") {
            tree(tokens, after + 1, &mut Vec::new(), &mut found);
        }
    }
    found.into_iter().filter_map(named).collect()
}

/// A path outside `use`, which begins at `at`; returns where to go on.
fn plain(tokens: &[Token], mut at: usize, found: &mut Vec<Vec<String>>) -> usize {
    let mut path = Vec::new();
    while let Some(Token::Word(word)) = tokens.get(at) {
        path.push(word.clone());
        at += 1;
        if !matches!(tokens.get(at), Some(Token::Path)) {
            break;
        }
        at += 1;
    }
    found.push(path);
    at
}

/// One `use` tree under `prefix`, which begins at `at`; returns where to go on.
fn tree(
    tokens: &[Token],
    mut at: usize,
    prefix: &mut Vec<String>,
    found: &mut Vec<Vec<String>>,
) -> usize {
    let outer = prefix.len();
    while let Some(token) = tokens.get(at) {
        match token {
            Token::Word(word) if word == "as" => at += 2,
            Token::Word(word) => {
                prefix.push(word.clone());
                at += 1;
            }
            Token::Path => at += 1,
            Token::Mark('*') => {
                prefix.push("*".to_owned());
                at += 1;
            }
            Token::Mark('{') => {
                at = group(tokens, at + 1, prefix, found);
                prefix.truncate(outer);
                return at;
            }
            Token::Mark(_) => break,
        }
    }
    if prefix.len() > outer {
        found.push(prefix.clone());
    }
    prefix.truncate(outer);
    at
}

/// The trees between braces; returns where to go on after the closing one.
fn group(
    tokens: &[Token],
    mut at: usize,
    prefix: &mut Vec<String>,
    found: &mut Vec<Vec<String>>,
) -> usize {
    loop {
        match tokens.get(at) {
            None | Some(Token::Mark('}')) => return at + 1,
            Some(Token::Mark(',')) => at += 1,
            Some(_) => {
                let next = tree(tokens, at, prefix, found);
                // Something that is no `use` tree: leave it rather than stand still.
                if next == at {
                    return at + 1;
                }
                at = next;
            }
        }
    }
}

fn tokens(text: &str) -> Vec<Token> {
    let mut rest = text;
    let mut tokens = Vec::new();
    while let Some(first) = rest.chars().next() {
        let skipped = literal_or_comment(rest);
        if skipped > 0 {
            rest = &rest[skipped..];
        } else if first == '_' || first.is_alphanumeric() {
            let end = rest.find(|c: char| c != '_' && !c.is_alphanumeric()).unwrap_or(rest.len());
            tokens.push(Token::Word(rest[..end].to_owned()));
            rest = &rest[end..];
        } else if rest.starts_with("::") {
            tokens.push(Token::Path);
            rest = &rest[2..];
        } else {
            if !first.is_whitespace() {
                tokens.push(Token::Mark(first));
            }
            rest = &rest[first.len_utf8()..];
        }
    }
    tokens
}

/// Length of the comment, string or character that `text` begins with; 0 if it begins with none.
fn literal_or_comment(text: &str) -> usize {
    if text.starts_with("//") {
        return text.find('\n').unwrap_or(text.len());
    }
    if text.starts_with("/*") {
        return block_comment(text);
    }
    for prefix in ["br", "cr", "r"] {
        if let Some(length) = text.strip_prefix(prefix).and_then(raw_string) {
            return prefix.len() + length;
        }
    }
    for prefix in ["b\"", "c\"", "\""] {
        if let Some(body) = text.strip_prefix(prefix) {
            return prefix.len() + quoted(body, '"');
        }
    }
    let quote = if text.starts_with("b'") { 2 } else { 1 };
    match text.strip_prefix("b'").or_else(|| text.strip_prefix('\'')) {
        Some(body) if is_character(body) => quote + quoted(body, '\''),
        _ => 0,
    }
}

/// Whether what follows a single quote is a character and not a lifetime.
fn is_character(body: &str) -> bool {
    body.starts_with('\\') || body.chars().nth(1) == Some('\'')
}

/// Length up to and with the closing quote; a backslash hides the character after it.
fn quoted(body: &str, quote: char) -> usize {
    let mut hidden = false;
    for (at, character) in body.char_indices() {
        match character {
            _ if hidden => hidden = false,
            '\\' => hidden = true,
            _ if character == quote => return at + quote.len_utf8(),
            _ => {}
        }
    }
    body.len()
}

/// Length of `#"…"#` with any number of `#`.
fn raw_string(text: &str) -> Option<usize> {
    let hashes = text.bytes().take_while(|byte| *byte == b'#').count();
    let body = text[hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    let length = body.find(&end).map_or(body.len(), |at| at + end.len());
    Some(hashes + 1 + length)
}

/// Block comments stand within each other.
fn block_comment(text: &str) -> usize {
    let (mut at, mut depth) = (0, 0);
    while at < text.len() {
        if text[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if text[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += text[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    text.len()
}
