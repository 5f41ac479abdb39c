//! A load of reads from a client that knows both sites, while the first one is killed.

use std::{
    error::Error,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::sleep,
    time::{Duration, Instant},
};

use kms_client::{Apdu, CallReport, ClientConfig, KmsClient};
use tokio::runtime::Runtime;

use crate::{Running, fleet::Telegram};

/// Callers at a time.
const CALLERS: usize = 4;
/// The time before and after the kill.
const MEANWHILE: Duration = Duration::from_millis(1_500);

/// Callers that read one telegram after the other.
pub struct Load {
    runtime: Runtime,
    stop: Arc<AtomicBool>,
    counted: Arc<Mutex<Counted>>,
}

#[derive(Default)]
struct Counted {
    reads: u64,
    failed: u64,
    last_failure: String,
    longest: Duration,
    killed_at: Option<Instant>,
    first_answer: Option<Duration>,
}

/// What the callers saw.
#[derive(Debug)]
pub struct Killed {
    /// All reads.
    pub reads: u64,
    /// In this time.
    pub took: Duration,
    /// Reads that had no answer, or a wrong verdict.
    pub failed: u64,
    /// Why the last of them failed.
    pub last_failure: String,
    /// The longest time that a read took.
    pub longest: Duration,
    /// From the kill to the first answer of the second site.
    pub first_answer: Duration,
}

impl Load {
    /// Callers with this configuration, over telegrams that open.
    pub fn start(config: &Path, telegrams: &[Telegram]) -> Result<Self, Box<dyn Error>> {
        let good =
            |telegram: &&Telegram| telegram.verdict == "OK" && telegram.request.meter.is_none();
        let apdus = telegrams.iter().filter(good).map(|telegram| {
            let apdu = Apdu::new(hex::decode(&telegram.request.apdu)?)?;
            Ok(match telegram.request.security_setup {
                Some(setup) => apdu.under_setup(u8::try_from(setup)?),
                None => apdu,
            })
        });
        let apdus: Arc<[Apdu]> = apdus.collect::<Result<Vec<_>, Box<dyn Error>>>()?.into();
        let runtime = Runtime::new()?;
        let client = {
            let _within = runtime.enter();
            KmsClient::connect_lazy(ClientConfig::load(config)?)?
        };
        let (stop, counted) = (Arc::<AtomicBool>::default(), Arc::<Mutex<Counted>>::default());
        for caller in 0..CALLERS {
            let report = CallReport::default();
            let client = client.reporting_to(&report);
            let (apdus, stop, counted) =
                (Arc::clone(&apdus), Arc::clone(&stop), Arc::clone(&counted));
            runtime.spawn(async move {
                for apdu in apdus.iter().cycle().skip(caller) {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let began = Instant::now();
                    let answer = client.decrypt(apdu).await;
                    let failure = match answer {
                        Ok(opened) if opened.verdict().word() == "OK" => None,
                        Ok(opened) => Some(opened.verdict().word().to_owned()),
                        Err(error) => Some(error.to_string()),
                    };
                    lock(&counted).note(began.elapsed(), failure, report.site().as_deref());
                }
            });
        }
        Ok(Self { runtime, stop, counted })
    }

    /// Lets it run, kills the server that it prefers, lets it run on.
    pub fn kill_under_it(self, preferred: Running) -> Result<Killed, Box<dyn Error>> {
        let began = Instant::now();
        sleep(MEANWHILE);
        lock(&self.counted).killed_at = Some(Instant::now());
        preferred.kill_9()?;
        sleep(MEANWHILE);
        self.stop.store(true, Ordering::Relaxed);
        let took = began.elapsed();
        self.runtime.shutdown_timeout(Duration::from_secs(10));
        let counted = std::mem::take(&mut *lock(&self.counted));
        let first_answer = counted.first_answer.ok_or("the second site never answered")?;
        let Counted { reads, failed, last_failure, longest, .. } = counted;
        Ok(Killed { reads, took, failed, last_failure, longest, first_answer })
    }
}

impl Counted {
    fn note(&mut self, took: Duration, failure: Option<String>, site: Option<&str>) {
        self.reads += 1;
        self.longest = self.longest.max(took);
        if let Some(killed_at) = self.killed_at
            && self.first_answer.is_none()
            && failure.is_none()
            && site == Some("site-b")
        {
            self.first_answer = Some(killed_at.elapsed());
        }
        if let Some(failure) = failure {
            self.failed += 1;
            self.last_failure = failure;
        }
    }
}

fn lock(counted: &Mutex<Counted>) -> MutexGuard<'_, Counted> {
    counted.lock().unwrap_or_else(PoisonError::into_inner)
}
