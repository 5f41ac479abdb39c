//! Round trips: `open` opens what `protect` makes; and whatever else comes in, nothing panics.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{decrypt, length_by_hand};
use dlms::{
    CipheredApdu, EncryptionKey, Envelope, FreshCounter, GeneralCipheringAad,
    GeneralCipheringHeader, KeySet, Keys, Protection, SecurityControl, ServiceTag, Suite,
    SystemTitle, axdr, key_wrap, protect,
};
use proptest::collection::vec;
use proptest::prelude::*;

/// A protection that owns its bytes.
#[derive(Debug, Clone)]
struct Case {
    form: usize,
    service: usize,
    with_title: bool,
    key: KeySet,
    control: SecurityControl,
    title: SystemTitle,
    counter: u32,
    encryption: Vec<u8>,
    authentication: Vec<u8>,
    gc_aad: GeneralCipheringAad,
    header: [Vec<u8>; 3],
    recipient: Option<SystemTitle>,
    plain: Vec<u8>,
}

/// First bytes of plain APDUs, to choose a service by.
const SERVICES: [u8; 16] = [
    0x01, 0x05, 0x06, 0x08, 0x0C, 0x0D, 0x0E, 0x16, 0x18, 0xC0, 0xC1, 0xC2, 0xC3, 0xC4, 0xC5, 0xC7,
];

impl Case {
    fn envelope(&self) -> Envelope<'_> {
        let title = self.with_title.then_some(self.title);
        let service = |key| ServiceTag::for_plain(SERVICES[self.service], key).unwrap();
        let [transaction_id, date_time, other_information] = &self.header;
        match self.form {
            0 => Envelope::Service(service(EncryptionKey::Global)),
            1 => Envelope::Service(service(EncryptionKey::Dedicated)),
            2 => Envelope::GeneralGlo(title),
            3 => Envelope::GeneralDed(title),
            _ => Envelope::GeneralCiphering(GeneralCipheringHeader {
                transaction_id,
                originator: title,
                recipient: self.recipient,
                date_time,
                other_information,
                identified_key: self.key,
            }),
        }
    }

    fn keys(&self) -> Keys<'_> {
        Keys { encryption: &self.encryption, authentication: &self.authentication }
    }

    fn protected(&self) -> Vec<u8> {
        let protection = Protection {
            envelope: self.envelope(),
            security_control: self.control,
            originator: self.title,
            keys: self.keys(),
            gc_aad: self.gc_aad,
        };
        let mut out = b"before".to_vec();
        let counter = FreshCounter::promise_never_used_under_this_key_and_title(self.counter);
        protect(&protection, counter, &self.plain, &mut out).unwrap();
        out.split_off(6)
    }

    /// Opens as its security control byte asks.
    fn open(&self, apdu: &CipheredApdu<'_>) -> Option<Vec<u8>> {
        if !apdu.security_control().authenticated {
            return decrypt(apdu, &self.encryption, &self.title).ok();
        }
        let mut out = Vec::new();
        apdu.open(&self.keys(), &self.title, self.gc_aad, &mut out).ok().map(|()| out)
    }
}

