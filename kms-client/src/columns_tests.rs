//! Packing and unpacking, with the wrong lengths too.

use proptest::prelude::*;

use super::*;
use crate::names::MeterId;

fn apdus(count: usize) -> Vec<Apdu> {
    (0..count).map(|index| Apdu::new(vec![0xC8; index]).unwrap()).collect()
}

fn reply(items: usize) -> v1::DecryptBatchResponse {
    v1::DecryptBatchResponse {
        plaintexts: vec![7; items * 2].into(),
        lengths: vec![2; items],
        verdicts: vec![1; items].into(),
        encryption_key_versions: vec![3; items],
        authentication_key_versions: vec![0; items],
        flags: vec![AUTHENTICATED; items].into(),
        reasons: vec![],
        tag: 0,
    }
}

#[test]
fn an_answer_of_good_columns_is_taken_apart_in_order() {
    let opened = unpack_opened(&apdus(3), reply(3)).unwrap();
    assert_eq!(opened.len(), 3);
    assert_eq!(opened[2].plaintext.as_deref(), Some(&[7, 7][..]));
    assert_eq!(opened[2].encryption_key_version, Some(3));
    assert_eq!(opened[2].authentication_key_version, None);
    assert!(opened[2].authenticated);
}

#[test]
fn no_column_of_another_length_is_accepted() {
    type Spoil = fn(&mut v1::DecryptBatchResponse);
    let spoil: [(&str, Spoil); 5] = [
        ("lengths", |reply| reply.lengths.push(0)),
        ("verdicts", |reply| reply.verdicts = vec![1; 2].into()),
        ("encryption_key_versions", |reply| reply.encryption_key_versions.push(1)),
        ("authentication_key_versions", |reply| reply.authentication_key_versions.truncate(1)),
        ("flags", |reply| reply.flags = vec![1; 4].into()),
    ];
    for (name, spoil) in spoil {
        let mut reply = reply(3);
        spoil(&mut reply);
        let error = unpack_opened(&apdus(3), reply).unwrap_err();
        assert!(
            matches!(error, ProtocolError::ColumnLength { column, items: 3, .. } if column == name),
            "{name}: {error}"
        );
    }
}

#[test]
fn lengths_that_do_not_sum_to_the_bytes_are_refused() {
    let mut reply = reply(2);
    reply.lengths = vec![2, u32::MAX];
    let error = unpack_opened(&apdus(2), reply).unwrap_err();
    assert_eq!(error, ProtocolError::LengthSum { sum: 2 + u64::from(u32::MAX), found: 4 });
}

#[test]
fn a_plaintext_whose_tag_did_not_verify_is_not_handed_on() {
    let mut reply = reply(2);
    reply.verdicts = vec![1, 3].into();
    reply.flags = vec![AUTHENTICATED, 0].into();
    let error = unpack_opened(&apdus(2), reply).unwrap_err();
    assert!(matches!(error, ProtocolError::Contradiction { index: 1, .. }), "{error}");
}

#[test]
fn a_verdict_and_a_flag_that_disagree_are_refused() {
    for (verdict, flag) in [(1, 0), (2, AUTHENTICATED), (3, AUTHENTICATED)] {
        let mut reply = reply(1);
        reply.verdicts = vec![verdict].into();
        reply.flags = vec![flag].into();
        let error = unpack_opened(&apdus(1), reply).unwrap_err();
        assert!(matches!(error, ProtocolError::Contradiction { .. }), "{verdict} {flag}");
    }
}

#[test]
fn a_reason_for_an_item_that_was_not_asked_about_is_refused() {
    let mut reply = reply(2);
    reply.reasons.push(v1::ItemReason { index: 2, reason: "x".into() });
    let error = unpack_opened(&apdus(2), reply).unwrap_err();
    assert_eq!(error, ProtocolError::ReasonIndex { index: 2, items: 2 });
}

#[test]
fn columns_that_say_nothing_are_not_sent() {
    let batch = pack(&apdus(3), 9);
    assert!(batch.system_titles.is_empty());
    assert!(batch.meter_ids.is_empty());
    assert!(batch.security_setups_plus_one.is_empty());
    assert_eq!(batch.tag, 9);
}

#[test]
fn the_first_security_setup_is_not_the_same_as_none() {
    let apdu = |setup: Option<u8>| {
        let apdu = Apdu::new(vec![0]).unwrap();
        setup.map_or(apdu.clone(), |setup| apdu.under_setup(setup))
    };
    let batch = pack(&[apdu(None), apdu(Some(0)), apdu(Some(255))], 0);
    assert_eq!(batch.security_setups_plus_one, [0, 1, 256]);
}

fn any_apdu() -> impl Strategy<Value = Apdu> {
    let id = proptest::option::of("[!-~]{1,64}");
    let title = proptest::option::of(any::<[u8; 8]>());
    let bytes = proptest::collection::vec(any::<u8>(), 0..200);
    (bytes, id, title, any::<Option<u8>>()).prop_map(|(bytes, id, title, setup)| {
        let mut apdu = Apdu::new(bytes).unwrap();
        apdu.meter_id = id.map(|id| MeterId::new(&id).unwrap());
        apdu.system_title = title.map(dlms::SystemTitle::new);
        apdu.security_setup = setup;
        apdu
    })
}

proptest! {
    #[test]
    fn what_is_packed_is_found_again_at_its_place(
        apdus in proptest::collection::vec(any_apdu(), 0..20),
    ) {
        let batch = pack(&apdus, 0);
        let sum: usize = batch.lengths.iter().map(|len| *len as usize).sum();
        prop_assert_eq!(sum, batch.apdus.len());
        let mut start = 0;
        for (index, apdu) in apdus.iter().enumerate() {
            let end = start + batch.lengths[index] as usize;
            prop_assert_eq!(&batch.apdus[start..end], apdu.bytes());
            start = end;
            if let Some(title) = apdu.system_title {
                prop_assert_eq!(&batch.system_titles[index * 8..][..8], title.as_bytes());
            }
            if let Some(id) = &apdu.meter_id {
                prop_assert_eq!(&batch.meter_ids[index], id.as_str());
            }
            let setup = batch.security_setups_plus_one.get(index).copied().unwrap_or(0);
            prop_assert_eq!(setup, apdu.security_setup.map_or(0, |setup| u32::from(setup) + 1));
        }
    }

    #[test]
    fn no_answer_makes_the_client_panic_or_hand_out_an_unopened_plaintext(
        plaintexts in proptest::collection::vec(any::<u8>(), 0..40),
        lengths in proptest::collection::vec(0_u32..20, 0..5),
        verdicts in proptest::collection::vec(0_u8..13, 0..5),
        flags in proptest::collection::vec(any::<u8>(), 0..5),
        items in 0_usize..5,
    ) {
        let reply = v1::DecryptBatchResponse {
            plaintexts: plaintexts.into(),
            lengths,
            verdicts: verdicts.into(),
            flags: flags.into(),
            ..Default::default()
        };
        if let Ok(opened) = unpack_opened(&apdus(items), reply) {
            prop_assert_eq!(opened.len(), items);
            for item in opened {
                prop_assert!(item.plaintext.is_none() || item.verdict.may_have_plaintext());
                prop_assert!(item.plaintext.is_some() || !item.verdict.opened());
            }
        }
    }
}
