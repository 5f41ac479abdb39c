//! Every call of the .proto files, by every kind of stranger and by every role, against a table that is
//! kept here by hand. A call without a row does not compile.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may")]

mod common;

use std::{collections::BTreeSet, fs};

use common::{
    Home, home,
    wire::{self, Line, call, channel_as, identity_of, reason},
};
use kms_proto::Method;
use kms_server::rpc::Role as Granted;
use softhsm_tests::{Authority, Identity, Role};
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tonic::{Code, Status};

/// One line of the matrix.
struct Row {
    /// The roles that may make the call.
    roles: &'static [Granted],
    /// What the service behind the gate answers to an empty message: code and reason word. So an
    /// allowed cell is one that this service has answered, and not merely one without a refusal.
    answer: (Code, &'static str),
}

fn row(method: Method) -> Row {
    use Granted::{
        AmiAdmin, Approver, Auditor, Hes, Node, Peer, Replica, Rotator, Synchroniser, Transmitter,
    };
    const DONE: (Code, &str) = (Code::Ok, "");
    const BAD_FIELD: (Code, &str) = (Code::InvalidArgument, "BAD_FIELD");
    const NO_FORMER_KEK: (Code, &str) = (Code::FailedPrecondition, "SITE_KEK");
    const SINGLE_SITE: (Code, &str) = (Code::FailedPrecondition, "SINGLE_SITE");
    const SECOND_PERSON: (Code, &str) = (Code::FailedPrecondition, "SECOND_PERSON_NEEDED");
    const NO_SUCH_CAMPAIGN: (Code, &str) = (Code::InvalidArgument, "NO_SUCH_CAMPAIGN");
    const EPOCH_MOVED: (Code, &str) = (Code::Aborted, "EPOCH_MOVED");
    let (roles, answer): (&'static [Granted], _) = match method {
        Method::CipheringDecrypt => (&[Hes], DONE),
        Method::CipheringDecryptBatch => (&[Hes], DONE),
        Method::CipheringDecryptStream => (&[Hes], DONE),
        Method::CipheringVerifyMic => (&[Hes], DONE),
        Method::CipheringVerifyMicBatch => (&[Hes], DONE),
        Method::CipheringVerifyMicStream => (&[Hes], DONE),
        Method::CipheringEncrypt => (&[Transmitter], BAD_FIELD),
        Method::CipheringEncryptBatch => (&[Transmitter], DONE),
        Method::CipheringTriage => (&[Hes], BAD_FIELD),
        Method::CipheringBeginHls => (&[Transmitter], BAD_FIELD),
        Method::CipheringAnswerHlsChallenge => (&[Transmitter], BAD_FIELD),
        Method::CipheringVerifyHlsAnswer => (&[Transmitter], BAD_FIELD),
        Method::MetersCreateMeter => (&[AmiAdmin], BAD_FIELD),
        Method::MetersGetMeter => (&[AmiAdmin, Rotator, Auditor], BAD_FIELD),
        Method::MetersListMeters => (&[AmiAdmin, Rotator, Auditor], DONE),
        Method::MetersDeleteMeter => (&[AmiAdmin], BAD_FIELD),
        Method::MetersBuryDamagedMeter => (&[AmiAdmin], BAD_FIELD),
        Method::SiteRotateBlockSecrets => (&[AmiAdmin], DONE),
        Method::SiteGetBlockSecretRotation => (&[AmiAdmin, Auditor], DONE),
        Method::SiteRotateSiteKek => (&[AmiAdmin], DONE),
        Method::SiteGetSiteKekRotation => (&[AmiAdmin, Auditor], DONE),
        Method::SiteDestroySiteKek => (&[AmiAdmin], NO_FORMER_KEK),
        // Never by one person alone.
        Method::MetersReadmitMeter => (&[AmiAdmin], SECOND_PERSON),
        Method::MetersSetPolicy => (&[AmiAdmin], BAD_FIELD),
        Method::MetersDeclareCounter => (&[AmiAdmin], BAD_FIELD),
        Method::MetersImportMeters => (&[AmiAdmin], DONE),
        Method::MetersGetImportKey => (&[AmiAdmin], DONE),
        Method::AuditListEvents => (&[AmiAdmin, Auditor], DONE),
        Method::AuditFollowEvents => (&[Auditor], DONE),
        Method::AuditVerifyChain => (&[Auditor], DONE),
        Method::ApprovalsListApprovals => (&[AmiAdmin, Auditor, Approver], DONE),
        Method::ApprovalsApproveCall => (&[Approver], BAD_FIELD),
        Method::ApprovalsAskAhead => (&[AmiAdmin], BAD_FIELD),
        Method::RotationStageKey
        | Method::RotationNextTransfer
        | Method::RotationConfirmKey
        | Method::RotationRollBackKey => (&[AmiAdmin, Rotator], BAD_FIELD),
        // Never by one person alone.
        Method::RotationReviveKey => (&[AmiAdmin], SECOND_PERSON),
        Method::RotationCompromiseKey
        | Method::RotationDestroyKey
        | Method::RotationRestoreKey
        | Method::RotationSetLegalHold
        | Method::RotationStartCampaign => (&[AmiAdmin], BAD_FIELD),
        Method::RotationPauseCampaign
        | Method::RotationResumeCampaign
        | Method::RotationCancelCampaign => (&[AmiAdmin], NO_SUCH_CAMPAIGN),
        Method::RotationTakeWork | Method::RotationReportWork => (&[Rotator], BAD_FIELD),
        Method::RotationListCampaigns => (&[AmiAdmin, Rotator, Auditor], DONE),
        Method::RotationGetMeterRotation => (&[AmiAdmin, Rotator, Auditor], BAD_FIELD),
        Method::RotationGetCampaign
        | Method::RotationListCampaignMembers
        | Method::RotationWatchCampaign => (&[AmiAdmin, Rotator, Auditor], NO_SUCH_CAMPAIGN),
        Method::GroupsGetGroup => (&[AmiAdmin, Rotator, Auditor], BAD_FIELD),
        Method::GroupsListGroups => (&[AmiAdmin, Rotator, Auditor], DONE),
        Method::GroupsRotateGroupKey | Method::GroupsFinishGroupRotation => {
            (&[AmiAdmin, Rotator], BAD_FIELD)
        }
        Method::GroupsCreateGroup
        | Method::GroupsAddMembers
        | Method::GroupsRemoveMembers
        | Method::GroupsDeleteGroup => (&[AmiAdmin], BAD_FIELD),
        Method::GroupsEncryptBroadcast => (&[Transmitter], BAD_FIELD),
        Method::NodesProtect => (&[Node], BAD_FIELD),
        // A single site: there is nobody to whom anything would be shown.
        Method::ReplicationListBlockHeads
        | Method::ReplicationFetchBlocks
        | Method::ReplicationFollowChanges
        | Method::ReplicationListFloors
        | Method::ReplicationReportDivergence
        | Method::ReplicationHandEvidence
        | Method::ReplicationShowHeadTables
        | Method::ReplicationListRoleRecords => (&[Peer, Replica], SINGLE_SITE),
        // A replica asks nobody to prove anything, nobody remembers counters for it, and it copies no audit log.
        Method::ReplicationProveBlocks
        | Method::ReplicationExchangeMarks
        | Method::ReplicationFetchAuditEvents => (&[Peer], SINGLE_SITE),
        Method::SiteGetStatus => (&[AmiAdmin, Rotator, Peer, Auditor, Synchroniser], DONE),
        // No site is in epoch 0.
        Method::SitePromote | Method::SiteDemote => (&[AmiAdmin], EPOCH_MOVED),
        Method::SiteSyncNow => (&[AmiAdmin, Synchroniser], SINGLE_SITE),
        Method::SiteGetReadiness | Method::SitePlanPromotion => (&[AmiAdmin, Auditor], SINGLE_SITE),
        Method::SiteEnrolPeer | Method::SiteResolveDivergence => (&[AmiAdmin], BAD_FIELD),
        Method::SiteListDivergence => (&[AmiAdmin, Auditor], DONE),
        // Never by one person alone.
        Method::SiteAdmitEpoch | Method::SiteForgetRevocationList => (&[AmiAdmin], SECOND_PERSON),
    };
    Row { roles, answer }
}

/// Whether the call may need two people, once more and by hand.
fn can_need_two(method: Method) -> bool {
    match method {
        Method::CipheringDecrypt
        | Method::CipheringDecryptBatch
        | Method::CipheringDecryptStream
        | Method::CipheringVerifyMic
        | Method::CipheringVerifyMicBatch
        | Method::CipheringVerifyMicStream
        | Method::CipheringEncrypt
        | Method::CipheringEncryptBatch
        | Method::CipheringBeginHls
        | Method::CipheringAnswerHlsChallenge
        | Method::CipheringVerifyHlsAnswer
        | Method::NodesProtect
        | Method::ReplicationExchangeMarks
        | Method::ReplicationListBlockHeads
        | Method::ReplicationFetchBlocks
        | Method::ReplicationFollowChanges
        | Method::ReplicationProveBlocks
        | Method::ReplicationListFloors
        | Method::ReplicationListRoleRecords
        | Method::ReplicationReportDivergence
        | Method::ReplicationHandEvidence
        | Method::ReplicationShowHeadTables
        | Method::ReplicationFetchAuditEvents
        | Method::AuditFollowEvents
        | Method::RotationWatchCampaign
        | Method::SiteSyncNow
        | Method::ApprovalsListApprovals
        | Method::ApprovalsApproveCall
        | Method::ApprovalsAskAhead => false,
        Method::CipheringTriage
        | Method::MetersCreateMeter
        | Method::MetersGetMeter
        | Method::MetersListMeters
        | Method::MetersDeleteMeter
        | Method::MetersBuryDamagedMeter
        | Method::MetersReadmitMeter
        | Method::MetersSetPolicy
        | Method::MetersDeclareCounter
        | Method::MetersImportMeters
        | Method::MetersGetImportKey
        | Method::RotationStageKey
        | Method::RotationNextTransfer
        | Method::RotationConfirmKey
        | Method::RotationRollBackKey
        | Method::RotationReviveKey
        | Method::RotationCompromiseKey
        | Method::RotationDestroyKey
        | Method::RotationRestoreKey
        | Method::RotationSetLegalHold
        | Method::GroupsCreateGroup
        | Method::GroupsGetGroup
        | Method::GroupsListGroups
        | Method::GroupsAddMembers
        | Method::GroupsRemoveMembers
        | Method::GroupsDeleteGroup
        | Method::GroupsRotateGroupKey
        | Method::GroupsFinishGroupRotation
        | Method::GroupsEncryptBroadcast
        | Method::RotationStartCampaign
        | Method::RotationGetCampaign
        | Method::RotationListCampaigns
        | Method::RotationListCampaignMembers
        | Method::RotationPauseCampaign
        | Method::RotationResumeCampaign
        | Method::RotationCancelCampaign
        | Method::RotationTakeWork
        | Method::RotationReportWork
        | Method::RotationGetMeterRotation
        | Method::AuditListEvents
        | Method::AuditVerifyChain
        | Method::SiteGetStatus
        | Method::SiteGetReadiness
        | Method::SitePlanPromotion
        | Method::SiteEnrolPeer
        | Method::SitePromote
        | Method::SiteListDivergence
        | Method::SiteResolveDivergence
        | Method::SiteAdmitEpoch
        | Method::SiteForgetRevocationList
        | Method::SiteRotateBlockSecrets
        | Method::SiteGetBlockSecretRotation
        | Method::SiteRotateSiteKek
        | Method::SiteGetSiteKekRotation
        | Method::SiteDestroySiteKek
        | Method::SiteDemote => true,
    }
}

/// What the policy file gives to the callers of a site: one role each, and several to `dev`.
fn roles_of(caller: Role) -> &'static [Granted] {
    match caller {
        Role::Dev => &[Granted::AmiAdmin, Granted::Hes, Granted::Transmitter],
        Role::Hes => &[Granted::Hes],
        Role::AmiAdmin => &[Granted::AmiAdmin],
        Role::Rotator => &[Granted::Rotator],
        Role::Node => &[Granted::Node],
        Role::Peer => &[Granted::Peer],
        Role::Replica => &[Granted::Replica],
        Role::Auditor => &[Granted::Auditor],
        Role::Approver => &[Granted::Approver],
        Role::Synchroniser => &[Granted::Synchroniser],
    }
}

