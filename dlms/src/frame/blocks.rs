//! general-block-transfer: one APDU in numbered blocks.

use alloc::vec::Vec;

use super::{
    fault::{FrameError, FrameFault},
    kind::FrameKind,
};
use crate::axdr::Reader;
use crate::tags::GENERAL_BLOCK_TRANSFER;

/// Of block-control: nothing follows.
const LAST: u8 = 0x80;

/// The APDU of all blocks, which stand one after the other in `pieces`, from the first to the last.
//= Green Book, COSEMpdu, General-Block-Transfer
//# block-control (1), block-number (2, from 1), block-number-ack (2), block-data OCTET STRING
pub(super) fn joined(pieces: &[Vec<u8>]) -> Result<Vec<u8>, FrameError> {
    let mut apdu = Vec::new();
    let mut ended = false;
    let mut count: u16 = 0;
    for piece in pieces {
        let mut reader = Reader::new(piece);
        while !reader.rest().is_empty() {
            let due = count.saturating_add(1);
            let wrong = |fault: FrameFault| fault.of(FrameKind::BlockTransfer, due.into());
            let short = |_| wrong(FrameFault::Cut);
            if ended {
                return Err(wrong(FrameFault::BehindTheEnd));
            }
            if reader.byte("tag").map_err(short)? != GENERAL_BLOCK_TRANSFER {
                return Err(wrong(FrameFault::Start));
            }
            let control = reader.byte("block control").map_err(short)?;
            let number = u16::from_be_bytes(*reader.array("block number").map_err(short)?);
            reader.array::<2>("block number acknowledged").map_err(short)?;
            let data = reader.octet_string("block data").map_err(short)?;
            if number != due {
                return Err(wrong(FrameFault::Order { due, found: number }));
            }
            apdu.extend_from_slice(data);
            ended = control & LAST != 0;
            count = due;
        }
    }
    if ended {
        Ok(apdu)
    } else {
        Err(FrameFault::NotEnded.of(FrameKind::BlockTransfer, count.into()))
    }
}
