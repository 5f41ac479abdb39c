//! Frames: published recordings, and what goes wrong with them.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may")]

mod common;

use common::vectors;
use dlms::frame::{FrameError, FrameFault, FrameKind, Unframed, unframe};
use proptest::prelude::*;

const APDU: &[u8] = &[0xC8, 0x07, 0x30, 0, 0, 0, 1, 1, 2];

fn taken_off(bytes: &[u8]) -> Unframed {
    unframe(bytes, None).unwrap().unwrap()
}

fn fault(bytes: &[u8]) -> FrameError {
    unframe(bytes, None).unwrap_err()
}

/// Written bit by bit, otherwise than the crate does.
fn crc(bytes: &[u8]) -> [u8; 2] {
    let mut fcs = 0xFFFF_u32;
    for byte in bytes {
        for bit in 0..8 {
            let feedback = (fcs ^ u32::from(byte >> bit)) & 1;
            fcs = fcs >> 1 ^ if feedback == 1 { 0x8408 } else { 0 };
        }
    }
    (!(fcs as u16)).to_le_bytes()
}

fn hdlc(control: u8, segmented: bool, information: &[u8]) -> Vec<u8> {
    let header = [0x03, 0x02, 0x23, control];
    let len = 2 + header.len() + if information.is_empty() { 2 } else { 4 + information.len() };
    let format = 0xA000 | if segmented { 0x0800 } else { 0 } | len as u16;
    let mut frame = [&format.to_be_bytes()[..], &header].concat();
    if !information.is_empty() {
        frame.extend(crc(&frame));
        frame.extend_from_slice(information);
    }
    frame.extend(crc(&frame));
    [&[0x7E], &frame[..], &[0x7E]].concat()
}

fn mbus(control_information: u8, data: &[u8]) -> Vec<u8> {
    let body = [&[0x53, 0xFF, control_information, 0x01, 0x67], data].concat();
    let sum = body.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    let len = body.len() as u8;
    [&[0x68, len, len, 0x68], &body[..], &[sum, 0x16]].concat()
}

fn wrapped(apdu: &[u8]) -> Vec<u8> {
    [&[0, 1, 0, 1, 0, 0x10], &(apdu.len() as u16).to_be_bytes()[..], apdu].concat()
}

fn block(control: u8, number: u16, data: &[u8]) -> Vec<u8> {
    [&[0xE0, control], &number.to_be_bytes()[..], &[0, 0, data.len() as u8], data].concat()
}

#[test]
fn the_published_recordings_give_the_published_apdus() {
    let mut kinds = Vec::new();
    for class in ["1", "2", "3"] {
        for vector in vectors(class, "dlms-apdu") {
            let Some(transport) = &vector.transport else { continue };
            let Some(frame) = transport.frame() else { continue };
            let unframed = taken_off(&frame);
            // A container (AARQ, RLRE, …) stands around some.
            let apdu = vector.apdu();
            let there = unframed.apdu.windows(apdu.len()).any(|part| part == apdu);
            assert!(there, "{}: {unframed:?}", vector.id);
            if unframed.apdu[0] & 0xF0 != 0x60 {
                assert_eq!(unframed.apdu, apdu, "{}", vector.id);
            }
            let in_blocks = transport.kind.contains("general-block-transfer");
            assert_eq!(unframed.layers.contains(&FrameKind::BlockTransfer), in_blocks);
            kinds.push(unframed.layers[0]);
        }
    }
    let count = |kind| kinds.iter().filter(|found| **found == kind).count();
    assert_eq!(count(FrameKind::Hdlc), 4);
    assert_eq!(count(FrameKind::MBus), 2);
    assert!(count(FrameKind::Wrapper) >= 7);
}

#[test]
fn a_flipped_bit_anywhere_in_a_published_recording_is_refused() {
    for vector in vectors("1", "dlms-apdu") {
        let Some(frame) = vector.transport.as_ref().and_then(common::Transport::frame) else {
            continue;
        };
        // The wrapper has no checksum.
        if frame[0] == 0 {
            continue;
        }
        for at in 0..frame.len() {
            let mut flipped = frame.clone();
            flipped[at] ^= 1 << (at % 8);
            match unframe(&flipped, FrameKind::of_start(&frame)) {
                Err(_) => {}
                other => panic!("{}: byte {at}: {other:?}", vector.id),
            }
        }
    }
}

#[test]
fn what_is_no_frame_is_left_alone() {
    assert_eq!(unframe(APDU, None), Ok(None));
    assert_eq!(unframe(&[], None), Ok(None));
    assert_eq!(unframe(&[0, 1, 0xFF, 0xAB], None), Ok(None));
    assert_eq!(unframe(&[0x68, 1, 2, 0x68], None), Ok(None));
}

