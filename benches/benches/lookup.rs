//! The keyring's look-up by title, sixteen ahead, beside a bare read of one cache line.
#![allow(clippy::unwrap_used, reason = "a bench that fails may end")]

use std::hint::black_box;

use benches::{
    bare::FlatTable,
    fleet::Telegrams,
    home,
    in_process::{all_threads, look_up, read_lines, titles},
    site::Parts,
};
use criterion::{Criterion, Throughput};

fn main() -> std::process::ExitCode {
    let meters = home::meters();
    home::within_a_site(meters, None, |site| {
        let runtime = all_threads()?;
        let parts = runtime.block_on(Parts::of(&site))?;
        runtime.block_on(parts.import(meters))?;
        let (keyring, _) = runtime.block_on(parts.warm_up())?;
        let table = FlatTable::new(meters)?;
        let telegrams = Telegrams::of_random_meters(meters, meters as usize)?;
        let titles = titles(&telegrams);
        let mut c = Criterion::default().configure_from_args();
        let mut group = c.benchmark_group("lookup");
        group.throughput(Throughput::Elements(titles.len() as u64)).sample_size(20);
        group.bench_function("keyring", |b| {
            b.iter(|| assert_eq!(look_up(&keyring, black_box(&titles)), titles.len()));
        });
        group.bench_function("one cache line", |b| {
            b.iter(|| read_lines(&table, black_box(&telegrams.meters)));
        });
        group.finish();
        c.final_summary();
        Ok(())
    })
}
