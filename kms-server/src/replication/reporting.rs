//! Reports of readiness: signed by the site that asked for the proofs, handed to the one that they are about, and kept
//! by both. So what was proved last is known when the site that asked is gone.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use sha2::{Digest as _, Sha256};

use super::{
    card::{SiteCard, differences},
    grounds::Grounds,
    status::Status,
};
use crate::{
    keyring::{Prover, Roles},
    store::papers::{Paper, PaperKind, PaperStore},
};
use kms_core::{
    Epoch,
    audit::SiteKeys,
    site::{
        peer::{Peer as Enrolled, PeerKind},
        proving::{About, KnownReports, Readiness},
        readiness::{ReadinessReport, SignedReadiness},
        role::RoleChange,
        tokens::{SignedSiteTokens, TokenId},
    },
};

/// Makes, checks and keeps reports.
pub struct Reporting {
    prover: Arc<Prover>,
    roles: Arc<Roles>,
    papers: Arc<dyn PaperStore>,
    grounds: Grounds,
}

impl Reporting {
    /// Over what the two sites stand on; kept in `papers`.
    pub fn new(
        grounds: Grounds,
        prover: Arc<Prover>,
        roles: Arc<Roles>,
        papers: Arc<dyn PaperStore>,
    ) -> Self {
        Self { prover, roles, papers, grounds }
    }

    /// Counts the records that this release can't read, for our cards.
    pub(super) async fn look_at_records(&self) {
        match self.prover.unknown_records().await {
            Ok(unknown) => {
                let count = u32::try_from(unknown.len()).unwrap_or(u32::MAX);
                self.grounds.cards.makeup().unknown_records(count);
            }
            Err(error) => tracing::warn!(%error, "records were not looked at"),
        }
    }

    /// Has our cards name this server's token, once that says its name.
    pub(super) async fn look_at_token(&self) {
        let makeup = self.grounds.cards.makeup();
        if makeup.token().is_some() {
            return;
        }
        match self.prover.token().await {
            Ok(token) => makeup.has_token(token),
            Err(error) => tracing::warn!(%error, "the token did not say its name"),
        }
    }

    /// Signs what a site has proved in a round that this one asked for, and keeps the report.
    pub(super) async fn report(
        &self,
        site: &str,
        readiness: &Readiness,
    ) -> Result<SignedReadiness, String> {
        let said = |error: &dyn std::fmt::Display| error.to_string();
        let card = self.grounds.cards.now().await.map_err(|error| said(&error))?;
        let epoch = card.epoch;
        let report = readiness.report(about(card, site, &self.grounds.status));
        let signature = self.prover.sign(report.message()).await.map_err(|error| said(&error))?;
        let signed = SignedReadiness { report, signature };
        let keys = self.prover.site_keys().await.map_err(|error| said(&error))?;
        self.keep(&signed, epoch, &keys).await;
        Ok(signed)
    }

    /// Takes a report that the peer has signed about this site.
    pub(super) async fn receive(&self, signed: &SignedReadiness) -> Result<(), String> {
        let Grounds { config, cards, clock, .. } = &self.grounds;
        let ours = cards.now().await.map_err(|error| error.to_string())?;
        let report = &signed.report;
        if !config.is_peer(&report.by) {
            return Err(format!("site {} is no peer of this one", report.by));
        }
        let keys = self.keys_of(&report.by).await?.ok_or("the peer is not enrolled here")?;
        let is_ours = report.site == ours.site
            && report.domain == ours.domain
            && report.at_ms <= clock.unix_ms().saturating_add(KnownReports::AHEAD_MAX_MS);
        if !is_ours || !signed.is_signed_by(&keys) {
            return Err(format!("the report of readiness is not one of site {}", report.by));
        }
        self.keep(signed, ours.epoch, &keys).await;
        Ok(())
    }

    /// Takes up what is kept, as far as it verifies: at the start, and what other servers of this site have received.
    pub async fn load(&self) -> Result<(), String> {
        let Grounds { config, status, cards, .. } = &self.grounds;
        let own = self.prover.site_keys().await.map_err(|error| error.to_string())?;
        let ours = cards.now().await.map_err(|error| error.to_string())?;
        let mut keys = BTreeMap::from([(ours.site, own)]);
        for peer in config.peers() {
            keys.extend(self.keys_of(peer).await?.map(|key| (peer.to_owned(), key)));
        }
        for paper in self.papers.papers().await.map_err(|error| error.to_string())? {
            if paper.kind != PaperKind::Readiness {
                continue;
            }
            let Ok(report) = ReadinessReport::decode(&paper.body) else { continue };
            let key = keys.get(&report.by);
            let signed = SignedReadiness { report, signature: paper.signature };
            if key.is_some_and(|key| signed.is_signed_by(key)) {
                status.reported(&signed, ours.epoch);
            }
        }
        Ok(())
    }

    /// Whose signatures count for a site that our token has signed for.
    pub(super) async fn keys_of(&self, site: &str) -> Result<Option<SiteKeys>, String> {
        Ok(self.enrolled(site).await?.map(|peer| peer.keys()))
    }

