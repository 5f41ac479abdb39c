//! Calls that need two people: what the first has asked for, that the second has agreed, and that it was made.
//!
//! The first person's call is refused and kept: its verb, the digest of its request's bytes, and who asked. A second
//! person of another name approves what was kept; then the first person's same call passes, once. What is kept are rows
//! of the site's database, so that any of its servers will do for either person; each is signed by the site's token, so
//! that whoever can write to the database makes none. The use of an approval is an event of the audit log, in the
//! transaction in which its row goes, before the call is carried out: of two servers one uses it, and a crash uses it up.

use std::{
    hash::{BuildHasher as _, RandomState},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::sync::Mutex;

use super::{about::About, asked::Asked, need::Needs, whole::Matter};
use crate::{
    audit::Audit,
    rpc::{
        access::{
            policy::{CallerName, Permit, Second},
            verb::Verb,
        },
        messages::{not_recorded::not_recorded, status::Refused, unfit::Unfit},
    },
    store::approvals::{ApprovalStep, StoredApproval},
};
use kms_core::{
    audit::{AuditEntry, AuditOutcome, AuditText, AuditedCall, Detail, Subject},
    ports::Clock,
    two_people::{Age, CallName, LIFE_MS, USED, WaitingCall, name_of},
};

/// Calls that wait at once, of all callers. Each takes less than two kilobytes.
pub(crate) const WAITING_MAX: usize = 256;
/// Calls of one caller that wait at once, so that none takes all the room.
pub(crate) const WAITING_OF_ONE_MAX: usize = 32;
/// The smallest number of nine digits.
const NUMBER_MIN: u64 = 100_000_000;
/// Rows are cleared away so long after their end: a server whose clock is ahead does not clear what others wait for.
const CLEARED_AFTER_MS: u64 = 4 * LIFE_MS;
/// Looks at what another server has just changed.
const TRIES_MAX: usize = 8;

/// The calls that wait for their second person.
pub(crate) struct Approvals {
    needs: Needs,
    audit: Arc<Audit>,
    clock: Arc<dyn Clock>,
    /// For the numbers: nobody guesses the next one.
    secret: RandomState,
    numbered: AtomicU64,
    /// What each caller asked for anew within the last minute.
    asked: Asked,
    /// One call of this server is looked for at a time: the same one is asked once, and the bounds are kept.
    turn: Mutex<()>,
}

/// A call that waits, as others may see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) number: u64,
    /// Numbers come again; this is the call itself.
    pub(crate) name: CallName,
    pub(crate) verb: Verb,
    pub(crate) requester: String,
    pub(crate) about: About,
    pub(crate) age_ms: u64,
    pub(crate) expires_in_ms: u64,
    pub(crate) approved_by: Option<String>,
}

/// A row that is there, and what it is by now.
enum Found {
    /// The token signed it, and it is not over.
    Lives(WaitingCall),
    /// It is over, and as good as not there.
    Over,
    /// Nothing is done under it.
    Unfit(Unfit),
}

impl Approvals {
    pub(crate) fn new(needs: Needs, audit: Arc<Audit>, clock: Arc<dyn Clock>) -> Self {
        let (secret, numbered, turn) = (RandomState::new(), AtomicU64::new(0), Mutex::new(()));
        Self { needs, audit, clock, secret, numbered, asked: Asked::default(), turn }
    }

    /// What two people are asked for.
    pub(crate) const fn needs(&self) -> &Needs {
        &self.needs
    }

    /// Lets an approved call through, once, and says who approved it; any other is kept and refused with its number.
    pub(crate) async fn pass(
        &self,
        permit: &Permit,
        matter: &Matter,
        call: &AuditedCall,
    ) -> Result<Second, Refused> {
        let name = name_of(permit.verb().name(), permit.caller().as_str(), &matter.digest);
        let _turn = self.turn.lock().await;
        for _ in 0..TRIES_MAX {
            let rows = self.audit.approvals().await.map_err(not_recorded)?;
            let row = rows.iter().find(|row| row.name == name);
            let found = row.map(|row| (row, self.look(row)));
            let passed = match found {
                None => self.ask((permit, matter, call), &rows, None).await?,
                Some((row, Found::Over)) => {
                    self.ask((permit, matter, call), &rows, Some(row)).await?
                }
                Some((row, Found::Unfit(unfit))) => self.take_out(row, call, unfit).await?,
                Some((row, Found::Lives(waiting))) => {
                    self.make(matter.may_go_on, call, (row, &waiting)).await?
                }
            };
            if let Some(second) = passed {
                return Ok(second);
            }
        }
        Err(Refused::AuditNotWritable)
    }

