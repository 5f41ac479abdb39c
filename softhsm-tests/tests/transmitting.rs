//! What is sent to meters, by the real programs: two sites that are killed in mid-load, promoted while both live, and
//! demoted in order. Every counter is read off the APDUs that came back, as a meter would.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may")]

mod common;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use common::{
    Numbers, client, eventually,
    fleet::{GAK, GUEK, add, id, title, value},
    programs,
};
use dlms::{CipheredApdu, GeneralCipheringAad, Keys, SystemTitle};
use kms_client::{
    CounterDeclaration, KmsClient, MeterName, PlainApdu, PromoteOptions, Protected, Protecting,
    TransmitRefusal, Verdict,
};
use softhsm_tests::{Pair, Role, Setting, SiteOptions};

/// Meters of the fleet. The last two share their GUEK, and are in different blocks.
const FLEET: u64 = 20;
const SHARED: u64 = FLEET - 1;
/// APDUs in one call.
const BATCH: usize = 200;
const CLIENT: SystemTitle = SystemTitle::new(*b"AMIHES\x00\x01");
const GET: &[u8] = b"\xC0\x01\xC1\x00\x08\x00\x00\x01\x00\x00\xFF\x02\x00";

/// APDUs in all.
#[expect(clippy::disallowed_methods, reason = "a developer's wish, not a setting")]
fn allocations() -> usize {
    std::env::var("TRANSMIT_ALLOCATIONS").map_or(20_000, |number| number.parse().unwrap())
}

fn guek_of(n: u64) -> [u8; 16] {
    value(n.min(SHARED), GUEK)
}

fn line(n: u64) -> String {
    let hex = |bytes: &[u8]| hex::encode_upper(bytes);
    let (own, guek, gak) = (hex(title(n).as_bytes()), hex(&guek_of(n)), hex(&value(n, GAK)));
    format!(
        r#"{{"meter_id":"{}","system_title":"{own}","keys":[{{"kind":"GUEK","value":"{guek}"}},{{"kind":"GAK","value":"{gak}"}}],"policy":{{"client_title":"{}"}}}}"#,
        id(n),
        hex(CLIENT.as_bytes())
    )
}

