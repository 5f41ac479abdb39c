//! Between the columns of the wire and the items of `ciphering`. Nothing is allocated per item: items
//! borrow from the batch, and the plaintext column is moved into the answer as it is.

use bytes::Bytes;
use kms_proto::v1::{ApduBatch, DecryptBatchResponse, ItemReason, VerifyMicBatchResponse};

use crate::ciphering::{Item, Named, OpenedBatch, Outcome};
use kms_core::{SecuritySetup, SystemTitle, Verdict};

/// In bytes: a system title.
const TITLE_LEN: usize = 8;
/// Bit 0 of `flags`: the tag verified.
const AUTHENTICATED: u8 = 1;
/// Likewise: the same message was opened before.
const DUPLICATE: u8 = 2;

/// A column that does not fit the others; the whole batch is refused, for its items can't be told
/// apart.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ColumnFault {
    #[error("lengths: they add up to {sum} bytes, and apdus has {apdus}")]
    Sum { sum: u64, apdus: usize },
    #[error("{column}: {entries} entries for {items} items; give one an item or none")]
    Size { column: &'static str, entries: usize, items: usize },
    #[error("system_titles: {0} bytes; a title has 8")]
    TitleBytes(usize),
    #[error("security_setups_plus_one: {value} in item {item}; the most is 256")]
    Setup { item: usize, value: u32 },
    #[error("meter_ids: item {item} has a meter id and a system title; give one of them")]
    NamedTwice { item: usize },
}

impl ColumnFault {
    /// The column at fault.
    pub(crate) fn column(&self) -> &'static str {
        match self {
            Self::Sum { .. } => "lengths",
            Self::Size { column, .. } => column,
            Self::TitleBytes(_) => "system_titles",
            Self::Setup { .. } => "security_setups_plus_one",
            Self::NamedTwice { .. } => "meter_ids",
        }
    }
}

/// The batch's items, borrowed from its columns.
pub(crate) fn items(batch: &ApduBatch) -> Result<Vec<Item<'_>>, ColumnFault> {
    let ApduBatch { apdus, lengths, system_titles, meter_ids, security_setups_plus_one, tag: _ } =
        batch;
    let count = lengths.len();
    let sum: u64 = lengths.iter().map(|len| u64::from(*len)).sum();
    if sum != apdus.len() as u64 {
        return Err(ColumnFault::Sum { sum, apdus: apdus.len() });
    }
    let (titles, rest) = system_titles.as_chunks::<{ TITLE_LEN }>();
    if !rest.is_empty() {
        return Err(ColumnFault::TitleBytes(system_titles.len()));
    }
    for (column, entries) in [
        ("system_titles", titles.len()),
        ("meter_ids", meter_ids.len()),
        ("security_setups_plus_one", security_setups_plus_one.len()),
    ] {
        if entries != 0 && entries != count {
            return Err(ColumnFault::Size { column, entries, items: count });
        }
    }
    let mut items = Vec::with_capacity(count);
    let mut left = &apdus[..];
    for (item, len) in lengths.iter().enumerate() {
        // In bounds: the lengths add up to what there is.
        let (apdu, rest) = left.split_at_checked(*len as usize).unwrap_or((left, &[]));
        left = rest;
        let named = named(
            titles.get(item).filter(|title| **title != [0; TITLE_LEN]),
            meter_ids.get(item).map_or("", String::as_str),
        )
        .ok_or(ColumnFault::NamedTwice { item })?;
        let setup = match security_setups_plus_one.get(item).copied().unwrap_or(0) {
            0 => None,
            value => Some(
                u8::try_from(value - 1)
                    .map(SecuritySetup)
                    .map_err(|_| ColumnFault::Setup { item, value })?,
            ),
        };
        items.push(Item { apdu, named, setup });
    }
    Ok(items)
}

