//! Certificate name → caller → roles → verbs. A policy is data; [`Policy::permit`] is the one question it answers.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use super::verb::Verb;
use kms_core::site::makeup::digest_of;

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
            Self::Decrypt
            | Self::DecryptBatch
            | Self::DecryptStream
            | Self::VerifyMic
            | Self::VerifyMicBatch
            | Self::VerifyMicStream => &[Hes],
            Self::Encrypt | Self::EncryptBatch => &[Transmitter],
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
            | Self::ForgetRevocationList => &[AmiAdmin],
            Self::SyncNow => &[AmiAdmin, Synchroniser],
            Self::GetMeter | Self::ListMeters => &[AmiAdmin, Rotator, Auditor],
            Self::ListBlockHeads
            | Self::FetchBlocks
            | Self::FollowChanges
            | Self::ListRoleRecords
            | Self::ListFloors
            | Self::ReportDivergence
            | Self::ShowHeadTables => &[Peer, Replica],
            Self::Protect => &[Node],
            Self::ProveBlocks | Self::ExchangeMarks | Self::FetchAuditEvents => &[Peer],
            Self::GetStatus => &[AmiAdmin, Rotator, Peer, Auditor, Synchroniser],
            Self::ListDivergence | Self::ListEvents => &[AmiAdmin, Auditor],
            Self::GetReadiness | Self::PlanPromotion => &[AmiAdmin, Auditor],
            Self::FollowEvents | Self::VerifyChain => &[Auditor],
            Self::ListApprovals => &[AmiAdmin, Auditor, Approver],
            Self::ApproveCall => &[Approver],
            Self::AskAhead => &[AmiAdmin],
            Self::Health | Self::Reflection => &Role::ALL,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name out of a certificate: 1 to 255 visible ASCII characters, so that it can stand in a log line.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallerName(Arc<str>);

/// Not a caller's name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a caller's name is 1 to 255 visible ASCII characters without spaces")]
pub struct BadCallerName;

impl CallerName {
    /// In bytes.
    pub const MAX_LEN: usize = 255;

    /// Checks length and characters.
    pub fn new(name: &str) -> Result<Self, BadCallerName> {
        let fits = (1..=Self::MAX_LEN).contains(&name.len());
        if fits && name.bytes().all(|byte| byte.is_ascii_graphic()) {
            Ok(Self(name.into()))
        } else {
            Err(BadCallerName)
        }
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for CallerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for CallerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CallerName({})", self.0)
    }
}

/// A policy that names what there is not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// A caller that no certificate can name.
    #[error("caller {0:?} can't be in a certificate: {BadCallerName}")]
    CallerName(String),
    /// A role that there is not.
    #[error(
        "there is no role {0:?}; the roles are hes, transmitter, ami_admin, rotator, node, peer, replica, auditor, approver and synchroniser"
    )]
    Role(String),
    /// A verb that there is not.
    #[error("there is no call {0:?}; a call is written as in \"Ciphering/Decrypt\"")]
    Verb(String),
    /// Two people for a stream.
    #[error(
        "{0} can't need two people, as it is a stream and there is no one request to approve; take it \
         out of dual_control"
    )]
    DualStream(Verb),
    /// Two people for what machines do.
    #[error("{0} can't need two people, as machines make that call; take it out of dual_control")]
    DualMachine(Verb),
    /// Two people for being the second person.
    #[error(
        "{0} can't need two people, as it is how the second one answers; take it out of dual_control"
    )]
    DualApproval(Verb),
    /// Nobody could ever make the call.
    #[error(
        "{0} needs two people, and there are no two callers of whom one may make it and the other \
         approve it; give a second person the role approver, or take the call out of dual_control"
    )]
    DualAlone(Verb),
}

/// The policy's no.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Forbidden {
    /// The policy does not name the caller.
    #[error("the policy does not know {0}")]
    UnknownCaller(CallerName),
    /// None of the caller's roles grants the verb.
    #[error("no role of {caller} grants {verb}")]
    NotGranted {
        /// The caller.
        caller: CallerName,
        /// The call.
        verb: Verb,
    },
}

/// Proof that the policy was asked and said yes. Its fields are private and [`Policy::permit`] is its
/// only maker, so a service that asks for a `Permit` can't be reached unasked.
#[derive(Debug)]
pub struct Permit {
    caller: CallerName,
    verb: Verb,
    second: Option<Second>,
}

