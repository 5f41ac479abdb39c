//! The site that a caller speaks for: its certificate says it, and the card in its message has to say the same.

use std::collections::BTreeMap;

use super::policy::{CallerName, Policy, Role};

/// Callers that are sites.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sites {
    policy: Policy,
    /// The sites of those whose certificates don't have the site's name.
    named: BTreeMap<CallerName, String>,
    /// The sites that may write, other than this one.
    peers: Vec<String>,
}

impl Sites {
    /// The callers of `policy`, some of them with a site's name that their certificate does not have; `peers` may write.
    pub(crate) fn new(
        policy: &Policy,
        named: &BTreeMap<CallerName, String>,
        peers: Vec<String>,
    ) -> Self {
        Self { policy: policy.clone(), named: named.clone(), peers }
    }

    /// Whether any caller is that site.
    pub(crate) fn know(&self, site: &str) -> bool {
        self.policy.callers().any(|caller| self.is(caller, site))
    }

    /// Whether this caller is that site. A replica is never one that may write, and one site is no other.
    pub(crate) fn is(&self, caller: &CallerName, site: &str) -> bool {
        let Ok(roles) = self.policy.roles(caller) else { return false };
        let is_peer = self.peers.iter().any(|peer| peer == site);
        let named = self.named.get(caller).map(String::as_str);
        if roles.contains(&Role::Peer) && is_peer {
            let own = self.peers.iter().find(|peer| *peer == caller.as_str());
            return named.or(own.map(String::as_str)).is_none_or(|own| own == site);
        }
        roles.contains(&Role::Replica) && !is_peer && named.unwrap_or(caller.as_str()) == site
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> CallerName {
        CallerName::new(name).unwrap()
    }

    #[test]
    fn a_caller_is_the_site_that_its_certificate_and_its_role_say_and_no_other() {
        let callers = [
            ("south", Role::Peer),
            ("kms-2.west.example", Role::Peer),
            ("any.example", Role::Peer),
            ("east", Role::Replica),
            ("kms.isle.example", Role::Replica),
            // Somebody has given a site that may write the wrong role.
            ("west", Role::Replica),
            ("hes", Role::Hes),
        ];
        let policy = Policy::new(callers.map(|(caller, role)| (name(caller), vec![role])));
        let named = [("kms-2.west.example", "west"), ("kms.isle.example", "isle")];
        let named = named.map(|(caller, site)| (name(caller), site.to_owned())).into();
        let sites = Sites::new(&policy, &named, vec!["south".to_owned(), "west".to_owned()]);
        let of = |caller: &str| {
            let all = ["south", "west", "east", "isle", "kms.isle.example", "hes", "north"];
            all.into_iter().filter(|site| sites.is(&name(caller), site)).collect::<Vec<_>>()
        };
        assert_eq!(of("south"), ["south"]);
        assert_eq!(of("kms-2.west.example"), ["west"]);
        assert!(sites.know("isle") && !sites.know("north"));
        // Of two that may write, its certificate does not say which one.
        assert_eq!(of("any.example"), ["south", "west"]);
        assert_eq!(of("east"), ["east"]);
        assert_eq!(of("kms.isle.example"), ["isle"]);
        for nobody in ["west", "hes", "stranger"] {
            assert_eq!(of(nobody), [""; 0], "{nobody}");
        }
    }
}
