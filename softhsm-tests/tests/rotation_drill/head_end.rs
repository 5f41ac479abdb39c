//! The head-end of the drill: takes work, does it over the wire, reports what came back. It is killed, and its service is.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, stream};
use kms_proto::v1::{
    self, CampaignStatus, KeyPair, TransportOutcome as Outcome, Work, WorkAction,
    rotation_client::RotationClient,
};
use simulated_meter::{acse, cuts::Cut, frame::Frame};
use tokio::time::{sleep, timeout};
use tonic::{Response, Status, transport::Channel};
use tonic_types::StatusExt as _;

use super::{
    common::fleet::id,
    fates::Fates,
    field::{ALWAYS, BY_HLS, Field, is_exception},
    probing::{Tried, Wanted, protect},
    sites::{PATIENCE, Sites},
};

/// Meters that are taken at a time.
const MOST: u32 = 256;
/// Calls at a time.
const AT_ONCE: usize = 16;
/// A campaign that gets nowhere for so long is stuck.
const STUCK: Duration = Duration::from_secs(60);
/// Behind the beginning of calls, a kill among them.
const AMONG: Duration = Duration::from_millis(15);
/// A report is sent again so often.
const REPORTS: u32 = 60;
const MOMENT: Duration = Duration::from_millis(250);
const INVOKE: u32 = 0xc1;

/// What was done.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) transfers: u64,
    pub(crate) probes: u64,
    pub(crate) restarts: u64,
    /// Associations that authenticated.
    pub(crate) associations: u64,
    /// Steps after which the meter had not been heard.
    pub(crate) silent: u64,
    /// Calls that a kill cut off.
    pub(crate) cut_off: u64,
    /// Pauses that somebody ended.
    pub(crate) resumed: u64,
    /// What the service refused, by its words.
    pub(crate) refused: BTreeMap<String, u64>,
}

/// One step with one meter.
pub(crate) struct Act {
    pub(crate) work: Work,
    pub(crate) n: u64,
    pub(crate) cut: Option<Cut>,
    pub(crate) apdus: Vec<Vec<u8>>,
    pub(crate) in_vain: Vec<KeyPair>,
    /// None: it is not over.
    pub(crate) outcome: Option<Outcome>,
}

impl Act {
    pub(crate) fn is(&self, action: WorkAction) -> bool {
        self.work.action == action as i32 && self.outcome.is_none()
    }

    /// Whether the server is killed in the midst of this one's calls: of half of those that it is killed for.
    pub(crate) fn is_struck_early(&self) -> bool {
        self.cut == Some(Cut::ServerKilled) && self.n.is_multiple_of(2)
    }

    fn heard(&mut self, back: Vec<Vec<u8>>) {
        self.outcome = Some(match back.iter().all(|it| is_exception(it)) {
            _ if back.is_empty() => Outcome::NoAnswer,
            true => Outcome::Refused,
            false => Outcome::Answered,
        });
        self.apdus.extend(back);
    }
}

/// All that there is in a drill.
pub(crate) struct Drill {
    pub(crate) sites: Sites,
    pub(crate) field: Field,
    pub(crate) fates: Fates,
    pub(crate) seen: Seen,
    pub(crate) campaign: String,
}

impl Drill {
    /// Works until the campaign is over. What the campaign stopped for is looked at, and it goes on.
    pub(crate) async fn work_off(&mut self) {
        let mut moved = Instant::now();
        loop {
            let request = v1::TakeWorkRequest {
                campaign: self.campaign.clone(),
                most: MOST,
                worker: "drill".to_owned(),
            };
            match within(self.sites.head_end().take_work(request)).await {
                Ok(taken) if !taken.work.is_empty() => {
                    if self.work_on(taken.work).await {
                        moved = Instant::now();
                        continue;
                    }
                }
                Ok(_) if self.is_over().await => return,
                Ok(_) => {}
                Err(status) => self.refused(&status),
            }
            let stuck = moved.elapsed() > STUCK;
            assert!(!stuck, "the campaign is stuck: {:?} {:?}", self.progress().await, self.seen);
            sleep(MOMENT).await;
        }
    }

    async fn progress(&self) -> Option<v1::Campaign> {
        let request = v1::GetCampaignRequest { name: self.campaign.clone() };
        within(self.sites.people().get_campaign(request)).await.ok()
    }

