//! The one door from async code to the blocking token.
//!
//! It has a width: a caller waits a while for a place, then is told *busy*. The place belongs to the
//! call and not to the future, for a cancelled request does not cancel the device; so a device that
//! hangs takes `width` threads and no more.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::{sync::Semaphore, time::timeout};
use tracing::Span;
use zeroize::Zeroizing;

use super::{
    CeremonyKey, GcmOpen, HandedKeks, ImportKey, Made, MakeKeys, NotAuthentic, NotTrusted, RsaKey,
    ShareKey, TakeKeys, Taken, Token, TokenError, TokenStatus, WrappedKey,
    figures::{Figures, Operation},
};
use crate::telemetry::{
    catalogue,
    metrics::{Label, Page, Source},
};
use kms_core::{
    BlockSecret, ClearKey, SealedKek,
    audit::{PublicKey, Signature, SiteKeys},
    site::tokens::SignedSiteTokens,
};

/// Random bytes asked for in one call: more is a mistake.
const RANDOM_LEN_MAX: usize = 4096;

/// The token, for async code. Clones share the token and the places.
#[derive(Clone)]
pub struct Hsm {
    token: Arc<dyn Token>,
    places: Arc<Semaphore>,
    width: usize,
    patience: Duration,
    call_timeout: Duration,
    figures: Arc<Figures>,
    /// The reason why the last check did not pass. A std lock: held for an assignment.
    check_fault: Arc<Mutex<Option<String>>>,
    /// The other tokens of this site. A std lock: held for a copy.
    others: Arc<Mutex<Others>>,
}

/// What is known of the other tokens of this site.
#[derive(Default)]
struct Others {
    signing: Vec<PublicKey>,
    lists: Vec<SignedSiteTokens>,
}

