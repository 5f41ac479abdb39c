//! What a person who is to approve a call is shown of it.

use prost::Message;

use kms_core::{MeterId, SystemTitle, audit::Subject};

/// The matter of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct About {
    /// One line for people.
    pub(crate) line: String,
    /// The subject for the audit log.
    pub(crate) subject: Subject,
}

pub(super) fn read<T: Message + Default>(message: &[u8], say: impl FnOnce(T) -> About) -> About {
    T::decode(message).map_or_else(|_| line("a request that can't be read".to_owned()), say)
}

pub(super) fn line(line: String) -> About {
    About { line, ..About::default() }
}

pub(super) fn subject(meter_id: &str, title: &[u8]) -> Subject {
    let system_title = <[u8; 8]>::try_from(title).ok().map(SystemTitle::new);
    Subject { meter_id: MeterId::new(meter_id).ok(), system_title, block: None }
}
