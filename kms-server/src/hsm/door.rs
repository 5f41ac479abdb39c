//! The one door from async code to the blocking token.
//!
//! It has a width: a caller waits a while for a place, then is told *busy*. The place belongs to the
//! call and not to the future, for a cancelled request does not cancel the device; so a device that
//! hangs takes `width` threads and no more.

use std::{fmt, sync::Arc, time::Duration};

use tokio::{sync::Semaphore, time::timeout};
use zeroize::Zeroizing;

use super::{
    GcmOpen, ImportKey, NotAuthentic, TakeKeys, Taken, Token, TokenError, TokenStatus, WrappedKey,
};
use crate::domain::{BlockSecret, ClearKey, SealedKek};

/// Random bytes asked for in one call: more is a mistake.
const RANDOM_LEN_MAX: usize = 4096;

/// The token, for async code. Clones share the token and the places.
#[derive(Clone)]
pub struct Hsm {
    token: Arc<dyn Token>,
    places: Arc<Semaphore>,
    patience: Duration,
    call_timeout: Duration,
}

impl fmt::Debug for Hsm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { token: _, places, patience, call_timeout } = self;
        f.debug_struct("Hsm")
            .field("places_free", &places.available_permits())
            .field("patience", patience)
            .field("call_timeout", call_timeout)
            .finish_non_exhaustive()
    }
}

impl Hsm {
    /// A door of `width` places (at least one) to `token`. A caller waits `patience` for a place and
    /// `call_timeout` for the answer.
    pub fn new(
        token: Arc<dyn Token>,
        width: usize,
        patience: Duration,
        call_timeout: Duration,
    ) -> Self {
        Self { token, places: Arc::new(Semaphore::new(width.max(1))), patience, call_timeout }
    }

    /// [`BlockSeals::seal`](super::BlockSeals::seal); gives the secret back beside its seal.
    pub async fn seal(
        &self,
        place: Vec<u8>,
        secret: BlockSecret,
    ) -> Result<(BlockSecret, Vec<u8>), TokenError> {
        self.pass(move |token| token.seal(&place, &secret).map(|sealed| (secret, sealed))).await
    }

    /// [`BlockSeals::open`](super::BlockSeals::open).
    pub async fn open(&self, place: Vec<u8>, sealed: Vec<u8>) -> Result<BlockSecret, TokenError> {
        self.pass(move |token| token.open(&place, &sealed)).await
    }

    /// [`SealedKeys::wrap`](super::SealedKeys::wrap).
    pub async fn wrap(&self, under: SealedKek, key: ClearKey) -> Result<Vec<u8>, TokenError> {
        self.pass(move |token| token.wrap(under, &key)).await
    }

    /// [`SealedKeys::open_apdus`](super::SealedKeys::open_apdus).
    pub async fn open_apdus(
        &self,
        key: WrappedKey,
        apdus: Vec<GcmOpen>,
    ) -> Result<Vec<Result<Vec<u8>, NotAuthentic>>, TokenError> {
        self.pass(move |token| token.open_apdus(&key, &apdus)).await
    }

    /// [`ImportsKeys::import_key`](super::ImportsKeys::import_key).
    pub async fn import_key(&self) -> Result<ImportKey, TokenError> {
        self.pass(|token| token.import_key()).await
    }

    /// [`ImportsKeys::take_keys`](super::ImportsKeys::take_keys).
    pub async fn take_keys(&self, job: TakeKeys) -> Result<Taken, TokenError> {
        self.pass(move |token| token.take_keys(&job)).await
    }

    /// `len` bytes (at most 4096) from the token's generator.
    pub async fn random(&self, len: usize) -> Result<Zeroizing<Vec<u8>>, TokenError> {
        if len > RANDOM_LEN_MAX {
            return Err(TokenError::Refused {
                operation: "give random bytes",
                source: format!("{len} bytes asked, {RANDOM_LEN_MAX} are allowed").into(),
            });
        }
        self.pass(move |token| {
            let mut bytes = Zeroizing::new(vec![0; len]);
            token.random(&mut bytes)?;
            Ok(bytes)
        })
        .await
    }

    /// [`TokenCare::check`](super::TokenCare::check).
    pub async fn check(&self) -> Result<(), TokenError> {
        self.pass(|token| token.check()).await
    }

    /// What is known without asking the device: never waits.
    pub fn status(&self) -> TokenStatus {
        self.token.status()
    }