    async fn is_over(&mut self) -> bool {
        let Some(campaign) = self.progress().await else { return false };
        match campaign.status() {
            CampaignStatus::Finished => return true,
            CampaignStatus::Paused => {
                let request =
                    v1::ResumeCampaignRequest { name: self.campaign.clone(), retry_failed: false };
                let resumed = within(self.sites.people().resume_campaign(request)).await;
                self.seen.resumed += u64::from(resumed.is_ok());
            }
            _ => {}
        }
        false
    }

    /// These, until nothing more is to be done under their leases. Whether anything came of it.
    async fn work_on(&mut self, mut works: Vec<Work>) -> bool {
        let mut moved = false;
        while !works.is_empty() {
            let mut acts: Vec<Act> = works.into_iter().map(|work| self.begun(work)).collect();
            self.restart(&mut acts);
            self.associate(&mut acts).await;
            self.transfer(&mut acts).await;
            self.probe(&mut acts).await;
            moved |= acts.iter().any(|act| act.outcome != Some(Outcome::GivenBack));
            self.strike(&mut acts).await;
            works = self.report(acts).await;
        }
        moved
    }

    fn begun(&mut self, work: Work) -> Act {
        let n = work.meter_id.trim_start_matches(|letter: char| !letter.is_ascii_digit());
        let n = n.parse().unwrap();
        assert_eq!(work.meter_id, id(n));
        let cut = self.fates.next(n);
        Act { work, n, cut, apdus: Vec::new(), in_vain: Vec::new(), outcome: None }
    }

    fn restart(&mut self, acts: &mut [Act]) {
        for act in acts.iter_mut().filter(|act| act.is(WorkAction::Restart)) {
            self.seen.restarts += 1;
            if act.cut == Some(Cut::RequestLost) {
                act.outcome = Some(Outcome::NoAnswer);
                continue;
            }
            match act.cut {
                Some(Cut::PowerLost) => self.field.device(act.n).meter.lose_power(),
                _ => self.field.device(act.n).meter.reboot(),
            }
            let pushed = self.field.push(act.n);
            if act.cut != Some(Cut::AnswerLost) {
                act.apdus.push(pushed);
            }
            act.outcome = Some(Outcome::Restarted);
        }
    }

    /// Asks for the transfers, has them sent, and the association released that carried them.
    async fn transfer(&mut self, acts: &mut [Act]) {
        let wanted = |early: bool, acts: &[Act]| -> Vec<(usize, v1::NextTransferRequest)> {
            let acts = acts.iter().enumerate();
            let some =
                acts.filter(|(_, it)| it.is(WorkAction::Transfer) && it.is_struck_early() == early);
            some.map(|(at, act)| (at, next_of(&act.work))).collect()
        };
        let mut given = next_transfers(self.sites.head_end(), wanted(false, acts)).await;
        let struck = wanted(true, acts);
        if !struck.is_empty() {
            let calls = next_transfers(self.sites.head_end(), struck);
            let some = self.killed_among(calls).await;
            self.seen.cut_off += some.iter().filter(|(_, it)| it.is_err()).count() as u64;
            given.extend(some);
        }
        for (at, next) in given {
            let act = &mut acts[at];
            match next {
                Ok(next) if !next.apdu.is_empty() => self.send(act, &next.apdu),
                Ok(next) => {
                    self.note(format!("transfer: {:?} {:?}", next.verdict(), next.refusal()));
                    act.outcome = Some(Outcome::GivenBack);
                }
                Err(status) => {
                    self.refused(&status);
                    act.outcome = Some(Outcome::GivenBack);
                }
            }
        }
    }

    fn send(&mut self, act: &mut Act, apdu: &[u8]) {
        self.seen.transfers += 1;
        let over = if act.by_hls(&self.field) { BY_HLS } else { ALWAYS };
        let mut back = self.field.exchange(act.n, (over, apdu), act.cut);
        if !back.is_empty() {
            back.extend(self.field.exchange(act.n, (over, &acse::RELEASE), None));
            back.retain(|it| *it != acse::RELEASED);
        }
        for said in back.iter().filter(|it| is_exception(it)) {
            self.note(format!("a transfer: {:02x?}", &said[..3]));
        }
        if back.is_empty() {
            self.note("a transfer: nothing".to_owned());
        }
        act.heard(back);
    }

    /// Kills the server while these calls are under way, and starts it again.
    pub(crate) async fn killed_among<T>(&mut self, calls: impl Future<Output = T>) -> T {
        let sites = &mut self.sites;
        let kill = async {
            sleep(AMONG).await;
            sites.kill();
        };
        let (done, ()) = tokio::join!(calls, kill);
        let primary = self.sites.primary;
        self.sites.start_again(primary);
        done
    }

