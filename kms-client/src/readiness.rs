//! What the site that follows has proved, and what a promotion would cost.

use kms_core::{
    audit::PublicKey,
    site::readiness::{ReadinessReport, SignedReadiness},
};
use kms_proto::v1;
use kms_proto::v1::site_client::SiteClient;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::call::{CallError, ProtocolError};
use crate::role::{SiteStanding, present};
use crate::sites::Errand;
use crate::transport::Transport;

/// Reports of readiness, as a site has them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SiteReadiness {
    /// Of the newest one, as of now: `GREEN`, `YELLOW`, `RED`; empty: there is none.
    pub colour: String,
    /// The newest one.
    pub newest: Option<SignedReport>,
    /// The last one in which all was proved.
    pub last_complete: Option<SignedReport>,
    /// What both sites sign with, as this one says.
    pub keys: Vec<SigningKey>,
}

/// A site's signing key, as another one says it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SigningKey {
    /// The site.
    pub site: String,
    /// SHA-256 of the key, as `site enrol` shows it; 64 hex digits.
    pub fingerprint: String,
    /// The key.
    #[serde(skip)]
    pub key: PublicKey,
}

/// A report of readiness.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SignedReport {
    /// The site that it is about.
    pub site: String,
    /// The site that asked for the proofs, and signed.
    pub by: String,
    /// The epoch that this knew as the highest.
    pub epoch: u64,
    /// The end of the round; milliseconds since 1970.
    pub at_ms: u64,
    /// The domain's blocks.
    pub blocks: u32,
    /// Of them, proved.
    pub proved: u32,
    /// Of them, not proved.
    pub unproved: u32,
    /// Of them, those that could not be.
    pub failed: u32,
    /// The time of the oldest proof, milliseconds since 1970; 0: not all are proved.
    pub oldest_proof_ms: u64,
    /// The token passed the check of all of its KEKs in this round.
    pub keks: bool,
    /// Over the states that were proved; 64 hex digits.
    pub heads: String,
    /// In what the sites differ, as words.
    pub differences: Vec<&'static str>,
    /// What failed, as sentences.
    pub failures: Vec<String>,
    /// The token of the site that it is about, by its id; empty: it does not say.
    pub token: String,
    /// When it was made: `GREEN`, `YELLOW` or `RED`.
    pub colour: &'static str,
    /// What was signed; hex.
    pub message: String,
    /// The signature; 128 hex digits.
    pub signature: String,
    /// As it was read.
    #[serde(skip)]
    pub signed: SignedReadiness,
}

impl SignedReport {
    /// Whether the holder of this key signed it.
    pub fn is_signed_by(&self, key: &PublicKey) -> bool {
        self.signed.is_signed_by(key)
    }

    fn from_wire(wire: v1::SignedPaper) -> Result<Self, ProtocolError> {
        let missing = |_| ProtocolError::Missing("report");
        let report = ReadinessReport::decode(&wire.message).map_err(missing)?;
        let signature = wire.signature.as_ref().try_into();
        let signature = signature.map_err(|_| ProtocolError::Missing("report.signature"))?;
        let (unproved, colour) = (report.unproved(), report.colour().word());
        Ok(Self {
            site: report.site.clone(),
            by: report.by.clone(),
            epoch: report.epoch.0,
            at_ms: report.at_ms,
            blocks: report.blocks,
            proved: report.proved,
            unproved,
            failed: report.failed,
            oldest_proof_ms: report.oldest_ms,
            keks: report.keks,
            heads: hex::encode(report.heads),
            differences: report.differences.iter().map(|it| it.word()).collect(),
            failures: report.failures.clone(),
            token: report.token.map_or_else(String::new, |token| token.to_string()),
            colour,
            message: hex::encode(&wire.message),
            signature: hex::encode(&wire.signature),
            signed: SignedReadiness { report, signature },
        })
    }
}

