//! Second people of a switchover: asked for before anybody is demoted, since nobody writes from then on.

use std::io::{self, Write as _};
use std::time::{Duration, Instant};

use kms_client::{Approval, CallError, KmsClient, PromoteOptions};
use kms_core::two_people::LIFE_MS;

use crate::failure::Failure;

/// Between two questions whether somebody has approved it.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// The time for the steps themselves, beside what is waited for between them.
const MARGIN: Duration = Duration::from_secs(60);
/// For the answer about a call that is over, by the clock of its site.
const END_MARGIN: Duration = Duration::from_secs(10);
/// What becomes of a switchover for which nobody came.
const NOBODY_CAME: &str = "nothing was changed. Run the same command again: the calls that were approved stay so for their \
    time, the others are asked anew";

/// What becomes of a switchover that came as far as the demotion.
const NOBODY_WRITES: &str = "nobody writes. Run the same command again: it asks anew";

/// A step that is taken later.
pub(crate) enum Later<'a> {
    Promote(&'a KmsClient, PromoteOptions),
    Demote(&'a KmsClient, u64),
}

impl Later<'_> {
    async fn ask(&self) -> Result<Option<Approval>, CallError> {
        match self {
            Self::Promote(site, options) => site.ask_to_promote(*options).await,
            Self::Demote(site, epoch) => site.ask_to_demote(*epoch).await,
        }
    }

    const fn verb(&self) -> &'static str {
        match self {
            Self::Promote(..) => "Site/Promote",
            Self::Demote(..) => "Site/Demote",
        }
    }

    /// Waits until the step would pass, for as long as its approval may come.
    async fn wait(&self, mut waits: Option<Waits>, left_min: Duration) -> Result<(), Failure> {
        loop {
            let error = match self.ask().await {
                Ok(approval) => return check_left(approval.as_ref(), left_min),
                Err(error) => error,
            };
            let CallError::SecondPersonNeeded { site, approval_id, .. } = &error else {
                return passed_over(error);
            };
            let is_known = waits.as_ref().is_some_and(|waits| waits.id == *approval_id);
            if !is_known {
                waits = Some(self.begin_to_wait((site, approval_id), left_min).await);
            }
            if waits.as_ref().is_some_and(|waits| Instant::now() >= waits.until) {
                return Err(Failure::from(error).with_next(NOBODY_CAME));
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }

    /// The rest of a call's life by the clock of its site: ours may be another one.
    async fn left(&self, approval_id: &str) -> Duration {
        let (Self::Promote(site, _) | Self::Demote(site, _)) = self;
        let waiting = site.approvals().await.unwrap_or_default();
        let found = waiting.into_iter().find(|one| one.approval_id == approval_id);
        Duration::from_millis(found.map_or(LIFE_MS, |one| one.expires_in_ms))
    }

    /// Says for what it waits. A call that was asked before and is over too soon is waited out: then it is asked anew.
    async fn begin_to_wait(&self, (site, approval_id): (&str, &str), left_min: Duration) -> Waits {
        let left = self.left(approval_id).await;
        let (verb, now, id) = (self.verb(), Instant::now(), approval_id.to_owned());
        let enough = left.saturating_sub(left_min);
        if enough.is_zero() {
            say_waiting(&format!(
                "{} s for the end of {verb}, which was asked at site {site} before ({approval_id}); then it is asked anew, and \
                 nothing is changed yet",
                left.as_secs()
            ));
            return Waits { id, until: now + left + END_MARGIN };
        }
        say_waiting(&format!(
            "{} s at most for a second person, and nothing is changed yet: {}",
            enough.as_secs(),
            how(verb, site, approval_id)
        ));
        Waits { id, until: now + enough }
    }
}

/// A call that is waited for.
struct Waits {
    id: String,
    until: Instant,
}

fn how(verb: &str, site: &str, approval_id: &str) -> String {
    format!("{verb} at site {site} (ami-tool approvals approve {approval_id})")
}

fn say_waiting(what: &str) {
    // A closed standard error is no reason to stop.
    let _ = writeln!(io::stderr(), "waiting {what}");
}

/// The wait for the second person of a promotion behind the demotion: nobody writes, so it takes what comes, for as long as
/// that call waits.
#[derive(Default)]
pub(crate) struct LastStep(Option<Waits>);

impl LastStep {
    /// Called with each refusal for want of a second person; the refusal, once nobody came.
    pub(crate) async fn wait(&mut self, to: &KmsClient, error: CallError) -> Result<(), Failure> {
        let CallError::SecondPersonNeeded { site, approval_id, .. } = &error else {
            return Err(error.into());
        };
        match &self.0 {
            None => {
                let step = Later::Promote(to, PromoteOptions::default());
                let left = step.left(approval_id).await;
                say_waiting(&format!(
                    "{} s at most for a second person, and nobody writes until then: {}",
                    left.as_secs(),
                    how(step.verb(), site, approval_id)
                ));
                self.0 = Some(Waits { id: approval_id.clone(), until: Instant::now() + left });
            }
            Some(waits) if waits.id == *approval_id && Instant::now() < waits.until => {}
            Some(_) => return Err(Failure::from(error).with_next(NOBODY_WRITES)),
        }
        tokio::time::sleep(ASK_AGAIN).await;
        Ok(())
    }
}

/// Asks for the second people of all of these, then waits for each: they may come in any order. Each step that comes waits
/// for its site for `patience` at most, and of each approval enough has to be left for that.
pub(crate) async fn wait_for(steps: &[Later<'_>], patience: Duration) -> Result<(), Failure> {
    let left_min = 2 * patience + MARGIN;
    let (begun, mut waits) = (Instant::now(), Vec::new());
    // All are told of at once, so that the second people can be asked at once.
    for step in steps {
        waits.push(match step.ask().await {
            Err(CallError::SecondPersonNeeded { site, approval_id, .. }) => {
                Some(step.begin_to_wait((&site, &approval_id), left_min).await)
            }
            // Whatever else it says is said below.
            _ => None,
        });
    }
    for (step, waits) in steps.iter().zip(waits) {
        step.wait(waits, left_min).await?;
    }
    if begun.elapsed() < ASK_AGAIN {
        return Ok(());
    }
    // What was approved first may be over by now.
    for step in steps {
        step.wait(None, left_min).await?;
    }
    Ok(())
}

/// An approval that ends soon is none for what takes longer.
fn check_left(approval: Option<&Approval>, left_min: Duration) -> Result<(), Failure> {
    let Some(Approval { approval_id, verb, expires_in_ms, .. }) = approval else { return Ok(()) };
    if Duration::from_millis(*expires_in_ms) >= left_min {
        return Ok(());
    }
    let seconds = expires_in_ms / 1_000;
    let reason = format!(
        "the approval {approval_id} of {verb} ends in {seconds} s, too soon for a switchover: nothing was changed"
    );
    let next = "run the same command again once it is over: it is asked anew";
    Err(Failure::refused("SECOND_PERSON_NEEDED", reason).with_next(next))
}

/// A server that can't be asked ahead asks when the step is taken.
fn passed_over(error: CallError) -> Result<(), Failure> {
    let is_older = match &error {
        CallError::Refused { code, .. } => {
            matches!(code.as_str(), "UNKNOWN_METHOD" | "UNIMPLEMENTED")
        }
        // Who may not take the step itself is told so before anybody is demoted.
        CallError::PermissionDenied { reason, .. } => reason.contains("Approvals/AskAhead"),
        _ => false,
    };
    if !is_older {
        return Err(error.into());
    }
    let _ = writeln!(
        io::stderr(),
        "a second person that is needed will be asked for when the step is taken, and nobody may write until then: {error}"
    );
    Ok(())
}
