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
use crate::seconds::{LastStep, Later, wait_for};
use crate::site::standing;
use crate::text::{say, say_json};

/// Between two questions whether the other site has everything.
const ASK_AGAIN: Duration = Duration::from_millis(200);
/// What goes on when the site is not in step within the time.
const NOT_IN_STEP: &str = "nobody writes now. Run the same command again to go on waiting; `site promote` of the \
    site that was demoted gives its role back; with --primary-is-lost the other one takes over what it has";

/// A switchover asks the site that writes. Beside one that only can't be reached a promotion would make two that write.
const NOT_ASKED: &str = "a switchover needs both sites. Find out whether that site still runs: if it does, mend the way to it \
    and switch over then. Only if its servers are off, and stay off: `site plan SITE`, then `site promote SITE \
    --primary-is-lost` for the site that is left";

/// The reason to wait, as people say it; `None`: a refusal that does not pass once the site has followed.
fn waits_for(error: &CallError) -> Option<&'static str> {
    let word = match error {
        CallError::Refused { code, .. } | CallError::Unavailable { code, .. } => code.as_str(),
        CallError::Unreachable { .. } => return Some("it can't be reached at the moment"),
        _ => return None,
    };
    Some(match word {
        "PRIMARY_WRITES" => "it has not heard of the demotion yet",
        "NOT_IN_STEP" => "it takes over what the other site wrote last",
        "NOT_READY" => "it is being proved that it can open what it stores",
        "EPOCH_MOVED" => "its epoch has just moved on",
        "BLOCK_BUSY" => "its blocks are being written",
        "NOT_REACHABLE" => "its token or its database is away at the moment",
        _ => return None,
    })
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
    let later = PromoteOptions {
        expected_epoch: before.epoch,
        above_epoch: what.above_epoch,
        ..PromoteOptions::default()
    };
    // Until here the other one wrote, while this one was being proved; from here on nobody does.
    let demoted = demote_the_other(client, (&what, &name), (&to, later)).await?;
    let promoted = promote(&to, what.above_epoch, patience(&what)).await?;
    let (ms, now) = (demoted.map(|at| at.elapsed().as_millis()), promoted.standing);
    if json {
        let left = &promoted.left;
        say_json(&json!({
            "promoted": name, "standing": now, "changed": true, "left": left, "without_writer_ms": ms
        }))?;
    } else {
        let gap = ms.map_or_else(
            || "nobody wrote since the demotion, which was made before".to_owned(),
            |ms| format!("nobody wrote for {ms} ms"),
        );
        say(&format!("{name} is {}; {gap}", standing(&now)))?;
    }
    Ok(Exit::good_if(promoted.left.is_empty()))
}

/// The longest wait of each step for what a site has yet to do. People are waited for by themselves.
fn patience(what: &Switchover) -> Duration {
    Duration::from_secs(what.wait)
}

/// Demotes the site that writes, and says when; nothing where none does, since an earlier switchover came so far.
async fn demote_the_other(
    client: &KmsClient,
    (what, to): (&Switchover, &str),
    (next, later): (&KmsClient, PromoteOptions),
) -> Result<Option<Instant>, Failure> {
    let mut found = Vec::new();
    for other in client.site_names().iter().filter(|name| **name != what.to) {
        let site = at(client, other)?;
        let asked = looked(&site).await;
        let (name, now) = asked.map_err(|failure| failure.of_site(other).with_next(NOT_ASKED))?;
        if now.writes {
            found.push((site, name, now));
        }
    }
    let [(site, name, now)] = &found[..] else {
        if found.is_empty() && client.site_names().len() > 1 {
            return Ok(None);
        }
        let reason = "there is not one other site that writes in the client's configuration";
        return Err(Failure::refused("ROLE_UNFIT", reason));
    };
    let question =
        format!("{name} is {}; then {to} will write. Type {to} to go on: ", standing(now));
    if !what.yes && !confirmed(to, &question)? {
        return Err(Failure::refused("NOT_CONFIRMED", "nothing was changed"));
    }
    wait_for_readiness(next, what.above_epoch, Instant::now() + patience(what)).await?;
    // It is promoted once it has heard of the demotion, and so of this epoch.
    let later = PromoteOptions { expected_epoch: later.expected_epoch.max(now.epoch), ..later };
    let steps = [Later::Promote(next, later), Later::Demote(site, now.epoch)];
    wait_for(&steps, patience(what)).await?;
    // It may have changed while people were waited for; and what they said, while that was waited for.
    if wait_for_readiness(next, what.above_epoch, Instant::now() + patience(what)).await? {
        wait_for(&steps, patience(what)).await?;
    }
    let demoted = Instant::now();
    site.demote_site(now.epoch).await?;
    Ok(Some(demoted))
}

/// Refuses before anybody is demoted where the other one would not be promoted; waits for what it has yet to prove. True:
/// it had to.
async fn wait_for_readiness(
    to: &KmsClient,
    above: Option<u64>,
    until: Instant,
) -> Result<bool, Failure> {
    let mut waited = false;
    loop {
        let plan = to.plan_promotion(false).await?;
        match plan.refusal.as_str() {
            "" => return Ok(waited),
            "ROLLED_BACK" if above.is_some() => return Ok(waited),
            "NOT_READY" if Instant::now() < until => {
                waited = true;
                tokio::time::sleep(ASK_AGAIN).await;
            }
            word => return Err(Failure::refused(word, plan.refusal_reason)),
        }
    }
}

/// Promotes the site as soon as it has everything.
async fn promote(
    to: &KmsClient,
    above_epoch: Option<u64>,
    patience: Duration,
) -> Result<Promoted, Failure> {
    let (mut said, mut second) = (None, LastStep::default());
    let mut until = Instant::now() + patience;
    loop {
        let (name, now) = looked(to).await?;
        let expected_epoch = now.epoch;
        let options = PromoteOptions { expected_epoch, above_epoch, ..PromoteOptions::default() };
        let error = match to.promote_site(options).await {
            Ok(promoted) => return Ok(promoted),
            Err(error) => error,
        };
        if let CallError::SecondPersonNeeded { .. } = error {
            // Asked for ahead, too: but an approval ends some time, and an older server can't be asked ahead.
            second.wait(to, error).await?;
            until = Instant::now() + patience;
            continue;
        }
        let Some(waits) = waits_for(&error).filter(|_| Instant::now() <= until) else {
            return Err(Failure::from(error).with_next(NOT_IN_STEP));
        };
        if said != Some(waits) {
            // A closed standard error is no reason to stop half-way.
            let _ = writeln!(io::stderr(), "waiting: {name} can't be promoted yet: {waits}");
            said = Some(waits);
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
}
