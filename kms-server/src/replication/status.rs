//! How replication stands: kept by those who do it, shown in status, metrics and health.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{
    card::{SiteCard, differences},
    config::Config,
    followed::{Followed, grace},
    lagging::{FollowerStatus, Followers},
    makeup::OwnMakeup,
};
use crate::telemetry::{
    catalogue::{
        DIVERGENCE_UNDECIDED, FOLLOWED, FOLLOWER_BEHIND, FOLLOWER_BLOCKS_BEHIND,
        PEER_BLOCKS_ADOPTED, PEER_BLOCKS_REFUSED, PEER_CONNECTED, PEER_DIFFERENCES, PEER_PROOF_AGE,
        PEER_PROVED, PEER_RECORDS_ADOPTED, PEER_UNPROVED, PEER_WENT_BACK, PEER_WITNESSED,
        SITE_READINESS, SITE_UNKNOWN_RECORDS,
    },
    metrics::{Label, Page, Source},
};
use kms_core::{
    BlockNo, Epoch,
    enrolment::bundle::Enrolment,
    moment::Moment,
    ports::Clock,
    site::{
        makeup::Difference,
        proving::{KnownReports, NotReady, Readiness},
        readiness::{Colour, ReadinessReport, SignedReadiness},
        tokens::TokenId,
    },
};

/// Blocks that a status names; the rest is counted.
const NAMED_MAX: usize = 16;
/// Read-only replicas that are told of.
const REPLICAS_MAX: usize = Enrolment::REPLICAS_MAX;

/// When and how the peer was last heard of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerHeard {
    /// Its card.
    pub card: SiteCard,
    /// How long ago, in milliseconds.
    pub ms: u64,
}

/// A block of the peer's that is not taken over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedBlock {
    /// The block.
    pub block: BlockNo,
    /// Why not, as a sentence.
    pub reason: String,
}

/// The taking over of the peer's changes, by this server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FollowingStatus {
    /// It is connected and follows.
    pub connected: bool,
    /// Blocks taken over since the start; one that changed twice counts twice.
    pub blocks_adopted: u64,
    /// Records taken over.
    pub records_adopted: u64,
    /// The first of those that are refused.
    pub refused: Vec<RefusedBlock>,
    /// The number of all of them.
    pub refused_count: u32,
    /// Why this server does not follow, although it should.
    pub fault: Option<String>,
    /// How long ago all blocks were compared with the peer's, in milliseconds.
    pub compared_ms: Option<u64>,
    /// The number of blocks that differed then and were fetched anew.
    pub differed: u32,
}

/// How replication stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicationStatus {
    /// The peer's name.
    pub peer: String,
    /// When it was last heard of; `None`: not since the start.
    pub heard: Option<PeerHeard>,
    /// Further sites that have called this one: read-only replicas.
    pub replicas: Vec<PeerHeard>,
    /// Those who follow this server's changes, now.
    pub followers: Vec<FollowerStatus>,
    /// For how long the peer has followed no server of this site, which writes, in milliseconds; `None`: it follows, or
    /// may only have lost its connection.
    pub unfollowed_ms: Option<u64>,
    /// `None`: this site writes, and follows nobody.
    pub following: Option<FollowingStatus>,
    /// `None`: this site does not write, and asks for no proofs.
    pub readiness: Option<Readiness>,
    /// Records that were set aside and wait for a decision.
    pub undecided: u64,
    /// Readiness of the site that follows, at a glance; `None`: nothing is known of it yet.
    pub colour: Option<Colour>,
    /// In what the peer differs, as it says.
    pub differences: Vec<Difference>,
    /// The reports of it.
    pub reports: Reports,
    /// The time of the peer's newest head table that was witnessed here, milliseconds since 1970; `None`: none was.
    pub witnessed_ms: Option<u64>,
    /// What is wrong, in sentences.
    pub faults: Vec<String>,
}

/// Reports of the readiness of the site that follows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reports {
    /// The newest one that this server has.
    pub newest: Option<SignedReadiness>,
    /// The last one in which all was proved.
    pub complete: Option<SignedReadiness>,
}

impl Reports {
    fn of(known: &KnownReports) -> Self {
        Self { newest: known.newest().cloned(), complete: known.complete().cloned() }
    }
}