/// The caller's name for the meter; `None` if there are two.
pub(crate) fn named<'a>(title: Option<&[u8; TITLE_LEN]>, meter_id: &'a str) -> Option<Named<'a>> {
    match (title, meter_id) {
        (None, "") => Some(Named::InApdu),
        (Some(title), "") => Some(Named::Title(SystemTitle::new(*title))),
        (None, id) => Some(Named::Id(id)),
        (Some(_), _) => None,
    }
}

/// An answer of `ciphering` that does not fit its batch: a fault of ours, and nothing of it may be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Misfit;

/// The answer to a batch that wants plaintext.
pub(crate) fn decrypted(
    tag: u64,
    items: usize,
    opened: OpenedBatch,
) -> Result<DecryptBatchResponse, Misfit> {
    let OpenedBatch { plaintexts, lengths, mut outcomes } = opened;
    if outcomes.len() != items || lengths.len() != items {
        return Err(Misfit);
    }
    let sum: u64 = lengths.iter().map(|len| u64::from(*len)).sum();
    // Invariant 8, once more at the edge: no byte of an item that was not opened leaves.
    let silent = lengths
        .iter()
        .zip(&outcomes)
        .all(|(len, outcome)| *len == 0 || outcome.verdict.may_have_plaintext());
    if sum != plaintexts.len() as u64 || !silent {
        return Err(Misfit);
    }
    Ok(DecryptBatchResponse {
        plaintexts: Bytes::from(plaintexts),
        lengths,
        verdicts: verdicts(&outcomes),
        encryption_key_versions: encryption_versions(&outcomes),
        authentication_key_versions: authentication_versions(&outcomes),
        flags: flags(&outcomes),
        reasons: reasons(&mut outcomes),
        tag,
    })
}

/// The answer to a batch that wants verdicts.
pub(crate) fn verified(
    tag: u64,
    items: usize,
    opened: OpenedBatch,
) -> Result<VerifyMicBatchResponse, Misfit> {
    let OpenedBatch { plaintexts: _, lengths: _, mut outcomes } = opened;
    if outcomes.len() != items {
        return Err(Misfit);
    }
    Ok(VerifyMicBatchResponse {
        verdicts: verdicts(&outcomes),
        encryption_key_versions: encryption_versions(&outcomes),
        authentication_key_versions: authentication_versions(&outcomes),
        flags: flags(&outcomes),
        reasons: reasons(&mut outcomes),
        tag,
    })
}

fn verdicts(outcomes: &[Outcome]) -> Bytes {
    outcomes.iter().map(|outcome| outcome.verdict as u8).collect()
}

fn flags(outcomes: &[Outcome]) -> Bytes {
    let flag = |outcome: &Outcome| {
        let authenticated = if outcome.verdict == Verdict::Ok { AUTHENTICATED } else { 0 };
        if outcome.duplicate { authenticated | DUPLICATE } else { authenticated }
    };
    outcomes.iter().map(flag).collect()
}

fn encryption_versions(outcomes: &[Outcome]) -> Vec<u32> {
    outcomes.iter().map(|outcome| outcome.encryption_key_version.into()).collect()
}

fn authentication_versions(outcomes: &[Outcome]) -> Vec<u32> {
    outcomes.iter().map(|outcome| outcome.authentication_key_version.into()).collect()
}

