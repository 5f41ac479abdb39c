//! Work: meters under leases, what is to be done with each, and what came of it.

use bytes::Bytes;
use dlms::SystemTitle;
use kms_core::campaign::row::{
    Action as WorkAction, Outcome as TransportOutcome, Phase as CampaignMemberState,
};
use kms_proto::v1;
use serde::{Serialize, Serializer};

use super::parts::{optional, said, small, there};
use crate::call::ProtocolError;
use crate::meter::{KeyKind, numbered, title};
use crate::names::{MeterId, title_hex};
use crate::rotation::KeyCarrier;

/// The versions of GUEK and GAK within the carrier's setup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct KeyPair {
    /// Of the GUEK.
    pub encryption_key_version: u16,
    /// Of the GAK; 0: none.
    pub authentication_key_version: u16,
}

/// What is to be done with one meter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Work {
    /// The operator's name.
    pub meter_id: String,
    /// The name on the wire.
    #[serde(with = "title_hex")]
    pub system_title: SystemTitle,
    /// By this it is reported, and sent. Written as a string: it is more than JSON's readers keep of a number.
    #[serde(serialize_with = "as_text")]
    pub lease: u64,
    /// Milliseconds since 1970.
    pub until_ms: u64,
    /// What to do.
    pub action: WorkAction,
    /// What a transfer brings. Absent: nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<KeyKind>,
    /// e in `0.0.43.0.e.255`.
    pub security_setup: u8,
    /// Its version; 0: nothing is brought.
    pub version: u32,
    /// The association that carries it.
    pub carrier: KeyCarrier,
    /// `TRANSFER`: the pair that the meter is known or presumed to hold. `PROBE`: the pairs to try, the likeliest first, and
    /// no more than its lock allows.
    pub pairs: Vec<KeyPair>,
    /// One of the first of its label.
    pub canary: bool,
    /// How far it is.
    pub state: CampaignMemberState,
}

/// What was given out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TakenWork {
    /// The meters.
    pub work: Vec<Work>,
    /// Why there are none now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Ask again then; milliseconds.
    pub retry_after_ms: u64,
}

/// What came of work on one meter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkReport {
    /// The meter.
    pub meter_id: MeterId,
    /// Of the work.
    pub lease: u64,
    /// How it went.
    pub outcome: TransportOutcome,
    /// What the meter sent, as it came: the answer to the transfer, what came to probes, pushes.
    pub apdus: Vec<Bytes>,
    /// Pairs that were tried and did not answer, or did not authenticate.
    pub pairs_tried: Vec<KeyPair>,
    /// The lease ends with this report, whatever is left to do.
    pub end: bool,
}

/// What a report came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WorkVerdict {
    /// The meter.
    pub meter_id: String,
    /// How far it is. Absent: the report was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<CampaignMemberState>,
    /// What to do next under the same lease. Absent, or `NONE`: it is given back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<Work>,
    /// Why it was refused, or why the meter can't be done: a word for machines.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// A sentence for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

fn as_text<S: Serializer>(number: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(number)
}

impl std::fmt::Display for KeyPair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { encryption_key_version, authentication_key_version } = self;
        write!(f, "{encryption_key_version}/{authentication_key_version}")
    }
}

impl KeyPair {
    fn to_wire(self) -> v1::KeyPair {
        let Self { encryption_key_version, authentication_key_version } = self;
        let encryption_key_version = encryption_key_version.into();
        let authentication_key_version = authentication_key_version.into();
        v1::KeyPair { encryption_key_version, authentication_key_version }
    }

    pub(super) fn from_wire(wire: &v1::KeyPair) -> Result<Self, ProtocolError> {
        let v1::KeyPair { encryption_key_version, authentication_key_version } = *wire;
        let encryption = small("encryption_key_version", encryption_key_version)?;
        let authentication = small("authentication_key_version", authentication_key_version)?;
        Ok(Self { encryption_key_version: encryption, authentication_key_version: authentication })
    }
}

impl Work {
    fn from_wire(wire: v1::Work) -> Result<Self, ProtocolError> {
        Ok(Self {
            meter_id: wire.meter_id,
            system_title: title(&wire.system_title)?,
            lease: wire.lease,
            until_ms: wire.until_ms,
            action: numbered(wire.action)?,
            kind: optional(wire.kind)?,
            security_setup: small("security_setup", wire.security_setup)?,
            version: wire.version,
            carrier: KeyCarrier::from_wire(there(wire.carrier, "carrier")?)?,
            pairs: wire.pairs.iter().map(KeyPair::from_wire).collect::<Result<_, _>>()?,
            canary: wire.canary,
            state: numbered(wire.state)?,
        })
    }
}

impl TakenWork {
    pub(super) fn from_wire(wire: v1::TakeWorkResponse) -> Result<Self, ProtocolError> {
        let v1::TakeWorkResponse { work, reason, retry_after_ms } = wire;
        let work = work.into_iter().map(Work::from_wire).collect::<Result<_, _>>()?;
        Ok(Self { work, reason: said(reason), retry_after_ms })
    }
}

impl WorkReport {
    pub(super) fn to_wire(&self) -> v1::WorkReport {
        v1::WorkReport {
            meter_id: self.meter_id.to_string(),
            lease: self.lease,
            outcome: self.outcome as i32,
            apdus: self.apdus.clone(),
            pairs_tried: self.pairs_tried.iter().map(|pair| pair.to_wire()).collect(),
            end: self.end,
        }
    }
}

impl WorkVerdict {
    pub(super) fn from_wire(wire: v1::WorkVerdict) -> Result<Self, ProtocolError> {
        let v1::WorkVerdict { meter_id, state, next, code, reason } = wire;
        let (state, next) = (optional(state)?, next.map(Work::from_wire).transpose()?);
        Ok(Self { meter_id, state, next, code: said(code), reason: said(reason) })
    }
}
