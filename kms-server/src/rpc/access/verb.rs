//! Every call there is, by name. A call that is new in the .proto files does not compile until it has a
//! line here, its roles in `policy.rs`, and its row in the matrix of the tests.

use std::fmt;

use kms_proto::Method;

macro_rules! verbs {
    ($($(#[$doc:meta])* $verb:ident = $method:ident;)*) => {
        /// One call of the gRPC package, or one of the two standard services. A policy grants verbs.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Verb {
            $($(#[$doc])* $verb,)*
            /// All of `grpc.health.v1.Health`: open to every known caller.
            Health,
            /// All of `grpc.reflection.v1.ServerReflection`, and of `v1alpha`: open to every known caller.
            Reflection,
        }

        impl Verb {
            /// The verbs that a policy grants, in the order of the .proto files.
            pub const GRANTABLE: &'static [Self] = &[$(Self::$verb,)*];

            /// Every verb there is, at its number.
            pub const ALL: &'static [Self] = &[$(Self::$verb,)* Self::Health, Self::Reflection];

            /// As a policy writes it: `Ciphering/Decrypt`.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$verb => Method::$method.name(),)*
                    Self::Health => "Health",
                    Self::Reflection => "Reflection",
                }
            }

            /// The verb of a call. No `_` arm: a call of the .proto files that has no line below is
            /// an error of the compiler, which names it.
            pub const fn of_method(method: Method) -> Self {
                match method {
                    $(Method::$method => Self::$verb,)*
                }
            }

            /// The call of a verb; `None` for the standard services.
            pub const fn method(self) -> Option<Method> {
                match self {
                    $(Self::$verb => Some(Method::$method),)*
                    Self::Health | Self::Reflection => None,
                }
            }
        }
    };
}

verbs! {
    /// Open one APDU.
    Decrypt = CipheringDecrypt;
    /// Open many.
    DecryptBatch = CipheringDecryptBatch;
    /// Open batch after batch.
    DecryptStream = CipheringDecryptStream;
    /// Check the MIC of one APDU.
    VerifyMic = CipheringVerifyMic;
    /// Check many MICs.
    VerifyMicBatch = CipheringVerifyMicBatch;
    /// Check MICs batch after batch.
    VerifyMicStream = CipheringVerifyMicStream;
    /// Protect one APDU.
    Encrypt = CipheringEncrypt;
    /// Protect many.
    EncryptBatch = CipheringEncryptBatch;
    /// Find out why frames of a meter don't open.
    Triage = CipheringTriage;
    /// Begin an association with HLS authentication.
    BeginHls = CipheringBeginHls;
    /// Answer a meter's HLS challenge.
    AnswerHlsChallenge = CipheringAnswerHlsChallenge;
    /// Verify a meter's HLS answer.
    VerifyHlsAnswer = CipheringVerifyHlsAnswer;
    /// Make a meter known.
    CreateMeter = MetersCreateMeter;
    /// Look at a meter.
    GetMeter = MetersGetMeter;
    /// Look at many meters.
    ListMeters = MetersListMeters;
    /// Forget a meter.
    DeleteMeter = MetersDeleteMeter;
    /// Put a tombstone in the place of a damaged record.
    BuryDamagedMeter = MetersBuryDamagedMeter;
    /// Let a deleted meter come back.
    ReadmitMeter = MetersReadmitMeter;
    /// Replace what is accepted from a meter.
    SetPolicy = MetersSetPolicy;
    /// Say which counter a key was used with last.
    DeclareCounter = MetersDeclareCounter;
    /// Bring in meters and keys.
    ImportMeters = MetersImportMeters;
    /// Fetch the key that import files are sealed to.
    GetImportKey = MetersGetImportKey;
    /// Have a key made for a meter.
    StageKey = RotationStageKey;
    /// Protect the transfer of a staged key.
    NextTransfer = RotationNextTransfer;
    /// Say what the meter answered.
    ConfirmKey = RotationConfirmKey;
    /// Prefer another version of a key.
    RollBackKey = RotationRollBackKey;
    /// Have a key that was given up go on.
    ReviveKey = RotationReviveKey;
    /// Say that a key is known to others.
    CompromiseKey = RotationCompromiseKey;
    /// Have a version of a key destroyed.
    DestroyKey = RotationDestroyKey;
    /// Take that back.
    RestoreKey = RotationRestoreKey;
    /// Put a meter under a legal hold, or lift it.
    SetLegalHold = RotationSetLegalHold;
    /// Begin a campaign.
    StartCampaign = RotationStartCampaign;
    /// Look at a campaign.
    GetCampaign = RotationGetCampaign;
    /// Look at all campaigns.
    ListCampaigns = RotationListCampaigns;
    /// Look at a campaign's members.
    ListCampaignMembers = RotationListCampaignMembers;
    /// Have no more meters begun.
    PauseCampaign = RotationPauseCampaign;
    /// Have a campaign go on.
    ResumeCampaign = RotationResumeCampaign;
    /// End a campaign.
    CancelCampaign = RotationCancelCampaign;
    /// Follow a campaign's progress.
    WatchCampaign = RotationWatchCampaign;
    /// Get meters to change, under leases.
    TakeWork = RotationTakeWork;
    /// Say what came of that.
    ReportWork = RotationReportWork;
    /// Look at a meter whose keys are being changed.
    GetMeterRotation = RotationGetMeterRotation;
    /// Make a broadcast group.
    CreateGroup = GroupsCreateGroup;
    /// Look at a group.
    GetGroup = GroupsGetGroup;
    /// Look at all groups.
    ListGroups = GroupsListGroups;
    /// Take meters into a group.
    AddMembers = GroupsAddMembers;
    /// Take meters out of it.
    RemoveMembers = GroupsRemoveMembers;
    /// Give a group up.
    DeleteGroup = GroupsDeleteGroup;
    /// Have a key made for a group.
    RotateGroupKey = GroupsRotateGroupKey;
    /// End the rotation of a group's key.
    FinishGroupRotation = GroupsFinishGroupRotation;
    /// Protect a broadcast.
    EncryptBroadcast = GroupsEncryptBroadcast;
    /// Protect what another node was asked to.
    Protect = NodesProtect;
    /// Ask where blocks stand.
    ListBlockHeads = ReplicationListBlockHeads;
    /// Fetch whole blocks.
    FetchBlocks = ReplicationFetchBlocks;
    /// Follow the changes of blocks.
    FollowChanges = ReplicationFollowChanges;
    /// Have blocks proved.
    ProveBlocks = ReplicationProveBlocks;
    /// Remember marks of counters.
    ExchangeMarks = ReplicationExchangeMarks;
    /// Fetch signed promotions and demotions.
    ListRoleRecords = ReplicationListRoleRecords;
    /// Receive floors that a site has stored.
    ListFloors = ReplicationListFloors;
    /// Tell what one site wrote alone.
    ReportDivergence = ReplicationReportDivergence;
    /// Hand over what meters have shown.
    HandEvidence = ReplicationHandEvidence;
    /// Show signed head tables.
    ShowHeadTables = ReplicationShowHeadTables;
    /// Copies of the site's audit chains.
    FetchAuditEvents = ReplicationFetchAuditEvents;
    /// Look at the site.
    GetStatus = SiteGetStatus;
    /// Make the site the one that writes.
    Promote = SitePromote;
    /// End the site's epoch.
    Demote = SiteDemote;
    /// Bring the other site in step and have it proved.
    SyncNow = SiteSyncNow;
    /// Let another site join.
    EnrolPeer = SiteEnrolPeer;
    /// Look at what one site wrote alone.
    ListDivergence = SiteListDivergence;
    /// Decide about what one site wrote alone.
    ResolveDivergence = SiteResolveDivergence;
    /// Take in an epoch that is more than one step ahead.
    AdmitEpoch = SiteAdmitEpoch;
    /// Have the domain forget how new a revocation list was.
    ForgetRevocationList = SiteForgetRevocationList;
    /// Rotate the secrets of all blocks.
    RotateBlockSecrets = SiteRotateBlockSecrets;
    /// Look at how far that is.
    GetBlockSecretRotation = SiteGetBlockSecretRotation;
    /// Replace the site KEK.
    RotateSiteKek = SiteRotateSiteKek;
    /// Look at how far that is.
    GetSiteKekRotation = SiteGetSiteKekRotation;
    /// Destroy the former one.
    DestroySiteKek = SiteDestroySiteKek;
    /// Look at what the site that follows has proved.
    GetReadiness = SiteGetReadiness;
    /// Look at what a promotion would cost.
    PlanPromotion = SitePlanPromotion;
    /// Read the audit log.
    ListEvents = AuditListEvents;
    /// Read the audit log as it grows.
    FollowEvents = AuditFollowEvents;
    /// Check the audit log.
    VerifyChain = AuditVerifyChain;
    /// Look at what waits for a second person.
    ListApprovals = ApprovalsListApprovals;
    /// Be the second person.
    ApproveCall = ApprovalsApproveCall;
    /// Ask for the second person of a call that is made later.
    AskAhead = ApprovalsAskAhead;
}

/// The calls about broadcast groups, as a pattern.
macro_rules! of_groups {
    () => {
        $crate::rpc::access::verb::Verb::CreateGroup
            | $crate::rpc::access::verb::Verb::GetGroup
            | $crate::rpc::access::verb::Verb::ListGroups
            | $crate::rpc::access::verb::Verb::AddMembers
            | $crate::rpc::access::verb::Verb::RemoveMembers
            | $crate::rpc::access::verb::Verb::DeleteGroup
            | $crate::rpc::access::verb::Verb::RotateGroupKey
            | $crate::rpc::access::verb::Verb::FinishGroupRotation
            | $crate::rpc::access::verb::Verb::EncryptBroadcast
    };
}
pub(crate) use of_groups;

/// The calls about campaigns, as a pattern.
macro_rules! of_campaigns {
    () => {
        $crate::rpc::access::verb::Verb::StartCampaign
            | $crate::rpc::access::verb::Verb::GetCampaign
            | $crate::rpc::access::verb::Verb::ListCampaigns
            | $crate::rpc::access::verb::Verb::ListCampaignMembers
            | $crate::rpc::access::verb::Verb::PauseCampaign
            | $crate::rpc::access::verb::Verb::ResumeCampaign
            | $crate::rpc::access::verb::Verb::CancelCampaign
            | $crate::rpc::access::verb::Verb::WatchCampaign
            | $crate::rpc::access::verb::Verb::TakeWork
            | $crate::rpc::access::verb::Verb::ReportWork
            | $crate::rpc::access::verb::Verb::GetMeterRotation
    };
}
pub(crate) use of_campaigns;

impl Verb {
    /// The verb that an HTTP path calls.
    pub fn of_path(path: &str) -> Option<Self> {
        if path.starts_with("/grpc.health.v1.Health/") {
            return Some(Self::Health);
        }
        if path.starts_with("/grpc.reflection.v1.ServerReflection/")
            || path.starts_with("/grpc.reflection.v1alpha.ServerReflection/")
        {
            return Some(Self::Reflection);
        }
        Method::of_path(path).map(Self::of_method)
    }

    /// Whether messages follow each other, one way or both. Of the standard services, some calls do.
    pub fn is_stream(self) -> bool {
        self.method().is_none_or(Method::is_stream)
    }

    /// Whether it is a stream that goes on until one of its ends goes away.
    pub const fn is_endless(self) -> bool {
        matches!(self, Self::FollowChanges | Self::FollowEvents)
    }

    /// The grantable verb with this name.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::GRANTABLE.iter().copied().find(|verb| verb.name() == name)
    }

    /// Whether a line of the log is due for each call: those that change or show more than what meters
    /// have sent. There are too many of the others, and the peer's are about what is wrapped: what it takes
    /// over is in its own log.
    pub fn is_privileged(self) -> bool {
        let is_traffic = self.name().starts_with("Ciphering/") && self != Self::Triage;
        !self.is_open() && !self.is_of_peers() && !is_traffic
    }

    /// Whether only another site, or another node of this one, makes this call.
    pub fn is_of_peers(self) -> bool {
        self.name().starts_with("Replication/") || self.name().starts_with("Nodes/")
    }

    /// Whether a policy may ask for two people: single calls that people make, and imports. Any other
    /// stream has no one request to approve, machines have no second person, and approvals can't wait
    /// for themselves.
    pub fn may_need_two_people(self) -> bool {
        let is_approval = matches!(self, Self::ListApprovals | Self::ApproveCall | Self::AskAhead);
        let is_stream = self.method().is_some_and(Method::is_stream) && self != Self::ImportMeters;
        self.is_privileged() && !is_stream && !is_approval
    }

    /// Whether it takes two people whatever the policy says: what takes back that something was given up, or revoked, and
    /// what believes the other site further than one step.
    pub const fn always_needs_two_people(self) -> bool {
        matches!(
            self,
            Self::ReadmitMeter | Self::ReviveKey | Self::AdmitEpoch | Self::ForgetRevocationList
        )
    }

    /// Whether every known caller may use it, whatever its roles.
    pub const fn is_open(self) -> bool {
        matches!(self, Self::Health | Self::Reflection)
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {

    use super::*;

    #[test]
    fn every_verb_has_its_own_name() {
        for verb in Verb::GRANTABLE {
            assert_eq!(Verb::of_name(verb.name()), Some(*verb));
            assert_eq!(Verb::of_path(&format!("/ami.kms.v1.{verb}")), Some(*verb));
            assert!(!verb.is_open());
            let of_machines = ["Ciphering/", "Nodes/", "Replication/"];
            let is_of_machines = of_machines.iter().any(|service| verb.name().starts_with(service));
            // A person asks why frames don't open, and hears a little of what is not authenticated.
            assert_eq!(verb.is_privileged(), !is_of_machines || *verb == Verb::Triage);
        }
    }

    #[test]
    fn a_path_that_only_looks_like_a_verb_is_none() {
        for path in [
            "",
            "/",
            "/ami.kms.v1.Ciphering/decrypt",
            "/ami.kms.v1.Ciphering/Decrypt/",
            "/ami.kms.v1.Ciphering/Decrypt?x",
            "ami.kms.v1.Ciphering/Decrypt",
            "/grpc.health.v1.Health",
            "/grpc.health.v1.HealthX/Check",
        ] {
            assert_eq!(Verb::of_path(path), None, "{path}");
        }
    }
}
