//! Bounds of what a message may unfold to. Two bytes on the wire can become a hundred in memory (an empty string, an
//! empty key), so what repeats is counted while a message arrives, before anything of it is decoded, and
//! room is taken by what it may cost and not by its length.

use super::{status::Refused, triage::FRAMES_MAX};
use crate::rpc::{access::verb::Verb, config::Limits};
use kms_core::ports::MetersMessage;

/// Lines in one message of an import, at most.
pub(crate) const LINES_MAX: usize = kms_core::wire::IMPORT_LINES_MAX;
/// Keys in one message that brings meters, at most.
const KEYS_MAX: usize = 16_384;
/// Client titles in such a message, at most: as many as its lines may have.
const TITLES_MAX: usize = LINES_MAX * kms_core::ClientTitles::MAX;
/// The longest message of an import: five hundred lines of eight kibibytes.
const IMPORT_BYTES_MAX: usize = 4 << 20;

/// Roles of one caller, at most.
const ROLES_MAX: usize = 16;
/// So much longer than the batch in it is what one node forwards to another.
pub(crate) const FORWARDED_BYTES: usize = 4 << 10;

/// Blocks in one list, at most: those of the largest key domain.
const BLOCKS_MAX: usize = 65_536;
/// The longest message of the other site: the states of as many blocks.
const PEER_BYTES_MAX: usize = 6 << 20;

/// Counters of fields.
const LENGTHS: usize = 0;
const IDS: usize = 1;
const SETUPS: usize = 2;
const ROLES: usize = 2;
const LINES: usize = 0;
const KEYS: usize = 1;
const TITLES: usize = 2;
const NAMES: usize = 0;
const FRAMES: usize = 0;
const STATES: usize = 1;

