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
pub(super) fn canaries_in((domain, lists): &Known) -> Result<Vec<Canaries>, Fault> {
    let mut all = vec![canaries_of(domain)?];
    for list in lists {
        let canaries = Canaries::decode(&list.tokens.canaries);
        let canaries = canaries.map_err(|error| Fault::Store(error.into()))?;
        if !all.contains(&canaries) {
            all.push(canaries);
        }
    }
    Ok(all)
}

/// The domain's record, and the proofs of the KEKs of all its tokens.
pub(super) async fn named_in(
    store: &dyn WholeStore,
) -> Result<(DomainRecord, Vec<Canaries>), Fault> {
    let known = (domain_of(store).await?, store.site_tokens().await?);
    let canaries = canaries_in(&known)?;
    Ok((known.0, canaries))
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
