//! Roles, and the calls that each of them may make unless the configuration says otherwise.

use std::fmt;

use super::verb::{Verb, of_campaigns, of_groups};

/// A caller's task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// A head-end system: opens what meters send.
    Hes,
    /// A head-end system that sends to meters: has APDUs protected.
    Transmitter,
    /// Operators: meters and their keys.
    AmiAdmin,
    /// The service that rotates keys.
    Rotator,
    /// Another node of this site.
    Node,
    /// The other site.
    Peer,
    /// A read-only replica: it follows, and witnesses nothing.
    Replica,
    /// Looks, and changes nothing.
    Auditor,
    /// The second person of calls that need two.
    Approver,
    /// The timer that keeps the other site in step.
    Synchroniser,
}

impl Role {
    /// All roles.
    pub const ALL: [Self; 10] = [
        Self::Hes,
        Self::Transmitter,
        Self::AmiAdmin,
        Self::Rotator,
        Self::Node,
        Self::Peer,
        Self::Replica,
        Self::Auditor,
        Self::Approver,
        Self::Synchroniser,
    ];

    /// As configuration and log write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hes => "hes",
            Self::Transmitter => "transmitter",
            Self::AmiAdmin => "ami_admin",
            Self::Rotator => "rotator",
            Self::Node => "node",
            Self::Peer => "peer",
            Self::Replica => "replica",
            Self::Auditor => "auditor",
            Self::Approver => "approver",
            Self::Synchroniser => "synchroniser",
        }
    }

    /// The role with this name.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.name() == name)
    }

    /// Whether the role may make this call unless the configuration says otherwise.
    pub fn may_by_default(self, verb: Verb) -> bool {
        verb.default_roles().contains(&self)
    }
}

impl Verb {
    /// The roles that may make the call unless the configuration says otherwise. No `_` arm: whoever adds a call
    /// decides it here.
    pub const fn default_roles(self) -> &'static [Role] {
        use Role::{
            AmiAdmin, Approver, Auditor, Hes, Node, Peer, Replica, Rotator, Synchroniser,
            Transmitter,
        };
        match self {
            Self::Decrypt | Self::DecryptBatch | Self::DecryptStream | Self::Triage => &[Hes],
            Self::VerifyMic | Self::VerifyMicBatch | Self::VerifyMicStream => &[Hes],
            Self::Encrypt
            | Self::EncryptBatch
            | Self::BeginHls
            | Self::AnswerHlsChallenge
            | Self::VerifyHlsAnswer => &[Transmitter],
            Self::CreateMeter
            | Self::DeleteMeter
            | Self::BuryDamagedMeter
            | Self::ReadmitMeter
            | Self::SetPolicy
            | Self::DeclareCounter
            | Self::ImportMeters
            | Self::GetImportKey
            | Self::Promote
            | Self::Demote
            | Self::EnrolPeer
            | Self::ResolveDivergence
            | Self::AdmitEpoch
            | Self::ForgetRevocationList
            | Self::RotateBlockSecrets
            | Self::RotateSiteKek
            | Self::DestroySiteKek => &[AmiAdmin],
            Self::StageKey | Self::NextTransfer | Self::ConfirmKey | Self::RollBackKey => {
                &[AmiAdmin, Rotator]
            }
            of_campaigns!() => self.roles_in_campaigns(),
            of_groups!() => self.roles_in_groups(),
            Self::ReviveKey
            | Self::CompromiseKey
            | Self::DestroyKey
            | Self::RestoreKey
            | Self::SetLegalHold => &[AmiAdmin],
            Self::SyncNow => &[AmiAdmin, Synchroniser],
            Self::GetMeter | Self::ListMeters => &[AmiAdmin, Rotator, Auditor],
            Self::ListBlockHeads
            | Self::FetchBlocks
            | Self::FollowChanges
            | Self::ListRoleRecords
            | Self::ListFloors
            | Self::ReportDivergence
            | Self::HandEvidence
            | Self::ShowHeadTables => &[Peer, Replica],
            Self::Protect => &[Node],
            Self::ProveBlocks | Self::ExchangeMarks | Self::FetchAuditEvents => &[Peer],
            Self::GetStatus => &[AmiAdmin, Rotator, Peer, Auditor, Synchroniser],
            Self::ListDivergence | Self::ListEvents => &[AmiAdmin, Auditor],
            Self::GetReadiness
            | Self::PlanPromotion
            | Self::GetBlockSecretRotation
            | Self::GetSiteKekRotation => &[AmiAdmin, Auditor],
            Self::FollowEvents | Self::VerifyChain => &[Auditor],
            Self::ListApprovals => &[AmiAdmin, Auditor, Approver],
            Self::ApproveCall => &[Approver],
            Self::AskAhead => &[AmiAdmin],
            Self::Health | Self::Reflection => &Role::ALL,
        }
    }
}

impl Verb {
    /// Of the calls about campaigns: each is named here, and nobody may make one that is not.
    const fn roles_in_campaigns(self) -> &'static [Role] {
        match self {
            Self::TakeWork | Self::ReportWork => &[Role::Rotator],
            Self::StartCampaign | Self::PauseCampaign => &[Role::AmiAdmin],
            Self::ResumeCampaign | Self::CancelCampaign => &[Role::AmiAdmin],
            Self::GetCampaign
            | Self::ListCampaigns
            | Self::ListCampaignMembers
            | Self::WatchCampaign
            | Self::GetMeterRotation => &[Role::AmiAdmin, Role::Rotator, Role::Auditor],
            _ => &[],
        }
    }

    /// Of the calls about broadcast groups.
    const fn roles_in_groups(self) -> &'static [Role] {
        match self {
            Self::EncryptBroadcast => &[Role::Transmitter],
            Self::RotateGroupKey | Self::FinishGroupRotation => &[Role::AmiAdmin, Role::Rotator],
            Self::GetGroup | Self::ListGroups => &[Role::AmiAdmin, Role::Rotator, Role::Auditor],
            _ => &[Role::AmiAdmin],
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