#[test]
fn a_frame_that_was_named_must_be_there() {
    for kind in [
        FrameKind::Hdlc,
        FrameKind::MBus,
        FrameKind::Wrapper,
        FrameKind::Llc,
        FrameKind::BlockTransfer,
    ] {
        let error = unframe(APDU, Some(kind)).unwrap_err();
        assert_eq!((error.kind, error.frame), (kind, 1));
        assert!(unframe(&[], Some(kind)).is_err(), "{kind}");
    }
}

#[test]
fn each_kind_says_what_it_took_off() {
    let llc = [&[0xE6, 0xE7, 0x00], APDU].concat();
    let i_frame = hdlc(0x10, false, &llc);
    for (bytes, layers) in [
        (llc.clone(), &[FrameKind::Llc][..]),
        (i_frame, &[FrameKind::Hdlc, FrameKind::Llc]),
        (hdlc(0x13, false, APDU), &[FrameKind::Hdlc]),
        (mbus(0x10, APDU), &[FrameKind::MBus]),
        (wrapped(APDU), &[FrameKind::Wrapper]),
        (block(0x80, 1, APDU), &[FrameKind::BlockTransfer]),
        (wrapped(&block(0xC0, 1, APDU)), &[FrameKind::Wrapper, FrameKind::BlockTransfer]),
    ] {
        let unframed = taken_off(&bytes);
        assert_eq!(unframed.apdu, APDU);
        assert_eq!(unframed.layers, layers);
    }
}

#[test]
fn hdlc_segments_are_joined_in_their_order_across_acknowledgements() {
    let (first, second) = APDU.split_at(4);
    let first = [&[0xE6, 0xE7, 0x00], first].concat();
    // N(S) 7, then 0; in between the other end says RR.
    let mut rr = vec![0xA0, 0x08, 0x02, 0x23, 0x03, 0x31];
    rr.extend(crc(&rr));
    let rr = [&[0x7E], &rr[..], &[0x7E]].concat();
    let both = [hdlc(0x1E, true, &first), hdlc(0x10, false, second)].concat();
    assert_eq!(taken_off(&both).apdu, APDU);
    let acknowledged = [hdlc(0x1E, true, &first), rr, hdlc(0x10, false, second)];
    assert_eq!(taken_off(&acknowledged.concat()).apdu, APDU);
    // Neighbours may share a flag.
    let shared = [&hdlc(0x1E, true, &first)[..], &hdlc(0x10, false, second)[1..]].concat();
    assert_eq!(taken_off(&shared).apdu, APDU);

    let lost = [hdlc(0x1E, true, &first), hdlc(0x12, false, second)].concat();
    assert_eq!(fault(&lost).fault, FrameFault::Order { due: 0, found: 1 });
    assert_eq!(fault(&hdlc(0x1E, true, &first)).fault, FrameFault::NotEnded);
}

#[test]
fn a_bad_checksum_is_named() {
    let good = hdlc(0x10, false, APDU);
    let mut fcs = good.clone();
    let at = fcs.len() - 3;
    fcs[at] ^= 1;
    let said = fault(&fcs).to_string();
    assert!(said.starts_with("HDLC, frame 1: its FCS is "), "{said}");
    // The header changed, and the FCS made anew: only the HCS knows.
    let mut hcs = good[1..good.len() - 3].to_vec();
    hcs[4] = 0x25;
    let hcs = [&[0x7E], &hcs[..], &crc(&hcs), &[0x7E]].concat();
    let said = fault(&hcs).to_string();
    assert!(said.contains("its HCS is "), "{said}");
    let mut sum = mbus(0x10, APDU);
    sum[12] ^= 1;
    let said = fault(&sum).to_string();
    assert!(said.contains("M-Bus, frame 1: its checksum is "), "{said}");
}

#[test]
fn mbus_segments_are_joined_in_their_order() {
    let (first, second) = APDU.split_at(4);
    assert_eq!(taken_off(&[mbus(0x00, first), mbus(0x11, second)].concat()).apdu, APDU);
    let lost = fault(&[mbus(0x00, first), mbus(0x12, second)].concat());
    assert_eq!(lost.fault, FrameFault::Order { due: 1, found: 2 });
    assert_eq!((lost.kind, lost.frame), (FrameKind::MBus, 2));
    assert_eq!(fault(&mbus(0x00, first)).fault, FrameFault::NotEnded);
    let ended = fault(&[mbus(0x10, APDU), mbus(0x10, APDU)].concat());
    assert_eq!(ended.fault, FrameFault::Several(2));
}