/// The state, for those who change it.
pub struct Status {
    config: Config,
    clock: Arc<dyn Clock>,
    makeup: Arc<OwnMakeup>,
    /// Those who follow this server.
    pub(super) followers: Arc<Followers>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    heard: Option<(SiteCard, Moment)>,
    /// By their names.
    replicas: BTreeMap<String, (SiteCard, Moment)>,
    following: Option<FollowingStatus>,
    refused: BTreeMap<BlockNo, String>,
    compared: Option<Moment>,
    readiness: Option<Readiness>,
    /// By the sites that name them: an epoch that is not proved, and why.
    unproved: BTreeMap<String, (Epoch, String)>,
    undecided: u64,
    suspected: bool,
    rolled_back: Option<String>,
    /// By the sites that they are about.
    reports: BTreeMap<String, KnownReports>,
    /// The site that follows, and the epoch, as of now; `None`: the role was not looked at yet.
    follower: Option<(String, Epoch)>,
    /// What the witnesses say.
    went_back: Vec<String>,
    not_a_witness: Option<String>,
    witnessed_ms: Option<u64>,
    /// What is wrong with the peer's audit chains.
    audit_broken: Vec<String>,
    /// Tokens of either site that the other one does not know.
    strange_tokens: Vec<String>,
    /// `None`: this site does not write, or its role was not looked at yet.
    followed: Option<Followed>,
}

impl Known {
    /// What is wrong, as it was found.
    fn faults(&self, config: &Config, now: Moment) -> Vec<String> {
        let mut faults: Vec<String> = self.rolled_back.iter().cloned().collect();
        faults.extend(self.unproved.values().map(|(_, reason)| reason.clone()));
        faults.extend(self.not_a_witness.clone());
        faults.extend(waits(self.undecided));
        faults.extend(self.went_back.iter().cloned());
        faults.extend(self.audit_broken.iter().chain(&self.strange_tokens).cloned());
        let followed = self.followed.as_ref();
        faults.extend(followed.and_then(|it| it.fault(&config.peer, now, grace(config.heartbeat))));
        faults
    }

    fn following(&self, now: Moment) -> Option<FollowingStatus> {
        let following = self.following.clone()?;
        let named = self.refused.iter().take(NAMED_MAX);
        let named =
            named.map(|(block, reason)| RefusedBlock { block: *block, reason: reason.clone() });
        Some(FollowingStatus {
            refused: named.collect(),
            refused_count: self.refused.len() as u32,
            compared_ms: self.compared.map(|at| now.ms_since(at)),
            ..following
        })
    }
}

impl Status {
    /// Of a site with these settings, made of this.
    pub fn new(config: &Config, clock: Arc<dyn Clock>, makeup: Arc<OwnMakeup>) -> Self {
        let followers = Arc::new(Followers::new(Arc::clone(&clock)));
        Self { config: config.clone(), clock, makeup, followers, known: Mutex::default() }
    }

    /// A report of readiness that was verified, while this site is in this epoch.
    pub(super) fn reported(&self, signed: &SignedReadiness, epoch: Epoch) {
        let now = self.clock.stamp();
        let mut known = self.known();
        // Both sites, and no others: who verified it has seen to that.
        let (site, own) = (signed.report.site.clone(), self.token_of(&signed.report.site));
        known.reports.entry(site).or_default().learn(signed, (epoch, own), now);
    }

    /// The token by which a site's readiness is judged here: of our own site the one that this server has. The other one says
    /// in its reports which it is.
    fn token_of(&self, site: &str) -> Option<TokenId> {
        if self.config.is_peer(site) { None } else { self.makeup.token() }
    }

    /// This site follows now, in this epoch: the one that it is about when readiness is told.
    pub(super) fn follows(&self, site: &str, epoch: Epoch) {
        self.known().follower = Some((site.to_owned(), epoch));
    }

    /// The newest report of a site's readiness.
    pub(super) fn report(&self, site: &str) -> Option<ReadinessReport> {
        let known = self.known();
        known.reports.get(site)?.newest().map(|signed| signed.report.clone())
    }

    /// The peer's last card.
    pub(super) fn peer_card(&self) -> Option<SiteCard> {
        self.known().heard.as_ref().map(|(card, _)| card.clone())
    }

