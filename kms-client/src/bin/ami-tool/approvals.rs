//! `approvals list` and `approvals approve`.

use futures_util::future::join_all;
use kms_client::{Approval, CallError, KmsClient};
use serde_json::json;

use crate::args::{ApprovalsCommand, Approve};
use crate::asking::confirmed;
use crate::failure::{Exit, Failure};
use crate::roles::at;
use crate::text::{block, say, say_json};

/// Bytes of a call's name.
const DIGEST_BYTES: usize = 32;

/// The answer of each site that the client knows. A call waits where it was asked, and who approves it need not know where
/// that was.
struct Waiting {
    found: Vec<(String, Approval)>,
    /// The sites that did not answer.
    silent: Vec<(String, CallError)>,
}

impl Waiting {
    async fn of(client: &KmsClient) -> Result<Self, Failure> {
        let names = client.site_names();
        let ask = |name: &String| {
            let at = client.at_site(name);
            async move { Some(at?.approvals().await) }
        };
        let answers = join_all(names.iter().map(ask)).await;
        let (mut found, mut silent) = (Vec::new(), Vec::new());
        for (name, answer) in names.iter().zip(answers) {
            match answer {
                Some(Ok(waiting)) => found.extend(waiting.into_iter().map(|it| (name.clone(), it))),
                // Whoever may not look is told so, whichever site says it first.
                Some(Err(error)) if names.len() == 1 || !may_pass(&error) => {
                    return Err(error.into());
                }
                Some(Err(error)) => silent.push((name.clone(), error)),
                None => {}
            }
        }
        Ok(Self { found, silent })
    }
}

/// Whether a site says nothing now, and the other one may.
fn may_pass(error: &CallError) -> bool {
    use CallError::{Busy, DeadlineExceeded, OutcomeUnknown, Unavailable, Unreachable};
    matches!(
        error,
        Unreachable { .. }
            | Unavailable { .. }
            | Busy { .. }
            | OutcomeUnknown { .. }
            | DeadlineExceeded
    )
}

pub(crate) async fn run(
    client: &KmsClient,
    command: ApprovalsCommand,
    json: bool,
) -> Result<Exit, Failure> {
    match command {
        ApprovalsCommand::List => list(client, json).await,
        ApprovalsCommand::Approve(approve) => {
            let (site, approved) = agree(client, &approve, json).await?;
            show(&site, &approved, json)?;
            if !json {
                let Approval { requester, .. } = approved;
                say(&format!("approved; {requester} now makes the same call again"))?;
            }
            Ok(Exit::Good)
        }
    }
}

async fn list(client: &KmsClient, json: bool) -> Result<Exit, Failure> {
    let Waiting { found, silent } = Waiting::of(client).await?;
    if found.is_empty() && silent.is_empty() && !json {
        let sites = client.site_names().join(", ");
        say(&format!("nothing waits for a second person at {sites}"))?;
    }
    for (site, approval) in &found {
        show(site, approval, json)?;
    }
    for (site, error) in &silent {
        let reason = error.to_string();
        if json {
            say_json(&json!({ "site": site, "error": reason }))?;
        } else {
            say(&block(&[("site", site.clone()), ("answer", format!("NONE: {reason}"))]))?;
        }
    }
    Ok(if silent.is_empty() { Exit::Good } else { Exit::Unreachable })
}

/// Shows the call before it is approved, and approves just that one, at the site where it waits.
async fn agree(
    client: &KmsClient,
    approve: &Approve,
    json: bool,
) -> Result<(String, Approval), Failure> {
    let Waiting { found, silent } = Waiting::of(client).await?;
    let mut meant = found.into_iter().filter(|(_, one)| one.approval_id == approve.id.trim());
    let (Some((site, shown)), other) = (meant.next(), meant.next()) else {
        return match silent.into_iter().next() {
            Some((site, error)) => Err(Failure::from(error).of_site(&site)),
            None => not_there(client, approve).await,
        };
    };
    if let Some((other, _)) = other {
        let reason =
            format!("a call waits under this number at {site}, and another one at {other}");
        return Err(Failure::usage(reason).with_next("say which site: --site"));
    }
    if !approve.yes {
        show(&site, &shown, json)?;
        let id = &shown.approval_id;
        if !confirmed(id, &format!("Type {id} to approve this call: "))? {
            return Err(Failure::refused("NOT_CONFIRMED", "nothing was approved"));
        }
    }
    let approved = at(client, &site)?.approve_call(&shown).await?;
    Ok((site, approved))
}

/// The server knows why nothing is there, and it is no call that could be approved by that.
async fn not_there(client: &KmsClient, approve: &Approve) -> Result<(String, Approval), Failure> {
    let approval_id = approve.id.clone();
    let none = Approval { approval_id, digest: vec![0; DIGEST_BYTES], ..Approval::default() };
    Ok((String::new(), client.approve_call(&none).await?))
}

fn show(site: &str, approval: &Approval, json: bool) -> Result<(), Failure> {
    if json {
        let mut line = json!(approval);
        line["site"] = site.into();
        return say_json(&line);
    }
    let Approval { approval_id, verb, requester, summary, age_ms, expires_in_ms, .. } = approval;
    let approved_by = &approval.approved_by;
    let approved = if approved_by.is_empty() { "nobody yet" } else { approved_by };
    say(&block(&[
        ("id", approval_id.clone()),
        ("site", site.to_owned()),
        ("call", verb.clone()),
        ("about", summary.clone()),
        ("asked by", requester.clone()),
        ("asked", format!("{} s ago; {} s left", age_ms / 1_000, expires_in_ms / 1_000)),
        ("approved by", approved.to_owned()),
    ]))
}
