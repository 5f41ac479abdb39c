//! Which calls only the site that writes can carry out. A site that does not says so before anybody is asked to approve
//! one: an approval is of the site that carries the call out.

use kms_proto::v1::{Decision, EnrolPeerRequest, ResolveDivergenceRequest};
use prost::Message as _;

use super::verb::{Verb, of_campaigns, of_groups};
use kms_core::enrolment::request::SignedRequest;

impl Verb {
    /// Whether only a site that writes can carry this request out. No `_` arm: whoever adds a call decides.
    pub(crate) fn takes_a_writer(self, message: &[u8]) -> bool {
        match self {
            // A second token of a site joins at that site, whether it writes or not.
            Self::EnrolPeer => !EnrolPeerRequest::decode(message).is_ok_and(|asked| {
                SignedRequest::decode(&asked.request).is_ok_and(|signed| signed.request.same_site)
            }),
            // A record that nobody can read is discarded where it lies.
            Self::ResolveDivergence => ResolveDivergenceRequest::decode(message)
                .is_ok_and(|asked| asked.decision() == Decision::Accept),
            verb => verb.is_of_the_writer(),
        }
    }

    /// Of the calls about campaigns: any site shows them, as they are stored.
    const fn shows_campaigns(self) -> bool {
        matches!(
            self,
            Self::GetCampaign
                | Self::ListCampaigns
                | Self::ListCampaignMembers
                | Self::WatchCampaign
                | Self::GetMeterRotation
        )
    }

    /// Whether only a site that writes can carry the call out, whatever its request says.
    pub(crate) const fn is_of_the_writer(self) -> bool {
        match self {
            Self::CreateMeter
            | Self::DeleteMeter
            | Self::BuryDamagedMeter
            | Self::ReadmitMeter
            | Self::SetPolicy
            | Self::DeclareCounter
            | Self::ImportMeters
            | Self::Encrypt
            | Self::EncryptBatch
            | Self::StageKey
            | Self::NextTransfer
            | Self::ConfirmKey
            | Self::RollBackKey
            | Self::ReviveKey
            | Self::CompromiseKey
            | Self::DestroyKey
            | Self::RestoreKey
            | Self::SetLegalHold
            | Self::BeginHls
            | Self::AnswerHlsChallenge
            | Self::VerifyHlsAnswer
            | Self::Protect
            | Self::ForgetRevocationList
            | Self::RotateBlockSecrets => true,
            of_campaigns!() => !self.shows_campaigns(),
            of_groups!() => !matches!(self, Self::GetGroup | Self::ListGroups),
            Self::EnrolPeer | Self::ResolveDivergence => false,
            // Each site has site KEKs of its own.
            Self::RotateSiteKek | Self::DestroySiteKek => false,
            // A role changes where it is: who may not end an epoch hears that from the site itself.
            Self::Promote | Self::Demote | Self::AdmitEpoch => false,
            Self::Decrypt | Self::DecryptBatch | Self::DecryptStream | Self::Triage => false,
            Self::VerifyMic | Self::VerifyMicBatch | Self::VerifyMicStream => false,
            Self::GetMeter
            | Self::ListMeters
            | Self::GetImportKey
            | Self::ListBlockHeads
            | Self::FetchBlocks
            | Self::FollowChanges
            | Self::ProveBlocks
            | Self::ExchangeMarks
            | Self::ListRoleRecords
            | Self::ListFloors
            | Self::ReportDivergence
            | Self::HandEvidence
            | Self::ShowHeadTables
            | Self::FetchAuditEvents
            | Self::GetStatus
            | Self::SyncNow
            | Self::ListDivergence
            | Self::GetReadiness
            | Self::GetBlockSecretRotation
            | Self::GetSiteKekRotation
            | Self::PlanPromotion
            | Self::ListEvents
            | Self::FollowEvents
            | Self::VerifyChain
            | Self::ListApprovals
            | Self::ApproveCall
            | Self::AskAhead
            | Self::Health
            | Self::Reflection => false,
        }
    }
}