/// A second person's word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Second {
    /// The person who approved the call.
    pub approver: CallerName,
    /// The number under which it waited.
    pub number: u64,
}

impl Permit {
    /// The caller.
    pub fn caller(&self) -> &CallerName {
        &self.caller
    }

    /// The call that was permitted.
    pub fn verb(&self) -> Verb {
        self.verb
    }

    /// The second person's word, where the policy asks for two people.
    pub fn second(&self) -> Option<&Second> {
        self.second.as_ref()
    }

    /// This permit with a second person's word.
    pub(crate) fn approved_by(&self, second: Second) -> Self {
        Self { caller: self.caller.clone(), verb: self.verb, second: Some(second) }
    }
}

/// The access policy: callers and their roles, the calls of each role, and those that need two people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    callers: BTreeMap<CallerName, BTreeSet<Role>>,
    /// The grants of roles whose default the configuration replaced.
    overrides: BTreeMap<Role, BTreeSet<Verb>>,
    dual_control: BTreeSet<Verb>,
}

impl Policy {
    /// Callers and their roles; each role grants its default verbs.
    pub fn new(callers: impl IntoIterator<Item = (CallerName, Vec<Role>)>) -> Self {
        let callers =
            callers.into_iter().map(|(name, roles)| (name, roles.into_iter().collect())).collect();
        Self { callers, ..Self::default() }
    }

    /// Replaces what `role` grants.
    #[must_use]
    pub fn with_grants(mut self, role: Role, verbs: impl IntoIterator<Item = Verb>) -> Self {
        self.overrides.insert(role, verbs.into_iter().collect());
        self
    }

    /// The policy as a file writes it: caller → role names, role name → call names. A role that
    /// `grants` leaves out keeps its default.
    pub fn from_words<'a, R, V>(
        callers: impl IntoIterator<Item = (&'a str, R)>,
        grants: impl IntoIterator<Item = (&'a str, V)>,
    ) -> Result<Self, PolicyError>
    where
        R: IntoIterator<Item = &'a str>,
        V: IntoIterator<Item = &'a str>,
    {
        let mut policy = Self::default();
        for (name, roles) in callers {
            let name =
                CallerName::new(name).map_err(|_| PolicyError::CallerName(name.to_owned()))?;
            let roles = roles.into_iter().map(role_of).collect::<Result<BTreeSet<_>, _>>()?;
            policy.callers.entry(name).or_default().extend(roles);
        }
        for (role, verbs) in grants {
            let verbs = verbs.into_iter().map(verb_of).collect::<Result<BTreeSet<_>, _>>()?;
            policy.overrides.insert(role_of(role)?, verbs);
        }
        Ok(policy)
    }

    /// Asks for two people for these calls, as a file writes them; last, when callers and grants are
    /// known. Refused where it could not be, or where nobody could ever make the call.
    pub fn with_dual_control<'a>(
        mut self,
        calls: impl IntoIterator<Item = &'a str>,
    ) -> Result<Self, PolicyError> {
        for verb in calls.into_iter().map(verb_of) {
            let verb = verb?;
            if matches!(verb, Verb::ListApprovals | Verb::ApproveCall | Verb::AskAhead) {
                return Err(PolicyError::DualApproval(verb));
            }
            if !verb.is_privileged() {
                return Err(PolicyError::DualMachine(verb));
            }
            if !verb.may_need_two_people() {
                return Err(PolicyError::DualStream(verb));
            }
            if !self.has_two_people_for(verb) {
                return Err(PolicyError::DualAlone(verb));
            }
            self.dual_control.insert(verb);
        }
        Ok(self)
    }

    fn has_two_people_for(&self, verb: Verb) -> bool {
        let who_may =
            |verb| self.callers.keys().filter(move |caller| self.permit(caller, verb).is_ok());
        who_may(verb).any(|first| who_may(Verb::ApproveCall).any(|second| first != second))
    }

