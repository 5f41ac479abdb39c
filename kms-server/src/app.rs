//! The parts put together: what each verb of the command line does.

use std::{
    fmt,
    path::PathBuf,
    time::{SystemTime, UNIX_EPOCH},
};

use crate::{
    config::{self, Config, ConfigError, Finding},
    hsm::BoxError,
};

/// Why the process ends. Cut by its exit code.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// Something failed while running.
    #[error(transparent)]
    Runtime(BoxError),
    /// The configuration is refused.
    #[error(transparent)]
    Configuration(#[from] ConfigError),
    /// The token is refused, or refuses us.
    #[error(transparent)]
    Token(BoxError),
    /// The store is refused.
    #[error(transparent)]
    Store(BoxError),
}

/// How `init` is to go about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InitOptions {
    /// Make the token first; the security officer's PIN is in this file.
    pub create_token: Option<PathBuf>,
}

/// What a verb has to say when it is done: text for people through `Display`, JSON through serde.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Report {
    /// Name and outcome, in order.
    pub lines: Vec<(String, String)>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut lines = self.lines.iter();
        lines.try_for_each(|(name, outcome)| writeln!(f, "{name}: {outcome}"))
    }
}

/// Makes the key domain: the token's KEKs, the database.
pub fn init(_config: Config, _options: &InitOptions) -> Result<Report, Fault> {
    Err(not_wired("init"))
}

/// Serves until a signal says to stop, or a fault does.
pub fn serve(_config: Config) -> Result<(), Fault> {
    Err(not_wired("serve"))
}

/// Everything that is wrong with `config` and around it; empty if the service can start.
pub fn check(config: &Config) -> Vec<Finding> {
    #[expect(clippy::disallowed_methods, reason = "`app` makes the real clock")]
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    config::check(config, u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX))
}

/// Asks the token what it can do, and tries the attacks that it must withstand.
pub fn probe_hsm(_config: Config) -> Result<Report, Fault> {
    Err(not_wired("probe-hsm"))
}

fn not_wired(verb: &'static str) -> Fault {
    Fault::Runtime(format!("{verb} is not wired yet").into())
}