fn case() -> impl Strategy<Value = Case> {
    let shape = (0..5_usize, 0..SERVICES.len(), any::<bool>(), any::<bool>());
    let control = (0..3_u8, prop::sample::select(vec![(true, true), (true, false), (false, true)]));
    let names = (any::<[u8; 8]>(), any::<u32>(), any::<Option<[u8; 8]>>(), any::<bool>());
    let header = [vec(any::<u8>(), 0..140), vec(any::<u8>(), 0..13), vec(any::<u8>(), 0..140)];
    let bytes = (any::<[u8; 32]>(), any::<[u8; 32]>(), vec(any::<u8>(), 0..400));
    (shape, control, names, header, bytes).prop_map(|(shape, control, names, header, bytes)| {
        let (form, service, with_title, broadcast) = shape;
        let (suite, (authenticated, encrypted)) = control;
        let suite = Suite::try_from(suite).unwrap();
        let (title, counter, recipient, omit) = names;
        let (encryption, authentication, plain) = bytes;
        let key = if broadcast { KeySet::Broadcast } else { KeySet::Unicast };
        let has_bit = form == 0 || form == 2;
        let control = SecurityControl {
            suite,
            key_set: if has_bit { key } else { KeySet::Unicast },
            authenticated,
            encrypted,
            compressed: false,
        };
        Case {
            form,
            service,
            with_title,
            key,
            control,
            title: SystemTitle::new(title),
            counter,
            encryption: encryption[..suite.key_len()].to_vec(),
            authentication: authentication[..suite.key_len()].to_vec(),
            gc_aad: if omit { GeneralCipheringAad::OmitHeader } else { GeneralCipheringAad::Spec },
            header,
            recipient: recipient.map(SystemTitle::new),
            plain,
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_protected_opens_to_what_it_was(case in case()) {
        let bytes = case.protected();
        let apdu = CipheredApdu::parse(&bytes).unwrap();
        prop_assert_eq!(case.open(&apdu), Some(case.plain.clone()));
        prop_assert_eq!(apdu.security_control(), case.control);
        prop_assert_eq!(apdu.invocation_counter(), case.counter);
        prop_assert_eq!(apdu.plaintext_len(), case.plain.len());
        prop_assert_eq!(apdu.tag(), bytes[0]);
        match case.envelope() {
            Envelope::Service(tag) => prop_assert_eq!(apdu.service_tag(), Some(tag)),
            Envelope::GeneralGlo(title) | Envelope::GeneralDed(title) => {
                prop_assert_eq!(apdu.system_title(), title);
            }
            Envelope::GeneralCiphering(header) => {
                prop_assert_eq!(apdu.general_ciphering_header(), Some(header));
                prop_assert_eq!(apdu.system_title(), header.originator);
            }
        }
    }

    #[test]
    fn what_is_protected_has_the_shortest_length(case in case()) {
        let bytes = case.protected();
        let (prefix, content) = common::split_at_length(&bytes);
        prop_assert_eq!(common::join_with_length(&prefix, &content), bytes);
    }

    #[test]
    fn arbitrary_bytes_do_not_panic(bytes in vec(any::<u8>(), 0..200), case in case()) {
        if let Ok(apdu) = CipheredApdu::parse(&bytes) {
            let _ = case.open(&apdu);
            let _ = apdu.general_ciphering_header();
        }
    }

    #[test]
    fn arbitrary_bytes_behind_a_tag_do_not_panic(
        tag in prop::sample::select(vec![0x21_u8, 0xC8, 0xD4, 0xDB, 0xDC, 0xDD, 0xDF, 0xE0]),
        bytes in vec(prop_oneof![Just(0_u8), Just(1), Just(8), Just(0x30), any::<u8>()], 0..60),
        case in case(),
    ) {
        let bytes = [&[tag][..], &bytes].concat();
        if let Ok(apdu) = CipheredApdu::parse(&bytes) {
            let _ = case.open(&apdu);
        }
    }

    /// Anything may be done to a valid APDU: it does not panic, and if it has a tag and opens, then to
    /// what it was.
    #[test]
    fn a_mutated_apdu_does_not_panic_and_opens_to_nothing_else(
        case in case(),
        edits in vec((any::<prop::sample::Index>(), any::<u8>(), 0..3_u8), 1..4),
    ) {
        let mut bytes = case.protected();
        for (at, value, kind) in edits {
            match kind {
                _ if bytes.is_empty() => {}
                0 => { let at = at.index(bytes.len()); bytes[at] = value; }
                1 => { bytes.remove(at.index(bytes.len())); }
                _ => bytes.insert(at.index(bytes.len()), value),
            }
        }
        if let Ok(apdu) = CipheredApdu::parse(&bytes)
            && apdu.security_control().authenticated
            && let Some(plain) = case.open(&apdu)
        {
            prop_assert_eq!(plain, case.plain);
        }
    }

    #[test]
    fn a_length_is_written_in_its_shortest_form_and_read_back(len in length()) {
        let mut out = b"before".to_vec();
        axdr::write_length(len, &mut out);
        let written = out.split_off(6);
        prop_assert_eq!(&written, &length_by_hand(len as usize));
        prop_assert_eq!(written.len(), axdr::length_len(len));
        prop_assert_eq!(axdr::read_length(&written), Ok((len as usize, written.len())));
        // The bytes that follow are not looked at.
        let followed = [&written[..], &[0xFF; 9]].concat();
        prop_assert_eq!(axdr::read_length(&followed), Ok((len as usize, written.len())));
    }

    #[test]
    fn any_length_that_is_read_is_bounded_and_writes_no_longer(bytes in vec(any::<u8>(), 0..9)) {
        if let Ok((len, octets)) = axdr::read_length(&bytes) {
            prop_assert!(octets <= 1 + axdr::LENGTH_OCTETS_MAX && octets <= bytes.len());
            prop_assert!(axdr::length_len(u32::try_from(len).unwrap()) <= octets);
        }
    }

    #[test]
    fn a_key_unwraps_under_its_own_kek_only(
        kek in any::<[u8; 32]>(), other in any::<[u8; 32]>(), key in any::<[u8; 32]>(),
        long_kek in any::<bool>(), long_key in any::<bool>(),
    ) {
        let kek_len = if long_kek { 32 } else { 16 };
        let key = &key[..if long_key { 32 } else { 16 }];
        let mut wrapped = vec![0; key.len() + key_wrap::OVERHEAD_LEN];
        key_wrap::wrap(&kek[..kek_len], key, &mut wrapped).unwrap();
        let mut out = vec![0; key.len()];
        key_wrap::unwrap(&kek[..kek_len], &wrapped, &mut out).unwrap();
        prop_assert_eq!(&out, key);
        if kek[..kek_len] != other[..kek_len] {
            prop_assert!(key_wrap::unwrap(&other[..kek_len], &wrapped, &mut out).is_err());
        }
    }
}

/// Lengths of every number of octets alike, and the borders between them.
fn length() -> impl Strategy<Value = u32> {
    let borders =
        vec![0, 0x7F, 0x80, 0xFF, 0x100, 0xFFFF, 0x1_0000, 0xFF_FFFF, 0x100_0000, u32::MAX];
    prop_oneof![0..0x80_u32, 0..0x1_0000_u32, any::<u32>(), prop::sample::select(borders)]
}
