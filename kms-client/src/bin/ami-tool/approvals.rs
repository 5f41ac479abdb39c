//! `approvals list` and `approvals approve`.

use kms_client::{Approval, KmsClient};

use crate::args::ApprovalsCommand;
use crate::failure::{Exit, Failure};
use crate::text::{block, say, say_json};

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
            let approved = client.approve_call(&approve.id).await?;
            show(&approved, json)?;
            if !json {
                let Approval { requester, .. } = approved;
                say(&format!("approved; {requester} now makes the same call again"))?;
            }
        }
    }
    Ok(Exit::Good)
}

fn show(approval: &Approval, json: bool) -> Result<(), Failure> {
    if json {
        return say_json(approval);
    }
    let Approval { approval_id, verb, requester, summary, age_ms, expires_in_ms, approved_by } =
        approval;
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