fn reasons(outcomes: &mut [Outcome]) -> Vec<ItemReason> {
    let reason = |(index, outcome): (u32, &mut Outcome)| {
        let reason = outcome.reason.take()?;
        Some(ItemReason { index, reason: reason.into() })
    };
    (0u32..).zip(outcomes).filter_map(reason).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Plain = (Vec<u8>, Option<[u8; 8]>, Option<String>, Option<u8>);

    fn plain_items() -> impl Strategy<Value = Vec<Plain>> {
        let name = prop_oneof![
            Just((None, None)),
            any::<[u8; 8]>()
                .prop_filter("zeros mean none", |title| *title != [0; 8])
                .prop_map(|title| (Some(title), None)),
            "[!-~]{1,9}".prop_map(|id| (None, Some(id))),
        ];
        let item = (prop::collection::vec(any::<u8>(), 0..40), name, any::<Option<u8>>())
            .prop_map(|(apdu, (title, id), setup)| (apdu, title, id, setup));
        prop::collection::vec(item, 0..20)
    }

    fn pack(items: &[Plain]) -> ApduBatch {
        ApduBatch {
            apdus: items.iter().flat_map(|item| item.0.clone()).collect(),
            lengths: items.iter().map(|item| item.0.len() as u32).collect(),
            system_titles: items.iter().flat_map(|item| item.1.unwrap_or_default()).collect(),
            meter_ids: items.iter().map(|item| item.2.clone().unwrap_or_default()).collect(),
            security_setups_plus_one: items
                .iter()
                .map(|item| item.3.map_or(0, |setup| u32::from(setup) + 1))
                .collect(),
            tag: 7,
        }
    }

    fn unpack(item: &Item<'_>) -> Plain {
        let (title, id) = match item.named {
            Named::InApdu => (None, None),
            Named::Title(title) => (Some(*title.as_bytes()), None),
            Named::Id(id) => (None, Some(id.to_owned())),
        };
        (item.apdu.to_vec(), title, id, item.setup.map(|setup| setup.0))
    }

    fn outcome(verdict: Verdict, reason: Option<&str>) -> Outcome {
        Outcome {
            verdict,
            system_title: None,
            invocation_counter: 5,
            encryption_key_version: 2,
            authentication_key_version: 3,
            setup: SecuritySetup(0),
            duplicate: false,
            reason: reason.map(Into::into),
            shown: None,
        }
    }

    proptest! {
        #[test]
        fn items_come_out_as_they_were_packed(plain in plain_items()) {
            let batch = pack(&plain);
            let items = items(&batch).unwrap();
            prop_assert_eq!(items.iter().map(unpack).collect::<Vec<_>>(), plain);
        }

        #[test]
        fn no_batch_makes_it_panic(
            apdus in prop::collection::vec(any::<u8>(), 0..60),
            lengths in prop::collection::vec(prop_oneof![0u32..20, any::<u32>()], 0..8),
            titles in prop::collection::vec(any::<u8>(), 0..40),
            meter_ids in prop::collection::vec(".{0,4}", 0..5),
            setups in prop::collection::vec(prop_oneof![0u32..300, any::<u32>()], 0..5),
        ) {
            let batch = ApduBatch {
                apdus: apdus.into(),
                lengths,
                system_titles: titles.into(),
                meter_ids,
                security_setups_plus_one: setups,
                tag: 0,
            };
            if let Ok(items) = items(&batch) {
                let apdus: Vec<u8> = items.iter().flat_map(|item| item.apdu.to_vec()).collect();
                prop_assert_eq!(items.len(), batch.lengths.len());
                prop_assert_eq!(apdus, batch.apdus.to_vec());
            }
        }
    }

    #[test]
    fn a_column_that_does_not_fit_is_named() {
        let good = pack(&[(vec![1, 2], None, None, None), (vec![3], None, None, None)]);
        let fault = |change: fn(&mut ApduBatch)| {
            let mut batch = good.clone();
            change(&mut batch);
            items(&batch).unwrap_err()
        };
        assert_eq!(fault(|b| b.lengths[0] = 3), ColumnFault::Sum { sum: 4, apdus: 3 });
        assert_eq!(fault(|b| b.lengths[0] = u32::MAX).column(), "lengths");
        assert_eq!(fault(|b| b.apdus = Bytes::new()).column(), "lengths");
        assert_eq!(fault(|b| b.system_titles = vec![1; 15].into()), ColumnFault::TitleBytes(15));
        assert_eq!(
            fault(|b| b.system_titles = vec![1; 8].into()),
            ColumnFault::Size { column: "system_titles", entries: 1, items: 2 }
        );
        assert_eq!(
            fault(|b| b.meter_ids.push("x".into())),
            ColumnFault::Size { column: "meter_ids", entries: 3, items: 2 }
        );
        assert_eq!(
            fault(|b| b.security_setups_plus_one = vec![1]).column(),
            "security_setups_plus_one"
        );
        assert_eq!(
            fault(|b| b.security_setups_plus_one = vec![256, 257]),
            ColumnFault::Setup { item: 1, value: 257 }
        );
        let twice = fault(|b| {
            b.system_titles = vec![1; 16].into();
            b.meter_ids[1] = "KFM-1".into();
        });
        assert_eq!(twice, ColumnFault::NamedTwice { item: 1 });
    }

    #[test]
    fn empty_columns_are_not_given() {
        let mut batch = pack(&[(vec![1], None, None, None)]);
        batch.meter_ids.clear();
        batch.system_titles = Bytes::new();
        batch.security_setups_plus_one.clear();
        assert_eq!(unpack(&items(&batch).unwrap()[0]), (vec![1], None, None, None));
    }

    #[test]
    fn an_answer_has_one_entry_an_item() {
        let opened = OpenedBatch {
            plaintexts: vec![0xAA; 3],
            lengths: vec![0, 3],
            outcomes: vec![
                outcome(Verdict::MicFailure, Some("all versions tried")),
                Outcome { duplicate: true, ..outcome(Verdict::Ok, None) },
            ],
        };
        let verified = verified(9, 2, opened.clone()).unwrap();
        let answer = decrypted(9, 2, opened).unwrap();
        assert_eq!(&answer.verdicts[..], [3, 1]);
        assert_eq!(&answer.flags[..], [0, 3]);
        assert_eq!(answer.encryption_key_versions, [2, 2]);
        assert_eq!(answer.authentication_key_versions, [3, 3]);
        assert_eq!(answer.reasons.len(), 1);
        assert_eq!((answer.tag, answer.lengths.as_slice()), (9, &[0, 3][..]));
        assert_eq!((verified.verdicts, verified.flags), (answer.verdicts, answer.flags));
        assert_eq!((verified.reasons, verified.tag), (answer.reasons, 9));
        assert_eq!(&answer.plaintexts[..], [0xAA; 3]);
    }

    #[test]
    fn the_plaintext_column_is_moved() {
        let plaintexts = vec![0xAA; 3];
        let place = plaintexts.as_ptr();
        let outcomes = vec![outcome(Verdict::Ok, None)];
        let answer =
            decrypted(0, 1, OpenedBatch { plaintexts, lengths: vec![3], outcomes }).unwrap();
        assert_eq!(answer.plaintexts.as_ptr(), place);
    }

    #[test]
    fn invariant_8_plaintext_of_an_unopened_item_never_leaves() {
        for verdict in [Verdict::MicFailure, Verdict::PolicyRefused, Verdict::Unavailable] {
            let opened = OpenedBatch {
                plaintexts: vec![1],
                lengths: vec![1],
                outcomes: vec![outcome(verdict, None)],
            };
            assert_eq!(decrypted(0, 1, opened), Err(Misfit));
        }
    }

    #[test]
    fn an_answer_that_does_not_fit_its_batch_never_leaves() {
        let opened = OpenedBatch {
            plaintexts: vec![1],
            lengths: vec![1],
            outcomes: vec![outcome(Verdict::Ok, None)],
        };
        assert_eq!(decrypted(0, 2, opened.clone()), Err(Misfit));
        assert_eq!(verified(0, 0, opened.clone()), Err(Misfit));
        let longer = OpenedBatch { plaintexts: vec![1, 2], ..opened };
        assert_eq!(decrypted(0, 1, longer), Err(Misfit));
    }
}
