//! A site in shared memory, and this program run again within it.
//!
//! SoftHSM reads its configuration from the environment, and a process may not change its own safely:
//! so the program lays the site out, then runs itself with the environment that the site needs.

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use rustix::process::{Resource, getrlimit};
use softhsm_tests::{Programs, Setting, Site, SiteOptions};

use crate::{
    Error,
    again::{ECHO, ROLE, SITE, again, site_dir},
};

/// Bytes of the arena for each meter, with room to spare.
const ARENA_BYTES_A_METER: u64 = 112;
/// Besides, for blocks and for changes.
const ARENA_MIB_LEAST: u64 = 32;

/// Runs `inner` within a site whose arena has room for `meters`. The site is removed afterwards, unless
/// `keep` says where it is to stay; there it is used again next time.
pub fn within_a_site(
    meters: u32,
    keep: Option<&Path>,
    inner: impl FnOnce(Site) -> Result<(), Error>,
) -> ExitCode {
    within_a_site_of(meters, keep, |_| Ok(Vec::new()), inner)
}

/// The same, the site with further settings; they may name files that they put beside it.
pub fn within_a_site_of(
    meters: u32,
    keep: Option<&Path>,
    settings: impl FnOnce(&Path) -> Result<Vec<Setting>, Error>,
    inner: impl FnOnce(Site) -> Result<(), Error>,
) -> ExitCode {
    ending(run(meters, keep, settings, inner))
}

/// Runs `inner` in this process; the echo server, where this process is to be that.
pub(crate) fn told(inner: impl FnOnce() -> Result<(), Error>) -> ExitCode {
    let done =
        if is_echo() { site_dir().and_then(|dir| crate::echo::serve(&dir)) } else { inner() };
    ending(done.map(|()| ExitCode::SUCCESS))
}

fn is_echo() -> bool {
    env::var_os(ROLE).is_some_and(|role| role == ECHO)
}

fn ending(outcome: Result<ExitCode, Error>) -> ExitCode {
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{error}");
            let mut cause = error.source();
            while let Some(error) = cause {
                eprintln!("  because: {error}");
                cause = error.source();
            }
            ExitCode::FAILURE
        }
    }
}

fn run(
    meters: u32,
    keep: Option<&Path>,
    settings: impl FnOnce(&Path) -> Result<Vec<Setting>, Error>,
    inner: impl FnOnce(Site) -> Result<(), Error>,
) -> Result<ExitCode, Error> {
    if is_echo() {
        crate::echo::serve(&site_dir()?)?;
        return Ok(ExitCode::SUCCESS);
    }
    if env::var_os(SITE).is_some() {
        inner(Site::open(&site_dir()?, Programs::find()?)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    build_programs()?;
    let passing;
    let dir = match keep {
        Some(dir) => dir,
        None => {
            passing = tempfile::Builder::new().prefix("kms-bench-").tempdir_in(memory())?;
            passing.path()
        }
    };
    let site = if dir.join("port").exists() {
        Site::open(dir, Programs::find()?)?
    } else {
        fs::create_dir_all(dir)?;
        let mut options = options(meters);
        options.settings.extend(settings(dir)?);
        Site::make(dir, Programs::find()?, options)?
    };
    if !site.is_initialised() {
        site.init()?;
    }
    let status = again(&site)?.args(env::args_os().skip(1)).status()?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The server is measured as it is released, unless the environment names one. `benches` is named too, so that its
/// dependencies are built with the features that they have already.
pub(crate) fn build_programs() -> Result<(), Error> {
    if env::var_os("KMS_SERVER_BIN").is_some() {
        return Ok(());
    }
    let cargo = env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let status = Command::new(cargo)
        .args(["build", "--quiet", "--release", "--package", "kms-server"])
        .args(["--package", "kms-client", "--package", "benches", "--bins"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()?;
    if status.success() { Ok(()) } else { Err("kms-server could not be built".into()) }
}

/// Where a token object takes 1 ms and a commit no disk.
pub(crate) fn memory() -> PathBuf {
    let memory = PathBuf::from("/dev/shm");
    if memory.is_dir() { memory } else { env::temp_dir() }
}

pub(crate) fn options(meters: u32) -> SiteOptions {
    let arena_mib = ARENA_MIB_LEAST + ((u64::from(meters) * ARENA_BYTES_A_METER) >> 20);
    let limit = getrlimit(Resource::Memlock).current.unwrap_or(u64::MAX);
    let set = |section, key, value: String| Setting { section, key, value };
    SiteOptions {
        name: "bench".to_owned(),
        block_count: kms_core::BlockCount::DEFAULT.get(),
        settings: vec![
            set("keyring", "arena_mib", arena_mib.to_string()),
            set("keyring", "allow_unlocked", (limit >> 20 < arena_mib + 2).to_string()),
            set("log", "level", "\"warn\"".to_owned()),
        ],
        ..SiteOptions::default()
    }
}

/// The number of meters of a bench: the environment's, else 100,000.
pub fn meters() -> u32 {
    let text = env::var_os("KMS_BENCH_METERS").and_then(|text| text.into_string().ok());
    text.and_then(|text| text.parse().ok()).unwrap_or(100_000)
}

/// Another client configuration of the site, for a server on another port.
pub(crate) fn client_toml_for(site: &Site, port: u16) -> Result<PathBuf, Error> {
    let text = fs::read_to_string(site.client_toml(softhsm_tests::Role::Dev))?;
    let path = site.places().dir.join("client-echo.toml");
    fs::write(&path, text.replace(&format!(":{}", site.port()), &format!(":{port}")))?;
    Ok(path)
}
