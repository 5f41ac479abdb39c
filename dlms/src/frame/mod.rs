//! Frames that carry an APDU on its line: HDLC, the wired M-Bus, the wrapper of TCP and UDP, LLC, and the
//! blocks of general-block-transfer. Takes them off what was recorded there, and puts together what
//! was sent in pieces; makes none.
//!
//! None of these begins with a byte that an APDU begins with, general-block-transfer apart, which is an
//! APDU of its own and carries another: so whether there is a frame is never a guess.

mod blocks;
mod fault;
mod hdlc;
mod kind;
mod mbus;
mod wrapper;

use alloc::vec::Vec;
use core::fmt;

pub use fault::{FrameError, FrameFault};
pub use kind::FrameKind;

use crate::tags::GENERAL_BLOCK_TRANSFER;

/// An APDU without what carried it.
#[derive(Clone, PartialEq, Eq)]
pub struct Unframed {
    /// The APDU, put together.
    pub apdu: Vec<u8>,
    /// The frames that were taken off, outermost first.
    pub layers: Vec<FrameKind>,
}

impl fmt::Debug for Unframed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { apdu, layers } = self;
        f.debug_struct("Unframed").field("len", &apdu.len()).field("layers", layers).finish()
    }
}

/// Takes off what carries the one APDU of `bytes`: all of a recording, from its first byte to its last.
/// `Ok(None)`: nothing does.
///
/// `outermost` says what there must be; without it, what `bytes` begin as is taken. Lengths, checksums,
/// and the order of pieces must all be right: a frame that is damaged is refused, never repaired.
pub fn unframe(bytes: &[u8], outermost: Option<FrameKind>) -> Result<Option<Unframed>, FrameError> {
    let Some(kind) = outermost.or_else(|| FrameKind::of_start(bytes)) else { return Ok(None) };
    let mut layers = Vec::from([kind]);
    let mut pieces = match kind {
        FrameKind::Hdlc => hdlc::messages(bytes)?,
        FrameKind::MBus => mbus::messages(bytes)?,
        FrameKind::Wrapper => wrapper::messages(bytes)?,
        FrameKind::Llc => {
            let apdu = without_llc(bytes).ok_or(FrameFault::Start.of(kind, 1))?;
            Vec::from([apdu.to_vec()])
        }
        FrameKind::BlockTransfer => Vec::from([bytes.to_vec()]),
    };
    if kind == FrameKind::Hdlc {
        let mut any = false;
        for piece in &mut pieces {
            if let Some(apdu) = without_llc(piece) {
                *piece = apdu.to_vec();
                any = true;
            }
        }
        if any {
            layers.push(FrameKind::Llc);
        }
    }
    let in_blocks =
        pieces.first().is_some_and(|piece| piece.first() == Some(&GENERAL_BLOCK_TRANSFER));
    if in_blocks || kind == FrameKind::BlockTransfer {
        if kind != FrameKind::BlockTransfer {
            layers.push(FrameKind::BlockTransfer);
        }
        pieces = Vec::from([blocks::joined(&pieces)?]);
    }
    let several = FrameFault::Several(pieces.len()).of(kind, 1);
    match <[Vec<u8>; 1]>::try_from(pieces) {
        Ok([apdu]) if apdu.is_empty() => Err(FrameFault::Empty.of(kind, 1)),
        Ok([apdu]) => Ok(Some(Unframed { apdu, layers })),
        Err(_) => Err(several),
    }
}

//= IEC 62056-46, 5.4.2: E6, then E6 (command) or E7 (response), then 00
fn without_llc(bytes: &[u8]) -> Option<&[u8]> {
    match bytes {
        [0xE6, 0xE6 | 0xE7, 0x00, apdu @ ..] => Some(apdu),
        _ => None,
    }
}
