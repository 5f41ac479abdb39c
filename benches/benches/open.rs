//! `dlms`: parse and open, beside the bare call with the same additional data. One hot key.
#![allow(missing_docs, reason = "criterion's macros make functions")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a bench that fails may end")]

use std::hint::black_box;

use aes::{Aes128, Aes128Enc};
use benches::{
    fleet::{PLAINTEXT_LEN, Telegrams, keys},
    in_process::{bare_open, bare_open_cached, dlms_open},
};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const APDUS: usize = 1_024;

fn open(c: &mut Criterion) {
    let telegrams = Telegrams::of_random_meters(1, APDUS).unwrap();
    let apdus: Vec<&[u8]> = telegrams.iter().map(|(_, apdu)| apdu).collect();
    let (guek, gak) = keys(0);
    let (mut appended, mut out) = (Vec::with_capacity(PLAINTEXT_LEN), [0; PLAINTEXT_LEN]);
    let mut group = c.benchmark_group("open");
    group.throughput(Throughput::Elements(APDUS as u64));
    group.bench_function("dlms", |b| {
        b.iter(|| assert_eq!(dlms_open(black_box(&apdus), &guek, &gak, &mut appended), APDUS));
    });
    group.bench_function("bare, Aes128Enc", |b| {
        b.iter(|| bare_open::<Aes128Enc>(black_box(&apdus), &guek, &gak, &mut out));
    });
    group.bench_function("bare, Aes128", |b| {
        b.iter(|| bare_open::<Aes128>(black_box(&apdus), &guek, &gak, &mut out));
    });
    group.bench_function("bare, expanded before", |b| {
        b.iter(|| bare_open_cached(black_box(&apdus), &guek, &gak, &mut out));
    });
    group.finish();
}

criterion_group!(benches, open);
criterion_main!(benches);