    /// Takes up what a site shows of its tokens, the one of the server that answers among them. What is not known of it
    /// afterwards, as a sentence each.
    pub(super) async fn take_tokens(
        &self,
        theirs: &SiteCard,
        shown: &[SignedSiteTokens],
    ) -> Result<Vec<String>, String> {
        let site = &theirs.site;
        let taken = self.roles.take_tokens(site, shown).await;
        taken.map_err(|error| error.to_string())?;
        let Some(peer) = self.enrolled(site).await? else { return Ok(Vec::new()) };
        let known: Vec<TokenId> = peer.keys().iter().map(TokenId::of).collect();
        let strange = theirs.token.into_iter().filter(|token| !known.contains(token));
        let strange: BTreeSet<TokenId> =
            strange.chain(shown.iter().flat_map(|list| peer.strangers(list))).collect();
        let sentence =
            |token| old_copy(&peer, token).unwrap_or_else(|| not_known(site, token, &known));
        Ok(strange.into_iter().map(sentence).collect())
    }

    /// The sites of the configuration that are not enrolled here, as a sentence each: a replica that was enrolled before the
    /// second site joined does not learn of it.
    pub(super) async fn not_enrolled(&self) -> Result<Vec<String>, String> {
        let Grounds { config, cards, .. } = &self.grounds;
        let peers = self.roles.peers().await.map_err(|error| error.to_string())?;
        let is_known = |site: &&str| peers.iter().any(|peer| peer.site == *site);
        let what_to_do = match cards.is_replica() {
            true => {
                "this replica was enrolled before that site was: build it anew and have it enrolled once more at the site that \
                     writes, which names both then"
            }
            false => "enrol it at the site that writes",
        };
        let sentence = |site: &str| {
            format!(
                "site {site} is not enrolled here, and nothing that it signs counts, a promotion neither: {what_to_do}"
            )
        };
        Ok(config.peers().filter(|site| !is_known(site)).map(sentence).collect())
    }

    /// A site that our token has signed for.
    pub(super) async fn enrolled(&self, site: &str) -> Result<Option<Enrolled>, String> {
        let peers = self.roles.peers().await.map_err(|error| error.to_string())?;
        Ok(peers.into_iter().find(|peer| peer.site == site))
    }

    /// By signed records: the highest epoch, and the one of the newest promotion of a site of this kind.
    pub(super) async fn proved(&self, kind: PeerKind) -> Result<(Epoch, Option<Epoch>), String> {
        let records = self.roles.records().await.map_err(|error| error.to_string())?;
        let places = || records.iter().map(|signed| signed.record.place());
        let newest = places().map(|(epoch, _)| epoch).max().unwrap_or_else(|| self.roles.founded());
        let theirs = places()
            .filter(|(epoch, change)| kind.owns(*epoch) && *change == RoleChange::Promotion);
        Ok((newest, theirs.map(|(epoch, _)| epoch).max()))
    }

    async fn keep(&self, signed: &SignedReadiness, epoch: Epoch, keys: &SiteKeys) {
        self.grounds.status.reported(signed, epoch);
        if !signed.report.is_complete() {
            return;
        }
        let report = &signed.report;
        let paper = Paper {
            kind: PaperKind::Readiness,
            site: report.site.clone(),
            place: (report.epoch, report.at_ms),
            body: report.message(),
            signature: signed.signature,
            signer: Sha256::digest(keys.first()).into(),
        };
        if let Err(error) = self.papers.put_paper(&paper).await {
            tracing::warn!(%error, "a report of readiness is not kept");
        }
    }
}

/// The sentence of a token that a site had before it was enrolled anew: what answers with it is what was lost then.
pub(super) fn old_copy(peer: &Enrolled, token: TokenId) -> Option<String> {
    let is_former = peer.former.iter().any(|former| TokenId::of(&former.key) == token);
    let site = &peer.site;
    is_former.then(|| {
        format!(
            "an old copy of site {site} answers in its place: it has token {token}, which {site} had before it was built and \
             enrolled anew ({}), and nothing that it signs counts; stop that copy for good, and start the servers of the \
             rebuilt site",
            names(&peer.keys().iter().map(TokenId::of).collect::<Vec<_>>())
        )
    })
}

fn not_known(site: &str, token: TokenId, known: &[TokenId]) -> String {
    format!(
        "token {token} of site {site} is not known here, and what it signs does not count ({}): if it was made anew at {site}, \
         let the servers there use one that is known, or build {site} anew and enrol it with `--replace`; if nobody there \
         made it, a token of {site} is in wrong hands",
        names(known)
    )
}

/// Tokens of a site, for people.
pub(super) fn names(known: &[TokenId]) -> String {
    let names: Vec<String> = known.iter().map(TokenId::to_string).collect();
    format!("known: {}", names.join(", "))
}

fn about(ours: SiteCard, site: &str, status: &Status) -> About {
    let theirs = status.peer_card().filter(|card| card.site == site);
    let makeup = ours.makeup.unwrap_or_default();
    About {
        domain: ours.domain,
        site: site.to_owned(),
        by: ours.site,
        differences: theirs.map_or_else(Vec::new, |theirs| differences(&makeup, &theirs)),
    }
}