    /// A digest of all that a policy says, for another site to compare. Callers that are nothing but the other site, or a
    /// node of this one, are left out: each site names the other one, and its own.
    pub fn digest(&self) -> [u8; 32] {
        let is_site = |role: &Role| matches!(role, Role::Node | Role::Peer | Role::Replica);
        let is_peer = |roles: &BTreeSet<Role>| !roles.is_empty() && roles.iter().all(is_site);
        let mut parts = Vec::new();
        for (caller, roles) in self.callers.iter().filter(|(_, roles)| !is_peer(roles)) {
            let roles = roles.iter().map(|role| role.name());
            parts.extend(["caller", caller.as_str()].into_iter().chain(roles));
        }
        for (role, verbs) in &self.overrides {
            let verbs = verbs.iter().map(|verb| verb.name());
            parts.extend(["grants", role.name()].into_iter().chain(verbs));
        }
        parts.push("dual_control");
        parts.extend(self.dual_control.iter().map(|verb| verb.name()));
        digest_of("ami.kms/policy/1", parts)
    }

    /// The calls that need two people.
    pub fn dual_control(&self) -> &BTreeSet<Verb> {
        &self.dual_control
    }

    /// All callers that it names.
    pub fn callers(&self) -> impl Iterator<Item = &CallerName> {
        self.callers.keys()
    }

    /// Asks the policy once, at the edge.
    pub fn permit(&self, caller: &CallerName, verb: Verb) -> Result<Permit, Forbidden> {
        let roles = self.roles(caller)?;
        if verb.is_open() || roles.iter().any(|role| self.grants(*role, verb)) {
            Ok(Permit { caller: caller.clone(), verb, second: None })
        } else {
            Err(Forbidden::NotGranted { caller: caller.clone(), verb })
        }
    }

    /// The roles of a caller; an error if the policy does not name it.
    pub fn roles(&self, caller: &CallerName) -> Result<&BTreeSet<Role>, Forbidden> {
        self.callers.get(caller).ok_or_else(|| Forbidden::UnknownCaller(caller.clone()))
    }

    fn grants(&self, role: Role, verb: Verb) -> bool {
        match self.overrides.get(&role) {
            Some(verbs) => verbs.contains(&verb),
            None => role.may_by_default(verb),
        }
    }
}

fn role_of(name: &str) -> Result<Role, PolicyError> {
    Role::of_name(name).ok_or_else(|| PolicyError::Role(name.to_owned()))
}

fn verb_of(name: &str) -> Result<Verb, PolicyError> {
    Verb::of_name(name).ok_or_else(|| PolicyError::Verb(name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> CallerName {
        CallerName::new(name).unwrap()
    }

    /// The table once more, by hand: who may call what.
    fn expected(role: Role, verb: Verb) -> bool {
        let service = verb.name().split('/').next().unwrap();
        match role {
            Role::Hes => service == "Ciphering" && !expected(Role::Transmitter, verb),
            Role::Transmitter => matches!(verb, Verb::Encrypt | Verb::EncryptBatch),
            Role::AmiAdmin => {
                service == "Meters"
                    || service == "Site"
                    || matches!(verb, Verb::ListEvents | Verb::ListApprovals | Verb::AskAhead)
            }
            Role::Rotator => {
                matches!(verb, Verb::GetMeter | Verb::ListMeters | Verb::GetStatus)
            }
            Role::Auditor => {
                use Verb::{GetReadiness, ListApprovals, ListDivergence, PlanPromotion};
                service == "Audit"
                    || expected(Role::Rotator, verb)
                    || matches!(verb, ListApprovals | ListDivergence | GetReadiness | PlanPromotion)
            }
            Role::Node => service == "Nodes",
            Role::Peer => service == "Replication" || verb == Verb::GetStatus,
            Role::Replica => {
                let is_witness = matches!(
                    verb,
                    Verb::ProveBlocks | Verb::ExchangeMarks | Verb::FetchAuditEvents
                );
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
        let other =
            of(&[("b", &[Role::Approver]), ("a", &[Role::AmiAdmin]), ("north", &[Role::Peer])]);
        assert_eq!(policy.digest(), other.digest());
        let dual = policy.clone().with_dual_control(["Meters/DeleteMeter"]).unwrap();
        let more = [
            of(&[("a", &[Role::AmiAdmin]), ("b", &[Role::Auditor])]),
            of(&[("a", &[Role::AmiAdmin])]),
            // One that is the other site and more is somebody here, too.
            of(&[
                ("a", &[Role::AmiAdmin]),
                ("b", &[Role::Approver]),
                ("x", &[Role::Peer, Role::Hes]),
            ]),
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
            Policy::from_words(none, [("hes", vec!["Ciphering/Triage"])]),
            Err(PolicyError::Verb("Ciphering/Triage".into()))
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
}
