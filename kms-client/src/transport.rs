//! One call from its first try to its last: sites, their servers, deadlines.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::time::{Instant, sleep, timeout_at};
use tonic::{Request, Response, Status};

use crate::board::{Board, random};
use crate::call::{CallError, ConnectError};
use crate::config::{ClientConfig, ConfigError};
use crate::hedge::{Patience, Raced, race};
use crate::link::{Link, LinkError};
use crate::places::{Place, SETUP, places};
use crate::report::CallReport;
use crate::request_id::{HEADER, RequestId};
use crate::retry::{
    Safety, Step, is_about_a_certificate, is_gone, is_not_primary, is_unsent, step, wait,
};
use crate::sites::Errand;
use crate::vigil::Vigil;

/// Streams that the server ends because of their connection's age go on at once so often; then with waits.
const ANEW_MAX: u32 = 3;
/// A site is asked whether it is there when a call has had no answer for so long, where no second site is.
const LATE_AFTER: Duration = Duration::from_millis(300);
/// No answer is longer than this, in bytes: a full batch of the longest plaintexts is shorter.
pub(crate) const ANSWER_LEN_MAX: usize = kms_core::wire::MESSAGE_BYTES_MAX;

/// The sites, and how calls to them are made.
#[derive(Clone)]
pub(crate) struct Transport {
    board: Arc<Board>,
    deadline: Duration,
    retries: u32,
    hedge_after: Option<Duration>,
    /// Of all calls; `None`: each gets its own.
    request_id: Option<RequestId>,
    /// Who answered.
    report: Option<CallReport>,
    /// The only site that is asked.
    only: Option<usize>,
}

impl Transport {
    /// Checks the certificates and names; opens no connection yet.
    pub(crate) fn new(config: &ClientConfig) -> Result<Self, ConfigError> {
        Ok(Self {
            board: Arc::new(Board::new(places(config)?)),
            deadline: config.deadline,
            retries: config.retries,
            hedge_after: config.hedge_after,
            request_id: None,
            report: None,
            only: None,
        })
    }

    /// As [`Transport::new`], and connects to the first server that answers. A site has a head start before
    /// the next one.
    pub(crate) async fn connect(config: &ClientConfig) -> Result<Self, ConnectError> {
        let transport = Self::new(config)?;
        let until = Instant::now() + config.deadline.max(SETUP.1);
        let mut worst: Option<Status> = None;
        let mut sites = 0..transport.board.servers().len();
        let mut attempts = FuturesUnordered::new();
        attempts.extend(sites.next().map(|site| transport.reach(site, until)));
        loop {
            tokio::select! {
                attempt = attempts.next() => match attempt {
                    Some(Ok(())) => break,
                    // A failure that somebody has to mend is told before one that may pass.
                    Some(Err(status)) => {
                        if worst.as_ref().is_none_or(|worst| !is_about_a_certificate(worst)) {
                            worst = Some(status);
                        }
                        attempts.extend(sites.next().map(|site| transport.reach(site, until)));
                    }
                    None => {
                        let worst = worst.unwrap_or_else(|| Status::unavailable("no endpoint"));
                        return Err(CallError::from_status(&worst).into());
                    }
                },
                () = sleep(transport.late_after()), if !sites.is_empty() => {
                    attempts.extend(sites.next().map(|site| transport.reach(site, until)));
                }
            }
        }
        drop(attempts);
        Ok(transport)
    }

    /// Connects to the first server of a site that answers.
    async fn reach(&self, site: usize, until: Instant) -> Result<(), Status> {
        let servers = &self.board.servers()[site];
        let mut worst: Option<Status> = None;
        for server in 0..servers.count() {
            match connected(until, &servers.link(server)).await {
                Ok(()) => {
                    servers.begin_at(server);
                    return Ok(());
                }
                Err(status)
                    if worst.as_ref().is_none_or(|worst| !is_about_a_certificate(worst)) =>
                {
                    worst = Some(status);
                }
                Err(_) => {}
            }
        }
        self.board.failed(site);
        Err(worst.unwrap_or_else(|| Status::unavailable("no endpoint")))
    }

