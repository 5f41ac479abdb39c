//! `kms-server probe-hsm`, and the probe that comes before the service and `check-config`.

use super::{
    database::known_domain, fault::Fault, handing_on, runtime::runtime, site_tokens::canaries_in,
    token::Asked,
};
use crate::{
    config::Config,
    hsm::{
        self,
        pkcs11::{self, Canaries, Pkcs11Token, ProbeDepth, ProbeReport, own_canaries},
    },
};

/// Asks the token what it can do, and tries the attacks that it must withstand.
pub fn probe_hsm(config: Config) -> Result<ProbeReport, Fault> {
    let canaries = known_domain(&config)?.map(|known| canaries_in(&known)).transpose()?;
    let noted = handing_on::noted(&config.site.data_dir);
    let mut report = try_token(config.hsm, canaries, ProbeDepth::Full)?;
    if let Some(noted) = noted {
        report.hands_no_keks_on(noted);
    }
    Ok(report)
}

/// Probes the token, which may hang; with canaries it has to pass them first, except where every row is
/// asked for.
pub(super) fn try_token(
    config: hsm::Config,
    canaries: Option<Vec<Canaries>>,
    depth: ProbeDepth,
) -> Result<ProbeReport, Fault> {
    let makes_keys = canaries.is_none() || depth == ProbeDepth::Full;
    let asked = Asked::of(&config);
    let asked = if makes_keys { asked.making_keys() } else { asked };
    let probed =
        asked.to(move || match canaries.map(|all| own_canaries(&config, all)).transpose()? {
            Some(canaries) if depth == ProbeDepth::Start => {
                Pkcs11Token::connect(config, canaries)?.probe(depth)
            }
            canaries => pkcs11::probe(&config, canaries.as_ref(), depth),
        });
    Ok(runtime(1)?.block_on(probed)??)
}
