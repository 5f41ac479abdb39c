//! What a site says of itself, and the papers that it signed, as protobuf has them. What is not of the length that it
//! has to have is refused here.

use bytes::Bytes;
use kms_proto::v1;

use super::status::Refused;
use crate::replication::ShownTable;
use kms_core::site::{
    makeup::Makeup,
    readiness::{ReadinessReport, SignedReadiness},
    tokens::{SignedSiteTokens, SiteTokens, TokenId},
};

/// A message that no site writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is missing, or not of its length")]
pub(crate) struct BadMessage(pub(crate) &'static str);

impl From<BadMessage> for Refused {
    fn from(BadMessage(field): BadMessage) -> Self {
        Self::Field { field, problem: "it is missing, or not of its length" }
    }
}

pub(super) fn array<const N: usize>(
    field: &'static str,
    bytes: &[u8],
) -> Result<[u8; N], BadMessage> {
    bytes.try_into().map_err(|_| BadMessage(field))
}

/// Suites, and rows of a probe, that are read from a card; and the bytes of each.
const WORDS_MAX: (usize, usize) = (32, 200);
/// The bytes of a report, at most.
const REPORT_LEN_MAX: usize = 16 << 10;

fn words(field: &'static str, words: Vec<String>) -> Result<Vec<String>, BadMessage> {
    let (most, longest) = WORDS_MAX;
    if words.len() > most || words.iter().any(|word| word.len() > longest) {
        return Err(BadMessage(field));
    }
    Ok(words)
}

pub(super) fn read(makeup: v1::SiteMakeup) -> Result<Makeup, BadMessage> {
    let v1::SiteMakeup { store_schema, suites, policy, authorities, .. } = makeup;
    let v1::SiteMakeup { revocation_lists, profiles, signers, unmet, unknown_records, .. } = makeup;
    // A release that does not say takes nobody's, as far as is known.
    let signers =
        if signers.is_empty() { [0; 32] } else { array("card.makeup.signers", &signers)? };
    Ok(Makeup {
        store_schema,
        suites: words("card.makeup.suites", suites)?,
        policy: array("card.makeup.policy", &policy)?,
        authorities: array("card.makeup.authorities", &authorities)?,
        revocation_lists: array("card.makeup.revocation_lists", &revocation_lists)?,
        profiles: array("card.makeup.profiles", &profiles)?,
        signers,
        unmet: words("card.makeup.unmet", unmet)?,
        unknown_records,
    })
}

pub(super) fn wire(makeup: Makeup) -> v1::SiteMakeup {
    let Makeup { store_schema, suites, policy, authorities, .. } = makeup;
    let Makeup { revocation_lists, profiles, signers, mut unmet, unknown_records, .. } = makeup;
    unmet.truncate(WORDS_MAX.0);
    for word in &mut unmet {
        word.truncate(word.floor_char_boundary(WORDS_MAX.1));
    }
    let bytes = |digest: &[u8; 32]| Bytes::copy_from_slice(digest);
    v1::SiteMakeup {
        store_schema,
        suites,
        policy: bytes(&policy),
        authorities: bytes(&authorities),
        revocation_lists: bytes(&revocation_lists),
        profiles: bytes(&profiles),
        signers: bytes(&signers),
        unmet,
        unknown_records,
    }
}

pub(crate) fn wire_report(signed: &SignedReadiness) -> v1::SignedPaper {
    v1::SignedPaper {
        message: signed.report.message().into(),
        signature: Bytes::copy_from_slice(&signed.signature),
    }
}

pub(crate) fn report(paper: v1::SignedPaper) -> Result<SignedReadiness, BadMessage> {
    let v1::SignedPaper { message, signature } = paper;
    if message.len() > REPORT_LEN_MAX {
        return Err(BadMessage("report.message"));
    }
    let report = ReadinessReport::decode(&message).map_err(|_| BadMessage("report.message"))?;
    Ok(SignedReadiness { report, signature: array("report.signature", &signature)? })
}

pub(super) fn table(paper: v1::SignedPaper) -> Result<ShownTable, BadMessage> {
    let v1::SignedPaper { message, signature } = paper;
    Ok(ShownTable { body: message.into(), signature: array("own.signature", &signature)? })
}

pub(super) fn wire_table(shown: ShownTable) -> v1::SignedPaper {
    let ShownTable { body, signature } = shown;
    v1::SignedPaper { message: body.into(), signature: Bytes::copy_from_slice(&signature) }
}

/// The lists of another site's tokens: no more than a site has tokens.
pub(super) fn token_lists(
    papers: Vec<v1::SignedPaper>,
) -> Result<Vec<SignedSiteTokens>, BadMessage> {
    let list = |paper: v1::SignedPaper| {
        let v1::SignedPaper { message, signature } = paper;
        let tokens = SiteTokens::decode(&message).map_err(|_| BadMessage("tokens.message"))?;
        Ok(SignedSiteTokens { tokens, signature: array("tokens.signature", &signature)? })
    };
    papers.into_iter().take(SiteTokens::COUNT_MAX).map(list).collect()
}

/// The names of a site's tokens: no more than it has tokens.
pub(super) fn token_ids(ids: &[Bytes]) -> Result<Vec<TokenId>, BadMessage> {
    let ids = ids.iter().take(SiteTokens::COUNT_MAX);
    ids.map(|id| Ok(TokenId(array("asker_tokens", id)?))).collect()
}

pub(super) fn wire_token_list(signed: &SignedSiteTokens) -> v1::SignedPaper {
    v1::SignedPaper {
        message: signed.tokens.message().into(),
        signature: Bytes::copy_from_slice(&signed.signature),
    }
}
