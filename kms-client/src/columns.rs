//! The wire's batches: columns out, columns in, every length checked. Nothing of this shows in the
//! API but two sealed boxes, for those who measure the service without the cost of packing.

use bytes::Bytes;
use kms_proto::v1;

use crate::apdu::{Apdu, Checked, Opened, Verdict};
use crate::call::ProtocolError;

/// Eight zero bytes in the column of titles: not given.
const NO_TITLE: [u8; 8] = [0; 8];
/// `flags`, bit 0.
const AUTHENTICATED: u8 = 0b01;
/// `flags`, bit 1.
const DUPLICATE: u8 = 0b10;

/// APDUs ready to be sent. For benches: packed once, sent many times.
#[derive(Clone)]
pub struct PackedBatch(pub(crate) v1::ApduBatch);

impl PackedBatch {
    /// Packs `apdus`. The tag comes back with the reply.
    pub fn new(apdus: &[Apdu], tag: u64) -> Self {
        Self(pack(apdus, tag))
    }

    /// The number of its APDUs.
    pub fn len(&self) -> usize {
        self.0.lengths.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.0.lengths.is_empty()
    }
}

/// An answer to a [`PackedBatch`], as it came.
pub struct PackedReply(pub(crate) v1::DecryptBatchResponse);

impl PackedReply {
    /// The tag of the batch that it answers.
    pub fn tag(&self) -> u64 {
        self.0.tag
    }

    /// The number of APDUs that it answers.
    pub fn len(&self) -> usize {
        self.0.verdicts.len()
    }

    /// Whether it answers none.
    pub fn is_empty(&self) -> bool {
        self.0.verdicts.is_empty()
    }

    /// The number of them that were opened.
    pub fn opened(&self) -> usize {
        let opened = |number: &&u8| Verdict::from_number(i32::from(**number)).opened();
        self.0.verdicts.iter().filter(opened).count()
    }

    /// All plaintexts, in bytes.
    pub fn plaintext_bytes(&self) -> usize {
        self.0.plaintexts.len()
    }

    /// Takes it apart. `apdus` are those of the batch.
    pub fn unpack(self, apdus: &[Apdu]) -> Result<Vec<Opened>, ProtocolError> {
        unpack_opened(apdus, self.0)
    }
}

/// Columns of `apdus`. A column that would say nothing is left out.
pub(crate) fn pack(apdus: &[Apdu], tag: u64) -> v1::ApduBatch {
    let mut bytes = Vec::with_capacity(apdus.iter().map(|apdu| apdu.bytes.len()).sum());
    let mut batch = v1::ApduBatch { tag, ..Default::default() };
    batch.lengths.reserve_exact(apdus.len());
    for apdu in apdus {
        bytes.extend_from_slice(&apdu.bytes);
        // Fits: `Apdu::LEN_MAX` is far below 2^32.
        batch.lengths.push(u32::try_from(apdu.bytes.len()).unwrap_or(u32::MAX));
    }
    batch.apdus = bytes.into();
    if apdus.iter().any(|apdu| apdu.system_title.is_some()) {
        let title = |apdu: &Apdu| apdu.system_title.map_or(NO_TITLE, |title| *title.as_bytes());
        batch.system_titles = apdus.iter().flat_map(title).collect::<Vec<u8>>().into();
    }
    if apdus.iter().any(|apdu| apdu.meter_id.is_some()) {
        let id = |apdu: &Apdu| apdu.meter_id.as_ref().map_or("", |id| id.as_str()).to_owned();
        batch.meter_ids = apdus.iter().map(id).collect();
    }
    if apdus.iter().any(|apdu| apdu.security_setup.is_some()) {
        let setup = |apdu: &Apdu| apdu.security_setup.map_or(0, |setup| u32::from(setup) + 1);
        batch.security_setups_plus_one = apdus.iter().map(setup).collect();
    }
    batch
}

/// Plaintexts and verdicts, in the order of `apdus`.
pub(crate) fn unpack_opened(
    apdus: &[Apdu],
    reply: v1::DecryptBatchResponse,
) -> Result<Vec<Opened>, ProtocolError> {
    let v1::DecryptBatchResponse {
        mut plaintexts,
        lengths,
        verdicts,
        encryption_key_versions,
        authentication_key_versions,
        flags,
        reasons,
        tag: _,
    } = reply;
    check_len("lengths", lengths.len(), apdus.len())?;
    let sum: u64 = lengths.iter().map(|len| u64::from(*len)).sum();
    if sum != plaintexts.len() as u64 {
        return Err(ProtocolError::LengthSum { sum, found: plaintexts.len() });
    }
    let columns =
        Columns { verdicts, encryption_key_versions, authentication_key_versions, flags, reasons };
    let checked = columns.unpack(apdus)?;
    let open = |(index, (checked, len)): (usize, (Checked, u32))| {
        let plaintext = plaintexts.split_to(len as usize);
        opened(index, checked, plaintext)
    };
    checked.into_iter().zip(lengths).enumerate().map(open).collect()
}

