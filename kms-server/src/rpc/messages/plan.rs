//! A plan for a promotion, and reports of readiness, as protobuf has them.

use kms_proto::v1::{PlanBlock, PlanPromotionResponse, PromoteRequest};

use super::{papers::wire_report, role_status::word_of_role};
use crate::{
    keyring::Wish,
    replication::{CostlyBlock, Plan, Reports},
};
use kms_core::{
    Epoch,
    audit::{PublicKey, SiteKeys},
    site::role::Standing,
};

/// The promotion that a request asks for.
pub(crate) fn wish(request: &PromoteRequest) -> Wish {
    let PromoteRequest { expected_epoch, primary_is_lost, above_epoch, .. } = *request;
    Wish {
        expected: Epoch(expected_epoch),
        is_lost: primary_is_lost,
        above: above_epoch.map(Epoch),
    }
}

/// A standing on the wire.
pub(crate) fn wire_standing(standing: &Standing) -> kms_proto::v1::SiteStanding {
    let Standing { role, epoch, .. } = *standing;
    kms_proto::v1::SiteStanding { role: role as i32, epoch: epoch.0, writes: standing.writes() }
}

fn wire_block(costly: CostlyBlock) -> PlanBlock {
    let CostlyBlock { block, reason, changes, meters } = costly;
    let meter_ids = meters.iter().map(|id| id.as_str().to_owned()).collect();
    PlanBlock { block: block.0, reason, changes, meter_ids }
}

/// The plan. `two_people`: the policy asks for two.
pub(crate) fn wire_plan(plan: Plan, two_people: bool) -> PlanPromotionResponse {
    let refusal = plan.refusal.as_ref();
    let status = plan.replication;
    PlanPromotionResponse {
        site: plan.site,
        standing: Some(wire_standing(&plan.standing)),
        next_epoch: plan.next_epoch.0,
        refusal: refusal.map_or_else(String::new, |error| word_of_role(error).0.to_owned()),
        refusal_reason: refusal.map_or_else(String::new, ToString::to_string),
        needs_primary_is_lost: plan.needs_loss,
        needs_two_people: two_people,
        peer: status.peer,
        peer_answers: plan.peer_answers,
        peer_writes: plan.peer_writes,
        peer_heard_ms: status.heard.map(|heard| heard.ms),
        known_from: plan.known_from.word().to_owned(),
        known_ms: plan.known_ms,
        behind: plan.behind.into_iter().map(wire_block).collect(),
        behind_count: plan.behind_count,
        changes_missing: plan.changes_missing,
        unopened: plan.unopened.into_iter().map(wire_block).collect(),
        unopened_count: plan.unopened_count,
        blocks_were_opened: plan.were_opened,
        colour: status.colour.map_or_else(String::new, |colour| colour.word().to_owned()),
        differences: status.differences.iter().map(|it| it.word().to_owned()).collect(),
        unknown_records: plan.unknown_records,
        token_fault: plan.token_fault.unwrap_or_default(),
        token_unmet: plan.token_unmet,
    }
}

/// Reports, with the keys that they verify with.
pub(crate) fn wire_reports(
    reports: &Reports,
    colour: Option<kms_core::site::readiness::Colour>,
    keys: Vec<(String, SiteKeys)>,
) -> kms_proto::v1::GetReadinessResponse {
    let of_site = |(site, keys): (String, SiteKeys)| -> Vec<kms_proto::v1::SiteKey> {
        let key = |signing: &PublicKey| kms_proto::v1::SiteKey {
            site: site.clone(),
            signing: bytes::Bytes::copy_from_slice(signing),
        };
        keys.iter().map(key).collect()
    };
    kms_proto::v1::GetReadinessResponse {
        newest: reports.newest.as_ref().map(wire_report),
        last_complete: reports.complete.as_ref().map(wire_report),
        colour: colour.map_or_else(String::new, |colour| colour.word().to_owned()),
        keys: keys.into_iter().flat_map(of_site).collect(),
    }
}
