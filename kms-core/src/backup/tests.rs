use proptest::prelude::*;

use super::{
    chunk::{BadChunk, HEAD_LEN, Opener, Sealer},
    header::Header,
    part::{Cell, Part, Rows, Table, decode_last, encode_last},
    summary::{Counter, Summary},
};
use crate::{BlockSecret, DomainId, Epoch};

fn key(byte: u8) -> BlockSecret {
    BlockSecret::fill_with(|bytes| {
        bytes.fill(byte);
        Ok::<(), ()>(())
    })
    .unwrap()
}

fn header() -> Header {
    Header {
        domain: DomainId([7; 16]),
        site: "north".to_owned(),
        id: [1; 16],
        at_ms: 5,
        release: "1.2.3".to_owned(),
        schema: 5,
        kek_id: [2; 16],
        canaries: vec![6; 9],
        sealed_key: vec![3; 61],
    }
}

fn chunks() -> Vec<Vec<u8>> {
    let mut sealer = Sealer::new(&key(9), header().digest());
    let contents = [&b"first"[..], b"second", b"", b"the last"];
    contents.iter().enumerate().map(|(n, text)| sealer.seal(text, n == 3).unwrap()).collect()
}

/// Reads a file of these chunks as a reader does.
fn read(bytes: &[u8], key: &BlockSecret, header: [u8; 32]) -> Result<Vec<Vec<u8>>, BadChunk> {
    let (mut opener, mut rest, mut contents) = (Opener::new(key, header), bytes, Vec::new());
    while !rest.is_empty() {
        let cut = BadChunk::Cut(opener.next());
        let (head, body) = rest.split_first_chunk::<HEAD_LEN>().ok_or(cut)?;
        let coming = opener.coming(head)?;
        let (sealed, behind) = body.split_at_checked(coming.len).ok_or(cut)?;
        contents.push(opener.open(&coming, sealed)?);
        rest = behind;
    }
    if opener.ended() { Ok(contents) } else { Err(BadChunk::Cut(opener.next())) }
}

fn read_whole(chunks: &[Vec<u8>]) -> Result<Vec<Vec<u8>>, BadChunk> {
    read(&chunks.concat(), &key(9), header().digest())
}

#[test]
fn invariant_5_a_chunk_that_is_cut_doubled_swapped_or_left_out_is_refused_by_name() {
    let all = chunks();
    assert_eq!(read_whole(&all).unwrap().concat(), b"firstsecondthe last");
    let twice = [&all[..2], &all[1..]].concat();
    assert_eq!(read_whole(&twice), Err(BadChunk::Again { expected: 2, found: 1 }));
    let swapped = [all[0].clone(), all[2].clone(), all[1].clone(), all[3].clone()];
    assert_eq!(read_whole(&swapped), Err(BadChunk::Missing { expected: 1, found: 2 }));
    let without = [all[0].clone(), all[2].clone(), all[3].clone()];
    assert_eq!(read_whole(&without), Err(BadChunk::Missing { expected: 1, found: 2 }));
    assert_eq!(read_whole(&all[..3]), Err(BadChunk::Cut(3)));
    let behind = [&all[..], &all[3..]].concat();
    assert_eq!(read_whole(&behind), Err(BadChunk::Behind));
    let whole = all.concat();
    for end in 0..whole.len() {
        let cut = read(&whole[..end], &key(9), header().digest());
        assert!(matches!(cut, Err(BadChunk::Cut(_))), "{end}: {cut:?}");
    }
}

#[test]
fn invariant_5_each_flipped_bit_of_a_backup_is_refused() {
    let whole = chunks().concat();
    for at in 0..whole.len() {
        for bit in 0..8 {
            let mut flipped = whole.clone();
            flipped[at] ^= 1 << bit;
            assert!(read(&flipped, &key(9), header().digest()).is_err(), "byte {at}, bit {bit}");
        }
    }
}