impl fmt::Debug for Hsm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { places, patience, call_timeout, .. } = self;
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
        let width = width.max(1);
        Self {
            token,
            places: Arc::new(Semaphore::new(width)),
            width,
            patience,
            call_timeout,
            figures: Arc::default(),
            check_fault: Arc::default(),
            others: Arc::default(),
        }
    }

    pub(super) fn token(&self) -> &dyn Token {
        &*self.token
    }

    /// [`BlockSeals::seal`](super::BlockSeals::seal); gives the secret back beside its seal.
    pub async fn seal(
        &self,
        place: Vec<u8>,
        secret: BlockSecret,
    ) -> Result<(BlockSecret, Vec<u8>), TokenError> {
        self.pass(Operation::Seal, move |token| {
            token.seal(&place, &secret).map(|sealed| (secret, sealed))
        })
        .await
    }

    /// [`BlockSeals::open`](super::BlockSeals::open).
    pub async fn open(&self, place: Vec<u8>, sealed: Vec<u8>) -> Result<BlockSecret, TokenError> {
        self.pass(Operation::Open, move |token| token.open(&place, &sealed)).await
    }

    /// [`SealedKeys::wrap`](super::SealedKeys::wrap).
    pub async fn wrap(&self, under: SealedKek, key: ClearKey) -> Result<Vec<u8>, TokenError> {
        self.pass(Operation::Wrap, move |token| token.wrap(under, &key)).await
    }

    /// [`SealedKeys::open_apdus`](super::SealedKeys::open_apdus).
    pub async fn open_apdus(
        &self,
        key: WrappedKey,
        apdus: Vec<GcmOpen>,
    ) -> Result<Vec<Result<Vec<u8>, NotAuthentic>>, TokenError> {
        self.pass(Operation::OpenApdus, move |token| token.open_apdus(&key, &apdus)).await
    }

    /// The part of it that decryption gets.
    pub fn apdus(&self) -> ApduOpening {
        ApduOpening(self.clone())
    }

    /// [`ImportsKeys::import_key`](super::ImportsKeys::import_key).
    pub async fn import_key(&self) -> Result<ImportKey, TokenError> {
        self.pass(Operation::ImportKey, |token| token.import_key()).await
    }

    /// [`ImportsKeys::take_keys`](super::ImportsKeys::take_keys).
    pub async fn take_keys(&self, job: TakeKeys) -> Result<Taken, TokenError> {
        self.pass(Operation::TakeKeys, move |token| token.take_keys(&job)).await
    }

    /// [`MakesKeys::make_keys`](super::MakesKeys::make_keys).
    pub async fn make_keys(&self, job: MakeKeys) -> Result<Made, TokenError> {
        self.pass(Operation::MakeKeys, move |token| token.make_keys(&job)).await
    }

    /// [`MakesKeys::share_key`](super::MakesKeys::share_key).
    pub async fn share_key(&self, job: ShareKey) -> Result<Made, TokenError> {
        self.pass(Operation::MakeKeys, move |token| token.share_key(&job)).await
    }

    /// [`Enrols::transport_block_key`](super::Enrols::transport_block_key).
    pub async fn transport_block_key(&self) -> Result<RsaKey, TokenError> {
        self.pass(Operation::TransportKey, |token| token.transport_block_key()).await
    }

    /// [`Enrols::hand_over_keks`](super::Enrols::hand_over_keks).
    pub async fn hand_over_keks(
        &self,
        to: CeremonyKey,
    ) -> Result<Result<HandedKeks, NotTrusted>, TokenError> {
        self.pass(Operation::HandOver, move |token| token.hand_over_keks(&to)).await
    }

    /// [`Enrols::receive_secret`](super::Enrols::receive_secret).
    pub async fn receive_secret(&self, wrapped: Vec<u8>) -> Result<BlockSecret, TokenError> {
        self.pass(Operation::Receive, move |token| token.receive_secret(&wrapped)).await
    }

    /// `len` bytes (at most 4096) from the token's generator.
    pub async fn random(&self, len: usize) -> Result<Zeroizing<Vec<u8>>, TokenError> {
        if len > RANDOM_LEN_MAX {
            return Err(TokenError::Refused {
                operation: "give random bytes",
                source: format!("{len} bytes asked, {RANDOM_LEN_MAX} are allowed").into(),
            });
        }
        self.pass(Operation::Random, move |token| {
            let mut bytes = Zeroizing::new(vec![0; len]);
            token.random(&mut bytes)?;
            Ok(bytes)
        })
        .await
    }

    /// [`Signs::sign`](super::Signs::sign).
    pub async fn sign(&self, message: Vec<u8>) -> Result<Signature, TokenError> {
        self.pass(Operation::Sign, move |token| token.sign(&message)).await
    }

    /// [`Signs::public_key`](super::Signs::public_key).
    pub async fn public_key(&self) -> Result<PublicKey, TokenError> {
        self.pass(Operation::PublicKey, |token| token.public_key()).await
    }

    /// From now on the keys of these tokens count for this site, too: `lists` say so, and were verified.
    pub fn believe(&self, keys: &SiteKeys, lists: Vec<SignedSiteTokens>) {
        let signing = keys.iter().copied().collect();
        *self.others() = Others { signing, lists };
    }

    /// Whose signatures count for this site: this token's, and those of its other tokens.
    pub async fn site_keys(&self) -> Result<SiteKeys, TokenError> {
        Ok(self.site_keys_with(self.public_key().await?))
    }

    /// The same, where this token's key is known.
    pub fn site_keys_with(&self, own: PublicKey) -> SiteKeys {
        SiteKeys::new(own, self.others().signing.iter().copied())
    }

    /// The lists of this site's tokens, for other sites; none, where there is one token.
    pub fn token_lists(&self) -> Vec<SignedSiteTokens> {
        self.others().lists.clone()
    }

    fn others(&self) -> std::sync::MutexGuard<'_, Others> {
        self.others.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// [`Device::check`](super::Device::check). A failure is remembered until a check passes;
    /// that all places are taken says nothing of the device.
    pub async fn check(&self) -> Result<(), TokenError> {
        let checked = self.pass(Operation::Check, |token| token.check()).await;
        match &checked {
            Ok(()) => *self.check_fault() = None,
            Err(TokenError::Busy) => {}
            Err(error) => *self.check_fault() = Some(error.to_string()),
        }
        checked
    }

    /// The state as it is known without asking the device: never waits. Its fault is the last call's, or else
    /// that of the last check.
    pub fn status(&self) -> TokenStatus {
        let mut status = self.token.status();
        status.fault = status.fault.or_else(|| self.check_fault().clone());
        status
    }

    fn check_fault(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.check_fault.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[expect(clippy::disallowed_methods, reason = "this is the door")]
    pub(super) async fn pass<T: Send + 'static>(
        &self,
        operation: Operation,
        call: impl FnOnce(&dyn Token) -> Result<T, TokenError> + Send + 'static,
    ) -> Result<T, TokenError> {
        let counted = self.figures.begin(operation);
        let asked = Instant::now();
        let place = Arc::clone(&self.places).acquire_owned();
        let place = timeout(self.patience, place).await;
        self.figures.waited(operation, asked.elapsed());
        let Ok(Ok(place)) = place else {
            return counted.end(Err(TokenError::Busy));
        };
        let (token, figures) = (Arc::clone(&self.token), Arc::clone(&self.figures));
        let span = Span::current();
        let answer = tokio::task::spawn_blocking(move || {
            // Held by the call, not by the future: a caller may give up, the device is still busy.
            let _place = place;
            let _timed = figures.execute(operation);
            // The token's lines of the log belong to the caller's request.
            span.in_scope(|| call(&*token))
        });
        counted.end(match timeout(self.call_timeout, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(lost)) => {
                Err(TokenError::Unreachable { reason: format!("the call was lost: {lost}") })
            }
            Err(_) => Err(TokenError::TimedOut {
                deadline_ms: u64::try_from(self.call_timeout.as_millis()).unwrap_or(u64::MAX),
            }),
        })
    }
}