    /// Under which pair does it answer? Meters whose transfers go over such associations authenticate under what is staged; the
    /// others are asked for their clock.
    async fn probe(&mut self, acts: &mut [Act]) {
        self.seen.probes += acts.iter().filter(|act| act.is(WorkAction::Probe)).count() as u64;
        let most = acts.iter().map(|act| act.work.pairs.len()).max().unwrap_or_default();
        for round in 0..most {
            for is_struck in [false, true] {
                self.authenticate_in(acts, (round, is_struck)).await;
                self.ask_in(acts, (round, is_struck)).await;
            }
        }
        for act in acts.iter_mut().filter(|act| act.is(WorkAction::Probe)) {
            act.outcome = Some(match (act.in_vain.is_empty(), act.apdus.is_empty()) {
                (true, _) => Outcome::GivenBack,
                (false, true) => Outcome::NoAnswer,
                (false, false) => Outcome::Refused,
            });
        }
    }

    /// One round of probes by authentication.
    async fn authenticate_in(&mut self, acts: &mut [Act], round: (usize, bool)) {
        let due = due(acts, round);
        let due = due.into_iter().filter(|(at, pair)| acts[*at].shows_by_hls(pair, &self.field));
        let wanted = due.map(|(at, pair)| {
            let act = &acts[at];
            Wanted { at, n: act.n, pair, cut: act.cut.filter(|_| round.0 == 0) }
        });
        let wanted = wanted.collect();
        for (at, tried) in self.authenticate(wanted, round.1).await {
            let act = &mut acts[at];
            let pair = act.work.pairs[round.0];
            match tried {
                Tried::NotBegun => continue,
                Tried::Silent | Tried::Locked => act.in_vain.push(pair),
                Tried::Wrong(back) => {
                    act.apdus.extend(back);
                    act.in_vain.push(pair);
                }
                Tried::Right(back) => {
                    act.apdus.extend(back);
                    act.outcome = Some(Outcome::Answered);
                    self.field.exchange(act.n, (BY_HLS, &acse::RELEASE), None);
                }
            }
            if act.cut == Some(Cut::HeadEndKilled) && round.0 == 0 {
                act.outcome = Some(Outcome::NoAnswer);
            }
        }
    }

    /// One round of probes by questions.
    async fn ask_in(&mut self, acts: &mut [Act], round: (usize, bool)) {
        let due = due(acts, round);
        let due = due.into_iter().filter(|(at, pair)| !acts[*at].shows_by_hls(pair, &self.field));
        let wanted: Vec<_> = due.map(|(at, pair)| (at, acts[at].n, pair)).collect();
        if wanted.is_empty() {
            return;
        }
        let (asked, calls) = (wanted.len(), protect(self.sites.ciphering(), wanted));
        let sent = if round.1 { self.killed_among(calls).await } else { calls.await };
        if round.1 {
            self.seen.cut_off += (asked - sent.len()) as u64;
        }
        for (at, pair, apdu) in sent {
            let act = &mut acts[at];
            let cut = act.cut.filter(|_| round.0 == 0);
            let back = self.field.exchange(act.n, (ALWAYS, &apdu), cut);
            let is_own = back.iter().any(|it| Frame::read(it).is_some());
            act.apdus.extend(back);
            if is_own || cut == Some(Cut::HeadEndKilled) {
                act.outcome = Some(Outcome::Answered);
            } else {
                act.in_vain.push(pair);
            }
        }
    }

    /// What befalls the service behind the meters' answers.
    async fn strike(&mut self, acts: &mut [Act]) {
        let befalls = |cut: Cut| acts.iter().any(|act| act.cut == Some(cut));
        if acts.iter().any(|act| act.cut == Some(Cut::ServerKilled) && !act.is_struck_early()) {
            self.sites.kill();
            let primary = self.sites.primary;
            self.sites.start_again(primary);
        }
        if befalls(Cut::Failover) {
            self.sites.fail_over().await;
        }
        for act in acts {
            let nothing = act.outcome == Some(Outcome::GivenBack);
            self.seen.silent += u64::from(act.outcome == Some(Outcome::NoAnswer));
            match act.cut {
                // Nothing was sent: it is cut the next time.
                Some(cut) if nothing && cut != Cut::ServerKilled => {
                    self.fates.again(act.n);
                    act.cut = act.cut.filter(|it| *it == Cut::Failover);
                }
                Some(cut) => self.fates.befell(act.n, cut),
                None if nothing => self.fates.again(act.n),
                None => {}
            }
        }
    }

