//! Reports: which sites answered a caller's calls.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Which sites answered the calls of the clients that it was given to by
/// [`KmsClient::reporting_to`](crate::KmsClient::reporting_to). Clones are the same report.
#[derive(Clone, Debug, Default)]
pub struct CallReport(Arc<Mutex<Answers>>);

#[derive(Debug, Default)]
struct Answers {
    by_site: BTreeMap<Arc<str>, u64>,
    last: Option<Arc<str>>,
    asked_twice: u64,
}

impl CallReport {
    /// The site that answered last; `None`: none has.
    pub fn site(&self) -> Option<String> {
        self.answers().last.as_deref().map(str::to_owned)
    }

    /// The answers of each site, by its name: one a call; of a batch or a stream one a message.
    pub fn answers_by_site(&self) -> Vec<(String, u64)> {
        self.answers().by_site.iter().map(|(site, count)| (site.to_string(), *count)).collect()
    }

    /// Calls that a second site was asked as well, since the first one was late.
    pub fn asked_twice(&self) -> u64 {
        self.answers().asked_twice
    }

    fn answers(&self) -> MutexGuard<'_, Answers> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn answered(&self, site: &Arc<str>) {
        let mut answers = self.answers();
        *answers.by_site.entry(Arc::clone(site)).or_default() += 1;
        answers.last = Some(Arc::clone(site));
    }

    pub(crate) fn asked_a_second(&self) {
        self.answers().asked_twice += 1;
    }
}
