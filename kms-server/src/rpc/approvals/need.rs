//! Whether a call takes two people.

use std::{collections::BTreeSet, pin::Pin};

use kms_proto::v1::PromoteRequest;

use super::whole::Asking;
use crate::{keyring::NotChanged, lifecycle::LifecycleError, rpc::access::verb::Verb};
use kms_core::Epoch;

/// The epochs above the highest one of the signed records that one person may name for a site that was put back: it has
/// missed some promotions, and each epoch is one counter epoch less, of 256, for every key.
pub(crate) const ABOVE_MAX: u64 = 8;

/// The promotions above an epoch that a site may have by its signed records, whoever approved them, for one person to ask
/// for another one: who makes a site think again and again that it was put back does not use up the counter epochs.
pub(crate) const ABOVE_TIMES_MAX: u32 = 8;

/// Tells of a site, as it is now, whether it was put back, the highest epoch that signed records say, and the number of its
/// promotions above one.
pub(crate) type PutBack = Box<dyn Fn() -> (bool, Epoch, u32) + Send + Sync>;

/// The answer of a site, which has to look.
pub(crate) type Looking<E> = Pin<Box<dyn Future<Output = Result<(), E>> + Send>>;

/// Tells whether the site changes blocks now; why not, else.
pub(crate) type Writes = Box<dyn Fn() -> Looking<LifecycleError> + Send + Sync>;

/// Tells whether the site, as it is now, would be promoted by this request; why not, else.
pub(crate) type Promotable = Box<dyn Fn(PromoteRequest) -> Looking<NotChanged> + Send + Sync>;

/// The site that carries calls out.
pub(crate) struct SiteBehind {
    /// As it calls itself.
    pub(crate) name: String,
    pub(crate) put_back: PutBack,
    pub(crate) writes: Writes,
    pub(crate) promotable: Promotable,
}

/// What the site asks two people for.
pub(crate) struct Needs {
    pub(crate) verbs: BTreeSet<Verb>,
    /// `None`: no site is behind this server, and nothing is promoted.
    pub(crate) site: Option<SiteBehind>,
}

impl Needs {
    /// Whether the call may need two people: it is read before that is known.
    pub(crate) fn concern(&self, verb: Verb) -> bool {
        // Of these some requests do.
        let by_what_is_asked = matches!(verb, Verb::StageKey | Verb::DestroyKey);
        self.name(verb) || by_what_is_asked || verb == Verb::Promote && self.site.is_some()
    }

    /// Whether this call takes one person only. A promotion above an epoch that somebody names takes two, whatever the
    /// policy says, unless the site was put back, it is not far, and it was not done often.
    pub(crate) fn take_one(&self, verb: Verb, asking: &Asking) -> bool {
        let above = asking.promotion.as_ref().and_then(|promotion| promotion.above_epoch);
        let is_near = |above: u64| {
            let known = self.site.as_ref().map(|site| (site.put_back)());
            known.is_some_and(|(is_put_back, known, times)| {
                let is_near = above <= known.0.saturating_add(ABOVE_MAX);
                is_put_back && is_near && times < ABOVE_TIMES_MAX
            })
        };
        !self.name(verb) && !asking.takes_two && above.is_none_or(is_near)
    }

    /// The name of the site, for people.
    pub(crate) fn site_name(&self) -> &str {
        self.site.as_ref().map_or("", |site| &site.name)
    }

    fn name(&self, verb: Verb) -> bool {
        verb.always_needs_two_people() || self.verbs.contains(&verb)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message as _;

    fn promotion(above_epoch: Option<u64>) -> Asking {
        let request = PromoteRequest { above_epoch, ..PromoteRequest::default() };
        Asking::of_message(Verb::Promote, &request.encode_to_vec())
    }

    fn behind(put_back: PutBack) -> SiteBehind {
        SiteBehind {
            name: "north".to_owned(),
            put_back,
            writes: Box::new(|| Box::pin(async { Ok(()) })),
            promotable: Box::new(|_| Box::pin(async { Ok(()) })),
        }
    }

    #[test]
    fn one_person_names_an_epoch_only_for_a_site_that_was_put_back_and_only_a_near_one() {
        let takes_one_of = |is_put_back, above, times| {
            let put_back: PutBack = Box::new(move || (is_put_back, Epoch(4), times));
            let needs = Needs { verbs: BTreeSet::new(), site: Some(behind(put_back)) };
            assert!(needs.concern(Verb::Promote) && !needs.concern(Verb::Demote));
            needs.take_one(Verb::Promote, &promotion(above))
        };
        let takes_one = |is_put_back, above| takes_one_of(is_put_back, above, ABOVE_TIMES_MAX - 1);
        assert!(takes_one(false, None) && takes_one(true, None));
        assert!(takes_one_of(true, None, ABOVE_TIMES_MAX));
        assert!(!takes_one_of(true, Some(4), ABOVE_TIMES_MAX));
        assert!(takes_one(true, Some(1)) && takes_one(true, Some(4 + ABOVE_MAX)));
        assert!(!takes_one(true, Some(5 + ABOVE_MAX)) && !takes_one(true, Some(u64::MAX)));
        assert!(!takes_one(false, Some(4)) && !takes_one(false, Some(1)));
        // Where the policy asks for two it takes two, near or not.
        let verbs = BTreeSet::from([Verb::Promote]);
        let needs = Needs { verbs, site: None };
        assert!(!needs.take_one(Verb::Promote, &promotion(None)));
        // The audit log's word for it ends what was approved before.
        assert_eq!(Verb::Promote.name(), kms_core::two_people::PROMOTED);
    }
}