    /// As [`Approvals::pass`], and uses nothing: the call with its approval, as it waits.
    pub(crate) async fn ahead(
        &self,
        permit: &Permit,
        matter: &Matter,
        call: &AuditedCall,
    ) -> Result<Listed, Refused> {
        let name = name_of(permit.verb().name(), permit.caller().as_str(), &matter.digest);
        let _turn = self.turn.lock().await;
        for _ in 0..TRIES_MAX {
            let rows = self.audit.approvals().await.map_err(not_recorded)?;
            let row = rows.iter().find(|row| row.name == name);
            match row.map(|row| (row, self.look(row))) {
                None => drop(self.ask((permit, matter, call), &rows, None).await?),
                Some((row, Found::Over)) => {
                    drop(self.ask((permit, matter, call), &rows, Some(row)).await?);
                }
                Some((row, Found::Unfit(unfit))) => {
                    drop(self.take_out::<Second>(row, call, unfit).await?);
                }
                Some((_, Found::Lives(waiting))) if waiting.approver.is_none() => {
                    return Err(self.needed(permit.verb(), &waiting, true));
                }
                Some((row, Found::Lives(waiting))) => match self.unfit(&waiting).await? {
                    Some(unfit) => drop(self.take_out::<Second>(row, call, unfit).await?),
                    None => {
                        let missing = Refused::Fault("a call of no verb");
                        return self.listed(waiting).ok_or(missing);
                    }
                },
            }
        }
        Err(Refused::AuditNotWritable)
    }

    /// The calls that wait, the oldest first.
    pub(crate) async fn list(&self) -> Result<Vec<Listed>, Refused> {
        let rows = self.audit.approvals().await.map_err(not_recorded)?;
        let live = rows.iter().filter_map(|row| match self.look(row) {
            Found::Lives(call) => self.listed(call),
            Found::Over | Found::Unfit(_) => None,
        });
        let mut listed: Vec<Listed> = live.collect();
        listed.sort_by_key(|one| std::cmp::Reverse(one.age_ms));
        Ok(listed)
    }

    /// The second person agrees to the call of this number that he was shown, and to no other. To agree again changes
    /// nothing.
    pub(crate) async fn approve(
        &self,
        (number, shown): (u64, CallName),
        approver: &CallerName,
        call: &AuditedCall,
    ) -> Result<Listed, Refused> {
        let call = &AuditedCall { approval: Some(number), ..call.clone() };
        let _turn = self.turn.lock().await;
        for _ in 0..TRIES_MAX {
            let rows = self.audit.approvals().await.map_err(not_recorded)?;
            let row = rows.iter().find(|row| row.number == number);
            match row.map(|row| (row, self.look(row))) {
                None | Some((_, Found::Over)) => {
                    return Err(self.refuse(call, Subject::NONE, Refused::NothingWaits).await);
                }
                Some((row, Found::Unfit(unfit))) => {
                    self.take_out::<Second>(row, call, unfit).await?;
                }
                Some((row, Found::Lives(_))) if row.name != shown => {
                    tracing::error!(number, %approver, "{}", Refused::OtherCall);
                    return Err(self.refuse(call, Subject::NONE, Refused::OtherCall).await);
                }
                Some((row, Found::Lives(waiting))) => {
                    if let Some(listed) = self.agree(approver, call, (row, waiting)).await? {
                        return Ok(listed);
                    }
                }
            }
        }
        Err(Refused::AuditNotWritable)
    }

    fn look(&self, row: &StoredApproval) -> Found {
        let Ok(call) = self.audit.open_approval(row) else {
            tracing::error!(number = row.number, "{}", Unfit::Changed);
            return Found::Unfit(Unfit::Changed);
        };
        match call.age(self.clock.unix_ms()) {
            Age::Lives(_) => Found::Lives(call),
            Age::Over => Found::Over,
            Age::OfAnotherClock(by_ms) => Found::Unfit(Unfit::Clocks { by_ms }),
        }
    }

