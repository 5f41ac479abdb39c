//! `kms-server init`: the token's keys, then the database that knows them.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    database::{open_store, refuse_a_part},
    fault::Fault,
    founding::{PATIENCE, sign, tell_of},
    handing_on,
    outside::{OperatingSystem, SystemClock},
    report::Report,
    runtime::runtime,
};
use crate::{
    config::{self, Config},
    hsm::{
        Hsm, Pin,
        pkcs11::{self, InitError, InitReport, Pkcs11Token},
    },
    keyring::founding::{Made, make_blocks},
    store::{Founding, StoreError, WriteStore},
};
use kms_core::{
    BlockNo, DomainId, DomainRecord, Epoch,
    ports::{Clock, Randomness},
};

const READ_ONLY: &str = "`site.read_only` is true: a read-only site founds no key domain, it joins one that there is \
                         (`kms-server init --join`)";

/// The options of `init`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InitOptions {
    /// Make the token first; the security officer's PIN is in this file.
    pub create_token: Option<PathBuf>,
}

/// Makes the key domain: the token's KEKs, the database. Refuses to touch either if it is there
/// already.
pub fn init(config: Config, options: &InitOptions) -> Result<Report, Fault> {
    if config.site.read_only {
        return Err(Fault::Setting(READ_ONLY.into()));
    }
    let so_pin = options.create_token.as_deref().map(pin_from).transpose()?;
    let runtime = runtime(1)?;
    let store = runtime.block_on(open_store(&config, true))?;
    runtime.block_on(refuse_a_part(store.as_ref()))?;
    if runtime.block_on(store.domain())?.is_some() {
        return Err(Fault::Store(
            "the database has a key domain already: to begin again, move it away, and use a fresh \
             token"
                .into(),
        ));
    }
    let made = pkcs11::init(&config.hsm, so_pin.as_ref())
        .map_err(|error: InitError| Fault::Token(error.into()))?;
    let handing_on = so_pin.as_ref().map(|so_pin| {
        let tried = handing_on::try_it(&config, so_pin);
        tried.map_or_else(|error| error.to_string(), |()| CAN_HAND_ON.to_owned())
    });
    let token = config.hsm.again();
    let peer = config.peer.as_ref().map(|peer| peer.replication.peer.clone());
    let founded = found(&runtime, store.as_ref(), config, &made);
    let peer = peer.map(|peer| {
        format!(
            "{peer} joins this domain by `kms-server init --join`. If it has a domain already, the two can't be joined: \
             begin again here with `init --join`, on a fresh token and an empty database"
        )
    });
    let domain = founded.map_err(|failed| match failed {
        // The database may have it all the same: the keys stay.
        NotFounded { fault, may_be_there: true } => fault,
        NotFounded { fault, .. } => match pkcs11::take_back(&token, &made) {
            Ok(()) => fault,
            Err(left) => {
                let keys: Vec<&str> = made.keys.iter().map(|key| key.label.as_str()).collect();
                let keys = keys.join(", ");
                Fault::Token(
                    format!("{fault}; the keys {keys} are left on the token: {left}").into(),
                )
            }
        },
    })?;
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
    lines.extend(handing_on.map(|told| ("a second site".to_owned(), told)));
    lines.extend(peer.map(|told| ("the other site".to_owned(), told)));
    Ok(Report { lines })
}

/// Said where the officer's PIN is known by chance.
pub(super) const CAN_HAND_ON: &str = "can join: the token's security officer can trust a key, under which the sealed KEKs may go there";

/// Why there is no key domain.
struct NotFounded {
    fault: Fault,
    /// The database was not heard of after it was asked to keep it.
    may_be_there: bool,
}

impl From<Fault> for NotFounded {
    fn from(fault: Fault) -> Self {
        Self { fault, may_be_there: false }
    }
}

/// Everything after the token's keys: the blocks, sealed and signed for first and written at once. An `init` that is
/// killed leaves no part of a key domain.
fn found(
    runtime: &tokio::runtime::Runtime,
    store: &dyn WriteStore,
    config: Config,
    made: &InitReport,
) -> Result<DomainRecord, NotFounded> {
    let mut domain = DomainRecord {
        domain: DomainId(random()?),
        blocks: config.site.blocks,
        site: config.site.name.clone(),
        // The first epoch of this site's parity: 0 would be no epoch at all.
        epoch: Epoch(if config.site.even { 2 } else { 1 }),
        kind: config.site.kind(),
        canaries: made.canaries.encode(),
        created_ms: SystemClock::new().unix_ms(),
        signature: None,
    };
    let (width, call_timeout) = (config.hsm.sessions_max, config.hsm.call_timeout);
    let token = Pkcs11Token::connect(config.hsm, made.canaries.clone()).map_err(Fault::from)?;
    let hsm = Hsm::new(Arc::new(token), width, PATIENCE, call_timeout);
    let blocks = (0..domain.blocks.get()).map(BlockNo).collect();
    let making = make_blocks(&hsm, &domain, blocks, tell_of(domain.blocks.get()));
    let made = runtime.block_on(making).map_err(|error| Fault::Token(error.into()))?;
    let Made { blocks, marks } = made;
    let heads = blocks.iter().map(|made| (made.head.position, made.head.digest)).collect();
    let table = runtime.block_on(sign(&hsm, &mut domain, Vec::new(), heads))?;
    let founding = Founding { marks, ..Founding::new(domain, blocks, table) };
    runtime.block_on(store.create_domain(&founding)).map_err(|error| NotFounded {
        may_be_there: matches!(error, StoreError::Unreachable { .. }),
        fault: error.into(),
    })?;
    Ok(founding.domain)
}

pub(super) fn random<const N: usize>() -> Result<[u8; N], Fault> {
    let mut bytes = [0; N];
    OperatingSystem.fill(&mut bytes).map_err(|error| Fault::Runtime(error.into()))?;
    Ok(bytes)
}

/// A PIN file, for the security officer's.
pub(super) fn pin_from(path: &Path) -> Result<Pin, Fault> {
    Ok(config::pin_from_file(path)?)
}
