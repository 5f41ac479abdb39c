//! Importing meters: lines in, one result a line out.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::Stream;
use kms_proto::v1;
use serde::Serialize;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::call::{CallError, ProtocolError};
use crate::flow::{Bounds, Flow, Results, start};
use crate::link::Link;
use crate::records::MeterRecord;
use crate::replicated::Replicated;
use crate::sites::Errand;
use crate::stubs;
use crate::transport::Transport;

/// Lines in one message: what the service accepts at most.
const LINES_MAX: usize = kms_core::wire::IMPORT_LINES_MAX;
/// Messages under way: one is being committed while the next is on the wire.
const IN_FLIGHT_MAX: usize = 3;
/// The time that a line waits at most for its message to fill up.
const FLUSH_AFTER: Duration = Duration::from_millis(20);
/// A message of lines may wrap fifteen hundred keys in a token; that takes longer than a read.
const PATIENCE_MIN: Duration = Duration::from_secs(120);

/// Rights of an import.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ImportRules {
    /// Accept all-zero and published test keys.
    pub allow_test_keys: bool,
    /// A key value that the meter does not know yet becomes a new version beside the old ones.
    pub add_versions: bool,
    /// Check everything, change nothing.
    pub dry_run: bool,
    /// A known meter gets the policy of its line.
    pub change_policy: bool,
}

impl ImportRules {
    pub(crate) fn to_wire(self) -> v1::ImportRules {
        let Self { allow_test_keys, add_versions, dry_run, change_policy } = self;
        v1::ImportRules { allow_test_keys, add_versions, dry_run, change_policy }
    }
}

/// Outcome of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[non_exhaustive]
pub enum Outcome {
    /// The meter is new.
    Created,
    /// The meter was known; keys or policy were added.
    Updated,
    /// Nothing in the line was news.
    Unchanged,
    /// Nothing was changed.
    Refused,
}

/// The service's answer to one record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ImportResult {
    /// The number of the record's place.
    pub line: u64,
    /// Its outcome.
    pub outcome: Outcome,
    /// The meter of the line, if it names one.
    pub meter_id: String,
    /// A word for machines; empty unless refused.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub code: String,
    /// The reason why it was refused, and what to do; empty unless refused.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Findings that are worth a look and stopped nothing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Whether the other site has what was changed, by this line or by another of its message.
    #[serde(skip_serializing_if = "Replicated::is_nothing")]
    pub replicated: Replicated,
}

/// The counts of an import.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ImportCounts {
    /// New meters.
    pub created: u64,
    /// Meters that were known and got keys or policy.
    pub updated: u64,
    /// Meters that stayed as they were.
    pub unchanged: u64,
    /// Lines refused.
    pub refused: u64,
    /// Warnings, over all lines.
    pub warnings: u64,
    /// Lines with changes that the other site did not confirm in time.
    pub unreplicated: u64,
}

impl ImportCounts {
    /// Adds one result.
    pub fn count(&mut self, result: &ImportResult) {
        *match result.outcome {
            Outcome::Created => &mut self.created,
            Outcome::Updated => &mut self.updated,
            Outcome::Unchanged => &mut self.unchanged,
            Outcome::Refused => &mut self.refused,
        } += 1;
        self.warnings += result.warnings.len() as u64;
        let changed = matches!(result.outcome, Outcome::Created | Outcome::Updated);
        let is_lost_with_us = changed && result.replicated == Replicated::Unreplicated;
        self.unreplicated += u64::from(is_lost_with_us);
    }

    /// Lines with a result.
    pub fn lines(&self) -> u64 {
        self.created + self.updated + self.unchanged + self.refused
    }

    /// Whether all that was imported was there already, and nothing was refused.
    pub fn changed_nothing(&self) -> bool {
        self.lines() == self.unchanged && self.unchanged > 0
    }
}

/// Called after each result.
type Progress = Box<dyn FnMut(&ImportCounts) + Send>;

/// Results in the order of the lines, counted as they are taken.
pub struct ImportResults {
    results: Results<ImportResult>,
    counts: ImportCounts,
    progress: Option<Progress>,
}

impl ImportResults {
    pub(crate) fn of(results: Results<ImportResult>) -> Self {
        Self { results, counts: ImportCounts::default(), progress: None }
    }

    /// Has `progress` called after each result that is taken.
    pub fn on_progress(mut self, progress: impl FnMut(&ImportCounts) + Send + 'static) -> Self {
        self.progress = Some(Box::new(progress));
        self
    }

    /// The counts up to now.
    pub fn counts(&self) -> ImportCounts {
        self.counts
    }
}

impl Stream for ImportResults {
    type Item = Result<ImportResult, CallError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let result = ready!(Pin::new(&mut self.results).poll_next(context));
        if let Some(Ok(result)) = &result {
            self.counts.count(result);
            let counts = self.counts;
            if let Some(progress) = &mut self.progress {
                progress(&counts);
            }
        }
        Poll::Ready(result)
    }
}

pub(crate) fn start_import(
    transport: Arc<Transport>,
    records: impl Stream<Item = MeterRecord> + Send + 'static,
    rules: ImportRules,
) -> Results<ImportResult> {
    let bounds = bounds(&transport, LINES_MAX);
    start(transport, Importing { rules }, bounds, records)
}

/// The bounds of an import of `items_max` items a message.
pub(crate) fn bounds(transport: &Transport, items_max: usize) -> Bounds {
    Bounds {
        items_max,
        in_flight_max: IN_FLIGHT_MAX,
        flush_after: FLUSH_AFTER,
        patience: transport.deadline().max(PATIENCE_MIN),
    }
}

