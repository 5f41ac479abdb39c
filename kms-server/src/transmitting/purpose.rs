//! What a message is for is read off the message, and not believed: a purpose opens counters that traffic has none of, and
//! versions of keys that protect no traffic.

use dlms::{KeySet, class64, hls, probe};

use super::item::{Envelope, Outcome, Plain, ProtectedBatch};
use kms_core::{
    Verdict,
    counters::{allocator::Purpose, refusal::Refusal},
};

impl Plain<'_> {
    /// Refused unless the message is of its purpose.
    pub(super) fn check_purpose(&self) -> Result<(), Outcome> {
        let what = match self.purpose {
            Purpose::Traffic => return Ok(()),
            Purpose::Broadcast if self.key_set == KeySet::Broadcast => return Ok(()),
            Purpose::Broadcast => "a broadcast goes out under the broadcast key",
            _ if self.key_set == KeySet::Broadcast => {
                "key transfers, HLS answers and probes go out under a meter's own key"
            }
            Purpose::KeyTransfer if class64::is_key_transfer(self.apdu) => return Ok(()),
            Purpose::KeyTransfer => "this is no transfer of one key (class 64, method 2)",
            Purpose::Hls if self.envelope == Envelope::HlsAnswer => return Ok(()),
            Purpose::Hls if hls::is_reply(self.apdu) => return Ok(()),
            Purpose::Hls => "this is no reply_to_HLS_authentication (class 15, method 1)",
            Purpose::Probe if probe::is_probe(self.apdu) => return Ok(()),
            Purpose::Probe => {
                "this is no read of clock, logical device name, invocation counter, or a security setup's policy or suite"
            }
        };
        Err(mismatch(what))
    }
}

/// The answer to a caller who says himself that he transfers keys: the service builds those messages, after it has seen that
/// the other site has the key. `None`: he says no such thing.
pub fn refuse_claimed(items: &[Plain<'_>]) -> Option<ProtectedBatch> {
    let claims =
        |item: &Plain<'_>| matches!(item.purpose, Purpose::KeyTransfer | Purpose::Broadcast);
    let what = "key transfers and broadcasts of a group are built by the service: call Rotation/NextTransfer, or \
                Groups/EncryptBroadcast";
    items.iter().any(claims).then(|| ProtectedBatch {
        apdus: Vec::new(),
        lengths: vec![0; items.len()],
        outcomes: items.iter().map(|_| mismatch(what)).collect(),
    })
}

fn mismatch(what: &str) -> Outcome {
    let refusal = Some(Refusal::PurposeMismatch);
    Outcome { refusal, ..Outcome::of(Verdict::PolicyRefused).because(what) }
}
