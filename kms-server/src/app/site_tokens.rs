//! The tokens of one site: which of them this server has, and whose signatures it believes because of that.

use super::{
    database::{Known, canaries_of, domain_of},
    fault::Fault,
};
use crate::{
    hsm::{Hsm, pkcs11::Canaries},
    store::{tokens::TokenStore, whole::WholeStore},
};
use kms_core::DomainRecord;

/// Said where somebody changed the lists.
const NOT_OURS: &str = "the table `site_tokens` of the database has no list that this token signed and stands in: it was \
                        changed outside this service; restore that table from a backup";

/// The proofs of the KEKs of all tokens that the database names. Which of them is this server's is for the token to say.
/// A site KEK that has taken the place of another one comes before that.
pub(super) fn canaries_in(Known { domain, lists, keks }: &Known) -> Result<Vec<Canaries>, Fault> {
    let decoded =
        |bytes: &[u8]| Canaries::decode(bytes).map_err(|error| Fault::Store(error.into()));
    let mut all = Vec::new();
    for row in keks {
        all.push(decoded(&row.keks.current.proof)?);
    }
    all.push(canaries_of(domain)?);
    for list in lists {
        all.push(decoded(&list.tokens.canaries)?);
    }
    let mut each: Vec<Canaries> = Vec::new();
    for canaries in all {
        if !each.contains(&canaries) {
            each.push(canaries);
        }
    }
    Ok(each)
}

/// The domain's record, and the proofs of the KEKs of all its tokens.
pub(super) async fn named_in(
    store: &dyn WholeStore,
) -> Result<(DomainRecord, Vec<Canaries>), Fault> {
    let domain = domain_of(store).await?;
    let (lists, keks) = (store.site_tokens().await?, store.site_keks().await?);
    let known = Known { domain, lists, keks };
    let canaries = canaries_in(&known)?;
    Ok((known.domain, canaries))
}

/// Has `hsm` believe the tokens that its own token has signed for. Nothing of the lists counts before that.
pub(super) async fn believe(
    hsm: &Hsm,
    store: &dyn TokenStore,
    domain: &DomainRecord,
) -> Result<(), Fault> {
    let lists = store.site_tokens().await?;
    if lists.is_empty() {
        return Ok(());
    }
    let own = hsm.public_key().await.map_err(|error| Fault::Token(error.into()))?;
    let mut ours = lists.iter();
    let keys = ours.find_map(|list| list.believed_by(&own, &domain.domain, &domain.site));
    let keys = keys.ok_or_else(|| Fault::Store(NOT_OURS.into()))?;
    let lists = lists.into_iter().filter(|list| list.is_signed_by(&keys)).collect();
    hsm.believe(&keys, lists);
    Ok(())
}
