//! `ImportMeters`: one stream of lines in clear, or of the chunks of one sealed file.

use std::sync::Arc;

use kms_proto::v1::{ImportLine, ImportMetersRequest, ImportMetersResponse};
use tonic::Status;

use super::{
    in_order::to_its_end,
    sealed::{self, NotTaken, SealedStream},
};
use crate::{
    lifecycle::{
        ChunkOf, ImportResult, ImportRules, Imports, Lifecycle, NewMeter, Refusal, SealedFile,
        SealedHeader,
    },
    rpc::{
        access::policy::Permit,
        gate::recording::Recorder,
        messages::{
            shape::LINES_MAX,
            status::Refused,
            words::{self, Form},
        },
        shares::budget::Budget,
    },
};
use kms_core::RefusalCode;
use kms_core::audit::{AuditOutcome, AuditedCall, Detail, Subject};

/// One stream of an import.
pub(super) struct Importing {
    pub(super) lifecycle: Arc<Lifecycle>,
    pub(super) audit: Recorder,
    pub(super) budget: Budget,
    pub(super) call: AuditedCall,
    pub(super) permit: Arc<Permit>,
    /// The rules of the first message.
    pub(super) rules: Option<ImportRules>,
    /// The sealed file that it carries, if it does.
    pub(super) file: Option<SealedStream>,
}

impl Importing {
    /// Answers one message.
    pub(super) async fn answer(
        &mut self,
        message: ImportMetersRequest,
    ) -> Result<ImportMetersResponse, Status> {
        let ImportMetersRequest { rules: given, lines, sealed } = message;
        let rules = *self.rules.get_or_insert_with(|| words::rules(given));
        let part = match sealed {
            Some(part) if lines.is_empty() => part,
            None if self.file.is_none() && lines.is_empty() => {
                return self.asked().await;
            }
            None if self.file.is_none() => {
                return self.import(None, lines, rules).await;
            }
            _ => {
                let problem = "a stream has lines, or the chunks of a sealed file, not both";
                return Err(Refused::Field { field: "sealed", problem }.into());
            }
        };
        let said = part.header.as_ref().map(|header| SealedHeader::number(&header.body));
        match sealed::accept(&self.lifecycle, &mut self.file, part).await {
            Ok((file, chunk, lines)) => self.import(Some((file, chunk)), lines, rules).await,
            Err(why) => Err(self.not_taken(said, why).await),
        }
    }

    /// Ends the stream after its last message, if nothing is missing.
    pub(super) async fn end(&self) -> Result<(), Status> {
        let Some(file) = &self.file else { return Ok(()) };
        match file.ended() {
            Ok(()) => Ok(()),
            Err(why) => Err(self.not_taken(Some(file.number()), why).await),
        }
    }

    /// Records why a chunk of a sealed file was not taken, and gives the status for it. `file` is the
    /// number of the file as it says itself, true or not.
    async fn not_taken(&self, file: Option<u64>, why: NotTaken) -> Status {
        let (outcome, status) = why.told();
        let mut entry = self.audit.entry(&self.call, Subject::NONE);
        entry.outcome = outcome;
        entry.details.extend(file.map(|number| (Detail::SealedFile, number)));
        self.audit.record(entry).await.err().unwrap_or(status)
    }

    /// A message without lines: whether lines with keys in clear would be taken at all. It is recorded as
    /// they would be, so that where nothing can be, this says so before a key is sent.
    async fn asked(&self) -> Result<ImportMetersResponse, Status> {
        if let Err(refused) = self.lifecycle.takes_clear_keys() {
            return Err(self.audit.failure(&self.call, Subject::NONE, &refused.into()).await);
        }
        self.audit.record(self.audit.entry(&self.call, Subject::NONE)).await?;
        Ok(ImportMetersResponse::default())
    }

