//! Any bytes unwrap to a key or an error; a key that is wrapped unwraps to what it was.
//!
//! Input: one byte that chooses the lengths, 32 bytes of key encryption key, the rest.
#![no_main]

use dlms::key_wrap::{KeyWrapError, OVERHEAD_LEN, unwrap, wrap};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((choice, rest)) = bytes.split_first() else {
        return;
    };
    let Some((kek, rest)) = rest.split_first_chunk::<32>() else {
        return;
    };
    let kek = if choice & 1 == 0 {
        &kek[..16]
    } else {
        &kek[..]
    };

    let mut key = vec![0xEE; rest.len().saturating_sub(OVERHEAD_LEN)];
    match unwrap(kek, rest, &mut key) {
        Ok(()) => assert_eq!(wrapped(kek, &key).as_deref(), Ok(rest)),
        Err(KeyWrapError::NotAuthentic) => assert!(key.iter().all(|byte| *byte == 0)),
        Err(_) => assert!(key.iter().all(|byte| *byte == 0xEE)),
    }

    if let Ok(wrapped) = wrapped(kek, rest) {
        let mut key = vec![0; rest.len()];
        unwrap(kek, &wrapped, &mut key).unwrap();
        assert_eq!(key, rest);
    }
});

fn wrapped(kek: &[u8], key: &[u8]) -> Result<Vec<u8>, KeyWrapError> {
    let mut wrapped = vec![0; key.len() + OVERHEAD_LEN];
    wrap(kek, key, &mut wrapped).map(|()| wrapped)
}
