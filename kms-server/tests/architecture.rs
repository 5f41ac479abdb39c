//! Keeps the shape of the workspace: floors and doors of `kms-server`, the rooms of `rpc`, where `unsafe` may
//! stand, what does no IO, and how long a file may be. The rules are the tables below; `ARCHITECTURE.md` says why.

#[path = "architecture/circles.rs"]
mod circles;
#[path = "architecture/rooms.rs"]
mod rooms;
#[path = "architecture/source.rs"]
mod source;

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use source::{Source, named_modules};

/// Floor of every part of `kms-server`. A part may name only parts on lower floors; those on one floor
/// do not name each other. Each part defines its own `Config`, so only `config` and those above it
/// name them all.
const FLOORS: &[(&str, u8)] = &[
    ("telemetry", 10),
    ("hsm", 15),
    ("store", 15),
    ("audit", 20),
    ("keyring", 20),
    ("backup", 30),
    ("ciphering", 30),
    ("enrolment", 30),
    ("lifecycle", 30),
    ("replication", 30),
    ("site_health", 30),
    ("site_keys", 30),
    ("transmitting", 30),
    ("associations", 35),
    ("rpc", 40),
    ("config", 50),
    ("app", 60),
    ("main", 70),
    ("testing", 80),
];

/// Crates that only one part of `kms-server` may name.
const DOORS: &[(&str, &str)] = &[
    ("cryptoki", "hsm/"),
    ("cryptoki_sys", "hsm/"),
    ("rsa", "hsm/"),
    ("sha1", "hsm/"),
    ("sqlx", "store/"),
    ("hyper", "rpc/"),
    ("hyper_util", "rpc/"),
    ("tonic", "rpc/"),
    ("tonic_health", "rpc/"),
    ("tonic_reflection", "rpc/"),
    ("tonic_types", "rpc/"),
    ("kms_proto", "rpc/"),
    ("rustls", "rpc/"),
    ("tokio_rustls", "rpc/"),
    ("x509_parser", "rpc/"),
];

/// The only files that may say `unsafe`: pages that are locked and wiped, and two PKCS #11 modules for tests, since a
/// symbol that C finds by its name is exported by an attribute of that word.
const UNSAFE_HOMES: &[&str] = &[
    "kms-server/src/keyring/resident/arena.rs",
    "softhsm-tests/fault-module/src/module.rs",
    "other-tokens/kryoptic/src/lib.rs",
];

/// Sources that compute and nothing else, and what of `std` they therefore never name.
const PURE: &[&str] = &["dlms/src/", "kms-core/src/", "simulated-meter/src/"];
const IO: &[&str] = &["std::fs", "std::net", "std::io", "std::env", "std::process", "std::thread"];

/// What no crate that computes may need, however far below: runtimes, the wire, the database, the token.
const OUTSIDE: &[&str] = &[
    "tokio",
    "async-std",
    "smol",
    "mio",
    "tonic",
    "prost",
    "hyper",
    "h2",
    "rustls",
    "sqlx",
    "sqlx-core",
    "cryptoki",
    "cryptoki-sys",
];
const PURE_CRATES: &[&str] = &["dlms", "kms-core", "simulator"];

/// What the simulated meter must not share with what it tests: our crates, and the cryptography under them.
const NOT_OF_THE_METER: &[&str] =
    &["dlms", "kms-core", "kms-server", "kms-client", "aes", "aes-gcm", "aes-kw", "cmac", "ghash"];

/// The crates whose files may not name each other in circles, and how paths begin with them.
const CRATES: &[(&str, &str)] = &[
    ("dlms", "dlms"),
    ("kms-core", "kms_core"),
    ("simulator", "simulator"),
    ("simulated-meter", "simulated_meter"),
    ("kms-server", "kms_server"),
    ("kms-client", "kms_client"),
    ("kms-client/src/bin/ami-tool", "ami_tool"),
    ("softhsm-tests", "softhsm_tests"),
    ("benches", "benches"),
];

/// How long a Rust file may be.
const LINES_MAX: usize = 600;

