//! Any bytes parse, open and decrypt to a value or an error; what opens is made again byte for byte.
#![no_main]

use dlms::{
    CipheredApdu, Envelope, FreshCounter, GeneralCipheringAad, Keys, Protection, SystemTitle,
    protect,
};
use libfuzzer_sys::fuzz_target;

/// The Green Book's keys, so that the published examples in the corpus open. Suite 2 takes all of them,
/// suites 0 and 1 the first half.
const ENCRYPTION: [u8; 32] = *b"\x00\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0A\x0B\x0C\x0D\x0E\x0F\
    \x10\x11\x12\x13\x14\x15\x16\x17\x18\x19\x1A\x1B\x1C\x1D\x1E\x1F";
const AUTHENTICATION: [u8; 32] =
    *b"\xD0\xD1\xD2\xD3\xD4\xD5\xD6\xD7\xD8\xD9\xDA\xDB\xDC\xDD\xDE\xDF\
    \xE0\xE1\xE2\xE3\xE4\xE5\xE6\xE7\xE8\xE9\xEA\xEB\xEC\xED\xEE\xEF";
const TITLE: SystemTitle = SystemTitle::new(*b"MMM\x00\x00\xBC\x61\x4E");
const EARLIER: &[u8] = b"earlier";

fuzz_target!(|bytes: &[u8]| {
    let Ok(apdu) = CipheredApdu::parse(bytes) else {
        return;
    };
    let originator = apdu.system_title().unwrap_or(TITLE);
    let key_len = apdu.security_control().suite.key_len();
    let keys = Keys {
        encryption: &ENCRYPTION[..key_len],
        authentication: &AUTHENTICATION[..key_len],
    };
    for gc_aad in [GeneralCipheringAad::Spec, GeneralCipheringAad::OmitHeader] {
        let mut out = EARLIER.to_vec();
        match apdu.open(&keys, &originator, gc_aad, &mut out) {
            Ok(()) => {
                let plaintext = out.strip_prefix(EARLIER).unwrap();
                assert_eq!(plaintext.len(), apdu.plaintext_len());
                is_made_again(bytes, &apdu, originator, keys, gc_aad, plaintext);
            }
            Err(_) => assert_eq!(out, EARLIER, "a failure leaves no trace"),
        }
    }
    let mut out = EARLIER.to_vec();
    apdu.decrypt_without_authentication(keys.encryption, &originator, &mut out)
        .unwrap();
    assert_eq!(out.len(), EARLIER.len() + apdu.plaintext_len());
});

fn is_made_again(
    bytes: &[u8],
    apdu: &CipheredApdu<'_>,
    originator: SystemTitle,
    keys: Keys<'_>,
    gc_aad: GeneralCipheringAad,
    plaintext: &[u8],
) {
    let envelope = match (
        apdu.service_tag(),
        apdu.general_ciphering_header(),
        apdu.tag(),
    ) {
        (Some(tag), ..) => Envelope::Service(tag),
        (_, Some(header), _) => Envelope::GeneralCiphering(header),
        (.., 0xDB) => Envelope::GeneralGlo(apdu.system_title()),
        _ => Envelope::GeneralDed(apdu.system_title()),
    };
    let security_control = apdu.security_control();
    let protection = Protection {
        envelope,
        security_control,
        originator,
        keys,
        gc_aad,
    };
    let counter =
        FreshCounter::promise_never_used_under_this_key_and_title(apdu.invocation_counter());
    let mut again = Vec::new();
    protect(&protection, counter, plaintext, &mut again).unwrap();
    // A length that was not minimal made the original longer; and in general-ciphering its tag another.
    assert!(again.len() <= bytes.len());
    if again.len() == bytes.len() {
        assert_eq!(again, bytes);
    }
}
