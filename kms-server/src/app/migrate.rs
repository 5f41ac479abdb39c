//! `kms-server migrate`: a key domain that an older version made gets what it has not: the blocks that
//! nothing was written to yet, a signature of its record, a signed head table. Once, and only when somebody
//! asks for it: who writes to the database could else put an old state there and have it signed.

use std::{collections::BTreeSet, io, path::Path, sync::Arc};

use super::{
    asking_peer::Asking,
    begin_counters::{Begun, Grounds, begin_counters, without_mark},
    database::{alone_over, canaries_of, domain_of, open_store},
    fault::Fault,
    founding::{PATIENCE, sign, tell_of},
    no_commits::NoCommits,
    node::{HeadFile, node_id},
    outside::{OperatingSystem, SystemClock},
    report::Report,
    runtime::runtime,
    site_tokens::{believe, named_in},
};
use crate::{
    config::Config,
    hsm::{
        self, Hsm,
        pkcs11::{Canaries, Pkcs11Token, own_canaries},
    },
    keyring::{
        Below, Keyring, SiteRole,
        founding::{Made, make_blocks},
        take_up,
    },
    store::{Founding, ReadStore, StoreError, whole::WholeStore},
};
use kms_core::{
    BlockNo, DomainRecord, Position,
    audit::SiteKeys,
    block::Digest,
    counters::allocator::Mark,
    freshness::Freshness,
    site::restored::{Condition, RestoreMark},
};

/// Said where an older version has been.
pub(super) const NOT_MIGRATED: &str = "this key domain was made by an older version, whose record nobody signed: \
                            stop all of its servers, run `kms-server migrate` once, and start again";

/// Said of a record that is another one.
const CHANGED: &str = "the `domain` row of the database is not what this site's token signed: it was \
                       changed outside this service; restore that row from a backup";

/// Refuses a domain's record that no token of this site signed; the mark over which it did, if the database was rolled back.
pub(super) async fn check_domain(
    hsm: &Hsm,
    store: &dyn WholeStore,
    domain: &DomainRecord,
) -> Result<Option<RestoreMark>, Fault> {
    believe(hsm, store, domain).await?;
    let taken = take_up(hsm, store, domain, None).await;
    taken.map_err(|error| Fault::Store(error.into()))?;
    let keys = hsm.site_keys().await.map_err(|error| Fault::Token(error.into()))?;
    if is_unsigned(domain) {
        return Err(Fault::Store(NOT_MIGRATED.into()));
    }
    condition_of(store, domain, &keys).await?.map_err(|Unsigned| Fault::Store(CHANGED.into()))
}

/// None of those whose signatures count has signed the domain's record.
pub(super) struct Unsigned;

/// The mark over which one of these keys signed the domain's record, if it is not signed alone.
pub(super) async fn condition_of(
    store: &dyn ReadStore,
    domain: &DomainRecord,
    keys: &SiteKeys,
) -> Result<Result<Option<RestoreMark>, Unsigned>, Fault> {
    let mark = store.restore_state().await?.mark();
    Ok(match domain.condition(mark.as_ref(), keys) {
        Condition::Whole => Ok(None),
        Condition::RolledBack => Ok(mark.map(|signed| signed.mark)),
        Condition::Unknown => Err(Unsigned),
    })
}

/// Whether an older version made it.
pub(super) fn is_unsigned(domain: &DomainRecord) -> bool {
    domain.signature.is_none()
}

/// Migrates what `config` names. No server may run meanwhile.
pub fn migrate(config: Config) -> Result<Report, Fault> {
    let runtime = runtime(1)?;
    runtime.block_on(run(config))
}

async fn run(config: Config) -> Result<Report, Fault> {
    let _database = alone_over(&config.store)?;
    let store = open_store(&config, false).await?;
    let domain = domain_of(store.as_ref()).await?;
    if domain.signature.is_some() {
        let hsm = connect(config.hsm, named_in(store.as_ref()).await?.1)?;
        check_domain(&hsm, store.as_ref(), &domain).await?;
        let Config { site, keyring, profiles, audit, peer, rpc, .. } = config;
        let asking = Asking { peer, tls: rpc.tls };
        let grounds = Grounds { site, hsm, keyring, profiles, store, audit, asking };
        return begin_counters(grounds, domain).await;
    }
    refuse_if_signed_before(&config.site.data_dir).await?;
    complete(config, store, domain).await
}

