//! This program run again within a site: what the inner run is told.

use std::{env, path::PathBuf, process::Command};

use softhsm_tests::Site;

use crate::Error;

/// Names the site's directory to the inner run.
pub(crate) const SITE: &str = "KMS_BENCH_SITE";
/// Says what the inner run is to be, if not the program itself.
pub(crate) const ROLE: &str = "KMS_BENCH_ROLE";
/// The role of the echo server.
pub(crate) const ECHO: &str = "echo";

/// This program, within the site.
pub(crate) fn again(site: &Site) -> Result<Command, Error> {
    let places = site.places();
    let mut command = Command::new(env::current_exe()?);
    command.env("SOFTHSM2_CONF", &places.softhsm_conf).env(SITE, &places.dir);
    Ok(command)
}

/// The site's directory, in the inner run.
pub(crate) fn site_dir() -> Result<PathBuf, Error> {
    env::var_os(SITE).map(PathBuf::from).ok_or_else(|| format!("{SITE} is not set").into())
}