/// What all meters together have seen.
#[derive(Default)]
struct Seen {
    /// Which site used a counter of a key.
    used: HashMap<([u8; 16], u32), &'static str>,
    /// The highest counter of a meter, by site.
    highest: HashMap<(u64, &'static str), u32>,
    refusals: HashMap<TransmitRefusal, usize>,
}

impl Seen {
    /// A meter takes what was sent to it.
    fn take(&mut self, site: &'static str, n: u64, protected: &Protected) {
        let Some(bytes) = &protected.apdu else {
            assert_ne!(protected.verdict, Verdict::Ok);
            let refusal = protected.refusal.unwrap_or_else(|| panic!("{protected:?}"));
            *self.refusals.entry(refusal).or_default() += 1;
            return;
        };
        let apdu = CipheredApdu::parse(bytes).unwrap();
        let (guek, gak) = (guek_of(n), value(n, GAK));
        let keys = Keys { encryption: &guek, authentication: &gak };
        let mut plain = Vec::new();
        apdu.open(&keys, &CLIENT, GeneralCipheringAad::Spec, &mut plain).unwrap();
        assert_eq!((plain.as_slice(), apdu.system_title()), (GET, Some(CLIENT)));
        let counter = apdu.invocation_counter();
        assert_eq!(protected.invocation_counter, Some(counter));
        if let Some(before) = self.used.insert((guek, counter), site) {
            panic!("{counter:08X} of {} was used by {before} and by {site}", id(n));
        }
        // One caller a site, and calls in order: each meter sees its counters rise.
        let highest = self.highest.entry((n, site)).or_default();
        assert!(*highest <= counter, "{} sees {counter:08X} after {highest:08X}", id(n));
        *highest = counter;
    }
}

/// A caller who goes on until he is told to stop, or has sent enough.
struct Caller {
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<usize>,
}

impl Caller {
    fn start(
        (site, client): (&'static str, KmsClient),
        seen: &Arc<Mutex<Seen>>,
        most: usize,
    ) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let (told, seen) = (Arc::clone(&stop), Arc::clone(seen));
        let task = tokio::spawn(async move {
            let mut sent = 0;
            let meters: Vec<u64> = (1..=FLEET).cycle().take(BATCH).collect();
            let named = |n: &u64| {
                let meter = MeterName::Title(title(*n));
                PlainApdu { bytes: GET.into(), meter }
            };
            let apdus: Vec<PlainApdu> = meters.iter().map(named).collect();
            while sent < most && !told.load(Ordering::SeqCst) {
                // A call that a kill cut off is lost with its counters, and never made again by the library.
                match client.encrypt_batch(&apdus, Protecting::default()).await {
                    Ok(all) => {
                        let mut seen = seen.lock().unwrap();
                        for (n, protected) in meters.iter().zip(&all) {
                            seen.take(site, *n, protected);
                            sent += usize::from(protected.apdu.is_some());
                        }
                    }
                    Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
            sent
        });
        Self { stop, task }
    }

    async fn stop(self) -> usize {
        self.stop.store(true, Ordering::SeqCst);
        self.task.await.unwrap()
    }

    async fn enough(self) -> usize {
        self.task.await.unwrap()
    }
}

async fn promote(client: &KmsClient, is_lost: bool) {
    let standing = client.site_status().await.unwrap().standing.unwrap();
    let options = PromoteOptions {
        expected_epoch: standing.epoch,
        primary_is_lost: is_lost,
        ..PromoteOptions::default()
    };
    client.promote_site(options).await.unwrap();
}

async fn declare_all(client: &KmsClient) {
    for n in 1..=FLEET {
        let declaration = CounterDeclaration {
            meter: MeterName::Title(title(n)),
            security_setup: 0,
            client: 0,
            broadcast: false,
            last_invocation_counter: Some(0x0000_1234),
        };
        let declared = client.meters().declare_counter(&declaration).await.unwrap();
        assert_eq!(declared.at_least, 0x0200_0000);
        assert_eq!(declared.changed, n != FLEET, "the last two have one line");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn invariant_3_no_counter_is_used_twice_through_kills_and_promotions_with_both_sites_alive() {
    let dir = tempfile::Builder::new().prefix("kms-pair-").tempdir_in("/dev/shm").unwrap();
    let set = |key, value: &str| Setting { section: "peer", key, value: value.to_owned() };
    let settings = vec![set("heartbeat_ms", "300"), set("write_wait_ms", "5000")];
    let options = SiteOptions { settings, ..SiteOptions::default() };
    let pair = Pair::make(dir.path(), &programs(), &options).unwrap();
    let (mut a, mut b) = pair.start().unwrap();
    let (at_a, at_b) = (client(&pair.a, Role::Dev).await, client(&pair.b, Role::Dev).await);
    let lines: Vec<String> = (1..=FLEET).map(line).collect();
    add(&at_a, &lines).await;
    declare_all(&at_a).await;
    let seen = Arc::<Mutex<Seen>>::default();
    let (part, mut sent, mut numbers) = (allocations() / 4, 0, Numbers::fresh());

    // 1. Kills in mid-load.
    let caller = Caller::start(("a", at_a.clone()), &seen, part);
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(300 + numbers.below(500))).await;
        a.kill_9().unwrap();
        a = pair.a.start().unwrap();
    }
    sent += caller.enough().await;

    // 2. The other site is promoted while this one transmits: it goes on until it hears of it.
    let caller = Caller::start(("a", at_a.clone()), &seen, part);
    tokio::time::sleep(Duration::from_millis(200)).await;
    promote(&at_b, true).await;
    let other = Caller::start(("b", at_b.clone()), &seen, part);
    eventually("the first site is fenced", || async {
        let status = at_a.site_status().await.unwrap();
        status.standing.is_some_and(|standing| !standing.writes)
    })
    .await;
    sent += caller.stop().await;
    // Its peer dies and comes back, too.
    tokio::time::sleep(Duration::from_millis(numbers.below(300))).await;
    b.kill_9().unwrap();
    b = pair.b.start().unwrap();
    sent += other.enough().await;

    // 3. And back, in order.
    eventually("the first site follows", || async {
        let standing = at_b.site_status().await.unwrap().standing.unwrap();
        at_b.demote_site(standing.epoch).await.is_ok()
    })
    .await;
    eventually("the first site is in step", || async {
        let standing = at_a.site_status().await.unwrap().standing.unwrap();
        let options =
            PromoteOptions { expected_epoch: standing.epoch, ..PromoteOptions::default() };
        at_a.promote_site(options).await.is_ok()
    })
    .await;
    let left = allocations().saturating_sub(sent);
    sent += Caller::start(("a", at_a.clone()), &seen, left).enough().await;

    let seen = seen.lock().unwrap();
    println!(
        "{sent} APDUs to {FLEET} meters, {} counters, none twice; refused: {:?}",
        seen.used.len(),
        seen.refusals
    );
    assert_eq!(seen.used.len(), sent);
    assert!(sent >= allocations());
    a.stop().unwrap();
    b.stop().unwrap();
}
