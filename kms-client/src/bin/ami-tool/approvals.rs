//! `approvals list` and `approvals approve`.

use kms_client::{Approval, KmsClient};

use crate::args::{ApprovalsCommand, Approve};
use crate::asking::confirmed;
use crate::failure::{Exit, Failure};
use crate::text::{block, say, say_json};

/// Bytes of a call's name.
const DIGEST_BYTES: usize = 32;

pub(crate) async fn run(
    client: &KmsClient,
    command: ApprovalsCommand,
    json: bool,
) -> Result<Exit, Failure> {
    match command {
        ApprovalsCommand::List => {
            let waiting = client.approvals().await?;
            if waiting.is_empty() && !json {
                say("nothing waits for a second person at this site")?;
            }
            for approval in &waiting {
                show(approval, json)?;
            }
        }
        ApprovalsCommand::Approve(approve) => {
            let approved = agree(client, &approve, json).await?;
            show(&approved, json)?;
            if !json {
                let Approval { requester, .. } = approved;
                say(&format!("approved; {requester} now makes the same call again"))?;
            }
        }
    }
    Ok(Exit::Good)
}

/// Shows the call before it is approved, and approves just that one.
async fn agree(client: &KmsClient, approve: &Approve, json: bool) -> Result<Approval, Failure> {
    let waiting = client.approvals().await?;
    let shown = waiting.into_iter().find(|one| one.approval_id == approve.id.trim());
    let Some(shown) = shown else {
        // The server knows why, and it is no call that could be approved by that.
        let approval_id = approve.id.clone();
        let none = Approval { approval_id, digest: vec![0; DIGEST_BYTES], ..Approval::default() };
        return Ok(client.approve_call(&none).await?);
    };
    if !approve.yes {
        show(&shown, json)?;
        let id = &shown.approval_id;
        if !confirmed(id, &format!("Type {id} to approve this call: "))? {
            return Err(Failure::refused("NOT_CONFIRMED", "nothing was approved"));
        }
    }
    Ok(client.approve_call(&shown).await?)
}

fn show(approval: &Approval, json: bool) -> Result<(), Failure> {
    if json {
        return say_json(approval);
    }
    let Approval { approval_id, verb, requester, summary, age_ms, expires_in_ms, .. } = approval;
    let approved_by = &approval.approved_by;
    let approved = if approved_by.is_empty() { "nobody yet" } else { approved_by };
    say(&block(&[
        ("id", approval_id.clone()),
        ("call", verb.clone()),
        ("about", summary.clone()),
        ("asked by", requester.clone()),
        ("asked", format!("{} s ago; {} s left", age_ms / 1_000, expires_in_ms / 1_000)),
        ("approved by", approved.to_owned()),
    ]))
}