#[test]
fn frames_that_carry_no_apdu_are_called_so() {
    // SNRM; UA; data of another application on the M-Bus.
    for frame in [hdlc(0x93, false, &[]), hdlc(0x73, false, APDU), mbus(0x72, APDU)] {
        let error = fault(&frame);
        assert!(matches!(error.fault, FrameFault::NoApdu { .. }), "{error}");
    }
    assert_eq!(fault(&hdlc(0x31, false, &[])).fault, FrameFault::Empty);
    assert_eq!(fault(&wrapped(&[])).fault, FrameFault::Empty);
}

#[test]
fn a_recording_that_was_cut_is_refused_wherever_it_was_cut() {
    for frame in [hdlc(0x10, false, APDU), mbus(0x10, APDU), wrapped(APDU), block(0x80, 1, APDU)] {
        let kind = FrameKind::of_start(&frame);
        for len in 0..frame.len() {
            assert!(unframe(&frame[..len], kind).is_err(), "{kind:?} cut at {len}");
        }
        let more = [&frame[..], &[0xAA]].concat();
        assert!(unframe(&more, kind).is_err(), "{kind:?} with more behind it");
    }
}

#[test]
fn blocks_are_joined_from_the_first_to_the_last() {
    let (first, second) = APDU.split_at(4);
    assert_eq!(taken_off(&[block(0x40, 1, first), block(0xC0, 2, second)].concat()).apdu, APDU);
    let in_wrappers = [wrapped(&block(0x40, 1, first)), wrapped(&block(0xC0, 2, second))].concat();
    assert_eq!(taken_off(&in_wrappers).apdu, APDU);
    for (blocks, expected) in [
        (vec![block(0x40, 1, first)], FrameFault::NotEnded),
        (vec![block(0xC0, 2, second)], FrameFault::Order { due: 1, found: 2 }),
        (
            vec![block(0x40, 1, first), block(0xC0, 3, second)],
            FrameFault::Order { due: 2, found: 3 },
        ),
        (vec![block(0x80, 1, APDU), block(0x80, 2, APDU)], FrameFault::BehindTheEnd),
        (vec![block(0x40, 1, first), APDU.to_vec()], FrameFault::Start),
    ] {
        let error = fault(&blocks.concat());
        assert_eq!((error.kind, error.fault), (FrameKind::BlockTransfer, expected));
    }
}

#[test]
fn frames_of_two_conversations_are_not_mixed() {
    let (first, second) = APDU.split_at(4);
    let mut other = wrapped(&block(0xC0, 2, second));
    other[5] = 0x11;
    let error = fault(&[wrapped(&block(0x40, 1, first)), other].concat());
    assert_eq!(error.fault, FrameFault::OtherStations);
}

/// Makes the frame of a piece: its number, whether it is the last, its bytes.
type Framing<'a> = &'a dyn Fn(usize, bool, &[u8]) -> Vec<u8>;

proptest! {
    #[test]
    fn no_bytes_make_it_panic_and_what_comes_out_was_in_there(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..200),
        start in 0_usize..6,
    ) {
        let starts: [&[u8]; 6] =
            [&[], &[0x7E, 0xA0], &[0x68, 9, 9, 0x68], &[0, 1, 0, 1, 0, 1, 0], &[0xE6, 0xE7, 0], &[0xE0, 0x80, 0, 1]];
        bytes.splice(0..0, starts[start].iter().copied());
        if let Ok(Some(unframed)) = unframe(&bytes, None) {
            prop_assert!(!unframed.apdu.is_empty() && unframed.apdu.len() < bytes.len());
        }
    }

    #[test]
    fn what_is_cut_into_blocks_segments_and_frames_comes_out_whole(
        apdu in proptest::collection::vec(any::<u8>(), 2..2_000),
        size in 1_usize..110,
    ) {
        prop_assume!(apdu[0] != 0xE0 && apdu[..2] != [0xE6, 0xE6] && apdu[..2] != [0xE6, 0xE7]);
        let parts: Vec<_> = apdu.chunks(size).collect();
        let last = parts.len() - 1;
        let frames = |make: Framing<'_>| {
            parts.iter().enumerate().flat_map(|(n, part)| make(n, n == last, part)).collect::<Vec<u8>>()
        };
        let segments = frames(&|n, end, part| hdlc((n as u8 & 7) << 1, !end, part));
        prop_assert_eq!(&taken_off(&segments).apdu, &apdu);
        let segments = frames(&|n, end, part| mbus(n as u8 & 15 | if end { 0x10 } else { 0 }, part));
        prop_assert_eq!(&taken_off(&segments).apdu, &apdu);
        let numbered = |n: usize, end, part: &[u8]| {
            block(if end { 0x80 } else { 0 }, n as u16 + 1, part)
        };
        prop_assert_eq!(&taken_off(&frames(&numbered)).apdu, &apdu);
        let in_hdlc = frames(&|n, end, part| hdlc(0x13, false, &numbered(n, end, part)));
        prop_assert_eq!(&taken_off(&in_hdlc).apdu, &apdu);
    }
}