    /// What is found out by head tables that either site has shown the other; nothing: all is well.
    pub(super) fn went_back(&self, what: Vec<String>) {
        let mut known = self.known();
        for new in what.iter().filter(|new| !known.went_back.contains(new)) {
            tracing::error!("{new}");
        }
        known.went_back = what;
    }

    /// The tokens of either site that the other one does not know; none: all is well.
    pub(super) fn strange_tokens(&self, what: Vec<String>) {
        let mut known = self.known();
        for new in what.iter().filter(|new| !known.strange_tokens.contains(new)) {
            tracing::error!("{new}");
        }
        known.strange_tokens = what;
    }

    /// What is wrong with the peer's audit chains; nothing: all is well.
    pub(super) fn audit_broken(&self, what: Vec<String>) {
        let mut known = self.known();
        for new in what.iter().filter(|new| !known.audit_broken.contains(new)) {
            tracing::error!("{new}");
        }
        known.audit_broken = what;
    }

    /// The newest head table of the peer that was witnessed is of this time.
    pub(super) fn witnessed(&self, at_ms: u64) {
        self.known().witnessed_ms = Some(at_ms);
    }

    /// Whether a site is proved to be ready in this epoch, as far as this one knows.
    pub(super) fn ready(&self, site: &str, epoch: Epoch) -> Result<(), NotReady> {
        let now = self.clock.stamp();
        let known = self.known();
        let reports = known.reports.get(site).ok_or(NotReady::Nothing)?;
        reports.ready((epoch, self.token_of(site)), self.config.proof_age_max, now)
    }

    /// Whether the peer follows this server.
    pub(super) fn is_followed_here(&self) -> bool {
        self.config.peers().any(|peer| self.followers.has(peer))
    }

    /// This site writes: the peer follows one of its servers, or none.
    pub(super) fn looked_for_followers(&self, is_followed: bool) {
        let (now, grace) = (self.clock.now(), grace(self.config.heartbeat));
        let mut known = self.known();
        let followed = known.followed.get_or_insert_default();
        followed.look(now, is_followed);
        if let Some(fault) = followed.news(&self.config.peer, now, grace) {
            tracing::error!("{fault}");
        }
    }

    /// The peer follows this server from now on: between two looks it could come and go.
    pub(super) fn followed_here(&self) {
        let now = self.clock.now();
        if let Some(followed) = &mut self.known().followed {
            followed.look(now, true);
        }
    }

    /// This site does not write: nobody has to follow it.
    pub(super) fn needs_no_follower(&self) {
        self.known().followed = None;
    }

    /// One that asked to follow this server was turned away, for this reason.
    pub fn turned_away(&self, who: &str, why: String) {
        let now = self.clock.now();
        if let Some(followed) = &mut self.known().followed {
            followed.turned_away(now, who, why);
        }
    }

    /// The peer was asked for its card; why that came to nothing, or `None`.
    pub(super) fn asked(&self, unheard: Option<String>) {
        if let Some(followed) = &mut self.known().followed {
            followed.asked(unheard);
        }
    }

    /// A site was heard of: the peer, or one that follows for ever.
    pub(super) fn heard(&self, card: &SiteCard) {
        let now = self.clock.now();
        let mut known = self.known();
        if self.config.is_peer(&card.site) {
            known.heard = Some((card.clone(), now));
        } else if known.replicas.contains_key(&card.site) || known.replicas.len() < REPLICAS_MAX {
            known.replicas.insert(card.site.clone(), (card.clone(), now));
        }
    }

    /// Changes what is known of following; begins it if need be.
    pub(super) fn following(&self, change: impl FnOnce(&mut FollowingStatus)) {
        change(self.known().following.get_or_insert_default());
    }

    /// This site writes: it follows nobody.
    pub(super) fn not_following(&self) {
        let mut known = self.known();
        known.following = None;
        known.refused.clear();
    }

    /// All blocks were compared.
    pub(super) fn compared(&self, differed: usize) {
        let mut known = self.known();
        known.compared = Some(self.clock.now());
        known.following.get_or_insert_default().differed = differed as u32;
    }

    /// A block is refused; said in the log once.
    pub(super) fn refused(&self, block: BlockNo, reason: String) {
        let mut known = self.known();
        if known.refused.get(&block) != Some(&reason) {
            tracing::error!(block = block.0, reason, "a block of the peer is not taken over");
            known.refused.insert(block, reason);
        }
    }