    #[expect(clippy::disallowed_methods, reason = "this is the door")]
    async fn pass<T: Send + 'static>(
        &self,
        call: impl FnOnce(&dyn Token) -> Result<T, TokenError> + Send + 'static,
    ) -> Result<T, TokenError> {
        let place = Arc::clone(&self.places).acquire_owned();
        let Ok(Ok(place)) = timeout(self.patience, place).await else {
            return Err(TokenError::Busy);
        };
        let token = Arc::clone(&self.token);
        let answer = tokio::task::spawn_blocking(move || {
            // Held by the call, not by the future: a caller may give up, the device is still busy.
            let _place = place;
            call(&*token)
        });
        match timeout(self.call_timeout, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(lost)) => {
                Err(TokenError::Unreachable { reason: format!("the call was lost: {lost}") })
            }
            Err(_) => Err(TokenError::TimedOut {
                deadline_ms: u64::try_from(self.call_timeout.as_millis()).unwrap_or(u64::MAX),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Condvar, Mutex,
        atomic::{AtomicUsize, Ordering},
    };

    use super::{
        super::{BlockSeals, ImportsKeys, SealedKeys, TokenCare},
        *,
    };

    /// A device that hangs until it is let go.
    #[derive(Default)]
    struct Stuck {
        inside: AtomicUsize,
        free: Mutex<bool>,
        freed: Condvar,
    }

    impl Stuck {
        fn let_go(&self) {
            *self.free.lock().unwrap() = true;
            self.freed.notify_all();
        }
    }

    impl BlockSeals for Stuck {
        fn seal(&self, _: &[u8], secret: &BlockSecret) -> Result<Vec<u8>, TokenError> {
            Ok(secret.expose_block_secret_bytes().to_vec())
        }
        fn open(&self, _: &[u8], _: &[u8]) -> Result<BlockSecret, TokenError> {
            panic!("a token that panics");
        }
    }

    impl SealedKeys for Stuck {
        fn wrap(&self, _: SealedKek, _: &ClearKey) -> Result<Vec<u8>, TokenError> {
            Err(TokenError::Busy)
        }
        fn open_apdus(
            &self,
            _: &WrappedKey,
            apdus: &[GcmOpen],
        ) -> Result<Vec<Result<Vec<u8>, NotAuthentic>>, TokenError> {
            Ok(apdus.iter().map(|_| Err(NotAuthentic)).collect())
        }
    }

    impl ImportsKeys for Stuck {}

    impl TokenCare for Stuck {
        fn random(&self, out: &mut [u8]) -> Result<(), TokenError> {
            out.fill(7);
            Ok(())
        }
        fn check(&self) -> Result<(), TokenError> {
            self.inside.fetch_add(1, Ordering::SeqCst);
            let free = self.free.lock().unwrap();
            drop(self.freed.wait_while(free, |free| !*free).unwrap());
            Ok(())
        }
        fn status(&self) -> TokenStatus {
            TokenStatus {
                label: "stuck".into(),
                model: String::new(),
                site_kek_id: [0; 16],
                connection_epoch: 1,
                calls: 0,
                fault: None,
            }
        }
    }

    fn door(width: usize) -> (Arc<Stuck>, Hsm) {
        let stuck = Arc::new(Stuck::default());
        let token: Arc<dyn Token> = stuck.clone();
        (stuck, Hsm::new(token, width, Duration::from_millis(20), Duration::from_millis(50)))
    }

    /// The places come back when the device does, which takes the scheduler a while.
    async fn all_places_come_back(hsm: &Hsm, width: usize) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        while hsm.places.available_permits() < width {
            assert!(tokio::time::Instant::now() < deadline, "a place was lost");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn a_hung_device_times_out_then_is_busy_and_takes_no_more_threads_than_the_width() {
        let (stuck, hsm) = door(2);
        for _ in 0..2 {
            assert!(matches!(hsm.check().await, Err(TokenError::TimedOut { deadline_ms: 50 })));
        }
        for _ in 0..10 {
            assert!(matches!(hsm.check().await, Err(TokenError::Busy)));
        }
        assert_eq!(stuck.inside.load(Ordering::SeqCst), 2);
        assert_eq!(hsm.status().label, "stuck");

        stuck.let_go();
        all_places_come_back(&hsm, 2).await;
    }

    #[tokio::test]
    async fn a_caller_that_gives_up_does_not_free_the_place() {
        let (stuck, hsm) = door(1);
        let gone = tokio::time::timeout(Duration::from_millis(5), hsm.check()).await;
        assert!(gone.is_err());
        assert!(matches!(hsm.random(1).await, Err(TokenError::Busy)));
        stuck.let_go();
        all_places_come_back(&hsm, 1).await;
    }

    #[tokio::test]
    async fn a_call_that_panics_is_a_fault_of_the_device_and_frees_its_place() {
        let (_, mut hsm) = door(1);
        // A panic that tells its backtrace takes its time.
        hsm.call_timeout = Duration::from_secs(30);
        hsm.patience = Duration::from_secs(30);
        for _ in 0..2 {
            let lost = hsm.open(vec![], vec![]).await;
            assert!(matches!(lost, Err(TokenError::Unreachable { .. })), "{lost:?}");
        }
    }

    #[tokio::test]
    async fn too_many_random_bytes_are_refused_without_asking_the_device() {
        let (_, hsm) = door(1);
        assert!(matches!(hsm.random(4097).await, Err(TokenError::Refused { .. })));
    }
}