    /// The same connections, with all calls under this name.
    pub(crate) fn with_request_id(&self, id: RequestId) -> Self {
        Self { request_id: Some(id), ..self.clone() }
    }

    /// The same connections; who answers is said there.
    pub(crate) fn reporting_to(&self, report: CallReport) -> Self {
        Self { report: Some(report), ..self.clone() }
    }

    /// The same connections, with all calls at one site; `None`: no site has this name.
    pub(crate) fn at(&self, site: &str) -> Option<Self> {
        let only = self.board.servers().iter().position(|servers| *servers.name == *site)?;
        Some(Self { only: Some(only), ..self.clone() })
    }

    /// The sites that calls may go to, in order of preference.
    pub(crate) fn site_names(&self) -> impl Iterator<Item = &Arc<str>> {
        let may_go = |site: &usize| self.only.is_none_or(|only| only == *site);
        let sites = self.board.servers().iter().enumerate();
        sites.filter(move |(site, _)| may_go(site)).map(|(_, servers)| &servers.name)
    }

    /// The time that a call may take.
    pub(crate) fn deadline(&self) -> Duration {
        self.deadline
    }

    /// The time after which a call without an answer is late.
    pub(crate) fn late_after(&self) -> Duration {
        self.hedge_after.unwrap_or(LATE_AFTER)
    }

    /// What is known of the sites; `None`: there is nothing to choose.
    pub(crate) fn board(&self) -> Option<&Arc<Board>> {
        (self.only.is_none() && self.board.servers().len() > 1).then_some(&self.board)
    }

    /// Carries out one call: `send` is asked once for each try.
    pub(crate) async fn call<M, R, F>(
        &self,
        errand: Errand,
        message: M,
        send: impl Fn(Link, Request<M>) -> F,
    ) -> Result<R, CallError>
    where
        M: Clone,
        F: Future<Output = Result<Response<R>, Status>>,
    {
        let until = Instant::now() + self.deadline;
        let mut tries = self.tries(errand, Some(until));
        loop {
            let ask = |place| self.one_try(tries.request(message.clone()), place, until, &send);
            let result = match self.board().filter(|_| errand == Errand::Read) {
                None => ask(tries.place).await.map(|answer| (tries.place.site, answer)),
                Some(board) => {
                    let may_ask = self.hedge_after.is_some() && !tries.asked_twice;
                    let patience = Patience { late_after: self.late_after(), may_ask };
                    let Raced { result, asked_twice } =
                        race(board, tries.place, patience, ask).await;
                    tries.note_second(asked_twice);
                    result
                }
            };
            match result {
                Ok((site, response)) => {
                    self.answered(errand, site);
                    return Ok(response.into_inner());
                }
                Err(status) => tries.after(&status).await?,
            }
        }
    }

    async fn one_try<M, R, F>(
        &self,
        mut request: Request<M>,
        place: Place,
        until: Instant,
        send: &impl Fn(Link, Request<M>) -> F,
    ) -> Result<Response<R>, Status>
    where
        F: Future<Output = Result<Response<R>, Status>>,
    {
        let link = self.board.servers()[place.site].link(place.server);
        // First the connection: what fails here was certainly not carried out.
        connected(until, &link).await?;
        request.set_timeout(until.saturating_duration_since(Instant::now()));
        let answer = within(until, send(link, request)).await;
        if answer.as_ref().err().is_none_or(|status| LinkError::below(status).is_none()) {
            self.board.heard(place.site);
        }
        answer
    }

    /// A site has carried an errand out.
    fn answered(&self, errand: Errand, site: usize) {
        if errand == Errand::Write {
            self.board.wrote(site);
        }
        if let Some(report) = &self.report {
            report.answered(&self.board.servers()[site].name);
        }
    }

    /// Starts counting tries. Without `until` only their number ends them.
    pub(crate) fn tries(&self, errand: Errand, until: Option<Instant>) -> Tries<'_> {
        // One name for all tries: the service's log then shows that they belong together.
        let id = self.request_id.clone().unwrap_or_else(RequestId::random);
        let site = self.only.unwrap_or_else(|| self.board.first(errand));
        Tries {
            transport: self,
            id,
            errand,
            until,
            place: self.begin_at(site),
            round: Round::default(),
            stays: false,
            turned: false,
            unreached: None,
            asked_twice: false,
            waits: 0,
            anew: 0,
            failing_since: None,
        }
    }

    fn begin_at(&self, site: usize) -> Place {
        Place { site, server: self.board.servers()[site].current() }
    }
}

