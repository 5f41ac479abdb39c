//! The wrapper of TCP and UDP (IEC 62056-47).

use alloc::vec::Vec;

use super::{
    fault::{FrameError, FrameFault},
    kind::FrameKind,
};

/// The messages of all wrappers; each is whole.
//= IEC 62056-47: version 0001, source wPort, destination wPort, length, two bytes each, big-endian
pub(super) fn messages(bytes: &[u8]) -> Result<Vec<Vec<u8>>, FrameError> {
    let mut messages = Vec::new();
    let mut stations = None;
    let mut rest = bytes;
    while !rest.is_empty() || messages.is_empty() {
        let wrong = |fault: FrameFault| fault.of(FrameKind::Wrapper, messages.len() + 1);
        let (head, after) = rest.split_first_chunk::<8>().ok_or(wrong(FrameFault::Cut))?;
        let [0, 1, wports @ .., high, low] = *head else { return Err(wrong(FrameFault::Start)) };
        if *stations.get_or_insert(wports) != wports {
            return Err(wrong(FrameFault::OtherStations));
        }
        let said = u16::from_be_bytes([high, low]).into();
        let (apdu, after) = after.split_at_checked(said).ok_or(wrong(FrameFault::Cut))?;
        messages.push(apdu.to_vec());
        rest = after;
    }
    Ok(messages)
}
