//! Circles of files within a crate: files that name each other, directly or over others. Whoever reads one of
//! them has to read them all.
//!
//! A path is followed to the file that defines its end: through modules, and through `pub use` to where a name
//! comes from. A `mod` line is no arrow, and neither is a file's own tests.

use std::collections::{BTreeMap, BTreeSet};

use super::source::Source;

/// The files of one crate by their module's path: `[]` is its root, `["block", "keys"]` one deeper.
type Modules<'a> = BTreeMap<Vec<String>, (&'a str, &'a Source)>;

/// All circles of a crate, each sorted, the largest first. `files`: path below its `src`, and what it says.
pub(super) fn circles(crate_name: &str, files: &[(String, Source)]) -> Vec<Vec<String>> {
    let has_library = files.iter().any(|(path, _)| path == "lib.rs");
    let modules: Modules<'_> = files
        .iter()
        // A program beside a library is a crate of its own.
        .filter(|(path, _)| !(path.starts_with("bin/") || has_library && path == "main.rs"))
        .map(|(path, source)| (module_of(path), (path.as_str(), source)))
        .collect();
    let mut arrows: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (module, (path, source)) in &modules {
        // What it only hands on is no arrow of its own: that is a face, not a use.
        let only_handed_on = |named: &&Vec<String>| {
            let mut faces = source.reexports().iter().filter(|(_, it)| it == *named);
            faces.any(|(name, _)| !source.uses(name))
        };
        let targets = source
            .paths()
            .iter()
            .filter(|named| !only_handed_on(named))
            .filter_map(|named| located(&modules, crate_name, module, named))
            .filter_map(|named| resolve(&modules, &named))
            .filter(|target| target != path);
        arrows.entry(path).or_default().extend(targets);
    }
    knots(&arrows)
}

fn module_of(path: &str) -> Vec<String> {
    let path = path.trim_end_matches(".rs").trim_end_matches("/mod");
    if matches!(path, "lib" | "mod" | "main") {
        return Vec::new();
    }
    path.split('/').map(str::to_owned).collect()
}

/// A path from the crate's root on; `None`: it leads out of the crate, or is relative to something inside the
/// file.
fn absolute(crate_name: &str, module: &[String], path: &[String]) -> Option<Vec<String>> {
    let first = path.first()?.as_str();
    let ups = path.iter().take_while(|segment| *segment == "super").count();
    match first {
        "crate" => Some(path[1..].to_vec()),
        own if own == crate_name => Some(path[1..].to_vec()),
        "self" => Some([module, &path[1..]].concat()),
        "super" if ups <= module.len() => {
            Some([&module[..module.len() - ups], &path[ups..]].concat())
        }
        _ => None,
    }
}

/// The same, of a path that may begin with a module within this one.
fn located(
    modules: &Modules<'_>,
    crate_name: &str,
    module: &[String],
    path: &[String],
) -> Option<Vec<String>> {
    absolute(crate_name, module, path).or_else(|| {
        let within = [module, path].concat();
        modules.contains_key(&within[..=module.len()]).then_some(within)
    })
}

/// The file that defines what an absolute path names.
fn resolve<'a>(modules: &Modules<'a>, path: &[String]) -> Option<&'a str> {
    let mut path = path.to_vec();
    // As often as names are handed on; a circle of `pub use` would be an error of the compiler.
    for _ in 0..8 {
        let depth = (0..=path.len()).rev().find(|depth| modules.contains_key(&path[..*depth]))?;
        let (file, source) = modules[&path[..depth]];
        let Some(name) = path.get(depth) else { return Some(file) };
        let handed_on = source.reexports().iter().find(|(as_name, _)| as_name == name);
        let Some((_, target)) = handed_on else { return Some(file) };
        // `None`: from another crate.
        let target = located(modules, "", &path[..depth], target)?;
        path = [&target[..], &path[depth + 1..]].concat();
    }
    None
}

/// What hangs together in a circle: files that reach each other.
fn knots(arrows: &BTreeMap<&str, BTreeSet<&str>>) -> Vec<Vec<String>> {
    let reach: BTreeMap<&str, BTreeSet<&str>> =
        arrows.keys().map(|from| (*from, reached(arrows, from))).collect();
    let mut knots: BTreeSet<Vec<String>> = BTreeSet::new();
    for (from, reached) in &reach {
        if reached.contains(from) {
            let back = |to: &&&str| reach.get(**to).is_some_and(|back| back.contains(from));
            knots.insert(reached.iter().filter(back).map(|file| (*file).to_owned()).collect());
        }
    }
    let mut knots: Vec<_> = knots.into_iter().collect();
    knots.sort_by_key(|knot| std::cmp::Reverse(knot.len()));
    knots
}

fn reached<'a>(arrows: &BTreeMap<&'a str, BTreeSet<&'a str>>, from: &str) -> BTreeSet<&'a str> {
    let (mut seen, mut due) = (BTreeSet::new(), vec![from]);
    while let Some(next) = due.pop() {
        for to in arrows.get(next).into_iter().flatten() {
            if seen.insert(*to) {
                due.push(to);
            }
        }
    }
    seen
}