    /// One message of an import: a result a line, in order.
    async fn import(
        &self,
        source: Option<(SealedFile, u32)>,
        lines: Vec<ImportLine>,
        rules: ImportRules,
    ) -> Result<ImportMetersResponse, Status> {
        if lines.len() > LINES_MAX {
            return Err(Refused::BatchTooLarge { items: lines.len(), limit: LINES_MAX }.into());
        }
        let charge = self.budget.charge_soon(&self.permit, lines.len()).await?;
        let form = if source.is_some() { Form::Sealed } else { Form::Clear };
        let (readable, lines) = read(lines, form);
        let unreadable = lines.len() - readable.len();
        if unreadable > 0 {
            let mut entry = self.audit.entry(&self.call, Subject::NONE);
            entry.outcome = AuditOutcome::refused(RefusalCode::BadField.word());
            self.audit.record(entry.with(Detail::RefusedLines, unreadable as u64)).await?;
        }
        let (lifecycle, audit) = (Arc::clone(&self.lifecycle), self.audit.clone());
        let call = self.call.clone();
        let imports = to_its_end(async move {
            let _charge = charge;
            if readable.is_empty() {
                return Ok(Imports { results: Vec::new(), states: Vec::new() });
            }
            let imports = match source {
                Some((file, chunk)) => {
                    let chunk = ChunkOf { file: &file, number: chunk };
                    lifecycle.import_sealed(&call, chunk, readable, rules).await
                }
                None => lifecycle.import(&call, readable, rules).await,
            };
            match imports {
                Ok(imports) => Ok(imports),
                Err(error) => Err(audit.failure(&call, Subject::NONE, &error).await),
            }
        })
        .await?;
        let Imports { results, states } = imports;
        let replicated = words::replicated(self.lifecycle.replicated(&states).await) as i32;
        Ok(ImportMetersResponse { results: in_line(lines, results)?, replicated })
    }
}

/// One line, waiting for its result.
#[derive(Debug)]
struct Line {
    number: u64,
    meter_id: String,
    /// The reason why it never came to `lifecycle`.
    unreadable: Option<Refused>,
}

/// The meters that can be read, and all lines.
fn read(lines: Vec<ImportLine>, form: Form) -> (Vec<NewMeter>, Vec<Line>) {
    let mut readable = Vec::with_capacity(lines.len());
    let lines = lines
        .into_iter()
        .map(|ImportLine { line, meter }| {
            let meter_id = meter.as_ref().map_or_else(String::new, |meter| meter.meter_id.clone());
            let unreadable = match words::meter_of(meter, form) {
                Ok(meter) => {
                    readable.push(meter);
                    None
                }
                Err(refused) => Some(refused),
            };
            Line { number: line, meter_id, unreadable }
        })
        .collect();
    (readable, lines)
}

/// Puts the results of the readable lines between those of the others.
fn in_line(
    lines: Vec<Line>,
    results: Vec<ImportResult>,
) -> Result<Vec<kms_proto::v1::ImportResult>, Refused> {
    const MISFIT: Refused = Refused::Fault("lifecycle's results do not fit their lines");
    let mut results = results.into_iter();
    let all = lines
        .into_iter()
        .map(|line| {
            let result = match line.unreadable {
                None => results.next().ok_or(MISFIT)?,
                Some(refused) => unreadable(&refused),
            };
            Ok(words::import_result(line.number, line.meter_id, result))
        })
        .collect::<Result<Vec<_>, Refused>>()?;
    if results.next().is_some() { Err(MISFIT) } else { Ok(all) }
}

fn unreadable(refused: &Refused) -> ImportResult {
    let refusal = Refusal { code: RefusalCode::BadField, reason: refused.to_string() };
    ImportResult { outcome: Err(refusal), warnings: Vec::new() }
}

#[cfg(test)]
mod tests {
    use kms_proto::v1::{NewMeter as WireMeter, import_result::Outcome};

    use super::*;
    use crate::lifecycle::Imported;

    fn line(number: u64, title: &[u8]) -> ImportLine {
        let meter = WireMeter {
            meter_id: format!("m{number}"),
            system_title: title.to_vec().into(),
            ..WireMeter::default()
        };
        ImportLine { line: number, meter: Some(meter) }
    }

    fn created() -> ImportResult {
        ImportResult { outcome: Ok(Imported::Created), warnings: vec!["look".into()] }
    }

    #[test]
    fn a_line_that_cannot_be_read_leaves_the_others_alone() {
        let (readable, lines) = read(
            vec![line(10, b"12345678"), line(20, b"short"), line(30, b"12345679")],
            Form::Clear,
        );
        assert_eq!(readable.len(), 2);
        let results = in_line(lines, vec![created(), created()]).unwrap();
        let told: Vec<_> = results
            .iter()
            .map(|result| (result.line, result.outcome(), result.code.as_str()))
            .collect();
        assert_eq!(
            told,
            [
                (10, Outcome::Created, ""),
                (20, Outcome::Refused, "BAD_FIELD"),
                (30, Outcome::Created, "")
            ]
        );
        assert_eq!(results[1].meter_id, "m20");
        assert!(results[1].reason.contains("meter.system_title"), "{}", results[1].reason);
        assert_eq!(results[0].warnings, ["look"]);
    }

    #[test]
    fn results_that_do_not_fit_their_lines_are_not_answered() {
        for count in [0, 2] {
            let (_, lines) = read(vec![line(1, b"12345678")], Form::Clear);
            assert!(in_line(lines, vec![created(); count]).is_err());
        }
    }
}
