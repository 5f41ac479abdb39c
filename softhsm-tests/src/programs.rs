//! Where the built programs and the token library are.

use std::{
    env,
    path::{Path, PathBuf},
};

use clap::Parser;

/// The files that a site needs to be run: two programs of this workspace and SoftHSM's library.
#[derive(Clone, Debug)]
pub struct Programs {
    /// `kms-server`.
    pub kms_server: PathBuf,
    /// `ami-tool`.
    pub ami_tool: PathBuf,
    /// `libsofthsm2.so`.
    pub softhsm: PathBuf,
}

/// Something that should have been built or installed is not there.
#[derive(Debug, thiserror::Error)]
pub enum MissingProgram {
    /// A program of this workspace.
    #[error("{name} is not built; looked in {looked}. Run: cargo build -p {package} --bin {name}")]
    NotBuilt {
        /// The program.
        name: &'static str,
        /// The package that has it.
        package: &'static str,
        /// The directories that were searched.
        looked: String,
    },
    /// The token library.
    #[error("libsofthsm2.so is not installed; looked in {looked}. Run: make bootstrap")]
    NoSoftHsm {
        /// The files that were looked for.
        looked: String,
    },
    /// A path that was given explicitly does not exist.
    #[error("{variable} names {path}, which does not exist")]
    NoSuchFile {
        /// Where the path came from.
        variable: &'static str,
        /// The path.
        path: PathBuf,
    },
}

/// Paths that override the search. In a program they are options; in a test, environment variables.
#[derive(Clone, Debug, Default, Parser)]
pub struct ProgramPaths {
    /// Use this kms-server instead of the one that was built.
    #[arg(long = "kms-server-bin", env = "KMS_SERVER_BIN", value_name = "FILE")]
    pub kms_server: Option<PathBuf>,
    /// Use this ami-tool instead of the one that was built.
    #[arg(long = "ami-tool-bin", env = "AMI_TOOL_BIN", value_name = "FILE")]
    pub ami_tool: Option<PathBuf>,
    /// Use this PKCS #11 library instead of SoftHSM's usual places.
    #[arg(long = "softhsm-library", env = "SOFTHSM2_LIBRARY", value_name = "FILE")]
    pub softhsm: Option<PathBuf>,
}

/// Where Debian, Ubuntu, Fedora, Arch, Alpine and a build from source put the library.
const SOFTHSM_PLACES: [&str; 8] = [
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
    "/usr/lib64/softhsm/libsofthsm2.so",
    "/usr/lib64/libsofthsm2.so",
    "/usr/lib/libsofthsm2.so",
    "/usr/local/lib/softhsm/libsofthsm2.so",
];

impl Programs {
    /// Finds everything, with the environment's overrides.
    pub fn find() -> Result<Self, MissingProgram> {
        Self::find_with(ProgramPaths::parse_from(["softhsm-tests"]))
    }

    /// Finds everything that `paths` does not name.
    pub fn find_with(paths: ProgramPaths) -> Result<Self, MissingProgram> {
        Ok(Self {
            kms_server: match paths.kms_server {
                Some(path) => existing("KMS_SERVER_BIN", path)?,
                None => built("kms-server", "kms-server")?,
            },
            ami_tool: match paths.ami_tool {
                Some(path) => existing("AMI_TOOL_BIN", path)?,
                None => built("ami-tool", "kms-client")?,
            },
            softhsm: match paths.softhsm {
                Some(path) => existing("SOFTHSM2_LIBRARY", path)?,
                None => softhsm_among(&SOFTHSM_PLACES)?,
            },
        })
    }
}

fn existing(variable: &'static str, path: PathBuf) -> Result<PathBuf, MissingProgram> {
    if path.exists() { Ok(path) } else { Err(MissingProgram::NoSuchFile { variable, path }) }
}

/// Programs lie beside ours; test programs lie one directory below, in `deps`.
fn built(name: &'static str, package: &'static str) -> Result<PathBuf, MissingProgram> {
    let ours = env::current_exe().unwrap_or_default();
    let places: Vec<&Path> = ours.ancestors().skip(1).take(2).collect();
    places.iter().map(|place| place.join(name)).find(|path| path.is_file()).ok_or_else(|| {
        let looked = places.iter().map(|place| place.display().to_string());
        MissingProgram::NotBuilt { name, package, looked: looked.collect::<Vec<_>>().join(", ") }
    })
}

fn softhsm_among(places: &[&str]) -> Result<PathBuf, MissingProgram> {
    places
        .iter()
        .map(PathBuf::from)
        .find(|path| path.exists())
        .ok_or_else(|| MissingProgram::NoSoftHsm { looked: places.join(", ") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_library_names_the_command_that_installs_it() {
        let error = softhsm_among(&["/nowhere/libsofthsm2.so"]).unwrap_err().to_string();
        assert!(error.contains("make bootstrap") && error.contains("/nowhere"), "{error}");
    }

    #[test]
    fn a_program_that_is_not_built_names_the_command_that_builds_it() {
        let error = built("no-such-program", "kms-server").unwrap_err().to_string();
        assert!(error.contains("cargo build -p kms-server --bin no-such-program"), "{error}");
    }

    #[test]
    fn an_override_that_does_not_exist_is_not_passed_over() {
        let paths =
            ProgramPaths { kms_server: Some("/nowhere/kms-server".into()), ..Default::default() };
        assert!(matches!(Programs::find_with(paths), Err(MissingProgram::NoSuchFile { .. })));
    }
}
