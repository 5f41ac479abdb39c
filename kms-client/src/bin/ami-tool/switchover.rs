//! `site switchover`: the primary is demoted, the other site promoted once it has all that the primary left.
//! Each step is looked at before it is taken, so that a switchover that stopped is gone on with.

use std::io::{self, Write as _};
use std::time::{Duration, Instant};

use kms_client::{CallError, KmsClient, PromoteOptions, Promoted, SiteRole};
use serde_json::json;

use crate::args::Switchover;
use crate::asking::confirmed;
use crate::failure::{Exit, Failure};
use crate::roles::{at, looked};
use crate::site::standing;
use crate::text::{say, say_json};

/// Between two questions whether the other site has everything.
const ASK_AGAIN: Duration = Duration::from_millis(200);
/// What goes on when the site is not in step within the time.
const NOT_IN_STEP: &str = "nobody writes now. Run the same command again to go on waiting; `site promote` of the \
    site that was demoted gives its role back; with --primary-is-lost the other one takes over what it has";

/// Refusals that pass once the site has followed.
fn passes(error: &CallError) -> bool {
    let word = match error {
        CallError::Refused { code, .. } | CallError::Unavailable { code, .. } => code.as_str(),
        CallError::Unreachable { .. } => return true,
        _ => return false,
    };
    matches!(
        word,
        "NOT_IN_STEP"
            | "NOT_READY"
            | "PRIMARY_WRITES"
            | "EPOCH_MOVED"
            | "BLOCK_BUSY"
            | "NOT_REACHABLE"
    )
}

pub(crate) async fn run(client: &KmsClient, what: Switchover, json: bool) -> Result<Exit, Failure> {
    let to = at(client, &what.to)?;
    let (name, before) = looked(&to).await?;
    if before.writes {
        let said = format!("{name} is {} already: nothing to do", standing(&before));
        if json {
            say_json(&json!({ "promoted": name, "standing": before, "changed": false }))?;
        } else {
            say(&said)?;
        }
        return Ok(Exit::Good);
    }
    if before.role == SiteRole::Replica {
        return Err(Failure::refused(
            "READ_ONLY_REPLICA",
            format!("{name} is {}", standing(&before)),
        ));
    }
    let until = Instant::now() + Duration::from_secs(what.wait);
    demote_the_other(client, &what, &name, until).await?;
    // Until here the other one wrote, while this one was being proved; from here on nobody does.
    let demoted = Instant::now();
    let promoted = promote(&to, what.above_epoch, until).await?;
    let (ms, now) = (demoted.elapsed().as_millis(), promoted.standing);
    if json {
        let left = &promoted.left;
        say_json(&json!({
            "promoted": name, "standing": now, "changed": true, "left": left, "without_writer_ms": ms
        }))?;
    } else {
        say(&format!("{name} is {}; nobody wrote for {ms} ms", standing(&now)))?;
    }
    Ok(Exit::good_if(promoted.left.is_empty()))
}

/// Demotes the site that writes; nothing where none does, since an earlier switchover came so far.
async fn demote_the_other(
    client: &KmsClient,
    what: &Switchover,
    to: &str,
    until: Instant,
) -> Result<(), Failure> {
    let mut found = Vec::new();
    for other in client.site_names().iter().filter(|name| **name != what.to) {
        let site = at(client, other)?;
        let (name, now) = looked(&site).await?;
        if now.writes {
            found.push((site, name, now));
        }
    }
    let [(site, name, now)] = &found[..] else {
        if found.is_empty() && client.site_names().len() > 1 {
            return Ok(());
        }
        let reason = "there is not one other site that writes in the client's configuration";
        return Err(Failure::refused("ROLE_UNFIT", reason));
    };
    let question =
        format!("{name} is {}; then {to} will write. Type {to} to go on: ", standing(now));
    if !what.yes && !confirmed(to, &question)? {
        return Err(Failure::refused("NOT_CONFIRMED", "nothing was changed"));
    }
    wait_for_readiness(&at(client, &what.to)?, what.above_epoch, until).await?;
    site.demote_site(now.epoch).await?;
    Ok(())
}

/// Refuses before anybody is demoted where the other one would not be promoted; waits for what it has yet to prove.
async fn wait_for_readiness(
    to: &KmsClient,
    above: Option<u64>,
    until: Instant,
) -> Result<(), Failure> {
    loop {
        let plan = to.plan_promotion(false).await?;
        match plan.refusal.as_str() {
            "" => return Ok(()),
            "ROLLED_BACK" if above.is_some() => return Ok(()),
            "NOT_READY" if Instant::now() < until => tokio::time::sleep(ASK_AGAIN).await,
            word => return Err(Failure::refused(word, plan.refusal_reason)),
        }
    }
}

/// Promotes the site as soon as it has everything.
async fn promote(
    to: &KmsClient,
    above_epoch: Option<u64>,
    until: Instant,
) -> Result<Promoted, Failure> {
    let mut is_said = false;
    loop {
        let (_, now) = looked(to).await?;
        let expected_epoch = now.epoch;
        let options = PromoteOptions { expected_epoch, above_epoch, ..PromoteOptions::default() };
        let error = match to.promote_site(options).await {
            Ok(promoted) => return Ok(promoted),
            Err(error) => error,
        };
        if !passes(&error) || Instant::now() > until {
            return Err(Failure::from(error).with_next(NOT_IN_STEP));
        }
        if !is_said {
            // A closed standard error is no reason to stop half-way.
            let _ = writeln!(io::stderr(), "waiting: {error}");
            is_said = true;
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
}
