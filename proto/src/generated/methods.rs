/// Every call of the package.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Method {
/// `Audit/ListEvents`.
AuditListEvents,
/// `Audit/FollowEvents`.
AuditFollowEvents,
/// `Audit/VerifyChain`.
AuditVerifyChain,
/// `Ciphering/Decrypt`.
CipheringDecrypt,
/// `Ciphering/DecryptBatch`.
CipheringDecryptBatch,
/// `Ciphering/DecryptStream`.
CipheringDecryptStream,
/// `Ciphering/VerifyMic`.
CipheringVerifyMic,
/// `Ciphering/VerifyMicBatch`.
CipheringVerifyMicBatch,
/// `Ciphering/VerifyMicStream`.
CipheringVerifyMicStream,
/// `Ciphering/Encrypt`.
CipheringEncrypt,
/// `Ciphering/EncryptBatch`.
CipheringEncryptBatch,
/// `Ciphering/Triage`.
CipheringTriage,
/// `Ciphering/BeginHls`.
CipheringBeginHls,
/// `Ciphering/AnswerHlsChallenge`.
CipheringAnswerHlsChallenge,
/// `Ciphering/VerifyHlsAnswer`.
CipheringVerifyHlsAnswer,
/// `Meters/CreateMeter`.
MetersCreateMeter,
/// `Meters/GetMeter`.
MetersGetMeter,
/// `Meters/ListMeters`.
MetersListMeters,
/// `Meters/DeleteMeter`.
MetersDeleteMeter,
/// `Meters/BuryDamagedMeter`.
MetersBuryDamagedMeter,
/// `Meters/ReadmitMeter`.
MetersReadmitMeter,
/// `Meters/SetPolicy`.
MetersSetPolicy,
/// `Meters/DeclareCounter`.
MetersDeclareCounter,
/// `Meters/ImportMeters`.
MetersImportMeters,
/// `Meters/GetImportKey`.
MetersGetImportKey,
/// `Nodes/Protect`.
NodesProtect,
/// `Replication/ListBlockHeads`.
ReplicationListBlockHeads,
/// `Replication/FetchBlocks`.
ReplicationFetchBlocks,
/// `Replication/FollowChanges`.
ReplicationFollowChanges,
/// `Replication/ProveBlocks`.
ReplicationProveBlocks,
/// `Replication/ExchangeMarks`.
ReplicationExchangeMarks,
/// `Replication/ListRoleRecords`.
ReplicationListRoleRecords,
/// `Replication/ListFloors`.
ReplicationListFloors,
/// `Replication/ReportDivergence`.
ReplicationReportDivergence,
/// `Replication/HandEvidence`.
ReplicationHandEvidence,
/// `Replication/ShowHeadTables`.
ReplicationShowHeadTables,
/// `Replication/FetchAuditEvents`.
ReplicationFetchAuditEvents,
/// `Rotation/StageKey`.
RotationStageKey,
/// `Rotation/NextTransfer`.
RotationNextTransfer,
/// `Rotation/ConfirmKey`.
RotationConfirmKey,
/// `Rotation/RollBackKey`.
RotationRollBackKey,
/// `Rotation/ReviveKey`.
RotationReviveKey,
/// `Rotation/CompromiseKey`.
RotationCompromiseKey,
/// `Rotation/DestroyKey`.
RotationDestroyKey,
/// `Rotation/RestoreKey`.
RotationRestoreKey,
/// `Rotation/SetLegalHold`.
RotationSetLegalHold,
/// `Rotation/StartCampaign`.
RotationStartCampaign,
/// `Rotation/GetCampaign`.
RotationGetCampaign,
/// `Rotation/ListCampaigns`.
RotationListCampaigns,
/// `Rotation/ListCampaignMembers`.
RotationListCampaignMembers,
/// `Rotation/PauseCampaign`.
RotationPauseCampaign,
/// `Rotation/ResumeCampaign`.
RotationResumeCampaign,
/// `Rotation/CancelCampaign`.
RotationCancelCampaign,
/// `Rotation/WatchCampaign`.
RotationWatchCampaign,
/// `Rotation/TakeWork`.
RotationTakeWork,
/// `Rotation/ReportWork`.
RotationReportWork,
/// `Rotation/GetMeterRotation`.
RotationGetMeterRotation,
/// `Groups/CreateGroup`.
GroupsCreateGroup,
/// `Groups/GetGroup`.
GroupsGetGroup,
/// `Groups/ListGroups`.
GroupsListGroups,
/// `Groups/AddMembers`.
GroupsAddMembers,
/// `Groups/RemoveMembers`.
GroupsRemoveMembers,
/// `Groups/DeleteGroup`.
GroupsDeleteGroup,
/// `Groups/RotateGroupKey`.
GroupsRotateGroupKey,
/// `Groups/FinishGroupRotation`.
GroupsFinishGroupRotation,
/// `Groups/EncryptBroadcast`.
GroupsEncryptBroadcast,
/// `Site/GetStatus`.
SiteGetStatus,
/// `Site/Promote`.
SitePromote,
/// `Site/Demote`.
SiteDemote,
/// `Site/EnrolPeer`.
SiteEnrolPeer,
/// `Site/SyncNow`.
SiteSyncNow,
/// `Site/ListDivergence`.
SiteListDivergence,
/// `Site/ResolveDivergence`.
SiteResolveDivergence,
/// `Site/AdmitEpoch`.
SiteAdmitEpoch,
/// `Site/ForgetRevocationList`.
SiteForgetRevocationList,
/// `Site/RotateBlockSecrets`.
SiteRotateBlockSecrets,
/// `Site/GetBlockSecretRotation`.
SiteGetBlockSecretRotation,
/// `Site/RotateSiteKek`.
SiteRotateSiteKek,
/// `Site/GetSiteKekRotation`.
SiteGetSiteKekRotation,
/// `Site/DestroySiteKek`.
SiteDestroySiteKek,
/// `Site/GetReadiness`.
SiteGetReadiness,
/// `Site/PlanPromotion`.
SitePlanPromotion,
/// `Approvals/ListApprovals`.
ApprovalsListApprovals,
/// `Approvals/ApproveCall`.
ApprovalsApproveCall,
/// `Approvals/AskAhead`.
ApprovalsAskAhead,
}
impl Method {
/// In the order of the .proto files.
pub const ALL: &'static [Self] = &[
Self::AuditListEvents,
Self::AuditFollowEvents,
Self::AuditVerifyChain,
Self::CipheringDecrypt,
Self::CipheringDecryptBatch,
Self::CipheringDecryptStream,
Self::CipheringVerifyMic,
Self::CipheringVerifyMicBatch,
Self::CipheringVerifyMicStream,
Self::CipheringEncrypt,
Self::CipheringEncryptBatch,
Self::CipheringTriage,
Self::CipheringBeginHls,
Self::CipheringAnswerHlsChallenge,
Self::CipheringVerifyHlsAnswer,
Self::MetersCreateMeter,
Self::MetersGetMeter,
Self::MetersListMeters,
Self::MetersDeleteMeter,
Self::MetersBuryDamagedMeter,
Self::MetersReadmitMeter,
Self::MetersSetPolicy,
Self::MetersDeclareCounter,
Self::MetersImportMeters,
Self::MetersGetImportKey,
Self::NodesProtect,
Self::ReplicationListBlockHeads,
Self::ReplicationFetchBlocks,
Self::ReplicationFollowChanges,
Self::ReplicationProveBlocks,
Self::ReplicationExchangeMarks,
Self::ReplicationListRoleRecords,
Self::ReplicationListFloors,
Self::ReplicationReportDivergence,
Self::ReplicationHandEvidence,
Self::ReplicationShowHeadTables,
Self::ReplicationFetchAuditEvents,
Self::RotationStageKey,
Self::RotationNextTransfer,
Self::RotationConfirmKey,
Self::RotationRollBackKey,
Self::RotationReviveKey,
Self::RotationCompromiseKey,
Self::RotationDestroyKey,
Self::RotationRestoreKey,
Self::RotationSetLegalHold,
Self::RotationStartCampaign,
Self::RotationGetCampaign,
Self::RotationListCampaigns,
Self::RotationListCampaignMembers,
Self::RotationPauseCampaign,
Self::RotationResumeCampaign,
Self::RotationCancelCampaign,
Self::RotationWatchCampaign,
Self::RotationTakeWork,
Self::RotationReportWork,
Self::RotationGetMeterRotation,
Self::GroupsCreateGroup,
Self::GroupsGetGroup,
Self::GroupsListGroups,
Self::GroupsAddMembers,
Self::GroupsRemoveMembers,
Self::GroupsDeleteGroup,
Self::GroupsRotateGroupKey,
Self::GroupsFinishGroupRotation,
Self::GroupsEncryptBroadcast,
Self::SiteGetStatus,
Self::SitePromote,
Self::SiteDemote,
Self::SiteEnrolPeer,
Self::SiteSyncNow,
Self::SiteListDivergence,
Self::SiteResolveDivergence,
Self::SiteAdmitEpoch,
Self::SiteForgetRevocationList,
Self::SiteRotateBlockSecrets,
Self::SiteGetBlockSecretRotation,
Self::SiteRotateSiteKek,
Self::SiteGetSiteKekRotation,
Self::SiteDestroySiteKek,
Self::SiteGetReadiness,
Self::SitePlanPromotion,
Self::ApprovalsListApprovals,
Self::ApprovalsApproveCall,
Self::ApprovalsAskAhead,
];
/// Service and call, as in `Ciphering/Decrypt`.
pub const fn name(self) -> &'static str {
match self {
Self::AuditListEvents => "Audit/ListEvents",
Self::AuditFollowEvents => "Audit/FollowEvents",
Self::AuditVerifyChain => "Audit/VerifyChain",
Self::CipheringDecrypt => "Ciphering/Decrypt",
Self::CipheringDecryptBatch => "Ciphering/DecryptBatch",
Self::CipheringDecryptStream => "Ciphering/DecryptStream",
Self::CipheringVerifyMic => "Ciphering/VerifyMic",
Self::CipheringVerifyMicBatch => "Ciphering/VerifyMicBatch",
Self::CipheringVerifyMicStream => "Ciphering/VerifyMicStream",
Self::CipheringEncrypt => "Ciphering/Encrypt",
Self::CipheringEncryptBatch => "Ciphering/EncryptBatch",
Self::CipheringTriage => "Ciphering/Triage",
Self::CipheringBeginHls => "Ciphering/BeginHls",
Self::CipheringAnswerHlsChallenge => "Ciphering/AnswerHlsChallenge",
Self::CipheringVerifyHlsAnswer => "Ciphering/VerifyHlsAnswer",
Self::MetersCreateMeter => "Meters/CreateMeter",
Self::MetersGetMeter => "Meters/GetMeter",
Self::MetersListMeters => "Meters/ListMeters",
Self::MetersDeleteMeter => "Meters/DeleteMeter",
Self::MetersBuryDamagedMeter => "Meters/BuryDamagedMeter",
Self::MetersReadmitMeter => "Meters/ReadmitMeter",
Self::MetersSetPolicy => "Meters/SetPolicy",
Self::MetersDeclareCounter => "Meters/DeclareCounter",
Self::MetersImportMeters => "Meters/ImportMeters",
Self::MetersGetImportKey => "Meters/GetImportKey",
Self::NodesProtect => "Nodes/Protect",
Self::ReplicationListBlockHeads => "Replication/ListBlockHeads",
Self::ReplicationFetchBlocks => "Replication/FetchBlocks",
Self::ReplicationFollowChanges => "Replication/FollowChanges",
Self::ReplicationProveBlocks => "Replication/ProveBlocks",
Self::ReplicationExchangeMarks => "Replication/ExchangeMarks",
Self::ReplicationListRoleRecords => "Replication/ListRoleRecords",
Self::ReplicationListFloors => "Replication/ListFloors",
Self::ReplicationReportDivergence => "Replication/ReportDivergence",
Self::ReplicationHandEvidence => "Replication/HandEvidence",
Self::ReplicationShowHeadTables => "Replication/ShowHeadTables",
Self::ReplicationFetchAuditEvents => "Replication/FetchAuditEvents",
Self::RotationStageKey => "Rotation/StageKey",
Self::RotationNextTransfer => "Rotation/NextTransfer",
Self::RotationConfirmKey => "Rotation/ConfirmKey",
Self::RotationRollBackKey => "Rotation/RollBackKey",
Self::RotationReviveKey => "Rotation/ReviveKey",
Self::RotationCompromiseKey => "Rotation/CompromiseKey",
Self::RotationDestroyKey => "Rotation/DestroyKey",
Self::RotationRestoreKey => "Rotation/RestoreKey",
Self::RotationSetLegalHold => "Rotation/SetLegalHold",
Self::RotationStartCampaign => "Rotation/StartCampaign",
Self::RotationGetCampaign => "Rotation/GetCampaign",
Self::RotationListCampaigns => "Rotation/ListCampaigns",
Self::RotationListCampaignMembers => "Rotation/ListCampaignMembers",
Self::RotationPauseCampaign => "Rotation/PauseCampaign",
Self::RotationResumeCampaign => "Rotation/ResumeCampaign",
Self::RotationCancelCampaign => "Rotation/CancelCampaign",
Self::RotationWatchCampaign => "Rotation/WatchCampaign",
Self::RotationTakeWork => "Rotation/TakeWork",
Self::RotationReportWork => "Rotation/ReportWork",
Self::RotationGetMeterRotation => "Rotation/GetMeterRotation",
Self::GroupsCreateGroup => "Groups/CreateGroup",
Self::GroupsGetGroup => "Groups/GetGroup",
Self::GroupsListGroups => "Groups/ListGroups",
Self::GroupsAddMembers => "Groups/AddMembers",
Self::GroupsRemoveMembers => "Groups/RemoveMembers",
Self::GroupsDeleteGroup => "Groups/DeleteGroup",
Self::GroupsRotateGroupKey => "Groups/RotateGroupKey",
Self::GroupsFinishGroupRotation => "Groups/FinishGroupRotation",
Self::GroupsEncryptBroadcast => "Groups/EncryptBroadcast",
Self::SiteGetStatus => "Site/GetStatus",
Self::SitePromote => "Site/Promote",
Self::SiteDemote => "Site/Demote",
Self::SiteEnrolPeer => "Site/EnrolPeer",
Self::SiteSyncNow => "Site/SyncNow",
Self::SiteListDivergence => "Site/ListDivergence",
Self::SiteResolveDivergence => "Site/ResolveDivergence",
Self::SiteAdmitEpoch => "Site/AdmitEpoch",
Self::SiteForgetRevocationList => "Site/ForgetRevocationList",
Self::SiteRotateBlockSecrets => "Site/RotateBlockSecrets",
Self::SiteGetBlockSecretRotation => "Site/GetBlockSecretRotation",
Self::SiteRotateSiteKek => "Site/RotateSiteKek",
Self::SiteGetSiteKekRotation => "Site/GetSiteKekRotation",
Self::SiteDestroySiteKek => "Site/DestroySiteKek",
Self::SiteGetReadiness => "Site/GetReadiness",
Self::SitePlanPromotion => "Site/PlanPromotion",
Self::ApprovalsListApprovals => "Approvals/ListApprovals",
Self::ApprovalsApproveCall => "Approvals/ApproveCall",
Self::ApprovalsAskAhead => "Approvals/AskAhead",
}
}
/// The call with this HTTP path.
pub fn of_path(path: &str) -> Option<Self> {
match path {
"/ami.kms.v1.Audit/ListEvents" => Some(Self::AuditListEvents),
"/ami.kms.v1.Audit/FollowEvents" => Some(Self::AuditFollowEvents),
"/ami.kms.v1.Audit/VerifyChain" => Some(Self::AuditVerifyChain),
"/ami.kms.v1.Ciphering/Decrypt" => Some(Self::CipheringDecrypt),
"/ami.kms.v1.Ciphering/DecryptBatch" => Some(Self::CipheringDecryptBatch),
"/ami.kms.v1.Ciphering/DecryptStream" => Some(Self::CipheringDecryptStream),
"/ami.kms.v1.Ciphering/VerifyMic" => Some(Self::CipheringVerifyMic),
"/ami.kms.v1.Ciphering/VerifyMicBatch" => Some(Self::CipheringVerifyMicBatch),
"/ami.kms.v1.Ciphering/VerifyMicStream" => Some(Self::CipheringVerifyMicStream),
"/ami.kms.v1.Ciphering/Encrypt" => Some(Self::CipheringEncrypt),
"/ami.kms.v1.Ciphering/EncryptBatch" => Some(Self::CipheringEncryptBatch),
"/ami.kms.v1.Ciphering/Triage" => Some(Self::CipheringTriage),
"/ami.kms.v1.Ciphering/BeginHls" => Some(Self::CipheringBeginHls),
"/ami.kms.v1.Ciphering/AnswerHlsChallenge" => Some(Self::CipheringAnswerHlsChallenge),
"/ami.kms.v1.Ciphering/VerifyHlsAnswer" => Some(Self::CipheringVerifyHlsAnswer),
"/ami.kms.v1.Meters/CreateMeter" => Some(Self::MetersCreateMeter),
"/ami.kms.v1.Meters/GetMeter" => Some(Self::MetersGetMeter),
"/ami.kms.v1.Meters/ListMeters" => Some(Self::MetersListMeters),
"/ami.kms.v1.Meters/DeleteMeter" => Some(Self::MetersDeleteMeter),
"/ami.kms.v1.Meters/BuryDamagedMeter" => Some(Self::MetersBuryDamagedMeter),
"/ami.kms.v1.Meters/ReadmitMeter" => Some(Self::MetersReadmitMeter),
"/ami.kms.v1.Meters/SetPolicy" => Some(Self::MetersSetPolicy),
"/ami.kms.v1.Meters/DeclareCounter" => Some(Self::MetersDeclareCounter),
"/ami.kms.v1.Meters/ImportMeters" => Some(Self::MetersImportMeters),
"/ami.kms.v1.Meters/GetImportKey" => Some(Self::MetersGetImportKey),
"/ami.kms.v1.Nodes/Protect" => Some(Self::NodesProtect),
"/ami.kms.v1.Replication/ListBlockHeads" => Some(Self::ReplicationListBlockHeads),
"/ami.kms.v1.Replication/FetchBlocks" => Some(Self::ReplicationFetchBlocks),
"/ami.kms.v1.Replication/FollowChanges" => Some(Self::ReplicationFollowChanges),
"/ami.kms.v1.Replication/ProveBlocks" => Some(Self::ReplicationProveBlocks),
"/ami.kms.v1.Replication/ExchangeMarks" => Some(Self::ReplicationExchangeMarks),
"/ami.kms.v1.Replication/ListRoleRecords" => Some(Self::ReplicationListRoleRecords),
"/ami.kms.v1.Replication/ListFloors" => Some(Self::ReplicationListFloors),
"/ami.kms.v1.Replication/ReportDivergence" => Some(Self::ReplicationReportDivergence),
"/ami.kms.v1.Replication/HandEvidence" => Some(Self::ReplicationHandEvidence),
"/ami.kms.v1.Replication/ShowHeadTables" => Some(Self::ReplicationShowHeadTables),
"/ami.kms.v1.Replication/FetchAuditEvents" => Some(Self::ReplicationFetchAuditEvents),
"/ami.kms.v1.Rotation/StageKey" => Some(Self::RotationStageKey),
"/ami.kms.v1.Rotation/NextTransfer" => Some(Self::RotationNextTransfer),
"/ami.kms.v1.Rotation/ConfirmKey" => Some(Self::RotationConfirmKey),
"/ami.kms.v1.Rotation/RollBackKey" => Some(Self::RotationRollBackKey),
"/ami.kms.v1.Rotation/ReviveKey" => Some(Self::RotationReviveKey),
"/ami.kms.v1.Rotation/CompromiseKey" => Some(Self::RotationCompromiseKey),
"/ami.kms.v1.Rotation/DestroyKey" => Some(Self::RotationDestroyKey),
"/ami.kms.v1.Rotation/RestoreKey" => Some(Self::RotationRestoreKey),
"/ami.kms.v1.Rotation/SetLegalHold" => Some(Self::RotationSetLegalHold),
"/ami.kms.v1.Rotation/StartCampaign" => Some(Self::RotationStartCampaign),
"/ami.kms.v1.Rotation/GetCampaign" => Some(Self::RotationGetCampaign),
"/ami.kms.v1.Rotation/ListCampaigns" => Some(Self::RotationListCampaigns),
"/ami.kms.v1.Rotation/ListCampaignMembers" => Some(Self::RotationListCampaignMembers),
"/ami.kms.v1.Rotation/PauseCampaign" => Some(Self::RotationPauseCampaign),
"/ami.kms.v1.Rotation/ResumeCampaign" => Some(Self::RotationResumeCampaign),
"/ami.kms.v1.Rotation/CancelCampaign" => Some(Self::RotationCancelCampaign),
"/ami.kms.v1.Rotation/WatchCampaign" => Some(Self::RotationWatchCampaign),
"/ami.kms.v1.Rotation/TakeWork" => Some(Self::RotationTakeWork),
"/ami.kms.v1.Rotation/ReportWork" => Some(Self::RotationReportWork),
"/ami.kms.v1.Rotation/GetMeterRotation" => Some(Self::RotationGetMeterRotation),
"/ami.kms.v1.Groups/CreateGroup" => Some(Self::GroupsCreateGroup),
"/ami.kms.v1.Groups/GetGroup" => Some(Self::GroupsGetGroup),
"/ami.kms.v1.Groups/ListGroups" => Some(Self::GroupsListGroups),
"/ami.kms.v1.Groups/AddMembers" => Some(Self::GroupsAddMembers),
"/ami.kms.v1.Groups/RemoveMembers" => Some(Self::GroupsRemoveMembers),
"/ami.kms.v1.Groups/DeleteGroup" => Some(Self::GroupsDeleteGroup),
"/ami.kms.v1.Groups/RotateGroupKey" => Some(Self::GroupsRotateGroupKey),
"/ami.kms.v1.Groups/FinishGroupRotation" => Some(Self::GroupsFinishGroupRotation),
"/ami.kms.v1.Groups/EncryptBroadcast" => Some(Self::GroupsEncryptBroadcast),
"/ami.kms.v1.Site/GetStatus" => Some(Self::SiteGetStatus),
"/ami.kms.v1.Site/Promote" => Some(Self::SitePromote),
"/ami.kms.v1.Site/Demote" => Some(Self::SiteDemote),
"/ami.kms.v1.Site/EnrolPeer" => Some(Self::SiteEnrolPeer),
"/ami.kms.v1.Site/SyncNow" => Some(Self::SiteSyncNow),
"/ami.kms.v1.Site/ListDivergence" => Some(Self::SiteListDivergence),
"/ami.kms.v1.Site/ResolveDivergence" => Some(Self::SiteResolveDivergence),
"/ami.kms.v1.Site/AdmitEpoch" => Some(Self::SiteAdmitEpoch),
"/ami.kms.v1.Site/ForgetRevocationList" => Some(Self::SiteForgetRevocationList),
"/ami.kms.v1.Site/RotateBlockSecrets" => Some(Self::SiteRotateBlockSecrets),
"/ami.kms.v1.Site/GetBlockSecretRotation" => Some(Self::SiteGetBlockSecretRotation),
"/ami.kms.v1.Site/RotateSiteKek" => Some(Self::SiteRotateSiteKek),
"/ami.kms.v1.Site/GetSiteKekRotation" => Some(Self::SiteGetSiteKekRotation),
"/ami.kms.v1.Site/DestroySiteKek" => Some(Self::SiteDestroySiteKek),
"/ami.kms.v1.Site/GetReadiness" => Some(Self::SiteGetReadiness),
"/ami.kms.v1.Site/PlanPromotion" => Some(Self::SitePlanPromotion),
"/ami.kms.v1.Approvals/ListApprovals" => Some(Self::ApprovalsListApprovals),
"/ami.kms.v1.Approvals/ApproveCall" => Some(Self::ApprovalsApproveCall),
"/ami.kms.v1.Approvals/AskAhead" => Some(Self::ApprovalsAskAhead),
_ => None,
}
}
/// Whether messages follow each other, one way or both.
pub const fn is_stream(self) -> bool {
match self {
Self::AuditListEvents => false,
Self::AuditFollowEvents => true,
Self::AuditVerifyChain => false,
Self::CipheringDecrypt => false,
Self::CipheringDecryptBatch => false,
Self::CipheringDecryptStream => true,
Self::CipheringVerifyMic => false,
Self::CipheringVerifyMicBatch => false,
Self::CipheringVerifyMicStream => true,
Self::CipheringEncrypt => false,
Self::CipheringEncryptBatch => false,
Self::CipheringTriage => false,
Self::CipheringBeginHls => false,
Self::CipheringAnswerHlsChallenge => false,
Self::CipheringVerifyHlsAnswer => false,
Self::MetersCreateMeter => false,
Self::MetersGetMeter => false,
Self::MetersListMeters => false,
Self::MetersDeleteMeter => false,
Self::MetersBuryDamagedMeter => false,
Self::MetersReadmitMeter => false,
Self::MetersSetPolicy => false,
Self::MetersDeclareCounter => false,
Self::MetersImportMeters => true,
Self::MetersGetImportKey => false,
Self::NodesProtect => false,
Self::ReplicationListBlockHeads => false,
Self::ReplicationFetchBlocks => true,
Self::ReplicationFollowChanges => true,
Self::ReplicationProveBlocks => true,
Self::ReplicationExchangeMarks => false,
Self::ReplicationListRoleRecords => true,
Self::ReplicationListFloors => false,
Self::ReplicationReportDivergence => false,
Self::ReplicationHandEvidence => false,
Self::ReplicationShowHeadTables => false,
Self::ReplicationFetchAuditEvents => false,
Self::RotationStageKey => false,
Self::RotationNextTransfer => false,
Self::RotationConfirmKey => false,
Self::RotationRollBackKey => false,
Self::RotationReviveKey => false,
Self::RotationCompromiseKey => false,
Self::RotationDestroyKey => false,
Self::RotationRestoreKey => false,
Self::RotationSetLegalHold => false,
Self::RotationStartCampaign => false,
Self::RotationGetCampaign => false,
Self::RotationListCampaigns => false,
Self::RotationListCampaignMembers => false,
Self::RotationPauseCampaign => false,
Self::RotationResumeCampaign => false,
Self::RotationCancelCampaign => false,
Self::RotationWatchCampaign => true,
Self::RotationTakeWork => false,
Self::RotationReportWork => false,
Self::RotationGetMeterRotation => false,
Self::GroupsCreateGroup => false,
Self::GroupsGetGroup => false,
Self::GroupsListGroups => false,
Self::GroupsAddMembers => false,
Self::GroupsRemoveMembers => false,
Self::GroupsDeleteGroup => false,
Self::GroupsRotateGroupKey => false,
Self::GroupsFinishGroupRotation => false,
Self::GroupsEncryptBroadcast => false,
Self::SiteGetStatus => false,
Self::SitePromote => false,
Self::SiteDemote => false,
Self::SiteEnrolPeer => false,
Self::SiteSyncNow => true,
Self::SiteListDivergence => false,
Self::SiteResolveDivergence => false,
Self::SiteAdmitEpoch => false,
Self::SiteForgetRevocationList => false,
Self::SiteRotateBlockSecrets => false,
Self::SiteGetBlockSecretRotation => false,
Self::SiteRotateSiteKek => false,
Self::SiteGetSiteKekRotation => false,
Self::SiteDestroySiteKek => false,
Self::SiteGetReadiness => false,
Self::SitePlanPromotion => false,
Self::ApprovalsListApprovals => false,
Self::ApprovalsApproveCall => false,
Self::ApprovalsAskAhead => false,
}
}
}