#[test]
fn invariant_5_chunks_of_another_file_do_not_open_in_this_one() {
    let other = Header { id: [4; 16], ..header() };
    let whole = chunks().concat();
    assert_eq!(read(&whole, &key(9), other.digest()), Err(BadChunk::Changed(0)));
    assert_eq!(read(&whole, &key(8), header().digest()), Err(BadChunk::Changed(0)));
    let places = [header(), other, Header { site: "south".to_owned(), ..header() }];
    let places = places.map(|header| header.place());
    assert!(places[0] != places[1] && places[0] != places[2]);
}

fn table() -> Table {
    let columns = ["node", "sequence", "hash"].map(str::to_owned).into();
    Table { name: "audit_chains".to_owned(), columns }
}

#[test]
fn a_summary_counts_what_passes_and_comes_back_from_its_message() {
    let mut counter = Counter::default();
    let mut rows = Rows::default();
    rows.push(&[Cell::Bytes(vec![1; 16]), Cell::Integer(8), Cell::Bytes(vec![2; 32])]);
    let role = Table {
        name: "role".to_owned(),
        columns: ["one", "epoch", "writes"].map(str::to_owned).into(),
    };
    let mut standing = Rows::default();
    standing.push(&[Cell::Integer(1), Cell::Integer(4), Cell::Integer(1)]);
    let parts = [Part::Table(table()), Part::Rows(rows), Part::Table(role), Part::Rows(standing)];
    for part in &parts {
        let content = part.encode();
        assert_eq!(Part::decode(&content), Ok(part.clone()));
        counter.see(part, &content).unwrap();
    }
    let summary = counter.summary();
    assert_eq!(summary.tables, [("audit_chains".to_owned(), 1), ("role".to_owned(), 1)]);
    assert_eq!((summary.epoch, summary.writes), (Epoch(4), true));
    assert_eq!(summary.tips[0].sequence, 8);
    let header = header().digest();
    let message = summary.message(&header);
    assert_eq!(Summary::decode(&message, &header), Ok(summary));
    assert!(Summary::decode(&message, &[0; 32]).is_err());
    assert!((0..message.len()).all(|end| Summary::decode(&message[..end], &header).is_err()));
    let last = encode_last(&message, &[5; 64]);
    assert_eq!(decode_last(&last), Ok((&message[..], [5; 64])));
}

#[test]
fn a_header_comes_back_from_its_bytes_and_from_no_others() {
    let bytes = header().encode();
    assert_eq!(Header::decode(&bytes), Ok(header()));
    assert!((0..bytes.len()).all(|end| Header::decode(&bytes[..end]).is_err()));
}

fn any_cell() -> impl Strategy<Value = Cell> {
    prop_oneof![
        Just(Cell::Null),
        any::<i64>().prop_map(Cell::Integer),
        proptest::collection::vec(any::<u8>(), 0..40).prop_map(Cell::Bytes),
        "\\PC{0,20}".prop_map(Cell::Text),
    ]
}

proptest! {
    #[test]
    fn rows_come_back_as_they_were(all in proptest::collection::vec(
        proptest::collection::vec(any_cell(), 3), 0..20)
    ) {
        let mut rows = Rows::default();
        all.iter().for_each(|row| rows.push(row));
        prop_assert_eq!(rows.rows(3).unwrap(), all);
    }

    #[test]
    fn whatever_stands_in_a_chunk_is_read_or_refused(
        bytes in proptest::collection::vec(any::<u8>(), 0..200), columns in 0_usize..5
    ) {
        if let Ok(part) = Part::decode(&bytes) {
            prop_assert_eq!(part.encode(), bytes.clone());
            if let Part::Rows(rows) = part {
                let _ = rows.rows(columns);
            }
        }
        let _ = Header::decode(&bytes);
        let _ = Summary::decode(&bytes, &[0; 32]);
        let _ = decode_last(&bytes);
    }
}