pub(crate) async fn readiness(transport: &Transport) -> Result<SiteReadiness, CallError> {
    let send = |link, request| async move { SiteClient::new(link).get_readiness(request).await };
    let reply = transport.call(Errand::Read, v1::GetReadinessRequest {}, send).await?;
    let v1::GetReadinessResponse { newest, last_complete, colour, keys } = reply;
    let key = |key: v1::SiteKey| {
        let v1::SiteKey { site, signing } = key;
        let fingerprint = hex::encode(Sha256::digest(&signing));
        let key = signing.as_ref().try_into();
        let key = key.map_err(|_| ProtocolError::Missing("keys.signing"))?;
        Ok::<_, ProtocolError>(SigningKey { site, fingerprint, key })
    };
    Ok(SiteReadiness {
        colour,
        newest: newest.map(SignedReport::from_wire).transpose()?,
        last_complete: last_complete.map(SignedReport::from_wire).transpose()?,
        keys: keys.into_iter().map(key).collect::<Result<_, _>>()?,
    })
}

/// What a promotion of a site would cost now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PromotionPlan {
    /// The site.
    pub site: String,
    /// As it stands.
    pub standing: SiteStanding,
    /// The epoch that it would write in.
    pub next_epoch: u64,
    /// The reason word of a refusal; empty: it would not be refused.
    pub refusal: String,
    /// That as a sentence.
    pub refusal_reason: String,
    /// The other site has not ended its epoch: say that it is lost.
    pub needs_primary_is_lost: bool,
    /// The policy asks for a second person.
    pub needs_two_people: bool,
    /// The other site.
    pub peer: String,
    /// It answers.
    pub peer_answers: bool,
    /// It says that it writes.
    pub peer_writes: bool,
    /// Milliseconds since it was last heard of.
    pub peer_heard_ms: Option<u64>,
    /// What the following is known from: `PEER`, `HEAD_TABLE`, `NOTHING`.
    pub known_from: String,
    /// The time of that; milliseconds since 1970.
    pub known_ms: u64,
    /// Blocks in which the site is behind; not all of very many.
    pub behind: Vec<PlanBlock>,
    /// The number of all of them.
    pub behind_count: u32,
    /// Changes that it is known to lack.
    pub changes_missing: u64,
    /// Blocks that do not open at the site, as far as that is known.
    pub unopened: Vec<PlanBlock>,
    /// The number of all of them.
    pub unopened_count: u32,
    /// Every block was opened for this plan.
    pub blocks_were_opened: bool,
    /// Readiness: `GREEN`, `YELLOW`, `RED`; empty: nothing is known of it.
    pub colour: String,
    /// In what the sites differ, as words.
    pub differences: Vec<String>,
    /// Records that the site's release can't read.
    pub unknown_records: u32,
    /// The fault of the site's token; empty: it passed its check.
    pub token_fault: String,
    /// What the site's token was found not to do, and is not refused for.
    pub token_unmet: Vec<String>,
}

/// A block that a promotion would cost something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PlanBlock {
    /// The block.
    pub block: u32,
    /// Why, as a sentence.
    pub reason: String,
    /// Changes that are missing.
    pub changes: u64,
    /// Meters that it costs, as far as they are known.
    pub meter_ids: Vec<String>,
}

pub(crate) async fn plan(
    transport: &Transport,
    open_blocks: bool,
) -> Result<PromotionPlan, CallError> {
    let send = |link, request| async move { SiteClient::new(link).plan_promotion(request).await };
    let request = v1::PlanPromotionRequest { open_blocks };
    let wire = transport.call(Errand::Read, request, send).await?;
    let block = |block: v1::PlanBlock| {
        let v1::PlanBlock { block, reason, changes, meter_ids } = block;
        PlanBlock { block, reason, changes, meter_ids }
    };
    Ok(PromotionPlan {
        site: wire.site,
        standing: present(wire.standing)?,
        next_epoch: wire.next_epoch,
        refusal: wire.refusal,
        refusal_reason: wire.refusal_reason,
        needs_primary_is_lost: wire.needs_primary_is_lost,
        needs_two_people: wire.needs_two_people,
        peer: wire.peer,
        peer_answers: wire.peer_answers,
        peer_writes: wire.peer_writes,
        peer_heard_ms: wire.peer_heard_ms,
        known_from: wire.known_from,
        known_ms: wire.known_ms,
        behind: wire.behind.into_iter().map(block).collect(),
        behind_count: wire.behind_count,
        changes_missing: wire.changes_missing,
        unopened: wire.unopened.into_iter().map(block).collect(),
        unopened_count: wire.unopened_count,
        blocks_were_opened: wire.blocks_were_opened,
        colour: wire.colour,
        differences: wire.differences,
        unknown_records: wire.unknown_records,
        token_fault: wire.token_fault,
        token_unmet: wire.token_unmet,
    })
}
