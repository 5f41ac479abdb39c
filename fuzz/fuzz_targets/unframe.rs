//! Whatever was recorded, its frames come off or are refused; what comes out is shorter than what went in.
#![no_main]

use dlms::frame::{FrameKind, unframe};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let kind = FrameKind::of_start(bytes);
    match unframe(bytes, None) {
        Ok(None) => assert_eq!(kind, None),
        Ok(Some(unframed)) => {
            assert_eq!(unframed.layers.first().copied(), kind);
            assert!(!unframed.apdu.is_empty() && unframed.apdu.len() < bytes.len());
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
