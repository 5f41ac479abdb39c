//! A campaign and a member, for the tests of what is said of them.

use kms_client::{
    Campaign, CampaignLabel, CampaignMember, CampaignMemberState, CampaignPolicy, CampaignProgress,
    CampaignStatus, KeyKind, KeyPair, KeyTried, SystemTitle, TransportOutcome,
};

pub(crate) fn spring(status: CampaignStatus) -> Campaign {
    let progress = CampaignProgress {
        members: 10,
        waiting: 5,
        sent: 2,
        done: 2,
        failed: 1,
        exposed: 3,
        orphans: 1,
        ..CampaignProgress::default()
    };
    Campaign {
        name: "spring".into(),
        status,
        reason: None,
        policy: CampaignPolicy { kinds: vec![KeyKind::Guek], ..CampaignPolicy::default() },
        started_ms: 0,
        ended_ms: None,
        asked_by: "alice".into(),
        driver: None,
        progress,
        labels: vec![CampaignLabel { label: "MMM".into(), progress, canaries_done: false }],
    }
}

pub(crate) fn member_of() -> CampaignMember {
    let pair = KeyPair { encryption_key_version: 2, authentication_key_version: 1 };
    CampaignMember {
        meter_id: "m-1".into(),
        system_title: SystemTitle::new([0x4D; 8]),
        label: "MMM".into(),
        state: CampaignMemberState::Failed,
        canary: true,
        exposed: true,
        unreachable: false,
        failures: 5,
        until_ms: Some(60_000),
        leased: false,
        last_outcome: Some(TransportOutcome::NoAnswer),
        reason: None,
        tried: vec![KeyTried {
            at_ms: 0,
            pair,
            outcome: TransportOutcome::Answered,
            frame: "DB08".into(),
        }],
    }
}