    /// Reports all that the head-end still knows of; what is to be done next.
    async fn report(&mut self, acts: Vec<Act>) -> Vec<Work> {
        let known = acts.into_iter().filter(|act| act.cut != Some(Cut::HeadEndKilled));
        let reports: Vec<v1::WorkReport> = known
            .map(|act| v1::WorkReport {
                meter_id: act.work.meter_id,
                lease: act.work.lease,
                outcome: act.outcome.unwrap_or(Outcome::NoAnswer) as i32,
                apdus: act.apdus.into_iter().map(Into::into).collect(),
                pairs_tried: act.in_vain,
                end: false,
            })
            .collect();
        if reports.is_empty() {
            return Vec::new();
        }
        for _ in 0..REPORTS {
            let request = v1::ReportWorkRequest { reports: reports.clone() };
            match within(self.sites.head_end().report_work(request)).await {
                Ok(reply) => return self.next_of_all(reply.verdicts),
                Err(status) => self.refused(&status),
            }
            sleep(MOMENT).await;
        }
        Vec::new()
    }

    fn next_of_all(&mut self, verdicts: Vec<v1::WorkVerdict>) -> Vec<Work> {
        let mut works = Vec::new();
        for verdict in verdicts {
            if !verdict.code.is_empty() {
                self.note(format!("report: {}", verdict.code));
            }
            works.extend(verdict.next.filter(|it| it.action() != WorkAction::None));
        }
        works
    }

    pub(crate) fn refused(&mut self, status: &Status) {
        let word = status.get_error_details().error_info().map(|info| info.reason.clone());
        self.note(word.unwrap_or_else(|| format!("{:?}", status.code())));
    }

    pub(crate) fn note(&mut self, what: String) {
        *self.seen.refused.entry(what).or_default() += 1;
    }
}

impl Act {
    /// Whether a pair has the key that is on its way, and the meter shows it by authenticating.
    fn shows_by_hls(&self, pair: &KeyPair, field: &Field) -> bool {
        let version = match self.work.kind() {
            v1::KeyKind::Guek => pair.encryption_key_version,
            v1::KeyKind::Gak => pair.authentication_key_version,
            _ => return false,
        };
        self.work.version == version && self.by_hls(field)
    }

    /// Whether its transfer goes over an association that authenticates.
    pub(crate) fn by_hls(&self, field: &Field) -> bool {
        field.devices[&self.n].by_hls
    }
}

/// Probes of a round: the pair of each act that is due.
fn due(acts: &[Act], (round, is_struck): (usize, bool)) -> Vec<(usize, KeyPair)> {
    let acts = acts.iter().enumerate().filter(|(_, act)| act.is(WorkAction::Probe));
    let some = acts.filter(|(_, act)| (round == 0 && act.is_struck_early()) == is_struck);
    some.filter_map(|(at, act)| Some((at, *act.work.pairs.get(round)?))).collect()
}

fn next_of(work: &Work) -> v1::NextTransferRequest {
    let pair = work.pairs.first().copied().unwrap_or_default();
    v1::NextTransferRequest {
        place: Some(v1::KeyPlace {
            meter_id: work.meter_id.clone(),
            kind: work.kind,
            security_setup: work.security_setup,
        }),
        encryption_key_version: pair.encryption_key_version,
        authentication_key_version: pair.authentication_key_version,
        invoke_id_and_priority: INVOKE,
        form: 0,
        lease: work.lease,
    }
}

type Next = (usize, Result<v1::NextTransferResponse, Status>);

async fn next_transfers(
    client: RotationClient<Channel>,
    wanted: Vec<(usize, v1::NextTransferRequest)>,
) -> Vec<Next> {
    let one = |(at, request)| {
        let mut client = client.clone();
        async move { (at, within(client.next_transfer(request)).await) }
    };
    stream::iter(wanted).map(one).buffer_unordered(AT_ONCE).collect().await
}

/// An answer, or that there is none.
pub(crate) async fn within<T>(
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, Status> {
    match timeout(PATIENCE, call).await {
        Ok(answer) => answer.map(Response::into_inner),
        Err(_) => Err(Status::deadline_exceeded("no answer")),
    }
}
