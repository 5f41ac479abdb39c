//! What people say of a campaign.

use super::storing::News;
use crate::lifecycle::{error::LifecycleError, refusal::refusal, verbs::Lifecycle};
use kms_core::{
    RefusalCode,
    audit::AuditedCall,
    campaign::{Campaign, REASON_MAX, Status, row::Row},
};

impl Lifecycle {
    /// No meter is begun any more.
    pub async fn pause_campaign(
        &self,
        call: &AuditedCall,
        name: &str,
        reason: &str,
    ) -> Result<(), LifecycleError> {
        let reason = short(reason);
        self.say_of_campaign(call, name, |driven| match driven.campaign.status {
            Status::Paused => Ok(Some(Vec::new())),
            Status::Running => {
                driven.campaign.status = Status::Paused;
                driven.campaign.reason.clone_from(&reason);
                Ok(Some(Vec::new()))
            }
            _ => Err(()),
        })
        .await
    }

    /// It goes on. With `retry`, also with what failed.
    pub async fn resume_campaign(
        &self,
        call: &AuditedCall,
        name: &str,
        retry: bool,
    ) -> Result<(), LifecycleError> {
        self.say_of_campaign(call, name, |driven| match driven.campaign.status {
            Status::Paused => Ok(Some(driven.resume(retry))),
            // What failed of one that came to its end is tried anew.
            Status::Finished if retry => {
                driven.campaign.ended_ms = None;
                Ok(Some(driven.resume(true)))
            }
            Status::Running => Ok(None),
            Status::Filling | Status::Finished | Status::Cancelled => Err(()),
        })
        .await
    }

    /// It ends.
    pub async fn cancel_campaign(
        &self,
        call: &AuditedCall,
        name: &str,
        reason: &str,
    ) -> Result<(), LifecycleError> {
        let (reason, now_ms) = (short(reason), self.clock.unix_ms());
        self.say_of_campaign(call, name, |driven| match driven.campaign.status {
            Status::Cancelled => Ok(None),
            Status::Finished => Err(()),
            Status::Filling | Status::Running | Status::Paused => {
                Ok(Some(driven.cancel(&reason, now_ms)))
            }
        })
        .await
    }

    /// `None`: it stands so already.
    async fn say_of_campaign(
        &self,
        call: &AuditedCall,
        name: &str,
        decide: impl FnOnce(&mut kms_core::campaign::driving::Driven) -> Result<Option<Vec<Row>>, ()>,
    ) -> Result<(), LifecycleError> {
        let shared = self.drive(name).await?;
        let mut held = shared.lock().await;
        let before = held.driven.campaign.clone();
        let decided = decide(&mut held.driven);
        let campaign: Campaign = std::mem::replace(&mut held.driven.campaign, before.clone());
        let rows = decided.map_err(|()| not_so(&before))?;
        let Some(rows) = rows else { return Ok(()) };
        let entries = vec![self.campaign_entry(call, held.driven.len())];
        self.store_campaign(&mut held, &before, News { campaign, rows, entries }).await.map(drop)
    }
}

fn short(reason: &str) -> String {
    let mut short = String::new();
    for letter in reason.chars().filter(|letter| !letter.is_control()) {
        if short.len() + letter.len_utf8() > REASON_MAX {
            break;
        }
        short.push(letter);
    }
    short
}

fn not_so(campaign: &Campaign) -> LifecycleError {
    let Campaign { name, status, .. } = campaign;
    let way_out = match status {
        Status::Filling => {
            "its members are still coming in: repeat the start without `more`, or cancel it"
        }
        _ => "start another one for the meters that are left",
    };
    let reason = format!("campaign {name} is {}: {way_out}", status.word());
    LifecycleError::Refused(refusal(RefusalCode::CampaignState, reason))
}