/// What is wrong with one file of `kms-server/src`; `path` is relative to there.
fn complaints_of_part(path: &str, source: &Source) -> Vec<String> {
    if path == "lib.rs" {
        return Vec::new();
    }
    let part = path.split(['/', '.']).next().unwrap_or_default();
    let Some(floor) = floor_of(part) else {
        return vec![format!("{path}: `{part}` has no floor; give it one in FLOORS")];
    };
    let climbs = named_modules(path, source)
        .into_iter()
        .filter(|other| other != part)
        .filter(|other| floor_of(other).is_some_and(|its| its >= floor))
        .map(|other| format!("{path} reaches up to `{other}`"));
    let strays = DOORS
        .iter()
        .filter(|(word, home)| !path.starts_with(home) && source.names_crate(word))
        .map(|(word, home)| format!("{path} names `{word}`; only {home} may"));
    climbs.chain(strays).collect()
}

fn floor_of(part: &str) -> Option<u8> {
    FLOORS.iter().find(|(name, _)| *name == part).map(|(_, floor)| *floor)
}

/// What is wrong with one Rust file of the workspace; `path` is relative to its root.
fn complaints_of_file(path: &str, text: &str, source: &Source) -> Vec<String> {
    let lines = text.lines().count();
    let long =
        (lines > LINES_MAX).then(|| format!("{path} has {lines} lines; {LINES_MAX} is the most"));
    let unsafe_here = (source.says("unsafe") && !UNSAFE_HOMES.contains(&path))
        .then(|| format!("{path} says `unsafe`; only {} may", UNSAFE_HOMES.join(", ")));
    let pure = PURE.iter().any(|home| path.starts_with(home));
    let io = IO
        .iter()
        .filter(|name| pure && source.names_path(name))
        .map(|name| format!("{path} names `{name}`; it does no IO"));
    long.into_iter().chain(unsafe_here).chain(io).collect()
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// All Rust files below `dir`, as paths relative to `root`. Build output, hidden directories and what is
/// generated are left out.
fn rust_files(root: &Path, dir: &Path, found: &mut Vec<String>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            if !name.starts_with('.')
                && !name.starts_with("target")
                && !path.ends_with("proto/src/generated")
            {
                rust_files(root, &path, found)?;
            }
        } else if name.ends_with(".rs")
            && let Ok(relative) = path.strip_prefix(root)
        {
            found.push(relative.to_string_lossy().into_owned());
        }
    }
    Ok(())
}

fn all_complaints(root: &Path) -> io::Result<(usize, Vec<String>)> {
    let mut files = Vec::new();
    rust_files(root, root, &mut files)?;
    files.sort();
    let mut complaints = Vec::new();
    for path in &files {
        let text = fs::read_to_string(root.join(path))?;
        let source = Source::of(&text);
        complaints.extend(complaints_of_file(path, &text, &source));
        if let Some(path) = path.strip_prefix("kms-server/src/") {
            complaints.extend(complaints_of_part(path, &source));
            complaints.extend(rooms::complaints_of_room(path, &source));
        }
    }
    Ok((files.len(), complaints))
}

