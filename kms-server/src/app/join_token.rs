//! The last step of a second token of one site: its keys are made, the bundle of the first token has come, and the site's
//! own database gets, for each block, a seal that this token opens.

use std::sync::Arc;

use super::{
    database::{alone_over, domain_of},
    fault::Fault,
    founding::{PATIENCE, tell_of},
    migrate::condition_of,
    report::Report,
};
use crate::{
    config::Config,
    hsm::{
        Hsm,
        pkcs11::{Pkcs11Token, ProbeDepth, Received},
    },
    keyring::founding::take_over_blocks,
    store::{tokens::FurtherToken, whole::WholeStore},
};
use kms_core::{
    BlockNo, DomainRecord,
    enrolment::{
        bundle::{EnrolledBlock, Enrolment},
        request::JoinRequest,
    },
    site::tokens::{SignedSiteTokens, SiteTokens},
};

/// Said where the database and the bundle do not belong together.
const ANOTHER_DATABASE: &str = "the database in [store] is not the one of the site whose token made the bundle: a second \
                                token opens the database that the site has";

/// Said where it is done.
const DONE: &str = "this site has two tokens already, by its database: there is nothing to do";

/// Whether the bundle lets a second token into its own sender's site, as the request asked. `Err`: why not.
pub(super) fn fits(bundle: &Enrolment, asked: &JoinRequest) -> Result<(), String> {
    let Some(list) = &bundle.same_site else {
        return Err(
            "the bundle is for a further site, and a second token of this one has asked".into()
        );
    };
    let sender = &bundle.sender;
    if sender.site != bundle.recipient || sender.kind != bundle.kind {
        return Err("the sender is another site".to_owned());
    }
    let keys = list.believed_by(&sender.signing, &sender.domain, &sender.site);
    let names_both = list.tokens.signing == [sender.signing, asked.signing];
    match keys.is_some() && names_both && SiteTokens::is_of_two(list.tokens.number) {
        true => Ok(()),
        false => Err("its list of the site's tokens is not one of these two".to_owned()),
    }
}

/// The database, if it is the one of the token that made the bundle. No server has it for itself from now on.
pub(super) async fn own_domain(
    config: &Config,
    store: &dyn WholeStore,
    bundle: &Enrolment,
) -> Result<DomainRecord, Fault> {
    if let Some(alone) = alone_over(&config.store)? {
        alone.for_good();
    }
    let domain = domain_of(store).await?;
    let sender = &bundle.sender;
    let is_same = (domain.domain, &domain.site, domain.kind)
        == (sender.domain, &sender.site, sender.kind)
        && domain.epoch == bundle.founded
        && Some(domain.blocks) == bundle.block_count();
    // Nothing of it is believed before the first token's signature.
    if !is_same || condition_of(store, &domain, &sender.keys()).await?.is_err() {
        return Err(Fault::Store(ANOTHER_DATABASE.into()));
    }
    if !store.site_tokens().await?.is_empty() {
        return Err(Fault::Store(DONE.into()));
    }
    Ok(domain)
}

/// Seals each block's secret for the new token, and writes that, with both tokens' lists, at once.
pub(super) async fn let_in(
    config: Config,
    store: &dyn WholeStore,
    (domain, bundle): (&DomainRecord, &Enrolment),
    received: Received,
) -> Result<Report, Fault> {
    let hsm = connected(config, &received).await?;
    let of_first: Vec<(BlockNo, &EnrolledBlock)> = bundle.numbered_blocks().collect();
    let taking = take_over_blocks(&hsm, domain, &of_first, tell_of(domain.blocks.get()));
    let blocks = taking.await.map_err(|error| Fault::Token(error.into()))?;
    let seals = blocks.into_iter().map(|block| (block.head.block, block.seals)).collect();
    let Some(first) = bundle.same_site.clone() else {
        return Err(Fault::Setting(ANOTHER_DATABASE.into()));
    };
    let tokens = SiteTokens { canaries: received.canaries.encode(), ..first.tokens.clone() };
    let signature = hsm.sign(tokens.message()).await?;
    let own = SignedSiteTokens { tokens, signature };
    // Another one that joined meanwhile stays.
    let token = FurtherToken { expected: Vec::new(), lists: vec![first, own], seals };
    store.add_token(&token).await?;
    Ok(report(domain, received))
}

async fn connected(config: Config, received: &Received) -> Result<Hsm, Fault> {
    let (width, call_timeout) = (config.hsm.sessions_max, config.hsm.call_timeout);
    let token = Pkcs11Token::connect(config.hsm, received.canaries.clone())?;
    match token.probe(ProbeDepth::Start)?.refusal() {
        Some(why) => Err(Fault::Token(why.into())),
        None => Ok(Hsm::new(Arc::new(token), width, PATIENCE, call_timeout)),
    }
}

fn report(domain: &DomainRecord, received: Received) -> Report {
    let mut lines = vec![
        ("site".to_owned(), domain.site.clone()),
        ("key domain".to_owned(), hex::encode(domain.domain.0)),
        ("key blocks".to_owned(), domain.blocks.get().to_string()),
        ("second token".to_owned(), received.token_label),
    ];
    lines.extend(received.keys.into_iter().map(|key| {
        let public = key.fingerprint.map_or(String::new(), |f| format!(", public key {f}"));
        (key.label, format!("id {}{public}", key.id))
    }));
    lines.push((
        "next".to_owned(),
        "a server with either token in [hsm] serves this database".into(),
    ));
    Report { lines }
}
