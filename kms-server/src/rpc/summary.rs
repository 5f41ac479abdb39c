//! What a request is about, in one line, for the person who is to approve it. Never a key.

use kms_proto::v1::{
    BuryDamagedMeterRequest, CreateMeterRequest, DeleteMeterRequest, GetMeterRequest,
    ListEventsRequest, ListMetersRequest, VerifyChainRequest,
};
use prost::Message;

use super::verb::Verb;
use crate::domain::{MeterId, SystemTitle, audit::Subject};

/// A line of a list; what is longer is cut off.
const LEN_MAX: usize = 200;

/// What a request is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct About {
    /// For people.
    pub(super) line: String,
    /// For the audit log.
    pub(super) subject: Subject,
}

/// What this message asks for. No `_` arm: a new call says here what its second person gets to see.
pub(super) fn about(verb: Verb, message: &[u8]) -> About {
    let mut about = match verb {
        Verb::CreateMeter => read(message, |CreateMeterRequest { meter, rules: _ }| {
            let meter = meter.unwrap_or_default();
            let (title, keys) = (hex::encode(&meter.system_title), meter.keys.len());
            let line = format!("meter {:?}, title {title}, {keys} keys", meter.meter_id);
            About { line, subject: subject(&meter.meter_id, &meter.system_title) }
        }),
        Verb::GetMeter => read(message, |GetMeterRequest { meter_id, system_title }| {
            let line = format!("meter {meter_id:?}, title {}", hex::encode(&system_title));
            About { line, subject: subject(&meter_id, &system_title) }
        }),
        Verb::ListMeters => {
            read(message, |ListMetersRequest { after, .. }| line(format!("meters after {after:?}")))
        }
        Verb::DeleteMeter => read(message, |DeleteMeterRequest { meter_id }| About {
            line: format!("meter {meter_id:?}"),
            subject: subject(&meter_id, &[]),
        }),
        Verb::BuryDamagedMeter => {
            read(message, |BuryDamagedMeterRequest { system_title, block }| {
                let (title, own) = (hex::encode(&system_title), "its own block".to_owned());
                let place = block.map_or(own, |block| format!("block {block}"));
                About {
                    line: format!("bury the damaged record of title {title} in {place}"),
                    subject: subject("", &system_title),
                }
            })
        }
        Verb::ListEvents => {
            read(message, |ListEventsRequest { after, .. }| line(format!("events after {after}")))
        }
        Verb::VerifyChain => read(message, |VerifyChainRequest { node_id }| {
            line(format!("node {}", hex::encode(&node_id)))
        }),
        Verb::GetImportKey | Verb::GetStatus => About::default(),
        // Never for two people; see `Verb::may_need_two_people`.
        Verb::Decrypt
        | Verb::DecryptBatch
        | Verb::DecryptStream
        | Verb::VerifyMic
        | Verb::VerifyMicBatch
        | Verb::VerifyMicStream
        | Verb::ImportMeters
        | Verb::FollowEvents
        | Verb::ListApprovals
        | Verb::ApproveCall
        | Verb::Health
        | Verb::Reflection => About::default(),
    };
    // `{:?}` has escaped what could break a line; titles are hexadecimal.
    about.line = about.line.chars().take(LEN_MAX).collect();
    about
}

fn read<T: Message + Default>(message: &[u8], say: impl FnOnce(T) -> About) -> About {
    T::decode(message).map_or_else(|_| line("a request that can't be read".to_owned()), say)
}

fn line(line: String) -> About {
    About { line, ..About::default() }
}

fn subject(meter_id: &str, title: &[u8]) -> Subject {
    let system_title = <[u8; 8]>::try_from(title).ok().map(SystemTitle::new);
    Subject { meter_id: MeterId::new(meter_id).ok(), system_title, block: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_is_one_line_of_bounded_length() {
        let of = |meter_id: String| {
            about(Verb::DeleteMeter, &DeleteMeterRequest { meter_id }.encode_to_vec()).line
        };
        assert_eq!(of("m-7".into()), "meter \"m-7\"");
        assert_eq!(of("a\nb".into()), "meter \"a\\nb\"");
        assert_eq!(of("x".repeat(1_000)).len(), LEN_MAX);
        assert_eq!(about(Verb::DeleteMeter, b"\xFF").line, "a request that can't be read");
    }

    #[test]
    fn invariant_1_a_summary_shows_no_key() {
        use kms_proto::v1::{NewKey, NewMeter};
        let key = NewKey { clear_value: b"SECRETKEY1234567".to_vec().into(), ..NewKey::default() };
        let meter = NewMeter { meter_id: "m".into(), keys: vec![key], ..NewMeter::default() };
        let request = CreateMeterRequest { meter: Some(meter), rules: None }.encode_to_vec();
        assert!(request.windows(9).any(|bytes| bytes == b"SECRETKEY"));
        let line = about(Verb::CreateMeter, &request).line;
        assert!(!line.contains("SECRET") && !line.contains(&hex::encode("SECRET")), "{line}");
    }
}
