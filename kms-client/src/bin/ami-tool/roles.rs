//! `site promote | demote`: who writes.

use kms_client::{BlockLeft, KmsClient, PromoteOptions, SiteStanding};
use serde_json::json;

use crate::args::{Demote, Promote};
use crate::asking::confirmed;
use crate::failure::{Exit, Failure};
use crate::site::standing;
use crate::text::{say, say_json};

/// The site of this name.
pub(crate) fn at(client: &KmsClient, name: &str) -> Result<KmsClient, Failure> {
    client.at_site(name).ok_or_else(|| {
        let names = client.site_names().join(", ");
        Failure::usage(format!("the client's configuration knows no site {name:?}, only {names}"))
            .with_next("name one of these, as `[[sites]]` of client.toml calls it")
    })
}

/// The one site that is meant, and its name.
pub(crate) fn meant(
    client: &KmsClient,
    name: Option<&String>,
) -> Result<(KmsClient, String), Failure> {
    let names = client.site_names();
    match (name, &names[..]) {
        (Some(name), _) => Ok((at(client, name)?, name.clone())),
        (None, [only]) => Ok((at(client, only)?, only.clone())),
        (None, _) => Err(Failure::usage(format!("say which site: {}", names.join(", ")))),
    }
}

/// The site's own name and its standing.
pub(crate) async fn looked(client: &KmsClient) -> Result<(String, SiteStanding), Failure> {
    let status = client.site_status().await?;
    let says_none = || {
        let reason = format!("{} is of a release that knows of no other site", status.site);
        Failure::refused("UNKNOWN_METHOD", reason)
    };
    let standing = status.standing.ok_or_else(says_none)?;
    Ok((status.site, standing))
}

pub(crate) fn agreed(yes: bool, site: &str, question: &str) -> Result<(), Failure> {
    let question = format!("{question} Type {site} to go on: ");
    if yes || confirmed(site, &question)? {
        return Ok(());
    }
    Err(Failure::refused("NOT_CONFIRMED", "nothing was changed"))
}

pub(crate) async fn promote(
    client: &KmsClient,
    what: Promote,
    json: bool,
) -> Result<Exit, Failure> {
    let (client, _) = meant(client, what.name.as_ref())?;
    let (site, now) = looked(&client).await?;
    let lost = if what.primary_is_lost {
        " WITHOUT a demotion of the primary: what that wrote and this site has not comes back as divergence"
    } else {
        ""
    };
    let question = format!("{site} is {}. It will be promoted{lost}.", standing(&now));
    agreed(what.yes, &site, &question)?;
    let epoch = what.expected_epoch.unwrap_or(now.epoch);
    let options = PromoteOptions {
        expected_epoch: epoch,
        primary_is_lost: what.primary_is_lost,
        above_epoch: what.above_epoch,
        although_unproved: what.although_unproved,
    };
    let promoted = client.promote_site(options).await?;
    if json {
        let (standing, left) = (promoted.standing, &promoted.left);
        say_json(&json!({ "promoted": site, "standing": standing, "left": left }))?;
    } else {
        say(&format!("{site} is {}", standing(&promoted.standing)))?;
        for BlockLeft { block, reason } in &promoted.left {
            say(&format!("block {block} stays as it is and takes NO change: {reason}"))?;
        }
    }
    Ok(Exit::good_if(promoted.left.is_empty()))
}

pub(crate) async fn demote(client: &KmsClient, what: Demote, json: bool) -> Result<Exit, Failure> {
    let (client, _) = meant(client, what.name.as_ref())?;
    let (site, now) = looked(&client).await?;
    let question = format!("{site} is {}. NOBODY writes until a site is promoted.", standing(&now));
    agreed(what.yes, &site, &question)?;
    let demoted = client.demote_site(what.expected_epoch.unwrap_or(now.epoch)).await?;
    if json {
        say_json(&json!({ "demoted": site, "standing": demoted }))?;
    } else {
        say(&format!("{site} is {}", standing(&demoted)))?;
        say("next: `site promote` the other site, once it has all of this one's changes")?;
    }
    Ok(Exit::Good)
}