    fn listed(&self, call: WaitingCall) -> Option<Listed> {
        let now_ms = self.clock.unix_ms();
        let expires_in_ms = call.expires_ms().saturating_sub(now_ms).min(LIFE_MS);
        let name = call.name();
        let WaitingCall { number, verb, requester, line, subject, asked_ms, approver, .. } = call;
        Some(Listed {
            number,
            name,
            // A server of another release may know of more.
            verb: Verb::of_name(&verb)?,
            requester,
            about: About { line, subject },
            age_ms: now_ms.saturating_sub(asked_ms),
            expires_in_ms,
            approved_by: approver,
        })
    }

    /// Keeps a call that nobody has asked for yet. `None`: somebody else was first.
    async fn ask(
        &self,
        (permit, matter, call): (&Permit, &Matter, &AuditedCall),
        rows: &[StoredApproval],
        before: Option<&StoredApproval>,
    ) -> Result<Option<Second>, Refused> {
        let (verb, requester) = (permit.verb(), permit.caller());
        self.check_room(rows, requester)?;
        self.asked.count(requester, self.clock.now())?;
        let About { line, subject } = matter.about.clone();
        let waiting = WaitingCall {
            number: self.next_number(),
            verb: verb.name().to_owned(),
            requester: requester.as_str().to_owned(),
            digest: matter.digest,
            line,
            subject,
            asked_ms: self.clock.unix_ms(),
            approver: None,
            ends: self.audit.chains().await.map_err(not_recorded)?,
        };
        let refused = self.needed(verb, &waiting, false);
        let outcome = AuditOutcome::refused(refused.word());
        let entry = call.entry(self.audit.now_ms(), waiting.subject.clone(), outcome);
        let entry = entry.with(Detail::Approval, waiting.number);
        let after = self.audit.sign_approval(&waiting).await.map_err(not_recorded)?;
        let step = self.step(after.name, before, Some(after));
        if !self.audit.put_approval(step, entry).await.map_err(not_recorded)? {
            return Ok(None);
        }
        tracing::info!(%verb, %requester, number = waiting.number, "a second person is needed");
        Err(refused)
    }

    /// Makes a call of which a row is there, if it was approved. `None`: somebody else was first.
    async fn make(
        &self,
        may_go_on: bool,
        call: &AuditedCall,
        (row, waiting): (&StoredApproval, &WaitingCall),
    ) -> Result<Option<Second>, Refused> {
        let verb = Verb::of_name(&waiting.verb).ok_or(Refused::Fault("a call of no verb"))?;
        let Some(approver) = &waiting.approver else {
            return Err(self.needed(verb, waiting, true));
        };
        let approver = CallerName::new(approver).map_err(|_| Refused::Fault("not a name"))?;
        let second = Second { approver, number: waiting.number };
        // To carry out a part of it twice changes nothing: its approval lasts as long as it lives.
        if may_go_on {
            return Ok(Some(second));
        }
        if let Some(unfit) = self.unfit(waiting).await? {
            return self.take_out(row, call, unfit).await;
        }
        let used = AuditedCall { verb: AuditText::new(USED), ..call.clone() };
        let subject = waiting.subject.clone();
        let entry = used.entry(self.audit.now_ms(), subject, AuditOutcome::Done);
        let entry = entry.with(Detail::Approval, waiting.number);
        let step = self.step(row.name, Some(row), None);
        let is_first = self.audit.put_approval(step, entry).await.map_err(not_recorded)?;
        if !is_first {
            return Ok(None);
        }
        // Somebody may have put the row back between that look and this use, when another server had used it.
        if self.audit.uses(waiting).await.map_err(not_recorded)? > 1 {
            let refused = Refused::Unfit(Unfit::Used);
            tracing::error!(number = row.number, call = %call.verb, "{refused}");
            return Err(self.refuse(call, waiting.subject.clone(), refused).await);
        }
        Ok(Some(second))
    }

    /// The reason why a call that a row says is approved is not carried out here.
    async fn unfit(&self, waiting: &WaitingCall) -> Result<Option<Unfit>, Refused> {
        // Its use would stand in a chain that the row does not name: with all of that chain it could be taken back.
        if !self.audit.is_older_than(waiting) {
            return Ok(Some(Unfit::YoungerServer));
        }
        let uses = self.audit.uses(waiting).await.map_err(not_recorded)?;
        Ok((uses > 0).then_some(Unfit::Used))
    }

