//! The summary of what somebody wants of a campaign.

use super::about::{About, line, read, subject};
use crate::rpc::access::verb::Verb;
use kms_proto::v1::{
    CampaignPolicy, CancelCampaignRequest, GetCampaignRequest, GetMeterRotationRequest, KeyKind,
    ListCampaignMembersRequest, MeterSelection, PauseCampaignRequest, ResumeCampaignRequest,
    StartCampaignRequest, TakeWorkRequest,
};

/// The matter of a call about campaigns.
pub(super) fn about_campaign(verb: Verb, message: &[u8]) -> About {
    match verb {
        Verb::StartCampaign => read(message, started),
        Verb::GetCampaign => read(message, shown),
        Verb::ListCampaigns => line("all campaigns".to_owned()),
        Verb::ListCampaignMembers => read(message, members_listed),
        Verb::PauseCampaign => read(message, paused),
        Verb::ResumeCampaign => read(message, resumed),
        Verb::CancelCampaign => read(message, cancelled),
        Verb::TakeWork => read(message, taken),
        Verb::ReportWork => line("what came of work".to_owned()),
        Verb::GetMeterRotation => read(message, rotation_shown),
        // Never for two people, see `Verb::may_need_two_people`.
        Verb::WatchCampaign => About::default(),
        _ => About::default(),
    }
}

fn shown(GetCampaignRequest { name }: GetCampaignRequest) -> About {
    line(format!("campaign {name:?}"))
}

fn members_listed(asked: ListCampaignMembersRequest) -> About {
    line(format!("members of campaign {:?}", asked.name))
}

fn paused(PauseCampaignRequest { name, reason }: PauseCampaignRequest) -> About {
    line(format!("pause campaign {name:?}: {reason:?}"))
}

fn resumed(ResumeCampaignRequest { name, retry_failed }: ResumeCampaignRequest) -> About {
    let failed = if retry_failed { ", and try again what failed" } else { "" };
    line(format!("go on with campaign {name:?}{failed}"))
}

fn cancelled(CancelCampaignRequest { name, reason }: CancelCampaignRequest) -> About {
    line(format!("cancel campaign {name:?}: {reason:?}"))
}

fn taken(TakeWorkRequest { campaign, most, worker }: TakeWorkRequest) -> About {
    line(format!("{most} meters of campaign {campaign:?} for {worker:?}"))
}

fn rotation_shown(GetMeterRotationRequest { meter_id }: GetMeterRotationRequest) -> About {
    let line = format!("the rotation of meter {meter_id:?}");
    About { line, subject: subject(&meter_id, &[]) }
}

fn started(request: StartCampaignRequest) -> About {
    let StartCampaignRequest { name, policy, selection, dry_run, .. } = request;
    let (policy, dry) = (policy.unwrap_or_default(), if dry_run { " (dry run)" } else { "" });
    let selection = selected(&selection.unwrap_or_default());
    line(format!("campaign {name:?}{dry}: {}; {selection}", how(&policy)))
}

fn how(policy: &CampaignPolicy) -> String {
    let kind = |kind: &i32| KeyKind::try_from(*kind).map_or("?", |kind| kind.as_str_name());
    let kinds: Vec<&str> = policy.kinds.iter().map(kind).collect();
    let or_default = |number: u32| match number {
        0 => "the default".to_owned(),
        number => number.to_string(),
    };
    format!(
        "{} of security setup {}, exposure cap {}, canaries {}, rate per hour {}",
        kinds.join(" and "),
        policy.security_setup,
        or_default(policy.exposure_cap),
        policy.canaries.map_or("the default".to_owned(), |canaries| canaries.to_string()),
        if policy.rate_per_hour == 0 { "any".to_owned() } else { policy.rate_per_hour.to_string() },
    )
}

fn selected(selection: &MeterSelection) -> String {
    let MeterSelection {
        meter_ids,
        profile,
        id_prefix,
        title_prefix,
        older_than_days,
        compromised,
    } = selection;
    let said = [
        (!meter_ids.is_empty()).then(|| format!("{} meters by name", meter_ids.len())),
        (!profile.is_empty()).then(|| format!("profile {profile:?}")),
        (!id_prefix.is_empty()).then(|| format!("ids that begin with {id_prefix:?}")),
        (!title_prefix.is_empty())
            .then(|| format!("titles that begin with {}", hex::encode(title_prefix))),
        (*older_than_days > 0).then(|| format!("keys of more than {older_than_days} days")),
        compromised.then(|| "compromised keys".to_owned()),
    ];
    let said: Vec<String> = said.into_iter().flatten().collect();
    if said.is_empty() { "ALL METERS".to_owned() } else { said.join(", ") }
}
