//! Certificate name → caller → roles → verbs. A policy is data; [`Policy::permit`] is the one question it answers.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

pub use super::role::Role;
use super::verb::Verb;
use kms_core::site::makeup::digest_of;

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
mod tests;