    /// Puts the second person's name to a call. `None`: somebody else was first.
    async fn agree(
        &self,
        approver: &CallerName,
        call: &AuditedCall,
        (row, waiting): (&StoredApproval, WaitingCall),
    ) -> Result<Option<Listed>, Refused> {
        let subject = waiting.subject.clone();
        if waiting.requester == approver.as_str() {
            return Err(self.refuse(call, subject, Refused::OwnCall).await);
        }
        let entry = call.entry(self.audit.now_ms(), subject, AuditOutcome::Done);
        if waiting.approver.is_some() {
            self.audit.record(entry).await.map_err(not_recorded)?;
            return Ok(self.listed(waiting));
        }
        let approved = WaitingCall { approver: Some(approver.as_str().to_owned()), ..waiting };
        let after = self.audit.sign_approval(&approved).await.map_err(not_recorded)?;
        let step = self.step(row.name, Some(row), Some(after));
        if !self.audit.put_approval(step, entry).await.map_err(not_recorded)? {
            return Ok(None);
        }
        let WaitingCall { verb, requester, number, .. } = &approved;
        tracing::info!(verb, requester, %approver, number, "a call was approved");
        Ok(self.listed(approved))
    }

    /// A row under which nothing is done goes, and is named. What another clock says stays: a better one judges it.
    async fn take_out<T>(
        &self,
        row: &StoredApproval,
        call: &AuditedCall,
        unfit: Unfit,
    ) -> Result<Option<T>, Refused> {
        let refused = Refused::Unfit(unfit);
        tracing::error!(number = row.number, call = %call.verb, "{refused}");
        let call = &AuditedCall { approval: Some(row.number), ..call.clone() };
        if let Unfit::Clocks { .. } = unfit {
            return Err(self.refuse(call, Subject::NONE, refused).await);
        }
        let outcome = AuditOutcome::refused(refused.word());
        let entry: AuditEntry = call.entry(self.audit.now_ms(), Subject::NONE, outcome);
        let step = self.step(row.name, Some(row), None);
        let is_first = self.audit.put_approval(step, entry).await.map_err(not_recorded)?;
        if is_first { Err(refused) } else { Ok(None) }
    }

    /// Records why a call is refused; if that fails, it is refused for that.
    async fn refuse(&self, call: &AuditedCall, subject: Subject, refused: Refused) -> Refused {
        let outcome = AuditOutcome::refused(refused.word());
        let entry = call.entry(self.audit.now_ms(), subject, outcome);
        self.audit.record(entry).await.map_or_else(not_recorded, |()| refused)
    }

    fn step(
        &self,
        name: [u8; 32],
        before: Option<&StoredApproval>,
        after: Option<StoredApproval>,
    ) -> ApprovalStep {
        let over_by_ms = self.clock.unix_ms().saturating_sub(CLEARED_AFTER_MS);
        ApprovalStep { name, before: before.map(|row| row.signature), after, over_by_ms }
    }

    /// Servers that ask at the same moment may each find the last place free.
    fn check_room(&self, rows: &[StoredApproval], requester: &CallerName) -> Result<(), Refused> {
        let (mut own, mut all) = (0, 0);
        for row in rows {
            if let Found::Lives(call) = self.look(row) {
                all += 1;
                own += usize::from(call.requester == requester.as_str());
            }
        }
        if own >= WAITING_OF_ONE_MAX {
            return Err(Refused::TooManyWaiting(WAITING_OF_ONE_MAX));
        }
        if all >= WAITING_MAX {
            return Err(Refused::TooManyWaiting(WAITING_MAX));
        }
        Ok(())
    }

    /// Nine digits, to be said on the telephone. One that is in use is not taken twice by the database.
    fn next_number(&self) -> u64 {
        let numbered = self.numbered.fetch_add(1, Ordering::Relaxed);
        NUMBER_MIN + self.secret.hash_one(numbered) % (9 * NUMBER_MIN)
    }

    fn needed(&self, verb: Verb, waiting: &WaitingCall, asked_before: bool) -> Refused {
        let (number, expires_ms) = (waiting.number, waiting.expires_ms());
        let site = self.needs.site_name().to_owned();
        Refused::SecondPersonNeeded { verb, number, site, expires_ms, asked_before }
    }
}