/// Makes and signs what the domain has not.
async fn complete(
    config: Config,
    store: Arc<dyn WholeStore>,
    mut domain: DomainRecord,
) -> Result<Report, Fault> {
    let store_fault = |error: StoreError| Fault::Store(error.into());
    let hsm = connect(config.hsm, vec![canaries_of(&domain)?])?;
    // Who takes the signature away may have taken marks away, too.
    let asking = Asking { peer: config.peer, tls: config.rpc.tls };
    let memory = asking.ask(store.clone(), &domain).await?;
    let unmarked = without_mark(store.as_ref(), &domain, domain.epoch).await?;
    let unmarked: Vec<BlockNo> = unmarked.into_iter().map(|(block, _)| block).collect();
    memory.check(&unmarked, domain.epoch)?;

    let found = store.positions().await.map_err(store_fault)?;
    let there: BTreeSet<BlockNo> = found.at.into_iter().map(|(block, _)| block).collect();
    let all = (0..domain.blocks.get()).map(BlockNo);
    let missing: Vec<BlockNo> = all.filter(|block| !there.contains(block)).collect();
    let made = missing.len();
    let new = make_blocks(&hsm, &domain, missing, tell_of(made as u32)).await;
    let Made { blocks, mut marks } = new.map_err(|error| Fault::Token(error.into()))?;
    let mut heads = vec![(Position::default(), Digest::default()); domain.blocks.get() as usize];
    let mut set = |block: BlockNo, state| {
        if let Some(place) = heads.get_mut(block.0 as usize) {
            *place = state;
        }
    };
    for change in &blocks {
        set(change.head.block, (change.head.position, change.head.digest));
    }
    // Blocks that are there are signed as they are, once they were verified.
    let below = Below {
        hsm: hsm.clone(),
        store: store.clone(),
        clock: Arc::new(SystemClock::new()),
        freshness: Arc::new(Freshness::default()),
        role: Arc::new(SiteRole::unknown(&domain)),
        profiles: Arc::clone(&config.profiles),
    };
    let keyring = Keyring::new(config.keyring, domain.clone(), below, Arc::new(NoCommits));
    let keyring = keyring.map_err(|error| Fault::Setting(error.into()))?;
    for block in there {
        let head = keyring.records.head(block).await;
        let head = head.map_err(|error| Fault::Store(error.into()))?;
        set(block, (head.position, head.digest));
        let mark = keyring.counting.seal(Mark::first(block, domain.epoch)).await;
        marks.push(mark.map_err(|error| Fault::Store(error.into()))?);
    }
    let tips = store.audit_chains().await.map_err(store_fault)?;
    let table = sign(&hsm, &mut domain, tips, heads).await?;
    let founding = Founding { marks, ..Founding::new(domain, blocks, table) };
    store.complete_domain(&founding).await.map_err(store_fault)?;
    let begun = Begun { blocks: unmarked.len(), epoch: founding.domain.epoch };
    let chain = (store.clone(), hsm);
    begun.log(&config.site, &founding.domain, chain, config.audit).await?.close().await;
    let meters = store.count_meters().await.map_err(store_fault)?;
    store.close().await;
    let there = founding.domain.blocks.get() as usize - made;
    let lines = [
        ("site", founding.domain.site),
        ("key domain", hex::encode(founding.domain.domain.0)),
        ("meters", meters.to_string()),
        ("blocks that were there", there.to_string()),
        ("blocks made", made.to_string()),
        ("the other site", memory.said()),
    ];
    Ok(Report { lines: lines.map(|(what, is)| (what.to_owned(), is)).into() })
}

fn connect(config: hsm::Config, canaries: Vec<Canaries>) -> Result<Hsm, Fault> {
    let (width, call_timeout) = (config.sessions_max, config.call_timeout);
    let canaries = own_canaries(&config, canaries)?;
    let token = Pkcs11Token::connect(config, canaries);
    let token = token.map_err(|error| Fault::Token(error.into()))?;
    Ok(Hsm::new(Arc::new(token), width, PATIENCE, call_timeout))
}

/// A server that knows of a head table has seen this domain signed.
async fn refuse_if_signed_before(data_dir: &Path) -> Result<(), Fault> {
    let setting = |error: io::Error| Fault::Setting(error.into());
    let node = node_id(data_dir, &OperatingSystem)?;
    let witness = HeadFile::of(data_dir, node).map_err(setting)?;
    if witness.knows_a_table().await.map_err(|error| Fault::Setting(error.into()))? {
        let sentence = "this server knows that the key domain was signed: somebody took its signature \
                        away; restore the database from a backup";
        return Err(Fault::Store(sentence.into()));
    }
    Ok(())
}
