//! The tables of the policy once more, by hand, and what a policy refuses.

use super::*;

fn name(name: &str) -> CallerName {
    CallerName::new(name).unwrap()
}

fn looks(verb: Verb) -> bool {
    use Verb::{GetCampaign, GetMeterRotation, ListCampaignMembers, ListCampaigns, WatchCampaign};
    matches!(verb, Verb::GetMeter | Verb::ListMeters | Verb::GetStatus)
        || matches!(verb, GetCampaign | ListCampaigns | ListCampaignMembers | WatchCampaign)
        || matches!(verb, GetMeterRotation | Verb::GetGroup | Verb::ListGroups)
}

/// The table once more, by hand: who may call what.
fn expected(role: Role, verb: Verb) -> bool {
    let service = verb.name().split('/').next().unwrap();
    match role {
        Role::Hes => service == "Ciphering" && !expected(Role::Transmitter, verb),
        Role::Transmitter => matches!(
            verb,
            Verb::Encrypt
                | Verb::EncryptBatch
                | Verb::BeginHls
                | Verb::AnswerHlsChallenge
                | Verb::VerifyHlsAnswer
                | Verb::EncryptBroadcast
        ),
        Role::AmiAdmin => {
            service == "Meters"
                || (service == "Rotation" && !matches!(verb, Verb::TakeWork | Verb::ReportWork))
                || service == "Groups" && verb != Verb::EncryptBroadcast
                || service == "Site"
                || matches!(verb, Verb::ListEvents | Verb::ListApprovals | Verb::AskAhead)
        }
        Role::Rotator => {
            use Verb::{
                ConfirmKey, FinishGroupRotation, NextTransfer, ReportWork, RollBackKey,
                RotateGroupKey, StageKey, TakeWork,
            };
            looks(verb)
                || matches!(verb, StageKey | NextTransfer | ConfirmKey | RollBackKey)
                || matches!(verb, RotateGroupKey | FinishGroupRotation | TakeWork | ReportWork)
        }
        Role::Auditor => {
            use Verb::{
                GetBlockSecretRotation, GetReadiness, GetSiteKekRotation, ListApprovals,
                ListDivergence, PlanPromotion,
            };
            service == "Audit"
                || looks(verb)
                || matches!(verb, ListApprovals | ListDivergence | GetReadiness | PlanPromotion)
                || matches!(verb, GetBlockSecretRotation | GetSiteKekRotation)
        }
        Role::Node => service == "Nodes",
        Role::Peer => service == "Replication" || verb == Verb::GetStatus,
        Role::Replica => {
            let is_witness =
                matches!(verb, Verb::ProveBlocks | Verb::ExchangeMarks | Verb::FetchAuditEvents);
            service == "Replication" && !is_witness
        }
        Role::Approver => service == "Approvals" && verb != Verb::AskAhead,
        Role::Synchroniser => matches!(verb, Verb::SyncNow | Verb::GetStatus),
    }
}

#[test]
fn each_role_is_granted_its_verbs_and_no_other() {
    for role in Role::ALL {
        let policy = Policy::new([(name("x"), vec![role])]);
        for verb in Verb::GRANTABLE {
            let permit = policy.permit(&name("x"), *verb);
            assert_eq!(permit.is_ok(), expected(role, *verb), "{role} {verb}");
            if let Ok(permit) = permit {
                assert_eq!((permit.caller(), permit.verb()), (&name("x"), *verb));
            }
        }
    }
}

#[test]
fn the_digest_of_a_policy_changes_with_all_that_it_says_but_for_the_other_sites_name() {
    let of = |callers: &[(&str, &[Role])]| {
        Policy::new(callers.iter().map(|(caller, roles)| (name(caller), roles.to_vec())))
    };
    let policy =
        of(&[("a", &[Role::AmiAdmin]), ("b", &[Role::Approver]), ("south", &[Role::Peer])]);
    let other = of(&[("b", &[Role::Approver]), ("a", &[Role::AmiAdmin]), ("north", &[Role::Peer])]);
    assert_eq!(policy.digest(), other.digest());
    let dual = policy.clone().with_dual_control(["Meters/DeleteMeter"]).unwrap();
    let more = [
        of(&[("a", &[Role::AmiAdmin]), ("b", &[Role::Auditor])]),
        of(&[("a", &[Role::AmiAdmin])]),
        // One that is the other site and more is somebody here, too.
        of(&[("a", &[Role::AmiAdmin]), ("b", &[Role::Approver]), ("x", &[Role::Peer, Role::Hes])]),
        policy.clone().with_grants(Role::Hes, [Verb::Decrypt]),
        dual,
    ];
    for differs in &more {
        assert_ne!(differs.digest(), policy.digest(), "{differs:?}");
    }
}