fn path(method: Method) -> String {
    format!("/ami.kms.v1.{}", method.name())
}

/// Somebody who must not make any call.
struct Stranger {
    what: &'static str,
    line: Line,
    identity: Option<Identity>,
    /// What becomes of him.
    end: End,
}

/// How far a stranger gets.
#[derive(Clone, Copy)]
enum End {
    /// TLS turns him away, with one of these alerts.
    Alert(&'static str),
    /// He does not speak TLS, and is not answered.
    Silence,
    /// The policy does not know him.
    Policy,
}

/// The name of a caller who may everything that `dev` may, in certificates that are wrong in one way
/// each; and ways to come without any certificate.
fn strangers(home: &Home, revoked: Identity) -> Vec<Stranger> {
    let ours = home.authority().unwrap();
    let foreign = Authority::make("development CA").unwrap();
    let name = Role::Dev.caller();
    let with = |what, identity: Identity, alert| Stranger {
        what,
        line: Line::Tls13,
        identity: Some(identity),
        end: End::Alert(alert),
    };
    vec![
        Stranger {
            what: "no certificate",
            line: Line::Tls13,
            identity: None,
            end: End::Alert("CertificateRequired"),
        },
        with(
            "a foreign authority of our authority's name",
            foreign.client(name).unwrap(),
            "DecryptError|UnknownCA|BadCertificate",
        ),
        with(
            "a self-signed certificate",
            Authority::self_signed_client(name).unwrap(),
            "UnknownCA|DecryptError",
        ),
        with("an expired certificate", ours.expired_client(name).unwrap(), "CertificateExpired"),
        with(
            "a certificate of the future",
            ours.not_yet_valid_client(name).unwrap(),
            "CertificateExpired|BadCertificate|CertificateUnknown",
        ),
        with("a revoked certificate", revoked, "CertificateRevoked"),
        with(
            "a certificate for servers only",
            ours.client_with_server_usage(name).unwrap(),
            "UnsupportedCertificate|BadCertificate|CertificateUnknown|AccessDenied",
        ),
        Stranger {
            what: "a name that is not in the policy",
            line: Line::Tls13,
            identity: Some(ours.client("nobody").unwrap()),
            end: End::Policy,
        },
        Stranger {
            what: "TLS 1.2",
            line: Line::Tls12,
            identity: Some(identity_of(home, Role::Dev)),
            end: End::Alert("ProtocolVersion"),
        },
        Stranger { what: "no TLS at all", line: Line::Plain, identity: None, end: End::Silence },
    ]
}

/// A site whose authority has taken one certificate of `dev` back.
fn home_with_a_revoked_caller() -> (Home, Identity) {
    let home = home();
    let (revoked, list) = home.authority().unwrap().revoked_client(Role::Dev.caller()).unwrap();
    let crl = home.places().dir.join("certificates/clients.crl");
    fs::write(&crl, list).unwrap();
    set(&home, "[rpc.tls]\n", &format!("[rpc.tls]\nclient_crl = \"{}\"\n", crl.display()));
    (home, revoked)
}

/// Replaces what stands once in `kms.toml`.
fn set(home: &Home, from: &str, to: &str) {
    let text = fs::read_to_string(&home.places().kms_toml).unwrap();
    assert_eq!(text.matches(from).count(), 1, "{text}");
    fs::write(&home.places().kms_toml, text.replace(from, to)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn no_stranger_makes_any_call_and_each_role_makes_its_own_and_no_other() {
    let (home, revoked) = home_with_a_revoked_caller();
    let _running = home.start().unwrap();
    let dev = identity_of(&home, Role::Dev);
    let status = path(Method::SiteGetStatus);

    let strangers = strangers(&home, revoked);
    let mut cells = 0;
    for Stranger { what, line, identity, end } in &strangers {
        check_handshake(&home, *line, identity.as_ref(), *end, what).await;
        for method in Method::ALL {
            // A channel each: none of them may be the one that gets through.
            let channel = wire::channel_over(&home, *line, identity.as_ref());
            let refused = call(&channel, &path(*method)).await.expect_err(what);
            check_stranger(&refused, *end, &format!("{what}: {}", method.name()));
            cells += 1;
        }
        // The same way with a good certificate: it was not the way that was wrong, where it is the
        // certificate.
        if *line == Line::Tls13 {
            let channel = wire::channel_over(&home, *line, Some(&dev));
            call(&channel, &status).await.unwrap();
        }
    }

    let mut tried = BTreeSet::new();
    let (mut allowed, mut denied) = (0, 0);
    for caller in Role::ALL {
        let channel = channel_as(&home, caller);
        tried.extend(roles_of(caller));
        for method in Method::ALL {
            let Row { roles, answer: due } = row(*method);
            let answer = call(&channel, &path(*method)).await;
            let what = format!("{caller:?}: {}", method.name());
            let (code, word) = reason(&answer);
            if roles_of(caller).iter().any(|role| roles.contains(role)) {
                assert_eq!((code, word.as_str()), due, "{what}: {answer:?}");
                allowed += 1;
            } else {
                assert_eq!(
                    (code, word.as_str()),
                    (Code::PermissionDenied, "NOT_GRANTED"),
                    "{what}"
                );
                check_denial(&answer.unwrap_err(), caller, *method);
                denied += 1;
            }
        }
        let unknown = call(&channel, "/ami.kms.v1.Site/NoSuchCall").await;
        assert_eq!(reason(&unknown), (Code::Unimplemented, "UNKNOWN_METHOD".into()));
    }
    assert_eq!(tried, BTreeSet::from(Granted::ALL), "each role of the policy is tried");
    assert_eq!(allowed + denied, Role::ALL.len() * Method::ALL.len());
    assert!(allowed > 0 && denied > allowed / 2);
    let calls = Method::ALL.len();
    println!(
        "matrix: {} strangers x {calls} calls, {} roles x {calls} calls = {} cells ({allowed} allowed)",
        strangers.len(),
        Role::ALL.len(),
        cells + allowed + denied
    );
}

/// Calls of one person that wait for a second one, at most, with those that always do.
const WAITING: usize = 24;

#[tokio::test(flavor = "multi_thread")]
async fn each_call_that_can_need_two_people_stops_at_the_gate_where_it_does() {
    let calls: Vec<Method> = Method::ALL.iter().copied().filter(|it| can_need_two(*it)).collect();
    let (mut stopped, mut passed, mut denied) = (0, 0, 0);
    for some in calls.chunks(WAITING) {
        let counts = stops_for(some).await;
        (stopped, passed, denied) = (stopped + counts[0], passed + counts[1], denied + counts[2]);
    }
    println!(
        "matrix with two people for {} of {} calls: {stopped} wait, {passed} pass, {denied} denied",
        calls.len(),
        Method::ALL.len()
    );
    assert!(stopped >= calls.len() - 1 && passed > 0 && denied > 0);
}

/// All calls at a site that asks two people for these: how many wait, pass and are denied.
async fn stops_for(calls: &[Method]) -> [usize; 3] {
    let home = home();
    let names: Vec<String> = calls.iter().map(|method| format!("\"{}\"", method.name())).collect();
    set(&home, "[rpc]\n", &format!("[rpc]\ndual_control = [{}]\n", names.join(", ")));
    let _running = home.start().unwrap();
    let (mut stopped, mut passed, mut denied) = (0, 0, 0);
    for caller in Role::ALL {
        let channel = channel_as(&home, caller);
        for method in Method::ALL {
            let Row { roles, answer: due } = row(*method);
            let answer = reason(&call(&channel, &path(*method)).await);
            let may = roles_of(caller).iter().any(|role| roles.contains(role));
            let (due, count) = match (may, calls.contains(method)) {
                (false, _) => ((Code::PermissionDenied, "NOT_GRANTED"), &mut denied),
                // An import without a line only asks whether lines would be taken.
                (true, true) if *method == Method::MetersImportMeters => (due, &mut passed),
                (true, true) => ((Code::FailedPrecondition, "SECOND_PERSON_NEEDED"), &mut stopped),
                (true, false) => (due, &mut passed),
            };
            assert_eq!((answer.0, answer.1.as_str()), due, "{caller:?}: {}", method.name());
            *count += 1;
        }
    }
    [stopped, passed, denied]
}

/// What TLS itself says to a stranger: a call learns only that there is no connection.
async fn check_handshake(
    home: &Home,
    line: Line,
    identity: Option<&Identity>,
    end: End,
    what: &str,
) {
    let versions = match line {
        Line::Tls13 => &[&TLS13],
        Line::Tls12 => &[&TLS12],
        Line::Plain => return,
    };
    let outcome = wire::shake_hands(home, identity, versions).await;
    let End::Alert(alert) = end else { return outcome.expect(what) };
    let said = wire::chain(&outcome.expect_err(what));
    assert!(alert.split('|').any(|way| said.contains(way)), "{what}: {said}");
}

fn check_stranger(refused: &Status, end: End, what: &str) {
    let (code, word) = reason(&Err(refused.clone()));
    let due = match end {
        End::Policy => Some((Code::PermissionDenied, "UNKNOWN_CALLER")),
        // No gate and no service was reached: each answer of one carries a word.
        End::Alert(_) | End::Silence => None,
    };
    assert_eq!(word, due.map_or("", |(_, word)| word), "{what}: {refused:?}");
    assert!(due.is_none_or(|(due, _)| due == code), "{what}: {refused:?}");
}

/// A denial says who was denied what.
fn check_denial(status: &Status, caller: Role, method: Method) {
    use tonic_types::StatusExt as _;
    let details = status.get_error_details();
    let metadata = &details.error_info().unwrap().metadata;
    assert_eq!(metadata["caller"], caller.caller());
    assert_eq!(metadata["verb"], method.name());
}