    /// A block is as the peer's, or was taken over.
    pub(super) fn taken(&self, block: BlockNo) {
        self.known().refused.remove(&block);
    }

    /// All blocks of the peer that are not taken over.
    pub(super) fn refusals(&self) -> Vec<(BlockNo, String)> {
        self.known().refused.iter().map(|(block, why)| (*block, why.clone())).collect()
    }

    /// The proofs so far; `None`: none are asked for.
    pub(super) fn readiness(&self, readiness: Option<Readiness>) {
        self.known().readiness = readiness;
    }

    /// A site that names a higher epoch than ours is not believed, for this reason.
    pub(super) fn unproved_epoch(&self, card: &SiteCard, reason: String) {
        let mut known = self.known();
        // Sites that are told of, and no others: names are bounded by that.
        if self.config.is_peer(&card.site) || known.replicas.contains_key(&card.site) {
            known.unproved.insert(card.site.clone(), (card.epoch, reason));
        }
    }

    /// This site names no epoch any more that is not proved; ours is this one.
    pub(super) fn proved_epoch(&self, site: &str, ours: Epoch) {
        self.known().unproved.retain(|other, (epoch, _)| other != site && *epoch > ours);
    }

    /// Why the other site's answer about counters does not count; `None`: it does.
    pub(super) fn not_a_witness(&self, why: Option<String>) {
        self.known().not_a_witness = why;
    }

    /// So many records were set aside and wait for a decision.
    pub(super) fn undecided(&self, waits: u64) {
        self.known().undecided = waits;
    }

    /// Something seen of the peer says that this site may have been put back: it is to be asked for all of its heads.
    pub(super) fn suspect(&self) {
        self.known().suspected = true;
    }

    /// Whether somebody suspects that; asked once.
    pub(super) fn is_suspected(&self) -> bool {
        std::mem::take(&mut self.known().suspected)
    }

    /// Why this site, which believes that it writes, was rolled back; `None`: it was not, or writes no more.
    pub(super) fn rolled_back(&self, reason: Option<String>) {
        self.known().rolled_back = reason;
    }

    /// All of it.
    pub fn all(&self) -> ReplicationStatus {
        let now = self.clock.now();
        let known = self.known();
        let heard_at = |(card, at): &(SiteCard, Moment)| PeerHeard {
            card: card.clone(),
            ms: now.ms_since(*at),
        };
        let heard = known.heard.as_ref().map(heard_at);
        let following = known.following(now);
        let replicas = known.replicas.values().map(heard_at).collect();
        let peer = heard.as_ref().map_or(&self.config.peer, |heard| &heard.card.site).clone();
        let readiness = known.readiness.clone();
        let undecided = known.undecided;
        let (follower, witnessed_ms) = (known.follower.clone(), known.witnessed_ms);
        let reports = follower.as_ref().and_then(|(site, _)| known.reports.get(site));
        let reports = reports.map(Reports::of);
        let mut faults = known.faults(&self.config, now);
        let followed = known.followed.as_ref();
        let unfollowed_ms = followed.and_then(|it| it.missing(now, grace(self.config.heartbeat)));
        drop(known);
        let ours = self.makeup.now();
        let differences =
            heard.as_ref().map_or_else(Vec::new, |heard| differences(&ours, &heard.card));
        let ready = follower.as_ref().map(|(site, epoch)| self.ready(site, *epoch));
        let colour = ready
            .as_ref()
            .and_then(|ready| colour(ready, differences.is_empty() && unfollowed_ms.is_none()));
        if let Some(following) = &following {
            faults.extend(following.fault.clone());
            faults.extend(following.refused.iter().map(|refused| {
                format!(
                    "block {} of site {peer} is not taken over: {}",
                    refused.block, refused.reason
                )
            }));
        }
        faults.extend(readiness.iter().filter_map(|readiness| not_ready(&peer, readiness)));
        // At the other one what failed is told above.
        if follower.is_some_and(|(site, _)| site != peer)
            && colour == Some(Colour::Red)
            && let Some(Err(why)) = ready
        {
            faults.push(format!("this site is not proved to be ready to take over: {why}"));
        }
        faults.extend(differences.iter().map(|it| format!("site {peer}: {}", it.sentence())));
        if ours.unknown_records > 0 {
            faults.push(format!(
                "{} records can't be read by this release: it keeps them, and is not promoted before it is upgraded",
                ours.unknown_records
            ));
        }
        ReplicationStatus {
            peer,
            heard,
            replicas,
            followers: self.followers.all(),
            unfollowed_ms,
            following,
            readiness,
            colour,
            differences,
            reports: reports.unwrap_or_default(),
            witnessed_ms,
            undecided,
            faults,
        }
    }

