//! `docs/ACCESS.md` is what the policy says. `UPDATE_DOCS=1` writes it anew.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::{fs, path::Path};

use kms_server::rpc::access;

#[test]
#[expect(clippy::disallowed_methods, reason = "a developer's wish, not a setting")]
fn the_list_of_roles_and_calls_is_that_of_the_code() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/ACCESS.md");
    let due = access::markdown();
    if std::env::var("UPDATE_DOCS").is_ok() {
        fs::write(&path, &due).unwrap();
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    let differs = due.lines().zip(written.lines()).find(|(due, written)| due != written);
    assert!(written == due, "docs/ACCESS.md is not up to date: {differs:?}; see its first lines");
}