/// The fields of a message that matter here.
#[derive(Debug)]
struct Shape(&'static [(u32, Kind)]);

#[derive(Debug)]
enum Kind {
    /// Each one counts.
    Each(usize),
    /// Numbers, each of which counts, packed or not.
    Numbers(usize),
    /// A message within; it counts too, if so.
    Within(Option<usize>, &'static Shape),
    /// A message in bytes that are read only after their signature was checked, by [`check_signed`]. What
    /// can't be followed in them is left to that.
    Signed(&'static Shape),
}

static NOTHING: Shape = Shape(&[]);
static BATCH: Shape =
    Shape(&[(2, Kind::Numbers(LENGTHS)), (4, Kind::Each(IDS)), (5, Kind::Numbers(SETUPS))]);
static PLAIN: Shape = Shape(&[(2, Kind::Numbers(LENGTHS)), (4, Kind::Each(IDS))]);
static FORWARDED: Shape = Shape(&[(2, Kind::Each(ROLES)), (5, Kind::Within(None, &PLAIN))]);
static TRIAGE: Shape = Shape(&[(3, Kind::Each(FRAMES))]);
static POLICY: Shape = Shape(&[(8, Kind::Each(TITLES))]);
static METER: Shape = Shape(&[(4, Kind::Each(KEYS)), (5, Kind::Within(None, &POLICY))]);
static SET_POLICY: Shape = Shape(&[(2, Kind::Within(None, &POLICY))]);
static CREATE: Shape = Shape(&[(1, Kind::Within(None, &METER))]);
static LINE: Shape = Shape(&[(2, Kind::Within(None, &METER))]);
static BODY: Shape = Shape(&[(1, Kind::Within(Some(LINES), &LINE))]);
static CHUNK: Shape = Shape(&[(4, Kind::Signed(&BODY))]);
static SEALED: Shape = Shape(&[(2, Kind::Within(None, &CHUNK))]);
static NAMED: Shape = Shape(&[]);
static BLOCKS: Shape = Shape(&[(2, Kind::Each(NAMES)), (3, Kind::Within(Some(STATES), &NAMED))]);
static HANDED: Shape = Shape(&[(2, Kind::Within(Some(NAMES), &NAMED))]);
static IMPORT: Shape =
    Shape(&[(2, Kind::Within(Some(LINES), &LINE)), (3, Kind::Within(None, &SEALED))]);

/// Refuses what is no Protocol Buffers message, or has a group, which none of ours has.
const BROKEN: Refused = Refused::Field {
    field: "request",
    problem: "it is not a message of this call; encode it anew",
};

/// The limit of a counter that nothing is counted with.
const NO_LIMIT: (usize, &str) = (usize::MAX, "");

/// The levels that the shapes above have, and one.
const DEPTH_MAX: usize = 8;
const COUNTERS: usize = 3;

/// The bounds of the messages of one call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    shape: &'static Shape,
    /// The most of each counter, and what is said of it.
    most: [(usize, &'static str); COUNTERS],
    /// The longest message.
    pub(crate) bytes_max: usize,
    cost: Cost,
}

/// The cost of messages of a kind in memory, from their arrival to the last byte of their answer.
#[derive(Clone, Copy, Debug)]
struct Cost {
    /// For each byte: as it came, decoded, its answer, its answer encoded.
    per_byte: usize,
    /// The most entries, and what one of them takes; two bytes of a message make one.
    entries: (usize, usize),
    /// Whatever its length.
    flat: usize,
}

const HANDED_MOST: [(usize, &str); COUNTERS] =
    [(MetersMessage::AT_ONCE, "messages"), NO_LIMIT, NO_LIMIT];
const HANDED_COST: Cost =
    Cost { per_byte: 4, entries: (MetersMessage::AT_ONCE, 200), flat: 4 << 10 };

impl Rules {
    pub(crate) fn of(verb: Verb, limits: &Limits) -> Self {
        let items = limits.batch_items_max;
        let bytes_max = limits.message_bytes_max;
        let rules = |shape, most, cost| Self { shape, most, bytes_max, cost };
        let titles = (TITLES_MAX, "client titles");
        let bringing = [(LINES_MAX, "lines"), (KEYS_MAX, "keys"), titles];
        let keys = Cost { per_byte: 4, entries: (KEYS_MAX, 400), flat: 4 << 10 };
        match verb {
            Verb::DecryptBatch
            | Verb::DecryptStream
            | Verb::VerifyMicBatch
            | Verb::VerifyMicStream => rules(
                &BATCH,
                [(items, "items"), (items, "meter ids"), (items, "security setups")],
                Cost { per_byte: 3, entries: (items, 320), flat: 1 << 10 },
            ),
            // An answer is longer than its question by the header and the tag.
            Verb::EncryptBatch => rules(
                &PLAIN,
                [(items, "items"), (items, "meter ids"), NO_LIMIT],
                Cost { per_byte: 3, entries: (items, 480), flat: 1 << 10 },
            ),
            // An answer has a few hundred bytes for each frame, and as many for each cause.
            Verb::Triage => rules(
                &TRIAGE,
                [(FRAMES_MAX, "frames"), NO_LIMIT, NO_LIMIT],
                Cost { per_byte: 4, entries: (FRAMES_MAX, 2 << 10), flat: 4 << 10 },
            ),
            Verb::Protect => Self {
                bytes_max: bytes_max.saturating_add(FORWARDED_BYTES),
                ..rules(
                    &FORWARDED,
                    [(items, "items"), (items, "meter ids"), (ROLES_MAX, "roles")],
                    Cost { per_byte: 3, entries: (items, 480), flat: 4 << 10 },
                )
            },
            Verb::ImportMeters => {
                let bytes_max = bytes_max.min(IMPORT_BYTES_MAX);
                Self { bytes_max, ..rules(&IMPORT, bringing, keys) }
            }
            Verb::CreateMeter => rules(&CREATE, bringing, keys),
            Verb::SetPolicy => rules(&SET_POLICY, bringing, keys),
            // Lists of blocks, which unfold: a domain has 65,536 at most.
            Verb::ListBlockHeads
            | Verb::FetchBlocks
            | Verb::FollowChanges
            | Verb::ProveBlocks
            | Verb::ExchangeMarks => {
                let bytes_max = bytes_max.min(PEER_BYTES_MAX);
                let most = [(BLOCKS_MAX, "blocks"), (BLOCKS_MAX, "blocks"), NO_LIMIT];
                // What a follower says is stored is many messages, and not each has an answer.
                let flat = if verb == Verb::FollowChanges { 1 << 10 } else { 1 << 20 };
                let cost = Cost { per_byte: 4, entries: (BLOCKS_MAX, 160), flat };
                Self { bytes_max, ..rules(&BLOCKS, most, cost) }
            }
            Verb::HandEvidence => rules(&HANDED, HANDED_MOST, HANDED_COST),
            // Pages of what is stored.
            Verb::ListMeters | Verb::ListEvents | Verb::FollowEvents | Verb::ListFloors => {
                let cost = Cost { per_byte: 4, entries: (0, 0), flat: 1 << 20 };
                rules(&NOTHING, [NO_LIMIT; COUNTERS], cost)
            }
            _ => {
                let cost = Cost { per_byte: 4, entries: (0, 0), flat: 1 << 10 };
                rules(&NOTHING, [NO_LIMIT; COUNTERS], cost)
            }
        }
    }

    /// The most that a message of this length costs.
    pub(crate) fn cost(&self, bytes: usize) -> usize {
        let Cost { per_byte, entries: (most, each), flat } = self.cost;
        let entries = bytes.div_ceil(2).min(most);
        bytes.saturating_mul(per_byte).saturating_add(entries * each).saturating_add(flat)
    }
}

/// Counts what stands in the body of a sealed chunk, and refuses what can't be followed, once its signature
/// holds and before it is decoded.
pub(crate) fn check_signed(body: &[u8]) -> Result<(), Refused> {
    let rules = Rules {
        shape: &BODY,
        most: [(LINES_MAX, "lines"), (KEYS_MAX, "keys"), (TITLES_MAX, "client titles")],
        bytes_max: IMPORT_BYTES_MAX,
        cost: Cost { per_byte: 0, entries: (0, 0), flat: 0 },
    };
    let mut walk = Walk::new(&rules, body.len());
    walk.read(&rules, body)?;
    let is_whole = (walk.state, walk.depth, walk.shift) == (State::Tag, 0, 0);
    if is_whole { Ok(()) } else { Err(BROKEN) }
}

/// A message on its way in, read field by field as its bytes come. What can't be followed is refused here:
/// a decoder that passes over what this does not understand would unfold what nobody has counted.
#[derive(Debug)]
pub(crate) struct Walk {
    counts: [usize; COUNTERS],
    /// The messages that are open: their shape, and where they end.
    levels: [(&'static Shape, usize); DEPTH_MAX],
    depth: usize,
    /// The level of signed bytes that are open, and where they end.
    signed: Option<(usize, usize)>,
    /// The number of bytes that were read.
    at: usize,
    state: State,
    number: u64,
    shift: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// A field's number and type.
    Tag,
    /// A number that is passed over; it counts, if so.
    Number(Option<usize>),
    /// The length of a field.
    Length(u32),
    /// Bytes that are passed over.
    Skip(usize),
    /// Packed numbers, each of which counts.
    Packed(usize, usize),
}

impl Walk {
    /// A walk through a message that will have so many bytes.
    pub(crate) fn new(rules: &Rules, bytes: usize) -> Self {
        Self {
            counts: [0; COUNTERS],
            levels: [(rules.shape, bytes); DEPTH_MAX],
            depth: 0,
            signed: None,
            at: 0,
            state: State::Tag,
            number: 0,
            shift: 0,
        }
    }

    /// Reads on; refuses what there is too much of.
    pub(crate) fn read(&mut self, rules: &Rules, mut data: &[u8]) -> Result<(), Refused> {
        while let [first, rest @ ..] = data {
            match self.state {
                State::Skip(left) | State::Packed(left, _) => {
                    let (part, rest) = data.split_at(left.min(data.len()));
                    data = rest;
                    self.at += part.len();
                    let left = left - part.len();
                    self.state = match self.state {
                        State::Packed(_, counter) => {
                            // A number ends with the byte whose highest bit is not set.
                            let ends = part.iter().filter(|byte| **byte < 0x80).count();
                            self.count(rules, counter, ends)?;
                            State::Packed(left, counter)
                        }
                        _ => State::Skip(left),
                    };
                    if left == 0 {
                        self.close();
                    }
                }
                State::Tag | State::Number(_) | State::Length(_) => {
                    if self.shift > 63 || self.at >= self.levels[self.depth].1 {
                        self.broken()?;
                        continue;
                    }
                    data = rest;
                    self.at += 1;
                    self.number |= u64::from(first & 0x7F) << self.shift;
                    self.shift += 7;
                    if *first < 0x80 {
                        let number = std::mem::take(&mut self.number);
                        self.shift = 0;
                        self.have(rules, number)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// A number has been read in full.
    fn have(&mut self, rules: &Rules, number: u64) -> Result<(), Refused> {
        let (shape, end) = self.levels[self.depth];
        match self.state {
            State::Tag => {
                let field = u32::try_from(number >> 3).unwrap_or(u32::MAX);
                match number & 7 {
                    0 => {
                        self.state = State::Number(match shape.kind(field) {
                            Some(Kind::Numbers(counter)) => Some(*counter),
                            _ => None,
                        });
                    }
                    1 => self.skip(8, end)?,
                    2 => self.state = State::Length(field),
                    5 => self.skip(4, end)?,
                    // 3 and 4 are groups, which none of our messages has; the rest is no type at all.
                    _ => self.broken()?,
                }
            }
            State::Number(counter) => {
                if let Some(counter) = counter {
                    self.count(rules, counter, 1)?;
                }
                self.close();
            }
            State::Length(field) => {
                let length = usize::try_from(number).unwrap_or(usize::MAX);
                if length > end.saturating_sub(self.at) {
                    return self.broken();
                }
                match shape.kind(field) {
                    Some(Kind::Each(counter)) => {
                        self.count(rules, *counter, 1)?;
                        self.skip(length, end)?;
                    }
                    Some(Kind::Numbers(counter)) if length > 0 => {
                        self.state = State::Packed(length, *counter);
                    }
                    Some(Kind::Within(counter, shape)) => {
                        if let Some(counter) = counter {
                            self.count(rules, *counter, 1)?;
                        }
                        self.enter(shape, length)?;
                    }
                    Some(Kind::Signed(shape)) => {
                        self.signed = Some((self.depth, self.at + length));
                        self.enter(shape, length)?;
                    }
                    Some(Kind::Numbers(_)) | None => self.skip(length, end)?,
                }
            }
            State::Skip(_) | State::Packed(..) => {}
        }
        Ok(())
    }

    fn skip(&mut self, length: usize, end: usize) -> Result<(), Refused> {
        if length > end.saturating_sub(self.at) {
            return self.broken();
        }
        self.state = State::Skip(length);
        if length == 0 {
            self.close();
        }
        Ok(())
    }

    fn enter(&mut self, shape: &'static Shape, length: usize) -> Result<(), Refused> {
        if self.depth + 1 == DEPTH_MAX {
            return Err(BROKEN);
        }
        self.depth += 1;
        self.levels[self.depth] = (shape, self.at + length);
        self.close();
        Ok(())
    }

    /// The bytes that come can't be followed: refused, or, in signed bytes, passed over to their end.
    fn broken(&mut self) -> Result<(), Refused> {
        let (depth, end) = self.signed.take().ok_or(BROKEN)?;
        (self.depth, self.number, self.shift) = (depth, 0, 0);
        self.state = State::Skip(end - self.at);
        if self.at == end {
            self.close();
        }
        Ok(())
    }

    /// A field has ended, and with it perhaps the messages around it.
    fn close(&mut self) {
        self.state = State::Tag;
        while self.depth > 0 && self.at >= self.levels[self.depth].1 {
            self.depth -= 1;
        }
        self.signed = self.signed.filter(|(depth, _)| self.depth > *depth);
    }

    fn count(&mut self, rules: &Rules, counter: usize, more: usize) -> Result<(), Refused> {
        self.counts[counter] += more;
        let (limit, what) = rules.most[counter];
        if self.counts[counter] > limit { Err(Refused::TooMany { what, limit }) } else { Ok(()) }
    }
}

impl Shape {
    fn kind(&self, field: u32) -> Option<&'static Kind> {
        self.0.iter().find(|(number, _)| *number == field).map(|(_, kind)| kind)
    }
}

#[cfg(test)]
mod tests {
    use kms_proto::v1;
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;

    fn limits() -> Limits {
        Limits { batch_items_max: 100, ..Limits::default() }
    }

    fn counts(verb: Verb, bytes: &[u8], piece: usize) -> Result<[usize; COUNTERS], Refused> {
        let rules = Rules::of(verb, &limits());
        let mut walk = Walk::new(&rules, bytes.len());
        for piece in bytes.chunks(piece) {
            walk.read(&rules, piece)?;
        }
        Ok(walk.counts)
    }

    fn meter(keys: usize) -> v1::NewMeter {
        v1::NewMeter {
            meter_id: "m".into(),
            keys: vec![v1::NewKey::default(); keys],
            ..v1::NewMeter::default()
        }
    }

    fn import(meters: &[usize]) -> v1::ImportMetersRequest {
        let line = |keys: &usize| v1::ImportLine { line: 9, meter: Some(meter(*keys)) };
        v1::ImportMetersRequest {
            lines: meters.iter().map(line).collect(),
            ..v1::ImportMetersRequest::default()
        }
    }

    proptest! {
        #[test]
        fn a_batch_is_counted_as_prost_decodes_it(
            lengths in prop::collection::vec(any::<u32>(), 0..90),
            ids in prop::collection::vec("[a-z]{0,5}", 0..90),
            setups in prop::collection::vec(0u32..400, 0..90),
            apdus in prop::collection::vec(any::<u8>(), 0..400),
            piece in 1usize..50,
        ) {
            let batch = v1::ApduBatch {
                apdus: apdus.into(),
                lengths: lengths.clone(),
                meter_ids: ids.clone(),
                security_setups_plus_one: setups.clone(),
                tag: 1 << 60,
                ..v1::ApduBatch::default()
            };
            let counted = counts(Verb::DecryptStream, &batch.encode_to_vec(), piece);
            prop_assert_eq!(counted, Ok([lengths.len(), ids.len(), setups.len()]));
        }

        #[test]
        fn an_import_is_counted_as_prost_decodes_it(
            meters in prop::collection::vec(0usize..20, 0..40),
            piece in 1usize..50,
        ) {
            let keys: usize = meters.iter().sum();
            let plain = import(&meters);
            let body = v1::SealedBody { lines: plain.lines.clone() };
            let chunk = v1::SealedChunk {
                body: body.encode_to_vec().into(),
                ..v1::SealedChunk::default()
            };
            let part = v1::SealedPart { chunk: Some(chunk), ..v1::SealedPart::default() };
            let sealed =
                v1::ImportMetersRequest { sealed: Some(part), ..v1::ImportMetersRequest::default() };
            for message in [plain, sealed] {
                let counted = counts(Verb::ImportMeters, &message.encode_to_vec(), piece);
                prop_assert_eq!(counted, Ok([meters.len(), keys, 0]));
            }
        }

        /// The count is never less than the fields that prost takes, whatever the bytes.
        #[test]
        fn nothing_that_prost_decodes_is_counted_short(
            bytes in prop::collection::vec(prop_oneof![
                Just(0x12u8), Just(0x22), Just(0x10), Just(0x28), Just(0x0A), 0u8..6, any::<u8>(),
            ], 0..60),
            piece in 1usize..9,
        ) {
            if let (Ok(batch), Ok(counted)) =
                (v1::ApduBatch::decode(&bytes[..]), counts(Verb::DecryptBatch, &bytes, piece))
            {
                prop_assert!(counted[LENGTHS] >= batch.lengths.len());
                prop_assert!(counted[IDS] >= batch.meter_ids.len());
                prop_assert!(counted[SETUPS] >= batch.security_setups_plus_one.len());
            }
            if let (Ok(import), Ok(counted)) = (
                v1::ImportMetersRequest::decode(&bytes[..]),
                counts(Verb::ImportMeters, &bytes, piece),
            ) {
                prop_assert!(counted[LINES] >= import.lines.len());
                let meters = import.lines.iter().filter_map(|line| line.meter.as_ref());
                let keys: usize = meters.map(|meter| meter.keys.len()).sum();
                prop_assert!(counted[KEYS] >= keys);
            }
        }
    }

    #[test]
    fn what_can_t_be_followed_is_refused_and_not_passed_over() {
        let refused = |verb, bytes: &[u8]| counts(verb, bytes, 3).unwrap_err().to_string();
        let keys = [0x22, 0].repeat(20_000);
        // A group around what is no field: a decoder passes over both, and goes on counting nothing.
        let group = [&[0x7B, 0x0A, 1, 7, 0x7C][..], &keys].concat();
        for verb in [Verb::CreateMeter, Verb::ImportMeters, Verb::DecryptStream] {
            assert!(refused(verb, &group).contains("not a message of this call"), "{verb:?}");
            assert!(refused(verb, &[0x7C]).contains("not a message of this call"), "{verb:?}");
        }
        // A meter that is longer than the line around it.
        let nested = [&[0x12, 3, 0x12, 0x80, 0x80][..], &[0x01], &keys].concat();
        assert!(refused(Verb::ImportMeters, &nested).contains("not a message of this call"));
        assert!(refused(Verb::ImportMeters, &[0x17]).contains("not a message of this call"));
        assert!(refused(Verb::Decrypt, &[0xFF; 11]).contains("not a message of this call"));
        // A number that goes on behind the message that it stands in.
        let number = [0x12, 2, 0x08, 0x80, 0x01];
        assert!(refused(Verb::ImportMeters, &number).contains("not a message of this call"));
        // In signed bytes it is for the signature to say so first; what stands behind them is counted.
        for (body, lines) in
            [(&[0x7B][..], 2), (&[0x0A, 9], 2), (&[0x0A], 2), (&[0x80], 2), (&[0x0A, 1, 0x17], 3)]
        {
            let chunk = [&[0x22, body.len() as u8][..], body].concat();
            let sealed = [&[0x12, chunk.len() as u8][..], &chunk].concat();
            let import = [&[0x1A, sealed.len() as u8][..], &sealed, &[0x12, 0, 0x12, 0]].concat();
            for piece in 1..import.len() {
                let counted = counts(Verb::ImportMeters, &import, piece);
                assert_eq!(counted, Ok([lines, 0, 0]), "{body:?}");
            }
            assert!(check_signed(body).is_err(), "{body:?}");
        }
        assert!(check_signed(&[0x0A, 0].repeat(501)).is_err());
        assert_eq!(check_signed(&[0x0A, 0].repeat(500)), Ok(()));
    }

    #[test]
    fn what_repeats_too_often_is_refused_before_its_end() {
        let refused = |verb, bytes: &[u8]| counts(verb, bytes, 1_000).unwrap_err().to_string();
        let ids = [0x22, 0].repeat(101);
        assert!(refused(Verb::DecryptBatch, &ids).contains("more than 100 meter ids"));
        let lengths = v1::ApduBatch { lengths: vec![1; 101], ..v1::ApduBatch::default() };
        let said = refused(Verb::VerifyMicStream, &lengths.encode_to_vec());
        assert!(said.contains("more than 100 items"), "{said}");
        // Not packed.
        assert!(refused(Verb::DecryptStream, &[0x10, 1].repeat(101)).contains("100 items"));
        let lines = [0x12, 0].repeat(501);
        assert!(refused(Verb::ImportMeters, &lines).contains("more than 500 lines"));
        let keys = import(&[16_000, 385]).encode_to_vec();
        assert!(refused(Verb::ImportMeters, &keys).contains("more than 16384 keys"));
        let request = v1::CreateMeterRequest { meter: Some(meter(16_385)), rules: None };
        let said = refused(Verb::CreateMeter, &request.encode_to_vec());
        assert!(said.contains("more than 16384 keys"), "{said}");
        let policy = v1::MeterPolicy {
            client_titles: vec![v1::ClientTitle::default(); 8_001],
            ..v1::MeterPolicy::default()
        };
        let titled = v1::NewMeter { policy: Some(policy.clone()), ..meter(0) };
        let request = v1::CreateMeterRequest { meter: Some(titled), rules: None };
        let said = refused(Verb::CreateMeter, &request.encode_to_vec());
        assert!(said.contains("more than 8000 client titles"), "{said}");
        let request = v1::SetPolicyRequest { meter_id: "m".into(), policy: Some(policy) };
        let said = refused(Verb::SetPolicy, &request.encode_to_vec());
        assert!(said.contains("more than 8000 client titles"), "{said}");
    }

    #[test]
    fn a_message_costs_more_than_its_length() {
        let rules = |verb| Rules::of(verb, &Limits::default());
        // A full batch of 150 bytes an item: itself, what is opened, the answer; and the items.
        let batch = rules(Verb::DecryptBatch).cost(16_384 * 152);
        assert!((10 << 20..16 << 20).contains(&batch), "{batch}");
        assert_eq!(rules(Verb::Decrypt).cost(150), 1_624);
        assert!(rules(Verb::ImportMeters).cost(4 << 20) < 32 << 20);
    }
}
