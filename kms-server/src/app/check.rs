//! `kms-server check-config`: everything that is wrong, at once. What the file and the machine say is
//! `config`'s; here the database and the token are asked.

use std::path::Path;

use super::{
    database::{Known, NO_DOMAIN, NotOpened, open_store, refuse_a_part},
    fault::Fault,
    migrate, node,
    outside::SystemClock,
    probe::try_token,
    runtime::runtime,
    serve::REPLICA,
    site_tokens::canaries_in,
};
use crate::{
    config::{self, Config, Finding, Store},
    hsm::pkcs11::{Canaries, ProbeDepth},
    store::{WriteStore, whole::RestoreState},
};
use kms_core::{ports::Clock, site::peer::PeerKind};

/// Everything that is wrong with `config` and around it; empty if the service can start. Asks the
/// token, with the one try that its PIN has.
pub fn check(config: Config) -> Vec<Finding> {
    let mut findings = config::check(&config, SystemClock::new().unix_ms());
    if findings.iter().any(|finding| finding.key == "hsm.module") {
        return findings;
    }
    let canaries = match look(&config, &mut findings) {
        Ok(canaries) => canaries,
        Err(fault) => {
            findings.push(Finding::of("store", &fault));
            return findings;
        }
    };
    // Without any there is nothing yet to hold the token against: can it do it all?
    if canaries.is_none() {
        findings.push(Finding::of("site", &Fault::Store(NO_DOMAIN.into())));
    }
    // As at each start.
    let fault = match try_token(config.hsm, canaries, ProbeDepth::Start) {
        Ok(report) => report.refusal().map(|why| Fault::Token(why.into())),
        Err(fault) => Some(fault),
    };
    findings.extend(fault.map(|fault| Finding::of("hsm", &fault)));
    findings
}

/// Findings in the database: the proofs of the token's KEKs, if `init` has been here, and what is wrong.
fn look(config: &Config, findings: &mut Vec<Finding>) -> Result<Option<Vec<Canaries>>, Fault> {
    if matches!(&config.store, Store::Sqlite { path } if !path.exists()) {
        return Ok(None);
    }
    let (known, wrong) = runtime(1)?.block_on(async {
        let store = match open_store(config, false).await {
            Err(NotOpened::Empty) => return Ok((None, Vec::new())),
            opened => opened?,
        };
        let mut wrong = Vec::new();
        wrong.extend(store.takes_changes().await.err().map(|error| Finding::of("store", &error)));
        wrong.extend(
            refuse_a_part(store.as_ref()).await.err().map(|fault| Finding::of("store", &fault)),
        );
        wrong.extend(left_in_place(store.as_ref(), &config.site.data_dir).await);
        wrong.extend(without_marks(store.as_ref()).await);
        wrong.extend(strange_peers(store.as_ref(), config).await);
        let (domain, lists) = (store.domain().await, store.site_tokens().await);
        let keks = store.site_keks().await;
        store.close().await;
        let (lists, keks) = (lists?, keks?);
        Ok::<_, Fault>((domain?.map(|domain| Known { domain, lists, keks }), wrong))
    })?;
    findings.extend(wrong);
    if known.as_ref().is_some_and(|known| migrate::is_unsigned(&known.domain)) {
        findings.push(Finding::of("site", &Fault::Store(migrate::NOT_MIGRATED.into())));
    }
    known.map(|known| canaries_in(&known)).transpose()
}

/// Other sites of the settings that the key domain does not know, or knows as others.
async fn strange_peers(store: &dyn WriteStore, config: &Config) -> Vec<Finding> {
    let (Some(peer), Ok(Some(_))) = (&config.peer, store.domain().await) else { return Vec::new() };
    let Ok(known) = store.peers().await else { return Vec::new() };
    let second = peer.replication.second.as_ref().map(|site| ("second_peer.site", site));
    let named = [("peer.site", &peer.replication.peer)].into_iter().chain(second);
    let stranger = |(key, site): (&'static str, &String)| {
        let of_it = known.iter().map(|signed| &signed.peer).find(|peer| peer.site == *site);
        match of_it {
            Some(peer) if peer.kind != PeerKind::Replica => None,
            Some(_) => Some(Finding::new(key, format!("site {site:?} is {REPLICA}"))),
            None => {
                let known = known.iter().map(|signed| signed.peer.site.as_str());
                Some(not_enrolled((key, site), known))
            }
        }
    };
    named.filter_map(stranger).collect()
}

fn not_enrolled<'a>(
    (key, site): (&'static str, &str),
    known: impl Iterator<Item = &'a str>,
) -> Finding {
    let known: Vec<String> = known.map(|site| format!("{site:?}")).collect();
    let known = if known.is_empty() { "no other one".to_owned() } else { known.join(", ") };
    let sentence = format!(
        "the key domain knows no site {site:?}, and nothing is given to it or taken from it: enrol it (`ami-tool site \
         enrol`), or correct the name; known here: {known}"
    );
    Finding::new(key, sentence)
}

/// Counters of a site that writes and has no mark of all of its blocks: an older version made them one by one.
async fn without_marks(store: &dyn WriteStore) -> Option<Finding> {
    let (domain, role) = (store.domain().await.ok()??, store.role().await.ok()?);
    if migrate::is_unsigned(&domain) || !role.writes {
        return None;
    }
    let marks = store.counter_marks().await.ok()?;
    let of_epoch = marks.iter().filter(|stored| stored.mark.epoch >= role.epoch).count();
    let without = (domain.blocks.get() as usize).saturating_sub(of_epoch);
    let sentence = format!(
        "the counters of {without} blocks have no mark of epoch {}, and nothing is sent under them: if an older version \
         made this site, stop all of its servers and run `kms-server migrate`; else somebody took marks away",
        role.epoch.0
    );
    (without > 0).then(|| Finding::new("site", sentence))
}

/// A database that was restored beside a node's own files: its audit chain is shorter than they say, or
/// another one, and every call that has to be recorded would be refused.
async fn left_in_place(store: &dyn WriteStore, data_dir: &Path) -> Option<Finding> {
    // A restore that is marked: the server puts its own files aside when it starts.
    if matches!(store.restore_state().await, Ok(RestoreState::Marked(_))) {
        return None;
    }
    let tip = node::signed_head(data_dir)?.tip;
    let chains = store.audit_chains().await.ok()?;
    let end = chains.iter().find(|chain| chain.node == tip.node).map_or(0, |chain| chain.sequence);
    let before = tip.sequence.checked_sub(1)?;
    let stored = store.audit_events(&tip.node, before, 1).await.ok()?;
    let is_there = stored.first().is_some_and(|event| event.sequence == tip.sequence);
    if is_there && end >= tip.sequence {
        return None;
    }
    let dir = data_dir.display();
    let sentence = format!(
        "the database has {end} events of node {}, and {dir}/audit-head is the signed head of {}: if it \
         was restored, move {dir}/node-id and the files {dir}/audit-… away, so that a new node with an \
         audit chain of its own begins; if not, find out who took events away",
        tip.node, tip.sequence
    );
    Some(Finding::new("site.data_dir", sentence))
}
