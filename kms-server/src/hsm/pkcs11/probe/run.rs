//! The trial of a token: what it can do, and that it does not do what our keys forbid.
//!
//! A token's list of mechanisms says little: tags of no bits are taken, templates ignored, values
//! padded. So everything needed is tried with known answers, and everything feared is tried too: the
//! attacks of somebody who holds the user PIN, on the very keys that `init` made.

use std::time::{Duration, Instant};

use cryptoki::session::Session;

use super::{
    abilities,
    attacks::Attacks,
    report::ProbeReport,
    subject::{ProbeDepth, Subject},
    table::Table,
};
use crate::hsm::{
    Config, TokenError,
    pkcs11::{
        connection::{
            library::Library,
            token::{Pkcs11Token, not_connected},
        },
        failure::Failure,
        keys::canary::Canaries,
    },
};

/// Probes the token of `config`. With `canaries` the KEKs are those of that database; without, those
/// with our labels. A key that is not there before `init` is made for a trial, in the session only.
///
/// Leaves no objects behind. Not while the token serves heavily: it opens a session for each row.
pub fn probe(
    config: &Config,
    canaries: Option<&Canaries>,
    depth: ProbeDepth,
) -> Result<ProbeReport, TokenError> {
    let library = Library::load(&config.module).map_err(|failure| not_connected(&failure))?;
    library.start().map_err(|failure| not_connected(&failure))?;
    let probed = library.whole(|| run(&library, config, canaries, depth));
    probed.map_err(|failure| not_connected(&failure))
}

impl Pkcs11Token {
    /// [`probe`] of this token, with its own canaries.
    pub fn probe(&self, depth: ProbeDepth) -> Result<ProbeReport, TokenError> {
        probe(&self.config, Some(&self.canaries()), depth)
    }
}

fn run(
    library: &Library,
    config: &Config,
    canaries: Option<&Canaries>,
    depth: ProbeDepth,
) -> Result<ProbeReport, Failure> {
    let _gate = library.enter();
    let slot = library.slot(&config.token_label)?;
    // Its sessions are closed on drop, within the gate. This one keeps the user logged in.
    let session = library.pkcs11().open_rw_session(slot)?;
    library.login(&session, config)?;
    within(Subject { library, slot, config, canaries }, &session, depth)
}

/// The whole table, in a session that is logged in. What a token lacks is a row, and no end.
pub(crate) fn within(
    subject: Subject<'_>,
    session: &Session,
    depth: ProbeDepth,
) -> Result<ProbeReport, Failure> {
    let Subject { library, slot, config, canaries: _ } = subject;
    let begun = Instant::now();
    let info = library.our_token(slot, config)?;
    let mut table = Table::default();
    abilities::try_all(&mut table, session, &info, config);
    Attacks::new(subject, &mut table).run(session, depth);
    Ok(ProbeReport {
        token_label: config.token_label.clone(),
        model: info.model().to_owned(),
        rows: table.into_rows(),
        elapsed_ms: millis(begun.elapsed()),
    })
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
