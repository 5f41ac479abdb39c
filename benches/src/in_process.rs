//! The figures that need no wire: open, look-up, batch.

use std::hint::black_box;

use aes_gcm::KeyInit;
use dlms::{CipheredApdu, GeneralCipheringAad, Keys};
use kms_core::{SystemTitle, Verdict};
use kms_server::{
    ciphering::{Ciphering, Item, Named, Want},
    keyring::Keyring,
};
use tokio::runtime::Runtime;

use crate::{
    bare::{self, AHEAD, FlatTable},
    fleet::{self, PLAINTEXT_LEN, Telegrams},
};

/// APDUs in a batch.
pub const BATCH: usize = 1_024;

/// `dlms`: parse and open each telegram with its meter's keys, the key expanded each time.
pub fn dlms_open(telegrams: &[&[u8]], guek: &[u8; 16], gak: &[u8; 16], out: &mut Vec<u8>) -> usize {
    let mut opened = 0;
    for apdu in telegrams {
        let keys = Keys { encryption: black_box(guek), authentication: gak };
        out.clear();
        let Ok(apdu) = CipheredApdu::parse(apdu) else { continue };
        let Some(title) = apdu.system_title() else { continue };
        opened += usize::from(apdu.open(&keys, &title, GeneralCipheringAad::Spec, out).is_ok());
    }
    opened
}

/// The bare call on the same telegrams: the cipher is built for each, out of `Aes128Enc` as `dlms`
/// does or out of `Aes128`, which expands both directions.
pub fn bare_open<Aes: bare::BlockCipher>(
    telegrams: &[&[u8]],
    guek: &[u8; 16],
    gak: &[u8; 16],
    out: &mut [u8],
) -> usize {
    let mut opened = 0;
    for apdu in telegrams {
        opened += usize::from(bare::open_one::<Aes>(black_box(guek), gak, apdu, out));
    }
    opened
}

/// The bare call with a cipher that was built before: what caching ciphers would give.
pub fn bare_open_cached(
    telegrams: &[&[u8]],
    guek: &[u8; 16],
    gak: &[u8; 16],
    out: &mut [u8],
) -> usize {
    let cipher = bare::Cipher::new(guek.into());
    let mut opened = 0;
    for apdu in telegrams {
        opened += usize::from(bare::open_with(&cipher, gak, apdu, out));
    }
    opened
}

/// Looks every title up, sixteen ahead; how many were found with both keys.
pub fn look_up(keyring: &Keyring, titles: &[SystemTitle]) -> usize {
    let snapshot = keyring.reader.snapshot();
    let mut found = 0;
    for few in titles.chunks(AHEAD) {
        let mut tables = [None; AHEAD];
        for (table, title) in tables.iter_mut().zip(few) {
            *table = snapshot.table_soon(keyring.reader.block_of(title));
        }
        for (table, title) in tables.iter().zip(few) {
            if let Some(table) = table {
                table.prefetch(title);
            }
        }
        for (table, title) in tables.iter().zip(few) {
            let Some(meter) = table.and_then(|table| table.find(title)) else { continue };
            let (Some((guek, _)), Some((gak, _))) = (meter.plain_guek(), meter.plain_gak()) else {
                continue;
            };
            found += usize::from(guek[0] | gak[0] != 0 || guek != gak);
        }
    }
    found
}

/// Reads the line of every meter, sixteen ahead.
pub fn read_lines(table: &FlatTable, meters: &[u32]) -> usize {
    let mut found = 0;
    for few in meters.chunks(AHEAD) {
        for meter in few {
            table.prefetch(*meter);
        }
        for meter in few {
            let (guek, gak) = table.keys(*meter);
            found += usize::from(guek[0] | gak[0] != 0 || guek != gak);
        }
    }
    found
}

/// Titles of the telegrams' meters.
pub fn titles(telegrams: &Telegrams) -> Vec<SystemTitle> {
    telegrams.meters.iter().map(|n| fleet::title(*n)).collect()
}

/// Opens all telegrams through `ciphering`, [`BATCH`] at a time; how many were opened.
pub fn open_batches(runtime: &Runtime, ciphering: &Ciphering, telegrams: &Telegrams) -> usize {
    runtime.block_on(async {
        let (mut opened, mut items) = (0, Vec::with_capacity(BATCH));
        let mut all = telegrams.iter().peekable();
        while all.peek().is_some() {
            items.clear();
            let item = |(_, apdu)| Item { apdu, named: Named::InApdu, setup: None };
            items.extend(all.by_ref().take(BATCH).map(item));
            let batch = black_box(ciphering.open_batch(&items, Want::Plaintext).await);
            let ok = |outcome: &&kms_server::ciphering::Outcome| outcome.verdict == Verdict::Ok;
            opened += batch.outcomes.iter().filter(ok).count();
        }
        opened
    })
}

/// The bare loop over the same telegrams, with one buffer for what comes out.
pub fn open_batches_bare(table: &FlatTable, telegrams: &Telegrams) -> usize {
    let (mut opened, mut items) = (0, Vec::with_capacity(BATCH));
    let mut out = vec![0; BATCH * PLAINTEXT_LEN];
    let mut all = telegrams.iter().peekable();
    while all.peek().is_some() {
        items.clear();
        items.extend(all.by_ref().take(BATCH));
        opened += bare::open_all(table, &items, black_box(&mut out));
    }
    opened
}

/// A runtime with one thread: what is measured is the work of one core.
pub fn one_thread() -> std::io::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

/// As the server's.
pub fn all_threads() -> std::io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()
}
