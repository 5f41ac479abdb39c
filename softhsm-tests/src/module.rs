//! The product whose token a site is on: SoftHSM, or the one that `make kryoptic` builds.

use std::{
    env,
    path::{Path, PathBuf},
};

/// The PKCS #11 module of a site.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Module {
    /// SoftHSM, wherever [`crate::Programs`] found it.
    #[default]
    SoftHsm,
    /// Kryoptic: the library's file.
    Kryoptic(PathBuf),
}

/// Names another library than the one that `make kryoptic` leaves.
const VARIABLE: &str = "KRYOPTIC_LIBRARY";

impl Module {
    /// Kryoptic, if it was built; else says on standard error that `test` is left out, and how to have it.
    pub fn kryoptic_for(test: &str) -> Option<Self> {
        let found = kryoptic_at(&library());
        if found.is_none() {
            eprintln!(
                "{test}: left out, since Kryoptic is not built here; `make kryoptic` builds it"
            );
        }
        found
    }
}

fn library() -> PathBuf {
    let built =
        concat!(env!("CARGO_MANIFEST_DIR"), "/../other-tokens/target/release/libkryoptic.so");
    env::var_os(VARIABLE).map_or_else(|| built.into(), PathBuf::from)
}

fn kryoptic_at(path: &Path) -> Option<Module> {
    let path = path.canonicalize().ok()?;
    path.is_file().then_some(Module::Kryoptic(path))
}

/// Kryoptic's own configuration file: one slot, its objects in a file of `tokens`.
pub(crate) fn kryoptic_conf(tokens: &Path) -> String {
    format!(
        "[[slots]]\nslot = 1\ndbtype = \"sqlite\"\ndbargs = \"{}\"\n",
        tokens.join("kryoptic.sql").display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_that_was_not_built_is_not_made_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("libkryoptic.so");
        assert_eq!(kryoptic_at(&path), None);
        std::fs::write(&path, "").unwrap();
        assert_eq!(kryoptic_at(&path), Some(Module::Kryoptic(path.canonicalize().unwrap())));
    }
}
