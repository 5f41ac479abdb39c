//! `kms-server init`: the token's keys, then the database that knows them.

use std::path::PathBuf;

use super::{Fault, OperatingSystem, Report, SystemClock, open_store, pin_from, runtime};
use crate::{
    config::Config,
    domain::{
        DomainId, DomainRecord, Epoch,
        ports::{Clock, Randomness},
    },
    hsm::pkcs11::{self, InitError},
    store::StoreError,
};

/// How `init` is to go about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InitOptions {
    /// Make the token first; the security officer's PIN is in this file.
    pub create_token: Option<PathBuf>,
}

/// Makes the key domain: the token's KEKs, the database. Refuses to touch either if it is there
/// already.
pub fn init(config: Config, options: &InitOptions) -> Result<Report, Fault> {
    let so_pin = options.create_token.as_deref().map(pin_from).transpose()?;
    let runtime = runtime(1)?;
    let store = runtime.block_on(open_store(&config, true))?;
    let store_fault = |error: StoreError| Fault::Store(error.into());
    if runtime.block_on(store.domain()).map_err(store_fault)?.is_some() {
        return Err(Fault::Store(
            "the database has a key domain already: to begin again, move it away, and use a fresh \
             token"
                .into(),
        ));
    }
    let made = pkcs11::init(&config.hsm, so_pin.as_ref())
        .map_err(|error: InitError| Fault::Token(error.into()))?;
    let domain = DomainRecord {
        domain: DomainId(random_16()?),
        blocks: config.site.blocks,
        site: config.site.name.clone(),
        // The first epoch of this site's parity: 0 would be no epoch at all.
        epoch: Epoch(if config.site.even { 2 } else { 1 }),
        even: config.site.even,
        canaries: made.canaries.encode(),
        created_ms: SystemClock::new().unix_ms(),
    };
    runtime.block_on(store.create_domain(&domain)).map_err(store_fault)?;
    runtime.block_on(store.close());
    let mut lines = vec![
        ("site".to_owned(), domain.site),
        ("key domain".to_owned(), hex::encode(domain.domain.0)),
        ("key blocks".to_owned(), domain.blocks.get().to_string()),
        ("token".to_owned(), made.token_label),
    ];
    lines.extend(made.keys.into_iter().map(|key| {
        let public = key.fingerprint.map_or(String::new(), |f| format!(", public key {f}"));
        (key.label, format!("id {}{public}", key.id))
    }));
    Ok(Report { lines })
}

fn random_16() -> Result<[u8; 16], Fault> {
    let mut bytes = [0; 16];
    OperatingSystem.fill(&mut bytes).map_err(|error| Fault::Runtime(error.into()))?;
    Ok(bytes)
}