#[test]
fn a_caller_without_roles_gets_health_and_reflection_only() {
    let policy = Policy::new([(name("x"), vec![])]);
    assert!(policy.permit(&name("x"), Verb::Health).is_ok());
    assert!(policy.permit(&name("x"), Verb::Reflection).is_ok());
    for verb in Verb::GRANTABLE {
        assert!(policy.permit(&name("x"), *verb).is_err());
    }
}

#[test]
fn an_unknown_caller_gets_nothing() {
    let policy = Policy::new([(name("x"), Role::ALL.to_vec())]);
    for verb in Verb::GRANTABLE.iter().chain(&[Verb::Health, Verb::Reflection]) {
        let refused = policy.permit(&name("X"), *verb).unwrap_err();
        assert_eq!(refused, Forbidden::UnknownCaller(name("X")));
    }
}

#[test]
fn an_override_replaces_the_default_of_its_role_and_of_no_other() {
    let policy = Policy::from_words(
        [("a", vec!["auditor"]), ("p", vec!["peer", "hes"])],
        [("auditor", vec!["Meters/ListMeters"])],
    )
    .unwrap();
    assert!(policy.permit(&name("a"), Verb::ListMeters).is_ok());
    assert!(policy.permit(&name("a"), Verb::GetStatus).is_err());
    assert!(policy.permit(&name("p"), Verb::GetStatus).is_ok());
    assert!(policy.permit(&name("p"), Verb::Decrypt).is_ok());
}

#[test]
fn a_word_that_names_nothing_is_refused() {
    let none: [(&str, Vec<&str>); 0] = [];
    assert_eq!(
        Policy::from_words([("x", vec!["root"])], none.clone()),
        Err(PolicyError::Role("root".into()))
    );
    assert_eq!(
        Policy::from_words([("a b", vec!["hes"])], none.clone()),
        Err(PolicyError::CallerName("a b".into()))
    );
    assert_eq!(
        Policy::from_words(none, [("hes", vec!["Ciphering/Guess"])]),
        Err(PolicyError::Verb("Ciphering/Guess".into()))
    );
}

fn dual(callers: &[(&str, &[Role])], call: &str) -> Result<Policy, PolicyError> {
    let callers = callers.iter().map(|(caller, roles)| (name(caller), roles.to_vec()));
    Policy::new(callers).with_dual_control([call])
}

#[test]
fn two_people_are_asked_for_where_there_are_two() {
    use Role::{AmiAdmin, Approver};
    let call = "Meters/DeleteMeter";
    for callers in [
        &[("a", &[AmiAdmin][..]), ("b", &[Approver])][..],
        &[("a", &[AmiAdmin, Approver]), ("b", &[AmiAdmin, Approver])],
        &[("a", &[AmiAdmin, Approver]), ("b", &[AmiAdmin])],
    ] {
        let policy = dual(callers, call).unwrap();
        assert_eq!(*policy.dual_control(), BTreeSet::from([Verb::DeleteMeter]));
    }
    for callers in [
        &[("a", &[AmiAdmin, Approver][..])][..],
        &[("a", &[AmiAdmin]), ("b", &[AmiAdmin])],
        &[("a", &[Approver]), ("b", &[Approver])],
    ] {
        let refused = dual(callers, call).unwrap_err();
        assert_eq!(refused, PolicyError::DualAlone(Verb::DeleteMeter));
        assert!(refused.to_string().contains("give a second person the role approver"));
    }
}

#[test]
fn two_people_are_not_asked_for_where_that_makes_no_sense() {
    let all = [("a", &Role::ALL[..]), ("b", &Role::ALL)];
    for verb in Verb::GRANTABLE {
        let refused = dual(&all, verb.name()).err();
        let due = match verb.name().split('/').next().unwrap() {
            // The one of them that people make.
            _ if *verb == Verb::Triage => None,
            "Ciphering" | "Nodes" | "Replication" => Some(PolicyError::DualMachine(*verb)),
            "Approvals" => Some(PolicyError::DualApproval(*verb)),
            _ if *verb == Verb::ImportMeters => None,
            _ if verb.method().unwrap().is_stream() => Some(PolicyError::DualStream(*verb)),
            _ => None,
        };
        assert_eq!(refused, due, "{verb}");
    }
    assert!(dual(&all, "Meters/DeleteMeter").is_ok());
    for word in ["Meters/Delete", "Health"] {
        assert_eq!(dual(&all, word), Err(PolicyError::Verb(word.into())));
    }
}

#[test]
fn a_callers_name_cannot_break_a_log_line() {
    assert!(CallerName::new("a\nb").is_err());
    assert!(CallerName::new("").is_err());
    assert!(CallerName::new(&"x".repeat(256)).is_err());
    assert!(CallerName::new("spiffe://utility/hes-1").is_ok());
}
