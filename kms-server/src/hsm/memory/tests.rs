//! The contract of every token, held by this one; and that no release has it.

use std::{
    fs,
    path::Path,
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
    let members =
        fs::read_dir(&root).unwrap().map(|member| member.unwrap().path().join("Cargo.toml"));
    let others: Vec<_> =
        members.filter(|it| it.is_file() && !it.ends_with("kms-server/Cargo.toml")).collect();
    assert!(others.len() > 3, "the walk is broken: {others:?}");
    let builds = ["Cargo.toml", "Makefile", "scripts/deb.sh"].map(|file| root.join(file));
    for path in others.iter().chain(&builds) {
        let text = fs::read_to_string(path).unwrap();
        assert!(!text.contains("memory-token"), "{}", path.display());
    }
}
