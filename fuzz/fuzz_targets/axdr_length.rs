//! Any bytes are a length or an error; a length is written in its shortest form and read back.
#![no_main]

use dlms::axdr::{LENGTH_OCTETS_MAX, length_len, read_length, write_length};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok((len, octets)) = read_length(bytes) else {
        return;
    };
    assert!(octets <= bytes.len() && octets <= 1 + LENGTH_OCTETS_MAX);
    let len = u32::try_from(len).unwrap();
    let mut shortest = Vec::new();
    write_length(len, &mut shortest);
    assert_eq!(shortest.len(), length_len(len));
    assert!(shortest.len() <= octets);
    assert_eq!(read_length(&shortest), Ok((len as usize, shortest.len())));
});