#[test]
fn no_part_reaches_up_no_library_leaves_its_door_and_no_file_is_too_long() {
    let (files, complaints) = all_complaints(&workspace()).unwrap();
    assert!(files > 20, "only {files} files were found: the walk is broken");
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

/// A source up to its own tests: a module of tests that stands in a file of its own ends nothing.
fn without_tests(text: &str) -> &str {
    let starts = text.match_indices("\n#[cfg(test)]\nmod ");
    let inline = |(at, _): &(usize, &str)| {
        text[at + 1..].lines().nth(1).is_some_and(|line| line.ends_with('{'))
    };
    starts.filter(inline).map(|(at, _)| &text[..at]).next().unwrap_or(text)
}

/// The sources of a crate without their tests.
fn sources(name: &str) -> io::Result<Vec<(String, Source)>> {
    let dir = workspace().join(name);
    let root = if dir.join("src").is_dir() { dir.join("src") } else { dir };
    let mut files = Vec::new();
    rust_files(&root, &root, &mut files)?;
    files.retain(|path| !path.ends_with("tests.rs"));
    let source = |path: String| {
        let text = fs::read_to_string(root.join(&path))?;
        Ok((path, Source::of(without_tests(&text))))
    };
    files.into_iter().map(source).collect()
}

#[test]
fn no_files_of_a_crate_name_each_other_in_a_circle() {
    let mut found = Vec::new();
    for (name, words) in CRATES {
        let sources = sources(name).unwrap();
        assert!(sources.len() > 3, "{name} is not read right");
        for circle in circles::circles(words, &sources) {
            found.push(format!("{name}: {}", circle.join(", ")));
        }
    }
    assert!(found.is_empty(), "circles are to be opened:\n{}", found.join("\n"));
}

/// All that a crate needs according to `Cargo.lock`: what its tests need and any feature adds, too.
fn needs(lock: &toml::Table, name: &str) -> BTreeSet<String> {
    let packages = lock["package"].as_array().map_or(&[][..], Vec::as_slice);
    let below = |name: &str| {
        let of_name = packages.iter().filter(move |it| it["name"].as_str() == Some(name));
        let lists = of_name.filter_map(|it| it.get("dependencies")?.as_array());
        // With its version where there are several.
        let first = |it: &toml::Value| it.as_str()?.split(' ').next().map(str::to_owned);
        lists.flatten().filter_map(first).collect::<Vec<_>>()
    };
    let (mut found, mut due) = (BTreeSet::new(), vec![name.to_owned()]);
    while let Some(next) = due.pop() {
        due.extend(below(&next).into_iter().filter(|it| found.insert(it.clone())));
    }
    found
}

#[test]
fn what_only_computes_needs_no_runtime_wire_database_or_token() {
    let lock = fs::read_to_string(workspace().join("Cargo.lock")).unwrap();
    let lock: toml::Table = lock.parse().unwrap();
    for name in PURE_CRATES {
        let needs = needs(&lock, name);
        assert!(needs.contains("zeroize"), "{name} is not read right: {needs:?}");
        let outside: Vec<_> = OUTSIDE.iter().filter(|it| needs.contains(**it)).collect();
        assert!(outside.is_empty(), "{name} needs {outside:?}");
    }
    let server = needs(&lock, "kms-server");
    for name in ["tokio", "tonic", "prost", "hyper", "rustls", "sqlx", "cryptoki"] {
        assert!(server.contains(name), "what the server needs is not read right: {name}");
    }
}

#[test]
fn the_simulated_meter_shares_nothing_with_the_service_and_is_no_part_of_it() {
    let lock = fs::read_to_string(workspace().join("Cargo.lock")).unwrap();
    let lock: toml::Table = lock.parse().unwrap();
    let meter = needs(&lock, "simulated-meter");
    assert!(meter.contains("ring"), "what the meter needs is not read right: {meter:?}");
    let shared: Vec<_> = NOT_OF_THE_METER.iter().filter(|it| meter.contains(**it)).collect();
    assert!(shared.is_empty(), "the simulated meter needs {shared:?}");
    for name in ["dlms", "proto", "kms-core", "kms-server", "kms-client"] {
        // Its tests may: what they need is not told apart in the lock file.
        let manifest = fs::read_to_string(workspace().join(name).join("Cargo.toml")).unwrap();
        let manifest: toml::Table = manifest.parse().unwrap();
        let needed = manifest["dependencies"].as_table().unwrap();
        assert!(!needed.contains_key("simulated-meter"), "{name} needs the simulated meter");
    }
}

#[cfg(test)]
mod the_checker {
    use super::*;

    fn part(path: &str, text: &str) -> Vec<String> {
        complaints_of_part(path, &Source::of(text))
    }

    fn circles_of(files: &[(&str, &str)]) -> Vec<Vec<String>> {
        let files: Vec<_> =
            files.iter().map(|(path, text)| ((*path).to_owned(), Source::of(text))).collect();
        circles::circles("x", &files)
    }

    #[test]
    fn finds_circles_over_a_module_that_is_imported_and_named_in_a_body() {
        let found = circles_of(&[
            ("lib.rs", "mod a; mod b;"),
            ("a/mod.rs", "pub mod deep;"),
            ("a/deep.rs", "use crate::b::B; pub fn start() {}"),
            ("b.rs", "use crate::a; fn f() { a::deep::start() }"),
        ]);
        assert_eq!(found, [["a/deep.rs", "b.rs"]]);
    }

    #[test]
    fn finds_circles_also_over_names_that_are_handed_on() {
        let found = circles_of(&[
            ("lib.rs", "mod a; mod b; mod c; pub use b::{B, deep::D};"),
            ("a.rs", "use crate::{B, c::C};"),
            ("b.rs", "mod deep; use super::a::A;"),
            ("b/deep.rs", "use crate::b::B;"),
            ("c.rs", "fn f() { crate::D::new() }"),
        ]);
        assert_eq!(found, [["a.rs", "b.rs", "b/deep.rs", "c.rs"]]);
        let of_two = circles_of(&[
            ("lib.rs", "pub mod a;"),
            ("a/mod.rs", "mod b; use b::B; use std::fmt;"),
            ("a/b.rs", "use super::A; use x::a;"),
        ]);
        assert_eq!(of_two, [["a/b.rs", "a/mod.rs"]]);
        // A face that uses what it hands on.
        let face = circles_of(&[
            ("a/mod.rs", "mod b; pub use b::B; trait A { fn b(&self) -> B; }"),
            ("a/b.rs", "use super::A;"),
        ]);
        assert_eq!(face, [["a/b.rs", "a/mod.rs"]]);
    }

    #[test]
    fn reads_on_behind_tests_that_stand_in_a_file_of_their_own() {
        let text = "a\n#[cfg(test)]\nmod b;\nc\n#[cfg(test)]\nmod d {\n}\n";
        assert_eq!(without_tests(text), "a\n#[cfg(test)]\nmod b;\nc");
    }

    #[test]
    fn takes_no_tree_for_a_circle() {
        let none: [Vec<String>; 0] = [];
        let found = circles_of(&[
            ("lib.rs", "mod a; mod b; pub use a::A; pub use b::B;"),
            ("a.rs", "use crate::B; use other::a;"),
            ("b.rs", "fn f() { self::g() }"),
        ]);
        assert_eq!(found, none);
    }

    fn file(path: &str, text: &str) -> Vec<String> {
        complaints_of_file(path, text, &Source::of(text))
    }

    #[test]
    fn complains_of_each_way_to_reach_up() {
        for text in [
            "use crate::rpc::Server;",
            "use crate::{store::StoreError, rpc};",
            "use crate::{store::{StoreError, Seal}, rpc::tls};",
            "use crate :: rpc;",
            "fn f() { crate::rpc::serve() }",
            "use kms_server::rpc;",
            "use super::super::rpc::Server;",
            "pub(in crate::rpc) fn f() {}",
        ] {
            assert_eq!(
                part("keyring/open.rs", text),
                ["keyring/open.rs reaches up to `rpc`"],
                "{text}"
            );
        }
        assert_eq!(
            part("keyring/mod.rs", "use super::rpc;"),
            ["keyring/mod.rs reaches up to `rpc`"]
        );
        assert_eq!(part("telemetry.rs", "use super::rpc;"), ["telemetry.rs reaches up to `rpc`"]);
        let deep = "mod tests { use super::super::super::rpc; }";
        assert_eq!(part("keyring/open.rs", deep), ["keyring/open.rs reaches up to `rpc`"]);
    }

    #[test]
    fn complains_of_a_part_on_the_same_floor() {
        assert_eq!(part("store/sqlite.rs", "use crate::hsm::Hsm;").len(), 1);
        assert_eq!(part("lifecycle/mod.rs", "use crate::{ciphering, replication};").len(), 2);
        assert_eq!(part("telemetry/log.rs", "use crate::hsm;").len(), 1);
    }

    #[test]
    fn does_not_complain_of_what_lies_below_or_within() {
        for (path, text) in [
            ("keyring/open.rs", "use crate::{hsm::Hsm, store::ReadStore};"),
            ("keyring/open.rs", "use super::arena::Arena; use crate::keyring::resident;"),
            ("keyring/open.rs", "mod tests { use super::super::arena; }"),
            ("rpc/meters.rs", "use crate::lifecycle; mod rpc {}"),
            ("app.rs", "use crate::{config::Config, rpc, hsm, store};"),
            ("main.rs", "use kms_server::{app::App, config::Config};"),
            ("lib.rs", "pub mod rpc; pub mod store;"),
        ] {
            assert!(part(path, text).is_empty(), "{path}: {text}: {:?}", part(path, text));
        }
    }

    #[test]
    fn does_not_read_comments_and_strings() {
        let text = r##"
            //! Called by [`crate::rpc`]. Uses tonic::Status.
            /* crate::rpc /* tonic:: */ unsafe */
            const A: &str = "crate::rpc \" tonic::Status";
            const B: &str = r#"crate::rpc " sqlx::query"#;
            const C: (char, u8) = ('"', b'\'');
            fn f<'a>(x: &'a str) -> &'a str { x }
        "##;
        assert!(part("keyring/open.rs", text).is_empty());
        assert!(file("keyring/open.rs", text).is_empty());
        // And goes on reading after them.
        let text = format!("{text} use crate::rpc;");
        assert_eq!(part("keyring/open.rs", &text).len(), 1);
    }

    #[test]
    fn complains_of_a_library_outside_its_door() {
        for (path, text) in [
            ("keyring/open.rs", "use cryptoki::session::Session;"),
            ("ciphering/mod.rs", "fn f(row: sqlx::Row) {}"),
            ("app.rs", "use tonic::transport::Server;"),
            ("telemetry.rs", "use tonic as wire;"),
            ("config.rs", "use {rustls, std::fmt};"),
            ("main.rs", "extern crate kms_proto;"),
            ("telemetry/metrics.rs", "use hyper::Response;"),
        ] {
            assert_eq!(part(path, text).len(), 1, "{path}: {text}");
        }
    }

    #[test]
    fn does_not_complain_of_a_library_behind_its_door_or_of_a_like_name() {
        for (path, text) in [
            ("hsm/pkcs11/connection/pool.rs", "use cryptoki::session::Session;"),
            ("store/sqlite.rs", "sqlx::query(sql)"),
            ("rpc/tls.rs", "use rustls::ServerConfig; use tonic::Status;"),
            ("app.rs", "let tonic_water = 1; self.rustls();"),
            ("config.rs", "struct Section { sqlx: u8 }"),
        ] {
            assert!(part(path, text).is_empty(), "{path}: {text}");
        }
    }

    #[test]
    fn complains_of_a_part_without_a_floor() {
        assert_eq!(part("utils.rs", "").len(), 1);
    }

    #[test]
    fn complains_of_unsafe_anywhere_but_in_its_two_homes() {
        let text = "fn f() { unsafe { g() } }";
        assert_eq!(file("kms-server/src/app.rs", text).len(), 1);
        assert_eq!(file("kms-client/src/lib.rs", text).len(), 1);
        assert_eq!(file("softhsm-tests/fault-module/src/control.rs", text).len(), 1);
        assert!(file("kms-server/src/keyring/resident/arena.rs", text).is_empty());
        assert!(file("softhsm-tests/fault-module/src/module.rs", text).is_empty());
        assert!(file("dlms/src/lib.rs", "#![forbid(unsafe_code)]").is_empty());
    }

    #[test]
    fn complains_of_io_in_what_only_computes() {
        for text in [
            "use std::fs;",
            "use std::{fmt, net::IpAddr};",
            "std::fs::read(path)",
            "use ::std::{collections::BTreeMap, env};",
        ] {
            assert_eq!(file("dlms/src/open.rs", text).len(), 1, "{text}");
            assert_eq!(file("kms-core/src/key.rs", text).len(), 1, "{text}");
            assert!(file("kms-server/src/app.rs", text).is_empty(), "{text}");
            assert!(file("dlms/tests/vectors.rs", text).is_empty(), "{text}");
        }
        assert!(file("dlms/src/open.rs", "use std::fmt; let fs = 1; a.tokio();").is_empty());
    }

    #[test]
    fn complains_of_a_file_that_is_too_long() {
        assert!(file("dlms/src/open.rs", &"\n".repeat(LINES_MAX)).is_empty());
        assert_eq!(file("dlms/tests/open.rs", &"\n".repeat(LINES_MAX + 1)).len(), 1);
    }
}
