//! The contract of every token, held by this one; and that no release has it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use super::{contract, token::MemoryToken};
use crate::hsm::{BlockSeals as _, Device as _, TokenError};

macro_rules! on_memory {
    ($($case:ident)*) => {$(
        #[test]
        fn $case() {
            contract::$case(&MemoryToken::new().unwrap());
        }
    )*};
}

contract!(on_memory);

#[test]
fn a_token_that_went_away_says_so_until_it_comes_back() {
    let token = MemoryToken::new().unwrap();
    token.go_away("the cable was pulled");
    let failed = token.open(b"p", &[]);
    assert!(matches!(failed, Err(TokenError::Unreachable { reason }) if reason.contains("cable")));
    assert!(token.status().fault.is_some() && token.check().is_err());
    token.come_back();
    token.check().unwrap();
    assert_eq!(token.status().fault, None);
}

/// Compiles what guards the feature as a release does, or as a test does.
fn guard_with_debug_assertions(on: &str) -> Output {
    let guard = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/hsm/memory/debug_only.rs");
    let out = tempfile::tempdir().unwrap();
    Command::new(std::env::var_os("RUSTC").unwrap_or("rustc".into()))
        .args(["--edition", "2024", "--crate-type", "lib", "--emit", "metadata"])
        .args(["--cfg", "feature=\"memory-token\"", "-C", &format!("debug-assertions={on}")])
        .arg(guard)
        .arg("--out-dir")
        .arg(out.path())
        .output()
        .unwrap()
}

#[test]
fn a_release_refuses_the_feature() {
    let refused = guard_with_debug_assertions("off");
    let told = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && told.contains("no release has it"), "{told}");
    assert!(guard_with_debug_assertions("on").status.success());
}

#[test]
fn nothing_that_is_shipped_asks_for_the_feature() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let manifest = fs::read_to_string(root.join("kms-server/Cargo.toml")).unwrap();
    let manifest: toml::Table = manifest.parse().unwrap();
    let features = manifest["features"].as_table().unwrap();
    assert!(!features.contains_key("default") && features.contains_key("memory-token"));
    let by_others = features.iter().filter(|(name, _)| *name != "memory-token");
    for (name, adds) in by_others {
        assert!(!format!("{adds:?}").contains("memory-token"), "{name}");
    }
    let mut found = Vec::new();
    what_builds(&root, &mut found);
    found.retain(|path| !path.ends_with("kms-server/Cargo.toml"));
    let names = |end: &str| found.iter().filter(|path| path.ends_with(end)).count();
    assert!(names("Cargo.toml") > 7 && names(".ci/run") == 1 && names("scripts/deb.sh") == 1);
    for path in found {
        let text = fs::read_to_string(&path).unwrap();
        assert!(!text.contains("memory-token"), "{}", path.display());
    }
    let assembled = include_str!("mod.rs");
    assert!(assembled.contains("\nmod debug_only;\n"), "nothing refuses it any more");
    assert!(!assembled.contains("]\nmod debug_only;"), "it must not hang on a condition");
}

/// Manifests, scripts and whatever else says how something is built.
fn what_builds(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            if !name.starts_with("target") && (!name.starts_with('.') || name == ".ci") {
                what_builds(&path, found);
            }
        } else if matches!(&*name, "Cargo.toml" | "Makefile" | "run") || name.ends_with(".sh") {
            found.push(path);
        }
    }
}