/// Verdicts alone, in the order of `apdus`.
pub(crate) fn unpack_checked(
    apdus: &[Apdu],
    reply: v1::VerifyMicBatchResponse,
) -> Result<Vec<Checked>, ProtocolError> {
    let v1::VerifyMicBatchResponse {
        verdicts,
        encryption_key_versions,
        authentication_key_versions,
        flags,
        reasons,
        tag: _,
    } = reply;
    let columns =
        Columns { verdicts, encryption_key_versions, authentication_key_versions, flags, reasons };
    columns.unpack(apdus)
}

/// Joins plaintext and verdict: bytes without a verdict that opens are never handed on.
pub(crate) fn opened(
    index: usize,
    checked: Checked,
    plaintext: Bytes,
) -> Result<Opened, ProtocolError> {
    let verdict = checked.verdict;
    if !verdict.may_have_plaintext() && !plaintext.is_empty() {
        let what = "a plaintext";
        return Err(ProtocolError::Contradiction { index, what, verdict: verdict.word() });
    }
    let given = verdict.opened() || !plaintext.is_empty();
    Ok(Opened { checked, plaintext: given.then_some(plaintext) })
}

/// The columns that both replies have.
struct Columns {
    verdicts: Bytes,
    encryption_key_versions: Vec<u32>,
    authentication_key_versions: Vec<u32>,
    flags: Bytes,
    reasons: Vec<v1::ItemReason>,
}

impl Columns {
    fn unpack(self, apdus: &[Apdu]) -> Result<Vec<Checked>, ProtocolError> {
        let items = apdus.len();
        check_len("verdicts", self.verdicts.len(), items)?;
        let encryption = self.encryption_key_versions;
        check_optional_len("encryption_key_versions", encryption.len(), items)?;
        let authentication = self.authentication_key_versions;
        check_optional_len("authentication_key_versions", authentication.len(), items)?;
        check_optional_len("flags", self.flags.len(), items)?;
        let mut checked = Vec::with_capacity(items);
        for (index, (apdu, number)) in apdus.iter().zip(&self.verdicts).enumerate() {
            let verdict = Verdict::from_number(i32::from(*number));
            let flags = self.flags.get(index).copied();
            let header = apdu.header();
            checked.push(Checked {
                verdict,
                authenticated: agreed(
                    index,
                    verdict,
                    flags.map(|flags| flags & AUTHENTICATED != 0),
                )?,
                system_title: known_title(apdu),
                security_setup: apdu.security_setup.map(u32::from),
                encryption_key_version: version(encryption.get(index)),
                authentication_key_version: version(authentication.get(index)),
                invocation_counter: header.invocation_counter,
                duplicate: duplicate(
                    index,
                    verdict,
                    flags.is_some_and(|flags| flags & DUPLICATE != 0),
                )?,
                reason: None,
            });
        }
        for v1::ItemReason { index, reason } in self.reasons {
            let item = checked.get_mut(index as usize);
            item.ok_or(ProtocolError::ReasonIndex { index, items })?.reason = Some(reason);
        }
        Ok(checked)
    }
}

/// Whether the tag verified, where verdict and flag must say the same.
pub(crate) fn agreed(
    index: usize,
    verdict: Verdict,
    flag: Option<bool>,
) -> Result<bool, ProtocolError> {
    let authenticated = verdict == Verdict::Ok;
    match flag {
        Some(flag) if flag != authenticated => {
            let what = if flag { "an authenticated flag" } else { "no authenticated flag" };
            Err(ProtocolError::Contradiction { index, what, verdict: verdict.word() })
        }
        _ => Ok(authenticated),
    }
}

/// Whether the same message was opened before: only what opened can have been.
pub(crate) fn duplicate(index: usize, verdict: Verdict, flag: bool) -> Result<bool, ProtocolError> {
    if flag && verdict != Verdict::Ok {
        let what = "a duplicate flag";
        return Err(ProtocolError::Contradiction { index, what, verdict: verdict.word() });
    }
    Ok(flag)
}

/// The title that the service must have gone by, where the reply does not repeat it.
fn known_title(apdu: &Apdu) -> Option<dlms::SystemTitle> {
    match (apdu.system_title, &apdu.meter_id) {
        (Some(title), _) => Some(title),
        (None, None) => apdu.header().originator,
        (None, Some(_)) => None,
    }
}

/// Version 0 means: no key took part.
pub(crate) fn version(number: Option<&u32>) -> Option<u32> {
    number.copied().filter(|number| *number != 0)
}

fn check_len(column: &'static str, found: usize, items: usize) -> Result<(), ProtocolError> {
    if found == items { Ok(()) } else { Err(ProtocolError::ColumnLength { column, found, items }) }
}

fn check_optional_len(
    column: &'static str,
    found: usize,
    items: usize,
) -> Result<(), ProtocolError> {
    if found == 0 { Ok(()) } else { check_len(column, found, items) }
}

#[cfg(test)]
#[path = "columns_tests.rs"]
mod tests;