    /// Held for a few assignments, never across an `.await`.
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Readiness at a glance, of sites that are alike and in step, or not; `None`: nothing is known in this epoch.
fn colour(ready: &Result<(), NotReady>, are_alike: bool) -> Option<Colour> {
    match (ready, are_alike) {
        (Err(NotReady::Nothing | NotReady::OtherEpoch { .. } | NotReady::OtherToken { .. }), _) => {
            None
        }
        (Err(_), _) => Some(Colour::Red),
        (Ok(()), true) => Some(Colour::Green),
        (Ok(()), false) => Some(Colour::Yellow),
    }
}

/// What people have to decide about.
fn waits(undecided: u64) -> Option<String> {
    (undecided > 0).then(|| {
        format!(
            "{undecided} records that one site wrote alone are set aside and wait for a decision: `ami-tool site \
             divergence list`"
        )
    })
}

/// Why the peer could not take over with all blocks now.
fn not_ready(peer: &str, readiness: &Readiness) -> Option<String> {
    let Readiness { proved, unproved, failed, failures, .. } = readiness;
    if *failed == 0 && *unproved == 0 {
        return None;
    }
    let all = proved + unproved + failed;
    let why = failures.first().map_or_else(String::new, |why| format!(": {why}"));
    Some(format!(
        "site {peer} is not ready to take over: {proved} of {all} blocks are proved, {failed} failed{why}"
    ))
}

impl Source for Status {
    fn tell(&self, page: &mut Page) {
        let all = self.all();
        page.sample(&DIVERGENCE_UNDECIDED, &[], all.undecided);
        let went_back = self.known().went_back.len() as u64;
        page.sample(&PEER_WENT_BACK, &[], went_back);
        page.sample(&SITE_UNKNOWN_RECORDS, &[], u64::from(self.makeup.now().unknown_records));
        if let Some(colour) = all.colour {
            page.sample(&SITE_READINESS, &[], u64::from(colour as u8));
        }
        for difference in Difference::ALL {
            let differs = all.differences.contains(difference);
            page.sample(&PEER_DIFFERENCES, &[difference.word().into()], differs);
        }
        if let Some(at_ms) = all.witnessed_ms {
            let age_ms = self.clock.unix_ms().saturating_sub(at_ms);
            page.sample(&PEER_WITNESSED, &[], age_ms as f64 / 1e3);
        }
        if self.known().followed.is_some() {
            page.sample(&FOLLOWED, &[], all.unfollowed_ms.is_none());
        }
        for follower in &all.followers {
            let site = [Label::Configured(&follower.site)];
            page.sample(&FOLLOWER_BLOCKS_BEHIND, &site, u64::from(follower.behind.blocks));
            let behind_s = follower.behind_ms.unwrap_or(0) as f64 / 1e3;
            page.sample(&FOLLOWER_BEHIND, &site, behind_s);
        }
        let ReplicationStatus { following, readiness, .. } = all;
        if let Some(following) = following {
            page.sample(&PEER_CONNECTED, &[], following.connected);
            page.sample(&PEER_BLOCKS_ADOPTED, &[], following.blocks_adopted);
            page.sample(&PEER_RECORDS_ADOPTED, &[], following.records_adopted);
            page.sample(&PEER_BLOCKS_REFUSED, &[], u64::from(following.refused_count));
        }
        if let Some(readiness) = readiness {
            page.sample(&PEER_PROVED, &[], u64::from(readiness.proved));
            page.sample(&PEER_UNPROVED, &[], u64::from(readiness.unproved + readiness.failed));
            if let Some(oldest_ms) = readiness.oldest_ms {
                let age_ms = self.clock.unix_ms().saturating_sub(oldest_ms);
                page.sample(&PEER_PROOF_AGE, &[], age_ms as f64 / 1e3);
            }
        }
    }
}