impl Source for Hsm {
    fn tell(&self, page: &mut Page) {
        let status = self.status();
        let token = [Label::Configured(&status.label)];
        let used = self.width.saturating_sub(self.places.available_permits());
        page.sample(&catalogue::HSM_PLACES_USED, &token, used as u64);
        page.sample(&catalogue::HSM_PLACES_MAX, &token, self.width as u64);
        page.sample(&catalogue::HSM_EPOCH, &token, status.connection_epoch);
        page.sample(&catalogue::HSM_HEALTHY, &token, status.fault.is_none());
        if let Some(sessions) = self.token.sessions_open() {
            page.sample(&catalogue::HSM_SESSIONS, &token, sessions as u64);
        }
        self.figures.tell(&status.label, page);
    }
}

/// The token as decryption has it: it opens APDUs, and does nothing else.
#[derive(Clone)]
pub struct ApduOpening(Hsm);

impl ApduOpening {
    /// [`Hsm::open_apdus`].
    pub async fn open_apdus(
        &self,
        key: WrappedKey,
        apdus: Vec<GcmOpen>,
    ) -> Result<Vec<Result<Vec<u8>, NotAuthentic>>, TokenError> {
        self.0.open_apdus(key, apdus).await
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Condvar, Mutex,
            atomic::{AtomicUsize, Ordering},
        },
        task::{Context, Poll},
    };

    use super::{
        super::{BlockSeals, Device, Enrols, ImportsKeys, MakesKeys, SealedKeys, Signs, SiteKeks},
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

    impl SiteKeks for Stuck {}

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

    impl ImportsKeys for Stuck {
        fn import_key(&self) -> Result<ImportKey, TokenError> {
            Err(TokenError::Busy)
        }
        fn take_keys(&self, _: &TakeKeys) -> Result<Taken, TokenError> {
            Err(TokenError::Busy)
        }
    }

    impl MakesKeys for Stuck {
        fn make_keys(&self, _: &MakeKeys) -> Result<Made, TokenError> {
            Err(TokenError::Busy)
        }
        fn share_key(&self, _: &ShareKey) -> Result<Made, TokenError> {
            Err(TokenError::Busy)
        }
    }

    impl Enrols for Stuck {
        fn transport_block_key(&self) -> Result<RsaKey, TokenError> {
            Err(TokenError::Busy)
        }
        fn hand_over_keks(
            &self,
            _: &CeremonyKey,
        ) -> Result<Result<HandedKeks, NotTrusted>, TokenError> {
            Err(TokenError::Busy)
        }
        fn receive_secret(&self, _: &[u8]) -> Result<BlockSecret, TokenError> {
            Err(TokenError::Busy)
        }
    }

    impl Signs for Stuck {
        fn sign(&self, _: &[u8]) -> Result<Signature, TokenError> {
            Err(TokenError::Busy)
        }
        fn public_key(&self) -> Result<PublicKey, TokenError> {
            Err(TokenError::Busy)
        }
    }

    impl Device for Stuck {
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
        fn sessions_open(&self) -> Option<usize> {
            None
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
    async fn a_hung_device_shows_in_the_status_until_a_check_passes() {
        let (stuck, hsm) = door(1);
        assert!(hsm.check().await.is_err());
        // Busy now: that is no news of the device.
        assert!(matches!(hsm.check().await, Err(TokenError::Busy)));
        assert!(hsm.status().fault.unwrap().contains("did not answer"));
        stuck.let_go();
        all_places_come_back(&hsm, 1).await;
        hsm.check().await.unwrap();
        assert_eq!(hsm.status().fault, None);
    }

    #[tokio::test]
    async fn waiting_at_the_door_and_time_in_the_device_are_told_apart() {
        let (stuck, mut hsm) = door(1);
        (hsm.patience, hsm.call_timeout) = (Duration::from_secs(30), Duration::from_secs(30));
        let (first, second) = (hsm.clone(), hsm.clone());
        let first = tokio::spawn(async move { first.check().await });
        while stuck.inside.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let second = tokio::spawn(async move { second.random(1).await.map(drop) });
        tokio::time::sleep(Duration::from_millis(100)).await;
        stuck.let_go();
        first.await.unwrap().unwrap();
        second.await.unwrap().unwrap();
        all_places_come_back(&hsm, 1).await;
        let [check, random] = [Operation::Check, Operation::Random];
        let (waited, worked) = (hsm.figures.waiting(check), hsm.figures.execution(check));
        assert_eq!((waited.count(), worked.count()), (1, 1));
        assert!(waited.sum() < worked.sum() && worked.sum() >= Duration::from_millis(100));
        let (waited, worked) = (hsm.figures.waiting(random), hsm.figures.execution(random));
        assert_eq!((waited.count(), worked.count()), (1, 1));
        assert!(worked.sum() < waited.sum() && waited.sum() >= Duration::from_millis(90));
    }

    #[tokio::test]
    async fn every_call_is_counted_once_by_its_outcome() {
        let (stuck, hsm) = door(2);
        assert!(matches!(hsm.check().await, Err(TokenError::TimedOut { .. })));
        {
            // Begun, and given up by its caller while the device hangs.
            let mut given_up = std::pin::pin!(hsm.check());
            let once = |cx: &mut Context<'_>| Poll::Ready(given_up.as_mut().poll(cx).is_ready());
            assert!(!std::future::poll_fn(once).await, "the device hangs");
        }
        assert!(matches!(hsm.random(1).await, Err(TokenError::Busy)));
        stuck.let_go();
        all_places_come_back(&hsm, 2).await;
        hsm.random(1).await.unwrap();
        let text = Page::of([&hsm as &dyn Source]).render();
        for line in [
            r#"kms_hsm_operations_total{token="stuck",operation="check",outcome="timed_out"} 1"#,
            r#"kms_hsm_operations_total{token="stuck",operation="check",outcome="abandoned"} 1"#,
            r#"kms_hsm_operations_total{token="stuck",operation="random",outcome="busy"} 1"#,
            r#"kms_hsm_operations_total{token="stuck",operation="random",outcome="ok"} 1"#,
            r#"kms_hsm_places_max{token="stuck"} 2"#,
            r#"kms_hsm_healthy{token="stuck"} 0"#,
        ] {
            assert!(text.lines().any(|it| it == line), "{line} is missing in\n{text}");
        }
    }

    #[tokio::test]
    async fn too_many_random_bytes_are_refused_without_asking_the_device() {
        let (_, hsm) = door(1);
        assert!(matches!(hsm.random(4097).await, Err(TokenError::Refused { .. })));
    }
}