/// The flow of records; on the wire each is a line.
struct Importing {
    rules: ImportRules,
}

impl Flow for Importing {
    const ERRAND: Errand = Errand::AtPrimary;

    type Item = MeterRecord;
    /// The lines without a result, oldest first.
    type Pending = VecDeque<v1::ImportLine>;
    type Message = v1::ImportMetersRequest;
    type Reply = v1::ImportMetersResponse;
    type Output = ImportResult;

    fn weight(record: &MeterRecord) -> usize {
        record.weight()
    }

    fn pack(&mut self, records: Vec<MeterRecord>) -> Self::Pending {
        let pack = |MeterRecord { place, meter }: MeterRecord| v1::ImportLine {
            line: place.number(),
            meter: Some(meter.into_wire()),
        };
        records.into_iter().map(pack).collect()
    }

    fn message(&self, pending: &Self::Pending) -> v1::ImportMetersRequest {
        // A clone shares the key bytes; they are wiped when the last of the two lets go.
        let lines = pending.iter().cloned().collect();
        v1::ImportMetersRequest { rules: Some(self.rules.to_wire()), lines, sealed: None }
    }

    async fn open(
        link: Link,
        outbound: Request<UnboundedReceiverStream<v1::ImportMetersRequest>>,
    ) -> Result<Streaming<v1::ImportMetersResponse>, Status> {
        stubs::meters(link).import_meters(outbound).await.map(Response::into_inner)
    }

    fn accept(
        &mut self,
        pending: &mut VecDeque<Self::Pending>,
        reply: v1::ImportMetersResponse,
    ) -> Result<Vec<ImportResult>, ProtocolError> {
        let replicated = Replicated::from_wire(reply.replicated)?;
        let accept = |result| accept_one(pending, result, replicated);
        reply.results.into_iter().map(accept).collect()
    }
}

/// Matches one result with the oldest line that has none.
fn accept_one(
    pending: &mut VecDeque<VecDeque<v1::ImportLine>>,
    result: v1::ImportResult,
    replicated: Replicated,
) -> Result<ImportResult, ProtocolError> {
    let message = pending.front_mut().ok_or(ProtocolError::Unasked)?;
    let due = message.pop_front().ok_or(ProtocolError::Unasked)?;
    if message.is_empty() {
        pending.pop_front();
    }
    if result.line != due.line {
        return Err(ProtocolError::OutOfOrder { expected: due.line, found: result.line });
    }
    result_of(result, replicated)
}

/// A result as it came.
pub(crate) fn result_of(
    result: v1::ImportResult,
    replicated: Replicated,
) -> Result<ImportResult, ProtocolError> {
    let v1::ImportResult { line, outcome, meter_id, code, reason, warnings } = result;
    let outcome = outcome_of(outcome)?;
    Ok(ImportResult { line, outcome, meter_id, code, reason, warnings, replicated })
}

fn outcome_of(number: i32) -> Result<Outcome, ProtocolError> {
    use v1::import_result::Outcome as Wire;
    match Wire::try_from(number) {
        Ok(Wire::Created) => Ok(Outcome::Created),
        Ok(Wire::Updated) => Ok(Outcome::Updated),
        Ok(Wire::Unchanged) => Ok(Outcome::Unchanged),
        Ok(Wire::Refused) => Ok(Outcome::Refused),
        Ok(Wire::Unspecified) | Err(_) => {
            Err(ProtocolError::UnknownNumber { what: "outcome", number })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pending(messages: &[&[u64]]) -> VecDeque<VecDeque<v1::ImportLine>> {
        let line = |line: &u64| v1::ImportLine { line: *line, meter: None };
        messages.iter().map(|lines| lines.iter().map(line).collect()).collect()
    }

    fn reply(lines: &[u64]) -> v1::ImportMetersResponse {
        let result =
            |line: &u64| v1::ImportResult { line: *line, outcome: 3, ..Default::default() };
        v1::ImportMetersResponse { results: lines.iter().map(result).collect(), replicated: 0 }
    }

    fn accept(
        pending: &mut VecDeque<VecDeque<v1::ImportLine>>,
        lines: &[u64],
    ) -> Result<Vec<ImportResult>, ProtocolError> {
        Importing { rules: ImportRules::default() }.accept(pending, reply(lines))
    }

    #[test]
    fn answers_may_be_cut_otherwise_than_the_questions() {
        let mut pending = pending(&[&[2, 3], &[4]]);
        assert_eq!(accept(&mut pending, &[2]).unwrap().len(), 1);
        assert_eq!(pending.len(), 2);
        assert_eq!(accept(&mut pending, &[3, 4]).unwrap().len(), 2);
        assert!(pending.is_empty());
    }

    #[test]
    fn a_result_out_of_turn_or_for_no_line_is_refused() {
        let error = accept(&mut pending(&[&[2, 3]]), &[3]).unwrap_err();
        assert_eq!(error, ProtocolError::OutOfOrder { expected: 2, found: 3 });
        assert_eq!(accept(&mut pending(&[&[2]]), &[2, 3]).unwrap_err(), ProtocolError::Unasked);
    }

    #[test]
    fn an_import_with_refusals_did_not_change_nothing() {
        let counts = ImportCounts { unchanged: 2, refused: 1, ..Default::default() };
        assert!(!counts.changed_nothing());
        assert!(ImportCounts { unchanged: 2, ..Default::default() }.changed_nothing());
    }
}