/// The tries of one call.
pub(crate) struct Tries<'a> {
    transport: &'a Transport,
    id: RequestId,
    errand: Errand,
    until: Option<Instant>,
    place: Place,
    round: Round,
    /// Something may have arrived at this site and may not be carried out at two.
    stays: bool,
    /// A refusal as not primary has led to another site.
    turned: bool,
    /// The failure of a site that can't be reached.
    unreached: Option<Status>,
    /// A second site was asked as well.
    asked_twice: bool,
    waits: u32,
    /// New connections that were taken at once since anything succeeded.
    anew: u32,
    /// The time since which nothing succeeds.
    failing_since: Option<Instant>,
}

/// What was found since the last wait.
#[derive(Default)]
struct Round {
    /// Servers of this site that were unavailable.
    unavailable: usize,
    /// Servers of all sites that were, and those among them where a certificate was refused: waiting mends
    /// none.
    failed: usize,
    refused: usize,
    /// Sites with no server that is not.
    tried: Vec<usize>,
}

impl Tries<'_> {
    /// `message` under the name of these tries.
    pub(crate) fn request<M>(&self, message: M) -> Request<M> {
        let mut request = Request::new(message);
        request.metadata_mut().insert(HEADER, self.id.metadata());
        request
    }

    /// The server for the next try.
    pub(crate) fn link(&self) -> Link {
        self.transport.board.servers()[self.place.site].link(self.place.server)
    }

    /// The watch over the site of the next try.
    pub(crate) fn vigil(&self) -> Vigil {
        let board = self.transport.board().filter(|_| self.errand.reads());
        Vigil::over(self.place.site, board, self.transport.late_after())
    }

    /// Lets the next try be at the site that is meant for the errand.
    pub(crate) fn move_on(&mut self) {
        if let Some(board) = self.transport.board() {
            self.place = self.transport.begin_at(board.first(Errand::OneRead));
            self.succeeded();
        }
    }

    fn note_second(&mut self, asked_twice: bool) {
        if asked_twice && let Some(report) = &self.transport.report {
            report.asked_a_second();
        }
        self.asked_twice |= asked_twice;
    }

    /// A message has been answered.
    pub(crate) fn answered(&mut self) {
        self.transport.board.heard(self.place.site);
        self.transport.answered(self.errand, self.place.site);
        self.succeeded();
    }

    /// All that may have arrived at this site has its answer: what comes next may go to another one.
    pub(crate) fn settled(&mut self) {
        self.stays = false;
    }

    /// A try has succeeded: later failures are new ones.
    pub(crate) fn succeeded(&mut self) {
        self.round = Round::default();
        (self.waits, self.anew) = (0, 0);
        (self.turned, self.unreached, self.failing_since) = (false, None, None);
    }

    /// As [`Tries::after`], for what flows: where anything is tried again at all, it goes on for as long as a
    /// call may take, but not beyond `until`, when the oldest item is due.
    pub(crate) async fn after_break(
        &mut self,
        status: &Status,
        until: Instant,
    ) -> Result<(), CallError> {
        let since = *self.failing_since.get_or_insert_with(Instant::now);
        self.until = Some(until.min(since + self.transport.deadline));
        self.after(status).await
    }

    /// Gets ready for the next try, or says why there is none. Only a full round of servers that
    /// are all unavailable costs a wait.
    pub(crate) async fn after(&mut self, status: &Status) -> Result<(), CallError> {
        let safety = safety(self.errand);
        // By what was tried before: this answer says only that this try was refused.
        let may_have_arrived = self.stays;
        self.stays |= self.errand == Errand::AtPrimary && !is_unsent(status);
        let at_least = match step(safety, status) {
            Step::GiveUp if !may_have_arrived && self.turns_after(status) => return Ok(()),
            Step::GiveUp => {
                if is_gone(status) {
                    self.servers().leave(self.place.server);
                }
                return Err(self.error(status));
            }
            Step::Anew if self.anew < ANEW_MAX => {
                self.anew += 1;
                return Ok(());
            }
            Step::Anew => Duration::ZERO,
            Step::Here { at_least } => at_least,
            Step::Elsewhere { at_least } => {
                if self.goes_elsewhere(status) {
                    return Ok(());
                }
                if self.round.refused >= self.round.failed {
                    return Err(CallError::of(safety, status));
                }
                at_least
            }
        };
        self.pause(status, at_least).await
    }

    /// Waits before another round, if there is to be one.
    async fn pause(&mut self, status: &Status, at_least: Duration) -> Result<(), CallError> {
        let pause = wait(self.waits, at_least, random());
        let retries = match (self.failing_since, self.transport.retries) {
            (Some(_), 1..) => u32::MAX,
            (_, retries) => retries,
        };
        let ends_in_time = self.until.is_none_or(|until| Instant::now() + pause < until);
        if self.waits >= retries || !ends_in_time {
            return Err(self.error(status));
        }
        sleep(pause).await;
        self.waits += 1;
        if !self.round.tried.is_empty()
            && !self.stays
            && let Some(board) = self.transport.board()
        {
            self.place = self.transport.begin_at(board.first(self.errand));
        }
        self.round = Round::default();
        Ok(())
    }

    /// Goes to the site's next server, or to the next site. False: all were tried.
    fn goes_elsewhere(&mut self, status: &Status) -> bool {
        self.round.unavailable += 1;
        self.round.failed += 1;
        self.round.refused += usize::from(is_about_a_certificate(status));
        self.place.server = self.servers().leave(self.place.server);
        if self.round.unavailable < self.servers().count() {
            return true;
        }
        if is_gone(status) {
            self.transport.board.failed(self.place.site);
            self.unreached = Some(status.clone());
        }
        self.round.tried.push(self.place.site);
        !self.stays && self.goes_to_next_site()
    }

    fn goes_to_next_site(&mut self) -> bool {
        let board = self.transport.board();
        let Some(site) = board.and_then(|board| board.next(self.errand, &self.round.tried)) else {
            return false;
        };
        self.place = self.transport.begin_at(site);
        self.round.unavailable = 0;
        true
    }

    /// Goes to another site, once, where this one says that it is not the primary.
    fn turns_after(&mut self, status: &Status) -> bool {
        if self.turned || self.errand.reads() || !is_not_primary(status) {
            return false;
        }
        self.turned = true;
        self.transport.board.not_primary(self.place.site);
        self.round.tried.push(self.place.site);
        // It was refused, so it has not arrived anywhere.
        self.stays = false;
        self.goes_to_next_site()
    }

    /// The error that the caller is told. Where one site is not the primary and the other can't be reached,
    /// it is this that somebody has to mend.
    fn error(&self, status: &Status) -> CallError {
        let safety = safety(self.errand);
        let unreached = self.unreached.as_ref().filter(|_| is_not_primary(status));
        match unreached.map(|unreached| CallError::of(safety, unreached)) {
            Some(CallError::Unreachable { reason }) => {
                let other = &self.servers().name;
                let reason = format!("{reason}; site {other} answers that it is not the primary");
                CallError::Unreachable { reason }
            }
            _ => CallError::of(safety, status),
        }
    }

    fn servers(&self) -> &crate::places::Servers {
        &self.transport.board.servers()[self.place.site]
    }
}

/// Whether an errand may be carried out twice.
fn safety(errand: Errand) -> Safety {
    if errand == Errand::Write { Safety::Once } else { Safety::Repeatable }
}

/// Waits for `future`, but not beyond `until`.
pub(crate) async fn within<T>(
    until: Instant,
    future: impl Future<Output = Result<T, Status>>,
) -> Result<T, Status> {
    match timeout_at(until, future).await {
        Ok(result) => result,
        Err(_) => Err(LinkError::Late.into_status()),
    }
}

/// Waits for a connection, but not beyond `until`.
pub(crate) async fn connected(until: Instant, link: &Link) -> Result<(), Status> {
    let opened = timeout_at(until, link.opened()).await;
    opened.unwrap_or(Err(LinkError::NoTime)).map_err(LinkError::into_status)
}
